package audit

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCheck(t *testing.T) {
	good := Event{ID: NewID(), Time: time.Now(), Kind: UserCreate, Actor: Actor{Kind: "user"}, Outcome: Refused}
	tests := []struct {
		name   string
		change func(*Event)
		want   string
	}{
		{"a whole event", func(*Event) {}, ""},
		{"without a type", func(e *Event) { e.Kind = "" }, "an event has no type"},
		{"without a time", func(e *Event) { e.Time = time.Time{} }, "event user.create has no time"},
		{"without an actor", func(e *Event) { e.Actor = Actor{Name: "ann"} }, "event user.create has no actor"},
		{"without an outcome", func(e *Event) { e.Outcome = "" }, "event user.create has no outcome"},
		{"with an odd outcome", func(e *Event) { e.Outcome = "Success" }, "event user.create has no outcome"},
		{"without an id", func(e *Event) { e.ID = "" }, "event user.create has no usable id"},
		{"with an odd id", func(e *Event) { e.ID = "17" }, "event user.create has no usable id"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := good
			tt.change(&e)
			got := ""
			if err := e.Check(); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("Check = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestIDsAreInTheOrderOfTime(t *testing.T) {
	var ids []string
	for range 1000 {
		ids = append(ids, NewID())
	}
	if !slices.IsSorted(ids) {
		t.Error("ids that were made one after the other are not in order")
	}
}

// An agent reports what happened on its host, and never that somebody was
// let in, made or removed on the platform.
func TestWhatAnAgentMayReport(t *testing.T) {
	for kind := range FromAgent {
		if p, _, _ := strings.Cut(string(kind), "."); p != "session" && p != "account" && kind != SSHLogin {
			t.Errorf("an agent may report %s", kind)
		}
	}
}

// A client claims what only it can see, and never that something began.
func TestWhatAClientMayClaim(t *testing.T) {
	for kind := range FromClient {
		if kind != SessionRefused {
			t.Errorf("a client may claim %s", kind)
		}
	}
}
