package platform_test

import (
	"slices"
	"testing"

	"sft"
	"sft/internal/api"
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
		wantCode(t, "to a state that it cannot have", put(map[string]string{"state": "PENDING"}), sft.Invalid)
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
