package broker

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/frame"
)

// refused is what a test expects of an error for a person.
type refused struct {
	code sft.Code
	msg  string
}

func refusedAs(err error) refused {
	e, ok := errors.AsType[*sft.Error](err)
	if !ok {
		return refused{msg: fmt.Sprint(err)}
	}
	if e.Code == sft.ClockSkew && strings.HasPrefix(e.Msg, "the proof was made at ") {
		return refused{e.Code, "the proof was made at another time"} // it names both clocks
	}
	return refused{e.Code, e.Msg}
}

// A presented is a chain and the key that the frame is signed with.
type presented struct {
	chain [][]byte
	key   crypto.Signer
}

// presentations are certificates, from the right one to what nobody should
// ever have signed, and what the verifier says. tls tells which of them must
// not even pass the broker.
var presentations = []struct {
	name string
	make func(*testHost) presented
	want refused
	tls  bool
}{
	{"a certificate of the platform's profile", with(func(*x509.Certificate) {}), refused{}, false},
	{"the chain with its CA", func(h *testHost) presented {
		p := with(func(*x509.Certificate) {})(h)
		p.chain = append(p.chain, h.access.cert.Raw)
		return p
	}, refused{}, false},
	{"URIs in another order", with(func(c *x509.Certificate) { c.URIs[0], c.URIs[3] = c.URIs[3], c.URIs[0] }), refused{}, false},
	{"expired", with(func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = at("2020-01-01"), at("2020-01-01").Add(5*time.Minute)
	}), refused{sft.Denied, "the certificate was valid until 2020-01-01 00:05:00 UTC, and the server's clock says *"}, true},
	{"not yet valid", with(func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = at("2090-01-01"), at("2090-01-01").Add(5*time.Minute)
	}), refused{sft.ClockSkew, "the certificate is valid from 2090-01-01 00:00:00 UTC on, and the server's clock says *"}, true},
	{"longer than ten minutes", with(func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(MaxLife + time.Second) }),
		refused{sft.Denied, "the certificate lives longer than 10m0s"}, false},
	{"of another project", names(func(n *frame.Names) { n.Project = "lab" }), refused{sft.Denied, "the certificate is for another project"}, false},
	{"of another team", names(func(n *frame.Names) { n.Team = "evil" }), refused{sft.Denied, "the certificate is for another project"}, false},
	{"for another server", names(func(n *frame.Names) { n.Server = "srv-2" }), refused{sft.Denied, "the certificate is for another server"}, false},
	{"for another session", names(func(n *frame.Names) { n.Session = "ses-2" }), refused{sft.Denied, "the frame and the certificate name different sessions"}, false},
	{"without EKU", with(func(c *x509.Certificate) { c.ExtKeyUsage = nil }), refused{sft.Denied, "the certificate is not made for signing in to a broker"}, false},
	{"with the EKU of a server", with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		refused{sft.Denied, "the certificate is not made for signing in to a broker"}, true},
	{"with two EKUs", with(func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) }),
		refused{sft.Denied, "the certificate is not made for signing in to a broker"}, false},
	{"with any EKU", with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }),
		refused{sft.Denied, "the certificate is not made for signing in to a broker"}, false},
	{"without key usage", with(func(c *x509.Certificate) { c.KeyUsage = 0 }), refused{sft.Denied, "the certificate is not made for signing in to a broker"}, false},
	{"with more key usage", with(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyAgreement }),
		refused{sft.Denied, "the certificate is not made for signing in to a broker"}, false},
	{"that may sign others", with(func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign }),
		refused{sft.Denied, "the certificate is a CA's"}, false},
	{"of a CA of one's own", func(h *testHost) presented {
		own := newAuthority(h.t, "access", nil)
		key := newKey(h.t)
		return presented{[][]byte{own.sign(h.t, profile(testNames), &key.PublicKey).Raw, own.cert.Raw}, key}
	}, refused{sft.Denied, "the certificate is not by this project's CA"}, true},
	{"signed by itself", func(h *testHost) presented {
		key := newKey(h.t)
		c := profile(testNames)
		own := &authority{c, key}
		return presented{[][]byte{own.sign(h.t, c, &key.PublicKey).Raw}, key}
	}, refused{sft.Denied, "the certificate is not by this project's CA"}, true},
	{"of the host CA", func(h *testHost) presented {
		key := newKey(h.t)
		return presented{[][]byte{h.hostCA.sign(h.t, profile(testNames), &key.PublicKey).Raw}, key}
	}, refused{sft.Denied, "the certificate is not by this project's CA"}, true},
	{"the CA's own", func(h *testHost) presented {
		return presented{[][]byte{h.access.cert.Raw}, h.access.key}
	}, refused{sft.Denied, "the certificate is a CA's"}, false},
	{"through an intermediate", func(h *testHost) presented {
		mid := newAuthority(h.t, "mid", h.access)
		key := newKey(h.t)
		return presented{[][]byte{mid.sign(h.t, profile(testNames), &key.PublicKey).Raw, mid.cert.Raw}, key}
	}, refused{sft.Denied, "the certificate is not by this project's CA"}, false},
	{"an RSA key", func(h *testHost) presented {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			h.t.Fatal(err)
		}
		return presented{[][]byte{h.access.sign(h.t, profile(testNames), &key.PublicKey).Raw}, key}
	}, refused{sft.Denied, "the certificate's key is not ECDSA P-256"}, false},
	{"a P-384 key", func(h *testHost) presented {
		key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			h.t.Fatal(err)
		}
		return presented{[][]byte{h.access.sign(h.t, profile(testNames), &key.PublicKey).Raw}, key}
	}, refused{sft.Denied, "the certificate's key is not ECDSA P-256"}, false},
	{"a DNS name too", with(func(c *x509.Certificate) { c.DNSNames = []string{"web01"} }), otherNames, false},
	{"an address too", with(func(c *x509.Certificate) { c.IPAddresses = []net.IP{{127, 0, 0, 1}} }), otherNames, false},
	{"a mail address too", with(func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b.c"} }), otherNames, false},
	{"a name of a type that nobody knows too", with(func(c *x509.Certificate) {
		var all []asn1.RawValue
		for _, u := range c.URIs {
			all = append(all, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(u.String())})
		}
		all = append(all, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 8, Bytes: []byte{42, 3}})
		rawSAN(c, all)
	}), otherNames, false},
	{"a URI in a spelling of its own", with(func(c *x509.Certificate) {
		var all []asn1.RawValue
		for _, u := range c.URIs {
			all = append(all, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(strings.Replace(u.String(), "sft:server", "SFT:server", 1))})
		}
		rawSAN(c, all)
	}), otherNames, false},
	{"a fifth URI", with(func(c *x509.Certificate) { c.URIs = append(c.URIs, &url.URL{Scheme: "sft", Opaque: "admin/yes"}) }),
		refused{sft.Denied, "the certificate has 5 names, not 4"}, false},
	{"two servers and no session", with(func(c *x509.Certificate) { c.URIs[2] = &url.URL{Scheme: "sft", Opaque: "server/srv-2"} }),
		refused{sft.Denied, "the certificate has two names of one kind"}, false},
	{"a session too little", with(func(c *x509.Certificate) { c.URIs = c.URIs[:3] }), refused{sft.Denied, "the certificate has 3 names, not 4"}, false},
	{"no names", with(func(c *x509.Certificate) { c.URIs = nil }), refused{sft.Denied, "the certificate has 0 names, not 4"}, false},
	{"names in the subject alone", with(func(c *x509.Certificate) { c.URIs = nil; c.Subject.CommonName = "usr-1" }),
		refused{sft.Denied, "the certificate has 0 names, not 4"}, false},
	{"an unknown critical extension", with(func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true, Value: []byte{5, 0}})
	}), refused{sft.Denied, "the certificate is not by this project's CA"}, true},
	{"more certificates than four", func(h *testHost) presented {
		p := with(func(*x509.Certificate) {})(h)
		for range MaxCertificates {
			p.chain = append(p.chain, h.access.cert.Raw)
		}
		return p
	}, refused{sft.Invalid, "the certificate chain is too long"}, false},
	{"more bytes than sixteen KiB", func(h *testHost) presented {
		p := with(func(*x509.Certificate) {})(h)
		big := profile(testNames)
		big.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 2}, Value: make([]byte, MaxChain)}}
		p.chain = append(p.chain, h.access.sign(h.t, big, &h.access.key.PublicKey).Raw)
		return p
	}, refused{sft.Invalid, "the certificate chain is too long"}, false},
}

