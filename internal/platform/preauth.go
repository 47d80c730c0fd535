package platform

import (
	"context"
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

// The limits of a preauthorization.
const (
	maxPreauthProjects = 50
	maxPreauthServers  = 100
)

// PreauthRequest names a preauthorization of a project; the body of POST and
// PUT is the preauthorization, and of PUT what is left out stays.
type PreauthRequest struct {
	Team      string     `path:"team" json:"-"`
	Project   string     `path:"project" json:"-"`
	ID        string     `path:"id" json:"-"`
	User      string     `json:"user_name,omitempty"` // POST: whose it is; PUT: the same, or empty
	Projects  []string   `json:"projects,omitempty"`  // 1 to 50, with the one in the path; POST: left out, that one alone
	Servers   *[]string  `json:"servers"`             // up to 100 ids; none: all of the projects
	StartsAt  *time.Time `json:"starts_at"`           // POST: left out, now
	ExpiresAt *time.Time `json:"expires_at"`          // needed by POST
	Disabled  *bool      `json:"disabled"`
}

// PreauthsRequest is GET of a project's preauthorizations. The key of the list
// is the id.
type PreauthsRequest struct {
	InProjectRequest
	IncludeExpired string `query:"include_expired" json:"-"` // "true": those too that have ended
}

// ListPreauths returns the preauthorizations of a project, in the order in
// which they were made.
func (p *Platform) ListPreauths(ctx context.Context, a Actor, r PreauthsRequest) (api.List[sft.Preauthorization], error) {
	expired, err := flag("include_expired", r.IncludeExpired)
	if err != nil {
		return api.List[sft.Preauthorization]{}, err
	}
	after := p.Now()
	if expired {
		after = time.Time{}
	}
	return listIn(ctx, p, a, r.InProjectRequest, policy.ReadPreauths, func(v store.PreauthRecord) string { return v.ID },
		func(tx *store.Tx, pr store.ProjectRecord, g store.Page) ([]store.PreauthRecord, error) {
			return tx.PreauthsByID(pr.ID, after, g)
		},
		func(v store.PreauthRecord) sft.Preauthorization { return v.Preauthorization })
}

// GetPreauth returns one preauthorization of a project.
func (p *Platform) GetPreauth(ctx context.Context, a Actor, r PreauthRequest) (sft.Preauthorization, error) {
	return read(ctx, p, a, r.Team, policy.ReadPreauths, func(tx *store.Tx, k asker) (sft.Preauthorization, error) {
		pr, err := tx.Project(k.team.ID, r.Project)
		if err != nil {
			return sft.Preauthorization{}, notFound(err, "project", r.Project)
		}
		v, err := tx.Preauth(pr.ID, r.ID)
		return v.Preauthorization, notFound(err, "preauthorization", r.ID)
	})
}

// CreatePreauth lets a user have credentials for a time. Who may give
// preauthorizations and is no administrator gives them to others alone.
func (p *Platform) CreatePreauth(ctx context.Context, a Actor, r PreauthRequest) (sft.Preauthorization, error) {
	var v store.PreauthRecord
	a.gives(func() any { return v.Preauthorization })
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, pr, err := p.inProject(tx, a, r.Team, r.Project, policy.Preauthorize)
		if err != nil {
			return audit.Event{}, err
		}
		u, err := tx.User(k.team.ID, r.User)
		if err == nil && u.Status == sft.StatusDeleted {
			err = store.ErrNotFound
		}
		if err != nil {
			return audit.Event{}, notFound(err, "user", r.User)
		}
		now := p.Now().UTC()
		v = store.PreauthRecord{TeamID: k.team.ID, UserID: u.ID}
		v.ID, v.User, v.StartsAt, v.CreatedBy, v.CreatedAt = audit.NewID(), u.Name, now, k.user.Name, now
		if r.ExpiresAt == nil {
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "a preauthorization without an end cannot be made", Hint: "give expires_at"}
		}
		if err := p.setPreauth(tx, k, pr, r, &v); err != nil {
			return audit.Event{}, err
		}
		if !v.ExpiresAt.After(now) {
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "expires_at is over", Hint: "use a time that is to come"}
		}
		return p.preauthEvent(a, audit.PreauthCreate, k, pr, v), tx.AddPreauth(v)
	})
	if err != nil {
		return sft.Preauthorization{}, err
	}
	return v.Preauthorization, nil
}

