package platform

import (
	"context"

	"sft"
	"sft/internal/policy"
	"sft/internal/store"
)

// TeamStats are how many there are of each in a team; deleted ones do not
// count.
type TeamStats struct {
	Clients      int64 `json:"num_clients"`       // enrolled clients
	Gateways     int64 `json:"num_gateways"`      // 0: there is no such thing here
	Groups       int64 `json:"num_groups"`        // with everyone and owners
	HumanUsers   int64 `json:"num_human_users"`   // people
	Projects     int64 `json:"num_projects"`      // not deleted
	Servers      int64 `json:"num_servers"`       // those without an agent, too
	ServiceUsers int64 `json:"num_service_users"` // programs
}

// Stats counts what a team has.
func (p *Platform) Stats(ctx context.Context, a Actor, r TeamRequest) (TeamStats, error) {
	return read(ctx, p, a, r.Team, policy.Administer, func(tx *store.Tx, k asker) (TeamStats, error) {
		c, err := tx.Count(k.team.ID)
		return TeamStats{c.Clients, 0, c.Groups, c.HumanUsers, c.Projects, c.Servers, c.ServiceUsers}, err
	})
}

// CurrentUser is who asks, and what their groups let them do in the team.
type CurrentUser struct {
	sft.User
	Roles []sft.Role `json:"roles"` // that count for this request
}

// WhoAmI tells who asks.
func (p *Platform) WhoAmI(ctx context.Context, a Actor, r TeamRequest) (CurrentUser, error) {
	return read(ctx, p, a, r.Team, policy.OwnClient, func(_ *store.Tx, k asker) (CurrentUser, error) {
		return CurrentUser{k.user.User, append([]sft.Role{}, k.roles...)}, nil // none are an empty list
	})
}
