//go:build linux

package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"time"
)

// What a host with an SSH server has.
const (
	SSHDConfig = "/etc/ssh/sshd_config"
	AuthLog    = "/var/log/auth.log" // as syslogd writes it
)

// StartSSHD starts the host's real OpenSSH server as Debian ships it, with host
// keys of its own. What it says goes through a system log to AuthLog. settings
// are lines that come first in its configuration.
func (h *Host) StartSSHD(settings ...string) *Process {
	h.lab.t.Helper()
	if _, err := os.Stat("/usr/sbin/sshd"); err != nil {
		h.lab.t.Skipf("SKIPPED: OpenSSH's server is not installed; run make setup")
	}
	stock, err := os.ReadFile("/usr/share/openssh/sshd_config")
	if err != nil {
		h.lab.t.Fatalf("%s: %v", h.name, err)
	}
	h.Must("", "sh", "-ec", `rm -f /etc/ssh/ssh_host_* /etc/ssh/sshd_config.d/* /etc/ssh/sshd_config
		mkdir -p /run/sshd /etc/ssh/sshd_config.d
		ssh-keygen -q -A`)
	h.Write(SSHDConfig, 0o644, []byte(strings.Join(append(settings, string(stock)), "\n")))
	h.startSyslog()
	return h.RunSSHD()
}

// RunSSHD starts the SSH server with the configuration that is there.
func (h *Host) RunSSHD() *Process {
	h.lab.t.Helper()
	p := h.Start("sshd", h.Command(context.Background(), "", "/usr/sbin/sshd", "-D"))
	port := "22"
	if out, err := h.Run("", "/usr/sbin/sshd", "-T"); err == nil {
		if m := regexp.MustCompile(`(?m)^port (\d+)$`).FindStringSubmatch(out); m != nil {
			port = m[1]
		}
	}
	h.WaitListen("127.0.0.1:" + port)
	return p
}

// StopSSHD ends the SSH server as an administrator does.
func (h *Host) StopSSHD() {
	h.lab.t.Helper()
	h.Must("", "sh", "-c", `kill "$(cat /run/sshd.pid)"; while [ -e /run/sshd.pid ]; do sleep 0.05; done`)
}

// startSyslog serves the host's /dev/log, as a system logger does.
func (h *Host) startSyslog() {
	h.lab.t.Helper()
	path := fmt.Sprintf("/proc/%d/root/dev/log", h.pid)
	if _, err := os.Stat(path); err == nil {
		return // there is one
	}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		h.lab.t.Fatalf("%s: serve /dev/log: %v", h.name, err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		h.lab.t.Fatalf("%s: %v", h.name, err)
	}
	h.lab.t.Cleanup(func() { c.Close() })
	h.Write(AuthLog, 0o640, nil)
	log := fmt.Sprintf("/proc/%d/root%s", h.pid, AuthLog)
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			line := syslogLine(string(b[:n]), h.name, time.Now())
			f, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640) // anew each time: it may be rotated
			if err != nil {
				continue
			}
			f.WriteString(line)
			f.Close()
		}
	}()
}

// syslogRE is a message as programs send it: "<38>Nov 27 12:00:00 sshd[7]: text".
var syslogRE = regexp.MustCompile(`(?s)^<\d+>(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d )?(.*)$`)

// syslogLine is a message as a system logger writes it: with the host's name,
// and nothing in it that would begin another line.
func syslogLine(msg, host string, now time.Time) string {
	if m := syslogRE.FindStringSubmatch(msg); m != nil {
		msg = m[1]
	}
	msg = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.TrimRight(msg, "\n\x00"))
	return now.Format(time.Stamp) + " " + host + " " + msg + "\n"
}
