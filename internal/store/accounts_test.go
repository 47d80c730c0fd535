package store_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/audit"
	"sft/internal/store"
)

func (s *suite) sudo(name string) store.SudoRecord {
	s.Helper()
	r := store.SudoRecord{TeamID: s.team.ID, SudoEntitlement: sft.SudoEntitlement{ID: audit.NewID(), Name: name, Description: "d", CreatedAt: t0,
		Commands: []sft.SudoCommand{{Command: "/bin/ls", Type: "executable", Args: "-l", ArgsType: "custom"}}, NoPasswd: true, NoExec: true, RunAs: "x", SetEnv: true,
		AddEnv: []string{"A"}, SubEnv: []string{"B"}}}
	s.change(func(tx *store.Tx) error { return tx.AddSudo(r) })
	return r
}

func TestSudoEntitlements(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		a, b := s.sudo("Logs"), s.sudo("deploy")
		s.is("one of the same name", s.try(func(tx *store.Tx) error {
			r := a
			r.ID, r.Name = audit.NewID(), "LOGS"
			return tx.AddSudo(r)
		}), store.ErrExists)
		s.same("by its id", get(s, func(tx *store.Tx) (store.SudoRecord, error) { return tx.SudoByID(a.ID) }), a)
		s.same("by its name", get(s, func(tx *store.Tx) (store.SudoRecord, error) { return tx.Sudo(s.team.ID, "lOGS") }), a)
		_, err := peek(s, func(tx *store.Tx) (store.SudoRecord, error) { return tx.Sudo("other", "logs") })
		s.is("by its name in another team", err, store.ErrNotFound)
		s.same("all", len(get(s, func(tx *store.Tx) ([]store.SudoRecord, error) { return tx.SudosByID(s.team.ID, ten) })), 2)
		a.Name, a.Commands[0].Args, a.RunAs, a.AddEnv = "journal", "", "", nil
		s.change(func(tx *store.Tx) error { return tx.SaveSudo(a) })
		s.same("changed", get(s, func(tx *store.Tx) (store.SudoRecord, error) { return tx.Sudo(s.team.ID, "journal") }), a)
		s.is("two of one name", s.try(func(tx *store.Tx) error { r := a; r.Name = "Deploy"; return tx.SaveSudo(r) }), store.ErrExists)

		p, q, g, h := s.project("p"), s.project("q"), s.group("dev"), s.group("ops")
		place := func(p store.ProjectRecord, g store.GroupRecord, access bool) {
			t.Helper()
			s.change(func(tx *store.Tx) error {
				return tx.AddProjectGroup(store.ProjectGroupRecord{ProjectID: p.ID, GroupID: g.ID, ProjectGroup: sft.ProjectGroup{ServerAccess: access, CreatedAt: t0}})
			})
		}
		place(p, g, true)
		place(p, h, false)
		place(q, g, true)
		give := func(p store.ProjectRecord, g store.GroupRecord, ids ...string) {
			t.Helper()
			s.change(func(tx *store.Tx) error { return tx.SetSudo(p.ID, g.ID, ids) })
		}
		has := func(what string, want ...string) {
			t.Helper()
			got := []string{}
			for _, pr := range []store.ProjectRecord{p, q} {
				for _, pg := range get(s, func(tx *store.Tx) ([]store.ProjectGroupRecord, error) { return tx.ProjectGroups(pr.ID) }) {
					if len(pg.SudoEntitlements) > 0 {
						got = append(got, fmt.Sprint(pr.Name, " ", pg.Group, " ", pg.SudoEntitlements))
					}
				}
			}
			s.same(what, ids(got, func(v string) string { return v }), append([]string{}, want...))
		}
		give(p, g, a.ID, b.ID)
		give(p, h, b.ID)
		give(q, g, a.ID)
		has("three have some", "p dev [deploy journal]", "p ops [deploy]", "q dev [journal]")
		names := func(p store.ProjectRecord) []string {
			t.Helper()
			out := []string{}
			for _, r := range get(s, func(tx *store.Tx) ([]store.SudoRecord, error) { return tx.ProjectSudos(p.ID) }) {
				out = append(out, r.Name)
			}
			return out
		}
		s.same("those of a project", names(p), []string{"deploy", "journal"})
		give(p, g, a.ID)
		has("one was taken away", "p dev [journal]", "p ops [deploy]", "q dev [journal]")
		s.same("a group without access brings none", names(p), []string{"journal"})
		s.is("deleting one that is in use", s.try(func(tx *store.Tx) error { return tx.RemoveSudo(b.ID) }), errAny)
		s.is("giving one that is not there", s.try(func(tx *store.Tx) error { return tx.SetSudo(p.ID, g.ID, []string{"no"}) }), errAny)
		s.is("giving one to a group that is not in the project", s.try(func(tx *store.Tx) error { return tx.SetSudo(q.ID, h.ID, []string{b.ID}) }), errAny)
		in := func(r store.SudoRecord) []string {
			t.Helper()
			out := []string{}
			for _, p := range get(s, func(tx *store.Tx) ([]store.ProjectRecord, error) { return tx.SudoProjects(r.ID) }) {
				out = append(out, p.Name)
			}
			return out
		}
		s.same("where one is", in(a), []string{"p", "q"})
		s.change(func(tx *store.Tx) error { return tx.RemoveProject(q.ID, t0) })
		s.same("a deleted project has none", in(a), []string{"p"})
		s.change(func(tx *store.Tx) error { return tx.RemoveProjectGroup(p.ID, h.ID) })
		s.change(func(tx *store.Tx) error { return tx.RemoveGroup(g.ID) })
		s.same("nor has one that was taken out, or deleted", append(in(a), in(b)...), []string{})
		s.change(func(tx *store.Tx) error { return errors.Join(tx.RemoveSudo(a.ID), tx.RemoveSudo(b.ID)) })
		s.is("deleting twice", s.try(func(tx *store.Tx) error { return tx.RemoveSudo(a.ID) }), store.ErrNotFound)
	})
}

