package broker

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sft"
	"sft/internal/frame"
)

var versions = []uint16{tls.VersionTLS12, tls.VersionTLS13}

// only makes a client speak one version of TLS.
func only(version uint16) func(*tls.Config) {
	return func(c *tls.Config) { c.MinVersion, c.MaxVersion = version, version }
}

func TestStream(t *testing.T) {
	for _, version := range versions {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			h := newHost(t, Limits{})
			p := h.person()
			p.tls = only(version)
			c, s := p.connect()
			cs := c.ConnectionState()
			if cs.Version != version || cs.NegotiatedProtocol != "sft-broker/1" || h.signs.Load() != 1 {
				t.Errorf("version %x, protocol %q, %d signatures", cs.Version, cs.NegotiatedProtocol, h.signs.Load())
			}
			o := <-h.opens
			if len(o.Certificates) != 1 || !bytes.Equal(o.Certificates[0], p.chain[0]) || o.Remote != c.LocalAddr().String() {
				t.Errorf("the monitor was asked %+v", o)
			}

			io.WriteString(c, "to the service")
			if got := read(t, s, 14); got != "to the service" {
				t.Errorf("the service read %q", got)
			}
			io.WriteString(s, "to the client")
			if got := read(t, c, 13); got != "to the client" {
				t.Errorf("the client read %q", got)
			}
			c.Close()
			if got, want := h.closed(), (Closed{1, 14, 13, "client closed"}); got != want {
				t.Errorf("reported %+v, want %+v", got, want)
			}
			eventually(t, "the counters are at rest", func() bool {
				return h.server.Counters() == Counters{Accepted: 1, Opened: 1, BytesIn: 14, BytesOut: 13}
			})
		})
	}
}

func TestHalfClose(t *testing.T) {
	for _, version := range versions {
		t.Run("the client finishes first, "+tls.VersionName(version), func(t *testing.T) {
			h := newHost(t, Limits{})
			p := h.person()
			p.tls = only(version)
			c, s := p.connect()
			io.WriteString(c, "question")
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(s); err != nil || string(b) != "question" {
				t.Fatalf("the service read %q, %v", b, err)
			}
			io.WriteString(s, "answer")
			s.Close()
			if b, err := io.ReadAll(c); err != nil || string(b) != "answer" {
				t.Errorf("the client read %q, %v", b, err)
			}
			if got, want := h.closed(), (Closed{1, 8, 6, "client closed"}); got != want {
				t.Errorf("reported %+v, want %+v", got, want)
			}
		})
		t.Run("the service finishes first, "+tls.VersionName(version), func(t *testing.T) {
			h := newHost(t, Limits{})
			p := h.person()
			p.tls = only(version)
			c, s := p.connect()
			io.WriteString(s, "banner")
			s.CloseWrite()
			if b, err := io.ReadAll(c); err != nil || string(b) != "banner" {
				t.Fatalf("the client read %q, %v", b, err)
			}
			io.WriteString(c, "late words")
			c.Close()
			if b, err := io.ReadAll(s); err != nil || string(b) != "late words" {
				t.Errorf("the service read %q, %v", b, err)
			}
			if got, want := h.closed(), (Closed{1, 10, 6, "service closed"}); got != want {
				t.Errorf("reported %+v, want %+v", got, want)
			}
		})
	}
}

