package privsep

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A channel is one end of the socket pair between monitor and broker. It
// carries whole messages, and files beside them from the monitor to the broker
// only.
type channel struct {
	conn    *net.UnixConn
	writing sync.Mutex
	in      []byte // of the one reader
}

// newChannel returns the monitor's end, and the file to give to the broker.
func newChannel() (*channel, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	// The default, the system's net.core.wmem_default, may be too small for
	// the longest message. Only root can set more: so both ends, and here.
	for _, fd := range fds {
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4*MaxMessage); err != nil {
			unix.Close(fds[0])
			unix.Close(fds[1])
			return nil, nil, os.NewSyscallError("setsockopt", err)
		}
	}
	theirs := os.NewFile(uintptr(fds[1]), "monitor")
	c, err := openChannel(os.NewFile(uintptr(fds[0]), "broker"))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c, theirs, nil
}

// openChannel makes a channel of f, and closes f.
func openChannel(f *os.File) (*channel, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := conn.(*net.UnixConn)
	if !ok || u.LocalAddr().Network() != "unixpacket" {
		conn.Close()
		return nil, errors.New("not a socket of whole messages")
	}
	return &channel{conn: u, in: make([]byte, MaxMessage+1)}, nil
}

// send writes a call or a message, with f beside it unless nil. A peer that
// does not read makes it fail in time.
func (c *channel) send(v any, f *os.File) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	if f == nil {
		return c.sendRaw(b, nil)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) { sent = c.sendRaw(b, unix.UnixRights(int(fd))) })
	return errors.Join(err, sent)
}

// sendRaw writes one message as it is.
func (c *channel) sendRaw(b, oob []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, _, err := c.conn.WriteMsgUnix(b, oob, nil)
	return err
}

// receive returns the next message. The bytes are good until the next call. A
// file beside it is refused, and was never in this process.
func (c *channel) receive() ([]byte, error) {
	n, _, flags, _, err := c.conn.ReadMsgUnix(c.in, nil)
	switch {
	case err != nil:
		return nil, err
	case flags&unix.MSG_CTRUNC != 0:
		return nil, errors.New("a message with files beside it")
	case flags&unix.MSG_TRUNC != 0 || n > MaxMessage:
		return nil, fmt.Errorf("a message over the cap of %d bytes", MaxMessage)
	}
	return c.in[:n], nil
}

// receiveFile returns the next message and the file beside it, if any. The
// kernel leaves out a file that this process has no number left for.
func (c *channel) receiveFile() ([]byte, *os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(c.in, oob)
	if err != nil {
		return nil, nil, err
	}
	var f *os.File
	if oobn > 0 {
		control, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(control) != 1 {
			return nil, nil, errors.New("a message with something unknown beside it")
		}
		fds, err := unix.ParseUnixRights(&control[0])
		if err != nil || len(fds) != 1 {
			return nil, nil, errors.New("a message with something unknown beside it")
		}
		f = os.NewFile(uintptr(fds[0]), "socket")
	}
	if flags&unix.MSG_TRUNC != 0 {
		if f != nil {
			f.Close()
		}
		return nil, nil, errors.New("a message that was cut off")
	}
	return c.in[:n], f, nil
}

// files reports that files go beside messages.
func (c *channel) files() bool { return true }

// deadline says until when the next message must have come; zero means never.
func (c *channel) deadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

// close ends both directions, and every send and receive.
func (c *channel) close() { c.conn.Close() }
