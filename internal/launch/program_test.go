package launch

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
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
	file := string(connectionFile(none, View{}))
	for _, line := range []string{"redirectclipboard:i:0", "redirectdrives:i:0", "redirectprinters:i:0", "redirectcomports:i:0", "redirectsmartcards:i:0", "audiomode:i:2", "audiocapturemode:i:0"} {
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
	if err := target.Check(); err != nil {
		t.Errorf("a good target: %v", err)
	}
}

func TestFind(t *testing.T) {
	bin := t.TempDir()
	program := func(name, script string) string {
		path := filepath.Join(bin, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	two := program("xfreerdp", "echo This is FreeRDP version 2.11.7 '(2.11.7)'; exit 1")
	three := program("sdl-freerdp", "echo This is FreeRDP version 3.9.0 '(n/a)'")
	wl3 := program("wlfreerdp3", "exit 9")
	other := program("other", "")
	program("wlfreerdp", "echo what")
	t.Setenv("PATH", bin)
	x11 := map[string]string{"DISPLAY": ":0"}
	wayland := map[string]string{"WAYLAND_DISPLAY": "wayland-0"}
	tests := []struct {
		name, choice string
		env          map[string]string
		want         *Program
		msg          string
	}{
		{"the best FreeRDP there is", "", x11, &Program{Name: "xfreerdp", path: two, freeRDP: 2}, ""},
		{"on Wayland alone, not one for X11", "", wayland, &Program{Name: "sdl-freerdp", path: three, freeRDP: 3}, ""},
		{"a FreeRDP by its name", "wlfreerdp3", x11, &Program{Name: "wlfreerdp3", path: wl3, freeRDP: 3}, ""},
		{"a FreeRDP by its path", two, x11, &Program{Name: "xfreerdp", path: two, freeRDP: 2}, ""},
		{"any program, without a screen of ours", "other -c '{file} x'", nil, &Program{Name: "other", path: other, args: []string{"-c", "{file} x"}}, ""},
		{"no screen", "", nil, nil, "there is no screen to show a desktop on"},
		{"a program that is not there", "none {file}", x11, nil, `RDP client "none" is not installed`},
		{"a program that is not told where to connect", "other -x", x11, nil, `RDP client "other -x" is not told where to connect`},
		{"a placeholder that there is none of", "other {file} {password}", x11, nil, `RDP client "other {file} {password}" has the unknown placeholder {password}`},
		{"a quote without end", "other '{file}", x11, nil, `command "other '{file}" has a quote that does not end`},
		{"a FreeRDP that does not say its version", "wlfreerdp", x11, nil, filepath.Join(bin, "wlfreerdp") + " does not say which FreeRDP it is"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Find(tt.choice, func(k string) string { return tt.env[k] })
			if err == nil {
				err = got.Ask(t.Context())
			}
			if err != nil {
				got = nil
			}
			msg := ""
			if e, ok := errors.AsType[*sft.Error](err); ok {
				msg = e.Msg
			} else if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) || msg != tt.msg {
				t.Errorf("got  %+v %q\nwant %+v %q", got, msg, tt.want, tt.msg)
			}
		})
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

func TestConnectionFile(t *testing.T) {
	got := string(connectionFile(target, View{Size: "1280x800", Fullscreen: true}))
	want := strings.ReplaceAll(`full address:s:127.0.0.1:40123
username:s:alice
enablecredsspsupport:i:1
redirectclipboard:i:1
dynamic resolution:i:1
autoreconnection enabled:i:1
screen mode id:i:2
desktopwidth:i:1280
desktopheight:i:800
`, "\n", "\r\n")
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
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
