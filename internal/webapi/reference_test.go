package webapi

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"maps"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"sft"
	"sft/internal/api"
	"sft/internal/platform"
	"sft/internal/policy"
)

var update = flag.Bool("update", false, "write openapi.json and docs/api.md")

// common says what a name means wherever nothing else is said of it, so that
// it is said once.
var common = map[string]string{
	"id":              "its id, a UUIDv7 (RFC 9562)",
	"name":            "what it is called, and by what it is addressed",
	"created_at":      "when it was made",
	"created_by_user": "name of the user who made it",
	"description":     "for people to read, up to 200 characters",
	"team":            "name of the team",
	"team_name":       "name of the team",
	"project":         "name of the project",
	"project_name":    "name of the project",
	"group":           "name of the group",
	"user":            "name of the user",
	"user_name":       "name of the user",
	"hostname":        "host name",
	"canonical_name":  "a name that is to be shown in the place of the host name",
	"alt_names":       "further names",
	"broker_port":     "TCP port of the Access Broker",
	"bastion":         "name of the server that the way here goes through",
	"os":              "operating system, for people to read",
	"sftd_version":    "version of the agent",
	"services":        "what the broker offers: rdp, ssh, ping",
	"instance_id":     "id of the instance, as its cloud has it",
	"account_id":      "id of the account, as its cloud has it",
	"full_name":       "for people to read, up to 200 characters",
	"email":           "for people to read, up to 200 characters",
	"unix_uid":        "the account's user id on Linux",
	"unix_gid":        "the account's group id on Linux",
	"state":           "ACTIVE, or how else it is",
	"status":          "the life of the user",
	"last_seen":       "when it was last in touch",
	"expires_at":      "when it ends",
	"issued_at":       "when it was made",
	"url":             "the platform's, which signed requests name as their audience",
	"client_id":       "id of the client",
	"signed_in_until": "when the client's sign-in ends",
	"device":          "the client's machine",
	"facts":           "what the host is",
	"session":         "id of the session",
	"port":            "TCP port",
	"events":          "the batch, oldest first",
	"time":            "when it was (RFC 3339)",
	"version":         "version of the program",

	"attribute_value":         "a login name, the name of a local group, or a number",
	"client_session_duration": "how long a client's sign-in lasts: 3600 to 90000 seconds",
	"web_session_duration":    "how long a sign-in with a browser lasts: 1800 to 90000 seconds",
	"allow_device_code":       "whether clients may enrol by a typed code (RFC 8628)",
	"disabled":                "whether it was taken back: nothing is issued by it",
}

// A generator makes the reference out of the table of routes, the types of
// the operations and the comments in the source.
type generator struct {
	t      *testing.T
	src    *source
	base   *trail // what any route may be refused with
	types  map[string]reflect.Type
	common map[string]map[string]bool // where each word of common is used
	// strict: what is generated is the body of a request whose route refuses
	// what it does not know. bodies are the components that are no more than
	// that, open the types that are something else, too.
	strict bool
	bodies map[string]bool
	open   map[reflect.Type]bool
}

// A field is one of a body, or a parameter.
type field struct {
	name, in, doc      string
	typ                reflect.Type
	required, readOnly bool
	min, max           int    // of a number; 0, 0: any
	otherwise          string // what a number is when it is left out
}

// An operation is one route, as the reference tells of it.
type operation struct {
	route
	id, summary, more, tag string
	caller                 string
	roles                  []string // one for each action
	params                 []field
	body                   []field        // nil: none
	bodyName               string         // of the component
	codes                  []sft.CodeInfo // with those that any route may be refused with
}

func (g *generator) problem(format string, args ...any) {
	g.t.Helper()
	g.t.Errorf(format, args...)
}

