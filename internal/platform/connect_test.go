package platform_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/frame"
	"sft/internal/platform"
	"sft/internal/testenv"
)

// greedyCSR asks for everything that it should not get.
func greedyCSR(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	u, err := url.Parse("sft:team/main/project/prod/user/root")
	if err != nil {
		t.Fatal(err)
	}
	isCA, err := asn1.Marshal(struct{ IsCA bool }{true})
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "root"}, DNSNames: []string{"evil"}, IPAddresses: []net.IP{{127, 0, 0, 1}}, URIs: []*url.URL{u},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: isCA}},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func connect(t *testing.T, c *testenv.Client, r api.ConnectRequest) (reply api.ConnectReply, err error) {
	t.Helper()
	return reply, c.Do(t.Context(), "POST", base+"/connect", r, &reply)
}

func TestConnect(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant("lab", "dev", false, "ann")
		f := testenv.Facts("lab01")
		f.AltNames = []string{"lab.example.com"}
		s := e.Server("lab", f)
		ann := e.Client("ann")
		user := e.User("ann")
		key, _ := testenv.Key(t)
		for _, target := range []string{"lab01", "LAB01.local", "lab/lab01", "LAB/lab.example.com", s.ID, f.AccessAddress} {
			var r api.ConnectReply
			events := since(e, func() {
				var err error
				if r, err = connect(t, ann, api.ConnectRequest{Target: target, Service: "rdp", CSR: greedyCSR(t, key)}); err != nil {
					t.Fatalf("%s: %v", target, err)
				}
			})
			c, err := x509.ParseCertificate(r.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			spki, _ := x509.MarshalPKIXPublicKey(&key.PublicKey)
			sum := sha256.Sum256(spki)
			wantEvent := audit.Event{Time: e.Clock.Now(), Kind: audit.UserCredsIssue, Team: "main", Project: "lab", Actor: audit.Actor{Kind: "client", ID: user.ID, Name: "ann", Addr: "127.0.0.1"},
				Client: ann.ID, Target: "lab01", Session: r.SessionID, Outcome: audit.Success,
				Detail: map[string]string{"service": "rdp", "server": s.ID, "by": "dev", "key_sha256": hex.EncodeToString(sum[:]), "until": "2026-03-01T09:05:00Z"}}
			if len(events) != 1 {
				t.Fatalf("%s is told as %s", target, told(events))
			}
			events[0].ID = ""
			if d := cmp.Diff(wantEvent, events[0]); d != "" {
				t.Errorf("%s: the event (-want +got):\n%s", target, d)
			}
			st := e.State(s)
			names, err := frame.ParseURIs(c.URIs)
			wantNames := frame.Names{Team: "main", Project: "lab", User: user.ID, Server: s.ID, Session: r.SessionID, Revision: st.Revision}
			if err != nil || names != wantNames || len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses) > 0 || c.IsCA || !key.PublicKey.Equal(c.PublicKey) {
				t.Errorf("%s: the certificate names %+v (%v), %v, want %+v", target, names, err, c.DNSNames, wantNames)
			}
			pool := x509.NewCertPool()
			for _, der := range st.AccessCAs {
				ca, err := x509.ParseCertificate(der)
				if err != nil {
					t.Fatal(err)
				}
				pool.AddCert(ca)
			}
			if _, err := c.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: e.Clock.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
				t.Errorf("%s: the server would not take the certificate: %v", target, err)
			}
			host, err := x509.ParseCertificate(s.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			sum = sha256.Sum256(host.RawSubjectPublicKeyInfo)
			want := []api.Hop{{ServerID: s.ID, Name: "lab01", Project: "lab", Address: f.AccessAddress, Port: 4421, BrokerName: s.ID + ".server.sft",
				HostCAs: s.Certificate[1:], HostKeys: [][]byte{sum[:]}, Login: "ann"}}
			if d := cmp.Diff(want, r.Route); d != "" || !r.ExpiresAt.Equal(c.NotAfter) {
				t.Errorf("%s: the route (-want +got):\n%s", target, d)
			}
		}
	})
}

