package platform

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

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
	Target string `query:"target" json:"-"`
}

// Resolve tells what a name means to the asker.
func (p *Platform) Resolve(ctx context.Context, a Actor, r ResolveRequest) (api.ResolveReply, error) {
	return read(ctx, p, a, r.Team, policy.OwnClient, func(tx *store.Tx, k asker) (api.ResolveReply, error) {
		s, _, err := p.resolve(tx, k, r.Target)
		if err != nil {
			return api.ResolveReply{}, err
		}
		return api.ResolveReply{Server: s.Server(p.Now()), Login: k.user.Login}, nil
	})
}

// resolve finds the one active server that a name means, among those that the
// asker may reach. A name is a server's id or one that it holds; before it
// may stand its project. Who may read the team learns that a server is there
// but closed to them; to others it does not exist.
func (p *Platform) resolve(tx *store.Tx, k asker, target string) (store.ServerRecord, policy.Decision, error) {
	none := store.ServerRecord{}
	if err := sft.CheckTarget(target); err != nil {
		return none, policy.Decision{}, err
	}
	project, name, ok := strings.Cut(target, "/")
	if !ok {
		project, name = "", target
	}
	found, err := tx.ServersNamed(k.team.ID, name)
	if err != nil {
		return none, policy.Decision{}, err
	}
	reach, err := reachOf(tx, k.user)
	if err != nil {
		return none, policy.Decision{}, err
	}
	// A name that looks like the id of another server takes nobody there.
	if i := slices.IndexFunc(found, func(s store.ServerRecord) bool { return s.ID == name }); i >= 0 {
		found = found[i : i+1]
	}
	var active []store.ServerRecord
	var silent, closed *store.ServerRecord
	for _, s := range found {
		if project != "" && sft.Fold(s.Project) != sft.Fold(project) {
			continue
		}
		switch {
		case !reach[s.ProjectID].Access:
			closed = &s
		case s.Server(p.Now()).State == sft.StateActive:
			active = append(active, s)
		default:
			silent = &s
		}
	}
	switch {
	case len(active) == 1:
		return active[0], reach[active[0].ProjectID], nil
	case len(active) > 1:
		var names []string
		for _, s := range active {
			names = append(names, fmt.Sprintf("%s/%s (%s)", s.Project, s.Server(p.Now()).Name(), s.ID))
		}
		slices.Sort(names)
		return none, policy.Decision{}, &sft.Error{Code: sft.Ambiguous,
			Msg:  fmt.Sprintf("%s is the name of %d servers: %s", sft.Quote(target), len(active), strings.Join(names, ", ")),
			Hint: fmt.Sprintf("name the project too, as in \"sft rdp %s/%s\"", active[0].Project, name)}
	case silent != nil:
		return none, policy.Decision{}, &sft.Error{Code: sft.NotFound,
			Msg:  fmt.Sprintf("server %s has not been in touch since %s", sft.Quote(target), lastSeen(*silent)),
			Hint: "start sftd on it, or delete the record if the host is gone"}
	case closed != nil && policy.May(k.user.Status, k.roles, policy.Read):
		return none, policy.Decision{}, &sft.Error{Code: sft.Denied,
			Msg:  fmt.Sprintf("user %s has no access to the servers of project %s", sft.Quote(k.user.Name), sft.Quote(closed.Project)),
			Hint: "ask an administrator for a group with server_access in that project"}
	}
	return none, policy.Decision{}, &sft.Error{Code: sft.NotFound, Msg: "there is no server " + sft.Quote(target),
		Hint: "see \"sft list-servers\" for those that you can reach"}
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

// Connect resolves the name, decides, and issues what opens the way: all or
// nothing, recorded before the reply leaves.
func (p *Platform) Connect(ctx context.Context, a Actor, r ConnectRequest) (api.ConnectReply, error) {
	var reply api.ConnectReply
	if a.Client == "" {
		return reply, &sft.Error{Code: sft.SignIn, Msg: "only an enrolled client can connect", Hint: "run \"sft enroll\" first"}
	}
	refused := p.event(a, audit.UserCredsIssue, "", "", sft.Quote(r.Target))
	err := p.add(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.OwnClient)
		refused.Team = k.team.Name // the asker's own, whatever was asked for
		if err != nil {
			return audit.Event{}, err
		}
		if err := p.signedIn(tx.Notes, a); err != nil {
			return audit.Event{}, err
		}
		if err := tx.ClientSeen(a.Client, p.Now()); err != nil {
			return audit.Event{}, err
		}
		key, err := ca.RequestKey(r.CSR)
		if err != nil {
			return audit.Event{}, err
		}
		s, d, err := p.resolve(tx, k, r.Target)
		if err != nil {
			return audit.Event{}, err
		}
		refused.Project, refused.Target = s.Project, s.Server(p.Now()).Name()
		switch {
		case !d.Access: // resolve returns no such server
			return audit.Event{}, noSuch("server", r.Target)
		case r.Service != frame.RDP && r.Service != frame.Ping:
			return audit.Event{}, &sft.Error{Code: sft.UnknownService, Msg: "service " + sft.Quote(r.Service) + " is unknown", Hint: "use rdp"}
		case len(r.Via) > 0:
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "bastions are not supported by this version", Hint: "leave out --via"}
		case s.Facts.Bastion != "":
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("server %s is behind the bastion %s, and this version connects directly only", sft.Quote(r.Target), sft.Quote(s.Facts.Bastion)),
				Hint: "take Bastion out of its sftd.yaml if it can be reached directly"}
		case len(s.HostKey) == 0:
			return audit.Event{}, &sft.Error{Code: sft.Unavailable, Msg: fmt.Sprintf("server %s has no broker", sft.Quote(r.Target)), Hint: "look at \"sftd status\" on it"}
		}
		pr, err := tx.ProjectByID(s.ProjectID)
		if err != nil {
			return audit.Event{}, err
		}
		session, err := p.session(tx, a, k, s, pr, r.ConnectRequest)
		if err != nil {
			return audit.Event{}, err
		}
		access, err := p.authorities(tx, pr.ID, ca.Access)
		if err != nil {
			return audit.Event{}, err
		}
		hosts, err := p.authorities(tx, pr.ID, ca.Host)
		if err != nil {
			return audit.Event{}, err
		}
		names := frame.Names{Team: k.team.Name, Project: pr.Name, User: k.user.ID, Server: s.ID, Session: session, Revision: pr.Revision}
		if err := names.Check(); err != nil {
			return audit.Event{}, err
		}
		chain, until, err := access[len(access)-1].IssueAccess(key, names, p.Now())
		if err != nil {
			return audit.Event{}, err
		}
		hop := api.Hop{ServerID: s.ID, Name: s.Server(p.Now()).Name(), Project: pr.Name, Address: s.Facts.AccessAddress, Port: s.Facts.BrokerPort,
			BrokerName: ca.BrokerName(s.ID), HostCAs: certificates(hosts), HostKeys: [][]byte{s.HostKey}, Login: k.user.Login}
		if len(s.HostKeyOld) > 0 {
			hop.HostKeys = append(hop.HostKeys, s.HostKeyOld)
		}
		reply = api.ConnectReply{SessionID: session, Route: []api.Hop{hop}, Certificate: chain, ExpiresAt: until, Channels: &pr.Channels}
		e := p.event(a, audit.UserCredsIssue, k.team.Name, pr.Name, hop.Name)
		h, err := ca.KeyHash(key)
		e.Session = session
		e.Detail = map[string]string{"service": r.Service, "server": s.ID, "by": d.By, "key_sha256": fmt.Sprintf("%x", h), "until": until.Format(time.RFC3339)}
		return e, err
	})
	if c := sft.CodeOf(err); err != nil && c != sft.Internal && c != sft.Replayed {
		refused.Detail = map[string]string{"service": sft.Quote(r.Service)}
		err = p.refuse(ctx, refused, err)
	}
	return reply, err
}

