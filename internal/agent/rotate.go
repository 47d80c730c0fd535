package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"sync"

	"sft"
	"sft/internal/api"
	"sft/internal/conf"
)

// nextKeyFile holds the device key that is to take the place of the present
// one. It is there before the platform hears of the key, and until the
// identity has it: while it is there, which of the two the platform knows is
// in doubt, and to ask for the change once more is what settles it.
const nextKeyFile = "device.next"

// deviceKeyPart is what problems of the device key are noted under.
const deviceKeyPart = "device key"

// A signer has the key that an enrolled host signs its requests with. The key
// changes while the host works, and nobody signs while it is in doubt: the old
// key in use after the change looks to the platform like a copy of the host.
type signer struct {
	id identity // of runSync alone, after the start
	c  api.Client

	mu    sync.Mutex
	key   *ecdsa.PrivateKey
	known chan struct{} // closed when key is not in doubt

	unstored bool // the identity does not have key yet; of runSync
}

// newSigner takes up the key of the identity. It is in doubt if the agent
// ended while it changed the key.
func (a *Agent) newSigner(id identity, key *ecdsa.PrivateKey, hc *http.Client) *signer {
	d := &signer{id: id, key: key, known: make(chan struct{}),
		c: api.Client{URL: id.URL, HTTP: hc, Clock: a.clock, UserAgent: userAgent}}
	if _, err := os.Lstat(a.conf.file(nextKeyFile)); errors.Is(err, os.ErrNotExist) {
		close(d.known)
	}
	return d
}

// use returns the key, as soon as it is known.
func (d *signer) use(ctx context.Context) (*ecdsa.PrivateKey, error) {
	d.mu.Lock()
	known := d.known
	d.mu.Unlock()
	select {
	case <-known:
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.key, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (d *signer) inDoubt() bool {
	select {
	case <-d.known:
		return false
	default:
		return true
	}
}

// hold puts the key in doubt, and release ends that.
func (d *signer) hold() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.inDoubt() {
		d.known = make(chan struct{})
	}
}

func (d *signer) release(key *ecdsa.PrivateKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.key = key
	close(d.known)
}

// rotate has another device key take the place of the present one. It comes
// back when it is settled which of the two the platform knows, or ctx ends;
// then the next start settles it.
func (a *Agent) rotate(ctx context.Context, d *signer) {
	d.hold()
	next, err := a.keptKey(nextKeyFile)
	if err == nil && !next.Equal(d.key) {
		err = a.askRotation(ctx, d, next)
	}
	if ctx.Err() != nil {
		return
	}
	key := d.key
	switch {
	case err == nil:
		// The platform knows the new key alone. If it cannot be stored, the file of
		// the next key is still there, for another try or the next start.
		key = next
		err = a.adopt(d, next)
		if d.unstored = err != nil; err == nil {
			a.log.Info("the device key is another now")
		}
	case sft.CodeOf(err) == sft.Exists:
		err = errors.Join(err, os.Remove(a.conf.file(nextKeyFile)))
	}
	if err != nil {
		a.log.Error("change the device key", "error", err)
	}
	a.setProblem(deviceKeyPart, err)
	d.release(key)
}

// askRotation asks the platform for the change until it has said yes, which is
// no error, or no.
func (a *Agent) askRotation(ctx context.Context, d *signer, next *ecdsa.PrivateKey) error {
	var wait backoff
	for {
		err := a.rekey(ctx, d, d.key, next)
		switch code := sft.CodeOf(err); {
		case err == nil:
			return nil
		case code == sft.Replayed: // the answer to it was lost on the way
		case code == sft.Unavailable || code == sft.Internal || code == sft.ClockSkew:
			// It may have done it all the same.
			if code == sft.Internal {
				if known, perr := d.knows(ctx, next); perr == nil {
					if known {
						return nil
					}
					return err
				}
			}
			a.log.Warn("no answer from the platform on the new device key", "error", err)
			a.setProblem("platform", err)
			a.mu.Lock()
			a.lost = true
			a.mu.Unlock()
		default:
			return err
		}
		if !wait.sleep(ctx) {
			return ctx.Err()
		}
	}
}

// knows reports whether the platform has key for the host's.
func (d *signer) knows(ctx context.Context, key *ecdsa.PrivateKey) (bool, error) {
	c := d.c
	c.Key, c.Issuer = key, "server:"+d.id.ServerID
	err := c.Do(ctx, "GET", "/v1/agent/state?after=-1", nil, nil)
	if err != nil && sft.CodeOf(err) == sft.SignIn {
		return false, nil
	}
	return err == nil, err
}

// rekey asks the platform once for the key next in the place of old.
func (a *Agent) rekey(ctx context.Context, d *signer, old, next *ecdsa.PrivateKey) error {
	ctx, cancel := context.WithTimeout(ctx, stateTimeout)
	defer cancel()
	r, err := api.SignRotation(old, next, d.id.ServerID, d.id.URL, a.now())
	if err != nil {
		return err
	}
	return d.c.Do(ctx, "POST", api.RotatePath, r, nil)
}

// adopt stores the new key in the identity, and the one before beside it.
func (a *Agent) adopt(d *signer, next *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(next)
	if err != nil {
		return err
	}
	id := d.id
	if !bytes.Equal(id.Key, der) {
		id.OldKey, id.Key = id.Key, der
	}
	j, err := json.Marshal(id)
	if err != nil {
		return err
	}
	if err := conf.WriteSecret(a.conf.TokenFile, j); err != nil {
		return err
	}
	d.id = id
	return os.Remove(a.conf.file(nextKeyFile))
}

// settle is for a platform that does not know the device key: a change that it
// seemed to refuse came about after all, or it was restored from a backup and
// knows the key before, whose word makes the present one known again. It
// reports whether the platform knows the key now and did not before.
func (a *Agent) settle(ctx context.Context, d *signer) bool {
	if _, err := os.Lstat(a.conf.file(nextKeyFile)); err == nil {
		before := d.key
		a.rotate(ctx, d)
		return d.key != before
	}
	old, ok := parseKey(d.id.OldKey)
	if !ok {
		return false
	}
	if known, err := d.knows(ctx, d.key); known || err != nil {
		return false
	}
	err := a.rekey(ctx, d, old, d.key)
	if err != nil {
		a.log.Error("make the device key known to the platform again", "error", err)
	}
	return err == nil
}
