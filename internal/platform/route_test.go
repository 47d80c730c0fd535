package platform_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/store"
	"sft/internal/testenv"
)

// silence makes a server one that was not in touch for 97 hours.
func silence(t *testing.T, e *testenv.Env, s *testenv.Server) {
	t.Helper()
	if err := e.DB.Note(t.Context(), func(n store.Notes) error { return n.ServerSeen(s.ID, e.Clock.Now().Add(-97*time.Hour)) }); err != nil {
		t.Fatal(err)
	}
}

// unmanaged makes a server without an agent.
func unmanaged(t *testing.T, e *testenv.Env, project string, body map[string]any) sft.Server {
	t.Helper()
	var s sft.Server
	e.Do("POST", "/projects/"+project+"/unmanaged_servers", body, &s)
	return s
}

// wayOf describes a route: each enrolled hop as its name, "~" before it where
// it is reached by its private address, and "!" behind it where by its broker;
// others as login@address:port, "#" before those with a record.
func wayOf(r api.ConnectReply, private map[string]string) string {
	var way []string
	for _, h := range r.Route {
		s := h.Name
		if h.Unmanaged {
			s = fmt.Sprintf("%s@%s:%d", h.Login, h.Address, h.Port)
			if h.ServerID != "" {
				s = "#" + s
			}
		} else if h.Address == private[h.Name] {
			s = "~" + s
		}
		if h.SSH != nil && h.SSH.Broker {
			s += "!"
		}
		way = append(way, s)
	}
	return strings.Join(way, " ")
}

// checkWay refuses a reply that is not whole: each certificate is for its own
// server, login, key and session, and permits what the place in the route
// calls for.
func checkWay(t *testing.T, what string, r api.ConnectReply, key, login string, broker bool) {
	t.Helper()
	if (len(r.Certificate) > 0) != broker {
		t.Errorf("%s: %d certificates to the broker", what, len(r.Certificate))
	}
	for i, h := range r.Route {
		target := i == len(r.Route)-1
		if h.Unmanaged {
			if target || h.SSH != nil || h.BrokerName != "" || h.HostCAs != nil || h.HostKeys != nil || h.Project != "" {
				t.Errorf("%s: the unmanaged hop is %+v", what, h)
			}
			continue
		}
		if hasBroker := h.BrokerName != ""; hasBroker != (target && broker) || hasBroker != (len(h.HostKeys) > 0) || hasBroker != (h.Port > 0) || h.Login != login || h.ServerID == "" {
			t.Errorf("%s: the hop is %+v", what, h)
		}
		if h.SSH == nil {
			if !target {
				t.Errorf("%s: nothing opens the hop %s", what, h.Name)
			}
			continue
		}
		c := sshCert(t, h.SSH.Certificate)
		want := []string{"permit-port-forwarding"}
		if target {
			want = []string{"permit-X11-forwarding", "permit-port-forwarding", "permit-pty", "permit-user-rc"}
			if h.SSH.ForwardAgent {
				want = slices.Insert(want, 1, "permit-agent-forwarding")
			}
		}
		if got := slices.Sorted(maps.Keys(c.Extensions)); !slices.Equal(got, want) || len(c.CriticalOptions) > 0 {
			t.Errorf("%s: on %s the certificate permits %q, want %q", what, h.Name, got, want)
		}
		if !slices.Equal(c.ValidPrincipals, []string{"sft:" + h.ServerID + ":" + login}) || sshLine(c.Key) != key ||
			!strings.HasPrefix(c.KeyId, "sft:session/"+r.SessionID+"/user/") || c.ValidBefore-c.ValidAfter != 360 || c.ValidBefore != uint64(r.ExpiresAt.Unix()) {
			t.Errorf("%s: on %s the certificate is %q, %s, for %s, until %d", what, h.Name, c.ValidPrincipals, c.KeyId, sshLine(c.Key), c.ValidBefore)
		}
		if len(h.SSH.HostCAs) != 1 || h.SSH.HostCAs[0] == sshLine(c.SignatureKey) || len(h.SSH.HostKeys) != 1 || h.SSH.Port != 22 || target && h.SSH.Netcat {
			t.Errorf("%s: %s is proven by %+v", what, h.Name, h.SSH)
		}
	}
}

