package platform_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/testenv"
)

type m = map[string]any

// refused wants a request of the service user to fail, and to change nothing
// that an agent hears of.
func refused(t *testing.T, e *testenv.Env, what, method, path string, body any, code sft.Code, says string) {
	t.Helper()
	revision := func() (n int64) {
		var list api.List[sft.Project]
		e.Do("GET", "/projects", nil, &list)
		for _, p := range list.List {
			n += p.Revision
		}
		return n
	}
	before, events := revision(), len(e.Events())
	err := e.Service.Do(t.Context(), method, base+path, body, nil)
	wantCode(t, what, err, code)
	if err != nil && !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v, want %q in it", what, err, says)
	}
	if revision() != before || len(e.Events()) != events {
		t.Errorf("%s: it changed something", what)
	}
}

// heard runs f and wants the server's agent to be told at once.
func heard(t *testing.T, e *testenv.Env, s *testenv.Server, what string, f func()) api.State {
	t.Helper()
	woken := wake(t, e, s, e.State(s).Revision)
	f()
	st, err := woken()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return st
}

func TestAccountsOnDemand(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		s := e.Server("lab", testenv.Facts("lab01"))
		if st := e.State(s); st.Settings.UserOnDemand != 0 || e.Project("lab").UserOnDemand != 0 {
			t.Errorf("a new project has accounts on demand: %+v", st.Settings)
		}
		for _, v := range []int64{60, 3600, 7 * 24 * 3600, 0, 61} {
			var st api.State
			events := since(e, func() {
				st = heard(t, e, s, "a period", func() { e.Do("PUT", "/projects/lab", m{"user_on_demand_period": v}, nil) })
			})
			if st.Settings.UserOnDemand != v || e.Project("lab").UserOnDemand != v || len(events) != 1 || events[0].Detail["user_on_demand_period"] != fmt.Sprint(v) {
				t.Errorf("with %d the agent has %d, the project %d; told as %+v", v, st.Settings.UserOnDemand, e.Project("lab").UserOnDemand, events)
			}
		}
		e.Do("PUT", "/projects/lab", m{"max_session_seconds": 60}, nil)
		if v := e.Project("lab").UserOnDemand; v != 61 {
			t.Errorf("another setting made it %d", v)
		}
		for _, v := range []int64{-1, 1, 59, 7*24*3600 + 1} {
			refused(t, e, fmt.Sprint(v), "PUT", "/projects/lab", m{"user_on_demand_period": v}, sft.Invalid, fmt.Sprintf("user_on_demand_period is %d", v))
		}
		refused(t, e, "no accounts at all", "PUT", "/projects/lab", m{"create_server_users": false}, sft.Invalid, "accounts on demand are made by the agents")
		refused(t, e, "a new project of both", "POST", "/projects", m{"name": "x", "create_server_users": false, "user_on_demand_period": 60}, sft.Invalid, "on demand")
		e.Do("PUT", "/projects/lab", m{"create_server_users": false, "user_on_demand_period": 0}, nil)
		refused(t, e, "on demand where none is made", "PUT", "/projects/lab", m{"user_on_demand_period": 60}, sft.Invalid, "on demand")
		e.Do("POST", "/projects", m{"name": "x", "user_on_demand_period": 60}, nil)
		if v := e.Project("x").UserOnDemand; v != 60 {
			t.Errorf("a new project has %d", v)
		}
	})
}

// groupsOf describes who is in which local group.
func groupsOf(st api.State) string {
	var s []string
	for _, g := range st.Groups {
		line := fmt.Sprintf("%s=%d:", g.Name, g.GID)
		for _, u := range st.Users {
			if slices.Contains(u.Groups, g.Name) {
				line += " " + u.Login
			}
		}
		s = append(s, line)
	}
	return strings.Join(s, "; ")
}

