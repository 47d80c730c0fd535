package platform_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What is sealed here is known to ResealKeys, or it would be lost with the
// master key: CAs, by ca.New, and what is sealed under the name of its setting.
func TestEverythingSealedIsKnown(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	sealing := regexp.MustCompile(`(?:Sealer|\bs)\.Seal\(`)
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range sealing.Split(string(b), -1)[1:] {
			name, _, _ := strings.Cut(part, ",")
			found = append(found, name)
		}
	}
	// backupKey's stays as it is when the key changes: that is what it tells.
	if want := []string{"acmeAccount", "acmeAccount", "acmeCertificate", `"token_key"`, "backupSeal", "backupKey"}; !slices.Equal(found, want) {
		t.Errorf("sealed under the names %q; add what is new to sealedSettings, or to ResealKeys, and here", found)
	}
}
