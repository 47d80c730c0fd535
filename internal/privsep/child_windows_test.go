package privsep

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/windows"
)

// Where LocalService cannot be had, nothing is started, and the error says what
// is missing.
func TestStartRefusesWithoutTheAccount(t *testing.T) {
	if excused != nil {
		t.Skip("the tag winetest excuses the account")
	}
	c, err := Start(t.Context(), Config{Env: []string{roleVar + "=idle"}}, &recorder{})
	if err == nil {
		c.Kill()
		t.Fatal("Start took it")
	}
	if !strings.HasPrefix(err.Error(), "start broker: account: ") {
		t.Errorf("Start = %v", err)
	}
}

// A broker that somebody starts by hand ends itself.
func TestEnterRefusesOrdinaryRights(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVar+"=idle")
	out, err := cmd.CombinedOutput()
	if _, ok := errors.AsType[*exec.ExitError](err); !ok || !strings.HasPrefix(string(out), "the broker has rights: ") {
		t.Errorf("it ended with %v: %s", err, out)
	}
}

// What this system cannot do, and the tag excuses, is seen to be missing, and
// enough to refuse a broker, before it runs.
func TestMonitorRefusesWhatIsNotLockedIn(t *testing.T) {
	config(t, "")
	tests := []struct {
		name   string
		excuse []string
		alter  func(*plan)
		want   string // how the error begins, after "start broker: "
	}{
		{"another account", nil, nil, "account: it is S-1-5-21-"},
		{"high integrity", []string{"account"}, nil, "integrity: it is S-1-16-12288 instead of S-1-16-4096"},
		{"an administrator", excused, func(p *plan) { p.denied = nil }, "groups: S-"},
		{"privileges", excused, func(p *plan) { p.privileges = p.privileges[1:] }, "privileges: Se"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			defer func(e []string) { excused = e }(excused)
			cfg := config(t, "idle")
			cfg.alter = tt.alter
			excused = tt.excuse
			c, err := Start(t.Context(), cfg, &recorder{})
			if err == nil {
				c.Kill()
				t.Fatal("Start took it")
			}
			if got, want := err.Error(), "start broker: "+tt.want; !strings.HasPrefix(got, want) {
				t.Errorf("Start = %q, want %q…", got, want)
			}
		})
	}
}

func TestLayers(t *testing.T) {
	c := start(t, config(t, "idle"), &recorder{})
	ok := map[string]bool{}
	for _, l := range c.Layers() {
		ok[l.Name] = l.OK
	}
	for _, name := range []string{"groups", "privileges", "job"} {
		if !ok[name] {
			t.Errorf("layer %s is off: %+v", name, c.Layers())
		}
	}
	if len(ok) != 7 {
		t.Errorf("Layers = %+v", c.Layers())
	}
}

// A broker that ends by itself is told of, with its last words.
func TestBrokerThatEnds(t *testing.T) {
	if _, err := Start(t.Context(), config(t, "fail"), &recorder{}); err == nil || err.Error() != "start broker: it ended at once: the broker has no mind to" {
		t.Errorf("Start = %v", err)
	}
}

// Through a real broker: its own listener, its own connection to the service,
// signatures and closes over the pipes.
func TestTrafficThroughTheBroker(t *testing.T) {
	cfg := config(t, "serve")
	service, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	go func() {
		for {
			conn, err := service.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(conn, conn); conn.Close() }()
		}
	}()
	h := &recorder{dial: service.Addr().String()}
	c := start(t, cfg, h)
	front, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free
	if err != nil {
		t.Fatal(err)
	}
	address := front.Addr().String()
	front.Close()
	if err := c.Configure(Configuration{Listen: address}, nil); err != nil {
		t.Fatal(err)
	}
	const people, size = 20, 64 << 10
	var conn net.Conn
	poll(t, "the broker listens", func() bool { conn, err = net.Dial("tcp", address); return err == nil })
	for n := range people {
		data := make([]byte, size)
		rand.Read(data)
		go func() { conn.Write(data); conn.(*net.TCPConn).CloseWrite() }()
		if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d of %d bytes came back, %v", len(got), size, err)
		}
		conn.Close()
		if n == people-1 {
			break
		}
		if conn, err = net.Dial("tcp", address); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Shutdown(); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("Wait = %v", err)
	}
	want := []Close{}
	for s := range uint64(people) {
		want = append(want, Close{Stream: s + 1, BytesIn: size, BytesOut: size, Why: "done"})
	}
	slices.SortFunc(h.closed, func(a, b Close) int { return int(a.Stream) - int(b.Stream) })
	if diff := cmp.Diff(want, h.closed); diff != "" {
		t.Errorf("Close was called with (-want +got):\n%s", diff)
	}
}

// An address that is taken ends the broker, with a reason.
func TestBrokerThatCannotListen(t *testing.T) {
	cfg := config(t, "serve")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := start(t, cfg, &recorder{})
	if err := c.Configure(Configuration{Listen: l.Addr().String()}, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err == nil || !strings.HasPrefix(err.Error(), "broker ended: exit status 1: listen tcp "+l.Addr().String()) {
		t.Errorf("Wait = %v", err)
	}
}

// Nobody shares the broker's port, whatever options the other one sets.
func TestListenerIsExclusive(t *testing.T) {
	l, err := listenExclusive("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	on := 0
	raw.Control(func(fd uintptr) { on, err = windows.GetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, exclusive) })
	if err != nil || on == 0 {
		t.Errorf("SO_EXCLUSIVEADDRUSE = %d, %v", on, err)
	}
	for _, address := range []string{l.Addr().String(), fmt.Sprintf("0.0.0.0:%d", l.Addr().(*net.TCPAddr).Port)} {
		c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) {
				windows.SetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, windows.SO_REUSEADDR, 1)
			})
		}}
		if other, err := c.Listen(context.Background(), "tcp", address); err == nil {
			other.Close()
			t.Errorf("another one listens on %s beside %s", address, l.Addr())
		}
	}
}

