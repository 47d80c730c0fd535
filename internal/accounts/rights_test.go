package accounts

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"sft"
)

// What is decided about a group, whatever the host has.
func TestDecideGroups(t *testing.T) {
	dev := Group{"sft_dev", 63100}
	annIn := map[string]Held{"ann": {Groups: []string{"sft_dev"}}}
	tests := []struct {
		name  string
		host  []LocalGroup
		rec   map[string]int
		wants []Group
		of    map[string]Held
		want  string
	}{
		{"none, and none wanted", nil, nil, nil, nil, ""},
		{"one that is not there is made", nil, nil, []Group{dev}, annIn, "sft_dev create +ann"},
		{"one of ours is kept", []LocalGroup{{dev, []string{"ann"}}}, map[string]int{"sft_dev": 63100}, []Group{dev}, annIn, "sft_dev keep"},
		{"one of ours that somebody deleted is made again", nil, map[string]int{"sft_dev": 63100}, []Group{dev}, annIn, "sft_dev create +ann"},
		{"the same name and gid by somebody else", []LocalGroup{{dev, []string{"ann"}}}, nil, []Group{dev}, annIn, "sft_dev refuse conflict"},
		{"the gid is another group's", []LocalGroup{{Group{"x", 63100}, nil}}, nil, []Group{dev}, annIn, "sft_dev refuse conflict"},
		{"the gid of ours was changed", []LocalGroup{{Group{"sft_dev", 7}, nil}}, map[string]int{"sft_dev": 63100}, []Group{dev}, annIn, "sft_dev refuse conflict"},
		{"two of one gid: the one that is there wins", []LocalGroup{{dev, nil}}, map[string]int{"sft_dev": 63100}, []Group{{"aaa", 63100}, dev}, nil, "aaa refuse conflict, sft_dev keep"},
		{"two of one name", nil, nil, []Group{dev, {"sft_dev", 63101}}, annIn, "sft_dev refuse refused"},
		{"the name of a person", nil, nil, []Group{{"ann", 63100}}, annIn, "ann refuse refused"},
		{"the name of somebody who was here", nil, nil, []Group{{"gone", 63100}}, nil, "gone refuse refused"},
		{"a name of the system", nil, nil, []Group{{"sudo", 63100}, {"sft-users", 63101}, {"-x", 63102}, {"a:b", 63103}}, nil,
			"-x refuse refused, a:b refuse refused, sft-users refuse refused, sudo refuse refused"},
		{"gids of the system", nil, nil, []Group{{"a1", 0}, {"a2", 999}, {"a3", 65534}, {"a4", 1 << 32}, {"a5", -1}}, nil,
			"a1 refuse refused, a2 refuse refused, a3 refuse refused, a4 refuse refused, a5 refuse refused"},
		{"who lost it leaves it", []LocalGroup{{dev, []string{"ann", "gone"}}}, map[string]int{"sft_dev": 63100}, []Group{dev}, map[string]Held{"ann": {}}, "sft_dev keep -ann -gone"},
		{"somebody else's member stays", []LocalGroup{{dev, []string{"root"}}}, map[string]int{"sft_dev": 63100}, []Group{dev}, annIn, "sft_dev keep +ann !"},
		{"who may not, does not go in", nil, nil, []Group{dev}, map[string]Held{"eve": {Groups: []string{"sft_dev"}}}, "sft_dev create"},
		{"one that nobody wants", []LocalGroup{{dev, []string{"ann", "root"}}}, map[string]int{"sft_dev": 63100}, nil, annIn, "sft_dev remove -ann"},
		{"one that nobody wants and is not ours", []LocalGroup{{Group{"sft_dev", 7}, []string{"ann"}}}, map[string]int{"sft_dev": 63100}, nil, annIn, "sft_dev forget"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			known := func(login string) bool { return slices.Contains([]string{"ann", "gone"}, login) }
			var got []string
			for _, s := range decideGroups(tt.host, tt.rec, known, map[string]bool{"ann": true}, Rights{Groups: tt.wants, Of: tt.of}) {
				line := s.Name + " " + map[action]string{keep: "keep", create: "create", remove: "remove", forget: "forget", refuse: "refuse " + string(s.change)}[s.do]
				for _, a := range s.add {
					line += " +" + a
				}
				for _, d := range s.drop {
					line += " -" + d
				}
				if s.err != nil && s.do != refuse {
					line += " !"
				}
				got = append(got, line)
			}
			if g := strings.Join(got, ", "); g != tt.want {
				t.Errorf("got %q, want %q", g, tt.want)
			}
		})
	}
}