func TestStreamsEnd(t *testing.T) {
	tests := []struct {
		name string
		do   func(h *testHost, c *tls.Conn, s *net.TCPConn)
		want string
	}{
		{"the client vanishes without a word", func(_ *testHost, c *tls.Conn, _ *net.TCPConn) { c.NetConn().Close() }, "client closed"},
		{"the client resets", func(_ *testHost, c *tls.Conn, _ *net.TCPConn) {
			c.NetConn().(*net.TCPConn).SetLinger(0)
			c.NetConn().Close()
		}, "client closed"},
		{"the client sends what is no TLS", func(_ *testHost, c *tls.Conn, _ *net.TCPConn) {
			c.NetConn().Write(bytes.Repeat([]byte{0x17, 3, 3, 0, 32}, 20))
		}, "error"},
		{"the service closes", func(_ *testHost, c *tls.Conn, s *net.TCPConn) {
			s.Close()
			io.Copy(io.Discard, c)
			c.Close()
		}, "service closed"},
		{"the service resets", func(_ *testHost, _ *tls.Conn, s *net.TCPConn) {
			s.SetLinger(0)
			s.Close()
		}, "service closed"},
		{"the service is gone when the client sends", func(h *testHost, c *tls.Conn, s *net.TCPConn) {
			s.Close()
			for {
				if _, err := c.Write(make([]byte, 1000)); err != nil || len(h.closes) > 0 {
					break
				}
				if _, err := c.Read(make([]byte, 1)); err != nil {
					c.Close()
				}
			}
		}, "service closed"},
		{"the monitor ends it", func(h *testHost, _ *tls.Conn, _ *net.TCPConn) { h.server.End(1, "access removed") }, "ended: access removed"},
		{"the monitor ends it with a long reason", func(h *testHost, _ *tls.Conn, _ *net.TCPConn) { h.server.End(1, strings.Repeat("x", 999)) },
			"ended: " + strings.Repeat("x", maxWhy)},
		{"the broker shuts down", func(h *testHost, _ *tls.Conn, _ *net.TCPConn) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if err := h.server.Shutdown(ctx); err != nil {
				h.t.Error(err)
			}
		}, "ended: the agent stops"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, Limits{})
			c, s := h.person().connect()
			tt.do(h, c, s)
			if got := h.closed(); got.Why != tt.want || got.Stream != 1 {
				t.Errorf("reported %+v, want %q", got, tt.want)
			}
			// Both ends are closed, not only reported.
			for name, end := range map[string]net.Conn{"client": c.NetConn(), "service": s} {
				end.SetReadDeadline(time.Now().Add(soon))
				if _, err := io.Copy(io.Discard, end); timedOut(err) {
					t.Errorf("the %s's connection stayed open", name)
				}
			}
		})
	}
}

func TestEndOfAStreamThatIsStuck(t *testing.T) {
	h := newHost(t, Limits{})
	c, s := h.person().connect()
	// Nobody reads what either side sends.
	go s.Write(make([]byte, 64<<20))
	go c.Write(make([]byte, 64<<20))
	var last Counters
	eventually(t, "both directions are stuck", func() bool {
		now := h.server.Counters()
		stuck := now == last && now.BytesIn > 0 && now.BytesOut > 0
		last = now
		if !stuck {
			time.Sleep(50 * time.Millisecond)
		}
		return stuck
	})
	h.server.End(1, "limit")
	if got := h.closed(); got.Why != "ended: limit" {
		t.Errorf("reported %+v", got)
	}
}

// A stream that is ended while its client sends ends in order: what was on its
// way to the client arrives, and then the end. A reset would take it away, on
// Windows even what has arrived and was not read yet.
func TestEndIsNoReset(t *testing.T) {
	h := newHost(t, Limits{})
	c, s := h.person().connect()
	if _, err := s.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the words have left", func() bool { return h.server.Counters().BytesOut == 10 })
	// The service reads nothing, so the broker does not read either.
	var sent atomic.Uint64
	var enough atomic.Bool
	wrote := make(chan error, 1)
	go func() {
		for {
			n, err := c.Write(make([]byte, 16<<10))
			if sent.Add(uint64(n)); err != nil || enough.Load() {
				wrote <- err
				return
			}
		}
	}()
	var last [2]uint64
	eventually(t, "the client's bytes are stuck", func() bool {
		now := [2]uint64{h.server.Counters().BytesIn, sent.Load()}
		stuck := now == last && now[0] > 0
		last = now
		if !stuck {
			time.Sleep(50 * time.Millisecond)
		}
		return stuck
	})
	enough.Store(true)
	h.server.End(1, "limit")
	c.NetConn().SetReadDeadline(time.Now().Add(soon))
	got, err := io.ReadAll(c)
	if string(got) != "last words" || err != nil {
		t.Errorf("the client read %q, %v", got, err)
	}
	if _, err := io.Copy(io.Discard, c.NetConn()); err != nil {
		t.Errorf("the connection ended with %v", err)
	}
	// A reset is told once, to either side. Wine can take no byte of a write that
	// waits while the connection ends, which is none.
	if err := <-wrote; err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the client wrote: %v", err)
	}
	c.NetConn().Close()
	if got := h.closed(); got.Why != "ended: limit" {
		t.Errorf("reported %+v", got)
	}
}

