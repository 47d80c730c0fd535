package privsep

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/landlock-lsm/go-landlock/landlock"
	landlocksys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// channelFD is where the monitor puts the broker's end of the channel.
const channelFD = 3

// Enter gives up everything a broker does not need, for good, and returns the
// way to its monitor. Call it first in main, before anything opens a file or
// reads from the network. On an error the program must exit: some rights may be
// gone and others not.
//
// Without an unprivileged account, a network namespace of its own, or a system
// call filter it fails. Landlock is used as far as the kernel has it.
func Enter() (*Monitor, error) {
	if err := checkBirth(); err != nil {
		return nil, err
	}
	if err := dropMemory(); err != nil {
		return nil, fmt.Errorf("enter sandbox: %w", err)
	}
	c, err := openChannel(os.NewFile(channelFD, "monitor"))
	if err != nil {
		return nil, fmt.Errorf("open channel: %w; let sftd start its broker itself", err)
	}
	files, err := dropFiles()
	if err != nil {
		return nil, fmt.Errorf("enter sandbox: %w", err)
	}
	if err := dropCalls(); err != nil {
		return nil, fmt.Errorf("enter sandbox: %w", err)
	}
	return newMonitor(c, Ready{Layers: []Layer{files}}, nil, exit)
}

// checkBirth refuses to be a broker with rights that only the monitor can
// leave out.
func checkBirth() error {
	if os.Getuid() == 0 || os.Geteuid() == 0 || os.Getgid() == 0 || os.Getegid() == 0 {
		return errors.New("the broker runs as root; let sftd start its broker itself")
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list network interfaces: %w", err)
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagUp != 0 {
			return fmt.Errorf("the broker sees network interface %s; let sftd start its broker itself", i.Name)
		}
	}
	return nil
}

// dropMemory keeps other processes of the account out of this one, its memory
// out of core files, and what it can use up within bounds.
func dropMemory() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	for resource, most := range map[int]uint64{
		unix.RLIMIT_CORE:   0,
		unix.RLIMIT_FSIZE:  0,     // pipes and sockets have no size
		unix.RLIMIT_NPROC:  1024,  // threads, of all brokers of this account
		unix.RLIMIT_NOFILE: 65536, // two sockets a stream
	} {
		var l unix.Rlimit
		if err := unix.Getrlimit(resource, &l); err != nil {
			return os.NewSyscallError("getrlimit", err)
		}
		l.Max = min(l.Max, most)
		l.Cur = l.Max
		if err := unix.Setrlimit(resource, &l); err != nil {
			return os.NewSyscallError("setrlimit", err)
		}
	}
	return nil
}

// dropFiles turns on Landlock with every restriction that the kernel knows and
// no exception. It is the one layer that may be missing.
func dropFiles() (Layer, error) {
	abi, err := landlocksys.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return Layer{Name: "landlock", Detail: "this kernel has none; the other layers hold"}, nil
	}
	if err := landlock.V11.BestEffort().Restrict(); err != nil {
		return Layer{}, fmt.Errorf("landlock: %w", err)
	}
	if f, err := os.Open("/proc/self/exe"); err == nil {
		f.Close()
		return Layer{}, errors.New("landlock: a file could be opened")
	}
	return Layer{Name: "landlock", OK: true, Detail: fmt.Sprintf("version %d, by the broker's word", abi)}, nil
}

// dropCalls sets no_new_privs and the system call filter on every thread.
func dropCalls() error {
	if err := loadFilter(seccomp.FilterFlagTSync); err != nil {
		return err
	}
	// The kernel tells of a thread that did not take the filter in a way that
	// looks like success, with no filter anywhere.
	if fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); err != unix.EPERM {
		unix.Close(fd)
		return errors.New("system call filter: not on")
	}
	return nil
}

// loadFilter loads the filter on the calling thread, and with the flag TSync on
// the others: they take no_new_privs along.
func loadFilter(flag seccomp.FilterFlag) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Flag: flag, Policy: callPolicy()})
}
