package sshd

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestDirective(t *testing.T) {
	tests := []struct {
		line, keyword string
		args          []string
	}{
		{"", "", nil},
		{"  # Match all", "", nil},
		{"Port 22", "port", []string{"22"}},
		{"\tMATCH Group a,b User \"c d\"\r", "match", []string{"Group", "a,b", "User", "c d"}},
		{"Include=/a/*.conf", "include", []string{"/a/*.conf"}},
		{"Include = /a /b", "include", []string{"/a", "/b"}},
		{`Include "/a b/*.conf" # and why`, "include", []string{"/a b/*.conf"}},
		{`Include "/a`, "include", []string{"/a"}},
		{`Include\t`, `include\t`, nil},
		{"UsePAM", "usepam", nil},
		{`"Match" all`, "match", []string{"all"}},
		{`"`, "", nil},
		{"=x", "", nil},
	}
	for _, tt := range tests {
		if k, args := directive(tt.line); k != tt.keyword || !slices.Equal(args, tt.args) {
			t.Errorf("%q is %q %q, want %q %q", tt.line, k, args, tt.keyword, tt.args)
		}
	}
}

func TestDropIn(t *testing.T) {
	dir := t.TempDir()
	open := filepath.Join(dir, "open.d")
	for _, d := range []string{"one.d", "two.d", "open.d"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	must(t, os.Chmod(open, 0o777))
	must(t, os.Symlink(filepath.Join(dir, "one.d"), filepath.Join(dir, "link.d")))
	tests := []struct{ name, main, want string }{
		{"a folder is read", "Port 22\nInclude DIR/one.d/*.conf\n", "one.d"},
		{"the first folder that exists", "Include DIR/none.d/*.conf DIR/two.d/*.conf\nInclude DIR/one.d/*\n", "two.d"},
		{"everything in it", "include=\"DIR/one.d/*\"", "one.d"},
		{"other names only", "Include DIR/one.d/*.cnf\nInclude DIR/one.d/5*.conf\n", ""},
		{"one file", "Include DIR/one.d/50-x.conf\n", ""},
		{"for some people alone", "Match User x\nInclude DIR/one.d/*.conf\n", ""},
		{"a comment", "#Include DIR/one.d/*.conf\n", ""},
		{"a folder that others can write in", "Include DIR/open.d/*.conf\n", ""},
		{"a link to a folder", "Include DIR/link.d/*.conf\n", ""},
		{"not a pattern", "Include DIR/one.d/[\n", ""},
		{"nothing", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := ""
			if tt.want != "" {
				want = filepath.Join(dir, tt.want, dropInName)
			}
			if got := dropIn([]byte(strings.ReplaceAll(tt.main, "DIR", dir))); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestBlock(t *testing.T) {
	const in = beginMark + "\nours\n" + endMark + "\n"
	const noLine = beginNoLine + "\nours\n" + endMark + "\n"
	tests := []struct{ name, before, after string }{
		{"at the end", "Port 22\n", "Port 22\n" + in},
		{"of nothing", "", in},
		{"before the first Match", "Port 22\n  match User x\n\tPort 1\nMatch all\n", "Port 22\n" + in + "  match User x\n\tPort 1\nMatch all\n"},
		{"before a Match without an end", "Match all", in + "Match all"},
		{"after a line without an end", "# Match\nPort 22", "# Match\nPort 22\n" + noLine},
		{"lines of another system", "Port 22\r\nMatch all\r\n", "Port 22\r\n" + in + "Match all\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := putBlock([]byte(tt.before), []byte("ours\n"))
			if string(got) != tt.after {
				t.Errorf("put: %q, want %q", got, tt.after)
			}
			back, found, err := cutBlock(got)
			if string(back) != tt.before || !found || err != nil {
				t.Errorf("cut: %q, %v, %v; want %q", back, found, err, tt.before)
			}
		})
	}
	// What somebody has edited afterwards stays.
	for before, want := range map[string]string{
		"a\n" + in + "b\n":                           "a\nb\n",
		"a\n" + noLine + "b\n":                       "a\nb\n",
		"# more\na\n" + noLine:                       "# more\na",
		"a\n" + strings.ReplaceAll(in, "\n", "\r\n"): "a\n",
	} {
		if got, found, err := cutBlock([]byte(before)); string(got) != want || !found || err != nil {
			t.Errorf("cut %q: %q, %v, %v", before, got, found, err)
		}
	}
	for _, damaged := range []string{"a\n" + beginMark + "\nours\n", endMark + "\n", in + in, beginMark + "\n" + in, in + endMark + "\n"} {
		if got, _, err := cutBlock([]byte(damaged)); err == nil || string(got) != damaged {
			t.Errorf("cut %q: %q, %v", damaged, got, err)
		}
	}
}

// FuzzBlock checks that what is put into any configuration can be taken out
// again, to the byte, and that it never becomes part of somebody's Match.
func FuzzBlock(f *testing.F) {
	for _, s := range []string{"", "Port 22\n", "Match all\nx", "a\r\n\r\nMatch User \"x", "# BEGIN sftd", "a\n\n\n", beginMark + "\n" + endMark + "\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		rest, found, err := cutBlock(b)
		if err != nil {
			if !bytes.Equal(rest, b) {
				t.Error("a configuration with damaged marks was changed")
			}
			return
		}
		if found {
			b = rest
		}
		got := putBlock(b, []byte("HostCertificate x\nMatch Group y\n\tz\n"))
		if back, found, err := cutBlock(got); err != nil || !found || !bytes.Equal(back, b) {
			t.Errorf("%q came back as %q, %v, %v", b, back, found, err)
		}
		before, _, _ := bytes.Cut(got, []byte("# BEGIN sftd"))
		for line := range bytes.Lines(before) {
			if k, _ := directive(string(line)); k == "match" {
				t.Errorf("%q: it is below a Match", got)
			}
		}
	})
}

func FuzzDirective(f *testing.F) {
	f.Add(`Include = "a b" 'c' \" # d`)
	f.Fuzz(func(t *testing.T, line string) {
		k, args := directive(line)
		if k == "" && len(args) > 0 || k != strings.ToLower(k) || strings.Contains(k, `"`) || !strings.HasPrefix(strings.TrimSpace(line), `"`) && strings.ContainsAny(k, " \t=") {
			t.Errorf("%q is %q %q", line, k, args)
		}
		n := 0
		for _, a := range args {
			n += len(a)
		}
		if n > len(line) {
			t.Errorf("%q has more in its arguments than was there: %q", line, args)
		}
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
