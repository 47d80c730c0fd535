package platform_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/platform"
	"sft/internal/store"
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
			"an attribute there is not":   {"/users/bob/attributes/windows_uid", "70000", sft.NotFound},
			"one of groups":               {"/users/bob/attributes/unix_group_name", "bob", sft.NotFound},
			"one of users":                {"/groups/dev/attributes/windows_user_name", "dev", sft.NotFound},
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
		if want := []string{"unix_gid unix_gid=" + fmt.Sprint(bob.GID), "unix_uid unix_uid=" + fmt.Sprint(next), "unix_user_name unix_user_name=bob", "windows_user_name windows_user_name=bob"}; !slices.Equal(got, want) {
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

// A person has a login on Windows and one on Linux, which are the same until
// one is given; each is theirs for good, and no agent hears of the other's.
func TestWindowsLogin(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		ctx := t.Context()
		e.Grant(testenv.Project, "dev", true, "ann", "bob")
		facts := testenv.Facts("win01")
		facts.OSType, facts.OS = sft.Windows, "Windows Server 2022"
		win, lin := e.Server(testenv.Project, facts), e.Server(testenv.Project, testenv.Facts("web01"))
		ann, c := e.User("ann"), e.Client("ann")
		on := func(s *testenv.Server, name string) string {
			t.Helper()
			for _, u := range e.State(s).Users {
				if u.Name == name {
					return fmt.Sprintf("%s %d %d", u.Login, u.UID, u.GID)
				}
			}
			return ""
		}
		put := func(name, attribute, value string) error {
			return e.Service.Do(ctx, "PUT", base+"/users/"+name+"/attributes/"+attribute, map[string]string{"attribute_value": value}, nil)
		}
		is := func(when, linux, windows string) {
			t.Helper()
			if l, w := on(lin, "ann"), on(win, "ann"); l != linux || w != windows {
				t.Errorf("%s: on Linux %q, on Windows %q, want %q and %q", when, l, w, linux, windows)
			}
		}
		first := fmt.Sprintf("ann %d %d", ann.UID, ann.GID)
		is("at first", first, first)

		linBefore, winBefore := e.State(lin).Revision, e.State(win).Revision
		events := since(e, func() { wantCode(t, "a login for Windows", put("ann", "windows_user_name", "ann.miller"), "") })
		if told(events) != "team_user_attribute.update success" || events[0].Detail["was"] != fmt.Sprintf("login ann, uid %d, gid %d", ann.UID, ann.GID) ||
			!strings.Contains(events[0].Detail["now"], "; on Windows login ann.miller, uid ") {
			t.Errorf("it is told as %+v", events)
		}
		if l, w := e.State(lin).Revision, e.State(win).Revision; l != linBefore || w <= winBefore {
			t.Errorf("Linux is at revision %d and was at %d, Windows is at %d and was at %d", l, linBefore, w, winBefore)
		}
		second := on(win, "ann")
		var uid, gid int
		if _, err := fmt.Sscanf(second, "ann.miller %d %d", &uid, &gid); err != nil || uid == ann.UID || gid == ann.GID {
			t.Errorf("another login on Windows is not another account: %q", second)
		}
		is("with another on Windows", first, second)

		// What is asked for a server says the login there.
		for server, want := range map[string]string{"win01": "ann.miller", "web01": "ann"} {
			reply, _, err := e.Connect(c, server)
			if err != nil || reply.Route[0].Login != want {
				t.Errorf("connect to %s: %+v, %v, want login %s", server, reply.Route, err, want)
			}
			var r api.ResolveReply
			if err := c.Do(ctx, "GET", base+"/resolve?target="+server, nil, &r); err != nil || r.Login != want {
				t.Errorf("resolve %s: login %q, %v, want %s", server, r.Login, err, want)
			}
		}
		var su sft.ServerUser
		if e.Do("GET", "/projects/"+testenv.Project+"/server_users/ann", nil, &su); su.Login != "ann" || su.WindowsLogin != "ann.miller" || su.UID != ann.UID {
			t.Errorf("the server user is %+v", su)
		}
		if u := e.User("ann"); u.Login != "ann" || u.WindowsLogin != "ann.miller" {
			t.Errorf("the user is %+v", u)
		}

		for what, tt := range map[string]struct {
			attribute, value string
			want             sft.Code
		}{
			"another's on Windows":           {"windows_user_name", "ann.miller", sft.Exists},
			"another's on Linux":             {"windows_user_name", "ann", sft.Exists},
			"the uid of one on Windows":      {"unix_uid", fmt.Sprint(uid), sft.Exists},
			"the gid of one on Windows":      {"unix_gid", fmt.Sprint(gid), sft.Exists},
			"capitals":                       {"windows_user_name", "Bob", sft.Invalid},
			"too long":                       {"windows_user_name", "abcdefghijklmnopqrstu", sft.Invalid},
			"a dot at the end":               {"windows_user_name", "bob.", sft.Invalid},
			"a built-in account":             {"windows_user_name", "administrator", sft.Invalid},
			"a device":                       {"windows_user_name", "nul.bob", sft.Invalid},
			"a group of sftd's":              {"windows_user_name", "sft-users", sft.Invalid},
			"a character that is not for it": {"windows_user_name", `web01\bob`, sft.Invalid},
			"none":                           {"windows_user_name", "", sft.Invalid},
			"a dot on Linux":                 {"unix_user_name", "bob.b", sft.Invalid},
		} {
			wantCode(t, what, put("bob", tt.attribute, tt.value), tt.want)
		}

		// From here on the two go their own ways.
		winBefore = e.State(win).Revision
		wantCode(t, "another on Linux", put("ann", "unix_user_name", "anna"), "")
		third := on(lin, "ann")
		is("with another on Linux, too", third, second)
		if w := e.State(win).Revision; w != winBefore {
			t.Errorf("Windows is at revision %d and was at %d", w, winBefore)
		}
		wantCode(t, "the second on Windows", put("ann", "windows_user_name", "ann-2"), "")
		for _, login := range []string{"ann.miller", "ann-2", "ann"} {
			wantCode(t, "what was another's: "+login, put("bob", "windows_user_name", login), sft.Exists)
		}
		wantCode(t, "what was theirs", put("ann", "windows_user_name", "ann.miller"), "")
		is("with the first on Windows again", third, second)

		// The login of the other system is that account, and the two are one again.
		wantCode(t, "the same as on Linux", put("ann", "windows_user_name", "anna"), "")
		is("with one for both", third, third)
		wantCode(t, "the first for both", put("ann", "unix_user_name", "ann"), "")
		is("where it began", first, first)

		// A new user gets no name that was one on Windows alone.
		if u := e.User("ann-2"); u.Login == "ann-2" || u.WindowsLogin != u.Login {
			t.Errorf("a new person is called %+v, as another was", u)
		}
	})
}

