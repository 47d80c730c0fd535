//go:build linux

package lab

import (
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A ShadowMode is what an RDP server of FreeRDP offers in the negotiation of
// MS-RDPBCGR 2.2.1.2.
type ShadowMode int

// The modes of StartShadow. In all of them the server asks for an account's
// password: with NLA in CredSSP, without it in Client Info, by PAM.
const (
	ShadowNLA  ShadowMode = iota // NLA, and no other: HYBRID_REQUIRED_BY_SERVER
	ShadowBoth                   // NLA or TLS, as the client asks
	ShadowTLS                    // TLS alone
	ShadowRDP                    // standard RDP security alone: SSL_NOT_ALLOWED_BY_SERVER
)

// shadowFlags is how freerdp-shadow-cli is told.
var shadowFlags = map[ShadowMode][]string{
	ShadowNLA:  {"/sec:nla"},
	ShadowBoth: {"-sec-rdp", "+sec-tls", "+sec-nla", "+auth"},
	ShadowTLS:  {"/sec:tls", "+auth"},
	ShadowRDP:  {"/sec:rdp", "+auth"},
}

// Where a host with FreeRDP's server keeps its things.
const (
	shadowHome    = "/var/lib/lab-shadow"
	shadowSAM     = shadowHome + "/sam"
	shadowLock    = shadowHome + "/lock"
	shadowReal    = "/usr/local/libexec/lab/chpasswd"
	shadowDisplay = ":7"
	chpasswd      = "/usr/sbin/chpasswd"

	// ShadowCertificate is the certificate of a server that StartShadow
	// started, in PEM, as RDPCertificateFile in sftd.yaml wants it.
	ShadowCertificate = shadowHome + "/.config/freerdp/shadow/shadow.crt"
)

// A Shadow is a running RDP server of FreeRDP. Everyone who signs in sees the
// same desktop.
type Shadow struct {
	*Process
	Certificate string // path on the host, in PEM; it stays the same when the server starts again
}

// StartShadow starts an RDP server that knows NLA, on XRDPAddress: FreeRDP's,
// showing a desktop of 1024 by 700 in a colour such as "#204060".
//
// NLA needs what /etc/shadow does not hold, so from here on each password that
// chpasswd sets becomes a line of a SAM file as well. A line lasts as long as
// the account's field in /etc/shadow is what chpasswd left there, and the
// account has not expired; that is looked at ten times a second. A password
// that was set before the call is not known: set it again.
//
// After Stop, StartShadow may be called again, with another mode; the desktop
// keeps the first colour.
func (h *Host) StartShadow(colour string, mode ShadowMode) *Shadow {
	h.lab.t.Helper()
	if _, err := os.Stat("/usr/bin/freerdp-shadow-cli"); err != nil {
		h.lab.t.Skipf("SKIPPED: freerdp-shadow-cli is not installed; run make setup")
	}
	if !h.sam {
		h.mirrorPasswords()
		h.shadowDesktop(colour)
		h.sam = true
	}
	args := append([]string{"/port:3389", "/bind-address:127.0.0.1", "/sam-file:" + shadowSAM}, shadowFlags[mode]...)
	cmd := h.Command(h.lab.t.Context(), "", "freerdp-shadow-cli", args...)
	cmd.Env = append(cmd.Env, "HOME="+shadowHome, "DISPLAY="+shadowDisplay)
	s := &Shadow{h.Start("shadow", cmd), ShadowCertificate}
	h.WaitListen(XRDPAddress)
	b, err := h.Read(ShadowCertificate)
	if block, _ := pem.Decode(b); err != nil || block == nil || block.Type != "CERTIFICATE" {
		h.lab.t.Fatalf("%s: the RDP server made no certificate: %v", h.name, err)
	}
	return s
}

// shadowDesktop shows the desktop on a display of its own: the host may have
// another, for people in front of it.
func (h *Host) shadowDesktop(colour string) {
	h.lab.t.Helper()
	ctx := h.lab.t.Context()
	h.Start("shadow-xvfb", h.Command(ctx, "", "Xvfb", shadowDisplay, "-screen", "0", "1024x700x24", "-nolisten", "tcp", "-ac", "-noreset"))
	poll(h.lab.t, h.name+": the display of the RDP server does not answer", func() bool {
		_, err := h.Run("", "xset", "-display", shadowDisplay, "q")
		return err == nil
	})
	h.Write(shadowHome+"/desktop", 0o755, fmt.Appendf(nil, shadowScript, colour))
	cmd := h.Command(ctx, "", shadowHome+"/desktop")
	cmd.Env = append(cmd.Env, "DISPLAY="+shadowDisplay)
	h.Start("shadow-desktop", cmd)
	poll(h.lab.t, h.name+": the desktop of the RDP server does not come up", func() bool {
		cmd := h.Command(ctx, "", "xdotool", "search", "--onlyvisible", "--name", "^lab$")
		cmd.Env = append(cmd.Env, "DISPLAY="+shadowDisplay)
		return cmd.Run() == nil
	})
}

// shadowScript is the desktop of everyone, and what waits for its terminal.
const shadowScript = `#!/bin/sh
[ "$1" != terminal ] || exec xterm -title lab -fa 'DejaVu Sans Mono' -fs 28 -bg white -fg black -geometry 34x9+40+40 -e sh -c '
	printf "\n  the desktop of\n  %%s\n\n  " "$(hostname)"
	exec bash'
xsetroot -solid '%s'
exec openbox --startup "$0 terminal"
`

// mirrorPasswords keeps the SAM file as StartShadow says.
func (h *Host) mirrorPasswords() {
	h.lab.t.Helper()
	h.Must("", "install", "-d", "-m", "700", shadowHome)
	h.Write(shadowSAM, 0o600, nil)
	h.Write(shadowLock, 0o600, nil)
	h.Must("", "mkdir", "-p", filepath.Dir(shadowReal))
	h.Must("", "mv", chpasswd, shadowReal)
	h.Write(chpasswd, 0o755, []byte(samHook))
	done := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				h.pruneSAM()
			case <-stop:
				return
			case <-h.gone:
				return
			}
		}
	}()
	h.lab.t.Cleanup(func() {
		close(stop)
		<-done
	})
}