// operations are the routes, in the order of the table.
func (g *generator) operations() (list []operation) {
	callers := g.src.pkg("sft/internal/webapi").consts["access"]
	for _, r := range routes(&platform.Platform{}) {
		name := runtime.FuncForPC(reflect.ValueOf(r.handle.op).Pointer()).Name()
		name, ok := strings.CutSuffix(name, "-fm")
		name, ok2 := strings.CutPrefix(name, "sft/internal/platform.(*Platform).")
		if !ok || !ok2 {
			g.problem("%s %s: %s is not a method of the platform", r.method, r.path, name)
			continue
		}
		id := name
		for _, of := range []string{"project", "group"} {
			if slices.ContainsFunc(list, func(o operation) bool { return o.id == id }) && strings.Contains(r.path, "{"+of+"}") {
				id = name + "Of" + strings.ToUpper(of[:1]) + of[1:]
			}
		}
		if slices.ContainsFunc(list, func(o operation) bool { return o.id == id }) {
			g.problem("%s %s: there is another %s", r.method, r.path, id)
		}
		o := operation{route: r, id: id, caller: callers[r.access].doc, tag: tagOf(r.path)}
		p := g.src.pkg("sft/internal/platform")
		o.summary, o.more = g.summary(r, name, p.docs["Platform."+name])
		t := g.src.trail()
		for _, f := range p.funcs[name] {
			if f.method {
				t.follow(f)
			}
		}
		o.roles = g.rolesOf(t)
		if whose := own[name]; whose != "" {
			i := slices.Index(o.roles, "own client: no role")
			if i < 0 {
				g.problem("%s asks for nothing of one's own", name)
				continue
			}
			o.roles[i] = whose + ": no role"
		}
		if r.access != anyone && r.access != agent {
			for _, f := range p.funcs["SignedIn"] {
				t.follow(f)
			}
		}
		if r.method == http.MethodPost || r.method == http.MethodPut {
			t.codes[sft.ContentType] = true
		}
		if r.makes() {
			t.codes[sft.Exists], t.codes[sft.KeyReused] = true, true
		}
		for _, c := range sft.Codes {
			if t.codes[c.Code] || g.base.codes[c.Code] {
				o.codes = append(o.codes, c)
			}
		}
		g.request(&o)
		list = append(list, o)
	}
	return list
}

// pages reports whether the reply is a page of a list.
func (o operation) pages() bool {
	return o.handle.reply.Implements(reflect.TypeFor[interface{ Around() (prev, next string) }]()) &&
		slices.ContainsFunc(o.params, func(f field) bool { return f.name == "count" })
}

// own says which part of an operation takes no role, where that is not a client.
var own = map[string]string{"GetUser": "oneself alone", "ListProjects": "with self=true alone"}

// tagOf is the heading of a route: what it is about.
func tagOf(path string) string {
	var words []string
	for _, w := range strings.Split(strings.TrimPrefix(path, "/v1/"), "/") {
		if !strings.HasPrefix(w, "{") && w != "teams" {
			words = append(words, strings.ReplaceAll(w, "_", " "))
		}
	}
	if len(words) > 1 && words[0] == "projects" {
		return "projects: " + words[1]
	}
	return words[0]
}

// summary splits an operation's comment: its first sentence, without the
// operation's name, and the rest.
func (g *generator) summary(r route, name, doc string) (first, rest string) {
	doc, ok := strings.CutPrefix(doc, name+" ")
	if !ok {
		g.problem("%s %s: the comment of %s does not begin with its name", r.method, r.path, name)
		return "", ""
	}
	doc = g.wireNames(r.handle.req, strings.ToUpper(doc[:1])+doc[1:])
	first, rest, _ = strings.Cut(doc, "\n\n")
	if i := strings.Index(first, ". "); i >= 0 {
		first, rest = first[:i+1], strings.TrimSpace(first[i+2:]+"\n\n"+rest)
	}
	return strings.TrimSuffix(first, "."), rest
}

// rolesOf says which roles may do what an operation asks policy for.
func (g *generator) rolesOf(t *trail) (list []string) {
	for _, c := range g.src.pkg("sft/internal/policy").consts["Action"] {
		if !t.actions[c.name] {
			continue
		}
		var roles []string
		for _, r := range g.src.pkg("sft").consts["Role"] {
			if policy.May(sft.StatusActive, []sft.Role{sft.Role(r.value)}, policy.Action(c.value)) {
				roles = append(roles, r.value)
			}
		}
		if policy.May(sft.StatusActive, nil, policy.Action(c.value)) {
			roles = []string{"no role"}
		}
		list = append(list, strings.ReplaceAll(c.value, "_", " ")+": "+strings.Join(roles, ", "))
	}
	return list
}

var wordRE = regexp.MustCompile("[A-Za-z0-9_.`]+")

