package platform

import (
	"cmp"
	"context"
	"errors"

	"sft"
	"sft/internal/api"
	"sft/internal/frame"
	"sft/internal/policy"
	"sft/internal/store"
)

// AccessRequest is GET …/servers/{id}/access: what a user is to a server.
type AccessRequest struct {
	Team    string `path:"team" json:"-"`
	Project string `path:"project" json:"-"`
	ID      string `path:"id" json:"-"`
	User    string `query:"user" json:"-"`    // empty: the asker
	Service string `query:"service" json:"-"` // rdp, which is also what empty means, or ssh
}

// Access says whether a user may reach a server, by which grant, and what is
// missing. Everybody may ask about themselves; to them a server that they may
// not know of is not there. Administrators and reporting users may ask about
// anyone.
func (p *Platform) Access(ctx context.Context, a Actor, r AccessRequest) (api.Access, error) {
	return read(ctx, p, a, r.Team, policy.OwnClient, func(tx *store.Tx, k asker) (api.Access, error) {
		none := api.Access{}
		about := k.user
		if r.User != "" && sft.Fold(r.User) != sft.Fold(k.user.Name) {
			if !policy.May(k.user.Status, k.roles, policy.ReadAccess) {
				err := mayNot(k.user, a.Client != "", policy.ReadAccess)
				err.Msg, err.Hint = "user "+sft.Quote(k.user.Name)+" may not ask about others", "leave the user out, or "+err.Hint
				return none, err
			}
			var err error
			if about, err = tx.User(k.team.ID, r.User); err != nil {
				return none, notFound(err, "user", r.User)
			}
		}
		s, err := serverIn(tx, k, ServerRequest{r.Team, r.Project, r.ID})
		if err != nil {
			return none, err
		}
		v, err := p.explain(tx, asker{team: k.team, user: about, roles: k.roles}, s, r.Service)
		if err == nil && !v.Access && !policy.May(k.user.Status, k.roles, policy.Read) {
			return none, noSuch("server", r.ID)
		}
		if err == nil { // not before: else it would tell that the server is there
			err = explained(v.Service)
		}
		return v, err
	})
}

// AccessOf is Access for the operator of the platform, who has its database:
// of a server by any of its names, in the team of that name or, for "", the
// first one.
func (p *Platform) AccessOf(ctx context.Context, team, user, server, service string) (v api.Access, err error) {
	if team == "" {
		team = p.OneTeam(ctx)
	}
	err = p.DB.Read(ctx, func(tx *store.Tx) error {
		k := asker{roles: []sft.Role{sft.AccessAdmin}} // what is there is told
		if k.team, err = tx.Team(team); err != nil {
			return notFound(err, "team", team)
		}
		if k.user, err = tx.User(k.team.ID, user); err != nil {
			return notFound(err, "user", user)
		}
		way, err := p.router(tx, k)
		if err != nil {
			return err
		}
		s, err := way.any(server)
		if err != nil {
			return err
		}
		if v, err = p.explain(tx, k, s, service); err == nil {
			err = explained(v.Service)
		}
		return err
	})
	return v, err
}

// explained refuses a service that nobody is asked about.
func explained(service string) error {
	if service != frame.RDP && service != frame.SSH {
		return &sft.Error{Code: sft.UnknownService, Msg: "service " + sft.Quote(service) + " is unknown", Hint: "use rdp or ssh"}
	}
	return nil
}

// explain walks the way of Connect for a user, by what Connect itself asks, and
// writes down each answer. Nothing is issued. The roles of k are of who asks.
func (p *Platform) explain(tx *store.Tx, k asker, s store.ServerRecord, service string) (api.Access, error) {
	v := api.Access{User: k.user.Name, Server: s.Server(p.Now()).Name(), ServerID: s.ID, Project: s.Project, Service: cmp.Or(service, frame.RDP), Steps: []api.AccessStep{}}
	way, err := p.router(tx, k)
	if err != nil {
		return v, err
	}
	target, err := way.step(s)
	if err != nil {
		return v, err
	}
	f, err := way.reach.all(s, target.project)
	if err != nil {
		return v, err
	}
	if f.Grants, err = withSudo(tx, s.ProjectID, f.Grants); err != nil {
		return v, err
	}
	d, steps := policy.Explain(f)
	v.Access, v.Admin, v.Sudo, v.Group, v.Preauthorization, v.Missing = d.Access, d.Admin, d.Sudo, d.By, d.Preauth, string(d.Missing)
	for _, s := range steps {
		v.Steps = append(v.Steps, api.AccessStep{Rule: s.Rule, OK: s.OK, Text: s.Text})
	}
	if !d.Access {
		return v, nil
	}
	// What follows is not policy, and Connect asks for it all the same.
	say := func(rule string, err error, text string) error {
		e, told := errors.AsType[*sft.Error](err)
		switch {
		case err == nil:
			v.Steps = append(v.Steps, api.AccessStep{Rule: rule, OK: true, Text: text})
		case told:
			v.Steps = append(v.Steps, api.AccessStep{Rule: rule, Text: e.Msg, Hint: e.Hint})
			v.Missing = cmp.Or(v.Missing, rule)
		default:
			return err
		}
		return nil
	}
	hops, err := way.hops(target, nil)
	text := "straight to the server"
	if len(hops) > 0 {
		text = "through " + wayOf(hops)
	}
	if err := say("way", err, text); err != nil {
		return v, err
	}
	for _, h := range hops {
		if err := say("hop", way.refusal(h), "user "+k.user.Name+" may go through "+h.name); err != nil {
			return v, err
		}
	}
	if err := say("service", serves(target, v.Service), "the server is reached by "+v.Service); err != nil {
		return v, err
	}
	v.Credentials = v.Missing == ""
	return v, nil
}

// withSudo are grants of a project with the names of their sudo entitlements.
func withSudo(tx *store.Tx, projectID string, grants []policy.Grant) ([]policy.Grant, error) {
	places, err := tx.ProjectGroups(projectID)
	var list []policy.Grant
	for _, g := range grants {
		for _, place := range places {
			if place.Group == g.Group {
				list = append(list, policy.NewGrant(place.ProjectGroup))
			}
		}
	}
	return list, err
}

// any returns the one server that a name means, whether the user may reach it
// or not.
func (r router) any(target string) (store.ServerRecord, error) {
	if err := sft.CheckTarget(target); err != nil {
		return store.ServerRecord{}, err
	}
	found, err := r.named(target)
	if err != nil {
		return store.ServerRecord{}, err
	}
	if len(found) == 0 {
		return store.ServerRecord{}, noSuch("server", target)
	}
	return r.one(target, candidates{active: found})
}
