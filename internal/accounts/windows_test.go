package accounts

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"sft"
)

// A fakeWindows is winCalls in memory. It refuses what Microsoft's pages say
// that Windows refuses, and notes what has changed.
type fakeWindows struct {
	list     []*fakeUser
	groups   map[string][]string // members by name
	next     int
	dc       bool
	pol      winPolicy
	badRetry int                     // wrong old passwords so far
	refuse   func(call string) error // steps in before a change
	calls    []string
	sess     []winSession
	procs    []winProcess
	profiles []string
}

type fakeUser struct {
	winUser
	password string
	age      time.Duration
}

const fakeMachine = "S-1-5-21-1-2-3-"

func newFakeWindows() *fakeWindows {
	f := &fakeWindows{next: 1001, groups: map[string][]string{"Administratoren": nil, "Benutzer": nil, "Remotedesktopbenutzer": nil}}
	for n, rid := range map[string]int{"Administrator": 500, "Gast": 501, "DefaultAccount": 503, "WDAGUtilityAccount": 504} {
		f.list = append(f.list, &fakeUser{winUser: winUser{name: n, flags: ufScript | ufNormalAccount, expires: winForever, sid: fmt.Sprint(fakeMachine, rid)}, password: "theirs"})
	}
	return f
}

func (f *fakeWindows) find(name string) *fakeUser {
	for _, u := range f.list {
		if strings.EqualFold(u.name, name) {
			return u
		}
	}
	return nil
}

// change runs one change of an account.
func (f *fakeWindows) change(call, name string, do func(*fakeUser) uint32) error {
	if f.refuse != nil {
		if err := f.refuse(call); err != nil {
			return err
		}
	}
	u := f.find(name)
	if u == nil {
		return &winError{call, nerrUserNotFound}
	}
	if c := do(u); c != 0 {
		return &winError{call, c}
	}
	f.calls = append(f.calls, call+" "+strings.ToLower(name))
	return nil
}

func (f *fakeWindows) weak(p string) bool { return len(p) < f.pol.minLength }

func (f *fakeWindows) controller() (bool, error)        { return f.dc, nil }
func (f *fakeWindows) computer() (string, error)        { return "WEB01", nil }
func (f *fakeWindows) policy() (winPolicy, error)       { return f.pol, nil }
func (f *fakeWindows) sessions() ([]winSession, error)  { return slices.Clone(f.sess), nil }
func (f *fakeWindows) processes() ([]winProcess, error) { return slices.Clone(f.procs), nil }

func (f *fakeWindows) users() ([]string, error) {
	var all []string
	for _, u := range f.list {
		all = append(all, u.name)
	}
	return all, nil
}

func (f *fakeWindows) user(name string) (winUser, error) {
	if u := f.find(name); u != nil {
		return u.winUser, nil
	}
	return winUser{}, &winError{"NetUserGetInfo", nerrUserNotFound}
}

func (f *fakeWindows) addUser(name, comment string, flags uint32, password sft.Secret) error {
	if f.refuse != nil {
		if err := f.refuse("add"); err != nil {
			return err
		}
	}
	switch {
	case f.find(name) != nil:
		return &winError{"NetUserAdd", nerrUserExists}
	case f.groups[name] != nil:
		return &winError{"NetUserAdd", nerrGroupExists}
	case f.weak(password.Reveal()):
		return &winError{"NetUserAdd", nerrPasswordShort}
	}
	f.list = append(f.list, &fakeUser{winUser: winUser{name: name, comment: comment, flags: flags, expires: winForever, sid: fmt.Sprint(fakeMachine, f.next)}, password: password.Reveal()})
	f.next++
	f.calls = append(f.calls, "add "+name)
	return nil
}

func (f *fakeWindows) deleteUser(name string) error {
	return f.change("delete", name, func(u *fakeUser) uint32 {
		f.list = slices.DeleteFunc(f.list, func(v *fakeUser) bool { return u == v })
		for g, m := range f.groups {
			f.groups[g] = slices.DeleteFunc(m, func(s string) bool { return s == u.sid })
		}
		return 0
	})
}

func (f *fakeWindows) setPassword(name string, p sft.Secret) error {
	return f.change("reset", name, func(u *fakeUser) uint32 {
		if f.weak(p.Reveal()) {
			return nerrPasswordShort
		}
		u.password, u.age = p.Reveal(), 0
		return 0
	})
}

func (f *fakeWindows) changePassword(name string, old, p sft.Secret) error {
	return f.change("change", name, func(u *fakeUser) uint32 {
		switch {
		case u.flags&ufLockout != 0:
			return winLockedOut
		case old.Reveal() != u.password:
			f.badRetry++
			return winBadPassword
		case f.weak(p.Reveal()), u.age < f.pol.minAge:
			return nerrPasswordShort
		}
		u.password, u.age = p.Reveal(), 0
		return 0
	})
}

func (f *fakeWindows) setFlags(name string, flags uint32) error {
	return f.change(fmt.Sprintf("flags %#x", flags), name, func(u *fakeUser) uint32 {
		if flags&ufScript == 0 {
			return 87
		}
		u.flags = flags
		return 0
	})
}

