package platform_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/testenv"
)

func TestLoginNames(t *testing.T) {
	e := testenv.New(t)
	for _, tt := range []struct{ name, want string }{
		{"ann", "ann"},
		{"Ann.Example", "ann_example"},
		{"9lives", "lives"},
		{"12345", "user"},
		{"54321", "user2"},
		{"root", "u_root"},
		{"Administrator", "u_administrator"},
		{"www-data", "u_www-data"},
		{"con", "u_con"}, // Windows takes none of these
		{"com", "com"},
		{"9com", "com10"},
		{"sft-x", "u_sft-x"},
		{"averyveryverylongname1", "averyveryverylongnam"},
		{"averyveryverylongname2", "averyveryverylongna2"},
	} {
		if u := e.User(tt.name); u.Login != tt.want {
			t.Errorf("user %s has the login name %s, want %s", tt.name, u.Login, tt.want)
		} else if err := sft.CheckLogin(u.Login); err != nil || len(u.Login) > 20 {
			t.Error(err)
		}
	}
	// Neither name nor ids of a deleted user come back.
	old := e.User("Eve")
	e.Do("PUT", "/users/Eve", map[string]string{"status": "DELETED"}, nil)
	wantCode(t, "a user of a deleted user's name", e.Service.Do(t.Context(), "POST", base+"/users", map[string]string{"name": "eve"}, nil), sft.Exists)
	if u := e.User("eve.x"); u.UID == old.UID || u.GID == old.GID {
		t.Errorf("uid %d or gid %d was given twice", u.UID, u.GID)
	}
}

func TestNamesThatCannotBe(t *testing.T) {
	e := testenv.New(t)
	for _, name := range []string{"", "a b", "-a", ".a", "a/b", "a\nb", "a\"b", "a\x00b", "ünal", strings.Repeat("x", 64), strings.Repeat("x", 5000)} {
		for _, path := range []string{"/users", "/service_users", "/groups", "/projects"} {
			wantCode(t, fmt.Sprintf("POST %s with the name %.20q", path, name), e.Service.Do(t.Context(), "POST", base+path, map[string]string{"name": name}, nil), sft.Invalid)
		}
		want := sft.NotFound
		if name == "" { // nothing was looked for
			want = sft.Invalid
		}
		for _, path := range []string{"/groups/owners/users", "/projects/prod/groups"} {
			err := e.Service.Do(t.Context(), "POST", base+path, map[string]string{"name": name}, nil)
			wantCode(t, fmt.Sprintf("POST %s of one called %.20q", path, name), err, want)
			if name == "" && !regexp.MustCompile("^no (user|group) is named").MatchString(err.Error()) {
				t.Errorf("POST %s without a name: %v", path, err)
			}
		}
	}
	for _, full := range []string{"a\nb", "a\x00b", "a\u202eb", "a\u2066b", strings.Repeat("x", 201)} {
		for path, body := range map[string]m{"server_enrollment_tokens": {}, "cloud_accounts": {"provider": "aws", "account_id": "123456789012"}} {
			body["description"] = full
			wantCode(t, fmt.Sprintf("%s with the description %.20q", path, full), e.Service.Do(t.Context(), "POST", base+"/projects/prod/"+path, body, nil), sft.Invalid)
		}
		wantCode(t, fmt.Sprintf("a full name %.20q", full), e.Service.Do(t.Context(), "POST", base+"/users", map[string]string{"name": "ann", "full_name": full}, nil), sft.Invalid)
	}
}

