// Package store keeps the platform's records in SQLite or PostgreSQL.
//
// There is one schema and one text of each query, written in the SQL that the
// two databases share: $1 parameters, bigint microseconds for time, ids made
// in Go, order by bytes. What differs is in dialect.go, and nothing else in
// the program knows which database it runs on. Every test of this package
// runs on both.
//
// Records change only inside Change and Add, which take the change and the
// audit event that tells of it together. Neither can be stored without the
// other, and code that forgets the event does not compile. What is not worth
// an event, such as when a host was last seen, has a Note of its own and can
// touch nothing else.
package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"sft"
	"sft/internal/audit"
)

// A DB is the platform's database. Its methods may be used concurrently.
type DB struct {
	read, write *sql.DB
	d           dialect
	group       *group             // of the writers, on SQLite
	plans       map[*sql.DB]*plans // of each pool, on SQLite
	version     int64              // of the schema
	watch       atomic.Pointer[func(Span)]
	// writers holds one for each that has a connection and waits for a lock, or
	// has it, on PostgreSQL: those who read, as to find out who asks, do not wait
	// for them.
	writers chan struct{}
}

// maxWriters is half of the connections.
const maxWriters = maxConns / 2

// Open connects to the database at url, "sqlite:PATH" or "postgres://…", and
// brings its schema up to date. A SQLite file is made when it is missing.
func Open(ctx context.Context, url string) (*DB, error) { return OpenAt(ctx, url, 0) }

// OpenAt is Open for a schema that is brought up to a version, and no further;
// 0 is the newest.
func OpenAt(ctx context.Context, url string, version int64) (*DB, error) {
	read, write, d, err := open(url)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	db := &DB{read: read, write: write, d: d, writers: make(chan struct{}, maxWriters)}
	if read != write {
		db.group = newGroup()
		db.plans = map[*sql.DB]*plans{read: newPlans(read), write: newPlans(write)}
	}
	if err := db.Migrate(ctx, version); err != nil {
		db.Close()
		return nil, fmt.Errorf("open database: %w", err)
	}
	return db, nil
}

// Attach is Open for a database that is there, whose schema stays as it is:
// Versions tells which it is.
func Attach(ctx context.Context, url string) (*DB, error) {
	if path, ok := strings.CutPrefix(url, "sqlite:"); ok {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("open database: %w", err)
		}
	}
	return Reach(ctx, url)
}

// Reach is Attach for a database that may be new: a SQLite file is made when it
// is missing.
func Reach(ctx context.Context, url string) (*DB, error) {
	read, write, d, err := open(url)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	db := &DB{read: read, write: write, d: d, writers: make(chan struct{}, maxWriters)}
	if err := db.Ping(ctx); err != nil {
		db.Close()
		return nil, fmt.Errorf("open database: %w", err)
	}
	return db, nil
}

// Close lets go of the database.
func (db *DB) Close() error {
	for _, p := range db.plans {
		p.close()
	}
	err := db.write.Close()
	if db.read != db.write {
		err = errors.Join(err, db.read.Close())
	}
	return err
}

// Ping tells whether the database answers.
func (db *DB) Ping(ctx context.Context) error { return db.read.PingContext(ctx) }

// ErrNotFound is returned for a record that is not there.
var ErrNotFound = errors.New("no such record")

// ErrExists is returned for a record whose name or id is taken.
var ErrExists = errors.New("the record exists already")

// A Tx is a transaction. Its reading methods are good in Read, Change and
// Add; those that write are refused by the database in Read.
type Tx struct {
	Notes
	events []audit.Event
	news   []string
}

// News returns the ids of those whose agents wait to hear of what the
// transaction has changed: that of a server is for its agent, that of a project
// or a team for the agents of all servers that are in it now.
func (tx *Tx) News() []string { return tx.news }

// tell adds to the news.
func (tx *Tx) tell(ids ...string) { tx.news = append(tx.news, ids...) }

// Notes are the records of no consequence: when somebody was last seen,
// which request ids are used up, which sign-ins are on their way.
type Notes struct {
	ctx context.Context
	tx  querier
	d   dialect
	// span is what is told of the transaction.
	span  *Span
	plans *plans // nil: the driver looks after them
}

// A querier is a transaction, or a pool.
type querier interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
}