var otherNames = refused{sft.Denied, "the certificate has other names than it should"}

func with(change func(*x509.Certificate)) func(*testHost) presented {
	return func(h *testHost) presented {
		p := h.person(change)
		return presented{p.chain, p.key}
	}
}

func names(change func(*frame.Names)) func(*testHost) presented {
	n := testNames
	change(&n)
	return with(func(c *x509.Certificate) { c.URIs = n.URIs() })
}

func rawSAN(c *x509.Certificate, all []asn1.RawValue) {
	b, err := asn1.Marshal(all)
	if err != nil {
		panic(err)
	}
	c.URIs = nil
	c.ExtraExtensions = []pkix.Extension{{Id: oidSAN, Value: b}}
}

func at(day string) time.Time {
	t, err := time.Parse(time.DateOnly, day)
	if err != nil {
		panic(err)
	}
	return t
}

// like compares a refusal with one whose message may end in "*".
func (r refused) like(want refused) bool {
	if prefix, ok := strings.CutSuffix(want.msg, "*"); ok {
		return r.code == want.code && strings.HasPrefix(r.msg, prefix)
	}
	return r == want
}

func TestVerifyCertificates(t *testing.T) {
	h := newHost(t, Limits{})
	for _, tt := range presentations {
		t.Run(tt.name, func(t *testing.T) {
			in := tt.make(h)
			p := &person{h: h, key: in.key, chain: in.chain}
			_, err := h.verifier.Verify(in.chain, p.hello())
			if tt.want == (refused{}) {
				if err != nil {
					t.Errorf("Verify: %v", refusedAs(err))
				}
			} else if got := refusedAs(err); !got.like(tt.want) {
				t.Errorf("Verify: %+v, want %+v", got, tt.want)
			}
		})
	}
	for name, chain := range map[string][][]byte{"none": nil, "an empty one": {nil}, "garbage": {[]byte("no certificate")}} {
		if _, err := h.verifier.Verify(chain, h.person().hello()); refusedAs(err).code != sft.Invalid {
			t.Errorf("chain is %s: Verify: %v, want it to be invalid", name, err)
		}
	}
}

