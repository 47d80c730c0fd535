package policy

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"sft"
)

var now = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

// The places of groups in a project, and a server, that the cases are made of.
var (
	dev   = sft.ProjectGroup{Group: "dev", ServerAccess: true, SudoEntitlements: []string{"logs", "deploy"}}
	sre   = sft.ProjectGroup{Group: "sre", ServerAccess: true, ServerAdmin: true}
	ops   = sft.ProjectGroup{Group: "ops", ServerAccess: true, ServerAdmin: true}
	db    = sft.ProjectGroup{Group: "db", ServerAccess: true, SudoEntitlements: []string{"restart-db", "logs"}}
	odd   = sft.ProjectGroup{Group: "odd", ServerAdmin: true, SudoEntitlements: []string{"all"}}
	web   = Server{ID: "S1", Labels: map[string]string{"api.env": "prod", "sftd.role": "web", "system.os_type": "linux", "system.managed": "true"}, State: sft.StateActive}
	good  = sft.Preauthorization{ID: "P1", StartsAt: now.Add(-time.Hour), ExpiresAt: now.Add(time.Hour)}
	until = func(t time.Time) sft.Preauthorization {
		return sft.Preauthorization{ID: "P2", StartsAt: now.Add(-2 * time.Hour), ExpiresAt: t}
	}
)

// on is a group's place with a selector.
func on(g sft.ProjectGroup, selector string) sft.ProjectGroup {
	g.ServersSelector = selector
	return g
}

// A query is what a case changes of an active person's who asks for web in a
// project that requires no preauthorization.
type query struct {
	status   sft.Status
	kind     sft.UserType
	bound    bool
	grants   []sft.ProjectGroup
	server   *Server
	required bool
	preauths []sft.Preauthorization
}

func (q query) facts() Facts {
	f := Facts{Status: q.status, Kind: q.kind, Bound: q.bound, Server: q.server, RequirePreauth: q.required, Preauths: q.preauths, Now: now}
	if f.Status == "" {
		f.Status = sft.StatusActive
	}
	if f.Kind == "" {
		f.Kind = sft.Human
	}
	if f.Server == nil {
		f.Server = &web
	}
	for _, g := range q.grants {
		f.Grants = append(f.Grants, NewGrant(g))
	}
	return f
}

type places = []sft.ProjectGroup

func changed(f func(*Server)) *Server {
	s := web
	f(&s)
	return &s
}

