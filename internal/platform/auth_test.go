package platform_test

import (
	"bytes"
	"crypto/ecdsa"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/platform"
	"sft/internal/testenv"
)

func TestServiceTokens(t *testing.T) { testenv.Each(t, serviceTokens) }

func serviceTokens(t *testing.T, e *testenv.Env) {
	ctx := t.Context()
	ask := func(team, id, secret string) (api.ServiceTokenReply, error) {
		var r api.ServiceTokenReply
		return r, e.Anonymous().Do(ctx, "POST", "/v1/teams/"+team+"/service_token", api.ServiceTokenRequest{KeyID: id, KeySecret: secret}, &r)
	}
	k := e.Init.Key
	foreign(t, e)
	for _, tt := range []struct {
		name, team, id, secret string
		want                   sft.Code
		told                   string
	}{
		{"right", "main", k.ID, k.Secret, "", "auth_token.issue success"},
		{"right, in capitals", "MAIN", k.ID, k.Secret, "", "auth_token.issue success"},
		{"a wrong secret", "main", k.ID, "x", sft.SignIn, "auth_token.issue refused"},
		{"a wrong secret, in capitals", "Main", k.ID, "x", sft.SignIn, "auth_token.issue refused"},
		{"no secret", "main", k.ID, "", sft.SignIn, "auth_token.issue refused"},
		{"a wrong id", "main", "no", k.Secret, sft.SignIn, "auth_token.issue refused"},
		{"an id that cannot be", "main", "\x00", k.Secret, sft.SignIn, "auth_token.issue refused"},
		{"another team", "other", k.ID, k.Secret, sft.SignIn, ""},
		{"a team that is not there", "no", k.ID, k.Secret, sft.SignIn, ""},
	} {
		events := since(e, func() {
			r, err := ask(tt.team, tt.id, tt.secret)
			wantCode(t, tt.name, err, tt.want)
			if err == nil && (r.Team != "main" || !r.ExpiresAt.Equal(e.Clock.Now().Add(time.Hour))) {
				t.Errorf("%s: %+v", tt.name, r)
			}
		})
		if told(events) != tt.told {
			t.Errorf("%s is told as %q, want %q", tt.name, told(events), tt.told)
		}
	}

	use := func(b *testenv.Bearer) error { return b.Do(ctx, "GET", base+"/users", nil, nil) }
	token := e.Bearer(k.ID, k.Secret)
	wantCode(t, "a good token", use(token), "")
	cut := token.Token[:len(token.Token)-3]
	wantCode(t, "a token cut short", use(e.WithToken(cut)), sft.SignIn)
	parts := strings.Split(token.Token, ".")
	wantCode(t, "a token without a signature", use(e.WithToken("eyJhbGciOiJub25lIn0."+parts[1]+".")), sft.SignIn)
	e.Clock.Advance(time.Hour)
	wantCode(t, "a token after an hour", use(token), sft.SignIn)
	e.Service = e.Bearer(k.ID, k.Secret)

	// A rotated key works for one more day beside the new one.
	var rotated platform.KeyReply
	e.Do("POST", "/service_users/robot/keys", nil, &rotated)
	e.Clock.Advance(24*time.Hour - time.Second)
	wantCode(t, "a key within a day of its rotation", second(ask("main", k.ID, k.Secret)), "")
	token = e.Bearer(k.ID, k.Secret)
	e.Clock.Advance(time.Second)
	wantCode(t, "a key a day after its rotation", second(ask("main", k.ID, k.Secret)), sft.SignIn)
	wantCode(t, "a token by that key", use(token), sft.SignIn)
	e.Service = e.Bearer(rotated.ID, rotated.Secret)
	wantCode(t, "a token by the new key", use(e.Service), "")

	// A deleted key, and the tokens by it, end at once.
	var robot2 sft.User
	e.Do("POST", "/service_users", map[string]string{"name": "robot2"}, &robot2)
	var key platform.KeyReply
	e.Do("POST", "/service_users/robot2/keys", nil, &key)
	b := e.Bearer(key.ID, key.Secret)
	wantCode(t, "a new service user, which may read", use(b), "")
	wantCode(t, "and not change anything", b.Do(ctx, "POST", base+"/groups", map[string]string{"name": "x"}, nil), sft.Denied)
	wantCode(t, "another's key in the path", e.Service.Do(ctx, "DELETE", base+"/service_users/robot/keys/"+key.ID, nil, nil), sft.NotFound)
	e.Do("DELETE", "/service_users/robot2/keys/"+key.ID, nil, nil)
	wantCode(t, "a token by a deleted key", use(b), sft.SignIn)
	wantCode(t, "a deleted key", second(ask("main", key.ID, key.Secret)), sft.SignIn)
	e.Do("POST", "/service_users/robot2/keys", nil, &key)
	b = e.Bearer(key.ID, key.Secret)
	e.Do("PUT", "/users/robot2", map[string]string{"status": "DISABLED"}, nil)
	wantCode(t, "a token of a disabled service user", use(b), sft.SignIn)
	wantCode(t, "a key of a disabled service user", second(ask("main", key.ID, key.Secret)), sft.SignIn)

	var err error
	for range 100 {
		_, err = ask("main", "x", "x")
	}
	wantCode(t, "the hundredth try", err, sft.TooMany)
}

