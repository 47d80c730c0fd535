package platform_test

import (
	"context"
	"crypto/ed25519"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sft"
	"sft/internal/audit"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testdb"
	"sft/internal/testenv"
)

// addEvents stores events of no consequence, and returns their ids.
func addEvents(t testing.TB, db *store.DB, n int) (ids []string) {
	t.Helper()
	for i := range n {
		e := someEvent()
		e.Target = fmt.Sprint("target", i)
		if err := db.Add(context.Background(), func(*store.Tx) (audit.Event, error) { return e, nil }); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	return ids
}

func someEvent() audit.Event {
	return audit.Event{ID: audit.NewID(), Time: time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC), Kind: audit.UserUpdate, Team: testenv.Team,
		Actor: audit.Actor{Kind: "user", Name: "ann"}, Outcome: audit.Success}
}

// sealAll seals all that is stored.
func sealAll(t testing.TB, p *platform.Platform) {
	t.Helper()
	for {
		n, err := p.Seal(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return
		}
	}
}

// rawDB opens the database beside the platform, as an attacker would.
func rawDB(t testing.TB, url string) *sql.DB {
	t.Helper()
	driver, dsn := "sqlite", strings.TrimPrefix(url, "sqlite:")
	if strings.HasPrefix(url, "postgres") {
		driver, dsn = "pgx", url
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// verify returns what VerifyAudit finds, or "".
func verify(t testing.TB, p *platform.Platform, kept string) string {
	t.Helper()
	if _, err := p.VerifyAudit(t.Context(), kept); err != nil {
		return err.Error()
	}
	return ""
}

// Whatever somebody does to the database alone is found, and the first event
// that is not as it was is named.
func TestWhatIsDoneToSealedEventsIsFound(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		p, db := e.Platform, rawDB(t, e.DBURL)
		sealAll(t, p)
		addEvents(t, e.DB, 3)
		sealAll(t, p)
		addEvents(t, e.DB, 4)
		sealAll(t, p)
		kept, err := p.AuditCheckpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		v, err := p.VerifyAudit(t.Context(), kept)
		if err != nil || v.First != 1 || v.Checkpoints < 3 || v.Unsealed != 0 || v.Newest != kept {
			t.Fatalf("of what nobody touched: %+v, %v", v, err)
		}
		last := v.Last
		newest, _ := audit.ParseNote(kept)
		id := func(seq int64) (id string) {
			if err := db.QueryRow(`SELECT id FROM events WHERE seq = $1`, seq).Scan(&id); err != nil {
				t.Fatal(seq, err)
			}
			return id
		}
		do := func(query string, args ...any) {
			t.Helper()
			if _, err := db.Exec(query, args...); err != nil {
				t.Fatalf("%s: %v", query, err)
			}
		}
		tables := []string{"events", "checkpoints", "retention", "cas"}
		for _, table := range tables {
			do(`CREATE TABLE kept_` + table + ` AS SELECT * FROM ` + table)
		}
		renumber := func(from, by int64) {
			do(`UPDATE events SET seq = -seq WHERE seq >= $1`, from)
			do(`UPDATE events SET seq = -seq + $1 WHERE seq < 0`, by)
		}
		insert := func(seq int64) string {
			v := someEvent()
			addOne(t, e.DB, v)
			do(`UPDATE events SET seq = $1 WHERE id = $2`, seq, v.ID)
			return v.ID
		}
		nth := func(seq int64) string { return fmt.Sprintf("event %d (%s): ", seq, id(seq)) }
		first := newest.First // of the last checkpoint
		cut := func() {
			do(`DELETE FROM events WHERE seq >= $1`, first)
			do(`DELETE FROM checkpoints WHERE last_seq >= $1`, first)
		}
		for _, tt := range []struct {
			name string
			do   func() string // returns what is found
			kept string        // what is found with a kept checkpoint, if that is something else
		}{
			{"nothing", func() string { return "" }, ""},
			{"an event is changed", func() string {
				do(`UPDATE events SET body = replace(body, 'success', 'refused') WHERE seq = 4`)
				return nth(4) + "it was changed"
			}, ""},
			{"a space is added", func() string {
				do(`UPDATE events SET body = body || ' ' WHERE seq = $1`, last)
				return nth(last) + "it was changed"
			}, ""},
			{"an event is hidden from its team", func() string {
				do(`UPDATE events SET team = 'other' WHERE seq = 2`)
				return nth(2) + "it was changed: its column team does not say what the event says"
			}, ""},
			{"from those who look for its kind", func() string {
				do(`UPDATE events SET kind = 'x' WHERE seq = 2`)
				return nth(2) + "it was changed: its column kind does not say what the event says"
			}, ""},
			{"for its actor", func() string {
				do(`UPDATE events SET who = 'bob' WHERE seq = $1`, last)
				return nth(last) + "it was changed: its column who does not say what the event says"
			}, ""},
			{"for its session", func() string {
				do(`UPDATE events SET session = 'another' WHERE seq = $1`, last)
				return nth(last) + "it was changed: its column session does not say what the event says"
			}, ""},
			{"for its target", func() string {
				do(`UPDATE events SET target = '' WHERE seq = $1`, last)
				return nth(last) + "it was changed: its column target does not say what the event says"
			}, ""},
			{"for its time", func() string {
				do(`UPDATE events SET at = at + 1 WHERE seq = 3`)
				return nth(3) + "it was changed: its column at does not say what the event says"
			}, ""},
			{"an event has another id", func() string {
				do(`UPDATE events SET id = '019caaaa-0000-7000-8000-000000000001' WHERE seq = 3`)
				return "event 3 (019caaaa-0000-7000-8000-000000000001): it was inserted: it was never sealed"
			}, ""},
			{"an event is removed", func() string {
				is := nth(4) + "it was removed"
				do(`DELETE FROM events WHERE seq = 4`)
				return is
			}, ""},
			{"the first is removed", func() string {
				is := nth(1) + "it was removed"
				do(`DELETE FROM events WHERE seq = 1`)
				return is
			}, ""},
			{"the last is removed", func() string {
				is := nth(last) + "it was removed"
				do(`DELETE FROM events WHERE seq = $1`, last)
				return is
			}, ""},
			{"one is removed, the others close up", func() string {
				is := nth(3) + "it was removed"
				do(`DELETE FROM events WHERE seq = 3`)
				renumber(4, -1)
				return is
			}, ""},
			{"one is inserted, the others make room", func() string {
				renumber(3, 1)
				return fmt.Sprintf("event 3 (%s): it was inserted: it was never sealed", insert(3))
			}, ""},
			{"one is put behind the end", func() string {
				return fmt.Sprintf("event %d (%s): it was inserted: it was never sealed", last+1, insert(last+1))
			}, ""},
			{"one is put before the beginning", func() string {
				return fmt.Sprintf("event 0 (%s): it was inserted: it was never sealed", insert(0))
			}, ""},
			{"two change places", func() string {
				is := nth(2) + "it was moved to number 5: the order was changed"
				do(`UPDATE events SET seq = -seq WHERE seq IN (2, 5)`)
				do(`UPDATE events SET seq = 7 + seq WHERE seq IN (-2, -5)`)
				return is
			}, ""},
			{"one is moved behind the end", func() string {
				is := nth(last) + fmt.Sprintf("it was moved to number %d: the order was changed", last+2)
				do(`UPDATE events SET seq = seq + 2 WHERE seq = $1`, last)
				return is
			}, ""},
			{"one is made unsealed", func() string {
				is := nth(4) + "its number was taken away"
				do(`UPDATE events SET seq = NULL WHERE seq = 4`)
				return is
			}, ""},
			{"and sealed again", func() string {
				is := nth(4) + fmt.Sprintf("it was moved to number %d: the order was changed", last+1)
				do(`UPDATE events SET seq = NULL WHERE seq = 4`)
				sealAll(t, p)
				return is
			}, ""},
			{"a checkpoint in the middle is removed", func() string {
				do(`DELETE FROM checkpoints WHERE last_seq = $1`, first-1)
				return fmt.Sprintf("at event %d: the checkpoint that begins here was removed; the next begins at %d", first-3, first)
			}, ""},
			{"the last checkpoint is removed", func() string {
				do(`DELETE FROM checkpoints WHERE last_seq = $1`, last)
				return nth(first) + "it was inserted: it was never sealed"
			}, fmt.Sprintf("at event %d: everything from here was removed; the kept checkpoint is of event %d", first, last)},
			{"a checkpoint is made older", func() string {
				do(`UPDATE checkpoints SET at = 1 WHERE last_seq = $1`, first-1)
				if r, err := p.PruneAudit(t.Context(), time.Unix(1e9, 0)); err == nil || r.Last != 0 {
					t.Errorf("it is removed: %+v, %v", r, err)
				}
				p.Retention = 24 * time.Hour
				if r, _ := p.RetainAudit(t.Context()); r.Last != 0 {
					t.Errorf("it goes by itself: %+v", r)
				}
				return fmt.Sprintf("at event %d: the checkpoint of events %d to %d was changed: it is kept as of another time", first-3, first-3, first-1)
			}, ""},
			{"a checkpoint's list is changed", func() string {
				do(`UPDATE checkpoints SET entries = (SELECT entries FROM checkpoints WHERE last_seq = $1) WHERE last_seq = $2`, last, first-1)
				return fmt.Sprintf("at event %d: the list of the checkpoint of events %d to %d was changed", first-3, first-3, first-1)
			}, ""},
			{"a checkpoint is signed by another", func() string {
				_, k, _ := ed25519.GenerateKey(nil)
				n := newest
				n.Key = k.Public().(ed25519.PublicKey)
				n.Signature = ed25519.Sign(k, n.Message())
				do(`UPDATE checkpoints SET note = $1 WHERE last_seq = $2`, n.Text(), last)
				if _, err := p.Seal(t.Context()); err != nil {
					t.Errorf("with nothing to seal: %v", err)
				}
				addEvents(t, e.DB, 1)
				var began []string
				e.DB.Watch(func(s store.Span) { began = append(began, s.Kind) })
				defer e.DB.Watch(func(store.Span) {})
				if _, err := p.Seal(t.Context()); err == nil || !strings.Contains(err.Error(), "the newest checkpoint is not good: it is signed by a key that is not this platform's") {
					t.Errorf("going on from a stranger's checkpoint: %v", err)
				}
				// Nothing is read beside the sealing while that goes on.
				if want := []string{"read", "read", "seal"}; !slices.Equal(began, want) {
					t.Errorf("it took %q, want %q", began, want)
				}
				return fmt.Sprintf("at event %d: the next checkpoint was changed: it is signed by a key that is not this platform's", first)
			}, ""},
			{"a key is put beside the platform's", func() string {
				do(`INSERT INTO cas SELECT 'x', project_id, kind, public, sealed, created_at, not_after, stage, stage_at, revision FROM cas WHERE kind = 'audit'`)
				return "open the audit CA of x: the master key does not open the sealed key; use the master key that the database was made with"
			}, ""},
			{"the beginning is removed, as if on purpose", func() string {
				do(`DELETE FROM events WHERE seq < $1`, first)
				do(`DELETE FROM checkpoints WHERE last_seq < $1`, first)
				do(`INSERT INTO retention SELECT last_seq, note FROM checkpoints`)
				return "at event 1: the note of what was removed on purpose is not good: it is a checkpoint"
			}, ""},
			{"the beginning is removed", func() string {
				do(`DELETE FROM events WHERE seq < $1`, first)
				do(`DELETE FROM checkpoints WHERE last_seq < $1`, first)
				return fmt.Sprintf("at event 1: the checkpoint that begins here was removed; the next begins at %d", first)
			}, ""},
			{"the end is cut off", func() string { cut(); return "" },
				fmt.Sprintf("at event %d: everything from here was removed; the kept checkpoint is of event %d", first, last)},
			{"the end is cut off, and others come", func() string {
				cut()
				addEvents(t, e.DB, 9)
				sealAll(t, p)
				return ""
			}, fmt.Sprintf("at event %d: the chain is not the one that the kept checkpoint is of: it was made anew", last)},
			{"everything is signed again, by the platform's own key", func() string {
				do(`UPDATE events SET body = replace(body, 'success', 'refused') WHERE seq = $1`, last)
				do(`UPDATE events SET seq = NULL`)
				do(`DELETE FROM checkpoints`)
				sealAll(t, p)
				return ""
			}, fmt.Sprintf("at event %d: the chain is not the one that the kept checkpoint is of: it was made anew", last)},
		} {
			want := tt.do()
			if got := verify(t, p, ""); got != want {
				t.Errorf("%s: %q is found, want %q", tt.name, got, want)
			}
			if tt.kept != "" {
				want = tt.kept
			}
			if got := verify(t, p, kept); got != want {
				t.Errorf("%s: with a kept checkpoint %q is found, want %q", tt.name, got, want)
			}
			for _, table := range tables {
				do(`DELETE FROM ` + table)
				do(`INSERT INTO ` + table + ` SELECT * FROM kept_` + table)
			}
		}

		// A checkpoint of another platform says nothing of this one.
		other := testenv.New(t)
		sealAll(t, other.Platform)
		foreign, _ := other.Platform.AuditCheckpoint(t.Context())
		if got := verify(t, p, foreign); got != "the kept checkpoint: it is signed by a key that the database does not have" {
			t.Errorf("with another platform's checkpoint: %q", got)
		}
		if got := verify(t, p, "sft audit"); !strings.HasPrefix(got, "the kept checkpoint: it is not the text of a checkpoint") {
			t.Errorf("with no checkpoint: %q", got)
		}
	})
}

