package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"time"

	"sft"
	"sft/internal/accounts"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/conf"
	"sft/internal/frame"
)

// stateFile holds what the platform last said, for when it is gone.
const stateFile = "state.json"

// hangLimit is how long a state request may hang.
const hangLimit = 55 * time.Second

// stateTimeout is how long one takes at most.
const stateTimeout = hangLimit + 20*time.Second

// A kept is the content of the stateFile.
type kept struct {
	HeardAt time.Time `json:"heard_at"`
	State   api.State `json:"state"`
}

func jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(mrand.Int64N(int64(d)/2+1))
}

// current returns what the platform last said, nil before it said anything,
// and a channel that is closed when it says something else.
func (a *Agent) current() (*api.State, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state, a.news
}

func (a *Agent) heardAt() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.heard
}

// tellNews wakes whoever waits for news. The caller holds a.mu.
func (a *Agent) tellNews() {
	close(a.news)
	a.news = make(chan struct{})
}

// configChanged returns a channel that is closed when the broker is to be
// told something new.
func (a *Agent) configChanged() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

func (a *Agent) tellConfig() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.changed)
	a.changed = make(chan struct{})
}

// loadState takes up what the platform said before the agent started.
func (a *Agent) loadState() {
	b, err := conf.ReadPrivate(a.conf.file(stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var k kept
	if err == nil {
		err = json.Unmarshal(b, &k)
	}
	if err == nil {
		err = checkState(&k.State)
	}
	if err != nil {
		a.log.Error("read what the platform said before; waiting for it to say it again", "error", err)
		return
	}
	a.mu.Lock()
	a.state, a.heard = &k.State, k.HeardAt
	a.mu.Unlock()
}

// heardFrom notes that the platform answered, and stores what it said.
func (a *Agent) heardFrom(st *api.State) {
	a.mu.Lock()
	now := a.now()
	before := a.heard
	same := a.state != nil && a.state.Revision == st.Revision
	a.heard, a.lost = now, false
	if !same {
		a.state = st
		a.tellNews()
	}
	a.mu.Unlock()
	if same && now.Sub(before) < time.Minute && now.After(before) {
		return
	}
	b, err := json.Marshal(kept{now, *st})
	if err == nil {
		err = conf.WriteSecret(a.conf.file(stateFile), b)
	}
	if err != nil { // what was said is done all the same: it may take access away
		a.log.Error("store what the platform said", "error", err)
	}
	a.setProblem("state", err)
}

// runSync follows the platform until ctx ends or the host's record is
// deleted.
func (a *Agent) runSync(ctx context.Context, c *api.Client, device *signer, dirty chan<- struct{}) error {
	var wait backoff
	var offset time.Duration
	first, rotate := true, device.inDoubt()
	for ctx.Err() == nil {
		if rotate {
			rotate = false
			a.rotate(ctx, device)
		}
		var st api.State
		asked := time.Now()
		after := ""
		if cur, _ := a.current(); cur != nil && !first {
			after = fmt.Sprint(cur.Revision)
		}
		rctx, cancel := context.WithTimeout(ctx, stateTimeout)
		err := c.Do(rctx, "GET", "/v1/agent/state?after="+after+"&run="+a.run, nil, &st)
		cancel()
		if sft.CodeOf(err) == sft.Revoked && err != nil {
			return err
		}
		if sft.CodeOf(err) == sft.SignIn && err != nil && a.settle(ctx, device) {
			continue
		}
		if err == nil {
			err = checkState(&st)
		}
		if err != nil {
			if ctx.Err() == nil {
				a.log.Warn("no news from the platform", "error", err)
				a.setProblem("platform", err)
				a.mu.Lock()
				a.lost = true
				a.mu.Unlock()
			}
			wait.sleep(ctx)
			continue
		}
		a.setProblem("platform", nil)
		if o := a.clock.Offset(); o != offset {
			offset = o
			a.warnClock(o)
			a.tellConfig()
		}
		if a.take(&st, first) {
			select {
			case dirty <- struct{}{}:
			default: // it is asked already
			}
		}
		first, rotate = false, st.RotateDeviceKey || device.unstored
		if same := fmt.Sprint(st.Revision) == after; same && time.Since(asked) < time.Second {
			wait.sleep(ctx) // it should have kept us waiting
			continue
		}
		wait.reset()
	}
	return ctx.Err()
}

// checkState refuses what no platform says.
func checkState(st *api.State) error {
	if st.Revision < 1 || len(st.AccessCAs) == 0 {
		return errors.New("what the platform said is not complete")
	}
	for _, der := range st.AccessCAs {
		if c, err := x509.ParseCertificate(der); err != nil || !c.IsCA {
			return errors.New("what the platform said names a certificate that is not a CA's")
		}
	}
	return nil
}

func (a *Agent) warnClock(o time.Duration) {
	var err error
	if o > api.WarnSkew || o < -api.WarnSkew {
		err = fmt.Errorf("this host's clock is off by %s; set it", (-o).Round(time.Second))
		a.log.Warn("the clock is off", "by", (-o).String())
	}
	a.setProblem("clock", err)
}

// take takes up what the platform said, and reports whether the accounts are
// to be looked at. What is open to somebody who may no longer is ended here
// and now; what takes long, runReconcile does: nobody's removal waits for the
// end of somebody else's processes.
func (a *Agent) take(st *api.State, always bool) bool {
	cur, _ := a.current()
	same := cur != nil && cur.Revision == st.Revision
	if same && !always {
		a.heardFrom(cur)
		return false
	}
	a.heardFrom(st)
	if same {
		a.mu.Lock()
		a.state = st
		a.mu.Unlock()
	}
	moved := cur != nil && cur.Settings.Project != st.Settings.Project
	if id := a.who.Load(); moved && id != nil {
		a.log.Info("the platform has moved this host to another project", "from", cur.Settings.Project, "to", st.Settings.Project)
		a.verifier.Store(a.verifierFor(id))
		a.sshAskNow()
	}
	var before []string
	if cur != nil {
		before = cur.DroppedCAs
	}
	dropped := slices.DeleteFunc(slices.Clone(st.DroppedCAs), func(ca string) bool { return slices.Contains(before, ca) })
	if len(dropped) > 0 && cur != nil {
		a.log.Warn("CAs of the project are trusted no more: their keys were known to others", "dropped", strings.Join(dropped, ", "))
	}
	sshDropped := slices.ContainsFunc(dropped, func(ca string) bool { return strings.HasPrefix(ca, "SHA256:") })
	if cur != nil && !slices.Equal(cur.SSHHostCAs, st.SSHHostCAs) {
		a.sshAskNow()
	}
	logins := map[string]string{}
	for _, u := range st.Users {
		logins[u.ID] = u.Login
	}
	a.sessions.endWhere(func(s *session) string {
		switch {
		case moved:
			return "the host was moved to another project"
		case logins[s.User] == "":
			return "access was taken away"
		case logins[s.User] != s.Login:
			return "the login has changed"
		case !st.Settings.CreateServerUsers:
			return "the project does not let sftd manage accounts any more"
		case slices.ContainsFunc(s.CAs, func(ca string) bool { return slices.Contains(st.DroppedCAs, ca) }), sshDropped && s.Service == frame.SSH: // whose certificate for the SSH server is by a CA of before
			return "the CA that had let it in is trusted no more"
		case slices.Contains(st.EndedSessions, s.ID):
			return "the platform has ended the session"
		}
		return ""
	})
	a.tellConfig()
	return true
}

// runReconcile makes the accounts match, each time that it is asked to by
// dirty or a.again, until ctx ends. It goes by what the platform said last.
func (a *Agent) runReconcile(ctx context.Context, dirty <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-dirty:
			a.reconcile(ctx)
		case <-a.again:
			a.reconcile(ctx)
		}
	}
}

