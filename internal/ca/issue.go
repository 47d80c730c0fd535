package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/url"
	"slices"
	"time"

	"sft"
	"sft/internal/frame"
)

// The lives of certificates.
const (
	AccessLife   = 5 * time.Minute
	AccessEarly  = time.Minute // how long before now it is good already
	HostLife     = 24 * time.Hour
	PlatformLife = 90 * 24 * time.Hour
)

// maxCSR caps a certificate signing request, in bytes.
const maxCSR = 4 << 10

// A profile is everything that a certificate of one kind may be.
type profile struct {
	ca    Kind
	life  time.Duration // the most, early time included
	usage x509.ExtKeyUsage
}

var (
	accessProfile   = profile{Access, AccessLife + AccessEarly, x509.ExtKeyUsageClientAuth}
	hostProfile     = profile{Host, HostLife + AccessEarly, x509.ExtKeyUsageServerAuth}
	platformProfile = profile{Platform, PlatformLife + time.Hour, x509.ExtKeyUsageServerAuth}
)

// RequestKey returns the public key of a CSR (PKCS #10, RFC 2986), which must
// be P-256 and signed by its own key. Whatever else the CSR asks for is not
// looked at.
func RequestKey(csr []byte) (*ecdsa.PublicKey, error) {
	bad := func(msg string) error {
		return &sft.Error{Code: sft.Invalid, Msg: msg, Hint: "send a PKCS #10 request by a P-256 key"}
	}
	if len(csr) == 0 || len(csr) > maxCSR {
		return nil, bad(fmt.Sprintf("the certificate request has %d bytes; it may have 1 to %d", len(csr), maxCSR))
	}
	r, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, bad("the certificate request is not readable")
	}
	key, ok := r.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, bad("the certificate request is not for a P-256 key")
	}
	if err := r.CheckSignature(); err != nil {
		return nil, bad("the certificate request is not signed by its own key")
	}
	return key, nil
}

// PublicKey parses a P-256 key (SubjectPublicKeyInfo, DER).
func PublicKey(spki []byte) (*ecdsa.PublicKey, error) {
	if len(spki) <= 1<<10 {
		if k, err := x509.ParsePKIXPublicKey(spki); err == nil {
			if key, ok := k.(*ecdsa.PublicKey); ok && key.Curve == elliptic.P256() {
				return key, nil
			}
		}
	}
	return nil, &sft.Error{Code: sft.Invalid, Msg: "the device key is not a P-256 public key", Hint: "send it as SubjectPublicKeyInfo, DER"}
}

// KeyHash returns the SHA-256 of a key's SPKI.
func KeyHash(key *ecdsa.PublicKey) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	h := sha256.Sum256(spki)
	return h[:], nil
}

// A Draft is a certificate that may be signed: nothing about it is open any
// more but the signature, which takes a while.
type Draft struct {
	a     *Authority
	p     profile
	key   *ecdsa.PublicKey
	t     *x509.Certificate
	Until time.Time // when it will end
}

// DraftAccess returns a certificate to a broker: for that user, server and
// session, for 5 minutes.
func (a *Authority) DraftAccess(key *ecdsa.PublicKey, names frame.Names, now time.Time) (Draft, error) {
	t := &x509.Certificate{
		Subject:   pkix.Name{CommonName: names.User},
		NotBefore: now.Add(-AccessEarly),
		NotAfter:  now.Add(AccessLife),
		URIs:      names.URIs(),
	}
	return a.draft(accessProfile, key, t)
}

// BrokerName is the DNS name in the certificate of a server's broker.
func BrokerName(serverID string) string { return serverID + ".server.sft" }

// IssueHost signs the certificate of a server's broker, for 24 hours.
func (a *Authority) IssueHost(key *ecdsa.PublicKey, serverID string, now time.Time) ([][]byte, time.Time, error) {
	t := &x509.Certificate{
		Subject:   pkix.Name{CommonName: BrokerName(serverID)},
		NotBefore: now.Add(-AccessEarly),
		NotAfter:  now.Add(HostLife),
		DNSNames:  []string{BrokerName(serverID)},
	}
	return a.issue(hostProfile, key, t)
}

