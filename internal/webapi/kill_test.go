package webapi_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testenv"
	"sft/internal/webapi"
)

// The environment of the platform that TestKilledWhileServing kills.
const (
	servedURL  = "SFT_TEST_SERVED"
	servedKey  = "SFT_TEST_SERVED_KEY"
	servedTime = "SFT_TEST_SERVED_TIME"
	servedEnd  = "SFT_TEST_SERVED_END"
)

// killsEnv says for how long TestKilledWhileServing goes on at least, on each
// database.
const killsEnv = "SFT_TEST_KILLS"

// TestMain is also that platform.
func TestMain(m *testing.M) {
	if url := os.Getenv(servedURL); url != "" {
		fmt.Fprintln(os.Stderr, serveOn(url))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// serveOn serves a platform until it is killed, and says where.
func serveOn(url string) error {
	now, err := time.Parse(time.RFC3339Nano, os.Getenv(servedTime))
	if err != nil {
		return err
	}
	key, err := ca.OpenSealer(os.Getenv(servedKey))
	if err != nil {
		return err
	}
	db, err := store.Open(context.Background(), url)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	var at end
	if s := os.Getenv(servedEnd); s != "" {
		if _, err := fmt.Sscan(s, &at.method, &at.path, &at.looks); err != nil {
			return err
		}
	}
	p, err := platform.New(context.Background(), db, key, log, func() time.Time { at.look(); return now })
	if err != nil {
		return err
	}
	p.SealEvery = 5 * time.Millisecond
	go p.Run(context.Background())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	s := webapi.New(p, log)
	at.Handler = s
	return (&http.Server{Handler: &at, ConnState: s.Conn}).Serve(ln)
}

// An end is where the platform kills itself: in one request, once the clock was
// looked at so often, or before its answer, whatever comes first. It looks at
// the clock in its transactions.
type end struct {
	http.Handler
	method, path string
	begun        atomic.Bool
	looks        int64
}

func (e *end) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == e.method && r.URL.Path == e.path {
		e.begun.Store(true)
		w = unanswered{w}
	}
	e.Handler.ServeHTTP(w, r)
}

func (e *end) look() {
	if e.begun.Load() && atomic.AddInt64(&e.looks, -1) < 0 {
		die()
	}
}

// die is kill -9.
func die() {
	if p, err := os.FindProcess(os.Getpid()); err == nil {
		p.Kill()
	}
	select {}
}

// An unanswered request is never answered.
type unanswered struct{ http.ResponseWriter }

func (u unanswered) WriteHeader(int)             { die() }
func (u unanswered) Write([]byte) (int, error)   { die(); return 0, nil }
func (u unanswered) Unwrap() http.ResponseWriter { return u.ResponseWriter }

// A write is a kind of request that changes something, and how its two halves
// are seen. In the texts $N and its like stand for what they are in the body,
// and {word} for what is in the path, or for what ready has made; {x} is the
// name of what was made for the path last.
type write struct {
	body   string                    // if not the matrix's
	record string                    // a query: 1 if it has happened, 0 if not; empty: there is only the event
	kind   audit.Kind                // of its event; empty: it has none
	about  string                    // what is in that event's JSON, as in LIKE
	again  bool                      // it is not signed and may happen again
	refuse sft.Code                  // what one that happened gets if it is sent again, unsigned
	ready  func(w *writer, r *wrote) // makes what the path does not name; may set body and caller
}

// one is a query for something that is there, and gone for something that is not.
func one(from string) string  { return "SELECT count(*) FROM " + from }
func gone(from string) string { return "SELECT 1 - count(*) FROM " + from }

const inProject = " JOIN projects p ON p.id = project_id WHERE p.name = '{project}'"

// writes has a row for each route that changes something.
var writes = map[string]write{
	"POST /v1/servers/enroll": {record: one("servers s JOIN server_names n ON n.server_id = s.id WHERE s.hostname = '$N' AND n.name_fold = '$N'"),
		kind: audit.ServerEnroll, about: `"target":"$N"`, again: true, ready: func(w *writer, r *wrote) {
			r.body = `{"token":"` + w.token() + `","device_key":"$K","facts":{"hostname":"$N","access_address":"10.0.0.1","broker_port":1,"os_type":"linux","services":[]}}`
			r.by = nil
		}},
	"POST /v1/agent/report": {record: one("servers s JOIN server_names n ON n.server_id = s.id JOIN server_labels l ON l.server_id = s.id WHERE s.id = '{server}' AND n.name_fold = '$N' AND l.value = '$N' AND host_key IS NOT NULL"),
		body: `{"facts":{"hostname":"$N","access_address":"10.0.0.2","broker_port":1,"os_type":"linux","services":[],"labels":{"sftd.n":"$N"}},"csr":"$C"}`,
		kind: audit.HostCredsIssue, about: `"target":"$N"`, ready: (*writer).agent},
	"POST /v1/agent/events": {record: one("servers WHERE id = '{server}' AND last_seq = 1"), kind: audit.SessionStart, about: `"source":"{server}/$E"`, ready: (*writer).agent},
	"POST /v1/agent/service_client": {record: one("clients WHERE made_by = '{server}'"), body: `{"account":"deploy","device_key":"$K","device":{"hostname":"$N"}}`,
		kind: audit.ClientEnroll, about: `"target":"$N"`, ready: func(w *writer, r *wrote) {
			w.agent(r)
			w.Do("POST", "/service_users", map[string]string{"name": r.has["{server}"]}, nil)
			w.Do("POST", "/service_users/"+r.has["{server}"]+"/bindings", map[string]string{"server": r.has["{server}"], "account": "deploy"}, nil)
		}},
	"POST /v1/agent/device_key": {record: one("servers s JOIN old_device_keys o ON o.server_id = s.id WHERE s.id = '{server}' AND o.device_key <> s.device_key"),
		kind: audit.DeviceKeyRotate, about: `"server":"{server}"`, ready: func(w *writer, r *wrote) {
			w.agent(r)
			next, _ := testenv.Key(w.t)
			v, err := api.SignRotation(r.by.Key, next, r.has["{server}"], w.URL, w.Clock.Now())
			b, _ := json.Marshal(v)
			if r.body, r.by = string(b), nil; err != nil {
				w.t.Fatal(err)
			}
		}},
	"POST /v1/clients/enroll": {record: one("clients WHERE hostname = '$N' AND NOT EXISTS (SELECT 1 FROM sign_ins i WHERE i.hostname = '{code}')"),
		kind: audit.ClientEnroll, about: `"target":"$N"`, refuse: sft.Denied, ready: func(w *writer, r *wrote) {
			_, spki := testenv.Key(w.t)
			r.body, r.by = w.approved(r, spki, ""), nil
		}},
	"POST /v1/clients/device_code": {record: one("sign_ins WHERE hostname = '$N'"), body: `{"team":"main","device_key":"$K","device":{"hostname":"$N"}}`, again: true,
		ready: func(_ *writer, r *wrote) { r.by = nil }},
	"POST /v1/clients/login": {record: one("clients WHERE id = '{client}' AND signed_in_until > {now} AND NOT EXISTS (SELECT 1 FROM sign_ins i WHERE i.hostname = '{code}')"),
		kind: audit.AuthTokenIssue, about: `"client":"{client}"`, ready: func(w *writer, r *wrote) {
			w.client(r)
			if err := r.by.Do(w.t.Context(), "POST", "/v1/clients/logout", nil, nil); err != nil {
				w.t.Fatal(err)
			}
			spki, err := x509.MarshalPKIXPublicKey(&r.by.Key.PublicKey)
			if r.body = w.approved(r, spki, r.has["{client}"]); err != nil {
				w.t.Fatal(err)
			}
		}},
	"POST /v1/clients/logout":             {record: one("clients WHERE id = '{client}' AND signed_in_until <= {now}"), kind: audit.AuthTokenEnd, about: `"client":"{client}"`, ready: (*writer).client},
	"POST /v1/teams/{team}/connect":       {record: one("sessions WHERE client_id = '{client}'"), kind: audit.UserCredsIssue, about: `"client":"{client}"`, ready: (*writer).client},
	"POST /v1/teams/{team}/client_events": {kind: audit.SessionRefused, about: `"source":"client:%/$E"`},
	"POST /v1/teams/{team}/service_token": {record: one("service_keys WHERE id = '{key}' AND last_used IS NOT NULL"), kind: audit.AuthTokenIssue, about: `"name":"{user}"%`, again: true,
		ready: func(w *writer, r *wrote) {
			r.has["{user}"] = w.make("user", base+"/service_users")
			var k platform.KeyReply
			w.Do("POST", "/service_users/"+r.has["{user}"]+"/keys", nil, &k)
			r.has["{key}"], r.body, r.by = k.ID, fmt.Sprintf(`{"key_id":%q,"key_secret":%q}`, k.ID, k.Secret), nil
		}},
	"PUT /v1/teams/{team}/settings":                 {record: one("teams WHERE name = '{team}' AND client_session = 7200"), kind: audit.TeamSettings, about: `"team_name":"{team}"`, ready: (*writer).newTeam},
	"PUT /v1/teams/{team}/clients/{id}":             {record: one("clients c JOIN users u ON u.id = c.user_id WHERE c.id = '{id}' AND u.name = '$U'"), kind: audit.ClientAssign, about: `"client":"{id}"`},
	"DELETE /v1/teams/{team}/clients/{id}":          {record: one("clients WHERE id = '{id}' AND state = 'DELETED'"), kind: audit.ClientRemove, about: `"client":"{id}"`},
	"POST /v1/teams/{team}/rdp_signing_certificate": {record: one("cas c JOIN teams t ON t.id = c.project_id WHERE t.name = '{team}'"), kind: audit.RDPSignerCreate, about: `"team_name":"{team}"`, ready: (*writer).newTeam},
	"POST /v1/teams/{team}/rdp_signature":           {kind: audit.RDPFileSign, about: `"client":"{client}"`, ready: (*writer).client},
	"PUT /v1/teams/{team}/servers/{id}":             {record: one("server_labels WHERE server_id = '{id}' AND name = 'api.env'"), kind: audit.ServerLabels, about: `"server":"{id}"`},
	"POST /v1/teams/{team}/users":                   {record: one("users WHERE name = '$N'"), kind: audit.UserCreate, about: `"target":"$N"`},
	"PUT /v1/teams/{team}/users/{user}":             {record: one("users WHERE name = '{user}' AND status = 'DISABLED'"), kind: audit.UserUpdate, about: `"target":"{user}"`, ready: removeOrNot},
	"PUT /v1/teams/{team}/users/{user}/attributes/{attribute}": {record: one("users u JOIN former_accounts f ON f.user_id = u.id WHERE u.name = '{user}' AND u.gid = $I AND f.gid <> u.gid"),
		kind: audit.UserAttribute, about: `"target":"{user}"`},
	"POST /v1/teams/{team}/users/{user}/first_use":               {kind: audit.PasswordChange, about: `"target":"{user}"`},
	"POST /v1/teams/{team}/service_users":                        {record: one("users WHERE name = '$N' AND type = 'service'"), kind: audit.UserCreate, about: `"target":"$N"`},
	"PUT /v1/teams/{team}/service_users/{user}":                  {record: one("users WHERE name = '{user}' AND status = 'DISABLED'"), kind: audit.UserUpdate, about: `"target":"{user}"`, ready: removeOrNot},
	"POST /v1/teams/{team}/service_users/{user}/keys":            {record: one("service_keys k JOIN users u ON u.id = k.user_id WHERE u.name = '{user}'"), kind: audit.KeyRotate, about: `"target":"{user}"`},
	"DELETE /v1/teams/{team}/service_users/{user}/keys/{key}":    {record: gone("service_keys WHERE id = '{key}'"), kind: audit.KeyDelete, about: `"target":"{user}"`},
	"POST /v1/teams/{team}/service_users/{user}/bindings":        {record: one("service_bindings WHERE account = '$N'"), kind: audit.ServiceCreate, about: `"account":"$N"`},
	"DELETE /v1/teams/{team}/service_users/{user}/bindings/{id}": {record: gone("service_bindings WHERE id = '{id}'"), kind: audit.ServiceRemove, about: `"binding":"{id}"`},
	"POST /v1/teams/{team}/entitlements/sudo":                    {record: one("sudo_entitlements WHERE name = '$N'"), kind: audit.SudoCreate, about: `"target":"$N"`},
	"PUT /v1/teams/{team}/entitlements/sudo/{id}":                {record: one("sudo_entitlements WHERE id = '{id}' AND name = '$N'"), kind: audit.SudoUpdate, about: `"target":"$N"`},
	"DELETE /v1/teams/{team}/entitlements/sudo/{id}":             {record: gone("sudo_entitlements WHERE id = '{id}'"), kind: audit.SudoRemove, about: `"target":"{x}"`},
	"POST /v1/teams/{team}/groups":                               {record: one("groups WHERE name = '$N'"), kind: audit.GroupCreate, about: `"target":"$N"`},
	"PUT /v1/teams/{team}/groups/{group}":                        {record: one("groups WHERE name = '{group}' AND roles LIKE '%access_user%'"), kind: audit.GroupUpdate, about: `"target":"{group}"`},
	"DELETE /v1/teams/{team}/groups/{group}":                     {record: gone("groups WHERE name = '{group}'"), kind: audit.GroupDelete, about: `"target":"{group}"`},
	"POST /v1/teams/{team}/groups/{group}/users":                 {record: one("members m JOIN groups g ON g.id = m.group_id JOIN users u ON u.id = m.user_id WHERE g.name = '{group}' AND u.name = '$U'"), kind: audit.MemberAdd, about: `"target":"$U"`},
	"DELETE /v1/teams/{team}/groups/{group}/users/{user}":        {record: gone("members m JOIN groups g ON g.id = m.group_id JOIN users u ON u.id = m.user_id WHERE g.name = '{group}' AND u.name = '{user}'"), kind: audit.MemberRemove, about: `"target":"{user}"`},
	"PUT /v1/teams/{team}/groups/{group}/attributes/{attribute}": {record: one("groups g JOIN former_gids f ON f.group_id = g.id WHERE g.name = '{group}' AND g.gid = $I AND f.gid <> g.gid"),
		kind: audit.GroupAttribute, about: `"now":"gid $I"`},
	"POST /v1/teams/{team}/projects":                  {record: one("projects p WHERE name = '$N' AND (SELECT count(*) FROM cas c WHERE c.project_id = p.id) = 4"), kind: audit.ProjectCreate, about: `"target":"$N"`},
	"PUT /v1/teams/{team}/projects/{project}":         {record: one("projects WHERE name = '{project}' AND max_session = 60"), kind: audit.ProjectUpdate, about: `"target":"{project}"`},
	"DELETE /v1/teams/{team}/projects/{project}":      {record: one("projects WHERE name = '{project}' AND deleted_at IS NOT NULL"), kind: audit.ProjectDelete, about: `"target":"{project}"`},
	"POST /v1/teams/{team}/projects/{project}/groups": {record: one("project_groups" + inProject), kind: audit.ProjectGroup, about: `"project_name":"{project}"`},
	"PUT /v1/teams/{team}/projects/{project}/groups/{group}": {record: one("project_groups" + inProject + " AND server_access = true"),
		kind: audit.ProjectGroup, about: `"project_name":"{project}"%"server_access":"true"`},
	"DELETE /v1/teams/{team}/projects/{project}/groups/{group}": {record: gone("project_groups" + inProject), kind: audit.ProjectUngroup, about: `"project_name":"{project}"`},
	"POST /v1/teams/{team}/projects/{project}/client_config_options": {record: one("projects WHERE name = '{project}' AND ssh_port_forward = 'netcat'"),
		kind: audit.ProjectUpdate, about: `"target":"{project}"`},
	"DELETE /v1/teams/{team}/projects/{project}/client_config_options/{id}": {record: one("projects WHERE name = '{project}' AND ssh_forward_agent <> 'host'"),
		kind: audit.ProjectUpdate, about: `"target":"{project}"%"client_config_options.ssh.insecure_forward_agent":""`},
	"POST /v1/teams/{team}/projects/{project}/server_enrollment_tokens":        {record: one("enrollment_tokens" + inProject), kind: audit.TokenCreate, about: `"project_name":"{project}"`},
	"DELETE /v1/teams/{team}/projects/{project}/server_enrollment_tokens/{id}": {record: gone("enrollment_tokens WHERE id = '{id}'"), kind: audit.TokenDelete, about: `"target":"{id}"`},
	"POST /v1/teams/{team}/projects/{project}/cloud_accounts":                  {record: one("cloud_accounts WHERE account_id = '$A'"), kind: audit.CloudCreate, about: `"target":"aws:$A"`},
	"DELETE /v1/teams/{team}/projects/{project}/cloud_accounts/{id}":           {record: gone("cloud_accounts WHERE id = '{id}'"), kind: audit.CloudDelete, about: `"project_name":"{project}"`},
	"POST /v1/teams/{team}/projects/{project}/authorities": {record: one("cas" + inProject + " AND stage = 'next'"), body: `{"kinds":["host"]}`,
		kind: audit.CARotate, about: `"target":"{project}"`},
	"PUT /v1/teams/{team}/projects/{project}/servers/{id}": {body: `{"project_name":"lab"}`, // a move
		record: one("servers s JOIN projects p ON p.id = s.project_id JOIN former_projects f ON f.server_id = s.id WHERE s.id = '{id}' AND p.name = 'lab' AND EXISTS (SELECT 1 FROM server_names n WHERE n.server_id = s.id AND n.project_id = p.id)"),
		kind:   audit.ServerReassign, about: `"server":"{id}"`},
	"DELETE /v1/teams/{team}/projects/{project}/servers/{id}": {record: one("servers s WHERE id = '{id}' AND deleted_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM server_names n WHERE n.server_id = s.id)"),
		kind: audit.ServerRemove, about: `"server":"{id}"`},
	"POST /v1/teams/{team}/projects/{project}/preauthorizations":        {record: one("preauthorizations a JOIN preauthorization_projects j ON j.preauth_id = a.id JOIN users u ON u.id = a.user_id WHERE u.name = '$U'"), kind: audit.PreauthCreate, about: `"target":"$U"`},
	"PUT /v1/teams/{team}/projects/{project}/preauthorizations/{id}":    {record: one("preauthorizations WHERE id = '{id}' AND disabled = true"), kind: audit.PreauthUpdate, about: `"target":"{x}"`},
	"POST /v1/teams/{team}/projects/{project}/servers":                  {record: one("servers WHERE hostname = '$N' AND unmanaged = true"), kind: audit.ServerUnmanaged, about: `"target":"$N"`},
	"POST /v1/teams/{team}/projects/{project}/unmanaged_servers":        {record: one("servers WHERE hostname = '$N' AND unmanaged = true"), kind: audit.ServerUnmanaged, about: `"target":"$N"`},
	"DELETE /v1/teams/{team}/projects/{project}/unmanaged_servers/{id}": {record: one("servers WHERE id = '{id}' AND deleted_at IS NOT NULL"), kind: audit.ServerRemove, about: `"server":"{id}"`},

	// The forms of the pages.
	"POST /authorize": {record: one("sign_ins WHERE hostname = '$N' AND state = 'approved'"), kind: audit.AuthTokenIssue, about: `"device":"$N"`, again: true, ready: func(w *writer, r *wrote) {
		r.form(w.Owner(), url.Values{"team": {testenv.Team}, "redirect_uri": {"http://127.0.0.1:1/callback"}, "state": {"0123456789abcdef"}, "code_challenge": {strings.Repeat("c", 43)},
			"device_key_sha256": {strings.Repeat("d", 64)}, "hostname": {"$N"}, "answer": {"approve"}})
	}},
	"POST /device": {record: one("sign_ins WHERE hostname = '{code}' AND state = 'approved'"), kind: audit.AuthTokenIssue, about: `"device":"{code}"`, refuse: sft.NotFound, ready: func(w *writer, r *wrote) {
		code := []byte("BBBB-BBBB")
		for i := range code {
			if i != 4 {
				code[i] = "BCDFGHJKLMNPQRSTVWXZ"[rand.N(20)]
			}
		}
		w.signIn(r, store.SignIn{Kind: "device", UserCode: string(code), State: "pending"})
		r.form(w.Owner(), url.Values{"code": {string(code)}, "answer": {"approve"}})
	}},
	"POST /signout": {record: gone("web_sessions s JOIN users u ON u.id = s.user_id WHERE u.name = '{user}'"), kind: audit.AuthTokenEnd, about: `"name":"{user}"`, ready: func(w *writer, r *wrote) {
		r.has["{user}"] = w.make("user", base+"/users")
		r.form(w.Cookie(r.has["{user}"]), nil)
	}},
	"POST /first-use": {record: one("users u JOIN web_sessions s ON s.user_id = u.id WHERE u.name = '{user}' AND u.password_hash <> '' AND NOT EXISTS (SELECT 1 FROM first_uses f WHERE f.user_id = u.id)"),
		kind: audit.PasswordChange, about: `"target":"{user}"`, refuse: sft.Denied, ready: func(w *writer, r *wrote) {
			secret := w.firstUse(r)
			r.form(nil, url.Values{"secret": {secret}, "password": {password}, "again": {password}})
		}},
	"POST /signin": {record: one("web_sessions s JOIN users u ON u.id = s.user_id WHERE u.name = '{user}'"), kind: audit.AuthTokenIssue, about: `"name":"{user}"`, again: true, ready: func(w *writer, r *wrote) {
		w.firstUse(r)
		w.password(r.has["{user}"])
		r.form(nil, url.Values{"team": {testenv.Team}, "user": {r.has["{user}"]}, "password": {password}})
	}},
}

// password is everybody's.
const password = "correct horse battery staple"

// form has a browser send a form.
func (r *wrote) form(cookie *http.Cookie, values url.Values) {
	r.by, r.cookie, r.body, r.browser = nil, cookie, strings.ReplaceAll(values.Encode(), "%24N", "$N"), true
}

// firstUse makes a user, and returns the secret of their link.
func (w *writer) firstUse(r *wrote) string {
	w.t.Helper()
	w.n++
	name := fmt.Sprintf("person%d", w.n)
	r.has["{user}"] = name
	var u platform.CreateUserReply
	w.Do("POST", "/users", map[string]string{"name": name}, &u)
	link, err := url.Parse(u.FirstUseURL)
	if err != nil {
		w.t.Fatal(err)
	}
	return link.Query().Get("secret")
}

// password gives a user the one, whose hash is made once.
func (w *writer) password(user string) {
	w.t.Helper()
	if w.hash.Reveal() == "" {
		var r wrote
		r.has = map[string]string{}
		if _, err := w.Platform.SetFirstPassword(w.t.Context(), platform.Actor{Addr: "127.0.0.1"}, sft.NewSecret(w.firstUse(&r)), sft.NewSecret(password)); err != nil {
			w.t.Fatal(err)
		}
		w.hash = w.user(r.has["{user}"]).PasswordHash
	}
	id := w.user(user).ID
	if err := w.DB.Change(w.t.Context(), func(tx *store.Tx) (audit.Event, error) {
		return audit.Event{ID: audit.NewID(), Time: w.Clock.Now(), Kind: audit.UserUpdate, Team: testenv.Team, Actor: audit.Actor{Kind: "platform"}, Outcome: audit.Success}, tx.SetPassword(id, w.hash)
	}); err != nil {
		w.t.Fatal(err)
	}
}

// user reads a user's record.
func (w *writer) user(name string) (u store.UserRecord) {
	w.t.Helper()
	if err := w.DB.Read(w.t.Context(), func(tx *store.Tx) error {
		t, err := tx.Team(testenv.Team)
		if err == nil {
			u, err = tx.User(t.ID, name)
		}
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	return u
}

// signIn stores a sign-in of the owner that is on its way.
func (w *writer) signIn(r *wrote, i store.SignIn) {
	w.t.Helper()
	u := w.user(testenv.Owner)
	w.n++
	r.has["{code}"] = fmt.Sprintf("code%d", w.n)
	hash := sha256.Sum256([]byte(r.has["{code}"]))
	i.CodeHash, i.TeamID, i.UserID, i.Hostname, i.Expires = hash[:], u.TeamID, u.ID, r.has["{code}"], w.Clock.Now().Add(time.Minute)
	if err := w.DB.Note(w.t.Context(), func(n store.Notes) error { return n.AddSignIn(i) }); err != nil {
		w.t.Fatal(err)
	}
}

// whole are queries for what is half, or of nothing: each finds none.
var whole = map[string]string{
	"names of servers that are gone":                  `server_names n JOIN servers s ON s.id = n.server_id WHERE s.deleted_at IS NOT NULL`,
	"names in another project than their server":      `server_names n JOIN servers s ON s.id = n.server_id WHERE s.project_id <> n.project_id`,
	"labels of servers that are gone":                 `server_labels l JOIN servers s ON s.id = l.server_id WHERE s.deleted_at IS NOT NULL`,
	"labels in another project than their server":     `server_labels l JOIN servers s ON s.id = l.server_id WHERE s.project_id <> l.project_id`,
	"bindings to servers that are gone":               `service_bindings b JOIN servers s ON s.id = b.server_id WHERE s.deleted_at IS NOT NULL`,
	"servers of projects that are gone":               `servers s JOIN projects p ON p.id = s.project_id WHERE p.deleted_at IS NOT NULL AND s.deleted_at IS NULL`,
	"tokens of projects that are gone":                `enrollment_tokens t JOIN projects p ON p.id = t.project_id WHERE p.deleted_at IS NOT NULL`,
	"clients of deleted people that may do something": `clients c JOIN users u ON u.id = c.user_id WHERE u.status = 'DELETED' AND c.state <> 'DELETED'`,
	"projects without an active CA of each kind":      `projects p WHERE (SELECT count(*) FROM cas c WHERE c.project_id = p.id AND c.stage = 'active') <> 4`,
	"CAs of nothing":                                  `cas c WHERE project_id <> '' AND NOT EXISTS (SELECT 1 FROM projects p WHERE p.id = c.project_id) AND NOT EXISTS (SELECT 1 FROM teams t WHERE t.id = c.project_id)`,
	"gids of two":                                     `users u JOIN groups g ON g.team_id = u.team_id AND g.gid = u.gid`,
	"former gids of another":                          `former_gids f JOIN groups g ON g.team_id = f.team_id AND g.gid = f.gid WHERE g.id <> f.group_id`,
	"live sessions of deleted clients":                `sessions s JOIN clients c ON c.id = s.client_id WHERE c.state = 'DELETED' AND s.revoked = false`,
	"events without a time, a kind or a body":         `events WHERE at <= 0 OR kind = '' OR body = ''`,
}

// A writer makes requests, and what they need.
type writer struct {
	*maker
	admin  *api.Client
	db     *sql.DB
	teams  int
	hash   sft.Secret         // of the password
	killed map[string]*[2]int // by pattern: how often one was interrupted, and how often it had happened
}

// A wrote is one request and what has become of it.
type wrote struct {
	write
	pattern, method, path, body string
	by                          *api.Client       // who signs it; nil: nobody
	has                         map[string]string // what {words} stand for
	header, id                  string            // its signature, and its id in that
	browser                     bool              // it is a form that a browser sends
	cookie                      *http.Cookie      // and its cookie
	query                       string            // record, event and used id, as they are

	sent, answered bool
	status         int
	code           sft.Code
}

// agent has it sent by the agent of a new server.
func (w *writer) agent(r *wrote) {
	w.t.Helper()
	w.n++
	key, spki := testenv.Key(w.t)
	var v api.EnrollServerReply
	if err := w.Anonymous().Do(w.t.Context(), "POST", "/v1/servers/enroll", api.EnrollServerRequest{Token: w.token(), DeviceKey: spki, Facts: testenv.Facts(fmt.Sprintf("agent%d", w.n))}, &v); err != nil {
		w.t.Fatal(err)
	}
	r.by, r.has["{server}"] = w.Signed(key, "server:"+v.ServerID), v.ServerID
}

// token is a new enrollment token's secret.
func (w *writer) token() string {
	return testenv.Secret(w.t, w.id("/projects/prod/server_enrollment_tokens", struct{}{}, "token"))
}

// client has it sent by a new client of the owner.
func (w *writer) client(r *wrote) {
	c := addClient(w.t, w.Env, testenv.Team, testenv.Owner)
	r.by, r.has["{client}"] = w.Signed(c.Key, "client:"+c.ID), c.ID
}

// newTeam has it sent by the administrator of a new team, to that team.
func (w *writer) newTeam(r *wrote) {
	w.teams++
	name := fmt.Sprintf("team%d", w.teams)
	r.by, r.has["{team}"] = teamAdmin(w.t, w.Env, name), name
	r.path = strings.Replace(r.path, "/teams/main/", "/teams/"+name+"/", 1)
}

// removeOrNot has it remove the user, half of the times.
func removeOrNot(_ *writer, r *wrote) {
	if rand.N(2) == 0 {
		r.body, r.record, r.kind = `{"status":"DELETED"}`, one("users WHERE name = '{user}' AND status = 'DELETED'"), audit.UserRemove
	}
}

// approved is the body of a client's request with a code that the owner has
// let the browser take to it.
func (w *writer) approved(r *wrote, spki []byte, clientID string) string {
	w.t.Helper()
	const verifier, to = "verifier", "http://127.0.0.1:1/callback"
	challenge, key := sha256.Sum256([]byte(verifier)), sha256.Sum256(spki)
	w.signIn(r, store.SignIn{Kind: "code", ClientID: clientID, Challenge: base64.RawURLEncoding.EncodeToString(challenge[:]), RedirectURI: to, KeySHA256: hex.EncodeToString(key[:]), State: "approved"})
	b, _ := json.Marshal(api.EnrollClientRequest{Code: r.has["{code}"], CodeVerifier: verifier, RedirectURI: to, DeviceKey: spki, Device: api.DeviceInfo{Hostname: "$N"}})
	return string(b)
}

// ready makes a request of a kind, and signs it.
func (w *writer) ready(pattern string) *wrote {
	w.t.Helper()
	method, path, _ := strings.Cut(pattern, " ")
	r := &wrote{write: writes[pattern], pattern: pattern, method: method, by: w.admin, has: map[string]string{"{now}": fmt.Sprint(w.Clock.Now().UnixMicro())}}
	r.path = w.path(path)
	values := strings.Split(r.path, "/")
	for i, word := range strings.Split(path, "/") {
		if strings.HasPrefix(word, "{") {
			r.has[word] = values[i]
		}
	}
	r.has["{x}"] = fmt.Sprintf("x%d", w.n)
	if r.body = r.write.body; r.body == "" {
		r.body = matrix[pattern].body
	}
	if r.write.ready != nil {
		r.write.ready(w, r)
	}
	in := w.values(r.body)
	var pairs []string
	for word, v := range r.has {
		pairs = append(pairs, word, v)
	}
	has := strings.NewReplacer(pairs...)
	fill := func(s string) string { return has.Replace(in.Replace(s)) }
	r.body = in.Replace(r.body)
	used := "1"
	if r.by != nil {
		r.header = signer(w.t, r.by)(r.method, r.path, []byte(r.body))
		payload, err := base64.RawURLEncoding.DecodeString(strings.Split(r.header, ".")[1])
		var c api.Claims
		if err := errors.Join(err, json.Unmarshal(payload, &c)); err != nil {
			w.t.Fatal(err)
		}
		r.id, used = c.ID, one("used_ids WHERE id = '"+c.ID+"'")
	}
	event := one(fmt.Sprintf("events WHERE kind = '%s' AND body LIKE '%%%s%%' AND body LIKE '%%\"outcome\":\"success\"%%'", r.kind, fill(r.about)))
	if r.kind == audit.SessionRefused { // it tells of one
		event = strings.Replace(event, "success", "refused", 1)
	}
	record := r.record
	switch { // what there is none of, goes with the other
	case r.kind == "":
		event = fill(record)
	case record == "":
		record = event
	}
	if used == "1" {
		used = event
	}
	r.query = "SELECT (" + fill(record) + "), (" + event + "), (" + used + ")"
	return r
}

// is tells what there is of a request: record, event and used id, at one time.
func (w *writer) is(r *wrote) (v [3]int) {
	w.t.Helper()
	if err := w.db.QueryRowContext(w.t.Context(), r.query).Scan(&v[0], &v[1], &v[2]); err != nil {
		w.t.Fatalf("%s: %v\n%s", r.pattern, err, r.query)
	}
	return v
}

// send sends requests, sixteen at once, until all are answered or none is any
// more.
func send(t *testing.T, url string, list []*wrote) {
	hc := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}, Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer hc.CloseIdleConnections()
	var next atomic.Int64
	var over atomic.Bool
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for !over.Load() {
				i := int(next.Add(1)) - 1
				if i >= len(list) {
					return
				}
				r := list[i]
				q, err := http.NewRequestWithContext(t.Context(), r.method, url+r.path, bytes.NewReader([]byte(r.body)))
				if err != nil {
					t.Error(err)
					return
				}
				if r.body != "" {
					q.Header.Set("Content-Type", "application/json")
				}
				if r.browser {
					q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
					q.Header.Set("Sec-Fetch-Site", "same-origin")
				}
				if r.cookie != nil {
					q.AddCookie(r.cookie)
				}
				if r.header != "" {
					q.Header.Set("Authorization", r.header)
				}
				r.sent = true
				resp, err := hc.Do(q)
				var b []byte
				if err == nil {
					b, err = io.ReadAll(resp.Body)
					resp.Body.Close()
				}
				if err != nil {
					if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
						r.sent = false
					}
					over.Store(true)
					return
				}
				var e api.ErrorReply
				if r.answered, r.status = true, resp.StatusCode; resp.StatusCode >= 400 && json.Unmarshal(b, &e) == nil {
					r.code = e.Error.Code
				}
			}
		})
	}
	wg.Wait()
}

