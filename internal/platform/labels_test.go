package platform_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/platform"
	"sft/internal/testenv"
)

// labelsOf are the labels of a server, as the API has them.
func labelsOf(e *testenv.Env, project, id string) map[string]string {
	var s sft.Server
	e.Do("GET", "/projects/"+project+"/servers/"+id, nil, &s)
	return s.Labels
}

// haveAccounts are who has an account, with "!" behind administrators.
func haveAccounts(st api.State) string {
	var names []string
	for _, u := range st.Users {
		name := u.Login
		if u.Admin {
			name += "!"
		}
		names = append(names, name+strings.Join(u.Sudo, "+"))
	}
	return strings.Join(names, " ")
}

func TestLabels(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Project("lab")
		f := testenv.Facts("lab01")
		f.Labels = m2{"env": "prod", "sftd.role": "web"}
		var s *testenv.Server
		events := since(e, func() { s = e.Server("lab", f) })
		if events[1].Kind != audit.ServerEnroll || events[1].Detail["labels"] != "sftd.env=prod sftd.role=web" {
			t.Errorf("enrolling with labels is told as %+v", events)
		}
		system := m2{"system.managed": "true", "system.os_type": "linux"}
		want := func(what string, own ...m2) {
			t.Helper()
			all := maps.Clone(system)
			for _, l := range own {
				maps.Copy(all, l)
			}
			if got := labelsOf(e, "lab", s.ID); !maps.Equal(got, all) {
				t.Errorf("%s: the labels are %v, want %v", what, got, all)
			}
		}
		host := m2{"sftd.env": "prod", "sftd.role": "web"}
		want("at first", host)

		// Administrators' take the place of administrators' alone.
		events = since(e, func() { e.Do("PUT", "/servers/"+s.ID, m{"labels": m{"env": "lab", "api.example.com/tier": "1"}}, nil) })
		want("given by an administrator", host, m2{"api.env": "lab", "api.example.com/tier": "1"})
		if told(events) != "server_labels.update success" || events[0].Target != "lab01" || fmt.Sprint(events[0].Detail) != fmt.Sprint(m2{"server": s.ID, "set": "api.env=lab api.example.com/tier=1"}) {
			t.Errorf("it is told as %+v", events)
		}
		events = since(e, func() {
			e.Do("PUT", "/projects/lab/servers/"+s.ID, m{"labels": m{"env": "x"}, "key_conflict": false}, nil)
		})
		want("given again", host, m2{"api.env": "x"})
		if told(events) != "server_labels.update success, server.update success" || events[0].Detail["removed"] != "api.env=lab api.example.com/tier=1" || events[0].Detail["set"] != "api.env=x" {
			t.Errorf("it is told as %+v", events)
		}

		// A host changes its own words, and no others.
		s.Facts.Labels = m2{"env": "lab"}
		events = since(e, func() { e.Report(s) })
		want("said by the host", m2{"sftd.env": "lab", "api.env": "x"})
		if told(events) != "server_creds.issue success, server_labels.update success" || events[1].Actor.Kind != "server" || events[1].Detail["removed"] != "sftd.env=prod sftd.role=web" || events[1].Detail["set"] != "sftd.env=lab" {
			t.Errorf("it is told as %+v", events)
		}
		if events = since(e, func() { e.Report(s) }); strings.Contains(told(events), "server_labels") {
			t.Errorf("a report without news is told as %s", told(events))
		}
		for _, bad := range []m2{{"api.env": "prod"}, {"system.managed": "false"}, {"env": "a b"}, {"": "x"}, {"env": "1", "sftd.env": "2"}, many(sft.MaxLabels + 1)} {
			facts := s.Facts
			facts.Labels = bad
			wantCode(t, fmt.Sprint(bad), s.Do(t.Context(), "POST", "/v1/agent/report", api.ReportRequest{Facts: facts}, &api.ReportReply{}), sft.Invalid)
		}
		for _, bad := range []struct {
			labels m2
			says   string
		}{
			{m2{"sftd.env": "prod"}, "is of another source"}, {m2{"system.os_type": "linux"}, "is of another source"}, {m2{"-x": "y"}, "cannot be used"},
			{m2{"x": "y z"}, "cannot have the value"}, {m2{strings.Repeat("x", 60): ""}, "cannot be used"}, {many(sft.MaxLabels + 1), "there are 51 labels"},
			{m2{"x": "1", "api.x": "1"}, "is there twice"},
		} {
			refused(t, e, fmt.Sprint(bad.labels), "PUT", "/servers/"+s.ID, m{"labels": bad.labels}, sft.Invalid, bad.says)
		}
		refused(t, e, "a server that is not there", "PUT", "/servers/nobody", m{"labels": m{}}, sft.NotFound, "no server")
		want("after all that was refused", m2{"sftd.env": "lab", "api.env": "x"})
		s.Facts.Labels = many(sft.MaxLabels)
		e.Report(s)
		e.Do("PUT", "/servers/"+s.ID, m{"labels": many(sft.MaxLabels)}, nil) // a host leaves the administrators their room
		e.Do("PUT", "/servers/"+s.ID, m{"labels": m{}}, nil)
		if n := len(labelsOf(e, "lab", s.ID)); n != sft.MaxLabels+2 {
			t.Errorf("%d labels are left", n)
		}
	})
}

