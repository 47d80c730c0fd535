//go:build linux

package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sft/e2e/lab"
	"sft/e2e/stage"
	"sft/internal/audit"
)

const blue = "#204060"

// pictures is where screenshots go, for people to look at.
func pictures(t *testing.T) string { return stage.Pictures(t) }

// world is what most tests need: project prod with server web01, and ann with
// access and an enrolled machine.
func world(t *testing.T) (*stage.Stage, *stage.Server, *stage.Desk) {
	t.Helper()
	return worldOn(newStage(t))
}

func worldOn(s *stage.Stage) (*stage.Stage, *stage.Server, *stage.Desk) {
	s.Project("prod", false)
	s.Person("ann", "Ann Example", "prod")
	web := s.Server("web01", "prod", blue, "BrokeredLoginGracePeriodInSeconds: 2\n")
	desk := s.Desk("laptop", "ann")
	desk.EnrollQuickly()
	return s, web, desk
}

// desktop runs sft rdp on the desk until the desktop is there.
func desktop(desk *stage.Desk, args ...string) *lab.Process {
	p := desk.StartSft("sft-rdp", append([]string{"rdp", "--size", "1200x800"}, args...)...)
	desk.WaitPixel(1100, 700, blue)
	return p
}

// shadow is the password field of an account: "*" at rest.
func shadow(v *stage.Server, login string) string {
	out, _ := v.Run("", "getent", "shadow", login)
	if f := strings.Split(out, ":"); len(f) > 1 {
		return f[1]
	}
	return "no account"
}

// atRest waits until nothing matches an account's password.
func atRest(s *stage.Stage, v *stage.Server, login string, atMost time.Duration) {
	s.Wait(login+" is at rest on "+v.Name(), atMost, func() bool { return shadow(v, login) == "*" })
}

// One command to a desktop, in a browser-enrolled client, with a real RDP
// client: proven by the RDP server's log, by a file of the session, and by
// pixels.
func TestDesktop(t *testing.T) {
	s, web, desk := worldOn(slowStage(t))
	if got := shadow(web, "ann"); got != "*" {
		t.Fatalf("before, ann's password is %q", got)
	}
	p := desktop(desk, "web01")
	desk.WaitStill(500 * time.Millisecond)
	desk.Screenshot(filepath.Join(pictures(t), "desktop.png"))
	if got := shadow(web, "ann"); !strings.HasPrefix(got, "$") {
		t.Errorf("while connected, ann's password is %q", got)
	}
	log, err := web.Read(lab.XRDPLog)
	if err != nil || !strings.Contains(string(log), "login successful for user ann") {
		t.Errorf("xrdp's log does not tell of ann: %v", err)
	}
	if _, err := web.Read("/home/ann/" + lab.SessionStarted); err != nil {
		t.Errorf("the session wrote nothing: %v", err)
	}
	// The RDP service listens on loopback alone: the one way in is the broker.
	if out, err := desk.Run("ann", "bash", "-c", "exec 3<>/dev/tcp/"+web.IP()+"/3389"); err == nil {
		t.Errorf("port 3389 is open to others: %s", out)
	}
	start := s.WaitEvent("session.start", func(e audit.Event) bool { return e.Kind == audit.SessionStart })
	if start.Detail["user"] != "ann" || start.Target != "web01" {
		t.Errorf("session.start tells %+v", start)
	}
	p.Stop()
	if got := p.Wait(); got != 0 && got != 128+15 {
		t.Errorf("sft ended with %d:\n%s", got, p.Output())
	}
	atRest(s, web, "ann", 10*time.Second)
	end := s.WaitEvent("session.end", func(e audit.Event) bool { return e.Kind == audit.SessionEnd && e.Session == start.Session })
	if end.Detail["why"] == "" || end.Detail["bytes_out"] == "0" || end.Detail["bytes_in"] == "0" {
		t.Errorf("session.end tells %+v", end)
	}
	for _, kind := range []audit.Kind{audit.UserCredsIssue, audit.AccountEnabled, audit.AccountDisabled, audit.ClientEnroll, audit.ServerEnroll} {
		s.WaitEvent(string(kind), func(e audit.Event) bool { return e.Kind == kind })
	}
	// Nothing that sft made is left on the person's machine.
	if out, _ := desk.Run("ann", "sh", "-c", "find / -xdev -newer /usr/local/bin/sft -user ann -type f 2>/dev/null | grep -v -e /proc -e '.config/\\|.cache/\\|.pki/' "); strings.Contains(out, ".rdp") || strings.Contains(out, "run/") {
		t.Errorf("files are left:\n%s", out)
	}
}