func addOne(t testing.TB, db *store.DB, e audit.Event) {
	t.Helper()
	if err := db.Add(context.Background(), func(*store.Tx) (audit.Event, error) { return e, nil }); err != nil {
		t.Fatal(err)
	}
}

// secondPlatform is another one on the same database.
func secondPlatform(t testing.TB, e *testenv.Env) *platform.Platform {
	t.Helper()
	db, err := store.Open(t.Context(), e.DBURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	p, err := platform.New(t.Context(), db, e.Platform.Sealer, slog.New(slog.NewTextHandler(io.Discard, nil)), e.Clock.Now)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Two platforms seal what many store: each event once, in one chain.
func TestTwoPlatformsSealOneChain(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		const writers, each = 4, 40
		platforms := []*platform.Platform{e.Platform, secondPlatform(t, e)}
		var writing, sealing sync.WaitGroup
		for range writers {
			writing.Go(func() { addEvents(t, e.DB, each) })
		}
		done := make(chan struct{})
		for _, p := range platforms {
			sealing.Go(func() {
				for ended := false; ; {
					n, err := p.Seal(context.Background())
					if err != nil {
						t.Error(err)
						return
					}
					if n == 0 && ended {
						return
					}
					select {
					case <-done:
						ended = true
					default:
					}
				}
			})
		}
		writing.Wait()
		close(done)
		sealing.Wait()
		v, err := e.Platform.VerifyAudit(t.Context(), "")
		if all := len(e.Events()); err != nil || v.First != 1 || v.Last != int64(all) || v.Unsealed != 0 {
			t.Errorf("of %d events: %+v, %v", all, v, err)
		}
		if n := strings.Count(told(e.Events()), "audit_key.create"); n != 1 {
			t.Errorf("%d keys were made", n)
		}
	})
}

