package store_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"sft/internal/audit"
	"sft/internal/store"
	"sft/internal/testdb"
)

// raw opens the database beside the store.
func (s *suite) raw() *sql.DB {
	s.Helper()
	driver, dsn := "sqlite", strings.TrimPrefix(s.url, "sqlite:")
	if strings.HasPrefix(s.url, "postgres") {
		driver, dsn = "pgx", s.url
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { db.Close() })
	return db
}

// idAt is an id of the millisecond t, the nth of them.
func idAt(t time.Time, n int) string {
	ms := t.UnixMilli()
	return fmt.Sprintf("%08x-%04x-7000-8000-%012x", ms>>16, ms&0xffff, n)
}

func TestFindEvents(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		at := func(n int) time.Time { return t0.Truncate(time.Second).Add(time.Duration(n) * time.Second) }
		s.change(func(tx *store.Tx) error {
			for i := range 12 {
				e := event([]audit.Kind{audit.UserCreate, audit.UserUpdate, audit.SessionStart}[i%3])
				e.ID, e.Team, e.Session, e.Time = idAt(at(i), i), "found", fmt.Sprint(i), t0
				e.Actor, e.Target = audit.Actor{Kind: "user", Name: []string{"Ann", "bob"}[i%2]}, []string{"web01", "WEB01", "db"}[i/4]
				if i%3 == 2 { // a host tells of a person
					e.Actor, e.Detail = audit.Actor{Kind: "server", Name: "web01"}, map[string]string{"user": "ann"}
				}
				if _, err := tx.AddEvent(e); err != nil {
					return err
				}
			}
			return nil
		})
		for _, tt := range []struct {
			name string
			q    store.EventQuery
			want string
		}{
			{"all", store.EventQuery{}, "0 1 2 3 4 5 6 7 8 9 10 11"},
			{"the newest", store.EventQuery{Descending: true, Count: 2}, "11 10"},
			{"the page behind", store.EventQuery{Descending: true, Count: 2, After: idAt(at(10), 10)}, "9 8"},
			{"of a kind", store.EventQuery{Kind: audit.UserUpdate}, "1 4 7 10"},
			{"a page of a kind", store.EventQuery{Kind: audit.UserUpdate, After: idAt(at(4), 4), Count: 1}, "7"},
			{"of a person, whatever the capitals", store.EventQuery{Who: "aNN"}, "0 2 4 5 6 8 10 11"},
			{"of what was acted on", store.EventQuery{Target: "web01"}, "0 1 2 3 4 5 6 7"},
			{"of a session", store.EventQuery{Session: "5"}, "5"},
			{"of a session, and of another", store.EventQuery{Session: "5", Target: "db"}, ""},
			{"of all three", store.EventQuery{Target: "Web01", Who: "ann", Kind: audit.SessionStart}, "2 5"},
			{"from a moment", store.EventQuery{From: at(9)}, "9 10 11"},
			{"before a moment", store.EventQuery{Before: at(2)}, "0 1"},
			{"between two", store.EventQuery{From: at(3), Before: at(6), Descending: true}, "5 4 3"},
			{"between two, in part of a millisecond", store.EventQuery{From: at(3).Add(time.Millisecond), Before: at(6).Add(time.Microsecond)}, "4 5"},
			{"between two, of a person", store.EventQuery{From: at(3), Before: at(7), Who: "ann", Count: 2}, "4 5"},
			{"before there was time", store.EventQuery{Before: time.Unix(-5, 0)}, ""},
			{"from when no id is", store.EventQuery{From: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}, ""},
			{"of nobody", store.EventQuery{Who: "carl"}, ""},
			{"of what cannot be stored", store.EventQuery{Who: "a\x00\xff"}, ""},
		} {
			tt.q.Team = "found"
			if tt.q.Count == 0 {
				tt.q.Count = 100
			}
			var got []string
			for _, e := range get(s, func(tx *store.Tx) ([]audit.Event, error) { return tx.FindEvents(tt.q) }) {
				got = append(got, e.Session)
			}
			s.same(tt.name, strings.Join(got, " "), tt.want)
		}

		// What a stranger sends as a name is stored and found, whatever it is.
		odd := strings.Repeat("é\x00\xff", 2000)
		e := event(audit.ServerEnroll)
		e.Team, e.Target, e.Actor.Name = "odd", odd, odd
		s.change(func(tx *store.Tx) error { _, err := tx.AddEvent(e); return err })
		for _, q := range []store.EventQuery{{Target: odd}, {Who: odd}} {
			q.Team, q.Count = "odd", 2
			s.same("how many of an odd name", len(get(s, func(tx *store.Tx) ([]audit.Event, error) { return tx.FindEvents(q) })), 1)
		}
	})
}

