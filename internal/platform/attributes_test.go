package platform_test

import (
	"fmt"
	"slices"
	"testing"

	"sft"
	"sft/internal/api"
	"sft/internal/platform"
	"sft/internal/testenv"
)

// A login, a uid and a gid are one person's for good, whatever they are called
// later, and a person who gets a login of theirs back is who they were.
func TestAttributes(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		ctx := t.Context()
		e.Grant(testenv.Project, "dev", false, "ann", "bob")
		s := e.Server(testenv.Project, testenv.Facts("web01"))
		on := func(name string) string { // as the host hears of them
			t.Helper()
			for _, u := range e.State(s).Users {
				if u.Name == name {
					return fmt.Sprintf("%s %d %d", u.Login, u.UID, u.GID)
				}
			}
			return ""
		}
		put := func(path, value string) error {
			return e.Service.Do(ctx, "PUT", base+path, map[string]string{"attribute_value": value}, nil)
		}
		is := func(name, want string) {
			t.Helper()
			u := e.User(name)
			if got := fmt.Sprintf("%s %d %d", u.Login, u.UID, u.GID); got != want || on(name) != want {
				t.Errorf("%s is %q, and on hosts %q, want %q", name, got, on(name), want)
			}
		}
		ann, bob := e.User("ann"), e.User("bob")
		first := fmt.Sprintf("ann %d %d", ann.UID, ann.GID)
		is("ann", first)
		before := e.State(s).Revision
		events := since(e, func() { wantCode(t, "another login", put("/users/ann/attributes/unix_user_name", "anna"), "") })
		if told(events) != "team_user_attribute.update success" || events[0].Detail["attribute"] != "unix_user_name" {
			t.Errorf("it is told as %+v", events)
		}
		if st := e.State(s); st.Revision <= before {
			t.Error("the agents do not hear of it")
		}
		second := e.User("ann")
		if second.Login != "anna" || second.UID == ann.UID || second.GID == ann.GID || second.UID == bob.UID {
			t.Errorf("another login is not another account: %+v", second)
		}
		is("ann", fmt.Sprintf("anna %d %d", second.UID, second.GID))
		for what, tt := range map[string]struct {
			path, value string
			want        sft.Code
		}{
			"a login that was another's":  {"/users/bob/attributes/unix_user_name", "ann", sft.Exists},
			"a login that is another's":   {"/users/bob/attributes/unix_user_name", "anna", sft.Exists},
			"a uid that was another's":    {"/users/bob/attributes/unix_uid", fmt.Sprint(ann.UID), sft.Exists},
			"a uid that is another's":     {"/users/bob/attributes/unix_uid", fmt.Sprint(second.UID), sft.Exists},
			"a gid that was another's":    {"/users/bob/attributes/unix_gid", fmt.Sprint(ann.GID), sft.Exists},
			"a system's login":            {"/users/bob/attributes/unix_user_name", "root", sft.Invalid},
			"a system's group":            {"/users/bob/attributes/unix_user_name", "docker", sft.Invalid},
			"a group of sftd's":           {"/users/bob/attributes/unix_user_name", "sft_ops", sft.Invalid},
			"a login with capitals":       {"/users/bob/attributes/unix_user_name", "Bob", sft.Invalid},
			"a login that is too long":    {"/users/bob/attributes/unix_user_name", "bobbobbobbobbobbobbob", sft.Invalid},
			"no login":                    {"/users/bob/attributes/unix_user_name", "", sft.Invalid},
			"a system's uid":              {"/users/bob/attributes/unix_uid", "999", sft.Invalid},
			"root's uid":                  {"/users/bob/attributes/unix_uid", "0", sft.Invalid},
			"nobody's uid":                {"/users/bob/attributes/unix_uid", "65534", sft.Invalid},
			"a uid in other words":        {"/users/bob/attributes/unix_uid", "+70000", sft.Invalid},
			"a uid of more than 31 bits":  {"/users/bob/attributes/unix_uid", "2147483648", sft.Invalid},
			"an attribute there is not":   {"/users/bob/attributes/windows_user_name", "bob", sft.NotFound},
			"of somebody there is not":    {"/users/no/attributes/unix_uid", "70000", sft.NotFound},
			"a group's that is a user's":  {"/groups/dev/attributes/unix_gid", fmt.Sprint(bob.GID), sft.Exists},
			"a group's that it never has": {"/groups/dev/attributes/unix_uid", "70000", sft.NotFound},
		} {
			wantCode(t, what, put(tt.path, tt.value), tt.want)
		}
		is("bob", fmt.Sprintf("bob %d %d", bob.UID, bob.GID))

		wantCode(t, "the first login again", put("/users/ann/attributes/unix_user_name", "ann"), "")
		is("ann", first)

		// An id that was given by hand is passed over by those that are given by
		// themselves.
		next := second.UID + 1
		wantCode(t, "the next uid", put("/users/bob/attributes/unix_uid", fmt.Sprint(next)), "")
		wantCode(t, "the next gid, for a group", put("/groups/dev/attributes/unix_gid", fmt.Sprint(second.GID+1)), "")
		is("bob", fmt.Sprintf("bob %d %d", next, bob.GID))
		if u := e.User("ann2"); u.UID != next+1 || u.GID != second.GID+2 || u.Login != "ann2" {
			t.Errorf("the next user is %+v, want uid %d and gid %d", u, next+1, second.GID+2)
		}
		var u platform.CreateUserReply
		e.Do("POST", "/users", map[string]string{"name": "anna"}, &u)
		if u.Login == "anna" || u.UID == second.UID {
			t.Errorf("a new person is called %+v, as another was", u.User)
		}
		var l api.List[platform.Attribute]
		e.Do("GET", "/users/bob/attributes", nil, &l)
		var got []string
		for _, v := range l.List {
			got = append(got, v.ID+" "+v.Name+"="+v.Value)
		}
		if want := []string{"unix_gid unix_gid=" + fmt.Sprint(bob.GID), "unix_uid unix_uid=" + fmt.Sprint(next), "unix_user_name unix_user_name=bob"}; !slices.Equal(got, want) {
			t.Errorf("the attributes are %q, want %q", got, want)
		}
		l = api.List[platform.Attribute]{}
		if e.Do("GET", "/groups/everyone/attributes", nil, &l); len(l.List) != 0 {
			t.Errorf("a group that is on no server has %+v", l.List)
		}
	})
}

