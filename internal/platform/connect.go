package platform

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/frame"
	"sft/internal/policy"
	"sft/internal/store"
)

// ResolveRequest is GET /v1/teams/{team}/resolve.
type ResolveRequest struct {
	Team   string `path:"team" json:"-"`
	Target string `query:"target" json:"-"` // a server: its id or one of its names, PROJECT/NAME where a name means several
}

// Resolve tells what a name means to the asker, and through which hosts the
// way to it goes.
func (p *Platform) Resolve(ctx context.Context, a Actor, r ResolveRequest) (api.ResolveReply, error) {
	return read(ctx, p, a, r.Team, policy.OwnClient, func(tx *store.Tx, k asker) (api.ResolveReply, error) {
		none := api.ResolveReply{}
		way, err := p.router(tx, k)
		if err != nil {
			return none, err
		}
		target, err := way.target(r.Target)
		if err != nil {
			return none, err
		}
		hops, err := way.hops(target, nil)
		if err != nil {
			return none, err
		}
		return api.ResolveReply{Server: k.server(*target.server, p.Now()), Login: k.user.LoginOn(target.server.Facts.OSType), Route: stepNames(hops)}, nil
	})
}

func lastSeen(s store.ServerRecord) string {
	if s.LastSeen == nil {
		return "it enrolled"
	}
	return s.LastSeen.Format(time.RFC3339)
}

// ConnectRequest is POST /v1/teams/{team}/connect.
type ConnectRequest struct {
	Team string `path:"team" json:"-"`
	api.ConnectRequest
}

// Connect resolves the name, finds the way, decides, and issues what opens it:
// all or nothing, recorded before the reply leaves.
func (p *Platform) Connect(ctx context.Context, a Actor, r ConnectRequest) (api.ConnectReply, error) {
	var found way
	if a.Client == "" {
		return api.ConnectReply{}, &sft.Error{Code: sft.SignIn, Msg: "only an enrolled client can connect", Hint: "run \"sft enroll\" first"}
	}
	refused := p.event(a, audit.UserCredsIssue, "", "", sft.Quote(r.Target))
	for _, v := range r.Via[:min(len(r.Via), maxHops)] {
		refused.Via = append(refused.Via, sft.Quote(v))
	}
	// Checked here, and not while other writers wait.
	csr, csrErr := ca.RequestKey(r.CSR)
	err := p.add(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, reach, err := p.asReaching(tx, a, r.Team, policy.OwnClient)
		refused.Team = k.team.Name // the asker's own, whatever was asked for
		if err != nil {
			return audit.Event{}, err
		}
		err = p.mayAct(k.client)
		if err == nil && !p.seen(k.client) {
			err = tx.ClientSeen(k.client.ID, p.Now())
		}
		if err != nil {
			return audit.Event{}, err
		}
		router := p.routerOf(tx, k, reach)
		target, err := router.target(r.Target)
		if err != nil {
			return audit.Event{}, err
		}
		refused.Project, refused.Target = target.project.Name, target.name
		hops, err := router.hops(target, r.Via)
		if err != nil {
			return audit.Event{}, err
		}
		for _, on := range append(hops[:len(hops):len(hops)], target) {
			if err := router.refusal(on); err != nil {
				return audit.Event{}, err
			}
		}
		want, err := wanted(r.ConnectRequest, csr, csrErr, target, hops)
		if err != nil {
			return audit.Event{}, err
		}
		session, err := p.session(tx, a, k, *target.server, target.project, r.ConnectRequest)
		if err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.UserCredsIssue, k.team.Name, target.project.Name, target.name)
		e.Session, e.Via = session, stepNames(hops)
		e.Detail = map[string]string{"service": r.Service, "server": target.server.ID, "by": target.decision.By}
		i := issuer{p: p, tx: tx, k: k, session: session, want: want, event: &e}
		found, err = i.issue(hops, target)
		return e, err
	})
	if c := sft.CodeOf(err); err != nil && c != sft.Internal && c != sft.Replayed {
		refused.Detail = map[string]string{"service": sft.Quote(r.Service)}
		err = p.refuse(ctx, refused, err)
	}
	if err != nil {
		return api.ConnectReply{}, err
	}
	for _, t := range found.by {
		p.trust(t)
	}
	return found.sign()
}

