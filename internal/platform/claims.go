package platform

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/policy"
	"sft/internal/store"
)

// maxClaims caps a batch of a client's events.
const maxClaims = 20

// ClientEventsRequest is POST /v1/teams/{team}/client_events.
type ClientEventsRequest struct {
	Team string `path:"team" json:"-"`
	api.ClientEventsRequest
}

// ClientEvents records what a client says happened in its own sessions: all
// of the batch or none, each event once, and marked as a claim, because a
// person is free to send from the client's machine what they like.
func (p *Platform) ClientEvents(ctx context.Context, a Actor, r ClientEventsRequest) (struct{}, error) {
	if a.Client == "" {
		return struct{}{}, errNobody
	}
	if len(r.Events) == 0 || len(r.Events) > maxClaims {
		return struct{}{}, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the batch has %d events", len(r.Events)), Hint: fmt.Sprintf("send 1 to %d", maxClaims)}
	}
	if !p.limits.allow(p.Now(), "claims:"+a.Client, 10*time.Second, 20) {
		return struct{}{}, &sft.Error{Code: sft.TooMany, Msg: "the client sends too much", Hint: "wait a minute, then try again"}
	}
	for _, ev := range r.Events {
		if err := checkSent("clients", audit.FromClient, api.Event{ID: ev.ID, Time: ev.Time, Kind: ev.Kind, Session: ev.Session, Detail: ev.Detail}, true); err != nil {
			return struct{}{}, err
		}
	}
	// In one order, whoever sends them: two that add the same events do not
	// wait for one another.
	slices.SortStableFunc(r.Events, func(a, b api.ClientEvent) int { return strings.Compare(a.ID, b.ID) })
	return struct{}{}, p.add(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.OwnClient)
		if err != nil {
			return audit.Event{}, err
		}
		if _, err := p.signedIn(tx.Notes, a); err != nil {
			return audit.Event{}, err
		}
		var last audit.Event
		for i, ev := range r.Events {
			v, err := tx.Session(ev.Session)
			if errors.Is(err, store.ErrNotFound) || err == nil && v.ClientID != a.Client {
				return audit.Event{}, &sft.Error{Code: sft.NotFound, Msg: "there is no such session", Hint: "send events of the client's own sessions"}
			}
			if err != nil {
				return audit.Event{}, err
			}
			s, err := tx.ServerByID(v.ServerID) // deleted or not
			if err != nil {
				return audit.Event{}, err
			}
			project, err := tx.ProjectName(v.ProjectID) // which the server may have left
			if err != nil {
				return audit.Event{}, err
			}
			e := p.event(a, audit.Kind(ev.Kind), k.team.Name, project, s.Server(p.Now()).Name())
			e.Time, e.Session, e.Outcome = ev.Time.UTC(), v.ID, audit.Refused
			e.Source = "client:" + a.Client + "/" + ev.ID
			e.Detail = map[string]string{}
			maps.Copy(e.Detail, ev.Detail)
			delete(e.Detail, "user") // the actor is, whatever the client says
			e.Detail[audit.ClaimedBy] = "client"
			if i > 0 {
				tx.Also(last)
			}
			last = e
		}
		return last, nil
	})
}
