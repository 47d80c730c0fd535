package privsep

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// launch starts a broker. The calling goroutine must live as long as the
// broker does, and do nothing else: it gets a thread of its own, since the
// kernel kills the child when the thread that started it ends.
func launch(cfg Config) (launched, error) {
	if cfg.UID <= 0 || cfg.GID <= 0 {
		return launched{}, errors.New("its account is root; name another account as BrokerUser")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
	ch, theirs, err := newChannel()
	if err != nil {
		return launched{}, fmt.Errorf("open channel: %w", err)
	}
	defer theirs.Close()
	proc, log, err := spawn(cfg, theirs)
	if err != nil {
		ch.close()
		return launched{}, err
	}
	return launched{proc: child{proc}, ch: ch, log: log}, nil
}

// A child is the process of a broker.
type child struct{ p *os.Process }

func (c child) pid() int { return c.p.Pid }

func (c child) kill() { c.p.Kill() }

func (c child) wait() (ending, error) {
	state, err := c.p.Wait()
	if err != nil {
		return ending{}, err
	}
	return ending{how: state.String(), ok: state.Success()}, nil
}

func (c child) inspect(cfg Config, told Ready) ([]Layer, error) {
	layers, err := inspect(c.p.Pid, cfg.UID, cfg.GID)
	if err != nil {
		return nil, err
	}
	landlock := Layer{Name: "landlock", Detail: "not told"}
	for _, l := range told.Layers {
		if l.Name == landlock.Name {
			landlock.OK, landlock.Detail = l.OK, text(l.Detail)
		}
	}
	return append(layers, landlock), nil
}

// spawn starts the child from the calling thread and returns the reading end
// of its log.
func spawn(cfg Config, channelEnd *os.File) (*os.Process, *os.File, error) {
	if err := dropInheritable(); err != nil {
		return nil, nil, err
	}
	if err := closeOnExec(); err != nil {
		return nil, nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer w.Close()
	path, argv := cfg.Path, cfg.Argv
	if path == "" {
		path = "/proc/self/exe" // also when an upgrade has replaced the file
	}
	if len(argv) == 0 {
		argv = []string{"sftd", "broker"}
	}
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   append([]string{}, cfg.Env...), // not nil: that would be our own
		Files: []*os.File{null, null, w, channelFD: channelEnd},
		Sys: &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: uint32(cfg.UID), Gid: uint32(cfg.GID)},
			Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
			Setsid:     true, // no terminal, and no signal from one
			Pdeathsig:  syscall.SIGKILL,
		},
	}
	if cfg.birth != nil {
		cfg.birth(attr)
	}
	proc, err := os.StartProcess(path, argv, attr)
	if err != nil {
		r.Close()
		return nil, nil, err
	}
	return proc, r, nil
}

// dropInheritable empties the calling thread's inheritable capabilities, which
// a change of user leaves as they are, and the ambient ones with them.
func dropInheritable() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	sets[0].Inheritable, sets[1].Inheritable = 0, 0
	return os.NewSyscallError("capset", unix.Capset(&header, &sets[0]))
}

// closeOnExec keeps from the child what this process was itself given by the
// one that started it. Files that Go opens are marked already.
func closeOnExec() error {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}
