package agent

import (
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/frame"
	"sft/internal/sshd"
	"sft/internal/testenv"
)

// An sshBench is a host whose state names one SSH user CA, and what signs in
// there by it.
type sshBench struct {
	*host
	ca string // its fingerprint
}

const (
	direct   = "192.0.2.7:4000"
	loopback = "127.0.0.1:4000"
)

func newSSHBench(t *testing.T) *sshBench {
	t.Helper()
	needsRoot(t)
	h := enrolledHost(t, func(c *Config) { withSSH(t, c) })
	ca, fingerprint := sshCA(t)
	h.change(func(st *api.State) { st.SSHUserCAs = []string{ca} })
	return &sshBench{h, fingerprint}
}

// signIn is a sign-in as login with a certificate that names a session of ann's.
func (b *sshBench) signIn(session, from, login string) (pid int, ended chan struct{}) {
	b.t.Helper()
	pid, ended = serving(b.t.(*testing.T), login)
	b.tell(session, from, login, pid)
	return pid, ended
}

func (b *sshBench) tell(session, from, login string, pid int) {
	b.sshLogin(sshd.Login{PID: pid, Login: login, Method: "publickey", Remote: netip.MustParseAddrPort(from), Fingerprint: "SHA256:x",
		KeyID: "sft:session/" + session + "/user/" + b.userID("ann"), CA: b.ca})
}

func (b *sshBench) stream(session, service string) uint64 {
	b.t.Helper()
	id, _, err := b.sessions.open(b.t.Context(), api.StateUser{ID: b.userID("ann"), Login: "ann"}, session, service, "192.0.2.7:1", "sha256:a", allowed)
	if err != nil {
		b.t.Fatal(err)
	}
	return id
}

// ends are the ends of sessions that the platform knows of, in order.
func (b *sshBench) ends() (list []string) {
	for _, e := range b.env.Events() {
		if e.Kind == audit.SessionEnd {
			list = append(list, e.Detail["login"]+" "+e.Detail["service"]+" "+e.Detail["why"]+" "+e.Detail["bytes_in"])
		}
	}
	slices.Sort(list)
	return list
}

func (b *sshBench) wantEnds(want ...string) {
	b.t.Helper()
	b.tell("ses-mark", direct, "ann", 1<<22) // over at once: all before it is told
	want = append(want, "ann ssh "+sshClosed+" ")
	slices.Sort(want)
	until(b.t, "the ends are told", func() bool { return len(b.ends()) >= len(want) })
	if got := b.ends(); !slices.Equal(got, want) {
		b.t.Errorf("the ends are told as %q, want %q", got, want)
	}
}

func isOver(ended chan struct{}) bool {
	select {
	case <-ended:
		return true
	default:
		return false
	}
}

// Whoever has the key of a CA, and a place on the host, can come from loopback
// and name any session. That does not hide them: they end when the CA is dropped,
// and when they have lasted long enough, and the session that they name ends once.
func TestForgedSSHLoginEnds(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"dropped", "lasted"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			b := newSSHBench(t)
			b.stream("ses-rdp", frame.RDP)
			id := b.stream("ses-ssh", frame.SSH)
			var forged []chan struct{}
			for _, l := range []struct{ session, from, login string }{
				{"ses-rdp", loopback, "bob"}, {"ses-rdp", direct, "bob"}, {"ses-rdp", loopback, "ann"},
				{"ses-ssh", loopback, "bob"}, {"ses-ssh", direct, "bob"}, {"ses-ssh", loopback, "ann"},
			} {
				_, ended := b.signIn(l.session, l.from, l.login)
				forged = append(forged, ended)
			}
			b.endLive(t.Context())
			if slices.ContainsFunc(forged, isOver) {
				t.Fatal("one has ended by itself")
			}
			if how == "dropped" {
				b.change(func(st *api.State) { st.SSHUserCAs, st.DroppedCAs = nil, []string{b.ca} })
			} else {
				b.env.Clock.Advance(13 * time.Hour)
			}
			for _, ended := range forged {
				until(t, "it ends", func() bool { b.endLive(t.Context()); return isOver(ended) })
			}
			b.sessions.closed(id, 7, 8, "the service closed it")
			b.sessions.watch()
			why := "ended: the CA that had let it in is trusted no more"
			if how == "lasted" {
				b.sessions.mu.Lock()
				open := b.sessions.sessions["ses-ssh"]
				b.sessions.mu.Unlock()
				if open != nil {
					t.Error("the session is open for whoever has named it")
				}
				return
			}
			until(t, "the end of the session is told", func() bool { return slices.Contains(b.ends(), "ann ssh "+why+" 7") })
			if got := b.ends(); len(got) != 1 {
				t.Errorf("the ends are told as %q", got)
			}
		})
	}
}

