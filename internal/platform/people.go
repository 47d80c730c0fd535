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
	"sft/internal/policy"
	"sft/internal/store"
)

// firstUseLife is how long a one-time sign-in link works.
const firstUseLife = 72 * time.Hour

// loginFor makes a login name out of a user's name, one that was never given
// in the team: Linux rules, and those of Windows, which takes it too.
func loginFor(tx *store.Tx, teamID, name string) (string, error) {
	var b strings.Builder
	local, _, _ := strings.Cut(strings.ToLower(name), "@")
	for _, r := range local {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' || r == '-':
			b.WriteRune(r)
		case r == '.':
			b.WriteByte('_')
		}
	}
	base := strings.TrimLeft(b.String(), "-0123456789")
	if base == "" {
		base = "user"
	}
	if slices.Contains(reservedLogins, base) || sft.CheckWindowsLogin(base[:min(len(base), 20)]) != nil {
		base = "u_" + base
	}
	base = base[:min(len(base), 20)]
	for i := 1; i < 10_000; i++ {
		login := base
		if i > 1 {
			n := fmt.Sprint(i)
			login = base[:min(len(base), 20-len(n))] + n
		}
		if sft.CheckWindowsLogin(login) != nil { // as com2
			continue
		}
		taken, err := tx.LoginTaken(teamID, login, "")
		if err == nil && !taken { // an account has a group of its name
			taken, err = tx.ServerGroupTaken(teamID, login, "")
		}
		if err != nil {
			return "", err
		}
		if !taken {
			return login, nil
		}
	}
	return "", &sft.Error{Code: sft.Exists, Msg: "no login name is left for " + sft.Quote(name), Hint: "choose another user name"}
}

// reservedLogins are accounts that systems come with.
var reservedLogins = []string{"root", "daemon", "bin", "sys", "sync", "games", "man", "lp", "mail", "news", "uucp", "proxy", "www-data",
	"backup", "list", "irc", "nobody", "sshd", "messagebus", "xrdp", "postgres", "admin", "administrator", "guest", "adm", "sudo", "wheel",
	"staff", "users", "sft-users", "sft-admin", "sftd-broker", "systemd-network", "defaultaccount", "wdagutilityaccount", "ubuntu", "debian", "ec2-user"}

// CreateUserRequest is POST /v1/teams/{team}/users.
type CreateUserRequest struct {
	Team     string `path:"team" json:"-"`
	Name     string `json:"name"`
	FullName string `json:"full_name,omitempty"`
	Email    string `json:"email,omitempty"`
}

// CreateUserReply shows the user's one-time sign-in link, once.
type CreateUserReply struct {
	sft.User
	FirstUseURL string `json:"first_use_url"` // where the person sets a password, within three days; shown once
}

// oneLine reports whether a text of a person's is one line, of max bytes at
// most, that is shown as it is written.
func oneLine(s string, max int) bool { return len(s) <= max && sft.Printable(s) == s }

// newUser makes a user with its login name and ids.
func (p *Platform) newUser(tx *store.Tx, teamID, name, fullName, email string, kind sft.UserType) (store.UserRecord, error) {
	if err := sft.CheckName("user", name); err != nil {
		return store.UserRecord{}, err
	}
	details := sft.UserDetails{FullName: fullName, Email: email}
	if err := checkDetails(details); err != nil {
		return store.UserRecord{}, err
	}
	u := store.UserRecord{TeamID: teamID}
	var err error
	u.ID, u.Name, u.Type, u.Status = audit.NewID(), name, kind, sft.StatusActive
	u.Details = details
	u.CreateAt = p.Now().UTC()
	if u.Login, err = loginFor(tx, teamID, name); err != nil {
		return u, err
	}
	if u.UID, u.GID, err = tx.NextIDs(teamID); err != nil {
		return u, err
	}
	u.WindowsLogin, u.WindowsUID, u.WindowsGID = u.Login, u.UID, u.GID
	return u, exists(tx.AddUser(u), "user", name)
}

