//go:build linux

package shell

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"sft/e2e/lab"
	"sft/e2e/stage"
	"sft/internal/audit"
)

// there reports whether a server has an account, and whether it has its home.
func there(v *stage.Server, login string) (account, home bool) {
	_, err := v.Run("", "getent", "passwd", login)
	_, missing := v.Run("", "test", "-e", "/home/"+login)
	return err == nil, missing == nil
}

// vanished waits until a server has neither an account nor its home.
func vanished(s *stage.Stage, v *stage.Server, login string, atMost time.Duration) {
	s.Wait(login+" is gone from "+v.Name()+", and so is the home", atMost, func() bool {
		account, home := there(v, login)
		return !account && !home
	})
}

// Accounts on demand come with their people, by SSH and by RDP, and go with
// all that is theirs: a while after the last session, whatever became of the
// agent meanwhile, or at once with the access.
func TestAccountsOnDemand(t *testing.T) {
	const period = 60 * time.Second // the shortest that the platform takes
	s := newStage(t)
	s.Project("prod", false)
	s.Do("PUT", "/projects/prod", map[string]any{"user_on_demand_period": period.Seconds()}, nil)
	people := []string{"ann", "bob"}
	desks := map[string]*stage.Desk{}
	web := s.SSHServer("web01", "prod", blue, "BrokeredLoginGracePeriodInSeconds: 2\n")
	for _, login := range people {
		s.Person(login, strings.ToUpper(login[:1])+login[1:]+" Example", "prod")
		desks[login] = s.Desk(login+"s-laptop", login)
		desks[login].EnrollQuickly()
	}
	var project struct{ Revision float64 }
	s.Do("GET", "/projects/prod", nil, &project)
	web.WaitStatus("the agent has heard of all", func(st map[string]any) bool { r, _ := st["revision"].(float64); return r >= project.Revision })
	for _, login := range people {
		if account, home := there(web, login); account || home {
			t.Fatalf("before %s came there is an account (%t) or a home (%t)", login, account, home)
		}
	}
	if out, errs, status := desks["ann"].Sft(t.Context(), "resolve", "web01"); status != 0 {
		t.Errorf("sft resolve: %d, %s, %s", status, out, errs)
	}
	if account, _ := there(web, "ann"); account {
		t.Error("to ask where the server is made an account")
	}

	// By SSH: the first time is as any other. What stays behind goes later.
	says(t, desks["ann"], "ann\n", "ssh", "web01", "id -un; echo hers > ~/file; setsid -f sleep 1000 </dev/null >/dev/null 2>&1")
	left := time.Now()
	uid := web.Must("", "id", "-u", "ann")
	start := s.WaitEvent("ann's session", func(e audit.Event) bool { return e.Kind == audit.SessionStart && e.Detail["user"] == "ann" })
	if start.Detail["service"] != "ssh" {
		t.Errorf("her session is told as %+v", start)
	}

	// By RDP, until the access is taken away.
	p := desktop(desks["bob"], "web01")
	if account, home := there(web, "bob"); !account || !home {
		t.Errorf("bob's desktop is there, his account (%t) or home (%t) is not", account, home)
	}
	bobs := web.Must("", "id", "-u", "bob")
	s.Leave("bob", "prod")
	vanished(s, web, "bob", 15*time.Second)
	p.Wait()
	if out, err := web.Run("", "pgrep", "-U", strings.TrimSpace(bobs)); err == nil {
		t.Errorf("bob still runs something: %s", out)
	}
	s.WaitEvent("bob's account is told to be gone", func(e audit.Event) bool { return e.Kind == audit.AccountRemoved && e.Detail["login"] == "bob" })
	refused(t, desks["bob"], 4, []string{"no access"}, "ssh", "web01", "true")

	// The agent is killed, and remembers since when ann is away: it would be
	// seen if it began anew. Who is in stays in.
	s.Wait("some of the period is over", period, func() bool { return time.Since(left) > period/2 })
	web.Agent.Kill()
	web.Start()
	s.Join("bob", "prod")
	p = nil
	s.Wait("bob is in", 30*time.Second, func() bool {
		if p == nil {
			p = desks["bob"].StartSft("sft-ssh", "ssh", "web01", "echo in; sleep 1000")
		}
		select {
		case <-p.Done(): // the broker is not there yet
			p = nil
			return false
		default:
			return strings.Contains(p.Output(), "in\n")
		}
	})
	if account, home := there(web, "ann"); !account || !home {
		t.Fatalf("%v after her session ann's account (%t) or home (%t) is gone", time.Since(left), account, home)
	}
	s.Wait("ann's account is gone", period+period/3-time.Since(left), func() bool {
		account, _ := there(web, "ann")
		return !account
	})
	if after := time.Since(left); after < period-3*time.Second {
		t.Errorf("her account went %v after her session", after)
	}
	vanished(s, web, "ann", 10*time.Second)
	if out, err := web.Run("", "pgrep", "-U", strings.TrimSpace(uid)); err == nil {
		t.Errorf("processes of hers are left: %s", out)
	}
	if out, err := web.Run("", "test", "-e", "/etc/ssh/sftd/principals/ann"); err == nil {
		t.Errorf("sshd lets ann in: %s", out)
	}
	if account, _ := there(web, "bob"); !account || len(web.Processes("bob")) == 0 {
		t.Error("bob, who is in, was put out")
	}
	// Who comes again finds an account with the same number, and nothing of before.
	says(t, desks["ann"], uid, "ssh", "web01", "test ! -e ~/file && id -u")
}

