package platform_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/store"
	"sft/internal/testenv"
)

func TestEnrollAServer(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		ctx := t.Context()
		other := testenv.New(t)
		enroll := func(token string, spki []byte) (r api.EnrollServerReply, err error) {
			return r, e.Anonymous().Do(ctx, "POST", "/v1/servers/enroll", api.EnrollServerRequest{Token: token, DeviceKey: spki, Facts: testenv.Facts("web01")}, &r)
		}
		token := func(body map[string]any) string {
			var r struct {
				ID    string `json:"id"`
				Token string `json:"token"`
			}
			deleted := body["deleted"] == true
			delete(body, "deleted")
			e.Do("POST", "/projects/prod/server_enrollment_tokens", body, &r)
			if deleted {
				e.Do("DELETE", "/projects/prod/server_enrollment_tokens/"+r.ID, nil, nil)
			}
			return testenv.Secret(t, r.Token)
		}
		soon := e.Clock.Now().Add(time.Minute)
		expiring, once, good := token(map[string]any{"expires_at": soon}), token(map[string]any{"max_uses": 1}), testenv.Secret(t, e.Init.Token)
		_, spki := testenv.Key(t)
		events := since(e, func() {
			r, err := enroll(once, spki)
			if err != nil || r.Team != "main" || r.Project != "prod" || r.URL != e.URL || string(r.CA) != string(e.CA) || r.Revision < 1 {
				t.Errorf("enrolling = %+v, %v", r, err)
			}
		})
		if told(events) != "server.enroll success" || events[0].Target != "web01" || events[0].Project != "prod" {
			t.Errorf("enrolling is told as %+v", events)
		}
		_, spki2 := testenv.Key(t)
		wantCode(t, "a token within its time", second(enroll(expiring, spki2)), "")
		e.Clock.Set(soon)
		_, fresh := testenv.Key(t)
		used := e.Server(testenv.Project, testenv.Facts("used"))
		inUse, err := x509.MarshalPKIXPublicKey(&used.Key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			name, token string
			key         []byte
			want        sft.Code
			told        string
		}{
			{"a token used up", once, fresh, sft.Denied, "server.enroll refused"},
			{"a token at its end", expiring, fresh, sft.Denied, "server.enroll refused"},
			{"a deleted token", token(map[string]any{"deleted": true}), fresh, sft.Denied, ""}, // it is nobody's, so no team hears of it
			{"another platform's token", testenv.Secret(t, other.Init.Token), fresh, sft.Denied, ""},
			{"an unknown token", "x", fresh, sft.Denied, ""},
			{"no token", "", fresh, sft.Denied, ""},
			{"a token that cannot be", "\x00", fresh, sft.Denied, ""},
			{"a whole token file", e.Init.Token, fresh, sft.Denied, ""},
			{"a key whose reply may have been lost", good, spki, "", "server.enroll success"},
			{"a key that is in use", good, inUse, sft.Enrolled, "server.enroll refused"},
			{"no key", good, nil, sft.Invalid, ""},
			{"noise for a key", good, []byte("noise"), sft.Invalid, ""},
			{"a good token", good, fresh, "", "server.enroll success, server.name_conflict refused"},
		} {
			var err error
			events := since(e, func() { err = second(enroll(tt.token, tt.key)) })
			wantCode(t, tt.name, err, tt.want)
			if tt.want == sft.Denied && !strings.Contains(err.Error(), "is unknown, deleted, expired or used up") {
				t.Errorf("%s is refused as %v", tt.name, err)
			}
			slices.SortFunc(events, func(a, b audit.Event) int { return strings.Compare(string(a.Kind), string(b.Kind)) })
			if told(events) != tt.told {
				t.Errorf("%s is told as %q, want %q", tt.name, told(events), tt.told)
			}
		}
		var list api.List[sft.EnrollmentToken]
		e.Do("GET", "/projects/prod/server_enrollment_tokens", nil, &list)
		var uses []int64
		for _, k := range list.List {
			uses = append(uses, k.Uses)
		}
		if !slices.Equal(uses, []int64{1, 1, 1, 1}) {
			t.Errorf("the tokens were used %v times", uses)
		}
		for what, body := range map[string]any{
			"a long description":   map[string]any{"description": strings.Repeat("x", 201)},
			"an end in the past":   map[string]any{"expires_at": e.Clock.Now()},
			"less than no use":     map[string]any{"max_uses": -1},
			"a description with 0": map[string]any{"description": "a\x00b"},
		} {
			wantCode(t, "a token with "+what, e.Service.Do(ctx, "POST", base+"/projects/prod/server_enrollment_tokens", body, nil), sft.Invalid)
		}
	})
}

