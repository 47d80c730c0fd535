package platform

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/policy"
	"sft/internal/store"
)

// redeem ends an approved sign-in.
func (p *Platform) redeem(tx *store.Tx, r api.EnrollClientRequest, keySHA256 string) (store.SignIn, error) {
	i, err := p.redeemable(tx, r, keySHA256)
	if err != nil {
		return i, err
	}
	return i, tx.EndSignIn(i.CodeHash)
}

// redeemable finds an approved sign-in. A code is good once, for the key and
// the redirect it was made for.
func (p *Platform) redeemable(tx *store.Tx, r api.EnrollClientRequest, keySHA256 string) (store.SignIn, error) {
	bad := &sft.Error{Code: sft.Denied, Msg: "the approval is not good, was used already, or is too old", Hint: "run the command again"}
	secret, kind := r.Code, "code"
	if r.DeviceCode != "" {
		secret, kind = r.DeviceCode, "device"
	}
	hash := tokenHash(secret)
	i, err := tx.SignIn(hash, p.Now())
	if errors.Is(err, store.ErrNotFound) {
		return i, bad
	}
	if err != nil {
		return i, err
	}
	if i.Kind != kind || i.KeySHA256 != keySHA256 {
		return i, bad
	}
	if kind == "code" {
		h := sha256.Sum256([]byte(r.CodeVerifier))
		challenge := base64.RawURLEncoding.EncodeToString(h[:])
		if subtle.ConstantTimeCompare([]byte(challenge), []byte(i.Challenge)) != 1 || r.RedirectURI != i.RedirectURI {
			return i, bad
		}
	}
	switch i.State {
	case "pending":
		return i, &sft.Error{Code: sft.Pending, Msg: "nobody has approved yet"}
	case "approved":
		return i, nil
	}
	return i, &sft.Error{Code: sft.Denied, Msg: "the request was refused in the browser", Hint: "run the command again if that was a mistake"}
}

// EnrollClient makes a client of an approved device.
func (p *Platform) EnrollClient(ctx context.Context, a Actor, r api.EnrollClientRequest) (api.EnrollClientReply, error) {
	var reply api.EnrollClientReply
	key, err := ca.PublicKey(r.DeviceKey)
	if err != nil {
		return reply, err
	}
	if err := checkDevice(r.Device); err != nil {
		return reply, err
	}
	h, err := ca.KeyHash(key)
	if err != nil {
		return reply, err
	}
	if !p.from(a, "redeem", time.Second, 60) {
		return reply, &sft.Error{Code: sft.TooMany, Msg: "too many tries from this address", Hint: "wait a minute, then try again"}
	}
	// Anybody may ask, and most who do only wait: look before locking.
	if err := p.DB.Read(ctx, func(tx *store.Tx) error {
		_, err := p.redeemable(tx, r, fmt.Sprintf("%x", h))
		return err
	}); err != nil {
		return reply, err
	}
	err = p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		i, err := p.redeem(tx, r, fmt.Sprintf("%x", h))
		if err != nil {
			return audit.Event{}, err
		}
		u, team, err := approver(tx, i)
		if err != nil {
			return audit.Event{}, err
		}
		if i.ClientID != "" {
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "this approval is for a client that is enrolled", Hint: "run \"sft login\""}
		}
		now := p.Now().UTC()
		c := store.ClientRecord{TeamID: team.ID, UserID: u.ID, DeviceKey: r.DeviceKey}
		c.ID, c.User, c.State, c.EnrolledAt = audit.NewID(), u.Name, sft.StateActive, now
		// To enrol anew is no way around an administrator's word.
		held, err := tx.ClientsByID(team.ID, u.ID, sft.StatePending, store.Page{Count: 1})
		if err != nil {
			return audit.Event{}, err
		}
		if len(held) > 0 {
			c.State = sft.StatePending
		}
		c.Hostname, c.OS, c.Version = r.Device.Hostname, r.Device.OS, r.Device.Version
		c.SignedInUntil = now.Add(time.Duration(team.ClientSession) * time.Second)
		if err := exists(tx.AddClient(c), "client with the device key", i.KeySHA256[:16]); err != nil {
			return audit.Event{}, err
		}
		reply = api.EnrollClientReply{ClientID: c.ID, Team: team.Name, User: u.Name, URL: p.URL, SignedInUntil: c.SignedInUntil, State: c.State}
		a.User, a.Name, a.Client = u.ID, u.Name, c.ID
		e := p.event(a, audit.ClientEnroll, team.Name, "", c.Hostname)
		e.Detail = map[string]string{"os": c.OS, "approved_from": i.Addr, "how": i.Kind, "state": string(c.State)}
		return e, nil
	})
	return reply, err
}

