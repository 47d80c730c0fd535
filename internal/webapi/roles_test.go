package webapi_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/testdb"
	"sft/internal/testenv"
	"sft/internal/webapi"
)

// An actor is one that sends requests, and what it is to the team.
type actor struct {
	name, scheme string // scheme is as the document calls it; empty: none
	as           caller
	roles        []string
	out          bool   // its sign-in has ended
	reaches      bool   // web01, and has a session there
	elsewhere    bool   // it is of another team
	session      string // one of its own
	user         string // its name, of those who are in the team
}

// has tells whether the actor has one of the roles.
func (a *actor) has(roles []string) bool {
	return slices.ContainsFunc(roles, func(r string) bool { return r == everyone || slices.Contains(a.roles, r) })
}

// An asked is what of a route the matrix asks for, where the document alone
// does not say who may.
type asked struct {
	body    string // if not the matrix's
	action  string // of those that the document names
	reach   bool   // who reaches the server may, too, whatever roles they have
	records bool   // and who may read all servers' records
	refused int    // what those get who may not, if not 403
	hidden  bool   // that there is one: those who may not read get 404
	done    int    // what those get who may, if not what the document says
}

// everyone is the role of those without one, as the document writes it.
const everyone = "no role"

// exactly has a row for each route that goes by more than one role, and for
// those where what is asked for is one's own.
var exactly = map[string]asked{
	"GET /v1/teams/{team}/clients":                                {action: "own client"},         // one's own, that is
	"GET /v1/teams/{team}/clients/{id}":                           {action: "read", refused: 404}, // somebody else's
	"DELETE /v1/teams/{team}/clients/{id}":                        {action: "administer", refused: 404},
	"GET /v1/teams/{team}/users/{user}":                           {action: "read"}, // somebody else
	"GET /v1/teams/{team}/projects":                               {action: "read"}, // all
	"POST /v1/teams/{team}/connect":                               {reach: true, hidden: true},
	"GET /v1/teams/{team}/resolve":                                {reach: true, hidden: true},
	"POST /v1/teams/{team}/client_events":                         {reach: true, refused: 404}, // of one's own session
	"GET /v1/teams/{team}/projects/{project}/servers":             {reach: true, records: true, refused: 404},
	"GET /v1/teams/{team}/projects/{project}/servers/{id}/access": {action: "own client", hidden: true}, // of oneself, on a server that one does not reach
	"POST /v1/teams/{team}/rdp_signing_certificate":               {action: "administer", done: 409},    // there is one
	"PUT /v1/teams/{team}/servers/{id}":                           {action: "manage servers"},
	"PUT /v1/teams/{team}/projects/{project}/servers/{id}":        {body: `{"project_name":"lab"}`, action: "administer"},
}

// oneself has a row for each route about a user, a service user or a client, for
// who asks it about themselves. Where nothing is said it is as of others.
var oneself = map[string]asked{
	"GET /v1/teams/{team}/clients/{id}":                          {action: "own client"},
	"PUT /v1/teams/{team}/clients/{id}":                          {body: `{"state":"ACTIVE"}`},
	"DELETE /v1/teams/{team}/clients/{id}":                       {action: "own client"},
	"GET /v1/teams/{team}/users/{user}":                          {action: "oneself alone"},
	"PUT /v1/teams/{team}/users/{user}":                          {done: 403}, // nobody changes their own status
	"GET /v1/teams/{team}/users/{user}/groups":                   {},
	"GET /v1/teams/{team}/users/{user}/attributes":               {},
	"GET /v1/teams/{team}/users/{user}/attributes/{attribute}":   {},
	"PUT /v1/teams/{team}/users/{user}/attributes/{attribute}":   {},
	"POST /v1/teams/{team}/users/{user}/first_use":               {},
	"GET /v1/teams/{team}/service_users/{user}":                  {},
	"PUT /v1/teams/{team}/service_users/{user}":                  {done: 403},
	"GET /v1/teams/{team}/service_users/{user}/keys":             {},
	"POST /v1/teams/{team}/service_users/{user}/keys":            {},
	"GET /v1/teams/{team}/service_users/{user}/keys/{key}":       {},
	"DELETE /v1/teams/{team}/service_users/{user}/keys/{key}":    {},
	"GET /v1/teams/{team}/service_users/{user}/bindings":         {},
	"POST /v1/teams/{team}/service_users/{user}/bindings":        {},
	"DELETE /v1/teams/{team}/service_users/{user}/bindings/{id}": {},
}