// A group has one name on servers, unless a project gives it another.
func TestServerGroupName(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant(testenv.Project, "dev", false, "ann")
		e.Grant("lab", "dev", false)
		e.Do("POST", "/groups", m{"name": "ops"}, nil)
		put := func(group, name string) error {
			return e.Service.Do(t.Context(), "PUT", base+"/groups/"+group+"/attributes/unix_group_name", m{"attribute_value": name}, nil)
		}
		s, other := e.Server(testenv.Project, testenv.Facts("web01")), e.Server("lab", testenv.Facts("lab01"))
		place := func(project, name string) {
			e.Do("PUT", "/projects/"+project+"/groups/dev", m{"server_access": true, "create_server_group": true, "server_group_name": name}, nil)
		}
		place(testenv.Project, "")
		place("lab", "lab-dev")
		is := func(when, prod, lab string) {
			t.Helper()
			if a, b := e.State(s).Groups[0].Name, e.State(other).Groups[0].Name; a != prod || b != lab {
				t.Errorf("%s: %q and %q, want %q and %q", when, a, b, prod, lab)
			}
		}
		is("at first", "sft_dev", "lab-dev")
		heard(t, e, s, "another name", func() { wantCode(t, "another name", put("dev", "developers"), "") })
		is("with a name", "developers", "lab-dev")
		place(testenv.Project, "")
		is("made again", "developers", "lab-dev")
		var l api.List[platform.Attribute]
		if e.Do("GET", "/groups/dev/attributes", nil, &l); len(l.List) != 2 || l.List[0].Name != "unix_gid" || l.List[1].Value != "developers" {
			t.Errorf("the attributes are %+v", l.List)
		}
		for what, tt := range map[string]struct {
			group, name string
			want        sft.Code
		}{
			"another group's":              {"ops", "developers", sft.Exists},
			"another group's in a project": {"ops", "lab-dev", sft.Exists},
			"a user's":                     {"ops", "ann", sft.Exists},
			"a system's":                   {"ops", "docker", sft.Invalid},
			"sftd's":                       {"ops", "sft-admin", sft.Invalid},
			"none":                         {"ops", "", sft.Invalid},
		} {
			wantCode(t, what, put(tt.group, tt.name), tt.want)
		}
		if u := e.User("developers"); u.Login == "developers" {
			t.Error("a user got the name of a group as login")
		}
		wantCode(t, "a project's name for another group", e.Service.Do(t.Context(), "POST", base+"/projects/lab/groups", m{"name": "ops", "create_server_group": true, "server_group_name": "developers"}, nil), sft.Exists)
		wantCode(t, "as it was", put("dev", "sft_dev"), "")
		is("as it was", "sft_dev", "lab-dev")
		wantCode(t, "a name that is free again", put("ops", "developers"), "")
	})
}

