package platform

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sft"
	"sft/internal/policy"
	"sft/internal/store"
)

// maxHops caps the hops before a target.
const maxHops = 10

// A router finds the way of one asker to a server, in one transaction. What it
// returns was decided: every server of a route is one that the asker may
// reach.
type router struct {
	p        *Platform
	tx       *store.Tx
	k        asker
	reach    reach
	projects map[string]store.ProjectRecord // of the servers that were found
}

func (p *Platform) router(tx *store.Tx, k asker) (router, error) {
	reach, err := p.reachOf(tx, k.user)
	return p.routerOf(tx, k, reach), err
}

func (p *Platform) routerOf(tx *store.Tx, k asker, reach reach) router {
	return router{p, tx, k, reach, map[string]store.ProjectRecord{}}
}

// A step is one host of a route: a record of the team, or, without one, a host
// that only the person's own SSH knows.
type step struct {
	name     string
	server   *store.ServerRecord
	project  store.ProjectRecord // the server's
	decision policy.Decision     // on the server
	login    string              // on a host without an agent; empty: as the person's SSH has it
	port     int                 // likewise
}

// enrolled reports whether an agent answers for the host.
func (s step) enrolled() bool { return s.server != nil && !s.server.Unmanaged }

// sameHost reports whether a and b are one.
func (s step) sameHost(b step) bool {
	if s.server != nil || b.server != nil {
		return s.server != nil && b.server != nil && s.server.ID == b.server.ID
	}
	return sft.HostFold(s.name) == sft.HostFold(b.name) && s.port == b.port
}

// step is a server that the asker may reach, as a step.
func (r router) step(s store.ServerRecord) (step, error) {
	pr, ok := r.projects[s.ProjectID]
	if !ok {
		var err error
		if pr, err = r.tx.ProjectByID(s.ProjectID); err != nil {
			return step{}, err
		}
	}
	f, err := r.reach.all(s, pr)
	return step{name: s.Server(r.p.Now()).Name(), server: &s, project: pr, decision: policy.Decide(f)}, err
}

// refusal is why nothing is issued for a host of a route. For one without an
// agent nothing ever is.
func (r router) refusal(s step) error {
	if !s.enrolled() {
		return nil
	}
	return r.p.refusal(r.k.user, s)
}

// candidates are the servers of the team that a name may mean, by what they
// are to the asker. silent and closed are one of each, if there is any.
type candidates struct {
	active         []store.ServerRecord
	silent, closed *store.ServerRecord
	missing        policy.Missing // of the closed one
}

// none reports whether the name is no server's, whoever asks.
func (c candidates) none() bool { return len(c.active) == 0 && c.silent == nil && c.closed == nil }

// find returns what a name may mean: a server's id or a name that it holds,
// with its project before it or not.
func (r router) find(target string) (candidates, error) {
	found, err := r.named(target)
	return r.candidates(found), err
}

// candidates sorts servers by what they are to the asker.
func (r router) candidates(found []store.ServerRecord) (c candidates) {
	for _, s := range found {
		switch d := r.reach.on(s); {
		case !d.Access:
			c.closed, c.missing = &s, d.Missing
		case d.Missing == policy.ActiveServer:
			c.silent = &s
		default:
			c.active = append(c.active, s)
		}
	}
	return c
}

// named returns the servers of the team that a name may mean, whoever asks.
func (r router) named(target string) ([]store.ServerRecord, error) {
	project, name, ok := strings.Cut(target, "/")
	if !ok {
		project, name = "", target
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		name = ip.String() // as it is held, however it was typed
	}
	named, err := r.tx.ServersNamed(r.k.team.ID, name)
	if err != nil {
		return nil, err
	}
	var found []store.ServerRecord
	for _, n := range named {
		r.projects[n.In.ID] = n.In
		found = append(found, n.ServerRecord)
	}
	// A name that looks like the id of another server takes nobody there.
	if i := slices.IndexFunc(found, func(s store.ServerRecord) bool { return s.ID == name }); i >= 0 {
		found = found[i : i+1]
	}
	return slices.DeleteFunc(found, func(s store.ServerRecord) bool { return project != "" && sft.Fold(s.Project) != sft.Fold(project) }), nil
}

// resolve finds the one active server that a name means, among those that the
// asker may reach. Who may read the team learns that a server is there but
// closed to them; to others it does not exist.
func (r router) resolve(target string) (store.ServerRecord, error) {
	if err := sft.CheckTarget(target); err != nil {
		return store.ServerRecord{}, err
	}
	c, err := r.find(target)
	if err != nil {
		return store.ServerRecord{}, err
	}
	return r.one(target, c)
}

