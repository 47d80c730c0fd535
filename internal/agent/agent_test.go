package agent

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sft"
	"sft/internal/accounts"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/broker"
	"sft/internal/frame"
	"sft/internal/privsep"
	"sft/internal/testenv"
)

func TestOpen(t *testing.T) {
	t.Parallel()
	for _, signIn := range []string{frame.Inject, frame.Deliver} {
		t.Run(signIn, func(t *testing.T) { t.Parallel(); testOpen(t, signIn) })
	}
}

func testOpen(t *testing.T, signIn string) {
	h := enrolledHost(t, func(c *Config) { c.RDPSignIn = signIn })
	if _, err := os.Stat(h.c.EnrollmentTokenFile); err == nil {
		t.Error("the token file is still there")
	}
	k := h.connect("ann")
	if _, r, err := h.ask(k, frame.Ping); err != nil || r.Ping == nil || r.Ping.Login != "ann" || r.Ping.Server != h.who.Load().ServerID {
		t.Errorf("ping = %+v, %v", r, err)
	}
	if h.enabled("ann") {
		t.Error("a ping opened an account")
	}
	k = h.connect("ann")
	n, r, own, err := h.askAll(k, frame.RDP)
	if err != nil {
		t.Fatal(err)
	}
	pw, fingerprint := own.Password.Reveal(), own.CertificateSHA256
	if signIn == frame.Deliver {
		pw, fingerprint = r.RDP.Secret.Reveal(), r.RDP.CertificateSHA256
		own.Login, own.Channels = "ann", sft.AllChannels
	} else if r.RDP.Secret != nil || r.RDP.CertificateSHA256 != "" {
		t.Errorf("the client is told %+v", r.RDP)
	}
	if n == 0 || len(pw) != 64 || r.RDP.SignIn != signIn || r.RDP.Login != "ann" || own.Login != "ann" || own.Domain != "" || own.Channels != sft.AllChannels ||
		len(fingerprint) != 64 || !h.enabled("ann") {
		t.Errorf("rdp = %d, %+v, %+v; enabled: %v", n, r.RDP, own, h.enabled("ann"))
	}
	if err := h.mem.SignIn("ann", pw, h.env.Clock.Now()); err != nil {
		t.Error(err)
	}
	o := h.frame(k, frame.RDP)
	if _, f, err := h.Open(t.Context(), o); err != nil {
		t.Errorf("a second stream of the session: %v", err)
	} else {
		f.Close()
	}
	_, _, err = h.Open(t.Context(), o)
	wantCode(t, "a frame that was seen before", err, sft.Replayed)
	h.Close(t.Context(), privsep.Close{Stream: n, BytesIn: 5, BytesOut: 6, Why: "client closed"})
	h.Close(t.Context(), privsep.Close{Stream: n + 1, Why: "client closed"})
	h.env.Clock.Advance(31 * time.Second)
	until(t, "the account is shut", func() bool { return !h.enabled("ann") })
	until(t, "the platform knows of the session", func() bool {
		return slices.ContainsFunc(h.env.Events(), func(e audit.Event) bool {
			return e.Kind == audit.SessionEnd && e.Session == k.reply.SessionID && e.Target == "web01" && e.Detail["bytes_out"] == "6"
		})
	})

	// Nothing secret is in the log, at debug level.
	b, err := os.ReadFile(h.c.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	key := strings.Split(strings.Split(string(b), `"device_key":"`)[1], `"`)[0]
	for what, s := range map[string]string{"password": pw, "device key": key[60:100]} {
		if strings.Contains(h.logs.String(), s) {
			t.Errorf("the %s is in the log", what)
		}
	}
}

// What the broker lets cross is what the project says when a stream begins.
func TestOpenTellsTheChannels(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	st, _ := h.current()
	next := *st
	for _, want := range []*sft.Channels{{Clipboard: true}, {}, nil} {
		next.Revision++
		next.Settings.Channels = want
		h.apply(t.Context(), ptr(next), false)
		k := h.connect("ann")
		_, _, own, err := h.askAll(k, frame.RDP)
		if want == nil {
			want = &sft.AllChannels
		}
		if err != nil || own.Channels != *want {
			t.Errorf("channels %+v, %v; want %+v", own.Channels, err, *want)
		}
	}
}

// A sign-in that the RDP service, or the client's end, refused is recorded,
// and no more often than other refusals.
func TestRefusedSignInIsRecorded(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	k := h.connect("ann")
	refuse := func(why string) {
		t.Helper()
		n, _, err := h.ask(k, frame.RDP)
		if err != nil {
			t.Fatal(err)
		}
		h.Close(t.Context(), privsep.Close{Stream: n, Why: why})
		until(t, "the account is shut without a grace", func() bool { return !h.enabled("ann") })
	}
	refuse("aborted: launch_secret")
	for range maxRefusals + 5 {
		refuse("password refused")
	}
	var told []string
	until(t, "the platform knows", func() bool {
		told = nil
		for _, e := range h.env.Events() {
			if e.Kind == audit.SessionRefused {
				told = append(told, e.Session+" "+e.Outcome+" "+e.Detail["remote"]+" "+e.Detail["code"]+" "+e.Detail["why"])
			}
		}
		return len(told) >= maxRefusals
	})
	want := slices.Repeat([]string{k.reply.SessionID + " refused 192.0.2.1:50000 rdp_sign_in_refused password refused"}, maxRefusals)
	want[0] = k.reply.SessionID + " refused 192.0.2.1:50000  aborted: launch_secret"
	if slices.Sort(told); len(told) != len(want) || !slices.Contains(told, want[0]) || !slices.Contains(told, want[1]) {
		t.Errorf("told:\n%s", strings.Join(told, "\n"))
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	h.mem.AddForeign("carl", 1000)
	h.mem.Fail("create", "dora", errors.New("the disk is full"))
	h.join("bob", "carl", "dora", "eve")
	for _, login := range []string{"bob", "carl", "dora", "eve"} {
		h.waitAccount(login)
	}
	group := "/groups/dev/users/"

	// Certificates that were good when they were made.
	bob, ann, late := h.connect("bob"), h.connect("ann"), h.connect("ann")
	ended := h.env.Client("eve")
	eve := h.connectFrom(ended)

	stranger := h.frame(ann, frame.RDP)
	stranger.Certificates = [][]byte{h.env.CA}
	before := h.events.last
	_, _, err := h.Open(t.Context(), stranger)
	wantCode(t, "another certificate", err, sft.Denied)
	if h.events.last != before {
		t.Error("somebody who has proven nothing made an event")
	}

	_, _, err = h.ask(h.connect("carl"), frame.RDP)
	wantCode(t, "an account that is not ours", err, sft.Conflict)
	_, _, err = h.ask(h.connect("dora"), frame.RDP)
	wantCode(t, "an account that cannot be made", err, sft.Conflict)

	h.env.Do("DELETE", group+"bob", nil, nil)
	until(t, "bob is gone", func() bool { return !h.settledAccount("bob") || h.accountGone("bob") })
	_, _, err = h.ask(bob, frame.RDP)
	wantCode(t, "who lost access", err, sft.Denied)
	_, _, err = h.ask(bob, frame.Ping)
	wantCode(t, "who lost access, pinging", err, sft.Denied)

	if err := ended.Do(t.Context(), "DELETE", "/v1/teams/"+testenv.Team+"/clients/"+ended.ID, nil, nil); err != nil {
		h.env.Do("DELETE", "/clients/"+ended.ID, nil, nil)
	}
	until(t, "eve's client is gone", func() bool { st, _ := h.current(); return slices.Contains(st.EndedSessions, eve.reply.SessionID) })
	_, _, err = h.ask(eve, frame.RDP)
	wantCode(t, "whose client was deleted", err, sft.Denied)

	if err := os.Remove(h.cert); err != nil {
		t.Fatal(err)
	}
	_, _, err = h.ask(late, frame.RDP)
	wantCode(t, "without the RDP service's certificate", err, sft.RDPUnavailable)
	write(t, h.cert, []byte("garbage"))
	_, _, err = h.ask(late, frame.RDP)
	wantCode(t, "with a damaged certificate", err, sft.RDPUnavailable)
	write(t, h.cert, pemOf(h.env.CA))
	h.rdp.Close()
	_, _, err = h.ask(late, frame.RDP)
	wantCode(t, "without the RDP service", err, sft.RDPUnavailable)

	h.env.Do("PUT", "/projects/"+testenv.Project, map[string]any{"create_server_users": false}, nil)
	until(t, "the host has heard", func() bool { st, _ := h.current(); return !st.Settings.CreateServerUsers })
	_, _, err = h.ask(ann, frame.RDP)
	wantCode(t, "without accounts", err, sft.Denied)
	if _, _, err = h.ask(ann, frame.Ping); err != nil {
		t.Errorf("ping without accounts: %v", err)
	}

	for _, login := range []string{"ann", "bob", "dora", "eve"} {
		if h.enabled(login) {
			t.Errorf("the account of %s was opened", login)
		}
	}
	if a, _ := h.mem.Account("carl"); a.UID != 1000 || !a.Enabled {
		t.Error("somebody else's account was touched")
	}
	if n, m := h.sessions.count(); n+m != 0 {
		t.Errorf("%d sessions and %d streams are left", n, m)
	}
}

func (h *host) accountGone(login string) bool {
	a, ok := h.mem.Account(login)
	return !ok || a.Expired
}

func TestGrantThatTheHostHasNotHeardOf(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	k := h.connect("ann")

	st, _ := h.current()
	old := *st
	old.Revision = 0 // as if nothing had come since long ago
	h.mu.Lock()
	h.state = &old
	h.mu.Unlock()
	began := time.Now()
	_, _, err := h.ask(k, frame.RDP)
	wantCode(t, "an unheard grant", err, sft.NotReady)
	if d := time.Since(began); d < newsPatience || d > newsPatience+2*time.Second {
		t.Errorf("it was waited for %v", d)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _, err = h.ask(k, frame.RDP) })
	time.Sleep(20 * time.Millisecond)
	h.apply(t.Context(), st, true)
	wg.Wait()
	if err != nil {
		t.Errorf("with the news coming late: %v", err)
	}
}

// Somebody gets in on the first try, right after being given access.
func TestAccessJustGiven(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	for i := range 5 {
		who := fmt.Sprint("new", i)
		c := h.env.Client(who)
		h.join(who)
		if _, _, err := h.ask(h.connectFrom(c), frame.RDP); err != nil {
			t.Errorf("%s: %v", who, err)
		}
	}
}

func TestOfflineGrace(t *testing.T) {
	tests := []struct {
		name   string
		grace  string
		lost   bool
		silent time.Duration
		want   bool
	}{
		{"none, while a request hangs", "0", false, 56 * time.Second, true},
		{"none, and the request should have been answered", "0", false, 2 * time.Minute, false},
		{"none, and the platform is lost", "0", true, 0, false},
		{"a day, and lost for an hour", "24h", true, time.Hour, true},
		{"a day, and lost for longer", "24h", true, 24*time.Hour + time.Second, false},
		{"seconds", "90", true, 91 * time.Second, false},
		{"no limit", "-1", true, 1000 * time.Hour, true},
		{"the clock went back", "24h", true, -time.Hour, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			clock := &testenv.Clock{}
			clock.Set(testTime)
			a := &Agent{clock: &api.Clock{Machine: clock.Now}, heard: testTime, lost: tt.lost,
				state: &api.State{Users: []api.StateUser{{ID: "U", Login: "ann"}}, Settings: api.Settings{CreateServerUsers: true}}}
			if err := a.conf.OfflineGrace.UnmarshalYAML([]byte(tt.grace)); err != nil {
				t.Fatal(err)
			}
			clock.Advance(tt.silent)
			_, err := a.mayOpen(broker.Grant{User: "U", Service: frame.RDP})
			if (err == nil) != tt.want {
				t.Errorf("mayOpen = %v", err)
			}
			if err != nil {
				wantCode(t, tt.name, err, sft.Denied)
			}
		})
	}
}