func approver(tx *store.Tx, i store.SignIn) (store.UserRecord, sft.Team, error) {
	u, err := tx.UserByID(i.UserID)
	if err != nil {
		return u, sft.Team{}, err
	}
	if u.Status != sft.StatusActive || u.Type != sft.Human {
		return u, sft.Team{}, &sft.Error{Code: sft.Denied, Msg: "user " + sft.Quote(u.Name) + " is not active", Hint: "ask an administrator of the team"}
	}
	t, err := tx.TeamByID(u.TeamID)
	return u, t, err
}

// errPending is what is said of a client that waits for an administrator.
func errPending(id string) error {
	return &sft.Error{Code: sft.Denied, Msg: "client " + sft.Quote(id) + " is pending: an administrator of the team has to approve it", Hint: "give an administrator this id"}
}

// client reads the record of the client behind a signed request again. One
// that is not ACTIVE asks for nothing.
func (p *Platform) client(n store.Notes, a Actor) (store.ClientRecord, error) {
	if a.Client == "" {
		return store.ClientRecord{}, &sft.Error{Code: sft.SignIn, Msg: "this is for enrolled clients only", Hint: "run \"sft enroll\""}
	}
	c, err := n.Client(a.Client)
	if errors.Is(err, store.ErrNotFound) {
		return c, errRevoked("client")
	}
	if err == nil {
		err = active(c)
	}
	return c, err
}

// active refuses a client that waits for an administrator, or was deleted.
func active(c store.ClientRecord) error {
	switch c.State {
	case sft.StateActive:
		return nil
	case sft.StatePending:
		return errPending(c.ID)
	}
	return errRevoked("client")
}

var errSignInEnded = &sft.Error{Code: sft.SignIn, Msg: "the sign-in has ended", Hint: "run \"sft login\""}

// signedIn returns the client behind a signed request, and refuses one whose
// sign-in has ended.
func (p *Platform) signedIn(n store.Notes, a Actor) (store.ClientRecord, error) {
	c, err := p.client(n, a)
	if err == nil {
		err = p.mayAct(c)
	}
	return c, err
}

// mayAct refuses a client that is not active, or whose sign-in has ended.
func (p *Platform) mayAct(c store.ClientRecord) error {
	if err := active(c); err != nil {
		return err
	}
	if !c.SignedInUntil.After(p.Now()) {
		return errSignInEnded
	}
	return nil
}

// seenEvery is how exactly it is kept when a client was last seen: a write for
// each request would make all of them wait for the disk.
const seenEvery = time.Minute

// seen reports whether it is noted well enough that the client is seen now.
func (p *Platform) seen(c store.ClientRecord) bool {
	if c.LastSeen == nil {
		return false
	}
	ago := p.Now().Sub(*c.LastSeen)
	return ago >= 0 && ago < seenEvery
}

// LoginClient renews the sign-in of an enrolled client by a new approval.
func (p *Platform) LoginClient(ctx context.Context, a Actor, r api.EnrollClientRequest) (api.EnrollClientReply, error) {
	var reply api.EnrollClientReply
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		c, err := p.client(tx.Notes, a)
		if err != nil {
			return audit.Event{}, err
		}
		i, err := p.redeem(tx, r, c.Fingerprint)
		if err != nil {
			return audit.Event{}, err
		}
		u, team, err := approver(tx, i)
		if err != nil {
			return audit.Event{}, err
		}
		if i.ClientID != c.ID || u.ID != c.UserID {
			return audit.Event{}, &sft.Error{Code: sft.Denied, Msg: "the approval is for another client", Hint: "run \"sft login\" again"}
		}
		until := p.Now().UTC().Add(time.Duration(team.ClientSession) * time.Second)
		reply = api.EnrollClientReply{ClientID: c.ID, Team: team.Name, User: u.Name, URL: p.URL, SignedInUntil: until}
		return p.event(a, audit.AuthTokenIssue, team.Name, "", "client"), tx.SignInClient(c.ID, until)
	})
	return reply, err
}

