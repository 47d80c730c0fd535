package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sft"
	"sft/internal/accounts"
	"sft/internal/api"
	"sft/internal/testenv"
)

// A bench is the life of sessions on a host in memory, on a clock that stands
// still, with a broker that does as it is told when the test says so.
type bench struct {
	*sessions
	t     testing.TB
	mem   *accounts.Memory
	man   *accounts.Manager
	clock *testenv.Clock
	logs  *testenv.Log
	ann   api.StateUser
	bob   api.StateUser

	mu       sync.Mutex
	events   []api.Event
	eventErr error
	told     map[uint64]string // the streams that the broker was told to end, and why
	killed   int

	byBroker bool // it signs in, and not the client
}

const (
	benchGrace = 30 * time.Second
	benchMax   = 12 * time.Hour
	benchDisc  = 8 * time.Hour
)

func newBench(t testing.TB) *bench {
	t.Helper()
	return benchOf(t, false)
}

// benchOf is a bench where the broker signs in, or the client.
func benchOf(t testing.TB, byBroker bool) *bench {
	t.Helper()
	b := &bench{t: t, mem: accounts.NewMemory(), clock: &testenv.Clock{}, logs: &testenv.Log{}, told: map[uint64]string{}, byBroker: byBroker,
		ann: api.StateUser{ID: "U-ann", Login: "ann", UID: 61001, GID: 61001}, bob: api.StateUser{ID: "U-bob", Login: "bob", UID: 61002, GID: 61002}}
	b.clock.Set(time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC))
	dir := t.TempDir()
	var err error
	if b.man, err = accounts.Open(dir, b.mem); err != nil {
		t.Fatal(err)
	}
	b.want(b.ann, b.bob)
	b.sessions = b.again(filepath.Join(dir, sessionsFile))
	return b
}

// again is the sessions of another agent on the same host.
func (b *bench) again(path string) *sessions {
	return newSessions(&sessions{acc: b.man, grace: benchGrace, inject: b.byBroker, now: b.clock.Now, log: slog.New(slog.NewTextHandler(b.logs, nil)), path: path,
		event: func(e api.Event) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.eventErr == nil {
				b.events = append(b.events, e)
			}
			return b.eventErr
		},
		end: func(id uint64, why string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.told[id] = why
		},
		elsewhere: func(ref) bool { return false },
		signedIn:  func(string) bool { return false },
		kill: func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.killed++
		},
		refused: func(user, session string, detail map[string]string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.events = append(b.events, api.Event{Kind: "session.refused", User: user, Session: session, Detail: detail})
		},
		limit: func() (time.Duration, time.Duration) { return benchMax, benchDisc }})
}

func (b *bench) want(users ...api.StateUser) {
	b.t.Helper()
	var wants []accounts.Want
	for _, u := range users {
		wants = append(wants, accounts.Want{Login: u.Login, UID: u.UID, GID: u.GID})
	}
	for _, o := range b.man.Reconcile(context.Background(), wants, accounts.Limits{}, false) {
		if o.Err != nil {
			b.t.Fatal(o)
		}
	}
	b.mem.Calls()
}

func allowed() error { return nil }

func (b *bench) sign(u api.StateUser, id string) (uint64, string) {
	b.t.Helper()
	n, pw, err := b.open(context.Background(), u, id, "rdp", "192.0.2.1:5", "", allowed)
	if err != nil {
		b.t.Fatal(err)
	}
	return n, pw.Reveal()
}

// pass lets time pass, and what it brings about happen.
func (b *bench) pass(d time.Duration) {
	b.clock.Advance(d)
	b.tick(context.Background())
}

