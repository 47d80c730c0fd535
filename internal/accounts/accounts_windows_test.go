package accounts

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"

	"sft"
)

// standin gives the test a host of its own in the stand-in for netapi32.dll of
// e2e/wine/standin, and returns its folder. The real accounts of a Windows are
// never touched.
func standin(t *testing.T) string {
	t.Helper()
	if os.Getenv("SFT_STANDIN_DIR") == "" {
		t.Skip("NOT TESTED: the calls of Windows; set SFT_STANDIN_DIR, and SFT_WINE_DLLS to what e2e/wine/standin/build.sh has built")
	}
	dir := filepath.Join(t.TempDir(), "host")
	t.Setenv("SFT_STANDIN_DIR", dir)
	if _, err := (winOS{}).users(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "users")); err != nil {
		t.Skip("NOT TESTED: the calls of Windows; netapi32.dll is not the stand-in: set SFT_WINE_DLLS to what e2e/wine/standin/build.sh has built")
	}
	return dir
}

// planted returns one field of an account as the stand-in keeps it.
func planted(t *testing.T, dir, login, key string) string {
	t.Helper()
	data := must1(os.ReadFile(filepath.Join(dir, "users", login)))(t)
	for l := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(l, key+"="); ok {
			return strings.TrimSuffix(v, "\n")
		}
	}
	return ""
}

func plant(t *testing.T, dir, name, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
}

// without is the real calls, but for sessions and processes, which the
// stand-in does not have, and profiles.
type without struct{ winOS }

func (without) sessions() ([]winSession, error)  { return nil, nil }
func (without) processes() ([]winProcess, error) { return nil, nil }
func (without) deleteProfile(string) error       { return &winError{"DeleteProfile", winFileNotFound} }

func TestLifeThroughTheStandin(t *testing.T) {
	dir := standin(t)
	for _, page := range []string{"", "page=1\n"} {
		plant(t, dir, "policy", page)
		b := newWindowsBackend(without{}, dpapi{}, t.TempDir(), func(l string) { t.Errorf("the password of %s was reset", l) })
		testLife(t, b, func(login string, _ int) {
			must(t, winOS{}.addUser(strings.ToUpper(login), "", ufScript|ufNormalAccount, sft.NewSecret("theirs")))
		})
		must(t, winOS{}.deleteUser("carol"))
	}
}

