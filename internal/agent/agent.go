package agent

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"sft"
	"sft/internal/accounts"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/broker"
	"sft/internal/conf"
	"sft/internal/frame"
	"sft/internal/privsep"
)

// An Agent is sftd's monitor on one host.
type Agent struct {
	conf     Config
	log      *slog.Logger
	clock    *api.Clock
	acc      *accounts.Manager
	events   *spool
	sessions *sessions
	run      string // names this run to the platform: of two that ask in turn, one is a copy
	self     string // the program to run as the broker; empty: the running one
	lock     *conf.Lock
	rdpSeen  rdpSeen
	ssh      sshCare
	vpc      network
	rdpSet   func() (f RDPFacts, known bool) // what the RDP service is set to
	// sshAddress is where the host's SSH server is, on loopback; empty: the
	// broker does not offer ssh. sshAccount tells the SSH server's side that
	// an account is there from now on, or is about to go.
	sshAddress func() string
	sshAccount func(login string, there bool) error

	who      atomic.Pointer[identity]
	verifier atomic.Pointer[broker.Verifier]
	tlsKey   atomic.Pointer[ecdsa.PrivateKey]
	chain    atomic.Pointer[[][]byte] // the broker's certificate
	child    atomic.Pointer[privsep.Child]
	layers   atomic.Pointer[[]privsep.Layer]
	counters atomic.Pointer[privsep.Report]
	listens  chan struct{} // the broker says that it listens; has room for one
	serving  atomic.Bool   // that was heard
	revoked  atomic.Bool
	retry    atomic.Bool // an account failed: reconcile again
	refusals refusals

	bad       entry // what the platform took, and is of no use
	badReason error

	ready     func()        // says that the host is under the agent's care; does so once
	patience  time.Duration // until it is said although the broker does not listen
	statusNow chan struct{} // see tellStatus; has room for one
	unmet     string        // why the host is not enrolled, as the log has it

	metadataURL string // of the instance metadata service; empty: where EC2 has it
	asked       bool   // it has said which instance this is: the disk is no copy

	again     chan struct{}        // the accounts are to be looked at; has room for one
	hooks     chan accounts.Hook   // to be run
	vacating  atomic.Bool          // accounts on demand are being removed
	tried     map[string]time.Time // when their removal was last begun; of who has vacating
	sshGone   map[string]bool      // logins that sshAccount was told are gone; of reconcile
	badGroups []string             // whose problems are noted; of reconcile

	reconciling sync.Mutex // makes the accounts match the latest state, never one before it

	mu          sync.Mutex
	state       *api.State
	heard       time.Time     // when the platform last answered
	lost        bool          // it has not answered the last request, or none was made
	news        chan struct{} // closed when state changes, and when the accounts match it
	changed     chan struct{} // closed when the broker's configuration changes
	renew       time.Time     // when the broker's certificate is renewed
	certUntil   time.Time
	settled     map[string]bool  // logins whose accounts were made to match
	badAccounts map[string]error // those of them that could not be
	conflicts   []api.Conflict   // what stands in the way of some of them, and of groups
	told        map[string]string
	trouble     map[string]error // what is wrong, by part
}

// lockFile is held by the agent that runs.
const lockFile = "lock"

// New readies an agent in its state folder, which is made private. Only one
// agent can hold it.
func New(c Config, log *slog.Logger, b accounts.Backend, clock *api.Clock) (*Agent, error) {
	if err := conf.ServiceDir(c.state); err != nil {
		return nil, err
	}
	lock, err := conf.TryLock(c.file(lockFile))
	if errors.Is(err, conf.ErrLocked) {
		return nil, &sft.Error{Code: sft.Exists, Msg: "another sftd runs on " + c.state, Hint: "stop it first"}
	}
	if err != nil {
		return nil, err
	}
	acc, err := accounts.Open(c.state, b)
	if err != nil {
		lock.Release()
		return nil, err
	}
	events, err := openSpool(c.BufferFile, log)
	if err != nil {
		lock.Release()
		return nil, err
	}
	a := &Agent{conf: c, log: log, run: api.RandomID(), clock: clock, acc: acc, events: events, lock: lock, lost: true,
		ready: func() {}, patience: readyPatience, listens: make(chan struct{}, 1), statusNow: make(chan struct{}, 1),
		news: make(chan struct{}), changed: make(chan struct{}), badAccounts: map[string]error{}, told: map[string]string{}, trouble: map[string]error{}}
	a.again, a.hooks, a.sshGone = make(chan struct{}, 1), make(chan accounts.Hook, maxHooks), map[string]bool{}
	a.tried = map[string]time.Time{}
	a.rdpSet = a.rdpFacts
	a.careForSSH()
	a.sshAddress, a.sshAccount = a.sshdAddress, a.sshAccountIs
	a.sessions = newSessions(&sessions{acc: acc, grace: c.grace(), inject: c.RDPSignIn == frame.Inject, now: a.machine, log: log, event: a.event, refused: a.tellRefusal, elsewhere: a.sshGoesOn, signedIn: a.sshSignedIn, path: c.file(sessionsFile),
		end: func(id uint64, why string) {
			if child := a.child.Load(); child != nil {
				go child.End(id, why) // the broker may be slow to read
			}
		},
		kill: func() {
			if child := a.child.Load(); child != nil {
				child.Kill()
			}
		},
		limit: func() (time.Duration, time.Duration) {
			st, _ := a.current()
			if st == nil {
				return 0, 0
			}
			return time.Duration(st.Settings.MaxSession) * time.Second, time.Duration(st.Settings.DisconnectedSession) * time.Second
		}})
	return a, nil
}

