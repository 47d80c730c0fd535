package conf

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"sft"
)

type sample struct {
	AltNames []string `yaml:"AltNames"`
	Port     int      `yaml:"Port"`
	Debug    bool     `yaml:"Debug"`
	Name     string   `yaml:"Name"`
	RDP      struct {
		Client string `yaml:"client"`
		Limit  *int64 `yaml:"limit"`
	} `yaml:"rdp"`
}

func TestDecodeYAML(t *testing.T) {
	const syntax = "check the file's indentation and quotes"
	tests := []struct {
		name, text string
		want       *sft.Error // nil: taken
	}{
		{"values of every type are taken", "AltNames: [a, b]\nPort: 1\nDebug: true\nName: x\nrdp:\n  client: y\n  limit: 5\n", nil},
		{"nothing is all defaults", "", nil},
		{"comments alone are all defaults", "# Port: 1\n", nil},
		{"a byte order mark is not part of the first key", "\xef\xbb\xbfPort: 1\n", nil},
		{"carriage returns are line ends", "Port: 1\r\nName: x\r\n", nil},
		{"an unknown key is named with its line", "Port: 1\nFoo: 1\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 2: unknown key "Foo"`, Hint: "remove it, or see the manual for the keys there are"}},
		{"a key in other capitals is unknown", "port: 1\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 1: unknown key "port"`, Hint: `use "Port" if that is meant`}},
		{"a mistyped key of a part is found", "rdp:\n  clinet: x\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 2: unknown key "clinet"`, Hint: `use "client" if that is meant`}},
		{"text where a number is due", "Port: abc\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 1: key "Port" must be a whole number`, Hint: "correct the value"}},
		{"a fraction where a whole number is due", "Port: 1.5\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 1: key "Port" must be a whole number`, Hint: "correct the value"}},
		{"a fraction in a part", "rdp:\n  limit: 0.5\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 2: key "limit" must be a whole number`, Hint: "correct the value"}},
		{"a number where a switch is due", "Debug: 3\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 1: key "Debug" must be true or false`, Hint: "correct the value"}},
		{"a switch where text is due", "Name: true\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 1: key "Name" must be text`, Hint: "put the value in quotes, if it is meant so"}},
		{"a number where text is due", "Port: 1\nName: 5\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 2: key "Name" must be text`, Hint: "put the value in quotes, if it is meant so"}},
		{"a fraction where text is due", "rdp:\n  client: 1.50\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 2: key "client" must be text`, Hint: "put the value in quotes, if it is meant so"}},
		{"a number in a list of texts", "AltNames:\n- a\n- 1.50\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 3: key "AltNames" must be text`, Hint: "put the value in quotes, if it is meant so"}},
		{"what looks like a number, as text", "Name: \"1.50\"\nAltNames: ['5', :443, 1.2.3.4, 36h]\n", nil},
		{"a list where text is due", "Name: [1]\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 1: key "Name" must be text`, Hint: "correct the value"}},
		{"text where a list is due", "AltNames: x\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 1: key "AltNames" must be a list`, Hint: "correct the value"}},
		{"text where a part is due", "rdp: x\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 1: key "rdp" must be keys with values`, Hint: "correct the value"}},
		{"a number beyond all bounds", "Port: 99999999999999999999\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 1: key "Port" is too large a number`, Hint: "correct the value"}},
		{"a key given twice", "Port: 1\nPort: 2\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 2: not readable as YAML: mapping key "Port" already defined at [1:1]`, Hint: syntax}},
		{"a second document", "Port: 1\n---\nPort: 2\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 3: there is more than one document`, Hint: `remove the line "---" and what follows it`}},
		{"a list instead of keys", "- x\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 1: there must be keys with values`, Hint: `write each setting as "Key: value"`}},
		{"a tab for indentation", "\tPort: 1\n", &sft.Error{Code: sft.Invalid, Msg: `f.yaml line 1: not readable as YAML: tab character cannot use as a map key directly`, Hint: syntax}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var v sample
			err := DecodeYAML("f.yaml", []byte(tt.text), &v)
			got, _ := errors.AsType[*sft.Error](err)
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v (%v)\nwant %+v", got, err, tt.want)
			}
		})
	}
}

func TestReadYAML(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.yaml")
	var v sample
	if err := ReadYAML(path, &v); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v, want fs.ErrNotExist", err)
	}
	if err := os.WriteFile(path, make([]byte, maxYAML+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ReadYAML(path, &v); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("a file over the cap: %v, want a refusal", err)
	}
}

// FuzzDecodeYAML checks that any bytes are taken or refused with an error
// that can be shown, and never crash the reader.
func FuzzDecodeYAML(f *testing.F) {
	for _, s := range []string{"Port: 1\n", "AltNames: [a, b]\n", "rdp:\n  limit: 0.5\n", "a: &x [*x]\n", "? b\n", "<<: *a\n", "{", "- - -", "Port: !!int 3\n", "--- |\n x\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var v sample
		if err := DecodeYAML("f.yaml", data, &v); err != nil {
			if e, ok := errors.AsType[*sft.Error](err); !ok || e.Code != sft.Invalid || e.Hint == "" {
				t.Errorf("%T %v, want a refusal with a hint", err, err)
			}
		}
	})
}