func (f *fakeWindows) setFullName(name, s string) error {
	return f.change("name", name, func(u *fakeUser) uint32 { u.fullName = s; return 0 })
}

func (f *fakeWindows) setComment(name, s string) error {
	return f.change("comment", name, func(u *fakeUser) uint32 { u.comment = s; return 0 })
}

func (f *fakeWindows) setExpiry(name string, at uint32) error {
	return f.change("expiry", name, func(u *fakeUser) uint32 { u.expires = at; return 0 })
}

func (f *fakeWindows) groupName(sid string) (string, error) {
	n, ok := map[string]string{sidAdministrators: "Administratoren", sidUsers: "Benutzer", sidRemoteDesktop: "Remotedesktopbenutzer"}[sid]
	if !ok {
		return "", &winError{"LookupAccountSid", 1332}
	}
	return n, nil
}

func (f *fakeWindows) addGroup(name, _ string) error {
	if _, ok := f.groups[name]; ok {
		return &winError{"NetLocalGroupAdd", winGroupExists}
	}
	f.groups[name] = nil
	f.calls = append(f.calls, "group "+name)
	return nil
}

func (f *fakeWindows) members(group string) ([]string, error) {
	m, ok := f.groups[group]
	if !ok {
		return nil, &winError{"NetLocalGroupGetMembers", nerrGroupNotFound}
	}
	return slices.Clone(m), nil
}

func (f *fakeWindows) addMember(group, sid string) error {
	m, ok := f.groups[group]
	switch {
	case !ok:
		return &winError{"NetLocalGroupAddMembers", nerrGroupNotFound}
	case slices.Contains(m, sid):
		return &winError{"NetLocalGroupAddMembers", winMember}
	}
	f.groups[group] = append(m, sid)
	f.calls = append(f.calls, "join "+group)
	return nil
}

func (f *fakeWindows) removeMember(group, sid string) error {
	m := f.groups[group]
	if !slices.Contains(m, sid) {
		return &winError{"NetLocalGroupDelMembers", winNotMember}
	}
	f.groups[group] = slices.DeleteFunc(slices.Clone(m), func(s string) bool { return s == sid })
	f.calls = append(f.calls, "leave "+group)
	return nil
}

func (f *fakeWindows) logoff(id uint32) error {
	f.sess = slices.DeleteFunc(f.sess, func(s winSession) bool { return s.id == id })
	f.calls = append(f.calls, fmt.Sprint("logoff ", id))
	return nil
}

func (f *fakeWindows) endProcess(p winProcess) error {
	f.procs = slices.DeleteFunc(f.procs, func(q winProcess) bool { return p == q })
	f.calls = append(f.calls, fmt.Sprint("end ", p.pid))
	return nil
}

func (f *fakeWindows) deleteProfile(sid string) error {
	if !slices.Contains(f.profiles, sid) {
		return &winError{"DeleteProfile", winFileNotFound}
	}
	f.profiles = slices.DeleteFunc(f.profiles, func(s string) bool { return s == sid })
	return nil
}

// signIn reports whether Windows would take the password now.
func (f *fakeWindows) signIn(name, password string, now time.Time) bool {
	u := f.find(name)
	return u != nil && u.flags&(ufAccountDisable|ufLockout) == 0 && u.password == password && (u.expires == winForever || int64(u.expires) > now.Unix())
}

// A fakeSeal turns every bit, and marks what it has sealed.
type fakeSeal struct{ broken error }

func (s *fakeSeal) seal(b []byte) ([]byte, error) {
	if s.broken != nil {
		return nil, s.broken
	}
	out := []byte("sealed:")
	for _, c := range b {
		out = append(out, ^c)
	}
	return out, nil
}

func (s *fakeSeal) unseal(b []byte) ([]byte, error) {
	b, ok := bytes.CutPrefix(b, []byte("sealed:"))
	if !ok || s.broken != nil {
		return nil, errors.New("not sealed here")
	}
	out := bytes.Clone(b)
	for i := range out {
		out[i] = ^out[i]
	}
	return out, nil
}

// A winTest is a Windows host with its manager.
type winTest struct {
	os     *fakeWindows
	b      *windowsBackend
	m      *Manager
	resets []string
	now    time.Time
	dir    string
}

func newWinTest(t *testing.T) *winTest {
	t.Helper()
	w := &winTest{os: newFakeWindows(), dir: t.TempDir(), now: time.Unix(1_800_000_000, 0)}
	w.b = newWindowsBackend(w.os, &fakeSeal{}, w.dir, func(l string) { w.resets = append(w.resets, l) })
	w.b.now, w.b.poll, w.b.patient = func() time.Time { return w.now }, time.Millisecond, 50*time.Millisecond
	w.m = open(t, w.dir, w.b)
	return w
}

// made returns a host with alice's account.
func made(t *testing.T) *winTest {
	t.Helper()
	w := newWinTest(t)
	expect(t, w.m.Reconcile(t.Context(), []Want{want("alice", 60001)}, Limits{}, false), "alice created")
	w.os.calls = nil
	return w
}

