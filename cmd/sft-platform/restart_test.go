//go:build unix

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testdb"
	"sft/internal/testenv"
)

// A manager is what systemd is to the platform: it is told when a process is
// ready, and keeps the socket from one to the next.
type manager struct {
	t      *testing.T
	notify *net.UnixConn
	path   string
	kept   *os.File
	args   []string
	log    *os.File
}

// newManager is a manager of a command, whose log is shown if the test fails.
func newManager(t *testing.T, args ...string) *manager {
	t.Helper()
	m := &manager{t: t, path: filepath.Join(t.TempDir(), "notify"), args: args}
	var err error
	m.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { m.notify.Close() })
	m.log, err = os.Create(filepath.Join(t.TempDir(), "log"))
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(m.log.Name())
			t.Logf("%s", b)
		}
	})
	return m
}

// start starts a process, and returns once it is ready.
func (m *manager) start() *exec.Cmd {
	m.t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec sft-platform "$@"`, "sh"}, m.args...)...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.path)
	cmd.Stdout, cmd.Stderr = m.log, m.log
	if m.kept != nil {
		cmd.ExtraFiles = []*os.File{m.kept}
		cmd.Env = append(cmd.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES="+socketName)
	}
	must(m.t, cmd.Start())
	m.t.Cleanup(func() { cmd.Process.Kill() })
	for {
		b, oob := make([]byte, 4096), make([]byte, 128)
		m.notify.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, oobn, _, _, err := m.notify.ReadMsgUnix(b, oob)
		must(m.t, err)
		switch said := string(b[:n]); {
		case said == "FDSTORE=1\nFDNAME="+socketName:
			if m.kept != nil {
				m.t.Error("a second socket is to be kept")
			}
			msgs, err := syscall.ParseSocketControlMessage(oob[:oobn])
			must(m.t, err)
			fds, err := syscall.ParseUnixRights(&msgs[0])
			must(m.t, err)
			m.kept = os.NewFile(uintptr(fds[0]), "kept")
		case said == "READY=1":
			return cmd
		case said != "STOPPING=1":
			m.t.Errorf("the manager is told %q", said)
		}
	}
}

// A worker is a client of the owner, at work: it makes groups, reads them and
// connects, and keeps what it was answered.
type worker struct {
	hc       *http.Client
	url      string
	key      *ecdsa.PrivateKey
	issuer   string
	csr      []byte
	groups   map[string]string // name to id
	sessions map[string]bool
	answered atomic.Int64
}

// newWorker puts a client of the owner into the database.
func newWorker(t *testing.T, db *store.DB, url string) *worker {
	t.Helper()
	key, spki := testenv.Key(t)
	c := store.ClientRecord{DeviceKey: spki}
	c.ID, c.State, c.EnrolledAt, c.SignedInUntil = audit.NewID(), sft.StateActive, time.Now(), time.Now().Add(time.Hour)
	must(t, db.Change(t.Context(), func(tx *store.Tx) (audit.Event, error) {
		team, err := tx.Team("main")
		if err != nil {
			return audit.Event{}, err
		}
		u, err := tx.User(team.ID, "olive")
		if err != nil {
			return audit.Event{}, err
		}
		c.TeamID, c.UserID = team.ID, u.ID
		return audit.Event{ID: audit.NewID(), Time: time.Now(), Kind: audit.ClientEnroll, Team: "main", Actor: audit.Actor{Kind: "platform"}, Outcome: audit.Success}, tx.AddClient(c)
	}))
	return &worker{url: url, key: key, issuer: "client:" + c.ID, csr: testenv.CSR(t, key), groups: map[string]string{}, sessions: map[string]bool{}}
}

// do sends a request, once: its body cannot be sent again, so that nothing does
// behind our back.
func (w *worker) do(method, path string, in, out any) error {
	var body []byte
	if in != nil {
		body, _ = json.Marshal(in)
	}
	path = "/v1/teams/main" + path
	h, err := api.Sign(w.key, w.issuer, w.url, method, path, body, time.Now())
	if err != nil {
		return err
	}
	r, err := http.NewRequest(method, w.url+path, io.MultiReader(bytes.NewReader(body)))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", h)
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := w.hc.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s %s, %v", method, path, resp.Status, b, err)
	}
	w.answered.Add(1)
	return json.Unmarshal(b, out)
}

// round is one request of each kind.
func (w *worker) round(name string) error {
	var made, there sft.Group
	if err := w.do("POST", "/groups", map[string]any{"name": name}, &made); err != nil {
		return err
	}
	w.groups[name] = made.ID
	if err := w.do("GET", "/groups/"+name, nil, &there); err != nil || there.ID != made.ID {
		return fmt.Errorf("the group %s was made as %s and is %s, %v", name, made.ID, there.ID, err)
	}
	var way api.ConnectReply
	if err := w.do("POST", "/connect", api.ConnectRequest{Target: "web01", Service: "rdp", CSR: w.csr}, &way); err != nil {
		return err
	}
	if w.sessions[way.SessionID] {
		return fmt.Errorf("there is a second session %s", way.SessionID)
	}
	w.sessions[way.SessionID] = true
	return nil
}

// While one process follows another, no request is lost: whether its
// connection is new or old, HTTP/1.1 or 2, answered at once or hanging, whether
// it reads or writes. What was acknowledged is there, once.
func TestRestartLosesNoRequest(t *testing.T) { testdb.Each(t, restartLosesNoRequest) }

func restartLosesNoRequest(t *testing.T, database string) {
	const restarts = 3
	ctx, done := context.WithCancel(t.Context())
	defer done()
	d := data{dir: t.TempDir(), database: database}
	must(t, ca.NewMasterKey(d.masterKey()))
	sealer, err := ca.OpenSealer(d.masterKey())
	must(t, err)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	listen := free.Addr().String()
	free.Close()
	db, err := store.Open(ctx, d.url())
	must(t, err)
	init, err := platform.Init(ctx, db, sealer, platform.InitRequest{URL: "https://" + listen, Team: "main", Owner: "olive", Project: "prod", OwnCA: true}, nil)
	must(t, err)
	var workers [8]*worker
	for i := range workers {
		workers[i] = newWorker(t, db, "https://"+listen)
	}
	must(t, db.Close())

	m := newManager(t, "serve", "--data", d.dir, "--database", d.url(), "--listen", listen, "--anonymous-rate", "100000", "--rate", "100000")
	process := m.start()
	if m.kept == nil {
		t.Fatal("the socket was not left with the manager")
	}
	platformCA, err := api.FetchCA(ctx, "https://"+listen, init.CAFingerprint, nil, &api.Clock{})
	must(t, err)
	client := func(h2 bool) *http.Client {
		hc, err := api.NewHTTP(platformCA, nil, &api.Clock{})
		must(t, err)
		if !h2 {
			tr := hc.Transport.(*http.Transport)
			tr.ForceAttemptHTTP2, tr.TLSClientConfig.NextProtos = false, []string{"http/1.1"}
		}
		t.Cleanup(hc.CloseIdleConnections)
		return hc
	}
	agent, _ := enroll(t, &api.Client{URL: "https://" + listen, Clock: &api.Clock{}, HTTP: client(true)}, init.Token)
	host, _ := testenv.Key(t)
	must(t, agent.Do(ctx, "POST", "/v1/agent/report", api.ReportRequest{Facts: testenv.Facts("web01"), CSR: testenv.CSR(t, host)}, nil))
	var now api.State
	must(t, agent.Do(ctx, "GET", "/v1/agent/state?after=-1", nil, &now))
	revision := now.Revision

	var all sync.WaitGroup
	for i, w := range workers {
		w.hc = client(i%2 == 0)
		all.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if err := w.round(fmt.Sprintf("g%d-%d", i, n)); err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				time.Sleep(time.Duration(i) * 3 * time.Millisecond)
			}
		})
	}
	var states atomic.Int64
	all.Go(func() {
		for ctx.Err() == nil {
			var st api.State
			err := agent.Do(ctx, "GET", fmt.Sprint("/v1/agent/state?after=", revision), nil, &st)
			if ctx.Err() == nil && (err != nil || st.Revision != revision) {
				t.Errorf("the agent: %d, %v", st.Revision, err)
				return
			}
			states.Add(1)
		}
	})

	more := func() {
		t.Helper()
		var before [len(workers)]int64
		for i, w := range workers {
			before[i] = w.answered.Load()
		}
		for deadline := time.Now().Add(time.Minute); !t.Failed(); time.Sleep(10 * time.Millisecond) {
			waits := 0
			for i, w := range workers {
				if w.answered.Load() < before[i]+12 {
					waits++
				}
			}
			if waits == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d clients get no answer", waits)
			}
		}
	}
	for range restarts {
		more()
		must(t, process.Process.Signal(syscall.SIGTERM))
		if err := process.Wait(); err != nil {
			t.Fatalf("the process that was told to stop: %v", err)
		}
		process = m.start()
	}
	more()
	// The state that hung was answered early each time.
	if n := states.Load(); n < restarts || n > 10*restarts {
		t.Errorf("the agent got %d answers", n)
	}
	done()
	all.Wait()
	must(t, process.Process.Signal(syscall.SIGTERM))
	must(t, process.Wait())
	m.kept.Close()
	if _, err := net.Dial("tcp", listen); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("when the manager has let go, somebody still listens: %v", err)
	}
	acknowledged(t, d.url(), workers[:])
}

// acknowledged checks that what the workers were answered is in the database,
// record and event, once, and nothing else.
func acknowledged(t *testing.T, database string, workers []*worker) {
	t.Helper()
	db := testdb.Raw(t, database)
	list := func(query string) (got []string) {
		t.Helper()
		rows, err := db.Query(query)
		must(t, err)
		defer rows.Close()
		for rows.Next() {
			var s string
			must(t, rows.Scan(&s))
			got = append(got, s)
		}
		must(t, rows.Err())
		return got
	}
	var groups, names, sessions []string
	for _, w := range workers {
		for name, id := range w.groups {
			groups, names = append(groups, id+" "+name), append(names, name)
		}
		sessions = slices.AppendSeq(sessions, maps.Keys(w.sessions))
	}
	told := func(kind audit.Kind, field func(audit.Event) string) (got []string) {
		t.Helper()
		for _, body := range list(fmt.Sprintf("SELECT body FROM events WHERE kind = '%s'", kind)) {
			var e audit.Event
			must(t, json.Unmarshal([]byte(body), &e))
			if e.Outcome == audit.Success && e.Actor.Kind != "platform" {
				got = append(got, field(e))
			}
		}
		return got
	}
	for what, v := range map[string][2][]string{
		"groups":             {groups, list("SELECT id || ' ' || name FROM groups WHERE name LIKE 'g%'")},
		"events of groups":   {names, told(audit.GroupCreate, func(e audit.Event) string { return e.Target })},
		"sessions":           {sessions, list("SELECT id FROM sessions")},
		"events of sessions": {sessions, told(audit.UserCredsIssue, func(e audit.Event) string { return e.Session })},
	} {
		slices.Sort(v[0])
		slices.Sort(v[1])
		if len(v[0]) == 0 || !slices.Equal(v[0], v[1]) {
			t.Errorf("%d %s were acknowledged, and there are %d", len(v[0]), what, len(v[1]))
		}
	}
	t.Logf("%d groups and %d sessions", len(groups), len(sessions))
}

// A socket is used again for the address that it is for, and for no other.
func TestListensOn(t *testing.T) {
	tcp := func(ip string, port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }
	for _, tt := range []struct {
		socket net.Addr
		addr   string
		want   bool
	}{
		{tcp("::", 443), ":443", true},
		{tcp("0.0.0.0", 443), ":443", true},
		{tcp("::", 443), "0.0.0.0:443", true},
		{tcp("127.0.0.1", 443), "127.0.0.1:443", true},
		{tcp("127.0.0.1", 443), ":443", false},
		{tcp("::", 443), "127.0.0.1:443", false},
		{tcp("::", 443), ":8443", false},
		{tcp("::", 443), "nonsense", false},
		{&net.UnixAddr{Name: "/x"}, ":443", false},
	} {
		if got := listensOn(tt.socket, tt.addr); got != tt.want {
			t.Errorf("%v for %s: %v", tt.socket, tt.addr, got)
		}
	}
}