func TestRoutes(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant("lab", "dev", false, "ann")
		e.Grant("far", "dev", false, "ann")
		e.Project("shut")
		private := map[string]string{}
		add := func(project, name, bastion, network string) *testenv.Server {
			f := testenv.SSHFacts(t, name)
			f.Bastion, f.Network, f.PrivateAddress = bastion, network, fmt.Sprintf("10.77.0.%d", len(private)+1)
			private[name] = f.PrivateAddress
			return e.Server(project, f)
		}
		add("lab", "web01", "", "")
		add("lab", "gw", "", "aws:vpc-1")
		add("lab", "mid", "gw", "aws:vpc-1")
		far := add("far", "db01", "MID.local", "aws:vpc-1")
		add("far", "apart", "mid", "aws:vpc-2")
		add("lab", "alone", "", "aws:vpc-1")
		silence(t, e, add("lab", "silent", "", ""))
		secret := add("shut", "secret", "", "")
		f := testenv.SSHFacts(t, "six")
		f.AccessAddress = "2001:db8:0::0007"
		e.Server("shut", f)
		add("lab", "self", "self", "")
		add("lab", "loop1", "loop2", "")
		add("lab", "loop2", "loop3", "")
		add("lab", "loop3", "loop1", "")
		for name, bastion := range map[string]string{"behind-secret": "secret", "behind-silent": "silent", "behind-nothing": "bastion.example.com", "behind-bare": "bare", "behind-relay": "relay", "behind-jump": "jump", "behind-own": "twin"} {
			add("lab", name, bastion, "")
		}
		e.Grant("yon", "dev", false, "ann")
		add("yon", "behind-twin", "twin", "")
		add("lab", "twin", "", "")
		add("far", "twin", "", "")
		e.Server("lab", testenv.Facts("bare"))
		f = testenv.SSHFacts(t, "relay")
		f.SSH.Broker = true
		e.Server("lab", f)
		bastion := ""
		for i := range 12 {
			add("lab", fmt.Sprint("chain", i), bastion, "")
			bastion = fmt.Sprint("chain", i)
		}
		unmanaged(t, e, "lab", map[string]any{"hostname": "jump", "access_address": "192.0.2.7", "port": 2222})
		unmanaged(t, e, "lab", map[string]any{"hostname": "plainjump"})
		unmanaged(t, e, "shut", map[string]any{"hostname": "shutjump"})
		ann := e.Client("ann")
		eleven := slices.Repeat([]string{"x"}, 11)
		var ten []string
		for i := range 10 {
			ten = append(ten, fmt.Sprint("h", i))
		}
		const unclear = `the bastion "twin" of server "behind-twin" is the name of 2 servers: far/twin (`
		tests := []struct {
			name, target string
			via          []string
			want         string // the way, or what the refusal begins with
			code         sft.Code
		}{
			{"directly", "web01", nil, "web01", ""},
			{"through the broker", "relay", nil, "relay!", ""},
			{"a chain of bastions, private inside a network", "db01", nil, "gw ~mid ~db01", ""},
			{"into another network", "apart", nil, "gw ~mid apart", ""},
			{"a private address needs the hop before", "alone", nil, "alone", ""},
			{"through a bastion without an agent", "behind-jump", nil, "#@192.0.2.7:2222 behind-jump", ""},
			{"via a server", "web01", []string{"gw"}, "gw web01", ""},
			{"via a server by project, id and address", "web01", []string{"LAB/gw", far.ID}, "gw ~db01 web01", ""},
			{"via overrules the bastion", "apart", []string{"gw"}, "gw apart", ""},
			{"the bastions of the first come before it", "web01", []string{"mid"}, "gw ~mid web01", ""},
			{"those of the second do not", "web01", []string{"alone", "db01"}, "alone ~db01 web01", ""},
			{"via a plain host", "web01", []string{"bastion.example.com"}, "@bastion.example.com:0 web01", ""},
			{"as somebody", "web01", []string{"Jo.e-1@bastion.example.com"}, "Jo.e-1@bastion.example.com:0 web01", ""},
			{"at a port", "web01", []string{"joe@bastion:2200"}, "joe@bastion:2200 web01", ""},
			{"via an IPv6 address", "web01", []string{"2001:db8::1"}, "@2001:db8::1:0 web01", ""},
			{"via a plain host, then a server", "db01", []string{"bastion", "gw"}, "@bastion:0 gw ~db01", ""},
			{"via a record without an agent", "web01", []string{"jump"}, "#@192.0.2.7:2222 web01", ""},
			{"as somebody there", "web01", []string{"joe@lab/plainjump"}, "#joe@plainjump:0 web01", ""},
			{"through 10 hosts", "chain10", nil, "chain0 chain1 chain2 chain3 chain4 chain5 chain6 chain7 chain8 chain9 chain10", ""},
			{"via 10 hosts", "web01", ten, "@h0:0 @h1:0 @h2:0 @h3:0 @h4:0 @h5:0 @h6:0 @h7:0 @h8:0 @h9:0 web01", ""},

			{"through 11", "chain11", nil, `the way to server "chain11" goes through more than 10 hosts`, sft.Invalid},
			{"via 11", "web01", eleven, "the way goes through 11 hosts", sft.Invalid},
			{"10 and their bastion", "web01", append([]string{"mid"}, ten[:9]...), `the way to server "web01" goes through more than 10 hosts`, sft.Invalid},
			{"its own bastion", "self", nil, `the way goes in a circle: "self" -> "self"`, sft.Invalid},
			{"bastions in a circle", "loop1", nil, `the way goes in a circle: "loop1" -> "loop3" -> "loop2" -> "loop1"`, sft.Invalid},
			{"via one of a circle", "web01", []string{"loop2"}, `the way goes in a circle: "loop2" -> "loop1" -> "loop3" -> "loop2"`, sft.Invalid},
			{"via the target", "web01", []string{"gw", "web01"}, `the way goes in a circle: "web01" -> "web01"`, sft.Invalid},
			{"via one twice", "web01", []string{"gw", "mid", "LAB/gw"}, `the way goes in a circle: "gw" -> "mid" -> "gw"`, sft.Invalid},
			{"via a plain host twice", "web01", []string{"b", "gw", "joe@B"}, `the way goes in a circle: "b" -> "gw" -> "B"`, sft.Invalid},
			{"back through its bastion", "web01", []string{"mid", "gw"}, `the way goes in a circle: "gw" -> "mid" -> "gw"`, sft.Invalid},
			{"via a closed server", "web01", []string{"secret"}, `user "ann" has no access to the servers of project "shut"`, sft.Denied},
			{"via a closed server as somebody", "web01", []string{"joe@secret"}, `user "ann" has no access to the servers of project "shut"`, sft.Denied},
			{"via a closed server at a port", "web01", []string{"secret:22"}, `user "ann" has no access to the servers of project "shut"`, sft.Denied},
			{"via a closed server by its id", "web01", []string{secret.ID}, `user "ann" has no access to the servers of project "shut"`, sft.Denied},
			{"via a closed server by its address", "web01", []string{secret.Facts.AccessAddress}, `user "ann" has no access to the servers of project "shut"`, sft.Denied},
			{"via a closed server by its address in another spelling", "web01", []string{"joe@2001:DB8:0:0::7"}, `user "ann" has no access to the servers of project "shut"`, sft.Denied},
			{"via a closed record without an agent", "web01", []string{"shutjump"}, `user "ann" has no access to the servers of project "shut"`, sft.Denied},
			{"via a silent server", "web01", []string{"silent"}, `server "silent" has not been in touch since `, sft.NotFound},
			{"via a silent server as somebody", "web01", []string{"joe@silent"}, `server "silent" has not been in touch since `, sft.NotFound},
			{"via two servers of a name", "web01", []string{"twin"}, `"twin" is the name of 2 servers: far/twin (`, sft.Ambiguous},
			{"via an enrolled server as somebody", "web01", []string{"joe@gw"}, `server "gw" is enrolled, and its login is yours: ann`, sft.Invalid},
			{"via an enrolled server at a port", "web01", []string{"gw:22"}, `server "gw" has a port of its own`, sft.Invalid},
			{"via a record at a port", "web01", []string{"jump:22"}, `server "jump" has a port of its own`, sft.Invalid},
			{"via a server that is not in the project", "web01", []string{"lab/db01"}, `there is no server "lab/db01"`, sft.NotFound},
			{"via a server without SSH", "web01", []string{"bare"}, `server "bare" cannot be gone through: sftd looks after no SSH server on it`, sft.Unavailable},
			{"via a server whose SSH is behind its broker", "web01", []string{"relay"}, `server "relay" cannot be gone through: its SSH server is reached through its broker alone`, sft.Invalid},
			{"via nothing", "web01", []string{""}, `"" cannot be the name of a server`, sft.NotFound},
			{"via an option", "web01", []string{"-oProxyCommand=x"}, `"-oProxyCommand=x" cannot be the name of a server`, sft.NotFound},
			{"via an option as a login", "web01", []string{"-oProxyCommand=x@h"}, `--via "-oProxyCommand=x@h" cannot be used`, sft.Invalid},
			{"via an option behind a login", "web01", []string{"joe@-oProxyCommand=x"}, `"-oProxyCommand=x" cannot be the name of a server`, sft.NotFound},
			{"via an empty login", "web01", []string{"@h"}, `--via "@h" cannot be used`, sft.Invalid},
			{"via two logins", "web01", []string{"a@b@c"}, `"b@c" cannot be the name of a server`, sft.NotFound},
			{"via a command", "web01", []string{"h;reboot"}, `"h;reboot" cannot be the name of a server`, sft.NotFound},
			{"via a list", "web01", []string{"gw,mid"}, `"gw,mid" cannot be the name of a server`, sft.NotFound},
			{"via port 0", "web01", []string{"h:0"}, `--via "h:0" has no usable port`, sft.Invalid},
			{"via port 65536", "web01", []string{"h:65536"}, `--via "h:65536" has no usable port`, sft.Invalid},
			{"via a port in another spelling", "web01", []string{"h:022"}, `--via "h:022" has no usable port`, sft.Invalid},
			{"via a port that is none", "web01", []string{"h:ssh"}, `--via "h:ssh" has no usable port`, sft.Invalid},
			{"a closed bastion", "behind-secret", nil, `the bastion "secret" of server "behind-secret": user "ann" has no access`, sft.Denied},
			{"a silent bastion", "behind-silent", nil, `the bastion "silent" of server "behind-silent": server "silent" has not been in touch`, sft.NotFound},
			{"a bastion that is no server", "behind-nothing", nil, `the bastion "bastion.example.com" of server "behind-nothing": there is no server`, sft.NotFound},
			{"a bastion without SSH", "behind-bare", nil, `server "bare" cannot be gone through`, sft.Unavailable},
			{"a bastion behind its broker", "behind-relay", nil, `server "relay" cannot be gone through`, sft.Invalid},
			{"a bastion of its own project", "behind-own", nil, "twin behind-own", ""},
			{"a bastion that is two servers", "behind-twin", nil, unclear, sft.Ambiguous},
			{"a record without an agent as the target", "jump", nil, `server "jump" has no agent: it is there to be gone through`, sft.Invalid},
		}
		for _, tt := range tests {
			var r api.ConnectReply
			var key string
			var err error
			events := since(e, func() { r, key, err = e.ConnectSSH(ann, tt.target, tt.via...) })
			if tt.code != "" {
				wantCode(t, tt.name, err, tt.code)
				if err != nil && !strings.HasPrefix(err.Error(), tt.want) {
					t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
				}
				var via []string
				for _, v := range tt.via[:min(len(tt.via), 10)] {
					via = append(via, sft.Quote(v))
				}
				if told(events) != "user_creds.issue refused" || !slices.Equal(events[0].Via, via) || events[0].Target != tt.target {
					t.Errorf("%s: told as %+v", tt.name, events)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			if got := wayOf(r, private); got != tt.want {
				t.Errorf("%s: the way is %s, want %s", tt.name, got, tt.want)
			}
			checkWay(t, tt.name, r, key, "ann", strings.HasSuffix(tt.want, "!"))
			var names, serials []string
			for i, h := range r.Route {
				if i < len(r.Route)-1 {
					names = append(names, h.Name)
				}
				if h.SSH != nil {
					serials = append(serials, fmt.Sprintf("%s=%d", h.ServerID, sshCert(t, h.SSH.Certificate).Serial))
				}
			}
			if told(events) != "user_creds.issue success" || !slices.Equal(events[0].Via, names) || events[0].Detail["ssh_serials"] != strings.Join(serials, " ") || events[0].Session != r.SessionID || events[0].Detail["ssh_key"] == "" || events[0].Detail["until"] == "" {
				t.Errorf("%s: told as %+v", tt.name, events)
			}
		}

		// The way to a desktop is the same, with a certificate to its broker.
		key, _ := testenv.Key(t)
		line := testenv.SSHLine(t)
		req := api.ConnectRequest{Target: "db01", Service: "rdp", CSR: testenv.CSR(t, key), SSHPublicKey: line}
		r, err := connect(t, ann, req)
		if err != nil || wayOf(r, private) != "gw ~mid ~db01" || r.Route[2].SSH != nil {
			t.Errorf("to a desktop: %s, %v", wayOf(r, private), err)
		}
		checkWay(t, "to a desktop", r, line, "ann", true)
		again := req
		again.SessionID = r.SessionID
		if r2, err := connect(t, ann, again); err != nil || r2.SessionID != r.SessionID {
			t.Errorf("continuing it: %s, %v", r2.SessionID, err)
		}
		for _, tt := range []struct {
			name   string
			change func(*api.ConnectRequest)
			code   sft.Code
			msg    string
		}{
			{"no SSH key", func(r *api.ConnectRequest) { r.SSHPublicKey = "" }, sft.Invalid, `the way to server "db01" is by SSH, and the request has no ssh_public_key`},
			{"no SSH key, to a shell", func(r *api.ConnectRequest) { r.Target, r.Service, r.SSHPublicKey = "web01", "ssh", "" }, sft.Invalid, `the way to server "web01" is by SSH, and the request has no ssh_public_key`},
			{"noise for an SSH key", func(r *api.ConnectRequest) { r.SSHPublicKey = "noise" }, sft.Invalid, `an SSH key of the type "noise" is not taken here`},
			{"a session of another service", func(r *api.ConnectRequest) { r.Service, r.SessionID = "ssh", again.SessionID }, sft.NotFound, "there is no such session"},
			{"no CSR to a desktop", func(r *api.ConnectRequest) { r.CSR = nil }, sft.Invalid, "the certificate request has 0 bytes"},
			{"no CSR to a shell behind a broker", func(r *api.ConnectRequest) { r.Target, r.Service, r.CSR = "relay", "ssh", nil }, sft.Invalid, "the certificate request has 0 bytes"},
			{"no CSR to a shell", func(r *api.ConnectRequest) { r.Service, r.CSR = "ssh", nil }, "", ""},
			{"no SSH key to a desktop without hops", func(r *api.ConnectRequest) { r.Target, r.SSHPublicKey = "web01", "" }, "", ""},
			{"nor through a plain one", func(r *api.ConnectRequest) { r.Via, r.SSHPublicKey = []string{"plain"}, "" }, "", ""},
		} {
			req := req
			tt.change(&req)
			r, err := connect(t, ann, req)
			wantCode(t, tt.name, err, tt.code)
			if err != nil && !strings.HasPrefix(err.Error(), tt.msg) {
				t.Errorf("%s: %v, want %s", tt.name, err, tt.msg)
			} else if err == nil && len(r.Route) == 0 {
				t.Errorf("%s: there is no way", tt.name)
			}
		}

		// What a project tells clients: of a hop its own, of the target its own.
		e.Do("PUT", "/projects/lab", map[string]any{"client_config_options": map[string]string{"ssh.port_forward_method": "netcat", "ssh.insecure_forward_agent": "host"}}, nil)
		r, sshKey, err := e.ConnectSSH(ann, "db01")
		if err != nil || !r.Route[0].SSH.Netcat || !r.Route[1].SSH.Netcat || r.Route[0].SSH.ForwardAgent || r.Route[2].SSH.ForwardAgent {
			t.Errorf("the options are %+v, %v", r.Route, err)
		}
		checkWay(t, "with the hops' options", r, sshKey, "ann", false)
		r, sshKey, err = e.ConnectSSH(ann, "mid")
		if err != nil || !r.Route[0].SSH.Netcat || !r.Route[1].SSH.ForwardAgent {
			t.Errorf("the options are %+v, %v", r.Route, err)
		}
		checkWay(t, "with the target's options", r, sshKey, "ann", false)

		var v api.ResolveReply
		if err := ann.Do(t.Context(), "GET", base+"/resolve?target=db01", nil, &v); err != nil || !slices.Equal(v.Route, []string{"gw", "mid"}) || v.Server.ID != far.ID {
			t.Errorf("resolving says %+v, %v", v, err)
		}
		wantCode(t, "resolving what is behind a closed server", ann.Do(t.Context(), "GET", base+"/resolve?target=behind-secret", nil, nil), sft.Denied)
	})
}

