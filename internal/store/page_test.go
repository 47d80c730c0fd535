package store_test

import (
	"database/sql"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"

	"sft"
	"sft/internal/api"
	"sft/internal/store"
	"sft/internal/testdb"
)

// ten is a page that holds whatever a test has made.
var ten = store.Page{Count: 10}

// inOrder are the keys of records, as they came.
func inOrder[T any](list []T, key func(T) string) (keys []string) {
	for _, v := range list {
		keys = append(keys, key(v))
	}
	return keys
}

// Whatever comes and goes between two pages: what was there all the time is on
// exactly one of them, and nothing is on two.
func TestPagesWhileThingsComeAndGo(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		pr := s.project("prod")
		rnd := rand.New(rand.NewPCG(7, 7))
		n := 0
		group := func(tx *store.Tx) (id, key string, err error) {
			n++
			g := store.GroupRecord{TeamID: s.team.ID, Group: sft.Group{ID: uuid.NewString(), Name: fmt.Sprintf("%c%d.%x_-Z", 'A'+rnd.IntN(50)%26, rnd.IntN(10), n), CreatedAt: t0}}
			return g.ID, sft.Fold(g.Name), tx.AddGroup(g)
		}
		server := func(tx *store.Tx) (id, key string, err error) {
			n++
			v := store.ServerRecord{ID: uuid.NewString(), TeamID: s.team.ID, ProjectID: pr.ID, DeviceKey: fmt.Append(nil, n), Facts: api.Facts{Hostname: fmt.Sprint("h", n)}, RegisteredAt: t0}
			return v.ID, v.ID, tx.AddServer(v)
		}
		for _, kind := range []struct {
			name   string
			add    func(*store.Tx) (id, key string, err error)
			remove func(*store.Tx, string) error
			page   func(*store.Tx, store.Page) ([]string, error)
		}{
			{"groups", group, func(tx *store.Tx, id string) error { return tx.RemoveGroup(id) }, func(tx *store.Tx, p store.Page) ([]string, error) {
				l, err := tx.GroupsByName(s.team.ID, "", p)
				return inOrder(l, func(g store.GroupRecord) string { return sft.Fold(g.Name) }), err
			}},
			{"servers", server, func(tx *store.Tx, id string) error { return tx.RemoveServer(id, t0) }, func(tx *store.Tx, p store.Page) ([]string, error) {
				l, err := tx.ServersByID(s.team.ID, store.ServerFilter{}, p)
				return inOrder(l, func(v store.ServerRecord) string { return v.ID }), err
			}},
		} {
			stay, come := map[string]bool{}, []string{}
			s.change(func(tx *store.Tx) error {
				for i := range 80 {
					id, key, err := kind.add(tx)
					if err != nil {
						return err
					}
					if stay[key] = true; i%4 == 0 {
						delete(stay, key)
						come = append(come, id)
					}
				}
				return nil
			})
			for round := range 4 {
				seen := map[string]int{}
				p := store.Page{Descending: round%2 == 1}
				for {
					p.Count = 1 + rnd.IntN(9)
					got := get(s, func(tx *store.Tx) ([]string, error) { return kind.page(tx, p) })
					for _, key := range got {
						seen[key]++
					}
					if len(got) < p.Count {
						break
					}
					p.After = got[len(got)-1]
					s.change(func(tx *store.Tx) error { // what p.After names may go, too
						for range rnd.IntN(4) {
							i := rnd.IntN(len(come))
							if err := kind.remove(tx, come[i]); err != nil {
								return err
							}
							id, _, err := kind.add(tx)
							if err != nil {
								return err
							}
							come[i] = id
						}
						return nil
					})
				}
				for key := range stay {
					if seen[key] != 1 {
						t.Errorf("%s, round %d: %s was seen %d times", kind.name, round, key, seen[key])
					}
				}
				for key, n := range seen {
					if n > 1 {
						t.Errorf("%s, round %d: %s was seen %d times", kind.name, round, key, n)
					}
				}
			}
		}
	})
}

