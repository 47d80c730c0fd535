package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pressly/goose/v3"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/store"
	"sft/internal/testdb"
)

var t0 = time.Date(2026, 3, 1, 9, 0, 0, 123_456_000, time.UTC)

func event(kind audit.Kind) audit.Event {
	return audit.Event{ID: audit.NewID(), Time: t0, Kind: kind, Team: "main", Actor: audit.Actor{Kind: "platform"}, Outcome: audit.Success}
}

// both runs f on a database of each kind that holds one team.
func both(t *testing.T, f func(t *testing.T, s *suite)) {
	testdb.Each(t, func(t *testing.T, url string) {
		s := &suite{T: t, DB: open(t, url), url: url, team: sft.Team{ID: audit.NewID(), Name: "Main", CreatedAt: t0, ClientSession: 36000, WebSession: 36000, AllowDeviceCode: true}}
		s.change(func(tx *store.Tx) error { return tx.AddTeam(s.team) })
		f(t, s)
	})
}

func open(t *testing.T, url string) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

type suite struct {
	*testing.T
	*store.DB
	url  string
	team sft.Team
	n    int
}

// try runs a change and returns its error.
func (s *suite) try(f func(*store.Tx) error) error {
	return s.Change(context.Background(), func(tx *store.Tx) (audit.Event, error) { return event(audit.UserUpdate), f(tx) })
}

func (s *suite) change(f func(*store.Tx) error) {
	s.Helper()
	if err := s.try(f); err != nil {
		s.Fatal(err)
	}
}

func (s *suite) note(f func(store.Notes) error) {
	s.Helper()
	if err := s.Note(s.Context(), f); err != nil {
		s.Fatal(err)
	}
}

// get reads one thing.
func get[T any](s *suite, f func(*store.Tx) (T, error)) T {
	s.Helper()
	v, err := peek(s, f)
	if err != nil {
		s.Fatal(err)
	}
	return v
}

func peek[T any](s *suite, f func(*store.Tx) (T, error)) (v T, err error) {
	err = s.Read(s.Context(), func(tx *store.Tx) error { v, err = f(tx); return err })
	return v, err
}

func (s *suite) same(what string, got, want any) {
	s.Helper()
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b sft.Secret) bool { return a.Reveal() == b.Reveal() })); d != "" {
		s.Errorf("%s is not what was stored (-want +got):\n%s", what, d)
	}
}

func (s *suite) is(what string, got, want error) {
	s.Helper()
	if want == errAny && got != nil {
		return
	}
	if !errors.Is(got, want) {
		s.Errorf("%s: %v, want %v", what, got, want)
	}
}

func (s *suite) user(name string) store.UserRecord {
	s.Helper()
	u := store.UserRecord{TeamID: s.team.ID, PasswordHash: sft.NewSecret("$hash")}
	u.ID, u.Name, u.Type, u.Status, u.CreateAt = audit.NewID(), name, sft.Human, sft.StatusActive, t0
	u.Details = sft.UserDetails{FullName: "Ünal \U0001F600", Email: "u@example.com"}
	s.change(func(tx *store.Tx) (err error) {
		if u.UID, u.GID, err = tx.NextIDs(s.team.ID); err != nil {
			return err
		}
		u.Login = strings.ToLower(name)
		u.WindowsLogin, u.WindowsUID, u.WindowsGID = u.Login, u.UID, u.GID
		return tx.AddUser(u)
	})
	return u
}

func (s *suite) group(name string) store.GroupRecord {
	s.Helper()
	g := store.GroupRecord{TeamID: s.team.ID, Group: sft.Group{ID: audit.NewID(), Name: name, Roles: []sft.Role{sft.AccessUser, sft.ReportingUser}, CreatedAt: t0}}
	s.change(func(tx *store.Tx) error { return tx.AddGroup(g) })
	return g
}

func (s *suite) project(name string) store.ProjectRecord {
	s.Helper()
	p := store.ProjectRecord{TeamID: s.team.ID, Project: sft.Project{ID: audit.NewID(), Name: name, CreatedAt: t0, Revision: 1,
		CreateServerUsers: true, MaxSession: 60, DisconnectedSession: 30, Channels: sft.AllChannels}}
	s.change(func(tx *store.Tx) error { return tx.AddProject(p) })
	return p
}

func (s *suite) server(p store.ProjectRecord, name string) store.ServerRecord {
	s.Helper()
	s.n++
	seen := t0.Add(time.Second)
	r := store.ServerRecord{ID: audit.NewID(), TeamID: s.team.ID, ProjectID: p.ID, Project: p.Name, DeviceKey: fmt.Append(nil, "key", s.n),
		Facts:   api.Facts{Hostname: name, AltNames: []string{"alt"}, AccessAddress: "10.0.0.1", BrokerPort: 4421, OS: "Debian", OSType: "linux", Services: []string{"rdp"}},
		HostKey: []byte{1, 2}, RegisteredAt: t0, DeviceKeySince: t0, LastSeen: &seen}
	s.change(func(tx *store.Tx) error { return tx.AddServer(r) })
	return r
}

func (s *suite) client(u store.UserRecord) store.ClientRecord {
	s.Helper()
	s.n++
	c := store.ClientRecord{TeamID: s.team.ID, UserID: u.ID, DeviceKey: fmt.Append(nil, "client", s.n)}
	c.ID, c.User, c.State, c.Hostname, c.OS, c.Version, c.Description = audit.NewID(), u.Name, sft.StateActive, "laptop", "Debian", "1", "mine"
	c.EnrolledAt, c.SignedInUntil = t0, t0.Add(time.Hour)
	s.change(func(tx *store.Tx) error { return tx.AddClient(c) })
	return s.clientNow(c)
}

func (s *suite) clientNow(c store.ClientRecord) store.ClientRecord {
	s.Helper()
	return get(s, func(tx *store.Tx) (store.ClientRecord, error) { return tx.Client(c.ID) })
}

func (s *suite) revision(p store.ProjectRecord) int64 {
	s.Helper()
	return get(s, func(tx *store.Tx) (store.ProjectRecord, error) { return tx.ProjectByID(p.ID) }).Revision
}

func ids[T any](list []T, id func(T) string) []string {
	out := []string{}
	for _, v := range list {
		out = append(out, id(v))
	}
	slices.Sort(out)
	return out
}

func userName(u store.UserRecord) string   { return u.Name }
func groupName(g store.GroupRecord) string { return g.Name }

func TestSettings(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		_, err := peek(s, func(tx *store.Tx) (string, error) { return tx.Setting("url") })
		s.is("a setting that is not there", err, store.ErrNotFound)
		for _, v := range []string{"one", "two"} {
			s.change(func(tx *store.Tx) error { return tx.SetSetting("url", v) })
			s.same("the setting", get(s, func(tx *store.Tx) (string, error) { return tx.Setting("url") }), v)
		}
	})
}

func TestTeams(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		s.same("the team by name", get(s, func(tx *store.Tx) (sft.Team, error) { return tx.Team("mAIN") }), s.team)
		s.team.ClientSession, s.team.AllowDeviceCode = 3600, false
		s.change(func(tx *store.Tx) error { return tx.SaveTeam(s.team) })
		s.same("the team by id", get(s, func(tx *store.Tx) (sft.Team, error) { return tx.TeamByID(s.team.ID) }), s.team)
		s.is("a team of the same name", s.try(func(tx *store.Tx) error {
			return tx.AddTeam(sft.Team{ID: audit.NewID(), Name: "MAIN", CreatedAt: t0})
		}), store.ErrExists)
		_, err := peek(s, func(tx *store.Tx) (sft.Team, error) { return tx.Team("other") })
		s.is("a team that is not there", err, store.ErrNotFound)
		s.is("saving a team that is not there", s.try(func(tx *store.Tx) error { return tx.SaveTeam(sft.Team{ID: "no"}) }), store.ErrNotFound)
	})
}

