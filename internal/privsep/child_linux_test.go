package privsep

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sft"
)

// hostile is a broker that was taken over after the monitor looked at it. The
// sandbox holds; what is left to it is the channel.
func hostile(what string) error {
	ch, err := enterBut("")
	if err != nil {
		return err
	}
	sign := call{ID: 1, Request: Request{Sign: &Sign{}}}
	raw := func(s string) { ch.sendRaw([]byte(s), nil) }
	switch what {
	case "sign before ready":
		ch.send(sign, nil)
	case "nonsense before ready":
		raw("GET / HTTP/1.1")
	}
	if err := ch.send(call{Request: Request{Ready: &Ready{}}}, nil); err != nil {
		return err
	}
	if what == "deaf" {
		time.Sleep(time.Minute)
	}
	// The monitor looks at what is open; wait until it has.
	if _, _, err := ch.receiveFile(); err != nil {
		return err
	}
	switch what {
	case "nonsense":
		raw("\x00\x01")
	case "nothing":
		raw("")
	case "an unknown kind":
		raw(`{"id":1,"run":{"argv":["sh"]}}`)
	case "two kinds":
		raw(`{"id":1,"close":{"stream":1,"bytes_in":0,"bytes_out":0,"why":""},"report":{}}`)
	case "31 bytes":
		raw(`{"id":1,"sign":{"digest":"` + strings.Repeat("00", 31) + `"}}`)
	case "oversize":
		ch.sendRaw(bytes.Repeat([]byte(" "), MaxMessage+1), nil)
	case "far oversize":
		ch.sendRaw(bytes.Repeat([]byte(" "), 3*MaxMessage), nil)
	case "ready again":
		ch.send(call{Request: Request{Ready: &Ready{}}}, nil)
	case "a stream that is not open":
		ch.send(call{ID: 1, Request: Request{Close: &Close{Stream: 99}}}, nil)
	case "one stream twice":
		ch.send(call{ID: 1, Request: Request{Open: &Open{Certificates: [][]byte{{1}}, Frame: []byte{1}, Remote: "x"}}}, nil)
		ch.receiveFile()
		for range 2 {
			ch.send(call{ID: 1, Request: Request{Close: &Close{Stream: 7}}}, nil)
		}
	case "a flood":
		for range maxCalls + 1 {
			ch.send(sign, nil)
		}
	case "a file":
		ch.sendRaw([]byte("{}"), unix.UnixRights(2))
	case "no reading": // and not so much that it is a flood
		for range maxCalls / 2 {
			ch.send(sign, nil)
		}
	case "no reading, no end":
		for ch.send(sign, nil) == nil {
		}
	case "a closed channel":
		ch.close()
	case "much to say":
		line := strings.Repeat("x", 100<<10) + "\x1b[2J\n"
		for range 100 {
			os.Stderr.WriteString(line)
		}
		for range 5000 {
			os.Stderr.WriteString("again\n")
		}
		return errors.New("done")
	}
	time.Sleep(time.Minute)
	return nil
}

func TestHostileBrokerIsKilled(t *testing.T) {
	tests := []struct {
		name string
		want string
	}{
		{"nonsense", `broker was killed: it sent not a request: invalid character '\x00' looking for beginning of value`},
		{"nothing", "broker ended: signal: killed"},
		{"an unknown kind", "broker was killed: it sent a request with 0 kinds instead of one"},
		{"two kinds", "broker was killed: it sent a request with 2 kinds instead of one"},
		{"31 bytes", "broker was killed: it sent not a request: a digest of 62 hexadecimal digits instead of 64"},
		{"oversize", "broker was killed: it sent a message over the cap of 196608 bytes"},
		{"far oversize", "broker was killed: it sent a message over the cap of 196608 bytes"},
		{"ready again", "broker was killed: it sent ready a second time"},
		{"a stream that is not open", "broker was killed: it sent close of stream 99, which is not open"},
		{"one stream twice", "broker was killed: it sent close of stream 7, which is not open"},
		{"a flood", "broker was killed: it sent more than 128 requests to sign at once"},
		{"a file", "broker was killed: it sent a message with files beside it"},
		{"a closed channel", "broker ended: signal: killed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := &testHandler{
				sign: func(ctx context.Context, _ [32]byte) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() },
				open: socketFor(7),
			}
			c := start(t, config(t, "hostile:"+tt.name), h)
			if err := c.End(1, "go"); err != nil {
				t.Fatal(err)
			}
			err := c.Wait()
			if err == nil || err.Error() != tt.want {
				t.Errorf("Wait = %v, want %s", err, tt.want)
			}
			if !gone(c.PID()) {
				t.Error("it lives on")
			}
		})
	}
}

