package store

import (
	"context"
	"database/sql"
	"sync/atomic"
)

// A group lets the writers of SQLite, of whom there is one at a time, share the
// wait for the disk: who finds others waiting leaves the commit to them, and
// hears with them whether it was done. Each has a savepoint, so that what one
// undoes is its own.
type group struct {
	turn    chan struct{} // holds one while somebody writes
	waiting atomic.Int64
	batch   *batch // that is open; whoever has the turn may touch it
}

// maxGroup caps how many share a commit.
const maxGroup = 32

// A batch is the transaction of a group. err is good when done is closed.
type batch struct {
	tx   *sql.Tx
	size int
	done chan struct{}
	err  error
}

func newGroup() *group { return &group{turn: make(chan struct{}, 1)} }

// do runs fn alone, and returns when what it wrote is on disk, or undone.
func (g *group) do(ctx context.Context, db *sql.DB, fn func(*sql.Tx) error) error {
	g.waiting.Add(1)
	select {
	case g.turn <- struct{}{}:
		g.waiting.Add(-1)
	case <-ctx.Done():
		// Whoever went before may have left the commit to this one.
		go func() {
			g.turn <- struct{}{}
			g.waiting.Add(-1)
			g.pass()
		}()
		return ctx.Err()
	}
	b, err := g.write(ctx, db, fn)
	if err != nil {
		return err
	}
	<-b.done
	return b.err
}

// write runs fn in the open batch, or a new one, and passes the turn on.
func (g *group) write(ctx context.Context, db *sql.DB, fn func(*sql.Tx) error) (*batch, error) {
	defer g.pass()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if g.batch == nil {
		// Not with ctx: the transaction is also that of others.
		tx, err := db.BeginTx(context.Background(), nil)
		if err != nil {
			return nil, err
		}
		g.batch = &batch{tx: tx, done: make(chan struct{})}
	}
	b := g.batch
	b.size++
	if _, err := b.tx.Exec(`SAVEPOINT one`); err != nil {
		g.end(err)
		return nil, err
	}
	kept := false
	defer func() { // also when fn panics
		if kept || g.batch == nil {
			return
		}
		if _, err := b.tx.Exec(`ROLLBACK TO one; RELEASE one`); err != nil {
			g.end(err) // the database has undone all of it
		}
	}()
	err := fn(b.tx)
	if err == nil {
		err = ctx.Err() // nobody waits for it any more
	}
	if err != nil {
		return nil, err
	}
	if _, err := b.tx.Exec(`RELEASE one`); err != nil {
		return nil, err
	}
	kept = true
	return b, nil
}

// end undoes the open batch, of everybody in it.
func (g *group) end(err error) {
	b := g.batch
	g.batch = nil
	b.tx.Rollback()
	b.err = err
	close(b.done)
}

// pass gives the turn to the next, with the commit if there is one to come.
func (g *group) pass() {
	if b := g.batch; b != nil && (g.waiting.Load() == 0 || b.size >= maxGroup) {
		g.batch = nil
		b.err = b.tx.Commit()
		close(b.done)
	}
	<-g.turn
}