// A Bastion means the server of its own project that holds the name, or else
// the one with the best reason to be meant, among those that the asker may
// reach; two with equally good ones are none.
func TestWhichBastionIsMeant(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		for i := range 6 {
			e.Grant(fmt.Sprint("p", i), "dev", false, "ann")
		}
		ann := e.Client("ann")
		add := func(project string, change func(*api.Facts)) *testenv.Server {
			f := testenv.SSHFacts(t, fmt.Sprint("host", project))
			change(&f)
			return e.Server(project, f)
		}
		const b = "10.1.1.1"
		target := add("p5", func(f *api.Facts) { f.Bastion = b })
		closed := add("shut", func(f *api.Facts) { f.CanonicalName = b })
		byAddress := add("p0", func(f *api.Facts) { f.AccessAddress = b })
		byAlt := add("p1", func(f *api.Facts) { f.AltNames = []string{"x", b} })
		byHost := add("p2", func(f *api.Facts) { f.Hostname = b })
		twin := add("p3", func(f *api.Facts) { f.Hostname = b })
		byName := add("p4", func(f *api.Facts) { f.CanonicalName, f.Hostname = b, "other" })
		through := func(want *testenv.Server, message string) {
			t.Helper()
			r, _, err := e.ConnectSSH(ann, target.ID)
			switch {
			case want == nil && (err == nil || !strings.Contains(err.Error(), message)):
				t.Errorf("the way is %v, %v, want %s", r.Route, err, message)
			case want != nil && (err != nil || len(r.Route) != 2 || r.Route[0].ServerID != want.ID):
				t.Errorf("the way is %v, %v, want through %s", r.Route, err, want.ID)
			}
		}
		gone := func(project string, s *testenv.Server) {
			t.Helper()
			e.Do("DELETE", "/projects/"+project+"/servers/"+s.ID, nil, nil)
		}
		own := add("p5", func(f *api.Facts) { f.AltNames = []string{b} })
		through(own, "")
		// It is that one or none, also where a selector closes it to the asker.
		e.Do("PUT", base[len("/v1/teams/main"):]+"/servers/"+target.ID, map[string]any{"labels": map[string]string{"role": "web"}}, nil)
		e.Do("PUT", "/projects/p5/groups/dev", map[string]any{"server_access": true, "servers_selector": "role=web"}, nil)
		through(nil, "are for other servers than")
		refused(t, e, "a selector that is left out", "PUT", "/projects/p5/groups/dev", map[string]any{"server_access": true, "server_admin": true}, sft.Invalid, "servers_selector is left out")
		through(nil, "are for other servers than")
		e.Do("PUT", "/projects/p5/groups/dev", map[string]any{"server_access": true, "servers_selector": ""}, nil)
		through(own, "")
		gone("p5", own)
		through(byName, "")
		gone("p4", byName)
		through(nil, `is the name of 2 servers: p2/`)
		silence(t, e, twin)
		through(byHost, "")
		gone("p2", byHost)
		through(byAlt, "")
		gone("p1", byAlt)
		through(byAddress, "")
		gone("p0", byAddress)
		through(nil, "has not been in touch since")
		gone("p3", twin)
		through(nil, `user "ann" has no access to the servers of project "shut"`)
		gone("shut", closed)
		through(nil, `there is no server "10.1.1.1"`)
	})
}