// target finds the server that a person wants to get to, which an agent looks
// after.
func (r router) target(name string) (step, error) {
	s, err := r.resolve(name)
	if err != nil {
		return step{}, err
	}
	return r.step(s)
}

// A wish is what a request needs certificates for, and their keys.
type wish struct {
	broker *ecdsa.PublicKey // for the target's broker, or nil
	ssh    ssh.PublicKey    // for the SSH servers on the way, or nil
	target bool             // the target is reached by SSH, too
	relay  bool             // by its broker
}

// wanted says what is needed, and refuses a target that does not have it and a
// request without the keys for it: csr is the one of its CSR, unless that has
// an error.
func wanted(r api.ConnectRequest, csr *ecdsa.PublicKey, csrErr error, target step, hops []step) (wish, error) {
	w := wish{target: r.Service == frame.SSH}
	s := target.server
	if err := serves(target, r.Service); err != nil {
		return w, err
	}
	w.relay = w.target && throughBroker(*s, target.project)
	var err error
	if !w.target || w.relay {
		if csrErr != nil {
			return w, csrErr
		}
		w.broker = csr
	}
	if !w.target && !slices.ContainsFunc(hops, step.enrolled) {
		return w, nil
	}
	if r.SSHPublicKey == "" {
		return w, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the way to server %s is by SSH, and the request has no ssh_public_key", sft.Quote(target.name)), Hint: "use a newer version of sft"}
	}
	w.ssh, err = ca.SSHUserKey(r.SSHPublicKey)
	return w, err
}

// serves refuses a target that has no way in by the service: what its agent would
// refuse by the project's settings, too. A ping opens nothing, and says whether
// people get in.
func serves(target step, service string) error {
	s := target.server
	switch ssh := service == frame.SSH; {
	case service != frame.RDP && !ssh && service != frame.Ping:
		return &sft.Error{Code: sft.UnknownService, Msg: "service " + sft.Quote(service) + " is unknown", Hint: "use rdp or ssh"}
	case s.Unmanaged:
		return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("server %s has no agent: it is there to be gone through", sft.Quote(target.name)), Hint: "use ssh to get to it, or name it with --via"}
	case !target.project.CreateServerUsers:
		return noAccounts(fmt.Sprintf("server %s lets nobody in", sft.Quote(target.name)), target.project)
	case ssh && s.Facts.SSH == nil:
		return &sft.Error{Code: sft.Unavailable, Msg: fmt.Sprintf("server %s lets nobody in by SSH: sftd looks after no SSH server on it", sft.Quote(target.name)), Hint: "look at \"sftd status\" on it"}
	case len(s.HostKey) == 0 && (!ssh || throughBroker(*s, target.project)):
		return &sft.Error{Code: sft.Unavailable, Msg: fmt.Sprintf("server %s has no broker", sft.Quote(target.name)), Hint: "look at \"sftd status\" on it"}
	}
	return nil
}

// noAccounts refuses for a project whose agents keep no accounts, which every
// sign-in needs, also one that goes on to another server.
func noAccounts(what string, pr store.ProjectRecord) error {
	return &sft.Error{Code: sft.Denied, Msg: fmt.Sprintf("%s: project %s does not let sftd manage accounts, and signing in needs that", what, sft.Quote(pr.Name)),
		Hint: "ask an administrator to set create_server_users in the project"}
}

// stepNames are the names of hosts, in their order.
func stepNames(hops []step) (names []string) {
	for _, s := range hops {
		names = append(names, s.name)
	}
	return names
}

