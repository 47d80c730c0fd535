package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"sft/internal/api"
)

// signIn begins a session of the operating system, a second from now.
func (b *bench) signIn(login, password string) {
	b.t.Helper()
	b.clock.Advance(time.Second)
	if err := b.mem.SignIn(login, password, b.clock.Now()); err != nil {
		b.t.Error(err)
	}
}

// wantGood tells whether password is to match now.
func (b *bench) wantGood(login, password string, want bool) {
	b.t.Helper()
	before := b.mem.Sessions(login)
	if err := b.mem.SignIn(login, password, time.Time{}); (err == nil) != want {
		b.t.Errorf("%s: %d sessions, the password matches: %v, want %v", login, before, err == nil, want)
	}
}

// What each step of two sign-ins does to their password. Steps: "a" and "b"
// open a stream each, "end b" ends one, "A" and "B" sign in with what they were given; a number
// lets seconds pass; "!" and "=" say that the password of the first is
// replaced, or good.
func TestPasswordOfSignInsInFlight(t *testing.T) {
	tests := []struct {
		name  string
		steps []any
	}{
		{"it is replaced a grace after the sign-in was seen", []any{"a", "A", 0, "=", 29, "=", 1, "!"}},
		{"it is replaced a grace after the last of two was seen", []any{"a", "A", 20, "b", 5, "B", 0, 25, "=", 4, "=", 1, "!"}},
		{"it is not while one of them reads a logon notice for two minutes", []any{"a", "A", 5, "b", 120, "=", "B", 0, 29, "=", 1, "!"}},
		{"nor while the notice is read by one that was opened before the other was seen", []any{"a", "A", "b", 120, "=", "B", 0, 29, "=", 1, "!"}},
		{"a stream that ends takes its sign-in with it", []any{"a", "A", 0, "b", 40, "=", "end b", 1, "!"}},
		{"a sign-in within the grace puts it off", []any{"a", "A", 29, "b", 20, "=", "B", 0, 29, "=", 1, "!"}},
		{"it is after five minutes when nothing was seen", []any{"a", 299, "=", 1, "!"}},
		{"a sign-in that joins has five minutes of its own", []any{"a", 200, "b", 299, "=", 1, "!"}},
		{"one that is never seen does not keep it longer", []any{"a", "A", 1, "b", 299, "=", 1, "!"}},
		{"the sign-in of somebody before is not taken for it", []any{"a", "A", 0, 30, "!", "b", 200, "b="}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := benchOf(t, true)
			pw, stream := map[string]string{}, map[string]uint64{}
			for i, s := range tt.steps {
				b.t = t
				switch s := s.(type) {
				case int:
					for range s {
						b.pass(time.Second)
					}
					if s == 0 {
						b.tick(context.Background())
					}
				case string:
					switch s {
					case "a", "b":
						stream[s], pw[s] = b.sign(b.ann, s)
					case "A", "B":
						b.signIn("ann", pw[map[string]string{"A": "a", "B": "b"}[s]])
					case "end b":
						b.closed(stream["b"], 0, 0, "client closed")
					case "=", "!":
						b.wantGood("ann", pw["a"], s == "=")
					case "b=":
						b.wantGood("ann", pw["b"], true)
					}
				}
				if !b.enabled("ann") {
					t.Errorf("step %d: the account was shut", i)
				}
				if t.Failed() {
					t.Fatalf("at step %d, %v", i, s)
				}
			}
		})
	}
}

// Two sessions of one person and one of another: one password for each
// person, and none of it is the other's business.
func TestPasswordsOfTwoPeople(t *testing.T) {
	b := benchOf(t, true)
	_, pw1 := b.sign(b.ann, "s1")
	_, pw2 := b.sign(b.ann, "s2")
	nb, pwb := b.sign(b.bob, "sb")
	if pw1 != pw2 || pw1 == pwb {
		t.Error("two sign-ins in flight do not share a password, or two people do")
	}
	b.signIn("ann", pw1)
	b.pass(0)
	b.pass(benchGrace)
	b.wantGood("ann", pw1, false)
	b.wantGood("bob", pwb, true)
	b.wantCalls("enable ann", "enable bob", "enable ann")
	b.closed(nb, 0, 0, "aborted")
	b.pass(0)
	b.wantCalls("rest bob")
	b.wantEvents("account.enabled s1", "session.start s1", "session.start s2", "account.enabled sb", "session.start sb",
		"session.refused sb: aborted", "account.disabled")
}

