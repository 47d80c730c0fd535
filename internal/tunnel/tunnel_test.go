package tunnel

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/frame"
)

// An authority signs what a test asks for.
type authority struct {
	der []byte
	crt *x509.Certificate
	key *ecdsa.PrivateKey
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newAuthority(t testing.TB) *authority {
	a := &authority{key: newKey(t)}
	tpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "host CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour)}
	var err error
	if a.der, err = x509.CreateCertificate(rand.Reader, tpl, tpl, a.key.Public(), a.key); err != nil {
		t.Fatal(err)
	}
	a.crt, _ = x509.ParseCertificate(a.der)
	return a
}

// leaf signs a certificate for key, as change wants it.
func (a *authority) leaf(t testing.TB, key *ecdsa.PrivateKey, change func(*x509.Certificate)) tls.Certificate {
	tpl := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{"s1.server.sft"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	if change != nil {
		change(tpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, a.crt, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, a.der}, PrivateKey: key}
}

// A host is a server end that speaks real TLS and records what it was sent.
type host struct {
	addr  string
	bytes atomic.Int64 // application bytes received
	done  chan error   // the handshake's outcome, one per connection
}

// serve accepts connections and, after each handshake, lets talk have it.
func serve(t testing.TB, conf *tls.Config, talk func(*tls.Conn)) *host {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	h := &host{addr: l.Addr().String(), done: make(chan error, 8)}
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer raw.Close()
				raw.SetDeadline(time.Now().Add(20 * time.Second))
				c := tls.Server(raw, conf)
				err := c.Handshake()
				if err == nil && talk != nil {
					talk(c)
				}
				if err != nil { // as the broker does: a reset would take the alert away
					raw.(*net.TCPConn).CloseWrite()
					io.Copy(io.Discard, raw)
				}
				n, _ := io.Copy(io.Discard, c)
				h.bytes.Add(n)
				h.done <- err
			}()
		}
	}()
	return h
}

// bed is a broker that is as it should be, and a client that knows it.
type bed struct {
	hostCA, accessCA *authority
	hostKey          *ecdsa.PrivateKey
	conf             *tls.Config
	broker           *Broker
}

func newBed(t testing.TB) *bed {
	b := &bed{hostCA: newAuthority(t), accessCA: newAuthority(t), hostKey: newKey(t)}
	clients := x509.NewCertPool()
	clients.AddCert(b.accessCA.crt)
	b.conf = &tls.Config{Certificates: []tls.Certificate{b.hostCA.leaf(t, b.hostKey, nil)}, ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs: clients, NextProtos: []string{frame.ALPN}}
	b.broker = &Broker{Server: "web01", ServerID: "s1", DNSName: "s1.server.sft", CAs: [][]byte{b.hostCA.der}, Keys: [][]byte{spki(b.hostKey)},
		Certificate: b.accessCA.leaf(t, newKey(t), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }),
		Clock:       new(api.Clock)}
	return b
}

func spki(k *ecdsa.PrivateKey) []byte {
	der, _ := x509.MarshalPKIXPublicKey(k.Public())
	h := sha256.Sum256(der)
	return h[:]
}

func (b *bed) open(t *testing.T, h *host) (Stream, frame.Reply, error) {
	t.Helper()
	b.broker.Address = h.addr
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return b.broker.Open(ctx, frame.Hello{Service: frame.Ping, Session: "n1"})
}

