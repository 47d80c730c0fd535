// Package policy decides who may do what. It is pure: the facts come in, a
// decision comes out, and nothing is read or written on the way. Package
// platform reads the facts in the transaction that does the deed.
//
// Whatever is not allowed by a line of this package is refused.
package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"sft"
)

// An Action is what somebody wants to do in a team, apart from reaching a
// server.
type Action string

// The actions.
const (
	Read       Action = "read"        // see the team's objects, secrets aside
	ReadAudit  Action = "read_audit"  // see what happened
	ReadTokens Action = "read_tokens" // see that enrollment tokens exist
	// ReadServers is to see the records of all servers.
	ReadServers Action = "read_servers"
	Administer  Action = "administer" // change the team's objects
	OwnClient   Action = "own_client" // see oneself, see and remove a client of one's own
	// ReadAccess is to ask what anybody is to a server, and why.
	ReadAccess Action = "read_access"
	// ReadPreauths and Preauthorize are to see preauthorizations and to give them
	// to others, PreauthorizeSelf is to give them to oneself.
	ReadPreauths     Action = "read_preauthorizations"
	Preauthorize     Action = "preauthorize"
	PreauthorizeSelf Action = "preauthorize_self"
	// ManageServers is to set servers' labels, to make the records of those without
	// an agent, and to delete servers. RaiseSelf is to get more on a server by a
	// label that one sets oneself: see Raises.
	ManageServers Action = "manage_servers"
	RaiseSelf     Action = "raise_self"
)

// allowed says which roles may do what.
var allowed = map[Action][]sft.Role{
	Read:        {sft.AccessAdmin, sft.AccessUser, sft.ReportingUser},
	ReadAudit:   {sft.AccessAdmin, sft.AccessUser, sft.ReportingUser},
	ReadTokens:  {sft.AccessAdmin, sft.ReportingUser},
	ReadServers: {sft.AccessAdmin, sft.AccessUser, sft.ReportingUser, sft.ServerAdmin},
	Administer:  {sft.AccessAdmin},

	ReadAccess:       {sft.AccessAdmin, sft.ReportingUser},
	ReadPreauths:     {sft.AccessAdmin, sft.ReportingUser, sft.Preauthorizer},
	Preauthorize:     {sft.AccessAdmin, sft.Preauthorizer},
	PreauthorizeSelf: {sft.AccessAdmin},

	ManageServers: {sft.AccessAdmin, sft.ServerAdmin},
	RaiseSelf:     {sft.AccessAdmin},
}

// Allowed returns the roles that may do an action, those first that may do the
// least beside it; none for what takes no role.
func Allowed(action Action) []sft.Role {
	may := map[sft.Role]int{}
	for _, roles := range allowed {
		for _, r := range roles {
			may[r]++
		}
	}
	return slices.SortedFunc(slices.Values(allowed[action]), func(a, b sft.Role) int {
		return cmp.Or(cmp.Compare(may[a], may[b]), cmp.Compare(a, b))
	})
}

// May reports whether somebody of that status, with those roles, may do the
// action. Who is not active may do nothing.
func May(status sft.Status, roles []sft.Role, action Action) bool {
	if status != sft.StatusActive {
		return false
	}
	if action == OwnClient {
		return true
	}
	return slices.ContainsFunc(allowed[action], func(r sft.Role) bool { return slices.Contains(roles, r) })
}

// A Grant is the place of one of a user's groups in a project.
type Grant struct {
	sft.ProjectGroup
	selector Selector
	bad      error // the selector cannot be read: the grant is for no server
}

// NewGrant reads the selector of a place, once for all servers.
func NewGrant(g sft.ProjectGroup) Grant {
	s, err := ParseSelector(g.ServersSelector)
	return Grant{g, s, err}
}

// On reports whether the place counts on a server with these labels: the access
// that it gives, and all that goes with it.
func (g Grant) On(labels map[string]string) bool { return g.bad == nil && g.selector.Matches(labels) }

// Hint is that of the grant's selector. Of one that gives nothing anywhere, ok
// is true and the hint has no keys.
func (g Grant) Hint() (h Hint, ok bool) {
	if g.bad != nil || !g.ServerAccess {
		return Hint{}, true
	}
	return g.selector.Hint()
}

// A Server is what a decision goes by of one.
type Server struct {
	ID          string
	Labels      map[string]string // by their whole keys
	State       sft.State
	KeyConflict bool
}

