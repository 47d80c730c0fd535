package loopback

import "fmt"

// A process is what Windows says of one.
type process struct {
	pid     uint32
	started uint64 // in 100 ns since 1601: a number is used again, with another time
	session uint32 // the logon session's screen
	user    string // its SID
}

// belongs refuses a process that is not of the same user and session.
func (p process) belongs(ours process) error {
	switch {
	case p.user != ours.user || p.user == "":
		return fmt.Errorf("its process %d belongs to %s", p.pid, p.user)
	case p.session != ours.session:
		return fmt.Errorf("its process %d is in session %d, not %d", p.pid, p.session, ours.session)
	}
	return nil
}

// is refuses a process that is not want itself.
func (p process) is(want process) error {
	switch {
	case p.pid != want.pid:
		return fmt.Errorf("it is of process %d, not of the RDP client that was started, %d", p.pid, want.pid)
	case p.started != want.started || p.session != want.session || p.user != want.user:
		return fmt.Errorf("its process %d is another one than was started under this number", p.pid)
	}
	return nil
}
