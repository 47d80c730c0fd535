package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"flag"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sft"
	"sft/internal/accounts"
	"sft/internal/api"
	"sft/internal/broker"
	"sft/internal/frame"
	"sft/internal/privsep"
	"sft/internal/testenv"
)

// TestMain runs more tests at once than there are processors: most of their
// time is waiting.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "broker" {
		os.Exit(testBroker())
	}
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

var testTime = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

// until polls for something that should become true soon. How long it takes where
// others take the machine's time is not what is tested.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A host is an agent on a machine in memory, with an RDP service that accepts
// and says nothing. Its broker never starts: tests ask in its place.
type host struct {
	*Agent
	t     testing.TB
	env   *testenv.Env
	mem   *accounts.Memory
	logs  *testenv.Log
	clock *api.Clock
	c     Config
	rdp   net.Listener // the RDP service
	cert  string       // its certificate
}

// newHost makes a host whose agent does not run yet, with a token file for
// the project.
func newHost(t testing.TB, env *testenv.Env, change func(*Config)) *host {
	t.Helper()
	h := &host{t: t, env: env, mem: accounts.NewMemory(), logs: &testenv.Log{}, clock: &api.Clock{Machine: env.Clock.Now}}
	h.c = testConfig(t)
	rdp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rdp.Close() })
	h.rdp = rdp
	h.cert = h.c.file("rdp.pem")
	h.c.RDPAddress, h.c.RDPCertificateFile = rdp.Addr().String(), h.cert
	write(t, h.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: env.CA})) // any will do
	if change != nil {
		change(&h.c)
	}
	h.writeToken(testenv.Project)
	h.make()
	return h
}

// testConfig is a configuration in a folder of the test's own.
func testConfig(t testing.TB) Config {
	t.Helper()
	state := filepath.Join(t.TempDir(), "sftd")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(state, "sftd.yaml")
	write(t, file, []byte("TokenFile: "+state+"/device.token\nServerFile: "+state+"/device.server\nBufferFile: "+state+"/buffer.db\n"+
		"EnrollmentTokenFile: "+state+"/enrollment.token\nBrokerUser: no-such-account\nBrokerListenHost: 127.0.0.1\nSSHAccess: none\n"+
		"AccessAddress: 192.0.2.10\nCanonicalName: web01\n"))
	c, err := ReadConfig(file, true)
	if err != nil {
		t.Fatal(err)
	}
	c.service = filepath.Join(filepath.Dir(state), "run", "service.sock")
	return c
}

func (h *host) make() {
	h.t.Helper()
	log := slog.New(slog.NewTextHandler(h.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var a *Agent
	var err error
	until(h.t, "the agent before is gone", func() bool { // a process that another test is starting has its lock until it is another program
		a, err = New(h.c, log, h.mem, h.clock)
		return sft.CodeOf(err) != sft.Exists
	})
	if err != nil {
		h.t.Fatal(err)
	}
	a.patience = 0 // most tests have no broker
	h.Agent = a
}

// run runs the agent until the returned function, or the end of the test.
func (h *host) run() (stop func()) {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var once sync.Once
	done, ready := make(chan error, 1), make(chan bool, 1)
	a := h.Agent
	go func() { done <- a.Run(ctx, func() { ready <- true }) }()
	<-ready
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				h.t.Errorf("the agent stopped with %v", err)
			}
		})
	}
	h.t.Cleanup(stop)
	return stop
}

// restart makes another agent of the host's state, which does not run yet.
func (h *host) restart(stop func()) {
	h.t.Helper()
	stop()
	h.make()
}

func (h *host) writeToken(project string) {
	h.t.Helper()
	write(h.t, h.c.EnrollmentTokenFile, encodeToken(h.t, api.EnrollmentToken{Secret: h.env.Token(project), URL: h.env.URL, Fingerprint: h.env.Init.CAFingerprint}))
}

func encodeToken(t testing.TB, tok api.EnrollmentToken) []byte {
	t.Helper()
	b, err := json.Marshal(tok)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(base64.StdEncoding.EncodeToString(b))
}

