package tunnel

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
)

// A sshd is a real OpenSSH server on loopback, set up as an enrolled host is:
// it has a host certificate, and lets in whom the user CA says.
type sshd struct {
	name, dir, addr string
	user            string
	key             ssh.Signer
	bed             *sshBed
	cmd             *exec.Cmd
}

// A sshBed is a project: its CAs, and the person's key.
type sshBed struct {
	t              testing.TB
	userCA, hostCA ssh.Signer
	person         ssh.Signer
	personPEM      []byte
	user           string
}

func newSSHBed(t testing.TB) *sshBed {
	t.Helper()
	if _, err := os.Stat("/usr/sbin/sshd"); err != nil {
		t.Skip("there is no sshd")
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if me.Uid == "0" {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // of its package, made when it is started as a service
			t.Fatal(err)
		}
	}
	b := &sshBed{t: t, user: me.Username}
	b.userCA, _ = newSigner(t)
	b.hostCA, _ = newSigner(t)
	b.person, b.personPEM = newSigner(t)
	return b
}

// hostCert is a certificate as the platform makes it, after change.
func (b *sshBed) hostCert(key ssh.PublicKey, id string, change func(*ssh.Certificate)) *ssh.Certificate {
	b.t.Helper()
	c := &ssh.Certificate{Key: key, CertType: ssh.HostCert, KeyId: id, ValidPrincipals: []string{id, "host.example"},
		ValidAfter: uint64(time.Now().Add(-time.Hour).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix())}
	if change != nil {
		change(c)
	}
	if err := c.SignCert(rand.Reader, b.hostCA); err != nil {
		b.t.Fatal(err)
	}
	return c
}

// signer is the person's certificate for a hop.
func (b *sshBed) signer(id string) ssh.Signer {
	b.t.Helper()
	c := &ssh.Certificate{Key: b.person.PublicKey(), CertType: ssh.UserCert, KeyId: "sft:n1:u1", ValidPrincipals: []string{"sft:" + id + ":" + b.user},
		ValidAfter: uint64(time.Now().Add(-time.Minute).Unix()), ValidBefore: uint64(time.Now().Add(5 * time.Minute).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{"permit-port-forwarding": ""}}}
	if err := c.SignCert(rand.Reader, b.userCA); err != nil {
		b.t.Fatal(err)
	}
	s, err := ssh.NewCertSigner(c, b.person)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// freePort is one that nobody had a moment ago.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// start starts a server. cert changes its certificate; nil leaves it without
// one if bare. In more, %D is the server's folder.
func (b *sshBed) start(name string, bare bool, cert func(*ssh.Certificate), more ...string) *sshd {
	t := b.t
	t.Helper()
	s := &sshd{name: name, dir: t.TempDir(), addr: freePort(t), user: b.user, bed: b}
	var key []byte
	s.key, key = newSigner(t)
	at := func(file string) string { return filepath.Join(s.dir, file) }
	write(t, at("host"), key)
	write(t, at("ca.pub"), ssh.MarshalAuthorizedKey(b.userCA.PublicKey()))
	write(t, at("principals"), []byte("sft:"+name+":"+b.user+"\n"))
	write(t, at("authorized_keys"), ssh.MarshalAuthorizedKey(b.person.PublicKey()))
	_, port, _ := net.SplitHostPort(s.addr)
	conf := []string{"ListenAddress 127.0.0.1", "Port " + port, "HostKey " + at("host"), "PidFile none", "LogLevel VERBOSE", "StrictModes no",
		"UsePAM no", "PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin yes", "SetEnv HOME=/nowhere", "MaxStartups 100", "MaxSessions 100",
		"TrustedUserCAKeys " + at("ca.pub"), "AuthorizedPrincipalsFile " + at("principals")}
	if !bare {
		write(t, at("host-cert.pub"), ssh.MarshalAuthorizedKey(b.hostCert(s.key.PublicKey(), name, cert)))
		conf = append(conf, "HostCertificate "+at("host-cert.pub"))
	}
	if !strings.Contains(strings.Join(more, " "), "AuthorizedKeysFile") {
		more = append(more, "AuthorizedKeysFile none")
	}
	write(t, at("conf"), []byte(strings.ReplaceAll(strings.Join(append(more, conf...), "\n"), "%D", s.dir)+"\n"))
	s.run()
	return s
}

func (s *sshd) run() {
	t := s.bed.t
	t.Helper()
	s.cmd = exec.Command("/usr/sbin/sshd", "-D", "-f", filepath.Join(s.dir, "conf"), "-E", filepath.Join(s.dir, "log"))
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd := s.cmd
	t.Cleanup(func() { kill(cmd) })
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if strings.Contains(s.log(), "Server listening") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("sshd does not start: %s", s.log())
		}
	}
}

