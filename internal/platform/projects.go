package platform

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/policy"
	"sft/internal/store"
)

// ProjectRequest names a project; the body of POST and PUT is the project,
// and what is left out has its default or stays.
type ProjectRequest struct {
	Team                string `path:"team" json:"-"`
	Project             string `path:"project" json:"-"`
	Name                string `json:"name,omitempty"`               // POST: what it is called from then on; PUT: the same, or empty
	CreateServerUsers   *bool  `json:"create_server_users"`          // the agents make local accounts; true at first
	DeleteServerUsers   *bool  `json:"delete_server_users"`          // accounts that nobody may use any more are deleted with their files, and not only disabled
	MaxSession          *int64 `json:"max_session_seconds"`          // 60 to 604800; a session ends after that many seconds
	DisconnectedSession *int64 `json:"disconnected_session_seconds"` // 0 to 604800; the OS session is logged off that many seconds after the last stream
	UserOnDemand        *int64 `json:"user_on_demand_period"`        // 60 to 604800; accounts are made when their person comes, and removed that many seconds after; 0: they are always there
	NameReuseAfter      *int64 `json:"name_reuse_after"`             // 86400 to 31622400; another server gets a name that it claims when the one that holds it has been silent for that many seconds; 0: never
	// Channels is what may cross beside picture, keyboard and mouse; all may at
	// first.
	Channels struct {
		Clipboard    *bool `json:"clipboard"`     // cliprdr
		Devices      *bool `json:"devices"`       // drives, printers, ports, smart cards, USB, cameras
		Audio        *bool `json:"audio"`         // sound both ways
		OtherDynamic *bool `json:"other_dynamic"` // every other channel, dynamic or static
	} `json:"channels,omitzero"`
	RequirePreauth *bool              `json:"require_preauth_for_creds"`       // credentials take a preauthorization, too
	ClientOptions  map[string]*string `json:"client_config_options,omitempty"` // by name, as the project has them; "" is the default
}

// apply sets what the request names, within its limits.
func (r ProjectRequest) apply(pr *sft.Project) error {
	for _, s := range []struct{ from, to *bool }{
		{r.CreateServerUsers, &pr.CreateServerUsers},
		{r.DeleteServerUsers, &pr.DeleteServerUsers},
		{r.RequirePreauth, &pr.RequirePreauth},
		{r.Channels.Clipboard, &pr.Channels.Clipboard},
		{r.Channels.Devices, &pr.Channels.Devices},
		{r.Channels.Audio, &pr.Channels.Audio},
		{r.Channels.OtherDynamic, &pr.Channels.OtherDynamic},
	} {
		if s.from != nil {
			*s.to = *s.from
		}
	}
	for _, s := range []struct {
		name     string
		from     *int64
		to       *int64
		off      bool // 0 is allowed, below min
		min, max int64
	}{
		{"max_session_seconds", r.MaxSession, &pr.MaxSession, false, 60, 7 * 24 * 3600},
		{"disconnected_session_seconds", r.DisconnectedSession, &pr.DisconnectedSession, false, 0, 7 * 24 * 3600},
		{"user_on_demand_period", r.UserOnDemand, &pr.UserOnDemand, true, 60, 7 * 24 * 3600},
		{"name_reuse_after", r.NameReuseAfter, &pr.NameReuseAfter, true, 24 * 3600, 366 * 24 * 3600},
	} {
		if s.from == nil {
			continue
		}
		if (*s.from < s.min || *s.from > s.max) && !(s.off && *s.from == 0) {
			hint := fmt.Sprintf("use %d to %d seconds", s.min, s.max)
			if s.off {
				hint += ", or 0 to turn it off"
			}
			return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("%s is %d", s.name, *s.from), Hint: hint}
		}
		*s.to = *s.from
	}
	if pr.UserOnDemand > 0 && !pr.CreateServerUsers {
		return &sft.Error{Code: sft.Invalid, Msg: "accounts on demand are made by the agents, and the project does not let them make any",
			Hint: "set create_server_users to true, or user_on_demand_period to 0"}
	}
	return setClientOptions(&pr.ClientOptions, r.ClientOptions)
}

