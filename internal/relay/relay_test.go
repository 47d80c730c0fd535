package relay

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// soon is when a test gives up.
const soon = 20 * time.Second

// pair returns both ends of a TCP connection.
func pair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func certificate() (tls.Certificate, *x509.CertPool, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"relay.test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(cryptorand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return withKey(der, key)
}

func withKey(der []byte, key *ecdsa.PrivateKey) (tls.Certificate, *x509.CertPool, error) {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool, nil
}

func configs(cert tls.Certificate, pool *x509.CertPool) (client, server *tls.Config) {
	client = &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ServerName: "relay.test"}
	server = &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, SessionTicketsDisabled: true}
	return client, server
}

var testConfigs = sync.OnceValues(func() (client, server *tls.Config) {
	cert, pool, err := certificate()
	if err != nil {
		panic(err)
	}
	return configs(cert, pool)
})

// secured returns near as seen through TLS, and the TLS connection at the
// other end. version 0 is the best.
func secured(t testing.TB, near, far net.Conn, version uint16) (*tls.Conn, *tls.Conn) {
	t.Helper()
	client, server := testConfigs()
	client = client.Clone()
	client.MaxVersion = version
	n, f := tls.Server(near, server), tls.Client(far, client)
	done := make(chan error, 1)
	go func() { done <- f.Handshake() }()
	if err := n.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return n, f
}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// kinds are the ends that a relay may have: near is its own, far is whom it
// speaks to.
var kinds = []struct {
	name string
	make func(t testing.TB) (near, far halfCloser)
}{
	{"TCP", func(t testing.TB) (near, far halfCloser) { return pair(t) }},
	{"wrapped TCP", func(t testing.TB) (near, far halfCloser) { n, f := pair(t); return Wrap(n), f }},
	{"TLS 1.3 over Wrap", func(t testing.TB) (near, far halfCloser) { n, f := pair(t); return secured(t, Wrap(n), f, 0) }},
	{"TLS 1.2 over Wrap", func(t testing.TB) (near, far halfCloser) {
		n, f := pair(t)
		return secured(t, Wrap(n), f, tls.VersionTLS12)
	}},
	{"TLS over what is over Wrap", func(t testing.TB) (near, far halfCloser) {
		n, f := pair(t)
		return secured(t, over{Wrap(n)}, f, 0)
	}},
	{"TLS over TCP", func(t testing.TB) (near, far halfCloser) { n, f := pair(t); return secured(t, n, f, 0) }},
	{"TLS over Wrap of no file descriptor", func(t testing.TB) (near, far halfCloser) {
		n, f := pair(t)
		return secured(t, Wrap(struct{ net.Conn }{n}), f, 0)
	}},
}

// over is a connection that holds a Conn, as the broker has.
type over struct{ net.Conn }

func (o over) NetConn() net.Conn { return o.Conn }

// relayed starts a relay between two kinds and returns who speaks through it.
func relayed(t testing.TB, a, b int, filter func() func([]byte) ([]byte, error)) (one, two halfCloser) {
	n1, one := kinds[a].make(t)
	n2, two := kinds[b].make(t)
	for _, way := range [][2]halfCloser{{n1, n2}, {n2, n1}} {
		var f func([]byte) ([]byte, error)
		if filter != nil {
			f = filter()
		}
		go func() {
			Pump(way[0], way[1], f, nil)
			way[0].CloseWrite()
		}()
	}
	one.SetDeadline(time.Now().Add(soon))
	two.SetDeadline(time.Now().Add(soon))
	return one, two
}

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func everyTwo(t *testing.T, test func(t *testing.T, a, b int)) {
	for a := range kinds {
		for b := range kinds {
			t.Run(kinds[a].name+" and "+kinds[b].name, func(t *testing.T) {
				t.Parallel()
				test(t, a, b)
			})
		}
	}
}

