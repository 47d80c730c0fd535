package platform

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/policy"
	"sft/internal/store"
)

// maxAltNames caps how many further names a host may claim.
const maxAltNames = 32

// clean reports whether a text of a host is one line, of max bytes at most.
func clean(s string, max int) bool {
	return len(s) <= max && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// checkFacts refuses what a host may not claim, and puts the rest in order.
func checkFacts(f *api.Facts, addr string) error {
	names := slices.Concat([]string{f.Hostname}, f.AltNames)
	for _, opt := range []string{f.CanonicalName, f.Bastion} {
		if opt != "" {
			names = append(names, opt)
		}
	}
	for _, n := range names {
		if err := sft.CheckHostname(n); err != nil {
			return err
		}
	}
	if f.AccessAddress == "" {
		f.AccessAddress = addr
	}
	// A host may send people to their own machine only from there.
	if ip, err := netip.ParseAddr(f.AccessAddress); err == nil && (ip.IsLoopback() || ip.IsLinkLocalUnicast()) && f.AccessAddress != addr {
		return &sft.Error{Code: sft.Invalid, Msg: "access address " + sft.Quote(f.AccessAddress) + " cannot be reached from another machine", Hint: "set AccessAddress in sftd.yaml to the address that clients can reach"}
	}
	ip, err := netip.ParseAddr(f.AccessAddress)
	if err != nil || ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "" {
		return &sft.Error{Code: sft.Invalid, Msg: "access address " + sft.Quote(f.AccessAddress) + " is not an IP address", Hint: "set AccessAddress in sftd.yaml to the address that clients can reach"}
	}
	f.AccessAddress = ip.String()
	switch {
	case len(f.AltNames) > maxAltNames:
		return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the host has %d AltNames", len(f.AltNames)), Hint: fmt.Sprintf("keep %d", maxAltNames)}
	case f.BrokerPort < 1 || f.BrokerPort > 65535:
		return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("%d is not a port", f.BrokerPort), Hint: "set BrokerAccessPort in sftd.yaml to 1 to 65535"}
	case f.OSType != "linux" && f.OSType != "windows":
		return &sft.Error{Code: sft.Invalid, Msg: "os_type " + sft.Quote(f.OSType) + " is unknown"}
	case !clean(f.OS, 100) || !clean(f.Version, 50) || !clean(f.InstanceID, 100) || len(f.Services) > 8 || len(f.Problems) > 50:
		return &sft.Error{Code: sft.Invalid, Msg: "the host's facts are too long or not readable"}
	}
	for _, s := range slices.Concat(f.Services, f.Problems) {
		if !clean(s, 500) {
			return &sft.Error{Code: sft.Invalid, Msg: "the host's facts are too long or not readable"}
		}
	}
	if f.Labels, err = sft.CheckLabels(sft.LabelSFTD, f.Labels); err != nil {
		return err
	}
	if err := checkNetwork(f); err != nil {
		return err
	}
	return checkSSH(f.SSH)
}

// networkRE is how a cloud's network is called: by the cloud and its own id.
var networkRE = regexp.MustCompile(`^aws:[a-z0-9-]{1,60}$`)

// checkNetwork refuses a private address that could not be one. People are
// sent to it through a host in the same network.
func checkNetwork(f *api.Facts) error {
	if ip, err := netip.ParseAddr(f.PrivateAddress); f.PrivateAddress != "" && (err != nil || !ip.IsPrivate() || ip.Is4In6() || ip.Zone() != "") {
		return &sft.Error{Code: sft.Invalid, Msg: "private address " + sft.Quote(f.PrivateAddress) + " is not a private IP address", Hint: "use one of RFC 1918 or RFC 4193"}
	}
	if f.Network != "" && !networkRE.MatchString(f.Network) {
		return &sft.Error{Code: sft.Invalid, Msg: "network " + sft.Quote(f.Network) + " cannot be used", Hint: "use the cloud's name of it, as in aws:vpc-0123"}
	}
	return nil
}

