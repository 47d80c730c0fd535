//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sft/e2e/lab"
	"sft/e2e/stage"
	"sft/internal/audit"
)

const red = "#602040"

// shadowServer is a server whose RDP service is FreeRDP's.
func shadowServer(s *stage.Stage, name, project string, mode lab.ShadowMode) (*stage.Server, *lab.Shadow) {
	v := s.Server(name, project, "", "BrokeredLoginGracePeriodInSeconds: 2\nRDPCertificateFile: "+lab.ShadowCertificate+"\n")
	return v, v.StartShadow(red, mode)
}

// A door is what "sft rdp --no-launch" opens.
type door struct {
	*lab.Process
	lab.SignIn
}

var doors atomic.Int32 // opened so far: each has a log of its own

// open runs "sft rdp --no-launch" until it has said where to go, and as whom.
func open(t *testing.T, s *stage.Stage, desk *stage.Desk, args ...string) door {
	t.Helper()
	fifo := strings.TrimSpace(desk.Must("ann", "sh", "-ec", "d=$(mktemp -d); mkfifo $d/pw; echo $d/pw"))
	cmd := desk.Command(t.Context(), "ann", "bash", append([]string{"-c", `exec sft --debug rdp --no-launch --json --password-fd 5 "$@" 5>` + fifo, "sft"}, args...)...)
	cmd.Env = append(cmd.Env, desk.Env...)
	d := door{Process: desk.Host.Start(fmt.Sprintf("no-launch-%d", doors.Add(1)), cmd)}
	d.Password = strings.TrimSpace(desk.Must("ann", "cat", fifo))
	s.Secret(d.Password)
	s.Wait("where to go", 20*time.Second, func() bool {
		var said struct {
			Address     string
			User        string `json:"user_name"`
			Fingerprint string `json:"certificate_sha256"`
		}
		out := d.Output()
		i := strings.Index(out, "{")
		if i < 0 || json.NewDecoder(strings.NewReader(out[i:])).Decode(&said) != nil {
			return false
		}
		d.Address, d.User, d.Fingerprint = said.Address, said.User, said.Fingerprint
		return true
	})
	return d
}

// see waits for a desktop of a colour, and takes its picture, or that of what
// is there instead. FreeRDP's server is near the colour only.
func see(t *testing.T, desk *stage.Desk, colour, picture string) {
	t.Helper()
	defer desk.Screenshot(filepath.Join(pictures(t), picture+".png"))
	desk.WaitPixelNear(900, 600, colour)
}

// Each RDP client is signed in on each kind of RDP server, by the one command:
// no prompt, the desktop, and the account shut afterwards. A client that knows
// TLS alone in front of a server that knows NLA alone is among them.
func TestServersAndClients(t *testing.T) {
	s, web, desk := world(t)
	nla, _ := shadowServer(s, "nla01", "prod", lab.ShadowNLA)
	both, _ := shadowServer(s, "both01", "prod", lab.ShadowBoth)
	for _, v := range []*stage.Server{web, nla, both} {
		colour := red
		if v == web {
			colour = blue
		}
		t.Run(v.Name()+"/sft rdp", func(t *testing.T) {
			p := desk.StartSft("sft-rdp", "--debug", "rdp", "--size", "1024x700", v.Name())
			see(t, desk, colour, "signin-"+v.Name())
			p.Stop()
			atRest(s, v, "ann", 15*time.Second)
		})
		for name, start := range map[string]func(lab.SignIn) *lab.Process{
			"xfreerdp, NLA": func(in lab.SignIn) *lab.Process {
				in.Security = lab.SecurityNLA
				return desk.StartXfreerdp("ann", in)
			},
			"xfreerdp, TLS": func(in lab.SignIn) *lab.Process {
				in.Security = lab.SecurityTLS
				return desk.StartXfreerdp("ann", in)
			},
			"Remmina": func(in lab.SignIn) *lab.Process {
				in.Security = lab.SecurityNLA
				return desk.StartRemmina("ann", in)
			},
			"rdesktop": func(in lab.SignIn) *lab.Process { return desk.StartRdesktop("ann", in) },
		} {
			t.Run(v.Name()+"/"+name, func(t *testing.T) {
				d := open(t, s, desk, v.Name())
				client := start(d.SignIn)
				see(t, desk, colour, "signin-"+v.Name()+"-"+strings.ReplaceAll(name, ", ", "-"))
				client.Stop()
				d.Stop()
				atRest(s, v, "ann", 15*time.Second)
			})
		}
	}
}

