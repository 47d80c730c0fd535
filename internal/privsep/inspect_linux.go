package privsep

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// inspect reads back from outside that process pid is what a broker must be.
// Nothing in it asks the broker. It returns the layers, and an error that names
// the first one that is not as meant.
//
// It needs CAP_SYS_PTRACE: the kernel hides from others what a process that is
// not dumpable has open.
func inspect(pid, uid, gid int) ([]Layer, error) {
	proc := fmt.Sprintf("/proc/%d", pid)
	layers := []Layer{}
	for _, look := range []struct {
		name string
		read func() (detail string, err error)
	}{
		{"account", func() (string, error) {
			ids := func(id int) string { return strings.TrimSuffix(strings.Repeat(fmt.Sprint(id)+"\t", 4), "\t") }
			return fmt.Sprintf("uid %d, gid %d, no other groups", uid, gid),
				everyThread(proc, map[string]string{"Uid": ids(uid), "Gid": ids(gid), "Groups": ""})
		}},
		{"capabilities", func() (string, error) {
			const none = "0000000000000000"
			return "none", everyThread(proc, map[string]string{"CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none})
		}},
		{"no_new_privs", func() (string, error) {
			return "", everyThread(proc, map[string]string{"NoNewPrivs": "1"})
		}},
		{"seccomp", func() (string, error) {
			return "filter on every thread", everyThread(proc, map[string]string{"Seccomp": "2"})
		}},
		{"network namespace", func() (string, error) { return apart(proc, "net") }},
		{"IPC namespace", func() (string, error) { return apart(proc, "ipc") }},
		{"memory", func() (string, error) { return "not dumpable", hidden(proc) }},
		{"descriptors", func() (string, error) { return descriptors(proc) }},
	} {
		detail, err := look.read()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", look.name, err)
		}
		layers = append(layers, Layer{Name: look.name, OK: true, Detail: detail})
	}
	return layers, nil
}

// everyThread reports the first thread of the process at proc whose status
// differs from want. Threads that are made later take after those there are.
func everyThread(proc string, want map[string]string) error {
	threads, err := os.ReadDir(proc + "/task")
	if err != nil {
		return err
	}
	seen := 0
	for _, t := range threads {
		b, err := os.ReadFile(filepath.Join(proc, "task", t.Name(), "status"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return err
		}
		got := map[string]string{}
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(line, ":")
			got[key] = strings.TrimSpace(value)
		}
		for key, w := range want {
			if g, ok := got[key]; !ok || g != w {
				return fmt.Errorf("thread %s has %s %q instead of %q", t.Name(), key, g, w)
			}
		}
		seen++
	}
	if seen == 0 {
		return errors.New("no thread is left")
	}
	return nil
}

// apart returns the namespace of the process at proc, if it is not our own.
func apart(proc, kind string) (string, error) {
	ours, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		return "", err
	}
	theirs, err := os.Readlink(proc + "/ns/" + kind)
	if err != nil {
		return "", err
	}
	if ours == theirs {
		return "", fmt.Errorf("%s is the monitor's own", theirs)
	}
	return theirs, nil
}

// hidden reports whether other processes of the account can look into the
// process at proc: the kernel gives what is in there to root when not.
func hidden(proc string) error {
	i, err := os.Stat(proc + "/fd")
	if err != nil {
		return err
	}
	if s, ok := i.Sys().(*syscall.Stat_t); !ok || s.Uid != 0 {
		return errors.New("it is dumpable")
	}
	return nil
}

// descriptors reports what the process at proc has open beyond what it was
// given and what the Go runtime opens by itself.
func descriptors(proc string) (string, error) {
	open, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return "", err
	}
	count := map[string]int{}
	for _, fd := range open {
		to, err := os.Readlink(filepath.Join(proc, "fd", fd.Name()))
		if err != nil {
			return "", err
		}
		kind, _, _ := strings.Cut(to, "[")
		switch {
		case to == "/dev/null", kind == "pipe:", kind == "socket:":
		case to == "anon_inode:[eventpoll]", to == "anon_inode:[eventfd]":
			continue
		case strings.HasSuffix(to, "/cpu.max"), strings.HasSuffix(to, "/cpu.cfs_quota_us"), strings.HasSuffix(to, "/cpu.cfs_period_us"):
			continue // the runtime watches how much CPU it may use
		default:
			return "", fmt.Errorf("%s is open as %s", to, fd.Name())
		}
		count[kind]++
	}
	if count["/dev/null"] != 2 || count["pipe:"] != 1 || count["socket:"] != 1 {
		return "", fmt.Errorf("open are %v instead of /dev/null twice, a pipe and the channel", count)
	}
	return "null, null, log, channel", nil
}