func TestGroupsOnServers(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		s := e.Server("lab", testenv.Facts("lab01"))
		e.Grant("lab", "Dev.Ops", false, "ann", "bob")
		e.Do("POST", "/groups", m{"name": "dbas"}, nil)
		e.Do("POST", "/groups/dbas/users", m{"name": "ann"}, nil)
		e.User("carl")
		e.Do("POST", "/groups/dbas/users", m{"name": "carl"}, nil) // has no access
		want := func(what, want string, st api.State) {
			t.Helper()
			if got := groupsOf(st); got != want {
				t.Errorf("%s: the host has %q, want %q", what, got, want)
			}
		}
		want("at first", "", e.State(s))
		// olive, ann, bob and carl and the robot have 63001 to 63005.
		gid := 63006
		dev := fmt.Sprint("sft_dev_ops=", gid, ": ann bob")
		st := heard(t, e, s, "a group", func() {
			e.Do("PUT", "/projects/lab/groups/dev.ops", m{"server_access": true, "create_server_group": true}, nil)
		})
		want("a group by its default name", dev, st)
		var pg sft.ProjectGroup
		e.Do("POST", "/projects/lab/groups", m{"name": "DBAs", "create_server_group": true, "server_group_name": "oracle"}, &pg)
		if pg.ServerGroupName != "oracle" || !pg.CreateServerGroup || pg.Group != "dbas" {
			t.Errorf("the group in the project is %+v", pg)
		}
		dba := fmt.Sprint("oracle=", gid+1, ": ann")
		want("a group that gives no access has those who have it otherwise", dba+"; "+dev, e.State(s))
		var list api.List[sft.ProjectGroup]
		e.Do("GET", "/projects/lab/groups", nil, &list)
		var names []string
		for _, g := range list.List {
			names = append(names, fmt.Sprint(g.Group, " ", g.CreateServerGroup, " ", g.ServerGroupName))
		}
		if !slices.Equal(names, []string{"Dev.Ops true sft_dev_ops", "dbas true oracle"}) {
			t.Errorf("the groups are %q", names)
		}
		var g sft.Group
		e.Do("GET", "/groups/dbas", nil, &g)
		if g.GID != gid+1 {
			t.Errorf("the group is %+v", g)
		}

		// Membership is what agents hear of.
		st = heard(t, e, s, "a member", func() { e.Do("DELETE", "/groups/Dev.Ops/users/bob", nil, nil) })
		want("one left", dba+"; "+strings.Replace(dev, " bob", "", 1), st)
		e.Do("POST", "/groups/Dev.Ops/users", m{"name": "bob"}, nil)
		e.Do("PUT", "/users/bob", m{"status": "DISABLED"}, nil)
		want("one is disabled", dba+"; "+strings.Replace(dev, " bob", "", 1), e.State(s))
		e.Do("PUT", "/users/bob", m{"status": "ACTIVE"}, nil)

		// The gid is the group's in every project, and nobody's after it.
		s2 := e.Server("q", testenv.Facts("q01"))
		e.Do("POST", "/projects/q/groups", m{"name": "Dev.Ops", "server_access": true, "create_server_group": true, "server_group_name": "developers"}, nil)
		want("the same group in another project", fmt.Sprint("developers=", gid, ": ann bob"), e.State(s2))
		e.Do("PUT", "/projects/q/groups/Dev.Ops", m{"server_access": true}, nil)
		want("it is no group there any more", "", e.State(s2))
		e.Do("PUT", "/projects/q/groups/Dev.Ops", m{"server_access": true, "create_server_group": true}, nil)
		want("it is again", fmt.Sprint("sft_dev_ops=", gid, ": ann bob"), e.State(s2))
		e.Do("DELETE", "/projects/q/groups/Dev.Ops", nil, nil)
		e.Do("DELETE", "/groups/Dev.Ops", nil, nil)
		want("it was deleted", fmt.Sprint("oracle=", gid+1, ":"), e.State(s))
		e.Do("POST", "/groups", m{"name": "Dev.Ops"}, nil)
		e.Do("POST", "/projects/q/groups", m{"name": "dev.ops", "create_server_group": true}, nil)
		want("another one of its name", fmt.Sprint("sft_dev_ops=", gid+2, ":"), e.State(s2))
		if u := e.User("dora"); u.GID != gid+3 {
			t.Errorf("the next user has gid %d, want %d", u.GID, gid+3)
		}

		// everyone
		e.Do("POST", "/projects/q/groups", m{"name": "everyone", "server_access": true, "create_server_group": true}, nil)
		want("everyone", fmt.Sprintf("sft_dev_ops=%d:; sft_everyone=%d: ann bob carl dora olive", gid+2, gid+4), e.State(s2))
		st = heard(t, e, s2, "a new user", func() { e.User("eve") })
		want("everyone and one more", fmt.Sprintf("sft_dev_ops=%d:; sft_everyone=%d: ann bob carl dora eve olive", gid+2, gid+4), st)

		e.Do("POST", "/groups", m{"name": strings.Repeat("long", 10)}, nil)
		e.Do("POST", "/projects/q/groups", m{"name": strings.Repeat("long", 10), "create_server_group": true}, &pg)
		if pg.ServerGroupName != "sft_"+strings.Repeat("long", 7) {
			t.Errorf("a long name becomes %s", pg.ServerGroupName)
		}
	})
}