func TestFactsThatCannotBe(t *testing.T) {
	e := testenv.New(t)
	s := e.Server(testenv.Project, testenv.Facts("web01"))
	long := strings.Repeat("x", 5000)
	many := func(n int, v string) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprint(v, i))
		}
		return list
	}
	tests := []struct {
		name   string
		change func(*api.Facts)
		ok     bool
	}{
		{"ordinary ones", func(f *api.Facts) {}, true},
		{"no host name", func(f *api.Facts) { f.Hostname = "" }, false},
		{"a host name with a newline", func(f *api.Facts) { f.Hostname = "web\n01" }, false},
		{"a host name that ends with a newline", func(f *api.Facts) { f.Hostname = "web01\n" }, false},
		{"a host name with a quote", func(f *api.Facts) { f.Hostname = `web"01` }, false},
		{"a host name with a zero", func(f *api.Facts) { f.Hostname = "web\x0001" }, false},
		{"a host name with markup", func(f *api.Facts) { f.Hostname = "<b>web</b>" }, false},
		{"a host name with a leading dash", func(f *api.Facts) { f.Hostname = "-web" }, false},
		{"a host name with a slash", func(f *api.Facts) { f.Hostname = "prod/web" }, false},
		{"a host name of 253 characters", func(f *api.Facts) { f.Hostname = long[:253] }, true},
		{"a host name of 254", func(f *api.Facts) { f.Hostname = long[:254] }, false},
		{"a host name of 5,000", func(f *api.Facts) { f.Hostname = long }, false},
		{"a canonical name with a space", func(f *api.Facts) { f.CanonicalName = "a b" }, false},
		{"an alternative name with a newline", func(f *api.Facts) { f.AltNames = []string{"ok", "a\nb"} }, false},
		{"an empty alternative name", func(f *api.Facts) { f.AltNames = []string{""} }, false},
		{"32 alternative names", func(f *api.Facts) { f.AltNames = many(32, "alt") }, true},
		{"33 alternative names", func(f *api.Facts) { f.AltNames = many(33, "alt") }, false},
		{"a bastion with a quote", func(f *api.Facts) { f.Bastion = "b'" }, false},
		{"no address: the one it calls from", func(f *api.Facts) { f.AccessAddress = "" }, true},
		{"an IPv6 address", func(f *api.Facts) { f.AccessAddress = "2001:db8::1" }, true},
		{"a name for an address", func(f *api.Facts) { f.AccessAddress = "db.example.com" }, false},
		{"an address with a port", func(f *api.Facts) { f.AccessAddress = "10.0.0.1:22" }, false},
		{"an address of four numbers too large", func(f *api.Facts) { f.AccessAddress = "10.0.0.256" }, false},
		{"any address", func(f *api.Facts) { f.AccessAddress = "0.0.0.0" }, false},
		{"any IPv6 address", func(f *api.Facts) { f.AccessAddress = "::" }, false},
		{"a multicast address", func(f *api.Facts) { f.AccessAddress = "224.0.0.1" }, false},
		{"an address with a zone", func(f *api.Facts) { f.AccessAddress = "fe80::1%eth0" }, false},
		{"port 0", func(f *api.Facts) { f.BrokerPort = 0 }, false},
		{"port 65536", func(f *api.Facts) { f.BrokerPort = 65536 }, false},
		{"port -1", func(f *api.Facts) { f.BrokerPort = -1 }, false},
		{"another system", func(f *api.Facts) { f.OSType = "plan9" }, false},
		{"a system with an escape", func(f *api.Facts) { f.OS = "Debian\x1b[2J" }, false},
		{"a long version", func(f *api.Facts) { f.Version = long[:51] }, false},
		{"a long instance id", func(f *api.Facts) { f.InstanceID = long[:101] }, false},
		{"nine services", func(f *api.Facts) { f.Services = many(9, "s") }, false},
		{"a service with a newline", func(f *api.Facts) { f.Services = []string{"rdp\n"} }, false},
		{"51 problems", func(f *api.Facts) { f.Problems = many(51, "p") }, false},
		{"a long problem", func(f *api.Facts) { f.Problems = []string{long[:501]} }, false},
		{"an SSH server", func(f *api.Facts) { f.SSH = &api.SSHFacts{Port: 22, HostKeys: []string{testenv.SSHLine(t)}} }, true},
		{"one without keys", func(f *api.Facts) { f.SSH = &api.SSHFacts{Port: 65535, Broker: true} }, true},
		{"an SSH server without a port", func(f *api.Facts) { f.SSH = &api.SSHFacts{} }, false},
		{"an SSH server at port 65536", func(f *api.Facts) { f.SSH = &api.SSHFacts{Port: 65536} }, false},
		{"an SSH server at port -1", func(f *api.Facts) { f.SSH = &api.SSHFacts{Port: -1} }, false},
		{"eight SSH keys", func(f *api.Facts) { f.SSH = &api.SSHFacts{Port: 22, HostKeys: sshLines(t, 8)} }, true},
		{"nine SSH keys", func(f *api.Facts) { f.SSH = &api.SSHFacts{Port: 22, HostKeys: sshLines(t, 9)} }, false},
		{"noise for an SSH key", func(f *api.Facts) { f.SSH = &api.SSHFacts{Port: 22, HostKeys: []string{"ssh-ed25519 AAAA"}} }, false},
		{"an SSH key with a comment", func(f *api.Facts) {
			f.SSH = &api.SSHFacts{Port: 22, HostKeys: []string{testenv.SSHLine(t) + " root@web01"}}
		}, false},
		{"a private address", func(f *api.Facts) { f.PrivateAddress, f.Network = "10.1.2.3", "aws:vpc-0123" }, true},
		{"a private IPv6 address", func(f *api.Facts) { f.PrivateAddress = "fd00::1" }, true},
		{"a public one for a private one", func(f *api.Facts) { f.PrivateAddress = "192.0.2.1" }, false},
		{"a loopback one", func(f *api.Facts) { f.PrivateAddress = "127.0.0.1" }, false},
		{"a link-local one", func(f *api.Facts) { f.PrivateAddress = "169.254.169.254" }, false},
		{"a private one in another's clothes", func(f *api.Facts) { f.PrivateAddress = "::ffff:10.0.0.1" }, false},
		{"a private one with a zone", func(f *api.Facts) { f.PrivateAddress = "fd00::1%eth0" }, false},
		{"a name for a private one", func(f *api.Facts) { f.PrivateAddress = "web01" }, false},
		{"a network of another cloud", func(f *api.Facts) { f.Network = "gcp:net" }, false},
		{"a network without a name", func(f *api.Facts) { f.Network = "aws:" }, false},
		{"a network with capitals", func(f *api.Facts) { f.Network = "aws:VPC" }, false},
		{"a network of 64 characters", func(f *api.Facts) { f.Network = "aws:" + long[:60] }, true},
		{"a network of 65", func(f *api.Facts) { f.Network = "aws:" + long[:61] }, false},
		{"a problem that turns text around", func(f *api.Facts) { f.Problems = []string{"a\u202eb"} }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := sft.Invalid
			if tt.ok {
				want = ""
			}
			f := testenv.Facts("web01")
			tt.change(&f)
			wantCode(t, "a report", s.Do(t.Context(), "POST", "/v1/agent/report", api.ReportRequest{Facts: f}, nil), want)
			if !tt.ok {
				_, spki := testenv.Key(t)
				wantCode(t, "enrolling", e.Anonymous().Do(t.Context(), "POST", "/v1/servers/enroll",
					api.EnrollServerRequest{Token: testenv.Secret(t, e.Init.Token), DeviceKey: spki, Facts: f}, nil), want)
			}
		})
	}
}

