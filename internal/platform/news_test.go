package platform_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testenv"
)

// patience is for a busy machine.
const patience = time.Minute

// A waitingRoom is of agents whose state requests hang, without a network.
type waitingRoom struct {
	*testenv.Env
	t       *testing.T
	ctx     context.Context // until it is empty
	leave   context.CancelFunc
	admin   platform.Actor
	team    sft.Team
	reads   atomic.Int64 // of the database
	answers chan answer
	hanging sync.WaitGroup
}

// An answer is that of one state request.
type answer struct {
	name string
	api.State
	err error
}

func newWaitingRoom(t *testing.T, e *testenv.Env) *waitingRoom {
	t.Helper()
	r := &waitingRoom{Env: e, t: t, answers: make(chan answer, 1000)}
	r.ctx, r.leave = context.WithCancel(context.Background())
	t.Cleanup(func() { r.empty() })
	e.Platform.PollEvery = time.Hour // who is not woken, does not look
	if err := e.DB.Read(r.ctx, func(tx *store.Tx) error {
		var err error
		if r.team, err = tx.Team(testenv.Team); err != nil {
			return err
		}
		u, err := tx.User(r.team.ID, testenv.ServiceUser)
		r.admin = platform.Actor{User: u.ID, Name: u.Name, Key: e.Init.Key.ID}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	e.DB.Watch(func(s store.Span) {
		if s.Kind == "read" {
			r.reads.Add(1)
		}
	})
	return r
}

// empty sends away whoever still hangs.
func (r *waitingRoom) empty() {
	r.leave()
	r.hanging.Wait()
	for len(r.answers) > 0 {
		<-r.answers
	}
	r.ctx, r.leave = context.WithCancel(context.Background())
}

// servers makes servers in a project and returns their ids.
func (r *waitingRoom) servers(project string, n int) []string {
	r.t.Helper()
	var ids []string
	err := r.DB.Change(r.ctx, func(tx *store.Tx) (audit.Event, error) {
		pr, err := tx.Project(r.team.ID, project)
		for range n {
			s := store.ServerRecord{ID: audit.NewID(), TeamID: r.team.ID, ProjectID: pr.ID, RegisteredAt: r.Clock.Now()}
			s.DeviceKey, s.Facts = []byte(s.ID), testenv.Facts("host")
			if err == nil {
				err = tx.AddServer(s)
			}
			ids = append(ids, s.ID)
		}
		return audit.Event{ID: audit.NewID(), Time: r.Clock.Now(), Kind: audit.ServerEnroll, Actor: audit.Actor{Kind: "platform"}, Outcome: audit.Success}, err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return ids
}

// hang has an agent ask for what is new after a revision.
func (r *waitingRoom) hang(p *platform.Platform, name, id string, after int64) {
	r.hanging.Go(func() {
		st, err := p.State(r.ctx, platform.Actor{Server: id}, platform.StateRequest{After: fmt.Sprint(after)})
		r.answers <- answer{name, st, err}
	})
}

// revision is that of a server's state now.
func (r *waitingRoom) revision(id string) int64 {
	r.t.Helper()
	st, err := r.Platform.State(r.ctx, platform.Actor{Server: id}, platform.StateRequest{After: "-1"})
	if err != nil {
		r.t.Fatal(err)
	}
	return st.Revision
}

// read waits until the database was read so often, which it then may not be
// more often.
func (r *waitingRoom) read(what string, want int64) {
	r.t.Helper()
	for end := time.Now().Add(patience); r.reads.Load() < want && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	for end := time.Now().Add(50 * time.Millisecond); r.reads.Load() == want && time.Now().Before(end); { // who is woken by mistake reads after it
		time.Sleep(time.Millisecond)
	}
	if got := r.reads.Load(); got != want {
		r.t.Fatalf("%s: the database was read %d times, want %d", what, got, want)
	}
}

// next returns the next answer.
func (r *waitingRoom) next(what string) answer {
	r.t.Helper()
	select {
	case a := <-r.answers:
		return a
	case <-time.After(patience):
		r.t.Fatalf("%s: nobody is answered", what)
		return answer{}
	}
}

// However often a host changes its labels, the agents of another project sleep;
// what concerns them all wakes each once.
func TestAHostWakesNoOther(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Project("lab")
		r := newWaitingRoom(t, e)
		const many, flips = 200, 20
		crowd, one := r.servers(testenv.Project, many), r.servers("lab", 1)[0]
		revision, after := r.revision(crowd[0]), r.revision(one)
		r.reads.Store(0)
		for _, id := range crowd {
			r.hang(e.Platform, "crowd", id, revision)
		}
		r.hang(e.Platform, "one", one, after)
		r.read("before anything happens", many+1)
		for i := range flips {
			if _, err := e.Platform.UpdateServer(r.ctx, r.admin, platform.UpdateServerRequest{Team: testenv.Team, ID: one, Labels: m2{"n": fmt.Sprint(i)}}); err != nil {
				t.Fatal(err)
			}
			a := r.next("a label")
			if a.name != "one" || a.err != nil || a.Revision <= after {
				t.Fatalf("a label wakes %s: %+v, %v", a.name, a.State, a.err)
			}
			after = a.Revision
			r.hang(e.Platform, "one", one, after)
			r.read("after a label", many+1+int64(i+1)*2)
		}
		seconds := int64(60)
		if _, err := e.Platform.UpdateProject(r.ctx, r.admin, platform.ProjectRequest{Team: testenv.Team, Project: testenv.Project, MaxSession: &seconds}); err != nil {
			t.Fatal(err)
		}
		for range crowd {
			if a := r.next("the project's settings"); a.name != "crowd" || a.err != nil || a.Revision <= revision {
				t.Fatalf("the project's settings wake %s: %+v, %v", a.name, a.State, a.err)
			}
		}
		r.read("after the project's settings", many+1+flips*2+many)
	})
}

// Each change wakes those whom it concerns, and nobody else.
func TestWhomAChangeWakes(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant("lab", "dev", false, "ann", "bob")
		e.Project("far")
		e.Do("POST", "/groups", map[string]string{"name": "idle"}, nil)
		r := newWaitingRoom(t, e)
		p, team := e.Platform, testenv.Team
		labs := r.servers("lab", 2)
		ids := map[string]string{"lab1": labs[0], "lab2": labs[1], "far": r.servers("far", 1)[0], "prod": r.servers(testenv.Project, 1)[0]}
		everybody := []string{"far", "lab1", "lab2", "prod"}
		seconds := int64(60)
		for _, tt := range []struct {
			what string
			do   func() (struct{}, error)
			want []string
		}{
			{"a server's labels", func() (struct{}, error) {
				return p.UpdateServer(r.ctx, r.admin, platform.UpdateServerRequest{Team: team, ID: ids["lab1"], Labels: m2{"a": "b"}})
			}, []string{"lab1"}},
			{"a project's settings", func() (struct{}, error) {
				return p.UpdateProject(r.ctx, r.admin, platform.ProjectRequest{Team: team, Project: "lab", MaxSession: &seconds})
			}, []string{"lab1", "lab2"}},
			{"a member of a group", func() (struct{}, error) {
				return p.RemoveMember(r.ctx, r.admin, platform.MemberRequest{Team: team, Group: "dev", User: "bob"})
			}, []string{"lab1", "lab2"}},
			{"a person", func() (struct{}, error) {
				return p.UpdateUser(r.ctx, r.admin, platform.UpdateUserRequest{Team: team, User: "ann", Status: new(sft.StatusDisabled)})
			}, everybody},
			{"a server that is moved", func() (struct{}, error) {
				return p.UpdateServer(r.ctx, r.admin, platform.UpdateServerRequest{Team: team, ID: ids["lab2"], MoveTo: "far"})
			}, []string{"far", "lab2"}},
			{"its new project's settings", func() (struct{}, error) {
				return p.UpdateProject(r.ctx, r.admin, platform.ProjectRequest{Team: team, Project: "far", MaxSession: &seconds})
			}, []string{"far", "lab2"}},
			{"a server that is deleted", func() (struct{}, error) {
				return p.DeleteServer(r.ctx, r.admin, platform.ServerRequest{Team: team, Project: "lab", ID: ids["lab1"]})
			}, []string{"lab1"}},
			{"what no agent has to know", func() (struct{}, error) {
				return p.AddMember(r.ctx, r.admin, platform.MemberRequest{Team: team, Group: "idle", Name: "bob"})
			}, nil},
		} {
			before := map[string]int64{}
			for name, id := range ids {
				before[name] = r.revision(id)
			}
			r.reads.Store(0)
			for name, id := range ids {
				r.hang(p, name, id, before[name])
			}
			r.read(tt.what+", before", int64(len(ids)))
			if _, err := tt.do(); err != nil {
				t.Fatalf("%s: %v", tt.what, err)
			}
			got := map[string]bool{}
			for range tt.want {
				a := r.next(tt.what)
				got[a.name] = true
				if gone := strings.Contains(tt.what, "deleted"); gone != (sft.CodeOf(a.err) == sft.Revoked && a.err != nil) || !gone && (a.err != nil || a.Revision <= before[a.name]) {
					t.Errorf("%s: %s is told %d after %d, %v", tt.what, a.name, a.Revision, before[a.name], a.err)
				} else if gone {
					delete(ids, a.name)
				}
			}
			if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, tt.want) {
				t.Errorf("%s wakes %q, want %q", tt.what, names, tt.want)
			}
			r.read(tt.what, int64(len(before)+len(tt.want)))
			r.empty()
		}
	})
}

