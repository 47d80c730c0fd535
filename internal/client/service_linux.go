package client

import (
	"context"
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// dialAgent connects to the agent's socket at path. Who listens there is root,
// by the system's word, or not the agent.
func dialAgent(ctx context.Context, path string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	raw, err := c.(*net.UnixConn).SyscallConn()
	var who *unix.Ucred
	if err == nil {
		var asked error
		err = raw.Control(func(fd uintptr) { who, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
		err = errors.Join(err, asked)
	}
	if err == nil && who.Uid != 0 {
		err = errors.New(path + " is not root's")
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}