func TestLocalGroups(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		p, g, h := s.project("p"), s.group("dev"), s.group("ops")
		taken := func(name string) bool {
			t.Helper()
			return get(s, func(tx *store.Tx) (bool, error) { return tx.ServerGroupTaken(s.team.ID, name, "") })
		}
		rec := store.ProjectGroupRecord{ProjectID: p.ID, GroupID: g.ID, GID: 63001, ProjectGroup: sft.ProjectGroup{Group: "dev", ServerAccess: true, CreateServerGroup: true, ServerGroupName: "sft_dev", CreatedAt: t0}}
		var gid int
		s.change(func(tx *store.Tx) (err error) {
			if gid, err = tx.NextGID(s.team.ID); err != nil {
				return err
			}
			return errors.Join(tx.SetGID(g.ID, gid), tx.AddProjectGroup(rec))
		})
		s.same("the first gid", gid, 63001)
		s.same("the place", get(s, func(tx *store.Tx) ([]store.ProjectGroupRecord, error) { return tx.ProjectGroups(p.ID) }), []store.ProjectGroupRecord{rec})
		g.GID = gid
		s.same("the group", get(s, func(tx *store.Tx) (store.GroupRecord, error) { return tx.Group(s.team.ID, "dev") }), g)
		s.is("two groups of one gid", s.try(func(tx *store.Tx) error { return tx.SetGID(h.ID, gid) }), store.ErrExists)
		other := rec
		other.GroupID = h.ID
		s.is("two groups of one name in a project", s.try(func(tx *store.Tx) error { return tx.AddProjectGroup(other) }), store.ErrExists)
		q := s.project("q")
		other.ProjectID = q.ID
		s.change(func(tx *store.Tx) error { return tx.AddProjectGroup(other) })
		rec.ServerGroupName, rec.CreateServerGroup, rec.ServerAdmin = "", false, true
		s.change(func(tx *store.Tx) error { return tx.SaveProjectGroup(rec) })
		s.same("the place now", get(s, func(tx *store.Tx) ([]store.ProjectGroupRecord, error) { return tx.ProjectGroups(p.ID) }), []store.ProjectGroupRecord{rec})
		s.same("the name is in use elsewhere", taken("sft_dev"), true)
		s.change(func(tx *store.Tx) error { return tx.RemoveProject(q.ID, t0) })
		s.same("the name is in use", taken("sft_dev"), false)

		// A user's gid and a group's come from one counter, which steps over what
		// stands for nobody.
		if u := s.user("ann"); u.UID != 60001 || u.GID != 63002 {
			t.Errorf("the user has uid %d and gid %d", u.UID, u.GID)
		}
		var uids, gids []int
		s.change(func(tx *store.Tx) error {
			for range 2540 {
				gid, err := tx.NextGID(s.team.ID)
				if err != nil {
					return err
				}
				gids = append(gids, gid)
			}
			uid, gid, err := tx.NextIDs(s.team.ID)
			uids, gids = append(uids, uid), append(gids, gid)
			return err
		})
		for i, gid := range gids {
			want := 63003 + i
			if want > 65533 {
				want += 2
			}
			if gid != want {
				t.Fatalf("gid %d follows %d", gid, gids[max(i-1, 0)])
			}
		}
		s.same("the uid", uids, []int{60002})
	})
}

