//go:build unix

package launch

import (
	"os"
	"syscall"

	"sft/internal/loopback"
)

// passOn sends ssh what ended us. What the terminal sends it has already.
func passOn(_ error, p *os.Process) { p.Signal(syscall.SIGTERM) }

// exitStatus is what a shell would say of it.
func exitStatus(s *os.ProcessState) int {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return s.ExitCode()
}

// OnlySSH does nothing on Unix: a listener lets in this user's sockets alone.
func OnlySSH(*loopback.Listener, int) error { return nil }
