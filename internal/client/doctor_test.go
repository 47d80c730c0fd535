package client

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"sft"
	"sft/internal/api"
	"sft/internal/doctor"
	"sft/internal/frame"
	"sft/internal/rdpsign"
	"sft/internal/testenv"
)

// A clinic is a platform, a device that is enrolled with it, and a server
// whose broker is a stand-in with the certificate that the platform issued.
type clinic struct {
	t      *testing.T
	env    *testenv.Env
	d      *Device
	a      Account
	server *testenv.Server
	broker net.Listener
	reply  func(frame.PingReply) frame.Reply // what the broker says
	target string
	ctx    context.Context
}

const patient = "ann"

func newClinic(t *testing.T) *clinic {
	t.Helper()
	c := &clinic{t: t, env: testenv.New(t), target: "web01", ctx: t.Context(), reply: func(p frame.PingReply) frame.Reply { return frame.Reply{Ping: &p} }}
	c.env.Grant("prod", "staff", false, patient)
	key, spki := testenv.Key(t)
	ok := c.env.Approve(c.env.Cookie(patient), spki, "")
	var r api.EnrollClientReply
	if err := c.env.Anonymous().Do(t.Context(), "POST", "/v1/clients/enroll", api.EnrollClientRequest{Code: ok.Code, CodeVerifier: ok.Verifier,
		RedirectURI: ok.RedirectURI, DeviceKey: spki, Device: api.DeviceInfo{Hostname: "laptop", OS: "linux", Version: "test"}}, &r); err != nil {
		t.Fatal(err)
	}
	c.d, _ = newDevice(t)
	c.d.Machine = c.env.Clock.Now
	c.a = Account{Team: r.Team, User: r.User, ClientID: r.ClientID, URL: c.env.URL, Audience: r.URL, CA: c.env.CA, Default: true, SignedInUntil: r.SignedInUntil}
	if _, err := c.d.Store.keys.save(c.a, key); err != nil {
		t.Fatal(err)
	}
	c.keep()

	var err error
	if c.broker, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.broker.Close() })
	f := testenv.Facts("web01")
	f.AccessAddress, f.BrokerPort = "127.0.0.1", c.broker.Addr().(*net.TCPAddr).Port
	c.server = c.env.Server("prod", f)
	c.serve()
	return c
}

// keep writes the account as it is now.
func (c *clinic) keep() {
	c.t.Helper()
	if err := c.d.Store.put(c.a); err != nil {
		c.t.Fatal(err)
	}
}

// signed calls the platform as the device.
func (c *clinic) signed() *api.Client {
	c.t.Helper()
	key, err := c.d.Store.keys.load(c.a)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.env.Signed(key, "client:"+c.a.ClientID)
}

// serve is the broker, with the certificate of now.
func (c *clinic) serve() {
	conf := &tls.Config{Certificates: []tls.Certificate{{Certificate: c.server.Certificate, PrivateKey: c.server.HostKey}},
		NextProtos: []string{frame.ALPN}, ClientAuth: tls.RequireAnyClientCert, Time: c.env.Clock.Now}
	l, id := c.broker, c.server.ID
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer raw.Close()
				raw.SetDeadline(time.Now().Add(10 * time.Second))
				conn := tls.Server(raw, conf)
				b, err := frame.Read(conn)
				if err != nil {
					return
				}
				pub := conn.ConnectionState().PeerCertificates[0].PublicKey.(*ecdsa.PublicKey)
				if h, _, err := frame.Verify(b, id, pub, c.env.Clock.Now()); err != nil || h.Service != frame.Ping {
					c.t.Errorf("the frame %+v, %v", h, err)
				}
				frame.WriteJSON(conn, c.reply(frame.PingReply{Server: id, Login: patient}))
				io.Copy(io.Discard, conn)
			}()
		}
	}()
}

