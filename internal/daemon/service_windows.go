package daemon

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"

	"sft"
)

func run(ctx context.Context, name string, serve Serve) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h := &handler{ctx: ctx, serve: serve, began: make(chan struct{}), gone: make(chan struct{}), done: make(chan struct{})}
	err := svc.Run(name, h)
	close(h.gone)
	select {
	case <-h.began: // it may go on although the SCM does not listen any more
		cancel()
		<-h.done
	default:
	}
	if errors.Is(err, windows.ERROR_FAILED_SERVICE_CONTROLLER_CONNECT) {
		return &sft.Error{Code: sft.Invalid, Msg: "this is how Windows itself starts the service", Err: err, Hint: "start it: net start " + name}
	}
	return errors.Join(h.err, err)
}

// A handler is a control behind the interface of package svc.
type handler struct {
	ctx               context.Context
	serve             Serve
	began, gone, done chan struct{} // Execute was called; the SCM listens no more; err is set
	err               error
}

// Execute is svc.Handler's.
func (h *handler) Execute(_ []string, in <-chan svc.ChangeRequest, out chan<- svc.Status) (specific bool, code uint32) {
	close(h.began)
	defer close(h.done)
	requests, over := make(chan request), make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case r := <-in:
				select {
				case requests <- translate(r):
				case <-over:
					return
				}
			case <-over:
				return
			}
		}
	}()
	t := time.NewTicker(pulse)
	defer t.Stop()
	c := control{requests: requests, pulse: t.C, report: func(r report) {
		st := svc.Status{State: svc.StartPending, CheckPoint: r.checkpoint, WaitHint: uint32(r.patience.Milliseconds())}
		switch r.state {
		case running:
			st.State, st.Accepts = svc.Running, svc.AcceptStop|svc.AcceptShutdown|svc.AcceptPreShutdown|svc.AcceptSessionChange
		case stopping:
			st.State = svc.StopPending
		}
		select {
		case out <- st:
		case <-h.gone:
		}
	}}
	if h.err = c.run(h.ctx, h.serve); h.err != nil {
		return true, 1
	}
	return false, 0
}

func translate(r svc.ChangeRequest) request {
	switch r.Cmd {
	case svc.Stop, svc.Shutdown, svc.PreShutdown:
		return request{stop: true}
	case svc.Interrogate:
		return request{ask: true}
	case svc.SessionChange:
		c := SessionChange(r.EventType)
		return request{change: &c}
	}
	return request{}
}
