package webapi_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"sft"
	"sft/internal/testenv"
	"sft/internal/webapi"
)

// A query that chooses nothing, because of a slip, is refused, and never lists
// everything.
func TestQueriesThatCannotBe(t *testing.T) {
	e := testenv.New(t)
	as, m := cast(t, e)
	for path, want := range map[string]string{
		"/servers?selector=env%=top":         `the query of the address cannot be read: invalid URL escape \"%=t\"`,
		"/servers?selector=env=top;x":        `invalid semicolon separator in query`,
		"/servers?hostname=100%":             `invalid URL escape \"%\"`,
		"/users?starts_with=bo%":             `invalid URL escape \"%\"`,
		"/auditsV2?user=bo%zz":               `invalid URL escape \"%zz\"`,
		"/servers?hostnam=x":                 `there is no parameter \"hostnam\"","hint":"use one that this route takes: alt_names_contains, bastion, canonical_name, cloud_provider, count, `,
		"/settings?x":                        `there is no parameter \"x\"","hint":"leave it out: this route takes no parameters`,
		"/servers?hostname=a&hostname=web01": `the parameter \"hostname\" is given 2 times`,
		"/servers?count=0":                   `count is 0","hint":"use 1 to 1000`,
		"/servers?count=-1":                  `count is -1","hint":"use 1 to 1000`,
		"/servers?count=1001":                `count is 1001","hint":"use 1 to 1000`,
		"/servers?count=abc":                 `count is \"abc\", which is not a number","hint":"use 1 to 1000`,
		"/auditsV2?count=0":                  `count is 0","hint":"use 1 to 1000`,
		"/servers?hostname=":                 `the parameter \"hostname\" is empty","hint":"give it a value, or leave it out`,
		"/servers?count=5&selector":          `the parameter \"selector\" is empty`,
		"/auditsV2?user=alice&target=":       `the parameter \"target\" is empty`,
	} {
		status, _, got := answer(t, e, as[robot], "GET", base+path, "", nil)
		if status != 400 || !strings.Contains(got, want) {
			t.Errorf("GET %s: %d %s, want %s", path, status, got, want)
		}
	}
	// None is empty but the key that a page begins after.
	empty := 0
	for _, r := range webapi.Rows(e.Platform) {
		params, _ := described().operation(r.Method, r.Path)["parameters"].([]any)
		for _, p := range params {
			name := p.(object)["name"].(string)
			if p.(object)["in"] != "query" || r.Access != "person" {
				continue
			}
			empty++
			status, _, got := answer(t, e, as[robot], r.Method, m.path(r.Path)+"?"+name+"=", "", nil)
			if refused := strings.Contains(got, `the parameter \"`+name+`\" is empty`); refused == (name == "offset") || status != 200 && !refused {
				t.Errorf("%s %s?%s=: %d %s", r.Method, r.Path, name, status, got)
			}
		}
	}
	if empty < 50 {
		t.Errorf("there are %d parameters", empty)
	}
	// No route has a parameter that it does not tell of.
	for _, r := range webapi.Rows(e.Platform) {
		pattern := r.Method + " " + r.Path
		who := admin
		if r.Access == "agent" {
			who = host
		}
		path, body := m.path(r.Path), m.body(matrix[pattern].body)
		events := len(e.Events())
		status, _, got := answer(t, e, as[who], r.Method, path+"?cuont=1", contentType(body), body)
		if status != 400 || !strings.Contains(got, `there is no parameter \"cuont\"`) {
			t.Errorf("%s with a parameter that is none: %d %s", pattern, status, got)
		}
		if got := len(e.Events()); got != events {
			t.Errorf("%s with a parameter that is none left %d events", pattern, got-events)
		}
	}
}

