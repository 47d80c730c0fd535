package privsep

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sft"
)

// These tests have a broker in this process, over pipes, as on Windows: they
// show on any system that nothing but the way to the sockets is different.

// A mock is a process that is none.
type mock struct {
	ends  chan ending
	once  sync.Once
	after func() // when it is killed
	layer error  // what inspect finds missing
}

func (*mock) pid() int { return 1 }

func (m *mock) kill() { m.end(ending{how: "killed"}) }

func (m *mock) end(e ending) { m.once.Do(func() { m.ends <- e; m.after() }) }

func (m *mock) wait() (ending, error) { return <-m.ends, nil }

func (m *mock) inspect(Config, Ready) ([]Layer, error) {
	return []Layer{{Name: "mock", OK: true}}, m.layer
}

// A recorder is a Handler that opens streams to one address, and keeps books.
type recorder struct {
	dial string
	file *os.File

	mu     sync.Mutex
	next   uint64
	closed []Close
}

func (r *recorder) Sign(_ context.Context, d [32]byte) ([]byte, error) { return d[:], nil }

func (r *recorder) Open(context.Context, Open) (OpenReply, *os.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next++
	return OpenReply{Stream: r.next, Reply: []byte("{}"), Dial: r.dial}, r.file, nil
}

func (r *recorder) Close(_ context.Context, c Close) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = append(r.closed, c)
}

func (r *recorder) Report(Report) {}

// over starts a broker in this process, and returns its end of the channel.
func over(t *testing.T, m *mock) (Config, *pipe) {
	t.Helper()
	monitor, broker := pipes(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	m.ends = make(chan ending, 1)
	// A process that dies does not wait for its reads, and a close may: on
	// Windows, until the other end of the pipe is closed.
	m.after = func() { go broker.close(); w.Close() }
	return Config{launch: func(Config) (launched, error) { return launched{proc: m, ch: monitor, log: r}, nil }}, broker
}

// both starts a broker in this process and returns both sides.
func both(t *testing.T, h Handler) (*Child, *Monitor, *mock) {
	t.Helper()
	p := &mock{}
	cfg, broker := over(t, p)
	monitor := make(chan *Monitor, 1)
	go func() {
		m, err := newMonitor(broker, Ready{Layers: []Layer{}}, func(a string) (net.Listener, error) { return net.Listen("tcp", a) },
			func(error) { p.end(ending{how: "exit status 1"}) })
		if err != nil {
			t.Error(err)
		}
		monitor <- m
	}()
	c, err := Start(t.Context(), cfg, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Kill(); c.Wait() })
	return c, <-monitor, p
}

func TestBrokerThatListensAndConnectsItself(t *testing.T) {
	service, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	h := &recorder{dial: service.Addr().String()}
	c, m, _ := both(t, h)
	if got, want := c.Layers(), []Layer{{Name: "mock", OK: true}}; !slices.Equal(got, want) {
		t.Errorf("Layers = %v, want %v", got, want)
	}
	if err := c.Configure(Configuration{Listen: "127.0.0.1:0"}, nil); err != nil {
		t.Fatal(err)
	}
	first := <-m.Commands()
	if first.Listener == nil {
		t.Fatal("the first configuration came without a listener")
	}
	defer first.Listener.Close()
	if err := c.Configure(Configuration{}, nil); err != nil {
		t.Fatal(err)
	}
	if later := <-m.Commands(); later.Configure == nil || later.Listener != nil {
		t.Errorf("a later configuration is %+v", later)
	}
	if conn, err := net.Dial("tcp", first.Listener.Addr().String()); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	if sig, err := m.Sign(t.Context(), [32]byte{7}); err != nil || len(sig) != 32 || sig[0] != 7 {
		t.Errorf("Sign = %v, %v", sig, err)
	}
	open := Open{Certificates: [][]byte{{1}}, Frame: []byte{1}, Remote: "x"}
	reply, conn, err := m.Open(t.Context(), open)
	if err != nil {
		t.Fatal(err)
	}
	if conn.RemoteAddr().String() != h.dial {
		t.Errorf("the broker connected to %v, want %v", conn.RemoteAddr(), h.dial)
	}
	conn.Close()
	if err := m.Close(t.Context(), Close{Stream: reply.Stream, Why: "done"}); err != nil {
		t.Fatal(err)
	}
	if _, conn, err = m.Open(t.Context(), open); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	c.Kill()
	if err := c.Wait(); err != nil {
		t.Errorf("Wait = %v", err)
	}
	if diff := cmp.Diff([]Close{{Stream: 1, Why: "done"}, {Stream: 2, Why: "the broker ended"}}, h.closed); diff != "" {
		t.Errorf("Close was called with (-want +got):\n%s", diff)
	}
}

