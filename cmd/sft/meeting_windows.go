package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"os"
	"sync"
	"time"

	"sft/internal/sshagent"
)

// A meeting is where ssh finds the agents of the runs of proxycommand for one
// name: a pipe that one of them has, whichever. All of them have a certificate
// for the same login on the same server. When the one that has it ends, however
// it does, another one takes it.
type meeting struct {
	dir, name string
}

// lookEvery is how often a run tries to have the pipe.
const lookEvery = 200 * time.Millisecond

// agentAddress is what the block's IdentityAgent says, with slashes, because
// some versions of OpenSSH take no backslashes.
func agentAddress(dir, name string) string {
	sum := sha256.Sum256([]byte(dir))
	return "//./pipe/sft-" + hex.EncodeToString(sum[:16]) + "-" + name
}

func (m meeting) check() error { return nil }

// join has a answer at m's address until leave is called.
func (m meeting) join(ctx context.Context, a *sshagent.Agent) (leave func(), err error) {
	look, stop := context.WithTimeout(ctx, authTime)
	var looking sync.WaitGroup
	var l net.Listener
	take := func() bool {
		if l, err = sshagent.Listen(agentAddress(m.dir, m.name)); err == nil {
			go a.Serve(l)
		}
		return err == nil
	}
	had := take()
	looking.Go(func() {
		t := time.NewTicker(lookEvery)
		defer t.Stop()
		for !had {
			select {
			case <-look.Done():
				return
			case <-t.C:
				had = take()
			}
		}
		<-look.Done()
	})
	return func() {
		stop()
		looking.Wait()
		if had {
			l.Close()
		}
	}, nil
}

// haveTerminal reports whether this process has a console.
func haveTerminal() bool {
	f, err := os.Open("CONIN$")
	if err != nil {
		return false
	}
	f.Close()
	return true
}
