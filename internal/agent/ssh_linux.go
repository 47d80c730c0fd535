package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/time/rate"

	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/conf"
	"sft/internal/frame"
	"sft/internal/sshd"
)

// An sshCare is what the agent does for the host's OpenSSH server.
type sshCare struct {
	server *sshd.Server // nil: nothing is done for it

	mu       sync.Mutex
	took     chan struct{}   // new certificates of the host's keys were stored
	told     map[string]bool // login to whether its account is there, as sshAccountIs was told
	in       map[string]string
	wrote    time.Time // when the files of principals were last looked at; zero: look now
	askAgain time.Time // for certificates, after a try that failed
	others   *rate.Limiter
	unheard  int // sign-ins of others that were not told
	live     []sshLive
	dropped  []string // what the platform had dropped of CAs, when live was last gone by
}

// An sshLive is a sign-in by the platform's certificate that may still go on.
type sshLive struct {
	sshd.Process
	Login   string    `json:"login"`
	User    string    `json:"user"` // id
	Session string    `json:"session"`
	CA      string    `json:"ca,omitempty"` // the fingerprint of its key; empty: an agent before did not note it
	Until   time.Time `json:"until"`
	Told    bool      `json:"told,omitempty"`   // its session's end is, or is told by the broker, by which it came
	Unsure  bool      `json:"unsure,omitempty"` // when it was noted it was not known whose CA that is

	ending bool // somebody ends it, and tells
}

// ref is what the session of a sign-in is known by at the broker.
func (s sshLive) ref() ref { return ref{s.Session, s.User, s.Login, frame.SSH} }

// sshFiles are the files that c names. Host certificates are beside the CA's keys.
func (c Config) sshFiles() sshd.Files {
	return sshd.Files{Config: c.SSHDConfigFile, Dir: filepath.Dir(c.TrustedUserCAKeysFile), Principals: c.AuthorizedPrincipalsFile, CAs: c.TrustedUserCAKeysFile, Record: c.file("sshd.json")}
}

// careForSSH readies the care for the SSH server. It changes nothing yet.
func (a *Agent) careForSSH() {
	a.ssh.told = map[string]bool{}
	a.ssh.took = make(chan struct{}, 1)
	a.ssh.others = rate.NewLimiter(rate.Every(10*time.Second), 100)
	a.ssh.server = sshd.Open(a.conf.sshFiles(), a.log)
}

// lookAtSSH is careForSSH for a look at what would be reported. Whoever may not
// read the host's keys sees nothing of the SSH server.
func (a *Agent) lookAtSSH() {
	a.careForSSH()
	_ = a.ssh.server.Look(context.Background())
}

// sshPort is where the SSH server listens on this host, 0 if there is none.
// Clients may be told another: SSHDPort.
func (a *Agent) sshPort() int {
	if a.conf.SSHAccess == sshNone || a.ssh.server == nil {
		return 0
	}
	h, _ := a.ssh.server.Host()
	return h.Port
}

// How often the files of the SSH server are looked at; that starts no program.
const (
	sshConfigEvery     = 5 * time.Second
	sshPrincipalsEvery = 30 * time.Second
)

// runSSH cares for the SSH server until ctx ends. What was set up then stays:
// the platform signs nothing for whoever has lost access, and a host whose
// agent does not start can still be reached to mend it.
func (a *Agent) runSSH(ctx context.Context) {
	if a.conf.SSHAccess == sshNone {
		if _, err := os.Stat(a.conf.sshFiles().Record); err == nil {
			err := a.ssh.server.Restore(ctx)
			if err != nil {
				a.log.Error("leave the SSH server alone", "error", err)
			}
			a.setProblem("ssh", err)
		}
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			_, news := a.current()
			a.setProblem("ssh logins", a.letIn())
			wait(ctx, time.Second, news, nil)
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			st, news := a.current()
			_, err := os.Stat(a.conf.TokenFile)
			switch {
			case st != nil:
				a.setProblem("ssh", a.ssh.server.Sync(ctx, st.SSHUserCAs, a.anyLogin()))
			case os.IsNotExist(err):
				a.setProblem("ssh", a.ssh.server.Sync(ctx, nil, ""))
			} // else what the platform wants is not known yet
			wait(ctx, sshConfigEvery, news, a.ssh.took)
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			_, news := a.current()
			a.endLive(ctx)
			wait(ctx, time.Second, news, nil)
		}
	})
	wg.Go(func() { a.ssh.server.Follow(ctx, a.conf.file("sshd.cursor"), a.sshLogin) })
	wg.Wait()
}

