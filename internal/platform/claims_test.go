package platform_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/testenv"
)

// claim is an event as a client sends it.
func claim(session string) api.ClientEvent {
	return api.ClientEvent{ID: audit.NewID(), Time: time.Date(2026, 3, 1, 8, 59, 0, 0, time.UTC), Kind: string(audit.SessionRefused), Session: session}
}

func sendClaims(t *testing.T, c *api.Client, list ...api.ClientEvent) error {
	t.Helper()
	return c.Do(t.Context(), "POST", base+"/client_events", api.ClientEventsRequest{Events: list}, nil)
}

func TestWhatAClientClaims(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant(testenv.Project, "dev", false, "ann", "bob")
		s := e.Server(testenv.Project, testenv.Facts("web01"))
		ann, ann2, bob := e.Client("ann"), e.Client("ann"), e.Client("bob")
		session := func(c *testenv.Client) string {
			t.Helper()
			r, _, err := e.Connect(c, "web01")
			if err != nil {
				t.Fatal(err)
			}
			return r.SessionID
		}
		own, second, bobs := session(ann), session(ann2), session(bob)

		one, two := claim(own), claim(own)
		one.Detail = map[string]string{"code": "launch_secret", "claimed_by": "platform", "user": "bob"}
		events := since(e, func() { wantCode(t, "two claims, the newer first", sendClaims(t, ann.Client, two, one), "") })
		if told(events) != "session.refused refused, session.refused refused" {
			t.Fatalf("they are told as %s", told(events))
		}
		want := audit.Event{ID: events[0].ID, Time: one.Time, Kind: audit.SessionRefused, Team: "main", Project: "prod",
			Actor:  audit.Actor{Kind: "client", ID: e.User("ann").ID, Name: "ann", Addr: "127.0.0.1"},
			Client: ann.ID, Target: "web01", Session: own, Outcome: audit.Refused, Source: "client:" + ann.ID + "/" + one.ID,
			Detail: map[string]string{"code": "launch_secret", "claimed_by": "client"}}
		if d := cmp.Diff(want, events[0]); d != "" {
			t.Errorf("a claim with details (-want +got):\n%s", d)
		}
		want.ID, want.Source, want.Detail = events[1].ID, "client:"+ann.ID+"/"+two.ID, map[string]string{"claimed_by": "client"}
		if d := cmp.Diff(want, events[1]); d != "" {
			t.Errorf("a claim without (-want +got):\n%s", d)
		}

		// Each is recorded once, and for each client that sends it.
		three := claim(own)
		one.Detail = map[string]string{"code": "another"}
		events = since(e, func() {
			wantCode(t, "again, with a third that is in the batch twice", sendClaims(t, ann.Client, one, three, two, three), "")
		})
		if len(events) != 1 || events[0].Source != "client:"+ann.ID+"/"+three.ID {
			t.Errorf("it is told as %+v", events)
		}
		stolen := one
		stolen.Session = bobs
		events = since(e, func() { wantCode(t, "the id of another client's claim", sendClaims(t, bob.Client, stolen), "") })
		if len(events) != 1 || events[0].Source != "client:"+bob.ID+"/"+one.ID || events[0].Actor.Name != "bob" {
			t.Errorf("it is told as %+v", events)
		}

		none := func(what string, err error, events []audit.Event, want sft.Code) {
			t.Helper()
			wantCode(t, what, err, want)
			if len(events) != 0 {
				t.Errorf("%s: told as %+v", what, events)
			}
		}
		refused := func(what string, c *api.Client, want sft.Code, list ...api.ClientEvent) {
			t.Helper()
			var err error
			events := since(e, func() { err = sendClaims(t, c, list...) })
			none(what, err, events, want)
		}
		e.Clock.Advance(10 * time.Minute) // the rate is another test's
		refused("a session of another person, after one's own", ann.Client, sft.NotFound, claim(own), claim(bobs))
		refused("a session of the same person's other client", ann.Client, sft.NotFound, claim(second))
		refused("a session that never was", ann.Client, sft.NotFound, claim(audit.NewID()))
		refused("no session", ann.Client, sft.NotFound, claim(""))
		refused("a session that cannot be", ann.Client, sft.NotFound, claim("\x00"))
		refused("no events", ann.Client, sft.Invalid)
		var many []api.ClientEvent
		for range 21 {
			many = append(many, claim(own))
		}
		refused("21 events", ann.Client, sft.Invalid, many...)
		for _, tt := range []struct {
			name   string
			change func(*api.ClientEvent)
		}{
			{"a kind that only agents report", func(e *api.ClientEvent) { e.Kind = string(audit.SessionStart) }},
			{"a kind that only the platform records", func(e *api.ClientEvent) { e.Kind = string(audit.UserCredsIssue) }},
			{"no kind", func(e *api.ClientEvent) { e.Kind = "" }},
			{"no id", func(e *api.ClientEvent) { e.ID = "" }},
			{"an id in another spelling", func(e *api.ClientEvent) { e.ID = strings.ToUpper("0195c0de-0000-7000-8000-00000000000a") }},
			{"an id of another version", func(e *api.ClientEvent) { e.ID = "ffffffff-ffff-4fff-bfff-ffffffffffff" }},
			{"no time", func(e *api.ClientEvent) { e.Time = time.Time{} }},
			{"a session with a long name", func(e *api.ClientEvent) { e.Session = strings.Repeat("x", 65) }},
			{"a long detail", func(e *api.ClientEvent) { e.Detail = map[string]string{"why": strings.Repeat("x", 1025)} }},
			{"a long key", func(e *api.ClientEvent) { e.Detail = map[string]string{strings.Repeat("x", 65): ""} }},
			{"17 details", func(e *api.ClientEvent) {
				e.Detail = map[string]string{}
				for i := range 17 {
					e.Detail[fmt.Sprint(i)] = "x"
				}
			}},
		} {
			e.Clock.Advance(10 * time.Second)
			bad := claim(own)
			tt.change(&bad)
			refused(tt.name, ann.Client, sft.Invalid, claim(own), bad)
		}
		full := claim(own)
		full.Detail = map[string]string{}
		for i := range 16 {
			full.Detail[strings.Repeat("x", 62)+fmt.Sprintf("%02d", i)] = strings.Repeat("\x00", 1024)
		}
		events = since(e, func() { wantCode(t, "the most that a claim may hold", sendClaims(t, ann.Client, full), "") })
		if len(events) != 1 || len(events[0].Detail) != 17 {
			t.Errorf("it is told as %+v", events)
		}

		// Of whom: a client that is signed in, in its own team.
		foreign(t, e)
		err := ann.Do(t.Context(), "POST", "/v1/teams/other/client_events", api.ClientEventsRequest{Events: []api.ClientEvent{claim(own)}}, nil)
		wantCode(t, "to another team", err, sft.NotFound)
		refused("from an agent", s.Client, sft.SignIn, claim(own))
		refused("from a service user", e.Service.Client, sft.SignIn, claim(own))
		refused("from nobody", e.Anonymous(), sft.SignIn, claim(own))
		e.Do("PUT", "/users/ann", map[string]string{"status": "DISABLED"}, nil)
		refused("from a disabled person's client", ann.Client, sft.Denied, claim(own))
		e.Do("PUT", "/users/ann", map[string]string{"status": "ACTIVE"}, nil)

		// A record that is gone takes nothing from what is told of it.
		e.Do("DELETE", "/projects/prod/servers/"+s.ID, nil, nil)
		events = since(e, func() { wantCode(t, "when the server was deleted", sendClaims(t, ann.Client, claim(own)), "") })
		if len(events) != 1 || events[0].Target != "web01" || events[0].Project != "prod" {
			t.Errorf("it is told as %+v", events)
		}
		if err := ann2.Do(t.Context(), "POST", "/v1/clients/logout", nil, nil); err != nil {
			t.Fatal(err)
		}
		refused("after logout", ann2.Client, sft.SignIn, claim(second))
	})
}

