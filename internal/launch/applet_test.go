package launch

import (
	"encoding/xml"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// appleValue reads an expression as appleText writes it: texts in quotes and
// characters by number, joined by "&". It reports whether that is all there is.
func appleValue(s string) (value string, ok bool) {
	for {
		if s == "" || s[0] != '"' {
			return "", false
		}
		i := 1
		for ; i < len(s) && s[i] != '"'; i++ {
			if s[i] == '\\' {
				i++
			}
			if i == len(s) {
				return "", false
			}
			value += s[i : i+1]
		}
		if i == len(s) {
			return "", false
		}
		if s = s[i+1:]; s == "" {
			return value, true
		}
		number, rest, found := strings.Cut(strings.TrimPrefix(s, " & (character id "), ") & ")
		n, err := strconv.Atoi(number)
		if !found || err != nil {
			return "", false
		}
		value, s = value+string(rune(n)), rest
	}
}

func TestAppletScript(t *testing.T) {
	want := `on open location theLink
	set thePath to "/Users/Ren" & (character id 233) & "/a b/sft"
	try
		do shell script (quoted form of thePath) & " open-url -- " & (quoted form of theLink)
	on error theReason
		activate
		display alert "sft" message theReason as critical
	end try
end open location
`
	if got := string(appletScript("/Users/René/a b/sft")); got != want {
		t.Errorf("the script is\n%s", got)
	}
}

// FuzzAppletScript checks that whatever the path of sft is, it is one value of
// the script and nothing else of it changes.
func FuzzAppletScript(f *testing.F) {
	for _, s := range []string{"/usr/local/bin/sft", `/a" & (do shell script "id") & "/sft`, `/a\`, `/a\" & x & "`, "/Übung/\U0001f600/sft", "/a\nend open location\n", "/$(id)/`id`/'/sft", "\u2028¬"} {
		f.Add(s)
	}
	before, after, _ := strings.Cut(string(appletScript("X")), `"X"`)
	f.Fuzz(func(t *testing.T, program string) {
		if !utf8.ValidString(program) {
			return
		}
		s, ok := strings.CutPrefix(string(appletScript(program)), before)
		s, ok2 := strings.CutSuffix(s, after)
		if got, whole := appleValue(s); !ok || !ok2 || !whole || got != program || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q became %s", program, s)
		}
	})
}

// node is an element of a property list.
type node struct {
	XMLName xml.Name
	Text    string `xml:",chardata"`
	Nodes   []node `xml:",any"`
}

// under is what a dict has under a key.
func (n node) under(key string) node {
	for i := 0; i+1 < len(n.Nodes); i += 2 {
		if n.Nodes[i].XMLName.Local == "key" && n.Nodes[i].Text == key {
			return n.Nodes[i+1]
		}
	}
	return node{}
}

func TestAppletPlist(t *testing.T) {
	var list node
	if err := xml.Unmarshal(appletPlist(), &list); err != nil || list.XMLName.Local != "plist" || len(list.Nodes) != 1 {
		t.Fatalf("%v, %+v", err, list)
	}
	root := list.Nodes[0]
	for key, want := range map[string]string{"CFBundleIdentifier": appletID, "CFBundleExecutable": "applet", "CFBundlePackageType": "APPL"} {
		if n := root.under(key); n.XMLName.Local != "string" || n.Text != want {
			t.Errorf("%s is %q", key, n.Text)
		}
	}
	if n := root.under("LSUIElement"); n.XMLName.Local != "true" {
		t.Errorf("LSUIElement is %q", n.XMLName.Local)
	}
	types := root.under("CFBundleURLTypes")
	if types.XMLName.Local != "array" || len(types.Nodes) != 1 {
		t.Fatalf("types: %+v", types)
	}
	var schemes []string
	for _, n := range types.Nodes[0].under("CFBundleURLSchemes").Nodes {
		schemes = append(schemes, n.Text)
	}
	if !slices.Equal(schemes, LinkSchemes) {
		t.Errorf("the schemes are %q", schemes)
	}
}

// The words of a command reach the program as they are, by a real shell, and
// the script does not stay.
func TestTerminalScript(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("SKIPPED: there is no sh")
	}
	dir := t.TempDir()
	program, out := filepath.Join(dir, "it's $(me)"), filepath.Join(dir, "out")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nprintf '%s\\0' \"$@\" > '"+out+"'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	words := []string{"ssh", "--via", "root@b1", "--", "web01", "", "a b", "$(id)", "`id`", "'; id; '", `"`, `\`, "*", "a\nb", "-n", "é"}
	script := filepath.Join(dir, "-s.command")
	if err := os.WriteFile(script, terminalScript(append([]string{program}, words...)), 0o700); err != nil {
		t.Fatal(err)
	}
	if b, err := exec.Command(script).CombinedOutput(); err != nil || len(b) > 0 {
		t.Fatalf("%v: %s", err, b)
	}
	b, err := os.ReadFile(out)
	if got := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"); err != nil || !slices.Equal(got, words) {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := os.Stat(script); err == nil {
		t.Error("the script is still there")
	}
}
