// Package accounts makes the local accounts of one host match what the
// platform wants, and opens and shuts them.
//
// The idea is that an account is at rest unless somebody is signing in: it
// exists, it is not expired, and no password matches it. Reconcile makes,
// changes and ends accounts; Enable and Disable open and shut one; Logoff ends
// what a person left running.
//
// No account is touched that is not ours. An account is ours when it is in the
// local group that marks our accounts and has the identity (uid, SID) that the
// record says we gave it. With the record lost, the group and the platform's
// uid together prove it again. Everything else on the host is somebody else's:
// it is reported, and never adopted, changed or deleted.
//
// What should be done is decided by a pure function, decide, from three
// things: what the host has, what the record says, what the platform wants.
// Doing it is the part of a Backend, one per operating system, and one in
// memory for the tests of other packages. The record is written before the
// host is changed, and every step can be repeated, so an agent that is killed
// anywhere goes on from there at its next Reconcile.
package accounts

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"sft"
)

// A Want is one account that the platform wants on this host.
type Want struct {
	Login    string `json:"login"`
	FullName string `json:"full_name"`
	UID      int    `json:"uid"` // the same on every host of the team, and never given to another person
	GID      int    `json:"gid"` // of the private group that has the login's name
	Admin    bool   `json:"admin"`
}

// Limits are what the host's own administrator allows, whatever the platform
// wants. The zero Limits allow no administrator and anybody else.
type Limits struct {
	AllowAdmin    bool
	AllowedLogins []string // globs as in path.Match; nil allows every login
	MaxUsers      int      // 0 is no limit
}

// A Change says what Reconcile did about one login.
type Change string

// The changes. Each but Kept is worth an audit event, when it is not the same
// as the last one of that login.
const (
	Created  Change = "created"  // it was made, and is at rest
	Updated  Change = "updated"  // name, group, admin rights, home or expiry differed
	Removed  Change = "removed"  // it was deleted, with its home
	Disabled Change = "disabled" // it is no longer wanted: shut, and its processes ended
	Kept     Change = "kept"     // it was as wanted already
	Conflict Change = "conflict" // the host has something in its place that is not ours
	Refused  Change = "refused"  // the host's limits, or the name or ids, forbid it
	Failed   Change = "failed"   // the next Reconcile tries again
)

// An Outcome is what Reconcile did about one login. Err says what was not done
// and what to do about it; it may come with any Change, where the rest of the
// work was done: an account without the admin rights that the host forbids.
type Outcome struct {
	Login  string
	Change Change
	Err    error
}

// A Clash says which name or id of what is wanted something on the host has
// that sftd did not make. It is in the chain of the error of a Conflict.
type Clash string

// The clashes.
const (
	ClashName Clash = "name"
	ClashUID  Clash = "uid"
	ClashGID  Clash = "gid"
)

// Error is for logs: the error that it is in says what is in the way.
func (c Clash) Error() string { return "the " + string(c) + " is not to be had on this host" }

// String tells the outcome in one line, with the hint.
func (o Outcome) String() string {
	s := o.Login + ": " + string(o.Change)
	if o.Err != nil {
		s += ": " + sft.Explain(o.Err)
	}
	return s
}

// A State is where one account is between made and deleted.
type State string

// The states that `sftd status` shows.
const (
	AtRest  State = "at rest" // nothing matches its password
	Enabled State = "enabled" // a password is set: somebody is signing in, or signed in
	Ended   State = "ended"   // no longer wanted: shut and expired, its files kept
	Missing State = "missing" // wanted or recorded, and not on the host
)

// An AccountStatus is one line of `sftd status`.
type AccountStatus struct {
	Login   string `json:"login"`
	UID     int    `json:"uid,omitempty"`
	State   State  `json:"state"`
	Admin   bool   `json:"admin,omitempty"`
	Problem string `json:"problem,omitempty"` // what is wrong and what to do; empty when nothing is
}

