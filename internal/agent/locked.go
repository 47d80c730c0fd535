package agent

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"sft/internal/broker"
)

// desktops are the sessions of the operating system. There is one for
// Windows, and one for tests.
type desktops interface {
	// locked returns the sessions whose desktop is locked.
	locked() ([]uint32, error)
	// owner returns who signed in to a session, as the name of the computer
	// or domain and of the account, and whether a client is connected to it.
	owner(id uint32) (domain, login string, connected bool, err error)
	// computer is the name of this one, as owner has it for local accounts.
	computer() (string, error)
	// disconnect takes the client away from a session, which lives on.
	disconnect(id uint32) error
}

// lockedDesktops does what has to be done when a desktop was locked, of
// whichever sessions it is. One that fails does not keep the others.
func (a *Agent) lockedDesktops(d desktops) error {
	ids, err := d.locked()
	if err != nil {
		return fmt.Errorf("find the desktops that are locked: %w", err)
	}
	var errs []error
	for _, id := range ids {
		errs = append(errs, a.lockedDesktop(d, id))
	}
	return errors.Join(errs...)
}

// lockedDesktop does what has to be done when a desktop was locked. It asks for
// a password, which nobody knows, so the client is taken away and told why: who
// comes back gets in by a fresh sign-in. Only a session of a local account with
// open streams is touched, and only while a client is connected to it: Windows
// also locks what was left, and may say so when somebody is back already.
func (a *Agent) lockedDesktop(d desktops, id uint32) error {
	domain, login, connected, err := d.owner(id)
	if err != nil {
		return fmt.Errorf("find whose desktop was locked: %w", err)
	}
	computer, err := d.computer()
	if err != nil {
		return fmt.Errorf("find the computer's name: %w", err)
	}
	if !connected || !strings.EqualFold(domain, computer) || !a.sessions.locked(login) {
		return nil
	}
	// The broker has to have told the client: to it, a service that hangs up
	// first has just ended.
	a.sessions.awaitEnd(login)
	if _, now, connected, err := d.owner(id); err != nil || !connected || !strings.EqualFold(now, login) {
		return nil // the end of the streams has done it
	}
	if err := d.disconnect(id); err != nil {
		return fmt.Errorf("disconnect the locked desktop of %s: %w", login, err)
	}
	a.log.Info("a locked desktop was disconnected", "login", login)
	return nil
}

// locked ends the streams of an account whose desktop was locked, and reports
// whether there were any. The sessions go on: streams may join them again. An
// account has one desktop, so all its streams lead to the one that was locked.
func (s *sessions) locked(login string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	any := false
	for id, st := range s.streams {
		if !strings.EqualFold(st.account.login, login) { // Windows does not mind capitals
			continue
		}
		any = true
		if st.ended.IsZero() {
			st.ended = s.now()
			s.end(id, broker.Locked)
		}
	}
	return any
}

// awaitEnd waits until the streams that were ended of an account are closed,
// but no longer than endPatience.
func (s *sessions) awaitEnd(login string) {
	over := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, st := range s.streams {
			if !st.ended.IsZero() && strings.EqualFold(st.account.login, login) {
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(endPatience); !over() && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}
