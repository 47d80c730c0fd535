//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// reasons say why an aim is missed, by the key of the row; written only where
// one is. Edit them here: the document is made anew each time. What is not in
// here was not looked into, and the document says so: write down what was
// found out, not what is likely.
//
// Keys: desktop, trips, shell, hops, throughput, distance, cpu, echo, memory,
// connect, growth, agents.
var reasons = map[string]string{
	"throughput": "the two processors are 80 to 99 % busy on every way but raw TCP. Of what the two relays use in the benchmark of internal/relay, 60 % is the kernel moving bytes through sockets and 29 % is AES-GCM, which the plain pair has as well; what gathering records saves is in the rest. Batches of 32, 128 and 256 KiB were slower than those of 64, and asking again up to 20 times before waiting was no faster. With inject two more ends of TLS, those of RDP, are on the way.",
	"cpu":        "as for throughput: nine tenths is the kernel's copying and AES-GCM, which both have; with inject sft and the broker decrypt and encrypt once more than the pair does.",
	"echo":       "for a message there and back, each process makes the same system calls as one of the pair's: two writes, four reads of which two find nothing, four waits, and as many wake-ups. Under crypto/tls alone, in internal/relay's own benchmark, relay and io.Copy are within 5 % of each other. Where the rest goes was not found.",
	"distance":   "as at 0 ms, the path is bounded by the processors before the distance counts: nothing that encrypts reaches what goes through the delay bare.",
	"hops":       "the processors are what bounds it at 0 ms, and at a distance they add to each round trip in which a window of 2 MiB goes over. sft itself takes 1.3 times the processor time of the ssh that it stands for with one hop and less with two; much of that are switches between threads and processes, since each packet of 32 KiB is carried as it comes. The hops take two thirds of what they do for ssh -J, because sft chooses AES-GCM and OpenSSH ChaCha20-Poly1305.",
	"connect":    "platform, database and load share two processors, and all of their time is used. The aims are in connects a second, and these processors make half as many signatures as some: where signatures alone allow 8,000 a second, SQLite gave 1751 and PostgreSQL 984 to 1025, with two round trips more for a connect than the seven of now. Of a connect on PostgreSQL the platform takes half, PostgreSQL a third (a third of its work is the rows and indexes of session and event), the load the rest.",
	"shell":      "the credentials cost three round trips to the platform (TCP, TLS, one request), before it is known where to connect to; plain ssh has none. No round trip of them can be left out: TLS 1.3 resumed takes as many. At 0 ms they are through 10 ms after the start; the rest of the difference there is after ssh was started, and where was not found. With hops the same weighs less, and sft is quicker at the rest.",
	"trips":      "with deliver, a later connection takes one round trip each for TCP, TLS, the frame and RDP's first exchange. With inject the RDP client is answered meanwhile, so that RDP's first exchange goes with the frame.",
}

// unknown stands where there is no reason.
const unknown = "not looked into."

// A row is a measure with an aim.
type row struct {
	key         string
	measure     string
	ratio       []float64 // a round each; or the one number
	least, most float64   // the aim; 0: none
	whole       bool      // a number, and no ratio
	detail      string
}

func (r row) met() bool {
	m := median(r.ratio)
	return (r.least == 0 || m >= r.least) && (r.most == 0 || m <= r.most)
}

func (r row) aim() string {
	number := "%g×"
	if r.whole {
		number = "%g"
	}
	switch {
	case r.least > 0:
		return "≥ " + fmt.Sprintf(number, r.least)
	case r.most > 0:
		return "≤ " + fmt.Sprintf(number, r.most)
	}
	return ""
}

// A report is what the document will say.
type report struct {
	doc    string
	quick  bool
	load   string // of the machine before the run
	took   time.Duration
	rows   []row
	speeds []string // lines of tables
	echoes []string
}

func (r *report) add(n row) { r.rows = append(r.rows, n) }

func (r *report) speed(where, name string, s *sample) {
	cost := spread(s.cost)
	if slices.Max(s.cost) == 0 {
		cost = "" // there is nobody between
	}
	r.speeds = append(r.speeds, fmt.Sprintf("| %s | %s | %s | %s |", where, name, spread(s.speed), cost))
}

