package webapi_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/platform"
	"sft/internal/rdpsign"
	"sft/internal/store"
	"sft/internal/testenv"
	"sft/internal/webapi"
)

const base = "/v1/teams/" + testenv.Team

// A caller puts something into the Authorization header of a request.
type caller func(method, path string, body []byte) string

// call sends one request and returns its status and code.
func call(t *testing.T, e *testenv.Env, as caller, method, path, contentType string, body []byte) (int, string) {
	t.Helper()
	status, code, _ := answer(t, e, as, method, path, contentType, body)
	return status, code
}

// answer is call with the whole body of the reply.
func answer(t *testing.T, e *testenv.Env, as caller, method, path, contentType string, body []byte) (int, string, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, e.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	if h := as(method, r.URL.RequestURI(), body); h != "" {
		r.Header.Set("Authorization", h)
	}
	resp, err := e.HTTP().Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	isDescribed(t, method, path, resp.StatusCode, resp.Header, b)
	var reply api.ErrorReply
	if resp.StatusCode >= 400 {
		if err := json.Unmarshal(b, &reply); err != nil || reply.Error.Msg == "" || reply.Time.IsZero() || reply.Error.Code.Info().Status != resp.StatusCode {
			t.Errorf("%s %s: the refusal is %s %s, %v", method, path, resp.Status, b, err)
		}
	}
	return resp.StatusCode, string(reply.Error.Code), string(b)
}