// wireNames puts the names on the wire in the place of those of Go's fields.
func (g *generator) wireNames(t reflect.Type, doc string) string {
	if t.Kind() != reflect.Struct {
		return doc
	}
	names := map[string]string{}
	for _, f := range reflect.VisibleFields(t) {
		for _, tag := range []string{"json", "query", "path"} {
			if n, _, _ := strings.Cut(f.Tag.Get(tag), ","); n != "" && n != "-" {
				names[f.Name] = "`" + n + "`"
			}
		}
	}
	var out strings.Builder
	at := 0
	for _, i := range wordRE.FindAllStringIndex(doc, -1) {
		word := strings.TrimRight(doc[i[0]:i[1]], ".")
		// SSH and ID are words of their own, except where a sentence is about the
		// field.
		begins := i[0] == 0 || strings.HasSuffix(doc[:i[0]], ". ") || strings.HasSuffix(doc[:i[0]], "\n")
		if n := names[word]; n != "" && (begins || strings.ToUpper(word) != word) {
			out.WriteString(doc[at:i[0]] + n)
			at = i[0] + len(word)
		}
	}
	return out.String() + doc[at:]
}

// describe is the comment of a field, or what its name commonly means.
func (g *generator) describe(owner reflect.Type, st *ast.StructType, f reflect.StructField, name string) string {
	if st != nil {
		if doc := fieldDoc(st, f.Name); doc != "" {
			return g.wireNames(owner, doc)
		}
	}
	if doc := common[name]; doc != "" {
		if g.common[name] == nil {
			g.common[name] = map[string]bool{}
		}
		g.common[name][owner.String()] = true
		return doc
	}
	g.problem("%s.%s (%s) has no comment", owner, f.Name, name)
	return ""
}

// fields are those of a struct that are in a body, in the order of the source.
func (g *generator) fields(t reflect.Type, st *ast.StructType) (list []field) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
			continue
		case f.Anonymous && name == "":
			list = append(list, g.fields(f.Type, g.src.structOf(f.Type))...)
			continue
		case name == "":
			g.problem("%s.%s has no name on the wire", t, f.Name)
		}
		list = append(list, field{name: name, doc: g.describe(t, st, f, name), typ: f.Type,
			required: options == "" && f.Type.Kind() != reflect.Pointer,
			readOnly: t.PkgPath() == "sft" && (name == "id" || name == "created_at" || name == "created_by_user")})
	}
	return list
}

// request fills in what an operation takes: by the same tags as bind.
func (g *generator) request(o *operation) {
	t := o.handle.req
	for _, f := range reflect.VisibleFields(t) {
		owner := t // or what is embedded in it
		for _, i := range f.Index[:len(f.Index)-1] {
			owner = owner.Field(i).Type
		}
		if name := f.Tag.Get("path"); name != "" && strings.Contains(o.path, "{"+name+"}") {
			o.params = append(o.params, field{name: name, in: "path", doc: g.describe(owner, g.src.structOf(owner), f, name), typ: f.Type, required: true})
		}
		if name := f.Tag.Get("query"); name != "" && o.method == http.MethodGet {
			p := field{name: name, in: "query", doc: g.describe(owner, g.src.structOf(owner), f, name), typ: f.Type, otherwise: f.Tag.Get("default")}
			p.min, p.max = bounds(f)
			o.params = append(o.params, p)
		}
	}
	if o.makes() {
		o.params = append(o.params, field{name: onceHeader, in: "header", doc: "another for each thing that is to be made, 1 to 255 visible characters of ASCII: the same request may be sent again with it for a day", typ: reflect.TypeFor[string]()})
	}
	if n := strings.Count(o.path, "{"); n != len(slices.DeleteFunc(slices.Clone(o.params), func(f field) bool { return f.in != "path" })) {
		g.problem("%s %s: %s does not have all of the path's words", o.method, o.path, t)
	}
	if o.method == http.MethodGet || o.method == http.MethodDelete {
		return
	}
	// A request that only adds a path to another type has that type's body.
	var inner []reflect.Type
	for i := range t.NumField() {
		switch f := t.Field(i); {
		case !f.Anonymous && f.Tag.Get("json") != "-":
			inner = append(inner, nil, nil)
		case f.Anonymous && g.fields(f.Type, g.src.structOf(f.Type)) != nil:
			inner = append(inner, f.Type)
		}
	}
	if len(inner) == 1 {
		t = inner[0]
	}
	if o.body = g.fields(t, g.src.structOf(t)); o.body != nil {
		o.bodyName = g.component(t)
	}
}