// again has other bodies, with which a route does something else.
var again = map[string]string{
	"PUT /v1/teams/{team}/users/{user}":         `{"status":"DELETED"}`,
	"PUT /v1/teams/{team}/service_users/{user}": `{"status":"DELETED"}`,
}

// A table is the platform that the matrix of roles is tried on.
type table struct {
	*maker
	other   *maker
	handler http.Handler
	changes *changes
	n       int
}

// Whoever asks for whatever: all of the routes, all of the roles, alone and by
// each way to ask, and things of the team, of another one and of nobody. Who
// may is what the document says; all others may not. What another team has is
// refused to the byte as what there is not, and what is refused changes nothing.
func TestRolesAndObjects(t *testing.T) {
	testdb.Each(t, func(t *testing.T, dbURL string) {
		t.Parallel()
		rolesAndObjects(t, testenv.NewOn(t, dbURL))
	})
}

func rolesAndObjects(t *testing.T, e *testenv.Env) {
	w, actors := newTable(t, e)
	for _, r := range webapi.Rows(e.Platform) {
		if r.Path != "/v1/clients/logout" { // it ends the sign-ins
			w.route(r, actors, exactly[r.Method+" "+r.Path])
			w.self(r, actors)
		}
	}
	for _, r := range webapi.Rows(e.Platform) {
		if body := again[r.Method+" "+r.Path]; body != "" {
			x := exactly[r.Method+" "+r.Path]
			x.body = body
			w.route(r, actors, x)
		}
	}
	for _, a := range actors {
		want := 401
		if a.scheme == "client" {
			want = 204
		}
		if got, reply := w.send(a, "POST", "/v1/clients/logout", "/v1/clients/logout", nil); got != want {
			t.Errorf("POST /v1/clients/logout by %s: %d %s, want %d", a.name, got, reply, want)
		}
	}
	t.Logf("%d requests by %d actors", w.n, len(actors))
}

