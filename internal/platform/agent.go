package platform

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/store"
)

// hang is how long a state request waits for news.
const hang = 55 * time.Second

// server reads the agent's own record again. One that was deleted is told.
func (p *Platform) server(n store.Notes, a Actor) (store.ServerRecord, error) {
	if a.Server == "" {
		return store.ServerRecord{}, &sft.Error{Code: sft.SignIn, Msg: "this is for agents only", Hint: "enrol the server"}
	}
	s, err := n.ServerByID(a.Server)
	if errors.Is(err, store.ErrNotFound) || err == nil && s.DeletedAt != nil {
		return s, errRevoked("server")
	}
	return s, err
}

func errRevoked(kind string) error {
	return &sft.Error{Code: sft.Revoked, Msg: "this " + kind + " was deleted", Hint: "enrol it again"}
}

// StateRequest is GET /v1/agent/state.
type StateRequest struct {
	After string `query:"after" json:"-"` // the revision that the agent has
	Run   string `query:"run" json:"-"`   // of the agent: a random id, another each time that it starts
}

// State tells an agent what should be on its host. It hangs while the
// revision is the one that the agent has.
func (p *Platform) State(ctx context.Context, a Actor, r StateRequest) (api.State, error) {
	deadline := time.NewTimer(hang)
	defer deadline.Stop()
	// Another platform on the same database may make the change.
	poll := time.NewTicker(p.PollEvery)
	defer poll.Stop()
	two := false
	var s store.ServerRecord
	if err := p.DB.Note(ctx, func(n store.Notes) (err error) {
		if s, err = p.server(n, a); err != nil {
			return err
		}
		if two, err = p.sawRun(n, a, s, r.Run); err != nil {
			return err
		}
		if err := p.sawRevision(n, s, r.After); err != nil {
			return err
		}
		return n.ServerSeen(a.Server, p.Now())
	}); err != nil {
		return api.State{}, err
	}
	if two {
		if err := p.keyConflict(ctx, a, "two agents ask in turn"); err != nil {
			return api.State{}, err
		}
	}
	for last := false; ; {
		// Before anything is read, so that no change is missed in between.
		project := s.ProjectID
		ofServer, ofProject, ofTeam := p.news.wait(s.ID), p.news.wait(project), p.news.wait(s.TeamID)
		var st api.State
		err := p.DB.Read(ctx, func(tx *store.Tx) (err error) {
			if s, err = p.server(tx.Notes, a); err != nil {
				return err
			}
			pr, err := tx.ProjectByID(s.ProjectID)
			if err != nil {
				return notFound(err, "project", s.Project)
			}
			st.Revision = revision(pr, s)
			if fmt.Sprint(st.Revision) == r.After && !last {
				return nil
			}
			st.RotateDeviceKey = p.keyDue(s)
			return p.state(tx, s, pr, &st)
		})
		if err != nil || last || fmt.Sprint(st.Revision) != r.After {
			return st, err
		}
		if s.ProjectID != project { // moved, before anybody waited there
			continue
		}
		select {
		case <-ctx.Done():
			return st, ctx.Err()
		case <-p.ending.wait():
			last = true
		case <-deadline.C:
			last = true
		case <-ofServer:
		case <-ofProject:
		case <-ofTeam:
		case <-poll.C:
		}
	}
}

func (p *Platform) state(tx *store.Tx, s store.ServerRecord, pr store.ProjectRecord, st *api.State) error {
	team, err := tx.TeamByID(pr.TeamID)
	if err != nil {
		return err
	}
	by, err := p.trustedBy(tx, pr)
	if err != nil {
		return err
	}
	p.trust(by) // this transaction sees what is stored
	cas := by.of
	st.AccessCAs, st.HostCAs = certificates(cas[ca.Access]), certificates(cas[ca.Host])
	st.SSHUserCAs, st.SSHHostCAs = sshKeys(cas[ca.SSHUser]), sshKeys(cas[ca.SSHHost])
	if st.DroppedCAs, err = tx.DroppedCAs(s, string(ca.Access), string(ca.SSHUser)); err != nil {
		return err
	}
	if st.EndedSessions, err = tx.RevokedSessions(s.ID, p.Now()); err != nil {
		return err
	}
	st.Settings = api.Settings{Team: team.Name, Project: pr.Name, CreateServerUsers: pr.CreateServerUsers, DeleteServerUsers: pr.DeleteServerUsers,
		MaxSession: pr.MaxSession, DisconnectedSession: pr.DisconnectedSession, Channels: &pr.Channels}
	_, err = p.accounts(tx, pr, &s, st)
	return err
}

