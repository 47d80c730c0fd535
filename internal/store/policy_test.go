package store_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"sft"
	"sft/internal/audit"
	"sft/internal/store"
)

func TestLabelsFindServers(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		prod, lab := s.project("prod"), s.project("lab")
		a, b, c, other := s.server(prod, "a"), s.server(prod, "b"), s.server(prod, "c"), s.server(lab, "other")
		set := func(r *store.ServerRecord, given map[string]string) {
			r.Given = given
			s.change(func(tx *store.Tx) error { return tx.SetLabels(*r) })
		}
		say := func(r *store.ServerRecord, labels map[string]string) {
			r.Facts.Labels = labels
			s.change(func(tx *store.Tx) error { return tx.SaveServer(*r) })
		}
		found := func(each ...[]store.Labelled) (names []string) {
			f, page := store.ServerFilter{Projects: []string{prod.ID}, Labels: each}, store.Page{Count: 10}
			list := get(s, func(tx *store.Tx) ([]store.ServerRecord, error) { return tx.ServersByID(prod.TeamID, f, page) })
			for _, common := range []bool{false, true} {
				s.same(fmt.Sprintf("the same, whether many have the label: %t", common),
					get(s, func(tx *store.Tx) ([]store.ServerRecord, error) {
						return tx.ServersEitherWay(prod.TeamID, f, page, common)
					}), list)
			}
			for _, r := range list {
				names = append(names, r.Facts.Hostname)
			}
			slices.Sort(names)
			return names
		}
		by := func(name string, values ...string) store.Labelled {
			return store.Labelled{Names: []string{name}, Values: values}
		}
		one := func(l ...store.Labelled) []store.Labelled { return l }
		var none []string

		for _, r := range []*store.ServerRecord{&a, &other} {
			set(r, map[string]string{"api.env": "prod", "api.x": ""})
		}
		set(&b, map[string]string{"api.env": "lab"})
		say(&b, map[string]string{"sftd.env": "prod"})
		say(&c, map[string]string{"sftd.env": "prod", "sftd.y": "1"})
		s.same("the server", get(s, func(tx *store.Tx) (store.ServerRecord, error) { return tx.ServerByID(b.ID) }), b)
		s.same("all", found(), []string{"a", "b", "c"})
		s.same("with a value", found(one(by("api.env", "prod"))), []string{"a"})
		s.same("with one of two", found(one(by("api.env", "prod", "lab"))), []string{"a", "b"})
		s.same("with any", found(one(by("api.env"))), []string{"a", "b"})
		s.same("with an empty one", found(one(by("api.x", ""))), []string{"a"})
		s.same("of one of two keys", found(one(store.Labelled{Names: []string{"api.env", "sftd.env"}, Values: []string{"prod"}})), []string{"a", "b", "c"})
		s.same("of one of two labels", found(one(by("api.x"), by("sftd.y", "1"))), []string{"a", "c"})
		s.same("of both", found(one(by("sftd.env")), one(by("api.env"), by("sftd.y"))), []string{"b", "c"})
		s.same("in other letters", found(one(by("api.env", "PROD"))), none)

		count := func(most int64, l ...store.Labelled) int64 {
			return get(s, func(tx *store.Tx) (int64, error) { return tx.Labelled([]string{prod.ID}, l, most) })
		}
		s.same("labels of the project", count(10, by("api.env"), by("sftd.env", "prod")), int64(4))
		s.same("no more than are asked for", count(3, by("api.env"), by("sftd.env", "prod")), int64(3))
		s.same("none", count(3, by("api.env", "else")), int64(0))

		// Each source is stored by itself.
		set(&b, map[string]string{"api.new": "1"})
		s.same("what the host says, after what administrators say", found(one(by("sftd.env", "prod"))), []string{"b", "c"})
		s.same("what administrators said before", found(one(by("api.env", "lab"))), none)
		say(&b, nil)
		s.same("what administrators say, after what the host says", found(one(by("api.new"))), []string{"b"})
		s.same("what the host said before", found(one(by("sftd.env", "prod"))), []string{"c"})
		s.change(func(tx *store.Tx) error { return tx.RemoveServer(c.ID, t0) })
		s.same("after a server was deleted", found(one(by("sftd.env"))), none)
		s.same("before a server is moved here", found(one(by("api.x"))), []string{"a"})
		s.change(func(tx *store.Tx) error { return tx.MoveServer(other.ID, lab.ID, prod.ID, t0) })
		s.same("after a server was moved here", found(one(by("api.x"))), []string{"a", "other"})

		revision := func(r store.ServerRecord) int64 {
			return get(s, func(tx *store.Tx) (store.ServerRecord, error) { return tx.ServerByID(r.ID) }).Revision
		}
		before, project := revision(a), s.revision(prod)
		s.change(func(tx *store.Tx) error {
			if tx.News() != nil {
				t.Error("there is news already")
			}
			err := tx.ReviseServer(a.ID)
			s.same("whom it concerns", tx.News(), []string{a.ID})
			return err
		})
		if revision(a) != before+1 || revision(b) != 0 || s.revision(prod) != project {
			t.Errorf("the revisions are %d, %d and %d", revision(a), revision(b), s.revision(prod))
		}
	})
}

