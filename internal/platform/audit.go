package platform

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"sft"
	"sft/internal/audit"
	"sft/internal/policy"
	"sft/internal/store"
)

// AuditsRequest is GET /v1/teams/{team}/auditsV2.
type AuditsRequest struct {
	Team       string `path:"team" json:"-"`
	Count      int    `query:"count" json:"-"`      // 1 to 1000, default 100
	Offset     string `query:"offset" json:"-"`     // the id of the last event of the page before
	Descending string `query:"descending" json:"-"` // "true": newest first
	Kind       string `query:"type" json:"-"`       // what happened, as "group.create"
	User       string `query:"user" json:"-"`       // who did it or, of what a host tells, whose it is
	Target     string `query:"target" json:"-"`     // what was acted on, as the event says it
	From       string `query:"from" json:"-"`       // RFC 3339: when it was recorded, in milliseconds
	To         string `query:"to" json:"-"`         // before that moment
}

// ListEvents returns a page of what happened in a team, oldest first, in the
// order in which it was recorded: a page goes on where the one before ended.
// What is recorded at the same time becomes visible in any order, so who must
// not miss anything of the last seconds takes an export, which goes by numbers.
func (p *Platform) ListEvents(ctx context.Context, a Actor, r AuditsRequest) ([]audit.Event, error) {
	return read(ctx, p, a, r.Team, policy.ReadAudit, func(tx *store.Tx, k asker) ([]audit.Event, error) {
		if r.Count == 0 {
			r.Count = 100
		}
		if r.Count < 1 || r.Count > 1000 {
			return nil, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("count is %d", r.Count), Hint: "use 1 to 1000"}
		}
		if _, err := uuid.Parse(r.Offset); r.Offset != "" && err != nil {
			return nil, &sft.Error{Code: sft.Invalid, Msg: "offset is " + sft.Quote(r.Offset), Hint: "use the id of the last event of the page before"}
		}
		q := store.EventQuery{Team: k.team.Name, Kind: audit.Kind(r.Kind), Who: r.User, Target: r.Target, After: r.Offset, Count: r.Count, Descending: r.Descending == "true"}
		var err error
		if q.From, err = moment("from", r.From); err != nil {
			return nil, err
		}
		if q.Before, err = moment("to", r.To); err != nil {
			return nil, err
		}
		return tx.FindEvents(q)
	})
}

func moment(name, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, &sft.Error{Code: sft.Invalid, Msg: name + " is " + sft.Quote(s), Hint: "use RFC 3339, as in 2026-01-31T12:00:00Z, with %2B for a plus"}
	}
	return t, nil
}

// ownEvent begins the event of what the platform does by itself, or whoever
// holds its files. It is of the first team, whose administrators can see it.
func (p *Platform) ownEvent(tx *store.Tx, kind audit.Kind, target string) (audit.Event, error) {
	team, err := tx.Setting("first_team")
	e := p.event(Actor{}, kind, team, "", target)
	e.Actor = audit.Actor{Kind: "platform", Name: string(kind)}
	return e, err
}
