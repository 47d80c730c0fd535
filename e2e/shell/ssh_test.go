//go:build linux

package shell

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sft/e2e/lab"
	"sft/e2e/stage"
	"sft/internal/audit"
)

// A chain is servers behind one another: ann's laptop reaches b1 alone, b1
// reaches b2, and b2 web01. All of them reach the platform.
type chain struct {
	s           *stage.Stage
	b1, b2, web *stage.Server
	desk        *stage.Desk
}

func newChain(t *testing.T, colour string) *chain {
	t.Helper()
	s := newStage(t)
	s.Project("prod", false)
	s.Project("edge", false)
	s.Person("ann", "Ann Example", "prod", "edge")
	c := &chain{s: s,
		b1:  s.SSHServer("b1", "edge", "", "DisableBroker: true\n"),
		b2:  s.SSHServer("b2", "edge", "", "Bastion: b1\n"),
		web: s.SSHServer("web01", "prod", colour, "Bastion: b2\nBrokeredLoginGracePeriodInSeconds: 2\n"),
	}
	c.desk = s.Desk("laptop", "ann")
	c.desk.EnrollQuickly()
	for _, v := range []*stage.Server{c.b1, c.b2, c.web} {
		mayLogin(s, v, "ann")
	}
	c.desk.Block(c.b2.Host, c.web.Host)
	c.b1.Block(c.web.Host)
	return c
}

// mayLogin waits until a server's sshd lets somebody in, and has read all that
// sftd adds to its configuration: while it reads, it refuses connections.
func mayLogin(s *stage.Stage, v *stage.Server, login string) {
	s.Wait(login+" may sign in to "+v.Name(), time.Minute, func() bool {
		_, err := v.Run("", "test", "-s", "/etc/ssh/sftd/principals/"+login)
		b, rerr := v.Read("/var/lib/sftd/sshd.json")
		var done struct {
			Text    string
			Pending bool
		}
		return err == nil && rerr == nil && json.Unmarshal(b, &done) == nil && strings.Contains(done.Text, "HostCertificate") && !done.Pending
	})
}

// sft runs sft on the desk, and wants it to say want.
func says(t *testing.T, desk *stage.Desk, want string, args ...string) {
	t.Helper()
	out, errs, status := desk.Sft(t.Context(), args...)
	if status != 0 || out != want {
		t.Fatalf("sft %s: status %d, says %q, want %q; %s", strings.Join(args, " "), status, out, want, errs)
	}
}

// refused runs sft, and wants it to end with status, saying each of the parts.
func refused(t *testing.T, desk *stage.Desk, status int, parts []string, args ...string) {
	t.Helper()
	out, errs, got := desk.Sft(t.Context(), args...)
	missing := slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(errs, p) })
	if got != status || out != "" || missing {
		t.Errorf("sft %s: status %d, want %d; says %q and %q, want %q in it", strings.Join(args, " "), got, status, out, errs, parts)
	}
}

// leftovers are the files of a person that hold a private key, apart from
// those that they made themselves and the one of the device.
func leftovers(desk *stage.Desk) string {
	out, _ := desk.Run("", "sh", "-c", `grep -rl "PRIVATE KEY" /home/`+desk.User+` /run /tmp /dev/shm 2>/dev/null | grep -v "/\.ssh/id_\|\.config/chromium\|ScaleFT/device-"`)
	return out
}