// problems waits until a server's record says all of the parts, or with none
// nothing.
func problems(s *stage.Stage, name string, parts ...string) {
	s.Wait(name+" reports "+strings.Join(parts, ", "), 30*time.Second, func() bool {
		said := strings.Join(s.ServerNamed(name).Problems, "\n")
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(said, p) }) && (said == "") == (len(parts) == 0)
	})
}

const hooks = "/usr/lib/sftd/hooks/"

// What the accounts of people have beyond being there.
func TestRightsOnHosts(t *testing.T) {
	s := newStage(t)
	s.Project("prod", false)
	s.Do("PUT", "/projects/prod", map[string]any{"delete_server_users": true}, nil)
	for _, g := range []string{"dba", "web", "ops"} {
		s.Do("POST", "/groups", map[string]any{"name": g}, nil)
	}
	s.Person("ann", "Ann Example", "prod", "dba", "ops")
	s.Person("bob", "Bob Example", "dba") // without access
	h := s.Lab.Host("web01")
	h.StartSSHD()
	h.Must("", "groupadd", "-g", "4242", "webmasters") // somebody else's
	h.AddUser("local", "")
	h.Must("", "usermod", "-aG", "webmasters", "local")
	const hook = "#!/bin/sh\nprintf '%s|%s|%s|%s\\n' \"$SFT_HOOK_EVENT\" \"$SFT_HOOK_USERNAME\" \"$SFT_HOOK_GROUPNAME\" \"$(id -u)\" >> /root/hooks\nenv | sort > /root/hook-env\n"
	for _, event := range []string{"user-created", "user-deleted", "group-created", "group-deleted"} {
		h.Write(hooks+event+".d/10-note.sh", 0o755, []byte(hook))
	}
	// In a hook that comes with its account the home is there already.
	h.Write(hooks+"user-created.d/9-home.sh", 0o755, []byte("#!/bin/sh\ntest -d /home/\"$SFT_HOOK_USERNAME\" && echo home >> /root/hooks\n"))
	h.Write(hooks+"group-updated.d/open.sh", 0o757, []byte("#!/bin/sh\ntouch /root/owned\n"))
	h.Must("", "chmod", "0757", hooks+"group-updated.d/open.sh")
	web := s.ServerOn(h, "prod", blue, "")
	desk := s.Desk("laptop", "ann")
	desk.EnrollQuickly()
	mayLogin(s, web, "ann")
	groupsAndHooks(t, s, web, desk)
	sudoEntitlements(t, s, web, desk)
}