func TestUsersAndOwners(t *testing.T) {
	e := testenv.New(t)
	ctx := t.Context()
	put := func(user, status string) error {
		return e.Service.Do(ctx, "PUT", base+"/users/"+user, map[string]string{"status": status}, nil)
	}
	wantCode(t, "an unknown status", put("olive", "ASLEEP"), sft.Invalid)
	wantCode(t, "one's own status", put(testenv.ServiceUser, "DISABLED"), sft.Denied)
	for _, status := range []string{"DISABLED", "DELETED"} {
		wantCode(t, "the last owner "+status, put("olive", status), sft.Denied)
	}
	out := func(user string) error {
		return e.Service.Do(ctx, "DELETE", base+"/groups/owners/users/"+user, nil, nil)
	}
	wantCode(t, "the last owner leaves", out("olive"), sft.Denied)
	e.Do("POST", "/groups/owners/users", map[string]string{"name": testenv.ServiceUser}, nil)
	wantCode(t, "the last person among the owners leaves", out("olive"), sft.Denied)
	e.User("ann")
	e.Do("POST", "/groups/owners/users", map[string]string{"name": "ann"}, nil)
	wantCode(t, "one of two owners disabled", put("olive", "DISABLED"), "")
	wantCode(t, "the other", put("ann", "DISABLED"), sft.Denied)
	wantCode(t, "the other leaves", out("ann"), sft.Denied)
	wantCode(t, "the disabled one leaves", out("olive"), "")
	wantCode(t, "leaving twice", out("olive"), sft.NotFound)

	for what, err := range map[string]error{
		"deleting the owners":         e.Service.Do(ctx, "DELETE", base+"/groups/owners", nil, nil),
		"deleting everyone":           e.Service.Do(ctx, "DELETE", base+"/groups/Everyone", nil, nil),
		"roles of the owners":         e.Service.Do(ctx, "PUT", base+"/groups/owners", map[string]any{"roles": []string{}}, nil),
		"adding somebody to everyone": e.Service.Do(ctx, "POST", base+"/groups/everyone/users", map[string]string{"name": "ann"}, nil),
	} {
		wantCode(t, what, err, sft.Denied)
	}
	wantCode(t, "an unknown role", e.Service.Do(ctx, "POST", base+"/groups", map[string]any{"name": "g", "roles": []string{"root"}}, nil), sft.Invalid)
	e.Do("POST", "/groups", map[string]any{"name": "g", "roles": []string{"reporting_user"}}, nil)
	wantCode(t, "a group of the same name", e.Service.Do(ctx, "POST", base+"/groups", map[string]any{"name": "G"}, nil), sft.Exists)
	if err := e.Service.Do(ctx, "PUT", base+"/groups/g", map[string]any{}, nil); sft.Explain(err) != `roles is left out, and the group "g" has [reporting_user]; send all that it is to have, or [] for none` {
		t.Errorf("without roles: %v", sft.Explain(err))
	}
	e.Do("PUT", "/groups/g", map[string]any{"roles": []string{}}, nil)
	var g sft.Group
	e.Do("GET", "/groups/G", nil, &g)
	if g.Name != "g" || g.Roles == nil || len(g.Roles) != 0 {
		t.Errorf("the group is %+v", g)
	}
	var members api.List[sft.User]
	e.Do("GET", "/groups/everyone/users", nil, &members)
	if len(members.List) != 3 {
		t.Errorf("everyone is %+v", members.List)
	}
}

// A user's removal is told by its own name, and all else of their status by
// another.
func TestTheStatusOfAUserIsTold(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.User("ann")
		e.Do("POST", "/service_users", m{"name": "bot"}, nil)
		for path, name := range map[string]string{"/users/ann": "ann", "/service_users/bot": "bot"} {
			was := "ACTIVE"
			for _, tt := range []struct{ status, want string }{
				{"DISABLED", "user.update success"},
				{"ACTIVE", "user.update success"},
				{"DELETED", "user.remove success"},
			} {
				events := since(e, func() { e.Do("PUT", path, m{"status": tt.status}, nil) })
				if told(events) != tt.want || events[0].Target != name || events[0].Detail["status"] != tt.status || events[0].Detail["was"] != was {
					t.Errorf("%s of %s is told as %+v, want %s", tt.status, path, events, tt.want)
				}
				was = tt.status
			}
		}
	})
}