// children are the processes of the server's connections, each with a session
// of its own.
func (s *sshd) children() (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	parents := map[int][]int{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		parent, _ := strconv.Atoi(fields[1])
		parents[parent] = append(parents[parent], pid)
	}
	todo := parents[s.cmd.Process.Pid]
	for len(todo) > 0 {
		pids = append(pids, todo[0])
		todo = append(todo[1:], parents[todo[0]]...)
	}
	return pids
}

func (s *sshd) signal(sig syscall.Signal) {
	for _, pid := range s.children() {
		syscall.Kill(pid, sig)
	}
}

// kill ends a server and its connections.
func (s *sshd) kill() {
	s.signal(syscall.SIGKILL)
	kill(s.cmd)
}

func kill(cmd *exec.Cmd) {
	cmd.Process.Kill()
	cmd.Wait()
}

func (s *sshd) log() string {
	b, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	return string(b)
}

func (s *sshd) accepted() int { return strings.Count(s.log(), "Accepted publickey") }

func (s *sshd) hop() Hop {
	return Hop{Name: s.name, Address: s.addr, Login: s.user, Signer: s.bed.signer(s.name), ID: s.name, HostCAs: []ssh.PublicKey{s.bed.hostCA.PublicKey()}}
}

func newPath(t testing.TB, hops ...Hop) *Path {
	p := &Path{Hops: func(context.Context) ([]Hop, error) { return hops, nil }, Stderr: t.Output(), Batch: true}
	t.Cleanup(func() { p.Close() })
	return p
}

// echo is a server that sends back what it gets, and its end.
func echo(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

// says checks that c carries both ways and ends for writing alone.
func says(t testing.TB, c net.Conn, half bool) {
	t.Helper()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatalf("Write = %v", err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Fatalf("Read = %q, %v", b, err)
	}
	if !half {
		return
	}
	if err := c.(Stream).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Fatalf("after CloseWrite: %q, %v", rest, err)
	}
}

func dial(t testing.TB, p *Path, address string) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := p.Dial(ctx, address)
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func TestPath(t *testing.T) {
	b := newSSHBed(t)
	to := echo(t)
	var all []*sshd
	for i := range 10 {
		all = append(all, b.start(fmt.Sprintf("hop%d", i), false, nil))
	}
	for _, n := range []int{0, 1, 2, 10} {
		t.Run(fmt.Sprint(n, " hops"), func(t *testing.T) {
			var hops []Hop
			for _, s := range all[:n] {
				hops = append(hops, s.hop())
			}
			p := newPath(t, hops...)
			var marks []string
			p.Mark = func(s string) { marks = append(marks, s) }
			c, err := dial(t, p, to)
			if err != nil {
				t.Fatal(err)
			}
			says(t, c, true)
			if len(marks) != n {
				t.Errorf("marks are %q", marks)
			}
		})
	}
	// What is between two hops is an SSH connection like any other: the second
	// hop sees the first one's address, and the first never the login there.
	if strings.Count(all[9].log(), "Accepted publickey") != 1 || !strings.Contains(all[9].log(), "sft:n1:u1") {
		t.Errorf("the last hop's log: %s", all[9].log())
	}
}

