package sshd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A server in a container on the host has logins of its own: nobody is signed in
// here by it, and nothing of it is ended.
func TestServerInAContainer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: this needs root, as whom the SSH server runs")
	}
	const program, login = "/usr/sbin/sshd", "sft-in-a-container"
	for flags, want := range map[uintptr]bool{0: true, syscall.CLONE_NEWPID: false} {
		config := filepath.Join(t.TempDir(), "config")
		if err := syscall.Mkfifo(config, 0o600); err != nil { // which it waits for
			t.Fatal(err)
		}
		cmd := &exec.Cmd{Path: program, Args: []string{"sshd: " + login + " [priv]", "-t", "-f", config}, SysProcAttr: &syscall.SysProcAttr{Cloneflags: flags}}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
			if err == nil && strings.HasPrefix(string(b), cmd.Args[0]+"\x00") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("it never called itself so")
			}
		}
		if got := alive(Process{cmd.Process.Pid, started(cmd.Process.Pid)}, []string{program}); got != want {
			t.Errorf("with the flags %#x of its own: %v", flags, got)
		}
	}
}
