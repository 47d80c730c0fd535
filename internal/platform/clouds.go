package platform

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/cloudid"
	"sft/internal/policy"
	"sft/internal/store"
)

// CloudAccountRequest names a cloud account of a project by its id; the body
// of POST is the account.
type CloudAccountRequest struct {
	Team        string `path:"team" json:"-"`
	Project     string `path:"project" json:"-"`
	ID          string `path:"id" json:"-"`
	Provider    string `json:"provider"`   // aws
	AccountID   string `json:"account_id"` // 12 digits
	Description string `json:"description,omitempty"`
}

// CreateCloudAccount lets the instances of an account enrol in a project.
func (p *Platform) CreateCloudAccount(ctx context.Context, a Actor, r CloudAccountRequest) (sft.CloudAccount, error) {
	var c store.CloudAccountRecord
	a.gives(func() any { return c.CloudAccount })
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, pr, err := p.inProject(tx, a, r.Team, r.Project, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		if err := cloudid.CheckAccount(r.Provider, r.AccountID); err != nil {
			return audit.Event{}, err
		}
		if !oneLine(r.Description, 200) {
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "the description cannot be used", Hint: "use up to 200 characters in one line"}
		}
		c = store.CloudAccountRecord{ProjectID: pr.ID, CloudAccount: sft.CloudAccount{ID: audit.NewID(), Provider: r.Provider, AccountID: r.AccountID,
			Description: r.Description, CreatedBy: k.user.Name, CreatedAt: p.Now().UTC()}}
		e := p.event(a, audit.CloudCreate, k.team.Name, pr.Name, r.Provider+":"+r.AccountID)
		e.Detail = map[string]string{"id": c.ID, "description": r.Description}
		err = tx.AddCloudAccount(c)
		if errors.Is(err, store.ErrExists) {
			err = &sft.Error{Code: sft.Exists, Msg: "AWS account " + r.AccountID + " is bound to a project already", Hint: "delete it there first: an account belongs to one project of the whole installation"}
		}
		return e, err
	})
	return c.CloudAccount, p.named(ctx, r.Team, err, func(tx *store.Tx, teamID string) (string, error) {
		there, err := tx.CloudAccount(r.Provider, r.AccountID)
		if err != nil {
			return "", err
		}
		in, err := tx.Project(teamID, r.Project)
		if err != nil || in.ID != there.ProjectID {
			return "", err // of another project, or of another team, which is not to be told
		}
		return there.ID, nil
	})
}

// ListCloudAccounts returns the cloud accounts of a project.
func (p *Platform) ListCloudAccounts(ctx context.Context, a Actor, r InProjectRequest) (api.List[sft.CloudAccount], error) {
	return listIn(ctx, p, a, r, policy.Read, func(c store.CloudAccountRecord) string { return c.ID },
		func(tx *store.Tx, pr store.ProjectRecord, g store.Page) ([]store.CloudAccountRecord, error) {
			return tx.CloudAccountsByID(pr.ID, g)
		},
		func(c store.CloudAccountRecord) sft.CloudAccount { return c.CloudAccount })
}

// GetCloudAccount returns one cloud account.
func (p *Platform) GetCloudAccount(ctx context.Context, a Actor, r CloudAccountRequest) (sft.CloudAccount, error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (sft.CloudAccount, error) {
		pr, err := tx.Project(k.team.ID, r.Project)
		if err != nil {
			return sft.CloudAccount{}, notFound(err, "project", r.Project)
		}
		c, err := tx.CloudAccountByID(pr.ID, r.ID)
		return c.CloudAccount, notFound(err, "cloud account", r.ID)
	})
}

// DeleteCloudAccount ends enrolment by an account; servers that used it stay.
func (p *Platform) DeleteCloudAccount(ctx context.Context, a Actor, r CloudAccountRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, pr, err := p.inProject(tx, a, r.Team, r.Project, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		c, err := tx.CloudAccountByID(pr.ID, r.ID)
		if err != nil {
			return audit.Event{}, notFound(err, "cloud account", r.ID)
		}
		e := p.event(a, audit.CloudDelete, k.team.Name, pr.Name, c.Provider+":"+c.AccountID)
		e.Detail = map[string]string{"id": c.ID}
		return e, tx.RemoveCloudAccount(pr.ID, c.ID)
	})
}