// Which hosts cannot have an attribute is what their agents said last of what
// they were asked to have.
func TestConflicts(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		ctx := t.Context()
		e.Grant(testenv.Project, "dev", false, "ann", "bob")
		e.Do("PUT", "/projects/"+testenv.Project+"/groups/dev", m{"server_access": true, "create_server_group": true}, nil)
		facts := testenv.Facts("win01")
		facts.OSType = sft.Windows
		lin, win := e.Server(testenv.Project, testenv.Facts("web01")), e.Server(testenv.Project, facts)
		ann, bob, eve := e.User("ann"), e.User("bob"), e.User("eve")
		e.Grant(testenv.Project, "lab", false, "bob")
		e.Do("PUT", "/projects/"+testenv.Project+"/groups/lab", m{"server_access": true, "create_server_group": true, "servers_selector": "env=lab"}, nil)
		report := func(s *testenv.Server, list ...api.Conflict) error {
			return s.Do(ctx, "POST", "/v1/agent/report", api.ReportRequest{Facts: s.Facts, Conflicts: list}, nil)
		}
		list := func(path string) (got []string) {
			t.Helper()
			var l api.List[platform.Attribute]
			e.Do("GET", path+"/attributes?conflicting=true", nil, &l)
			for _, v := range l.List {
				s := v.Name + "=" + v.Value
				for _, c := range v.Conflicts {
					s += " " + c.Hostname + "/" + c.Project + ":" + c.Reason
				}
				got = append(got, s)
				if !v.Conflicting || v.ConflictCount != int64(len(v.Conflicts)) {
					t.Errorf("%+v", v)
				}
			}
			return got
		}
		want := func(when, path string, want ...string) {
			t.Helper()
			if got := list(path); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", when, got, want)
			}
		}
		annUID := fmt.Sprint(ann.UID)
		want("at first", "/users/ann")
		events := since(e, func() {
			wantCode(t, "a report", report(lin, api.Conflict{User: ann.ID, Clash: "name", Value: "ann", Reason: "there"}, api.Conflict{User: ann.ID, Clash: "uid", Value: annUID, Reason: "in use"},
				api.Conflict{User: ann.ID, Clash: "uid", Value: "7", Reason: "twice"}, api.Conflict{User: eve.ID, Clash: "name", Value: "eve", Reason: "not asked for"},
				api.Conflict{User: "no", Clash: "name", Value: "no", Reason: "nobody"}, api.Conflict{Group: "nogroup", Clash: "name", Value: "nogroup", Reason: "no group"},
				api.Conflict{Group: "sft_lab", Clash: "name", Value: "sft_lab", Reason: "a group of other servers"},
				api.Conflict{Group: "sft_dev", Clash: "name", Value: "sft_dev", Reason: "a group"}), "")
		})
		if told(events) != "server.update success" || events[0].Detail["conflicts"] != "3" {
			t.Errorf("it is told as %+v", events)
		}
		wantCode(t, "a report of Windows", report(win, api.Conflict{User: ann.ID, Clash: "name", Value: "ann", Reason: "here too"}), "")
		want("of two hosts", "/users/ann", "unix_uid="+annUID+" web01/prod:in use", "unix_user_name=ann web01/prod:there", "windows_user_name=ann win01/prod:here too")
		want("of somebody who was not asked for", "/users/eve")
		want("of somebody else", "/users/bob")
		want("of a group", "/groups/dev", "unix_group_name=sft_dev web01/prod:a group")
		want("of a group that is not on the host", "/groups/lab")
		var v platform.Attribute
		if e.Do("GET", "/users/ann/attributes/unix_gid", nil, &v); v.Conflicting || v.Value != fmt.Sprint(ann.GID) {
			t.Errorf("one that is no conflict is %+v", v)
		}
		if events := since(e, func() {
			wantCode(t, "the same again", report(win, api.Conflict{User: ann.ID, Clash: "name", Value: "ann", Reason: "here too"}), "")
		}); len(events) != 0 {
			t.Errorf("the same again is told as %+v", events)
		}

		// What was said of another value is about what was before.
		e.Do("PUT", "/users/ann/attributes/windows_user_name", m{"attribute_value": "ann.miller"}, nil)
		want("with another login on Windows", "/users/ann", "unix_uid="+annUID+" web01/prod:in use", "unix_user_name=ann web01/prod:there")

		// Each report is whole.
		wantCode(t, "a later report", report(lin, api.Conflict{User: bob.ID, Clash: "gid", Value: fmt.Sprint(bob.GID), Reason: "in use"}), "")
		want("after a later report", "/users/ann")
		want("of somebody else in it", "/users/bob", "unix_gid="+fmt.Sprint(bob.GID)+" web01/prod:in use")
		for what, list := range map[string][]api.Conflict{
			"too many":        make([]api.Conflict, api.MaxConflicts+1),
			"of nobody":       {{Clash: "name", Value: "x"}},
			"of two":          {{User: ann.ID, Group: "sft_dev", Clash: "name"}},
			"of what":         {{User: ann.ID, Clash: "home"}},
			"a group's uid":   {{Group: "sft_dev", Clash: "uid"}},
			"in two lines":    {{User: ann.ID, Clash: "name", Reason: "a\nb"}},
			"in many letters": {{User: ann.ID, Clash: "name", Reason: strings.Repeat("x", 501)}},
		} {
			err := report(lin, list...)
			wantCode(t, what, err, sft.Invalid)
			if e, ok := errors.AsType[*sft.Error](err); ok && e.Hint == "" {
				t.Errorf("%s: the refusal has no hint", what)
			}
		}
		want("after what was refused", "/users/bob", "unix_gid="+fmt.Sprint(bob.GID)+" web01/prod:in use")
		wantCode(t, "a choice that is none", e.Service.Do(ctx, "GET", base+"/users/bob/attributes?conflicting=perhaps", nil, nil), sft.Invalid)
		e.Do("DELETE", "/projects/"+testenv.Project+"/servers/"+lin.ID, nil, nil)
		want("of a host that is gone", "/users/bob")
	})
}

