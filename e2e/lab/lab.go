//go:build linux

package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"
)

// Address is where the program itself is, as the hosts see it. Hosts follow
// it: 10.77.0.2, 10.77.0.3 and so on. Nothing leads out of the lab.
const Address = "10.77.0.1"

// patience is how long the lab waits for something that should take less
// than a second. It is long because a busy machine is not a failed test.
const patience = time.Minute

// A T is told of what goes wrong: a *testing.T, or what Script hands out.
type T interface {
	Helper()
	Cleanup(func())
	Context() context.Context
	Failed() bool
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Skipf(format string, args ...any)
}

// A Lab is a set of hosts on one network.
type Lab struct {
	t   T
	dir string // logs

	mu    sync.Mutex
	hosts []*Host
}

// up is held by the lab that is up: there is one network, so a second lab
// waits for the end of the first.
var up sync.Mutex

// New returns an empty lab, which ends with the test. Logs go to dir, or to
// the lab's own scratch space if dir is empty; those of a failed test are
// shown.
func New(t T, dir string) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("SKIPPED: hosts in namespaces need root; run the tests with sudo")
	}
	if !inside {
		t.Fatalf("the program is not in a lab; call lab.Main first, as the package comment shows")
	}
	up.Lock()
	t.Cleanup(up.Unlock)
	var err error
	if dir == "" {
		dir, err = os.MkdirTemp(scratch, "log-")
	} else {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		t.Fatalf("make the folder for logs: %v", err)
	}
	l := &Lab{t: t, dir: dir}
	t.Cleanup(func() {
		if t.Failed() {
			l.showLogs()
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, h := range l.hosts {
			h.Kill()
		}
		l.hosts = nil
		if err := l.tellNames(); err != nil {
			t.Logf("forget the hosts: %v", err)
		}
	})
	return l
}

// Dir is where the logs are.
func (l *Lab) Dir() string { return l.dir }

// showLogs writes the end of every log to the test's own.
func (l *Lab) showLogs() {
	logs, _ := filepath.Glob(filepath.Join(l.dir, "*.log"))
	for _, log := range logs {
		b, _ := os.ReadFile(log)
		lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
		lines = lines[max(0, len(lines)-25):]
		l.t.Logf("== %s\n%s", filepath.Base(log), strings.Join(lines, "\n"))
	}
}

// hostsFile returns the text of /etc/hosts: every host knows every other.
func hostsFile(hosts []*Host) string {
	var b strings.Builder
	fmt.Fprintf(&b, "127.0.0.1 localhost\n::1 localhost ip6-localhost\n%s lab\n", Address)
	for _, h := range hosts {
		fmt.Fprintf(&b, "%s %s\n", h.ip, h.name)
	}
	return b.String()
}

// ip runs commands of ip(8) in one batch: in a host's network namespace, or
// with nil in the lab's own.
func ip(h *Host, commands ...string) error {
	cmd := exec.Command("ip", "-batch", "-")
	if h != nil {
		cmd = exec.Command("nsenter", "-t", fmt.Sprint(h.pid), "-n", "ip", "-batch", "-")
	}
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(commands, "; "), err, bytes.TrimSpace(out))
	}
	return nil
}

// poll calls ready until it says yes, or fails the test with what is wrong.
func poll(t T, wrong string, ready func() bool) {
	t.Helper()
	pause := time.Millisecond
	for begin := time.Now(); !ready(); {
		if t.Context().Err() != nil || time.Since(begin) > patience {
			t.Fatalf("%s (waited %v)", wrong, time.Since(begin).Round(time.Millisecond))
		}
		time.Sleep(pause)
		pause = min(2*pause, 20*time.Millisecond)
	}
}

// Script calls fn with a T that is not a test, for programs that use the lab.
// It returns the exit status: 0, or 1 after Fatalf. What fn left to Cleanup is
// done before Script returns, also when fn panics or ctx ends.
func Script(ctx context.Context, out io.Writer, fn func(T)) (status int) {
	ctx, cancel := context.WithCancel(ctx)
	s := &script{ctx: ctx, out: out}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer s.clean()
		defer cancel()
		defer func() {
			if p := recover(); p != nil {
				s.failed = true
				fmt.Fprintf(out, "panic: %v\n", p)
				buf := make([]byte, 16<<10)
				out.Write(buf[:runtime.Stack(buf, false)])
			}
		}()
		fn(s)
	}()
	<-done
	if s.failed {
		return 1
	}
	return 0
}

// A script is the T of Script.
type script struct {
	ctx    context.Context
	out    io.Writer
	failed bool

	mu       sync.Mutex
	cleanups []func()
}

func (s *script) Helper()                    {}
func (s *script) Context() context.Context   { return s.ctx }
func (s *script) Failed() bool               { return s.failed }
func (s *script) Logf(f string, args ...any) { fmt.Fprintf(s.out, f+"\n", args...) }
func (s *script) Skipf(f string, args ...any) {
	s.Fatalf(f, args...)
}

func (s *script) Cleanup(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, fn)
}

func (s *script) Fatalf(f string, args ...any) {
	s.failed = true
	s.Logf(f, args...)
	runtime.Goexit()
}

// clean does the clean-ups, last first.
func (s *script) clean() {
	for {
		s.mu.Lock()
		n := len(s.cleanups)
		if n == 0 {
			s.mu.Unlock()
			return
		}
		fn := s.cleanups[n-1]
		s.cleanups = s.cleanups[:n-1]
		s.mu.Unlock()
		fn()
	}
}
