package store

import (
	"context"
	"database/sql"
)

// A Table is a table of the schema, for the tests.
type Table struct {
	Name           string
	Columns, Kinds []string
}

// Tables lists the schema.
func (n Notes) Tables() (list []Table, err error) {
	tables, err := n.tables()
	for _, t := range tables {
		list = append(list, Table{t.name, t.columns, t.kinds})
	}
	return list, err
}

// Alone is Change without an event, so that a test has nothing but what it
// stores.
func Alone(ctx context.Context, db *DB, fn func(*Tx) error) error {
	return db.in(ctx, db.write, &sql.TxOptions{Isolation: db.d.write}, "change", db.d.change, func(n Notes) error { return fn(&Tx{Notes: n}) })
}

// SQL is the text of the query and its arguments, for the test of its plan.
func (q EventQuery) SQL() (string, []any) { return q.sql() }
