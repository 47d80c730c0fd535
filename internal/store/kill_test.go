package store_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"sft/internal/audit"
	"sft/internal/store"
	"sft/internal/testdb"
)

const writerEnv = "SFT_TEST_WRITER"

// TestMain is also the programs that TestKilledWhileWriting and
// TestKilledWhileLoading kill.
func TestMain(m *testing.M) {
	if url := os.Getenv(loaderEnv); url != "" {
		fmt.Fprintln(os.Stderr, load(url))
		os.Exit(1)
	}
	if url := os.Getenv(writerEnv); url != "" {
		fmt.Fprintln(os.Stderr, write(url))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// write changes the database until it is killed, and says each number when it
// is stored.
func write(url string) error {
	ctx := context.Background()
	db, err := store.Open(ctx, url)
	for i := 0; err == nil; i++ {
		err = db.Change(ctx, func(tx *store.Tx) (audit.Event, error) {
			e := event(audit.UserUpdate)
			e.Target = fmt.Sprint(i)
			return e, tx.SetSetting("n"+e.Target, e.ID)
		})
		if err == nil {
			fmt.Println(i)
		}
	}
	return err
}

// After kill -9 each record has its event and each event its record, and
// what was said to be stored is stored.
func TestKilledWhileWriting(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		open(t, url).Close()
		said := -1
		for round := range 3 {
			cmd := exec.Command(os.Args[0], "-test.run=^$")
			cmd.Env = append(os.Environ(), writerEnv+"="+url)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			for range 10 + 7*round {
				if !lines.Scan() {
					t.Fatal("the writer ended by itself")
				}
			}
			cmd.Process.Kill()
			for more := true; more; more = lines.Scan() {
				fmt.Sscan(lines.Text(), &said) // the last it said
			}
			cmd.Wait()

			db := open(t, url)
			if err := db.Read(t.Context(), func(tx *store.Tx) error {
				events, err := tx.Events("main", "", 100_000, false)
				if err != nil {
					return err
				}
				latest := map[string]string{}
				for _, e := range events {
					latest[e.Target] = e.ID
				}
				for target, id := range latest {
					if v, err := tx.Setting("n" + target); err != nil || v != id {
						t.Errorf("event %s tells of record %s, which is %q, %v", id, target, v, err)
					}
				}
				for i := 0; ; i++ {
					id, err := tx.Setting(fmt.Sprint("n", i))
					if err != nil {
						if i <= said || said < 0 {
							t.Errorf("record %d of %d is lost", i, said)
						}
						return nil
					}
					if latest[fmt.Sprint(i)] != id {
						t.Errorf("record %d has no event", i)
					}
				}
			}); err != nil {
				t.Error(err)
			}
			if strings.HasPrefix(url, "sqlite") {
				check(t, strings.TrimPrefix(url, "sqlite:"))
			}
			db.Close()
		}
	})
}

// check asks SQLite whether the file is whole.
func check(t *testing.T, path string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var said string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&said); err != nil || said != "ok" {
		t.Errorf("the database file is damaged: %s, %v", said, err)
	}
}
