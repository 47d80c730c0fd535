package privsep

import (
	"os"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// A rule is a call that is allowed with some arguments only: all conditions of one rule
// must hold, and one rule of that name.
type rule = seccomp.NameWithConditions

// only returns a rule with one condition.
func only(name string, argument uint32, op seccomp.Operation, value uint64) rule {
	return rule{Name: name, Conditions: seccomp.ArgumentConditions{{Argument: argument, Operation: op, Value: value}}}
}

// callPolicy returns the system calls of a broker: what the Go runtime needs to
// live, and what package net needs to serve sockets that others made. The rest
// fails with EPERM. The busiest calls come first.
//
// What is not here and why:
//   - Nothing makes a file descriptor but accept4 and the channel.
//   - sendto and the flags of sendmsg would connect a socket without connect
//     (MSG_FASTOPEN), after shutdown had turned a listener back into a fresh
//     socket of the host's network. So sendmsg has no flags, and shutdown
//     closes the writing half alone.
//   - setsockopt may not attach programs (SO_ATTACH_FILTER) or change where
//     packets go: it has a list of options.
//   - No new memory is executable, and no memory becomes so.
//   - Signals reach this process alone; clone makes threads alone. clone3
//     hides its flags from a filter, and says it does not exist.
func callPolicy() seccomp.Policy {
	names := []string{
		"read", "write", "futex", "epoll_pwait", "nanosleep",
		"recvmsg", "accept4", "epoll_ctl", "close", "writev", "getsockname", "getpeername",
		"sched_yield", "clock_gettime", "getpid", "gettid", "getrandom",
		"munmap", "madvise", "rt_sigprocmask", "rt_sigreturn", "rt_sigaction", "sigaltstack",
		"sched_getaffinity", "pread64", // the runtime looks at its CPUs and their limit from time to time
		"restart_syscall", "exit", "exit_group",
	}
	const newThread = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD
	rules := []rule{
		only("mmap", 2, seccomp.BitsNotSet, unix.PROT_EXEC),
		only("clone", 0, seccomp.Equal, newThread),
		only("clone", 0, seccomp.Equal, newThread|unix.CLONE_SETTLS), // on amd64
		only("tgkill", 0, seccomp.Equal, uint64(os.Getpid())),
		only("sendmsg", 2, seccomp.Equal, 0),
		only("shutdown", 1, seccomp.Equal, unix.SHUT_WR),
		only("getsockopt", 1, seccomp.Equal, unix.SOL_SOCKET),
	}
	for _, command := range []uint64{unix.F_GETFL, unix.F_SETFL, unix.F_GETFD, unix.F_SETFD, unix.F_DUPFD_CLOEXEC} {
		rules = append(rules, only("fcntl", 1, seccomp.Equal, command))
	}
	for _, option := range [][2]uint64{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE}, {unix.SOL_SOCKET, unix.SO_LINGER},
		{unix.SOL_SOCKET, unix.SO_RCVBUF}, {unix.SOL_SOCKET, unix.SO_SNDBUF},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT},
	} {
		rules = append(rules, rule{Name: "setsockopt", Conditions: seccomp.ArgumentConditions{
			{Argument: 1, Operation: seccomp.Equal, Value: option[0]},
			{Argument: 2, Operation: seccomp.Equal, Value: option[1]},
		}})
	}
	names = append(names, libcNames...)
	rules = append(rules, libcRules...)
	return seccomp.Policy{
		DefaultAction: seccomp.ActionErrno,
		Syscalls: []seccomp.SyscallGroup{
			{Action: seccomp.ActionAllow, Names: names, NamesWithCondtions: rules},
			{Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS), Names: []string{"clone3"}},
		},
	}
}