// LogoutClient ends a client's sign-in. Live sessions go on.
func (p *Platform) LogoutClient(ctx context.Context, a Actor, _ struct{}) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		c, err := p.client(tx.Notes, a)
		if err != nil {
			return audit.Event{}, err
		}
		team, err := tx.TeamByID(c.TeamID)
		if err != nil {
			return audit.Event{}, err
		}
		return p.event(a, audit.AuthTokenEnd, team.Name, "", "client"), tx.SignInClient(c.ID, p.Now())
	})
}

// ClientsRequest is GET /v1/teams/{team}/clients. The key of the list is the
// id.
type ClientsRequest struct {
	Team  string    `path:"team" json:"-"`
	User  string    `query:"username" json:"-"` // only those of this user
	State sft.State `query:"state" json:"-"`    // only those in this state; empty: all that are not deleted
	All   string    `query:"all" json:"-"`      // "true": of everybody
	Paging
}

// ClientRequest names a client.
type ClientRequest struct {
	Team string `path:"team" json:"-"`
	ID   string `path:"id" json:"-"`
}

// ListClients returns the asker's clients, or, with All or another User, those
// of the team: the oldest first. Deleted ones are left out, unless State asks
// for them.
func (p *Platform) ListClients(ctx context.Context, a Actor, r ClientsRequest) (api.List[sft.Client], error) {
	action := policy.OwnClient
	all, err := flag("all", r.All)
	if err != nil {
		return api.List[sft.Client]{}, err
	}
	if all || r.User != "" && sft.Fold(r.User) != sft.Fold(a.Name) {
		action = policy.Read
	}
	return read(ctx, p, a, r.Team, action, func(tx *store.Tx, k asker) (api.List[sft.Client], error) {
		if r.State != "" && r.State != sft.StateActive && r.State != sft.StatePending && r.State != sft.StateDeleted {
			return api.List[sft.Client]{}, &sft.Error{Code: sft.Invalid, Msg: "state " + sft.Quote(string(r.State)) + " is unknown", Hint: "use ACTIVE, PENDING or DELETED"}
		}
		of := k.user.ID
		switch {
		case r.User != "" && action == policy.Read:
			u, err := tx.User(k.team.ID, r.User)
			if err != nil {
				return api.List[sft.Client]{}, notFound(err, "user", r.User)
			}
			of = u.ID
		case r.User == "" && all:
			of = ""
		}
		return pageOf(r.Paging, func(c store.ClientRecord) string { return c.ID },
			func(g store.Page) ([]store.ClientRecord, error) { return tx.ClientsByID(k.team.ID, of, r.State, g) },
			every(func(c store.ClientRecord) sft.Client { return c.Client }))
	})
}

// clientIn finds a client that is not deleted: the asker's, or, where the
// action lets them, another's of the team.
func clientIn(tx *store.Tx, k asker, id string, action policy.Action) (store.ClientRecord, error) {
	c, err := tx.Client(id)
	if err == nil && (c.TeamID != k.team.ID || c.State == sft.StateDeleted || c.UserID != k.user.ID && !policy.May(k.user.Status, k.roles, action)) {
		c, err = store.ClientRecord{}, store.ErrNotFound
	}
	return c, notFound(err, "client", id)
}

// GetClient returns one client: the asker's, or, for those who may read the
// team, anybody's.
func (p *Platform) GetClient(ctx context.Context, a Actor, r ClientRequest) (sft.Client, error) {
	return read(ctx, p, a, r.Team, policy.OwnClient, func(tx *store.Tx, k asker) (sft.Client, error) {
		c, err := clientIn(tx, k, r.ID, policy.Read)
		return c.Client, err
	})
}

// UpdateClientRequest is PUT /v1/teams/{team}/clients/{id}; what is left out
// stays.
type UpdateClientRequest struct {
	Team  string    `path:"team" json:"-"`
	ID    string    `path:"id" json:"-"`
	State sft.State `json:"state,omitempty"`     // ACTIVE, PENDING; or DELETED, alone
	User  string    `json:"user_name,omitempty"` // a person who is active: the client is theirs from then on
}