func TestEndWhileTheStreamIsOpened(t *testing.T) {
	h := newHost(t, Limits{})
	h.onOpened = func(o Opened) { h.server.End(o.Stream, "user disabled") }
	c, err := h.person().dial()
	if err != nil {
		t.Fatal(err)
	}
	r, err := ask(c, h.person().hello())
	if err == nil && r.Error == nil {
		t.Fatalf("another key's frame was granted: %+v", r)
	}
	p := h.person()
	if c, err = p.dial(); err != nil {
		t.Fatal(err)
	}
	if r, err = ask(c, p.hello()); err != nil || r.Error == nil || r.Error.Code != sft.Denied {
		t.Errorf("reply %+v, %v, want denied", r, err)
	}
	if got, want := h.closed(), (Closed{1, 0, 0, "ended: user disabled"}); got != want {
		t.Errorf("reported %+v, want %+v", got, want)
	}
	h.server.mu.Lock()
	defer h.server.mu.Unlock()
	if len(h.server.early) != 0 {
		t.Errorf("%d early ends are kept", len(h.server.early))
	}
}

func TestShutdownLetsStreamsFinish(t *testing.T) {
	h := newHost(t, Limits{})
	c, s := h.person().connect()
	done := make(chan error, 1)
	go func() { done <- h.server.Shutdown(context.Background()) }()
	eventually(t, "nobody new gets in", func() bool {
		n, err := net.Dial("tcp", h.addr)
		if err == nil {
			n.Close()
		}
		return err != nil
	})
	io.WriteString(c, "x")
	read(t, s, 1)
	s.Close()
	c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if h.closed().Stream != 1 {
		t.Error("the stream was not reported")
	}
}

func TestPing(t *testing.T) {
	h := newHost(t, Limits{})
	p := h.person()
	c, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	r, err := ask(c, p.hello(func(h *frame.Hello) { h.Service = "ping" }))
	if err != nil || r.Ping == nil || *r.Ping != (frame.PingReply{Server: "srv-1", Login: "alice"}) {
		t.Errorf("reply %+v, %v", r, err)
	}
	if b, err := io.ReadAll(c); err != nil || len(b) != 0 {
		t.Errorf("after the reply: %q, %v, want the end", b, err)
	}
	if len(h.closes) != 0 {
		t.Error("a ping was reported as a stream")
	}
}

// TestCertificatesOverTheWire presents the certificates of the verifier's own
// table to the whole.
func TestCertificatesOverTheWire(t *testing.T) {
	for _, version := range versions {
		h := newHost(t, Limits{})
		for _, tt := range presentations {
			t.Run(tt.name+", "+tls.VersionName(version), func(t *testing.T) {
				for len(h.opens) > 0 {
					<-h.opens
				}
				in := tt.make(h)
				p := &person{h: h, key: in.key, chain: in.chain, tls: only(version)}
				c, err := p.dial()
				var r frame.Reply
				if err == nil {
					r, err = ask(c, p.hello())
				}
				switch {
				case tt.tls:
					op, ok := errors.AsType[*net.OpError](err)
					if !ok || op.Op != "remote error" {
						t.Errorf("%+v, %v, want an alert of TLS", r, err)
					}
					if len(h.opens) != 0 {
						t.Error("the monitor was bothered")
					}
				case err != nil:
					t.Errorf("no reply: %v", err)
				case tt.want == (refused{}):
					if r.RDP == nil {
						t.Errorf("refused: %+v", r.Error)
					}
				case r.Error == nil:
					t.Errorf("granted: %+v", r)
				case !refusedAs(r.Error).like(tt.want):
					t.Errorf("refused: %+v, want %+v", refusedAs(r.Error), tt.want)
				}
			})
		}
	}
}

