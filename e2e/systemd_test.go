//go:build linux

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sft"
	"sft/e2e/lab"
	"sft/e2e/stage"
	"sft/internal/api"
	"sft/internal/audit"
)

// unitServer makes a stage with a server under systemd: ann may use it, eve
// is an administrator of it.
func unitServer(t *testing.T) (*stage.Stage, *stage.Server) {
	t.Helper()
	s := newStage(t)
	s.Project("prod", false)
	s.Do("POST", "/groups", map[string]any{"name": "admins"}, nil)
	s.Do("POST", "/projects/prod/groups", map[string]any{"name": "admins", "server_access": true, "server_admin": true}, nil)
	s.Person("ann", "Ann Example", "prod")
	s.Person("eve", "Eve Example", "admins")
	return s, s.SystemdServer("web01", "prod", "..")
}

// password is what /etc/shadow has for a login: "*" at rest.
func password(h *lab.Host, login string) string {
	out, _ := h.Run("", "getent", "shadow", login)
	if f := strings.Split(out, ":"); len(f) > 1 {
		return f[1]
	}
	return "none"
}

// sandbox runs a script under every restriction of a unit.
func sandbox(h *lab.Host, unit, script string) (string, error) {
	b, err := h.Read("/etc/systemd/system/" + unit + ".service")
	if err != nil {
		return "", err
	}
	own := regexp.MustCompile(`(?m)^(Type|NotifyAccess|Exec\w+|Restart\w*|Before|After|Wants|EnvironmentFile|RuntimeDirectory\w*)=.*$`)
	text := own.ReplaceAllString(string(b), "")
	text = strings.Replace(text, "[Service]", "[Service]\nType=oneshot\nExecStart=/bin/sh -c '. /etc/probe.sh'\nStandardOutput=truncate:/etc/probe.out\nStandardError=inherit", 1)
	h.Write("/etc/systemd/system/probe.service", 0o644, []byte(text))
	h.Write("/etc/probe.sh", 0o755, []byte(script))
	h.Systemctl("daemon-reload")
	_, err = h.Run("", "systemctl", "start", "probe")
	out, _ := h.Read("/etc/probe.out")
	if err != nil {
		return string(out), fmt.Errorf("%w\n%s", err, h.Journal("probe"))
	}
	return string(out), nil
}

