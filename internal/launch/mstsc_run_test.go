package launch

import (
	"encoding/hex"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"sft"
	"sft/internal/loopback"
	"sft/internal/rdp"
	"sft/internal/rdp/rdptest"
)

// pretendMSTSC is the RDP client of these tests: it does with its argument
// what mstsc does. unseal opens what the system's protect has sealed, and
// credential returns what is kept for a host. It ends with 1 if it got no
// picture, and with 7 if the secret is still lying there when it has one.
func pretendMSTSC(arg string, unseal func([]byte) ([]byte, error), credential func(target string) (string, []byte, error)) int {
	c := rdptest.Client{User: "alice", NLA: true}
	var password []byte
	at, direct := strings.CutPrefix(arg, "/v:")
	if direct {
		var err error
		host, _, _ := strings.Cut(at, ":")
		if c.User, password, err = credential("TERMSRV/" + host); err != nil {
			return 5
		}
	} else {
		b, err := os.ReadFile(arg)
		if err != nil {
			return 2
		}
		f, err := ParseRDPFile(b)
		if err != nil {
			return 3
		}
		at, _ = f.Get("full address")
		nla, _ := f.Get("enablecredsspsupport")
		c.NLA = nla == "1"
		if sealed, ok := f.Get(passwordSetting); ok {
			if password, err = hex.DecodeString(sealed); err == nil {
				password, err = unseal(password)
			}
			if err != nil {
				return 6
			}
		}
	}
	var units []uint16
	for i := 0; i+1 < len(password); i += 2 {
		units = append(units, uint16(password[i])|uint16(password[i+1])<<8)
	}
	c.Password = sft.NewSecret(string(utf16.Decode(units)))
	conn, err := net.Dial("tcp", at)
	if err != nil {
		return 4
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	got, err := c.Connect(conn)
	if err != nil {
		return 1
	}
	if _, err := io.CopyN(io.Discard, got.Conn, shownInside); err != nil {
		return 1
	}
	if direct {
		host, _, _ := strings.Cut(at, ":")
		if _, _, err := credential("TERMSRV/" + host); err == nil {
			return 7
		}
	} else if exists(arg) {
		return 7
	}
	return 0
}

// running is a Desktop whose RDP client is the pretended mstsc.
func running(t *testing.T, sys system, how Start) (*Desktop, *host, *notes) {
	t.Helper()
	h := newHost(t)
	h.picture = 9 << 10
	l, err := loopback.ListenApart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	front, err := rdp.NewFront("alice", rdp.P256)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SFT_TEST_CLIENT", "mstsc")
	p := &Program{Name: "mstsc", path: self, mstsc: &mstsc{sys: sys}}
	p.How(how)
	if err := p.Ask(t.Context()); err != nil {
		t.Fatal(err)
	}
	front.Proven = p.Proven()
	first, _ := h.open(t.Context(), nil)
	tgt := target
	tgt.Addr, tgt.Fingerprint = l.Addr(), front.Fingerprint
	said := new(notes)
	return &Desktop{Listener: l, First: Ready(first), Open: h.open, Final: func(error) bool { return false }, Front: front, Target: tgt,
		Secret: front.Secret, Thumb: front.Thumbprint(), RunBase: filepath.Join(t.TempDir(), "run"), Program: p, Say: said.add}, h, said
}
