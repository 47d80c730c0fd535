//go:build linux

package shell

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/e2e/stage"
)

// An administrator sets up a team, and later finds what somebody did, with curl,
// jq and the reference, and nothing else: from the line that init prints on.
func TestAdministratorWithCurl(t *testing.T) {
	s := newStage(t)
	office := s.Lab.Host("office")
	office.AddUser("olga", "")
	office.Write("/home/olga/key.json", 0o600, []byte(`{"key_id":"`+s.Key.ID+`","key_secret":"`+s.Key.Secret+`"}`))
	office.Must("", "chown", "olga:", "/home/olga/key.json")
	_, fingerprint, _ := strings.Cut(s.Enroll, "--ca-fingerprint ")
	// Each part begins with what the reference says of tokens and bodies.
	run := func(script string) string {
		t.Helper()
		return strings.TrimSpace(office.Must("olga", "bash", "-euo", "pipefail", "-c", `
			P=`+s.URL+`/v1/teams/`+stage.Team+`
			api() { curl -fsS --cacert ca.pem -H "Authorization: Bearer $(cat token)" -H 'Content-Type: application/json' "$@"; }
			post() { api "$P$1" -d "$2"; }
			`+script))
	}
	run(`
		openssl s_client -connect platform:8443 -servername platform -showcerts </dev/null 2>/dev/null |
			awk '/BEGIN CERT/ {c = ""} {c = c $0 "\n"} /END CERT/ {last = c} END {printf "%s", last}' >ca.pem
		test "$(openssl x509 -in ca.pem -outform der | sha256sum | cut -d' ' -f1)" = ` + strings.TrimPrefix(fingerprint, "sha256:") + `
		umask 077
		curl -fsS --cacert ca.pem "$P/service_token" -H 'Content-Type: application/json' -d @key.json | jq -r .bearer_token >token`)

	// The team's settings: a working day.
	if got := run(`api -X PUT "$P/settings" -d '{"client_session_duration":28800}'
		api "$P/settings" | jq .client_session_duration`); got != "28800" {
		t.Errorf("people stay signed in for %s seconds", got)
	}

	// Two projects, three groups, two people; a group that counts on web servers
	// alone.
	links := run(`
		for p in shop lab; do post /projects "{\"name\":\"$p\"}" >/dev/null; done
		for g in web-team operators testers; do post /groups "{\"name\":\"$g\"}" >/dev/null; done
		post /projects/shop/groups '{"name":"web-team","server_access":true,"servers_selector":"role=web"}' >/dev/null
		post /projects/shop/groups '{"name":"operators","server_access":true,"server_admin":true}' >/dev/null
		post /projects/lab/groups '{"name":"testers","server_access":true}' >/dev/null
		for u in ann bob; do post /users "{\"name\":\"$u\",\"full_name\":\"$u example\"}" | jq -r .first_use_url; done
		post /groups/web-team/users '{"name":"ann"}'
		post /groups/operators/users '{"name":"bob"}'
		post /groups/testers/users '{"name":"bob"}'`)
	for _, link := range strings.Fields(links) {
		s.FirstUse(link)
	}

	// Five servers, each with the token of its project in its file.
	tokens := strings.Fields(run(`for p in shop lab; do post /projects/$p/server_enrollment_tokens '{"description":"first"}' | jq -r .token; done`))
	web := s.Lab.Host("web01")
	web.StartSSHD()
	hosts := map[string]*stage.Server{"web01": s.ServerOn(web, "", "", "")}
	for _, name := range []string{"web02", "db01", "test01", "test02"} {
		hosts[name] = s.ServerOn(s.Lab.Host(name), "", "", "")
	}
	for name, v := range hosts {
		token := tokens[0]
		if strings.HasPrefix(name, "test") {
			token = tokens[1]
		}
		v.Write("/var/lib/sftd/enrollment.token", 0o600, []byte(token+"\n"))
	}
	s.Wait("all servers are there", 30*time.Second, func() bool {
		return run(`api "$P/servers?state=ACTIVE" | jq '.list | length'`) == "5"
	})
	run(`
		for name in web01 web02; do
			id=$(api "$P/servers?hostname=$name" | jq -r '.list[0].id')
			api -X PUT "$P/servers/$id" -d '{"labels":{"role":"web"}}'
		done`)
	if got := run(`
		url="$P/servers?count=2"
		while [ -n "$url" ]; do
			curl -fsS --cacert ca.pem -D head -H "Authorization: Bearer $(cat token)" "$url" | jq -r '.list[] | .project_name + "/" + .hostname'
			url=$(tr -d '\r' <head | sed -n 's/^[Ll]ink: <\(.*\)>; rel="next"$/\1/p')
		done | sort | tr '\n' ' '`); got != "lab/test01 lab/test02 shop/db01 shop/web01 shop/web02" {
		t.Errorf("page by page the servers are %q", got)
	}
	access := func(project, server, user string) string {
		t.Helper()
		return run(`
			id=$(api "$P/projects/` + project + `/servers?hostname=` + server + `" | jq -r '.list[0].id')
			api "$P/projects/` + project + `/servers/$id/access?user=` + user + `" | jq -r '"\(.access) \(.admin) \(.group // "") \(.missing // "")"'`)
	}
	for _, tt := range []struct{ project, server, user, want string }{
		{"shop", "web02", "ann", "true false web-team"},
		{"shop", "db01", "ann", "false false  selector"},
		{"lab", "test01", "ann", "false false  group"},
		{"shop", "db01", "bob", "true true operators"},
		{"lab", "test02", "bob", "true false testers"},
	} {
		if got := access(tt.project, tt.server, tt.user); got != tt.want {
			t.Errorf("%s on %s is %q, want %q", tt.user, tt.server, got, tt.want)
		}
	}

	// Somebody works.
	desk := s.Desk("laptop", "ann")
	desk.EnrollQuickly()
	s.Wait("web01 is known for its SSH server", 30*time.Second, func() bool { return s.ServerNamed("web01").SSHPort != 0 })
	mayLogin(s, hosts["web01"], "ann")
	says(t, desk, "web01\nann\n", "ssh", "web01", "hostname; id -un")
	if out, errs, status := desk.Sft(t.Context(), "list-servers"); status != 0 || strings.Contains(out, "db01") || !strings.Contains(out, "web02") {
		t.Errorf("ann's servers, with %d: %s%s", status, out, errs)
	}
	refused(t, desk, sft.ExitDenied, []string{"are for other servers than \"db01\"", "ask an administrator"}, "ssh", "db01", "true")
	refused(t, desk, sft.ExitDenied, []string{"has no access to the servers of project \"lab\""}, "ssh", "test01", "true")

	// So does somebody else, on the same server and on another.
	desk2 := s.Desk("laptop2", "bob")
	desk2.EnrollQuickly()
	mayLogin(s, hosts["web01"], "bob")
	says(t, desk2, "web01\nbob\n", "ssh", "web01", "hostname; id -un")

	// And is found by who, where and when: in the second that it was in, and
	// neither before nor after it.
	found := func(user, server, from, to string) string {
		t.Helper()
		return run(`api -G "$P/auditsV2" -d type=server.ssh_login -d user=` + user + ` -d target=` + server + ` --data-urlencode "from=` + from + `" --data-urlencode "to=` + to + `" |
			jq -r '.list[] | .detail.user + " " + .target + " " + .detail.login'`)
	}
	const hour = "$(date -u -d '1 hour ago' +%FT%TZ)"
	const next = "$(date -u -d '1 hour' +%FT%TZ)"
	s.Wait("the sessions are found", 20*time.Second, func() bool {
		return found("ann", "web01", hour, next) == "ann web01 ann" && found("bob", "web01", hour, next) == "bob web01 bob"
	})
	// The beginning of an id says when the event was recorded.
	id := run(`api "$P/auditsV2?type=server.ssh_login&user=ann&target=web01" | jq -r '.list[0].id'`)
	at, err := strconv.ParseInt(strings.ReplaceAll(id, "-", "")[:12], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	when := time.UnixMilli(at)
	sec := func(n int) string {
		return when.Truncate(time.Second).Add(time.Duration(n) * time.Second).UTC().Format(time.RFC3339)
	}
	for _, tt := range []struct{ what, user, server, from, to, want string }{
		{"in its second", "ann", "web01", sec(0), sec(1), "ann web01 ann"},
		{"on the day", "ann", "web01", sec(-86400), sec(86400), "ann web01 ann"},
		{"until the second before", "ann", "web01", sec(-86400), sec(-1), ""},
		{"from the second after", "ann", "web01", sec(1), sec(86400), ""},
		{"a week before", "ann", "web01", sec(-8 * 86400), sec(-7 * 86400), ""},
		{"on another server", "ann", "web02", sec(-86400), sec(86400), ""},
		{"of somebody else", "bob", "web01", sec(-86400), sec(86400), "bob web01 bob"},
		{"of who was not there", "olive", "web01", sec(-86400), sec(86400), ""},
	} {
		if got := found(tt.user, tt.server, tt.from, tt.to); got != tt.want {
			t.Errorf("%s, the session of %s on %s at %s is found from %s to %s as %q, want %q", tt.what, tt.user, tt.server, when.UTC(), tt.from, tt.to, got, tt.want)
		}
	}
	if got := run(`
		session=$(api "$P/auditsV2?type=server.ssh_login&user=ann" | jq -r '.list[0].session')
		api "$P/auditsV2?session=$session" | jq -r '.list[].type' | sort -u | tr '\n' ' '`); !strings.Contains(got, "user_creds.issue") || !strings.Contains(got, "server.ssh_login") {
		t.Errorf("the session's events are %q", got)
	}
	if got := run(`api -G "$P/auditsV2" -d user=ann --data-urlencode "from=$(date -u -d '1 hour' +%FT%TZ)" | jq '.list | length'`); got != "0" {
		t.Errorf("%s events are from the future", got)
	}
}
