package agent

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/frame"
	"sft/internal/sshd"
	"sft/internal/testenv"
)

// sshTurn has the name of the test that has the machine's SSH processes to itself.
var sshTurn = struct {
	turn chan struct{}
	of   atomic.Value
}{turn: make(chan struct{}, 1)}

// takeSSHTurn waits until no other test cares for an SSH server: an agent that
// stops, as each does at its test's end, ends whatever serves one of its logins
// by its title, and the tests have logins in common.
func takeSSHTurn(t *testing.T) {
	if of, _ := sshTurn.of.Load().(string); of == t.Name() {
		return // another agent of the test's
	}
	sshTurn.turn <- struct{}{}
	sshTurn.of.Store(t.Name())
	t.Cleanup(func() { sshTurn.of.Store(""); <-sshTurn.turn })
}

// withSSH cares for an SSH server that has its files in a folder of the test's
// own.
func withSSH(t *testing.T, c *Config) (principals string) {
	takeSSHTurn(t)
	dir := t.TempDir()
	c.SSHAccess, c.SSHDConfigFile = sshDirect, filepath.Join(dir, "sshd_config")
	c.AuthorizedPrincipalsFile, c.TrustedUserCAKeysFile = filepath.Join(dir, "sftd", "principals", "%u"), filepath.Join(dir, "sftd", "ca.pub")
	return filepath.Dir(c.AuthorizedPrincipalsFile)
}

// Who may sign in by SSH is who may use the host now, and nobody else, at once.
func TestSSHPrincipals(t *testing.T) {
	t.Parallel()
	var dir string
	h := enrolledHost(t, func(c *Config) { dir = withSSH(t, c) })
	has := func(logins ...string) {
		t.Helper()
		want := strings.Join(logins, " ")
		got := ""
		defer func() {
			if t.Failed() {
				t.Logf("they are %q, want %q", got, want)
			}
		}()
		until(t, "the principals are those of "+want, func() bool {
			list, _ := os.ReadDir(dir)
			var names []string
			for _, f := range list {
				b, err := os.ReadFile(filepath.Join(dir, f.Name()))
				if id := h.who.Load(); err != nil || id == nil || string(b) != "sft:"+id.ServerID+":"+f.Name()+"\n" {
					names = append(names, "not ours:")
				}
				names = append(names, f.Name())
			}
			got = strings.Join(names, " ")
			return got == want
		})
	}
	has("ann", "olive")
	h.mem.AddForeign("carl", 1000)
	h.join("bob", "carl", "dan")
	has("ann", "bob", "dan", "olive")

	// An account that comes and goes by itself.
	if err := h.sshAccountIs("dan", false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "dan")); err == nil {
		t.Error("dan is let in when his account is about to go")
	}
	if err := h.sshAccountIs("dan", true); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "dan")); err != nil {
		t.Error("dan is not let in when his account is there")
	}

	h.env.Do("DELETE", "/groups/dev/users/bob", nil, nil)
	has("ann", "dan", "olive")

	// Beyond the grace nobody is let in, and then again.
	h.mu.Lock()
	heard := h.heard
	h.lost, h.heard = true, h.now().Add(-25*time.Hour)
	h.mu.Unlock()
	has()
	h.mu.Lock()
	h.lost, h.heard = false, heard
	h.mu.Unlock()
	has("ann", "dan", "olive")

	// A project that wants no accounts.
	st, _ := h.current()
	next := *st
	next.Revision++
	next.Settings.CreateServerUsers = false
	h.mu.Lock()
	h.state = &next
	h.tellNews()
	h.mu.Unlock()
	has()
	h.mu.Lock()
	h.state = st
	h.tellNews()
	h.mu.Unlock()
	has("ann", "dan", "olive")

	h.env.Do("DELETE", "/projects/"+testenv.Project+"/servers/"+h.who.Load().ServerID, nil, nil)
	until(t, "nobody is let in when the record is deleted", func() bool {
		list, err := os.ReadDir(dir)
		return err == nil && len(list) == 0
	})
}

