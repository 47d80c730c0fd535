package agent

import (
	"testing"

	"sft"
	"sft/internal/frame"
	"sft/internal/testenv"
)

// What an administrator takes from a server's labels ends what is open there,
// as the loss of a group does; what the host says of itself changes nothing.
func TestAccessGoesWithALabel(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, func(c *Config) { c.Labels = map[string]string{"env": "prod"} })
	server := h.who.Load().ServerID
	label := func(labels map[string]string) {
		t.Helper()
		h.env.Do("PUT", "/servers/"+server, map[string]any{"labels": labels}, nil)
	}
	var s sft.Server
	h.env.Do("GET", "/projects/"+testenv.Project+"/servers/"+server, nil, &s)
	if s.Labels["sftd.env"] != "prod" || s.Labels["api.env"] != "" {
		t.Errorf("the labels of sftd.yaml arrive as %v", s.Labels)
	}
	ann := h.env.Client("ann")
	open := func(what string) {
		t.Helper()
		_, _, own, err := h.askAll(h.connectFrom(ann), frame.RDP)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err := h.mem.SignIn("ann", own.Password.Reveal(), h.env.Clock.Now()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	out := func(what string) {
		t.Helper()
		until(t, "ann is out: "+what, func() bool {
			a, _ := h.mem.Account("ann")
			return !a.Enabled && a.Expired && h.mem.Sessions("ann") == 0
		})
		_, _, err := h.env.Connect(ann, "web01")
		wantCode(t, what, err, sft.Denied)
	}
	back := func() {
		t.Helper()
		until(t, "ann is back", func() bool { a, _ := h.mem.Account("ann"); return !a.Expired })
	}

	open("before there was a selector")
	place := map[string]any{"server_access": true, "servers_selector": "env=prod"}
	h.env.Do("PUT", "/projects/"+testenv.Project+"/groups/dev", place, nil)
	out("the host alone says env=prod")
	label(map[string]string{"env": "prod"})
	back()
	open("the label is there")
	label(map[string]string{"env": "lab"})
	out("the label is another")
	label(map[string]string{"env": "prod"})
	back()
	open("the label is there again")
	place["servers_selector"] = "env=prod,!api.frozen"
	before, _ := h.current()
	h.env.Do("PUT", "/projects/"+testenv.Project+"/groups/dev", place, nil)
	until(t, "the host has heard", func() bool { st, _ := h.current(); return st.Revision > before.Revision })
	if h.mem.Sessions("ann") == 0 {
		t.Error("a selector that still matches has ended the session")
	}
	label(map[string]string{"env": "prod", "frozen": ""})
	out("the server is frozen")
}
