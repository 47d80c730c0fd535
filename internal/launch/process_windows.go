package launch

import "os/exec"

// prepare leaves the default: Windows has no way to ask a program to end that
// every program hears.
func prepare(*exec.Cmd) {}