// A body that an operation takes has to be there: what it leaves out is often
// taken away.
func TestABodyThatIsMissing(t *testing.T) {
	e := testenv.New(t)
	as, m := cast(t, e)
	n := 0
	for _, r := range webapi.Rows(e.Platform) {
		pattern := r.Method + " " + r.Path
		spec, ok := described().operation(r.Method, r.Path)["requestBody"].(object)
		if !ok {
			continue
		}
		n++
		if spec["required"] != true {
			t.Errorf("the document does not say that the body of %s has to be there", pattern)
		}
		who := admin
		if r.Access == "agent" {
			who = host
		}
		path := m.path(r.Path)
		events := len(e.Events())
		for _, body := range []string{"", "null", " \n", " null\n"} {
			status, _, got := answer(t, e, as[who], r.Method, path, contentType([]byte(body)), []byte(body))
			if status != 400 || !strings.Contains(got, "the body is missing") {
				t.Errorf("%s with %q for a body: %d %s", pattern, body, status, got)
			}
		}
		if got := len(e.Events()); got != events {
			t.Errorf("%s without a body left %d events", pattern, got-events)
		}
	}
	if n < 30 {
		t.Errorf("%d routes have a body", n)
	}
	e.Do("POST", "/groups", map[string]any{"name": "readers", "roles": []string{"access_user"}}, nil)
	call(t, e, as[robot], "PUT", base+"/groups/readers", "", nil)
	var g sft.Group
	if e.Do("GET", "/groups/readers", nil, &g); len(g.Roles) != 1 {
		t.Errorf("a PUT without a body leaves the roles %v", g.Roles)
	}
}

// What is wrong in a body is named as it is on the wire, with what is wanted.
func TestFieldsOfAWrongType(t *testing.T) {
	e := testenv.New(t)
	as, _ := cast(t, e)
	e.User("ann")
	for _, tt := range []struct{ method, path, body, msg, hint string }{
		{"POST", "/projects/prod/preauthorizations", `{"user_name":"ann","expires_at":"tomorrow"}`, `the field "expires_at" is not a time`, "give a time as in 2026-12-01T00:00:00Z"},
		{"POST", "/projects/prod/preauthorizations", `{"user_name":"ann","expires_at":5}`, `the field "expires_at" is not a time`, "give a time as in 2026-12-01T00:00:00Z"},
		{"PUT", "/users/ann/attributes/unix_uid", `{"attribute_value":2000}`, `the field "attribute_value" is not a text in quotes`, `give a text in quotes, as in "x"`},
		{"PUT", "/groups/owners", `{"roles":["access_admin",5]}`, `the field "roles[1]" is not a text in quotes`, `give a text in quotes, as in "x"`},
		{"PUT", "/groups/owners", `{"roles":"access_admin"}`, `the field "roles" is not a list`, "give a list, as in []"},
		{"PUT", "/projects/prod", `{"channels":{"audio":"no"}}`, `the field "channels.audio" is not true or false`, "give true or false"},
		{"PUT", "/projects/prod", `{"max_session_seconds":1.5}`, `the field "max_session_seconds" is not a whole number`, "give a whole number"},
		{"POST", "/projects/prod/unmanaged_servers", `{"hostname":"x","port":22,"labels":{"a":1}}`, `the field "labels.a" is not a text in quotes`, `give a text in quotes, as in "x"`},
		{"POST", "/connect", `{"target":5}`, `the field "target" is not a text in quotes`, `give a text in quotes, as in "x"`},
		{"POST", "/connect", `{"target":"web01","csr":"***"}`, `the field "csr" is not bytes in base64, in quotes`, "give bytes in base64, in quotes"},
		{"POST", "/groups", `[1]`, "the body is not an object", "give an object, as in {}"},
		{"PUT", "/settings", `{"client_session_duration":"7200"}`, `the field "client_session_duration" is not a whole number`, "give a whole number"},
		{"POST", "/groups", `{"name":`, "the body is not JSON: unexpected end of JSON input", "compare it with the API's reference"},
	} {
		who := robot
		if tt.path == "/connect" {
			who = admin
		}
		status, _, got := answer(t, e, as[who], tt.method, base+tt.path, "application/json", []byte(tt.body))
		var reply struct{ Error sft.Error }
		if err := json.Unmarshal([]byte(got), &reply); err != nil || status != 400 || reply.Error.Msg != tt.msg || reply.Error.Hint != tt.hint {
			t.Errorf("%s %s %s: %d %s", tt.method, tt.path, tt.body, status, got)
		}
	}
}