// away is a port of loopback that nobody listens on.
func away(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// newProxy is an HTTP proxy that lets CONNECT through, or refuses
// with status.
func newProxy(t *testing.T, status int) *url.URL {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status != 0 || r.Method != "CONNECT" {
			w.WriteHeader(max(status, 400))
			return
		}
		to, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(502)
			return
		}
		defer to.Close()
		conn, from, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		go io.Copy(to, from) // which may have read on
		io.Copy(conn, to)
	}))
	t.Cleanup(srv.Close)
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestDiagnose breaks one thing at a time. What is not named is ok, and the
// skipped steps are all that need what is broken and no others.
func TestDiagnose(t *testing.T) {
	afterTLS := "platform clock sign-in resolve server server-problems certificate route broker-tcp broker-proof broker-ping"
	afterSignIn := "resolve server server-problems certificate route broker-tcp broker-proof broker-ping"
	tests := []struct {
		name    string
		harm    func(*clinic)
		verdict doctor.Verdict
		step    string
		found   string // a part of it
		fix     string // a part of it
		code    sft.Code
		skipped string
	}{
		{"nothing", func(*clinic) {}, "", "", "", "", "", ""},
		{"no server is named", func(c *clinic) { c.target = "" }, "", "", "", "", "", ""},
		{"not enrolled", func(c *clinic) { c.must(c.d.Store.remove(c.a)) }, doctor.Fail, "enrolment", "this device is not enrolled", `run "sft enroll --url URL"`, sft.SignIn,
			"device-key proxy platform-name platform-tcp platform-tls platform clock sign-in " + afterSignIn},
		{"the device key is gone", func(c *clinic) { c.must(os.Remove(c.d.Store.keys.path(c.a))) }, doctor.Fail, "device-key", "key for team main is gone", "sft enroll --force", sft.SignIn, "sign-in " + afterSignIn},
		{"a proxy that is away", func(c *clinic) {
			c.d.Proxy = &url.URL{Scheme: "http", User: url.UserPassword("u", "hunter2"), Host: away(c.t)}
		}, doctor.Fail, "proxy", "(by network.forward_proxy) cannot be reached", "sft config network.forward_proxy", sft.Unavailable,
			"platform-name platform-tcp platform-tls " + afterTLS},
		{"a proxy without an address", func(c *clinic) { c.d.Proxy = &url.URL{Scheme: "http", Host: "proxy.invalid:3128"} }, doctor.Fail, "proxy", "proxy.invalid", "sft config network.forward_proxy", sft.Unavailable,
			"platform-name platform-tcp platform-tls " + afterTLS},
		{"a proxy that refuses", func(c *clinic) { c.d.Proxy = newProxy(c.t, 403) }, doctor.Fail, "platform-tcp", "says 403 Forbidden", "have the proxy let CONNECT", sft.Unavailable, "platform-name platform-tls " + afterTLS},
		{"a proxy that works", func(c *clinic) { c.d.Proxy = newProxy(c.t, 0) }, "", "", "", "", "", "platform-name"},
		{"a name without an address", func(c *clinic) { c.a.URL = "https://platform.invalid:1"; c.keep() }, doctor.Fail, "platform-name", `"platform.invalid" has no address`, "name servers", sft.Unavailable, "platform-tcp platform-tls " + afterTLS},
		{"a port that is closed", func(c *clinic) { c.a.URL = "https://" + away(c.t); c.keep() }, doctor.Fail, "platform-tcp", "refused", "check that the platform runs", sft.Unavailable, "platform-tls " + afterTLS},
		{"another CA", func(c *clinic) { c.a.CA = testenv.New(c.t).CA; c.keep() }, doctor.Fail, "platform-tls", "by another CA than the one that this device was enrolled with", "sft enroll --force", sft.Invalid, afterTLS},
		{"a CA that is not known", func(c *clinic) { c.a.CA = nil; c.keep() }, doctor.Fail, "platform-tls", "by a CA that this machine does not know", "if a proxy opens TLS here", sft.Invalid, afterTLS},
		{"no TLS", func(c *clinic) {
			srv := httptest.NewServer(http.NotFoundHandler())
			c.t.Cleanup(srv.Close)
			c.a.URL = strings.Replace(srv.URL, "http:", "https:", 1)
			c.keep()
		}, doctor.Fail, "platform-tls", "TLS could not be begun", "breaks TLS", sft.Unavailable, afterTLS},
		{"another web server", func(c *clinic) {
			srv := httptest.NewTLSServer(http.NotFoundHandler())
			c.t.Cleanup(srv.Close)
			c.a.URL, c.a.CA = srv.URL, srv.Certificate().Raw
			c.keep()
		}, doctor.Fail, "platform", "something that is not the platform answered with status 404", "check the platform's URL", sft.Internal, strings.TrimPrefix(afterTLS, "platform ")},
		{"a clock 10 minutes slow", func(c *clinic) { c.d.Machine = func() time.Time { return c.env.Clock.Now().Add(-10 * time.Minute) } }, doctor.Warn, "clock", "10m0s slow", "set this machine's clock", "", ""},
		{"a clock 10 minutes fast", func(c *clinic) { c.d.Machine = func() time.Time { return c.env.Clock.Now().Add(10 * time.Minute) } }, doctor.Warn, "clock", "10m0s fast", "set this machine's clock", "", ""},
		{"a clock 20 minutes slow", func(c *clinic) { c.d.Machine = func() time.Time { return c.env.Clock.Now().Add(-20 * time.Minute) } }, doctor.Fail, "clock", "20m0s slow", "set this machine's clock", sft.ClockSkew, "sign-in " + afterSignIn},
		{"a clock that is a year off", func(c *clinic) {
			c.d.Machine = func() time.Time { return c.env.Clock.Now().Add(365 * 24 * time.Hour) }
		}, doctor.Fail, "platform-tls", "which is what this machine's clock says", "set this machine's clock", sft.Invalid, afterTLS},
		{"signed out", func(c *clinic) { c.must(c.signed().Do(c.t.Context(), "POST", "/v1/clients/logout", nil, nil)) }, doctor.Fail, "sign-in", "not signed in to team main", `run "sft login --team main"`, sft.SignIn, afterSignIn},
		{"the device was removed", func(c *clinic) {
			c.must(c.signed().Do(c.t.Context(), "DELETE", "/v1/teams/main/clients/"+c.a.ClientID, nil, nil))
		}, doctor.Fail, "sign-in", "removed from team main", "sft enroll --force", sft.Revoked, afterSignIn},
		{"an administrator holds the device back", func(c *clinic) {
			c.env.Do("PUT", "/clients/"+c.a.ClientID, map[string]string{"state": "PENDING"}, nil)
		}, doctor.Fail, "sign-in", "is pending: an administrator of the team has to approve it", "give an administrator this id", sft.Denied, afterSignIn},
		{"an unknown server", func(c *clinic) { c.target = "web02" }, doctor.Fail, "resolve", `there is no server "web02"`, "sft list-servers", sft.NotFound, strings.TrimPrefix(afterSignIn, "resolve ")},
		{"a server that is silent", func(c *clinic) { c.env.Clock.Advance(sft.ActiveFor); c.signInAgain() }, doctor.Fail, "resolve", "has not been in touch since", "start sftd on it", sft.NotFound, strings.TrimPrefix(afterSignIn, "resolve ")},
		{"a server that was not in touch for a while", func(c *clinic) { c.env.Clock.Advance(6 * time.Minute) }, doctor.Warn, "server", "last in touch at 2026-03-01T09:00:00Z", "its agent does not reach the platform", "", ""},
		{"Remote Desktop is off there", func(c *clinic) { c.report("rdp: Remote Desktop is turned off; turn it on") }, doctor.Fail, "server-problems", "rdp: Remote Desktop is turned off; turn it on", "sftd status", sft.RDPUnavailable, ""},
		{"the RDP service does not run there, and SSH does", func(c *clinic) {
			c.server.Facts.SSH, c.server.Facts.Services = testenv.SSHFacts(c.t, "web01").SSH, []string{"rdp", "ssh"}
			c.report("rdp: nothing listens on 127.0.0.1:3389; start it")
		}, doctor.Fail, "server-problems", "rdp: nothing listens", `there; "sft ssh" does not need it`, sft.RDPUnavailable, ""},
		{"the host has a warning", func(c *clinic) { c.report("rdp, a warning: both sessions are taken") }, doctor.Warn, "server-problems", "both sessions are taken", "sftd status", "", ""},
		{"the server has no broker, by its own setting", func(c *clinic) { c.withoutBroker() }, doctor.OK, "certificate", `the platform lets you in by "sft ssh" alone`, "", "", "route broker-tcp broker-proof broker-ping"},
		{"nor has its project accounts", func(c *clinic) {
			c.withoutBroker()
			c.env.Do("PUT", "/projects/prod", map[string]any{"create_server_users": false}, nil)
		}, doctor.Fail, "certificate", `server "web01" lets nobody in: project "prod" does not let sftd manage accounts`, "set create_server_users", sft.Denied, "route broker-tcp broker-proof broker-ping"},
		{"it wants a preauthorization", func(c *clinic) {
			c.withoutBroker()
			c.env.Do("PUT", "/projects/prod", map[string]any{"require_preauth_for_creds": true}, nil)
		}, doctor.Fail, "certificate", "the platform does not let you in: preauthorization: the project requires one", "ask an administrator", sft.Denied, "route broker-tcp broker-proof broker-ping"},
		{"the project has no accounts", func(c *clinic) {
			c.env.Do("PUT", "/projects/prod", map[string]any{"create_server_users": false}, nil)
		}, doctor.Fail, "certificate", `server "web01" lets nobody in: project "prod" does not let sftd manage accounts`, "set create_server_users", sft.Denied, "route broker-tcp broker-proof broker-ping"},
		{"the broker is down", func(c *clinic) { c.broker.Close() }, doctor.Fail, "broker-tcp", "no answer from the broker of web01", "check that sftd runs there", sft.Unavailable, "broker-proof broker-ping"},
		{"the broker has another key", func(c *clinic) {
			for range 2 { // while a key is renewed, both are good
				c.server.HostKey, _ = testenv.Key(c.t)
				c.env.Report(c.server)
			}
		}, doctor.Fail, "broker-proof", "its key is not the one that the platform knows", "somebody may be between you and the server", sft.Invalid, "broker-ping"},
		{"the host knows the person by another name", func(c *clinic) {
			c.reply = func(p frame.PingReply) frame.Reply { p.Login = "bob"; return frame.Reply{Ping: &p} }
		}, doctor.Fail, "broker-ping", `the host says that this is login "bob"`, "sftd status", sft.Internal, ""},
		{"the host refuses", func(c *clinic) {
			c.reply = func(frame.PingReply) frame.Reply {
				return frame.Reply{Error: &sft.Error{Code: sft.Denied, Msg: "ann may not sign in", Hint: "ask an administrator"}}
			}
		}, doctor.Fail, "broker-ping", "ann may not sign in", "ask an administrator", sft.Denied, ""},
		{"the host answers something else", func(c *clinic) {
			c.reply = func(frame.PingReply) frame.Reply { return frame.Reply{RDP: &frame.RDPReply{Login: "ann"}} }
		}, doctor.Fail, "broker-ping", "none to a ping", "same version", sft.Internal, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newClinic(t)
			tt.harm(c)
			var steps []string
			skipped := map[string]bool{}
			for s := range strings.FieldsSeq(tt.skipped) {
				skipped[s] = true
			}
			met := tt.step == ""
			c.d.Diagnose(c.ctx, "", c.target, func(k doctor.Check) {
				steps = append(steps, k.Step)
				want := doctor.OK
				switch {
				case skipped[k.Step]:
					want = doctor.Skip
				case k.Step == tt.step:
					want, met = tt.verdict, true
					if !strings.Contains(k.Found, tt.found) || !strings.Contains(k.Fix, tt.fix) || k.Code != tt.code {
						t.Errorf("%s says %q, fix %q, code %q; want %q, %q, %q", k.Step, k.Found, k.Fix, k.Code, tt.found, tt.fix, tt.code)
					}
				}
				if k.Verdict != want || k.Found == "" || strings.Contains(k.Found+k.Fix, "hunter2") {
					t.Errorf("%+v, want %s", k, want)
				}
				if k.Verdict == doctor.Fail && (k.Fix == "" || k.Code == "") {
					t.Errorf("%+v has no fix or no code", k)
				}
			})
			want := platformSteps
			if c.target != "" {
				want = append(append([]string{}, want...), serverSteps...)
			}
			if got := strings.Join(steps, " "); !met || got != strings.Join(want, " ") {
				t.Errorf("the steps are %s\nwant %s", got, strings.Join(want, " "))
			}
		})
	}
}

