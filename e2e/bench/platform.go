//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/uuid"

	"sft"
	"sft/e2e/lab"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/platform"
	"sft/internal/store"
)

// A pfm is a platform of its own for the measures: the real program on
// loopback, on a database that waits for the disk.
type pfm struct {
	b       *bench
	t       lab.T
	dir     string
	db      *store.DB
	init    platform.InitReply
	url     string
	metrics string
	failed  atomic.Pointer[error] // in the background
	analyze func()                // what autovacuum does within a minute
	ca      []byte
	pid     int
	user    store.UserRecord // the owner
	project store.ProjectRecord
	session string // of the first events
}

// platform measures the platform alone.
func (b *bench) platform() {
	for _, kind := range []string{"SQLite", "PostgreSQL"} {
		b.scope(func(t lab.T) {
			p := b.newPlatform(t, kind)
			idle := p.memory()
			p.fill(1, fewServers, fewEvents)
			p.connects(kind)
			small := p.reads()
			p.fill(2, b.plan.servers, b.plan.events)
			large := p.reads()
			for i, l := range lists {
				b.report.add(row{key: "growth", measure: fmt.Sprintf("%s, %s, with %d servers and %d events, against %d and few", l.name, kind, b.plan.servers, b.plan.events, fewServers),
					ratio: []float64{large[i] / small[i]}, most: 2, detail: fmt.Sprintf("%s ms / %s ms", digits(large[i]), digits(small[i]))})
			}
			p.stop()
			if kind == "SQLite" {
				p.serve()
				p.agents(idle)
			}
		})
	}
}

// What a small platform has: a page of each list is full, of each that is
// searched, too.
const fewServers, fewEvents = 200, 1000

// newPlatform makes a platform and runs it.
func (b *bench) newPlatform(t lab.T, kind string) *pfm {
	dir, err := os.MkdirTemp("", "sft-bench-")
	p := &pfm{b: b, t: t, dir: dir, session: audit.NewID()}
	p.must(err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	database := "sqlite:" + filepath.Join(dir, "platform.db")
	p.analyze = func() {}
	if kind == "PostgreSQL" {
		database, p.analyze = b.postgres(t)
	}
	p.must(os.WriteFile(filepath.Join(dir, "database"), []byte(database), 0o600))
	free := func() string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		p.must(err)
		defer ln.Close()
		return ln.Addr().String()
	}
	listen := free()
	p.url, p.metrics = "https://"+listen, free()
	key := filepath.Join(dir, "master.key")
	p.must(ca.NewMasterKey(key))
	sealer, err := ca.OpenSealer(key)
	p.must(err)
	p.db, err = store.Open(t.Context(), database)
	p.must(err)
	t.Cleanup(func() { p.db.Close() })
	p.init, err = platform.Init(t.Context(), p.db, sealer, platform.InitRequest{URL: p.url, Team: "main", Owner: "olive", ServiceUser: "robot", Project: "prod", OwnCA: true}, nil)
	p.must(err)
	p.must(p.db.Read(t.Context(), func(tx *store.Tx) error {
		team, err := tx.Team("main")
		if err != nil {
			return err
		}
		var err2 error
		p.user, err = tx.User(team.ID, "olive")
		p.project, err2 = tx.Project(team.ID, "prod")
		return errors.Join(err, err2)
	}))
	p.serve()
	p.ca, err = api.FetchCA(t.Context(), p.url, p.init.CAFingerprint, nil, &api.Clock{})
	p.must(err)
	return p
}

func (p *pfm) must(err error) {
	if err != nil {
		p.t.Fatalf("%v", err)
	}
}

// check ends the measures if something failed in the background.
func (p *pfm) check() {
	if err := p.failed.Load(); err != nil {
		p.t.Fatalf("%v", *err)
	}
}