// Events of before are found by their sessions, and one that cannot be read
// stops no migration.
func TestSessionsOfEventsFromBefore(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		db, err := store.OpenAt(t.Context(), url, 22)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		s := &suite{T: t, url: url}
		raw := s.raw()
		old := func(n int, session string) {
			e := event(audit.SessionStart)
			e.ID, e.Team, e.Session, e.Detail = idAt(t0, n), "main", session, map[string]string{"n": fmt.Sprint(n)}
			body, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := raw.Exec(`INSERT INTO events (id, at, team, kind, source, body) VALUES ($1, 1, 'main', $2, '', $3)`, e.ID, e.Kind, string(body)); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 205 {
			old(i, []string{"", "A", "b"}[i%3])
		}
		if _, err := raw.Exec(`INSERT INTO events (id, at, team, kind, source, body) VALUES ($1, 1, 'main', 'odd', '', '{"session":"no JSON')`, idAt(t0, 900)); err != nil {
			t.Fatal(err)
		}
		s.DB = open(t, url)
		is := func(what, session string, want int) {
			t.Helper()
			q := store.EventQuery{Team: "main", Session: session, Count: 1000}
			s.same(what, len(get(s, func(tx *store.Tx) ([]audit.Event, error) { return tx.FindEvents(q) })), want)
		}
		is("of one", "a", 68)
		is("of the other", "b", 68)
	})
}

// A page by number begins behind the number of an event, and where a moment is
// given with what was sealed first of what is later.
func TestFindEventsByNumber(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		at := func(n int) time.Time { return t0.Truncate(time.Second).Add(time.Duration(n) * time.Second) }
		s.change(func(tx *store.Tx) error {
			for i := range 10 {
				e := event([]audit.Kind{audit.UserCreate, audit.UserUpdate}[i%2])
				e.ID, e.Team, e.Session = idAt(at(i), i), "found", fmt.Sprint(i)
				if _, err := tx.AddEvent(e); err != nil {
					return err
				}
			}
			return nil
		})
		// 2, 5 and 3 were seen late, in this order; 9 and 7 are not sealed yet.
		for seq, i := range []int{0, 1, 4, 6, 2, 8, 5, 3} {
			if _, err := s.raw().Exec(`UPDATE events SET seq = $1 WHERE id = $2`, seq+1, idAt(at(i), i)); err != nil {
				t.Fatal(err)
			}
		}
		for _, tt := range []struct {
			name string
			q    store.EventQuery
			want string
		}{
			{"all", store.EventQuery{}, "0 1 4 6 2 8 5 3"},
			{"after one", store.EventQuery{After: idAt(at(2), 2)}, "8 5 3"},
			{"a page after one", store.EventQuery{After: idAt(at(6), 6), Count: 2}, "2 8"},
			{"after the last", store.EventQuery{After: idAt(at(3), 3)}, ""},
			{"after one that is not sealed", store.EventQuery{After: idAt(at(7), 7)}, ""},
			{"after one that was removed", store.EventQuery{After: idAt(at(0), 77), Count: 2}, "0 1"},
			{"after another team's", store.EventQuery{After: idAt(at(11), 11), Count: 1}, "0"},
			{"of a kind", store.EventQuery{Kind: audit.UserUpdate}, "1 5 3"},
			{"from a moment", store.EventQuery{From: at(3)}, "4 6 8 5 3"},
			{"from a moment, after one", store.EventQuery{From: at(3), After: idAt(at(2), 2)}, "8 5 3"},
			{"from a moment of which nothing is sealed", store.EventQuery{From: at(9)}, ""},
			{"from a moment, after one that was removed", store.EventQuery{From: at(5), After: idAt(at(0), 77)}, "6 8 5"},
		} {
			tt.q.Team, tt.q.Numbered = "found", true
			if tt.q.Count == 0 {
				tt.q.Count = 100
			}
			var got []string
			for _, e := range get(s, func(tx *store.Tx) ([]audit.Event, error) { return tx.FindEvents(tt.q) }) {
				got = append(got, e.Session)
			}
			s.same(tt.name, strings.Join(got, " "), tt.want)
		}
	})
}