func (r *report) echo(name string, p50, p99 []float64) {
	r.echoes = append(r.echoes, fmt.Sprintf("| %s | %s | %s |", name, spread(p50), spread(p99)))
}

const intro = `# Benchmarks

Made by ` + "`make bench`" + `: do not edit. Ratios are sft's number over the other's of the same round; then the median, and in brackets the lowest and the highest of all rounds. The candidates take turns, on one machine, in one run.

`

const method = `
## How

- Hosts are namespaces of one machine, which also runs the RDP client, the RDP service and what makes and takes the load. So throughput is what is left of the processors, and the CPU seconds per GB say more than MB/s do.
- Distance is a proxy that delays. It shows round trips and windows, not loss, and takes its share of the processors. It holds up to 32 MB of each direction of a connection.
- Throughput is from the server to the desk, counted where it arrives, after half a second and four round trips that do not count: what fills buffers is not in it. Read it as the speed of the path, not as that of a download.
- "plain Go pair" is two programs of the standard library alone: mutual TLS 1.3, io.Copy. stunnel has the same keys and cipher; ssh has aes128-gcm@openssh.com.
- "deliver" carries plain bytes, as the others do. With "inject" both ends of RDP have TLS of their own, which sft and sftd end; it is set beside RDP that goes through a pair with its TLS untouched, and beside RDP that goes directly.
- With a distance the aim is to be equal to what goes directly; 0.95× and more counts as equal.
- CPU is that of both ends together: sft and all of sftd; ssh and sshd; two stunnels; two proxies.
- Echo: "added" is what takes longer than without anything between; it may be below 0 where the spread is wider than that. Messages of 64 bytes, one at a time, 2 ms apart, no distance.
- Desktop: xfreerdp to a server that wants NLA, from the start of the command to the first pixel of the desktop. The platform is as far away as the server. sft gives xfreerdp flags of its own, so its command line is not the direct one's.
- Memory is what the broker has of its own beyond what it had with no connection, divided by their number; the kernel's socket buffers are not in it.
`

const methodSSH = `
## How

- Hosts are namespaces of one machine. Distance is a proxy that delays: it shows round trips and windows, not loss.
- Shell: from the start of the command to its end, of one that has nothing to do. The platform is as far away as the first server, and hops are near one another. Plain ssh has a key in a file, and -J for hops; both end at the same sshd.
- Round trips are those to the platform and to the first server, of the last round.
- Throughput is from the last server to the desk, through a forwarded port (-L), counted where it arrives, after half a second and four round trips that do not count. Processor time at the desk is that of ssh, and of sft or the ssh of each hop, for what came meanwhile.
`

const introPlatform = `# Benchmarks of the platform

Made by ` + "`make bench`" + `: do not edit. Numbers are the median, and in brackets the lowest and the highest of all rounds. All of it ran on one machine, in one run.

`

const methodPlatform = `
## How

- The platform is the program as it is released, on loopback, with its limits raised. The load comes from the same machine and takes its share of the processors: a client makes a signature for each request, and both ends encrypt.
- Both databases wait for the disk before a commit counts. PostgreSQL runs with the settings that it comes with, and has vacuumed and analyzed its tables, as it does by itself within a minute. A list is read when all events are sealed; the small platform has 200 servers and 1,000 events beside those of its connects, so that a page is full. Half of the servers have the label; a tenth of the events is of a user, a ninth of a target, four of a session; they are from 30 days.
- A connect is one request over an open connection: the signature is checked, the way decided, the certificate signed, session and event stored. "Signatures alone" is what all processors can do of nothing but those signatures, the client's included, measured before each round.
- Memory is RssAnon: what the process has of its own. Each agent has a connection of its own. "Before" is after a restart, with the large database.
`

