package platform

import "sync"

// Stop answers the requests that hang, and lets none hang from now on, so
// that a program which ends waits for none of them. Whatever else is under
// way goes on.
func (p *Platform) Stop() { p.ending.tell() }

// Stopping reports whether Stop was called.
func (p *Platform) Stopping() bool {
	select {
	case <-p.ending.wait():
		return true
	default:
		return false
	}
}

// An ending is told once; the zero value has not been.
type ending struct {
	made, told sync.Once
	ch         chan struct{}
}

// wait returns a channel that is closed by tell.
func (e *ending) wait() <-chan struct{} {
	e.made.Do(func() { e.ch = make(chan struct{}) })
	return e.ch
}

func (e *ending) tell() {
	e.wait()
	e.told.Do(func() { close(e.ch) })
}
