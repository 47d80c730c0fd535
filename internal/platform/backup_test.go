package platform_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"database/sql"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"sft"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testdb"
	"sft/internal/testenv"
)

func backup(t testing.TB, e *testenv.Env) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := e.Platform.Backup(t.Context(), &b, nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func reopen(t testing.TB, b []byte) *platform.BackupFile {
	t.Helper()
	f, err := platform.OpenBackup(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Any byte that is another one, and any end that is missing, is found before
// anything is stored.
func TestBackupDamage(t *testing.T) {
	e := testenv.New(t)
	whole := backup(t, e)
	if err := reopen(t, whole).Verify(e.Platform.Sealer); err != nil {
		t.Fatal(err)
	}
	refused := func(b []byte) bool {
		f, err := platform.OpenBackup(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			err = f.Verify(e.Platform.Sealer)
		}
		return err != nil
	}
	for i := range whole {
		whole[i] ^= 1 << (i % 8)
		if !refused(whole) {
			t.Errorf("byte %d of %d can be another one", i, len(whole))
		}
		whole[i] ^= 1 << (i % 8)
		if (i%7 == 0 || i > len(whole)-200) && !refused(whole[:i]) {
			t.Errorf("%d of %d bytes are taken", i, len(whole))
		}
	}
	for _, more := range []string{"\x00", "x", string(whole[len(whole)-200:])} {
		if !refused(append(slices.Clone(whole), more...)) {
			t.Errorf("%d more bytes are taken", len(more))
		}
	}
	key := t.TempDir() + "/master.key"
	if err := ca.NewMasterKey(key); err != nil {
		t.Fatal(err)
	}
	other, err := ca.OpenSealer(key)
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, "another master key", reopen(t, whole).Verify(other), sft.Denied)

	// A file that is changed after it was found good.
	late := slices.Clone(whole)
	f := reopen(t, late)
	late[30] ^= 1 // in its head, which is not needed again
	db, err := store.Open(t.Context(), testdb.SQLite(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	_, err = f.Restore(t.Context(), db, platform.RestoreRequest{Sealer: e.Platform.Sealer, Scratch: t.TempDir()})
	wantCode(t, "a file that changes", err, sft.Invalid)
	wantEmpty(t, db, true)
}

func wantEmpty(t *testing.T, db *store.DB, want bool) {
	t.Helper()
	if err := db.Read(t.Context(), func(tx *store.Tx) error {
		empty, err := tx.Empty()
		if empty != want {
			t.Errorf("the database is empty: %v", empty)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

// FuzzOpenBackup checks that only the very bytes that were written open under
// the master key.
func FuzzOpenBackup(f *testing.F) {
	e := testenv.New(f)
	whole := backup(f, e)
	for _, b := range [][]byte{whole, whole[:60], whole[:len(whole)/2], nil, []byte("sft-platform backup 1\n{}\n\x00\x00"), []byte("sft-platform backup 1\n{}\n\xff\xff")} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := platform.OpenBackup(bytes.NewReader(b), int64(len(b)))
		if err == nil && file.Verify(e.Platform.Sealer) == nil && !bytes.Equal(b, whole) {
			t.Error("other bytes opened")
		}
	})
}

// A platform goes on from a backup, on the other kind of database, safe from
// what it does not know.
func TestRestore(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant("prod", "staff", false, "ann", "eve")
		ann, eve := e.Client("ann"), e.Client("eve")
		s := e.Server("prod", testenv.Facts("web01"))
		e.State(s)
		e.Report(s)
		cookie := e.Cookie("ann")
		link, err := e.Platform.NewFirstUse(t.Context(), "", "eve")
		if err != nil {
			t.Fatal(err)
		}
		uid := e.User("bob").UID
		revision := e.State(s).Revision
		whole := backup(t, e)

		// Since then: eve's laptop was stolen, and revoked.
		e.Do("DELETE", "/clients/"+eve.ID, nil, nil)
		if _, _, err := e.Connect(eve, "web01"); err == nil {
			t.Fatal("a client that was revoked connects")
		}

		to := testdb.SQLite(t)
		if strings.HasPrefix(e.DBURL, "sqlite") {
			to = testdb.Postgres(t)
		}
		db, err := store.Open(t.Context(), to)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		f := reopen(t, whole)
		if _, err := f.Restore(t.Context(), db, platform.RestoreRequest{Sealer: e.Platform.Sealer, Scratch: t.TempDir(), Name: "b1"}); err != nil {
			t.Fatal(err)
		}
		_, err = f.Restore(t.Context(), db, platform.RestoreRequest{Sealer: e.Platform.Sealer, Scratch: t.TempDir()})
		wantCode(t, "a database in use", err, sft.Exists)
		// As it was, but for what AfterRestore does and its event.
		e.DB, e.Platform.DB = db, db
		events := e.Events()
		if last := events[len(events)-1]; last.Kind != audit.PlatformRestore || last.Target != "b1" || last.Detail["made_at"] != f.MadeAt.Format("2006-01-02T15:04:05Z07:00") {
			t.Errorf("it is told as %+v", last)
		}
		for who, c := range map[string]*testenv.Client{"ann": ann, "eve": eve} {
			_, _, err := e.Connect(c, "web01")
			wantCode(t, who+" before signing in", err, sft.SignIn)
		}
		if _, _, _, err := e.Platform.Web(t.Context(), sft.NewSecret(cookie.Value), ""); err == nil {
			t.Error("a web session goes on")
		}
		if _, err := e.Platform.FirstUse(t.Context(), sft.NewSecret(link[strings.Index(link, "secret=")+7:])); err == nil {
			t.Error("a one-time link is good")
		}
		if got := e.State(s).Revision; got <= revision+1000 {
			t.Errorf("the revision is %d, and %d before", got, revision)
		}
		if got := e.User("carl").UID; got < uid+1000 {
			t.Errorf("a new user has uid %d, and %d may have been given since", got, uid+1)
		}
		wantEmpty(t, db, false)
	})
}

// A backup that is made while others write restores, on either database, as
// what is in it: each row, but for what is taken back on purpose.
func TestRestoreIsTheBackup(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant("prod", "staff", false, "ann", "eve")
		e.Client("ann")
		server := e.Server("prod", testenv.Facts("web01"))
		e.Report(server)
		e.Cookie("ann")
		if _, err := e.Platform.NewFirstUse(t.Context(), "", "eve"); err != nil {
			t.Fatal(err)
		}
		e.Do("PUT", "/servers/"+server.ID, m{"labels": m{"env": "lab"}}, nil)

		ctx, stop := context.WithCancel(t.Context())
		var writers sync.WaitGroup
		defer writers.Wait()
		defer stop()
		wrote := make(chan struct{})
		for w := range 3 {
			writers.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					name := fmt.Sprint("w", w, "-", i)
					if err := e.DB.Change(context.Background(), func(tx *store.Tx) (audit.Event, error) {
						return audit.Event{ID: audit.NewID(), Time: e.Clock.Now(), Kind: audit.UserUpdate, Team: testenv.Team, Actor: audit.Actor{Kind: "platform", Name: "test"}, Target: name, Outcome: audit.Success}, tx.SetSetting(name, name)
					}); err != nil {
						t.Error(err)
						return
					}
					select {
					case wrote <- struct{}{}:
					case <-ctx.Done():
					}
				}
			})
		}
		// Each part of the file waits for a change that it must not have.
		var whole bytes.Buffer
		if _, err := e.Platform.Backup(t.Context(), writerFunc(func(b []byte) (int, error) { <-wrote; return whole.Write(b) }), nil); err != nil {
			t.Fatal(err)
		}
		stop()
		writers.Wait()
		_, rest, _ := bytes.Cut(whole.Bytes(), []byte("\n"))
		_, rest, _ = bytes.Cut(rest, []byte("\n"))
		z, err := gzip.NewReader(bytes.NewReader(rest))
		if err != nil {
			t.Fatal(err)
		}
		z.Multistream(false) // behind it are hash and seal
		records, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}

		for what, url := range map[string]string{"SQLite": testdb.SQLite(t), "PostgreSQL": testdb.Postgres(t)} {
			db, err := store.Open(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if _, err := reopen(t, whole.Bytes()).Restore(t.Context(), db, platform.RestoreRequest{Sealer: e.Platform.Sealer, Scratch: t.TempDir(), Name: "b"}); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			var has bytes.Buffer
			if err := db.Read(t.Context(), func(tx *store.Tx) error { _, err := tx.Dump(&has); return err }); err != nil {
				t.Fatal(err)
			}
			told := 0
			got := testdb.ReadDump(t, has.String(), func(table string, row map[string]any) map[string]any {
				switch {
				case table == "settings" && slices.Contains([]any{"last_backup", "last_backup_key", "restored_at"}, row["name"]):
					return nil
				case table == "events" && row["kind"] == string(audit.PlatformRestore):
					told++
					return nil
				}
				return row
			})
			if told != 1 {
				t.Errorf("%s: %d events tell of the restore", what, told)
			}
			for _, table := range []string{"clients", "events", "members", "projects", "server_labels", "servers", "settings", "teams", "users"} {
				if len(got[table]) == 0 {
					t.Errorf("%s: there is nothing in %s", what, table)
				}
			}
			testdb.Compare(t, got, testdb.ReadDump(t, string(records), testdb.Restored))
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// A backup by a newer version is refused, and one by an older is brought up to
// date.
func TestRestoreOtherVersions(t *testing.T) {
	e := testenv.New(t)
	_, newest, err := e.DB.Versions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	old, err := store.OpenAt(t.Context(), testdb.SQLite(t), newest)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	f := reopen(t, backup(t, e))
	f.Schema = newest + 1
	_, err = f.Restore(t.Context(), old, platform.RestoreRequest{Sealer: e.Platform.Sealer, Scratch: t.TempDir()})
	wantCode(t, "a newer schema", err, sft.Invalid)
	wantEmpty(t, old, true)

	// Records of another schema than they say do not fit it.
	f.Schema = 1
	_, err = f.Restore(t.Context(), old, platform.RestoreRequest{Sealer: e.Platform.Sealer, Scratch: t.TempDir()})
	wantCode(t, "records of another schema than they say", err, sft.Invalid)
	wantEmpty(t, old, true)

	url := testdb.SQLite(t)
	first, err := store.OpenAt(t.Context(), url, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	raw, err := sql.Open("sqlite", strings.TrimPrefix(url, "sqlite:"))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.Exec(`INSERT INTO settings (name, value) VALUES ('url', 'https://old.example.com'), ('first_team', 'main')`); err != nil {
		t.Fatal(err)
	}
	e.Platform.DB = first
	f = reopen(t, backup(t, e))
	if f.Schema != 1 {
		t.Errorf("the schema is %d, want 1", f.Schema)
	}
	if _, err := f.Restore(t.Context(), old, platform.RestoreRequest{Sealer: e.Platform.Sealer, Scratch: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	p, err := platform.New(t.Context(), old, e.Platform.Sealer, e.Platform.Log, nil)
	if err != nil || p.URL != "https://old.example.com" {
		t.Errorf("the platform is %+v, %v", p, err)
	}
}

// A backup whose keys the master key does not open is not restored: what is
// there stays, and signs.
func TestRestoreThatCouldNotSign(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		good := backup(t, e)
		for what, spoil := range map[string]func(tx *store.Tx) error{
			"a CA": func(tx *store.Tx) error {
				list, err := tx.AllCAs()
				if err != nil {
					return err
				}
				return tx.SetCASealed(list[len(list)-1].ID, list[0].Sealed)
			},
			"a setting": func(tx *store.Tx) error { return tx.SetSetting("token_key", "AAAA") },
		} {
			change := func(f func(tx *store.Tx) error) {
				t.Helper()
				if err := e.DB.Change(t.Context(), func(tx *store.Tx) (audit.Event, error) {
					return audit.Event{ID: audit.NewID(), Time: e.Platform.Now(), Kind: audit.PlatformBackup, Outcome: audit.Success, Actor: audit.Actor{Kind: "platform"}}, f(tx)
				}); err != nil {
					t.Fatal(err)
				}
			}
			change(spoil)
			f := reopen(t, backup(t, e))
			r := platform.RestoreRequest{Sealer: e.Platform.Sealer, Scratch: t.TempDir(), Replace: true}
			if _, err := reopen(t, good).Restore(t.Context(), e.DB, r); err != nil {
				t.Fatal(err)
			}
			_, err := f.Restore(t.Context(), e.DB, r)
			wantCode(t, what+" that does not open", err, sft.Invalid)
			if _, err := e.Platform.Keys(t.Context()); err != nil {
				t.Errorf("%s: the records of before are gone: %v", what, err)
			}
		}
	})
}
