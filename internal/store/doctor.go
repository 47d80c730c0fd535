package store

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// Check asks the database whether it is whole: SQLite reads each page and each
// key; PostgreSQL looks after its own.
func (db *DB) Check(ctx context.Context) error {
	return db.Read(ctx, func(tx *Tx) error {
		for _, q := range db.d.checks {
			found, err := all(tx.Notes, func(s scanner) (v string, err error) { return v, s.Scan(&v) }, q)
			if err != nil {
				return err
			}
			if len(found) > 0 {
				return errors.New("the database is damaged: " + found[0])
			}
		}
		return nil
	})
}

// Times returns the time by the database's own clock, zero for SQLite, which
// has none; and when the last event happened, zero if there was none.
func (n Notes) Times() (clock, event time.Time, err error) {
	for _, v := range []struct {
		at    *time.Time
		query string
	}{{&clock, n.d.clock}, {&event, `SELECT at FROM events ORDER BY id DESC LIMIT 1`}} {
		if v.query == "" {
			continue
		}
		at, err := one(n, func(s scanner) (at sql.NullInt64, err error) { return at, s.Scan(&at) }, v.query)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return clock, event, err
		}
		if at.Valid {
			*v.at = fromMicros(at.Int64)
		}
	}
	return clock, event, nil
}