// Access is gone within moments of the platform's word, whatever the broker
// does about it.
func TestAccessTakenAway(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	k := h.connect("ann")
	_, _, own, err := h.askAll(k, frame.RDP)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.mem.SignIn("ann", own.Password.Reveal(), h.env.Clock.Now()); err != nil {
		t.Fatal(err)
	}
	h.env.Do("DELETE", "/groups/dev/users/ann", nil, nil)
	until(t, "ann is out", func() bool {
		a, _ := h.mem.Account("ann")
		return !a.Enabled && a.Expired && h.mem.Sessions("ann") == 0
	})
	h.env.Do("POST", "/groups/dev/users", map[string]string{"name": "ann"}, nil)
	until(t, "ann is back, at rest", func() bool { a, _ := h.mem.Account("ann"); return !a.Expired })
	if h.enabled("ann") {
		t.Error("ann's account came back open")
	}
	_, _, err = h.ask(k, frame.RDP)
	wantCode(t, "the session that was ended", err, sft.Denied)
	if _, _, err := h.ask(h.connect("ann"), frame.RDP); err != nil {
		t.Errorf("a new session: %v", err)
	}
}

// Whoever signs in while access comes and goes is out when it is gone.
func TestOpenRacesWithTheLossOfAccess(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	with, _ := h.current()
	without := *with
	without.Users = slices.DeleteFunc(slices.Clone(with.Users), func(u api.StateUser) bool { return u.Login == "ann" })
	u := with.Users[slices.IndexFunc(with.Users, func(u api.StateUser) bool { return u.Login == "ann" })]
	for i := range 30 {
		var wg sync.WaitGroup
		for j := range 4 {
			id := fmt.Sprint("s", i, "-", j)
			wg.Go(func() {
				g := broker.Grant{User: u.ID, Session: id, Service: frame.RDP}
				_, _, _ = h.sessions.open(t.Context(), u, id, frame.RDP, "x", "", func() error { _, err := h.mayOpen(g); return err })
			})
		}
		wg.Go(func() {
			gone := without
			gone.Revision = with.Revision + int64(2*i) + 1
			h.apply(t.Context(), &gone, false)
		})
		wg.Wait()
		h.sessions.mu.Lock()
		for n, s := range h.sessions.streams {
			if s.ended.IsZero() {
				t.Errorf("round %d: stream %d of %s goes on", i, n, s.session.ID)
			}
		}
		h.sessions.streams, h.sessions.sessions = map[uint64]*stream{}, map[string]*session{}
		h.sessions.mu.Unlock()
		until(t, "ann's account is shut", func() bool { h.sessions.tick(t.Context()); return !h.enabled("ann") })
		back := *with
		back.Revision = with.Revision + int64(2*i) + 2
		h.apply(t.Context(), &back, false)
	}
}