// Each refusal: its code, its words, and that it is told.
func TestConnectRefusals(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant("lab", "dev", false, "ann")
		e.Grant("dup", "dup", false, "ann")
		e.Server("lab", testenv.Facts("lab01"))
		e.Server("lab", testenv.Facts("twin"))
		e.Server("dup", testenv.Facts("Twin"))
		e.Server(testenv.Project, testenv.Facts("web01"))
		e.Enroll("lab", testenv.Facts("bare"))
		hop := testenv.Facts("behind")
		hop.Bastion = "lab01"
		e.Server("lab", hop)
		ann, olive := e.Client("ann"), e.Client(testenv.Owner)
		e.Do("POST", "/groups", map[string]any{"name": "nothing"}, nil)

		key, _ := testenv.Key(t)
		good := api.ConnectRequest{Target: "lab01", Service: "rdp", CSR: testenv.CSR(t, key)}
		p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		p384CSR, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, p384)
		if err != nil {
			t.Fatal(err)
		}
		tests := []struct {
			name   string
			change func(*api.ConnectRequest)
			want   sft.Code
			msg    string
		}{
			{"a project of others", func(r *api.ConnectRequest) { r.Target = "web01" }, sft.Denied, `user "ann" has no access to the servers of project "prod"`},
			{"a project of others, named", func(r *api.ConnectRequest) { r.Target = "prod/web01" }, sft.Denied, `user "ann" has no access to the servers of project "prod"`},
			{"an unknown name", func(r *api.ConnectRequest) { r.Target = "nobody" }, sft.NotFound, `there is no server "nobody"`},
			{"a name in another project", func(r *api.ConnectRequest) { r.Target = "dup/lab01" }, sft.NotFound, `there is no server "dup/lab01"`},
			{"an unknown project", func(r *api.ConnectRequest) { r.Target = "no/lab01" }, sft.NotFound, `there is no server "no/lab01"`},
			{"no name", func(r *api.ConnectRequest) { r.Target = "" }, sft.NotFound, `"" cannot be the name of a server`},
			{"a name with a newline", func(r *api.ConnectRequest) { r.Target = "lab01\nx" }, sft.NotFound, `"lab01\x0ax" cannot be the name of a server`},
			{"a name with a quote", func(r *api.ConnectRequest) { r.Target = `lab"01` }, sft.NotFound, `"lab\"01" cannot be the name of a server`},
			{"a name with a leading dash", func(r *api.ConnectRequest) { r.Target = "-oProxyCommand=x" }, sft.NotFound, `"-oProxyCommand=x" cannot be the name of a server`},
			{"a name of 5,000 characters", func(r *api.ConnectRequest) { r.Target = strings.Repeat("x", 5000) }, sft.NotFound,
				`"` + strings.Repeat("x", 61) + `..." cannot be the name of a server`},
			{"a name of two projects", func(r *api.ConnectRequest) { r.Target = "twin" }, sft.Ambiguous, `"twin" is the name of 2 servers: `},
			{"an unknown service", func(r *api.ConnectRequest) { r.Service = "telnet\n" }, sft.UnknownService, `service "telnet\x0a" is unknown`},
			{"no service", func(r *api.ConnectRequest) { r.Service = "" }, sft.UnknownService, `service "" is unknown`},
			{"the target as a hop", func(r *api.ConnectRequest) { r.Via = []string{"lab01"} }, sft.Invalid, `the way goes in a circle: "lab01" -> "lab01"`},
			{"a server behind one without SSH", func(r *api.ConnectRequest) { r.Target = "behind" }, sft.Unavailable, `server "lab01" cannot be gone through: sftd looks after no SSH server on it`},
			{"SSH to a server without it", func(r *api.ConnectRequest) { r.Service = "ssh" }, sft.Unavailable, `server "lab01" lets nobody in by SSH: sftd looks after no SSH server on it`},
			{"a server without a broker", func(r *api.ConnectRequest) { r.Target = "bare" }, sft.Unavailable, `server "bare" has no broker`},
			{"no CSR", func(r *api.ConnectRequest) { r.CSR = nil }, sft.Invalid, "the certificate request has 0 bytes; it may have 1 to 4096"},
			{"noise for a CSR", func(r *api.ConnectRequest) { r.CSR = []byte("noise") }, sft.Invalid, "the certificate request is not readable"},
			{"a CSR by another curve", func(r *api.ConnectRequest) { r.CSR = p384CSR }, sft.Invalid, "the certificate request is not for a P-256 key"},
			{"a long CSR", func(r *api.ConnectRequest) { r.CSR = make([]byte, 5000) }, sft.Invalid, "the certificate request has 5000 bytes; it may have 1 to 4096"},
			{"an unknown session", func(r *api.ConnectRequest) { r.SessionID = "x" }, sft.NotFound, "there is no such session"},
			{"a session that cannot be", func(r *api.ConnectRequest) { r.SessionID = "\x00" }, sft.NotFound, "there is no such session"},
		}
		refusal := func(c *testenv.Client, r api.ConnectRequest) error {
			t.Helper()
			var err error
			events := since(e, func() { _, err = connect(t, c, r) })
			if told(events) != "user_creds.issue refused" {
				t.Errorf("%.40q: told as %s", r.Target, told(events))
			} else if ev := events[0]; ev.Detail["why"] == "" || ev.Client != c.ID || ev.Actor.Name != c.User || ev.Session != "" || err != nil && ev.Detail["why"] != err.Error() {
				t.Errorf("%.40q: told as %+v, %v", r.Target, ev, err)
			}
			return err
		}
		for _, tt := range tests {
			r := good
			tt.change(&r)
			err := refusal(ann, r)
			wantCode(t, tt.name, err, tt.want)
			if err != nil && !strings.HasPrefix(err.Error(), tt.msg) {
				t.Errorf("%s: %v, want %s", tt.name, err, tt.msg)
			}
		}
		if sft.Denied.Info().Exit != sft.ExitDenied {
			t.Error("denied has another exit status")
		}
		_, err = connect(t, ann, api.ConnectRequest{Target: "LAB/twin", Service: "rdp", CSR: good.CSR})
		wantCode(t, "the project named", err, "")

		// Who may not read the team does not learn that the server is there.
		e.Do("PUT", "/groups/everyone", map[string]any{"roles": []string{}}, nil)
		r := good
		r.Target = "web01"
		wantCode(t, "a project of others, to who may not read", refusal(ann, r), sft.NotFound)

		// Another team's name is as good as none, and that team hears nothing.
		foreign(t, e)
		var foreignErr error
		events := since(e, func() {
			foreignErr = ann.Do(t.Context(), "POST", "/v1/teams/other/connect", good, nil)
		})
		wantCode(t, "another team", foreignErr, sft.NotFound)
		if told(events) != "user_creds.issue refused" { // in the asker's own team
			t.Errorf("asking another team is told as %s", told(events))
		}

		e.Do("PUT", "/users/ann", map[string]string{"status": "DISABLED"}, nil)
		wantCode(t, "a disabled user", refusal(ann, good), sft.Denied)
		e.Do("PUT", "/users/ann", map[string]string{"status": "ACTIVE"}, nil)
		e.Do("DELETE", "/groups/dev/users/ann", nil, nil)
		wantCode(t, "a user who was taken out of the group", refusal(ann, good), sft.NotFound)
		e.Do("POST", "/groups/dev/users", map[string]string{"name": "ann"}, nil)
		_, err = connect(t, ann, good)
		wantCode(t, "and put into it again", err, "")

		if err := ann.Do(t.Context(), "POST", "/v1/clients/logout", nil, nil); err != nil {
			t.Fatal(err)
		}
		wantCode(t, "after logout", refusal(ann, good), sft.SignIn)
		e.Clock.Advance(11 * time.Hour)
		r.Target = "web01"
		wantCode(t, "a sign-in that has ended", refusal(olive, r), sft.SignIn)
		e.Service = e.Bearer(e.Init.Key.ID, e.Init.Key.Secret)
		wantCode(t, "a service user", e.Service.Do(t.Context(), "POST", base+"/connect", good, nil), sft.SignIn)

		e.Clock.Advance(86 * time.Hour)
		e.Service = e.Bearer(e.Init.Key.ID, e.Init.Key.Secret)
		err = refusal(e.Client(testenv.Owner), r)
		wantCode(t, "a server that is silent for 97 hours", err, sft.NotFound)
		if err != nil && err.Error() != `server "web01" has not been in touch since 2026-03-01T09:00:00Z` {
			t.Errorf("a silent server: %v", err)
		}
	})
}

