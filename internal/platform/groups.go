package platform

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/policy"
	"sft/internal/store"
)

// GroupRequest names a group; the body of POST and PUT is the group.
type GroupRequest struct {
	Team  string     `path:"team" json:"-"`
	Group string     `path:"group" json:"-"`
	Name  string     `json:"name,omitempty"`  // POST: what it is called from then on; PUT: not used
	Roles []sft.Role `json:"roles,omitempty"` // all that its members may do in the team. PUT: [] takes them all; not left out where there are some
}

// checkRoles returns the roles, each once.
func checkRoles(roles []sft.Role) ([]sft.Role, error) {
	list := []sft.Role{}
	for _, r := range roles {
		if r != sft.AccessAdmin && r != sft.AccessUser && r != sft.ReportingUser && r != sft.Preauthorizer && r != sft.ServerAdmin {
			return nil, &sft.Error{Code: sft.Invalid, Msg: "role " + sft.Quote(string(r)) + " is unknown", Hint: "use access_admin, access_user, reporting_user, preauthorization or server_admin"}
		}
		if !slices.Contains(list, r) {
			list = append(list, r)
		}
	}
	return list, nil
}

func (p *Platform) newGroup(tx *store.Tx, teamID, name string, roles []sft.Role) (store.GroupRecord, error) {
	g := store.GroupRecord{TeamID: teamID}
	if err := sft.CheckName("group", name); err != nil {
		return g, err
	}
	roles, err := checkRoles(roles)
	if err != nil {
		return g, err
	}
	g.ID, g.Name, g.Roles, g.CreatedAt = audit.NewID(), name, roles, p.Now().UTC()
	return g, exists(tx.AddGroup(g), "group", name)
}

// rolesOf is what the event of a group's making says of it.
func rolesOf(g store.GroupRecord) map[string]string {
	return map[string]string{"roles": fmt.Sprint(g.Roles)}
}

// CreateGroup makes a group.
func (p *Platform) CreateGroup(ctx context.Context, a Actor, r GroupRequest) (sft.Group, error) {
	var g store.GroupRecord
	a.gives(func() any { return g.Group })
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		g, err = p.newGroup(tx, k.team.ID, r.Name, r.Roles)
		e := p.event(a, audit.GroupCreate, k.team.Name, "", r.Name)
		e.Detail = rolesOf(g)
		return e, err
	})
	return g.Group, p.named(ctx, r.Team, err, func(tx *store.Tx, teamID string) (string, error) {
		there, err := tx.Group(teamID, r.Name)
		return there.ID, err
	})
}

// GroupsRequest is GET /v1/teams/{team}/groups. The key of the list is the
// group's name.
type GroupsRequest struct {
	Team     string `path:"team" json:"-"`
	Contains string `query:"contains" json:"-"` // in the name
	Paging
}

// ListGroups returns the groups of a team.
func (p *Platform) ListGroups(ctx context.Context, a Actor, r GroupsRequest) (api.List[sft.Group], error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (api.List[sft.Group], error) {
		return groupPage(r.Paging, func(g store.Page) ([]store.GroupRecord, error) { return tx.GroupsByName(k.team.ID, r.Contains, g) })
	})
}

// groupPage is a page of groups, by name.
func groupPage(g Paging, more func(store.Page) ([]store.GroupRecord, error)) (api.List[sft.Group], error) {
	g.Offset = sft.Fold(g.Offset)
	return pageOf(g, func(r store.GroupRecord) string { return sft.Fold(r.Name) }, more,
		every(func(r store.GroupRecord) sft.Group { return r.Group }))
}

// GetGroup returns one group.
func (p *Platform) GetGroup(ctx context.Context, a Actor, r GroupRequest) (sft.Group, error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (sft.Group, error) {
		g, err := tx.Group(k.team.ID, r.Group)
		return g.Group, notFound(err, "group", r.Group)
	})
}

// UpdateGroup sets a group's roles. The owners keep theirs.
func (p *Platform) UpdateGroup(ctx context.Context, a Actor, r GroupRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, g, err := p.group(tx, a, r)
		if err != nil {
			return audit.Event{}, err
		}
		if g.Name == sft.Owners {
			return audit.Event{}, builtIn(g.Name)
		}
		if r.Roles == nil && len(g.Roles) > 0 {
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("roles is left out, and the group %s has %v", sft.Quote(g.Name), g.Roles),
				Hint: "send all that it is to have, or [] for none"}
		}
		if r.Roles, err = checkRoles(r.Roles); err != nil {
			return audit.Event{}, err
		}
		if err := differ(g.Roles, r.Roles); err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.GroupUpdate, k.team.Name, "", g.Name)
		e.Detail = map[string]string{"roles": fmt.Sprint(r.Roles), "was": fmt.Sprint(g.Roles)}
		return e, tx.SetRoles(g.ID, r.Roles)
	})
}

func builtIn(name string) error {
	return &sft.Error{Code: sft.Denied, Msg: "the group " + sft.Quote(name) + " is built in", Hint: "make a group of your own"}
}

