package sshd

import (
	"encoding/json"
	"math"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A Login is somebody who has signed in, as the SSH server's log tells it.
type Login struct {
	At time.Time // zero: just now
	// Boot and Up are when it was by a clock that nobody sets: the boot, and for
	// how long the machine had run since, without the time that it slept. Boot is
	// empty where the log does not say so.
	Boot   string
	Up     time.Duration
	PID    int // of the server's process for that person
	Login  string
	Method string // publickey, password, …
	Remote netip.AddrPort
	// Fingerprint is that of the key, if it was one: SHA256:…
	Fingerprint string
	// KeyID and CA are the certificate's, if it was one: what its signer calls
	// it, and the fingerprint of the signer's key. Only the two together say
	// something.
	KeyID, CA string
}

// Session and User are what a key id of the platform names; both are empty for
// any other. Whoever asks has compared CA with the platform's.
func (l Login) Session() (session, user string) {
	m := keyIDRE.FindStringSubmatch(l.KeyID)
	if m == nil {
		return "", ""
	}
	return m[1], m[2]
}

var (
	keyIDRE = regexp.MustCompile(`^sft:session/([A-Za-z0-9_-]{1,64})/user/([A-Za-z0-9_-]{1,64})$`)
	// acceptedRE is what auth.c of OpenSSH logs, whole: the message of a process
	// without rights, which sshd passes on, ends in " [preauth]".
	acceptedRE = regexp.MustCompile(`^Accepted ([a-z-]{1,32}(?:/[a-z-]{1,32})?) for ([^ ]{1,64}) from ([0-9A-Fa-f:.]{2,45})(?:%[A-Za-z0-9_.-]{1,16})? port ([0-9]{1,5}) ssh2(?:: (.*))?$`)
	keyStartRE = regexp.MustCompile(`^[A-Za-z0-9-]{2,20} (SHA256|MD5):`)
	keyRE      = regexp.MustCompile(`^[A-Za-z0-9-]{2,20} (SHA256:[A-Za-z0-9+/]{43})(?: ID ([^ ]{1,200}) \(serial [0-9]{1,20}\) CA [A-Za-z0-9-]{2,20} (SHA256:[A-Za-z0-9+/]{43}))?$`)
)

// maxMessage caps a message of the log, in bytes.
const maxMessage = 4 << 10

// ParseLogin reads a message of the SSH server. Its parts may be of anybody's
// making, so it is taken only if every character is where it has to be.
func ParseLogin(message string) (Login, bool) {
	if len(message) > maxMessage {
		return Login{}, false
	}
	m := acceptedRE.FindStringSubmatch(message)
	if m == nil {
		return Login{}, false
	}
	addr, err := netip.ParseAddr(m[3])
	port, err2 := strconv.ParseUint(m[4], 10, 16)
	if err != nil || err2 != nil || strings.ContainsFunc(message, func(r rune) bool { return r < ' ' || r > '~' }) {
		return Login{}, false
	}
	switch {
	case m[1] == "publickey":
		if !keyStartRE.MatchString(m[5]) {
			return Login{}, false
		}
	case m[5] != "" && m[1] != "hostbased" && !strings.HasPrefix(m[1], "gssapi"):
		return Login{}, false // the rest is a part of an unusual name
	}
	l := Login{Method: m[1], Login: m[2], Remote: netip.AddrPortFrom(addr, uint16(port))}
	if k := keyRE.FindStringSubmatch(m[5]); k != nil {
		l.Fingerprint, l.KeyID, l.CA = k[1], k[2], k[3]
	}
	return l, true
}

// journalEntry is what a line of journalctl has of use: systemd.journal-fields(7).
// Those that begin with _ are the journal's own word; the others anybody's.
type journalEntry struct {
	Message  json.RawMessage `json:"MESSAGE"`
	PID      string          `json:"_PID"`
	UID      string          `json:"_UID"`
	Exe      string          `json:"_EXE"`
	Realtime string          `json:"__REALTIME_TIMESTAMP"`
	Boot     string          `json:"_BOOT_ID"`
	Up       string          `json:"__MONOTONIC_TIMESTAMP"`
	Cursor   string          `json:"__CURSOR"`
}

// parseJournal reads a line of journalctl --output=json. The message counts
// only if a program of programs has sent it as root. cursor is the entry's place
// in the journal, if it has one.
func parseJournal(line []byte, programs []string) (l Login, cursor string, ok bool) {
	var e journalEntry
	if json.Unmarshal(line, &e) != nil {
		return Login{}, "", false
	}
	cursor = e.Cursor
	known := false
	for _, p := range programs {
		known = known || p != "" && e.Exe == p
	}
	var message string
	if e.UID != "0" || !known || json.Unmarshal(e.Message, &message) != nil { // other than text is a list of bytes
		return Login{}, cursor, false
	}
	if l, ok = ParseLogin(message); !ok {
		return Login{}, cursor, false
	}
	l.PID, _ = strconv.Atoi(e.PID)
	if us, err := strconv.ParseInt(e.Realtime, 10, 64); err == nil && us > 0 {
		l.At = time.UnixMicro(us).UTC()
	}
	if us, err := strconv.ParseInt(e.Up, 10, 64); err == nil && us > 0 && us < math.MaxInt64/1000 {
		l.Boot, l.Up = e.Boot, time.Duration(us)*time.Microsecond
	}
	return l, cursor, true
}

// fileRE is a line of syslog: the traditional time or that of RFC 3339, the
// host, program and process.
var fileRE = regexp.MustCompile(`^(?:[A-Z][a-z]{2} [ 0-9][0-9] [0-9:]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,18}(?:Z|[+-][0-9]{2}:?[0-9]{2})) [A-Za-z0-9._-]{1,255} (?:sshd|sshd-session)\[([0-9]{1,10})\]: (.*)$`)

// parseLine reads a line of a log file. Whoever may write to syslog can have
// forged it: the process has to be looked at.
func parseLine(line string) (Login, bool) {
	if len(line) > maxMessage+400 {
		return Login{}, false
	}
	m := fileRE.FindStringSubmatch(line)
	if m == nil {
		return Login{}, false
	}
	l, ok := ParseLogin(m[2])
	if !ok {
		return Login{}, false
	}
	l.PID, _ = strconv.Atoi(m[1])
	return l, l.PID > 1
}
