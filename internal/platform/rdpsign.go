package platform

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/policy"
	"sft/internal/store"
)

// RDPSignerRequest names the team whose connection files are signed.
type RDPSignerRequest struct {
	Team string `path:"team" json:"-"`
}

// errNoRDPSigner is what a team gets that signs no connection files.
var errNoRDPSigner = &sft.Error{Code: sft.NotFound, Msg: "this team signs no connection files",
	Hint: "have an administrator POST rdp_signing_certificate, or run \"sft config rdp.sign false\""}

// rdpSigner returns what signs the connection files of a team, the newest.
func (p *Platform) rdpSigner(tx *store.Tx, teamID string) (*ca.Authority, error) {
	records, err := tx.CAs(teamID)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(records, func(r store.CARecord) bool { return r.Kind == string(ca.RDPSign) && r.NotAfter.After(p.Now()) }) {
		return nil, errNoRDPSigner
	}
	list, err := p.authorities(tx, teamID, ca.RDPSign)
	if err != nil {
		return nil, err
	}
	return list.signer(ca.RDPSign), nil
}

func rdpSigningCertificate(a *ca.Authority) (api.RDPSigningCertificate, error) {
	der := a.Certificate()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return api.RDPSigningCertificate{}, err
	}
	return api.RDPSigningCertificate{Certificate: der, Thumbprint: ca.Thumbprint(der), Fingerprint: ca.Fingerprint(der),
		Publisher: c.Subject.CommonName, ExpiresAt: c.NotAfter}, nil
}

// CreateRDPSigner makes the key and the certificate by which the platform
// signs connection files for the people of a team. From then on it does.
func (p *Platform) CreateRDPSigner(ctx context.Context, a Actor, r RDPSignerRequest) (api.RDPSigningCertificate, error) {
	var reply api.RDPSigningCertificate
	a.gives(func() any { return reply })
	there := func(tx *store.Tx, k asker) error {
		switch _, err := p.rdpSigner(tx, k.team.ID); {
		case err == nil:
			return &sft.Error{Code: sft.Exists, Msg: "this team signs connection files already", Hint: "GET rdp_signing_certificate to see by what"}
		case err != errNoRDPSigner:
			return err
		}
		return nil
	}
	// An RSA key takes its time, and nobody is to wait for it but who asks.
	team, err := read(ctx, p, a, r.Team, policy.Administer, func(tx *store.Tx, k asker) (string, error) { return k.team.Name, there(tx, k) })
	if err != nil {
		return reply, err
	}
	at, err := url.Parse(p.URL)
	if err != nil {
		return reply, err
	}
	id, now := audit.NewID(), p.Now()
	s, err := ca.New(ca.RDPSign, id, "sft team "+team+" at "+at.Hostname(), p.Sealer, now)
	if err != nil {
		return reply, err
	}
	err = p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.Administer)
		if err == nil {
			err = there(tx, k)
		}
		if err != nil {
			return audit.Event{}, err
		}
		if s, err = s.Reseal(id, p.Sealer, p.Sealer); err != nil { // beside a change of the master key, only here is sure to be the new one
			return audit.Event{}, err
		}
		if err := tx.AddCA(store.CARecord{ID: id, ProjectID: k.team.ID, Kind: string(ca.RDPSign), Public: s.Public, Sealed: s.Key, CreatedAt: now, NotAfter: s.NotAfter, Stage: store.CAActive, StageAt: now}); err != nil {
			return audit.Event{}, err
		}
		by, err := p.rdpSigner(tx, k.team.ID)
		if err != nil {
			return audit.Event{}, err
		}
		if reply, err = rdpSigningCertificate(by); err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.RDPSignerCreate, k.team.Name, "", reply.Publisher)
		e.Detail = map[string]string{"certificate": reply.Fingerprint, "sha1": reply.Thumbprint}
		return e, nil
	})
	if err != nil {
		return api.RDPSigningCertificate{}, err
	}
	return reply, nil
}

// RDPSigner returns the certificate, for whoever has Windows trust it.
func (p *Platform) RDPSigner(ctx context.Context, a Actor, r RDPSignerRequest) (api.RDPSigningCertificate, error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) (api.RDPSigningCertificate, error) {
		by, err := p.rdpSigner(tx, k.team.ID)
		if err != nil {
			return api.RDPSigningCertificate{}, err
		}
		return rdpSigningCertificate(by)
	})
}

// RDPSignatureRequest is POST /v1/teams/{team}/rdp_signature.
type RDPSignatureRequest struct {
	Team string `path:"team" json:"-"`
	api.RDPSignatureRequest
}

// SignRDPFile signs a connection file to a port of the asker's own machine,
// and no other.
func (p *Platform) SignRDPFile(ctx context.Context, a Actor, r RDPSignatureRequest) (api.RDPSignatureReply, error) {
	var reply api.RDPSignatureReply
	err := p.add(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.OwnClient)
		if err != nil {
			return audit.Event{}, err
		}
		by, err := p.rdpSigner(tx, k.team.ID)
		if err != nil {
			return audit.Event{}, err
		}
		der, message, err := by.SignRDP(r.Settings)
		if err != nil {
			return audit.Event{}, err
		}
		reply.Signature = der
		e := p.event(a, audit.RDPFileSign, k.team.Name, "", strings.TrimPrefix(r.Settings[0], "full address:s:"))
		e.Detail = map[string]string{"message_sha256": fmt.Sprintf("%x", sha256.Sum256(message))}
		return e, nil
	})
	if err != nil {
		return api.RDPSignatureReply{}, err
	}
	return reply, nil
}
