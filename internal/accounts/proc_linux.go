package accounts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A process is what /proc says about one.
type process struct {
	pid     int
	dead    bool   // a zombie: nothing of it runs
	uids    [4]int // real, effective, saved, file system
	session int    // pid of its session's leader
	start   int64  // in ticks since the machine started
}

// of reports whether p runs as uid, or could again.
func (p process) of(uid int) bool { return !p.dead && slices.Contains(p.uids[:3], uid) }

// ticks is how many of /proc's clock ticks make a second. The kernel tells
// programs 100 on every machine that Go runs on, whatever its own clock does.
const ticks = 100

// maxProc is more than any file of /proc that is read here is long.
const maxProc = 64 << 10

// readProc returns the whole of one short file of /proc.
func readProc(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxProc))
}

// parseStatus reads state and uids from /proc/PID/status. A process chooses
// its own name, which the kernel keeps to one line.
func parseStatus(data []byte) (dead bool, uids [4]int, err error) {
	found := false
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		f := strings.Fields(value)
		switch key {
		case "State":
			dead = len(f) > 0 && (f[0] == "Z" || f[0] == "X")
		case "Uid":
			if found || len(f) != 4 {
				return false, uids, errors.New("the line Uid is not as expected")
			}
			for i := range uids {
				var ok bool
				if uids[i], ok = id(f[i]); !ok {
					return false, uids, errors.New("the line Uid is not as expected")
				}
			}
			found = true
		}
	}
	if !found {
		return false, uids, errors.New("there is no line Uid")
	}
	return dead, uids, nil
}

// parseStat reads session and start from /proc/PID/stat. The second field is
// the process's own name in parentheses and may hold anything, so counting
// begins after the last parenthesis.
func parseStat(data []byte) (session int, start int64, err error) {
	_, rest, ok := bytes.Cut(data[max(0, bytes.LastIndexByte(data, ')')):], []byte(") "))
	f := bytes.Fields(rest)
	if !ok || len(f) < 20 {
		return 0, 0, errors.New("stat is too short")
	}
	session, err1 := strconv.Atoi(string(f[3]))            // field 6
	start, err2 := strconv.ParseInt(string(f[19]), 10, 64) // field 22
	return session, start, errors.Join(err1, err2)
}

// processes returns what runs as uid.
func processes(uid int) ([]process, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var all []process
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		p, err := readProcess(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("read process %d: %w", pid, err)
		}
		if p.of(uid) {
			all = append(all, p)
		}
	}
	return all, nil
}

func readProcess(pid int) (process, error) {
	p := process{pid: pid}
	dir := "/proc/" + strconv.Itoa(pid)
	data, err := readProc(dir + "/status")
	if err != nil {
		return p, err
	}
	if p.dead, p.uids, err = parseStatus(data); err != nil {
		return p, err
	}
	if data, err = readProc(dir + "/stat"); err != nil {
		return p, err
	}
	p.session, p.start, err = parseStat(data)
	return p, err
}

// SignedInSince implements Backend: a session leader of that uid is younger
// than t. A process that began in the same hundredth of a second as t counts
// as older, since /proc rounds down: no sign-in is that quick, and what was
// there before t must not pass for one.
func (l *Linux) SignedInSince(_ context.Context, a Account, t time.Time) (bool, error) {
	if a.UID < minID {
		return false, fmt.Errorf("uid %d of %s is the system's", a.UID, a.Login)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return false, fmt.Errorf("read the clock: %w", err)
	}
	after := time.Duration(now.Nano()) - time.Since(t) // t, since the machine started
	all, err := processes(a.UID)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(all, func(p process) bool {
		return p.pid == p.session && p.uids[0] == a.UID && time.Duration(p.start)*(time.Second/ticks) >= after
	}), nil
}

// Logoff implements Backend: logind's own way where it runs, then SIGTERM, and
// SIGKILL until nothing is left.
func (l *Linux) Logoff(ctx context.Context, a Account) error {
	e, _, err := l.again(a)
	if err != nil {
		return err
	}
	for _, p := range e.passwd {
		if p.uid == a.UID && p.login != a.Login {
			return fmt.Errorf("processes of %s cannot be told from those of %s, which has the same uid; give that account another uid and end them by hand", a.Login, p.login)
		}
	}
	all, err := processes(a.UID)
	if err != nil {
		return err
	}
	if _, err := os.Stat("/run/systemd/users/" + strconv.Itoa(a.UID)); err == nil {
		_ = l.tool(ctx, "loginctl", "terminate-user", strconv.Itoa(a.UID)) // what it leaves is ended below
	}
	for _, p := range all {
		signal(p, a.UID, syscall.SIGTERM)
		signal(p, a.UID, syscall.SIGCONT) // one that is stopped heeds it only then
	}
	polite := time.Now().Add(l.term)
	last := polite.Add(10 * time.Second)
	swept := false
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		all, err := processes(a.UID)
		if err != nil {
			return err
		}
		// That none is seen proves nothing before the sweep: a program that
		// forks and ends all the time is never where one looks.
		if len(all) == 0 && swept {
			return nil
		}
		if len(all) == 0 || time.Now().After(polite) || ctx.Err() != nil {
			var sweepErr error
			swept, sweepErr = sweep(ctx, a)
			for _, p := range all {
				signal(p, a.UID, syscall.SIGKILL)
			}
			if swept && len(all) == 0 {
				continue
			}
			if time.Now().After(last) {
				return errors.Join(fmt.Errorf("processes of %s do not end, such as %v; look at what they wait for, or restart the machine", a.Login, pids(all)), sweepErr)
			}
		}
		time.Sleep(wait)
	}
}

// pids names a few processes.
func pids(all []process) []int {
	var s []int
	for _, p := range all[:min(len(all), 5)] {
		s = append(s, p.pid)
	}
	return s
}

// signal sends sig to p if p is still a process of uid: a pidfd is held while
// that is looked at, so that no newer process of that number is hit.
func signal(p process, uid int, sig syscall.Signal) {
	if uid < minID || p.pid <= 1 || p.pid == os.Getpid() {
		return
	}
	h, err := os.FindProcess(p.pid)
	if err != nil {
		return
	}
	defer h.Release()
	if now, err := readProcess(p.pid); err == nil && now.of(uid) && now.start == p.start {
		_ = h.Signal(sig) // it may have ended meanwhile: the next look tells
	}
}

// sweep lets the kernel kill everything that a may signal, at one stroke, and
// reports whether that was done: then nothing that ran as a has survived, nor
// had a child that did. The call is made by a short-lived process with no
// rights but a's, so that another process of a's can kill it first, and
// nothing worse.
func sweep(ctx context.Context, a Account) (bool, error) {
	if a.UID < minID || a.GID < minID {
		return false, fmt.Errorf("uid %d and gid %d are the system's", a.UID, a.GID)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", "kill -s KILL -- -1")
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Dir = "/"
	// No session of its own: SignedInSince must not take it for a sign-in.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(a.UID), Gid: uint32(a.GID)}}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return true, nil // there was nobody else at all
	}
	return err == nil, err
}