// reconcile makes the accounts match what the platform last said, if it has
// said anything. Somebody else's reconcile that began before is waited for.
func (a *Agent) reconcile(ctx context.Context) {
	a.reconciling.Lock()
	defer a.reconciling.Unlock()
	st, _ := a.current()
	if st == nil {
		return
	}
	wants, rights := a.wants(st)
	byLogin := map[string]string{}
	for _, u := range st.Users {
		byLogin[u.Login] = u.ID
	}
	gone := a.demands(st, &wants, &rights)
	for login := range gone {
		a.tellSSH(login, false)
	}
	a.shutSSH(ctx, slices.DeleteFunc(a.acc.Made(), func(login string) bool { _, ok := rights.Of[login]; return ok }))
	lim := accounts.Limits{AllowAdmin: a.conf.AllowAdmin, AllowedLogins: a.conf.AllowedLogins, MaxUsers: a.conf.MaxUsers}
	granted := []accounts.Granted{a.acc.Grant(ctx, rights)}
	out := a.acc.ReconcileDeleting(ctx, wants, lim, func(login string) bool { return st.Settings.DeleteServerUsers || gone[login] })
	granted = append(granted, a.acc.Grant(ctx, rights))
	bad, settled := map[string]error{}, map[string]bool{}
	changed := map[string]accounts.Change{}
	retry := false
	for _, o := range out {
		if o.Err != nil {
			a.log.Warn("account", "login", o.Login, "change", string(o.Change), "error", o.Err)
		} else if o.Change != accounts.Kept {
			a.log.Info("account", "login", o.Login, "change", string(o.Change))
		}
		_, settled[o.Login] = rights.Of[o.Login]
		switch o.Change {
		case accounts.Conflict, accounts.Refused, accounts.Failed:
			bad[o.Login] = o.Err
			retry = retry || o.Change == accounts.Failed
		}
		changed[o.Login] = o.Change
		a.accountEvent(byLogin[o.Login], o)
		a.hook(userHooks[o.Change], o.Login)
	}
	var left []string
	for login := range gone {
		if changed[login] != accounts.Failed {
			left = append(left, login)
		}
	}
	a.forgetDemand(false, left...)
	for login := range rights.Of {
		if a.sshGone[login] && bad[login] == nil {
			a.tellSSH(login, true)
		}
	}
	retry = a.tellGranted(granted, changed, byLogin) || retry
	conflicts := conflictsOf(st, out, granted[len(granted)-1].Groups)
	a.mu.Lock()
	a.badAccounts, a.settled, a.conflicts = bad, settled, conflicts
	a.tellNews()
	a.mu.Unlock()
	a.retry.Store(retry)
}