// one returns the server if there is exactly one, and says why there is not.
func (r router) one(target string, c candidates) (store.ServerRecord, error) {
	none := store.ServerRecord{}
	switch {
	case len(c.active) == 1:
		return c.active[0], nil
	case len(c.active) > 1:
		_, name, ok := strings.Cut(target, "/")
		if !ok {
			name = target
		}
		return none, &sft.Error{Code: sft.Ambiguous,
			Msg:  fmt.Sprintf("%s is the name of %d servers: %s", sft.Quote(target), len(c.active), r.names(c.active)),
			Hint: fmt.Sprintf("name the project too, as in \"%s/%s\"", c.active[0].Project, name)}
	case c.silent != nil:
		return none, &sft.Error{Code: sft.NotFound,
			Msg:  fmt.Sprintf("server %s has not been in touch since %s", sft.Quote(target), lastSeen(*c.silent)),
			Hint: "start sftd on it, or delete the record if the host is gone"}
	case c.closed != nil && c.missing == policy.MatchingServer && policy.May(r.k.user.Status, r.k.roles, policy.Read):
		return none, &sft.Error{Code: sft.Denied,
			Msg:  fmt.Sprintf("the groups of user %s in project %s are for other servers than %s", sft.Quote(r.k.user.Name), sft.Quote(c.closed.Project), sft.Quote(target)),
			Hint: "ask an administrator: its labels match no servers_selector of these groups"}
	case c.closed != nil && policy.May(r.k.user.Status, r.k.roles, policy.Read):
		return none, &sft.Error{Code: sft.Denied,
			Msg:  fmt.Sprintf("user %s has no access to the servers of project %s", sft.Quote(r.k.user.Name), sft.Quote(c.closed.Project)),
			Hint: "ask an administrator for a group with server_access in that project"}
	}
	return none, &sft.Error{Code: sft.NotFound, Msg: "there is no server " + sft.Quote(target),
		Hint: "see \"sft list-servers\" for those that you can reach"}
}