// An account that cannot be made is told to the platform, with why, and once for
// as long as that stays.
func TestAccountsThatCannotBeAreTold(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, func(c *Config) { c.AllowedLogins = []string{testenv.Owner, "ann", "bob", "carl", "dora"} })
	h.mem.AddForeign("carl", 1000)
	h.mem.Fail("create", "dora", errors.New("the disk is full"))
	h.join("carl", "dora", "eve")
	told := func() (list []string) {
		for _, e := range h.env.Events() {
			if login := e.Detail["login"]; strings.HasPrefix(string(e.Kind), "account.") && login != "ann" && login != "bob" && login != testenv.Owner {
				list = append(list, fmt.Sprintf("%s %s %s %s: %s", e.Kind, e.Outcome, e.Actor.Kind, login, e.Detail["why"]))
			}
		}
		slices.Sort(list)
		return list
	}
	until(t, "they are told", func() bool { return len(told()) >= 3 })
	for range 3 {
		h.reconcile(t.Context())
	}
	h.join("bob")
	until(t, "what came afterwards is told", func() bool {
		return slices.ContainsFunc(h.env.Events(), func(e audit.Event) bool { return e.Kind == audit.AccountCreated && e.Detail["login"] == "bob" })
	})
	got := told()
	want := []string{"account.conflict failed server carl: account carl of this host was not made by sftd", "account.failed failed server dora: ", "account.refused failed server eve: AllowedLogins in this host's sftd.yaml does not allow eve"}
	if len(got) != len(want) || !slices.EqualFunc(got, want, strings.HasPrefix) || !strings.Contains(got[1], "the disk is full") {
		t.Errorf("told:\n%s", strings.Join(got, "\n"))
	}
}

