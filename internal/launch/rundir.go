package launch

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"sft/internal/conf"
)

// A RunDir is a private folder for what lives as long as one command. Its
// lock is held until the process ends, so that the next one can tell what a
// killed process left behind.
type RunDir struct {
	Path string
	lock *conf.Lock
}

// What the folders' names begin with: who sweeps those of the one kind does
// not know what else those of the other left behind.
const (
	runPrefix = "rdp-"
	sshPrefix = "ssh-"
)

// NewRunDir makes a folder in base, and removes those in base whose process
// is gone. swept is called with each of those, before it is removed.
func NewRunDir(base string, swept func(dir string)) (*RunDir, error) {
	return newRunDir(base, runPrefix, swept)
}

// NewSSHRunDir is NewRunDir for a run of OpenSSH.
func NewSSHRunDir(base string) (*RunDir, error) {
	return newRunDir(base, sshPrefix, func(string) {})
}

func newRunDir(base, prefix string, swept func(dir string)) (*RunDir, error) {
	if err := conf.PrivateDir(base); err != nil {
		return nil, err
	}
	// One at a time: a folder that has just been made has no lock yet.
	gate, err := conf.LockFile(filepath.Join(base, "lock"))
	if err != nil {
		return nil, err
	}
	defer gate.Release()
	entries, err := os.ReadDir(base)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), prefix) {
			sweep(filepath.Join(base, e.Name()), swept)
		}
	}
	dir, err := os.MkdirTemp(base, prefix)
	if err != nil {
		return nil, err
	}
	lock, err := conf.TryLock(filepath.Join(dir, "lock"))
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return &RunDir{Path: dir, lock: lock}, nil
}

// sweep removes dir unless its process lives. What cannot be removed is left
// for the next time.
func sweep(dir string, swept func(dir string)) {
	lock, err := conf.TryLock(filepath.Join(dir, "lock"))
	if errors.Is(err, conf.ErrLocked) {
		return
	}
	if err == nil {
		lock.Release()
	}
	swept(dir)
	os.RemoveAll(dir)
}

// Remove removes the folder and what is in it.
func (d *RunDir) Remove() error {
	return errors.Join(d.lock.Release(), os.RemoveAll(d.Path))
}

// writeConnectionFile writes the file for a program which is not mstsc. It
// never holds a password.
func writeConnectionFile(dir *RunDir, t Target, v View) (string, error) {
	path := filepath.Join(dir.Path, t.fileName())
	b, err := connectionFile(t, v, accounting{nla: true}).Text()
	if err != nil {
		return "", err
	}
	return path, conf.WriteSecret(path, b)
}