// A transaction is a querier that ends.
type transaction interface {
	querier
	Commit() error
	Rollback() error
}

// Look runs fn, which reads one thing: each statement sees the records as they
// are then. It is a Read without the round trips that a transaction takes.
func (db *DB) Look(ctx context.Context, fn func(Notes) error) error {
	span, began := Span{Kind: look}, time.Now()
	err := fn(Notes{ctx, db.read, db.d, &span, db.plans[db.read]})
	db.tell(&span, began, err)
	if err == nil {
		db.learn(ctx, db.read)
	}
	return err
}

// look is the kind of a Look's span.
const look = "look"

// Read runs fn on one consistent view of the records.
func (db *DB) Read(ctx context.Context, fn func(*Tx) error) error {
	return db.in(ctx, db.read, &sql.TxOptions{ReadOnly: true, Isolation: db.readIsolation()}, "read", "", func(n Notes) error {
		return fn(&Tx{Notes: n})
	})
}

func (db *DB) readIsolation() sql.IsolationLevel {
	if db.read == db.write {
		return sql.LevelRepeatableRead
	}
	return sql.LevelDefault
}

// Change runs fn alone: no other Change or Add is under way. What fn wrote is
// stored together with the event that it returns, or not at all.
func (db *DB) Change(ctx context.Context, fn func(*Tx) (audit.Event, error)) error {
	return db.audited(ctx, "change", db.d.change, fn)
}

// Add is a Change by a fn that only adds records of its own, such as a
// session. Others may add at the same time, but what fn has read does not
// change until it is done.
func (db *DB) Add(ctx context.Context, fn func(*Tx) (audit.Event, error)) error {
	return db.audited(ctx, "add", db.d.add, fn)
}

func (db *DB) audited(ctx context.Context, kind, lock string, fn func(*Tx) (audit.Event, error)) error {
	return db.in(ctx, db.write, &sql.TxOptions{Isolation: db.d.write}, kind, lock, func(n Notes) error {
		tx := &Tx{Notes: n}
		e, err := fn(tx)
		if err != nil {
			return err
		}
		for _, e := range append(tx.events, e) {
			if err := tx.addEvent(e, func(rows int64) { tx.span.Events += int(rows) }); err != nil {
				return err
			}
		}
		return nil
	})
}

// Also records a further event, where one operation is several changes.
func (tx *Tx) Also(e audit.Event) { tx.events = append(tx.events, e) }

// Note runs fn on what needs no event.
func (db *DB) Note(ctx context.Context, fn func(Notes) error) error {
	return db.in(ctx, db.write, &sql.TxOptions{Isolation: db.d.write}, "note", "", fn)
}

func (db *DB) in(ctx context.Context, pool *sql.DB, opts *sql.TxOptions, kind, lock string, fn func(Notes) error) (err error) {
	span, began := Span{Kind: kind}, time.Now()
	defer func() {
		db.tell(&span, began, err)
		if err == nil {
			db.learn(ctx, pool)
		}
	}()
	plans := db.plans[pool]
	if pool == db.write && db.group != nil {
		return db.group.do(ctx, pool, func(tx *sql.Tx) error {
			span.Waited = time.Since(began)
			// A statement that is interrupted would undo what is of others.
			return fn(Notes{context.WithoutCancel(ctx), tx, db.d, &span, plans})
		})
	}
	var tx transaction
	if lock != "" {
		select {
		case db.writers <- struct{}{}:
			defer func() { <-db.writers }()
		case <-ctx.Done():
			return ctx.Err()
		}
		tx, err = beginLocked(ctx, pool, lock)
	} else {
		tx, err = pool.BeginTx(ctx, opts)
	}
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after Commit
	span.Waited = time.Since(began)
	if err = fn(Notes{ctx, tx, db.d, &span, plans}); err == nil {
		err = tx.Commit()
	}
	if l, ok := tx.(*locked); ok && l.failed != nil {
		if err = l.failed; db.d.unique(err) { // whatever came of it
			err = ErrExists
		}
	}
	return err
}

// tell hands a span to whoever watches.
func (db *DB) tell(span *Span, began time.Time, err error) {
	if tell := db.watch.Load(); tell != nil {
		span.Took, span.Failed = time.Since(began), err != nil
		(*tell)(*span)
	}
}