func (w *winTest) enable(t *testing.T, password string) {
	t.Helper()
	must(t, w.m.Enable(t.Context(), "alice", sft.NewSecret(password)))
	if !w.os.signIn("alice", password, w.now) {
		t.Fatalf("%q does not open the account: %+v", password, w.os.find("alice"))
	}
}

func TestLifeOnWindows(t *testing.T) {
	w := newWinTest(t)
	testLife(t, w.b, func(login string, _ int) {
		must(t, w.os.addUser(strings.ToUpper(login), "", ufScript|ufNormalAccount, sft.NewSecret("theirs")))
	})
}

func TestNewWindowsAccount(t *testing.T) {
	w := newWinTest(t)
	expect(t, w.m.Reconcile(t.Context(), []Want{admin(want("alice", 60001))}, Limits{AllowAdmin: true}, false), "alice created")
	sid := fakeMachine + "1001"
	got := w.os.find("alice").winUser
	if want := (winUser{"alice", "P", "made by sftd; uid 60001; gid 63001", 0x10243, winForever, sid}); got != want {
		t.Errorf("the account is %+v, want %+v", got, want)
	}
	for group, want := range map[string]bool{winGroup: true, "Administratoren": true, "Remotedesktopbenutzer": false} {
		if slices.Contains(w.os.groups[group], sid) != want {
			t.Errorf("in group %s: %v, want %v", group, !want, want)
		}
	}
	w.os.calls = nil
	expect(t, w.m.Reconcile(t.Context(), []Want{admin(want("alice", 60001))}, Limits{AllowAdmin: true}, false), "alice kept")
	must(t, w.m.DisableAll(t.Context()))
	if w.os.calls != nil {
		t.Errorf("with nothing to do there were the calls %q", w.os.calls)
	}
}

func TestWindowsNames(t *testing.T) {
	w := newWinTest(t)
	for _, n := range []string{"Bob", "\u0430lice", "carol."} { // alice with a Cyrillic a
		must(t, w.os.addUser(n, "", ufScript, sft.NewSecret("theirs")))
	}
	before := len(w.os.list)
	tests := []struct{ login, want string }{
		{"administrator", "refused"},
		{"guest", "refused"},
		{"gast", "conflict"}, // a built-in account under its local name
		{"Alice", "refused"},
		{"bob", "conflict"},
		{"alice", "created"}, // who looks alike is another account
		{"carol", "created"}, // and so is who has a dot
		{"carol.", "refused"},
		{"\u0430lice", "refused"},
		{"con", "refused"},
		{"con.x", "refused"},
		{"lpt1", "refused"},
		{"system", "refused"},
		{"dan.d", "created"},
		{"abcdefghijklmnopqrst", "created"},
		{"abcdefghijklmnopqrstu", "refused"},
		{"a b", "refused"}, {`a\b`, "refused"}, {"a@b", "refused"}, {"a*", "refused"}, {"...", "refused"}, {"", "refused"},
	}
	var wants []Want
	for i, tt := range tests {
		wants = append(wants, want(tt.login, 60001+i))
	}
	got := map[string]string{}
	for _, o := range w.m.Reconcile(t.Context(), wants, Limits{}, true) {
		got[o.Login] = string(o.Change)
	}
	for _, tt := range tests {
		if got[tt.login] != tt.want {
			t.Errorf("%q: %s, want %s", tt.login, got[tt.login], tt.want)
		}
	}
	if n := len(w.os.list) - before; n != 4 {
		t.Errorf("%d accounts were made, want 4", n)
	}
	for _, n := range []string{"Administrator", "Gast", "Bob", "carol.", "\u0430lice"} {
		if u := w.os.find(n); u.password != "theirs" || u.flags&ufAccountDisable != 0 {
			t.Errorf("%s was changed: %+v", n, u)
		}
	}
}

// Somebody who gets another login has another account, with ids that the
// platform keeps apart, and gets back the first one with its password file.
func TestAnotherLoginOnWindows(t *testing.T) {
	w := made(t)
	w.enable(t, "first")
	expect(t, w.m.Reconcile(t.Context(), []Want{want("alice.m", 60007)}, Limits{}, false), "alice disabled", "alice.m created")
	if w.os.signIn("alice", "first", w.now) || w.os.find("alice").flags&ufAccountDisable == 0 {
		t.Errorf("the account before is open: %+v", w.os.find("alice"))
	}
	must(t, w.m.Enable(t.Context(), "alice.m", sft.NewSecret("second")))
	if !w.os.signIn("alice.m", "second", w.now) {
		t.Errorf("the account does not open: %+v", w.os.find("alice.m"))
	}
	w.m = open(t, w.dir, w.b) // the record holds both
	expect(t, w.m.Reconcile(t.Context(), []Want{want("alice", 60001)}, Limits{}, false), "alice updated", "alice.m disabled")
	w.enable(t, "third")
	if w.resets != nil {
		t.Errorf("the password was reset: %q", w.resets)
	}
	// Deleted, nothing of it is left.
	expect(t, w.m.Reconcile(t.Context(), nil, Limits{}, true), "alice removed", "alice.m removed")
	if w.os.find("alice.m") != nil {
		t.Error("the account is there")
	}
}