// serve runs the program, until the scope ends or stop.
func (p *pfm) serve() {
	database, err := os.ReadFile(filepath.Join(p.dir, "database"))
	p.must(err)
	cmd := exec.Command(p.b.program("sft-platform"), "serve", "--data", p.dir, "--listen", p.url[len("https://"):], "--metrics-listen", p.metrics,
		"--rate", "1000000", "--anonymous-rate", "1000000", "--max-requests", "100000", "--max-connections", "100000", "--log-level", "error")
	cmd.Env = append(os.Environ(), "SFT_PLATFORM_DATABASE="+string(database))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.must(cmd.Start())
	p.pid = cmd.Process.Pid
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	p.t.Cleanup(func() { cmd.Process.Signal(syscall.SIGTERM); <-ended })
	p.wait("the platform answers", func() bool { return p.metric("sft_platform_build_info") == 1 })
}

// stop ends the program.
func (p *pfm) stop() {
	pr, _ := os.FindProcess(p.pid)
	p.must(pr.Signal(syscall.SIGTERM))
	p.wait("the platform ends", func() bool { return pr.Signal(syscall.Signal(0)) != nil })
}

func (p *pfm) wait(what string, ok func() bool) { p.within(time.Minute, what, ok) }

func (p *pfm) within(d time.Duration, what string, ok func() bool) {
	for end := time.Now().Add(d); !ok(); time.Sleep(20 * time.Millisecond) {
		p.check()
		if time.Now().After(end) {
			p.t.Fatalf("%s: not in %s", what, d)
		}
	}
}

// metric reads one metric without labels, or with all of its labels in name.
func (p *pfm) metric(name string) float64 {
	resp, err := http.Get("http://" + p.metrics + "/metrics")
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + `(?:\{.*\})? (\S+)$`).FindSubmatch(text)
	if m == nil {
		return -1
	}
	v, _ := strconv.ParseFloat(string(m[1]), 64)
	return v
}