// An event that becomes visible after one with a later id was sealed is not
// forgotten.
func TestAnEventThatIsSeenLateIsSealed(t *testing.T) {
	e := testenv.NewOn(t, testdb.Postgres(t))
	sealAll(t, e.Platform)
	early, begun, release, stored := someEvent(), make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		stored <- e.DB.Add(context.Background(), func(tx *store.Tx) (audit.Event, error) {
			if _, err := tx.AddEvent(early); err != nil {
				return early, err
			}
			close(begun)
			<-release
			return someEvent(), nil
		})
	}()
	<-begun
	late := addEvents(t, e.DB, 1)[0]
	if late < early.ID {
		t.Fatal("the ids are not in the order of time")
	}
	sealAll(t, e.Platform)
	seq := func(id string) int64 {
		var r audit.Record
		err := e.DB.Read(t.Context(), func(tx *store.Tx) (err error) { r, err = tx.Record(id); return err })
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			t.Fatal(err)
		}
		return r.Seq
	}
	if seq(late) == 0 || seq(early.ID) != 0 {
		t.Errorf("before: the later one has number %d, the earlier %d", seq(late), seq(early.ID))
	}
	close(release)
	if err := <-stored; err != nil {
		t.Fatal(err)
	}
	sealAll(t, e.Platform)
	if seq(early.ID) != seq(late)+1 {
		t.Errorf("after: the later one has number %d, the earlier %d", seq(late), seq(early.ID))
	}
	if got := verify(t, e.Platform, ""); got != "" {
		t.Error(got)
	}
}