// TestPathErrors: what is said about each way in which a hop can fail.
func TestPathErrors(t *testing.T) {
	b := newSSHBed(t)
	to := echo(t)
	good := b.start("good", false, nil)
	other := func(c *ssh.Certificate) { c.ValidPrincipals = []string{"other"} }
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	go func() {
		for {
			c, err := web.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 256))
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			c.Close()
		}
	}()
	change := func(h Hop, f func(*Hop)) Hop {
		f(&h)
		return h
	}
	nobody := freePort(t)
	tests := []struct {
		name string
		hops []Hop
		to   string
		code sft.Code
		msg  string // part of it
		hint string
	}{
		{"the first hop is down", []Hop{{Name: "down", Address: nobody, Signer: b.signer("down")}}, to, sft.Unavailable,
			"hop down at " + nobody + " cannot be reached: ", "can be reached from here"},
		{"the second hop is down", []Hop{good.hop(), {Name: "down", Address: nobody, Signer: b.signer("down")}}, to, sft.Unavailable,
			"hop good cannot connect to down at " + nobody + ": ", "good can reach its port"},
		{"what is behind the hops is down", []Hop{good.hop()}, nobody, sft.Unavailable, "hop good cannot connect to " + nobody + ": connection refused", "good can reach its port"},
		{"a key that is not known", []Hop{change(b.start("bare", true, nil).hop(), func(h *Hop) { h.HostKeys = []ssh.PublicKey{b.person.PublicKey()} })}, to, sft.Invalid,
			"did not prove that it is hop bare: its key is not one that the platform knows; nothing was sent to it", "tell an administrator"},
		{"no certificate, and no key is known", []Hop{b.start("naked", true, nil).hop()}, to, sft.Invalid,
			"did not prove that it is hop naked: it has no certificate", "tell an administrator"},
		{"the certificate of another server", []Hop{b.start("stolen", false, other).hop()}, to, sft.Invalid,
			"did not prove that it is hop stolen: its certificate is for another server", "tell an administrator"},
		{"another server behind a hop", []Hop{good.hop(), change(b.start("moved", false, other).hop(), func(h *Hop) { h.HostKeys = nil })}, to, sft.Invalid,
			"did not prove that it is hop moved: its certificate is for another server", "tell an administrator"},
		{"an expired certificate", []Hop{b.start("old", false, func(c *ssh.Certificate) { c.ValidBefore = uint64(time.Now().Add(-time.Minute).Unix()) }).hop()}, to, sft.Invalid,
			"did not prove that it is hop old: its certificate has expired", "check this machine's clock"},
		{"a certificate for ever", []Hop{b.start("ever", false, func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }).hop()}, to, sft.Invalid,
			"hop ever: its certificate is valid for ever", "tell an administrator"},
		{"a certificate without principals", []Hop{b.start("any", false, func(c *ssh.Certificate) { c.ValidPrincipals = nil }).hop()}, to, sft.Invalid,
			"hop any: its certificate is for another server", "tell an administrator"},
		{"a certificate by another CA", []Hop{change(good.hop(), func(h *Hop) { h.HostCAs = []ssh.PublicKey{b.userCA.PublicKey()} })}, to, sft.Invalid,
			"hop good: its certificate is not by the project's host CA", "tell an administrator"},
		{"a certificate that the hop does not take", []Hop{change(good.hop(), func(h *Hop) { h.Signer = b.signer("other") })}, to, sft.Denied,
			"hop good refused the certificate that the platform issued for", "sftd status"},
		{"a hop that is no SSH server", []Hop{{Name: "web", Address: web.Addr().String(), Signer: b.signer("web"), HostCAs: []ssh.PublicKey{b.hostCA.PublicKey()}}}, to, sft.Invalid,
			"did not prove that it is hop web: it does not speak SSH", "tell an administrator"},
		{"an address that is an option", []Hop{good.hop()}, "-oProxyCommand=x:22", sft.Invalid, "cannot be used", "give a host and a port"},
		{"an address with a command", []Hop{good.hop()}, "a;id:22", sft.Invalid, "cannot be used", "give a host and a port"},
		{"an address with a zone", []Hop{good.hop()}, "[fe80::1%a'b]:22", sft.Invalid, "cannot be used", "give a host and a port"},
		{"an unmanaged hop that is an option", []Hop{{Name: "u", Address: "-oProxyCommand=id", Unmanaged: true}}, to, sft.Invalid, "hop u cannot be gone through: address", "corrected"},
		{"an unmanaged hop with a login that is a command", []Hop{{Name: "u", Address: "u", Login: "$(id)", Unmanaged: true}}, to, sft.Invalid, "hop u cannot be gone through: login", "corrected"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := dial(t, newPath(t, tt.hops...), tt.to)
			if err == nil {
				c.Close()
				t.Fatal("it worked")
			}
			e, ok := errors.AsType[*sft.Error](err)
			if !ok || e.Code != tt.code || !strings.Contains(e.Msg, tt.msg) || !strings.Contains(e.Hint, tt.hint) {
				t.Errorf("Dial = %#v, caused by %v", err, errors.Unwrap(err))
			}
		})
	}
	// A server that says nothing costs the caller's patience, and no more.
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	start := time.Now()
	_, err = newPath(t, good.hop(), Hop{Name: "silent", Address: silent.Addr().String(), Signer: b.signer("silent"), HostCAs: []ssh.PublicKey{b.hostCA.PublicKey()}}).Dial(ctx, to)
	if took := time.Since(start); !errors.Is(err, context.Canceled) || took > 2*time.Second {
		t.Errorf("a cancelled Dial = %v, after %s", err, took)
	}
}

