package client

import (
	"os"
	"path/filepath"
)

// ringLikely reports whether there is a session bus to find a Secret Service
// on. Without one the library would start a bus of its own, and leave it
// running.
func ringLikely(getenv func(string) string) bool {
	if a := getenv("DBUS_SESSION_BUS_ADDRESS"); a != "" {
		return a != "autolaunch:" && a != "disabled:"
	}
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		_, err := os.Stat(filepath.Join(dir, "bus"))
		return err == nil
	}
	return false
}