func signer(t *testing.T, c *api.Client) caller {
	return func(method, path string, body []byte) string {
		h, err := api.Sign(c.Key, c.Issuer, c.URL, method, path, body, c.Clock.Now())
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
}

// foreignAdmin is a client, signed in, of an administrator of another team.
func foreignAdmin(t *testing.T, e *testenv.Env) *api.Client {
	t.Helper()
	return teamAdmin(t, e, "other")
}

// teamAdmin makes a team, and a client, signed in, of its administrator.
func teamAdmin(t *testing.T, e *testenv.Env, name string) *api.Client {
	t.Helper()
	now := e.Clock.Now()
	if err := e.DB.Change(t.Context(), func(tx *store.Tx) (audit.Event, error) {
		team := sft.Team{ID: audit.NewID(), Name: name, CreatedAt: now, ClientSession: 36000, WebSession: 36000}
		u := store.UserRecord{TeamID: team.ID}
		u.ID, u.Name, u.Type, u.Status, u.Login, u.UID, u.GID, u.CreateAt = audit.NewID(), "zoe", sft.Human, sft.StatusActive, "zoe", 60000, 63000, now
		g := store.GroupRecord{TeamID: team.ID, Group: sft.Group{ID: audit.NewID(), Name: sft.Owners, Roles: []sft.Role{sft.AccessAdmin}}}
		for _, err := range []error{tx.AddTeam(team), tx.AddUser(u), tx.AddGroup(g)} {
			if err != nil {
				return audit.Event{}, err
			}
		}
		_, err := tx.AddMember(g.ID, u.ID)
		return audit.Event{ID: audit.NewID(), Time: now, Kind: audit.TeamCreate, Team: name, Actor: audit.Actor{Kind: "platform"}, Outcome: audit.Success}, err
	}); err != nil {
		t.Fatal(err)
	}
	c := addClient(t, e, name, "zoe")
	return e.Signed(c.Key, "client:"+c.ID)
}

func TestEveryRouteHasAnAccessRule(t *testing.T) {
	e := testenv.New(t)
	seen := map[string]bool{}
	for _, r := range webapi.Rows(e.Platform) {
		if r.Access == "" {
			t.Errorf("%s %s has no access rule", r.Method, r.Path)
		}
		if !strings.HasPrefix(r.Path, "/v1/") || seen[r.Method+r.Path] {
			t.Errorf("%s %s is twice in the table, or not under /v1", r.Method, r.Path)
		}
		seen[r.Method+r.Path] = true
		if r.Access == "anyone" && !strings.Contains(" /v1/info /v1/servers/enroll /v1/agent/device_key /v1/clients/enroll /v1/clients/device_code /v1/teams/{team}/service_token ", " "+r.Path+" ") {
			t.Errorf("%s %s is open to anyone", r.Method, r.Path)
		}
	}
}

// A maker makes what a path's {word} stands for in the matrix, in one team.
type maker struct {
	*testenv.Env
	t       *testing.T
	team    string
	as      *api.Client // an administrator of the team
	n       int
	session string // what $S stands for
	host    string // what $H stands for
}

// Do is the administrator's request to the team, which must succeed.
func (m *maker) Do(method, path string, in, out any) {
	m.t.Helper()
	if err := m.as.Do(m.t.Context(), method, "/v1/teams/"+m.team+path, in, out); err != nil {
		m.t.Fatalf("%s %s: %v", method, path, err)
	}
}

// rest is a path without the team.
func (m *maker) rest(path string) string { return strings.TrimPrefix(path, "/v1/teams/"+m.team) }

// enroll enrols a server in a project and returns its id.
func (m *maker) enroll(project, name string) string {
	m.t.Helper()
	_, spki := testenv.Key(m.t)
	var r api.EnrollServerReply
	req := api.EnrollServerRequest{Token: testenv.Secret(m.t, m.id("/projects/"+project+"/server_enrollment_tokens", struct{}{}, "token")), DeviceKey: spki, Facts: testenv.Facts(name)}
	if err := m.Anonymous().Do(m.t.Context(), "POST", "/v1/servers/enroll", req, &r); err != nil {
		m.t.Fatal(err)
	}
	return r.ServerID
}

// client makes the record of a client of a new user.
func (m *maker) client(name string) string {
	m.t.Helper()
	m.Do("POST", "/users", map[string]string{"name": name}, nil)
	return addClient(m.t, m.Env, m.team, name).ID
}

// addClient makes a client that is signed in, and its key.
func addClient(t *testing.T, e *testenv.Env, team, user string) clientWithKey {
	t.Helper()
	key, spki := testenv.Key(t)
	c := store.ClientRecord{DeviceKey: spki}
	c.ID, c.State, c.EnrolledAt, c.SignedInUntil = audit.NewID(), sft.StateActive, e.Clock.Now(), e.Clock.Now().Add(10*time.Hour)
	if err := e.DB.Change(t.Context(), func(tx *store.Tx) (audit.Event, error) {
		v, err := tx.Team(team)
		if err != nil {
			return audit.Event{}, err
		}
		u, err := tx.User(v.ID, user)
		if err != nil {
			return audit.Event{}, err
		}
		c.TeamID, c.UserID = v.ID, u.ID
		return audit.Event{ID: audit.NewID(), Time: e.Clock.Now(), Kind: audit.ClientEnroll, Team: team, Actor: audit.Actor{Kind: "platform"}, Outcome: audit.Success}, tx.AddClient(c)
	}); err != nil {
		t.Fatal(err)
	}
	return clientWithKey{c.ID, key}
}

type clientWithKey struct {
	ID  string
	Key *ecdsa.PrivateKey
}

func (m *maker) id(path string, body any, field string) string {
	m.t.Helper()
	var v map[string]any
	m.Do("POST", path, body, &v)
	return fmt.Sprint(v[field])
}

// make returns the value of a {word}, of something that was just made. What
// comes before it in the path is given.
func (m *maker) make(word, before string) string {
	m.t.Helper()
	m.n++
	name := fmt.Sprintf("x%d", m.n)
	switch word {
	case "team":
		return m.team
	case "project":
		m.Do("POST", "/projects", map[string]string{"name": name}, nil)
		return name
	case "user":
		if strings.Contains(before, "service_users") {
			m.Do("POST", "/service_users", map[string]string{"name": name}, nil)
			return name
		}
		m.Do("POST", "/users", map[string]string{"name": name}, nil)
		switch {
		case strings.Contains(before, "/groups/"):
			m.Do("POST", m.rest(before), map[string]string{"name": name}, nil)
		case strings.Contains(before, "/server_users"):
			project := strings.TrimSuffix(m.rest(before), "/server_users")
			m.Do("POST", "/groups", map[string]string{"name": name}, nil)
			m.Do("POST", "/groups/"+name+"/users", map[string]string{"name": name}, nil)
			m.Do("POST", project+"/groups", map[string]any{"name": name, "server_access": true}, nil)
		}
		return name
	case "attribute":
		if strings.Contains(before, "/groups/") {
			m.Do("PUT", m.rest(before)+"/unix_gid", map[string]string{"attribute_value": m.number()}, nil)
		}
		return "unix_gid"
	case "key":
		return m.id(m.rest(before), nil, "id")
	case "group":
		m.Do("POST", "/groups", map[string]string{"name": name}, nil)
		if strings.Contains(before, "/projects/") {
			m.Do("POST", m.rest(before), map[string]string{"name": name}, nil)
		}
		return name
	case "id":
		switch {
		case strings.Contains(before, "/clients"):
			return m.client(name)
		case strings.Contains(before, "/unmanaged_servers"):
			return m.id(m.rest(before), map[string]any{"hostname": name, "port": 22}, "id")
		case strings.Contains(before, "/preauthorizations"):
			m.Do("POST", "/users", map[string]string{"name": name}, nil)
			return m.id(m.rest(before), map[string]any{"user_name": name, "expires_at": "2027-01-01T00:00:00Z"}, "id")
		case m.rest(before) == "/servers":
			return m.enroll(testenv.Project, name)
		case strings.Contains(before, "/servers"):
			project, _, _ := strings.Cut(strings.TrimPrefix(m.rest(before), "/projects/"), "/")
			return m.enroll(project, name)
		case strings.Contains(before, "_tokens"):
			return m.id(m.rest(before), struct{}{}, "id")
		case strings.Contains(before, "/entitlements/sudo"):
			return m.id("/entitlements/sudo", map[string]any{"name": name, "opt_no_passwd": true, "structured_commands": []map[string]string{{"command": "/bin/ls", "command_type": "executable"}}}, "id")
		case strings.Contains(before, "/bindings"):
			return m.id(m.rest(before), map[string]string{"server": m.host, "account": name}, "id")
		case strings.Contains(before, "/client_config_options"):
			return m.id(m.rest(before), map[string]string{"config_key": "ssh.insecure_forward_agent", "config_value": "host"}, "config_key")
		case strings.Contains(before, "/cloud_accounts"):
			return m.id(m.rest(before), map[string]string{"provider": "aws", "account_id": m.account()}, "id")
		}
	}
	m.t.Fatalf("nothing is known of {%s} after %s", word, before)
	return ""
}

// account is a cloud account that no project has.
func (m *maker) account() string {
	m.n++
	return fmt.Sprintf("%012d", m.n)
}

// number is a uid or gid that nobody has.
func (m *maker) number() string {
	m.n++
	return fmt.Sprint(200_000 + m.n)
}

// path fills in the words of a route's path.
func (m *maker) path(pattern string) string {
	m.t.Helper()
	var out string
	for {
		before, rest, ok := strings.Cut(pattern, "{")
		out += before
		if !ok {
			return out
		}
		var word string
		word, pattern, _ = strings.Cut(rest, "}")
		out += m.make(word, strings.TrimSuffix(out, "/"))
	}
}

// The callers of the matrix, in the order of its columns.
const (
	nobody    = iota
	signedOut // a client of the owner, whose sign-in has ended
	plain     // a client of a user without a group
	admin     // a client of the owner
	robot     // a service user with access_admin
	host      // an agent
	stranger  // a client of an administrator of another team
	callers
)

var callerNames = [callers]string{"nobody", "a client that is signed out", "a plain user's client", "an administrator's client", "a service user", "an agent", "an administrator of another team"}

// The usual columns.
var (
	reads   = [callers]int{401, 401, 200, 200, 200, 401, 404} // everybody in the team
	secrets = [callers]int{401, 401, 403, 200, 200, 401, 404} // administrators
	makes   = [callers]int{401, 401, 403, 201, 201, 401, 404}
	alters  = [callers]int{401, 401, 403, 204, 204, 401, 404}
)

func all(status int) (a [callers]int) {
	for i := range a {
		a[i] = status
	}
	return a
}

// matrix says for each route what each caller gets, and with which body.
// $N in a body is a new name, $U a new user's, $S a session of the
// administrator's client, $A a new cloud account, $I a new uid or gid, $H the agent's server.
var matrix = map[string]struct {
	body string
	want [callers]int
}{
	"GET /v1/info": {"", all(200)},
	// Refused for what is in the body, whoever sends it.
	"POST /v1/servers/enroll":                                                  {`{"token":"x","device_key":"$K","facts":{"hostname":"h","access_address":"10.0.0.1","broker_port":1,"os_type":"linux","services":[]}}`, all(403)},
	"POST /v1/clients/enroll":                                                  {`{"code":"x","device_key":"$K","device":{"hostname":"h"}}`, all(403)},
	"POST /v1/clients/device_code":                                             {`{"team":"main","device_key":"$K","device":{"hostname":"h"}}`, all(200)},
	"POST /v1/teams/{team}/service_token":                                      {`{"key_id":"x","key_secret":"y"}`, all(401)},
	"GET /v1/agent/state":                                                      {"", [callers]int{401, 401, 401, 401, 401, 200, 401}},
	"POST /v1/agent/report":                                                    {`{"facts":{"hostname":"web01","access_address":"10.0.0.2","broker_port":1,"os_type":"linux","services":[]}}`, [callers]int{401, 401, 401, 401, 401, 200, 401}},
	"POST /v1/agent/events":                                                    {`{"events":[{"id":"$E","seq":1,"time":"2026-03-01T09:00:00Z","kind":"session.start","outcome":"success"}]}`, [callers]int{401, 401, 401, 401, 401, 204, 401}},
	"POST /v1/agent/service_client":                                            {`{"account":"deploy","device_key":"$K","device":{"hostname":"h"}}`, [callers]int{401, 401, 401, 401, 401, 201, 401}},
	"POST /v1/agent/device_key":                                                {`{"server_id":"x","device_key":"$K","old_key_proof":"x","new_key_proof":"y"}`, all(401)},
	"POST /v1/clients/login":                                                   {`{"code":"x","device":{"hostname":"h"}}`, [callers]int{401, 403, 403, 403, 401, 401, 403}},
	"POST /v1/teams/{team}/client_events":                                      {`{"events":[{"id":"$E","time":"2026-03-01T09:00:00Z","kind":"session.refused","session":"$S"}]}`, [callers]int{401, 401, 404, 204, 401, 401, 404}},
	"POST /v1/teams/{team}/connect":                                            {`{"target":"web01","service":"ping","csr":"$C"}`, [callers]int{401, 401, 403, 200, 401, 401, 404}},
	"GET /v1/teams/{team}/resolve":                                             {"", [callers]int{401, 401, 403, 200, 401, 401, 404}},
	"POST /v1/teams/{team}/rdp_signing_certificate":                            {"", [callers]int{401, 401, 403, 201, 409, 401, 404}}, // once
	"GET /v1/teams/{team}/rdp_signing_certificate":                             {"", reads},
	"POST /v1/teams/{team}/rdp_signature":                                      {`{"settings":$R}`, [callers]int{401, 401, 200, 200, 401, 401, 404}},
	"GET /v1/teams/{team}/auditsV2":                                            {"", reads},
	"GET /v1/teams/{team}/clients":                                             {"", reads},
	"GET /v1/teams/{team}/settings":                                            {"", reads},
	"PUT /v1/teams/{team}/settings":                                            {`{"client_session_duration":7200,"web_session_duration":7200,"allow_device_code":true}`, alters},
	"GET /v1/teams/{team}/team_stats":                                          {"", secrets},
	"GET /v1/teams/{team}/current_user":                                        {"", reads},
	"GET /v1/teams/{team}/clients/{id}":                                        {"", reads},
	"PUT /v1/teams/{team}/clients/{id}":                                        {`{"user_name":"$U","state":"ACTIVE"}`, alters},
	"DELETE /v1/teams/{team}/clients/{id}":                                     {"", [callers]int{401, 401, 404, 204, 204, 401, 404}},
	"GET /v1/teams/{team}/servers":                                             {"", reads},
	"PUT /v1/teams/{team}/servers/{id}":                                        {`{"labels":{"env":"prod"}}`, alters},
	"GET /v1/teams/{team}/users":                                               {"", reads},
	"POST /v1/teams/{team}/users":                                              {`{"name":"$N","full_name":"X"}`, makes},
	"GET /v1/teams/{team}/users/{user}":                                        {"", reads},
	"PUT /v1/teams/{team}/users/{user}":                                        {`{"status":"DISABLED"}`, alters},
	"GET /v1/teams/{team}/users/{user}/groups":                                 {"", reads},
	"GET /v1/teams/{team}/users/{user}/attributes":                             {"", reads},
	"GET /v1/teams/{team}/users/{user}/attributes/{attribute}":                 {"", reads},
	"PUT /v1/teams/{team}/users/{user}/attributes/{attribute}":                 {`{"attribute_value":"$I"}`, alters},
	"GET /v1/teams/{team}/groups/{group}/attributes":                           {"", reads},
	"GET /v1/teams/{team}/groups/{group}/attributes/{attribute}":               {"", reads},
	"PUT /v1/teams/{team}/groups/{group}/attributes/{attribute}":               {`{"attribute_value":"$I"}`, alters},
	"POST /v1/teams/{team}/users/{user}/first_use":                             {"", makes},
	"GET /v1/teams/{team}/service_users":                                       {"", reads},
	"POST /v1/teams/{team}/service_users":                                      {`{"name":"$N"}`, makes},
	"GET /v1/teams/{team}/service_users/{user}":                                {"", reads},
	"PUT /v1/teams/{team}/service_users/{user}":                                {`{"status":"DISABLED"}`, secrets},
	"GET /v1/teams/{team}/service_users/{user}/keys":                           {"", secrets},
	"POST /v1/teams/{team}/service_users/{user}/keys":                          {"", makes},
	"GET /v1/teams/{team}/service_users/{user}/keys/{key}":                     {"", secrets},
	"DELETE /v1/teams/{team}/service_users/{user}/keys/{key}":                  {"", alters},
	"GET /v1/teams/{team}/service_users/{user}/bindings":                       {"", reads},
	"POST /v1/teams/{team}/service_users/{user}/bindings":                      {`{"server":"$H","account":"$N"}`, makes},
	"DELETE /v1/teams/{team}/service_users/{user}/bindings/{id}":               {"", alters},
	"GET /v1/teams/{team}/entitlements/sudo":                                   {"", reads},
	"POST /v1/teams/{team}/entitlements/sudo":                                  {`{"name":"$N","opt_no_passwd":true,"structured_commands":[{"command":"/bin/ls","command_type":"executable"}]}`, makes},
	"GET /v1/teams/{team}/entitlements/sudo/{id}":                              {"", reads},
	"PUT /v1/teams/{team}/entitlements/sudo/{id}":                              {`{"name":"$N","opt_no_passwd":true,"structured_commands":[{"command":"/opt/x/","command_type":"directory"}],"add_env":["LANG"]}`, alters},
	"DELETE /v1/teams/{team}/entitlements/sudo/{id}":                           {"", alters},
	"GET /v1/teams/{team}/groups":                                              {"", reads},
	"POST /v1/teams/{team}/groups":                                             {`{"name":"$N","roles":["access_user"]}`, makes},
	"GET /v1/teams/{team}/groups/{group}":                                      {"", reads},
	"PUT /v1/teams/{team}/groups/{group}":                                      {`{"roles":["access_user"]}`, alters},
	"DELETE /v1/teams/{team}/groups/{group}":                                   {"", alters},
	"GET /v1/teams/{team}/groups/{group}/users":                                {"", reads},
	"POST /v1/teams/{team}/groups/{group}/users":                               {`{"name":"$U"}`, alters},
	"DELETE /v1/teams/{team}/groups/{group}/users/{user}":                      {"", alters},
	"GET /v1/teams/{team}/groups/{group}/users_not_in_group":                   {"", reads},
	"GET /v1/teams/{team}/projects":                                            {"", reads},
	"POST /v1/teams/{team}/projects":                                           {`{"name":"$N","max_session_seconds":60,"create_server_users":true,"channels":{"audio":false}}`, makes},
	"GET /v1/teams/{team}/projects/{project}":                                  {"", reads},
	"PUT /v1/teams/{team}/projects/{project}":                                  {`{"max_session_seconds":60,"user_on_demand_period":60,"channels":{"clipboard":false}}`, alters},
	"DELETE /v1/teams/{team}/projects/{project}":                               {"", alters},
	"GET /v1/teams/{team}/projects/{project}/groups":                           {"", reads},
	"POST /v1/teams/{team}/projects/{project}/groups":                          {`{"name":"everyone","server_access":true,"create_server_group":true,"server_group_name":"sft_all","sudo_entitlements":[]}`, makes},
	"GET /v1/teams/{team}/projects/{project}/groups/{group}":                   {"", reads},
	"PUT /v1/teams/{team}/projects/{project}/groups/{group}":                   {`{"server_access":true}`, alters},
	"DELETE /v1/teams/{team}/projects/{project}/groups/{group}":                {"", alters},
	"GET /v1/teams/{team}/projects/{project}/client_config_options":            {"", reads},
	"POST /v1/teams/{team}/projects/{project}/client_config_options":           {`{"config_key":"ssh.port_forward_method","config_value":"netcat"}`, makes},
	"GET /v1/teams/{team}/projects/{project}/client_config_options/{id}":       {"", reads},
	"DELETE /v1/teams/{team}/projects/{project}/client_config_options/{id}":    {"", alters},
	"GET /v1/teams/{team}/projects/{project}/server_enrollment_tokens":         {"", secrets},
	"POST /v1/teams/{team}/projects/{project}/server_enrollment_tokens":        {`{"description":"x","max_uses":1}`, makes},
	"GET /v1/teams/{team}/projects/{project}/server_enrollment_tokens/{id}":    {"", secrets},
	"DELETE /v1/teams/{team}/projects/{project}/server_enrollment_tokens/{id}": {"", alters},
	"GET /v1/teams/{team}/projects/{project}/cloud_accounts":                   {"", reads},
	"POST /v1/teams/{team}/projects/{project}/cloud_accounts":                  {`{"provider":"aws","account_id":"$A"}`, makes},
	"GET /v1/teams/{team}/projects/{project}/cloud_accounts/{id}":              {"", reads},
	"DELETE /v1/teams/{team}/projects/{project}/cloud_accounts/{id}":           {"", alters},
	"GET /v1/teams/{team}/projects/{project}/authorities":                      {"", reads},
	"POST /v1/teams/{team}/projects/{project}/authorities":                     {`{}`, makes},
	"GET /v1/teams/{team}/projects/{project}/server_users":                     {"", reads},
	"GET /v1/teams/{team}/projects/{project}/server_users/{user}":              {"", reads},
	"GET /v1/teams/{team}/projects/{project}/servers":                          {"", reads},
	"POST /v1/teams/{team}/projects/{project}/servers":                         {`{"hostname":"$N","alt_names":["$N.example.com"],"access_address":"192.0.2.1","port":2222,"labels":{"env":"prod"}}`, makes},
	"GET /v1/teams/{team}/projects/{project}/servers/{id}":                     {"", reads},
	"PUT /v1/teams/{team}/projects/{project}/servers/{id}":                     {`{"reenroll_allowed":true}`, [callers]int{401, 401, 403, 400, 400, 401, 404}}, // one that enrolled by a token
	"DELETE /v1/teams/{team}/projects/{project}/servers/{id}":                  {"", alters},
	"GET /v1/teams/{team}/projects/{project}/servers/{id}/access":              {"", reads}, // each of themselves
	"GET /v1/teams/{team}/projects/{project}/preauthorizations":                {"", secrets},
	"POST /v1/teams/{team}/projects/{project}/preauthorizations":               {`{"user_name":"$U","expires_at":"2027-01-01T00:00:00Z"}`, makes},
	"GET /v1/teams/{team}/projects/{project}/preauthorizations/{id}":           {"", secrets},
	"PUT /v1/teams/{team}/projects/{project}/preauthorizations/{id}":           {`{"disabled":true}`, alters},
	"GET /v1/teams/{team}/projects/{project}/unmanaged_servers":                {"", reads},
	"POST /v1/teams/{team}/projects/{project}/unmanaged_servers":               {`{"hostname":"$N","alt_names":["$N.example.com"],"access_address":"192.0.2.1","port":2222,"labels":{"env":"prod"}}`, makes},
	"DELETE /v1/teams/{team}/projects/{project}/unmanaged_servers/{id}":        {"", alters},
	// The last: it ends the sign-ins.
	"POST /v1/clients/logout": {"", [callers]int{401, 204, 204, 204, 401, 401, 204}},
}

// cast makes the callers, a session of the administrator's client, and a
// service user that is bound to an account of the agent's server.
func cast(t *testing.T, e *testenv.Env) (as [callers]caller, m *maker) {
	out := e.Client(testenv.Owner)
	if err := out.Do(t.Context(), "POST", "/v1/clients/logout", nil, nil); err != nil {
		t.Fatal(err)
	}
	host01, own := e.Server(testenv.Project, testenv.Facts("web01")), e.Client(testenv.Owner)
	r, _, err := e.Connect(own, "web01")
	if err != nil {
		t.Fatal(err)
	}
	e.Do("POST", "/service_users", map[string]string{"name": "ci"}, nil)
	e.Do("POST", "/service_users/ci/bindings", map[string]string{"server": host01.ID, "account": "deploy"}, nil)
	foreign := foreignAdmin(t, e)
	return [callers]caller{
		nobody:    func(string, string, []byte) string { return "" },
		signedOut: signer(t, out.Client),
		plain:     signer(t, e.Client("plain").Client),
		admin:     signer(t, own.Client),
		robot:     func(string, string, []byte) string { return "Bearer " + e.Service.Token },
		host:      signer(t, host01.Client),
		stranger:  signer(t, foreign),
	}, &maker{Env: e, t: t, team: testenv.Team, as: e.Service.Client, session: r.SessionID, host: host01.ID}
}

// body fills in a body.
func (m *maker) body(s string) []byte { return []byte(m.values(s).Replace(s)) }

// values are what stands in a body for what begins with "$".
func (m *maker) values(s string) *strings.Replacer {
	m.t.Helper()
	m.n++
	name := fmt.Sprintf("n%d", m.n)
	if strings.Contains(s, "$U") {
		m.Do("POST", "/users", map[string]string{"name": name}, nil)
	}
	key, spki := testenv.Key(m.t)
	b64 := func(b []byte) string { s, _ := json.Marshal(b); return strings.Trim(string(s), `"`) }
	return strings.NewReplacer("$N", name, "$H", m.host, "$U", name, "$K", b64(spki), "$C", b64(testenv.CSR(m.t, key)), "$E", audit.NewID(), "$S", m.session, "$A", m.account(), "$I", m.number(), "$R", rdpSettings())
}

// rdpSettings are those of a connection file that is signed.
func rdpSettings() string {
	lines, _ := rdpsign.Lines("127.3.4.5:40123", func(string) (string, bool) { return "", false })
	b, _ := json.Marshal(lines)
	return string(b)
}

func query(pattern string) string {
	switch pattern {
	case "GET /v1/agent/state":
		return "?after=-1"
	case "GET /v1/teams/{team}/resolve":
		return "?target=web01"
	}
	return ""
}

func contentType(body []byte) string {
	if len(body) == 0 {
		return ""
	}
	return "application/json"
}

// Every route, every kind of caller: who is let in, who is told to sign in,
// who may not, and that another team's things read as absent.
func TestWhoMayCallWhat(t *testing.T) { testenv.Each(t, whoMayCallWhat) }

func whoMayCallWhat(t *testing.T, e *testenv.Env) {
	as, m := cast(t, e)
	rows := webapi.Rows(e.Platform)
	for i, r := range rows { // logging out comes last
		if r.Path == "/v1/clients/logout" {
			rows = append(append(rows[:i:i], rows[i+1:]...), r)
			break
		}
	}
	for _, r := range rows {
		pattern := r.Method + " " + r.Path
		row, ok := matrix[pattern]
		if !ok {
			t.Errorf("%s is not in the matrix", pattern)
			continue
		}
		path := ""
		for who := range as {
			if path == "" {
				path = m.path(r.Path) + query(pattern)
			}
			body := m.body(row.body)
			got, code := call(t, e, as[who], r.Method, path, contentType(body), body)
			if got != row.want[who] {
				t.Errorf("%s by %s: %d %s, want %d", pattern, callerNames[who], got, code, row.want[who])
			}
			if got < 300 && r.Method != "GET" {
				path = "" // what it was about may be gone
			}
		}
	}
	if len(rows) != len(matrix) {
		t.Errorf("there are %d routes, and %d rows in the matrix", len(rows), len(matrix))
	}
}

// A server_admin does what a user without the role does, and six things more.
func TestAServerAdminDoesNoMore(t *testing.T) { testenv.Each(t, serverAdminDoesNoMore) }

func serverAdminDoesNoMore(t *testing.T, e *testenv.Env) {
	_, m := cast(t, e)
	e.User("lee")
	e.Do("POST", "/groups", map[string]any{"name": "labellers", "roles": []string{"server_admin"}}, nil)
	e.Do("POST", "/groups/labellers/users", map[string]string{"name": "lee"}, nil)
	lee := signer(t, e.Client("lee").Client)
	e.Do("POST", "/rdp_signing_certificate", nil, nil)
	more := map[string]int{
		"PUT /v1/teams/{team}/servers/{id}":                                 204,
		"PUT /v1/teams/{team}/projects/{project}/servers/{id}":              204,
		"DELETE /v1/teams/{team}/projects/{project}/servers/{id}":           204,
		"POST /v1/teams/{team}/projects/{project}/servers":                  201,
		"POST /v1/teams/{team}/projects/{project}/unmanaged_servers":        201,
		"DELETE /v1/teams/{team}/projects/{project}/unmanaged_servers/{id}": 204,
	}
	for _, r := range webapi.Rows(e.Platform) {
		pattern := r.Method + " " + r.Path
		if r.Path == "/v1/clients/logout" {
			continue // it ends the sign-in
		}
		body := matrix[pattern].body
		want := matrix[pattern].want[plain]
		if w, ok := more[pattern]; ok {
			want = w
			if r.Method == "PUT" {
				body = `{"labels":{"env":"lab"}}`
				for _, other := range []string{`{}`, `{"labels":{},"take_names":true}`, `{"labels":{},"key_conflict":false}`, `{"rotate_device_key":true}`, `{"project_name":"prod"}`, `{"reenroll_allowed":true}`} {
					if got, code := call(t, e, lee, r.Method, m.path(r.Path), "application/json", []byte(other)); got != 403 {
						t.Errorf("%s %s by a server_admin: %d %s", pattern, other, got, code)
					}
				}
			}
		}
		sent := m.body(body)
		if got, code := call(t, e, lee, r.Method, m.path(r.Path)+query(pattern), contentType(sent), sent); got != want {
			t.Errorf("%s by a server_admin: %d %s, want %d", pattern, got, code, want)
		}
	}
}

// A client that waits for approval is told so by every route that takes one.
func TestAPendingClientDoesNothing(t *testing.T) { testenv.Each(t, pendingClientDoesNothing) }

func pendingClientDoesNothing(t *testing.T, e *testenv.Env) {
	_, m := cast(t, e)
	c := e.Client(testenv.Owner)
	e.Do("PUT", "/clients/"+c.ID, map[string]string{"state": "PENDING"}, nil)
	held := signer(t, c.Client)
	for _, r := range webapi.Rows(e.Platform) {
		if r.Access == "anyone" || r.Access == "agent" {
			continue
		}
		pattern := r.Method + " " + r.Path
		body := m.body(matrix[pattern].body)
		status, _, got := answer(t, e, held, r.Method, m.path(r.Path)+query(pattern), contentType(body), body)
		if status != 403 || !strings.Contains(got, c.ID) || !strings.Contains(got, "is pending: an administrator of the team has to approve it") {
			t.Errorf("%s by a client that is pending: %d %s", pattern, status, got)
		}
	}
	if got, code := call(t, e, held, "DELETE", base+"/clients/"+c.ID, "", nil); got != 403 {
		t.Errorf("an administrator's client that is pending deletes itself: %d %s", got, code)
	}
}

// What is somebody else's and what is not there cannot be told apart: for each
// word of each route, the other team's, that of something else in the same
// team, and what nothing has, get the same refusal to the byte, apart from the
// time.
func TestForeignIsAbsent(t *testing.T) { testenv.Each(t, foreignIsAbsent) }

func foreignIsAbsent(t *testing.T, e *testenv.Env) {
	as, m := cast(t, e)
	zoe := addClient(t, e, "other", "zoe")
	other := &maker{Env: e, t: t, team: "other", as: e.Signed(zoe.Key, "client:"+zoe.ID), n: 100_000}
	other.Do("POST", "/projects", map[string]string{"name": testenv.Project}, nil)
	other.host = other.enroll(testenv.Project, "their01")
	for _, r := range webapi.Rows(e.Platform) {
		pattern := r.Method + " " + r.Path
		row := matrix[pattern]
		words := strings.Split(r.Path, "{")
		for i := 1; i < len(words); i++ {
			before := strings.Join(words[:i], "{") // up to the word
			word, _, _ := strings.Cut(words[i], "}")
			rest := strings.TrimPrefix(r.Path, before+"{"+word+"}")
			for _, who := range []int{plain, admin} {
				path := func() string { return strings.TrimSuffix(m.path(before), "/") }
				first := ""
				for _, tt := range []struct {
					what string
					path func() (before, value string)
				}{
					{"absent", func() (string, string) { return path(), "nothing-" + audit.NewID()[24:] }},
					{"of another team", func() (string, string) {
						if word == "attribute" {
							return "", "" // all have those of that name
						}
						return path(), other.make(word, strings.TrimSuffix(other.path(before), "/"))
					}},
					{"of something else", func() (string, string) {
						if i < 3 || word != "id" && word != "key" {
							return "", "" // the team's own, which it may see
						}
						// Made first: of what both paths name, the last may have replaced it.
						elsewhere := m.make(word, path())
						return path(), elsewhere
					}},
				} {
					b, value := tt.path()
					if value == "" {
						continue
					}
					body := m.body(row.body)
					status, _, got := answer(t, e, as[who], r.Method, b+"/"+value+fill(rest)+query(pattern), contentType(body), body)
					if want := row.want[who]; status != 404 && (want < 400 || status != want) {
						t.Errorf("%s with a {%s} that is %s, by %s: %d", pattern, word, tt.what, callerNames[who], status)
					}
					got = timeRE.ReplaceAllString(strings.ReplaceAll(got, value, "X"), "")
					if first == "" {
						first = got
					}
					if got != first {
						t.Errorf("%s with a {%s} that is %s, by %s: %swant, as for one that is absent, %s", pattern, word, tt.what, callerNames[who], got, first)
					}
				}
			}
		}
	}
}

var timeRE = regexp.MustCompile(`"time":"[^"]*"`)

// fill puts something that nothing has for the words of the rest of a path.
func fill(rest string) string {
	for {
		before, after, ok := strings.Cut(rest, "{")
		if !ok {
			return rest
		}
		_, after, _ = strings.Cut(after, "}")
		rest = before + "nothing" + after
	}
}

// A body that is not what the route takes is refused, and nothing happens.
func TestBodiesThatCannotBe(t *testing.T) { testenv.Each(t, bodiesThatCannotBe) }

func bodiesThatCannotBe(t *testing.T, e *testenv.Env) {
	as, m := cast(t, e)
	for _, r := range webapi.Rows(e.Platform) {
		if r.Method != "POST" && r.Method != "PUT" {
			continue
		}
		pattern := r.Method + " " + r.Path
		row := matrix[pattern]
		who := admin
		if r.Access == "agent" {
			who = host
		}
		path := m.path(r.Path)
		good := m.body(row.body)
		events := len(e.Events())
		if len(good) == 0 {
			good = []byte(`{}`)
		}
		bad := map[string][]byte{
			"over 1 MiB":                    append(append([]byte(`{"x":"`), bytes.Repeat([]byte("x"), 1<<20)...), `"}`...),
			"not JSON":                      []byte("name=x"),
			"JSON with something behind it": append(bytes.Clone(good), "{}"...),
			"cut short":                     good[:len(good)-1],
			"a list":                        []byte(`[1]`),
			"a text":                        []byte(`"x"`),
		}
		var fields map[string]any
		if err := json.Unmarshal(good, &fields); err != nil {
			t.Fatal(err)
		}
		for name, v := range fields {
			wrong := map[string]any{name: map[string]any{"x": 1}}
			switch v.(type) {
			case map[string]any:
				wrong[name] = 5
			}
			bad["another type for "+name], _ = json.Marshal(wrong)
		}
		for what, body := range bad {
			if got, code := call(t, e, as[who], r.Method, path, "application/json", body); got != 400 {
				t.Errorf("%s with a body that is %s: %d %s, want 400", pattern, what, got, code)
			}
		}
		for _, ct := range []string{"", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"} {
			if got, code := call(t, e, as[who], r.Method, path, ct, good); got != 415 {
				t.Errorf("%s with a body of type %q: %d %s, want 415", pattern, ct, got, code)
			}
		}
		if n := len(e.Events()) - events; n != 0 {
			t.Errorf("%s: bad bodies left %d events", pattern, n)
		}
	}
	if got, code := call(t, e, as[robot], "POST", base+"/groups", "application/json; charset=utf-8", []byte(`{"name":"x"}`)); got != 201 {
		t.Errorf("a body whose type has parameters: %d %s", got, code)
	}
	long := base + "/users/" + strings.Repeat("x", 5001)
	if got, code := call(t, e, as[robot], "GET", long, "", nil); got != 400 {
		t.Errorf("a long path: %d %s", got, code)
	}
	for _, name := range []string{"%00", "%ff", "a%2Fb", "%27", "%22", "..%2f", "%0a"} {
		for _, path := range []string{"/users/", "/groups/", "/projects/", "/projects/prod/servers/", "/service_users/"} {
			if strings.Contains(path, "service") {
				name += "/keys"
			}
			if got, code := call(t, e, as[robot], "GET", base+path+name, "", nil); got != 404 {
				t.Errorf("GET %s%s: %d %s, want 404", path, name, got, code)
			}
		}
	}
}

func TestUnknownRoutes(t *testing.T) {
	e := testenv.New(t)
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/v1/", 404}, {"GET", "/v1/nothing", 404}, {"POST", "/v1/info", 405}, {"DELETE", base + "/users", 405}, {"PATCH", base + "/users/x", 405},
		{"GET", "/v1/teams//users", 404}, {"GET", "/v2/info", 404}, {"GET", "/nothing", 404}, {"GET", "/.git/config", 404}, {"PUT", "/signin", 405}, {"GET", "/signout", 405},
		{"GET", "/healthz", 200}, {"GET", "/readyz", 200},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tt.method, e.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Path = tt.path
		resp, err := e.HTTP().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.StatusCode; got != tt.want && !(got == 301 || got == 307) {
			t.Errorf("%s %s answers %d, want %d", tt.method, tt.path, got, tt.want)
		}
		for header, want := range map[string]string{"Strict-Transport-Security": "max-age=31536000", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"} {
			if got := resp.Header.Get(header); got != want {
				t.Errorf("%s %s has %s: %q", tt.method, tt.path, header, got)
			}
		}
	}
}