// setClientOptions sets those options that are named, each to one of its
// values.
func setClientOptions(o *sft.ClientOptions, from map[string]*string) error {
	known := map[string]struct {
		to     *string
		values []string
	}{
		"ssh.port_forward_method":    {&o.PortForward, []string{sft.ForwardNative, sft.ForwardNetcat}},
		"ssh.insecure_forward_agent": {&o.ForwardAgent, []string{sft.AgentNone, sft.AgentHost}},
	}
	for _, name := range slices.Sorted(maps.Keys(from)) {
		option, ok := known[name]
		switch v := from[name]; {
		case !ok:
			return &sft.Error{Code: sft.Invalid, Msg: "client option " + sft.Quote(name) + " is unknown",
				Hint: "use " + strings.Join(slices.Sorted(maps.Keys(known)), " or ")}
		case v == nil:
		case *v != "" && !slices.Contains(option.values, *v):
			return &sft.Error{Code: sft.Invalid, Msg: "client option " + name + " is " + sft.Quote(*v), Hint: "use " + strings.Join(option.values, " or ")}
		default:
			*option.to = *v
		}
	}
	return nil
}

// settings are what an event of a project tells: all of them, as they are from
// then on.
func settings(pr sft.Project) map[string]string {
	return map[string]string{
		"create_server_users": fmt.Sprint(pr.CreateServerUsers), "delete_server_users": fmt.Sprint(pr.DeleteServerUsers),
		"max_session_seconds": fmt.Sprint(pr.MaxSession), "disconnected_session_seconds": fmt.Sprint(pr.DisconnectedSession),
		"user_on_demand_period": fmt.Sprint(pr.UserOnDemand), "require_preauth_for_creds": fmt.Sprint(pr.RequirePreauth), "name_reuse_after": fmt.Sprint(pr.NameReuseAfter),
		"channels.clipboard": fmt.Sprint(pr.Channels.Clipboard), "channels.devices": fmt.Sprint(pr.Channels.Devices),
		"channels.audio": fmt.Sprint(pr.Channels.Audio), "channels.other_dynamic": fmt.Sprint(pr.Channels.OtherDynamic),
		"client_config_options.ssh.port_forward_method": pr.ClientOptions.PortForward, "client_config_options.ssh.insecure_forward_agent": pr.ClientOptions.ForwardAgent,
	}
}

// CreateProject makes a project with its own authorities.
func (p *Platform) CreateProject(ctx context.Context, a Actor, r ProjectRequest) (sft.Project, error) {
	var pr store.ProjectRecord
	a.gives(func() any { return pr.Project })
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		pr, err = p.newProject(tx, k.team.ID, r)
		e := p.event(a, audit.ProjectCreate, k.team.Name, r.Name, r.Name)
		e.Detail = settings(pr.Project)
		return e, err
	})
	return pr.Project, p.named(ctx, r.Team, err, func(tx *store.Tx, teamID string) (string, error) {
		there, err := tx.Project(teamID, r.Name)
		return there.ID, err
	})
}

func (p *Platform) newProject(tx *store.Tx, teamID string, r ProjectRequest) (store.ProjectRecord, error) {
	pr := store.ProjectRecord{TeamID: teamID}
	if err := sft.CheckName("project", r.Name); err != nil {
		return pr, err
	}
	now := p.Now().UTC()
	pr.ID, pr.Name, pr.CreatedAt, pr.Revision = audit.NewID(), r.Name, now, 1
	pr.CreateServerUsers, pr.MaxSession, pr.DisconnectedSession = true, 12*3600, 8*3600
	pr.Channels = sft.AllChannels
	if err := r.apply(&pr.Project); err != nil {
		return pr, err
	}
	if err := exists(tx.AddProject(pr), "project", r.Name); err != nil {
		return pr, err
	}
	for _, kind := range ca.ProjectKinds {
		if err := p.newCA(tx, store.CARecord{ProjectID: pr.ID, Stage: store.CAActive}, kind, caTitle(kind, pr)); err != nil {
			return pr, err
		}
	}
	return pr, nil
}

// newCA makes an authority as r says, and stores it; its key is sealed under
// its id.
func (p *Platform) newCA(tx *store.Tx, r store.CARecord, kind ca.Kind, title string) error {
	r.ID, r.Kind, r.CreatedAt, r.StageAt = audit.NewID(), string(kind), p.Now(), p.Now()
	s, err := ca.New(kind, r.ID, title, p.Sealer, p.Now())
	if err != nil {
		return err
	}
	r.Public, r.Sealed, r.NotAfter = s.Public, s.Key, s.NotAfter
	return tx.AddCA(r)
}

