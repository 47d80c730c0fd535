package sshd

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

const (
	print1 = "SHA256:ngAdoF57fl24Dv62PXO8HMzxE7xxPuPQtMoNmFOlrDo"
	print2 = "SHA256:lDlPqoxwzGs0F1DRXyVCJUB0u6bCJc3LgyOzdZKVXFo"
	byCert = "Accepted publickey for ann from 127.0.0.1 port 54112 ssh2: ED25519-CERT " + print1 + " ID sft:session/0198-a/user/u-7 (serial 42) CA ED25519 " + print2
	byKey  = "Accepted publickey for carl from 2001:db8::7 port 22 ssh2: RSA " + print1
	byPass = "Accepted password for carl from 192.0.2.7 port 22 ssh2"
)

func TestParseLogin(t *testing.T) {
	tests := []struct {
		name, message string
		want          Login
	}{
		{"a certificate", byCert, Login{Login: "ann", Method: "publickey", Remote: netip.MustParseAddrPort("127.0.0.1:54112"), Fingerprint: print1, KeyID: "sft:session/0198-a/user/u-7", CA: print2}},
		{"a key", byKey, Login{Login: "carl", Method: "publickey", Remote: netip.MustParseAddrPort("[2001:db8::7]:22"), Fingerprint: print1}},
		{"a password", byPass, Login{Login: "carl", Method: "password", Remote: netip.MustParseAddrPort("192.0.2.7:22")}},
		{"a prompt", "Accepted keyboard-interactive/pam for carl from 192.0.2.7 port 22 ssh2", Login{Login: "carl", Method: "keyboard-interactive/pam", Remote: netip.MustParseAddrPort("192.0.2.7:22")}},
		{"an id with another certificate's end in it",
			"Accepted publickey for eve from 192.0.2.7 port 22 ssh2: ED25519-CERT " + print1 + " ID sft:session/s/user/u (serial 1) CA ED25519 " + print2 + " (serial 9) CA ED25519 " + print1,
			Login{Login: "eve", Method: "publickey", Remote: netip.MustParseAddrPort("192.0.2.7:22")}},
	}
	for _, tt := range tests {
		if got, ok := ParseLogin(tt.message); !ok || got != tt.want {
			t.Errorf("%s: %+v, %v; want %+v", tt.name, got, ok, tt.want)
		}
	}
	if s, u := tests[0].want.Session(); s != "0198-a" || u != "u-7" {
		t.Errorf("session %q of %q", s, u)
	}
	for _, id := range []string{"", "sft:session/s/user/", "xsft:session/s/user/u", "sft:session/s/user/u ", "sft:session/s/user/u/more", "sft:session//user/u"} {
		if s, u := (Login{KeyID: id}).Session(); s != "" || u != "" {
			t.Errorf("%q is session %q of %q", id, s, u)
		}
	}
	for name, message := range map[string]string{
		"the word of a process without rights": byPass + " [preauth]",
		"a name that nobody has":               "Invalid user Accepted password for root from 192.0.2.1 port 1 ssh2 from 192.0.2.7 port 22",
		"a failure":                            "Failed password for ann from 127.0.0.1 port 1 ssh2",
		"a name with a sign-in in it":          "Accepted password for x from 192.0.2.1 port 1 ssh2: y from 192.0.2.7 port 22 ssh2 z",
		"more than one line":                   byPass + "\n",
		"a line of somebody else before it":    "x\n" + byPass,
		"a name with a space":                  "Accepted password for a b from 192.0.2.7 port 22 ssh2",
		"no address":                           "Accepted password for a from ::: port 22 ssh2",
		"no port":                              "Accepted password for a from 192.0.2.7 port 65536 ssh2",
		"a control character":                  "Accepted password for a\x1b from 192.0.2.7 port 22 ssh2",
		"nothing":                              "",
		"very long":                            byKey + strings.Repeat("x", maxMessage),
	} {
		if got, ok := ParseLogin(message); ok || got.Fingerprint != "" {
			t.Errorf("%s is %+v", name, got)
		}
	}
}

func entry(message, uid, exe string) string {
	m, _ := json.Marshal(message)
	return fmt.Sprintf(`{"MESSAGE":%s,"_UID":%q,"_EXE":%q,"_PID":"77","__REALTIME_TIMESTAMP":"1700000000000000","__CURSOR":"s=1","_BOOT_ID":"0daf45ec3e4c4f4fa4ebc1d1d4a7e2ac","__MONOTONIC_TIMESTAMP":"1500000","SYSLOG_IDENTIFIER":"sshd","_COMM":"sshd"}`, m, uid, exe)
}