// socketFor returns an Open that gives a socket as stream.
func socketFor(stream uint64) func(context.Context, Open) (OpenReply, *os.File, error) {
	return func(context.Context, Open) (OpenReply, *os.File, error) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return OpenReply{}, nil, err
		}
		unix.Close(pair[1])
		return OpenReply{Stream: stream, Reply: []byte("{}")}, os.NewFile(uintptr(pair[0]), "service"), nil
	}
}

// A broker that asks and does not read the answers holds up nobody for longer
// than the deadline.
func TestBrokerThatDoesNotRead(t *testing.T) {
	h := &testHandler{sign: func(context.Context, [32]byte) ([]byte, error) { return make([]byte, MaxMessage/2), nil }}
	c := start(t, config(t, "hostile:no reading"), h)
	if err := c.End(1, "go"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := c.Wait(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Wait = %v", err)
	}
	if took := time.Since(began); took > 3*writeTimeout {
		t.Errorf("it took %v", took)
	}
}

// One that never stops asking is killed for the one reason or the other, before
// it has filled the monitor.
func TestBrokerThatDoesNotStop(t *testing.T) {
	h := &testHandler{sign: func(context.Context, [32]byte) ([]byte, error) { return make([]byte, 72), nil }}
	c := start(t, config(t, "hostile:no reading, no end"), h)
	if err := c.End(1, "go"); err != nil {
		t.Fatal(err)
	}
	most := 0
	poll(t, "the broker is killed", func() bool {
		most = max(most, runtime.NumGoroutine())
		select {
		case <-c.Done():
			return true
		default:
			return false
		}
	})
	if err := c.Wait(); err == nil || !strings.HasPrefix(err.Error(), "broker was killed: ") {
		t.Errorf("Wait = %v", err)
	}
	if most > 9*maxCalls {
		t.Errorf("there were %d goroutines", most)
	}
}

func TestLogOfABrokerIsCapped(t *testing.T) {
	var b bytes.Buffer
	var mu sync.Mutex
	cfg := config(t, "hostile:much to say")
	cfg.Log = slog.New(slog.NewJSONHandler(lockedWriter{&mu, &b}, nil))
	c := start(t, cfg, &testHandler{})
	if err := c.End(1, "go"); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err == nil || err.Error() != "broker ended: exit status 1: done" {
		t.Errorf("Wait = %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	lines := 0
	for line := range bytes.Lines(b.Bytes()) {
		if lines++; len(line) > 1300 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
	if lines < 100 || lines > 1000 {
		t.Errorf("%d lines were logged", lines)
	}
}

// A lockedWriter is a writer for several goroutines.
type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// Every stream that was granted is closed once, also when its broker is killed
// and while an Open is running.
func TestStreamsEndWithTheBroker(t *testing.T) {
	var stream uint64
	var mu sync.Mutex
	slow := make(chan struct{})
	h := &testHandler{}
	h.open = func(ctx context.Context, o Open) (OpenReply, *os.File, error) {
		mu.Lock()
		stream++
		s := stream
		mu.Unlock()
		if s == 3 { // granted when the broker has gone
			close(slow)
			<-ctx.Done()
		}
		return socketFor(s)(ctx, o)
	}
	c := start(t, config(t, "serve:opens"), h)
	<-slow
	c.Kill()
	if err := c.Wait(); err != nil {
		t.Errorf("Wait = %v, want nil: it was asked for", err)
	}
	want := []Close{
		{Stream: 2, BytesIn: 5, Why: "it was done"},
		{Stream: 1, Why: "the broker ended"},
		{Stream: 3, Why: "the broker ended"},
	}
	if diff := cmp.Diff(want, h.closed); diff != "" {
		t.Errorf("Close was called with (-want +got):\n%s", diff)
	}
	if err := c.End(1, "late"); err == nil {
		t.Error("End of a broker that has ended succeeds")
	}
}

// What the monitor grants and the broker cannot use is closed by itself.
func TestStreamsThatNobodyTook(t *testing.T) {
	tests := []struct {
		role string
		want string
	}{
		{"serve:gone", "the client left before it was open"},
		{"serve:full", "the broker has too many files open"},
	}
	for _, tt := range tests {
		t.Run(tt.want, func(t *testing.T) {
			var stream atomic.Uint64
			h := &testHandler{}
			h.open = func(ctx context.Context, o Open) (OpenReply, *os.File, error) {
				if tt.role == "serve:gone" {
					time.Sleep(100 * time.Millisecond) // longer than the broker waits
				}
				return socketFor(stream.Add(1))(ctx, o)
			}
			c := start(t, config(t, tt.role), h)
			closed := func() []Close {
				h.mu.Lock()
				defer h.mu.Unlock()
				return slices.Clone(h.closed)
			}
			poll(t, "a stream is closed", func() bool { return len(closed()) > 0 })
			if got, want := closed(), []Close{{Stream: stream.Load(), Why: tt.want}}; !slices.Equal(got, want) {
				t.Errorf("Close was called with %+v, want %+v", got, want)
			}
			if err := c.Shutdown(); err != nil {
				t.Fatal(err)
			}
			if err := c.Wait(); err != nil {
				t.Errorf("Wait = %v: it did not live on", err)
			}
		})
	}
}

// What a Handler does wrong stays with the monitor, and undoes what it opened.
func TestHandlerMistakes(t *testing.T) {
	tests := []struct {
		name   string
		reply  OpenReply
		socket bool
		err    error
		want   sft.Code
		closed []Close
	}{
		{"a refusal is passed on", OpenReply{}, false, &sft.Error{Code: sft.Denied, Msg: "no"}, sft.Denied, nil},
		{"another error is not", OpenReply{}, false, errors.New("secret"), sft.Internal, nil},
		{"a stream without a socket", OpenReply{Stream: 5, Reply: []byte("{}")}, false, nil, sft.Internal, []Close{{Stream: 5, Why: "it could not be handed over"}}},
		{"a socket without a stream", OpenReply{Reply: []byte("{}")}, true, nil, sft.Internal, nil},
		{"a reply that is not JSON", OpenReply{Stream: 5, Reply: []byte("{")}, true, nil, sft.Internal, []Close{{Stream: 5, Why: "it could not be handed over"}}},
		{"a reply over the frame's cap", OpenReply{Stream: 5, Reply: []byte(`"` + strings.Repeat("a", MaxFrame) + `"`)}, true, nil, sft.Internal, []Close{{Stream: 5, Why: "it could not be handed over"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := &testHandler{open: func(ctx context.Context, o Open) (OpenReply, *os.File, error) {
				if tt.socket {
					_, f, err := socketFor(1)(ctx, o)
					return tt.reply, f, err
				}
				return tt.reply, nil, tt.err
			}}
			c := start(t, config(t, "serve:one"), h)
			err := c.Wait()
			if want := fmt.Sprint("broker ended: exit status 1: refused: ", tt.want); err == nil || err.Error() != want {
				t.Errorf("Wait = %v, want %s", err, want)
			}
			if diff := cmp.Diff(tt.closed, h.closed); diff != "" {
				t.Errorf("Close was called with (-want +got):\n%s", diff)
			}
		})
	}
}

func TestShutdownAndContext(t *testing.T) {
	t.Run("a broker that was asked to end ends without a complaint", func(t *testing.T) {
		c := start(t, config(t, "serve:"), &testHandler{})
		if err := c.Shutdown(); err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); err != nil {
			t.Errorf("Wait = %v", err)
		}
	})
	t.Run("a broker ends with the context it was started in", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c, err := Start(ctx, config(t, "idle"), &testHandler{})
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := c.Wait(); err != nil {
			t.Errorf("Wait = %v", err)
		}
	})
	t.Run("a context that has ended starts nothing", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Start(ctx, config(t, "idle"), &testHandler{}); !errors.Is(err, context.Canceled) {
			t.Errorf("Start = %v", err)
		}
	})
	t.Run("a broker that somebody else killed is told of", func(t *testing.T) {
		c := start(t, config(t, "idle"), &testHandler{})
		if err := unix.Kill(c.PID(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); err == nil || err.Error() != "broker ended: signal: killed" {
			t.Errorf("Wait = %v", err)
		}
	})
	t.Run("a configuration over the cap is refused and hurts nobody", func(t *testing.T) {
		c := start(t, config(t, "idle"), &testHandler{})
		if err := c.Configure(Configuration{ClientCAs: [][]byte{make([]byte, MaxMessage)}}, nil); !errors.Is(err, errTooLong) {
			t.Errorf("Configure = %v", err)
		}
		if err := c.End(1, "still there"); err != nil || gone(c.PID()) {
			t.Errorf("End = %v", err)
		}
	})
}

// parent is a monitor, to be killed. It prints the number of its broker.
func parent(arg string) error {
	role, without, _ := strings.Cut(arg, "/")
	cfg := Config{UID: testID, GID: testID, Env: []string{roleVar + "=" + role, "SFT_TEST_PARENT=1", "GORACE=" + os.Getenv("GORACE")}}
	if without == "no signal" {
		cfg.birth = func(a *os.ProcAttr) { a.Sys.Pdeathsig = 0 }
	}
	c, err := Start(context.Background(), cfg, &testHandler{})
	if err != nil {
		return err
	}
	// Threads come and go in a monitor; the broker must not mind.
	for range 20 {
		done := make(chan struct{})
		go func() { runtime.LockOSThread(); close(done) }()
		<-done
	}
	time.Sleep(50 * time.Millisecond)
	fmt.Println(c.PID())
	return c.Wait()
}

func TestBrokerDiesWithItsMonitor(t *testing.T) {
	config(t, "")
	for name, role := range map[string]string{
		"by the kernel's signal, though it does not listen": "hostile:deaf",
		"by the end of the channel, without the signal":     "idle/no signal",
		"by both": "idle",
	} {
		t.Run(name, func(t *testing.T) {
			cmd, pid := startParent(t, role, nil)
			if gone(pid) {
				t.Fatal("the broker ended before its monitor")
			}
			cmd.Process.Kill()
			cmd.Wait()
			poll(t, "the broker ends", func() bool { return gone(pid) })
		})
	}
}

// startParent starts a monitor of its own, and returns its broker's number.
func startParent(t *testing.T, role string, attr *syscall.SysProcAttr) (*exec.Cmd, int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{roleVar + "=parent:" + role, "GORACE=" + os.Getenv("GORACE")}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = attr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return cmd, pid
}

// A service manager may give a monitor capabilities that are inherited. They
// end with it.
func TestBrokerInheritsNoCapabilities(t *testing.T) {
	config(t, "")
	_, pid := startParent(t, "idle", &syscall.SysProcAttr{AmbientCaps: []uintptr{unix.CAP_NET_BIND_SERVICE}})
	if gone(pid) { // the monitor looked, and would have killed it
		t.Error("the broker has ended")
	}
}

// Starting and killing brokers leaves no goroutine, no descriptor, no thread.
func TestNothingIsLeftOver(t *testing.T) {
	cycle := func() {
		c, err := Start(t.Context(), config(t, "idle"), &testHandler{})
		if err != nil {
			t.Fatal(err)
		}
		c.Kill()
		c.Wait()
	}
	count := func() [3]int {
		fds, _ := os.ReadDir("/proc/self/fd")
		threads, _ := os.ReadDir("/proc/self/task")
		return [3]int{runtime.NumGoroutine(), len(fds), len(threads)}
	}
	for range 3 { // what the runtime keeps
		cycle()
	}
	before := count()
	for range 50 {
		cycle()
	}
	var after [3]int
	poll(t, "as many goroutines, descriptors and threads as before", func() bool {
		after = count()
		return after[0] <= before[0] && after[1] <= before[1] && after[2] <= before[2]+5
	})
	t.Logf("goroutines, descriptors, threads: %v, then %v", before, after)
}