// Through two bastions to a shell and a desktop. The bastions are told by the
// servers' own settings, or by --via; they see ciphertext alone.
func TestThroughBastions(t *testing.T) {
	c := newChain(t, blue)
	if out, err := c.desk.Run("ann", "timeout", "2", "bash", "-c", "exec 3<>/dev/tcp/"+c.web.IP()+"/22"); err == nil {
		t.Fatalf("the laptop reaches web01 directly: %s", out)
	}
	says(t, c.desk, "web01\nann\n", "ssh", "web01", "hostname; id -un")
	says(t, c.desk, "web01\n", "ssh", "--via", "b1", "--via", "b2", "web01", "hostname")
	says(t, c.desk, "b2\n", "ssh", "b2", "hostname")
	if _, errs, status := c.desk.Sft(t.Context(), "ssh", "web01", "exit 42"); status != 42 {
		t.Errorf("ssh's status 42 becomes %d: %s", status, errs)
	}

	// What a bastion sees.
	word := "marker-of-what-is-typed"
	onB1, onB2 := c.b1.Capture("eth0"), c.b2.Capture("eth0")
	says(t, c.desk, word+"\n", "ssh", "web01", "echo "+word)
	for name, pcap := range map[string][]byte{"b1": onB1.Stop(), "b2": onB2.Stop()} {
		if bytes.Contains(pcap, []byte(word)) {
			t.Errorf("%s carries what was typed in the clear", name)
		}
		if !bytes.Contains(pcap, []byte("SSH-2.0-OpenSSH")) {
			t.Errorf("%s carried no SSH at all", name)
		}
	}

	// Several at once.
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() {
			if out, errs, status := c.desk.Sft(t.Context(), "ssh", "web01", fmt.Sprintf("echo %d", i)); status != 0 || out != fmt.Sprintf("%d\n", i) {
				t.Errorf("one of several: status %d, says %q; %s", status, out, errs)
			}
		})
	}
	all.Wait()

	// A desktop.
	p := desktop(c.desk, "--via", "b1", "--via", "b2", "web01")
	c.desk.WaitStill(500 * time.Millisecond)
	c.desk.Screenshot(filepath.Join(stage.Pictures(t), "desktop-through-bastions.png"))
	p.Stop()
	p.Wait()

	// What was recorded.
	var login audit.Event
	for _, name := range []string{"b1", "b2", "web01"} {
		login = c.s.WaitEvent("a login on "+name, func(e audit.Event) bool { return e.Kind == audit.SSHLogin && e.Target == name })
		if login.Detail["login"] != "ann" || login.Detail["user"] != "ann" || login.Session == "" {
			t.Errorf("the login on %s is told as %+v", name, login)
		}
	}
	// Without a journal a login that is over before sftd has read of it is not
	// told: any of those that were will do.
	issue := c.s.WaitEvent("the certificate of the login on web01", func(e audit.Event) bool {
		return e.Kind == audit.UserCredsIssue && e.Detail["service"] == "ssh" && e.Target == "web01" && e.Outcome == audit.Success && e.Session == login.Session
	})
	if !slices.Equal(issue.Via, []string{"b1", "b2"}) {
		t.Errorf("the event says the way is %q", issue.Via)
	}
	c.s.WaitEvent("the end of the session", func(e audit.Event) bool {
		return e.Kind == audit.SessionEnd && e.Session == issue.Session && e.Target == "web01" && e.Client == issue.Client
	})
	if left := leftovers(c.desk); left != "" {
		t.Errorf("private keys are left:\n%s", left)
	}
}

