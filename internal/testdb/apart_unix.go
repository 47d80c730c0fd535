//go:build unix

package testdb

import (
	"os/user"
	"strconv"
	"syscall"
)

// apart is how a program runs in a session of its own, as u or, without one,
// as this process does.
func apart(u *user.User) (*syscall.SysProcAttr, error) {
	a := &syscall.SysProcAttr{Setsid: true}
	if u == nil {
		return a, nil
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.Atoi(u.Gid)
	a.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return a, err
}