// checkDetails refuses what is no line.
func checkDetails(d sft.UserDetails) error {
	for name, text := range map[string]string{"full_name": d.FullName, "email": d.Email} {
		if !oneLine(text, 200) {
			return &sft.Error{Code: sft.Invalid, Msg: name + " is too long, or more than a line", Hint: "use up to 200 characters in one line"}
		}
	}
	return nil
}

// firstUse makes a one-time sign-in link for a user; those before it end.
func (p *Platform) firstUse(tx *store.Tx, userID string) (string, error) {
	secret, hash := newToken()
	if err := tx.EndFirstUses(userID); err != nil {
		return "", err
	}
	return p.URL + "/first-use?secret=" + secret.Reveal(), tx.AddFirstUse(hash, userID, p.Now().Add(firstUseLife))
}

// CreateUser makes a person, who signs in with a one-time link first.
func (p *Platform) CreateUser(ctx context.Context, a Actor, r CreateUserRequest) (CreateUserReply, error) {
	var reply CreateUserReply
	a.givesOnce("the user", &reply.ID, "make another link by POST to the user's first_use")
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		u, err := p.newUser(tx, k.team.ID, r.Name, r.FullName, r.Email, sft.Human)
		if err != nil {
			return audit.Event{}, err
		}
		reply.User = u.User
		if reply.FirstUseURL, err = p.firstUse(tx, u.ID); err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.UserCreate, k.team.Name, "", u.Name)
		e.Detail = map[string]string{"login": u.Login, "uid": fmt.Sprint(u.UID)}
		// The group "everyone" may be in a project.
		return e, tx.ReviseTeam(k.team.ID)
	})
	return reply, p.named(ctx, r.Team, err, func(tx *store.Tx, teamID string) (string, error) {
		u, err := tx.User(teamID, r.Name)
		return u.ID, err
	})
}

// UserRequest names a user.
type UserRequest struct {
	Team string `path:"team" json:"-"`
	User string `path:"user" json:"-"`
}

// TeamRequest names a team.
type TeamRequest struct {
	Team string `path:"team" json:"-"`
}

// UserFilter says which users are listed; what is left out lets all through.
type UserFilter struct {
	Contains   string       `query:"contains" json:"-"`    // in the name
	StartsWith string       `query:"starts_with" json:"-"` // what the name begins with
	Status     sft.Status   `query:"status" json:"-"`
	Type       sft.UserType `query:"user_type" json:"-"` // where both are listed
}

// checked refuses a filter that can mean nothing.
func (f UserFilter) checked() (store.UserFilter, error) {
	switch {
	case f.Status != "" && f.Status != sft.StatusActive && f.Status != sft.StatusDisabled && f.Status != sft.StatusDeleted:
		return store.UserFilter{}, &sft.Error{Code: sft.Invalid, Msg: "status " + sft.Quote(string(f.Status)) + " is unknown", Hint: "use ACTIVE, DISABLED or DELETED"}
	case f.Type != "" && f.Type != sft.Human && f.Type != sft.Service:
		return store.UserFilter{}, &sft.Error{Code: sft.Invalid, Msg: "user_type " + sft.Quote(string(f.Type)) + " is unknown", Hint: "use human or service"}
	}
	return store.UserFilter{Contains: f.Contains, StartsWith: f.StartsWith, Status: f.Status, Type: f.Type}, nil
}

// UsersRequest is GET /v1/teams/{team}/users and …/service_users. The key of
// the list is the name.
type UsersRequest struct {
	Team string `path:"team" json:"-"`
	UserFilter
	Paging
}

// ListUsers returns the people of a team.
func (p *Platform) ListUsers(ctx context.Context, a Actor, r UsersRequest) (api.List[sft.User], error) {
	r.Type = sft.Human
	return p.listUsers(ctx, a, r)
}

// ListServiceUsers returns the service users of a team.
func (p *Platform) ListServiceUsers(ctx context.Context, a Actor, r UsersRequest) (api.List[sft.User], error) {
	r.Type = sft.Service
	return p.listUsers(ctx, a, r)
}