// What an older version stored has no columns to be found by until it is
// sealed.
func TestEventsOfAnOlderVersionAreSealed(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		of := someEvent()
		of.Session = "S1"
		if err := e.DB.Add(t.Context(), func(*store.Tx) (audit.Event, error) { return of, nil }); err != nil {
			t.Fatal(err)
		}
		if _, err := rawDB(t, e.DBURL).Exec(`UPDATE events SET who = '', target = '', session = NULL`); err != nil {
			t.Fatal(err)
		}
		sealAll(t, e.Platform)
		if got := verify(t, e.Platform, ""); got != "" {
			t.Error(got)
		}
		var list struct{ List []audit.Event }
		if err := e.Service.Do(t.Context(), "GET", base+"/auditsV2?user=INIT&target=olive&type=user.create", nil, &list); err != nil || len(list.List) != 1 || list.List[0].Kind != audit.UserCreate {
			t.Errorf("the owner's making is found as %v, %v", list.List, err)
		}
		if err := e.Service.Do(t.Context(), "GET", base+"/auditsV2?session=s1", nil, &list); err != nil || len(list.List) != 1 || list.List[0].ID != of.ID {
			t.Errorf("what was of a session is found as %v, %v", list.List, err)
		}
	})
}

// What is old goes, what is left holds, and what was not exported stays.
func TestPrune(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		p := e.Platform
		sealAll(t, p)
		addEvents(t, e.DB, 5)
		sealAll(t, p)
		old, _ := p.AuditCheckpoint(t.Context())
		n, _ := audit.ParseNote(old)
		e.Clock.Advance(48 * time.Hour)
		addEvents(t, e.DB, 5)
		sealAll(t, p)
		kept, _ := p.AuditCheckpoint(t.Context())
		day := n.Time.Add(24 * time.Hour)

		export := func(name string, seq int64) {
			if err := e.DB.Note(t.Context(), func(tx store.Notes) error { return errors.Join(tx.AddExport(name), moveExport(tx, name, seq)) }); err != nil {
				t.Fatal(err)
			}
		}
		prune := func(what string, want platform.Pruned) {
			t.Helper()
			before := len(e.Events())
			if got, err := p.PrunableAudit(t.Context(), day); err != nil || got != want {
				t.Errorf("%s, to look at: %+v, %v, want %+v", what, got, err, want)
			}
			if n := len(e.Events()); n != before {
				t.Errorf("%s: after the look there are %d events, and were %d", what, n, before)
			}
			got, err := p.PruneAudit(t.Context(), day)
			if err != nil || got != want {
				t.Errorf("%s: %+v, %v, want %+v", what, got, err, want)
			}
			sealAll(t, p)
			if got := verify(t, p, kept); got != "" {
				t.Errorf("%s: afterwards %s", what, got)
			}
		}
		// What has not begun keeps everything, what is half way keeps the rest.
		export("https://siem.example.com/", 0)
		prune("with an export that has sent nothing", platform.Pruned{Kept: "https://siem.example.com/"})
		export("https://siem.example.com/", n.First)
		prune("with one in the middle of a checkpoint", platform.Pruned{First: 1, Last: n.First - 1, Kept: "https://siem.example.com/"})
		wantCode(t, "forgetting another export", p.RemoveExport(t.Context(), "file:/x"), sft.NotFound)
		before := len(e.Events())
		if err := p.RemoveExport(t.Context(), "https://siem.example.com/"); err != nil {
			t.Fatal(err)
		}
		if list := e.Events()[before:]; len(list) != 1 || list[0].Kind != audit.AuditExportRemove || list[0].Target != "https://siem.example.com/…" {
			t.Errorf("forgetting an export is told as %+v", list)
		}
		prune("without an export", platform.Pruned{First: n.First, Last: n.Last})
		prune("once more", platform.Pruned{})
		all := e.Events()
		if i := slices.IndexFunc(all, func(v audit.Event) bool { return v.Kind == audit.AuditPrune }); i < 0 || all[i].Detail["last"] != fmt.Sprint(n.First-1) {
			t.Errorf("removing is told as %s", told(all))
		}
		if got := verify(t, p, old); got != "" {
			t.Errorf("a kept checkpoint of the last that was removed: %s", got)
		}
		v, err := p.VerifyAudit(t.Context(), "")
		if err != nil || v.First != n.Last+1 || v.Last != v.First+int64(len(all))-1 {
			t.Errorf("what is left is %+v, %v; %d events", v, err, len(all))
		}

		// From a chain that does not hold nothing is removed.
		e.Clock.Advance(48 * time.Hour)
		day = day.Add(48 * time.Hour)
		if _, err := rawDB(t, e.DBURL).Exec(`UPDATE events SET body = body || ' ' WHERE seq = $1`, v.First); err != nil {
			t.Fatal(err)
		}
		if r, err := p.PrunableAudit(t.Context(), day); err == nil || !strings.Contains(err.Error(), "it was changed") || r.Last != 0 {
			t.Errorf("to look at a chain that does not hold: %+v, %v", r, err)
		}
		if r, err := p.PruneAudit(t.Context(), day); err == nil || !strings.Contains(err.Error(), "it was changed") || r.Last != 0 {
			t.Errorf("pruning what was changed: %+v, %v", r, err)
		}
	})
}

