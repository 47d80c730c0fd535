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
func replace(path string, data []byte, mode fs.FileMode) error {
	f, err := createBeside(filepath.Dir(path), mode)
	if err != nil {
		return err
	}
	n := &NewFile{f, path}
	defer n.Discard()
	if _, err := n.Write(data); err != nil {
		return err
	}
	return n.Commit()
}

// A NewFile is a private file that has no name yet: after a crash it is a file
// beside it whose name begins with ".new-".
type NewFile struct {
	f    *os.File
	path string
}

// CreateSecret begins a file that WriteSecret would write, for what is not in
// memory as a whole. The caller ends it with Commit or Discard.
func CreateSecret(path string) (*NewFile, error) {
	f, err := createPrivate(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return &NewFile{f, path}, nil
}

// Write adds to the file.
func (n *NewFile) Write(b []byte) (int, error) { return n.f.Write(b) }

// Sync brings what was written to disk.
func (n *NewFile) Sync() error { return n.f.Sync() }

// Commit brings the file to disk and gives it its name; one of that name is
// replaced.
func (n *NewFile) Commit() error {
	if err := n.f.Sync(); err != nil {
		return err
	}
	if err := n.f.Close(); err != nil {
		return err
	}
	if err := rename(n.f.Name(), n.path); err != nil {
		return err
	}
	n.path = ""
	return syncDir(filepath.Dir(n.f.Name()))
}

// Discard removes a file that was not committed.
func (n *NewFile) Discard() {
	if n.path != "" {
		n.f.Close()
		os.Remove(n.f.Name())
	}
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

// CheckOwnDir refuses a folder for what is secret that belongs to somebody
// else, or that others can write in.
func CheckOwnDir(path string) error {
	i, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !i.IsDir() {
		return &sft.Error{Code: sft.Invalid, Msg: path + " is not a folder", Hint: "name a folder"}
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
func LockFile(path string) (*Lock, error) { return lockFile(path, true, false) }

// TryLock is LockFile without waiting.
func TryLock(path string) (*Lock, error) { return lockFile(path, false, false) }

// TryShare is TryLock for a lock that several may hold at once, while nobody
// has it alone.
func TryShare(path string) (*Lock, error) { return lockFile(path, false, true) }

func lockFile(path string, wait, share bool) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lock(f, wait, share); err != nil {
		f.Close()
		return nil, err
	}
	return &Lock{f}, nil
}

// Release gives the lock back. The file stays.
func (l *Lock) Release() error { return l.f.Close() }
