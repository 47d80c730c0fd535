package broker

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sft/internal/frame"
)

// soon is how long a test waits for what should happen at once.
const soon = 20 * time.Second

// An authority signs certificates, as the platform does or as it never would.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func serial() *big.Int {
	n, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	return n
}

// newAuthority makes a CA; by is nil for a root.
func newAuthority(t testing.TB, name string, by *authority) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	c := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if by == nil {
		by = &authority{cert: c, key: a.key}
	}
	a.cert = by.sign(t, c, &a.key.PublicKey)
	return a
}

func (a *authority) sign(t testing.TB, c *x509.Certificate, key crypto.PublicKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key, a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// A testHost is a server of team acme and project prod with both halves of a
// broker in one process: a Server on loopback, and a monitor that verifies
// with a Verifier, signs with the host key and connects a real TCP service.
type testHost struct {
	t        testing.TB
	access   *authority
	hostCA   *authority
	hostKey  *ecdsa.PrivateKey
	hostCert *x509.Certificate
	verifier *Verifier
	server   *Server
	addr     string
	service  net.Listener
	services chan net.Conn // the service's end of each stream

	next     atomic.Uint64
	signs    atomic.Int64
	opens    chan Open   // of what was asked, as far as there is room
	closes   chan Closed // of what was reported
	mu       sync.Mutex
	onOpen   func(context.Context, Open) // before the decision
	onOpened func(Opened)                // before the broker hears of it
	onSign   func()
	rdp      *RDPService // for the Server to sign in to; nil: the client does
}

var testNames = frame.Names{Team: "acme", Project: "prod", User: "usr-1", Server: "srv-1", Session: "ses-1", Revision: 7}

func newHost(t testing.TB, limits Limits) *testHost {
	t.Helper()
	h := &testHost{t: t, access: newAuthority(t, "access", nil), hostCA: newAuthority(t, "host", nil), hostKey: newKey(t),
		services: make(chan net.Conn, 4096), opens: make(chan Open, 64), closes: make(chan Closed, 4096)}
	h.hostCert = h.hostCA.sign(t, &x509.Certificate{
		SerialNumber: serial(), DNSNames: []string{"srv-1.server.sft"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, &h.hostKey.PublicKey)
	h.verifier = &Verifier{Server: "srv-1", Team: "acme", Project: "prod", Now: time.Now,
		CAs: func() []*x509.Certificate { return []*x509.Certificate{h.access.cert} }}
	var err error
	if h.service, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := h.service.Accept()
			if err != nil {
				return
			}
			h.services <- c
		}
	}()
	h.server = New(h)
	h.server.Log = slog.New(slog.DiscardHandler)
	if err := h.server.Configure(h.config(limits)); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- h.server.Serve(l) }()
	t.Cleanup(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		if err := h.server.Shutdown(now); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, ErrClosed) {
			t.Errorf("Serve = %v, want ErrClosed", err)
		}
		h.service.Close()
	})
	return h
}

func (h *testHost) config(l Limits) Config {
	return Config{HostCertificates: [][]byte{h.hostCert.Raw}, ClientCAs: [][]byte{h.access.cert.Raw}, Limits: l}
}

func (h *testHost) Sign(_ context.Context, digest [32]byte) ([]byte, error) {
	h.signs.Add(1)
	h.mu.Lock()
	on := h.onSign
	h.mu.Unlock()
	if on != nil {
		on()
	}
	return h.hostKey.Sign(rand.Reader, digest[:], crypto.SHA256)
}

func (h *testHost) Open(ctx context.Context, o Open) (Opened, error) {
	h.mu.Lock()
	before, after, service := h.onOpen, h.onOpened, h.rdp
	h.mu.Unlock()
	select {
	case h.opens <- o:
	default:
	}
	if before != nil {
		before(ctx, o)
	}
	g, err := h.verifier.Verify(o.Certificates, o.Frame)
	if err != nil {
		return Opened{}, err
	}
	reply := func(r frame.Reply) []byte {
		b, err := json.Marshal(r)
		if err != nil {
			h.t.Error(err)
		}
		return b
	}
	if g.Service == frame.Ping {
		return Opened{Reply: reply(frame.Reply{Ping: &frame.PingReply{Server: g.Server, Login: "alice"}})}, nil
	}
	c, err := net.Dial("tcp", h.service.Addr().String())
	if err != nil {
		return Opened{}, err
	}
	r := Opened{Stream: h.next.Add(1), Conn: c, Reply: reply(frame.Reply{RDP: &frame.RDPReply{SignIn: "deliver", Login: "alice"}})}
	if service != nil {
		own := *service
		r.RDP, r.Reply = &own, reply(frame.Reply{RDP: &frame.RDPReply{SignIn: frame.Inject, Login: own.Login, PasswordReset: true, Warnings: []string{"a warning"}}})
	}
	if after != nil {
		after(r)
	}
	return r, nil
}

