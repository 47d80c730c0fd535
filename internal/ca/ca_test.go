package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
	"sft/internal/frame"
)

var now = time.Date(2026, 3, 1, 9, 0, 0, 999, time.UTC)

func sealer(t testing.TB) Sealer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "master.key")
	if err := NewMasterKey(path); err != nil {
		t.Fatal(err)
	}
	s, err := OpenSealer(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// authority makes and opens an authority.
func authority(t testing.TB, kind Kind, at time.Time) *Authority {
	t.Helper()
	s := sealer(t)
	sealed, err := New(kind, "p1", "a CA of project p", s, at)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Open(sealed, "p1", s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var names = frame.Names{Team: "main", Project: "prod", User: "u-1", Server: "s-1", Session: "x-1", Revision: 7}

func TestSealing(t *testing.T) {
	s, other := sealer(t), sealer(t)
	sealed, err := s.Seal("name", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	again, _ := s.Seal("name", []byte("secret"))
	if string(again) == string(sealed) {
		t.Error("sealing twice gives the same bytes")
	}
	flipped := slices.Clone(sealed)
	flipped[len(flipped)-1] ^= 1
	tests := []struct {
		name string
		s    Sealer
		as   string
		in   []byte
		want string
	}{
		{"as it was sealed", s, "name", sealed, ""},
		{"under another name", s, "nam", sealed, "the master key does not open"},
		{"with another key", other, "name", sealed, "the master key does not open"},
		{"with a bit changed", s, "name", flipped, "the master key does not open"},
		{"cut short", s, "name", sealed[:len(sealed)-1], "the master key does not open"},
		{"cut to the nonce", s, "name", sealed[:13], "the master key does not open"},
		{"cut to the version", s, "name", sealed[:1], "the master key does not open"},
		{"empty", s, "name", nil, "of an unknown form"},
		{"of another version", s, "name", append([]byte{2}, sealed[1:]...), "of an unknown form"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			plain, err := tt.s.Open(tt.as, tt.in)
			if tt.want == "" {
				if err != nil || string(plain) != "secret" {
					t.Errorf("Open = %q, %v", plain, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tt.want) || plain != nil {
				t.Errorf("Open = %q, %v, want %q", plain, err, tt.want)
			}
		})
	}
}

func TestMasterKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "master.key")
	if _, err := OpenSealer(path); !os.IsNotExist(err) {
		t.Errorf("opening a key that is not there: %v", err)
	}
	if err := NewMasterKey(path); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(path)
	if err != nil || len(first) != 32 {
		t.Fatalf("the key has %d bytes, %v", len(first), err)
	}
	if err := NewMasterKey(path); err == nil {
		t.Error("a master key was written over")
	}
	if after, _ := os.ReadFile(path); string(after) != string(first) {
		t.Error("the master key changed")
	}
	if err := os.WriteFile(path, first[:31], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSealer(path); err == nil || !strings.Contains(err.Error(), "31 bytes") {
		t.Errorf("a short key: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSealer(path); err == nil {
		t.Error("a key that others can read was opened")
	}
}

func TestAuthorities(t *testing.T) {
	s, other := sealer(t), sealer(t)
	for _, kind := range append([]Kind{Platform}, ProjectKinds...) {
		t.Run(string(kind), func(t *testing.T) {
			sealed, err := New(kind, "p1", "title", s, now)
			if err != nil {
				t.Fatal(err)
			}
			a, err := Open(sealed, "p1", s)
			if err != nil {
				t.Fatal(err)
			}
			// The key is nowhere in what is stored.
			der, err := x509.MarshalPKCS8PrivateKey(a.key)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(sealed.Key), string(der[len(der)-32:])) {
				t.Error("the sealed key holds the key")
			}
			switch kind {
			case SSHUser, SSHHost:
				if p, err := ssh.ParsePublicKey(sealed.Public); err != nil || p.Type() != ssh.KeyAlgoED25519 {
					t.Errorf("the public key is %v, %v", p, err)
				}
			default:
				c := a.cert
				got := fmt.Sprint(c.IsCA, c.MaxPathLen, c.MaxPathLenZero, c.KeyUsage, c.ExtKeyUsage, c.NotBefore, c.NotAfter, c.Subject)
				want := fmt.Sprint(true, 0, true, x509.KeyUsageCertSign, []x509.ExtKeyUsage(nil), now.Add(-time.Hour).Truncate(time.Second), now.Add(life).Truncate(time.Second), pkix.Name{Organization: []string{"sft"}, CommonName: "title"})
				if got != want || !c.NotAfter.Equal(sealed.NotAfter) || c.PublicKey.(*ecdsa.PublicKey).Curve != elliptic.P256() {
					t.Errorf("the CA's certificate is\n%s, want\n%s", got, want)
				}
			}
			// It opens under its own name, kind and master key alone.
			if _, err := Open(sealed, "p2", s); err == nil {
				t.Error("it opens under another name")
			}
			if _, err := Open(sealed, "p1", other); err == nil {
				t.Error("it opens with another master key")
			}
			for _, k := range append([]Kind{Platform, "x"}, ProjectKinds...) {
				as := sealed
				if as.Kind = k; k != kind {
					if _, err := Open(as, "p1", s); err == nil {
						t.Errorf("it opens as the %s CA", k)
					}
				}
			}
			// Another's public half is not taken for its own.
			twin, err := New(kind, "p1", "title", s, now)
			if err != nil {
				t.Fatal(err)
			}
			swapped := sealed
			swapped.Public = twin.Public
			if _, err := Open(swapped, "p1", s); err == nil || !strings.Contains(err.Error(), "the key is not the") {
				t.Errorf("it opens with another's public half: %v", err)
			}
		})
	}
	if _, err := New("x", "p1", "title", s, now); err == nil {
		t.Error("a CA of no kind was made")
	}
}

func csr(t testing.TB, template x509.CertificateRequest, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestRequestKey(t *testing.T) {
	k := key(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	plain := csr(t, x509.CertificateRequest{}, k)
	badSignature := slices.Clone(plain)
	badSignature[len(badSignature)-1] ^= 1
	tests := []struct {
		name string
		csr  []byte
		want string
	}{
		{"an ordinary request", plain, ""},
		{"one that asks for names and uses", greedy(t, k), ""},
		{"none", nil, "the certificate request has 0 bytes; it may have 1 to 4096"},
		{"a long one", csr(t, x509.CertificateRequest{Subject: pkix.Name{CommonName: strings.Repeat("x", 5000)}}, k), "bytes; it may have 1 to 4096"},
		{"noise", []byte("noise"), "the certificate request is not readable"},
		{"one with something behind it", append(slices.Clone(plain), 0), "the certificate request is not readable"},
		{"one cut short", plain[:len(plain)-5], "the certificate request is not readable"},
		{"by another curve", csr(t, x509.CertificateRequest{}, p384), "the certificate request is not for a P-256 key"},
		{"by RSA", csr(t, x509.CertificateRequest{}, rsaKey), "the certificate request is not for a P-256 key"},
		{"by ed25519", csr(t, x509.CertificateRequest{}, ed), "the certificate request is not for a P-256 key"},
		{"with a changed signature", badSignature, "the certificate request is not signed by its own key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := RequestKey(tt.csr)
			switch {
			case tt.want == "":
				if err != nil || !k.PublicKey.Equal(got) {
					t.Errorf("RequestKey = %v, %v", got, err)
				}
			case got != nil || sft.CodeOf(err) != sft.Invalid || !strings.Contains(err.Error(), tt.want):
				t.Errorf("RequestKey = %v, %v, want %q", got, err, tt.want)
			}
		})
	}
}

// greedy is a request for everything that it should not get.
func greedy(t testing.TB, k *ecdsa.PrivateKey) []byte {
	t.Helper()
	u, err := url.Parse("sft:team/main/project/prod/user/root")
	if err != nil {
		t.Fatal(err)
	}
	isCA, err := asn1.Marshal(struct{ IsCA bool }{true})
	if err != nil {
		t.Fatal(err)
	}
	uses, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 1}, {2, 5, 29, 37, 0}})
	if err != nil {
		t.Fatal(err)
	}
	return csr(t, x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "root", Organization: []string{"admin"}}, DNSNames: []string{"evil.server.sft"}, EmailAddresses: []string{"root@example.com"},
		IPAddresses: []net.IP{{127, 0, 0, 1}}, URIs: []*url.URL{u},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: isCA},
			{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: uses},
		},
	}, k)
}