func TestReconnectAfterThePasswordWasReplaced(t *testing.T) {
	b := benchOf(t, true)
	n1, pw := b.sign(b.ann, "s1")
	b.signIn("ann", pw)
	b.pass(0)
	b.pass(benchGrace)
	b.pass(time.Hour)
	b.wantCalls("enable ann", "enable ann") // once, and it stays so
	n2, pw2 := b.sign(b.ann, "s1")
	if pw2 == pw {
		t.Error("the replaced password came back")
	}
	b.signIn("ann", pw2)
	b.closed(n1, 1, 1, "client closed")
	b.pass(0)
	b.pass(benchGrace)
	b.wantGood("ann", pw2, false)
	b.pass(time.Hour)
	b.wantCalls("enable ann", "enable ann") // and was never shut
	b.closed(n2, 1, 1, "client closed")
	b.pass(benchGrace - time.Second)
	if !b.enabled("ann") {
		t.Error("the account was shut within the grace")
	}
	b.pass(time.Second)
	b.wantCalls("rest ann")
	b.wantEvents("account.enabled s1", "session.start s1", "session.end s1: client closed", "account.disabled")
}

// A stream by which nobody signed in is undone at once, and leaves what others
// have opened as it was.
func TestNobodySignedIn(t *testing.T) {
	for _, why := range []string{"aborted", "aborted: launch_secret", "password refused", "service refused: rds_farm"} {
		t.Run(why, func(t *testing.T) {
			b := benchOf(t, true)
			n, _ := b.sign(b.ann, "s1")
			b.closed(n, 3, 4, why)
			select {
			case <-b.wake:
			default:
				t.Error("no tick was asked for")
			}
			b.tick(context.Background())
			b.wantCalls("enable ann", "rest ann")
			if len(b.accounts) != 0 {
				t.Error("the account is remembered")
			}
			b.pass(benchGrace)
			b.wantEvents("account.enabled s1", "session.start s1", "session.refused s1: "+why, "account.disabled", "session.end s1: "+why)

			// Beside others of the same opening.
			n1, pw := b.sign(b.ann, "s2")
			b.signIn("ann", pw)
			n2, _ := b.sign(b.ann, "s3")
			b.closed(n2, 0, 0, why)
			b.pass(0)
			if !b.enabled("ann") {
				t.Error("the account of a stream that lives was shut")
			}
			b.closed(n1, 0, 0, "client closed")
			b.pass(10 * time.Second)
			n2, _ = b.sign(b.ann, "s3")
			b.closed(n2, 0, 0, why)
			b.pass(19 * time.Second)
			if !b.enabled("ann") {
				t.Error("it took the grace of the sign-in before it")
			}
			b.pass(time.Second)
			if b.enabled("ann") {
				t.Error("it left a grace of its own")
			}
			b.mem.Calls()
			// Nor does it put off the end of what the other left running.
			b.pass(benchDisc - 2*time.Hour)
			n2, _ = b.sign(b.ann, "s4")
			b.pass(time.Minute)
			b.closed(n2, 0, 0, why)
			b.pass(time.Second)
			b.wantCalls("enable ann", "rest ann")
			b.pass(2*time.Hour - time.Minute - benchGrace - 2*time.Second)
			b.wantCalls()
			b.pass(time.Second)
			b.wantCalls("logoff ann")
		})
	}
}

// The service may end what it had let in: then somebody did sign in.
func TestServiceThatRefusesLate(t *testing.T) {
	b := benchOf(t, true)
	n, pw := b.sign(b.ann, "s1")
	b.signIn("ann", pw)
	b.pass(0)
	b.closed(n, 0, 0, "service refused: rds_farm")
	b.pass(benchGrace - time.Second)
	if !b.enabled("ann") {
		t.Error("the account was shut without a grace")
	}
	b.pass(time.Second)
	b.pass(benchDisc)
	b.wantCalls("enable ann", "rest ann", "logoff ann")
	b.wantEvents("account.enabled s1", "session.start s1", "session.refused s1: service refused: rds_farm",
		"session.end s1: service refused: rds_farm", "account.disabled")
}

// What is not a reason of ours ends a stream like any other, and only codes of
// ours are recorded as such.
func TestWhyNobodySignedIn(t *testing.T) {
	tests := []struct {
		why  string
		code string
		want bool
	}{
		{"aborted", "", true},
		{"aborted: client", "", true},
		{"password refused", "rdp_sign_in_refused", true},
		{"password refused: again", "rdp_sign_in_refused", true},
		{"service refused", "rdp_unavailable", true},
		{"service refused: rdp_certificate", "rdp_certificate", true},
		{"service refused: made up", "rdp_unavailable", true},
		{"client closed", "", false},
		{"service closed", "", false},
		{"error", "", false},
		{"ended: aborted", "", false},
		{"abortedly", "", false},
		{"", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.why, func(t *testing.T) {
			d, ok := unsigned(tt.why)
			if ok != tt.want || d["code"] != tt.code || ok && d["why"] != tt.why {
				t.Errorf("got %v, %v", d, ok)
			}
		})
	}
}

