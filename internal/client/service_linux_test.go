package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sft"
	"sft/internal/api"
	"sft/internal/frame"
)

// A fakeAgent is the far end of the socket: what it answers is up to the test.
type fakeAgent struct {
	p    *platform
	path string

	mu      sync.Mutex
	asks    []string                       // the device keys, in their order
	clients map[string]string              // device key to client
	dead    map[string]bool                // device keys that were refused, or removed
	refuse  *sft.Error                     // what everybody gets
	life    time.Duration                  // of a sign-in
	raw     atomic.Pointer[func(net.Conn)] // in the place of an answer
	change  *api.ServiceAnswer             // of an answer, if it is set
	slow    time.Duration                  // before it answers
	now     atomic.Int64                   // how many are answered now
	peak    atomic.Int64                   // the most of them
}

func newFakeAgent(t *testing.T, p *platform) *fakeAgent {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can be the agent")
	}
	f := &fakeAgent{p: p, path: filepath.Join(t.TempDir(), "s"), clients: map[string]string{}, dead: map[string]bool{}, life: time.Hour}
	l, err := net.Listen("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f.serve(c)
		}
	}()
	return f
}

func (f *fakeAgent) serve(c net.Conn) {
	defer c.Close()
	f.peak.Store(max(f.peak.Load(), f.now.Add(1)))
	defer f.now.Add(-1)
	if raw := f.raw.Load(); raw != nil {
		(*raw)(c)
		return
	}
	b, err := frame.Read(c)
	var ask api.ServiceAsk
	if err != nil || json.Unmarshal(b, &ask) != nil {
		return
	}
	time.Sleep(f.slow)
	frame.WriteJSON(c, f.answer(ask))
}

func (f *fakeAgent) answer(ask api.ServiceAsk) (a api.ServiceAnswer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := string(ask.DeviceKey)
	f.asks = append(f.asks, k)
	if f.refuse != nil {
		return api.ServiceAnswer{Error: f.refuse}
	}
	if f.dead[k] {
		return api.ServiceAnswer{Error: &sft.Error{Code: sft.Exists, Msg: "the device key is, or was, that of another client"}}
	}
	if f.clients[k] == "" {
		f.clients[k] = fmt.Sprintf("s%d", len(f.clients)+1)
	}
	pub, err := x509.ParsePKIXPublicKey(ask.DeviceKey)
	if err != nil {
		return api.ServiceAnswer{Error: &sft.Error{Code: sft.Invalid, Msg: "no key"}}
	}
	f.p.mu.Lock()
	f.p.key, f.p.refuse = pub.(*ecdsa.PublicKey), nil
	f.p.mu.Unlock()
	if f.change != nil {
		return *f.change
	}
	a.ServiceClientReply = api.ServiceClientReply{ClientID: f.clients[k], Team: "main", User: "robo", URL: f.p.URL, SignedInUntil: time.Now().Add(f.life).UTC().Truncate(time.Millisecond)}
	a.CA = f.p.Certificate().Raw
	return a
}

func (f *fakeAgent) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.asks)
}

// kill makes the platform refuse who is signed in, with code, and the keys of
// before with the agent, if they are gone for good.
func (f *fakeAgent) kill(code sft.Code, forGood bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := range f.clients {
		f.dead[k] = forGood
	}
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	f.p.refuse = &sft.Error{Code: code, Msg: "no"}
}

// serviceDevice is a device that acts by the agent's word, and that fails the
// test if it asks a person.
func serviceDevice(t *testing.T, f *fakeAgent) *Device {
	t.Helper()
	d, _ := newDevice(t)
	d.Ask, d.agent = ByAgent, f.path
	d.Open = func(page string) error {
		t.Errorf("a browser is opened at %s", page)
		return errors.New("no")
	}
	return d
}