// An old state's accounts are never made after a newer one's.
func TestReconcileIsOfTheLatestState(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	st, _ := h.current()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { h.reconcile(t.Context()) })
	}
	gone := *st
	gone.Revision, gone.Users = st.Revision+1, nil
	h.apply(t.Context(), &gone, false)
	wg.Wait()
	if !h.accountGone("ann") {
		t.Error("a reconcile of the state before gave ann the account back")
	}
}

func TestHostKeepsUp(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	h.env.Grant(testenv.Project, "admins", true, "bob")
	until(t, "bob has an account, and is an administrator", func() bool { a, _ := h.mem.Account("bob"); return a.Admin })
	until(t, "the platform knows", func() bool {
		return slices.ContainsFunc(h.env.Events(), func(e audit.Event) bool { return e.Kind == audit.AccountCreated && e.Detail["login"] == "bob" })
	})
	var s sft.Server
	h.env.Do("GET", "/projects/"+testenv.Project+"/servers/"+h.who.Load().ServerID, nil, &s)
	if s.State != sft.StateActive {
		t.Errorf("the server is %s", s.State)
	}
}

// The agent acts on what the platform said before, when it is gone.
func TestPlatformGoneAtStart(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	k := h.connect("ann")
	h.Agent.lock.Release() // the first one is stopped by the end of the test
	id, key, err := readIdentity(h.c)
	if err != nil || id == nil || key == nil {
		t.Fatal(err)
	}
	id.URL = "https://127.0.0.1:1"
	h2 := *h
	h2.c.TokenFile = filepath.Join(filepath.Dir(h.c.TokenFile), "other.token")
	writeIdentity(t, h2.c.TokenFile, *id)
	h2.clock = &api.Clock{Machine: h.env.Clock.Now}
	h2.c.BufferFile += "2"
	h2.c.OfflineGrace = Duration{d: time.Minute}
	h2.make()
	h2.run()
	h2.waitAccount("ann")
	until(t, "it says that the platform does not answer", func() bool {
		return h2.hasProblem("no answer from the platform")
	})
	if _, _, err := h2.ask(k, frame.RDP); err != nil {
		t.Errorf("within the offline grace: %v", err)
	}
	h.env.Clock.Advance(2 * time.Minute)
	_, _, err = h2.ask(h.connect("ann"), frame.RDP)
	wantCode(t, "after the offline grace", err, sft.Denied)
}