func TestFramesOverTheWire(t *testing.T) {
	h := newHost(t, Limits{})
	for _, tt := range frames {
		t.Run(tt.name, func(t *testing.T) {
			p := h.person()
			c, err := p.dial()
			if err != nil {
				t.Fatal(err)
			}
			r, err := ask(c, tt.make(p))
			if err != nil {
				t.Fatal(err)
			}
			var got refused
			if r.Error != nil {
				got = refusedAs(r.Error)
			}
			if got != tt.want {
				t.Errorf("refused: %+v, want %+v", got, tt.want)
			}
		})
	}
	t.Run("a frame that was seen on another connection", func(t *testing.T) {
		p := h.person()
		b := p.hello()
		var codes []sft.Code
		for range 2 {
			c, err := p.dial()
			if err != nil {
				t.Fatal(err)
			}
			r, err := ask(c, b)
			if err != nil {
				t.Fatal(err)
			}
			if r.Error != nil {
				codes = append(codes, r.Error.Code)
			}
		}
		if !slices.Equal(codes, []sft.Code{sft.Replayed}) {
			t.Errorf("refused: %v, want the second as replayed", codes)
		}
	})
	for name, tt := range map[string]struct {
		send []byte
		want string
	}{
		"empty":                   {[]byte{0, 0, 0, 0}, "the first frame is empty"},
		"oversized by a byte":     {binary.BigEndian.AppendUint32(nil, frame.MaxSize+1), "the first frame is over 65536 bytes"},
		"oversized as can be":     {[]byte("\xff\xff\xff\xff{"), "the first frame is over 65536 bytes"},
		"an RDP client's request": {[]byte("\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00"), "the first frame is over 65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			for len(h.opens) > 0 {
				<-h.opens
			}
			c, err := h.person().dial()
			if err != nil {
				t.Fatal(err)
			}
			c.Write(tt.send)
			r, err := answer(c)
			if err != nil || r.Error == nil || *r.Error != (sft.Error{Code: sft.Invalid, Msg: tt.want}) {
				t.Errorf("reply %+v, %v, want %q", r.Error, err, tt.want)
			}
			if len(h.opens) != 0 {
				t.Error("the monitor was bothered")
			}
		})
	}
	t.Run("oversized, with the rest behind it", func(t *testing.T) {
		c, err := h.person().dial()
		if err != nil {
			t.Fatal(err)
		}
		c.Write(append([]byte("\xff\xff\xff\xff"), make([]byte, 100<<10)...))
		if r, err := answer(c); err != nil || r.Error == nil {
			t.Errorf("reply %+v, %v", r, err)
		}
		// A reset would have thrown the reply away, on some systems.
		if _, err := io.Copy(io.Discard, c.NetConn()); err != nil {
			t.Errorf("the connection ended with: %v", err)
		}
	})
	t.Run("truncated", func(t *testing.T) {
		before := h.server.Counters().HandshakeFailures
		c, err := h.person().dial()
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte{0, 0, 1, 0, '{'})
		c.Close()
		eventually(t, "it is counted and gone", func() bool {
			n := h.server.Counters()
			return n.HandshakeFailures == before+1 && n.Waiting == 0
		})
	})
	t.Run("the largest there is", func(t *testing.T) {
		p := h.person()
		c, err := p.dial()
		if err != nil {
			t.Fatal(err)
		}
		b := p.hello()
		b = append(b, bytes.Repeat([]byte(" "), frame.MaxSize-len(b))...)
		if r, err := ask(c, b); err != nil || r.RDP == nil {
			t.Errorf("reply %+v, %v", r.Error, err)
		}
	})
}

// TestSlow checks the ten seconds, which are for all steps together.
func TestSlow(t *testing.T) {
	t.Parallel()
	h := newHost(t, Limits{})
	tests := map[string]func(*testing.T) net.Conn{
		"silent": func(t *testing.T) net.Conn {
			c, err := net.Dial("tcp", h.addr)
			if err != nil {
				t.Fatal(err)
			}
			return c
		},
		"a ClientHello in drops": func(t *testing.T) net.Conn {
			c, err := net.Dial("tcp", h.addr)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for _, b := range append([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3}, make([]byte, 500)...) {
					if _, err := c.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(100 * time.Millisecond)
				}
			}()
			return c
		},
		"TLS and no frame": func(t *testing.T) net.Conn {
			c, err := h.person().dial()
			if err != nil {
				t.Fatal(err)
			}
			return c
		},
		"a frame in drops": func(t *testing.T) net.Conn {
			p := h.person()
			c, err := p.dial()
			if err != nil {
				t.Fatal(err)
			}
			b := p.hello()
			go func() {
				c.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
				for i := range b {
					if _, err := c.Write(b[i : i+1]); err != nil {
						return
					}
					time.Sleep(100 * time.Millisecond)
				}
			}()
			return c
		},
	}
	for name, connect := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := connect(t)
			defer c.Close()
			c.SetReadDeadline(time.Now().Add(setupTime + soon))
			b, err := io.ReadAll(c)
			if timedOut(err) {
				t.Error("the connection stayed open")
			}
			if strings.Contains(name, "frame") && !strings.Contains(string(b), "no whole frame came within 10s") {
				t.Errorf("the client was told %q, %v", b, err)
			}
		})
	}
}

