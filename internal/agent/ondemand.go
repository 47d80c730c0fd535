package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"sft/internal/api"
)

// An account on demand is made when its person comes, and is removed, with its
// files, a while after their last session. Since when nobody has had a session
// is written down, so a restart of the agent forgets nobody; what was made when
// the setting was not there, or is in no list for another reason, counts as
// left when it is first seen. So to turn the setting on removes nothing at once.

// demandAgain is how soon an account that could not be removed is tried again.
const demandAgain = 30 * time.Second

// hold keeps the account of login, or has it made, until release.
func (s *sessions) hold(login string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, known := s.demand[login]
	s.holds[login]++
	s.demand[login] = s.now()
	err := s.save()
	if err != nil {
		s.unhold(login)
		if delete(s.demand, login); known {
			s.demand[login] = was
		}
		err = fmt.Errorf("write down that the account is needed: %w", err)
	}
	return err
}

func (s *sessions) unhold(login string) {
	if s.holds[login]--; s.holds[login] <= 0 {
		delete(s.holds, login)
	}
}

// release ends a hold. If no session came of it, the account is left now.
func (s *sessions) release(login string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unhold(login)
	s.left(login, s.now())
}

// left notes that a session of login has ended. The caller holds s.mu, and
// saves.
func (s *sessions) left(login string, at time.Time) {
	if _, ok := s.demand[login]; ok {
		s.demand[login] = at
	}
}

// needed tells whether an account on demand has to be there. The caller holds
// s.mu.
func (s *sessions) needed(login string, period time.Duration) bool {
	if s.holds[login] > 0 || s.signedIn(login) {
		return true
	}
	for _, ses := range s.sessions {
		if ses.Login == login {
			return true
		}
	}
	return s.now().Sub(s.demand[login]) < period
}

// demanded returns which accounts on demand have to be there now, and which
// not any more. made are those that there are: what is not known of them
// begins now.
func (s *sessions) demanded(made []string, period time.Duration) (wanted, gone map[string]bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, changed := s.now(), false
	for _, login := range made {
		if _, ok := s.demand[login]; !ok {
			s.demand[login], changed = now, true
		}
	}
	wanted, gone = map[string]bool{}, map[string]bool{}
	for login, since := range s.demand {
		if since.After(now) { // the clock went back
			s.demand[login], changed = now, true
		}
		if s.signedIn(login) { // who leaves has been here until now
			s.demand[login] = now
		}
		if s.needed(login, period) {
			wanted[login] = true
		} else {
			gone[login] = true
		}
	}
	if changed {
		err = s.save()
	}
	return wanted, gone, err
}

// forget forgets accounts that are not there any more, or all.
func (s *sessions) forget(all bool, logins ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.demand)
	maps.DeleteFunc(s.demand, func(login string, _ time.Time) bool {
		return all || slices.Contains(logins, login) && s.holds[login] == 0
	})
	if len(s.demand) == before {
		return nil
	}
	return s.save()
}

// vacate ends what a person left running whose account is to go, before the
// accounts are looked at as a whole: nobody else waits for it there.
func (s *sessions) vacate(ctx context.Context, login string, period time.Duration) error {
	defer s.op(login)()
	s.mu.Lock()
	needed := s.needed(login, period)
	s.mu.Unlock()
	if needed {
		return nil
	}
	return done(errors.Join(s.acc.Disable(ctx, login), s.acc.Logoff(ctx, login)))
}

// onDemand is for how long an account on demand outlives its last session;
// zero: accounts are always there.
func onDemand(st *api.State) time.Duration {
	if st == nil || st.Settings.UserOnDemand <= 0 {
		return 0
	}
	return time.Duration(min(st.Settings.UserOnDemand, 10*365*86400)) * time.Second
}

// demandDue removes the accounts on demand that nobody has used for long
// enough. It waits for nothing. One that could not be removed is tried again a
// while later, and keeps nobody else's.
func (a *Agent) demandDue(ctx context.Context, wg *sync.WaitGroup) {
	st, _ := a.current()
	period := onDemand(st)
	if period == 0 || !a.vacating.CompareAndSwap(false, true) {
		return
	}
	_, gone, err := a.sessions.demanded(nil, period)
	if err != nil {
		a.log.Error("remember the accounts on demand", "error", err)
	}
	fresh, now := false, a.machine()
	for login := range gone {
		if d := now.Sub(a.tried[login]); d < 0 || d >= demandAgain {
			a.tried[login], fresh = now, true
		}
	}
	maps.DeleteFunc(a.tried, func(login string, _ time.Time) bool { return !gone[login] })
	if !fresh {
		a.vacating.Store(false)
		return
	}
	wg.Go(func() {
		defer a.vacating.Store(false)
		var each sync.WaitGroup
		for login := range gone {
			each.Go(func() {
				if err := a.sessions.vacate(ctx, login, period); err != nil {
					a.log.Error("end what is left of an account on demand", "login", login, "error", err)
				}
			})
		}
		each.Wait()
		a.reconcile(ctx)
	})
}

// bring has the account of u made if it is not there, and returns what is to
// be called when u has a session, or none.
func (a *Agent) bring(login string) (release func(), err error) {
	st, _ := a.current()
	if onDemand(st) == 0 {
		return func() {}, nil
	}
	if err := a.sessions.hold(login); err != nil {
		return nil, err
	}
	a.mu.Lock()
	settled := maps.Clone(a.settled)
	delete(settled, login) // what is known of it may be of before
	a.settled = settled
	a.mu.Unlock()
	select {
	case a.again <- struct{}{}:
	default: // it is asked already
	}
	return func() { a.sessions.release(login) }, nil
}