// Who may go through a server: whoever has server_access in its own project,
// whatever their role in the team.
func TestWhoMayGoThroughAServer(t *testing.T) {
	e := testenv.New(t)
	e.Do("PUT", "/groups/everyone", map[string]any{"roles": []string{}}, nil)
	e.Server("near", testenv.SSHFacts(t, "gw"))
	e.Server("far", testenv.SSHFacts(t, "db01"))
	unmanaged(t, e, "near", map[string]any{"hostname": "jump"})
	for i, tt := range []struct {
		role      string
		near, far bool // access
		closed    sft.Code
	}{
		{"", false, false, sft.NotFound}, {"", true, false, sft.NotFound}, {"", false, true, sft.NotFound}, {"", true, true, ""},
		{"access_user", false, false, sft.Denied}, {"access_user", true, false, sft.Denied}, {"access_user", false, true, sft.Denied}, {"access_user", true, true, ""},
		{"reporting_user", false, true, sft.Denied}, {"reporting_user", true, true, ""},
		{"access_admin", false, false, sft.Denied}, {"access_admin", true, false, sft.Denied}, {"access_admin", false, true, sft.Denied}, {"access_admin", true, true, ""},
	} {
		name := fmt.Sprint("u", i)
		e.User(name)
		group := fmt.Sprint("g", i)
		roles := []string{}
		if tt.role != "" {
			roles = append(roles, tt.role)
		}
		e.Do("POST", "/groups", map[string]any{"name": group, "roles": roles}, nil)
		e.Do("POST", "/groups/"+group+"/users", map[string]string{"name": name}, nil)
		for project, access := range map[string]bool{"near": tt.near, "far": tt.far} {
			e.Do("POST", "/projects/"+project+"/groups", map[string]any{"name": group, "server_access": access, "server_admin": true}, nil)
		}
		c := e.Client(name)
		for _, hop := range []string{"gw", "jump"} {
			r, _, err := e.ConnectSSH(c, "db01", hop)
			wantCode(t, fmt.Sprintf("%+v through %s", tt, hop), err, tt.closed)
			if err != nil && len(r.Route) > 0 {
				t.Errorf("%+v: a refusal has the way %+v", tt, r.Route)
			}
		}
	}
}