func TestSilentConnectionsKeepNobodyOut(t *testing.T) {
	for _, tt := range []struct {
		n      int
		limits Limits
	}{
		{200, Limits{}},
		{1000, Limits{}},
		{3000, Limits{PerAddress: 1 << 20}}, // as if they came from everywhere
	} {
		t.Run(fmt.Sprintf("%d of them, %+v", tt.n, tt.limits), func(t *testing.T) {
			h := newHost(t, tt.limits)
			lim := tt.limits.withDefaults()
			most := min(tt.n, silentFactor*min(lim.Handshakes, lim.PerAddress))
			flood := make(chan net.Conn, tt.n)
			go func() {
				defer close(flood)
				for range tt.n {
					c, err := net.Dial("tcp", h.addr)
					if err != nil {
						t.Error(err)
						return
					}
					flood <- c
				}
			}()
			defer func() {
				for c := range flood {
					c.Close()
				}
			}()
			// While they come, and when all of them are there.
			for range 3 {
				c, s := h.person().connect()
				io.WriteString(c, "hello")
				read(t, s, 5)
				c.Close()
			}
			eventually(t, "all have come", func() bool { return h.server.Counters().Accepted == uint64(tt.n+3) })
			c, s := h.person().connect()
			io.WriteString(c, "hello")
			read(t, s, 5)
			if n := h.server.Counters(); n.Waiting > uint64(most) || n.Shed < uint64(tt.n-most) {
				t.Errorf("counters %+v, want at most %d waiting", n, most)
			}
		})
	}
}

func TestTheLobbyShedsWhoHasShownLeast(t *testing.T) {
	// A visit is a guest who comes from an address and gets as far as a step
	// before the next one comes.
	type visit struct {
		source string
		step   step
	}
	const a, b, c = "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"
	repeat := func(n int, v visit) (all []visit) {
		for range n {
			all = append(all, v)
		}
		return all
	}
	tests := []struct {
		name              string
		limit, perAddress int
		visits            []visit
		shed              []int // indexes of visits
	}{
		{"room for all", 3, 3, []visit{{a, proven}, {a, greeted}, {b, greeted}, {b, silent}}, nil},
		{"of those who greeted, the oldest leaves", 2, 2, []visit{{a, greeted}, {b, greeted}, {c, greeted}}, []int{0}},
		{"who has proven something stays", 2, 2, []visit{{a, proven}, {b, greeted}, {c, greeted}}, []int{1}},
		{"when all have proven something, the oldest leaves", 2, 2, []visit{{a, proven}, {b, proven}, {c, proven}}, []int{0}},
		{"the silent push out the oldest of the silent only", 1, 9, append([]visit{{a, greeted}}, repeat(silentFactor+2, visit{b, silent})...), []int{1, 2}},
		{"everybody is silent at first", 1, 9, append(repeat(silentFactor, visit{b, silent}), visit{a, greeted}), []int{0}},
		{"an address crowds out itself", 9, 2, []visit{{b, greeted}, {a, greeted}, {a, greeted}, {a, greeted}}, []int{1}},
		{"a /64 is one address", 9, 1, []visit{{"[2001:db8::1]:1", greeted}, {"[2001:db8::2]:1", greeted}, {"[2001:db8:0:1::1]:1", greeted}}, []int{0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := lobby{limit: tt.limit, perAddress: tt.perAddress}
			var guests []*guest
			for _, v := range tt.visits {
				addr, err := net.ResolveTCPAddr("tcp", v.source)
				if err != nil {
					t.Fatal(err)
				}
				c, _ := net.Pipe()
				g := &guest{Conn: c, source: sourceOf(addr)}
				g.ctx, g.cancel = context.WithCancel(t.Context())
				guests = append(guests, g)
				if !l.enter(g) {
					t.Fatal("the lobby is closed")
				}
				for s := greeted; s <= v.step; s++ {
					l.advance(g, s)
				}
			}
			var shed []int
			for i, g := range guests {
				if in, s := l.leave(g); !in {
					shed = append(shed, i)
					if g.ctx.Err() == nil {
						t.Errorf("guest %d was shed and goes on", i)
					}
				} else if s != tt.visits[i].step {
					t.Errorf("guest %d came as far as %d, want %d", i, s, tt.visits[i].step)
				}
			}
			if !slices.Equal(shed, tt.shed) {
				t.Errorf("shed are %v, want %v", shed, tt.shed)
			}
			if n, shed := l.count(); n != 0 || int(shed) != len(tt.shed) {
				t.Errorf("%d waiting, %d shed", n, shed)
			}
		})
	}
}