// What a filter says is so of what it lets through, and a pattern has no
// special characters.
func TestFilters(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		for _, name := range []string{"Ann", "bob", "ann_b", "a.nn", "carol"} {
			s.user(name)
		}
		for _, tt := range []struct {
			f    store.UserFilter
			want []string
		}{
			{store.UserFilter{Contains: "NN"}, []string{"a.nn", "Ann", "ann_b"}},
			{store.UserFilter{StartsWith: "an"}, []string{"Ann", "ann_b"}},
			{store.UserFilter{StartsWith: "n"}, nil},
			{store.UserFilter{Contains: "n_b"}, []string{"ann_b"}},
			{store.UserFilter{Contains: "_"}, []string{"ann_b"}},
			{store.UserFilter{Contains: "%"}, nil},
			{store.UserFilter{Contains: `\`}, nil},
			{store.UserFilter{Contains: "a\x00"}, nil},
			{store.UserFilter{Status: sft.StatusDisabled}, nil},
			{store.UserFilter{Type: sft.Service}, nil},
			{store.UserFilter{Contains: "o", StartsWith: "c", Type: sft.Human, Status: sft.StatusActive}, []string{"carol"}},
		} {
			got := ids(get(s, func(tx *store.Tx) ([]store.UserRecord, error) { return tx.UsersByName(s.team.ID, tt.f, ten) }), userName)
			slices.Sort(got)
			slices.Sort(tt.want)
			if !slices.Equal(got, tt.want) {
				t.Errorf("%+v lets through %q, want %q", tt.f, got, tt.want)
			}
		}
	})
}

// With 50,000 servers, and 10,000 users, clients and preauthorizations, a page is found by an index
// that is in the order of the list: no table is read whole, nothing is sorted,
// and what is read is about what is shown. SQLite, which decides without
// counting, has fewer.
func TestAPageCostsAPage(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		pr, first, g := s.project("prod"), s.user("first"), s.group("all")
		driver, dsn, rows := "sqlite", strings.TrimPrefix(s.url, "sqlite:"), `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) `
		if strings.HasPrefix(s.url, "postgres") {
			driver, dsn, rows = "pgx", s.url, `WITH n AS (SELECT generate_series(1, 10000) AS i) `
		}
		db, err := sql.Open(driver, dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		for _, q := range []string{
			`INSERT INTO servers (id, team_id, project_id, device_key, hostname, canonical_name, access_address, broker_port, facts, name_conflict, registered_at, last_seen, last_seq) ` + rows +
				`SELECT 's' || (100000 + i), $1, $2, CAST('k' || i AS bytea), 'host-' || i, 'name-' || i, '', 1, '{}', '[]', 1, 2, 0 FROM n WHERE $3 <> '' AND $4 <> ''`,
			`INSERT INTO server_labels (server_id, project_id, name, value) SELECT id, project_id, 'api.env', 'prod' FROM servers WHERE (id LIKE '%7' OR id LIKE '%2') AND $1 <> '' AND $2 <> '' AND $3 <> '' AND $4 <> ''`,
			`UPDATE servers SET cloud_provider = 'aws' WHERE id LIKE '%7' AND $1 <> '' AND $2 <> '' AND $3 <> '' AND $4 <> ''`,
			`INSERT INTO server_aliases (server_id, kind, name_fold) SELECT id, 'name', 'alias-' || (CAST(substr(id, 2) AS bigint) - 100000) FROM servers WHERE $1 <> '' AND $2 <> '' AND $3 <> '' AND $4 <> ''`,
			`INSERT INTO server_aliases (server_id, kind, name_fold) SELECT id, 'bastion', 'gw' FROM servers WHERE $1 <> '' AND $2 <> '' AND $3 <> '' AND $4 <> ''`,
			`INSERT INTO users (id, team_id, name, name_fold, type, status, full_name, email, login, uid, gid, windows_login, windows_uid, windows_gid, created_at, password_hash) ` + rows +
				`SELECT 'u' || (100000 + i), $1, 'u' || i, 'u' || i, 'human', 'ACTIVE', '', '', 'u' || i, 100000 + i, 100000 + i, 'u' || i, 100000 + i, 100000 + i, 1, '' FROM n WHERE $2 <> '' AND $3 <> '' AND $4 <> ''`,
			`INSERT INTO clients (id, team_id, user_id, device_key, state, hostname, os, version, description, enrolled_at, signed_in_until) ` + rows +
				`SELECT 'c' || (100000 + i), $1, $3, CAST('k' || i AS bytea), 'ACTIVE', '', '', '', '', 1, 1 FROM n WHERE $2 <> '' AND $4 <> ''`,
			`INSERT INTO preauthorizations (id, team_id, user_id, servers, starts_at, expires_at, disabled, created_by, created_at) ` + rows +
				`SELECT 'c' || (100000 + i), $1, $3, '[]', 1, 2, false, '', 1 FROM n WHERE $2 <> '' AND $4 <> ''`,
			`INSERT INTO preauthorization_projects (project_id, preauth_id) ` + rows + `SELECT $2, 'c' || (100000 + i) FROM n WHERE $1 <> '' AND $3 <> '' AND $4 <> ''`,
			`INSERT INTO members (group_id, user_id) ` + rows + `SELECT $4, 'u' || (100000 + i) FROM n WHERE i % 2 = 0 AND $1 <> '' AND $2 <> '' AND $3 <> ''`,
		} {
			if strings.Contains(q, "INTO servers") {
				q = strings.Replace(q, "10000", "50000", 1)
			}
			if driver == "sqlite" {
				q = strings.ReplaceAll(q, "bytea", "blob")
			}
			if _, err := db.Exec(q, s.team.ID, pr.ID, first.ID, g.ID); err != nil {
				t.Fatal(err)
			}
		}
		if driver == "pgx" {
			if _, err := db.Exec(`ANALYZE`); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range []store.Page{{Count: 101}, {Count: 101, Descending: true}, {Count: 101, After: "c105000"}} {
			plans := get(s, func(tx *store.Tx) (map[string][]string, error) {
				return tx.ExplainPages(s.team.ID, pr.ID, first.ID, g.ID, p)
			})
			for _, what := range slices.Sorted(maps.Keys(plans)) {
				if bad := dear(plans[what]); bad != "" {
					t.Errorf("a page of %s costs more: %s in\n%s", what, bad, strings.Join(plans[what], "\n"))
				}
				if strings.HasSuffix(what, " cloud") && driver == "sqlite" && !strings.Contains(strings.Join(plans[what], "\n"), "_cloud (") {
					t.Errorf("%s are found by\n%s", what, strings.Join(plans[what], "\n"))
				}
			}
		}
	})
}

var (
	readRE    = regexp.MustCompile(`actual rows=([0-9.]+) loops=([0-9]+)`)
	removedRE = regexp.MustCompile(`Rows Removed by Filter: ([0-9]+)`)
)

// dear returns the line of a plan that costs more than a page of 101.
func dear(plan []string) string {
	for _, line := range plan {
		if strings.HasPrefix(line, "SCAN ") || strings.Contains(line, "TEMP B-TREE") || strings.Contains(line, "Sort ") {
			return line
		}
		if m := readRE.FindStringSubmatch(line); m != nil {
			rows, _ := strconv.ParseFloat(m[1], 64)
			loops, _ := strconv.ParseFloat(m[2], 64)
			if rows*loops > 1000 {
				return line
			}
		}
		if m := removedRE.FindStringSubmatch(line); m != nil && len(m[1]) > 3 {
			return line
		}
	}
	return ""
}

// SQLite goes from a name to its servers, and not through all of the team.
func TestServersOfANameAreFoundByIt(t *testing.T) {
	db := open(t, testdb.SQLite(t))
	var plan []string
	if err := db.Read(t.Context(), func(tx *store.Tx) (err error) { plan, err = tx.ExplainNamed("t", "web01"); return err }); err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(plan, "\n"); !regexp.MustCompile(`SEARCH s USING [^(]*\((team_id=\? AND )?id=\?\)`).MatchString(text) || !strings.Contains(text, "server_names USING INDEX server_names_name (name_fold=?)") {
		t.Errorf("they are found by\n%s", text)
	}
}
