package platform

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/policy"
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
			if err := p.newCA(tx, "", ca.Platform, "sft platform CA"); err != nil {
				return done, err
			}
			list, err := p.authorities(tx, "", ca.Platform)
			if err != nil {
				return done, err
			}
			reply.CAFingerprint = ca.Fingerprint(list[0].Certificate())
			if err := tx.SetSetting("ca_fingerprint", reply.CAFingerprint); err != nil {
				return done, err
			}
		}
		team := sft.Team{ID: audit.NewID(), Name: r.Team, CreatedAt: now().UTC(), ClientSession: 36000, AllowDeviceCode: true}
		if err := tx.AddTeam(team); err != nil {
			return done, err
		}
		if _, err := p.newGroup(tx, team.ID, sft.Everyone, []sft.Role{sft.AccessUser}); err != nil {
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
		if r.ServiceUser != "" {
			su, err := p.newUser(tx, team.ID, r.ServiceUser, "", "", sft.Service)
			if err != nil {
				return done, err
			}
			k, err := p.newKey(tx, su.ID)
			if err != nil {
				return done, err
			}
			reply.Key = &k
			// Its own group, so that the owners are people.
			g, err := p.newGroup(tx, team.ID, "automation", []sft.Role{sft.AccessAdmin})
			if err != nil {
				return done, err
			}
			if _, err := tx.AddMember(g.ID, su.ID); err != nil {
				return done, err
			}
			tx.Also(event(audit.UserCreate, "", su.Name))
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
			t, err := p.newEnrollmentToken(tx, pr.ID, owner.Name, TokenRequest{Description: "made by init"})
			if err != nil {
				return done, err
			}
			reply.Token = t.Token
			tx.Also(event(audit.ProjectCreate, pr.Name, pr.Name))
			tx.Also(event(audit.TokenCreate, pr.Name, t.ID))
		}
		return event(audit.TeamCreate, "", team.Name), nil
	})
	return reply, err
}

// platformCA returns the certificate of the platform's own CA, or nothing
// when it serves a certificate by another.
func (p *Platform) platformCA(tx *store.Tx) ([]byte, error) {
	if f, err := p.caFingerprint(tx); err != nil || f == "" {
		return nil, err
	}
	list, err := p.authorities(tx, "", ca.Platform)
	if err != nil {
		return nil, err
	}
	return list[len(list)-1].Certificate(), nil
}

// Certificate returns a source of the platform's TLS certificate by its own
// CA. The key lives in memory; a new pair is made when half the life of the
// old one is over.
func (p *Platform) Certificate(ctx context.Context) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	u, err := url.Parse(p.URL)
	if err != nil {
		return nil, err
	}
	make := func() (*tls.Certificate, time.Time, error) {
		var a *ca.Authority
		if err := p.DB.Read(ctx, func(tx *store.Tx) error {
			if f, err := p.caFingerprint(tx); err != nil || f == "" {
				return errors.Join(err, errors.New("the platform has no CA of its own; give --tls-cert and --tls-key"))
			}
			list, err := p.authorities(tx, "", ca.Platform)
			if err == nil {
				a = list[len(list)-1]
			}
			return err
		}); err != nil {
			return nil, time.Time{}, err
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, time.Time{}, err
		}
		chain, until, err := a.IssuePlatform(&key.PublicKey, u.Hostname(), p.Now())
		if err != nil {
			return nil, time.Time{}, fmt.Errorf("make the platform's certificate: %w", err)
		}
		return &tls.Certificate{Certificate: chain, PrivateKey: key}, p.Now().Add(until.Sub(p.Now()) / 2), nil
	}
	var mu sync.Mutex
	cert, renew, err := make()
	if err != nil {
		return nil, err
	}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if p.Now().After(renew) {
			if c, r, err := make(); err == nil {
				cert, renew = c, r
			} else {
				p.Log.Error("renew the platform's certificate", "error", err)
			}
		}
		return cert, nil
	}, nil
}

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