func TestSystemLabels(t *testing.T) {
	r := store.ServerRecord{Provider: "aws", Instance: &sft.InstanceDetails{AccountID: "123456789012", Region: "eu-west-1", Type: "not a label"}, Given: map[string]string{"api.a": "1"}}
	r.Facts.OSType, r.Facts.Labels = "linux", map[string]string{"sftd.a": "2"}
	want := map[string]string{"system.managed": "true", "system.os_type": "linux", "system.cloud_provider": "aws", "system.cloud_account": "123456789012", "system.cloud_region": "eu-west-1", "api.a": "1", "sftd.a": "2"}
	s := &suite{T: t}
	s.same("the labels", r.Labels(), want)
	for key := range r.Labels() {
		if sft.LabelSource(key) == sft.LabelSystem && !slices.Contains(sft.SystemLabels, key) {
			t.Errorf("%s is not among the system's labels", key)
		}
	}
}

func TestPreauthorizations(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		ann, bob, prod, lab := s.user("ann"), s.user("bob"), s.project("prod"), s.project("lab")
		made := func(u store.UserRecord, until time.Duration, servers []string, projects ...store.ProjectRecord) store.PreauthRecord {
			r := store.PreauthRecord{TeamID: s.team.ID, UserID: u.ID}
			r.ID, r.User, r.Servers, r.StartsAt, r.ExpiresAt, r.CreatedBy, r.CreatedAt = audit.NewID(), u.Name, servers, t0, t0.Add(until), "olive", t0
			for _, p := range projects {
				r.Projects, r.ProjectIDs = append(r.Projects, p.Name), append(r.ProjectIDs, p.ID)
			}
			s.change(func(tx *store.Tx) error { return tx.AddPreauth(r) })
			return r
		}
		a, b, c := made(ann, time.Hour, []string{"S1", "S2"}, lab, prod), made(ann, 2*time.Hour, nil, prod), made(bob, time.Hour, nil, prod)
		all := func(p store.ProjectRecord, after time.Duration) []store.PreauthRecord {
			return get(s, func(tx *store.Tx) ([]store.PreauthRecord, error) { return tx.PreauthsByID(p.ID, t0.Add(after), ten) })
		}
		s.same("of a project", all(prod, 0), []store.PreauthRecord{a, b, c})
		s.same("of the other", all(lab, 0), []store.PreauthRecord{a})
		s.same("those that go on", all(prod, time.Hour), []store.PreauthRecord{b})
		one := func(p store.ProjectRecord, id string) (store.PreauthRecord, error) {
			return peek(s, func(tx *store.Tx) (store.PreauthRecord, error) { return tx.Preauth(p.ID, id) })
		}
		got, err := one(lab, a.ID)
		s.is("one", err, nil)
		s.same("one", got, a)
		_, err = one(lab, b.ID)
		s.is("one of another project", err, store.ErrNotFound)
		of := func(after time.Duration) (found []string) {
			for _, r := range get(s, func(tx *store.Tx) ([]store.PreauthRecord, error) {
				return tx.PreauthsOf(prod.ID, ann.ID, t0.Add(after))
			}) {
				found = append(found, r.ID)
			}
			return found
		}
		s.same("of a user, the longest first", of(0), []string{b.ID, a.ID})
		s.same("of a user, those that go on", of(time.Hour), []string{b.ID})
		a.Servers, a.Projects, a.ProjectIDs, a.ExpiresAt, a.Disabled = nil, []string{"prod"}, []string{prod.ID}, t0.Add(3*time.Hour), true
		s.change(func(tx *store.Tx) error { return tx.SavePreauth(a) })
		got, err = one(prod, a.ID)
		s.is("one that was changed", err, nil)
		s.same("one that was changed", got, a)
		s.same("of the project that it was of", all(lab, 0), []store.PreauthRecord{})
		lost := a
		lost.ID = audit.NewID()
		s.is("saving one that is not there", s.try(func(tx *store.Tx) error { return tx.SavePreauth(lost) }), store.ErrNotFound)
		s.change(func(tx *store.Tx) error { return tx.RemoveProject(prod.ID, t0) })
		s.same("of a deleted project", all(prod, 0), []store.PreauthRecord{})
	})
}
