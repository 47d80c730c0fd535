package platform_test

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testenv"
)

var here = platform.Actor{Addr: "10.1.2.3"}

func linkSecret(t *testing.T, link string) sft.Secret {
	t.Helper()
	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	return sft.NewSecret(u.Query().Get("secret"))
}

// newUser makes a person and returns the secret of the first-use link.
func newUser(t *testing.T, e *testenv.Env, name string) sft.Secret {
	t.Helper()
	var r platform.CreateUserReply
	e.Do("POST", "/users", map[string]string{"name": name}, &r)
	return linkSecret(t, r.FirstUseURL)
}

func TestAFirstUseLinkWorksOnce(t *testing.T) { testenv.Each(t, firstUseLinkWorksOnce) }

func firstUseLinkWorksOnce(t *testing.T, e *testenv.Env) {
	p, ctx := e.Platform, t.Context()
	first := linkSecret(t, e.Init.FirstUseURL)
	pw := sft.NewSecret("correct horse battery")
	refused := func(what string, secret, pw sft.Secret, want sft.Code) {
		t.Helper()
		_, err := p.SetFirstPassword(ctx, here, secret, pw)
		wantCode(t, what, err, want)
	}
	refused("another link", sft.NewSecret("x"), pw, sft.Denied)
	refused("no link", sft.Secret{}, pw, sft.Denied)
	refused("a short password", first, sft.NewSecret("short"), sft.Invalid)
	if name, err := p.FirstUse(ctx, first); name != testenv.Owner || err != nil {
		t.Errorf("FirstUse = %q, %v", name, err)
	}

	var cookie sft.Secret
	events := since(e, func() {
		var err error
		if cookie, err = p.SetFirstPassword(ctx, here, first, pw); err != nil {
			t.Fatal(err)
		}
	})
	if told(events) != "password.change success" {
		t.Errorf("setting the password is told as %s", told(events))
	}
	a, team, at, err := p.Web(ctx, cookie, "x")
	if err != nil || a.Name != testenv.Owner || team != testenv.Team || !at.Equal(e.Clock.Now()) {
		t.Errorf("the link signs in as %+v in %q, %v", a, team, err)
	}
	refused("the link again", first, pw, sft.Denied)
	_, err = p.FirstUse(ctx, first)
	wantCode(t, "looking at the link again", err, sft.Denied)

	expired := newUser(t, e, "ann")
	e.Clock.Advance(72*time.Hour + time.Second)
	refused("a link at its end", expired, pw, sft.Denied)
	e.Service = e.Bearer(e.Init.Key.ID, e.Init.Key.Secret) // the token has ended too
	var r platform.CreateUserReply
	e.Do("POST", "/users/ann/first_use", nil, &r)
	one := linkSecret(t, r.FirstUseURL)
	e.Do("POST", "/users/ann/first_use", nil, &r)
	two := linkSecret(t, r.FirstUseURL)
	refused("a link before the newest", one, pw, sft.Denied)
	e.Do("PUT", "/users/ann", map[string]string{"status": "DISABLED"}, nil)
	refused("the link of a disabled user", two, pw, sft.Denied)
	e.Do("PUT", "/users/ann", map[string]string{"status": "ACTIVE"}, nil)
	refused("that link when the user is enabled again", two, pw, sft.Denied)

	// A new password ends what the old one began.
	var again platform.CreateUserReply
	e.Do("POST", "/users/olive/first_use", nil, &again)
	before := e.Cookie(testenv.Owner)
	if _, err := p.SetFirstPassword(ctx, here, linkSecret(t, again.FirstUseURL), pw); err != nil {
		t.Fatal(err)
	}
	_, _, _, err = p.Web(ctx, sft.NewSecret(before.Value), "")
	wantCode(t, "a web session from before a new password", err, sft.SignIn)
}

// One person who mistypes does not keep others from their first sign-in.
func TestFirstUsesDoNotWaitForOneAnother(t *testing.T) {
	testenv.Each(t, firstUsesDoNotWaitForOneAnother)
}