// now is the time by the platform's clock, for what others have dated.
func (a *Agent) now() time.Time { return a.clock.Now() }

// machine is the time by this machine's clock, for spans of time: it does not
// jump when the platform says that it is wrong.
func (a *Agent) machine() time.Time {
	if a.clock.Machine != nil {
		return a.clock.Machine()
	}
	return time.Now()
}

// event stores an event, and says it in the log too.
func (a *Agent) event(e api.Event) error {
	e.Time = a.now().UTC()
	if e.Outcome == "" {
		e.Outcome = audit.Success
	}
	attrs := []any{"kind", e.Kind, "user", e.User, "session", e.Session}
	for _, k := range slices.Sorted(maps.Keys(e.Detail)) {
		attrs = append(attrs, k, e.Detail[k])
	}
	a.log.Info("event", attrs...)
	return a.events.add(e)
}

// setProblem notes what is wrong with a part of the agent, or that nothing is.
func (a *Agent) setProblem(part string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		delete(a.trouble, part)
	} else {
		a.trouble[part] = err
	}
}

// problems lists what is wrong, each with what to do.
func (a *Agent) problems() []string {
	if a.sessions == nil {
		return nil
	}
	a.mu.Lock()
	var list []string
	for _, part := range slices.Sorted(maps.Keys(a.trouble)) {
		list = append(list, part+": "+sft.Explain(a.trouble[part]))
	}
	for _, login := range slices.Sorted(maps.Keys(a.badAccounts)) {
		list = append(list, "account "+login+": "+sft.Explain(a.badAccounts[login]))
	}
	a.mu.Unlock()
	if !a.conf.DisableBroker {
		list = append(list, a.rdpStatus()...)
	}
	if p := a.events.problem(); p != "" {
		list = append(list, "events: "+p)
	}
	for i, p := range list {
		list[i] = oneLine(p, maxProblem)
	}
	return list
}

// maxProblem caps the text of one problem, in bytes.
const maxProblem = 500

// oneLine makes a text fit for one line of at most max bytes.
func oneLine(s string, max int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > max {
		s = strings.ToValidUTF8(s[:max-3], "") + "..."
	}
	return s
}

// readyPatience is how long the agent's start takes at most. It is well within
// what service managers wait for: systemd 90 s, an installer of Windows 30.
const readyPatience = 20 * time.Second

// Run is the agent's work until ctx ends. ready is called once, when the host
// is under its care: accounts that were left open are shut, and the broker says
// that it listens. Without one there is no broker to wait for: on a host that
// waits for somebody to enrol it, or whose broker is turned off. Nor is a
// platform waited for that does not answer in time, or a broker that does not
// start.
func (a *Agent) Run(ctx context.Context, ready func()) error {
	began := time.Now()
	a.ready = sync.OnceFunc(ready)
	defer a.lock.Release()
	defer a.events.close()
	a.writeStatus() // what it says of the agent before is no longer so
	if keys := a.conf.Useless(); len(keys) > 0 {
		a.log.Warn("these settings do nothing on this system", "keys", keys)
	}
	a.loadState()
	a.loadLive()
	if err := a.sessions.recover(ctx); err != nil {
		a.log.Error("shut the accounts that were left open", "error", err)
		a.setProblem("accounts", err)
	}
	late := time.AfterFunc(a.patience-time.Since(began), a.ready)
	defer late.Stop()
	var wg sync.WaitGroup
	wg.Go(func() { a.runTicks(ctx) })
	wg.Go(func() { a.runStatus(ctx) })
	wg.Go(func() { a.runKeeper(ctx) })
	wg.Go(func() { a.runSSH(ctx) })
	wg.Go(func() { a.runHooks(ctx) })
	var wait backoff
	for first := true; ctx.Err() == nil; first = false {
		began := time.Now()
		err := a.enrolled(ctx, first)
		if ctx.Err() != nil {
			break
		}
		a.notEnrolled(err)
		if time.Since(began) > time.Minute {
			wait.reset()
		}
		wait.sleep(ctx) // what fails at once is not tried at once
	}
	wg.Wait()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	err := a.sessions.shutAll(stop, "sftd was stopped")
	a.writeStatus()
	return err
}

