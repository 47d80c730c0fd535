package frame

import (
	"math"
	"net/url"
	"slices"
	"strings"
	"testing"

	"sft"
)

func TestNamesURIs(t *testing.T) {
	n := Names{Team: "acme", Project: "prod.eu", User: "0198f", Server: "srv-1", Session: "ses_1", Revision: 42}
	if err := n.Check(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, u := range n.URIs() {
		got = append(got, u.String())
	}
	want := []string{"sft:team/acme/project/prod.eu/user/0198f", "sft:server/srv-1", "sft:session/ses_1", "sft:rev/42"}
	if !slices.Equal(got, want) {
		t.Errorf("URIs = %q, want %q", got, want)
	}
	for name, n := range map[string]Names{
		"usual":                            n,
		"longest":                          {strings.Repeat("t", 63), strings.Repeat("p", 63), strings.Repeat("u", 63), strings.Repeat("s", 63), strings.Repeat("S", 63), math.MaxInt64},
		"least":                            {"t", "p", "u", "s", "S", 0},
		"named like the words around them": {"team", "project", "user", "server", "session", 1},
	} {
		if got, err := ParseURIs(n.URIs()); err != nil || got != n {
			t.Errorf("%s: ParseURIs = %+v, %v, want %+v", name, got, err, n)
		}
		back := n.URIs()
		slices.Reverse(back)
		if got, err := ParseURIs(back); err != nil || got != n {
			t.Errorf("%s, reversed: ParseURIs = %+v, %v, want %+v", name, got, err, n)
		}
	}
}

func TestNamesCheck(t *testing.T) {
	good := Names{"acme", "prod", "u", "s", "S", 0}
	tests := []struct {
		name   string
		change func(*Names)
	}{
		{"no team", func(n *Names) { n.Team = "" }},
		{"a team with a slash", func(n *Names) { n.Team = "a/project/b" }},
		{"a project with a space", func(n *Names) { n.Project = "a b" }},
		{"no user", func(n *Names) { n.User = "" }},
		{"a user of several parts", func(n *Names) { n.User = "u/user/root" }},
		{"a user with an escape", func(n *Names) { n.User = "u%2f" }},
		{"a server with a dot", func(n *Names) { n.Server = "web01.acme" }},
		{"a server that is too long", func(n *Names) { n.Server = strings.Repeat("s", 64) }},
		{"a session with a line end", func(n *Names) { n.Session = "s\n" }},
		{"a negative revision", func(n *Names) { n.Revision = -1 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := good
			tt.change(&n)
			if err := n.Check(); sft.CodeOf(err) != sft.Invalid {
				t.Errorf("Check of %+v: %v, want it to be invalid", n, err)
			}
			if _, err := ParseURIs(n.URIs()); sft.CodeOf(err) != sft.Denied {
				t.Errorf("ParseURIs of %+v: %v, want it to be denied", n, err)
			}
		})
	}
}

func TestParseURIsRefuses(t *testing.T) {
	const person, server, session, rev = "sft:team/a/project/b/user/c", "sft:server/s", "sft:session/t", "sft:rev/1"
	tests := []struct {
		name string
		uris []string
	}{
		{"nothing", nil},
		{"three of four", []string{person, server, session}},
		{"five", []string{person, server, session, rev, "sft:x/y"}},
		{"the same twice", []string{person, server, server, rev}},
		{"two of a kind", []string{person, server, "sft:server/other", rev}},
		{"an unknown kind", []string{person, server, session, "sft:role/admin"}},
		{"another scheme", []string{person, server, session, "urn:rev/1"}},
		{"an authority", []string{person, "sft://server/s", session, rev}},
		{"a path", []string{person, "sft:/server/s", session, rev}},
		{"a query", []string{person, server + "?x", session, rev}},
		{"an empty query", []string{person, server + "?", session, rev}},
		{"a fragment", []string{person, server + "#x", session, rev}},
		{"an escape", []string{person, "sft:server/%73", session, rev}},
		{"a part too many", []string{person, server + "/x", session, rev}},
		{"a part too few", []string{person, "sft:server", session, rev}},
		{"an empty id", []string{person, "sft:server/", session, rev}},
		{"a user without a project", []string{"sft:team/a/user/c", server, session, rev}},
		{"a project before its team", []string{"sft:project/b/team/a/user/c", server, session, rev}},
		{"a revision with a sign", []string{person, server, session, "sft:rev/+1"}},
		{"a revision with a zero before it", []string{person, server, session, "sft:rev/01"}},
		{"a negative revision", []string{person, server, session, "sft:rev/-1"}},
		{"a revision that is no number", []string{person, server, session, "sft:rev/x"}},
		{"a revision over 63 bits", []string{person, server, session, "sft:rev/9223372036854775808"}},
		{"a name too long", []string{person, "sft:server/" + strings.Repeat("s", 300), session, rev}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if n, err := ParseURIs(parseAll(t, tt.uris)); sft.CodeOf(err) != sft.Denied || n != (Names{}) {
				t.Errorf("ParseURIs = %+v, %v, want it to be denied", n, err)
			}
		})
	}
	if _, err := ParseURIs([]*url.URL{nil, nil, nil, nil}); err == nil {
		t.Error("ParseURIs of nothing at all passed")
	}
}

func parseAll(t testing.TB, uris []string) (all []*url.URL) {
	t.Helper()
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, u)
	}
	return all
}

// FuzzParseURIs checks that what is read has one spelling, and only names that
// could have been written.
func FuzzParseURIs(f *testing.F) {
	f.Add("sft:team/a/project/b/user/c", "sft:server/s", "sft:session/t", "sft:rev/1")
	f.Add("sft:server/s", "sft:rev/0", "sft:session/t", "sft:team/a/project/b/user/c")
	f.Add("SFT:server/s?", "sft:rev/-0", "sft://session/t", "sft:team/a%2Fb/project/b/user/c#")
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		in := []string{a, b, c, d}
		var uris []*url.URL
		for _, s := range in {
			u, err := url.Parse(s)
			if err != nil {
				return
			}
			uris = append(uris, u)
		}
		n, err := ParseURIs(uris)
		if err != nil {
			if n != (Names{}) || sft.CodeOf(err) != sft.Denied {
				t.Fatalf("ParseURIs = %+v, %v", n, err)
			}
			return
		}
		if err := n.Check(); err != nil {
			t.Fatalf("ParseURIs = %+v, which nobody could write: %v", n, err)
		}
		var got, want []string
		for i := range uris {
			got = append(got, uris[i].String())
			want = append(want, n.URIs()[i].String())
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("%q were read as %+v, which is %q", in, n, want)
		}
	})
}