func TestUsers(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		ann, bob := s.user("Ann"), s.user("bob")
		s.same("the first ids", []int{ann.UID, ann.GID, bob.UID, bob.GID}, []int{60001, 63001, 60002, 63002})
		s.same("the user by name", get(s, func(tx *store.Tx) (store.UserRecord, error) { return tx.User(s.team.ID, "aNN") }), ann)

		// Name by fold, login, uid and gid are each given once in a team.
		for what, change := range map[string]func(*store.UserRecord){
			"name": func(u *store.UserRecord) { u.Name = "ANN" }, "login": func(u *store.UserRecord) { u.Login = ann.Login },
			"uid": func(u *store.UserRecord) { u.UID = ann.UID }, "gid": func(u *store.UserRecord) { u.GID = ann.GID },
			"login on Windows": func(u *store.UserRecord) { u.WindowsLogin = ann.Login },
		} {
			u := bob
			u.ID, u.Name, u.Login, u.UID, u.GID, u.WindowsLogin, u.WindowsUID, u.WindowsGID = audit.NewID(), "carl", "carl", 1, 1, "carl", 1, 1
			change(&u)
			s.is("a second user with the same "+what, s.try(func(tx *store.Tx) error { return tx.AddUser(u) }), store.ErrExists)
		}

		ann.Status, ann.Details.FullName = sft.StatusDeleted, "Gone"
		s.change(func(tx *store.Tx) error { return tx.SaveUser(ann) })
		ann.PasswordHash = sft.NewSecret("$other")
		s.change(func(tx *store.Tx) error { return tx.SetPassword(ann.ID, ann.PasswordHash) })
		s.same("the user by id", get(s, func(tx *store.Tx) (store.UserRecord, error) { return tx.UserByID(ann.ID) }), ann)
		for login, want := range map[string]bool{"ann": true, "bob": true, "carl": false} {
			s.same("whether login "+login+" is taken", get(s, func(tx *store.Tx) (bool, error) { return tx.LoginTaken(s.team.ID, login, "") }), want)
		}
		s.same("the users", ids(get(s, func(tx *store.Tx) ([]store.UserRecord, error) { return tx.Users(s.team.ID) }), userName), []string{"Ann", "bob"})
		s.same("the users of no team", get(s, func(tx *store.Tx) ([]store.UserRecord, error) { return tx.Users("no") }), []store.UserRecord{})
		s.is("saving nobody", s.try(func(tx *store.Tx) error { return tx.SaveUser(store.UserRecord{}) }), store.ErrNotFound)
		s.is("a password for nobody", s.try(func(tx *store.Tx) error { return tx.SetPassword("no", sft.Secret{}) }), store.ErrNotFound)
		_, err := peek(s, func(tx *store.Tx) (store.UserRecord, error) { return tx.UserByID("no") })
		s.is("a user that is not there", err, store.ErrNotFound)
	})
}

func TestIDsAreNeverGivenTwice(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		var mu sync.Mutex
		got := map[int]int{}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for i := range 5 {
					// A change that fails gives its numbers back, to the next one.
					fails := errors.New("no")
					err := s.Change(context.Background(), func(tx *store.Tx) (audit.Event, error) {
						uid, gid, err := tx.NextIDs(s.team.ID)
						if i == 2 {
							return audit.Event{}, fails
						}
						mu.Lock()
						defer mu.Unlock()
						got[uid]++
						if gid != uid+2000+1000 {
							t.Errorf("uid %d goes with gid %d", uid, gid)
						}
						return event(audit.UserCreate), err
					})
					if err != nil && !errors.Is(err, fails) {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		for uid := 60001; uid <= 60032; uid++ {
			if got[uid] != 1 {
				t.Errorf("uid %d was given %d times", uid, got[uid])
			}
		}
		if len(got) != 32 {
			t.Errorf("%d uids were given, want 32", len(got))
		}
	})
}

func TestFirstUses(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		u := s.user("ann")
		find := func(hash string, now time.Time) error {
			got, err := peek(s, func(tx *store.Tx) (store.UserRecord, error) { return tx.FirstUse([]byte(hash), now) })
			if err == nil {
				s.same("the user", got, u)
			}
			return err
		}
		s.change(func(tx *store.Tx) error { return tx.AddFirstUse([]byte("h1"), u.ID, t0.Add(time.Hour)) })
		s.is("a good link", find("h1", t0), nil)
		s.is("another link", find("h2", t0), store.ErrNotFound)
		s.is("a link at its end", find("h1", t0.Add(time.Hour)), store.ErrNotFound)
		s.change(func(tx *store.Tx) error { return tx.EndFirstUses(u.ID) })
		s.is("a link that was ended", find("h1", t0), store.ErrNotFound)
	})
}

func TestServiceKeys(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		u, other := s.user("robot"), s.user("other")
		soon, late := t0.Add(time.Minute), t0.Add(time.Hour)
		key := func(id string, expires *time.Time) store.KeyRecord {
			k := store.KeyRecord{ServiceKey: sft.ServiceKey{ID: id, IssuedAt: t0, ExpiresAt: expires}, UserID: u.ID, SecretHash: []byte{0, 255}}
			s.change(func(tx *store.Tx) error { return tx.AddKey(k) })
			return k
		}
		k1, k2 := key("k1", nil), key("k2", &soon)
		s.change(func(tx *store.Tx) error { return tx.ExpireKeys(u.ID, late) })
		k1.ExpiresAt = &late
		s.same("a key that had no end", get(s, func(tx *store.Tx) (store.KeyRecord, error) { return tx.Key("k1") }), k1)
		s.note(func(n store.Notes) error { return n.KeyUsed("k2", t0) })
		k2.LastUsed = &t0
		s.same("a key that ends sooner", get(s, func(tx *store.Tx) (store.KeyRecord, error) { return tx.Key("k2") }), k2)
		s.same("the keys", ids(get(s, func(tx *store.Tx) ([]store.KeyRecord, error) { return tx.KeysByID(u.ID, ten) }), func(k store.KeyRecord) string { return k.ID }), []string{"k1", "k2"})
		s.is("another user's key", s.try(func(tx *store.Tx) error { return tx.RemoveKey(other.ID, "k1") }), store.ErrNotFound)
		s.change(func(tx *store.Tx) error { return tx.RemoveKey(u.ID, "k1") })
		_, err := peek(s, func(tx *store.Tx) (store.KeyRecord, error) { return tx.Key("k1") })
		s.is("a key that was removed", err, store.ErrNotFound)
	})
}

func TestGroups(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		ann, bob := s.user("ann"), s.user("bob")
		everyone, dev, ops := s.group(sft.Everyone), s.group("Dev"), s.group("ops")
		s.is("a group of the same name", s.try(func(tx *store.Tx) error {
			return tx.AddGroup(store.GroupRecord{TeamID: s.team.ID, Group: sft.Group{ID: audit.NewID(), Name: "dEV", Roles: []sft.Role{}}})
		}), store.ErrExists)
		dev.Roles = []sft.Role{}
		s.change(func(tx *store.Tx) error { return tx.SetRoles(dev.ID, dev.Roles) })
		s.same("the group", get(s, func(tx *store.Tx) (store.GroupRecord, error) { return tx.Group(s.team.ID, "DEV") }), dev)

		for i, want := range []bool{true, false} {
			var added bool
			s.change(func(tx *store.Tx) (err error) { added, err = tx.AddMember(dev.ID, ann.ID); return err })
			if added != want {
				t.Errorf("adding a member, time %d: added = %v", i+1, added)
			}
		}
		s.same("the groups of ann", ids(get(s, func(tx *store.Tx) ([]store.GroupRecord, error) { return tx.GroupsOf(ann) }), groupName), []string{"Dev", "everyone"})
		s.same("the groups of bob", get(s, func(tx *store.Tx) ([]store.GroupRecord, error) { return tx.GroupsOf(bob) }), []store.GroupRecord{everyone})
		s.same("the groups", ids(get(s, func(tx *store.Tx) ([]store.GroupRecord, error) { return tx.GroupsByName(s.team.ID, "", ten) }), groupName), []string{"Dev", "everyone", "ops"})
		s.same("the members", ids(get(s, func(tx *store.Tx) ([]store.UserRecord, error) { return tx.Members(dev.ID) }), userName), []string{"ann"})

		prod := s.project("prod")
		pg := store.ProjectGroupRecord{ProjectID: prod.ID, GroupID: dev.ID, ProjectGroup: sft.ProjectGroup{Group: "Dev", ServerAccess: true, CreatedAt: t0}}
		all := store.ProjectGroupRecord{ProjectID: prod.ID, GroupID: everyone.ID, ProjectGroup: sft.ProjectGroup{Group: "everyone", ServerAdmin: true, CreatedAt: t0}}
		s.change(func(tx *store.Tx) error { return errors.Join(tx.AddProjectGroup(pg), tx.AddProjectGroup(all)) })
		s.is("the same group once more", s.try(func(tx *store.Tx) error { return tx.AddProjectGroup(pg) }), store.ErrExists)
		pg.ServerAccess, pg.ServerAdmin = false, true
		s.change(func(tx *store.Tx) error { return tx.SaveProjectGroup(pg) })
		places := func(u store.UserRecord) []store.ProjectGroupRecord {
			list := get(s, func(tx *store.Tx) ([]store.ProjectGroupRecord, error) { return tx.ProjectGroupsOf(u) })
			byGroup := func(a, b store.ProjectGroupRecord) int { return strings.Compare(a.Group, b.Group) }
			slices.SortFunc(list, byGroup)
			byName := func(a, b store.GroupRecord) int { return strings.Compare(a.Name, b.Name) }
			groups := slices.SortedFunc(slices.Values(get(s, func(tx *store.Tx) ([]store.GroupRecord, error) { return tx.GroupsOf(u) })), byName)
			var both []store.GroupRecord
			also := get(s, func(tx *store.Tx) (places []store.ProjectGroupRecord, err error) {
				both, places, err = tx.PlacesOf(u)
				return places, err
			})
			slices.SortFunc(also, byGroup)
			slices.SortFunc(both, byName)
			s.same("groups and places at once: the places", also, list)
			s.same("groups and places at once: the groups", both, groups)
			return list
		}
		s.same("ann's places", places(ann), []store.ProjectGroupRecord{pg, all})
		s.same("bob's places", places(bob), []store.ProjectGroupRecord{all})

		before := s.revision(prod)
		s.change(func(tx *store.Tx) error { return tx.ReviseGroup(ops.ID) })
		s.same("the revision after a change of a group that is not in the project", s.revision(prod), before)
		s.change(func(tx *store.Tx) error { return tx.ReviseGroup(dev.ID) })
		s.same("the revision after a change of one that is", s.revision(prod), before+1)

		s.change(func(tx *store.Tx) error { return tx.RemoveGroup(dev.ID) })
		s.same("ann's places without the group", places(ann), []store.ProjectGroupRecord{all})
		s.same("ann's groups without the group", ids(get(s, func(tx *store.Tx) ([]store.GroupRecord, error) { return tx.GroupsOf(ann) }), groupName), []string{"everyone"})
		s.is("removing it again", s.try(func(tx *store.Tx) error { return tx.RemoveGroup(dev.ID) }), store.ErrNotFound)
		s.is("taking out who is not in", s.try(func(tx *store.Tx) error { return tx.RemoveMember(ops.ID, ann.ID) }), store.ErrNotFound)
		s.change(func(tx *store.Tx) error { return tx.RemoveProjectGroup(prod.ID, everyone.ID) })
		s.is("taking a group out twice", s.try(func(tx *store.Tx) error { return tx.RemoveProjectGroup(prod.ID, everyone.ID) }), store.ErrNotFound)
		s.is("saving a place that is not there", s.try(func(tx *store.Tx) error { return tx.SaveProjectGroup(all) }), store.ErrNotFound)
		s.is("a member of a group that is not there", s.try(func(tx *store.Tx) error { _, err := tx.AddMember("no", ann.ID); return err }), errAny)
	})
}