// maxSSHKeys caps the SSH keys of a host.
const maxSSHKeys = 8

// checkSSH refuses what a host's SSH server cannot be.
func checkSSH(f *api.SSHFacts) error {
	switch {
	case f == nil:
		return nil
	case f.Port < 1 || f.Port > 65535:
		return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("%d is not the port of an SSH server", f.Port), Hint: "use 1 to 65535"}
	case len(f.HostKeys) > maxSSHKeys:
		return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the host has %d SSH keys", len(f.HostKeys)), Hint: fmt.Sprintf("keep %d", maxSSHKeys)}
	}
	for i, line := range f.HostKeys {
		key, err := ca.SSHHostKey(line)
		if err != nil {
			return err
		}
		f.HostKeys[i] = ca.SSHLine(key)
	}
	return nil
}

// claimed are the names that a host wants to be found by.
func claimed(f api.Facts) []string {
	name := f.CanonicalName
	if name == "" {
		name = f.Hostname
	}
	return slices.Concat([]string{name}, f.AltNames, []string{f.AccessAddress})
}

// sshNames are the names that a server's SSH certificates may have beside its
// id: those that it claims and holds. Which of them can be one, package ca
// knows.
func sshNames(s store.ServerRecord) []string {
	return slices.DeleteFunc(wantedNames(s), func(n string) bool { return slices.Contains(s.NameConflict, n) })
}