// A stream to a service that is gone, or to another host, is closed once.
func TestBrokerThatCannotConnect(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().String()
	l.Close()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	tests := []struct {
		name string
		h    *recorder
		code sft.Code
		want Close
	}{
		{"a service that is gone", &recorder{dial: gone}, sft.Unavailable, Close{Stream: 1, Why: "the service could not be reached"}},
		{"another host", &recorder{dial: "192.0.2.1:3389"}, sft.Internal, Close{Stream: 1, Why: "it could not be handed over"}},
		{"no address", &recorder{}, sft.Internal, Close{Stream: 1, Why: "it could not be handed over"}},
		{"a file", &recorder{file: read}, sft.Internal, Close{Stream: 1, Why: "it could not be handed over"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, m, _ := both(t, tt.h)
			_, conn, err := m.Open(t.Context(), Open{Certificates: [][]byte{{1}}, Frame: []byte{1}, Remote: "x"})
			if conn != nil || sft.CodeOf(err) != tt.code {
				t.Errorf("Open = %v, %v, want %s", conn, err, tt.code)
			}
			c.Kill()
			c.Wait()
			if got := tt.h.closed; !slices.Equal(got, []Close{tt.want}) {
				t.Errorf("Close was called with %+v, want %+v", got, tt.want)
			}
		})
	}
}

// The broker believes its monitor, but connects to no other host for it.
func TestBrokerStaysOnTheHost(t *testing.T) {
	monitor, broker := pipes(t)
	defer monitor.close()
	closed := make(chan Close, 1)
	go func() {
		for {
			b, err := monitor.receive()
			if err != nil {
				return
			}
			r, err := decodeCall(b)
			if err != nil {
				t.Error(err)
			}
			a := answer{}
			switch {
			case r.Open != nil:
				a.Open = &OpenReply{Stream: 9, Reply: []byte("{}"), Dial: "192.0.2.1:3389"}
			case r.Close != nil:
				closed <- *r.Close
			case r.Ready != nil:
				continue
			}
			monitor.send(message{ID: r.ID, Answer: &a}, nil)
		}
	}()
	m, err := newMonitor(broker, Ready{Layers: []Layer{}}, nil, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	if _, conn, err := m.Open(t.Context(), Open{Certificates: [][]byte{{1}}, Frame: []byte{1}, Remote: "x"}); conn != nil || err == nil || !strings.Contains(err.Error(), "is no address and port on loopback") {
		t.Errorf("Open = %v, %v", conn, err)
	}
	if got := <-closed; got.Stream != 9 {
		t.Errorf("stream %d was closed, want 9", got.Stream)
	}
}

// Whatever is wrong with a broker over pipes, it is killed, and the reason told.
func TestBrokerOverPipesIsKilled(t *testing.T) {
	raw := func(s string) func(*Child, *pipe) { return func(_ *Child, p *pipe) { p.sendRaw([]byte(s)) } }
	tests := []struct {
		name string
		do   func(*Child, *pipe)
		want string
	}{
		{"nonsense", raw("\x03\x00\x00\x00GET"), "broker was killed: it sent not a request: invalid character 'G' looking for beginning of value"},
		{"a length over the cap", raw("\x01\x00\x03\x00"), "broker was killed: it sent a message over the cap of 196608 bytes"},
		{"a message without its end", func(_ *Child, p *pipe) { p.sendRaw([]byte("\x09\x00\x00\x00{")); p.w.Close() }, "broker ended: killed"},
		{"ready again", func(_ *Child, p *pipe) { p.send(call{Request: Request{Ready: &Ready{}}}, nil) }, "broker was killed: it sent ready a second time"},
		{"a stream that is not open", func(_ *Child, p *pipe) { p.send(call{ID: 1, Request: Request{Close: &Close{Stream: 9}}}, nil) }, "broker was killed: it sent close of stream 9, which is not open"},
		{"no reading", func(c *Child, p *pipe) {
			c.ch.(*pipe).patience = 20 * time.Millisecond
			for c.End(1, strings.Repeat("x", maxText)) == nil {
			}
		}, "broker was killed: end stream of broker: write: i/o timeout"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := &mock{}
			cfg, broker := over(t, p)
			if err := broker.send(call{Request: Request{Ready: &Ready{}}}, nil); err != nil {
				t.Fatal(err)
			}
			c, err := Start(t.Context(), cfg, &recorder{})
			if err != nil {
				t.Fatal(err)
			}
			tt.do(c, broker)
			if err := c.Wait(); err == nil || err.Error() != tt.want {
				t.Errorf("Wait = %v, want %s", err, tt.want)
			}
		})
	}
}

// A broker that was seen not to be locked in is handed nothing, and killed.
func TestStartNamesWhatIsMissing(t *testing.T) {
	p := &mock{layer: errors.New("integrity: it is high")}
	cfg, broker := over(t, p)
	if err := broker.send(call{Request: Request{Ready: &Ready{}}}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), cfg, &recorder{}); err == nil || err.Error() != "start broker: integrity: it is high" {
		t.Errorf("Start = %v", err)
	}
	if b, err := broker.receive(); err == nil {
		t.Errorf("it was told %q", b)
	}
}

// The broker takes one address to listen on, and no socket in its place.
func TestBrokerTakesOneAddress(t *testing.T) {
	c, m, _ := both(t, &recorder{})
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	if err := c.Configure(Configuration{}, read); err == nil || !strings.Contains(err.Error(), "a listener, where the broker listens itself") {
		t.Errorf("Configure with a file = %v", err)
	}
	for range 2 {
		if err := c.Configure(Configuration{Listen: "127.0.0.1:0"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	l := (<-m.Commands()).Listener
	defer l.Close()
	if err := c.Wait(); err == nil || err.Error() != "broker ended: exit status 1" {
		t.Errorf("Wait = %v: it listens twice", err)
	}
}
