package platform

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/store"
)

// The life of a server's device key. How much earlier than that its agent is
// told to make another differs from key to key: a fleet that enrolled in one
// hour does not come in one.
const (
	deviceKeyLife  = 30 * 24 * time.Hour
	deviceKeyEarly = 3 * 24 * time.Hour
)

// keyDue reports whether a server's agent is to make another device key now.
// With two agents it is nobody's to change.
func (p *Platform) keyDue(s store.ServerRecord) bool {
	sum := sha256.Sum256(s.DeviceKey)
	early := time.Duration(binary.BigEndian.Uint64(sum[:]) % uint64(deviceKeyEarly))
	due := s.RotateKey || !p.Now().Before(s.DeviceKeySince.Add(deviceKeyLife-early))
	return due && !s.KeyConflict && p.limits.allow(p.Now(), "device key", time.Second/10, 50)
}

// RotateDeviceKey puts another device key in the place of a server's. Nothing
// of the request is believed but the two signatures in it, so that an agent
// that lost the reply, or does not know whether its request arrived, just asks
// again.
func (p *Platform) RotateDeviceKey(ctx context.Context, a Actor, r api.DeviceKeyRequest) (struct{}, error) {
	none := struct{}{}
	a = Actor{Addr: a.Addr} // whoever has signed the request itself
	next, err := ca.PublicKey(r.DeviceKey)
	if err != nil {
		return none, err
	}
	if !p.from(a, "device key", time.Second/10, 200) {
		return none, errTooOften
	}
	var s store.ServerRecord
	if err := p.DB.Read(ctx, func(tx *store.Tx) (err error) {
		s, err = keyOwner(tx.Notes, r.ServerID)
		return err
	}); err != nil {
		return none, err
	}
	a.Server, a.Name = s.ID, s.Server(p.Now()).Name()
	verify := func(old *ecdsa.PublicKey) (api.Claims, error) {
		return api.VerifyRotation(r, p.URL, p.Now(), old, next)
	}
	by := s.DeviceKey
	old, err := ca.PublicKey(by)
	if err != nil {
		return none, err
	}
	c, err := verify(old)
	if sft.CodeOf(err) == sft.SignIn && err != nil {
		if done, derr := p.rotated(ctx, s, r.DeviceKey, verify); done || derr != nil {
			return none, derr
		}
		return none, p.signedBefore(ctx, a, err, verify)
	}
	if err != nil {
		return none, err
	}
	a.RequestID, a.RequestExpires = c.ID, time.Unix(c.Expires, 0)
	return none, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		s, err := keyOwner(tx.Notes, r.ServerID)
		if err != nil {
			return audit.Event{}, err
		}
		if !bytes.Equal(s.DeviceKey, by) {
			return audit.Event{}, errSuperseded // meanwhile
		}
		if err := p.mayIssue(s); err != nil {
			return audit.Event{}, err
		}
		team, err := tx.TeamByID(s.TeamID)
		if err != nil {
			return audit.Event{}, err
		}
		if err = errKeyKnown; !bytes.Equal(r.DeviceKey, by) {
			err = tx.ReplaceDeviceKey(s.ID, r.DeviceKey, p.Now())
		}
		if errors.Is(err, store.ErrExists) {
			err = errKeyKnown
		}
		e := p.event(a, audit.DeviceKeyRotate, team.Name, s.Project, s.Server(p.Now()).Name())
		e.Detail = map[string]string{"server": s.ID, "key_sha256": fmt.Sprintf("%x", sha256.Sum256(r.DeviceKey)), "old_key_sha256": fmt.Sprintf("%x", sha256.Sum256(by))}
		return e, err
	})
}

// errKeyKnown is what the owner of a device key is told that has to make
// another one.
var errKeyKnown = &sft.Error{Code: sft.Exists, Msg: "the new device key is, or was, some server's", Hint: "make a new one"}

// rotated reports whether the very change that is asked for was the last one:
// its reply was lost.
func (p *Platform) rotated(ctx context.Context, s store.ServerRecord, next []byte, verify func(old *ecdsa.PublicKey) (api.Claims, error)) (bool, error) {
	if !bytes.Equal(s.DeviceKey, next) {
		return false, nil
	}
	done := false
	err := p.DB.Read(ctx, func(tx *store.Tx) error {
		old, err := tx.OldDeviceKeys(s.ID)
		if err != nil || len(old) == 0 {
			return err
		}
		key, err := ca.PublicKey(old[0].SPKI)
		if err == nil {
			_, err := verify(key)
			done = err == nil
		}
		return err
	})
	return done, err
}

// keyOwner returns a server that has a device key.
func keyOwner(n store.Notes, id string) (store.ServerRecord, error) {
	s, err := n.ServerByID(id)
	switch {
	case errors.Is(err, store.ErrNotFound) || err == nil && s.Unmanaged:
		return s, errUnknownServer
	case err == nil && s.DeletedAt != nil:
		return s, errRevoked("server")
	}
	return s, err
}
