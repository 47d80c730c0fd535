package client

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sft"
)

func TestParseLink(t *testing.T) {
	for s, want := range map[string]Link{
		"sft://platform.example/t/main/a/web01/rdp":                            {"sft", "", "platform.example", "main", "web01", "rdp", nil},
		"scaleft://alice@platform.example:8443/t/main/a/10.0.0.1/ssh":          {"scaleft", "alice", "platform.example:8443", "main", "10.0.0.1", "ssh", nil},
		"sft://p/t/main/a/fd00::1/ssh?via=root@b1&via=b2.example":              {"sft", "", "p", "main", "fd00::1", "ssh", []string{"root@b1", "b2.example"}},
		"sft://p/t/m/a/w/rdp?via=1&via=2&via=3&via=4&via=5&via=6&via=7&via=8":  {"sft", "", "p", "m", "w", "rdp", []string{"1", "2", "3", "4", "5", "6", "7", "8"}},
		"sft://127.0.0.1:1/t/T.1_x/a/0190a1b2-0000-7000-8000-000000000000/rdp": {"sft", "", "127.0.0.1:1", "T.1_x", "0190a1b2-0000-7000-8000-000000000000", "rdp", nil},
	} {
		got, err := ParseLink(s)
		if err != nil || !cmp.Equal(got, want) || got.String() != s {
			t.Errorf("%s: got %+v, %v", s, got, err)
		}
	}
}

// hostile are links as an attacker would write them.
var hostile = []string{
	"", "sft:", "sft://", "-", "--help", "web01", "http://p/t/m/a/w/rdp", "https://p/t/m/a/w/rdp", "SFT://p/t/m/a/w/rdp", "sftx://p/t/m/a/w/rdp",
	" sft://p/t/m/a/w/rdp", "sft://p/t/m/a/w/rdp ", "sft://p/t/m/a/w/rdp\n", "sft://p/t/m/a/w/rdp\x00", "sft://p/t/m/a/w/rdp\r\nsft://p/t/m/a/w/rdp",
	// options
	"sft://p/t/m/a/-w/rdp", "sft://p/t/m/a/--config-file=x/rdp", "sft://p/t/-m/a/w/rdp", "sft://-p/t/m/a/w/rdp", "sft://-u@p/t/m/a/w/rdp",
	"sft://p/t/m/a/w/rdp?via=-oProxyCommand=id", "sft://p/t/m/a/w/rdp?via=-b", "sft://p/t/m/a/w/rdp?via=-l@b", "sft://p/t/m/a/w/rdp?via=root@-b", "sft://p/t/m/a/w/rdp --client=id",
	// words and shells
	"sft://p/t/m/a/w;id/rdp", "sft://p/t/m/a/$(id)/rdp", "sft://p/t/m/a/`id`/rdp", "sft://p/t/m/a/w|id/rdp", "sft://p/t/m/a/w&calc/rdp", `sft://p/t/m/a/w" "x/rdp`, "sft://p/t/m/a/w'x/rdp",
	`sft://p/t/m/a/w\x/rdp`, "sft://p/t/m/a/w^x/rdp", "sft://p/t/m/a/%COMSPEC%/rdp", "sft://p/t/m/a/w%22/rdp", "sft://p/t/m/a/w%0a/rdp", "sft://p/t/m/a/%2d%2dhelp/rdp", "sft://p/t/m/a/w+x/rdp", "sft://p/t/m/a/w*/rdp",
	"sft://p/t/m/a/~/rdp", "sft://p/t/m/a/{x}/rdp", "sft://p/t/m/a/<x>/rdp",
	// other forms
	"sft://p/t/m/a/w", "sft://p/t/m/a/w/", "sft://p/t/m/a/w/rdp/", "sft://p/t/m/a/w/telnet", "sft://p/t/m/a/w/RDP", "sft://p/t/m/a/prod/w/rdp", "sft://p/t/m/a/../rdp", "sft://p/t/../a/w/rdp", "sft://p/t//a/w/rdp",
	"sft://p//t/m/a/w/rdp", "sft:///t/m/a/w/rdp", "sft://access/rdp?team=m&target=w", "sft://p/t/m/a/w/rdp#x", "sft://p/t/m/a/w/rdp?", "sft://p/t/m/a/w/rdp?&", "sft://p/t/m/a/w/rdp?via", "sft://p/t/m/a/w/rdp?via=",
	"sft://p/t/m/a/w/rdp?via=b&", "sft://p/t/m/a/w/rdp?&via=b", "sft://p/t/m/a/w/rdp?via=b&&via=c", "sft://p/t/m/a/w/rdp?VIA=b", "sft://p/t/m/a/w/rdp?x=b", "sft://p/t/m/a/w/rdp?via=b&x=c", "sft://p/t/m/a/w/rdp?via=b=c",
	"sft://p/t/m/a/w/rdp?via=a@b@c", "sft://p/t/m/a/w/rdp?via=@b", "sft://p/t/m/a/w/rdp?via=A@b", "sft://p/t/m/a/w/rdp?via=b@", "sft://p/t/m/a/w/rdp?via=b;via=c",
	"sft://p/t/m/a/w/rdp?via=1&via=2&via=3&via=4&via=5&via=6&via=7&via=8&via=9",
	// hosts
	"sft://p:/t/m/a/w/rdp", "sft://p:0/t/m/a/w/rdp", "sft://p:065/t/m/a/w/rdp", "sft://p:65536/t/m/a/w/rdp", "sft://p:1:2/t/m/a/w/rdp", "sft://P/t/m/a/w/rdp", "sft://[::1]/t/m/a/w/rdp", "sft://.p/t/m/a/w/rdp", "sft://p./t/m/a/w/rdp",
	"sft://a:b@p/t/m/a/w/rdp", "sft://a@b@p/t/m/a/w/rdp", "sft://@p/t/m/a/w/rdp", "sft://.a@p/t/m/a/w/rdp", "sft://п/t/m/a/w/rdp", "sft://p/t/m/a/wеb/rdp", "sft://p/t/m/a/w\u202e/rdp",
	"sft://p/t/" + strings.Repeat("m", 64) + "/a/w/rdp", "sft://p/t/m/a/" + strings.Repeat("w", 254) + "/rdp", "sft://p/t/m/a/w/rdp?via=" + strings.Repeat("b", 2<<10),
}