// UpdateClient gives a client to another person, holds it back as PENDING,
// approves it as ACTIVE again, or deletes it. Who gets one gets nothing of the
// person before: what that client has opened ends, and so does its sign-in, so
// that nothing can be done with it until its new person has signed in on it in
// their own browser. And nobody's access goes to the machine of somebody else
// on an administrator's word alone.
//
// One that is PENDING opens nothing, and what it has opened ends, and so does
// its sign-in. Its person can neither approve nor delete it, and what they enrol
// meanwhile is PENDING, too.
func (p *Platform) UpdateClient(ctx context.Context, a Actor, r UpdateClientRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		c, err := clientIn(tx, k, r.ID, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		switch {
		case r.State == "" && r.User == "":
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "the request changes nothing of the client", Hint: "give user_name or state"}
		case r.State == sft.StateDeleted && r.User == "":
			return p.removeClient(tx, a, k, c)
		case r.State != "" && r.State != sft.StateActive && r.State != sft.StatePending:
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "the client cannot become " + sft.Quote(string(r.State)), Hint: "use ACTIVE, PENDING, or DELETED without a user_name"}
		case r.State == sft.StatePending && c.ID == a.Client:
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "the client would shut itself out", Hint: "ask by another one, or by a service user's key"}
		case r.State == sft.StatePending && c.MadeBy != "":
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "the client was made by a server for its service user, which would ask for another one", Hint: "remove the binding of the account"}
		}
		moves := r.User != "" && sft.Fold(r.User) != sft.Fold(c.User)
		if r.State != "" && r.State != c.State {
			e := p.event(a, audit.ClientUpdate, k.team.Name, "", c.Hostname)
			e.Detail = map[string]string{"client": c.ID, "user": c.User, "state": string(r.State), "was": string(c.State)}
			if r.State == sft.StatePending {
				err = errors.Join(tx.HoldClient(c.ID, p.Now()), tx.ReviseTeam(k.team.ID))
			} else {
				err = tx.ApproveClient(c.ID)
			}
			if err != nil || !moves {
				return e, err
			}
			tx.Also(e)
		}
		if !moves {
			return audit.Event{}, errSame
		}
		e := p.event(a, audit.ClientAssign, k.team.Name, "", c.Hostname)
		e.Detail = map[string]string{"client": c.ID, "user": c.User, "was": c.User}
		u, err := tx.User(k.team.ID, r.User)
		if err == nil && (u.Type != sft.Human || u.Status != sft.StatusActive) {
			err = store.ErrNotFound
		}
		if err != nil {
			return audit.Event{}, notFound(err, "person who is active", r.User)
		}
		if c.MadeBy != "" {
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "the client was made by a server for its service user, and is no person's", Hint: "delete it, or bind the account to another service user"}
		}
		e.Detail["user"] = u.Name
		return e, errors.Join(tx.MoveClient(c.ID, u.ID, p.Now()), tx.ReviseTeam(k.team.ID))
	})
}

// DeleteClient deletes a client: its owner's, or, for administrators,
// anybody's. Its sessions end within seconds. One that is PENDING is an
// administrator's to delete.
func (p *Platform) DeleteClient(ctx context.Context, a Actor, r ClientRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.OwnClient)
		if err != nil {
			return audit.Event{}, err
		}
		c, err := clientIn(tx, k, r.ID, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		switch {
		case a.Client == "":
		case a.Client == c.ID: // to leave needs no sign-in, to throw out does
			_, err = p.client(tx.Notes, a)
		default:
			_, err = p.signedIn(tx.Notes, a)
		}
		if err == nil && c.State == sft.StatePending && !policy.May(k.user.Status, k.roles, policy.Administer) {
			err = errPending(c.ID)
		}
		if err != nil {
			return audit.Event{}, err
		}
		return p.removeClient(tx, a, k, c)
	})
}

func (p *Platform) removeClient(tx *store.Tx, a Actor, k asker, c store.ClientRecord) (audit.Event, error) {
	e := p.event(a, audit.ClientRemove, k.team.Name, "", c.Hostname)
	e.Detail = map[string]string{"client": c.ID, "user": c.User}
	return e, errors.Join(tx.RemoveClient(c.ID, p.Now()), tx.ReviseTeam(k.team.ID))
}
