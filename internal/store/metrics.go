package store

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"time"
)

// A Span tells of one transaction that is over, or of a look.
type Span struct {
	Kind       string        // read, look, change, add, note, seal or load
	Waited     time.Duration // for a connection, and for the transactions of others to end
	Took       time.Duration // with what it waited
	Statements int
	Events     int  // audit events that were stored with it
	Failed     bool // nothing of it was stored
}

// Watch has fn told of each transaction that ends from now on, in the place of
// whoever was told before. It must return at once, and may be called
// concurrently.
func (db *DB) Watch(fn func(Span)) { db.watch.Store(&fn) }

// Pools returns what the pools of connections have done, by name. PostgreSQL
// has one pool, for all.
func (db *DB) Pools() map[string]sql.DBStats {
	if db.read == db.write {
		return map[string]sql.DBStats{"all": db.write.Stats()}
	}
	return map[string]sql.DBStats{"read": db.read.Stats(), "write": db.write.Stats()}
}

// Ready reports whether the database answers, takes and keeps what is written,
// and has the schema of this program.
func (db *DB) Ready(ctx context.Context, now time.Time) error {
	return db.Note(ctx, func(n Notes) error {
		version, err := one(n, func(s scanner) (v int64, err error) { return v, s.Scan(&v) },
			`SELECT max(version_id) FROM goose_db_version`)
		if err != nil {
			return err
		}
		if version < db.version {
			return fmt.Errorf("the schema has version %d, and the program needs %d", version, db.version)
		}
		return n.add(`INSERT INTO settings (name, value) VALUES ('probed_at', $1)
			ON CONFLICT (name) DO UPDATE SET value = excluded.value`, strconv.FormatInt(micros(now), 10))
	})
}

// CountServers counts the servers with an agent: those that were seen since a
// time, and the others.
func (n Notes) CountServers(since time.Time) (seen, silent int, err error) {
	_, err = one(n, func(s scanner) (struct{}, error) { return struct{}{}, s.Scan(&seen, &silent) },
		`SELECT count(CASE WHEN last_seen > $1 THEN 1 END), count(CASE WHEN last_seen > $1 THEN NULL ELSE 1 END)
		FROM servers WHERE deleted_at IS NULL AND NOT unmanaged`, micros(since))
	return seen, silent, err
}
