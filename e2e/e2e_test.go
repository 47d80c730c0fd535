//go:build linux

// Package e2e tests the product as people use it: real programs on real
// hosts, in namespaces of their own.
package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"sft/e2e/lab"
	"sft/e2e/stage"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }

// bin is the folder with the programs, which make builds.
func bin(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("SFT_BIN")
	if dir == "" {
		dir = "../build/bin"
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sft", "sftd", "sft-platform"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Fatalf("%v; run \"make build\" first", err)
		}
	}
	return dir
}

// newStage makes a platform in a lab of its own.
func newStage(t *testing.T) *stage.Stage {
	t.Helper()
	return stage.New(t, lab.New(t, ""), bin(t))
}