func TestVerifyGrant(t *testing.T) {
	h := newHost(t, Limits{})
	p := h.person()
	leaf, err := x509.ParseCertificate(p.chain[0])
	if err != nil {
		t.Fatal(err)
	}
	got, err := h.verifier.Verify(p.chain, p.hello())
	want := Grant{"acme", "prod", "usr-1", "srv-1", "ses-1", 7, "rdp", leaf.NotAfter.UTC(), fmt.Sprintf("sha256:%x", sha256.Sum256(h.verifier.CAs()[0].Raw)), sha256.Sum256(leaf.RawSubjectPublicKeyInfo)}
	if err != nil || got != want {
		t.Errorf("Verify = %+v, %v\nwant %+v", got, err, want)
	}
}

// frames are what a person with a good certificate may send.
var frames = []struct {
	name string
	make func(p *person) []byte
	want refused
}{
	{"rdp", func(p *person) []byte { return p.hello() }, refused{}},
	{"ping", func(p *person) []byte { return p.hello(func(h *frame.Hello) { h.Service = "ping" }) }, refused{}},
	{"an unknown service", func(p *person) []byte { return p.hello(func(h *frame.Hello) { h.Service = "vnc" }) },
		refused{sft.UnknownService, `the broker has no service "vnc"`}},
	{"another session", func(p *person) []byte { return p.hello(func(h *frame.Hello) { h.Session = "ses-2" }) },
		refused{sft.Denied, "the frame and the certificate name different sessions"}},
	{"not JSON", func(*person) []byte { return []byte("\x03\x00\x00\x13\x0e\xe0\x00\x00") }, refused{sft.Invalid, "frame is not a JSON object"}},
	{"JSON of another form", func(*person) []byte { return []byte(`{"service":7}`) }, refused{sft.Invalid, "frame is not a JSON object of the right form"}},
	{"two JSON objects", func(p *person) []byte { return append(p.hello(), p.hello()...) }, refused{sft.Invalid, "frame is not a JSON object of the right form"}},
	{"no proof", func(*person) []byte { return []byte(`{"service":"rdp","session":"ses-1"}`) }, refused{sft.Denied, "the frame has no readable proof"}},
	{"a proof by another key", func(p *person) []byte { return (&person{h: p.h, key: newKey(p.h.t)}).hello() },
		refused{sft.Denied, "the proof is not by the certificate's key"}},
	{"a proof of another frame", func(p *person) []byte {
		return []byte(strings.Replace(string(p.hello(func(h *frame.Hello) { h.Service = "ping" })), `"ping"`, `"rdp"`, 1))
	}, refused{sft.Denied, "the proof is for another frame"}},
	{"a frame with a field more than was signed", func(p *person) []byte {
		return []byte(strings.Replace(string(p.hello()), "{", `{"x":1,`, 1))
	}, refused{sft.Denied, "the proof is for another frame"}},
	{"a changed proof", func(p *person) []byte {
		b := p.hello()
		i := len(b) - 20 // in the signature
		b[i] = map[bool]byte{true: 'A', false: 'B'}[b[i] != 'A']
		return b
	}, refused{sft.Denied, "the proof is not by the certificate's key"}},
	{"a proof for another server", func(p *person) []byte { return p.signed("srv-2", time.Now()) }, refused{sft.Denied, "the proof is for another server"}},
	{"an old proof", func(p *person) []byte { return p.signed("srv-1", time.Now().Add(-2*time.Minute)) },
		refused{sft.ClockSkew, "the proof was made at another time"}},
	{"a proof of the future", func(p *person) []byte { return p.signed("srv-1", time.Now().Add(2*time.Minute)) },
		refused{sft.ClockSkew, "the proof was made at another time"}},
}

