package accounts

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sft"
)

// told writes outcomes for comparison: login and change, and a "!" where
// something was not done.
func told(all []Outcome) []string {
	var s []string
	for _, o := range all {
		line := o.Login + " " + string(o.Change)
		if o.Err != nil {
			line += " !"
		}
		s = append(s, line)
	}
	return s
}

// expect compares what Reconcile told.
func expect(t *testing.T, got []Outcome, want ...string) {
	t.Helper()
	if g := told(got); !slices.Equal(g, want) {
		t.Fatalf("Reconcile told %q, want %q\nin full: %v", g, want, got)
	}
}

func open(t *testing.T, dir string, b Backend) *Manager {
	t.Helper()
	m, err := Open(dir, b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// read returns the account of login from the host itself.
func read(t *testing.T, b Backend, login string) Account {
	t.Helper()
	h, err := b.Read(t.Context(), nil)
	must(t, err)
	return h.find(login)
}

// asNumbered gives an account of Windows, which has a SID and a home that the
// system chooses, what the others have there.
func asNumbered(a Account) Account {
	if strings.HasPrefix(a.ID, "S-1-") {
		a.ID, a.Home = strconv.Itoa(a.UID), "/home/"+a.Login
	}
	return a
}

// testLife is what every backend must do: the life of an account, from nothing
// to nothing.
func testLife(t *testing.T, b Backend, addForeign func(login string, uid int)) {
	ctx, all := t.Context(), Limits{AllowAdmin: true}
	dir := t.TempDir()
	m := open(t, dir, b)
	alice := Want{"alice", "Alice Example", 60001, 63001, false}
	bob := Want{"bob", "Bob", 60002, 63002, true}
	rest := Account{Login: "alice", ID: "60001", UID: 60001, GID: 63001, FullName: "Alice Example", Home: "/home/alice", Member: true}
	check := func(want Account) {
		t.Helper()
		if got := asNumbered(read(t, b, want.Login)); got != asNumbered(want) {
			t.Fatalf("the host has %+v, want %+v", got, want)
		}
	}

	expect(t, m.Reconcile(ctx, []Want{bob, alice}, all, false), "alice created", "bob created")
	check(rest)
	check(Account{Login: "bob", ID: "60002", UID: 60002, GID: 63002, FullName: "Bob", Home: "/home/bob", Member: true, Admin: true})
	expect(t, m.Reconcile(ctx, []Want{bob, alice}, all, false), "alice kept", "bob kept")

	// A password set and taken; a Reconcile in between disturbs nobody.
	must(t, m.Enable(ctx, "alice", sft.NewSecret("first:password")))
	open := rest
	open.Enabled = true
	check(open)
	expect(t, m.Reconcile(ctx, []Want{bob, alice}, all, false), "alice kept", "bob kept")
	check(open)
	must(t, m.Disable(ctx, "alice"))
	check(rest)

	// Names and rights change.
	alice.FullName, bob.Admin = "Alice Other", false
	expect(t, m.Reconcile(ctx, []Want{bob, alice}, all, false), "alice updated", "bob updated")
	rest.FullName = "Alice Other"
	check(rest)

	// Somebody else's account is not touched, by nobody, ever.
	addForeign("carol", 1500)
	carol := read(t, b, "carol")
	expect(t, m.Reconcile(ctx, []Want{bob, alice, {Login: "carol", UID: 1500, GID: 1500}}, all, true), "alice kept", "bob kept", "carol conflict !")
	for what, err := range map[string]error{
		"enable":  m.Enable(ctx, "carol", sft.NewSecret("x")),
		"disable": m.Disable(ctx, "carol"),
		"log off": m.Logoff(ctx, "carol"),
	} {
		if sft.CodeOf(err) != sft.Conflict {
			t.Errorf("%s carol: %v, want a conflict", what, err)
		}
	}
	expect(t, m.Reconcile(ctx, []Want{bob, alice}, all, true), "alice kept", "bob kept")
	must(t, m.DisableAll(ctx))
	check(carol)
	if err := m.Enable(ctx, "nosuch", sft.NewSecret("x")); sft.CodeOf(err) != sft.NotFound {
		t.Errorf("enable nosuch: %v, want not found", err)
	}
	if err := m.Enable(ctx, "alice", sft.NewSecret("two\nroot:lines")); err == nil {
		t.Error("a password of two lines is let pass")
	}

	// Unwanted: shut, expired, not to be opened; the record of that survives.
	must(t, m.Enable(ctx, "alice", sft.NewSecret("second")))
	expect(t, m.Reconcile(ctx, []Want{bob}, all, false), "alice disabled", "bob kept")
	end := rest
	end.Expired, end.Aging = true, true
	check(end)
	m2, err := Open(dir, b)
	must(t, err)
	m = m2
	if err := m.Enable(ctx, "alice", sft.NewSecret("x")); sft.CodeOf(err) != sft.Denied {
		t.Errorf("enable of an ended account: %v, want denied", err)
	}
	must(t, m.DisableAll(ctx))
	check(end)
	expect(t, m.Reconcile(ctx, []Want{bob}, all, false), "bob kept")
	want := []AccountStatus{{Login: "alice", UID: 60001, State: Ended}, {Login: "bob", UID: 60002, State: AtRest}}
	if got := m.Status(); !slices.Equal(got, want) {
		t.Errorf("Status = %+v, want %+v", got, want)
	}

	// With the record lost an ended account stays ended, an open one is shut.
	must(t, m.Enable(ctx, "bob", sft.NewSecret("third")))
	must(t, os.Remove(filepath.Join(dir, recordName)))
	must(t, LockAll(ctx, dir, b))
	check(end)
	check(carol)
	if a := read(t, b, "bob"); a.Enabled {
		t.Errorf("bob is open: %+v", a)
	}

	// Wanted again: the same uid, from group and uid alone, ready for use.
	m = must1(Open(dir, b))(t)
	if err := m.Enable(ctx, "alice", sft.NewSecret("x")); sft.CodeOf(err) != sft.Conflict {
		t.Errorf("enable with the record lost: %v, want a conflict", err)
	}
	expect(t, m.Reconcile(ctx, []Want{bob, alice}, all, false), "alice updated", "bob kept")
	check(rest)
	must(t, m.Enable(ctx, "alice", sft.NewSecret("fourth")))

	// Gone for good.
	expect(t, m.Reconcile(ctx, nil, all, true), "alice removed", "bob removed")
	check(carol)
	if a, b := read(t, b, "alice"), read(t, b, "bob"); a.Login+b.Login != "" {
		t.Errorf("left behind: %+v, %+v", a, b)
	}
	if len(m.rec) != 0 {
		t.Errorf("the record still holds %v", m.rec)
	}
}

func must1[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return v
	}
}

func TestLifeInMemory(t *testing.T) {
	m := NewMemory()
	testLife(t, m, m.AddForeign)
}

func TestSecondReconcileChangesNothing(t *testing.T) {
	b := NewMemory()
	m := open(t, t.TempDir(), b)
	wants := []Want{want("alice", 60001), admin(want("bob", 60002))}
	for range 2 {
		m.Reconcile(t.Context(), wants, Limits{AllowAdmin: true}, false)
	}
	want := []string{"create alice", "update alice", "create bob", "update bob"}
	if got := b.Calls(); !slices.Equal(got, want) {
		t.Errorf("calls %q, want %q", got, want)
	}
}

func TestAccessIsTakenBeforeAnyIsGiven(t *testing.T) {
	b := NewMemory()
	m := open(t, t.TempDir(), b)
	m.Reconcile(t.Context(), []Want{want("zoe", 60009)}, Limits{}, false)
	must(t, m.Enable(t.Context(), "zoe", sft.NewSecret("pw")))
	must(t, b.SignIn("zoe", "pw", time.Now()))
	b.Calls()
	m.Reconcile(t.Context(), []Want{want("alice", 60001)}, Limits{}, true)
	want := []string{"end zoe", "logoff zoe", "delete zoe", "create alice", "update alice"}
	if got := b.Calls(); !slices.Equal(got, want) {
		t.Errorf("calls %q, want %q", got, want)
	}
}

func TestOneFailureLeavesTheOthersAlone(t *testing.T) {
	b := NewMemory()
	m := open(t, t.TempDir(), b)
	wants := []Want{want("alice", 60001), want("bob", 60002), want("carol", 60003)}
	b.Fail("create", "bob", errors.New("no space left"))
	b.Fail("update", "carol", errors.New("no space left"))
	expect(t, m.Reconcile(t.Context(), wants, Limits{}, false), "alice created", "bob failed !", "carol failed !")
	b.Fail("create", "bob", nil)
	b.Fail("update", "carol", nil)
	expect(t, m.Reconcile(t.Context(), wants, Limits{}, false), "alice kept", "bob created", "carol updated")

	b.Fail("end", "alice", errors.New("passwd is locked"))
	expect(t, m.Reconcile(t.Context(), nil, Limits{}, true), "alice failed !", "bob removed", "carol removed")
	if err := m.Enable(t.Context(), "alice", sft.NewSecret("x")); sft.CodeOf(err) != sft.Denied {
		t.Errorf("enable of an account that could not be ended: %v, want denied", err)
	}
	b.Fail("end", "alice", nil)
	expect(t, m.Reconcile(t.Context(), nil, Limits{}, true), "alice removed")
}

func TestEnableThatFailsLeavesTheAccountShut(t *testing.T) {
	b := NewMemory()
	m := open(t, t.TempDir(), b)
	m.Reconcile(t.Context(), []Want{want("alice", 60001)}, Limits{}, false)
	must(t, m.Enable(t.Context(), "alice", sft.NewSecret("old")))
	b.Fail("enable", "alice", errors.New("pam says no"))
	if err := m.Enable(t.Context(), "alice", sft.NewSecret("new")); err == nil {
		t.Fatal("no error")
	}
	if a, _ := b.Account("alice"); a.Enabled {
		t.Error("the account is still open")
	}
}

func TestHostThatCannotBeRead(t *testing.T) {
	b := NewMemory()
	m := open(t, t.TempDir(), b)
	b.Fail("read", "", errors.New("input/output error"))
	expect(t, m.Reconcile(t.Context(), []Want{want("alice", 60001)}, Limits{}, true), "alice failed !")
	if err := m.DisableAll(t.Context()); err == nil {
		t.Error("DisableAll tells of no error")
	}
	if st := m.Status(); len(st) != 1 || st[0].Problem == "" {
		t.Errorf("Status = %+v, want alice with a problem", st)
	}
}

func TestCancelledReconcileBeginsNothing(t *testing.T) {
	b := NewMemory()
	m := open(t, t.TempDir(), b)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	expect(t, m.Reconcile(ctx, []Want{want("alice", 60001)}, Limits{}, false), "alice failed !")
	if got := b.Calls(); got != nil {
		t.Errorf("calls %q", got)
	}
	expect(t, m.Reconcile(t.Context(), []Want{want("alice", 60001)}, Limits{}, false), "alice created")
}

func TestDamagedRecordIsSetAside(t *testing.T) {
	b, dir := NewMemory(), t.TempDir()
	m := open(t, dir, b)
	m.Reconcile(t.Context(), []Want{want("alice", 60001)}, Limits{}, false)
	path := filepath.Join(dir, recordName)
	for _, data := range []string{"", "{", `{"version":2,"accounts":{}}`, `{"version":1,"accounts":{"root":{"uid":0,"gid":0}}}`, `{"version":1,"accounts":{}} x`} {
		must(t, os.WriteFile(path, []byte(data), 0o600))
		m = open(t, dir, b)
		if got := string(must1(os.ReadFile(path + ".bad"))(t)); got != data {
			t.Errorf("set aside %q, want %q", got, data)
		}
		if !m.lost {
			t.Errorf("record %q is believed", data)
		}
		expect(t, m.Reconcile(t.Context(), []Want{want("alice", 60001)}, Limits{}, false), "alice kept")
	}
}

func TestLockAllGoesOnWithoutAStateFolder(t *testing.T) {
	b := NewMemory()
	m := open(t, t.TempDir(), b)
	m.Reconcile(t.Context(), []Want{want("alice", 60001)}, Limits{}, false)
	must(t, m.Enable(t.Context(), "alice", sft.NewSecret("pw")))
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if err := LockAll(t.Context(), file, b); err == nil {
		t.Error("the trouble with the folder is not told")
	}
	if a, _ := b.Account("alice"); a.Enabled {
		t.Error("the account is still open")
	}
}

func TestCallsAtTheSameTime(t *testing.T) {
	b := NewMemory()
	m := open(t, t.TempDir(), b)
	wants := []Want{want("alice", 60001), want("bob", 60002)}
	m.Reconcile(t.Context(), wants, Limits{}, false)
	done := make(chan struct{})
	for _, f := range []func(){
		func() { m.Reconcile(context.Background(), wants, Limits{}, false) },
		func() { m.Reconcile(context.Background(), wants[:1], Limits{}, true) },
		func() { _ = m.Enable(context.Background(), "bob", sft.NewSecret("x")) },
		func() { _ = m.Logoff(context.Background(), "bob") },
		func() { _, _ = m.SignedInSince(context.Background(), "alice", time.Now()) },
		func() { m.Status(); _ = m.DisableAll(context.Background()) },
	} {
		go func() {
			for range 50 {
				f()
			}
			done <- struct{}{}
		}()
	}
	for range 6 {
		<-done
	}
	// Whatever the order was, the end is what the last word says.
	m.Reconcile(t.Context(), wants[1:], Limits{}, true)
	_, alice := b.Account("alice")
	_, bob := b.Account("bob")
	if alice || !bob {
		t.Errorf("alice is there: %v, bob is there: %v; want bob alone", alice, bob)
	}
}
