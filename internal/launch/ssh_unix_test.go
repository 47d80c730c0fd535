//go:build unix

package launch

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sft/internal/loopback"
)

// TestRunSSH checks what is made of how ssh ends, and that it ends with what
// ends us, but not by Ctrl-C, which it gets itself.
func TestRunSSH(t *testing.T) {
	nothing := func(int) error { return nil }
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "exit 255": 255, "kill -KILL $$": 128 + 9} {
		if got, err := RunSSH(t.Context(), "/bin/sh", []string{"-c", script}, nothing); got != want || err != nil {
			t.Errorf("%s: %d, %v, want %d", script, got, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	got, err := RunSSH(ctx, "/bin/sh", []string{"-c", "exec sleep 60"}, func(int) error { cancel(); return nil })
	if got != 128+int(syscall.SIGTERM) || err != nil {
		t.Errorf("ended from outside: %d, %v", got, err)
	}
	no := errors.New("no")
	if _, err := RunSSH(t.Context(), "/bin/sh", []string{"-c", "exec sleep 60"}, func(int) error { return no }); err != no {
		t.Errorf("one that may not start: %v", err)
	}
	if _, err := RunSSH(t.Context(), "/nonexistent/ssh", nil, nothing); err == nil {
		t.Error("nothing was started, and nothing said")
	}
	got, err = RunSSH(t.Context(), "/bin/sh", []string{"-c", "sleep 0.2; exit 3"}, func(int) error {
		return syscall.Kill(os.Getpid(), syscall.SIGINT) // as the terminal does
	})
	if got != 3 || err != nil {
		t.Errorf("Ctrl-C: %d, %v", got, err)
	}
}

// TestRelay checks that bytes and the end of each way get through, and that a
// way which cannot be made closes the socket and is told.
func TestRelay(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { // answers at the end of what it is told
				b, _ := io.ReadAll(c)
				c.Write(b)
				c.Close()
			}()
		}
	}()
	l, err := loopback.ListenApart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("gone")
	var broken atomic.Bool
	told := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		Relay(t.Context(), l, func(context.Context) (net.Conn, error) {
			if broken.Load() {
				return nil, gone
			}
			return net.Dial("tcp", echo.Addr().String())
		}, func(err error) { told <- err })
		close(ended)
	}()
	talk := func() string {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, "hello")
		c.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(c)
		return string(b)
	}
	if got := talk(); got != "hello" {
		t.Errorf("got %q", got)
	}
	broken.Store(true)
	if got := talk(); got != "" || <-told != gone {
		t.Errorf("got %q from nowhere", got)
	}
	l.Close()
	<-ended
}
