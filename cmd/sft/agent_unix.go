//go:build unix

package main

import "path/filepath"

// agentPath is where the agent of a run listens.
func agentPath(dir string) string { return filepath.Join(dir, "agent") }

// shellPath is path as the block can say it.
func shellPath(path string) (string, error) { return path, nil }