// The rules, by example. docs/policy.md has the same table.
var cases = []struct {
	name string
	q    query
	want Decision
}{
	{"a person without a group in the project", query{}, Decision{Missing: ServerAccess}},
	{"a group with server_access", query{grants: places{dev}}, Decision{Access: true, By: "dev", Sudo: []string{"deploy", "logs"}, Issue: true}},
	{"and with server_admin", query{grants: places{sre}}, Decision{Access: true, Admin: true, By: "sre", Issue: true}},
	{"two groups: the one with server_admin decides", query{grants: places{dev, sre}}, Decision{Access: true, Admin: true, By: "sre", Issue: true}},
	{"two of a kind: the first by name, whatever their order", query{grants: places{sre, ops, dev}}, Decision{Access: true, Admin: true, By: "ops", Issue: true}},
	{"sudo entitlements add up", query{grants: places{dev, db}}, Decision{Access: true, By: "db", Sudo: []string{"deploy", "logs", "restart-db"}, Issue: true}},
	{"server_admin without server_access", query{grants: places{odd}}, Decision{Missing: ServerAccess}},
	{"which adds nothing to another group either", query{grants: places{odd, dev}}, Decision{Access: true, By: "dev", Sudo: []string{"deploy", "logs"}, Issue: true}},

	{"somebody disabled", query{status: sft.StatusDisabled, grants: places{sre}}, Decision{Missing: ActiveUser}},
	{"somebody deleted", query{status: sft.StatusDeleted, grants: places{sre}}, Decision{Missing: ActiveUser}},
	{"a status that is unknown", query{status: "new", grants: places{sre}}, Decision{Missing: ActiveUser}},
	{"a service user that no account acts as", query{kind: sft.Service, grants: places{sre}}, Decision{Missing: Binding}},
	{"a service user that an account is bound to", query{kind: sft.Service, bound: true, grants: places{sre}}, Decision{Access: true, Admin: true, By: "sre", Issue: true}},
	{"bound, and without a group", query{kind: sft.Service, bound: true}, Decision{Missing: ServerAccess}},
	{"bound, and disabled", query{status: sft.StatusDisabled, kind: sft.Service, bound: true, grants: places{sre}}, Decision{Missing: ActiveUser}},
	{"a type of user that is unknown", query{kind: "robot", bound: true, grants: places{sre}}, Decision{Missing: Binding}},

	{"a selector that the server matches", query{grants: places{on(sre, "api.env=prod")}}, Decision{Access: true, Admin: true, By: "sre", Issue: true}},
	{"a selector of other servers", query{grants: places{on(sre, "api.env=lab")}}, Decision{Missing: MatchingServer}},
	{"an administrator's server, and others", query{grants: places{on(sre, "api.env=lab"), dev}}, Decision{Access: true, By: "dev", Sudo: []string{"deploy", "logs"}, Issue: true}},
	{"sudo of a group for other servers", query{grants: places{on(dev, "api.env=lab"), db}}, Decision{Access: true, By: "db", Sudo: []string{"logs", "restart-db"}, Issue: true}},
	{"all requirements count", query{grants: places{on(sre, "api.env=prod,sftd.role in (db,cache)")}}, Decision{Missing: MatchingServer}},
	{"a key without a source is the administrators'", query{grants: places{on(sre, "env=prod")}}, Decision{Access: true, Admin: true, By: "sre", Issue: true}},
	{"and never the host's", query{grants: places{on(sre, "role=web")}}, Decision{Missing: MatchingServer}},
	{"a host's word counts where it is asked for", query{grants: places{on(sre, "sftd.role=web")}}, Decision{Access: true, Admin: true, By: "sre", Issue: true}},
	{"a label that must not be there", query{grants: places{on(sre, "!api.pci,env!=lab")}}, Decision{Access: true, Admin: true, By: "sre", Issue: true}},
	{"a selector that cannot be read", query{grants: places{on(sre, "env in prod")}}, Decision{Missing: MatchingServer}},

	{"a server that is silent", query{grants: places{sre}, server: changed(func(s *Server) { s.State = sft.StateInactive })}, Decision{Access: true, Admin: true, By: "sre", Missing: ActiveServer}},
	{"a server whose key two agents use", query{grants: places{sre}, server: changed(func(s *Server) { s.KeyConflict = true })}, Decision{Access: true, Admin: true, By: "sre", Missing: OneKey}},

	{"a preauthorization is required, and missing", query{grants: places{sre}, required: true}, Decision{Access: true, Admin: true, By: "sre", Missing: Preauthorized}},
	{"and there", query{grants: places{sre}, required: true, preauths: []sft.Preauthorization{good}}, Decision{Access: true, Admin: true, By: "sre", Issue: true, Preauth: "P1"}},
	{"and over", query{grants: places{sre}, required: true, preauths: []sft.Preauthorization{until(now)}}, Decision{Access: true, Admin: true, By: "sre", Missing: Preauthorized}},
	{"and yet to come", query{grants: places{sre}, required: true, preauths: []sft.Preauthorization{{ID: "P3", StartsAt: now.Add(1), ExpiresAt: now.Add(time.Hour)}}}, Decision{Access: true, Admin: true, By: "sre", Missing: Preauthorized}},
	{"and disabled", query{grants: places{sre}, required: true, preauths: []sft.Preauthorization{{ID: "P4", ExpiresAt: now.Add(time.Hour), Disabled: true}}}, Decision{Access: true, Admin: true, By: "sre", Missing: Preauthorized}},
	{"and for this server among others", query{grants: places{sre}, required: true, preauths: []sft.Preauthorization{until(now), {ID: "P5", ExpiresAt: now.Add(time.Hour), Servers: []string{"S0", "S1"}}}}, Decision{Access: true, Admin: true, By: "sre", Issue: true, Preauth: "P5"}},
	{"and for another server", query{grants: places{sre}, required: true, preauths: []sft.Preauthorization{{ID: "P6", ExpiresAt: now.Add(time.Hour), Servers: []string{"S2"}}}}, Decision{Access: true, Admin: true, By: "sre", Missing: Preauthorized}},
	{"it gives no access by itself", query{required: true, preauths: []sft.Preauthorization{good}}, Decision{Missing: ServerAccess}},
	{"and is not looked at where none is required", query{grants: places{sre}, preauths: []sft.Preauthorization{until(now)}}, Decision{Access: true, Admin: true, By: "sre", Issue: true}},
}

