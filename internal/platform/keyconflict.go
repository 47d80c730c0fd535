package platform

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"regexp"
	"slices"
	"strings"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/store"
)

// Each run of an agent has an id that it keeps in memory alone. One that was
// followed by another run does not come back: if it does, two agents use the
// key at once, because a disk was copied or a key was taken.
const (
	// maxRuns are kept of a server: of more copies than that, which ask in
	// turn, none would be seen to come back.
	maxRuns = 32
	// runMemory is how long a run is kept that asks no more. An agent asks once
	// a minute at least.
	runMemory = 10 * time.Minute
	// runMargin is by how much a request must be younger than the run that
	// followed its own: it may have been on its way when its agent was
	// restarted, and the clocks differ by up to two seconds.
	runMargin = 5 * time.Second
)

var runRE = regexp.MustCompile(`^[A-Za-z0-9_-]{16,64}$`)

// noteRun takes up that the run id asked now, by a request that was made at
// asked, and returns the runs to keep, whether they differ from before, and
// whether there are two agents.
func noteRun(runs []store.AgentRun, id, addr string, asked, now time.Time) (next []store.AgentRun, changed, two bool) {
	runs = slices.DeleteFunc(slices.Clone(runs), func(r store.AgentRun) bool { return now.Sub(r.Last) > runMemory })
	i := slices.IndexFunc(runs, func(r store.AgentRun) bool { return r.ID == id })
	last := len(runs) - 1
	switch {
	case i < 0:
		runs = append(runs, store.AgentRun{ID: id, Addr: addr, First: now, Last: now})
		return runs[max(0, len(runs)-maxRuns):], true, false
	case i == last:
		changed = now.Sub(runs[i].Last) >= time.Minute
		runs[i].Last = now
		return runs, changed, false
	}
	return runs, false, asked.After(runs[last].First.Add(runMargin))
}

// sawRun is noteRun for a server's request.
func (p *Platform) sawRun(n store.Notes, a Actor, s store.ServerRecord, id string) (two bool, err error) {
	if id == "" || s.KeyConflict { // an older agent; or it is known
		return false, nil
	}
	if !runRE.MatchString(id) {
		return false, &sft.Error{Code: sft.Invalid, Msg: "the run is not one that agents name"}
	}
	runs, err := n.AgentRuns(s.ID)
	if err != nil {
		return false, err
	}
	next, changed, two := noteRun(runs, id, a.Addr, a.RequestExpires.Add(-api.RequestLife), p.Now())
	if changed {
		err = n.SetAgentRuns(s.ID, next)
	}
	return two, err
}

// keyConflict stops the issuing of credentials for the actor's server until an
// administrator decides, and says why.
func (p *Platform) keyConflict(ctx context.Context, a Actor, why string) error {
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		s, err := p.server(tx.Notes, a)
		if err != nil {
			return audit.Event{}, err
		}
		if s.KeyConflict {
			return audit.Event{}, errUnchanged
		}
		team, err := tx.TeamByID(s.TeamID)
		if err != nil {
			return audit.Event{}, err
		}
		runs, err := tx.AgentRuns(s.ID)
		if err != nil {
			return audit.Event{}, err
		}
		addrs := []string{a.Addr}
		for _, r := range runs {
			addrs = append(addrs, r.Addr)
		}
		slices.Sort(addrs)
		e := p.event(a, audit.KeyConflict, team.Name, s.Project, s.Server(p.Now()).Name())
		e.Outcome = audit.Refused
		e.Detail = map[string]string{"server": s.ID, "addresses": strings.Join(slices.Compact(addrs), " "), "why": why}
		return e, tx.SetKeyConflict(s.ID, true)
	})
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return err
}

// mayIssue refuses a server that no credentials are issued for.
func (p *Platform) mayIssue(s store.ServerRecord) error {
	if !s.KeyConflict {
		return nil
	}
	return &sft.Error{Code: sft.Denied, Msg: "the device key of server " + sft.Quote(s.Server(p.Now()).Name()) + " is used from two places at once",
		Hint: "let an administrator find the copy and enrol it anew, and then set key_conflict to false on the server, or delete its record"}
}

// errSuperseded is what a device key is told that another took the place of.
var errSuperseded = &sft.Error{Code: sft.SignIn, Msg: "another device key has taken the place of this one",
	Hint: "let an administrator find out who has the new one; then delete the server's record and enrol it again"}

// superseded answers a request that the present device key of the actor's
// server did not sign: by is the older one that did, in words that were signed
// at issued. What was on its way while the key changed is refused, and no more
// than that.
func (p *Platform) superseded(ctx context.Context, a Actor, by store.OldDeviceKey, issued time.Time) error {
	if !issued.After(by.Until.Add(runMargin)) {
		return errSuperseded
	}
	if err := p.keyConflict(ctx, a, "a device key that another took the place of was used"); err != nil {
		return err
	}
	return errSuperseded
}

// signedBefore finds the older device key of the actor's server that has signed
// something. verify is what checks that; no is returned where there is none.
func (p *Platform) signedBefore(ctx context.Context, a Actor, no error, verify func(key *ecdsa.PublicKey) (api.Claims, error)) error {
	var old []store.OldDeviceKey
	if err := p.DB.Read(ctx, func(tx *store.Tx) (err error) {
		old, err = tx.OldDeviceKeys(a.Server)
		return err
	}); err != nil {
		return err
	}
	for _, k := range old {
		key, err := ca.PublicKey(k.SPKI)
		if err != nil {
			return err
		}
		if c, err := verify(key); err == nil {
			return p.superseded(ctx, a, k, time.Unix(c.Issued, 0))
		}
	}
	return no
}