// look describes everything in a certificate that counts.
func look(c *x509.Certificate) string {
	var ext []string
	for _, e := range c.Extensions {
		ext = append(ext, e.Id.String())
	}
	slices.Sort(ext)
	return fmt.Sprintf("subject %s\nuris %s\ndns %s\nips %s\nemail %s\nusage %d %d %v\nca %v\nlife %s to %s\nextensions %s\nsignature %s",
		c.Subject, c.URIs, c.DNSNames, c.IPAddresses, c.EmailAddresses, c.KeyUsage, c.ExtKeyUsage, c.UnknownExtKeyUsage, c.IsCA,
		c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339), ext, c.SignatureAlgorithm)
}

func issueAccess(a *Authority, k *ecdsa.PublicKey, n frame.Names) ([][]byte, time.Time, error) {
	d, err := a.DraftAccess(k, n, now)
	if err != nil {
		return nil, time.Time{}, err
	}
	chain, err := d.Sign()
	return chain, d.Until, err
}

// Each profile, whole. The requests ask for all they can; what they get is
// the profile.
func TestProfiles(t *testing.T) {
	tests := []struct {
		name  string
		ca    Kind
		issue func(*Authority, *ecdsa.PublicKey) ([][]byte, time.Time, error)
		want  string
	}{
		{"to a broker", Access, func(a *Authority, k *ecdsa.PublicKey) ([][]byte, time.Time, error) {
			return issueAccess(a, k, names)
		},
			`subject CN=u-1
uris [sft:team/main/project/prod/user/u-1 sft:server/s-1 sft:session/x-1 sft:rev/7]
dns []
ips []
email []
usage 1 [2] []
ca false
life 2026-03-01T08:59:00Z to 2026-03-01T09:05:00Z
extensions [2.5.29.15 2.5.29.17 2.5.29.19 2.5.29.35 2.5.29.37]
signature ECDSA-SHA256`},
		{"of a broker", Host, func(a *Authority, k *ecdsa.PublicKey) ([][]byte, time.Time, error) { return a.IssueHost(k, "s-1", now) },
			`subject CN=s-1.server.sft
uris []
dns [s-1.server.sft]
ips []
email []
usage 1 [1] []
ca false
life 2026-03-01T08:59:00Z to 2026-03-02T09:00:00Z
extensions [2.5.29.15 2.5.29.17 2.5.29.19 2.5.29.35 2.5.29.37]
signature ECDSA-SHA256`},
		{"of the platform", Platform, func(a *Authority, k *ecdsa.PublicKey) ([][]byte, time.Time, error) {
			return a.IssuePlatform(k, "sft.example.com", now)
		},
			`subject CN=sft.example.com
uris []
dns [sft.example.com]
ips []
email []
usage 1 [1] []
ca false
life 2026-03-01T08:00:00Z to 2026-05-30T09:00:00Z
extensions [2.5.29.15 2.5.29.17 2.5.29.19 2.5.29.35 2.5.29.37]
signature ECDSA-SHA256`},
		{"of a platform at an address", Platform, func(a *Authority, k *ecdsa.PublicKey) ([][]byte, time.Time, error) {
			return a.IssuePlatform(k, "2001:db8::1", now)
		},
			`subject CN=2001:db8::1
uris []
dns []
ips [2001:db8::1]
email []
usage 1 [1] []
ca false
life 2026-03-01T08:00:00Z to 2026-05-30T09:00:00Z
extensions [2.5.29.15 2.5.29.17 2.5.29.19 2.5.29.35 2.5.29.37]
signature ECDSA-SHA256`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := authority(t, tt.ca, now)
			k, err := RequestKey(greedy(t, key(t)))
			if err != nil {
				t.Fatal(err)
			}
			chain, until, err := tt.issue(a, k)
			if err != nil {
				t.Fatal(err)
			}
			c, err := x509.ParseCertificate(chain[0])
			if err != nil {
				t.Fatal(err)
			}
			if got := look(c); got != tt.want {
				t.Errorf("the certificate is\n%s\nwant\n%s", got, tt.want)
			}
			if len(chain) != 2 || string(chain[1]) != string(a.Certificate()) || !until.Equal(c.NotAfter) || !k.Equal(c.PublicKey) {
				t.Error("the chain, the end or the key is another")
			}
			if n := c.SerialNumber.BitLen(); n < 120 || c.SerialNumber.Sign() != 1 {
				t.Errorf("the serial number has %d bits", n)
			}
			// No other authority signs it.
			for _, kind := range []Kind{Access, Host, Platform} {
				if kind == tt.ca {
					continue
				}
				if chain, _, err := tt.issue(authority(t, kind, now), k); err == nil || chain != nil {
					t.Errorf("the %s CA signed it", kind)
				}
			}
		})
	}
}