func TestBindings(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		p := s.project("p")
		s1, s2 := s.server(p, "web01"), s.server(p, "web02")
		robot, other := s.user("robot"), s.user("other")
		bind := func(u store.UserRecord, r store.ServerRecord, account string) store.Binding {
			t.Helper()
			b := store.Binding{ID: audit.NewID(), UserID: u.ID, ServerID: r.ID, Account: account, CreatedBy: "ann", CreatedAt: t0}
			s.change(func(tx *store.Tx) error { return tx.AddBinding(b) })
			return b
		}
		b1, b2, b3 := bind(robot, s1, "deploy"), bind(robot, s2, "deploy"), bind(other, s1, "root")
		s.is("an account that is bound", s.try(func(tx *store.Tx) error {
			return tx.AddBinding(store.Binding{ID: "x", UserID: other.ID, ServerID: s1.ID, Account: "deploy", CreatedAt: t0})
		}), store.ErrExists)
		s.same("that of an account", get(s, func(tx *store.Tx) (store.Binding, error) { return tx.Binding(s1.ID, "root") }), b3)
		for _, account := range []string{"Deploy", "deploy ", "", "roo", "%"} {
			_, err := peek(s, func(tx *store.Tx) (store.Binding, error) { return tx.Binding(s1.ID, account) })
			s.is("account "+account, err, store.ErrNotFound)
		}
		_, err := peek(s, func(tx *store.Tx) (store.Binding, error) { return tx.BindingByID(other.ID, b1.ID) })
		s.is("that of another user", err, store.ErrNotFound)
		s.same("those of a user", get(s, func(tx *store.Tx) ([]store.Binding, error) { return tx.Bindings(robot.ID) }), []store.Binding{b1, b2})
		s.same("who is bound", get(s, func(tx *store.Tx) (map[string]bool, error) { return tx.Bound(s.team.ID) }), map[string]bool{robot.ID: true, other.ID: true})
		s.same("who is bound in another team", get(s, func(tx *store.Tx) (map[string]bool, error) { return tx.Bound("x") }), map[string]bool{})

		client := func(u store.UserRecord, b store.Binding) store.ClientRecord {
			t.Helper()
			s.n++
			c := store.ClientRecord{TeamID: s.team.ID, UserID: u.ID, DeviceKey: fmt.Append(nil, "bound", s.n), BindingID: b.ID}
			c.ID, c.User, c.State, c.EnrolledAt, c.MadeBy, c.SignedInUntil = audit.NewID(), u.Name, sft.StateActive, t0, b.ServerID, t0.Add(time.Duration(s.n)*time.Second)
			s.change(func(tx *store.Tx) error {
				return errors.Join(tx.AddClient(c), tx.AddSession(store.Session{ID: "of " + c.ID, ProjectID: p.ID, ServerID: s2.ID, UserID: u.ID, ClientID: c.ID, Service: "rdp", CreatedAt: t0, ExpiresAt: t0.Add(time.Hour), LiveUntil: t0.Add(time.Hour)}))
			})
			now := s.clientNow(c)
			s.same("a client that an agent asked for", []string{now.BindingID, now.MadeBy}, []string{b.ID, b.ServerID})
			s.same("it by its key", get(s, func(tx *store.Tx) (store.ClientRecord, error) { return tx.ClientByKey(c.DeviceKey) }), now)
			return c
		}
		c1, c1b, c2, c3, mine := client(robot, b1), client(robot, b1), client(robot, b2), client(other, b3), s.client(robot)
		state := func(want string) {
			t.Helper()
			got := ""
			for _, c := range []store.ClientRecord{c1, c1b, c2, c3, mine} {
				if s.clientNow(c).State == sft.StateActive {
					got += "A"
				} else {
					got += "-"
				}
				if c.ID == mine.ID {
					continue
				}
				v := get(s, func(tx *store.Tx) (store.Session, error) { return tx.Session("of " + c.ID) })
				s.same("the session of a deleted client is ended", v.Revoked, got[len(got)-1] == '-')
			}
			s.same("the clients", got, want)
		}
		s.same("those of a binding, in the order of their ends", get(s, func(tx *store.Tx) ([]store.ClientRecord, error) { return tx.BindingClients(b1.ID) }), []store.ClientRecord{s.clientNow(c1), s.clientNow(c1b)})
		state("AAAAA")
		before := s.revision(p)
		s.change(func(tx *store.Tx) error { return tx.RemoveBinding(b1.ID, t0) })
		state("--AAA")
		if s.revision(p) == before {
			t.Error("agents do not hear of a binding's end")
		}
		s.change(func(tx *store.Tx) error { return tx.RemoveBoundClients(robot.ID, t0) })
		state("---AA")
		s.same("its bindings stay", len(get(s, func(tx *store.Tx) ([]store.Binding, error) { return tx.Bindings(robot.ID) })), 1)
		c2 = client(robot, b2)
		s.change(func(tx *store.Tx) error { return tx.RemoveServer(s2.ID, t0) })
		state("---AA")
		s1.Facts.Hostname = "again"
		s.change(func(tx *store.Tx) error { return tx.ReplaceServer(s1) })
		state("----A")
		s.same("nobody is bound", get(s, func(tx *store.Tx) (map[string]bool, error) { return tx.Bound(s.team.ID) }), map[string]bool{})
		s3 := s.server(p, "web03")
		b4 := bind(robot, s3, "deploy")
		c1 = client(robot, b4)
		s.change(func(tx *store.Tx) error { return tx.RemoveBindings(robot.ID, t0) })
		state("----A")
		before = s.revision(p)
		s.change(func(tx *store.Tx) error { return tx.RemoveBindings(robot.ID, t0) })
		s.same("nothing ends twice", s.revision(p), before)
	})
}

