package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/conf"
	"sft/internal/frame"
)

// Service is the kind of the account of a service user: this host's agent
// vouches for it, and no person.
const Service = "service"

const (
	vouchAhead = 5 * time.Minute  // before the sign-in ends, it is begun anew
	vouchTime  = 25 * time.Second // for the agent, which asks the platform
	vouchLock  = "service.lock"
)

// Find returns the account in team, or the default one, as Store.Find does. By
// the agent's word (ByAgent) there is one account, which is made when it is
// not there, and whose sign-in is begun anew when it is about to end.
func (d *Device) Find(ctx context.Context, team string) (Account, error) {
	if d.Ask != ByAgent {
		return d.Store.Find(team)
	}
	a, err := d.Store.service()
	if err != nil {
		return a, err
	}
	if _, bad := d.Store.keys.load(a); a.ClientID == "" || bad != nil || d.left(a) < vouchAhead {
		fresh, err := d.vouched(ctx, a)
		switch {
		case err == nil:
			a = fresh
		case a.ClientID == "" || bad != nil || d.left(a) <= 0:
			return Account{}, err
		default:
			d.Log.Debug("begin the sign-in anew before it ends", "error", err)
		}
	}
	if team != "" && sft.Fold(a.Team) != sft.Fold(team) && a.ClientID != team {
		return Account{}, &sft.Error{Code: sft.SignIn, Msg: "this host's agent vouches for a service user of team " + a.Team + ", and not of " + sft.Quote(team),
			Hint: "leave out --team, or run \"sft config service_auth.enable false\" to be yourself"}
	}
	return a, nil
}

// SessionOf finds the account in team, or the default one, and begins a session of
// it. Another process may put another client in the place of a service user's
// between the two: that is found then.
func (d *Device) SessionOf(ctx context.Context, team string) (*Session, error) {
	a, err := d.Find(ctx, team)
	if err != nil {
		return nil, err
	}
	s, err := d.Session(a)
	if err == nil || a.Kind != Service {
		return s, err
	}
	if a, err = d.Find(ctx, team); err != nil {
		return nil, err
	}
	return d.Session(a)
}

// left is how long the sign-in of a lasts, by the platform's clock.
func (d *Device) left(a Account) time.Duration {
	now := time.Now()
	if d.Machine != nil {
		now = d.Machine()
	}
	return a.SignedInUntil.Sub(now.Add(time.Duration(a.ClockOffset) * time.Millisecond))
}

// service returns the account of a service user, or an empty one.
func (s *Store) service() (Account, error) {
	all, err := s.Accounts()
	for _, a := range all {
		if a.Kind == Service {
			return a, nil
		}
	}
	return Account{}, err
}

// vouched has the agent vouch for this process once more, unless another
// process had it do so since seen was read. A device key is kept as long as the
// platform takes it: one that was refused is never good again.
func (d *Device) vouched(ctx context.Context, seen Account) (Account, error) {
	l, err := lockWithin(ctx, filepath.Join(d.Store.dir, vouchLock))
	if err != nil {
		return Account{}, err
	}
	defer l.Release()
	old, err := d.Store.service()
	if err != nil {
		return Account{}, err
	}
	key, bad := d.Store.keys.load(old)
	if bad == nil && (old.ClientID != seen.ClientID || old.SignedInUntil.After(seen.SignedInUntil)) {
		return old, nil
	}
	a := Account{Kind: Service}
	if bad == nil {
		a, err = d.vouch(ctx, key, old)
	}
	clock := old.ClockOffset
	if sft.CodeOf(err) == sft.Exists { // forgotten at once: if the agent does not hear the next question, the one after it is the same
		if err := d.Store.remove(old); err != nil {
			return Account{}, err
		}
		old, bad = Account{}, err
	}
	if bad != nil {
		if key, err = newKey(); err == nil {
			a, err = d.vouch(ctx, key, Account{Kind: Service, ClockOffset: clock})
		}
	}
	if err != nil {
		return Account{}, err
	}
	if a.ClientID != old.ClientID || bad != nil {
		if _, err := (keys{dir: d.Store.dir, ring: FileRing}).save(a, key); err != nil {
			return Account{}, err
		}
	}
	if err := d.Store.put(a); err != nil {
		return Account{}, err
	}
	if old.ClientID != "" && old.ClientID != a.ClientID {
		return a, d.Store.remove(old)
	}
	return a, nil
}

// vouch asks the agent for a client with key; a is what is known of it.
func (d *Device) vouch(ctx context.Context, key *ecdsa.PrivateKey, a Account) (Account, error) {
	path := d.agent
	if path == "" {
		path = conf.AgentPaths().Service
	}
	silent := func(err error) error {
		return &sft.Error{Code: sft.SignIn, Msg: "this host's agent does not say whose process this is: " + err.Error(), Err: err,
			Hint: "have the host's administrator look at \"sftd status\", or run \"sft config service_auth.enable false\" to be yourself"}
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return a, err
	}
	ask, err := json.Marshal(api.ServiceAsk{DeviceKey: spki, Device: d.Info})
	if err != nil {
		return a, err
	}
	ctx, cancel := context.WithTimeout(ctx, vouchTime)
	defer cancel()
	conn, err := dialAgent(ctx, path)
	if err != nil {
		return a, silent(err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	_ = frame.Write(conn, ask) // an agent that did not take it may have said why
	b, err := frame.Read(conn)
	var r api.ServiceAnswer
	if err == nil {
		err = frame.Decode(b, &r)
	}
	switch {
	case ctx.Err() != nil:
		return a, silent(context.Cause(ctx))
	case err != nil:
		return a, silent(err)
	case r.Error != nil:
		return a, r.Error
	}
	url, err := api.CheckURL(r.URL)
	a.Team, a.User, a.ClientID, a.URL, a.Audience, a.CA, a.SignedInUntil = r.Team, r.User, r.ClientID, url, r.URL, r.CA, r.SignedInUntil
	if err = errors.Join(err, (state{[]Account{a}}).check()); err != nil {
		return a, &sft.Error{Code: sft.Internal, Msg: "the agent's answer is not complete", Err: err, Hint: "check that sft and sftd are of the same version"}
	}
	return a, nil
}

// lockWithin waits for the lock on a file as long as ctx lets it.
func lockWithin(ctx context.Context, path string) (*conf.Lock, error) {
	for {
		l, err := conf.TryLock(path)
		if !errors.Is(err, conf.ErrLocked) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Mine returns the accounts that this device acts by as it is set: the service
// user's, as far as it was made before, or else those of its person.
func (d *Device) Mine() ([]Account, error) {
	all, err := d.Store.Accounts()
	if d.Ask != ByAgent {
		return people(all), err
	}
	return slices.DeleteFunc(all, func(a Account) bool { return a.Kind != Service }), err
}

// people are the accounts of persons among all.
func people(all []Account) []Account {
	return slices.DeleteFunc(slices.Clone(all), func(a Account) bool { return a.Kind == Service })
}