func TestServiceAccount(t *testing.T) {
	p := newPlatform(t)
	f := newFakeAgent(t, p)
	d := serviceDevice(t, f)
	d.Store.keys.ring = SystemRing // which a service user has no use for
	use := func() (*Session, error) {
		a, err := d.Find(t.Context(), "")
		if err != nil {
			return nil, err
		}
		s, err := d.Session(a)
		if err != nil {
			return nil, err
		}
		_, err = s.Projects(t.Context())
		return s, err
	}
	must := func(want string, asks int) *Session {
		t.Helper()
		s, err := use()
		if err != nil {
			t.Fatal(err)
		}
		all, _ := d.Store.Accounts()
		if s.Account.ClientID != want || f.asked() != asks || len(all) != 1 || all[0].ClientID != want {
			t.Fatalf("client %s by %d requests, want %s by %d; the store has %+v", s.Account.ClientID, f.asked(), want, asks, all)
		}
		left, _ := filepath.Glob(d.Store.dir + "/device-*.key")
		if i, err := os.Stat(d.Store.keys.path(s.Account)); err != nil || i.Mode().Perm() != 0o600 || len(left) != 1 {
			t.Fatalf("the device key is %v, %v, of %q", i, err, left)
		}
		return s
	}
	s := must("s1", 1)
	if a := s.Account; a.Kind != Service || a.User != "robo" || a.Team != "main" || a.InKeyring || a.Default {
		t.Errorf("the account is %+v", a)
	}
	must("s1", 1)

	// The sign-in is begun anew with the same key: after its end, or near it.
	f.kill(sft.SignIn, false)
	must("s1", 2)
	edit := func(change func(a *Account)) {
		t.Helper()
		if err := d.Store.update(func(all *[]Account) error { change(&(*all)[0]); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	edit(func(a *Account) { a.SignedInUntil = time.Now().Add(vouchAhead - time.Second) })
	must("s1", 3)
	edit(func(a *Account) { a.SignedInUntil = time.Now().Add(vouchAhead + time.Minute) })
	must("s1", 3)

	// Near its end it goes on without the agent, and after it not.
	edit(func(a *Account) { a.SignedInUntil = time.Now().Add(time.Minute) })
	f.refuse = &sft.Error{Code: sft.Denied, Msg: "the account acts as no service user", Hint: "ask an administrator"}
	must("s1", 4)
	edit(func(a *Account) { a.SignedInUntil = time.Now() })
	if _, err := use(); sft.CodeOf(err) != sft.Denied {
		t.Errorf("after its end: %v", err)
	}
	f.refuse = nil

	// A key that was refused for good is followed by another one, once.
	f.kill(sft.Revoked, true)
	must("s2", 7)
	edit(func(a *Account) { a.SignedInUntil = time.Now().Add(2 * time.Hour) })
	s = must("s2", 7)
	f.kill(sft.Revoked, true)
	if _, err := s.Projects(t.Context()); err != nil || s.Account.ClientID != "s3" || f.asked() != 9 {
		t.Errorf("in the middle of a session: %v, client %s by %d requests", err, s.Account.ClientID, f.asked())
	}
	must("s3", 9)
	f.kill(sft.Revoked, false)
	f.refuse = &sft.Error{Code: sft.Exists, Msg: "was"}
	if _, err := use(); sft.CodeOf(err) != sft.Exists || f.asked() != 11 {
		t.Errorf("refused again: %v by %d requests", err, f.asked())
	}
	f.refuse = nil
	s = must("s4", 12) // by one question: the refused key was forgotten, though no other was taken

	// A key that is gone, or that others could read.
	os.Remove(d.Store.keys.path(s.Account))
	s = must("s5", 13)
	os.Chmod(d.Store.keys.path(s.Account), 0o644)
	must("s6", 14)

	if err := s.Login(t.Context()); err != nil {
		t.Errorf("login: %v", err)
	}
	if _, err := d.Enroll(t.Context(), Enrolment{URL: p.URL, Team: "main", Fingerprint: p.fingerprint()}); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("enrolling: %v", err)
	}
	if _, err := d.Find(t.Context(), "other"); sft.CodeOf(err) != sft.SignIn || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("another team: %v", err)
	}
	if a, err := d.Find(t.Context(), "MAIN"); err != nil || a.Team != "main" {
		t.Errorf("its team: %+v, %v", a, err)
	}
}

// Many at once ask the agent once, and are all the same client.
func TestServiceAccountOfMany(t *testing.T) {
	p := newPlatform(t)
	f := newFakeAgent(t, p)
	f.slow = 50 * time.Millisecond
	dir := filepath.Join(t.TempDir(), "ScaleFT")
	together := func(ids map[string]int) {
		t.Helper()
		var wg sync.WaitGroup
		var mu sync.Mutex
		for range 20 {
			wg.Go(func() { // as a process of its own
				d := serviceDevice(t, f)
				var err error
				if d.Store, err = OpenStore(dir, FileRing, func(string) string { return "" }); err != nil {
					t.Error(err)
					return
				}
				s, err := d.SessionOf(t.Context(), "")
				if err == nil {
					_, err = s.Projects(t.Context())
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				ids[s.Account.ClientID]++
			})
		}
		wg.Wait()
	}
	ids := map[string]int{}
	together(ids)
	if ids["s1"] != 20 || f.asked() != 1 {
		t.Errorf("the clients are %v, by %d requests", ids, f.asked())
	}
	f.kill(sft.Revoked, true)
	ids = map[string]int{}
	together(ids)
	if ids["s2"] != 20 || f.asked() != 3 || f.peak.Load() != 1 {
		t.Errorf("after it was removed they are %v, by %d requests, %d at once", ids, f.asked(), f.peak.Load())
	}
}

// The accounts of people and that of a service user do not know each other.
func TestServiceAccountApart(t *testing.T) {
	p := newPlatform(t)
	f := newFakeAgent(t, p)
	d := serviceDevice(t, f)
	service, err := d.Find(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	me := *d
	me.Ask, me.Open = InBrowser, p.browse("approve")
	if _, err := me.Find(t.Context(), ""); sft.CodeOf(err) != sft.SignIn {
		t.Errorf("a person who is not enrolled: %v", err)
	}
	mine, err := me.Enroll(t.Context(), Enrolment{URL: p.URL, Team: "main", Fingerprint: p.fingerprint(), Default: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, team := range []string{"", "main"} {
		if a, err := me.Find(t.Context(), team); err != nil || a.ClientID != mine.ClientID {
			t.Errorf("the person's in %q: %+v, %v", team, a, err)
		}
		if a, err := d.Find(t.Context(), team); err != nil || a.ClientID != service.ClientID {
			t.Errorf("the service user's in %q: %+v, %v", team, a, err)
		}
	}
	for who, dev := range map[string]*Device{mine.ClientID: &me, service.ClientID: d} {
		if all, err := dev.Mine(); err != nil || len(all) != 1 || all[0].ClientID != who {
			t.Errorf("of %s are %+v, %v", who, all, err)
		}
	}
	if err := d.Store.remove(mine); err != nil {
		t.Fatal(err)
	}
	if all, _ := d.Store.Accounts(); len(all) != 1 || all[0].Default {
		t.Errorf("the service user's became the default: %+v", all)
	}
}

func TestServiceAgentIsNone(t *testing.T) {
	p := newPlatform(t)
	f := newFakeAgent(t, p)
	d := serviceDevice(t, f)
	wrong := func(what string, want sft.Code) {
		t.Helper()
		_, err := d.Find(t.Context(), "")
		e, ok := errors.AsType[*sft.Error](err)
		if !ok || e.Code != want || e.Hint == "" {
			t.Errorf("%s: %v, want %s and a hint", what, err, want)
		}
		all, _ := d.Store.Accounts()
		left, _ := filepath.Glob(d.Store.dir + "/device-*")
		if len(all) != 0 || left != nil {
			t.Errorf("%s: left are %+v, %q", what, all, left)
		}
	}
	raw := func(do func(net.Conn)) { f.raw.Store(&do) }
	raw(func(c net.Conn) {})
	wrong("one that says nothing", sft.SignIn)
	raw(func(c net.Conn) { c.Write([]byte{0, 0, 0, 9, '{'}) })
	wrong("one that says half", sft.SignIn)
	raw(func(c net.Conn) { c.Write([]byte{0xff, 0, 0, 0}) })
	wrong("one that says too much", sft.SignIn)
	raw(func(c net.Conn) { frame.Write(c, []byte("[]")) })
	wrong("one that says something else", sft.SignIn)
	// One that does not read the request has said why.
	raw(func(c net.Conn) {
		frame.WriteJSON(c, api.ServiceAnswer{Error: &sft.Error{Code: sft.TooMany, Msg: "too often", Hint: "wait"}})
	})
	wrong("one that is asked too often", sft.TooMany)
	f.raw.Store(nil)
	good := api.ServiceClientReply{ClientID: "s1", Team: "main", User: "robo", URL: p.URL, SignedInUntil: time.Now().Add(time.Hour)}
	for what, change := range map[string]func(*api.ServiceClientReply){
		"a client that is a path": func(r *api.ServiceClientReply) { r.ClientID = "../x" },
		"no team":                 func(r *api.ServiceClientReply) { r.Team = "" },
		"a user that steers":      func(r *api.ServiceClientReply) { r.User = "a\x1b[2J" },
		"a URL without TLS":       func(r *api.ServiceClientReply) { r.URL = "http://x" },
	} {
		r := good
		change(&r)
		f.change = &api.ServiceAnswer{ServiceClientReply: r}
		wrong(what, sft.Internal)
	}
	f.change = nil
	hang := make(chan struct{})
	defer close(hang)
	raw(func(net.Conn) { <-hang })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := d.Find(ctx, ""); sft.CodeOf(err) != sft.SignIn {
		t.Errorf("one that hangs: %v", err)
	}
	f.raw.Store(nil)
	d = serviceDevice(t, f)
	d.agent = filepath.Join(t.TempDir(), "none")
	wrong("none", sft.SignIn)

	// Who listens is another user, and the socket is made root's afterwards.
	d.agent = filepath.Join(t.TempDir(), "theirs")
	if err := os.Chmod(filepath.Dir(d.agent), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(filepath.Dir(filepath.Dir(d.agent)), 0o755), listenAs(1, d.agent), os.Chown(d.agent, 0, 0)); err != nil {
		t.Fatal(err)
	}
	_, err := d.Find(t.Context(), "")
	if err == nil || !strings.Contains(err.Error(), "not root's") {
		t.Errorf("another user's: %v", err)
	}
}

// listenAs makes a socket that a process of uid listens on.
func listenAs(uid int, path string) error {
	came := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with it
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
			came <- e
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
		}
		if err == nil {
			err = unix.Listen(fd, 1)
		}
		came <- err
	}()
	return <-came
}