func TestOpen(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			b := newBed(t)
			b.conf.MaxVersion = version
			pub := b.broker.Certificate.PrivateKey.(*ecdsa.PrivateKey).PublicKey
			seen := make(chan error, 1)
			h := serve(t, b.conf, func(c *tls.Conn) {
				first, err := frame.Read(c)
				if err == nil {
					_, _, err = frame.Verify(first, "s1", &pub, time.Now())
				}
				seen <- err
				frame.WriteJSON(c, frame.Reply{Ping: &frame.PingReply{Server: "web01", Login: "alice"}})
				io.Copy(c, c) // echo until the client closes its half
				c.CloseWrite()
			})
			s, reply, err := b.open(t, h)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if err := <-seen; err != nil {
				t.Errorf("the frame does not verify: %v", err)
			}
			if reply.Ping == nil || *reply.Ping != (frame.PingReply{Server: "web01", Login: "alice"}) {
				t.Errorf("reply = %+v", reply)
			}
			if _, err := io.WriteString(s, "hello"); err != nil {
				t.Fatal(err)
			}
			s.CloseWrite()
			got, err := io.ReadAll(s)
			if string(got) != "hello" || err != nil {
				t.Errorf("echo = %q, %v", got, err)
			}
		})
	}
}

// TestRefusals checks that a broker which is not the server that the platform
// named gets not one byte of the client's, and that a person learns why.
// What is sent ahead is there before the broker has answered.
func TestAhead(t *testing.T) {
	b := newBed(t)
	const ahead = "sent ahead"
	b.broker.Ahead = func(context.Context) ([]byte, error) { return []byte(ahead), nil }
	h := serve(t, b.conf, func(c *tls.Conn) {
		_, err := frame.Read(c)
		got := make([]byte, len(ahead))
		if err == nil {
			_, err = io.ReadFull(c, got)
		}
		if err == nil && string(got) == ahead { // or there is no reply
			frame.WriteJSON(c, frame.Reply{Ping: &frame.PingReply{Server: "web01", Login: "alice"}})
		}
	})
	s, _, err := b.open(t, h)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	gone := errors.New("there is nothing to send")
	b.broker.Ahead = func(context.Context) ([]byte, error) { return nil, gone }
	if _, _, err := b.open(t, h); !errors.Is(err, gone) {
		t.Errorf("Open = %v, want %v", err, gone)
	}
}

