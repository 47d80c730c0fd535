package export

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// unacknowledged is how many bytes that were sent, and the end of them, the
// other side's system has not confirmed (SIOCOUTQ, tcp(7)). A connection that
// was reset is an error.
func unacknowledged(c *net.TCPConn) (n int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var why int
	var err2 error
	err = raw.Control(func(fd uintptr) {
		// In this order: a reset may empty the queue.
		if n, err2 = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err2 == nil {
			why, err2 = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		}
	})
	if err = errors.Join(err, err2); err == nil && why != 0 {
		err = os.NewSyscallError("read", unix.Errno(why))
	}
	return n, err
}
