package platform_test

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testenv"
)

// A client that is given to another person opens nothing until that person has
// signed in on it; what it has opened for the one before ends, and an approval
// of theirs that is on its way is good for nothing.
func TestAClientOfSomebodyElse(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		ctx := t.Context()
		e.Grant(testenv.Project, "dev", false, "ann", "bob")
		host := e.Server(testenv.Project, testenv.Facts("web01"))
		c := e.Client("ann")
		way, _, err := e.Connect(c, "web01")
		if err != nil {
			t.Fatal(err)
		}
		spki := spkiOf(t, c)
		login := func(a testenv.Approval) error {
			return c.Do(ctx, "POST", "/v1/clients/login", api.EnrollClientRequest{Code: a.Code, CodeVerifier: a.Verifier, RedirectURI: a.RedirectURI}, nil)
		}
		before := e.Approve(e.Cookie("ann"), spki, c.ID)
		path := "/clients/" + c.ID
		put := func(v any) error { return e.Service.Do(ctx, "PUT", base+path, v, nil) }

		wantCode(t, "by its person", c.Do(ctx, "PUT", base+path, map[string]string{"user_name": "bob"}, nil), sft.Denied)
		wantCode(t, "to nobody", put(map[string]string{"user_name": "nobody"}), sft.NotFound)
		wantCode(t, "to a service user", put(map[string]string{"user_name": testenv.ServiceUser}), sft.NotFound)
		wantCode(t, "to nothing", put(map[string]string{}), sft.Invalid)
		wantCode(t, "to a state that it cannot have", put(map[string]string{"state": "INACTIVE"}), sft.Invalid)
		wantCode(t, "to somebody, deleted", put(map[string]string{"state": "DELETED", "user_name": "bob"}), sft.Invalid)
		e.User("gone")
		e.Do("PUT", "/users/gone", map[string]string{"status": "DISABLED"}, nil)
		wantCode(t, "to somebody who is not active", put(map[string]string{"user_name": "gone"}), sft.NotFound)
		wantCode(t, "to its own person", put(map[string]string{"user_name": "ANN", "state": "ACTIVE"}), "")
		if _, _, err := e.Connect(c, "web01"); err != nil {
			t.Errorf("nothing has changed, and a connection is refused: %v", err)
		}

		events := since(e, func() { wantCode(t, "to bob", put(map[string]string{"user_name": "bob", "state": "ACTIVE"}), "") })
		if told(events) != "client.assign success" || events[0].Detail["user"] != "bob" || events[0].Detail["was"] != "ann" || events[0].Detail["client"] != c.ID {
			t.Errorf("it is told as %+v", events)
		}
		if st := e.State(host); !slices.Contains(st.EndedSessions, way.SessionID) {
			t.Errorf("the sessions %q are ended, want %s", st.EndedSessions, way.SessionID)
		}
		_, _, err = e.Connect(c, "web01")
		wantCode(t, "a connection before bob has signed in", err, sft.SignIn)
		wantCode(t, "ann's approval", login(before), sft.Denied)
		if resp := e.Form(e.Cookie("ann"), "/authorize", nil); resp.StatusCode == 200 {
			t.Error("an empty approval is answered with a page")
		}
		wantCode(t, "bob's approval", login(e.Approve(e.Cookie("bob"), spki, c.ID)), "")
		var who struct {
			Name  string     `json:"name"`
			Roles []sft.Role `json:"roles"`
		}
		if err := c.Do(ctx, "GET", base+"/current_user", nil, &who); err != nil || who.Name != "bob" || !slices.Equal(who.Roles, []sft.Role{sft.AccessUser}) {
			t.Errorf("the client is %+v, %v", who, err)
		}
		if _, _, err := e.Connect(c, "web01"); err != nil {
			t.Errorf("bob connects: %v", err)
		}
		list := func(query string) (ids []string) {
			var l api.List[sft.Client]
			e.Do("GET", "/clients"+query, nil, &l)
			for _, v := range l.List {
				ids = append(ids, v.ID)
			}
			return ids
		}
		if a, b := list("?username=ann"), list("?username=BOB"); len(a) != 0 || !slices.Equal(b, []string{c.ID}) {
			t.Errorf("ann's clients are %q, bob's %q", a, b)
		}
		e.Do("PUT", path, map[string]string{"state": "DELETED"}, nil)
		wantCode(t, "what a deleted client asks", c.Do(ctx, "GET", base+"/current_user", nil, nil), sft.Revoked)
		if a, b := list("?username=bob"), list("?username=bob&state=DELETED"); len(a) != 0 || len(b) != 1 {
			t.Errorf("bob's clients are %q, the deleted %q", a, b)
		}
	})
}