// A sign-in by the broker is part of its session, which tells of the end, once:
// whichever of the two ends first, and after a restart too.
func TestSSHSessionByTheBrokerEndsOnce(t *testing.T) {
	t.Parallel()
	b := newSSHBench(t)
	kill := func(pid int, ended chan struct{}) {
		syscall.Kill(pid, syscall.SIGKILL)
		<-ended
		b.endLive(t.Context())
	}
	closed := func(id uint64) {
		b.sessions.closed(id, 7, 8, "the client closed it")
		b.env.Clock.Advance(10 * time.Minute) // beyond the grace
		b.sessions.watch()
	}
	id := b.stream("ses-stream-first", frame.SSH)
	pid, ended := b.signIn("ses-stream-first", loopback, "ann")
	closed(id)
	if _, open, _ := b.sessions.find("ses-stream-first"); open {
		t.Error("the session is open for what came by the broker")
	}
	kill(pid, ended)

	id = b.stream("ses-process-first", frame.SSH)
	kill(b.signIn("ses-process-first", loopback, "ann"))
	closed(id)

	id = b.stream("ses-late", frame.SSH)
	closed(id)
	kill(b.signIn("ses-late", loopback, "ann")) // the log is read when it was told

	const by = "ann ssh the client closed it 7"
	b.wantEnds(by, by, by)
}

// A session that was used by the broker and at the SSH server itself goes on over
// a restart of sftd, and a stop, and its end is told once. What has to end does
// so after it.
func TestSSHSessionGoesOnOverARestart(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	env := testenv.New(t)
	env.Grant(testenv.Project, "dev", false, "ann")
	h := newHost(t, env, func(c *Config) { withSSH(t, c) })
	stop := h.run()
	h.waitAccount("ann")
	st, _ := h.current()
	b := &sshBench{h, fingerprintOf(t, st.SSHUserCAs[0])}
	both := b.stream("ses-both", frame.SSH)
	b.stream("ses-broker", frame.SSH)
	b.stream("ses-over", frame.SSH)
	b.sessions.closed(both, 7, 8, "the client closed it")
	pid, ended := b.signIn("ses-both", direct, "ann")
	told, toldEnded := b.signIn("ses-broker", loopback, "ann")
	b.sessions.endWhere(func(s *session) string {
		if s.ID == "ses-over" {
			return "for the test"
		}
		return ""
	})
	stop()
	if isOver(ended) {
		t.Fatal("a stop has ended what is not the broker's")
	}
	b.make()
	stop = b.run()
	b.waitAccount("ann")
	if _, open, _ := b.sessions.find("ses-both"); !open {
		t.Error("the session is over though its person is signed in")
	}
	_, _, err := b.sessions.open(t.Context(), api.StateUser{ID: b.userID("ann"), Login: "ann"}, "ses-over", frame.SSH, direct, "sha256:a", allowed)
	if err == nil {
		t.Error("a session that had to end begins again after a restart")
	}
	syscall.Kill(told, syscall.SIGKILL)
	<-toldEnded
	b.tell("ses-broker", loopback, "ann", told) // read from the log again
	syscall.Kill(pid, syscall.SIGKILL)
	<-ended
	b.endLive(t.Context())
	env.Clock.Advance(10 * time.Minute)
	b.sessions.watch()
	b.wantEnds("ann ssh ended: sftd was stopped 0", "ann ssh ended: for the test 0", "ann ssh "+sshClosed+" 7")
	stop()
}

// A sign-in that has to end is not forgotten before it is gone: not by an agent
// that is killed meanwhile.
func TestSSHLoginThatEndsIsNotForgotten(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	h := newHost(t, testenv.New(t), func(c *Config) { withSSH(t, c) })
	defer h.lock.Release()
	pid, ended := serving(t, "ann")
	p, _ := h.ssh.server.Process(sshd.Login{PID: pid, Login: "ann"})
	syscall.Kill(pid, syscall.SIGSTOP) // it takes its time
	h.ssh.live = []sshLive{{Process: p, Login: "ann", User: "u", Session: "ses-1", Until: h.machine().Add(time.Hour)}}
	h.state = &api.State{DroppedCAs: []string{"SHA256:of-now"}} // an agent before did not note the CA
	done := make(chan struct{})
	go func() { h.endLive(t.Context()); close(done) }()
	for began := false; !began; {
		select {
		case <-done:
			t.Fatal("it was never noted that it has to end")
		case <-time.After(time.Millisecond):
		}
		b, _ := os.ReadFile(h.c.file(liveFile))
		var live []sshLive
		began = json.Unmarshal(b, &live) == nil && len(live) == 1 && !live[0].Until.After(h.machine()) && !isOver(ended)
	}
	<-done
	<-ended
	h.endLive(t.Context())
	told := 0
	for _, e := range h.events.unsent {
		if e.Kind == string(audit.SessionEnd) {
			told++
		}
	}
	if len(h.ssh.live) != 0 || told != 1 {
		t.Errorf("%v is left, and %d ends are told", h.ssh.live, told)
	}
}

