package loopback

import (
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/windows"
)

// soExclusiveAddrUse is SO_EXCLUSIVEADDRUSE, ^SO_REUSEADDR.
const soExclusiveAddrUse = -5

// exclusive keeps other processes from listening on the same port with
// SO_REUSEADDR, which Windows otherwise lets them.
func exclusive() *net.ListenConfig {
	return &net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			err = windows.SetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, soExclusiveAddrUse, 1)
		}); cerr != nil {
			return cerr
		}
		return err
	}}
}

// sessionAddr is a new one each time: Windows listens on all of 127.0.0.0/8.
func sessionAddr() netip.Addr { return randomAddr() }
