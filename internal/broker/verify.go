package broker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"time"

	"sft"
	"sft/internal/frame"
)

// MaxLife is the longest life of a certificate to the broker. The platform's
// live six minutes, one of them in the past.
const MaxLife = 10 * time.Minute

// A Verifier decides, in the monitor, whether what a broker passed on lets
// somebody in. It trusts the certificates of CAs and nothing else. Its fields
// are set before the first Verify and not changed; all of them but Services
// are required. Its methods may be called by many goroutines at once.
type Verifier struct {
	Server  string // this server's id
	Team    string // its team and project, by name
	Project string
	// CAs are the certificates of the project's access CA, as the platform
	// last said.
	CAs func() []*x509.Certificate
	// Now is the clock that certificates and proofs are checked by: the local
	// one with the platform's offset.
	Now func() time.Time
	// Services returns those that a frame may ask for now; nil means rdp and
	// ping.
	Services func() []string

	seen replays
}

// A Grant is what a certificate and a frame proved. That the user may sign in
// here now is not part of it.
type Grant struct {
	Team     string
	Project  string
	User     string // id
	Server   string
	Session  string
	Revision int64 // wait for it before looking for the user
	Service  string
	NotAfter time.Time // of the certificate, in UTC
	// CA is "sha256:" and, in hex, the SHA-256 of the certificate of the CA that
	// has signed.
	CA string
	// KeySHA256 is the SHA-256 of the certificate's SPKI.
	KeySHA256 [32]byte
}

// Verify checks a chain as it was presented in TLS, DER with the leaf first,
// and the bytes of the frame that came after it. Only the leaf is looked at:
// it must be signed by the access CA itself, so whatever else was sent can
// prove nothing. Every error is an *sft.Error for the person.
//
// A frame is good once. What was used is forgotten when the monitor ends, and
// its broker with it: a frame of the last minute would pass a new one again,
// if somebody kept both it and the way to send it.
func (v *Verifier) Verify(chain [][]byte, b []byte) (Grant, error) {
	now := v.Now()
	if len(chain) == 0 {
		return Grant{}, &sft.Error{Code: sft.Invalid, Msg: "there is no certificate"}
	}
	if err := checkChain(chain); err != nil {
		return Grant{}, err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return Grant{}, &sft.Error{Code: sft.Invalid, Msg: "the certificate is not readable", Err: err}
	}
	key, by, err := v.checkLeaf(leaf, now)
	if err != nil {
		return Grant{}, err
	}
	names, err := v.checkNames(leaf)
	if err != nil {
		return Grant{}, err
	}
	hello, proof, err := frame.Verify(b, v.Server, key, now)
	if err != nil {
		return Grant{}, err
	}
	if hello.Session != names.Session {
		return Grant{}, refusal("the frame and the certificate name different sessions")
	}
	services := []string{frame.RDP, frame.Ping}
	if v.Services != nil {
		services = v.Services()
	}
	if !slices.Contains(services, hello.Service) {
		return Grant{}, &sft.Error{Code: sft.UnknownService, Msg: "the broker has no service " + sft.Quote(hello.Service),
			Hint: "update sftd on the server, or sft here"}
	}
	g := Grant{Team: names.Team, Project: names.Project, User: names.User, Server: names.Server,
		Session: names.Session, Revision: names.Revision, Service: hello.Service,
		CA: fmt.Sprintf("sha256:%x", sha256.Sum256(by.Raw)), NotAfter: leaf.NotAfter.UTC(), KeySHA256: sha256.Sum256(leaf.RawSubjectPublicKeyInfo)}
	expires := time.Unix(proof.Issued, 0).Add(frame.ProofAge)
	if err := v.seen.use(g.User, g.KeySHA256, proof.ID, expires, now); err != nil {
		return Grant{}, err
	}
	return g, nil
}

// checkLeaf checks everything of a certificate but its names, and returns its
// key and the CA that it is by.
func (v *Verifier) checkLeaf(leaf *x509.Certificate, now time.Time) (*ecdsa.PublicKey, *x509.Certificate, error) {
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, nil, refusal("the certificate's key is not ECDSA P-256")
	}
	switch {
	case leaf.IsCA:
		return nil, nil, refusal("the certificate is a CA's")
	case leaf.KeyUsage != x509.KeyUsageDigitalSignature,
		len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || len(leaf.UnknownExtKeyUsage) != 0:
		return nil, nil, refusal("the certificate is not made for signing in to a broker")
	case leaf.NotAfter.Sub(leaf.NotBefore) > MaxLife:
		return nil, nil, refusal(fmt.Sprintf("the certificate lives longer than %v", MaxLife))
	case now.Before(leaf.NotBefore):
		return nil, nil, &sft.Error{Code: sft.ClockSkew,
			Msg:  fmt.Sprintf("the certificate is valid from %s on, and the server's clock says %s", stamp(leaf.NotBefore), stamp(now)),
			Hint: "set the clock of the server"}
	case now.After(leaf.NotAfter):
		return nil, nil, refusal(fmt.Sprintf("the certificate was valid until %s, and the server's clock says %s", stamp(leaf.NotAfter), stamp(now)))
	}
	roots := x509.NewCertPool()
	for _, ca := range v.CAs() {
		roots.AddCert(ca)
	}
	// No intermediates: the CA itself has to have signed. Verify also refuses
	// critical extensions that it does not know.
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return nil, nil, &sft.Error{Code: sft.Denied, Msg: "the certificate is not by this project's CA", Err: err,
			Hint: "make a new request with \"sft rdp\""}
	}
	return key, chains[0][1], nil
}

var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// checkNames reads a certificate's names: the four URIs, in one spelling, for
// this server, and no other name of any type.
func (v *Verifier) checkNames(leaf *x509.Certificate) (frame.Names, error) {
	// x509 skips the types of names that it does not know, and normalizes
	// URIs. Both are refused by looking at what was signed.
	var raw []asn1.RawValue
	for _, e := range leaf.Extensions {
		if e.Id.Equal(oidSAN) {
			if rest, err := asn1.Unmarshal(e.Value, &raw); err != nil || len(rest) != 0 {
				return frame.Names{}, refusal("the certificate's names are not readable")
			}
		}
	}
	same := len(raw) == len(leaf.URIs)
	for i := 0; same && i < len(raw); i++ {
		same = raw[i].Class == asn1.ClassContextSpecific && raw[i].Tag == 6 && string(raw[i].Bytes) == leaf.URIs[i].String()
	}
	if !same {
		return frame.Names{}, refusal("the certificate has other names than it should")
	}
	n, err := frame.ParseURIs(leaf.URIs)
	if err != nil {
		return frame.Names{}, err
	}
	switch {
	case n.Team != v.Team || n.Project != v.Project:
		return frame.Names{}, refusal("the certificate is for another project")
	case n.Server != v.Server:
		return frame.Names{}, refusal("the certificate is for another server")
	}
	return n, nil
}

func refusal(msg string) error {
	return &sft.Error{Code: sft.Denied, Msg: msg, Hint: "make a new request with \"sft rdp\""}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