// A client that claims without end is held back, and no other with it.
func TestAClientThatClaimsTooMuch(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Server(testenv.Project, testenv.Facts("web01"))
		mad, calm := e.Client(testenv.Owner), e.Client(testenv.Owner)
		session := func(c *testenv.Client) string {
			r, _, err := e.Connect(c, "web01")
			if err != nil {
				t.Fatal(err)
			}
			return r.SessionID
		}
		one, other := session(mad), session(calm)
		for i := range 20 {
			wantCode(t, fmt.Sprint("claim ", i+1), sendClaims(t, mad.Client, claim(one)), "")
		}
		events := since(e, func() { wantCode(t, "one more", sendClaims(t, mad.Client, claim(one)), sft.TooMany) })
		if len(events) != 0 {
			t.Errorf("it is told as %+v", events)
		}
		wantCode(t, "another client's", sendClaims(t, calm.Client, claim(other)), "")
		e.Clock.Advance(10 * time.Second)
		wantCode(t, "after ten seconds", sendClaims(t, mad.Client, claim(one)), "")
		wantCode(t, "and one more", sendClaims(t, mad.Client, claim(one)), sft.TooMany)
	})
}

// Two senders of the same claims, in opposite orders, do not hang on one
// another, and each claim is recorded once.
func TestTheSameClaimsAtOnce(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Server(testenv.Project, testenv.Facts("web01"))
		c := e.Client(testenv.Owner)
		r, _, err := e.Connect(c, "web01")
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			var up, down []api.ClientEvent
			for range 20 {
				up = append(up, claim(r.SessionID))
			}
			for i := range up {
				down = append(down, up[len(up)-1-i])
			}
			events := since(e, func() {
				var wg sync.WaitGroup
				for i := range 4 {
					wg.Go(func() {
						list := up
						if i%2 == 1 {
							list = down
						}
						if err := sendClaims(t, c.Client, list...); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
			})
			if len(events) != len(up) {
				t.Errorf("%d claims are told as %d events", len(up), len(events))
			}
		}
	})
}