// learn compiles the statements that were new to the pool.
func (db *DB) learn(ctx context.Context, pool *sql.DB) {
	if plans := db.plans[pool]; plans != nil {
		plans.learn(ctx)
	}
}

// errText refuses what PostgreSQL has no text for. SQLite would take it.
var errText = &sft.Error{Code: sft.Invalid, Msg: "the text cannot be stored", Hint: "use UTF-8, without the character 0"}

// storable reports whether both databases can hold every text of args. What
// one cannot hold is in no record.
func storable(args []any) bool {
	for _, a := range args {
		if s, ok := a.(string); ok && (strings.ContainsRune(s, 0) || !utf8.ValidString(s)) {
			return false
		}
	}
	return true
}

// plan returns the compiled statement for this transaction, if there is one.
func (n Notes) plan(query string) *sql.Stmt {
	if n.plans == nil {
		return nil
	}
	s := n.plans.of(query)
	if tx, ok := n.tx.(*sql.Tx); ok && s != nil {
		return tx.StmtContext(n.ctx, s)
	}
	return s
}

// exec runs a statement and returns how many rows it touched.
func (n Notes) exec(query string, args ...any) (int64, error) {
	if !storable(args) {
		return 0, errText
	}
	if n.span.Kind == look {
		return 0, errors.New("a look writes nothing")
	}
	n.span.Statements++
	var r sql.Result
	var err error
	if s := n.plan(query); s != nil {
		r, err = s.ExecContext(n.ctx, args...)
	} else {
		r, err = n.tx.ExecContext(n.ctx, query, args...)
	}
	if err != nil {
		if n.d.unique(err) {
			return 0, ErrExists
		}
		return 0, err
	}
	return r.RowsAffected()
}

// must runs a statement that has to touch a row: none is ErrNotFound.
func (n Notes) must(query string, args ...any) error {
	rows, err := n.exec(query, args...)
	if err == errText || err == nil && rows == 0 {
		return ErrNotFound
	}
	return err
}

// later runs a statement of whose result nobody asks before the next one. If it
// fails, so does what follows, at the latest the commit. It calls done, unless
// that is nil, with how many rows it touched.
func (n Notes) later(done func(rows int64), query string, args ...any) error {
	if l, ok := n.tx.(*locked); ok {
		if !storable(args) {
			return errText
		}
		n.span.Statements++
		l.later(done, query, args...)
		return nil
	}
	rows, err := n.exec(query, args...)
	if err == nil && done != nil {
		done(rows)
	}
	return err
}

// add runs an INSERT.
func (n Notes) add(query string, args ...any) error {
	_, err := n.exec(query, args...)
	return err
}

type scanner interface{ Scan(...any) error }

func one[T any](n Notes, scan func(scanner) (T, error), query string, args ...any) (T, error) {
	if !storable(args) {
		return *new(T), ErrNotFound
	}
	n.span.Statements++
	var row *sql.Row
	if s := n.plan(query); s != nil {
		row = s.QueryRowContext(n.ctx, args...)
	} else {
		row = n.tx.QueryRowContext(n.ctx, query, args...)
	}
	v, err := scan(row)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	return v, err
}

func all[T any](n Notes, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	if !storable(args) {
		return []T{}, nil
	}
	n.span.Statements++
	var rows *sql.Rows
	var err error
	if s := n.plan(query); s != nil {
		rows, err = s.QueryContext(n.ctx, args...)
	} else {
		rows, err = n.tx.QueryContext(n.ctx, query, args...)
	}
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	list := []T{}
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

// micros is how a time is stored: microseconds since 1970, UTC.
func micros(t time.Time) int64 { return t.UnixMicro() }

func fromMicros(n int64) time.Time { return time.UnixMicro(n).UTC() }

func optMicros(t *time.Time) sql.NullInt64 {
	if t == nil {
		return sql.NullInt64{}
	}
	return sql.NullInt64{Int64: t.UnixMicro(), Valid: true}
}

func optTime(n sql.NullInt64) *time.Time {
	if !n.Valid {
		return nil
	}
	t := fromMicros(n.Int64)
	return &t
}

func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("store: " + err.Error()) // our own types: cannot happen
	}
	return string(b)
}

// fold is how names are kept unique.
func fold(name string) string { return sft.Fold(name) }
