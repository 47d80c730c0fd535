package platform

import (
	"context"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/policy"
	"sft/internal/store"
)

// A ClientOption is one of a project's client_config_options: the same that
// the project has as a whole, one at a time. Its key is its id.
type ClientOption struct {
	Key   string `json:"config_key"`   // ssh.port_forward_method or ssh.insecure_forward_agent
	Value string `json:"config_value"` // native or netcat; none or host
}

// clientOptions are those that a project has set.
func clientOptions(o sft.ClientOptions) (list []ClientOption) {
	for _, c := range []ClientOption{{"ssh.insecure_forward_agent", o.ForwardAgent}, {"ssh.port_forward_method", o.PortForward}} {
		if c.Value != "" {
			list = append(list, c)
		}
	}
	return list
}

// ListClientOptions returns the options that a project has set.
func (p *Platform) ListClientOptions(ctx context.Context, a Actor, r InProjectRequest) (api.List[ClientOption], error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (api.List[ClientOption], error) {
		pr, err := tx.Project(k.team.ID, r.Project)
		if err != nil {
			return api.List[ClientOption]{}, notFound(err, "project", r.Project)
		}
		return pageIn(r.Paging, clientOptions(pr.ClientOptions), func(c ClientOption) string { return c.Key })
	})
}

// ClientOptionRequest names an option of a project; the body of POST is the
// option.
type ClientOptionRequest struct {
	Team    string `path:"team" json:"-"`
	Project string `path:"project" json:"-"`
	ID      string `path:"id" json:"-"` // the option's config_key
	ClientOption
}

// option finds one that the project has set.
func option(pr store.ProjectRecord, key string) (ClientOption, error) {
	for _, c := range clientOptions(pr.ClientOptions) {
		if c.Key == key {
			return c, nil
		}
	}
	return ClientOption{}, noSuch("client option in the project called", key)
}

// GetClientOption returns one option that a project has set.
func (p *Platform) GetClientOption(ctx context.Context, a Actor, r ClientOptionRequest) (ClientOption, error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (ClientOption, error) {
		pr, err := tx.Project(k.team.ID, r.Project)
		if err != nil {
			return ClientOption{}, notFound(err, "project", r.Project)
		}
		return option(pr, r.ID)
	})
}

// SetClientOption sets an option of a project, whatever it was before.
func (p *Platform) SetClientOption(ctx context.Context, a Actor, r ClientOptionRequest) (ClientOption, error) {
	if r.Value == "" {
		return ClientOption{}, &sft.Error{Code: sft.Invalid, Msg: "client option " + sft.Quote(r.Key) + " has no value", Hint: "give config_value, or delete the option"}
	}
	a.gives(func() any { return r.ClientOption })
	return r.ClientOption, p.setClientOption(ctx, a, r, r.Key, r.Value, func(store.ProjectRecord) error { return nil })
}

// DeleteClientOption takes an option from a project: its default holds.
func (p *Platform) DeleteClientOption(ctx context.Context, a Actor, r ClientOptionRequest) (struct{}, error) {
	return struct{}{}, p.setClientOption(ctx, a, r, r.ID, "", func(pr store.ProjectRecord) error {
		_, err := option(pr, r.ID)
		return err
	})
}

func (p *Platform) setClientOption(ctx context.Context, a Actor, r ClientOptionRequest, key, value string, check func(store.ProjectRecord) error) error {
	return p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, pr, err := p.inProject(tx, a, r.Team, r.Project, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		if err := check(pr); err != nil {
			return audit.Event{}, err
		}
		was := pr.Project
		if err := setClientOptions(&pr.ClientOptions, map[string]*string{key: &value}); err != nil {
			return audit.Event{}, err
		}
		if err := differ(was, pr.Project); err != nil {
			return audit.Event{}, err
		}
		if err := tx.SaveProject(pr); err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.ProjectUpdate, k.team.Name, pr.Name, pr.Name)
		e.Detail = settings(pr.Project)
		return e, tx.Revise(pr.ID)
	})
}