// conflictsOf tells the platform which names and ids of its accounts and groups
// this host cannot have.
func conflictsOf(st *api.State, accs []accounts.Outcome, groups []accounts.GroupOutcome) (list []api.Conflict) {
	add := func(c api.Conflict, err error, name string, uid, gid int) {
		clash, _ := errors.AsType[accounts.Clash](err)
		c.Clash, c.Reason = string(clash), oneLine(err.Error(), maxProblem)
		c.Value = map[accounts.Clash]string{accounts.ClashName: name, accounts.ClashUID: fmt.Sprint(uid), accounts.ClashGID: fmt.Sprint(gid)}[clash]
		if clash != "" && len(list) < api.MaxConflicts {
			list = append(list, c)
		}
	}
	for _, o := range accs {
		if o.Err == nil {
			continue
		}
		for _, u := range st.Users {
			if u.Login == o.Login {
				add(api.Conflict{User: u.ID}, o.Err, u.Login, u.UID, u.GID)
			}
		}
	}
	for _, o := range groups {
		if o.Err == nil {
			continue
		}
		for _, g := range st.Groups {
			if g.Name == o.Name {
				add(api.Conflict{Group: g.Name}, o.Err, g.Name, 0, g.GID)
			}
		}
	}
	return list
}

// wants are the accounts that the platform wants on this host, and what they
// have beyond being there.
func (a *Agent) wants(st *api.State) ([]accounts.Want, accounts.Rights) {
	r := accounts.Rights{Of: map[string]accounts.Held{}, AllowSudo: a.conf.AllowAdmin}
	if !st.Settings.CreateServerUsers {
		return nil, r
	}
	var wants []accounts.Want
	for _, u := range st.Users {
		wants = append(wants, accounts.Want{Login: u.Login, FullName: u.FullName, UID: u.UID, GID: u.GID, Admin: u.Admin})
		r.Of[u.Login] = accounts.Held{Groups: u.Groups, Sudo: u.Sudo}
	}
	for _, g := range st.Groups {
		r.Groups = append(r.Groups, accounts.Group{Name: g.Name, GID: g.GID})
	}
	r.Entitlements = st.Entitlements
	return wants, r
}