func caTitle(kind ca.Kind, pr store.ProjectRecord) string {
	return fmt.Sprintf("%s CA of project %s", kind, pr.Name)
}

// authorities are those of a project or of the platform, by kind.
type authorities map[ca.Kind][]*ca.Authority

// signer is the one that signs.
func (l authorities) signer(kind ca.Kind) *ca.Authority { return l[kind][len(l[kind])-1] }

// authorities returns those of a project that are trusted, by kind, the one that
// signs last. There is at least one of each kind. Their keys are unsealed once
// and kept.
func (p *Platform) authorities(tx *store.Tx, projectID string, kinds ...ca.Kind) (authorities, error) {
	records, err := tx.CAs(projectID)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(records, func(a, b store.CARecord) int {
		if a, b := a.Stage == store.CAActive, b.Stage == store.CAActive; a != b {
			if a {
				return 1
			}
			return -1
		}
		return a.CreatedAt.Compare(b.CreatedAt)
	})
	of := authorities{}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range records {
		kind := ca.Kind(r.Kind)
		if !slices.Contains(kinds, kind) || !r.NotAfter.After(p.Now()) {
			continue
		}
		a := p.opened[r.ID]
		if a == nil {
			if a, err = ca.Open(ca.Sealed{Kind: kind, Public: r.Public, Key: r.Sealed, NotAfter: r.NotAfter}, r.ID, p.Sealer); err != nil {
				return nil, err
			}
			p.opened[r.ID] = a
		}
		of[kind] = append(of[kind], a)
	}
	for _, kind := range kinds {
		if len(of[kind]) == 0 {
			return nil, fmt.Errorf("the project has no %s CA that is still good", kind)
		}
	}
	return of, nil
}

// trusted are the authorities of a project at one of its revisions.
type trusted struct {
	project  string
	revision int64
	of       authorities
	until    time.Time // when the first of them ends
}

// trustedBy is authorities of all kinds, read again when the project's revision
// is another: each change of an authority is one. What a transaction has read is
// for others when it is known to be stored, by trust: a revision that is undone
// comes back with other authorities.
func (p *Platform) trustedBy(tx *store.Tx, pr store.ProjectRecord) (trusted, error) {
	p.mu.Lock()
	t := p.trusted[pr.ID]
	p.mu.Unlock()
	if t.of != nil && t.revision == pr.Revision && p.Now().Before(t.until) {
		return t, nil
	}
	of, err := p.authorities(tx, pr.ID, ca.ProjectKinds...)
	t = trusted{project: pr.ID, revision: pr.Revision, of: of}
	for _, list := range of {
		for _, a := range list {
			if t.until.IsZero() || a.Until().Before(t.until) {
				t.until = a.Until()
			}
		}
	}
	return t, err
}

// trust keeps what trustedBy has returned.
func (p *Platform) trust(t trusted) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.trusted[t.project].revision <= t.revision {
		p.trusted[t.project] = t
	}
}

func certificates(list []*ca.Authority) (der [][]byte) {
	for _, a := range list {
		der = append(der, a.Certificate())
	}
	return der
}

// ProjectsRequest is GET /v1/teams/{team}/projects. The key of the list is the
// name.
type ProjectsRequest struct {
	Team string `path:"team" json:"-"`
	Self string `query:"self" json:"-"` // "true": only those whose servers the asker may reach
	Paging
}

// ListProjects returns the projects of a team.
func (p *Platform) ListProjects(ctx context.Context, a Actor, r ProjectsRequest) (api.List[sft.Project], error) {
	self, err := flag("self", r.Self)
	if err != nil {
		return api.List[sft.Project]{}, err
	}
	action := policy.Read
	if self {
		action = policy.OwnClient
	}
	return read(ctx, p, a, r.Team, action, func(tx *store.Tx, k asker) (api.List[sft.Project], error) {
		reach, err := p.reachOf(tx, k.user)
		if err != nil {
			return api.List[sft.Project]{}, err
		}
		r.Offset = sft.Fold(r.Offset)
		return pageOf(r.Paging, func(pr store.ProjectRecord) string { return sft.Fold(pr.Name) },
			func(g store.Page) ([]store.ProjectRecord, error) { return tx.ProjectsByName(k.team.ID, g) },
			func(pr store.ProjectRecord) (sft.Project, bool) { return pr.Project, !self || reach.some(pr.ID) })
	})
}

