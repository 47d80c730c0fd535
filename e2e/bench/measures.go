//go:build linux

package main

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"sft/e2e/lab"
	"sft/e2e/stage"
)

const (
	colour   = "#204060"
	nlaPort  = 4440
	directly = "3390"
)

// desktop times the same RDP client on its way to the same NLA server: without
// anything between, and through "sft rdp".
func (b *bench) desktop() {
	v := b.s.Server("nla", "prod", "", "RDPCertificateFile: "+lab.ShadowCertificate+"\nRDPSignIn: "+b.modes[0]+"\n"+at(nlaPort))
	v.StartShadow(colour, lab.ShadowNLA)
	v.AddUser("dora", stage.Password) // her password is set after StartShadow
	relay := v.Relay(lab.XRDPAddress)
	want, err := lab.ParseColour(colour)
	if err != nil {
		b.t.Fatalf("%v", err)
	}
	shown := func(start func() *lab.Process) float64 {
		began := time.Now()
		p := start()
		b.s.Wait("the desktop appears", 30*time.Second, func() bool {
			select {
			case <-p.Done():
				b.t.Fatalf("the RDP client ended: %s", p.Output())
			default:
			}
			return lab.Near(b.desk.Pixel(1000, 650), want)
		})
		took := time.Since(began)
		p.Stop()
		b.s.Wait("the desktop goes", 10*time.Second, func() bool { return !lab.Near(b.desk.Pixel(1000, 650), want) })
		return took.Seconds()
	}
	for _, rtt := range b.rtts {
		b.scope(func(t lab.T) {
			b.farPlatform(t, rtt)
			lab.NewDelay(t, fmt.Sprintf("%s:%d", lab.Address, nlaPort), v.IP()+":4421", rtt)
			lab.NewDelay(t, lab.Address+":"+directly, relay, rtt)
			var direct, product []float64
			for round := range b.rounds + 1 {
				d := shown(func() *lab.Process {
					return b.desk.StartXfreerdp(b.desk.User, lab.SignIn{Address: lab.Address + ":" + directly, User: "dora", Password: stage.Password, Security: lab.SecurityNLA})
				})
				p := shown(func() *lab.Process { return b.desk.StartSft("sft-rdp-nla", "rdp", "--size", "1024x700", "nla") })
				if round > 0 { // the first warms up
					direct, product = append(direct, d), append(product, p)
				}
			}
			b.say("desktop at %v: direct %v s, sft %v s", rtt, spread(direct), spread(product))
			r := row{key: "desktop", measure: fmt.Sprintf("time to desktop at %s, against the same client and NLA server without sft", distance(rtt)), ratio: over(product, direct),
				detail: fmt.Sprintf("%s s / %s s", spread(product), spread(direct))}
			if rtt == 50*ms {
				r.most = 0.8
			}
			b.report.add(r)
		})
	}
}

// farPlatform puts the platform at a distance from the desk, for as long as t.
func (b *bench) farPlatform(t lab.T, rtt time.Duration) *lab.Delay {
	d := lab.NewDelay(t, lab.Address+":8443", b.s.Platform.IP()+":8443", rtt)
	hosts, err := b.desk.Read("/etc/hosts")
	if err != nil {
		t.Fatalf("%v", err)
	}
	b.desk.Write("/etc/hosts", 0o644, regexp.MustCompile(`(?m)^\S+(\s+platform)$`).ReplaceAll(hosts, []byte(lab.Address+"$1")))
	t.Cleanup(func() { b.desk.Write("/etc/hosts", 0o644, hosts) })
	return d
}