// wantedNames are all names that a server claims, its instance's id among them.
func wantedNames(s store.ServerRecord) []string {
	names := claimed(s.Facts)
	if s.Instance != nil {
		names = append(names, s.Instance.InstanceID)
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(names, func(n string) bool {
		again := seen[sft.HostFold(n)]
		seen[sft.HostFold(n)] = true
		return again
	})
}

// takeNames gives a server the names it claims, as far as no other server of
// the project holds them, or none that the project's name_reuse_after protects.
// A new conflict is an event, and so is a name that changes hands.
func (p *Platform) takeNames(tx *store.Tx, a Actor, team string, s *store.ServerRecord) error {
	held, err := tx.TakeNames(s.ProjectID, s.ID, wantedNames(*s))
	if err != nil {
		return err
	}
	pr, err := tx.ProjectByID(s.ProjectID)
	if err != nil {
		return err
	}
	var taken []string
	for _, name := range held {
		h, err := holder(tx, *s, name)
		if err != nil {
			return err
		}
		if !silentSince(h, p.Now().Add(-time.Duration(pr.NameReuseAfter)*time.Second)) || pr.NameReuseAfter == 0 {
			taken = append(taken, name)
			continue
		}
		e := p.event(a, audit.NameReuse, team, s.Project, s.Facts.Hostname)
		e.Detail = map[string]string{"name": name, "server": s.ID, "from": h.ID, "silent_since": lastSeen(h)}
		tx.Also(e)
		if err := moveName(tx, *s, h, name); err != nil {
			return err
		}
	}
	if len(taken) > 0 && !slices.Equal(taken, s.NameConflict) {
		e := p.event(a, audit.NameConflict, team, s.Project, s.Facts.Hostname)
		e.Outcome = audit.Refused
		e.Detail = map[string]string{"names": strings.Join(taken, " "), "server": s.ID}
		tx.Also(e)
	}
	s.NameConflict = taken
	return nil
}

// silentSince reports whether nothing was heard of a server's agent from at on.
// Who has no agent is never silent.
func silentSince(s store.ServerRecord, at time.Time) bool {
	return !s.Unmanaged && s.RegisteredAt.Before(at) && (s.LastSeen == nil || s.LastSeen.Before(at))
}

// holder returns the server that holds a name in the project of s.
func holder(tx *store.Tx, s store.ServerRecord, name string) (store.ServerRecord, error) {
	id, err := tx.NameHolder(s.ProjectID, name)
	if err != nil {
		return store.ServerRecord{}, err
	}
	return tx.ServerByID(id)
}

// moveName gives a name to the server to, and notes in from, which holds it,
// that another has it.
func moveName(tx *store.Tx, to, from store.ServerRecord, name string) error {
	for _, n := range wantedNames(from) { // as it spells it
		if sft.HostFold(n) == sft.HostFold(name) && !slices.Contains(from.NameConflict, n) {
			from.NameConflict = append(from.NameConflict, n)
		}
	}
	if err := tx.SaveServer(from); err != nil {
		return err
	}
	return tx.GiveName(to.ProjectID, to.ID, name)
}

// giveNames is an administrator's word that a server is the one that its names
// mean, which others hold.
func giveNames(tx *store.Tx, s store.ServerRecord) error {
	held, err := tx.TakeNames(s.ProjectID, s.ID, wantedNames(s))
	if err != nil {
		return err
	}
	for _, name := range held {
		h, err := holder(tx, s, name)
		if err != nil {
			return err
		}
		if err := moveName(tx, s, h, name); err != nil {
			return err
		}
	}
	s.NameConflict = nil
	return tx.SaveServer(s)
}

// EnrollServer lets a host into the project of its enrollment token, or of its
// cloud's account.
func (p *Platform) EnrollServer(ctx context.Context, a Actor, r api.EnrollServerRequest) (api.EnrollServerReply, error) {
	var reply api.EnrollServerReply
	if _, err := ca.PublicKey(r.DeviceKey); err != nil {
		return reply, err
	}
	if err := checkFacts(&r.Facts, a.Addr); err != nil {
		return reply, err
	}
	if !p.from(a, "enroll", time.Second/10, 200) {
		return reply, &sft.Error{Code: sft.TooMany, Msg: "too many enrolments from this address", Hint: "wait a minute, then try again"}
	}
	instance, err := p.instance(r)
	if err != nil {
		return reply, err
	}
	var refused audit.Event
	err = p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		var in admission
		var err error
		if instance != nil {
			in, err = admitInstance(tx, r.CloudIdentity.Provider, *instance)
		} else {
			in, err = p.admitToken(tx, r.Token)
		}
		if in.project.ID == "" {
			return audit.Event{}, err
		}
		pr := in.project
		team, terr := tx.TeamByID(pr.TeamID)
		if terr != nil {
			return audit.Event{}, terr
		}
		refused = p.event(a, audit.ServerEnroll, team.Name, pr.Name, r.Facts.Hostname)
		refused.Detail = maps.Clone(in.detail)
		if err != nil {
			return audit.Event{}, err
		}
		done := func(id, how string) (audit.Event, error) {
			reply = api.EnrollServerReply{ServerID: id, Team: team.Name, Project: pr.Name, URL: p.URL, Revision: pr.Revision}
			reply.CA, err = p.platformCA(tx)
			e := p.event(a, audit.ServerEnroll, team.Name, pr.Name, r.Facts.Hostname)
			e.Detail = in.detail
			e.Detail["server"] = id
			if labels := lacks(nil, r.Facts.Labels); labels != "" {
				e.Detail["labels"] = labels
			}
			if how != "" {
				e.Detail["how"] = how
			}
			return e, err
		}
		// The reply to this very request may have been lost: a record that the
		// key's owner has not used yet is given again.
		if old, err := tx.ServerByKey(r.DeviceKey); err == nil && old.DeletedAt == nil && old.ProjectID == pr.ID && len(old.HostKey) == 0 && old.LastSeq == 0 && sameInstance(old.Instance, instance) {
			return done(old.ID, "told again")
		} else if err != nil && !errors.Is(err, store.ErrNotFound) {
			return audit.Event{}, err
		}
		how := ""
		if in.record != nil { // the instance's own, which it may take over
			if how, err = p.mayTakeOver(tx, *in.record, pr, r); err != nil {
				return audit.Event{}, err
			}
		}
		now := p.Now().UTC()
		s := store.ServerRecord{ID: audit.NewID(), TeamID: team.ID, ProjectID: pr.ID, Project: pr.Name, DeviceKey: r.DeviceKey,
			Facts: r.Facts, RegisteredAt: now, LastSeen: &now}
		if instance != nil {
			s.Provider, s.Instance = r.CloudIdentity.Provider, instance
		}
		if in.record != nil {
			s.ID = in.record.ID
			if err = tx.ReplaceServer(s); err == nil {
				err = tx.ServerSeen(s.ID, now)
			}
		} else {
			err = tx.AddServer(s)
		}
		if errors.Is(err, store.ErrExists) {
			return audit.Event{}, &sft.Error{Code: sft.Enrolled, Msg: "a server with this device key is enrolled already", Hint: "let the agent make a new key: remove its state and start it again"}
		} else if err != nil {
			return audit.Event{}, err
		}
		if in.record != nil {
			s.Given = in.record.Given
			if err := p.labelled(tx, a, team.Name, s, in.record.Labels()); err != nil {
				return audit.Event{}, err
			}
		}
		if err := p.takeNames(tx, a, team.Name, &s); err != nil {
			return audit.Event{}, err
		}
		if err := tx.SaveServer(s); err != nil {
			return audit.Event{}, err
		}
		if in.token != "" {
			if err := tx.UseToken(in.token); err != nil {
				return audit.Event{}, err
			}
		}
		return done(s.ID, how)
	})
	if code := sft.CodeOf(err); err != nil && (code == sft.Denied || code == sft.Enrolled) {
		if refused.Kind == "" {
			refused = p.event(a, audit.ServerEnroll, "", "", r.Facts.Hostname)
		}
		err = p.refuse(ctx, refused, err)
	}
	return reply, err
}

