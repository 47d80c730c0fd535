package platform

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/policy"
	"sft/internal/store"
)

// A CA of a project gives up its place in three steps, each a change of its
// own: another one is made, which is trusted and signs nothing yet; when the
// agents have heard of it, it signs; and when nothing is good any more that the
// one before has signed, that one goes, with its key. Whatever is interrupted,
// Housekeep takes it up again.
const (
	// caSettle is how long an agent may take to tell the host's SSH server what
	// it has heard.
	caSettle = 2 * time.Minute
	// caPatience is for how long a CA waits for agents that do not hear of it.
	// One that was away for so long hears of it before it does anything else.
	caPatience = 7 * 24 * time.Hour
	// caMargin is added to the life of the last certificate: clocks differ.
	caMargin = time.Hour
	// caLast is how long before its end a CA is rotated, if nobody has said so.
	caLast = 365 * 24 * time.Hour
)

// signedLife is the longest life of what a kind of CA signs.
func signedLife(kind string) time.Duration {
	return map[ca.Kind]time.Duration{ca.Access: ca.AccessLife, ca.Host: ca.HostLife, ca.SSHUser: ca.SSHUserLife, ca.SSHHost: ca.SSHHostLife}[ca.Kind(kind)]
}

// AuthoritiesRequest is GET and POST …/projects/{project}/authorities. Kinds
// are those to rotate; none are all.
type AuthoritiesRequest struct {
	Team    string   `path:"team" json:"-"`
	Project string   `path:"project" json:"-"`
	Kinds   []string `json:"kinds,omitempty"` // access, host, ssh_user, ssh_host
	// Compromised: others know the keys. The CAs are trusted no more from now on,
	// also those whose rotation is under way, and what they let in ends; new ones
	// sign at once. Until an agent has heard of it, nobody gets in there.
	Compromised bool `json:"compromised,omitempty"`
}

// ListAuthorities returns a project's CAs, and how far their rotation is.
func (p *Platform) ListAuthorities(ctx context.Context, a Actor, r AuthoritiesRequest) ([]sft.Authority, error) {
	return read(ctx, p, a, r.Team, policy.Read, func(tx *store.Tx, k asker) ([]sft.Authority, error) {
		pr, err := tx.Project(k.team.ID, r.Project)
		if err != nil {
			return nil, notFound(err, "project", r.Project)
		}
		return p.projectCAs(tx, pr)
	})
}

func (p *Platform) projectCAs(tx *store.Tx, pr store.ProjectRecord) ([]sft.Authority, error) {
	records, err := tx.CAs(pr.ID)
	if err != nil {
		return nil, err
	}
	list := []sft.Authority{}
	waiting := map[int64]sft.Authority{} // by revision: kinds that were rotated together have one
	for _, c := range records {
		v := sft.Authority{ID: c.ID, Kind: c.Kind, Stage: c.Stage, Since: c.StageAt, Fingerprint: fingerprint(c), CreatedAt: c.CreatedAt, ExpiresAt: c.NotAfter}
		switch c.Stage {
		case store.CANext:
			until := c.StageAt.Add(caPatience)
			v.Until = &until
		case store.CARetired:
			until := c.StageAt.Add(signedLife(c.Kind) + caMargin)
			v.Until = &until
		}
		// An active one has a revision if it took the place of another, which who
		// has not heard trusts still.
		if c.Stage == store.CANext || c.Stage == store.CAActive && c.Revision > 0 {
			w, ok := waiting[c.Revision]
			if !ok {
				if w.WaitingFor, w.Waiting, err = p.waitingFor(tx.Notes, c, maxWaiting); err != nil {
					return nil, err
				}
				waiting[c.Revision] = w
			}
			v.WaitingFor, v.Waiting = w.WaitingFor, w.Waiting
		}
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b sft.Authority) int {
		return strings.Compare(a.Kind+a.CreatedAt.Format(time.RFC3339Nano)+a.ID, b.Kind+b.CreatedAt.Format(time.RFC3339Nano)+b.ID)
	})
	return list, nil
}

