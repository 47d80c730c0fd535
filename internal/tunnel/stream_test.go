package tunnel

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
)

// newSigner makes a key, and returns it as in a file, too.
func newSigner(t testing.TB) (ssh.Signer, []byte) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return s, pem.EncodeToMemory(block)
}

// A pipe is a rawStream to the test: two of them, without buffers.
type pipe struct {
	io.Reader
	*io.PipeWriter
	in *io.PipeReader
}

func (p pipe) CloseWrite() error { return p.PipeWriter.Close() }

func (p pipe) Close() error {
	p.in.Close()
	return p.PipeWriter.Close()
}

// streamPair is a stream, and what its other end reads and writes.
func streamPair(t *testing.T) (*stream, *io.PipeReader, *io.PipeWriter) {
	there, out := io.Pipe()
	in, here := io.Pipe()
	s := newStream(pipe{in, out, in}, "there:22", func(err error) error { return err })
	t.Cleanup(func() {
		s.Close()
		there.Close()
		here.Close()
	})
	return s, there, here
}

func TestStreamDeadlines(t *testing.T) {
	s, there, here := streamPair(t)
	late := func(what string, err error) {
		t.Helper()
		if n, ok := errors.AsType[net.Error](err); !ok || !n.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s = %v, want a timeout", what, err)
		}
	}
	b := make([]byte, 8)
	s.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := s.Read(b)
	late("a read that nothing comes for", err)
	// One that waits already is ended by a deadline in the past.
	s.SetReadDeadline(time.Time{})
	time.AfterFunc(20*time.Millisecond, func() { s.SetDeadline(time.Unix(1, 0)) })
	_, err = s.Read(b)
	late("a read that is under way", err)
	// Nobody reads at the other end: the queue fills, and no more is taken.
	s.SetDeadline(time.Time{})
	n := 0
	for n < queueSize { // a busy machine may take longer than that to begin
		s.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		k, err := s.Write(make([]byte, 4*queueSize-n))
		late("a write that nobody reads", err)
		n += k
	}
	if n > 2*queueSize {
		t.Errorf("%d bytes were taken", n)
	}
	// A deadline is no end: what comes later comes, and nothing was lost.
	s.SetDeadline(time.Time{})
	go here.Write([]byte("hello"))
	if k, err := io.ReadFull(s, b[:5]); err != nil || string(b[:k]) != "hello" {
		t.Errorf("Read = %q, %v", b[:k], err)
	}
	go s.CloseWrite()
	if all, err := io.ReadAll(there); err != nil || len(all) != n {
		t.Errorf("%d bytes arrived, %v", len(all), err)
	}
	// A deadline that was moved does not strike.
	s.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	s.SetReadDeadline(time.Now().Add(time.Hour))
	time.AfterFunc(60*time.Millisecond, func() { here.Write([]byte("x")) })
	if _, err := s.Read(b); err != nil {
		t.Errorf("after a deadline that was moved: %v", err)
	}
}

func TestStreamCloses(t *testing.T) {
	s, there, _ := streamPair(t)
	reading := make(chan error)
	go func() {
		_, err := s.Read(make([]byte, 1))
		reading <- err
	}()
	said := bytes.Repeat([]byte("goodbye "), 4<<10)
	if _, err := s.Write(said); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := <-reading; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read that was under way: %v", err)
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write after Close: %v", err)
	}
	if all, err := io.ReadAll(there); err != nil || !bytes.Equal(all, said) {
		t.Errorf("%d of %d bytes arrived, %v", len(all), len(said), err)
	}

	s, there, here := streamPair(t)
	s.CloseWrite()
	if _, err := s.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a write after CloseWrite: %v", err)
	}
	if all, err := io.ReadAll(there); err != nil || len(all) > 0 {
		t.Errorf("after CloseWrite: %q, %v", all, err)
	}
	go func() {
		here.Write([]byte("rest"))
		here.CloseWithError(&lostError{&sft.Error{Msg: "the hop is gone"}})
	}()
	if all, err := io.ReadAll(s); string(all) != "rest" || err == nil || err.Error() != "the hop is gone" {
		t.Errorf("after CloseWrite: %q, %v", all, err)
	}
}

// TestStreamIntact moves more than the queue holds, in odd pieces, both ways
// at once.
func TestStreamIntact(t *testing.T) {
	s, there, here := streamPair(t)
	want := make([]byte, 9*queueSize+17)
	rand.Read(want)
	var all sync.WaitGroup
	send := func(w io.Writer, end func() error) {
		for b, n := want, 1; len(b) > 0; n = n*7%50021 + 1 {
			n = min(n, len(b))
			w.Write(b[:n])
			b = b[n:]
		}
		end()
	}
	all.Go(func() { send(s, s.CloseWrite) })
	all.Go(func() { send(here, here.Close) })
	for name, r := range map[string]io.Reader{"there": there, "here": s} {
		all.Go(func() {
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
		})
	}
	all.Wait()
}

// FuzzReadSettings: whatever ssh says, what is made of it is one host, one
// port and one word.
func FuzzReadSettings(f *testing.F) {
	f.Add([]byte("user alice\nhostname db01.example.com\nport 22\n"))
	f.Add([]byte("hostname ::1\r\nport 2222\r\nhostkeyalias db01\r\n"))
	f.Add([]byte("hostname -oProxyCommand=id\nport 22\n"))
	f.Add([]byte("hostname a b\nport 70000\nhostkeyalias x\ty"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := readSettings(b)
		if err != nil {
			return
		}
		if !isHost(s.host) || s.port < 1 || s.port > 65535 || !regexp.MustCompile(`^[A-Za-z0-9.:\[\]_-]+$`).MatchString(s.alias) {
			t.Errorf("%+v", s)
		}
		if _, err := newTarget("", net.JoinHostPort(s.host, "22")); err != nil {
			t.Error(err)
		}
	})
}

