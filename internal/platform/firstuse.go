package platform

import (
	"context"

	"sft"
	"sft/internal/audit"
	"sft/internal/store"
)

// NewFirstUse makes a new one-time sign-in link for a person; those before it
// end, and the old password stays until it is used. An empty team is the first
// one.
//
// No Actor asks: this is for whoever holds the platform's own files, so that
// nobody is locked out for good. That the master key is there is checked, and
// the event says which way it went.
func (p *Platform) NewFirstUse(ctx context.Context, team, user string) (string, error) {
	if _, err := p.tokenKey(ctx); err != nil {
		return "", err
	}
	if team == "" {
		team = p.OneTeam(ctx)
	}
	var link string
	err := p.change(ctx, Actor{}, func(tx *store.Tx) (audit.Event, error) {
		t, err := tx.Team(team)
		if err != nil {
			return audit.Event{}, notFound(err, "team", team)
		}
		u, err := tx.User(t.ID, user)
		switch {
		case err != nil:
			return audit.Event{}, notFound(err, "user", user)
		case u.Type != sft.Human:
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: sft.Quote(u.Name) + " is a service user, which signs in with a key", Hint: "name a person"}
		case u.Status != sft.StatusActive:
			return audit.Event{}, &sft.Error{Code: sft.Denied, Msg: "user " + sft.Quote(u.Name) + " is not active", Hint: "have an administrator of the team make the user active first"}
		}
		e := p.event(Actor{}, audit.PasswordChange, t.Name, "", u.Name)
		e.Actor = audit.Actor{Kind: "platform", Name: "first-use"}
		e.Detail = map[string]string{"how": "one-time link made"}
		link, err = p.firstUse(tx, u.ID)
		return e, err
	})
	return link, err
}