// A change that comes after an agent's state was read, and before its request
// hangs, wakes it all the same; and what another platform has changed on the
// same database it finds by looking.
func TestNoChangeIsMissed(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		r := newWaitingRoom(t, e)
		id := r.servers(testenv.Project, 1)[0]
		other, err := platform.New(r.ctx, e.DB, e.Platform.Sealer, slog.New(slog.DiscardHandler), e.Clock.Now)
		if err != nil {
			t.Fatal(err)
		}
		other.PollEvery = 20 * time.Millisecond
		for name, p := range map[string]*platform.Platform{"of the platform that makes the change": e.Platform, "of another": other} {
			before := r.revision(id)
			var once sync.Once
			failed := make(chan error, 1)
			e.DB.Watch(func(s store.Span) {
				if s.Kind == "read" {
					once.Do(func() {
						_, err := e.Platform.UpdateServer(r.ctx, r.admin, platform.UpdateServerRequest{Team: testenv.Team, ID: id, Labels: m2{"n": fmt.Sprint(before)}})
						failed <- err
					})
				}
			})
			r.hang(p, name, id, before)
			if err := <-failed; err != nil {
				t.Fatal(err)
			}
			if a := r.next("an agent " + name); a.err != nil || a.Revision != before+1 {
				t.Errorf("an agent %s is told %d after %d, %v", name, a.Revision, before, a.err)
			}
		}
	})
}