func TestWhatTheStandinHolds(t *testing.T) {
	dir := standin(t)
	var resets []string
	state := t.TempDir()
	b := newWindowsBackend(without{}, dpapi{}, state, func(l string) { resets = append(resets, l) })
	m := open(t, state, b)
	boss := Want{"alice", "Alice \u00c4xample \U0001f980", 60001, 63001, true}
	expect(t, m.Reconcile(t.Context(), []Want{boss}, Limits{AllowAdmin: true}, false), "alice created")
	check := func(key, want string) {
		t.Helper()
		if got := planted(t, dir, "alice", key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	check("flags", "66115") // 0x10243
	check("comment", "made by sftd; uid 60001; gid 63001")
	check("fullname", boss.FullName)
	sid := planted(t, dir, "alice", "sid")
	if a := read(t, b, "alice"); a.ID != sid || !a.Admin || !a.Member || a.Enabled {
		t.Errorf("read as %+v", a)
	}

	plant(t, dir, "policy", "minlength=64\ncomplexity=1\n")
	first := NewPassword("alice")
	before := time.Now()
	must(t, m.Enable(t.Context(), "alice", first))
	check("password", first.Reveal())
	check("flags", "66113") // 0x10241
	u := must1(winOS{}.user("ALICE"))(t)
	if d := time.Unix(int64(u.expires), 0).Sub(before); d < winLease-time.Minute || d > winLease+time.Minute {
		t.Errorf("it expires in %v", d)
	}
	for _, g := range []string{"sft-users", "Administrators", "Users", "Remote Desktop Users"} {
		if all := must1(winOS{}.members(g))(t); !slices.Contains(all, sid) {
			t.Errorf("%s has the members %q", g, all)
		}
	}
	if err := m.Enable(t.Context(), "alice", sft.NewSecret("weak")); sft.CodeOf(err) != sft.Unavailable {
		t.Errorf("a weak password: %v", err)
	}
	must(t, m.Enable(t.Context(), "alice", NewPassword("alice")))
	if resets != nil {
		t.Errorf("resets of %q", resets)
	}
	plant(t, dir, "policy", "refuse-change=1\n")
	must(t, m.Enable(t.Context(), "alice", NewPassword("alice")))
	plant(t, dir, "policy", "refuse-disabled=1\n")
	must(t, m.Disable(t.Context(), "alice"))
	must(t, m.Enable(t.Context(), "alice", NewPassword("alice")))
	if !slices.Equal(resets, []string{"alice"}) {
		t.Errorf("resets of %q, want one of alice", resets)
	}
	data := must1(os.ReadFile(b.file("alice")))(t)
	if strings.Contains(string(data), planted(t, dir, "alice", "password")) {
		t.Error("the password is written in clear")
	}
	expect(t, m.Reconcile(t.Context(), nil, Limits{}, true), "alice removed")
	if all := must1(winOS{}.members("Administrators"))(t); len(all) != 0 {
		t.Errorf("Administrators has the members %q", all)
	}
}

func TestStatusesThroughTheStandin(t *testing.T) {
	dir := standin(t)
	w, pw := winOS{}, sft.NewSecret("a password")
	must(t, w.addUser("bob", "c", winRest, pw))
	must(t, w.addGroup("team", "c"))
	sid := must1(w.user("bob"))(t).sid
	must(t, w.addMember("team", sid))
	plant(t, dir, "policy", "minlength=5\nlockout=2\n")
	for _, tt := range []struct {
		name string
		err  error
		want uint32
	}{
		{"an account again", w.addUser("BOB", "", winRest, pw), nerrUserExists},
		{"an account named as a group", w.addUser("team", "", winRest, pw), nerrGroupExists},
		{"21 characters", w.addUser("abcdefghijklmnopqrstu", "", winRest, pw), 2202},
		{"a slash", w.addUser("a/b", "", winRest, pw), 2202},
		{"dots", w.addUser("..", "", winRest, pw), 2202},
		{"a short password", w.addUser("carol", "", winRest, sft.NewSecret("abc")), nerrPasswordShort},
		{"no UF_SCRIPT", w.setFlags("bob", ufNormalAccount), 87},
		{"nobody's flags", w.setFlags("carol", winRest), nerrUserNotFound},
		{"nobody's deletion", w.deleteUser("carol"), nerrUserNotFound},
		{"a group again", w.addGroup("team", "c"), winGroupExists},
		{"a member again", w.addMember("team", sid), winMember},
		{"no member", w.removeMember("Users", sid), winNotMember},
		{"no group", w.addMember("nosuch", sid), nerrGroupNotFound},
		{"another old password", w.changePassword("bob", sft.NewSecret("x"), pw), winBadPassword},
		{"a short reset", w.setPassword("bob", sft.NewSecret("abc")), nerrPasswordShort},
		{"another old password again", w.changePassword("bob", sft.NewSecret("x"), pw), winBadPassword},
		{"locked out", w.changePassword("bob", pw, pw), winLockedOut},
		{"cleared", w.setFlags("bob", winRest), 0},
		{"the right one", w.changePassword("bob", pw, pw), 0},
		{"left", w.removeMember("team", sid), 0},
	} {
		if got := winStatus(tt.err); got != tt.want || (tt.err == nil) != (tt.want == 0) {
			t.Errorf("%s: %v, want status %d", tt.name, tt.err, tt.want)
		}
	}
	if p := must1(w.policy())(t); p != (winPolicy{minLength: 5}) {
		t.Errorf("policy %+v", p)
	}
	plant(t, dir, "policy", "controller=1\n")
	if _, err := newWindowsBackend(w, dpapi{}, t.TempDir(), nil).Read(t.Context(), nil); sft.CodeOf(err) != sft.Denied {
		t.Errorf("a domain controller: %v", err)
	}
}

// TestStandinWaits: a password is in force for the test's own sign-in before
// the call that sets it returns.
func TestStandinWaits(t *testing.T) {
	dir := standin(t)
	w := winOS{}
	must(t, w.addUser("bob", "", winRest, sft.NewSecret("one")))
	plant(t, dir, "wait-ack", "")
	done := make(chan error)
	go func() { done <- w.setPassword("bob", sft.NewSecret("two")) }()
	for planted(t, dir, "bob", "password") != "two" {
		select {
		case err := <-done:
			t.Fatalf("it did not wait: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	plant(t, dir, "ack-bob", planted(t, dir, "bob", "counter"))
	must(t, <-done)
}

func TestDPAPI(t *testing.T) {
	for _, s := range []string{"s", "secret", strings.Repeat("x", 10000)} {
		sealed, err := dpapi{}.seal([]byte(s))
		must(t, err)
		if len(s) > 1 && strings.Contains(string(sealed), s) {
			t.Error("sealed in clear")
		}
		if got := must1(dpapi{}.unseal(sealed))(t); string(got) != s {
			t.Errorf("%d characters come back as %d", len(s), len(got))
		}
	}
	if _, err := (dpapi{}).unseal([]byte("nonsense")); err == nil {
		t.Error("nonsense is unsealed")
	}
}

func TestGroupsOfWindowsBySID(t *testing.T) {
	for _, sid := range []string{sidAdministrators, sidUsers, sidRemoteDesktop} {
		name, err := winOS{}.groupName(sid)
		if err != nil || name == "" {
			t.Errorf("%s: %q, %v", sid, name, err)
		}
	}
	if _, err := (winOS{}).groupName("S-1-5-21-1-2-3-4444"); winStatus(err) != uint32(windows.ERROR_NONE_MAPPED) {
		t.Errorf("an unknown SID: %v", err)
	}
}
