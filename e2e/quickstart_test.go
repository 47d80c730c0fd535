//go:build linux

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sft/e2e/lab"
	"sft/e2e/stage"
)

// TestQuickStart follows the README word for word: each line of its quick
// start is run as it stands, with the four words that it leaves to the reader
// filled in. Only "make build" was done before, and "make install" puts its
// files on hosts of the lab.
func TestQuickStart(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "## Quick start\n")
	section, _, _ := strings.Cut(rest, "\n## ")
	var lines []string
	for _, l := range strings.Split(section, "\n") {
		if c, ok := strings.CutPrefix(l, "    "); ok {
			lines = append(lines, c)
		}
	}
	if len(lines) < 8 || len(lines) > 12 || !strings.HasPrefix(lines[0], "make build && sudo make install") {
		t.Fatalf("the quick start has the lines\n%s", strings.Join(lines, "\n"))
	}
	s := stage.Empty(t, lab.New(t, ""), bin(t))
	repo, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	admin := func(h *lab.Host) {
		h.AddUser("admin", "")
		h.Write("/etc/sudoers.d/admin", 0o440, []byte("admin ALL=(ALL) NOPASSWD: ALL\n"))
	}
	platform, server := s.SystemdHost("platform", repo), s.SystemdHost("web01", repo)
	admin(platform)
	admin(server)
	server.StartXRDP(blue)
	desk := s.Desk("laptop", "me")
	browser := desk.StartBrowser("me")

	words := strings.NewReplacer("PLATFORM", "platform", "SERVER", "web01")
	var out, token, enroll string
	shown := false
	for _, l := range lines[1:] {
		l = words.Replace(l)
		t.Log(l)
		switch {
		case strings.HasPrefix(l, "sft-platform init"):
			out = platform.Must("admin", "bash", "-c", l)
			token = regexp.MustCompile(`(?m)^  (eyJ\S+)$`).FindStringSubmatch(out)[1]
			enroll = regexp.MustCompile(`(?m)^  (sft enroll .*)$`).FindStringSubmatch(out)[1]
		case strings.HasPrefix(l, "sft-platform serve"):
			platform.Start("serve", platform.Command(context.Background(), "admin", "bash", "-c", l))
			platform.WaitListen("0.0.0.0:8443")
			link := regexp.MustCompile(`(?m)^  (https://\S+/first-use\S+)$`).FindStringSubmatch(out)[1]
			fp := regexp.MustCompile(`sha256:[0-9a-f]{64}`).FindString(out)
			s.Adopt("https://platform:8443", fp)
			desk.TrustPlatform(s)
			browser.Close()
			browser = desk.StartBrowser("me")
			page := browser.NewPage(link)
			page.Type("#password", stage.Password)
			page.Type("#again", stage.Password)
			page.Screenshot(filepath.Join(pictures(t), "first-use.png"))
			page.Click("#set")
			page.WaitFor(`document.querySelector("#user") !== null && document.querySelector("#user").textContent === "alice"`)
		case strings.Contains(l, "TOKEN"):
			server.Must("admin", "bash", "-c", strings.Replace(l, "TOKEN", token, 1))
		case strings.HasPrefix(l, "sudo sftd status"):
			s.Wait("sftd status is content", 30*time.Second, func() bool {
				_, err := server.Run("admin", "bash", "-c", l)
				return err == nil
			})
			t.Log(server.Must("admin", "bash", "-c", l))
		case strings.HasPrefix(l, "sft enroll"):
			if want := strings.Split(l, " sha256:")[0]; !strings.HasPrefix(enroll, want) {
				t.Errorf("init printed %q, the README says %q", enroll, want)
			}
			p := desk.StartSft("enroll", strings.Fields(enroll)[1:]...)
			page := browser.NewPage(desk.NextURL())
			page.Click("#approve")
			page.WaitFor(`location.hostname === "127.0.0.1"`)
			if status := p.Wait(); status != 0 {
				t.Fatalf("sft enroll ends with %d: %s", status, p.Output())
			}
		case strings.HasPrefix(l, "sft rdp"):
			desk.StartSft("rdp", append(strings.Fields(l)[1:], "--size", "1200x800")...)
			desk.WaitPixel(1100, 700, blue)
			shown = true
		case strings.HasPrefix(l, "sft "):
			if out, errs, status := desk.Sft(t.Context(), strings.Fields(l)[1:]...); status != 0 || !strings.Contains(out, "web01") {
				t.Errorf("%s = %d, %q, %q", l, status, out, errs)
			}
		default: // on the server
			server.Must("admin", "bash", "-c", l)
		}
	}
	if !shown {
		t.Error("the quick start does not come to a desktop")
	}
}
