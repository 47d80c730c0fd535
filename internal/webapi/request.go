package webapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"sft"
	"sft/internal/platform"
)

// inputs is what an operation takes.
type inputs struct {
	fields []addressedField // that the address fills
	query  []string         // the parameters, for a GET
	body   bool             // there is a body, for others than a GET or DELETE
}

// An addressedField is a field of a request that its address fills.
type addressedField struct {
	index       []int
	path, query string // the one that it is called
	min, max    int    // of a number; 0, 0: any
}

// takes returns what a request's struct says by its tags.
func takes(t reflect.Type) (in inputs) {
	for _, f := range reflect.VisibleFields(t) {
		a := addressedField{index: f.Index, path: f.Tag.Get("path"), query: f.Tag.Get("query")}
		a.min, a.max = bounds(f)
		if a.path+a.query != "" {
			in.fields = append(in.fields, a)
		}
		if a.query != "" {
			in.query = append(in.query, a.query)
		}
		in.body = in.body || f.IsExported() && !f.Anonymous && f.Tag.Get("json") != "-"
	}
	slices.Sort(in.query)
	return in
}

// bounds are those that the tags min and max give a number, 0 and 0 without.
func bounds(f reflect.StructField) (least, most int) {
	least, _ = strconv.Atoi(f.Tag.Get("min"))
	most, _ = strconv.Atoi(f.Tag.Get("max"))
	return least, most
}

func invalid(hint, format string, args ...any) error {
	return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf(format, args...), Hint: hint}
}

// strict reports whether a field of the body that the route does not know is
// refused, and a parameter without a value: whoever writes a request by hand
// mistypes, and what was meant to narrow it would be gone. Agents and clients may be newer than the platform:
// what it does not know of theirs is ignored.
func (rt route) strict() bool { return rt.access == person || rt.access == deviceOrKey }

// bind fills v, a pointer to a struct. A wrong type is refused, and so are a
// field, where the route is strict, and a parameter that the route does not
// take: one that was meant to choose would choose nothing.
func bind(v any, in inputs, rt route, r *http.Request, body []byte) error {
	gets := r.Method == http.MethodGet || r.Method == http.MethodHead
	if !gets && r.Method != http.MethodDelete {
		if err := bindBody(v, in, rt, r, body); err != nil {
			return err
		}
	}
	query, err := parameters(in, rt, gets, r)
	if err != nil {
		return err
	}
	rv := reflect.ValueOf(v).Elem()
	for _, f := range in.fields {
		s, name := r.PathValue(f.path), f.path
		if f.path == "" {
			s, name = query.Get(f.query), f.query
		}
		if len(s) > 5000 {
			return &sft.Error{Code: sft.Invalid, Msg: "a part of the request's address is too long"}
		}
		switch fv := rv.FieldByIndex(f.index); fv.Kind() {
		case reflect.String:
			fv.SetString(s)
		case reflect.Int:
			if s == "" {
				continue
			}
			hint := "give a whole number"
			if f.max > 0 {
				hint = fmt.Sprintf("use %d to %d", f.min, f.max)
			}
			n, err := strconv.Atoi(s)
			if err != nil {
				return invalid(hint, "%s is %s, which is not a number", name, sft.Quote(s))
			}
			if f.max > 0 && (n < f.min || n > f.max) {
				return invalid(hint, "%s is %d", name, n)
			}
			fv.SetInt(int64(n))
		}
	}
	return nil
}

// parameters reads the query, of which each may be given once. One that is
// empty is a variable that was never set, more often than not, and would choose
// everything: a route that is strict refuses it. The page after nothing is the
// first one, so offset may be empty.
func parameters(in inputs, rt route, gets bool, r *http.Request) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, invalid("write each value with its percent signs as %25 and its semicolons as %3B", "the query of the address cannot be read: %s", err)
	}
	var known []string
	if gets {
		known = in.query
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		if !slices.Contains(known, name) {
			hint := "leave it out: this route takes no parameters"
			if len(known) > 0 {
				hint = "use one that this route takes: " + strings.Join(known, ", ")
			}
			return nil, invalid(hint, "there is no parameter %s", sft.Quote(name))
		}
		if len(query[name]) > 1 {
			return nil, invalid("give it once", "the parameter %s is given %d times", sft.Quote(name), len(query[name]))
		}
		if query.Get(name) == "" && name != "offset" && rt.strict() {
			return nil, invalid("give it a value, or leave it out", "the parameter %s is empty", sft.Quote(name))
		}
	}
	return query, nil
}