// An admission is where a host may enrol, and by what. With a project and an
// error, the host is refused and the project's team is told.
type admission struct {
	project store.ProjectRecord
	token   string              // id of the enrollment token, if it was one
	record  *store.ServerRecord // that the instance has already
	detail  map[string]string   // for the event
}

// admitToken finds the project of an enrollment token.
func (p *Platform) admitToken(tx *store.Tx, secret string) (admission, error) {
	var in admission
	bad := &sft.Error{Code: sft.Denied, Msg: "the enrollment token is unknown, deleted, expired or used up", Hint: "make a new enrollment token and put it into the token file"}
	t, err := tx.Token(tokenHash(secret))
	if errors.Is(err, store.ErrNotFound) {
		return in, bad
	}
	if err != nil {
		return in, err
	}
	if in.project, err = tx.ProjectByID(t.ProjectID); err != nil {
		return in, err
	}
	in.token, in.detail = t.ID, map[string]string{"token": t.ID}
	if t.ExpiresAt != nil && !t.ExpiresAt.After(p.Now()) || t.MaxUses > 0 && t.Uses >= t.MaxUses {
		return in, bad
	}
	return in, nil
}

// ServersRequest is GET /v1/teams/{team}/servers and, for one project, GET
// /v1/teams/{team}/projects/{project}/servers. The key of the list is the id.
// What is given of the rest has to be so of each server.
type ServersRequest struct {
	Team             string    `path:"team" json:"-"`
	Project          string    `path:"project" json:"-"`
	Name             string    `query:"project_name" json:"-"`
	State            sft.State `query:"state" json:"-"`
	Hostname         string    `query:"hostname" json:"-"`           // in any case
	CanonicalName    string    `query:"canonical_name" json:"-"`     // in any case
	Bastion          string    `query:"bastion" json:"-"`            // in any case
	AltNamesContains string    `query:"alt_names_contains" json:"-"` // a whole name, in any case
	CloudProvider    string    `query:"cloud_provider" json:"-"`     // aws
	Selector         string    `query:"selector" json:"-"`           // a label selector; a key without a source is one of any
	Paging
}

// server is the noun of one of the asker's team.
func (k asker) server(s store.ServerRecord, now time.Time) sft.Server {
	v := s.Server(now)
	v.Team = k.team.Name
	return v
}