// A request that fails badly is answered, and the next one too.
func TestAPanic(t *testing.T) {
	var log testenv.Log
	p := &platform.Platform{Now: time.Now, DB: &store.DB{}} // without a database, which no platform is
	srv := listen(t, webapi.New(p, slog.New(slog.NewTextHandler(&log, nil))), &http.Server{})
	resp, err := http.Get(srv + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 500 || !strings.Contains(string(b), `"unknown_error"`) || strings.Contains(string(b), "nil pointer") || !strings.Contains(log.String(), "nil pointer") {
		t.Errorf("a panic is answered with %s %s, logged as %s", resp.Status, b, log.String())
	}
}

// listen serves plain HTTP/1.1 on loopback, as some proxies speak it.
func listen(t *testing.T, h http.Handler, srv *http.Server) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv.Handler = h
	srv.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return "http://" + ln.Addr().String()
}

// A state request hangs for longer than the server waits for what arrives,
// and ends with an answer when the platform stops.
func TestAHangingRequestOutlastsTheReadTimeout(t *testing.T) {
	testenv.Each(t, aHangingRequestOutlastsTheReadTimeout)
}

func aHangingRequestOutlastsTheReadTimeout(t *testing.T, e *testenv.Env) {
	s := e.Server(testenv.Project, testenv.Facts("web01"))
	base, stop := context.WithCancel(context.Background())
	defer stop()
	s.Audience, s.URL = e.URL, listen(t, webapi.New(e.Platform, slog.New(slog.DiscardHandler)), &http.Server{
		ReadTimeout: 200 * time.Millisecond, BaseContext: func(net.Listener) context.Context { return base }})
	ask := func(after int64) <-chan error {
		done := make(chan error, 1)
		go func() {
			var st api.State
			done <- s.Do(t.Context(), "GET", fmt.Sprint("/v1/agent/state?after=", after), nil, &st)
		}()
		select {
		case err := <-done:
			t.Fatalf("it ended at once: %v", err)
		case <-time.After(600 * time.Millisecond):
		}
		return done
	}
	revision := e.Project(testenv.Project).Revision
	done := ask(revision)
	e.User("ann")
	if err := <-done; err != nil {
		t.Errorf("on a change: %v", err)
	}
	done = ask(revision + 1)
	stop()
	if err := <-done; sft.CodeOf(err) != sft.Unavailable || err.Error() != "the platform is stopping" {
		t.Errorf("when the platform stops: %v", err)
	}
}