// An account of ours whose name has become one of the system's is shut as any
// other.
func TestWindowsNameThatIsReservedLater(t *testing.T) {
	w := newWinTest(t)
	pw := sft.NewSecret("first")
	must(t, w.os.addUser("iusr", winComment(60001, 63001, ""), winOpen, pw))
	sid := w.os.find("iusr").sid
	must(t, w.b.Prepare(t.Context()))
	must(t, w.os.addMember(winGroup, sid))
	w.m.rec["iusr"] = entry{ID: sid, UID: 60001, GID: 63001}
	must(t, w.m.DisableAll(t.Context()))
	if w.os.find("iusr").flags&ufAccountDisable == 0 {
		t.Errorf("it is open: %+v", w.os.find("iusr"))
	}
	if err := w.m.Disable(t.Context(), "iusr"); err != nil {
		t.Error(err)
	}
	expect(t, w.m.Reconcile(t.Context(), []Want{want("iusr", 60001)}, Limits{}, false), "iusr refused !")
	if u := w.os.find("iusr"); u.expires != winEnded {
		t.Errorf("it has not ended: %+v", u)
	}
}

func TestWindowsPasswordIsChangedAndNotReset(t *testing.T) {
	w := made(t)
	w.enable(t, "first")
	if want := []string{"expiry alice", "join Benutzer", "join Remotedesktopbenutzer", "change alice", "flags 0x10241 alice"}; !slices.Equal(w.os.calls, want) {
		t.Errorf("Enable made the calls %q, want %q", w.os.calls, want)
	}
	w.os.calls = nil
	must(t, w.m.Disable(t.Context(), "alice"))
	if want := []string{"flags 0x10243 alice", "change alice"}; !slices.Equal(w.os.calls, want) {
		t.Errorf("Disable made the calls %q, want %q", w.os.calls, want)
	}
	if w.os.find("alice").password == "first" {
		t.Error("at rest the account has the old password")
	}
	w.enable(t, "second")
	w.enable(t, "third")
	if w.resets != nil || w.os.badRetry > 0 {
		t.Errorf("resets %q, %d wrong passwords", w.resets, w.os.badRetry)
	}
	data := must1(os.ReadFile(w.b.file("alice")))(t)
	if bytes.Contains(data, []byte("third")) {
		t.Error("the password is written in clear")
	}
}

func TestWindowsPasswordIsResetWhereItMustBe(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(t *testing.T, w *winTest)
	}{
		{"somebody set another password", func(_ *testing.T, w *winTest) { w.os.find("alice").password = "theirs" }},
		{"the file is gone", func(t *testing.T, w *winTest) { must(t, os.Remove(w.b.file("alice"))) }},
		{"the file is damaged", func(t *testing.T, w *winTest) { must(t, os.WriteFile(w.b.file("alice"), []byte("sealed:x"), 0o600)) }},
		{"the file is of a machine before", func(t *testing.T, w *winTest) { must(t, os.WriteFile(w.b.file("alice"), []byte("x"), 0o600)) }},
		{"the policy refuses a change so soon", func(_ *testing.T, w *winTest) { w.os.pol.minAge = 24 * time.Hour }},
		{"the change is refused for good", func(_ *testing.T, w *winTest) {
			w.os.refuse = func(call string) error {
				if call == "change" {
					return &winError{"NetUserChangePassword", winAccessDenied}
				}
				return nil
			}
		}},
		{"the password has expired", func(_ *testing.T, w *winTest) {
			w.os.refuse = func(call string) error {
				if call == "change" {
					return &winError{"NetUserChangePassword", winPassExpired}
				}
				return nil
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := made(t)
			w.enable(t, "first")
			tt.spoil(t, w)
			w.enable(t, "next")
			if !slices.Equal(w.resets, []string{"alice"}) {
				t.Errorf("resets %q were told, want alice's", w.resets)
			}
			w.os.refuse, w.os.pol.minAge, w.resets = nil, 0, nil
			w.enable(t, "after that")
			if w.resets != nil {
				t.Error("the next one was reset too")
			}
		})
	}
}

// TestWindowsFirstPasswordLosesNothing is for hosts of a domain: a new account
// is too young there for a change.
func TestWindowsFirstPasswordLosesNothing(t *testing.T) {
	w := made(t)
	w.os.pol.minAge = 24 * time.Hour
	w.enable(t, "first")
	if w.resets != nil {
		t.Errorf("resets %q were told of an account that nobody has used", w.resets)
	}
	w.enable(t, "second")
	if !slices.Equal(w.resets, []string{"alice"}) {
		t.Errorf("resets %q were told after the second, want alice's", w.resets)
	}
}