// A client that an administrator holds back opens nothing until one approves
// it, and neither its person nor another enrolment gets around that.
func TestAPendingClient(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		ctx := t.Context()
		e.Grant(testenv.Project, "dev", false, "ann")
		host := e.Server(testenv.Project, testenv.Facts("web01"))
		c, other := e.Client("ann"), e.Client("ann")
		way, _, err := e.Connect(c, "web01")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := e.Connect(other, "web01"); err != nil {
			t.Fatal(err)
		}
		put := func(as *api.Client, id string, v m) error { return as.Do(ctx, "PUT", base+"/clients/"+id, v, nil) }
		login := func(c *testenv.Client, a testenv.Approval) error {
			return c.Do(ctx, "POST", "/v1/clients/login", api.EnrollClientRequest{Code: a.Code, CodeVerifier: a.Verifier, RedirectURI: a.RedirectURI}, nil)
		}
		before := e.Approve(e.Cookie("ann"), spkiOf(t, c), c.ID)

		wantCode(t, "by its person", put(other.Client, c.ID, m{"state": "PENDING"}), sft.Denied)
		own := e.Client(testenv.Owner)
		wantCode(t, "an administrator's own, by itself", put(own.Client, own.ID, m{"state": "PENDING"}), sft.Invalid)
		old := e.State(host)
		events := since(e, func() { wantCode(t, "by an administrator", put(own.Client, c.ID, m{"state": "PENDING"}), "") })
		if told(events) != "client.state.update success" || events[0].Detail["state"] != "PENDING" || events[0].Detail["was"] != "ACTIVE" || events[0].Detail["client"] != c.ID || events[0].Detail["user"] != "ann" {
			t.Errorf("it is told as %+v", events)
		}
		if st := e.State(host); !slices.Equal(st.EndedSessions, []string{way.SessionID}) || st.Revision <= old.Revision {
			t.Errorf("the sessions %q are ended at revision %d, want %s after %d", st.EndedSessions, st.Revision, way.SessionID, old.Revision)
		}

		// Whatever it asks for, it is told the same.
		pending := func(what string, err error) {
			t.Helper()
			wantCode(t, what, err, sft.Denied)
			if err != nil && err.Error() != `client "`+c.ID+`" is pending: an administrator of the team has to approve it` {
				t.Errorf("%s: %v", what, err)
			}
		}
		events = since(e, func() {
			_, _, err = e.Connect(c, "web01")
			pending("a connection", err)
		})
		if told(events) != "user_creds.issue refused" || events[0].Client != c.ID {
			t.Errorf("a connection is told as %+v", events)
		}
		pending("a list", c.Do(ctx, "GET", base+"/servers", nil, nil))
		pending("who it is", c.Do(ctx, "GET", base+"/current_user", nil, nil))
		pending("to be approved by itself", put(c.Client, c.ID, m{"state": "ACTIVE"}))
		pending("to leave", c.Do(ctx, "DELETE", base+"/clients/"+c.ID, nil, nil))
		pending("to throw out another", c.Do(ctx, "DELETE", base+"/clients/"+other.ID, nil, nil))
		pending("to sign in by an approval from before", login(c, before))
		_, err = e.Platform.Authorize(ctx, platform.Actor{User: e.User("ann").ID, Web: true}, platform.Authorization{Team: testenv.Team, RedirectURI: "http://127.0.0.1:1/callback",
			State: strings.Repeat("s", 16), Challenge: strings.Repeat("c", 43), KeySHA256: fmt.Sprintf("%x", sha256.Sum256(spkiOf(t, c))), ClientID: c.ID})
		pending("a new approval by its person", err)
		pending("to sign out", c.Do(ctx, "POST", "/v1/clients/logout", nil, nil))

		// Its person has another one, which goes on, and is no way around.
		if _, _, err := e.Connect(other, "web01"); err != nil {
			t.Errorf("ann's other client: %v", err)
		}
		wantCode(t, "approved by its person", put(other.Client, c.ID, m{"state": "ACTIVE"}), sft.Denied)
		pending("deleted by its person", other.Do(ctx, "DELETE", base+"/clients/"+c.ID, nil, nil))
		events = since(e, func() {
			fresh := e.Client("ann")
			_, _, err = e.Connect(fresh, "web01")
			wantCode(t, "enrolled anew", err, sft.Denied)
			wantCode(t, "deleted by an administrator", e.Service.Do(ctx, "DELETE", base+"/clients/"+fresh.ID, nil, nil), "")
		})
		if i := slices.IndexFunc(events, func(e audit.Event) bool { return e.Kind == audit.ClientEnroll }); i < 0 || events[i].Detail["state"] != "PENDING" {
			t.Errorf("another enrolment is told as %+v", events)
		}
		if _, _, err := e.Connect(e.Client(testenv.Owner), "web01"); err != nil {
			t.Errorf("somebody else's new client: %v", err)
		}

		list := func(query string) (ids []string) {
			var l api.List[sft.Client]
			e.Do("GET", "/clients?username=ann"+query, nil, &l)
			for _, v := range l.List {
				ids = append(ids, v.ID)
			}
			return ids
		}
		if p, a, all := list("&state=PENDING"), list("&state=ACTIVE"), list(""); !slices.Equal(p, []string{c.ID}) || !slices.Equal(a, []string{other.ID}) || len(all) != 2 {
			t.Errorf("ann's pending clients are %q, the active ones %q, all %q", p, a, all)
		}

		// Approved, it is as it was, and wants a sign-in.
		events = since(e, func() { e.Do("PUT", "/clients/"+c.ID, m{"state": "ACTIVE"}, nil) })
		if told(events) != "client.state.update success" || events[0].Detail["state"] != "ACTIVE" || events[0].Detail["was"] != "PENDING" {
			t.Errorf("it is told as %+v", events)
		}
		_, _, err = e.Connect(c, "web01")
		wantCode(t, "approved, and not signed in", err, sft.SignIn)
		wantCode(t, "the approval from before", login(c, before), sft.Denied)
		wantCode(t, "a new one", login(c, e.Approve(e.Cookie("ann"), spkiOf(t, c), c.ID)), "")
		if _, _, err := e.Connect(c, "web01"); err != nil {
			t.Errorf("approved and signed in: %v", err)
		}
		if _, _, err := e.Connect(e.Client("ann"), "web01"); err != nil {
			t.Errorf("a new client, with none that is pending: %v", err)
		}

		// Two things at once are two events; what is not said stays.
		e.User("bob")
		events = since(e, func() { e.Do("PUT", "/clients/"+c.ID, m{"state": "PENDING", "user_name": "bob"}, nil) })
		if told(events) != "client.state.update success, client.assign success" {
			t.Errorf("both are told as %s", told(events))
		}
		e.Do("PUT", "/clients/"+c.ID, m{"user_name": "ann"}, nil)
		pending("given back, and still pending", c.Do(ctx, "GET", base+"/servers", nil, nil))
		e.Do("DELETE", "/clients/"+c.ID, nil, nil)
		refused(t, e, "a deleted one", "PUT", "/clients/"+c.ID, m{"state": "ACTIVE"}, sft.NotFound, "no client")
		wantCode(t, "what a deleted client asks", c.Do(ctx, "GET", base+"/current_user", nil, nil), sft.Revoked)
	})
}