// numbers are what differs between two tries that fail for the same reason: a
// port, a time.
var numbers = regexp.MustCompile(`[0-9]+`)

// notEnrolled notes why the host is not enrolled. The log has each reason once,
// however often it is met in a row.
func (a *Agent) notEnrolled(err error) {
	a.setProblem("enrolment", err)
	if why := numbers.ReplaceAllString(sft.Explain(err), "0"); why != a.unmet {
		a.unmet = why
		a.log.Error("not enrolled", "error", err)
	} else {
		a.log.Debug("still without enrolment", "error", err)
	}
}

// enrolled enrols the host if it has to, and then works for the platform
// until ctx ends or the platform has deleted the host's record.
func (a *Agent) enrolled(ctx context.Context, first bool) error {
	var wait backoff
	var id *identity
	var key *ecdsa.PrivateKey
	for {
		var err error
		token := a.token()
		if id, key, err = readIdentity(a.conf); err == nil && id == nil {
			if err = a.enroll(ctx); err == nil {
				continue
			}
		} else if err == nil && a.cloned(ctx, id) {
			if err = a.setAside(ctx, ".cloned"); err == nil {
				continue
			}
		}
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.notEnrolled(err)
		again := wait.next
		if token == nil {
			a.ready() // to wait for a token is what it is for, now
			again = func() time.Duration { return a.cloudAgain(err, &wait) }
		}
		if slow := a.waitToken(ctx, token, again()); !slow {
			wait.reset()
		}
	}
	a.setProblem("enrolment", nil)
	a.unmet = ""
	hc, err := a.http(id.CA)
	if err != nil {
		return err
	}
	device := a.newSigner(*id, key, hc)
	c := &api.Client{URL: id.URL, Keys: device.use, Issuer: "server:" + id.ServerID, HTTP: hc, Clock: a.clock, UserAgent: userAgent}
	if !first {
		a.begin()
	}
	a.revoked.Store(false)
	a.verifier.Store(a.verifierFor(id))
	a.who.Store(id)
	a.reconcile(ctx) // what the platform said before holds until it says more
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { a.runReports(ctx, c, id.ServerID) })
	wg.Go(func() {
		a.events.run(ctx, func(ctx context.Context, list []api.Event) error {
			return c.Do(ctx, "POST", "/v1/agent/events", api.EventsRequest{Events: list}, nil)
		})
	})
	if a.conf.DisableBroker {
		a.ready()
	} else {
		wg.Go(func() { a.runBroker(ctx) })
	}
	wg.Go(func() { a.runServices(ctx, c, id.CA) })
	dirty := make(chan struct{}, 1)
	wg.Go(func() { a.runReconcile(ctx, dirty) })
	err = a.runSync(ctx, c, device, dirty)
	if sft.CodeOf(err) == sft.Revoked {
		a.leave(context.WithoutCancel(ctx))
	}
	cancel()
	wg.Wait()
	hc.CloseIdleConnections()
	return err
}

// leave ends everything on a host whose record was deleted. The identity is
// put aside, so that a new enrollment token can enrol the host anew.
func (a *Agent) leave(ctx context.Context) {
	a.log.Error("the platform has deleted this host's record: all access ends")
	a.revoked.Store(true)
	a.sessions.endWhere(func(*session) string { return "the host's record was deleted" })
	_ = a.setAside(ctx, ".deleted") // said in the log
}

