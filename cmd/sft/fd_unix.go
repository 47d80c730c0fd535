//go:build unix

package main

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"sft"
)

// inherited returns a file descriptor that whoever started us opened for us.
// Those that this program opened itself are closed in others, which tells
// them apart.
func inherited(fd int) (io.WriteCloser, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	mode := 0
	if err == nil {
		mode, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	}
	if err != nil || flags&unix.FD_CLOEXEC != 0 || mode&unix.O_ACCMODE == unix.O_RDONLY {
		return nil, usage{&sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("file descriptor %d is not open for writing", fd), Err: err,
			Hint: fmt.Sprintf("open it, as in: sft rdp --no-launch --password-fd %d SERVER %d>FILE", fd, fd)}}
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), fmt.Sprintf("file descriptor %d", fd)), nil
}