func TestNoCertificateOutlivesItsCA(t *testing.T) {
	a := authority(t, Host, now)
	end := a.cert.NotAfter
	if _, _, err := a.IssueHost(&key(t).PublicKey, "s-1", end.Add(-HostLife)); err != nil {
		t.Errorf("a certificate that ends with its CA: %v", err)
	}
	chain, _, err := a.IssueHost(&key(t).PublicKey, "s-1", end.Add(-HostLife+time.Second))
	if err == nil || chain != nil {
		t.Error("a certificate that ends a second after its CA was issued")
	}
}

func TestWhoHasNoNameGetsNoCertificate(t *testing.T) {
	a := authority(t, Access, now)
	for _, n := range []frame.Names{{}, {Team: "main", Project: "prod", User: "u/1", Server: "s-1", Session: "x"}, {Team: "a/b", Project: "p", User: "u", Server: "s", Session: "x"}} {
		if chain, _, err := issueAccess(a, &key(t).PublicKey, n); err == nil || chain != nil {
			t.Errorf("a certificate was issued for %+v", n)
		}
	}
}

// The last look refuses a certificate that the profile does not allow, or
// that is not the one that was meant.
func TestCheckRefusesWhatWasNotMeant(t *testing.T) {
	a, other := authority(t, Access, now), authority(t, Access, now)
	k := key(t)
	meant := func() *x509.Certificate {
		return &x509.Certificate{SerialNumber: serial(), NotBefore: now.Add(-AccessEarly).Truncate(time.Second), NotAfter: now.Add(AccessLife).Truncate(time.Second), URIs: names.URIs(),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true}
	}
	tests := []struct {
		name   string
		tamper func(*x509.Certificate)
		want   string
	}{
		{"nothing changed", func(*x509.Certificate) {}, ""},
		{"a CA", func(c *x509.Certificate) { c.IsCA = true }, "the uses are others"},
		{"may sign certificates", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, "the uses are others"},
		{"a server's", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, "the uses are others"},
		{"both uses", func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) }, "the uses are others"},
		{"no use", func(c *x509.Certificate) { c.ExtKeyUsage = nil }, "the uses are others"},
		{"an unknown use", func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}} }, "the uses are others"},
		{"a second longer", func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(time.Second) }, "it would be good from"},
		{"ends before it begins", func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(-time.Second) }, "it would be good from"},
		{"another user", func(c *x509.Certificate) { n := names; n.User = "u-2"; c.URIs = n.URIs() }, "the names are others"},
		{"a name more", func(c *x509.Certificate) { c.DNSNames = []string{"x"} }, "the names are others"},
		{"an address more", func(c *x509.Certificate) { c.IPAddresses = []net.IP{{1, 2, 3, 4}} }, "the names are others"},
		{"an email more", func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b"} }, "the names are others"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := meant()
			tt.tamper(c)
			wantError(t, Draft{a: a, p: accessProfile, key: &k.PublicKey, t: meant()}.look(signed(t, a, c, &k.PublicKey)), tt.want)
		})
	}
	t.Run("another key", func(t *testing.T) {
		wantError(t, Draft{a: a, p: accessProfile, key: &k.PublicKey, t: meant()}.look(signed(t, a, meant(), &key(t).PublicKey)), "the key is another")
	})
	t.Run("another CA", func(t *testing.T) {
		wantError(t, Draft{a: a, p: accessProfile, key: &k.PublicKey, t: meant()}.look(signed(t, other, meant(), &k.PublicKey)), "the signature is not the CA's")
	})
	t.Run("nobody, as was meant", func(t *testing.T) {
		c := meant()
		c.URIs = nil
		wantError(t, Draft{a: a, p: accessProfile, key: &k.PublicKey, t: c}.look(signed(t, a, c, &k.PublicKey)), "it names nobody")
	})
	t.Run("three names, as was meant", func(t *testing.T) {
		c := meant()
		c.URIs = c.URIs[:3]
		wantError(t, Draft{a: a, p: accessProfile, key: &k.PublicKey, t: c}.look(signed(t, a, c, &k.PublicKey)), "the certificate has 3 names, not 4")
	})
	t.Run("another address than was meant", func(t *testing.T) {
		p := authority(t, Platform, now)
		c, m := meant(), meant()
		c.URIs, m.URIs = nil, nil
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		c.IPAddresses, m.IPAddresses = []net.IP{{1, 2, 3, 4}}, []net.IP{{1, 2, 3, 5}}
		wantError(t, Draft{a: p, p: platformProfile, key: &k.PublicKey, t: m}.look(signed(t, p, c, &k.PublicKey)), "the names are others")
	})
}

