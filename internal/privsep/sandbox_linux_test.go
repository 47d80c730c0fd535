package privsep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/google/go-cmp/cmp"
	landlocksys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// probe is a broker that somebody has taken over: it tries what he would, and
// sends what came of it as the frame of an Open.
func probe(string) error {
	m, err := Enter()
	if err != nil {
		return err
	}
	c := <-m.Commands()
	listener, err := c.Listener.(*net.TCPListener).SyscallConn()
	if err != nil {
		return err
	}
	conn, err := c.Listener.Accept() // works: it is the first thing the test looks at
	if err != nil {
		return err
	}
	peer, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	parent, err := strconv.Atoi(os.Getenv("SFT_TEST_PARENT"))
	if err != nil {
		return err
	}
	results := map[string]string{}
	for _, a := range attempts(parent, listener, peer, conn.LocalAddr().(*net.TCPAddr).Port) {
		results[a.name] = outcome(a.try())
	}
	b, err := json.Marshal(results)
	if err != nil {
		return err
	}
	_, _, err = m.Open(context.Background(), Open{Certificates: [][]byte{{0}}, Frame: b, Remote: "probe"})
	return err
}

// outcome names what came of an attempt.
func outcome(err error) string {
	if err == nil {
		return "DONE"
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// cpuLimit is what the file says that the Go runtime itself keeps open.
var cpuLimit = regexp.MustCompile(`^(max|-?[0-9]+)( [0-9]+)?\n$`)

// An attempt is something that a broker must not manage. want is empty for
// EPERM, the answer of the filter.
type attempt struct {
	name string
	want string
	try  func() error
}

// call0 makes a system call for its error.
func call0(number uintptr, a ...uintptr) error {
	var arg [6]uintptr
	copy(arg[:], a)
	if _, _, errno := syscall.Syscall6(number, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]); errno != 0 {
		return errno
	}
	return nil
}

// on runs f on the descriptor of a connection.
func on(c syscall.RawConn, f func(fd int) error) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) { err = f(int(fd)) }), err)
}