// Whatever bastions hosts claim and people name, a route holds no server that
// the asker may not reach, none that is silent, none twice, and none without a
// certificate of its own; it ends at the target and is not too long.
func TestARouteHoldsOnlyWhatTheAskerReaches(t *testing.T) {
	e := testenv.New(t)
	e.Grant("a", "dev", false, "ann")
	e.Grant("b", "dev", true, "ann")
	e.Project("c")
	open := map[string]bool{"a": true, "b": true}
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(list []string) string { return list[rnd.IntN(len(list))] }
	var names []string
	for i := range 24 {
		names = append(names, fmt.Sprint("s", i))
	}
	reachable := map[string]bool{}
	silent := map[string]bool{}
	for i, n := range names {
		f := testenv.SSHFacts(t, n)
		f.Network, f.PrivateAddress = pick([]string{"", "aws:vpc-1", "aws:vpc-2"}), fmt.Sprintf("10.9.0.%d", i+1)
		if rnd.IntN(2) == 0 {
			f.Bastion = pick(append(names, "nobody"))
		}
		if rnd.IntN(3) == 0 {
			f.AltNames = []string{pick(names)}
		}
		switch rnd.IntN(10) {
		case 0:
			f.SSH = nil
		case 1:
			f.SSH.Broker = true
		}
		project := pick([]string{"a", "a", "b", "b", "c"})
		s := e.Server(project, f)
		if rnd.IntN(10) == 0 {
			silence(t, e, s)
			silent[s.ID] = true
		}
		reachable[s.ID] = open[project]
	}
	for i, project := range []string{"a", "c"} {
		s := unmanaged(t, e, project, map[string]any{"hostname": fmt.Sprint("j", i)})
		names = append(names, s.Hostname)
		reachable[s.ID] = open[project]
	}
	c := e.Client("ann")
	ways, refused := 0, 0
	for range 300 {
		var via []string
		for range rnd.IntN(4) {
			via = append(via, pick([]string{"", "", "", "joe@", "a/", "c/"})+pick(append(names, "plain1", "plain2")))
		}
		target := pick(names)
		e.Clock.Advance(2 * time.Second) // the platform stores so many refusals of one address and no more
		before := len(e.Events())
		r, _, err := e.ConnectSSH(c, target, via...)
		if err != nil {
			refused++
			if code := sft.CodeOf(err); code == sft.Internal || r.SessionID != "" || len(r.Route) > 0 || len(e.Events()) != before+1 {
				t.Fatalf("%s via %q: %v (%s), %+v", target, via, err, code, r)
			}
			continue
		}
		ways++
		seen := map[string]bool{}
		for i, h := range r.Route {
			last := i == len(r.Route)-1
			switch {
			case h.ServerID == "" && (!h.Unmanaged || last || !strings.HasPrefix(h.Name, "plain")):
				t.Errorf("%s via %q: the hop is %+v", target, via, h)
			case h.ServerID != "" && (!reachable[h.ServerID] || silent[h.ServerID]):
				t.Errorf("%s via %q goes through %s, which the asker may not reach", target, via, h.Name)
			case seen[h.ServerID+h.Name]:
				t.Errorf("%s via %q goes through %s twice", target, via, h.Name)
			case !h.Unmanaged && h.SSH == nil:
				t.Errorf("%s via %q: nothing opens %s", target, via, h.Name)
			case h.SSH != nil && !slices.Equal(sshCert(t, h.SSH.Certificate).ValidPrincipals, []string{"sft:" + h.ServerID + ":ann"}):
				t.Errorf("%s via %q: %s is opened by another's certificate", target, via, h.Name)
			case h.SSH != nil && h.SSH.Broker && !last:
				t.Errorf("%s via %q goes through %s, whose SSH is behind its broker", target, via, h.Name)
			}
			seen[h.ServerID+h.Name] = true
		}
		if len(r.Route) > 11 {
			t.Errorf("%s via %q goes through %d hosts", target, via, len(r.Route)-1)
		}
	}
	if ways < 20 || refused < 20 {
		t.Errorf("%d ways and %d refusals: nothing was looked at", ways, refused)
	}
}