func TestOneSlowPeerHoldsUpNobody(t *testing.T) {
	h := newHost(t, Limits{})
	_, slow := h.person().connect()
	go slow.Write(make([]byte, 64<<20)) // its client does not read

	// A monitor that takes its time for one does not for another.
	release := make(chan struct{})
	var once sync.Once
	h.mu.Lock()
	h.onOpen = func(ctx context.Context, _ Open) {
		first := false
		once.Do(func() { first = true })
		if first {
			<-release
		}
	}
	h.mu.Unlock()
	waiting := make(chan struct{})
	go func() {
		defer close(waiting)
		p := h.person()
		c, err := p.dial()
		if err != nil {
			t.Error(err)
			return
		}
		if r, err := ask(c, p.hello()); err != nil || r.RDP == nil {
			t.Errorf("the one that waited: %+v, %v", r.Error, err)
		}
	}()
	eventually(t, "one waits for the monitor", func() bool { return len(h.opens) == 2 })

	c, s := h.person().connect()
	go func() {
		s.Write(bytes.Repeat([]byte("x"), 1<<20))
		s.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, c); n != 1<<20 || err != nil {
		t.Errorf("read %d bytes, %v", n, err)
	}
	close(release)
	<-waiting
}

func TestTooManyStreams(t *testing.T) {
	h := newHost(t, Limits{Streams: 2})
	c1, _ := h.person().connect()
	h.person().connect()
	p := h.person()
	c, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	if r, err := ask(c, p.hello()); err != nil || r.Error == nil || r.Error.Code != sft.Unavailable {
		t.Errorf("the third: %+v, %v, want unavailable", r, err)
	}
	c1.Close()
	h.closed()
	eventually(t, "there is room again", func() bool {
		h.server.mu.Lock()
		defer h.server.mu.Unlock()
		return h.server.slots == 1
	})
	h.person().connect()
}

func TestNotOurKindOfTLS(t *testing.T) {
	h := newHost(t, Limits{})
	tests := []struct {
		name string
		tls  func(*tls.Config)
		cert bool
		sign bool // the monitor's signature cannot be spared
		want string
	}{
		{"TLS 1.1", only(tls.VersionTLS11), true, false, "remote error: tls: protocol version not supported"},
		{"TLS 1.0", only(tls.VersionTLS10), true, false, "remote error: tls: protocol version not supported"},
		{"no ALPN", func(c *tls.Config) { c.NextProtos = nil }, true, false, "remote error: tls: internal error"},
		{"ALPN of the web", func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} }, true, false, "remote error: tls: no application protocol"},
		{"no certificate, TLS 1.2", only(tls.VersionTLS12), false, true, "remote error: tls: handshake failure"},
		{"no certificate, TLS 1.3", only(tls.VersionTLS13), false, true, "remote error: tls: certificate required"},
		{"a cipher suite without forward secrecy", func(c *tls.Config) {
			only(tls.VersionTLS12)(c)
			c.CipherSuites = []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
		}, true, false, "remote error: tls: handshake failure"},
		{"a cipher suite of CBC", func(c *tls.Config) {
			only(tls.VersionTLS12)(c)
			c.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256}
		}, true, false, "remote error: tls: handshake failure"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := h.signs.Load()
			p := h.person()
			p.tls = tt.tls
			if !tt.cert {
				p.chain = nil
			}
			c, err := p.dial()
			if err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			if fmt.Sprint(err) != tt.want {
				t.Errorf("the client got: %v, want %s", err, tt.want)
			}
			if asked := h.signs.Load() != before; asked != tt.sign {
				t.Errorf("the monitor was asked to sign: %v, want %v", asked, tt.sign)
			}
			if len(h.opens) != 0 {
				t.Error("the monitor was asked to open")
			}
		})
	}
	t.Run("no TLS at all", func(t *testing.T) {
		for _, b := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "SSH-2.0-x\r\n", "\x03\x00\x00\x13\x0e\xe0", "\x00", strings.Repeat("\xff", 1<<16)} {
			c, err := net.Dial("tcp", h.addr)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, b)
			c.(*net.TCPConn).CloseWrite()
			c.SetReadDeadline(time.Now().Add(soon))
			if _, err := io.Copy(io.Discard, c); timedOut(err) {
				t.Errorf("%.10q: the connection stayed open", b)
			}
			c.Close()
		}
	})
	t.Run("a certificate with another key", func(t *testing.T) {
		for _, version := range versions {
			p := h.person()
			p.key = newKey(t)
			p.tls = only(version)
			c, err := p.dial()
			if err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "remote error" {
				t.Errorf("%s: %v, want an alert", tls.VersionName(version), err)
			}
		}
		if len(h.opens) != 0 {
			t.Error("the monitor was asked to open")
		}
	})
}