func TestEveryByteArrivesInOrder(t *testing.T) {
	everyTwo(t, func(t *testing.T, a, b int) {
		one, two := relayed(t, a, b, nil)
		var all sync.WaitGroup
		for i, way := range [][2]halfCloser{{one, two}, {two, one}} {
			r := rand.New(rand.NewPCG(uint64(a), uint64(b)))
			sent := random(r, 300<<10+i)
			all.Go(func() {
				for rest := sent; len(rest) > 0; {
					n := min(len(rest), 1+r.IntN(1<<r.IntN(18)))
					if _, err := way[0].Write(rest[:n]); err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
				way[0].CloseWrite() // the other way goes on
			})
			all.Go(func() {
				if got, err := io.ReadAll(way[1]); err != nil || !bytes.Equal(got, sent) {
					t.Errorf("%d bytes and %v arrived, want the %d that were sent", len(got), err, len(sent))
				}
			})
		}
		all.Wait()
	})
}

func TestNothingIsHeldBack(t *testing.T) {
	everyTwo(t, func(t *testing.T, a, b int) {
		one, two := relayed(t, a, b, func() func([]byte) ([]byte, error) { return (&pdus{}).filter })
		go io.Copy(two, two)
		r := rand.New(rand.NewPCG(uint64(a), uint64(b)))
		for range 100 {
			sent := pdu(random(r, r.IntN(1<<r.IntN(16))))
			if _, err := one.Write(sent); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(one, got); err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("of a PDU of %d bytes came back something else: %v", len(sent), err)
			}
		}
	})
}

func pdu(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }

// pdus passes whole PDUs alone, in a buffer of its own.
type pdus struct{ in, out []byte }

func (p *pdus) filter(b []byte) ([]byte, error) {
	clear(p.out) // what was returned is good no more
	p.in = append(p.in, b...)
	n := 0
	for len(p.in)-n >= 2 {
		k := 2 + int(binary.BigEndian.Uint16(p.in[n:]))
		if len(p.in)-n < k {
			break
		}
		n += k
	}
	p.out = append([]byte(nil), p.in[:n]...)
	p.in = p.in[n:]
	return p.out, nil
}

// writes records each Write.
type writes struct {
	net.Conn
	all [][]byte
	err error
}

func (w *writes) Write(b []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	w.all = append(w.all, bytes.Clone(b))
	return len(b), nil
}

// script is a connection from which come pieces, and then io.EOF.
type script struct {
	net.Conn
	pieces [][]byte
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.pieces[0])
	if s.pieces[0] = s.pieces[0][n:]; len(s.pieces[0]) == 0 {
		s.pieces = s.pieces[1:]
	}
	return n, nil
}

func TestAFilterThatHoldsBack(t *testing.T) {
	stop := errors.New("no such thing")
	var seen []string
	filter := func(b []byte) ([]byte, error) {
		seen = append(seen, string(b))
		switch string(b) {
		case "hold":
			return nil, nil
		case "last":
			return []byte("words"), stop
		}
		return []byte("<" + string(b) + ">"), nil
	}
	w := &writes{}
	var counts []int
	src := &script{pieces: [][]byte{[]byte("a"), []byte("hold"), []byte("last"), []byte("never")}}
	read, write := Pump(w, src, filter, func(n int) { counts = append(counts, n) })
	if read != stop || write != nil {
		t.Errorf("ended with %v and %v, want the filter's error as it is", read, write)
	}
	if got := string(bytes.Join(w.all, []byte("|"))); got != "<a>|words" {
		t.Errorf("wrote %q, want %q", got, "<a>|words")
	}
	if got, want := counts, []int{3, 0, 5}; len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("counted %v, want %v", got, want)
	}
}

func TestManyRecordsAreOneWrite(t *testing.T) {
	n1, far := pair(t)
	in, client := secured(t, Wrap(n1), far, 0)
	n2, sink := pair(t)
	raw := &counted{Conn: n2}
	out, _ := secured(t, Wrap(raw), sink, 0)
	for range 50 {
		client.Write(make([]byte, 1000))
	}
	client.CloseWrite()
	// Once all are there, they go out together.
	under(in).wait()
	for under(in).in.w < 50*1022 {
		b := make([]byte, 60<<10)
		n, err := n1.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		under(in).in.wrote(copy(under(in).in.b[under(in).in.w:], b[:n]))
	}
	before := raw.n
	go io.Copy(io.Discard, sink)
	if read, write := Pump(out, in, nil, nil); read != io.EOF || write != nil {
		t.Fatal(read, write)
	}
	if got := raw.n - before; got != 1 {
		t.Errorf("50 records left in %d writes, want one", got)
	}
}

