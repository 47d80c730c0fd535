package platform_test

import (
	"testing"

	"sft"
	"sft/internal/api"
	"sft/internal/platform"
	"sft/internal/testenv"
)

// A program that looks after the team's things puts them again and again: what
// is so already is no event, and nobody hears of it.
func TestWhatIsSoAlreadyIsNoChange(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant("lab", "dev", false, "ann", "bob")
		e.Do("POST", "/service_users", m{"name": "bot"}, nil)
		s := e.Server("lab", testenv.Facts("lab01"))
		c := e.Client("ann")
		var sudo sft.SudoEntitlement
		entitlement := m{"name": "logs", "opt_no_passwd": true, "structured_commands": []m{{"command": "/bin/ls", "command_type": "executable"}}, "add_env": []string{"A", "B"}}
		e.Do("POST", "/entitlements/sudo", entitlement, &sudo)
		e.Do("POST", "/entitlements/sudo", m{"name": "a", "opt_no_passwd": true, "structured_commands": []m{{"command": "/bin/ls", "command_type": "executable"}}}, nil)
		var pre sft.Preauthorization
		now := e.Clock.Now()
		e.Do("POST", "/projects/lab/preauthorizations", m{"user_name": "ann", "expires_at": now.Add(1e12)}, &pre)
		for _, tt := range []struct {
			method, path string
			body         any
		}{
			{"PUT", "/settings", m{"client_session_duration": 7200, "allow_device_code": false}},
			{"PUT", "/users/bob", m{"status": "DISABLED"}},
			{"PUT", "/users/bob", m{"status": "ACTIVE"}},
			{"PUT", "/service_users/bot", m{"status": "DISABLED"}},
			{"PUT", "/groups/dev", m{"roles": []string{"reporting_user", "server_admin"}}},
			{"PUT", "/groups/dev", m{"roles": []string{}}},
			{"POST", "/groups/dev/users", m{"name": "bot"}},
			{"PUT", "/projects/lab", m{"max_session_seconds": 600, "channels": m{"audio": false}, "client_config_options": m{"ssh.port_forward_method": "netcat"}}},
			{"POST", "/projects/lab/client_config_options", m{"config_key": "ssh.port_forward_method", "config_value": "native"}},
			{"PUT", "/projects/lab/groups/dev", m{"server_access": true, "servers_selector": "!api.frozen", "create_server_group": true, "sudo_entitlements": []string{"logs", "a"}}},
			{"PUT", "/projects/lab/groups/dev", m{"name": "dev", "server_access": true, "server_admin": true, "servers_selector": ""}},
			{"PUT", "/entitlements/sudo/" + sudo.ID, m{"name": "logs", "opt_no_passwd": true, "structured_commands": []m{{"command": "/bin/cat", "command_type": "executable", "args_type": "any"}}}},
			{"PUT", "/entitlements/sudo/" + sudo.ID, entitlement},
			{"PUT", "/projects/lab/preauthorizations/" + pre.ID, m{"servers": []string{s.ID}, "starts_at": now.Add(1e9), "disabled": true}},
			{"PUT", "/projects/lab/preauthorizations/" + pre.ID, m{"servers": []string{}, "projects": []string{"lab", testenv.Project}}},
			{"PUT", "/servers/" + s.ID, m{"labels": m{"env": "lab", "api.x": "1"}}},
			{"PUT", "/projects/lab/servers/" + s.ID, m{"labels": m{}, "rotate_device_key": true}},
			{"PUT", "/servers/" + s.ID, m{"rotate_device_key": false}},
			{"PUT", "/clients/" + c.ID, m{"state": "PENDING"}},
			{"PUT", "/clients/" + c.ID, m{"state": "ACTIVE", "user_name": "bob"}},
			{"PUT", "/users/ann/attributes/unix_user_name", m{"attribute_value": "annie"}},
			{"PUT", "/users/ann/attributes/unix_uid", m{"attribute_value": "4711"}},
			{"PUT", "/groups/dev/attributes/unix_group_name", m{"attribute_value": "sft_developers"}},
			{"PUT", "/groups/dev/attributes/unix_gid", m{"attribute_value": "4712"}},
		} {
			what := tt.method + " " + tt.path
			if events := since(e, func() { e.Do(tt.method, tt.path, tt.body, nil) }); len(events) == 0 {
				t.Errorf("%s: nothing is told of the change", what)
			}
			before := revisions(e) + e.State(s).Revision
			if events := since(e, func() { e.Do(tt.method, tt.path, tt.body, nil) }); len(events) > 0 {
				t.Errorf("%s: once more is told as %s", what, told(events))
			}
			if after := revisions(e) + e.State(s).Revision; after != before {
				t.Errorf("%s: once more is another revision, %d and then %d", what, before, after)
			}
		}
		for path, body := range map[string]m{
			"/servers/" + s.ID:              {"project_name": "LAB"},
			"/projects/lab/servers/" + s.ID: {"take_names": true, "key_conflict": false},
		} {
			if events := since(e, func() { e.Do("PUT", path, body, nil) }); len(events) > 0 {
				t.Errorf("%v is told as %s", body, told(events))
			}
		}
		// The reply is the same.
		var u sft.User
		e.Do("PUT", "/service_users/bot", m{"status": "DISABLED"}, &u)
		if u.Name != "bot" || u.Status != sft.StatusDisabled {
			t.Errorf("a service user put again is answered as %+v", u)
		}
		// What else is wrong, is.
		for path, body := range map[string]m{"/users/" + testenv.ServiceUser: {"status": "ACTIVE"}, "/groups/owners": {"roles": []string{"access_admin"}}} {
			wantCode(t, path, e.Service.Do(t.Context(), "PUT", base+path, body, nil), sft.Denied)
		}
	})
}

// revisions are those of all projects.
func revisions(e *testenv.Env) (n int64) {
	var list api.List[sft.Project]
	e.Do("GET", "/projects", nil, &list)
	for _, p := range list.List {
		n += p.Revision
	}
	return n
}

// A signed request that changes nothing is used up all the same: what it says
// may be a change later.
func TestWhatIsSoAlreadyIsNoReplay(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		c := e.Client(testenv.Owner)
		body := []byte(`{"client_session_duration":7200}`)
		header, err := api.Sign(c.Key, "client:"+c.ID, e.URL, "PUT", base+"/settings", body, e.Clock.Now())
		if err != nil {
			t.Fatal(err)
		}
		e.Do("PUT", "/settings", m{"client_session_duration": 7200}, nil)
		if code, reply := send(t, e, "PUT", base+"/settings", body, header); code != "" {
			t.Errorf("what is so already: %s", reply)
		}
		e.Do("PUT", "/settings", m{"client_session_duration": 3600}, nil)
		if code, reply := send(t, e, "PUT", base+"/settings", body, header); code != sft.Replayed {
			t.Errorf("the same request again: %s %s", code, reply)
		}
		var got platform.TeamSettings
		if e.Do("GET", "/settings", nil, &got); got.ClientSession != 3600 {
			t.Errorf("it has changed the settings to %+v", got)
		}
	})
}