// errAny stands for any error in suite.is.
var errAny = anyError{}

type anyError struct{}

func (anyError) Error() string { return "an error" }

func TestProjects(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		p, q := s.project("Prod"), s.project("lab")
		s.is("a project of the same name", s.try(func(tx *store.Tx) error {
			return tx.AddProject(store.ProjectRecord{TeamID: s.team.ID, Project: sft.Project{ID: audit.NewID(), Name: "pROD"}})
		}), store.ErrExists)
		p.CreateServerUsers, p.DeleteServerUsers, p.MaxSession, p.DisconnectedSession, p.UserOnDemand = false, true, 1<<40, 0, 77
		s.change(func(tx *store.Tx) error { return tx.SaveProject(p) })
		s.same("the project", get(s, func(tx *store.Tx) (store.ProjectRecord, error) { return tx.Project(s.team.ID, "PROD") }), p)
		for i, c := range []sft.Channels{{Clipboard: true}, {Devices: true}, {Audio: true}, {OtherDynamic: true}, {}} {
			r := p
			r.ID, r.Name, r.Channels = audit.NewID(), fmt.Sprint("channels", i), c
			s.change(func(tx *store.Tx) error { return tx.AddProject(r) })
			s.same("the channels of a new project", get(s, func(tx *store.Tx) (store.ProjectRecord, error) { return tx.ProjectByID(r.ID) }), r)
			p.Channels = c
			s.change(func(tx *store.Tx) error { return tx.SaveProject(p) })
			s.same("the channels of one that was changed", get(s, func(tx *store.Tx) (store.ProjectRecord, error) { return tx.ProjectByID(p.ID) }), p)
			s.change(func(tx *store.Tx) error { return tx.RemoveProject(r.ID, t0) })
		}
		for i, o := range []sft.ClientOptions{{PortForward: sft.ForwardNetcat}, {ForwardAgent: sft.AgentHost}, {}} {
			r := p
			r.ID, r.Name, r.ClientOptions = audit.NewID(), fmt.Sprint("options", i), o
			s.change(func(tx *store.Tx) error { return tx.AddProject(r) })
			s.same("the client options of a new project", get(s, func(tx *store.Tx) (store.ProjectRecord, error) { return tx.ProjectByID(r.ID) }), r)
			p.ClientOptions = o
			s.change(func(tx *store.Tx) error { return tx.SaveProject(p) })
			s.same("those of one that was changed", get(s, func(tx *store.Tx) (store.ProjectRecord, error) { return tx.ProjectByID(p.ID) }), p)
			s.change(func(tx *store.Tx) error { return tx.RemoveProject(r.ID, t0) })
		}
		s.same("the channels of the other project", get(s, func(tx *store.Tx) (store.ProjectRecord, error) { return tx.ProjectByID(q.ID) }), q)
		s.change(func(tx *store.Tx) error { return errors.Join(tx.Revise(p.ID), tx.ReviseTeam(s.team.ID)) })
		s.same("the revisions", []int64{s.revision(p), s.revision(q)}, []int64{3, 2})

		token := store.TokenRecord{ProjectID: p.ID, SecretHash: []byte("hash"), EnrollmentToken: sft.EnrollmentToken{ID: "t1", Description: "d", CreatedBy: "ann", IssuedAt: t0, ExpiresAt: &t0, MaxUses: 2}}
		s.change(func(tx *store.Tx) error { return tx.AddToken(token) })
		other := token
		other.ID = "t2"
		s.is("a token with the same secret", s.try(func(tx *store.Tx) error { return tx.AddToken(other) }), store.ErrExists)
		s.change(func(tx *store.Tx) error { return tx.UseToken("t1") })
		token.Uses = 1
		s.same("the token", get(s, func(tx *store.Tx) (store.TokenRecord, error) { return tx.Token([]byte("hash")) }), token)
		s.same("the tokens", get(s, func(tx *store.Tx) ([]store.TokenRecord, error) { return tx.TokensByID(p.ID, ten) }), []store.TokenRecord{token})
		s.is("a token of another project", s.try(func(tx *store.Tx) error { return tx.RemoveToken(q.ID, "t1") }), store.ErrNotFound)

		s.change(func(tx *store.Tx) error { return tx.RemoveProject(p.ID, t0) })
		_, err := peek(s, func(tx *store.Tx) (store.ProjectRecord, error) { return tx.Project(s.team.ID, "prod") })
		s.is("a deleted project by name", err, store.ErrNotFound)
		_, err = peek(s, func(tx *store.Tx) (store.ProjectRecord, error) { return tx.ProjectByID(p.ID) })
		s.is("a deleted project by id", err, store.ErrNotFound)
		_, err = peek(s, func(tx *store.Tx) (store.TokenRecord, error) { return tx.Token([]byte("hash")) })
		s.is("a deleted project's token", err, store.ErrNotFound)
		s.same("the projects", len(get(s, func(tx *store.Tx) ([]store.ProjectRecord, error) { return tx.ProjectsByName(s.team.ID, ten) })), 1)
		s.project("prod") // the name is free again

		var list []store.CARecord
		for _, project := range []string{"", p.ID} {
			c := store.CARecord{ID: audit.NewID(), ProjectID: project, Kind: "access", Public: []byte{1}, Sealed: []byte{2, 0, 3}, CreatedAt: t0, NotAfter: t0.Add(time.Hour)}
			s.change(func(tx *store.Tx) error { return tx.AddCA(c) })
			list = append(list, c)
		}
		s.same("the platform's CAs", get(s, func(tx *store.Tx) ([]store.CARecord, error) { return tx.CAs("") }), list[:1])
		s.same("the project's CAs", get(s, func(tx *store.Tx) ([]store.CARecord, error) { return tx.CAs(p.ID) }), list[1:])
	})
}

// A database of the first version, with a project in it, is brought up to
// date as it is opened: the project allows what it always has.
func TestAProjectFromBeforeThereWereChannels(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		driver, dsn, dialect := "pgx", url, goose.DialectPostgres
		if path, ok := strings.CutPrefix(url, "sqlite:"); ok {
			driver, dsn, dialect = "sqlite", "file:"+path, goose.DialectSQLite3
		}
		old, err := sql.Open(driver, dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer old.Close()
		p, err := goose.NewProvider(dialect, old, os.DirFS("migrations"))
		if err == nil {
			_, err = p.UpTo(t.Context(), 1)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range []string{
			`INSERT INTO teams VALUES ('t', 'main', 'main', 1, 36000, true, 60001, 63001)`,
			`INSERT INTO projects VALUES ('p', 't', 'prod', 'prod', 1, NULL, 7, true, true, 60, 30)`,
		} {
			if _, err := old.ExecContext(t.Context(), q); err != nil {
				t.Fatalf("%s: %v", q, err)
			}
		}
		s := &suite{T: t, DB: open(t, url), url: url}
		want := store.ProjectRecord{TeamID: "t", Project: sft.Project{ID: "p", Name: "prod", CreatedAt: time.UnixMicro(1).UTC(), Revision: 7,
			CreateServerUsers: true, DeleteServerUsers: true, MaxSession: 60, DisconnectedSession: 30, Channels: sft.AllChannels}}
		s.same("the project", get(s, func(tx *store.Tx) (store.ProjectRecord, error) { return tx.ProjectByID("p") }), want)
	})
}

// named is ServersNamed, without the projects: each is the one that it should
// be.
func named(tx *store.Tx, teamID, name string) (list []store.ServerRecord, err error) {
	found, err := tx.ServersNamed(teamID, name)
	for _, f := range found {
		pr, perr := tx.ProjectByID(f.ProjectID)
		if perr != nil || pr != f.In {
			err = errors.Join(err, perr, fmt.Errorf("server %s is in %+v, and its project is %+v", f.ID, f.In, pr))
		}
		list = append(list, f.ServerRecord)
	}
	return list, err
}

