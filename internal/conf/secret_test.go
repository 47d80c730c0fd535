package conf

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"sft"
)

func TestWriteSecret(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := PrivateDir(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "key")
	for _, want := range []string{"one", "two, and longer"} {
		if err := WriteSecret(path, []byte(want)); err != nil {
			t.Fatal(err)
		}
		got, err := ReadPrivate(path)
		if err != nil || string(got) != want {
			t.Errorf("ReadPrivate = %q, %v, want %q", got, err, want)
		}
	}
	if names := list(t, dir); len(names) != 1 {
		t.Errorf("the folder holds %q, want the file alone", names)
	}
}

func TestWriteSecretThatFailsLeavesTheOldFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	if err := os.Mkdir(path, 0o700); err != nil { // cannot be replaced by a file
		t.Fatal(err)
	}
	if err := WriteSecret(path, []byte("x")); err == nil {
		t.Error("a folder was replaced")
	}
	if names := list(t, dir); len(names) != 1 {
		t.Errorf("the folder holds %q: something was left behind", names)
	}
}

func TestReadPrivateRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadPrivate(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v, want fs.ErrNotExist", err)
	}
	if _, err := ReadPrivate(dir); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("a folder: %v, want a refusal", err)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	a, err := LockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TryLock(path); err != ErrLocked {
		t.Errorf("TryLock of a held lock = %v, want ErrLocked", err)
	}
	a.Release()
	b, err := TryLock(path)
	if err != nil {
		t.Fatalf("TryLock of a released lock = %v", err)
	}
	b.Release()
}

func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}
