package platform_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testenv"
)

// A rotation is a test's view of the CAs of the project prod.
type rotation struct {
	names
	server *testenv.Server
	client *testenv.Client
}

// list describes the CAs: kind and stage of each, and how many servers one
// waits for.
func (r rotation) list() string {
	r.t.Helper()
	var l api.List[sft.Authority]
	r.e.Do("GET", "/projects/prod/authorities", nil, &l)
	var s []string
	for _, a := range l.List {
		v := a.Kind + " " + a.Stage
		if len(a.WaitingFor) > 0 {
			v += fmt.Sprint(" waits for ", len(a.WaitingFor))
		}
		s = append(s, v)
	}
	return strings.Join(s, ", ")
}

// ack has a server's agent say that it has what the platform said last.
func (r rotation) ack(s *testenv.Server) {
	r.t.Helper()
	before := r.list()
	ctx, cancel := context.WithCancel(r.t.Context())
	defer cancel()
	st := r.e.State(s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Do(ctx, "GET", fmt.Sprint("/v1/agent/state?after=", st.Revision), nil, nil) // it hangs, and is cut off
	}()
	for end := time.Now().Add(10 * time.Second); r.list() == before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("what the agent has is not noted: %s", before)
		}
	}
	cancel()
	<-done
}

// by returns which of the CAs that the server trusts, in their order, has
// signed what a person gets now, and which of those that a person is told have
// signed what the broker has: 0 is the one that came first.
func (r rotation) by() string {
	r.t.Helper()
	which := func(chain, cas [][]byte) int {
		leaf, err := x509.ParseCertificate(chain[0])
		if err != nil {
			r.t.Fatal(err)
		}
		all := slices.Clone(cas)
		slices.SortFunc(all, func(a, b []byte) int { return r.cert(a).NotAfter.Compare(r.cert(b).NotAfter) })
		return slices.IndexFunc(all, func(der []byte) bool { return leaf.CheckSignatureFrom(r.cert(der)) == nil })
	}
	r.e.Report(r.server)
	reply, _, err := r.e.Connect(r.client, "web01")
	if err != nil {
		r.t.Fatal(err)
	}
	st := r.e.State(r.server)
	return fmt.Sprintf("access %d of %d, host %d of %d, ssh_user of %d", which(reply.Certificate, st.AccessCAs), len(st.AccessCAs),
		which(r.server.Certificate, reply.Route[0].HostCAs), len(reply.Route[0].HostCAs), len(st.SSHUserCAs))
}

func (r rotation) cert(der []byte) *x509.Certificate {
	r.t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (r rotation) is(what, got, want string) {
	r.t.Helper()
	if got != want {
		r.t.Errorf("%s:\n%s\nwant\n%s", what, got, want)
	}
}

// housekeep does it on several platforms at once, of which one takes each step.
func (r rotation) housekeep(want string) {
	r.t.Helper()
	events := since(r.e, func() {
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { r.e.Platform.Housekeep(r.t.Context(), platform.SureClock) })
		}
		wg.Wait()
	})
	var s []string
	for _, e := range events {
		s = append(s, e.Detail["kinds"]+e.Detail["kind"]+" "+e.Detail["stage"])
		if e.Kind != "ca.rotate" || e.Actor.Kind != "platform" || e.Project != "prod" {
			r.t.Errorf("it is told as %+v", e)
		}
	}
	slices.Sort(s)
	r.is("the steps", strings.Join(s, ", "), want)
}