// A way is what Connect answers, whose certificates are decided and recorded,
// and not signed yet: signatures take longer than all else, and while a
// transaction is open others may have to wait.
type way struct {
	reply  api.ConnectReply
	ssh    map[int]ca.SSHDraft // by the hop that they are for
	broker *ca.Draft
	by     []trusted // whose they are
}

// sign completes the answer.
func (w way) sign() (api.ConnectReply, error) {
	for n, d := range w.ssh {
		c, err := d.Sign()
		if err != nil {
			return api.ConnectReply{}, err
		}
		w.reply.Route[n].SSH.Certificate = c.Line
	}
	if w.broker != nil {
		chain, err := w.broker.Sign()
		if err != nil {
			return api.ConnectReply{}, err
		}
		w.reply.Certificate = chain
	}
	return w.reply, nil
}

// An issuer decides what opens one way, and tells of it in one event.
type issuer struct {
	p       *Platform
	tx      *store.Tx
	k       asker
	session string
	want    wish
	event   *audit.Event
	way     way
}

// issue returns the way.
func (i *issuer) issue(hops []step, target step) (way, error) {
	i.way = way{reply: api.ConnectReply{SessionID: i.session, Channels: &target.project.Channels}, ssh: map[int]ca.SSHDraft{}}
	reply := &i.way.reply
	var serials, by, preauths []string
	if i.want.ssh != nil {
		i.event.Detail["ssh_key"] = ssh.FingerprintSHA256(i.want.ssh)
	}
	for n, s := range append(slices.Clone(hops), target) {
		isTarget := n == len(hops)
		if !s.enrolled() {
			h := api.Hop{Unmanaged: true, Name: s.name, Address: s.name, Port: s.port, Login: s.login}
			if s.server != nil {
				h.ServerID, h.Address = s.server.ID, s.server.Facts.AccessAddress
				if f := s.server.Facts.SSH; f != nil {
					h.Port = f.Port
				}
				by = append(by, s.server.ID+"="+s.decision.By)
			}
			reply.Route = append(reply.Route, h)
			continue
		}
		if id := s.decision.Preauth; id != "" {
			preauths = append(preauths, s.server.ID+"="+id)
		}
		h := api.Hop{ServerID: s.server.ID, Name: s.name, Project: s.project.Name, Address: s.server.Facts.AccessAddress, Login: i.k.user.LoginOn(s.server.Facts.OSType)}
		if n > 0 {
			h.Address = address(*s.server, &hops[n-1])
		}
		if !isTarget || i.want.target {
			c, err := i.ssh(&h, s, isTarget)
			if err != nil {
				return i.way, err
			}
			i.way.ssh[n] = c
			serials = append(serials, fmt.Sprintf("%s=%d", s.server.ID, c.Serial))
			reply.ExpiresAt = c.Until
			if !isTarget {
				until := i.p.Now().Add(time.Duration(s.project.MaxSession)*time.Second + signInTime)
				if err := i.tx.AddSessionHop(i.session, s.server.ID, until); err != nil {
					return i.way, err
				}
			}
		}
		if !isTarget {
			by = append(by, s.server.ID+"="+s.decision.By)
		} else if i.want.broker != nil {
			if err := i.broker(&h, s); err != nil {
				return i.way, err
			}
		}
		reply.Route = append(reply.Route, h)
	}
	for name, list := range map[string][]string{"ssh_serials": serials, "hops_by": by, "preauthorizations": preauths} {
		if len(list) > 0 {
			i.event.Detail[name] = strings.Join(list, " ")
		}
	}
	i.event.Detail["until"] = reply.ExpiresAt.Format(time.RFC3339)
	return i.way, nil
}

// authorities are those of a host's project.
func (i *issuer) authorities(s step) (authorities, error) {
	t, err := i.p.trustedBy(i.tx, s.project)
	i.way.by = append(i.way.by, t)
	return t.of, err
}

