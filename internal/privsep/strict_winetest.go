//go:build windows && winetest

package privsep

import (
	"fmt"

	"golang.org/x/sys/windows"
)

// NOT FOR USE. A program built with the tag winetest runs its broker with the
// rights of the monitor's own account, at whatever integrity: it is for tests
// on a system that has neither LocalService nor integrity levels and tells
// nothing of a job's limits, so that the rest can be tried. No build without
// the tag has any of this.

// excused names the layers that may be missed.
var excused = []string{"account", "integrity", "job limits"}

// brokerToken returns a copy of this process's own token.
func brokerToken() (windows.Token, error) {
	var own, t windows.Token
	if err := windows.OpenProcessToken(windows.CurrentProcess(), windows.TOKEN_ALL_ACCESS, &own); err != nil {
		return 0, fmt.Errorf("OpenProcessToken: %w", err)
	}
	defer own.Close()
	if err := windows.DuplicateTokenEx(own, windows.TOKEN_ALL_ACCESS, nil, windows.SecurityImpersonation, windows.TokenPrimary, &t); err != nil {
		return 0, fmt.Errorf("DuplicateTokenEx: %w", err)
	}
	return t, nil
}