// fingerprint is the SHA-256 of a CA's public half, as people compare it.
func fingerprint(c store.CARecord) string {
	if k, err := ssh.ParsePublicKey(c.Public); err == nil {
		return ssh.FingerprintSHA256(k)
	}
	return ca.Fingerprint(c.Public)
}

// maxWaiting is how many servers an authority names that it waits for.
const maxWaiting = 100

// waitingFor returns how many active servers there are whose agents have not
// taken up a CA that is next, or that took another's place, and the ids of the
// first of them.
func (p *Platform) waitingFor(n store.Notes, c store.CARecord, first int) (ids []string, count int64, err error) {
	return n.Behind(c.ProjectID, c.Revision, p.Now().Add(-sft.ActiveFor), first)
}

// sawRevision notes which revision of its project an agent says it has.
func (p *Platform) sawRevision(n store.Notes, s store.ServerRecord, after string) error {
	has, err := strconv.ParseInt(after, 10, 64)
	// What it has is a sum with the server's own revision, which may have grown
	// since: then less is noted than it has, until it has that as well.
	has -= s.Revision
	if err != nil || has == s.AgentRevision || has < s.JoinedRevision {
		return nil // it says nothing, or nothing new, or what it has is of a project before
	}
	pr, err := n.ProjectByID(s.ProjectID)
	if err != nil || has < 0 || has > pr.Revision {
		return notFound(err, "project", s.Project)
	}
	return n.SetAgentRevision(s.ID, has)
}

// RotateAuthorities begins the rotation of a project's CAs, or drops those that
// are compromised. A kind whose rotation has begun, and that does not sign with
// the new one yet, is refused, unless it is dropped.
func (p *Platform) RotateAuthorities(ctx context.Context, a Actor, r AuthoritiesRequest) (api.List[sft.Authority], error) {
	return p.rotateCAs(ctx, a, r, func(tx *store.Tx) (string, store.ProjectRecord, error) {
		k, pr, err := p.inProject(tx, a, r.Team, r.Project, policy.Administer)
		return k.team.Name, pr, err
	})
}

// RotateAuthoritiesHere is RotateAuthorities for whoever holds the platform's
// own files. No team is the only one.
func (p *Platform) RotateAuthoritiesHere(ctx context.Context, r AuthoritiesRequest) (api.List[sft.Authority], error) {
	if _, err := p.tokenKey(ctx); err != nil { // new keys are sealed with a master key that opens the others
		return api.List[sft.Authority]{}, err
	}
	return p.rotateCAs(ctx, Actor{}, r, func(tx *store.Tx) (string, store.ProjectRecord, error) {
		t, pr, err := p.projectHere(tx, r)
		return t.Name, pr, err
	})
}

// AuthoritiesHere is ListAuthorities for whoever holds the platform's own files.
func (p *Platform) AuthoritiesHere(ctx context.Context, r AuthoritiesRequest) (list []sft.Authority, err error) {
	err = p.DB.Read(ctx, func(tx *store.Tx) error {
		_, pr, err := p.projectHere(tx, r)
		if err == nil {
			list, err = p.projectCAs(tx, pr)
		}
		return err
	})
	return list, err
}

func (p *Platform) projectHere(tx *store.Tx, r AuthoritiesRequest) (t sft.Team, pr store.ProjectRecord, err error) {
	if r.Team == "" {
		if r.Team, err = tx.Setting("first_team"); err != nil {
			return t, pr, err
		}
	}
	t, err = tx.Team(r.Team)
	if err != nil {
		return t, pr, notFound(err, "team", r.Team)
	}
	pr, err = tx.Project(t.ID, r.Project)
	return t, pr, notFound(err, "project", r.Project)
}

