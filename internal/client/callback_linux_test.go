package client

import (
	"io"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// Another user of the machine, who knows the state and a code, is not heard;
// the person's own browser still is.
func TestACallbackOfAnotherUserIsNotHeard(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start a process as another user")
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip(err)
	}
	p := newPlatform(t)
	d, who := newDevice(t)
	d.Ask = InBrowser
	d.Open = func(page string) error {
		u, err := url.Parse(page)
		if err != nil {
			return err
		}
		back, err := url.Parse(u.Query().Get("redirect_uri"))
		if err != nil {
			return err
		}
		request := "GET /callback?error=access_denied&state=" + u.Query().Get("state") + " HTTP/1.1\r\nHost: " + back.Host + "\r\n\r\n"
		cmd := exec.CommandContext(t.Context(), bash, "-c", `trap "" PIPE; exec 3<>"/dev/tcp/127.0.0.1/$1"; printf %s "$2" >&3; cat <&3; true`, "bash", back.Port(), request)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		if got, _ := io.ReadAll(out); len(got) != 0 {
			t.Errorf("the stranger was answered %q", got)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the stranger: %v", err)
		}
		return p.browse("approve")(page)
	}
	if _, err := d.Enroll(t.Context(), Enrolment{URL: p.URL, Fingerprint: p.fingerprint(), Default: true}); err != nil {
		t.Fatal(err)
	}
	who.mu.Lock()
	defer who.mu.Unlock()
	if !strings.Contains(strings.Join(who.said, "\n"), "it belongs to user id 65534") {
		t.Errorf("the person was told %q", who.said)
	}
}