// GetProject returns one project.
func (p *Platform) GetProject(ctx context.Context, a Actor, r ProjectRequest) (sft.Project, error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (sft.Project, error) {
		pr, err := tx.Project(k.team.ID, r.Project)
		return pr.Project, notFound(err, "project", r.Project)
	})
}

// inProject is as for operations on a project.
func (p *Platform) inProject(tx *store.Tx, a Actor, team, project string, action policy.Action) (asker, store.ProjectRecord, error) {
	k, err := p.as(tx, a, team, action)
	if err != nil {
		return k, store.ProjectRecord{}, err
	}
	pr, err := tx.Project(k.team.ID, project)
	return k, pr, notFound(err, "project", project)
}

// UpdateProject changes a project's settings.
func (p *Platform) UpdateProject(ctx context.Context, a Actor, r ProjectRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, pr, err := p.inProject(tx, a, r.Team, r.Project, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		if r.Name != "" && r.Name != pr.Name {
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "a project keeps its name", Hint: "make a new project"}
		}
		was := pr.Project
		if err := r.apply(&pr.Project); err != nil {
			return audit.Event{}, err
		}
		if err := differ(was, pr.Project); err != nil {
			return audit.Event{}, err
		}
		if err := tx.SaveProject(pr); err != nil {
			return audit.Event{}, err
		}
		if longer := time.Duration(pr.MaxSession-was.MaxSession) * time.Second; longer > 0 { // for who has a certificate and has not signed in yet
			if err := tx.ProlongSessions(pr.ID, longer, p.Now()); err != nil {
				return audit.Event{}, err
			}
		}
		e := p.event(a, audit.ProjectUpdate, k.team.Name, pr.Name, pr.Name)
		e.Detail = settings(pr.Project)
		return e, tx.Revise(pr.ID)
	})
}

// DeleteProject deletes a project that has no servers.
func (p *Platform) DeleteProject(ctx context.Context, a Actor, r ProjectRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, pr, err := p.inProject(tx, a, r.Team, r.Project, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		servers, err := tx.Servers(pr.ID)
		if err != nil {
			return audit.Event{}, err
		}
		if len(servers) > 0 {
			return audit.Event{}, &sft.Error{Code: sft.Exists, Msg: fmt.Sprintf("project %s still has %d servers", sft.Quote(pr.Name), len(servers)), Hint: "delete its servers first"}
		}
		places, err := tx.ProjectGroups(pr.ID)
		if err != nil {
			return audit.Event{}, err
		}
		for _, was := range places {
			p.tellSudo(tx, a, k, pr, was.Group, was.SudoEntitlements, nil)
		}
		return p.event(a, audit.ProjectDelete, k.team.Name, pr.Name, pr.Name), tx.RemoveProject(pr.ID, p.Now())
	})
}

// ProjectGroupRequest names a group in a project; POST has it in the body. PUT
// takes the body as all that the group may: what is left out is taken away. A
// selector takes access away, so it goes only if that is said.
type ProjectGroupRequest struct {
	Team              string   `path:"team" json:"-"`
	Project           string   `path:"project" json:"-"`
	Group             string   `path:"group" json:"-"`
	Name              string   `json:"name,omitempty"`                // POST: of the group
	ServerAccess      bool     `json:"server_access,omitempty"`       // the group's members may reach the servers
	ServerAdmin       bool     `json:"server_admin,omitempty"`        // they are administrators there
	ServersSelector   *string  `json:"servers_selector,omitempty"`    // a label selector of Kubernetes: all that is here counts on the servers that match it alone; empty or left out: on every server. PUT: not left out where there is one
	CreateServerGroup bool     `json:"create_server_group,omitempty"` // the group is a local group on the Linux servers
	ServerGroupName   string   `json:"server_group_name,omitempty"`   // of that local group; empty: "sft_" and the name of the group
	SudoEntitlements  []string `json:"sudo_entitlements,omitempty"`   // by name, up to 32: what members may run by sudo
}