// instance verifies the cloud's word in an enrolment; nil is one by a token.
func (p *Platform) instance(r api.EnrollServerRequest) (*sft.InstanceDetails, error) {
	c := r.CloudIdentity
	if c == nil && r.OldKeyProof != "" {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "an old key has signed for a server that enrols by a token", Hint: "leave old_key_proof out: a token makes a record of its own"}
	}
	if c == nil {
		return nil, nil
	}
	if r.Token != "" {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "the enrolment has both a token and a cloud identity", Hint: "send one of them"}
	}
	if c.Provider != cloudid.AWSName {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "provider " + sft.Quote(c.Provider) + " is unknown", Hint: "use an enrollment token"}
	}
	d, err := p.AWS.Verify(c.Document, c.Signature, p.Now())
	if err != nil {
		return nil, err
	}
	return &d, nil
}

// mayTakeOver decides whether an instance that enrols with another device key
// gets the record old, and says how: an administrator has allowed it, or the
// record's own key has signed for the new one. Neither moves the record to
// another project.
func (p *Platform) mayTakeOver(tx *store.Tx, old store.ServerRecord, pr store.ProjectRecord, r api.EnrollServerRequest) (how string, err error) {
	no := func(why string) (string, error) {
		return "", &sft.Error{Code: sft.Enrolled, Msg: "instance " + old.Instance.InstanceID + " is enrolled already, with another device key" + why,
			Hint: "let an administrator delete its record, or set reenroll_allowed on it if it is in the same project; do so only if you know who asks"}
	}
	switch {
	case old.ProjectID != pr.ID:
		return no("")
	case old.ReenrollAllowed:
		return "took its record over", nil
	case r.OldKeyProof == "":
		return no("")
	}
	c, err := api.VerifyKey(r.OldKeyProof, p.URL, r.DeviceKey, p.Now(), func(issuer string) (*ecdsa.PublicKey, error) {
		if issuer != "server:"+old.ID {
			return nil, &sft.Error{Code: sft.Enrolled, Msg: "it is of another server"}
		}
		return ca.PublicKey(old.DeviceKey)
	})
	if code := sft.CodeOf(err); err != nil && code != sft.ClockSkew && code != sft.Internal {
		return no(", which has not signed for this one: " + err.Error())
	} else if err != nil {
		return "", err
	}
	if err := p.once(tx.Notes, Actor{RequestID: c.ID, RequestExpires: time.Unix(c.Expires, 0)}); err != nil {
		return "", err
	}
	return "took its record over, by its old key", nil
}

func sameInstance(a, b *sft.InstanceDetails) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.InstanceID == b.InstanceID
}

// admitInstance finds the project of an instance. That the cloud has signed
// for the instance does not say who sends it: each of its users can. So an
// instance enrols once, until its record is deleted or mayTakeOver says that it
// gets the record; and never with a document from before it was last
// started.
func admitInstance(tx *store.Tx, provider string, d sft.InstanceDetails) (admission, error) {
	var in admission
	c, err := tx.CloudAccount(provider, d.AccountID)
	if errors.Is(err, store.ErrNotFound) {
		return in, &sft.Error{Code: sft.Denied, Msg: "AWS account " + d.AccountID + " is bound to no project",
			Hint: "let an administrator add it to the project's cloud accounts, or use an enrollment token"}
	}
	if err != nil {
		return in, err
	}
	if in.project, err = tx.ProjectByID(c.ProjectID); err != nil {
		return in, err
	}
	in.detail = map[string]string{"account": c.Provider + ":" + c.AccountID, "instance": d.InstanceID}
	started, err := tx.InstanceStarted(provider, d.InstanceID)
	if err != nil {
		return in, err
	}
	if d.PendingTime.Before(started) {
		return in, &sft.Error{Code: sft.Denied, Msg: "the identity document of instance " + d.InstanceID + " is from before the instance was last started", Hint: "fetch it anew from the instance's metadata service"}
	}
	old, err := tx.ServerByInstance(provider, d.InstanceID)
	if errors.Is(err, store.ErrNotFound) {
		return in, nil
	}
	if err != nil {
		return in, err
	}
	in.record = &old
	return in, nil
}
