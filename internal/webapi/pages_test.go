package webapi_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"sft"
	"sft/internal/api"
	"sft/internal/platform"
	"sft/internal/testenv"
	"sft/internal/webapi"
)

// A browser keeps cookies, sends what a browser sends with a form, and
// follows no redirect by itself.
type browser struct {
	*http.Client
	t *testing.T
	e *testenv.Env
}

// A page is what the browser shows.
type page struct {
	status int
	to     string // where it is led
	html   string
	header http.Header
}

func newBrowser(t *testing.T, e *testenv.Env) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &browser{&http.Client{Jar: jar, Transport: e.HTTP().Transport, CheckRedirect: e.HTTP().CheckRedirect}, t, e}
}

func (b *browser) do(r *http.Request) page {
	b.t.Helper()
	resp, err := b.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	html, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	if resp.StatusCode < 300 || resp.StatusCode >= 400 {
		for name, want := range map[string]string{"X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Content-Type": "text/html; charset=utf-8",
			"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
			"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self' http://127.0.0.1:*; frame-ancestors 'none'; base-uri 'none'"} {
			if got := resp.Header.Get(name); got != want {
				b.t.Errorf("%s %s: %s is %q", r.Method, r.URL.Path, name, got)
			}
		}
		if strings.Contains(string(html), "<script") {
			b.t.Errorf("%s %s holds a script", r.Method, r.URL.Path)
		}
	}
	return page{resp.StatusCode, resp.Header.Get("Location"), string(html), resp.Header}
}

func (b *browser) get(path string) page {
	b.t.Helper()
	if strings.HasPrefix(path, "/") {
		path = b.e.URL + path
	}
	r, err := http.NewRequestWithContext(b.t.Context(), "GET", path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.do(r)
}

func (b *browser) post(path string, form url.Values) page {
	b.t.Helper()
	return b.postFrom(path, form, map[string]string{"Origin": b.e.URL, "Sec-Fetch-Site": "same-origin"})
}

func (b *browser) postFrom(path string, form url.Values, header map[string]string) page {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), "POST", b.e.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for k, v := range header {
		r.Header.Set(k, v)
	}
	return b.do(r)
}

func (b *browser) signIn(user string) {
	u, err := url.Parse(b.e.URL)
	if err != nil {
		b.t.Fatal(err)
	}
	c := b.e.Cookie(user)
	c.Secure, c.Path = true, "/"
	b.Jar.SetCookies(u, []*http.Cookie{c})
}

func (p page) want(t *testing.T, what string, status int, to string, holds ...string) {
	t.Helper()
	if p.status != status || p.to != to {
		t.Errorf("%s: %d to %q, want %d to %q\n%s", what, p.status, p.to, status, to, p.html)
	}
	for _, s := range holds {
		if !strings.Contains(p.html, s) {
			t.Errorf("%s: the page does not say %q:\n%s", what, s, p.html)
		}
	}
}

var hidden = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)"`)

// form returns the hidden fields of the page's form.
func (p page) form() url.Values {
	f := url.Values{}
	for _, m := range hidden.FindAllStringSubmatch(p.html, -1) {
		f.Set(m[1], strings.NewReplacer("&#43;", "+", "&amp;", "&", "&#34;", `"`, "&#39;", "'", "&lt;", "<", "&gt;", ">").Replace(m[2]))
	}
	return f
}

func with(f url.Values, kv ...string) url.Values {
	out := url.Values{}
	for k, v := range f {
		out[k] = v
	}
	for i := 0; i < len(kv); i += 2 {
		out.Set(kv[i], kv[i+1])
	}
	return out
}

const pw = "correct horse battery"

func authorizeQuery(hostname string) url.Values {
	return url.Values{"response_type": {"code"}, "client_id": {"sft"}, "code_challenge_method": {"S256"}, "code_challenge": {strings.Repeat("c", 43)},
		"redirect_uri": {"http://127.0.0.1:4444/callback"}, "state": {"state-of-sixteen-or-more"}, "device_key_sha256": {strings.Repeat("ab", 32)}, "hostname": {hostname}, "os": {"Debian 12"}}
}

