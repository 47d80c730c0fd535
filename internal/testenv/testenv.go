// Package testenv is a whole platform inside a test: its real HTTPS listener
// on loopback, a real database, and a clock that stands still until the test
// moves it. People, clients and servers are made through the same doors that
// the product uses; only the password is left out, because it is slow on
// purpose.
package testenv

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testdb"
	"sft/internal/webapi"
)

// The names in a new Env.
const (
	Team        = "main"
	Owner       = "olive"
	ServiceUser = "robot"
	Project     = "prod" // the owners have server_access and server_admin in it
)

// An Env is a platform with one team, its owner, a service user that is an
// administrator, and a project.
type Env struct {
	Platform  *platform.Platform
	DB        *store.DB
	DBURL     string
	URL       string
	CA        []byte // of the platform, DER
	MasterKey string // file
	Clock     *Clock
	Init      platform.InitReply // the secrets of the beginning
	Log       *Log               // what the platform logged, at debug level
	Service   *Bearer            // calls the API as the service user

	t    testing.TB
	http *http.Client
}

// A Clock stands still until it is told otherwise.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// Now returns the clock's time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Set sets the clock.
func (c *Clock) Set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t
}

// Advance puts the clock forward.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// A Log keeps what is written to it.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write keeps b.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// String returns all that was written.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// migrated are databases with the newest schema.
var migrated = testdb.NewTemplate(func(t testing.TB, url string) {
	db, err := store.Open(t.Context(), url)
	if err == nil {
		err = db.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
})

// New starts a platform on SQLite. It ends with the test.
func New(t testing.TB) *Env { return NewOn(t, migrated.SQLite(t)) }

// Each runs f on a platform on SQLite and on one on PostgreSQL.
func Each(t *testing.T, f func(t *testing.T, e *Env)) {
	migrated.Each(t, func(t *testing.T, url string) { f(t, NewOn(t, url)) })
}

// NewOn starts a platform on a database without records.
func NewOn(t testing.TB, dbURL string) *Env {
	t.Helper()
	e := &Env{t: t, DBURL: dbURL, Log: &Log{}, Clock: &Clock{now: time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)}}
	ctx := t.Context()
	var sealer ca.Sealer
	e.MasterKey, sealer = masterKey(t)
	var err error
	e.DB, err = store.Open(ctx, dbURL)
	e.must(err)
	t.Cleanup(func() { e.DB.Close() })

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	e.must(err)
	e.URL = "https://" + ln.Addr().String()
	e.Init, err = platform.Init(ctx, e.DB, sealer, platform.InitRequest{URL: e.URL, Team: Team, Owner: Owner,
		ServiceUser: ServiceUser, Project: Project, OwnCA: true}, e.Clock.Now)
	e.must(err)
	log := slog.New(slog.NewJSONHandler(e.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	e.Platform, err = platform.New(ctx, e.DB, sealer, log, e.Clock.Now)
	e.must(err)
	cert, err := e.Platform.Certificate(ctx)
	e.must(err)
	base, hangUp := context.WithCancel(context.Background())
	srv := &http.Server{
		Handler:     webapi.New(e.Platform, log),
		TLSConfig:   &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: cert},
		BaseContext: func(net.Listener) context.Context { return base },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	go srv.ServeTLS(ln, "", "")
	t.Cleanup(func() { hangUp(); srv.Close() })

	e.CA, err = api.FetchCA(ctx, e.URL, e.Init.CAFingerprint, nil, e.clock())
	e.must(err)
	e.http, err = api.NewHTTP(e.CA, nil, e.clock())
	e.must(err)
	t.Cleanup(e.http.CloseIdleConnections)
	e.Service = e.Bearer(e.Init.Key.ID, e.Init.Key.Secret)
	return e
}

func (e *Env) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

// clock is that of a machine which agrees with the platform.
func (e *Env) clock() *api.Clock { return &api.Clock{Machine: e.Clock.Now} }

// HTTP returns an HTTP client that trusts the platform and goes by the Env's
// clock. It follows no redirects.
func (e *Env) HTTP() *http.Client { return e.http }

// Anonymous returns an API client that signs nothing.
func (e *Env) Anonymous() *api.Client {
	return &api.Client{URL: e.URL, UserAgent: "testenv", Clock: e.clock(), HTTP: e.http}
}

// A Bearer calls the API as a service user.
type Bearer struct {
	*api.Client
	Token string
}

// Bearer exchanges a service user's key for a token.
func (e *Env) Bearer(keyID, keySecret string) *Bearer {
	e.t.Helper()
	var r api.ServiceTokenReply
	e.must(e.Anonymous().Do(e.t.Context(), "POST", "/v1/teams/"+Team+"/service_token", api.ServiceTokenRequest{KeyID: keyID, KeySecret: keySecret}, &r))
	return e.WithToken(r.BearerToken)
}

// WithToken returns a caller with a bearer token.
func (e *Env) WithToken(token string) *Bearer {
	c := e.Anonymous()
	c.HTTP = &http.Client{CheckRedirect: e.http.CheckRedirect, Transport: withHeader{e.http.Transport, "Bearer " + token}}
	return &Bearer{c, token}
}

type withHeader struct {
	http.RoundTripper
	authorization string
}

func (w withHeader) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", w.authorization)
	return w.RoundTripper.RoundTrip(r)
}

// Do is the service user's request to the team, which must succeed: path
// begins after "/v1/teams/main".
func (e *Env) Do(method, path string, in, out any) {
	e.t.Helper()
	if err := e.Service.Do(e.t.Context(), method, "/v1/teams/"+Team+path, in, out); err != nil {
		e.t.Fatalf("%s %s: %v", method, path, err)
	}
}

// User makes a person. Doing it again returns the same one.
func (e *Env) User(name string) sft.User {
	e.t.Helper()
	var u sft.User
	err := e.Service.Do(e.t.Context(), "GET", "/v1/teams/"+Team+"/users/"+name, nil, &u)
	if sft.CodeOf(err) == sft.NotFound {
		e.Do("POST", "/users", map[string]string{"name": name, "full_name": strings.ToUpper(name[:1]) + name[1:] + " Example"}, &u)
		err = nil
	}
	e.must(err)
	return u
}

// Grant makes a project (unless it is there) and a group of the people, and
// lets the group into the project's servers.
func (e *Env) Grant(project, group string, admin bool, people ...string) {
	e.t.Helper()
	e.Project(project)
	var g sft.Group
	if sft.CodeOf(e.Service.Do(e.t.Context(), "GET", "/v1/teams/"+Team+"/groups/"+group, nil, &g)) == sft.NotFound {
		e.Do("POST", "/groups", map[string]any{"name": group}, nil)
	}
	e.Do("POST", "/projects/"+project+"/groups", map[string]any{"name": group, "server_access": true, "server_admin": admin}, nil)
	for _, name := range people {
		e.User(name)
		e.Do("POST", "/groups/"+group+"/users", map[string]string{"name": name}, nil)
	}
}

// Project makes a project, unless it is there.
func (e *Env) Project(name string) sft.Project {
	e.t.Helper()
	var p sft.Project
	err := e.Service.Do(e.t.Context(), "GET", "/v1/teams/"+Team+"/projects/"+name, nil, &p)
	if sft.CodeOf(err) == sft.NotFound {
		e.Do("POST", "/projects", map[string]string{"name": name}, &p)
		err = nil
	}
	e.must(err)
	return p
}

// Cookie signs a person in on the web, as of now, without the password.
func (e *Env) Cookie(user string) *http.Cookie {
	e.t.Helper()
	secret := rand.Text() + rand.Text()
	hash := sha256.Sum256([]byte(secret))
	now := e.Clock.Now()
	e.must(e.DB.Change(e.t.Context(), func(tx *store.Tx) (audit.Event, error) {
		team, err := tx.Team(Team)
		if err != nil {
			return audit.Event{}, err
		}
		u, err := tx.User(team.ID, user)
		if err != nil {
			return audit.Event{}, err
		}
		return audit.Event{ID: audit.NewID(), Time: now, Kind: audit.AuthTokenIssue, Team: Team, Actor: audit.Actor{Kind: "user", ID: u.ID, Name: u.Name}, Outcome: audit.Success},
			tx.AddWebSession(hash[:], store.WebSession{UserID: u.ID, SignedIn: now, Expires: now.Add(10 * time.Hour)})
	}))
	return &http.Cookie{Name: "__Host-sft", Value: secret}
}

// Owner is Cookie for the owner of the team.
func (e *Env) Owner() *http.Cookie { return e.Cookie(Owner) }

// Form sends a form as a browser on the platform's own page does, and
// returns the answer without following it.
func (e *Env) Form(cookie *http.Cookie, path string, form url.Values) *http.Response {
	e.t.Helper()
	r, err := http.NewRequestWithContext(e.t.Context(), "POST", e.URL+path, strings.NewReader(form.Encode()))
	e.must(err)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", e.URL)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	if cookie != nil {
		r.AddCookie(cookie)
	}
	resp, err := e.http.Do(r)
	e.must(err)
	e.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// Sealer returns the sealer of a new master key.
func Sealer(t testing.TB) ca.Sealer {
	t.Helper()
	_, s := masterKey(t)
	return s
}

// masterKey makes a master key, and returns its file and its sealer.
func masterKey(t testing.TB) (string, ca.Sealer) {
	t.Helper()
	key := t.TempDir() + "/master.key"
	err := ca.NewMasterKey(key)
	if err == nil {
		var s ca.Sealer
		if s, err = ca.OpenSealer(key); err == nil {
			return key, s
		}
	}
	t.Fatal(err)
	return "", nil
}

// Exec runs a statement on the database, past the platform.
func (e *Env) Exec(query string) {
	e.t.Helper()
	driver, name := "pgx", e.DBURL
	if path, ok := strings.CutPrefix(e.DBURL, "sqlite:"); ok {
		driver, name = "sqlite", path
	}
	db, err := sql.Open(driver, name)
	e.must(err)
	defer db.Close()
	_, err = db.ExecContext(e.t.Context(), query)
	e.must(err)
}

// Key makes a P-256 key, and returns its public half as it is sent.
func Key(t testing.TB) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return k, spki
}

