//go:build linux

package stage

import (
	"context"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"sft/e2e/lab"
)

// SystemdHost makes a host with systemd and the files that "make install"
// puts on one. repo is the folder of the Makefile.
func (s *Stage) SystemdHost(name, repo string) *lab.Host {
	s.t.Helper()
	h := s.Lab.SystemdHost(name)
	// Elsewhere process 1 does so; in a container it leaves that to the
	// container's maker. Without it a unit sees no mount younger than itself.
	h.Must("", "mount", "--make-rshared", "/")
	dir := filepath.Join(s.Lab.Dir(), name+"-install")
	if out, err := exec.Command("make", "-C", repo, "install-files", "BIN="+s.bin, "DESTDIR="+dir).CombinedOutput(); err != nil {
		s.t.Fatalf("make install-files: %v: %s", err, out)
	}
	archive := exec.Command("tar", "-C", dir, "--owner=0", "--group=0", "-c", ".")
	files, err := archive.StdoutPipe()
	if err != nil {
		s.t.Fatalf("%v", err)
	}
	unpack := h.Command(s.t.Context(), "", "tar", "-C", "/", "--no-overwrite-dir", "-xp")
	unpack.Stdin = files
	if err := archive.Start(); err != nil {
		s.t.Fatalf("%v", err)
	}
	if out, err := unpack.CombinedOutput(); err != nil {
		s.t.Fatalf("%s: unpack: %v: %s", name, err, out)
	}
	if err := archive.Wait(); err != nil {
		s.t.Fatalf("%v", err)
	}
	h.Must("", "systemd-sysusers", "sftd.conf", "sft-platform.conf")
	h.Must("", "systemd-tmpfiles", "--create", "sftd.conf", "sft-platform.conf")
	h.Systemctl("daemon-reload")
	s.t.Cleanup(func() {
		if s.t.Failed() {
			journal, _ := h.Command(context.Background(), "", "journalctl", "--no-pager", "-o", "cat", "-u", "sft*").Output()
			s.t.Logf("the journal of %s:\n%s", name, journal)
		}
	})
	return h
}

// SystemdServer makes a host whose sftd is a unit that is enabled and, when
// SystemdServer returns, enrolled in a project.
func (s *Stage) SystemdServer(name, project, repo string) *Server {
	s.t.Helper()
	srv := &Server{Host: s.SystemdHost(name, repo), stage: s}
	srv.Write("/var/lib/sftd/enrollment.token", 0o600, []byte(s.Token(project)+"\n"))
	srv.Systemctl("enable", "--now", "sftd")
	srv.WaitBroker()
	return srv
}

// WaitBroker waits until the broker runs.
func (v *Server) WaitBroker() {
	v.stage.t.Helper()
	v.WaitStatus("the broker of "+v.Name()+" runs", func(st map[string]any) bool {
		b, _ := st["broker"].(map[string]any)
		pid, _ := st["pid"].(float64) // of an sftd that ended without a word, maybe
		return b["pid"] != nil && pid > 0 && int(pid) == v.MainPID()
	})
}

// MainPID is the number that systemd knows sftd by, 0 while it does not run.
func (v *Server) MainPID() int {
	pid, _ := strconv.Atoi(strings.TrimSpace(v.Systemctl("show", "-P", "MainPID", "sftd")))
	return pid
}