func TestASessionIsContinuedByItsOwnClientOnly(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant(testenv.Project, "dev", false, "ann", "bob")
		e.Server(testenv.Project, testenv.Facts("web01"))
		e.Server(testenv.Project, testenv.Facts("web02"))
		ann, bob := e.Client("ann"), e.Client("bob")
		ann2 := e.Client("ann")
		key, _ := testenv.Key(t)
		req := func(session string) api.ConnectRequest {
			return api.ConnectRequest{Target: "web01", Service: "rdp", CSR: testenv.CSR(t, key), SessionID: session}
		}
		first, err := connect(t, ann, req(""))
		if err != nil {
			t.Fatal(err)
		}
		again, err := connect(t, ann, req(first.SessionID))
		if err != nil || again.SessionID != first.SessionID {
			t.Errorf("continuing = %s, %v; want %s", again.SessionID, err, first.SessionID)
		}
		other, err := connect(t, ann, req(""))
		if err != nil || other.SessionID == first.SessionID {
			t.Errorf("another session = %s, %v", other.SessionID, err)
		}
		_, err = connect(t, bob, req(first.SessionID))
		wantCode(t, "by another user", err, sft.NotFound)
		_, err = connect(t, ann2, req(first.SessionID))
		wantCode(t, "from another client", err, sft.NotFound)
		r := req(first.SessionID)
		r.Target = "web02"
		_, err = connect(t, ann, r)
		wantCode(t, "to another server", err, sft.NotFound)
		r = req(first.SessionID)
		r.Service = "ping"
		_, err = connect(t, ann, r)
		wantCode(t, "through another service", err, sft.NotFound)

		e.Do("DELETE", "/groups/dev/users/ann", nil, nil)
		_, err = connect(t, ann, req(first.SessionID))
		wantCode(t, "without access", err, sft.Denied)
		e.Do("POST", "/groups/dev/users", map[string]string{"name": "ann"}, nil)

		e.Do("PUT", "/projects/prod", map[string]any{"max_session_seconds": 3600}, nil)
		short, err := connect(t, ann, req(""))
		if err != nil {
			t.Fatal(err)
		}
		e.Clock.Advance(time.Hour)
		_, err = connect(t, ann, req(short.SessionID))
		wantCode(t, "past the project's limit", err, sft.Denied)
		_, err = connect(t, ann, req(first.SessionID))
		wantCode(t, "one that began under a longer limit", err, "")
		e.Service = e.Bearer(e.Init.Key.ID, e.Init.Key.Secret)
		e.Do("DELETE", "/clients/"+ann.ID, nil, nil)
		_, err = connect(t, ann, req(first.SessionID))
		wantCode(t, "when the client was deleted", err, sft.Revoked)
	})
}