// wantEvents compares the kinds of events, with session and reason.
func (b *bench) wantEvents(want ...string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	var got []string
	for _, e := range b.events {
		s := e.Kind
		if e.Session != "" {
			s += " " + e.Session
		}
		if w := e.Detail["why"]; w != "" {
			s += ": " + w
		}
		got = append(got, s)
	}
	if !slices.Equal(got, want) {
		b.t.Errorf("events:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	b.events = nil
}

func (b *bench) wantCalls(want ...string) {
	b.t.Helper()
	if got := b.mem.Calls(); !slices.Equal(got, want) {
		b.t.Errorf("the host's accounts saw %q, want %q", got, want)
	}
}

func (b *bench) enabled(login string) bool {
	a, _ := b.mem.Account(login)
	return a.Enabled
}

func TestSessionFromFirstToLastStream(t *testing.T) {
	b := newBench(t)
	n1, pw := b.sign(b.ann, "s1")
	if len(pw) != 64 {
		t.Errorf("the password has %d characters, want 64", len(pw))
	}
	if err := b.mem.SignIn("ann", pw, b.clock.Now()); err != nil {
		t.Error(err)
	}
	n2, pw2 := b.sign(b.ann, "s1")
	if pw2 != pw || n2 == n1 {
		t.Error("two streams in flight do not share the password, or share a number")
	}
	b.wantCalls("enable ann")
	b.closed(n1, 10, 100, "client closed")
	b.pass(time.Hour)
	b.wantCalls()
	b.closed(n2, 1, 2, "service closed")
	b.closed(n2, 1, 2, "service closed") // a second time is nothing
	b.closed(99, 1, 2, "no such stream")
	b.pass(benchGrace - time.Second)
	if !b.enabled("ann") {
		t.Error("the account was shut within the grace")
	}
	n3, pw3 := b.sign(b.ann, "s1")
	if pw3 != pw {
		t.Error("a stream within the grace has another password: a client could not reconnect")
	}
	b.pass(time.Minute)
	b.closed(n3, 0, 0, "client closed")
	b.pass(benchGrace)
	b.wantCalls("rest ann")
	if err := b.mem.SignIn("ann", pw, b.clock.Now()); err == nil {
		t.Error("the old password still signs in")
	}
	if e := b.events[len(b.events)-2]; e.Detail["bytes_in"] != "11" || e.Detail["bytes_out"] != "102" || e.Detail["seconds"] != "3719" || e.Detail["login"] != "ann" || e.User != "U-ann" {
		t.Errorf("the end of the session is told as %+v", e)
	}
	b.wantEvents("account.enabled s1", "session.start s1", "session.end s1: client closed", "account.disabled")
	if _, pw4 := b.sign(b.ann, "s2"); pw4 == pw {
		t.Error("the password of a shut account came back")
	}
	if strings.Contains(b.logs.String(), pw) {
		t.Error("the password is in the log")
	}
}

func TestAccountOutlivesOneOfTwoSessions(t *testing.T) {
	b := newBench(t)
	n1, pw1 := b.sign(b.ann, "s1")
	n2, pw2 := b.sign(b.ann, "s2")
	if pw1 != pw2 {
		t.Error("two sessions of one person have two passwords")
	}
	b.endWhere(func(s *session) string {
		if s.ID == "s1" {
			return "the client was deleted"
		}
		return ""
	})
	if !maps.Equal(b.told, map[uint64]string{n1: "the client was deleted"}) {
		t.Errorf("the broker was told to end %v", b.told)
	}
	b.closed(n1, 0, 0, "ended: the client was deleted")
	b.pass(0)
	if !b.enabled("ann") {
		t.Error("the other session lost its account")
	}
	b.wantEvents("account.enabled s1", "session.start s1", "session.start s2", "session.end s1: ended: the client was deleted")
	if _, _, err := b.open(context.Background(), b.ann, "s1", "rdp", "x", "", allowed); !errors.Is(err, errSessionOver) {
		t.Errorf("a session that was ended can be gone on with: %v", err)
	}
	b.closed(n2, 0, 0, "client closed")
	b.pass(benchGrace)
	b.wantCalls("enable ann", "rest ann")
}

func TestEndOfAccess(t *testing.T) {
	b := newBench(t)
	n1, pw := b.sign(b.ann, "s1")
	n2, _ := b.sign(b.ann, "s2")
	nb, _ := b.sign(b.bob, "sb")
	if err := b.mem.SignIn("ann", pw, b.clock.Now()); err != nil {
		t.Fatal(err)
	}
	b.wantCalls("enable ann", "enable bob")
	ended := func(s *session) string {
		if s.User == "U-ann" {
			return "access was taken away"
		}
		return ""
	}
	b.endWhere(ended)
	b.endWhere(ended) // again: nothing more
	b.tick(context.Background())
	b.wantCalls("rest ann", "logoff ann") // the broker has not answered yet
	if len(b.told) != 2 || b.told[n1] == "" || b.told[n2] == "" {
		t.Errorf("the broker was told to end %v", b.told)
	}
	b.pass(endPatience)
	if b.killed != 0 {
		t.Error("the broker was ended while it had time")
	}
	b.pass(time.Millisecond)
	if b.killed != 1 {
		t.Error("a broker that does not end a stream lives on")
	}
	for _, n := range []uint64{n1, n2, nb} {
		b.closed(n, 0, 0, "the broker ended")
	}
	b.pass(time.Second)
	b.wantEvents("account.enabled s1", "session.start s1", "session.start s2", "account.enabled sb", "session.start sb", "account.disabled",
		"session.end s1: ended: access was taken away", "session.end s2: ended: access was taken away")
	b.pass(benchDisc)
	b.wantCalls("rest bob") // and bob has no OS session to log off
}

// A new sign-in between the end of access and the account's being shut must
// not get the account as it is, nor lose it under its feet.
func TestSignInRightAfterAnEnd(t *testing.T) {
	b := newBench(t)
	n, pw := b.sign(b.ann, "s1")
	if err := b.mem.SignIn("ann", pw, b.clock.Now()); err != nil {
		t.Fatal(err)
	}
	b.endWhere(func(*session) string { return "access was taken away" })
	_, pw2 := b.sign(b.ann, "s2")
	if pw2 == pw {
		t.Error("the password of an ended session was handed on")
	}
	b.wantCalls("enable ann", "rest ann", "logoff ann", "enable ann")
	b.closed(n, 0, 0, "ended: access was taken away")
	b.pass(time.Hour)
	if err := b.mem.SignIn("ann", pw2, b.clock.Now()); err != nil {
		t.Errorf("the new session lost its account: %v", err)
	}
}

func TestSessionLimit(t *testing.T) {
	b := newBench(t)
	n, pw := b.sign(b.ann, "s1")
	if err := b.mem.SignIn("ann", pw, b.clock.Now()); err != nil {
		t.Fatal(err)
	}
	b.pass(benchMax - time.Second)
	if len(b.told) != 0 {
		t.Error("a session ended before its time")
	}
	b.pass(time.Second)
	if b.told[n] == "" {
		t.Fatal("a session outlived its limit")
	}
	b.wantCalls("enable ann", "rest ann", "logoff ann")
	b.closed(n, 0, 0, "ended: it lasted")
	b.pass(0)
	if _, _, err := b.open(context.Background(), b.ann, "s1", "rdp", "x", "", allowed); !errors.Is(err, errSessionOver) {
		t.Errorf("a session at its limit can be gone on with: %v", err)
	}
	b.wantEvents("account.enabled s1", "session.start s1", "account.disabled", "session.end s1: ended: it lasted as long as the project allows")
}

func TestComingBackDoesNotBeginTheLimitAnew(t *testing.T) {
	b := newBench(t)
	n, _ := b.sign(b.ann, "s1")
	b.pass(benchMax - time.Hour)
	b.closed(n, 0, 0, "error")
	b.pass(10 * time.Minute) // the session is over, and told so
	n, _ = b.sign(b.ann, "s1")
	b.pass(49 * time.Minute)
	if len(b.told) != 0 {
		t.Error("it ended early")
	}
	b.pass(time.Minute)
	if b.told[n] == "" {
		t.Error("a session that went on after a break outlived its limit")
	}
	b.closed(n, 0, 0, "x")
	b.pass(time.Hour)
	if len(b.past) != 0 {
		t.Errorf("%d sessions are remembered for ever", len(b.past))
	}
}

func TestDisconnectedSessionIsLoggedOffLater(t *testing.T) {
	b := newBench(t)
	n, pw := b.sign(b.ann, "s1")
	if err := b.mem.SignIn("ann", pw, b.clock.Now()); err != nil {
		t.Fatal(err)
	}
	b.closed(n, 0, 0, "error")
	b.pass(time.Hour)
	b.wantCalls("enable ann", "rest ann") // their work stays
	n, _ = b.sign(b.ann, "s2")            // and the timer is off
	b.pass(benchDisc)
	b.wantCalls("enable ann")
	b.closed(n, 0, 0, "error")
	refuse := func() error { return errSessionOver }
	b.pass(benchDisc - time.Hour)
	if _, _, err := b.open(context.Background(), b.ann, "s3", "rdp", "x", "", refuse); err == nil {
		t.Fatal("it was let in")
	}
	b.pass(time.Hour) // whoever is refused does not put it off
	b.wantCalls("rest ann", "enable ann", "rest ann", "logoff ann")
	if len(b.accounts) != 0 {
		t.Errorf("%d accounts are remembered for ever", len(b.accounts))
	}
}

func TestOpenThatFailsLeavesNothingOpen(t *testing.T) {
	tests := []struct {
		name   string
		break_ func(*bench)
		allow  func() error
		events []string
	}{
		{"the account cannot be enabled", func(b *bench) { b.mem.Fail("enable", "ann", errors.New("no")) }, allowed, nil},
		{"the enabling cannot be recorded", func(b *bench) { b.eventErr = errors.New("disk full") }, allowed, nil},
		{"access ended meanwhile", func(*bench) {}, func() error { return errSessionOver }, []string{"account.enabled s1", "account.disabled"}},
		{"the session cannot be remembered", func(b *bench) { b.path = "/nowhere/x" }, allowed, []string{"account.enabled s1", "account.disabled"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			tt.break_(b)
			n, pw, err := b.open(context.Background(), b.ann, "s1", "rdp", "x", "", tt.allow)
			if err == nil || n != 0 || !pw.Empty() {
				t.Fatalf("open = %d, %v, %v", n, pw, err)
			}
			b.tick(context.Background())
			if b.enabled("ann") || len(b.streams)+len(b.sessions.sessions)+len(b.accounts) != 0 {
				t.Errorf("enabled: %v; %d streams, %d sessions, %d accounts are left", b.enabled("ann"), len(b.streams), len(b.sessions.sessions), len(b.accounts))
			}
			b.wantEvents(tt.events...)
			b.mem.Fail("enable", "ann", nil)
			b.eventErr, b.path = nil, filepath.Join(t.TempDir(), "s.json")
			b.sign(b.ann, "s1")
		})
	}
}

func TestWhatCannotBeShutIsTriedAgain(t *testing.T) {
	b := newBench(t)
	n, pw := b.sign(b.ann, "s1")
	if err := b.mem.SignIn("ann", pw, b.clock.Now()); err != nil {
		t.Fatal(err)
	}
	b.mem.Fail("rest", "ann", errors.New("/etc is read-only"))
	b.endWhere(func(*session) string { return "access was taken away" })
	b.closed(n, 0, 0, "x")
	for range 100 {
		b.pass(500 * time.Millisecond)
	}
	if got := strings.Count(b.logs.String(), "read-only"); got != 1 {
		t.Errorf("it was logged %d times in a minute, want once", got)
	}
	b.wantCalls("enable ann", "logoff ann") // even though it cannot be shut
	if _, _, err := b.open(context.Background(), b.ann, "s2", "rdp", "x", "", allowed); sft.CodeOf(err) != sft.Unavailable {
		t.Errorf("somebody got an account that was to be shut: %v", err)
	}
	b.mem.Fail("rest", "ann", nil)
	b.pass(retryShut)
	b.wantCalls("rest ann")
	if len(b.accounts) != 0 {
		t.Error("the account is not forgotten")
	}
}

func TestOneSlowLogoffHoldsUpNobody(t *testing.T) {
	b := newBench(t)
	n1, _ := b.sign(b.ann, "s1")
	n2, _ := b.sign(b.bob, "s2")
	unlock := b.op("ann") // as a tool that hangs would
	b.closed(n1, 0, 0, "x")
	b.closed(n2, 0, 0, "x")
	b.clock.Advance(benchGrace)
	done := make(chan bool)
	go func() { b.tick(context.Background()); close(done) }()
	until(t, "bob's account is shut", func() bool { return !b.enabled("bob") })
	b.restDue(context.Background()) // another tick does not pile up behind it
	unlock()
	<-done
	if b.enabled("ann") {
		t.Error("ann's account is still open")
	}
}

func TestSessionOfSomebodyElse(t *testing.T) {
	b := newBench(t)
	b.sign(b.ann, "s1")
	for _, u := range []api.StateUser{b.bob, {ID: "U-ann", Login: "bob"}, {ID: "U-bob", Login: "ann"}} {
		if _, _, err := b.open(context.Background(), u, "s1", "rdp", "x", "", allowed); !errors.Is(err, errSessionOver) {
			t.Errorf("%s as %s joined ann's session: %v", u.ID, u.Login, err)
		}
	}
	if b.enabled("bob") {
		t.Error("bob's account was opened")
	}
}

func TestClockThatGoesBack(t *testing.T) {
	b := newBench(t)
	n, _ := b.sign(b.ann, "s1")
	b.clock.Advance(-time.Hour)
	b.tick(context.Background())
	b.closed(n, 0, 0, "x")
	b.pass(benchGrace)
	b.wantCalls("enable ann", "rest ann")
}

func TestAgentThatWasKilled(t *testing.T) {
	b := newBench(t)
	_, pw := b.sign(b.ann, "s1")
	b.sign(b.ann, "s2")
	n, _ := b.sign(b.bob, "sb")
	b.closed(n, 0, 0, "client closed")
	b.pass(benchGrace) // bob's OS session ends in 8 hours
	for _, login := range []string{"ann"} {
		if err := b.mem.SignIn(login, pw, b.clock.Now()); err != nil {
			t.Fatal(err)
		}
	}
	b.wantCalls("enable ann", "enable bob", "rest bob")
	b.events = nil

	b.sessions = b.again(b.path)
	if err := b.recover(context.Background()); err != nil {
		t.Fatal(err)
	}
	b.wantCalls("rest ann")
	b.wantEvents("session.end s1: sftd ended", "account.disabled", "session.end s2: sftd ended")
	b.sessions = b.again(b.path)
	if err := b.recover(context.Background()); err != nil {
		t.Fatal(err)
	}
	b.wantEvents() // it is told once
	b.pass(benchDisc)
	b.wantCalls("logoff ann") // what they left running ends as it would have
	n, _ = b.sign(b.ann, "s1")
	b.pass(benchMax - benchDisc)
	if b.told[n] == "" {
		t.Error("a restart began the session's limit anew")
	}
}

func TestDamagedSessionsFile(t *testing.T) {
	for _, content := range []string{"", "garbage", "[]", `{"sessions":[null]}`, `{"sessions":3}`, `{"logoff":{"ann":"soon"}}`} {
		b := newBench(t)
		b.sign(b.ann, "s1")
		write(t, b.path, []byte(content))
		b.sessions = b.again(b.path)
		if err := b.recover(context.Background()); err != nil || b.enabled("ann") {
			t.Errorf("%q: recover = %v; enabled: %v", content, err, b.enabled("ann"))
		}
	}
}

func TestAgentThatStops(t *testing.T) {
	b := newBench(t)
	n, pw := b.sign(b.ann, "s1")
	if err := b.mem.SignIn("ann", pw, b.clock.Now()); err != nil {
		t.Fatal(err)
	}
	b.closed(n, 0, 0, "the broker ended")
	if err := b.shutAll(context.Background(), "sftd was stopped"); err != nil {
		t.Fatal(err)
	}
	b.wantCalls("enable ann", "rest ann")
	b.wantEvents("account.enabled s1", "session.start s1", "session.end s1: ended: sftd was stopped", "account.disabled")
	b.sessions = b.again(b.path)
	if err := b.recover(context.Background()); err != nil {
		t.Fatal(err)
	}
	b.wantEvents()
	b.pass(benchDisc)
	b.wantCalls("logoff ann")
}

// Whatever happens at the same time: in the end every account is at rest, and
// each session's events are a start and an end, in turns.
func TestSessionsInARace(t *testing.T) {
	t.Run("the client signs in", func(t *testing.T) { race(t, false) })
	t.Run("the broker signs in", func(t *testing.T) { race(t, true) })
}

func race(t *testing.T, byBroker bool) {
	b := benchOf(t, byBroker)
	whys := []string{"client closed"}
	if byBroker {
		whys = []string{"client closed", "error", "aborted", "aborted: launch_secret", "password refused", "service refused: rds_farm"}
	}
	ctx := context.Background()
	revoked := map[string]*atomic.Bool{"U-ann": {}, "U-bob": {}}
	var wg, background sync.WaitGroup
	stop := make(chan struct{})
	b.end = func(id uint64, why string) {
		if rand.IntN(10) > 0 { // else this broker is deaf
			background.Go(func() { b.closed(id, 1, 1, "ended: "+why) })
		}
	}
	b.kill = func() {
		background.Go(func() {
			b.sessions.mu.Lock()
			ids := slices.Collect(maps.Keys(b.streams))
			b.sessions.mu.Unlock()
			for _, id := range ids {
				b.closed(id, 0, 0, "the broker ended")
			}
		})
	}
	background.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				b.pass(time.Duration(rand.IntN(5000)) * time.Millisecond)
			}
		}
	})
	background.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for id, r := range revoked {
				was := r.Load()
				r.Store(!was)
				if !was {
					b.endWhere(func(s *session) string {
						if s.User == id {
							return "access was taken away"
						}
						return ""
					})
				}
			}
			time.Sleep(time.Millisecond)
		}
	})
	for g := range 24 {
		u := []api.StateUser{b.ann, b.bob}[g%2]
		wg.Go(func() {
			for i := range 40 {
				id := fmt.Sprintf("%s-%d-%d", u.Login, g/4, i/4)
				n, pw, err := b.open(ctx, u, id, "rdp", "x", "", func() error {
					if revoked[u.ID].Load() {
						return errSessionOver
					}
					return nil
				})
				if err != nil {
					continue
				}
				if len(pw.Reveal()) != 64 {
					t.Error("an account was opened without a password")
				}
				if rand.IntN(2) == 0 {
					_ = b.mem.SignIn(u.Login, pw.Reveal(), b.clock.Now().Add(time.Millisecond)) // too late, perhaps
				}
				if rand.IntN(4) == 0 {
					time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
				}
				b.closed(n, 1, 1, whys[rand.IntN(len(whys))])
			}
		})
	}
	wg.Wait()
	close(stop)
	background.Wait()
	for range 3 {
		b.pass(benchDisc)
	}
	if len(b.streams)+len(b.sessions.sessions)+len(b.accounts) != 0 {
		t.Errorf("%d streams, %d sessions, %d accounts are left", len(b.streams), len(b.sessions.sessions), len(b.accounts))
	}
	if b.enabled("ann") || b.enabled("bob") {
		t.Error("an account is left open")
	}
	open := map[string]bool{}
	starts := 0
	for _, e := range b.events {
		switch e.Kind {
		case "session.start":
			if open[e.Session] {
				t.Errorf("session %s began twice", e.Session)
			}
			open[e.Session] = true
			starts++
		case "session.end":
			if !open[e.Session] {
				t.Errorf("session %s ended without a start", e.Session)
			}
			open[e.Session] = false
		}
	}
	for id, still := range open {
		if still {
			t.Errorf("session %s has no end", id)
		}
	}
	if starts == 0 {
		t.Error("nobody ever got in")
	}
	t.Logf("%d sessions", starts)
}