// Everything may be removed, but by no moment to come; the chain goes on.
func TestPruneAll(t *testing.T) {
	e := testenv.New(t)
	sealAll(t, e.Platform)
	before := len(e.Events())
	for _, to := range []time.Duration{time.Second, 24 * time.Hour, 97 * 365 * 24 * time.Hour} {
		r, err := e.Platform.PruneAudit(t.Context(), e.Clock.Now().Add(to))
		if wantCode(t, "to remove what is to come", err, sft.Invalid); r != (platform.Pruned{}) || len(e.Events()) != before {
			t.Errorf("%s from now: %+v, %d events are left of %d", to, r, len(e.Events()), before)
		}
	}
	e.Clock.Advance(time.Second)
	r, err := e.Platform.PruneAudit(t.Context(), e.Clock.Now())
	if err != nil || r.First != 1 || r.Last < 5 {
		t.Fatalf("%+v, %v", r, err)
	}
	if len(e.Events()) != 1 {
		t.Errorf("left is %s", told(e.Events()))
	}
	sealAll(t, e.Platform)
	v, err := e.Platform.VerifyAudit(t.Context(), "")
	if err != nil || v.First != r.Last+1 || v.Last != v.First {
		t.Errorf("%+v, %v", v, err)
	}
}

// What is too old goes by itself, once for all platforms, and what an export
// has not sent or a chain that does not hold does not.
func TestRetention(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		const day = 24 * time.Hour
		both := []*platform.Platform{e.Platform, secondPlatform(t, e)}
		for _, p := range both {
			p.Retention = 2 * day
		}
		retain := func(what string, want platform.Pruned) {
			t.Helper()
			list := make([]platform.Pruned, len(both))
			var g sync.WaitGroup
			for i, p := range both {
				g.Go(func() {
					var err error
					if list[i], err = p.RetainAudit(t.Context()); err != nil {
						t.Errorf("%s: %v", what, err)
					}
				})
			}
			g.Wait()
			if got := list[0]; got.Last == 0 {
				list[0], list[1] = list[1], list[0]
			}
			if list[0] != want || list[1] != (platform.Pruned{Kept: want.Kept}) {
				t.Errorf("%s: %+v, want %+v", what, list, want)
			}
			if got := verify(t, e.Platform, ""); got != "" {
				t.Errorf("%s: afterwards %s", what, got)
			}
		}
		sealAll(t, e.Platform)
		var last []int64 // of each batch
		for range 3 {
			addEvents(t, e.DB, 4)
			sealAll(t, e.Platform)
			v, err := e.Platform.VerifyAudit(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			last = append(last, v.Last)
			e.Clock.Advance(day)
		}
		retain("the first batch", platform.Pruned{First: 1, Last: last[0]})
		sealAll(t, e.Platform) // with the event of it
		e.Clock.Advance(30 * time.Minute)
		retain("too early", platform.Pruned{})
		e.Clock.Advance(23 * time.Hour)
		retain("the second batch", platform.Pruned{First: last[0] + 1, Last: last[1]})
		if n := strings.Count(told(e.Events()), "audit.prune"); n != 2 {
			t.Errorf("%d events tell of it", n)
		}

		// An export keeps what it has not sent.
		export := func(seq int64) {
			if err := e.DB.Note(t.Context(), func(tx store.Notes) error {
				return errors.Join(tx.AddExport("file:/x"), moveExport(tx, "file:/x", seq))
			}); err != nil {
				t.Fatal(err)
			}
		}
		export(last[1])
		sealAll(t, e.Platform)
		e.Clock.Advance(day)
		retain("what is kept", platform.Pruned{Kept: "file:/x"})
		export(last[2])
		retain("what is sent", platform.Pruned{First: last[1] + 1, Last: last[2]})

		// Run does so, too, and a chain that does not hold stays.
		if err := e.Platform.RemoveExport(t.Context(), "file:/x"); err != nil {
			t.Fatal(err)
		}
		sealAll(t, e.Platform)
		e.Clock.Set(time.Now()) // PostgreSQL has one, too
		e.Platform.RetainEvery = 10 * time.Millisecond
		first := last[2] + 1
		if _, err := rawDB(t, e.DBURL).Exec(`UPDATE events SET body = body || ' ' WHERE seq = $1`, first); err != nil {
			t.Fatal(err)
		}
		stop := run(t, e.Platform)
		until(t, "it is said", func() bool { return strings.Contains(e.Log.String(), `"msg":"remove old audit events"`) })
		stop()
		if _, err := rawDB(t, e.DBURL).Exec(`UPDATE events SET body = trim(body) WHERE seq = $1`, first); err != nil {
			t.Fatal(err)
		}
		stop = run(t, e.Platform)
		until(t, "it is removed", func() bool { return strings.Contains(e.Log.String(), `"msg":"old audit events are removed"`) })
		stop()
		if v, err := e.Platform.VerifyAudit(t.Context(), ""); err != nil || v.First <= first {
			t.Errorf("afterwards %+v, %v", v, err)
		}
	})
}