// ListProjectGroups returns the groups of a project, by their names.
func (p *Platform) ListProjectGroups(ctx context.Context, a Actor, r InProjectRequest) (api.List[sft.ProjectGroup], error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (api.List[sft.ProjectGroup], error) {
		pr, err := tx.Project(k.team.ID, r.Project)
		if err != nil {
			return api.List[sft.ProjectGroup]{}, notFound(err, "project", r.Project)
		}
		list := []sft.ProjectGroup{}
		groups, err := tx.ProjectGroups(pr.ID)
		if err != nil {
			return api.List[sft.ProjectGroup]{}, err
		}
		for _, g := range groups {
			list = append(list, g.ProjectGroup)
		}
		return pageIn(r.Paging, list, func(g sft.ProjectGroup) string { return g.Group })
	})
}

// GetProjectGroup returns what a group may do in a project.
func (p *Platform) GetProjectGroup(ctx context.Context, a Actor, r ProjectGroupRequest) (sft.ProjectGroup, error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (sft.ProjectGroup, error) {
		pr, err := tx.Project(k.team.ID, r.Project)
		if err != nil {
			return sft.ProjectGroup{}, notFound(err, "project", r.Project)
		}
		groups, err := tx.ProjectGroups(pr.ID)
		if err != nil {
			return sft.ProjectGroup{}, err
		}
		for _, g := range groups {
			if sft.Fold(g.Group) == sft.Fold(r.Group) {
				return g.ProjectGroup, nil
			}
		}
		return sft.ProjectGroup{}, noSuch("group in the project called", r.Group)
	})
}

// AddProjectGroup lets a group into a project.
func (p *Platform) AddProjectGroup(ctx context.Context, a Actor, r ProjectGroupRequest) (sft.ProjectGroup, error) {
	var pg sft.ProjectGroup
	a.gives(func() any { return pg })
	err := p.setProjectGroup(ctx, a, r, r.Name, func(tx *store.Tx, g store.ProjectGroupRecord) error {
		pg = g.ProjectGroup
		return exists(tx.AddProjectGroup(g), "group in the project called", g.Group)
	})
	return pg, err
}

// UpdateProjectGroup changes what a group may do in a project.
func (p *Platform) UpdateProjectGroup(ctx context.Context, a Actor, r ProjectGroupRequest) (struct{}, error) {
	return struct{}{}, p.setProjectGroup(ctx, a, r, r.Group, func(tx *store.Tx, g store.ProjectGroupRecord) error {
		return notFound(tx.SaveProjectGroup(g), "group in the project called", g.Group)
	})
}

func (p *Platform) setProjectGroup(ctx context.Context, a Actor, r ProjectGroupRequest, group string, set func(*store.Tx, store.ProjectGroupRecord) error) error {
	return p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, pr, err := p.inProject(tx, a, r.Team, r.Project, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		var text string
		if r.ServersSelector != nil {
			text = *r.ServersSelector
		}
		selector, err := policy.ParseSelector(text)
		if err != nil {
			return audit.Event{}, err
		}
		g, err := tx.Group(k.team.ID, group)
		if err != nil {
			return audit.Event{}, notFound(err, "group", group)
		}
		rec := store.ProjectGroupRecord{ProjectID: pr.ID, GroupID: g.ID, ProjectGroup: sft.ProjectGroup{Group: g.Name,
			ServerAccess: r.ServerAccess, ServerAdmin: r.ServerAdmin, ServersSelector: text, CreateServerGroup: r.CreateServerGroup, CreatedAt: p.Now().UTC()}}
		sudo, err := sudoOf(tx, k.team.ID, r.SudoEntitlements)
		if err != nil {
			return audit.Event{}, err
		}
		var ids []string
		for _, s := range sudo {
			ids, rec.SudoEntitlements = append(ids, s.ID), append(rec.SudoEntitlements, s.Name)
		}
		if rec.ServerGroupName, err = serverGroup(tx, pr, g, r); err != nil {
			return audit.Event{}, err
		}
		places, err := tx.ProjectGroups(pr.ID)
		if err != nil {
			return audit.Event{}, err
		}
		was := slices.IndexFunc(places, func(g store.ProjectGroupRecord) bool { return g.GroupID == rec.GroupID })
		if was >= 0 && r.Group != "" { // PUT names it in its path
			if there := places[was].ServersSelector; there != "" && r.ServersSelector == nil {
				return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "servers_selector is left out, and the group " + sft.Quote(g.Name) + " counts on the servers with " + there + " alone",
					Hint: "send it as it is to be, or \"\" for every server"}
			}
			now := rec.ProjectGroup
			now.CreatedAt = places[was].CreatedAt
			if err := differ(places[was].ProjectGroup, now); err != nil {
				return audit.Event{}, err
			}
		}
		if err := set(tx, rec); err != nil {
			return audit.Event{}, err
		}
		if err := tx.SetSudo(pr.ID, g.ID, ids); err != nil {
			return audit.Event{}, err
		}
		var had []string
		if was >= 0 {
			had = places[was].SudoEntitlements
		}
		p.tellSudo(tx, a, k, pr, g.Name, had, rec.SudoEntitlements)
		e := p.event(a, audit.ProjectGroup, k.team.Name, pr.Name, g.Name)
		e.Detail = map[string]string{"server_access": fmt.Sprint(r.ServerAccess), "server_admin": fmt.Sprint(r.ServerAdmin),
			"server_group": rec.ServerGroupName, "sudo_entitlements": strings.Join(rec.SudoEntitlements, " ")}
		for _, was := range places {
			if was.GroupID == g.ID && was.ServersSelector != text {
				also := p.event(a, audit.ProjectSelector, k.team.Name, pr.Name, g.Name)
				also.Detail = map[string]string{"was": was.ServersSelector}
				tellSelector(&also, selector)
				tx.Also(also)
			}
		}
		if text != "" {
			tellSelector(&e, selector)
		}
		return e, tx.Revise(pr.ID)
	})
}