// What an RDP service must not be like, and what is said of it. Nothing is
// opened, or what was opened is shut.
func TestServiceThatCannotBeUsed(t *testing.T) {
	s, web, desk := world(t)
	old := s.Server("old01", "prod", "", "")
	old.StartXRDPWithoutTLS(blue)
	s.Server("down01", "prod", "", "")
	liar, _ := shadowServer(s, "liar01", "prod", lab.ShadowNLA)
	liar.Must("", "cp", "/usr/local/libexec/lab/chpasswd", "/usr/sbin/chpasswd") // from now on its accounts are not the host's
	odd := s.Server("odd01", "prod", "", "")
	l, err := odd.Listen(lab.XRDPAddress)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // says something that is not RDP
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func(c net.Conn) {
				defer c.Close()
				b := make([]byte, 100)
				_, _ = c.Read(b)
				_, _ = c.Write([]byte("220 mail.example ESMTP\r\n"))
			}(c)
		}
	}()
	tests := []struct {
		server string
		status int
		say    string
	}{
		{"old01", 6, "standard RDP security alone"},
		{"down01", 6, "the RDP service of the host cannot be used"},
		{"liar01", 1, "the RDP service did not take the password that was set a moment ago"},
		{"odd01", 6, "what answers in the RDP service's place does not speak RDP"},
	}
	for _, tt := range tests {
		t.Run(tt.server, func(t *testing.T) {
			out, errs, status := desk.Sft(t.Context(), "rdp", tt.server)
			if status != tt.status || out != "" || !strings.Contains(errs, tt.say) || !strings.Contains(errs, "sft: hint: ") {
				t.Errorf("sft rdp %s = %d, %q, %q; want %d and %q", tt.server, status, out, errs, tt.status, tt.say)
			}
			t.Log(errs)
		})
	}
	for _, v := range []*stage.Server{old, liar, odd} {
		atRest(s, v, "ann", 5*time.Second)
	}
	s.WaitEvent("the refused password", func(e audit.Event) bool {
		return e.Kind == audit.SessionRefused && e.Target == "liar01" && e.Detail["code"] == "rdp_sign_in_refused"
	})
	// Another process on the port, with another certificate, is sent nothing:
	// not even the name of the account.
	web.Must("", "sh", "-ec", `openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=other -keyout /etc/xrdp/key.pem.new -out /tmp/other.pem
		install -o xrdp -m 600 /etc/xrdp/key.pem.new /etc/xrdp/other-key.pem; install -m 644 /tmp/other.pem /etc/xrdp/other-cert.pem`)
	web.Write("/etc/sft/sftd.yaml", 0o644, []byte("BrokeredLoginGracePeriodInSeconds: 2\nRDPCertificateFile: /etc/xrdp/other-cert.pem\n"))
	web.Agent.Stop()
	web.Start()
	web.WaitStatus("sftd serves again", func(st map[string]any) bool {
		b, _ := st["broker"].(map[string]any)
		return b["pid"] != nil
	})
	_, errs, status := desk.Sft(t.Context(), "rdp", "web01")
	if status != 6 || !strings.Contains(errs, "does not have the certificate that the service is configured with") {
		t.Errorf("another certificate: %d, %q", status, errs)
	}
	if log, err := web.Read(lab.XRDPLog); err == nil && strings.Contains(string(log), "ann") {
		t.Errorf("the process on the port was told of ann:\n%s", log)
	}
	atRest(s, web, "ann", 5*time.Second)
}

// A wrong launch secret opens nothing: the client is refused, what was opened
// is undone at once, and the platform hears of it, as the client's claim.
func TestWrongLaunchSecret(t *testing.T) {
	s, web, desk := world(t)
	for _, security := range []lab.Security{lab.SecurityNLA, lab.SecurityTLS} {
		t.Run(string(security), func(t *testing.T) {
			d := open(t, s, desk, "web01")
			wrong := d.SignIn
			wrong.Security, wrong.Password = security, "not the secret"
			client := desk.StartXfreerdp("ann", wrong)
			if status := client.Wait(); status == 0 {
				t.Error("a wrong secret was taken")
			}
			s.Wait("sft says so", 10*time.Second, func() bool {
				return strings.Contains(d.Output(), "it did not show the secret of this launch")
			})
			atRest(s, web, "ann", 5*time.Second)
			s.WaitEvent("the claim", func(e audit.Event) bool {
				return e.Kind == audit.SessionRefused && e.Detail["claimed_by"] == "client" && e.Detail["why"] == "launch_secret"
			})
			// The right one still works.
			right := d.SignIn
			right.Security = security
			client = desk.StartXfreerdp("ann", right)
			desk.WaitPixel(900, 600, blue)
			client.Stop()
			d.Stop()
			atRest(s, web, "ann", 15*time.Second)
		})
	}
	if log, err := web.Read(lab.XRDPLog); err != nil || strings.Count(string(log), "login successful for user ann") < 1 {
		t.Errorf("xrdp's log: %v", err)
	}
}

