// Package daemon is a service, as the system that runs it wants it: systemd, or
// the Service Control Manager of Windows.
package daemon

import (
	"net"
	"os"
)

// Notify tells systemd the state of this service, as in "READY=1" or
// "STOPPING=1" (sd_notify(3)). Without systemd it does nothing.
func Notify(state string) error {
	return notify(func(c *net.UnixConn) error {
		_, err := c.Write([]byte(state))
		return err
	})
}

// notify calls send with a connection to systemd, if there is one.
func notify(send func(*net.UnixConn) error) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	return send(c)
}
