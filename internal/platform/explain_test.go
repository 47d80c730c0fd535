package platform_test

import (
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/testenv"
)

// describe is an explanation in short: what is missing, and each step.
func describe(v api.Access) string {
	var s []string
	for _, step := range v.Steps {
		mark := "+"
		if !step.OK {
			mark = "-"
		}
		s = append(s, mark+step.Rule)
	}
	return strings.Join(s, " ")
}

func TestExplain(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant("lab", "dev", false, "ann")
		e.Do("POST", "/entitlements/sudo", m{"name": "logs", "opt_no_passwd": true, "structured_commands": []m{{"command": "/bin/ls", "command_type": "executable"}}}, nil)
		e.Do("PUT", "/projects/lab/groups/dev", m{"server_access": true, "servers_selector": "env=lab", "sudo_entitlements": []string{"logs"}}, nil)
		s := e.Server("lab", testenv.SSHFacts(t, "lab01"))
		jump := e.Server("lab", testenv.SSHFacts(t, "jump"))
		bare := e.Enroll("lab", testenv.Facts("bare"))
		ann, bob := e.Client("ann"), e.Client("bob")
		at := func(id, query string) string { return base + "/projects/lab/servers/" + id + "/access?" + query }
		ask := func(c *api.Client, id, query string) (v api.Access, err error) {
			return v, c.Do(t.Context(), "GET", at(id, query), nil, &v)
		}
		// same wants the explanation, and Connect to do what it says.
		same := func(what, steps, missing string) api.Access {
			t.Helper()
			v, err := ask(e.Service.Client, s.ID, "user=ann&service=ssh")
			if err != nil {
				t.Fatal(err)
			}
			if got := describe(v); got != steps || v.Missing != missing || v.Credentials != (missing == "") {
				t.Errorf("%s: %s, %q is missing; want %s, %q", what, got, v.Missing, steps, missing)
			}
			_, _, err = e.ConnectSSH(ann, "lab01")
			if (err == nil) != v.Credentials {
				t.Errorf("%s: credentials are %v, and connecting says %v", what, v.Credentials, err)
			}
			if st := e.State(s); (haveAccounts(st) != "") != v.Access {
				t.Errorf("%s: access is %v, and the host has %q", what, v.Access, haveAccounts(st))
			}
			return v
		}
		label := func(id string, labels m) { e.Do("PUT", "/servers/"+id, m{"labels": labels}, nil) }

		v := same("without the label", "+status +kind -group -access", "selector")
		if v.Steps[2].Text != "group dev gives access elsewhere: its selector wants api.env=lab, which the server has not" {
			t.Errorf("the step says %q", v.Steps[2].Text)
		}
		label(s.ID, m{"env": "lab"})
		v = same("with it", "+status +kind +group +access -admin +sudo +server +way +service", "")
		if v.User != "ann" || v.Server != "lab01" || v.ServerID != s.ID || v.Project != "lab" || v.Service != "ssh" || v.Group != "dev" || v.Admin || strings.Join(v.Sudo, " ") != "logs" {
			t.Errorf("it is %+v", v)
		}
		s.Facts.Bastion = "jump"
		e.Report(s)
		v = same("behind a bastion that is closed to her", "+status +kind +group +access -admin +sudo +server -way +service", "way")
		if w := v.Steps[7]; w.Hint == "" || !strings.Contains(w.Text, `the bastion "jump" of server "lab01"`) {
			t.Errorf("the step is %+v", w)
		}
		label(jump.ID, m{"env": "lab"})
		v = same("behind one that is not", "+status +kind +group +access -admin +sudo +server +way +hop +service", "")
		if v.Steps[7].Text != `through "jump"` {
			t.Errorf("the step says %q", v.Steps[7].Text)
		}
		e.Do("PUT", "/projects/lab", m{"require_preauth_for_creds": true}, nil)
		same("with a preauthorization missing", "+status +kind +group +access -admin +sudo +server -preauthorization +way -hop +service", "preauthorization")
		var a sft.Preauthorization
		e.Do("POST", "/projects/lab/preauthorizations", m{"user_name": "ann", "servers": []string{s.ID}, "expires_at": e.Clock.Now().Add(30 * time.Minute)}, &a)
		v = same("with one for the server alone", "+status +kind +group +access -admin +sudo +server +preauthorization +way -hop +service", "hop")
		if v.Preauthorization != a.ID {
			t.Errorf("it goes by the preauthorization %q", v.Preauthorization)
		}
		e.Do("PUT", "/projects/lab/preauthorizations/"+a.ID, m{"servers": []string{}}, nil)
		same("with one for all", "+status +kind +group +access -admin +sudo +server +preauthorization +way +hop +service", "")
		e.Clock.Advance(45 * time.Minute)
		same("with one that is over", "+status +kind +group +access -admin +sudo +server -preauthorization -preauthorization +way -hop +service", "preauthorization")
		e.Do("PUT", "/projects/lab", m{"require_preauth_for_creds": false}, nil)
		// Her account is shut on the hosts, this one and the one on the way.
		e.Do("PUT", "/projects/lab", m{"create_server_users": false}, nil)
		v = same("in a project without accounts", "+status +kind +group +access -admin +sudo +server -way -service", "way")
		if w := v.Steps[8]; !strings.Contains(w.Text, `server "lab01" lets nobody in: project "lab" does not let sftd manage accounts`) || !strings.Contains(w.Hint, "create_server_users") {
			t.Errorf("the step is %+v", w)
		}
		s.Facts.Bastion = ""
		e.Report(s)
		same("nor with nothing on the way", "+status +kind +group +access -admin +sudo +server +way -service", "service")
		for _, service := range []string{"rdp", "ssh"} {
			if v, err := ask(ann.Client, s.ID, "service="+service); err != nil || v.Credentials || v.Missing != "service" {
				t.Errorf("%s in a project without accounts: %+v, %v", service, v, err)
			}
		}
		key, _ := testenv.Key(t)
		for _, service := range []string{"rdp", "ping"} {
			_, err := connect(t, ann, api.ConnectRequest{Target: s.ID, Service: service, CSR: testenv.CSR(t, key)})
			wantCode(t, service+" in a project without accounts", err, sft.Denied)
		}
		e.Do("PUT", "/projects/lab", m{"create_server_users": true}, nil)
		s.Facts.Bastion = "jump"
		e.Report(s)
		same("with accounts again", "+status +kind +group +access -admin +sudo +server +way +hop +service", "")
		s.Facts.SSH = nil
		e.Report(s)
		same("without an SSH server", "+status +kind +group +access -admin +sudo +server +way +hop -service", "service")

		// Who may ask.
		v, err := ask(ann.Client, s.ID, "")
		if err != nil || !v.Credentials || v.User != "ann" || v.Service != "rdp" {
			t.Errorf("ann of herself: %+v, %v", v, err)
		}
		label(bare.ID, m{"env": "lab"})
		if v, err = ask(ann.Client, bare.ID, "user=ANN"); err != nil || v.Missing != "service" || v.Steps[len(v.Steps)-1].Text != `server "bare" has no broker` {
			t.Errorf("ann of herself and a server without a broker: %+v, %v", v, err)
		}
		if v, err = ask(bob.Client, s.ID, ""); err != nil || v.Access || v.Missing != "group" {
			t.Errorf("bob of himself, who may read the team: %+v, %v", v, err)
		}
		_, err = ask(ann.Client, s.ID, "user=bob")
		wantCode(t, "ann of bob", err, sft.Denied)
		_, err = ask(ann.Client, s.ID, "user=nobody")
		wantCode(t, "ann of nobody", err, sft.Denied)
		e.Do("PUT", "/groups/everyone", m{"roles": []string{}}, nil)
		_, err = ask(bob.Client, s.ID, "")
		wantCode(t, "bob, who may not read the team, of a server that is closed to him", err, sft.NotFound)
		_, err = ask(bob.Client, "nothing", "")
		wantCode(t, "bob, of no server", err, sft.NotFound)
		// What else is wrong with the question tells nothing of it.
		for _, id := range []string{s.ID, "nothing"} {
			_, err = ask(bob.Client, id, "service=ftp")
			wantCode(t, "bob, of a service that is unknown", err, sft.NotFound)
		}
		_, err = ask(ann.Client, "nothing", "service=ftp")
		wantCode(t, "ann, of no server and a service that is unknown", err, sft.NotFound)
		_, err = ask(ann.Client, s.ID, "service=ftp")
		wantCode(t, "ann, of a service that is unknown", err, sft.UnknownService)
		e.Do("POST", "/groups", m{"name": "audit", "roles": []string{"reporting_user"}}, nil)
		e.Do("POST", "/groups/audit/users", m{"name": "bob"}, nil)
		if v, err = ask(bob.Client, s.ID, "user=ann"); err != nil || !v.Credentials {
			t.Errorf("a reporting user of ann: %+v, %v", v, err)
		}
		_, err = ask(bob.Client, s.ID, "user=nobody")
		wantCode(t, "of nobody", err, sft.NotFound)
		_, err = ask(bob.Client, s.ID, "user=ann&service=ftp")
		wantCode(t, "of a service that is unknown", err, sft.UnknownService)

		// The operator asks without signing in, by any name.
		for _, name := range []string{"lab01", "LAB/lab01", s.ID} {
			if v, err := e.Platform.AccessOf(t.Context(), "", "ann", name, "rdp"); err != nil || !v.Credentials || v.ServerID != s.ID {
				t.Errorf("the operator of %s: %+v, %v", name, v, err)
			}
		}
		for _, tt := range [][3]string{{"", "nobody", "lab01"}, {"", "ann", "nothing"}, {"nowhere", "ann", "lab01"}} {
			_, err := e.Platform.AccessOf(t.Context(), tt[0], tt[1], tt[2], "")
			wantCode(t, strings.Join(tt[:], "/"), err, sft.NotFound)
		}
		_, err = e.Platform.AccessOf(t.Context(), "", "ann", "lab01", "ftp")
		wantCode(t, "the operator, of a service that is unknown", err, sft.UnknownService)
		e.Do("PUT", "/users/ann", m{"status": "DISABLED"}, nil)
		if v, err := e.Platform.AccessOf(t.Context(), testenv.Team, "ann", "lab01", ""); err != nil || describe(v) != "-status +kind +group -access" || v.Missing != "active_user" {
			t.Errorf("somebody disabled: %+v, %v", v, err)
		}
	})
}
