package sshd

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Process is the part of the SSH server, with root's rights, that serves one
// connection.
type Process struct {
	PID   int    `json:"pid"`
	Began string `json:"began"` // it tells two processes of one number apart
}

// Process returns the process that a sign-in was told of; false is that it is
// over. The log may be read long after it was written: by then a process of
// that number can serve somebody else.
func (s *Server) Process(l Login) (Process, bool) {
	p := Process{l.PID, started(l.PID)}
	return p, s.Alive(p) && serves(p.PID, l.Login) && !beganAfter(p, l)
}

// clockStep is by how much this machine's clock may have been set since a line
// of the log was written, where only that clock tells when it was. Two processes
// of one number and for one login are further apart.
const clockStep = time.Minute

// beganAfter reports whether p began after a sign-in was told of.
func beganAfter(p Process, l Login) bool {
	const tick = time.Second / 100 // USER_HZ, on all that Go runs on
	n, err := strconv.ParseInt(p.Began, 10, 64)
	var boot, up unix.Timespec // with the time that the machine slept, and without
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil || unix.ClockGettime(unix.CLOCK_MONOTONIC, &up) != nil {
		return false
	}
	began, slept := time.Duration(n)*tick, time.Duration(boot.Nano()-up.Nano())
	if l.Boot != "" && l.Boot == bootID() {
		return began > l.Up+slept+tick
	}
	age := time.Duration(boot.Nano()) - began
	return !l.At.IsZero() && time.Now().Add(-age).After(l.At.Add(clockStep))
}

// bootID is that of this boot, as the journal has it.
func bootID() string {
	b, _ := readCapped("/proc/sys/kernel/random/boot_id")
	return strings.ReplaceAll(strings.TrimSpace(string(b)), "-", "")
}

// title is what a process calls itself.
func title(pid int) string {
	b, _ := readCapped(fmt.Sprintf("/proc/%d/cmdline", pid))
	t, _, _ := strings.Cut(string(b), "\x00")
	return t
}

// serves reports whether a process of the server's is, by its title, for login.
// For root it serves the connection itself, and names its terminals (session.c,
// session_proctitle).
func serves(pid int, login string) bool {
	_, who, ok := strings.Cut(title(pid), ": ")
	return ok && (who == login+" [priv]" || strings.HasPrefix(who, login+"@"))
}

// Alive reports whether p still serves its connection.
func (s *Server) Alive(p Process) bool { return alive(p, s.goingPrograms()) }

func alive(p Process, programs []string) bool {
	return p.PID > 1 && p.Began != "" && started(p.PID) == p.Began &&
		slices.ContainsFunc(programs, func(program string) bool { return program != "" && isServer(p.PID, program) })
}

// servingRE is what sshd calls such a process, from the moment that it knows
// who wants in (monitor.c, mm_answer_pwnamallow).
var servingRE = regexp.MustCompile(`^sshd(?:-session)?: ([a-z_][a-z0-9_-]{0,31}) \[priv\]$`)

// Serving returns the processes for everybody who has signed in as one of
// logins, or is about to. Somebody may have been let in and run as root yet:
// PAM comes before the account's own processes, and can take long.
func (s *Server) Serving(logins ...string) (list []Process) {
	dirs, _ := os.ReadDir("/proc")
	programs := s.goingPrograms()
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		m := servingRE.FindStringSubmatch(title(pid))
		if m == nil || !slices.Contains(logins, m[1]) {
			continue
		}
		if p := (Process{pid, started(pid)}); alive(p, programs) {
			list = append(list, p)
		}
	}
	return list
}

// endPatience is how long a process has to end a connection in order.
const endPatience = time.Second

// End ends the connections that these processes serve, and returns when they
// are gone, or were killed. What a person has left running goes on.
func (s *Server) End(ctx context.Context, list []Process) {
	programs := s.goingPrograms()
	tell := func(sig syscall.Signal) {
		for _, p := range list {
			h, err := os.FindProcess(p.PID) // held, so that none of the same number is hit
			if err != nil {
				continue
			}
			if alive(p, programs) {
				_ = h.Signal(sig) // it may have ended
			}
			h.Release()
		}
	}
	tell(syscall.SIGTERM)
	for end := time.Now().Add(endPatience); len(list) > 0; time.Sleep(10 * time.Millisecond) {
		list = slices.DeleteFunc(slices.Clone(list), func(p Process) bool { return !alive(p, programs) })
		if time.Now().After(end) || ctx.Err() != nil {
			tell(syscall.SIGKILL)
			return
		}
	}
}
