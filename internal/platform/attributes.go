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
// No two of a team ever have the same; it conflicts with what is on a host
// already and sftd did not make, as far as that host's agent has said so last.
type Attribute struct {
	ID          string `json:"id"`             // the name
	Name        string `json:"attribute_name"` // unix_user_name, unix_uid, unix_gid, windows_user_name or unix_group_name
	Value       string `json:"attribute_value"`
	Conflicting bool   `json:"conflicting"` // a server reports that it cannot have it
	// Conflicts are the first hundred of the ConflictCount servers that do, by
	// id.
	Conflicts     []AttributeConflict `json:"conflicts,omitempty"`
	ConflictCount int64               `json:"conflict_count,omitempty"`
}

// An AttributeConflict is a server that cannot have an attribute.
type AttributeConflict struct {
	Server   string `json:"server"` // its id
	Hostname string `json:"hostname"`
	Project  string `json:"project_name"`
	Reason   string `json:"reason"` // what is in the way there, in the words of its agent, for people
}

// The attributes. A user has the first four, a group the last two and a gid.
const (
	unixUserName    = "unix_user_name"
	unixUID         = "unix_uid"
	unixGID         = "unix_gid"
	windowsUserName = "windows_user_name"
	unixGroupName   = "unix_group_name"
)

func attributes(pairs ...string) (list []Attribute) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, Attribute{ID: pairs[i], Name: pairs[i], Value: pairs[i+1]})
	}
	return list
}

func userAttributes(u store.UserRecord) []Attribute {
	return attributes(unixGID, strconv.Itoa(u.GID), unixUID, strconv.Itoa(u.UID), unixUserName, u.Login, windowsUserName, u.WindowsLogin)
}

// groupAttributes are those of a group: none, as long as no project makes it a
// group on servers and nobody has set one.
func groupAttributes(g store.GroupRecord) (list []Attribute) {
	if g.GID != 0 {
		list = attributes(unixGID, strconv.Itoa(g.GID))
	}
	if g.GID != 0 || g.ServerGroup != "" {
		list = append(list, attributes(unixGroupName, serverGroupOf(g))...)
	}
	return list
}

// AttributesRequest is GET /v1/teams/{team}/users/{user}/attributes, and the
// same of a group. The key of the list is the attribute's name.
type AttributesRequest struct {
	Team  string `path:"team" json:"-"`
	User  string `path:"user" json:"-"`
	Group string `path:"group" json:"-"`
	// Conflicting, if "true", leaves those that no server reports.
	Conflicting string `query:"conflicting" json:"-"`
	Paging
}

// AttributeRequest names an attribute; the body of PUT is its value.
type AttributeRequest struct {
	Team  string `path:"team" json:"-"`
	User  string `path:"user" json:"-"`
	Group string `path:"group" json:"-"`
	Name  string `path:"attribute" json:"-"` // unix_user_name, unix_uid, unix_gid or windows_user_name; of a group unix_group_name or unix_gid
	Value string `json:"attribute_value"`
}

// attributesOf reads those of the user or group of a request.
func attributesOf(tx *store.Tx, k asker, user, group string) ([]Attribute, error) {
	if group != "" {
		g, err := tx.Group(k.team.ID, group)
		if err != nil {
			return nil, notFound(err, "group", group)
		}
		return reported(tx, g.ID, groupAttributes(g))
	}
	u, err := userIn(tx, k, user)
	if err != nil {
		return nil, err
	}
	return reported(tx, u.ID, userAttributes(u))
}

// maxConflicts is how many of the servers that cannot have an attribute are
// named.
const maxConflicts = 100