// TestPathHostKeys: a certificate comes first, a key that is known will do.
func TestPathHostKeys(t *testing.T) {
	b := newSSHBed(t)
	to := echo(t)
	pinned := func(h Hop, keys ...ssh.PublicKey) Hop {
		h.HostKeys = keys
		return h
	}
	bare := b.start("bare", true, nil)
	foreign := b.start("foreign", false, nil)
	fh := pinned(foreign.hop(), foreign.key.PublicKey())
	fh.HostCAs = []ssh.PublicKey{b.userCA.PublicKey()}
	old := b.start("old", false, func(c *ssh.Certificate) { c.ValidBefore = uint64(time.Now().Add(-time.Minute).Unix()) })
	for _, h := range []Hop{pinned(bare.hop(), b.person.PublicKey(), bare.key.PublicKey()), fh} {
		c, err := dial(t, newPath(t, h), to)
		if err != nil {
			t.Errorf("%s: %v", h.Name, err)
			continue
		}
		says(t, c, true)
	}
	if _, err := dial(t, newPath(t, pinned(old.hop(), old.key.PublicKey())), to); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("an expired certificate of the project's own: %v", err)
	}
	// The clock that counts is the one that is given.
	p := newPath(t, old.hop())
	p.Clock = func() time.Time { return time.Now().Add(-5 * time.Minute) }
	if _, err := dial(t, p, to); err != nil {
		t.Errorf("by a clock that is right: %v", err)
	}
}

// TestPathNetcat: where sshd forbids forwarding, nc on the hop goes on.
func TestPathNetcat(t *testing.T) {
	b := newSSHBed(t)
	to := echo(t)
	closed := b.start("closed", false, nil, "AllowTcpForwarding no")
	next := b.start("next", false, nil)
	for _, hops := range [][]Hop{{closed.hop()}, {closed.hop(), next.hop()}} {
		p := newPath(t, hops...)
		for range 2 {
			c, err := dial(t, p, to)
			if err != nil {
				t.Fatal(err)
			}
			says(t, c, len(hops) == 2)
		}
	}
	if n := strings.Count(closed.log(), "refused local port forward"); n != 2 {
		t.Errorf("%d tries to forward in all, want one for each connection to the hop", n)
	}
	h := next.hop()
	h.Netcat = true
	c, err := dial(t, newPath(t, h), to)
	if err != nil {
		t.Fatal(err)
	}
	says(t, c, false)
	fails := func(h Hop, to string, code sft.Code, want string) {
		t.Helper()
		start := time.Now()
		defer func() { t.Logf("%s took %s", h.Name, time.Since(start)) }()
		c, err := dial(t, newPath(t, h), to)
		if err == nil {
			c.SetDeadline(time.Now().Add(10 * time.Second))
			_, err = c.Read(make([]byte, 1))
		}
		if sft.CodeOf(err) != code || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", h.Name, err, want)
		}
	}
	nobody := freePort(t)
	fails(h, nobody, sft.Unavailable, "hop next cannot connect to "+nobody)
	fails(b.start("empty", false, nil, "AllowTcpForwarding no", "SetEnv PATH=/nowhere HOME=/nowhere").hop(), to, sft.Denied, "hop empty does not let anything through to "+to+": forwarding is not allowed, and it has no program nc")
	fails(b.start("shut", false, nil, "AllowTcpForwarding no", "MaxSessions 0").hop(), to, sft.Denied, "neither forwarding nor a session is allowed")
}

