package client

import (
	"context"
	"errors"
	"time"

	"sft"
	"sft/internal/api"
)

// Enrolment is what a person says when they enrol this machine.
type Enrolment struct {
	URL         string
	Team        string // may be empty where the browser says it
	Fingerprint string // SHA-256 of the platform's own CA; empty if the system knows the CA
	Force       bool   // in place of an enrolment in the same team
	Default     bool
}

// Enroll enrols this machine: it makes a device key and has the person
// approve it. Nothing is kept unless they do.
func (d *Device) Enroll(ctx context.Context, e Enrolment) (Account, error) {
	u, err := api.CheckURL(e.URL)
	if err != nil {
		return Account{}, err
	}
	if e.Team != "" {
		if err := sft.CheckName("team", e.Team); err != nil {
			return Account{}, err
		}
	}
	if _, err := api.ParseFingerprint(e.Fingerprint); err != nil {
		return Account{}, err
	}
	old, err := d.enrolledAt(u, e.Team)
	if err != nil {
		return Account{}, err
	}
	if len(old) > 0 && !e.Force {
		return Account{}, &sft.Error{Code: sft.Exists, Msg: "this device is enrolled in team " + old[0].Team + " of " + u + " already",
			Hint: "run \"sft login\", or add --force to enrol it anew"}
	}
	if d.Ask == Never || d.Ask == ByAgent { // before the platform is asked for anything
		_, err := (&approval{d: d}).ask(ctx)
		return Account{}, err
	}
	a := Account{URL: u, Team: e.Team}
	if a.CA, err = d.trust(ctx, a, e.Fingerprint); err != nil {
		return Account{}, err
	}
	c, err := d.newAPI(a)
	if err != nil {
		return Account{}, err
	}
	key, err := newKey()
	if err != nil {
		return Account{}, err
	}
	reply, err := (&approval{d: d, c: c, key: key, team: e.Team}).get(ctx)
	if err != nil {
		return Account{}, err
	}
	a.Team, a.User, a.ClientID, a.Audience = reply.Team, reply.User, reply.ClientID, reply.URL
	a.SignedInUntil, a.Default = reply.SignedInUntil, e.Default
	if err := (state{[]Account{a}}).check(); err != nil || a.Audience == "" {
		return Account{}, &sft.Error{Code: sft.Internal, Msg: "the platform's answer is not complete", Err: err, Hint: "check that sft and the platform are of the same version"}
	}
	if a.InKeyring, err = d.Store.keys.save(a, key); err != nil {
		return Account{}, err
	}
	if err := d.Store.put(a); err != nil {
		return Account{}, errors.Join(err, d.Store.keys.remove(a))
	}
	if reply.State == sft.StatePending {
		d.Say("warning: an administrator of team " + a.Team + " has to approve client " + a.ClientID + " before it opens anything")
	}
	// What the new enrolment replaces is removed last, so that a failure
	// before leaves it in use.
	if old, err = d.enrolledAt(u, a.Team); err != nil {
		return a, err
	}
	for _, o := range old {
		if o.ClientID == a.ClientID {
			continue
		}
		if err := d.Unenroll(ctx, o, true); err != nil {
			return a, err
		}
	}
	return a, nil
}

// enrolledAt returns the persons' accounts at a platform, in team if that is said.
func (d *Device) enrolledAt(url, team string) ([]Account, error) {
	all, err := d.Store.Accounts()
	var at []Account
	for _, a := range people(all) {
		if a.URL == url && (team == "" || sft.Fold(a.Team) == sft.Fold(team)) {
			at = append(at, a)
		}
	}
	return at, err
}

// trust returns the CA to trust for the platform of a: the one with the
// fingerprint, or the one that was trusted at this URL before, or, as nil,
// the system's.
func (d *Device) trust(ctx context.Context, a Account, fingerprint string) ([]byte, error) {
	if fingerprint == "" {
		known, err := d.enrolledAt(a.URL, "")
		if err != nil {
			return nil, err
		}
		for _, k := range known {
			if len(k.CA) > 0 {
				return k.CA, nil
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return api.FetchCA(ctx, a.URL, fingerprint, d.Proxy, &api.Clock{Machine: d.Machine})
}

// Unenroll removes this machine from an account's team, and the account from
// this machine. With force it forgets the account even where the platform
// cannot be told.
func (d *Device) Unenroll(ctx context.Context, a Account, force bool) error {
	s, err := d.Session(a)
	if err == nil {
		err = s.do(ctx, "DELETE", s.team("/clients/"+a.ClientID), nil, nil)
	}
	switch code := sft.CodeOf(err); {
	case err == nil, code == sft.Revoked, code == sft.NotFound: // gone before
	case !force:
		return err
	default:
		d.Say("warning: the record of this device stays in team " + a.Team + ": " + err.Error())
	}
	return d.Store.remove(a)
}
