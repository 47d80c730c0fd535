package main

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"sft"
	"sft/internal/api"
	"sft/internal/frame"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"sft":    func() { os.Exit(run()) },
		"browse": func() { os.Exit(browse(os.Args[1])) },
	})
}

// TestScript runs the pages of testdata/script. The platform there is a
// stand-in that knows a few servers by name and answers as the name says; the
// real one is in the end-to-end tests.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"plain": plain, "shows": shows, "codes": everyCode},
		Setup: func(e *testscript.Env) error {
			p := &standIn{approved: map[string]string{}}
			if strings.Contains(filepath.Base(e.WorkDir), "ssh-") {
				d, err := newSSHD(e.WorkDir)
				if err != nil {
					return err
				}
				e.Defer(d.stop)
				e.Setenv("LOGIN", d.login)
				e.Setenv("SSHPORT", strconv.Itoa(d.port))
				p.sshd = d
			}
			srv := httptest.NewUnstartedServer(p)
			srv.Config.ErrorLog = log.New(io.Discard, "", 0)
			p.url = "https://" + srv.Listener.Addr().String()
			srv.StartTLS()
			e.Defer(srv.Close)
			e.Setenv("URL", srv.URL)
			e.Setenv("CA", fmt.Sprintf("sha256:%x", sha256.Sum256(srv.Certificate().Raw)))
			e.Setenv("HOME", e.WorkDir+"/home")
			e.Setenv("BROWSER", "browse")
			e.Setenv("GORACE", os.Getenv("GORACE"))
			for _, k := range []string{"SSH_AUTH_SOCK", "DISPLAY", "WAYLAND_DISPLAY", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "SFT_NO_BROWSER", "SFT_TEAM"} {
				e.Setenv(k, "")
			}
			return os.Mkdir(e.WorkDir+"/home", 0o700)
		},
	})
}

// browse is a browser whose person approves.
func browse(page string) int {
	u, err := url.Parse(page)
	if err != nil {
		return 1
	}
	q := u.Query()
	u.Path, u.RawQuery = "/approve", url.Values{"challenge": {q.Get("code_challenge")}}.Encode()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: insecure()}}
	if _, err := c.Get(u.String()); err != nil {
		return 1
	}
	_, err = http.Get(q.Get("redirect_uri") + "?" + url.Values{"code": {"code1"}, "state": {q.Get("state")}}.Encode())
	if err != nil {
		return 1
	}
	return 0
}

type standIn struct {
	mu       sync.Mutex
	url      string
	approved map[string]string
	over     bool // the sign-in
	sshd     *sshd
}

func (p *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	fail := func(e sft.Error) {
		w.WriteHeader(e.Code.Info().Status)
		json.NewEncoder(w).Encode(api.ErrorReply{Error: e, Time: time.Now()})
	}
	answer := func(v any) { json.NewEncoder(w).Encode(v) }
	web01 := sft.Server{ID: "s1", Project: "prod", Hostname: "web01", OS: "Debian 12", OSType: "linux", AccessAddress: "10.0.0.1", BrokerPort: 4421, State: sft.StateActive}
	w.Header().Set(api.TimeHeader, time.Now().UTC().Format(time.RFC3339Nano))
	switch path := r.URL.Path; {
	case path == "/v1/info":
		answer(map[string]string{"version": "1.2.3", "url": p.url})
	case path == "/approve":
		p.approved["code1"] = r.URL.Query().Get("challenge")
	case path == "/v1/clients/enroll", path == "/v1/clients/login":
		var e api.EnrollClientRequest
		json.Unmarshal(body, &e)
		sum := sha256.Sum256([]byte(e.CodeVerifier))
		if c := p.approved[e.Code]; c == "" || c != base64.RawURLEncoding.EncodeToString(sum[:]) {
			fail(sft.Error{Code: sft.Denied, Msg: "the code is not good"})
			return
		}
		p.over = false
		answer(api.EnrollClientReply{ClientID: "c1", Team: "main", User: "alice", URL: p.url, SignedInUntil: time.Now().Add(10 * time.Hour)})
	case r.Header.Get("Authorization") == "":
		fail(sft.Error{Code: sft.SignIn, Msg: "not signed"})
	case path == "/v1/clients/logout":
		p.over = true
		w.WriteHeader(http.StatusNoContent)
	case r.Method == "DELETE":
		w.WriteHeader(http.StatusNoContent)
	case p.over:
		fail(sft.Error{Code: sft.SignIn, Msg: "over"})
	case strings.HasSuffix(path, "/servers"):
		staging := web01
		staging.ID, staging.Project, staging.AccessAddress, staging.Hostname = "s2", "staging", "", "build"
		switch r.URL.Query().Get("selector") {
		case "":
			answer(api.List[sft.Server]{List: []sft.Server{web01, staging}})
		case "env=prod,!old":
			answer(api.List[sft.Server]{List: []sft.Server{web01}})
		default:
			fail(sft.Error{Code: sft.Invalid, Msg: "it is no selector", Hint: "use one"})
		}
	case strings.HasSuffix(path, "/projects"):
		answer(api.List[sft.Project]{List: []sft.Project{{ID: "p1", Name: "prod"}}})
	case strings.HasSuffix(path, "/users/alice"):
		answer(sft.User{Name: "alice", Login: p.login()})
	case strings.HasSuffix(path, "/resolve") || strings.HasSuffix(path, "/connect"):
		target := r.URL.Query().Get("target")
		if target == "" {
			var c api.ConnectRequest
			json.Unmarshal(body, &c)
			target = c.Target
			if p.sshd != nil && c.Service == frame.SSH {
				r, err := p.sshd.route(c)
				if err != nil {
					fail(*err)
					return
				}
				answer(r)
				return
			}
		}
		if p.sshd != nil && p.sshd.names[sft.Fold(target)] {
			target = "web01"
		}
		if e, ok := refusal(target, "platform-"); ok {
			fail(e)
			return
		}
		if e, ok := refusal(target, "broker-"); ok {
			var c api.ConnectRequest
			json.Unmarshal(body, &c)
			r, err := refusing(c, e)
			if err != nil {
				fail(sft.Error{Code: sft.Internal, Msg: err.Error()})
				return
			}
			answer(r)
			return
		}
		switch target {
		case "web01":
			answer(api.ResolveReply{Server: web01, Login: "alice", Route: p.hops()}) // no answer to connect
		case "web":
			fail(sft.Error{Code: sft.Ambiguous, Msg: `"web" is the name of 2 servers: prod/web (s3), staging/web (s4)`, Hint: `name the project too, as in "sft rdp prod/web"`})
		case "denied":
			fail(sft.Error{Code: sft.Denied, Msg: "alice may not sign in to denied", Hint: "ask an administrator of project prod"})
		case "hostile":
			fail(sft.Error{Code: sft.Denied, Msg: "no\x1b[2J\nsft: all is well"})
		default:
			fail(sft.Error{Code: sft.NotFound, Msg: "there is no server " + sft.Quote(target), Hint: `see "sft list-servers" for those that you can reach`})
		}
	default:
		fail(sft.Error{Code: sft.NotFound, Msg: "there is no such route"})
	}
}

// insecure is for the browser of the tests, which trusts everybody.
func insecure() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }
