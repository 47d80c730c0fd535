//go:build linux

package shell

import (
	"strings"
	"testing"
	"time"

	"sft"
	"sft/e2e/lab"
	"sft/e2e/stage"
	"sft/internal/audit"
)

// The shells of a client that is deleted or held back end, directly at the SSH
// server, too. Those of another client of that person go on; when there is none,
// so does nothing that was left running.
func TestShellsEndWithTheirClient(t *testing.T) {
	s := newStage(t)
	s.Project("prod", false)
	s.Person("ann", "Ann Example", "prod")
	web := s.SSHServer("web01", "prod", "", "")
	var shells []*lab.Process
	var desks []*stage.Desk
	var clients []string
	for _, name := range []string{"laptop", "tablet"} {
		desk := s.Desk(name, "ann")
		desk.EnrollQuickly()
		mayLogin(s, web, "ann")
		p := desk.StartSft("sft-ssh-"+name, "ssh", "web01", "setsid sleep 4242 >/dev/null 2>&1 </dev/null & echo in; exec sleep 1000")
		s.Wait("ann is in by her "+name, 20*time.Second, func() bool { return strings.Contains(p.Output(), "in\n") })
		e := s.WaitEvent("her sign-in is told", func(e audit.Event) bool {
			return e.Kind == audit.SSHLogin && e.Client != "" && (len(clients) == 0 || e.Client != clients[0])
		})
		shells, desks, clients = append(shells, p), append(desks, desk), append(clients, e.Client)
	}
	ended := func(p *lab.Process) bool {
		select {
		case <-p.Done():
			return true
		default:
			return false
		}
	}
	s.Do("DELETE", "/clients/"+clients[0], nil, nil)
	s.Wait("the laptop's shell has ended", 10*time.Second, func() bool { return ended(shells[0]) })
	if out, _ := web.Run("", "pgrep", "-u", "ann", "-f", "sleep 4242"); ended(shells[1]) || strings.Count(out, "\n") != 2 {
		t.Errorf("what is the tablet's has ended, too: it runs %q", out)
	}
	s.Do("PUT", "/clients/"+clients[1], map[string]string{"state": "PENDING"}, nil)
	s.Wait("everything has ended", 10*time.Second, func() bool {
		_, err := web.Run("", "pgrep", "-u", "ann")
		return err != nil && ended(shells[1])
	})
	for _, args := range [][]string{{"ssh", "web01", "true"}, {"list-servers"}} {
		refused(t, desks[1], sft.ExitDenied, []string{clients[1] + `" is pending: an administrator of the team has to approve it`, "hint: give an administrator this id"}, args...)
	}
	for _, c := range clients {
		s.WaitEvent("the end is told", func(e audit.Event) bool {
			return e.Kind == audit.SessionEnd && e.Client == c && e.Detail["service"] == "ssh"
		})
	}
}

// Whoever was let in when access ended, and for whom nothing runs yet, does not
// come in afterwards.
func TestNobodyComesInAfterAccessEnded(t *testing.T) {
	s := newStage(t)
	s.Project("prod", false)
	s.Person("ann", "Ann Example", "prod")
	web := s.SSHServer("web01", "prod", "", "")
	desk := s.Desk("laptop", "ann")
	desk.EnrollQuickly()
	mayLogin(s, web, "ann")
	web.Must("", "sh", "-c", "echo 'session required pam_exec.so quiet /bin/sleep 8' >>/etc/pam.d/sshd")
	p := desk.StartSft("sft-ssh", "ssh", "web01", "echo in; exec sleep 1000")
	s.Wait("ann is let in", 20*time.Second, func() bool {
		_, err := web.Run("", "grep", "-q", "Accepted publickey for ann ", lab.AuthLog)
		return err == nil
	})
	s.Leave("ann", "prod")
	select {
	case <-p.Done():
	case <-time.After(20 * time.Second):
		t.Error("her connection lives on")
	}
	if strings.Contains(p.Output(), "in\n") {
		t.Error("she came in")
	}
	if out, err := web.Run("", "pgrep", "-u", "ann"); err == nil {
		t.Errorf("as her runs %s", out)
	}
}