func (p *Platform) listUsers(ctx context.Context, a Actor, r UsersRequest) (api.List[sft.User], error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (api.List[sft.User], error) {
		f, err := r.UserFilter.checked()
		if err != nil {
			return api.List[sft.User]{}, err
		}
		r.Offset = sft.Fold(r.Offset)
		return pageOf(r.Paging, func(u store.UserRecord) string { return sft.Fold(u.Name) },
			func(g store.Page) ([]store.UserRecord, error) { return tx.UsersByName(k.team.ID, f, g) },
			every(func(u store.UserRecord) sft.User { return u.User }))
	})
}

// GetUser returns one user.
func (p *Platform) GetUser(ctx context.Context, a Actor, r UserRequest) (sft.User, error) {
	action := policy.Read
	if sft.Fold(r.User) == sft.Fold(a.Name) {
		action = policy.OwnClient // one's own login, which a block for ssh names, takes no role
	}
	return read(ctx, p, a, r.Team, action, func(tx *store.Tx, k asker) (sft.User, error) {
		u, err := tx.User(k.team.ID, r.User)
		if err == nil && action == policy.OwnClient && u.ID != k.user.ID {
			err = store.ErrNotFound
		}
		return u.User, notFound(err, "user", r.User)
	})
}

// UpdateUserRequest is PUT /v1/teams/{team}/users/{user}; what is left out
// stays.
type UpdateUserRequest struct {
	Team     string      `path:"team" json:"-"`
	User     string      `path:"user" json:"-"`
	Status   *sft.Status `json:"status,omitempty"`
	FullName *string     `json:"full_name,omitempty"`
	Email    *string     `json:"email,omitempty"`
}

// UpdateServiceUserRequest is PUT /v1/teams/{team}/service_users/{user}.
type UpdateServiceUserRequest struct {
	Team   string     `path:"team" json:"-"`
	User   string     `path:"user" json:"-"`
	Status sft.Status `json:"status"`
}

// UpdateUser enables, disables or deletes a user, or gives them another full
// name or email. Nobody changes their own status, and a deleted user stays as
// they are.
func (p *Platform) UpdateUser(ctx context.Context, a Actor, r UpdateUserRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		u, err := tx.User(k.team.ID, r.User)
		if err != nil {
			return audit.Event{}, notFound(err, "user", r.User)
		}
		return p.saveUser(tx, a, k, &u, r)
	})
}

// GetServiceUser returns one service user.
func (p *Platform) GetServiceUser(ctx context.Context, a Actor, r UserRequest) (sft.User, error) {
	var u store.UserRecord
	err := p.DB.Read(ctx, func(tx *store.Tx) (err error) {
		_, u, err = p.everyServiceUser(tx, a, r, policy.Read)
		return err
	})
	return u.User, err
}

// UpdateServiceUser enables, disables or deletes a service user, and returns
// it. One that is not active has no token, and its keys get none.
func (p *Platform) UpdateServiceUser(ctx context.Context, a Actor, r UpdateServiceUserRequest) (sft.User, error) {
	var u store.UserRecord
	err := p.change(ctx, a, func(tx *store.Tx) (e audit.Event, err error) {
		var k asker
		if k, u, err = p.everyServiceUser(tx, a, UserRequest{r.Team, r.User}, policy.Administer); err != nil {
			return e, err
		}
		return p.saveUser(tx, a, k, &u, UpdateUserRequest{Status: &r.Status})
	})
	return u.User, err
}

