package platform

import (
	"testing"

	"sft"
	"sft/internal/api"
	"sft/internal/store"
)

func TestThroughBroker(t *testing.T) {
	for _, tt := range []struct {
		name   string
		ssh    *api.SSHFacts
		period int64
		want   bool
	}{
		{"SSH that lets in directly", &api.SSHFacts{Port: 22}, 0, false},
		{"SSH behind the broker", &api.SSHFacts{Port: 22, Broker: true}, 0, true},
		{"accounts on demand", &api.SSHFacts{Port: 22}, 1, true},
		{"both", &api.SSHFacts{Port: 22, Broker: true}, 3600, true},
		{"no SSH", nil, 0, false},
	} {
		s := store.ServerRecord{Facts: api.Facts{SSH: tt.ssh}}
		pr := store.ProjectRecord{Project: sft.Project{CreateServerUsers: true, UserOnDemand: tt.period}}
		if got := throughBroker(s, pr); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if err := crossable(step{name: "x", server: &s, project: pr}); (err == nil) != (tt.ssh != nil && !tt.want) {
			t.Errorf("%s: going through it: %v", tt.name, err)
		}
		pr.CreateServerUsers = false
		if err := crossable(step{name: "x", server: &s, project: pr}); sft.CodeOf(err) != sft.Denied {
			t.Errorf("%s, in a project without accounts: going through it: %v", tt.name, err)
		}
	}
}

func TestRankOf(t *testing.T) {
	instance := &sft.InstanceDetails{InstanceID: "i-1"}
	for _, tt := range []struct {
		name string
		rec  store.ServerRecord
		want int
	}{
		{"an id", store.ServerRecord{ID: "i-1"}, 1},
		{"a canonical name", store.ServerRecord{Facts: api.Facts{CanonicalName: "I-1.local", Hostname: "x"}}, 1},
		{"the same as an alternative name too", store.ServerRecord{Facts: api.Facts{CanonicalName: "i-1", AltNames: []string{"i-1"}}}, 1},
		{"an instance id", store.ServerRecord{Instance: instance, Facts: api.Facts{Hostname: "i-1"}}, 2},
		{"an instance id that is only claimed", store.ServerRecord{Facts: api.Facts{InstanceID: "i-1", Hostname: "i-1"}}, 3},
		{"a host name", store.ServerRecord{Facts: api.Facts{Hostname: "I-1"}}, 3},
		{"a host name that another name replaces", store.ServerRecord{Facts: api.Facts{CanonicalName: "x", Hostname: "i-1", AltNames: []string{"i-1"}}}, 4},
		{"an alternative name", store.ServerRecord{Facts: api.Facts{AltNames: []string{"x", "i-1"}}}, 4},
		{"an address", store.ServerRecord{Facts: api.Facts{Hostname: "x", AccessAddress: "i-1"}}, 5},
	} {
		if got := rankOf(tt.rec, "i-1"); got != tt.want {
			t.Errorf("%s: rank %d, want %d", tt.name, got, tt.want)
		}
	}
}