func TestPasswordThatWasRefused(t *testing.T) {
	b := benchOf(t, true)
	n1, pw1 := b.sign(b.ann, "s1")
	n2, _ := b.sign(b.ann, "s1")
	b.closed(n2, 0, 0, "password refused")
	n3, pw3 := b.sign(b.ann, "s1") // the client tries once more, before any tick
	if pw3 == pw1 {
		t.Error("a password that was refused was given again")
	}
	b.closed(n1, 0, 0, "password refused") // the one before
	n4, pw4 := b.sign(b.ann, "s1")
	if pw4 != pw3 {
		t.Error("a late refusal of the password before counts for this one")
	}
	b.signIn("ann", pw3)
	b.pass(0)
	b.pass(benchGrace)
	b.wantGood("ann", pw3, false)
	for _, n := range []uint64{n3, n4} {
		b.closed(n, 0, 0, "client closed")
	}
	b.pass(benchGrace)
	b.wantCalls("enable ann", "enable ann", "enable ann", "rest ann")

	n, pw := b.sign(b.ann, "s2")
	b.closed(n, 0, 0, "password refused")
	b.pass(0) // and with one
	if _, again := b.sign(b.ann, "s2"); again == pw {
		t.Error("a password that was refused was given again after a tick")
	}
}

func TestEndOfAccessInFlight(t *testing.T) {
	b := benchOf(t, true)
	n, pw := b.sign(b.ann, "s1")
	b.endWhere(func(*session) string { return "access was taken away" })
	b.tick(context.Background())
	b.wantGood("ann", pw, false)
	b.wantCalls("enable ann", "rest ann")
	b.pass(time.Second)
	n2, pw2 := b.sign(b.ann, "s2")
	b.closed(n, 0, 0, "password refused") // it ended while it was on its way
	n3, pw3 := b.sign(b.ann, "s2")
	if pw2 == pw || pw3 != pw2 {
		t.Error("the new sign-in does not have a password of its own")
	}
	b.pass(flightTime)
	b.wantCalls("enable ann", "enable ann")
	b.closed(n3, 0, 0, "client closed")
	b.endWhere(func(*session) string { return "access was taken away" })
	b.tick(context.Background())
	b.closed(n2, 0, 0, "ended: access was taken away")
	n, _ = b.sign(b.ann, "s3")
	b.closed(n, 0, 0, "aborted") // it gets nothing of the grace of what had ended
	b.pass(0)
	b.wantCalls("rest ann", "enable ann", "rest ann")
}

// With the password replaced the account is still open, and an agent that is
// killed then, or stops, leaves none open.
func TestAgentThatEndsWithAReplacedPassword(t *testing.T) {
	for _, how := range []string{"killed", "stopped"} {
		t.Run(how, func(t *testing.T) {
			b := benchOf(t, true)
			n, pw := b.sign(b.ann, "s1")
			b.signIn("ann", pw)
			b.pass(0)
			b.pass(benchGrace)
			nb, pwb := b.sign(b.bob, "sb") // and one in flight
			b.wantCalls("enable ann", "enable ann", "enable bob")
			b.events = nil
			if how == "stopped" {
				b.closed(n, 0, 0, "the broker ended")
				b.closed(nb, 0, 0, "the broker ended")
				if err := b.shutAll(context.Background(), "sftd was stopped"); err != nil {
					t.Fatal(err)
				}
			}
			b.sessions = b.again(b.path)
			if err := b.recover(context.Background()); err != nil {
				t.Fatal(err)
			}
			if b.enabled("ann") || b.enabled("bob") {
				t.Error("an account was left open")
			}
			b.wantGood("bob", pwb, false)
			disabled := 0
			for _, e := range b.events {
				if e.Kind == "account.disabled" {
					disabled++
				}
			}
			if disabled != 2 {
				t.Errorf("%d accounts were told to be shut, want 2", disabled)
			}
			b.mem.Calls()
			n, again := b.sign(b.ann, "s2")
			if again == pw {
				t.Error("the old password came back")
			}
			b.closed(n, 0, 0, "aborted") // which does not save what was left running
			b.pass(0)
			b.pass(benchDisc)
			b.wantCalls("enable ann", "rest ann", "logoff ann")
		})
	}
}

