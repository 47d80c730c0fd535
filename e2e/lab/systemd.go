//go:build linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// SystemdHost makes a host whose process 1 is systemd, for the test of units.
// It starts what Debian starts on every machine, and nothing that someone
// enabled on this one; units that are enabled on the host are its own affair.
func (l *Lab) SystemdHost(name string) *Host {
	l.t.Helper()
	if _, err := os.Stat("/lib/systemd/systemd"); err != nil {
		l.t.Skipf("SKIPPED: systemd is not installed; run make setup")
	}
	h := l.host(name, true)
	var state string
	poll(l.t, name+": systemd does not come up", func() bool {
		out, _ := h.Run("", "systemctl", "is-system-running")
		state = strings.TrimSpace(out)
		return state == "running" || state == "degraded"
	})
	if state == "degraded" {
		l.t.Fatalf("%s: units failed:\n%s", name, h.Systemctl("--failed", "--no-legend", "--plain"))
	}
	return h
}

// Systemctl runs systemctl and returns what it prints, or fails the test.
func (h *Host) Systemctl(args ...string) string {
	h.lab.t.Helper()
	return h.Must("", "systemctl", append([]string{"--no-pager"}, args...)...)
}

// Journal returns the journal of a unit.
func (h *Host) Journal(unit string) string {
	h.lab.t.Helper()
	return h.Must("", "journalctl", "--no-pager", "-o", "cat", "-u", unit)
}

// quietUnits, called in a new host, leaves systemd only what a host needs.
func quietUnits() error {
	// What was enabled on the machine: its servers, its timers.
	for _, pattern := range []string{"/etc/systemd/system/*.wants", "/etc/systemd/system/*.requires", "/etc/rc?.d"} {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, d := range dirs {
			if err := os.RemoveAll(d); err != nil {
				return err
			}
		}
	}
	link := func(unit, to string) error {
		path := "/etc/systemd/system/" + unit
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return os.Symlink(to, path)
	}
	// What belongs to a machine with a console, devices and a kernel.
	for _, unit := range []string{
		"getty.target", "console-getty.service", "getty-static.service",
		"systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
		"systemd-modules-load.service", "kmod-static-nodes.service", "systemd-sysctl.service", "systemd-binfmt.service",
		"proc-sys-fs-binfmt_misc.automount", "proc-sys-fs-binfmt_misc.mount",
		"sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount",
		"dev-hugepages.mount", "dev-mqueue.mount", "tmp.mount",
		"systemd-networkd.service", "systemd-resolved.service", "systemd-timesyncd.service",
		"systemd-firstboot.service", "systemd-random-seed.service", "systemd-repart.service", "systemd-pstore.service",
		"systemd-remount-fs.service", "systemd-machine-id-commit.service",
	} {
		if err := link(unit, "/dev/null"); err != nil {
			return fmt.Errorf("mask %s: %w", unit, err)
		}
	}
	return link("default.target", "/lib/systemd/system/multi-user.target")
}