func TestCARotation(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant(testenv.Project, "dev", false, "ann")
		n := names{t, e}
		away := e.Server(testenv.Project, testenv.Facts("away"))
		unmanaged(t, e, testenv.Project, map[string]any{"hostname": "hop", "access_address": "192.0.2.9"})
		n.pass(97 * time.Hour)
		r := rotation{n, e.Server(testenv.Project, testenv.Facts("web01")), e.Client("ann")}
		other := e.Server(testenv.Project, testenv.Facts("web02"))
		post := func(body any) error {
			return e.Service.Do(t.Context(), "POST", base+"/projects/prod/authorities", body, nil)
		}
		r.housekeep("")
		r.is("at first", r.list(), "access active, host active, ssh_host active, ssh_user active")
		wantCode(t, "an unknown kind", post(map[string][]string{"kinds": {"platform"}}), sft.Invalid)
		wantCode(t, "a kind twice", post(map[string][]string{"kinds": {"host", "host"}}), sft.Invalid)
		wantCode(t, "a person", r.client.Do(t.Context(), "POST", base+"/projects/prod/authorities", struct{}{}, nil), sft.Denied)

		events := since(e, func() { wantCode(t, "rotate", post(map[string]any{}), "") })
		if told(events) != "ca.rotate success" || events[0].Detail["kinds"] != "access host ssh_user ssh_host" || events[0].Actor.Name != "robot" {
			t.Errorf("it is told as %+v", events)
		}
		wantCode(t, "rotate again", post(map[string]any{"kinds": []string{"host"}}), sft.Exists)
		r.is("begun", r.list(), "access active, access next waits for 2, host active, host next waits for 2, ssh_host active, ssh_host next waits for 2, ssh_user active, ssh_user next waits for 2")
		r.is("begun", r.by(), "access 0 of 2, host 0 of 2, ssh_user of 2")
		n.pass(10 * time.Minute)
		r.housekeep("") // the servers are not there yet
		r.ack(r.server)
		r.housekeep("")
		r.is("one has it", r.by(), "access 0 of 2, host 0 of 2, ssh_user of 2")
		r.ack(other)
		r.housekeep("access active, host active, ssh_host active, ssh_user active")
		r.housekeep("")
		r.is("both have it", r.list(), "access retired, access active, host retired, host active, ssh_host retired, ssh_host active, ssh_user retired, ssh_user active")
		r.is("both have it", r.by(), "access 1 of 2, host 1 of 2, ssh_user of 2")
		if got := e.State(away); len(got.AccessCAs) != 2 || len(got.SSHUserCAs) != 2 {
			t.Errorf("who was away hears of %d and %d CAs", len(got.AccessCAs), len(got.SSHUserCAs))
		}

		n.pass(time.Hour)
		r.client = e.Client("ann")
		r.housekeep("") // five minutes more for what was signed last
		n.pass(5 * time.Minute)
		r.housekeep("access removed, ssh_user removed")
		r.is("an hour later", r.by(), "access 0 of 1, host 1 of 2, ssh_user of 1")
		n.pass(24 * time.Hour)
		r.client = e.Client("ann")
		r.housekeep("host removed")
		r.is("a day later", r.by(), "access 0 of 1, host 0 of 1, ssh_user of 1")
		n.pass(7 * 24 * time.Hour)
		r.housekeep("ssh_host removed")
		r.is("at the end", r.list(), "access active, host active, ssh_host active, ssh_user active")

		// Who is there and never takes it up is waited for a week.
		e.State(r.server)
		wantCode(t, "one kind", post(map[string]any{"kinds": []string{"access"}}), "")
		n.pass(7*24*time.Hour - time.Second)
		e.State(r.server)
		r.housekeep("")
		n.pass(time.Second)
		r.housekeep("access active")

		// In its last year a CA is rotated by itself.
		e.Clock.Set(e.Clock.Now().Add(9 * 365 * 24 * time.Hour))
		n.pass(0)
		r.housekeep("access next, access removed, host next, ssh_host next, ssh_user next")
		n.pass(3 * time.Minute)
		r.housekeep("access active, host active, ssh_host active, ssh_user active")
	})
}

