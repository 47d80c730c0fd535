package platform

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/policy"
	"sft/internal/store"
)

// TokenRequest names an enrollment token; the body of POST is the token.
type TokenRequest struct {
	Team        string     `path:"team" json:"-"`
	Project     string     `path:"project" json:"-"`
	ID          string     `path:"id" json:"-"`
	Description string     `json:"description,omitempty"`
	ExpiresAt   *time.Time `json:"expires_at,omitempty"` // in the future; empty: it does not end by itself
	MaxUses     int64      `json:"max_uses,omitempty"`   // 0: no limit
}

// TokenReply shows an enrollment token, once.
type TokenReply struct {
	sft.EnrollmentToken
	Token string `json:"token"` // what goes into the agent's token file
}

// CreateToken makes an enrollment token for a project's servers.
func (p *Platform) CreateToken(ctx context.Context, a Actor, r TokenRequest) (TokenReply, error) {
	var reply TokenReply
	a.givesOnce("the enrollment token", &reply.ID, "delete it and make another")
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, pr, err := p.inProject(tx, a, r.Team, r.Project, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		reply, err = p.newEnrollmentToken(tx, pr.ID, k.user.Name, r)
		e := p.event(a, audit.TokenCreate, k.team.Name, pr.Name, reply.ID)
		e.Detail = tellToken(r)
		return e, err
	})
	return reply, err
}

// tellToken is what the event of a token's making says of it.
func tellToken(r TokenRequest) map[string]string {
	detail := map[string]string{"description": r.Description}
	if r.MaxUses > 0 {
		detail["max_uses"] = fmt.Sprint(r.MaxUses)
	}
	if r.ExpiresAt != nil {
		detail["expires_at"] = r.ExpiresAt.UTC().Format(time.RFC3339)
	}
	return detail
}

func (p *Platform) newEnrollmentToken(tx *store.Tx, projectID, by string, r TokenRequest) (TokenReply, error) {
	var reply TokenReply
	switch {
	case !oneLine(r.Description, 200):
		return reply, &sft.Error{Code: sft.Invalid, Msg: "the description is too long, or more than a line", Hint: "use up to 200 characters in one line"}
	case r.MaxUses < 0:
		return reply, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("max_uses is %d", r.MaxUses), Hint: "use 1 or more, or 0 for no limit"}
	case r.ExpiresAt != nil && !r.ExpiresAt.After(p.Now()):
		return reply, &sft.Error{Code: sft.Invalid, Msg: "expires_at is " + r.ExpiresAt.UTC().Format(time.RFC3339) + ", which is over", Hint: "give a time in the future, or leave it out for no end"}
	}
	if r.ExpiresAt != nil {
		until := r.ExpiresAt.UTC().Truncate(time.Microsecond) // as it is stored
		r.ExpiresAt = &until
	}
	secret, hash := newToken()
	t := store.TokenRecord{ProjectID: projectID, SecretHash: hash}
	t.ID, t.Description, t.CreatedBy, t.IssuedAt, t.ExpiresAt, t.MaxUses = audit.NewID(), r.Description, by, p.Now().UTC(), r.ExpiresAt, r.MaxUses
	fingerprint, err := p.caFingerprint(tx)
	if err != nil {
		return reply, err
	}
	b, err := json.Marshal(api.EnrollmentToken{Secret: secret.Reveal(), URL: p.URL, Fingerprint: strings.TrimPrefix(fingerprint, "sha256:")})
	if err != nil {
		return reply, err
	}
	reply = TokenReply{t.EnrollmentToken, base64.StdEncoding.EncodeToString(b)}
	return reply, tx.AddToken(t)
}

// ListTokens returns the enrollment tokens of a project, without their
// secrets, the oldest first.
func (p *Platform) ListTokens(ctx context.Context, a Actor, r InProjectRequest) (api.List[sft.EnrollmentToken], error) {
	return listIn(ctx, p, a, r, policy.ReadTokens, func(t store.TokenRecord) string { return t.ID },
		func(tx *store.Tx, pr store.ProjectRecord, g store.Page) ([]store.TokenRecord, error) {
			return tx.TokensByID(pr.ID, g)
		},
		func(t store.TokenRecord) sft.EnrollmentToken { return t.EnrollmentToken })
}

// GetToken returns one enrollment token, without its secret.
func (p *Platform) GetToken(ctx context.Context, a Actor, r TokenRequest) (sft.EnrollmentToken, error) {
	return read(ctx, p, a, r.Team, policy.ReadTokens, func(tx *store.Tx, k asker) (sft.EnrollmentToken, error) {
		pr, err := tx.Project(k.team.ID, r.Project)
		if err != nil {
			return sft.EnrollmentToken{}, notFound(err, "project", r.Project)
		}
		t, err := tx.TokenByID(pr.ID, r.ID)
		return t.EnrollmentToken, notFound(err, "enrollment token", r.ID)
	})
}

// DeleteToken ends an enrollment token; servers that used it stay.
func (p *Platform) DeleteToken(ctx context.Context, a Actor, r TokenRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, pr, err := p.inProject(tx, a, r.Team, r.Project, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		return p.event(a, audit.TokenDelete, k.team.Name, pr.Name, r.ID), notFound(tx.RemoveToken(pr.ID, r.ID), "enrollment token", r.ID)
	})
}