type counted struct {
	net.Conn
	n int
}

func (c *counted) Write(b []byte) (int, error) {
	c.n++
	return c.Conn.Write(b)
}

func TestADeadlineLosesNothing(t *testing.T) {
	for i, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			near, far := kinds[i].make(t)
			w := &writes{}
			far.Write([]byte("before"))
			near.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			read, write := Pump(w, near, nil, nil)
			if !errors.Is(read, os.ErrDeadlineExceeded) || write != nil {
				t.Fatalf("ended with %v and %v, want a deadline", read, write)
			}
			if op, ok := errors.AsType[*net.OpError](read); !ok || op.Op != "read" {
				t.Errorf("the error is %#v, want one of reading", read)
			}
			near.SetReadDeadline(time.Now().Add(soon))
			far.Write([]byte(" and after"))
			far.CloseWrite()
			b := make([]byte, 4)
			if _, err := io.ReadFull(near, b); err != nil {
				t.Fatal(err)
			}
			w.Write(b)
			if read, write := Pump(w, near, nil, nil); read != io.EOF || write != nil {
				t.Errorf("then ended with %v and %v", read, write)
			}
			if got := string(bytes.Join(w.all, nil)); got != "before and after" {
				t.Errorf("copied %q", got)
			}
		})
	}
}

func TestReadAReset(t *testing.T) {
	n, far := pair(t)
	far.SetLinger(0)
	far.Close()
	read, _ := Pump(&writes{}, Wrap(n), nil, nil)
	if op, ok := errors.AsType[*net.OpError](read); !ok || op.Op != "read" {
		t.Errorf("a reset is %#v, want an error of reading", read)
	}
}

func TestReadAfterClose(t *testing.T) {
	n, _ := pair(t)
	c := Wrap(n)
	go c.Close()
	if read, _ := Pump(&writes{}, c, nil, nil); !errors.Is(read, net.ErrClosed) {
		t.Errorf("closed while it waited, it says %v", read)
	}
}

func TestADestinationThatTakesNothing(t *testing.T) {
	for i, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			near, _ := kinds[i].make(t)
			stuck := make(chan struct{})
			var once sync.Once
			go func() {
				<-stuck
				near.SetWriteDeadline(time.Unix(1, 0))
			}()
			src := &script{}
			for range 1000 {
				src.pieces = append(src.pieces, make([]byte, 64<<10))
			}
			_, write := Pump(near, src, nil, func(int) { once.Do(func() { close(stuck) }) })
			if !errors.Is(write, os.ErrDeadlineExceeded) {
				t.Errorf("ended with %v, want a deadline", write)
			}
		})
	}
}

func TestALateErrorOfWritingSurfaces(t *testing.T) {
	n, far := pair(t)
	raw := &writes{Conn: n}
	c := Wrap(raw)
	raw.err = errors.New("gone")
	c.cork()
	if _, err := c.Write([]byte("taken")); err != nil {
		t.Fatal(err)
	}
	if err := c.uncork(); err != raw.err {
		t.Errorf("uncork says %v", err)
	}
	gone := raw.err
	raw.err = nil // too late: there is a gap
	if _, err := c.Write([]byte("more")); err != gone {
		t.Errorf("a later Write says %v", err)
	}
	if err := c.CloseWrite(); err == nil {
		t.Error("CloseWrite says nothing")
	}

	// The same through TLS: Write takes the bytes, and Pump tells.
	n, far = pair(t)
	fails := &failing{Conn: n}
	out, _ := secured(t, Wrap(fails), far, 0)
	fails.err = gone
	read, write := Pump(out, &script{pieces: [][]byte{[]byte("a")}}, nil, nil)
	if read != nil || !errors.Is(write, gone) {
		t.Errorf("ended with %v and %v, want the error of writing", read, write)
	}
}

type failing struct {
	net.Conn
	err error
}

func (f *failing) Write(b []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.Conn.Write(b)
}

