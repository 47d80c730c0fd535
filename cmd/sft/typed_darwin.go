package main

import "golang.org/x/sys/unix"

// dropTyped drops what was typed at a terminal and not read yet, tty(4).
func dropTyped(fd uintptr) error {
	return unix.IoctlSetPointerInt(int(fd), unix.TIOCFLUSH, 1) // FREAD
}
