//go:build unix

package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sft"
	"sft/internal/loopback"
)

// The test program itself is the RDP client of these tests: started with
// SFT_TEST_CLIENT it does what its arguments say.
func TestMain(m *testing.M) {
	if os.Getenv("SFT_TEST_CLIENT") == "mstsc" {
		os.Exit(pretendMSTSC(os.Args[1], turnOver, nil))
	}
	if os.Getenv("SFT_TEST_CLIENT") != "" {
		os.Exit(rdpClient(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// rdpClient reads the password from standard input and then does:
//
//	dial ADDR       connect, send "hello\n", read to the end of picture
//	twice ADDR      the same, two times
//	stay ADDR       the same, and wait to be ended
//	stubborn ADDR   the same, and ignore being asked to end
//	odd ADDR        the same, and end with status 9
//	fail ADDR       end with status 7
//	wait -          wait to be ended
//	file PATH       print the file
func rdpClient(args []string) int {
	password, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 99
	}
	fmt.Printf("password %q\n", password)
	do, at := args[0], args[1]
	if do == "fail" {
		fmt.Println("ERRCONNECT_TEST_FAILED")
		return 7
	}
	if do == "wait" {
		time.Sleep(time.Minute)
	}
	if do == "file" {
		b, err := os.ReadFile(at)
		fmt.Printf("%s%v\n", b, err)
		return 5
	}
	dial := func() bool {
		c, err := net.Dial("tcp", at)
		if err != nil {
			return false
		}
		defer c.Close()
		io.WriteString(c, "hello\n")
		c.(*net.TCPConn).CloseWrite()
		n, _ := io.Copy(io.Discard, c)
		return n > 0
	}
	if !dial() || do == "twice" && !dial() {
		return 98
	}
	if do == "odd" {
		return 9
	}
	if do == "stubborn" {
		signal.Ignore(syscall.SIGTERM)
	}
	if do == "stay" || do == "stubborn" {
		fmt.Println("staying")
		time.Sleep(time.Minute)
	}
	return 0
}

// A server is the far end of the streams of a test: it answers "hello\n" with
// a picture of the given size and ends.
type server struct {
	l       net.Listener
	picture int
	opened  int
	mu      sync.Mutex
}

func newServer(t *testing.T, picture int) *server {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s := &server{l: l, picture: picture}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(20 * time.Second))
				if b, err := io.ReadAll(c); err == nil && string(b) == "hello\n" {
					c.Write(make([]byte, s.picture))
				}
			}()
		}
	}()
	return s
}

func (s *server) open(context.Context, Ahead) (Way, error) {
	s.mu.Lock()
	s.opened++
	s.mu.Unlock()
	c, err := net.Dial("tcp", s.l.Addr().String())
	if err != nil {
		return Way{}, err
	}
	return Way{Stream: c.(*net.TCPConn), Secret: sft.NewSecret("s3cret")}, nil
}

func newDesktop(t *testing.T, s *server, do string) (*Desktop, *notes, *bytes.Buffer) {
	t.Helper()
	t.Setenv("SFT_TEST_CLIENT", "1")
	l, err := loopback.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first, err := s.open(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tgt := target
	tgt.Addr = l.Addr()
	said, out := new(notes), new(bytes.Buffer)
	return &Desktop{Listener: l, First: Ready(first), Open: s.open, Final: func(error) bool { return false },
		Program: &Program{Name: "helper", path: self, args: []string{do, "{address}"}}, Target: tgt,
		Secret: sft.NewSecret("s3cret"), RunBase: filepath.Join(t.TempDir(), "run"), Output: out, Say: said.add}, said, out
}

func TestDesktop(t *testing.T) {
	tests := []struct {
		name    string
		do      string
		picture int
		opened  int
		err     string
		said    []string
	}{
		{"a session that was shown is a success", "dial", shown, 1, "", nil},
		{"a second socket gets a stream of its own", "twice", shown, 2, "", nil},
		{"a client that ends before anything was shown", "fail", 0, 1,
			"no session on web01: helper ended with status 7: ERRCONNECT_TEST_FAILED", nil},
		{"a server that shows nothing", "dial", 100, 1, "no session on web01: helper ended with status 0: it said \"password \\\"[secret]\\\\n\\\"\"", nil},
		{"an odd status after a session is told, and no failure", "odd", shown, 1, "", []string{"helper ended with status 9: it said \"password \\\"[secret]\\\\n\\\"\""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t, tt.picture)
			d, said, out := newDesktop(t, s, tt.do)
			err := d.Run(t.Context())
			if got := fmt.Sprint(err); got != tt.err && (err != nil || tt.err != "") {
				t.Errorf("Run = %v, want %q", err, tt.err)
			}
			if !slices.Equal(said.all(), tt.said) {
				t.Errorf("said %q, want %q", said.all(), tt.said)
			}
			if s.opened != tt.opened {
				t.Errorf("%d streams were opened, want %d", s.opened, tt.opened)
			}
			if !strings.HasPrefix(out.String(), "password \"s3cret\\n\"\n") {
				t.Errorf("the client said %q", out)
			}
			if _, err := net.Dial("tcp", d.Target.Addr.String()); err == nil {
				t.Error("the port is still open")
			}
		})
	}
}

