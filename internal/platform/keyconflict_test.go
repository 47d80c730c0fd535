package platform_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/testenv"
)

// Two agents with one key are found out, nothing is issued for their server,
// and an administrator decides.
func TestOneKeyInTwoPlaces(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant(testenv.Project, "dev", false, "ann")
		ann := e.Client("ann")
		s := e.Server(testenv.Project, testenv.Facts("web01"))
		other := e.Server(testenv.Project, testenv.Facts("web02"))
		run := func(name string) string { return name + strings.Repeat("_", 20) }
		ask := func(of *testenv.Server, name string) {
			t.Helper()
			e.Clock.Advance(10 * time.Second)
			if err := of.Do(t.Context(), "GET", "/v1/agent/state?after=-1&run="+run(name), nil, nil); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		get := func() (v sft.Server) { e.Do("GET", "/projects/prod/servers/"+s.ID, nil, &v); return v }
		connect := func(to string) error { _, _, err := e.Connect(ann, to); return err }

		// An agent that is restarted, often, and one that says nothing.
		events := since(e, func() {
			for _, name := range []string{"a", "a", "b", "c", "c", "d"} {
				ask(s, name)
			}
			e.State(s)
			ask(s, "d")
		})
		if len(events) > 0 || get().KeyConflict {
			t.Errorf("restarts are told as %s", told(events))
		}
		wantCode(t, "connecting", connect("web01"), "")

		// A copy, and another.
		events = since(e, func() {
			ask(s, "e")
			ask(s, "f")
			ask(s, "d")
			ask(s, "e")
			ask(s, "f")
		})
		v := get()
		if told(events) != "server.key_conflict refused" || events[0].Target != "web01" || events[0].Project != "prod" || events[0].Detail["server"] != s.ID || events[0].Detail["addresses"] != "127.0.0.1" {
			t.Errorf("the copies are told as %+v", events)
		}
		if !v.KeyConflict || len(v.Problems) != 1 || !strings.Contains(v.Problems[0], "used from two places at once") {
			t.Errorf("the server is %+v", v)
		}
		err := connect("web01")
		wantCode(t, "connecting then", err, sft.Denied)
		if err == nil || err.Error() != `the device key of server "web01" is used from two places at once` {
			t.Errorf("connecting then: %v", err)
		}
		key, _ := testenv.Key(t)
		csr := func() error {
			return s.Do(t.Context(), "POST", "/v1/agent/report", api.ReportRequest{Facts: testenv.Facts("web01"), CSR: testenv.CSR(t, key)}, nil)
		}
		wantCode(t, "a certificate for its broker", csr(), sft.Denied)
		wantCode(t, "another server", connect("web02"), "")
		ask(other, "d") // a run of another server is no run of this one

		put := func(body map[string]any) error {
			return e.Service.Do(t.Context(), "PUT", base+"/projects/prod/servers/"+s.ID, body, nil)
		}
		wantCode(t, "setting it by hand", put(map[string]any{"key_conflict": true}), sft.Invalid)
		wantCode(t, "nothing", put(map[string]any{}), sft.Invalid)
		events = since(e, func() { wantCode(t, "clearing it", put(map[string]any{"key_conflict": false}), "") })
		if told(events) != "server.update success" || events[0].Detail["key_conflict"] != "false" || get().KeyConflict {
			t.Errorf("clearing it is told as %+v", events)
		}
		ask(s, "d") // the one that is left
		wantCode(t, "connecting again", connect("web01"), "")
		wantCode(t, "a certificate again", csr(), "")
		ask(s, "f")
		ask(s, "d")
		if !get().KeyConflict {
			t.Error("copies that go on are not found again")
		}
	})
}

// Up to so many copies are found that ask in turn; what is not a run is
// refused; and a request that was on its way for long is no copy.
func TestRunsOfAnAgent(t *testing.T) {
	e := testenv.New(t)
	s := e.Server(testenv.Project, testenv.Facts("web01"))
	ask := func(run string) error {
		e.Clock.Advance(6 * time.Second)
		return s.Do(t.Context(), "GET", "/v1/agent/state?after=-1&run="+run, nil, nil)
	}
	for _, bad := range []string{"short", strings.Repeat("a", 65), "aaaaaaaaaaaaaaaa%00", "aaaaaaaaaaaaaaaa%22", "%C3%A4aaaaaaaaaaaaaaaaaa"} {
		wantCode(t, bad, ask(bad), sft.Invalid)
	}
	conflicts := func() int {
		return len(slices.DeleteFunc(e.Events(), func(v audit.Event) bool { return v.Kind != "server.key_conflict" }))
	}
	name := func(i int) string { return fmt.Sprintf("run-of-an-agent-%03d", i) }
	for i := range 40 {
		wantCode(t, "a restart", ask(name(i)), "")
	}
	if n := conflicts(); n != 0 {
		t.Errorf("40 restarts are %d conflicts", n)
	}
	wantCode(t, "one that is forgotten", ask(name(1)), "") // it is a new one, again
	e.Clock.Advance(20 * time.Minute)
	wantCode(t, "one of long ago", ask(name(38)), "")
	if n := conflicts(); n != 0 {
		t.Errorf("runs of long ago are %d conflicts", n)
	}

	// The first one's request leaves, and arrives after the restart.
	wantCode(t, "the next", ask(name(100)), "")
	late := e.Signed(s.Key, "server:"+s.ID)
	made := e.Clock.Now()
	late.Clock = &api.Clock{Machine: func() time.Time { return made }}
	e.Clock.Advance(3 * time.Second)
	if err := s.Do(t.Context(), "GET", "/v1/agent/state?after=-1&run="+name(101), nil, nil); err != nil {
		t.Fatal(err)
	}
	e.Clock.Advance(20 * time.Second)
	if err := late.Do(t.Context(), "GET", "/v1/agent/state?after=-1&run="+name(100), nil, nil); err != nil {
		t.Fatal(err)
	}
	if n := conflicts(); n != 0 {
		t.Errorf("a late request is %d conflicts", n)
	}
	wantCode(t, "a fresh one", ask(name(100)), "")
	if n := conflicts(); n != 1 {
		t.Errorf("a fresh one is %d conflicts", n)
	}
}
