package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/frame"
)

// A platform is the far end of the wire: it speaks the API's JSON over TLS
// with a certificate of its own, and checks signatures and PKCE as the real
// one does. What it decides is up to the test.
type platform struct {
	*httptest.Server
	t  *testing.T
	mu sync.Mutex

	now      func() time.Time
	key      *ecdsa.PublicKey  // of the enrolled client
	approved map[string]string // codes, with their challenge
	pending  int               // how often a device code is still pending
	refuse   *sft.Error        // what signed requests other than login get
	requests []string          // method and path of each
	connects []api.ConnectRequest
	connect  func(api.ConnectRequest) api.ConnectReply
}

func newPlatform(t *testing.T) *platform {
	p := &platform{t: t, now: time.Now, approved: map[string]string{}}
	p.Server = httptest.NewUnstartedServer(p)
	p.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.StartTLS()
	t.Cleanup(p.Close)
	return p
}

func (p *platform) fingerprint() string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(p.Certificate().Raw))
}

func (p *platform) fail(w http.ResponseWriter, e *sft.Error) {
	w.WriteHeader(e.Code.Info().Status)
	json.NewEncoder(w).Encode(api.ErrorReply{Error: *e, Time: p.now()})
}

func (p *platform) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	p.requests = append(p.requests, r.Method+" "+r.URL.RequestURI())
	signed := r.Header.Get("Authorization") != ""
	if signed {
		if _, err := api.Verify(r.Header.Get("Authorization"), p.URL, r.Method, r.URL.RequestURI(), body, p.now(),
			func(string) (*ecdsa.PublicKey, error) { return p.key, nil }); err != nil {
			e, _ := errors.AsType[*sft.Error](err)
			p.fail(w, e)
			return
		}
	}
	reply := api.EnrollClientReply{ClientID: "c1", Team: "main", User: "alice", URL: p.URL, SignedInUntil: time.Now().Add(time.Hour).UTC().Truncate(time.Second)}
	switch r.URL.Path {
	case "/v1/clients/device_code":
		json.NewEncoder(w).Encode(api.DeviceCodeReply{DeviceCode: "d1", UserCode: "ABCD-EFGH", VerificationURI: p.URL + "/device", ExpiresIn: 60, Interval: 1})
	case "/v1/clients/enroll", "/v1/clients/login":
		var e api.EnrollClientRequest
		json.Unmarshal(body, &e)
		if e.DeviceCode != "" {
			if p.pending--; p.pending >= 0 {
				p.fail(w, &sft.Error{Code: sft.Pending, Msg: "not yet"})
				return
			}
		} else {
			sum := sha256.Sum256([]byte(e.CodeVerifier))
			if c, ok := p.approved[e.Code]; !ok || c != base64.RawURLEncoding.EncodeToString(sum[:]) {
				p.fail(w, &sft.Error{Code: sft.Denied, Msg: "the code is not good"})
				return
			}
		}
		if !signed {
			k, err := x509.ParsePKIXPublicKey(e.DeviceKey)
			if err != nil {
				p.fail(w, &sft.Error{Code: sft.Invalid, Msg: "no device key"})
				return
			}
			p.key = k.(*ecdsa.PublicKey)
		}
		if p.refuse != nil && p.refuse.Code == sft.SignIn {
			p.refuse = nil
		}
		json.NewEncoder(w).Encode(reply)
	default:
		if !signed {
			p.fail(w, &sft.Error{Code: sft.SignIn, Msg: "not signed"})
			return
		}
		if p.refuse != nil {
			p.fail(w, p.refuse)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/connect") {
			var c api.ConnectRequest
			json.Unmarshal(body, &c)
			p.connects = append(p.connects, c)
			json.NewEncoder(w).Encode(p.connect(c))
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"list": []any{}})
	}
}

func (p *platform) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.requests
	p.requests = nil
	return r
}