// A Backend does to one operating system's accounts what a Manager decides.
//
// Each method can be repeated after it was cut short anywhere, changes only
// what differs, and changes nothing (and starts no program) when nothing does.
// A Manager makes one call at a time, except for Logoff and SignedInSince.
type Backend interface {
	// Read returns every local account, and looks at the homes of logins.
	Read(ctx context.Context, logins []string) (Host, error)
	// Prepare makes the group that marks our accounts.
	Prepare(ctx context.Context) error
	// PrepareAdmin makes what gives rights to administrators.
	PrepareAdmin(ctx context.Context) error
	// Create makes an account at rest, in the group that marks ours from the
	// moment it is whole, with mark in place of its full name, and returns its
	// identity. Whatever else w wants is Update's.
	Create(ctx context.Context, w Want, mark string) (id string, err error)
	// Update makes a, which is ours, as wanted, and not expired. It leaves the
	// password alone.
	Update(ctx context.Context, a Account, w Want) error
	// Enable clears a lockout and sets the password.
	Enable(ctx context.Context, a Account, password sft.Secret) error
	// Rest lets no password match.
	Rest(ctx context.Context, a Account) error
	// End is Rest, and takes admin rights, and makes the operating system
	// refuse the account whatever is shown to it: a planted SSH key, a job.
	End(ctx context.Context, a Account) error
	// Delete deletes the account if it is there, and what belongs to it; its
	// home only if asked. The error is errInUse if something runs as a.
	Delete(ctx context.Context, a Account, home bool) error
	// Logoff ends every session and process of a, and returns when none is left.
	Logoff(ctx context.Context, a Account) error
	// SignedInSince reports whether a session of a began after t.
	SignedInSince(ctx context.Context, a Account, t time.Time) (bool, error)
}

// A Keeper is a Backend whose open accounts expire by themselves a few minutes
// after the last Enable or KeepAlive, so that they do not stay open when the
// agent is gone.
type Keeper interface {
	// KeepAlive puts the expiry of a off, if a is open.
	KeepAlive(ctx context.Context, a Account) error
}

// A Manager is the one owner of a host's accounts of ours. Its methods may be
// called at the same time.
type Manager struct {
	b    Backend
	path string // of the record; empty keeps it in memory alone

	reconciling sync.Mutex // one Reconcile at a time; taken before mu

	mu     sync.Mutex // one change of the host at a time; guards what follows
	rec    map[string]entry
	groups map[string]int // gids of the synced groups that are ours
	lost   bool           // there was no record, and no Reconcile has made one since
	last   map[string]Outcome
}

// Open returns the manager of this host's accounts, with its record in the
// folder dir. A record that is missing is a new one. A record that is damaged
// is set aside as accounts.json.bad and counts as missing; the accounts are
// found again by their group and uid.
func Open(dir string, b Backend) (*Manager, error) {
	rec, path, err := openRecord(dir)
	if err != nil {
		return nil, err
	}
	m := &Manager{b: b, path: path, rec: rec.Accounts, groups: rec.Groups, lost: rec.Accounts == nil, last: map[string]Outcome{}}
	if m.rec == nil {
		m.rec = map[string]entry{}
	}
	if m.groups == nil {
		m.groups = map[string]int{}
	}
	return m, nil
}

// LockAll shuts every account of ours, and goes on where the record in dir
// cannot be read. It is what `sftd lock-accounts` does when the agent has
// ended and when the machine starts.
func LockAll(ctx context.Context, dir string, b Backend) error {
	m, err := Open(dir, b)
	if err != nil {
		m = &Manager{b: b, lost: true}
	}
	return errors.Join(err, m.DisableAll(ctx))
}

// Reconcile makes the host match wants, within lim, and tells what it did
// about each login, in order of login.
//
// Whoever is no longer wanted loses access before anybody gets any: the
// account is shut and expired and its processes are ended; with deleteGone it
// is deleted with its home. One that is wanted again has the same uid and
// finds its files as they were. An account that somebody is using is not
// disturbed. A second run with the same wants changes nothing.
func (m *Manager) Reconcile(ctx context.Context, wants []Want, lim Limits, deleteGone bool) []Outcome {
	return m.ReconcileDeleting(ctx, wants, lim, func(string) bool { return deleteGone })
}

// ReconcileDeleting is Reconcile where deleteGone says of each login whether
// its account, if it is no longer wanted, is deleted with its home.
func (m *Manager) ReconcileDeleting(ctx context.Context, wants []Want, lim Limits, deleteGone func(login string) bool) []Outcome {
	m.reconciling.Lock()
	defer m.reconciling.Unlock()
	steps, err := m.plan(ctx, wants, lim, deleteGone)
	if err != nil {
		var all []Outcome
		for _, w := range wants {
			all = append(all, Outcome{w.Login, Failed, err})
		}
		return m.tell(all)
	}
	m.end(ctx, steps)
	m.make(ctx, steps)
	return m.settle(steps)
}

