package launch

import (
	"os/exec"
	"syscall"
)

// prepare puts the program into a process group of its own, so that Ctrl-C
// reaches it through us alone, and has the kernel end it if we are killed.
func prepare(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
}

// tie does nothing: prepare has done it.
func tie(int) error { return nil }
