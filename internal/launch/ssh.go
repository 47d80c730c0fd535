package launch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/crypto/ssh"

	"sft"
	"sft/internal/loopback"
	"sft/internal/relay"
)

// FindSSH returns the path of the system's OpenSSH.
func FindSSH() (string, error) {
	path := systemSSH()
	if path != "" {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath("ssh")
	if err != nil {
		return "", &sft.Error{Code: sft.Invalid, Msg: "there is no OpenSSH client on this machine: ssh is not found", Err: err, Hint: "install it: the package is openssh-client, openssh-clients or, on Windows, the feature OpenSSH Client"}
	}
	return path, nil
}

// KnownHosts returns the lines of known_hosts(5) by which what is called name
// proves itself: by a certificate for that name if cas are given, or by one of
// keys. name was checked, and has no blank, comma or wildcard in it.
func KnownHosts(name string, cas, keys []ssh.PublicKey) []byte {
	var b bytes.Buffer
	for _, k := range cas {
		b.WriteString("@cert-authority " + name + " ")
		b.Write(ssh.MarshalAuthorizedKey(k))
	}
	for _, k := range keys {
		b.WriteString(name + " ")
		b.Write(ssh.MarshalAuthorizedKey(k))
	}
	return b.Bytes()
}

// RunSSH starts OpenSSH with this process's terminal and waits for it. What the
// keyboard sends as signals reaches it by the terminal; a signal that ended ctx
// otherwise is passed on. started is told its process id. It ends with this
// process, and its exit status is returned: 128 and its number if a signal
// ended it.
func RunSSH(ctx context.Context, path string, argv []string, started func(pid int) error) (status int, err error) {
	cmd := exec.Command(path, argv...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	beside(cmd)
	// The terminal sends Ctrl-C to both: it is for ssh to act on.
	keys := make(chan os.Signal, 4)
	signal.Notify(keys, os.Interrupt, syscall.SIGQUIT)
	defer signal.Stop(keys)
	result := make(chan error, 1)
	done := make(chan struct{})
	begun := make(chan error)
	go func() {
		// As in start: the kernel counts the thread's death as ours.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			begun <- &sft.Error{Code: sft.Invalid, Msg: "start ssh: " + err.Error(), Err: err, Hint: "check " + path}
			return
		}
		err := tie(cmd.Process.Pid)
		if err == nil {
			err = started(cmd.Process.Pid)
		}
		if err != nil {
			cmd.Process.Kill()
			cmd.Wait()
			begun <- err
			return
		}
		begun <- nil
		result <- cmd.Wait()
		close(done)
	}()
	if err := <-begun; err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { passOn(context.Cause(ctx), cmd.Process) })
	defer stop()
	go follow(cmd.Process.Pid, done)
	err = <-result
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		return 0, err
	}
	return exitStatus(cmd.ProcessState), nil
}

// maxSockets caps how many sockets of one run are relayed at once.
const maxSockets = 8

// Relay gives each socket of l a connection by dial, until l is closed. failed
// is told why one got none.
func Relay(ctx context.Context, l *loopback.Listener, dial func(context.Context) (net.Conn, error), failed func(error)) {
	places := make(chan struct{}, maxSockets)
	for {
		c, err := l.Accept()
		if s, ok := errors.AsType[*loopback.StrangerError](err); ok {
			failed(s)
			continue
		}
		if err != nil {
			return
		}
		select {
		case places <- struct{}{}:
		default:
			c.Close()
			continue
		}
		go func() {
			defer func() { <-places }()
			defer c.Close()
			s, err := dial(ctx)
			if err != nil {
				if ctx.Err() == nil {
					failed(err)
				}
				return
			}
			join(ctx, c, s)
		}()
	}
}

// join copies both ways until both have ended, or ctx has. The end of one way
// is passed on as such, if that can be.
func join(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	defer a.Close()
	defer b.Close()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			to, from := way[0], way[1]
			read, write := relay.Pump(to, from, nil, nil)
			h, ok := to.(interface{ CloseWrite() error })
			if read != io.EOF || write != nil || !ok || h.CloseWrite() != nil {
				a.Close()
				b.Close()
			}
		})
	}
	both.Wait()
}