// plan decides, and records what is about to be done.
func (m *Manager) plan(ctx context.Context, wants []Want, lim Limits, deleteGone func(string) bool) ([]*step, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	logins := make([]string, 0, len(wants))
	for _, w := range wants {
		if CheckLogin(w.Login) == nil {
			logins = append(logins, w.Login)
		}
	}
	h, err := m.b.Read(ctx, logins)
	if err != nil {
		return nil, fmt.Errorf("read the accounts of this host: %w", err)
	}
	steps := decide(h, m.rec, wants, lim, deleteGone)
	before := maps.Clone(m.rec)
	for _, s := range steps {
		e, known := m.rec[s.login]
		switch s.do {
		case create, remake:
			// The mark proves later that an account is one which we had begun
			// to make, and nobody else's of that name and uid.
			m.rec[s.login] = entry{UID: s.want.UID, GID: s.want.GID, Mark: "sft-new-" + rand.Text()}
		case keep, update:
			if !known || e.ID != s.have.ID || e.UID != s.want.UID || e.GID != s.want.GID {
				m.rec[s.login] = entry{ID: s.have.ID, UID: s.want.UID, GID: s.want.GID, Ended: e.Ended, Mark: e.Mark}
			}
		case end, remove:
			e.Ended = true
			m.rec[s.login] = e
		}
	}
	m.lost = false
	if maps.Equal(before, m.rec) {
		return steps, nil
	}
	if err := m.save(); err != nil {
		// What takes access away is done all the same; nothing is made that a
		// crash would leave without an owner.
		for _, s := range steps {
			switch s.do {
			case create, remake:
				if e, ok := before[s.login]; ok {
					m.rec[s.login] = e
				} else {
					delete(m.rec, s.login)
				}
				s.do, s.change, s.err = refuse, Failed, err
			default:
				s.err = errors.Join(s.err, err)
			}
		}
	}
	return steps, nil
}

// end takes access away from whoever has lost it: first everybody's, then the
// processes of all of them side by side, then the accounts themselves.
func (m *Manager) end(ctx context.Context, steps []*step) {
	for _, s := range steps {
		if (s.do == end || s.do == remove) && s.have.Login != "" && !s.half {
			s.fail(m.change(ctx, func() error { return m.b.End(ctx, s.have) }))
		}
	}
	var wg sync.WaitGroup
	few := make(chan struct{}, 8)
	for _, s := range steps {
		if (s.do != end && s.do != remove && s.do != watch) || s.have.Login == "" || s.half {
			continue
		}
		wg.Go(func() {
			few <- struct{}{}
			defer func() { <-few }()
			s.fail(m.b.Logoff(ctx, s.have))
		})
	}
	wg.Wait()
	for _, s := range steps {
		if s.do != remove || s.change == Failed {
			continue
		}
		a := s.have
		if a.Login == "" { // somebody else deleted it: only what is left of it goes
			a = Account{Login: s.login, ID: s.entry.ID, UID: s.entry.UID, GID: s.entry.GID}
		}
		s.fail(m.remove(ctx, a, s.home))
	}
}

// errInUse says that something runs as an account.
var errInUse = errors.New("something runs as the account")

// remove deletes an account of which nothing ran a moment ago. A sign-in that
// was under way then may have gone on as root, as that to a desktop does, and
// have started something since: that is ended, too.
func (m *Manager) remove(ctx context.Context, a Account, home bool) error {
	for more := 3; ; more-- {
		err := m.change(ctx, func() error { return m.b.Delete(ctx, a, home) })
		if more == 0 || !errors.Is(err, errInUse) {
			return err
		}
		if err := m.b.Logoff(ctx, a); err != nil {
			return err
		}
	}
}

// make makes and changes the accounts that are wanted.
func (m *Manager) make(ctx context.Context, steps []*step) {
	var groupErr, adminErr error
	prepared, adminPrepared := false, false
	for _, s := range steps {
		if s.do != create && s.do != remake && s.do != update && s.do != keep {
			continue
		}
		if !prepared {
			prepared = true
			groupErr = m.change(ctx, func() error { return m.b.Prepare(ctx) })
		}
		if s.want.Admin && !adminPrepared {
			adminPrepared = true
			adminErr = m.change(ctx, func() error { return m.b.PrepareAdmin(ctx) })
		}
		if s.want.Admin && adminErr != nil {
			s.err = errors.Join(s.err, adminErr) // the account itself is still worth having
		}
		if groupErr != nil {
			s.fail(groupErr)
			continue
		}
		if s.do == keep {
			continue
		}
		s.fail(m.change(ctx, func() error { return m.apply(ctx, s) }))
	}
}

