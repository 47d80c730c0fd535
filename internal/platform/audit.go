package platform

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/policy"
	"sft/internal/store"
)

// AuditsRequest is GET /v1/teams/{team}/auditsV2.
type AuditsRequest struct {
	Team       string `path:"team" json:"-"`
	Count      int    `query:"count" json:"-" min:"1" max:"1000" default:"100"` // how many there are on a page
	Offset     string `query:"offset" json:"-"`                                 // the id of the last event of the page before; empty: from the first on
	Descending string `query:"descending" json:"-"`                             // "true": newest first
	Kind       string `query:"type" json:"-"`                                   // what happened, as "group.create"
	User       string `query:"user" json:"-"`                                   // who did it or, of what a host tells, whose it is
	Target     string `query:"target" json:"-"`                                 // what was acted on, as the event says it
	Session    string `query:"session" json:"-"`                                // the id of the session in whose course it was, or for which
	From       string `query:"from" json:"-"`                                   // RFC 3339: when it was recorded, in milliseconds. Forward, what a platform recorded whose clock is over 15 minutes ahead of others' may be missing
	To         string `query:"to" json:"-"`                                     // before that moment
}

// ListEvents returns a page of what happened in a team, oldest first, in the
// order of the numbers by which it is sealed: a page goes on where the one
// before ended, and whoever goes on from page to page is given each event once
// and misses none, whenever it became visible. What was stored before a page
// was asked for is sealed for it. Descending, or with to, pages are in the order
// of ids, which is that of when it was recorded: what was under way when a page
// was read may be missing.
func (p *Platform) ListEvents(ctx context.Context, a Actor, r AuditsRequest) (api.List[audit.Event], error) {
	list, full, err := p.listEvents(ctx, a, r)
	l := api.List[audit.Event]{List: list}
	if full && err == nil {
		l.Next = list[len(list)-1].ID
	}
	return l, err
}

// listEvents is ListEvents; full says that the page is.
func (p *Platform) listEvents(ctx context.Context, a Actor, r AuditsRequest) (list []audit.Event, full bool, err error) {
	var whole bool // as of the moment when it was read
	page := func() ([]audit.Event, error) {
		return read(ctx, p, a, r.Team, policy.ReadAudit, func(tx *store.Tx, k asker) ([]audit.Event, error) {
			q, err := r.query(k.team.Name)
			if err != nil {
				return nil, err
			}
			list, err := tx.FindEvents(q)
			full = err == nil && len(list) == q.Count
			if whole = full || !q.Numbered; err != nil || whole {
				return list, err
			}
			more, err := tx.Unsealed()
			whole = !more
			return list, err
		})
	}
	list, err = page()
	if err != nil || whole {
		return list, full, err
	}
	// Another platform may have sealed them by now. Where sealing fails Run says
	// so, and there is nothing to add to the page.
	if _, err := p.Seal(ctx); err != nil {
		return list, full, nil
	}
	list, err = page()
	return list, full, err
}

// query is what is asked of the store.
func (r AuditsRequest) query(team string) (store.EventQuery, error) {
	q := store.EventQuery{Team: team, Kind: audit.Kind(r.Kind), Who: r.User, Target: r.Target, Session: r.Session, After: r.Offset, Count: r.Count}
	if q.Count == 0 {
		q.Count = 100
	}
	if q.Count < 1 || q.Count > 1000 {
		return q, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("count is %d", q.Count), Hint: "use 1 to 1000"}
	}
	if _, err := uuid.Parse(r.Offset); r.Offset != "" && err != nil {
		return q, &sft.Error{Code: sft.Invalid, Msg: "offset is " + sft.Quote(r.Offset), Hint: "use the id of the last event of the page before"}
	}
	if q.Kind != "" && !slices.Contains(audit.Kinds, q.Kind) {
		return q, &sft.Error{Code: sft.Invalid, Msg: "there are no events of the type " + sft.Quote(r.Kind), Hint: "use one that there is, as " + string(nearest(q.Kind))}
	}
	var err error
	if q.Descending, err = flag("descending", r.Descending); err != nil {
		return q, err
	}
	if q.From, err = moment("from", r.From); err != nil {
		return q, err
	}
	if q.Before, err = moment("to", r.To); err == nil && r.To != "" && q.From.After(q.Before) {
		err = &sft.Error{Code: sft.Invalid, Msg: "from is after to", Hint: "give the earlier time as from"}
	}
	q.Numbered = !q.Descending && q.Before.IsZero()
	return q, err
}

// nearest is the kind of event whose name is the least changes away.
func nearest(k audit.Kind) audit.Kind {
	k = k[:min(len(k), 100)]
	return slices.MinFunc(audit.Kinds, func(a, b audit.Kind) int { return Distance(string(a), string(k)) - Distance(string(b), string(k)) })
}

// Distance is how many bytes have to be put in, taken out or changed to make
// one text of another.
func Distance(a, b string) int {
	row := make([]int, len(b)+1) // from nothing of a
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0] // of the row above, one to the left
		row[0] = i + 1
		for j := range len(b) {
			change := before
			if a[i] != b[j] {
				change++
			}
			before = row[j+1]
			row[j+1] = min(change, before+1, row[j]+1)
		}
	}
	return row[len(b)]
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
