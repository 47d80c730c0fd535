package audit_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sft/internal/audit"
)

// constants are the kinds by the names of their constants.
func constants(t *testing.T) (names []string, kinds []audit.Kind) {
	t.Helper()
	b, err := os.ReadFile("audit.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^\t(\w+) +Kind = "([^"]+)"`).FindAllSubmatch(b, -1) {
		names, kinds = append(names, string(m[1])), append(kinds, audit.Kind(m[2]))
	}
	return names, kinds
}

// The list of kinds is all of the constants.
func TestKinds(t *testing.T) {
	_, want := constants(t)
	if !slices.Equal(audit.Kinds, want) || len(want) < 60 {
		t.Errorf("Kinds are\n%v\nwant\n%v", audit.Kinds, want)
	}
}

// Each kind is in a test: a change that is told as another one is noticed.
func TestKindsAreInTests(t *testing.T) {
	word, known := regexp.MustCompile(`\baudit\.\w+|\b[a-z_]+(?:\.[a-z_]+)+`), map[string]bool{}
	if err := filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") && !strings.HasSuffix(path, ".txtar") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, w := range word.FindAllString(string(b), -1) {
			known[w] = true
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	names, kinds := constants(t)
	for i, k := range kinds {
		if !known["audit."+names[i]] && !known[string(k)] {
			t.Errorf("no test knows events of kind %s", k)
		}
	}
}