// exposure is the figure of systemd-analyze security, from 0 to 10.
func exposure(t *testing.T, h *lab.Host, unit string) float64 {
	t.Helper()
	out := h.Must("", "systemd-analyze", "--no-pager", "security", unit)
	m := regexp.MustCompile(`Overall exposure level for .*: ([\d.]+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("systemd-analyze security %s prints %q", unit, out)
	}
	t.Log(m[0])
	f, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// The agent works as a unit of a real systemd: with everything that the unit
// forbids it, every part of its work is done.
func TestUnit(t *testing.T) {
	s, web := unitServer(t)
	if got := web.Systemctl("show", "-P", "Type", "-P", "ActiveState", "-P", "SubState", "sftd"); got != "notify\nactive\nrunning\n" {
		t.Errorf("the unit is %q", got)
	}
	for unit, most := range map[string]float64{"sftd": 3.7, "sftd-lock": 1.3} {
		if got := exposure(t, web.Host, unit); got > most {
			t.Errorf("the exposure of %s is %v, and was %v before", unit, got, most)
		}
	}

	// The broker has lost all that it should, and says so.
	layers := map[string]bool{}
	b, _ := web.Status()["broker"].(map[string]any)
	list, _ := b["layers"].([]any)
	for _, l := range list {
		l := l.(map[string]any)
		layers[fmt.Sprint(l["name"])] = l["ok"] == true
	}
	for _, want := range []string{"account", "capabilities", "no_new_privs", "seccomp", "network namespace", "IPC namespace", "memory", "descriptors", "landlock"} {
		if !layers[want] {
			t.Errorf("the broker is without %s: %v", want, layers)
		}
	}
	if got := web.Must("", "ss", "-Hltn", "sport = :4421"); !strings.Contains(got, " 4096 ") {
		t.Errorf("few may wait for the broker: %s", got)
	}

	// Accounts: made, with homes, and an administrator who can use sudo.
	s.Wait("ann and eve have accounts at rest", 10*time.Second, func() bool { return password(web.Host, "ann") == "*" && password(web.Host, "eve") == "*" })
	s.WaitEvent("eve's account was made", func(e audit.Event) bool { return e.Kind == audit.AccountCreated && e.Detail["login"] == "eve" })
	if got := web.Must("", "stat", "-c", "%U %G %a", "/home/ann", "/home/ann/.bashrc"); got != "ann ann 700\nann ann 600\n" {
		t.Errorf("ann's home is %q", got)
	}
	if got := web.Must("eve", "sudo", "-n", "id", "-u"); got != "0\n" {
		t.Errorf("eve is %q with sudo", got)
	}
	if _, err := web.Run("ann", "sudo", "-n", "true"); err == nil {
		t.Error("ann may use sudo")
	}
	if got := web.Must("", "stat", "-c", "%U %a %F", "/run/sftd", "/run/sftd/service.sock"); got != "root 755 directory\nroot 666 socket\n" {
		t.Errorf("the socket for service users is %q", got)
	}
	tools(t, web)
	removal(t, s, web)
	end(t, s, web)
	web.Must("", "hostname", "web09")
	s.Wait("the platform knows the host's new name", 10*time.Second, func() bool {
		var servers struct{ List []struct{ Hostname string } }
		s.Do("GET", "/projects/prod/servers", nil, &servers)
		return len(servers.List) == 1 && servers.List[0].Hostname == "web09"
	})
	if bad := regexp.MustCompile(`(?m)^.*level=(WARN|ERROR).*$`).FindAllString(web.Journal("sftd"), -1); bad != nil {
		t.Errorf("the log has:\n%s", strings.Join(bad, "\n"))
	}
}

// tools tries, in the unit's sandbox, what the agent runs there when people
// come, and what nobody should be able to.
func tools(t *testing.T, web *stage.Server) {
	out, err := sandbox(web.Host, "sftd", `set -e
echo 'ann:aVeryLongPassw0rdThatNobodyKnows' | chpasswd
faillock --user ann --reset
loginctl --no-pager list-users >/dev/null
visudo -c
chage -E -1 -I -1 -m 0 -M -1 -- ann
touch /home/ann/probe; chown ann:ann /home/ann/probe; chmod 600 /home/ann/probe; rm /home/ann/probe
`)
	if err != nil {
		t.Errorf("a tool fails in the sandbox: %v: %s", err, out)
	}
	if got := password(web.Host, "ann"); !strings.HasPrefix(got, "$y$") {
		t.Errorf("chpasswd left %q", got)
	}
	web.Must("", "usermod", "-p", "*", "ann")
	never(t, web.Host, "sftd", map[string]string{
		"write a kernel setting":     "echo 1 > /proc/sys/kernel/sysrq",
		"change the host name":       "hostname other",
		"take a mount off":           "umount /dev/shm",
		"run a program of a home":    "cp /bin/true /home/probe; /home/probe",
		"run a program of a spool":   "cp /bin/true /var/spool/probe; /var/spool/probe",
		"run a program of its own":   "cp /bin/true /var/lib/sftd/probe; /var/lib/sftd/probe",
		"make a setuid program":      "cp /bin/true /home/probe && chmod 4755 /home/probe",
		"make a device":              "mknod /home/probe-null c 1 3",
		"make an Internet namespace": "unshare -n true",
	})
}

// never tries what nobody who has taken over a unit should be able to do,
// beside forbidden: scripts by what they do.
func never(t *testing.T, h *lab.Host, unit string, forbidden map[string]string) {
	t.Helper()
	h.Write("/root/secret", 0o644, []byte("x"))
	for what, script := range map[string]string{
		"write to /usr":          "touch /usr/probe",
		"write to /boot":         "touch /boot/probe",
		"write to /var/lib":      "touch /var/lib/probe",
		"write to /run":          "touch /run/probe",
		"see root's files":       "cat /root/secret",
		"mount":                  "mount -t tmpfs tmpfs /mnt",
		"make a mount namespace": "unshare -m true",
		"make a user namespace":  "unshare -U true",
		"make a raw socket":      "perl -MSocket -e 'socket(S, 17, SOCK_RAW, 0) or exit 1'",
		"run a program of /tmp":  "cp /bin/true /tmp/probe && /tmp/probe",
	} {
		forbidden[what] = script
	}
	if out, err := sandbox(h, unit, "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0) or exit 1' && cp /bin/true /tmp/probe && test -f /tmp/probe"); err != nil {
		t.Fatalf("the probe does not work: %v: %s", err, out)
	}
	for what, script := range forbidden {
		if out, err := sandbox(h, unit, script); err == nil {
			t.Errorf("%s may %s: %s", unit, what, out)
		}
	}
}

// removal ends a person's account, with the home. Hooks run when it is made, and
// when it is gone.
func removal(t *testing.T, s *stage.Stage, web *stage.Server) {
	hook := func(event, script string) {
		web.Write("/usr/lib/sftd/hooks/"+event+".d/10-site.sh", 0o755, []byte("#!/bin/sh\nset -e\n"+script+"\necho $SFT_HOOK_EVENT $SFT_HOOK_USERNAME >> /etc/hooked\n"))
	}
	hook("user-created", "usermod -aG games $SFT_HOOK_USERNAME")
	hook("user-deleted", "! id $SFT_HOOK_USERNAME")
	s.Person("bob", "Bob Example", "prod")
	s.Wait("bob has an account", 10*time.Second, func() bool { return password(web.Host, "bob") == "*" })
	s.Wait("the hook has made bob a member", 10*time.Second, func() bool { return strings.Contains(web.Must("", "id", "-nG", "bob"), "games") })
	web.Write("/srv/drive/precious", 0o644, []byte("of another machine"))
	web.Write("/var/mail/bob", 0o600, nil)
	web.Write("/var/spool/cron/crontabs/bob", 0o600, nil)
	web.Must("", "chown", "bob", "/var/mail/bob", "/var/spool/cron/crontabs/bob")
	web.Must("bob", "mkdir", "-p", "drive", "tmp/deep")
	web.Must("bob", "chmod", "1777", "tmp")
	web.Must("bob", "touch", "tmp/deep/file")
	web.Must("", "mount", "--bind", "/srv/drive", "/home/bob/drive")
	web.Must("", "systemd-run", "--unit=bob-desk", "--uid=bob", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
	s.Do("PUT", "/projects/prod", map[string]any{"delete_server_users": true}, nil)
	s.Leave("bob", "prod")
	s.Wait("bob and his files are gone", 30*time.Second, func() bool {
		_, err := web.Run("", "sh", "-c", "for f in /home/bob /var/mail/bob /var/spool/cron/crontabs/bob; do [ ! -e $f ] || exit 1; done")
		return err == nil && password(web.Host, "bob") == "none"
	})
	s.Wait("the hooks have run", 10*time.Second, func() bool {
		b, _ := web.Read("/etc/hooked")
		return string(b) == "user-created bob\nuser-deleted bob\n"
	})
	if _, err := web.Read("/srv/drive/precious"); err != nil {
		t.Errorf("what was mounted in the home is gone too: %v", err)
	}
	if out := web.Must("", "cat", "/proc/self/mountinfo"); strings.Contains(out, "/home/bob") {
		t.Errorf("a mount of bob's is left:\n%s", out)
	}
	if out, _ := web.Run("", "systemctl", "is-active", "bob-desk"); out == "active\n" {
		t.Error("bob's programs still run")
	}
	s.WaitEvent("the platform knows", func(e audit.Event) bool { return e.Kind == audit.AccountRemoved && e.Detail["login"] == "bob" })
	s.Do("PUT", "/projects/prod", map[string]any{"delete_server_users": false}, nil)
}

// end ends sftd in every way there is. No account is left open, and nobody's
// work ends.
func end(t *testing.T, s *stage.Stage, web *stage.Server) {
	open := func() {
		web.SetPassword("ann", "an account that somebody is using")
		if got := password(web.Host, "ann"); got == "*" {
			t.Fatal("the account could not be opened")
		}
	}
	web.Must("", "systemd-run", "--unit=ann-desk", "--uid=ann", "sleep", "1000")

	open()
	web.Systemctl("stop", "sftd")
	if got := password(web.Host, "ann"); got != "*" {
		t.Errorf("after the stop ann's password is %q", got)
	}

	// As after a power cut: before sftd starts, and without it.
	open()
	if got := web.Systemctl("is-enabled", "sftd-lock"); got != "enabled\n" {
		t.Errorf("sftd-lock is %q", got)
	}
	if got := web.Systemctl("show", "-P", "Before", "sftd-lock"); !strings.Contains(got, "systemd-user-sessions.service") || !strings.Contains(got, "sftd.service") {
		t.Errorf("sftd-lock comes before %q", got)
	}
	web.Systemctl("start", "sftd-lock")
	if got := password(web.Host, "ann"); got != "*" {
		t.Errorf("after sftd-lock ann's password is %q", got)
	}

	web.Systemctl("start", "sftd")
	web.WaitBroker()
	before := web.MainPID()
	open()
	web.Systemctl("kill", "--kill-who=main", "-s", "KILL", "sftd")
	// Before it is started again, so not by the new sftd.
	s.Wait("ExecStopPost has run", 10*time.Second, func() bool {
		return web.Systemctl("show", "-P", "SubState", "sftd") == "auto-restart\n"
	})
	if got := password(web.Host, "ann"); got != "*" {
		t.Errorf("after the kill ann's password is %q", got)
	}
	s.Wait("sftd is back", 10*time.Second, func() bool { pid := web.MainPID(); return pid != 0 && pid != before })
	web.WaitBroker()

	open()
	web.Write("/etc/sft/sftd.yaml", 0o644, []byte("NoSuchKey: 1\n"))
	if out, err := web.Run("", "systemctl", "restart", "sftd"); err == nil {
		t.Errorf("sftd starts with a broken sftd.yaml: %s", out)
	}
	if got := web.Systemctl("show", "-P", "ActiveState", "sftd"); got != "failed\n" {
		t.Errorf("with a broken sftd.yaml the unit is %q", got)
	}
	if got := password(web.Host, "ann"); got != "*" {
		t.Errorf("with a broken sftd.yaml ann's password is %q", got)
	}
	web.Must("", "rm", "/etc/sft/sftd.yaml")
	web.Systemctl("start", "sftd")
	web.WaitBroker()

	if got := web.Systemctl("is-active", "ann-desk"); got != "active\n" {
		t.Errorf("ann's programs are %q", got)
	}
}

// The platform works as a unit, without any right but to listen on 443.
func TestPlatformUnit(t *testing.T) {
	s := newStage(t)
	h := s.SystemdHost("control", "..")
	url := "https://" + h.IP()
	var made struct {
		Fingerprint string `json:"ca_fingerprint"`
		Token       string `json:"enrollment_token"`
	}
	if err := json.Unmarshal([]byte(h.Must("sft-platform", "sft-platform", "init", "--json", "--url", url, "--owner", "olga", "--project", "prod")), &made); err != nil {
		t.Fatal(err)
	}
	h.Systemctl("enable", "--now", "sft-platform")
	h.WaitListen("0.0.0.0:443")
	if _, err := api.FetchCA(t.Context(), url, "", nil, &api.Clock{}); err == nil {
		t.Error("the platform proves itself to somebody who does not know its fingerprint")
	}
	if got := exposure(t, h, "sft-platform"); got > 1.4 {
		t.Errorf("the exposure is %v, and was 1.4 before", got)
	}
	never(t, h, "sft-platform", map[string]string{
		"be root":                  "test $(id -u) = 0",
		"see a home":               "ls /home",
		"write /etc":               "touch /etc/probe2",
		"run a program of its own": "cp /bin/true /var/lib/sft-platform/probe; /var/lib/sft-platform/probe",
		"have rights":              "grep -q 'CapBnd:\t0000000000000400' /proc/self/status && false",
	})
	restartLosesNothing(t, h, url, made.Fingerprint, made.Token)
	h.Systemctl("stop", "sft-platform")
	if got := h.Systemctl("show", "-P", "Result", "sft-platform"); got != "success\n" {
		t.Errorf("the platform ended with %q", got)
	}
}

// once sends each request once: the transport does not send it again behind our
// back. It counts those that went by a connection that was kept.
type once struct {
	http.RoundTripper
	kept *atomic.Int64
}

func (o once) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if i.Reused {
			o.kept.Add(1)
		}
	}}))
	r.GetBody = nil
	if r.Body != nil {
		r.Body = io.NopCloser(io.MultiReader(r.Body))
	}
	return o.RoundTripper.RoundTrip(r)
}

// restartLosesNothing restarts the platform's unit while several agents send
// signed requests, by connections that they keep, of HTTP/1.1 and 2.
func restartLosesNothing(t *testing.T, h *lab.Host, url, fingerprint, token string) {
	const restarts, clients = 3, 6
	raw, err := base64.StdEncoding.DecodeString(token)
	var secret api.EnrollmentToken
	if err == nil {
		err = json.Unmarshal(raw, &secret)
	}
	if err != nil {
		t.Fatal(err)
	}
	platformCA, err := api.FetchCA(t.Context(), url, fingerprint, nil, &api.Clock{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, done := context.WithCancel(t.Context())
	defer done()
	var all sync.WaitGroup
	var kept atomic.Int64
	var answered [clients]atomic.Int64
	for i := range clients {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		c := &api.Client{URL: url, Clock: &api.Clock{}}
		if c.HTTP, err = api.NewHTTP(platformCA, nil, c.Clock); err != nil {
			t.Fatal(err)
		}
		tr := c.HTTP.Transport.(*http.Transport)
		if i%2 == 1 {
			tr.ForceAttemptHTTP2, tr.TLSClientConfig.NextProtos = false, []string{"http/1.1"}
		}
		defer tr.CloseIdleConnections()
		c.HTTP.Transport = once{tr, &kept}
		facts := api.Facts{Hostname: fmt.Sprint("load", i), AccessAddress: "192.0.2.1", BrokerPort: 4421, OSType: "linux"}
		var reply api.EnrollServerReply
		if err := c.Do(ctx, "POST", "/v1/servers/enroll", api.EnrollServerRequest{Token: secret.Secret, DeviceKey: spki, Facts: facts}, &reply); err != nil {
			t.Fatal(err)
		}
		c.Key, c.Issuer = key, "server:"+reply.ServerID
		all.Go(func() {
			for ctx.Err() == nil {
				// That it is too often is an answer, too.
				err := c.Do(context.WithoutCancel(ctx), "POST", "/v1/agent/report", api.ReportRequest{Facts: facts}, nil)
				if err != nil && sft.CodeOf(err) != sft.TooMany {
					t.Errorf("client %d, after %d answers: %v", i, answered[i].Load(), err)
					return
				}
				answered[i].Add(1)
				time.Sleep(time.Duration(10+3*i) * time.Millisecond)
			}
		})
	}
	more := func() {
		t.Helper()
		var before [clients]int64
		for i := range answered {
			before[i] = answered[i].Load()
		}
		for i := range answered {
			for deadline := time.Now().Add(time.Minute); answered[i].Load() < before[i]+3 && !t.Failed(); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("client %d gets no answer", i)
				}
			}
		}
	}
	pid := func() string { return h.Systemctl("show", "-P", "MainPID", "sft-platform") }
	for range restarts {
		more()
		before := pid()
		h.Systemctl("restart", "sft-platform")
		if after := pid(); after == before || after == "0\n" {
			t.Errorf("process %s is followed by %s", before, after)
		}
	}
	more()
	done()
	all.Wait()
	n := int64(0)
	for i := range answered {
		n += answered[i].Load()
	}
	t.Logf("%d restarts, %d requests answered, %d of them by connections that were kept", restarts, n, kept.Load())
	if kept.Load() < n/2 {
		t.Errorf("of %d requests %d went by connections that were kept", n, kept.Load())
	}
}