func firstUsesDoNotWaitForOneAnother(t *testing.T, e *testenv.Env) {
	ann, bob := newUser(t, e, "ann"), newUser(t, e, "bob")
	var err error
	for range 20 {
		_, err = e.Platform.SetFirstPassword(t.Context(), here, ann, sft.NewSecret("short"))
	}
	wantCode(t, "the twentieth try", err, sft.TooMany)
	_, err = e.Platform.SetFirstPassword(t.Context(), here, bob, sft.NewSecret("short"))
	wantCode(t, "somebody else's first", err, sft.Invalid)
}

func TestSignIn(t *testing.T) { testenv.Each(t, signIn) }

func signIn(t *testing.T, e *testenv.Env) {
	p, ctx := e.Platform, t.Context()
	pw := sft.NewSecret("correct horse battery")
	if _, err := p.SetFirstPassword(ctx, here, linkSecret(t, e.Init.FirstUseURL), pw); err != nil {
		t.Fatal(err)
	}
	e.User("nopassword")
	for _, tt := range []struct {
		name, team, user, pw string
		want                 string
	}{
		{"right", "main", "olive", pw.Reveal(), ""},
		{"right, in capitals", "MAIN", "Olive", pw.Reveal(), ""},
		{"a wrong password", "main", "olive", "wrong", "the team, user name or password is wrong"},
		{"a wrong name", "main", "nobody", pw.Reveal(), "the team, user name or password is wrong"},
		{"a wrong team", "other", "olive", pw.Reveal(), "the team, user name or password is wrong"},
		{"nobody", "", "", "", "the team, user name or password is wrong"},
		{"a user without a password", "main", "nopassword", "", "the team, user name or password is wrong"},
		{"a service user", "main", testenv.ServiceUser, "", "the team, user name or password is wrong"},
		{"a name that cannot be", "main", "a\x00b\xff", "x", "the team, user name or password is wrong"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			events := since(e, func() {
				cookie, err := p.SignIn(ctx, here, tt.team, tt.user, sft.NewSecret(tt.pw))
				got := ""
				if err != nil {
					got = err.Error()
				}
				if got != tt.want || cookie.Empty() != (tt.want != "") {
					t.Errorf("SignIn = %q, want %q", got, tt.want)
				}
				if tt.want != "" {
					wantCode(t, "SignIn", err, sft.SignIn)
				}
			})
			want := "auth_token.issue success"
			if tt.want != "" {
				want = "auth_token.issue refused"
			}
			if strings.EqualFold(tt.team, "main") && told(events) != want {
				t.Errorf("it is told as %q, want %q", told(events), want)
			}
		})
	}

	// A session lasts ten hours, and ends when its person signs out.
	cookie, err := p.SignIn(ctx, here, "main", "olive", pw)
	if err != nil {
		t.Fatal(err)
	}
	a, _, _, err := p.Web(ctx, cookie, "")
	wantCode(t, "a web session", err, "")
	_, _, _, err = p.Web(ctx, sft.NewSecret("x"), "")
	wantCode(t, "another cookie", err, sft.SignIn)
	events := since(e, func() {
		for range 2 {
			if err := p.SignOut(ctx, a, cookie); err != nil {
				t.Error(err)
			}
		}
	})
	if told(events) != "auth_token.end success" {
		t.Errorf("signing out twice is told as %q", told(events))
	}
	_, _, _, err = p.Web(ctx, cookie, "")
	wantCode(t, "a web session after signing out", err, sft.SignIn)
	late := e.Owner()
	e.Clock.Advance(10 * time.Hour)
	_, _, _, err = p.Web(ctx, sft.NewSecret(late.Value), "")
	wantCode(t, "a web session after ten hours", err, sft.SignIn)

	// A place is closed to the account for a while after some tries, right ones
	// too. Its owner still comes in from elsewhere.
	for range 10 {
		_, err = p.SignIn(ctx, here, "main", "olive", sft.NewSecret("wrong"))
	}
	wantCode(t, "the tenth try", err, sft.TooMany)
	_, err = p.SignIn(ctx, here, "Main", "OLIVE", pw)
	wantCode(t, "the right password then", err, sft.TooMany)
	_, err = p.SignIn(ctx, platform.Actor{Addr: "10.9.9.9"}, "main", "olive", pw)
	wantCode(t, "the right password from elsewhere", err, "")
	e.Clock.Advance(15 * time.Second)
	_, err = p.SignIn(ctx, here, "main", "olive", pw)
	wantCode(t, "the right password a little later", err, "")
}