func (h *testHost) Close(_ context.Context, c Closed) error {
	h.closes <- c
	return nil
}

// profile is the certificate that the platform makes for names.
func profile(n frame.Names) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serial(), URIs: n.URIs(),
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(5 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
}

// A person has a certificate to the broker and its key.
type person struct {
	h     *testHost
	key   crypto.Signer
	chain [][]byte
	tls   func(*tls.Config) // changes how TLS is spoken
}

// person returns somebody with a certificate of the access CA, changed by
// change.
func (h *testHost) person(change ...func(*x509.Certificate)) *person {
	h.t.Helper()
	c := profile(testNames)
	for _, f := range change {
		f(c)
	}
	key := newKey(h.t)
	return &person{h: h, key: key, chain: [][]byte{h.access.sign(h.t, c, &key.PublicKey).Raw}}
}

func (p *person) config() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(p.h.hostCA.cert)
	c := &tls.Config{RootCAs: roots, ServerName: "srv-1.server.sft", NextProtos: []string{frame.ALPN}}
	if p.chain != nil {
		// Whatever the server says of the CAs it knows.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: p.chain, PrivateKey: p.key}, nil
		}
	}
	if p.tls != nil {
		p.tls(c)
	}
	return c
}

// dial goes as far as the TLS handshake, in which a client of TLS 1.3 does
// not hear yet whether it is wanted.
func (p *person) dial() (*tls.Conn, error) {
	raw, err := net.Dial("tcp", p.h.addr)
	if err != nil {
		return nil, err
	}
	raw.SetDeadline(time.Now().Add(2 * soon))
	p.h.t.Cleanup(func() { raw.Close() })
	c := tls.Client(raw, p.config())
	if err := c.Handshake(); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// hello is a frame with a fresh proof, changed by change.
func (p *person) hello(change ...func(*frame.Hello)) []byte {
	p.h.t.Helper()
	hello := frame.Hello{Service: frame.RDP, Session: "ses-1"}
	for _, f := range change {
		f(&hello)
	}
	key, ok := p.key.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		key = newKey(p.h.t) // no ES256 with another kind of key
	}
	b, err := frame.Sign(hello, "srv-1", key, proofID(), time.Now())
	if err != nil {
		p.h.t.Fatal(err)
	}
	return b
}

func proofID() string {
	var b [16]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// ask sends b as the first frame and returns the reply.
func ask(c *tls.Conn, b []byte) (frame.Reply, error) {
	if err := frame.Write(c, b); err != nil {
		return frame.Reply{}, err
	}
	return answer(c)
}

func answer(c *tls.Conn) (frame.Reply, error) {
	b, err := frame.Read(c)
	if err != nil {
		return frame.Reply{}, err
	}
	var r frame.Reply
	return r, frame.Decode(b, &r)
}

// connect opens a stream and returns both of its ends.
func (p *person) connect() (client *tls.Conn, service *net.TCPConn) {
	p.h.t.Helper()
	c, err := p.dial()
	if err != nil {
		p.h.t.Fatal(err)
	}
	r, err := ask(c, p.hello())
	if err != nil || r.RDP == nil {
		p.h.t.Fatalf("open: %+v, %v", r.Error, err)
	}
	c.NetConn().SetDeadline(time.Time{})
	select {
	case s := <-p.h.services:
		p.h.t.Cleanup(func() { s.Close() })
		return c, s.(*net.TCPConn)
	case <-time.After(soon):
		p.h.t.Fatal("the service was not connected")
	}
	panic("unreachable")
}

// closed waits for the report of a stream's end.
func (h *testHost) closed() Closed {
	h.t.Helper()
	select {
	case c := <-h.closes:
		return c
	case <-time.After(soon):
		h.t.Fatalf("no stream was reported as closed; counters %+v", h.server.Counters())
	}
	panic("unreachable")
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(soon); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so in time: %s", what)
		}
	}
}

// read reads n bytes, or fails.
func read(t testing.TB, c io.Reader, n int) string {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatalf("read %d bytes: %v", n, err)
	}
	return string(b)
}