func TestDamagedState(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	for _, content := range []string{"", "garbage", "{}", `{"heard_at":"2026-01-01T00:00:00Z","state":{"revision":3,"access_cas":["AAAA"]}}`, `{"state":null}`} {
		a := &Agent{conf: h.c, log: h.log, clock: h.clock}
		write(t, a.conf.file("damaged"), nil)
		a.conf.state = t.TempDir()
		write(t, a.conf.file(stateFile), []byte(content))
		a.loadState()
		if a.state != nil {
			t.Errorf("%q was taken for a state", content)
		}
	}
	// And a running agent mends it.
	write(t, h.c.file(stateFile), []byte("garbage"))
	h.join("bob")
	h.waitAccount("bob")
	a := &Agent{conf: h.c, log: h.log, clock: h.clock}
	if a.loadState(); a.state == nil {
		t.Error("the state on disk is not mended")
	}
}

func TestDeletedServer(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	k := h.connect("ann")
	_, _, own, err := h.askAll(k, frame.RDP)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.mem.SignIn("ann", own.Password.Reveal(), h.env.Clock.Now()); err != nil {
		t.Fatal(err)
	}
	first, chain := *h.who.Load(), *h.chain.Load()
	h.env.Do("DELETE", "/projects/"+testenv.Project+"/servers/"+first.ServerID, nil, nil)
	until(t, "all access has ended", func() bool {
		a, _ := h.mem.Account("ann")
		return !a.Enabled && a.Expired && h.mem.Sessions("ann") == 0 && h.who.Load() == nil
	})
	_, _, err = h.ask(k, frame.RDP)
	wantCode(t, "a host whose record was deleted", err, sft.SignIn)
	until(t, "it says so", func() bool {
		return h.hasProblem("write an enrollment token")
	})
	if _, err := os.Stat(h.c.TokenFile); err == nil {
		t.Error("the identity is still there")
	}

	h.writeToken(testenv.Project)
	until(t, "it is enrolled anew", func() bool { id := h.who.Load(); return id != nil && id.ServerID != first.ServerID })
	until(t, "its broker has a certificate of the new record", func() bool {
		c := h.chain.Load()
		return c != nil && parse(t, (*c)[0]).VerifyHostname(h.who.Load().ServerID+".server.sft") == nil
	})
	if parse(t, (*h.chain.Load())[0]).PublicKey.(*ecdsa.PublicKey).Equal(parse(t, chain[0]).PublicKey) {
		t.Error("the new record has the TLS key of the old one")
	}
	until(t, "ann has an account", func() bool { a, _ := h.mem.Account("ann"); return !a.Expired })
	if _, _, err := h.ask(h.connect("ann"), frame.RDP); err != nil {
		t.Errorf("after enrolling anew: %v", err)
	}
}