func sshLines(t *testing.T, n int) (lines []string) {
	for range n {
		lines = append(lines, testenv.SSHLine(t))
	}
	return lines
}

func TestAHostThatClaimsAnothersName(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		c := e.Client(testenv.Owner)
		web := e.Server(testenv.Project, testenv.Facts("web01"))
		var evil *testenv.Server
		events := since(e, func() {
			f := testenv.Facts("evil")
			f.AltNames = []string{"WEB01.local", "mine", web.ID}
			evil = e.Server(testenv.Project, f)
		})
		i := slices.IndexFunc(events, func(e audit.Event) bool { return e.Kind == audit.NameConflict })
		if i < 0 || events[i].Detail["names"] != "WEB01.local" || events[i].Detail["server"] != evil.ID || events[i].Outcome != audit.Refused {
			t.Errorf("the conflict is told as %+v", events)
		}
		var s sft.Server
		e.Do("GET", "/projects/prod/servers/"+evil.ID, nil, &s)
		if !slices.Equal(s.NameConflict, []string{"WEB01.local"}) {
			t.Errorf("the record says of conflicts %q", s.NameConflict)
		}
		leads := func(target, to string) {
			t.Helper()
			r, _, err := e.Connect(c, target)
			got := ""
			if err == nil {
				got = r.Route[0].ServerID
			}
			if got != to {
				t.Errorf("%s leads to %q, %v; want %q", target, got, err, to)
			}
		}
		leads("web01", web.ID)
		leads("mine", evil.ID)
		leads(web.ID, web.ID) // whoever claims it as a name
		again := since(e, func() { e.Report(evil) })
		if told(again) != "server_creds.issue success" {
			t.Errorf("the same conflict is told again: %s", told(again))
		}

		// Nor does it get the place of one that is silent.
		e.Clock.Advance(97 * time.Hour)
		e.Service = e.Bearer(e.Init.Key.ID, e.Init.Key.Secret)
		e.State(evil)
		e.Report(evil)
		c = e.Client(testenv.Owner)
		leads("web01", "")
		leads(web.ID, "")
		leads("evil", evil.ID)

		// Only when an administrator has deleted the record.
		e.Do("DELETE", "/projects/prod/servers/"+web.ID, nil, nil)
		leads("web01", evil.ID) // whoever claimed it waited for it
		var after sft.Server
		e.Do("GET", "/projects/prod/servers/"+evil.ID, nil, &after)
		if len(after.NameConflict) != 0 {
			t.Errorf("the record says of conflicts %q", after.NameConflict)
		}
	})
}