// The block of ssh-config takes OpenSSH's own programs, and what is built on
// them, through the bastions; other hosts are as they were.
func TestSSHConfig(t *testing.T) {
	c := newChain(t, "")
	desk, web := c.desk, c.web
	block, errs, status := desk.Sft(t.Context(), "ssh-config")
	if status != 0 {
		t.Fatalf("sft ssh-config: %d, %s", status, errs)
	}
	other := c.s.Lab.Host("other")
	other.StartSSHD()
	other.AddUser("ann", "")
	desk.Must("ann", "sh", "-c", "umask 077; mkdir -p .ssh && ssh-keygen -q -t ed25519 -N '' -f .ssh/id_other")
	other.Write("/home/ann/.ssh/authorized_keys", 0o600, []byte(desk.Must("ann", "cat", ".ssh/id_other.pub")))
	other.Must("", "chown", "-R", "ann:", "/home/ann/.ssh")
	put := func(name, text string) {
		t.Helper()
		desk.Write("/home/ann/.ssh/"+name, 0o600, []byte(text))
		desk.Must("", "chown", "ann:", "/home/ann/.ssh/"+name)
	}
	put("sft", block)
	put("config", "Include sft\nMatch all\n\tServerAliveInterval 15\nHost other\n\tIdentityFile ~/.ssh/id_other\n\tStrictHostKeyChecking accept-new\n")
	run := func(what, want, script string) {
		t.Helper()
		cmd := desk.Command(t.Context(), "ann", "bash", "-c", script)
		cmd.Env = append(cmd.Env, desk.Env...)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := cmd.Run()
		if err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("%s: %v, says %q, want %q; %s", what, err, out.String(), want, errs.String())
		}
	}
	run("ssh", "web01", "ssh web01 hostname")
	run("ssh to another host", "other", "ssh other hostname")
	desk.Must("ann", "sh", "-c", "head -c 3000000 /dev/urandom > big && sha256sum big > sum")
	run("scp", "big: OK", "scp -q big sum web01: && ssh web01 sha256sum -c sum")
	run("sftp", "", "echo 'get big back' | sftp -q -b - web01 && cmp big back")
	run("rsync", "", "rsync -a big web01:synced && ssh web01 cmp big synced")
	web.Must("", "runuser", "-u", "ann", "--", "sh", "-c", "cd; git init -q repo && cd repo && git config user.email a@b && git config user.name a && echo hi > f && git add f && git commit -qm one")
	run("git", "hi", "git clone -q web01:repo cloned && cat cloned/f")
	run("a copy between two servers", "", "scp -q -3 web01:big b2:copied && ssh b2 test -s copied")
	// A connection that is shared outlives the ssh that opened it.
	shared := "ssh -o ControlMaster=auto -o ControlPersist=60 -o ControlPath=~/.ssh/shared-%C "
	run("the first of those who share", "web01", shared+"web01 hostname && pgrep -f '^/usr/local/bin/sft proxycommand' > sharing")
	run("the second of those who share", "web01", "sleep 3; "+shared+"web01 hostname && pgrep -f '^/usr/local/bin/sft proxycommand' | cmp - sharing")
	run("the end of sharing", "", shared+"-O exit web01")
	running := func() bool { _, err := desk.Run("", "pgrep", "-f", "proxycommand"); return err == nil }
	gone := func(what string) {
		t.Helper()
		c.s.Wait(what, 10*time.Second, func() bool { return !running() })
	}
	gone("proxycommand is gone with those who shared it")
	run("Ansible", "SUCCESS", "ANSIBLE_HOST_KEY_CHECKING=True ansible -i web01,b2,b1, all -m ping -e ansible_python_interpreter=/usr/bin/python3")
	desk.Must("", "pkill", "-x", "ssh") // the connections that Ansible keeps
	gone("proxycommand is gone with Ansible's connections")
	run("four at once", "4", "for i in 1 2 3 4; do ssh web01 echo yes & done | grep -c yes")

	// One of two that run at once is killed: the other goes on.
	run("one beside one that was killed", "still here", `ssh web01 sleep 30 & first=$!
		until pgrep -f '^/usr/local/bin/sft proxycommand' >/dev/null; do sleep 0.1; done
		(sleep 0.3; pkill -KILL -o -f '^/usr/local/bin/sft proxycommand'; kill -KILL $first) & ssh web01 'echo still here'`)

	// ssh is gone: so is what sft ran for it.
	p := desk.Host.Start("ssh", desk.Command(context.Background(), "ann", "ssh", "web01", "sleep", "100"))
	c.s.Wait("proxycommand runs", 10*time.Second, running)
	desk.Must("", "pkill", "-KILL", "-x", "ssh")
	p.Wait()
	gone("proxycommand is gone with its ssh")
	if left := leftovers(desk); left != "" {
		t.Errorf("private keys are left:\n%s", left)
	}

	// Without the platform other hosts are reached as before.
	c.s.PlatformProcess().Kill()
	run("another host without the platform", "other", "timeout 8 ssh other hostname")
}

