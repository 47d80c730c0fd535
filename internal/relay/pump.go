package relay

import "net"

// Pump copies from src to dst until src ends or dst takes no more, and returns
// why: an error of reading, io.EOF for an orderly end, or one of writing. It
// closes nothing.
//
// Either may be a tls.Conn, best over a Conn of Wrap, or a plain connection,
// or anything that has its connection as NetConn. Pump is the only reader of
// src meanwhile. Others may write to dst; what one Write is given stays
// together.
//
// filter, if not nil, is given what was read, in pieces of any size, and
// returns what is to be written in its place, in one Write. That may be
// nothing, and has to be good until the next call only. If it returns an
// error, Pump writes what came with it and returns the error, as it is, as
// that of reading.
//
// count, if not nil, is told how many bytes were written: once after each time
// that something was read, when all that had arrived is written. It may be
// none.
func Pump(dst, src net.Conn, filter func(in []byte) (out []byte, err error), count func(n int)) (readErr, writeErr error) {
	if t, ok := src.(interface{ Handshake() error }); ok {
		if err := t.Handshake(); err != nil { // it would not bear errIdle
			return err, nil
		}
	}
	out := under(dst)
	if out == dst {
		out = nil // there are no records to collect
	}
	s := sourceOf(src)
	defer s.done()
	for {
		if out != nil {
			out.cork()
		}
		n, got, err, werr := move(dst, s, filter)
		if out != nil {
			if e := out.uncork(); werr == nil {
				werr = e
			}
		}
		if got && count != nil {
			count(n)
		}
		switch {
		case werr != nil:
			return nil, werr
		case err != errIdle:
			return err, nil
		}
		s.wait()
	}
}

// move copies what has arrived, and returns errIdle if there is no more. It
// waits for dst alone.
func move(dst net.Conn, s source, filter func([]byte) ([]byte, error)) (n int, got bool, err, werr error) {
	for err == nil {
		var b *buffer
		if b, err = s.next(); b == nil {
			break
		}
		got = true
		p := b.b[b.r:b.w]
		if filter != nil {
			var ferr error
			if p, ferr = filter(p); ferr != nil {
				err = ferr
			}
		}
		if len(p) > 0 {
			var w int
			w, werr = dst.Write(p)
			n += w
		}
		b.free()
		if werr != nil {
			break
		}
	}
	return n, got, err, werr
}

// under returns the Conn that carries c, or nil.
func under(c net.Conn) *Conn {
	for c != nil {
		if r, ok := c.(*Conn); ok {
			return r
		}
		l, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = l.NetConn()
	}
	return nil
}

// A source is what Pump reads from.
type source interface {
	// next returns a buffer of what has arrived, as the caller's own, or nil,
	// and the error after it: errIdle if nothing more has arrived, or nil if
	// something may have. It never waits.
	next() (*buffer, error)
	// wait waits for something to arrive.
	wait()
	// done is called at the end.
	done()
}

func sourceOf(c net.Conn) source {
	if r, ok := c.(*Conn); ok {
		return plain{r}
	}
	if r := under(c); r != nil {
		r.dont.Store(true)
		return layered{c, r}
	}
	return plain{Wrap(c)}
}

// plain is a connection with nothing over it. If it has no file descriptor, a
// buffer waits with it.
type plain struct{ c *Conn }

func (s plain) next() (*buffer, error) { return s.c.take() }
func (s plain) wait()                  { s.c.wait() }
func (s plain) done()                  {}

// layered is a connection over a Conn.
type layered struct {
	c   net.Conn
	raw *Conn
}

func (s layered) next() (*buffer, error) {
	b := newBuffer()
	for {
		n, err := s.c.Read(b.b[b.w:size])
		b.wrote(n)
		if err == nil && b.w < size {
			continue
		}
		if b.w == 0 {
			b.free()
			return nil, err
		}
		return b, err
	}
}

func (s layered) wait() { s.raw.wait() }
func (s layered) done() { s.raw.dont.Store(false) }