// newTable makes the platform and the actors.
func newTable(t *testing.T, e *testenv.Env) (*table, []*actor) {
	t.Helper()
	as, m := cast(t, e)
	e.Do("PUT", "/groups/"+sft.Everyone, map[string]any{"roles": []string{}}, nil)
	e.Do("POST", "/rdp_signing_certificate", nil, nil)
	e.Project("lab")
	zoe := addClient(t, e, "other", "zoe")
	other := &maker{Env: e, t: t, team: "other", as: e.Signed(zoe.Key, "client:"+zoe.ID), n: 100_000}
	other.Do("POST", "/projects", map[string]string{"name": testenv.Project}, nil)
	other.host = other.enroll(testenv.Project, "their01")
	theirs := e.Server("lab", testenv.Facts("lab01"))
	for _, id := range []string{m.host, theirs.ID} { // an agent is one where it is bound, too
		e.Do("POST", "/service_users/ci/bindings", map[string]string{"server": id, "account": "x"}, nil)
	}
	e.Do("POST", "/service_users/ci/bindings", map[string]string{"server": theirs.ID, "account": "deploy"}, nil)
	var key, theirKey struct {
		ID     string `json:"id"`
		Secret string `json:"key_secret"`
	}
	other.Do("POST", "/service_users", map[string]string{"name": "theirs"}, nil)
	other.Do("POST", "/service_users/theirs/keys", nil, &theirKey)
	other.Do("POST", "/groups/"+sft.Owners+"/users", map[string]string{"name": "theirs"}, nil)
	var token api.ServiceTokenReply
	if err := e.Anonymous().Do(t.Context(), "POST", "/v1/teams/other/service_token", api.ServiceTokenRequest{KeyID: theirKey.ID, KeySecret: theirKey.Secret}, &token); err != nil {
		t.Fatal(err)
	}
	bearer := func(token string) caller { return func(string, string, []byte) string { return "Bearer " + token } }
	actors := []*actor{
		{name: "nobody", as: as[nobody]},
		{name: "a client that is signed out", scheme: "client", as: as[signedOut], out: true},
		{name: "an agent", scheme: "agent", as: as[host]},
		{name: "an agent of another project", scheme: "agent", as: signer(t, theirs.Client)},
		{name: "an administrator of another team", scheme: "client", as: as[stranger], elsewhere: true},
		{name: "a service user of another team", scheme: "service_token", as: bearer(token.BearerToken), elsewhere: true},
	}
	for _, role := range append([]string{everyone}, described().roles()...) {
		name := strings.ReplaceAll(role, " ", "_")
		in := []string{}
		if role != everyone {
			in = append(in, role)
		}
		e.Do("POST", "/groups", map[string]any{"name": name, "roles": in}, nil)
		e.Do("POST", "/service_users", map[string]string{"name": "key_" + name}, nil)
		e.Do("POST", "/service_users/key_"+name+"/keys", nil, &key)
		e.User("client_" + name)
		for _, kind := range []string{"key_", "client_"} {
			e.Do("POST", "/groups/"+name+"/users", map[string]string{"name": kind + name}, nil)
		}
		actors = append(actors,
			&actor{name: "a client of a person with " + role, scheme: "client", as: signer(t, e.Client("client_"+name).Client), roles: in, user: "client_" + name},
			&actor{name: "a service user with " + role, scheme: "service_token", as: bearer(e.Bearer(key.ID, key.Secret).Token), roles: in, user: "key_" + name})
	}
	e.Grant(testenv.Project, "reachers", false, "rae")
	rae := e.Client("rae")
	way, _, err := e.Connect(rae, "web01")
	if err != nil {
		t.Fatal(err)
	}
	actors = append(actors, &actor{name: "a client of a person who reaches the server", scheme: "client", as: signer(t, rae.Client), reaches: true, session: way.SessionID, user: "rae"})
	server := webapi.New(e.Platform, slog.New(slog.NewTextHandler(io.Discard, nil)))
	server.Limits.Rate, server.Limits.Anonymous = 1e6, 1e6 // they have tests of their own
	return &table{maker: m, other: other, handler: server, changes: watch(t, e.DBURL)}, actors
}

// self has those who are in the team try a route on themselves.
func (w *table) self(r webapi.Row, actors []*actor) {
	w.t.Helper()
	pattern := r.Method + " " + r.Path
	x, ok := oneself[pattern]
	rest := strings.TrimPrefix(r.Path, "/v1/teams/{team}")
	if about := strings.HasPrefix(rest, "/clients/{") || strings.HasPrefix(rest, "/users/{") || strings.HasPrefix(rest, "/service_users/{"); about != ok {
		w.t.Errorf("%s is about one client, user or service user: %v, and in \"oneself\": %v", pattern, about, ok)
	}
	if !ok {
		return
	}
	if x.body == "" {
		x.body = matrix[pattern].body
	}
	op := described().operation(r.Method, r.Path)
	for _, a := range actors {
		service := a.scheme == "service_token"
		if a.user == "" || strings.HasPrefix(rest, "/service_users/") && !service {
			continue
		}
		x := x
		if service && strings.HasSuffix(rest, "/first_use") {
			x.done = 400 // it has no password
		}
		path := strings.Replace(r.Path, "{user}", a.user, 1)
		if strings.HasPrefix(rest, "/clients/") {
			path = strings.Replace(path, "{id}", addClient(w.t, w.Env, testenv.Team, a.user).ID, 1)
		}
		path = w.path(path)
		body := w.body(x.body)
		w.changes.since()
		want := w.status(r, op, x, a)
		got, reply := w.send(a, r.Method, r.Path, path, body)
		if got != want {
			w.t.Errorf("%s by %s, of themselves: %d %s, want %d", pattern, a.name, got, reply, want)
		}
		if changed := w.changes.since(); got >= 400 && len(changed) > 0 {
			w.t.Errorf("%s by %s, of themselves: what was refused has changed %s", pattern, a.name, changed)
		}
	}
}