// apply makes or changes one account. The caller holds m.mu.
func (m *Manager) apply(ctx context.Context, s *step) error {
	if s.do == remake {
		half := s.have
		if err := m.b.Delete(ctx, half, false); err != nil {
			return fmt.Errorf("remove the half-made account: %w", err)
		}
	}
	a := s.have
	if s.do != update {
		e := m.rec[s.login]
		id, err := m.b.Create(ctx, s.want, e.Mark)
		if err != nil {
			return err
		}
		e.ID = id
		m.rec[s.login] = e
		h, err := m.b.Read(ctx, []string{s.login})
		if err != nil {
			return err
		}
		if a = h.find(s.login); a.ID != id {
			return fmt.Errorf("make %s: the new account cannot be found again; look for a program that rewrites this host's accounts", s.login)
		}
	}
	return m.b.Update(ctx, a, s.want)
}

// change runs one change of the host, alone.
func (m *Manager) change(ctx context.Context, f func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("not begun: %w; it is tried again at the next sync", err)
	}
	return f()
}

// settle records what has been done and tells it.
func (m *Manager) settle(steps []*step) []Outcome {
	m.mu.Lock()
	before := maps.Clone(m.rec)
	var all []Outcome
	for _, s := range steps {
		switch {
		case s.change == Failed:
		case s.do == remove || s.do == forget:
			delete(m.rec, s.login)
		case s.do == create || s.do == remake || s.do == update || s.do == keep:
			e := m.rec[s.login]
			e.Mark, e.Ended = "", false
			m.rec[s.login] = e
		}
		if s.change != "" {
			all = append(all, Outcome{s.login, s.change, s.err})
		}
	}
	if !maps.Equal(before, m.rec) {
		if err := m.save(); err != nil {
			for i := range all {
				if c := all[i].Change; c == Created || c == Updated || c == Removed {
					all[i].Err = errors.Join(all[i].Err, err)
				}
			}
		}
	}
	m.mu.Unlock()
	return m.tell(all)
}

// tell keeps the outcomes for Status.
func (m *Manager) tell(all []Outcome) []Outcome {
	slices.SortStableFunc(all, func(a, b Outcome) int { return cmp.Compare(a.Login, b.Login) })
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = map[string]Outcome{}
	for _, o := range all {
		m.last[o.Login] = o
	}
	return all
}

// ours returns the account of login, or an error that says why nobody may
// touch it. With alone, its identity must be its own: what is done by uid would
// reach another account too. The caller holds m.mu.
func (m *Manager) ours(ctx context.Context, login string, alone bool) (Account, entry, error) {
	h, err := m.b.Read(ctx, nil)
	if err != nil {
		return Account{}, entry{}, fmt.Errorf("read the accounts of this host: %w", err)
	}
	a, e := h.find(login), m.rec[login]
	if err := h.checkLogin(login); err != nil && !e.owns(a) { // one of ours may be from before it was a name of the system
		return Account{}, entry{}, err
	}
	if a.Login == "" {
		return a, e, &sft.Error{Code: sft.NotFound, Msg: "there is no account " + login + " on this host",
			Hint: "wait until sftd has made it, or look at sftd status"}
	}
	if !e.owns(a) {
		return a, e, foreign(login)
	}
	if other := h.sharesID(a); alone && other != "" {
		return a, e, &sft.Error{Code: sft.Conflict,
			Msg:  fmt.Sprintf("account %s has the same uid %s as account %s", login, a.ID, other),
			Hint: "remove account " + other + " or give it another uid, on this host"}
	}
	return a, e, nil
}

// Enable opens the account of login: a lockout is cleared, it is not expired,
// and password is the one that matches. It refuses an account that is not
// ours, or no longer wanted.
func (m *Manager) Enable(ctx context.Context, login string, password sft.Secret) error {
	if password.Empty() || strings.ContainsAny(password.Reveal(), "\x00\r\n") {
		return fmt.Errorf("enable %s: the password is empty or holds a line break; make another", login)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	a, e, err := m.ours(ctx, login, true)
	if err != nil {
		return err
	}
	if e.Ended {
		return notWanted(login)
	}
	if err := m.b.Enable(ctx, a, password); err != nil {
		// Half-open is shut again.
		return errors.Join(fmt.Errorf("enable %s: %w", login, err), m.b.Rest(context.WithoutCancel(ctx), a))
	}
	return nil
}

// Ready reports why the account of login could not be signed in to by other
// means than a password: it is not there, not ours, or no longer wanted.
func (m *Manager) Ready(ctx context.Context, login string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, e, err := m.ours(ctx, login, true)
	if err == nil && (e.Ended || a.Expired) {
		err = notWanted(login)
	}
	return err
}

// notWanted is the refusal to open an account that has ended.
func notWanted(login string) error {
	return &sft.Error{Code: sft.Denied, Msg: "account " + login + " is no longer wanted on this host",
		Hint: "ask an administrator of the project for access"}
}

// Made returns the logins of the accounts that we made and that were wanted
// when a Reconcile last ran, in order.
func (m *Manager) Made() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	for login, e := range m.rec {
		if !e.Ended {
			all = append(all, login)
		}
	}
	slices.Sort(all)
	return all
}