// Groups of the team are groups of the host, with the same number everywhere
// and those members who have an account. The host's own are left alone. Its
// administrator's scripts hear of all of it.
func groupsAndHooks(t *testing.T, s *stage.Stage, web *stage.Server, desk *stage.Desk) {
	s.Do("POST", "/projects/prod/groups", map[string]any{"name": "dba", "server_access": false, "create_server_group": true}, nil)
	group := func(name string) []string {
		out, _ := web.Run("", "getent", "group", name)
		return strings.Split(strings.TrimSpace(out), ":")
	}
	s.Wait("the group is there with ann, and not with bob", 10*time.Second, func() bool {
		g := group("sft_dba")
		return len(g) == 4 && g[3] == "ann"
	})
	var team struct {
		GID int `json:"unix_gid"`
	}
	s.Do("GET", "/groups/dba", nil, &team)
	says(t, desk, web.Must("", "id", "-nG", "ann"), "ssh", "web01", "id -nG")
	if got := strings.Fields(web.Must("", "id", "-nG", "ann")); len(got) != 3 || !slices.Contains(got, "sft_dba") {
		t.Errorf("ann's groups are %q", got)
	}
	var gid int
	if err := json.Unmarshal([]byte(group("sft_dba")[2]), &gid); err != nil || gid != team.GID || gid == 0 {
		t.Errorf("the group's gid is %d, and the team's %d: %v", gid, team.GID, err)
	}
	// Bob gets access: his account comes with the group.
	s.Join("bob", "prod")
	s.Wait("bob is in the group", 10*time.Second, func() bool {
		g := group("sft_dba")
		return len(g) == 4 && g[3] == "ann,bob"
	})
	s.Leave("ann", "dba")
	s.Wait("ann is out of it", 10*time.Second, func() bool { return group("sft_dba")[len(group("sft_dba"))-1] == "bob" })
	says(t, desk, "no\n", "ssh", "web01", "id -nG | grep -q sft_dba || echo no")

	// A name that the host has for itself.
	s.Join("ann", "web")
	s.Do("POST", "/projects/prod/groups", map[string]any{"name": "web", "server_access": false, "create_server_group": true, "server_group_name": "webmasters"}, nil)
	problems(s, "web01", "group webmasters of this host was not made by sftd", "open.sh is not run: its mode 757 lets others write")
	if got := group("webmasters"); !slices.Equal(got, []string{"webmasters", "x", "4242", "local"}) {
		t.Errorf("the host's own group is now %q", got)
	}
	says(t, desk, "no\n", "ssh", "web01", "id -nG | grep -q webmasters || echo no")
	s.Do("DELETE", "/projects/prod/groups/web", nil, nil)
	if got := group("webmasters"); !slices.Equal(got, []string{"webmasters", "x", "4242", "local"}) {
		t.Errorf("the host's own group is now %q", got)
	}
	if _, err := web.Run("", "test", "-e", "/root/owned"); err == nil {
		t.Error("a script that others can write was run as root")
	}
	// Made safe, it is run with the next change, and is no problem any more.
	web.Must("", "chmod", "0755", hooks+"group-updated.d/open.sh")
	s.Join("ann", "dba")
	problems(s, "web01")
	web.Must("", "test", "-e", "/root/owned")

	s.Leave("bob", "prod")
	vanished(s, web, "bob", 10*time.Second)
	s.Do("DELETE", "/projects/prod/groups/dba", nil, nil)
	s.Wait("the group is gone", 10*time.Second, func() bool { return len(group("sft_dba")) == 1 })
	says(t, desk, "ann sft-users\n", "ssh", "web01", "id -nG")

	want := strings.Join([]string{
		"home", "user-created|ann||0", "group-created||sft_dba|0", "home", "user-created|bob||0", "user-deleted|bob||0", "group-deleted||sft_dba|0", "",
	}, "\n")
	var got string
	s.Wait("the scripts have heard of all", 10*time.Second, func() bool {
		b, _ := web.Read("/root/hooks")
		got = string(b)
		return strings.Count(got, "\n") >= strings.Count(want, "\n")
	})
	if got != want {
		t.Errorf("the scripts heard\n%s\nwant\n%s", got, want)
	}
	env := web.Must("", "cat", "/root/hook-env")
	for line := range strings.Lines(env) {
		if name, _, _ := strings.Cut(line, "="); !slices.Contains([]string{"PATH", "LC_ALL", "HOME", "PWD", "OLDPWD", "_", "SFT_HOOK_EVENT", "SFT_HOOK_GROUPNAME"}, name) {
			t.Errorf("a script gets %s", line)
		}
	}
}

