package accounts

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"sft"
)

// A Memory is a host that exists in this process alone, for the tests of other
// packages. It keeps the same rules as a real one, and tests can look inside
// and make it fail.
type Memory struct {
	mu       sync.Mutex
	accounts map[string]*memAccount
	calls    []string
	fail     map[string]error
	groups   map[string]LocalGroup
	sudo     string
	hooks    []Hook
}

// A memAccount is an Account with what only an operating system knows.
type memAccount struct {
	Account
	password sft.Secret
	sessions []time.Time // when each began
}

// NewMemory returns a host without accounts.
func NewMemory() *Memory {
	return &Memory{accounts: map[string]*memAccount{}, fail: map[string]error{}, groups: map[string]LocalGroup{}}
}

// AddForeign adds an account that somebody else made.
func (m *Memory) AddForeign(login string, uid int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.accounts[login] = &memAccount{Account: Account{Login: login, ID: strconv.Itoa(uid), UID: uid, GID: uid, Home: "/home/" + login, Enabled: true, Aging: true}}
}

// Account returns the account of login as it is now.
func (m *Memory) Account(login string) (Account, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.accounts[login]
	if !ok {
		return Account{}, false
	}
	return a.Account, true
}

// SignIn begins a session of the operating system at t, as its sign-in would:
// with the password of this moment, and never for an account at rest.
func (m *Memory) SignIn(login, password string, t time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.accounts[login]
	if a == nil || !a.Enabled || a.Expired || a.password.Reveal() != password {
		return fmt.Errorf("sign in as %s: wrong password, or disabled", login)
	}
	a.sessions = append(a.sessions, t)
	return nil
}

// Begin begins a session of the operating system at t that needed no password,
// as one by SSH.
func (m *Memory) Begin(login string, t time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.accounts[login]; a != nil && !a.Expired {
		a.sessions = append(a.sessions, t)
	}
}

// Sessions returns how many sessions login has.
func (m *Memory) Sessions(login string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.accounts[login]; a != nil {
		return len(a.sessions)
	}
	return 0
}

// Fail makes the operation op (create, update, enable, keep, rest, end, delete,
// logoff, look, read, rights, group, sudo, hook) fail with err for login (""
// for read, rights and sudo, the name of a group, the event of a hook), until
// err is nil.
func (m *Memory) Fail(op, login string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail[op+" "+login] = err
}

// Calls returns the changes made since the last call of Calls, as "create
// alice". What changed nothing is left out.
func (m *Memory) Calls() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.calls
	m.calls = nil
	return c
}

// do runs one operation on an account that must be there.
func (m *Memory) do(op string, a Account, f func(*memAccount) (changed bool)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fail[op+" "+a.Login]; err != nil {
		return err
	}
	have := m.accounts[a.Login]
	if have == nil || have.ID != a.ID {
		return fmt.Errorf("there is no account %s", a.Login)
	}
	if f(have) {
		m.calls = append(m.calls, op+" "+a.Login)
	}
	return nil
}

// Read implements Backend.
func (m *Memory) Read(_ context.Context, logins []string) (Host, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := Host{Groups: map[string]int{}, Homes: map[string]Home{}}
	if err := m.fail["read "]; err != nil {
		return h, err
	}
	for _, a := range m.accounts {
		h.Accounts = append(h.Accounts, a.Account)
		h.Groups[a.Login] = a.GID
	}
	for _, g := range m.groups {
		h.Groups[g.Name] = g.GID
	}
	for _, l := range logins {
		h.Homes[l] = Home{Path: "/home/" + l}
		if a := m.accounts[l]; a != nil {
			h.Homes[l] = Home{Path: a.Home, Exists: true, Folder: true, UID: a.UID}
		}
	}
	return h, nil
}

// Prepare implements Backend.
func (m *Memory) Prepare(context.Context) error { return nil }

// PrepareAdmin implements Backend.
func (m *Memory) PrepareAdmin(context.Context) error { return nil }

// Create implements Backend.
func (m *Memory) Create(_ context.Context, w Want, mark string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fail["create "+w.Login]; err != nil {
		return "", err
	}
	if m.accounts[w.Login] != nil {
		return "", fmt.Errorf("there is an account %s already", w.Login)
	}
	id := strconv.Itoa(w.UID)
	m.accounts[w.Login] = &memAccount{Account: Account{Login: w.Login, ID: id, UID: w.UID, GID: w.GID, FullName: mark, Home: "/home/" + w.Login, Member: true}}
	m.calls = append(m.calls, "create "+w.Login)
	return id, nil
}

