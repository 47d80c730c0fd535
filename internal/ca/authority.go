package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/ssh"
)

// A Kind is what an authority signs.
type Kind string

// The kinds of authorities.
const (
	Access   Kind = "access"   // X.509, certificates to the brokers of a project
	Host     Kind = "host"     // X.509, certificates of the brokers of a project
	SSHUser  Kind = "ssh_user" // SSH user certificates
	SSHHost  Kind = "ssh_host" // SSH host certificates
	Platform Kind = "platform" // X.509, the platform's own TLS
)

// ProjectKinds are the authorities that each project owns.
var ProjectKinds = []Kind{Access, Host, SSHUser, SSHHost}

// life is how long an authority lives.
const life = 10 * 365 * 24 * time.Hour

// An Authority signs certificates of one kind.
type Authority struct {
	kind Kind
	cert *x509.Certificate // X.509 kinds
	pub  []byte            // SSH kinds: wire format. Audit: 32 bytes
	key  crypto.Signer

	notAfter time.Time // SSH kinds, whose public half does not say
}

// A Sealed authority is what is stored of one.
type Sealed struct {
	Kind     Kind
	Public   []byte // X.509: certificate, DER. SSH: public key, wire format. Audit: the key's 32 bytes
	Key      []byte // PKCS #8, sealed under the name that New was given
	NotAfter time.Time
}

// New makes an authority, and seals its key under name. title is for people
// who look at the certificate.
func New(kind Kind, name, title string, s Sealer, now time.Time) (Sealed, error) {
	var key crypto.Signer
	var public []byte
	notAfter := now.Add(life).Truncate(time.Second)
	switch kind {
	case Access, Host, Platform:
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return Sealed{}, err
		}
		t := &x509.Certificate{
			SerialNumber:          serial(),
			Subject:               pkix.Name{Organization: []string{"sft"}, CommonName: title},
			NotBefore:             now.Add(-time.Hour),
			NotAfter:              notAfter,
			IsCA:                  true,
			BasicConstraintsValid: true,
			MaxPathLenZero:        true,
			KeyUsage:              x509.KeyUsageCertSign,
		}
		if public, err = x509.CreateCertificate(rand.Reader, t, t, k.Public(), k); err != nil {
			return Sealed{}, err
		}
		key = k
	case RDPSign:
		k, der, err := newRDPSign(title, notAfter, now)
		if err != nil {
			return Sealed{}, err
		}
		key, public = k, der
	case SSHUser, SSHHost:
		_, k, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return Sealed{}, err
		}
		p, err := ssh.NewPublicKey(k.Public())
		if err != nil {
			return Sealed{}, err
		}
		key, public = k, p.Marshal()
	case Audit:
		p, k, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return Sealed{}, err
		}
		key, public = k, p
	default:
		return Sealed{}, fmt.Errorf("%q is no kind of authority", kind)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Sealed{}, err
	}
	sealed, err := s.Seal(sealName(kind, name), der)
	clear(der)
	return Sealed{Kind: kind, Public: public, Key: sealed, NotAfter: notAfter}, err
}

func sealName(kind Kind, name string) string { return "ca/" + string(kind) + "/" + name }

// Reseal returns the authority with its key, which from has sealed, sealed by to
// under the same name.
func (sealed Sealed) Reseal(name string, from, to Sealer) (Sealed, error) {
	var err error
	if sealed.Key, err = Reseal(sealName(sealed.Kind, name), sealed.Key, from, to); err != nil {
		err = fmt.Errorf("open the %s CA of %s: %w", sealed.Kind, name, err)
	}
	return sealed, err
}

// Open unseals an authority. It refuses one whose key does not belong to its
// certificate.
func Open(sealed Sealed, name string, s Sealer) (*Authority, error) {
	der, err := s.Open(sealName(sealed.Kind, name), sealed.Key)
	if err != nil {
		return nil, fmt.Errorf("open the %s CA of %s: %w", sealed.Kind, name, err)
	}
	defer clear(der)
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("open the %s CA of %s: %w", sealed.Kind, name, err)
	}
	a := &Authority{kind: sealed.Kind, key: k.(crypto.Signer)}
	type equaler interface{ Equal(crypto.PublicKey) bool }
	switch sealed.Kind {
	case Access, Host, Platform, RDPSign:
		if a.cert, err = x509.ParseCertificate(sealed.Public); err != nil {
			return nil, fmt.Errorf("open the %s CA of %s: %w", sealed.Kind, name, err)
		}
		if !a.key.Public().(equaler).Equal(a.cert.PublicKey) {
			return nil, fmt.Errorf("open the %s CA of %s: the key is not the certificate's", sealed.Kind, name)
		}
	case SSHUser, SSHHost:
		p, err := ssh.NewPublicKey(a.key.Public())
		if err != nil || string(p.Marshal()) != string(sealed.Public) {
			return nil, fmt.Errorf("open the %s CA of %s: the key is not the public key's", sealed.Kind, name)
		}
		a.pub, a.notAfter = sealed.Public, sealed.NotAfter
	case Audit:
		k, ok := a.key.(ed25519.PrivateKey)
		if !ok || !k.Public().(ed25519.PublicKey).Equal(ed25519.PublicKey(sealed.Public)) {
			return nil, fmt.Errorf("open the audit key %s: the key is not the public key's", name)
		}
		a.pub, a.notAfter = sealed.Public, sealed.NotAfter
	default:
		return nil, fmt.Errorf("%q is no kind of authority", sealed.Kind)
	}
	return a, nil
}

// Until is when the authority ends.
func (a *Authority) Until() time.Time {
	if a.cert != nil {
		return a.cert.NotAfter
	}
	return a.notAfter
}

// Certificate returns the authority's certificate, DER.
func (a *Authority) Certificate() []byte { return a.cert.Raw }

// Fingerprint returns the SHA-256 of a certificate, as people compare it.
func Fingerprint(der []byte) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(der))
}

// serial returns a positive number of 159 random bits (RFC 5280, 4.1.2.2).
func serial() *big.Int {
	b := make([]byte, 20)
	rand.Read(b)
	b[0] &= 0x7f
	b[0] |= 0x40
	return new(big.Int).SetBytes(b)
}
