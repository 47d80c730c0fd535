package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/broker"
	"sft/internal/frame"
	"sft/internal/privsep"
)

// newsPatience is how long a sign-in waits for the platform's news of the
// person who signs in.
const newsPatience = 5 * time.Second

// Sign proves the host to a client: by the TLS host key, over 32 bytes.
func (a *Agent) Sign(_ context.Context, digest [32]byte) ([]byte, error) {
	key := a.tlsKey.Load()
	if key == nil {
		return nil, errors.New("there is no host key yet")
	}
	return ecdsa.SignASN1(rand.Reader, key, digest[:])
}

// Report takes the broker's counters, for status, and hears of it that it
// listens.
func (a *Agent) Report(r privsep.Report) {
	a.counters.Store(&r)
	if r.Listening {
		select {
		case a.listens <- struct{}{}:
		default: // it was heard before
		}
	}
}

// Close undoes Open.
func (a *Agent) Close(_ context.Context, c privsep.Close) {
	a.sessions.closed(c.Stream, c.BytesIn, c.BytesOut, c.Why)
}

// Open decides whether to let one person in. It believes the certificate and
// the proof, after checking them, and the platform's last State; of the broker
// it takes the remote address, for the records.
func (a *Agent) Open(ctx context.Context, o privsep.Open) (privsep.OpenReply, *os.File, error) {
	id := a.who.Load()
	if id == nil {
		return privsep.OpenReply{}, nil, errNoToken
	}
	v := a.verifier.Load()
	g, err := v.Verify(o.Certificates, o.Frame)
	if err != nil {
		a.refused(g, o, err)
		return privsep.OpenReply{}, nil, err
	}
	reply, f, err := a.admit(ctx, id, g, o)
	if err != nil {
		a.refused(g, o, err)
	}
	return reply, f, err
}

// refused records that somebody was not let in. What was never proven is
// worth a line in the log, not a place on the disk: anybody could fill it. Nor
// can a person with a certificate fill it by asking again and again.
func (a *Agent) refused(g broker.Grant, o privsep.Open, err error) {
	a.tellRefusal(g.User, g.Session, map[string]string{"service": g.Service, "remote": o.Remote, "code": string(sft.CodeOf(err)), "why": oneLine(err.Error(), maxProblem)})
}

// tellRefusal is refused for what is known by its details.
func (a *Agent) tellRefusal(user, session string, detail map[string]string) {
	more, tell := a.refusals.note(user, a.machine())
	level := slog.LevelInfo
	if !tell {
		level = slog.LevelDebug
	}
	a.log.Log(context.Background(), level, "refused", "remote", detail["remote"], "user", user, "session", session, "code", detail["code"], "why", detail["why"])
	if user == "" || !tell || a.events.waiting() >= maxSpooled/2 {
		return
	}
	if more > 0 {
		detail["more"] = strconv.Itoa(more)
	}
	_ = a.events.add(api.Event{Time: a.now().UTC(), Kind: string(audit.SessionRefused), User: user, Session: session, Outcome: audit.Refused, Detail: detail})
}

// maxRefusals caps how many refusals of one person are recorded in a minute.
const maxRefusals = 10

// refusals counts how often each person was refused in the last minute.
type refusals struct {
	mu sync.Mutex
	by map[string]*refusal
}

type refusal struct {
	since      time.Time
	told, more int
}

// note counts one more, and says whether to tell of it, and of how many that
// were not told of before.
func (r *refusals) note(user string, now time.Time) (more int, tell bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil || len(r.by) > 10_000 {
		r.by = map[string]*refusal{}
	}
	u := r.by[user]
	if u == nil {
		u = &refusal{since: now}
		r.by[user] = u
	}
	if d := now.Sub(u.since); d < 0 || d >= time.Minute {
		u.since, u.told = now, 0
	}
	if u.told >= maxRefusals {
		u.more++
		return 0, false
	}
	u.told++
	more, u.more = u.more, 0
	return more, true
}

