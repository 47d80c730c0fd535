//go:build linux

package lab

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Control groups are the one thing that namespaces do not take away, and only
// systemd needs them. The groups of a lab are under one of its own, next to
// the program's, and go after the lab has ended.

// groupVar names the lab's control group.
const groupVar = "SFT_LAB_GROUP"

// groupPrefix begins the name of every lab's control group.
const groupPrefix = "sft-lab-"

func newGroupName() string { return groupPrefix + strings.ToLower(rand.Text()[:12]) }

// groupRoot mounts the control groups at dir, whatever the machine has done
// with /sys/fs/cgroup, and returns the folder of this process's own group.
func groupRoot(dir string) (string, error) {
	if err := unix.Mount("cgroup2", dir, "cgroup2", 0, ""); err != nil {
		return "", fmt.Errorf("mount control groups: %w", err)
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return filepath.Join(dir, strings.TrimSpace(path)), nil
		}
	}
	return "", errors.New("this process has no control group of version 2")
}

// joinGroup moves this process to a new control group and makes that the root
// of what it and its children see. The calling goroutine is locked to its
// thread.
func joinGroup(dir, name string) error {
	dir = filepath.Join(dir, "cgroup")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := groupRoot(dir)
	if err != nil {
		return err
	}
	group := filepath.Join(root, os.Getenv(groupVar), name)
	for try := 0; ; try++ {
		if err = os.MkdirAll(group, 0o755); err == nil {
			err = os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0)
		}
		if err == nil {
			break
		}
		if try == 3 { // another lab may sweep a group that is still empty
			return fmt.Errorf("join control group %s: %w", group, err)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a namespace of control groups: %w", err)
	}
	return nil
}

// sweep removes the control groups of labs that have ended, in a process that
// can mount them without the machine noticing.
func sweep() error {
	cmd := again(stageSweep)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	return cmd.Run()
}

func sweepGroups() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	root, err := groupRoot(scratch)
	if err != nil {
		return nil // no groups, nothing to sweep
	}
	groups, _ := filepath.Glob(filepath.Join(root, groupPrefix+"*"))
	for _, g := range groups {
		events, _ := os.ReadFile(filepath.Join(g, "cgroup.events"))
		if !strings.Contains(string(events), "populated 0") {
			continue // of a lab that is up
		}
		var dirs []string
		filepath.WalkDir(g, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) {
			if err := unix.Rmdir(d); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%s: %w", d, err)
			}
		}
	}
	return nil
}
