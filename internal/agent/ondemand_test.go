package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sft"
	"sft/internal/accounts"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/frame"
	"sft/internal/privsep"
	"sft/internal/testenv"
)

// change has the host hear of another state.
func (h *host) change(f func(*api.State)) {
	h.t.Helper()
	st, _ := h.current()
	next := *st
	next.Users = slices.Clone(st.Users)
	next.Revision++
	f(&next)
	h.apply(context.Background(), &next, false)
}

func (h *host) hasAccount(login string) bool {
	_, ok := h.mem.Account(login)
	return ok
}

// noSession tells that the last session is over, its grace too.
func (h *host) noSession() bool {
	h.sessions.mu.Lock()
	defer h.sessions.mu.Unlock()
	return len(h.sessions.sessions) == 0
}

const demandPeriod = 600

func demandHost(t *testing.T) *host {
	t.Helper()
	port := sshServer(t)
	h := enrolledHost(t, nil)
	h.sshAddress = func() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	h.change(func(st *api.State) { st.Settings.UserOnDemand = demandPeriod })
	return h
}

// The life of an account on demand, by the desktop and by the shell.
func TestAccountOnDemand(t *testing.T) {
	t.Parallel()
	for _, service := range []string{frame.RDP, frame.SSH} {
		t.Run(service, func(t *testing.T) {
			t.Parallel()
			h := demandHost(t)
			var mu sync.Mutex
			var told []string
			h.sshAccount = func(login string, there bool) error {
				mu.Lock()
				defer mu.Unlock()
				if login == "ann" { // the host has an account of its owner's, too
					told = append(told, fmt.Sprint(login, " ", there, " ", h.hasAccount(login)))
				}
				return nil
			}
			if !h.hasAccount("ann") {
				t.Fatal("to turn the setting on removed an account at once")
			}
			h.env.Clock.Advance((demandPeriod + 1) * time.Second)
			until(t, "the idle account is gone", func() bool { return !h.hasAccount("ann") })
			if calls := h.mem.Calls(); !slices.Contains(calls, "delete ann") {
				t.Errorf("the accounts saw %q", calls)
			}
			h.reconcile(t.Context())
			if h.hasAccount("ann") {
				t.Error("it is made without a session")
			}

			k := h.connect("ann")
			n, _, err := h.ask(k, service)
			if err != nil {
				t.Fatal(err)
			}
			if a, ok := h.mem.Account("ann"); !ok || a.Expired || !a.Member {
				t.Errorf("the account is %+v", a)
			}
			h.env.Clock.Advance(3 * demandPeriod * time.Second)
			h.reconcile(t.Context())
			if !h.hasAccount("ann") {
				t.Fatal("it went with a session open")
			}
			h.Close(t.Context(), privsep.Close{Stream: n, Why: "client closed"})
			h.env.Clock.Advance(31 * time.Second)
			until(t, "the session is over", h.noSession)
			h.env.Clock.Advance((demandPeriod - 40) * time.Second)
			h.reconcile(t.Context())
			if !h.hasAccount("ann") {
				t.Fatal("it went before its time")
			}
			// A new session cancels.
			n, _, err = h.ask(h.connect("ann"), service)
			if err != nil {
				t.Fatal(err)
			}
			h.env.Clock.Advance(50 * time.Second)
			h.reconcile(t.Context())
			if !h.hasAccount("ann") {
				t.Fatal("a new session does not cancel")
			}
			h.Close(t.Context(), privsep.Close{Stream: n, Why: "client closed"})
			h.env.Clock.Advance(31 * time.Second)
			until(t, "the session is over", h.noSession)
			h.env.Clock.Advance((demandPeriod + 1) * time.Second)
			until(t, "it is gone again", func() bool { return !h.hasAccount("ann") })
			until(t, "the platform knows", func() bool {
				var kinds []string
				for _, e := range h.env.Events() {
					if (e.Kind == audit.AccountCreated || e.Kind == audit.AccountRemoved) && e.Detail["login"] == "ann" {
						kinds = append(kinds, string(e.Kind))
					}
				}
				return strings.Join(kinds, " ") == "account.created account.removed account.created account.removed"
			})
			mu.Lock()
			if len(told) < 3 || told[0] != "ann false true" || !slices.Contains(told, "ann true true") || told[len(told)-1] != "ann false true" {
				t.Errorf("the SSH side heard %q", told)
			}
			mu.Unlock()
			h.change(func(st *api.State) { st.Settings.UserOnDemand = 0 })
			if !h.hasAccount("ann") {
				t.Error("to turn the setting off does not make the account")
			}
			h.env.Clock.Advance(10 * demandPeriod * time.Second)
			h.reconcile(t.Context())
			if !h.hasAccount("ann") {
				t.Error("it goes with the setting off")
			}
			for range 2 {
				h.change(func(st *api.State) { st.Settings.UserOnDemand = demandPeriod })
				if !h.hasAccount("ann") {
					t.Error("to turn the setting on again removed an account at once")
				}
				h.change(func(st *api.State) { st.Settings.UserOnDemand = 0 })
				h.env.Clock.Advance(2 * demandPeriod * time.Second)
			}
		})
	}
}