// The person logs off: the RDP client ends by itself, and sft with it.
func TestLogoffEndsSft(t *testing.T) {
	_, web, desk := world(t)
	p := desktop(desk, "web01")
	web.Must("", "pkill", "-u", "ann", "openbox")
	select {
	case <-p.Done():
	case <-time.After(20 * time.Second):
		t.Fatalf("sft goes on:\n%s", p.Output())
	}
	if got := p.Wait(); got != 0 {
		t.Errorf("sft ended with %d after a session:\n%s", got, p.Output())
	}
}

// Whoever loses access loses it now: streams, account and the person's
// processes on the server end within 5 seconds. Who is still allowed is not
// disturbed.
func TestAccessTakenWhileConnected(t *testing.T) {
	s, web, desk := world(t)
	s.Person("bob", "Bob Example", "prod")
	other := s.Desk("desktop", "bob")
	other.EnrollQuickly()
	p, q := desktop(desk, "web01"), desktop(other, "web01")
	if len(web.Processes("ann")) == 0 {
		t.Fatal("ann runs nothing")
	}
	s.Leave("ann", "prod")
	began := time.Now()
	s.Wait("ann's sft has ended, and nothing of hers runs", 5*time.Second, func() bool {
		select {
		case <-p.Done():
			return len(web.Processes("ann")) == 0 && shadow(web, "ann") == "*"
		default:
			return false
		}
	})
	t.Logf("ended after %v", time.Since(began))
	if out := p.Output(); !strings.Contains(out, "ended") && !strings.Contains(out, "closed") {
		t.Errorf("sft does not say what happened:\n%s", out)
	}
	e := s.WaitEvent("session.end of ann", func(e audit.Event) bool { return e.Kind == audit.SessionEnd && e.Detail["user"] == "ann" })
	if !strings.Contains(e.Detail["why"], "access was taken away") {
		t.Errorf("session.end tells %+v", e)
	}
	select {
	case <-q.Done():
		t.Errorf("bob's sft has ended too:\n%s", q.Output())
	default:
	}
	if len(web.Processes("bob")) == 0 {
		t.Error("bob's session has ended too")
	}
	// And she does not come back.
	out, errs, status := desk.Sft(t.Context(), "rdp", "web01")
	if status != 4 || out != "" || !strings.Contains(errs, "hint:") {
		t.Errorf("sft rdp = %d, %q, %q; want 4 and a hint", status, out, errs)
	}
}

// A deleted client's sessions end; other clients of the person go on.
func TestClientDeletedWhileConnected(t *testing.T) {
	s, _, desk := world(t)
	p := desktop(desk, "web01")
	var list struct{ List []struct{ ID string } }
	s.Do("GET", "/clients?all=true", nil, &list)
	if len(list.List) != 1 {
		t.Fatalf("there are %d clients", len(list.List))
	}
	s.Do("DELETE", "/clients/"+list.List[0].ID, nil, nil)
	s.Wait("sft has ended", 5*time.Second, func() bool {
		select {
		case <-p.Done():
			return true
		default:
			return false
		}
	})
	_, errs, status := desk.Sft(t.Context(), "list-servers")
	if status != 3 || !strings.Contains(errs, "sft enroll") {
		t.Errorf("sft list-servers = %d, %q; want 3, and to enrol again", status, errs)
	}
}

