package platform

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/policy"
	"sft/internal/store"
)

// An Attribute is what a user or a group is called, or numbered by, on hosts.
// No two of a team ever have the same: there are no conflicts to list.
type Attribute struct {
	ID    string `json:"id"`             // the name
	Name  string `json:"attribute_name"` // unix_user_name, unix_uid or unix_gid
	Value string `json:"attribute_value"`
}

// The attributes. A user has the first three, a group the last.
const (
	unixUserName = "unix_user_name"
	unixUID      = "unix_uid"
	unixGID      = "unix_gid"
)

func attributes(pairs ...string) (list []Attribute) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, Attribute{pairs[i], pairs[i], pairs[i+1]})
	}
	return list
}

func userAttributes(u store.UserRecord) []Attribute {
	return attributes(unixGID, strconv.Itoa(u.GID), unixUID, strconv.Itoa(u.UID), unixUserName, u.Login)
}

// groupAttributes are those of a group: none, as long as no project makes it a
// group on servers and nobody has set one.
func groupAttributes(g store.GroupRecord) []Attribute {
	if g.GID == 0 {
		return nil
	}
	return attributes(unixGID, strconv.Itoa(g.GID))
}

// AttributesRequest is GET /v1/teams/{team}/users/{user}/attributes, and the
// same of a group. The key of the list is the attribute's name.
type AttributesRequest struct {
	Team  string `path:"team" json:"-"`
	User  string `path:"user" json:"-"`
	Group string `path:"group" json:"-"`
	Paging
}

// AttributeRequest names an attribute; the body of PUT is its value.
type AttributeRequest struct {
	Team  string `path:"team" json:"-"`
	User  string `path:"user" json:"-"`
	Group string `path:"group" json:"-"`
	Name  string `path:"attribute" json:"-"` // unix_user_name, unix_uid or unix_gid; of a group unix_gid alone
	Value string `json:"attribute_value"`
}

// attributesOf reads those of the user or group of a request.
func attributesOf(tx *store.Tx, k asker, user, group string) ([]Attribute, error) {
	if group != "" {
		g, err := tx.Group(k.team.ID, group)
		return groupAttributes(g), notFound(err, "group", group)
	}
	u, err := userIn(tx, k, user)
	return userAttributes(u), err
}

// userIn finds a user of the team who is not deleted.
func userIn(tx *store.Tx, k asker, name string) (store.UserRecord, error) {
	u, err := tx.User(k.team.ID, name)
	if err == nil && u.Status == sft.StatusDeleted {
		err = store.ErrNotFound
	}
	return u, notFound(err, "user", name)
}

// ListAttributes returns what a user or group is called on hosts.
func (p *Platform) ListAttributes(ctx context.Context, a Actor, r AttributesRequest) (api.List[Attribute], error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (api.List[Attribute], error) {
		list, err := attributesOf(tx, k, r.User, r.Group)
		if err != nil {
			return api.List[Attribute]{}, err
		}
		return pageIn(r.Paging, list, func(v Attribute) string { return v.Name })
	})
}

// GetAttribute returns one attribute of a user or group.
func (p *Platform) GetAttribute(ctx context.Context, a Actor, r AttributeRequest) (Attribute, error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (Attribute, error) {
		list, err := attributesOf(tx, k, r.User, r.Group)
		if err != nil {
			return Attribute{}, err
		}
		if i := slices.IndexFunc(list, func(v Attribute) bool { return v.Name == r.Name }); i >= 0 {
			return list[i], nil
		}
		return Attribute{}, noSuch("attribute", r.Name)
	})
}

