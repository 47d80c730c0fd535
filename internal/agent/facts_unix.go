//go:build unix

package agent

import (
	"bufio"
	"os"
	"runtime"
	"strings"
)

// osName is the system's name for people, from os-release(5).
func osName() string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return runtime.GOOS
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "PRETTY_NAME="); ok {
			if v = oneLine(strings.Trim(v, `"`), 100); v != "" {
				return v
			}
		}
	}
	return runtime.GOOS
}
