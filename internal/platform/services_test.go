package platform_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/store"
	"sft/internal/testenv"
)

// bound makes a service user in the group ci, which may reach the servers of
// lab, and binds it to the account deploy of the server.
func bound(t *testing.T, e *testenv.Env, s *testenv.Server, name string) sft.ServiceBinding {
	t.Helper()
	e.Do("POST", "/service_users", m{"name": name}, nil)
	e.Do("POST", "/groups/ci/users", m{"name": name}, nil)
	return bind(e, s, name, "deploy")
}

func bind(e *testenv.Env, s *testenv.Server, name, account string) (b sft.ServiceBinding) {
	e.Do("POST", "/service_users/"+name+"/bindings", m{"server": s.ID, "account": account}, &b)
	return b
}

// ask is the agent's request for a client of an account.
func ask(t *testing.T, s *testenv.Server, account string, spki []byte) (r api.ServiceClientReply, err error) {
	t.Helper()
	return r, s.Do(t.Context(), "POST", "/v1/agent/service_client", api.ServiceClientRequest{Account: account, DeviceKey: spki, Device: api.DeviceInfo{Hostname: "ci01", OS: "Debian 12", Version: "1"}}, &r)
}

// process is a process of the account deploy with a client of its own.
func process(t *testing.T, e *testenv.Env, s *testenv.Server) (*testenv.Client, []byte) {
	t.Helper()
	key, spki := testenv.Key(t)
	r, err := ask(t, s, "deploy", spki)
	if err != nil {
		t.Fatal(err)
	}
	return &testenv.Client{Client: e.Signed(key, "client:"+r.ClientID), ID: r.ClientID, User: r.User}, spki
}

func logins(st api.State) (list []string) {
	for _, u := range st.Users {
		list = append(list, fmt.Sprintf("%s(%t)", u.Login, u.Admin))
	}
	return list
}