// roles are all that the document names.
func (d *description) roles() (list []string) {
	for _, item := range d.doc["paths"].(object) {
		for _, op := range item.(object) {
			for _, names := range actions(op.(object)) {
				for _, r := range names {
					if r != everyone && !slices.Contains(list, r) {
						list = append(list, r)
					}
				}
			}
		}
	}
	slices.Sort(list)
	return list
}

// actions are what the document says that an operation asks policy for, and the
// roles of each.
func actions(op object) map[string][]string {
	all := map[string][]string{}
	lines, _ := op["x-sft-roles"].([]any)
	for _, l := range lines {
		action, roles, _ := strings.Cut(l.(string), ": ")
		all[action] = strings.Split(roles, ", ")
	}
	return all
}

// schemes are the ways to be known that the document names.
func schemes(op object) (list []string) {
	for _, s := range op["security"].([]any) {
		for name := range s.(object) {
			list = append(list, name)
		}
	}
	return list
}

// send sends one request, whose answer is to be as the document says.
func (w *table) send(a *actor, method, pattern, path string, body []byte) (int, string) {
	w.t.Helper()
	w.n++
	w.Clock.Advance(200 * time.Millisecond)
	if w.n%10_000 == 0 {
		w.t.Fatal("the service users' tokens are at their end") // an hour
	}
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.URL+path, bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Content-Type", contentType(body))
	if h := a.as(method, r.URL.RequestURI(), body); h != "" {
		r.Header.Set("Authorization", h)
	}
	r.RequestURI = r.URL.RequestURI()
	r.RemoteAddr = fmt.Sprintf("192.0.2.%d:40000", w.n%250)
	reply := httptest.NewRecorder()
	w.handler.ServeHTTP(reply, r)
	if err := described().check(method, pattern, reply.Code, reply.Header(), reply.Body.Bytes()); err != nil {
		w.t.Errorf("%s %s: %d %.300s: %v", method, path, reply.Code, reply.Body, err)
	}
	return reply.Code, reply.Body.String()
}

// status is what an actor gets for something that there is in the team.
func (w *table) status(r webapi.Row, op object, x asked, a *actor) int {
	w.t.Helper()
	done := 0
	for s := range op["responses"].(object) {
		if s < "300" {
			fmt.Sscan(s, &done)
		}
	}
	if x.done != 0 {
		done = x.done
	}
	pattern := r.Method + " " + r.Path
	schemes := schemes(op)
	readers := actions(described().operation("GET", "/v1/teams/{team}/users"))["read"]
	switch all := actions(op); {
	case len(schemes) == 0 || pattern == "POST /v1/clients/login" && a.scheme == "client":
		return matrix[pattern].want[admin] // by what is in the body
	case !slices.Contains(schemes, a.scheme) || a.out:
		return 401
	case a.scheme == "agent":
		return done
	case a.elsewhere:
		return 404
	case x.reach && a.reaches:
		return done
	case x.records && a.has(actions(described().operation("GET", "/v1/teams/{team}/projects/{project}/servers/{id}"))["read servers"]):
		return done
	case x.hidden && !a.has(readers):
		return 404
	case x.reach:
	default:
		roles, ok := all[x.action]
		if len(all) == 1 && x.action == "" {
			for _, roles = range all {
				ok = true
			}
		}
		if !ok {
			w.t.Errorf("%s asks for %v: say in \"exactly\" for which of them the matrix does", pattern, all)
		}
		if a.has(roles) {
			return done
		}
	}
	if x.refused != 0 {
		return x.refused
	}
	return 403
}