func second[T any](_ T, err error) error { return err }

// send sends a request that was signed for something, perhaps something else.
func send(t *testing.T, e *testenv.Env, method, path string, body []byte, header string) (sft.Code, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, e.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", header)
	resp, err := e.HTTP().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode < 300 {
		return "", string(b)
	}
	for _, c := range sft.Codes {
		if strings.Contains(string(b), `"code":"`+string(c.Code)+`"`) {
			if c.Status != resp.StatusCode {
				t.Errorf("%s has status %d", c.Code, resp.StatusCode)
			}
			return c.Code, string(b)
		}
	}
	return "?", string(b)
}

func TestSignedRequests(t *testing.T) { testenv.Each(t, signedRequests) }

func signedRequests(t *testing.T, e *testenv.Env) {
	c := e.Client(testenv.Owner)
	path := base + "/groups?"
	sign := func(method, path, body string, at time.Time, key *ecdsa.PrivateKey, aud string) string {
		t.Helper()
		h, err := api.Sign(key, c.Issuer, aud, method, path, []byte(body), at)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	now := e.Clock.Now()
	body := `{"name":"g1"}`
	good := sign("POST", path, body, now, c.Key, e.URL)
	stranger, _ := testenv.Key(t)
	groups := func() int {
		var l api.List[sft.Group]
		e.Do("GET", "/groups", nil, &l)
		return len(l.List)
	}
	before := groups()
	for _, tt := range []struct {
		name, method, path, body, header string
		want                             sft.Code
	}{
		{"another body", "POST", path, `{"name":"g2"}`, good, sft.SignIn},
		{"no body", "POST", path, "", good, sft.SignIn},
		{"another path", "POST", base + "/projects?", body, good, sft.SignIn},
		{"another query", "POST", base + "/groups?x=2", body, good, sft.SignIn},
		{"no query", "POST", base + "/groups", body, good, sft.SignIn},
		{"another spelling of the path", "POST", base + "/%67roups?", body, good, sft.SignIn},
		{"another method", "PUT", base + "/groups/everyone?", body, good, sft.SignIn},
		{"another key", "POST", path, body, sign("POST", path, body, now, stranger, e.URL), sft.SignIn},
		{"another platform", "POST", path, body, sign("POST", path, body, now, c.Key, "https://other.example"), sft.SignIn},
		{"two minutes old", "POST", path, body, sign("POST", path, body, now.Add(-2*time.Minute), c.Key, e.URL), sft.ClockSkew},
		{"from the future", "POST", path, body, sign("POST", path, body, now.Add(2*time.Minute), c.Key, e.URL), sft.ClockSkew},
		{"as it was signed", "POST", path, body, good, ""},
		{"replayed", "POST", path, body, good, sft.Replayed},
	} {
		if got, reply := send(t, e, tt.method, tt.path, []byte(tt.body), tt.header); got != tt.want {
			t.Errorf("%s: %s, want %q", tt.name, reply, tt.want)
		}
	}
	if n := groups() - before; n != 1 {
		t.Errorf("%d groups were made, want 1", n)
	}
	// What only reads may come twice within its minute.
	read := sign("GET", base+"/groups", "", now, c.Key, e.URL)
	for range 2 {
		if got, reply := send(t, e, "GET", base+"/groups", nil, read); got != "" {
			t.Errorf("a request that reads: %s", reply)
		}
	}
	// A key speaks for its own kind of device only.
	s := e.Server(testenv.Project, testenv.Facts("web01"))
	for issuer, key := range map[string]*ecdsa.PrivateKey{"server:" + c.ID: c.Key, "client:" + s.ID: s.Key, "client:" + c.ID: s.Key, "nobody": c.Key, "client:\x00": c.Key, "client:": c.Key} {
		d := e.Signed(key, issuer)
		if err := d.Do(t.Context(), "GET", base+"/groups", nil, nil); err == nil {
			t.Errorf("a request as %q was answered", issuer)
		}
		if err := d.Do(t.Context(), "GET", "/v1/agent/state", nil, nil); err == nil {
			t.Errorf("an agent's request as %q was answered", issuer)
		}
	}
}

// A client whose clock is off corrects itself by the platform's, within
// bounds, and beyond them names both.
func TestClockSkew(t *testing.T) { testenv.Each(t, clockSkew) }

func clockSkew(t *testing.T, e *testenv.Env) {
	c := e.Client("ann")
	for _, tt := range []struct {
		off  time.Duration
		want string
	}{
		{0, ""}, {45 * time.Second, ""}, {-45 * time.Second, ""}, {10 * time.Minute, ""}, {-10 * time.Minute, ""},
		{20 * time.Minute, "this machine's clock says 2026-03-01T09:20:00Z, the platform's says 2026-03-01T09:00:00Z"},
		{-20 * time.Minute, "this machine's clock says 2026-03-01T08:40:00Z, the platform's says 2026-03-01T09:00:00Z"},
	} {
		d := e.Signed(c.Key, c.Issuer)
		d.Clock = &api.Clock{Machine: func() time.Time { return e.Clock.Now().Add(tt.off) }}
		http, err := api.NewHTTP(e.CA, nil, d.Clock)
		if err != nil {
			t.Fatal(err)
		}
		d.HTTP = http
		defer http.CloseIdleConnections()
		err = d.Do(t.Context(), "GET", base+"/servers", nil, nil)
		if tt.want != "" {
			wantCode(t, tt.off.String(), err, sft.ClockSkew)
			if err != nil && err.Error() != tt.want {
				t.Errorf("%s off: %v, want %s", tt.off, err, tt.want)
			}
			continue
		}
		wantCode(t, tt.off.String()+" off", err, "")
		if tt.off.Abs() > time.Minute && d.Clock.Offset() != -tt.off {
			t.Errorf("%s off: the correction is %s", tt.off, d.Clock.Offset())
		}
	}
}

// Two platforms do not take each other's devices, nor tell them that they
// were deleted.
func TestAClientOfAnotherPlatform(t *testing.T) { testenv.Each(t, aClientOfAnotherPlatform) }

func aClientOfAnotherPlatform(t *testing.T, other *testenv.Env) {
	e := testenv.New(t)
	c := e.Client("ann")
	d := other.Signed(c.Key, c.Issuer)
	d.Audience = e.URL
	wantCode(t, "a client of another platform", d.Do(t.Context(), "GET", base+"/servers", nil, nil), sft.SignIn)
	d.Audience = ""
	wantCode(t, "a client that nobody knows", d.Do(t.Context(), "GET", base+"/servers", nil, nil), sft.Revoked)
}
