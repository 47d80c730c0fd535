package main

// The voice of the program:
//
//   - Standard output carries the answer and nothing else, so that a script
//     can read it. Everything said to a person goes to standard error.
//   - A line begins with "sft: ". An error says what failed, in lower case and
//     without a full stop; a second line, "sft: hint: ", says what to do next.
//   - What comes from elsewhere (names, messages of the platform or of a
//     server) is made printable before it is shown.
//   - No colour, no spinner, no question but Enter, to go back to a desktop that
//     was locked, and whether to follow a link. What takes long is said once, and only to a terminal.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"sft"
)

// A voice is how the program speaks to its person.
type voice struct {
	mu  sync.Mutex
	err io.Writer // standard error
	tty bool      // err is a terminal
}

// say writes one line.
func (v *voice) say(line string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fmt.Fprintln(v.err, "sft: "+printable(line))
}

// fail says what went wrong, and what to do.
func (v *voice) fail(err error) {
	v.say(err.Error())
	if e, ok := errors.AsType[*sft.Error](err); ok && e.Hint != "" {
		v.say("hint: " + e.Hint)
	}
}

// slow is how long something takes before a person is told of it.
const slow = 500 * time.Millisecond

// progress tells a person at a terminal what is going on, if it is still going
// on after a moment. Call what it returns when it no longer is.
func (v *voice) progress(line string) (done func()) {
	if !v.tty {
		return func() {}
	}
	t := time.AfterFunc(slow, func() { v.say(line) })
	return func() { t.Stop() }
}

func printable(s string) string { return sft.Printable(s) }

// isTerminal reports whether f, a standard stream, is a terminal.
func isTerminal(f any) bool {
	fd, ok := f.(interface{ Fd() uintptr })
	return ok && term.IsTerminal(int(fd.Fd()))
}

// table writes rows under a head, in columns.
func table(w io.Writer, head []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{head}, rows...) {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			if cell = printable(cell); cell == "" {
				cell = "-"
			}
			fmt.Fprint(tw, cell)
		}
		fmt.Fprintln(tw)
	}
	return tw.Flush()
}

// writeJSON writes v for programs to read. No list is ever null.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