// A served is a platform in a process of its own.
type served struct {
	cmd *exec.Cmd
	url string
	err bytes.Buffer
}

// serve starts the platform, which may have an end of its own.
func (w *writer) serve(where string) *served {
	w.t.Helper()
	s := &served{cmd: exec.Command(os.Args[0], "-test.run=^$")}
	s.cmd.Env = append(os.Environ(), servedURL+"="+w.DBURL, servedKey+"="+w.MasterKey, servedTime+"="+w.Clock.Now().Format(time.RFC3339Nano), servedEnd+"="+where)
	s.cmd.Stderr = &s.err
	out, err := s.cmd.StdoutPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	var addr string
	if _, err := fmt.Fscan(out, &addr); err != nil {
		s.kill()
		w.t.Fatalf("the platform does not start: %v\n%s", err, s.err.String())
	}
	s.url = "http://" + addr
	return s
}

func (s *served) kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

// After kill -9 at any moment of each kind of request, each request that was answered has happened,
// record and event; each that was not has happened or not, and is told clearly
// if it is sent once more.
func TestKilledWhileServing(t *testing.T) {
	testenv.Each(t, killedWhileServing)
}

func killedWhileServing(t *testing.T, e *testenv.Env) {
	var kinds []string
	for _, r := range webapi.Rows(e.Platform) {
		if r.Method == "GET" {
			continue
		}
		kinds = append(kinds, r.Method+" "+r.Path)
	}
	pages, err := os.ReadFile("pages.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`handle\("(POST [^"]+)"`).FindAllSubmatch(pages, -1) {
		kinds = append(kinds, string(m[1]))
	}
	for _, pattern := range kinds {
		if _, ok := writes[pattern]; !ok {
			t.Errorf("%s may change something, and has no row", pattern)
		}
	}
	if len(kinds) != len(writes) {
		t.Errorf("there are %d routes that change something, and %d rows", len(kinds), len(writes))
	}
	if t.Failed() {
		return
	}
	_, m := cast(t, e)
	e.Project("lab")
	own := e.Client(testenv.Owner)
	way, _, err := e.Connect(own, "web01")
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{maker: m, admin: own.Client, killed: map[string]*[2]int{}}
	w.maker.as, w.session = own.Client, way.SessionID
	if err := own.Do(t.Context(), "POST", base+"/rdp_signing_certificate", nil, nil); err != nil {
		t.Fatal(err)
	}
	driver, name := "pgx", e.DBURL
	if path, ok := strings.CutPrefix(e.DBURL, "sqlite:"); ok {
		driver, name = "sqlite", path
	}
	if w.db, err = sql.Open(driver, name); err != nil {
		t.Fatal(err)
	}
	defer w.db.Close()
	for _, k := range kinds {
		w.killed[k] = &[2]int{}
	}
	lasts := 6 * time.Second
	if s := os.Getenv(killsEnv); s != "" {
		if lasts, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}

	took, kills, requests := 300*time.Millisecond, 0, 0
	left := func() bool {
		return slices.ContainsFunc(kinds, func(k string) bool { return w.killed[k][0] == 0 })
	}
	for began := time.Now(); !t.Failed() && (left() || time.Since(began) < lasts); {
		if kills > 4*len(kinds) && left() {
			t.Errorf("after %d kills there are kinds of request that none has interrupted", kills)
			break
		}
		e.Clock.Advance(5 * time.Second) // so that nothing here is too often
		if err := e.DB.Note(t.Context(), func(n store.Notes) error { return n.ServerSeen(m.host, e.Clock.Now()) }); err != nil {
			t.Fatal(err)
		}
		// Those first that were interrupted least.
		rand.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
		slices.SortStableFunc(kinds, func(a, b string) int { return w.killed[a][0] - w.killed[b][0] })
		var list []*wrote
		for _, k := range kinds[:min(20, len(kinds))] {
			list = append(list, w.ready(k))
		}
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })

		// At a random moment, or in the one that was interrupted least.
		where, moment := "", rand.N(took)
		if kills%2 == 1 {
			r := list[slices.IndexFunc(list, func(r *wrote) bool { return r.pattern == kinds[0] })]
			where, moment = fmt.Sprintln(r.method, r.path, rand.N(8)), time.Minute
		}
		p := w.serve(where)
		sent := make(chan struct{})
		at := time.Now()
		go func() { send(t, p.url, list); close(sent) }()
		select {
		case <-sent:
			if where == "" {
				took = time.Since(at)
			}
		case <-time.After(moment):
		}
		p.kill()
		kills++
		<-sent
		if !slices.ContainsFunc(list, func(r *wrote) bool { return r.answered }) {
			took += took / 2
		}
		var open []*wrote
		for _, r := range list {
			if !r.sent {
				continue
			}
			requests++
			v := w.is(r)
			switch happened := v[0]; {
			case r.answered && r.status >= 400:
				t.Errorf("%s was refused: %d %s", r.pattern, r.status, r.code)
			case r.answered && v != [3]int{1, 1, 1}:
				t.Errorf("%s was answered, and of record, event and used id there are %d", r.pattern, v)
			case v[0] != v[1] || v[1] != v[2] || v[0] > 1:
				t.Errorf("%s was interrupted, and of record, event and used id there are %d", r.pattern, v)
			case !r.answered:
				w.killed[r.pattern][0]++
				w.killed[r.pattern][1] += happened
				open = append(open, r)
			}
		}

		// Once more, word for word.
		before := map[*wrote][3]int{}
		for _, r := range open {
			before[r] = w.is(r)
		}
		p = w.serve("")
		send(t, p.url, open)
		for _, r := range open {
			v, ok := w.is(r), r.status < 400
			seen := r.code == sft.Replayed && r.by != nil || r.refuse != "" && r.status == r.refuse.Info().Status && r.by == nil
			switch {
			case !r.answered:
				t.Errorf("%s, sent again, is not answered: %s", r.pattern, p.err.String())
			case !ok && !seen, ok && r.by != nil && before[r][0] == 1:
				t.Errorf("%s, sent again, of which there were %d: %d %s", r.pattern, before[r], r.status, r.code)
			case r.again && min(v[0], v[1], v[2]) < 1, !r.again && v != [3]int{1, 1, 1}:
				t.Errorf("%s, sent again, got %d %s, and of record, event and used id there are %d", r.pattern, r.status, r.code, v)
			}
		}
		p.kill()
	}

	// Nothing is half, and the chain of events is whole.
	if err := e.DB.Check(t.Context()); err != nil {
		t.Error(err)
	}
	for what, from := range whole {
		var n int
		if err := w.db.QueryRowContext(t.Context(), "SELECT count(*) FROM "+from).Scan(&n); err != nil || n != 0 {
			t.Errorf("there are %d %s, %v", n, what, err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	e.Platform.SealEvery = 5 * time.Millisecond
	go e.Platform.Run(ctx)
	poll(t, "all events are sealed", func() bool {
		v, err := e.Platform.VerifyAudit(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		return v.Unsealed == 0
	})
	interrupted := 0
	for _, k := range slices.Sorted(slices.Values(kinds)) {
		n := *w.killed[k]
		interrupted += n[0]
		t.Logf("%3d interrupted, %3d had happened: %s", n[0], n[1], k)
	}
	t.Logf("%d kills and %d requests, of which %d were interrupted, of %d kinds", kills, requests, interrupted, len(kinds))
}
