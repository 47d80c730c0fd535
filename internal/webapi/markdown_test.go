package webapi

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"sft"
)

// preface is what docs/api.md begins with.
const preface = "# The REST API\n\n" +
	"Made by `go generate ./internal/webapi` of the table of routes, the types and the comments in the source: change those. The same as OpenAPI 3.1 is\n" +
	"`GET /v1/openapi.json` of every platform, and internal/webapi/openapi.json here. What the bytes are is in [protocol.md](protocol.md).\n\n" +
	"## First steps\n\n" +
	"A service user has keys, and a key gets a token for an hour:\n\n" +
	"    TOKEN=$(curl -fsS https://PLATFORM/v1/teams/TEAM/service_token -H 'Content-Type: application/json' \\\n" +
	"        -d '{\"key_id\":\"ID\",\"key_secret\":\"SECRET\"}' | jq -r .bearer_token)\n" +
	"    curl -fsS -H \"Authorization: Bearer $TOKEN\" https://PLATFORM/v1/teams/TEAM/servers | jq .list\n\n" +
	"The key's secret is better read from a file than typed: `-d @key.json`. A platform with a CA of its own shows that behind its certificate. Once it was compared\n" +
	"with the fingerprint that `sft-platform init` has printed, curl takes it by `--cacert ca.pem`:\n\n" +
	"    openssl s_client -connect PLATFORM:443 -servername PLATFORM -showcerts </dev/null 2>/dev/null |\n" +
	"        awk '/BEGIN CERT/ {c = \"\"} {c = c $0 \"\\n\"} /END CERT/ {last = c} END {printf \"%s\", last}' >ca.pem\n" +
	"    openssl x509 -in ca.pem -outform der | sha256sum\n\n" +
	"## Pages\n\n" +
	"A list that takes `count` comes in pages of that many, in the order of a key: the name of things that are addressed by their names, and the id of others and of\n" +
	"a group's users, which is the order in which they were made. `offset` is the key after which a page begins, `descending=true` goes through the list from its end,\n" +
	"and `prev=true` asks for the page before `offset` in the place of the one after it. What may be given besides, to choose, is the same on each page. The reply's\n" +
	"header `Link` (RFC 8288) has the addresses of the pages around it, `rel=\"next\"` and `rel=\"prev\"`, where there are any:\n\n" +
	"    url='https://PLATFORM/v1/teams/TEAM/servers?count=1000'\n" +
	"    while [ -n \"$url\" ]; do\n" +
	"        curl -fsS -D head -H \"Authorization: Bearer $TOKEN\" \"$url\" | jq -c '.list[]'\n" +
	"        url=$(tr -d '\\r' <head | sed -n 's/^[Ll]ink: <\\(.*\\)>; rel=\"next\"$/\\1/p')\n" +
	"    done\n\n" +
	"Of the audit events a full page has `next` alone, and no page has `prev`: the id of a page's last one is the `offset` of the next. After a page that is not full ask again with the same `offset`, and you have\n" +
	"what came since: each event once, and none is missed ([audit.md](audit.md#reading)). Of all other lists, what is there all the time while somebody reads is on\n" +
	"exactly one page, whatever comes and goes meanwhile.\n\n" +
	"## What is common to all\n\n" +
	"Bodies are JSON with `Content-Type: application/json`, up to 1 MiB. Times are RFC 3339, durations seconds, `bytes` are base64 (RFC 4648, section 4).\n" +
	"Where nothing is said of a role, or `no role`, none is needed. What is not there and what the caller may not see read the same.\n\n" +
	"A field of a reply that you do not know is to be ignored: there may be more one day. A field of a body that a route does not have is refused, however deep it is,\n" +
	"and the refusal has the one that it is like: a misspelt `servers_selector` would open every server. What agents and clients send by their own\n" +
	"protocol (callers `agent`, `device`, `signedIn` and `anyone`) may have more than the platform knows, which is ignored, since they may be newer.\n\n" +
	"Where a route has a body, it has to be sent, if only as `{}`: without one, or with `null`, the request is refused, and so is one with a query that cannot be read,\n" +
	"with a parameter that the route does not take, with one given twice, or, but for `offset`, with an empty one, as `hostname=$UNSET` makes it. So nothing is listed whole, and nothing set to nothing, because of a slip. In a value of\n" +
	"the query write `%` as `%25`, `;` as `%3B`, `+` as `%2B` and `&` as `%26`, or have curl do it: `-G --data-urlencode 'selector=env=top'`. A method that a path does not\n" +
	"take is refused with 405, and `Allow` has those that it takes.\n\n" +
	"## Sending a request again\n\n" +
	"Who has no answer does not know whether a request was carried out. GET, PUT and DELETE may simply be sent again. A POST that makes something takes the header\n" +
	"`Idempotency-Key`, which the caller chooses, another for each thing that is to be made (a UUID, or the name of the step in a plan). For a day the same request with the\n" +
	"same key makes nothing more: it is answered as the first was. Where that answer held a secret, which is kept nowhere, it is `resource_already_exists` with the `id` of\n" +
	"what was made: delete that, and make another. The same key with another route or body is `idempotency_key_reused`. Keys are each person's or service user's own, and\n" +
	"what was refused has used up none. A name that is taken is `resource_already_exists` too, with the `id` of what has it where the caller may know it.\n\n" +
	"    curl -fsS -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' -H \"Idempotency-Key: $(uuidgen)\" --retry 5 --retry-all-errors \\\n" +
	"        https://PLATFORM/v1/teams/TEAM/projects/PROJECT/server_enrollment_tokens -d '{\"description\":\"image 7\",\"max_uses\":1}'\n\n" +
	"## Limits\n\n" +
	"Each reply says how much the caller may ask for, or, where nobody has signed, the place that the request comes from: `X-RateLimit-Limit` is how many requests can be\n" +
	"made at once, `X-RateLimit-Remaining` how many of them are left, and `X-RateLimit-Reset` when all can be made again, in seconds since 1970. What is over a limit is\n" +
	"refused with 429 (`too_many_requests`), or 503 (`service_offline`) where the platform has too much to do, and has changed nothing: `Retry-After` says after how many\n" +
	"seconds to send it again, and over the rate `X-RateLimit-Retry-At` when, in seconds since 1970 ([metrics.md](metrics.md)).\n"

