package platform_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sft/internal/audit"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testenv"
)

// A sink does with a batch what its test wants.
type sink struct {
	name string
	send func(context.Context, audit.Batch) error
}

func (s *sink) Name() string                                  { return s.name }
func (s *sink) Send(ctx context.Context, b audit.Batch) error { return s.send(ctx, b) }

// A collector keeps the numbers of what arrives.
type collector struct {
	mu   sync.Mutex
	seqs []int64
	last []int64 // of checkpoints
	most int     // events at once
}

func (c *collector) take(_ context.Context, b audit.Batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b.Each(func(r audit.Record) { c.seqs = append(c.seqs, r.Seq) }, func(n audit.Note) { c.last = append(c.last, n.Last) })
	c.most = max(c.most, len(b.Records))
	return nil
}

// got returns the numbers that arrived.
func (c *collector) got() []int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]int64{}, c.seqs...)
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain: ", what)
		}
	}
}

// run runs a platform until the test, or stop, ends it.
func run(t *testing.T, p *platform.Platform, sinks ...platform.Sink) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	p.SealEvery, p.Exports = 5*time.Millisecond, sinks
	ended := make(chan struct{})
	go func() { defer close(ended); p.Run(ctx) }()
	stop = func() { cancel(); <-ended }
	t.Cleanup(stop)
	return stop
}

// One export that hangs and one that fails hold up nobody; the one that fails
// goes on from where it was when it works again.
func TestExportsThatDoNotWork(t *testing.T) {
	e := testenv.New(t)
	sealAll(t, e.Platform)
	addEvents(t, e.DB, 520)
	var good, mended collector
	var works atomic.Bool
	stop := run(t, e.Platform,
		&sink{"https://hangs/", func(ctx context.Context, _ audit.Batch) error { <-ctx.Done(); return ctx.Err() }},
		&sink{"https://fails/", func(ctx context.Context, b audit.Batch) error {
			if !works.Load() {
				return errors.New("no room")
			}
			return mended.take(ctx, b)
		}},
		&sink{"file:/good", good.take})
	defer stop()
	status := func(i int) platform.ExportStatus {
		if list := e.Platform.AuditExports(); len(list) == 3 {
			return list[i]
		}
		return platform.ExportStatus{}
	}
	until(t, "the good one gets all", func() bool { s := status(2); return s.Seq > 520 && s.Lag == 0 })
	until(t, "the failure is known", func() bool { return status(1).Error == "no room" })
	head := status(2).Seq
	if got := good.got(); int64(len(got)) != head || got[0] != 1 || got[head-1] != head || good.most > 1000 {
		t.Errorf("of %d events %d have arrived, %d at once", head, len(got), good.most)
	}
	if l := good.last; l[len(l)-1] != head {
		t.Errorf("the last checkpoint is of %d", l[len(l)-1])
	}
	if s := status(1); s != (platform.ExportStatus{Name: "https://fails/", Lag: head, Error: "no room"}) {
		t.Errorf("the failing one: %+v", s)
	}
	if s := status(0); s != (platform.ExportStatus{Name: "https://hangs/", Lag: head}) {
		t.Errorf("the hanging one: %+v", s)
	}
	if n := strings.Count(e.Log.String(), `"msg":"export audit events"`); n != 1 {
		t.Errorf("the failure is in the log %d times", n)
	}
	works.Store(true)
	until(t, "the mended one gets all", func() bool { return status(1).Seq == head && status(1).Error == "" })
	if got := mended.got(); int64(len(got)) != head || got[0] != 1 {
		t.Errorf("of %d events %d have arrived", head, len(got))
	}
	if !strings.Contains(e.Log.String(), `"msg":"audit events are exported again"`) {
		t.Error("that it works again is not in the log")
	}

	// What comes then is not sent again after a restart.
	stop()
	addEvents(t, e.DB, 5)
	var next collector
	p := secondPlatform(t, e)
	e.Clock.Advance(2 * time.Minute) // the first one is gone
	run(t, p, &sink{"file:/good", next.take})
	until(t, "the rest arrives", func() bool { list := p.AuditExports(); return len(list) == 1 && list[0].Seq == head+5 })
	if got := fmt.Sprint(next.got()); got != fmt.Sprint([]int64{head + 1, head + 2, head + 3, head + 4, head + 5}) {
		t.Errorf("after a restart came %s, after %d", got, head)
	}
}