// Disable puts the account of login to rest: no password matches.
func (m *Manager) Disable(ctx context.Context, login string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, e, err := m.ours(ctx, login, false)
	if err != nil {
		return err
	}
	if err := m.shut(ctx, a, e); err != nil {
		return fmt.Errorf("disable %s: %w", login, err)
	}
	return nil
}

// shut puts one account to rest, in the way that fits whether it is wanted.
func (m *Manager) shut(ctx context.Context, a Account, e entry) error {
	if e.Ended || e.UID == 0 && a.Expired { // with the record lost, expiry tells who had been ended
		return m.b.End(ctx, a)
	}
	return m.b.Rest(ctx, a)
}

// DisableAll puts every account of ours to rest, and goes on when one fails.
// With the record lost it goes by the group alone, among the uids and names
// that we would give: better one password too many reset than one left open.
func (m *Manager) DisableAll(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := m.b.Read(ctx, nil)
	if err != nil {
		return fmt.Errorf("read the accounts of this host: %w", err)
	}
	var errs []error
	for _, a := range h.Accounts {
		e, known := m.rec[a.Login]
		if known && !e.owns(a) || !known && !m.lost {
			continue
		}
		if !known && (!a.Member || a.UID < minID || h.checkLogin(a.Login) != nil) {
			continue
		}
		if err := m.shut(ctx, a, e); err != nil {
			errs = append(errs, fmt.Errorf("disable %s: %w", a.Login, err))
		}
	}
	return errors.Join(errs...)
}

// KeepAlive keeps the accounts that are open from expiring, where the
// operating system expires them, and goes on when one fails. The agent calls
// it every few minutes, at most five apart.
func (m *Manager) KeepAlive(ctx context.Context) error {
	k, ok := m.b.(Keeper)
	if !ok {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := m.b.Read(ctx, nil)
	if err != nil {
		return fmt.Errorf("read the accounts of this host: %w", err)
	}
	var errs []error
	for _, a := range h.Accounts {
		e := m.rec[a.Login]
		if !e.owns(a) || e.Ended || !a.Enabled {
			continue
		}
		if err := k.KeepAlive(ctx, a); err != nil {
			errs = append(errs, fmt.Errorf("keep %s from expiring: %w", a.Login, err))
		}
	}
	return errors.Join(errs...)
}

// Logoff ends every session and process of login, disconnected ones too, and
// returns when none is left. To keep the person out, Disable first.
func (m *Manager) Logoff(ctx context.Context, login string) error {
	a, err := m.look(ctx, login)
	if err != nil {
		return err
	}
	if err := m.b.Logoff(ctx, a); err != nil {
		return fmt.Errorf("log off %s: %w", login, err)
	}
	return nil
}

// SignedInSince reports whether login has signed in to a session of the
// operating system after t, one that is still there.
func (m *Manager) SignedInSince(ctx context.Context, login string, t time.Time) (bool, error) {
	a, err := m.look(ctx, login)
	if err != nil {
		return false, err
	}
	return m.b.SignedInSince(ctx, a, t)
}

// look is ours for callers that do not hold m.mu.
func (m *Manager) look(ctx context.Context, login string) (Account, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, _, err := m.ours(ctx, login, true)
	return a, err
}

// Status tells of every account that is ours or that the last Reconcile was
// asked for, in order of login.
func (m *Manager) Status() []AccountStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, readErr := m.b.Read(context.Background(), nil)
	logins := maps.Clone(m.last)
	for login := range m.rec {
		if _, ok := logins[login]; !ok {
			logins[login] = Outcome{}
		}
	}
	var all []AccountStatus
	for _, login := range slices.Sorted(maps.Keys(logins)) {
		st := AccountStatus{Login: login, State: Missing}
		a, e := h.find(login), m.rec[login]
		if e.owns(a) {
			st.UID, st.Admin, st.State = a.UID, a.Admin, AtRest
			switch {
			case a.Enabled:
				st.State = Enabled
			case e.Ended:
				st.State = Ended
			}
		}
		switch o := logins[login]; {
		case o.Err != nil:
			st.Problem = sft.Explain(o.Err)
		case readErr != nil:
			st.Problem = "read the accounts of this host: " + readErr.Error()
		}
		all = append(all, st)
	}
	return all
}