// One person cannot take every connection that the broker has; closing one
// makes room for the next.
func TestStreamsOfOnePersonAreCapped(t *testing.T) {
	b := newBench(t)
	allowed := func() error { return nil }
	var last uint64
	for i := range maxStreams {
		n, _, err := b.open(context.Background(), b.ann, fmt.Sprint("s", i%3), "rdp", "x", "", allowed)
		if err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
		last = n
	}
	if _, _, err := b.open(context.Background(), b.ann, "s1", "rdp", "x", "", allowed); sft.CodeOf(err) != sft.TooMany {
		t.Errorf("one more: %v", err)
	}
	if _, _, err := b.open(context.Background(), b.bob, "s9", "rdp", "x", "", allowed); err != nil {
		t.Errorf("somebody else: %v", err)
	}
	b.closed(last, 0, 0, "client closed")
	if _, _, err := b.open(context.Background(), b.ann, "s1", "rdp", "x", "", allowed); err != nil {
		t.Errorf("after one was closed: %v", err)
	}
}

// A reset of a password is told to the one stream by which its person signs in
// next.
func TestResetIsToldOnce(t *testing.T) {
	b := benchOf(t, true)
	b.wasReset("ann")
	steps := []struct {
		who  api.StateUser
		want bool
		why  string // the stream ends with this
	}{
		{b.bob, false, "client closed"},
		{b.ann, true, "password refused"},          // before the client was told anything
		{b.ann, true, "service refused: rds_farm"}, // the same
		{b.ann, true, "client closed"},
		{b.ann, false, "client closed"},
	}
	for i, s := range steps {
		n, _ := b.sign(s.who, fmt.Sprint("s", i))
		if got := b.tellsReset(n); got != s.want {
			t.Errorf("step %d: told %v, want %v", i, got, s.want)
		}
		b.closed(n, 1, 1, s.why)
	}
	b.wasReset("ann")
	one, _ := b.sign(b.ann, "x")
	two, _ := b.sign(b.ann, "x")
	if !b.tellsReset(one) || b.tellsReset(two) {
		t.Error("of two streams not the first one tells")
	}
}