// component gives a struct or an enumeration its place among the schemas.
func (g *generator) component(t reflect.Type) string {
	name := t.Name()
	if t == reflect.TypeFor[api.State]() || t == reflect.TypeFor[api.Event]() {
		name = "Agent" + name // there are nouns of that name
	}
	if g.strict && t.Kind() == reflect.Struct {
		if g.open[t] {
			name += "Body"
		}
		g.bodies[name] = true
	}
	if other := g.types[name]; other != nil && other != t {
		g.problem("%s and %s have one name", t, other)
	}
	g.types[name] = t
	return name
}

// opens notes the types of replies, and of bodies of which more is ignored, with
// what is in them.
func (g *generator) opens(t reflect.Type) {
	switch t.Kind() {
	case reflect.Slice, reflect.Pointer, reflect.Map:
		g.opens(t.Elem())
	case reflect.Struct:
		if g.open[t] {
			return
		}
		g.open[t] = true
		for i := range t.NumField() {
			if f := t.Field(i); f.IsExported() && f.Type != reflect.TypeFor[time.Time]() {
				g.opens(f.Type)
			}
		}
	}
}

type object = map[string]any

// schema is a type's JSON Schema (draft 2020-12, which OpenAPI 3.1 has).
func (g *generator) schema(t reflect.Type, st *ast.StructType) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[sft.Secret]():
		g.problem("a reply cannot hold a secret: it is not marshalled")
	case t == reflect.TypeFor[[]byte]():
		return object{"type": "string", "contentEncoding": "base64"}
	case t.Kind() == reflect.String && t.PkgPath() != "", t.Kind() == reflect.Struct && t.Name() != "" && !strings.Contains(t.Name(), "["):
		return object{"$ref": "#/components/schemas/" + g.component(t)}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return g.schema(t.Elem(), st)
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int:
		return object{"type": "integer"}
	case reflect.Int64:
		return object{"type": "integer", "format": "int64"}
	case reflect.Slice:
		return object{"type": "array", "items": g.schema(t.Elem(), nil)}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": g.schema(t.Elem(), nil)}
	case reflect.Struct:
		if st == nil {
			st = g.src.structOf(t)
		}
		return g.object(g.fields(t, st), st)
	}
	g.problem("there is no schema for %s", t)
	return nil
}

// object is the schema of fields. What is not described is to be ignored, but
// for the bodies that are strict.
func (g *generator) object(fields []field, st *ast.StructType) object {
	properties, required := object{}, []string{}
	for _, f := range fields {
		v := g.schema(f.typ, inline(st, f))
		v["description"] = f.doc
		if f.readOnly {
			v["readOnly"] = true
		}
		properties[f.name] = v
		if f.required {
			required = append(required, f.name)
		}
	}
	o := object{"type": "object", "properties": properties}
	if g.strict {
		o["additionalProperties"] = false
	}
	if len(required) > 0 {
		o["required"] = required
	}
	return o
}

// inline is the source of a field whose type is written out where it is used.
func inline(st *ast.StructType, f field) *ast.StructType {
	if st == nil || f.typ.Kind() != reflect.Struct || f.typ.Name() != "" {
		return nil
	}
	for _, n := range st.Fields.List {
		if n.Tag != nil && regexp.MustCompile(`json:"`+f.name+`[",]`).MatchString(n.Tag.Value) {
			in, _ := n.Type.(*ast.StructType)
			return in
		}
	}
	return nil
}

// typeDoc is a type's comment.
func (g *generator) typeDoc(t reflect.Type) string {
	doc := g.src.pkg(t.PkgPath()).docs[t.Name()]
	if doc == "" {
		g.problem("%s has no comment", t)
	}
	return g.wireNames(t, doc)
}

// values are those of an enumeration.
func (g *generator) values(t reflect.Type) (list []constant) {
	for _, c := range g.src.pkg(t.PkgPath()).consts[t.Name()] {
		if c.value != "" {
			list = append(list, c)
		}
	}
	if len(list) == 0 {
		g.problem("%s is an enumeration without values", t)
	}
	return list
}

