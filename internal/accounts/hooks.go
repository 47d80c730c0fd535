package accounts

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// A Hook is something that happened to an account or a group of ours, for the
// scripts of the host's administrator.
type Hook struct {
	Event string // UserCreated and so on
	Name  string // of the account or group
}

// The events of hooks.
const (
	UserCreated  = "user-created"
	UserUpdated  = "user-updated"
	UserDeleted  = "user-deleted"
	GroupCreated = "group-created"
	GroupUpdated = "group-updated"
	GroupDeleted = "group-deleted"
)

// A HookRun is one script that was run, or not.
type HookRun struct {
	Script string // its path, or that of the folder if that is what is wrong
	Output string // what it said, the first of it, one line
	Err    error
}

// A Hooker is a Backend whose host has scripts for what happens. RunHooks runs
// those of h in order, and goes on when one fails.
type Hooker interface {
	RunHooks(ctx context.Context, h Hook) []HookRun
}

// RunHooks runs the scripts that the host's administrator has put in place for
// h. It changes nothing of ours, and holds up nothing.
func (m *Manager) RunHooks(ctx context.Context, h Hook) []HookRun {
	if b, ok := m.b.(Hooker); ok {
		return b.RunHooks(ctx, h)
	}
	return nil
}

// scripts returns those of names that are scripts, in order: by the number
// that a name begins with, then by the name.
func scripts(names []string) []string {
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool {
		return !strings.HasSuffix(n, ".sh") || strings.HasPrefix(n, ".")
	})
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(numberOf(a), numberOf(b)), cmp.Compare(a, b))
	})
	return names
}

// numberOf is the number that a name begins with. One that begins with none
// comes last.
func numberOf(name string) uint64 {
	digits := name[:len(name)-len(strings.TrimLeftFunc(name, func(r rune) bool { return r < unicode.MaxASCII && unicode.IsDigit(r) }))]
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil {
		return 1 << 32
	}
	return n
}