// memory is what the program has of its own, in MB, once it is quiet.
func (p *pfm) memory() float64 {
	time.Sleep(p.b.plan.idle / 6)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	p.must(err)
	m := regexp.MustCompile(`RssAnon:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		p.t.Fatalf("the kernel does not tell the program's memory")
	}
	kb, _ := strconv.ParseFloat(string(m[1]), 64)
	return kb / 1024
}

// fill stores servers and events of a run, and a client and a server to
// measure with.
func (p *pfm) fill(run, servers, events int) {
	event := func(kind audit.Kind) audit.Event {
		return audit.Event{ID: audit.NewID(), Time: time.Now().UTC(), Kind: kind, Team: "main", Actor: audit.Actor{Kind: "platform"}, Outcome: audit.Success}
	}
	now := time.Now()
	store1000 := func(n int, one func(tx *store.Tx, i int) error) {
		for at := 0; at < n; at += 1000 {
			p.must(p.db.Change(p.t.Context(), func(tx *store.Tx) (audit.Event, error) {
				for i := at; i < min(at+1000, n); i++ {
					if err := one(tx, i); err != nil {
						return audit.Event{}, err
					}
				}
				return event(audit.ServerUpdate), nil
			}))
		}
	}
	store1000(servers, func(tx *store.Tx, i int) error {
		return p.server(tx, fmt.Sprintf("run%d-%d", run, i), []byte(fmt.Sprint(run, "-", i)), now)
	})
	kinds := []audit.Kind{audit.UserCredsIssue, audit.AccountEnabled, audit.SessionStart, audit.SessionEnd}
	session := p.session
	if run > 1 {
		session = audit.NewID()
	}
	store1000(events, func(tx *store.Tx, i int) error {
		e := event(kinds[i%len(kinds)])
		e.ID = idAt(now.AddDate(0, 0, -30).Add(time.Duration(float64(i) / float64(events) * float64(30*24*time.Hour))))
		if i > 0 && i%len(kinds) == 0 {
			session = audit.NewID()
		}
		e.Session = session
		e.Actor, e.Target = audit.Actor{Kind: "user", Name: fmt.Sprint("user", i/4%10)}, fmt.Sprint("web", i/4%9)
		tx.Also(e)
		return nil
	})
	if run == 1 {
		store1000(1, func(tx *store.Tx, i int) error { return p.server(tx, "target", []byte("target"), now) })
	}
	p.analyze()
}

// idAt is an id that was made at t (RFC 9562, 5.7).
func idAt(t time.Time) string {
	id := uuid.Must(uuid.NewV7())
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(t.UnixMilli()))
	copy(id[:6], ms[2:])
	return id.String()
}

// settle waits until the platform has nothing left to do: it seals what fill
// has stored, and that took processors and disk from what is measured.
func (p *pfm) settle() {
	p.within(10*time.Minute, "all events are sealed", func() bool { return p.metric("sft_platform_audit_unsealed") == 0 })
}

// server stores a server whose broker has a certificate.
func (p *pfm) server(tx *store.Tx, name string, spki []byte, now time.Time) error {
	sum := sha256.Sum256(spki)
	r := store.ServerRecord{ID: audit.NewID(), TeamID: p.project.TeamID, ProjectID: p.project.ID, DeviceKey: spki, HostKey: sum[:], RegisteredAt: now, LastSeen: &now,
		Facts: api.Facts{Hostname: name, AccessAddress: fmt.Sprintf("10.%d.%d.%d", sum[0], sum[1], sum[2]), BrokerPort: sft.BrokerPort, OS: "Debian 12", OSType: "linux", Version: sft.Version, Labels: map[string]string{"sftd.env": []string{"prod", "lab"}[sum[0]%2]}, Services: []string{"rdp", "ping"}}}
	if err := tx.AddServer(r); err != nil {
		return err
	}
	_, err := tx.TakeNames(r.ProjectID, r.ID, []string{name})
	return err
}

// client returns a client on connections of its own.
func (p *pfm) client() *api.Client {
	hc, err := api.NewHTTP(p.ca, nil, &api.Clock{})
	p.must(err)
	p.t.Cleanup(hc.CloseIdleConnections)
	return &api.Client{URL: p.url, Clock: &api.Clock{}, HTTP: hc}
}

// person returns a client of the owner that is signed in.
func (p *pfm) person() *api.Client {
	key, spki := newKey(p.t)
	c := store.ClientRecord{DeviceKey: spki, TeamID: p.project.TeamID, UserID: p.user.ID}
	now := time.Now()
	c.ID, c.State, c.EnrolledAt, c.SignedInUntil = audit.NewID(), sft.StateActive, now, now.Add(10*time.Hour)
	p.must(p.db.Change(p.t.Context(), func(tx *store.Tx) (audit.Event, error) {
		return audit.Event{ID: audit.NewID(), Time: now, Kind: audit.ServerUpdate, Team: "main", Actor: audit.Actor{Kind: "platform"}, Outcome: audit.Success}, tx.AddClient(c)
	}))
	a := p.client()
	a.Key, a.Issuer = key, "client:"+c.ID
	return a
}

func newKey(t lab.T) (*ecdsa.PrivateKey, []byte) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("%v", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return k, spki
}

// connects asks for a way to a server from 32 clients at once.
func (p *pfm) connects(kind string) {
	var people []*api.Client
	for range 32 {
		people = append(people, p.person())
	}
	key, _ := newKey(p.t)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	p.must(err)
	ask := func(c *api.Client) error {
		var r api.ConnectReply
		return c.Do(p.t.Context(), "POST", "/v1/teams/main/connect", api.ConnectRequest{Target: "target", Service: "rdp", CSR: csr}, &r)
	}
	for _, c := range people { // connections, and what is read once
		p.must(ask(c))
	}
	var rates, alone, p50, p99, costs []float64
	for range p.b.rounds {
		alone = append(alone, signatures(p.b.load))
		cpu := p.cpu()
		var mu sync.Mutex
		var took []time.Duration
		var all sync.WaitGroup
		began := time.Now()
		for _, c := range people {
			all.Go(func() {
				var own []time.Duration
				for time.Since(began) < p.b.load {
					at := time.Now()
					if err := ask(c); err != nil {
						p.failed.Store(&err)
						return
					}
					own = append(own, time.Since(at))
				}
				mu.Lock()
				defer mu.Unlock()
				took = append(took, own...)
			})
		}
		all.Wait()
		p.check()
		n := float64(len(took))
		rates = append(rates, n/time.Since(began).Seconds())
		costs = append(costs, (p.cpu()-cpu)/n*1e6)
		slices.Sort(took)
		if len(took) > 0 {
			p50 = append(p50, took[len(took)/2].Seconds()*1000)
			p99 = append(p99, took[len(took)*99/100].Seconds()*1000)
		}
	}
	least := map[string]float64{"SQLite": 1500, "PostgreSQL": 1000}[kind]
	p.b.say("connects a second, %s: %s", kind, spread(rates))
	p.b.report.add(row{key: "connect", measure: "connects a second, 32 clients, each event on disk, " + kind, ratio: rates, least: least, whole: true,
		detail: fmt.Sprintf("p50 %s ms, p99 %s ms; %s µs of CPU each in the platform; %s of what its signatures alone allow (%s a second)",
			spread(p50), spread(p99), spread(costs), spread(over(rates, alone)), spread(alone))})
}

// cpu is the processor time that the program has used, in seconds.
func (p *pfm) cpu() float64 { return p.metric("process_cpu_seconds_total") }

// signatures is how often a second this machine can do what a connect needs
// of signatures, on all processors: the request's is made and checked, that of
// the CSR is checked, the certificate's is made and checked.
func signatures(d time.Duration) float64 {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	sum := sha256.Sum256([]byte("x"))
	counts := make([]int, runtime.NumCPU())
	var all sync.WaitGroup
	began := time.Now()
	for i := range counts {
		all.Go(func() {
			for time.Since(began) < d {
				request, _ := ecdsa.SignASN1(rand.Reader, key, sum[:])
				cert, _ := ecdsa.SignASN1(rand.Reader, key, sum[:])
				for _, sig := range [][]byte{request, request, cert} {
					ecdsa.VerifyASN1(&key.PublicKey, sum[:], sig)
				}
				counts[i]++
			}
		})
	}
	all.Wait()
	n := 0
	for _, c := range counts {
		n += c
	}
	return float64(n) / time.Since(began).Seconds()
}

// lists are what reads times: what is asked for, and how many there are on the
// page; 0: it is no list.
var lists = []struct {
	name, path string
	count      int
}{
	{"the first 100 servers", "/servers?count=100", 100},
	{"the first 50 servers with a label", "/servers?count=50&selector=sftd.env%3Dprod", 50},
	{"a server by its name", "/resolve?target=target", 0},
	{"the last 100 events", "/auditsV2?count=100&descending=true", 100},
	{"the last 100 events of a type", "/auditsV2?count=100&descending=true&type=session.start", 100},
	{"the last 100 events of a user", "/auditsV2?count=100&descending=true&user=user7", 100},
	{"the last 10 events of a user on a server", "/auditsV2?count=10&descending=true&user=user7&target=web4", 10},
	{"30 events of a target in ten days", "/auditsV2?count=30&target=web4&from=DAYS20AGO&to=DAYS10AGO", 30},
	{"the first 30 events of a target after a day", "/auditsV2?count=30&target=web4&from=DAYS20AGO", 30},
	{"the events of a session", "/auditsV2?session=SESSION", 4},
}

// reads returns the median times of reading, in ms.
func (p *pfm) reads() (ms []float64) {
	p.settle()
	p.analyze()
	c := p.person()
	for _, l := range lists {
		ago := func(days int) string { return time.Now().UTC().AddDate(0, 0, -days).Format(time.RFC3339) }
		path := strings.NewReplacer("DAYS20AGO", ago(20), "DAYS10AGO", ago(10), "SESSION", p.session).Replace(l.path)
		var took []float64
		for range max(5, p.b.echoes/20) {
			var page api.List[json.RawMessage]
			at := time.Now()
			err := c.Do(p.t.Context(), "GET", "/v1/teams/main"+path, nil, &page)
			took = append(took, time.Since(at).Seconds()*1000)
			p.must(err)
			if len(page.List) != l.count {
				p.t.Fatalf("%s: %d on the page", path, len(page.List))
			}
		}
		ms = append(ms, median(took))
	}
	return ms
}

// agents has agents ask for news, and hang.
func (p *pfm) agents(idle float64) {
	n := p.b.hanging
	ctx, cancel := context.WithCancel(p.t.Context())
	defer cancel()
	var revision int64
	var keys []*ecdsa.PrivateKey
	var ids []string
	now := time.Now()
	p.must(p.db.Change(ctx, func(tx *store.Tx) (audit.Event, error) {
		pr, err := tx.ProjectByID(p.project.ID)
		if err != nil {
			return audit.Event{}, err
		}
		revision = pr.Revision
		for i := range n {
			key, spki := newKey(p.t)
			if err := p.server(tx, fmt.Sprint("agent", i), spki, now); err != nil {
				return audit.Event{}, err
			}
			list, err := tx.ServersNamed(p.project.TeamID, fmt.Sprint("agent", i))
			if err != nil || len(list) != 1 {
				return audit.Event{}, errors.Join(err, fmt.Errorf("%d servers of one name", len(list)))
			}
			keys, ids = append(keys, key), append(ids, list[0].ID)
		}
		return audit.Event{ID: audit.NewID(), Time: now, Kind: audit.ServerUpdate, Team: "main", Actor: audit.Actor{Kind: "platform"}, Outcome: audit.Success}, nil
	}))
	before := p.memory()
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	for i := range n {
		a := p.client()
		a.Key, a.Issuer = keys[i], "server:"+ids[i]
		all.Go(func() {
			for ctx.Err() == nil {
				var st api.State
				if err := a.Do(ctx, "GET", fmt.Sprint("/v1/agent/state?after=", revision), nil, &st); err != nil && ctx.Err() == nil {
					p.failed.Store(&err)
					return
				}
			}
		})
		if i%50 == 49 {
			p.wait("agents hang", func() bool { return p.metric("sft_platform_agents_connected") >= float64(i-10) })
		}
	}
	p.wait("all agents hang", func() bool { return p.metric("sft_platform_agents_connected") >= float64(n) })
	with := p.memory()
	p.check()
	p.b.report.add(row{key: "agents", measure: "memory at the start, MB", ratio: []float64{idle}, whole: true})
	p.b.report.add(row{key: "agents", measure: fmt.Sprintf("memory with %d agents that hang, MB", n), ratio: []float64{with}, whole: true,
		detail: fmt.Sprintf("%s kB each beyond the %s MB before; %s goroutines", digits((with-before)*1024/float64(n)), digits(before), digits(p.metric("go_goroutines")))})
	p.b.say("memory: %s MB at the start, %s MB before the agents, %s MB with %d", digits(idle), digits(before), digits(with), n)
}

// postgres runs PostgreSQL as it is installed: what is committed is on disk. It
// returns its URL, and what has it look at its tables.
func (b *bench) postgres(t lab.T) (url string, analyze func()) {
	programs, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	as, err := user.Lookup("postgres")
	if err != nil || len(programs) == 0 {
		t.Fatalf("PostgreSQL is not installed; run \"make setup\"")
	}
	bin := filepath.Dir(programs[len(programs)-1])
	dir, err := os.MkdirTemp("/tmp", "sft-pg-")
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	uid, _ := strconv.Atoi(as.Uid)
	gid, _ := strconv.Atoi(as.Gid)
	command := func(name string, arg ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, name), arg...)
		cmd.Dir, cmd.Env = dir, []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, Pdeathsig: syscall.SIGKILL}
		return cmd
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatalf("%v", err)
	}
	if out, err := command("initdb", "--no-instructions", "--locale=C", "--encoding=UTF8", "--auth=trust", "--username=postgres", "-D", dir+"/data").CombinedOutput(); err != nil {
		t.Fatalf("make a database: %v: %s", err, out)
	}
	server := command("postgres", "-D", dir+"/data", "-k", dir, "-c", "listen_addresses=")
	if err := server.Start(); err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { server.Process.Signal(syscall.SIGINT); server.Wait() })
	run := func(sql string) error { return command("psql", "-U", "postgres", "-h", dir, "-c", sql).Run() }
	(&pfm{t: t}).wait("PostgreSQL answers", func() bool { return run("SELECT 1") == nil })
	return "postgres://postgres@/postgres?host=" + dir, func() {
		if err := run("VACUUM ANALYZE"); err != nil {
			t.Fatalf("analyze: %v", err)
		}
	}
}