// UpdatePreauth changes where and when a preauthorization is good. An end that
// is over, or disabled, takes it back: nothing is issued by it from then on, and
// sessions that are open go on.
func (p *Platform) UpdatePreauth(ctx context.Context, a Actor, r PreauthRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, pr, err := p.inProject(tx, a, r.Team, r.Project, policy.Preauthorize)
		if err != nil {
			return audit.Event{}, err
		}
		v, err := tx.Preauth(pr.ID, r.ID)
		if err != nil {
			return audit.Event{}, notFound(err, "preauthorization", r.ID)
		}
		if r.User != "" && sft.Fold(r.User) != sft.Fold(v.User) {
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "a preauthorization keeps its user", Hint: "disable it, and make another"}
		}
		was := v.Preauthorization
		if err := p.setPreauth(tx, k, pr, r, &v); err != nil {
			return audit.Event{}, err
		}
		if err := differ(was, v.Preauthorization); err != nil {
			return audit.Event{}, err
		}
		return p.preauthEvent(a, audit.PreauthUpdate, k, pr, v), tx.SavePreauth(v)
	})
}

// setPreauth sets what the request names.
func (p *Platform) setPreauth(tx *store.Tx, k asker, pr store.ProjectRecord, r PreauthRequest, v *store.PreauthRecord) error {
	if v.UserID == k.user.ID && !policy.May(k.user.Status, k.roles, policy.PreauthorizeSelf) {
		return &sft.Error{Code: sft.Denied, Msg: "user " + sft.Quote(k.user.Name) + " may not preauthorize themselves", Hint: "ask somebody else who may give preauthorizations"}
	}
	names := r.Projects
	if names == nil && v.Projects == nil {
		names = []string{pr.Name}
	}
	if len(names) > maxPreauthProjects || names != nil && len(names) == 0 {
		return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the preauthorization is for %d projects", len(names)), Hint: fmt.Sprintf("name 1 to %d", maxPreauthProjects)}
	}
	if names != nil {
		v.Projects, v.ProjectIDs = nil, nil
	}
	for _, name := range names {
		in, err := tx.Project(k.team.ID, name)
		if err != nil {
			return notFound(err, "project", name)
		}
		if !slices.Contains(v.ProjectIDs, in.ID) {
			v.Projects, v.ProjectIDs = append(v.Projects, in.Name), append(v.ProjectIDs, in.ID)
		}
	}
	if !slices.Contains(v.ProjectIDs, pr.ID) {
		return &sft.Error{Code: sft.Invalid, Msg: "the preauthorization would not be one of project " + sft.Quote(pr.Name), Hint: "name the project of the path among its projects"}
	}
	if r.Servers != nil {
		if len(*r.Servers) > maxPreauthServers {
			return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the preauthorization is for %d servers", len(*r.Servers)), Hint: fmt.Sprintf("name up to %d, or none for all of the projects", maxPreauthServers)}
		}
		v.Servers = nil
		for _, id := range *r.Servers {
			s, err := serverIn(tx, k, ServerRequest{ID: id})
			if err != nil {
				return err
			}
			if !slices.Contains(v.Servers, s.ID) {
				v.Servers = append(v.Servers, s.ID)
			}
		}
	}
	// A server whose project is not among the projects would be a grant that
	// gives nothing, and looks as if it did.
	// What is only ended or disabled may have servers that were moved since.
	said := v.Servers
	if r.Servers == nil && r.Projects == nil {
		said = nil
	}
	for _, id := range said {
		s, err := tx.ServerByID(id)
		if err != nil {
			return err
		}
		if !slices.Contains(v.ProjectIDs, s.ProjectID) {
			return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("server %s is in project %s, for which the preauthorization is not", sft.Quote(id), sft.Quote(s.Project)), Hint: "name its project too"}
		}
	}
	for _, t := range []struct{ from, to *time.Time }{{r.StartsAt, &v.StartsAt}, {r.ExpiresAt, &v.ExpiresAt}} {
		if t.from == nil {
			continue
		}
		if t.from.Year() < 2000 || t.from.Year() > 9999 {
			return &sft.Error{Code: sft.Invalid, Msg: "the time " + sft.Quote(t.from.String()) + " cannot be used", Hint: "use one as in " + p.Now().UTC().Format(time.RFC3339)}
		}
		*t.to = t.from.UTC().Truncate(time.Microsecond)
	}
	if !v.ExpiresAt.After(v.StartsAt) {
		return &sft.Error{Code: sft.Invalid, Msg: "the preauthorization ends before it begins", Hint: "use an expires_at after starts_at"}
	}
	if r.Disabled != nil {
		v.Disabled = *r.Disabled
	}
	return nil
}

// preauthEvent tells all of a preauthorization, as it is from then on.
func (p *Platform) preauthEvent(a Actor, kind audit.Kind, k asker, pr store.ProjectRecord, v store.PreauthRecord) audit.Event {
	e := p.event(a, kind, k.team.Name, pr.Name, v.User)
	e.Detail = map[string]string{"preauthorization": v.ID, "projects": strings.Join(v.Projects, " "), "starts_at": v.StartsAt.Format(time.RFC3339),
		"expires_at": v.ExpiresAt.Format(time.RFC3339), "disabled": fmt.Sprint(v.Disabled)}
	if len(v.Servers) > 0 {
		e.Detail["servers"] = strings.Join(v.Servers, " ")
	}
	return e
}
