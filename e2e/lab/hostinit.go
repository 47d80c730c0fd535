//go:build linux

package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A blueprint is what a host is made from. It goes to the host's process 1 in
// its environment.
type blueprint struct {
	Name    string
	IP      string
	Dir     string // scratch, for the layers of the root file system
	Hosts   string // text of /etc/hosts
	Systemd bool   // process 1 becomes systemd
}

// blueprintVar holds a blueprint in JSON.
const blueprintVar = "SFT_LAB_HOST"

// The host's process 1 has two pipes to the program that makes it.
const (
	fdNetwork = 3 // closed by the program when the host has a network interface
	fdReady   = 4 // the host writes "ok", or why it cannot be made
)

// hostInit is process 1 of a host: it makes the host's file system and
// network, says that it is ready, and reaps for as long as the host lives.
func hostInit() error {
	runtime.LockOSThread() // namespaces are made for a thread
	var b blueprint
	ready := os.NewFile(fdReady, "ready")
	err := json.Unmarshal([]byte(os.Getenv(blueprintVar)), &b)
	if err == nil {
		err = furnish(b)
	}
	if err != nil {
		fmt.Fprint(ready, err)
		return fmt.Errorf("make host %s: %w", b.Name, err)
	}
	fmt.Fprint(ready, "ok")
	ready.Close()
	if b.Systemd {
		env := []string{"container=lab", "PATH=" + hostPath, "TERM=dumb"}
		return syscall.Exec("/lib/systemd/systemd", []string{"systemd", "--system", "--log-target=console", "--show-status=0"}, env)
	}
	os.Stdin.Close()
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, syscall.SIGCHLD)
	signal.Ignore(syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP) // a key press in the lab's terminal is not for hosts
	reap(chld, func(int, syscall.WaitStatus) {})
	return nil
}

func furnish(b blueprint) error {
	if b.Systemd {
		if err := joinGroup(b.Dir, b.Name); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte(b.Name)); err != nil {
		return err
	}
	root, err := layers(b.Dir)
	if err != nil {
		return err
	}
	if err := mounts(root, b.Systemd); err != nil {
		return err
	}
	// The new root takes the place of the old, which then goes.
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the machine's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if err := files(b); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, os.NewFile(fdNetwork, "network")); err != nil {
		return err
	}
	return ip(nil, "link set lo up", "link set eth0 addrgenmode none", "addr add "+b.IP+"/24 dev eth0", "link set eth0 up")
}

// layers mounts a tmpfs over the machine's root: the host sees what is
// installed, and what it writes is its own.
func layers(dir string) (root string, err error) {
	root = filepath.Join(dir, "root")
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{root, upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", err
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", fmt.Errorf("make mounts private: %w", err)
	}
	// Without an index and inode numbers that outlive the mount, overlayfs
	// asks less of the file systems under it.
	data := "lowerdir=/,upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", root, "overlay", 0, data); err != nil {
		return "", fmt.Errorf("mount a layer over the machine's root: %w", err)
	}
	return root, nil
}