// reported adds to the attributes of a user or group which servers cannot have
// them. What they said of another value is about what was before.
func reported(tx *store.Tx, subject string, list []Attribute) ([]Attribute, error) {
	for i, v := range list {
		claims, count, err := tx.Conflicting(subject, v.Name, v.Value, maxConflicts)
		if err != nil {
			return nil, err
		}
		list[i].Conflicting, list[i].ConflictCount = count > 0, count
		for _, c := range claims {
			list[i].Conflicts = append(list[i].Conflicts, AttributeConflict{c.ServerID, c.Server, c.Project, c.Reason})
		}
	}
	return list, nil
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
		conflicting, err := flag("conflicting", r.Conflicting)
		if err != nil {
			return api.List[Attribute]{}, err
		}
		if conflicting {
			list = slices.DeleteFunc(list, func(v Attribute) bool { return !v.Conflicting })
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
// Another login is another account, with ids of its own: on each host of that
// system the one before is shut like that of somebody who has lost access, with
// its files, and a new one is made. A user who gets back a login of theirs gets
// its ids back, too. As long as the two logins are the same, windows_user_name
// goes where unix_user_name goes. Another uid or gid under the same login is for
// before there are accounts: a host that has one keeps it shut and reports the
// conflict until its administrator has decided about the files.
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
		now := u
		switch r.Name {
		case unixUserName:
			if now.Login = r.Value; now.Login != u.Login {
				if err := mayBeLogin(tx, u, now.Login); err != nil {
					return audit.Event{}, err
				}
				now.UID, now.GID, err = idsOf(tx, u, now.Login)
			}
		case windowsUserName:
			if now.WindowsLogin = r.Value; now.WindowsLogin != u.WindowsLogin {
				if err := mayBeWindowsLogin(tx, u, now.WindowsLogin); err != nil {
					return audit.Event{}, err
				}
				now.WindowsUID, now.WindowsGID, err = idsOf(tx, u, now.WindowsLogin)
			}
		case unixUID:
			now.UID, err = number(r.Name, r.Value, func(n int) (bool, error) { return tx.UIDTaken(u.TeamID, n, u.ID) })
		case unixGID:
			now.GID, err = number(r.Name, r.Value, func(n int) (bool, error) { return tx.GIDTaken(u.TeamID, n, u.ID) })
		default:
			err = noSuch("attribute", r.Name)
		}
		if err != nil {
			return audit.Event{}, err
		}
		if r.Name != windowsUserName && u.WindowsLogin == u.Login {
			now.WindowsLogin, now.WindowsUID, now.WindowsGID = now.Login, now.UID, now.GID
		}
		if err := differ(accountsOf(u), accountsOf(now)); err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.UserAttribute, k.team.Name, "", u.Name)
		e.Detail = map[string]string{"attribute": r.Name, "now": accountsOf(now), "was": accountsOf(u)}
		return e, errors.Join(tx.SetAccounts(u, now), reviseFor(tx, u, now))
	})
}

// accountsOf tells a user's accounts on hosts.
func accountsOf(u store.UserRecord) string {
	s := fmt.Sprintf("login %s, uid %d, gid %d", u.Login, u.UID, u.GID)
	if u.WindowsLogin != u.Login {
		s += fmt.Sprintf("; on Windows login %s, uid %d, gid %d", u.WindowsLogin, u.WindowsUID, u.WindowsGID)
	}
	return s
}

// reviseFor lets those agents hear of a user's other account that have it to
// make: those of one system, or all.
func reviseFor(tx *store.Tx, was, now store.UserRecord) error {
	differs := func(system string) bool {
		l, u, g := was.AccountOn(system)
		login, uid, gid := now.AccountOn(system)
		return l != login || u != uid || g != gid
	}
	if differs(sft.Linux) && differs(sft.Windows) {
		return tx.ReviseTeam(was.TeamID)
	}
	for _, system := range []string{sft.Linux, sft.Windows} {
		if differs(system) {
			return tx.ReviseSystem(was.TeamID, system)
		}
	}
	return nil
}

// idsOf returns the ids of a user's account of that name: those that it has on
// the other system, or had before, or new ones.
func idsOf(tx *store.Tx, u store.UserRecord, login string) (uid, gid int, err error) {
	for _, system := range []string{sft.Linux, sft.Windows} {
		if has, uid, gid := u.AccountOn(system); has == login {
			return uid, gid, nil
		}
	}
	uid, gid, err = tx.Former(u.ID, login)
	if errors.Is(err, store.ErrNotFound) {
		return tx.NextIDs(u.TeamID)
	}
	return uid, gid, err
}

// maxWindowsLogin is how long a login may be on Windows.
const maxWindowsLogin = 20

