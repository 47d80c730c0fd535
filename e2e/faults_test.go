//go:build linux

package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf16"

	"sft/internal/audit"
)

// Each process is killed in the middle of a session. Afterwards the account
// is shut, the password is worth nothing, no event is lost, and a new session
// works.
func TestKilled(t *testing.T) {
	t.Run("broker", func(t *testing.T) {
		s, web, desk := world(t)
		p := desktop(desk, "web01")
		pid := web.Status()["broker"].(map[string]any)["pid"]
		web.Must("", "kill", "-9", fmt.Sprint(pid))
		p.Stop()
		atRest(s, web, "ann", 15*time.Second)
		s.WaitEvent("session.end", func(e audit.Event) bool { return e.Kind == audit.SessionEnd })
		web.WaitStatus("another broker", func(st map[string]any) bool {
			b, _ := st["broker"].(map[string]any)
			return b["pid"] != nil && b["pid"] != pid
		})
		desktop(desk, "web01")
	})
	t.Run("monitor", func(t *testing.T) {
		s, web, desk := world(t)
		p := desktop(desk, "web01")
		start := s.WaitEvent("session.start", func(e audit.Event) bool { return e.Kind == audit.SessionStart })
		web.Must("", "pkill", "-9", "-x", "sftd") // the broker's name is the same: it would die of it anyway
		p.Stop()
		web.Start()
		atRest(s, web, "ann", 10*time.Second)
		s.WaitEvent("the end of the very session", func(e audit.Event) bool {
			return e.Kind == audit.SessionEnd && e.Session == start.Session && e.Detail["why"] == "sftd ended"
		})
		web.WaitStatus("a broker", func(st map[string]any) bool {
			b, _ := st["broker"].(map[string]any)
			return b["pid"] != nil && st["problems"] == nil
		})
		desktop(desk, "web01")
		for _, e := range s.Events() {
			if e.Kind == audit.EventsLost {
				t.Errorf("events were lost: %+v", e)
			}
		}
	})
	t.Run("platform", func(t *testing.T) {
		s, web, desk := world(t)
		p := desktop(desk, "web01")
		s.PlatformProcess().Kill()
		select {
		case <-p.Done():
			t.Fatalf("the session ended with the platform:\n%s", p.Output())
		case <-time.After(2 * time.Second):
		}
		_, errs, status := desk.Sft(t.Context(), "rdp", "web01")
		if status != 6 || !strings.Contains(errs, "hint:") {
			t.Errorf("without the platform, sft rdp = %d, %q; want 6", status, errs)
		}
		p.Stop() // its end is spooled
		atRest(s, web, "ann", 10*time.Second)
		s.StartPlatform()
		s.WaitEvent("session.end, told later", func(e audit.Event) bool { return e.Kind == audit.SessionEnd })
		s.Leave("ann", "prod") // the agent hears again
		s.Wait("ann has lost access", 30*time.Second, func() bool {
			out, _ := web.Run("", "chage", "-l", "ann")
			return strings.Contains(out, "1970")
		})
	})
	t.Run("client", func(t *testing.T) {
		s, web, desk := world(t)
		p := desktop(desk, "web01")
		p.Kill()
		desk.Run("", "pkill", "-9", "-u", "ann")
		atRest(s, web, "ann", 15*time.Second)
		s.WaitEvent("session.end", func(e audit.Event) bool { return e.Kind == audit.SessionEnd })
		desktop(desk, "web01")
		if out, _ := desk.Run("ann", "sh", "-c", "ls -A ~/.local/state/ScaleFT/run 2>/dev/null | wc -l"); strings.TrimSpace(out) > "1" {
			t.Errorf("what the killed sft left is still there: %s", out)
		}
	})
}