// SetUserAttribute gives a user another login, uid or gid on hosts.
//
// Another login is another account, with ids of its own: on each host the one
// before is shut like that of somebody who has lost access, with its files,
// and a new one is made. A user who gets back a login of theirs gets its ids
// back, too. Another uid or gid under the same login is for before there are
// accounts: a host that has one keeps it shut and reports the conflict until
// its administrator has decided about the files.
func (p *Platform) SetUserAttribute(ctx context.Context, a Actor, r AttributeRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		u, err := userIn(tx, k, r.User)
		if err != nil {
			return audit.Event{}, err
		}
		login, uid, gid := u.Login, u.UID, u.GID
		switch r.Name {
		case unixUserName:
			if login = r.Value; login == u.Login {
				break
			}
			if err := mayBeLogin(tx, u, login); err != nil {
				return audit.Event{}, err
			}
			uid, gid, err = tx.Former(u.ID, login)
			if errors.Is(err, store.ErrNotFound) {
				uid, gid, err = tx.NextIDs(u.TeamID)
			}
		case unixUID:
			uid, err = number(r.Name, r.Value, func(n int) (bool, error) { return tx.UIDTaken(u.TeamID, n, u.ID) })
		case unixGID:
			gid, err = number(r.Name, r.Value, func(n int) (bool, error) { return tx.GIDTaken(u.TeamID, n, u.ID) })
		default:
			err = noSuch("attribute", r.Name)
		}
		if err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.UserAttribute, k.team.Name, "", u.Name)
		e.Detail = map[string]string{"attribute": r.Name,
			"now": fmt.Sprintf("login %s, uid %d, gid %d", login, uid, gid), "was": fmt.Sprintf("login %s, uid %d, gid %d", u.Login, u.UID, u.GID)}
		if login == u.Login && uid == u.UID && gid == u.GID {
			return e, nil
		}
		return e, errors.Join(tx.Rename(u, login, uid, gid), tx.ReviseTeam(k.team.ID))
	})
}

// maxLogin is what Windows takes, too.
const maxLogin = 20

// mayBeLogin refuses a login that is not for this user.
func mayBeLogin(tx *store.Tx, u store.UserRecord, login string) error {
	if err := sft.CheckLogin(login); err != nil {
		return err
	}
	// An account has a group of its name, and "sft_" is what groups begin with.
	if len(login) > maxLogin || slices.Contains(reservedLogins, login) || strings.HasPrefix(login, "sft_") || sft.CheckServerGroup(login) != nil {
		return &sft.Error{Code: sft.Invalid, Msg: "login name " + sft.Quote(login) + " cannot be used", Hint: fmt.Sprintf("use up to %d characters, and no name that systems have", maxLogin)}
	}
	taken, err := tx.LoginTaken(u.TeamID, login, u.ID)
	if err == nil && !taken {
		taken, err = tx.ServerGroupTaken(u.TeamID, login)
	}
	if err == nil && taken {
		err = &sft.Error{Code: sft.Exists, Msg: "login name " + sft.Quote(login) + " is, or was, somebody else's or a group's", Hint: "choose another"}
	}
	return err
}

// The ids that people and groups may have on hosts: those below belong to
// systems.
const (
	minID = 1000
	maxID = 1<<31 - 2
)

// number reads an id that nobody else may have, or have had.
func number(name, v string, taken func(int) (bool, error)) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || strconv.Itoa(n) != v || n < minID || n > maxID || n == 65534 || n == 65535 {
		return 0, &sft.Error{Code: sft.Invalid, Msg: name + " " + sft.Quote(v) + " cannot be used", Hint: fmt.Sprintf("use %d to %d, without 65534 and 65535", minID, maxID)}
	}
	if was, err := taken(n); err != nil {
		return 0, err
	} else if was {
		return 0, &sft.Error{Code: sft.Exists, Msg: fmt.Sprintf("%s %d is, or was, somebody else's or a group's", name, n), Hint: "choose another"}
	}
	return n, nil
}

// SetGroupAttribute gives a group another gid on hosts. A host that has the
// group with the gid before reports it.
func (p *Platform) SetGroupAttribute(ctx context.Context, a Actor, r AttributeRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, g, err := p.group(tx, a, GroupRequest{Team: r.Team, Group: r.Group})
		if err != nil {
			return audit.Event{}, err
		}
		if r.Name != unixGID {
			return audit.Event{}, noSuch("attribute", r.Name)
		}
		gid, err := number(r.Name, r.Value, func(n int) (bool, error) { return tx.GIDTaken(k.team.ID, n, g.ID) })
		if err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.GroupAttribute, k.team.Name, "", g.Name)
		e.Detail = map[string]string{"attribute": r.Name, "now": fmt.Sprintf("gid %d", gid), "was": fmt.Sprintf("gid %d", g.GID)}
		return e, errors.Join(tx.SetGID(g.ID, gid), tx.ReviseGroup(g.ID))
	})
}
