//go:build unix

package conf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sft"
)

func TestModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := filepath.Join(t.TempDir(), "state")
	secret, shared := filepath.Join(dir, "secret"), filepath.Join(dir, "shared")
	for _, err := range []error{PrivateDir(dir), WriteSecret(secret, nil), WriteFile(shared, nil, 0o644)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, secret: 0o600, shared: 0o644} {
		i, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := i.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
	}
}

func TestReadPrivateRefusesWhatOthersCanOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := WriteSecret(path, []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadPrivate(path); sft.CodeOf(err) != sft.Invalid {
			t.Errorf("mode %o: %v, want a refusal", mode, err)
		}
	}
	link := path + ".link"
	os.Chmod(path, 0o600)
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPrivate(link); err == nil {
		t.Error("a symbolic link was followed")
	}
	fifo := path + ".fifo"
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPrivate(fifo); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("a named pipe: %v, want a refusal", err)
	}
}

func TestAnotherUsersFilesAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := filepath.Join(t.TempDir(), "state")
	path := filepath.Join(dir, "key")
	for _, err := range []error{PrivateDir(dir), WriteSecret(path, nil), os.Chown(path, 65534, 65534), os.Chown(dir, 65534, 65534)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ReadPrivate(path); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("another user's file: %v, want a refusal", err)
	}
	err := PrivateDir(dir)
	if sft.CodeOf(err) != sft.Invalid {
		t.Errorf("another user's folder: %v, want a refusal", err)
	}
	if e, ok := errors.AsType[*sft.Error](err); !ok || !strings.Contains(e.Hint, `as in "sudo -u nobody …"`) {
		t.Errorf("another user's folder: %+v, want a hint that names nobody", err)
	}
}

func TestPrivateDirRefusesWhatOthersCanWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o770)
	if err := PrivateDir(dir); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("got %v, want a refusal", err)
	}
}
