package tunnel

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"unsafe"

	"golang.org/x/sys/windows"

	"sft/internal/loopback"
)

func tieBefore(*exec.Cmd) {}

// setJob is called as it is, see package launch.
var setJob = windows.NewLazySystemDLL("kernel32.dll").NewProc("SetInformationJobObject")

// ours is the job of what ends with this process, however it does: the handle
// is closed then.
var ours = sync.OnceValues(func() (windows.Handle, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return 0, err
	}
	var limits windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	limits.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	if ok, _, err := setJob.Call(uintptr(job), windows.JobObjectExtendedLimitInformation, uintptr(unsafe.Pointer(&limits)), unsafe.Sizeof(limits)); ok == 0 {
		windows.CloseHandle(job)
		return 0, err
	}
	return job, nil
})

// tieAfter has ssh end with us. Where that cannot be, its pipes are closed.
func tieAfter(pid int) {
	job, err := ours()
	if err != nil {
		return
	}
	h, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(pid))
	if err != nil {
		return
	}
	defer windows.CloseHandle(h)
	windows.AssignProcessToJobObject(job, h)
}

// sshProgram returns the system's OpenSSH, or else the one in the path.
func sshProgram() (string, error) {
	if dir, err := windows.GetSystemDirectory(); err == nil {
		path := filepath.Join(dir, "OpenSSH", "ssh.exe")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return exec.LookPath("ssh")
}

// onlyProcess has the port take sockets of ssh itself alone.
func onlyProcess(l *loopback.Listener, pid uint32) error { return l.Only(pid) }
