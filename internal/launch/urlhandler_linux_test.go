package launch

import (
	"os"
	"path/filepath"
	"testing"

	"sft"
)

func TestRegisterLinks(t *testing.T) {
	home := t.TempDir()
	getenv := func(k string) string { return map[string]string{"HOME": home, "XDG_DATA_HOME": "not/full"}[k] }
	list, real := filepath.Join(home, ".config", "mimeapps.list"), filepath.Join(home, "dotfiles.list")
	if err := os.Mkdir(filepath.Dir(list), 0o700); err != nil {
		t.Fatal(err)
	}
	const before = "[Default Applications]\ntext/html=b.desktop\n"
	if err := os.WriteFile(real, []byte(before), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, list); err != nil {
		t.Fatal(err)
	}
	if err := RegisterLinks("/opt/a b/sft", getenv); err != nil {
		t.Fatal(err)
	}
	entry := filepath.Join(home, ".local/share/applications", desktopFile)
	want := `[Desktop Entry]
Type=Application
Name=sft
Comment=Opens links to servers
NoDisplay=true
Terminal=true
Exec="/opt/a b/sft" open-url -- %u
MimeType=x-scheme-handler/sft;x-scheme-handler/scaleft;
`
	if b, err := os.ReadFile(entry); string(b) != want || err != nil {
		t.Errorf("the entry is\n%s, %v", b, err)
	}
	check := func(want string) {
		t.Helper()
		b, err := os.ReadFile(real)
		i, lerr := os.Lstat(list)
		m, serr := os.Stat(real)
		if err != nil || lerr != nil || serr != nil || string(b) != want || i.Mode()&os.ModeSymlink == 0 || m.Mode().Perm() != 0o640 {
			t.Errorf("the list is\n%s, %v, %v", b, err, i.Mode())
		}
	}
	check("[Default Applications]\nx-scheme-handler/sft=sft-url.desktop\nx-scheme-handler/scaleft=sft-url.desktop\ntext/html=b.desktop\n")
	for range 2 {
		if err := UnregisterLinks(getenv); err != nil {
			t.Fatal(err)
		}
		check(before)
		if _, err := os.Stat(entry); err == nil {
			t.Error("the entry is still there")
		}
	}
	if err := RegisterLinks(`/opt/"/sft`, getenv); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("a path that cannot be quoted: %v", err)
	}
	check(before)
}

func TestAskBy(t *testing.T) {
	for argv, want := range map[string]bool{"/bin/true": true, "/bin/false": false} {
		if yes, err := askBy(t.Context(), []string{argv}); yes != want || err != nil {
			t.Errorf("%s: %v, %v", argv, yes, err)
		}
	}
	for _, argv := range [][]string{{"/nowhere"}, {"/bin/sh", "-c", "exit 3"}, {"/bin/sh", "-c", "kill $$"}} {
		if yes, err := askBy(t.Context(), argv); yes || err == nil {
			t.Errorf("%q: %v, %v", argv, yes, err)
		}
	}
	if yes, err := Question(t.Context(), func(string) string { return "" }, "?"); yes || err != ErrNobodyToAsk {
		t.Errorf("without a screen: %v, %v", yes, err)
	}
}