// trips counts round trips until the first byte of RDP that the service sends.
func (b *bench) trips() {
	for _, mode := range b.modes {
		v := b.server("far-"+mode, mode, farPort(mode))
		b.scope(func(t lab.T) {
			platform := b.farPlatform(t, 50*ms)
			broker := lab.NewDelay(t, fmt.Sprintf("%s:%d", lab.Address, farPort(mode)), v.IP()+":4421", 50*ms)
			count := func(d *lab.Delay) int { return d.Stats().Connections + d.Stats().RoundTrips }
			n := b.sft(t, b.desk, v.Name(), mode == "inject")
			stands := count(broker)
			b.start(t, b.desk.Host, b.desk.User, job{Kind: "first", Targets: []target{n.target}}).expect(t, lineReady)
			first := count(platform) + count(broker)
			b.report.add(row{key: "trips", measure: "round trips from Enter to the RDP service's first byte, new session, " + mode, ratio: []float64{float64(first)}, most: 7, whole: true,
				detail: fmt.Sprintf("%d to the platform, %d until the stream stands, %d of RDP", count(platform), stands, count(broker)-stands)})
			// What the end of the first connection costs is not the second's.
			settled := time.Now()
			for last := first; time.Since(settled) < 10*50*ms; time.Sleep(ms) {
				if now := count(platform) + count(broker); now != last {
					last, settled = now, time.Now()
				}
			}
			platform.Reset()
			broker.Reset()
			b.start(t, b.desk.Host, b.desk.User, job{Kind: "first", Targets: []target{n.target}}).expect(t, lineReady)
			later := count(platform) + count(broker)
			b.report.add(row{key: "trips", measure: "the same for a later connection of the session, " + mode, ratio: []float64{float64(later)}, most: 3, whole: true,
				detail: fmt.Sprintf("%d to the platform", count(platform))})
			b.say("round trips, %s: %d, later %d", mode, first, later)
		})
	}
}

// A sample is one candidate's turns.
type sample struct{ speed, cost []float64 } // MB/s; CPU seconds per GB of both ends

func (b *bench) throughput() {
	for _, rtt := range b.rtts {
		b.scope(func(t lab.T) {
			ways := b.ways(t, rtt)
			for _, n := range b.conns {
				got := map[string]*sample{}
				for _, w := range ways {
					got[w.name] = &sample{}
				}
				for round := range b.rounds {
					for i := range ways { // each round begins with another
						w := ways[(i+round)%len(ways)]
						j := job{Kind: "load", Targets: []target{w.target}, Count: n, Warm: 500*ms + 4*rtt, For: b.load}
						pids := w.pids() // before the measure begins: it takes a while
						l := b.start(t, b.desk.Host, b.desk.User, j)
						l.expect(t, lineBegin)
						began, before := time.Now(), cpu(pids)
						r := l.result(t)
						// Both as rates: the two windows are not quite the same.
						share := (cpu(pids) - before).Seconds() / time.Since(began).Seconds()
						l.finish()
						if r.Bytes == 0 {
							t.Fatalf("%s at %v: nothing came through", w.name, rtt)
						}
						speed := float64(r.Bytes) / 1e6 / r.Took.Seconds()
						s := got[w.name]
						s.speed = append(s.speed, speed)
						s.cost = append(s.cost, share/(speed/1e3))
					}
				}
				b.judge(ways, rtt, n, got)
			}
		})
	}
}

// judge makes the rows of one distance and number of connections.
func (b *bench) judge(ways []way, rtt time.Duration, n int, got map[string]*sample) {
	where := fmt.Sprintf("%s, %s", distance(rtt), connections(n))
	for _, w := range ways {
		s := got[w.name]
		b.report.speed(where, w.name, s)
		b.say("throughput at %s: %s %s MB/s, %s CPU s/GB", where, w.name, spread(s.speed), spread(s.cost))
		if !strings.HasPrefix(w.name, "sft") {
			continue
		}
		pair, direct := goPair, rawTCP
		if w.rdp {
			pair, direct = pairRDP, rawRDP
		}
		if rtt == 0 {
			b.report.add(row{key: "throughput", measure: fmt.Sprintf("throughput at %s: %s, against %s", where, w.name, pair), ratio: over(s.speed, got[pair].speed), least: 1.2,
				detail: fmt.Sprintf("%s / %s MB/s", spread(s.speed), spread(got[pair].speed))})
			b.report.add(row{key: "cpu", measure: fmt.Sprintf("CPU seconds per GB of both ends at %s: %s, against %s", where, w.name, pair), ratio: over(s.cost, got[pair].cost), most: 0.8,
				detail: fmt.Sprintf("%s / %s", spread(s.cost), spread(got[pair].cost))})
			continue
		}
		b.report.add(row{key: "distance", measure: fmt.Sprintf("throughput at %s: %s, against %s", where, w.name, direct), ratio: over(s.speed, got[direct].speed), least: 0.95,
			detail: fmt.Sprintf("%s / %s MB/s", spread(s.speed), spread(got[direct].speed))})
	}
}

