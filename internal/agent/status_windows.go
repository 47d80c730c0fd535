package agent

import (
	"errors"

	"golang.org/x/sys/windows"
)

// stillActive is the exit code of a process that has none yet: Microsoft,
// "GetExitCodeProcess function".
const stillActive = 259

// alive reports whether there is a process of that number.
func alive(pid int) bool {
	if pid <= 0 {
		return false
	}
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(pid))
	if err != nil {
		return errors.Is(err, windows.ERROR_ACCESS_DENIED)
	}
	defer windows.CloseHandle(h)
	var code uint32
	return windows.GetExitCodeProcess(h, &code) == nil && code == stillActive
}

// What a person does about an agent, or a status, that they cannot see.
const (
	startHint    = "start it: net start scaleft-server-tools"
	deniedStatus = "only administrators may see the status"
	deniedHint   = "open a prompt with \"Run as administrator\", and run it again there"
)