// From the link that init printed to the code that a client redeems, without
// a script.
func TestFromTheFirstLinkToAnApprovedDevice(t *testing.T) {
	e := testenv.New(t)
	b := newBrowser(t, e)
	welcome := b.get(e.Init.FirstUseURL)
	welcome.want(t, "the link", 200, "", "Welcome, olive", `autocomplete="new-password"`)
	b.get("/first-use?secret=x").want(t, "another link", 403, "", "this link was used already, or is too old")
	form := welcome.form()
	b.post("/first-use", with(form, "password", pw, "again", pw+"x")).want(t, "two passwords", 400, "", "the two passwords differ")
	short := b.post("/first-use", with(form, "password", "short", "again", "short"))
	short.want(t, "a short password", 400, "", "the password is too short")
	done := b.post("/first-use", with(short.form(), "password", pw, "again", pw))
	done.want(t, "a good password", 303, "/")
	if got := done.header.Get("Set-Cookie"); !regexp.MustCompile(`^__Host-sft=[A-Za-z0-9_-]{43}; Path=/; HttpOnly; Secure; SameSite=Lax$`).MatchString(got) {
		t.Errorf("the cookie is %q", got)
	}
	b.get("/").want(t, "home", 200, "", `<strong id="user">olive</strong>`, "<strong>main</strong>")
	b.post("/first-use", with(form, "password", pw, "again", pw)).want(t, "the link again", 403, "", "this link was used already")

	out := b.post("/signout", nil)
	out.want(t, "signing out", 303, "/signin")
	b.get("/").want(t, "home, signed out", 303, "/signin?next=%2F")

	// Somebody who is not signed in comes back to the request after it.
	target := "/authorize?" + authorizeQuery("laptop").Encode()
	led := b.get(target)
	led.want(t, "approving, signed out", 303, "/signin?next="+url.QueryEscape(target))
	sign := b.get(led.to)
	sign.want(t, "the sign-in page", 200, "", `name="team" value="main"`, `autocomplete="current-password"`)
	wrong := b.post("/signin", with(sign.form(), "team", "main", "user", "olive", "password", "wrong"))
	wrong.want(t, "a wrong password", 401, "", "the team, user name or password is wrong", `value="olive"`)
	if strings.Contains(wrong.html, `"wrong"`) {
		t.Error("the page holds the password")
	}
	in := b.post("/signin", with(wrong.form(), "team", "main", "user", "olive", "password", pw))
	in.want(t, "the right password", 303, target)
	ask := b.get(in.to)
	ask.want(t, "the request", 200, "", "Approve this device?", `<dd id="device">laptop</dd>`, "olive, team main", "<code>abababababababab…</code>",
		"Approve only if you started this yourself a moment ago, and the key is the one that your terminal shows.")
	if strings.Contains(ask.html, "Asks from") { // it would be this browser's own address
		t.Errorf("the page names an address:\n%s", ask.html)
	}
	b.post("/authorize", with(ask.form(), "answer", "refuse")).want(t, "refusing", 303, "http://127.0.0.1:4444/callback?error=access_denied&state=state-of-sixteen-or-more")
	yes := b.post("/authorize", with(ask.form(), "answer", "approve"))
	if !regexp.MustCompile(`^http://127\.0\.0\.1:4444/callback\?code=[A-Za-z0-9_-]{43}&state=state-of-sixteen-or-more$`).MatchString(yes.to) || yes.status != 303 {
		t.Errorf("approving: %d to %s", yes.status, yes.to)
	}
	b.post("/authorize", ask.form()).want(t, "no answer", 303, "http://127.0.0.1:4444/callback?error=access_denied&state=state-of-sixteen-or-more")
}

func TestRequestsThatCannotBeApproved(t *testing.T) {
	e := testenv.New(t)
	b := newBrowser(t, e)
	b.signIn(testenv.Owner)
	for _, tt := range []struct {
		name, field, value string
		status             int
		says               string
	}{
		{"to another machine", "redirect_uri", "https://evil.example/callback", 400, "it would send the answer elsewhere"},
		{"nowhere", "redirect_uri", "", 400, "it would send the answer elsewhere"},
		{"another response", "response_type", "token", 400, "the request is not complete"},
		{"a plain challenge", "code_challenge_method", "plain", 400, "the request is not complete"},
		{"another client", "client_id", "x", 400, "the request is not complete"},
		{"no challenge", "code_challenge", "", 400, "the request is not complete"},
		{"no state", "state", "", 400, "the request is not complete"},
		{"a hostile host name", "hostname", "a\nb", 400, "description is not readable"},
		{"for another team", "team", "other", 403, "you are signed in to team &#34;main&#34;"},
	} {
		q := authorizeQuery("laptop")
		q.Set(tt.field, tt.value)
		b.get("/authorize?"+q.Encode()).want(t, "GET "+tt.name, tt.status, "", tt.says)
		if tt.status == 400 && tt.field != "response_type" && tt.field != "code_challenge_method" && tt.field != "client_id" {
			q.Set("answer", "approve")
			b.post("/authorize", q).want(t, "POST "+tt.name, tt.status, "", tt.says)
			q.Set("answer", "refuse") // nor does a refusal lead elsewhere
			b.post("/authorize", q).want(t, "refusing "+tt.name, tt.status, "", tt.says)
		}
	}
}