func TestParseJournal(t *testing.T) {
	programs := []string{"/usr/sbin/sshd", ""}
	l, cursor, ok := parseJournal([]byte(entry(byCert, "0", "/usr/sbin/sshd")), programs)
	if !ok || cursor != "s=1" || l.PID != 77 || l.Login != "ann" || !l.At.Equal(time.Unix(1700000000, 0)) {
		t.Errorf("%+v, %q, %v", l, cursor, ok)
	}
	if l.Boot != "0daf45ec3e4c4f4fa4ebc1d1d4a7e2ac" || l.Up != 1500*time.Millisecond {
		t.Errorf("it was %v after the boot %q", l.Up, l.Boot)
	}
	for name, line := range map[string]string{
		"another's process":         entry(byCert, "1000", "/usr/sbin/sshd"),
		"another program":           entry(byCert, "0", "/usr/bin/logger"),
		"no program":                entry(byCert, "0", ""),
		"bytes for a message":       strings.Replace(entry("x", "0", "/usr/sbin/sshd"), `"x"`, `[65,99]`, 1),
		"a list of programs":        strings.Replace(entry(byCert, "0", "X"), `"X"`, `["/usr/sbin/sshd","x"]`, 1),
		"a message that is nothing": strings.Replace(entry("x", "0", "/usr/sbin/sshd"), `"x"`, `null`, 1),
		"no JSON":                   byCert,
		"nothing":                   "",
	} {
		if l, _, ok := parseJournal([]byte(line), programs); ok {
			t.Errorf("%s: %+v", name, l)
		}
	}
}

func TestParseLine(t *testing.T) {
	for _, line := range []string{"Nov  7 12:00:01 web01 sshd[77]: " + byCert, "2026-11-27T12:11:46.123456+00:00 web01 sshd-session[77]: " + byCert, "2026-11-27T12:11:46Z web01 sshd[77]: " + byCert} {
		if l, ok := parseLine(line); !ok || l.PID != 77 || l.Login != "ann" {
			t.Errorf("%q is %+v, %v", line, l, ok)
		}
	}
	for _, line := range []string{
		"Nov  7 12:00:01 web01 sshd: " + byCert,
		"Nov  7 12:00:01 web01 su[9]: sshd[77]: " + byCert,
		"Nov  7 12:00:01 web01 eve: Nov  7 12:00:01 web01 sshd[77]: " + byCert,
		"Nov  7 12:00:01 web01 sshd[1]: " + byCert,
		"Nov  7 12:00:01 web01 sshd[77]: error: " + byCert,
		byCert, "",
	} {
		if l, ok := parseLine(line); ok {
			t.Errorf("%q is %+v", line, l)
		}
	}
}

// FuzzParseLogin checks that a sign-in is told of only by a message that begins
// and ends as sshd's own does, whatever is in it, and that what is told fits
// one line.
func FuzzParseLogin(f *testing.F) {
	for _, s := range []string{byCert, byKey, byPass, "Invalid user " + byCert, byPass + " [preauth]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, m string) {
		l, ok := ParseLogin(m)
		if !ok {
			if l != (Login{}) {
				t.Errorf("%q is refused, and is %+v", m, l)
			}
			return
		}
		want := fmt.Sprintf("Accepted %s for %s from ", l.Method, l.Login)
		if !strings.HasPrefix(m, want) || strings.HasSuffix(m, "[preauth]") && l.KeyID != "" || !l.Remote.IsValid() ||
			strings.ContainsAny(l.Login+l.Method+l.KeyID+l.CA+l.Fingerprint, " \n\r\x00") || (l.KeyID == "") != (l.CA == "") {
			t.Errorf("%q is %+v", m, l)
		}
		if s, u := l.Session(); s != "" && !strings.HasSuffix(m, " CA "+strings.Fields(m)[len(strings.Fields(m))-2]+" "+l.CA) {
			t.Errorf("%q is session %s of %s, without a CA at its end", m, s, u)
		}
		if j, _, ok := parseJournal([]byte(entry(m, "0", "/x")), []string{"/x"}); !ok || j.Login != l.Login {
			t.Errorf("%q is another one in the journal: %+v", m, j)
		}
	})
}

func FuzzParseJournal(f *testing.F) {
	f.Add([]byte(entry(byCert, "0", "/x")))
	f.Add([]byte(entry(byCert, "1", "/x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, _, ok := parseJournal(b, []string{"/x"}); ok && (!strings.Contains(string(b), `/`) || l.Login == "") {
			t.Errorf("%q is %+v", b, l)
		}
		if l, ok := parseLine(string(b)); ok && (l.PID < 2 || l.Login == "") {
			t.Errorf("%q is %+v", b, l)
		}
	})
}
