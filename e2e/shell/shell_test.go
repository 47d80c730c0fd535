//go:build linux

// Package shell tests what leads to a shell, as people use it: SSH, ways
// through bastions, and the accounts that they need. It is apart from package
// e2e so that the two can run at the same time.
package shell

import (
	"os"
	"testing"

	"sft/e2e/lab"
	"sft/e2e/stage"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }

const blue = "#204060"

// newStage makes a platform in a lab of its own.
func newStage(t *testing.T) *stage.Stage {
	t.Helper()
	s := stage.New(t, lab.New(t, ""), stage.Programs(t))
	s.QuickClients()
	return s
}

// desktop runs sft rdp on the desk until the desktop is there.
func desktop(desk *stage.Desk, args ...string) *lab.Process {
	p := desk.StartSft("sft-rdp", append([]string{"rdp", "--size", "1200x800"}, args...)...)
	desk.WaitPixel(1100, 700, blue)
	return p
}
