//go:build linux

// Bench measures the product beside what people use instead, in one run, on
// one machine: a desktop without anything between, "ssh -L", stunnel, and the
// shortest pair of proxies that the standard library allows. What it writes
// are ratios with their spread, since the numbers themselves are the
// machine's.
//
// The candidates take turns, round after round, so that a busy moment of the
// machine hits all of them. Distance is a proxy that delays: it shows round
// trips and buffers, not loss. Bench judges nothing by its exit status: that
// is 0 unless something did not work.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"sft/e2e/lab"
	"sft/e2e/stage"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "work" { // on a host
		os.Exit(work())
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: the measures are taken in namespaces, which needs root\nbench: hint: run it as root, as in \"sudo make bench\"")
		os.Exit(1)
	}
	os.Exit(lab.Main(run))
}

// A measure is what -only names, with the document that it is in.
type measure struct {
	name, doc string
	take      func(*bench)
}

// measures are taken in this order.
var measures = []measure{
	{"desktop", docDesktops, (*bench).desktop},
	{"trips", docDesktops, (*bench).trips},
	{"throughput", docDesktops, (*bench).throughput},
	{"echo", docDesktops, (*bench).latency},
	{"sessions", docDesktops, (*bench).sessions},
	{"shell", docShells, (*bench).shell},
	{"hops", docShells, (*bench).hops},
	{"platform", docPlatform, (*bench).platform},
}

// The documents, in docs.
const (
	docDesktops = "benchmarks.md"
	docShells   = "benchmarks-ssh.md"
	docPlatform = "benchmarks-platform.md"
)

// A plan is how much is measured.
type plan struct {
	rounds   int
	rtts     []time.Duration // of desktop and throughput
	conns    []int
	load     time.Duration // each time
	echoes   int           // each time
	people   int           // of sessions
	sessions int
	idle     time.Duration
	servers  int // of a large platform
	events   int
	hanging  int // agents
}

const ms = time.Millisecond

var (
	whole = plan{rounds: 3, rtts: []time.Duration{0, 50 * ms, 150 * ms}, conns: []int{1, 10}, load: 2500 * ms, echoes: 1000, people: 8, sessions: 500, idle: 30 * time.Second, servers: 50_000, events: 1_000_000, hanging: 1000}
	smoke = plan{rounds: 1, rtts: []time.Duration{0, 50 * ms}, conns: []int{1}, load: 400 * ms, echoes: 100, people: 1, sessions: 20, idle: 3 * time.Second, servers: 1000, events: 5000, hanging: 100}
)

// A bench is one run.
type bench struct {
	plan
	t      lab.T
	bin    string
	l      *lab.Lab
	s      *stage.Stage
	desk   *stage.Desk
	modes  []string // of signing in: the first is the one that desktop takes
	keys   keys
	hosts  map[string]*stage.Server
	report *report // that is written now
}

func run() int {
	bin := flag.String("bin", "build/bin", "folder of the programs")
	out := flag.String("out", "build/bench", "folder for logs")
	docs := flag.String("docs", "docs", "folder for the documents; one of which not all measures were taken, or with -quick, goes to the folder of -out")
	quick := flag.Bool("quick", false, "see that all works; the numbers mean nothing")
	only := flag.String("only", "", "measures to take, with commas between: desktop, trips, throughput, echo, sessions, shell, hops, platform")
	modes := flag.String("signin", "inject,deliver", "ways to sign in, as in RDPSignIn, with commas between")
	rounds := flag.Int("rounds", 0, "how often the candidates take turns (default 3, with -quick 1)")
	flag.Parse()
	b := &bench{plan: whole, modes: strings.Split(*modes, ","), hosts: map[string]*stage.Server{}}
	if *quick {
		b.plan = smoke
	}
	if *rounds > 0 {
		b.plan.rounds = *rounds
	}
	chosen := func(name string) bool { return *only == "" || slices.Contains(strings.Split(*only, ","), name) }
	for _, name := range strings.Split(*only, ",") {
		known := *only == ""
		for _, m := range measures {
			known = known || m.name == name
		}
		if !known {
			fmt.Fprintf(os.Stderr, "bench: there is no measure %q\nbench: hint: see -help for those that there are\n", name)
			return 2
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	status := lab.Script(ctx, os.Stderr, func(t lab.T) {
		b.t = t
		logs, err := filepath.Abs(filepath.Join(*out, "logs"))
		if err == nil {
			err = errors.Join(os.RemoveAll(logs), os.MkdirAll(logs, 0o755)) // those there are of the run before
		}
		programs, err2 := filepath.Abs(*bin)
		if err != nil || err2 != nil {
			t.Fatalf("%v %v", err, err2)
		}
		b.bin = programs
		if slices.ContainsFunc(measures, func(m measure) bool { return m.doc != docPlatform && chosen(m.name) }) {
			b.l = lab.New(t, logs)
			b.s = stage.New(t, b.l, programs)
			b.s.Project("prod", false)
			b.desk = b.newDesk("ann")
			b.keys = newKeys(t)
		}
		for _, doc := range []string{docDesktops, docShells, docPlatform} {
			b.write(doc, *docs, *out, *quick, chosen)
		}
	})
	return status
}

// write takes the measures of a document that were chosen, and writes it.
func (b *bench) write(doc, docs, out string, quick bool, chosen func(name string) bool) {
	began, folder := time.Now(), docs
	if quick {
		folder = out
	}
	b.report = &report{doc: doc, quick: quick, load: loadAverage()}
	any := false
	for _, m := range measures {
		switch {
		case m.doc != doc:
		case !chosen(m.name):
			folder = out
		default:
			any = true
			b.say("%s", m.name)
			m.take(b)
		}
	}
	if !any {
		return
	}
	b.report.took = time.Since(began)
	path := filepath.Join(folder, doc)
	if err := os.WriteFile(path, []byte(b.report.markdown()), 0o644); err != nil {
		b.t.Fatalf("%v", err)
	}
	fmt.Println("written:", path)
}

// program is the path of one of the programs.
func (b *bench) program(name string) string { return filepath.Join(b.bin, name) }

// say tells the person who waits.
func (b *bench) say(format string, args ...any) {
	fmt.Printf("%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// newDesk makes a person with access, and a machine of theirs.
func (b *bench) newDesk(person string) *stage.Desk {
	b.s.Person(person, "", "prod")
	d := b.s.Desk("desk-"+person, person)
	d.Install(workPath, "/proc/self/exe")
	d.EnrollQuickly()
	return d
}

// scope calls fn with a T of its own: what fn leaves to Cleanup is done when
// scope returns.
func (b *bench) scope(fn func(lab.T)) {
	if lab.Script(b.t.Context(), os.Stderr, fn) != 0 {
		b.t.Fatalf("stopped")
	}
}