// Update implements Backend.
func (m *Memory) Update(_ context.Context, a Account, w Want) error {
	return m.do("update", a, func(have *memAccount) bool {
		before := have.Account
		have.FullName, have.GID, have.Admin, have.Expired, have.Aging = w.FullName, w.GID, w.Admin, false, false
		return have.Account != before
	})
}

// Enable implements Backend.
func (m *Memory) Enable(_ context.Context, a Account, password sft.Secret) error {
	return m.do("enable", a, func(have *memAccount) bool {
		have.password, have.Enabled, have.Expired, have.Aging = password, true, false, false
		return true
	})
}

// KeepAlive implements Keeper: each time counts as a change.
func (m *Memory) KeepAlive(_ context.Context, a Account) error {
	return m.do("keep", a, func(*memAccount) bool { return true })
}

// Rest implements Backend.
func (m *Memory) Rest(_ context.Context, a Account) error {
	return m.do("rest", a, func(have *memAccount) bool {
		before := have.Account
		have.password, have.Enabled, have.Expired, have.Aging = sft.Secret{}, false, false, false
		return have.Account != before
	})
}

// End implements Backend.
func (m *Memory) End(_ context.Context, a Account) error {
	return m.do("end", a, func(have *memAccount) bool {
		before := have.Account
		have.password, have.Enabled, have.Admin, have.Expired, have.Aging = sft.Secret{}, false, false, true, true
		return have.Account != before
	})
}

// Delete implements Backend.
func (m *Memory) Delete(_ context.Context, a Account, _ bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fail["delete "+a.Login]; err != nil {
		return err
	}
	if have := m.accounts[a.Login]; have != nil && have.ID == a.ID {
		delete(m.accounts, a.Login)
		m.calls = append(m.calls, "delete "+a.Login)
	}
	return nil
}

// Logoff implements Backend.
func (m *Memory) Logoff(_ context.Context, a Account) error {
	return m.do("logoff", a, func(have *memAccount) bool {
		n := len(have.sessions)
		have.sessions = nil
		return n > 0
	})
}

// SignedInSince implements Backend.
func (m *Memory) SignedInSince(_ context.Context, a Account, t time.Time) (bool, error) {
	found := false
	err := m.do("look", a, func(have *memAccount) bool {
		found = slices.ContainsFunc(have.sessions, func(s time.Time) bool { return s.After(t) })
		return false
	})
	return found, err
}

// Rights returns the members of each synced group, and the file of sudo
// entitlements.
func (m *Memory) Rights() (groups map[string][]string, sudo string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	groups = map[string][]string{}
	for _, g := range m.groups {
		groups[g.Name] = slices.Clone(g.Members)
	}
	return groups, m.sudo
}

// Hooks returns what RunHooks was called with.
func (m *Memory) Hooks() []Hook {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.hooks)
}

// ReadRights implements Granter.
func (m *Memory) ReadRights(context.Context) ([]LocalGroup, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []LocalGroup
	for _, g := range m.groups {
		all = append(all, LocalGroup{g.Group, slices.Clone(g.Members)})
	}
	return all, m.sudo, m.fail["rights "]
}

// MakeGroup implements Granter.
func (m *Memory) MakeGroup(_ context.Context, g Group) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fail["group "+g.Name]; err != nil {
		return err
	}
	m.groups[g.Name] = LocalGroup{Group: g}
	return nil
}

// DeleteGroup implements Granter.
func (m *Memory) DeleteGroup(_ context.Context, g Group) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.groups, g.Name)
	return nil
}

// SetMember implements Granter.
func (m *Memory) SetMember(_ context.Context, g Group, login string, in bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.groups[g.Name]
	now.Members = slices.DeleteFunc(slices.Clone(now.Members), func(l string) bool { return l == login })
	if in {
		now.Members = append(now.Members, login)
	}
	m.groups[g.Name] = now
	return nil
}

// SetSudo implements Granter.
func (m *Memory) SetSudo(_ context.Context, text string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fail["sudo "]; err != nil {
		if text != "" {
			m.sudo = ""
		}
		return err
	}
	m.sudo = text
	return nil
}

// RunHooks implements Hooker: it fails as Fail("hook", EVENT) says.
func (m *Memory) RunHooks(_ context.Context, h Hook) []HookRun {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hooks = append(m.hooks, h)
	return []HookRun{{Script: h.Event, Err: m.fail["hook "+h.Event]}}
}