func TestSessionsAreNeverResumed(t *testing.T) {
	for _, version := range versions {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			h := newHost(t, Limits{})
			p := h.person()
			cache := &countingCache{ClientSessionCache: tls.NewLRUClientSessionCache(8)}
			p.tls = func(c *tls.Config) {
				only(version)(c)
				c.ClientSessionCache = cache
			}
			for range 3 {
				c, s := p.connect()
				io.WriteString(s, "x") // tickets of TLS 1.3 would come before it
				read(t, c, 1)
				if c.ConnectionState().DidResume {
					t.Error("the session was resumed")
				}
				c.Close()
			}
			if cache.puts != 0 {
				t.Errorf("%d tickets were handed out", cache.puts)
			}
			if cache.gets != 3 {
				t.Errorf("the client looked for a ticket %d times, want 3", cache.gets)
			}
		})
	}
}

type countingCache struct {
	tls.ClientSessionCache
	gets, puts int
}

func (c *countingCache) Get(k string) (*tls.ClientSessionState, bool) {
	c.gets++
	return c.ClientSessionCache.Get(k)
}

func (c *countingCache) Put(k string, s *tls.ClientSessionState) {
	if s != nil {
		c.puts++
	}
	c.ClientSessionCache.Put(k, s)
}

// TestSignatureAlgorithms checks that whatever a client prefers, the monitor
// signs SHA-256 digests only. OpenSSL lets the client say what it prefers.
func TestSignatureAlgorithms(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("needs the program openssl")
	}
	h := newHost(t, Limits{})
	p := h.person()
	dir := t.TempDir()
	der, err := x509.MarshalECPrivateKey(p.key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	args := []string{"s_client", "-connect", h.addr, "-alpn", "sft-broker/1", "-quiet",
		"-cert", write("cert", "CERTIFICATE", p.chain[0]), "-key", write("key", "EC PRIVATE KEY", der),
		"-CAfile", write("ca", "CERTIFICATE", h.hostCA.cert.Raw), "-verify_return_error"}
	tests := []struct {
		name string
		args []string
		ok   bool
	}{
		{"TLS 1.3, SHA-384 and SHA-512 preferred", []string{"-tls1_3", "-sigalgs", "ECDSA+SHA512:ECDSA+SHA384:ECDSA+SHA256"}, true},
		{"TLS 1.2, SHA-384 and SHA-512 preferred", []string{"-tls1_2", "-sigalgs", "ECDSA+SHA512:ECDSA+SHA384:ECDSA+SHA256"}, true},
		{"TLS 1.2, a cipher suite of SHA-384", []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384", "-sigalgs", "ECDSA+SHA384:ECDSA+SHA256"}, true},
		{"TLS 1.3, a cipher suite of SHA-384", []string{"-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"}, true},
		{"TLS 1.2, SHA-384 alone", []string{"-tls1_2", "-sigalgs", "ECDSA+SHA384"}, false},
		{"TLS 1.3, SHA-384 alone", []string{"-tls1_3", "-sigalgs", "ECDSA+SHA384"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			defer cancel()
			cmd := exec.CommandContext(ctx, "openssl", append(slices.Clone(args), tt.args...)...)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			frame.Write(in, p.hello())
			b, err := frame.Read(bufio.NewReader(out))
			in.Close()
			cancel()
			cmd.Wait()
			if ok := err == nil && bytes.Contains(b, []byte(`"sign_in":"deliver"`)); ok != tt.ok {
				t.Errorf("reply %q, %v, want success %v\n%s", b, err, tt.ok, &stderr)
			}
		})
	}
}

// A flakyListener has no descriptors left from time to time.
type flakyListener struct {
	net.Listener
	mu   sync.Mutex
	errs []error
}

func (l *flakyListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		l.mu.Unlock()
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: err}
	}
	l.mu.Unlock()
	return l.Listener.Accept()
}

func TestServeSurvivesErrorsOfAccept(t *testing.T) {
	h := newHost(t, Limits{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// A silent connection makes room when descriptors have run out.
	silent, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	eventually(t, "it waits", func() bool { return h.server.Counters().Waiting == 1 })
	done := make(chan error, 1)
	go func() {
		done <- h.server.Serve(&flakyListener{Listener: l, errs: []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ECONNABORTED}})
	}()
	h.addr = l.Addr().String()
	h.person().connect()
	if n := h.server.Counters(); n.AcceptErrors != 4 || n.Shed != 1 {
		t.Errorf("counters %+v, want 4 errors and the silent one shed", n)
	}
	l.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve = %v when its listener is closed", err)
	}
}