// Each bad enrollment token has its own clear line, is tried again, and leaves
// nothing half-written; the good one works at once.
func TestTokens(t *testing.T) {
	s := newStage(t)
	s.Project("prod", false)
	good := s.Token("prod")
	deleted := s.Token("prod")
	var tokens struct{ List []struct{ ID string } }
	s.Do("GET", "/projects/prod/server_enrollment_tokens", nil, &tokens)
	s.Do("DELETE", "/projects/prod/server_enrollment_tokens/"+tokens.List[1].ID, nil, nil)
	utf16le := func(v string) []byte {
		b := []byte{0xff, 0xfe}
		for _, u := range utf16.Encode([]rune(v)) {
			b = append(b, byte(u), byte(u>>8))
		}
		return b
	}
	other := func(change func(string) string) []byte {
		raw, err := base64.StdEncoding.DecodeString(good)
		if err != nil {
			t.Fatal(err)
		}
		return []byte(base64.StdEncoding.EncodeToString([]byte(change(string(raw)))))
	}
	web := s.Server("web01", "", "", "")
	put := func(b []byte) {
		web.Write("/var/lib/sftd/enrollment.token", 0o600, b)
	}
	tests := []struct {
		name string
		file []byte
		say  string
	}{
		{"empty", nil, "the enrollment token file is empty"},
		{"blank", []byte(" \r\n\t"), "the enrollment token file is empty"},
		{"garbage", []byte("\x00\x01\xffgarbage"), "holds no enrollment token"},
		{"too long", []byte(strings.Repeat("A", 20000)), "the enrollment token file is too long"},
		{"unknown", other(func(v string) string { return strings.Replace(v, `"s":"`, `"s":"x`, 1) }), "unknown, deleted, expired or used up"},
		{"deleted", []byte(deleted), "unknown, deleted, expired or used up"},
		{"of another platform's CA", other(func(v string) string {
			i := strings.Index(v, `"f":"`) + 5
			return v[:i] + strings.Repeat("0", 64) + v[i+64:]
		}), "does not show the CA with this fingerprint"},
		{"of a platform that is down", other(func(v string) string { return strings.Replace(v, ":8443", ":8444", 1) }), "no answer from the platform"},
	}
	for _, tt := range tests {
		put(tt.file)
		s.Wait("sftd status tells of the token that is "+tt.name, 30*time.Second, func() bool {
			out, _ := web.Run("", "/usr/local/sbin/sftd", "status", "--json")
			return strings.Contains(out, tt.say)
		})
		if _, err := web.Read("/var/lib/sftd/device.token"); err == nil {
			t.Fatalf("%s: the host has an identity", tt.name)
		}
		if _, err := web.Read("/var/lib/sftd/enrollment.token"); err != nil {
			t.Errorf("%s: the token file is gone", tt.name)
		}
	}
	// As PowerShell writes it, with its line end.
	put(utf16le(good + "\r\n"))
	web.WaitStatus("the host is enrolled", func(st map[string]any) bool { return st["server_id"] != nil })
	var list struct{ List []struct{ Hostname string } }
	s.Do("GET", "/servers", nil, &list)
	if len(list.List) != 1 {
		t.Errorf("the platform has %d servers", len(list.List))
	}
}

// A local account that sftd did not make is nobody's but the host's: it is not
// touched, its namesake is refused and told why, and the platform knows.
func TestAccountConflict(t *testing.T) {
	s := newStage(t)
	s.Project("prod", false)
	s.Person("ann", "Ann Example", "prod")
	web := s.Server("web01", "", blue, "")
	web.AddUser("ann", "her own")
	before := web.Must("", "sh", "-c", "getent passwd ann; getent shadow ann; id ann")
	web.Write("/var/lib/sftd/enrollment.token", 0o600, []byte(s.Token("prod")))
	s.WaitEvent("account.conflict", func(e audit.Event) bool {
		return e.Kind == audit.AccountConflict && e.Detail["login"] == "ann"
	})
	desk := s.Desk("laptop", "ann")
	desk.EnrollQuickly()
	web.WaitStatus("a broker", func(st map[string]any) bool {
		b, _ := st["broker"].(map[string]any)
		return b["pid"] != nil
	})
	out, errs, status := desk.Sft(t.Context(), "rdp", "web01")
	if status != 4 || out != "" || !strings.Contains(errs, "hint:") {
		t.Errorf("sft rdp = %d, %q, %q; want 4 and a hint", status, out, errs)
	}
	if after := web.Must("", "sh", "-c", "getent passwd ann; getent shadow ann; id ann"); after != before {
		t.Errorf("the account has changed:\n%s\n%s", before, after)
	}
	st, _ := web.Run("", "/usr/local/sbin/sftd", "status")
	if !strings.Contains(st, "ann") {
		t.Errorf("sftd status does not tell:\n%s", st)
	}
	var list struct{ List []struct{ Problems []string } }
	s.Wait("the platform's record tells too", 10*time.Second, func() bool {
		s.Do("GET", "/servers", nil, &list)
		return len(list.List) == 1 && strings.Contains(strings.Join(list.List[0].Problems, " "), "account ann")
	})
}