// What hosts cannot have is kept by the server that says so, and its word is
// replaced as a whole.
func TestConflicts(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		p := s.project("p")
		a, b := s.server(p, "web01"), s.server(p, "web02")
		ann, g := s.user("ann"), s.group("dev")
		name := store.Conflict{Subject: ann.ID, Attribute: "unix_user_name", Value: "ann", Reason: "there"}
		group := store.Conflict{Subject: g.ID, Attribute: "unix_gid", Value: "63001", Reason: "there, too"}
		where := func(c store.Conflict, first int) []any {
			t.Helper()
			var count int64
			list := get(s, func(tx *store.Tx) (l []store.Claim, err error) {
				l, count, err = tx.Conflicting(c.Subject, c.Attribute, c.Value, first)
				return l, err
			})
			var hosts []string
			for _, v := range list {
				hosts = append(hosts, v.ServerID+" "+v.Server+" "+v.Project+" "+v.Reason)
			}
			return []any{count, hosts}
		}
		told := func(r store.ServerRecord, why string) string { return r.ID + " " + r.Facts.Hostname + " p " + why }
		s.same("at first", where(name, 9), []any{int64(0), []string(nil)})
		s.change(func(tx *store.Tx) error {
			return errors.Join(tx.SetConflicts(a.ID, []store.Conflict{name, group}), tx.SetConflicts(b.ID, []store.Conflict{name}))
		})
		s.same("by two", where(name, 9), []any{int64(2), []string{told(a, "there"), told(b, "there")}})
		s.same("the first of two", where(name, 1), []any{int64(2), []string{told(a, "there")}})
		s.same("of a group", where(group, 9), []any{int64(1), []string{told(a, "there, too")}})
		other := name
		other.Value = "anna"
		s.same("of another value", where(other, 9), []any{int64(0), []string(nil)})
		s.change(func(tx *store.Tx) error { return tx.SetConflicts(a.ID, []store.Conflict{group}) })
		s.same("what one said", get(s, func(tx *store.Tx) ([]store.Conflict, error) { return tx.ConflictsOn(a.ID) }), []store.Conflict{group})
		s.same("by one", where(name, 9), []any{int64(1), []string{told(b, "there")}})
		var many []store.Conflict
		for n := range 101 {
			many = append(many, store.Conflict{Subject: fmt.Sprintf("subject-%03d", n), Attribute: "unix_uid", Value: fmt.Sprint(n), Reason: "there"})
		}
		statements := 0
		s.Watch(func(v store.Span) { statements += v.Statements })
		s.change(func(tx *store.Tx) error { return tx.SetConflicts(a.ID, many) })
		s.Watch(func(store.Span) {})
		got := get(s, func(tx *store.Tx) ([]store.Conflict, error) { return tx.ConflictsOn(a.ID) })
		slices.SortFunc(got, func(a, b store.Conflict) int { return strings.Compare(a.Subject, b.Subject) })
		s.same("many", got, many)
		if statements > 10 {
			t.Errorf("that took %d statements", statements)
		}
		s.change(func(tx *store.Tx) error { return tx.SetConflicts(a.ID, []store.Conflict{group}) })
		q := s.project("q")
		s.change(func(tx *store.Tx) error { return tx.MoveServer(b.ID, p.ID, q.ID, t0) })
		s.same("by a server that was moved", where(name, 9), []any{int64(0), []string(nil)})
		s.change(func(tx *store.Tx) error { return tx.RemoveServer(a.ID, t0) })
		s.same("by a server that is gone", where(group, 9), []any{int64(0), []string(nil)})
	})
}