// A field that is misspelt is refused, with the one that was meant: what it was
// to narrow would be open.
func TestFieldsThatThereAreNot(t *testing.T) {
	e := testenv.New(t)
	as, _ := cast(t, e)
	const sudo = `{"name":"s","opt_no_passwd":true,"structured_commands":[{"command":"/bin/ls","command_type":"executable"},{"command":"/bin/id",%s}]}`
	for _, tt := range []struct{ method, path, body, msg, hint string }{
		{"POST", "/projects/prod/groups", `{"name":"everyone","server_access":true,"servers_selecter":"env=prod"}`, `there is no field "servers_selecter"`, "use one that there is, as servers_selector"},
		{"POST", "/projects/prod/groups", `{"name":"everyone","server_access":true,"selector":"env=prod"}`, `there is no field "selector"`, "use one that there is, as servers_selector"},
		{"PUT", "/projects/prod", `{"channels":{"clipboard":true,"audoi":false}}`, `there is no field "audoi" in "channels"`, "use one that there is, as channels.audio"},
		{"PUT", "/projects/prod", `{"clipboard":false}`, `there is no field "clipboard"`, "use one that there is, as channels.clipboard"},
		{"POST", "/entitlements/sudo", strings.ReplaceAll(sudo, "%s", `"comand_type":"executable"`), `there is no field "comand_type" in "structured_commands[1]"`, "use one that there is, as structured_commands[1].command_type"},
		{"PUT", "/settings", `{"client_session_duration":7200,"include_user_sid":"Never"}`, `there is no field "include_user_sid"`, "leave it out, or use one that there is: client_session_duration, web_session_duration, allow_device_code"},
		{"PUT", "/groups/everyone", `{"":1}`, `there is no field ""`, "leave it out, or use one that there is: name, roles"},
		{"PUT", "/groups/everyone", `{"` + strings.Repeat("roles", 200) + `":[]}`, `there is no field "` + strings.Repeat("roles", 200)[:61] + `..."`, "leave it out, or use one that there is: name, roles"},
		{"POST", "/rdp_signing_certificate", `{"name":"x"}`, `there is no field "name"`, "leave it out: this route takes no fields"},
	} {
		events := len(e.Events())
		status, _, got := answer(t, e, as[robot], tt.method, base+tt.path, "application/json", []byte(tt.body))
		var reply struct{ Error sft.Error }
		if err := json.Unmarshal([]byte(got), &reply); err != nil || status != 400 || reply.Error.Msg != tt.msg || reply.Error.Hint != tt.hint {
			t.Errorf("%s %s %s: %d %s, want %s, %s", tt.method, tt.path, tt.body, status, got, tt.msg, tt.hint)
		}
		if len(e.Events()) != events {
			t.Errorf("%s %s %s was refused, and is told of", tt.method, tt.path, tt.body)
		}
	}
	// A field has its name in any case, and what is named by whoever sends it is
	// no field.
	for _, tt := range [][3]string{{"PUT", "/groups/everyone", `{"Roles":[]}`}, {"POST", "/projects/prod/unmanaged_servers", `{"hostname":"x","labels":{"nothing":"y"}}`}} {
		if status, _, got := answer(t, e, as[robot], tt[0], base+tt[1], "application/json", []byte(tt[2])); status >= 300 {
			t.Errorf("%s %s %s: %d %s", tt[0], tt[1], tt[2], status, got)
		}
	}
}

