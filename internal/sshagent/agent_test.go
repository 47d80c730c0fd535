package sshagent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func newSigner(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// address is a socket, or a pipe.
func address(t *testing.T) string {
	if runtime.GOOS == "windows" {
		return "//./pipe/sft-test-" + rand.Text()
	}
	return filepath.Join(t.TempDir(), "a")
}

// serve starts an agent, and returns a way to talk to it.
func serve(t *testing.T, a *Agent) func() agent.ExtendedAgent {
	t.Helper()
	path := address(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS == "windows" {
		// Wine, as Windows 7 did, gives the first client of a pipe the instance
		// that go-winio makes to hold the name, and nobody answers there.
		if c, err := Dial(path); err == nil {
			c.Close()
		}
	}
	done := make(chan struct{})
	go func() { a.Serve(l); close(done) }()
	t.Cleanup(func() { l.Close(); <-done })
	return func() agent.ExtendedAgent {
		c, err := Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return agent.NewClient(c)
	}
}

// The agent lists the certificate of the moment, and signs by the last ones
// that it listed, and by nothing else.
func TestOneKey(t *testing.T) {
	var mu sync.Mutex
	now := newSigner(t)
	a := &Agent{Current: func(context.Context) (ssh.Signer, error) {
		mu.Lock()
		defer mu.Unlock()
		return now, nil
	}}
	first := serve(t, a)()
	list, err := first.List()
	if err != nil || len(list) != 1 || !bytes.Equal(list[0].Blob, now.PublicKey().Marshal()) {
		t.Fatalf("List = %v, %v", list, err)
	}
	old := now
	mu.Lock()
	now = newSigner(t)
	mu.Unlock()
	check := func(key ssh.PublicKey, want bool) {
		t.Helper()
		sig, err := first.Sign(key, []byte("data"))
		if err == nil {
			err = key.Verify([]byte("data"), sig)
		}
		if (err == nil) != want {
			t.Errorf("signing by %x: %v", key.Marshal()[:8], err)
		}
	}
	check(now.PublicKey(), false) // it was not listed
	check(old.PublicKey(), true)
	if list, err = first.List(); err != nil || len(list) != 1 || !bytes.Equal(list[0].Blob, now.PublicKey().Marshal()) {
		t.Fatalf("List = %v, %v", list, err)
	}
	check(now.PublicKey(), true)
	check(newSigner(t).PublicKey(), false)
	for range maxSigners {
		mu.Lock()
		now = newSigner(t)
		mu.Unlock()
		if _, err := first.List(); err != nil {
			t.Fatal(err)
		}
	}
	check(old.PublicKey(), false)
}

func TestNothingElse(t *testing.T) {
	key := newSigner(t)
	dial := serve(t, &Agent{Current: func(context.Context) (ssh.Signer, error) { return key, nil }})
	_, private, _ := ed25519.GenerateKey(rand.Reader)
	for name, try := range map[string]func(agent.ExtendedAgent) error{
		"add":        func(a agent.ExtendedAgent) error { return a.Add(agent.AddedKey{PrivateKey: private}) },
		"remove":     func(a agent.ExtendedAgent) error { return a.Remove(key.PublicKey()) },
		"remove all": func(a agent.ExtendedAgent) error { return a.RemoveAll() },
		"lock":       func(a agent.ExtendedAgent) error { return a.Lock([]byte("x")) },
		"unlock":     func(a agent.ExtendedAgent) error { return a.Unlock([]byte("x")) },
		"extension":  func(a agent.ExtendedAgent) error { _, err := a.Extension("query", nil); return err },
	} {
		a := dial()
		if try(a) == nil {
			t.Errorf("%s was done", name)
		}
		if list, err := a.List(); err != nil || len(list) != 1 {
			t.Errorf("after %s: %v, %v", name, list, err)
		}
	}
}

// Who cannot be given a certificate is told nothing; the person is told why.
func TestNoCertificate(t *testing.T) {
	gone := errors.New("access was taken away")
	var said error
	a := serve(t, &Agent{Current: func(context.Context) (ssh.Signer, error) { return nil, gone }, Refused: func(err error) { said = err }})()
	if list, err := a.List(); err == nil {
		t.Errorf("List = %v", list)
	}
	if said != gone {
		t.Errorf("said %v", said)
	}
}

// memory is a connection whose other end has written all it will.
type memory struct {
	net.Conn
	in *bytes.Reader
}

func (m memory) Read(p []byte) (int, error)  { return m.in.Read(p) }
func (m memory) Write(p []byte) (int, error) { return len(p), nil }
func (m memory) SetDeadline(time.Time) error { return nil }

// FuzzCapped checks that a message reaches the agent whole and as it was, or
// not at all if it is over the limit.
func FuzzCapped(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 11}, 3)
	f.Add([]byte{0, 0, 0, 0, 11}, 1)
	f.Add([]byte{255, 255, 255, 255, 11}, 5)
	f.Add(append([]byte{0, 4, 0, 1}, make([]byte, maxMessage+1)...), 100)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		r := &capped{c: memory{in: bytes.NewReader(in)}}
		var want []byte
		for rest := in; len(rest) >= 4; {
			n := binary.BigEndian.Uint32(rest)
			if n == 0 || n > maxMessage {
				break
			}
			want = append(want, rest[:min(len(rest), 4+int(n))]...)
			rest = rest[min(len(rest), 4+int(n)):]
		}
		var got []byte
		p := make([]byte, 1+uint(size)%64)
		for {
			n, err := r.Read(p)
			got = append(got, p[:n]...)
			if err != nil {
				break
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%x gave %x, want %x", in, got, want)
		}
	})
}