// CSR returns a certificate request by the key.
func CSR(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// A Client is an enrolled client.
type Client struct {
	*api.Client
	ID   string
	User string
}

// An Approval is a code that a person let the browser take to a client, and
// what the client needs to redeem it.
type Approval struct {
	Code, Verifier, RedirectURI string
}

// Approve has the person approve the device key in the browser; clientID is
// set when an enrolled client signs in again.
func (e *Env) Approve(cookie *http.Cookie, spki []byte, clientID string) Approval {
	e.t.Helper()
	a := Approval{Verifier: rand.Text() + rand.Text(), RedirectURI: "http://127.0.0.1:49152/callback"}
	challenge := sha256.Sum256([]byte(a.Verifier))
	hash := sha256.Sum256(spki)
	state := rand.Text()
	resp := e.Form(cookie, "/authorize", url.Values{"team": {Team}, "redirect_uri": {a.RedirectURI}, "state": {state},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])}, "device_key_sha256": {hex.EncodeToString(hash[:])},
		"client": {clientID}, "hostname": {"laptop"}, "os": {"Debian 12"}, "answer": {"approve"}})
	to, err := resp.Location()
	if err != nil || !strings.HasPrefix(to.String(), a.RedirectURI+"?") || to.Query().Get("state") != state {
		e.t.Fatalf("approving a client answered %s, to %v", resp.Status, to)
	}
	a.Code = to.Query().Get("code")
	return a
}