func TestGroupNamesThatCannotBe(t *testing.T) {
	e := testenv.New(t)
	e.Grant("lab", "dev_ops", false, "ann")
	for _, name := range []string{"dev.ops", "DEV-OPS", "x"} {
		e.Do("POST", "/groups", m{"name": name}, nil)
	}
	e.Do("PUT", "/projects/lab/groups/dev_ops", m{"server_access": true, "create_server_group": true}, nil)
	post := func(what string, body m, code sft.Code, says string) {
		t.Helper()
		refused(t, e, what, "POST", "/projects/lab/groups", body, code, says)
	}
	post("a name that another has", m{"name": "dev.ops", "create_server_group": true}, sft.Exists, `the group "dev_ops" is "sft_dev_ops" on the project's servers already`)
	post("a name that another has, given", m{"name": "x", "create_server_group": true, "server_group_name": "sft_dev_ops"}, sft.Exists, "already")
	post("a login name", m{"name": "x", "create_server_group": true, "server_group_name": "ann"}, sft.Exists, "login name of a user")
	post("a name without a group", m{"name": "x", "server_group_name": "x"}, sft.Invalid, "is not to be a group on servers")
	for _, name := range []string{"Dev", "a b", "-x", strings.Repeat("x", 33), "a:b", "sudo", "wheel", "docker", "root", "sft-admin", "systemd-journal", "_x"} {
		post(name, m{"name": "x", "create_server_group": true, "server_group_name": name}, sft.Invalid, "server group name")
	}
	e.Do("POST", "/projects/lab/groups", m{"name": "DEV-OPS", "create_server_group": true}, nil)
	refused(t, e, "a change to a name that another has", "PUT", "/projects/lab/groups/dev-ops", m{"create_server_group": true, "server_group_name": "sft_dev_ops"}, sft.Exists, "already")
	e.Do("PUT", "/projects/lab/groups/dev-ops", m{"create_server_group": true, "server_group_name": "sft_dev-ops"}, nil) // its own
	// A user who comes later has another login name than the group.
	e.Do("POST", "/projects/lab/groups", m{"name": "x", "create_server_group": true, "server_group_name": "zoe"}, nil)
	if u := e.User("zoe"); u.Login != "zoe2" {
		t.Errorf("a user has the login name %s, which is a group's", u.Login)
	}
	// A refusal keeps no gid from others.
	var g sft.Group
	e.Do("GET", "/groups/dev.ops", nil, &g)
	if g.GID != 0 {
		t.Errorf("a group that never was on a server is %+v", g)
	}
}

func sudo(name string, change func(m)) m {
	v := m{"name": name, "opt_no_passwd": true, "structured_commands": []m{{"command": "/usr/bin/systemctl", "command_type": "executable", "args_type": "custom", "args": "restart " + name}}}
	if change != nil {
		change(v)
	}
	return v
}

// rights describes who may run what.
func rights(st api.State) string {
	var s []string
	for _, u := range st.Users {
		if len(u.Sudo) > 0 || u.Admin {
			s = append(s, fmt.Sprintf("%s%t%v", u.Login, u.Admin, u.Sudo))
		}
	}
	var names []string
	for _, e := range st.Entitlements {
		names = append(names, e.Name+"="+e.Commands[0].Args)
	}
	return strings.Join(s, " ") + "; " + strings.Join(names, ", ")
}