// attempts returns what a broker taken over would try.
func attempts(parent int, listener, peer syscall.RawConn, port int) []attempt {
	local := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}
	path := func(s string) uintptr { b, _ := unix.BytePtrFromString(s); return uintptr(unsafe.Pointer(b)) }
	pid := uintptr(parent)
	page := make([]byte, 64)
	here := uintptr(unsafe.Pointer(&page[0]))
	open := func(name string, flags int) func() error {
		return func() error { _, err := unix.Open(name, flags, 0o600); return err }
	}
	socket := func(domain, kind, proto int) func() error {
		return func() error { _, err := unix.Socket(domain, kind, proto); return err }
	}
	simple := func(number uintptr, a ...uintptr) func() error { return func() error { return call0(number, a...) } }
	// A new process must not go on as a second test.
	fork := func(number uintptr, a ...uintptr) func() error {
		return func() error {
			var arg [3]uintptr
			copy(arg[:], a)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			r, _, errno := syscall.RawSyscall(number, arg[0], arg[1], arg[2])
			if errno != 0 {
				return errno
			}
			if r == 0 {
				syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
			return nil
		}
	}
	some := []attempt{
		{"open a file", "", open("/etc/passwd", unix.O_RDONLY)},
		{"open itself", "", open("/proc/self/exe", unix.O_RDONLY)},
		{"open a folder", "", open("/", unix.O_PATH)},
		{"make a file", "", open("/tmp/privsep-was-here", unix.O_CREAT|unix.O_WRONLY)},
		{"open a file by openat2", "", func() error {
			_, err := unix.Openat2(unix.AT_FDCWD, "/etc/passwd", &unix.OpenHow{})
			return err
		}},
		{"make a folder", "", func() error { return unix.Mkdir("/tmp/privsep-was-here", 0o700) }},
		{"remove a file", "", func() error { return unix.Unlink("/tmp/none") }},
		{"look at a file", "", func() error { var s unix.Stat_t; return unix.Stat("/etc/passwd", &s) }},
		{"read the monitor's memory by its file", "", open(fmt.Sprintf("/proc/%d/mem", parent), unix.O_RDONLY)},
		{"make an IPv4 socket", "", socket(unix.AF_INET, unix.SOCK_STREAM, 0)},
		{"make an IPv6 socket", "", socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)},
		{"make a Unix socket", "", socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)},
		{"make a netlink socket", "", socket(unix.AF_NETLINK, unix.SOCK_RAW, 0)},
		{"make a vsock socket", "", socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)},
		{"make a socket pair", "", func() error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err }},
		{"make a pipe", "", func() error { var p [2]int; return unix.Pipe2(p[:], 0) }},
		{"connect a socket it has", "", func() error { return on(peer, func(fd int) error { return unix.Connect(fd, local) }) }},
		{"take a socket it has apart, to connect it again", "", func() error {
			unspec := make([]byte, 16)
			return on(peer, func(fd int) error {
				return call0(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec[0])), 16)
			})
		}},
		{"bind a socket it has", "", func() error { return on(peer, func(fd int) error { return unix.Bind(fd, local) }) }},
		{"listen on a socket it has", "", func() error { return on(peer, func(fd int) error { return unix.Listen(fd, 1) }) }},
		{"turn the listener back into a fresh socket", "", func() error {
			return on(listener, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) })
		}},
		{"connect by sending (sendto, MSG_FASTOPEN)", "", func() error {
			return on(listener, func(fd int) error { return unix.Sendto(fd, page, unix.MSG_FASTOPEN, local) })
		}},
		{"connect by sending (sendmsg, MSG_FASTOPEN)", "", func() error {
			return on(listener, func(fd int) error { return unix.Sendmsg(fd, page, nil, local, unix.MSG_FASTOPEN) })
		}},
		{"let a write connect (TCP_FASTOPEN_CONNECT)", "", func() error {
			return on(peer, func(fd int) error {
				return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
			})
		}},
		{"attach a program to a socket", "", func() error {
			return on(peer, func(fd int) error {
				f := unix.SockFilter{Code: unix.BPF_RET, K: 0}
				return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &f})
			})
		}},
		{"put a protocol on a socket (TCP_ULP)", "", func() error {
			return on(peer, func(fd int) error { return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_ULP, "tls") })
		}},
		{"ask the network for a device (ioctl)", "", func() error {
			return on(peer, func(fd int) error { _, err := unix.IoctlGetInt(fd, unix.SIOCGIFINDEX); return err })
		}},
		{"start a program", "", func() error { return unix.Exec("/bin/true", []string{"true"}, nil) }},
		{"start a program by descriptor", "", simple(unix.SYS_EXECVEAT, 0, path(""), 0, 0, unix.AT_EMPTY_PATH)},
		{"make a process (clone)", "", fork(unix.SYS_CLONE, uintptr(unix.SIGCHLD))},
		{"make a process that shares memory (clone)", "", fork(unix.SYS_CLONE, unix.CLONE_VM|unix.CLONE_VFORK|uintptr(unix.SIGCHLD))},
		{"make a user namespace (clone)", "", fork(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD))},
		{"make a process (clone3)", "ENOSYS", simple(unix.SYS_CLONE3, here, 64)},
		{"trace the monitor", "", func() error { return unix.PtraceAttach(parent) }},
		{"let the monitor trace it", "", simple(unix.SYS_PTRACE, unix.PTRACE_TRACEME)},
		{"read the monitor's memory", "", func() error {
			_, err := unix.ProcessVMReadv(parent, []unix.Iovec{{Base: &page[0], Len: 1}}, []unix.RemoteIovec{{Base: here, Len: 1}}, 0)
			return err
		}},
		{"write the monitor's memory", "", func() error {
			_, err := unix.ProcessVMWritev(parent, []unix.Iovec{{Base: &page[0], Len: 1}}, []unix.RemoteIovec{{Base: here, Len: 1}}, 0)
			return err
		}},
		{"signal the monitor", "", func() error { return unix.Kill(parent, 0) }},
		{"signal a thread of the monitor", "", func() error { return unix.Tgkill(parent, parent, 0) }},
		{"find out by a signal who is there", "", func() error { return unix.Tgkill(1<<22-1, 1<<22-1, 0) }},
		{"signal a thread by number alone", "", simple(unix.SYS_TKILL, pid, 0)},
		{"get a handle on the monitor", "", func() error { _, err := unix.PidfdOpen(parent, 0); return err }},
		{"queue a signal", "", simple(unix.SYS_RT_SIGQUEUEINFO, pid, 0, here)},
		{"become root", "", simple(unix.SYS_SETUID, 0)},
		{"become root's group", "", simple(unix.SYS_SETGID, 0)},
		{"become root by setresuid", "", simple(unix.SYS_SETRESUID, 0, 0, 0)},
		{"join groups", "", simple(unix.SYS_SETGROUPS, 0, 0)},
		{"take capabilities", "", simple(unix.SYS_CAPSET, here, here)},
		{"mount", "", func() error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") }},
		{"mount by the newer calls", "", func() error { _, err := unix.Fsopen("tmpfs", 0); return err }},
		{"make a user namespace", "", simple(unix.SYS_UNSHARE, unix.CLONE_NEWUSER)},
		{"enter another namespace", "", simple(unix.SYS_SETNS, 0, 0)},
		{"change its root", "", simple(unix.SYS_CHROOT, path("/tmp"))},
		{"change its folder", "", simple(unix.SYS_CHDIR, path("/tmp"))},
		{"be dumpable again", "", simple(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1)},
		{"let anyone trace it", "", simple(unix.SYS_PRCTL, unix.PR_SET_PTRACER, ^uintptr(0))},
		{"outlive the monitor", "", simple(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, 0)},
		{"raise its limits", "", simple(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, here, 0)},
		{"add a filter", "", simple(unix.SYS_SECCOMP, 1, 0, here)},
		{"use io_uring", "", simple(unix.SYS_IO_URING_SETUP, 1, here)},
		{"make a file in memory", "", func() error { _, err := unix.MemfdCreate("x", 0); return err }},
		{"load a BPF program", "", simple(unix.SYS_BPF, 0, here, 64)},
		{"watch performance", "", simple(unix.SYS_PERF_EVENT_OPEN, here, 0, 0)},
		{"handle page faults", "", simple(unix.SYS_USERFAULTFD, 0)},
		{"use the key ring", "", simple(unix.SYS_KEYCTL, 0, 0, 0)},
		{"load a module", "", simple(unix.SYS_FINIT_MODULE, 0, here, 0)},
		{"share memory with others", "", simple(unix.SYS_SHMGET, 0, 4096, unix.IPC_CREAT)},
		{"watch files", "", func() error { _, err := unix.InotifyInit1(0); return err }},
		{"trade places in the order of processes", "", simple(unix.SYS_SETPRIORITY, 0, 0, 0)},
		{"map executable memory", "", func() error {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
			return err
		}},
		{"make memory executable", "", func() error {
			b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
			if err != nil {
				return fmt.Errorf("no memory at all: %v", err)
			}
			return unix.Mprotect(b, unix.PROT_READ|unix.PROT_EXEC)
		}},
		{"call through the x32 door", "ENOSYS", simple(0x40000000|unix.SYS_GETPID, 0)},
		{"read what else is open", "EBADF", func() error {
			for fd := 3; fd < 1000; fd++ {
				n, err := unix.Pread(fd, page, 0)
				if err == nil && !cpuLimit.Match(page[:n]) {
					return fmt.Errorf("%d is a file", fd)
				}
			}
			return unix.EBADF
		}},
	}
	if runtime.GOARCH != "amd64" {
		some = some[:len(some)-2]
	}
	return some
}

