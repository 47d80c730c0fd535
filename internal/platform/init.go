package platform

import (
	"context"
	"errors"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/store"
)

// InitRequest is what a new platform begins with.
type InitRequest struct {
	URL         string
	Team        string
	Owner       string // name of the first person
	ServiceUser string // empty: none
	Project     string // empty: none
	OwnCA       bool   // the platform serves a certificate by a CA of its own
}

// InitReply shows the new platform's secrets, once.
type InitReply struct {
	FirstUseURL   string
	CAFingerprint string    // empty without OwnCA
	Key           *KeyReply // of the service user
	Token         string    // enrollment token of the project
}

// errInit is returned by Init on a database that is in use.
var errInit = errors.New("the database is a platform's already; start it with \"sft-platform serve\", or give another database")

// Init makes a platform of an empty database: its keys and CA, the first
// team, its two groups, its owner. All of it, or nothing.
func Init(ctx context.Context, db *store.DB, s ca.Sealer, r InitRequest, now func() time.Time) (InitReply, error) {
	var reply InitReply
	u, err := api.CheckURL(r.URL)
	if err != nil {
		return reply, err
	}
	if err := sft.CheckName("team", r.Team); err != nil {
		return reply, err
	}
	if now == nil {
		now = time.Now
	}
	p := &Platform{DB: db, Sealer: s, URL: u, Now: now, opened: map[string]*ca.Authority{}}
	me := Actor{}
	event := func(kind audit.Kind, project, target string) audit.Event {
		e := p.event(me, kind, r.Team, project, target)
		e.Actor = audit.Actor{Kind: "platform", Name: "init"}
		return e
	}
	err = db.Change(ctx, func(tx *store.Tx) (audit.Event, error) {
		done := audit.Event{}
		if _, err := tx.Setting("url"); !errors.Is(err, store.ErrNotFound) {
			return done, errors.Join(err, errInit)
		}
		if err := errors.Join(tx.SetSetting("url", u), tx.SetSetting("first_team", r.Team), newTokenKey(tx, s)); err != nil {
			return done, err
		}
		if r.OwnCA {
			if err := p.newCA(tx, store.CARecord{Stage: store.CAActive}, ca.Platform, "sft platform CA"); err != nil {
				return done, err
			}
			list, err := p.authorities(tx, "", ca.Platform)
			if err != nil {
				return done, err
			}
			reply.CAFingerprint = ca.Fingerprint(list.signer(ca.Platform).Certificate())
			if err := tx.SetSetting("ca_fingerprint", reply.CAFingerprint); err != nil {
				return done, err
			}
		}
		team := sft.Team{ID: audit.NewID(), Name: r.Team, CreatedAt: now().UTC(), ClientSession: 36000, WebSession: 36000, AllowDeviceCode: true}
		if err := tx.AddTeam(team); err != nil {
			return done, err
		}
		everyone, err := p.newGroup(tx, team.ID, sft.Everyone, []sft.Role{sft.AccessUser})
		if err != nil {
			return done, err
		}
		owners, err := p.newGroup(tx, team.ID, sft.Owners, []sft.Role{sft.AccessAdmin})
		if err != nil {
			return done, err
		}
		owner, err := p.newUser(tx, team.ID, r.Owner, "", "", sft.Human)
		if err != nil {
			return done, err
		}
		if reply.FirstUseURL, err = p.firstUse(tx, owner.ID); err != nil {
			return done, err
		}
		tx.Also(event(audit.UserCreate, "", owner.Name))
		if _, err := tx.AddMember(owners.ID, owner.ID); err != nil {
			return done, err
		}
		for _, g := range []store.GroupRecord{everyone, owners} {
			e := event(audit.GroupCreate, "", g.Name)
			e.Detail = rolesOf(g)
			tx.Also(e)
		}
		e := event(audit.MemberAdd, "", owner.Name)
		e.Detail = map[string]string{"group": owners.Name}
		tx.Also(e)
		if r.ServiceUser != "" {
			su, err := p.newAutomation(tx, team, r.ServiceUser, e.Actor)
			if err != nil {
				return done, err
			}
			k, err := p.newKey(tx, su.ID)
			if err != nil {
				return done, err
			}
			reply.Key = &k
			e := event(audit.KeyRotate, "", su.Name)
			e.Detail = map[string]string{"key": k.ID}
			tx.Also(e)
		}
		if r.Project != "" {
			pr, err := p.newProject(tx, team.ID, ProjectRequest{Name: r.Project})
			if err != nil {
				return done, err
			}
			pg := store.ProjectGroupRecord{ProjectID: pr.ID, GroupID: owners.ID, ProjectGroup: sft.ProjectGroup{Group: owners.Name, ServerAccess: true, ServerAdmin: true, CreatedAt: now().UTC()}}
			if err := tx.AddProjectGroup(pg); err != nil {
				return done, err
			}
			want := TokenRequest{Description: "made by init"}
			t, err := p.newEnrollmentToken(tx, pr.ID, owner.Name, want)
			if err != nil {
				return done, err
			}
			reply.Token = t.Token
			tx.Also(event(audit.ProjectCreate, pr.Name, pr.Name))
			in := event(audit.ProjectGroup, pr.Name, owners.Name)
			in.Detail = map[string]string{"server_access": "true", "server_admin": "true"}
			tx.Also(in)
			e := event(audit.TokenCreate, pr.Name, t.ID)
			e.Detail = tellToken(want)
			tx.Also(e)
		}
		return event(audit.TeamCreate, "", team.Name), nil
	})
	return reply, err
}
