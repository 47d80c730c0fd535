package launch

func systemBrowser(url string) []string { return []string{"xdg-open", url} }

// HasScreen reports whether this process can open a window where the person
// sees it. Without a display xdg-open would start a text browser on the
// terminal, and no RDP client would start at all.
func HasScreen(getenv func(string) string) bool {
	return getenv("DISPLAY") != "" || getenv("WAYLAND_DISPLAY") != ""
}