func (p *person) signed(server string, now time.Time) []byte {
	b, err := frame.Sign(frame.Hello{Service: "rdp", Session: "ses-1"}, server, p.key.(*ecdsa.PrivateKey), proofID(), now)
	if err != nil {
		p.h.t.Fatal(err)
	}
	return b
}

func TestVerifyFrames(t *testing.T) {
	h := newHost(t, Limits{})
	for _, tt := range frames {
		t.Run(tt.name, func(t *testing.T) {
			p := h.person()
			_, err := h.verifier.Verify(p.chain, tt.make(p))
			if tt.want == (refused{}) {
				if err != nil {
					t.Errorf("Verify: %v", refusedAs(err))
				}
			} else if got := refusedAs(err); got != tt.want {
				t.Errorf("Verify: %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestVerifyProofIsGoodOnce(t *testing.T) {
	h := newHost(t, Limits{})
	p := h.person()
	b := p.hello()
	if _, err := h.verifier.Verify(p.chain, b); err != nil {
		t.Fatal(err)
	}
	if _, err := h.verifier.Verify(p.chain, b); refusedAs(err).code != sft.Replayed {
		t.Errorf("the second Verify: %v, want it to be refused as replayed", err)
	}
	// Another spelling of the same frame is the same proof.
	again := []byte(" " + string(b) + "\n")
	if _, err := h.verifier.Verify(p.chain, again); refusedAs(err).code != sft.Replayed {
		t.Errorf("Verify of the frame with spaces: %v, want it to be refused as replayed", err)
	}
	if _, err := h.verifier.Verify(p.chain, p.hello()); err != nil {
		t.Errorf("a fresh proof of the same certificate: %v", err)
	}
}

func TestReplaysAreForgottenOnlyWhenTooOld(t *testing.T) {
	var r replays
	start := at("2030-01-01")
	use := func(user, id string, issued, now time.Time) sft.Code {
		if err := r.use(user, [32]byte{1}, id, issued.Add(frame.ProofAge), now); err != nil {
			return refusedAs(err).code
		}
		return ""
	}
	steps := []struct {
		name        string
		user, id    string
		issued, now time.Duration // after start
		want        sft.Code
	}{
		{"new", "u", "a", 0, 0, ""},
		{"again", "u", "a", 0, time.Second, sft.Replayed},
		{"again, at the end of its time, after others were swept", "u", "a", 0, frame.ProofAge, sft.Replayed},
		{"another, much later: the first is forgotten", "u", "b", 5 * time.Minute, 5 * time.Minute, ""},
		{"the first, with the clock set back", "u", "a", 0, time.Second, sft.Denied},
		{"a new one, with the clock set back a little", "u", "c", 4*time.Minute + 30*time.Second, 4*time.Minute + 30*time.Second, ""},
	}
	for _, s := range steps {
		if got := use(s.user, s.id, start.Add(s.issued), start.Add(s.now)); got != s.want {
			t.Errorf("%s: %q, want %q", s.name, got, s.want)
		}
	}
	if len(r.seen) != 2 || r.users["u"] != 2 {
		t.Errorf("%d proofs are kept, %d of the user, want 2", len(r.seen), r.users["u"])
	}
}

func TestReplaysFailClosedWhenFull(t *testing.T) {
	var r replays
	now := at("2030-01-01")
	for i := range maxUserProofs {
		if err := r.use("greedy", [32]byte{}, fmt.Sprint(i), now.Add(time.Minute), now); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.use("greedy", [32]byte{}, "one more", now.Add(time.Minute), now); refusedAs(err).code != sft.TooMany {
		t.Errorf("one user's last proof: %v, want too many", err)
	}
	if err := r.use("other", [32]byte{}, "x", now.Add(time.Minute), now); err != nil {
		t.Errorf("another user: %v", err)
	}
	for i := len(r.seen); i < maxProofs; i++ {
		if err := r.use(fmt.Sprint("u", i), [32]byte{}, fmt.Sprint(i), now.Add(time.Minute), now); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.use("last", [32]byte{}, "y", now.Add(time.Minute), now.Add(30*time.Second)); refusedAs(err).code != sft.TooMany {
		t.Errorf("when full: %v, want too many", err)
	}
	if err := r.use("last", [32]byte{}, "y", now.Add(3*time.Minute), now.Add(2*time.Minute)); err != nil {
		t.Errorf("two minutes later: %v", err)
	}
	if len(r.seen) != 1 || len(r.users) != 1 {
		t.Errorf("%d proofs of %d users are kept, want 1", len(r.seen), len(r.users))
	}
}

// FuzzVerify checks that whatever a broker passes on either is refused with an
// error for a person, or is the one frame that the certificate's key signed.
func FuzzVerify(f *testing.F) {
	h := newHost(f, Limits{})
	p := h.person()
	good := p.hello()
	var hello frame.Hello
	if err := frame.Decode(good, &hello); err != nil {
		f.Fatal(err)
	}
	f.Add(p.chain[0], good)
	for _, tt := range frames {
		f.Add(p.chain[0], tt.make(p))
	}
	for _, tt := range presentations {
		in := tt.make(h)
		f.Add(in.chain[0], (&person{h: h, key: in.key}).hello())
	}
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, leaf, b []byte) {
		v := &Verifier{Server: h.verifier.Server, Team: "acme", Project: "prod", CAs: h.verifier.CAs, Now: time.Now}
		g, err := v.Verify([][]byte{leaf, leaf}, b)
		if err != nil {
			if e, ok := errors.AsType[*sft.Error](err); !ok || e.Msg == "" || g != (Grant{}) {
				t.Fatalf("Verify = %+v, %v: not a plain refusal", g, err)
			}
			return
		}
		if g.Team != "acme" || g.Project != "prod" || g.Server != "srv-1" || g.Session != "ses-1" || g.User != "usr-1" {
			t.Fatalf("Verify = %+v", g)
		}
		if _, err := v.Verify([][]byte{leaf}, b); refusedAs(err).code != sft.Replayed {
			t.Fatalf("Verify again: %v", err)
		}
	})
}

// A service is offered by the one who verifies, at the moment of the frame.
func TestServicesThatAreOffered(t *testing.T) {
	h := newHost(t, Limits{})
	p := h.person()
	ask := func() error {
		_, err := h.verifier.Verify(p.chain, p.hello(func(f *frame.Hello) { f.Service = frame.SSH }))
		return err
	}
	if err := ask(); sft.CodeOf(err) != sft.UnknownService {
		t.Errorf("ssh where nothing is said of services: %v", err)
	}
	offered := []string{frame.RDP, frame.SSH}
	h.verifier.Services = func() []string { return offered }
	if err := ask(); err != nil {
		t.Errorf("ssh where it is offered: %v", err)
	}
	offered = offered[:1]
	if err := ask(); sft.CodeOf(err) != sft.UnknownService {
		t.Errorf("ssh where it is not any more: %v", err)
	}
}
