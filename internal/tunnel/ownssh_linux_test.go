package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
	"sft/internal/frame"
)

// A home is the person's own settings of ssh.
type home struct {
	dir  string
	conf strings.Builder
}

// newHome has ssh know hosts, by the keys in known.
func (b *sshBed) newHome(hosts map[string]*sshd, known map[string]ssh.PublicKey) *home {
	h := &home{dir: b.t.TempDir()}
	write(b.t, filepath.Join(h.dir, "id"), b.personPEM)
	for name, s := range hosts {
		_, port, _ := net.SplitHostPort(s.addr)
		fmt.Fprintf(&h.conf, "Host %s\n HostName 127.0.0.1\n Port %s\n User %s\n", name, port, s.user)
	}
	fmt.Fprintf(&h.conf, "Host *\n IdentityFile %[1]s/id\n IdentitiesOnly yes\n UserKnownHostsFile %[1]s/known\n GlobalKnownHostsFile none\n StrictHostKeyChecking yes\n", h.dir)
	var lines strings.Builder
	for name, key := range known {
		fmt.Fprintf(&lines, "%s %s", name, ssh.MarshalAuthorizedKey(key))
	}
	write(b.t, filepath.Join(h.dir, "known"), []byte(lines.String()))
	return h
}

func (h *home) args(t testing.TB) []string {
	path := filepath.Join(h.dir, "config")
	write(t, path, []byte(h.conf.String()))
	return []string{"-F", path}
}

// startOwn starts a server without an agent, which takes the person's key.
func (b *sshBed) startOwn(name string) *sshd {
	return b.start(name, true, nil, "AuthorizedKeysFile %D/authorized_keys")
}

// known is the name by which ssh knows a server at an address.
func (s *sshd) known() string {
	host, port, _ := net.SplitHostPort(s.addr)
	return "[" + host + "]:" + port
}

func own(name string) Hop { return Hop{Name: name, Address: name, Unmanaged: true} }

func TestOwnSSH(t *testing.T) {
	b := newSSHBed(t)
	to := echo(t)
	u1, u2, e1, e2 := b.startOwn("u1"), b.startOwn("u2"), b.start("e1", false, nil), b.start("e2", false, nil)
	h := b.newHome(map[string]*sshd{"u1": u1, "u2": u2}, map[string]ssh.PublicKey{u1.known(): u1.key.PublicKey(), u2.known(): u2.key.PublicKey()})
	// What could go wrong between a person's settings and ours.
	h.conf.WriteString(" NoHostAuthenticationForLocalhost yes\n ServerAliveInterval 0\n ControlMaster auto\n ControlPath " + h.dir + "/c-%n\n")
	rest := h.conf.String()
	h.conf.Reset()
	h.conf.WriteString("Match originalhost u2\n ProxyJump nowhere.invalid\nMatch originalhost u1\n RemoteCommand id\n RequestTTY force\n LocalForward 1 127.0.0.1:1\n" + rest)
	args := h.args(t)
	for _, tt := range []struct {
		name string
		hops []Hop
		used []*sshd
	}{
		{"one", []Hop{own("u1")}, []*sshd{u1}},
		{"then an enrolled one", []Hop{own("u1"), e1.hop()}, []*sshd{u1, e1}},
		{"behind an enrolled one", []Hop{e1.hop(), own("u1")}, []*sshd{e1, u1}},
		{"one behind another", []Hop{own("u1"), own("u2")}, []*sshd{u1, u2}},
		{"all kinds", []Hop{e1.hop(), own("u1"), own("u2"), e2.hop()}, []*sshd{e1, u1, u2, e2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := make([]int, len(tt.used))
			for i, s := range tt.used {
				before[i] = s.accepted()
			}
			p := newPath(t, tt.hops...)
			p.sshArgs = args
			marks := make(chan string, 8)
			p.Mark = func(s string) { marks <- s }
			c, err := dial(t, p, to)
			if err != nil {
				t.Fatal(err)
			}
			says(t, c, true)
			for i, s := range tt.used {
				if n := s.accepted() - before[i]; n != 1 {
					t.Errorf("%d connections to %s", n, s.name)
				}
			}
			if len(marks) != len(tt.hops) {
				t.Errorf("%d marks", len(marks))
			}
			p.Close()
			gone(t, h.dir)
		})
	}
}

// gone waits until no ssh with these settings runs.
func gone(t *testing.T, dir string) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); len(running(dir)) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("these still run: %q", running(dir))
		}
	}
}

// running are the command lines that name dir.
func running(dir string) (lines []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if line := strings.ReplaceAll(string(b), "\x00", " "); strings.HasPrefix(line, "ssh ") && strings.Contains(line, dir) || strings.HasPrefix(line, "/usr/bin/ssh ") && strings.Contains(line, dir) {
			lines = append(lines, f+": "+line)
		}
	}
	return lines
}

