package loopback

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Started with SFT_TEST_DIAL, the test program connects there, says so and
// waits for its standard input to end.
func TestMain(m *testing.M) {
	at := os.Getenv("SFT_TEST_DIAL")
	if at == "" {
		os.Exit(m.Run())
	}
	b := make([]byte, 1)
	os.Stdin.Read(b) // until it is known
	c, err := net.Dial("tcp", at)
	if err != nil {
		os.Exit(1)
	}
	c.Read(b)
	os.Exit(0)
}

// dialer starts a process that connects to l once go is called, and lives
// until the socket is closed.
func dialer(t *testing.T, l *Listener) (pid uint32, dial func()) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), "SFT_TEST_DIAL="+l.Addr().String())
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return uint32(cmd.Process.Pid), func() { in.Write([]byte{1}) }
}

func TestListenApart(t *testing.T) {
	a, err := ListenApart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := ListenApart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if x := a.Addr().Addr(); x == b.Addr().Addr() || !x.IsLoopback() || x.String() == "127.0.0.1" {
		t.Errorf("the addresses are %v and %v", a.Addr(), b.Addr())
	}
	_, dial := dialer(t, a)
	dial()
	c, err := a.Accept()
	if err != nil {
		t.Fatalf("a process of this person: %v", err)
	}
	c.Close()
}

func TestOnly(t *testing.T) {
	l, err := ListenApart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pid, dial := dialer(t, l)
	_, other := dialer(t, l)
	if err := l.Only(pid); err != nil {
		t.Fatal(err)
	}
	other()
	c, err := l.Accept()
	if err == nil {
		c.Close()
		t.Fatal("another process of the person was let in")
	}
	if s, ok := errors.AsType[*StrangerError](err); !ok || !strings.Contains(s.Error(), "not of the RDP client that was started") {
		t.Errorf("Accept = %v", err)
	}
	dial()
	if c, err = l.Accept(); err != nil {
		t.Fatalf("the very process: %v", err)
	}
	c.Close()
	if err := l.Only(0xfffffff0); err == nil {
		t.Error("a process that there is none of was taken")
	}
}