func (c *clinic) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// report has the agent say what is wrong.
func (c *clinic) report(problems ...string) {
	c.server.Facts.Problems = problems
	c.env.Report(c.server)
}

// withoutBroker is the server as with DisableBroker in its sftd.yaml.
func (c *clinic) withoutBroker() {
	c.broker.Close()
	c.server.Facts.SSH, c.server.Facts.Services = testenv.SSHFacts(c.t, "web01").SSH, []string{"ssh"}
	c.env.Report(c.server)
}

// signInAgain has the person sign in, after the clock was put forward.
func (c *clinic) signInAgain() {
	c.t.Helper()
	key, err := c.d.Store.keys.load(c.a)
	c.must(err)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	c.must(err)
	ok := c.env.Approve(c.env.Cookie(patient), spki, c.a.ClientID)
	var r api.EnrollClientReply
	c.must(c.signed().Do(c.t.Context(), "POST", "/v1/clients/login", api.EnrollClientRequest{Code: ok.Code, CodeVerifier: ok.Verifier, RedirectURI: ok.RedirectURI}, &r))
}

// The ping is in the audit log as what it is, and opened for the one service.
func TestDiagnoseIsAudited(t *testing.T) {
	c := newClinic(t)
	c.d.Diagnose(t.Context(), "", "web01", func(doctor.Check) {})
	var got []string
	for _, e := range c.env.Events() {
		if e.Kind == "user_creds.issue" {
			got = append(got, fmt.Sprint(e.Actor.Name, " ", e.Target, " ", e.Detail["service"]))
		}
	}
	if strings.Join(got, ", ") != "ann web01 ping" {
		t.Errorf("issued: %q", got)
	}
}

