package platform

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sft"
	"sft/internal/audit"
	"sft/internal/store"
)

// Pruned is what PruneAudit removed.
type Pruned struct {
	First, Last int64  // the events, by number; Last is 0 if there were none
	Kept        string // the export that has not sent what is as old, and keeps it
	More        bool   // RetainAudit leaves for later what is as old
}

// PruneAudit removes the events that were sealed before t and that every
// export has sent, up to the end of a checkpoint. What is left stays
// verifiable from the note that is signed of it, and a chain that does not hold
// is not touched. One event tells of it. A t that is not past yet is refused: it
// is everything, and more likely a mistyped year.
func (p *Platform) PruneAudit(ctx context.Context, t time.Time) (Pruned, error) {
	if err := p.past(t); err != nil {
		return Pruned{}, err
	}
	return p.prune(ctx, t, 0)
}

// PrunableAudit says what PruneAudit would remove, with its errors, and removes
// nothing.
func (p *Platform) PrunableAudit(ctx context.Context, t time.Time) (r Pruned, err error) {
	if err := p.past(t); err != nil {
		return r, err
	}
	if err := p.holds(ctx); err != nil {
		return r, err
	}
	err = p.DB.Read(ctx, func(tx *store.Tx) error {
		there, err := removableBefore(tx, t, p.Now(), 0)
		if r.Kept = there.kept; err == nil && !there.nothing(p.Now(), 0) {
			r.First, r.Last = there.from.Last+1, there.last.Last
		}
		return err
	})
	return r, err
}

// holds refuses a chain that does not hold.
func (p *Platform) holds(ctx context.Context) error {
	if _, err := p.VerifyAudit(ctx, ""); err != nil {
		return fmt.Errorf("nothing is removed from a chain that does not hold: %w", err)
	}
	return nil
}

// past refuses a moment that is not past yet.
func (p *Platform) past(t time.Time) error {
	if now := p.Now(); t.After(now) {
		return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("nothing is removed: %s is in the future, now is %s", t.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)),
			Hint: "give a day or a moment that is past, or set the clock"}
	}
	return nil
}

// retainMost is how many times what comes of age between two removals one takes
// at most: enough to catch up, and all that a clock that is ahead can cost until
// somebody sees it.
const retainMost = 4

