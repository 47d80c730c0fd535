package sshd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Limits of a program that is run.
const (
	toolTime = 15 * time.Second
	toolOut  = 256 << 10 // bytes
)

// binDirs are where the system's programs are; no search path is believed.
var binDirs = []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"}

// tool returns the full path of a program of the system, or "".
func tool(name string) string {
	for _, dir := range binDirs {
		path := filepath.Join(dir, name)
		if i, err := os.Stat(path); err == nil && i.Mode().IsRegular() && i.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// A toolError is what a program said when it failed.
type toolError struct {
	name string
	said string
}

func (e *toolError) Error() string { return e.name + ": " + e.said }

// command readies a program of the system, with nothing of our environment.
func command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// run runs a program of the system and returns the beginning of its output.
func run(ctx context.Context, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTime)
	defer cancel()
	cmd := command(ctx, path, args...)
	var out, said head
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	name := filepath.Base(path)
	switch _, ok := errors.AsType[*exec.ExitError](err); {
	case ctx.Err() != nil:
		return "", fmt.Errorf("%s did not end in %v: %w", name, toolTime, ctx.Err())
	case ok:
		return "", &toolError{name, said.line()}
	case err != nil:
		return "", fmt.Errorf("run %s: %w", path, err)
	}
	return out.b.String(), nil
}

// A head keeps the first bytes that are written to it.
type head struct{ b bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	h.b.Write(p[:min(len(p), toolOut-h.b.Len())])
	return len(p), nil
}

// line is what a program complained of, in one line.
func (h *head) line() string {
	s := strings.Join(strings.FieldsFunc(h.b.String(), func(r rune) bool { return r < ' ' || r == 0x7f }), ", ")
	if s == "" {
		return "no reason given"
	}
	return s[:min(len(s), 400)]
}

// signal sends a signal to a process.
func signal(pid int, s syscall.Signal) error { return syscall.Kill(pid, s) }

// ownedByUs reports whether nobody but this account can change what i is of.
func ownedByUs(i fs.FileInfo) bool {
	st, ok := i.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid() && i.Mode().Perm()&0o022 == 0
}

// owner keeps a file's owner, which may be another administrator of it.
func owner(i fs.FileInfo) (uid, gid int) {
	st := i.Sys().(*syscall.Stat_t)
	return int(st.Uid), int(st.Gid)
}

// isServer reports whether a process runs program, as root and nobody else, and
// not in a container, whose logins are its own. A program that was upgraded under
// it is "(deleted)".
func isServer(pid int, program string) bool {
	if of, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err != nil || of != pidNamespace() {
		return false
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || strings.TrimSuffix(exe, " (deleted)") != program {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // the folder's owner is root for whoever has changed uids
	return err == nil && bytes.Contains(b, []byte("\nUid:\t0\t0\t0\t0\n"))
}

// pidNamespace is this process's (pid_namespaces(7)).
var pidNamespace = sync.OnceValue(func() string {
	of, _ := os.Readlink("/proc/self/ns/pid")
	return of
})

// started is when a process began, in the clock ticks of proc_pid_stat(5); it
// tells two processes of the same number apart.
func started(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, ok := strings.Cut(string(b[bytes.LastIndexByte(b, ')')+1:]), " ")
	f := strings.Fields(rest)
	if !ok || len(f) < 20 {
		return ""
	}
	return f[19]
}

// anyServer reports whether a process runs program.
func anyServer(program string) bool {
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		if pid, err := strconv.Atoi(d.Name()); err == nil && isServer(pid, program) {
			return true
		}
	}
	return false
}

// identity tells whether a file is the one that was there before.
func identity(path string) string {
	i, err := os.Stat(path)
	if err != nil {
		return path + " -"
	}
	st := i.Sys().(*syscall.Stat_t)
	return fmt.Sprint(path, " ", st.Dev, st.Ino, " ", st.Size, " ", st.Mtim.Nano(), " ", st.Ctim.Nano())
}
