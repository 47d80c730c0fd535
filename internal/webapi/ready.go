package webapi

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"
)

// readyFor is how long an answer of /readyz is good: whoever asks more often
// costs the database nothing.
const readyFor = time.Second

// A ready is the last answer of /readyz.
type ready struct {
	mu  sync.Mutex
	at  time.Time
	err error
}

// readyz tells whether requests should come here. What is wrong is for the log
// alone: whoever asks has proven nothing.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	pass, err := s.begin(w, r, "")
	defer pass.end()
	if err != nil {
		s.fail(w, r, err)
		return
	}
	switch {
	case s.draining.Load() || s.p.Stopping():
		http.Error(w, "stopping", http.StatusServiceUnavailable)
	case s.isReady() != nil:
		http.Error(w, "not ready", http.StatusServiceUnavailable)
	default:
		io.WriteString(w, "ok\n")
	}
}

// Drain has /readyz say from now on that requests should go elsewhere. They are
// answered as before.
func (s *Server) Drain() { s.draining.Store(true) }

// isReady asks the platform, or who has asked it just now.
func (s *Server) isReady() error {
	s.ready.mu.Lock()
	defer s.ready.mu.Unlock()
	if time.Since(s.ready.at) < readyFor {
		return s.ready.err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s.ready.err = s.p.Ready(ctx)
	s.ready.at = time.Now()
	if s.ready.err != nil {
		s.log.Error("not ready", "error", s.ready.err)
	}
	return s.ready.err
}