func TestServers(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		prod, lab := s.project("prod"), s.project("lab")
		a, b, c := s.server(prod, "web01"), s.server(prod, "web01"), s.server(lab, "web01")
		s.same("the server", get(s, func(tx *store.Tx) (store.ServerRecord, error) { return tx.ServerByID(a.ID) }), a)
		twin := a
		twin.ID = audit.NewID()
		s.is("a server with the same device key", s.try(func(tx *store.Tx) error { return tx.AddServer(twin) }), store.ErrExists)

		take := func(r store.ServerRecord, names ...string) (taken []string) {
			s.change(func(tx *store.Tx) (err error) { taken, err = tx.TakeNames(r.ProjectID, r.ID, names); return err })
			return taken
		}
		named := func(name string) []string {
			list := get(s, func(tx *store.Tx) ([]store.ServerRecord, error) { return named(tx, s.team.ID, name) })
			return ids(list, func(r store.ServerRecord) string { return r.ID })
		}
		sorted := func(id ...string) []string { slices.Sort(id); return id }
		var none []string
		s.same("names in conflict of the first", take(a, "web01", "WEB01.local", "www"), none)
		s.same("of the second in the project", take(b, "Web01", "db", "WWW"), []string{"Web01", "WWW"})
		s.same("of one in another project", take(c, "web01"), none)
		s.same("who is web01", named("WEB01.LOCAL"), sorted(a.ID, c.ID))
		s.same("who is db", named("db"), []string{b.ID})
		s.same("who has the id", named(b.ID), []string{b.ID})
		s.same("who is nobody", named("nobody"), []string{})
		s.same("names in conflict after dropping some", take(a, "web01"), none)
		s.same("names that were dropped", take(b, "www"), none)
		s.same("who was db", named("db"), []string{})
		s.change(func(tx *store.Tx) error { return tx.RemoveServer(a.ID, t0) })
		s.same("names of a deleted server", take(b, "web01"), none)
		s.same("who is web01 now", named("web01"), sorted(b.ID, c.ID))
		s.same("who has the deleted id", named(a.ID), []string{})
		s.same("the servers", ids(get(s, func(tx *store.Tx) ([]store.ServerRecord, error) { return tx.Servers(prod.ID) }), func(r store.ServerRecord) string { return r.ID }), []string{b.ID})

		later := t0.Add(time.Hour)
		b.Facts, b.NameConflict, b.HostKey, b.HostKeyOld, b.LastSeq, b.LastSeen = api.Facts{Hostname: "new", OSType: "windows"}, []string{"x"}, []byte{3}, []byte{1, 2}, 7, &later
		s.change(func(tx *store.Tx) error { return errors.Join(tx.SaveServer(b), tx.SetLastSeq(b.ID, 7)) })
		s.note(func(n store.Notes) error { return n.ServerSeen(b.ID, later) })
		s.same("the server after a report", get(s, func(tx *store.Tx) (store.ServerRecord, error) { return tx.ServerByID(b.ID) }), b)
		s.is("seeing a server that is not there", s.Note(t.Context(), func(n store.Notes) error { return n.ServerSeen("no", t0) }), store.ErrNotFound)

		gone := get(s, func(tx *store.Tx) (store.ServerRecord, error) { return tx.ServerByID(a.ID) })
		for _, tt := range []struct {
			name string
			rec  store.ServerRecord
			now  time.Time
			want sft.State
		}{
			{"just before 96 hours of silence", b, later.Add(sft.ActiveFor - 1), sft.StateActive},
			{"after 96 hours of silence", b, later.Add(sft.ActiveFor), sft.StateInactive},
			{"never seen", store.ServerRecord{}, t0, sft.StateInactive},
			{"deleted", gone, t0, sft.StateDeleted},
		} {
			if got := tt.rec.Server(tt.now).State; got != tt.want {
				t.Errorf("%s: state %s, want %s", tt.name, got, tt.want)
			}
		}
	})
}

// A server without an agent is a record like any other, but nobody can be it.
func TestUnmanagedServers(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		prod := s.project("prod")
		var list []store.ServerRecord
		for _, name := range []string{"gw1", "gw2"} {
			r := store.ServerRecord{ID: audit.NewID(), TeamID: s.team.ID, ProjectID: prod.ID, Project: prod.Name, Unmanaged: true, RegisteredAt: t0, DeviceKeySince: t0,
				Facts: api.Facts{Hostname: name, AccessAddress: name, SSH: &api.SSHFacts{Port: 22}}}
			s.change(func(tx *store.Tx) error { return tx.AddServer(r) })
			s.same("the server", get(s, func(tx *store.Tx) (store.ServerRecord, error) { return tx.ServerByID(r.ID) }), r)
			list = append(list, r)
		}
		for _, key := range [][]byte{nil, {}, []byte(list[0].ID)} {
			_, err := peek(s, func(tx *store.Tx) (store.ServerRecord, error) { return tx.ServerByKey(key) })
			s.is("a server by no key", err, store.ErrNotFound)
		}
		r := list[0]
		r.NameConflict = []string{"10.0.0.1"}
		s.change(func(tx *store.Tx) error { return tx.SaveServer(r) })
		s.same("the server with a conflict", get(s, func(tx *store.Tx) (store.ServerRecord, error) { return tx.ServerByID(r.ID) }), r)
		v := r.Server(t0.Add(10000 * time.Hour))
		s.same("the noun", []any{v.State, v.Managed, v.SSHPort, v.LastSeen == nil}, []any{sft.StateActive, false, 22, true})
		s.change(func(tx *store.Tx) error { return tx.RemoveServer(r.ID, t0) })
		gone := get(s, func(tx *store.Tx) (store.ServerRecord, error) { return tx.ServerByID(r.ID) })
		s.same("the state of a deleted one", gone.Server(t0).State, sft.StateDeleted)
		web := s.server(prod, "web01")
		s.same("whether one with an agent is managed", []bool{web.Server(t0).Managed, web.Unmanaged}, []bool{true, false})
	})
}

func TestCloudAccounts(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		prod, lab := s.project("prod"), s.project("lab")
		account := func(p store.ProjectRecord, number string) store.CloudAccountRecord {
			return store.CloudAccountRecord{ProjectID: p.ID, CloudAccount: sft.CloudAccount{ID: audit.NewID(), Provider: "aws", AccountID: number, Description: "ours", CreatedBy: "olive", CreatedAt: t0}}
		}
		a, b := account(prod, "111111111111"), account(prod, "222222222222")
		s.change(func(tx *store.Tx) error { return errors.Join(tx.AddCloudAccount(a), tx.AddCloudAccount(b)) })
		s.is("an account in two projects", s.try(func(tx *store.Tx) error { return tx.AddCloudAccount(account(lab, "111111111111")) }), store.ErrExists)
		s.same("the account", get(s, func(tx *store.Tx) (store.CloudAccountRecord, error) { return tx.CloudAccount("aws", "111111111111") }), a)
		s.same("the account by its id", get(s, func(tx *store.Tx) (store.CloudAccountRecord, error) { return tx.CloudAccountByID(prod.ID, b.ID) }), b)
		_, err := peek(s, func(tx *store.Tx) (store.CloudAccountRecord, error) { return tx.CloudAccountByID(lab.ID, b.ID) })
		s.is("the account by its id in another project", err, store.ErrNotFound)
		_, err = peek(s, func(tx *store.Tx) (store.CloudAccountRecord, error) { return tx.CloudAccount("gce", "111111111111") })
		s.is("the account of another cloud", err, store.ErrNotFound)
		list := func(p store.ProjectRecord) []string {
			return ids(get(s, func(tx *store.Tx) ([]store.CloudAccountRecord, error) { return tx.CloudAccountsByID(p.ID, ten) }), func(c store.CloudAccountRecord) string { return c.AccountID })
		}
		s.same("the accounts", list(prod), []string{"111111111111", "222222222222"})
		s.is("removing it from another project", s.try(func(tx *store.Tx) error { return tx.RemoveCloudAccount(lab.ID, a.ID) }), store.ErrNotFound)
		s.change(func(tx *store.Tx) error { return tx.RemoveCloudAccount(prod.ID, a.ID) })
		s.same("the accounts after one was removed", list(prod), []string{"222222222222"})
		s.change(func(tx *store.Tx) error { return tx.RemoveProject(prod.ID, t0) })
		s.change(func(tx *store.Tx) error { return tx.AddCloudAccount(account(lab, "222222222222")) })
		s.same("an account of a project that was deleted, in another", list(lab), []string{"222222222222"})
	})
}