// route has all actors try a route, on what there is and on what there is not.
func (w *table) route(r webapi.Row, actors []*actor, x asked) {
	w.t.Helper()
	pattern := r.Method + " " + r.Path
	op := described().operation(r.Method, r.Path)
	if x.body == "" {
		x.body = matrix[pattern].body
	}
	fresh := func() string {
		p := r.Path
		if x.reach {
			p = strings.Replace(p, "{project}", testenv.Project, 1)
		}
		return w.path(p)
	}
	own, body, absent := fresh(), w.body(x.body), "nothing-"+audit.NewID()[24:]
	// The last word, and the team, are others: of another team, and of nobody.
	var pairs [][2]string
	begins, ends, word := strings.Count(r.Path, "{"), "", ""
	if begins > 0 {
		at := strings.LastIndex(r.Path, "{")
		end := strings.LastIndex(own, "/")
		// All have attributes and options of those names.
		if strings.HasSuffix(r.Path, "/{attribute}") || strings.HasSuffix(r.Path, "/client_config_options/{id}") {
			at = strings.LastIndex(r.Path[:at], "{")
		}
		word, ends, _ = strings.Cut(r.Path[at+1:], "}")
		if strings.Contains(ends, "{") {
			ends = ends[:strings.Index(ends, "{")] + own[end+1:]
		}
		if begins > 1 {
			theirs := w.other.make(word, strings.TrimSuffix(w.other.path(r.Path[:at]), "/"))
			before := strings.Join(strings.Split(own, "/")[:strings.Count(r.Path[:at], "/")], "/") + "/"
			pairs = append(pairs, [2]string{before + theirs + ends, before + absent + ends})
		}
		theirs := w.other.path(r.Path)
		pairs = append(pairs, [2]string{theirs, strings.Replace(theirs, "/teams/other", "/teams/"+absent, 1)})
	}
	w.changes.since()
	for _, a := range actors {
		want := w.status(r, op, x, a)
		if a.session != "" {
			body = bytes.ReplaceAll(w.body(x.body), []byte(w.session), []byte(a.session))
			w.changes.since()
		}
		got, reply := w.send(a, r.Method, r.Path, own+query(pattern), body)
		if got != want {
			w.t.Errorf("%s by %s: %d %s, want %d", pattern, a.name, got, reply, want)
		}
		if got < 300 && r.Method != "GET" {
			own, body = fresh(), w.body(x.body) // what it was about may be gone
		}
		if got < 400 {
			w.changes.since()
		}
		for i, pair := range pairs {
			team := i == len(pairs)-1
			switch {
			case want == 401 && (i > 0 || a.scheme == "agent"):
				continue // nobody to tell
			case team && a.elsewhere:
				continue // it is theirs
			case team && len(a.roles) > 0 && !slices.Contains(a.roles, string(sft.AccessAdmin)):
				continue // who has no role and who has all there stand for the others
			}
			var replies [2]string
			for j, path := range pair {
				got, reply := w.send(a, r.Method, r.Path, path+query(pattern), body)
				if open := want >= 400 && got == want; got != 404 && !open {
					w.t.Errorf("%s as %s by %s: %d %s", pattern, path, a.name, got, reply)
				}
				reply = timeRE.ReplaceAllString(reply, "")
				for _, v := range []string{absent, "other"} {
					reply = strings.ReplaceAll(reply, v, "X")
				}
				if i < len(pairs)-1 {
					words := strings.Split(strings.TrimSuffix(path, ends), "/")
					reply = strings.ReplaceAll(reply, words[len(words)-1], "X")
				}
				replies[j] = reply
			}
			if replies[0] != replies[1] {
				w.t.Errorf("%s by %s: of another team it is %swant, as for what there is not, %s", pattern, a.name, replies[0], replies[1])
			}
		}
		if changed := w.changes.since(); len(changed) > 0 && len(schemes(op)) > 0 {
			w.t.Errorf("%s by %s: what was refused has changed %s", pattern, a.name, changed)
		}
	}
}
