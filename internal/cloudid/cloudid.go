// Package cloudid verifies what a cloud says of one of its instances, so that
// the instance can enrol without a token.
//
// On AWS that is the instance identity document and Amazon's signature over
// it (EC2 user guide, "Instance identity documents"). The signature is taken
// with the certificate of the region that the document names, and with no
// other: what the signature brings along proves nothing.
//
// A verified document says that it was made for that instance. It does not
// say who sends it: every user of the instance can read it. What follows from
// it is package platform's to decide.
package cloudid

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	_ "embed" // the certificates
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/smallstep/pkcs7"

	"sft"
)

// AWSName is the provider in cloud accounts, requests and servers.
const AWSName = "aws"

// Caps of what an instance sends, in bytes.
const (
	MaxDocument  = 64 << 10
	MaxSignature = 8 << 10
)

// maxAhead is how far in the future an instance may have been started, by the
// platform's clock.
const maxAhead = 5 * time.Minute

// maxBundle caps the file of certificates.
const maxBundle = 1 << 20

//go:embed aws.pem
var awsBundle []byte

// An AWS verifies instance identity documents by the certificates of Amazon's
// regions.
type AWS struct {
	certs map[string][]*x509.Certificate // by region
}

// NewAWS returns an AWS with the certificates that are part of the program.
func NewAWS() *AWS {
	a, err := ParseAWS(awsBundle)
	if err != nil {
		panic("cloudid: " + err.Error()) // a test reads it
	}
	return a
}

var (
	regionRE   = regexp.MustCompile(`^[a-z]{2,}(-[a-z]+)+-[0-9]{1,2}$`)
	accountRE  = regexp.MustCompile(`^[0-9]{12}$`)
	instanceRE = regexp.MustCompile(`^i-[0-9a-f]{8,17}$`)
	plainRE    = regexp.MustCompile(`^[A-Za-z0-9._-]{0,64}$`)
)

// CheckAccount refuses what cannot be an account of a provider.
func CheckAccount(provider, account string) error {
	switch {
	case provider != AWSName:
		return &sft.Error{Code: sft.Invalid, Msg: "provider " + sft.Quote(provider) + " is unknown", Hint: "use aws"}
	case !accountRE.MatchString(account):
		return &sft.Error{Code: sft.Invalid, Msg: "account_id " + sft.Quote(account) + " is no AWS account", Hint: "use the account's 12 digits, as a string"}
	}
	return nil
}

// ParseAWS reads certificates from a file of "region NAME" lines, each
// followed by one or more certificates (PEM, RSA of at least 2048 bits). Empty
// lines and those that begin with # are left out; anything else is refused,
// and so is a certificate that two regions have.
func ParseAWS(b []byte) (*AWS, error) {
	bad := func(msg string) (*AWS, error) {
		return nil, &sft.Error{Code: sft.Invalid, Msg: msg, Hint: "write \"region NAME\", then the region's certificates as PEM, and so on"}
	}
	if len(b) > maxBundle {
		return bad("the file of AWS certificates is too long")
	}
	a := &AWS{certs: map[string][]*x509.Certificate{}}
	seen := map[string]bool{}
	region := ""
	for n := 1; len(b) > 0; n++ {
		if region != "" && bytes.HasPrefix(b, []byte("-----BEGIN CERTIFICATE-----")) {
			block, rest := pem.Decode(b)
			if block == nil || block.Type != "CERTIFICATE" {
				return bad(fmt.Sprintf("line %d of the AWS certificates begins no readable certificate", n))
			}
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return bad(fmt.Sprintf("the certificate of region %s is not readable: %v", region, err))
			}
			if k, ok := c.PublicKey.(*rsa.PublicKey); !ok || k.N.BitLen() < 2048 {
				return bad("the certificate of region " + region + " is not RSA of at least 2048 bits")
			}
			if seen[string(c.RawSubjectPublicKeyInfo)] {
				return bad("the key of region " + region + " is there twice")
			}
			seen[string(c.RawSubjectPublicKeyInfo)] = true
			a.certs[region] = append(a.certs[region], c)
			n += bytes.Count(b[:len(b)-len(rest)], []byte("\n")) - 1
			b = rest
			continue
		}
		line, rest, _ := bytes.Cut(b, []byte("\n"))
		b = rest
		text := strings.TrimSpace(string(line))
		name, ok := strings.CutPrefix(text, "region ")
		switch {
		case text == "" || text[0] == '#':
		case ok && regionRE.MatchString(name):
			region = name
		default:
			return bad(fmt.Sprintf("line %d of the AWS certificates is not readable", n))
		}
	}
	if len(a.certs) == 0 {
		return bad("there is no AWS certificate in the file")
	}
	return a, nil
}