// Client enrols a client for a person, who is made if missing.
func (e *Env) Client(user string) *Client {
	e.t.Helper()
	e.User(user)
	key, spki := Key(e.t)
	a := e.Approve(e.Cookie(user), spki, "")
	var r api.EnrollClientReply
	e.must(e.Anonymous().Do(e.t.Context(), "POST", "/v1/clients/enroll", api.EnrollClientRequest{Code: a.Code, CodeVerifier: a.Verifier,
		RedirectURI: a.RedirectURI, DeviceKey: spki, Device: api.DeviceInfo{Hostname: "laptop", OS: "Debian 12", Version: sft.Version}}, &r))
	return &Client{e.Signed(key, "client:"+r.ClientID), r.ClientID, r.User}
}

// Signed returns an API client that signs by the key, with a clock of its own
// that agrees with the platform's.
func (e *Env) Signed(key *ecdsa.PrivateKey, issuer string) *api.Client {
	c := e.Anonymous()
	c.Key, c.Issuer = key, issuer
	return c
}

// Token makes an enrollment token, and returns the secret in it.
func (e *Env) Token(project string) string {
	e.t.Helper()
	var r struct {
		Token string `json:"token"`
	}
	e.Do("POST", "/projects/"+project+"/server_enrollment_tokens", map[string]string{"description": "for a test"}, &r)
	return Secret(e.t, r.Token)
}

// Secret returns the secret in an enrollment token.
func Secret(t testing.TB, token string) string {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(token)
	var v api.EnrollmentToken
	if err = errors.Join(err, json.Unmarshal(b, &v)); err != nil {
		t.Fatal(err)
	}
	return v.Secret
}

