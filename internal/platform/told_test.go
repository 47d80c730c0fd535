package platform_test

import (
	"slices"
	"strings"
	"testing"

	"sft"
	"sft/internal/testenv"
)

// A sudo entitlement that a group gets in a project, or loses, is told by its
// own name, beside what is told of the group.
func TestEntitlementsOfAGroupAreTold(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Project("lab")
		e.Do("POST", "/groups", m{"name": "dev"}, nil)
		for _, name := range []string{"logs", "deploy"} {
			e.Do("POST", "/entitlements/sudo", m{"name": name, "opt_no_passwd": true, "structured_commands": []m{{"command": "/bin/ls", "command_type": "executable"}}}, nil)
		}
		at := "/projects/lab/groups"
		for _, tt := range []struct {
			method, path string
			names        []string
			want, about  string
		}{
			{"POST", at, []string{"logs"}, "entitlement_sudo.add_to_project success, project.add_group success", "logs"},
			{"PUT", at + "/dev", []string{"deploy"}, "entitlement_sudo.remove_from_project success, entitlement_sudo.add_to_project success, project.add_group success", "logs"},
			{"PUT", at + "/dev", []string{"deploy", "logs"}, "entitlement_sudo.add_to_project success, project.add_group success", "logs"},
			{"PUT", at + "/dev", []string{"logs"}, "entitlement_sudo.remove_from_project success, project.add_group success", "deploy"},
			{"DELETE", at + "/dev", nil, "entitlement_sudo.remove_from_project success, project.remove_group success", "logs"},
		} {
			events := since(e, func() {
				e.Do(tt.method, tt.path, m{"name": "dev", "server_access": true, "sudo_entitlements": tt.names}, nil)
			})
			if told(events) != tt.want || events[0].Target != tt.about || events[0].Project != "lab" || events[0].Detail["group"] != "dev" {
				t.Errorf("%s %s with %v is told as %+v", tt.method, tt.path, tt.names, events)
			}
		}
	})
}

// With a group goes what it has in each project, and that is told, too.
func TestEntitlementsOfADeletedGroupAreTold(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		for _, name := range []string{"dev", "ops"} {
			e.Do("POST", "/groups", m{"name": name}, nil)
		}
		for _, name := range []string{"logs", "deploy"} {
			e.Do("POST", "/entitlements/sudo", m{"name": name, "opt_no_passwd": true, "structured_commands": []m{{"command": "/bin/ls", "command_type": "executable"}}}, nil)
		}
		for project, names := range map[string][]string{"lab": {"logs"}, "stage": {"logs", "deploy"}, "none": nil} {
			e.Project(project)
			for _, group := range []string{"dev", "ops"} {
				e.Do("POST", "/projects/"+project+"/groups", m{"name": group, "server_access": true, "sudo_entitlements": names}, nil)
			}
		}
		events := since(e, func() { e.Do("DELETE", "/groups/dev", nil, nil) })
		if want := strings.Repeat("entitlement_sudo.remove_from_project success, ", 3) + "group.delete success"; told(events) != want {
			t.Fatalf("it is told as %s, want %s", told(events), want)
		}
		var got []string
		for _, ev := range events[:3] {
			got = append(got, ev.Project+" "+ev.Target+" "+ev.Detail["group"])
		}
		slices.Sort(got)
		if want := []string{"lab logs dev", "stage deploy dev", "stage logs dev"}; !slices.Equal(got, want) {
			t.Errorf("told are %q, want %q", got, want)
		}
	})
}

// The accounts of a project's servers say whose they are.
func TestServerUsersHaveATypeAndServersATeam(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant("lab", "dev", false, "ann")
		s := e.Server("lab", testenv.Facts("lab01"))
		e.Do("POST", "/service_users", m{"name": "bot"}, nil)
		e.Do("POST", "/groups/dev/users", m{"name": "bot"}, nil)
		e.Do("POST", "/service_users/bot/bindings", m{"server": s.ID, "account": "deploy"}, nil)
		for name, want := range map[string]sft.UserType{"ann": sft.Human, "bot": sft.Service} {
			var u sft.ServerUser
			if e.Do("GET", "/projects/lab/server_users/"+name, nil, &u); u.Type != want {
				t.Errorf("%s is %+v, want %s", name, u, want)
			}
		}
		var one sft.Server
		var list struct {
			List []sft.Server `json:"list"`
		}
		e.Do("GET", "/projects/lab/servers/"+s.ID, nil, &one)
		e.Do("GET", "/servers?project_name=lab", nil, &list)
		if one.Team != testenv.Team || len(list.List) != 1 || list.List[0].Team != testenv.Team {
			t.Errorf("the server is %+v, and in the list %+v", one, list.List)
		}
	})
}

// What Windows takes counts for a login that is one there, and for no other.
func TestALoginForLinuxAlone(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		put := func(path, v string) error {
			return e.Service.Do(t.Context(), "PUT", base+path, m{"attribute_value": v}, nil)
		}
		e.User("cas")
		at, long := "/users/cas/attributes/unix_user_name", "abcdefghijklmnopqrstuvwxyz"
		refused(t, e, "a login for both", "PUT", at, m{"attribute_value": long}, sft.Invalid, `login name "`+long+`" has 26 characters, and would be the one on Windows, too`)
		refused(t, e, "a login that systems have", "PUT", at, m{"attribute_value": "docker"}, sft.Invalid, `login name "docker" is one that systems or sftd keep`)
		wantCode(t, "another login on Windows", put("/users/cas/attributes/windows_user_name", "cas.w"), "")
		wantCode(t, "a login for Linux alone", put(at, long), "")
		refused(t, e, "a login that is too long there, too", "PUT", at, m{"attribute_value": strings.Repeat("a", 33)}, sft.Invalid, "cannot be used")
		refused(t, e, "the same on Windows", "PUT", "/users/cas/attributes/windows_user_name", m{"attribute_value": long}, sft.Invalid, "cannot be used on Windows")
		var cas sft.User
		if e.Do("GET", "/users/cas", nil, &cas); cas.Login != long || cas.WindowsLogin != "cas.w" {
			t.Errorf("cas is %+v", cas)
		}
	})
}
