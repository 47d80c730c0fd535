//go:build linux

package rdp

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sft"
)

// realPrograms skips the test, loudly, if it cannot be done.
func realPrograms(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %s is not installed; run make setup", name)
		}
	}
}

// realDisplay starts an X server and returns its name.
func realDisplay(t *testing.T) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.CommandContext(t.Context(), "Xvfb", "-displayfd", "3", "-screen", "0", "640x480x24", "-nolisten", "tcp", "-noreset")
	cmd.ExtraFiles = []*os.File{w}
	realStart(t, cmd)
	w.Close()
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	number, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatalf("Xvfb does not come up: %v", err)
	}
	return ":" + strings.TrimSpace(number)
}

// realStart starts cmd, which ends with the test. What it has said is logged
// if the test has failed.
func realStart(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", cmd.Path, &out)
		}
	})
}

// TestCredSSPConnectReal signs in to FreeRDP's server.
func TestCredSSPConnectReal(t *testing.T) {
	realPrograms(t, "Xvfb", "winpr-hash", "freerdp-shadow-cli")
	dir, display := t.TempDir(), realDisplay(t)
	hash := exec.CommandContext(t.Context(), "winpr-hash", "-u", "alice", "-p", "pä55-word", "-f", "sam")
	sam, err := hash.Output()
	if err != nil {
		t.Fatal(err)
	}
	samFile := filepath.Join(dir, "sam")
	if err := os.WriteFile(samFile, sam, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	l.Close()
	server := exec.CommandContext(t.Context(), "freerdp-shadow-cli", "/port:"+port, "/bind-address:127.0.0.1", "/sec:nla", "/sam-file:"+samFile)
	server.Env = []string{"HOME=" + dir, "DISPLAY=" + display, "PATH=" + os.Getenv("PATH")}
	realStart(t, server)

	for _, c := range []struct {
		name, user, password string
		kind                 error
	}{
		{"the right password", "alice", "pä55-word", nil},
		{"the right password, and again", "alice", "pä55-word", nil},
		{"a wrong password", "alice", "pa55-word", ErrLogon},
		{"no such user", "bob", "pä55-word", ErrLogon},
	} {
		conn := realNLA(t, address)
		key, err := PublicKeyBits(conn.ConnectionState().PeerCertificates[0])
		if err != nil {
			t.Fatal(err)
		}
		err = CredSSPConnect(conn, key, Credentials{User: c.user, Password: sft.NewSecret(c.password)}, "TERMSRV/localhost", false)
		if !errors.Is(err, c.kind) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.kind)
		}
		conn.Close()
	}
}

// realNLA negotiates NLA with an RDP server, and TLS.
func realNLA(t *testing.T, address string) *tls.Conn {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	var c net.Conn
	for {
		var err error
		if c, err = net.Dial("tcp", address); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the RDP server does not come up: %v", err)
		}
		time.Sleep(50 * time.Millisecond) // between two looks
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(deadline)
	// MS-RDPBCGR 2.2.1.1, with an RDP_NEG_REQ for SSL and HYBRID.
	if _, err := c.Write([]byte{3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 3, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	confirm := make([]byte, 19)
	if _, err := io.ReadFull(c, confirm); err != nil {
		t.Fatal(err)
	}
	if confirm[11] != 2 || confirm[15] != 2 {
		t.Fatalf("the RDP server does not select NLA: % x", confirm)
	}
	// Whatever its certificate is, it is the one whose key is bound.
	s := tls.Client(c, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, SessionTicketsDisabled: true})
	if err := s.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestCredSSPAcceptReal has FreeRDP's client sign in.
func TestCredSSPAcceptReal(t *testing.T) {
	realPrograms(t, "Xvfb", "xfreerdp")
	display := realDisplay(t)
	front, err := NewFront("alice", P256)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, user, domain, password string
		kind                         error
		refused                      bool // what xfreerdp has understood
	}{
		{"the right password", "alice", "", "pä55-word", nil, false},
		{"the right password, of a domain, in capitals", "ALICE", "ANY", "pä55-word", nil, false},
		{"a wrong password", "alice", "", "pa55-word", ErrLogon, true},
		{"another user", "bob", "", "pä55-word", ErrLogon, true},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		served := make(chan error, 1)
		go func() { served <- realAccept(l, front) }()
		args := []string{"/v:" + l.Addr().String(), "/u:" + c.user, "/from-stdin:force", "/sec:nla", "+auth-only", "/cert:ignore"}
		if c.domain != "" {
			args = append(args, "/d:"+c.domain)
		}
		cmd := exec.CommandContext(t.Context(), "xfreerdp", args...)
		cmd.Env = []string{"HOME=" + t.TempDir(), "DISPLAY=" + display, "PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8"}
		cmd.Stdin = strings.NewReader(c.password + "\n")
		out, _ := cmd.CombinedOutput()
		if got := <-served; !errors.Is(got, c.kind) {
			t.Errorf("%s: the server says %v, want %v", c.name, got, c.kind)
		}
		if got := cmd.ProcessState.ExitCode() == xfreerdpLogonFailure; got != c.refused {
			t.Errorf("%s: xfreerdp ends with %v; refused: got %v, want %v", c.name, cmd.ProcessState, got, c.refused)
		}
		if t.Failed() {
			t.Fatalf("%s: xfreerdp:\n%s", c.name, out)
		}
	}
}

// xfreerdpLogonFailure is xfreerdp's exit status after STATUS_LOGON_FAILURE.
const xfreerdpLogonFailure = 134

// realAccept is an RDP server up to the end of NLA, for one client.
func realAccept(l net.Listener, front *Front) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	head := make([]byte, 4)
	if _, err := io.ReadFull(c, head); err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, c, int64(head[3])-4); err != nil {
		return err
	}
	// MS-RDPBCGR 2.2.1.2, with an RDP_NEG_RSP that selects HYBRID.
	if _, err := c.Write([]byte{3, 0, 0, 19, 14, 0xd0, 0, 0, 0, 0, 0, 2, 0, 8, 0, 2, 0, 0, 0}); err != nil {
		return err
	}
	s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{front.certificate}, MaxVersion: tls.VersionTLS12, SessionTicketsDisabled: true})
	if err := s.Handshake(); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	if err := CredSSPAccept(s, front.key, "alice", sft.NewSecret("pä55-word"), time.Now); err != nil {
		return err
	}
	// The client goes on with its MCS Connect Initial (MS-RDPBCGR 2.2.1.3)
	// once it has seen that the server knows the password.
	initial := make([]byte, 9)
	if _, err := io.ReadFull(s, initial); err != nil {
		return err
	}
	if !bytes.Equal(initial[4:], []byte{2, 0xf0, 0x80, 0x7f, 0x65}) {
		return fmt.Errorf("it goes on with % x", initial)
	}
	return nil
}