// RetainAudit is PruneAudit of what is older than p.Retention, unless it is too
// early since somebody did so: platforms on one database take turns. It removes
// the oldest alone of much that is too old, and nothing that is not sent to
// p.Exports, also to those that have not begun.
func (p *Platform) RetainAudit(ctx context.Context) (Pruned, error) {
	// Before each removal the whole chain is read. A day's events at once are
	// enough, or fewer of what is not kept for long.
	wait := min(max(p.Retention/24, time.Hour), 24*time.Hour)
	t := p.Now().Add(-p.Retention)
	err := p.DB.Note(ctx, func(n store.Notes) error {
		for _, x := range p.Exports {
			if err := n.AddExport(x.Name()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return Pruned{}, err
	}
	var there removable
	err = p.DB.Read(ctx, func(tx *store.Tx) (err error) {
		there, err = removableBefore(tx, t, p.Now(), wait)
		return err
	})
	if err != nil || there.nothing(p.Now(), wait) {
		// What a crash has left goes all the same.
		return Pruned{Kept: there.kept}, errors.Join(err, p.dropRetained(ctx))
	}
	return p.prune(ctx, t, wait)
}

// prune is PruneAudit or, with a wait, RetainAudit: unless something was removed
// less than wait ago.
func (p *Platform) prune(ctx context.Context, t time.Time, wait time.Duration) (Pruned, error) {
	var r Pruned
	// What a crash left of the last time.
	if err := p.dropRetained(ctx); err != nil {
		return r, err
	}
	if err := p.holds(ctx); err != nil {
		return r, err
	}
	key, err := p.auditKey(ctx)
	if err != nil {
		return r, err
	}
	nothing := errors.New("nothing to remove")
	err = p.DB.Change(ctx, func(tx *store.Tx) (audit.Event, error) {
		there, err := removableBefore(tx, t, p.Now(), wait)
		if err != nil {
			return audit.Event{}, err
		}
		r.Kept, r.More = there.kept, there.more
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
		e.Detail = map[string]string{"first": fmt.Sprint(n.First), "last": fmt.Sprint(n.Last), "before": there.before.UTC().Format(time.RFC3339), "hash": fmt.Sprintf("%x", n.Hash)}
		return e, err
	})
	if err != nil && !errors.Is(err, nothing) {
		return Pruned{}, err
	}
	return r, p.dropRetained(ctx)
}

// clockOff is how far a clock may be off for what it says to be removed.
const clockOff = 5 * time.Minute

// checkClock refuses a clock that has not gone on from then as time passed,
// because it was set or the machine slept, or that is not the database's.
func (p *Platform) checkClock(ctx context.Context, then time.Time, passed time.Duration) error {
	now := p.Now()
	if d := now.Round(0).Sub(then.Round(0)); (d - passed).Abs() > clockOff { // the wall clock's
		return fmt.Errorf("nothing is removed now: in %s the clock went on by %s, to %s", passed.Round(time.Second), d.Round(time.Second), now.UTC().Format(time.RFC3339))
	}
	var clock time.Time
	err := p.DB.Read(ctx, func(tx *store.Tx) (err error) { clock, _, err = tx.Times(); return err })
	if d := now.Sub(clock); err == nil && !clock.IsZero() && d.Abs() > clockOff {
		err = fmt.Errorf("nothing is removed: the clock is %s from the database's; set it, and keep it right by NTP", d.Round(time.Second))
	}
	return err
}

// A clockWatch follows a platform's clock.
type clockWatch struct {
	p     *Platform
	then  time.Time // by the platform's clock, at the last look
	began time.Time // the last look
	since time.Time // it has gone on as time passed
}

func (p *Platform) watchClock() *clockWatch {
	now := time.Now()
	return &clockWatch{p, p.Now(), now, now}
}

// look returns for how long the clock has gone on as time passed: not at all, if
// it has not since the last look.
func (w *clockWatch) look(ctx context.Context) (time.Duration, error) {
	then, began := w.then, w.began
	w.then, w.began = w.p.Now(), time.Now()
	if err := w.p.checkClock(ctx, then, time.Since(began)); err != nil {
		w.since = w.began
		return 0, err
	}
	return time.Since(w.since), nil
}

// retain removes what is older than p.Retention until ctx ends. It begins when
// it has seen the clock go on for a while: a machine may start with any time.
func (p *Platform) retain(ctx context.Context) {
	t := time.NewTicker(p.RetainEvery)
	defer t.Stop()
	kept := ""
	for {
		then, began := p.Now(), time.Now()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		var r Pruned
		err := p.checkClock(ctx, then, time.Since(began))
		if err == nil {
			r, err = p.RetainAudit(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			p.Log.Error("remove old audit events", "error", err)
		case r.Last > 0:
			p.Log.Info("old audit events are removed", "first", r.First, "last", r.Last)
		}
		if r.More {
			p.Log.Warn("many more audit events are too old than go at once", "clock", p.Now().UTC(),
				"hint", "if the clock is wrong, stop the platform and set it; if it is right, they go by and by, or at once by sft-platform audit prune")
		}
		if err == nil && r.Kept != kept {
			if kept = r.Kept; kept != "" {
				p.Log.Warn("old audit events are kept for an export that has not sent them", "to", Shown(kept), "hint", "if it is no longer wanted, see sft-platform audit exports, and remove it with --remove")
			}
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
	from   audit.Note // what was removed before; the zero Note if nothing was
	last   audit.Note // the last checkpoint that may go; the zero Note if there is none
	kept   string     // the export for which others as old are kept
	before time.Time  // when all was sealed that may go
	more   bool       // there is more that is as old
}

// nothing reports whether nothing is to be removed, or too early since the last
// time. A last time in the future was by a clock that was ahead.
func (r removable) nothing(now time.Time, wait time.Duration) bool {
	return r.last.Last <= r.from.Last || now.Sub(r.from.Time).Abs() < wait
}

// removableBefore finds what was sealed before t and may be removed; with a
// wait, no more than what was sealed in the first retainMost times that.
//
// It ends where the first checkpoint is not as old, and not with the last that
// says to be: one that was made while a clock was behind makes nothing older. A
// checkpoint from the future, of a clock that was ahead, says nothing.
func removableBefore(tx *store.Tx, t, now time.Time, wait time.Duration) (r removable, err error) {
	if r.from, err = retained(tx); err != nil {
		return r, err
	}
	most, err := sealedTo(tx)
	if err != nil {
		return r, err
	}
	list, err := tx.Exports()
	if err != nil {
		return r, err
	}
	for _, e := range list {
		if seq := max(e.Seq, r.from.Last); seq < most {
			most, r.kept = seq, e.Name
		}
	}
	if r.kept != "" {
		next, err := tx.NextCheckpoint(most)
		if err != nil {
			return r, err
		}
		if !next.At.Before(t) {
			r.kept = ""
		}
	}
	r.before = t
	if wait > 0 {
		switch first, err := tx.FirstCheckpoint(time.Unix(0, 0), now, most); {
		case err == nil:
			if end := first.At.Add(retainMost * wait); end.Before(t) {
				r.before, r.more = end, true
			}
		case !errors.Is(err, store.ErrNotFound):
			return r, err
		}
	}
	switch young, err := tx.FirstCheckpoint(r.before, now, most); {
	case err == nil:
		n, err := audit.ParseNote(young.Note)
		if err != nil {
			return r, err
		}
		most = n.First - 1
		if !n.Time.Before(t) {
			r.kept, r.more = "", false
		}
	case errors.Is(err, store.ErrNotFound):
		r.more = false
	default:
		return r, err
	}
	r.last, err = checkpointBefore(tx, r.before, most)
	return r, err
}

// checkpointBefore is the last checkpoint from before t that ends at most there,
// or the zero Note. What was signed says when that is, and not its row.
func checkpointBefore(tx *store.Tx, t time.Time, most int64) (audit.Note, error) {
	b, err := tx.LastCheckpoint(t, most)
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

// CheckCheckpoint refuses a text that is no checkpoint, whoever signed it.
func CheckCheckpoint(text string) error {
	_, err := audit.ParseNote(text)
	return err
}

// retained is the note of what was removed on purpose, or the zero Note.
func retained(tx *store.Tx) (audit.Note, error) {
	text, err := tx.Retention()
	if err != nil || text == "" {
		return audit.Note{}, err
	}
	return audit.ParseNote(text)
}
