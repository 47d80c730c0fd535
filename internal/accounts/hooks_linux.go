package accounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sft"
)

const (
	// hooksDir has a folder for each event.
	hooksDir = "/usr/lib/sftd/hooks"
	// hookDeadline ends a script.
	hookDeadline = 30 * time.Second
	// maxHooks is how many scripts an event may have.
	maxHooks = 64
)

// RunHooks implements Hooker. A script runs as root, so it is run only if
// nobody but root can have written it or have put it there: each folder on the
// way, from the root on, and the script itself are opened without following
// links and looked at, and what was looked at is what is run.
func (l *Linux) RunHooks(ctx context.Context, h Hook) []HookRun {
	dir := filepath.Join(hooksDir, h.Event+".d")
	d, err := openTrusted(dir)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return []HookRun{{Script: dir, Err: err}}
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return []HookRun{{Script: dir, Err: err}}
	}
	names = scripts(names)
	var all []HookRun
	if len(names) > maxHooks {
		all = append(all, HookRun{Script: dir, Err: &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("there are more than %d scripts; the last are not run", maxHooks), Hint: "join some of them"}})
		names = names[:maxHooks]
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return append(all, HookRun{Script: dir, Err: fmt.Errorf("not run: %w", err)})
		}
		r := HookRun{Script: filepath.Join(dir, name)}
		r.Output, r.Err = runHook(ctx, d, name, h, l.hook)
		all = append(all, r)
	}
	return all
}

// untrusted says that somebody else could have written what root would run.
func untrusted(path, why string) error {
	return &sft.Error{Code: sft.Invalid, Msg: path + " is not run: " + why, Hint: "make it, and every folder above it, root's, not writable by group or others, and no link"}
}

// trusted reports whether st is root's and writable by nobody else.
func trusted(path string, st *unix.Stat_t, kind uint32) error {
	switch {
	case st.Mode&unix.S_IFMT != kind:
		return untrusted(path, "it is not of the kind that it should be")
	case st.Uid != 0:
		return untrusted(path, fmt.Sprintf("it belongs to uid %d", st.Uid))
	case st.Mode&0o022 != 0:
		return untrusted(path, fmt.Sprintf("its mode %o lets others write", st.Mode&0o7777))
	}
	return nil
}

// openTrusted opens the folder at path, if it and those above it are trusted.
func openTrusted(path string) (*os.File, error) {
	fd, err := unix.Open("/", unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	at := "/"
	for _, part := range append([]string{""}, strings.Split(strings.Trim(path, "/"), "/")...) {
		if part != "" {
			at = filepath.Join(at, part)
			next, err := unix.Openat(fd, part, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			unix.Close(fd)
			if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
				return nil, untrusted(at, "it is a link, or no folder")
			}
			if err != nil {
				return nil, err
			}
			fd = next
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return nil, err
		}
		if err := trusted(at, &st, unix.S_IFDIR); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// runHook runs the script called name in d.
func runHook(ctx context.Context, d *os.File, name string, h Hook, deadline time.Duration) (string, error) {
	path := filepath.Join(d.Name(), name)
	fd, err := unix.Openat(int(d.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) {
		return "", untrusted(path, "it is a link")
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if err := trusted(path, &st, unix.S_IFREG); err != nil {
		return "", err
	}
	if st.Mode&0o100 == 0 {
		return "", &sft.Error{Code: sft.Invalid, Msg: path + " is not run: it is not executable", Hint: "chmod 755 it, or take it away"}
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/fd/3") // of the child: what was looked at, whatever has its name by now
	cmd.Args = []string{path}
	cmd.ExtraFiles = []*os.File{f}
	variable := "SFT_HOOK_USERNAME="
	if strings.HasPrefix(h.Event, "group-") {
		variable = "SFT_HOOK_GROUPNAME="
	}
	cmd.Env = []string{"PATH=" + strings.Join(toolFolders, ":"), "LC_ALL=C", "HOME=/", "SFT_HOOK_EVENT=" + h.Event, variable + h.Name}
	cmd.Dir = "/"
	var out head
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	said := ""
	if out.b.Len() > 0 {
		said = out.line(sft.Secret{})
	}
	switch {
	case errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState.Success(): // it left something that holds its output
		return said, nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return said, &sft.Error{Code: sft.Unavailable, Msg: fmt.Sprintf("%s did not end in %v", path, deadline), Hint: "let it start what takes long in the background of the host, and end"}
	case err != nil:
		return said, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("%s failed: %v: %s", path, err, said), Err: err, Hint: "correct the script"}
	}
	return said, nil
}