// A restart takes nobody out for a moment, and lets nobody new in before the
// accounts were looked at.
func TestSSHPrincipalsOfARestart(t *testing.T) {
	t.Parallel()
	var dir string
	env := testenv.New(t)
	env.Grant(testenv.Project, "dev", false, "ann", "bob")
	h := newHost(t, env, func(c *Config) { dir = withSSH(t, c) })
	stop := h.run()
	h.waitAccount("bob")
	until(t, "both are let in", func() bool { list, _ := os.ReadDir(dir); return len(list) == 3 })
	stop()
	if list, _ := os.ReadDir(dir); len(list) != 3 {
		t.Errorf("a stop leaves %v", list)
	}
	h.make()
	if err := os.Remove(filepath.Join(dir, "bob")); err != nil {
		t.Fatal(err)
	}
	h.loadState()
	if got, known := h.sshLogins(); known {
		t.Errorf("before it is known who this host is, it lets in %v", got)
	}
	id, _, err := readIdentity(h.c)
	if err != nil {
		t.Fatal(err)
	}
	h.who.Store(id)
	if got, known := h.sshLogins(); !known || len(got) != 2 || got["bob"] != "" || got["ann"] == "" {
		t.Errorf("before the accounts were looked at it lets in %v", got)
	}
	h.reconcile(t.Context())
	if got, known := h.sshLogins(); !known || len(got) != 3 {
		t.Errorf("after that it lets in %v", got)
	}
}

// Left alone, nothing of the SSH server's is touched, and what was there goes.
func TestSSHLeftAlone(t *testing.T) {
	t.Parallel()
	var dir string
	h := enrolledHost(t, func(c *Config) {
		dir = withSSH(t, c)
		c.SSHAccess = sshNone
		must := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		must(os.MkdirAll(dir, 0o755))
		must(os.WriteFile(filepath.Join(dir, "ann"), []byte("sft:x:ann\n"), 0o644))
		must(os.WriteFile(c.sshFiles().Record, []byte("{}"), 0o600))
	})
	until(t, "what was there is gone", func() bool { _, err := os.Stat(dir); return errors.Is(err, os.ErrNotExist) })
	if f, err := h.facts(); err != nil || f.SSH != nil {
		t.Errorf("the facts are %+v, %v", f, err)
	}
	if err := h.sshAccountIs("ann", true); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a file of principals was made")
	}
}

// A sign-in is an event. Its person and session are those of the certificate,
// if the platform's CA signed it.
func TestSSHLogin(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, func(c *Config) { withSSH(t, c) })
	k := h.connect("ann")
	ca, fingerprint := sshCA(t)
	st, _ := h.current()
	next := *st
	next.SSHUserCAs = []string{ca}
	h.mu.Lock()
	h.state = &next
	h.mu.Unlock()
	l := sshd.Login{Login: "ann", Method: "publickey", Remote: netip.MustParseAddrPort("192.0.2.7:4000"), Fingerprint: "SHA256:x", KeyID: "sft:session/" + k.reply.SessionID + "/user/" + h.userID("ann"), CA: fingerprint}
	h.sshLogin(l)
	l.CA = "SHA256:of-somebody-else"
	h.sshLogin(l)
	for range 500 {
		h.sshLogin(sshd.Login{Login: "carl", Method: "password", Remote: netip.MustParseAddrPort("192.0.2.8:4000")})
	}
	var mine, foreign, others int
	until(t, "the platform knows", func() bool {
		mine, foreign, others = 0, 0, 0
		for _, e := range h.env.Events() {
			switch {
			case e.Kind != audit.SSHLogin:
			case e.Detail["login"] == "carl" && e.Actor.Kind != "user" && e.Detail["remote"] == "192.0.2.8:4000" && e.Detail["method"] == "password":
				others++
			case e.Session == k.reply.SessionID && e.Detail["key"] == "SHA256:x":
				mine++
			case e.Session == "":
				foreign++
			}
		}
		return mine == 1 && foreign == 1 && others >= 99
	})
	if others > 100 {
		t.Errorf("%d sign-ins of others were told", others)
	}
}

