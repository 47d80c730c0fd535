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

// measures are what -only names, in the order in which they are taken.
var measures = []struct {
	name string
	take func(*bench)
}{
	{"desktop", (*bench).desktop},
	{"trips", (*bench).trips},
	{"shell", (*bench).shell},
	{"hops", (*bench).hops},
	{"throughput", (*bench).throughput},
	{"echo", (*bench).latency},
	{"sessions", (*bench).sessions},
}

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
}

const ms = time.Millisecond

var (
	whole = plan{rounds: 3, rtts: []time.Duration{0, 50 * ms, 150 * ms}, conns: []int{1, 10}, load: 2500 * ms, echoes: 1000, people: 8, sessions: 500, idle: 30 * time.Second}
	smoke = plan{rounds: 1, rtts: []time.Duration{0, 50 * ms}, conns: []int{1}, load: 400 * ms, echoes: 100, people: 1, sessions: 20, idle: 3 * time.Second}
)

// A bench is one run.
type bench struct {
	plan
	t      lab.T
	l      *lab.Lab
	s      *stage.Stage
	desk   *stage.Desk
	modes  []string // of signing in: the first is the one that desktop takes
	keys   keys
	hosts  map[string]*stage.Server
	report report
}

func run() int {
	bin := flag.String("bin", "build/bin", "folder of the programs")
	out := flag.String("out", "build/bench", "folder for logs")
	doc := flag.String("doc", "", "file to write (default docs/benchmarks.md; with -quick or -only benchmarks.md in the folder of -out)")
	quick := flag.Bool("quick", false, "see that all works; the numbers mean nothing")
	only := flag.String("only", "", "measures to take, with commas between: desktop, trips, shell, hops, throughput, echo, sessions")
	modes := flag.String("signin", "inject,deliver", "ways to sign in, as in RDPSignIn, with commas between")
	rounds := flag.Int("rounds", 0, "how often the candidates take turns (default 3, with -quick 1)")
	flag.Parse()
	b := &bench{plan: whole, modes: strings.Split(*modes, ","), hosts: map[string]*stage.Server{}}
	b.report.quick, b.report.load = *quick, loadAverage()
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
	if *doc == "" {
		*doc = "docs/benchmarks.md"
		if *quick || *only != "" {
			*doc = filepath.Join(*out, "benchmarks.md")
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	began := time.Now()
	status := lab.Script(ctx, os.Stderr, func(t lab.T) {
		b.t = t
		logs, err := filepath.Abs(filepath.Join(*out, "logs"))
		if err == nil {
			err = os.RemoveAll(logs) // of the run before
		}
		programs, err2 := filepath.Abs(*bin)
		if err != nil || err2 != nil {
			t.Fatalf("%v %v", err, err2)
		}
		b.l = lab.New(t, logs)
		b.s = stage.New(t, b.l, programs)
		b.s.Project("prod", false)
		b.desk = b.newDesk("ann")
		b.keys = newKeys(t)
		for _, m := range measures {
			if chosen(m.name) {
				b.say("%s", m.name)
				m.take(b)
			}
		}
		b.report.took = time.Since(began)
		if err := os.WriteFile(*doc, []byte(b.report.markdown()), 0o644); err != nil {
			t.Fatalf("%v", err)
		}
		fmt.Println("written:", *doc)
	})
	return status
}

// say tells the person who waits.
func (b *bench) say(format string, args ...any) {
	fmt.Printf("%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// newDesk makes a person with access, and a machine of theirs.
func (b *bench) newDesk(person string) *stage.Desk {
	b.s.Person(person, "", "prod")
	d := b.s.Desk("desk-"+person, person)
	d.Install(workPath, "/proc/self/exe")
	d.Enroll("")
	return d
}

// scope calls fn with a T of its own: what fn leaves to Cleanup is done when
// scope returns.
func (b *bench) scope(fn func(lab.T)) {
	if lab.Script(b.t.Context(), os.Stderr, fn) != 0 {
		b.t.Fatalf("stopped")
	}
}