// demands leaves, where accounts are there on demand, only those wanted that
// somebody needs, and returns those that are to be deleted.
func (a *Agent) demands(st *api.State, wants *[]accounts.Want, r *accounts.Rights) (gone map[string]bool) {
	period := onDemand(st)
	if period == 0 || !st.Settings.CreateServerUsers {
		a.forgetDemand(true)
		return nil
	}
	var made []string
	for _, login := range a.acc.Made() {
		if _, ok := r.Of[login]; ok {
			made = append(made, login)
		}
	}
	needed, gone, err := a.sessions.demanded(made, period)
	if err != nil {
		a.log.Error("remember the accounts on demand", "error", err)
	}
	for login := range needed { // by somebody who has access no more
		if _, ok := r.Of[login]; !ok {
			gone[login] = true
		}
	}
	*wants = slices.DeleteFunc(*wants, func(w accounts.Want) bool { return !needed[w.Login] })
	maps.DeleteFunc(r.Of, func(login string, _ accounts.Held) bool { return !needed[login] })
	return gone
}

func (a *Agent) forgetDemand(all bool, logins ...string) {
	if err := a.sessions.forget(all, logins...); err != nil {
		a.log.Error("forget the accounts on demand that are gone", "error", err)
	}
}

// tellSSH tells the SSH server's side of an account that was made, or is about
// to go, on demand. Who is not told of a new one sees that at the sign-in.
func (a *Agent) tellSSH(login string, there bool) {
	err := a.sshAccount(login, there)
	if err != nil {
		a.log.Error("tell the SSH server of an account", "login", login, "there", there, "error", err)
	}
	a.setProblem("ssh account "+login, err)
	if delete(a.sshGone, login); !there {
		a.sshGone[login] = true
	}
}

// tellGranted tells what was done about groups and entitlements, and reports
// whether some of it is to be tried again.
func (a *Agent) tellGranted(all []accounts.Granted, changed map[string]accounts.Change, byLogin map[string]string) (failed bool) {
	for _, part := range a.badGroups {
		a.setProblem(part, nil)
	}
	a.badGroups = nil
	for _, g := range all {
		for _, o := range g.Groups {
			if o.Err == nil && o.Change != accounts.Kept {
				a.log.Info("group", "name", o.Name, "change", string(o.Change))
			}
			a.hook(groupHooks[o.Change], o.Name)
		}
		for _, login := range g.Users {
			if c := changed[login]; c != accounts.Kept && c != "" {
				continue // it is told already
			}
			changed[login] = accounts.Updated
			a.accountEvent(byLogin[login], accounts.Outcome{Login: login, Change: accounts.Updated})
			a.hook(accounts.UserUpdated, login)
		}
	}
	last := all[len(all)-1]
	for _, o := range last.Groups {
		if o.Err == nil {
			continue
		}
		a.log.Warn("group", "name", o.Name, "change", string(o.Change), "error", o.Err)
		part := "group " + oneLine(o.Name, 40)
		a.setProblem(part, o.Err)
		a.badGroups = append(a.badGroups, part)
	}
	if last.Sudo != nil {
		a.log.Warn("sudo entitlements", "error", last.Sudo)
	}
	a.setProblem("sudo", last.Sudo)
	return last.Failed
}

// accountEvents are the audit events of what Reconcile did. What stays as it
// is, is told once.
var accountEvents = map[accounts.Change]audit.Kind{
	accounts.Created: audit.AccountCreated, accounts.Updated: audit.AccountUpdated, accounts.Removed: audit.AccountRemoved, accounts.Disabled: audit.AccountDisabled,
	accounts.Conflict: audit.AccountConflict, accounts.Refused: audit.AccountRefused, accounts.Failed: audit.AccountFailed,
}

func (a *Agent) accountEvent(user string, o accounts.Outcome) {
	kind, ok := accountEvents[o.Change]
	if !ok {
		return
	}
	text := o.String()
	a.mu.Lock()
	told := a.told[o.Login] == text && (o.Change == accounts.Conflict || o.Change == accounts.Refused || o.Change == accounts.Failed)
	a.told[o.Login] = text
	a.mu.Unlock()
	if told {
		return
	}
	e := api.Event{Kind: string(kind), User: user, Outcome: audit.Success, Detail: map[string]string{"login": o.Login}}
	if o.Err != nil {
		e.Detail["why"] = o.Err.Error()
		e.Outcome = audit.Failed
	}
	_ = a.event(e)
}