// What a client has opened ends on every host of its way, however it was lost:
// else a stolen one goes on through a bastion. The other sessions stay.
func TestSessionsEndOnTheHopsToo(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		ctx := t.Context()
		e.Grant("edge", "dev", false, "ann", "bob")
		e.Grant("prod", "dev", false)
		e.Project("lab")
		gw, mid := e.Server("edge", testenv.SSHFacts(t, "gw")), e.Server("edge", testenv.SSHFacts(t, "mid"))
		idle, web := e.Server("edge", testenv.SSHFacts(t, "idle")), e.Server("prod", testenv.SSHFacts(t, "web01"))
		hosts := map[string]*testenv.Server{"gw": gw, "mid": mid, "idle": idle, "web01": web}
		connect := func(c *testenv.Client, via ...string) string {
			t.Helper()
			way, _, err := e.ConnectSSH(c, "web01", via...)
			if err != nil {
				t.Fatal(err)
			}
			return way.SessionID
		}
		// ends says which hosts hear at once that a session ended, and that no
		// host hears of another one.
		ends := func(what, session string, f func(), want ...string) {
			t.Helper()
			before := map[string]api.State{}
			for name, s := range hosts {
				before[name] = e.State(s)
			}
			f()
			for name, s := range hosts {
				old := before[name]
				st := e.State(s)
				fresh := slices.DeleteFunc(st.EndedSessions, func(id string) bool { return slices.Contains(old.EndedSessions, id) })
				switch {
				case !slices.Contains(want, name):
					if len(fresh) > 0 {
						t.Errorf("%s: %s is told to end %q", what, name, fresh)
					}
				case !slices.Equal(fresh, []string{session}):
					t.Errorf("%s: %s is told to end %q, want %s", what, name, fresh, session)
				case st.Revision <= old.Revision:
					t.Errorf("%s: %s is told only when it asks by itself", what, name)
				}
			}
		}
		lost, given, kept := e.Client("ann"), e.Client("ann"), e.Client("ann")
		first := connect(lost, "gw", "mid")
		second := connect(given, "gw")
		third := connect(kept, "mid")
		ends("a client is deleted", first, func() { e.Do("DELETE", "/clients/"+lost.ID, nil, nil) }, "gw", "mid", "web01")
		ends("a client is given away", second, func() { e.Do("PUT", "/clients/"+given.ID, map[string]string{"user_name": "bob"}, nil) }, "gw", "web01")
		ends("a hop is moved", third, func() {
			wantCode(t, "the move", e.Service.Do(ctx, "PUT", base+"/projects/edge/servers/"+mid.ID, map[string]any{"project_name": "lab"}, nil), "")
		}, "mid", "web01")

		// How long somebody stays, a host counts from when they have signed in, by
		// its own project's settings: later than the session's end on record.
		e.Do("PUT", "/projects/prod", map[string]any{"max_session_seconds": 60}, nil)
		late, raised, again := e.Client("ann"), e.Client("ann"), e.Client("ann")
		fourth, fifth, sixth := connect(kept, "gw"), connect(late), connect(again)
		gone := func(c *testenv.Client) func() { return func() { e.Do("DELETE", "/clients/"+c.ID, nil, nil) } }
		e.Clock.Advance(50 * time.Second)
		if err := again.Do(ctx, "POST", base+"/connect", api.ConnectRequest{Target: "web01", Service: "ssh", SSHPublicKey: testenv.SSHLine(t), SessionID: sixth}, nil); err != nil {
			t.Fatal(err)
		}
		e.Clock.Advance(6 * time.Minute)
		ends("who signed in when the certificate was about to end", fifth, gone(late), "web01")
		e.Clock.Advance(14*time.Minute + 30*time.Second)
		ends("the session's time is over on the target", fourth, gone(kept), "gw")
		ends("more was issued for the session", sixth, gone(again), "web01")
		seventh := connect(raised)
		e.Do("PUT", "/projects/prod", map[string]any{"max_session_seconds": 3600}, nil)
		e.Clock.Advance(30 * time.Minute)
		ends("who signs in may stay for longer than when they connected", seventh, gone(raised), "web01")
	})
}