// Facts are all that a decision on somebody and a server rests on.
type Facts struct {
	Status sft.Status
	Kind   sft.UserType
	Bound  bool    // a service user that is bound to an account of a host
	Grants []Grant // in the server's project, of the groups that the user is in, and of no others
	// Server is nil where it is asked about whichever server of the project:
	// a grant then counts if it may count on one.
	Server *Server
	// RequirePreauth is the project's. Preauths are the user's for the project,
	// good or not.
	RequirePreauth bool
	Preauths       []sft.Preauthorization
	Now            time.Time
}

// A Missing is the first thing that stands in the way.
type Missing string

// What may be missing. The first four mean no access, the others that there is
// access and that nothing is issued now.
const (
	Nothing        Missing = ""
	ActiveUser     Missing = "active_user"  // the user is not active
	Binding        Missing = "binding"      // a service user that no account of a host acts as
	ServerAccess   Missing = "group"        // no group of the user has server_access in the project
	MatchingServer Missing = "selector"     // those that have it are for other servers
	ActiveServer   Missing = "server_state" // the server is silent, or deleted
	OneKey         Missing = "key_conflict" // two agents use its key
	Preauthorized  Missing = "preauthorization"
)

// A Decision is what somebody is to one server.
type Decision struct {
	// Access is an account on the server, and that they see it and find the way
	// to it.
	Access bool
	Admin  bool
	By     string   // the group that gives the access
	Sudo   []string // names of what they may run by sudo; an administrator needs none
	// Issue is that credentials may be issued now. What was issued before, and
	// what is open, goes by Access alone.
	Issue   bool
	Preauth string // the id of the preauthorization that Issue rests on
	Missing Missing
}

// A Step is one thing that a decision looked at.
type Step struct {
	Rule string // status, kind, group, access, admin, sudo, server, preauthorization
	OK   bool
	Text string
}

// Decide decides. Of several groups the one with admin rights gives the access,
// then the first by name.
func Decide(f Facts) Decision { return decide(f, func(string, bool, string, ...any) {}) }

// Explain decides, and says by which steps.
func Explain(f Facts) (d Decision, steps []Step) {
	d = decide(f, func(rule string, ok bool, format string, args ...any) {
		steps = append(steps, Step{rule, ok, fmt.Sprintf(format, args...)})
	})
	return d, steps
}

func decide(f Facts, say func(rule string, ok bool, format string, args ...any)) Decision {
	var d Decision
	need := func(ok bool, m Missing) {
		if !ok && d.Missing == Nothing {
			d.Missing = m
		}
	}
	active := f.Status == sft.StatusActive
	say("status", active, "the user is %s", f.Status)
	need(active, ActiveUser)
	// A service user comes by a client that a host's agent has vouched for;
	// without one it has no way to come, and no account is made for it.
	kind := f.Kind == sft.Human || f.Kind == sft.Service && f.Bound
	switch {
	case f.Kind == sft.Human:
		say("kind", true, "a person")
	case kind:
		say("kind", true, "a service user that an account of a server acts as")
	default:
		say("kind", false, "a service user that no account of a server acts as: it needs a binding")
	}
	need(kind, Binding)

	elsewhere := ServerAccess
	var sudo []string
	for _, g := range f.Grants {
		if !g.ServerAccess {
			say("group", false, "group %s is in the project without server_access", g.Group)
			continue // admin rights without access are no access
		}
		if why := g.not(f.Server); why != "" {
			say("group", false, "group %s gives access elsewhere: %s", g.Group, why)
			elsewhere = MatchingServer
			continue
		}
		say("group", true, "group %s gives access%s", g.Group, g.where())
		if !active || !kind {
			continue
		}
		if !d.Access || g.ServerAdmin && !d.Admin || g.ServerAdmin == d.Admin && g.Group < d.By {
			d.By = g.Group
		}
		d.Access, d.Admin = true, d.Admin || g.ServerAdmin
		sudo = append(sudo, g.SudoEntitlements...)
	}
	need(d.Access, elsewhere)
	if !d.Access {
		switch d.Missing {
		case ActiveUser:
			say("access", false, "none, for who is not active")
		case Binding:
			say("access", false, "none, without a binding")
		default:
			say("access", false, "no group of the user gives access to this server")
		}
		return d
	}
	say("access", true, "by group %s", d.By)
	if d.Admin {
		say("admin", true, "an administrator of the server: group %s has server_admin", d.By)
	} else {
		slices.Sort(sudo)
		d.Sudo = slices.Compact(sudo)
		say("admin", false, "no administrator of the server")
		if len(d.Sudo) > 0 {
			say("sudo", true, "sudo entitlements: %s", strings.Join(d.Sudo, ", "))
		}
	}

	if s := f.Server; s != nil {
		here := s.State == sft.StateActive
		say("server", here, "the server is %s", s.State)
		need(here, ActiveServer)
		if s.KeyConflict {
			say("server", false, "two agents use the server's key, and nothing is issued for it")
		}
		need(!s.KeyConflict, OneKey)
	}
	if f.RequirePreauth {
		d.Preauth = f.preauth(say)
		need(d.Preauth != "", Preauthorized)
	}
	d.Issue = d.Missing == Nothing
	return d
}