func TestADeletedServer(t *testing.T) {
	e := testenv.New(t)
	s := e.Server(testenv.Project, testenv.Facts("web01"))
	wantCode(t, "in another project", e.Service.Do(t.Context(), "DELETE", base+"/projects/lab/servers/"+s.ID, nil, nil), sft.NotFound)
	events := since(e, func() { e.Do("DELETE", "/projects/prod/servers/"+s.ID, nil, nil) })
	if told(events) != "server.remove success" {
		t.Errorf("deleting is told as %s", told(events))
	}
	for path, body := range map[string]any{"/v1/agent/report": api.ReportRequest{Facts: s.Facts}, "/v1/agent/events": api.EventsRequest{Events: []api.Event{agentEvent(1)}}} {
		wantCode(t, path, s.Do(t.Context(), "POST", path, body, nil), sft.Revoked)
	}
	wantCode(t, "state", s.Do(t.Context(), "GET", "/v1/agent/state", nil, nil), sft.Revoked)
	wantCode(t, "deleting it again", e.Service.Do(t.Context(), "DELETE", base+"/projects/prod/servers/"+s.ID, nil, nil), sft.NotFound)
	wantCode(t, "looking at it", e.Service.Do(t.Context(), "GET", base+"/projects/prod/servers/"+s.ID, nil, nil), sft.NotFound)
}

func TestReportIssuesTheBrokersCertificate(t *testing.T) {
	e := testenv.New(t)
	s := e.Enroll(testenv.Project, testenv.Facts("web01"))
	c := e.Client(testenv.Owner)
	_, _, err := e.Connect(c, "web01")
	wantCode(t, "a server without a broker", err, sft.Unavailable)

	s.HostKey, _ = testenv.Key(t)
	events := since(e, func() {
		var r api.ReportReply
		if err := s.Do(t.Context(), "POST", "/v1/agent/report", api.ReportRequest{Facts: s.Facts, CSR: greedyCSR(t, s.HostKey)}, &r); err != nil {
			t.Fatal(err)
		}
		s.Certificate = r.BrokerCertificate
	})
	if told(events) != "server_creds.issue success" {
		t.Errorf("it is told as %s", told(events))
	}
	cert, err := x509.ParseCertificate(s.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{s.ID + ".server.sft"}; !slices.Equal(cert.DNSNames, want) || len(cert.URIs)+len(cert.IPAddresses) > 0 || cert.IsCA ||
		!slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) || !s.HostKey.PublicKey.Equal(cert.PublicKey) {
		t.Errorf("the certificate names %q, %v, %v", cert.DNSNames, cert.URIs, cert.ExtKeyUsage)
	}

	// Old and new key are vouched for while the certificate is renewed.
	hash := func() [][]byte {
		t.Helper()
		r, _, err := e.Connect(c, "web01")
		if err != nil {
			t.Fatal(err)
		}
		return r.Route[0].HostKeys
	}
	first := hash()
	e.Report(s) // the same key
	if d := cmp.Diff(first, hash()); len(first) != 1 || d != "" {
		t.Errorf("after a renewal with the same key: %s", d)
	}
	s.HostKey, _ = testenv.Key(t)
	e.Report(s)
	two := hash()
	if len(two) != 2 || string(two[1]) != string(first[0]) || string(two[0]) == string(first[0]) {
		t.Errorf("after a renewal with another key: %d keys", len(two))
	}
	wantCode(t, "a report with a bad CSR", s.Do(t.Context(), "POST", "/v1/agent/report", api.ReportRequest{Facts: testenv.Facts("other"), CSR: []byte("noise")}, nil), sft.Invalid)
	if d := cmp.Diff(two, hash()); d != "" { // web01 is still its name
		t.Errorf("a refused report changed the keys: %s", d)
	}
}

