//go:build unix

package launch

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"sft"
)

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
