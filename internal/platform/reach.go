package platform

import (
	"fmt"
	"slices"
	"time"

	"sft"
	"sft/internal/policy"
	"sft/internal/store"
)

// A reach is what package policy goes by of one user, on all projects of the
// team: read once, and asked for each server.
type reach struct {
	tx     *store.Tx
	user   store.UserRecord
	bound  bool
	grants map[string][]policy.Grant // by project
	now    time.Time
}

func (p *Platform) reachOf(tx *store.Tx, u store.UserRecord) (reach, error) {
	places, err := tx.ProjectGroupsOf(u)
	if err != nil {
		return reach{}, err
	}
	return p.reachBy(tx, u, places)
}

// asReaching is as, with what the asker may reach: read at once.
func (p *Platform) asReaching(tx *store.Tx, a Actor, team string, action policy.Action) (asker, reach, error) {
	var places []store.ProjectGroupRecord
	k, err := p.asBy(tx, a, team, action, func(u store.UserRecord) (groups []store.GroupRecord, err error) {
		groups, places, err = tx.PlacesOf(u)
		return groups, err
	})
	if err != nil {
		return k, reach{}, err
	}
	r, err := p.reachBy(tx, k.user, places)
	return k, r, err
}

func (p *Platform) reachBy(tx *store.Tx, u store.UserRecord, places []store.ProjectGroupRecord) (reach, error) {
	r := reach{tx: tx, user: u, grants: map[string][]policy.Grant{}, now: p.Now()}
	if u.Type == sft.Service { // nobody else has any
		bindings, err := tx.Bindings(u.ID)
		if err != nil {
			return r, err
		}
		r.bound = len(bindings) > 0
	}
	for _, g := range places {
		r.grants[g.ProjectID] = append(r.grants[g.ProjectID], policy.NewGrant(g.ProjectGroup))
	}
	return r, nil
}

// decidedOn is what decisions go by of a server.
func decidedOn(s store.ServerRecord, now time.Time) *policy.Server {
	v := s.Server(now)
	return &policy.Server{ID: s.ID, Labels: v.Labels, State: v.State, KeyConflict: s.KeyConflict}
}

// facts are those on a server, or, if that is nil, on whichever server of the
// project, but for preauthorizations.
func (r reach) facts(projectID string, on *policy.Server) policy.Facts {
	return policy.Facts{Status: r.user.Status, Kind: r.user.Type, Bound: r.bound, Grants: r.grants[projectID], Server: on, Now: r.now}
}

// some reports whether there may be a server in the project that the user may
// reach.
func (r reach) some(projectID string) bool { return policy.Decide(r.facts(projectID, nil)).Access }

// on decides on a server, but for preauthorizations.
func (r reach) on(s store.ServerRecord) policy.Decision {
	return policy.Decide(r.facts(s.ProjectID, decidedOn(s, r.now)))
}

// preauthMemory is for how long a preauthorization that has ended is told of.
const preauthMemory = 24 * time.Hour

// all are the facts on a server, all of them.
func (r reach) all(s store.ServerRecord, pr store.ProjectRecord) (policy.Facts, error) {
	f := r.facts(s.ProjectID, decidedOn(s, r.now))
	if !pr.RequirePreauth {
		return f, nil
	}
	list, err := r.tx.PreauthsOf(pr.ID, r.user.ID, r.now.Add(-preauthMemory))
	f.RequirePreauth = true
	for _, a := range list {
		f.Preauths = append(f.Preauths, a.Preauthorization)
	}
	return f, err
}

// projects are those in which there may be a server that the user may reach, in
// order.
func (r reach) projects() []string {
	list := []string{}
	for id := range r.grants {
		if r.some(id) {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list
}

// labels are those that the servers of the projects are found by which the user
// may reach and the filter means or, with everything, all that it means: as far
// as selectors name labels that servers are found by.
func (r reach) labels(projects []string, filter policy.Selector, everything bool) (each [][]store.Labelled) {
	if h, ok := filter.Hint(); ok && len(projects) > 0 {
		each = append(each, []store.Labelled{{Names: h.Keys, Values: h.Values}})
	}
	if everything {
		return each
	}
	var any []store.Labelled
	for _, id := range projects {
		list, ok := found(r.grants[id])
		if !ok {
			return each
		}
		any = append(any, list...)
	}
	if len(any) > 0 {
		each = append(each, any)
	}
	return each
}

// found are the labels of which every server that the grants are for has one.
// ok is false if some grant is for servers without such a label.
func found(grants []policy.Grant) (list []store.Labelled, ok bool) {
	for _, g := range grants {
		h, ok := g.Hint()
		if !ok {
			return nil, false
		}
		if h.Keys != nil {
			list = append(list, store.Labelled{Names: h.Keys, Values: h.Values})
		}
	}
	return list, len(list) > 0
}

// refusal is why nothing is issued for a step, in words for its person.
func (p *Platform) refusal(u store.UserRecord, s step) error {
	user, server := sft.Quote(u.Name), sft.Quote(s.name)
	switch m := s.decision.Missing; m {
	case policy.Nothing:
		return nil
	case policy.Preauthorized:
		return &sft.Error{Code: sft.Denied, Msg: fmt.Sprintf("project %s gives credentials only with a preauthorization, and user %s has none for server %s that is good now", sft.Quote(s.project.Name), user, server),
			Hint: "ask an administrator, or who else may give one, for a preauthorization; then try again"}
	case policy.OneKey:
		return p.mayIssue(*s.server)
	default: // the step would not be one
		return &sft.Error{Code: sft.Denied, Msg: fmt.Sprintf("user %s gets no credentials for server %s: %s", user, server, m), Hint: "ask an administrator of the team"}
	}
}