// told is a Handler that hands on what a broker told.
type told struct {
	recorder
	frames chan string
}

func (h *told) Open(_ context.Context, o Open) (OpenReply, *os.File, error) {
	h.frames <- string(o.Frame)
	return OpenReply{Reply: []byte("{}")}, nil, nil
}

// A handle that can be inherited is not, unless it is one of the broker's three.
func TestBrokerInheritsNothingElse(t *testing.T) {
	config(t, "")
	inherit := windows.SecurityAttributes{InheritHandle: 1}
	inherit.Length = uint32(unsafe.Sizeof(inherit))
	var r, w windows.Handle
	for range 100 { // until it has a number that the broker has no handle for by itself
		if err := windows.CreatePipe(&r, &w, &inherit, 0); err != nil {
			t.Fatal(err)
		}
		defer windows.CloseHandle(r)
		defer windows.CloseHandle(w)
	}
	h := &told{frames: make(chan string, 1)}
	c := start(t, config(t, fmt.Sprintf("write:%d", w)), h)
	if err := c.Wait(); err == nil || err.Error() != "broker ended: exit status 0" {
		t.Errorf("Wait = %v", err)
	}
	if got, want := <-h.frames, windows.ERROR_INVALID_HANDLE.Error(); got != want {
		t.Errorf("it wrote to a handle of the monitor: %s, want %s", got, want)
	}
}

// The environment has what was given, and what sockets need.
func TestBrokerHasNoEnvironment(t *testing.T) {
	h := &told{frames: make(chan string, 1)}
	c := start(t, config(t, "environment"), h)
	c.Wait()
	got := strings.Fields(<-h.frames)
	for _, name := range got {
		if strings.HasPrefix(name, "WINE") { // of what loads it
			continue
		}
		if strings.Contains(strings.ToUpper(name), "PATH") || strings.Contains(name, "USER") {
			t.Errorf("the broker's environment is %v", got)
		}
	}
	if !slices.Contains(got, "SystemRoot") || !slices.Contains(got, roleVar) {
		t.Errorf("the broker's environment is %v", got)
	}
}

// Standard output was the channel, and printing to it does no harm.
func TestBrokerThatPrints(t *testing.T) {
	c := start(t, config(t, "noise"), &recorder{})
	if err := c.Shutdown(); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("Wait = %v", err)
	}
}

func TestHostileBrokerIsKilled(t *testing.T) {
	tests := []struct{ name, want string }{
		{"nonsense", "broker was killed: it sent not a request: invalid character 'G' looking for beginning of value"},
		{"a length over the cap", "broker was killed: it sent a message over the cap of 196608 bytes"},
		{"a closed channel", "broker ended: exit status 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := start(t, config(t, "hostile:"+tt.name), &recorder{})
			if err := c.End(1, "go"); err != nil {
				t.Fatal(err)
			}
			if err := c.Wait(); err == nil || err.Error() != tt.want {
				t.Errorf("Wait = %v, want %s", err, tt.want)
			}
			if !gone(c.PID()) {
				t.Error("it lives on")
			}
		})
	}
}

// A broker that does not read holds up its monitor for no longer than the
// deadline.
func TestBrokerThatDoesNotRead(t *testing.T) {
	c := start(t, config(t, "hostile:no reading"), &recorder{})
	var err error
	for err == nil {
		err = c.End(1, strings.Repeat("x", maxText))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("End = %v", err)
	}
	if err := c.Wait(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Wait = %v", err)
	}
}

// The broker ends with its monitor however that ends: by the job, though it
// does not listen to the channel.
func TestBrokerDiesWithItsMonitor(t *testing.T) {
	config(t, "")
	for _, role := range []string{"deaf", "idle"} {
		t.Run(role, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), roleVar+"=parent:"+role)
			cmd.Stderr = os.Stderr
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
			if err != nil || gone(pid) {
				t.Fatalf("the broker %q has ended before its monitor: %v", line, err)
			}
			cmd.Process.Kill()
			cmd.Wait()
			poll(t, "the broker ends", func() bool { return gone(pid) })
		})
	}
}

// Starting and killing brokers leaves no goroutine, and no handle
// where the system counts them.
func TestNothingIsLeftOver(t *testing.T) {
	config(t, "")
	cycle := func() {
		c, err := Start(t.Context(), config(t, "idle"), &recorder{})
		if err != nil {
			t.Fatal(err)
		}
		c.Kill()
		c.Wait()
	}
	count := func() [2]int {
		var n uint32
		windows.NewLazySystemDLL("kernel32.dll").NewProc("GetProcessHandleCount").Call(uintptr(windows.CurrentProcess()), uintptr(unsafe.Pointer(&n)))
		return [2]int{runtime.NumGoroutine(), int(n)}
	}
	for range 3 { // what the runtime keeps
		cycle()
	}
	before := count()
	for range 20 {
		cycle()
	}
	var after [2]int
	poll(t, "as many goroutines and handles as before", func() bool {
		after = count()
		return after[0] <= before[0] && after[1] <= before[1]+10
	})
	t.Logf("goroutines, handles: %v, then %v", before, after)
}