// revision is that of a server's state. Either part only ever grows.
func revision(pr store.ProjectRecord, s store.ServerRecord) int64 { return pr.Revision + s.Revision }

// Report takes an agent's facts, and signs a certificate for its broker when
// it sends a CSR, and for the SSH keys of its host that it sends.
func (p *Platform) Report(ctx context.Context, a Actor, r api.ReportRequest) (api.ReportReply, error) {
	var reply api.ReportReply
	if err := checkFacts(&r.Facts, a.Addr); err != nil {
		return reply, err
	}
	if !p.limits.allow(p.Now(), "report:"+a.Server, time.Second, 60) {
		return reply, errTooOften
	}
	keys, err := sshHostKeys(r.SSHHostKeys)
	if err != nil {
		return reply, err
	}
	if err := checkConflicts(r.Conflicts); err != nil {
		return reply, err
	}
	err = p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		s, err := p.server(tx.Notes, a)
		if err != nil {
			return audit.Event{}, err
		}
		conflicts, news, err := p.conflicts(tx, s, r.Conflicts)
		// Without a certificate the broker or the SSH server is lost; the next
		// report is whole, too.
		if errors.Is(err, errTooOften) && len(r.CSR)+len(keys) > 0 {
			err = nil
		}
		if err != nil {
			return audit.Event{}, err
		}
		if len(r.CSR) == 0 && len(keys) == 0 && !news && reflect.DeepEqual(s.Facts, r.Facts) {
			return audit.Event{}, errUnchanged
		}
		team, err := tx.TeamByID(s.TeamID)
		if err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.ServerUpdate, team.Name, s.Project, r.Facts.Hostname)
		before := s.Labels()
		s.Facts = r.Facts
		if err := p.labelled(tx, a, team.Name, s, before); err != nil {
			return e, err
		}
		if err := p.takeNames(tx, a, team.Name, &s); err != nil {
			return e, err
		}
		if len(r.CSR)+len(keys) > 0 {
			if err := p.mayIssue(s); err != nil {
				return e, err
			}
		}
		if len(r.CSR) > 0 {
			key, err := ca.RequestKey(r.CSR)
			if err != nil {
				return e, err
			}
			list, err := p.authorities(tx, s.ProjectID, ca.Host)
			if err != nil {
				return e, err
			}
			chain, until, err := list.signer(ca.Host).IssueHost(key, s.ID, p.Now())
			if err != nil {
				return e, err
			}
			h, err := ca.KeyHash(key)
			if err != nil {
				return e, err
			}
			// The key before counts until the certificate of this one is renewed.
			if bytes.Equal(h, s.HostKey) {
				s.HostKeyOld = nil
			} else {
				s.HostKeyOld, s.HostKey = s.HostKey, h
			}
			reply.BrokerCertificate = chain
			e.Kind = audit.HostCredsIssue
			e.Detail = map[string]string{"key_sha256": fmt.Sprintf("%x", h), "until": until.Format(time.RFC3339)}
		}
		if len(keys) > 0 {
			if reply.SSHHostCertificates, err = p.sshHost(tx, s, keys, &e); err != nil {
				return e, err
			}
		}
		if news {
			if e.Detail == nil {
				e.Detail = map[string]string{}
			}
			e.Detail["conflicts"] = fmt.Sprint(len(conflicts))
			if err := tx.SetConflicts(s.ID, conflicts); err != nil {
				return e, err
			}
		}
		return e, tx.SaveServer(s)
	})
	if errors.Is(err, errUnchanged) {
		err = nil
	}
	return reply, err
}

// checkConflicts refuses conflicts that no agent reports.
func checkConflicts(list []api.Conflict) error {
	if len(list) > api.MaxConflicts {
		return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the report has %d conflicts", len(list)), Hint: fmt.Sprintf("send %d at most", api.MaxConflicts)}
	}
	for _, c := range list {
		known := c.Clash == "name" || c.Clash == "uid" && c.Group == "" || c.Clash == "gid"
		if !known || (c.User == "") == (c.Group == "") || !clean(c.User, maxKey) || !clean(c.Group, maxKey) || !clean(c.Value, maxKey) || !clean(c.Reason, 500) {
			return &sft.Error{Code: sft.Invalid, Msg: "conflict " + sft.Quote(c.Reason) + " is not one that agents report", Hint: "update the server's sftd"}
		}
	}
	return nil
}

