package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sft"
	"sft/internal/accounts"
	"sft/internal/api"
)

// serviceAgain is how often it is looked whether the socket is still there.
const serviceAgain = 5 * time.Second

// runServices answers processes of this host until ctx ends.
func (a *Agent) runServices(ctx context.Context, c *api.Client, ca []byte) {
	d := &serviceDesk{account: serviceAccount, ca: ca, now: time.Now, log: a.log,
		ask: func(ctx context.Context, r api.ServiceClientRequest) (reply api.ServiceClientReply, err error) {
			return reply, c.Do(ctx, "POST", "/v1/agent/service_client", r, &reply)
		}}
	for ctx.Err() == nil {
		s, err := listenService(a.conf.service)
		if err != nil {
			a.log.Error("make the socket for service users", "error", err)
		} else {
			watch, cancel := context.WithCancel(ctx)
			go func() {
				defer cancel()
				for s.there() && ctx.Err() == nil {
					wait(ctx, serviceAgain, nil, nil)
				}
			}()
			d.run(watch, s.Listener, peerUID)
			cancel()
			s.close()
		}
		a.setProblem("service users", err)
		wait(ctx, serviceAgain, nil, nil)
	}
	a.setProblem("service users", nil)
}

// overflowUID is what the kernel says in the place of a uid that this process's
// user namespace has not (kernel.overflowuid, which nobody changes). An account
// of that number would be everybody of every other namespace.
const overflowUID = 65534

// serviceAccount is the login name of a uid, by the host's own account files.
func serviceAccount(uid uint32) (string, error) {
	name := ""
	if uid != overflowUID {
		var err error
		if name, err = accounts.LoginOf(int(uid)); err != nil {
			return "", err
		}
	}
	if name == "" {
		return "", &sft.Error{Code: sft.Denied, Msg: fmt.Sprintf("user id %d is no account of this host", uid), Hint: "run it as an account of /etc/passwd, outside of user namespaces"}
	}
	return name, sft.CheckLogin(name)
}

// peerUID is whose process made a connection (SO_PEERCRED: unix(7)).
func peerUID(c net.Conn) (uint32, error) {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var who *unix.Ucred
	var asked error
	if err := raw.Control(func(fd uintptr) { who, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if asked != nil {
		return 0, asked
	}
	return who.Uid, nil
}

// A serviceSocket is the socket that everybody may connect to.
type serviceSocket struct {
	net.Listener
	path string
	made os.FileInfo
}

// listenService makes the socket at path. Its folder is made if it is not
// there; one that somebody else has made, or could change, is refused. In a
// folder of root's own what is in the socket's place is root's, and replaced.
func listenService(path string) (s *serviceSocket, err error) {
	dir := filepath.Dir(path)
	if err := serviceFolder(dir); err != nil {
		return nil, err
	}
	// It gets its name when it is as it should be, in one step.
	tmp := filepath.Join(dir, fmt.Sprintf(".new-%d", os.Getpid()))
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", tmp)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	defer func() {
		if err != nil {
			l.Close()
			os.Remove(tmp)
		}
	}()
	if err := os.Chmod(tmp, 0o666); err != nil {
		return nil, err
	}
	made, err := os.Lstat(tmp)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, err
	}
	return &serviceSocket{l, path, made}, nil
}

// serviceFolder makes the folder of the socket: everybody may enter it, and
// only this account, which is root, change it.
func serviceFolder(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	planted := &sft.Error{Code: sft.Denied, Msg: dir + " is not a folder of root's own", Hint: "find out who made it, then remove it: sftd makes it as it has to be"}
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return planted
	}
	if err != nil {
		return err
	}
	defer f.Close()
	i, err := f.Stat()
	if err != nil {
		return err
	}
	if st, ok := i.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() || i.Mode().Perm()&0o022 != 0 {
		return planted
	}
	return f.Chmod(0o755) // whatever the umask
}

// there reports whether who connects to the path gets here.
func (s *serviceSocket) there() bool {
	i, err := os.Lstat(s.path)
	return err == nil && os.SameFile(i, s.made)
}

// close removes the socket, but not another one that has its name by now.
func (s *serviceSocket) close() {
	s.Close()
	if s.there() {
		os.Remove(s.path)
	}
}