func TestADisabledUserIsSignedOut(t *testing.T) { testenv.Each(t, disabledUserIsSignedOut) }

func disabledUserIsSignedOut(t *testing.T, e *testenv.Env) {
	e.User("ann")
	cookie := sft.NewSecret(e.Cookie("ann").Value)
	e.Do("PUT", "/users/ann", map[string]string{"status": "DISABLED"}, nil)
	_, _, _, err := e.Platform.Web(t.Context(), cookie, "")
	wantCode(t, "a disabled user's web session", err, sft.SignIn)
	e.Do("PUT", "/users/ann", map[string]string{"status": "ACTIVE"}, nil)
	_, _, _, err = e.Platform.Web(t.Context(), cookie, "")
	wantCode(t, "that session when the user is enabled again", err, sft.SignIn)
}

func enrolment(a testenv.Approval, spki []byte) api.EnrollClientRequest {
	return api.EnrollClientRequest{Code: a.Code, CodeVerifier: a.Verifier, RedirectURI: a.RedirectURI, DeviceKey: spki,
		Device: api.DeviceInfo{Hostname: "laptop", OS: "Debian", Version: "1"}}
}

func TestEnrollAClientByACode(t *testing.T) { testenv.Each(t, enrollAClientByACode) }

func enrollAClientByACode(t *testing.T, e *testenv.Env) {
	e.User("ann")
	cookie := e.Cookie("ann")
	_, spki := testenv.Key(t)
	_, other := testenv.Key(t)
	enroll := func(r api.EnrollClientRequest) (api.EnrollClientReply, error) {
		var reply api.EnrollClientReply
		return reply, e.Anonymous().Do(t.Context(), "POST", "/v1/clients/enroll", r, &reply)
	}
	for _, tt := range []struct {
		name   string
		change func(*api.EnrollClientRequest)
		want   sft.Code
	}{
		{"another code", func(r *api.EnrollClientRequest) { r.Code = "x" }, sft.Denied},
		{"no code", func(r *api.EnrollClientRequest) { r.Code = "" }, sft.Denied},
		{"a code that cannot be", func(r *api.EnrollClientRequest) { r.Code = "\x00" }, sft.Denied},
		{"the code as a device code", func(r *api.EnrollClientRequest) { r.Code, r.DeviceCode = "", r.Code }, sft.Denied},
		{"another verifier", func(r *api.EnrollClientRequest) { r.CodeVerifier += "x" }, sft.Denied},
		{"no verifier", func(r *api.EnrollClientRequest) { r.CodeVerifier = "" }, sft.Denied},
		{"another redirect", func(r *api.EnrollClientRequest) { r.RedirectURI = "http://127.0.0.1:1/callback" }, sft.Denied},
		{"another device key", func(r *api.EnrollClientRequest) { r.DeviceKey = other }, sft.Denied},
		{"no device key", func(r *api.EnrollClientRequest) { r.DeviceKey = nil }, sft.Invalid},
		{"a description with a newline", func(r *api.EnrollClientRequest) { r.Device.Hostname = "a\nb" }, sft.Invalid},
		{"a long description", func(r *api.EnrollClientRequest) { r.Device.OS = strings.Repeat("x", 101) }, sft.Invalid},
		{"as it was approved", func(r *api.EnrollClientRequest) {}, ""},
	} {
		r := enrolment(e.Approve(cookie, spki, ""), spki)
		good := r
		tt.change(&r)
		events := since(e, func() {
			reply, err := enroll(r)
			wantCode(t, tt.name, err, tt.want)
			if err == nil && (reply.User != "ann" || reply.Team != "main" || reply.URL != e.URL || !reply.SignedInUntil.Equal(e.Clock.Now().Add(10*time.Hour))) {
				t.Errorf("%s: %+v", tt.name, reply)
			}
		})
		if tt.want == "" {
			if told(events) != "client.enroll success" || events[0].Actor.Name != "ann" {
				t.Errorf("an enrolment is told as %+v", events)
			}
			_, err := enroll(good)
			wantCode(t, "the code again", err, sft.Denied)
			_, err = enroll(enrolment(e.Approve(cookie, spki, ""), spki))
			wantCode(t, "the same key with a new code", err, sft.Exists)
		}
	}

	late := enrolment(e.Approve(cookie, other, ""), other)
	e.Clock.Advance(time.Minute)
	_, err := enroll(late)
	wantCode(t, "a code after a minute", err, sft.Denied)

	gone := enrolment(e.Approve(e.Cookie("ann"), other, ""), other)
	e.Do("PUT", "/users/ann", map[string]string{"status": "DISABLED"}, nil)
	_, err = enroll(gone)
	wantCode(t, "a code of a user who was disabled since", err, sft.Denied)
}

