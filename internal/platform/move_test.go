package platform_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/testenv"
)

// A server that is moved is the other project's from then on, whole: names,
// people, authorities; and nobody gets in on what was issued before.
func TestAServerIsMoved(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		ctx := t.Context()
		e.Grant(testenv.Project, "dev", false, "ann", "both")
		e.Grant("lab", "lab", false, "bob", "both")
		e.Project("crowded")
		f := testenv.Facts("web01")
		f.AltNames = []string{"intranet"}
		s := e.Server(testenv.Project, f)
		heir := testenv.Facts("web02")
		heir.AltNames = []string{"intranet"}
		second := e.Server(testenv.Project, heir) // claims what the first one holds
		rival := testenv.Facts("lab01")
		rival.AltNames = []string{"web01"}
		e.Server("lab", rival)
		c := e.Client("both")
		way, _, err := e.Connect(c, testenv.Project+"/web01")
		if err != nil {
			t.Fatal(err)
		}
		path := func(project string) string { return base + "/projects/" + project + "/servers/" + s.ID }
		move := func(project, to string) error {
			return e.Service.Do(ctx, "PUT", path(project), map[string]any{"project_name": to}, nil)
		}
		before := e.State(s)
		chain := s.Certificate

		// What is refused changes nothing.
		wantCode(t, "to a project that is not there", move(testenv.Project, "nothing"), sft.NotFound)
		wantCode(t, "by somebody who may not", e.Client("ann").Do(ctx, "PUT", path(testenv.Project), map[string]string{"project_name": "lab"}, nil), sft.Denied)
		wantCode(t, "with something else", e.Service.Do(ctx, "PUT", path(testenv.Project), map[string]any{"project_name": "lab", "key_conflict": false}, nil), sft.Invalid)
		e.Do("POST", "/service_users", map[string]string{"name": "ci"}, nil)
		var b sft.ServiceBinding
		e.Do("POST", "/service_users/ci/bindings", map[string]string{"server": s.ID, "account": "deploy"}, &b)
		wantCode(t, "with a bound account", move(testenv.Project, "lab"), sft.Exists)
		e.Do("DELETE", "/service_users/ci/bindings/"+b.ID, nil, nil)
		var u sft.Server
		e.Do("POST", "/projects/prod/unmanaged_servers", map[string]any{"hostname": "jump"}, &u)
		wantCode(t, "one without an agent", e.Service.Do(ctx, "PUT", base+"/projects/prod/servers/"+u.ID, map[string]string{"project_name": "lab"}, nil), sft.Invalid)
		wantCode(t, "to where it is", move(testenv.Project, "PROD"), "")
		if _, _, err := e.Connect(c, testenv.Project+"/web01"); err != nil {
			t.Errorf("it was not moved, and: %v", err)
		}

		// The two projects may have come to the same revision by themselves.
		for e.Project("lab").Revision < e.Project(testenv.Project).Revision {
			e.Do("PUT", "/projects/lab", map[string]any{"max_session_seconds": 600}, nil)
		}
		old := e.Project(testenv.Project).Revision
		events := since(e, func() { wantCode(t, "the move", move(testenv.Project, "LAB"), "") })
		if d := events[0].Detail; told(events) != "server.reassign success, server.name_conflict refused" || d["server"] != s.ID || d["project"] != "lab" || d["was"] != testenv.Project {
			t.Errorf("it is told as %+v", events)
		}
		soon, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		var st api.State
		if err := s.Do(soon, "GET", fmt.Sprint("/v1/agent/state?after=", old), nil, &st); err != nil {
			t.Fatalf("the agent does not hear of it: %v", err)
		}
		var names []string
		for _, u := range st.Users {
			names = append(names, u.Name)
		}
		if slices.Sort(names); st.Settings.Project != "lab" || !slices.Equal(names, []string{"bob", "both"}) || !slices.Contains(st.EndedSessions, way.SessionID) || st.Revision <= old {
			t.Errorf("the state is of %s at %d with %q, ended %q", st.Settings.Project, st.Revision, names, st.EndedSessions)
		}
		for what, list := range map[string][2][][]byte{"access CA": {before.AccessCAs, st.AccessCAs}, "host CA": {before.HostCAs, st.HostCAs}} {
			if len(list[1]) == 0 || slices.ContainsFunc(list[1], func(der []byte) bool {
				return slices.ContainsFunc(list[0], func(o []byte) bool { return bytes.Equal(o, der) })
			}) {
				t.Errorf("the %s is that of the project before, or none", what)
			}
		}

		// Until the host has a certificate of its new project, nobody is sent there.
		wantCode(t, "in the project before", e.Service.Do(ctx, "GET", path(testenv.Project), nil, nil), sft.NotFound)
		_, _, err = e.Connect(c, testenv.Project+"/web01")
		wantCode(t, "connecting in the project before", err, sft.NotFound)
		_, _, err = e.Connect(c, "lab/"+s.ID)
		wantCode(t, "connecting before it has a certificate", err, sft.Unavailable)
		e.Report(s)
		if bytes.Equal(chain[len(chain)-1], s.Certificate[len(s.Certificate)-1]) && len(chain) > 1 {
			t.Error("its certificate is by the project before")
		}
		reply, _, err := e.Connect(c, "lab/"+s.ID)
		if err != nil {
			t.Fatal(err)
		}
		if h := reply.Route[len(reply.Route)-1]; !slices.EqualFunc(h.HostCAs, st.HostCAs, bytes.Equal) {
			t.Error("clients are told of another host CA than the agent")
		}
		_, _, err = e.Connect(e.Client("ann"), "lab/"+s.ID)
		wantCode(t, "somebody of the project before", err, sft.Denied)

		// Names: the host's own is another's here, and one that it held is its heir's.
		var v sft.Server
		e.Do("GET", "/projects/lab/servers/"+s.ID, nil, &v)
		if !slices.Equal(v.NameConflict, []string{"web01"}) || v.Project != "lab" {
			t.Errorf("it is %+v", v)
		}
		var next sft.Server
		e.Do("GET", "/projects/prod/servers/"+second.ID, nil, &next)
		if len(next.NameConflict) != 0 {
			t.Errorf("the name that is free is not given on: %q", next.NameConflict)
		}
	})
}
