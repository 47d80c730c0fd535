package tunnel

import (
	"os/exec"
	"syscall"

	"sft/internal/loopback"
)

// tieBefore has the kernel end ssh when we are gone: one that waits for a
// proxy or a person would not notice that its pipes are closed. It stays in
// our process group, so that it may ask at the terminal.
func tieBefore(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// tieAfter does nothing: tieBefore has done it.
func tieAfter(int) {}

// sshProgram returns the person's ssh.
func sshProgram() (string, error) { return exec.LookPath("ssh") }

// onlyProcess does nothing: the port takes sockets of the person alone, and
// here their processes are not kept from one another.
func onlyProcess(*loopback.Listener, uint32) error { return nil }
