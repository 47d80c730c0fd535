package main

import (
	"os"
	"strings"
	"testing"

	"sft/internal/conf"
)

// docs/operating.md has the settings as they are.
func TestSettingsAreInTheManual(t *testing.T) {
	var s settings
	s.Options = conf.Options{Prefix: prefix, Flags: serveCommand(&s).Flags()}
	b, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := s.Table(); !strings.Contains(string(b), want+"\n") {
		t.Errorf("docs/operating.md does not have this table:\n%s", want)
	}
}