func TestWhatAHostIsCalledIsOnlyText(t *testing.T) {
	e := testenv.New(t)
	b := newBrowser(t, e)
	b.signIn(testenv.Owner)
	const hostile = `"><img src=x onerror=alert(1)><b>'`
	p := b.get("/authorize?" + authorizeQuery(hostile).Encode())
	p.want(t, "approving", 200, "", "&lt;img src=x onerror=alert(1)&gt;")
	_, spki := testenv.Key(t)
	var r api.DeviceCodeReply
	if err := e.Anonymous().Do(t.Context(), "POST", "/v1/clients/device_code", api.DeviceCodeRequest{Team: "main", DeviceKey: spki, Device: api.DeviceInfo{Hostname: hostile, OS: hostile}}, &r); err != nil {
		t.Fatal(err)
	}
	d := b.post("/device", url.Values{"code": {r.UserCode}})
	d.want(t, "a typed code", 200, "", "&lt;img src=x onerror=alert(1)&gt;")
	s := b.get("/signin?next=" + url.QueryEscape("/"+hostile))
	s.want(t, "the sign-in page", 200, "")
	w := newBrowser(t, e).post("/signin", url.Values{"team": {hostile}, "user": {hostile}, "password": {"x"}})
	w.want(t, "a wrong name", 401, "", "&lt;img")
	c := b.post("/device", url.Values{"code": {hostile}})
	for _, p := range []page{p, d, s, w, c} {
		if strings.Contains(p.html, "<img") || strings.Contains(p.html, "<b>") {
			t.Errorf("the page holds markup of others:\n%s", p.html)
		}
	}
	if got := p.form().Get("hostname"); got != hostile {
		t.Errorf("the form sends %q", got)
	}
}

func TestTheDevicePages(t *testing.T) {
	e := testenv.New(t)
	ask := func() (r api.DeviceCodeReply, spki []byte) {
		_, spki = testenv.Key(t)
		if err := e.Anonymous().Do(t.Context(), "POST", "/v1/clients/device_code", api.DeviceCodeRequest{Team: "main", DeviceKey: spki, Device: api.DeviceInfo{Hostname: "pi"}}, &r); err != nil {
			t.Fatal(err)
		}
		return r, spki
	}
	b := newBrowser(t, e)
	b.get("/device").want(t, "signed out", 303, "/signin?next=%2Fdevice")
	b.signIn(testenv.Owner)
	p := b.get("/device?code=BCDF-GHJK&user_code=BCDF-GHJK")
	p.want(t, "signed in", 200, "", "Type the code")
	if strings.Contains(p.html, "BCDF") {
		t.Error("the code is filled in")
	}
	b.post("/device", url.Values{"code": {"BBBB-BBBB"}}).want(t, "an unknown code", 404, "", "there is no such code, or it is too old")
	r, spki := ask()
	shown := b.post("/device", url.Values{"code": {strings.ToLower(r.UserCode)}})
	shown.want(t, "the code", 200, "", `<dd id="device">pi</dd>`, "<dt>Asks from</dt><dd>127.0.0.1</dd>", "<code>"+keyOf(spki)+"…</code>", "If somebody sent it to you, refuse", `id="approve"`)
	b.post("/device", with(shown.form(), "answer", "approve")).want(t, "approving", 200, "", "The device is approved")
	if err := e.Anonymous().Do(t.Context(), "POST", "/v1/clients/enroll", api.EnrollClientRequest{DeviceCode: r.DeviceCode, DeviceKey: spki}, nil); err != nil {
		t.Error(err)
	}
	r, _ = ask()
	b.post("/device", url.Values{"code": {r.UserCode}, "answer": {"refuse"}}).want(t, "refusing", 200, "", "The device was refused")
	e.Clock.Advance(3 * 60e9)
	b.get("/device").want(t, "three minutes after the sign-in", 303, "/signin?next=%2Fdevice")
	b.post("/device", url.Values{"code": {r.UserCode}, "answer": {"approve"}}).want(t, "approving then", 303, "/signin?next=%2Fdevice")
	b.get("/").want(t, "home then", 200, "")
}