func TestRefusals(t *testing.T) {
	const unproven = " did not prove that it is web01: "
	tests := []struct {
		name   string
		change func(t *testing.T, b *bed)
		code   sft.Code
		want   string // in the message
	}{
		{"the certificate of another server of the project", func(t *testing.T, b *bed) {
			other := newKey(t)
			b.conf.Certificates[0] = b.hostCA.leaf(t, other, func(c *x509.Certificate) { c.DNSNames = []string{"s2.server.sft"} })
		}, sft.Invalid, unproven + "its certificate is for another server"},
		{"this server's name on another server's key", func(t *testing.T, b *bed) {
			b.conf.Certificates[0] = b.hostCA.leaf(t, newKey(t), nil)
		}, sft.Invalid, unproven + "its key is not the one that the platform knows"},
		{"a certificate of another CA", func(t *testing.T, b *bed) {
			b.conf.Certificates[0] = newAuthority(t).leaf(t, b.hostKey, nil)
		}, sft.Invalid, unproven + "its certificate is not by the project's host CA"},
		{"no host CA at all", func(t *testing.T, b *bed) { b.broker.CAs = nil },
			sft.Invalid, unproven + "its certificate is not by the project's host CA"},
		{"an expired certificate", func(t *testing.T, b *bed) {
			b.conf.Certificates[0] = b.hostCA.leaf(t, b.hostKey, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) })
		}, sft.Invalid, unproven + "its certificate has expired, or is not valid yet"},
		{"a certificate that is not valid yet", func(t *testing.T, b *bed) {
			b.conf.Certificates[0] = b.hostCA.leaf(t, b.hostKey, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })
		}, sft.Invalid, unproven + "its certificate has expired, or is not valid yet"},
		{"a certificate without any extended key usage", func(t *testing.T, b *bed) {
			b.conf.Certificates[0] = b.hostCA.leaf(t, b.hostKey, func(c *x509.Certificate) { c.ExtKeyUsage = nil })
		}, sft.Invalid, unproven + "its certificate is not for servers"},
		{"a client's certificate in a broker's hand", func(t *testing.T, b *bed) {
			b.conf.Certificates[0] = b.hostCA.leaf(t, b.hostKey, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
		}, sft.Invalid, unproven + "its certificate is not for servers"},
		{"a self-made certificate", func(t *testing.T, b *bed) {
			self := &authority{key: b.hostKey}
			self.crt = &x509.Certificate{Subject: pkix.Name{CommonName: "me"}}
			self.der = newAuthority(t).der
			b.conf.Certificates[0] = self.leaf(t, b.hostKey, nil)
		}, sft.Invalid, unproven + "its certificate is not by the project's host CA"},
		{"no key that the platform knows", func(t *testing.T, b *bed) { b.broker.Keys = nil },
			sft.Invalid, unproven + "its key is not the one that the platform knows"},
		{"TLS 1.1", func(t *testing.T, b *bed) { b.conf.MinVersion, b.conf.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
			sft.Invalid, unproven + "it speaks no version of TLS from 1.2 on"},
		{"no ALPN", func(t *testing.T, b *bed) { b.conf.NextProtos = nil },
			sft.Invalid, unproven + "it does not speak sft-broker/1"},
		{"another ALPN", func(t *testing.T, b *bed) { b.conf.NextProtos = []string{"h2"} },
			sft.Invalid, unproven + "it does not speak sft-broker/1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				b := newBed(t)
				b.conf.MaxVersion = version
				tt.change(t, b)
				h := serve(t, b.conf, nil)
				s, _, err := b.open(t, h)
				if err == nil {
					s.Close()
					t.Fatal("the stream was opened")
				}
				if sft.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "%!") {
					t.Errorf("%s: got %s %q, want %s with %q", tls.VersionName(version), sft.CodeOf(err), err, tt.code, tt.want)
				}
				<-h.done
				if n := h.bytes.Load(); n != 0 {
					t.Errorf("%s: %d bytes were sent to it", tls.VersionName(version), n)
				}
			}
		})
	}
}

func TestTwoHostKeysWhileOneIsRenewed(t *testing.T) {
	b := newBed(t)
	b.broker.Keys = [][]byte{spki(newKey(t)), spki(b.hostKey)}
	h := serve(t, b.conf, func(c *tls.Conn) { frame.WriteJSON(c, frame.Reply{}) })
	s, _, err := b.open(t, h)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// TestClock checks that certificates are read on the corrected clock.
func TestClock(t *testing.T) {
	b := newBed(t)
	slow := &api.Clock{Machine: func() time.Time { return time.Now().Add(-10 * time.Minute) }}
	b.broker.Clock = slow
	h := serve(t, b.conf, func(c *tls.Conn) { frame.WriteJSON(c, frame.Reply{}) })
	if _, _, err := b.open(t, h); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("10 minutes slow and not corrected: %v, want a refusal", err)
	}
	if err := slow.Correct(time.Now()); err != nil {
		t.Fatal(err)
	}
	s, _, err := b.open(t, h)
	if err != nil {
		t.Fatalf("10 minutes slow and corrected: %v", err)
	}
	s.Close()
}