func TestServiceUsersOnHosts(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		ctx := t.Context()
		e.Grant("lab", "ci", false, "ann")
		s, host := e.Server("lab", testenv.Facts("lab01")), e.Server("build", testenv.Facts("ci01"))
		e.Do("POST", "/service_users", m{"name": "robo.ci"}, nil)
		e.Do("POST", "/groups/ci/users", m{"name": "robo.ci"}, nil)
		if got := logins(e.State(s)); !slices.Equal(got, []string{"ann(false)"}) {
			t.Errorf("a service user without a binding has an account: %q", got)
		}
		_, spki := testenv.Key(t)
		_, err := ask(t, host, "deploy", spki)
		wantCode(t, "an account that is not bound", err, sft.Denied)

		var b sft.ServiceBinding
		var st api.State
		events := since(e, func() {
			st = heard(t, e, s, "a binding", func() { b = bind(e, host, "robo.ci", "deploy") })
		})
		want := sft.ServiceBinding{ID: b.ID, User: "robo.ci", Server: host.ID, ServerName: "ci01", Project: "build", Account: "deploy", CreatedBy: "robot", CreatedAt: e.Clock.Now()}
		if d := cmp.Diff(want, b); d != "" || len(b.ID) != 36 {
			t.Errorf("the binding (-want +got):\n%s", d)
		}
		detail := map[string]string{"binding": b.ID, "user": "robo.ci", "server": host.ID, "account": "deploy"}
		if told(events) != "service.create success" || events[0].Target != "ci01" || events[0].Project != "build" || !cmp.Equal(events[0].Detail, detail) {
			t.Errorf("it is told as %+v", events)
		}
		if got := logins(st); !slices.Equal(got, []string{"ann(false)", "robo_ci(false)"}) {
			t.Errorf("the server that the service user reaches has %q", got)
		}
		if got := logins(e.State(host)); len(got) != 0 {
			t.Errorf("the server that it is bound on, and may not reach, has %q", got)
		}
		var list api.List[sft.ServiceBinding]
		e.Do("GET", "/service_users/robo.ci/bindings", nil, &list)
		if d := cmp.Diff([]sft.ServiceBinding{want}, list.List); d != "" {
			t.Errorf("the list (-want +got):\n%s", d)
		}

		// The agent gets a client, and with it a way to a server.
		var r api.ServiceClientReply
		key, spki := testenv.Key(t)
		events = since(e, func() { r, err = ask(t, host, "deploy", spki) })
		if err != nil || r.Team != "main" || r.User != "robo.ci" || r.URL != e.URL || !r.SignedInUntil.Equal(e.Clock.Now().Add(time.Hour)) {
			t.Fatalf("the client is %+v, %v", r, err)
		}
		if told(events) != "client.enroll success" || events[0].Client != r.ClientID || events[0].Actor.Kind != "server" || events[0].Actor.ID != host.ID ||
			!cmp.Equal(events[0].Detail, detail) {
			t.Errorf("it is told as %+v", events)
		}
		c := &testenv.Client{Client: e.Signed(key, "client:"+r.ClientID), ID: r.ClientID}
		var clients api.List[sft.Client]
		if err := c.Do(ctx, "GET", base+"/clients", nil, &clients); err != nil || len(clients.List) != 1 || clients.List[0].MadeBy != host.ID || clients.List[0].State != sft.StateActive || clients.List[0].User != "robo.ci" {
			t.Errorf("its clients are %+v, %v", clients, err)
		}
		way, _, err := e.Connect(c, "lab01")
		if err != nil || way.Route[0].Login != "robo_ci" {
			t.Fatalf("connecting: %+v, %v", way, err)
		}
		_, _, err = e.Connect(c, "ci01")
		wantCode(t, "a server that its groups do not reach", err, sft.NotFound)

		// The hour.
		e.Clock.Advance(time.Hour - time.Second)
		if _, _, err := e.Connect(c, "lab01"); err != nil {
			t.Errorf("just before the hour: %v", err)
		}
		e.Clock.Advance(time.Second)
		_, _, err = e.Connect(c, "lab01")
		wantCode(t, "after the hour", err, sft.SignIn)
		events = since(e, func() { r, err = ask(t, host, "deploy", spki) })
		if err != nil || r.ClientID != c.ID || !r.SignedInUntil.Equal(e.Clock.Now().Add(time.Hour)) || told(events) != "auth_token.issue success" || events[0].Client != c.ID {
			t.Errorf("asking again with the key: %+v, %v, told as %+v", r, err, events)
		}
		if way, _, err = e.Connect(c, "lab01"); err != nil {
			t.Errorf("in the next hour: %v", err)
		}
		// Its owner cannot keep it alive by itself.
		wantCode(t, "a person's way to sign in", c.Do(ctx, "POST", "/v1/clients/login", api.EnrollClientRequest{Code: "x"}, nil), sft.Denied)
	})
}

// Through a host's client a service user reaches servers and does no more,
// whatever its roles: who holds a host does not hold the team.
func TestAServiceUserHasNoRolesOnAHost(t *testing.T) {
	e := testenv.New(t)
	e.Grant("lab", "ci", true)
	e.Server("lab", testenv.Facts("lab01"))
	host := e.Server("build", testenv.Facts("ci01"))
	bound(t, e, host, "boss")
	e.Do("POST", "/groups/owners/users", m{"name": "boss"}, nil)
	var k struct {
		ID     string `json:"id"`
		Secret string `json:"key_secret"`
	}
	e.Do("POST", "/service_users/boss/keys", nil, &k)
	byKey := e.Bearer(k.ID, k.Secret)
	c, _ := process(t, e, host)
	for path, body := range map[string]any{"/groups": m{"name": "x"}, "/users": m{"name": "x"}, "/projects/lab/groups": m{"name": "everyone", "server_access": true},
		"/service_users/boss/bindings": m{"server": host.ID, "account": "root"}, "/service_users/boss/keys": m{}} {
		wantCode(t, "POST "+path, c.Do(t.Context(), "POST", base+path, body, nil), sft.Denied)
	}
	for _, path := range []string{"/users", "/auditsV2", "/clients?all=true", "/entitlements/sudo", "/projects"} {
		wantCode(t, "GET "+path, c.Do(t.Context(), "GET", base+path, nil, nil), sft.Denied)
		wantCode(t, "GET by its key "+path, byKey.Do(t.Context(), "GET", base+path, nil, nil), "")
	}
	var servers api.List[sft.Server]
	if err := c.Do(t.Context(), "GET", base+"/servers", nil, &servers); err != nil || len(servers.List) != 1 || servers.List[0].Hostname != "lab01" {
		t.Errorf("its servers are %+v, %v", servers, err)
	}
	if _, _, err := e.Connect(c, "lab01"); err != nil {
		t.Error(err)
	}
	// A key is no client.
	wantCode(t, "connecting by its key", byKey.Do(t.Context(), "POST", base+"/connect", api.ConnectRequest{Target: "lab01", Service: "rdp"}, nil), sft.SignIn)
	const path = "/v1/agent/service_client"
	for who, err := range map[string]error{
		"its client asks for another": c.Do(t.Context(), "POST", path, m{}, nil),
		"its key asks for one":        byKey.Do(t.Context(), "POST", path, m{}, nil),
		"a person asks for one":       e.Client(testenv.Owner).Do(t.Context(), "POST", path, m{}, nil),
		"an agent binds":              host.Do(t.Context(), "POST", base+"/service_users/boss/bindings", m{}, nil),
	} {
		wantCode(t, who, err, sft.SignIn)
	}
}

