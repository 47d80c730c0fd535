package platform_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"sft/internal/testenv"
)

// What is shown when a thing is made is what is shown from then on.
func TestWhatIsMadeReadsTheSame(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		s := e.Server("lab", testenv.Facts("lab01"))
		e.User("ann")
		e.Do("POST", "/service_users", m{"name": "bot"}, nil)
		e.Do("POST", "/groups", m{"name": "dev"}, nil)
		e.Clock.Set(e.Clock.Now().Add(123456789 * time.Nanosecond))
		soon := e.Clock.Now().Add(1234567891111).In(time.FixedZone("", 3600))
		sudo := []m{{"command": "/bin/ls", "command_type": "executable"}}
		for _, tt := range []struct {
			path string
			body m
			get  string // where it is read; with "#", that field of it is in the path; "?": only in the list
		}{
			{"/users", m{"name": "bob", "full_name": "Bob"}, "#name"},
			{"/service_users", m{"name": "robbie"}, "#name"},
			{"/service_users/bot/keys", nil, "#id"},
			{"/service_users/bot/bindings", m{"server": s.ID, "account": "deploy"}, "?"},
			{"/groups", m{"name": "g", "roles": []string{"access_user"}}, "#name"},
			{"/entitlements/sudo", m{"name": "logs", "opt_no_passwd": true, "structured_commands": sudo}, "#id"},
			{"/projects", m{"name": "p"}, "#name"},
			{"/projects/lab/groups", m{"name": "dev", "server_access": true, "sudo_entitlements": []string{"logs"}}, "#name"},
			{"/projects/lab/client_config_options", m{"config_key": "ssh.port_forward_method", "config_value": "netcat"}, "#config_key"},
			{"/projects/lab/server_enrollment_tokens", m{"description": "x", "expires_at": soon, "max_uses": 3}, "#id"},
			{"/projects/lab/cloud_accounts", m{"provider": "aws", "account_id": "123456789012", "description": "x"}, "#id"},
			{"/projects/lab/preauthorizations", m{"user_name": "ann", "expires_at": soon, "servers": []string{s.ID}}, "#id"},
			{"/projects/lab/unmanaged_servers", m{"hostname": "jump", "port": 22, "labels": m{"env": "x"}}, "?"},
			{"/rdp_signing_certificate", nil, ""},
		} {
			var made, got map[string]any
			e.Do("POST", tt.path, tt.body, &made)
			switch field, ok := strings.CutPrefix(tt.get, "#"); {
			case ok:
				e.Do("GET", tt.path+"/"+made[field].(string), nil, &got)
			case tt.get == "?":
				var l struct {
					List []map[string]any `json:"list"`
				}
				e.Do("GET", tt.path, nil, &l)
				got = l.List[len(l.List)-1]
			default:
				e.Do("GET", tt.path, nil, &got)
			}
			for _, once := range []string{"first_use_url", "key_secret", "token"} { // shown once
				if _, ok := got[once]; ok {
					t.Errorf("GET of %s shows %s", tt.path, once)
				}
				delete(made, once)
			}
			if !reflect.DeepEqual(made, got) {
				a, _ := json.Marshal(made)
				b, _ := json.Marshal(got)
				t.Errorf("POST %s shows\n%s, and GET\n%s", tt.path, a, b)
			}
		}
	})
}
