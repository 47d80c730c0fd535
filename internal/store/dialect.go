package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib" // also the driver "pgx"
	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// A dialect is everything the two databases do not share.
type dialect struct {
	goose  goose.Dialect
	change string           // begins a change: nothing else is written or added until it ends
	add    string           // begins an addition: no change happens until it ends, other additions may
	seal   string           // begins the sealing of events: nobody else seals until it ends
	unique func(error) bool // the row breaks a unique key
	// write is the isolation of what writes, whatever the database's default:
	// what is read after the lock is what was there when it was taken.
	write sql.IsolationLevel
	// columns lists table, column and type of all tables, a table's columns in
	// their order; parents lists each table with those that its keys are of.
	columns, parents string
	checks           []string // each lists what is damaged
	clock            string   // the database's own time, in microseconds; empty if it has none
	// commonLabels is how many servers have a label that is better looked for at
	// each server of a page than the servers by it; 0: the database, which has
	// counted, sees for itself.
	commonLabels int64
}

var sqliteDialect = dialect{
	goose: goose.DialectSQLite3,
	// SQLite has one writer at a time; the pool's transactions are IMMEDIATE.
	unique: func(err error) bool {
		e, ok := errors.AsType[*sqlite.Error](err)
		return ok && (e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
	},
	columns: `SELECT m.name, c.name, lower(c.type) FROM sqlite_schema m JOIN pragma_table_info(m.name) c
		WHERE m.type = 'table' AND substr(m.name, 1, 7) <> 'sqlite_' ORDER BY m.name, c.cid`,
	parents: `SELECT m.name, k."table" FROM sqlite_schema m JOIN pragma_foreign_key_list(m.name) k WHERE m.type = 'table'`,
	checks: []string{`SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check <> 'ok'`,
		`SELECT 'a row of table ' || "table" || ' points to none of ' || parent FROM pragma_foreign_key_check LIMIT 1`},
	commonLabels: 4000, // where either is about as much work, with 50,000 servers
}

var postgresDialect = dialect{
	goose:  goose.DialectPostgres,
	write:  sql.LevelReadCommitted,
	change: `SELECT pg_advisory_xact_lock(727407)`,
	add:    `SELECT pg_advisory_xact_lock_shared(727407)`,
	seal:   `SELECT pg_advisory_xact_lock(727408)`,
	unique: func(err error) bool {
		e, ok := errors.AsType[*pgconn.PgError](err)
		return ok && e.Code == "23505"
	},
	clock: `SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint`,
	columns: `SELECT t.relname, c.attname, format_type(c.atttypid, c.atttypmod) FROM pg_class t JOIN pg_attribute c ON c.attrelid = t.oid
		WHERE t.relkind = 'r' AND t.relnamespace = current_schema()::regnamespace AND c.attnum > 0 AND NOT c.attisdropped
		ORDER BY t.relname COLLATE "C", c.attnum`,
	parents: `SELECT t.relname, p.relname FROM pg_constraint k JOIN pg_class t ON t.oid = k.conrelid JOIN pg_class p ON p.oid = k.confrelid
		WHERE k.contype = 'f' AND k.connamespace = current_schema()::regnamespace`,
}

// A locked is a transaction of PostgreSQL that spares round trips: it took its
// lock in that which began it, for which database/sql would make two, and what
// nobody waits for goes with the next statement, or with the commit.
type locked struct {
	*sql.Conn
	ctx     context.Context
	waiting pgx.Batch
	failed  error // of what waited
	over    bool
}

// later runs a statement no later than the next one. If it fails, all that
// follow do. It calls done, unless that is nil, with how many rows it touched.
func (l *locked) later(done func(rows int64), query string, args ...any) {
	q := l.waiting.Queue(query, args...)
	if done != nil {
		q.Exec(func(t pgconn.CommandTag) error { done(t.RowsAffected()); return nil })
	}
}

// send sends what waits.
func (l *locked) send() error {
	if l.failed == nil && l.waiting.Len() > 0 {
		l.failed = l.Raw(func(c any) error { return c.(*stdlib.Conn).Conn().SendBatch(l.ctx, &l.waiting).Close() })
		l.waiting = pgx.Batch{}
	}
	return l.failed
}

func (l *locked) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if err := l.send(); err != nil {
		return nil, err
	}
	return l.Conn.ExecContext(ctx, query, args...)
}