func TestSudoEntitlements(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		s := e.Server("lab", testenv.Facts("lab01"))
		e.Grant("lab", "dev", false, "ann", "bob")
		e.Grant("lab", "boss", true, "bob")
		var web, db sft.SudoEntitlement
		events := since(e, func() {
			e.Do("POST", "/entitlements/sudo", sudo("web", func(v m) {
				v["id"], v["created_at"], v["description"], v["opt_run_as"], v["opt_no_exec"], v["add_env"] = "mine", "2020-01-01T00:00:00Z", "the web server", "www-data", true, []string{"LANG"}
				v["structured_commands"] = append(v["structured_commands"].([]m), m{"command": "/opt/web/", "command_type": "directory"}, m{"command": "/bin/true", "command_type": "executable"})
			}), &web)
		})
		want := sft.SudoEntitlement{ID: web.ID, Name: "web", Description: "the web server", NoPasswd: true, NoExec: true, RunAs: "www-data", AddEnv: []string{"LANG"}, CreatedAt: e.Clock.Now(), Commands: []sft.SudoCommand{
			{Command: "/usr/bin/systemctl", Type: "executable", ArgsType: "custom", Args: "restart web"}, {Command: "/opt/web/", Type: "directory", ArgsType: "any"}, {Command: "/bin/true", Type: "executable", ArgsType: "none"}}}
		if d := cmp.Diff(want, web); d != "" || len(web.ID) != 36 {
			t.Errorf("the entitlement (-want +got):\n%s", d)
		}
		detail := map[string]string{"entitlement": web.ID, "run_as": "www-data", "no_exec": "true", "set_env": "false", "add_env": "LANG", "sub_env": "",
			"command_01": "/usr/bin/systemctl restart web", "command_02": "/opt/web/ (any arguments)", "command_03": "/bin/true"}
		if len(events) != 1 || events[0].Kind != audit.SudoCreate || events[0].Target != "web" || !cmp.Equal(events[0].Detail, detail) {
			t.Errorf("it is told as %+v", events)
		}
		e.Do("POST", "/entitlements/sudo", sudo("db", nil), &db)
		refused(t, e, "one of the name", "POST", "/entitlements/sudo", sudo("WEB", nil), sft.Exists, "already")
		var got sft.SudoEntitlement
		e.Do("GET", "/entitlements/sudo/"+web.ID, nil, &got)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("it is stored as (-want +got):\n%s", d)
		}
		var list api.List[sft.SudoEntitlement]
		e.Do("GET", "/entitlements/sudo", nil, &list)
		if len(list.List) != 2 || list.List[0].Name != "web" || list.List[1].Name != "db" {
			t.Errorf("the list is %+v", list)
		}
		is := func(what, want string, st api.State) {
			t.Helper()
			if got := rights(st); got != want {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
		}
		is("nobody has it", "bobtrue[]; ", e.State(s))
		st := heard(t, e, s, "giving two", func() {
			e.Do("PUT", "/projects/lab/groups/dev", m{"server_access": true, "sudo_entitlements": []string{"WEB", "db", "web"}}, nil)
		})
		is("a group has two; an administrator needs none", "annfalse[db web] bobtrue[]; db=restart db, web=restart web", st)
		var groups api.List[sft.ProjectGroup]
		e.Do("GET", "/projects/lab/groups", nil, &groups)
		if !slices.Equal(groups.List[1].SudoEntitlements, []string{"db", "web"}) || groups.List[0].SudoEntitlements != nil {
			t.Errorf("the groups are %+v", groups.List)
		}

		// A change, and a new name.
		st = heard(t, e, s, "a change", func() {
			events = since(e, func() {
				e.Do("PUT", "/entitlements/sudo/"+web.ID, sudo("nginx", func(v m) { v["opt_set_env"] = true }), nil)
			})
		})
		is("it was changed", "annfalse[db nginx] bobtrue[]; db=restart db, nginx=restart nginx", st)
		if now := st.Entitlements[1]; now.ID != web.ID || !now.CreatedAt.Equal(web.CreatedAt) || now.RunAs != "" || !now.SetEnv || now.NoExec || len(now.Commands) != 1 {
			t.Errorf("what was left out is still there: %+v", now)
		}
		if len(events) != 1 || events[0].Kind != audit.SudoUpdate || events[0].Detail["run_as"] != "root" || events[0].Detail["set_env"] != "true" {
			t.Errorf("it is told as %+v", events)
		}
		refused(t, e, "another's name", "PUT", "/entitlements/sudo/"+web.ID, sudo("DB", nil), sft.Exists, "already")
		refused(t, e, "one that is not there", "PUT", "/entitlements/sudo/x", sudo("x", nil), sft.NotFound, "")

		// In use, it stays.
		refused(t, e, "deleting one that is in use", "DELETE", "/entitlements/sudo/"+web.ID, nil, sft.Exists, `groups still have the sudo entitlement "nginx", in: lab`)
		e.Do("PUT", "/projects/lab/groups/dev", m{"server_access": false, "sudo_entitlements": []string{"nginx"}}, nil)
		e.Do("POST", "/projects/lab/groups", m{"name": "everyone", "server_access": true}, nil)
		is("a group without access gives nothing", "bobtrue[]; ", e.State(s))
		refused(t, e, "deleting one that a group without access has", "DELETE", "/entitlements/sudo/"+web.ID, nil, sft.Exists, "lab")
		e.Do("PUT", "/projects/lab/groups/dev", m{"server_access": true, "server_admin": true, "sudo_entitlements": []string{"nginx"}}, nil)
		is("a group of administrators", "anntrue[] bobtrue[]; nginx=restart nginx", e.State(s))
		st = heard(t, e, s, "taking it away", func() { e.Do("PUT", "/projects/lab/groups/dev", m{"server_access": true}, nil) })
		is("what PUT leaves out is taken away", "bobtrue[]; ", st)
		events = since(e, func() { e.Do("DELETE", "/entitlements/sudo/"+web.ID, nil, nil) })
		if told(events) != "entitlement_sudo.remove success" || events[0].Target != "nginx" {
			t.Errorf("it is told as %+v", events)
		}
		wantCode(t, "a deleted one", e.Service.Do(t.Context(), "GET", base+"/entitlements/sudo/"+web.ID, nil, nil), sft.NotFound)

		for _, tt := range []struct {
			what string
			give any
			code sft.Code
		}{
			{"one that was deleted", []string{"nginx"}, sft.NotFound}, {"one by its id", []string{db.ID}, sft.NotFound}, {"no name", []string{""}, sft.Invalid},
			{"33", slices.Repeat([]string{"db"}, 33), sft.Invalid}, {"a text", "db", sft.Invalid},
		} {
			refused(t, e, tt.what, "PUT", "/projects/lab/groups/dev", m{"server_access": true, "sudo_entitlements": tt.give}, tt.code, "")
		}
		// The group, the project or the project's group goes: it is free again.
		e.Do("PUT", "/projects/lab/groups/dev", m{"server_access": true, "sudo_entitlements": []string{"db"}}, nil)
		e.Do("POST", "/projects", m{"name": "q"}, nil)
		e.Do("POST", "/projects/q/groups", m{"name": "dev", "sudo_entitlements": []string{"db"}}, nil)
		refused(t, e, "deleting one of two projects", "DELETE", "/entitlements/sudo/"+db.ID, nil, sft.Exists, "in: lab, q")
		events = since(e, func() { e.Do("DELETE", "/projects/q", nil, nil) })
		if i := slices.IndexFunc(events, func(v audit.Event) bool { return v.Kind == audit.SudoDetach }); len(events) != 2 || i < 0 || events[i].Target != "db" || events[i].Project != "q" || events[i].Detail["group"] != "dev" {
			t.Errorf("that a project took it along is told as %+v", events)
		}
		st = heard(t, e, s, "deleting the group", func() { e.Do("DELETE", "/groups/dev", nil, nil) })
		is("the group is gone", "bobtrue[]; ", st)
		e.Do("DELETE", "/entitlements/sudo/"+db.ID, nil, nil)
	})
}

