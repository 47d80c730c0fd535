//go:build unix

package main

import (
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sft/internal/ca"
	"sft/internal/store"
	"sft/internal/testdb"
	"sft/internal/testenv"
)

// However long a database takes to be brought up to date, systemd does not end
// the start; and each step is in the log.
func TestUpgradeTakesItsTime(t *testing.T) {
	was := patience
	t.Cleanup(func() { patience = was })
	patience = 100 * time.Millisecond
	testdb.Each(t, func(t *testing.T, url string) {
		d := data{dir: t.TempDir(), database: url}
		must(t, ca.NewMasterKey(d.masterKey()))
		db, err := store.OpenAt(t.Context(), url, 10)
		must(t, err)
		_, newest, err := db.Versions(t.Context())
		must(t, err)
		must(t, db.Close())
		raw := testdb.Raw(t, url)
		// No step can end before it may.
		hold := "LOCK TABLE goose_db_version IN SHARE MODE"
		if strings.HasPrefix(url, "sqlite:") {
			hold = "UPDATE goose_db_version SET version_id = version_id"
		}
		tx, err := raw.BeginTx(t.Context(), nil)
		must(t, err)
		defer tx.Rollback()
		_, err = tx.Exec(hold)
		must(t, err)

		path := filepath.Join(t.TempDir(), "notify")
		manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		must(t, err)
		defer manager.Close()
		t.Setenv("NOTIFY_SOCKET", path)
		var log testenv.Log
		ended := make(chan error, 1)
		go func() { ended <- serve(t.Context(), d, serving{}, slog.New(slog.NewTextHandler(&log, nil))) }()
		b := make([]byte, 100)
		for range 3 {
			must(t, manager.SetReadDeadline(time.Now().Add(20*time.Second)))
			n, err := manager.Read(b)
			must(t, err)
			if said := string(b[:n]); said != "EXTEND_TIMEOUT_USEC=100000" {
				t.Errorf("the manager is told %q", said)
			}
		}
		select {
		case err := <-ended:
			t.Fatalf("it did not wait: %v", err)
		default:
		}
		must(t, tx.Rollback())
		must(t, manager.SetReadDeadline(time.Time{}))
		go func() { // what nobody reads is waited for
			for err := error(nil); err == nil; {
				_, err = manager.Read(b)
			}
		}()
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "sft-platform init") {
			t.Errorf("serve of an empty database: %v", err)
		}
		for _, want := range []string{"schema=10 to=", "is migrated\" schema=11 took=", fmt.Sprintf("is migrated\" schema=%d took=", newest)} {
			if strings.Count(log.String(), want) != 1 {
				t.Errorf("the log has not once %q:\n%s", want, log.String())
			}
		}
	})
}
