//go:build linux

package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Dial connects to a TCP address from the host itself: its loopback, too.
func (h *Host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	var c net.Conn
	err := h.onNetwork(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		return err
	})
	return c, err
}

// Listen listens on a TCP address of the host. The program serves it.
func (h *Host) Listen(addr string) (net.Listener, error) {
	var l net.Listener
	err := h.onNetwork(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	return l, err
}

// onNetwork calls fn on a thread that is in the host's network. A socket stays
// where it was made, so fn makes one and returns it.
func (h *Host) onNetwork(fn func() error) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.pid))
	if err != nil {
		return fmt.Errorf("host %s: %w", h.name, err)
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network of %s: %w", h.name, err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// Relay returns an address of the lab that leads to one on the host, such as
// a service on its loopback: what the host's own network keeps from others.
func (h *Host) Relay(addr string) string {
	h.lab.t.Helper()
	l, err := net.Listen("tcp", Address+":0")
	if err != nil {
		h.lab.t.Fatalf("relay to %s: %v", h.name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	join := func(near net.Conn) {
		defer near.Close()
		far, err := h.Dial(ctx, addr)
		if err != nil {
			return
		}
		defer far.Close()
		stop := context.AfterFunc(ctx, func() {
			near.Close()
			far.Close()
		})
		defer stop()
		var both sync.WaitGroup
		for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
			both.Go(func() {
				io.Copy(way[0], way[1])
				way[0].(*net.TCPConn).CloseWrite()
			})
		}
		both.Wait()
	}
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { join(c) })
		}
	})
	h.lab.t.Cleanup(func() {
		cancel()
		l.Close()
		all.Wait()
	})
	return l.Addr().String()
}