// ListServers returns servers that the asker may reach, or, for those who
// may read all servers' records, all: the oldest first.
func (p *Platform) ListServers(ctx context.Context, a Actor, r ServersRequest) (api.List[sft.Server], error) {
	return read(ctx, p, a, r.Team, policy.OwnClient, func(tx *store.Tx, k asker) (api.List[sft.Server], error) {
		if r.State != "" && r.State != sft.StateActive && r.State != sft.StateInactive {
			return api.List[sft.Server]{}, &sft.Error{Code: sft.Invalid, Msg: "state " + sft.Quote(string(r.State)) + " is unknown", Hint: "use ACTIVE or INACTIVE"}
		}
		f := store.ServerFilter{State: r.State, SeenSince: p.Now().Add(-sft.ActiveFor).UnixMicro(), Hostname: r.Hostname, CanonicalName: r.CanonicalName,
			CloudProvider: r.CloudProvider, Bastion: r.Bastion, AltName: r.AltNamesContains}
		filter, err := policy.ParseFilter(r.Selector)
		if err != nil {
			return api.List[sft.Server]{}, err
		}
		reach, err := p.reachOf(tx, k.user)
		if err != nil {
			return api.List[sft.Server]{}, err
		}
		// A client lists what its person can connect to; the API lists the team.
		reads := policy.May(k.user.Status, k.roles, policy.ReadServers)
		everything := a.Client == "" && reads
		if r.Project == "" {
			r.Project = r.Name
		}
		if r.Project != "" {
			pr, err := tx.Project(k.team.ID, r.Project)
			if err == nil && !reads && !reach.some(pr.ID) {
				err = store.ErrNotFound
			}
			if err != nil {
				return api.List[sft.Server]{}, notFound(err, "project", r.Project)
			}
			f.Projects = []string{pr.ID}
		} else if !everything {
			f.Projects = reach.projects()
		}
		f.Labels = reach.labels(f.Projects, filter, everything)
		return pageOf(r.Paging, func(s store.ServerRecord) string { return s.ID },
			func(g store.Page) ([]store.ServerRecord, error) { return tx.ServersByID(k.team.ID, f, g) },
			func(s store.ServerRecord) (sft.Server, bool) {
				return k.server(s, p.Now()), filter.Matches(s.Labels()) && (everything || reach.on(s).Access)
			})
	})
}

// ServerRequest names a server of a project by its id.
type ServerRequest struct {
	Team    string `path:"team" json:"-"`
	Project string `path:"project" json:"-"`
	ID      string `path:"id" json:"-"`
}

// GetServer returns one server.
func (p *Platform) GetServer(ctx context.Context, a Actor, r ServerRequest) (sft.Server, error) {
	return read(ctx, p, a, r.Team, policy.ReadServers, func(tx *store.Tx, k asker) (sft.Server, error) {
		s, err := serverIn(tx, k, r)
		return k.server(s, p.Now()), err
	})
}

func serverIn(tx *store.Tx, k asker, r ServerRequest) (store.ServerRecord, error) {
	s, err := tx.ServerByID(r.ID)
	if err == nil && (s.TeamID != k.team.ID || s.DeletedAt != nil || r.Project != "" && sft.Fold(s.Project) != sft.Fold(r.Project)) {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.ServerRecord{}, notFound(err, "server", r.ID)
	}
	return s, nil
}

// UpdateServerRequest changes a server; what is left out stays.
type UpdateServerRequest struct {
	Team            string `path:"team" json:"-"`
	Project         string `path:"project" json:"-"`
	ID              string `path:"id" json:"-"`
	ReenrollAllowed *bool  `json:"reenroll_allowed"` // lets the instance take the record over with a new key, once; of a server that enrolled by its cloud
	KeyConflict     *bool  `json:"key_conflict"`     // false ends a key conflict: there is one agent again
	// Labels take the place of all that administrators have given the server;
	// "api." comes before a key if it is left out.
	Labels    map[string]string `json:"labels,omitzero"`
	MoveTo    string            `json:"project_name,omitempty"` // another project; given alone
	RotateKey *bool             `json:"rotate_device_key"`      // true has the agent make another device key now
	TakeNames *bool             `json:"take_names"`             // true gives the server the names that it claims and another holds
}

