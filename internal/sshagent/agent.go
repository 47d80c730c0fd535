// Package sshagent answers OpenSSH as an agent that has one key: the
// certificate of one person for one server, which lives in this process alone.
// So OpenSSH signs in by a key that is in no file, and the certificate may be
// another one each time that it asks.
//
// The agent lists that certificate and signs by it. It takes no key, gives
// none away, and forgets none. Who may ask is settled by the system: the socket
// is in a private folder and of the same user, the pipe of Windows has a list
// of rights with one entry.
package sshagent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

const (
	// maxMessage caps what one request may be, in bytes: OpenSSH's own agent
	// takes 256 KiB (draft-ietf-sshm-ssh-agent has no limit).
	maxMessage = 256 << 10
	maxConns   = 16
	maxSigners = 8               // how many that were listed can still be signed by
	idleTime   = 5 * time.Minute // between two requests
	issueTime  = 30 * time.Second
)

// An Agent serves one key. Current returns a certificate with its key, good for
// a while, each time that somebody wants to know which there is. Refused, which
// may be nil, is told why somebody got nothing.
type Agent struct {
	Current func(ctx context.Context) (ssh.Signer, error)
	Refused func(err error)

	mu     sync.Mutex
	listed []ssh.Signer // the newest last
}

// Serve answers on l until l is closed, and then ends what is open.
func (a *Agent) Serve(l net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	places := make(chan struct{}, maxConns)
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || !temporary(err) {
				return
			}
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err := checkPeer(c); err != nil {
			a.refuse(err)
			c.Close()
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			c.Close()
			continue
		}
		go func() {
			defer func() { <-places }()
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			agent.ServeAgent(keyring{ctx, a}, &capped{c: c})
		}()
	}
}

func temporary(err error) bool {
	t, ok := err.(interface{ Temporary() bool })
	return ok && t.Temporary()
}

func (a *Agent) refuse(err error) {
	if a.Refused != nil {
		a.Refused(err)
	}
}

// list returns the present certificate, and keeps it to be signed by.
func (a *Agent) list(ctx context.Context) (ssh.Signer, error) {
	ctx, cancel := context.WithTimeout(ctx, issueTime)
	defer cancel()
	s, err := a.Current(ctx)
	if err != nil {
		a.refuse(err)
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.find(s.PublicKey()) == nil {
		a.listed = append(a.listed, s)
		if n := len(a.listed) - maxSigners; n > 0 {
			a.listed = append(a.listed[:0], a.listed[n:]...)
		}
	}
	return s, nil
}

// find returns the signer of key, or nil. The caller holds a.mu.
func (a *Agent) find(key ssh.PublicKey) ssh.Signer {
	for _, s := range a.listed {
		if bytes.Equal(s.PublicKey().Marshal(), key.Marshal()) {
			return s
		}
	}
	return nil
}

// capped passes an agent's messages on as they are, but none that is too long:
// package agent would make room for 16 MiB. An end comes after idleTime without
// a request.
type capped struct {
	c    net.Conn
	head [4]byte
	have int // of head, to be read
	left int // of the message, behind head
}

func (r *capped) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.have == 0 && r.left == 0 {
		r.c.SetDeadline(time.Now().Add(idleTime))
		if _, err := io.ReadFull(r.c, r.head[:]); err != nil {
			return 0, err
		}
		n := binary.BigEndian.Uint32(r.head[:])
		if n == 0 || n > maxMessage {
			return 0, errors.New("a message of the agent's protocol is too long, or empty")
		}
		r.have, r.left = len(r.head), int(n)
	}
	if r.have > 0 {
		n := copy(p, r.head[len(r.head)-r.have:])
		r.have -= n
		return n, nil
	}
	n, err := r.c.Read(p[:min(len(p), r.left)])
	r.left -= n
	return n, err
}

func (r *capped) Write(p []byte) (int, error) { return r.c.Write(p) }

// errNo is for whatever else may be asked of an agent.
var errNo = errors.New("this agent has one key, and only signs by it")

// keyring is an Agent as package agent wants it.
type keyring struct {
	ctx context.Context
	a   *Agent
}

func (k keyring) List() ([]*agent.Key, error) {
	s, err := k.a.list(k.ctx)
	if err != nil {
		return nil, err
	}
	pub := s.PublicKey()
	return []*agent.Key{{Format: pub.Type(), Blob: pub.Marshal(), Comment: "sft"}}, nil
}

func (k keyring) Sign(key ssh.PublicKey, data []byte) (*ssh.Signature, error) {
	return k.SignWithFlags(key, data, 0)
}

// SignWithFlags signs by the key itself, whatever flags ask for: they are of
// RSA's hashes.
func (k keyring) SignWithFlags(key ssh.PublicKey, data []byte, _ agent.SignatureFlags) (*ssh.Signature, error) {
	k.a.mu.Lock()
	s := k.a.find(key)
	k.a.mu.Unlock()
	if s == nil {
		return nil, errNo
	}
	return s.Sign(rand.Reader, data)
}

func (keyring) Add(agent.AddedKey) error       { return errNo }
func (keyring) Remove(ssh.PublicKey) error     { return errNo }
func (keyring) RemoveAll() error               { return errNo }
func (keyring) Lock([]byte) error              { return errNo }
func (keyring) Unlock([]byte) error            { return errNo }
func (keyring) Signers() ([]ssh.Signer, error) { return nil, errNo }
func (keyring) Extension(string, []byte) ([]byte, error) {
	return nil, agent.ErrExtensionUnsupported
}