// rotateCAs does what r says of the project that where finds, for a or, if that
// is nobody, for the operator.
func (p *Platform) rotateCAs(ctx context.Context, a Actor, r AuthoritiesRequest, where func(*store.Tx) (team string, pr store.ProjectRecord, err error)) (api.List[sft.Authority], error) {
	var reply api.List[sft.Authority]
	kinds := slices.Clone(ca.ProjectKinds)
	if len(r.Kinds) > 0 {
		kinds = nil
	}
	for _, k := range r.Kinds {
		if !slices.Contains(ca.ProjectKinds, ca.Kind(k)) || slices.Contains(kinds, ca.Kind(k)) {
			return reply, &sft.Error{Code: sft.Invalid, Msg: sft.Quote(k) + " is no kind of CA, or is named twice", Hint: "use access, host, ssh_user or ssh_host, or leave kinds out for all"}
		}
		kinds = append(kinds, ca.Kind(k))
	}
	var dropped []string
	a.gives(func() any { return reply })
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		team, pr, err := where(tx)
		if err != nil {
			return audit.Event{}, err
		}
		var e audit.Event
		if r.Compromised {
			e, dropped, err = p.dropCAs(tx, a, team, pr, kinds)
		} else {
			e, err = p.beginCAs(tx, a, team, pr, kinds)
		}
		if err != nil {
			return e, err
		}
		if a == (Actor{}) {
			e.Actor = audit.Actor{Kind: "platform", Name: "rotate"}
		}
		reply.List, err = p.projectCAs(tx, pr)
		return e, err
	})
	if err == nil {
		p.forgetCAs(dropped...)
	}
	return reply, err
}

// forgetCAs forgets the keys of CAs that are there no more. It is called after
// the change: as long as they are there, others may open them again.
func (p *Platform) forgetCAs(ids ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		delete(p.opened, id)
	}
	if len(ids) > 0 {
		clear(p.trusted) // which is read again by who needs it
	}
}

// dropCAs takes all CAs of these kinds out of trust, and puts one that signs at
// once in the place of each kind's.
func (p *Platform) dropCAs(tx *store.Tx, a Actor, team string, pr store.ProjectRecord, kinds []ca.Kind) (e audit.Event, ids []string, err error) {
	e = p.event(a, audit.CADrop, team, pr.Name, pr.Name)
	e.Detail = map[string]string{}
	records, err := tx.CAs(pr.ID)
	if err != nil {
		return e, nil, err
	}
	var names, gone []string
	for _, kind := range kinds {
		for _, c := range records {
			if c.Kind != string(kind) {
				continue
			}
			if err := tx.DropCA(c, fingerprint(c), p.Now()); err != nil {
				return e, nil, err
			}
			ids, gone = append(ids, c.ID), append(gone, c.Kind+" "+fingerprint(c))
		}
		if err := p.newCA(tx, store.CARecord{ProjectID: pr.ID, Stage: store.CAActive, Revision: pr.Revision + 1}, kind, caTitle(kind, pr)); err != nil {
			return e, nil, err
		}
		names = append(names, string(kind))
	}
	slices.Sort(gone)
	e.Detail["kinds"], e.Detail["dropped"] = strings.Join(names, " "), strings.Join(gone, ", ")
	return e, ids, errors.Join(tx.Revise(pr.ID), tx.ReviseMoved(pr.ID))
}

// beginCAs makes the next CAs of a project.
func (p *Platform) beginCAs(tx *store.Tx, a Actor, team string, pr store.ProjectRecord, kinds []ca.Kind) (audit.Event, error) {
	e := p.event(a, audit.CARotate, team, pr.Name, pr.Name)
	e.Detail = map[string]string{"stage": store.CANext}
	records, err := tx.CAs(pr.ID)
	if err != nil {
		return e, err
	}
	var names []string
	for _, kind := range kinds {
		if slices.ContainsFunc(records, func(c store.CARecord) bool { return c.Kind == string(kind) && c.Stage == store.CANext }) {
			return e, &sft.Error{Code: sft.Exists, Msg: fmt.Sprintf("the rotation of the %s CA of project %s has begun already", kind, sft.Quote(pr.Name)), Hint: "GET its authorities to see what it waits for"}
		}
		if err := p.newCA(tx, store.CARecord{ProjectID: pr.ID, Stage: store.CANext, Revision: pr.Revision + 1}, kind, caTitle(kind, pr)); err != nil {
			return e, err
		}
		names = append(names, string(kind))
	}
	e.Detail["kinds"] = strings.Join(names, " ")
	return e, tx.Revise(pr.ID)
}

