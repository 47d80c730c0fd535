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

// maxSudoGroup caps how many entitlements a group has in a project.
const maxSudoGroup = 32

// SudoRequest names a sudo entitlement; the body of POST and PUT is the whole
// entitlement.
type SudoRequest struct {
	Team string `path:"team" json:"-"`
	Sudo string `path:"id" json:"-"`
	sft.SudoEntitlement
}

// checked is the entitlement of the request, as it may be stored.
func (r SudoRequest) checked() (sft.SudoEntitlement, error) {
	e := r.SudoEntitlement
	for i, c := range e.Commands {
		if c.ArgsType == "" {
			e.Commands[i].ArgsType = sft.SudoArgsNone
			if c.Type == sft.SudoDirectory {
				e.Commands[i].ArgsType = sft.SudoArgsAny
			}
		}
	}
	return e, e.Check()
}

// tell is what an event of an entitlement tells: all that it allows.
func tell(e *audit.Event, s sft.SudoEntitlement) {
	e.Detail = map[string]string{"entitlement": s.ID, "run_as": s.RunAs, "no_exec": fmt.Sprint(s.NoExec), "set_env": fmt.Sprint(s.SetEnv),
		"add_env": strings.Join(s.AddEnv, " "), "sub_env": strings.Join(s.SubEnv, " ")}
	if s.RunAs == "" {
		e.Detail["run_as"] = "root"
	}
	for i, c := range s.Commands {
		v := c.Command
		switch c.ArgsType {
		case sft.SudoArgsAny:
			v += " (any arguments)"
		case sft.SudoArgsCustom:
			v += " " + c.Args
		}
		e.Detail[fmt.Sprintf("command_%02d", i+1)] = v
	}
}

// SudosRequest is GET /v1/teams/{team}/entitlements/sudo. The key of the list
// is the id.
type SudosRequest struct {
	Team string `path:"team" json:"-"`
	Paging
}

// ListSudo returns the sudo entitlements of a team, the oldest first.
func (p *Platform) ListSudo(ctx context.Context, a Actor, r SudosRequest) (api.List[sft.SudoEntitlement], error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (api.List[sft.SudoEntitlement], error) {
		return pageOf(r.Paging, func(s store.SudoRecord) string { return s.ID },
			func(g store.Page) ([]store.SudoRecord, error) { return tx.SudosByID(k.team.ID, g) },
			every(func(s store.SudoRecord) sft.SudoEntitlement { return s.SudoEntitlement }))
	})
}

// GetSudo returns one sudo entitlement.
func (p *Platform) GetSudo(ctx context.Context, a Actor, r SudoRequest) (sft.SudoEntitlement, error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (sft.SudoEntitlement, error) {
		s, err := sudoIn(tx, k, r.Sudo)
		return s.SudoEntitlement, err
	})
}

// sudoIn finds an entitlement of the team by its id.
func sudoIn(tx *store.Tx, k asker, id string) (store.SudoRecord, error) {
	s, err := tx.SudoByID(id)
	if err == nil && s.TeamID != k.team.ID {
		s, err = store.SudoRecord{}, store.ErrNotFound
	}
	return s, notFound(err, "sudo entitlement", id)
}

// CreateSudo makes a sudo entitlement, which nobody has until a group in a
// project is given it.
func (p *Platform) CreateSudo(ctx context.Context, a Actor, r SudoRequest) (sft.SudoEntitlement, error) {
	s := store.SudoRecord{}
	a.gives(func() any { return s.SudoEntitlement })
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		if s.SudoEntitlement, err = r.checked(); err != nil {
			return audit.Event{}, err
		}
		s.TeamID, s.ID, s.CreatedAt = k.team.ID, audit.NewID(), p.Now().UTC()
		e := p.event(a, audit.SudoCreate, k.team.Name, "", s.Name)
		tell(&e, s.SudoEntitlement)
		return e, exists(tx.AddSudo(s), "sudo entitlement", s.Name)
	})
	return s.SudoEntitlement, p.named(ctx, r.Team, err, func(tx *store.Tx, teamID string) (string, error) {
		there, err := tx.Sudo(teamID, s.Name)
		return there.ID, err
	})
}

// UpdateSudo replaces what a sudo entitlement allows. Hosts hear of it at
// once.
func (p *Platform) UpdateSudo(ctx context.Context, a Actor, r SudoRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		s, err := sudoIn(tx, k, r.Sudo)
		if err != nil {
			return audit.Event{}, err
		}
		now, err := r.checked()
		if err != nil {
			return audit.Event{}, err
		}
		now.ID, now.CreatedAt = s.ID, s.CreatedAt
		if err := differ(s.SudoEntitlement, now); err != nil {
			return audit.Event{}, err
		}
		s.SudoEntitlement = now
		e := p.event(a, audit.SudoUpdate, k.team.Name, "", s.Name)
		tell(&e, now)
		if err := exists(tx.SaveSudo(s), "sudo entitlement", s.Name); err != nil {
			return e, err
		}
		projects, err := tx.SudoProjects(s.ID)
		if err != nil {
			return e, err
		}
		for _, pr := range projects {
			if err := tx.Revise(pr.ID); err != nil {
				return e, err
			}
		}
		return e, nil
	})
}

// DeleteSudo deletes a sudo entitlement that no group has in any project.
func (p *Platform) DeleteSudo(ctx context.Context, a Actor, r SudoRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		s, err := sudoIn(tx, k, r.Sudo)
		if err != nil {
			return audit.Event{}, err
		}
		projects, err := tx.SudoProjects(s.ID)
		if err != nil {
			return audit.Event{}, err
		}
		if len(projects) > 0 {
			var names []string
			for _, pr := range projects {
				names = append(names, pr.Name)
			}
			return audit.Event{}, &sft.Error{Code: sft.Exists, Msg: fmt.Sprintf("groups still have the sudo entitlement %s, in: %s", sft.Quote(s.Name), strings.Join(names, ", ")),
				Hint: "take it out of the groups of these projects first"}
		}
		e := p.event(a, audit.SudoRemove, k.team.Name, "", s.Name)
		e.Detail = map[string]string{"entitlement": s.ID}
		return e, tx.RemoveSudo(s.ID)
	})
}

// sudoOf finds the entitlements of these names, each once, by name.
func sudoOf(tx *store.Tx, teamID string, names []string) ([]store.SudoRecord, error) {
	if len(names) > maxSudoGroup {
		return nil, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the group would have %d sudo entitlements in the project", len(names)), Hint: fmt.Sprintf("give it up to %d", maxSudoGroup)}
	}
	var list []store.SudoRecord
	for _, name := range names {
		s, err := tx.Sudo(teamID, name)
		if err != nil {
			return nil, notFound(err, "sudo entitlement", name)
		}
		if !slices.ContainsFunc(list, func(o store.SudoRecord) bool { return o.ID == s.ID }) {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b store.SudoRecord) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}