// latency times messages of 64 bytes there and back, one at a time.
func (b *bench) latency() {
	b.scope(func(t lab.T) {
		ways := b.ways(t, 0)
		p50, p99 := map[string][]float64{}, map[string][]float64{}
		for round := range b.rounds {
			for i := range ways {
				w := ways[(i+round)%len(ways)]
				r := b.start(t, b.desk.Host, b.desk.User, job{Kind: "echo", Targets: []target{w.target}, Count: b.echoes, Pause: 2 * ms}).result(t)
				p50[w.name] = append(p50[w.name], float64(r.P50.Microseconds()))
				p99[w.name] = append(p99[w.name], float64(r.P99.Microseconds()))
			}
		}
		for _, w := range ways {
			b.report.echo(w.name, p50[w.name], p99[w.name])
			b.say("echo: %s p50 %s, p99 %s µs", w.name, spread(p50[w.name]), spread(p99[w.name]))
			if !strings.HasPrefix(w.name, "sft") {
				continue
			}
			pair, direct := goPair, rawTCP
			if w.rdp {
				pair, direct = pairRDP, rawRDP
			}
			for _, q := range []struct {
				name string
				of   map[string][]float64
			}{{"p50", p50}, {"p99", p99}} {
				// Whole times, not what is added: that can be nothing, or less,
				// and the aim is the same.
				ours, theirs := q.of[w.name], q.of[pair]
				b.report.add(row{key: "echo", measure: fmt.Sprintf("echo, %s: %s, against %s", q.name, w.name, pair), ratio: over(ours, theirs), most: 1,
					detail: fmt.Sprintf("%s / %s µs; added %s / %s µs", spread(ours), spread(theirs), spread(minus(ours, q.of[direct])), spread(minus(theirs, q.of[direct])))})
			}
		}
	})
}

// perSession is how many connections one "sft rdp" serves, and perPerson how
// many a host lets one person have.
const (
	perSession = 16
	perPerson  = 63
)

// sessions holds many connections on one broker that hardly do anything.
func (b *bench) sessions() {
	const every = 5 * time.Second
	mode := b.modes[0]
	v := b.server("many", mode, 0)
	desks := []*stage.Desk{b.desk}
	for len(desks) < b.people {
		desks = append(desks, b.newDesk(fmt.Sprintf("p%d", len(desks)+1)))
	}
	b.scope(func(t lab.T) {
		brokers := v.Processes("sftd-broker")
		if len(brokers) != 1 {
			t.Fatalf("there are %d brokers on %s", len(brokers), v.Name())
		}
		broker := brokers[0].PID
		empty := anonymous(broker)
		left, opened := b.plan.sessions, 0
		for _, d := range desks {
			var list []target
			for person := min(left, perPerson); person > 0; {
				n := b.sft(t, d, v.Name(), mode == "inject")
				n.target.Count = min(person, perSession)
				person -= n.target.Count
				left -= n.target.Count
				list = append(list, n.target)
				opened++
			}
			b.start(t, d.Host, d.User, job{Kind: "idle", Targets: list, Pause: every}).expect(t, lineReady)
		}
		began, before := time.Now(), cpu([]int{broker})
		select {
		case <-time.After(b.idle):
		case <-t.Context().Done():
			t.Fatalf("stopped")
		}
		share := (cpu([]int{broker}) - before).Seconds() / time.Since(began).Seconds()
		each := (anonymous(broker) - empty) / 1000 / float64(b.plan.sessions)
		b.report.add(row{key: "memory", measure: fmt.Sprintf("memory of the broker per connection, KB: %d connections of %d sessions, %s", b.plan.sessions, opened, mode), ratio: []float64{each}, most: 100, whole: true,
			detail: fmt.Sprintf("from %.1f to %.1f MB", empty/1e6, anonymous(broker)/1e6)})
		b.report.add(row{key: "idle", measure: fmt.Sprintf("CPU of the broker with these, each saying 64 bytes every %v, %% of a core", every), ratio: []float64{100 * share},
			detail: fmt.Sprintf("over %v", b.idle)})
		b.say("%d connections: %.0f KB each, %.1f %% of a core", b.plan.sessions, each, 100*share)
	})
}