// Sign-ins fill half of the room for events at most: with none left nobody's
// session is opened.
func TestSSHLoginsLeaveRoom(t *testing.T) {
	t.Parallel()
	h := newHost(t, testenv.New(t), func(c *Config) { withSSH(t, c) })
	defer h.lock.Release()
	told := func() bool {
		n := h.events.waiting()
		h.sshLogin(sshd.Login{Login: "carl", Method: "password", Remote: netip.MustParseAddrPort("192.0.2.8:4000")})
		return h.events.waiting() > n
	}
	if !told() {
		t.Error("a sign-in is not told")
	}
	h.events.mu.Lock()
	for range maxSpooled / 2 {
		h.events.unsent = append(h.events.unsent, api.Event{Seq: h.events.stored})
	}
	h.events.mu.Unlock()
	if told() {
		t.Error("it is told though there are many")
	}
}

// Whoever signed in to the SSH server itself goes when their session is over,
// after a restart of the agent, too, and with the last of them what they left
// running.
func TestSSHSessionsEnd(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	h := enrolledHost(t, func(c *Config) { withSSH(t, c) })
	ca, fingerprint := sshCA(t)
	say := func(change func(*api.State)) {
		st, _ := h.current()
		next := *st
		next.SSHUserCAs = []string{ca}
		change(&next)
		h.mu.Lock()
		h.state = &next
		h.tellNews()
		h.mu.Unlock()
	}
	say(func(*api.State) {})
	in := func(session string) chan struct{} {
		pid, ended := serving(t, "ann")
		h.sshLogin(sshd.Login{PID: pid, Login: "ann", Method: "publickey", Remote: netip.MustParseAddrPort("192.0.2.7:4000"), Fingerprint: "SHA256:x",
			KeyID: "sft:session/" + session + "/user/" + h.userID("ann"), CA: fingerprint})
		return ended
	}
	is := func(ended chan struct{}) bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	}
	h.mem.Begin("ann", h.machine())
	first, second, third := in("ses-1"), in("ses-2"), in("ses-2")
	forged := in("../..") // which the key of the CA can be made to sign, too
	h.endLive(t.Context())
	if is(first) {
		t.Error("it has ended by itself")
	}
	say(func(st *api.State) { st.EndedSessions = []string{"ses-1"} })
	until(t, "the first has ended", func() bool { return is(first) })
	h.endLive(t.Context())
	if is(second) || is(third) || is(forged) || h.mem.Sessions("ann") != 1 {
		t.Error("more has ended than that")
	}
	restart := func() {
		h.ssh.mu.Lock()
		h.ssh.live = nil
		h.ssh.mu.Unlock()
		h.loadLive()
	}
	restart()
	say(func(st *api.State) { st.DroppedCAs = []string{"SHA256:of-another"} })
	h.endLive(t.Context())
	if is(second) || is(forged) {
		t.Error("it ends by the drop of another CA")
	}
	h.env.Clock.Advance(13 * time.Hour)
	until(t, "the others have ended", func() bool { return is(second) && is(third) && is(forged) })
	until(t, "nothing runs as ann", func() bool { return h.mem.Sessions("ann") == 0 })

	// One that ends by itself is told, too, when nothing of the session is left;
	// and one that was over before the log was read.
	fourth, fifth := in("ses-4"), in("ses-4")
	kill := func(n int) {
		h.ssh.mu.Lock()
		pid := h.ssh.live[n].PID
		h.ssh.mu.Unlock()
		syscall.Kill(pid, syscall.SIGKILL)
	}
	kill(0)
	until(t, "one of two has ended", func() bool { return is(fourth) })
	h.endLive(t.Context())
	h.ssh.mu.Lock()
	h.ssh.live = nil
	h.ssh.mu.Unlock()
	h.loadLive() // after a restart
	kill(0)
	until(t, "both have ended", func() bool { return is(fifth) })
	h.sshLogin(sshd.Login{PID: 1 << 22, Login: "ann", Method: "publickey", Remote: netip.MustParseAddrPort("192.0.2.7:4000"), Fingerprint: "SHA256:x",
		KeyID: "sft:session/ses-5/user/" + h.userID("ann"), CA: fingerprint})
	var ends []string
	until(t, "the ends are told", func() bool {
		ends = nil
		for _, e := range h.env.Events() {
			if e.Kind == audit.SessionEnd {
				ends = append(ends, e.Detail["user"]+" "+e.Detail["service"]+" "+e.Detail["why"])
			}
		}
		return len(ends) >= 4
	})
	slices.Sort(ends)
	if want := []string{"ann ssh ended: it lasted as long as the project allows", "ann ssh ended: the platform has ended the session", "ann ssh the connection was closed", "ann ssh the connection was closed"}; !slices.Equal(ends, want) {
		t.Errorf("they are told as %q, want %q", ends, want)
	}

	// What a CA has let in that is dropped, though it names nobody, and what it
	// lets in at that very moment.
	drop := func(st *api.State) { st.SSHUserCAs, st.DroppedCAs = nil, []string{fingerprint} }
	h.mem.Begin("ann", h.machine())
	first, forged = in("ses-6"), in("../..")
	restart()
	say(drop)
	until(t, "what the dropped CA had let in has ended", func() bool { return is(first) && is(forged) })
	late := in("ses-7")
	until(t, "what it let in since has ended", func() bool { return is(late) })
	until(t, "nothing runs as ann", func() bool { return h.mem.Sessions("ann") == 0 })
}