func TestInstances(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		prod := s.project("prod")
		instance := func(id string, at time.Time) store.ServerRecord {
			s.n++
			seen := t0
			return store.ServerRecord{ID: audit.NewID(), TeamID: s.team.ID, ProjectID: prod.ID, Project: prod.Name, DeviceKey: fmt.Append(nil, "key", s.n),
				Facts: api.Facts{Hostname: "web01"}, RegisteredAt: t0, DeviceKeySince: t0, LastSeen: &seen, Provider: "aws", Instance: &sft.InstanceDetails{InstanceID: id, AccountID: "111111111111", Region: "eu-test-1", PendingTime: at}}
		}
		byInstance := func(id string) (store.ServerRecord, error) {
			return peek(s, func(tx *store.Tx) (store.ServerRecord, error) { return tx.ServerByInstance("aws", id) })
		}
		started := func(id string) time.Time {
			return get(s, func(tx *store.Tx) (time.Time, error) { return tx.InstanceStarted("aws", id) })
		}
		a := instance("i-a", t0)
		s.same("when one was started that nobody knows", started("i-a"), time.Time{})
		s.change(func(tx *store.Tx) error { return tx.AddServer(a) })
		got, err := byInstance("i-a")
		s.is("the record of an instance", err, nil)
		s.same("the record of an instance", got, a)
		if v := got.Server(t0); v.CloudProvider != "aws" || v.InstanceDetails == nil || v.InstanceDetails.InstanceID != "i-a" || v.ReenrollAllowed {
			t.Errorf("the server of an instance is %+v", v)
		}
		s.is("a second record of an instance", s.try(func(tx *store.Tx) error { return tx.AddServer(instance("i-a", t0)) }), store.ErrExists)
		s.server(prod, "web02")
		s.server(prod, "web03") // servers without an instance do not meet
		_, err = byInstance("")
		s.is("the record of no instance", err, store.ErrNotFound)

		s.change(func(tx *store.Tx) error {
			return errors.Join(tx.AllowReenroll(a.ID, true), tx.SetLastSeq(a.ID, 7), tx.SaveServer(func() store.ServerRecord { r := a; r.HostKey = []byte{1}; return r }()))
		})
		got, err = byInstance("i-a")
		if err != nil || !got.ReenrollAllowed || got.LastSeq != 7 || len(got.HostKey) == 0 {
			t.Errorf("before it is taken over the record is %+v, %v", got, err)
		}
		next := instance("i-a", t0.Add(time.Hour))
		next.ID = a.ID
		s.change(func(tx *store.Tx) error { return tx.ReplaceServer(next) })
		got, err = byInstance("i-a")
		s.is("the record that was taken over", err, nil)
		s.same("the record that was taken over", got, next)
		s.same("when it was started", started("i-a"), t0.Add(time.Hour))

		s.change(func(tx *store.Tx) error { return tx.RemoveServer(a.ID, t0) })
		_, err = byInstance("i-a")
		s.is("a record that was deleted", err, store.ErrNotFound)
		s.same("when it was started, after that", started("i-a"), t0.Add(time.Hour))
		s.change(func(tx *store.Tx) error { return tx.AddServer(instance("i-a", t0)) })
		s.is("allowing it for one that is not there", s.try(func(tx *store.Tx) error { return tx.AllowReenroll("no", true) }), store.ErrNotFound)
	})
}

func TestClientsAndSessions(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		ann, bob := s.user("ann"), s.user("bob")
		c, other := s.client(ann), s.client(bob)
		if c.Fingerprint == "" || c.User != "ann" || !c.SignedInUntil.Equal(t0.Add(time.Hour)) {
			t.Errorf("the client is %+v", c)
		}
		twin := c
		twin.ID = audit.NewID()
		s.is("a client with the same device key", s.try(func(tx *store.Tx) error { return tx.AddClient(twin) }), store.ErrExists)
		count := func(user string) int {
			return len(get(s, func(tx *store.Tx) ([]store.ClientRecord, error) { return tx.ClientsByID(s.team.ID, user, "", ten) }))
		}
		s.same("how many clients the team, ann and nobody have", []int{count(""), count(ann.ID), count("no")}, []int{2, 1, 0})
		s.change(func(tx *store.Tx) error { return tx.SignInClient(c.ID, t0.Add(2*time.Hour)) })
		s.note(func(n store.Notes) error { return n.ClientSeen(c.ID, t0) })
		c.SignedInUntil, c.LastSeen = t0.Add(2*time.Hour), &t0
		s.same("the client later", s.clientNow(c), c)

		prod := s.project("prod")
		web, db := s.server(prod, "web"), s.server(prod, "db")
		session := func(id string, server store.ServerRecord, client store.ClientRecord, ends time.Time) store.Session {
			v := store.Session{ID: id, ProjectID: prod.ID, ServerID: server.ID, UserID: client.UserID, ClientID: client.ID, Service: "rdp", CreatedAt: t0, ExpiresAt: ends, LiveUntil: ends}
			s.change(func(tx *store.Tx) error { return tx.AddSession(v) })
			return v
		}
		v := session("s1", web, c, t0.Add(time.Hour))
		session("s2", web, c, t0.Add(time.Minute))
		session("s3", db, c, t0.Add(time.Hour))
		session("s4", web, other, t0.Add(time.Hour))
		s.same("the session", get(s, func(tx *store.Tx) (store.Session, error) { return tx.Session("s1") }), v)
		revoked := func(now time.Time) []string {
			list := get(s, func(tx *store.Tx) ([]string, error) { return tx.RevokedSessions(web.ID, now) })
			slices.Sort(list)
			return list
		}
		s.same("sessions that may not live, at first", revoked(t0), []string{})
		s.change(func(tx *store.Tx) error { return tx.RemoveClient(c.ID, t0) })
		s.same("when the client is deleted", revoked(t0), []string{"s1", "s2"})
		s.same("later", revoked(t0.Add(time.Minute)), []string{"s1"})
		if got := s.clientNow(c); got.State != sft.StateDeleted || got.SignedInUntil.After(time.Unix(0, 0)) {
			t.Errorf("the deleted client is %+v", got)
		}
		s.is("deleting nothing", s.try(func(tx *store.Tx) error { return tx.RemoveClient("no", t0) }), store.ErrNotFound)
	})
}

// What goes with the next statement or the commit is there for the one and
// undone by a failure of the other.
func TestWhatGoesLater(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		ann, prod := s.user("ann"), s.project("prod")
		c, web := s.client(ann), s.server(prod, "web")
		session := func(id string) store.Session {
			return store.Session{ID: id, ProjectID: prod.ID, ServerID: web.ID, UserID: ann.ID, ClientID: c.ID, Service: "rdp", CreatedAt: t0, ExpiresAt: t0.Add(time.Hour), LiveUntil: t0.Add(time.Hour)}
		}
		s.change(func(tx *store.Tx) error {
			if err := tx.AddSession(session("s1")); err != nil {
				return err
			}
			got, err := tx.Session("s1")
			s.same("in its transaction", got, session("s1"))
			return err
		})
		events := func() int {
			return len(get(s, func(tx *store.Tx) ([]audit.Event, error) { return tx.Events("main", "", 100, false) }))
		}
		had := events()
		for what, fn := range map[string]func(tx *store.Tx) error{
			"a session twice, by the commit": func(tx *store.Tx) error {
				return errors.Join(tx.AddSession(session("s2")), tx.AddSession(session("s1")))
			},
			"by what follows": func(tx *store.Tx) error {
				return errors.Join(tx.AddSession(session("s2")), tx.AddSession(session("s1")), tx.ProlongSession("s2", t0))
			},
			"by what reads then": func(tx *store.Tx) error {
				err := errors.Join(tx.AddSession(session("s2")), tx.AddSession(session("s1")))
				_, read := tx.Session("s2")
				return errors.Join(err, read)
			},
			"and when nobody looks at it": func(tx *store.Tx) error {
				if err := tx.AddSession(session("s2")); err != nil {
					return err
				}
				if err := tx.AddSession(session("s1")); err != nil {
					return err
				}
				tx.Session("s2")
				return nil
			},
		} {
			s.is(what, s.try(fn), store.ErrExists)
		}
		s.same("how many events are stored", events(), had)
		s.is("of the rest", s.DB.Read(t.Context(), func(tx *store.Tx) error { _, err := tx.Session("s2"); return err }), store.ErrNotFound)
		s.change(func(tx *store.Tx) error { return tx.AddSession(session("s2")) })
		s.same("how many events there are then", events(), had+1)
	})
}

// A session is of every server that it goes through, each for its own time.
// The tables of sessions were made anew: what was in them is.
func TestSessionsFromBefore(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		s, next := openOld(t, url, 18)
		ann, prod := s.user("ann"), s.project("prod")
		addOld(t, url, s.team.ID, prod.ID, "{}", "{}")
		c, gw, web := s.client(ann), store.ServerRecord{ID: "old00000"}, store.ServerRecord{ID: "old00001"}
		session := store.Session{ID: "s1", ProjectID: prod.ID, ServerID: web.ID, UserID: ann.ID, ClientID: c.ID, Service: "ssh", CreatedAt: t0, ExpiresAt: t0.Add(time.Minute), LiveUntil: t0.Add(time.Hour)}
		s.change(func(tx *store.Tx) error {
			return errors.Join(tx.AddSession(session), tx.AddSessionHop("s1", gw.ID, t0.Add(time.Hour)), tx.RemoveClient(c.ID, t0))
		})
		next()
		session.Revoked = true
		s.same("the session", get(s, func(tx *store.Tx) (store.Session, error) { return tx.Session("s1") }), session)
		for _, of := range []store.ServerRecord{gw, web} {
			s.same("what may not live", get(s, func(tx *store.Tx) ([]string, error) { return tx.RevokedSessions(of.ID, t0) }), []string{"s1"})
		}
		s.is("a hop of no session", s.try(func(tx *store.Tx) error { return tx.AddSessionHop("s9", gw.ID, t0) }), errAny)
		s.is("a hop of one", s.try(func(tx *store.Tx) error { return tx.AddSessionHop("s1", web.ID, t0) }), nil)
	})
}

