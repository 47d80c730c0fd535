package launch

import (
	"slices"
	"strings"
	"testing"

	"sft"
)

func TestEditMimeApps(t *testing.T) {
	const ours = "x-scheme-handler/sft=sft-url.desktop\nx-scheme-handler/scaleft=sft-url.desktop\n"
	for _, tt := range []struct{ name, old, on, off string }{
		{"no file", "", "[Default Applications]\n" + ours, ""},
		{"other groups", "[Added Associations]\nx-scheme-handler/sft=a.desktop\n", "[Added Associations]\nx-scheme-handler/sft=a.desktop\n[Default Applications]\n" + ours, "[Added Associations]\nx-scheme-handler/sft=a.desktop\n"},
		{"others' defaults", "# mine\n\n[Default Applications]\ntext/html=b.desktop;\n[Added Associations]\na/b=c\n", "# mine\n\n[Default Applications]\n" + ours + "text/html=b.desktop;\n[Added Associations]\na/b=c\n", "# mine\n\n[Default Applications]\ntext/html=b.desktop;\n[Added Associations]\na/b=c\n"},
		{"somebody else's handler", "[Default Applications]\nx-scheme-handler/sft = x.desktop;\nx-scheme-handler/sftp=y\n", "[Default Applications]\n" + ours + "x-scheme-handler/sftp=y\n", "[Default Applications]\nx-scheme-handler/sft = x.desktop;\nx-scheme-handler/sftp=y\n"},
		{"ours, twice", "[Default Applications]\n" + ours + ours + "a/b=c", "[Default Applications]\n" + ours + "a/b=c\n", "[Default Applications]\na/b=c\n"},
	} {
		for on, want := range map[bool]string{true: tt.on, false: tt.off} {
			if got, err := editMimeApps([]byte(tt.old), on); string(got) != want || err != nil {
				t.Errorf("%s, %v: got\n%s, %v, want\n%s", tt.name, on, got, err, want)
			}
		}
	}
	for _, bad := range []string{"a\x00b", strings.Repeat("a", maxMimeApps+1)} {
		if got, err := editMimeApps([]byte(bad), true); sft.CodeOf(err) != sft.Invalid || got != nil {
			t.Errorf("%d bytes: got %d, %v", len(bad), len(got), err)
		}
	}
}

// FuzzEditMimeApps checks that both schemes are ours after it, once, and not
// after that; that doing it again changes nothing, and that nobody else's line
// is lost, changed or moved.
func FuzzEditMimeApps(f *testing.F) {
	f.Add("[Default Applications]\nx-scheme-handler/sft=sft-url.desktop\n[a]\nb=c")
	f.Add("\n\n[Default Applications]\r\n[Default Applications]\n")
	f.Fuzz(func(t *testing.T, old string) {
		on, err := editMimeApps([]byte(old), true)
		if err != nil {
			return
		}
		if again, err := editMimeApps(on, true); string(again) != string(on) || err != nil {
			t.Errorf("%q, then %q, %v", on, again, err)
		}
		off, err := editMimeApps(on, false)
		if err != nil || strings.Count(string(on), "\nx-scheme-handler/sft=sft-url.desktop\nx-scheme-handler/scaleft=sft-url.desktop\n") < 1 {
			t.Errorf("%q, then %q, %v", on, off, err)
		}
		others := func(s string) (list []string) {
			for _, l := range strings.Split(strings.TrimSuffix(s, "\n"), "\n") {
				if !strings.Contains(l, "x-scheme-handler/s") && l != "[Default Applications]" {
					list = append(list, l)
				}
			}
			return list
		}
		if a, b := others(old), others(string(off)); strings.TrimSuffix(old, "\n") != "" && !slices.Equal(a, b) {
			t.Errorf("%q became %q", a, b)
		}
	})
}

func TestCheckQuotable(t *testing.T) {
	for p, good := range map[string]bool{
		"/usr/bin/sft": true, "/home/a b/sft": true, `C:\Program Files\sft.exe`: true, `C:\Users\O'Brien\sft.exe`: true,
		"": false, `/a"b`: false, "/a%b": false, "/a`b": false, "/a$b": false, `/a\b`: false, "/a\nb": false, "/a;b": false, `C:\a"b`: false, `C:\%a%`: false,
	} {
		if err := checkQuotable(p); (err == nil) != good || !good && sft.CodeOf(err) != sft.Invalid {
			t.Errorf("%q: %v", p, err)
		}
	}
}