func TestWindowsRestResetsNothing(t *testing.T) {
	w := made(t)
	w.enable(t, "first")
	w.os.pol.minAge = 24 * time.Hour
	must(t, w.m.Disable(t.Context(), "alice"))
	if w.os.signIn("alice", "first", w.now) || w.os.find("alice").flags&ufAccountDisable == 0 {
		t.Error("the account is open")
	}
	if w.os.find("alice").password != "first" {
		t.Error("the password was reset")
	}
	w.os.calls = nil
	must(t, w.m.DisableAll(t.Context()))
	if w.os.calls != nil {
		t.Errorf("put to rest again with the calls %q", w.os.calls)
	}
	w.os.find("alice").age = 25 * time.Hour
	w.enable(t, "next day")
	if w.resets != nil {
		t.Error("what the person had saved was lost")
	}
}

// TestWindowsDisabledAccountsRefuseChanges is for a Windows that changes no
// password of an account that is disabled.
func TestWindowsDisabledAccountsRefuseChanges(t *testing.T) {
	w := made(t)
	w.os.refuse = func(call string) error {
		if call == "change" && w.os.find("alice").flags&ufAccountDisable != 0 {
			return &winError{"NetUserChangePassword", winDisabled}
		}
		return nil
	}
	w.enable(t, "first")
	must(t, w.m.Disable(t.Context(), "alice"))
	if w.os.find("alice").flags != winRest {
		t.Errorf("at rest the flags are %#x", w.os.find("alice").flags)
	}
	w.enable(t, "second")
	if w.resets != nil || w.os.find("alice").flags != winOpen {
		t.Errorf("resets %q, flags %#x", w.resets, w.os.find("alice").flags)
	}
}

// TestWindowsKilledAnywhere stops Enable and Disable at each of their changes,
// before and after it is made. The next Enable must work without a reset.
func TestWindowsKilledAnywhere(t *testing.T) {
	for _, op := range []string{"enable", "disable"} {
		for n := range 12 {
			w := made(t)
			w.enable(t, "first")
			if op == "enable" {
				must(t, w.m.Disable(t.Context(), "alice"))
			}
			stopped := false
			i := n
			w.os.refuse = func(string) error {
				if i--; i < 0 {
					stopped = true
					panic("killed")
				}
				return nil
			}
			func() {
				defer func() { _ = recover() }()
				a := read(t, w.b, "alice")
				if op == "enable" {
					_ = w.b.Enable(t.Context(), a, sft.NewSecret("second"))
				} else {
					_ = w.b.Rest(t.Context(), a)
				}
			}()
			w.os.refuse = nil
			w.m = open(t, w.dir, w.b)
			must(t, w.m.DisableAll(t.Context()))
			if w.os.find("alice").flags&ufAccountDisable == 0 {
				t.Errorf("%s killed at %d: the account stays open", op, n)
			}
			w.enable(t, "third")
			if w.resets != nil {
				t.Errorf("%s killed at %d: the password had to be reset", op, n)
			}
			if !stopped {
				break
			}
		}
	}
}

// TestWindowsKilledBeforeItNotes stops between the change and the note of it.
func TestWindowsKilledBeforeItNotes(t *testing.T) {
	w := made(t)
	a := read(t, w.b, "alice")
	seal := w.b.sealer
	w.os.refuse = func(call string) error {
		if call == "change" {
			w.b.sealer = &fakeSeal{errors.New("killed")} // nothing is written from here on
		}
		return nil
	}
	if err := w.b.Enable(t.Context(), a, sft.NewSecret("second")); err == nil || w.os.find("alice").password != "second" {
		t.Fatalf("%v, password %q: nothing is tested", err, w.os.find("alice").password)
	}
	w.os.refuse, w.b.sealer = nil, seal
	w.enable(t, "third")
	if w.resets != nil || w.os.badRetry != 1 {
		t.Errorf("resets %q, %d wrong passwords; want none and 1", w.resets, w.os.badRetry)
	}
}

// TestWindowsRefusalsLoseNothing: however often a password is refused, the one
// in force stays known.
func TestWindowsRefusalsLoseNothing(t *testing.T) {
	w := made(t)
	w.enable(t, "first")
	w.os.pol.minLength = 65
	for range 2 * maxKept {
		if err := w.m.Enable(t.Context(), "alice", sft.NewSecret("short")); err == nil {
			t.Fatal("a short password was set")
		}
	}
	w.os.pol.minLength = 0
	w.enable(t, "next")
	if w.resets != nil {
		t.Errorf("resets %q: the last password is not known any more", w.resets)
	}
}

// TestWindowsKeptOutOfReach: a file that somebody else has open, as a scanner
// or a backup may, is no reason to lose what the person has saved.
func TestWindowsKeptOutOfReach(t *testing.T) {
	w := made(t)
	w.enable(t, "first")
	file := w.b.file("alice")
	must(t, os.Rename(file, file+".away"))
	must(t, os.Mkdir(file, 0o700)) // it cannot be read
	err := w.m.Enable(t.Context(), "alice", sft.NewSecret("next"))
	if sft.CodeOf(err) != sft.Unavailable {
		t.Errorf("Enable: %v, want it unavailable", err)
	}
	if w.os.find("alice").flags&ufAccountDisable == 0 {
		t.Error("the account is open")
	}
	must(t, os.Remove(file))
	must(t, os.Rename(file+".away", file))
	w.enable(t, "next")
	if w.resets != nil {
		t.Errorf("resets %q", w.resets)
	}
}