// samHook stands where chpasswd was: pam_exec shows a new password to a
// program only since Linux-PAM 1.5.3. After the real one has changed a
// password, it writes two lines: what /etc/shadow says now, as a comment, and
// the account with its NT hash, MD4 of the password in UTF-16LE (MS-NLMP
// 3.3.1). No password is in an argument or in the environment.
const samHook = `#!/bin/sh
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
lines=$(cat)
printf '%s\n' "$lines" | ` + shadowReal + ` "$@"
[ $# = 0 ] || exit 0
exec 9>` + shadowLock + `
flock 9
printf '%s\n' "$lines" | while IFS=: read -r user password; do
	hash=$(printf %s "$password" | iconv -f UTF-8 -t UTF-16LE | openssl dgst -md4 -provider legacy -provider default -r)
	{
		awk -F: -v u="$user" '$1 != u && $1 != "#" u' ` + shadowSAM + `
		awk -F: -v u="$user" '$1 == u { print "#" u ":" $2 }' /etc/shadow
		printf '%s:::%s:::\n' "$user" "${hash%% *}"
	} >` + shadowSAM + `.new
	mv ` + shadowSAM + `.new ` + shadowSAM + `
done
`

// pruneSAM takes out the lines of the SAM file that no longer stand for a
// password of /etc/shadow.
func (h *Host) pruneSAM() {
	root := fmt.Sprintf("/proc/%d/root", h.pid)
	lock, err := os.Open(root + shadowLock)
	if err != nil {
		return // the host goes
	}
	defer lock.Close()
	// chpasswd has changed /etc/shadow before the hook asks for the lock: what is
	// taken out too early here, the hook writes right after.
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return
	}
	sam, err1 := os.ReadFile(root + shadowSAM)
	shadow, err2 := os.ReadFile(root + "/etc/shadow")
	if errors.Join(err1, err2) != nil {
		return // usermod replaces the file; there is a next time
	}
	left := pruned(string(sam), string(shadow), time.Now())
	if left == string(sam) {
		return
	}
	next := filepath.Join(root, shadowSAM+".new")
	if os.WriteFile(next, []byte(left), 0o600) == nil {
		os.Rename(next, root+shadowSAM)
	}
}

// pruned returns the pairs of lines that samHook wrote and that still hold.
func pruned(sam, shadow string, now time.Time) string {
	holds := map[string]bool{} // by user:field
	for line := range strings.Lines(shadow) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(f) != 9 {
			continue
		}
		day, err := strconv.ParseInt(f[7], 10, 64) // of expiry, since 1970; none is empty
		holds[f[0]+":"+f[1]] = err != nil || day < 0 || now.Unix() < day*24*60*60
	}
	var b strings.Builder
	keep := false
	for line := range strings.Lines(sam) {
		if pair, ok := strings.CutPrefix(line, "#"); ok {
			keep = holds[strings.TrimSuffix(pair, "\n")]
		}
		if keep {
			b.WriteString(line)
		}
	}
	return b.String()
}