// Each object of each body of the document has no more fields than it says,
// where people and programs ask; agents and clients may be newer.
func TestEachBodyIsClosed(t *testing.T) {
	e := testenv.New(t)
	as, m := cast(t, e)
	var doc object
	if err := json.Unmarshal(webapi.Reference, &doc); err != nil {
		t.Fatal(err)
	}
	d := &description{doc: doc} // as it is
	// objects are the bodies with a field too many, one for each object of a
	// schema, and whether the document forbids it.
	var objects func(schema object, each func(v any, closed bool))
	objects = func(schema object, each func(any, bool)) {
		schema = d.resolve(schema)
		switch properties, _ := schema["properties"].(object); {
		case schema["type"] == "array":
			objects(schema["items"].(object), func(v any, closed bool) { each([]any{v}, closed) })
		case properties != nil:
			each(object{"nothing_such": 1}, schema["additionalProperties"] == false)
			for name, p := range properties {
				objects(p.(object), func(v any, closed bool) { each(object{name: v}, closed) })
			}
		}
	}
	routes, nested := 0, 0
	for _, r := range webapi.Rows(e.Platform) {
		pattern := r.Method + " " + r.Path
		spec, ok := d.operation(r.Method, r.Path)["requestBody"].(object)
		if !ok {
			continue
		}
		who, strict := admin, r.Access == "person"
		if r.Access == "agent" {
			who = host
		}
		routes++
		objects(spec["content"].(object)["application/json"].(object)["schema"].(object), func(v any, closed bool) {
			var body object
			if err := json.Unmarshal(m.body(matrix[pattern].body), &body); err != nil {
				t.Fatal(err)
			}
			for name, in := range v.(object) {
				if body[name] = in; name != "nothing_such" {
					nested++
				}
			}
			b, _ := json.Marshal(body)
			status, _, got := answer(t, e, as[who], r.Method, m.path(r.Path), "application/json", b)
			if refused := strings.Contains(got, `there is no field \"nothing_such\"`); closed != strict || refused != strict || strict && status != 400 {
				t.Errorf("%s with %s: %d %s; closed by the document: %v, want %v", pattern, b, status, got, closed, strict)
			}
		})
	}
	if routes < 40 || nested < 10 {
		t.Errorf("%d routes have a body, and %d objects are in one", routes, nested)
	}
}