func TestHostileLinks(t *testing.T) {
	for _, s := range hostile {
		l, err := ParseLink(s)
		if err == nil || sft.CodeOf(err) != sft.Invalid || !cmp.Equal(l, Link{}) {
			t.Errorf("%q: got %+v, %v", s, l, err)
		} else if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r == 0x7f || r == 0x202e }) {
			t.Errorf("%q: the message is %q", s, err)
		}
	}
}

// FuzzParseLink checks that what is accepted has one spelling, and that nothing
// of it can be an option, another argument, or anything to a shell.
func FuzzParseLink(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Add("sft://alice@p.example:1/t/m/a/w/rdp?via=root@b&via=c")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLink(s)
		if err != nil {
			if sft.CodeOf(err) != sft.Invalid || !cmp.Equal(l, Link{}) {
				t.Errorf("refused as %+v, %v", l, err)
			}
			return
		}
		if l.String() != s {
			t.Errorf("%q is %q", s, l.String())
		}
		argv := l.Command()
		own := []string{"sft", "--team", "--via", "--"}
		for _, w := range argv {
			if strings.HasPrefix(w, "-") && !slices.Contains(own, w) || w == "" || strings.ContainsFunc(w, func(r rune) bool {
				return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:@-", r)
			}) {
				t.Errorf("%q runs %q", s, argv)
			}
		}
		if n := len(argv); argv[n-2] != "--" || argv[n-1] != l.Target || slices.Index(argv, "--") != n-2 || n != 6+2*len(l.Via) || l.Service != "rdp" && l.Service != "ssh" {
			t.Errorf("%q runs %q", s, argv)
		}
	})
}

// A link is for an enrolment of this machine, or for nobody.
func TestLinkAccount(t *testing.T) {
	all := []Account{{Team: "main", User: "alice", URL: "https://p.example"}, {Team: "lab", User: "al", URL: "https://p.example:8443"}}
	for s, want := range map[string]string{
		"sft://p.example/t/main/a/w/rdp":       "alice",
		"sft://alice@p.example/t/main/a/w/rdp": "alice",
		"sft://p.example:8443/t/lab/a/w/rdp":   "al",
		"sft://bob@p.example/t/main/a/w/rdp":   "",
		"sft://p.example/t/lab/a/w/rdp":        "",
		"sft://p.example:443/t/main/a/w/rdp":   "",
		"sft://p.example.evil/t/main/a/w/rdp":  "",
		"sft://evil/t/main/a/w/rdp":            "",
		"sft://p.example/t/Main/a/w/rdp":       "",
	} {
		l, err := ParseLink(s)
		if err != nil {
			t.Fatal(err)
		}
		a, err := l.Account(all)
		if a.User != want || (want == "") != (sft.CodeOf(err) == sft.Denied && err != nil) {
			t.Errorf("%s: %+v, %v", s, a, err)
		}
	}
}