// What no entitlement can hold, each in an otherwise good one.
func TestSudoLineRefuses(t *testing.T) {
	good := func() sft.SudoEntitlement {
		return sft.SudoEntitlement{Name: "x", NoPasswd: true, AddEnv: []string{"LANG"}, Commands: []sft.SudoCommand{{Command: "/usr/bin/id", Type: "executable"}}}
	}
	if line, err := sudoLine("ann", good()); err != nil || line != "ann ALL=(root) NOPASSWD: NOSETENV: /usr/bin/id \"\"\n" {
		t.Fatalf("%q, %v", line, err)
	}
	command := func(c sft.SudoCommand) func(*sft.SudoEntitlement) {
		return func(e *sft.SudoEntitlement) { e.Commands[0] = c }
	}
	bad := map[string]func(*sft.SudoEntitlement){
		"a password":      func(e *sft.SudoEntitlement) { e.NoPasswd = false },
		"no commands":     func(e *sft.SudoEntitlement) { e.Commands = nil },
		"many commands":   func(e *sft.SudoEntitlement) { e.Commands = make([]sft.SudoCommand, 65) },
		"as everybody":    func(e *sft.SudoEntitlement) { e.RunAs = "ALL" },
		"as a number":     func(e *sft.SudoEntitlement) { e.RunAs = "#0" },
		"as two":          func(e *sft.SudoEntitlement) { e.RunAs = "a,b" },
		"as a group":      func(e *sft.SudoEntitlement) { e.RunAs = "%wheel" },
		"the loader":      func(e *sft.SudoEntitlement) { e.AddEnv = []string{"LD_PRELOAD"} },
		"the path":        func(e *sft.SudoEntitlement) { e.AddEnv = []string{"PATH"} },
		"all variables":   func(e *sft.SudoEntitlement) { e.AddEnv = []string{"*"} },
		"two variables":   func(e *sft.SudoEntitlement) { e.AddEnv = []string{"A B"} },
		"a quote":         func(e *sft.SudoEntitlement) { e.SubEnv = []string{`A"`} },
		"many variables":  func(e *sft.SudoEntitlement) { e.AddEnv = slices.Repeat([]string{"A"}, 65) },
		"a relative path": command(sft.SudoCommand{Command: "id", Type: "executable"}),
		"all":             command(sft.SudoCommand{Command: "ALL", Type: "executable"}),
		"a wildcard":      command(sft.SudoCommand{Command: "/usr/bin/*", Type: "executable"}),
		"the parent":      command(sft.SudoCommand{Command: "/usr/../bin/id", Type: "executable"}),
		"sudoedit":        command(sft.SudoCommand{Command: "/usr/bin/sudoedit", Type: "executable", ArgsType: "any"}),
		"no type":         command(sft.SudoCommand{Command: "/usr/bin/id"}),
		"raw":             command(sft.SudoCommand{Command: "/usr/bin/id", Type: "raw"}),
		"a folder as one": command(sft.SudoCommand{Command: "/usr/bin/", Type: "executable", ArgsType: "any"}),
		"one as a folder": command(sft.SudoCommand{Command: "/usr/bin/id", Type: "directory", ArgsType: "any"}),
		"the root":        command(sft.SudoCommand{Command: "/", Type: "directory", ArgsType: "any"}),
		"limited folder":  command(sft.SudoCommand{Command: "/usr/bin/", Type: "directory", ArgsType: "none"}),
		"args and any":    command(sft.SudoCommand{Command: "/usr/bin/id", Type: "executable", ArgsType: "any", Args: "x"}),
		"args and none":   command(sft.SudoCommand{Command: "/usr/bin/id", Type: "executable", Args: "x"}),
		"no custom args":  command(sft.SudoCommand{Command: "/usr/bin/id", Type: "executable", ArgsType: "custom"}),
		"args that match": command(sft.SudoCommand{Command: "/usr/bin/id", Type: "executable", ArgsType: "custom", Args: "-[ug]"}),
		"args by regexp":  command(sft.SudoCommand{Command: "/usr/bin/id", Type: "executable", ArgsType: "custom", Args: "^.*$"}),
		"two spaces":      command(sft.SudoCommand{Command: "/usr/bin/id", Type: "executable", ArgsType: "custom", Args: "a  b"}),
		"long args":       command(sft.SudoCommand{Command: "/usr/bin/id", Type: "executable", ArgsType: "custom", Args: strings.Repeat("a", 1025)}),
		"another kind":    command(sft.SudoCommand{Command: "/usr/bin/id", Type: "executable", ArgsType: "some"}),
	}
	for name, change := range bad {
		e := good()
		change(&e)
		if line, err := sudoLine("ann", e); err == nil {
			t.Errorf("%s: %q", name, line)
		}
	}
}

// The whole of the file: who holds what, in one order, and nothing of what is
// not used.
func TestRenderSudo(t *testing.T) {
	one := sft.SudoEntitlement{Name: "one", NoPasswd: true, AddEnv: []string{"A", "B"}, Commands: []sft.SudoCommand{{Command: "/bin/one", Type: "executable", ArgsType: "any"}}}
	two := sft.SudoEntitlement{Name: "two\nx", NoPasswd: true, SubEnv: []string{"B", "C"}, Commands: []sft.SudoCommand{{Command: "/opt/", Type: "directory"}}}
	text, errs := renderSudo([]sft.SudoEntitlement{one, two}, map[string][]string{"bob": {"one", "two\nx", "one", "gone"}, "ann": {"one"}, "root": {"one"}})
	want := sudoHead + `Defaults:ann env_keep += "A B"
# one
ann ALL=(root) NOPASSWD: NOSETENV: /bin/one
Defaults:bob env_keep += "A"
Defaults:bob env_keep -= "B C"
# one
bob ALL=(root) NOPASSWD: NOSETENV: /bin/one
bob ALL=(root) NOPASSWD: NOSETENV: /opt/
`
	if text != want || len(errs) != 1 {
		t.Errorf("%v\n%swant\n%s", errs, text, want)
	}
	if text, errs := renderSudo([]sft.SudoEntitlement{one, one}, map[string][]string{"ann": {"one"}}); text != "" || len(errs) != 1 {
		t.Errorf("two of one name: %q, %v", text, errs)
	}
	many := map[string][]string{}
	for i := range 20_000 {
		many[fmt.Sprint("u", i)] = []string{"one"}
	}
	if text, errs := renderSudo([]sft.SudoEntitlement{one}, many); text != "" || len(errs) != 1 {
		t.Errorf("too much: %d bytes, %v", len(text), errs)
	}
}