// The SSH keys of a host get certificates for its id and the names that it
// holds, by the CA that clients are told of, and agents hear of the users' CA.
func TestReportIssuesSSHCertificates(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Server(testenv.Project, testenv.Facts("taken"))
		f := testenv.SSHFacts(t, "web01")
		f.AltNames = []string{"TAKEN", "www.example.com", "10.9.9.9", "01890a5d-ac96-774b-bcce-b302099a8057"}
		s := e.Server(testenv.Project, f)
		keys := []string{f.SSH.HostKeys[0] + "\n", testenv.SSHLine(t)}
		var reply api.ReportReply
		report := func(r api.ReportRequest) error {
			reply = api.ReportReply{}
			return s.Do(t.Context(), "POST", "/v1/agent/report", r, &reply)
		}
		events := since(e, func() { wantCode(t, "a report", report(api.ReportRequest{Facts: f, SSHHostKeys: keys}), "") })
		if told(events) != "server_creds.issue success" || len(reply.BrokerCertificate) != 0 || len(reply.SSHHostCertificates) != 2 {
			t.Fatalf("it is told as %s, %d certificates", told(events), len(reply.SSHHostCertificates))
		}
		c, _, err := e.ConnectSSH(e.Client(testenv.Owner), "web01")
		if err != nil {
			t.Fatal(err)
		}
		var issued []string
		for i, line := range reply.SSHHostCertificates {
			cert := sshCert(t, line)
			if want := []string{s.ID, "web01", "www.example.com"}; !slices.Equal(cert.ValidPrincipals, want) || cert.CertType != ssh.HostCert {
				t.Errorf("certificate %d is for %q, want %q", i, cert.ValidPrincipals, want)
			}
			if cert.ValidAfter != uint64(e.Clock.Now().Add(-time.Minute).Unix()) || cert.ValidBefore != uint64(e.Clock.Now().Add(7*24*time.Hour).Unix()) {
				t.Errorf("certificate %d is good from %d to %d", i, cert.ValidAfter, cert.ValidBefore)
			}
			if got := sshLine(cert.Key); got != strings.TrimSpace(keys[i]) || !slices.Equal(c.Route[0].SSH.HostCAs, []string{sshLine(cert.SignatureKey)}) {
				t.Errorf("certificate %d is of %s by %s", i, got, sshLine(cert.SignatureKey))
			}
			issued = append(issued, fmt.Sprintf("%s=%d", ssh.FingerprintSHA256(cert.Key), cert.Serial))
		}
		if d := cmp.Diff(map[string]string{"ssh_serials": strings.Join(issued, " "), "ssh_until": "2026-03-08T09:00:00Z"}, events[0].Detail); d != "" {
			t.Errorf("the event's detail (-want +got):\n%s", d)
		}
		st := e.State(s)
		if cert := sshCert(t, c.Route[0].SSH.Certificate); !slices.Equal(st.SSHUserCAs, []string{sshLine(cert.SignatureKey)}) {
			t.Errorf("the agent is told of %q", st.SSHUserCAs)
		}
		other := e.Server("lab", testenv.Facts("lab01"))
		if st := e.State(other); len(st.SSHUserCAs) != 1 || st.SSHUserCAs[0] == e.State(s).SSHUserCAs[0] {
			t.Errorf("another project's agent is told of %q", st.SSHUserCAs)
		}

		// With a CSR too, it is one event.
		events = since(e, func() {
			wantCode(t, "a report for both", report(api.ReportRequest{Facts: f, CSR: testenv.CSR(t, s.HostKey), SSHHostKeys: keys[:1]}), "")
		})
		if told(events) != "server_creds.issue success" || len(reply.BrokerCertificate) != 2 || len(reply.SSHHostCertificates) != 1 || events[0].Detail["key_sha256"] == "" || events[0].Detail["ssh_serials"] == "" {
			t.Errorf("for both: %+v, %d and %d certificates", events, len(reply.BrokerCertificate), len(reply.SSHHostCertificates))
		}
		var v sft.Server
		e.Do("GET", "/projects/prod/servers/"+s.ID, nil, &v)
		if !v.Managed || v.SSHPort != 22 || !slices.Equal(v.SSHHostKeys, f.SSH.HostKeys) {
			t.Errorf("the server is %+v", v)
		}

		bad := f
		bad.Hostname = "other"
		for name, list := range map[string][]string{"nine keys": sshLines(t, 9), "noise": {"noise"}, "a certificate": {reply.SSHHostCertificates[0]}, "a good one and an empty one": {keys[0], ""}} {
			events := since(e, func() { wantCode(t, name, report(api.ReportRequest{Facts: bad, SSHHostKeys: list}), sft.Invalid) })
			if len(events) != 0 || len(reply.SSHHostCertificates) != 0 {
				t.Errorf("%s is told as %s, %d certificates", name, told(events), len(reply.SSHHostCertificates))
			}
		}
		e.Do("GET", "/projects/prod/servers/"+s.ID, nil, &v)
		if v.Hostname != "web01" {
			t.Errorf("a refused report changed the name to %s", v.Hostname)
		}
	})
}

// An agent tells who came in by SSH; whose session it was, the platform knows.
func TestSSHLoginsInTheAudit(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant(testenv.Project, "dev", false, "ann")
		web, db := e.Server(testenv.Project, testenv.SSHFacts(t, "web01")), e.Server(testenv.Project, testenv.SSHFacts(t, "db01"))
		client := e.Client("ann")
		r, _, err := e.ConnectSSH(client, "web01")
		if err != nil {
			t.Fatal(err)
		}
		keyID := sshCert(t, r.Route[0].SSH.Certificate).KeyId
		if want := "sft:session/" + r.SessionID + "/user/" + e.User("ann").ID; keyID != want {
			t.Fatalf("the key id is %s, want %s", keyID, want)
		}
		for _, tt := range []struct {
			by            *testenv.Server
			session, user string
			client        string
		}{{web, r.SessionID, "ann", client.ID}, {db, "", "", ""}} {
			ev := agentEvent(1)
			ev.Kind, ev.Session, ev.Detail = string(audit.SSHLogin), r.SessionID, map[string]string{"user": "root", "login": "ann", "remote": "10.0.0.9", "method": "publickey", "key_id": keyID}
			events := since(e, func() {
				wantCode(t, "sending it", tt.by.Do(t.Context(), "POST", "/v1/agent/events", api.EventsRequest{Events: []api.Event{ev}}, nil), "")
			})
			if told(events) != "server.ssh_login success" || events[0].Session != tt.session || events[0].Client != tt.client || events[0].Detail["user"] != tt.user || events[0].Detail["key_id"] != keyID {
				t.Errorf("by %s it is told as %+v", tt.by.ID, events)
			}
		}

		// A host on the way has let in the same person in the same session. What it
		// tells of is in its own project.
		e.Grant("far", "dev", false, "ann")
		gw := e.Server("far", testenv.SSHFacts(t, "gw01"))
		if r, _, err = e.ConnectSSH(client, "web01", "gw01"); err != nil {
			t.Fatal(err)
		}
		for n, kind := range []audit.Kind{audit.SSHLogin, audit.SessionEnd} {
			ev := agentEvent(int64(n) + 1)
			ev.Kind, ev.Session = string(kind), r.SessionID
			events := since(e, func() {
				wantCode(t, "sending it", gw.Do(t.Context(), "POST", "/v1/agent/events", api.EventsRequest{Events: []api.Event{ev}}, nil), "")
			})
			if len(events) != 1 || events[0].Session != r.SessionID || events[0].Client != client.ID || events[0].Detail["user"] != "ann" || events[0].Project != "far" {
				t.Errorf("by a host on the way it is told as %+v", events)
			}
		}
	})
}

