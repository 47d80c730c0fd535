//go:build linux

package lab

import (
	"strings"
	"testing"
)

// A host's SSH server is its own, and says in the log who came.
func TestSSHD(t *testing.T) {
	l := New(t, "")
	web, desk := l.Host("web01"), l.Host("laptop")
	web.StartSSHD("MaxAuthTries 3")
	web.AddUser("ann", "")
	desk.AddUser("ann", "")
	desk.Must("ann", "sh", "-c", "mkdir -m 700 .ssh && ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519")
	pub := desk.Must("ann", "cat", ".ssh/id_ed25519.pub")
	web.Write("/home/ann/.ssh/authorized_keys", 0o600, []byte(pub))
	web.Must("", "chown", "-R", "ann:", "/home/ann/.ssh")
	out, err := desk.Run("ann", "ssh", "-o", "StrictHostKeyChecking=accept-new", "web01", "hostname; id -un")
	if err != nil || out != "web01\nann\n" {
		t.Fatalf("ssh web01 says %q: %v", out, err)
	}
	poll(t, "the log does not tell", func() bool {
		b, _ := web.Read(AuthLog)
		return strings.Contains(string(b), "Accepted publickey for ann from "+desk.IP())
	})
	if mine, err := desk.Read("/etc/ssh/ssh_host_ed25519_key.pub"); err == nil && strings.Contains(desk.Must("ann", "cat", ".ssh/known_hosts"), strings.Fields(string(mine))[1]) {
		t.Error("web01 has the machine's host key")
	}
	web.StopSSHD()
	if out, err := desk.Run("ann", "ssh", "web01", "true"); err == nil {
		t.Errorf("a stopped server answers: %s", out)
	}
}