func TestBrokerCertificate(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	leaf := func() string { return parse(t, (*h.chain.Load())[0]).SerialNumber.String() }
	key := h.tlsKey.Load()
	first := leaf()
	h.env.Clock.Advance(11 * time.Hour)
	time.Sleep(2500 * time.Millisecond) // a report is due every two seconds
	if leaf() != first {
		t.Error("the certificate was renewed before half of its life was over")
	}
	h.env.Clock.Advance(time.Hour)
	until(t, "it is renewed", func() bool { return leaf() != first })
	if !h.tlsKey.Load().Equal(key) {
		t.Error("the renewed certificate has another key")
	}

	server := h.who.Load().ServerID
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	chain := *h.chain.Load()
	for what, try := range map[string]func() error{
		"for another key":    func() error { return h.takeCertificate(server, other, chain) },
		"for another server": func() error { return h.takeCertificate("srv_2", key, chain) },
		"none":               func() error { return h.takeCertificate(server, key, nil) },
		"garbage":            func() error { return h.takeCertificate(server, key, [][]byte{[]byte("x")}) },
		"a long chain":       func() error { return h.takeCertificate(server, key, slices.Repeat(chain, 5)) },
	} {
		if try() == nil {
			t.Errorf("a certificate was taken: %s", what)
		}
	}
	h.env.Clock.Advance(25 * time.Hour)
	if h.takeCertificate(server, key, chain) == nil {
		t.Error("an expired certificate was taken")
	}
}

func TestClockThatIsOff(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{10 * time.Minute, -10 * time.Minute} {
		t.Run(off.String(), func(t *testing.T) {
			t.Parallel()
			env := testenv.New(t)
			env.Grant(testenv.Project, "dev", false, "ann")
			h := newHost(t, env, nil)
			h.clock.Machine = func() time.Time { return env.Clock.Now().Add(off) }
			h.run()
			h.waitAccount("ann")
			until(t, "it warns", func() bool {
				return slices.ContainsFunc(h.problems(), func(p string) bool {
					return strings.HasPrefix(p, "clock: this host's clock is off by "+off.String())
				})
			})
			k := h.connect("ann")
			n, _, err := h.ask(k, frame.RDP)
			if err != nil {
				t.Fatalf("sign in: %v", err)
			}
			// Somebody sets the clock: nothing that is measured jumps.
			h.Close(t.Context(), privsep.Close{Stream: n, Why: "x"})
			if !h.enabled("ann") {
				t.Error("the account was shut within the grace")
			}
		})
	}
	for _, off := range []time.Duration{20 * time.Minute, -20 * time.Minute} {
		t.Run(off.String(), func(t *testing.T) {
			t.Parallel()
			env := testenv.New(t)
			env.Grant(testenv.Project, "dev", false, "ann")
			h := newHost(t, env, nil)
			h.clock.Machine = func() time.Time { return env.Clock.Now().Add(off) }
			h.run()
			here, there := h.clock.Machine().Format(time.RFC3339), env.Clock.Now().Format(time.RFC3339)
			until(t, "it names both clocks", func() bool {
				return slices.ContainsFunc(h.problems(), func(p string) bool { return strings.Contains(p, here) && strings.Contains(p, there) })
			})
			if h.clock.Offset() != 0 {
				t.Error("the clock was corrected")
			}
		})
	}
}

// Whoever has a certificate cannot fill the disk by being refused.
func TestRefusalsAreBounded(t *testing.T) {
	var r refusals
	now := testTime
	told, more := 0, 0
	for range 1000 {
		m, tell := r.note("U1", now)
		if tell {
			told++
		}
		more += m
	}
	if _, tell := r.note("U2", now); !tell {
		t.Error("one person's refusals hide another's")
	}
	now = now.Add(time.Minute)
	m, tell := r.note("U1", now)
	if told != maxRefusals || more != 0 || !tell || m != 1000-maxRefusals {
		t.Errorf("%d of 1000 were told; then %v, of %d more", told, tell, m)
	}
	if _, tell := r.note("U1", now.Add(-time.Hour)); !tell {
		t.Error("a clock that goes back hides refusals")
	}
}

// What is wrong on a host never keeps its report from being taken.
func TestReportWithManyProblems(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	h.mu.Lock()
	for i := range 60 {
		h.badAccounts[fmt.Sprint("user", i)] = errors.Join(errors.New("one\nline"), errors.New(strings.Repeat("long ä\x00", 200)))
	}
	h.mu.Unlock()
	f, err := h.facts()
	if err != nil || len(f.Problems) != maxProblems || !strings.Contains(f.Problems[maxProblems-1], " more; see") {
		t.Fatalf("%d problems, %v", len(f.Problems), err)
	}
	c := h.env.Signed(deviceKey(t, h), "server:"+h.who.Load().ServerID)
	if err := h.report(t.Context(), c, h.who.Load().ServerID, api.ReportRequest{Facts: f}, false); err != nil {
		t.Error(err)
	}
}

func TestOneAgentPerState(t *testing.T) {
	h := enrolledHost(t, nil)
	_, err := New(h.c, h.log, accounts.NewMemory(), h.clock)
	wantCode(t, "a second agent", err, sft.Exists)
}