// A gid is one group's for good, too, also when the group has another or is
// gone; and a user's login comes back with the ids that it had last.
func TestFormerIDs(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant(testenv.Project, "dev", false, "ann")
		e.Grant(testenv.Project, "ops", false, "bob")
		put := func(what, path, value string, want sft.Code) {
			t.Helper()
			wantCode(t, what, e.Service.Do(t.Context(), "PUT", base+path, map[string]string{"attribute_value": value}, nil), want)
		}
		put("a gid", "/groups/dev/attributes/unix_gid", "70001", "")
		put("another", "/groups/dev/attributes/unix_gid", "70002", "")
		put("one that another group had", "/groups/ops/attributes/unix_gid", "70001", sft.Exists)
		put("the same for a user", "/users/bob/attributes/unix_gid", "70001", sft.Exists)
		put("its own again", "/groups/dev/attributes/unix_gid", "70001", "")
		put("one that another group has", "/groups/ops/attributes/unix_gid", "70001", sft.Exists)
		e.Do("DELETE", "/groups/dev", nil, nil)
		for _, gid := range []string{"70001", "70002"} {
			put("one of a group that is gone", "/groups/ops/attributes/unix_gid", gid, sft.Exists)
			put("the same for a user", "/users/bob/attributes/unix_gid", gid, sft.Exists)
		}

		for _, uid := range []string{"80003", "80001", "80002", "80001"} {
			put("a uid", "/users/ann/attributes/unix_uid", uid, "")
		}
		for _, login := range []string{"anna", "ann"} {
			put("a login", "/users/ann/attributes/unix_user_name", login, "")
		}
		if u := e.User("ann"); u.UID != 80001 {
			t.Errorf("the login comes back with uid %d, and had 80001 last", u.UID)
		}
	})
}
