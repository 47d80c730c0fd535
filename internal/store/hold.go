package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/stdlib"

	"sft"
)

// A Hold says to all hosts that this process works with a database: it is a
// lock of PostgreSQL's, of a session that is for nothing else, and ends with
// the process, however that ends. One that is shared keeps out one that is
// alone, and the other way round. SQLite, whose hosts are one, has none: the
// caller locks files.
type Hold struct {
	db    *sql.DB // nil for SQLite
	conn  *sql.Conn
	alone bool
	who   string
}

// The lock's key is a number and the schema, so that two platforms in one
// database are two.
const holdKey = `727409, hashtext(coalesce(current_schema(), ''))`

// errNotHeld is a lock that others have.
var errNotHeld = errors.New("others hold it")

// HoldShared takes a Hold that others can share. who is how it is told to whom it is
// in the way of.
func HoldShared(ctx context.Context, url, who string) (*Hold, error) {
	h, err := hold(ctx, url, who, false)
	if errors.Is(err, errNotHeld) {
		err = &sft.Error{Code: sft.Unavailable, Msg: "a backup is being restored into the database", Hint: "start the platform when that is done"}
	}
	return h, err
}

// HoldAlone takes a Hold while nobody else has one.
func HoldAlone(ctx context.Context, url, who string) (*Hold, error) { return hold(ctx, url, who, true) }

func hold(ctx context.Context, url, who string, alone bool) (*Hold, error) {
	if strings.HasPrefix(url, "sqlite:") {
		return &Hold{}, nil
	}
	db, _, _, err := open(url)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	db.SetMaxIdleConns(-1) // a connection that is given up ends, and its lock
	h := &Hold{db: db, alone: alone, who: who}
	if err := h.take(ctx); err != nil {
		db.Close()
		return nil, err
	}
	return h, nil
}

// take takes the lock on a connection of its own.
func (h *Hold) take(ctx context.Context) error {
	conn, err := h.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	lock := `pg_try_advisory_lock_shared`
	if h.alone {
		lock = `pg_try_advisory_lock`
	}
	var taken bool
	if err = conn.QueryRowContext(ctx, `SELECT set_config('application_name', $1, false) IS NOT NULL AND `+lock+`(`+holdKey+`)`, h.who).Scan(&taken); err == nil && !taken {
		if err = errNotHeld; h.alone {
			err = inTheWay(ctx, conn)
		}
	}
	if err != nil {
		conn.Close()
		return err
	}
	h.conn = conn
	return nil
}

// inTheWay says who holds the lock.
func inTheWay(ctx context.Context, conn *sql.Conn) error {
	rows, err := conn.QueryContext(ctx, `SELECT DISTINCT coalesce(a.application_name, '') || coalesce(' from ' || host(a.client_addr), '')
		FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid JOIN pg_database d ON d.oid = l.database
		WHERE l.locktype = 'advisory' AND l.granted AND d.datname = current_database() AND l.objsubid = 2
		AND (l.classid::bigint, l.objid::bigint) = (SELECT k.a, k.b & 4294967295 FROM (VALUES (727409::bigint, hashtext(coalesce(current_schema(), ''))::bigint)) k(a, b))
		ORDER BY 1`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var list []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return err
		}
		list = append(list, sft.Printable(s))
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return &sft.Error{Code: sft.Invalid, Msg: "the database is in use by: " + strings.Join(list, ", "),
		Hint: "stop each of them, as with \"systemctl stop sft-platform\" there; what has crashed or is cut off goes by itself when PostgreSQL sees that"}
}

const (
	holdEvery = 5 * time.Second        // how often a connection is asked whether it lives
	holdRetry = 250 * time.Millisecond // how often it is tried to get another
	holdLimit = 10 * time.Second       // how long an answer may take
)

// Keep takes the lock again each time that its connection is lost, until ctx
// ends. Meanwhile others may have had it alone: still says whether what they
// did lets this process go on, and its error is returned if it is stop. What
// else fails is tried again.
func (h *Hold) Keep(ctx context.Context, stop error, still func(context.Context) error) error {
	if h.db == nil {
		<-ctx.Done()
		return nil
	}
	for ; ctx.Err() == nil; pause(ctx, holdRetry) {
		for h.conn != nil && h.alive(ctx) {
		}
		h.drop()
		if ctx.Err() != nil || h.try(ctx, h.take) != nil {
			continue
		}
		err := h.try(ctx, still)
		if errors.Is(err, stop) {
			return err
		}
		if err != nil { // not known: ask again, with another connection
			h.drop()
		}
	}
	return nil
}

// While runs f with a context that ends when the lock is lost, and returns the
// error of f, or that the lock was lost.
func (h *Hold) While(ctx context.Context, f func(context.Context) error) error {
	if h.db == nil {
		return f(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for h.alive(ctx) {
		}
		if ctx.Err() == nil {
			cancel(&sft.Error{Code: sft.Unavailable, Msg: "the connection that keeps others from the database was lost", Hint: "try again"})
		}
	}()
	err := f(ctx)
	lost := context.Cause(ctx)
	cancel(nil)
	<-done
	if err != nil && lost != nil {
		return lost
	}
	return err
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// alive waits a while, or until the connection is lost, and reports whether it
// is there.
func (h *Hold) alive(ctx context.Context) bool {
	_ = h.conn.Raw(func(c any) error {
		quiet, cancel := context.WithTimeout(ctx, holdEvery)
		defer cancel()
		_, err := c.(*stdlib.Conn).Conn().WaitForNotification(quiet) // none comes: it is for the end
		return err
	})
	return ctx.Err() == nil && h.try(ctx, func(ctx context.Context) error { _, err := h.conn.ExecContext(ctx, `SELECT 1`); return err }) == nil
}

func (h *Hold) drop() {
	if h.conn != nil {
		h.conn.Close()
		h.conn = nil
	}
}

func (h *Hold) try(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, holdLimit)
	defer cancel()
	return f(ctx)
}

// Release gives the lock back. Keep must have returned.
func (h *Hold) Release() error {
	if h.db == nil {
		return nil
	}
	if h.conn != nil { // the server takes a moment to see that a connection has ended
		_ = h.try(context.Background(), func(ctx context.Context) error {
			_, err := h.conn.ExecContext(ctx, `SELECT pg_advisory_unlock_all()`)
			return err
		})
	}
	h.drop()
	return h.db.Close()
}