// accountProblem is why nobody can sign in as login.
func (a *Agent) accountProblem(login string) error {
	a.mu.Lock()
	err, bad := a.badAccounts[login]
	a.mu.Unlock()
	if !bad {
		return nil
	}
	if e, ok := errors.AsType[*sft.Error](err); ok {
		return e
	}
	return &sft.Error{Code: sft.Conflict, Msg: "the account " + sft.Quote(login) + " cannot be used on this host", Err: err, Hint: "ask the host's administrator to look at \"sftd status\""}
}

// runReports tells the platform what the host is, when that has changed, and
// renews
// the certificates of the broker and the SSH server when half of their life is
// over.
func (a *Agent) runReports(ctx context.Context, c *api.Client, server string) {
	var wait backoff
	var last string
	for ctx.Err() == nil {
		facts, err := a.facts()
		if err == nil {
			var j []byte
			a.mu.Lock()
			conflicts := a.conflicts
			a.mu.Unlock()
			j, err = json.Marshal([]any{facts, conflicts})
			renew, ssh := !a.conf.DisableBroker && (!a.now().Before(a.renewAt()) || a.foreignCertificate()), a.sshDue(server)
			if err == nil && (string(j) != last || renew || len(ssh) > 0) {
				err = a.report(ctx, c, server, api.ReportRequest{Facts: facts, SSHHostKeys: ssh, Conflicts: conflicts}, renew)
				if err == nil {
					last = string(j)
				}
			}
		}
		if err != nil && ctx.Err() == nil {
			a.log.Warn("report to the platform", "error", err)
			a.setProblem("report", err)
			wait.sleep(ctx)
			continue
		}
		a.setProblem("report", nil)
		wait.reset()
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
}

func (a *Agent) renewAt() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.renew
}

// foreignCertificate reports whether the broker's certificate is by none of the
// CAs that the platform names: the host was moved to another project.
func (a *Agent) foreignCertificate() bool {
	st, _ := a.current()
	chain := a.chain.Load()
	if st == nil || len(st.HostCAs) == 0 || chain == nil {
		return false
	}
	leaf, err := x509.ParseCertificate((*chain)[0])
	return err == nil && !slices.ContainsFunc(st.HostCAs, func(der []byte) bool {
		c, err := x509.ParseCertificate(der)
		return err == nil && leaf.CheckSignatureFrom(c) == nil
	})
}

func (a *Agent) report(ctx context.Context, c *api.Client, server string, req api.ReportRequest, renew bool) error {
	key, err := a.hostKey()
	if err != nil {
		return err
	}
	if renew {
		if req.CSR, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
			return err
		}
	}
	var reply api.ReportReply
	if err := c.Do(ctx, "POST", "/v1/agent/report", req, &reply); err != nil {
		return err
	}
	a.takeSSH(server, req.SSHHostKeys, reply.SSHHostCertificates)
	if !renew {
		return nil
	}
	return a.takeCertificate(server, key, reply.BrokerCertificate)
}

// takeCertificate puts a new certificate of the broker to use.
func (a *Agent) takeCertificate(server string, key *ecdsa.PrivateKey, chain [][]byte) error {
	if len(chain) == 0 || len(chain) > 4 {
		return errors.New("the platform sent no certificate for the broker")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return fmt.Errorf("read the broker's new certificate: %w", err)
	}
	switch {
	case !key.PublicKey.Equal(leaf.PublicKey):
		return errors.New("the platform's certificate for the broker is for another key")
	case leaf.VerifyHostname(server+".server.sft") != nil:
		return errors.New("the platform's certificate for the broker is for another server")
	case !leaf.NotAfter.After(a.now()):
		return errors.New("the platform's certificate for the broker is no longer good")
	}
	a.tlsKey.Store(key)
	a.chain.Store(&chain)
	a.mu.Lock()
	a.renew = leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
	a.certUntil = leaf.NotAfter
	a.mu.Unlock()
	a.tellConfig()
	return nil
}