// Many connect at once while the team changes: each gets a session and an
// event of its own.
func TestManyConnectAtOnce(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Server(testenv.Project, testenv.Facts("web01"))
		clients := []*testenv.Client{e.Client(testenv.Owner), e.Client(testenv.Owner), e.Client(testenv.Owner)}
		before := len(e.Events())
		type result struct {
			session string
			err     error
		}
		done := make(chan result)
		const each = 4
		for _, c := range clients {
			go func() {
				for range each {
					r, _, err := e.Connect(c, "web01")
					done <- result{r.SessionID, err}
				}
			}()
		}
		e.User("ann")
		sessions := map[string]bool{}
		for range each * len(clients) {
			r := <-done
			if r.err != nil {
				t.Error(r.err)
			}
			sessions[r.session] = true
		}
		issued := 0
		for _, ev := range e.Events()[before:] {
			if ev.Kind == audit.UserCredsIssue && sessions[ev.Session] {
				issued++
			}
		}
		if len(sessions) != each*len(clients) || issued != len(sessions) {
			t.Errorf("%d sessions and %d events, want %d", len(sessions), issued, each*len(clients))
		}
	})
}

func TestResolve(t *testing.T) {
	e := testenv.New(t)
	e.Grant("lab", "dev", false, "ann")
	s := e.Server("lab", testenv.Facts("lab01"))
	e.Server(testenv.Project, testenv.Facts("web01"))
	ann := e.Client("ann")
	ask := func(target string) (r api.ResolveReply, err error) {
		return r, ann.Do(t.Context(), "GET", base+"/resolve?target="+url.QueryEscape(target), nil, &r)
	}
	r, err := ask("lab01.local")
	if err != nil || r.Server.ID != s.ID || r.Login != "ann" {
		t.Errorf("resolve = %+v, %v", r, err)
	}
	for target, want := range map[string]sft.Code{"web01": sft.Denied, "no": sft.NotFound, "": sft.NotFound, "\x00": sft.NotFound, "\xff": sft.NotFound, strings.Repeat("x", 5001): sft.Invalid} {
		_, err := ask(target)
		wantCode(t, fmt.Sprintf("resolving %.20q", target), err, want)
	}
	var list api.List[sft.Server]
	if err := ann.Do(t.Context(), "GET", base+"/servers", nil, &list); err != nil || len(list.List) != 1 || list.List[0].ID != s.ID {
		t.Errorf("ann's servers are %+v, %v", list.List, err)
	}
	// Who may see a project is told that none of its servers is theirs to reach;
	// to others there is no such project.
	wantCode(t, "the servers of a project of others", ann.Do(t.Context(), "GET", base+"/servers?project_name=prod", nil, &list), "")
	if len(list.List) != 0 {
		t.Errorf("ann's servers in it are %+v", list.List)
	}
	e.Do("PUT", "/groups/everyone", map[string]any{"roles": []string{}}, nil)
	wantCode(t, "the servers of a project of others, without a role", ann.Do(t.Context(), "GET", base+"/servers?project_name=prod", nil, nil), sft.NotFound)
	e.Do("PUT", "/groups/everyone", map[string]any{"roles": []string{"access_user"}}, nil)
	e.Do("GET", "/servers?state=ACTIVE", nil, &list)
	if len(list.List) != 2 {
		t.Errorf("the team's servers are %+v", list.List)
	}
	var projects api.List[sft.Project]
	if err := ann.Do(t.Context(), "GET", base+"/projects?self=true", nil, &projects); err != nil || len(projects.List) != 1 || projects.List[0].Name != "lab" {
		t.Errorf("ann's projects are %+v, %v", projects.List, err)
	}
}