// IssuePlatform signs the platform's own TLS certificate for a host name or
// address, for 90 days or for as long as the CA lives.
func (a *Authority) IssuePlatform(key *ecdsa.PublicKey, host string, now time.Time) ([][]byte, time.Time, error) {
	t := &x509.Certificate{
		Subject:   pkix.Name{CommonName: host},
		NotBefore: now.Add(-time.Hour),
		NotAfter:  now.Add(PlatformLife),
	}
	if a.kind == Platform && t.NotAfter.After(a.cert.NotAfter) {
		t.NotAfter = a.cert.NotAfter
	}
	if ip := net.ParseIP(host); ip != nil {
		t.IPAddresses = []net.IP{ip}
	} else {
		t.DNSNames = []string{host}
	}
	return a.issue(platformProfile, key, t)
}

// issue signs what the profile allows, and returns the chain and when it ends.
func (a *Authority) issue(p profile, key *ecdsa.PublicKey, t *x509.Certificate) ([][]byte, time.Time, error) {
	d, err := a.draft(p, key, t)
	if err != nil {
		return nil, time.Time{}, err
	}
	chain, err := d.Sign()
	return chain, d.Until, err
}

// draft completes the template by the profile, and refuses what the profile
// does not allow.
func (a *Authority) draft(p profile, key *ecdsa.PublicKey, t *x509.Certificate) (Draft, error) {
	if a.kind != p.ca {
		return Draft{}, fmt.Errorf("the %s CA does not sign for the %s CA", a.kind, p.ca)
	}
	t.SerialNumber = serial()
	t.NotBefore, t.NotAfter = t.NotBefore.UTC().Truncate(time.Second), t.NotAfter.UTC().Truncate(time.Second)
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{p.usage}
	t.BasicConstraintsValid = true
	d := Draft{a, p, key, t, t.NotAfter}
	if err := d.check(t); err != nil {
		return Draft{}, fmt.Errorf("refuse to issue a certificate: %w", err)
	}
	return d, nil
}

// Sign returns the chain, after a look at the finished certificate.
func (d Draft) Sign() ([][]byte, error) {
	// It verifies the signature that it makes; so look need not.
	der, err := x509.CreateCertificate(rand.Reader, d.t, d.a.cert, d.key, d.a.key)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if err := d.look(c); err != nil {
		return nil, fmt.Errorf("refuse to issue a certificate: %w", err)
	}
	return [][]byte{der, d.a.cert.Raw}, nil
}

// look is the last one: it compares the finished certificate with what the
// profile allows and what was meant.
func (d Draft) look(c *x509.Certificate) error {
	if err := d.check(c); err != nil {
		return err
	}
	uris := func(list []*url.URL) (s []string) {
		for _, u := range list {
			s = append(s, u.String())
		}
		return s
	}
	switch t := d.t; {
	case !bytes.Equal(c.AuthorityKeyId, d.a.cert.SubjectKeyId):
		return fmt.Errorf("the signature is not the CA's")
	case !d.key.Equal(c.PublicKey):
		return fmt.Errorf("the key is another")
	case !c.NotBefore.Equal(t.NotBefore) || !c.NotAfter.Equal(t.NotAfter):
		return fmt.Errorf("the times are others")
	case !slices.Equal(uris(c.URIs), uris(t.URIs)) || !slices.Equal(c.DNSNames, t.DNSNames) || !slices.EqualFunc(c.IPAddresses, t.IPAddresses, net.IP.Equal):
		return fmt.Errorf("the names are others")
	}
	return nil
}

// check compares a certificate, or what is to be one, with what the profile
// allows.
func (d Draft) check(c *x509.Certificate) error {
	switch p, ca := d.p, d.a.cert; {
	case c.IsCA || len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != p.usage || len(c.UnknownExtKeyUsage) != 0 || c.KeyUsage != x509.KeyUsageDigitalSignature:
		return fmt.Errorf("the uses are others")
	case c.NotAfter.Sub(c.NotBefore) > p.life || c.NotAfter.After(ca.NotAfter) || !c.NotAfter.After(c.NotBefore):
		return fmt.Errorf("it would be good from %s to %s, and the profile allows %s inside the CA's life", c.NotBefore, c.NotAfter, p.life)
	case len(c.EmailAddresses) != 0:
		return fmt.Errorf("the names are others")
	case len(c.URIs)+len(c.DNSNames)+len(c.IPAddresses) == 0:
		return fmt.Errorf("it names nobody")
	}
	if d.p.ca == Access {
		if _, err := frame.ParseURIs(c.URIs); err != nil {
			return err
		}
	}
	return nil
}
