package launch

import (
	"os/exec"
	"syscall"
)

// prepare puts the program into a process group of its own, so that Ctrl-C
// reaches it through us alone.
func prepare(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
}

// tie does nothing: macOS has no such way.
func tie(int) error { return nil }
