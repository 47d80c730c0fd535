package agent

import (
	"slices"
	"testing"

	"sft/internal/api"
	"sft/internal/frame"
	"sft/internal/privsep"
)

// A session ends when any CA is dropped that has let one of its streams in: the
// first, a later one, or one whose stream is closed already.
func TestDroppedCAOfALaterStream(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	h.join("bob")
	h.waitAccount("bob")
	open := func(user, session, ca string) uint64 {
		t.Helper()
		id, _, err := h.sessions.open(t.Context(), api.StateUser{ID: h.userID(user), Login: user}, session, frame.RDP, "192.0.2.7:1", ca, allowed)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	over := func() (list []string) {
		h.sessions.mu.Lock()
		defer h.sessions.mu.Unlock()
		for id, ses := range h.sessions.sessions {
			if ses.over {
				list = append(list, id)
			}
		}
		slices.Sort(list)
		return list
	}
	open("ann", "later", "sha256:a")
	open("ann", "later", "sha256:b")
	open("ann", "later", "sha256:b")
	open("bob", "closed", "sha256:a")
	h.Close(t.Context(), privsep.Close{Stream: open("bob", "closed", "sha256:c"), Why: "the client closed it"})
	for _, tt := range []struct {
		drop string
		over []string
	}{{"sha256:of-another", nil}, {"sha256:b", []string{"later"}}, {"sha256:c", []string{"closed", "later"}}} {
		h.change(func(st *api.State) { st.DroppedCAs = append(slices.Clone(st.DroppedCAs), tt.drop) })
		if got := over(); !slices.Equal(got, tt.over) {
			t.Errorf("with %s dropped too, %q have ended, want %q", tt.drop, got, tt.over)
		}
	}
}

func (h *host) userID(login string) string {
	st, _ := h.current()
	for _, u := range st.Users {
		if u.Login == login {
			return u.ID
		}
	}
	return ""
}
