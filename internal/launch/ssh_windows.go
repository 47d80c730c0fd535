package launch

import (
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/windows"

	"sft/internal/loopback"
)

// systemSSH is Windows' own OpenSSH, by the path of the system's folder.
func systemSSH() string {
	dir, err := windows.GetSystemDirectory()
	if err != nil || !filepath.IsAbs(dir) {
		return ""
	}
	return filepath.Join(dir, "OpenSSH", "ssh.exe")
}

// beside leaves the program on our console.
func beside(*exec.Cmd) {}

// passOn ends ssh: there is no signal that it hears.
func passOn(_ error, p *os.Process) { p.Kill() }

func exitStatus(s *os.ProcessState) int { return s.ExitCode() }

// follow does nothing: there is no stopping.
func follow(int, <-chan struct{}) {}

// OnlySSH lets no sockets into l but those of ssh.
func OnlySSH(l *loopback.Listener, pid int) error { return l.Only(uint32(pid)) }
