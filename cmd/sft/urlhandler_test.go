package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sft"
	"sft/internal/client"
	"sft/internal/conf"
)

// linked is a program on a machine that is enrolled as alice in team main.
func linked(t *testing.T) *program {
	t.Helper()
	home := t.TempDir()
	getenv := func(k string) string {
		return map[string]string{"HOME": home, "USERPROFILE": home, "LOCALAPPDATA": home, "APPDATA": home, "SFT_KEYRING": "compat"}[k]
	}
	paths, err := conf.ClientPaths(getenv)
	if err != nil {
		t.Fatal(err)
	}
	if err := conf.PrivateDir(paths.State); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]any{"accounts": []client.Account{{Team: "main", User: "alice", ClientID: "c1", URL: "https://p.example"}}})
	if err == nil {
		err = conf.WriteSecret(filepath.Join(paths.State, "state.json"), b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &program{getenv: getenv, in: strings.NewReader(""), out: io.Discard, voice: &voice{err: io.Discard}}
}

// Nothing is connected to without a yes, and nobody is asked about a link that
// cannot be followed.
func TestFollow(t *testing.T) {
	broken := errors.New("the window is broken")
	for _, tt := range []struct {
		name, link string
		yes        bool
		fails      error
		want       sft.Code
		asked      string
		connected  string
	}{
		{"yes", "sft://p.example/t/main/a/web01/rdp?via=root@b1&via=b2", true, nil, "",
			"A link asks to connect to web01 through root@b1, b2 by rdp, as alice of team main at p.example. Connect?", "sft rdp --team main --via root@b1 --via b2 -- web01"},
		{"no", "scaleft://alice@p.example/t/main/a/web01/ssh", false, nil, sft.Denied, "A link asks to connect to web01 by ssh, as alice of team main at p.example. Connect?", ""},
		{"who cannot be asked", "sft://p.example/t/main/a/web01/rdp", true, broken, sft.Internal, "A link asks to connect to web01 by rdp, as alice of team main at p.example. Connect?", ""},
		{"another platform", "sft://evil.example/t/main/a/web01/rdp", true, nil, sft.Denied, "", ""},
		{"another team", "sft://p.example/t/lab/a/web01/rdp", true, nil, sft.Denied, "", ""},
		{"another user", "sft://bob@p.example/t/main/a/web01/rdp", true, nil, sft.Denied, "", ""},
		{"an option", "sft://p.example/t/main/a/--help/rdp", true, nil, sft.Invalid, "", ""},
		{"another scheme", "file:///etc/passwd", true, nil, sft.Invalid, "", ""},
	} {
		p := linked(t)
		asked, connected := "", ""
		err := p.follow(t.Context(), tt.link, func(_ context.Context, q string) (bool, error) { asked = q; return tt.yes, tt.fails },
			func(_ context.Context, l client.Link) error { connected = strings.Join(l.Command(), " "); return nil })
		if (err == nil) != (tt.want == "") || err != nil && sft.CodeOf(err) != tt.want || asked != tt.asked || connected != tt.connected {
			t.Errorf("%s: %v, asked %q, connected to %q", tt.name, err, asked, connected)
		}
		if tt.connected != "" && p.team != "main" {
			t.Errorf("%s: the team is %q", tt.name, p.team)
		}
	}
}

// Even a link that was not read by ParseLink has no option for ssh in it, and
// leads to no program before its words were looked at.
func TestConnectLinkTakesNoOptions(t *testing.T) {
	for _, service := range []string{"ssh", "rdp"} {
		for _, l := range []client.Link{
			{Target: "-oProxyCommand=id"}, {Target: "--via=x"}, {Target: ""}, {Target: "--"}, {Target: "web01 id"},
			{Target: "web01", Via: []string{"-oProxyCommand=id"}}, {Target: "web01", Via: []string{"-l@b1"}}, {Target: "web01", Via: []string{"b1", "root@-b2"}}, {Target: "web01", Via: []string{""}},
		} {
			l.Service = service
			if err := linked(t).connectLink(t.Context(), l); sft.CodeOf(err) != sft.NotFound && sft.CodeOf(err) != sft.Invalid {
				t.Errorf("%+v: %v", l, err)
			}
		}
	}
}

func TestSaysYes(t *testing.T) {
	for typed, want := range map[string]bool{
		"y\n": true, "Y\r\n": true, "yes\n": true, " yes \n": true,
		"": false, "\n": false, "y": false, "n\n": false, "no\ny\n": false, "yy\n": false, "yes!\n": false, "\ny\n": false, strings.Repeat(" ", maxAnswer) + "y\n": false,
	} {
		if got, err := saysYes(t.Context(), strings.NewReader(typed)); got != want || err != nil {
			t.Errorf("%q: %v, %v", typed, got, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, w := io.Pipe()
	defer w.Close()
	if got, err := saysYes(ctx, r); got || !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v, %v", got, err)
	}
}

// What a handler's command line may become by a hostile link is refused: more
// than one word, none, or one of ours.
func TestOpenURLTakesOneLink(t *testing.T) {
	const link = "sft://p.example/t/main/a/web01/rdp"
	for _, args := range [][]string{{}, {"--"}, {"--", link, "x"}, {"--", link, "--team", "x"}, {"--", "--help"}, {"--", "--version"}, {"--", "-v"}, {"--", "--config-file=/x"}, {"--", "sft:"}, {"--", ""}, {"--", link + " --team=x"}} {
		var out strings.Builder
		p := linked(t)
		p.out = &out
		err := p.run(t.Context(), append([]string{"open-url"}, args...))
		if u, ok := errors.AsType[usage](err); ok {
			err = u.error
		}
		if err == nil || sft.CodeOf(err) != sft.Invalid || out.Len() > 0 {
			t.Errorf("%q: %v, %q", args, err, out.String())
		}
	}
	p := linked(t) // without a terminal or a screen
	if err := p.run(t.Context(), []string{"open-url", "--", link}); os.Getenv("OS") == "" && sft.CodeOf(err) != sft.Denied {
		t.Errorf("nobody to ask: %v", err)
	}
}