// caStep says what is to be done with a CA now: the stage that is next for it,
// "" for its end, or ok is false.
func (p *Platform) caStep(n store.Notes, c store.CARecord) (stage string, ok bool, err error) {
	since := p.Now().Sub(c.StageAt)
	switch c.Stage {
	case store.CANext:
		_, waiting, err := p.waitingFor(n, c, 0)
		return store.CAActive, err == nil && since >= caSettle && (waiting == 0 || since >= caPatience), err
	case store.CARetired:
		return "", since >= signedLife(c.Kind)+caMargin, nil
	case store.CAActive:
		records, err := n.CAs(c.ProjectID)
		begun := slices.ContainsFunc(records, func(o store.CARecord) bool { return o.Kind == c.Kind && o.Stage == store.CANext })
		return store.CANext, err == nil && !begun && c.NotAfter.Sub(p.Now()) < caLast, err
	}
	return "", false, nil
}

// advanceCAs takes each step that is due.
func (p *Platform) advanceCAs(ctx context.Context) error {
	var due []store.CARecord
	if err := p.DB.Read(ctx, func(tx *store.Tx) error {
		list, err := tx.ChangingCAs(p.Now().Add(caLast))
		for _, c := range list {
			// Nobody can tell this clock, behind, from that one, ahead; and by one
			// that is behind for a moment, no CA may end.
			if c.Stage != store.CAActive && c.StageAt.Sub(p.Now()) > clockOff {
				p.Log.Warn("the rotation of a CA waits for a time that is to come", "project", c.ProjectID, "kind", c.Kind, "since", c.StageAt.UTC(),
					"hint", "set the clock if it is behind; if it was ahead then, drop the CAs of this kind as compromised, or wait")
			}
			_, ok, serr := p.caStep(tx.Notes, c)
			if err = errors.Join(err, serr); ok {
				due = append(due, c)
			}
		}
		return err
	}); err != nil {
		return err
	}
	var failed error
	for _, c := range due {
		err := p.change(ctx, Actor{}, func(tx *store.Tx) (audit.Event, error) { return p.advanceCA(tx, c) })
		if err == nil {
			p.forgetCAs(c.ID)
		}
		if !errors.Is(err, errUnchanged) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// advanceCA takes one step of a CA, unless somebody else has meanwhile.
func (p *Platform) advanceCA(tx *store.Tx, c store.CARecord) (audit.Event, error) {
	records, err := tx.CAs(c.ProjectID)
	if err != nil {
		return audit.Event{}, err
	}
	i := slices.IndexFunc(records, func(r store.CARecord) bool { return r.ID == c.ID })
	if i < 0 {
		return audit.Event{}, errUnchanged
	}
	c = records[i]
	stage, ok, err := p.caStep(tx.Notes, c)
	if err == nil && !ok {
		err = errUnchanged
	}
	if err != nil {
		return audit.Event{}, err
	}
	pr, err := tx.ProjectByID(c.ProjectID)
	if err != nil {
		return audit.Event{}, err
	}
	team, err := tx.TeamByID(pr.TeamID)
	if err != nil {
		return audit.Event{}, err
	}
	if stage == store.CANext {
		e, err := p.beginCAs(tx, Actor{}, team.Name, pr, []ca.Kind{ca.Kind(c.Kind)})
		e.Actor = housekeeper
		return e, err
	}
	e := p.event(Actor{}, audit.CARotate, team.Name, pr.Name, pr.Name)
	e.Actor, e.Detail = housekeeper, map[string]string{"kind": c.Kind, "stage": stage, "fingerprint": fingerprint(c)}
	if stage == "" {
		e.Detail["stage"] = "removed"
		return e, errors.Join(tx.RemoveCA(c.ID), tx.Revise(pr.ID))
	}
	for _, r := range records {
		if r.Kind == c.Kind && r.Stage == store.CAActive {
			e.Detail["retired"] = fingerprint(r)
			if err := tx.SetCAStage(r.ID, store.CARetired, p.Now()); err != nil {
				return e, err
			}
		}
	}
	return e, errors.Join(tx.SetCAStage(c.ID, stage, p.Now()), tx.Revise(pr.ID))
}

// housekeeper is who does what time brings about.
var housekeeper = audit.Actor{Kind: "platform", Name: "housekeeping"}