// What is addressed by an id is the team's own, whichever team the path names.
func TestIDsOfAnotherTeam(t *testing.T) { testenv.Each(t, idsOfAnotherTeam) }

func idsOfAnotherTeam(t *testing.T, e *testenv.Env) {
	as, m := cast(t, e)
	sudo := m.make("id", base+"/entitlements/sudo")
	var list api.List[sft.ServiceBinding]
	e.Do("GET", "/service_users/ci/bindings", nil, &list)
	const entitlement = `{"name":"x","opt_no_passwd":true,"structured_commands":[{"command":"/bin/sh","command_type":"executable"}]}`
	for _, tt := range []struct {
		what, method, path, body string
		want                     int
	}{
		{"a service user of their own", "POST", "/service_users", `{"name":"ci"}`, 201},
		{"reading an entitlement", "GET", "/entitlements/sudo/" + sudo, "", 404},
		{"changing an entitlement", "PUT", "/entitlements/sudo/" + sudo, entitlement, 404},
		{"deleting an entitlement", "DELETE", "/entitlements/sudo/" + sudo, "", 404},
		{"binding to a server", "POST", "/service_users/ci/bindings", `{"server":"` + m.host + `","account":"root"}`, 404},
		{"removing a binding", "DELETE", "/service_users/ci/bindings/" + list.List[0].ID, "", 404},
	} {
		body := []byte(tt.body)
		if got, code := call(t, e, as[stranger], tt.method, "/v1/teams/other"+tt.path, contentType(body), body); got != tt.want {
			t.Errorf("%s, from another team: %d %s, want %d", tt.what, got, code, tt.want)
		}
	}
}