func TestDecide(t *testing.T) {
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			got := Decide(tt.q.facts())
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("Decide = %+v, want %+v", got, tt.want)
			}
			told, steps := Explain(tt.q.facts())
			if !reflect.DeepEqual(told, got) || len(steps) == 0 || steps[0].Rule != "status" {
				t.Errorf("Explain = %+v by %v, want %+v", told, steps, got)
			}
		})
	}
}

// rows is the table of docs/policy.md.
func rows() string {
	var b strings.Builder
	for _, c := range cases {
		d := c.want
		access := "no"
		if d.Access {
			access = "by " + d.By
		}
		if d.Admin {
			access += ", as administrator"
		}
		if d.Sudo != nil {
			access += ", sudo: " + strings.Join(d.Sudo, " ")
		}
		issue := "yes"
		if !d.Issue {
			issue = "no"
		}
		if d.Missing != Nothing {
			issue += " (`" + string(d.Missing) + "`)"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", c.name, access, issue)
	}
	return b.String()
}

// roleRows is the table of roles of docs/policy.md.
func roleRows() string {
	roles := []sft.Role{sft.AccessAdmin, sft.AccessUser, sft.ReportingUser, sft.Preauthorizer, sft.ServerAdmin, ""}
	var b strings.Builder
	for _, a := range []struct {
		action Action
		is     string
	}{
		{Read, "see the team's objects"},
		{ReadAudit, "see what happened"},
		{ReadServers, "see the records of all servers"},
		{ReadTokens, "see that enrollment tokens are there"},
		{ReadAccess, "ask what anybody is to a server, and why"},
		{ReadPreauths, "see preauthorizations"},
		{Preauthorize, "give them to others"},
		{PreauthorizeSelf, "give them to oneself"},
		{ManageServers, "set labels of servers, make records of unmanaged ones, delete servers"},
		{RaiseSelf, "set a label by which one gets more on a server oneself"},
		{Administer, "everything else in the team"},
		{OwnClient, "oneself and one's own clients"},
	} {
		fmt.Fprintf(&b, "| %s |", a.is)
		for _, r := range roles {
			is := "no"
			if May(sft.StatusActive, []sft.Role{r}, a.action) {
				is = "yes"
			}
			b.WriteString(" " + is + " |")
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestTheDocumentHasTheTables(t *testing.T) {
	b, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{rows(), roleRows()} {
		if !strings.Contains(strings.ReplaceAll(string(b), "\r\n", "\n"), want) {
			t.Errorf("docs/policy.md does not have these rows:\n%s", want)
		}
	}
}

// What is asked of no server in particular is whether there may be one.
func TestWhicheverServer(t *testing.T) {
	f := query{grants: places{on(sre, "env=lab"), on(dev, "sftd.x")}}.facts()
	f.Server = nil
	want := Decision{Access: true, Admin: true, By: "sre", Issue: true}
	if got := Decide(f); !reflect.DeepEqual(got, want) {
		t.Errorf("Decide = %+v, want %+v", got, want)
	}
	f.Grants = []Grant{NewGrant(odd), NewGrant(on(sre, "a in b"))}
	if got := Decide(f); got.Access {
		t.Errorf("Decide = %+v", got)
	}
}

// The steps say what is missing, of all that was looked at.
func TestExplainSaysWhy(t *testing.T) {
	s := changed(func(s *Server) { s.State, s.KeyConflict = sft.StateInactive, true })
	_, steps := Explain(query{grants: places{odd, on(sre, "env=lab"), on(ops, "!env"), on(db, "zone"), on(dev, "role=web,sftd.role=web"), on(dev, "sftd.role=web")}, server: s, required: true,
		preauths: []sft.Preauthorization{until(now)}}.facts())
	var got []string
	for _, s := range steps {
		got = append(got, fmt.Sprintf("%s %v: %s", s.Rule, s.OK, s.Text))
	}
	want := []string{
		"status true: the user is ACTIVE",
		"kind true: a person",
		"group false: group odd is in the project without server_access",
		"group false: group sre gives access elsewhere: its selector wants api.env=lab, and the server has api.env=prod",
		"group false: group ops gives access elsewhere: its selector wants !api.env, and the server has api.env=prod",
		"group false: group db gives access elsewhere: its selector wants api.zone, which the server has not",
		"group false: group dev gives access elsewhere: its selector wants api.role=web, which the server has not",
		"group true: group dev gives access to servers with sftd.role=web (sftd.role is the host's own word)",
		"access true: by group dev",
		"admin false: no administrator of the server",
		"sudo true: sudo entitlements: deploy, logs",
		"server false: the server is INACTIVE",
		"server false: two agents use the server's key, and nothing is issued for it",
		"preauthorization false: P2 ended at 2026-03-01T09:00:00Z",
		"preauthorization false: the project requires one that is good now, for this user and this server",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the steps are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// FuzzDecide checks what must hold whatever the facts are: a yes names a grant
// of the user's own that is for this server, and nothing is issued without
// access, to nobody who is not active, and for no server that is not.
func FuzzDecide(f *testing.F) {
	f.Add("ACTIVE", "human", false, "env=prod", true, true, "prod", "ACTIVE", false, true, int64(1))
	f.Add("DISABLED", "service", true, "sftd.env!=prod", true, false, "", "INACTIVE", true, false, int64(-1))
	f.Fuzz(func(t *testing.T, status, kind string, bound bool, selector string, access, admin bool, label, state string, conflict, required bool, ends int64) {
		s := &Server{ID: "S", Labels: map[string]string{"api.env": label, "sftd.env": label}, State: sft.State(state), KeyConflict: conflict}
		g := NewGrant(sft.ProjectGroup{Group: "g", ServerAccess: access, ServerAdmin: admin, ServersSelector: selector})
		d := Decide(Facts{Status: sft.Status(status), Kind: sft.UserType(kind), Bound: bound, Grants: []Grant{g}, Server: s, RequirePreauth: required,
			Preauths: []sft.Preauthorization{{ID: "P", ExpiresAt: now.Add(time.Duration(ends))}}, Now: now})
		switch {
		case d.Access && (status != "ACTIVE" || !access || !g.On(s.Labels) || d.By != "g"):
			t.Errorf("access without a reason: %+v", d)
		case d.Admin && (!d.Access || !admin):
			t.Errorf("an administrator without a reason: %+v", d)
		case d.Issue && (!d.Access || state != "ACTIVE" || conflict || required && ends <= 0):
			t.Errorf("credentials without a reason: %+v", d)
		case d.Issue != (d.Missing == Nothing):
			t.Errorf("nothing is missing, and nothing is issued, or both: %+v", d)
		}
	})
}

func TestMay(t *testing.T) {
	tests := []struct {
		name   string
		status sft.Status
		roles  []sft.Role
		action Action
		want   bool
	}{
		{"an admin administers", sft.StatusActive, []sft.Role{sft.AccessAdmin}, Administer, true},
		{"a user does not", sft.StatusActive, []sft.Role{sft.AccessUser, sft.ReportingUser}, Administer, false},
		{"a reporter reads what happened", sft.StatusActive, []sft.Role{sft.ReportingUser}, ReadAudit, true},
		{"a user reads", sft.StatusActive, []sft.Role{sft.AccessUser}, Read, true},
		{"a user does not see tokens", sft.StatusActive, []sft.Role{sft.AccessUser}, ReadTokens, false},
		{"without a role nobody reads", sft.StatusActive, nil, Read, false},
		{"without a role one's own client can go", sft.StatusActive, nil, OwnClient, true},
		{"a disabled admin does nothing", sft.StatusDisabled, []sft.Role{sft.AccessAdmin}, Read, false},
		{"a disabled user has no client", sft.StatusDisabled, nil, OwnClient, false},
		{"an unknown action is refused", sft.StatusActive, []sft.Role{sft.AccessAdmin}, "reboot", false},
		{"who may preauthorize does no more", sft.StatusActive, []sft.Role{sft.Preauthorizer}, Read, false},
		{"and does that", sft.StatusActive, []sft.Role{sft.Preauthorizer}, Preauthorize, true},
		{"for others", sft.StatusActive, []sft.Role{sft.Preauthorizer}, PreauthorizeSelf, false},
		{"a reporter asks about others", sft.StatusActive, []sft.Role{sft.ReportingUser}, ReadAccess, true},
		{"a user does not", sft.StatusActive, []sft.Role{sft.AccessUser}, ReadAccess, false},
		{"who manages servers does no more", sft.StatusActive, []sft.Role{sft.ServerAdmin}, Read, false},
		{"and does that", sft.StatusActive, []sft.Role{sft.ServerAdmin}, ManageServers, true},
		{"and sees what there is of them", sft.StatusActive, []sft.Role{sft.ServerAdmin}, ReadServers, true},
		{"who may preauthorize does not", sft.StatusActive, []sft.Role{sft.Preauthorizer}, ReadServers, false},
		{"for the servers of others", sft.StatusActive, []sft.Role{sft.ServerAdmin}, RaiseSelf, false},
		{"a user manages none", sft.StatusActive, []sft.Role{sft.AccessUser, sft.ReportingUser, sft.Preauthorizer}, ManageServers, false},
		{"an unknown role is none", sft.StatusActive, []sft.Role{"root"}, Administer, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := May(tt.status, tt.roles, tt.action); got != tt.want {
				t.Errorf("May = %v, want %v", got, tt.want)
			}
		})
	}
}

// Whoever is refused is told to ask for the least that would do.
func TestAllowed(t *testing.T) {
	for action, want := range map[Action]string{
		Read:             "[access_user reporting_user access_admin]",
		ReadServers:      "[server_admin access_user reporting_user access_admin]",
		ReadTokens:       "[reporting_user access_admin]",
		ReadPreauths:     "[preauthorization reporting_user access_admin]",
		Preauthorize:     "[preauthorization access_admin]",
		PreauthorizeSelf: "[access_admin]",
		ManageServers:    "[server_admin access_admin]",
		Administer:       "[access_admin]",
		OwnClient:        "[]",
	} {
		if got := fmt.Sprint(Allowed(action)); got != want {
			t.Errorf("%s is allowed to %s, want %s", action, got, want)
		}
	}
}

// The rules of labels that one sets oneself, by example.
func TestRaises(t *testing.T) {
	local := sft.ProjectGroup{Group: "local", ServerAccess: true, CreateServerGroup: true, ServersSelector: "env=prod"}
	plain := func(selector string) sft.ProjectGroup {
		return sft.ProjectGroup{Group: "plain", ServerAccess: true, ServersSelector: selector}
	}
	only := sft.ProjectGroup{Group: "only", CreateServerGroup: true, ServersSelector: "env=prod"}
	type labels = map[string]string
	lab, prod := labels{"api.env": "lab", "sftd.role": "web"}, labels{"api.env": "prod", "sftd.role": "web"}
	for _, tt := range []struct {
		name          string
		grants        places
		before, after labels
		want          string
	}{
		{"without a group there is nothing to get", nil, lab, prod, ""},
		{"access that was not there", places{plain("env=prod")}, lab, prod, "plain"},
		{"by a label that is taken away", places{plain("!api.frozen")}, labels{"api.frozen": ""}, labels{}, "plain"},
		{"by a value that is another now", places{plain("env!=lab")}, lab, prod, "plain"},
		{"access that was there", places{plain("env=prod")}, prod, prod, ""},
		{"access that goes", places{plain("env=prod")}, prod, lab, ""},
		{"the same access by another group", places{plain("env=lab"), plain("env=prod")}, lab, prod, ""},
		{"admin rights beside access", places{plain(""), on(sre, "env=prod")}, lab, prod, "sre"},
		{"sudo beside access", places{plain(""), on(dev, "env=prod")}, lab, prod, "dev"},
		{"a local group beside access", places{plain(""), local}, lab, prod, "local"},
		{"a local group whose members have access by another", places{plain(""), only}, lab, prod, "only"},
		{"access that hangs on the host's word", places{plain("sftd.role=web"), plain("env=prod")}, lab, prod, "plain"},
		{"admin rights that hang on the host's word", places{on(sre, "sftd.role=web"), plain("env=prod")}, lab, prod, "plain"},
		{"an administrator has all of it", places{sre, local, on(dev, "env=prod")}, lab, prod, ""},
		{"a group without server_access gives nothing", places{on(odd, "env=prod")}, lab, prod, ""},
		{"a selector that cannot be read gives nothing", places{on(dev, "env in prod")}, lab, prod, ""},
		{"what the host says meanwhile may come later", places{plain("env=prod,sftd.role=db")}, lab, prod, "plain"},
		{"and what it alone says is not the label's doing", places{plain("sftd.role=db")}, lab, prod, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Raises(query{grants: tt.grants}.facts().Grants, tt.before, tt.after); got != tt.want {
				t.Errorf("Raises = %q, want %q", got, tt.want)
			}
		})
	}
}

// FuzzRaises checks that labels which raise nobody leave nobody with more than
// before, whatever the selectors are.
func FuzzRaises(f *testing.F) {
	f.Add("api.env=prod", "env!=lab,sftd.env=prod", false, "lab", "prod", "prod")
	f.Add("!api.env", "env in (a,b)", true, "a", "b", "")
	f.Add("sftd.env=a,api.env", "", true, "", "b", "a")
	f.Fuzz(func(t *testing.T, one, two string, admin bool, from, to, host string) {
		grants := query{grants: places{
			{Group: "one", ServerAccess: true, SudoEntitlements: []string{"logs"}, ServersSelector: one},
			{Group: "two", ServerAccess: true, ServerAdmin: admin, ServersSelector: two},
		}}.facts().Grants
		server := func(label string) map[string]string { return map[string]string{"api.env": label, "sftd.env": host} }
		if Raises(grants, server(from), server(to)) != "" {
			return
		}
		is := func(label string) Decision {
			return Decide(Facts{Status: sft.StatusActive, Kind: sft.Human, Grants: grants, Server: &Server{Labels: server(label)}})
		}
		a, b := is(from), is(to)
		if b.Access && !a.Access || b.Admin && !a.Admin || !a.Admin && len(b.Sudo) > len(a.Sudo) {
			t.Errorf("from %+v to %+v", a, b)
		}
	})
}

func TestRoles(t *testing.T) {
	all := []sft.Role{sft.AccessAdmin}
	for _, tt := range []struct {
		name     string
		kind     sft.UserType
		byClient bool
		want     int
	}{
		{"a person, by a client", sft.Human, true, 1},
		{"a person, on the web", sft.Human, false, 1},
		{"a service user, by its key", sft.Service, false, 1},
		{"a service user, by a host's client", sft.Service, true, 0},
		{"a type of user that is unknown, by a client", "", true, 0},
	} {
		if got := Roles(tt.kind, tt.byClient, all); len(got) != tt.want {
			t.Errorf("%s: Roles = %q, want %d", tt.name, got, tt.want)
		}
	}
}