// A form from elsewhere does nothing, whoever is signed in.
func TestFormsFromOtherSites(t *testing.T) {
	e := testenv.New(t)
	b := newBrowser(t, e)
	b.signIn(testenv.Owner)
	approve := authorizeQuery("laptop")
	approve.Set("answer", "approve")
	forms := map[string]url.Values{"/signin": {"team": {"main"}, "user": {"olive"}, "password": {pw}}, "/signout": {}, "/authorize": approve,
		"/device": {"code": {"BBBB-BBBB"}}, "/first-use": {"secret": {"x"}}}
	events := len(e.Events())
	for path, form := range forms {
		for what, header := range map[string]map[string]string{
			"cross-site":              {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
			"same-site":               {"Sec-Fetch-Site": "same-site"},
			"another origin":          {"Origin": "https://evil.example"},
			"the origin by http":      {"Sec-Fetch-Site": "cross-site", "Origin": strings.Replace(e.URL, "https", "http", 1)},
			"no origin that is known": {"Origin": "null"},
		} {
			b.postFrom(path, form, header).want(t, path+" from "+what, 403, "", "this form was sent by another site")
		}
	}
	if n := len(e.Events()) - events; n != 0 {
		t.Errorf("forms from elsewhere left %d events", n)
	}
	b.get("/").want(t, "home", 200, "", "olive")
}

// Where the browser is led after a sign-in, whatever was asked for.
func TestASignInLeadsNowhereElse(t *testing.T) {
	for next, want := range map[string]string{
		"/device":                       "/device",
		"/authorize?a=b&c=d":            "/authorize?a=b&c=d",
		"":                              "/",
		"//evil.example":                "/",
		"///evil.example":               "/",
		`/\evil.example`:                "/",
		`\\evil.example`:                "/",
		"https://evil.org":              "/",
		"javascript:alert(1)":           "/",
		"evil.example":                  "/",
		"/\t/evil.example":              "/",
		"/\n/evil.example":              "/",
		"/\r\nSet-Cookie: a=b":          "/",
		"/.//evil.example":              "/evil.example",
		"/x/..//evil.example":           "/evil.example",
		"/%0a/evil.example":             "/%0a/evil.example",
		"/%5cevil.example":              "/%5cevil.example",
		"/" + strings.Repeat("x", 5000): "/",
	} {
		w := httptest.NewRecorder()
		http.Redirect(w, httptest.NewRequest("POST", "/signin", nil), webapi.Next(next), http.StatusSeeOther)
		if got := w.Header().Get("Location"); got != want {
			t.Errorf("next=%.30q leads to %q, want %q", next, got, want)
		}
	}

	e := testenv.New(t)
	if _, err := e.Platform.SetFirstPassword(t.Context(), platform.Actor{}, secretOf(t, e.Init.FirstUseURL), secret(pw)); err != nil {
		t.Fatal(err)
	}
	b := newBrowser(t, e)
	for _, next := range []string{"//evil.example", "https://evil.example"} {
		form := b.get("/signin?next=" + url.QueryEscape(next)).form()
		b.post("/signin", with(form, "team", "main", "user", "olive", "password", pw)).want(t, "next="+next, 303, "/")
		b.post("/signin", with(form, "next", next, "team", "main", "user", "olive", "password", pw)).want(t, "posting next="+next, 303, "/")
	}
}

func TestCookiesThatAreNobodys(t *testing.T) {
	e := testenv.New(t)
	for _, value := range []string{"", "x", strings.Repeat("x", 3000)} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", e.URL+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.AddCookie(&http.Cookie{Name: "__Host-sft", Value: value})
		newBrowser(t, e).do(r).want(t, "a cookie of "+value, 303, "/signin?next=%2F")
	}
	b := newBrowser(t, e)
	b.signIn(testenv.Owner)
	b.postFrom("/signin", url.Values{"x": {strings.Repeat("x", 65<<10)}}, nil).want(t, "a form of 65 KiB", 400, "", "the form is too long")
}

// keyOf is what people compare of a device's key.
func keyOf(spki []byte) string { return fmt.Sprintf("%x", sha256.Sum256(spki))[:16] }

func secret(s string) sft.Secret { return sft.NewSecret(s) }

func secretOf(t *testing.T, link string) sft.Secret {
	t.Helper()
	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	return secret(u.Query().Get("secret"))
}