// What cannot be done to a user says why, and one that was deleted reads the
// same as a person and as a service user.
func TestUsersWhoAreNotActive(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		for _, name := range []string{"dis", "del"} {
			e.User(name)
			e.Do("POST", "/service_users", m{"name": "s" + name}, nil)
		}
		for _, at := range []string{"/users/", "/service_users/s"} {
			e.Do("PUT", at+"dis", m{"status": "DISABLED"}, nil)
			e.Do("PUT", at+"del", m{"status": "DELETED"}, nil)
			e.Do("PUT", at+"del", m{"status": "DELETED"}, nil) // as it is
			var u sft.User
			if e.Do("GET", at+"del", nil, &u); u.Status != sft.StatusDeleted {
				t.Errorf("%sdel is %+v", at, u)
			}
			for _, status := range []string{"ACTIVE", "DISABLED"} {
				refused(t, e, at+" becomes "+status, "PUT", at+"del", m{"status": status}, sft.Invalid, "was deleted, which is for good")
			}
		}
		refused(t, e, "a link for somebody disabled", "POST", "/users/dis/first_use", nil, sft.Invalid, `user "dis" is not active, but DISABLED`)
		refused(t, e, "a link for somebody deleted", "POST", "/users/del/first_use", nil, sft.Invalid, `user "del" is not active, but DELETED`)
		refused(t, e, "a link for a service user", "POST", "/users/sdis/first_use", nil, sft.Invalid, `"sdis" is a service user`)
		refused(t, e, "a link for nobody", "POST", "/users/nix/first_use", nil, sft.NotFound, "there is no user")
		refused(t, e, "a key for a deleted service user", "POST", "/service_users/sdel/keys", nil, sft.NotFound, "there is no service user")
		refused(t, e, "a person as a service user", "GET", "/service_users/dis", nil, sft.NotFound, "there is no service user")
	})
}

// What is said twice is one thing.
func TestDuplicatesAreOne(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		s := e.Server("lab", testenv.Facts("lab01"))
		var g sft.Group
		e.Do("POST", "/groups", m{"name": "g", "roles": []string{"access_user", "reporting_user", "access_user"}}, &g)
		if want := []sft.Role{"access_user", "reporting_user"}; !slices.Equal(g.Roles, want) {
			t.Errorf("the roles are %v", g.Roles)
		}
		e.Do("PUT", "/groups/g", m{"roles": []string{"server_admin", "server_admin"}}, nil)
		if e.Do("GET", "/groups/g", nil, &g); !slices.Equal(g.Roles, []sft.Role{"server_admin"}) {
			t.Errorf("the roles are %v", g.Roles)
		}
		var v sft.Preauthorization
		e.Do("POST", "/projects/lab/preauthorizations", m{"user_name": testenv.Owner, "servers": []string{s.ID, s.ID}, "expires_at": e.Clock.Now().Add(1e12)}, &v)
		if !slices.Equal(v.Servers, []string{s.ID}) {
			t.Errorf("the servers are %v", v.Servers)
		}
	})
}

// Who is refused hears which roles would do, the least first.
func TestARefusalNamesTheRoles(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Do("PUT", "/groups/everyone", m{"roles": []string{}}, nil)
		e.Grant("prod", "dev", false, "ann")
		ann := e.Client("ann")
		s := e.Server("prod", testenv.Facts("web01"))
		at := "/projects/prod/servers/" + s.ID
		for _, tt := range []struct {
			method, path string
			body         any
			says         string
		}{
			{"GET", "/users", nil, "with the role access_user, reporting_user or access_admin"},
			{"GET", "/auditsV2", nil, "with the role access_user, reporting_user or access_admin"},
			{"GET", at, nil, "with the role server_admin, access_user, reporting_user or access_admin"},
			{"GET", "/projects/prod/server_enrollment_tokens", nil, "with the role reporting_user or access_admin"},
			{"GET", "/projects/prod/preauthorizations", nil, "with the role preauthorization, reporting_user or access_admin"},
			{"POST", "/projects/prod/preauthorizations", m{"user_name": "olive"}, "with the role preauthorization or access_admin"},
			{"PUT", at, m{"labels": m{}}, "with the role server_admin or access_admin"},
			{"PUT", at, m{"take_names": true}, "with the role access_admin"},
			{"GET", at + "/access?user=olive", nil, "leave the user out, or ask an administrator of the team for a group with the role reporting_user or access_admin"},
		} {
			err := ann.Do(t.Context(), tt.method, base+tt.path, tt.body, nil)
			wantCode(t, tt.method+" "+tt.path, err, sft.Denied)
			if err != nil && !strings.HasSuffix(sft.Explain(err), tt.says) {
				t.Errorf("%s %s: %s, want %q at its end", tt.method, tt.path, sft.Explain(err), tt.says)
			}
		}
	})
}