func (p *Platform) group(tx *store.Tx, a Actor, r GroupRequest) (asker, store.GroupRecord, error) {
	k, err := p.as(tx, a, r.Team, policy.Administer)
	if err != nil {
		return k, store.GroupRecord{}, err
	}
	g, err := tx.Group(k.team.ID, r.Group)
	return k, g, notFound(err, "group", r.Group)
}

// DeleteGroup deletes a group, and with it the access that it gave.
func (p *Platform) DeleteGroup(ctx context.Context, a Actor, r GroupRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, g, err := p.group(tx, a, r)
		if err != nil {
			return audit.Event{}, err
		}
		if g.Name == sft.Owners || g.Name == sft.Everyone {
			return audit.Event{}, builtIn(g.Name)
		}
		projects, err := tx.GroupSudoProjects(g.ID)
		if err != nil {
			return audit.Event{}, err
		}
		for _, pr := range projects {
			places, err := tx.ProjectGroups(pr.ID)
			if err != nil {
				return audit.Event{}, err
			}
			for _, was := range places {
				if was.GroupID == g.ID {
					p.tellSudo(tx, a, k, pr, g.Name, was.SudoEntitlements, nil)
				}
			}
		}
		if err := tx.ReviseGroup(g.ID); err != nil {
			return audit.Event{}, err
		}
		return p.event(a, audit.GroupDelete, k.team.Name, "", g.Name), tx.RemoveGroup(g.ID)
	})
}

// MemberRequest names a user in a group; POST has the user in the body.
type MemberRequest struct {
	Team  string `path:"team" json:"-"`
	Group string `path:"group" json:"-"`
	User  string `path:"user" json:"-"`
	Name  string `json:"name"` // POST: of the user
}

// MembersRequest is GET /v1/teams/{team}/groups/{group}/users, and
// …/users_not_in_group. The key of the list is the user's id.
type MembersRequest struct {
	Team           string `path:"team" json:"-"`
	Group          string `path:"group" json:"-"`
	IncludeService string `query:"include_service_users" json:"-"` // "true": among those who are not in the group
	UserFilter
	Paging
}

// ListMembers returns the users in a group, in the order in which they were
// made.
func (p *Platform) ListMembers(ctx context.Context, a Actor, r MembersRequest) (api.List[sft.User], error) {
	return p.members(ctx, a, r, func(g store.GroupRecord, f *store.UserFilter) (none bool, err error) {
		if g.Name != sft.Everyone { // of which all are
			f.MemberOf = g.ID
		}
		return false, nil
	})
}

// ListNotMembers returns the people who are not in a group, and service users
// if they are asked for. Of "everyone" there are none.
func (p *Platform) ListNotMembers(ctx context.Context, a Actor, r MembersRequest) (api.List[sft.User], error) {
	return p.members(ctx, a, r, func(g store.GroupRecord, f *store.UserFilter) (none bool, err error) {
		services, err := flag("include_service_users", r.IncludeService)
		if !services && f.Type == "" {
			f.Type = sft.Human
		}
		f.NotIn = g.ID
		return g.Name == sft.Everyone, err
	})
}

func (p *Platform) members(ctx context.Context, a Actor, r MembersRequest, which func(store.GroupRecord, *store.UserFilter) (none bool, err error)) (api.List[sft.User], error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (api.List[sft.User], error) {
		g, err := tx.Group(k.team.ID, r.Group)
		if err != nil {
			return api.List[sft.User]{}, notFound(err, "group", r.Group)
		}
		f, err := r.UserFilter.checked()
		none := false
		if err == nil {
			f.NotDeleted = true
			none, err = which(g, &f)
		}
		if err != nil {
			return api.List[sft.User]{}, err
		}
		return pageOf(r.Paging, func(u store.UserRecord) string { return u.ID },
			func(g store.Page) ([]store.UserRecord, error) {
				if none {
					return nil, nil
				}
				return tx.UsersByID(k.team.ID, f, g)
			},
			every(func(u store.UserRecord) sft.User { return u.User }))
	})
}

// UserGroupsRequest is GET /v1/teams/{team}/users/{user}/groups. The key of the
// list is the group's name.
type UserGroupsRequest struct {
	Team string `path:"team" json:"-"`
	User string `path:"user" json:"-"`
	Paging
}

// ListUserGroups returns the groups that a user is in, "everyone" among them.
func (p *Platform) ListUserGroups(ctx context.Context, a Actor, r UserGroupsRequest) (api.List[sft.Group], error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (api.List[sft.Group], error) {
		u, err := tx.User(k.team.ID, r.User)
		if err != nil {
			return api.List[sft.Group]{}, notFound(err, "user", r.User)
		}
		return groupPage(r.Paging, func(g store.Page) ([]store.GroupRecord, error) { return tx.GroupsOfByName(u, g) })
	})
}