// bindBody is bind for the body.
func bindBody(v any, in inputs, rt route, r *http.Request, body []byte) error {
	if len(body) > 0 {
		if ct, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); !strings.EqualFold(strings.TrimSpace(ct), "application/json") {
			return &sft.Error{Code: sft.ContentType, Msg: "the body's type is " + sft.Quote(ct), Hint: "send Content-Type: application/json"}
		}
	}
	if b := bytes.TrimSpace(body); len(b) == 0 || string(b) == "null" {
		if in.body {
			return invalid("send a JSON object: {} is one without any fields", "the body is missing")
		}
		return nil
	}
	if err := checkJSON(body); err != nil {
		return err
	}
	err := json.Unmarshal(body, v)
	if err == nil {
		if t := reflect.TypeOf(v).Elem(); rt.strict() {
			return unknown(t, t, body, "")
		}
		return nil
	}
	e := &sft.Error{Code: sft.Invalid, Msg: "the body is not the JSON of this request", Hint: "compare it with the API's reference", Err: err}
	if _, ok := errors.AsType[*json.SyntaxError](err); ok {
		e.Msg = "the body is not JSON: " + err.Error()
		return e
	}
	if field, t := misfit(reflect.TypeOf(v).Elem(), body, ""); t != nil {
		what := "the body"
		if field != "" {
			what = "the field " + sft.Quote(field)
		}
		is, _, _ := strings.Cut(wanted(t), " as in ")
		e.Msg, e.Hint = what+" is not "+strings.TrimSuffix(is, ","), "give "+wanted(t)
	}
	return e
}

// misfit finds the first field of a body that is not of its type. Its name is
// as on the wire, with what it is in before it. It returns nil where all fit.
func misfit(t reflect.Type, raw []byte, at string) (string, reflect.Type) {
	if json.Unmarshal(raw, reflect.New(t).Interface()) == nil {
		return "", nil
	}
	_, own := reflect.New(t).Interface().(json.Unmarshaler)
	switch k := t.Kind(); {
	case k == reflect.Pointer:
		return misfit(t.Elem(), raw, at)
	case own:
	case k == reflect.Struct:
		var has map[string]json.RawMessage
		if json.Unmarshal(raw, &has) != nil {
			break
		}
		for _, f := range wireFields(t) {
			for _, key := range slices.Sorted(maps.Keys(has)) {
				if !strings.EqualFold(key, f.name) {
					continue
				}
				if field, t := misfit(f.typ, has[key], below(at, f.name)); t != nil {
					return field, t
				}
			}
		}
	case k == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
		var has []json.RawMessage
		if json.Unmarshal(raw, &has) != nil {
			break
		}
		for i, v := range has {
			if field, t := misfit(t.Elem(), v, fmt.Sprintf("%s[%d]", at, i)); t != nil {
				return field, t
			}
		}
	case k == reflect.Map:
		var has map[string]json.RawMessage
		if json.Unmarshal(raw, &has) != nil {
			break
		}
		for _, key := range slices.Sorted(maps.Keys(has)) {
			if field, t := misfit(t.Elem(), has[key], below(at, key)); t != nil {
				return field, t
			}
		}
	}
	return at, t
}

// A wireField is a field of a struct as it is in JSON.
type wireField struct {
	name string
	typ  reflect.Type
}

// wireFields are those of a struct, also of what is embedded in it.
func wireFields(t reflect.Type) (list []wireField) {
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			list = append(list, wireField{name, f.Type})
		}
	}
	return list
}

// unknown refuses the first field of a body that its type does not have. The
// body is of the type; whole is what all of the request is, of which the field
// that was meant is named.
func unknown(whole, t reflect.Type, raw []byte, at string) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t.Kind() == reflect.Struct && t != reflect.TypeFor[time.Time]() && t != reflect.TypeFor[sft.Secret]():
		var has map[string]json.RawMessage
		if err := json.Unmarshal(raw, &has); err != nil {
			return err
		}
		fields := wireFields(t)
		for _, key := range slices.Sorted(maps.Keys(has)) {
			i := slices.IndexFunc(fields, func(f wireField) bool { return strings.EqualFold(key, f.name) })
			if i < 0 {
				in := ""
				if at != "" {
					in = " in " + sft.Quote(at)
				}
				return invalid(meant(whole, fields, key, at), "there is no field %s%s", sft.Quote(key), in)
			}
			if err := unknown(whole, fields[i].typ, has[key], below(at, fields[i].name)); err != nil {
				return err
			}
		}
	case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
		var has []json.RawMessage
		if err := json.Unmarshal(raw, &has); err != nil {
			return err
		}
		for i, v := range has {
			if err := unknown(whole, t.Elem(), v, fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
	case t.Kind() == reflect.Map:
		var has map[string]json.RawMessage
		if err := json.Unmarshal(raw, &has); err != nil {
			return err
		}
		for _, key := range slices.Sorted(maps.Keys(has)) {
			if err := unknown(whole, t.Elem(), has[key], below(at, key)); err != nil {
				return err
			}
		}
	}
	return nil
}