// mayBeLogin refuses a login that is not for this user.
func mayBeLogin(tx *store.Tx, u store.UserRecord, login string) error {
	if err := sft.CheckLogin(login); err != nil {
		return err
	}
	// An account has a group of its name, and "sft_" is what groups begin with.
	if slices.Contains(reservedLogins, login) || strings.HasPrefix(login, "sft_") || sft.CheckServerGroup(login) != nil {
		return &sft.Error{Code: sft.Invalid, Msg: "login name " + sft.Quote(login) + " is one that systems or sftd keep for themselves", Hint: "choose another"}
	}
	if u.WindowsLogin == u.Login { // and so it will be
		if len(login) > maxWindowsLogin {
			return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("login name %s has %d characters, and would be the one on Windows, too", sft.Quote(login), len(login)),
				Hint: fmt.Sprintf("use up to %d, or give the person another windows_user_name first", maxWindowsLogin)}
		}
		return mayBeWindowsLogin(tx, u, login)
	}
	return free(tx, u, login)
}

// mayBeWindowsLogin is mayBeLogin for Windows.
func mayBeWindowsLogin(tx *store.Tx, u store.UserRecord, login string) error {
	if err := sft.CheckWindowsLogin(login); err != nil {
		return err
	}
	return free(tx, u, login)
}

// free refuses a login that is, or was, another's on whichever system: a name
// in a log means one person. What is left of it on hosts is that person's, and
// so it can become theirs on the other system.
func free(tx *store.Tx, u store.UserRecord, login string) error {
	taken, err := tx.LoginTaken(u.TeamID, login, u.ID)
	if err == nil && !taken {
		taken, err = tx.ServerGroupTaken(u.TeamID, login, "")
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

// SetGroupAttribute gives a group another name or gid on hosts. Another name
// takes the place of the one before in each project that has not given another
// by itself. A host that has the group with the gid before reports it.
func (p *Platform) SetGroupAttribute(ctx context.Context, a Actor, r AttributeRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, g, err := p.group(tx, a, GroupRequest{Team: r.Team, Group: r.Group})
		if err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.GroupAttribute, k.team.Name, "", g.Name)
		switch r.Name {
		case unixGroupName:
			was := serverGroupOf(g)
			e.Detail = map[string]string{"attribute": r.Name, "now": "name " + r.Value, "was": "name " + was}
			if err := differ(was, r.Value); err != nil {
				return audit.Event{}, err
			}
			if err := mayBeServerGroup(tx, g, r.Value); err != nil {
				return audit.Event{}, err
			}
			stored := r.Value
			if stored == serverGroupFor(g.Name) {
				stored = ""
			}
			return e, errors.Join(tx.SetServerGroup(g.ID, stored, was, r.Value), tx.ReviseGroup(g.ID))
		case unixGID:
			gid, err := number(r.Name, r.Value, func(n int) (bool, error) { return tx.GIDTaken(k.team.ID, n, g.ID) })
			if err == nil {
				err = differ(g.GID, gid)
			}
			if err != nil {
				return audit.Event{}, err
			}
			e.Detail = map[string]string{"attribute": r.Name, "now": fmt.Sprintf("gid %d", gid), "was": fmt.Sprintf("gid %d", g.GID)}
			return e, errors.Join(tx.SetGID(g.ID, gid), tx.ReviseGroup(g.ID))
		}
		return audit.Event{}, noSuch("attribute", r.Name)
	})
}

// mayBeServerGroup refuses a name on hosts that is not for this group.
func mayBeServerGroup(tx *store.Tx, g store.GroupRecord, name string) error {
	if err := sft.CheckServerGroup(name); err != nil {
		return err
	}
	taken, err := tx.LoginTaken(g.TeamID, name, "")
	if err == nil && !taken {
		taken, err = tx.ServerGroupTaken(g.TeamID, name, g.ID)
	}
	if err == nil && taken {
		err = &sft.Error{Code: sft.Exists, Msg: "the name " + sft.Quote(name) + " is another group's on servers, or is, or was, a user's login", Hint: "choose another"}
	}
	return err
}