// CAs whose keys others know are gone at once, whatever their rotation was at:
// nothing trusts them, and new ones sign.
func TestDroppedCAs(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant(testenv.Project, "dev", false, "ann")
		r := rotation{names{t, e}, e.Server(testenv.Project, testenv.Facts("web01")), e.Client("ann")}
		post := func(body any) error {
			return e.Service.Do(t.Context(), "POST", base+"/projects/prod/authorities", body, nil)
		}
		e.State(r.server)
		e.Report(r.server)
		e.Clock.Advance(time.Minute) // so that by can tell which was first
		wantCode(t, "begin a rotation", post(map[string]any{"kinds": []string{"access", "host"}}), "")
		before := e.State(r.server)
		old, _, err := e.Connect(r.client, "web01")
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, "a person", r.client.Do(t.Context(), "POST", base+"/projects/prod/authorities", map[string]any{"compromised": true}, nil), sft.Denied)
		r.is("a refusal", r.by(), "access 0 of 2, host 0 of 2, ssh_user of 1")

		events := since(e, func() {
			wantCode(t, "drop one kind", post(map[string]any{"kinds": []string{"access"}, "compromised": true}), "")
		})
		if told(events) != "ca.drop success" || events[0].Actor.Name != "robot" || events[0].Detail["kinds"] != "access" || strings.Count(events[0].Detail["dropped"], "access sha256:") != 2 {
			t.Errorf("it is told as %+v", events)
		}
		r.is("one kind", r.list(), "access active waits for 1, host active, host next waits for 1, ssh_host active, ssh_user active")
		st := e.State(r.server)
		if len(st.AccessCAs) != 1 || st.Revision <= before.Revision || len(st.DroppedCAs) != 2 {
			t.Errorf("the host is told %d access CAs and %d that are dropped", len(st.AccessCAs), len(st.DroppedCAs))
		}
		for _, der := range before.AccessCAs {
			if slices.ContainsFunc(st.AccessCAs, func(now []byte) bool { return string(now) == string(der) }) {
				t.Error("a CA that was dropped is trusted")
			}
			if want := ca.Fingerprint(der); !slices.Contains(st.DroppedCAs, want) {
				t.Errorf("the dropped CAs are %q, without %s", st.DroppedCAs, want)
			}
		}
		if r.cert(old.Certificate[0]).CheckSignatureFrom(r.cert(st.AccessCAs[0])) == nil {
			t.Error("the new CA is the old one")
		}
		r.is("one kind", r.by(), "access 0 of 1, host 0 of 2, ssh_user of 1")
		r.ack(r.server)
		r.is("the host has heard", r.list(), "access active, host active, host next, ssh_host active, ssh_user active")

		// All of them, by whoever holds the platform's files.
		events = since(e, func() {
			if _, err := e.Platform.RotateAuthoritiesHere(t.Context(), platform.AuthoritiesRequest{Project: "prod", Compromised: true}); err != nil {
				t.Fatal(err)
			}
		})
		if told(events) != "ca.drop success" || events[0].Actor.Name != "rotate" || events[0].Project != "prod" {
			t.Errorf("it is told as %+v", events)
		}
		r.is("all", r.list(), "access active waits for 1, host active waits for 1, ssh_host active waits for 1, ssh_user active waits for 1")
		r.is("all", r.by(), "access 0 of 1, host 0 of 1, ssh_user of 1")
		if st := e.State(r.server); len(st.DroppedCAs) != 4 || slices.ContainsFunc(st.SSHUserCAs, func(k string) bool { return slices.Contains(before.SSHUserCAs, k) }) {
			t.Errorf("the host is told that %q are dropped", st.DroppedCAs)
		}
		r.housekeep("")

		// What they let in may still go on where the server is now.
		moved := e.Server(testenv.Project, testenv.Facts("web02"))
		e.Project("lab")
		e.Do("PUT", "/projects/prod/servers/"+moved.ID, map[string]any{"project_name": "lab"}, nil)
		was := e.State(moved)
		if _, err := e.Platform.RotateAuthoritiesHere(t.Context(), platform.AuthoritiesRequest{Project: "prod", Kinds: []string{"ssh_user"}, Compromised: true}); err != nil {
			t.Fatal(err)
		}
		if st := e.State(moved); st.Revision <= was.Revision || len(st.DroppedCAs) != len(was.DroppedCAs)+1 {
			t.Errorf("a server that was moved hears that %q are dropped, at revision %d, and before %q at %d", st.DroppedCAs, st.Revision, was.DroppedCAs, was.Revision)
		}
		_, err = e.Platform.RotateAuthoritiesHere(t.Context(), platform.AuthoritiesRequest{Project: "none", Compromised: true})
		wantCode(t, "no project", err, sft.NotFound)
		// Each server is told of its own project's alone.
		e.Grant("lab", "dev", false, "ann")
		if st := e.State(e.Server("lab", testenv.Facts("lab01"))); len(st.DroppedCAs) != 0 {
			t.Errorf("another project's host is told of %q", st.DroppedCAs)
		}
	})
}

