//go:build unix

package sshagent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"sft"
)

// maxPath is how long a socket's path may be: sun_path of the smallest system
// that sft runs on, with its last zero.
const maxPath = 103

// CheckPath refuses a path that no socket can have.
func CheckPath(path string) error {
	if len(path) <= maxPath {
		return nil
	}
	return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the path of a socket would be %d bytes long, and %d is the most: %s", len(path), maxPath, sft.Quote(path)),
		Hint: "use a shorter name of the server, or set XDG_STATE_HOME and XDG_RUNTIME_DIR to shorter paths"}
}

// Listen makes a socket at path, whose folder nobody else can enter. It is
// removed when the listener is closed.
func Listen(path string) (net.Listener, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Dial connects to the agent at path.
func Dial(path string) (net.Conn, error) { return net.Dial("unix", path) }

// checkPeer refuses who is not this user.
func checkPeer(c net.Conn) error {
	s, ok := c.(syscall.Conn)
	if !ok {
		return errors.New("it is not known who asks the agent")
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var uid uint32
	var asked error
	if err := raw.Control(func(fd uintptr) { uid, asked = peerUID(int(fd)) }); err != nil {
		return err
	}
	if asked != nil {
		return asked
	}
	if int(uid) != os.Getuid() {
		return fmt.Errorf("user id %d asked the agent of user id %d", uid, os.Getuid())
	}
	return nil
}
