package platform

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/url"
	"sync"
	"time"

	"sft/internal/audit"
	"sft/internal/store"
)

// A Sink is somewhere else that audit events are to be. Send returns nil when
// all of a batch is there, and as soon as ctx ends; what it returns an error
// for is sent again, all of it. A Sink's name is in the database, and tells one
// from another; what others see of it is what Shown makes of it.
type Sink interface {
	Name() string
	Send(ctx context.Context, b audit.Batch) error
}

// The size and the times of an export.
const (
	exportCount   = 500              // events at once, or one checkpoint's
	exportSize    = 256 << 10        // bytes of their JSON at once, or one checkpoint's
	exportTimeout = 30 * time.Second // for one batch
	exportHold    = time.Minute      // before another platform may send it
	exportEvery   = 2 * time.Second  // to look whether another platform has sealed
	exportMost    = 5 * time.Minute  // between two tries
)

// An ExportStatus is how an export goes, as this platform knows.
type ExportStatus struct {
	Name  string
	Seq   int64  // the number of the last event that has arrived
	Lag   int64  // how many sealed events wait: of those that are there
	Error string // why the last try failed, or empty

	Since time.Time // when the first that waits was sealed; of ListExports alone
}

// exports are those that Run has begun.
type exports struct {
	mu   sync.Mutex
	list []*exporting
}

// An exporting is one export under way; mu is that of exports.
type exporting struct {
	sink   Sink
	status ExportStatus
}

func (x *exports) begin(sinks []Sink) []*exporting {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range sinks {
		x.list = append(x.list, &exporting{s, ExportStatus{Name: s.Name()}})
	}
	return x.list
}

// AuditExports tells how each export goes.
func (p *Platform) AuditExports() []ExportStatus {
	p.sealed.mu.Lock()
	head, gone := p.sealed.Seq, p.sealed.gone
	p.sealed.mu.Unlock()
	p.exports.mu.Lock()
	defer p.exports.mu.Unlock()
	var list []ExportStatus
	for _, x := range p.exports.list {
		s := x.status
		s.Lag = max(head-max(s.Seq, gone), 0)
		list = append(list, s)
	}
	return list
}

// export sends what is sealed to one sink until ctx ends. Whatever the sink
// does, nobody but this export waits for it.
func (p *Platform) export(ctx context.Context, x *exporting) {
	wait := pause{every: exportEvery, most: exportMost}
	for {
		news := p.sealed.news.wait("")
		seq, more, err := p.exportOnce(ctx, x.sink)
		if ctx.Err() != nil {
			return
		}
		p.exports.mu.Lock()
		said := x.status.Error
		x.status.Error = ""
		if err != nil {
			x.status.Error = err.Error()
		}
		x.status.Seq = max(seq, x.status.Seq)
		p.exports.mu.Unlock()
		switch {
		case err != nil && err.Error() != said:
			p.Log.Error("export audit events", "to", Shown(x.sink.Name()), "seq", seq, "error", err)
		case err == nil && said != "":
			p.Log.Info("audit events are exported again", "to", Shown(x.sink.Name()), "seq", seq)
		}
		if err != nil {
			news = nil // what is new does not make the sink any better
		} else {
			wait.next = 0 // also where more follows at once
		}
		if (err != nil || !more) && !wait.sleep(ctx, news, err != nil) {
			return
		}
	}
}