// Who loses the role loses the right with the next request.
func TestRolesCountAtOnce(t *testing.T) {
	e := testenv.New(t)
	ann := e.Client("ann")
	users := func() error { return ann.Do(t.Context(), "GET", base+"/users", nil, nil) }
	tokens := func() error {
		return ann.Do(t.Context(), "GET", base+"/projects/prod/server_enrollment_tokens", nil, nil)
	}
	add := func() error {
		return ann.Do(t.Context(), "POST", base+"/groups", map[string]string{"name": "x"}, nil)
	}
	wantCode(t, "a plain user reads", users(), "")
	wantCode(t, "a plain user reads tokens", tokens(), sft.Denied)
	wantCode(t, "a plain user changes", add(), sft.Denied)
	e.Do("PUT", "/groups/everyone", map[string]any{"roles": []string{}}, nil)
	wantCode(t, "a user without a role reads", users(), sft.Denied)
	wantCode(t, "a user without a role reads somebody else", ann.Do(t.Context(), "GET", base+"/users/"+testenv.Owner, nil, nil), sft.Denied)
	var me sft.User
	wantCode(t, "a user without a role reads themselves", ann.Do(t.Context(), "GET", base+"/users/ann", nil, &me), "")
	if me.Login != "ann" {
		t.Errorf("ann is %+v", me)
	}
	wantCode(t, "a user without a role lists servers", ann.Do(t.Context(), "GET", base+"/servers", nil, nil), "")
	e.Do("POST", "/groups", map[string]any{"name": "reporters", "roles": []string{"reporting_user"}}, nil)
	e.Do("POST", "/groups/reporters/users", map[string]string{"name": "ann"}, nil)
	wantCode(t, "a reporter reads", users(), "")
	wantCode(t, "a reporter reads tokens", tokens(), "")
	wantCode(t, "a reporter changes", add(), sft.Denied)
	e.Do("PUT", "/groups/reporters", map[string]any{"roles": []string{"access_admin"}}, nil)
	wantCode(t, "an administrator changes", add(), "")
	e.Do("DELETE", "/groups/reporters/users/ann", nil, nil)
	wantCode(t, "a former administrator reads", users(), sft.Denied)
	e.Do("PUT", "/users/ann", map[string]string{"status": "DISABLED"}, nil)
	wantCode(t, "a disabled user lists servers", ann.Do(t.Context(), "GET", base+"/servers", nil, nil), sft.Denied)
}

