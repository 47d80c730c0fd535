package conf

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// flagsOf are flags of each type.
func flagsOf() *pflag.FlagSet {
	f := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f.String("name", "n", "a name")
	f.Bool("on", false, "a | switch")
	f.Int("count", 3, "a number")
	f.Duration("every", time.Minute, "a time")
	f.StringSlice("to", nil, "some names")
	f.String("word", "", "an address")
	f.Bool("once", false, "for one call")
	f.String("where", "", "the file")
	SecretInURLs(f, "to", "word")
	NotInFile(f, "where")
	NotSetting(f, "once")
	return f
}

func TestOptions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.yaml")
	tests := []struct {
		name, file string
		env        map[string]string
		args       []string
		want       string // what Print says, or an error
	}{
		{"nothing", "", nil, nil, "count: 3 # default\nevery: \"1m0s\" # default\nname: \"n\" # default\non: false # default\nto: [] # default\nword: \"\" # default\n"},
		{"all by the file", "count: 7\nevery: 5m\nname: \"x & y\"\non: true\nto: [a, \"b,c\", \"https://h.example.com/hunter2\"]\nword: https://u@h:1/x?hunter2\n", nil, nil,
			"count: 7 # file F line 1\nevery: \"5m0s\" # file F line 2\nname: \"x & y\" # file F line 3\non: true # file F line 4\nto: [\"a\",\"b,c\",\"https://h.example.com\"] # file F line 5; what is secret in it is left out\nword: \"https://h:1\" # file F line 6; what is secret in it is left out\n"},
		{"flag, variable, file", "count: 7\nname: x\non: true\n", map[string]string{"T_COUNT": "8", "T_NAME": "y", "T_ONCE": "true"}, []string{"--name=z"},
			"count: 8 # variable T_COUNT\nevery: \"1m0s\" # default\nname: \"z\" # flag\non: true # file F line 3\nto: [] # default\nword: \"\" # default\n"},
		{"a flag for one call has no variable", "", map[string]string{"T_ONCE": "maybe", "T_ON": "maybe"}, nil, "T_ON: not true or false"},
		{"and no key", "once: true\n", nil, nil, `F line 1: unknown key "once"`},
		{"nor has one that is in no file", "where: x\n", nil, nil, `F line 1: unknown key "where"`},
		{"a time that is none", "every: soon\n", nil, nil, `F line 1: key "every": not a time with its unit, as in 90s, 15m or 12h`},
		{"a bad value is not repeated", "", map[string]string{"T_COUNT": "hunter2"}, nil, "T_COUNT: not a whole number"},
		{"nor what is too much", "", map[string]string{"T_COUNT": "99999999999999999999"}, nil, "T_COUNT: too large a number"},
		{"nor a time", "", map[string]string{"T_EVERY": "hunter2"}, nil, "T_EVERY: not a time with its unit, as in 90s, 15m or 12h"},
		{"text for a number", "count: many\n", nil, nil, `F line 1: key "count" must be a whole number`},
		{"a list for a text", "name: [a]\n", nil, nil, `F line 1: key "name" must be text`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			flags := flagsOf()
			if err := flags.Parse(tt.args); err != nil {
				t.Fatal(err)
			}
			o := Options{Prefix: "T", Flags: flags}
			from, err := o.Fill(flags, func(k string) (string, bool) { v, ok := tt.env[k]; return v, ok }, path, true)
			if once, _ := flags.GetBool("once"); once {
				t.Error("a flag for one call is set")
			}
			var b strings.Builder
			if err != nil {
				b.WriteString(err.Error())
			} else if err := o.Print(&b, from); err != nil {
				t.Fatal(err)
			}
			if got := strings.ReplaceAll(b.String(), path, "F"); got != tt.want && (err == nil || !strings.HasPrefix(got, tt.want)) || strings.Contains(b.String(), "hunter2") {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
	if got, want := (Options{Prefix: "T", Flags: flagsOf()}).Table(), "| `--on` | `T_ON` | `on` | `false` | a \\| switch |\n"; !strings.Contains(got, want) || strings.Contains(got, "once") {
		t.Errorf("the table is\n%s", got)
	}
}

func TestOrigin(t *testing.T) {
	for in, want := range map[string]string{
		"file:/var/log/audit.jsonl":              "file:/var/log/audit.jsonl",
		"syslog+tls://siem.example.com:6514":     "syslog+tls://siem.example.com:6514",
		"https://hooks.example.com/T1/B2/c3?k=v": "https://hooks.example.com",
		"https://u:p@[2001:db8::1]:8443/#x":      "https://[2001:db8::1]:8443",
		"https://hunter2:%zz/":                   "unreadable",
		"https:///hunter2":                       "unreadable",
	} {
		if got := Origin(in); got != want {
			t.Errorf("Origin(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"sqlite:/var/lib/x.db":                     "sqlite:/var/lib/x.db",
		"postgres://u:p@h/db":                      "postgres://u@h/db",
		"postgres://u@h/db?sslmode=disable":        "postgres://u@h/db?sslmode=disable",
		"postgres:///db?user=u&password=p&a=b":     "postgres:///db?user=u&a=b",
		"postgres:///db?%70assword=p":              "postgres:///db",
		"postgres://u:%zz@h/db":                    "unreadable",
		"https://hook.example.com/x?Token=t&key=k": "https://hook.example.com/x",
	} {
		if got := Redact(in); got != want {
			t.Errorf("Redact(%q) = %q, want %q", in, got, want)
		}
	}
}

// A variable that sets nothing is known to whoever asks, by the flags there are.
func TestUnknown(t *testing.T) {
	a, b := pflag.NewFlagSet("a", pflag.ContinueOnError), pflag.NewFlagSet("b", pflag.ContinueOnError)
	a.String("log-level", "", "")
	b.Bool("json", false, "")
	b.Bool("force", false, "")
	NotSetting(b, "force")
	got := Options{Prefix: "SFT_X"}.Unknown([]string{"SFT_X_LOG_LEVEL=a", "SFT_X_JSON=true", "SFT_X_FORCE=true", "SFT_X_LOGLEVEL=debug", "SFT_XY=1", "PATH=/bin", "SFT_X_=", "odd"}, a, b)
	if want := []string{"SFT_X_FORCE", "SFT_X_LOGLEVEL", "SFT_X_"}; !slices.Equal(got, want) {
		t.Errorf("unknown are %q, want %q", got, want)
	}
}