func TestWhatCannotBeAuthorized(t *testing.T) { testenv.Each(t, whatCannotBeAuthorized) }

func whatCannotBeAuthorized(t *testing.T, e *testenv.Env) {
	ann := e.Client("ann")
	bob, _, _, err := e.Platform.Web(t.Context(), sft.NewSecret(e.Owner().Value), "")
	if err != nil {
		t.Fatal(err)
	}
	good := platform.Authorization{Team: "main", RedirectURI: "http://127.0.0.1:80/callback", State: strings.Repeat("s", 16),
		Challenge: strings.Repeat("c", 43), KeySHA256: strings.Repeat("a", 64), Device: api.DeviceInfo{Hostname: "laptop"}}
	tests := []struct {
		name   string
		change func(*platform.Authorization)
		want   sft.Code
	}{
		{"as sft asks", func(z *platform.Authorization) {}, ""},
		{"over IPv6, which no policy of a page can name", func(z *platform.Authorization) { z.RedirectURI = "http://[::1]:8080/callback" }, sft.Invalid},
		{"to another machine", func(z *platform.Authorization) { z.RedirectURI = "http://evil.example:80/callback" }, sft.Invalid},
		{"to a name that begins like loopback", func(z *platform.Authorization) { z.RedirectURI = "http://127.0.0.1.evil.example:80/callback" }, sft.Invalid},
		{"to another machine behind a user name", func(z *platform.Authorization) { z.RedirectURI = "http://127.0.0.1:80@evil.example/callback" }, sft.Invalid},
		{"to another path", func(z *platform.Authorization) { z.RedirectURI = "http://127.0.0.1:80/callback/../x" }, sft.Invalid},
		{"with a query", func(z *platform.Authorization) { z.RedirectURI += "?x=1" }, sft.Invalid},
		{"with a newline", func(z *platform.Authorization) { z.RedirectURI += "\n" }, sft.Invalid},
		{"by https", func(z *platform.Authorization) { z.RedirectURI = "https://127.0.0.1:80/callback" }, sft.Invalid},
		{"to a script", func(z *platform.Authorization) { z.RedirectURI = "javascript:alert(1)" }, sft.Invalid},
		{"nowhere", func(z *platform.Authorization) { z.RedirectURI = "" }, sft.Invalid},
		{"a short state", func(z *platform.Authorization) { z.State = "s" }, sft.Invalid},
		{"a long state", func(z *platform.Authorization) { z.State = strings.Repeat("s", 201) }, sft.Invalid},
		{"no challenge", func(z *platform.Authorization) { z.Challenge = "" }, sft.Invalid},
		{"no key", func(z *platform.Authorization) { z.KeySHA256 = "" }, sft.Invalid},
		{"a hostile host name", func(z *platform.Authorization) { z.Device.Hostname = "a\x1b[2Jb" }, sft.Invalid},
		{"for another team", func(z *platform.Authorization) { z.Team = "other" }, sft.NotFound},
		{"for a client of somebody else", func(z *platform.Authorization) { z.ClientID = ann.ID }, sft.Denied},
		{"for a client that is not there", func(z *platform.Authorization) { z.ClientID = "no" }, sft.Denied},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			z := good
			tt.change(&z)
			to, err := e.Platform.Authorize(t.Context(), bob, z)
			wantCode(t, "Authorize", err, tt.want)
			if err == nil != strings.HasPrefix(to, z.RedirectURI+"?code=") || err != nil && to != "" {
				t.Errorf("it leads to %q", to)
			}
		})
	}
	_, err = e.Platform.Authorize(t.Context(), here, good)
	wantCode(t, "by nobody", err, sft.SignIn)
}