// A clock that is wrong costs little or nothing, and does not hold up what is
// right afterwards.
func TestRetentionByAWrongClock(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		const day, year = 24 * time.Hour, 365 * 24 * time.Hour
		p := e.Platform
		began := e.Clock.Now()
		sealed := func() int64 {
			t.Helper()
			addEvents(t, e.DB, 2)
			sealAll(t, p)
			v, err := p.VerifyAudit(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			return v.Last
		}
		var last []int64
		for range 40 {
			last = append(last, sealed())
			e.Clock.Advance(day)
		}
		p.Retention = 60 * day
		retain := func(what string, want platform.Pruned) {
			t.Helper()
			if got, err := p.RetainAudit(t.Context()); err != nil || got != want {
				t.Errorf("%s: %+v, %v, want %+v", what, got, err, want)
			}
		}
		// It was behind: what was sealed then is no reason to remove what is before.
		e.Clock.Set(began.Add(-20 * year))
		sealed()
		retain("long ago", platform.Pruned{})
		e.Clock.Set(began.Add(40 * day))
		sealed()
		retain("after it was behind", platform.Pruned{})
		// It is ahead, in the process that looks and not by the database: the oldest
		// days go, and what is sealed then does not count when it is right again.
		e.Clock.Set(began.Add(10 * year))
		sealed()
		retain("ahead", platform.Pruned{First: 1, Last: last[3], More: true})
		e.Clock.Set(began.Add(41 * day))
		sealed()
		retain("right again", platform.Pruned{})
		e.Clock.Set(began.Add(65 * day).Add(time.Minute))
		retain("when more are old", platform.Pruned{First: last[3] + 1, Last: last[5]})
		// What was sealed while it was ahead goes with what was sealed around it.
		e.Clock.Set(began.Add(200 * day))
		if r, err := p.PruneAudit(t.Context(), began.Add(150*day)); err != nil || r.Last < last[39]+9 {
			t.Errorf("the rest: %+v, %v", r, err)
		}
		sealAll(t, p)

		// Run removes nothing by a clock that is not the database's.
		addEvents(t, e.DB, 2)
		sealAll(t, p)
		e.Clock.Set(time.Now())
		p.Retention, p.RetainEvery = day, 50*time.Millisecond
		if strings.HasPrefix(e.DBURL, "postgres") {
			e.Clock.Set(time.Now().Add(year))
		}
		run(t, p)
		const removed = `"msg":"old audit events are removed"`
		if strings.HasPrefix(e.DBURL, "postgres") {
			until(t, "it is not the database's", func() bool { return strings.Contains(e.Log.String(), "from the database's; set it") })
			if strings.Contains(e.Log.String(), removed) {
				t.Error("it is removed")
			}
			e.Clock.Set(time.Now())
		}
		until(t, "it is removed", func() bool { return strings.Contains(e.Log.String(), removed) })
	})
}