func (a *Agent) admit(ctx context.Context, id *identity, g broker.Grant, o privsep.Open) (privsep.OpenReply, *os.File, error) {
	none := privsep.OpenReply{}
	late := time.NewTimer(newsPatience)
	defer late.Stop()
	heard := func(st *api.State) bool { return st != nil && st.Revision >= g.Revision }
	if err := a.waitFor(ctx, late, heard); err != nil {
		return none, nil, err
	}
	u, err := a.mayOpen(g)
	if err != nil {
		return none, nil, err
	}
	if g.Service == frame.Ping {
		b, err := json.Marshal(frame.Reply{Ping: &frame.PingReply{Server: id.ServerID, Login: u.Login}})
		return privsep.OpenReply{Reply: b}, nil, err
	}
	release, err := a.bring(u.Login)
	if err != nil {
		return none, nil, err
	}
	defer release()
	// Somebody who was only just given access may not have an account yet.
	made := func(*api.State) bool { return a.settledAccount(u.Login) }
	if err := a.waitFor(ctx, late, made); err != nil {
		return none, nil, err
	}
	if err := a.accountProblem(u.Login); err != nil {
		return none, nil, err
	}
	if err := a.events.ready(); err != nil {
		return none, nil, err
	}
	if g.Service == frame.SSH {
		return a.admitSSH(ctx, u, g, o)
	}
	return a.admitRDP(ctx, u, g, o)
}

// admitSSH connects the host's SSH server for u, whose account is ready. The
// account stays at rest: what signs in to that server is a certificate.
func (a *Agent) admitSSH(ctx context.Context, u api.StateUser, g broker.Grant, o privsep.Open) (privsep.OpenReply, *os.File, error) {
	none := privsep.OpenReply{}
	if err := a.sshAccount(u.Login, true); err != nil {
		return none, nil, err
	}
	sock, dial, err := a.connectSSH(ctx)
	if err != nil {
		return none, nil, err
	}
	stream, _, err := a.sessions.open(ctx, u, g.Session, g.Service, o.Remote, g.CA, func() error {
		_, err := a.mayOpen(g)
		return err
	})
	if err != nil {
		sock.Close()
		return none, nil, err
	}
	b, err := json.Marshal(frame.Reply{SSH: &frame.SSHReply{Login: u.Login}})
	return privsep.OpenReply{Stream: stream, Dial: dial, Reply: b}, sock, err
}

// admitRDP opens the account of u, which is ready, and connects the RDP
// service.
func (a *Agent) admitRDP(ctx context.Context, u api.StateUser, g broker.Grant, o privsep.Open) (privsep.OpenReply, *os.File, error) {
	none := privsep.OpenReply{}
	facts, known := a.rdpSet()
	if known {
		if err := firstRefusal(judge(facts)); err != nil {
			return none, nil, err
		}
	}
	fingerprint, err := a.rdpCertificate()
	if err != nil {
		return none, nil, errRDP(err, "set RDPCertificateFile in sftd.yaml to the certificate of the RDP service")
	}
	var warnings []string
	if known {
		warnings = a.rdpWarnings(ctx, facts, u)
	}
	// The service first: an account is not opened for one that is down.
	sock, dial, err := a.connectRDP(ctx)
	if err != nil {
		return none, nil, err
	}
	stream, password, err := a.sessions.open(ctx, u, g.Session, g.Service, o.Remote, g.CA, func() error {
		_, err := a.mayOpen(g)
		return err
	})
	if err != nil {
		sock.Close()
		return none, nil, err
	}
	reply, err := a.rdpReply(frame.RDPReply{Login: u.Login, PasswordReset: a.sessions.tellsReset(stream), Warnings: warnings}, fingerprint, password)
	if err != nil {
		sock.Close()
		a.sessions.closed(stream, 0, 0, broker.Aborted)
		return none, nil, err
	}
	reply.Stream, reply.Dial = stream, dial
	return reply, sock, nil
}

// rdpWarnings are what f is to warn a person of who is about to sign in.
func (a *Agent) rdpWarnings(ctx context.Context, f RDPFacts, u api.StateUser) []string {
	list := signInWarnings(f, u.Admin, false)
	if len(list) == 0 {
		return nil
	}
	back, err := a.acc.SignedInSince(ctx, u.Login, time.Time{})
	if err != nil || !back {
		return list
	}
	return signInWarnings(f, u.Admin, true) // who comes back takes no other place
}

