package sft

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// TestCodes holds the error table of docs/protocol.md to the one in the code,
// both ways.
func TestCodes(t *testing.T) {
	b, err := os.ReadFile("docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "| code | HTTP | exit | meaning |\n|---|---|---|---|\n")
	if !ok {
		t.Fatal("docs/protocol.md has no table of codes")
	}
	table, _, _ := strings.Cut(rest, "\n\n")
	var want []string
	seen := map[Code]bool{}
	for _, c := range Codes {
		if seen[c.Code] || c.Status < 400 || c.Exit < 1 || c.Exit > 6 || c.Meaning == "" {
			t.Errorf("the row %+v is not whole, or there twice", c)
		}
		seen[c.Code] = true
		want = append(want, fmt.Sprintf("| `%s` | %d | %d | %s |", c.Code, c.Status, c.Exit, c.Meaning))
	}
	if got, want := strings.TrimSpace(table), strings.Join(want, "\n"); got != want {
		t.Errorf("docs/protocol.md has\n%s\nwant\n%s", got, want)
	}
}

// TestDocsAreShort holds the documents to their lengths.
func TestDocsAreShort(t *testing.T) {
	for file, max := range map[string]int{"README.md": 150, "ARCHITECTURE.md": 200, "DEVELOPING.md": 150, "docs/attack-surface.md": 140,
		"docs/issuance.md": 40, "docs/metrics.md": 80, "docs/cli.md": 150, "docs/ssh.md": 120, "docs/admin-settings.md": 80, "docs/protocol.md": 200, "docs/windows.md": 80, "docs/windows-client.md": 80, "docs/enrolling.md": 80, "docs/windows-verification.md": 200, "docs/policy.md": 140,
		"docs/api.md": 5000, // made of the routes, and as long as they are many
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		if n := strings.Count(string(b), "\n"); n > max {
			t.Errorf("%s has %d lines, want %d at most", file, n, max)
		}
	}
}

// TestDocumentLinks follows the links of all documents: to files that exist, and to
// headings that are in them.
func TestDocumentLinks(t *testing.T) {
	files, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	named := map[string][]string{}
	read := func(file string) string {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	links, headings := 0, 0
	for _, file := range append(files, "README.md", "ARCHITECTURE.md", "DEVELOPING.md") {
		for _, part := range strings.Split(read(file), "](")[1:] {
			link, _, _ := strings.Cut(part, ")")
			if strings.HasPrefix(link, "http") {
				continue
			}
			links++
			to, heading, _ := strings.Cut(link, "#")
			if to = filepath.Join(filepath.Dir(file), to); strings.HasPrefix(link, "#") {
				to = file
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s links to %s: %v", file, link, err)
			} else if heading != "" {
				if headings++; named[to] == nil {
					named[to] = anchors(read(to))
				}
				if !slices.Contains(named[to], heading) {
					t.Errorf("%s links to %s, and no heading there is called so", file, link)
				}
			}
		}
	}
	if len(files) < 20 || links < 300 || headings < 200 {
		t.Errorf("there are %d documents with %d links, %d of them to headings", len(files)+3, links, headings)
	}
}

// anchors are what links call the headings of a document: in small letters,
// without punctuation, with hyphens for spaces, and with a number from the
// second of a name on.
func anchors(text string) (list []string) {
	seen := map[string]int{}
	for i, block := range strings.Split(text, "\n```") {
		if i%2 == 1 {
			continue // code
		}
		for _, m := range regexp.MustCompile(`(?m)^#{1,6} +(.*)$`).FindAllStringSubmatch(block, -1) {
			name := strings.Map(func(r rune) rune {
				switch {
				case r == ' ':
					return '-'
				case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
					return unicode.ToLower(r)
				}
				return -1
			}, m[1])
			if seen[name]++; seen[name] > 1 {
				name += fmt.Sprintf("-%d", seen[name]-1)
			}
			list = append(list, name)
		}
	}
	return list
}

// TestVerificationNamesTests holds docs/windows-verification.md to the tests
// that it names: each is there.
func TestVerificationNamesTests(t *testing.T) {
	there := map[string]bool{}
	decl := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range decl.FindAllSubmatch(b, -1) {
			there[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("docs/windows-verification.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`\bTest[A-Z]\w*`).FindAllString(string(b), -1)
	if len(named) < 50 {
		t.Errorf("it names %d tests", len(named))
	}
	for _, name := range named {
		if !there[name] {
			t.Errorf("there is no %s", name)
		}
	}
}