// components are the schemas of all types that were met, and of those in them.
func (g *generator) components() object {
	out := object{}
	for len(out) < len(g.types) {
		for _, name := range slices.Sorted(maps.Keys(g.types)) {
			if out[name] != nil {
				continue
			}
			t := g.types[name]
			g.strict = g.bodies[name]
			var o object
			if t.Kind() == reflect.String {
				values := []string{}
				for _, c := range g.values(t) {
					values = append(values, c.value)
				}
				o = object{"type": "string", "enum": values}
			} else {
				st := g.src.structOf(t)
				o = g.object(g.fields(t, st), st)
			}
			o["description"] = g.typeDoc(t)
			out[name] = o
		}
	}
	g.strict = false
	return out
}

// security names the schemes that let a caller in; none lets anybody.
func security(a access) []object {
	scheme := func(names ...string) (list []object) {
		for _, n := range names {
			list = append(list, object{n: []string{}})
		}
		return list
	}
	switch a {
	case anyone:
		return []object{}
	case agent:
		return scheme("agent")
	case device, signedIn:
		return scheme("client")
	case person, deviceOrKey:
		return scheme("client", "service_token")
	}
	return nil
}

// document is the whole reference as OpenAPI.
func (g *generator) document(ops []operation) object {
	paths := object{}
	var tags []object
	for _, o := range ops {
		g.opens(o.handle.reply)
		if o.body != nil && !o.strict() {
			g.opens(g.types[o.bodyName])
		}
	}
	for _, o := range ops {
		if !slices.ContainsFunc(tags, func(t object) bool { return t["name"] == o.tag }) {
			tags = append(tags, object{"name": o.tag})
		}
		item := object{"operationId": o.id, "summary": o.summary, "tags": []string{o.tag}, "security": security(o.access), "responses": g.responses(o),
			"x-sft-caller": o.caller}
		if o.more != "" {
			item["description"] = o.more
		}
		if o.roles != nil {
			item["x-sft-roles"] = o.roles
		}
		var params []object
		for _, p := range o.params {
			of := g.schema(p.typ, nil)
			if p.max > 0 {
				of["minimum"], of["maximum"] = p.min, p.max
			}
			if p.otherwise != "" {
				of["default"] = json.Number(p.otherwise)
			}
			v := object{"name": p.name, "in": p.in, "description": p.doc, "schema": of}
			if p.required {
				v["required"] = true
			}
			params = append(params, v)
		}
		if params != nil {
			item["parameters"] = params
		}
		if o.body != nil {
			g.strict = o.strict()
			item["requestBody"] = object{"required": true, "content": jsonOf(g.schema(g.types[o.bodyName], nil))}
			g.strict = false
		}
		if paths[o.path] == nil {
			paths[o.path] = object{}
		}
		paths[o.path].(object)[strings.ToLower(o.method)] = item
	}
	errorReply := g.schema(reflect.TypeFor[api.ErrorReply](), nil)
	slices.SortFunc(tags, func(a, b object) int { return strings.Compare(a["name"].(string), b["name"].(string)) })
	return object{
		"openapi": "3.1.0",
		"info": object{"title": "sft-platform", "version": "1",
			"description": "The REST API of the platform. docs/api.md is the same for people. A field of a reply that is not described here is to be ignored; one of a body is " +
				"refused where its schema says so, by `additionalProperties: false`. A refusal is told by its `code`, never by its text."},
		"servers": []object{{"url": "/", "description": "the platform that serves this document"}},
		"tags":    tags,
		"paths":   paths,
		"components": object{
			"schemas": g.components(),
			"responses": object{"Refusal": object{"description": "why nothing was done: the status is that of the code",
				"headers": headersOf("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-RateLimit-Retry-At", "Retry-After", "WWW-Authenticate", api.TimeHeader),
				"content": jsonOf(errorReply)}},
			"headers": headers,
			"securitySchemes": object{
				"agent":  object{"type": "http", "scheme": "bearer", "bearerFormat": "JWS", "description": "each request is signed by an enrolled server's device key, as docs/protocol.md says"},
				"client": object{"type": "http", "scheme": "bearer", "bearerFormat": "JWS", "description": "each request is signed by an enrolled client's device key, as docs/protocol.md says"},
				"service_token": object{"type": "http", "scheme": "bearer", "bearerFormat": "JWT",
					"description": "what POST /v1/teams/{team}/service_token gives a service user for its key, for an hour"},
			},
		},
	}
}

