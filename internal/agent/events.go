package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
// the first is emptied. A line that a crash cut short was not acted on.
type spool struct {
	path string // BufferFile
	log  *slog.Logger
	more chan struct{} // has a token when there is something to send

	mu     sync.Mutex
	f      *os.File
	last   int64 // number of the last event
	stored int64 // number of the last event on disk
	unsent []api.Event
	broken error // the last write failed
}

func openSpool(path string, log *slog.Logger) (*spool, error) {
	s := &spool{path: path, log: log, more: make(chan struct{}, 1)}
	b, err := os.ReadFile(s.sentFile())
	known := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	sent, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	s.last = sent
	if s.f, err = os.OpenFile(s.file(), os.O_RDWR, 0); errors.Is(err, fs.ErrNotExist) {
		if known { // somebody removed it: whatever was in it, its numbers are not used again
			s.log.Error("the file of unsent events is gone; the platform will know of a gap", "file", s.file())
			s.last++
		}
		err = s.create()
	}
	if err != nil {
		return nil, err
	}
	whole, err := s.read(sent)
	if err == nil {
		err = s.f.Truncate(whole)
	}
	if err == nil {
		_, err = s.f.Seek(whole, io.SeekStart)
	}
	if err != nil {
		s.f.Close()
		return nil, fmt.Errorf("read %s: %w", s.file(), err)
	}
	s.stored = s.last
	s.wake()
	return s, nil
}

func (s *spool) file() string     { return s.path + ".1" }
func (s *spool) sentFile() string { return s.path + ".sent" }

// create makes the file, and sees that it is found after a crash.
func (s *spool) create() error {
	f, err := os.OpenFile(s.file(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := conf.SyncDir(filepath.Dir(s.file())); err != nil {
		f.Close()
		return err
	}
	s.f = f
	return nil
}

// read takes the events after number sent, and returns how many bytes of the
// file are whole lines.
func (s *spool) read(sent int64) (int64, error) {
	var whole int64
	for r := bufio.NewReader(s.f); ; {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return whole, nil // the rest was cut short by a crash
		}
		if err != nil {
			return 0, err
		}
		whole += int64(len(line))
		var e api.Event
		if json.Unmarshal(line, &e) != nil || e.Seq < 1 {
			s.log.Error("an event on disk is not readable; its number shows the gap", "file", s.file())
			continue
		}
		s.last = max(s.last, e.Seq)
		if e.Seq > sent {
			s.unsent = append(s.unsent, e)
		}
	}
}

// add stores an event. It is on disk when add returns without an error; with
// one it is kept in memory all the same, stored when there is room again, and
// sent if the agent lives.
func (s *spool) add(e api.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	e.ID, e.Seq = audit.NewID(), s.last
	s.unsent = append(s.unsent, e)
	s.wake()
	return s.flush()
}

// flush stores what is in memory alone.
func (s *spool) flush() error {
	err := s.write()
	if err != nil && s.broken == nil {
		s.log.Error("store an event; no session is opened until this works again", "error", err)
	}
	s.broken = err
	return err
}

func (s *spool) write() error {
	if err := s.present(); err != nil {
		return err
	}
	var b []byte
	for _, e := range s.unsent {
		if e.Seq > s.stored {
			j, err := json.Marshal(e)
			if err != nil {
				return err
			}
			b = append(append(b, j...), '\n')
		}
	}
	at, err := s.f.Seek(0, io.SeekCurrent)
	if err == nil {
		if _, err = s.f.Write(b); err == nil {
			err = s.f.Sync()
		}
		if err != nil { // no half lines
			s.f.Truncate(at)
			s.f.Seek(at, io.SeekStart)
		}
	}
	if err == nil {
		s.stored = s.last
	}
	return err
}

// present makes the file anew, with all that it should hold, if somebody has
// removed it under us.
func (s *spool) present() error {
	have, err := s.f.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Stat(s.file()); err == nil && os.SameFile(have, now) {
		return nil
	}
	s.log.Error("the file of unsent events is gone; writing it again", "file", s.file())
	old := s.f
	if err := s.create(); err != nil {
		return err
	}
	old.Close()
	s.stored = 0
	_, err = s.f.Seek(0, io.SeekEnd)
	return err
}

func (s *spool) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.f.Close()
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
		err := s.probe()
		if err == nil {
			err = s.flush()
		}
		if err != nil {
			return &sft.Error{Code: sft.Unavailable, Msg: "the host cannot record what happens: " + err.Error(), Err: err, Hint: "make room in the state folder of sftd"}
		}
	}
	if len(s.unsent) >= maxSpooled {
		return &sft.Error{Code: sft.Unavailable, Msg: "the host has too much to tell the platform", Hint: "let sftd reach the platform again"}
	}
	return nil
}

// probe tells whether there is room for the events of a session.
func (s *spool) probe() error {
	file := s.path + ".probe"
	defer os.Remove(file)
	return conf.WriteSecret(file, make([]byte, 8<<10))
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

// next returns the oldest events, at most so many, that the platform has not taken.
func (s *spool) next(most int) []api.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]api.Event(nil), s.unsent[:min(len(s.unsent), most)]...)
}

// waiting is how many events the platform has not taken.
func (s *spool) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.unsent)
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
		s.f.Seek(0, io.SeekStart)
	}
	return nil
}

// forget drops what belonged to another record of this host.
func (s *spool) forget() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsent, s.last, s.stored = nil, 0, 0
	if err := os.Remove(s.sentFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.f.Truncate(0); err != nil {
		return err
	}
	_, err := s.f.Seek(0, io.SeekStart)
	return err
}

// run sends what is there until ctx ends, with post, which must be safe to
// repeat. An event that the platform calls invalid is not sent for ever: it is
// looked for by halves, logged and passed over.
func (s *spool) run(ctx context.Context, post func(context.Context, []api.Event) error) {
	var wait backoff
	most := batch
	for {
		list := s.next(most)
		if len(list) == 0 {
			select {
			case <-ctx.Done():
				return
			case <-s.more:
			}
			continue
		}
		err := post(ctx, list)
		if err != nil && sft.CodeOf(err) == sft.Invalid {
			if most = len(list) / 2; most > 0 {
				continue
			}
			s.log.Error("the platform refuses an event; it is in this log alone", "error", err, "event", list[0])
			err = nil
		}
		if err == nil {
			err = s.sent(list[len(list)-1].Seq)
			most = batch
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

// next is how long to wait now.
func (b *backoff) next() time.Duration {
	b.d = min(max(2*b.d, 500*time.Millisecond), time.Minute)
	return jitter(b.d)
}

// sleep waits, and reports whether ctx is still on.
func (b *backoff) sleep(ctx context.Context) bool {
	t := time.NewTimer(b.next())
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