// The connection is cut in the middle: the RDP client reconnects by itself,
// with the same launch secret, to an account that has another password.
func TestReconnect(t *testing.T) {
	s, web, desk := world(t)
	p := desktop(desk, "web01")
	// By now the password of the first sign-in is no longer good.
	first := shadow(web, "ann")
	s.Wait("the password is replaced", 15*time.Second, func() bool {
		now := shadow(web, "ann")
		return now != first && now != "*"
	})
	pid := web.Status()["broker"].(map[string]any)["pid"]
	web.Must("", "kill", "-9", fmt.Sprint(pid))
	logins := func() int {
		log, _ := web.Read(lab.XRDPLog)
		return strings.Count(string(log), "login successful for user ann")
	}
	before := logins()
	s.Wait("the RDP client is back", 30*time.Second, func() bool { return logins() > before })
	desk.WaitPixel(1100, 700, blue)
	desk.WaitStill(500 * time.Millisecond)
	select {
	case <-p.Done():
		t.Errorf("sft has ended:\n%s", p.Output())
	default:
	}
	p.Stop()
	atRest(s, web, "ann", 15*time.Second)
}

// A server that lets people wait before they are signed in: the password is
// good until they are, however long the grace is.
func TestSlowSignIn(t *testing.T) {
	_, web, desk := world(t)
	web.Must("", "sh", "-ec", `sed -i '1i auth optional pam_exec.so quiet /usr/local/sbin/notice' /etc/pam.d/xrdp-sesman
		printf '#!/bin/sh\nsleep 8\n' >/usr/local/sbin/notice; chmod 755 /usr/local/sbin/notice`)
	began := time.Now()
	p := desktop(desk, "web01")
	if took := time.Since(began); took < 8*time.Second {
		t.Errorf("the sign-in did not wait: %v", took)
	}
	p.Stop()
}

// Two people, and two sessions of one of them, at once.
func TestTwoUsersAtOnce(t *testing.T) {
	s, web, desk := world(t)
	s.Person("bob", "Bob Example", "prod")
	other := s.Desk("bobs", "bob")
	other.EnrollQuickly()
	p := desktop(desk, "web01")
	q := desktop(other, "web01")
	n := 0
	for _, e := range s.Events() {
		if e.Kind == audit.AccountEnabled {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d accounts were enabled, want 2", n)
	}
	p.Stop()
	atRest(s, web, "ann", 15*time.Second)
	if got := shadow(web, "bob"); got == "*" {
		t.Error("bob's account was shut with ann's")
	}
	other.WaitPixel(1100, 700, blue)
	q.Stop()
	atRest(s, web, "bob", 15*time.Second)
}

// The old way still works, where it is asked for.
func TestDeliver(t *testing.T) {
	s, web, desk := world(t)
	web.Write("/etc/sft/sftd.yaml", 0o644, []byte("BrokeredLoginGracePeriodInSeconds: 2\nRDPSignIn: deliver\n"))
	web.Agent.Stop()
	web.Start()
	web.WaitStatus("sftd serves again", func(st map[string]any) bool {
		b, _ := st["broker"].(map[string]any)
		return b["pid"] != nil
	})
	p := desktop(desk, "web01")
	p.Stop()
	atRest(s, web, "ann", 15*time.Second)
	d := open(t, s, desk, "web01")
	if len(d.Password) != 64 {
		t.Errorf("the password has %d characters", len(d.Password))
	}
	in := d.SignIn
	in.Security = lab.SecurityTLS
	client := desk.StartXfreerdp("ann", in) // which signs in to xrdp itself
	desk.WaitPixel(900, 600, blue)
	client.Stop()
	d.Stop()
	atRest(s, web, "ann", 10*time.Second)
}
