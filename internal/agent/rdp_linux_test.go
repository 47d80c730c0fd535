package agent

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"sft"
	"sft/internal/testenv"
)

func TestParseXRDP(t *testing.T) {
	tests := []struct{ name, ini, want string }{
		{"nothing", "", xrdpCertificate},
		{"stock, which leaves it empty", "[Globals]\nini_version=1\ncertificate=\nkey_file=\n\n[Logging]\n", xrdpCertificate},
		{"a certificate", "[Globals]\ncertificate=/etc/xrdp/my.pem\n", "/etc/xrdp/my.pem"},
		{"blanks and CRLF", "[Globals]\r\n  certificate = /a b.pem \r\n", "/a b.pem"},
		{"capitals", "[GLOBALS]\nCertificate=/a.pem\n", "/a.pem"},
		{"another section's", "[Xorg]\ncertificate=/evil.pem\n", xrdpCertificate},
		{"after another section", "[Xorg]\nx=y\n[Globals]\ncertificate=/a.pem\n", "/a.pem"},
		{"before any section", "certificate=/evil.pem\n", xrdpCertificate},
		{"commented out", "[Globals]\n#certificate=/evil.pem\n;certificate=/evil.pem\n", xrdpCertificate},
		{"a key that ends like it", "[Globals]\nxcertificate=/evil.pem\n", xrdpCertificate},
		{"an equals sign in the name", "[Globals]\ncertificate=/a=b.pem\n", "/a=b.pem"},
		{"no last line end", "[Globals]\ncertificate=/a.pem", "/a.pem"},
		{"a very long line before it", "[Globals]\nx=" + strings.Repeat("y", 100_000) + "\ncertificate=/a.pem\n", "/a.pem"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := parseXRDP([]byte(tt.ini)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestProcListeners(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the samples are from a little-endian machine")
	}
	const table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
		"   0: 0100007F:0D3D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n" +
		"   1: 0100007F:C350 0100007F:0D3D 01 00000000:00000000 00:00000000 00000000     0        0 1 1\n" + // is connected
		"   2: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n" +
		"   3: 0000000000000000FFFF00000100007F:0D3E 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n" +
		"   4: 0100007F:0D3D00 0:0 0A\n   5: zz:0D3D 0:0 0A\n   6: 0100007F 0:0 0A\n   7: 01:0D3D 0:0 0A\n   8: 0100007F:0D3D 0A\n"
	got, err := procListeners(strings.NewReader(table))
	if want := "[127.0.0.1:3389 [::]:22 [::ffff:127.0.0.1]:3390]"; fmt.Sprint(got) != want || err != nil {
		t.Errorf("got %v, %v, want %s", got, err, want)
	}
}

// FuzzProcListeners checks that nothing listens that is not in the table.
func FuzzProcListeners(f *testing.F) {
	f.Add("   0: 0100007F:0D3D 00000000:0000 0A 0\n")
	f.Add("0: 0100:C350 0100007F:9CBB 0A\n::: : 0A 0A\n")
	f.Fuzz(func(t *testing.T, table string) {
		got, _ := procListeners(strings.NewReader(table))
		if len(got) > strings.Count(table, "0A") {
			t.Errorf("%v listen", got)
		}
	})
}

// FuzzParseXRDP checks that there is always a file name, in one line, and one
// that was in the settings or is xrdp's own.
func FuzzParseXRDP(f *testing.F) {
	f.Add([]byte("[Globals]\ncertificate=/a.pem\n"))
	f.Add([]byte("[Xorg]\r\ncertificate=\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := parseXRDP(b)
		if got == "" || strings.ContainsAny(got, "\n") || got != xrdpCertificate && !strings.Contains(string(b), got) {
			t.Errorf("got %q", got)
		}
	})
}

// The service of the host is looked at as it is, and not more often than each
// half minute. On Windows its settings come first, and Wine's refuse everybody.
func TestStatusOfAStoppedRDPService(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	said := func() (lines []string) {
		for _, p := range h.problems() {
			if strings.HasPrefix(p, "rdp") {
				lines = append(lines, p)
			}
		}
		return lines
	}
	if got := said(); got != nil {
		t.Fatalf("with the service: %q", got)
	}
	h.rdp.Close()
	if got := said(); got != nil {
		t.Errorf("at once: %q", got)
	}
	h.env.Clock.Advance(rdpSeenFor)
	if got := said(); len(got) != 1 || !strings.HasPrefix(got[0], "rdp: the RDP service of the host cannot be used: nothing listens on "+h.c.RDPAddress+"; ") {
		t.Errorf("without it: %q", got)
	}
	until(t, "the platform knows", func() bool {
		var v sft.Server
		h.env.Do("GET", "/projects/"+testenv.Project+"/servers/"+h.who.Load().ServerID, nil, &v)
		return slices.ContainsFunc(v.Problems, func(p string) bool { return strings.Contains(p, "nothing listens on "+h.c.RDPAddress) })
	})
	l, err := net.Listen("tcp", h.c.RDPAddress)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h.env.Clock.Advance(rdpSeenFor)
	if got := said(); got != nil {
		t.Errorf("with the service again: %q", got)
	}
	if err := os.Remove(h.cert); err != nil {
		t.Fatal(err)
	}
	l.Close()
	h.env.Clock.Advance(rdpSeenFor)
	if got := said(); len(got) != 1 || !strings.Contains(got[0], "certificate") {
		t.Errorf("what refuses first: %q", got)
	}
}
