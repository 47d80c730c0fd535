package platform

import (
	"context"
	"errors"
	"slices"

	"sft"
	"sft/internal/audit"
	"sft/internal/store"
)

// Automation is the group of the service users that init and NewServiceKey
// make, with the role access_admin, so that the owners are people.
const Automation = "automation"

// NewServiceKey makes a new key for a service user of the first team; those
// before it end in a day. With create a service user that is not there is made,
// in the group Automation, and may do what an administrator may.
//
// No Actor asks, as with NewFirstUse: the API is closed to whoever has lost the
// last key, or never had one.
func (p *Platform) NewServiceKey(ctx context.Context, user string, create bool) (KeyReply, error) {
	var reply KeyReply
	if _, err := p.tokenKey(ctx); err != nil {
		return reply, err
	}
	by := audit.Actor{Kind: "platform", Name: "service-key"}
	err := p.change(ctx, Actor{}, func(tx *store.Tx) (audit.Event, error) {
		name, err := tx.Setting("first_team")
		if err != nil {
			return audit.Event{}, err
		}
		t, err := tx.Team(name)
		if err != nil {
			return audit.Event{}, notFound(err, "team", name)
		}
		u, err := tx.User(t.ID, user)
		made := errors.Is(err, store.ErrNotFound) && create
		if made {
			u, err = p.newAutomation(tx, t, user, by)
		}
		switch {
		case errors.Is(err, store.ErrNotFound):
			return audit.Event{}, &sft.Error{Code: sft.NotFound, Msg: "there is no service user " + sft.Quote(user), Hint: "check the name, or have it made by --create"}
		case err != nil:
			return audit.Event{}, err
		case u.Type != sft.Service:
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: sft.Quote(u.Name) + " is a person, who signs in in a browser", Hint: "name a service user, or use \"sft-platform first-use\""}
		case u.Status != sft.StatusActive:
			return audit.Event{}, &sft.Error{Code: sft.Denied, Msg: "service user " + sft.Quote(u.Name) + " is not active", Hint: "name another, or one that is not there yet with --create"}
		}
		if err := tx.ExpireKeys(u.ID, p.Now().Add(keyOverlap)); err != nil {
			return audit.Event{}, err
		}
		reply, err = p.newKey(tx, u.ID)
		e := p.event(Actor{}, audit.KeyRotate, t.Name, "", u.Name)
		e.Actor, e.Detail = by, map[string]string{"key": reply.ID}
		return e, err
	})
	return reply, err
}

// newAutomation makes a service user who is an administrator.
func (p *Platform) newAutomation(tx *store.Tx, t sft.Team, name string, by audit.Actor) (store.UserRecord, error) {
	u, err := p.newUser(tx, t.ID, name, "", "", sft.Service)
	if err != nil {
		return u, err
	}
	tell := func(kind audit.Kind, target string, detail map[string]string) {
		e := p.event(Actor{}, kind, t.Name, "", target)
		e.Actor, e.Detail = by, detail
		tx.Also(e)
	}
	tell(audit.UserCreate, u.Name, nil)
	g, err := tx.Group(t.ID, Automation)
	if errors.Is(err, store.ErrNotFound) {
		if g, err = p.newGroup(tx, t.ID, Automation, []sft.Role{sft.AccessAdmin}); err == nil {
			tell(audit.GroupCreate, g.Name, rolesOf(g))
		}
	}
	if err != nil {
		return u, err
	}
	if !slices.Contains(g.Roles, sft.AccessAdmin) {
		return u, &sft.Error{Code: sft.Denied, Msg: "the group " + sft.Quote(g.Name) + " has not the role access_admin", Hint: "name a service user that is there, or have an administrator give the group that role"}
	}
	tell(audit.MemberAdd, u.Name, map[string]string{"group": g.Name})
	_, err = tx.AddMember(g.ID, u.ID)
	return u, err
}