// A Server is an enrolled server whose broker has a certificate.
type Server struct {
	*api.Client
	ID          string
	Facts       api.Facts
	HostKey     *ecdsa.PrivateKey // the TLS host key
	Certificate [][]byte
}

// Facts are those of an ordinary Linux host.
func Facts(hostname string) api.Facts {
	// The address is as good as any: nothing is dialled.
	sum := sha256.Sum256([]byte(hostname))
	return api.Facts{Hostname: hostname, AccessAddress: fmt.Sprintf("10.%d.%d.%d", sum[0], sum[1], sum[2]), BrokerPort: sft.BrokerPort,
		OS: "Debian 12", OSType: "linux", Version: sft.Version, Services: []string{"rdp", "ping"}}
}

// SSHLine is a new public key, ed25519, as in authorized_keys.
func SSHLine(t testing.TB) string {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(k)), "\n")
}

// SSHFacts are those of a Linux host whose SSH server sftd looks after.
func SSHFacts(t testing.TB, hostname string) api.Facts {
	t.Helper()
	f := Facts(hostname)
	f.SSH = &api.SSHFacts{Port: 22, HostKeys: []string{SSHLine(t)}}
	return f
}

// Enroll enrols a server with a new token and key. It has not reported yet,
// so its broker has no certificate.
func (e *Env) Enroll(project string, f api.Facts) *Server {
	e.t.Helper()
	key, spki := Key(e.t)
	var r api.EnrollServerReply
	e.must(e.Anonymous().Do(e.t.Context(), "POST", "/v1/servers/enroll", api.EnrollServerRequest{Token: e.Token(project), DeviceKey: spki, Facts: f}, &r))
	return &Server{Client: e.Signed(key, "server:"+r.ServerID), ID: r.ServerID, Facts: f}
}

// Server enrols a server in a project, and gets its broker's certificate.
func (e *Env) Server(project string, f api.Facts) *Server {
	e.t.Helper()
	e.Project(project)
	s := e.Enroll(project, f)
	s.HostKey, _ = Key(e.t)
	e.Report(s)
	return s
}

// Report sends the server's facts and a request for a certificate of its
// host key.
func (e *Env) Report(s *Server) {
	e.t.Helper()
	var r api.ReportReply
	e.must(s.Do(e.t.Context(), "POST", "/v1/agent/report", api.ReportRequest{Facts: s.Facts, CSR: CSR(e.t, s.HostKey)}, &r))
	s.Certificate = r.BrokerCertificate
}

// State asks for the server's state, without waiting.
func (e *Env) State(s *Server) api.State {
	e.t.Helper()
	var st api.State
	e.must(s.Do(e.t.Context(), "GET", "/v1/agent/state?after=-1", nil, &st))
	return st
}

// Connect asks for a way to a server, with a fresh key.
func (e *Env) Connect(c *Client, target string) (api.ConnectReply, *ecdsa.PrivateKey, error) {
	e.t.Helper()
	key, _ := Key(e.t)
	var r api.ConnectReply
	err := c.Do(e.t.Context(), "POST", "/v1/teams/"+Team+"/connect", api.ConnectRequest{Target: target, Service: "rdp", CSR: CSR(e.t, key)}, &r)
	return r, key, err
}

// ConnectSSH asks for a way to a server's SSH, through the hosts of via, with
// fresh keys.
func (e *Env) ConnectSSH(c *Client, target string, via ...string) (api.ConnectReply, string, error) {
	e.t.Helper()
	key, _ := Key(e.t)
	line := SSHLine(e.t)
	var r api.ConnectReply
	err := c.Do(e.t.Context(), "POST", "/v1/teams/"+Team+"/connect", api.ConnectRequest{Target: target, Via: via, Service: "ssh", CSR: CSR(e.t, key), SSHPublicKey: line}, &r)
	return r, line, err
}

// Events returns what happened in the team, oldest first.
func (e *Env) Events() []audit.Event {
	e.t.Helper()
	var all []audit.Event
	e.must(e.DB.Read(e.t.Context(), func(tx *store.Tx) error {
		for after := ""; ; {
			page, err := tx.Events(Team, after, 1000, false)
			if err != nil || len(page) == 0 {
				return err
			}
			all = append(all, page...)
			after = page[len(page)-1].ID
		}
	}))
	return all
}