// TestPathShares: there is one SSH connection per hop, however many go through
// it, and another one when it has died.
func TestPathShares(t *testing.T) {
	b := newSSHBed(t)
	to := echo(t)
	first, second := b.start("first", false, nil), b.start("second", false, nil)
	p := newPath(t, first.hop(), second.hop())
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			c, err := dial(t, p, to)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.Write([]byte("x"))
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if first.accepted() != 1 || second.accepted() != 1 {
		t.Fatalf("%d and %d connections", first.accepted(), second.accepted())
	}
	for i, s := range []*sshd{second, first} {
		s.signal(syscall.SIGKILL)
		c, err := dial(t, p, to) // whether it has been noticed or not
		if err != nil {
			t.Fatal(err)
		}
		says(t, c, true)
		if first.accepted() != 1+i || second.accepted() != 2+i {
			t.Errorf("%d and %d connections after the death of %s", first.accepted(), second.accepted(), s.name)
		}
	}
	// One that has gone silent is found out by the Dial itself.
	first.signal(syscall.SIGSTOP)
	c, err := dial(t, p, to)
	first.signal(syscall.SIGCONT)
	if err != nil {
		t.Fatal(err)
	}
	says(t, c, true)
	if first.accepted() != 3 {
		t.Errorf("%d connections after a silence", first.accepted())
	}
	p.Close()
	if _, err := dial(t, p, to); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestPathCaller: one who gives up does not take the others along.
func TestPathCaller(t *testing.T) {
	b := newSSHBed(t)
	to := echo(t)
	s := b.start("slow", false, nil)
	asked, go_ := make(chan bool, 1), make(chan bool)
	p := newPath(t)
	p.Hops = func(ctx context.Context) ([]Hop, error) {
		asked <- true
		select {
		case <-go_:
			return []Hop{s.hop()}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error)
	go func() {
		_, err := p.Dial(ctx, to)
		gaveUp <- err
	}()
	<-asked
	stays := make(chan error)
	go func() {
		_, err := dial(t, p, to)
		stays <- err
	}()
	for p.waiters() != 2 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up: %v", err)
	}
	close(go_)
	if err := <-stays; err != nil {
		t.Errorf("who stayed: %v", err)
	}
}

func (p *Path) waiters() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flight == nil {
		return 0
	}
	return p.flight.wanted
}

// TestPathLost: a connection whose hop dies, or goes silent, says which.
func TestPathLost(t *testing.T) {
	b := newSSHBed(t)
	to := echo(t)
	for _, tt := range []struct {
		name   string
		victim int
		how    syscall.Signal
	}{
		{"the first is killed", 0, syscall.SIGKILL}, {"the second is killed", 1, syscall.SIGKILL},
		{"the first goes silent", 0, syscall.SIGSTOP}, {"the second goes silent", 1, syscall.SIGSTOP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := *b
			b.t = t
			hosts := []*sshd{b.start("first", false, nil), b.start("second", false, nil)}
			p := newPath(t, hosts[0].hop(), hosts[1].hop())
			p.alive = 200 * time.Millisecond
			c, err := dial(t, p, to)
			if err != nil {
				t.Fatal(err)
			}
			says(t, c, false)
			hosts[tt.victim].signal(tt.how)
			defer hosts[tt.victim].signal(syscall.SIGCONT)
			c.SetDeadline(time.Now().Add(10 * time.Second))
			start := time.Now()
			_, err = c.Read(make([]byte, 1))
			if sft.CodeOf(err) != sft.Unavailable || !strings.Contains(err.Error(), "the connection to hop "+hosts[tt.victim].name+" was lost") {
				t.Errorf("Read = %v", err)
			}
			t.Logf("%v after %s", err, time.Since(start))
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
				if _, err = c.Write([]byte("x")); err != nil || time.Now().After(end) {
					break
				}
			}
			if err == nil || !strings.Contains(err.Error(), hosts[tt.victim].name) {
				t.Errorf("Write = %v", err)
			}
		})
	}
}

// TestPathIntact sends much both ways at once, through two hops.
func TestPathIntact(t *testing.T) {
	size := 64 << 20
	if testing.Short() {
		size = 4 << 20
	}
	b := newSSHBed(t)
	p := newPath(t, b.start("first", false, nil).hop(), b.start("second", false, nil).hop())
	c, err := dial(t, p, echo(t))
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	rand.Read(block)
	go func() {
		for n := 0; n < size; n += len(block) {
			if _, err := c.Write(block); err != nil {
				t.Error(err)
				return
			}
		}
		c.(Stream).CloseWrite()
	}()
	got := make([]byte, len(block))
	for n := 0; n < size; n += len(block) {
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, block) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
	if n, err := c.Read(got); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d bytes, %v", n, err)
	}
}