func sshCert(t *testing.T, line string) *ssh.Certificate {
	t.Helper()
	k, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	c, ok := k.(*ssh.Certificate)
	if !ok {
		t.Fatalf("%s is no certificate", line)
	}
	return c
}

// sshLine is a key as in authorized_keys.
func sshLine(k ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k))) }

// wake asks for the state in the background, and returns what it was told
// and after how long.
func wake(t *testing.T, e *testenv.Env, s *testenv.Server, after int64) func() (api.State, error) {
	t.Helper()
	type reply struct {
		st  api.State
		err error
	}
	done := make(chan reply, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	go func() {
		var r reply
		r.err = s.Do(ctx, "GET", fmt.Sprint("/v1/agent/state?after=", after), nil, &r.st)
		done <- r
	}()
	select {
	case r := <-done:
		t.Fatalf("the request did not wait: %+v, %v", r.st, r.err)
	case <-time.After(100 * time.Millisecond):
	}
	return func() (api.State, error) {
		t.Helper()
		began := time.Now()
		r := <-done
		if took := time.Since(began); took > 4*time.Second { // less than the poll, which would find it too
			t.Errorf("the answer took %s", took)
		}
		return r.st, r.err
	}
}

func TestStateAnswersAtOnceOnAChange(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		s := e.Server("lab", testenv.Facts("lab01"))
		e.User("ann")
		e.User("bob")
		e.Do("POST", "/groups", map[string]string{"name": "dev"}, nil)
		e.Do("POST", "/groups", map[string]string{"name": "ops"}, nil)
		st := e.State(s)
		if len(st.Users) != 0 || len(st.AccessCAs) != 1 || !cmp.Equal(st.Settings, api.Settings{Team: "main", Project: "lab", CreateServerUsers: true, MaxSession: 12 * 3600, DisconnectedSession: 8 * 3600, Channels: &sft.AllChannels}) {
			t.Errorf("at first the state is %+v", st)
		}
		var client *testenv.Client
		var session string
		for _, step := range []struct {
			name string
			do   func()
			want string // the users and how many sessions have ended
		}{
			{"a group is let in", func() {
				e.Do("POST", "/projects/lab/groups", map[string]any{"name": "dev", "server_access": true}, nil)
			}, "[] 0"},
			{"a member is added", func() { e.Do("POST", "/groups/dev/users", map[string]string{"name": "ann"}, nil) }, "[ann] 0"},
			{"another", func() { e.Do("POST", "/groups/dev/users", map[string]string{"name": "bob"}, nil) }, "[ann bob] 0"},
			{"the group becomes admin", func() {
				e.Do("PUT", "/projects/lab/groups/dev", map[string]any{"server_access": true, "server_admin": true}, nil)
			}, "[ann! bob!] 0"},
			{"a member is removed", func() { e.Do("DELETE", "/groups/dev/users/bob", nil, nil) }, "[ann!] 0"},
			{"a user is disabled", func() { e.Do("PUT", "/users/ann", map[string]string{"status": "DISABLED"}, nil) }, "[] 0"},
			{"and enabled", func() { e.Do("PUT", "/users/ann", map[string]string{"status": "ACTIVE"}, nil) }, "[ann!] 0"},
			{"a client is deleted", func() { e.Do("DELETE", "/clients/"+client.ID, nil, nil) }, "[ann!] 1"},
			{"settings change", func() { e.Do("PUT", "/projects/lab", map[string]any{"max_session_seconds": 60}, nil) }, "[ann!] 1"},
			{"the group is deleted", func() { e.Do("DELETE", "/groups/dev", nil, nil) }, "[] 1"},
			{"everyone is let in", func() {
				e.Do("POST", "/projects/lab/groups", map[string]any{"name": "everyone", "server_access": true}, nil)
			}, "[ann bob olive] 1"},
			{"a user is made", func() { e.User("eve") }, "[ann bob eve olive] 1"},
			{"a user is deleted", func() { e.Do("PUT", "/users/eve", map[string]string{"status": "DELETED"}, nil) }, "[ann bob olive] 1"},
			{"the group is taken out", func() { e.Do("DELETE", "/projects/lab/groups/everyone", nil, nil) }, "[] 1"},
		} {
			if step.name == "a client is deleted" {
				client = e.Client("ann")
				r, _, err := e.Connect(client, "lab01")
				if err != nil {
					t.Fatal(err)
				}
				session = r.SessionID
			}
			last := st.Revision
			woken := wake(t, e, s, last)
			step.do()
			var err error
			if st, err = woken(); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			users := []string{}
			for _, u := range st.Users {
				name := u.Login
				if u.Admin {
					name += "!"
				}
				users = append(users, name)
			}
			if got := fmt.Sprint(users, len(st.EndedSessions)); got != step.want || st.Revision <= last {
				t.Errorf("%s: %s at revision %d, want %s after %d", step.name, got, st.Revision, step.want, last)
			}
		}
		if !slices.Equal(st.EndedSessions, []string{session}) || st.Settings.MaxSession != 60 {
			t.Errorf("in the end the state is %+v", st)
		}

		// What is no news for it leaves it waiting; its own end is.
		woken := wake(t, e, s, st.Revision)
		e.Do("POST", "/groups/ops/users", map[string]string{"name": "ann"}, nil)
		e.Do("DELETE", "/projects/lab/servers/"+s.ID, nil, nil)
		_, err := woken()
		wantCode(t, "the server is deleted while it waits", err, sft.Revoked)
	})
}

