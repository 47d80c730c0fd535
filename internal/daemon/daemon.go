// Package daemon is a service, as the system that runs it wants it: systemd, or
// the Service Control Manager of Windows.
package daemon

import (
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// Notify tells systemd the state of this service, as in "READY=1" or
// "STOPPING=1" (sd_notify(3)). Without systemd it does nothing.
func Notify(state string) error {
	return notify(func(c *net.UnixConn) error {
		_, err := c.Write([]byte(state))
		return err
	})
}

// Extend tells systemd that a start takes longer, until stop is called: it
// waits for d more from each time that it is told, which is four times in d
// (EXTEND_TIMEOUT_USEC=, sd_notify(3)). Without systemd it does nothing.
func Extend(d time.Duration) (stop func()) {
	over := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		t := time.NewTicker(d / 4)
		defer t.Stop()
		for {
			// One that is lost is followed by others.
			_ = Notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()))
			select {
			case <-over:
				return
			case <-t.C:
			}
		}
	})
	return sync.OnceFunc(func() { close(over); telling.Wait() })
}

// notifyTime is how long systemd may take to hear of something.
var notifyTime = 5 * time.Second

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
	// A manager that does not read holds nobody up.
	if err := c.SetWriteDeadline(time.Now().Add(notifyTime)); err != nil {
		return err
	}
	return send(c)
}