// conflicts finds out which attributes a server's agent means, in the order of
// their users and groups, and whether it has not said so before; to say another
// thing all the time is errTooOften. What its state does not ask of the host is
// left out: of others it has nothing to say.
func (p *Platform) conflicts(tx *store.Tx, s store.ServerRecord, said []api.Conflict) (list []store.Conflict, news bool, err error) {
	inOrder := func(a, b store.Conflict) int {
		return cmp.Or(cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Attribute, b.Attribute))
	}
	before, err := tx.ConflictsOn(s.ID)
	if err != nil || len(said)+len(before) == 0 {
		return nil, false, err
	}
	slices.SortFunc(before, inOrder)
	places, err := tx.ProjectGroups(s.ProjectID)
	if err != nil {
		return nil, false, err
	}
	userName := unixUserName
	if s.Facts.OSType == sft.Windows {
		userName = windowsUserName
	}
	for _, c := range said {
		v := store.Conflict{Value: c.Value, Reason: c.Reason}
		if c.User != "" {
			v.Subject, v.Attribute = c.User, map[string]string{"name": userName, "uid": unixUID, "gid": unixGID}[c.Clash]
		}
		for _, g := range places {
			if c.Group != "" && g.ServerGroupName == c.Group {
				v.Subject, v.Attribute = g.GroupID, map[string]string{"name": unixGroupName, "gid": unixGID}[c.Clash]
			}
		}
		if v.Subject != "" {
			list = append(list, v)
		}
	}
	slices.SortStableFunc(list, inOrder)
	list = slices.CompactFunc(list, func(a, b store.Conflict) bool { return inOrder(a, b) == 0 })
	if slices.Equal(list, before) { // then it was asked of the host
		return list, false, nil
	}
	if !p.limits.allow(p.Now(), "conflicts:"+s.ID, time.Minute, 10) {
		return nil, false, errTooOften
	}
	pr, err := tx.ProjectByID(s.ProjectID)
	if err != nil {
		return nil, false, err
	}
	var st api.State
	if _, err := p.accounts(tx, pr, &s, &st); err != nil {
		return nil, false, err
	}
	asked := map[string]bool{}
	for _, u := range st.Users {
		asked[u.ID] = true
	}
	for _, g := range places {
		asked[g.GroupID] = asked[g.GroupID] || slices.ContainsFunc(st.Groups, func(o api.StateGroup) bool { return o.Name == g.ServerGroupName })
	}
	list = slices.DeleteFunc(list, func(c store.Conflict) bool { return !asked[c.Subject] })
	return list, !slices.Equal(list, before), nil
}