// saveUser changes of a user what is given.
func (p *Platform) saveUser(tx *store.Tx, a Actor, k asker, u *store.UserRecord, r UpdateUserRequest) (audit.Event, error) {
	was := u.User
	if s := r.Status; s != nil {
		switch {
		case u.ID == k.user.ID:
			return audit.Event{}, &sft.Error{Code: sft.Denied, Msg: "nobody may change their own status", Hint: "ask another administrator"}
		case *s != sft.StatusActive && *s != sft.StatusDisabled && *s != sft.StatusDeleted:
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "status " + sft.Quote(string(*s)) + " is unknown", Hint: "use ACTIVE, DISABLED or DELETED"}
		}
		u.Status = *s
	}
	if r.FullName != nil {
		u.Details.FullName = *r.FullName
	}
	if r.Email != nil {
		u.Details.Email = *r.Email
	}
	if err := checkDetails(u.Details); err != nil {
		return audit.Event{}, err
	}
	if err := differ(was, u.User); err != nil {
		return audit.Event{}, err
	}
	if was.Status == sft.StatusDeleted {
		return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "user " + sft.Quote(u.Name) + " was deleted, which is for good", Hint: "make a user of another name"}
	}
	kind := audit.UserUpdate
	if u.Status == sft.StatusDeleted {
		kind = audit.UserRemove
	}
	e := p.event(a, kind, k.team.Name, "", u.Name)
	e.Detail = map[string]string{}
	if u.Status != was.Status {
		e.Detail["status"], e.Detail["was"] = string(u.Status), string(was.Status)
	}
	if u.Details.FullName != was.Details.FullName {
		e.Detail["full_name"] = u.Details.FullName
	}
	if u.Details.Email != was.Details.Email {
		e.Detail["email"] = u.Details.Email
	}
	if err := tx.SaveUser(*u); err != nil {
		return e, err
	}
	if u.Status != was.Status && u.Status != sft.StatusActive {
		if err := errors.Join(tx.EndWebSessions(u.ID), tx.EndFirstUses(u.ID)); err != nil {
			return e, err
		}
		// Clients that agents asked for do not come back with the service user;
		// what it is bound to does, unless it is gone for good.
		end := tx.RemoveBoundClients
		if u.Status == sft.StatusDeleted {
			end = tx.RemoveBindings
		}
		if err := end(u.ID, p.Now()); err != nil {
			return e, err
		}
		owners, err := tx.Group(k.team.ID, sft.Owners)
		if err != nil {
			return e, err
		}
		if err := keepsOwner(tx, owners, u.Name); err != nil {
			return e, err
		}
	}
	return e, tx.ReviseTeam(k.team.ID)
}

// ResetUser makes a new one-time link for a person; the old password stays
// until it is used.
func (p *Platform) ResetUser(ctx context.Context, a Actor, r UserRequest) (CreateUserReply, error) {
	var reply CreateUserReply
	a.givesOnce("a link for the user", &reply.ID, "make another link with another key")
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		u, err := tx.User(k.team.ID, r.User)
		switch {
		case err != nil:
			return audit.Event{}, notFound(err, "user", r.User)
		case u.Type != sft.Human:
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: sft.Quote(u.Name) + " is a service user, and has no password", Hint: "make a key for it"}
		case u.Status != sft.StatusActive:
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("user %s is not active, but %s", sft.Quote(u.Name), u.Status), Hint: "make one that is DISABLED ACTIVE first; one that is DELETED stays so"}
		}
		reply.User = u.User
		reply.FirstUseURL, err = p.firstUse(tx, u.ID)
		e := p.event(a, audit.PasswordChange, k.team.Name, "", u.Name)
		e.Detail = map[string]string{"how": "one-time link made"}
		return e, err
	})
	return reply, err
}

// ServiceUserRequest is POST /v1/teams/{team}/service_users.
type ServiceUserRequest struct {
	Team string `path:"team" json:"-"`
	Name string `json:"name"`
}

// CreateServiceUser makes a service user, without a key.
func (p *Platform) CreateServiceUser(ctx context.Context, a Actor, r ServiceUserRequest) (sft.User, error) {
	var u store.UserRecord
	a.gives(func() any { return u.User })
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		u, err = p.newUser(tx, k.team.ID, r.Name, "", "", sft.Service)
		return p.event(a, audit.UserCreate, k.team.Name, "", r.Name), err
	})
	return u.User, p.named(ctx, r.Team, err, func(tx *store.Tx, teamID string) (string, error) {
		u, err := tx.User(teamID, r.Name)
		return u.ID, err
	})
}

// KeyReply shows a service user's new key, once.
type KeyReply struct {
	sft.ServiceKey
	Secret string `json:"key_secret"` // shown once
}

func (p *Platform) newKey(tx *store.Tx, userID string) (KeyReply, error) {
	secret, hash := newToken()
	k := store.KeyRecord{UserID: userID, SecretHash: hash}
	k.ID, k.IssuedAt = audit.NewID(), p.Now().UTC()
	return KeyReply{k.ServiceKey, secret.Reveal()}, tx.AddKey(k)
}