func TestWindowsPolicyRefuses(t *testing.T) {
	w := made(t)
	w.os.pol.minLength = 65
	err := w.m.Enable(t.Context(), "alice", sft.NewSecret("short"))
	if sft.CodeOf(err) != sft.Unavailable || !strings.Contains(err.Error(), "asks for 65 characters") {
		t.Errorf("Enable: %v", err)
	}
	if w.os.find("alice").flags&ufAccountDisable == 0 {
		t.Error("the account is open")
	}
	expect(t, w.m.Reconcile(t.Context(), []Want{want("alice", 60001), want("bob", 60002)}, Limits{}, false), "alice kept", "bob failed !")
	w.os.pol.minLength = 64
	expect(t, w.m.Reconcile(t.Context(), []Want{want("alice", 60001), want("bob", 60002)}, Limits{}, false), "alice kept", "bob created")
}

func TestWindowsAccountChangedByOthers(t *testing.T) {
	w := made(t)
	u := w.os.find("alice")

	// Opened by hand: shut at the next DisableAll.
	u.flags, u.password = winOpen, "theirs"
	must(t, w.m.DisableAll(t.Context()))
	if u.flags&ufAccountDisable == 0 {
		t.Error("the account stays open")
	}
	// Locked out, taken from the groups, and renamed in other letters.
	u.flags |= ufLockout
	w.os.groups["Remotedesktopbenutzer"], u.name = nil, "ALICE"
	w.enable(t, "first")
	if !slices.Contains(w.os.groups["Remotedesktopbenutzer"], u.sid) {
		t.Error("the account is not in Remote Desktop Users")
	}
	// Locked out at rest: that is cleared without opening it before its time.
	must(t, w.m.Disable(t.Context(), "alice"))
	u.flags |= ufLockout
	w.os.calls = nil
	w.enable(t, "again")
	if want := []string{"expiry alice", "flags 0x10243 alice", "change alice", "flags 0x10241 alice"}; !slices.Equal(w.os.calls, want) {
		t.Errorf("Enable made the calls %q, want %q", w.os.calls, want)
	}
	// Deleted: there is none to open, and it is made again with a new identity.
	must(t, w.os.deleteUser("alice"))
	if err := w.m.Enable(t.Context(), "alice", sft.NewSecret("x")); sft.CodeOf(err) != sft.NotFound {
		t.Errorf("Enable of a deleted account: %v", err)
	}
	expect(t, w.m.Reconcile(t.Context(), []Want{want("alice", 60001)}, Limits{}, false), "alice created")
	w.enable(t, "second")
	// Deleted, and another made in its place meanwhile.
	a := read(t, w.b, "alice")
	must(t, w.os.deleteUser("alice"))
	must(t, w.os.addUser("alice", "", ufScript, sft.NewSecret("theirs")))
	ctx := t.Context()
	for what, err := range map[string]error{"enable": w.b.Enable(ctx, a, sft.NewSecret("x")), "rest": w.b.Rest(ctx, a), "end": w.b.End(ctx, a),
		"update": w.b.Update(ctx, a, want("alice", 60001)), "logoff": w.b.Logoff(ctx, a), "keep alive": w.b.KeepAlive(ctx, a)} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	must(t, w.b.Delete(ctx, a, true))
	if u := w.os.find("alice"); u == nil || u.password != "theirs" || u.flags != ufScript {
		t.Errorf("the other account is %+v", u)
	}
	expect(t, w.m.Reconcile(ctx, []Want{want("alice", 60001)}, Limits{}, false), "alice conflict !")
}

func TestWindowsBuiltInAccountsAreNeverOurs(t *testing.T) {
	w := made(t)
	gast := w.os.find("Gast")
	gast.comment = winComment(60002, 63002, "")
	w.os.groups[winGroup] = append(w.os.groups[winGroup], gast.sid)
	if a := read(t, w.b, "gast"); a.Member || a.UID != 0 {
		t.Errorf("read as %+v", a)
	}
	must(t, os.Remove(w.dir+"/"+recordName))
	must(t, LockAll(t.Context(), w.dir, w.b))
	if gast.flags&ufAccountDisable != 0 || gast.password != "theirs" {
		t.Errorf("it was changed: %+v", gast)
	}
	a := Account{Login: "gast", ID: gast.sid, UID: 60002, GID: 63002, Member: true}
	if err := w.b.Delete(t.Context(), a, true); err == nil {
		t.Error("Delete does not refuse")
	}
	if err := w.b.Enable(t.Context(), a, sft.NewSecret("x")); err == nil {
		t.Error("Enable does not refuse")
	}
}

