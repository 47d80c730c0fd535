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
	"sft/internal/audit"
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
			e.Do("PUT", "/projects/lab", map[string]any{"max_session_seconds": e.Project("lab").MaxSession - 1}, nil)
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

// What an agent tells late is told of the project that it was in.
func TestEventsFromBeforeAMove(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant(testenv.Project, "dev", false, "ann")
		e.Project("lab")
		s, c := e.Server(testenv.Project, testenv.Facts("web01")), e.Client("ann")
		way, _, err := e.Connect(c, "web01")
		if err != nil {
			t.Fatal(err)
		}
		began := e.Clock.Now()
		move := func(from, to string) {
			e.Clock.Advance(10 * time.Minute)
			e.Do("PUT", "/projects/"+from+"/servers/"+s.ID, map[string]any{"project_name": to}, nil)
		}
		move(testenv.Project, "lab")
		move("lab", testenv.Project)
		move(testenv.Project, "lab")
		var list []api.Event
		for i, ev := range []api.Event{
			{Kind: "session.end", Time: began.Add(5 * time.Hour), Session: way.SessionID}, // by whatever clock
			{Kind: "account.created", Time: began},
			{Kind: "account.disabled", Time: began.Add(10 * time.Minute)},
			{Kind: "account.created", Time: began.Add(20*time.Minute + time.Second)},
			{Kind: "session.end", Time: began.Add(30 * time.Minute), Session: "of nobody"},
		} {
			ev.ID, ev.Seq, ev.Outcome = audit.NewID(), int64(i+1), audit.Success
			list = append(list, ev)
		}
		var got []string
		for _, ev := range since(e, func() {
			wantCode(t, "sending them", s.Do(t.Context(), "POST", "/v1/agent/events", api.EventsRequest{Events: list}, nil), "")
			wantCode(t, "the client's", sendClaims(t, c.Client, claim(way.SessionID)), "")
		}) {
			got = append(got, string(ev.Kind)+" "+ev.Project)
		}
		want := []string{"session.end prod", "account.created prod", "account.disabled lab", "account.created prod", "session.end lab", "session.refused prod"}
		if !slices.Equal(got, want) {
			t.Errorf("they are told as\n%q, want\n%q", got, want)
		}
	})
}

// What an agent has of the project before does not count as what it is to have
// of the new one.
func TestRevisionsOfTwoProjects(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Project("lab")
		r := rotation{names: names{t: t, e: e}, server: e.Server("lab", testenv.Facts("web01"))}
		for range 20 {
			e.Do("PUT", "/projects/lab", map[string]any{"max_session_seconds": 600}, nil)
		}
		has := e.State(r.server).Revision
		e.Do("POST", "/projects/prod/authorities", map[string]any{"kinds": []string{"access"}}, nil)
		e.Do("PUT", "/projects/lab/servers/"+r.server.ID, map[string]any{"project_name": testenv.Project}, nil)
		const waits = "access active, access next waits for 1, host active, ssh_host active, ssh_user active"
		r.is("after the move", r.list(), waits)
		// It asks by what it has, as it does until the answer is there.
		if err := r.server.Do(t.Context(), "GET", fmt.Sprint("/v1/agent/state?after=", has), nil, nil); err != nil {
			t.Fatal(err)
		}
		r.is("when it has asked once more", r.list(), waits)
		r.ack(r.server)
		r.is("when it has it", r.list(), "access active, access next, host active, ssh_host active, ssh_user active")
	})
}

// A server that is moved back before its agent heard of it goes on with the
// broker's key that it has; one that got a certificate elsewhere does not.
func TestAServerIsMovedBack(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		for _, name := range []string{"lab", "edge"} {
			e.Project(name)
		}
		s, c := e.Server(testenv.Project, testenv.Facts("web01")), e.Client(testenv.Owner)
		move := func(from, to string) {
			t.Helper()
			e.Do("PUT", "/projects/"+from+"/servers/"+s.ID, map[string]any{"project_name": to}, nil)
		}
		connects := func(what string, want sft.Code) {
			t.Helper()
			_, _, err := e.Connect(c, testenv.Project+"/"+s.ID)
			wantCode(t, what, err, want)
		}
		connects("before", "")
		before := e.State(s).Revision
		move(testenv.Project, "lab")
		move("lab", "edge")
		move("edge", testenv.Project)
		connects("back at once", "")
		if st := e.State(s); st.Revision <= before {
			t.Error("its agent does not hear of the sessions that ended")
		}
		move(testenv.Project, "lab")
		e.Report(s)
		move("lab", testenv.Project)
		connects("back with a certificate of another project", sft.Unavailable)
		e.Report(s)
		connects("with one of this", "")
	})
}