func TestProjects(t *testing.T) {
	e := testenv.New(t)
	ctx := t.Context()
	for _, tt := range []struct {
		name string
		body map[string]any
		want sft.Code
	}{
		{"the same name", map[string]any{"name": "PROD"}, sft.Exists},
		{"a session of a second", map[string]any{"name": "p", "max_session_seconds": 1}, sft.Invalid},
		{"a session of a year", map[string]any{"name": "p", "max_session_seconds": 365 * 86400}, sft.Invalid},
		{"less than no time", map[string]any{"name": "p", "disconnected_session_seconds": -1}, sft.Invalid},
		{"limits", map[string]any{"name": "p", "max_session_seconds": 60, "disconnected_session_seconds": 0, "create_server_users": false}, ""},
	} {
		var p sft.Project
		wantCode(t, tt.name, e.Service.Do(ctx, "POST", base+"/projects", tt.body, &p), tt.want)
	}
	e.Do("PUT", "/projects/p", map[string]any{"delete_server_users": true}, nil)
	var p sft.Project
	e.Do("GET", "/projects/p", nil, &p)
	if p.MaxSession != 60 || p.DisconnectedSession != 0 || p.CreateServerUsers || !p.DeleteServerUsers || p.Revision != 2 {
		t.Errorf("the project is %+v", p)
	}
	wantCode(t, "another name", e.Service.Do(ctx, "PUT", base+"/projects/p", map[string]any{"name": "q"}, nil), sft.Invalid)
	wantCode(t, "a selector", e.Service.Do(ctx, "POST", base+"/projects/p/groups", map[string]any{"name": "everyone", "servers_selector": "a in b"}, nil), sft.Invalid)
	wantCode(t, "a group that is not there", e.Service.Do(ctx, "POST", base+"/projects/p/groups", map[string]any{"name": "no"}, nil), sft.NotFound)
	e.Do("POST", "/projects/p/groups", map[string]any{"name": "everyone", "server_access": true}, nil)
	wantCode(t, "a group twice", e.Service.Do(ctx, "POST", base+"/projects/p/groups", map[string]any{"name": "everyone"}, nil), sft.Exists)
	wantCode(t, "changing one that is not in it", e.Service.Do(ctx, "PUT", base+"/projects/p/groups/owners", map[string]any{}, nil), sft.NotFound)
	wantCode(t, "taking out one that is not in it", e.Service.Do(ctx, "DELETE", base+"/projects/p/groups/owners", nil, nil), sft.NotFound)

	var users api.List[sft.ServerUser]
	e.User("ann")
	e.Do("GET", "/projects/p/server_users", nil, &users)
	var names []string
	for _, u := range users.List {
		names = append(names, fmt.Sprint(u.User, " ", u.Login, " ", u.Admin))
	}
	if !slices.Equal(names, []string{"ann ann false", "olive olive false"}) { // no service users
		t.Errorf("the server users are %q", names)
	}

	s := e.Server("p", testenv.Facts("web01"))
	wantCode(t, "deleting a project that has servers", e.Service.Do(ctx, "DELETE", base+"/projects/p", nil, nil), sft.Exists)
	token := e.Token("p")
	e.Do("DELETE", "/projects/p/servers/"+s.ID, nil, nil)
	e.Do("DELETE", "/projects/p", nil, nil)
	for _, path := range []string{"", "/groups", "/servers", "/server_users", "/server_enrollment_tokens"} {
		wantCode(t, "GET "+path+" of a deleted project", e.Service.Do(ctx, "GET", base+"/projects/p"+path, nil, nil), sft.NotFound)
	}
	_, spki := testenv.Key(t)
	wantCode(t, "its token", e.Anonymous().Do(ctx, "POST", "/v1/servers/enroll", api.EnrollServerRequest{Token: token, DeviceKey: spki, Facts: testenv.Facts("x")}, nil), sft.Denied)
	e.Do("POST", "/projects", map[string]any{"name": "p"}, &p)
	if p.Revision != 1 || p.MaxSession != 12*3600 || p.DisconnectedSession != 8*3600 || !p.CreateServerUsers || p.DeleteServerUsers {
		t.Errorf("a new project of the name is %+v", p)
	}
}

