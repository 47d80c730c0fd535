package audit_test

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"sft/internal/audit"
)

// The list of kinds is all of the constants.
func TestKinds(t *testing.T) {
	b, err := os.ReadFile("audit.go")
	if err != nil {
		t.Fatal(err)
	}
	var want []audit.Kind
	for _, m := range regexp.MustCompile(`(?m)^\t\w+ +Kind = "([^"]+)"`).FindAllSubmatch(b, -1) {
		want = append(want, audit.Kind(m[1]))
	}
	if !slices.Equal(audit.Kinds, want) || len(want) < 60 {
		t.Errorf("Kinds are\n%v\nwant\n%v", audit.Kinds, want)
	}
}
