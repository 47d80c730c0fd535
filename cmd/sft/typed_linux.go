package main

import "golang.org/x/sys/unix"

// dropTyped drops what was typed at a terminal and not read yet, tcflush(3).
func dropTyped(fd uintptr) error { return unix.IoctlSetInt(int(fd), unix.TCFLSH, unix.TCIFLUSH) }
