package daemon

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"sft"
)

type record []string

func (r *record) Write(l slog.Level, text string) { *r = append(*r, l.String()+" "+text) }

func TestTee(t *testing.T) {
	var file bytes.Buffer
	var events record
	log := slog.New(Tee(slog.NewTextHandler(&file, &slog.HandlerOptions{Level: slog.LevelInfo}), &events))
	log.Debug("nowhere")
	log.Info("in the file")
	log.Warn("in both", "n", 1)
	child := log.With("part", "broker").WithGroup("g").With("x", 2)
	child.Error("trouble", "password", sft.NewSecret("hunter2"), "path", `C:\%1`)
	quiet := slog.New(Tee(slog.NewTextHandler(&file, &slog.HandlerOptions{Level: slog.LevelError}), &events))
	quiet.Warn("an event alone")
	want := record{`WARN msg="in both" n=1`, `ERROR msg=trouble part=broker g.x=2 g.password=[secret] g.path=C:\% 1`, `WARN msg="an event alone"`}
	if !slices.Equal(events, want) {
		t.Errorf("events\n%q\nwant\n%q", events, want)
	}
	for _, s := range []string{"in the file", "in both", "g.password=[secret]"} {
		if !strings.Contains(file.String(), s) {
			t.Errorf("the file lacks %q:\n%s", s, file.String())
		}
	}
	if strings.Contains(file.String(), "an event alone") {
		t.Errorf("the file has what it was not asked for:\n%s", file.String())
	}
	for _, s := range []string{"nowhere", "hunter2"} {
		if strings.Contains(file.String()+fmt.Sprint(events), s) {
			t.Errorf("%q was logged", s)
		}
	}
}

func FuzzEventText(f *testing.F) {
	for _, s := range []string{"", "a\x00b", "%1%%2", "100%", strings.Repeat("é", MaxEvent), "\xff", "%\x001"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := eventText(s)
		if len(got) > MaxEvent || !utf8.ValidString(got) || strings.ContainsRune(got, 0) || number.MatchString(got) {
			t.Errorf("eventText(%q) = %q", s, got)
		}
	})
}
