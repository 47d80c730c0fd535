//go:build linux

// Package stage puts the product on the hosts of a lab: the real programs, a
// platform, servers with a real RDP server, people with a machine of their
// own. The end-to-end tests and the demonstration both play on it.
//
// Nothing here knows more than an administrator does: it works through the
// programs, the REST API with a service user's key, and the pages.
package stage

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"sft"
	"sft/e2e/lab"
	"sft/internal/api"
	"sft/internal/audit"
)

// Team is the name of the team on every stage.
const Team = "acme"

// Password is that of every person on the stage.
const Password = "correct horse battery staple"

// A Stage is a platform in a lab, and who uses it.
type Stage struct {
	Lab      *lab.Lab
	Platform *lab.Host
	URL      string
	Enroll   string // the line that init printed
	CA       []byte // DER
	Key      struct{ ID, Secret string }

	t       lab.T
	bin     string // folder of the programs
	client  string // folder of the desks' sft; empty: bin
	http    *http.Client
	bearer  string
	serve   *lab.Process
	envs    []string
	secrets []string
}

// New makes a platform on a host of its own. bin is the folder with the
// three programs.
func New(t lab.T, l *lab.Lab, bin string) *Stage {
	t.Helper()
	s := &Stage{Lab: l, t: t, bin: bin}
	s.Platform = l.Host("platform")
	s.Platform.Install("/usr/local/bin/sft-platform", filepath.Join(bin, "sft-platform"))
	s.URL = "https://platform:8443"
	s.Platform.AddUser("sft-platform", "")
	s.Platform.Must("", "install", "-d", "-o", "sft-platform", "-m", "700", "/var/lib/sft-platform")
	out := s.Platform.Must("sft-platform", "sft-platform", "init", "--json", "--url", s.URL, "--team", Team, "--owner", "olga", "--service-user", "automation")
	var init struct {
		FirstUse    string `json:"first_use_url"`
		Fingerprint string `json:"ca_fingerprint"`
		Enroll      string `json:"enroll"`
		KeyID       string `json:"key_id"`
		KeySecret   string `json:"key_secret"`
	}
	if err := json.Unmarshal([]byte(out), &init); err != nil {
		t.Fatalf("sft-platform init printed %q: %v", out, err)
	}
	s.Enroll, s.Key.ID, s.Key.Secret = init.Enroll, init.KeyID, init.KeySecret
	s.Secret(init.KeySecret)
	s.StartPlatform()
	s.trust(init.Fingerprint)
	s.FirstUse(init.FirstUse)
	return s
}

// Programs is the folder with the programs for a test: SFT_BIN, or where make
// builds them.
func Programs(t lab.T) string {
	t.Helper()
	dir := os.Getenv("SFT_BIN")
	if dir == "" {
		dir = filepath.Join(module(t), "build/bin")
	}
	for _, name := range []string{"sft", "sftd", "sft-platform"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Fatalf("%v; run \"make build\" first", err)
		}
	}
	return dir
}

// Pictures is where a test puts screenshots, for people to look at.
func Pictures(t lab.T) string {
	t.Helper()
	dir := filepath.Join(module(t), "build/e2e")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatalf("%v", err)
	}
	return dir
}

// module is the folder with go.mod, above the working directory.
func module(t lab.T) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	t.Fatalf("there is no go.mod above the working directory")
	return ""
}

// QuickClients has desks get the sft that make builds for people, not the one
// with the race detector, which takes several times as long to start: for
// tests that run it again and again.
func (s *Stage) QuickClients() {
	s.t.Helper()
	s.client = filepath.Join(module(s.t), "build/bin")
}

// Client is the sft that desks get.
func (s *Stage) Client() string { return filepath.Join(cmp.Or(s.client, s.bin), "sft") }

// trust takes the platform's CA by its fingerprint.
func (s *Stage) trust(fingerprint string) {
	s.t.Helper()
	ca, err := api.FetchCA(s.t.Context(), s.URL, fingerprint, nil, &api.Clock{})
	if err != nil {
		s.t.Fatalf("fetch the platform's CA: %v", err)
	}
	s.CA = ca
	cert, err := x509.ParseCertificate(ca)
	if err != nil {
		s.t.Fatalf("%v", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	s.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}, Timeout: 30 * time.Second}
}

// Secret adds a value that must be found nowhere.
func (s *Stage) Secret(v string) { s.secrets = append(s.secrets, v) }

// Secrets returns the values that must be found nowhere.
func (s *Stage) Secrets() []string { return append([]string{Password}, s.secrets...) }

