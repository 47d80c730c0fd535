package platform

import (
	"context"
	"errors"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/policy"
	"sft/internal/store"
)

// A service user acts from a host in three steps: an administrator binds it to
// an account of a server; the agent of that server, which knows by the system
// whose process asks, asks the platform for a client; and with that client the
// process reaches what the service user's groups let it reach. The binding is
// what is trusted: an agent can ask for what its own host was given, and
// nothing else.

const (
	serviceClientLife = time.Hour // of a client, until the agent asks again
	maxServiceClients = 8         // of one binding
)

// BindingRequest names a binding of a service user; POST has it in the body.
type BindingRequest struct {
	Team    string `path:"team" json:"-"`
	User    string `path:"user" json:"-"`
	ID      string `path:"id" json:"-"`
	Server  string `json:"server"`  // its id: names are claims of hosts
	Account string `json:"account"` // login name; there is no word for all, and none for root but "root"
}

// binding makes the noun of a record.
func binding(tx *store.Tx, b store.Binding, user string, now time.Time) (sft.ServiceBinding, error) {
	s, err := tx.ServerByID(b.ServerID)
	return sft.ServiceBinding{ID: b.ID, User: user, Server: s.ID, ServerName: s.Server(now).Name(), Project: s.Project,
		Account: b.Account, CreatedBy: b.CreatedBy, CreatedAt: b.CreatedAt}, err
}

// CreateBinding lets an account of a server act as a service user.
func (p *Platform) CreateBinding(ctx context.Context, a Actor, r BindingRequest) (sft.ServiceBinding, error) {
	var v sft.ServiceBinding
	a.gives(func() any { return v })
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, u, err := p.serviceUser(tx, a, UserRequest{r.Team, r.User}, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		s, err := tx.ServerByID(r.Server)
		if err == nil && (s.TeamID != k.team.ID || s.DeletedAt != nil) {
			err = store.ErrNotFound
		}
		if err != nil {
			return audit.Event{}, notFound(err, "server with the id", r.Server)
		}
		if s.Facts.OSType != "linux" {
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "a service user can be bound to an account of a Linux server only", Hint: "give the id of a Linux server"}
		}
		if err := sft.CheckLogin(r.Account); err != nil {
			return audit.Event{}, err
		}
		b := store.Binding{ID: audit.NewID(), UserID: u.ID, ServerID: s.ID, Account: r.Account, CreatedBy: k.user.Name, CreatedAt: p.Now().UTC()}
		if err := tx.AddBinding(b); errors.Is(err, store.ErrExists) {
			return audit.Event{}, &sft.Error{Code: sft.Exists, Msg: "account " + sft.Quote(r.Account) + " of that server is bound already", Hint: "remove that binding first"}
		} else if err != nil {
			return audit.Event{}, err
		}
		if v, err = binding(tx, b, u.Name, p.Now()); err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.ServiceCreate, k.team.Name, s.Project, v.ServerName)
		e.Detail = map[string]string{"binding": b.ID, "user": u.Name, "server": s.ID, "account": b.Account}
		// From its first binding on the service user has accounts of its own.
		return e, tx.ReviseTeam(k.team.ID)
	})
	return v, p.named(ctx, r.Team, err, func(tx *store.Tx, _ string) (string, error) {
		b, err := tx.Binding(r.Server, r.Account)
		return b.ID, err
	})
}

// BindingsRequest is GET /v1/teams/{team}/service_users/{user}/bindings. The
// key of the list is the id.
type BindingsRequest struct {
	Team string `path:"team" json:"-"`
	User string `path:"user" json:"-"`
	Paging
}

// ListBindings returns the bindings of a service user, the oldest first.
func (p *Platform) ListBindings(ctx context.Context, a Actor, r BindingsRequest) (api.List[sft.ServiceBinding], error) {
	var list api.List[sft.ServiceBinding]
	err := p.DB.Read(ctx, func(tx *store.Tx) error {
		_, u, err := p.serviceUser(tx, a, UserRequest{r.Team, r.User}, policy.Read)
		if err != nil {
			return err
		}
		var bad error
		list, err = pageOf(r.Paging, func(b store.Binding) string { return b.ID },
			func(g store.Page) ([]store.Binding, error) { return tx.BindingsByID(u.ID, g) },
			every(func(b store.Binding) sft.ServiceBinding {
				v, err := binding(tx, b, u.Name, p.Now())
				bad = errors.Join(bad, err)
				return v
			}))
		return errors.Join(err, bad)
	})
	return list, err
}

// DeleteBinding takes a service user from an account of a server: the clients
// that were made for it are refused at once, and their sessions end within
// seconds.
func (p *Platform) DeleteBinding(ctx context.Context, a Actor, r BindingRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, u, err := p.serviceUser(tx, a, UserRequest{r.Team, r.User}, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		b, err := tx.BindingByID(u.ID, r.ID)
		if err != nil {
			return audit.Event{}, notFound(err, "binding", r.ID)
		}
		v, err := binding(tx, b, u.Name, p.Now())
		if err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.ServiceRemove, k.team.Name, v.Project, v.ServerName)
		e.Detail = map[string]string{"binding": b.ID, "user": u.Name, "server": b.ServerID, "account": b.Account}
		return e, tx.RemoveBinding(b.ID, p.Now())
	})
}

