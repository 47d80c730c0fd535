package launch

import (
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// prepare puts the program into a process group of its own, so that Ctrl-C
// reaches it through us alone. How it is ended is left at the default: Windows
// has no way to ask a program to end that every program hears. A program of the
// system's folder works there: the person's current folder may be anybody's,
// and libraries that are not found elsewhere are looked for in it (Microsoft,
// "Dynamic-link library search order").
func prepare(cmd *exec.Cmd) {
	if dir, err := windows.GetSystemDirectory(); err == nil && strings.EqualFold(filepath.Dir(cmd.Path), dir) {
		cmd.Dir = dir
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP}
}

// ours is the job of what ends with this process, however it does: the handle
// is closed then.
var ours = sync.OnceValues(newJob)

// setJob is called as it is: that of package windows takes the structure's
// address as a number, which is not its own any more when the goroutine's stack
// has moved.
var setJob = windows.NewLazySystemDLL("kernel32.dll").NewProc("SetInformationJobObject")

// newJob makes a job that ends what is in it when its last handle is closed.
func newJob() (windows.Handle, error) {
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
}

// tie has the program end with us. An RDP client that outlived us would come
// back to the port, whoever has it then.
func tie(pid int) error {
	job, err := ours()
	if err != nil {
		return err
	}
	return assign(job, pid)
}

func assign(job windows.Handle, pid int) error {
	h, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE|windows.SYNCHRONIZE, false, uint32(pid))
	if err != nil {
		return err
	}
	defer windows.CloseHandle(h)
	err = windows.AssignProcessToJobObject(job, h)
	if ended, _ := windows.WaitForSingleObject(h, 0); ended == windows.WAIT_OBJECT_0 {
		return nil // a job takes no process that has ended
	}
	return err
}
