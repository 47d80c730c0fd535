package webapi_test

import (
	"bytes"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/audit"
	"sft/internal/testdb"
	"sft/internal/testenv"
	"sft/internal/webapi"
)

// fuzzed is how many requests are sent, and those of them that SQLite gets:
// with the race detector it takes seven times as long as PostgreSQL, being C in
// the clothes of Go.
const fuzzed, fuzzedSQLite = 10000, 1500

// Whatever anybody sends, the platform does not fail, answers as its document
// says, and what it refuses has changed nothing. The requests are made from the
// document: every route, every kind of caller, values that are right, wrong or
// somebody else's. SFT_FUZZ_SEED repeats a run, but for keys and ids, and
// SFT_FUZZ_TIMES makes it longer.
func TestRequestsThatNobodyThoughtOf(t *testing.T) {
	number := func(name string, otherwise int64) int64 {
		s := os.Getenv(name)
		if s == "" {
			return otherwise
		}
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	seed, times := number("SFT_FUZZ_SEED", time.Now().UnixNano()), number("SFT_FUZZ_TIMES", 1)
	testdb.Each(t, func(t *testing.T, dbURL string) {
		t.Parallel()
		t.Logf("SFT_FUZZ_SEED=%d", seed)
		f := newFuzz(t, dbURL, uint64(seed))
		n := times * (fuzzed - fuzzedSQLite)
		if strings.HasPrefix(dbURL, "sqlite:") {
			n = times * fuzzedSQLite
		}
		for range n {
			f.step()
			if t.Failed() {
				return
			}
		}
		f.covered()
	})
}

// A fuzz sends requests to one platform.
type fuzz struct {
	*rand.Rand
	t        *testing.T
	e        *testenv.Env
	d        *description
	handler  http.Handler
	as       [callers]caller
	ops      [][2]string     // method and path
	strict   map[string]bool // the routes that refuse fields they do not have
	precious map[string]bool
	known    map[string][]string // names and ids, by what they are of: the word of the path before them
	paths    map[string][]string // of things that were made, by route
	keys     []string            // device keys
	csr      string
	host     string // the id of the server behind the agent
	rdp      []string
	changes  *changes
	seen     map[string]map[int]int // by route, how often each status
	n        int                    // makes names new
	steps    int
	kept     []sent         // what has made something, with its key
	refused  map[int]string // by caller, a key that was refused with what it came with
	again    map[int]int    // how often each status, of what was sent again
}

// A sent is a request, and what came of it.
type sent struct {
	who                   int
	method, pattern, path string
	body                  []byte
	contentType           string
	key                   *string // its Idempotency-Key
	reply                 []byte
}

func newFuzz(t *testing.T, dbURL string, seed uint64) *fuzz {
	e := testenv.NewOn(t, dbURL)
	as, m := cast(t, e)
	server := webapi.New(e.Platform, slog.New(slog.NewTextHandler(io.Discard, nil)))
	server.Limits.Rate, server.Limits.Anonymous = 1e6, 1e6 // they have tests of their own
	f := &fuzz{Rand: rand.New(rand.NewPCG(seed, 0)), t: t, e: e, d: described(), as: as, known: map[string][]string{}, paths: map[string][]string{}, strict: map[string]bool{}, seen: map[string]map[int]int{}, refused: map[int]string{}, again: map[int]int{}, handler: server}
	e.Platform.Stop() // no state request hangs
	for _, r := range webapi.Rows(e.Platform) {
		f.ops = append(f.ops, [2]string{r.Method, r.Path})
		f.strict[r.Method+" "+r.Path] = r.Access == "person" && (r.Method == http.MethodPost || r.Method == http.MethodPut)
	}
	// What the callers live by is left alone.
	f.precious = map[string]bool{testenv.Owner: true, testenv.ServiceUser: true, e.Init.Key.ID: true, m.host: true, testenv.Project: true, sft.Owners: true, "automation": true, "plain": true}
	for _, c := range f.clients() {
		f.precious[c] = true
	}
	// Some of each are there from the beginning.
	for _, pattern := range []string{"/users/{user}", "/service_users/{user}/keys/{key}", "/service_users/{user}/bindings/{id}", "/entitlements/sudo/{id}", "/groups/{group}/users/{user}",
		"/users/{user}/attributes/{attribute}", "/groups/{group}/attributes/{attribute}", "/clients/{id}", "/clients/{id}", "/clients/{id}", "/servers/{id}", "/servers/{id}",
		"/projects/{project}/groups/{group}", "/projects/{project}/server_enrollment_tokens/{id}", "/projects/{project}/cloud_accounts/{id}", "/projects/{project}/servers/{id}",
		"/projects/{project}/client_config_options/{id}", "/projects/{project}/server_users/{user}", "/projects/{project}/preauthorizations/{id}", "/projects/{project}/unmanaged_servers/{id}"} {
		made := m.path("/v1/teams/{team}" + pattern)
		f.made("/v1/teams/{team}"+pattern, made)
		words := strings.Split(strings.TrimPrefix(made, "/"), "/")
		for i := 3; i < len(words); i++ {
			f.know(words[i-1], words[i])
		}
	}
	for range 3 {
		key, spki := testenv.Key(t)
		f.keys = append(f.keys, base64.StdEncoding.EncodeToString(spki))
		f.csr = base64.StdEncoding.EncodeToString(testenv.CSR(t, key))
	}
	f.check(json.Unmarshal([]byte(rdpSettings()), &f.rdp))
	f.know("sessions", m.session)
	f.host = m.host
	f.know("servers", m.host)
	f.know("projects", testenv.Project)
	f.changes = watch(t, dbURL)
	return f
}

func (f *fuzz) check(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// clients are the ids of the clients there are.
func (f *fuzz) clients() (ids []string) {
	var list struct {
		List []struct {
			ID string `json:"id"`
		} `json:"list"`
	}
	f.e.Do("GET", "/clients?all=true", nil, &list)
	for _, c := range list.List {
		ids = append(ids, c.ID)
	}
	return ids
}

// know keeps a name or an id for later requests.
func (f *fuzz) know(of, v string) {
	list := f.known[of]
	if v == "" || len(v) > 100 || slices.Contains(list, v) {
		return
	}
	if len(list) >= 40 {
		list[f.IntN(len(list))] = v
		return
	}
	f.known[of] = append(list, v)
}

// made keeps the path of a thing for later requests.
func (f *fuzz) made(pattern, path string) {
	list := f.paths[pattern]
	f.paths[pattern] = append(list[max(0, len(list)-20):], path)
}

// odds is true once in n times.
func (f *fuzz) odds(n int) bool { return f.IntN(n) == 0 }

func pick[T any](f *fuzz, list []T) T { return list[f.IntN(len(list))] }

// invalid stands for bytes that are no UTF-8, which the encoder would mend.
const invalid = "@INVALID@"

// noField is the name of a field that no object has.
const noField = "nothing_such"

// strange are texts that somebody may have taken for granted never to see.
var strange = []string{"", " ", ".", "..", "../../etc/passwd", "a/b", "x\x00y", "\x00", invalid, "x" + invalid, "\u202eabc", "ﬀ", "İ", "ſ", "K", "a\u0301", "\ufeff", "\u2028", "\U0010ffff",
	"'; DROP TABLE users; --", "%", "%00", "%s%n", "_", "*", "\n", "a\r\nb: c", "<script>", "{{.}}", "$(id)", "-rf", "--", "null", "true", "0", "-1", "NaN", "1e400", "\\", `"`, "😀",
	"Robot", "ROBOT", "OLIVE", "everyone", "root", "127.0.0.1", "::1", "fe80::1%eth0", "0.0.0.0", "2026-03-01T09:00:00Z", "0000-00-00T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z",
	strings.Repeat("a", 64), strings.Repeat("a", 256), strings.Repeat("ä", 2600), strings.Repeat("../", 500)}

// long is a text that only a body has room for.
var long = strings.Repeat("a", 500_000)

var numbers = []json.Number{"0", "1", "-1", "22", "60", "65535", "65536", "604800", "604801", "2147483648", "9007199254740993", "9223372036854775807", "-9223372036854775808", "9223372036854775808", "1.5", "1e3", "1e400", "-0"}

// text is a value for a field or parameter of that name.
func (f *fuzz) text(name string) string {
	if f.odds(12) {
		if f.odds(200) {
			return long
		}
		return pick(f, strange)
	}
	some := func(of ...string) string {
		if list := f.known[pick(f, of)]; len(list) > 0 {
			return pick(f, list)
		}
		return audit.NewID()
	}
	switch name {
	case "name":
		if f.odds(2) {
			f.n++
			return fmt.Sprintf("f%d", f.n)
		}
		return some("users", "groups", "service_users")
	case "contains", "starts_with":
		return pick(f, []string{"f", "F1", "n", "x"})
	case "server", "server_id", "servers":
		return some("servers")
	case "projects":
		return some("projects")
	case "project_name":
		return some("projects", "projects", "groups")
	case "selector", "servers_selector":
		return pick(f, []string{"env=prod", "env in (prod, dev),!x", "api.env!=x", "system.os_type=linux", "sftd.role", "env=,", "a in ()"})
	case "state", "status", "user_type":
		return pick(f, []string{"ACTIVE", "INACTIVE", "PENDING", "DISABLED", "DELETED", "human", "service"})
	case "kinds":
		return pick(f, []string{"access", "host", "ssh_user", "ssh_host"})
	case "config_key":
		return pick(f, []string{"ssh.port_forward_method", "ssh.insecure_forward_agent"})
	case "config_value":
		return pick(f, []string{"native", "netcat", "none", "host"})
	case "attribute", "attribute_value":
		f.n++
		return pick(f, []string{fmt.Sprint(300_000 + f.n), fmt.Sprintf("f%d", f.n), "0", "65534", "root", "unix_uid", "windows_user_name", "unix_group_name"})
	case "type":
		return pick(f, []string{string(audit.GroupCreate), string(audit.UserCreate)})
	case "from", "to":
		return f.e.Clock.Now().Add(time.Duration(f.IntN(7200)-3600) * time.Second).Format(time.RFC3339)
	case "target", "via", "bastion":
		if f.odds(3) {
			return "web01"
		}
		return some("servers", "hostnames", "unmanaged_servers")
	case "hostname", "canonical_name", "alt_names":
		f.n++
		return fmt.Sprintf("h%d.example.com", f.n%50)
	case "access_address", "private_address":
		return fmt.Sprintf("10.9.8.%d", f.IntN(256))
	case "account", "login":
		return pick(f, []string{"deploy", "www-data", "root", "x", "f1"})
	case "account_id":
		return fmt.Sprintf("%012d", f.IntN(1000))
	case "provider":
		return "aws"
	case "device_key":
		if f.odds(2) {
			_, spki := testenv.Key(f.t)
			return base64.StdEncoding.EncodeToString(spki)
		}
		return pick(f, f.keys)
	case "token":
		return some("tokens")
	case "csr":
		return f.csr
	case "ssh_public_key", "ssh_host_keys", "host_keys":
		return testenv.SSHLine(f.t)
	case "service", "services":
		return pick(f, []string{"rdp", "ssh", "ping"})
	case "os_type":
		return pick(f, []string{"linux", "windows"})
	case "id":
		return audit.NewID()
	case "kind":
		return pick(f, []string{string(audit.SessionStart), string(audit.SessionRefused), string(audit.AccountCreated), string(audit.UserCreate)})
	case "outcome":
		return pick(f, []string{audit.Success, audit.Refused, audit.Failed, "maybe"})
	case "session", "session_id":
		return some("sessions")
	case "team":
		return pick(f, []string{testenv.Team, "other"})
	case "key_id":
		return some("keys")
	case "user", "username", "user_name":
		return some("users", "service_users")
	case "offset":
		return some("auditsV2", "users", "groups", "servers", "clients")
	case "all", "self", "descending", "prev", "include_expired", "include_service_users", "conflicting":
		return pick(f, []string{"true", "false"})
	case "command":
		return pick(f, []string{"/bin/ls", "/bin/id", "/bin/cat", "/bin/who", "/opt/x/"})
	case "command_type":
		return pick(f, []string{sft.SudoExecutable, sft.SudoExecutable, sft.SudoDirectory})
	case "args_type":
		return pick(f, []string{"", sft.SudoArgsAny, sft.SudoArgsAny, sft.SudoArgsCustom})
	case "sudo_entitlements":
		return some("sudo")
	case "settings":
		return pick(f, f.rdp)
	case "after":
		return pick(f, []string{"-1", "0", "7"})
	case "count":
		return string(pick(f, numbers))
	}
	return pick(f, []string{"x", "LANG", "a text", "f1"})
}

// value is one for a schema; mostly a good one.
func (f *fuzz) value(schema object, name string, depth int) any {
	schema = f.d.resolve(schema)
	if f.odds(40) {
		return f.other(depth)
	}
	if list, ok := schema["enum"].([]any); ok {
		return pick(f, list)
	}
	switch schema["type"] {
	case "string":
		if schema["format"] == "date-time" {
			return f.e.Clock.Now().Add(time.Duration(f.IntN(7200)-3600) * time.Second).Format(time.RFC3339Nano)
		}
		return f.text(name)
	case "boolean":
		return !f.odds(3)
	case "integer":
		if f.odds(2) {
			return 60 + f.IntN(5000)
		}
		return pick(f, numbers)
	case "array":
		list := []any{}
		for range pick(f, []int{0, 1, 1, 1, 2, 3, 40}) {
			list = append(list, f.value(schema["items"].(object), name, depth+1))
		}
		if name == "settings" && !f.odds(3) {
			list = list[:0]
			for _, l := range f.rdp {
				list = append(list, l)
			}
		}
		return list
	case "object":
		o := object{}
		if v, ok := schema["additionalProperties"].(object); ok {
			for range f.IntN(3) {
				o[pick(f, []string{"ssh.port_forward_method", "ssh.insecure_forward_agent", "env", "api.env", "sftd.role", "x", "ä", ""})] = f.value(v, "", depth+1)
			}
		}
		properties, _ := schema["properties"].(object)
		required, _ := schema["required"].([]any)
		// In the order of the names, so that a seed makes one request.
		for _, p := range sortedKeys(properties) {
			need := slices.Contains(required, any(p))
			if need && !f.odds(30) || !need && f.odds(3) {
				o[p] = f.value(properties[p].(object), p, depth+1)
			}
		}
		if properties != nil && f.odds(40) {
			o[noField] = 1
		}
		return o
	}
	return f.other(depth)
}

func sortedKeys(o object) (keys []string) {
	for k := range o {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// other is a value that was not asked for.
func (f *fuzz) other(depth int) any {
	switch f.IntN(7) {
	case 0:
		return nil
	case 1:
		return pick(f, strange)
	case 2:
		return pick(f, numbers)
	case 3:
		return f.odds(2)
	case 4:
		return object{pick(f, strange): 1}
	case 5:
		return []any{}
	}
	if depth > 4 {
		return "deep"
	}
	return []any{f.other(depth + 1), f.other(depth + 1)}
}

// body is a request's body, and its type.
func (f *fuzz) body(route string, op object) (body []byte, contentType string) {
	contentType = "application/json"
	if f.odds(60) {
		contentType = pick(f, []string{"", "text/plain", "application/json; charset=utf-8", "application/json;", "APPLICATION/JSON", "multipart/form-data; boundary=x"})
	}
	spec, ok := op["requestBody"].(object)
	if !ok {
		if f.odds(10) {
			return []byte(`{"name":"x"}`), contentType
		}
		return nil, ""
	}
	schema := spec["content"].(object)["application/json"].(object)["schema"].(object)
	v := f.value(schema, "", 0)
	if good := f.good(route); good != nil && !f.odds(3) {
		v = good
		if f.odds(2) { // but for one field
			properties := f.d.resolve(schema)["properties"].(object)
			name := pick(f, sortedKeys(properties))
			good[name] = f.value(properties[name].(object), name, 0)
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	f.check(enc.Encode(numbersAsTheyAre(v)))
	body = bytes.ReplaceAll(bytes.TrimSpace(b.Bytes()), []byte(invalid), []byte("\xff\xfe"))
	if !f.odds(25) {
		return body, contentType
	}
	switch f.IntN(8) {
	case 0:
		body = body[:f.IntN(len(body)+1)]
	case 1:
		body = append(body, body...)
	case 2:
		body = append(bytes.Repeat([]byte("["), 12_000), body...)
	case 3:
		body = append(append(bytes.Repeat([]byte(`{"name":`), 5_000), body...), bytes.Repeat([]byte("}"), 5_000)...)
	case 4:
		body = bytes.Replace(body, []byte(`":"`), []byte(`":"\ud800`), 1)
	case 5:
		body = bytes.Replace(body, []byte("{"), []byte(`{"name":"a","name":"b","Name":"c","NAME":["d"],`), 1)
	case 6:
		body[f.IntN(len(body))] ^= byte(1 << f.IntN(8))
	case 7:
		body = append([]byte("\xef\xbb\xbf"), body...)
	}
	return body, contentType
}

// good is the body of the matrix, which the route takes; nil if it has none.
func (f *fuzz) good(route string) (v object) {
	f.n++
	user := testenv.Owner
	if list := f.known["users"]; len(list) > 0 {
		user = pick(f, list)
	}
	quoted, err := json.Marshal(f.rdp)
	f.check(err)
	text := strings.NewReplacer("$N", fmt.Sprintf("f%d", f.n), "$U", user, "$K", pick(f, f.keys), "$C", f.csr, "$E", audit.NewID(), "$S", f.known["sessions"][0],
		"$A", fmt.Sprintf("%012d", f.n), "$H", f.host, "$I", fmt.Sprint(300_000+f.n), "$R", string(quoted)).Replace(matrix[route].body)
	if text != "" {
		f.check(json.Unmarshal([]byte(text), &v))
	}
	if v["token"] != nil {
		v["token"], v["device_key"] = f.text("token"), f.text("device_key")
	}
	return v
}

// numbersAsTheyAre has the encoder write numbers that it would refuse.
func numbersAsTheyAre(v any) any {
	switch v := v.(type) {
	case json.Number:
		return json.RawMessage(v)
	case object:
		for k := range v {
			v[k] = numbersAsTheyAre(v[k])
		}
	case []any:
		for i := range v {
			v[i] = numbersAsTheyAre(v[i])
		}
	}
	return v
}

// path fills in a path's words and adds a query.
func (f *fuzz) path(method, pattern string, op object) string {
	words := strings.Split(pattern, "/")
	if list := f.paths[pattern]; len(list) > 0 && f.odds(2) {
		words = strings.Split(pick(f, list), "/")
	}
	for i, w := range words {
		if !strings.HasPrefix(w, "{") {
			continue
		}
		v := testenv.Team
		if w == "{team}" {
			if f.odds(15) {
				v = pick(f, []string{"other", "MAIN", "nobody"})
			}
		} else {
			of := words[i-1]
			list := f.known[of]
			switch {
			case f.odds(12) || len(list) == 0:
				v = pick(f, strange)
			case f.odds(15):
				v = f.text("name")
			default:
				v = pick(f, list)
			}
			if w == "{project}" && f.odds(2) {
				v = testenv.Project
			}
		}
		v = strings.ReplaceAll(v, invalid, "\xff\xfe")
		// The router takes these for a path that was written badly, and shows a
		// better one.
		if v == "" || v == "." || v == ".." {
			v = "x"
		}
		words[i] = url.PathEscape(v)
	}
	if last := &words[len(words)-1]; method != http.MethodGet {
		if v, err := url.PathUnescape(*last); err == nil && f.precious[strings.ToLower(v)] {
			*last = audit.NewID()
		}
	}
	path := strings.Join(words, "/")
	q := url.Values{}
	params, _ := op["parameters"].([]any)
	for _, p := range params {
		p := p.(object)
		if name := p["name"].(string); p["in"] == "query" && f.odds(2) && !(name == "run" && !f.odds(20)) {
			q.Add(name, strings.ReplaceAll(f.text(name), invalid, "\xff\xfe"))
		}
	}
	if f.odds(30) {
		q.Add(pick(f, []string{"x", "count", "offset", ""}), pick(f, strange[:20]))
	}
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	if f.odds(100) {
		path += pick(f, []string{"?%zz", "?a=%ff;b", "?;", "?&&&="})
	}
	return path
}

// route is one of the routes: every other time one that was not yet carried out,
// or not yet refused.
func (f *fuzz) route() (method, pattern string) {
	at := pick(f, f.ops)
	if f.odds(2) {
		for range 30 {
			done, refused := f.came(at[0] + " " + at[1])
			if done == 0 || refused == 0 {
				break
			}
			at = pick(f, f.ops)
		}
	}
	return at[0], at[1]
}

// came is how often a route was carried out and refused.
func (f *fuzz) came(route string) (done, refused int) {
	for status, n := range f.seen[route] {
		if status < 300 {
			done += n
		} else {
			refused += n
		}
	}
	return done, refused
}

// takesKey tells whether a route takes an Idempotency-Key, by the document.
func takesKey(op object) bool {
	params, _ := op["parameters"].([]any)
	return slices.ContainsFunc(params, func(p any) bool { return p.(object)["in"] == "header" && p.(object)["name"] == "Idempotency-Key" })
}

// badKeys are none.
var badKeys = []string{"", "a b", "\x7f", "\xff", strings.Repeat("x", 256)}

// key is an Idempotency-Key for a caller: a new one, one that was refused with
// something else, or none that can be.
func (f *fuzz) key(who int) *string {
	f.n++
	key := fmt.Sprintf("key-%d", f.n)
	switch old := f.refused[who]; {
	case f.odds(8):
		key = pick(f, badKeys)
	case old != "" && f.odds(2):
		key = old
	}
	return &key
}

// step sends one request and judges the answer.
func (f *fuzz) step() {
	if len(f.kept) > 0 && f.odds(15) {
		f.sendAgain(pick(f, f.kept))
		return
	}
	method, pattern := f.route()
	op := f.d.operation(method, pattern)
	path := f.path(method, pattern, op)
	who := pick(f, []int{nobody, signedOut, plain, stranger, host, admin, admin, robot, robot, robot, robot, robot, robot, robot, robot, robot})
	switch {
	case pattern == "/v1/clients/logout" && who != nobody && who != host:
		who = signedOut // the others would be out for the rest
	case strings.HasPrefix(pattern, "/v1/agent/") && !f.odds(5):
		who = host
	case len(op["security"].([]any)) == 1 && who == robot:
		who = admin // robots sign nothing
	}
	var body []byte
	contentType := ""
	if method == http.MethodPost || method == http.MethodPut || f.odds(20) {
		body, contentType = f.body(method+" "+pattern, op)
	}
	s := sent{who: who, method: method, pattern: pattern, path: path, body: body, contentType: contentType}
	if takesKey(op) && f.odds(2) || f.odds(50) { // elsewhere it is not looked at
		s.key = f.key(who)
	}
	f.send(s)
}

// sendAgain sends what has made something once more, as it was or with
// something else. It makes nothing.
func (f *fuzz) sendAgain(s sent) {
	first := s.reply
	switch other := f.odds(2); {
	case !other:
	case f.odds(2):
		s.body = append(bytes.Clone(s.body), '\n')
		if s.contentType = "application/json"; len(s.body) == 1 {
			s.body = []byte("{}")
		}
		first = nil
	default:
		s.pattern, s.path, s.contentType, first = "/v1/teams/{team}/groups", base+"/groups", "application/json", nil
		f.n++
		s.body = fmt.Appendf(nil, `{"name":"f%d"}`, f.n)
	}
	status, reply, changed := f.send(s)
	f.again[status]++
	switch {
	case len(changed) > 0:
	case s.who != admin && s.who != robot: // who may have lost the role meanwhile
		return
	case first == nil && status == http.StatusUnprocessableEntity:
		return
	case first != nil && status == http.StatusCreated && bytes.Equal(reply, first):
		return
	case first != nil && status == http.StatusConflict && bytes.Contains(reply, []byte("its secret was shown once")):
		return
	}
	f.t.Errorf("%s %s by %s with the key %q, %q, is answered with %d %s, and has changed %s; first it was %s", s.method, s.path, callerNames[s.who], *s.key, s.body, status, reply, changed, s.reply)
}

// send sends one request, judges the answer and keeps what is in it.
func (f *fuzz) send(s sent) (status int, reply []byte, changed []string) {
	method, pattern, path, who, body, contentType := s.method, s.pattern, s.path, s.who, s.body, s.contentType
	op := f.d.operation(method, pattern)
	f.e.Clock.Advance(300 * time.Millisecond)
	if f.steps++; f.steps%10_000 == 0 { // before its hour is over
		f.e.Service = f.e.Bearer(f.e.Init.Key.ID, f.e.Init.Key.Secret)
		f.changes.since()
	}

	r, err := http.NewRequestWithContext(f.t.Context(), method, f.e.URL+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil // no client would send it
	}
	if s.key != nil {
		r.Header["Idempotency-Key"] = []string{*s.key}
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	if h := f.as[who](method, r.URL.RequestURI(), body); h != "" {
		r.Header.Set("Authorization", h)
	}
	if s.reply == nil && f.odds(100) {
		r.Header.Set("Authorization", pick(f, []string{"Bearer ", "Bearer x.y.z", "Basic eDp5", strings.Repeat("x", 20_000), r.Header.Get("Authorization") + "x"}))
	}
	r.RequestURI = r.URL.RequestURI()
	r.RemoteAddr = fmt.Sprintf("192.0.2.%d:40000", f.steps%250)
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, r)

	reply = w.Body.Bytes()
	bad := func(format string, args ...any) {
		f.t.Helper()
		f.t.Errorf("request %s %s by %s, %q: %.2000q\nis answered with %d %.2000s\n%s", method, path, callerNames[who], contentType, body, w.Code, reply, fmt.Sprintf(format, args...))
	}
	changed = f.changes.since()
	if w.Code >= 400 && len(changed) > 0 {
		bad("it was refused, and changed %s", changed)
	}
	if w.Code < 300 && f.strict[method+" "+pattern] && bytes.Contains(body, []byte(noField)) {
		bad("it has a field that there is not, and was carried out")
	}
	switch makes := takesKey(op); {
	case s.key == nil || !makes || s.reply != nil:
	case w.Code == http.StatusUnprocessableEntity:
		bad("nothing was made with its key %q", *s.key)
	case slices.Contains(badKeys, *s.key):
		if w.Code < 300 {
			bad("its key is %q", *s.key)
		}
	case w.Code == http.StatusCreated:
		s.reply = bytes.Clone(reply)
		f.kept = append(f.kept[max(0, len(f.kept)-20):], s)
		if f.refused[who] == *s.key {
			delete(f.refused, who)
		}
	case w.Code >= 400:
		f.refused[who] = *s.key
	}
	if f.seen[method+" "+pattern] == nil {
		f.seen[method+" "+pattern] = map[int]int{}
	}
	f.seen[method+" "+pattern][w.Code]++
	if w.Code >= 500 && !(w.Code == 503 && bytes.Contains(reply, []byte(sft.Unavailable)) && (strings.HasSuffix(pattern, "/connect") || strings.HasSuffix(pattern, "/resolve"))) {
		bad("the platform failed")
	}
	if err := f.d.check(method, pattern, w.Code, w.Header(), reply); err != nil {
		bad("%v", err)
	}
	if w.Code < 300 {
		if method == http.MethodPost && w.Code == http.StatusNoContent {
			reply = body // what was added is named by the request alone
		}
		f.learn(pattern, path, reply)
	}
	return w.Code, w.Body.Bytes(), changed
}

// learn keeps what a reply names.
func (f *fuzz) learn(pattern, path string, reply []byte) {
	words := strings.Split(pattern, "/")
	of := words[len(words)-1]
	if strings.HasPrefix(of, "{") {
		return
	}
	type thing struct {
		ID, Name, Hostname string
		Option             string `json:"config_key"`
		User               string `json:"user_name"`
	}
	var one struct {
		thing
		Session string `json:"session_id"`
		Client  string `json:"client_id"`
		Server  string `json:"server_id"`
		Project string
		Token   string
		List    []thing
	}
	if json.Unmarshal(reply, &one) != nil {
		return
	}
	// What a thing is addressed by.
	address := func(v thing) string {
		switch {
		case of == "client_config_options":
			return v.Option
		case of == "server_users":
			return v.User
		case v.Name != "" && of != "sudo":
			return v.Name
		}
		return v.ID
	}
	list := append(one.List, one.thing)
	for _, v := range list[:min(len(list), 20)] {
		f.know(of, address(v))
		f.know("hostnames", v.Hostname)
	}
	f.know("sessions", one.Session)
	if one.Token != "" {
		f.know("tokens", testenv.Secret(f.t, one.Token))
	}
	if one.Client != "" {
		f.made("/v1/teams/{team}/clients/{id}", base+"/clients/"+one.Client)
	}
	if one.Server != "" && of == "enroll" {
		f.know("servers", one.Server)
		f.made("/v1/teams/{team}/projects/{project}/servers/{id}", base+"/projects/"+url.PathEscape(one.Project)+"/servers/"+one.Server)
	}
	id := address(one.thing)
	path, _, _ = strings.Cut(path, "?")
	for _, at := range f.ops {
		if rest, ok := strings.CutPrefix(at[1], pattern+"/{"); ok && id != "" && !strings.Contains(rest, "/") {
			f.made(at[1], path+"/"+url.PathEscape(id))
		}
	}
}

// covered checks that the requests came to something: nearly every route was
// carried out, and each refused.
func (f *fuzz) covered() {
	var never []string
	sum := map[int]int{}
	for _, at := range f.ops {
		route := at[0] + " " + at[1]
		for status, n := range f.seen[route] {
			sum[status] += n
		}
		done, refused := f.came(route)
		if refused == 0 && at[1] != "/v1/info" {
			f.t.Errorf("%s was never refused", route)
		}
		switch at[1] {
		case "/v1/clients/enroll", "/v1/clients/login", "/v1/teams/{team}/service_token", "/v1/agent/device_key": // these want a secret, or a key
		default:
			if done == 0 {
				never = append(never, route)
			}
		}
	}
	if len(never) > len(f.ops)/20 {
		f.t.Errorf("never carried out: %s", strings.Join(never, ", "))
	}
	for _, status := range []int{201, 409, 422} {
		if f.again[status] == 0 {
			f.t.Errorf("nothing that was sent again was answered with %d", status)
		}
	}
	f.t.Log("statuses:", sum, "of what was sent again:", f.again)
}

// changes counts what is written to a database, by triggers of its own, except
// for what the platform may note at any time: when somebody was seen last, and
// that something was refused.
type changes struct {
	t    *testing.T
	db   *sql.DB
	last int64
}

// watch begins to count.
func watch(t *testing.T, dbURL string) *changes {
	t.Helper()
	driver, dsn := "pgx", dbURL
	tables, when := "SELECT tablename FROM pg_tables WHERE schemaname = 'public'", "FOR EACH ROW"
	setup, do := `CREATE TABLE changes (n bigserial PRIMARY KEY, what text);
CREATE FUNCTION changed() RETURNS trigger AS $$ BEGIN INSERT INTO changes (what) VALUES (TG_OP || ' ' || TG_TABLE_NAME); RETURN NULL; END $$ LANGUAGE plpgsql`, "EXECUTE FUNCTION changed()"
	path, lite := strings.CutPrefix(dbURL, "sqlite:")
	if lite {
		driver, dsn = "sqlite", "file:"+path+"?_pragma=busy_timeout(10000)"
		tables, when = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'", ""
		setup = "CREATE TABLE changes (n integer PRIMARY KEY AUTOINCREMENT, what text)"
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	exec := func(q string) {
		t.Helper()
		if _, err := db.Exec(q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
	column := func(q string) (list []string) {
		t.Helper()
		rows, err := db.Query(q)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var s string
			if err := rows.Scan(&s); err != nil {
				t.Fatal(err)
			}
			list = append(list, s)
		}
		return list
	}
	names := column(tables)
	exec(setup)
	for _, table := range names {
		rows, err := db.Query("SELECT * FROM " + table + " LIMIT 0")
		if err != nil {
			t.Fatal(err)
		}
		columns, err := rows.Columns()
		rows.Close()
		if err != nil {
			t.Fatal(err)
		}
		columns = slices.DeleteFunc(columns, func(c string) bool { return c == "last_seen" || c == "agent_runs" })
		for _, op := range []string{"INSERT", "DELETE", "UPDATE OF " + strings.Join(columns, ", ")} {
			kind, _, _ := strings.Cut(op, " ")
			only := ""
			if table == "events" && kind == "INSERT" {
				only = ` WHEN (NEW.body NOT LIKE '%"outcome":"refused"%')`
			}
			then := do
			if lite {
				then = fmt.Sprintf("BEGIN INSERT INTO changes (what) VALUES ('%s %s'); END", kind, table)
			}
			exec(fmt.Sprintf("CREATE TRIGGER changed_%s_%s AFTER %s ON %s %s%s %s", table, strings.ToLower(kind), op, table, when, only, then))
		}
	}
	return &changes{t: t, db: db}
}

// since says what was changed since it was asked before.
func (c *changes) since() (what []string) {
	c.t.Helper()
	rows, err := c.db.Query("SELECT n, what FROM changes WHERE n > $1 ORDER BY n", c.last)
	if err != nil {
		c.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&c.last, &s); err != nil {
			c.t.Fatal(err)
		}
		what = append(what, s)
	}
	if err := rows.Err(); err != nil {
		c.t.Fatal(err)
	}
	return what
}