func TestSessionsThroughAServer(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		ann := s.user("ann")
		c, other := s.client(ann), s.client(ann)
		prod, lab, edge := s.project("prod"), s.project("lab"), s.project("edge")
		gw, web, far, idle := s.server(edge, "gw"), s.server(prod, "web"), s.server(lab, "far"), s.server(prod, "idle")
		add := func(id string, to store.ServerRecord, by store.ClientRecord, via ...store.ServerRecord) {
			s.change(func(tx *store.Tx) error {
				err := tx.AddSession(store.Session{ID: id, ProjectID: to.ProjectID, ServerID: to.ID, UserID: ann.ID, ClientID: by.ID, Service: "ssh", CreatedAt: t0, ExpiresAt: t0.Add(time.Minute), LiveUntil: t0.Add(time.Minute)})
				for _, h := range via {
					err = errors.Join(err, tx.AddSessionHop(id, h.ID, t0.Add(time.Hour)))
				}
				return err
			})
		}
		add("s1", web, c, gw)
		add("s2", far, other, gw, web)
		add("s3", idle, other)
		add("s4", gw, c)
		revoked := func(of store.ServerRecord, now time.Time) []string {
			list := get(s, func(tx *store.Tx) ([]string, error) { return tx.RevokedSessions(of.ID, now) })
			slices.Sort(list)
			return list
		}
		none := []string{}
		s.same("what may not live, at first", revoked(gw, t0), none)
		s.change(func(tx *store.Tx) error { return tx.RemoveClient(c.ID, t0) })
		s.same("to and through the bastion, when a client is deleted", revoked(gw, t0), []string{"s1", "s4"})
		s.same("to the target", revoked(web, t0), []string{"s1"})
		s.same("through the bastion, when the session is over", revoked(gw, t0.Add(time.Minute)), []string{"s1"})
		s.same("through it, at its end", revoked(gw, t0.Add(time.Hour)), none)

		// A way that is issued again is open for longer, and never for less.
		hop := func(until time.Time) {
			s.change(func(tx *store.Tx) error { return tx.AddSessionHop("s1", gw.ID, until) })
		}
		hop(t0.Add(2 * time.Hour))
		hop(t0.Add(time.Minute))
		s.same("through it, after it was issued anew", revoked(gw, t0.Add(time.Hour)), []string{"s1"})

		// A server that moves ends what goes to it and through it; who else is on
		// the way hears of it, and nobody else.
		revisions := func() (list []int64) {
			for _, v := range []store.ServerRecord{gw, web, far, idle} {
				list = append(list, get(s, func(tx *store.Tx) (store.ServerRecord, error) { return tx.ServerByID(v.ID) }).Revision)
			}
			return list
		}
		s.same("the revisions", revisions(), []int64{0, 0, 0, 0})
		s.change(func(tx *store.Tx) error { return tx.MoveServer(web.ID, prod.ID, lab.ID, t0) })
		for _, v := range []store.ServerRecord{web, far} {
			if !slices.Contains(revoked(v, t0), "s2") {
				t.Errorf("%s is not told that the session ends with the move of a hop", v.Facts.Hostname)
			}
		}
		s.same("of the bastion", revoked(gw, t0), []string{"s1", "s2", "s4"})
		s.same("of another server", revoked(idle, t0), none)
		s.same("the revisions, after a move", revisions(), []int64{1, 1, 1, 0})
		add("s5", idle, other, far)
		s.change(func(tx *store.Tx) error { return tx.MoveServer(idle.ID, prod.ID, edge.ID, t0) })
		s.same("of the hop of a target that is moved", revoked(far, t0), []string{"s2", "s5"})
		s.same("the revisions, after another", revisions(), []int64{1, 1, 2, 1})

		s.note(func(n store.Notes) error { return n.SweepAccess(t0.Add(90 * time.Minute)) })
		s.same("after a sweep, through the bastion", revoked(gw, t0), []string{"s1", "s4"})
		s.note(func(n store.Notes) error { return n.SweepAccess(t0.Add(3 * time.Hour)) })
		s.same("after another", revoked(gw, t0), []string{"s4"})
	})
}

func TestSignInsOnTheirWay(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		u := s.user("ann")
		s.change(func(tx *store.Tx) error {
			return errors.Join(tx.AddWebSession([]byte("c1"), store.WebSession{UserID: u.ID, SignedIn: t0, Expires: t0.Add(time.Hour)}),
				tx.AddWebSession([]byte("c2"), store.WebSession{UserID: u.ID, SignedIn: t0, Expires: t0.Add(time.Hour)}))
		})
		web := func(hash string, now time.Time) (store.WebSession, error) {
			return peek(s, func(tx *store.Tx) (store.WebSession, error) { return tx.WebSession([]byte(hash), now) })
		}
		got, err := web("c1", t0)
		s.is("a web session", err, nil)
		s.same("the web session", got, store.WebSession{UserID: u.ID, SignedIn: t0, Expires: t0.Add(time.Hour)})
		_, err = web("c1", t0.Add(time.Hour))
		s.is("a web session at its end", err, store.ErrNotFound)
		s.change(func(tx *store.Tx) error { return tx.EndWebSession([]byte("c1")) })
		s.is("ending it twice", s.try(func(tx *store.Tx) error { return tx.EndWebSession([]byte("c1")) }), store.ErrNotFound)
		s.change(func(tx *store.Tx) error { return tx.EndWebSessions(u.ID) })
		_, err = web("c2", t0)
		s.is("a web session when all were ended", err, store.ErrNotFound)

		code := store.SignIn{CodeHash: []byte("code"), Kind: "code", TeamID: s.team.ID, UserID: u.ID, Challenge: "ch", RedirectURI: "http://127.0.0.1:1/callback",
			KeySHA256: "ab", Hostname: "h", OS: "o", Addr: "a", State: "approved", Expires: t0.Add(time.Minute)}
		device := store.SignIn{CodeHash: []byte("device"), Kind: "device", UserCode: "BCDF-GHJK", TeamID: s.team.ID, ClientID: "c", KeySHA256: "ab", State: "pending", Expires: t0.Add(time.Minute)}
		s.note(func(n store.Notes) error { return errors.Join(n.AddSignIn(code), n.AddSignIn(device)) })
		s.same("the code", get(s, func(tx *store.Tx) (store.SignIn, error) { return tx.SignIn([]byte("code"), t0) }), code)
		_, err = peek(s, func(tx *store.Tx) (store.SignIn, error) { return tx.SignIn([]byte("code"), t0.Add(time.Minute)) })
		s.is("a code at its end", err, store.ErrNotFound)
		pending := func() int64 {
			return get(s, func(tx *store.Tx) (int64, error) { return tx.PendingSignIns(t0) })
		}
		s.same("how many wait", pending(), int64(1))
		byCode := func() (store.SignIn, error) {
			return peek(s, func(tx *store.Tx) (store.SignIn, error) { return tx.SignInByUserCode("BCDF-GHJK", t0) })
		}
		got2, err := byCode()
		s.is("a typed code", err, nil)
		s.same("the typed code", got2, device)
		s.change(func(tx *store.Tx) error { return tx.AnswerSignIn([]byte("device"), u.ID, "approved") })
		_, err = byCode()
		s.is("a code that was answered", err, store.ErrNotFound)
		s.is("answering it again", s.try(func(tx *store.Tx) error { return tx.AnswerSignIn([]byte("device"), "x", "refused") }), store.ErrNotFound)
		s.same("how many wait now", pending(), int64(0))
		device.UserID, device.State = u.ID, "approved"
		s.same("the answered code", get(s, func(tx *store.Tx) (store.SignIn, error) { return tx.SignIn([]byte("device"), t0) }), device)
		s.note(func(n store.Notes) error { return n.EndSignIn([]byte("code")) })
		s.is("a code used twice", s.Note(t.Context(), func(n store.Notes) error { return n.EndSignIn([]byte("code")) }), store.ErrNotFound)
	})
}