// What sudo lets somebody run is what the entitlement lists, and ends with it.
func sudoEntitlements(t *testing.T, s *stage.Stage, web *stage.Server, desk *stage.Desk) {
	s.Join("bob", "prod")
	mayLogin(s, web, "bob")
	// run is what the commands say, each in its turn, and whether they end well.
	run := func(commands ...string) (said []string, ok []bool) {
		t.Helper()
		var script strings.Builder
		for _, c := range commands {
			script.WriteString("(" + c + ") 2>/dev/null; echo \"|$?;\"; ")
		}
		out, errs, status := desk.Sft(t.Context(), "ssh", "web01", script.String())
		parts := strings.Split(out, ";\n")
		if status != 0 || len(parts) != len(commands)+1 {
			t.Fatalf("ann's commands say %q, status %d: %s", out, status, errs)
		}
		for _, p := range parts[:len(commands)] {
			out, status, _ := strings.Cut(p, "|")
			said, ok = append(said, out), append(ok, status == "0")
		}
		return said, ok
	}
	no := func(commands ...string) {
		t.Helper()
		said, ok := run(commands...)
		for i, c := range commands {
			if ok[i] || said[i] != "" {
				t.Errorf("ann runs %q: %q", c, said[i])
			}
		}
	}
	no("sudo -n /usr/bin/id", "sudo -n -l /usr/bin/id")

	s.Do("POST", "/entitlements/sudo", map[string]any{"name": "look", "opt_no_passwd": true, "structured_commands": []map[string]any{
		{"command": "/usr/bin/id", "command_type": "executable"},
		{"command": "/usr/bin/head", "command_type": "executable", "args_type": "custom", "args": "-n 1 /etc/shadow"},
	}}, nil)
	s.Do("POST", "/entitlements/sudo", map[string]any{"name": "as-local", "opt_no_passwd": true, "opt_run_as": "daemon", "structured_commands": []map[string]any{
		{"command": "/usr/bin/whoami", "command_type": "executable", "args_type": "any"},
	}}, nil)
	attach := func(names ...string) {
		s.Do("PUT", "/projects/prod/groups/ops", map[string]any{"server_access": true, "sudo_entitlements": names}, nil)
	}
	s.Do("POST", "/projects/prod/groups", map[string]any{"name": "ops", "server_access": true, "sudo_entitlements": []string{"look", "as-local"}}, nil)
	s.Wait("the host has the rules", 10*time.Second, func() bool {
		_, err := web.Run("", "test", "-s", "/etc/sudoers.d/sft-entitlements")
		return err == nil
	})
	said, ok := run("sudo -n /usr/bin/id -u || sudo -n /usr/bin/id", "sudo -n /usr/bin/head -n 1 /etc/shadow", "sudo -n -u daemon /usr/bin/whoami", "sudo -n -l")
	for i, want := range []string{"uid=0(root)", "root:", "daemon\n"} {
		if !ok[i] || !strings.HasPrefix(said[i], want) {
			t.Errorf("what is entitled says %q, want %q", said[i], want)
		}
	}
	told := said[3]
	for _, part := range []string{"(root) NOSETENV: NOPASSWD: /usr/bin/id \"\", /usr/bin/head -n 1 /etc/shadow\n", "(daemon) NOSETENV: NOPASSWD: /usr/bin/whoami\n"} {
		if !strings.Contains(told, part) {
			t.Errorf("sudo -l does not tell %q:\n%s", part, told)
		}
	}
	if strings.Contains(told, "ALL") {
		t.Errorf("sudo -l tells of more:\n%s", told)
	}
	no("sudo -n /bin/sh -c id", "sudo -n -s id", "sudo -n -i id", "sudo -n id root", "sudo -n /usr/bin/id root", "sudo -n -u bob /usr/bin/id", "sudo -n -u daemon /usr/bin/id",
		"sudo -n /usr/bin/head -n 1 /etc/shadow /etc/passwd", "sudo -n /usr/bin/head -n 2 /etc/shadow", "sudo -n /usr/bin/head -n 1", "sudo -n /usr/bin/whoami", "sudo -n LD_PRELOAD=/tmp/x.so /usr/bin/id",
		"mkdir -p ~/bin && cp /bin/sh ~/bin/id && PATH=~/bin:$PATH sudo -n id -c id", "sudo -n -e /etc/shadow", "sudo -n su -c id")
	for _, args := range [][]string{{"-n", "/usr/bin/id"}, {"-n", "-u", "daemon", "/usr/bin/whoami"}} {
		if out, err := web.Run("bob", "sudo", args...); err == nil {
			t.Errorf("bob, who is entitled to nothing, runs %q: %s", args, out)
		}
	}

	// Taken away while she is in: what was open has it no more.
	p := desk.StartSft("sft-ssh", "ssh", "web01", "echo in; while sudo -n /usr/bin/id >/dev/null 2>&1; do sleep 0.1; done; echo out")
	s.Wait("ann is in", 20*time.Second, func() bool { return strings.Contains(p.Output(), "in\n") })
	attach("as-local")
	s.Wait("she may no longer", 5*time.Second, func() bool { return strings.Contains(p.Output(), "out\n") })
	if said, ok := run("sudo -n -u daemon /usr/bin/whoami"); !ok[0] || said[0] != "daemon\n" {
		t.Errorf("the entitlement that stays says %q", said)
	}
	attach()
	s.Wait("she has none", 5*time.Second, func() bool {
		_, err := web.Run("", "test", "-e", "/etc/sudoers.d/sft-entitlements")
		return err != nil
	})
	no("sudo -n /usr/bin/id", "sudo -n -u daemon /usr/bin/whoami")
	web.Must("", "visudo", "-c", "-q")
}