// tellSudo tells which sudo entitlements a group has in a project from then on,
// and which no more.
func (p *Platform) tellSudo(tx *store.Tx, a Actor, k asker, pr store.ProjectRecord, group string, had, has []string) {
	tell := func(kind audit.Kind, of, without []string) {
		for _, name := range of {
			if !slices.Contains(without, name) {
				e := p.event(a, kind, k.team.Name, pr.Name, name)
				e.Detail = map[string]string{"group": group}
				tx.Also(e)
			}
		}
	}
	tell(audit.SudoDetach, had, has)
	tell(audit.SudoAttach, has, had)
}

// tellSelector puts a selector into an event: with the sources of its keys, and
// which of them each host says itself.
func tellSelector(e *audit.Event, s policy.Selector) {
	e.Detail["servers_selector"] = s.String()
	if keys := s.ByHost(); keys != nil {
		e.Detail["by_host"] = strings.Join(keys, " ")
	}
}

// RemoveProjectGroup takes a group out of a project.
func (p *Platform) RemoveProjectGroup(ctx context.Context, a Actor, r ProjectGroupRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, pr, err := p.inProject(tx, a, r.Team, r.Project, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		g, err := tx.Group(k.team.ID, r.Group)
		if err != nil {
			return audit.Event{}, notFound(err, "group", r.Group)
		}
		places, err := tx.ProjectGroups(pr.ID)
		if err != nil {
			return audit.Event{}, err
		}
		if err := tx.RemoveProjectGroup(pr.ID, g.ID); err != nil {
			return audit.Event{}, notFound(err, "group in the project called", r.Group)
		}
		for _, was := range places {
			if was.GroupID == g.ID {
				p.tellSudo(tx, a, k, pr, g.Name, was.SudoEntitlements, nil)
			}
		}
		return p.event(a, audit.ProjectUngroup, k.team.Name, pr.Name, g.Name), tx.Revise(pr.ID)
	})
}

// ListServerUsers returns the local accounts that should exist on a
// project's servers, by the names of the users: on some of them, where selectors
// say on which.
func (p *Platform) ListServerUsers(ctx context.Context, a Actor, r InProjectRequest) (api.List[sft.ServerUser], error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (api.List[sft.ServerUser], error) {
		pr, err := tx.Project(k.team.ID, r.Project)
		if err != nil {
			return api.List[sft.ServerUser]{}, notFound(err, "project", r.Project)
		}
		list, err := p.serverUsers(tx, pr)
		if err != nil {
			return api.List[sft.ServerUser]{}, err
		}
		return pageIn(r.Paging, list, func(u sft.ServerUser) string { return u.User })
	})
}

func (p *Platform) serverUsers(tx *store.Tx, pr store.ProjectRecord) (list []sft.ServerUser, err error) {
	var st api.State
	people, err := p.accounts(tx, pr, nil, &st)
	for _, u := range st.Users {
		list = append(list, sft.ServerUser{User: u.Name, Type: people[u.ID].Type, Login: u.Login, WindowsLogin: people[u.ID].WindowsLogin, FullName: u.FullName, UID: u.UID, GID: u.GID, Admin: u.Admin, Status: sft.StatusActive})
	}
	return list, err
}