func TestNothingGetsOutOfTheSandbox(t *testing.T) {
	for name, path := range builds(t) {
		t.Run(name, func(t *testing.T) {
			// Something that this process was given, and has not marked.
			leak, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(leak)
			if flags, err := unix.FcntlInt(uintptr(leak), unix.F_GETFD, 0); err != nil || flags != 0 {
				t.Fatalf("the descriptor is marked already: %d, %v", flags, err)
			}

			frames := make(chan []byte, 1)
			cfg := config(t, "probe")
			cfg.Path = path
			c := start(t, cfg, &testHandler{open: func(_ context.Context, o Open) (OpenReply, *os.File, error) {
				frames <- o.Frame
				return OpenReply{Reply: []byte("{}")}, nil, nil
			}})
			l, f := listen(t)
			if err := c.Configure(Configuration{}, f); err != nil {
				t.Fatal(err)
			}
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()

			want := map[string]string{}
			for _, a := range attempts(os.Getpid(), nil, nil, 0) {
				want[a.name] = a.want
				if a.want == "" {
					want[a.name] = "EPERM"
				}
			}
			got := map[string]string{}
			<-c.Done() // it ends when it has told
			select {
			case b := <-frames:
				if err := json.Unmarshal(b, &got); err != nil {
					t.Fatal(err)
				}
			default:
				t.Fatal(c.Wait())
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("what was tried and came of it (-want +got):\n%s", diff)
			}
		})
	}
}

// listen returns a listener on loopback, and its file.
func listen(t *testing.T) (net.Listener, *os.File) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); f.Close() })
	return l, f
}