// Another platform on the same database makes the change: nobody tells this
// one, which looks every few seconds.
func TestStateHearsOfChangesElsewhere(t *testing.T) {
	e := testenv.New(t)
	s := e.Server(testenv.Project, testenv.Facts("web01"))
	before := e.State(s).Revision
	done := make(chan int64, 1)
	go func() {
		var st api.State
		if err := s.Do(t.Context(), "GET", fmt.Sprint("/v1/agent/state?after=", before), nil, &st); err != nil {
			t.Error(err)
		}
		done <- st.Revision
	}()
	time.Sleep(100 * time.Millisecond) // it waits
	if err := e.DB.Change(t.Context(), func(tx *store.Tx) (audit.Event, error) {
		team, err := tx.Team("main")
		return audit.Event{ID: audit.NewID(), Time: e.Clock.Now(), Kind: audit.UserUpdate, Actor: audit.Actor{Kind: "platform"}, Outcome: audit.Success},
			errors.Join(err, tx.ReviseTeam(team.ID))
	}); err != nil {
		t.Fatal(err)
	}
	if after := <-done; after != before+1 {
		t.Errorf("the revision is %d, want %d", after, before+1)
	}
}

func agentEvent(seq int64) api.Event {
	return api.Event{ID: audit.NewID(), Seq: seq, Time: time.Date(2026, 3, 1, 8, 0, 0, int(seq)*1000, time.UTC), Kind: string(audit.SessionStart), Session: fmt.Sprint("s", seq), Outcome: audit.Success}
}