// What waited while its client was held back is not done.
func TestAChangeOfAClientThatIsHeldBack(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		c := e.Client(testenv.Owner)
		u := e.User(testenv.Owner)
		a := platform.Actor{User: u.ID, Client: c.ID, Name: u.Name} // as it was found out before
		make := func(name string) error {
			_, err := e.Platform.CreateGroup(t.Context(), a, platform.GroupRequest{Team: "main", Name: name})
			return err
		}
		wantCode(t, "before", make("one"), "")
		e.Do("PUT", "/clients/"+c.ID, m{"state": "PENDING"}, nil)
		wantCode(t, "held back", make("two"), sft.Denied)
		e.Do("DELETE", "/clients/"+c.ID, nil, nil)
		wantCode(t, "deleted", make("three"), sft.Revoked)
	})
}

// When a client was last seen is kept to the minute: no request waits for the
// disk to know it better.
func TestWhenAClientWasLastSeen(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		c := e.Client("ann")
		seen := func() time.Time {
			t.Helper()
			var v sft.Client
			if err := c.Do(t.Context(), "GET", base+"/clients/"+c.ID, nil, &v); err != nil {
				t.Fatal(err)
			}
			if v.LastSeen == nil {
				t.Fatal("the client was never seen")
			}
			return *v.LastSeen
		}
		first := seen()
		if !first.Equal(e.Clock.Now()) {
			t.Errorf("it was last seen at %s, and it is %s", first, e.Clock.Now())
		}
		var notes atomic.Int64
		e.DB.Watch(func(s store.Span) {
			if s.Kind == "note" {
				notes.Add(1)
			}
		})
		e.Clock.Advance(59 * time.Second)
		if at := seen(); !at.Equal(first) || notes.Load() != 0 {
			t.Errorf("59 s later it was last seen at %s, by %d notes; want %s and none", at, notes.Load(), first)
		}
		for _, d := range []time.Duration{time.Second, -time.Hour} {
			e.Clock.Advance(d)
			if at := seen(); !at.Equal(e.Clock.Now()) {
				t.Errorf("it was last seen at %s, and it is %s", at, e.Clock.Now())
			}
		}
	})
}
