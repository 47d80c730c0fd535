package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sft/internal/store"
	"sft/internal/testdb"
)

// What is over already is not touched when a client ends: it may be very much,
// and everybody waits meanwhile. What lives on, also on the way alone, ends.
func TestAClientEndsWhatMayLive(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		ann, bob, prod := s.user("ann"), s.user("bob"), s.project("prod")
		gw, web := s.server(prod, "gw"), s.server(prod, "web")
		now := t0.Add(100 * time.Hour)
		for what, end := range map[string]func(*store.Tx, string) error{
			"deleted": func(tx *store.Tx, id string) error { return tx.RemoveClient(id, now) },
			"held":    func(tx *store.Tx, id string) error { return tx.HoldClient(id, now) },
			"moved":   func(tx *store.Tx, id string) error { return tx.MoveClient(id, bob.ID, now) },
		} {
			c, other := s.client(ann), s.client(ann)
			add := func(id, client string, until, through time.Duration) {
				s.change(func(tx *store.Tx) error {
					v := store.Session{ID: what + id, ProjectID: prod.ID, ServerID: web.ID, UserID: ann.ID, ClientID: client, Service: "ssh", CreatedAt: t0, ExpiresAt: t0, LiveUntil: now.Add(until)}
					if err := tx.AddSession(v); err != nil || through == 0 {
						return err
					}
					return tx.AddSessionHop(v.ID, gw.ID, now.Add(through))
				})
			}
			add("over", c.ID, -2*time.Hour, 0)
			add("over with its way", c.ID, -2*time.Hour, -2*time.Hour)
			add("just over", c.ID, -time.Minute, 0)
			add("live", c.ID, time.Hour, time.Hour)
			add("on its way", c.ID, -2*time.Hour, time.Hour)
			add("another's", other.ID, time.Hour, time.Hour)
			s.change(func(tx *store.Tx) error { return end(tx, c.ID) })
			for id, want := range map[string]bool{"over": false, "over with its way": false, "just over": true, "live": true, "on its way": true, "another's": false} {
				if v := get(s, func(tx *store.Tx) (store.Session, error) { return tx.Session(what + id) }); v.Revoked != want {
					t.Errorf("the client is %s: the session %q is revoked: %v, want %v", what, id, v.Revoked, want)
				}
			}
		}
	})
}

// Sessions that are long over go in steps, and those last whose way is known
// still.
func TestSweepSessions(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		ann, prod := s.user("ann"), s.project("prod")
		c, gw, web := s.client(ann), s.server(prod, "gw"), s.server(prod, "web")
		add := func(id string, over time.Duration) {
			s.change(func(tx *store.Tx) error {
				return tx.AddSession(store.Session{ID: id, ProjectID: prod.ID, ServerID: web.ID, UserID: ann.ID, ClientID: c.ID, Service: "ssh", CreatedAt: t0, ExpiresAt: t0, LiveUntil: t0.Add(-over)})
			})
		}
		for i := range 5 {
			add(fmt.Sprint("old", i), store.SessionMemory+time.Duration(5-i)*time.Second)
		}
		add("young", store.SessionMemory)
		s.change(func(tx *store.Tx) error { return tx.AddSessionHop("old0", gw.ID, t0) })
		there := func() (list []string) {
			for _, id := range []string{"old0", "old1", "old2", "old3", "old4", "young"} {
				if _, err := peek(s, func(tx *store.Tx) (store.Session, error) { return tx.Session(id) }); err == nil {
					list = append(list, id)
				}
			}
			return list
		}
		sweep := func(now time.Time) (rows int64) {
			s.note(func(n store.Notes) (err error) { rows, err = n.SweepSessions(now, 3); return err })
			return rows
		}
		s.same("how many go in a step", sweep(t0), int64(3))
		s.same("what is there then", there(), []string{"old0", "old4", "young"})
		s.same("how many go in the next", sweep(t0), int64(1))
		s.same("how many are left", sweep(t0), int64(0))
		s.same("what stays", there(), []string{"old0", "young"})
		s.note(func(n store.Notes) error { return n.SweepAccess(t0.Add(time.Second)) })
		s.same("how many go when their way has", sweep(t0), int64(1))
		s.same("what stays at the end", there(), []string{"young"})
		s.is("a session that goes on", s.try(func(tx *store.Tx) error { return tx.ProlongSession("young", t0) }), nil)
		s.same("how many go of what goes on", sweep(t0.Add(time.Second)), int64(0))
	})
}

// SQLite goes to the sessions that may live, and to those that are long over,
// and through no others.
func TestSessionsAreFoundByTheirEnd(t *testing.T) {
	db := open(t, testdb.SQLite(t))
	var plans map[string][]string
	if err := db.Read(t.Context(), func(tx *store.Tx) (err error) { plans, err = tx.ExplainSessions(); return err }); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]string{
		"end":     "SEARCH sessions USING INDEX sessions_client (client_id=? AND live_until>?)",
		"through": "SEARCH sessions USING INDEX sqlite_autoindex_",
		"sweep":   "sessions_live (live_until<?)",
		"revoked": "SEARCH sessions USING INDEX sessions_server (server_id=? AND live_until>?)",
	} {
		text := strings.Join(plans[what], "\n")
		if !strings.Contains(text, want) || slices.ContainsFunc(plans[what], func(l string) bool { return strings.HasPrefix(l, "SCAN ") && l != "SCAN h" }) {
			t.Errorf("%s: they are found by\n%s", what, text)
		}
	}
}
