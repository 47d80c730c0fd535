// Package relay moves bytes between two connections, TLS on one of them or on
// both: fast while there is much to move, and cheap while there is nothing.
//
// What makes crypto/tls slow is one system call for each record of at most
// 16 KiB; what makes an idle connection dear are buffers that wait with it. So
// a Conn goes under a tls.Conn. It reads as much as there is at once, hands it
// out record by record, and collects the records that are written until
// somebody says that there are no more. Its buffers come from one pool and are
// held only while bytes are in them. Those that held people's screens and keys
// are cleared before they go back.
//
// Pump is the loop over it. It takes all that has arrived, writes that at
// once, and only then waits. Nothing is ever held back while it waits.
package relay

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// size is how many bytes are moved at once: what fits four TLS records. With
// more, fewer system calls save less than the caches of a processor lose.
const size = 64 << 10

// A buffer holds the bytes b[r:w]. In b[top:] nothing was put that is secret.
type buffer struct {
	r, w, top int
	b         [size + 256]byte // with what TLS adds
}

var pool = sync.Pool{New: func() any { return new(buffer) }}

func newBuffer() *buffer { return pool.Get().(*buffer) }

// wrote records that n more bytes are in b.
func (b *buffer) wrote(n int) {
	b.w += n
	b.top = max(b.top, b.w)
}

// free clears b and gives it back. The caller has no use for it any more.
func (b *buffer) free() {
	clear(b.b[:b.top])
	b.freeSealed()
}

// freeSealed gives b back as it is: it held nothing but encrypted bytes.
func (b *buffer) freeSealed() {
	b.r, b.w, b.top = 0, 0, 0
	pool.Put(b)
}

// errIdle says that there is nothing to be read without waiting. For a
// tls.Conn it is an error after which it can be read again, as after a
// deadline.
var errIdle net.Error = idle{}

type idle struct{}

func (idle) Error() string   { return "nothing to read yet" }
func (idle) Timeout() bool   { return true }
func (idle) Temporary() bool { return true }

// A Conn is a net.Conn for under a tls.Conn. It may be used as net.Conn says:
// by several goroutines at once, and Close and deadlines end what waits.
type Conn struct {
	net.Conn
	raw   syscall.RawConn    // nil if there is no file descriptor to wait for
	ready func(uintptr) bool // c.try

	rmu  sync.Mutex
	in   *buffer // not nil means that it has bytes
	rerr error   // what comes after those
	rec  framing
	dont atomic.Bool // wait in Read: Pump reads what is over this

	wmu    sync.Mutex
	corked bool
	out    *buffer // not nil means that it has bytes, or that a write is under way
	werr   error   // bytes were lost that had been taken
	timed  atomic.Bool
}

// Wrap returns c as a Conn. Writing is as it was, until Pump writes to what is
// over it. What Read returns may have left c earlier, so from here on nobody
// reads c itself.
func Wrap(c net.Conn) *Conn {
	w := &Conn{Conn: c}
	if s, ok := c.(syscall.Conn); ok && canWait {
		if raw, err := s.SyscallConn(); err == nil {
			w.raw, w.ready = raw, w.try
		}
	}
	return w
}

// NetConn returns the connection that was wrapped.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Read reads at most to the end of a TLS record, if that is what the bytes
// look like: a tls.Conn keeps for good as much memory as it was once given.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.rmu.Lock()
	defer c.rmu.Unlock()
	if c.in == nil && c.rerr == nil {
		if c.dont.Load() {
			return 0, errIdle
		}
		c.fill()
	}
	if c.in == nil {
		err := c.rerr
		c.rerr = nil
		return 0, err
	}
	b := c.in
	n := copy(p[:min(len(p), c.rec.next(b.b[b.r:b.w]))], b.b[b.r:b.w])
	c.rec.pass(b.b[b.r : b.r+n])
	if b.r += n; b.r == b.w {
		c.in = nil
		if c.dont.Load() {
			b.freeSealed()
		} else {
			b.free()
		}
	}
	return n, nil
}

// wait returns when there is something for Read to return.
func (c *Conn) wait() {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	if c.in == nil && c.rerr == nil {
		c.fill()
	}
}

// room is how much of b to read: plain bytes are to become whole records.
func (c *Conn) room(b *buffer) []byte {
	if c.dont.Load() {
		return b.b[:]
	}
	return b.b[:size]
}

// take returns all that was read, as the caller's own, and the error after it.
// If there is neither, the error is errIdle.
func (c *Conn) take() (*buffer, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	b, err := c.in, c.rerr
	c.in, c.rerr = nil, nil
	if b != nil {
		c.rec = framing{}
	}
	if err == nil {
		err = errIdle
	}
	return b, err
}