func TestEnrollAClientByATypedCode(t *testing.T) { testenv.Each(t, enrollAClientByATypedCode) }

func enrollAClientByATypedCode(t *testing.T, e *testenv.Env) {
	e.User("ann")
	p, ctx := e.Platform, t.Context()
	web := func(user string) (platform.Actor, time.Time) {
		t.Helper()
		a, _, at, err := p.Web(ctx, sft.NewSecret(e.Cookie(user).Value), "10.7.7.7")
		if err != nil {
			t.Fatal(err)
		}
		return a, at
	}
	ask := func() (api.DeviceCodeReply, []byte) {
		t.Helper()
		_, spki := testenv.Key(t)
		var r api.DeviceCodeReply
		if err := e.Anonymous().Do(ctx, "POST", "/v1/clients/device_code", api.DeviceCodeRequest{Team: "MAIN", DeviceKey: spki,
			Device: api.DeviceInfo{Hostname: "server-room", OS: "Debian"}}, &r); err != nil {
			t.Fatal(err)
		}
		return r, spki
	}
	enroll := func(r api.DeviceCodeReply, spki []byte) error {
		return e.Anonymous().Do(ctx, "POST", "/v1/clients/enroll", api.EnrollClientRequest{DeviceCode: r.DeviceCode, DeviceKey: spki}, nil)
	}

	r, spki := ask()
	if r.VerificationURI != e.URL+"/device" || r.ExpiresIn != 600 || r.Interval != 2 || len(r.UserCode) != 9 {
		t.Errorf("the reply is %+v", r)
	}
	wantCode(t, "before anybody has approved", enroll(r, spki), sft.Pending)
	ann, at := web("ann")
	d, err := p.Typed(ctx, ann, at, " "+strings.ToLower(strings.Replace(r.UserCode, "-", " ", 1)))
	if err != nil || d.Device.Hostname != "server-room" || d.Addr != "127.0.0.1" || !d.New {
		t.Errorf("Typed = %+v, %v", d, err)
	}
	events := since(e, func() {
		wantCode(t, "approving", p.AnswerDevice(ctx, ann, at, r.UserCode, true), "")
	})
	if told(events) != "auth_token.issue success" || events[0].Detail["from"] != "127.0.0.1" {
		t.Errorf("approving is told as %+v", events)
	}
	wantCode(t, "approving again", p.AnswerDevice(ctx, ann, at, r.UserCode, true), sft.NotFound)
	_, stolen := testenv.Key(t)
	wantCode(t, "with another key", enroll(r, stolen), sft.Denied)
	wantCode(t, "when approved", enroll(r, spki), "")
	wantCode(t, "again", enroll(r, spki), sft.Denied)

	e.Clock.Advance(time.Hour)
	e.Service = e.Bearer(e.Init.Key.ID, e.Init.Key.Secret)
	r, spki = ask()
	ann, at = web("ann")
	events = since(e, func() {
		wantCode(t, "refusing", p.AnswerDevice(ctx, ann, at, r.UserCode, false), "")
	})
	if told(events) != "auth_token.issue refused" {
		t.Errorf("refusing is told as %q", told(events))
	}
	wantCode(t, "when refused", enroll(r, spki), sft.Denied)

	r, _ = ask()
	e.Clock.Advance(2*time.Minute + time.Second)
	_, err = p.Typed(ctx, ann, at, r.UserCode)
	wantCode(t, "typed two minutes after the sign-in", err, sft.SignIn)
	wantCode(t, "approved two minutes after the sign-in", p.AnswerDevice(ctx, ann, at, r.UserCode, true), sft.SignIn)

	r, _ = ask()
	e.Clock.Advance(10 * time.Minute)
	ann, at = web("ann")
	_, err = p.Typed(ctx, ann, at, r.UserCode)
	wantCode(t, "typed after ten minutes", err, sft.NotFound)
	_, err = p.Typed(ctx, ann, at, "")
	wantCode(t, "nothing typed", err, sft.NotFound)

	// Of another team.
	foreign(t, e)
	r, _ = ask()
	zoe, err := findUser(t, e, "other", "zoe")
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Typed(ctx, platform.Actor{User: zoe.ID}, e.Clock.Now(), r.UserCode)
	wantCode(t, "typed by somebody of another team", err, sft.NotFound)

	// Guessing.
	e.Clock.Advance(time.Hour)
	r, _ = ask()
	ann, at = web("ann")
	for range 20 {
		_, err = p.Typed(ctx, ann, at, "BBBB-BBBB")
	}
	wantCode(t, "the twentieth guess", err, sft.TooMany)
	_, err = p.Typed(ctx, ann, at, r.UserCode)
	wantCode(t, "the right code then", err, sft.TooMany)
	for range 30 {
		err = e.Anonymous().Do(ctx, "POST", "/v1/clients/device_code", api.DeviceCodeRequest{Team: "main", DeviceKey: spki}, nil)
	}
	wantCode(t, "the thirtieth code from one address", err, sft.TooMany)

	e.Clock.Advance(time.Hour)
	for what, tt := range map[string]struct {
		r    api.DeviceCodeRequest
		want sft.Code
	}{
		"no team":            {api.DeviceCodeRequest{DeviceKey: spki}, sft.Invalid},
		"no key":             {api.DeviceCodeRequest{Team: "main"}, sft.Invalid},
		"a hostile hostname": {api.DeviceCodeRequest{Team: "main", DeviceKey: spki, Device: api.DeviceInfo{Hostname: "a\nb"}}, sft.Invalid},
	} {
		wantCode(t, "a code with "+what, e.Anonymous().Do(ctx, "POST", "/v1/clients/device_code", tt.r, nil), tt.want)
	}
	setTeam(t, e, func(team *sft.Team) { team.AllowDeviceCode = false })
	wantCode(t, "where the team does not allow it", e.Anonymous().Do(ctx, "POST", "/v1/clients/device_code", api.DeviceCodeRequest{Team: "main", DeviceKey: spki}, nil), sft.Denied)
}