// However the permission ends, the clients are refused at once, and what they
// have opened ends.
func TestTheEndOfABinding(t *testing.T) {
	for _, tt := range []struct {
		name  string
		after sft.Code // what the agent is told then
		end   func(*testing.T, *testenv.Env, *testenv.Server, sft.ServiceBinding)
	}{
		{"the binding is removed", sft.Denied, func(t *testing.T, e *testenv.Env, _ *testenv.Server, b sft.ServiceBinding) {
			events := since(e, func() { e.Do("DELETE", "/service_users/ci1/bindings/"+b.ID, nil, nil) })
			if told(events) != "service.remove success" || events[0].Detail["account"] != "deploy" || events[0].Detail["user"] != "ci1" {
				t.Errorf("it is told as %+v", events)
			}
		}},
		{"the server is deleted", sft.Revoked, func(t *testing.T, e *testenv.Env, host *testenv.Server, _ sft.ServiceBinding) {
			e.Do("DELETE", "/projects/build/servers/"+host.ID, nil, nil)
		}},
		{"the service user is disabled", sft.Denied, func(t *testing.T, e *testenv.Env, _ *testenv.Server, _ sft.ServiceBinding) {
			e.Do("PUT", "/users/ci1", m{"status": "DISABLED"}, nil)
		}},
		{"the service user is disabled, and enabled again", "", func(t *testing.T, e *testenv.Env, _ *testenv.Server, _ sft.ServiceBinding) {
			e.Do("PUT", "/users/ci1", m{"status": "DISABLED"}, nil)
			e.Do("PUT", "/users/ci1", m{"status": "ACTIVE"}, nil)
		}},
		{"the service user is deleted", sft.Denied, func(t *testing.T, e *testenv.Env, _ *testenv.Server, _ sft.ServiceBinding) {
			e.Do("PUT", "/users/ci1", m{"status": "DELETED"}, nil)
		}},
		{"the client is deleted", "", func(t *testing.T, e *testenv.Env, _ *testenv.Server, _ sft.ServiceBinding) {
			var list api.List[sft.Client]
			e.Do("GET", "/clients?all=true&username=ci1", nil, &list)
			e.Do("DELETE", "/clients/"+list.List[0].ID, nil, nil)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			testenv.Each(t, func(t *testing.T, e *testenv.Env) {
				e.Grant("lab", "ci", false)
				s, host, elsewhere := e.Server("lab", testenv.Facts("lab01")), e.Server("build", testenv.Facts("ci01")), e.Server("build", testenv.Facts("ci02"))
				b := bound(t, e, host, "ci1")
				bound(t, e, elsewhere, "ci2")
				c, spki := process(t, e, host)
				other, _ := process(t, e, elsewhere)
				way, _, err := e.Connect(c, "lab01")
				if err != nil {
					t.Fatal(err)
				}
				otherWay, _, err := e.Connect(other, "lab01")
				if err != nil {
					t.Fatal(err)
				}
				st := heard(t, e, s, tt.name, func() { tt.end(t, e, host, b) })
				if !slices.Contains(st.EndedSessions, way.SessionID) || slices.Contains(st.EndedSessions, otherWay.SessionID) {
					t.Errorf("the sessions %q are ended, want %s", st.EndedSessions, way.SessionID)
				}
				// Not even the request to see its own clients is let in.
				for _, path := range []string{"/clients", "/servers"} {
					wantCode(t, "GET "+path, c.Do(t.Context(), "GET", base+path, nil, nil), sft.Revoked)
				}
				_, _, err = e.Connect(c, "lab01")
				wantCode(t, "connecting", err, sft.Revoked)
				_, fresh := testenv.Key(t)
				_, err = ask(t, host, "deploy", fresh)
				wantCode(t, "the agent, with a new key", err, tt.after)
				old := tt.after
				if old == "" {
					old = sft.Exists // a key that is burnt stays so
				}
				_, err = ask(t, host, "deploy", spki)
				wantCode(t, "the agent, with the old key", err, old)
				if _, _, err := e.Connect(other, "lab01"); err != nil {
					t.Errorf("another host's: %v", err)
				}
			})
		})
	}
}

