//go:build linux

package shell

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sft/e2e/stage"
	"sft/internal/audit"
)

// A process of an account that is bound to a service user reaches servers by
// the word of its host's agent, without a person; no other account does, and
// it does not without the binding.
func TestServiceAuth(t *testing.T) {
	s := newStage(t)
	s.Project("build", false)
	s.Project("prod", false)
	s.Do("POST", "/service_users", map[string]any{"name": "deploy"}, nil)
	s.Join("deploy", "prod")
	ci01 := s.SSHServer("ci01", "build", "", "")
	web := s.SSHServer("web01", "prod", blue, "BrokeredLoginGracePeriodInSeconds: 2\n", "MaxStartups 100")
	ci01.Install("/usr/local/bin/sft", s.Client())
	env := append(ci01.CatchURLs(), "SFT_KEYRING=compat")
	as := func(account string) *stage.Desk {
		ci01.AddUser(account, "")
		d := &stage.Desk{Host: ci01.Host, User: account, Env: env}
		says(t, d, "", "config", "service_auth.enable", "true")
		return d
	}
	ci, other := as("ci"), as("other")
	run := func(want, script string) {
		t.Helper()
		cmd := ci.Command(t.Context(), ci.User, "bash", "-c", script)
		cmd.Env = append(cmd.Env, env...)
		var errs strings.Builder
		cmd.Stderr = &errs
		if out, err := cmd.Output(); err != nil || string(out) != want {
			t.Errorf("%s: %v, says %q, want %q; %s", script, err, out, want, errs.String())
		}
	}
	made := func() (n int) {
		for _, e := range s.Events() {
			if e.Kind == audit.ClientEnroll && e.Outcome == audit.Success && e.Detail["account"] == "ci" {
				n++
			}
		}
		return n
	}

	// Not bound yet.
	refused(t, ci, 4, []string{`account "ci" of this server acts as no service user`, "ask an administrator"}, "ssh", "web01", "hostname")
	if out, _, status := ci.Sft(t.Context(), "doctor"); status != 4 || !strings.Contains(out, "fail  enrolment") || !strings.Contains(out, "no service user") {
		t.Errorf("doctor says, with %d:\n%s", status, out)
	}

	var b struct{ ID string }
	bind := func() {
		t.Helper()
		s.Do("POST", "/service_users/deploy/bindings", map[string]any{"server": s.ServerNamed("ci01").ID, "account": "ci"}, &b)
		mayLogin(s, web, "deploy")
	}
	bind()

	// Twenty at once are the first: one client is made for them.
	run("20\n", "for i in $(seq 20); do sft ssh web01 hostname & done | grep -c web01")
	if n := made(); n != 1 {
		t.Errorf("%d clients were made", n)
	}
	says(t, ci, "web01\ndeploy\n", "ssh", "web01", "hostname; id -un")
	run("web01\n", "sft list-servers | awk 'NR>1 {print $1}'")
	run("deploy service,\n", "sft list-accounts | awk 'NR>1 {print $3, $4}'")
	run("0\n", "sft doctor web01 | grep -c ^fail || :")
	run("600\n", "stat -c %a ~/.local/state/ScaleFT/device-*.key")
	run("hello\n", "mkdir -m 700 ~/.ssh; sft ssh-config >~/.ssh/config; echo hello >f; scp -q f web01:g; ssh web01 cat g; sft ssh web01 rm g")
	run("web01\n", "ansible -i web01, all -m command -a hostname -e ansible_python_interpreter=/usr/bin/python3 | tail -n 1")

	// A desktop's way.
	cmd := ci.Command(t.Context(), "ci", "bash", "-c", "exec sft rdp --no-launch --password-fd 5 web01 5>/dev/null")
	cmd.Env = append(cmd.Env, env...)
	p := ci.Start("no-launch", cmd)
	s.Wait("the address of a desktop", 20*time.Second, func() bool { return strings.Contains(p.Output(), "127.0.0.1:") })
	p.Stop()

	// Others of the host: another account, root, and who asks for ci's name.
	refused(t, other, 4, []string{`account "other" of this server acts as no service user`}, "ssh", "web01", "hostname")
	root := &stage.Desk{Host: ci01.Host, Env: append(slices.Clone(env), "USER=ci", "LOGNAME=ci")}
	says(t, root, "", "config", "service_auth.enable", "true")
	refused(t, root, 4, []string{`account "root"`}, "ssh", "web01", "hostname")

	// The sign-in is begun anew by itself; a client that was removed is
	// followed by another one.
	run("web01\n", "sft logout >/dev/null; sft ssh web01 hostname")
	if n := made(); n != 1 {
		t.Errorf("after a logout %d clients were made", n)
	}
	var accounts []struct{ ID, Kind, Team, User string }
	out, _, _ := ci.Sft(t.Context(), "list-accounts", "--json")
	if json.Unmarshal([]byte(out), &accounts) != nil || len(accounts) != 1 || accounts[0].Kind != "service" || accounts[0].User != "deploy" || accounts[0].Team != stage.Team {
		t.Fatalf("the accounts are %s", out)
	}
	s.Do("DELETE", "/clients/"+accounts[0].ID, nil, nil)
	run("20\n", "for i in $(seq 20); do sft ssh web01 hostname & done | grep -c web01")
	if n := made(); n != 2 {
		t.Errorf("after the client was removed %d were made", n)
	}

	// Without the binding nothing goes on, and nothing is issued.
	shell := ci.StartSft("sft-ssh", "ssh", "web01", "echo in; sleep 1000")
	s.Wait("ci is in", 20*time.Second, func() bool { return strings.Contains(shell.Output(), "in\n") })
	s.Do("DELETE", "/service_users/deploy/bindings/"+b.ID, nil, nil)
	refused(t, ci, 4, []string{"acts as no service user", "ask an administrator"}, "ssh", "web01", "hostname")
	// And OpenSSH goes nowhere else instead.
	run("", "ssh -o BatchMode=yes web01 hostname 2>err && echo let in; grep -q 'no service user' err || cat err")
	select {
	case <-shell.Done():
	case <-time.After(20 * time.Second):
		t.Error("the shell lives on")
	}
	s.WaitEvent("the refusal", func(e audit.Event) bool {
		return e.Kind == audit.ClientEnroll && e.Outcome != audit.Success && fmt.Sprint(e.Detail["account"]) == "ci"
	})

	// And with it again it goes on.
	bind()
	s.Wait("ci is let in again", 40*time.Second, func() bool {
		out, _, _ := ci.Sft(t.Context(), "ssh", "web01", "hostname")
		return out == "web01\n"
	})

	// Nobody was asked; and the socket goes with the agent.
	if urls := ci01.Must("", "cat", "/var/lib/lab-urls"); urls != "" {
		t.Errorf("a browser was opened at %s", urls)
	}
	if got := ci01.Must("", "stat", "-c", "%U %a %F", "/run/sftd", "/run/sftd/service.sock"); got != "root 755 directory\nroot 666 socket\n" {
		t.Errorf("the socket is %q", got)
	}
	ci01.Agent.Stop()
	if out, err := ci01.Run("", "test", "-e", "/run/sftd/service.sock"); err == nil {
		t.Errorf("the socket of an agent that has ended is there%s", out)
	}
	run("web01\n", "sft ssh web01 hostname") // which needs no agent yet
	ci01.Must("ci", "sh", "-c", "rm ~/.local/state/ScaleFT/device-*.key")
	refused(t, ci, 3, []string{"this host's agent does not say whose process this is", "sftd status"}, "ssh", "web01", "hostname")
}