func setTeam(t *testing.T, e *testenv.Env, f func(*sft.Team)) {
	t.Helper()
	if err := e.DB.Change(t.Context(), func(tx *store.Tx) (audit.Event, error) {
		team, err := tx.Team("main")
		if err != nil {
			return audit.Event{}, err
		}
		f(&team)
		return audit.Event{ID: audit.NewID(), Time: e.Clock.Now(), Kind: audit.UserUpdate, Actor: audit.Actor{Kind: "platform"}, Outcome: audit.Success}, tx.SaveTeam(team)
	}); err != nil {
		t.Fatal(err)
	}
}

// foreign makes a team "other" with an administrator, zoe.
func foreign(t *testing.T, e *testenv.Env) {
	t.Helper()
	if err := e.DB.Change(t.Context(), func(tx *store.Tx) (audit.Event, error) {
		team := sft.Team{ID: audit.NewID(), Name: "other", CreatedAt: e.Clock.Now(), ClientSession: 36000, WebSession: 36000, AllowDeviceCode: true}
		u := store.UserRecord{TeamID: team.ID}
		u.ID, u.Name, u.Type, u.Status, u.Login, u.UID, u.GID, u.CreateAt = audit.NewID(), "zoe", sft.Human, sft.StatusActive, "zoe", 60001, 63001, e.Clock.Now()
		g := store.GroupRecord{TeamID: team.ID, Group: sft.Group{ID: audit.NewID(), Name: sft.Owners, Roles: []sft.Role{sft.AccessAdmin}}}
		for _, err := range []error{tx.AddTeam(team), tx.AddUser(u), tx.AddGroup(g)} {
			if err != nil {
				return audit.Event{}, err
			}
		}
		_, err := tx.AddMember(g.ID, u.ID)
		return audit.Event{ID: audit.NewID(), Time: e.Clock.Now(), Kind: audit.TeamCreate, Team: "other", Actor: audit.Actor{Kind: "platform"}, Outcome: audit.Success}, err
	}); err != nil {
		t.Fatal(err)
	}
}