// What can go wrong on the way is told with the hop that it went wrong at.
func TestHopsFail(t *testing.T) {
	c := newChain(t, "")
	says(t, c.desk, "web01\n", "ssh", "web01", "hostname")

	// A bastion that forbids forwarding, but has netcat.
	c.b1.Must("", "sh", "-c", "sed -i '1i AllowTcpForwarding no' "+lab.SSHDConfig+` && kill -HUP "$(cat /run/sshd.pid)"`)
	c.s.Wait("b1 forbids forwarding, and the way goes on by netcat", 10*time.Second, func() bool {
		out, _, _ := c.desk.Sft(t.Context(), "ssh", "web01", "hostname")
		return out == "web01\n"
	})

	c.b2.StopSSHD()
	refused(t, c.desk, 6, []string{"b2"}, "ssh", "web01", "hostname")
	refused(t, c.desk, 6, []string{"b2"}, "rdp", "--no-launch", "web01")

	// Somebody else answers in its place.
	c.b2.Agent.Kill()
	c.b2.Must("", "sh", "-c", "rm -f /etc/ssh/ssh_host_* /etc/ssh/sshd_config.d/*; ssh-keygen -q -A")
	c.b2.RunSSHD()
	refused(t, c.desk, 1, []string{"did not prove that it is hop b2"}, "ssh", "web01", "hostname")

	refused(t, c.desk, 1, []string{"b1"}, "ssh", "--via", "b1", "--via", "b1", "web01", "hostname")
	refused(t, c.desk, 5, []string{"nowhere"}, "ssh", "nowhere", "true")
	for _, hostile := range []string{"-oProxyCommand=touch /tmp/owned", "web01;id", "$(id)", "web01\nid", "a b", "%h", "'"} {
		_, errs, status := c.desk.Sft(t.Context(), "ssh", "--", hostile, "true")
		if status == 0 || status == 255 {
			t.Errorf("sft ssh %q: status %d, %s", hostile, status, errs)
		}
	}
	if _, err := c.desk.Run("", "test", "-e", "/tmp/owned"); err == nil {
		t.Error("a server's name ran a program")
	}
}

// A CA that is dropped ends the shell that it has let in, and sshd trusts it no
// more; the next shell opens by the new CAs. Access that is taken away ends the
// shell, and no new one opens, with the certificate of before or another.
func TestShellEndsWithAccess(t *testing.T) {
	s := newStage(t)
	s.Project("prod", false)
	s.Person("ann", "Ann Example", "prod")
	web := s.SSHServer("web01", "prod", "", "")
	desk := s.Desk("laptop", "ann")
	desk.EnrollQuickly()
	mayLogin(s, web, "ann")
	shell := func() (ended func()) {
		t.Helper()
		p := desk.StartSft("sft-ssh", "ssh", "web01", "echo in; sleep 1000")
		s.Wait("ann is in", 20*time.Second, func() bool { return strings.Contains(p.Output(), "in\n") })
		return func() {
			t.Helper()
			select {
			case <-p.Done():
			case <-time.After(20 * time.Second):
				t.Fatal("the shell lives on")
			}
		}
	}
	ended := shell()
	before := web.Must("", "cat", "/etc/ssh/sftd/user_ca.pub")
	s.Do("POST", "/projects/prod/authorities", map[string]any{"compromised": true}, nil)
	ended()
	s.Wait("sshd trusts the dropped CA no more", 10*time.Second, func() bool {
		return !strings.Contains(web.Must("", "cat", "/etc/ssh/sftd/user_ca.pub"), strings.Fields(before)[1])
	})
	s.Wait("ann gets in by the new CAs", 20*time.Second, func() bool {
		out, err := desk.Run("ann", "sft", "ssh", "web01", "hostname")
		return err == nil && out == "web01\n"
	})
	ended = shell()
	s.Leave("ann", "prod")
	ended()
	refused(t, desk, 4, []string{"no access"}, "ssh", "web01", "true")
	s.Wait("sshd lets her in no more", 10*time.Second, func() bool {
		_, err := web.Run("", "test", "-e", "/etc/ssh/sftd/principals/ann")
		return err != nil
	})
}