// Who sets labels lets others in by them, and does not get anything themselves.
func TestAServerAdmin(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant("lab", "dev", false, "lee", "bob")
		e.Grant("lab", "sre", true, "lee")
		e.Do("PUT", "/projects/lab/groups/dev", m{"server_access": true, "servers_selector": "env=dev"}, nil)
		e.Do("PUT", "/projects/lab/groups/sre", m{"server_access": true, "server_admin": true, "servers_selector": "env=prod"}, nil)
		e.Do("PUT", "/groups/everyone", m{"roles": []string{}}, nil)
		e.Do("POST", "/groups", m{"name": "labellers", "roles": []string{"server_admin"}}, nil)
		e.Do("POST", "/groups/labellers/users", m{"name": "lee"}, nil)
		s := e.Server("lab", testenv.Facts("lab01"))
		lee, bob := e.Client("lee"), e.Client("bob")
		put := func(what string, as *testenv.Client, labels m, code sft.Code) {
			t.Helper()
			wantCode(t, what, as.Do(t.Context(), "PUT", base+"/servers/"+s.ID, m{"labels": labels}, nil), code)
		}
		put("labels without the role", bob, m{"env": "x"}, sft.Denied)
		events := since(e, func() { put("labels that give nothing", lee, m{"env": "x"}, "") })
		if told(events) != "server_labels.update success" || events[0].Actor.Name != "lee" || events[0].Detail["set"] != "api.env=x" {
			t.Errorf("they are told as %+v", events)
		}
		put("labels that give access", lee, m{"env": "dev"}, sft.Denied)
		put("labels that give admin rights", lee, m{"env": "prod"}, sft.Denied)
		if err := lee.Do(t.Context(), "PUT", base+"/servers/"+s.ID, m{"labels": m{"env": "prod"}}, nil); err == nil || !strings.Contains(err.Error(), `user "lee" would get more on server "lab01", as a member of group "sre"`) {
			t.Errorf("the refusal says: %v", err)
		}
		if labels := labelsOf(e, "lab", s.ID); labels["api.env"] != "x" {
			t.Errorf("after all refusals the labels are %v", labels)
		}
		e.Do("DELETE", "/groups/dev/users/lee", nil, nil)
		put("labels that give others access", lee, m{"env": "dev"}, "")
		if _, _, err := e.Connect(bob, "lab01"); err != nil {
			t.Errorf("bob, by lee's label: %v", err)
		}
		_, _, err := e.Connect(lee, "lab01")
		wantCode(t, "lee, by their own label", err, sft.NotFound)
		put("labels by an administrator, who may", e.Client(testenv.Owner), m{"env": "prod"}, "")
		put("and kept as they are", lee, m{"env": "prod", "x": "y"}, "")

		// Records without an agent: the rule is the same when they are made.
		var u sft.Server
		at := base + "/projects/lab/unmanaged_servers"
		wantCode(t, "an unmanaged one without the role", bob.Do(t.Context(), "POST", at, m{"hostname": "jump"}, nil), sft.Denied)
		refused(t, e, "labels that cannot be", "POST", "/projects/lab/unmanaged_servers", m{"hostname": "jump", "labels": m{"sftd.x": "y"}}, sft.Invalid, "is of another source")
		refused(t, e, "too many labels", "POST", "/projects/lab/unmanaged_servers", m{"hostname": "jump", "labels": many(sft.MaxLabels + 1)}, sft.Invalid, "there are 51 labels")
		refusedTo := func(what string, labels m) {
			t.Helper()
			var err error
			if events := since(e, func() { err = lee.Do(t.Context(), "POST", at, m{"hostname": "jump", "labels": labels}, nil) }); len(events) != 0 {
				t.Errorf("%s: it is told as %+v", what, events)
			}
			wantCode(t, what, err, sft.Denied)
			if err != nil && !strings.Contains(err.Error(), `user "lee" would get more on server "jump", as a member of group "sre"`) {
				t.Errorf("%s: the refusal says: %v", what, err)
			}
		}
		refusedTo("an unmanaged one of which lee would be an administrator", m{"env": "prod", "tier": "1"})
		e.Do("DELETE", "/groups/sre/users/lee", nil, nil)
		events = since(e, func() {
			wantCode(t, "an unmanaged one", lee.Do(t.Context(), "POST", at, m{"hostname": "jump", "labels": m{"env": "prod", "api.tier": "1"}}, &u), "")
		})
		want := m2{"system.managed": "false", "api.env": "prod", "api.tier": "1"}
		if got := labelsOf(e, "lab", u.ID); !maps.Equal(got, want) || !maps.Equal(u.Labels, want) || events[0].Detail["labels"] != "api.env=prod api.tier=1" {
			t.Errorf("its labels are %v, told as %v and in %+v, want %v", got, u.Labels, events, want)
		}
		var found api.List[sft.Server]
		e.Do("GET", "/servers?selector=tier%3D1", nil, &found)
		if len(found.List) != 1 || found.List[0].ID != u.ID {
			t.Errorf("by its label these are found: %v", found.List)
		}
		wantCode(t, "its labels", lee.Do(t.Context(), "PUT", base+"/projects/lab/servers/"+u.ID, m{"labels": m{"env": "dev"}}, nil), "")
		if got := labelsOf(e, "lab", u.ID); !maps.Equal(got, m2{"system.managed": "false", "api.env": "dev"}) {
			t.Errorf("its labels are %v", got)
		}
		e.Do("POST", "/groups/sre/users", m{"name": "lee"}, nil)
		wantCode(t, "labels of it that would let lee in", lee.Do(t.Context(), "PUT", base+"/servers/"+u.ID, m{"labels": m{"env": "prod"}}, nil), sft.Denied)
		// Who keeps the records sees them: a client lists what its person reaches,
		// a service user with the role lists all.
		var one sft.Server
		wantCode(t, "its record", lee.Do(t.Context(), "GET", base+"/projects/lab/servers/"+u.ID, nil, &one), "")
		wantCode(t, "the record of one that lee does not reach", lee.Do(t.Context(), "GET", base+"/projects/lab/servers/"+s.ID, nil, &one), "")
		wantCode(t, "a list of those without an agent", lee.Do(t.Context(), "GET", at, nil, &found), "")
		if len(found.List) != 1 || one.ID != s.ID {
			t.Errorf("the list is %+v, and the server %+v", found.List, one)
		}
		for _, path := range []string{at, base + "/projects/lab/servers/" + u.ID, base + "/projects/lab/servers"} {
			want := sft.Denied
			if strings.HasSuffix(path, "/servers") && path != at {
				want = "" // bob reaches some
			}
			wantCode(t, path+" without a role", bob.Do(t.Context(), "GET", path, nil, &api.List[sft.Server]{}), want)
		}
		keeper := keeperOf(t, e, "keeper")
		wantCode(t, "a service user's list without the role", keeper.Do(t.Context(), "GET", base+"/projects/lab/servers", nil, &found), sft.NotFound)
		e.Do("POST", "/groups/labellers/users", m{"name": "keeper"}, nil)
		for _, path := range []string{"/servers", "/projects/lab/servers"} {
			wantCode(t, "a service user's list", keeper.Do(t.Context(), "GET", base+path, nil, &found), "")
			if len(found.List) != 2 {
				t.Errorf("%s lists %+v", path, found.List)
			}
		}
		wantCode(t, "deleting it", lee.Do(t.Context(), "DELETE", at+"/"+u.ID, nil, nil), "")
		wantCode(t, "deleting a server", lee.Do(t.Context(), "DELETE", base+"/projects/lab/servers/"+s.ID, nil, nil), "")
	})
}

