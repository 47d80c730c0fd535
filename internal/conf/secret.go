package conf

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"sft"
)

// maxPrivate caps what ReadPrivate reads, in bytes.
const maxPrivate = 4 << 20

// WriteSecret replaces the file at path with data in one step: a reader sees
// the old file or the new one, never a part, and after a crash one of the two
// is there. Only the writer's own account and the machine's administrators can
// open it, from the moment it exists.
func WriteSecret(path string, data []byte) error { return replace(path, data, 0) }

// WriteFile is WriteSecret for what others may read: mode is the file's on
// Unix; on Windows the folder's rights are inherited.
func WriteFile(path string, data []byte, mode fs.FileMode) error { return replace(path, data, mode) }

// replace writes a private file if mode is 0.
func replace(path string, data []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := createBeside(dir, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func createBeside(dir string, mode fs.FileMode) (*os.File, error) {
	if mode == 0 {
		return createPrivate(dir)
	}
	return createShared(dir, mode)
}

// ReadPrivate returns the bytes of a file that nobody else may read or
// change. One that others can open is refused: what it holds must be thought
// of as known to them. A file that does not exist is fs.ErrNotExist.
func ReadPrivate(path string) ([]byte, error) {
	f, err := openNoFollow(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	i, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !i.Mode().IsRegular() {
		return nil, &sft.Error{Code: sft.Invalid, Msg: path + " is not a file", Hint: "remove it, or move it away"}
	}
	if err := checkPrivate(f, i); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxPrivate+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxPrivate {
		return nil, &sft.Error{Code: sft.Invalid, Msg: path + " is too large", Hint: "remove it, or move it away"}
	}
	return data, nil
}

// PrivateDir makes the folder at path, which only its owner can enter, with
// the folders above it. One that exists must belong to this account, and
// nobody else may write in it.
func PrivateDir(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := mkdirPrivate(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	i, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !i.IsDir() {
		return &sft.Error{Code: sft.Invalid, Msg: path + " is not a folder", Hint: "remove it, or move it away"}
	}
	return checkOwnDir(path, i)
}

// ServiceDir makes the folder at path, where a service of the system keeps
// what it must be able to believe, with the folders above it. Nobody but the
// service and the machine's administrators gets in.
//
// On Unix it is PrivateDir. On Windows the folder has its list of rights from
// the moment it exists. One that is there already is refused if it, or a folder
// above it, is a junction or another kind of link, if somebody else owns it, or
// if others could put something in it; if they could only read, that is ended,
// and what was readable must be thought of as known to them.
func ServiceDir(path string) error { return serviceDir(path) }

// SyncDir brings a change of names in dir to disk.
func SyncDir(dir string) error { return syncDir(dir) }

// A Lock is held on a file until it is released or the process ends, however
// it ends.
type Lock struct{ f *os.File }

// ErrLocked is returned by TryLock while somebody else holds the lock.
var ErrLocked = errors.New("locked by another process")

// LockFile waits for the lock on the file at path, which it makes.
func LockFile(path string) (*Lock, error) { return lockFile(path, true) }

// TryLock is LockFile without waiting.
func TryLock(path string) (*Lock, error) { return lockFile(path, false) }

func lockFile(path string, wait bool) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lock(f, wait); err != nil {
		f.Close()
		return nil, err
	}
	return &Lock{f}, nil
}

// Release gives the lock back. The file stays.
func (l *Lock) Release() error { return l.f.Close() }