// names lists servers for a message.
func (r router) names(list []store.ServerRecord) string {
	var names []string
	for _, s := range list {
		names = append(names, fmt.Sprintf("%s/%s (%s)", s.Project, s.Server(r.p.Now()).Name(), s.ID))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// hops returns the hosts that are crossed on the way to the target, in their
// order. via, if there is any, takes the place of the target's own Bastion; the
// Bastions of its first host come before it.
func (r router) hops(target step, via []string) ([]step, error) {
	if len(via) > maxHops {
		return nil, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the way goes through %d hosts", len(via)), Hint: fmt.Sprintf("name %d at most", maxHops)}
	}
	var named []step
	for _, v := range via {
		s, err := r.via(v)
		if err != nil {
			return nil, err
		}
		named = append(named, s)
	}
	way := append(named, target)
	// The way is found from its first host backwards.
	for way[0].enrolled() && way[0].server.Facts.Bastion != "" {
		b, err := r.bastion(way[0])
		if err != nil {
			return nil, err
		}
		way = slices.Insert(way, 0, b)
		if err := circle(way); err != nil {
			return nil, err
		}
		if len(way) > maxHops+1 {
			return nil, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the way to server %s goes through more than %d hosts", sft.Quote(target.name), maxHops), Hint: "look at Bastion in the sftd.yaml of each: " + wayOf(way)}
		}
	}
	if err := circle(way); err != nil {
		return nil, err
	}
	for _, s := range way[:len(way)-1] {
		if err := crossable(s); err != nil {
			return nil, err
		}
	}
	return way[:len(way)-1], nil
}

// circle refuses a way that goes through a host twice.
func circle(way []step) error {
	for i, a := range way {
		for j := i + 1; j < len(way); j++ {
			if a.sameHost(way[j]) {
				return &sft.Error{Code: sft.Invalid, Msg: "the way goes in a circle: " + wayOf(way[i:j+1]),
					Hint: "name each host once in --via, and look at Bastion in the sftd.yaml of each"}
			}
		}
	}
	return nil
}

func wayOf(way []step) string {
	var names []string
	for _, s := range way {
		names = append(names, sft.Quote(s.name))
	}
	return strings.Join(names, " -> ")
}

// crossable refuses an enrolled server that cannot be gone through.
func crossable(s step) error {
	switch {
	case !s.enrolled():
		return nil
	case !s.project.CreateServerUsers:
		return noAccounts(fmt.Sprintf("server %s cannot be gone through", sft.Quote(s.name)), s.project)
	case s.server.Facts.SSH == nil:
		return &sft.Error{Code: sft.Unavailable, Msg: fmt.Sprintf("server %s cannot be gone through: sftd looks after no SSH server on it", sft.Quote(s.name)), Hint: "look at \"sftd status\" on it, or go another way with --via"}
	case throughBroker(*s.server, s.project):
		return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("server %s cannot be gone through: its SSH server is reached through its broker alone", sft.Quote(s.name)),
			Hint: "go another way with --via, or through a server of a project without user_on_demand_period that lets SSH in directly"}
	}
	return nil
}

// throughBroker reports whether a server's SSH server is to be reached through
// the broker: its host says so, or the account has to be made first.
func throughBroker(s store.ServerRecord, pr store.ProjectRecord) bool {
	return s.Facts.SSH != nil && s.Facts.SSH.Broker || pr.UserOnDemand > 0
}

// viaLoginRE is a login name on a host without an agent: the person's own word,
// which is handed to their own SSH.
var viaLoginRE = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`)

// via finds one host that was named with --via: a server by the rules of a
// target, or else a plain host, perhaps with user@ before it and :port behind.
// What is a server's name is never taken for a plain host, even if the asker
// may not know of the server: their SSH would go where they did not mean.
func (r router) via(v string) (step, error) {
	var s step
	login, target, ok := strings.Cut(v, "@")
	if !ok {
		login, target = "", v
	} else if !viaLoginRE.MatchString(login) {
		return s, &sft.Error{Code: sft.Invalid, Msg: "--via " + sft.Quote(v) + " cannot be used", Hint: "name a server, or a host as user@host"}
	}
	if err := sft.CheckTarget(target); err != nil {
		return s, err
	}
	c, err := r.find(target)
	if err != nil {
		return s, err
	}
	port := 0
	if host, text, ok := strings.Cut(target, ":"); ok && c.none() && !strings.Contains(text, ":") {
		if port, err = strconv.Atoi(text); err != nil || port < 1 || port > 65535 || strconv.Itoa(port) != text {
			return s, &sft.Error{Code: sft.Invalid, Msg: "--via " + sft.Quote(v) + " has no usable port", Hint: "use 1 to 65535, or leave it out"}
		}
		if target = host; sft.CheckTarget(target) != nil {
			return s, sft.CheckTarget(target)
		}
		if c, err = r.find(target); err != nil {
			return s, err
		}
	}
	if c.none() && !strings.Contains(target, "/") {
		return step{name: target, login: login, port: port}, nil
	}
	rec, err := r.one(target, c)
	if err != nil {
		return s, err
	}
	if s, err = r.step(rec); err != nil {
		return s, err
	}
	switch {
	case s.enrolled() && login != "":
		return s, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("server %s is enrolled, and its login is yours: %s", sft.Quote(s.name), r.k.user.LoginOn(s.server.Facts.OSType)), Hint: fmt.Sprintf("leave out \"%s@\"", login)}
	case port != 0:
		return s, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("server %s has a port of its own", sft.Quote(s.name)), Hint: fmt.Sprintf("leave out \":%d\"", port)}
	}
	s.login = login
	return s, nil
}

// bastion finds the server that another one names as its Bastion. A host can
// send people only through servers of the team that they may reach. Where
// one holds the name in its own project it is that one, or none: elsewhere any
// host can claim the name of one that is silent, or closed to the asker. Then
// it goes by rank: an id or canonical name counts before an
// instance's id, that before a host name, then an alternative name, then an
// address.
func (r router) bastion(of step) (step, error) {
	name := of.server.Facts.Bastion
	found, err := r.named(name)
	if err != nil {
		return step{}, err
	}
	own := slices.DeleteFunc(slices.Clone(found), func(s store.ServerRecord) bool { return s.ProjectID != of.project.ID })
	if len(own) > 0 {
		found = own
	}
	c := r.candidates(found)
	var best []store.ServerRecord
	rank := 0
	for _, s := range c.active {
		n := rankOf(s, name)
		switch {
		case best == nil || n < rank:
			best, rank = []store.ServerRecord{s}, n
		case n == rank:
			best = append(best, s)
		}
	}
	c.active = best
	if len(best) > 1 {
		return step{}, &sft.Error{Code: sft.Ambiguous, Msg: fmt.Sprintf("the bastion %s of server %s is the name of %d servers: %s", sft.Quote(name), sft.Quote(of.name), len(best), r.names(best)),
			Hint: "put the id of the right one into Bastion in its sftd.yaml, or go another way with --via"}
	}
	s, err := r.one(name, c)
	if err != nil {
		if e, ok := errors.AsType[*sft.Error](err); ok {
			err = &sft.Error{Code: e.Code, Msg: fmt.Sprintf("the bastion %s of server %s: %s", sft.Quote(name), sft.Quote(of.name), e.Msg), Hint: e.Hint + "; or go another way with --via"}
		}
		return step{}, err
	}
	return r.step(s)
}

// rankOf is how good a reason a server has to be meant by a name: less is
// better.
func rankOf(s store.ServerRecord, name string) int {
	is := func(n string) bool { return n != "" && sft.HostFold(n) == sft.HostFold(name) }
	switch f := s.Facts; {
	case s.ID == name, is(f.CanonicalName):
		return 1
	case s.Instance != nil && is(s.Instance.InstanceID):
		return 2
	case f.CanonicalName == "" && is(f.Hostname):
		return 3
	case slices.ContainsFunc(f.AltNames, is):
		return 4
	}
	return 5
}

// address is where a server is reached, from the host before it: by its
// private address where both are in one network.
func address(s store.ServerRecord, before *step) string {
	f := s.Facts
	if before != nil && before.enrolled() && f.Network != "" && f.PrivateAddress != "" && before.server.Facts.Network == f.Network {
		return f.PrivateAddress
	}
	return f.AccessAddress
}
