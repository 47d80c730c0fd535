//go:build unix

package main

import (
	"bufio"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// system is the name and the version of this machine's system.
func system() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown: " + err.Error()
	}
	name := unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	f, err := os.Open("/etc/os-release") // os-release(5); not on macOS
	if err != nil {
		return name
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		if v, ok := strings.CutPrefix(in.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"'`) + ", " + name
		}
	}
	return name
}