// StartPlatform starts the platform and waits until it answers.
func (s *Stage) StartPlatform() {
	s.t.Helper()
	s.serve = s.Platform.Start("sft-platform", s.Platform.Command(context.Background(), "sft-platform", "sft-platform", "serve", "--listen", ":8443", "--log-level", "debug"))
	s.Platform.WaitListen("0.0.0.0:8443")
}

// PlatformProcess is the running platform.
func (s *Stage) PlatformProcess() *lab.Process { return s.serve }

// API calls the REST API as the service user; in and out may be nil. It
// returns the status.
func (s *Stage) API(method, path string, in, out any) int {
	s.t.Helper()
	for range 2 {
		if s.bearer == "" {
			var tok api.ServiceTokenReply
			if code := s.call("POST", "/v1/teams/"+Team+"/service_token", api.ServiceTokenRequest{KeyID: s.Key.ID, KeySecret: s.Key.Secret}, &tok); code != 200 {
				s.t.Fatalf("service_token answers %d", code)
			}
			s.bearer = tok.BearerToken
			s.Secret(tok.BearerToken)
		}
		code := s.call(method, "/v1/teams/"+Team+path, in, out)
		if code != 401 {
			return code
		}
		s.bearer = ""
	}
	return 401
}

// Do is API for calls that must work.
func (s *Stage) Do(method, path string, in, out any) {
	s.t.Helper()
	if code := s.API(method, path, in, out); code/100 != 2 {
		s.t.Fatalf("%s %s answers %d", method, path, code)
	}
}

func (s *Stage) call(method, path string, in, out any) int {
	s.t.Helper()
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			s.t.Fatalf("%v", err)
		}
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+path, &body)
	if err != nil {
		s.t.Fatalf("%v", err)
	}
	req.Header.Set("Content-Type", "application/json")
	if s.bearer != "" && !strings.HasSuffix(path, "/service_token") {
		req.Header.Set("Authorization", "Bearer "+s.bearer)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	if out != nil && resp.StatusCode/100 == 2 {
		if err := json.Unmarshal(b, out); err != nil {
			s.t.Fatalf("%s %s answers %s: %v", method, path, b, err)
		}
	} else if resp.StatusCode/100 != 2 {
		s.t.Logf("%s %s: %d %s", method, path, resp.StatusCode, b)
	}
	return resp.StatusCode
}

