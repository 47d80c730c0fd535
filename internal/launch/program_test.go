package launch

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sft"
)

var target = Target{Addr: netip.MustParseAddrPort("127.0.0.1:40123"), Login: "alice", Server: "web01", Fingerprint: strings.Repeat("0a", 32), Channels: sft.AllChannels}

func TestFreeRDPArguments(t *testing.T) {
	pin := "/cert:fingerprint:sha256:" + strings.TrimSuffix(strings.Repeat("0a:", 32), ":")
	fixed := []string{"/bin/x", "/v:127.0.0.1:40123", "/u:alice", "/from-stdin:force", pin, "/t:alice@web01",
		"/dynamic-resolution", "+clipboard", "+auto-reconnect", "/log-level:WARN"}
	tests := []struct {
		name    string
		version int
		view    View
		front   bool
		want    []string // after the fixed ones
	}{
		{"without a size the window fills the work area", 2, View{}, false, []string{"-sec-rdp", "/workarea"}},
		{"FreeRDP 3 says it in its own way that there is no going back to RDP security", 3, View{}, false, []string{"/sec:rdp:off", "/workarea"}},
		{"a size", 2, View{Size: "1280x800"}, false, []string{"-sec-rdp", "/size:1280x800"}},
		{"full screen", 2, View{Fullscreen: true}, false, []string{"-sec-rdp", "/f"}},
		{"with a front it is TLS", 2, View{}, true, []string{"/sec:tls", "/workarea"}},
		{"with a front it is TLS in FreeRDP 3, too", 3, View{}, true, []string{"/sec:tls", "/workarea"}},
		{"all monitors", 2, View{Fullscreen: true, MultiMonitor: true}, false, []string{"-sec-rdp", "/f", "/multimon"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := &Program{Name: "xfreerdp", path: "/bin/x", freeRDP: tt.version}
			if got, want := p.argv(target, tt.view, "", tt.front), append(fixed[:len(fixed):len(fixed)], tt.want...); !reflect.DeepEqual(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

// What the project does not allow is not asked for.
func TestChannelsAreAskedForAsAllowed(t *testing.T) {
	none := target
	none.Channels = sft.Channels{}
	p := &Program{Name: "xfreerdp", path: "/bin/x", freeRDP: 2}
	if got := p.argv(none, View{}, "", true); !slices.Contains(got, "-clipboard") || slices.Contains(got, "+clipboard") {
		t.Errorf("the arguments are %q", got)
	}
	b, err := connectionFile(none, View{}, accounting{}).Text()
	if err != nil {
		t.Fatal(err)
	}
	file := string(b)
	for _, line := range []string{"redirectclipboard:i:0", "redirectdrives:i:0", "redirectprinters:i:0", "redirectcomports:i:0", "redirectsmartcards:i:0", "drivestoredirect:s:", "devicestoredirect:s:", "usbdevicestoredirect:s:", "camerastoredirect:s:", "redirectwebauthn:i:0", "audiomode:i:2", "audiocapturemode:i:0"} {
		if !strings.Contains(file, line+"\r\n") {
			t.Errorf("the file lacks %s:\n%s", line, file)
		}
	}
}

func TestTargetCheck(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Target)
		code   sft.Code
	}{
		{"a login that is an option", func(t *Target) { t.Login = "-x" }, sft.Invalid},
		{"a login with a line break", func(t *Target) { t.Login = "a\nb" }, sft.Invalid},
		{"a server with a blank", func(t *Target) { t.Server = "web01 /p:x" }, sft.Invalid},
		{"a fingerprint that is short", func(t *Target) { t.Fingerprint = "0a" }, sft.Internal},
		{"a fingerprint in capitals", func(t *Target) { t.Fingerprint = strings.Repeat("0A", 32) }, sft.Internal},
		{"no fingerprint", func(t *Target) { t.Fingerprint = "" }, sft.Internal},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bad := target
			tt.change(&bad)
			if err := bad.Check(); err == nil || sft.CodeOf(err) != tt.code {
				t.Errorf("got %v, want %s", err, tt.code)
			}
		})
	}
	dotted := target
	dotted.Login = "alice.m" // as on Windows
	if err := dotted.Check(); err != nil {
		t.Error(err)
	}
	if err := target.Check(); err != nil {
		t.Errorf("a good target: %v", err)
	}
}

func TestTemplate(t *testing.T) {
	p := &Program{Name: "other", path: "/bin/other", args: []string{"--to={address}", "{host}", "{port}", "{user}@{server}", "{fingerprint}", "{file}"}}
	want := []string{"/bin/other", "--to=127.0.0.1:40123", "127.0.0.1", "40123", "alice@web01", target.Fingerprint, "/run/x.rdp"}
	if got := p.argv(target, View{}, "/run/x.rdp", false); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestWords(t *testing.T) {
	tests := []struct {
		name, in string
		want     []string
	}{
		{"blanks part words", " a  b\tc ", []string{"a", "b", "c"}},
		{"quotes keep blanks", `a "b c" 'd e'`, []string{"a", "b c", "d e"}},
		{"a quote inside the other kind is a letter", `"it's" '"'`, []string{"it's", `"`}},
		{"an empty word needs quotes", `a ""`, []string{"a", ""}},
		{"nothing else is special", `a;b $c \d %s`, []string{"a;b", "$c", `\d`, "%s"}},
		{"nothing", "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := Words(tt.in); err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestCheckSize(t *testing.T) {
	for _, good := range []string{"", "1280x800", "3840x2160"} {
		if err := CheckSize(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"x", "0x0", "10x10", "1280x", "1280X800", "1280x800 /p:x", "100000x100", "-100x100"} {
		if err := CheckSize(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestFileName(t *testing.T) {
	for server, want := range map[string]string{
		"web01": "web01.rdp", "web01.example.com": "web01.example.com.rdp", "fd00::1": "fd00--1.rdp", "con": "server-con.rdp", "Nul.example.com": "server-Nul.example.com.rdp",
		"console": "console.rdp", "com1": "server-com1.rdp", "com10": "com10.rdp", strings.Repeat("a", 253): strings.Repeat("a", 64) + ".rdp",
	} {
		if got := (Target{Server: server}).fileName(); got != want {
			t.Errorf("%.20s: %q, want %q", server, got, want)
		}
	}
}
