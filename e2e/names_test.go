//go:build linux

package e2e

import (
	"strings"
	"testing"
	"time"

	"sft/internal/audit"
)

// What a name means, and what is said where it means nothing, or too much.
func TestNames(t *testing.T) {
	s, _, desk := world(t)
	s.Project("lab", false)
	s.Join("ann", "lab")
	s.Project("secret", false)
	s.Server("web02", "lab", "", "")
	s.Server("db01", "secret", "", "")
	// A host of another project that goes by the name of web01, and one of the
	// same project that claims it.
	s.Server("twin", "lab", "", "CanonicalName: web01\n")
	thief := s.Server("thief", "prod", "", "AltNames: [web01]\n")
	s.WaitEvent("the claim of a name that is taken", func(e audit.Event) bool {
		return e.Kind == audit.NameConflict && e.Target == "thief" && e.Detail["names"] == "web01"
	})
	_ = thief
	tests := []struct {
		name   string
		target string
		status int
		say    string // in the message
	}{
		{"unknown", "nosuch", 5, `there is no server "nosuch"`},
		{"ambiguous across projects, and never the thief", "web01", 5, `"web01" is the name of 2 servers: lab/web01 (`},
		{"with the project it is one", "prod/web01", 0, ""},
		{"a project of others", "secret/db01", 4, "no access"},
		{"a name of others", "db01", 4, "no access"},
		{"newline", "web01\nx", 5, `"web01\x0ax" cannot be the name of a server`},
		{"quote", `web"01`, 5, `"web\"01" cannot be the name of a server`},
		{"command", "$(reboot)", 5, "cannot be the name of a server"},
		{"leading dash after --", "-oProxyCommand=x", 5, "cannot be the name of a server"},
		{"5,000 characters", strings.Repeat("a", 5000), 5, "cannot be the name of a server"},
		{"empty", "", 5, "cannot be the name of a server"},
		{"any case", "PROD/WEB01", 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, errs, status := desk.Sft(t.Context(), "resolve", "--", tt.target)
			if status != tt.status || (status != 0) != (out == "") || !strings.Contains(errs, tt.say) {
				t.Errorf("sft resolve = %d, %q, %q; want %d and %q", status, out, errs, tt.status, tt.say)
			}
			if status != 0 && !strings.Contains(errs, "sft: hint: ") {
				t.Errorf("there is no hint: %q", errs)
			}
			if strings.Count(errs, "\n") > 2 {
				t.Errorf("the message has more than two lines: %q", errs)
			}
		})
	}
	t.Run("sft rdp refuses in the same way", func(t *testing.T) {
		for target, want := range map[string]int{"nosuch": 5, "web01": 5, "db01": 4} {
			if out, errs, status := desk.Sft(t.Context(), "rdp", target); status != want || out != "" {
				t.Errorf("sft rdp %s = %d, %q, %q; want %d", target, status, out, errs, want)
			}
		}
	})
	t.Run("every refusal is recorded", func(t *testing.T) {
		s.WaitEvent("the refusal of db01", func(e audit.Event) bool {
			return e.Kind == audit.UserCredsIssue && e.Outcome == audit.Refused && e.Target == "\"db01\"" && e.Actor.Name == "ann"
		})
	})
}

// A host that says it has another's address leads nobody to the wrong host:
// the client refuses the certificate before it sends anything.
func TestSwappedBroker(t *testing.T) {
	s, web, desk := world(t)
	s.Server("impostor", "prod", "", "AccessAddress: "+web.IP()+"\n")
	s.Wait("the impostor is listed", 10*time.Second, func() bool {
		out, _, _ := desk.Sft(t.Context(), "list-servers")
		return strings.Contains(out, "impostor")
	})
	out, errs, status := desk.Sft(t.Context(), "rdp", "impostor")
	if status != 6 && status != 1 && status != 4 || out != "" || !strings.Contains(errs, "certificate") {
		t.Errorf("sft rdp = %d, %q, %q; want a refused certificate", status, out, errs)
	}
	if got := shadow(web, "ann"); got != "*" {
		t.Errorf("an account was opened: %q", got)
	}
	// It holds the address of web01 as little as its name.
	if _, errs, status := desk.Sft(t.Context(), "resolve", web.IP()); status != 0 {
		t.Errorf("the true holder is not found by its address: %d %s", status, errs)
	}
}
