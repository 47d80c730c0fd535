package loopback

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
)

func TestListenerLetsThePersonIn(t *testing.T) {
	l, err := Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, network := range []string{"tcp4", "tcp6"} {
		t.Run(network, func(t *testing.T) {
			addr := l.Addr().String()
			if network == "tcp6" {
				addr = net.JoinHostPort("::ffff:127.0.0.1", strconv.Itoa(int(l.Addr().Port())))
			}
			out, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			in, err := l.Accept()
			if err != nil {
				t.Fatalf("Accept = %v", err)
			}
			in.Close()
		})
	}
}

// TestListenerRefusesAnotherUser connects from a process of another user.
func TestListenerRefusesAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start a process as another user")
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip(err)
	}
	l, err := Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.CommandContext(t.Context(), bash, "-c", `exec 3<>"/dev/tcp/127.0.0.1/$1" && cat <&3 && echo closed`, "bash", strconv.Itoa(int(l.Addr().Port())))
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err == nil {
		c.Close()
		t.Fatal("another user's socket was let in")
	}
	s, ok := errors.AsType[*StrangerError](err)
	if !ok || s.Err.Error() != "it belongs to user id 65534" {
		t.Errorf("Accept = %v, want a stranger of user id 65534", err)
	}
	if got, _ := io.ReadAll(out); string(got) != "closed\n" {
		t.Errorf("the stranger read %q, want nothing and the end", got)
	}
	cmd.Wait()
}