// Of two platforms on one database one sends at a time, and each event once
// while nothing fails.
func TestTwoPlatformsShareAnExport(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		sealAll(t, e.Platform)
		var c collector
		var at, together atomic.Int64
		to := &sink{"https://siem/", func(ctx context.Context, b audit.Batch) error {
			if at.Add(1) > 1 {
				together.Add(1)
			}
			defer at.Add(-1)
			return c.take(ctx, b)
		}}
		other := secondPlatform(t, e)
		run(t, e.Platform, to)
		run(t, other, to)
		for range 10 {
			addEvents(t, e.DB, 10)
		}
		all := len(e.Events())
		until(t, "all arrive", func() bool { return len(c.got()) >= all })
		for i, seq := range c.got() {
			if seq != int64(i+1) {
				t.Fatalf("in place %d came %d", i+1, seq)
			}
		}
		if together.Load() > 0 {
			t.Error("both sent at once")
		}
		// The other one sees how far it is.
		until(t, "both know", func() bool {
			for _, p := range []*platform.Platform{e.Platform, other} {
				if list := p.AuditExports(); len(list) != 1 || list[0].Seq != int64(all) || list[0].Error != "" {
					return false
				}
			}
			return true
		})
	})
}

// An export that begins after events were removed begins with what is left.
func TestAnExportAfterPrune(t *testing.T) {
	e := testenv.New(t)
	sealAll(t, e.Platform)
	e.Clock.Advance(time.Second)
	r, err := e.Platform.PruneAudit(t.Context(), e.Clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	addEvents(t, e.DB, 2)
	var c collector
	run(t, e.Platform, &sink{"file:/new", c.take}, &sink{"https://hangs/", func(ctx context.Context, _ audit.Batch) error { <-ctx.Done(); return ctx.Err() }})
	until(t, "the rest arrives", func() bool { return len(c.got()) >= 3 })
	if got := fmt.Sprint(c.got()); got != fmt.Sprint([]int64{r.Last + 1, r.Last + 2, r.Last + 3}) {
		t.Errorf("%s, after %d", got, r.Last)
	}
	// What was removed does not wait for anybody.
	until(t, "three wait", func() bool {
		list, err := e.Platform.ListExports(t.Context())
		if err != nil || len(list) != 2 {
			return false
		}
		own := e.Platform.AuditExports()
		return own[0].Lag == 0 && list[0].Lag == 0 && own[1].Lag == 3 && list[1].Lag == 3 && own[1].Seq == 0
	})
}

// Records that are another's when what was sent has arrived, as after a restore,
// say where the export goes on from, and not what was sent.
func TestAnExportThatIsElsewhereMeanwhile(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		sealAll(t, e.Platform)
		var c collector
		var restored atomic.Bool
		run(t, e.Platform, &sink{"https://siem/", func(ctx context.Context, b audit.Batch) error {
			if len(c.got()) > 0 && !restored.Swap(true) {
				if err := e.DB.Change(ctx, func(tx *store.Tx) (audit.Event, error) {
					return audit.Event{ID: audit.NewID(), Time: e.Clock.Now(), Kind: audit.AuditExportRemove, Actor: audit.Actor{Kind: "platform"}, Outcome: audit.Success}, tx.RemoveExport("https://siem/")
				}); err != nil {
					return err
				}
				if err := e.DB.Note(ctx, func(n store.Notes) error { return n.AddExport("https://siem/") }); err != nil {
					return err
				}
			}
			return c.take(ctx, b)
		}})
		until(t, "the first arrive", func() bool { return len(c.got()) > 0 })
		addEvents(t, e.DB, 1)
		until(t, "the first arrive again", func() bool {
			n := 0
			for _, seq := range c.got() {
				if seq == 1 {
					n++
				}
			}
			return n == 2
		})
	})
}
