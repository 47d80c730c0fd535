//go:build linux

package e2e

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sft/e2e/stage"
	"sft/internal/audit"
)

// A machine without a browser is enrolled by a code, typed in a browser
// elsewhere by somebody who has just signed in; and the life of an enrolment:
// sign out, sign in, remove.
func TestEnrollByCode(t *testing.T) {
	s := newStage(t)
	s.Project("prod", false)
	s.Person("ann", "Ann Example", "prod")
	s.Server("web01", "prod", "", "")
	desk := s.Desk("headless", "ann")
	browser := desk.StartBrowser("ann")
	args := append(strings.Fields(s.Enroll)[1:], "--no-browser")
	byCode(t, s, desk, browser.NewPage, args, true)

	out, _, status := desk.Sft(t.Context(), "list-servers")
	if status != 0 || !strings.Contains(out, "web01") || !strings.Contains(out, "ACTIVE") {
		t.Errorf("sft list-servers = %d, %q", status, out)
	}
	if out, _, status := desk.Sft(t.Context(), "list-projects"); status != 0 || !strings.Contains(out, "prod") {
		t.Errorf("sft list-projects = %d, %q", status, out)
	}
	if out, _, status := desk.Sft(t.Context(), "list-accounts"); status != 0 || !strings.Contains(out, "acme") || !strings.Contains(out, "ann") {
		t.Errorf("sft list-accounts = %d, %q", status, out)
	}
	// Enrolling again is refused without --force.
	if out, errs, status := desk.Sft(t.Context(), args...); status == 0 || out != "" || !strings.Contains(errs, "--force") {
		t.Errorf("a second sft enroll = %d, %q, %q", status, out, errs)
	}
	if _, _, status := desk.Sft(t.Context(), "logout"); status != 0 {
		t.Errorf("sft logout = %d", status)
	}
	// No prompt and no browser without a terminal: status 3, and what to run.
	out, errs, status := desk.Sft(t.Context(), "rdp", "web01")
	if status != 3 || out != "" || !strings.Contains(errs, "sft login") {
		t.Errorf("signed out, sft rdp = %d, %q, %q; want 3 and \"sft login\"", status, out, errs)
	}
	byCode(t, s, desk, browser.NewPage, []string{"login", "--no-browser"}, true)
	if _, errs, status := desk.Sft(t.Context(), "resolve", "-q", "web01"); status != 0 || errs != "" {
		t.Errorf("signed in again, sft resolve -q = %d, %q", status, errs)
	}
	if _, errs, status := desk.Sft(t.Context(), "unenroll"); status != 0 {
		t.Errorf("sft unenroll = %d, %q", status, errs)
	}
	s.WaitEvent("client.remove", func(e audit.Event) bool { return e.Kind == audit.ClientRemove })
	// What is refused in the browser is refused here.
	byCode(t, s, desk, browser.NewPage, args, false)
}

var codeRE = regexp.MustCompile(`[B-Z]{4}-[B-Z]{4}`)

type pager interface {
	Type(selector, text string)
	Click(selector string)
	WaitFor(js string)
	Screenshot(path string)
	Text() string
}

// byCode runs a command of sft that asks for a code to be typed elsewhere.
func byCode[P pager](t *testing.T, s *stage.Stage, desk *stage.Desk, open func(string) P, args []string, approve bool) {
	t.Helper()
	p := desk.StartSft(fmt.Sprintf("sft-%s-%v", args[0], approve), args...) // a log of its own
	var code string
	s.Wait("sft shows a code", 10*time.Second, func() bool {
		code = codeRE.FindString(p.Output())
		return code != ""
	})
	if out := p.Output(); !strings.Contains(out, s.URL+"/device") || strings.Contains(out, "user_code=") {
		t.Errorf("sft does not show where to type the code, or fills it in:\n%s", out)
	}
	page := open(s.URL + "/device")
	if strings.Contains(page.Text(), "Password") {
		page.Type("#user", "ann")
		page.Type("#password", stage.Password)
		page.Click("#signin")
	}
	page.WaitFor(`document.querySelector("#code") !== null`)
	page.Type("#code", strings.ToLower(strings.ReplaceAll(code, "-", "")))
	page.Click("#next")
	page.WaitFor(`document.querySelector("#approve") !== null`)
	page.Screenshot(filepath.Join(pictures(t), "device.png"))
	if text := page.Text(); !strings.Contains(text, "headless") || !strings.Contains(text, desk.IP()) || !strings.Contains(text, "If somebody sent it to you, refuse") {
		t.Errorf("the page does not say who asks, and warn:\n%s", text)
	}
	want := 0
	if approve {
		page.Click("#approve")
	} else {
		page.Click("#refuse")
		want = 4
	}
	page.WaitFor(`document.querySelector("#done") !== null`)
	if got := p.Wait(); got != want {
		t.Errorf("sft %s ended with %d, want %d:\n%s", args[0], got, want, p.Output())
	}
}