// keeperOf is a service user without a group.
func keeperOf(t *testing.T, e *testenv.Env, name string) *testenv.Bearer {
	t.Helper()
	e.Do("POST", "/service_users", m{"name": name}, nil)
	var key platform.KeyReply
	e.Do("POST", "/service_users/"+name+"/keys", nil, &key)
	return e.Bearer(key.ID, key.Secret)
}

type m2 = map[string]string

func many(n int) m2 {
	l := m2{}
	for i := range n {
		l[fmt.Sprint("l", i)] = ""
	}
	return l
}

// Wherever access counts, it goes by the labels, and it goes when they do.
func TestAccessByLabels(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant("lab", "dev", false, "ann", "bob")
		e.Grant("lab", "sre", true, "ann")
		e.Do("POST", "/entitlements/sudo", m{"name": "logs", "opt_no_passwd": true, "structured_commands": []m{{"command": "/bin/ls", "command_type": "executable"}}}, nil)
		place := func(group string, body m) {
			t.Helper()
			body["server_access"] = true
			e.Do("PUT", "/projects/lab/groups/"+group, body, nil)
		}
		devs := func(selector string) m {
			return m{"servers_selector": selector, "create_server_group": true, "server_group_name": "sft_dev", "sudo_entitlements": []string{"logs"}}
		}
		place("dev", devs("env=lab"))
		place("sre", m{"server_admin": true, "servers_selector": "env in (prod,stage)"})
		one := testenv.SSHFacts(t, "one")
		one.Labels = m2{"env": "lab"}
		s1, s2 := e.Server("lab", one), e.Server("lab", testenv.SSHFacts(t, "two"))
		label := func(s *testenv.Server, labels m) func() {
			return func() { e.Do("PUT", "/servers/"+s.ID, m{"labels": labels}, nil) }
		}
		jump := unmanaged(t, e, "lab", m{"hostname": "jump", "port": 22})
		ann, bob := e.Client("ann"), e.Client("bob")
		names := func(c *testenv.Client, query string) string {
			t.Helper()
			var l api.List[sft.Server]
			if err := c.Do(t.Context(), "GET", base+"/servers"+query, nil, &l); err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, s := range l.List {
				names = append(names, s.Name())
			}
			return strings.Join(names, " ")
		}
		want := func(what, got, want string) {
			t.Helper()
			if got != want {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
		}

		// What the host says of itself is not what the administrators asked for.
		want("accounts by the host's word", haveAccounts(e.State(s1)), "")
		want("bob's servers by the host's word", names(bob, ""), "")
		_, _, err := e.Connect(bob, "one")
		wantCode(t, "the host's word", err, sft.Denied)
		if err == nil || !strings.Contains(err.Error(), "are for other servers") {
			t.Errorf("the refusal says %v", err)
		}

		// One server is labelled, and its agent alone hears of it.
		other := wake(t, e, s2, e.State(s2).Revision)
		st := heard(t, e, s1, "a label", label(s1, m{"env": "lab"}))
		want("accounts", haveAccounts(st), "annlogs boblogs")
		want("local groups", groupsOf(st), fmt.Sprintf("sft_dev=%d: ann bob", st.Groups[0].GID))
		if len(st.Entitlements) != 1 {
			t.Errorf("the host has the entitlements %+v", st.Entitlements)
		}
		st = heard(t, e, s2, "a label of the other", func() {
			label(s2, m{"env": "prod"})()
			if st, err := other(); err != nil || haveAccounts(st) != "ann!" {
				t.Errorf("the agent that waited hears of %q, %v", haveAccounts(st), err)
			}
			label(s2, m{"env": "stage"})()
		})
		if len(st.Groups)+len(st.Entitlements) != 0 {
			t.Errorf("a host without the group has %+v, %+v", st.Groups, st.Entitlements)
		}
		want("accounts of the project", serverUsers(e), "ann! bob")
		want("bob's", names(bob, ""), "one")
		want("ann's", names(ann, ""), "one two")
		want("ann's, filtered", names(ann, "?selector=env%3Dstage"), "two")
		want("by the host's word, which is enough for a list", names(ann, "?selector=sftd.env"), "one")
		want("by whichever's word", names(ann, "?selector=env%3Dlab"), "one")
		want("by what it is not", names(ann, "?selector=env!%3Dlab"), "two")
		want("by what the platform knows", names(ann, "?selector=system.os_type%3Dlinux,!api.x"), "one two")
		want("bob's, filtered by what he may not see", names(bob, "?selector=env%3Dstage"), "")
		wantCode(t, "a filter that cannot be", ann.Do(t.Context(), "GET", base+"/servers?selector=a+in", nil, nil), sft.Invalid)

		// The way: targets and hops, enrolled and not.
		resolves := func(c *testenv.Client, target string, code sft.Code) {
			t.Helper()
			wantCode(t, c.User+" resolves "+target, c.Do(t.Context(), "GET", base+"/resolve?target="+target, nil, &api.ResolveReply{}), code)
		}
		goes := func(c *testenv.Client, target string, code sft.Code, via ...string) {
			t.Helper()
			_, _, err := e.ConnectSSH(c, target, via...)
			wantCode(t, fmt.Sprint(c.User, " to ", target, " through ", via), err, code)
		}
		resolves(bob, "one", "")
		resolves(bob, "two", sft.Denied)
		goes(ann, "one", "", "two")
		goes(bob, "one", sft.Denied, "two")
		goes(bob, "one", sft.Denied, "jump")
		e.Do("PUT", "/servers/"+jump.ID, m{"labels": m{"env": "lab"}}, nil)
		goes(bob, "one", "", "jump")
		s1.Facts.Bastion = "two"
		e.Report(s1)
		goes(ann, "one", "")
		goes(bob, "one", sft.Denied)
		s1.Facts.Bastion = ""
		e.Report(s1)

		// A selector changes for all at once, and is told.
		var events []audit.Event
		st = heard(t, e, s1, "a selector", func() { events = since(e, func() { place("dev", devs("sftd.env=prod")) }) })
		want("accounts after the selector has changed", haveAccounts(st), "")
		if told(events) != "project.add_group success, project_group_selector.update success" || events[1].Detail["was"] != "env=lab" || events[1].Detail["servers_selector"] != "sftd.env=prod" || events[1].Detail["by_host"] != "sftd.env" {
			t.Errorf("a selector is told as %+v", events)
		}
		// Now it goes by the host's word, because an administrator said so.
		s1.Facts.Labels = m2{"env": "prod"}
		want("by the host's word that was asked for", haveAccounts(heard(t, e, s1, "the host's word", func() { e.Report(s1) })), "annlogs boblogs")
		var l api.List[sft.ProjectGroup]
		e.Do("GET", "/projects/lab/groups", nil, &l)
		if i := slices.IndexFunc(l.List, func(g sft.ProjectGroup) bool { return g.Group == "dev" }); i < 0 || l.List[i].ServersSelector != "sftd.env=prod" {
			t.Errorf("the groups are %+v", l.List)
		}
		for selector, says := range (m2{"env in prod": "unable to parse requirement", "a,b,c,d,e,f,g,h,i,j,k": "11 requirements"}) {
			refused(t, e, selector, "PUT", "/projects/lab/groups/dev", m{"servers_selector": selector}, sft.Invalid, says)
		}

		// A deleted server is found by no label.
		e.Do("DELETE", "/projects/lab/servers/"+s2.ID, nil, nil)
		want("ann's in the end", names(ann, "?selector=env"), "one")
	})
}

func serverUsers(e *testenv.Env) string {
	var l api.List[sft.ServerUser]
	e.Do("GET", "/projects/lab/server_users", nil, &l)
	var names []string
	for _, u := range l.List {
		if u.Admin {
			u.Login += "!"
		}
		names = append(names, u.Login)
	}
	return strings.Join(names, " ")
}
