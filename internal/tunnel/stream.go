package tunnel

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	queueSize = 64 << 10
	drainTime = 5 * time.Second // for what was written before Close
)

// A rawStream is what a stream is made of: it blocks, and knows no deadlines.
// Close ends reading and writing, soon.
type rawStream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// A stream gives a rawStream what a net.Conn needs: deadlines, and a Close
// that does not lose what was written before. One goroutine reads and one
// writes, with a queue between each and the caller.
type stream struct {
	raw     rawStream
	in, out *queue
	why     func(err error) error // words an error of raw's
	remote  net.Addr

	writing   sync.Mutex // what is written at once stays together
	closing   chan struct{}
	closeOnce sync.Once
	endOnce   sync.Once

	// patient is how much longer than a connection of the network this one may
	// take until the other end answers: a person may have to be asked first.
	patient time.Duration
}

func newStream(raw rawStream, remote string, why func(error) error) *stream {
	s := &stream{raw: raw, in: newQueue(), out: newQueue(), why: why, remote: hopAddr(remote), closing: make(chan struct{})}
	go s.receive()
	go s.send()
	return s
}

// patience returns how much longer than usual the other end of c may take to
// answer for the first time.
func patience(c net.Conn) time.Duration {
	if s, ok := c.(*stream); ok {
		return s.patient
	}
	return 0
}

// hopAddr is the address of what is behind hops, as it is known there.
type hopAddr string

func (hopAddr) Network() string  { return "ssh" }
func (a hopAddr) String() string { return string(a) }

func (s *stream) receive() {
	for {
		b := s.in.room()
		if b == nil {
			return
		}
		n, err := s.raw.Read(b)
		s.in.filled(n)
		if err != nil {
			s.in.finish(s.why(err))
			return
		}
	}
}

func (s *stream) send() {
	for {
		b, err := s.out.next()
		if err == io.EOF {
			if err := s.raw.CloseWrite(); err != nil {
				s.out.abandon(s.why(err))
			}
			<-s.closing
		}
		if err != nil {
			s.end()
			return
		}
		n, err := s.raw.Write(b)
		s.out.taken(n)
		if err != nil {
			if err == io.EOF { // of what cannot be written to any more
				err = io.ErrClosedPipe
			}
			s.out.abandon(s.why(err))
			<-s.closing
			s.end()
			return
		}
	}
}

func (s *stream) end() { s.endOnce.Do(func() { s.raw.Close() }) }

func (s *stream) Read(p []byte) (int, error) { return s.in.read(p) }

func (s *stream) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.out.write(p)
}

// CloseWrite tells the other end that nothing follows what was written.
func (s *stream) CloseWrite() error {
	s.out.finish(io.EOF)
	return nil
}

func (s *stream) Close() error {
	s.closeOnce.Do(func() {
		s.in.abandon(net.ErrClosed)
		s.out.finish(net.ErrClosed)
		close(s.closing)
		time.AfterFunc(drainTime, s.end)
	})
	return nil
}

func (s *stream) LocalAddr() net.Addr  { return hopAddr("here") }
func (s *stream) RemoteAddr() net.Addr { return s.remote }

func (s *stream) SetDeadline(t time.Time) error {
	s.in.setDeadline(t)
	s.out.setDeadline(t)
	return nil
}

func (s *stream) SetReadDeadline(t time.Time) error {
	s.in.setDeadline(t)
	return nil
}

func (s *stream) SetWriteDeadline(t time.Time) error {
	s.out.setDeadline(t)
	return nil
}

// A queue is a ring of bytes between the stream's user, whose side has a
// deadline, and one goroutine that moves them, whose side has none and works
// in the ring's own memory.
type queue struct {
	mu      sync.Mutex
	changed sync.Cond
	buf     []byte
	start   int
	n       int
	end     error // comes after the bytes
	gone    error // nobody takes the bytes any more
	late    bool
	timer   *time.Timer
	timers  int // that were set: one that was replaced may still fire
}

func newQueue() *queue {
	q := &queue{buf: make([]byte, queueSize)}
	q.changed.L = &q.mu
	return q
}

// free is the longest piece of the ring that holds nothing.
func (q *queue) free() []byte {
	from := (q.start + q.n) % len(q.buf)
	return q.buf[from:min(len(q.buf), from+len(q.buf)-q.n)]
}

// full is the longest piece that is read next.
func (q *queue) full() []byte { return q.buf[q.start:min(len(q.buf), q.start+q.n)] }

func (q *queue) drop(n int) {
	q.start = (q.start + n) % len(q.buf)
	q.n -= n
}

// room waits for free memory; nil says that nobody wants it filled.
func (q *queue) room() []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.n == len(q.buf) && q.gone == nil {
		q.changed.Wait()
	}
	if q.gone != nil {
		return nil
	}
	return q.free()
}

// filled says how much of what room returned now holds something. The memory
// is the caller's between the two: only they move the ring's end.
func (q *queue) filled(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.n += n
	q.changed.Broadcast()
}

// next waits for bytes, and then for what ends them.
func (q *queue) next() ([]byte, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.n == 0 && q.end == nil {
		q.changed.Wait()
	}
	if q.n > 0 {
		return q.full(), nil
	}
	return nil, q.end
}

// taken says how much of what next returned is done with.
func (q *queue) taken(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drop(n)
	q.changed.Broadcast()
}

// finish says what comes after the bytes. After the end of the bytes there
// can be the end of the stream.
func (q *queue) finish(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.end == nil || q.end == io.EOF {
		q.end = err
	}
	q.changed.Broadcast()
}

// abandon says that nobody takes the bytes any more, and why.
func (q *queue) abandon(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone == nil {
		q.gone = err
	}
	q.changed.Broadcast()
}

func (q *queue) read(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		switch {
		case q.gone != nil:
			return 0, q.gone
		case q.late:
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case q.n > 0:
			n := copy(p, q.full())
			q.drop(n)
			q.changed.Broadcast()
			return n, nil
		case q.end != nil:
			return 0, q.end
		}
		q.changed.Wait()
	}
}

func (q *queue) write(p []byte) (done int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		switch {
		case q.gone != nil:
			return done, q.gone
		case q.end == io.EOF:
			return done, io.ErrClosedPipe
		case q.end != nil:
			return done, q.end
		case q.late:
			return done, os.ErrDeadlineExceeded
		case done == len(p):
			return done, nil
		case q.n < len(q.buf):
			n := copy(q.free(), p[done:])
			q.n += n
			done += n
			q.changed.Broadcast()
			continue
		}
		q.changed.Wait()
	}
}

func (q *queue) setDeadline(t time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.timer != nil {
		q.timer.Stop()
		q.timer = nil
	}
	q.timers++
	q.late = false
	if !t.IsZero() {
		number := q.timers
		if d := time.Until(t); d <= 0 {
			q.late = true
		} else {
			q.timer = time.AfterFunc(d, func() {
				q.mu.Lock()
				defer q.mu.Unlock()
				if q.timers == number {
					q.late = true
					q.changed.Broadcast()
				}
			})
		}
	}
	q.changed.Broadcast()
}