// A pty is a program that runs at a terminal of its own.
type pty struct {
	*lab.Process
	in io.WriteCloser
}

// atTerminal runs a line of shell on the desk, at a terminal. Its exit status
// is that of the line.
func atTerminal(t *testing.T, d *stage.Desk, name, line string) pty {
	t.Helper()
	cmd := d.Command(context.Background(), d.User, "script", "-qefc", line, "/dev/null")
	cmd.Env = append(cmd.Env, d.Env...)
	cmd.Env = append(cmd.Env, "TERM=dumb")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	return pty{d.Host.Start(name, cmd), in}
}

// answer waits for the question, and types.
func (p pty) answer(s *stage.Stage, question, typed string) {
	s.Wait("sft asks", 15*time.Second, func() bool { return strings.Contains(p.Output(), question) })
	io.WriteString(p.in, typed)
}

// A server that is reached through another one alone: by a link that names
// that one, and as doctor sees it.
func TestLinksAndDoctorThroughABastion(t *testing.T) {
	s := newStage(t)
	s.Project("prod", false)
	s.Person("ann", "Ann Example", "prod")
	b1 := s.SSHServer("b1", "prod", "", "DisableBroker: true\n")
	web := s.SSHServer("web01", "prod", blue, "BrokeredLoginGracePeriodInSeconds: 2\n")
	desk := s.Desk("laptop", "ann")
	desk.EnrollQuickly()
	mayLogin(s, b1, "ann")
	mayLogin(s, web, "ann")
	desk.Block(web.Host)
	links(t, s, desk)

	// Its own setting, from now on.
	web.Agent.Stop()
	web.Write("/etc/sft/sftd.yaml", 0o644, []byte("Bastion: b1\n"))
	web.Start()
	s.Wait("the platform knows the way", 30*time.Second, func() bool { return s.ServerNamed("web01").Bastion == "b1" })
	doctor(t, s, b1, web, desk)
}