// A user's accounts of two systems are both theirs for good, and the agents of
// one system hear of what is theirs.
func TestAccountsOfTwoSystems(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		p := s.project("p")
		lin, win := s.server(p, "web01"), s.server(p, "win01")
		win.Facts.OSType = sft.Windows
		s.change(func(tx *store.Tx) error { return tx.SaveServer(win) })
		ann, bob := s.user("ann"), s.user("bob")
		now := ann
		now.WindowsLogin, now.WindowsUID, now.WindowsGID = "ann.m", 70001, 70002
		s.change(func(tx *store.Tx) error { return tx.SetAccounts(ann, now) })
		s.same("the user", get(s, func(tx *store.Tx) (store.UserRecord, error) { return tx.UserByID(ann.ID) }), now)
		last := now
		last.WindowsLogin, last.WindowsUID, last.WindowsGID = "ann2", 70003, 70004
		s.change(func(tx *store.Tx) error { return tx.SetAccounts(now, last) })
		for _, of := range []struct {
			login    string
			uid, gid int
		}{{"ann", ann.UID, ann.GID}, {"ann.m", 70001, 70002}, {"ann2", 70003, 70004}} {
			taken := func(except string) []bool {
				return get(s, func(tx *store.Tx) (l []bool, err error) {
					login, err1 := tx.LoginTaken(s.team.ID, of.login, except)
					uid, err2 := tx.UIDTaken(s.team.ID, of.uid, except)
					gid, err3 := tx.GIDTaken(s.team.ID, of.gid, except)
					return []bool{login, uid, gid}, errors.Join(err1, err2, err3)
				})
			}
			s.same(of.login+" for another", taken(bob.ID), []bool{true, true, true})
			s.same(of.login+" for its own", taken(ann.ID), []bool{false, false, false})
		}
		same := bob
		same.WindowsLogin = "ann2"
		s.is("two of one login on Windows", s.try(func(tx *store.Tx) error { return tx.SetAccounts(bob, same) }), store.ErrExists)
		revision := func(id string) int64 {
			return get(s, func(tx *store.Tx) (store.ServerRecord, error) { return tx.ServerByID(id) }).Revision
		}
		s.change(func(tx *store.Tx) error { return tx.ReviseSystem(s.team.ID, sft.Windows) })
		s.same("the revisions", []int64{revision(lin.ID), revision(win.ID)}, []int64{0, 1})
		s.change(func(tx *store.Tx) error { return tx.ReviseSystem(s.team.ID, sft.Linux) })
		s.same("the revisions", []int64{revision(lin.ID), revision(win.ID)}, []int64{1, 1})
	})
}