// meant says what to write in the place of a field that there is not: one that
// is like it, best of those that are where it is, or all that are there.
func meant(whole reflect.Type, there []wireField, name, at string) string {
	var paths, words []string
	add := func(path, word string) { paths, words = append(paths, path), append(words, word) }
	for _, f := range there {
		add(below(at, f.name), f.name)
	}
	var walk func(t reflect.Type, at string, depth int)
	walk = func(t reflect.Type, at string, depth int) {
		for ; t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice; t = t.Elem() {
			if t.Kind() == reflect.Slice {
				at += "[]"
			}
		}
		if t.Kind() != reflect.Struct || depth > maxDepth {
			return
		}
		for _, f := range wireFields(t) {
			add(below(at, f.name), f.name)
			walk(f.typ, below(at, f.name), depth+1)
		}
	}
	walk(whole, "", 0)
	if len(paths) == 0 {
		return "leave it out: this route takes no fields"
	}
	name = strings.ToLower(name[:min(len(name), 100)])
	best, least := 0, len(name)/2+1
	for i, w := range words {
		d := platform.Distance(name, w)
		if len(name) > 3 && strings.Contains(w, name) {
			d = min(d, len(name)/2)
		}
		if d < least {
			best, least = i, d
		}
	}
	if least <= len(name)/2 {
		return "use one that there is, as " + paths[best]
	}
	if len(there) == 0 {
		return "leave it out"
	}
	return "leave it out, or use one that there is: " + strings.Join(words[:len(there)], ", ")
}

func below(at, name string) string {
	if at == "" {
		return name
	}
	return at + "." + name
}

// wanted is a type in words.
func wanted(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Time]():
		return "a time as in 2026-12-01T00:00:00Z"
	case reflect.TypeFor[sft.Secret]():
		return `a text in quotes, as in "x"`
	case reflect.TypeFor[[]byte]():
		return "bytes in base64, in quotes"
	}
	switch t.Kind() {
	case reflect.String:
		return `a text in quotes, as in "x"`
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64, reflect.Uint8:
		return "a whole number"
	case reflect.Slice:
		return "a list, as in []"
	}
	return "an object, as in {}"
}

// bearer is the request's header Authorization, with the scheme as it is
// compared: "Bearer". A scheme is the same in any case (RFC 9110, 11.1).
func bearer(r *http.Request) (string, error) {
	header := r.Header.Get("Authorization")
	scheme, token, found := strings.Cut(strings.TrimSpace(header), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return header, nil
	}
	token = strings.TrimSpace(token)
	if !found || token == "" || token == "null" || token == "undefined" {
		return "", &sft.Error{Code: sft.SignIn, Msg: "the header Authorization has no bearer token", Hint: "get a token from service_token, and send it as Authorization: Bearer TOKEN"}
	}
	return "Bearer " + token, nil
}

// challenge says how to prove who one is (RFC 9110, 11.6.1), and of whoever has
// tried that it was not enough (RFC 6750, 3).
func challenge(r *http.Request) string {
	const scheme = `Bearer realm="sft-platform"`
	if header, err := bearer(r); err != nil || !strings.HasPrefix(header, "Bearer ") {
		return scheme
	}
	return scheme + `, error="invalid_token"`
}

// onceHeader is what a request says so that it can be sent again.
const onceHeader = "Idempotency-Key"

// makes reports whether a route makes something for a person or service user,
// and so takes an Idempotency-Key. What others change is the same when it is
// changed again.
func (rt route) makes() bool {
	return rt.method == http.MethodPost && rt.access == person && rt.handle.status == http.StatusCreated
}

// once reads the Idempotency-Key of a request; nil without one.
func once(rt route, r *http.Request, body []byte) (*platform.Once, error) {
	keys := r.Header.Values(onceHeader)
	if len(keys) == 0 || !rt.makes() {
		return nil, nil
	}
	if k := keys[0]; len(keys) > 1 || k == "" || len(k) > 255 || strings.ContainsFunc(k, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return nil, invalid("send one, of 1 to 255 visible characters of ASCII, as a UUID is", "the %s cannot be used", onceHeader)
	}
	sum := sha256.Sum256(body)
	return &platform.Once{Key: keys[0], Route: r.Method + " " + r.URL.EscapedPath(), Body: sum[:]}, nil
}