// An agent gets what its own host was given, and nothing else.
func TestWhatAnAgentMayAskFor(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant("lab", "ci", false)
		e.Server("lab", testenv.Facts("lab01"))
		host, thief := e.Server("build", testenv.Facts("ci01")), e.Server("build", testenv.Facts("ci02"))
		bound(t, e, host, "ci1")
		bound(t, e, thief, "ci2")
		_, spki := process(t, e, host)
		annKey := clientKey(t, e, "ann")
		for _, tt := range []struct {
			what    string
			server  *testenv.Server
			account string
			key     []byte
			want    sft.Code
		}{
			{"root, which nobody bound", host, "root", nil, sft.Denied},
			{"an account that nobody bound", host, "www-data", nil, sft.Denied},
			{"a part of a name", host, "deplo", nil, sft.Denied},
			{"another spelling", host, "Deploy", nil, sft.Invalid},
			{"no account", host, "", nil, sft.Invalid},
			{"all accounts", host, "*", nil, sft.Invalid},
			{"a pattern", host, "%", nil, sft.Invalid},
			{"the key of another host's client", thief, "deploy", spki, sft.Exists},
			{"the key of a person's client", host, "deploy", annKey, sft.Exists},
			{"no key", host, "deploy", []byte{}, sft.Invalid},
			{"a key that is none", host, "deploy", []byte("key"), sft.Invalid},
		} {
			if tt.key == nil {
				_, tt.key = testenv.Key(t)
			}
			var err error
			events := since(e, func() { _, err = ask(t, tt.server, tt.account, tt.key) })
			wantCode(t, tt.what, err, tt.want)
			want := ""
			if tt.want != sft.Invalid {
				want = "client.enroll refused"
			}
			if told(events) != want {
				t.Errorf("%s: it is told as %s, want %q", tt.what, told(events), want)
			} else if want != "" && (events[0].Actor.ID != tt.server.ID || events[0].Detail["account"] != tt.account || events[0].Detail["why"] == "") {
				t.Errorf("%s: it is told as %+v", tt.what, events)
			}
		}
		// Root is an account like any other, and bound by its name alone.
		bind(e, host, "ci2", "root")
		_, k := testenv.Key(t)
		if r, err := ask(t, host, "root", k); err != nil || r.User != "ci2" {
			t.Errorf("root: %+v, %v", r, err)
		}
		_, k = testenv.Key(t)
		if r, err := ask(t, host, "deploy", k); err != nil || r.User != "ci1" {
			t.Errorf("deploy beside root: %+v, %v", r, err)
		}
		_, k = testenv.Key(t)
		err := host.Do(t.Context(), "POST", "/v1/agent/service_client", api.ServiceClientRequest{Account: "deploy", DeviceKey: k, Device: api.DeviceInfo{Hostname: "a\nb"}}, nil)
		wantCode(t, "a device that is not readable", err, sft.Invalid)
	})
}