func TestConfigure(t *testing.T) {
	h := newHost(t, Limits{})
	good := h.config(Limits{})
	with := func(f func(*Config)) Config {
		c := good
		f(&c)
		return c
	}
	for name, c := range map[string]Config{
		"no certificate":      with(func(c *Config) { c.HostCertificates = nil }),
		"a broken one":        with(func(c *Config) { c.HostCertificates = [][]byte{{1, 2, 3}} }),
		"a broken CA":         with(func(c *Config) { c.ClientCAs = [][]byte{{1, 2, 3}} }),
		"a host key of P-384": with(func(c *Config) { c.HostCertificates = presentedP384(t, h) }),
	} {
		if err := h.server.Configure(c); err == nil {
			t.Errorf("Configure with %s passed", name)
		}
	}
	// What is refused changes nothing.
	h.person().connect()

	// A new CA counts for who comes from now on.
	old := h.person()
	h.access = newAuthority(t, "next", nil)
	if err := h.server.Configure(h.config(Limits{})); err != nil {
		t.Fatal(err)
	}
	h.person().connect()
	if c, err := old.dial(); err == nil {
		if _, err = c.Read(make([]byte, 1)); fmt.Sprint(err) != "remote error: tls: unknown certificate authority" {
			t.Errorf("a certificate of the old CA: %v", err)
		}
	}

	// The clock's offset counts too.
	c := h.config(Limits{})
	c.ClockOffset = 14 * time.Minute
	if err := h.server.Configure(c); err != nil {
		t.Fatal(err)
	}
	if c, err := h.person().dial(); err == nil {
		if _, err = c.Read(make([]byte, 1)); fmt.Sprint(err) != "remote error: tls: expired certificate" {
			t.Errorf("14 minutes later: %v", err)
		}
	}
}

func presentedP384(t *testing.T, h *testHost) [][]byte {
	for _, p := range presentations {
		if p.name == "a P-384 key" {
			return p.make(h).chain
		}
	}
	t.Fatal("no P-384 key in the table")
	return nil
}

func TestUnconfigured(t *testing.T) {
	h := newHost(t, Limits{})
	s := New(h)
	s.Log = h.server.Log
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	defer s.Shutdown(t.Context())
	h.addr = l.Addr().String()
	if _, err := h.person().dial(); err == nil {
		t.Error("a broker without a certificate let somebody in")
	}
}

// TestMonitorsErrorIsNotTold checks that only what is meant for people reaches
// them.
func TestMonitorsErrorIsNotTold(t *testing.T) {
	h := newHost(t, Limits{})
	h.service.Close() // so that dialing it fails
	p := h.person()
	c, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	r, err := ask(c, p.hello())
	if err != nil || r.Error == nil || r.Error.Code != sft.Internal || strings.Contains(r.Error.Msg, "refused") {
		t.Errorf("reply %+v, %v", r.Error, err)
	}
}

func TestNoGoroutineIsLeft(t *testing.T) {
	h := newHost(t, Limits{})
	before := runtime.NumGoroutine()
	for i := range 20 {
		c, s := h.person().connect()
		switch i % 4 {
		case 0:
			c.Close()
		case 1:
			c.NetConn().Close()
		case 2:
			s.Close()
			c.Close()
		case 3:
			h.server.End(uint64(i+1), "x")
		}
		h.closed()
		s.Close()
	}
	eventually(t, "the goroutines of all streams are gone", func() bool { return runtime.NumGoroutine() <= before })
}

// BenchmarkStream measures one stream from the service to the client and back,
// with the client's own TLS in the same process.
func BenchmarkStream(b *testing.B) {
	for _, out := range []bool{true, false} {
		b.Run(map[bool]string{true: "service to client", false: "client to service"}[out], func(b *testing.B) {
			h := newHost(b, Limits{})
			c, s := h.person().connect()
			var from io.Writer = s
			var to io.Reader = c
			if !out {
				from, to = c, s
			}
			chunk := make([]byte, 64<<10)
			b.SetBytes(int64(len(chunk)))
			b.ReportAllocs()
			b.ResetTimer()
			go func() {
				for range b.N {
					if _, err := from.Write(chunk); err != nil {
						b.Error(err)
						return
					}
				}
			}()
			if _, err := io.CopyBuffer(io.Discard, io.LimitReader(to, int64(b.N)*int64(len(chunk))), make([]byte, 32<<10)); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkOpen measures everything that comes before the bytes.
func BenchmarkOpen(b *testing.B) {
	h := newHost(b, Limits{})
	h.verifier.Now = time.Now
	p := h.person()
	b.ReportAllocs()
	for b.Loop() {
		h.verifier.seen = replays{}
		c, s := p.connect()
		c.Close()
		s.Close()
		h.closed()
	}
}