func TestReadSettings(t *testing.T) {
	for in, want := range map[string]settings{
		"user a\nhostname db01\nport 22\n":                      {"db01", 22, "db01"},
		"hostname db01\nport 2222\n":                            {"db01", 2222, "[db01]:2222"},
		"hostname db01\r\nport 2222\r\nhostkeyalias real\r\n":   {"db01", 2222, "real"},
		"hostname 2001:db8::1\nport 22\n":                       {"2001:db8::1", 22, "2001:db8::1"},
		"hostname db01\nport 0\n":                               {},
		"port 22\n":                                             {},
		"hostname db01\nport 22\nhostkeyalias a b\n":            {},
		"hostname db01;id\nport 22\n":                           {},
		"hostname db01\nport 22\nhostkeyalias -oHostName=x\n":   {},
		"hostname fe80::1%eth0\nport 22\nhostkeyalias db01\n":   {},
		"hostname db01\nport 22 23\nhostkeyalias [db01]:2222\n": {},
	} {
		if got, err := readSettings([]byte(in)); got != want || (err == nil) != (want != settings{}) {
			t.Errorf("readSettings(%q) = %+v, %v", in, got, err)
		}
	}
}

// FuzzNetcatCommand: whatever the address, the command is nc with a host and
// a port, to any shell.
func FuzzNetcatCommand(f *testing.F) {
	for _, a := range []string{"db01:22", "[::1]:22", "10.0.0.1:4421", "-e:22", "a'b:22", "$(id):22", "a b:22", "[fe80::1%x;id]:22", "db01:22;id", "db01:+22", "DB-1.example:065"} {
		f.Add(a)
	}
	command := regexp.MustCompile(`^exec nc '[A-Za-z0-9:][A-Za-z0-9.:_-]*' [1-9][0-9]{0,4}$`)
	f.Fuzz(func(t *testing.T, address string) {
		to, err := newTarget("", address)
		if err != nil {
			if sft.CodeOf(err) != sft.Invalid {
				t.Error(err)
			}
			return
		}
		if c := netcatCommand(to); !command.MatchString(c) {
			t.Errorf("%q gives %q", address, c)
		}
	})
}

// FuzzVerify: no key proves a hop but those that are known, and those in a
// certificate that the CA has signed, which takes its key.
func FuzzVerify(f *testing.F) {
	signer := func(seed byte) ssh.Signer {
		s, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32)))
		if err != nil {
			f.Fatal(err)
		}
		return s
	}
	ca, host, other := signer(1), signer(2), signer(3)
	now := time.Unix(1_800_000_000, 0)
	cert := &ssh.Certificate{Key: host.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"s1"},
		ValidAfter: uint64(now.Unix() - 60), ValidBefore: uint64(now.Unix() + 60)}
	if err := cert.SignCert(bytes.NewReader(make([]byte, 64)), ca); err != nil { // the same in every worker
		f.Fatal(err)
	}
	h := Hop{Name: "web01", ID: "s1", HostCAs: []ssh.PublicKey{ca.PublicKey()}, HostKeys: []ssh.PublicKey{other.PublicKey()}}
	good := cert.Marshal()
	if err := h.verify(now, cert); err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{good, other.PublicKey().Marshal(), host.PublicKey().Marshal(), ca.PublicKey().Marshal()} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := ssh.ParsePublicKey(b)
		if err != nil || h.verify(now, key) != nil {
			return
		}
		if c, ok := key.(*ssh.Certificate); ok {
			key = c.Key
			if bytes.Equal(c.Marshal(), good) {
				return
			}
		}
		if !bytes.Equal(key.Marshal(), other.PublicKey().Marshal()) {
			t.Errorf("%x proves the hop", b)
		}
	})
}

// TestVerify has the rows that no real sshd shows: it checks its own files.
func TestVerify(t *testing.T) {
	ca, _ := newSigner(t)
	host, _ := newSigner(t)
	now := time.Now()
	h := Hop{Name: "web01", ID: "s1", HostCAs: []ssh.PublicKey{ca.PublicKey()}}
	for _, tt := range []struct {
		name   string
		change func(*ssh.Certificate)
		after  func(*ssh.Certificate)
		want   string // part of the reason; empty: it is proven
	}{
		{"as it should be", nil, nil, ""},
		{"a person's", func(c *ssh.Certificate) { c.CertType = ssh.UserCert }, nil, "not for hosts"},
		{"with a critical option", func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "x"} }, nil, "critical options"},
		{"not valid yet", func(c *ssh.Certificate) { c.ValidAfter = uint64(now.Add(time.Minute).Unix()) }, nil, string(expired)},
		{"of the last second", func(c *ssh.Certificate) { c.ValidBefore = uint64(now.Unix()) }, nil, string(expired)},
		{"changed after it was signed", nil, func(c *ssh.Certificate) { c.Serial++ }, "signature does not verify"},
		{"of an id that only begins alike", func(c *ssh.Certificate) { c.ValidPrincipals = []string{"s1.example", "S1", "s*"} }, nil, "another server"},
	} {
		c := &ssh.Certificate{Key: host.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"s1", "web01"},
			ValidAfter: uint64(now.Add(-time.Minute).Unix()), ValidBefore: uint64(now.Add(time.Minute).Unix())}
		if tt.change != nil {
			tt.change(c)
		}
		if err := c.SignCert(rand.Reader, ca); err != nil {
			t.Fatal(err)
		}
		if tt.after != nil {
			tt.after(c)
		}
		err := h.verify(now, c)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	h.ID = ""
	if h.verify(now, host.PublicKey()) == nil {
		t.Error("a key that nobody knows")
	}
}
