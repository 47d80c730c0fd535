package agent

import (
	"strings"
	"testing"
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