// The channels of a project: what is left out stays, the audit tells them,
// agents hear of a change at once, and a client is told what may cross.
func TestChannels(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		ctx := t.Context()
		type m = map[string]any
		channels := func(name string) sft.Channels { t.Helper(); return e.Project(name).Channels }
		if got := channels(testenv.Project); got != sft.AllChannels {
			t.Errorf("the first project has %+v, want all", got)
		}
		if got := channels("plain"); got != sft.AllChannels {
			t.Errorf("a new project has %+v, want all", got)
		}
		var p sft.Project
		events := since(e, func() {
			e.Do("POST", "/projects", m{"name": "shut", "channels": m{"clipboard": false, "audio": false}}, &p)
		})
		want := sft.Channels{Devices: true, OtherDynamic: true}
		if got := channels("shut"); p.Channels != want || got != want {
			t.Errorf("a project without clipboard and audio has %+v, then %+v", p.Channels, got)
		}
		detail := func(events []audit.Event) (s string) {
			t.Helper()
			if len(events) != 1 {
				t.Fatalf("it is told as %s", told(events))
			}
			d := events[0].Detail
			return fmt.Sprint(events[0].Kind, " ", []string{d["channels.clipboard"], d["channels.devices"], d["channels.audio"], d["channels.other_dynamic"]})
		}
		if got, want := detail(events), "project.create [false true false true]"; got != want {
			t.Errorf("it is told as %s, want %s", got, want)
		}

		s := e.Server(testenv.Project, testenv.Facts("web01"))
		ann := e.Client(testenv.Owner)
		for _, tt := range []struct {
			name string
			body m
			want sft.Channels
		}{
			{"nothing named", m{}, sft.AllChannels},
			{"no channels named", m{"channels": m{}}, sft.AllChannels},
			{"null, which is left out too", m{"channels": nil}, sft.AllChannels},
			{"the clipboard", m{"channels": m{"clipboard": false, "devices": nil}}, sft.Channels{Devices: true, Audio: true, OtherDynamic: true}},
			{"devices", m{"channels": m{"devices": false}}, sft.Channels{Audio: true, OtherDynamic: true}},
			{"audio", m{"channels": m{"audio": false}}, sft.Channels{OtherDynamic: true}},
			{"the others", m{"channels": m{"other_dynamic": false}}, sft.Channels{}},
			{"another setting", m{"max_session_seconds": 60}, sft.Channels{}},
			{"the clipboard again", m{"channels": m{"clipboard": true}}, sft.Channels{Clipboard: true}},
		} {
			before := e.State(s).Revision
			if channels(testenv.Project) == tt.want && tt.body["max_session_seconds"] == nil { // nothing that is another
				if events := since(e, func() { e.Do("PUT", "/projects/prod", tt.body, nil) }); len(events) > 0 || e.State(s).Revision != before {
					t.Errorf("%s is told as %+v, at revision %d and not %d", tt.name, events, e.State(s).Revision, before)
				}
				continue
			}
			woken := wake(t, e, s, before)
			events := since(e, func() { e.Do("PUT", "/projects/prod", tt.body, nil) })
			st, err := woken()
			if err != nil {
				t.Fatal(err)
			}
			if c := st.Settings.Channels; c == nil || *c != tt.want || st.Revision != before+1 {
				t.Errorf("%s: the agent has %+v at revision %d, want %+v at %d", tt.name, c, st.Revision, tt.want, before+1)
			}
			if got := channels(testenv.Project); got != tt.want {
				t.Errorf("%s: the project has %+v, want %+v", tt.name, got, tt.want)
			}
			c := tt.want
			if got, want := detail(events), fmt.Sprint("project.update ", []bool{c.Clipboard, c.Devices, c.Audio, c.OtherDynamic}); got != want {
				t.Errorf("%s: it is told as %s, want %s", tt.name, got, want)
			}
			r, _, err := e.Connect(ann, "web01")
			if err != nil {
				t.Fatal(err)
			}
			if r.Channels == nil || *r.Channels != tt.want {
				t.Errorf("%s: the client has %+v, want %+v", tt.name, r.Channels, tt.want)
			}
		}
		for name, bad := range map[string]any{"a text": "all", "a list": []string{"clipboard"}, "a switch that is a text": m{"clipboard": "false"}, "a switch that is a number": m{"audio": 0}} {
			before := e.Project(testenv.Project)
			wantCode(t, name, e.Service.Do(ctx, "PUT", base+"/projects/prod", m{"channels": bad}, nil), sft.Invalid)
			if got := e.Project(testenv.Project); got != before {
				t.Errorf("%s changed the project to %+v", name, got)
			}
		}
	})
}

