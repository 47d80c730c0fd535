package daemon

import (
	"slices"
	"strings"

	"sft"
)

// A Spec says what a service is to the Service Control Manager of Windows.
// It runs as LocalSystem, starts with the machine, a little after what the
// machine itself needs, and is started again when it fails.
type Spec struct {
	Name        string // for programs, as in "net start NAME"
	Display     string // for people, and the source of its events
	Description string
	Program     string   // its full path
	Args        []string // plain words
}

// command is the command line that the service is started with. The program is
// always quoted: without quotes, a program "C:\Program.exe" would be started in
// place of one below "C:\Program Files".
func (s Spec) command() (string, error) {
	if !isWindowsPath(s.Program) {
		return "", &sft.Error{Code: sft.Invalid, Msg: "the program " + sft.Quote(s.Program) + " is not named by a full path, or by one that cannot be quoted", Hint: "install it below C:\\Program Files"}
	}
	c := `"` + s.Program + `"`
	for _, a := range s.Args {
		if a == "" || strings.ContainsAny(a, " \t\"") {
			return "", &sft.Error{Code: sft.Invalid, Msg: "the argument " + sft.Quote(a) + " is no plain word", Hint: "leave it out"}
		}
		c += " " + a
	}
	return c, nil
}

// startedBy reports whether each of these is the command line of s, to the
// byte: of a path with blanks, Windows would try each beginning.
func (s Spec) startedBy(lines ...string) bool {
	c, err := s.command()
	return err == nil && len(lines) > 0 && !slices.ContainsFunc(lines, func(l string) bool { return l != c })
}

// isWindowsPath reports whether p is a full path on a drive, without anything
// that would end a quotation.
func isWindowsPath(p string) bool {
	if len(p) < 4 || p[1] != ':' || p[2] != '\\' || strings.ContainsAny(p, "\"\r\n\x00/") || strings.HasSuffix(p, `\`) {
		return false
	}
	c := p[0] | 0x20
	return c >= 'a' && c <= 'z'
}