// Two hundred peers that connect and say nothing keep nobody out.
func TestSilentPeers(t *testing.T) {
	_, web, desk := world(t)
	for range 200 {
		c, err := net.DialTimeout("tcp", web.IP()+":4421", 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	desktop(desk, "web01")
}

// The agent's state folder is full: who is let in is told on disk first, so
// nobody is; afterwards all goes on.
func TestDiskFull(t *testing.T) {
	s := newStage(t)
	s.Project("prod", false)
	s.Person("ann", "Ann Example", "prod")
	web := s.Server("web01", "", blue, "BrokeredLoginGracePeriodInSeconds: 2\n")
	web.Agent.Stop()
	web.Must("", "install", "-d", "-m", "700", "/var/lib/sftd") // it may not have come to that
	web.Must("", "mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs", "/var/lib/sftd")
	web.Write("/var/lib/sftd/enrollment.token", 0o600, []byte(s.Token("prod")))
	web.Start()
	web.WaitStatus("a broker", func(st map[string]any) bool {
		b, _ := st["broker"].(map[string]any)
		return b["pid"] != nil
	})
	desk := s.Desk("laptop", "ann")
	desk.EnrollQuickly()
	web.Run("", "sh", "-c", "dd if=/dev/zero of=/var/lib/sftd/fill bs=1k 2>/dev/null; :")
	out, errs, status := desk.Sft(t.Context(), "rdp", "web01")
	if status == 0 || out != "" || !strings.Contains(errs, "sft: ") {
		t.Errorf("sft rdp = %d, %q, %q; want a refusal", status, out, errs)
	}
	atRest(s, web, "ann", 10*time.Second)
	web.Must("", "rm", "/var/lib/sftd/fill")
	desktop(desk, "web01")
	for _, e := range s.Events() {
		if e.Kind == audit.EventsLost {
			t.Errorf("events were lost: %+v", e)
		}
	}
}

// Nothing secret is written down anywhere: not in logs at debug level, argv,
// environments or files, of client, agent or platform, but in the places that
// are made for it.
func TestCanaries(t *testing.T) {
	s, web, desk := world(t)
	p := desktop(desk, "web01")
	// The password that is in use now, out of the account's own sign-in: it is
	// in sft's memory alone, so it is caught as it was delivered.
	desk.Must("ann", "mkfifo", "/tmp/pw")
	cmd := desk.Command(context.Background(), "ann", "bash", "-c", "exec sft --debug rdp --no-launch --password-fd 5 web01 5>/tmp/pw")
	cmd.Env = append(cmd.Env, desk.Env...)
	q := desk.Start("canary", cmd)
	s.Secret(strings.TrimSpace(desk.Must("ann", "cat", "/tmp/pw")))
	s.Secret(strings.TrimSpace(strings.Split(s.Token("prod"), "=")[0])[8:40])
	for _, h := range []interface {
		Name() string
		Must(user, name string, args ...string) string
		Write(path string, mode os.FileMode, data []byte)
	}{s.Platform, web, desk} {
		h.Write("/canaries", 0o600, []byte(strings.Join(s.Secrets(), "\n")+"\n"))
		// sft-wine is the machine's own Debian for Windows programs, with the
		// descriptions of its packages: some sentences are everybody's.
		out := h.Must("", "sh", "-c", `
			grep -rlaF -f /canaries --exclude=canaries --exclude-dir=sft-wine /etc /home /root /run /var /tmp 2>/dev/null
			for p in /proc/[0-9]*; do
				[ $p = /proc/$$ ] && continue
				tr '\0' '\n' <$p/cmdline 2>/dev/null | grep -qaF -f /canaries && echo $p/cmdline
				tr '\0' '\n' <$p/environ 2>/dev/null | grep -qaF -f /canaries && echo $p/environ
			done; :`)
		if strings.TrimSpace(out) != "" {
			t.Errorf("on %s, secrets are in:\n%s", h.Name(), out)
		}
	}
	logs, err := filepath.Glob(filepath.Join(s.Lab.Dir(), "*"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("there are no logs: %v", err)
	}
	for _, f := range logs {
		b, err := os.ReadFile(f)
		if err != nil || strings.Contains(f, "platform-init") {
			continue // what init prints is its answer
		}
		for i, v := range s.Secrets() {
			if strings.Contains(string(b), v) {
				t.Errorf("secret %d is in %s", i, filepath.Base(f))
			}
		}
	}
	q.Signal(syscall.SIGTERM)
	p.Stop()
}