func TestTheEndOfTheContextEndsTheClient(t *testing.T) {
	for _, do := range []string{"stay", "stubborn"} {
		t.Run(do, func(t *testing.T) {
			s := newServer(t, shown)
			d, _, _ := newDesktop(t, s, do)
			ctx, cancel := context.WithCancel(t.Context())
			seen := make(chan struct{})
			d.Output = writerFunc(func(b []byte) {
				if bytes.Contains(b, []byte("staying")) {
					close(seen)
				}
			})
			go func() { <-seen; cancel() }()
			begun := time.Now()
			if err := d.Run(ctx); err != nil {
				t.Errorf("Run = %v, want nil after a session", err)
			}
			if took := time.Since(begun); took > 2*killAfter {
				t.Errorf("it took %v", took)
			}
		})
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

func TestEstablished(t *testing.T) {
	tests := []struct {
		name            string
		freeRDP, status int
		shown           bool
		longest         time.Duration
		want            bool
	}{
		{"a wrong certificate", 2, 143, false, 0, false},
		{"a desktop", 2, 0, true, time.Second, true},
		{"a desktop that we ended", 2, -1, true, time.Second, true},
		{"a connection that failed after much talk", 2, 131, true, time.Second, false},
		{"a session that broke and could not be had back", 2, 131, true, time.Minute, true},
		{"another program's statuses mean nothing to us", 0, 131, true, time.Second, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := Desktop{Program: &Program{freeRDP: tt.freeRDP}}
			d.shown.Store(tt.shown)
			d.longest.Store(int64(tt.longest))
			if got := d.established(&process{status: tt.status}); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestConnectionFileIsPrivateAndRemoved(t *testing.T) {
	s := newServer(t, 0)
	d, _, out := newDesktop(t, s, "file")
	d.Program.args = []string{"file", "{file}"}
	d.Run(t.Context())
	if !strings.Contains(out.String(), "username:s:alice\r\n") || strings.Contains(strings.SplitN(out.String(), "\n", 2)[1], "s3cret") {
		t.Errorf("the client read %q", out)
	}
	left, err := filepath.Glob(filepath.Join(d.RunBase, runPrefix+"*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestARefusedStreamThatIsFinalEndsTheSession(t *testing.T) {
	s := newServer(t, shown)
	d, said, _ := newDesktop(t, s, "twice")
	denied := &sft.Error{Code: sft.Denied, Msg: "alice may not sign in any more"}
	d.Open = func(context.Context, Ahead) (Way, error) { return Way{}, denied }
	d.Final = func(err error) bool { return errors.Is(err, denied) }
	d.Program.args[0] = "stay"
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() { // the client's second socket
		for !d.shown.Load() && ctx.Err() == nil {
			time.Sleep(5 * time.Millisecond)
		}
		if c, err := net.Dial("tcp", d.Target.Addr.String()); err == nil {
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	if err := d.Run(ctx); err != nil || ctx.Err() != nil {
		t.Errorf("Run = %v (%v), want nil after a session", err, ctx.Err())
	}
	if got, want := said.all(), []string{denied.Msg}; !slices.Equal(got, want) {
		t.Errorf("said %q, want %q", got, want)
	}
}

func TestALaterSocketWaitsForAServerThatIsAway(t *testing.T) {
	s := newServer(t, shown)
	d, said, _ := newDesktop(t, s, "twice")
	away := &sft.Error{Code: sft.Unavailable, Msg: "no answer from the broker of web01"}
	tries := 0
	d.Open = func(ctx context.Context, _ Ahead) (Way, error) {
		if tries++; tries < 3 {
			return Way{}, away
		}
		return s.open(ctx, nil)
	}
	if err := d.Run(t.Context()); err != nil || tries != 3 {
		t.Errorf("Run = %v after %d tries, want nil after 3", err, tries)
	}
	if got, want := said.all(), []string{away.Msg}; !slices.Equal(got, want) {
		t.Errorf("said %q, want %q once", got, want)
	}
}

// TestANewPasswordStartsTheClientAnew has the client come back for a second
// socket when the host's password is another: a client that knows the old one
// must not meet the server with it.
func TestANewPasswordStartsTheClientAnew(t *testing.T) {
	s := newServer(t, shown)
	d, said, out := newDesktop(t, s, "twice")
	d.Open = func(ctx context.Context, _ Ahead) (Way, error) {
		w, err := s.open(ctx, nil)
		w.Secret = sft.NewSecret("another")
		return w, err
	}
	if err := d.Run(t.Context()); err != nil {
		t.Errorf("Run = %v", err)
	}
	if got, want := said.all(), []string{"the server has set a new password; starting helper anew"}; !slices.Equal(got, want) {
		t.Errorf("said %q, want %q", got, want)
	}
	if got, want := out.String(), "password \"s3cret\\n\"\npassword \"another\\n\"\n"; got != want {
		t.Errorf("the clients said %q, want %q", got, want)
	}
	if s.opened != 3 {
		t.Errorf("%d streams were opened, want 3: each client's two, less the one that was handed on", s.opened)
	}
}

func TestNoLaunchServesUntilTheContextEnds(t *testing.T) {
	s := newServer(t, shown)
	d, _, _ := newDesktop(t, s, "")
	d.Program = nil
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		c, err := net.Dial("tcp", d.Target.Addr.String())
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "hello\n")
		c.(*net.TCPConn).CloseWrite() // an end of one way is no end of the other
		if n, err := io.Copy(io.Discard, c); n != shown || err != nil {
			t.Errorf("received %d bytes, %v, want %d", n, err, shown)
		}
	}()
	if err := d.Run(ctx); err != nil {
		t.Errorf("Run = %v, want nil after a session", err)
	}
}

func TestASecretOfTwoLinesIsNotHandedOver(t *testing.T) {
	d, _, out := newDesktop(t, newServer(t, 0), "dial")
	d.Secret = sft.NewSecret("one\ntwo")
	if err := d.Run(t.Context()); sft.CodeOf(err) != sft.Internal || out.Len() != 0 {
		t.Errorf("Run = %v with output %q, want a refusal", err, out)
	}
}

func TestRunDirOfAKilledProcessIsSwept(t *testing.T) {
	base := filepath.Join(t.TempDir(), "run")
	alive, err := NewRunDir(base, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	dead, err := NewRunDir(base, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	dead.lock.Release() // as the kernel does
	next, err := NewRunDir(base, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead process's folder is still there: %v", err)
	}
	for _, d := range []*RunDir{alive, next} {
		if _, err := os.Stat(d.Path); err != nil {
			t.Error(err)
		}
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
	}
}

func TestBrowser(t *testing.T) {
	dir := t.TempDir()
	script, out := filepath.Join(dir, "b"), filepath.Join(dir, "out")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nprintf '%s\\n' \"$@\" >"+out+".new\nmv "+out+".new "+out+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	const url = "https://p.example/authorize?a=1&b=$(touch x);'"
	tests := []struct{ name, command, want string }{
		{"a path", script, url + "\n"},
		{"a path with arguments and a place for the URL", script + " --new 'x %s' y", "--new\nx " + url + "\ny\n"},
		{"the first that there is", filepath.Join(dir, "none") + ":" + script, url + "\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			os.Remove(out)
			if err := Browser(tt.command, url); err != nil {
				t.Fatal(err)
			}
			var got []byte
			for end := time.Now().Add(10 * time.Second); got == nil && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				got, _ = os.ReadFile(out)
			}
			if string(got) != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	if err := Browser(filepath.Join(dir, "none"), url); err == nil {
		t.Error("a program that is not there was started")
	}
}