// wait waits for a time, or news, or the end of ctx.
func wait(ctx context.Context, d time.Duration, news, more <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-news:
	case <-more:
	case <-t.C:
	}
}

// letIn makes the files of principals name those who may sign in now.
func (a *Agent) letIn() error {
	a.ssh.mu.Lock()
	defer a.ssh.mu.Unlock()
	want, known := a.sshLogins()
	if !known || maps.Equal(want, a.ssh.in) && a.machine().Sub(a.ssh.wrote) < sshPrincipalsEvery && !a.ssh.wrote.IsZero() {
		return nil
	}
	a.ssh.in, a.ssh.wrote = want, time.Time{}
	if err := a.ssh.server.SetPrincipals(want); err != nil {
		return err
	}
	a.ssh.wrote = a.machine()
	return nil
}

// sshLogins maps each login that may sign in now to its principal. It is not
// known right after the start, before it was seen who this host is.
func (a *Agent) sshLogins() (logins map[string]string, known bool) {
	logins = map[string]string{}
	st, _ := a.current()
	id := a.who.Load()
	if st == nil || a.revoked.Load() {
		return logins, true
	}
	if id == nil {
		_, err := os.Stat(a.conf.TokenFile)
		return logins, os.IsNotExist(err)
	}
	if _, over := a.offline(); over || !st.Settings.CreateServerUsers {
		return logins, true
	}
	a.mu.Lock()
	settled, bad := a.settled, a.badAccounts
	a.mu.Unlock()
	for _, u := range st.Users {
		there := settled[u.Login]
		if settled == nil { // the accounts were not looked at yet: nobody new gets in, and nobody loses it for a moment
			there = a.ssh.server.HasPrincipal(id.ServerID, u.Login)
		}
		if told, ok := a.ssh.told[u.Login]; ok {
			there = told
		}
		if _, no := bad[u.Login]; there && !no {
			logins[u.Login] = sshd.Principal(id.ServerID, u.Login)
		}
	}
	return logins, true
}

// anyLogin is one of those who may sign in, or "".
func (a *Agent) anyLogin() string {
	a.ssh.mu.Lock()
	defer a.ssh.mu.Unlock()
	if len(a.ssh.in) == 0 {
		return ""
	}
	return slices.Min(slices.Collect(maps.Keys(a.ssh.in)))
}

// sshAccountIs tells that the account of login is there from now on, or is about
// to go, where that is not the doing of a reconcile. When it returns, the SSH
// server goes by it.
func (a *Agent) sshAccountIs(login string, there bool) error {
	if a.conf.SSHAccess == sshNone || a.ssh.server == nil {
		return nil
	}
	a.ssh.mu.Lock()
	a.ssh.told[login] = there
	a.ssh.mu.Unlock()
	return a.letIn()
}