func TestARequestIDWorksOnceAndSweepForgetsIt(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		u := s.user("ann")
		use := func() error {
			return s.Note(t.Context(), func(n store.Notes) error { return n.UseID("jti", t0.Add(time.Minute)) })
		}
		sweep := func(now time.Time) {
			s.note(func(n store.Notes) error { return errors.Join(n.Sweep(now), n.SweepAccess(now)) })
		}
		s.is("an id", use(), nil)
		s.is("the id again", use(), store.ErrExists)
		sweep(t0.Add(time.Minute))
		s.is("the id before its end", use(), store.ErrExists)
		s.change(func(tx *store.Tx) error {
			return errors.Join(tx.AddWebSession([]byte("w"), store.WebSession{UserID: u.ID, Expires: t0}), tx.AddFirstUse([]byte("f"), u.ID, t0))
		})
		s.note(func(n store.Notes) error {
			return n.AddSignIn(store.SignIn{CodeHash: []byte("c"), TeamID: s.team.ID, Expires: t0})
		})
		sweep(t0.Add(time.Hour))
		s.is("the id after its end", use(), nil)
		long := time.Time{}
		_, err1 := peek(s, func(tx *store.Tx) (store.WebSession, error) { return tx.WebSession([]byte("w"), long) })
		_, err2 := peek(s, func(tx *store.Tx) (store.UserRecord, error) { return tx.FirstUse([]byte("f"), long) })
		_, err3 := peek(s, func(tx *store.Tx) (store.SignIn, error) { return tx.SignIn([]byte("c"), long) })
		for _, err := range []error{err1, err2, err3} {
			s.is("what has expired, after a sweep", err, store.ErrNotFound)
		}

		// Of many who use the same id at once, one is the first.
		var wg sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			wg.Go(func() {
				errs[i] = s.Add(context.Background(), func(tx *store.Tx) (audit.Event, error) { return event(audit.UserCredsIssue), tx.UseID("race", t0) })
			})
		}
		wg.Wait()
		n := 0
		for _, err := range errs {
			if err == nil {
				n++
			} else if !errors.Is(err, store.ErrExists) {
				t.Error(err)
			}
		}
		s.same("how many used the id", n, 1)
	})
}

func TestAChangeAndItsEventAreStoredTogetherOrNotAtAll(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		count := func() int {
			return len(get(s, func(tx *store.Tx) ([]audit.Event, error) { return tx.Events("main", "", 1000, false) }))
		}
		refused := errors.New("refused")
		begin := count()
		for i, tt := range []struct {
			name  string
			event func(*audit.Event)
			also  func(*audit.Event)
			err   error
			want  error
		}{
			{"fn fails", nil, nil, refused, refused},
			{"no event at all", func(e *audit.Event) { *e = audit.Event{} }, nil, nil, errAny},
			{"an event without a kind", func(e *audit.Event) { e.Kind = "" }, nil, nil, errAny},
			{"without an actor", func(e *audit.Event) { e.Actor = audit.Actor{} }, nil, nil, errAny},
			{"without a time", func(e *audit.Event) { e.Time = time.Time{} }, nil, nil, errAny},
			{"without an outcome", func(e *audit.Event) { e.Outcome = "" }, nil, nil, errAny},
			{"with an odd outcome", func(e *audit.Event) { e.Outcome = "maybe" }, nil, nil, errAny},
			{"with an odd id", func(e *audit.Event) { e.ID = "1" }, nil, nil, errAny},
			{"a further event without a kind", nil, func(e *audit.Event) { e.Kind = "" }, nil, errAny},
		} {
			for name, run := range map[string]func(context.Context, func(*store.Tx) (audit.Event, error)) error{"Change": s.Change, "Add": s.Add} {
				err := run(t.Context(), func(tx *store.Tx) (audit.Event, error) {
					if err := tx.SetSetting("canary", fmt.Sprint(i)); err != nil {
						return audit.Event{}, err
					}
					e, also := event(audit.UserUpdate), event(audit.UserUpdate)
					if tt.event != nil {
						tt.event(&e)
					}
					if tt.also != nil {
						tt.also(&also)
						tx.Also(also)
					}
					return e, tt.err
				})
				s.is(name+": "+tt.name, err, tt.want)
				if _, err := peek(s, func(tx *store.Tx) (string, error) { return tx.Setting("canary") }); !errors.Is(err, store.ErrNotFound) {
					t.Errorf("%s, %s: the change was stored", name, tt.name)
				}
			}
		}
		s.same("how many events were added", count()-begin, 0)

		s.is("a change with a further event", s.Change(t.Context(), func(tx *store.Tx) (audit.Event, error) {
			tx.Also(event(audit.MemberAdd))
			return event(audit.UserCreate), tx.SetSetting("canary", "x")
		}), nil)
		s.same("how many events were added", count()-begin, 2)
	})
}

// The schema refuses an event that says nothing, whoever writes it.
func TestTheSchemaRefusesAnEmptyEvent(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		driver, dsn := "sqlite", strings.TrimPrefix(s.url, "sqlite:")
		if strings.HasPrefix(s.url, "postgres") {
			driver, dsn = "pgx", s.url
		}
		db, err := sql.Open(driver, dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		for _, row := range [][]any{{"", 1, "k", "{}"}, {"1", 0, "k", "{}"}, {"1", 1, "", "{}"}, {"1", 1, "k", ""}, {"1", 1, nil, "{}"}} {
			if _, err := db.Exec(`INSERT INTO events (id, at, team, kind, source, body) VALUES ($1, $2, '', $3, '', $4)`, row...); err == nil {
				t.Errorf("the event %q was stored", row)
			}
		}
		if _, err := db.Exec(`INSERT INTO events (id, at, team, kind, source, body) VALUES ('1', 1, '', 'k', '', '{}')`); err != nil {
			t.Error(err)
		}
	})
}

func TestReadCannotWrite(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		u := s.user("ann")
		for name, f := range map[string]func(*store.Tx) error{
			"SetSetting": func(tx *store.Tx) error { return tx.SetSetting("x", "y") },
			"SaveUser":   func(tx *store.Tx) error { return tx.SaveUser(u) },
			"AddEvent":   func(tx *store.Tx) error { _, err := tx.AddEvent(event(audit.UserUpdate)); return err },
			"NextIDs":    func(tx *store.Tx) error { _, _, err := tx.NextIDs(s.team.ID); return err },
			"UseID":      func(tx *store.Tx) error { return tx.UseID("x", t0) },
			"Sweep":      func(tx *store.Tx) error { return tx.Sweep(t0) },
			"AddSignIn":  func(tx *store.Tx) error { return tx.AddSignIn(store.SignIn{TeamID: s.team.ID}) },
			"ClientSeen": func(tx *store.Tx) error { return tx.ClientSeen("x", t0) },
		} {
			err := s.Read(t.Context(), f)
			if err == nil || errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s inside Read: %v, want the database's refusal", name, err)
			}
		}
		if _, err := peek(s, func(tx *store.Tx) (string, error) { return tx.Setting("x") }); !errors.Is(err, store.ErrNotFound) {
			t.Error("a setting was stored inside Read")
		}
	})
}

func TestALookWritesNothing(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		s.change(func(tx *store.Tx) error { return tx.SetSetting("x", "y") })
		for name, f := range map[string]func(store.Notes) error{
			"UseID":      func(n store.Notes) error { return n.UseID("x", t0) },
			"Sweep":      func(n store.Notes) error { return n.Sweep(t0) },
			"ClientSeen": func(n store.Notes) error { return n.ClientSeen("x", t0) },
		} {
			if err := s.Look(t.Context(), f); err == nil || errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s inside Look: %v, want a refusal", name, err)
			}
		}
		s.note(func(n store.Notes) error { return n.UseID("x", t0) }) // it is not taken
		s.is("a look", s.Look(t.Context(), func(n store.Notes) error {
			v, err := n.Setting("x")
			s.same("what it sees", v, "y")
			return err
		}), nil)
	})
}

// PostgreSQL undoes a transaction in which a statement has failed, and calls
// the COMMIT of it a success.
func TestCommitOfWhatHasFailed(t *testing.T) {
	db := open(t, testdb.Postgres(t))
	for _, tt := range []struct {
		statement string
		stored    bool
	}{{"SELECT 1", true}, {"SELECT 1/0", false}} {
		tx, err := store.BeginLocked(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		_, failed := tx.ExecContext(t.Context(), tt.statement)
		if err := tx.Commit(); (failed == nil) != tt.stored || (err == nil) != tt.stored {
			t.Errorf("%s: %v, and its commit: %v", tt.statement, failed, err)
		}
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
	if err := db.Change(t.Context(), func(tx *store.Tx) (audit.Event, error) { return event(audit.UserUpdate), nil }); err != nil {
		t.Errorf("a change after that: %v", err)
	}
}

// Connections that the server has closed meanwhile fail nobody.
func TestConnectionsThatWereClosed(t *testing.T) {
	url := testdb.Postgres(t)
	db, other := open(t, url), open(t, url)
	other.Close()
	admin, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	write := func() error {
		return db.Change(t.Context(), func(tx *store.Tx) (audit.Event, error) { return event(audit.UserUpdate), tx.SetSetting("x", "y") })
	}
	for range 5 {
		if err := write(); err != nil {
			t.Fatal(err)
		}
		if _, err := admin.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
			t.Fatal(err)
		}
		if err := write(); err != nil {
			t.Errorf("a change after its connection was closed: %v", err)
		}
	}
}

func TestReadSeesOneState(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		s.change(func(tx *store.Tx) error { return tx.SetSetting("x", "before") })
		err := s.Read(t.Context(), func(tx *store.Tx) error {
			first, err := tx.Setting("x")
			s.change(func(tx *store.Tx) error { return tx.SetSetting("x", "after") })
			second, err2 := tx.Setting("x")
			s.same("what is read before and after a change by another", []string{first, second}, []string{"before", "before"})
			return errors.Join(err, err2)
		})
		s.is("reading", err, nil)
	})
}

