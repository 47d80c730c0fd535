//go:build linux

package dist

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sft/e2e/lab"
)

// linuxHost makes a host with systemd that starts what it installs.
func linuxHost(t *testing.T, name string) *lab.Host {
	t.Helper()
	h := lab.New(t, "").SystemdHost(name)
	h.Must("", "mount", "--make-rshared", "/")
	h.Must("", "rm", "-f", "/usr/sbin/policy-rc.d") // a container's: it lets nothing start
	return h
}

// give copies a package to a host and returns where it is there.
func give(h *lab.Host, deb string) string {
	to := "/var/cache/" + filepath.Base(deb)
	h.Install(to, deb)
	return to
}

// is asks systemd about a unit: "is-enabled", "is-active".
func is(h *lab.Host, what, unit string) string {
	out, _ := h.Run("", "systemctl", what, unit)
	return strings.TrimSpace(out)
}

func waitActive(t *testing.T, h *lab.Host, unit, want string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); is(h, "is-active", unit) != want; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s is %s, want %s:\n%s", unit, is(h, "is-active", unit), want, h.Journal(unit))
		}
	}
}

func exists(h *lab.Host, path string) bool {
	_, err := h.Run("", "test", "-e", path)
	return err == nil
}

// The agent's package from installation to purge, as an administrator does it.
func TestServerDeb(t *testing.T) {
	dir, _ := packages(t)
	h := linuxHost(t, "web01")
	deb := give(h, filepath.Join(dir, "scaleft-server-tools_0.20.0-1_amd64.deb"))

	h.Must("", "dpkg", "-i", deb)
	waitActive(t, h, "sftd", "active")
	if got := h.Must("", "sftd", "--version"); got != "sftd 0.20.0\n" {
		t.Errorf("sftd --version prints %q", got)
	}
	for _, unit := range []string{"sftd", "sftd-lock"} {
		if got := is(h, "is-enabled", unit); got != "enabled" {
			t.Errorf("after the installation %s is %s", unit, got)
		}
	}
	if got := strings.TrimSpace(h.Must("", "stat", "-c", "%a %U", "/var/lib/sftd")); got != "700 root" {
		t.Errorf("/var/lib/sftd is %s", got)
	}
	h.Must("", "getent", "passwd", "sftd-broker")
	const hooks = "/usr/lib/sftd/hooks"
	if got := h.Must("", "stat", "-c", "%a %U", hooks, hooks+"/user-created.d", hooks+"/group-deleted.d"); got != strings.Repeat("755 root\n", 3) {
		t.Errorf("the folders of hooks are %q", got)
	}
	if got := strings.Fields(h.Must("", "ls", hooks)); len(got) != 6 {
		t.Errorf("there are folders for the hooks %q", got)
	}

	// An upgrade is another process on the same state, and only if there was one.
	pid := func() string { return h.Systemctl("show", "-P", "MainPID", "sftd") }
	h.Write("/var/lib/sftd/kept", 0o600, nil)
	before := pid()
	h.Must("", "dpkg", "-i", deb)
	waitActive(t, h, "sftd", "active")
	if after := pid(); after == before {
		t.Errorf("after an upgrade the old sftd runs, process %s", after)
	}
	h.Systemctl("stop", "sftd")
	h.Must("", "dpkg", "-i", deb)
	waitActive(t, h, "sftd", "inactive")
	h.Systemctl("start", "sftd")

	h.Must("", "dpkg", "-r", "scaleft-server-tools")
	waitActive(t, h, "sftd", "inactive")
	if exists(h, "/usr/sbin/sftd") || exists(h, "/etc/systemd/system/multi-user.target.wants/sftd.service") {
		t.Errorf("after the removal sftd, or the link that starts it, is still there")
	}
	if !exists(h, "/var/lib/sftd/kept") {
		t.Errorf("the removal took the state")
	}
	h.Must("", "dpkg", "-P", "scaleft-server-tools")
	if exists(h, "/var/lib/sftd") || exists(h, "/etc/sftd") {
		t.Errorf("the purge left the state, or the settings")
	}

	// For images: it is there, and sleeps.
	h.Must("", "mkdir", "-p", "/etc/sftd")
	h.Write("/etc/sftd/disable-autostart", 0o644, nil)
	h.Must("", "dpkg", "-i", deb)
	if enabled, active := is(h, "is-enabled", "sftd"), is(h, "is-active", "sftd"); enabled != "disabled" || active != "inactive" {
		t.Errorf("with disable-autostart sftd is %s and %s", enabled, active)
	}
	h.Systemctl("start", "sftd")
	waitActive(t, h, "sftd", "active")
}

// The platform waits for "sft-platform init"; the client is a program.
func TestOtherDebs(t *testing.T) {
	dir, _ := packages(t)
	h := linuxHost(t, "platform")
	h.Must("", "dpkg", "-i", give(h, filepath.Join(dir, "sft-platform_0.20.0-1_amd64.deb")))
	if enabled, active := is(h, "is-enabled", "sft-platform"), is(h, "is-active", "sft-platform"); enabled != "disabled" || active != "inactive" {
		t.Errorf("after the installation sft-platform is %s and %s", enabled, active)
	}
	if got := strings.TrimSpace(h.Must("", "stat", "-c", "%a %U", "/var/lib/sft-platform")); got != "700 sft-platform" {
		t.Errorf("/var/lib/sft-platform is %s", got)
	}
	h.Write("/var/lib/sft-platform/kept", 0o600, nil)
	h.Must("", "dpkg", "-r", "sft-platform")
	if !exists(h, "/var/lib/sft-platform/kept") {
		t.Errorf("the removal took the state")
	}
	h.Must("", "dpkg", "-P", "sft-platform")
	if exists(h, "/var/lib/sft-platform") {
		t.Errorf("the purge left the state")
	}

	h.Must("", "dpkg", "-i", give(h, filepath.Join(dir, "scaleft-client-tools_0.20.0-1_amd64.deb")))
	if got := h.Must("", "sft", "--version"); got != "sft 0.20.0\n" {
		t.Errorf("sft --version prints %q", got)
	}
	h.Must("", "bash", "-c", ". /usr/share/bash-completion/completions/sft && complete -p sft")
}
