//go:build unix

package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// firstSocket is the first descriptor that systemd passes (sd_listen_fds(3)).
const firstSocket = 3

// maxSockets caps how many are taken.
const maxSockets = 16

// A Socket listens, and systemd has it too.
type Socket struct {
	net.Listener
	Name string // in the service manager's books
}

// Sockets returns the sockets that systemd has passed to this process, from a
// socket unit or kept from the process before (see Keep). It is called once:
// the environment is cleared, so that no child takes them for its own. What
// does not listen on a network is closed.
func Sockets() ([]Socket, error) {
	pid, fds, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(v)
	}
	if pid != strconv.Itoa(os.Getpid()) || fds == "" {
		return nil, nil // another process's, or nobody's
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > maxSockets {
		return nil, fmt.Errorf("systemd passes %q sockets; %d are taken at most", fds, maxSockets)
	}
	var list []Socket
	for i := range n {
		syscall.CloseOnExec(firstSocket + i)
		f := os.NewFile(uintptr(firstSocket+i), "socket")
		ln, err := net.FileListener(f) // of a copy
		f.Close()
		if err != nil {
			continue
		}
		s := Socket{Listener: ln}
		if i < len(names) {
			s.Name = names[i]
		}
		list = append(list, s)
	}
	return list, nil
}

// Keep gives a copy of a listening socket to systemd, which passes it to the
// next process of the service under that name: while one follows the other,
// connections wait and none is refused. The unit says how many it may keep
// (FileDescriptorStoreMax=). Without systemd it does nothing.
func Keep(name string, ln *net.TCPListener) error {
	return notify(func(c *net.UnixConn) error {
		to, err := c.SyscallConn()
		if err != nil {
			return err
		}
		of, err := ln.SyscallConn() // not File and Fd, which would make it block
		if err != nil {
			return err
		}
		err2 := of.Control(func(fd uintptr) {
			err3 := to.Control(func(via uintptr) {
				err = syscall.Sendmsg(int(via), []byte("FDSTORE=1\nFDNAME="+name), syscall.UnixRights(int(fd)), nil, 0)
			})
			err = errors.Join(err, err3)
		})
		return errors.Join(err, err2)
	})
}

// Forget has systemd close what it keeps under that name.
func Forget(name string) error { return Notify("FDSTOREREMOVE=1\nFDNAME=" + name) }