// A rotation that a clock began that was ahead, or before this one was set
// back, waits and says so: no CA ends by a clock that may be behind.
func TestARotationThatBeginsInTheFuture(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		r := rotation{names: names{t, e}}
		const ahead = 20 * 24 * time.Hour
		e.Clock.Advance(ahead)
		if _, err := e.Platform.RotateAuthoritiesHere(t.Context(), platform.AuthoritiesRequest{Team: testenv.Team, Project: testenv.Project, Kinds: []string{"access"}}); err != nil {
			t.Fatal(err)
		}
		r.housekeep("")
		const said = "waits for a time that is to come"
		if strings.Contains(e.Log.String(), said) {
			t.Errorf("the log is\n%s", e.Log)
		}
		e.Clock.Advance(-ahead)
		r.housekeep("")
		if !strings.Contains(e.Log.String(), said) {
			t.Errorf("the log is\n%s", e.Log)
		}
		e.Clock.Advance(ahead + 3*time.Minute)
		r.housekeep("access active")
	})
}

// An authority names some of very many servers that it waits for, and counts
// them all.
func TestAnAuthorityWaitsForMany(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Do("POST", "/projects/prod/authorities", platform.AuthoritiesRequest{Kinds: []string{"access", "host"}}, nil)
		if err := e.DB.Change(t.Context(), func(tx *store.Tx) (audit.Event, error) {
			team, err := tx.Team(testenv.Team)
			if err != nil {
				return audit.Event{}, err
			}
			pr, err := tx.Project(team.ID, testenv.Project)
			if err != nil {
				return audit.Event{}, err
			}
			now, long := e.Clock.Now(), e.Clock.Now().Add(-sft.ActiveFor)
			for i := range 110 {
				s := store.ServerRecord{ID: fmt.Sprintf("s%03d", i), TeamID: team.ID, ProjectID: pr.ID, DeviceKey: fmt.Append(nil, i), RegisteredAt: now, LastSeen: &now}
				switch i {
				case 0:
					s.LastSeen = nil
				case 1:
					s.LastSeen = &long
				case 2:
					s.Unmanaged = true
				}
				if err := tx.AddServer(s); err != nil {
					return audit.Event{}, err
				}
			}
			e := audit.Event{ID: audit.NewID(), Time: now, Kind: audit.ServerEnroll, Actor: audit.Actor{Kind: "platform"}, Outcome: audit.Success}
			return e, errors.Join(tx.RemoveServer("s003", now), tx.SetAgentRevision("s004", pr.Revision))
		}); err != nil {
			t.Fatal(err)
		}
		var l api.List[sft.Authority]
		e.Do("GET", "/projects/prod/authorities", nil, &l)
		for _, a := range l.List {
			if a.Stage != store.CANext {
				if a.Waiting != 0 || len(a.WaitingFor) != 0 {
					t.Errorf("%s %s waits for %d", a.Kind, a.Stage, a.Waiting)
				}
				continue
			}
			if a.Waiting != 105 || len(a.WaitingFor) != 100 || a.WaitingFor[0] != "s005" || a.WaitingFor[99] != "s104" {
				t.Errorf("%s %s waits for %d, of which it names %d: %q", a.Kind, a.Stage, a.Waiting, len(a.WaitingFor), a.WaitingFor)
			}
		}
	})
}
