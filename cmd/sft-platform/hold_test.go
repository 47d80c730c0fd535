package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sft"
	"sft/internal/conf"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testdb"
	"sft/internal/webapi"
)

// No command but serve touches a schema that is not this program's.
func TestOtherSchemaIsLeftAlone(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		k := keep(t, url)
		have, newest, err := k.DB.Versions(t.Context())
		must(t, err)
		if have != newest {
			t.Fatalf("the schema is %d, want %d", have, newest)
		}
		db := testdb.Raw(t, url)
		count := func() (n int) {
			t.Helper()
			must(t, db.QueryRow(`SELECT count(*) FROM goose_db_version`).Scan(&n))
			return n
		}
		for what, change := range map[string]string{
			"an older":   fmt.Sprintf(`DELETE FROM goose_db_version WHERE version_id = %d`, newest),
			"by a newer": `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, true)`,
		} {
			_, err := db.Exec(change)
			must(t, err)
			before := count()
			for _, args := range []string{"first-use olive", "audit verify", "audit checkpoint", "audit prune --before 2020-01-01", "audit exports",
				"policy explain olive web01", "rotate master-key", "backup " + filepath.Join(t.TempDir(), "b")} {
				if status := run(append(strings.Fields(args), "--data", k.d.dir, "--database", url)); status != 1 || count() != before {
					t.Errorf("%s schema: %s ended with %d and has left %d versions, want 1 and %d", what, args, status, count(), before)
				}
			}
			if _, err := k.d.open(t.Context(), slog.New(slog.DiscardHandler)); sft.CodeOf(err) != sft.Invalid || !strings.Contains(err.Error(), what) {
				t.Errorf("%s schema: %v", what, err)
			}
			_, err = db.Exec(`DELETE FROM goose_db_version WHERE version_id = 99999`)
			must(t, err)
			if _, err := db.Exec(fmt.Sprintf(`INSERT INTO goose_db_version (version_id, is_applied) SELECT %d, true WHERE NOT EXISTS (SELECT 1 FROM goose_db_version WHERE version_id = %[1]d)`, newest)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Lstat(k.d.masterKey() + ".next"); !errors.Is(err, os.ErrNotExist) {
			t.Error("rotate has begun")
		}
	})
}

// Doctors side by side do not take each other for a platform that runs.
func TestDoctorsSideBySide(t *testing.T) {
	d := data{dir: t.TempDir()}
	using, err := conf.TryShare(d.lockFiles()[0])
	must(t, err)
	if runs, _ := d.served(); !runs {
		t.Error("a platform that runs is not seen")
	}
	using.Release()
	var wg sync.WaitGroup
	for _, lock := range []func(string) (*conf.Lock, error){conf.TryShare, conf.TryLock} {
		l, err := lock(d.lockFiles()[0])
		must(t, err)
		wg.Go(func() { time.Sleep(50 * time.Millisecond); l.Release() })
		if runs, _ := d.served(); runs {
			t.Error("another doctor is taken for a platform")
		}
		wg.Wait()
	}
	wg.Go(func() {
		for range 100 {
			d.served()
		}
	})
	for range 100 {
		if runs, _ := d.served(); runs {
			t.Fatal("a doctor at the same time is taken for a platform")
		}
	}
	wg.Wait()
}

// Nothing is restored under a platform that runs, wherever; and one that has
// lost its database for a while goes on, unless its records were replaced.
func TestRestoreBesideServe(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		k := keep(t, url)
		file := filepath.Join(t.TempDir(), "b")
		if status := run([]string{"backup", file, "--data", k.d.dir, "--database", url}); status != 0 {
			t.Fatalf("backup ended with %d", status)
		}
		must(t, k.DB.Close())
		// Another host, or another folder, with the same master key.
		other := data{dir: t.TempDir(), database: url}
		key, err := os.ReadFile(k.d.masterKey())
		must(t, err)
		must(t, os.WriteFile(other.masterKey(), key, 0o600))

		ln, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		listen := ln.Addr().String()
		ln.Close()
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- serve(ctx, k.d, serving{listen: listen, limits: webapi.DefaultLimits}, slog.New(slog.DiscardHandler))
		}()
		answers := func() bool {
			c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // nothing is sent
			defer c.CloseIdleConnections()
			resp, err := c.Get("https://" + listen + "/readyz")
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		}
		eventually(t, "it serves", answers)
		_, _, err = restore(t.Context(), other, file, "", true)
		if sft.CodeOf(err) != sft.Invalid || err == nil {
			t.Fatalf("restore beside serve: %v", err)
		}
		if strings.HasPrefix(url, "sqlite:") {
			stop()
			must(t, <-ended)
		} else {
			if !strings.Contains(err.Error(), "sft-platform serve on ") {
				t.Errorf("it does not say who is in the way: %v", err)
			}
			db := testdb.Raw(t, url)
			lose := func() {
				t.Helper()
				_, err := db.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
				must(t, err)
			}
			lose() // as when PostgreSQL is restarted
			eventually(t, "it serves after it has lost its database", answers)
			eventually(t, "it keeps restore out again", func() bool {
				h, err := store.HoldAlone(t.Context(), url, "restore")
				if err == nil {
					h.Release()
				}
				return err != nil
			})
			// Cut off from its database, it cannot keep anybody out. It sees that when
			// it is back.
			eventually(t, "a restore while it was away", func() bool {
				lose()
				_, _, err := restore(t.Context(), other, file, "", true)
				return err == nil
			})
			if err := <-ended; !errors.Is(err, platform.ErrRestored) {
				t.Errorf("serve ended with %v", err)
			}
			stop()
		}
		if _, _, err := restore(t.Context(), other, file, "", true); err != nil {
			t.Errorf("restore after serve: %v", err)
		}
	})
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never came: " + what)
		}
	}
}