// sshHostKeys parses the keys that an agent wants certificates for.
func sshHostKeys(lines []string) ([]ssh.PublicKey, error) {
	if len(lines) > maxSSHKeys {
		return nil, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("certificates for %d SSH keys were asked for", len(lines)), Hint: fmt.Sprintf("ask for %d at most", maxSSHKeys)}
	}
	var keys []ssh.PublicKey
	for _, line := range lines {
		k, err := ca.SSHHostKey(line)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// sshHost signs certificates for the SSH keys of a server, and adds them to
// the event.
func (p *Platform) sshHost(tx *store.Tx, s store.ServerRecord, keys []ssh.PublicKey, e *audit.Event) ([]string, error) {
	list, err := p.authorities(tx, s.ProjectID, ca.SSHHost)
	if err != nil {
		return nil, err
	}
	if e.Detail == nil {
		e.Detail = map[string]string{}
	}
	e.Kind = audit.HostCredsIssue
	var certs, issued []string
	for _, k := range keys {
		c, err := list.signer(ca.SSHHost).IssueSSHHost(k, s.ID, sshNames(s), p.Now())
		if err != nil {
			return nil, err
		}
		certs = append(certs, c.Line)
		issued = append(issued, fmt.Sprintf("%s=%d", ssh.FingerprintSHA256(k), c.Serial))
		e.Detail["ssh_until"] = c.Until.Format(time.RFC3339)
	}
	e.Detail["ssh_serials"] = strings.Join(issued, " ")
	return certs, nil
}

// sshKeys are the public keys of SSH authorities.
func sshKeys(list []*ca.Authority) (lines []string) {
	for _, a := range list {
		lines = append(lines, a.AuthorizedKey())
	}
	return lines
}

// errUnchanged undoes a report that has nothing new.
var errUnchanged = errors.New("nothing has changed")

// maxEvents caps a batch.
const maxEvents = 500

// Events takes a batch of an agent's events. What was taken before is left
// out, and a gap in the numbers is an event of its own.
func (p *Platform) Events(ctx context.Context, a Actor, r api.EventsRequest) (struct{}, error) {
	if len(r.Events) == 0 || len(r.Events) > maxEvents {
		return struct{}{}, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the batch has %d events", len(r.Events)), Hint: fmt.Sprintf("send 1 to %d", maxEvents)}
	}
	if !p.limits.allow(p.Now(), "events:"+a.Server, 200*time.Millisecond, 100) {
		return struct{}{}, errTooOften
	}
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		s, err := p.server(tx.Notes, a)
		if err != nil {
			return audit.Event{}, err
		}
		team, err := tx.TeamByID(s.TeamID)
		if err != nil {
			return audit.Event{}, err
		}
		name := s.Server(p.Now()).Name()
		before, err := tx.FormerProjects(s.ID)
		if err != nil {
			return audit.Event{}, err
		}
		seq := s.LastSeq
		var list []audit.Event
		for _, ev := range r.Events {
			if err := checkEvent(ev); err != nil {
				return audit.Event{}, err
			}
			// It may be of before the server was moved.
			e := p.event(a, audit.Kind(ev.Kind), team.Name, projectAt(s, before, ev.Time), name)
			if ev.Seq > seq+1 {
				gap := p.event(a, audit.EventsLost, team.Name, s.Project, name)
				gap.Outcome = audit.Failed
				gap.Detail = map[string]string{"from": fmt.Sprint(seq + 1), "to": fmt.Sprint(ev.Seq - 1)}
				list = append(list, gap)
			}
			// One with an old number was sent before, and the store leaves it out;
			// or the agent has lost count, and it must not be lost too.
			seq = max(seq, ev.Seq)
			e.Source, e.Time, e.Outcome, e.Detail = s.ID+"/"+ev.ID, ev.Time.UTC(), ev.Outcome, ev.Detail
			if e.Detail == nil {
				e.Detail = map[string]string{}
			}
			// Whose it is, and which session's, is not the agent's to say: what
			// belongs to a session is its person's and its client's.
			delete(e.Detail, "user")
			delete(e.Detail, audit.ClaimedBy)
			user := ev.User
			v, err := tx.Session(ev.Session)
			here, through := err == nil && v.ServerID == s.ID, false
			if err == nil && !here {
				through, err = tx.GoesThrough(v.ID, s.ID)
			}
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return audit.Event{}, err
			}
			if here || through {
				e.Session, e.Client, user = v.ID, v.ClientID, v.UserID
			}
			if here { // its way can be through servers of other projects
				if e.Project, err = tx.ProjectName(v.ProjectID); err != nil {
					return audit.Event{}, err
				}
			}
			if user != "" {
				if u, err := tx.UserByID(user); err == nil && u.TeamID == s.TeamID {
					e.Detail["user"] = u.Name
				}
			}
			list = append(list, e)
		}
		for _, e := range list[:len(list)-1] {
			tx.Also(e)
		}
		return list[len(list)-1], tx.SetLastSeq(s.ID, seq)
	})
}

// projectAt is the project that a server was in at a time, by its clock: before
// are those until its present one.
func projectAt(s store.ServerRecord, before []store.FormerProject, at time.Time) string {
	for _, f := range before {
		if at.Before(f.Until) {
			return f.Name
		}
	}
	return s.Project
}

// errTooOften is what an agent is told that sends more than one ever has to.
var errTooOften = &sft.Error{Code: sft.TooMany, Msg: "the server sends too much", Hint: "look at the log of its sftd"}

// The sizes of an event that an agent or a client sends.
const (
	maxDetails = 16
	maxKey     = 64
	maxValue   = 1 << 10
)

// checkEvent refuses an event that no agent sends.
func checkEvent(e api.Event) error {
	known := e.Outcome == audit.Success || e.Outcome == audit.Refused || e.Outcome == audit.Failed
	return checkSent("agents", audit.FromAgent, e, known && e.Seq >= 1)
}

// checkSent refuses an event that is not well formed, of none of the kinds
// that its sender may tell of, or not right by what the caller knows.
func checkSent(who string, kinds map[audit.Kind]bool, e api.Event, right bool) error {
	for k, v := range e.Detail {
		if len(k) > maxKey || len(v) > maxValue {
			return &sft.Error{Code: sft.Invalid, Msg: "event " + sft.Quote(e.ID) + " of kind " + sft.Quote(e.Kind) + " is too long"}
		}
	}
	id, err := uuid.Parse(e.ID)
	if err != nil || id.Version() != 7 || id.String() != e.ID || !kinds[audit.Kind(e.Kind)] || !right || e.Time.UnixMicro() <= 0 || e.Time.Year() > 9999 ||
		len(e.Detail) > maxDetails || len(e.User) > maxKey || len(e.Session) > maxKey {
		return &sft.Error{Code: sft.Invalid, Msg: "event " + sft.Quote(e.ID) + " of kind " + sft.Quote(e.Kind) + " is not one that " + who + " send"}
	}
	return nil
}