// fill waits, without a buffer if that can be done, and sets in or rerr.
func (c *Conn) fill() {
	if c.raw == nil {
		b := newBuffer()
		n, err := c.Conn.Read(c.room(b))
		c.arrived(b, n, err)
		return
	}
	if err := c.raw.Read(c.ready); err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok {
			again := *op
			again.Op = "read"
			err = &again
		}
		c.rerr = err
	}
}

// readError is what package net makes of an error of the system's.
func (c *Conn) readError(err error) error {
	local, remote := c.LocalAddr(), c.RemoteAddr()
	op := &net.OpError{Op: "read", Source: local, Addr: remote, Err: os.NewSyscallError("read", err)}
	if local != nil {
		op.Net = local.Network()
	}
	return op
}

func (c *Conn) arrived(b *buffer, n int, err error) {
	c.rerr = err
	if n <= 0 {
		b.free()
		return
	}
	b.wrote(n)
	c.in = b
}

// cork collects what is written from now on, until uncork, or a buffer is
// full. While a deadline for writing is set, nothing is collected: crypto/tls
// sets one to send its last alert, and lets it pass right after.
//
// It is for what is over c and encrypts. Whoever corks c waits for nothing
// else before uncork.
func (c *Conn) cork() {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.corked = true
}

// uncork sends what was collected in one system call. An error means that
// bytes are lost which Write had taken; every later Write returns it, too.
func (c *Conn) uncork() error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.corked = false
	return c.flush()
}

// Write writes p, or collects it.
func (c *Conn) Write(p []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.werr != nil {
		return 0, c.werr
	}
	collect := c.corked && !c.timed.Load()
	if c.out == nil && (!collect || len(p) >= len(buffer{}.b)) {
		return c.Conn.Write(p)
	}
	if c.out == nil {
		c.out = newBuffer()
	}
	for rest := p; ; {
		n := copy(c.out.b[c.out.w:], rest)
		c.out.wrote(n)
		if rest = rest[n:]; len(rest) == 0 {
			break
		}
		if err := c.send(); err != nil {
			return 0, err
		}
	}
	if !collect {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// send writes what was collected and keeps the buffer, unless it fails.
func (c *Conn) send() error {
	b := c.out
	if _, err := c.Conn.Write(b.b[:b.w]); err != nil {
		c.out, c.werr = nil, err
		b.freeSealed()
		return err
	}
	b.w = 0
	return nil
}

func (c *Conn) flush() error {
	if c.out == nil {
		return c.werr
	}
	if err := c.send(); err != nil {
		return err
	}
	c.out.freeSealed()
	c.out = nil
	return nil
}

// SetDeadline is SetReadDeadline and SetWriteDeadline.
func (c *Conn) SetDeadline(t time.Time) error {
	c.timed.Store(!t.IsZero())
	return c.Conn.SetDeadline(t)
}

// SetWriteDeadline is that of net.Conn. It sends nothing, and waits for
// nothing.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.timed.Store(!t.IsZero())
	return c.Conn.SetWriteDeadline(t)
}

// CloseWrite sends what was collected, and then says that nothing more comes.
func (c *Conn) CloseWrite() error {
	h, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.New("connection cannot be closed for writing")
	}
	c.wmu.Lock()
	err := c.flush()
	c.wmu.Unlock()
	if err != nil {
		return err
	}
	return h.CloseWrite()
}

// Close closes the connection. What was collected and not sent is lost.
func (c *Conn) Close() error {
	err := c.Conn.Close() // ends who has a lock
	c.rmu.Lock()
	if c.in != nil {
		c.in.free()
		c.in = nil
	}
	c.rmu.Unlock()
	c.wmu.Lock()
	if c.out != nil {
		c.out.freeSealed()
		c.out, c.werr = nil, net.ErrClosed
	}
	c.wmu.Unlock()
	return err
}

// A framing follows TLS records, to say where one ends. Of bytes that are no
// records it knows nothing, and says that they go on for ever.
type framing struct {
	head [5]byte // RFC 8446, section 5.1
	n    int     // of head
	left int     // of a record, after its header
}

// next returns how many bytes of b to hand out at most.
func (f *framing) next(b []byte) int {
	switch {
	case f.left > 0:
		return f.left
	case f.n+len(b) < len(f.head):
		return len(b)
	}
	head := f.head
	copy(head[f.n:], b)
	if body, ok := record(head); ok {
		return len(head) - f.n + body
	}
	return len(b)
}

// pass follows bytes that are handed out.
func (f *framing) pass(b []byte) {
	if f.left > 0 {
		f.left -= len(b)
		return
	}
	k := copy(f.head[f.n:], b)
	if f.n += k; f.n < len(f.head) {
		return
	}
	f.n = 0
	if body, ok := record(f.head); ok {
		f.left = body - (len(b) - k)
	}
}

// record returns how long the body of a record is.
func record(head [5]byte) (body int, ok bool) {
	body = int(head[3])<<8 | int(head[4])
	return body, head[0] >= 20 && head[0] <= 24 && head[1] == 3 && body <= 16<<10+2048
}
