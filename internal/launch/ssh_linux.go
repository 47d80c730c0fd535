package launch

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// systemSSH is "": the one on the path is the one that the person uses.
func systemSSH() string { return "" }

// beside has the program end with us, in our group of processes: it has the
// terminal.
func beside(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGHUP} }

// follow stops us when ssh has stopped itself ("~^Z"), so that the shell has
// its prompt back. When the shell goes on with us it goes on with ssh, too: it
// is in our group.
func follow(pid int, done <-chan struct{}) {
	child := make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	defer signal.Stop(child)
	for {
		select {
		case <-done:
			return
		case <-child:
		}
		var info unix.Siginfo
		// Without WEXITED nothing is reaped that Wait is for.
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WSTOPPED|unix.WNOHANG, nil)
		if err == nil && info.Signo == int32(unix.SIGCHLD) {
			unix.Kill(unix.Getpid(), unix.SIGSTOP)
		}
	}
}