// ServerUserRequest names a user of a project's servers.
type ServerUserRequest struct {
	Team    string `path:"team" json:"-"`
	Project string `path:"project" json:"-"`
	User    string `path:"user" json:"-"`
}

// GetServerUser returns the local account that a user should have on a
// project's servers.
func (p *Platform) GetServerUser(ctx context.Context, a Actor, r ServerUserRequest) (sft.ServerUser, error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (sft.ServerUser, error) {
		pr, err := tx.Project(k.team.ID, r.Project)
		if err != nil {
			return sft.ServerUser{}, notFound(err, "project", r.Project)
		}
		list, err := p.serverUsers(tx, pr)
		if err != nil {
			return sft.ServerUser{}, err
		}
		for _, u := range list {
			if sft.Fold(u.User) == sft.Fold(r.User) {
				return u, nil
			}
		}
		return sft.ServerUser{}, noSuch("user of the project's servers called", r.User)
	})
}

// accounts puts into st who may reach a server of a project, by login name
// there, and the groups and sudo rights that go with the accounts; for nil, who
// may reach any, as Linux servers have them. It returns the users by their ids,
// others among them.
func (p *Platform) accounts(tx *store.Tx, pr store.ProjectRecord, s *store.ServerRecord, st *api.State) (map[string]store.UserRecord, error) {
	places, err := tx.ProjectGroups(pr.ID)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(places, func(a, b store.ProjectGroupRecord) int { return strings.Compare(a.ServerGroupName, b.ServerGroupName) })
	bound, err := tx.Bound(pr.TeamID)
	if err != nil {
		return nil, err
	}
	st.Settings.UserOnDemand = pr.UserOnDemand
	byID := map[string]store.UserRecord{}
	grants := map[string][]policy.Grant{}
	groups := map[string][]string{}
	var on *policy.Server
	system := sft.Linux
	if s != nil {
		on, system = decidedOn(*s, p.Now()), s.Facts.OSType
	}
	sudoers := map[string]bool{}
	for _, g := range places {
		grant := policy.NewGrant(g.ProjectGroup)
		if on != nil && !grant.On(on.Labels) {
			continue
		}
		for _, name := range g.SudoEntitlements {
			sudoers[name] = sudoers[name] || g.ServerAccess
		}
		if g.CreateServerGroup {
			st.Groups = append(st.Groups, api.StateGroup{Name: g.ServerGroupName, GID: g.GID})
		}
		var members []store.UserRecord
		if g.Group == sft.Everyone {
			members, err = tx.Users(pr.TeamID)
		} else {
			members, err = tx.Members(g.GroupID)
		}
		if err != nil {
			return nil, err
		}
		for _, u := range members {
			byID[u.ID] = u
			grants[u.ID] = append(grants[u.ID], grant)
			if g.CreateServerGroup {
				groups[u.ID] = append(groups[u.ID], g.ServerGroupName)
			}
		}
	}
	st.Users = []api.StateUser{}
	for id, u := range byID {
		d := policy.Decide(policy.Facts{Status: u.Status, Kind: u.Type, Bound: bound[id], Grants: grants[id], Server: on})
		if !d.Access {
			continue
		}
		login, uid, gid := u.AccountOn(system)
		st.Users = append(st.Users, api.StateUser{ID: u.ID, Name: u.Name, Login: login, FullName: u.Details.FullName, UID: uid, GID: gid, Admin: d.Admin,
			Groups: groups[id], Sudo: d.Sudo})
	}
	slices.SortFunc(st.Users, func(a, b api.StateUser) int { return strings.Compare(a.Login, b.Login) })
	sudo, err := tx.ProjectSudos(pr.ID)
	for _, s := range sudo {
		if sudoers[s.Name] {
			st.Entitlements = append(st.Entitlements, s.SudoEntitlement)
		}
	}
	return byID, err
}

// caFingerprint returns that of the platform's own CA, or "" when it serves a
// certificate by another.
func (p *Platform) caFingerprint(tx *store.Tx) (string, error) {
	v, err := tx.Setting("ca_fingerprint")
	if errors.Is(err, store.ErrNotFound) {
		return "", nil
	}
	return v, err
}
