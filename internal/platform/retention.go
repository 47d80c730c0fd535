package platform

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sft/internal/audit"
	"sft/internal/store"
)

// Pruned is what PruneAudit removed.
type Pruned struct {
	First, Last int64  // the events, by number; Last is 0 if there were none
	Kept        string // the export that has not sent what is as old, and keeps it
}

// PruneAudit removes the events that were sealed before t and that every
// export has sent, up to the end of a checkpoint. What is left stays
// verifiable from the note that is signed of it, and a chain that does not hold
// is not touched. One event tells of it.
func (p *Platform) PruneAudit(ctx context.Context, t time.Time) (Pruned, error) {
	return p.prune(ctx, t, 0)
}

// RetainAudit is PruneAudit of what is older than p.Retention, unless it is too
// early since somebody did so: platforms on one database take turns.
func (p *Platform) RetainAudit(ctx context.Context) (Pruned, error) {
	// Before each removal the whole chain is read. A day's events at once are
	// enough, or fewer of what is not kept for long.
	wait := min(max(p.Retention/24, time.Hour), 24*time.Hour)
	t := p.Now().Add(-p.Retention)
	var there removable
	err := p.DB.Read(ctx, func(tx *store.Tx) (err error) { there, err = removableBefore(tx, t); return err })
	if err != nil || there.nothing(p.Now(), wait) {
		// What a crash has left goes all the same.
		return Pruned{Kept: there.kept}, errors.Join(err, p.dropRetained(ctx))
	}
	return p.prune(ctx, t, wait)
}

// prune is PruneAudit, unless something was removed less than wait ago.
func (p *Platform) prune(ctx context.Context, t time.Time, wait time.Duration) (Pruned, error) {
	var r Pruned
	// What a crash left of the last time.
	if err := p.dropRetained(ctx); err != nil {
		return r, err
	}
	if _, err := p.VerifyAudit(ctx, ""); err != nil {
		return r, fmt.Errorf("nothing is removed from a chain that does not hold: %w", err)
	}
	key, err := p.auditKey(ctx)
	if err != nil {
		return r, err
	}
	nothing := errors.New("nothing to remove")
	err = p.DB.Change(ctx, func(tx *store.Tx) (audit.Event, error) {
		there, err := removableBefore(tx, t)
		if err != nil {
			return audit.Event{}, err
		}
		r.Kept = there.kept
		if there.nothing(p.Now(), wait) {
			return audit.Event{}, nothing
		}
		n, err := p.sign(key, audit.Retention, there.from, there.last.Last, there.last.Hash)
		if err != nil {
			return audit.Event{}, err
		}
		r.First, r.Last = n.First, n.Last
		if err := tx.Retain(n); err != nil {
			return audit.Event{}, err
		}
		e, err := p.ownEvent(tx, audit.AuditPrune, "")
		e.Detail = map[string]string{"first": fmt.Sprint(n.First), "last": fmt.Sprint(n.Last), "before": t.UTC().Format(time.RFC3339), "hash": fmt.Sprintf("%x", n.Hash)}
		return e, err
	})
	if err != nil && !errors.Is(err, nothing) {
		return Pruned{}, err
	}
	return r, p.dropRetained(ctx)
}

// retainEvery is how often Run looks for what is too old.
const retainEvery = time.Hour

// retain removes what is older than p.Retention until ctx ends.
func (p *Platform) retain(ctx context.Context) {
	t := time.NewTicker(retainEvery)
	defer t.Stop()
	kept := ""
	for {
		r, err := p.RetainAudit(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			p.Log.Error("remove old audit events", "error", err)
		case r.Last > 0:
			p.Log.Info("old audit events are removed", "first", r.First, "last", r.Last)
		}
		if err == nil && r.Kept != kept {
			if kept = r.Kept; kept != "" {
				p.Log.Warn("old audit events are kept for an export that has not sent them", "to", kept)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// dropRetained removes what the retention note says, in small steps, so that
// nobody waits.
func (p *Platform) dropRetained(ctx context.Context) error {
	for {
		if n, err := p.DB.DropRetained(ctx, 200); err != nil || n == 0 {
			return err
		}
	}
}

// removable is what may be removed of what is old.
type removable struct {
	from audit.Note // what was removed before; the zero Note if nothing was
	last audit.Note // the last checkpoint that may go; the zero Note if there is none
	kept string     // the export for which others as old are kept
}

// nothing reports whether nothing is to be removed, or too early since the last
// time.
func (r removable) nothing(now time.Time, wait time.Duration) bool {
	return r.last.Last <= r.from.Last || wait > 0 && now.Sub(r.from.Time) < wait
}

// removableBefore finds what was sealed before t and may be removed.
func removableBefore(tx *store.Tx, t time.Time) (r removable, err error) {
	if r.from, err = retained(tx); err != nil {
		return r, err
	}
	most, err := sealedTo(tx)
	if err != nil {
		return r, err
	}
	old, err := checkpointBefore(tx, t, most)
	if err != nil {
		return r, err
	}
	list, err := tx.Exports()
	if err != nil {
		return r, err
	}
	for _, e := range list {
		if e.Seq < most && e.Seq < old.Last {
			most, r.kept = e.Seq, e.Name
		}
	}
	r.last, err = checkpointBefore(tx, t, most)
	return r, err
}

// checkpointBefore is the newest checkpoint before t that ends at most there,
// or the zero Note. What was signed says when that is, and not its row.
func checkpointBefore(tx *store.Tx, t time.Time, most int64) (audit.Note, error) {
	b, err := tx.CheckpointBefore(t, most)
	if errors.Is(err, store.ErrNotFound) {
		return audit.Note{}, nil
	}
	if err != nil {
		return audit.Note{}, err
	}
	n, err := audit.ParseNote(b.Note)
	if err == nil && !n.Time.Before(t) {
		err = fmt.Errorf("the checkpoint that ends at event %d is kept as older than it is; run \"sft-platform audit verify\"", n.Last)
	}
	return n, err
}

// retained is the note of what was removed on purpose, or the zero Note.
func retained(tx *store.Tx) (audit.Note, error) {
	text, err := tx.Retention()
	if err != nil || text == "" {
		return audit.Note{}, err
	}
	return audit.ParseNote(text)
}
