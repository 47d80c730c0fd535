//go:build linux

// Package e2e tests the product as people use it: real programs on real
// hosts, in namespaces of their own.
package e2e

import (
	"os"
	"testing"

	"sft/e2e/lab"
	"sft/e2e/stage"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }

// bin is the folder with the programs, which make builds.
func bin(t *testing.T) string { return stage.Programs(t) }

// newStage makes a platform in a lab of its own. Desks have the sft that people
// get, which starts faster than one with the race detector.
func newStage(t *testing.T) *stage.Stage {
	t.Helper()
	s := slowStage(t)
	s.QuickClients()
	return s
}

// slowStage is newStage with the race detector in every program.
func slowStage(t *testing.T) *stage.Stage {
	t.Helper()
	return stage.New(t, lab.New(t, ""), bin(t))
}