// UpdateServer changes what administrators say of a server, or moves it to
// another project. They say whether its instance may take its record over with
// a new device key, once, that of two agents with the server's key there is one
// again, that its agent is to make another key, that the names it claims are
// its own, whoever holds them, and what its labels are, by which access comes
// and ends at once. Labels alone are a server_admin's to set, too.
func (p *Platform) UpdateServer(ctx context.Context, a Actor, r UpdateServerRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		rest := r.ReenrollAllowed != nil || r.KeyConflict != nil || r.RotateKey != nil || r.TakeNames != nil
		action := policy.Administer
		if r.Labels != nil && !rest && r.MoveTo == "" {
			action = policy.ManageServers
		}
		k, err := p.as(tx, a, r.Team, action)
		if err != nil {
			return audit.Event{}, err
		}
		s, err := serverIn(tx, k, ServerRequest{r.Team, r.Project, r.ID})
		if err != nil {
			return audit.Event{}, err
		}
		name := s.Server(p.Now()).Name()
		move := r.MoveTo != "" && sft.Fold(r.MoveTo) != sft.Fold(s.Project)
		switch {
		case !rest && r.Labels == nil && r.MoveTo == "":
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "the request changes nothing of the server", Hint: "give labels, project_name, reenroll_allowed or rotate_device_key as true or false, key_conflict as false, or take_names as true"}
		case r.ReenrollAllowed != nil && s.Instance == nil:
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "server " + sft.Quote(name) + " did not enrol by its cloud", Hint: "delete its record and enrol it by a token"}
		case r.KeyConflict != nil && *r.KeyConflict:
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "a key_conflict is found, and not set", Hint: "delete the server's record to shut it out"}
		case r.RotateKey != nil && s.Unmanaged:
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "server " + sft.Quote(name) + " has no agent, and so no device key", Hint: "name a server that is managed"}
		case r.TakeNames != nil && !*r.TakeNames:
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "take_names gives a server the names it claims, and cannot take them away", Hint: "set it to true on the server that is to have them"}
		case move && (rest || r.Labels != nil):
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "a server is moved by a request of its own", Hint: "give project_name alone"}
		case move:
			return p.moveServer(tx, a, k, s, r.MoveTo)
		}
		same := true
		if r.Labels != nil {
			e, err := p.setLabels(tx, a, k, s, r.Labels)
			if same = errors.Is(err, errSame); same && rest {
				err = nil
			}
			if err != nil || !rest {
				return e, err
			}
			if !same {
				tx.Also(e)
			}
		}
		if same && is(r.ReenrollAllowed, s.ReenrollAllowed) && is(r.KeyConflict, s.KeyConflict) && is(r.RotateKey, s.RotateKey) && (r.TakeNames == nil || len(s.NameConflict) == 0) {
			return audit.Event{}, errSame
		}
		e := p.event(a, audit.ServerUpdate, k.team.Name, s.Project, name)
		e.Detail = map[string]string{"server": s.ID}
		if r.ReenrollAllowed != nil {
			e.Detail["reenroll_allowed"] = strconv.FormatBool(*r.ReenrollAllowed)
			if err := tx.AllowReenroll(s.ID, *r.ReenrollAllowed); err != nil {
				return e, err
			}
		}
		if r.KeyConflict != nil {
			e.Detail["key_conflict"] = strconv.FormatBool(*r.KeyConflict)
			if err := tx.SetKeyConflict(s.ID, *r.KeyConflict); err != nil {
				return e, err
			}
		}
		if r.RotateKey != nil {
			e.Detail["rotate_device_key"] = strconv.FormatBool(*r.RotateKey)
			// The agent is asked by the answer to its state request, which a new
			// revision brings about.
			if err := errors.Join(tx.WantDeviceKey(s.ID, *r.RotateKey), tx.ReviseServer(s.ID)); err != nil {
				return e, err
			}
		}
		if r.TakeNames != nil {
			e.Detail["take_names"] = strings.Join(s.NameConflict, " ")
			err = giveNames(tx, s)
		}
		return e, err
	})
}