// keyOverlap is how long a rotated key works beside the new one.
const keyOverlap = 24 * time.Hour

// RotateKey makes a new key for a service user; older ones end in a day.
func (p *Platform) RotateKey(ctx context.Context, a Actor, r UserRequest) (KeyReply, error) {
	var reply KeyReply
	a.givesOnce("the key", &reply.ID, "delete it and make another")
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, u, err := p.serviceUser(tx, a, r, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		if err := tx.ExpireKeys(u.ID, p.Now().Add(keyOverlap)); err != nil {
			return audit.Event{}, err
		}
		reply, err = p.newKey(tx, u.ID)
		e := p.event(a, audit.KeyRotate, k.team.Name, "", u.Name)
		e.Detail = map[string]string{"key": reply.ID}
		return e, err
	})
	return reply, err
}

// serviceUser finds a service user who is not deleted.
func (p *Platform) serviceUser(tx *store.Tx, a Actor, r UserRequest, action policy.Action) (asker, store.UserRecord, error) {
	k, u, err := p.everyServiceUser(tx, a, r, action)
	if err == nil && u.Status == sft.StatusDeleted {
		u, err = store.UserRecord{}, noSuch("service user", r.User)
	}
	return k, u, err
}

// everyServiceUser is serviceUser for those, too, who are deleted.
func (p *Platform) everyServiceUser(tx *store.Tx, a Actor, r UserRequest, action policy.Action) (asker, store.UserRecord, error) {
	k, err := p.as(tx, a, r.Team, action)
	if err != nil {
		return k, store.UserRecord{}, err
	}
	u, err := tx.User(k.team.ID, r.User)
	if err == nil && u.Type != sft.Service {
		err = store.ErrNotFound
	}
	return k, u, notFound(err, "service user", r.User)
}

// KeysRequest is GET /v1/teams/{team}/service_users/{user}/keys. The key of
// the list is the id.
type KeysRequest struct {
	Team string `path:"team" json:"-"`
	User string `path:"user" json:"-"`
	Paging
}

// ListKeys returns a service user's keys, without their secrets, the oldest
// first.
func (p *Platform) ListKeys(ctx context.Context, a Actor, r KeysRequest) (api.List[sft.ServiceKey], error) {
	var list api.List[sft.ServiceKey]
	err := p.DB.Read(ctx, func(tx *store.Tx) error {
		_, u, err := p.serviceUser(tx, a, UserRequest{r.Team, r.User}, policy.Administer)
		if err != nil {
			return err
		}
		list, err = pageOf(r.Paging, func(k store.KeyRecord) string { return k.ID },
			func(g store.Page) ([]store.KeyRecord, error) { return tx.KeysByID(u.ID, g) },
			every(func(k store.KeyRecord) sft.ServiceKey { return k.ServiceKey }))
		return err
	})
	return list, err
}

// KeyRequest names a key of a service user.
type KeyRequest struct {
	Team string `path:"team" json:"-"`
	User string `path:"user" json:"-"`
	Key  string `path:"key" json:"-"` // id of the key
}

// GetKey returns one key of a service user, without its secret.
func (p *Platform) GetKey(ctx context.Context, a Actor, r KeyRequest) (sft.ServiceKey, error) {
	var k store.KeyRecord
	err := p.DB.Read(ctx, func(tx *store.Tx) error {
		_, u, err := p.serviceUser(tx, a, UserRequest{r.Team, r.User}, policy.Administer)
		if err != nil {
			return err
		}
		if k, err = tx.Key(r.Key); err == nil && k.UserID != u.ID {
			k, err = store.KeyRecord{}, store.ErrNotFound
		}
		return notFound(err, "key", r.Key)
	})
	return k.ServiceKey, err
}

// DeleteKey ends a key at once.
func (p *Platform) DeleteKey(ctx context.Context, a Actor, r KeyRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, u, err := p.serviceUser(tx, a, UserRequest{r.Team, r.User}, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.KeyDelete, k.team.Name, "", u.Name)
		e.Detail = map[string]string{"key": r.Key}
		return e, notFound(tx.RemoveKey(u.ID, r.Key), "key", r.Key)
	})
}
