package policy

import (
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
		grants []sft.ProjectGroup
		want   Decision
	}{
		{"no grant, no access", sft.StatusActive, sft.Human, nil, Decision{}},
		{"a grant gives access", sft.StatusActive, sft.Human, []sft.ProjectGroup{dev}, Decision{true, false, "dev"}},
		{"an admin grant gives both", sft.StatusActive, sft.Human, []sft.ProjectGroup{sre}, Decision{true, true, "sre"}},
		{"the admin grant decides", sft.StatusActive, sft.Human, []sft.ProjectGroup{dev, sre}, Decision{true, true, "sre"}},
		{"order does not matter", sft.StatusActive, sft.Human, []sft.ProjectGroup{sre, ops, dev}, Decision{true, true, "ops"}},
		{"admin without access is nothing", sft.StatusActive, sft.Human, []sft.ProjectGroup{adminOnly}, Decision{}},
		{"admin without access adds nothing", sft.StatusActive, sft.Human, []sft.ProjectGroup{adminOnly, dev}, Decision{true, false, "dev"}},
		{"a disabled user has nothing", sft.StatusDisabled, sft.Human, []sft.ProjectGroup{sre}, Decision{}},
		{"a deleted user has nothing", sft.StatusDeleted, sft.Human, []sft.ProjectGroup{sre}, Decision{}},
		{"a service user reaches no server", sft.StatusActive, sft.Service, []sft.ProjectGroup{sre}, Decision{}},
		{"an unknown status is not active", "", sft.Human, []sft.ProjectGroup{sre}, Decision{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Reach(tt.status, tt.kind, tt.grants); got != tt.want {
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
