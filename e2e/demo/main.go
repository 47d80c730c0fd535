//go:build linux

// Demo shows the product on this machine, from nothing to a desktop: a
// platform, two servers with a real RDP server, and a person's machine with a
// real RDP client, each in namespaces of its own. It runs "sft rdp web01",
// takes a picture of the desktop, prints what it measured, and leaves nothing
// behind.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sft/e2e/lab"
	"sft/e2e/stage"
)

const (
	person = "alice"
	colour = "#204060"
	rtt    = 50 * time.Millisecond
)

func main() {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "demo: the demonstration makes namespaces, and needs root for that\ndemo: hint: run it as root, as in \"sudo make demo\"")
		os.Exit(1)
	}
	os.Exit(lab.Main(run))
}

func run() int {
	bin := flag.String("bin", "build/bin", "folder of the programs")
	out := flag.String("out", "build/demo", "folder for pictures and logs")
	keep := flag.Bool("keep", false, "leave it running, with a shell on the person's machine")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var last string
	status := lab.Script(ctx, os.Stderr, func(t lab.T) {
		dir, err := filepath.Abs(*out)
		if err == nil {
			err = os.RemoveAll(filepath.Join(dir, "logs")) // of the run before
		}
		if err == nil {
			err = os.MkdirAll(dir, 0o755)
		}
		if err != nil {
			t.Fatalf("%v", err)
		}
		abs, err := filepath.Abs(*bin)
		if err != nil {
			t.Fatalf("%v", err)
		}
		last = show(t, abs, dir, *keep)
	})
	if status == 0 {
		fmt.Println(last)
	}
	return status
}

// A diary prints each step with the time it took.
type diary struct{ began, last time.Time }

func (d *diary) say(format string, args ...any) {
	now := time.Now()
	fmt.Printf("%6.1f s  %-70s %5.1f s\n", now.Sub(d.began).Seconds(), fmt.Sprintf(format, args...), now.Sub(d.last).Seconds())
	d.last = now
}

func show(t lab.T, bin, dir string, keep bool) string {
	d := &diary{time.Now(), time.Now()}
	l := lab.New(t, filepath.Join(dir, "logs"))
	s := stage.New(t, l, bin)
	d.say("platform made and serving on %s", s.URL)
	s.Project("prod", true)
	s.Person(person, "Alice Example", "prod")
	d.say("project prod, user %s with access", person)
	web01 := s.Server("web01", "prod", colour, "")
	d.say("server web01 enrolled: xrdp on loopback only, broker on 4421")
	web02 := slowServer(t, s)
	d.say("server web02 enrolled, %s away", rtt)
	desk := s.Desk("laptop", person)
	desk.Enroll(dir)
	d.say("laptop enrolled by %s in Chromium", person)

	// The real thing.
	steps, took, client := connect(t, desk, "web01", colour)
	desk.WaitStill(700 * time.Millisecond)
	shot := filepath.Join(dir, "desktop.png")
	desk.Screenshot(shot)
	d.say("sft rdp web01: desktop after %.2f s", took.Seconds())
	d.say("the broker on web01 signed %s in: her password never left it", person)
	fmt.Println("\nFrom Enter, in ms:")
	fmt.Print(steps)
	client.Stop()

	// The second act: a server that only a bastion reaches.
	s.SSHServer("bastion", "prod", "", "")
	db := s.SSHServer("db01", "prod", colour, "Bastion: bastion\n")
	desk.Block(db.Host)
	s.Wait("people may sign in to db01", 30*time.Second, func() bool {
		_, err := db.Run("", "test", "-s", "/etc/ssh/sftd/principals/"+person)
		return err == nil
	})
	d.say("db01 enrolled, behind a bastion: the laptop cannot reach it")
	began := time.Now()
	out, errs, status := desk.Sft(t.Context(), "ssh", "db01", "echo $(id -un) on $(hostname)")
	if status != 0 {
		t.Fatalf("sft ssh db01: %s", errs)
	}
	d.say("sft ssh db01 through the bastion: %q after %.2f s", strings.TrimSpace(out), time.Since(began).Seconds())
	_, took2, client := connect(t, desk, "db01", colour)
	desk.WaitStill(700 * time.Millisecond)
	desk.Screenshot(filepath.Join(dir, "desktop-bastion.png"))
	d.say("sft rdp db01 through the bastion: desktop after %.2f s", took2.Seconds())
	client.Stop()

	// The same as at first, from far away.
	fmt.Printf("\nThe same with %s to platform and server:\n%s", rtt, web02.measure(t, desk))
	fmt.Printf("\nsftd on web01, idle: monitor %s, broker %s\n", memory(web01, "pid"), memory(web01, "broker"))
	for _, name := range []string{"sft", "sftd", "sft-platform"} {
		if i, err := os.Stat(filepath.Join(bin, name)); err == nil {
			fmt.Printf("%-12s %5.1f MB\n", name, float64(i.Size())/1e6)
		}
	}
	fmt.Println()
	if keep {
		play(desk)
	}
	return fmt.Sprintf("%s is on the desktop of web01, %.2f seconds after Enter. Screenshot: %s", person, took.Seconds(), shot)
}