// not says why a grant does not count on a server, or "".
func (g Grant) not(s *Server) string {
	if g.bad != nil {
		return g.bad.Error()
	}
	if s == nil {
		return ""
	}
	r := g.selector.unmet(s.Labels)
	if r == nil {
		return ""
	}
	var has []string
	for i := range r {
		if v, ok := s.Labels[r[i].Key()]; ok {
			has = append(has, r[i].Key()+"="+v)
		}
	}
	if has == nil {
		return fmt.Sprintf("its selector wants %s, which the server has not", r)
	}
	return fmt.Sprintf("its selector wants %s, and the server has %s", r, strings.Join(has, ", "))
}

// where says on which servers a grant counts, and whose word that is.
func (g Grant) where() string {
	if g.ServersSelector == "" {
		return ""
	}
	text := fmt.Sprintf(" to servers with %s", g.selector)
	if keys := g.selector.ByHost(); keys != nil {
		text += fmt.Sprintf(" (%s is the host's own word)", strings.Join(keys, ", "))
	}
	return text
}

// Raises returns the first of somebody's grants, in their order, by which they
// are more on a server with these labels than before: have access, administer
// it, run more by sudo or are in another local group. It returns "" if there is
// none. What a selector wants of labels that others say counts as met, so that
// it makes no difference whose label is there first.
func Raises(grants []Grant, before, after map[string]string) string {
	var firm []Grant // those that no host's word can take away
	for _, g := range grants {
		if g.bad == nil && len(g.selector.ByHost()) == 0 {
			firm = append(firm, g)
		}
	}
	had := Decide(Facts{Status: sft.StatusActive, Kind: sft.Human, Grants: firm, Server: &Server{Labels: before}})
	for _, g := range grants {
		more := !had.Access || g.ServerAdmin || len(g.SudoEntitlements) > 0 || g.CreateServerGroup
		said := g.selector.of(sft.LabelAPI)
		gives := g.ServerAccess || g.CreateServerGroup // whoever has an account is in the local group
		if gives && g.bad == nil && more && !had.Admin && !said.Matches(before) && said.Matches(after) {
			return g.Group
		}
	}
	return ""
}

// preauth returns the id of a preauthorization that is good now, or "".
func (f Facts) preauth(say func(rule string, ok bool, format string, args ...any)) string {
	id := ""
	for _, p := range f.Preauths {
		from, until := p.StartsAt.UTC().Format(time.RFC3339), p.ExpiresAt.UTC().Format(time.RFC3339)
		switch {
		case p.Disabled:
			say("preauthorization", false, "%s is disabled", p.ID)
		case !p.ExpiresAt.After(f.Now):
			say("preauthorization", false, "%s ended at %s", p.ID, until)
		case p.StartsAt.After(f.Now):
			say("preauthorization", false, "%s begins at %s", p.ID, from)
		case f.Server != nil && len(p.Servers) > 0 && !slices.Contains(p.Servers, f.Server.ID):
			say("preauthorization", false, "%s is for other servers", p.ID)
		default:
			say("preauthorization", true, "%s is good until %s", p.ID, until)
			if id == "" {
				id = p.ID
			}
		}
	}
	if id == "" {
		say("preauthorization", false, "the project requires one that is good now, for this user and this server")
	}
	return id
}

// Roles returns the roles that count for a request. A client that a server's
// agent asked for has none: it reaches servers, and whoever holds the host does
// not hold the team by it.
func Roles(kind sft.UserType, byClient bool, roles []sft.Role) []sft.Role {
	if kind != sft.Human && byClient {
		return nil
	}
	return roles
}
