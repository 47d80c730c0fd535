package platform_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/testenv"
)

// A names test looks at who holds which name in a project.
type names struct {
	t *testing.T
	e *testenv.Env
}

// pass lets time go by, past the end of the service user's token.
func (n names) pass(d time.Duration) {
	n.e.Clock.Advance(d)
	n.e.Service = n.e.Bearer(n.e.Init.Key.ID, n.e.Init.Key.Secret)
}

func (n names) server(s *testenv.Server) (v sft.Server) {
	n.t.Helper()
	n.e.Do("GET", "/projects/prod/servers/"+s.ID, nil, &v)
	return v
}

// leads checks that a name leads a person to a server, or, without one, to
// what that code says.
func (n names) leads(name string, to *testenv.Server, want sft.Code) {
	n.t.Helper()
	c := n.e.Client("ann")
	var r api.ResolveReply
	err := c.Do(n.t.Context(), "GET", base+"/resolve?target="+name, nil, &r)
	wantCode(n.t, name, err, want)
	if to != nil && r.Server.ID != to.ID {
		n.t.Errorf("%s leads to %s %s, want %s", name, r.Server.ID, r.Server.AccessAddress, to.ID)
	}
}

func facts(name, address string) api.Facts {
	f := testenv.Facts(name)
	f.AccessAddress = address
	return f
}

// Whoever is silent for long keeps the name, unless the project says for how
// long; then who claims it gets it, and the one before is found by its id.
func TestNameReuse(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant(testenv.Project, "dev", false, "ann")
		n := names{t, e}
		put := func(body any) error {
			return e.Service.Do(t.Context(), "PUT", base+"/projects/prod", body, nil)
		}
		for _, bad := range []int64{-1, 1, 24*3600 - 1, 366*24*3600 + 1} {
			wantCode(t, "name_reuse_after", put(map[string]int64{"name_reuse_after": bad}), sft.Invalid)
		}
		first := e.Server(testenv.Project, facts("web01", "10.0.0.1"))
		hop := unmanaged(t, e, testenv.Project, map[string]any{"hostname": "hop", "access_address": "10.0.0.9"})
		n.pass(200 * 24 * time.Hour)
		n.leads("web01", nil, sft.NotFound)                   // silent for 96 hours
		e.Server(testenv.Project, facts("WEB01", "10.0.0.2")) // in vain
		n.leads("web01", nil, sft.NotFound)

		// From here on, four days are enough, and no less.
		wantCode(t, "name_reuse_after", put(map[string]int64{"name_reuse_after": 4 * 24 * 3600}), "")
		e.State(first)
		n.leads("web01", first, "")
		n.pass(4 * 24 * time.Hour)
		third := e.Server(testenv.Project, facts("Web01", "10.0.0.3"))
		if got := n.server(third).NameConflict; !slices.Equal(got, []string{"Web01"}) {
			t.Errorf("after four days to the second its conflict is over %q", got)
		}
		n.pass(time.Second)
		taken := facts("hop", "10.0.0.9")
		e.Server(testenv.Project, taken) // a record without an agent is never silent
		events := since(e, func() { e.Report(third) })
		slices.SortFunc(events, func(a, b audit.Event) int { return strings.Compare(string(a.Kind), string(b.Kind)) })
		if told(events) != "server.name_reuse success, server_creds.issue success" || events[0].Detail["from"] != first.ID || events[0].Detail["server"] != third.ID || events[0].Detail["name"] != "Web01" || events[0].Project != "prod" {
			t.Errorf("the name changes hands as %+v", events)
		}
		n.leads("web01", third, "")
		n.leads("prod/web01", third, "")
		if v := n.server(first); !slices.Equal(v.NameConflict, []string{"web01"}) || v.Name() != first.ID {
			t.Errorf("the one before is %+v", v)
		}
		if v := n.server(&testenv.Server{ID: hop.ID}); len(v.NameConflict) != 0 {
			t.Errorf("the server without an agent is %+v", v)
		}

		// It comes back, and is found by its id; the name is another's now.
		e.State(first)
		e.Report(first)
		n.leads("web01", third, "")
		n.leads(first.ID, first, "")
		if v := n.server(first); v.State != sft.StateActive || !slices.Equal(v.NameConflict, []string{"web01"}) {
			t.Errorf("when it comes back it is %+v", v)
		}
	})
}

// An administrator decides who a name means, whoever holds it.
func TestNameConflictIsDecided(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant(testenv.Project, "dev", false, "ann")
		n := names{t, e}
		first := e.Server(testenv.Project, facts("web01", "10.0.0.1"))
		second := e.Server(testenv.Project, facts("web01", "10.0.0.2"))
		n.leads("web01", first, "")
		put := func(s *testenv.Server, v bool) error {
			return e.Service.Do(t.Context(), "PUT", base+"/projects/prod/servers/"+s.ID, map[string]bool{"take_names": v}, nil)
		}
		wantCode(t, "taking names away", put(second, false), sft.Invalid)
		events := since(e, func() { wantCode(t, "giving names", put(second, true), "") })
		if told(events) != "server.update success" || events[0].Detail["take_names"] != "web01" {
			t.Errorf("it is told as %+v", events)
		}
		n.leads("web01", second, "")
		n.leads("10.0.0.1", first, "")
		n.leads("10.0.0.2", second, "")
		if v := n.server(first); !slices.Equal(v.NameConflict, []string{"web01"}) {
			t.Errorf("the one before is %+v", v)
		}
		if v := n.server(second); len(v.NameConflict) != 0 || v.Name() != "web01" {
			t.Errorf("the one that has the name is %+v", v)
		}
		e.Report(first) // claims it again, in vain
		n.leads("web01", second, "")
		e.Do("DELETE", "/projects/prod/servers/"+second.ID, nil, nil)
		n.leads("web01", first, "")
		wantCode(t, "what a person asks for", e.Client("ann").Do(t.Context(), "PUT", base+"/projects/prod/servers/"+first.ID, map[string]bool{"take_names": true}, nil), sft.Denied)
	})
}