func TestEventsOfAnAgent(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		s := e.Server(testenv.Project, testenv.Facts("web01"))
		foreign(t, e)
		zoe, err := findUser(t, e, "other", "zoe")
		if err != nil {
			t.Fatal(err)
		}
		send := func(list ...api.Event) error {
			return s.Do(t.Context(), "POST", "/v1/agent/events", api.EventsRequest{Events: list}, nil)
		}
		one, two, three := agentEvent(1), agentEvent(2), agentEvent(3)
		client := e.Client("ann")
		e.Grant("prod", "dev", false, "ann")
		e.Report(s)
		r, _, err := e.Connect(client, "web01")
		if err != nil {
			t.Fatal(err)
		}
		one.Session = r.SessionID // a session of this server; two's is not
		one.User, two.User = e.User("bob").ID, zoe.ID
		one.Detail = map[string]string{"user": "zoe", "claimed_by": "client"} // not the agent's to say, as is one.User
		two.Detail = map[string]string{"why": "a\x00\u2028\"b", "bytes": "1"}
		events := since(e, func() { wantCode(t, "a batch", send(one, two), "") })
		if told(events) != "session.start success, session.start success" {
			t.Fatalf("a batch is told as %s", told(events))
		}
		want := audit.Event{ID: events[0].ID, Time: one.Time, Source: s.ID + "/" + one.ID, Kind: audit.SessionStart, Team: "main", Project: "prod", Actor: audit.Actor{Kind: "server", ID: s.ID, Name: "web01", Addr: "127.0.0.1"},
			Client: client.ID, Target: "web01", Session: r.SessionID, Outcome: audit.Success, Detail: map[string]string{"user": "ann"}}
		if d := cmp.Diff(want, events[0]); d != "" {
			t.Errorf("the first event (-want +got):\n%s", d)
		}
		if d := cmp.Diff(two.Detail, events[1].Detail); d != "" { // a user of another team is not named
			t.Errorf("the second event's detail (-want +got):\n%s", d)
		}
		events = since(e, func() { wantCode(t, "the batch again, and a third", send(one, two, three), "") })
		if told(events) != "session.start success" || events[0].Source != s.ID+"/"+three.ID {
			t.Errorf("it is told as %+v", events)
		}
		events = since(e, func() { wantCode(t, "all of it again", send(one, two, three), "") })
		if len(events) != 0 {
			t.Errorf("it is told as %+v", events)
		}

		// A gap in the numbers is told; an agent that has lost count loses nothing.
		events = since(e, func() { wantCode(t, "after a gap", send(agentEvent(7)), "") })
		i := slices.IndexFunc(events, func(e audit.Event) bool { return e.Kind == audit.EventsLost })
		if len(events) != 2 || i < 0 || events[i].Detail["from"] != "4" || events[i].Detail["to"] != "6" || events[i].Outcome != audit.Failed {
			t.Errorf("a gap is told as %+v", events)
		}
		events = since(e, func() { wantCode(t, "counting from 1 again", send(agentEvent(1)), "") })
		if told(events) != "session.start success" {
			t.Errorf("it is told as %q", told(events))
		}
		events = since(e, func() { wantCode(t, "then the next", send(agentEvent(8)), "") })
		if told(events) != "session.start success" {
			t.Errorf("it is told as %q", told(events))
		}

		// What no agent sends is refused, with all of its batch.
		for _, tt := range []struct {
			name   string
			change func(*api.Event)
		}{
			{"a kind that only the platform records", func(e *api.Event) { e.Kind = string(audit.UserCredsIssue) }},
			{"an unknown kind", func(e *api.Event) { e.Kind = "x" }},
			{"no kind", func(e *api.Event) { e.Kind = "" }},
			{"no id", func(e *api.Event) { e.ID = "" }},
			{"an id in another spelling", func(e *api.Event) { e.ID = strings.ToUpper(e.ID) + "" }},
			{"an id in braces", func(e *api.Event) { e.ID = "{" + e.ID + "}" }},
			{"an id of another version", func(e *api.Event) { e.ID = "ffffffff-ffff-4fff-bfff-ffffffffffff" }},
			{"no outcome", func(e *api.Event) { e.Outcome = "" }},
			{"an unknown outcome", func(e *api.Event) { e.Outcome = "maybe" }},
			{"no time", func(e *api.Event) { e.Time = time.Time{} }},
			{"a time before time", func(e *api.Event) { e.Time = time.Date(1969, 1, 1, 0, 0, 0, 0, time.UTC) }},
			{"no number", func(e *api.Event) { e.Seq = 0 }},
			{"a negative number", func(e *api.Event) { e.Seq = -1 }},
			{"33 details", func(e *api.Event) {
				e.Detail = map[string]string{}
				for i := range 33 {
					e.Detail[fmt.Sprint(i)] = "x"
				}
			}},
		} {
			bad := agentEvent(10)
			bad.ID = "0195c0de-0000-7000-8000-00000000000a" // has letters
			tt.change(&bad)
			events := since(e, func() { wantCode(t, tt.name, send(agentEvent(9), bad), sft.Invalid) })
			if len(events) != 0 {
				t.Errorf("%s: told as %+v", tt.name, events)
			}
		}
		wantCode(t, "no events", send(), sft.Invalid)
		wantCode(t, "501 events", send(make([]api.Event, 501)...), sft.Invalid)
		wantCode(t, "no JSON", s.Do(t.Context(), "POST", "/v1/agent/events", json.RawMessage(`[]`), nil), sft.Invalid)
	})
}

// The life of a session, as the audit tells it: whose it was, from which
// client and which address. Of a session on another server an agent can say
// nothing.
func TestASessionInTheAudit(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Grant(testenv.Project, "dev", false, "ann")
		web, db := e.Server(testenv.Project, testenv.Facts("web01")), e.Server(testenv.Project, testenv.Facts("db01"))
		client := e.Client("ann")
		r, _, err := e.Connect(client, "web01")
		if err != nil {
			t.Fatal(err)
		}
		user := e.User("ann").ID
		start, end := agentEvent(1), agentEvent(2)
		start.User, start.Session, start.Detail = user, r.SessionID, map[string]string{"remote": "10.0.0.9:50000"}
		end.User, end.Session, end.Kind, end.Detail = user, r.SessionID, string(audit.SessionEnd), map[string]string{"remote": "10.0.0.9:50000", "why": "client closed"}
		type row struct{ What, Target, User, Client, Session, Remote string }
		send := func(s *testenv.Server) (rows []row) {
			t.Helper()
			for _, ev := range since(e, func() {
				wantCode(t, "sending the events", s.Do(t.Context(), "POST", "/v1/agent/events", api.EventsRequest{Events: []api.Event{start, end}}, nil), "")
			}) {
				rows = append(rows, row{string(ev.Kind), ev.Target, ev.Detail["user"], ev.Client, ev.Session, ev.Detail["remote"]})
			}
			return rows
		}
		want := []row{{"session.start", "web01", "ann", client.ID, r.SessionID, "10.0.0.9:50000"}, {"session.end", "web01", "ann", client.ID, r.SessionID, "10.0.0.9:50000"}}
		if d := cmp.Diff(want, send(web)); d != "" {
			t.Errorf("the session's events (-want +got):\n%s", d)
		}
		want = []row{{"session.start", "db01", "ann", "", "", "10.0.0.9:50000"}, {"session.end", "db01", "ann", "", "", "10.0.0.9:50000"}}
		if d := cmp.Diff(want, send(db)); d != "" {
			t.Errorf("the events by another server's agent (-want +got):\n%s", d)
		}
	})
}