func findUser(t *testing.T, e *testenv.Env, team, name string) (u store.UserRecord, err error) {
	t.Helper()
	err = e.DB.Read(t.Context(), func(tx *store.Tx) error {
		tm, err := tx.Team(team)
		if err == nil {
			u, err = tx.User(tm.ID, name)
		}
		return err
	})
	return u, err
}

func TestLoginAndLogout(t *testing.T) { testenv.Each(t, loginAndLogout) }

func loginAndLogout(t *testing.T, e *testenv.Env) {
	ann, bob := e.Client("ann"), e.Client("bob")
	ctx := t.Context()
	spki := spkiOf(t, ann)
	login := func(c *testenv.Client, a testenv.Approval) error {
		return c.Do(ctx, "POST", "/v1/clients/login", api.EnrollClientRequest{Code: a.Code, CodeVerifier: a.Verifier, RedirectURI: a.RedirectURI}, nil)
	}
	me := func() error { return ann.Do(ctx, "GET", base+"/servers", nil, nil) }
	wantCode(t, "asking while signed in", me(), "")

	events := since(e, func() { wantCode(t, "logout", ann.Do(ctx, "POST", "/v1/clients/logout", nil, nil), "") })
	if told(events) != "auth_token.end success" {
		t.Errorf("logout is told as %q", told(events))
	}
	wantCode(t, "asking after logout", me(), sft.SignIn)

	good := e.Approve(e.Cookie("ann"), spki, ann.ID)
	wantCode(t, "somebody else's client with the approval", login(bob, good), sft.Denied)
	events = since(e, func() { wantCode(t, "login", login(ann, good), "") })
	if told(events) != "auth_token.issue success" {
		t.Errorf("login is told as %q", told(events))
	}
	wantCode(t, "asking after login", me(), "")
	wantCode(t, "login with the same approval", login(ann, good), sft.Denied)

	// An approval for a new client renews none, and the other way round.
	wantCode(t, "login with an approval to enrol", login(ann, e.Approve(e.Cookie("ann"), spki, "")), sft.Denied)
	again := e.Approve(e.Cookie("ann"), spki, ann.ID)
	wantCode(t, "enrolling with an approval to log in", e.Anonymous().Do(ctx, "POST", "/v1/clients/enroll", enrolment(again, spki), nil), sft.Invalid)

	// A browser that is signed in as somebody else cannot approve the client.
	sum := sha256.Sum256(spki)
	bobWeb, _, _, err := e.Platform.Web(ctx, sft.NewSecret(e.Cookie("bob").Value), "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = e.Platform.Authorize(ctx, bobWeb, platform.Authorization{Team: "main", RedirectURI: again.RedirectURI, State: strings.Repeat("s", 16),
		Challenge: base64.RawURLEncoding.EncodeToString(make([]byte, 32)), KeySHA256: hex.EncodeToString(sum[:]), ClientID: ann.ID})
	wantCode(t, "approval by another user", err, sft.Denied)

	e.Clock.Advance(10 * time.Hour)
	wantCode(t, "asking after ten hours", me(), sft.SignIn)
	wantCode(t, "login by a device code of an enrolled client", loginByCode(t, e, ann, spki), "")
	wantCode(t, "asking then", me(), "")
}

func spkiOf(t *testing.T, c *testenv.Client) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(&c.Key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return spki
}