// sshCA is a key of the platform's, as a state has it and as the log does.
func sshCA(t *testing.T) (line, fingerprint string) {
	t.Helper()
	line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUZTFDbmZdgHv2rnvGF5mRfTR4Ay2tX4x0pD9FLGNRx"
	return line, fingerprintOf(t, line)
}

// needsRoot skips what looks after processes of the SSH server.
func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: this needs root, as whom the SSH server runs")
	}
}

// serving starts what is, to all who ask, the process of the SSH server that
// serves a connection of login: it reads its configuration, and waits for it.
func serving(t *testing.T, login string) (pid int, ended chan struct{}) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "config")
	if err := syscall.Mkfifo(config, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := &exec.Cmd{Path: "/usr/sbin/sshd", Args: []string{"sshd: " + login + " [priv]", "-t", "-f", config}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended = make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	until(t, "it calls itself so", func() bool { // execve is not over yet when it has closed the files
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
		return err == nil && strings.HasPrefix(string(b), cmd.Args[0]+"\x00")
	})
	return cmd.Process.Pid, ended
}

// A session's end is told once, when nothing of it goes on: not by the broker,
// and not at the SSH server itself.
func TestSSHSessionEndsOnce(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	h := enrolledHost(t, func(c *Config) { withSSH(t, c) })
	ca, fingerprint := sshCA(t)
	h.change(func(st *api.State) { st.SSHUserCAs = []string{ca} })
	h.waitAccount("ann")
	user := h.userID("ann")
	signIn := func(session, from string, pid int) {
		h.sshLogin(sshd.Login{PID: pid, Login: "ann", Method: "publickey", Remote: netip.MustParseAddrPort(from), KeyID: "sft:session/" + session + "/user/" + user, CA: fingerprint})
	}
	const direct, loopback, gone = "192.0.2.7:4000", "127.0.0.1:4000", 1 << 22
	stream := func(session string) uint64 {
		t.Helper()
		id, _, err := h.sessions.open(t.Context(), api.StateUser{ID: user, Login: "ann"}, session, frame.SSH, "192.0.2.7:1", "", func() error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		signIn(session, loopback, gone)
		return id
	}
	closed := func(id uint64) {
		h.sessions.closed(id, 7, 8, "the client closed it")
		h.env.Clock.Advance(10 * time.Minute) // beyond the grace
		h.sessions.watch()
	}
	kill := func(pid int, ended chan struct{}) {
		syscall.Kill(pid, syscall.SIGKILL)
		<-ended
		h.endLive(t.Context())
	}

	id := stream("ses-direct-first")
	pid, ended := serving(t, "ann")
	signIn("ses-direct-first", direct, pid)
	signIn("ses-direct-first", direct, gone)
	kill(pid, ended)
	closed(id)

	id = stream("ses-broker-first")
	pid, ended = serving(t, "ann")
	signIn("ses-broker-first", direct, pid)
	closed(id)
	if _, open, _ := h.sessions.find("ses-broker-first"); !open {
		t.Error("a session is over that goes on at the SSH server itself")
	}
	kill(pid, ended)
	h.sessions.watch()
	signIn("ses-broker-first", loopback, gone) // read from the log again

	var ends []string
	told := func() int {
		ends = nil
		for _, e := range h.env.Events() {
			if e.Kind == audit.SessionEnd && e.Detail["user"] == "ann" {
				ends = append(ends, e.Detail["why"]+" "+e.Detail["bytes_in"])
			}
		}
		return len(ends)
	}
	id = stream("ses-ended")
	pid, _ = serving(t, "ann")
	signIn("ses-ended", direct, pid)
	pid, _ = serving(t, "ann")
	signIn("ses-ended-too", direct, pid) // which is told of after that
	h.sessions.endWhere(func(s *session) string {
		if s.ID == "ses-ended" {
			return "for the test"
		}
		return ""
	})
	h.change(func(st *api.State) { st.EndedSessions = []string{"ses-ended", "ses-ended-too"} })
	until(t, "the direct one is told", func() bool { told(); return slices.Contains(ends, "ended: the platform has ended the session ") })
	closed(id)

	// From the host itself, and not by the broker.
	signIn("ses-loopback", loopback, gone)
	// The process of that number is another person's by now.
	pid, ended = serving(t, "bob")
	signIn("ses-replayed", direct, pid)
	h.change(func(st *api.State) { st.EndedSessions = append(st.EndedSessions, "ses-replayed") })
	h.endLive(t.Context())
	select {
	case <-ended:
		t.Error("another person's connection has ended")
	default:
	}

	signIn("ses-last", direct, gone)
	until(t, "the ends are told", func() bool { return told() >= 7 })
	want := []string{"the client closed it 7", "the client closed it 7", "ended: the platform has ended the session ", "ended: for the test 7", "the connection was closed ", "the connection was closed ", "the connection was closed "}
	if !slices.Equal(ends, want) {
		t.Errorf("they are told as %q, want %q", ends, want)
	}
}

// Time goes on while it is seen who has been signed in for too long: nobody is
// forgotten without being ended.
func TestSSHSessionsEndAsTimeGoesOn(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	h := newHost(t, testenv.New(t), func(c *Config) { withSSH(t, c) })
	defer h.lock.Release()
	pid, _ := serving(t, "ann")
	p, ok := h.ssh.server.Process(sshd.Login{PID: pid, Login: "ann"})
	if !ok {
		t.Fatal("the process is not the server's")
	}
	now := h.machine()
	h.clock.Machine = func() time.Time { now = now.Add(time.Second); return now }
	h.state = &api.State{}
	const all = 20
	for n := range all {
		h.ssh.live = append(h.ssh.live, sshLive{Process: p, Login: "ann", User: "u", Session: fmt.Sprint("ses-", n), CA: "SHA256:x", Until: now.Add(time.Duration(n) * time.Second)})
	}
	h.endLive(t.Context())
	told := 0
	for _, e := range h.events.unsent {
		if e.Kind == string(audit.SessionEnd) {
			told++
		}
	}
	if left := len(h.ssh.live); told == 0 || told+left != all {
		t.Errorf("of %d, %d have ended, and %d go on", all, told, left)
	}
}

// Of a sign-in that an agent before this one noted, the CA may not be known: it
// ends when any is dropped from then on.
func TestSSHSessionsOfUnknownCAsEnd(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	h := newHost(t, testenv.New(t), func(c *Config) { withSSH(t, c) })
	defer h.lock.Release()
	pid, ended := serving(t, "ann")
	p, _ := h.ssh.server.Process(sshd.Login{PID: pid, Login: "ann"})
	h.ssh.live = []sshLive{{Process: p, Login: "ann", User: "u", Session: "ses-1", Until: h.machine().Add(time.Hour)}}
	h.saveLive()
	h.ssh.live = nil
	h.state = &api.State{DroppedCAs: []string{"SHA256:of-long-ago"}}
	h.loadLive()
	for _, more := range [][]string{nil, {"x509-of-the-broker"}} {
		h.state = &api.State{DroppedCAs: append(more, "SHA256:of-long-ago")}
		if h.endLive(t.Context()); len(h.ssh.live) != 1 {
			t.Fatalf("it ends though %v is what was dropped", more)
		}
	}
	h.state = &api.State{DroppedCAs: []string{"SHA256:of-now", "SHA256:of-long-ago"}}
	h.endLive(t.Context())
	if len(h.ssh.live) != 0 {
		t.Fatal("it goes on")
	}
	<-ended
}

func TestNetworkOfTheCloud(t *testing.T) {
	t.Parallel()
	mac, vpc, asked := "0a:1b:2c:3d:4e:5f", "vpc-0123456789abcdef0", 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		switch {
		case r.Method == "PUT" && r.URL.Path == "/latest/api/token":
			w.Write([]byte("token"))
		case r.Header.Get("X-aws-ec2-metadata-token") != "token":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/latest/meta-data/mac":
			w.Write([]byte(mac))
		case r.URL.Path == "/latest/meta-data/network/interfaces/macs/"+mac+"/vpc-id":
			w.Write([]byte(vpc))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer s.Close()
	h := newHost(t, testenv.New(t), nil)
	h.metadataURL = s.URL
	defer h.lock.Release()
	for _, tt := range []struct{ mac, vpc, want string }{
		{"x/../../y", vpc, ""}, {mac, "<html>", ""}, {mac, vpc + strings.Repeat("0", 200), ""}, {mac, vpc, "aws:" + vpc}, {mac, "vpc-00000001", "aws:" + vpc},
	} {
		mac, vpc = tt.mac, tt.vpc
		if got := h.network(); got != tt.want {
			t.Errorf("%q, %q: got %q, want %q", tt.mac, tt.vpc, got, tt.want)
		}
		n := asked
		if h.network(); asked != n {
			t.Error("it asks all the time")
		}
		h.env.Clock.Advance(11 * time.Minute)
	}
	// A host that did not enrol by its cloud does not ask.
	n := asked
	if f, err := h.facts(); err != nil || f.Network != "" || f.PrivateAddress != "" || asked != n {
		t.Errorf("it tells %q, %q", f.PrivateAddress, f.Network)
	}
	h.who.Store(&identity{Instance: "i-0123456789abcdef0"})
	if f, err := h.facts(); err != nil || f.Network != "aws:"+vpc && f.Network == "" || f.PrivateAddress != privateAddress() {
		t.Errorf("it tells %q, %q, %v", f.PrivateAddress, f.Network, err)
	}
	if a := privateAddress(); a != "" && !netip.MustParseAddr(a).IsPrivate() {
		t.Errorf("%s is not private", a)
	}
}