// markdown is the document.
func (r *report) markdown() string {
	var b strings.Builder
	switch r.doc {
	case docShells:
		b.WriteString(strings.Replace(intro, "# Benchmarks", "# Benchmarks of SSH", 1))
	case docPlatform:
		b.WriteString(introPlatform)
	default:
		b.WriteString(intro)
	}
	if r.quick {
		b.WriteString("**A smoke run: the numbers mean nothing.**\n\n")
	}
	fmt.Fprintf(&b, "%s. The run took %v. The load of the machine before it was %s: while others use the machine, the numbers are worth less.\n\n", machine(), r.took.Round(time.Second), r.load)
	b.WriteString("| measure | got | aim | | numbers |\n|---|---|---|---|---|\n")
	missed := map[string]bool{}
	var order []string
	for _, n := range r.rows {
		verdict := ""
		if n.aim() != "" {
			if verdict = "met"; !n.met() {
				verdict = "**missed**"
				if !missed[n.key] {
					missed[n.key] = true
					order = append(order, n.key)
				}
			}
		}
		got := spread(n.ratio)
		if !n.whole && n.key != "idle" {
			got = strings.Replace(got, " (", "× (", 1)
			if !strings.Contains(got, "×") {
				got += "×"
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", n.measure, got, n.aim(), verdict, n.detail)
	}
	if len(order) > 0 {
		b.WriteString("\nWhere an aim is missed:\n\n")
		for _, key := range order {
			why := reasons[key]
			if why == "" {
				why = unknown
			}
			fmt.Fprintf(&b, "- %s: %s\n", key, why)
		}
	}
	if len(r.speeds) > 0 {
		b.WriteString("\n## Throughput\n\n| path | through | MB/s | CPU s/GB |\n|---|---|---|---|\n" + strings.Join(r.speeds, "\n") + "\n")
	}
	if len(r.echoes) > 0 {
		b.WriteString("\n## Echo, µs\n\n| through | p50 | p99 |\n|---|---|---|\n" + strings.Join(r.echoes, "\n") + "\n")
	}
	b.WriteString(map[string]string{docDesktops: method, docShells: methodSSH, docPlatform: methodPlatform}[r.doc])
	return b.String()
}

// machine says where and with what.
func machine() string {
	says := func(name string, arg ...string) string {
		out, _ := exec.Command(name, arg...).CombinedOutput()
		return strings.TrimSpace(string(out))
	}
	model := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := regexp.MustCompile(`(?m)^model name\s*:\s*(.+)$`).FindSubmatch(info); m != nil {
			model = string(m[1])
		}
	}
	tunnel := regexp.MustCompile(`stunnel \S+`).FindString(says("stunnel4", "-version"))
	return fmt.Sprintf("%s, %d cores, Linux %s, %s, %s, %s, %s", model, runtime.NumCPU(), says("uname", "-r"), runtime.Version(),
		strings.SplitN(says("ssh", "-V"), ",", 2)[0], tunnel, time.Now().UTC().Format(time.DateOnly))
}

// loadAverage is that of the last minute.
func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	one, _, _ := strings.Cut(string(b), " ")
	return one
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	return s[len(s)/2]
}

// spread writes the median, and the lowest and highest if there are several.
func spread(v []float64) string {
	if len(v) == 0 {
		return "none"
	}
	if len(v) == 1 {
		return digits(v[0])
	}
	return fmt.Sprintf("%s (%s..%s)", digits(median(v)), digits(slices.Min(v)), digits(slices.Max(v)))
}

// digits writes three digits, or all before the point.
func digits(x float64) string {
	switch abs := max(x, -x); {
	case x == float64(int64(x)), abs >= 100:
		return fmt.Sprintf("%.0f", x)
	case abs >= 10:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

// over divides round by round.
func over(a, b []float64) []float64 {
	q := make([]float64, len(a))
	for i := range a {
		q[i] = a[i] / b[i]
	}
	return q
}

// minus subtracts round by round.
func minus(a, b []float64) []float64 {
	d := make([]float64, len(a))
	for i := range a {
		d[i] = a[i] - b[i]
	}
	return d
}

// distance writes a distance.
func distance(rtt time.Duration) string { return fmt.Sprintf("%d ms", rtt.Milliseconds()) }

func connections(n int) string {
	if n == 1 {
		return "1 connection"
	}
	return fmt.Sprintf("%d connections", n)
}
