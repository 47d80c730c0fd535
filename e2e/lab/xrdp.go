//go:build linux

package lab

import (
	"fmt"
	"os"
	"regexp"
)

// Where a host with a remote desktop keeps what tests look at.
const (
	XRDPAddress     = "127.0.0.1:3389"
	XRDPLog         = "/var/log/xrdp.log"        // "login successful for user U on display N"
	SesmanLog       = "/var/log/xrdp-sesman.log" // "AUTHFAIL: user=U ip=A"
	SessionStarted  = ".rdp-session-started"     // in the home of a person whose desktop came up
	XRDPCertificate = "/etc/xrdp/cert.pem"
)

// StartXRDP starts a real RDP server as Debian ships it: on loopback, with TLS
// and a certificate of its own, signing in accounts of the host by PAM. A
// desktop has the given colour, such as "#204060", and says whose it is.
func (h *Host) StartXRDP(colour string) {
	h.lab.t.Helper()
	h.startXRDP(colour, "tls")
}

// StartXRDPWithoutTLS is StartXRDP with standard RDP security alone, as old
// servers have it (MS-RDPBCGR 5.3): what must never be let through.
func (h *Host) StartXRDPWithoutTLS(colour string) {
	h.lab.t.Helper()
	h.startXRDP(colour, "rdp")
}

func (h *Host) startXRDP(colour, security string) {
	h.lab.t.Helper()
	if _, err := os.Stat("/usr/sbin/xrdp"); err != nil {
		h.lab.t.Skipf("SKIPPED: xrdp is not installed; run make setup")
	}
	h.Must("", "sh", "-ec", `openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=$(hostname)" \
			-keyout /etc/xrdp/lab-key.pem -out /etc/xrdp/lab-cert.pem
		rm -f /etc/xrdp/cert.pem /etc/xrdp/key.pem
		mv /etc/xrdp/lab-cert.pem /etc/xrdp/cert.pem
		mv /etc/xrdp/lab-key.pem /etc/xrdp/key.pem
		chown xrdp /etc/xrdp/key.pem
		for log in `+XRDPLog+" "+SesmanLog+`; do rm -f $log; touch $log; done
		chown xrdp `+XRDPLog+`
		sh /usr/share/xrdp/socksetup`)
	h.Write("/etc/xrdp/startlab.sh", 0o755, fmt.Appendf(nil, desktop, colour))
	// The certificate stays unnamed, as in Debian: an empty setting means cert.pem.
	h.set("/etc/xrdp/xrdp.ini", map[string]string{
		"port": "tcp://" + XRDPAddress, "security_layer": security, "autorun": "Xorg", "LogFile": XRDPLog, "EnableSyslog": "false",
	})
	h.set("/etc/xrdp/sesman.ini", map[string]string{
		"DefaultWindowManager": "/etc/xrdp/startlab.sh", "EnableUserWindowManager": "false", "LogFile": SesmanLog, "EnableSyslog": "false",
	})
	ctx := h.lab.t.Context()
	h.Start("sesman", h.Command(ctx, "", "xrdp-sesman", "-n"))
	h.WaitListen("[::1]:3350")
	h.Start("xrdp", h.Command(ctx, "xrdp", "xrdp", "-n"))
	h.WaitListen(XRDPAddress)
}

// desktop is what a person sees after signing in. The terminal comes after the
// window manager: one that asks for its size while there is none yet waits
// five seconds for the answer.
const desktop = `#!/bin/sh
[ "$1" != terminal ] || exec xterm -fa 'DejaVu Sans Mono' -fs 28 -bg white -fg black -geometry 34x9+40+40 -e sh -c '
	printf "\n  signed in as %%s\n  on           %%s\n  at           %%s\n\n  " "$(id -un)" "$(hostname)" "$(date +%%T)"
	exec bash'
xsetroot -solid '%s'
date +%%s.%%N >"$HOME/.rdp-session-started"
exec openbox --startup "$0 terminal"
`

// set changes settings in an INI file, wherever they stand in it.
func (h *Host) set(path string, settings map[string]string) {
	h.lab.t.Helper()
	b, err := h.Read(path)
	if err != nil {
		h.lab.t.Fatalf("%s: read %s: %v", h.name, path, err)
	}
	for key, value := range settings {
		line := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(key) + `=.*$`)
		if !line.Match(b) {
			h.lab.t.Fatalf("%s: %s has no setting %s", h.name, path, key)
		}
		// The first: later sections have settings of the same names.
		loc := line.FindIndex(b)
		b = append(b[:loc[0]:loc[0]], append([]byte(key+"="+value), b[loc[1]:]...)...)
	}
	h.Write(path, 0o644, b)
}