// A host that is moved lets in whom its new project lets in, by the
// authorities of that project, and nobody else: an account of somebody of the
// project before is shut.
func TestMovedServer(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	h.env.Grant("lab", "lab", false, "bob")
	k := h.connect("ann")
	_, _, own, err := h.askAll(k, frame.RDP)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.mem.SignIn("ann", own.Password.Reveal(), h.env.Clock.Now()); err != nil {
		t.Fatal(err)
	}
	id, first := *h.who.Load(), (*h.chain.Load())[0]
	h.env.Do("PUT", "/projects/"+testenv.Project+"/servers/"+id.ServerID, map[string]string{"project_name": "lab"}, nil)
	until(t, "what was open is shut", func() bool {
		a, _ := h.mem.Account("ann")
		return !a.Enabled && a.Expired && h.mem.Sessions("ann") == 0
	})
	h.waitAccount("bob")
	until(t, "the broker has a certificate of the new project", func() bool {
		return !slices.Equal((*h.chain.Load())[0], first) && !h.foreignCertificate()
	})
	_, _, err = h.ask(k, frame.RDP)
	wantCode(t, "on what was issued before", err, sft.Denied)
	for _, e := range h.env.Events() {
		if e.Kind == audit.SessionEnd && e.Detail["why"] != "the host was moved to another project" {
			t.Errorf("a session ended because: %s", e.Detail["why"])
		}
	}
	if _, _, err := h.ask(h.connect("bob"), frame.RDP); err != nil {
		t.Errorf("somebody of the new project: %v", err)
	}
	if s := h.status(); s.Project != "lab" || s.ServerID != id.ServerID {
		t.Errorf("its status is %+v", s)
	}
	// And after a start: what the identity says of the project is old.
	if v := h.verifierFor(&id); v.Project != "lab" {
		t.Errorf("it would judge for %s", v.Project)
	}
}

// A CA whose key is known to others opens nothing from the moment that the host
// hears of it: what it let in ends, what it has signed is refused, and the host
// shows a certificate by another. People come again by the new one.
func TestDroppedCAs(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	in, kept := h.connect("ann"), h.connect("ann") // and one that nobody has used yet
	n, _, err := h.ask(in, frame.RDP)
	if err != nil {
		t.Fatal(err)
	}
	o := h.frame(kept, frame.Ping)
	verified, err := h.verifier.Load().Verify(o.Certificates, o.Frame)
	if err != nil {
		t.Fatal(err)
	}
	before, _ := h.current()
	first := (*h.chain.Load())[0]
	h.env.Do("POST", "/projects/"+testenv.Project+"/authorities", map[string]any{"compromised": true}, nil)
	until(t, "the host has heard of it", func() bool { st, _ := h.current(); return st.Revision > before.Revision })
	_, _, err = h.ask(kept, frame.RDP)
	wantCode(t, "a certificate by the dropped CA", err, sft.Denied)
	st, _ := h.current()
	if len(st.AccessCAs) != 1 || bytes.Equal(st.AccessCAs[0], before.AccessCAs[0]) || len(st.DroppedCAs) != 2 {
		t.Errorf("it is told %d CAs, of which %d are dropped", len(st.AccessCAs), len(st.DroppedCAs))
	}
	_, err = h.mayOpen(verified)
	wantCode(t, "one that was verified a moment before", err, sft.Denied)
	until(t, "what was open is shut", func() bool { a, _ := h.mem.Account("ann"); return !a.Enabled })
	h.Close(t.Context(), privsep.Close{Stream: n}) // as the broker says when it has ended it
	until(t, "the session has ended", func() bool {
		for _, e := range h.env.Events() {
			if e.Kind == audit.SessionEnd && e.Session == in.reply.SessionID {
				return e.Detail["why"] == "ended: the CA that had let it in is trusted no more"
			}
		}
		return false
	})
	until(t, "the broker has a certificate by the new CA", func() bool {
		return !bytes.Equal((*h.chain.Load())[0], first) && !h.foreignCertificate()
	})
	if _, _, err := h.ask(h.connect("ann"), frame.RDP); err != nil {
		t.Errorf("by the new CA: %v", err)
	}
	_, _, err = h.ask(in, frame.RDP)
	wantCode(t, "coming back by the dropped CA", err, sft.Denied)
}

