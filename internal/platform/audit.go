package platform

import (
	"context"
	"fmt"

	"sft"
	"sft/internal/audit"
	"sft/internal/policy"
	"sft/internal/store"
)

// AuditsRequest is GET /v1/teams/{team}/auditsV2.
type AuditsRequest struct {
	Team       string `path:"team" json:"-"`
	Count      int    `query:"count" json:"-"`  // 1 to 1000, default 100
	Offset     string `query:"offset" json:"-"` // the id of the last event of the page before
	Descending string `query:"descending" json:"-"`
}

// ListEvents returns a page of what happened in a team, oldest first.
func (p *Platform) ListEvents(ctx context.Context, a Actor, r AuditsRequest) ([]audit.Event, error) {
	return read(ctx, p, a, r.Team, policy.ReadAudit, func(tx *store.Tx, k asker) ([]audit.Event, error) {
		if r.Count == 0 {
			r.Count = 100
		}
		if r.Count < 1 || r.Count > 1000 {
			return nil, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("count is %d", r.Count), Hint: "use 1 to 1000"}
		}
		return tx.Events(k.team.Name, r.Offset, r.Count, r.Descending == "true")
	})
}