// What a project tells the clients of its people: known options with known
// values, one by one; anything else changes nothing.
func TestClientOptions(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		type m = map[string]any
		const forward, agent = "ssh.port_forward_method", "ssh.insecure_forward_agent"
		var made sft.Project
		e.Do("POST", "/projects", m{"name": "p", "client_config_options": m{forward: "netcat"}}, &made)
		if want := (sft.ClientOptions{PortForward: "netcat"}); made.ClientOptions != want || e.Project("p").ClientOptions != want {
			t.Errorf("a new project has %+v, want %+v", made.ClientOptions, want)
		}
		for _, tt := range []struct {
			name string
			body m
			want sft.ClientOptions
		}{
			{"nothing", m{}, sft.ClientOptions{PortForward: "netcat"}},
			{"none of them", m{"client_config_options": m{}}, sft.ClientOptions{PortForward: "netcat"}},
			{"null", m{"client_config_options": m{forward: nil}}, sft.ClientOptions{PortForward: "netcat"}},
			{"the agent", m{"client_config_options": m{agent: "host"}}, sft.ClientOptions{PortForward: "netcat", ForwardAgent: "host"}},
			{"both", m{"client_config_options": m{forward: "native", agent: "none"}}, sft.ClientOptions{PortForward: "native", ForwardAgent: "none"}},
			{"the default", m{"client_config_options": m{forward: "", agent: ""}}, sft.ClientOptions{}},
		} {
			was := e.Project("p").ClientOptions
			events := since(e, func() { e.Do("PUT", "/projects/p", tt.body, nil) })
			if got := e.Project("p").ClientOptions; got != tt.want {
				t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
			}
			if tt.want == was {
				if len(events) > 0 {
					t.Errorf("%s is told as %+v", tt.name, events)
				}
				continue
			}
			if d := events[0].Detail; told(events) != "project.update success" || d["client_config_options."+forward] != tt.want.PortForward || d["client_config_options."+agent] != tt.want.ForwardAgent {
				t.Errorf("%s is told as %+v", tt.name, events)
			}
		}
		before := e.Project("p")
		for name, bad := range map[string]any{"an unknown option": m{"ssh.proxy": "x"}, "one with other capitals": m{"SSH.port_forward_method": "netcat"}, "an unknown value": m{forward: "magic"},
			"another option's value": m{agent: "netcat"}, "a good one and a bad one": m{forward: "netcat", agent: "yes"}, "a number": m{forward: 1}, "a text": "netcat", "a list": []string{forward}} {
			wantCode(t, name, e.Service.Do(t.Context(), "PUT", base+"/projects/p", m{"client_config_options": bad}, nil), sft.Invalid)
			if got := e.Project("p"); got != before {
				t.Errorf("%s changed the project to %+v", name, got)
			}
		}
	})
}

// The audit is read in pages, both ways, by whoever may.
func TestReadingTheAudit(t *testing.T) {
	e := testenv.New(t)
	sealAll(t, e.Platform) // and no key is made while it is read
	all := e.Events()
	page := func(query string) (list api.List[audit.Event], err error) {
		return list, e.Service.Do(t.Context(), "GET", base+"/auditsV2"+query, nil, &list)
	}
	first, err := page("?count=3")
	if err != nil || len(first.List) != 3 || first.List[0].ID != all[0].ID {
		t.Fatalf("the first page is %+v, %v", first, err)
	}
	next, _ := page("?count=3&offset=" + first.List[2].ID)
	if len(next.List) == 0 || next.List[0].ID != all[3].ID {
		t.Errorf("the next page is %+v", next)
	}
	last, _ := page("?count=1&descending=true")
	if len(last.List) != 1 || last.List[0].ID != all[len(all)-1].ID {
		t.Errorf("the newest is %+v", last)
	}
	for _, q := range []string{"?count=-1", "?count=1001", "?count=x"} {
		_, err := page(q)
		wantCode(t, q, err, sft.Invalid)
	}
}