// Since when an account is idle is written down, and a restart begins no new
// time.
func TestAccountOnDemandAfterARestart(t *testing.T) {
	b := newBench(t)
	b.want(b.ann)
	if err := b.hold("ann"); err != nil {
		t.Fatal(err)
	}
	b.sign(b.ann, "s1")
	b.release("ann")
	gone := func(want ...string) {
		t.Helper()
		_, gone, err := b.demanded(nil, time.Hour)
		var got []string
		for login := range gone {
			got = append(got, login)
		}
		if slices.Sort(got); !slices.Equal(got, want) || err != nil {
			t.Errorf("gone are %q, %v; want %q", got, err, want)
		}
	}
	again := func() {
		t.Helper()
		b.sessions = b.again(b.path)
		if err := b.recover(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	b.pass(2 * time.Hour)
	gone() // with the session open
	again()
	gone() // it has ended now
	b.pass(30 * time.Minute)
	again()
	b.pass(29 * time.Minute)
	gone()
	b.pass(time.Minute)
	gone("ann")
	if err := b.hold("ann"); err != nil {
		t.Fatal(err)
	}
	gone()
	if err := b.forget(false, "ann"); err != nil {
		t.Fatal(err)
	}
	b.release("ann")
	gone()
	b.clock.Advance(-48 * time.Hour)
	gone()
	b.pass(time.Hour)
	gone("ann")
	if err := b.forget(false, "ann"); err != nil {
		t.Fatal(err)
	}
	gone()
	if _, _, err := b.demanded([]string{"bob"}, time.Hour); err != nil {
		t.Fatal(err)
	}
	b.pass(time.Hour)
	again()
	gone("bob")
	if err := b.forget(true); err != nil {
		t.Fatal(err)
	}
	again()
	gone()
}

// What a person left running ends before their account goes, and somebody who
// is back meanwhile keeps both.
func TestVacate(t *testing.T) {
	b := newBench(t)
	if err := b.hold("ann"); err != nil {
		t.Fatal(err)
	}
	b.release("ann")
	b.mem.Begin("ann", b.clock.Now())
	if err := b.vacate(context.Background(), "ann", time.Hour); err != nil || b.mem.Sessions("ann") != 1 {
		t.Errorf("before its time: %v", err)
	}
	b.pass(time.Hour)
	if err := b.hold("ann"); err != nil {
		t.Fatal(err)
	}
	if err := b.vacate(context.Background(), "ann", time.Hour); err != nil || b.mem.Sessions("ann") != 1 {
		t.Errorf("with somebody on the way: %v", err)
	}
	b.release("ann")
	b.pass(time.Hour)
	if err := b.vacate(context.Background(), "ann", time.Hour); err != nil || b.mem.Sessions("ann") != 0 {
		t.Errorf("after its time: %v, %d sessions", err, b.mem.Sessions("ann"))
	}
	b.mem.Fail("logoff", "ann", errors.New("it hangs"))
	if err := b.vacate(context.Background(), "ann", time.Hour); err == nil {
		t.Error("a log-off that fails is not told")
	}
	b.mem.Fail("logoff", "ann", nil)
}

// An account that cannot be made or removed is told, and tried again.
func TestAccountOnDemandThatFails(t *testing.T) {
	t.Parallel()
	h := demandHost(t)
	h.mem.Fail("delete", "ann", errors.New("the disk is full"))
	h.env.Clock.Advance((demandPeriod + 1) * time.Second)
	until(t, "it is told", func() bool { return h.hasProblem("account ann") })
	if !h.hasAccount("ann") {
		t.Fatal("it is gone all the same")
	}
	h.mem.Fail("delete", "ann", nil)
	h.env.Clock.Advance(demandAgain)
	until(t, "it is removed", func() bool { return !h.hasAccount("ann") && !h.hasProblem("account ann") })
	h.mem.Fail("create", "ann", errors.New("the disk is full"))
	_, _, err := h.ask(h.connect("ann"), frame.SSH)
	wantCode(t, "an account that cannot be made", err, sft.Conflict)
	h.mem.Fail("create", "ann", nil)
	if _, _, err = h.ask(h.connect("ann"), frame.SSH); err != nil {
		t.Errorf("once it can be: %v", err)
	}
}

// Who loses access loses the account and its files at once, but one that had
// ended before the setting was there is left as it is.
func TestAccessOnDemandTakenAway(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	h.join("bob", "carl")
	h.waitAccount("bob")
	h.waitAccount("carl")
	h.change(func(st *api.State) {
		st.Users = slices.DeleteFunc(st.Users, func(u api.StateUser) bool { return u.Login == "bob" })
	})
	h.change(func(st *api.State) {
		st.Settings.UserOnDemand = demandPeriod
		st.Users = slices.DeleteFunc(st.Users, func(u api.StateUser) bool { return u.Login == "carl" })
	})
	h.change(func(st *api.State) { st.Users = nil })
	if h.hasAccount("ann") {
		t.Error("ann's account is left")
	}
	h.env.Clock.Advance(2 * demandPeriod * time.Second)
	h.reconcile(t.Context())
	for _, login := range []string{"bob", "carl"} {
		if a, ok := h.mem.Account(login); !ok || !a.Expired {
			t.Errorf("the account of %s is %+v, %v", login, a, ok)
		}
	}
}

// Groups and entitlements come and go with the state, and scripts hear of it.
func TestRightsOfTheState(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	h.mem.Fail("hook", accounts.GroupCreated, errors.New("it fails"))
	ops := sft.SudoEntitlement{Name: "ops", NoPasswd: true, Commands: []sft.SudoCommand{{Command: "/usr/bin/id", Type: "executable"}}}
	h.change(func(st *api.State) {
		st.Groups, st.Entitlements = []api.StateGroup{{Name: "sft_dev", GID: 63100}, {Name: "sudo", GID: 63101}}, []sft.SudoEntitlement{ops}
		st.Users[0].Groups, st.Users[0].Sudo = []string{"sft_dev"}, []string{"ops"}
	})
	groups, sudo := h.mem.Rights()
	if fmt.Sprint(groups) != "map[sft_dev:[ann]]" || !strings.Contains(sudo, "ann ALL=(root) NOPASSWD: NOSETENV: /usr/bin/id") {
		t.Errorf("groups %v, sudo %q", groups, sudo)
	}
	if !h.hasProblem("group sudo: ") {
		t.Errorf("problems are %q", h.problems())
	}
	until(t, "a failing hook is told", func() bool { return h.hasProblem("hook group-created: it fails") })
	hooks := func(want ...accounts.Hook) {
		t.Helper()
		for _, w := range want {
			until(t, w.Event+" is run", func() bool { return slices.Contains(h.mem.Hooks(), w) })
		}
	}
	hooks(accounts.Hook{Event: accounts.UserCreated, Name: "ann"}, accounts.Hook{Event: accounts.GroupCreated, Name: "sft_dev"}, accounts.Hook{Event: accounts.UserUpdated, Name: "ann"})
	until(t, "the platform knows", func() bool {
		return slices.ContainsFunc(h.env.Events(), func(e audit.Event) bool { return e.Kind == audit.AccountUpdated && e.Detail["login"] == "ann" })
	})

	h.mem.Fail("sudo", "", errors.New("visudo is gone"))
	h.change(func(st *api.State) { st.Groups = st.Groups[:1]; st.Users[0].Groups = nil; st.Users[0].Sudo = nil })
	if groups, _ := h.mem.Rights(); fmt.Sprint(groups) != "map[sft_dev:[]]" || !h.hasProblem("sudo: give sudo entitlements: visudo is gone") || h.hasProblem("group sudo") {
		t.Errorf("groups %v, problems %q", groups, h.problems())
	}
	hooks(accounts.Hook{Event: accounts.GroupUpdated, Name: "sft_dev"})
	if !h.retry.Load() {
		t.Error("it is not tried again")
	}
	h.mem.Fail("sudo", "", nil)
	h.reconcile(t.Context())
	if h.hasProblem("sudo") {
		t.Errorf("problems are %q", h.problems())
	}

	h.change(func(st *api.State) { st.Users[0].Groups = []string{"sft_dev"}; st.Users[0].Sudo = []string{"ops"} })
	h.conf.AllowAdmin = false
	h.reconcile(t.Context())
	if _, sudo := h.mem.Rights(); sudo != "" || !h.hasProblem("AllowAdmin") {
		t.Errorf("sudo %q, problems %q", sudo, h.problems())
	}
	h.conf.AllowAdmin = true
	h.change(func(st *api.State) { st.Settings.CreateServerUsers = false })
	if groups, sudo := h.mem.Rights(); len(groups) != 0 || sudo != "" {
		t.Errorf("without accounts: groups %v, sudo %q", groups, sudo)
	}
	hooks(accounts.Hook{Event: accounts.GroupDeleted, Name: "sft_dev"})
	if n := len(h.hooks); n > 0 {
		until(t, "all hooks are run", func() bool { return len(h.hooks) == 0 })
	}
}

// A queue of hooks that is full holds nothing up.
func TestHooksThatWait(t *testing.T) {
	h := newHost(t, testenv.New(t), nil)
	for range maxHooks + 1 {
		h.hook(accounts.UserUpdated, "ann")
	}
	h.hook("", "ann")
	if !h.hasProblem("hooks: too many") || len(h.hooks) != maxHooks {
		t.Errorf("problems %q, %d wait", h.problems(), len(h.hooks))
	}
}
