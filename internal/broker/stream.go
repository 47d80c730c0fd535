package broker

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"sft"
	"sft/internal/rdp"
	"sft/internal/relay"
)

const (
	// lingerIdle is how long a stream that one side has finished may be idle.
	// Without it a client that is gone would keep a silent service for ever.
	lingerIdle = 2 * time.Minute
	// partingTime bounds the last words to a client.
	partingTime = time.Second
	// leaveTime is how long a stream goes on that ends with a reason for the
	// client: for the rest of a PDU, and for the client to hear it.
	leaveTime = partingTime / 2
)

// A stream carries bytes between a client and a service until both are done.
// Each side may finish first and still listen to the other.
type stream struct {
	client  *tls.Conn
	service net.Conn   // what the Monitor connected
	inside  *tls.Conn  // over it, once the Server has signed in to the service; set before run
	guard   *rdp.Guard // of what crosses then

	in, out    atomic.Uint64
	sumIn      *atomic.Uint64 // of all streams
	sumOut     *atomic.Uint64
	halfClosed atomic.Bool
	leaving    atomic.Bool // by leave; last and within are set
	end        sync.Once

	mu     sync.Mutex // guards inside and guard, too, until run
	why    string
	last   *sft.Error // what the client is told at the end
	within time.Duration
}

// adopt has run copy RDP without security of its own.
func (s *stream) adopt(inside *tls.Conn, g *rdp.Guard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inside, s.guard = inside, g
}

// far is the service's end.
func (s *stream) far() net.Conn {
	if s.inside != nil {
		return s.inside
	}
	return s.service
}

// filters are what looks at each direction; nil passes all.
func (s *stream) filters() (in, out func([]byte) ([]byte, error)) {
	if s.guard == nil {
		return nil, nil
	}
	in = func(b []byte) ([]byte, error) {
		if s.leaving.Load() {
			return nil, errLeaving
		}
		return s.guard.In(b)
	}
	out = func(b []byte) ([]byte, error) {
		leaving := s.leaving.Load()
		if leaving {
			b = b[:min(len(b), s.guard.Rest())]
		}
		b, err := s.guard.Out(b)
		if err == nil && leaving && s.guard.Rest() == 0 {
			err = errLeaving
		}
		return b, err
	}
	return in, out
}

// run copies both ways, closes both ends, and returns why it is over.
func (s *stream) run() string {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.copyOut()
	}()
	s.copyIn()
	<-done
	s.service.Close()
	s.part()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why
}

// part closes the client's end politely, and anyhow soon.
func (s *stream) part() {
	raw := s.client.NetConn()
	t := time.AfterFunc(partingTime, func() { raw.Close() })
	defer t.Stop()
	defer raw.Close()
	if s.client.CloseWrite() == nil {
		drain(raw)
	}
}

// because records why the stream ends. The first reason stays.
func (s *stream) because(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why == "" {
		s.why = why
	}
}

// stop ends the stream at once: nothing more reaches the service, and the
// client has a moment to take what was on its way.
func (s *stream) stop(why string) {
	s.because(why)
	s.end.Do(func() {
		s.service.Close()
		raw := s.client.NetConn()
		raw.SetReadDeadline(time.Unix(1, 0))
		time.AfterFunc(partingTime, func() { raw.Close() })
	})
}

// errLeaving ends the copying of a stream that leave ends.
var errLeaving = errors.New("the stream ends")

// leave ends the stream as stop does, but tells the client e in the place of a
// PDU: nothing more reaches the service from now on, the PDU that is under way
// to the client has the time within to be whole, and the client to hear it.
// Where the bytes are not PDUs, or none has been sent, it is stop alone.
func (s *stream) leave(why string, e *sft.Error, within time.Duration) {
	s.mu.Lock()
	open := s.guard != nil
	if open && s.last == nil {
		s.last, s.within = e, within
	}
	s.mu.Unlock()
	if !open {
		s.stop(why)
		return
	}
	s.because(why)
	if s.leaving.Swap(true) {
		return
	}
	s.far().SetReadDeadline(time.Unix(1, 0)) // nobody waits for more
	time.AfterFunc(within, func() { s.stop(why) })
}