// Every secret that was handed out is nowhere in what the platform stores or
// logs.
func TestNoSecretIsStoredOrLogged(t *testing.T) {
	e := testenv.New(t)
	ctx := t.Context()
	secrets := map[string]string{}
	add := func(what, secret string) {
		t.Helper()
		if len(secret) < 12 {
			t.Errorf("%s is %q", what, secret)
		}
		secrets[what] = secret
	}
	add("service key", e.Init.Key.Secret)
	add("service token", e.Service.Token)
	add("service token's signature", e.Service.Token[strings.LastIndex(e.Service.Token, ".")+1:])
	add("enrollment token", e.Init.Token)
	add("enrollment token's secret", testenv.Secret(t, e.Init.Token))
	link := linkSecret(t, e.Init.FirstUseURL)
	add("first-use secret", link.Reveal())
	const pw, wrong = "canary horse battery", "canary wrong password"
	add("password", pw)
	add("wrong password", wrong)
	resp, err := e.HTTP().Get(e.Init.FirstUseURL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	resp = e.Form(nil, "/first-use", url.Values{"secret": {link.Reveal()}, "password": {pw}, "again": {pw}})
	for _, c := range resp.Cookies() {
		add("cookie", c.Value)
	}
	e.Form(nil, "/signin", url.Values{"team": {"main"}, "user": {"olive"}, "password": {wrong}})
	resp = e.Form(nil, "/signin", url.Values{"team": {"main"}, "user": {"olive"}, "password": {pw}})
	cookie := resp.Cookies()[0]
	add("cookie by a password", cookie.Value)

	key, spki := testenv.Key(t)
	a := e.Approve(cookie, spki, "")
	add("authorization code", a.Code)
	add("verifier", a.Verifier)
	var r api.EnrollClientReply
	if err := e.Anonymous().Do(ctx, "POST", "/v1/clients/enroll", enrolment(a, spki), &r); err != nil {
		t.Fatal(err)
	}
	c := &testenv.Client{Client: e.Signed(key, "client:"+r.ClientID), ID: r.ClientID, User: r.User}
	_, spki2 := testenv.Key(t)
	var code api.DeviceCodeReply
	if err := e.Anonymous().Do(ctx, "POST", "/v1/clients/device_code", api.DeviceCodeRequest{Team: "main", DeviceKey: spki2}, &code); err != nil {
		t.Fatal(err)
	}
	add("device code", code.DeviceCode)
	e.Form(cookie, "/device", url.Values{"code": {code.UserCode}})
	s := e.Server(testenv.Project, testenv.Facts("web01"))
	if _, _, err := e.Connect(c, "web01"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.Connect(c, "no"); err == nil {
		t.Fatal("no error")
	}
	bad := e.WithToken("canary-bad-token-canary")
	add("bad token", bad.Token)
	bad.Do(ctx, "GET", base+"/users", nil, nil)
	var k platform.KeyReply
	e.Do("POST", "/service_users/robot/keys", nil, &k)
	add("rotated key", k.Secret)
	e.State(s)

	where := map[string]string{"the log": e.Log.String()}
	events, err := json.Marshal(e.Events())
	if err != nil {
		t.Fatal(err)
	}
	where["the events"] = string(events)
	files, err := filepath.Glob(strings.TrimPrefix(e.DBURL, "sqlite:") + "*")
	if err != nil || len(files) < 2 {
		t.Fatalf("the database's files are %q, %v", files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		where[filepath.Base(f)] = string(b)
	}
	for place, text := range where {
		if len(text) < 1000 && place != "platform.db-shm" {
			t.Errorf("%s has %d bytes: nothing was looked at", place, len(text))
		}
		for what, secret := range secrets {
			for form, s := range map[string]string{"plain": secret, "base64": base64.StdEncoding.EncodeToString([]byte(secret)), "hex": hex.EncodeToString([]byte(secret)), "in a URL": url.QueryEscape(secret)} {
				if strings.Contains(text, s) {
					t.Errorf("the %s is in %s, %s", what, place, form)
				}
			}
		}
	}
}
