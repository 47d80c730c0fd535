package webapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"sft"
	"sft/internal/api"
	"sft/internal/testenv"
	"sft/internal/webapi"
)

type object = map[string]any

// A description is the OpenAPI document, as a client reads it.
type description struct {
	doc     object
	schemas *jsonschema.Compiler
	mu      sync.Mutex
	ready   map[string]*jsonschema.Schema // by place in the document
}

var described = sync.OnceValue(func() *description {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(webapi.Reference))
	if err != nil {
		panic(err)
	}
	closed(v)
	d := &description{doc: v.(object), schemas: jsonschema.NewCompiler(), ready: map[string]*jsonschema.Schema{}}
	d.schemas.AssertFormat()
	d.schemas.AssertContent()
	if err := d.schemas.AddResource("openapi.json", v); err != nil {
		panic(err)
	}
	return d
})

// closed lets no schema allow what it does not describe, so that the tests see
// it. Clients are to ignore such fields.
func closed(v any) {
	switch v := v.(type) {
	case object:
		if _, ok := v["properties"].(object); ok && v["type"] == "object" {
			v["additionalProperties"] = false
		}
		for _, in := range v {
			closed(in)
		}
	case []any:
		for _, in := range v {
			closed(in)
		}
	}
}

// operation is what the document says of one route.
func (d *description) operation(method, path string) object {
	item, _ := d.doc["paths"].(object)[path].(object)
	op, _ := item[strings.ToLower(method)].(object)
	return op
}

// resolve follows a reference within the document.
func (d *description) resolve(v object) object {
	ref, ok := v["$ref"].(string)
	if !ok {
		return v
	}
	var at any = d.doc
	for _, word := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
		at = at.(object)[word]
	}
	return at.(object)
}

// schema compiles the schema at a place in the document.
func (d *description) schema(words ...string) (*jsonschema.Schema, error) {
	for i, w := range words {
		words[i] = strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D").Replace(w)
	}
	at := "openapi.json#/" + strings.Join(words, "/")
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.ready[at]; s != nil {
		return s, nil
	}
	s, err := d.schemas.Compile(at)
	d.ready[at] = s
	return s, err
}

// check returns what in a reply is not as the document says.
func (d *description) check(method, path string, status int, h http.Header, body []byte) error {
	op := d.operation(method, path)
	if op == nil {
		return fmt.Errorf("the document has no %s %s", method, path)
	}
	said, ok := op["responses"].(object)[fmt.Sprint(status)].(object)
	if !ok {
		return fmt.Errorf("the document has no status %d of it", status)
	}
	if status == http.StatusNoContent {
		if len(body) > 0 || h.Get("Content-Type") != "" {
			return fmt.Errorf("a reply without content has %d bytes of %q", len(body), h.Get("Content-Type"))
		}
		return nil
	}
	if got := strings.HasPrefix(h.Get("WWW-Authenticate"), `Bearer realm="sft-platform"`); got != (status == http.StatusUnauthorized) {
		return fmt.Errorf("the header WWW-Authenticate is %q", h.Get("WWW-Authenticate"))
	}
	if ct := h.Get("Content-Type"); ct != "application/json" {
		return fmt.Errorf("the reply is of type %q", ct)
	}
	at := []string{"paths", path, strings.ToLower(method), "responses", fmt.Sprint(status), "content", "application/json", "schema"}
	if said["$ref"] != nil {
		at = []string{"components", "responses", "Refusal", "content", "application/json", "schema"}
		var e api.ErrorReply
		if err := json.Unmarshal(body, &e); err != nil {
			return err
		}
		if !slices.Contains(strings.Split(said["description"].(string), ", "), "`"+string(e.Error.Code)+"`") {
			return fmt.Errorf("the document does not say that it is refused with %s", e.Error.Code)
		}
	}
	s, err := d.schema(at...)
	if err != nil {
		return err
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return err
	}
	return s.Validate(v)
}

