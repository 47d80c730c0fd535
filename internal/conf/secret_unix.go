//go:build unix

package conf

import (
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"sft"
)

// createPrivate creates a new file in dir that only its owner can open.
func createPrivate(dir string) (*os.File, error) {
	return os.CreateTemp(dir, ".new-*") // mode 0600, whatever the umask
}

func createShared(dir string, mode fs.FileMode) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(mode); err != nil {
		f.Close()
		os.Remove(f.Name())
		return nil, err
	}
	return f, nil
}

// openNoFollow does not open a symbolic link, nor wait for a named pipe.
func openNoFollow(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

func checkPrivate(f *os.File, i fs.FileInfo) error {
	if err := checkOwner(f.Name(), i); err != nil {
		return err
	}
	if i.Mode().Perm()&0o077 != 0 {
		return &sft.Error{Code: sft.Invalid, Msg: f.Name() + " can be read by others",
			Hint: "run \"chmod 600 " + f.Name() + "\"; if anybody else uses this machine, make another secret in its place, for a device by enrolling again"}
	}
	return nil
}

func checkOwner(path string, i fs.FileInfo) error {
	st, ok := i.Sys().(*syscall.Stat_t)
	if ok && int(st.Uid) == os.Geteuid() {
		return nil
	}
	hint := "run the program as the user it belongs to"
	if ok {
		if u, err := user.LookupId(strconv.FormatUint(uint64(st.Uid), 10)); err == nil {
			hint += ", as in \"sudo -u " + u.Username + " …\""
		}
	}
	return &sft.Error{Code: sft.Invalid, Msg: path + " belongs to another user",
		Hint: hint + ", or give it (chown) to the one that the program runs as, if you know what it is"}
}

func mkdirPrivate(path string) error { return os.Mkdir(path, 0o700) }

func checkOwnDir(path string, i fs.FileInfo) error {
	if err := checkOwner(path, i); err != nil {
		return err
	}
	if i.Mode().Perm()&0o022 != 0 {
		return &sft.Error{Code: sft.Invalid, Msg: path + " can be written by others", Hint: "run \"chmod 700 " + path + "\""}
	}
	return nil
}

func serviceDir(path string) error { return PrivateDir(path) }

func rename(from, to string) error { return os.Rename(from, to) }

// syncDir brings a rename in dir to disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func lock(f *os.File, wait, share bool) error {
	how := unix.LOCK_EX
	if share {
		how = unix.LOCK_SH
	}
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		err := unix.Flock(int(f.Fd()), how)
		switch err {
		case unix.EINTR:
			continue
		case unix.EWOULDBLOCK:
			return ErrLocked
		}
		return err
	}
}
