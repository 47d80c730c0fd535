package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"regexp"
	"strings"
)

// An EventLog is the log of a system in which administrators look for what is
// wrong with a service. Write takes one event of at most MaxEvent bytes; what
// cannot be written is lost.
type EventLog interface {
	Write(level slog.Level, text string)
}

// MaxEvent caps the text of an event, in bytes. ReportEventW of Windows takes
// 31,839 characters.
const MaxEvent = 16 << 10

// Tee returns a handler that passes everything to h, and to events whatever is
// a warning or worse.
func Tee(h slog.Handler, events EventLog) slog.Handler {
	return &tee{h, events, func(h slog.Handler) slog.Handler { return h }}
}

// A tee keeps how attributes and groups were added, to render an event with
// them.
type tee struct {
	next   slog.Handler
	events EventLog
	with   func(slog.Handler) slog.Handler
}

func (t *tee) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn || t.next.Enabled(ctx, l)
}

func (t *tee) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		var b bytes.Buffer
		h := t.with(slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
				return slog.Attr{} // an event has its own
			}
			return a
		}}))
		if h.Handle(ctx, r) == nil {
			t.events.Write(r.Level, eventText(b.String()))
		}
	}
	if !t.next.Enabled(ctx, r.Level) {
		return nil
	}
	return t.next.Handle(ctx, r)
}

func (t *tee) WithAttrs(as []slog.Attr) slog.Handler {
	return &tee{t.next.WithAttrs(as), t.events, func(h slog.Handler) slog.Handler { return t.with(h).WithAttrs(as) }}
}

func (t *tee) WithGroup(name string) slog.Handler {
	return &tee{t.next.WithGroup(name), t.events, func(h slog.Handler) slog.Handler { return t.with(h).WithGroup(name) }}
}

// number is what Windows replaces in the text of an event.
var number = regexp.MustCompile(`%(\d)`)

// eventText makes s fit for one event: a C string of valid text, in which no
// number follows "%".
func eventText(s string) string {
	s = strings.ToValidUTF8(strings.TrimSpace(strings.ReplaceAll(s, "\x00", " ")), "?")
	s = number.ReplaceAllString(s, "% $1")
	if len(s) > MaxEvent {
		s = strings.ToValidUTF8(s[:MaxEvent-3], "") + "..."
	}
	return s
}