func TestWindowsDomainControllerIsRefused(t *testing.T) {
	w := made(t)
	w.os.dc = true
	got := w.m.Reconcile(t.Context(), []Want{want("bob", 60002)}, Limits{}, true)
	expect(t, got, "bob failed !")
	if sft.CodeOf(got[0].Err) != sft.Denied {
		t.Errorf("told %v", got[0].Err)
	}
	for what, err := range map[string]error{"enable": w.m.Enable(t.Context(), "alice", sft.NewSecret("x")), "disable": w.m.DisableAll(t.Context())} {
		if sft.CodeOf(err) != sft.Denied {
			t.Errorf("%s: %v", what, err)
		}
	}
	if w.os.calls != nil {
		t.Errorf("calls %q", w.os.calls)
	}
}

func TestWindowsAccountsExpireWithoutTheAgent(t *testing.T) {
	w := made(t)
	w.enable(t, "first")
	w.now = w.now.Add(winLease - time.Second)
	must(t, w.m.KeepAlive(t.Context()))
	w.now = w.now.Add(winLease - time.Second)
	if !w.os.signIn("alice", "first", w.now) {
		t.Error("an account that is kept alive has expired")
	}
	w.now = w.now.Add(time.Second)
	if w.os.signIn("alice", "first", w.now) {
		t.Error("an account that nobody keeps alive is open")
	}
	must(t, w.m.Disable(t.Context(), "alice"))
	w.os.calls = nil
	must(t, w.m.KeepAlive(t.Context()))
	must(t, w.b.KeepAlive(t.Context(), read(t, w.b, "alice")))
	if w.os.calls != nil {
		t.Errorf("an account at rest is kept alive: %q", w.os.calls)
	}
	must(t, w.os.addUser("carol", "", ufScript, sft.NewSecret("theirs")))
	w.os.calls = nil
	must(t, w.m.KeepAlive(t.Context()))
	if w.os.calls != nil {
		t.Errorf("somebody else's account is kept alive: %q", w.os.calls)
	}
	must(t, open(t, t.TempDir(), NewMemory()).KeepAlive(t.Context()))
}

func TestWindowsHalfMade(t *testing.T) {
	for _, at := range []string{"add", "join", "name", "comment"} {
		w := newWinTest(t)
		func() {
			defer func() { _ = recover() }()
			w.os.refuse = func(call string) error {
				if call == at {
					panic("killed")
				}
				return nil
			}
			if at == "join" { // there is no step in between
				w.os.groups[winGroup] = nil
				w.m.plan(t.Context(), []Want{want("alice", 60001)}, Limits{}, func(string) bool { return false })
				must(t, w.os.addUser("alice", winComment(60001, 63001, w.m.rec["alice"].Mark), winRest, sft.NewSecret("x")))
				return
			}
			w.m.Reconcile(t.Context(), []Want{want("alice", 60001)}, Limits{}, false)
		}()
		w.os.refuse = nil
		w.m = open(t, w.dir, w.b)
		for _, o := range w.m.Reconcile(t.Context(), []Want{want("alice", 60001)}, Limits{}, false) {
			if o.Change != Created && o.Change != Updated {
				t.Errorf("killed at %s: %s", at, o)
			}
		}
		expect(t, w.m.Reconcile(t.Context(), []Want{want("alice", 60001)}, Limits{}, false), "alice kept")
		if got := read(t, w.b, "alice"); got.FullName != "P" || !got.Member {
			t.Errorf("killed at %s: %+v", at, got)
		}
		w.enable(t, "first")
	}
}

func TestWindowsLogoff(t *testing.T) {
	w := made(t)
	sid := w.os.find("alice").sid
	w.os.sess = []winSession{{1, "Administrator", "WEB01", w.now}, {2, "alice", "CORP", w.now}, {3, "Alice", "web01", w.now}, {4, "alice", "WEB01", w.now.Add(-time.Hour)}}
	w.os.procs = []winProcess{{100, sid}, {101, fakeMachine + "500"}}
	for after, want := range map[time.Duration]bool{-time.Minute: true, time.Minute: false} {
		if got := must1(w.m.SignedInSince(t.Context(), "alice", w.now.Add(after)))(t); got != want {
			t.Errorf("SignedInSince %v = %v", after, got)
		}
	}
	must(t, w.m.Logoff(t.Context(), "alice"))
	if want := []string{"logoff 3", "logoff 4", "end 100"}; !slices.Equal(w.os.calls, want) {
		t.Errorf("calls %q, want %q", w.os.calls, want)
	}
}

func TestWindowsDelete(t *testing.T) {
	for _, gone := range []bool{false, true} {
		w := made(t)
		sid := w.os.find("alice").sid
		w.os.profiles = []string{sid}
		expect(t, w.m.Reconcile(t.Context(), nil, Limits{}, false), "alice disabled")
		if len(w.os.profiles) != 1 {
			t.Error("the profile of a disabled account was deleted")
		}
		if gone {
			must(t, w.os.deleteUser("alice"))
			w.m.Reconcile(t.Context(), nil, Limits{}, true)
		} else {
			expect(t, w.m.Reconcile(t.Context(), nil, Limits{}, true), "alice removed")
		}
		if w.os.find("alice") != nil || len(w.os.profiles) != 0 {
			t.Error("account or profile are there still")
		}
		if all := must1(os.ReadDir(w.b.dir))(t); len(all) != 0 {
			t.Errorf("left behind: %v", all)
		}
	}
}

