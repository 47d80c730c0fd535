//go:build unix

package main

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// unheard waits until nobody can read what this process writes to out any more,
// or ctx has ended. It goes by out and not by who started the process: an ssh
// that shares its connection leaves it to a child of its own, and ends.
func unheard(ctx context.Context, out *os.File) {
	raw, err := out.SyscallConn()
	if err != nil {
		<-ctx.Done()
		return
	}
	for ctx.Err() == nil {
		gone := false
		// A pipe without readers is an error, a socket without its other end
		// a hang-up: poll tells both without being asked to.
		err := raw.Control(func(fd uintptr) {
			fds := []unix.PollFd{{Fd: int32(fd)}}
			n, err := unix.Poll(fds, int(time.Second/time.Millisecond))
			gone = err == nil && n > 0
		})
		if err != nil || gone {
			return
		}
	}
}