// Somebody who gets another login has another account; the one before is shut,
// like that of somebody who has lost access, and is never the new one's.
func TestAnotherLogin(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	k := h.connect("ann")
	_, _, own, err := h.askAll(k, frame.RDP)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.mem.SignIn("ann", own.Password.Reveal(), h.env.Clock.Now()); err != nil {
		t.Fatal(err)
	}
	before, _ := h.mem.Account("ann")
	h.env.Do("PUT", "/users/ann/attributes/unix_user_name", map[string]string{"attribute_value": "anna"}, nil)
	until(t, "the account before is shut", func() bool {
		a, _ := h.mem.Account("ann")
		return !a.Enabled && a.Expired && h.mem.Sessions("ann") == 0
	})
	h.waitAccount("anna")
	after, ok := h.mem.Account("anna")
	if !ok || after.UID == before.UID || after.GID == before.GID {
		t.Errorf("the account is %+v, and was %+v", after, before)
	}
	if _, r, err := h.ask(h.connect("ann"), frame.RDP); err != nil || r.RDP.Login != "anna" {
		t.Errorf("coming again: %+v, %v", r, err)
	}
	h.env.Do("PUT", "/users/ann/attributes/unix_user_name", map[string]string{"attribute_value": "ann"}, nil)
	until(t, "the first account is there again", func() bool {
		a, _ := h.mem.Account("ann")
		b, _ := h.mem.Account("anna")
		return !a.Expired && a.UID == before.UID && b.Expired && !b.Enabled
	})
}

// What a host cannot have because somebody else's is in its place, the platform
// knows, for as long as it is so.
func TestConflictsAreReported(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	bob := h.env.User("bob")
	h.mem.AddForeign("bob", 4711)
	h.mem.AddForeign("eve", h.env.User("carl").UID)
	if err := h.mem.MakeGroup(t.Context(), accounts.Group{Name: "sft_dev", GID: 4712}); err != nil { // by somebody else
		t.Fatal(err)
	}
	h.join("bob", "carl")
	h.env.Do("PUT", "/projects/"+testenv.Project+"/groups/dev", map[string]any{"server_access": true, "create_server_group": true}, nil)
	conflicts := func(path string) (got string) {
		var l api.List[struct {
			Name      string `json:"attribute_name"`
			Value     string `json:"attribute_value"`
			Conflicts []struct {
				Server string `json:"server"`
				Reason string `json:"reason"`
			} `json:"conflicts"`
		}]
		h.env.Do("GET", path+"/attributes?conflicting=true", nil, &l)
		for _, v := range l.List {
			got += v.Name + "=" + v.Value + " "
			for _, c := range v.Conflicts {
				got += c.Server + ": " + c.Reason + " "
			}
		}
		return got
	}
	id, carl := h.who.Load().ServerID, h.env.User("carl")
	for path, want := range map[string]string{
		"/users/bob":  "unix_user_name=bob " + id + ": account bob of this host was not made by sftd ",
		"/users/carl": fmt.Sprintf("unix_uid=%d %s: uid %d of account carl belongs to account eve here ", carl.UID, id, carl.UID),
		"/groups/dev": "unix_group_name=sft_dev " + id + ": group sft_dev of this host was not made by sftd ",
	} {
		until(t, "the conflict of "+path+" is known", func() bool { return conflicts(path) == want })
	}
	if got := conflicts("/users/ann"); got != "" {
		t.Errorf("of somebody who has an account: %s", got)
	}
	// Another login is another matter, and the report of the next look says so.
	h.env.Do("PUT", "/users/bob/attributes/unix_user_name", map[string]string{"attribute_value": "bobby"}, nil)
	h.waitAccount("bobby")
	h.env.Do("PUT", "/users/bob/attributes/unix_user_name", map[string]string{"attribute_value": "bob"}, nil)
	until(t, "the conflict is known again", func() bool { return conflicts("/users/bob") != "" })
	// So is another name of a group, which keeps its gid from name to name.
	group := func(name string) (gid int) {
		groups, _, err := h.mem.ReadRights(t.Context())
		for _, g := range groups {
			if g.Name == name {
				gid = g.GID
			}
		}
		if err != nil {
			t.Error(err)
		}
		return gid
	}
	last := "sft_dev"
	for _, name := range []string{"developers", "devs"} {
		h.env.Do("PUT", "/groups/dev/attributes/unix_group_name", map[string]string{"attribute_value": name}, nil)
		until(t, "the group is called "+name, func() bool {
			return group(name) >= 63001 && group(name) != group(last) && conflicts("/groups/dev") == ""
		})
		last = name
	}
	if u := h.env.User("bob"); u.UID != bob.UID {
		t.Errorf("bob's uid is %d, want %d", u.UID, bob.UID)
	}
}
