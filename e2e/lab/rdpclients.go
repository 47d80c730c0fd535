//go:build linux

package lab

import (
	"fmt"
	"os/exec"
	"strings"
)

// A Security is what an RDP client asks for (MS-RDPBCGR 2.2.1.1.1).
type Security string

// What clients can be told to ask for. They then ask for nothing else.
const (
	SecurityNLA Security = "nla"
	SecurityTLS Security = "tls"
	SecurityRDP Security = "rdp" // standard RDP security, no negotiation
)

// A SignIn is where an RDP client goes, and as whom.
type SignIn struct {
	Address     string // of the server, as the client's host sees it, such as "127.0.0.1:3389"
	User        string
	Domain      string // may be empty
	Password    string
	Security    Security // rdesktop has no choice: see StartRdesktop
	Fingerprint string   // SHA-256 of the server's certificate in hex; empty takes any. Only xfreerdp can pin.
}

// The size of the desktop that the clients below ask for. The host's display
// has it, too.
const (
	clientWidth  = 1024
	clientHeight = 700
)

// StartXfreerdp starts FreeRDP's client for a user of the host, on the host's
// display. The password goes in on standard input. It ends with 131 or more
// when it cannot sign in: 131 or 134 if the server says that the password is
// wrong, 133 if there is no security that both want, 143 if the certificate is
// not the pinned one, 147 if the server hangs up (FreeRDP's does when NLA
// fails).
func (h *Host) StartXfreerdp(who string, in SignIn) *Process {
	h.lab.t.Helper()
	cert := "/cert:ignore"
	if in.Fingerprint != "" {
		cert = "/cert:fingerprint:sha256:" + colons(in.Fingerprint)
	}
	args := []string{"/v:" + in.Address, "/u:" + in.User, "/from-stdin:force", "/sec:" + string(in.Security), cert,
		fmt.Sprintf("/size:%dx%d", clientWidth, clientHeight), "/log-level:ERROR", "-decorations"}
	if in.Domain != "" {
		args = append(args, "/d:"+in.Domain)
	}
	return h.startClient(who, in.Password+"\n", "xfreerdp", args...)
}

// colons writes a fingerprint as xfreerdp wants it: aa:bb:cc.
func colons(fingerprint string) string {
	s := strings.ToLower(strings.ReplaceAll(fingerprint, ":", ""))
	var b strings.Builder
	for i, r := range s {
		if i > 0 && i%2 == 0 {
			b.WriteByte(':')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// StartRdesktop starts rdesktop for a user of the host, on the host's display.
// The password, and the answer to its question about the certificate, go in on
// standard input.
//
// It asks for TLS and NLA. Where it gets NLA, for which it needs Kerberos, it
// connects again and asks for TLS alone. Its Erect Domain Request is not that
// of MS-RDPBCGR 4.1.5: the integers, 1 and 1, are two bytes each and have no
// lengths (04 00 01 00 01). xrdp takes that. FreeRDP's server does not, so this
// client never gets in there.
func (h *Host) StartRdesktop(who string, in SignIn) *Process {
	h.lab.t.Helper()
	args := []string{"-u", in.User, "-p", "-", "-g", fmt.Sprintf("%dx%d", clientWidth, clientHeight), "-a", "32", "-D"}
	if in.Domain != "" {
		args = append(args, "-d", in.Domain)
	}
	return h.startClient(who, in.Password+"\nyes\n", "rdesktop", append(args, in.Address)...)
}

// StartRemmina starts Remmina for a user of the host, on the host's display,
// with a home and a profile of its own, in which Remmina itself has put the
// password, encrypted.
func (h *Host) StartRemmina(who string, in SignIn) *Process {
	h.lab.t.Helper()
	profile := fmt.Sprintf(remminaProfile, in.Address, in.User, in.Domain, in.Security, clientWidth, clientHeight)
	return h.startClient(who, in.Password+"\n", "bash", "-ec", remminaScript, "remmina", profile)
}

// remminaProfile is a desktop in a window without bars (view mode 4) that is
// not scaled, whatever the certificate.
const remminaProfile = `[remmina]
name=lab
group=
protocol=RDP
server=%s
username=%s
domain=%s
security=%s
cert_ignore=1
resolution_mode=2
resolution_width=%d
resolution_height=%d
colordepth=32
viewmode=4
scale=0
sound=off
disableclipboard=1
ignore-tls-errors=1
`

// remminaScript takes a profile and, on standard input, the password. At its
// end all that Remmina started ends, too: it has its own group of processes.
const remminaScript = `
umask 077
export HOME=$(mktemp -d "$HOME/remmina.XXXXXX")
export XDG_RUNTIME_DIR=$HOME
printf %s "$1" >"$HOME/lab.remmina"
remmina --update-profile "$HOME/lab.remmina" --set-option password
trap 'kill -KILL 0' TERM
dbus-run-session -- remmina -c "$HOME/lab.remmina" </dev/null &
wait $!
`

// startClient starts an RDP client with what it reads first.
func (h *Host) startClient(who, stdin, name string, args ...string) *Process {
	h.lab.t.Helper()
	if h.display == nil {
		h.lab.t.Fatalf("%s has no display; call StartDisplay first", h.name)
	}
	program := name
	if name == "bash" {
		program = args[2]
	}
	if _, err := exec.LookPath(program); err != nil {
		h.lab.t.Skipf("SKIPPED: %s is not installed; run make setup", program)
	}
	cmd := h.Command(h.lab.t.Context(), who, name, args...)
	cmd.Env = append(cmd.Env, h.Display()...)
	cmd.Stdin = strings.NewReader(stdin)
	return h.Start(program, cmd)
}
