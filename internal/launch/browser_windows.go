package launch

import (
	"path/filepath"

	"golang.org/x/sys/windows"
)

func systemBrowser(url string) []string {
	dir, err := windows.GetSystemDirectory()
	if err != nil {
		dir = `C:\Windows\System32`
	}
	return []string{filepath.Join(dir, "rundll32.exe"), "url.dll,FileProtocolHandler", url}
}

// HasScreen reports whether this process can open a window where the person
// sees it: an SSH session has no desktop.
func HasScreen(getenv func(string) string) bool { return getenv("SSH_CONNECTION") == "" }