// While a Change is under way nothing else is written; Adds may overlap on
// PostgreSQL, but not with a Change.
func TestAddsRunTogetherAndNeverBesideAChange(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		s.change(func(tx *store.Tx) error { return tx.SetSetting("x", "0") })
		var mu sync.Mutex
		var adds, changes, together, beside int
		enter := func(n *int, by int) {
			mu.Lock()
			defer mu.Unlock()
			*n += by
			together = max(together, adds)
			if changes > 1 || changes > 0 && adds > 0 {
				beside++
			}
		}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for range 4 {
					run, n := s.Add, &adds
					if i < 2 {
						run, n = s.Change, &changes
					}
					if err := run(context.Background(), func(tx *store.Tx) (audit.Event, error) {
						enter(n, 1)
						defer enter(n, -1)
						before, err1 := tx.Setting("x")
						var err2 error
						if i < 2 {
							err2 = tx.SetSetting("x", before+"1")
						} else {
							time.Sleep(5 * time.Millisecond) // so that they can overlap
							var after string
							if after, err2 = tx.Setting("x"); after != before {
								t.Errorf("what an Add has read changed from %q to %q", before, after)
							}
						}
						return event(audit.UserUpdate), errors.Join(err1, err2)
					}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if beside > 0 {
			t.Errorf("something ran beside a Change, %d times", beside)
		}
		if strings.HasPrefix(s.url, "postgres") && together < 2 {
			t.Error("on PostgreSQL no two Adds ran together")
		}
		s.same("the changes", get(s, func(tx *store.Tx) (string, error) { return tx.Setting("x") }), "0"+strings.Repeat("1", 8))
	})
}

func TestAWriterThatGivesUpLeavesNothing(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		ctx, cancel := context.WithCancel(t.Context())
		err := s.Change(ctx, func(tx *store.Tx) (audit.Event, error) {
			err := tx.SetSetting("x", "y")
			cancel()
			return event(audit.UserUpdate), err
		})
		s.is("a change whose caller has gone", err, errAny)
		_, err = peek(s, func(tx *store.Tx) (string, error) { return tx.Setting("x") })
		s.is("what it wrote", err, store.ErrNotFound)
		s.change(func(tx *store.Tx) error { return tx.SetSetting("x", "z") })
		func() {
			defer func() { recover() }()
			s.Change(t.Context(), func(tx *store.Tx) (audit.Event, error) { tx.SetSetting("x", "panic"); panic("no") })
		}()
		s.same("the setting after a panic", get(s, func(tx *store.Tx) (string, error) { return tx.Setting("x") }), "z")
		s.change(func(tx *store.Tx) error { return tx.SetSetting("x", "and on") })
	})
}

func TestEvents(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		var want []audit.Event
		for i := range 7 {
			e := event(audit.SessionStart)
			e.Team, e.Session, e.Via, e.Detail = "paged", fmt.Sprint(i), []string{"b"}, map[string]string{"why": "\x00 \u2028 'quote'"}
			want = append(want, e)
		}
		for _, i := range []int{3, 0, 6, 1, 2, 5, 4} { // stored in any order
			s.change(func(tx *store.Tx) error {
				for range 2 { // and again, which does nothing
					if _, err := tx.AddEvent(want[i]); err != nil {
						return err
					}
				}
				return nil
			})
		}
		var added bool
		s.change(func(tx *store.Tx) (err error) { added, err = tx.AddEvent(want[0]); return err })
		s.same("whether an event is new the second time", added, false)
		page := func(after string, count int, down bool) []string {
			list := get(s, func(tx *store.Tx) ([]audit.Event, error) { return tx.Events("paged", after, count, down) })
			out := []string{}
			for _, e := range list {
				out = append(out, e.Session)
			}
			return out
		}
		s.same("all", get(s, func(tx *store.Tx) ([]audit.Event, error) { return tx.Events("paged", "", 100, false) }), want)
		s.same("the first page", page("", 3, false), []string{"0", "1", "2"})
		s.same("the second", page(want[2].ID, 3, false), []string{"3", "4", "5"})
		s.same("the last", page(want[5].ID, 3, false), []string{"6"})
		s.same("after the last", page(want[6].ID, 3, false), []string{})
		s.same("the newest", page("", 2, true), []string{"6", "5"})
		s.same("those before", page(want[5].ID, 3, true), []string{"4", "3", "2"})
		s.same("of another team", len(get(s, func(tx *store.Tx) ([]audit.Event, error) { return tx.Events("other", "", 100, false) })), 0)
	})
}

// What PostgreSQL cannot hold is refused on both, and nobody has that name.
func TestTextThatCannotBeStored(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		s.user("ann")
		for _, bad := range []string{"a\x00b", "a\xffb"} {
			err := s.try(func(tx *store.Tx) error { return tx.SetSetting("x", bad) })
			if sft.CodeOf(err) != sft.Invalid {
				t.Errorf("storing %q: %v, want %s", bad, err, sft.Invalid)
			}
			_, err = peek(s, func(tx *store.Tx) (store.UserRecord, error) { return tx.User(s.team.ID, bad) })
			s.is("looking for it", err, store.ErrNotFound)
			s.same("listing by it", get(s, func(tx *store.Tx) ([]store.ServerRecord, error) { return named(tx, s.team.ID, bad) }), []store.ServerRecord(nil))
			s.is("removing it", s.try(func(tx *store.Tx) error { return tx.RemoveKey(bad, bad) }), store.ErrNotFound)
		}
	})
}

func TestOpen(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		// Opening again finds the schema as it is.
		again := open(t, s.url)
		s.is("pinging", again.Ping(t.Context()), nil)
		s.same("the team", get(&suite{T: t, DB: again}, func(tx *store.Tx) (sft.Team, error) { return tx.Team("main") }), s.team)
		again.Close()
		s.is("pinging what is closed", again.Ping(t.Context()), errAny)
	})

	dir := t.TempDir()
	odd := filepath.Join(dir, "50%41 off & more; 'x'.db")
	open(t, "sqlite:"+odd)
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		i, err := os.Stat(f)
		if err != nil || i.Mode().Perm() != 0o600 || !strings.HasPrefix(f, odd) {
			t.Errorf("file %s of the database %s has mode %v, %v", f, odd, i.Mode(), err)
		}
	}

	for _, tt := range []struct{ url, want string }{
		{"mysql://x", "open database: the database is neither sqlite:PATH nor postgres://…"},
		{"", "open database: the database is neither sqlite:PATH nor postgres://…"},
		{"sqlite:", `open database: database "sqlite:" has no usable path; give sqlite:PATH`},
		{"sqlite:x?mode=memory", `open database: database "sqlite:x?mode=memory" has no usable path; give sqlite:PATH`},
		{"sqlite:" + dir + "/no/x.db", "open database: open " + dir + "/no/x.db: no such file or directory"},
		{"sqlite:" + dir, "open database: open " + dir + ": is a directory"},
		{"postgres://u:hunter2@127.0.0.1:1/x", ""},
		{"postgres://u:hunter2@%zz/x", ""},
	} {
		_, err := store.Open(t.Context(), tt.url)
		if err == nil || tt.want != "" && err.Error() != tt.want {
			t.Errorf("Open(%q) = %v, want %s", tt.url, err, tt.want)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Open(%q) shows the password: %v", tt.url, err)
		}
	}
}

// However many wait to write: who looks or reads gets an answer, and who gives
// up waiting hears so.
func TestThoseWhoWaitToWriteKeepNobodyFromReading(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		s.change(func(tx *store.Tx) error { return tx.SetSetting("x", "y") })
		inside, leave := make(chan struct{}), make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			s.is("the change that takes long", s.try(func(tx *store.Tx) error { close(inside); <-leave; return nil }), nil)
		})
		<-inside
		var began atomic.Int64
		const many = 40
		for i := range many {
			wg.Go(func() {
				run := s.Change
				if i%2 == 0 {
					run = s.Add
				}
				began.Add(1)
				s.is("one that waits", run(context.Background(), func(tx *store.Tx) (audit.Event, error) { return event(audit.UserUpdate), nil }), nil)
			})
		}
		defer wg.Wait()
		defer close(leave)
		for began.Load() < many {
			time.Sleep(time.Millisecond)
		}
		waiting := func() (n int) { return 7 }
		if strings.HasPrefix(s.url, "postgres") {
			raw := testdb.Raw(t, s.url)
			waiting = func() (n int) { // with a connection
				if err := raw.QueryRow(`SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted`).Scan(&n); err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		for round, had := 0, 0; round < 50; round++ { // since the last of them has come
			err := s.Look(ctx, func(n store.Notes) error { _, err := n.Setting("x"); return err })
			if err == nil {
				err = s.Read(ctx, func(tx *store.Tx) error { _, err := tx.Setting("x"); return err })
			}
			if err != nil {
				t.Fatal("somebody who reads: ", err)
			}
			if n := waiting(); n != had || n < 7 {
				had, round = n, 0
			}
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		s.is("one that gives up", s.Change(ctx, func(tx *store.Tx) (audit.Event, error) { return event(audit.UserUpdate), nil }), context.DeadlineExceeded)
	})
}