// ssh decides on a certificate for an SSH server, and says in h how to reach it.
func (i *issuer) ssh(h *api.Hop, s step, target bool) (ca.SSHDraft, error) {
	cas, err := i.authorities(s)
	if err != nil {
		return ca.SSHDraft{}, err
	}
	o := s.project.ClientOptions
	agent := target && o.ForwardAgent == sft.AgentHost
	c, err := cas.signer(ca.SSHUser).DraftSSHUser(i.want.ssh, ca.SSHGrant{Session: i.session, User: i.k.user.ID, Server: s.server.ID, Login: h.Login,
		Hop: !target, ForwardAgent: agent}, i.p.Now())
	if err != nil {
		return c, err
	}
	f := s.server.Facts.SSH
	h.SSH = &api.SSHHop{Port: f.Port, HostCAs: sshKeys(cas[ca.SSHHost]), HostKeys: f.HostKeys,
		Broker: target && i.want.relay, Netcat: !target && o.PortForward == sft.ForwardNetcat, ForwardAgent: agent}
	return c, nil
}

// broker decides on a certificate for the target's broker, and says in h what
// proves it.
func (i *issuer) broker(h *api.Hop, s step) error {
	cas, err := i.authorities(s)
	if err != nil {
		return err
	}
	names := frame.Names{Team: i.k.team.Name, Project: s.project.Name, User: i.k.user.ID, Server: s.server.ID, Session: i.session, Revision: revision(s.project, *s.server)}
	if err := names.Check(); err != nil {
		return err
	}
	d, err := cas.signer(ca.Access).DraftAccess(i.want.broker, names, i.p.Now())
	if err != nil {
		return err
	}
	i.way.broker, i.way.reply.ExpiresAt = &d, d.Until
	h.Port, h.BrokerName, h.HostCAs, h.HostKeys = s.server.Facts.BrokerPort, ca.BrokerName(s.server.ID), certificates(cas[ca.Host]), [][]byte{s.server.HostKey}
	if len(s.server.HostKeyOld) > 0 {
		h.HostKeys = append(h.HostKeys, s.server.HostKeyOld)
	}
	sum, err := ca.KeyHash(i.want.broker)
	i.event.Detail["key_sha256"] = fmt.Sprintf("%x", sum)
	return err
}

// session returns the id of a new session, or of the live one that the
// request continues: the same user's, from the same client, to the same
// server.
func (p *Platform) session(tx *store.Tx, a Actor, k asker, s store.ServerRecord, pr store.ProjectRecord, r api.ConnectRequest) (string, error) {
	now := p.Now()
	ends := now.Add(time.Duration(pr.MaxSession) * time.Second)
	if r.SessionID == "" {
		id := audit.NewID()
		return id, tx.AddSession(store.Session{ID: id, ProjectID: pr.ID, ServerID: s.ID, UserID: k.user.ID, ClientID: a.Client, Service: r.Service,
			CreatedAt: now, ExpiresAt: ends, LiveUntil: ends.Add(signInTime)})
	}
	v, err := tx.Session(r.SessionID)
	if errors.Is(err, store.ErrNotFound) || err == nil && (v.UserID != k.user.ID || v.ClientID != a.Client || v.ServerID != s.ID || v.Service != r.Service) {
		return "", &sft.Error{Code: sft.NotFound, Msg: "there is no such session", Hint: "connect again"}
	}
	if err == nil && (v.Revoked || !v.ExpiresAt.After(now)) {
		return "", &sft.Error{Code: sft.Denied, Msg: "the session has reached its end", Hint: "connect again"}
	}
	if err != nil {
		return "", err
	}
	return v.ID, tx.ProlongSession(v.ID, ends.Add(signInTime))
}

// signInTime is how long after it was issued a certificate can still let
// somebody in, by a host's clock that is late. How long they may stay, the
// agent counts from then.
const signInTime = max(ca.AccessLife, ca.SSHUserLife) + api.MaxSkew
