package accounts

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// skel is what a new home begins with.
const skel = "/etc/skel"

// ensureHome makes the home of w, whole or not at all: it is filled under
// another name, private from the start, and then gets its own. (useradd -m
// would leave half of one behind when it is killed.)
func (l *Linux) ensureHome(ctx context.Context, w Want) error {
	home := filepath.Join(homes, w.Login)
	if _, err := os.Lstat(home); !errors.Is(err, fs.ErrNotExist) {
		return err // whose it is, decide has looked at
	}
	next := filepath.Join(homes, ".sft-new-"+w.Login)
	if err := os.RemoveAll(next); err != nil {
		return err
	}
	if err := os.Mkdir(next, 0o700); err != nil {
		return err
	}
	err := fillHome(next, w.UID, w.GID)
	if err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, next, unix.AT_FDCWD, home, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(next))
	}
	// SELinux goes by labels that depend on the path.
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		if err := l.tool(ctx, "restorecon", "-R", home); err != nil {
			return err
		}
	}
	return nil
}

// fillHome copies the files of skel into dir and gives it all away, the folder
// itself last.
func fillHome(dir string, uid, gid int) error {
	err := filepath.WalkDir(skel, func(from string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || from == skel {
			return nil
		}
		if err != nil {
			return err
		}
		to := filepath.Join(dir, strings.TrimPrefix(from, skel))
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			err = os.Mkdir(to, info.Mode().Perm())
		case info.Mode().IsRegular():
			err = copyFile(from, to, info.Mode().Perm())
		case info.Mode()&fs.ModeSymlink != 0:
			var target string
			if target, err = os.Readlink(from); err == nil {
				err = os.Symlink(target, to)
			}
		default:
			return nil
		}
		if err != nil {
			return err
		}
		return os.Lchown(to, uid, gid)
	})
	if err != nil {
		return err
	}
	return os.Lchown(dir, uid, gid)
}

func copyFile(from, to string, mode fs.FileMode) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// spools are the folders that hold one file for each login.
var spools = []string{"/var/mail", "/var/spool/mail", "/var/spool/cron/crontabs", "/var/spool/cron"}

// removeFiles deletes a's home, mail and jobs, each only if it is a's own.
//
// Whatever is mounted inside the home is taken off first, or its files would
// be deleted too: RDP servers mount the person's own drives there.
func (l *Linux) removeFiles(ctx context.Context, a Account) error {
	for _, dir := range spools {
		p := filepath.Join(dir, a.Login)
		if st, err := os.Lstat(p); err == nil && st.Mode().IsRegular() && owner(st) == a.UID {
			if err := os.Remove(p); err != nil {
				return err
			}
		}
	}
	home := filepath.Join(homes, a.Login)
	st, err := os.Lstat(home)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !st.IsDir() || owner(st) != a.UID {
		return nil // not ours to delete
	}
	if err := l.unmountBelow(ctx, home); err != nil {
		return err
	}
	return os.RemoveAll(home)
}

// unmountBelow takes off whatever is mounted inside dir.
//
// As a unit, sftd has a view of its own of the host's mounts. What it takes
// off there stays everywhere else, and may keep the folder busy: so systemd,
// which has the host's view, is asked first.
func (l *Linux) unmountBelow(ctx context.Context, dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	_, noSystemd := os.Stat("/run/systemd/system")
	for _, p := range mountsBelow(data, dir) {
		if noSystemd == nil {
			_ = l.tool(ctx, "systemctl", "--no-ask-password", "stop", "--", p)
		}
		_ = unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // the unit forbids it
	}
	if data, err = os.ReadFile("/proc/self/mountinfo"); err != nil {
		return err
	}
	if left := mountsBelow(data, dir); len(left) > 0 {
		return fmt.Errorf("unmount %s: it is still mounted; unmount it by hand", left[0])
	}
	return nil
}

func owner(st fs.FileInfo) int { return int(st.Sys().(*syscall.Stat_t).Uid) }

// mountsBelow returns the mount points inside dir, the innermost first.
func mountsBelow(mountinfo []byte, dir string) []string {
	var all []string
	sc := bufio.NewScanner(bytes.NewReader(mountinfo))
	sc.Buffer(nil, len(mountinfo)+1)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 6 {
			continue
		}
		if p := unescape(f[4]); strings.HasPrefix(p, dir+"/") {
			all = append(all, p)
		}
	}
	slices.Reverse(all) // the kernel lists a mount after the one it stands on
	return all
}

// unescape undoes the kernel's \ooo for spaces, tabs, line ends and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1]) && s[i+1] <= '3' && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(c byte) bool { return '0' <= c && c <= '7' }