// Who takes the wrong method for a path is told the right ones, and who takes
// a wrong path where to look for it.
func TestMethodsThatAPathDoesNotTake(t *testing.T) {
	e := testenv.New(t)
	for _, tt := range []struct {
		method, path string
		status       int
		allow, says  string
	}{
		{"OPTIONS", base + "/groups/x", 405, "GET, HEAD, PUT, DELETE", `"method_not_allowed"`},
		{"PATCH", base + "/groups/x", 405, "GET, HEAD, PUT, DELETE", "use one that it takes: GET, HEAD, PUT, DELETE"},
		{"DELETE", base + "/groups", 405, "GET, HEAD, POST", `does not take the method \"DELETE\"`},
		{"GET", "/v1/clients/enroll", 405, "POST", "use one that it takes: POST"},
		{"POST", "/v1/openapi.json", 405, "GET, HEAD", "use one that it takes: GET, HEAD"},
		{"GET", base + "/nothing", 404, "", "GET /v1/openapi.json"},
		{"OPTIONS", base + "/nothing/at/all", 404, "", "GET /v1/openapi.json"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tt.method, e.URL+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := e.HTTP().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != tt.status || resp.Header.Get("Allow") != tt.allow || !strings.Contains(string(b), tt.says) {
			t.Errorf("%s %s: %s, Allow %q, %s %v", tt.method, tt.path, resp.Status, resp.Header.Get("Allow"), b, err)
		}
	}
}

// The scheme of a token is the same in any case, and a token that is none says
// where there is one.
func TestBearer(t *testing.T) {
	e := testenv.New(t)
	ann := signer(t, e.Client("ann").Client)
	for _, scheme := range []string{"bearer", "BEARER", "Bearer "} {
		for name, token := range map[string]func(method, path string) string{
			"a service user's token": func(string, string) string { return e.Service.Token },
			"a signature":            func(method, path string) string { return strings.TrimPrefix(ann(method, path, nil), "Bearer ") },
		} {
			as := func(method, path string, _ []byte) string { return scheme + " " + token(method, path) }
			if status, code := call(t, e, as, "GET", base+"/settings", "", nil); status != 200 {
				t.Errorf("%q before %s: %d %s", scheme, name, status, code)
			}
		}
	}
	for _, header := range []string{"Bearer", "Bearer ", "bearer null", "Bearer undefined"} {
		status, _, got := answer(t, e, func(string, string, []byte) string { return header }, "GET", base+"/settings", "", nil)
		if status != 401 || !strings.Contains(got, "get a token from service_token") {
			t.Errorf("%q: %d %s", header, status, got)
		}
	}
}

// Who is not known is told how to become it: whoever has sent something that
// was not enough, too.
func TestChallenge(t *testing.T) {
	e := testenv.New(t)
	ann := e.Client("ann")
	for _, tt := range []struct{ method, path, header, want string }{
		{"GET", base + "/settings", "", `Bearer realm="sft-platform"`},
		{"GET", base + "/settings", "Bearer", `Bearer realm="sft-platform"`},
		{"GET", base + "/settings", "Basic eDp5", `Bearer realm="sft-platform"`},
		{"GET", base + "/settings", "bearer x.y.z", `Bearer realm="sft-platform", error="invalid_token"`},
		{"GET", "/v1/agent/state?after=0", signer(t, ann.Client)("GET", "/v1/agent/state?after=0", nil), `Bearer realm="sft-platform", error="invalid_token"`},
		{"POST", base + "/service_token", "", `Bearer realm="sft-platform"`},
		{"GET", base + "/settings", "Bearer " + e.Service.Token, ""},
		{"GET", base + "/nothing", "", ""},
	} {
		var body io.Reader
		if tt.method == "POST" {
			body = strings.NewReader(`{"key_id":"x","key_secret":"y"}`)
		}
		r, err := http.NewRequestWithContext(t.Context(), tt.method, e.URL+tt.path, body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		if tt.header != "" {
			r.Header.Set("Authorization", tt.header)
		}
		resp, err := e.HTTP().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("WWW-Authenticate"); got != tt.want || (resp.StatusCode == 401) != (tt.want != "") {
			t.Errorf("%s %s by %.20q: %s, WWW-Authenticate %q, want %q", tt.method, tt.path, tt.header, resp.Status, got, tt.want)
		}
	}
}

// Whoever goes on by the audit's header has all of it, once, and no page after
// the last.
func TestPagesOfTheAudit(t *testing.T) {
	e := testenv.New(t)
	as, _ := cast(t, e)
	call(t, e, as[robot], "GET", base+"/auditsV2", "", nil) // the first page makes the key that seals, which is an event
	want := e.Events()
	for _, query := range []string{"", "&descending=true"} {
		var got []string
		for next := base + "/auditsV2?count=7" + query; next != ""; {
			r, err := http.NewRequestWithContext(t.Context(), "GET", e.URL+next, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", as[robot]("GET", next, nil))
			resp, err := e.HTTP().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			var page struct{ List []object }
			err = json.NewDecoder(resp.Body).Decode(&page)
			resp.Body.Close()
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("GET %s: %s, %v", next, resp.Status, err)
			}
			for _, v := range page.List {
				got = append(got, v["id"].(string))
			}
			link, _, more := strings.Cut(resp.Header.Get("Link"), ">; rel=\"next\"")
			if more != (len(page.List) == 7) || strings.Contains(strings.Join(resp.Header.Values("Link"), ""), "prev") {
				t.Errorf("a page of %d has the header Link: %q", len(page.List), resp.Header.Values("Link"))
			}
			if next = ""; more {
				next = strings.TrimPrefix(link, "<"+e.URL)
			}
			if len(got) > 2*len(want) {
				t.Fatal("it has no end")
			}
		}
		if len(got) != len(want) {
			t.Errorf("%q: %d events were got, want %d", query, len(got), len(want))
		}
	}
}