// A page from a moment on has also what a platform sealed whose clock is ahead,
// before much that others recorded.
func TestFindEventsFromAMomentWithAClockAhead(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		from := t0.Truncate(time.Second)
		ahead := idAt(from.Add(14*time.Minute), 1)
		s.change(func(tx *store.Tx) error {
			for i := range 1500 {
				e := event(audit.UserCreate)
				e.ID, e.Team, e.Time = idAt(from.Add(time.Duration(i)*time.Millisecond), 0), "ahead", from.Add(time.Duration(i)*time.Second)
				if i == 0 {
					e.ID = ahead // and is sealed first
				}
				if _, err := tx.AddEvent(e); err != nil {
					return err
				}
			}
			return nil
		})
		if _, err := s.raw().Exec(`UPDATE events SET seq = 1 + (at - $1) / 1000000 WHERE team = 'ahead'`, from.UnixMicro()); err != nil {
			t.Fatal(err)
		}
		got := get(s, func(tx *store.Tx) ([]audit.Event, error) {
			return tx.FindEvents(store.EventQuery{Team: "ahead", From: from, Count: 1, Numbered: true})
		})
		if len(got) != 1 || got[0].ID != ahead {
			t.Errorf("the page is %+v, want %s", got, ahead)
		}
	})
}

// However many events there are, a page costs what is in it: SQLite reads along
// an index that has them in order, PostgreSQL looks at few.
func TestPagesOfEventsCostWhatIsInThem(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		db := s.raw()
		postgres := strings.HasPrefix(s.url, "postgres")
		// One kind is of half of all, one of every thousandth, and so on.
		series := `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) `
		hex := `printf('%012x', i)`
		if postgres {
			hex = `lpad(to_hex(i), 12, '0')`
		}
		if _, err := db.Exec(series + `INSERT INTO events (id, at, team, kind, source, who, target, session, seq, body)
			SELECT '019caaaa-0000-7000-8000-' || ` + hex + `, i, 'big', CASE WHEN i % 1000 = 0 THEN 'rare' WHEN i % 2 = 0 THEN 'often' ELSE 'else' END, '', 'p' || (i % 50), 't' || (i % 2000), CASE WHEN i % 3 = 0 THEN 's' || (i % 600) END,
				CASE WHEN i <= 19990 THEN i END, '{}' FROM n`); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(`ANALYZE events`); err != nil {
			t.Fatal(err)
		}
		explain := func(query string, args []any) string {
			prefix := "EXPLAIN QUERY PLAN "
			if postgres {
				prefix = "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) "
			}
			rows, err := db.Query(prefix+query, args...)
			if err != nil {
				t.Fatalf("%s: %v", query, err)
			}
			defer rows.Close()
			var plan []string
			for rows.Next() {
				var line string
				var n any
				if postgres {
					err = rows.Scan(&line)
				} else {
					err = rows.Scan(&n, &n, &n, &line)
				}
				if err != nil {
					t.Fatal(err)
				}
				plan = append(plan, line)
			}
			return strings.Join(plan, "\n")
		}
		const after = "019caaaa-0000-7000-8000-000000002000"
		when := time.UnixMilli(0x019caaaa0000)
		for _, tt := range []struct {
			index string
			q     store.EventQuery
		}{
			{"events_team", store.EventQuery{}},
			{"events_team", store.EventQuery{After: after}},
			{"events_team", store.EventQuery{After: after, Descending: true}},
			{"events_team", store.EventQuery{From: when, Before: when.Add(time.Hour)}},
			{"events_kind", store.EventQuery{Kind: "rare"}},
			{"events_kind", store.EventQuery{Kind: "often", After: after, Descending: true}},
			{"events_who", store.EventQuery{Who: "p7", From: when}},
			{"events_who", store.EventQuery{Who: "p7", Kind: "else", After: after}},
			{"events_target", store.EventQuery{Target: "t7", Kind: "else", Who: "p7", After: after}},
			{"events_session", store.EventQuery{Session: "s30"}},
			{"events_session", store.EventQuery{Session: "s30", Kind: "else", Who: "p7", After: after, Descending: true}},
			{"events_session_seq", store.EventQuery{Numbered: true, Session: "s30"}},
			{"events_session_seq", store.EventQuery{Numbered: true, Session: "s30", Target: "t7"}},
			{"events_team_seq", store.EventQuery{Numbered: true}},
			{"events_team_seq", store.EventQuery{Numbered: true, From: when}},
			{"events_kind_seq", store.EventQuery{Numbered: true, Kind: "rare", From: when}},
			{"events_who_seq", store.EventQuery{Numbered: true, Who: "p7", Kind: "else"}},
			{"events_target_seq", store.EventQuery{Numbered: true, Target: "t7", Kind: "else", Who: "p7"}},
		} {
			tt.q.Team, tt.q.Count = "big", 10
			plan := explain(tt.q.SQL())
			if postgres { // which weighs what is there: it may take another index, and sort a few
				for _, n := range regexp.MustCompile(`(?:rows=|Removed by Filter: )(\d+)`).FindAllStringSubmatch(plan, -1) {
					if len(n[1]) > 3 {
						t.Errorf("%+v reads %s rows by\n%s", tt.q, n[1], plan)
					}
				}
			} else if !strings.Contains(plan, "USING INDEX "+tt.index+" (") || strings.Contains(plan, "TEMP B-TREE") {
				t.Errorf("%+v is read by\n%s", tt.q, plan)
			}
		}
		// What is to be sealed is found without looking at what is.
		for query, index := range map[string]string{
			`SELECT body FROM events WHERE seq IS NULL ORDER BY id LIMIT 500`:           "events_unsealed",
			`SELECT body FROM events WHERE seq >= 5000 AND seq <= 5010 ORDER BY seq`:    "events_seq",
			`SELECT body FROM events WHERE seq > 19990 ORDER BY seq LIMIT 1`:            "events_seq",
			`SELECT note FROM checkpoints WHERE last_seq > 5 ORDER BY last_seq LIMIT 1`: "",
		} {
			if plan := explain(query, nil); !strings.Contains(plan, index) {
				t.Errorf("%s is read by\n%s", query, plan)
			}
		}
		// Where a page from a moment on begins is found among those by id.
		first, number, firstArgs, numberArgs := store.FromSQL("big", after, when.Add(-time.Second))
		for query, args := range map[string][]any{first: firstArgs, number: numberArgs} {
			plan := explain(query, args)
			if postgres && regexp.MustCompile(`(?:rows=|Removed by Filter: )\d{4}`).MatchString(plan) || !postgres && !strings.Contains(plan, "INDEX events_team (team=? AND id>?") {
				t.Errorf("%s is read by\n%s", query, plan)
			}
		}
	})
}