// is reports whether what a request says, if it says it, is so already.
func is(said *bool, now bool) bool { return said == nil || *said == now }

// moveServer puts a server into another project of the team. Its agent hears
// of it by the state of that project: it shuts the accounts of who has no
// access there, ends all sessions, trusts that project's authorities alone and
// gets its certificates from them. Until then nobody is let in, because the
// server's broker has no key on record and the old authorities sign nothing
// for it any more.
func (p *Platform) moveServer(tx *store.Tx, a Actor, k asker, s store.ServerRecord, to string) (audit.Event, error) {
	pr, err := tx.Project(k.team.ID, to)
	if err != nil {
		return audit.Event{}, notFound(err, "project", to)
	}
	name := s.Server(p.Now()).Name()
	if s.Unmanaged {
		return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "server " + sft.Quote(name) + " has no agent that could be told", Hint: "delete it, and make it in the other project"}
	}
	// Who may sign in to a bound account is another's to say from then on.
	bindings, err := tx.ServerBindings(s.ID)
	if err != nil {
		return audit.Event{}, err
	}
	if len(bindings) > 0 {
		return audit.Event{}, &sft.Error{Code: sft.Exists, Msg: fmt.Sprintf("%d accounts of server %s act as service users", len(bindings), sft.Quote(name)), Hint: "remove these bindings first, and make them anew after it was moved"}
	}
	e := p.event(a, audit.ServerReassign, k.team.Name, s.Project, name)
	e.Detail = map[string]string{"server": s.ID, "project": pr.Name, "was": s.Project}
	from := s.ProjectID
	if err := tx.MoveServer(s.ID, from, pr.ID, p.Now()); err != nil {
		return e, err
	}
	if s, err = tx.ServerByID(s.ID); err != nil {
		return e, err
	}
	if err := p.takeNames(tx, a, k.team.Name, &s); err != nil {
		return e, err
	}
	if err := tx.SaveServer(s); err != nil {
		return e, err
	}
	return e, p.freeNames(tx, a, k.team.Name, from)
}

// DeleteServer deletes a server's record: its agent is told that it was, and
// its names are free again.
func (p *Platform) DeleteServer(ctx context.Context, a Actor, r ServerRequest) (struct{}, error) {
	return p.deleteServer(ctx, a, r, func(store.ServerRecord) bool { return true })
}

// deleteServer is DeleteServer for those servers that which takes.
func (p *Platform) deleteServer(ctx context.Context, a Actor, r ServerRequest, which func(store.ServerRecord) bool) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.ManageServers)
		if err != nil {
			return audit.Event{}, err
		}
		s, err := serverIn(tx, k, r)
		if err == nil && !which(s) {
			err = noSuch("server", r.ID)
		}
		if err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.ServerRemove, k.team.Name, s.Project, s.Server(p.Now()).Name())
		e.Detail = map[string]string{"server": s.ID}
		if err := tx.RemoveServer(s.ID, p.Now()); err != nil {
			return e, err
		}
		return e, p.freeNames(tx, a, k.team.Name, s.ProjectID)
	})
}

// freeNames gives the names of a server that is gone to those that claim
// them, the oldest first.
func (p *Platform) freeNames(tx *store.Tx, a Actor, team, projectID string) error {
	servers, err := tx.Servers(projectID)
	if err != nil {
		return err
	}
	slices.SortFunc(servers, func(a, b store.ServerRecord) int { return a.RegisteredAt.Compare(b.RegisteredAt) })
	for _, s := range servers {
		if len(s.NameConflict) == 0 {
			continue
		}
		if err := p.takeNames(tx, a, team, &s); err != nil {
			return err
		}
		if err := tx.SaveServer(s); err != nil {
			return err
		}
	}
	return nil
}