func TestTheLastAlertLeavesAtOnce(t *testing.T) {
	n, far := pair(t)
	near, client := secured(t, Wrap(n), far, 0)
	under(near).cork()
	near.Write([]byte("held"))
	if err := near.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	client.SetReadDeadline(time.Now().Add(soon))
	if got, err := io.ReadAll(client); err != nil || string(got) != "held" {
		t.Errorf("%q and %v arrived before uncork", got, err)
	}
}

func TestOthersMayWriteMeanwhile(t *testing.T) {
	n, far := pair(t)
	out, client := secured(t, Wrap(n), far, 0)
	src, feeder := pair(t)
	var all sync.WaitGroup
	all.Go(func() {
		if read, write := Pump(out, src, (&pdus{}).filter, nil); read != io.EOF || write != nil {
			t.Error(read, write)
		}
	})
	const each = 300
	all.Go(func() {
		for range each {
			feeder.Write(pdu(bytes.Repeat([]byte("a"), 500)))
		}
	})
	client.SetReadDeadline(time.Now().Add(soon))
	all.Go(func() {
		for range each {
			out.Write(pdu(bytes.Repeat([]byte("b"), 700)))
		}
	})
	count := map[byte]int{}
	for range 2 * each {
		var head [2]byte
		if _, err := io.ReadFull(client, head[:]); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, binary.BigEndian.Uint16(head[:]))
		if _, err := io.ReadFull(client, b); err != nil {
			t.Fatal(err)
		}
		if len(b) != 500 && len(b) != 700 || len(bytes.Trim(b, string(b[:1]))) != 0 {
			t.Fatalf("a PDU of %d bytes is mixed up", len(b))
		}
		count[b[0]]++
	}
	if count['a'] != each || count['b'] != each {
		t.Errorf("got %v, want %d of each", count, each)
	}
	feeder.Close()
	all.Wait()
}

func TestPumpBeforeTheHandshake(t *testing.T) {
	n, far := pair(t)
	client, server := testConfigs()
	go func() {
		c := tls.Client(far, client)
		c.Write([]byte("hello"))
		c.CloseWrite()
	}()
	w := &writes{}
	n.SetDeadline(time.Now().Add(soon))
	read, write := Pump(w, tls.Server(Wrap(n), server), nil, nil)
	if got := string(bytes.Join(w.all, nil)); read != io.EOF || write != nil || got != "hello" {
		t.Errorf("copied %q, %v, %v", got, read, write)
	}
}

func TestIdleConnectionsHoldNoBuffers(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const sessions = 40
	block := make([]byte, 256<<10)
	before := heap()
	for range sessions {
		one, two := relayed(t, 2, 2, nil)
		go one.Write(block)
		if _, err := io.ReadFull(two, block); err != nil {
			t.Fatal(err)
		}
		go two.Write(block)
		if _, err := io.ReadFull(one, block); err != nil {
			t.Fatal(err)
		}
	}
	// Each has four TLS connections, two of which are the test's.
	if got, most := (heap()-before)/sessions, uint64(200<<10); got > most {
		t.Errorf("a session that waits takes %d bytes, want at most %d", got, most)
	}
}

func TestBuffersAreCleared(t *testing.T) {
	b := &buffer{}
	b.wrote(copy(b.b[:], "a long secret"))
	b.w = 0
	b.wrote(copy(b.b[:], "short"))
	b.free()
	if b.b != (buffer{}).b {
		t.Error("something is left in a buffer that was given back")
	}
}