// exportOnce sends the next batch, if there is any. It returns the number of
// the last event that has arrived, and whether there was something to send.
func (p *Platform) exportOnce(ctx context.Context, to Sink) (seq int64, more bool, err error) {
	var e store.Export
	var head int64
	look := func(tx *store.Tx) (err error) {
		if e, err = tx.Export(to.Name()); err == nil {
			head, err = sealedTo(tx)
		}
		return err
	}
	if err = p.DB.Read(ctx, look); errors.Is(err, store.ErrNotFound) {
		if err = p.DB.Note(ctx, func(n store.Notes) error { return n.AddExport(to.Name()) }); err == nil {
			err = p.DB.Read(ctx, look)
		}
	}
	if err != nil || e.Seq >= head {
		return e.Seq, false, err
	}
	now := p.Now()
	err = p.DB.Note(ctx, func(n store.Notes) (err error) {
		e, err = n.HoldExport(to.Name(), p.Instance, now, exportHold)
		return err
	})
	if errors.Is(err, store.ErrExists) { // another platform sends it
		return e.Seq, false, nil
	}
	if err != nil {
		return e.Seq, false, err
	}
	b, err := p.nextBatch(ctx, e.Seq)
	if err != nil || len(b.Notes) == 0 {
		return e.Seq, false, err
	}
	sending, cancel := context.WithTimeout(ctx, exportTimeout)
	defer cancel()
	if err := to.Send(sending, b); err != nil {
		return e.Seq, true, err
	}
	last := b.Notes[len(b.Notes)-1].Last
	err = p.DB.Note(ctx, func(n store.Notes) error { return n.Exported(to.Name(), e.Seq, last) })
	if errors.Is(err, store.ErrNotFound) { // the records are of another time, or it was removed: look again
		return e.Seq, true, nil
	}
	if err != nil {
		return e.Seq, true, err
	}
	return last, true, nil
}

// nextBatch reads whole checkpoints with their events, from after the event
// with the number seq.
func (p *Platform) nextBatch(ctx context.Context, seq int64) (audit.Batch, error) {
	var b audit.Batch
	err := p.DB.Read(ctx, func(tx *store.Tx) error {
		gone, err := retained(tx)
		if err != nil {
			return err
		}
		seq = max(seq, gone.Last)
		for size := 0; size < exportSize && len(b.Records) < exportCount; {
			next, err := tx.NextCheckpoint(seq)
			if errors.Is(err, store.ErrNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			n, err := audit.ParseNote(next.Note)
			if err != nil {
				return err
			}
			records, err := tx.Records(max(n.First, seq+1), n.Last)
			if err != nil {
				return err
			}
			for _, r := range records {
				size += len(r.Body)
			}
			b.Records, b.Notes = append(b.Records, records...), append(b.Notes, n)
			seq = n.Last
		}
		return nil
	})
	return b, err
}

// A pause is how long something waits before it is tried again.
type pause struct {
	every, most time.Duration // after what went well, and at most
	next        time.Duration
}

// sleep waits, longer each time after a failure, and no longer than until wake.
// It reports whether ctx goes on.
func (p *pause) sleep(ctx context.Context, wake <-chan struct{}, failed bool) bool {
	d := p.every
	if failed {
		p.next = min(max(p.next, p.every)*2, p.most)
		d = p.next/2 + rand.N(p.next/2+1) // many do not come back at once
	} else {
		p.next = 0
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wake:
	case <-t.C:
	}
	return true
}

// RemoveExport forgets an export for good, so that it keeps no event from being
// removed.
func (p *Platform) RemoveExport(ctx context.Context, name string) error {
	return p.DB.Change(ctx, func(tx *store.Tx) (audit.Event, error) {
		if err := tx.RemoveExport(name); err != nil {
			return audit.Event{}, notFound(err, "export", name)
		}
		return p.ownEvent(tx, audit.AuditExportRemove, Shown(name))
	})
}

// ListExports returns how far every export has come, by the database.
func (p *Platform) ListExports(ctx context.Context) ([]ExportStatus, error) {
	var list []ExportStatus
	err := p.DB.Read(ctx, func(tx *store.Tx) error {
		head, err := sealedTo(tx)
		if err != nil {
			return err
		}
		gone, err := retained(tx)
		if err != nil {
			return err
		}
		all, err := tx.Exports()
		for _, e := range all {
			s := ExportStatus{Name: e.Name, Seq: e.Seq, Lag: max(head-max(e.Seq, gone.Last), 0)}
			if s.Lag > 0 {
				next, err := tx.NextCheckpoint(max(e.Seq, gone.Last))
				if err != nil {
					return err
				}
				n, err := audit.ParseNote(next.Note)
				if err != nil {
					return err
				}
				s.Since = n.Time
			}
			list = append(list, s)
		}
		return err
	})
	return list, err
}

// Shown is an export's name as the log, an event and doctor may have it: the
// path of a webhook's address can be what lets senders in.
func Shown(name string) string {
	if u, err := url.Parse(name); err == nil && u.Host != "" && u.Path != "" {
		return u.Scheme + "://" + u.Host + "/…"
	}
	return name
}
