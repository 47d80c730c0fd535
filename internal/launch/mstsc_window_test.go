package launch

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sft"
)

func TestFit(t *testing.T) {
	full := screen{work: extent{1920, 1032}, frame: extent{16, 39}, dpi: 96}
	tests := []struct {
		name string
		s    screen
		v    View
		want View
	}{
		{"as large as the work area, its frame included", full, View{}, View{Size: "1904x993", place: "0,1,0,0,1920,1032", scale: 100}},
		{"twice as fine", screen{extent{3840, 2064}, extent{32, 78}, 192}, View{}, View{Size: "3808x1986", place: "0,1,0,0,3840,2064", scale: 200}},
		{"an odd width", screen{extent{1367, 728}, extent{16, 39}, 96}, View{}, View{Size: "1350x689", place: "0,1,0,0,1366,728", scale: 100}},
		{"larger than a desktop can be", screen{extent{10240, 8300}, extent{16, 39}, 96}, View{}, View{Size: "8192x8192", place: "0,1,0,0,8208,8231", scale: 100}},
		{"a scale between two", screen{extent{1920, 1032}, extent{16, 39}, 130}, View{}, View{Size: "1904x993", place: "0,1,0,0,1920,1032", scale: 125}},
		{"a scale in the middle of two is the smaller", screen{extent{1920, 1032}, extent{16, 39}, 108}, View{}, View{Size: "1904x993", place: "0,1,0,0,1920,1032", scale: 100}},
		{"a scale beyond all", screen{extent{1920, 1032}, extent{16, 39}, 960}, View{}, View{Size: "1904x993", place: "0,1,0,0,1920,1032", scale: 500}},
		{"a size that was asked for", full, View{Size: "800x600"}, View{Size: "800x600"}},
		{"full screen", full, View{Fullscreen: true}, View{Fullscreen: true}},
		{"all monitors", full, View{MultiMonitor: true}, View{MultiMonitor: true}},
		{"no screen", screen{}, View{}, View{}},
		{"one that is too small", screen{extent{300, 238}, extent{16, 39}, 96}, View{}, View{}},
		{"a frame that cannot be", screen{extent{1920, 1032}, extent{-16, 39}, 96}, View{}, View{}},
		{"an area that cannot be", screen{extent{-1920, 1032}, extent{16, 39}, 96}, View{}, View{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.s.fit(tt.v)
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if err := CheckSize(got.Size); err != nil {
				t.Error(err)
			}
		})
	}
}

// In each way mstsc is told of the window, and of none where a size was asked
// for or Windows does not say.
func TestWindowOfTheWorkArea(t *testing.T) {
	for _, tt := range []struct {
		name    string
		monitor screen
		v       View
		file    []string // lines
		args    []string
	}{
		{"the work area", screen{extent{2880, 1740}, extent{24, 58}, 144}, View{},
			[]string{"desktopwidth:i:2856", "desktopheight:i:1682", "winposstr:s:0,1,0,0,2880,1740", "desktopscalefactor:i:150", "screen mode id:i:1", "smart sizing:i:0", "dynamic resolution:i:1"},
			[]string{"/v:127.3.4.5:40123", "/w:2856", "/h:1682"}},
		{"a size", screen{extent{2880, 1740}, extent{24, 58}, 144}, View{Size: "800x600"},
			[]string{"desktopwidth:i:800", "desktopheight:i:600", "screen mode id:i:1", "smart sizing:i:0", "dynamic resolution:i:1"},
			[]string{"/v:127.3.4.5:40123", "/w:800", "/h:600"}},
		{"not known", screen{}, View{}, []string{"screen mode id:i:1", "smart sizing:i:0", "dynamic resolution:i:1"}, []string{"/v:127.3.4.5:40123"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, how := range []Start{StartFile, StartProcess, StartDirect} {
				dir, err := NewRunDir(t.TempDir(), nil)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { dir.Remove() })
				sys := newPretended()
				sys.monitor = tt.monitor
				args, tr, err := (&mstsc{sys: sys, start: how}).prepare(dir, apartTarget(), tt.v, sft.NewSecret("s"), []byte{7}, true)
				if err != nil {
					t.Fatal(err)
				}
				if how == StartDirect {
					if !slices.Equal(args, tt.args) {
						t.Errorf("%s: %q, want %q", how, args, tt.args)
					}
					tr.end()
					continue
				}
				b, err := os.ReadFile(args[0])
				if err != nil {
					t.Fatal(err)
				}
				f, err := ParseRDPFile(b)
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, s := range f {
					if strings.HasPrefix(s.Name, "desktop") || slices.Contains([]string{"winposstr", "screen mode id", "smart sizing", "dynamic resolution"}, s.Name) {
						got = append(got, s.Name+":"+string(s.Type)+":"+s.Value)
					}
				}
				slices.Sort(got)
				want := slices.Sorted(slices.Values(tt.file))
				if !slices.Equal(got, want) {
					t.Errorf("%s: %q\nwant %q", how, got, want)
				}
			}
		})
	}
}

func TestScalesAreInOrder(t *testing.T) {
	for _, s := range scales {
		if got := scaleFactor(s * 96 / 100); got != s {
			t.Errorf("%s%% is %d", strconv.Itoa(s), got)
		}
	}
}
