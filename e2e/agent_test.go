//go:build linux

package e2e

import (
	"strings"
	"testing"
	"time"

	"sft/internal/audit"
)

// An agent enrols by its token file, makes the accounts that should exist, and
// keeps up with every change.
func TestAccounts(t *testing.T) {
	s := newStage(t)
	s.Project("prod", false)
	s.Person("ann", "Ann Example", "prod")
	s.Person("bob", "Bob Example")
	web := s.Server("web01", "prod", "", "")
	if _, err := web.Read("/var/lib/sftd/enrollment.token"); err == nil {
		t.Error("the token file is still there")
	}
	shadow := func(login string) string {
		out, _ := web.Run("", "getent", "shadow", login)
		if f := strings.Split(out, ":"); len(f) > 1 {
			return f[1]
		}
		return "none"
	}
	s.Wait("ann has an account at rest", 10*time.Second, func() bool { return shadow("ann") == "*" })
	if got := shadow("bob"); got != "none" {
		t.Errorf("bob, who is in no group, has an account with %q", got)
	}
	s.Join("bob", "prod")
	s.Wait("bob has one within seconds", 5*time.Second, func() bool { return shadow("bob") == "*" })
	s.Leave("bob", "prod")
	s.Wait("bob's is ended within seconds", 5*time.Second, func() bool {
		out, _ := web.Run("", "chage", "-l", "bob")
		return strings.Contains(out, "Jan 01, 1970") || strings.Contains(out, "Jan 02, 1970")
	})
	s.WaitEvent("the platform knows that ann's account was made", func(e audit.Event) bool {
		return e.Kind == audit.AccountCreated && e.Detail["login"] == "ann" && e.Target == "web01"
	})
}
