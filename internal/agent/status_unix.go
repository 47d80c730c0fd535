//go:build unix

package agent

import (
	"errors"
	"syscall"
)

// alive reports whether there is a process of that number.
func alive(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

// What a person does about an agent, or a status, that they cannot see.
const (
	startHint    = "start it: systemctl start sftd"
	deniedStatus = "only root may see the status"
	deniedHint   = "run it with sudo"
)
