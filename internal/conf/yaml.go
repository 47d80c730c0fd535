package conf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"sft"
)

// maxYAML caps a configuration file, in bytes.
const maxYAML = 1 << 20

// ReadYAML reads the file at path into v, a pointer to a struct whose fields
// have yaml tags. A key that v does not have, a key given twice and a value
// of the wrong type are refused, naming file, line and key. A file that does
// not exist is an error that is fs.ErrNotExist.
func ReadYAML(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxYAML+1))
	if err != nil {
		return err
	}
	return DecodeYAML(path, data, v)
}

// DecodeYAML is ReadYAML for the bytes of the file that messages call name.
// Bytes without a value leave v as it is.
func DecodeYAML(name string, data []byte, v any) (err error) {
	if len(data) > maxYAML {
		return refuseYAML(name, 0, "the file is too large for a configuration", "keep it under 1 MiB")
	}
	// The bytes may be anything, and the parser is not ours.
	defer func() {
		if p := recover(); p != nil {
			err = refuseYAML(name, 0, fmt.Sprintf("not readable as YAML: %v", p), "check the file's indentation and quotes")
		}
	}()
	file, err := parser.ParseBytes(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")), 0)
	if err != nil {
		return explain(name, err, nil)
	}
	var docs []ast.Node
	for _, d := range file.Docs {
		if d.Body != nil && d.Body.Type() != ast.CommentType {
			docs = append(docs, d.Body)
		}
	}
	if len(docs) == 0 {
		return nil
	}
	if len(docs) > 1 {
		return refuseYAML(name, docs[1].GetToken().Position.Line, "there is more than one document", "remove the line \"---\" and what follows it")
	}
	t := reflect.TypeOf(v).Elem()
	if err := checkKinds(name, docs[0], t); err != nil {
		return err
	}
	if err := yaml.NodeToValue(docs[0], v, yaml.Strict()); err != nil {
		return explain(name, err, t)
	}
	return nil
}

// checkKinds refuses what the decoder would make something else of: 1.5 where a
// whole number is asked for, which it would cut down to 1, and a number or true
// where text is, as 1.50 would be the text 1.5.
func checkKinds(name string, n ast.Node, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	m, ok := n.(*ast.MappingNode)
	if !ok || t.Kind() != reflect.Struct {
		return nil
	}
	for _, kv := range m.Values {
		for f := range t.Fields() {
			if tag, _, _ := strings.Cut(f.Tag.Get("yaml"), ","); tag != kv.Key.String() {
				continue
			}
			if _, float := kv.Value.(*ast.FloatNode); float && isInt(f.Type) {
				return refuseYAML(name, kv.Key.GetToken().Position.Line,
					fmt.Sprintf("key %s must be a whole number", sft.Quote(kv.Key.String())), "correct the value")
			}
			if t, list := textOf(f.Type); t {
				values := []ast.Node{kv.Value}
				if s, ok := kv.Value.(*ast.SequenceNode); ok && list {
					values = s.Values
				}
				for _, v := range values {
					switch v.(type) {
					case *ast.BoolNode, *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
						return refuseYAML(name, v.GetToken().Position.Line, fmt.Sprintf("key %s must be text", sft.Quote(kv.Key.String())), "put the value in quotes, if it is meant so")
					}
				}
			}
			if err := checkKinds(name, kv.Value, f.Type); err != nil {
				return err
			}
		}
	}
	return nil
}

// textOf reports whether a value of type t is text, or a list of it.
func textOf(t reflect.Type) (text, list bool) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() == reflect.Slice {
		t, list = t.Elem(), true
	}
	return t == reflect.TypeFor[string](), list
}

func isInt(t reflect.Type) bool {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64
}

// explain puts the parser's error into our words. t is the struct that was
// asked for, for the hint.
func explain(name string, err error, t reflect.Type) error {
	e, ok := errors.AsType[yaml.Error](err)
	if !ok || e.GetToken() == nil {
		return refuseYAML(name, 0, "not readable as YAML: "+err.Error(), "check the file's indentation and quotes")
	}
	tk := e.GetToken()
	line := tk.Position.Line
	switch err := e.(type) {
	case *yaml.UnknownFieldError:
		hint := "remove it, or see the manual for the keys there are"
		if k := nearest(tk.Value, t); k != "" {
			hint = "use " + sft.Quote(k) + " if that is meant"
		}
		return refuseYAML(name, line, "unknown key "+sft.Quote(tk.Value), hint)
	case *yaml.TypeError:
		return refuseYAML(name, line, fmt.Sprintf("key %s must be %s", sft.Quote(keyOf(tk)), kindName(err.DstType)), "correct the value")
	case *yaml.OverflowError:
		return refuseYAML(name, line, fmt.Sprintf("key %s is too large a number", sft.Quote(keyOf(tk))), "correct the value")
	case *yaml.UnexpectedNodeTypeError:
		what := "a list"
		if err.Expected == ast.MappingType {
			what = "keys with values"
		}
		if key := keyOf(tk); key != "" {
			return refuseYAML(name, line, fmt.Sprintf("key %s must be %s", sft.Quote(key), what), "correct the value")
		}
		return refuseYAML(name, line, "there must be "+what, "write each setting as \"Key: value\"")
	}
	return refuseYAML(name, line, "not readable as YAML: "+e.GetMessage(), "check the file's indentation and quotes")
}

func refuseYAML(name string, line int, msg, hint string) error {
	if line > 0 {
		name = fmt.Sprintf("%s line %d", name, line)
	}
	return &sft.Error{Code: sft.Invalid, Msg: name + ": " + msg, Hint: hint}
}

// keyOf returns the key of the value that tk is part of.
func keyOf(tk *token.Token) string {
	for ; tk != nil; tk = tk.Prev {
		if tk.Type == token.MappingValueType && tk.Prev != nil {
			return tk.Prev.Value
		}
	}
	return ""
}

func kindName(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch k := t.Kind(); {
	case k == reflect.Bool:
		return "true or false"
	case isInt(t):
		return "a whole number"
	case k == reflect.String:
		return "text"
	case k == reflect.Slice:
		return "a list"
	}
	return "of another type"
}

// nearest returns the key of t or its parts that differs from key only a
// little: capitals, or up to two letters.
func nearest(key string, t reflect.Type) string {
	if t == nil {
		return ""
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return ""
	}
	best, least := "", 3
	for f := range t.Fields() {
		tag, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if n := distance(strings.ToLower(key), strings.ToLower(tag)); tag != "" && n < least {
			best, least = tag, n
		}
		if sub := nearest(key, f.Type); best == "" && sub != "" {
			best = sub
		}
	}
	return best
}

// distance is how many letters must be put in, taken out or changed to make a
// into b.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
