package launch

func systemBrowser(url string) []string { return []string{"/usr/bin/open", url} }

// HasScreen reports whether this process can open a window where the person
// sees it: from an SSH session it would open on somebody else's screen.
func HasScreen(getenv func(string) string) bool { return getenv("SSH_CONNECTION") == "" }
