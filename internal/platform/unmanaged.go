package platform

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/policy"
	"sft/internal/store"
)

// UnmanagedRequest is about the servers of a project that have no agent: they
// are there to be gone through, by the person's own SSH.
type UnmanagedRequest struct {
	Team          string   `path:"team" json:"-"`
	Project       string   `path:"project" json:"-"`
	ID            string   `path:"id" json:"-"`
	Hostname      string   `json:"hostname"`
	AltNames      []string `json:"alt_names,omitempty"`
	AccessAddress string   `json:"access_address,omitempty"` // an IP address or a name; empty: the host name
	Port          int      `json:"port,omitempty"`           // of its SSH server; 0: as each person's SSH has it
	// Labels are those of administrators; "api." comes before a key if it is left
	// out. PUT of the server changes them.
	Labels map[string]string `json:"labels,omitempty"`
}

// facts refuses what such a server cannot be, and returns what it is.
func (r UnmanagedRequest) facts() (api.Facts, error) {
	f := api.Facts{Hostname: r.Hostname, AltNames: r.AltNames, AccessAddress: r.AccessAddress}
	if f.AccessAddress == "" {
		f.AccessAddress = f.Hostname
	}
	if len(f.AltNames) > maxAltNames {
		return f, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the server has %d alt_names", len(f.AltNames)), Hint: fmt.Sprintf("keep %d", maxAltNames)}
	}
	for _, n := range slices.Concat([]string{f.Hostname}, f.AltNames) {
		if err := sft.CheckHostname(n); err != nil {
			return f, err
		}
	}
	if err := sft.CheckHostname(f.AccessAddress); err != nil {
		return f, &sft.Error{Code: sft.Invalid, Msg: "access address " + sft.Quote(f.AccessAddress) + " cannot be used", Hint: "give an IP address or a host's name, or leave it out"}
	}
	if ip, err := netip.ParseAddr(f.AccessAddress); err == nil {
		f.AccessAddress = ip.String()
		if ip.IsUnspecified() || ip.IsLoopback() || ip.IsMulticast() || ip.Zone() != "" {
			return f, &sft.Error{Code: sft.Invalid, Msg: "access address " + sft.Quote(f.AccessAddress) + " cannot be reached from another machine", Hint: "give one that can, or the host's name"}
		}
	}
	if r.Port < 0 || r.Port > 65535 {
		return f, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("%d is not a port", r.Port), Hint: "use 1 to 65535, or leave it out"}
	}
	if r.Port > 0 {
		f.SSH = &api.SSHFacts{Port: r.Port}
	}
	return f, nil
}

// CreateUnmanaged makes the record of a server without an agent. Its names are
// held like any server's, and none of them may be another's.
func (p *Platform) CreateUnmanaged(ctx context.Context, a Actor, r UnmanagedRequest) (sft.Server, error) {
	var s store.ServerRecord
	var k asker
	a.gives(func() any { return k.server(s, p.Now()) })
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		var pr store.ProjectRecord
		var err error
		k, pr, err = p.inProject(tx, a, r.Team, r.Project, policy.ManageServers)
		if err != nil {
			return audit.Event{}, err
		}
		f, err := r.facts()
		if err != nil {
			return audit.Event{}, err
		}
		s = store.ServerRecord{ID: audit.NewID(), TeamID: k.team.ID, ProjectID: pr.ID, Project: pr.Name, Facts: f, RegisteredAt: p.Now().UTC(), Unmanaged: true}
		before := s.Labels()
		if s.Given, err = sft.CheckLabels(sft.LabelAPI, r.Labels); err != nil {
			return audit.Event{}, err
		}
		if err := p.mayLabel(tx, k, s, before); err != nil {
			return audit.Event{}, err
		}
		if err := errors.Join(tx.AddServer(s), tx.SetLabels(s)); err != nil {
			return audit.Event{}, err
		}
		if s.NameConflict, err = tx.TakeNames(pr.ID, s.ID, claimed(f)); err != nil {
			return audit.Event{}, err
		}
		for _, n := range slices.Concat([]string{f.Hostname}, f.AltNames) {
			// Its address may be held by hosts that call from behind it.
			if slices.Contains(s.NameConflict, n) {
				return audit.Event{}, exists(store.ErrExists, "server", n)
			}
		}
		if err := tx.SaveServer(s); err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.ServerUnmanaged, k.team.Name, pr.Name, f.Hostname)
		e.Detail = map[string]string{"server": s.ID, "access_address": f.AccessAddress, "port": fmt.Sprint(r.Port), "alt_names": strings.Join(f.AltNames, " ")}
		if labels := lacks(nil, s.Given); labels != "" {
			e.Detail["labels"] = labels
		}
		return e, nil
	})
	if err != nil {
		return sft.Server{}, p.named(ctx, r.Team, err, func(tx *store.Tx, teamID string) (string, error) {
			in, err := tx.Project(teamID, r.Project)
			if err != nil {
				return "", err
			}
			return tx.NameHolder(in.ID, r.Hostname)
		})
	}
	return k.server(s, p.Now()), nil
}

// ListUnmanaged returns a project's servers without an agent, the oldest
// first.
func (p *Platform) ListUnmanaged(ctx context.Context, a Actor, r InProjectRequest) (api.List[sft.Server], error) {
	return read(ctx, p, a, r.Team, policy.ReadServers, func(tx *store.Tx, k asker) (api.List[sft.Server], error) {
		pr, err := tx.Project(k.team.ID, r.Project)
		if err != nil {
			return api.List[sft.Server]{}, notFound(err, "project", r.Project)
		}
		return pageOf(r.Paging, func(s store.ServerRecord) string { return s.ID },
			func(g store.Page) ([]store.ServerRecord, error) {
				return tx.ServersByID(pr.TeamID, store.ServerFilter{Projects: []string{pr.ID}, Unmanaged: true}, g)
			},
			every(func(s store.ServerRecord) sft.Server { return k.server(s, p.Now()) }))
	})
}

// DeleteUnmanaged deletes the record of a server without an agent, and frees
// its names. An enrolled server is not its to delete.
func (p *Platform) DeleteUnmanaged(ctx context.Context, a Actor, r UnmanagedRequest) (struct{}, error) {
	return p.deleteServer(ctx, a, ServerRequest{r.Team, r.Project, r.ID}, func(s store.ServerRecord) bool { return s.Unmanaged })
}
