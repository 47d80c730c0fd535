//go:build cgo

package privsep

import (
	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// What a C library's threads need on top. Release builds have no C library;
// tests and a developer's own builds may. The race detector needs no more.
var libcNames = []string{"set_robust_list", "rseq"}

// The flags of pthread_create in glibc, and in musl.
var libcRules = []rule{
	only("clone", 0, seccomp.Equal, 0x3d0f00),
	only("clone", 0, seccomp.Equal, 0x7d0f00),
	only("mprotect", 2, seccomp.BitsNotSet, unix.PROT_EXEC),
}
