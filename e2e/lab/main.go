//go:build linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// stageVar tells a program that was started again by this package which of
// its lives this is.
const stageVar = "SFT_LAB_STAGE"

// The lives of a program that calls Main. The first has no stage.
const (
	stageInit  = "init"  // process 1 of the lab: starts the program, reaps
	stageRun   = "run"   // the program itself
	stageHost  = "host"  // process 1 of one host
	stageSweep = "sweep" // removes control groups, after the lab
)

// scratch is where the lab keeps its own files: a tmpfs that only the lab's
// mount namespace sees.
const scratch = "/run"

// inside reports whether this process runs in a lab.
var inside bool

// namespaces are what the lab has of its own. Hosts have the same ones again.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// Main calls run inside the lab and returns its status. It is the first thing
// that a program or a TestMain does: the program starts several times over,
// and what comes before Main happens each time.
//
// Without root, run is called on the machine itself, where New skips or fails.
func Main(run func() int) int {
	stage := os.Getenv(stageVar)
	os.Unsetenv(stageVar)
	var err error
	switch stage {
	case stageHost:
		err = hostInit()
	case stageSweep:
		err = sweepGroups()
	case stageInit:
		var status int
		if status, err = labInit(); err == nil {
			return status
		}
	case stageRun:
		inside = true
		return run()
	default:
		if os.Geteuid() != 0 {
			return run()
		}
		var status int
		if status, err = outer(); err == nil {
			return status
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1) // whatever the caller does after Main belongs to other stages
	}
	os.Exit(0)
	return 0
}

// again returns a command that starts this program in the given stage.
func again(stage string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageVar+"="+stage)
	return cmd
}

// outer starts the lab, passes signals to it and returns its exit status. It
// stays on the machine, and dies last.
func outer() (int, error) {
	runtime.LockOSThread() // Pdeathsig is about the thread, not the process
	defer runtime.UnlockOSThread()
	cmd := again(stageInit)
	cmd.Env = append(cmd.Env, groupVar+"="+newGroupName())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Pdeathsig: syscall.SIGKILL}
	signals := catch()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("make namespaces: %w; run it as root on a machine, or in a container that is privileged", err)
	}
	go forward(signals, func() int { return cmd.Process.Pid })
	err := cmd.Wait()
	if err := sweep(); err != nil {
		fmt.Fprintln(os.Stderr, "lab: remove control groups:", err)
	}
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		return 0, err
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// labInit is process 1 of the lab. It makes what all hosts share, starts the
// program, and reaps until that ends; the kernel then ends everything else.
func labInit() (int, error) {
	signals := catch()
	if err := shared(); err != nil {
		return 0, err
	}
	exited := make(chan syscall.WaitStatus, 1)
	env := append(os.Environ(), stageVar+"="+stageRun)
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, syscall.SIGCHLD)
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 0, fmt.Errorf("start the program in the lab: %w", err)
	}
	go forward(signals, func() int { return pid })
	go reap(chld, func(p int, s syscall.WaitStatus) {
		if p == pid {
			exited <- s
		}
	})
	s := <-exited
	if s.Signaled() {
		os.Exit(128 + int(s.Signal()))
	}
	os.Exit(s.ExitStatus())
	return 0, nil
}

// reap waits for every child as it ends, which is the duty of a process 1.
func reap(chld <-chan os.Signal, ended func(pid int, s syscall.WaitStatus)) {
	for {
		for {
			var s syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &s, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			if err != nil || pid == 0 {
				break
			}
			ended(pid, s)
		}
		<-chld
	}
}

// catch takes the signals that are meant for the program.
func catch() <-chan os.Signal {
	c := make(chan os.Signal, 8)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	return c
}

// forward sends what comes in on c to the process. What a key press sent, the
// terminal has sent to the whole group, the program included: once is enough.
func forward(c <-chan os.Signal, pid func() int) {
	for s := range c {
		if s != syscall.SIGTERM && foreground() {
			continue
		}
		syscall.Kill(pid(), s.(syscall.Signal))
	}
}

// foreground reports whether this process group has the terminal. In a process
// namespace that does not see the group, both numbers are 0, and equal.
func foreground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// shared makes what the hosts of the lab have in common: private mounts, a
// scratch folder, and a bridge at Address.
func shared() error {
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", scratch, "tmpfs", 0, "mode=755"},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	// A hosts file of the lab's own, for the program itself.
	names := scratch + "/hosts"
	if err := os.WriteFile(names, []byte(hostsFile(nil)), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(names, "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount /etc/hosts: %w", err)
	}
	return ip(nil, "link set lo up", "link add lan type bridge", "addr add "+Address+"/24 dev lan", "link set lan up")
}