// What could be read by sudo as something else is not taken; package sft has
// the whole table.
func TestSudoEntitlementsThatCannotBe(t *testing.T) {
	e := testenv.New(t)
	var ok sft.SudoEntitlement
	e.Do("POST", "/entitlements/sudo", sudo("ok", nil), &ok)
	command := func(c m) func(m) { return func(v m) { v["structured_commands"] = []m{c} } }
	for what, change := range map[string]func(m){
		"a raw line":                   command(m{"command": "ALL", "command_type": "raw"}),
		"a wildcard":                   command(m{"command": "/bin/*", "command_type": "executable"}),
		"a second command in the args": command(m{"command": "/bin/ls", "command_type": "executable", "args_type": "custom", "args": "x, /bin/sh"}),
		"a line in the args":           command(m{"command": "/bin/ls", "command_type": "executable", "args_type": "custom", "args": "x\nann ALL=(ALL) NOPASSWD: ALL"}),
		"no command":                   func(v m) { delete(v, "structured_commands") },
		"a password":                   func(v m) { delete(v, "opt_no_passwd") },
		"LD_PRELOAD":                   func(v m) { v["add_env"] = []string{"LD_PRELOAD"} },
		"run_as all":                   func(v m) { v["opt_run_as"] = "ALL" },
		"no name":                      func(v m) { v["name"] = "" },
	} {
		refused(t, e, what, "POST", "/entitlements/sudo", sudo("bad", change), sft.Invalid, "")
		refused(t, e, what, "PUT", "/entitlements/sudo/"+ok.ID, sudo("ok", change), sft.Invalid, "")
	}
}