// connect runs sft rdp and waits for the desktop. It returns what sft says of
// its steps, and the time from Enter to the pixels.
func connect(t lab.T, desk *stage.Desk, server, colour string) (string, time.Duration, *lab.Process) {
	desk.Env = append(desk.Env, "SFT_TIMING=1")
	began := time.Now()
	p := desk.StartSft("sft-rdp-"+server, "rdp", "--size", "1200x800", server)
	desk.WaitPixel(1100, 700, colour)
	took := time.Since(began)
	return timings(p.Output()), took, p
}

var timingRE = regexp.MustCompile(`sft: timing: (\S+) ([0-9.]+)`)

func timings(output string) string {
	var b strings.Builder
	for _, m := range timingRE.FindAllStringSubmatch(output, -1) {
		fmt.Fprintf(&b, "  %-22s %8s\n", strings.ReplaceAll(m[1], "_", " "), m[2])
	}
	return b.String()
}

// memory is what a process of sftd has in memory: resident, and its share of
// what it shares with others (the program's text is one and the same).
func memory(v *stage.Server, which string) string {
	st := v.Status()
	pid := st["pid"]
	if which == "broker" {
		pid = st["broker"].(map[string]any)["pid"]
	}
	out, err := v.Run("", "cat", fmt.Sprintf("/proc/%v/smaps_rollup", pid))
	if err != nil {
		return "unknown"
	}
	kB := func(name string) float64 {
		m := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+) kB`).FindStringSubmatch(out)
		if m == nil {
			return 0
		}
		n, _ := strconv.ParseFloat(m[1], 64)
		return n / 1000
	}
	return fmt.Sprintf("%.1f MB resident (%.1f its share)", kB("Rss"), kB("Pss"))
}

// A slow server is one whose broker and platform are far away from the desk.
type slow struct {
	*stage.Server
	broker, platform *lab.Delay
}

// slowServer makes web02 reachable through a delay only.
func slowServer(t lab.T, s *stage.Stage) *slow {
	const address, port = lab.Address, 4422
	v := s.Server("web02", "prod", "#602040", fmt.Sprintf("AccessAddress: %s\nBrokerAccessPort: %d\n", address, port))
	return &slow{v,
		lab.NewDelay(t, fmt.Sprintf("%s:%d", address, port), v.IP()+":4421", rtt),
		lab.NewDelay(t, address+":8443", s.Platform.IP()+":8443", rtt)}
}

// measure connects to web02 with the platform far away too, and counts the
// round trips.
func (w *slow) measure(t lab.T, desk *stage.Desk) string {
	hosts, err := desk.Read("/etc/hosts")
	if err != nil {
		t.Fatalf("%v", err)
	}
	far := regexp.MustCompile(`(?m)^\S+(\s+platform)$`).ReplaceAll(hosts, []byte(lab.Address+"$1"))
	desk.Write("/etc/hosts", 0o644, far)
	defer desk.Write("/etc/hosts", 0o644, hosts)
	trips := func(d *lab.Delay) int {
		s := d.Stats()
		return s.Connections + s.RoundTrips
	}
	// Until the broker's reply: without an RDP client nothing comes after it.
	w.broker.Reset()
	w.platform.Reset()
	way := desk.StartSft("sft-way-"+w.Name(), "rdp", "--no-launch", w.Name())
	for !strings.Contains(way.Output(), "address ") {
		select {
		case <-way.Done():
			t.Fatalf("sft rdp --no-launch: %s", way.Output())
		case <-time.After(10 * time.Millisecond):
		}
	}
	p, b := trips(w.platform), trips(w.broker)
	way.Stop()
	w.broker.Reset()
	steps, took, client := connect(t, desk, w.Name(), "#602040")
	all := trips(w.broker)
	client.Stop()
	return fmt.Sprintf("%s  %-22s %8d\n  round trips until the broker's reply: %d, of them %d to the platform (TCP, TLS, one request) and %d to the broker (TCP, TLS, one frame)\n"+
		"  round trips to the broker until the desktop, RDP's own among them: %d\n", steps, "desktop", took.Milliseconds(), p+b, p, b, all)
}

// play gives a shell on the person's machine.
func play(desk *stage.Desk) {
	fmt.Printf("You are %s on her laptop. Try: sft list-servers; sft ssh db01; sft rdp --no-launch web01; mkdir -p ~/.ssh && sft ssh-config >>~/.ssh/config && ansible -i db01,bastion, all -m ping. The end of this shell ends everything.\n", desk.User)
	cmd := desk.Command(context.Background(), desk.User, "bash", "-i")
	cmd.Env = append(cmd.Env, desk.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	_ = cmd.Run()
}