// markdown is the reference for people.
func (g *generator) markdown(ops []operation) []byte {
	var b bytes.Buffer
	b.WriteString(preface)
	b.WriteString("\n## Callers\n\n| | who may call, and proves it by |\n|---|---|\n")
	for _, c := range g.src.pkg("sft/internal/webapi").consts["access"][1:] {
		fmt.Fprintf(&b, "| `%s` | %s |\n", c.name, cell(c.doc))
	}
	b.WriteString("\nA role is what a group gives to those in it: ")
	for i, r := range g.src.pkg("sft").consts["Role"] {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "`%s`, %s", r.value, r.doc)
	}
	b.WriteString(".\n\n## Routes\n\n| | |\n|---|---|\n")
	for _, o := range ops {
		fmt.Fprintf(&b, "| [`%s %s`](#%s) | %s |\n", o.method, o.path, strings.ToLower(o.id), cell(o.summary))
	}
	accesses := g.src.pkg("sft/internal/webapi").consts["access"]
	for _, o := range ops {
		fmt.Fprintf(&b, "\n### %s\n\n`%s %s`\n\n%s.", o.id, o.method, o.path, o.summary)
		if o.more != "" {
			b.WriteString(" " + o.more)
		}
		fmt.Fprintf(&b, "\n\nCaller: `%s`", accesses[o.access].name)
		if o.roles != nil {
			fmt.Fprintf(&b, ". %s", strings.Join(o.roles, "; "))
		}
		b.WriteString(".\n")
		if len(o.params) > 0 {
			b.WriteString("\n| parameter | | |\n|---|---|---|\n")
			for _, p := range o.params {
				fmt.Fprintf(&b, "| `%s` | %s, %s | %s |\n", p.name, p.in, g.kind(p.typ)+p.bounds(), cell(p.doc))
			}
		}
		if o.body != nil {
			fmt.Fprintf(&b, "\n| body, `%s` | | |\n|---|---|---|\n", o.bodyName)
			g.rows(&b, g.types[o.bodyName], true)
		}
		fmt.Fprintf(&b, "\nReply: %d", o.handle.status)
		if o.handle.status != 204 {
			fmt.Fprintf(&b, ", %s", g.kind(o.handle.reply))
		}
		sep := ". Refusals: "
		for _, c := range o.codes {
			if !g.base.codes[c.Code] && c.Code != sft.ContentType {
				fmt.Fprintf(&b, "%s`%s`", sep, c.Code)
				sep = ", "
			}
		}
		b.WriteString(".\n")
	}
	b.WriteString("\n## Types\n")
	requests := map[string]bool{}
	for _, o := range ops {
		requests[o.bodyName] = o.handle.reply.Name() != o.bodyName
	}
	for _, name := range slices.Sorted(maps.Keys(g.types)) {
		t := g.types[name]
		if g.bodies[name] && g.open[t] {
			continue // the same as without "Body"
		}
		if requests[name] && !g.inReply(t, ops) {
			continue // its fields are with its route
		}
		fmt.Fprintf(&b, "\n### Type %s\n\n%s\n\n", name, g.typeDoc(t))
		if t.Kind() != reflect.String {
			b.WriteString("| | | |\n|---|---|---|\n")
			g.rows(&b, t, false)
			continue
		}
		b.WriteString("| | |\n|---|---|\n")
		for _, c := range g.values(t) {
			fmt.Fprintf(&b, "| `%s` | %s |\n", c.value, cell(c.doc))
		}
	}
	b.WriteString("\n## Refusals\n\nWhat is refused has changed nothing. The status is that of the code; `exit` is with what the command `sft` then ends. ")
	sep := "Any route may be refused with "
	for _, c := range sft.Codes {
		if g.base.codes[c.Code] {
			fmt.Fprintf(&b, "%s`%s`", sep, c.Code)
			sep = ", "
		}
	}
	b.WriteString(", any POST and PUT with `unsupported_content_type`, and a path by another method with `method_not_allowed`; the others are with the routes, or of the Access Broker and of `sft` itself.\n\n| code | HTTP | exit | |\n|---|---|---|---|\n")
	for _, c := range sft.Codes {
		fmt.Fprintf(&b, "| `%s` | %d | %d | %s |\n", c.Code, c.Status, c.Exit, cell(c.Meaning))
	}
	return b.Bytes()
}

