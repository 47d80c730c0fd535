package privsep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/windows"
)

// roleVar in the environment makes the test binary play another program.
const roleVar = "SFT_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		os.Exit(play(role))
	}
	os.Exit(m.Run())
}

// play is main in the processes that the tests start.
func play(role string) int {
	kind, arg, _ := strings.Cut(role, ":")
	run, ok := map[string]func(string) error{
		"idle": idle, "deaf": deaf, "serve": serve, "write": writeTo, "noise": noise, "fail": failing, "hostile": hostile, "parent": parent, "environment": environment,
	}[kind]
	if !ok {
		fmt.Fprintln(os.Stderr, "unknown role", role)
		return 2
	}
	if err := run(arg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// idle is a broker that does nothing, until its monitor ends.
func idle(string) error {
	m, err := Enter()
	if err != nil {
		return err
	}
	for range m.Commands() {
	}
	return nil
}

// deaf is a broker that does not listen to its monitor, nor to its end.
func deaf(string) error {
	ch, err := enter()
	if err != nil {
		return err
	}
	if err := ch.send(call{Request: Request{Ready: &Ready{}}}, nil); err != nil {
		return err
	}
	time.Sleep(time.Minute)
	return nil
}

// failing is a broker that ends at once.
func failing(string) error { return errors.New("the broker has no mind to") }

// noise is a broker that prints, where the channel was.
func noise(string) error {
	m, err := Enter()
	if err != nil {
		return err
	}
	fmt.Println("not a message")
	os.Stdout.WriteString("nor this")
	for c := range m.Commands() {
		if c.Shutdown {
			return nil
		}
	}
	return nil
}

// hostile is a broker that was taken over after the monitor looked at it.
func hostile(what string) error {
	ch, err := enter()
	if err != nil {
		return err
	}
	if err := ch.send(call{Request: Request{Ready: &Ready{}}}, nil); err != nil {
		return err
	}
	if what == "no reading" {
		time.Sleep(time.Minute)
	}
	if _, err := ch.receive(); err != nil {
		return err
	}
	switch what {
	case "nonsense":
		ch.sendRaw([]byte("\x03\x00\x00\x00GET"))
	case "a length over the cap":
		ch.sendRaw([]byte("\xff\xff\xff\xff"))
	case "a closed channel":
		ch.close()
	}
	time.Sleep(time.Minute)
	return nil
}

// tell sends what a broker found out as the frame of an Open.
func tell(m *Monitor, found string) error {
	_, _, err := m.Open(context.Background(), Open{Certificates: [][]byte{{0}}, Frame: []byte(found), Remote: "x"})
	return err
}

// writeTo is a broker that writes to a handle that it was not given.
func writeTo(handle string) error {
	h, err := strconv.ParseUint(handle, 10, 64)
	if err != nil {
		return err
	}
	m, err := Enter()
	if err != nil {
		return err
	}
	var n uint32
	err = windows.WriteFile(windows.Handle(h), []byte("leaked"), &n, nil)
	return tell(m, fmt.Sprint(err))
}

// environment is a broker that tells its environment.
func environment(string) error {
	m, err := Enter()
	if err != nil {
		return err
	}
	names := []string{}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		names = append(names, name)
	}
	return tell(m, strings.Join(names, " "))
}

// serve is a small broker: what it is sent on a connection it sends on.
func serve(string) error {
	m, err := Enter()
	if err != nil {
		return err
	}
	var streams sync.WaitGroup
	var listener net.Listener
	for c := range m.Commands() {
		switch {
		case c.Listener != nil:
			listener = c.Listener
			streams.Go(func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					streams.Go(func() {
						if err := proxy(m, conn.(*net.TCPConn)); err != nil {
							fmt.Fprintln(os.Stderr, "proxy:", err)
						}
					})
				}
			})
		case c.Shutdown:
			listener.Close()
			streams.Wait()
			return m.Report(context.Background(), Report{Opened: 1})
		}
	}
	return nil
}

// proxy serves one connection.
func proxy(m *Monitor, conn *net.TCPConn) error {
	defer conn.Close()
	if _, err := m.Sign(context.Background(), [32]byte{1}); err != nil {
		return err
	}
	reply, service, err := m.Open(context.Background(), Open{Certificates: [][]byte{{1}}, Frame: []byte{1}, Remote: conn.RemoteAddr().String()})
	if err != nil {
		return err
	}
	defer service.Close()
	in := make(chan int64)
	go func() {
		n, _ := io.Copy(service, conn)
		service.(*net.TCPConn).CloseWrite()
		in <- n
	}()
	out, err := io.Copy(conn, service)
	conn.CloseWrite()
	return errors.Join(err, m.Close(context.Background(), Close{Stream: reply.Stream, BytesIn: uint64(<-in), BytesOut: uint64(out), Why: "done"}))
}

// parent is a monitor, to be killed. It prints the number of its broker.
func parent(role string) error {
	c, err := Start(context.Background(), Config{Env: []string{roleVar + "=" + role}}, &recorder{})
	if err != nil {
		return err
	}
	fmt.Println(c.PID())
	return c.Wait()
}

// config returns how to start this test as a broker that plays role, where that
// can be tried: see strict_winetest.go.
func config(t *testing.T, role string) Config {
	t.Helper()
	if excused == nil {
		t.Skip("needs the tag winetest: only the system can start a broker without it")
	}
	return Config{Env: []string{roleVar + "=" + role}, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))}
}

// start starts a broker that ends with the test.
func start(t *testing.T, cfg Config, h Handler) *Child {
	t.Helper()
	c, err := Start(t.Context(), cfg, h)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() { c.Kill(); c.Wait() })
	return c
}

// testLog writes to the log of a test.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

// poll waits until ok says so.
func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// gone reports whether process pid has ended.
func gone(pid int) bool {
	h, err := windows.OpenProcess(windows.SYNCHRONIZE, false, uint32(pid))
	if err != nil {
		return true
	}
	defer windows.CloseHandle(h)
	e, _ := windows.WaitForSingleObject(h, 0)
	return e == windows.WAIT_OBJECT_0
}