// Two sessions of one person at once share the account: each sign-in has a
// password that works, once the one before it was replaced, and the account is
// shut when the last has ended.
func TestTwoSessionsOfOneUser(t *testing.T) {
	s, web, desk := worldOn(slowStage(t))
	p := desktop(desk, "web01")
	pw := shadow(web, "ann")
	second := s.Desk("tablet", "ann")
	second.EnrollQuickly()
	// A sign-in before that would share it.
	s.Wait("the password of the first sign-in is replaced", 30*time.Second, func() bool { return shadow(web, "ann") != pw })
	pw = shadow(web, "ann")
	q := desktop(second, "web01")
	if got := shadow(web, "ann"); got == pw {
		t.Error("the second sign-in has no password of its own")
	}
	p.Stop()
	s.WaitEvent("the end of the first session", func(e audit.Event) bool { return e.Kind == audit.SessionEnd })
	if got := shadow(web, "ann"); got == "*" { // the event comes after the grace
		t.Error("the account was shut under the second session")
	}
	second.WaitPixel(1100, 700, blue)
	q.Stop()
	atRest(s, web, "ann", 10*time.Second)
	n := 0
	s.Wait("two sessions have ended", 10*time.Second, func() bool {
		n = 0
		for _, e := range s.Events() {
			if e.Kind == audit.SessionEnd {
				n++
			}
		}
		return n == 2
	})
}

// --no-launch gives a loopback port to a client of the person's choice, and
// the launch secret to nobody but the descriptor that was asked for.
func TestNoLaunch(t *testing.T) {
	s, web, desk := world(t)
	desk.Must("ann", "mkfifo", "/tmp/pw")
	cmd := desk.Command(t.Context(), "ann", "bash", "-c", "exec sft rdp --no-launch --password-fd 5 web01 5>/tmp/pw")
	cmd.Env = append(cmd.Env, desk.Env...)
	p := desk.Start("no-launch", cmd)
	pw := strings.TrimSpace(desk.Must("ann", "cat", "/tmp/pw"))
	if len(pw) != 26 { // of the launch, not of the account
		t.Errorf("the secret has %d characters", len(pw))
	}
	s.Secret(pw)
	var addr, user string
	s.Wait("address and user on standard output", 10*time.Second, func() bool {
		for _, f := range strings.Fields(p.Output()) {
			if strings.HasPrefix(f, "127.0.0.1:") {
				addr = f
			}
			if f == "ann" {
				user = f
			}
		}
		return addr != "" && user != ""
	})
	if strings.Contains(p.Output(), pw) {
		t.Error("the secret is in the output")
	}
	// Another person of this machine does not get in.
	desk.AddUser("eve", "")
	if out, err := desk.Run("eve", "timeout", "5", "bash", "-c", "exec 3<>/dev/tcp/"+strings.Replace(addr, ":", "/", 1)+"; printf '\\3\\0\\0\\23\\16\\340\\0\\0\\0\\0\\0\\1\\0\\10\\0\\3\\0\\0\\0' >&3; head -c 1 <&3 | wc -c"); err == nil && strings.TrimSpace(out) != "0" {
		t.Errorf("another user of the machine is answered: %q", out)
	}
	// The person's own client does.
	x := desk.Command(t.Context(), "ann", "bash", "-c", "xfreerdp /v:"+addr+" /u:ann /from-stdin:force /cert:ignore /size:1200x800")
	x.Env = append(x.Env, desk.Env...)
	x.Stdin = strings.NewReader(pw + "\n")
	client := desk.Start("xfreerdp", x)
	desk.WaitPixel(1100, 700, blue)
	client.Stop()
	p.Stop()
	atRest(s, web, "ann", 10*time.Second)
}