// setAside ends what the host was, and keeps its identity under another name.
func (a *Agent) setAside(ctx context.Context, suffix string) error {
	a.mu.Lock()
	a.state = nil
	a.mu.Unlock()
	a.sessions.tick(ctx)
	a.reconciling.Lock()
	a.shutSSH(ctx, a.acc.Made())
	a.acc.Grant(ctx, accounts.Rights{})
	a.acc.Reconcile(ctx, nil, accounts.Limits{}, false)
	a.reconciling.Unlock()
	err := os.Rename(a.conf.TokenFile, a.conf.TokenFile+suffix)
	if err != nil {
		a.log.Error("put the identity aside", "error", err)
	}
	if err := os.Remove(a.conf.file(stateFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		a.log.Error("forget what the platform said", "error", err)
	}
	a.who.Store(nil)
	return err
}

// begin puts aside what was known of a former record: nothing of it is used
// for the next one. Nobody else works for the platform meanwhile.
func (a *Agent) begin() {
	a.tlsKey.Store(nil)
	a.chain.Store(nil)
	a.mu.Lock()
	a.renew, a.certUntil, a.lost = time.Time{}, time.Time{}, true
	a.settled, a.badAccounts, a.conflicts, a.told = nil, map[string]error{}, nil, map[string]string{}
	a.mu.Unlock()
	a.retry.Store(false)
	for _, part := range []string{"platform", "report", "clock", "broker", "state", deviceKeyPart} {
		a.setProblem(part, nil)
	}
}

// token is the token file as it is now, or nil.
func (a *Agent) token() os.FileInfo {
	fi, err := os.Stat(a.conf.EnrollmentTokenFile)
	if err != nil {
		return nil
	}
	return fi
}

// waitToken waits until the token file is another one than it was, or there is
// an identity after all, or again is over; that is reported. Zero is never over.
func (a *Agent) waitToken(ctx context.Context, was os.FileInfo, again time.Duration) bool {
	var over <-chan time.Time
	if again > 0 {
		t := time.NewTimer(again)
		defer t.Stop()
		over = t.C
	}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-over:
			return true
		case <-t.C:
			now := a.token()
			same := now == nil && was == nil || now != nil && was != nil && os.SameFile(now, was) && now.Size() == was.Size() && now.ModTime().Equal(was.ModTime())
			if id, _, err := readIdentity(a.conf); !same || err == nil && id != nil {
				return false
			}
		}
	}
}

// keepEvery is how often open accounts are kept from expiring.
const keepEvery = 2 * time.Minute

// runKeeper keeps the accounts that are open from expiring: where the operating
// system shuts them by itself, it does so when the agent is gone.
func (a *Agent) runKeeper(ctx context.Context) {
	t := time.NewTicker(keepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			a.keepAlive(ctx)
		}
	}
}

// keepAlive is one round of runKeeper.
func (a *Agent) keepAlive(ctx context.Context) {
	if !a.sessions.anyOpen() {
		return
	}
	err := a.acc.KeepAlive(ctx)
	if err != nil && ctx.Err() == nil {
		a.log.Error("keep the open accounts from expiring", "error", err)
	}
	a.setProblem("expiry", err)
}

// PasswordReset records that the account of login has lost what its system
// keeps under its password, as saved passwords of Windows: the new one could
// not be set by a change of the last. The person is told with the next stream.
// It may be called at any time after New.
func (a *Agent) PasswordReset(login string) {
	a.sessions.wasReset(login)
	user := ""
	if st, _ := a.current(); st != nil {
		for _, u := range st.Users {
			if u.Login == login {
				user = u.ID
			}
		}
	}
	_ = a.event(api.Event{Kind: string(audit.AccountPasswordReset), User: user, Detail: map[string]string{"login": login}}) // kept in memory if not on disk, and logged
}

// runTicks does what time brings about.
func (a *Agent) runTicks(ctx context.Context) {
	t := time.NewTicker(500 * time.Millisecond)
	defer t.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	again := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.sessions.wake:
		case <-t.C:
			again++
		}
		a.sessions.watch()
		wg.Go(func() { a.sessions.restDue(ctx) })
		a.demandDue(ctx, &wg)
		if again >= 60 && a.retry.Swap(false) {
			again = 0
			wg.Go(func() { a.reconcile(ctx) })
		}
	}
}

// LockAccounts shuts every account of ours, for when the agent is not there
// to do it: after it has ended, and before it has started.
func LockAccounts(ctx context.Context, c Config, b accounts.Backend) error {
	if err := accounts.LockAll(ctx, c.state, b); err != nil {
		return fmt.Errorf("shut the accounts: %w", err)
	}
	return nil
}
