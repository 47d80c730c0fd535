package sft

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
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

// TestDocsAreTrue holds small promises of the documents: their lengths, links
// to files that exist, and that nothing speaks of where they were written.
func TestDocsAreTrue(t *testing.T) {
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
		for _, part := range strings.Split(string(b), "](")[1:] {
			link, _, _ := strings.Cut(part, ")")
			link, _, _ = strings.Cut(link, "#")
			if link == "" || strings.HasPrefix(link, "http") {
				continue
			}
			dir := ""
			if i := strings.LastIndex(file, "/"); i >= 0 {
				dir = file[:i+1]
			}
			if _, err := os.Stat(dir + link); err != nil {
				t.Errorf("%s links to %s: %v", file, link, err)
			}
		}
	}
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