// rdpReply gives the password of a sign-in to whoever signs in: to the broker,
// beside the reply r for the client, or in it to the client.
func (a *Agent) rdpReply(r frame.RDPReply, fingerprint string, password sft.Secret) (privsep.OpenReply, error) {
	r.SignIn = a.conf.RDPSignIn
	var service json.RawMessage
	if r.SignIn == frame.Deliver {
		r.CertificateSHA256, r.Secret = fingerprint, &frame.Secret{Secret: password}
	} else {
		channels := sft.AllChannels
		if st, _ := a.current(); st != nil && st.Settings.Channels != nil {
			channels = *st.Settings.Channels
		}
		var err error
		if service, err = json.Marshal(broker.RDPService{Login: r.Login, Password: frame.Secret{Secret: password}, CertificateSHA256: fingerprint, Channels: channels}); err != nil {
			return privsep.OpenReply{}, err
		}
	}
	b, err := json.Marshal(frame.Reply{RDP: &r})
	return privsep.OpenReply{Reply: b, Service: service}, err
}

// waitFor waits until enough is true of what the platform said and the host
// did of it, or it is late.
func (a *Agent) waitFor(ctx context.Context, late *time.Timer, enough func(*api.State) bool) error {
	for {
		st, news := a.current()
		if enough(st) {
			return nil
		}
		select {
		case <-news:
		case <-late.C:
			return &sft.Error{Code: sft.NotReady, Msg: "the host has not heard of this grant from the platform yet, or is still making the account", Hint: "try again in a moment; if it stays so, look at \"sftd status\" on the host"}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// mayOpen looks a grant's person up in what the platform last said.
func (a *Agent) mayOpen(g broker.Grant) (api.StateUser, error) {
	st, _ := a.current()
	no := func(msg, hint string) (api.StateUser, error) {
		return api.StateUser{}, &sft.Error{Code: sft.Denied, Msg: msg, Hint: hint}
	}
	if st == nil || a.revoked.Load() {
		return no("the platform has deleted this host's record", "ask an administrator to enrol the host again")
	}
	if silent, over := a.offline(); over {
		return no(fmt.Sprintf("the host has not heard from the platform for %s", silent.Round(time.Second)), "let the host reach the platform again; OfflineGrace in sftd.yaml sets how long it may be away")
	}
	if slices.Contains(st.DroppedCAs, g.CA) { // since it was verified
		return no("the certificate is by a CA that is trusted no more", "make a new request with \"sft rdp\"")
	}
	for _, s := range st.EndedSessions {
		if s == g.Session {
			return api.StateUser{}, errSessionOver
		}
	}
	for _, u := range st.Users {
		if u.ID != g.User {
			continue
		}
		if !st.Settings.CreateServerUsers && g.Service != frame.Ping {
			return no("the project does not let sftd manage accounts, and signing in needs that", "set create_server_users in the project")
		}
		return u, nil
	}
	return no("you have no access to this host, or no longer", "ask an administrator of the project")
}

// offline tells for how long the platform has been silent, and whether that is
// longer than OfflineGrace. While a request hangs, silence is what is expected.
func (a *Agent) offline() (silent time.Duration, over bool) {
	grace := a.conf.OfflineGrace.d
	a.mu.Lock()
	defer a.mu.Unlock()
	silent = a.now().Sub(a.heard)
	if grace < 0 {
		return silent, false
	}
	if !a.lost {
		grace += stateTimeout
	}
	return silent, silent > grace || a.lost && grace == 0
}

// settledAccount tells whether the account of login was made to match what the
// platform said, or could not be.
func (a *Agent) settledAccount(login string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.settled[login]
}

// services are those that the broker offers.
func (a *Agent) services() []string {
	list := []string{frame.RDP, frame.Ping}
	if a.sshAddress() != "" {
		list = append(list, frame.SSH)
	}
	return list
}

// project is the one that the host is in: what the platform said last, which
// may have moved it, or, before it said anything, the one that it enrolled in.
func (a *Agent) project(id *identity) string {
	if st, _ := a.current(); st != nil && st.Settings.Project != "" {
		return st.Settings.Project
	}
	return id.Project
}

// verifierFor builds what judges certificates for this host.
func (a *Agent) verifierFor(id *identity) *broker.Verifier {
	return &broker.Verifier{Server: id.ServerID, Team: id.Team, Project: a.project(id), Now: a.now, Services: a.services, CAs: func() []*x509.Certificate {
		st, _ := a.current()
		if st == nil {
			return nil
		}
		var list []*x509.Certificate
		for _, der := range st.AccessCAs {
			if c, err := x509.ParseCertificate(der); err == nil {
				list = append(list, c)
			}
		}
		return list
	}}
}

// runBroker keeps a broker running until ctx ends: it holds the listener,
// starts the child, tells it what to serve with, and starts another when it
// has died.
func (a *Agent) runBroker(ctx context.Context) {
	var wait backoff
	for ctx.Err() == nil {
		began := time.Now()
		err := a.oneBroker(ctx)
		a.forgetBroker()
		if ctx.Err() != nil {
			return
		}
		a.log.Error("the broker is not running", "error", err)
		a.setProblem("broker", err)
		a.tellStatus()
		if time.Since(began) > time.Minute {
			wait.reset()
		}
		wait.sleep(ctx)
	}
}

// forgetBroker forgets what was known of a broker that has ended: nobody is
// shown the number of a process that may be another's by now.
func (a *Agent) forgetBroker() {
	if a.child.Swap(nil) == nil {
		return
	}
	a.layers.Store(nil)
	a.counters.Store(nil)
	a.serving.Store(false)
	select {
	case <-a.listens: // nothing more comes from it
	default:
	}
}

func (a *Agent) oneBroker(ctx context.Context) error {
	start := privsep.Config{Path: a.self, Argv: []string{"sftd", "broker"}, Log: a.log}
	if err := a.brokerAccount(&start); err != nil {
		return err
	}
	cfg, changed, err := a.configuration(ctx)
	if err != nil {
		return err
	}
	at, err := listen(net.JoinHostPort(a.conf.BrokerListenHost, strconv.Itoa(a.conf.BrokerListenPort)))
	if err != nil {
		return &sft.Error{Code: sft.Unavailable, Msg: err.Error(), Err: err, Hint: "end what listens there, or set BrokerListenHost and BrokerListenPort in sftd.yaml"}
	}
	defer at.Close()
	child, err := privsep.Start(ctx, start, a)
	if err != nil {
		return err
	}
	a.layers.Store(ptr(child.Layers()))
	a.child.Store(child) // before it can let anybody in whom we could not end
	first := cfg
	first.Listen = at.broker
	if err := child.Configure(first, at.file); err != nil {
		child.Kill()
		child.Wait()
		return err
	}
	for {
		select {
		case <-a.listens:
			if !a.serving.Swap(true) {
				a.setProblem("broker", nil)
				a.log.Info("the broker is running", "listen", at.address, "pid", child.PID())
				a.tellStatus()
				a.ready()
			}
		case <-child.Done():
			return child.Wait()
		case <-changed:
			if cfg, changed, err = a.configuration(ctx); err == nil {
				err = child.Configure(cfg, nil)
			}
			if err != nil {
				a.log.Error("tell the broker of a change", "error", err)
			}
		case <-ctx.Done():
			child.Kill()
			return child.Wait()
		}
	}
}

// configuration waits until there is everything that a broker needs. The
// channel is closed when some of it has changed.
func (a *Agent) configuration(ctx context.Context) (privsep.Configuration, <-chan struct{}, error) {
	for {
		changed := a.configChanged()
		st, _ := a.current()
		if chain := a.chain.Load(); chain != nil && st != nil {
			return privsep.Configuration{HostCertificates: *chain, ClientCAs: st.AccessCAs, ClockOffset: a.clock.Offset()}, changed, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return privsep.Configuration{}, changed, ctx.Err()
		}
	}
}

// A listening is where a broker accepts connections, and how it comes to do so.
type listening struct {
	net.Listener          // held for as long as the broker lives; nil where the broker listens itself
	address      string   // for the log
	file         *os.File // to hand over, or nil
	broker       string   // address for the broker to listen on, or empty
}

// Close gives up what the monitor has of it.
func (l listening) Close() error {
	l.file.Close()
	if l.Listener == nil {
		return nil
	}
	return l.Listener.Close()
}

func ptr[T any](v T) *T { return &v }