// In the first round nothing is removed, nor in one in which the clock was set.
func TestRetentionWaitsForTheClock(t *testing.T) {
	t.Parallel()
	e := testenv.New(t)
	sealAll(t, e.Platform)
	e.Clock.Advance(48 * time.Hour)
	e.Platform.Retention, e.Platform.RetainEvery = 24*time.Hour, 2*time.Second
	run(t, e.Platform)
	const removed = `"msg":"old audit events are removed"`
	until(t, "it waits", func() bool {
		e.Clock.Advance(time.Hour) // also when the round has only now begun
		return strings.Contains(e.Log.String(), "nothing is removed now: in ")
	})
	if strings.Contains(e.Log.String(), removed) {
		t.Errorf("the log is\n%s", e.Log)
	}
	until(t, "it is removed", func() bool { return strings.Contains(e.Log.String(), removed) })
}

// What an export that has just been wanted has not sent is kept, whoever is
// first.
func TestRetentionKeepsForAnExportThatHasNotBegun(t *testing.T) {
	e := testenv.New(t)
	sealAll(t, e.Platform)
	e.Clock.Advance(48 * time.Hour)
	e.Platform.Retention = 24 * time.Hour
	e.Platform.Exports = []platform.Sink{&sink{"file:/new", nil}}
	if r, err := e.Platform.RetainAudit(t.Context()); err != nil || r != (platform.Pruned{Kept: "file:/new"}) {
		t.Errorf("%+v, %v", r, err)
	}
}