// skip is a broker that leaves out a part of the sandbox and says it is ready.
func skip(what string) error {
	if strings.Contains(what, "filter") {
		what += " calls"
	}
	ch, err := enterBut(what)
	if err != nil {
		return err
	}
	if strings.Contains(what, "filter on one thread") {
		err = filterOneThread()
	}
	if strings.Contains(what, "nnp only") {
		err = landlocksys.AllThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	if err != nil {
		return err
	}
	if err := ch.send(call{Request: Request{Ready: &Ready{Layers: []Layer{{Name: "seccomp", OK: true}}}}}, nil); err != nil {
		return err
	}
	time.Sleep(time.Minute)
	return nil
}

// filterOneThread loads the filter, but on one thread.
func filterOneThread() error {
	if err := landlocksys.AllThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	loaded := make(chan error)
	go func() {
		runtime.LockOSThread()
		loaded <- loadFilter(0)
		select {}
	}()
	return <-loaded
}

func TestMonitorRefusesWhatIsNotLockedIn(t *testing.T) {
	tests := []struct {
		name  string
		role  string
		birth func(*os.ProcAttr)
		want  string // how the error begins, after "start broker: "
	}{
		{"a broker that is root", "skip:birth", func(a *os.ProcAttr) { a.Sys.Credential = nil }, "account: thread "},
		{"a broker in a group of root's", "skip:", func(a *os.ProcAttr) { a.Sys.Credential.Groups = []uint32{4} }, "account: thread "},
		{"a broker of another account", "skip:", func(a *os.ProcAttr) { a.Sys.Credential.Uid++ }, "account: thread "},
		{"a broker with a capability", "skip:", func(a *os.ProcAttr) { a.Sys.AmbientCaps = []uintptr{unix.CAP_NET_BIND_SERVICE} }, "capabilities: thread "},
		{"a broker that may gain rights", "skip:files calls", nil, "no_new_privs: thread "},
		{"a broker without a filter", "skip:files calls nnp only", nil, "seccomp: thread "},
		{"a broker with a filter on one thread", "skip:filter on one thread", nil, "seccomp: thread "},
		{"a broker in the host's network", "skip:birth", func(a *os.ProcAttr) { a.Sys.Cloneflags &^= syscall.CLONE_NEWNET }, "network namespace: net:["},
		{"a broker that shares the host's IPC", "skip:", func(a *os.ProcAttr) { a.Sys.Cloneflags &^= syscall.CLONE_NEWIPC }, "IPC namespace: ipc:["},
		{"a broker that can be dumped", "skip:memory", nil, "memory: it is dumpable"},
		{"a broker with a file", "skip:", func(a *os.ProcAttr) {
			f, err := os.Open("/etc/passwd")
			if err != nil {
				panic(err)
			}
			a.Files = append(a.Files, f)
		}, "descriptors: /etc/passwd is open as 4"},
		{"a broker with a second channel", "skip:", func(a *os.ProcAttr) { a.Files = append(a.Files, a.Files[channelFD]) }, "descriptors: open are "},
		{"a broker that sees itself as root", "idle", func(a *os.ProcAttr) { a.Sys.Credential = nil }, "it ended at once: the broker runs as root; let sftd start its broker itself"},
		{"a broker that sees a network", "idle", func(a *os.ProcAttr) { a.Sys.Cloneflags &^= syscall.CLONE_NEWNET }, "it ended at once: the broker sees network interface "},
		{"a broker that ends", "fail", nil, "it ended at once: the broker has no mind to"},
		{"something else first", "hostile:sign before ready", nil, "it sent something else than ready"},
		{"nonsense first", "hostile:nonsense before ready", nil, "it sent not a request: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(t, tt.role)
			cfg.birth = tt.birth
			c, err := Start(t.Context(), cfg, &testHandler{})
			if err == nil {
				c.Kill()
				t.Fatal("Start took it")
			}
			if got, want := err.Error(), "start broker: "+tt.want; !strings.HasPrefix(got, want) {
				t.Errorf("Start = %q, want %q…", got, want)
			}
		})
	}
}

func TestStartRefusesRoot(t *testing.T) {
	for _, cfg := range []Config{{}, {UID: testID}, {GID: testID}} {
		if _, err := Start(t.Context(), cfg, &testHandler{}); err == nil || !strings.Contains(err.Error(), "its account is root") {
			t.Errorf("Start as %d:%d = %v", cfg.UID, cfg.GID, err)
		}
	}
}

func TestLayers(t *testing.T) {
	c := start(t, config(t, "idle"), &testHandler{})
	got := []string{}
	for _, l := range c.Layers() {
		got = append(got, fmt.Sprint(l.Name, " ", l.OK))
	}
	_, err := landlocksys.LandlockGetABIVersion()
	want := []string{
		"account true", "capabilities true", "no_new_privs true", "seccomp true", "network namespace true",
		"IPC namespace true", "memory true", "descriptors true", fmt.Sprint("landlock ", err == nil),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Layers (-want +got):\n%s", diff)
	}
}

// The filter is made for the processors that releases are built for; a call
// that one of them does not have would keep every broker there from starting.
func TestFilterKnowsItsCalls(t *testing.T) {
	for _, group := range callPolicy().Syscalls {
		for _, name := range group.Names {
			checkCall(t, name)
		}
		for _, r := range group.NamesWithCondtions {
			checkCall(t, r.Name)
		}
	}
}

// checkCall reports a call that a kind of processor does not have.
func checkCall(t *testing.T, name string) {
	t.Helper()
	for _, a := range []*arch.Info{arch.X86_64, arch.AARCH64} {
		if _, ok := a.SyscallNames[name]; !ok {
			t.Errorf("%s has no call %s", a.Name, name)
		}
	}
}