// An export is held by one platform at a time, and its mark never goes back.
func TestExports(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		hold := func(holder string, now time.Time) error {
			return s.Note(context.Background(), func(n store.Notes) error {
				_, err := n.HoldExport("file:/a", holder, now, time.Minute)
				return err
			})
		}
		s.is("holding what is not there", hold("p", t0), store.ErrNotFound)
		for range 2 { // and again, which does nothing
			s.note(func(n store.Notes) error { return n.AddExport("file:/a") })
		}
		s.is("holding it", hold("p", t0), nil)
		s.is("holding it again", hold("p", t0.Add(30*time.Second)), nil)
		s.is("another", hold("q", t0.Add(time.Minute)), store.ErrExists)
		s.is("another, later", hold("q", t0.Add(90*time.Second)), nil)
		s.is("the first, then", hold("p", t0.Add(91*time.Second)), store.ErrExists)
		s.is("one whose clock was not ahead", hold("p", t0.Add(30*time.Second)), store.ErrExists)
		for _, m := range []struct {
			from, to int64
			want     error
		}{{0, 5, nil}, {5, 9, nil}, {0, 3, store.ErrNotFound}, {12, 15, store.ErrNotFound}} {
			s.is("moving it on", s.Note(t.Context(), func(n store.Notes) error { return n.Exported("file:/a", m.from, m.to) }), m.want)
		}
		s.same("the export", get(s, func(tx *store.Tx) ([]store.Export, error) { return tx.Exports() }),
			[]store.Export{{Name: "file:/a", Seq: 9, Holder: "q", Until: t0.Add(150 * time.Second)}})
		s.is("one whose clock is behind", hold("p", t0.Add(-30*time.Minute)), store.ErrExists)
		s.is("one whose clock was ahead", hold("p", t0.Add(-time.Hour)), nil)
		s.change(func(tx *store.Tx) error { return tx.RemoveExport("file:/a") })
		s.is("removing it twice", s.try(func(tx *store.Tx) error { return tx.RemoveExport("file:/a") }), store.ErrNotFound)
	})
}