func write(t testing.TB, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// enrolledHost runs an agent until it is in step with the platform, where ann
// has access.
func enrolledHost(t testing.TB, change func(*Config)) *host {
	t.Helper()
	env := testenv.New(t)
	env.Grant(testenv.Project, "dev", false, "ann")
	h := newHost(t, env, change)
	h.run()
	h.waitAccount("ann")
	until(t, "the broker has a certificate", func() bool { return h.c.DisableBroker || h.chain.Load() != nil })
	return h
}

func (h *host) hasProblem(part string) bool {
	return slices.ContainsFunc(h.problems(), func(p string) bool { return strings.Contains(p, part) })
}

// join gives people access.
func (h *host) join(people ...string) {
	h.t.Helper()
	for _, name := range people {
		h.env.User(name)
		h.env.Do("POST", "/groups/dev/users", map[string]string{"name": name}, nil)
	}
}

func (h *host) waitAccount(login string) {
	h.t.Helper()
	until(h.t, login+" has an account", func() bool { return h.settledAccount(login) })
}

// An asker is a person who has what it takes to ask the host to open.
type asker struct {
	reply api.ConnectReply
	key   *ecdsa.PrivateKey
}

// connect gets a person a certificate for the host.
func (h *host) connect(user string) asker {
	h.t.Helper()
	return h.connectFrom(h.env.Client(user))
}

func (h *host) connectFrom(c *testenv.Client) asker {
	h.t.Helper()
	r, key, err := h.env.Connect(c, "web01")
	if err != nil {
		h.t.Fatal(err)
	}
	return asker{r, key}
}

func (h *host) frame(k asker, service string) privsep.Open {
	h.t.Helper()
	b, err := frame.Sign(frame.Hello{Service: service, Session: k.reply.SessionID}, k.reply.Route[0].ServerID, k.key, api.RandomID(), h.env.Clock.Now())
	if err != nil {
		h.t.Fatal(err)
	}
	return privsep.Open{Certificates: k.reply.Certificate, Frame: b, Remote: "192.0.2.1:50000"}
}

// ask is the broker's request for a person, with what came of it.
func (h *host) ask(k asker, service string) (uint64, frame.Reply, error) {
	h.t.Helper()
	n, reply, _, err := h.askAll(k, service)
	return n, reply, err
}

// askAll is ask, with what the broker is told for itself.
func (h *host) askAll(k asker, service string) (uint64, frame.Reply, broker.RDPService, error) {
	h.t.Helper()
	var reply frame.Reply
	var own broker.RDPService
	r, f, err := h.Open(context.Background(), h.frame(k, service))
	if f != nil {
		f.Close()
	}
	if err != nil {
		return 0, reply, own, err
	}
	if err := json.Unmarshal(r.Reply, &reply); err != nil {
		h.t.Fatal(err)
	}
	if len(r.Service) > 0 {
		if err := json.Unmarshal(r.Service, &own); err != nil {
			h.t.Fatal(err)
		}
		if strings.Contains(string(r.Reply), own.Password.Reveal()) {
			h.t.Error("the reply for the client holds the password that is the broker's")
		}
	}
	return r.Stream, reply, own, nil
}

func (h *host) enabled(login string) bool {
	a, _ := h.mem.Account(login)
	return a.Enabled
}

// wantCode fails the test unless err has the code and a hint.
func wantCode(t testing.TB, what string, err error, code sft.Code) {
	t.Helper()
	if err == nil || sft.CodeOf(err) != code {
		t.Errorf("%s: got error %v (%s), want %s", what, err, sft.CodeOf(err), code)
	}
	if e, ok := err.(*sft.Error); ok && e.Hint == "" {
		t.Errorf("%s: %v has no hint", what, err)
	}
}

// listing is what is in a folder, by name and size.
func listing(t testing.TB, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := ""
	for _, e := range list {
		i, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		s += e.Name() + " " + strconv.FormatInt(i.Size(), 10) + "\n"
	}
	return s
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// apply is what runSync and runReconcile do, one after the other.
func (h *host) apply(ctx context.Context, st *api.State, always bool) {
	cur, _ := h.current()
	if h.take(st, always) {
		h.mu.Lock()
		if h.state == st && cur != nil && cur.Revision > 0 {
			own := *st
			own.Revision = cur.Revision // or the platform, which knows of no other, takes it back at the next question
			h.state = &own
		}
		h.mu.Unlock()
		h.sessions.tick(ctx)
		h.reconcile(ctx)
	}
}