// A hop without an agent is gone through by the person's own ssh, with their
// keys and settings, before an enrolled one or after.
func TestUnmanagedHops(t *testing.T) {
	s := newStage(t)
	s.Project("prod", false)
	s.Person("ann", "Ann Example", "prod")
	b1 := s.SSHServer("b1", "prod", "", "")
	web := s.SSHServer("web01", "prod", "", "")
	jump := s.Lab.Host("jump")
	jump.StartSSHD("Port 2222")
	jump.AddUser("ops", "")
	desk := s.Desk("laptop", "ann")
	desk.EnrollQuickly()
	desk.Must("ann", "sh", "-c", "umask 077; mkdir -p .ssh && ssh-keygen -q -t ed25519 -N '' -f .ssh/id_jump")
	jump.Write("/home/ops/.ssh/authorized_keys", 0o600, []byte(desk.Must("ann", "cat", ".ssh/id_jump.pub")))
	jump.Must("", "chown", "-R", "ops:", "/home/ops/.ssh")
	key := strings.Fields(jump.Must("", "cat", "/etc/ssh/ssh_host_ed25519_key.pub"))
	desk.Write("/home/ann/.ssh/config", 0o600, []byte("Host jump\n\tUser ops\n\tPort 2222\n\tIdentityFile ~/.ssh/id_jump\n"))
	desk.Write("/home/ann/.ssh/known_hosts", 0o600, fmt.Appendf(nil, "[jump]:2222 %s %s\n", key[0], key[1]))
	desk.Must("", "chown", "-R", "ann:", "/home/ann/.ssh")
	mayLogin(s, b1, "ann")
	mayLogin(s, web, "ann")

	desk.Block(web.Host, b1.Host)
	says(t, desk, "web01\n", "ssh", "--via", "jump", "web01", "hostname")
	says(t, desk, "web01\n", "ssh", "--via", "jump", "--via", "b1", "web01", "hostname")
	desk.Unblock(b1.Host)
	desk.Block(jump)
	says(t, desk, "web01\n", "ssh", "--via", "b1", "--via", "jump", "web01", "hostname")

	// The same as a record of the team, which other servers can name.
	desk.Unblock(jump)
	s.Do("POST", "/projects/prod/unmanaged_servers", map[string]any{"hostname": "jump", "access_address": jump.IP(), "port": 2222}, nil)
	desk.Write("/home/ann/.ssh/known_hosts", 0o600, fmt.Appendf(nil, "[jump]:2222,[%s]:2222 %s %s\n", jump.IP(), key[0], key[1]))
	desk.Must("", "chown", "ann:", "/home/ann/.ssh/known_hosts")
	says(t, desk, "web01\n", "ssh", "--via", "jump", "web01", "hostname")
}

// A host whose port 22 is closed is reached through its broker.
func TestSSHThroughTheBroker(t *testing.T) {
	s := newStage(t)
	s.Project("prod", false)
	s.Person("ann", "Ann Example", "prod")
	web := s.SSHServer("web01", "prod", "", "SSHAccess: broker\n", "ListenAddress 127.0.0.1")
	desk := s.Desk("laptop", "ann")
	desk.EnrollQuickly()
	mayLogin(s, web, "ann")
	says(t, desk, "web01\n", "ssh", "web01", "hostname")
	start := s.WaitEvent("session.start", func(e audit.Event) bool { return e.Kind == audit.SessionStart && e.Detail["service"] == "ssh" })
	end := s.WaitEvent("session.end", func(e audit.Event) bool { return e.Kind == audit.SessionEnd && e.Session == start.Session })
	if end.Detail["bytes_out"] == "0" || end.Detail["bytes_in"] == "0" {
		t.Errorf("session.end tells %+v", end)
	}
	block, _, _ := desk.Sft(t.Context(), "ssh-config")
	desk.Write("/home/ann/.ssh/config", 0o600, []byte(block))
	desk.Must("", "chown", "-R", "ann:", "/home/ann/.ssh")
	if out, err := desk.Run("ann", "ssh", "web01", "hostname"); err != nil || out != "web01\n" {
		t.Errorf("ssh says %q: %v", out, err)
	}
	// Through a hop as well: then 4421 is what the bastion connects to.
	b1 := s.SSHServer("b1", "prod", "", "")
	mayLogin(s, b1, "ann")
	desk.Block(web.Host)
	says(t, desk, "web01\n", "ssh", "--via", "b1", "web01", "hostname")
}

