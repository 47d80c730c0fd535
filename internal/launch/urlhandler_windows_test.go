package launch

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/windows/registry"
)

// Both schemes have a command that runs the program with the link behind "--",
// whatever is in the link, and no longer when that was undone. That Windows
// looks there is not seen: the command is run here.
func TestRegisterLinksWithWindows(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "a b")
	program := filepath.Join(dir, "sft.exe")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, b, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { UnregisterLinks(os.Getenv) })
	if err := RegisterLinks(program, os.Getenv); err != nil {
		t.Fatal(err)
	}
	value := func(path, name string) string {
		t.Helper()
		k, err := registry.OpenKey(registry.CURRENT_USER, path, registry.QUERY_VALUE)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		v, _, err := k.GetStringValue(name)
		if err != nil {
			t.Fatalf("%s, %q: %v", path, name, err)
		}
		return v
	}
	for _, scheme := range LinkSchemes {
		value(classes+scheme, "URL Protocol") // is there
		command := value(classes+scheme+`\shell\open\command`, "")
		for link, want := range map[string][]string{
			scheme + "://host/t/acme/a/web01/rdp":    {"open-url", "--", scheme + "://host/t/acme/a/web01/rdp"},
			scheme + `://host/" --debug "/a`:         {"open-url", "--", scheme + "://host/", "--debug", "/a"},
			scheme + `://host/t/acme/a/x\" --help y`: {"open-url", "--", scheme + `://host/t/acme/a/x" --help y`},
		} {
			cmd := exec.Command(program)
			cmd.SysProcAttr = &syscall.SysProcAttr{CmdLine: strings.ReplaceAll(command, "%1", link)}
			cmd.Env = append(os.Environ(), "SFT_TEST_CLIENT=link")
			out, err := cmd.Output()
			if err != nil || !slices.Equal(strings.Split(string(out), "\n"), want) {
				t.Errorf("%s leads to %q, %v; want %q", link, out, err, want)
			}
		}
	}
	for range 2 {
		if err := UnregisterLinks(os.Getenv); err != nil {
			t.Fatal(err)
		}
		for _, class := range classKeys() {
			if _, err := registry.OpenKey(registry.CURRENT_USER, classes+class, registry.QUERY_VALUE); err != registry.ErrNotExist {
				t.Errorf("the class %s afterwards: %v", class, err)
			}
		}
	}
}
