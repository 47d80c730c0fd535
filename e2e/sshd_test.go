//go:build linux

package e2e

import (
	"strings"
	"testing"
	"time"

	"sft/internal/audit"
)

// The agent sets up the SSH server of a host under a real systemd, with all
// that its unit forbids it, sees who signs in, and leaves it as it was.
func TestSSHServer(t *testing.T) {
	s, web := unitServer(t)
	web.Must("", "sh", "-c", "grep -q '^Include /etc/ssh/sshd_config.d/' /etc/ssh/sshd_config && ls /etc/ssh/ssh_host_ed25519_key")
	before := web.Must("", "sh", "-c", "cat /etc/ssh/sshd_config; ls -l /etc/ssh/sshd_config; ls /etc/ssh | grep -v ^sftd; ls /etc/ssh/sshd_config.d")
	web.Systemctl("start", "ssh")
	pid := web.Systemctl("show", "-P", "MainPID", "ssh")
	var list struct {
		List []struct {
			Services    []string
			SSHPort     int      `json:"ssh_port"`
			SSHHostKeys []string `json:"ssh_host_keys"`
			Problems    []string
		}
	}
	s.Wait("the platform knows of the SSH server", 40*time.Second, func() bool {
		s.Do("GET", "/projects/prod/servers", nil, &list)
		return len(list.List) == 1 && list.List[0].SSHPort == 22 && len(list.List[0].SSHHostKeys) == 3
	})
	// Its keys are certified, and it shows the certificates.
	s.Wait("the host shows a certificate", 40*time.Second, func() bool {
		out, _ := web.Run("", "ssh-keyscan", "-c", "127.0.0.1")
		return strings.Contains(out, "ssh-ed25519-cert-v01@openssh.com")
	})
	id := strings.TrimSpace(web.Must("", "cat", "/etc/ssh/sftd/principals/ann"))
	if !strings.HasPrefix(id, "sft:") || !strings.HasSuffix(id, ":ann") {
		t.Errorf("ann's principal is %q", id)
	}
	if out := web.Must("", "/usr/sbin/sshd", "-T", "-C", "user=ann,host=x,addr=127.0.0.1"); !strings.Contains(out, "trustedusercakeys /etc/ssh/sftd/user_ca.pub\n") || !strings.Contains(out, "authenticationmethods publickey\n") {
		t.Errorf("for ann the server has\n%s", out)
	}
	// Somebody else signs in as before, and that is told.
	web.Must("", "useradd", "-m", "-p", "*", "carl")
	web.Must("carl", "sh", "-c", "mkdir -m 700 ~/.ssh && ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id && cp ~/.ssh/id.pub ~/.ssh/authorized_keys")
	web.Must("carl", "ssh", "-F", "none", "-i", "/home/carl/.ssh/id", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "carl@127.0.0.1", "true")
	s.WaitEvent("carl's sign-in is told", func(e audit.Event) bool {
		return e.Kind == audit.SSHLogin && e.Detail["login"] == "carl" && e.Detail["method"] == "publickey" && strings.HasPrefix(e.Detail["remote"], "127.0.0.1:")
	})
	if now := web.Systemctl("show", "-P", "MainPID", "ssh"); now != pid {
		t.Errorf("the SSH server was process %s, and is %s", pid, now)
	}
	// What signed in while the agent was away is told afterwards.
	web.Systemctl("stop", "sftd")
	web.Must("carl", "ssh", "-F", "none", "-i", "/home/carl/.ssh/id", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "carl@127.0.0.1", "true")
	web.Systemctl("start", "sftd")
	n := 0
	s.Wait("the second sign-in is told", 30*time.Second, func() bool {
		n = 0
		for _, e := range s.Events() {
			if e.Kind == audit.SSHLogin {
				n++
			}
		}
		return n >= 2
	})
	if n != 2 {
		t.Errorf("%d sign-ins are told", n)
	}
	if strings.Contains(web.Journal("sftd"), "level=ERROR") || strings.Contains(web.Journal("sftd"), "level=WARN") {
		t.Errorf("the log has:\n%s", web.Journal("sftd"))
	}
	web.Systemctl("stop", "sftd")
	web.Must("", "sftd", "restore-ssh")
	if _, err := web.Run("", "ls", "/etc/ssh/sftd"); err == nil {
		t.Error("the folder of sftd is still there")
	}
	if after := web.Must("", "sh", "-c", "cat /etc/ssh/sshd_config; ls -l /etc/ssh/sshd_config; ls /etc/ssh | grep -v ^sftd; ls /etc/ssh/sshd_config.d"); after != before {
		t.Errorf("after all it is\n%s\nand was\n%s", after, before)
	}
	if out, _ := web.Run("", "ssh-keyscan", "-c", "127.0.0.1"); strings.Contains(out, "-cert-") {
		t.Error("the server still shows certificates")
	}
	if now := web.Systemctl("show", "-P", "MainPID", "ssh"); now != pid {
		t.Errorf("the SSH server was process %s, and is %s", pid, now)
	}
}