func TestUnmanagedServers(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		ctx := t.Context()
		type m = map[string]any
		e.Grant("lab", "dev", false, "ann")
		web := e.Server("lab", testenv.Facts("web01"))
		var s sft.Server
		events := since(e, func() {
			s = unmanaged(t, e, "lab", m{"hostname": "Jump", "alt_names": []string{"gate"}, "access_address": web.Facts.AccessAddress, "port": 2222})
		})
		want := sft.Server{ID: s.ID, Team: testenv.Team, Project: "lab", Hostname: "Jump", AltNames: []string{"gate"}, AccessAddress: web.Facts.AccessAddress, Services: []string{}, State: sft.StateActive,
			Labels: map[string]string{"system.managed": "false"}, RegisteredAt: e.Clock.Now(), SSHPort: 2222, Problems: []string{}, NameConflict: []string{web.Facts.AccessAddress}} // hosts behind it hold the address
		if got := fmt.Sprintf("%+v", s); got != fmt.Sprintf("%+v", want) {
			t.Errorf("it is %s, want %+v", got, want)
		}
		if told(events) != "unmanaged_server.create success" || events[0].Target != "Jump" || events[0].Project != "lab" ||
			fmt.Sprint(events[0].Detail) != fmt.Sprint(map[string]string{"server": s.ID, "access_address": web.Facts.AccessAddress, "port": "2222", "alt_names": "gate"}) {
			t.Errorf("it is told as %+v", events)
		}
		list := func(path string) (names []string) {
			var l api.List[sft.Server]
			e.Do("GET", path, nil, &l)
			for _, v := range l.List {
				names = append(names, fmt.Sprint(v.Name(), " ", v.Managed, " ", v.State))
			}
			return names
		}
		if got := list("/projects/lab/unmanaged_servers"); !slices.Equal(got, []string{"Jump false ACTIVE"}) {
			t.Errorf("the list is %q", got)
		}
		if got := list("/projects/lab/servers"); !slices.Equal(got, []string{"web01 true ACTIVE", "Jump false ACTIVE"}) {
			t.Errorf("the servers are %q", got)
		}
		var v api.ResolveReply
		if err := e.Client("ann").Do(ctx, "GET", base+"/resolve?target=gate", nil, &v); err != nil || v.Server.ID != s.ID || v.Server.Managed {
			t.Errorf("resolving says %+v, %v", v, err)
		}

		for name, tt := range map[string]struct {
			body m
			want sft.Code
		}{
			"no name":                          {m{}, sft.Invalid},
			"a name that cannot be":            {m{"hostname": "-oProxyCommand=x"}, sft.Invalid},
			"a name with a newline":            {m{"hostname": "a\nb"}, sft.Invalid},
			"an address that is none":          {m{"hostname": "x", "access_address": "not an address"}, sft.Invalid},
			"an address that cannot be":        {m{"hostname": "x", "access_address": "-oProxyCommand=x"}, sft.Invalid},
			"an address with a user":           {m{"hostname": "x", "access_address": "joe@x"}, sft.Invalid},
			"a loopback address":               {m{"hostname": "x", "access_address": "127.0.0.1"}, sft.Invalid},
			"any address":                      {m{"hostname": "x", "access_address": "0.0.0.0"}, sft.Invalid},
			"an alternative name with a space": {m{"hostname": "x", "alt_names": []string{"a b"}}, sft.Invalid},
			"33 alternative names":             {m{"hostname": "x", "alt_names": slices.Repeat([]string{"y"}, 33)}, sft.Invalid},
			"port 65536":                       {m{"hostname": "x", "port": 65536}, sft.Invalid},
			"port -1":                          {m{"hostname": "x", "port": -1}, sft.Invalid},
			"its own name again":               {m{"hostname": "JUMP.local"}, sft.Exists},
			"a name of a server":               {m{"hostname": "x", "alt_names": []string{"WEB01"}}, sft.Exists},
		} {
			events := since(e, func() {
				err := e.Service.Do(ctx, "POST", base+"/projects/lab/unmanaged_servers", tt.body, nil)
				wantCode(t, name, err, tt.want)
				if says := tt.body["access_address"]; says != nil && err != nil && !strings.HasPrefix(err.Error(), fmt.Sprintf("access address %q", says)) {
					t.Errorf("%s is refused as %v", name, err)
				}
			})
			if len(events) != 0 || len(list("/projects/lab/servers")) != 2 {
				t.Errorf("%s: told as %s, and the servers are %q", name, told(events), list("/projects/lab/servers"))
			}
		}
		e.Project("other")
		unmanaged(t, e, "other", m{"hostname": "jump"}) // another project's names are its own

		// A host cannot take its name; it gets it when the record is gone.
		host := e.Server("lab", testenv.Facts("gate"))
		if got := list("/projects/lab/servers"); !slices.Contains(got, host.ID+" true ACTIVE") {
			t.Errorf("the servers are %q", got)
		}
		// Nobody is it.
		key, _ := testenv.Key(t)
		wantCode(t, "a request in its name", e.Signed(key, "server:"+s.ID).Do(ctx, "GET", "/v1/agent/state?after=-1", nil, nil), sft.SignIn)
		wantCode(t, "to let it enrol again", e.Service.Do(ctx, "PUT", base+"/projects/lab/servers/"+s.ID, m{"reenroll_allowed": true}, nil), sft.Invalid)

		wantCode(t, "deleting an enrolled one here", e.Service.Do(ctx, "DELETE", base+"/projects/lab/unmanaged_servers/"+host.ID, nil, nil), sft.NotFound)
		wantCode(t, "deleting it in another project", e.Service.Do(ctx, "DELETE", base+"/projects/other/unmanaged_servers/"+s.ID, nil, nil), sft.NotFound)
		e.Clock.Advance(1000 * time.Hour)
		e.Service = e.Bearer(e.Init.Key.ID, e.Init.Key.Secret)
		if got := list("/projects/lab/unmanaged_servers"); !slices.Equal(got, []string{"Jump false ACTIVE"}) {
			t.Errorf("after 1000 hours the list is %q", got)
		}
		events = since(e, func() { e.Do("DELETE", "/projects/lab/unmanaged_servers/"+s.ID, nil, nil) })
		if told(events) != "server.remove success" || events[0].Target != "Jump" {
			t.Errorf("deleting is told as %+v", events)
		}
		if got := list("/projects/lab/unmanaged_servers"); len(got) != 0 {
			t.Errorf("then the list is %q", got)
		}
		if got := list("/projects/lab/servers"); !slices.Contains(got, "gate true INACTIVE") {
			t.Errorf("the name went to nobody: %q", got)
		}
		wantCode(t, "deleting it again", e.Service.Do(ctx, "DELETE", base+"/projects/lab/unmanaged_servers/"+s.ID, nil, nil), sft.NotFound)
	})
}