// AddMember puts a user into a group. Doing it again does nothing.
func (p *Platform) AddMember(ctx context.Context, a Actor, r MemberRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, g, err := p.group(tx, a, GroupRequest{Team: r.Team, Group: r.Group})
		if err != nil {
			return audit.Event{}, err
		}
		if g.Name == sft.Everyone {
			return audit.Event{}, builtIn(g.Name)
		}
		u, err := tx.User(k.team.ID, r.Name)
		if err == nil && u.Status == sft.StatusDeleted {
			err = store.ErrNotFound
		}
		if err != nil {
			return audit.Event{}, notFound(err, "user", r.Name)
		}
		e := p.event(a, audit.MemberAdd, k.team.Name, "", u.Name)
		e.Detail = map[string]string{"group": g.Name}
		added, err := tx.AddMember(g.ID, u.ID)
		if !added && err == nil {
			err = errSame
		}
		if err != nil {
			return e, err
		}
		return e, tx.ReviseGroup(g.ID)
	})
}

// RemoveMember takes a user out of a group, and with it the access that it
// gave: the agents end what is open within seconds. The last owner stays.
func (p *Platform) RemoveMember(ctx context.Context, a Actor, r MemberRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, g, err := p.group(tx, a, GroupRequest{Team: r.Team, Group: r.Group})
		if err != nil {
			return audit.Event{}, err
		}
		u, err := tx.User(k.team.ID, r.User)
		if err != nil {
			return audit.Event{}, notFound(err, "user", r.User)
		}
		if err := tx.RemoveMember(g.ID, u.ID); err != nil {
			return audit.Event{}, notFound(err, "member", r.User)
		}
		if g.Name == sft.Owners {
			if err := keepsOwner(tx, g, u.Name); err != nil {
				return audit.Event{}, err
			}
		}
		e := p.event(a, audit.MemberRemove, k.team.Name, "", u.Name)
		e.Detail = map[string]string{"group": g.Name}
		return e, tx.ReviseGroup(g.ID)
	})
}

// serverGroup returns the local name of a group in a project, or "" if it is
// to have none. It has a gid from then on, the same in every project and for
// as long as the group is there.
func serverGroup(tx *store.Tx, pr store.ProjectRecord, g store.GroupRecord, r ProjectGroupRequest) (string, error) {
	name := r.ServerGroupName
	if !r.CreateServerGroup {
		if name != "" {
			return "", &sft.Error{Code: sft.Invalid, Msg: "the group has a server_group_name and is not to be a group on servers", Hint: "set create_server_group to true, or leave the name out"}
		}
		return "", nil
	}
	if name == "" {
		name = serverGroupOf(g)
	}
	if err := sft.CheckServerGroup(name); err != nil {
		return "", err
	}
	places, err := tx.ProjectGroups(pr.ID)
	if err != nil {
		return "", err
	}
	for _, other := range places {
		if other.GroupID != g.ID && other.ServerGroupName == name {
			return "", &sft.Error{Code: sft.Exists, Msg: "the group " + sft.Quote(other.Group) + " is " + sft.Quote(name) + " on the project's servers already", Hint: "give another server_group_name"}
		}
	}
	given, err := tx.ServerGroupGiven(pr.TeamID, name, g.ID)
	if err != nil {
		return "", err
	}
	if given {
		return "", &sft.Error{Code: sft.Exists, Msg: sft.Quote(name) + " is the unix_group_name of another group", Hint: "give another server_group_name"}
	}
	// Each account has a group of its own name.
	taken, err := tx.LoginTaken(pr.TeamID, name, "")
	if err != nil {
		return "", err
	}
	if taken {
		return "", &sft.Error{Code: sft.Exists, Msg: sft.Quote(name) + " is the login name of a user, and the name of that user's own group", Hint: "give another server_group_name"}
	}
	if g.GID == 0 {
		gid, err := tx.NextGID(pr.TeamID)
		if err != nil {
			return "", err
		}
		return name, tx.SetGID(g.ID, gid)
	}
	return name, nil
}

// serverGroupOf is what a group is called on servers where a project gives no
// other name.
func serverGroupOf(g store.GroupRecord) string {
	if g.ServerGroup != "" {
		return g.ServerGroup
	}
	return serverGroupFor(g.Name)
}

// serverGroupFor makes the name of a local group out of a group's name.
func serverGroupFor(group string) string {
	name := "sft_" + strings.ReplaceAll(sft.Fold(group), ".", "_")
	return name[:min(len(name), 32)]
}

// keepsOwner refuses a change after which nobody who can act owns the team;
// gone is who was taken away.
func keepsOwner(tx *store.Tx, owners store.GroupRecord, gone string) error {
	rest, err := tx.Members(owners.ID)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(rest, func(u store.UserRecord) bool { return u.Status == sft.StatusActive && u.Type == sft.Human }) {
		return &sft.Error{Code: sft.Denied, Msg: sft.Quote(gone) + " is the last owner of the team", Hint: "add another owner first"}
	}
	return nil
}