func TestWindowsDeleteKeepsTheProfile(t *testing.T) {
	w := made(t)
	a := read(t, w.b, "alice")
	w.os.profiles = []string{a.ID}
	must(t, w.b.Delete(t.Context(), a, false))
	if len(w.os.profiles) != 1 {
		t.Error("the profile is gone, and nobody asked for that")
	}
}

func TestWindowsEndTakesAdminRights(t *testing.T) {
	w := newWinTest(t)
	all := Limits{AllowAdmin: true}
	expect(t, w.m.Reconcile(t.Context(), []Want{admin(want("alice", 60001))}, all, false), "alice created")
	expect(t, w.m.Reconcile(t.Context(), nil, all, false), "alice disabled")
	if m := w.os.groups["Administratoren"]; len(m) != 0 {
		t.Errorf("administrators: %q", m)
	}
}

func TestWindowsKeptOfAnotherAccount(t *testing.T) {
	w := made(t)
	must(t, w.b.keep("alice", kept{SID: fakeMachine + "4000", Passwords: []string{"of before"}}))
	w.enable(t, "first")
	if w.os.badRetry != 0 || !slices.Equal(w.resets, []string{"alice"}) {
		t.Errorf("%d wrong passwords were tried, resets of %q told", w.os.badRetry, w.resets)
	}
}

func TestWindowsEnableLooksAtWhatItDid(t *testing.T) {
	w := made(t)
	w.enable(t, "first")
	must(t, os.Remove(w.b.file("alice")))
	w.b.onReset = func(string) { w.os.find("alice").expires = winForever } // somebody else, at the wrong moment
	if err := w.m.Enable(t.Context(), "alice", sft.NewSecret("second")); err == nil {
		t.Error("an account that never expires was left open")
	}
	if w.os.find("alice").flags&ufAccountDisable == 0 {
		t.Error("the account is open")
	}
}

func TestWindowsWithoutASealSetsNoPassword(t *testing.T) {
	w := made(t)
	before := w.os.find("alice").password
	w.b.sealer = &fakeSeal{errors.New("no key")}
	if err := w.m.Enable(t.Context(), "alice", sft.NewSecret("x")); err == nil {
		t.Error("no error")
	}
	if u := w.os.find("alice"); u.password != before || u.flags&ufAccountDisable == 0 {
		t.Errorf("the account is %+v", u)
	}
}

func TestNewPassword(t *testing.T) {
	for range 2000 {
		p := NewPassword("ab", "abc", "Zoë D-ef").Reveal()
		if len(p) != 64 || !complexPassword(p, []string{"abc", "zoë"}) || strings.Trim(p, passwordChars) != "" {
			t.Fatalf("%q", p)
		}
	}
	for p, want := range map[string]bool{"aA0-": true, "A0-": false, "a0-": false, "aA-": false, "aA0": false, "aA0-aBc": false} {
		if complexPassword(p, []string{"abc"}) != want {
			t.Errorf("%q: %v", p, !want)
		}
	}
}

func TestWinTime(t *testing.T) {
	for in, want := range map[int64]time.Time{
		0:                       {},
		-1:                      {},
		116_444_736_000_000_000: time.Unix(0, 0),
		133_801_632_000_000_001: time.Date(2025, 1, 1, 0, 0, 0, 100, time.UTC),
	} {
		if got := winTime(in); !got.Equal(want) {
			t.Errorf("%d is %v, want %v", in, got, want)
		}
	}
}

func FuzzWinComment(f *testing.F) {
	f.Add("made by sftd; uid 60001; gid 63001")
	f.Add("made by sftd; uid 60001; gid 63001; sft-new-ABC")
	f.Add("made by sftd; uid 060001; gid 4294967297")
	f.Fuzz(func(t *testing.T, s string) {
		uid, gid, mark := parseWinComment(s)
		if uid == 0 && gid == 0 && mark == "" {
			return
		}
		if uid < 1 || uid > maxID || gid < 1 || gid > maxID || winComment(uid, gid, mark) != s {
			t.Errorf("%q is read as %d, %d, %q", s, uid, gid, mark)
		}
	})
}

func FuzzKept(f *testing.F) {
	f.Add([]byte(`{"sid":"S-1-5-21-1-2-3-1001","passwords":["a","b"],"rest":true}`))
	f.Add([]byte(`{"passwords":[""]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := parseKept(data)
		if err != nil {
			return
		}
		if len(k.Passwords) > maxKept || slices.Contains(k.Passwords, "") || k.SID != "" && !ordinarySID(k.SID) {
			t.Errorf("%q is read as %+v", data, k)
		}
	})
}