// FirstUse spends a one-time link as a person does: by its page.
func (s *Stage) FirstUse(link string) {
	s.t.Helper()
	u, err := url.Parse(link)
	if err != nil {
		s.t.Fatalf("%v", err)
	}
	s.Secret(u.Query().Get("secret"))
	jar, _ := cookiejar.New(nil)
	c := *s.http
	c.Jar = jar
	resp, err := c.PostForm(s.URL+"/first-use", url.Values{"secret": {u.Query().Get("secret")}, "password": {Password}, "again": {Password}})
	if err != nil {
		s.t.Fatalf("%v", err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || !strings.Contains(string(b), "signed in") {
		s.t.Fatalf("the one-time link answers %d: %s", resp.StatusCode, b)
	}
}

// Project makes a project, with a group of the same name that may use its
// servers.
func (s *Stage) Project(name string, admin bool) {
	s.t.Helper()
	s.Do("POST", "/projects", map[string]any{"name": name}, nil)
	s.Do("POST", "/groups", map[string]any{"name": name}, nil)
	s.Do("POST", "/projects/"+name+"/groups", map[string]any{"name": name, "server_access": true, "server_admin": admin}, nil)
}

// Person makes a user with the usual password, in some groups.
func (s *Stage) Person(name, fullName string, groups ...string) {
	s.t.Helper()
	var u struct {
		Link string `json:"first_use_url"`
	}
	s.Do("POST", "/users", map[string]any{"name": name, "full_name": fullName}, &u)
	s.FirstUse(u.Link)
	for _, g := range groups {
		s.Join(name, g)
	}
}

// Join puts a user into a group.
func (s *Stage) Join(user, group string) {
	s.t.Helper()
	s.Do("POST", "/groups/"+group+"/users", map[string]any{"name": user}, nil)
}

// Leave takes a user out of a group.
func (s *Stage) Leave(user, group string) {
	s.t.Helper()
	s.Do("DELETE", "/groups/"+group+"/users/"+user, nil, nil)
}

// Token makes an enrollment token of a project.
func (s *Stage) Token(project string) string {
	s.t.Helper()
	var tok struct{ Token string }
	s.Do("POST", "/projects/"+project+"/server_enrollment_tokens", map[string]any{"description": "stage"}, &tok)
	return tok.Token
}

// A Server is a host with sftd.
type Server struct {
	*lab.Host
	Agent *lab.Process
	stage *Stage
}

// Server makes a host with an RDP server whose desktop has a colour, and sftd
// with the given settings. With a project it is enrolled when Server returns.
func (s *Stage) Server(name, project, colour, yaml string) *Server {
	s.t.Helper()
	return s.ServerOn(s.Lab.Host(name), project, colour, yaml)
}

// ServerOn is Server for a host that is there, with what was put on it.
func (s *Stage) ServerOn(h *lab.Host, project, colour, yaml string) *Server {
	s.t.Helper()
	h.Install("/usr/local/sbin/sftd", filepath.Join(s.bin, "sftd"))
	h.Must("", "useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "sftd-broker")
	if colour != "" {
		h.StartXRDP(colour)
	}
	if yaml != "" {
		h.Write("/etc/sft/sftd.yaml", 0o644, []byte(yaml))
	}
	srv := &Server{Host: h, stage: s}
	if project != "" {
		tok := s.Token(project)
		h.Write("/var/lib/sftd/enrollment.token", 0o600, []byte(tok+"\n"))
		h.Must("", "chmod", "700", "/var/lib/sftd")
	}
	srv.Start()
	if project != "" {
		none := strings.Contains(yaml, "DisableBroker: true")
		srv.WaitStatus("sftd serves", func(st map[string]any) bool {
			b, _ := st["broker"].(map[string]any)
			return b["pid"] != nil || none && st["server_id"] != nil
		})
	}
	return srv
}

// SSHServer is Server with a real SSH server, which has the given settings. With
// a project people can sign in to it when SSHServer returns.
func (s *Stage) SSHServer(name, project, colour, yaml string, settings ...string) *Server {
	s.t.Helper()
	h := s.Lab.Host(name)
	h.StartSSHD(settings...)
	v := s.ServerOn(h, project, colour, yaml)
	if project != "" {
		s.Wait(name+" is known for its SSH server", 30*time.Second, func() bool { return s.ServerNamed(name).SSHPort != 0 })
	}
	return v
}

// ServerNamed is what the platform says of a server, by its host name.
func (s *Stage) ServerNamed(name string) sft.Server {
	s.t.Helper()
	var page struct{ List []sft.Server }
	s.Do("GET", "/servers", nil, &page)
	for _, v := range page.List {
		if v.Hostname == name {
			return v
		}
	}
	return sft.Server{}
}

// Start starts sftd.
func (v *Server) Start() {
	v.Agent = v.Host.Start("sftd", v.Command(context.Background(), "", "/usr/local/sbin/sftd", "--debug"))
}

// Status is what sftd status --json prints.
func (v *Server) Status() map[string]any {
	out, _ := v.Run("", "/usr/local/sbin/sftd", "status", "--json")
	var st map[string]any
	_ = json.Unmarshal([]byte(out), &st)
	return st
}

// WaitStatus waits until the status is as wanted.
func (v *Server) WaitStatus(what string, ok func(map[string]any) bool) {
	v.stage.t.Helper()
	v.stage.Wait(what, 30*time.Second, func() bool { return ok(v.Status()) })
}

// Wait polls until ok.
func (s *Stage) Wait(what string, atMost time.Duration, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(atMost); ; {
		if ok() {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("waited %s in vain: %s", atMost, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Events returns what the platform has recorded, oldest first.
func (s *Stage) Events() []audit.Event {
	s.t.Helper()
	var all []audit.Event
	for after := ""; ; {
		var page struct{ List []audit.Event }
		s.Do("GET", "/auditsV2?count=1000&offset="+after, nil, &page)
		all = append(all, page.List...)
		if len(page.List) < 1000 {
			return all
		}
		after = page.List[len(page.List)-1].ID
	}
}

// WaitEvent waits for an event.
func (s *Stage) WaitEvent(what string, ok func(audit.Event) bool) audit.Event {
	s.t.Helper()
	var found audit.Event
	s.Wait(what, 60*time.Second, func() bool {
		for _, e := range s.Events() {
			if ok(e) {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

// A Desk is a person's own machine.
type Desk struct {
	*lab.Host
	User  string // of the machine and of the platform
	Env   []string
	stage *Stage
}

// Desk makes a machine with a display, a browser and sft for a person.
func (s *Stage) Desk(name, user string) *Desk {
	s.t.Helper()
	h := s.Lab.Host(name)
	h.Install("/usr/local/bin/sft", s.Client())
	h.AddUser(user, "")
	h.StartDisplay(1280, 900)
	if s.CA != nil {
		h.Trust(user, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.CA}))
	}
	d := &Desk{Host: h, User: user, stage: s}
	d.Env = append(h.Display(), "SFT_KEYRING=compat")
	d.Env = append(d.Env, h.CatchURLs()...)
	return d
}

// Sft is a run of sft on the desk.
func (d *Desk) Sft(ctx context.Context, args ...string) (stdout, stderr string, status int) {
	var out, errs bytes.Buffer
	cmd := d.Command(ctx, d.User, "sft", args...)
	cmd.Env = append(cmd.Env, d.Env...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		return "", fmt.Sprint(err), -1
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// StartSft starts sft on the desk, for commands that go on.
func (d *Desk) StartSft(name string, args ...string) *lab.Process {
	cmd := d.Command(context.Background(), d.User, "sft", args...)
	cmd.Env = append(cmd.Env, d.Env...)
	return d.Host.Start(name, cmd)
}

// Enroll enrols the desk with the line that init printed, in its browser, and
// takes pictures of the pages if there is a folder for them.
func (d *Desk) Enroll(pictures string) {
	s := d.stage
	s.t.Helper()
	p := d.StartSft("sft-enroll", strings.Fields(s.Enroll)[1:]...)
	b := d.StartBrowser(d.User)
	defer b.Close()
	page := b.NewPage(d.NextURL())
	shot := func(name string) {
		if pictures != "" {
			page.Screenshot(filepath.Join(pictures, name))
		}
	}
	page.Type("#user", d.User)
	page.Type("#password", Password)
	shot("1-sign-in.png")
	page.Click("#signin")
	page.WaitFor(`document.querySelector("#approve") !== null`)
	shot("2-approve.png")
	page.Click("#approve")
	page.WaitFor(`location.hostname === "127.0.0.1"`)
	shot("3-done.png")
	if status := p.Wait(); status != 0 {
		s.t.Fatalf("sft enroll ends with %d: %s", status, p.Output())
	}
}

// hiddenRE is a hidden field of a form of the platform's pages.
var hiddenRE = regexp.MustCompile(`<input type="hidden" name="(\w+)" value="([^"]*)">`)

// EnrollQuickly is Enroll without a browser, which takes most of its time: the
// pages' forms are sent as a browser sends them.
func (d *Desk) EnrollQuickly() {
	s := d.stage
	s.t.Helper()
	p := d.StartSft("sft-enroll", strings.Fields(s.Enroll)[1:]...)
	link, err := url.Parse(d.NextURL())
	if err != nil {
		s.t.Fatalf("%v", err)
	}
	jar, _ := cookiejar.New(nil)
	c := *s.http
	c.Jar = jar
	back := ""
	c.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if r.URL.Hostname() == "127.0.0.1" { // of the desk
			back = r.URL.String()
			return http.ErrUseLastResponse
		}
		return nil
	}
	post := func(path string, form url.Values) string {
		resp, err := c.PostForm(s.URL+path, form)
		if err != nil {
			s.t.Fatalf("%v", err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return string(b)
	}
	page := post("/signin", url.Values{"team": {Team}, "user": {d.User}, "password": {Password}, "next": {link.RequestURI()}})
	form := url.Values{"answer": {"approve"}}
	for _, m := range hiddenRE.FindAllStringSubmatch(page, -1) {
		form.Set(m[1], html.UnescapeString(m[2]))
	}
	if page = post("/authorize", form); back == "" {
		s.t.Fatalf("the approval leads nowhere: %s", page)
	}
	d.Must(d.User, "curl", "-fsS", "-o", "/dev/null", back)
	if status := p.Wait(); status != 0 {
		s.t.Fatalf("sft enroll ends with %d: %s", status, p.Output())
	}
}

// Empty is a stage without a platform: Adopt gives it one.
func Empty(t lab.T, l *lab.Lab, bin string) *Stage { return &Stage{Lab: l, t: t, bin: bin} }

// Adopt makes a platform that somebody else has started the stage's own.
func (s *Stage) Adopt(url, fingerprint string) {
	s.t.Helper()
	s.URL = url
	s.trust(fingerprint)
}

// TrustPlatform lets the desk's browsers trust the platform's CA.
func (d *Desk) TrustPlatform(s *Stage) {
	d.Trust(d.User, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.CA}))
}
