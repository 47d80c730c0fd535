package webapi_test

import (
	"net/http"
	"strings"
	"testing"

	"sft/internal/audit"
	"sft/internal/testenv"
)

// What a body or a query names is the team's own: what another team has is
// answered to the byte as what there is not, apart from the time, and is left
// as it was.
func TestNamesOfAnotherTeam(t *testing.T) { testenv.Each(t, namesOfAnotherTeam) }

func namesOfAnotherTeam(t *testing.T, e *testenv.Env) {
	as, m := cast(t, e)
	zoe := addClient(t, e, "other", "zoe")
	other := &maker{Env: e, t: t, team: "other", as: e.Signed(zoe.Key, "client:"+zoe.ID), n: 100_000}
	other.Do("POST", "/projects", map[string]string{"name": testenv.Project}, nil)
	other.host = other.enroll(testenv.Project, "their01")
	foreign := map[string]string{
		"user":    other.make("user", "/v1/teams/other/users"),
		"service": other.make("user", "/v1/teams/other/service_users"),
		"group":   other.make("group", "/v1/teams/other/groups"),
		"project": other.make("project", "/v1/teams/other/projects"),
		"sudo":    other.make("id", "/v1/teams/other/entitlements/sudo"),
		"server":  other.host,
		"name":    "their01",
	}
	var entitlement struct{ Name string }
	other.Do("GET", "/entitlements/sudo/"+foreign["sudo"], nil, &entitlement)
	foreign["sudo"] = entitlement.Name
	client, group, server := m.make("id", base+"/clients"), m.make("group", base+"/groups"), m.make("id", base+"/projects/"+testenv.Project+"/servers")
	const project = "/projects/" + testenv.Project
	watched := watch(t, e.DBURL)
	for _, tt := range []struct {
		who                      int
		method, path, body, kind string
	}{
		{robot, "POST", "/groups/" + group + "/users", `{"name":"$X"}`, "user"},
		{robot, "POST", "/groups/" + group + "/users", `{"name":"$X"}`, "service"},
		{robot, "PUT", "/clients/" + client, `{"user_name":"$X","state":"ACTIVE"}`, "user"},
		{robot, "GET", "/clients?username=$X", "", "user"},
		{robot, "POST", project + "/groups", `{"name":"$X","server_access":true}`, "group"},
		{robot, "POST", project + "/groups", `{"name":"` + group + `","sudo_entitlements":["$X"]}`, "sudo"},
		{robot, "PUT", project + "/servers/" + server, `{"project_name":"$X"}`, "project"},
		{robot, "GET", "/servers?project_name=$X", "", "project"},
		{robot, "GET", project + "/servers?hostname=$X", "", "name"},
		{robot, "GET", project + "/servers/" + server + "/access?user=$X", "", "user"},
		{robot, "POST", project + "/preauthorizations", `{"user_name":"$X","expires_at":"2027-01-01T00:00:00Z"}`, "user"},
		{robot, "POST", project + "/preauthorizations", `{"user_name":"plain","projects":["$X"],"expires_at":"2027-01-01T00:00:00Z"}`, "project"},
		{robot, "POST", project + "/preauthorizations", `{"user_name":"plain","servers":["$X"],"expires_at":"2027-01-01T00:00:00Z"}`, "server"},
		{robot, "POST", "/service_users/ci/bindings", `{"server":"$X","account":"deploy"}`, "server"},
		{robot, "GET", "/auditsV2?user=$X", "", "user"},
		{robot, "GET", "/auditsV2?target=$X", "", "name"},
		{admin, "GET", "/resolve?target=$X", "", "name"},
		{admin, "GET", "/resolve?target=$X", "", "server"},
		{admin, "POST", "/connect", `{"target":"$X","service":"ping","csr":"$C"}`, "name"},
		{admin, "POST", "/connect", `{"target":"$X","service":"ping","csr":"$C"}`, "server"},
		{admin, "POST", "/connect", `{"target":"$X","service":"ping","csr":"$C"}`, "project"},
	} {
		var replies [2]string
		for i, value := range []string{"nothing-" + audit.NewID()[24:], foreign[tt.kind]} {
			path, body := strings.ReplaceAll(tt.path, "$X", value), m.body(strings.ReplaceAll(tt.body, "$X", value))
			watched.since()
			status, _, reply := answer(t, e, as[tt.who], tt.method, base+path, contentType(body), body)
			if changed := watched.since(); len(changed) > 0 && tt.method != http.MethodGet {
				t.Errorf("%s %s %s, of a %s that is not the team's, has changed %s", tt.method, path, body, tt.kind, changed)
			}
			if status < 400 && tt.method != http.MethodGet {
				t.Errorf("%s %s %s, of a %s that is not the team's: %d %s", tt.method, path, body, tt.kind, status, reply)
			}
			replies[i] = timeRE.ReplaceAllString(strings.ReplaceAll(reply, value, "X"), "")
		}
		if replies[0] != replies[1] {
			t.Errorf("%s %s %s: of another team's %s it is %swant, as for what there is not, %s", tt.method, tt.path, tt.body, tt.kind, replies[1], replies[0])
		}
	}
}