// copyIn carries bytes from the client to the service. A close_notify alert
// means that the client has finished and listens on; the end of its TCP
// stream, with or without the alert, means that it is gone.
func (s *stream) copyIn() {
	filter, _ := s.filters()
	readErr, writeErr := s.pump(s.far(), s.client, filter, &s.in, s.sumIn)
	switch {
	case writeErr != nil:
		// The service reads no more. What it has said is still on its way, and
		// reaches the client only if nothing of the client's is left unread.
		s.because(ServiceClosed)
		s.finished(s.far())
		io.Copy(io.Discard, s.client)
	case readErr == io.EOF:
		s.because(ClientClosed)
		if closeWrite(s.far()) != nil {
			s.stop(ServiceClosed)
			return
		}
		s.finished(s.far())
		if _, err := io.Copy(io.Discard, s.client.NetConn()); !timedOut(err) {
			s.stop(ClientClosed)
		}
	case readErr == errLeaving: // it hears why only if nothing of its own is left unread
		io.Copy(io.Discard, s.client)
	default: // nobody is there to hear the service
		s.stop(clientWhy(readErr))
	}
}

// copyOut carries bytes from the service to the client.
func (s *stream) copyOut() {
	_, filter := s.filters()
	readErr, writeErr := s.pump(s.client, s.far(), filter, &s.out, s.sumOut)
	if s.leaving.Load() && timedOut(readErr) && s.guard.Rest() > 0 {
		s.far().SetReadDeadline(time.Now().Add(s.within))
		readErr, writeErr = s.pump(s.client, s.far(), filter, &s.out, s.sumOut)
	}
	refused, _ := errors.AsType[*sft.Error](readErr)
	switch {
	case writeErr != nil:
		s.stop(clientWhy(writeErr))
	case s.leaving.Load() && refused == nil && s.guard.Rest() == 0:
		s.service.Close()
		if notice(s.client, s.last) == nil {
			s.client.CloseWrite() // it closes, or stop is near
		}
	case readErr == io.EOF:
		s.because(ServiceClosed)
		if s.client.CloseWrite() != nil {
			s.stop(ClientClosed)
			return
		}
		s.finished(s.client)
	case refused != nil: // all that passed before it ends with a PDU
		s.because(whyRefused(refused))
		notice(s.client, refused)
		s.stop(ServiceRefused)
	default: // a service that breaks off takes nothing any more either
		s.stop(serviceWhy(readErr))
	}
}

// finished is called at the end of each direction, with what the other one
// reads from. The first call bounds the idle time of the other direction; the
// second gives the client a moment to close, too.
func (s *stream) finished(other net.Conn) {
	if s.halfClosed.Swap(true) {
		s.client.SetReadDeadline(time.Now().Add(partingTime))
	} else {
		other.SetReadDeadline(time.Now().Add(lingerIdle))
	}
}

// pump copies until src ends or dst takes no more.
func (s *stream) pump(dst, src net.Conn, filter func([]byte) ([]byte, error), n, sum *atomic.Uint64) (readErr, writeErr error) {
	return relay.Pump(dst, src, filter, func(w int) {
		n.Add(uint64(w))
		sum.Add(uint64(w))
		if s.halfClosed.Load() {
			src.SetReadDeadline(time.Now().Add(lingerIdle))
		}
	})
}

// clientWhy says why a client's connection broke. A client that is killed
// leaves a bare end of the TCP stream, or a reset.
func clientWhy(err error) string {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ClientClosed
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && (op.Op == "read" || op.Op == "write") && !timedOut(err) {
		return ClientClosed
	}
	return Failed
}

// serviceWhy says why a service's connection broke.
func serviceWhy(err error) string {
	if timedOut(err) {
		return Failed
	}
	return ServiceClosed
}

func timedOut(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// closeWrite says to c that nothing more comes.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.New("connection cannot be closed for writing")
}