// A link is followed after a yes, to a shell and to a desktop, through the
// servers that it names; and to nothing without one.
func links(t *testing.T, s *stage.Stage, desk *stage.Desk) {
	at := strings.TrimPrefix(s.URL, "https://")
	link := func(service string) string {
		return "sft://ann@" + at + "/t/" + stage.Team + "/a/web01/" + service + "?via=b1"
	}
	sessions := func() int {
		n := 0
		for _, e := range s.Events() {
			if e.Kind == audit.UserCredsIssue {
				n++
			}
		}
		return n
	}

	// The desktop's own means lead from a link to sft.
	desk.Write("/home/ann/.config/mimeapps.list", 0o644, []byte("[Default Applications]\ntext/html=firefox.desktop\n"))
	desk.Must("", "chown", "-R", "ann:", "/home/ann/.config")
	says(t, desk, "", "register-url-handler")
	for _, scheme := range []string{"sft", "scaleft"} {
		out, err := desk.Run("ann", "gio", "mime", "x-scheme-handler/"+scheme)
		if err != nil || !strings.Contains(out, "sft-url.desktop") {
			t.Errorf("gio says of %s: %q, %v", scheme, out, err)
		}
		if out, err := desk.Run("ann", "xdg-mime", "query", "default", "x-scheme-handler/"+scheme); err != nil || out != "sft-url.desktop\n" {
			t.Errorf("xdg-mime says of %s: %q, %v", scheme, out, err)
		}
	}
	entry := desk.Must("ann", "cat", ".local/share/applications/sft-url.desktop")
	if !strings.Contains(entry, "\nExec=\"/usr/local/bin/sft\" open-url -- %u\n") {
		t.Errorf("the desktop file is\n%s", entry)
	}
	if _, err := desk.Run("", "which", "desktop-file-validate"); err == nil {
		desk.Must("ann", "desktop-file-validate", ".local/share/applications/sft-url.desktop")
	}

	// No, and hostile ones, of which nobody is asked.
	before := sessions()
	for i, typed := range []string{"n\n", "\n", "\x04", "sure\n"} {
		p := atTerminal(t, desk, fmt.Sprint("link-no-", i), "sft open-url -- '"+link("ssh")+"'")
		p.answer(s, "A link asks to connect to web01 through b1 by ssh, as ann of team acme at platform:8443. Connect? [y/N]", typed)
		if got := p.Wait(); got != 4 {
			t.Errorf("the answer %q ends with %d: %s", typed, got, p.Output())
		}
	}
	for i, hostile := range []string{
		"sft://" + at + "/t/acme/a/-oProxyCommand=id/ssh", "sft://" + at + "/t/acme/a/web01/ssh?via=-oProxyCommand=id", "sft://" + at + "/t/acme/a/web01/ssh?via=-l@b1", "sft://" + at + "/t/acme/a/web01;id/ssh",
		"sft://" + at + "/t/acme/a/web01/ssh id", "sft://" + at + "/t/acme/a/--help/ssh", "sft://evil.example/t/acme/a/web01/ssh", "sft://bob@" + at + "/t/acme/a/web01/ssh", "file:///etc/passwd", "--help",
	} {
		p := atTerminal(t, desk, fmt.Sprint("link-hostile-", i), "sft open-url -- '"+hostile+"'")
		if got := p.Wait(); got == 0 || strings.Contains(p.Output(), "Connect?") {
			t.Errorf("%s: status %d, %s", hostile, got, p.Output())
		}
	}
	// Nobody is there to be asked.
	desk.Env = slices.DeleteFunc(desk.Env, func(v string) bool { return strings.HasPrefix(v, "DISPLAY=") })
	refused(t, desk, 4, []string{"nobody can be asked"}, "open-url", "--", link("ssh"))
	desk.Env = append(desk.Env, desk.Display()...)
	if now := sessions(); now != before {
		t.Errorf("%d certificates were made without a yes", now-before)
	}

	// Yes: a shell, with the terminal.
	p := atTerminal(t, desk, "link-shell", "sft open-url -- '"+link("ssh")+"'")
	p.answer(s, "Connect? [y/N]", "y\n")
	io.WriteString(p.in, "tty | sed s/[0-9]*$//; echo on-$(hostname); exit 7\n")
	if got := p.Wait(); got != 7 || !strings.Contains(p.Output(), "/dev/pts/") || !strings.Contains(p.Output(), "on-web01") {
		t.Errorf("the shell ends with %d:\n%s", got, p.Output())
	}

	// Yes: a desktop.
	p = atTerminal(t, desk, "link-desktop", "sft config rdp.screensize 1200x800 && sft open-url -- '"+strings.Replace(link("rdp"), "sft:", "scaleft:", 1)+"'")
	p.answer(s, "A link asks to connect to web01 through b1 by rdp, as ann of team acme at platform:8443. Connect? [y/N]", "y\n")
	desk.WaitPixel(1100, 700, blue)
	p.Stop()
	s.WaitEvent("the desktop's session has ended", func(e audit.Event) bool { return e.Kind == audit.SessionEnd && e.Detail["service"] == "rdp" })
	for _, service := range []string{"ssh", "rdp"} {
		s.WaitEvent("a way through b1 for "+service, func(e audit.Event) bool {
			return e.Kind == audit.UserCredsIssue && e.Detail["service"] == service && slices.Equal(e.Via, []string{"b1"})
		})
	}

	says(t, desk, "", "register-url-handler", "--remove")
	if out := desk.Must("ann", "cat", ".config/mimeapps.list"); out != "[Default Applications]\ntext/html=firefox.desktop\n" {
		t.Errorf("mimeapps.list is now %q", out)
	}
	if _, err := desk.Run("ann", "test", "-e", ".local/share/applications/sft-url.desktop"); err == nil {
		t.Error("the desktop file is left")
	}
}

