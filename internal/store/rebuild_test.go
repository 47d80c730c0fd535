package store_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"sft"
	"sft/internal/store"
	"sft/internal/testdb"
)

// schema describes a database: tables, columns, types, keys, indexes, and the
// versions that were applied.
func schema(t *testing.T, url string) string {
	t.Helper()
	queries := []string{
		`SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable || ' ' || coalesce(column_default, '') FROM information_schema.columns WHERE table_schema = current_schema()`,
		`SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema()`,
		`SELECT conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = current_schema()::regnamespace`,
	}
	if strings.HasPrefix(url, "sqlite:") {
		queries = []string{`SELECT coalesce(sql, name) FROM sqlite_schema`}
	}
	var all []string
	for _, q := range append(queries, `SELECT 'version ' || version_id || ' ' || is_applied FROM goose_db_version`) {
		rows, err := testdb.Raw(t, url).Query(q)
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for rows.Next() {
			var s string
			if err := rows.Scan(&s); err != nil {
				t.Fatal(err)
			}
			list = append(list, s)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			t.Fatal(err)
		}
		slices.Sort(list)
		all = append(all, list...)
	}
	return strings.Join(all, "\n")
}

func reach(t *testing.T, url string) *store.DB {
	t.Helper()
	db, err := store.Reach(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// Whatever schema a database has, it becomes the one that migrations make, or
// stays as it was to the last row.
func TestRebuild(t *testing.T) {
	rebuild := func(t *testing.T, url string, end error) error {
		return store.Alone(t.Context(), reach(t, url), func(tx *store.Tx) error { return errors.Join(tx.Rebuild(), end) })
	}
	want := map[string]string{} // the schema, by the kind of database
	for _, url := range []string{testdb.SQLite(t), testdb.Postgres(t)} {
		open(t, url).Close()
		kind, _, _ := strings.Cut(url, ":")
		want[kind] = schema(t, url)
	}
	for name, ready := range map[string]func(t *testing.T, url string){
		"none":  func(t *testing.T, url string) {},
		"older": func(t *testing.T, url string) { must1(store.OpenAt(t.Context(), url, 1)).Close() },
		"same":  func(t *testing.T, url string) { open(t, url).Close() },
		"newer": func(t *testing.T, url string) {
			open(t, url).Close()
			db := testdb.Raw(t, url)
			for _, q := range []string{`CREATE TABLE later (id text PRIMARY KEY, x real, team text NOT NULL REFERENCES teams (id))`,
				`ALTER TABLE settings ADD COLUMN more text`, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, true)`} {
				must1(db.Exec(q))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Each(t, func(t *testing.T, url string) {
				ready(t, url)
				if name != "none" {
					must1(testdb.Raw(t, url).Exec(`INSERT INTO settings (name, value) VALUES ('url', 'x')`))
					before := schema(t, url)
					if err := rebuild(t, url, errEnough); !errors.Is(err, errEnough) {
						t.Fatal(err)
					}
					var n int
					if err := testdb.Raw(t, url).QueryRow(`SELECT count(*) FROM settings`).Scan(&n); err != nil || n != 1 || schema(t, url) != before {
						t.Errorf("what was undone has left %d rows, %v, and\n%s\nwant\n%s", n, err, schema(t, url), before)
					}
				}
				if err := rebuild(t, url, nil); err != nil {
					t.Fatal(err)
				}
				kind, _, _ := strings.Cut(url, ":")
				if got := schema(t, url); got != want[kind] {
					t.Errorf("the schema is\n%s\nwant\n%s", got, want[kind])
				}
				db := open(t, url) // nothing is left to bring up to date
				if _, err := loads(t.Context(), db, strings.NewReader(everything(t, db))); err != nil {
					t.Error(err)
				}
			})
		})
	}
	t.Run("of somebody else", func(t *testing.T) {
		testdb.Each(t, func(t *testing.T, url string) {
			reach(t, url)
			must1(testdb.Raw(t, url).Exec(`CREATE TABLE invoices (id bigint)`))
			if err := rebuild(t, url, nil); sft.CodeOf(err) != sft.Exists || !strings.Contains(err.Error(), "invoices") {
				t.Errorf("tables of somebody else: %v", err)
			}
		})
	})
}

func must1[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