// pattern is the route of the table that a request went to; empty if there is
// none.
func (d *description) pattern(method, path string) string {
	path, _, _ = strings.Cut(path, "?")
	got := strings.Split(path, "/")
next:
	for p := range d.doc["paths"].(object) {
		want := strings.Split(p, "/")
		if len(want) != len(got) || d.operation(method, p) == nil {
			continue
		}
		for i := range want {
			if want[i] != got[i] && !strings.HasPrefix(want[i], "{") {
				continue next
			}
		}
		return p
	}
	return ""
}

// isDescribed fails the test when a reply of a route is not as the document
// says.
func isDescribed(t testing.TB, method, path string, status int, h http.Header, body []byte) {
	t.Helper()
	d := described()
	p := d.pattern(method, path)
	if p == "" {
		return
	}
	if err := d.check(method, p, status, h, body); err != nil {
		t.Errorf("%s %s: %d %.300s: %v", method, path, status, body, err)
	}
}

// A body without a field that the document requires is refused.
func TestRequiredFields(t *testing.T) {
	e := testenv.New(t)
	as, m := cast(t, e)
	d := described()
	checked := 0
	for _, r := range webapi.Rows(e.Platform) {
		route := r.Method + " " + r.Path
		spec, ok := d.operation(r.Method, r.Path)["requestBody"].(object)
		if !ok {
			continue
		}
		who := admin
		if r.Access == "agent" {
			who = host
		}
		schema := d.resolve(spec["content"].(object)["application/json"].(object)["schema"].(object))
		required, _ := schema["required"].([]any)
		for _, f := range required {
			name := f.(string)
			if p := schema["properties"].(object)[name].(object); p["readOnly"] == true {
				continue
			}
			var body object
			if err := json.Unmarshal(m.body(matrix[route].body), &body); err != nil {
				t.Fatal(err)
			}
			if body[name] == nil {
				t.Errorf("%s requires %s, and the body of the matrix does without", route, name)
			}
			delete(body, name)
			b, _ := json.Marshal(body)
			if status, code := call(t, e, as[who], r.Method, m.path(r.Path), "application/json", b); status < 400 {
				t.Errorf("%s without %s is answered with %d %s", route, name, status, code)
			}
			checked++
		}
	}
	if checked < 20 {
		t.Errorf("there are %d required fields", checked)
	}
}

// A list without anything in it is a list, as the document says.
func TestEmptyListsAreLists(t *testing.T) {
	e := testenv.New(t)
	as, _ := cast(t, e)
	e.Do("PUT", "/groups/"+sft.Everyone, map[string]any{"roles": []string{}}, nil)
	if status, code := call(t, e, as[plain], "GET", base+"/current_user", "", nil); status != 200 {
		t.Errorf("who has no roles gets %d %s", status, code)
	}
}

// Anybody may read the document, and ask whether it is the newest.
func TestDocumentIsServed(t *testing.T) {
	e := testenv.New(t)
	ask := func(method, tag string) (*http.Response, []byte) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, e.URL+"/v1/openapi.json", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("If-None-Match", tag)
		resp, err := e.HTTP().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, b
	}
	first, b := ask("GET", "")
	if h := first.Header; first.StatusCode != 200 || !bytes.Equal(b, webapi.Reference) || h.Get("Content-Type") != "application/json" || h.Get("Cache-Control") != "no-cache" {
		t.Errorf("it is served as %s with %v, %d bytes", first.Status, h, len(b))
	}
	tag := first.Header.Get("ETag")
	if again, b := ask("GET", tag); tag == "" || again.StatusCode != 304 || len(b) != 0 {
		t.Errorf("with its tag %s it is served as %s, %d bytes", tag, again.Status, len(b))
	}
	if other, _ := ask("GET", `"other"`); other.StatusCode != 200 {
		t.Errorf("with another tag it is served as %s", other.Status)
	}
	if head, b := ask("HEAD", ""); head.StatusCode != 200 || len(b) != 0 || head.Header.Get("ETag") != tag {
		t.Errorf("HEAD answers %s, %d bytes", head.Status, len(b))
	}
	if post, _ := ask("POST", ""); post.StatusCode != 405 {
		t.Errorf("POST answers %s", post.Status)
	}
}
