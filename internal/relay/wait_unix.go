//go:build unix

package relay

import (
	"io"
	"syscall"
)

const canWait = true

// try reads, and reports false if there is nothing yet. The runtime waits
// between two calls; no buffer does.
func (c *Conn) try(fd uintptr) bool {
	b := newBuffer()
	for {
		n, err := syscall.Read(int(fd), c.room(b))
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			b.free()
			return false
		case err != nil:
			err = c.readError(err)
		case n == 0:
			err = io.EOF
		}
		c.arrived(b, n, err)
		return true
	}
}