// browse is a browser whose person answers: it opens the page and goes where
// the platform sends it.
func (p *platform) browse(answer string) func(string) error {
	return func(page string) error {
		u, err := url.Parse(page)
		if err != nil {
			return err
		}
		q := u.Query()
		back := url.Values{"state": {q.Get("state")}}
		if answer == "approve" {
			p.mu.Lock()
			p.approved["code1"] = q.Get("code_challenge")
			p.mu.Unlock()
			back.Set("code", "code1")
		} else {
			back.Set("error", answer)
		}
		go func() {
			resp, err := http.Get(q.Get("redirect_uri") + "?" + back.Encode())
			if err != nil {
				p.t.Error(err)
				return
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if !strings.Contains(string(b), "You may close this window.") || strings.Contains(string(b), "code1") {
				p.t.Errorf("the page is %q", b)
			}
		}()
		return nil
	}
}

type person struct {
	mu   sync.Mutex
	said []string
}

func (p *person) say(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said = append(p.said, s)
}

func newDevice(t *testing.T) (*Device, *person) {
	t.Helper()
	s, err := OpenStore(filepath.Join(t.TempDir(), "ScaleFT"), FileRing, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	who := new(person)
	return &Device{Store: s, Info: api.DeviceInfo{Hostname: "laptop", OS: "linux", Version: "test"}, Say: who.say,
		Timeout: 20 * time.Second, Log: slog.New(slog.DiscardHandler)}, who
}

// enrolled is a device that is enrolled and may not ask.
func enrolled(t *testing.T, p *platform) (*Device, Account, *person) {
	t.Helper()
	d, who := newDevice(t)
	d.Ask, d.Open = InBrowser, p.browse("approve")
	a, err := d.Enroll(t.Context(), Enrolment{URL: p.URL, Fingerprint: p.fingerprint(), Default: true})
	if err != nil {
		t.Fatal(err)
	}
	p.asked()
	d.Ask = Never
	return d, a, who
}

func TestEnroll(t *testing.T) {
	tests := []struct {
		name string
		ask  Asking
		open func(*platform) func(string) error
		code sft.Code // of the refusal; empty is enrolled
	}{
		{"in the browser", InBrowser, func(p *platform) func(string) error { return p.browse("approve") }, ""},
		{"refused in the browser", InBrowser, func(p *platform) func(string) error { return p.browse("access_denied") }, sft.Denied},
		{"by a code that is approved after a while", ByCode, nil, ""},
		{"by a code where no browser opens", InBrowser, func(*platform) func(string) error { return func(string) error { return errors.New("none") } }, ""},
		{"nobody may be asked", Never, nil, sft.SignIn},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPlatform(t)
			p.pending = 1
			d, who := newDevice(t)
			d.Ask = tt.ask
			if tt.open != nil {
				d.Open = tt.open(p)
			}
			a, err := d.Enroll(t.Context(), Enrolment{URL: p.URL, Team: "main", Fingerprint: p.fingerprint(), Default: true})
			kept, serr := d.Store.Accounts()
			if serr != nil {
				t.Fatal(serr)
			}
			files, _ := filepath.Glob(filepath.Join(d.Store.dir, "device-*"))
			if tt.code != "" {
				if sft.CodeOf(err) != tt.code || len(kept) != 0 || len(files) != 0 {
					t.Errorf("got %v, %v, %v, want %s and nothing kept", err, kept, files, tt.code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := Account{Team: "main", User: "alice", ClientID: "c1", URL: p.URL, Audience: p.URL, CA: p.Certificate().Raw, Default: true, SignedInUntil: a.SignedInUntil}
			if !reflect.DeepEqual(kept, []Account{want}) || !reflect.DeepEqual(a, want) {
				t.Errorf("kept %+v\nwant %+v", kept, want)
			}
			s, err := d.Session(a)
			if err != nil {
				t.Fatal(err)
			}
			if !s.c.Key.PublicKey.Equal(p.key) {
				t.Error("the key that was kept is not the one that was enrolled")
			}
			spki, err := x509.MarshalPKIXPublicKey(p.key)
			if err != nil {
				t.Fatal(err)
			}
			key := "approve only if the page shows this device's key, " + fmt.Sprintf("%x", sha256.Sum256(spki))[:16]
			if !slices.Contains(who.said, key) {
				t.Errorf("said %q, want %q too", who.said, key)
			}
			for _, line := range who.said { // the key's digits may be anything
				if line != key && strings.Contains(line, "d1") && !strings.Contains(line, "challenge") || tt.ask == ByCode && strings.Contains(line, "?") {
					t.Errorf("said %q", line)
				}
			}
		})
	}
}

// With a proxy in the settings, nothing goes past it, the first look at the
// platform's CA included.
func TestEnrollGoesThroughTheProxyAlone(t *testing.T) {
	p := newPlatform(t)
	d, _ := newDevice(t)
	d.Ask, d.Open = InBrowser, p.browse("approve")
	closed := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(closed.Close)
	var err error
	if d.Proxy, err = url.Parse(closed.URL); err != nil {
		t.Fatal(err)
	}
	_, err = d.Enroll(t.Context(), Enrolment{URL: p.URL, Fingerprint: p.fingerprint()})
	if got := p.asked(); sft.CodeOf(err) != sft.Unavailable || !strings.HasSuffix(err.Error(), "says 404 Not Found") || len(got) != 0 {
		t.Errorf("got %v, and the platform was asked %q", err, got)
	}
}

func TestEnrollRefusesBeforeAnythingIsAsked(t *testing.T) {
	p := newPlatform(t)
	d, a, _ := enrolled(t, p)
	d.Ask = ByCode
	tests := []struct {
		name string
		e    Enrolment
		code sft.Code
	}{
		{"a URL that is not https", Enrolment{URL: "http://p.example"}, sft.Invalid},
		{"a URL with a path", Enrolment{URL: p.URL + "/x"}, sft.Invalid},
		{"a team that cannot be", Enrolment{URL: p.URL, Team: "a\nb"}, sft.Invalid},
		{"a team that it is enrolled in", Enrolment{URL: p.URL, Team: "MAIN"}, sft.Exists},
		{"another CA than the fingerprint's", Enrolment{URL: p.URL, Team: "x", Fingerprint: strings.Repeat("ab", 32)}, sft.Invalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := d.Enroll(t.Context(), tt.e); sft.CodeOf(err) != tt.code {
				t.Errorf("got %v, want %s", err, tt.code)
			}
		})
	}
	if got := p.asked(); len(got) != 0 {
		t.Errorf("the platform was asked: %q", got)
	}
	if kept, err := d.Store.Accounts(); err != nil || len(kept) != 1 || kept[0].ClientID != a.ClientID {
		t.Errorf("kept %+v, %v", kept, err)
	}
}

// TestCallback checks what the loopback address hears: the one answer that
// names the state, once, and nothing else.
func TestCallback(t *testing.T) {
	type request struct{ method, host, path string }
	good := func(c *callback) request {
		return request{"GET", c.addr, "/callback?code=x&state=" + c.state}
	}
	tests := []struct {
		name   string
		first  []func(*callback) request
		make   func(*callback) request
		status int
		want   answer
	}{
		{"the answer", nil, good, 200, answer{code: "x"}},
		{"a refusal", nil, func(c *callback) request {
			return request{"GET", c.addr, "/callback?error=access_denied&state=" + c.state}
		}, 200, answer{refusal: "access_denied"}},
		{"another state", nil, func(c *callback) request { return request{"GET", c.addr, "/callback?code=x&state=abc"} }, 400, answer{}},
		{"no state", nil, func(c *callback) request { return request{"GET", c.addr, "/callback?code=x"} }, 400, answer{}},
		{"no code", nil, func(c *callback) request { return request{"GET", c.addr, "/callback?state=" + c.state} }, 400, answer{}},
		{"a code without end", nil, func(c *callback) request {
			return request{"GET", c.addr, "/callback?code=" + strings.Repeat("x", 513) + "&state=" + c.state}
		}, 400, answer{}},
		{"another path", nil, func(c *callback) request { return request{"GET", c.addr, "/?code=x&state=" + c.state} }, 404, answer{}},
		{"another name for the address", nil, func(c *callback) request {
			return request{"GET", "evil.example:80", "/callback?code=x&state=" + c.state}
		}, 404, answer{}},
		{"another method", nil, func(c *callback) request { return request{"POST", c.addr, "/callback?code=x&state=" + c.state} }, 405, answer{}},
		{"a second answer", []func(*callback) request{good}, func(c *callback) request { return request{"GET", c.addr, "/callback?code=y&state=" + c.state} }, 409, answer{code: "x"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCallback("127.0.0.1:1")
			var w *httptest.ResponseRecorder
			for _, m := range append(tt.first, tt.make) {
				q := m(c)
				r := httptest.NewRequest(q.method, q.path, nil)
				r.Host = q.host
				w = httptest.NewRecorder()
				c.ServeHTTP(w, r)
			}
			var got answer
			select {
			case got = <-c.answer:
			default:
			}
			if w.Code != tt.status || got != tt.want {
				t.Errorf("got %d, %+v, want %d, %+v", w.Code, got, tt.status, tt.want)
			}
			if strings.Contains(w.Body.String(), c.state) {
				t.Error("the page shows the state")
			}
		})
	}
}

func TestTheEndOfASignIn(t *testing.T) {
	over := &sft.Error{Code: sft.SignIn, Msg: "over"}
	t.Run("nobody may be asked", func(t *testing.T) {
		p := newPlatform(t)
		d, a, _ := enrolled(t, p)
		s, err := d.Session(a)
		if err != nil {
			t.Fatal(err)
		}
		p.refuse = over
		_, err = s.Servers(t.Context(), "", "")
		want := sft.Error{Code: sft.SignIn, Msg: "alice is not signed in to team main, or no longer", Hint: `run "sft login --team main"`}
		if e, ok := errors.AsType[*sft.Error](err); !ok || e.Code != want.Code || e.Msg != want.Msg || e.Hint != want.Hint {
			t.Errorf("got %+v, want %+v", err, want)
		}
	})
	t.Run("the person signs in, and the request is made again", func(t *testing.T) {
		p := newPlatform(t)
		d, a, _ := enrolled(t, p)
		d.Ask, d.Open = InBrowser, p.browse("approve")
		s, err := d.Session(a)
		if err != nil {
			t.Fatal(err)
		}
		p.refuse = over
		if _, err := s.Servers(t.Context(), "prod", ""); err != nil {
			t.Fatal(err)
		}
		list := "GET /v1/teams/main/servers?count=1000&project_name=prod"
		if got, want := p.asked(), []string{list, "POST /v1/clients/login", list}; !slices.Equal(got, want) {
			t.Errorf("asked %q, want %q", got, want)
		}
	})
	t.Run("the client was deleted", func(t *testing.T) {
		p := newPlatform(t)
		d, a, _ := enrolled(t, p)
		s, err := d.Session(a)
		if err != nil {
			t.Fatal(err)
		}
		p.refuse = &sft.Error{Code: sft.Revoked, Msg: "deleted"}
		_, err = s.Servers(t.Context(), "", "")
		if e, ok := errors.AsType[*sft.Error](err); !ok || e.Code != sft.Revoked || !strings.Contains(e.Hint, "sft enroll --force --url "+p.URL+" --team main") {
			t.Errorf("got %+v, want a hint to enrol again", err)
		}
	})
}

func TestClock(t *testing.T) {
	for _, tt := range []struct {
		name    string
		off     time.Duration // of the machine
		refused bool
		warning string
	}{
		{"10 minutes slow works and warns", -10 * time.Minute, false, "warning: this machine's clock is 10m0s slow; set it"},
		{"10 minutes fast works and warns", 10 * time.Minute, false, "warning: this machine's clock is 10m0s fast; set it"},
		{"20 minutes slow is refused", -20 * time.Minute, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlatform(t)
			d, a, who := enrolled(t, p)
			d.Machine = func() time.Time { return time.Now().Add(tt.off) }
			p.now = func() time.Time { return time.Now().Truncate(time.Second) }
			who.said = nil
			s, err := d.Session(a)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Servers(t.Context(), "", "")
			if tt.refused {
				if sft.CodeOf(err) != sft.ClockSkew || strings.Count(err.Error(), "Z") != 2 {
					t.Errorf("got %v, want a refusal that names both clocks", err)
				}
				return
			}
			if err != nil || !slices.Equal(who.said, []string{tt.warning}) {
				t.Errorf("got %v, said %q, want %q", err, who.said, tt.warning)
			}
			// The next run knows it from the start.
			p.asked()
			a, err = d.Store.Find("")
			if err != nil {
				t.Fatal(err)
			}
			if s, err = d.Session(a); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Servers(t.Context(), "", ""); err != nil || len(p.asked()) != 1 {
				t.Errorf("the second run: %v, and more than one request", err)
			}
		})
	}
}

func TestUnenroll(t *testing.T) {
	p := newPlatform(t)
	d, a, _ := enrolled(t, p)
	p.refuse = &sft.Error{Code: sft.Unavailable, Msg: "no"}
	if err := d.Unenroll(t.Context(), a, false); sft.CodeOf(err) != sft.Unavailable {
		t.Errorf("got %v, want the platform's refusal", err)
	}
	if all, _ := d.Store.Accounts(); len(all) != 1 {
		t.Error("the account was forgotten though its record stays")
	}
	p.refuse = &sft.Error{Code: sft.Revoked, Msg: "gone"}
	if err := d.Unenroll(t.Context(), a, false); err != nil {
		t.Errorf("a client that is gone: %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(d.Store.dir, "device-*"))
	if all, _ := d.Store.Accounts(); len(all) != 0 || len(left) != 0 {
		t.Errorf("left %v, %v", all, left)
	}
}

func TestStore(t *testing.T) {
	d, _ := newDevice(t)
	s := d.Store
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := s.put(Account{Team: fmt.Sprintf("t%d", i), User: "u", ClientID: fmt.Sprintf("c%d", i), Default: true}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all, err := s.Accounts()
	if err != nil || len(all) != 20 {
		t.Fatalf("%d accounts, %v, want 20: writers trampled on each other", len(all), err)
	}
	defaults := 0
	for _, a := range all {
		if a.Default {
			defaults++
		}
	}
	if defaults != 1 {
		t.Errorf("%d default accounts, want 1", defaults)
	}
	if a, err := s.Use("T7"); err != nil || a.Team != "t7" {
		t.Errorf("Use = %+v, %v", a, err)
	}
	if a, err := s.Find(""); err != nil || a.Team != "t7" {
		t.Errorf("Find = %+v, %v, want t7", a, err)
	}
	if err := s.remove(Account{ClientID: "c7", Default: true}); err != nil {
		t.Fatal(err)
	}
	if a, err := s.Find(""); err != nil || a.ClientID == "c7" {
		t.Errorf("Find = %+v, %v, want another default", a, err)
	}
	if _, err := s.Find("none"); sft.CodeOf(err) != sft.SignIn {
		t.Errorf("Find of no team = %v", err)
	}
}

func TestStoreRefusesWhatItCannotTrust(t *testing.T) {
	d, _ := newDevice(t)
	path := d.Store.path()
	for _, text := range []string{"", "{", `{"accounts": [{"team": "a", "user": "b", "client_id": "../../x"}]}`, `{"accounts": 3}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Store.Accounts(); sft.CodeOf(err) != sft.Invalid {
			t.Errorf("%q: %v, want a refusal", text, err)
		}
	}
	if _, err := OpenStore(d.Store.dir, "other", func(string) string { return "" }); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("an unknown ring: %v, want a refusal", err)
	}
}

// A host is a broker as the client meets it: real TLS, one frame each way.
type host struct {
	addr    string
	ca      []byte
	caKey   *ecdsa.PrivateKey
	caCert  *x509.Certificate
	spki    []byte
	mu      sync.Mutex
	replies []frame.Reply // in turn; the last is repeated
	seen    []frame.Proof
	clients []*ecdsa.PublicKey
}

func sign(t *testing.T, parent *x509.Certificate, parentKey *ecdsa.PrivateKey, pub any, change func(*x509.Certificate)) []byte {
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "x"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	change(c)
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func newHost(t *testing.T) *host {
	h := &host{}
	h.caKey, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	h.ca = sign(t, nil, h.caKey, h.caKey.Public(), func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	h.caCert, _ = x509.ParseCertificate(h.ca)
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	der, _ := x509.MarshalPKIXPublicKey(key.Public())
	sum := sha256.Sum256(der)
	h.spki = sum[:]
	crt := sign(t, h.caCert, h.caKey, key.Public(), func(c *x509.Certificate) {
		c.DNSNames, c.ExtKeyUsage = []string{"s1.server.sft"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{crt}, PrivateKey: key}},
		NextProtos: []string{frame.ALPN}, ClientAuth: tls.RequireAnyClientCert})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	h.addr = l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go h.serve(t, c.(*tls.Conn))
		}
	}()
	return h
}

func (h *host) serve(t *testing.T, c *tls.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	b, err := frame.Read(c)
	if err != nil {
		t.Error(err)
		return
	}
	pub := c.ConnectionState().PeerCertificates[0].PublicKey.(*ecdsa.PublicKey)
	_, proof, err := frame.Verify(b, "s1", pub, time.Now())
	if err != nil {
		t.Error(err)
	}
	h.mu.Lock()
	h.seen = append(h.seen, proof)
	h.clients = append(h.clients, pub)
	r := h.replies[0]
	if len(h.replies) > 1 {
		h.replies = h.replies[1:]
	}
	h.mu.Unlock()
	frame.WriteJSON(c, r)
	io.Copy(io.Discard, c)
}

// reply is what the platform issues for the host.
func (h *host) reply(t *testing.T, r api.ConnectRequest, life time.Duration) api.ConnectReply {
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		t.Error(err)
		return api.ConnectReply{}
	}
	crt := sign(t, h.caCert, h.caKey, csr.PublicKey, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	a, _ := net.ResolveTCPAddr("tcp", h.addr)
	return api.ConnectReply{SessionID: "n1", Certificate: [][]byte{crt}, ExpiresAt: time.Now().Add(life),
		Route: []api.Hop{{ServerID: "s1", Name: "web01", Project: "prod", Address: a.IP.String(), Port: a.Port, BrokerName: "s1.server.sft", HostCAs: [][]byte{h.ca}, HostKeys: [][]byte{h.spki}, Login: "alice"}}}
}

func TestConnect(t *testing.T) {
	ready := frame.Reply{RDP: &frame.RDPReply{SignIn: "deliver", Login: "alice"}}
	notReady := frame.Reply{Error: &sft.Error{Code: sft.NotReady, Msg: "not yet"}}
	t.Run("streams share the certificate while it is good", func(t *testing.T) {
		p, h := newPlatform(t), newHost(t)
		h.replies = []frame.Reply{ready}
		p.connect = func(r api.ConnectRequest) api.ConnectReply { return h.reply(t, r, 5*time.Minute) }
		c := connected(t, p)
		for range 2 {
			s, r, err := c.Open(t.Context(), nil)
			if err != nil || r.RDP == nil || r.RDP.Login != "alice" {
				t.Fatalf("Open = %+v, %v", r, err)
			}
			s.Close()
		}
		if len(p.connects) != 1 || len(h.seen) != 2 || !h.clients[0].Equal(h.clients[1]) || h.seen[0].ID == h.seen[1].ID || h.seen[0].Session != "n1" {
			t.Errorf("connects %d, proofs %+v", len(p.connects), h.seen)
		}
	})
	t.Run("a certificate that runs out is replaced, for the same session and server", func(t *testing.T) {
		p, h := newPlatform(t), newHost(t)
		h.replies = []frame.Reply{ready}
		life := 5 * time.Second // within renewBefore
		p.connect = func(r api.ConnectRequest) api.ConnectReply {
			defer func() { life = 5 * time.Minute }()
			return h.reply(t, r, life)
		}
		c := connected(t, p)
		s, _, err := c.Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if len(p.connects) != 2 || p.connects[1].SessionID != "n1" || p.connects[1].Target != "s1" || p.connects[0].SessionID != "" {
			t.Errorf("connects %+v", p.connects)
		}
	})
	t.Run("one that is good is replaced when that is asked for", func(t *testing.T) {
		p, h := newPlatform(t), newHost(t)
		h.replies = []frame.Reply{ready}
		p.connect = func(r api.ConnectRequest) api.ConnectReply { return h.reply(t, r, 5*time.Minute) }
		c := connected(t, p)
		for n := range 2 {
			s, _, err := c.Open(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
			if n == 0 {
				if err := c.Renew(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		if len(p.connects) != 2 || p.connects[1].SessionID != "n1" || p.connects[1].Target != "s1" || h.clients[0].Equal(h.clients[1]) {
			t.Errorf("connects %+v", p.connects)
		}
	})
	t.Run("a host that is not ready is tried again, with a new proof", func(t *testing.T) {
		t.Parallel()
		p, h := newPlatform(t), newHost(t)
		h.replies = []frame.Reply{notReady, notReady, ready}
		p.connect = func(r api.ConnectRequest) api.ConnectReply { return h.reply(t, r, 5*time.Minute) }
		s, _, err := connected(t, p).Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if len(h.seen) != 3 || h.seen[0].ID == h.seen[1].ID || h.seen[1].ID == h.seen[2].ID {
			t.Errorf("proofs %+v", h.seen)
		}
	})
	t.Run("a host that stays not ready is given up", func(t *testing.T) {
		t.Parallel()
		p, h := newPlatform(t), newHost(t)
		h.replies = []frame.Reply{notReady}
		p.connect = func(r api.ConnectRequest) api.ConnectReply { return h.reply(t, r, 5*time.Minute) }
		if _, _, err := connected(t, p).Open(t.Context(), nil); sft.CodeOf(err) != sft.NotReady || len(h.seen) != 3 {
			t.Errorf("got %v after %d tries, want not ready after 3", err, len(h.seen))
		}
	})
}

func connected(t *testing.T, p *platform) *Connection {
	t.Helper()
	d, a, _ := enrolled(t, p)
	s, err := d.Session(a)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Connect(t.Context(), "web01", frame.RDP, nil, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConnectRefusesAReplyThatCannotBeUsed(t *testing.T) {
	h := newHost(t)
	other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tests := []struct {
		name   string
		change func(*api.ConnectReply)
		code   sft.Code
		msg    string
	}{
		{"no route", func(r *api.ConnectReply) { r.Route = nil }, sft.Internal, "it names no server"},
		{"no session", func(r *api.ConnectReply) { r.SessionID = "" }, sft.Internal, "it names no session"},
		{"no certificate", func(r *api.ConnectReply) { r.Certificate = nil }, sft.Internal, "there is no certificate in it"},
		{"a certificate for another key", func(r *api.ConnectReply) {
			r.Certificate[0] = sign(t, h.caCert, h.caKey, other.Public(), func(*x509.Certificate) {})
		}, sft.Internal, "for another key"},
		{"a name with an escape sequence", func(r *api.ConnectReply) { r.Route[0].Name = "web\x1b[2J" }, sft.Internal, "no usable address or name"},
		{"an address that is an option", func(r *api.ConnectReply) { r.Route[0].Address = "-x" }, sft.Internal, "no usable address or name"},
		{"no port", func(r *api.ConnectReply) { r.Route[0].Port = 0 }, sft.Internal, "no usable address or name"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlatform(t)
			p.connect = func(r api.ConnectRequest) api.ConnectReply {
				reply := h.reply(t, r, time.Minute)
				tt.change(&reply)
				return reply
			}
			d, a, _ := enrolled(t, p)
			s, err := d.Session(a)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Connect(t.Context(), "web01", frame.RDP, nil, func(string) {}); sft.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.msg) {
				t.Errorf("got %v, want %s with %q", err, tt.code, tt.msg)
			}
		})
	}
}

// FuzzTarget checks that a name which the grammar refuses reaches nobody, and
// that its refusal is one line that can be shown.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{"web01", "prod/web01", "-x", "a\nb", `"`, strings.Repeat("a", 5000), "../..", "a/b/c", "/web01", "[::1]", "10.0.0.1", "\x1b[2J"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		s := &Session{} // whatever passes the grammar would crash on it
		if sft.CheckTarget(target) == nil {
			if strings.HasPrefix(target, "-") || strings.ContainsAny(target, "\n\r\x00\"' ?#%&") || len(target) > 320 {
				t.Errorf("%q was taken", target)
			}
			return
		}
		_, err := s.Connect(context.Background(), target, frame.RDP, nil, nil)
		if sft.CodeOf(err) != sft.NotFound || strings.ContainsAny(err.Error(), "\n\r\x1b") || len(err.Error()) > 450 {
			t.Errorf("refused with %q", err)
		}
	})
}