func signed(t *testing.T, a *Authority, template *x509.Certificate, k *ecdsa.PublicKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, k, a.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("check = %v, want %q", err, want)
	}
}

func TestPublicKey(t *testing.T) {
	spki, err := x509.MarshalPKIXPublicKey(&key(t).PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := x509.MarshalPKIXPublicKey(&p384.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := PublicKey(spki); err != nil {
		t.Error(err)
	}
	for name, b := range map[string][]byte{"none": nil, "noise": []byte("noise"), "another curve": other, "one cut short": spki[:80],
		"one with something behind it": append(slices.Clone(spki), 0), "a long one": make([]byte, 5000)} {
		if k, err := PublicKey(b); k != nil || sft.CodeOf(err) != sft.Invalid {
			t.Errorf("%s: PublicKey = %v, %v", name, k, err)
		}
	}
}

// FuzzRequestKey checks what must hold whatever is sent: a key that comes
// back is P-256 and is the one that signed, and every refusal is the
// sender's fault.
func FuzzRequestKey(f *testing.F) {
	k := key(f)
	f.Add(csr(f, x509.CertificateRequest{}, k))
	f.Add(greedy(f, k))
	f.Add([]byte{})
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := RequestKey(b)
		if err != nil {
			if got != nil || sft.CodeOf(err) != sft.Invalid {
				t.Errorf("RequestKey = %v, %v", got, err)
			}
			return
		}
		r, err := x509.ParseCertificateRequest(b)
		if err != nil || r.CheckSignature() != nil || got.Curve != elliptic.P256() || !got.Equal(r.PublicKey) {
			t.Errorf("a key was taken from a bad request: %v", err)
		}
		if _, err := KeyHash(got); err != nil {
			t.Error(err)
		}
	})
}