// In the middle of a removal, and after one that was interrupted, the chain
// holds, what is still there is checked, and nothing can be put beside it.
func TestARemovalUnderWay(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		p, db := e.Platform, rawDB(t, e.DBURL)
		sealAll(t, p)
		for range 3 {
			addEvents(t, e.DB, 3)
			sealAll(t, p)
		}
		do := func(query string, args ...any) {
			t.Helper()
			if _, err := db.Exec(query, args...); err != nil {
				t.Fatalf("%s: %v", query, err)
			}
		}
		do(`CREATE TABLE kept_events AS SELECT * FROM events`)
		do(`CREATE TABLE kept_checkpoints AS SELECT * FROM checkpoints`)
		e.Clock.Advance(time.Second)
		r, err := p.PruneAudit(t.Context(), e.Clock.Now())
		if err != nil {
			t.Fatal(err)
		}
		sealAll(t, p)
		// The removal has come to the middle of the last but one.
		first := r.Last - 4
		back := func() {
			do(`DELETE FROM events WHERE seq <= $1`, r.Last)
			do(`DELETE FROM checkpoints WHERE last_seq <= $1`, r.Last)
			do(`INSERT INTO events SELECT * FROM kept_events WHERE seq >= $1`, first)
			do(`INSERT INTO checkpoints SELECT * FROM kept_checkpoints`)
		}
		var id string
		if err := db.QueryRow(`SELECT id FROM kept_events WHERE seq = $1`, first).Scan(&id); err != nil {
			t.Fatal(err)
		}
		is := func(why string) string { return fmt.Sprintf("event %d (%s): %s", first, id, why) }
		for _, tt := range []struct {
			name string
			do   func()
			want string
		}{
			{"nothing", func() {}, ""},
			{"the checkpoints are left", func() { do(`DELETE FROM events WHERE seq <= $1`, r.Last) }, ""},
			{"some checkpoints are left", func() {
				do(`DELETE FROM events WHERE seq <= $1`, r.Last)
				do(`DELETE FROM checkpoints WHERE last_seq < $1`, first)
			}, ""},
			{"one is changed", func() { do(`UPDATE events SET body = body || ' ' WHERE seq = $1`, first) }, is("it was changed")},
			{"their checkpoints are not there", func() { do(`DELETE FROM checkpoints WHERE last_seq <= $1`, r.Last) }, is("it was removed on purpose and is there")},
			{"the last one's is not there", func() { do(`DELETE FROM checkpoints WHERE last_seq = $1`, r.Last) },
				fmt.Sprintf("at event %d: the checkpoint that begins here was removed; the next begins at %d", r.Last-2, r.Last+1)},
		} {
			back()
			tt.do()
			if got := verify(t, p, ""); got != tt.want {
				t.Errorf("%s: %q is found, want %q", tt.name, got, tt.want)
			}
		}
		back()
		v := someEvent()
		addOne(t, e.DB, v)
		do(`UPDATE events SET seq = 2 WHERE id = $1`, v.ID)
		if got := verify(t, p, ""); got != fmt.Sprintf("event 2 (%s): it was inserted: it was never sealed", v.ID) {
			t.Errorf("one is put before them: %q is found", got)
		}
		back()
		if v, err := p.VerifyAudit(t.Context(), ""); err != nil || v.Leaving != 5 || v.First != r.Last+1 {
			t.Errorf("%+v, %v", v, err)
		}
		p.Retention = 1000 * time.Hour
		if _, err := p.RetainAudit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if v, err := p.VerifyAudit(t.Context(), ""); err != nil || v.Leaving != 0 {
			t.Errorf("after the next: %+v, %v", v, err)
		}
	})
}

// moveExport moves an export on, from wherever it is.
func moveExport(n store.Notes, name string, to int64) error {
	e, err := n.Export(name)
	if err != nil || e.Seq >= to {
		return err
	}
	return n.Exported(name, e.Seq, to)
}

// A platform that is told to stop has failed at nothing, whatever it was about.
func TestAStopIsNoError(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		for i := range 200 {
			var said strings.Builder
			p, err := platform.New(t.Context(), e.DB, e.Platform.Sealer, slog.New(slog.NewTextHandler(&said, nil)), e.Clock.Now)
			if err != nil {
				t.Fatal(err)
			}
			p.SealEvery = time.Microsecond
			ctx, stop := context.WithTimeout(t.Context(), time.Duration(i)*50*time.Microsecond)
			p.Run(ctx)
			stop()
			if strings.Contains(said.String(), "level=ERROR") {
				t.Fatalf("stopped in the middle of something, it says %s", said.String())
			}
		}
	})
}
