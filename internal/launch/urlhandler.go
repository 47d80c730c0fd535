package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"sft"
)

// LinkSchemes are those of the links that sft opens.
var LinkSchemes = []string{"sft", "scaleft"}

// RegisterLinks makes program, a full path, what opens the links of
// LinkSchemes on the person's desktop: with the arguments open-url, "--" and
// the link, so that nothing in a link is an option. getenv is os.Getenv.
func RegisterLinks(program string, getenv func(string) string) error {
	if err := checkQuotable(program); err != nil {
		return err
	}
	return registerLinks(program, getenv)
}

// UnregisterLinks undoes RegisterLinks. What opens the links by now that is not
// ours stays.
func UnregisterLinks(getenv func(string) string) error { return unregisterLinks(getenv) }

// InTerminal runs argv, whose first word is a full path, in a new window of the
// system's terminal, and reports whether it did: not where what opens the links
// has a terminal from the start.
func InTerminal(argv []string) (bool, error) { return inTerminal(argv) }

// checkQuotable refuses a program whose path would need more than quotes in a
// command line that a desktop keeps.
func checkQuotable(program string) error {
	special := "\"'`$%;\\"
	if isDrivePath(program) { // quotes are all that is special there, and what Windows fills in
		special = "\"%"
	}
	if program == "" || strings.ContainsFunc(program, func(r rune) bool { return r < ' ' || r == 0x7f || strings.ContainsRune(special, r) }) {
		return &sft.Error{Code: sft.Invalid, Msg: "the path of sft, " + sft.Quote(program) + ", cannot be put into a command line", Hint: "install sft where the path has letters, digits and blanks alone"}
	}
	return nil
}

// isDrivePath reports whether p is a path of Windows, where "\" is no escape.
func isDrivePath(p string) bool { return len(p) > 3 && p[1] == ':' && p[2] == '\\' }

// ErrNobodyToAsk says that no window can be shown in which a person answers.
var ErrNobodyToAsk = &sft.Error{Code: sft.Denied, Msg: "nobody can be asked whether to follow the link", Hint: "run it at a terminal, or install zenity"}

// Question asks the person in a window, and reports whether the answer is yes.
// Closing the window is no. text is shown as it is. Without a way to ask the
// error is ErrNobodyToAsk.
func Question(ctx context.Context, getenv func(string) string, text string) (bool, error) {
	if !HasScreen(getenv) {
		return false, ErrNobodyToAsk
	}
	return question(ctx, text)
}

// askBy runs a program whose exit status 0 is yes, and 1 is no.
func askBy(ctx context.Context, argv []string) (bool, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask by %s: %w", argv[0], err)
	}
	return true, nil
}

// desktopFile is the name of the file that tells a desktop of Linux what opens
// the links.
const desktopFile = "sft-url.desktop"

// desktopEntry is the file's content (Desktop Entry Specification). A terminal
// is where the person is asked, and hears what goes wrong.
func desktopEntry(program string) []byte {
	var types string
	for _, s := range LinkSchemes {
		types += "x-scheme-handler/" + s + ";"
	}
	return []byte("[Desktop Entry]\nType=Application\nName=sft\nComment=Opens links to servers\nNoDisplay=true\nTerminal=true\n" +
		"Exec=\"" + program + "\" open-url -- %u\nMimeType=" + types + "\n")
}

// maxMimeApps caps a mimeapps.list, in bytes.
const maxMimeApps = 1 << 20

// editMimeApps returns a mimeapps.list (Association between MIME types and
// applications, Default Applications) in which ours opens the links, or, with
// on false, no longer does. Every other line stays as it is.
func editMimeApps(old []byte, on bool) ([]byte, error) {
	if len(old) > maxMimeApps || bytes.ContainsRune(old, 0) {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "mimeapps.list is not a list of applications", Hint: "move it away, and run it again"}
	}
	const group = "[Default Applications]"
	ours := func(line string) bool {
		key, value, ok := strings.Cut(line, "=")
		for _, s := range LinkSchemes {
			if ok && strings.TrimSpace(key) == "x-scheme-handler/"+s && (on || strings.TrimSuffix(strings.TrimSpace(value), ";") == desktopFile) {
				return true
			}
		}
		return false
	}
	var add []string
	if on {
		for _, s := range LinkSchemes {
			add = append(add, "x-scheme-handler/"+s+"="+desktopFile)
		}
	}
	var out []string
	in, done := false, false
	text := strings.TrimSuffix(string(old), "\n")
	if text != "" {
		for _, line := range strings.Split(text, "\n") {
			if t := strings.TrimSpace(line); strings.HasPrefix(t, "[") {
				in = t == group
			} else if in && ours(line) {
				continue
			}
			out = append(out, line)
			if in && !done {
				out, done = append(out, add...), true
			}
		}
	}
	if !done && on {
		out = append(append(out, group), add...)
	}
	if len(out) == 0 {
		return nil, nil
	}
	return []byte(strings.Join(out, "\n") + "\n"), nil
}

// found returns the first of the programs that is there.
func found(list [][]string) []string {
	for _, argv := range list {
		if i, err := os.Stat(argv[0]); err == nil && i.Mode().IsRegular() {
			return argv
		}
	}
	return nil
}