// Verify checks a document (as the instance metadata service gives it, byte
// for byte) and the signature over it (its "rsa2048", base64 of PKCS #7, RFC
// 2315), and returns what the document says. now is the platform's time. A
// document that is not readable is sft.Invalid, one that is not Amazon's
// sft.Denied.
func (a *AWS) Verify(document, signature string, now time.Time) (sft.InstanceDetails, error) {
	d, err := parseDocument(document)
	if err != nil {
		return sft.InstanceDetails{}, err
	}
	certs := a.certs[d.Region]
	if len(certs) == 0 {
		return sft.InstanceDetails{}, &sft.Error{Code: sft.Denied, Msg: "the platform has no AWS certificate of region " + d.Region,
			Hint: "give it to the platform by --aws-certificates, or use an enrollment token"}
	}
	p7, err := parseSignature(signature)
	if err != nil {
		return sft.InstanceDetails{}, err
	}
	if !bytes.Equal(p7.Content, []byte(document)) {
		return sft.InstanceDetails{}, &sft.Error{Code: sft.Denied, Msg: "the signature is of another instance identity document", Hint: "fetch document and signature again, together"}
	}
	p7.Certificates = certs
	if err := p7.Verify(); err != nil {
		return sft.InstanceDetails{}, &sft.Error{Code: sft.Denied, Msg: "the instance identity document is not signed by AWS for region " + d.Region, Err: err,
			Hint: "if AWS has a new certificate there, give it to the platform by --aws-certificates; else use an enrollment token"}
	}
	if c := p7.GetOnlySigner(); c == nil || now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return sft.InstanceDetails{}, &sft.Error{Code: sft.Denied, Msg: "the AWS certificate of region " + d.Region + " is not valid now", Hint: "check the platform's clock, and --aws-certificates"}
	}
	if d.PendingTime.After(now.Add(maxAhead)) {
		return sft.InstanceDetails{}, &sft.Error{Code: sft.Denied, Msg: fmt.Sprintf("the instance was started at %s, and the platform's clock says %s",
			d.PendingTime.Format(time.RFC3339), now.UTC().Format(time.RFC3339)), Hint: "set the platform's clock"}
	}
	return d, nil
}

// parseSignature reads a signature and refuses all that Amazon does not send:
// another number of signers than one, another digest than SHA-256, another
// key than RSA, or a signature without attributes.
func parseSignature(s string) (*pkcs7.PKCS7, error) {
	bad := func(err error) (*pkcs7.PKCS7, error) {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "the signature of the instance identity document is not readable", Err: err,
			Hint: "send what the metadata service has under dynamic/instance-identity/rsa2048"}
	}
	if len(s) > MaxSignature {
		return bad(errors.New("too long"))
	}
	der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		return bad(err)
	}
	p7, err := pkcs7.Parse(der)
	if err != nil {
		return bad(err)
	}
	if len(p7.Signers) != 1 {
		return bad(fmt.Errorf("%d signers", len(p7.Signers)))
	}
	g := p7.Signers[0]
	if alg := g.DigestEncryptionAlgorithm.Algorithm; !g.DigestAlgorithm.Algorithm.Equal(pkcs7.OIDDigestAlgorithmSHA256) ||
		!alg.Equal(pkcs7.OIDEncryptionAlgorithmRSA) && !alg.Equal(pkcs7.OIDEncryptionAlgorithmRSASHA256) {
		return bad(fmt.Errorf("algorithms %v and %v", g.DigestAlgorithm.Algorithm, alg))
	}
	// Without this a signature over attributes could pass as one over content.
	var kind asn1.ObjectIdentifier
	if err := p7.UnmarshalSignedAttribute(pkcs7.OIDAttributeContentType, &kind); err != nil || !kind.Equal(pkcs7.OIDData) {
		return bad(fmt.Errorf("content type %v: %w", kind, err))
	}
	return p7, nil
}

// parseDocument reads a document: one JSON object, in which no name comes
// twice, with the names spelt exactly.
func parseDocument(s string) (sft.InstanceDetails, error) {
	var d sft.InstanceDetails
	bad := func(msg string) (sft.InstanceDetails, error) {
		return sft.InstanceDetails{}, &sft.Error{Code: sft.Invalid, Msg: "the instance identity document " + msg,
			Hint: "send what the metadata service has under dynamic/instance-identity/document"}
	}
	if len(s) > MaxDocument {
		return bad("is too long")
	}
	if !utf8.ValidString(s) {
		return bad("is not UTF-8")
	}
	fields, err := object(s)
	if err != nil {
		return bad("is not readable")
	}
	for _, f := range []struct {
		name string
		re   *regexp.Regexp
		need bool
		to   *string
	}{
		{"accountId", accountRE, true, &d.AccountID},
		{"instanceId", instanceRE, true, &d.InstanceID},
		{"region", regionRE, true, &d.Region},
		{"availabilityZone", plainRE, false, &d.Zone},
		{"imageId", plainRE, false, &d.ImageID},
		{"instanceType", plainRE, false, &d.Type},
	} {
		var v *string
		raw, ok := fields[f.name]
		if ok && json.Unmarshal(raw, &v) != nil || f.need && v == nil {
			return bad("has no usable " + f.name)
		}
		if v != nil {
			if !f.re.MatchString(*v) {
				return bad("has no usable " + f.name)
			}
			*f.to = *v
		}
	}
	var at string
	if json.Unmarshal(fields["pendingTime"], &at) != nil {
		return bad("has no usable pendingTime")
	}
	t, err := time.Parse(time.RFC3339, at)
	if err != nil || t.Year() < 2006 || t.Year() > 9999 {
		return bad("has no usable pendingTime")
	}
	d.PendingTime = t.UTC()
	return d, nil
}

// object reads one JSON object, and nothing after it.
func object(s string) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(strings.NewReader(s))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("no object")
	}
	fields := map[string]json.RawMessage{}
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, errors.New("no name")
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, err
		}
		if _, twice := fields[name]; twice {
			return nil, errors.New("a name is there twice")
		}
		fields[name] = v
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("something follows the object")
	}
	return fields, nil
}