// Whoever gives up is not kept waiting by a platform that does not answer.
func TestDiagnoseEndsWithItsContext(t *testing.T) {
	c := newClinic(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	c.must(err)
	defer l.Close() // it never accepts
	c.a.URL = "https://" + l.Addr().String()
	c.keep()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var failed []string
	c.d.Diagnose(ctx, "", "", func(k doctor.Check) {
		if k.Verdict == doctor.Fail {
			failed = append(failed, k.Step)
		}
	})
	if strings.Join(failed, " ") != "platform-tls" {
		t.Errorf("failed: %q", failed)
	}
}

// A connection file is signed by the platform for who is signed in, whoever
// has a certificate for it.
func TestSignRDPFileByThePlatform(t *testing.T) {
	c := newClinic(t)
	s, err := c.d.Session(c.a)
	c.must(err)
	lines, _ := rdpsign.Lines("127.3.4.5:40123", func(string) (string, bool) { return "", false })
	if _, err := s.SignRDPFile(t.Context(), lines); sft.CodeOf(err) != sft.NotFound {
		t.Errorf("before an administrator said so: %v", err)
	}
	var cert api.RDPSigningCertificate
	c.env.Do("POST", "/rdp_signing_certificate", nil, &cert)
	der, err := s.SignRDPFile(t.Context(), lines)
	c.must(err)
	p, err := pkcs7.Parse(der)
	c.must(err)
	p.Content, err = rdpsign.Message(lines)
	c.must(err)
	if err := p.Verify(); err != nil || !bytes.Equal(p.GetOnlySigner().Raw, cert.Certificate) {
		t.Errorf("the signature: %v", err)
	}
}