// Doctor names the hop that the way breaks at, and sees an RDP service that does
// not run, which SSH does not need.
func doctor(t *testing.T, s *stage.Stage, b1, web *stage.Server, desk *stage.Desk) {
	check := func(status int, step, verdict string, parts ...string) {
		t.Helper()
		out, errs, got := desk.Sft(t.Context(), "doctor", "web01")
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > 1 && f[1] == step {
				if f[0] == verdict && !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
					if got == status {
						return
					}
				}
				t.Errorf("doctor ends with %d, want %d, and says %q, want %s of %q", got, status, line, verdict, parts)
				return
			}
		}
		t.Errorf("doctor says nothing of %s: %s%s", step, out, errs)
	}
	check(0, "route", "ok", "through b1")
	if out, errs, got := desk.Sft(t.Context(), "doctor", "b1"); got != 0 || !strings.Contains(out, `by "sft ssh" alone`) || !strings.Contains(out, "skip  broker-ping") {
		t.Errorf("doctor ends with %d for a server without a broker: %s%s", got, out, errs)
	}
	check(0, "broker-ping", "ok", "the host knows you as ann")
	check(0, "server-problems", "ok")
	web.Must("", "pkill", "-x", "xrdp")
	const stopped = "nothing listens on " + lab.XRDPAddress
	s.Wait("the platform knows that xrdp does not run", time.Minute, func() bool { return strings.Contains(strings.Join(s.ServerNamed("web01").Problems, " "), stopped) })
	check(6, "server-problems", "fail", stopped, "start the RDP service (xrdp)", `"sft ssh" does not need it`)
	check(6, "broker-ping", "ok")
	if out, err := web.Run("", "/usr/local/sbin/sftd", "status"); err == nil || !strings.Contains(out, stopped) {
		t.Errorf("sftd status: %v\n%s", err, out)
	}
	refused(t, desk, 6, []string{"RDP service"}, "rdp", "web01")
	says(t, desk, "ann\n", "ssh", "web01", "id -un")
	web.Host.Start("xrdp", web.Command(t.Context(), "xrdp", "xrdp", "-n"))
	s.Wait("the platform knows that xrdp runs", time.Minute, func() bool { return len(s.ServerNamed("web01").Problems) == 0 })
	check(0, "server-problems", "ok")
	b1.StopSSHD()
	check(6, "route", "fail", "b1", "fix:")
	check(6, "broker-tcp", "skip", "needs route")
}