func TestReadEndsWithARecord(t *testing.T) {
	record := func(kind byte, n int) []byte {
		return append([]byte{kind, 3, 3, byte(n >> 8), byte(n)}, make([]byte, n)...)
	}
	join := func(b ...[]byte) []byte { return bytes.Join(b, nil) }
	tests := []struct {
		name   string
		pieces [][]byte
		want   []int // how long what each Read returns is
	}{
		{"records in one piece", [][]byte{join(record(22, 100), record(23, 0), record(23, 300))}, []int{105, 5, 305}},
		{"a header in two pieces", [][]byte{{23, 3}, join(record(23, 100)[2:], record(21, 2))}, []int{2, 103, 7}},
		{"a header that ends a piece", [][]byte{record(23, 100)[:5], join(record(23, 100)[5:], record(21, 2))}, []int{5, 100, 7}},
		{"a body in pieces", [][]byte{record(23, 100)[:50], join(record(23, 100)[50:], record(21, 2))}, []int{50, 55, 7}},
		{"what is no record", [][]byte{make([]byte, 1000)}, []int{1000}},
		{"a record after what is none", [][]byte{{3, 0, 0, 19, 1, 2, 3}, join(record(22, 10), record(22, 20))}, []int{7, 15, 25}},
		{"a record that is too long", [][]byte{join([]byte{23, 3, 3, 0xff, 0xff}, make([]byte, 100))}, []int{105}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Wrap(&script{pieces: tt.pieces})
			var got []int
			for p := make([]byte, 64<<10); ; {
				n, err := c.Read(p)
				if err != nil {
					break
				}
				got = append(got, n)
			}
			if len(got) != len(tt.want) {
				t.Fatalf("read %v, want %v", got, tt.want)
			}
			for i := range got {
				if got[i] != tt.want[i] {
					t.Fatalf("read %v, want %v", got, tt.want)
				}
			}
		})
	}
}

// FuzzPump holds that what comes in arrives, once and in order, however it is
// cut to pieces on its way, plain and through TLS, and that a Conn reads
// foreign bytes of any kind as they are.
func FuzzPump(f *testing.F) {
	f.Add([]byte("hello"), []byte{1, 2})
	f.Add([]byte{23, 3, 3, 0, 1, 0, 22, 3, 1, 255, 255}, []byte{3})
	f.Add(bytes.Repeat([]byte("x"), 70000), []byte{0, 255, 7})
	f.Fuzz(func(t *testing.T, data, cuts []byte) {
		if len(cuts) == 0 {
			cuts = []byte{1}
		}
		var pieces [][]byte
		for i, rest := 0, data; len(rest) > 0; i++ {
			if i == 300 { // the rest would only take time
				data = data[:len(data)-len(rest)]
				break
			}
			n := min(len(rest), 1+int(cuts[i%len(cuts)])*int(cuts[i%len(cuts)]))
			pieces = append(pieces, rest[:n])
			rest = rest[n:]
		}
		// Through Read, in pieces of the same sizes.
		c := Wrap(&script{pieces: slices.Clone(pieces)})
		var got []byte
		for i := 0; ; i++ {
			p := make([]byte, 1+int(cuts[i%len(cuts)]))
			n, err := c.Read(p)
			got = append(got, p[:n]...)
			if err != nil {
				break
			}
			if n == 0 {
				t.Fatal("Read returns nothing, and no error")
			}
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("Read returns %x, want %x", got, data)
		}
		w := &writes{}
		if read, write := Pump(w, Wrap(&script{pieces: slices.Clone(pieces)}), nil, nil); read != io.EOF || write != nil || !bytes.Equal(bytes.Join(w.all, nil), data) {
			t.Fatalf("Pump writes %x, %v, %v, want %x", w.all, read, write, data)
		}
		// Through TLS at both sides.
		near, far := net.Pipe()
		in, client := secured(t, Wrap(&cutting{Conn: near, cuts: cuts}), far, 0)
		near2, far2 := net.Pipe()
		out, sink := secured(t, Wrap(near2), far2, 0)
		defer near.Close()
		defer near2.Close()
		go func() {
			for _, p := range pieces {
				client.Write(p)
			}
			client.CloseWrite()
		}()
		go func() {
			Pump(out, in, nil, nil)
			out.CloseWrite()
		}()
		sink.SetReadDeadline(time.Now().Add(soon))
		if got, err := io.ReadAll(sink); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%x and %v arrived, want %x", got, err, data)
		}
	})
}

// cutting reads in pieces.
type cutting struct {
	net.Conn
	cuts []byte
	i    int
}

func (c *cutting) Read(p []byte) (int, error) {
	n := 1 + int(c.cuts[c.i%len(c.cuts)])
	c.i++
	return c.Conn.Read(p[:min(n, len(p))])
}
