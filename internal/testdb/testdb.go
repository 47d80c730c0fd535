// Package testdb gives a test an empty database of each kind that the product
// runs on: a SQLite file, and a database on a PostgreSQL server that is
// started once per test process, in a folder of its own, on a Unix socket.
//
// A small shell looks after the server. It waits for its standard input to
// end, which happens however the test process does, and then stops the server
// and removes the folder: a test that is killed leaves nothing behind.
package testdb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the PostgreSQL driver
)

// Each runs f on an empty SQLite database and on an empty PostgreSQL one.
func Each(t *testing.T, f func(t *testing.T, url string)) {
	t.Run("sqlite", func(t *testing.T) { f(t, SQLite(t)) })
	t.Run("postgres", func(t *testing.T) { f(t, Postgres(t)) })
}

// Raw opens the database at url without the product's rules for it. The caller's
// program has the drivers.
func Raw(t testing.TB, url string) *sql.DB {
	t.Helper()
	driver, name := "pgx", url
	if path, ok := strings.CutPrefix(url, "sqlite:"); ok {
		driver, name = "sqlite", path
	}
	db, err := sql.Open(driver, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// SQLite returns the URL of an empty SQLite database.
func SQLite(t testing.TB) string {
	return "sqlite:" + filepath.Join(t.TempDir(), "platform.db")
}

// Postgres returns the URL of an empty PostgreSQL database. Where PostgreSQL
// is not installed the test is skipped, and, with CI=true, fails.
func Postgres(t testing.TB) string {
	t.Helper()
	return running(t).create(t, "template1")
}

// running returns the server.
func running(t testing.TB) *postgres {
	t.Helper()
	s, err := server()
	if errors.Is(err, errMissing) {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("NOT TESTED:", err)
	}
	if err != nil {
		t.Fatal("start PostgreSQL:", err)
	}
	return s
}

var errMissing = errors.New("PostgreSQL is not installed; run \"make setup\"")

var databases atomic.Int64

// A postgres is a running server.
type postgres struct {
	dir   string
	alive *os.File // while it is open, the server runs
	db    *sql.DB
}

var server = sync.OnceValues(start)

func (s *postgres) url(name string) string {
	return "postgres://postgres@/" + name + "?host=" + s.dir
}

// create makes a database of a test's as another one is, and returns its URL.
func (s *postgres) create(t testing.TB, like string) (url string) {
	t.Helper()
	name := fmt.Sprintf("t%d", databases.Add(1))
	s.exec(t, "CREATE DATABASE "+name+" TEMPLATE "+like)
	t.Cleanup(func() { s.exec(t, "DROP DATABASE "+name+" WITH (FORCE)") })
	return s.url(name)
}

func (s *postgres) exec(t testing.TB, query string) {
	t.Helper()
	if _, err := s.db.ExecContext(context.Background(), query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// keeper is the shell's program: $1 is the folder of the server's programs, $2
// that of its files.
const keeper = `
"$1/initdb" --no-sync --no-instructions --locale=C --encoding=UTF8 --auth=trust --username=postgres -D "$2/data" || exit 1
"$1/postgres" -D "$2/data" -k "$2" -c listen_addresses= -c fsync=off -c synchronous_commit=off -c full_page_writes=off \
	-c autovacuum=off -c max_connections=300 -c shared_buffers=16MB &
pid=$!
trap '' INT TERM HUP
cat >/dev/null
kill -QUIT $pid
wait $pid
rm -rf "$2"
`

func start() (*postgres, error) {
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(bins) == 0 {
		if p, err := exec.LookPath("postgres"); err == nil {
			bins = []string{p}
		}
	}
	if len(bins) == 0 {
		return nil, errMissing
	}
	slices.Sort(bins)
	// Not in a test's folder: the path of a socket has about 100 bytes.
	dir, err := os.MkdirTemp("/tmp", "sft-pg-")
	if err != nil {
		return nil, err
	}
	s := &postgres{dir: dir}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	in, alive, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	s.alive = alive
	cmd := exec.Command("/bin/sh", "-c", keeper, "sh", filepath.Dir(bins[len(bins)-1]), dir)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, in, log, log
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	var as *user.User
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			return nil, errors.Join(errMissing, err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := errors.Join(os.Chown(dir, uid, gid), log.Chown(uid, gid)); err != nil {
			return nil, err
		}
		as = u
	}
	if cmd.SysProcAttr, err = apart(as); err != nil { // Ctrl-C ends the test, and the test's end the server
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	if s.db, err = sql.Open("pgx", s.url("postgres")); err != nil {
		return nil, err
	}
	s.db.SetMaxOpenConns(2)
	for deadline := time.Now().Add(time.Minute); ; {
		err := s.db.Ping()
		if err == nil {
			return s, nil
		}
		select {
		case <-ended:
			deadline = time.Time{}
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(log.Name())
			alive.Close()
			return nil, fmt.Errorf("%w\n%s", err, said)
		}
	}
}