// session returns the id of a new session, or of the live one that the
// request continues: the same user's, from the same client, to the same
// server.
func (p *Platform) session(tx *store.Tx, a Actor, k asker, s store.ServerRecord, pr store.ProjectRecord, r api.ConnectRequest) (string, error) {
	now := p.Now()
	if r.SessionID == "" {
		id := audit.NewID()
		return id, tx.AddSession(store.Session{ID: id, ProjectID: pr.ID, ServerID: s.ID, UserID: k.user.ID, ClientID: a.Client, Service: r.Service,
			CreatedAt: now, ExpiresAt: now.Add(time.Duration(pr.MaxSession) * time.Second)})
	}
	v, err := tx.Session(r.SessionID)
	if errors.Is(err, store.ErrNotFound) || err == nil && (v.UserID != k.user.ID || v.ClientID != a.Client || v.ServerID != s.ID || v.Service != r.Service) {
		return "", &sft.Error{Code: sft.NotFound, Msg: "there is no such session", Hint: "run \"sft rdp\" again"}
	}
	if err == nil && (v.Revoked || !v.ExpiresAt.After(now)) {
		return "", &sft.Error{Code: sft.Denied, Msg: "the session has reached its end", Hint: "run \"sft rdp\" again"}
	}
	return v.ID, err
}