// clientKey is the device key of a person's client.
func clientKey(t *testing.T, e *testenv.Env, user string) (spki []byte) {
	t.Helper()
	id := e.Client(user).ID
	if err := e.DB.Read(t.Context(), func(tx *store.Tx) error {
		c, err := tx.Client(id)
		spki = c.DeviceKey
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return spki
}

// An account has so many clients, and the oldest makes room.
func TestTooManyServiceClients(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant("lab", "ci", false)
		s := e.Server("lab", testenv.Facts("lab01"))
		host := e.Server("build", testenv.Facts("ci01"))
		bound(t, e, host, "ci1")
		var all []*testenv.Client
		var spki [][]byte
		for range 8 {
			c, k := process(t, e, host)
			all, spki = append(all, c), append(spki, k)
			e.Clock.Advance(time.Second)
		}
		if _, err := ask(t, host, "deploy", spki[0]); err != nil { // the second is the oldest now
			t.Fatal(err)
		}
		way, _, err := e.Connect(all[1], "lab01")
		if err != nil {
			t.Fatal(err)
		}
		idle := e.Server("lab", testenv.Facts("lab02"))
		before := e.State(idle).Revision
		var events []audit.Event
		st := heard(t, e, s, "one too many", func() { events = since(e, func() { process(t, e, host) }) })
		if !slices.Equal(st.EndedSessions, []string{way.SessionID}) {
			t.Errorf("the sessions %q are ended", st.EndedSessions)
		}
		if now := e.State(idle).Revision; now != before {
			t.Errorf("a server without a session of it went from revision %d to %d", before, now)
		}
		if got := told(events); !strings.Contains(got, "client.remove success") || !strings.Contains(got, "client.enroll success") || len(events) != 2 {
			t.Errorf("it is told as %s", got)
		}
		for i, c := range all {
			want := sft.Code("")
			if i == 1 {
				want = sft.Revoked
			}
			_, _, err := e.Connect(c, "lab01")
			wantCode(t, fmt.Sprint("client ", i), err, want)
		}
	})
}

func TestBindingsThatCannotBe(t *testing.T) {
	e := testenv.New(t)
	e.Grant("lab", "ci", false, "ann")
	host := e.Server("build", testenv.Facts("ci01"))
	b := bound(t, e, host, "ci1")
	win := testenv.Facts("win01")
	win.OSType, win.OS = "windows", "Windows Server 2022"
	w := e.Enroll("build", win)
	gone := e.Server("build", testenv.Facts("gone"))
	e.Do("DELETE", "/projects/build/servers/"+gone.ID, nil, nil)
	for _, tt := range []struct {
		what, user string
		body       m
		want       sft.Code
		says       string
	}{
		{"a person", "ann", m{"server": host.ID, "account": "x"}, sft.NotFound, "service user"},
		{"nobody", "no", m{"server": host.ID, "account": "x"}, sft.NotFound, "service user"},
		{"a server by its name", "ci1", m{"server": "ci01", "account": "x"}, sft.NotFound, "server with the id"},
		{"no server", "ci1", m{"account": "x"}, sft.Invalid, "no server is named"},
		{"a deleted server", "ci1", m{"server": gone.ID, "account": "x"}, sft.NotFound, "server with the id"},
		{"a Windows server", "ci1", m{"server": w.ID, "account": "x"}, sft.Invalid, "Linux"},
		{"no account", "ci1", m{"server": host.ID}, sft.Invalid, "login name"},
		{"all accounts", "ci1", m{"server": host.ID, "account": "*"}, sft.Invalid, "login name"},
		{"an account by its number", "ci1", m{"server": host.ID, "account": "0"}, sft.Invalid, "login name"},
		{"an account that is bound", "ci1", m{"server": host.ID, "account": "deploy"}, sft.Exists, "bound already"},
	} {
		refused(t, e, tt.what, "POST", "/service_users/"+tt.user+"/bindings", tt.body, tt.want, tt.says)
	}
	e.Do("POST", "/service_users", m{"name": "ci2"}, nil)
	refused(t, e, "another's account", "POST", "/service_users/ci2/bindings", m{"server": host.ID, "account": "deploy"}, sft.Exists, "bound already")
	refused(t, e, "removing another's", "DELETE", "/service_users/ci2/bindings/"+b.ID, nil, sft.NotFound, "binding")
	refused(t, e, "removing what is not there", "DELETE", "/service_users/ci1/bindings/x", nil, sft.NotFound, "binding")
	e.Do("DELETE", "/service_users/ci1/bindings/"+b.ID, nil, nil)
	refused(t, e, "removing twice", "DELETE", "/service_users/ci1/bindings/"+b.ID, nil, sft.NotFound, "binding")
	bind(e, host, "ci2", "deploy") // it is free again
}
