package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/conf"
)

// The limits of the spool.
const (
	maxSpooled = 100_000 // events; with more unsent, no session is opened
	batch      = 200     // events sent at once
)

// A spool keeps events on disk until the platform has them. It is one file of
// JSON lines, BufferFile.1, to which each event is written and synced before
// whatever it tells of goes on, and a small one, BufferFile.sent, with the
// number of the last event that the platform took. When everything was taken,
// the first is removed. A line that a crash cut short was not acted on.
type spool struct {
	path string // BufferFile
	log  *slog.Logger
	more chan struct{} // has a token when there is something to send

	mu     sync.Mutex
	f      *os.File
	last   int64 // number of the last event
	unsent []api.Event
	broken error // the last write failed
}

func openSpool(path string, log *slog.Logger) (*spool, error) {
	s := &spool{path: path, log: log, more: make(chan struct{}, 1)}
	b, err := os.ReadFile(s.sentFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	sent, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	s.last = sent
	whole, err := s.read(sent)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.file(), err)
	}
	if s.f, err = os.OpenFile(s.file(), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	if err := s.f.Truncate(whole); err != nil {
		return nil, err
	}
	if _, err := s.f.Seek(whole, 0); err != nil {
		return nil, err
	}
	s.wake()
	return s, nil
}

func (s *spool) file() string     { return s.path + ".1" }
func (s *spool) sentFile() string { return s.path + ".sent" }

// read takes the events after number sent, and returns how many bytes of the
// file are whole lines.
func (s *spool) read(sent int64) (int64, error) {
	f, err := os.Open(s.file())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var whole int64
	for r := bufio.NewReader(f); ; {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return whole, nil // the rest was cut short by a crash
		}
		var e api.Event
		if json.Unmarshal(line, &e) != nil {
			return whole, nil
		}
		whole += int64(len(line))
		s.last = max(s.last, e.Seq)
		if e.Seq > sent {
			s.unsent = append(s.unsent, e)
		}
	}
}

// add stores an event. It is on disk when add returns without an error; with
// one it is kept in memory all the same, and sent if the agent lives.
func (s *spool) add(e api.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	e.ID, e.Seq = audit.NewID(), s.last
	s.unsent = append(s.unsent, e)
	s.wake()
	return s.flush(e)
}

func (s *spool) flush(list ...api.Event) error {
	var b []byte
	for _, e := range list {
		j, err := json.Marshal(e)
		if err != nil {
			return err
		}
		b = append(append(b, j...), '\n')
	}
	at, err := s.f.Seek(0, 1)
	if err == nil {
		if _, err = s.f.Write(b); err == nil {
			err = s.f.Sync()
		}
		if err != nil { // no half lines
			s.f.Truncate(at)
			s.f.Seek(at, 0)
		}
	}
	if err != nil && s.broken == nil {
		s.log.Error("store an event; no session is opened until this works again", "error", err)
	}
	s.broken = err
	return err
}

func (s *spool) wake() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// ready refuses when an event could not be stored: what cannot be told is not
// done.
func (s *spool) ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		if err := s.rewrite(); err != nil {
			return &sft.Error{Code: sft.Unavailable, Msg: "the host cannot record what happens: " + err.Error(), Err: err, Hint: "make room in the state folder of sftd"}
		}
	}
	if len(s.unsent) >= maxSpooled {
		return &sft.Error{Code: sft.Unavailable, Msg: "the host has too much to tell the platform", Hint: "let sftd reach the platform again"}
	}
	return nil
}

// rewrite stores everything unsent anew, after a failed write.
func (s *spool) rewrite() error {
	if err := s.f.Truncate(0); err != nil {
		return err
	}
	if _, err := s.f.Seek(0, 0); err != nil {
		return err
	}
	return s.flush(s.unsent...)
}

// problem is what is wrong with the spool, or "".
func (s *spool) problem() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.broken != nil:
		return "events cannot be stored: " + s.broken.Error() + "; make room in " + filepath.Dir(s.path)
	case len(s.unsent) >= maxSpooled:
		return "too many events wait for the platform; let sftd reach it again"
	}
	return ""
}

// next returns the oldest events that the platform has not taken.
func (s *spool) next() []api.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]api.Event(nil), s.unsent[:min(len(s.unsent), batch)]...)
}

// sent notes that the platform has taken events up to a number.
func (s *spool) sent(seq int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.unsent) > 0 && s.unsent[0].Seq <= seq {
		s.unsent = s.unsent[1:]
	}
	if err := conf.WriteSecret(s.sentFile(), []byte(strconv.FormatInt(seq, 10)+"\n")); err != nil {
		return err // they are sent again, and known by their numbers
	}
	if len(s.unsent) == 0 {
		s.unsent = nil
		s.f.Truncate(0)
		s.f.Seek(0, 0)
	}
	return nil
}

// forget drops what belonged to another record of this host.
func (s *spool) forget() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsent, s.last = nil, 0
	if err := os.Remove(s.sentFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.f.Truncate(0); err != nil {
		return err
	}
	_, err := s.f.Seek(0, 0)
	return err
}

// run sends what is there until ctx ends, with post, which must be safe to
// repeat. A batch that the platform calls invalid is not sent for ever: its
// events are logged and passed over, and their numbers show the gap.
func (s *spool) run(ctx context.Context, post func(context.Context, []api.Event) error) {
	var wait backoff
	for {
		list := s.next()
		if len(list) == 0 {
			select {
			case <-ctx.Done():
				return
			case <-s.more:
			}
			continue
		}
		err := post(ctx, list)
		if sft.CodeOf(err) == sft.Invalid && err != nil {
			s.log.Error("the platform refuses events; they are in this log alone", "error", err, "events", list)
			err = nil
		}
		if err == nil {
			err = s.sent(list[len(list)-1].Seq)
		}
		if err == nil {
			wait.reset()
			continue
		}
		if ctx.Err() == nil {
			s.log.Debug("send events", "error", err)
		}
		if !wait.sleep(ctx) {
			return
		}
	}
}

// A backoff waits longer each time, up to a minute, never twice the same.
type backoff struct{ d time.Duration }

func (b *backoff) reset() { b.d = 0 }

// sleep waits, and reports whether ctx is still on.
func (b *backoff) sleep(ctx context.Context) bool {
	b.d = min(max(2*b.d, 500*time.Millisecond), time.Minute)
	t := time.NewTimer(jitter(b.d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