func TestReplies(t *testing.T) {
	denied := &sft.Error{Code: sft.Denied, Msg: "alice may not sign in to web01", Hint: "ask an administrator"}
	tests := []struct {
		name string
		talk func(*tls.Conn)
		want *sft.Error
	}{
		{"a refusal is passed on as it is", func(c *tls.Conn) { frame.WriteJSON(c, frame.Reply{Error: denied}) }, denied},
		{"a refusal without a code", func(c *tls.Conn) { frame.Write(c, []byte(`{"error":{}}`)) },
			&sft.Error{Code: sft.Internal, Msg: "the broker refused without a reason"}},
		{"a frame over 64 KiB", func(c *tls.Conn) { c.Write([]byte{0, 1, 0, 1}) },
			&sft.Error{Code: sft.Internal, Msg: "the answer of the broker of web01 is not readable: frame is over 65536 bytes", Hint: "check that sft and sftd are of the same version"}},
		{"a frame that is not JSON", func(c *tls.Conn) { frame.Write(c, []byte("hello")) },
			&sft.Error{Code: sft.Internal, Msg: "the answer of the broker of web01 is not readable: frame is not a JSON object", Hint: "check that sft and sftd are of the same version"}},
		{"a hang-up inside the frame", func(c *tls.Conn) { c.Write([]byte{0, 0, 0, 9, '{'}); c.Close() },
			&sft.Error{Code: sft.Unavailable, Msg: "the broker of web01 at ADDR hung up", Hint: `try again; if it stays so, look at "sftd status" on the server`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			h := serve(t, b.conf, func(c *tls.Conn) { frame.Read(c); tt.talk(c) })
			_, _, err := b.open(t, h)
			e, ok := errors.AsType[*sft.Error](err)
			if !ok {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			got := *e
			got.Err = nil
			got.Msg = strings.ReplaceAll(got.Msg, h.addr, "ADDR")
			if got != *tt.want {
				t.Errorf("got  %+v\nwant %+v", got, *tt.want)
			}
		})
	}
}

func TestTheBrokerRefusesTheCertificate(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		b := newBed(t)
		b.conf.MaxVersion = version
		b.broker.Certificate = newAuthority(t).leaf(t, newKey(t), nil)
		_, _, err := b.open(t, serve(t, b.conf, nil))
		if sft.CodeOf(err) != sft.Denied {
			t.Errorf("%s: got %v, want a denial", tls.VersionName(version), err)
		}
	}
}

func TestNobodyListens(t *testing.T) {
	b := newBed(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, _, err = b.open(t, &host{addr: l.Addr().String()})
	if sft.CodeOf(err) != sft.Unavailable {
		t.Errorf("got %v, want unreachable", err)
	}
}

// TestASilentBroker checks that a broker which says nothing is given up: in
// the handshake on its own deadline, before the reply when the person stops.
func TestASilentBroker(t *testing.T) {
	t.Run("in the handshake", func(t *testing.T) {
		if testing.Short() {
			t.Skip("takes 10 s")
		}
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		begun := time.Now()
		_, _, err = newBed(t).open(t, &host{addr: l.Addr().String()})
		if took := time.Since(begun); sft.CodeOf(err) != sft.Unavailable || took > 12*time.Second {
			t.Errorf("got %v after %v, want unreachable after 10 s", err, took)
		}
	})
	t.Run("before the reply", func(t *testing.T) {
		t.Parallel()
		b := newBed(t)
		ctx, cancel := context.WithCancel(t.Context())
		h := serve(t, b.conf, func(c *tls.Conn) { frame.Read(c); cancel() })
		b.broker.Address = h.addr
		if _, _, err := b.broker.Open(ctx, frame.Hello{Service: frame.Ping}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
	})
}

// FuzzReply checks that a reply is read whole or refused, and that a refusal
// always has something to show.
func FuzzReply(f *testing.F) {
	for _, r := range []frame.Reply{{}, {Error: &sft.Error{Code: sft.NotReady, Msg: "x"}}, {Ping: &frame.PingReply{Server: "a"}},
		{RDP: &frame.RDPReply{SignIn: "deliver", Secret: &frame.Secret{Secret: sft.NewSecret("x")}}}} {
		b, _ := json.Marshal(r)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeReply(b)
		if err != nil && sft.CodeOf(err) != sft.Invalid {
			t.Errorf("%v has code %s", err, sft.CodeOf(err))
		}
		if r.Error != nil && (r.Error.Code == "" || r.Error.Msg == "") {
			t.Errorf("a refusal without code or message: %+v", r.Error)
		}
	})
}