func TestOwnSSHErrors(t *testing.T) {
	b := newSSHBed(t)
	to, nobody := echo(t), freePort(t)
	u1, u2, e1 := b.startOwn("u1"), b.startOwn("u2"), b.start("e1", false, nil)
	wrong := b.startOwn("wrong")
	h := b.newHome(map[string]*sshd{"u1": u1, "u2": u2, "wrong": wrong},
		map[string]ssh.PublicKey{u1.known(): u1.key.PublicKey(), wrong.known(): b.person.PublicKey()}) // u2 is not known
	args := h.args(t)
	down := e1.hop()
	down.Address = nobody
	for _, tt := range []struct {
		name string
		hops []Hop
		to   string
		want string
	}{
		{"a wrong key", []Hop{own("wrong")}, to, "no way through hop wrong to " + to + ": ssh ended with exit status 255"},
		{"a wrong key behind a hop", []Hop{e1.hop(), own("wrong")}, to, "no way through hop wrong to " + to},
		{"a key that is not known", []Hop{own("u1"), own("u2")}, to, "no way through hop u2 to " + to},
		{"what is behind it is down", []Hop{own("u1")}, nobody, "no way through hop u1 to " + nobody},
		{"the hop behind it is down", []Hop{own("u1"), down}, to, "no way through hop u1 to e1 at " + nobody},
		{"it cannot be reached from the hop before", []Hop{e1.hop(), {Name: "u3", Address: "127.0.0.1", Unmanaged: true, Port: portOf(nobody)}}, to, "hop e1 cannot connect to u3 at " + nobody},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPath(t, tt.hops...)
			p.sshArgs = args
			start := time.Now()
			c, err := dial(t, p, tt.to)
			if err == nil {
				c.SetDeadline(time.Now().Add(10 * time.Second))
				_, err = c.Read(make([]byte, 1))
			}
			if sft.CodeOf(err) != sft.Unavailable || !strings.Contains(err.Error(), tt.want) || time.Since(start) > 5*time.Second {
				t.Errorf("%v after %s, want %s", err, time.Since(start), tt.want)
			}
		})
	}
	// A connection that is there ends with the hop.
	p := newPath(t, own("u1"))
	p.sshArgs = args
	c, err := dial(t, p, to)
	if err != nil {
		t.Fatal(err)
	}
	says(t, c, false)
	u1.signal(syscall.SIGKILL)
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "the connection through hop u1 was lost: ssh ended with exit status 255") {
		t.Errorf("Read = %v", err)
	}
}

func portOf(address string) int {
	_, port, _ := net.SplitHostPort(address)
	n, _ := strconv.Atoi(port)
	return n
}

// TestOwnSSHEnds: whatever becomes of sft, ssh does not stay behind.
func TestOwnSSHEnds(t *testing.T) {
	if dir := os.Getenv("SFT_TEST_OWN_SSH"); dir != "" {
		p := &Path{Hops: func(context.Context) ([]Hop, error) { return []Hop{own("hung")}, nil }, sshArgs: []string{"-F", filepath.Join(dir, "config")}}
		if _, err := p.Dial(t.Context(), "127.0.0.1:1"); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	b := newSSHBed(t)
	h := b.newHome(nil, nil)
	h.conf.WriteString(" ProxyCommand sleep 1000\n") // says nothing, and nothing ends it
	args := h.args(t)
	started := func() {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); len(running(h.dir)) == 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("no ssh runs")
			}
		}
	}
	for name, end := range map[string]func(*Path, net.Conn){
		"the connection is closed": func(_ *Path, c net.Conn) { c.Close() },
		"the path is closed":       func(p *Path, _ net.Conn) { p.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPath(t, own("hung"))
			p.sshArgs = args
			c, err := dial(t, p, "127.0.0.1:1")
			if err != nil {
				t.Fatal(err)
			}
			started()
			c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a deadline: %v", err)
			}
			end(p, c)
			gone(t, h.dir)
		})
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestOwnSSHEnds$")
	cmd.Env = append(os.Environ(), "SFT_TEST_OWN_SSH="+h.dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer kill(cmd)
	started()
	kill(cmd)
	gone(t, h.dir)
}

// TestBrokerThroughPath: TLS to a broker runs inside the hops, and what fails
// is said to be what failed.
func TestBrokerThroughPath(t *testing.T) {
	sb := newSSHBed(t)
	hop := sb.start("hop", false, nil)
	b := newBed(t)
	h := serve(t, b.conf, func(c *tls.Conn) {
		if _, err := frame.Read(c); err == nil {
			frame.WriteJSON(c, frame.Reply{Ping: &frame.PingReply{Server: "web01", Login: "alice"}})
			io.Copy(c, c)
		}
	})
	p := newPath(t, hop.hop())
	p.alive = 200 * time.Millisecond
	b.broker.Dial = p.Dial
	s, _, err := b.open(t, h)
	if err != nil {
		t.Fatal(err)
	}
	says(t, s, false)
	s.Close()

	fails := func(address, code, want, hint string) {
		t.Helper()
		b.broker.Address = address
		_, _, err := b.broker.Open(t.Context(), frame.Hello{Service: frame.Ping, Session: "n1"})
		e, ok := errors.AsType[*sft.Error](err)
		if !ok || string(e.Code) != code || !strings.Contains(e.Msg, want) || !strings.Contains(e.Hint, hint) {
			t.Errorf("Open = %#v, want %s", err, want)
		}
	}
	nobody := freePort(t)
	fails(nobody, string(sft.Unavailable), "no answer from the broker of web01 at "+nobody+": hop hop cannot connect to "+nobody+": connection refused", "from the last hop")
	// The hop goes while TLS is under way.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	killed := make(chan bool)
	go func() {
		defer close(killed)
		if c, err := l.Accept(); err == nil {
			c.Read(make([]byte, 1)) // so the hop has said that it is connected
			hop.kill()
			c.Close()
		}
	}()
	fails(l.Addr().String(), string(sft.Unavailable), "the connection to hop hop was lost", "check the network")
	<-killed
	fails(l.Addr().String(), string(sft.Unavailable), "hop hop at "+hop.addr+" cannot be reached", "from here")
}