// What a host says of its conflicts is looked into when it says another thing,
// and it cannot do so all the time; its certificates do not wait for that.
func TestConflictsAreLimited(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant(testenv.Project, "dev", false, "ann")
		s := e.Server(testenv.Project, testenv.Facts("web01"))
		ann := e.User("ann")
		statements := 0
		report := func(csr []byte, reason string) (reply api.ReportReply, err error) {
			r := api.ReportRequest{Facts: s.Facts, CSR: csr}
			if reason != "" {
				r.Conflicts = []api.Conflict{{User: ann.ID, Clash: "name", Value: "ann", Reason: reason}}
			}
			statements = 0
			e.DB.Watch(func(v store.Span) {
				if v.Kind == "change" {
					statements += v.Statements
				}
			})
			defer e.DB.Watch(func(store.Span) {})
			return reply, s.Do(t.Context(), "POST", "/v1/agent/report", r, &reply)
		}
		is := func(when, want string) {
			t.Helper()
			var v platform.Attribute
			e.Do("GET", "/users/ann/attributes/unix_user_name", nil, &v)
			got := ""
			for _, c := range v.Conflicts {
				got = c.Reason
			}
			if got != want {
				t.Errorf("%s the conflict is %q, want %q", when, got, want)
			}
		}
		for n := range 10 {
			_, err := report(nil, []string{"there", ""}[n%2])
			wantCode(t, "a change", err, "")
		}
		_, err := report(nil, "")
		wantCode(t, "no conflict, again", err, "")
		none := statements
		_, err = report(nil, "there")
		wantCode(t, "one change more", err, sft.TooMany)
		if statements > none+2 { // for the groups of the project
			t.Errorf("a change that is refused takes %d statements, and none %d", statements, none)
		}
		is("after that", "")
		key, _ := testenv.Key(t)
		reply, err := report(testenv.CSR(t, key), "there")
		if err != nil || len(reply.BrokerCertificate) == 0 {
			t.Errorf("with a certificate to sign: %v, %d certificates", err, len(reply.BrokerCertificate))
		}
		is("with a certificate", "")
		e.Clock.Advance(time.Minute)
		_, err = report(nil, "there")
		wantCode(t, "a minute later", err, "")
		is("then", "there")
		for range 20 {
			if _, err = report(nil, "there"); err != nil || statements > none+2 {
				t.Fatalf("the same again: %v, in %d statements, and none takes %d", err, statements, none)
			}
			e.Clock.Advance(time.Second)
		}
	})
}
