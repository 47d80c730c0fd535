package daemon

import (
	"context"
	"errors"
	"time"
)

// A Serve is a service's work until ctx ends. It calls ready once, when the
// service does what it is for; the error is about telling the system so, and no
// reason to end. What it returns after ctx has ended is its result; if it
// returns before, the service has failed.
//
// changes tells what becomes of people's sessions on Windows; elsewhere it is
// nil. One that is not received in time is left out: it is a hint to look, not
// a record.
type Serve func(ctx context.Context, ready func() error, changes <-chan SessionChange) error

// A SessionChange is what became of some session of Windows, as in
// WTS_SESSION_LOCK: Microsoft, "WM_WTSSESSION_CHANGE message". Of which one is
// for the receiver to find out: what Windows says of it is gone by the time
// that it is told.
type SessionChange uint32

// SessionLock is WTS_SESSION_LOCK: a desktop was locked.
const SessionLock SessionChange = 7

// Run runs the service name as the system's service manager wants it, until
// that tells it to stop or ctx ends, and returns what serve returned.
//
// Under systemd, ready is READY=1. Under the Service Control Manager of Windows
// the service is starting until ready, and stopping until serve has returned;
// a service that fails says so by its exit code, and its recovery restarts it.
func Run(ctx context.Context, name string, serve Serve) error { return run(ctx, name, serve) }

// errEnded is about a service that ended of itself.
var errEnded = errors.New("the service has ended without being told to")

// The states of a service that an SCM knows.
type state int

const (
	starting state = iota
	running
	stopping
)

// A report is what the SCM is told of a service.
type report struct {
	state      state
	checkpoint uint32        // grows as long as something is going on
	patience   time.Duration // until the next report
}

// A request is what the SCM wants of a service.
type request struct {
	stop   bool           // or the machine goes down
	change *SessionChange // a session has changed
	ask    bool           // say again how it is
}

const (
	pulse    = time.Second      // between two reports of a service that starts or stops
	patience = 10 * time.Second // that is asked for in each of them
	changes  = 64               // session changes that wait for serve
)

// A control is the life of one service under an SCM. The SCM ends a service
// that does not report, so it reports by a clock of its own, not by the work.
type control struct {
	requests <-chan request
	report   func(report)
	pulse    <-chan time.Time
}

// run runs serve.
func (c control) run(ctx context.Context, serve Serve) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	now := report{state: starting, checkpoint: 1, patience: patience}
	c.report(now)
	ready, told, done := make(chan struct{}, 1), make(chan SessionChange, changes), make(chan error, 1)
	go func() {
		done <- serve(ctx, func() error {
			select {
			case ready <- struct{}{}:
			default:
			}
			return nil
		}, told)
	}()
	stop := func() {
		if now.state != stopping {
			now = report{state: stopping, checkpoint: 0, patience: patience}
			cancel()
		}
	}
	ended := ctx.Done()
	for {
		select {
		case <-ready:
			if now.state == starting {
				now = report{state: running}
				c.report(now)
			}
		case r := <-c.requests:
			switch {
			case r.stop:
				stop()
				now.checkpoint++
				c.report(now)
			case r.change != nil:
				select {
				case told <- *r.change:
				default:
				}
			case r.ask:
				c.report(now)
			}
		case <-ended:
			ended = nil
			stop()
			now.checkpoint++
			c.report(now)
		case <-c.pulse:
			if now.state != running {
				now.checkpoint++
				c.report(now)
			}
		case err := <-done:
			if err == nil && now.state != stopping {
				err = errEnded
			}
			return err
		}
	}
}
