package policy

import (
	"slices"
	"testing"

	"sft"
)

func TestReach(t *testing.T) {
	dev := sft.ProjectGroup{Group: "dev", ServerAccess: true}
	sre := sft.ProjectGroup{Group: "sre", ServerAccess: true, ServerAdmin: true}
	ops := sft.ProjectGroup{Group: "ops", ServerAccess: true, ServerAdmin: true}
	adminOnly := sft.ProjectGroup{Group: "odd", ServerAdmin: true}
	tests := []struct {
		name   string
		status sft.Status
		kind   sft.UserType
		bound  bool
		grants []sft.ProjectGroup
		want   Decision
	}{
		{"no grant, no access", sft.StatusActive, sft.Human, false, nil, Decision{}},
		{"a grant gives access", sft.StatusActive, sft.Human, false, []sft.ProjectGroup{dev}, Decision{true, false, "dev"}},
		{"an admin grant gives both", sft.StatusActive, sft.Human, false, []sft.ProjectGroup{sre}, Decision{true, true, "sre"}},
		{"the admin grant decides", sft.StatusActive, sft.Human, false, []sft.ProjectGroup{dev, sre}, Decision{true, true, "sre"}},
		{"order does not matter", sft.StatusActive, sft.Human, false, []sft.ProjectGroup{sre, ops, dev}, Decision{true, true, "ops"}},
		{"admin without access is nothing", sft.StatusActive, sft.Human, false, []sft.ProjectGroup{adminOnly}, Decision{}},
		{"admin without access adds nothing", sft.StatusActive, sft.Human, false, []sft.ProjectGroup{adminOnly, dev}, Decision{true, false, "dev"}},
		{"a disabled user has nothing", sft.StatusDisabled, sft.Human, false, []sft.ProjectGroup{sre}, Decision{}},
		{"a deleted user has nothing", sft.StatusDeleted, sft.Human, false, []sft.ProjectGroup{sre}, Decision{}},
		{"a service user reaches no server", sft.StatusActive, sft.Service, false, []sft.ProjectGroup{sre}, Decision{}},
		{"a bound one does by its groups", sft.StatusActive, sft.Service, true, []sft.ProjectGroup{dev}, Decision{true, false, "dev"}},
		{"a bound one may be an administrator there", sft.StatusActive, sft.Service, true, []sft.ProjectGroup{sre}, Decision{true, true, "sre"}},
		{"bound without a grant is no access", sft.StatusActive, sft.Service, true, nil, Decision{}},
		{"bound with admin alone is no access", sft.StatusActive, sft.Service, true, []sft.ProjectGroup{adminOnly}, Decision{}},
		{"bound and disabled has nothing", sft.StatusDisabled, sft.Service, true, []sft.ProjectGroup{sre}, Decision{}},
		{"bound and deleted has nothing", sft.StatusDeleted, sft.Service, true, []sft.ProjectGroup{sre}, Decision{}},
		{"a binding is nothing to a type of user that is unknown", sft.StatusActive, "", true, []sft.ProjectGroup{sre}, Decision{}},
		{"an unknown status is not active", "", sft.Human, false, []sft.ProjectGroup{sre}, Decision{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Reach(tt.status, tt.kind, tt.bound, tt.grants); got != tt.want {
				t.Errorf("Reach = %+v, want %+v", got, tt.want)
			}
		})
	}
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

func TestSudo(t *testing.T) {
	db := sft.ProjectGroup{Group: "db", ServerAccess: true, SudoEntitlements: []string{"restart-db", "logs"}}
	web := sft.ProjectGroup{Group: "web", ServerAccess: true, SudoEntitlements: []string{"logs", "deploy"}}
	shut := sft.ProjectGroup{Group: "shut", SudoEntitlements: []string{"everything"}}
	boss := sft.ProjectGroup{Group: "boss", ServerAccess: true, ServerAdmin: true}
	for _, tt := range []struct {
		name   string
		grants []sft.ProjectGroup
		want   []string
	}{
		{"no group, nothing", nil, nil},
		{"a group's", []sft.ProjectGroup{web}, []string{"deploy", "logs"}},
		{"the union, each once", []sft.ProjectGroup{db, web}, []string{"deploy", "logs", "restart-db"}},
		{"a group without access gives none", []sft.ProjectGroup{shut}, nil},
		{"nor beside one with access", []sft.ProjectGroup{shut, web}, []string{"deploy", "logs"}},
		{"an administrator needs none", []sft.ProjectGroup{boss, web}, nil},
	} {
		if got := Sudo(Reach(sft.StatusActive, sft.Human, false, tt.grants), tt.grants); !slices.Equal(got, tt.want) {
			t.Errorf("%s: Sudo = %q, want %q", tt.name, got, tt.want)
		}
	}
	if got := Sudo(Reach(sft.StatusDisabled, sft.Human, false, []sft.ProjectGroup{web}), []sft.ProjectGroup{web}); got != nil {
		t.Errorf("somebody who is disabled may run %q", got)
	}
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