// mounts gives the new root folders that hold nothing of the machine.
func mounts(root string, systemd bool) error {
	const plain = unix.MS_NOSUID | unix.MS_NODEV
	for _, m := range []struct {
		kind, target string
		flags        uintptr
		data         string
	}{
		{"proc", "proc", plain | unix.MS_NOEXEC, ""},
		{"sysfs", "sys", plain | unix.MS_NOEXEC | unix.MS_RDONLY, ""},
		{"tmpfs", "dev", unix.MS_NOSUID, "mode=755"},
		{"tmpfs", "dev/shm", plain, "mode=1777"},
		{"devpts", "dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=666,mode=620,gid=5"},
		{"mqueue", "dev/mqueue", plain | unix.MS_NOEXEC, ""},
		{"tmpfs", "run", plain, "mode=755"},
		{"tmpfs", "tmp", plain, "mode=1777"},
		{"tmpfs", "home", 0, "mode=755"},
		{"tmpfs", "root", 0, "mode=700"},
	} {
		target := filepath.Join(root, m.target)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount /%s: %w", m.target, err)
		}
	}
	// What is not of a namespace is the machine's: settings of the kernel can
	// be read, not written. systemd leaves them alone when it sees that.
	sysctl := filepath.Join(root, "proc/sys")
	if err := unix.Mount(sysctl, sysctl, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount /proc/sys: %w", err)
	}
	if err := unix.Mount("", sysctl, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|plain|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("make /proc/sys read-only: %w", err)
	}
	if systemd {
		group := filepath.Join(root, "sys/fs/cgroup")
		if err := unix.Mount("cgroup2", group, "cgroup2", plain|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount /sys/fs/cgroup: %w", err)
		}
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty", "fuse"} {
		if err := bindDevice(filepath.Join(root, "dev"), name); err != nil {
			return err
		}
	}
	for link, to := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(to, filepath.Join(root, "dev", link)); err != nil {
			return err
		}
	}
	return nil
}

// bindDevice puts one of the machine's devices into dev, if the machine has it.
func bindDevice(dev, name string) error {
	source := "/dev/" + name
	if _, err := os.Stat(source); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	target := filepath.Join(dev, name)
	if err := os.WriteFile(target, nil, 0o666); err != nil {
		return err
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", source, err)
	}
	return nil
}

// files writes what makes this host a host and not the machine: its name, the
// names it knows, and no account that a person has on the machine.
func files(b blueprint) error {
	for name, text := range map[string]string{
		"/etc/hostname":   b.Name + "\n",
		"/etc/hosts":      b.Hosts,
		"/etc/fstab":      "",
		"/etc/machine-id": machineID(b.Name),
	} {
		if err := replace(name, text, 0o644); err != nil {
			return err
		}
	}
	for _, d := range []string{"/run/lock", "/tmp/.X11-unix", "/tmp/.ICE-unix"} {
		if err := os.Mkdir(d, 0o777); err != nil {
			return err
		}
		if err := os.Chmod(d, 0o777|os.ModeSticky); err != nil {
			return err
		}
	}
	// A link to a service of the machine, or a list of name servers that
	// cannot be reached, would only make look-ups slow.
	if err := replace("/etc/resolv.conf", "", 0o644); err != nil {
		return err
	}
	if err := edit("/etc/nsswitch.conf", func(line string) (string, bool) {
		if strings.HasPrefix(line, "hosts:") {
			return "hosts: files", true
		}
		return line, true
	}); err != nil {
		return err
	}
	if b.Systemd {
		if err := quietUnits(); err != nil {
			return err
		}
	}
	return dropPeople()
}

// dropPeople removes the machine's people from the host's own account files.
func dropPeople() error {
	people := map[string]bool{}
	if err := edit("/etc/passwd", func(line string) (string, bool) {
		f := strings.Split(line, ":")
		var uid int
		if len(f) == 7 {
			fmt.Sscan(f[2], &uid)
		}
		if uid >= 1000 && uid < 60000 {
			people[f[0]] = true
			return "", false
		}
		return line, true
	}); err != nil {
		return err
	}
	for _, name := range []string{"/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/subuid", "/etc/subgid"} {
		err := edit(name, func(line string) (string, bool) {
			first, _, _ := strings.Cut(line, ":")
			return line, !people[first]
		})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// edit passes the lines of a file through fn and keeps its mode and owner.
func edit(name string, fn func(line string) (string, bool)) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if l, keep := fn(strings.TrimSuffix(line, "\n")); keep {
			out = append(out, l+"\n")
		}
	}
	return os.WriteFile(name, []byte(strings.Join(out, "")), 0o644)
}

// replace writes a new file at name. It does not follow a link: what is at its
// other end is not ours to change.
func replace(name, text string, mode os.FileMode) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(name, []byte(text), mode)
}
