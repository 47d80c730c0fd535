//go:build unix

package main

import "golang.org/x/sys/unix"

// free is how many bytes this account can still write in dir.
func free(dir string) (uint64, error) {
	var s unix.Statfs_t
	err := unix.Statfs(dir, &s)
	return uint64(s.Bavail) * uint64(s.Bsize), err
}

// writable is why this account cannot write in dir, or nil.
func writable(dir string) error { return unix.Access(dir, unix.W_OK) }