func TestReplacementThatFails(t *testing.T) {
	b := benchOf(t, true)
	n, pw := b.sign(b.ann, "s1")
	b.signIn("ann", pw)
	b.pass(0)
	b.mem.Fail("enable", "ann", errors.New("/etc is read-only"))
	b.mem.Fail("rest", "ann", errors.New("/etc is read-only"))
	b.pass(benchGrace)
	b.wantGood("ann", pw, true)
	if _, _, err := b.open(context.Background(), b.ann, "s1", "rdp", "x", "", allowed); err != nil {
		t.Errorf("while the password cannot be replaced it is good: %v", err)
	}
	b.mem.Fail("enable", "ann", nil)
	b.mem.Fail("rest", "ann", nil)
	b.pass(flightTime)
	b.wantGood("ann", pw, false)
	b.closed(n, 0, 0, "client closed")
	if !b.enabled("ann") {
		t.Error("the account was shut under its other stream")
	}
	// One that ended elsewhere has no password to replace.
	_, pw = b.sign(b.bob, "sb")
	b.want(b.ann)
	b.pass(flightTime)
	b.pass(time.Hour)
	b.wantGood("bob", pw, false)
	if b.accounts["bob"].secret != nil || !b.accounts["bob"].again.IsZero() {
		t.Error("the password of an account that has ended is still to be replaced")
	}
}

// A sign-in that fails beside others takes nothing from them.
func TestOpenThatFailsBesideAnother(t *testing.T) {
	b := benchOf(t, true)
	n, pw := b.sign(b.ann, "s1")
	b.signIn("ann", pw)
	b.pass(0)
	b.pass(benchGrace)
	refuse := func() error { return errSessionOver }
	if _, _, err := b.open(context.Background(), b.ann, "s2", "rdp", "x", "", refuse); err == nil {
		t.Fatal("it was let in")
	}
	b.tick(context.Background())
	b.wantCalls("enable ann", "enable ann", "enable ann", "enable ann") // what was set for it is replaced
	if !b.enabled("ann") {
		t.Error("the account was shut under a stream")
	}
	b.closed(n, 0, 0, "client closed")
	b.pass(benchGrace)
	b.wantCalls("rest ann")
}

// The session that goes on in its grace alone does not save what the person
// left running from its end.
func TestLogoffWhenTheLastStreamWasOfAnEndedSession(t *testing.T) {
	b := newBench(t)
	n1, pw := b.sign(b.ann, "s1")
	b.signIn("ann", pw)
	n2, _ := b.sign(b.ann, "s2")
	b.closed(n2, 0, 0, "client closed")
	b.endWhere(func(s *session) string {
		if s.ID == "s1" {
			return "the client was deleted"
		}
		return ""
	})
	b.closed(n1, 0, 0, "ended: the client was deleted")
	b.pass(benchGrace)
	b.pass(benchDisc)
	b.wantCalls("enable ann", "rest ann", "logoff ann")
}

// A login whose processes cannot be read keeps its password for five minutes,
// and says so once.
func TestSignInThatCannotBeSeen(t *testing.T) {
	b := benchOf(t, true)
	_, pw := b.sign(b.ann, "s1")
	b.mem.Fail("look", "ann", errors.New("no /proc"))
	b.signIn("ann", pw)
	for range 5 {
		b.pass(10 * time.Second)
	}
	b.wantGood("ann", pw, true)
	if got := strings.Count(b.logs.String(), "no /proc"); got != 1 {
		t.Errorf("it was logged %d times, want once", got)
	}
	b.pass(flightTime)
	b.wantGood("ann", pw, false)
}

// Sixty-four sign-ins of each of a hundred people are looked for, and each
// password replaced once.
func TestManySignInsInFlight(t *testing.T) {
	b := benchOf(t, true)
	var people []api.StateUser
	for i := range 100 {
		people = append(people, api.StateUser{ID: fmt.Sprint("U", i), Login: fmt.Sprint("user", i), UID: 62000 + i, GID: 62000 + i})
	}
	b.want(people...)
	pw := map[string]string{}
	for i := range maxStreams {
		for _, u := range people {
			_, pw[u.Login] = b.sign(u, fmt.Sprint(u.ID, "-", i%3))
		}
		b.clock.Advance(time.Millisecond)
	}
	for _, u := range people {
		b.signIn(u.Login, pw[u.Login])
	}
	b.mem.Calls()
	b.pass(0)
	b.pass(benchGrace)
	if got := len(b.mem.Calls()); got != len(people) {
		t.Errorf("%d passwords were replaced, want %d", got, len(people))
	}
}
