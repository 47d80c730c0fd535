package platform

import (
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/store"
	"sft/internal/testdb"
)

// A revision that is undone comes back with other authorities: what was read
// under it is nobody else's.
func TestAuthoritiesOfWhatIsUndone(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		ctx := t.Context()
		db, err := store.Open(ctx, url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		key := filepath.Join(t.TempDir(), "master.key")
		if err := ca.NewMasterKey(key); err != nil {
			t.Fatal(err)
		}
		sealer, err := ca.OpenSealer(key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Init(ctx, db, sealer, InitRequest{URL: "https://sft.example.com", Team: "main", Owner: "olive", Project: "prod", OwnCA: true}, nil); err != nil {
			t.Fatal(err)
		}
		p, err := New(ctx, db, sealer, slog.New(slog.DiscardHandler), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		var pr store.ProjectRecord
		read := func(tx *store.Tx) (err error) {
			team, err := tx.Team("main")
			if err == nil {
				pr, err = tx.Project(team.ID, "prod")
			}
			return err
		}
		undone := errors.New("undone")
		if err := db.Add(ctx, func(tx *store.Tx) (audit.Event, error) {
			err := read(tx)
			if err == nil {
				_, err = p.trustedBy(tx, pr)
			}
			return audit.Event{}, errors.Join(err, undone)
		}); !errors.Is(err, undone) || len(p.trusted) > 0 {
			t.Errorf("%v, and the CAs of %d projects are kept", err, len(p.trusted))
		}
		var before trusted
		err = db.Change(ctx, func(tx *store.Tx) (audit.Event, error) {
			err := errors.Join(read(tx), tx.Revise(pr.ID), read(tx))
			if err == nil {
				before, err = p.trustedBy(tx, pr)
			}
			return audit.Event{}, errors.Join(err, undone)
		})
		if !errors.Is(err, undone) || before.of == nil || before.revision != pr.Revision {
			t.Fatalf("%v, and %d CAs at revision %d", err, len(before.of), before.revision)
		}
		var dropped []string
		if err := db.Change(ctx, func(tx *store.Tx) (e audit.Event, err error) {
			if err = read(tx); err == nil {
				e, dropped, err = p.dropCAs(tx, Actor{User: "u"}, "main", pr, ca.ProjectKinds)
			}
			return e, err
		}); err != nil {
			t.Fatal(err)
		}
		if err := db.Read(ctx, func(tx *store.Tx) error {
			if err := read(tx); err != nil {
				return err
			}
			if pr.Revision != before.revision {
				t.Errorf("the revision is %d, and was %d before it was undone", pr.Revision, before.revision)
			}
			now, err := p.trustedBy(tx, pr)
			if now.of.signer(ca.Access) == before.of.signer(ca.Access) {
				t.Errorf("what was dropped (%q) signs", dropped)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
}