// What the product does to a host's SSH server: nothing to others, nothing
// that stays, and never a server that nobody can reach.
func TestSSHServerOfTheHost(t *testing.T) {
	s := newStage(t)
	s.Project("prod", false)
	s.Person("ann", "Ann Example", "prod")
	h := s.Lab.Host("web01")
	h.StartSSHD()
	h.AddUser("local", "")
	desk := s.Desk("laptop", "ann")
	desk.Must("ann", "sh", "-c", "umask 077; mkdir -p .ssh && ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519")
	pub := desk.Must("ann", "cat", ".ssh/id_ed25519.pub")
	h.Write("/home/local/.ssh/authorized_keys", 0o600, []byte(pub))
	h.Must("", "chown", "-R", "local:", "/home/local/.ssh")
	before := h.Must("", "sh", "-c", "cat /etc/ssh/sshd_config; ls -A /etc/ssh/sshd_config.d")
	local := func(when string) {
		t.Helper()
		if out, err := desk.Run("ann", "ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "local@web01", "id", "-un"); err != nil || out != "local\n" {
			t.Errorf("%s, the host's own account signs in with %q: %v", when, out, err)
		}
	}
	local("before")
	web := s.ServerOn(h, "prod", "", "")
	mayLogin(s, web, "ann")
	s.Wait("web01 is known for its SSH server", 30*time.Second, func() bool { return s.ServerNamed("web01").SSHPort != 0 })
	desk.EnrollQuickly()
	local("with sftd")
	says(t, desk, "ann\n", "ssh", "web01", "id", "-un")

	// Our accounts have no standing keys, whatever is put into their homes.
	web.Write("/home/ann/.ssh/authorized_keys", 0o600, []byte(pub))
	web.Must("", "chown", "-R", "ann:", "/home/ann/.ssh")
	if out, err := desk.Run("ann", "ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "ann@web01", "id", "-un"); err == nil {
		t.Errorf("a key in authorized_keys opens ann's account: %s", out)
	}

	// Configuration management writes the files anew.
	web.Must("", "sh", "-c", `rm -f /etc/ssh/sshd_config.d/*; kill -HUP "$(cat /run/sshd.pid)"`)
	s.Wait("the settings are back", 60*time.Second, func() bool {
		out, _, _ := desk.Sft(t.Context(), "ssh", "web01", "id", "-un")
		return out == "ann\n"
	})

	// Broken by hand: it is not made worse, and said.
	web.Must("", "sh", "-c", "cp /etc/ssh/sshd_config /root/good; echo NoSuchKeyword yes >> /etc/ssh/sshd_config")
	web.WaitStatus("sftd says that the configuration is broken", func(st map[string]any) bool {
		return strings.Contains(fmt.Sprint(st["problems"]), "NoSuchKeyword")
	})
	local("with a broken configuration")
	web.Must("", "cp", "/root/good", "/etc/ssh/sshd_config")
	web.WaitStatus("all is well again", func(st map[string]any) bool { return !strings.Contains(fmt.Sprint(st["problems"]), "NoSuchKeyword") })

	// Killed, and started again.
	web.Agent.Kill()
	web.Start()
	s.Wait("ann signs in after a kill", 30*time.Second, func() bool {
		out, _, _ := desk.Sft(t.Context(), "ssh", "web01", "id", "-un")
		return out == "ann\n"
	})

	// Removed: as it was before.
	web.Agent.Stop()
	web.Must("", "/usr/local/sbin/sftd", "restore-ssh")
	if after := web.Must("", "sh", "-c", "cat /etc/ssh/sshd_config; ls -A /etc/ssh/sshd_config.d"); after != before {
		t.Errorf("after its removal the configuration is\n%s\nand was\n%s", after, before)
	}
	local("after sftd is gone")
	if out, err := exec.Command("sh", "-c", "grep -rn sftd /etc/ssh").CombinedOutput(); err == nil {
		t.Errorf("the machine's own SSH was touched: %s", out)
	}
}