// A sign-in by a CA before it is known what the platform trusts is noted: if the
// platform has dropped that CA, it ends, and if it trusts it, when it has lasted
// long enough, whatever becomes of the CA. One by a CA of the administrator's is
// nothing to the platform, and forgotten.
func TestSSHLoginBeforeTheStateIsKnown(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	h := newHost(t, testenv.New(t), func(c *Config) { withSSH(t, c) })
	defer h.lock.Release()
	line, trusted := sshCA(t)
	in := func(login, ca string) chan struct{} {
		pid, ended := serving(t, login)
		h.sshLogin(sshd.Login{PID: pid, Login: login, Method: "publickey", Remote: netip.MustParseAddrPort(direct), Fingerprint: "SHA256:x", KeyID: "sft:session/ses-1/user/u", CA: ca})
		return ended
	}
	stolen, ours, foreign := in("ann", "SHA256:stolen"), in("bob", trusted), in("root", "SHA256:of-another")
	h.endLive(t.Context())
	noted := func(want ...string) {
		t.Helper()
		b, err := os.ReadFile(h.c.file(liveFile)) // as an agent after this one reads it
		var live []sshLive
		if err == nil {
			err = json.Unmarshal(b, &live)
		}
		var got []string
		for _, s := range live {
			got = append(got, s.Login)
		}
		if slices.Sort(got); err != nil || !slices.Equal(got, want) {
			t.Errorf("noted: %q, %v, want %q", got, err, want)
		}
	}
	noted("ann", "bob", "root")
	h.state = &api.State{SSHUserCAs: []string{line}, DroppedCAs: []string{"SHA256:stolen"}}
	h.endLive(t.Context())
	until(t, "it ends", func() bool { return isOver(stolen) })
	h.endLive(t.Context())
	noted("bob")
	h.state = &api.State{DroppedCAs: []string{"SHA256:stolen"}} // the platform's CA was rotated
	h.endLive(t.Context())
	noted("bob")
	h.env.Clock.Advance(longestSession + time.Minute)
	until(t, "what has lasted long enough ends", func() bool { h.endLive(t.Context()); return isOver(ours) })
	until(t, "nothing is noted", func() bool { h.endLive(t.Context()); return len(h.ssh.live) == 0 })
	if isOver(foreign) {
		t.Error("what a CA of the administrator's has let in ends too")
	}
}

// An account on demand stays, with its files, while its person is signed in to
// the SSH server itself, and its time begins when they have left.
func TestAccountOnDemandOfSSHLogins(t *testing.T) {
	t.Parallel()
	b := newSSHBench(t)
	b.change(func(st *api.State) { st.Settings.UserOnDemand = demandPeriod })
	look := func(d time.Duration) bool {
		b.env.Clock.Advance(d)
		b.reconcile(t.Context())
		return b.hasAccount("ann")
	}
	pid, ended := b.signIn("ses-1", direct, "ann")
	if !look(3 * demandPeriod * time.Second) {
		t.Fatal("it went while she was signed in")
	}
	syscall.Kill(pid, syscall.SIGKILL)
	<-ended
	b.endLive(t.Context())
	if !look((demandPeriod - 10) * time.Second) {
		t.Fatal("it went before its time")
	}
	_, ended = b.signIn("ses-2", direct, "ann")
	if !look(50 * time.Second) {
		t.Fatal("a new session does not cancel")
	}
	b.change(func(st *api.State) { st.EndedSessions = []string{"ses-2"} })
	until(t, "it is ended", func() bool { b.endLive(t.Context()); return isOver(ended) })
	until(t, "it is forgotten", func() bool { return !b.sshSignedIn("ann") })
	if !look((demandPeriod - 10) * time.Second) {
		t.Fatal("it went before its time after the end")
	}
	b.env.Clock.Advance(11 * time.Second)
	until(t, "it is gone", func() bool { return !b.hasAccount("ann") })
}

func fingerprintOf(t *testing.T, line string) string {
	t.Helper()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	return ssh.FingerprintSHA256(key)
}
