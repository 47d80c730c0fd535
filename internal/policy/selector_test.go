package policy

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"

	"sft"
)

func TestSelectors(t *testing.T) {
	server := map[string]string{"api.env": "prod", "sftd.role": "web", "sftd.env": "lab", "api.example.com/tier": "1", "system.os_type": "linux", "api.rack": "12"}
	for _, tt := range []struct {
		text   string
		access bool // as the selector of a group
		filter bool // as that of a list
		whole  string
	}{
		{"", true, true, ""},
		{" ", true, true, ""},
		{"env=prod", true, true, "api.env=prod"},
		{"env==prod", true, true, "api.env==prod"},
		{"env=lab", false, true, "api.env=lab"},
		{"env!=prod", false, false, "api.env!=prod"},
		{"env!=lab", true, false, "api.env!=lab"},
		{"env notin (a,b)", true, true, "api.env notin (a,b)"},
		{"role", false, true, "api.role"},
		{"!role", true, false, "!api.role"},
		{"os_type=linux", false, true, "api.os_type=linux"},
		{"system.os_type=linux", true, true, "system.os_type=linux"},
		{"sftd.role in (web, db),api.env", true, true, "api.env,sftd.role in (db,web)"},
		{"example.com/tier=1", true, true, "api.example.com/tier=1"},
		{"rack>11,rack<13", true, true, "api.rack<13,api.rack>11"},
		{"aws.env=prod", false, false, "api.aws.env=prod"},
	} {
		s, err := ParseSelector(tt.text)
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
			continue
		}
		f, err := ParseFilter(tt.text)
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
			continue
		}
		if s.Matches(server) != tt.access || f.Matches(server) != tt.filter {
			t.Errorf("%q: %v as a selector, %v as a filter, want %v, %v", tt.text, s.Matches(server), f.Matches(server), tt.access, tt.filter)
		}
		parts := strings.Split(s.String(), ",")
		want := strings.Split(tt.whole, ",")
		slices.Sort(parts)
		slices.Sort(want)
		if !slices.Equal(parts, want) {
			t.Errorf("%q means %q, want %q", tt.text, s, tt.whole)
		}
	}
}

func TestSelectorsThatCannotBe(t *testing.T) {
	for text, want := range map[string]string{
		"env in prod":                    "unable to parse requirement: found 'prod' expected: '('",
		"env=a b":                        "found 'b', expected: ',' or 'end of string'",
		"-=x":                            "name part must consist of",
		"env=" + strings.Repeat("x", 64): "must be no more than 63",
		strings.Repeat("k", 60) + "=x":   "name part must be no more than 63", // with its source
		strings.Repeat("a,", 10) + "b":   "",
		strings.Repeat("x", 3000):        "it is longer than 2048 bytes",
		"a>b":                            "for 'Gt', 'Lt' operators, the value must be an integer",
		"a,b,c,d,e,f,g,h,i,j,k":          "it has 11 requirements, and 10 is the limit",
	} {
		_, err := ParseSelector(text)
		if _, same := ParseFilter(text); same == nil {
			t.Errorf("%q is a filter", text)
		}
		if sft.CodeOf(err) != sft.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", text, err, want)
		}
	}
}

func TestWhoseWordASelectorTakes(t *testing.T) {
	for text, want := range map[string][]string{
		"env=prod": nil, "api.env,system.managed=true": nil, "sftd.b,sftd.a!=1,env": {"sftd.a", "sftd.b"}, "system.os_type=linux": {"system.os_type"},
	} {
		s, err := ParseSelector(text)
		if err != nil || !slices.Equal(s.ByHost(), want) {
			t.Errorf("%q: %v, %v, want %v", text, s.ByHost(), err, want)
		}
	}
}

func TestHints(t *testing.T) {
	for _, tt := range []struct {
		text   string
		access Hint
		filter Hint
	}{
		{"", Hint{}, Hint{}},
		{"env=prod", Hint{[]string{"api.env"}, []string{"prod"}}, Hint{[]string{"api.env", "sftd.env"}, []string{"prod"}}},
		{"env", Hint{[]string{"api.env"}, nil}, Hint{[]string{"api.env", "sftd.env"}, nil}},
		{"a,b=1", Hint{[]string{"api.b"}, []string{"1"}}, Hint{[]string{"api.b", "sftd.b"}, []string{"1"}}},
		{"env!=prod", Hint{}, Hint{}},
		{"!env,x>1", Hint{}, Hint{}},
		{"system.os_type=linux", Hint{}, Hint{}},
		{"os_type=linux", Hint{[]string{"api.os_type"}, []string{"linux"}}, Hint{}},
	} {
		s, _ := ParseSelector(tt.text)
		f, _ := ParseFilter(tt.text)
		a, aok := s.Hint()
		b, bok := f.Hint()
		if !reflect.DeepEqual(a, tt.access) || !reflect.DeepEqual(b, tt.filter) || aok != (a.Keys != nil) || bok != (b.Keys != nil) {
			t.Errorf("%q: %v, %v, want %v, %v", tt.text, a, b, tt.access, tt.filter)
		}
	}
}

// FuzzSelector checks that a selector means the same when it is read again, is
// what the library takes it for where each key has a source, and has a hint
// that no server it matches is without.
func FuzzSelector(f *testing.F) {
	for _, s := range []string{"env=prod", "api.env in (a,b),!sftd.x", "a>1", "x notin ()", "a==,b", "(", "system.managed", ","} {
		f.Add(s, "env", "prod")
	}
	f.Fuzz(func(t *testing.T, text, key, value string) {
		s, err := ParseSelector(text)
		if err != nil {
			if e, ok := err.(*sft.Error); !ok || e.Code != sft.Invalid || e.Hint == "" {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		server := map[string]string{"api." + key: value, "sftd.x": "1"}
		again, err := ParseSelector(s.String())
		if err == nil && (again.String() != s.String() || again.Matches(server) != s.Matches(server)) {
			t.Errorf("%q is %q, and then %q", text, s, again)
		}
		if ref, err := labels.Parse(s.String()); err == nil && ref.Matches(labels.Set(server)) != s.Matches(server) {
			t.Errorf("%q: the library says %v", text, !s.Matches(server))
		}
		h, ok := s.Hint()
		has := func(k string) bool {
			v, there := server[k]
			return there && (h.Values == nil || slices.Contains(h.Values, v))
		}
		if ok && s.Matches(server) && !slices.ContainsFunc(h.Keys, has) {
			t.Errorf("%q matches %v, which is without its hint %v", text, server, h)
		}
	})
}

// FuzzLabel checks that what the product takes for a label is one of
// Kubernetes, and the other way round.
func FuzzLabel(f *testing.F) {
	for _, s := range []string{"a", "a.b/c", "-a", "A_.b", "a/", "/a", "a/b/c", "x.", strings.Repeat("a", 64), "Ex.com/a"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		want := len(validation.IsQualifiedName(key)) == 0 && len(validation.IsValidLabelValue(value)) == 0
		if err := sft.CheckLabel(key, value); (err == nil) != want {
			t.Errorf("label %q=%q: %v, and Kubernetes says %v", key, value, err, want)
		}
	})
}