// headers are those of replies.
var headers = func() object {
	out := object{}
	for _, h := range []struct{ name, typ, doc string }{
		{"X-RateLimit-Limit", "integer", "how many requests the caller can make at once; where nobody has signed, the place that the request comes from"},
		{"X-RateLimit-Remaining", "integer", "how many of them are left"},
		{"X-RateLimit-Reset", "integer", "when all of them can be made again, in seconds since 1970"},
		{"X-RateLimit-Retry-At", "integer", "only of a request over the rate: when one can be made again, in seconds since 1970"},
		{"Retry-After", "integer", "only with 429 and 503: after how many seconds to try again"},
		{"WWW-Authenticate", "string", "only with 401: how to prove who one is, Bearer, with error=\"invalid_token\" where what was sent was not enough (RFC 6750)"},
		{"Link", "string", "the addresses of the pages around this one, as next and prev, where there are any (RFC 8288)"},
		{api.TimeHeader, "string", "the platform's time when it answered (RFC 3339)"},
	} {
		out[h.name] = object{"description": h.doc, "schema": object{"type": h.typ}}
	}
	return out
}()

func headersOf(names ...string) object {
	out := object{}
	for _, n := range names {
		out[n] = object{"$ref": "#/components/headers/" + n}
	}
	return out
}

func jsonOf(schema object) object { return object{"application/json": object{"schema": schema}} }

// responses are the replies of an operation: its own, and one for each status
// that a refusal may have, with the codes.
func (g *generator) responses(o operation) object {
	ok := object{"description": http.StatusText(o.handle.status), "headers": headersOf("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", api.TimeHeader)}
	if o.pages() {
		maps.Copy(ok["headers"].(object), headersOf("Link"))
	}
	if o.handle.status != http.StatusNoContent {
		ok["content"] = jsonOf(g.schema(o.handle.reply, nil))
	}
	out := object{fmt.Sprint(o.handle.status): ok}
	codes := map[string][]string{}
	for _, c := range o.codes {
		status := fmt.Sprint(c.Status)
		codes[status] = append(codes[status], "`"+string(c.Code)+"`")
		out[status] = object{"$ref": "#/components/responses/Refusal", "description": strings.Join(codes[status], ", ")}
	}
	return out
}

func newGenerator(t *testing.T) *generator {
	src := &source{t: t, packages: map[string]*sourcePackage{}}
	g := &generator{t: t, src: src, base: src.trail(), types: map[string]reflect.Type{}, common: map[string]map[string]bool{}, bodies: map[string]bool{}, open: map[reflect.Type]bool{}}
	for _, f := range src.pkg("sft/internal/platform").funcs["SignedIn"] {
		g.base.seen[f] = true // of the routes that take clients alone
	}
	for _, name := range []string{"ServeHTTP", "api"} {
		for _, f := range src.pkg("sft/internal/webapi").funcs[name] {
			g.base.follow(f)
		}
	}
	return g
}

// The reference is what the code is: openapi.json and docs/api.md are written
// by "go generate ./internal/webapi", and each thing in them has a comment in
// the source.
func TestReference(t *testing.T) {
	g := newGenerator(t)
	ops := g.operations()
	var doc bytes.Buffer
	enc := json.NewEncoder(&doc)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(g.document(ops)); err != nil {
		t.Fatal(err)
	}
	for name := range common {
		if n := len(g.common[name]); n < 2 {
			t.Errorf("%q is the word of %d types: say what it means where it is", name, n)
		}
	}
	for file, got := range map[string][]byte{"openapi.json": doc.Bytes(), "../../docs/api.md": g.markdown(ops)} {
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if there, err := os.ReadFile(file); err != nil || !bytes.Equal(there, got) {
			t.Errorf("%s is not what the source says: run \"go generate ./internal/webapi\" (%v)", file, err)
		}
	}
}

// The document is valid OpenAPI 3.1, by the schema of its authors, and so is
// each schema in it, by the dialect that it says.
func TestReferenceIsOpenAPI(t *testing.T) {
	meta, err := jsonschema.NewCompiler().Compile("testdata/openapi-3.1-2022-10-07.json")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(reference))
	if err != nil {
		t.Fatal(err)
	}
	if err := meta.Validate(doc); err != nil {
		t.Error(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	for name := range doc.(object)["components"].(object)["schemas"].(object) {
		if _, err := c.Compile("openapi.json#/components/schemas/" + name); err != nil {
			t.Error(err)
		}
	}
}