func (l *locked) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if err := l.send(); err != nil {
		return nil, err
	}
	return l.Conn.QueryContext(ctx, query, args...)
}

// QueryRowContext has no way to return an error of what waited: the server
// refuses the query then.
func (l *locked) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	l.send()
	return l.Conn.QueryRowContext(ctx, query, args...)
}

func beginLocked(ctx context.Context, pool *sql.DB, lock string) (*locked, error) {
	for try := 0; ; try++ {
		c, err := pool.Conn(ctx)
		if err != nil {
			return nil, err
		}
		// Without arguments it is one message, whatever statements are in it.
		if _, err = c.ExecContext(ctx, "BEGIN ISOLATION LEVEL READ COMMITTED; "+lock); err == nil {
			return &locked{Conn: c, ctx: ctx}, nil
		}
		c.Close()
		if try > 0 || ctx.Err() != nil {
			return nil, err
		} // else the server may have closed the connection since it was used
	}
}

// Commit refuses a transaction in which a statement has failed: the server
// would undo it and call that a success. A statement that fails on the way there
// leaves out the rest of its message, the COMMIT too.
func (l *locked) Commit() error {
	err := l.Raw(func(c any) error {
		if s := c.(*stdlib.Conn).Conn().PgConn().TxStatus(); s != 'T' {
			return fmt.Errorf("the transaction cannot be stored: its state is %q", s)
		}
		return nil
	})
	if err != nil {
		return err
	}
	l.later(nil, "COMMIT")
	if err := l.send(); err != nil {
		return err
	}
	l.over = true
	return l.Close()
}

// Rollback lets go of the connection. One that is still in a transaction is
// not used again: the driver sees to that.
func (l *locked) Rollback() error {
	if l.over {
		return nil
	}
	l.over = true
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), 10*time.Second)
	defer cancel()
	_, err := l.Conn.ExecContext(ctx, "ROLLBACK")
	return errors.Join(err, l.Close())
}

// maxConns is how many connections to PostgreSQL there are.
const maxConns = 16

// open connects to rawURL with two pools: the driver of SQLite lets a
// "read-only" transaction write, so the reading pool is told by query_only.
func open(rawURL string) (read, write *sql.DB, d dialect, err error) {
	if path, ok := strings.CutPrefix(rawURL, "sqlite:"); ok {
		if path == "" || strings.ContainsAny(path, "?#") {
			return nil, nil, d, fmt.Errorf("database %q has no usable path; give sqlite:PATH", rawURL)
		}
		// Made here, so that it is private from the first byte.
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, nil, d, err
		}
		f.Close()
		name := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" // a "%" in path is not an escape
		q := url.Values{"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)"}}
		q.Set("_txlock", "immediate")
		if write, err = sql.Open("sqlite", name+q.Encode()); err != nil {
			return nil, nil, d, err
		}
		write.SetMaxOpenConns(1)
		q.Del("_txlock")
		q.Add("_pragma", "query_only(1)")
		if read, err = sql.Open("sqlite", name+q.Encode()); err != nil {
			write.Close()
			return nil, nil, d, err
		}
		read.SetMaxOpenConns(8)
		read.SetMaxIdleConns(8)
		return read, write, sqliteDialect, nil
	}
	if strings.HasPrefix(rawURL, "postgres://") || strings.HasPrefix(rawURL, "postgresql://") {
		if write, err = sql.Open("pgx", rawURL); err != nil {
			return nil, nil, d, errors.New("the database's URL is not readable; give postgres://USER@HOST/NAME")
		}
		write.SetMaxOpenConns(maxConns)
		write.SetMaxIdleConns(maxConns)
		return write, write, postgresDialect, nil
	}
	return nil, nil, d, errors.New("the database is neither sqlite:PATH nor postgres://…")
}
