//go:build unix

package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"sft/internal/conf"
	"sft/internal/launch"
	"sft/internal/sshagent"
)

// A meeting is where ssh finds the agents of the runs of proxycommand for one
// name: a link that leads to the socket of one of them, whichever. All of them
// have a certificate for the same login on the same server.
//
// The sockets are in a folder of their own, under names that begin with a hash
// of the name. A run that has come last points the link at itself; one that
// leaves points it at another one that lives; and each looks for a while
// whether it still leads to somebody, because one that was killed points it
// nowhere.
type meeting struct {
	dir, name string
}

// linkSuffix ends the link's name: no name of a server has it, so that none is
// in the way of the folder for a project's.
const linkSuffix = "@"

// lookEvery is how often a run looks whether the link leads to somebody.
const lookEvery = 200 * time.Millisecond

// address is what ssh's IdentityAgent says of the names in dir.
func (m meeting) address() string { return filepath.Join(m.dir, m.name+linkSuffix) }

// agentAddress is address in the block, where name is a token of ssh's.
func agentAddress(dir, name string) string { return filepath.ToSlash(dir) + "/" + name + linkSuffix }

func (m meeting) check() error {
	if err := launch.CheckSSHPath(m.dir); err != nil {
		return err
	}
	return sshagent.CheckPath(m.address())
}

func (m meeting) prefix() string {
	sum := sha256.Sum256([]byte(m.address()))
	return hex.EncodeToString(sum[:6]) + "-"
}

// join has a answer at m's address until leave is called.
func (m meeting) join(ctx context.Context, a *sshagent.Agent) (leave func(), err error) {
	sockets := filepath.Join(filepath.Dir(m.dir), "run")
	for _, d := range []string{filepath.Dir(m.dir), m.dir, sockets, filepath.Dir(m.address())} {
		if err := conf.PrivateDir(d); err != nil {
			return nil, err
		}
	}
	own := filepath.Join(sockets, m.prefix()+rand.Text()[:8])
	l, err := m.listen(sockets, own)
	if err != nil {
		return nil, err
	}
	go a.Serve(l)
	if err := m.point(own); err != nil {
		l.Close()
		return nil, err
	}
	look, stop := context.WithTimeout(ctx, authTime)
	var looking sync.WaitGroup
	looking.Go(func() {
		t := time.NewTicker(lookEvery)
		defer t.Stop()
		for {
			select {
			case <-look.Done():
				return
			case <-t.C:
				if !alive(m.address()) {
					m.point(own)
				}
			}
		}
	})
	var once sync.Once
	quit := func() {
		stop()
		looking.Wait()
		m.leave(sockets, own)
		l.Close()
	}
	timer := time.AfterFunc(authTime, func() { once.Do(quit) })
	return func() {
		timer.Stop()
		once.Do(quit)
	}, nil
}

// listen makes the socket own, and removes those that a run which was killed
// left behind. One at a time: a socket that has just been made answers nobody
// yet.
func (m meeting) listen(sockets, own string) (net.Listener, error) {
	gate, err := conf.LockFile(filepath.Join(filepath.Dir(m.dir), "lock"))
	if err != nil {
		return nil, err
	}
	defer gate.Release()
	for _, s := range m.others(sockets, own) {
		if !alive(s) {
			os.Remove(s)
		}
	}
	return sshagent.Listen(own)
}

// leave points the link at another run if it leads to own, before own closes.
func (m meeting) leave(sockets, own string) {
	if to, err := os.Readlink(m.address()); err != nil || to != own {
		return
	}
	for _, s := range m.others(sockets, own) {
		if alive(s) && m.point(s) == nil {
			return
		}
	}
	os.Remove(m.address())
}

// others returns the sockets of m's runs, but not own.
func (m meeting) others(sockets, own string) []string {
	all, _ := filepath.Glob(filepath.Join(sockets, m.prefix()+"*"))
	var list []string
	for _, s := range all {
		if s != own {
			list = append(list, s)
		}
	}
	return list
}

// point makes the link lead to socket, in one step.
func (m meeting) point(socket string) error {
	tmp := m.address() + rand.Text()[:8]
	if err := os.Symlink(socket, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, m.address()); err != nil {
		os.Remove(tmp)
		return err
	}
	return nil
}

// alive reports whether somebody answers at path.
func alive(path string) bool {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return false
	}
	c, err := sshagent.Dial(path)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// haveTerminal reports whether this process has a terminal.
func haveTerminal() bool {
	f, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	f.Close()
	return true
}