// sshdAddress is where the host's SSH server is, on loopback. It is empty where
// there is none, or where it is left alone.
func (a *Agent) sshdAddress() string {
	port := a.sshPort()
	if a.conf.SSHAccess == sshNone || port == 0 {
		return ""
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// sshFacts is what the host says of its SSH server: nothing, where there is
// none, or where it is left alone.
func (a *Agent) sshFacts() *api.SSHFacts {
	if a.conf.SSHAccess == sshNone || a.ssh.server == nil {
		return nil
	}
	h, ok := a.ssh.server.Host()
	if !ok {
		return nil
	}
	f := &api.SSHFacts{Port: h.Port, Broker: a.conf.SSHAccess == sshBroker, HostKeys: h.Keys}
	if a.conf.SSHDPort != 0 {
		f.Port = a.conf.SSHDPort
	}
	if f.HostKeys == nil {
		f.HostKeys = []string{}
	}
	return f
}

func (a *Agent) sshStatus() *SSHStatus {
	f := a.sshFacts()
	if f == nil {
		return nil
	}
	a.ssh.mu.Lock()
	defer a.ssh.mu.Unlock()
	return &SSHStatus{Port: f.Port, Broker: f.Broker, Logins: len(a.ssh.in)}
}

// sshDue returns the host keys that want a certificate of the platform now.
func (a *Agent) sshDue(server string) []string {
	st, _ := a.current()
	if a.conf.SSHAccess == sshNone || a.ssh.server == nil || st == nil || len(st.SSHUserCAs) == 0 {
		return nil
	}
	a.ssh.mu.Lock()
	later := a.now().Before(a.ssh.askAgain)
	a.ssh.mu.Unlock()
	if later {
		return nil
	}
	return a.ssh.server.Due(server, st.SSHHostCAs, a.now())
}

// sshAskNow lets certificates be asked for at once, whatever was tried before.
func (a *Agent) sshAskNow() {
	a.ssh.mu.Lock()
	defer a.ssh.mu.Unlock()
	a.ssh.askAgain = time.Time{}
}

// takeSSH takes the certificates that the platform sent for keys.
func (a *Agent) takeSSH(server string, keys, certs []string) {
	if len(keys) == 0 {
		return
	}
	a.ssh.mu.Lock()
	a.ssh.askAgain = a.now().Add(5 * time.Minute) // that is not asked all the time, if they cannot be used
	a.ssh.mu.Unlock()
	err := a.ssh.server.Take(server, keys, certs, a.now())
	if err != nil {
		a.log.Error("take the certificates of the SSH host keys", "error", err)
	} else {
		select {
		case a.ssh.took <- struct{}{}:
		default: // it is told already
		}
	}
	a.setProblem("ssh certificates", err)
}

// sshLogin records a sign-in. Its session and person are believed if the
// platform's CA has signed the certificate. Those of others are recorded as
// long as there are not very many: anybody with an account can make them.
func (a *Agent) sshLogin(l sshd.Login) {
	e := api.Event{Kind: string(audit.SSHLogin), Detail: map[string]string{"login": l.Login, "remote": l.Remote.String(), "method": l.Method}}
	if l.Fingerprint != "" {
		e.Detail["key"] = l.Fingerprint
	}
	goes := true // on
	st, _ := a.current()
	switch {
	case l.CA == "":
	case st == nil: // it is to be seen whose CA that is
		a.addLive(l, "", "")
	case a.isSSHCA(l.CA): // also if it names nobody: who has the CA's key may say anything
		e.Session, e.User = l.Session()
		if r, open, _ := a.sessions.find(e.Session); open && r != (ref{e.Session, e.User, l.Login, frame.SSH}) {
			a.log.Warn("a sign-in by SSH names the session of somebody else, or of another service; it is not taken for part of it", "login", l.Login, "remote", l.Remote.String(), "user", e.User, "session", e.Session)
			e.Session, e.User = "", ""
		}
		goes = a.addLive(l, e.User, e.Session)
	case a.isDropped(l.CA): // a moment ago it was trusted, and is not believed any more
		a.addLive(l, "", "")
	}
	if e.User == "" {
		a.ssh.mu.Lock()
		tell := a.ssh.others.AllowN(a.machine(), 1)
		n := a.ssh.unheard
		a.ssh.unheard++
		if tell {
			a.ssh.unheard = 0
		}
		a.ssh.mu.Unlock()
		if !tell {
			return
		}
		if n > 0 {
			a.log.Warn("there were more sign-ins by SSH than are told to the platform", "untold", n)
		}
	}
	if a.events.waiting() >= maxSpooled/2 { // they must not be what no session is opened for
		a.log.Warn("there are too many unsent events to tell of a sign-in by SSH", "login", l.Login, "remote", l.Remote.String(), "user", e.User, "session", e.Session)
		return
	}
	if !l.At.IsZero() && time.Since(l.At) > time.Minute {
		e.Detail["at"] = l.At.Format(time.RFC3339)
	}
	_ = a.event(e) // kept in memory if not on disk, and logged
	if !goes && e.User != "" {
		a.sshEnded(ref{e.Session, e.User, l.Login, frame.SSH}, sshClosed)
	}
}

// sshEnded tells that nothing of a session goes on any more.
func (a *Agent) sshEnded(r ref, why string) {
	_ = a.event(api.Event{Kind: string(audit.SessionEnd), User: r.user, Session: r.session, Detail: map[string]string{"login": r.login, "service": r.service, "why": why}})
}

// liveFile remembers the sign-ins that go on, for an agent that is restarted.
const liveFile = "sshd.live"

func (a *Agent) loadLive() {
	if a.conf.SSHAccess == sshNone {
		return
	}
	b, err := conf.ReadPrivate(a.conf.file(liveFile))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	a.ssh.mu.Lock()
	defer a.ssh.mu.Unlock()
	if st, _ := a.current(); st != nil {
		a.ssh.dropped = st.DroppedCAs
	}
	if err == nil {
		err = json.Unmarshal(b, &a.ssh.live)
	}
	if err != nil {
		a.log.Error("read who is signed in by SSH", "error", err)
	}
}

// saveLive stores the sign-ins that go on. The caller holds a.ssh.mu.
func (a *Agent) saveLive() {
	b, err := json.Marshal(a.ssh.live)
	if err == nil {
		err = conf.WriteSecret(a.conf.file(liveFile), b)
	}
	if err != nil {
		a.log.Error("remember who is signed in by SSH", "error", err)
	}
}

// longestSession is the most that a project may allow.
const longestSession = 7 * 24 * time.Hour

// addLive notes a sign-in, and reports whether its session goes on, or somebody
// else tells of its end, or has. One that comes from loopback and names a session
// of the broker's is taken for one by the broker, which tells of the end. It is
// noted all the same: what the key id says is the word of whoever has the CA's
// key, and anybody on the host can come from loopback. All of one session have to
// end when the first has to.
func (a *Agent) addLive(l sshd.Login, user, session string) bool {
	_, open, until := a.sessions.find(session)
	byBroker := l.Remote.Addr().Unmap().IsLoopback() && !until.IsZero()
	most, _ := a.sessions.limit()
	if most <= 0 { // the platform has not said anything yet
		most = longestSession
	}
	v := sshLive{Login: l.Login, User: user, Session: session, CA: l.CA, Until: a.machine().Add(most), Told: byBroker, Unsure: !a.isSSHCA(l.CA) && !a.isDropped(l.CA)}
	var ok bool
	if v.Process, ok = a.ssh.server.Process(l); !ok {
		return open || byBroker || a.sshGoesOn(v.ref())
	}
	if !until.IsZero() && until.Before(v.Until) {
		v.Until = until
	}
	a.ssh.mu.Lock()
	defer a.ssh.mu.Unlock()
	for _, o := range a.ssh.live {
		if o.Process == v.Process && o.CA == v.CA && o.ref() == v.ref() { // it is read from the log again
			return true
		}
		if session != "" && o.ref() == v.ref() && o.Until.Before(v.Until) {
			v.Until = o.Until
		}
	}
	a.ssh.live = append(a.ssh.live, v)
	a.saveLive()
	return true
}

// sshGoesOn reports whether a sign-in of a session to the SSH server itself does.
func (a *Agent) sshGoesOn(r ref) bool {
	a.ssh.mu.Lock()
	defer a.ssh.mu.Unlock()
	return slices.ContainsFunc(a.ssh.live, func(s sshLive) bool { return s.ref() == r && !s.Told })
}

// sshSignedIn reports whether somebody is, as login, by the platform's certificate.
func (a *Agent) sshSignedIn(login string) bool {
	a.ssh.mu.Lock()
	defer a.ssh.mu.Unlock()
	return slices.ContainsFunc(a.ssh.live, func(s sshLive) bool { return s.Login == login })
}

// dropDead forgets the sign-ins that are over, and returns the sessions of which
// nothing goes on any more, nor was open at the broker: that is told with the
// session's end there. The caller holds a.ssh.mu.
func (a *Agent) dropDead(open map[ref]string) map[ref]bool {
	dead := map[ref]bool{}
	a.ssh.live = slices.DeleteFunc(a.ssh.live, func(s sshLive) bool {
		alive := a.ssh.server.Alive(s.Process)
		if s.ending {
			return false
		}
		if _, atBroker := open[s.ref()]; !alive && s.User != "" && !s.Told && !atBroker {
			dead[s.ref()] = true
		}
		return !alive
	})
	for _, s := range a.ssh.live {
		if !s.Told {
			delete(dead, s.ref())
		}
	}
	return dead
}

// dropForeign forgets the sign-ins that were noted before it was known whose CA
// had let them in, and are by none of the platform's: they are nothing to it. The
// caller holds a.ssh.mu, and there is a State.
func (a *Agent) dropForeign() {
	if !slices.ContainsFunc(a.ssh.live, func(s sshLive) bool { return s.Unsure }) {
		return
	}
	a.ssh.live = slices.DeleteFunc(a.ssh.live, func(s sshLive) bool { return s.Unsure && !a.isSSHCA(s.CA) && !a.isDropped(s.CA) })
	for n := range a.ssh.live {
		a.ssh.live[n].Unsure = false // once and for all: a CA that is rotated later is no other's
	}
	a.saveLive()
}

// endLive tells of the sessions that are over, and ends the sign-ins whose
// session the platform has ended, whose CA is trusted no more, or that have
// lasted as long as the project allows: the connections, and all that runs as
// the person where nothing else of theirs goes on.
func (a *Agent) endLive(ctx context.Context) {
	// As long as one of its sign-ins is in a.ssh.live, a session stays open at the
	// broker: it tells of the end of those, and later than the last of either.
	open := a.sessions.refs()
	a.ssh.mu.Lock()
	before := len(a.ssh.live)
	dead := a.dropDead(open)
	if len(a.ssh.live) != before {
		a.saveLive()
	}
	a.ssh.mu.Unlock()
	for _, r := range slices.SortedFunc(maps.Keys(dead), func(x, y ref) int { return cmp.Compare(x.session, y.session) }) {
		a.sshEnded(r, sshClosed)
	}
	st, _ := a.current()
	if st == nil {
		return
	}
	why := map[ref]string{} // of a session
	var over, rest []sshLive
	a.ssh.mu.Lock()
	a.dropForeign()
	now := a.machine()
	anyNew := slices.ContainsFunc(st.DroppedCAs, func(ca string) bool {
		return strings.HasPrefix(ca, "SHA256:") && !slices.Contains(a.ssh.dropped, ca)
	})
	a.ssh.dropped = st.DroppedCAs
	for n, s := range a.ssh.live {
		switch {
		case s.ending:
			continue
		case slices.Contains(st.EndedSessions, s.Session):
			why[s.ref()] = "ended: the platform has ended the session"
		case s.CA == "" && anyNew, slices.Contains(st.DroppedCAs, s.CA):
			why[s.ref()] = "ended: the CA that had let it in is trusted no more"
		case !s.Until.After(now):
			why[s.ref()] = "ended: it lasted as long as the project allows"
		case open[s.ref()] != "":
			why[s.ref()] = open[s.ref()]
		default:
			rest = append(rest, s)
			continue
		}
		over = append(over, s)
		a.ssh.live[n].ending, a.ssh.live[n].Until = true, now // also for an agent after this one: it is not forgotten before it is gone
	}
	if len(over) == 0 {
		a.ssh.mu.Unlock()
		return
	}
	others := map[string]bool{}
	for _, s := range rest {
		others[s.Login] = true
		if !s.Told {
			delete(why, s.ref()) // it goes on by another sign-in
		}
	}
	for r := range open {
		delete(why, r)
	}
	a.saveLive()
	a.ssh.mu.Unlock()
	var list []sshd.Process
	for _, s := range over {
		list = append(list, s.Process)
	}
	a.ssh.server.End(ctx, list)
	for _, s := range over {
		if !others[s.Login] {
			others[s.Login] = true
			a.sessions.logOff(s.Login)
		}
	}
	a.ssh.mu.Lock()
	a.ssh.live = slices.DeleteFunc(a.ssh.live, func(s sshLive) bool { return s.ending && !a.ssh.server.Alive(s.Process) })
	for n := range a.ssh.live {
		s := &a.ssh.live[n]
		s.Told, s.ending = s.Told || s.ending, false // what does not end is ended again
	}
	a.saveLive()
	a.ssh.mu.Unlock()
	for _, s := range over {
		if v := why[s.ref()]; v != "" && s.User != "" && !s.Told { // several of one session end at once
			why[s.ref()] = ""
			a.sshEnded(s.ref(), v)
		}
	}
}

// shutSSH keeps everybody out who has lost access, and ends the connections of
// logins: those too of whoever was let in and has no process of their own yet,
// which the end of the account's processes does not see.
func (a *Agent) shutSSH(ctx context.Context, logins []string) {
	if a.conf.SSHAccess == sshNone || a.ssh.server == nil || len(logins) == 0 {
		return
	}
	a.setProblem("ssh logins", a.letIn())
	for range 3 { // one may have just begun another
		list := a.ssh.server.Serving(logins...)
		if len(list) == 0 {
			break
		}
		a.ssh.server.End(ctx, list)
	}
}

// isSSHCA reports whether a fingerprint is that of a key that the platform's
// CA signs with.
func (a *Agent) isSSHCA(fingerprint string) bool {
	st, _ := a.current()
	return st != nil && slices.ContainsFunc(st.SSHUserCAs, func(text string) bool {
		k, _, _, _, err := ssh.ParseAuthorizedKey([]byte(text))
		return err == nil && ssh.FingerprintSHA256(k) == fingerprint
	})
}

// isDropped reports whether a CA, as State.DroppedCAs names it, is trusted no
// more.
func (a *Agent) isDropped(ca string) bool {
	st, _ := a.current()
	return st != nil && slices.Contains(st.DroppedCAs, ca)
}

// RestoreSSH takes everything of sftd out of the SSH server's configuration,
// for when sftd is removed.
func RestoreSSH(ctx context.Context, c Config, log *slog.Logger) error {
	if err := sshd.Open(c.sshFiles(), log).Restore(ctx); err != nil {
		return fmt.Errorf("restore the SSH server: %w", err)
	}
	return nil
}