// bounds are those of a number, in words.
func (f field) bounds() (s string) {
	if f.max > 0 {
		s = fmt.Sprintf(", %d to %d", f.min, f.max)
	}
	if f.otherwise != "" {
		s += ", default " + f.otherwise
	}
	return s
}

// inReply reports whether a type is also, or is in, what is replied.
func (g *generator) inReply(t reflect.Type, ops []operation) bool {
	for _, o := range ops {
		if within(t, o.handle.reply) || o.handle.req != t && o.body != nil && g.types[o.bodyName] != t && within(t, g.types[o.bodyName]) {
			return true
		}
	}
	return false
}

func within(t, in reflect.Type) bool {
	switch in.Kind() {
	case reflect.Slice, reflect.Pointer, reflect.Map:
		return within(t, in.Elem())
	case reflect.Struct:
		if in == t {
			return true
		}
		for i := range in.NumField() {
			if f := in.Field(i); f.IsExported() && f.Type != reflect.TypeFor[time.Time]() && within(t, f.Type) {
				return true
			}
		}
	}
	return in == t
}

// rows are the fields of a body.
func (g *generator) rows(b *bytes.Buffer, t reflect.Type, request bool) {
	st := g.src.structOf(t)
	for _, f := range g.fields(t, st) {
		how := g.kind(f.typ)
		switch {
		case request && f.readOnly:
			continue
		case f.typ.Kind() == reflect.Struct && f.typ.Name() == "":
			how = "object"
		}
		if !f.required {
			how += ", may be left out"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", f.name, how, cell(f.doc))
		if in := inline(st, f); in != nil {
			for _, sub := range g.fields(f.typ, in) {
				fmt.Fprintf(b, "| `%s.%s` | %s, may be left out | %s |\n", f.name, sub.name, g.kind(sub.typ), cell(sub.doc))
			}
		}
	}
}

// kind is a type in words, with a link to one of our own.
func (g *generator) kind(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return "time"
	case t == reflect.TypeFor[[]byte]():
		return "bytes"
	case strings.HasPrefix(t.Name(), "List["):
		f, _ := t.FieldByName("List")
		return "`list` of " + g.kind(f.Type.Elem())
	case t.PkgPath() != "":
		name := g.component(t)
		return fmt.Sprintf("[%s](#type-%s)", name, strings.ToLower(name))
	}
	switch t.Kind() {
	case reflect.Pointer:
		return g.kind(t.Elem())
	case reflect.Slice:
		return "list of " + g.kind(t.Elem())
	case reflect.Map:
		return "object of " + g.kind(t.Elem())
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Int64:
		return "integer"
	}
	return t.Kind().String()
}

// cell is a text in one line of a table.
func cell(s string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", "\\|")
}
