package store_test

import (
	"fmt"
	"strings"
	"testing"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/store"
	"sft/internal/testdb"
)

// found are the hosts that a filter lets through, in their order.
func found(s *suite, f store.ServerFilter, p store.Page) string {
	s.Helper()
	var hosts []string
	for _, v := range get(s, func(tx *store.Tx) ([]store.ServerRecord, error) { return tx.ServersByID(s.team.ID, f, p) }) {
		hosts = append(hosts, v.Facts.Hostname)
	}
	return strings.Join(hosts, " ")
}

// A server is found by its bastion and by each of its further names, as they
// are now.
func TestServersByAlias(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		prod, lab := s.project("prod"), s.project("lab")
		add := func(in store.ProjectRecord, f api.Facts) store.ServerRecord {
			v := store.ServerRecord{ID: audit.NewID(), TeamID: s.team.ID, ProjectID: in.ID, Project: in.Name, DeviceKey: []byte(f.Hostname), Facts: f, RegisteredAt: t0}
			s.change(func(tx *store.Tx) error { return tx.AddServer(v) })
			return v
		}
		a := add(prod, api.Facts{Hostname: "a", Bastion: "GW", AltNames: []string{"One", "two", "ONE"}})
		b := add(lab, api.Facts{Hostname: "b", Bastion: "gw", AltNames: []string{"one"}})
		add(lab, api.Facts{Hostname: "c", Bastion: "one", AltNames: []string{"gw"}})
		is := func(what string, f store.ServerFilter, want string) {
			t.Helper()
			s.same(what, found(s, f, ten), want)
		}
		is("by the bastion", store.ServerFilter{Bastion: "Gw"}, "a b")
		s.same("backwards", found(s, store.ServerFilter{Bastion: "gw"}, store.Page{Count: 10, Descending: true}), "b a")
		s.same("the next page", found(s, store.ServerFilter{Bastion: "gw"}, store.Page{Count: 10, After: a.ID}), "b")
		is("by a name", store.ServerFilter{AltName: "oNe"}, "a b")
		is("by a part of one", store.ServerFilter{AltName: "on"}, "")
		is("by both", store.ServerFilter{AltName: "gw", Bastion: "one"}, "c")
		is("by both, of different servers", store.ServerFilter{AltName: "two", Bastion: "one"}, "")
		is("in a project", store.ServerFilter{AltName: "one", Projects: []string{lab.ID}}, "b")
		is("in several", store.ServerFilter{Bastion: "gw", Projects: []string{lab.ID, prod.ID}}, "a b")
		a.Facts.Bastion, a.Facts.AltNames = "", []string{"two", "three"}
		s.change(func(tx *store.Tx) error { return tx.SaveServer(a) })
		is("by the bastion, after one has none", store.ServerFilter{Bastion: "gw"}, "b")
		is("by the name that it has no more", store.ServerFilter{AltName: "one"}, "b")
		is("by a name that it kept", store.ServerFilter{AltName: "two"}, "a")
		is("by a new name", store.ServerFilter{AltName: "three"}, "a")
		s.change(func(tx *store.Tx) error { return tx.RemoveServer(b.ID, t0) })
		is("by the bastion of a deleted one", store.ServerFilter{Bastion: "gw"}, "")
		s.same("how many aliases there are", s.count(`server_aliases`), 4)
	})
}

// count is how many rows a table has.
func (s *suite) count(table string) (n int) {
	s.Helper()
	if err := testdb.Raw(s.T, s.url).QueryRow(`SELECT count(*) FROM ` + table).Scan(&n); err != nil {
		s.Fatal(err)
	}
	return n
}

// addOld adds servers to a database of an older schema: the columns that it
// has had since the beginning.
func addOld(t *testing.T, url, team, project string, facts ...string) {
	t.Helper()
	db := testdb.Raw(t, url)
	for i, f := range facts {
		if _, err := db.Exec(`INSERT INTO servers (id, team_id, project_id, device_key, hostname, canonical_name, access_address, broker_port, facts, name_conflict, registered_at, last_seq)
			VALUES ($1, $2, $3, $4, '', '', '', 1, $5, '[]', 1, 0)`, fmt.Sprintf("old%05d", i), team, project, fmt.Append(nil, "old", i), f); err != nil {
			t.Fatal(err)
		}
	}
}

// openOld opens a database with an older schema, and lends it the columns of
// events that this program writes. next opens it as it is to be.
func openOld(t *testing.T, url string, version int64) (s *suite, next func()) {
	t.Helper()
	db, err := store.OpenAt(t.Context(), url, version)
	if err != nil {
		t.Fatal(err)
	}
	exec := func(query string) {
		if _, err := testdb.Raw(t, url).Exec(query); err != nil {
			t.Fatal(err)
		}
	}
	exec(`ALTER TABLE events ADD COLUMN session text`)
	s = &suite{T: t, DB: db, url: url, team: sft.Team{ID: audit.NewID(), Name: "Main", CreatedAt: t0, ClientSession: 36000, WebSession: 36000, AllowDeviceCode: true}}
	s.change(func(tx *store.Tx) error { return tx.AddTeam(s.team) })
	return s, func() {
		db.Close()
		exec(`ALTER TABLE events DROP COLUMN session`)
		s.DB = open(t, url)
	}
}

// Servers of before are found as well, however many there are.
func TestAliasesFromBefore(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		s, next := openOld(t, url, 20)
		prod := s.project("prod")
		facts := make([]string, 1201)
		for i := range facts {
			facts[i] = fmt.Sprintf(`{"hostname":"h%d"}`, i)
		}
		facts[700], facts[1200] = `{"hostname":"x","bastion":"GW","alt_names":["A","b"]}`, `{"hostname":"y","bastion":"gw"}`
		addOld(t, url, s.team.ID, prod.ID, facts...)
		next()
		s.same("by the bastion", found(s, store.ServerFilter{Bastion: "gw"}, ten), "x y")
		s.same("by a name", found(s, store.ServerFilter{AltName: "a"}, ten), "x")
		have, newest, err := s.Versions(t.Context())
		if err != nil || have != newest {
			t.Errorf("the schema is %d, and %d is the newest: %v", have, newest, err)
		}
	})
}