// ServiceClient gives an agent a client of the service user that an account of
// its host is bound to. With a device key that it has asked with before, the
// client's sign-in begins anew.
func (p *Platform) ServiceClient(ctx context.Context, a Actor, r api.ServiceClientRequest) (api.ServiceClientReply, error) {
	var reply api.ServiceClientReply
	if _, err := ca.PublicKey(r.DeviceKey); err != nil {
		return reply, err
	}
	if err := checkDevice(r.Device); err != nil {
		return reply, err
	}
	if err := sft.CheckLogin(r.Account); err != nil {
		return reply, err
	}
	if !p.limits.allow(p.Now(), "service:"+a.Server, time.Second, 60) {
		return reply, errTooOften
	}
	refused := p.event(a, audit.ClientEnroll, "", "", r.Device.Hostname)
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		s, err := p.server(tx.Notes, a)
		if err != nil {
			return audit.Event{}, err
		}
		team, err := tx.TeamByID(s.TeamID)
		if err != nil {
			return audit.Event{}, err
		}
		refused.Team, refused.Project = team.Name, s.Project
		refused.Detail = map[string]string{"account": r.Account, "server": s.ID}
		b, err := tx.Binding(s.ID, r.Account)
		if errors.Is(err, store.ErrNotFound) {
			return audit.Event{}, &sft.Error{Code: sft.Denied, Msg: "account " + sft.Quote(r.Account) + " of this server acts as no service user",
				Hint: "ask an administrator of the team to bind one to it"}
		}
		if err != nil {
			return audit.Event{}, err
		}
		u, err := tx.UserByID(b.UserID)
		if err != nil {
			return audit.Event{}, err
		}
		refused.Detail["user"], refused.Detail["binding"] = u.Name, b.ID
		if u.Status != sft.StatusActive || u.Type != sft.Service {
			return audit.Event{}, &sft.Error{Code: sft.Denied, Msg: "service user " + sft.Quote(u.Name) + " is not active", Hint: "ask an administrator of the team"}
		}
		now := p.Now().UTC()
		reply = api.ServiceClientReply{Team: team.Name, User: u.Name, URL: p.URL, SignedInUntil: now.Add(serviceClientLife)}
		e := p.event(a, audit.ClientEnroll, team.Name, s.Project, r.Device.Hostname)
		e.Detail = refused.Detail
		old, err := tx.ClientByKey(r.DeviceKey)
		if err == nil && (old.BindingID != b.ID || old.State != sft.StateActive) {
			return audit.Event{}, &sft.Error{Code: sft.Exists, Msg: "the device key is, or was, that of another client", Hint: "make a new device key, then ask again"}
		}
		if err == nil {
			e.Kind, e.Target, e.Client, reply.ClientID = audit.AuthTokenIssue, "client", old.ID, old.ID
			return e, tx.SignInClient(old.ID, reply.SignedInUntil)
		}
		if !errors.Is(err, store.ErrNotFound) {
			return audit.Event{}, err
		}
		if err := p.makeRoom(tx, a, team, b); err != nil {
			return audit.Event{}, err
		}
		c := store.ClientRecord{TeamID: team.ID, UserID: u.ID, DeviceKey: r.DeviceKey, BindingID: b.ID}
		c.ID, c.User, c.State, c.EnrolledAt, c.MadeBy = audit.NewID(), u.Name, sft.StateActive, now, s.ID
		c.Hostname, c.OS, c.Version, c.SignedInUntil = r.Device.Hostname, r.Device.OS, r.Device.Version, reply.SignedInUntil
		e.Client, reply.ClientID = c.ID, c.ID
		return e, tx.AddClient(c)
	})
	if code := sft.CodeOf(err); err != nil && (code == sft.Denied || code == sft.Exists) {
		err = p.refuse(ctx, refused, err)
	}
	if err != nil {
		reply = api.ServiceClientReply{}
	}
	return reply, err
}

// makeRoom deletes those clients of a binding that are too many for one more.
func (p *Platform) makeRoom(tx *store.Tx, a Actor, team sft.Team, b store.Binding) error {
	clients, err := tx.BindingClients(b.ID)
	if err != nil || len(clients) < maxServiceClients {
		return err
	}
	for _, c := range clients[:len(clients)-maxServiceClients+1] {
		e := p.event(a, audit.ClientRemove, team.Name, "", c.Hostname)
		e.Detail = map[string]string{"client": c.ID, "user": c.User, "binding": b.ID, "why": "the account has newer ones"}
		tx.Also(e)
		// It happens with each process that is one too many: who has no session of
		// it hears nothing.
		if err := errors.Join(tx.RemoveClient(c.ID, p.Now()), tx.ReviseSessionsOf(c.ID, p.Now())); err != nil {
			return err
		}
	}
	return nil
}