func loginByCode(t *testing.T, e *testenv.Env, c *testenv.Client, spki []byte) error {
	t.Helper()
	var r api.DeviceCodeReply
	if err := e.Anonymous().Do(t.Context(), "POST", "/v1/clients/device_code", api.DeviceCodeRequest{Team: "main", ClientID: c.ID, DeviceKey: spki}, &r); err != nil {
		return err
	}
	a, _, at, err := e.Platform.Web(t.Context(), sft.NewSecret(e.Cookie(c.User).Value), "")
	if err != nil {
		return err
	}
	d, err := e.Platform.Typed(t.Context(), a, at, r.UserCode)
	if err != nil || d.New {
		t.Errorf("Typed = %+v, %v", d, err)
	}
	if err := e.Platform.AnswerDevice(t.Context(), a, at, r.UserCode, true); err != nil {
		return err
	}
	return c.Do(t.Context(), "POST", "/v1/clients/login", api.EnrollClientRequest{DeviceCode: r.DeviceCode}, nil)
}

func TestDeleteClient(t *testing.T) { testenv.Each(t, deleteClient) }

func deleteClient(t *testing.T, e *testenv.Env) {
	ctx := t.Context()
	ann, bob, boss := e.Client("ann"), e.Client("bob"), e.Client(testenv.Owner)
	foreign(t, e)
	path := func(c *testenv.Client) string { return base + "/clients/" + c.ID }
	wantCode(t, "somebody else's", ann.Do(ctx, "DELETE", path(bob), nil, nil), sft.NotFound)
	wantCode(t, "one that is not there", ann.Do(ctx, "DELETE", base+"/clients/no", nil, nil), sft.NotFound)
	wantCode(t, "in another team", ann.Do(ctx, "DELETE", "/v1/teams/other/clients/"+ann.ID, nil, nil), sft.NotFound)
	zoe, err := findUser(t, e, "other", "zoe")
	if err != nil {
		t.Fatal(err)
	}
	_, err = e.Platform.DeleteClient(ctx, platform.Actor{User: zoe.ID}, platform.ClientRequest{Team: "other", ID: ann.ID})
	wantCode(t, "by an administrator of another team", err, sft.NotFound)

	// One's own client goes without a sign-in; others' do not, and not by
	// an administrator whose sign-in has ended.
	for _, c := range []*testenv.Client{ann, boss} {
		if err := c.Do(ctx, "POST", "/v1/clients/logout", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, "another's, by an administrator who is not signed in", boss.Do(ctx, "DELETE", path(bob), nil, nil), sft.SignIn)
	events := since(e, func() { wantCode(t, "one's own, not signed in", ann.Do(ctx, "DELETE", path(ann), nil, nil), "") })
	if told(events) != "client.remove success" || events[0].Detail["client"] != ann.ID {
		t.Errorf("deleting is told as %+v", events)
	}
	wantCode(t, "what a deleted client asks", ann.Do(ctx, "POST", "/v1/clients/logout", nil, nil), sft.Revoked)
	wantCode(t, "a deleted client's login", ann.Do(ctx, "POST", "/v1/clients/login", api.EnrollClientRequest{}, nil), sft.Revoked)
	e.Do("DELETE", "/clients/"+bob.ID, nil, nil)
	wantCode(t, "what a client asks that an administrator deleted", bob.Do(ctx, "GET", base+"/servers", nil, nil), sft.Revoked)
	wantCode(t, "deleting it again", e.Service.Do(ctx, "DELETE", path(bob), nil, nil), sft.NotFound)

	var list api.List[sft.Client]
	e.Do("GET", "/clients?all=true", nil, &list)
	deleted := api.List[sft.Client]{}
	e.Do("GET", "/clients?all=true&state=DELETED", nil, &deleted)
	names := func(l []sft.Client) (s []string) {
		for _, c := range l {
			s = append(s, c.User)
		}
		slices.Sort(s)
		return s
	}
	if !slices.Equal(names(list.List), []string{testenv.Owner}) || !slices.Equal(names(deleted.List), []string{"ann", "bob"}) {
		t.Errorf("the clients are %q, the deleted %q", names(list.List), names(deleted.List))
	}
}
