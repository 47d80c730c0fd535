//go:build linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Process is a program that was started on a host and goes on.
type Process struct {
	Log string // the file with all that it wrote

	host *Host
	name string
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start starts a command that Command made. What it writes goes to a log named
// after the host and name. It ends with the host at the latest.
func (h *Host) Start(name string, cmd *exec.Cmd) *Process {
	h.lab.t.Helper()
	p := &Process{Log: filepath.Join(h.lab.dir, h.name+"-"+name+".log"), host: h, name: name, cmd: cmd, done: make(chan struct{})}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		h.lab.t.Fatalf("start %s: %v", name, err)
	}
	defer log.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	if cmd.Stderr == nil {
		cmd.Stderr = log
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a key press in the lab's terminal is not for hosts
	}
	if err := cmd.Start(); err != nil {
		h.lab.t.Fatalf("%s: start %s: %v", h.name, name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p
}

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the program and returns its exit status: 128 and
// the number of the signal if a signal ended it.
func (p *Process) Wait() int {
	p.host.lab.t.Helper()
	poll(p.host.lab.t, p.host.name+": "+p.name+" runs on", func() bool {
		select {
		case <-p.done:
			return true
		default:
			return false
		}
	})
	if exit, ok := errors.AsType[*exec.ExitError](p.err); p.err != nil && !ok {
		p.host.lab.t.Fatalf("%s: %s: %v", p.host.name, p.name, p.err)
	} else if ok {
		if s := exit.Sys().(syscall.WaitStatus); s.Signaled() {
			return 128 + int(s.Signal())
		}
		return exit.ExitCode()
	}
	return 0
}

// PID returns the number of the program, as the lab sees it, or 0.
func (p *Process) PID() int {
	// The command is nsenter; the program is its one child.
	for _, q := range processes() {
		if q.Parent == p.cmd.Process.Pid {
			return q.PID
		}
	}
	return 0
}

// Signal sends a signal to the program itself.
func (p *Process) Signal(s syscall.Signal) {
	if pid := p.PID(); pid != 0 {
		syscall.Kill(pid, s)
	}
}

// Stop asks the program to end, and ends it if it does not within 5 seconds.
func (p *Process) Stop() {
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		p.Kill()
	}
}

// Kill ends the program at once.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	p.cmd.Process.Kill()
	<-p.done
}

// Output returns what the program has written so far.
func (p *Process) Output() string {
	b, _ := os.ReadFile(p.Log)
	return string(b)
}

// A Running is a process of a host.
type Running struct {
	PID    int    // as the lab sees it
	Parent int    // likewise
	UID    uint32 // real
	Name   string // of the program, at most 15 characters
}

// Processes returns what runs on the host: of one user, or with "" all.
func (h *Host) Processes(user string) []Running {
	h.lab.t.Helper()
	var uid uint64
	if user != "" {
		a, err := h.account(user)
		if err != nil {
			h.lab.t.Fatalf("%v", err)
		}
		uid, _ = strconv.ParseUint(a.uid, 10, 32)
	}
	ours, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", h.pid))
	if err != nil {
		return nil // the host is gone
	}
	var found []Running
	for _, p := range processes() {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p.PID))
		if err == nil && ns == ours && (user == "" || uint64(p.UID) == uid) {
			found = append(found, p)
		}
	}
	return found
}

// processes returns what this process namespace shows, except the dead.
func processes() []Running {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var found []Running
	for _, dir := range dirs {
		b, err := os.ReadFile(dir + "/status")
		if err != nil {
			continue // it has ended meanwhile
		}
		var p Running
		var dead bool
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(line, ":")
			value = strings.TrimSpace(value)
			switch key {
			case "Name":
				p.Name = value
			case "State":
				dead = strings.HasPrefix(value, "Z") || strings.HasPrefix(value, "X")
			case "Pid":
				p.PID, _ = strconv.Atoi(value)
			case "PPid":
				p.Parent, _ = strconv.Atoi(value)
			case "Uid":
				fmt.Sscan(value, &p.UID)
			}
		}
		if !dead {
			found = append(found, p)
		}
	}
	return found
}
