//go:build linux

package main

import (
	"fmt"
	"strings"
	"time"

	"sft/e2e/lab"
	"sft/e2e/stage"
)

// The servers of the measures of SSH: each is reached through the one before
// it, and the first from the desk, at a distance. Each has an account of sft's
// and one with a key of its own, for plain ssh.
var shellHosts = []string{"shell1", "shell2", "shell3"}

const (
	shellPort = 2201 // of the first, at the lab
	plainUser = "plain"
)

// A shell is one of two ways to the same server, through the same hops.
type shell struct {
	name string
	argv func(more ...string) []string // of the command that runs more there
}

// shells makes the servers, once.
func (b *bench) shells() []*stage.Server {
	if v := b.hosts[shellHosts[0]]; v == nil {
		b.desk.Must(b.desk.User, "sh", "-ec", "umask 077; mkdir -p .ssh; ssh-keygen -q -t ed25519 -N '' -f .ssh/id_plain")
		pub := b.desk.Must(b.desk.User, "cat", ".ssh/id_plain.pub")
		alias, known := "", ""
		for i, name := range shellHosts {
			yaml := "DisableBroker: true\n"
			if i == 0 {
				yaml += fmt.Sprintf("AccessAddress: %s\nSSHDPort: %d\n", lab.Address, shellPort)
			}
			v := b.s.SSHServer(name, "prod", "", yaml)
			b.hosts[name] = v
			v.AddUser(plainUser, "")
			v.Write("/home/"+plainUser+"/.ssh/authorized_keys", 0o600, []byte(pub))
			v.Must("", "chown", "-R", plainUser+":", "/home/"+plainUser+"/.ssh")
			v.Install(workPath, "/proc/self/exe")
			alias += "Host " + name + "\n\tHostKeyAlias " + name + "\n"
			known += name + " " + v.Must("", "cat", "/etc/ssh/ssh_host_ed25519_key.pub")
			b.s.Wait("people may sign in to "+name, 30*time.Second, func() bool {
				_, err := v.Run("", "test", "-s", "/etc/ssh/sftd/principals/"+b.desk.User)
				return err == nil
			})
		}
		conf := fmt.Sprintf("Host %s\n\tUser %s\n\tIdentityFile ~/.ssh/id_plain\n\tIdentitiesOnly yes\n\tUserKnownHostsFile ~/.ssh/known_plain\nHost %s\n\tHostName %s\n\tPort %d\n",
			strings.Join(shellHosts, " "), plainUser, shellHosts[0], lab.Address, shellPort) + alias
		b.desk.Write("/home/"+b.desk.User+"/.ssh/config_plain", 0o600, []byte(conf))
		b.desk.Write("/home/"+b.desk.User+"/.ssh/known_plain", 0o600, []byte(known))
		b.desk.Must("", "chown", "-R", b.desk.User+":", "/home/"+b.desk.User+"/.ssh")
		b.start(b.t, b.hosts[shellHosts[2]].Host, "", job{Kind: "serve", Listen: []string{"127.0.0.1:" + servicePort},
			Certificate: b.keys.service, Key: b.keys.serviceKey}).expect(b.t, lineReady)
		b.start(b.t, b.hosts[shellHosts[1]].Host, "", job{Kind: "serve", Listen: []string{"127.0.0.1:" + servicePort},
			Certificate: b.keys.service, Key: b.keys.serviceKey}).expect(b.t, lineReady)
	}
	var list []*stage.Server
	for _, name := range shellHosts {
		list = append(list, b.hosts[name])
	}
	return list
}

// shellWays are plain ssh and sft through a number of hops.
func shellWays(hops int) (plain, product shell) {
	to := shellHosts[hops]
	plain = shell{name: "ssh", argv: func(more ...string) []string {
		argv := []string{"ssh", "-F", ".ssh/config_plain"}
		if hops > 0 {
			argv = append(argv, "-J", strings.Join(shellHosts[:hops], ","))
		}
		return append(append(argv, to), more...)
	}}
	product = shell{name: "sft ssh", argv: func(more ...string) []string {
		argv := []string{"sft", "ssh"}
		for _, h := range shellHosts[:hops] {
			argv = append(argv, "--via", h)
		}
		return append(append(argv, to), more...)
	}}
	return plain, product
}

// shell times "sft ssh SERVER true" beside plain ssh, from the command to its
// end, and counts round trips.
func (b *bench) shell() {
	first := b.shells()[0]
	for _, rtt := range []time.Duration{0, 50 * ms} {
		b.scope(func(t lab.T) {
			platform := b.farPlatform(t, rtt)
			server := lab.NewDelay(t, fmt.Sprintf("%s:%d", lab.Address, shellPort), first.IP()+":22", rtt)
			for hops := range 3 {
				plain, product := shellWays(hops)
				var times [2][]float64
				var trips [2]int
				for round := range b.rounds + 1 {
					for i, w := range []shell{plain, product} {
						platform.Reset()
						server.Reset()
						argv := w.argv("true")
						cmd := b.desk.Command(t.Context(), b.desk.User, argv[0], argv[1:]...)
						cmd.Env = append(cmd.Env, b.desk.Env...)
						began := time.Now()
						if out, err := cmd.CombinedOutput(); err != nil {
							t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
						}
						took := time.Since(began).Seconds()
						p, s := platform.Stats(), server.Stats()
						trips[i] = p.Connections + p.RoundTrips + s.Connections + s.RoundTrips
						if round > 0 { // the first warms up
							times[i] = append(times[i], took)
						}
					}
				}
				r := row{key: "shell", measure: fmt.Sprintf("sft ssh SERVER true at %s, %s, against ssh with the same hops", distance(rtt), hopCount(hops)), ratio: over(times[1], times[0]),
					detail: fmt.Sprintf("%s / %s s; round trips %d / %d", spread(times[1]), spread(times[0]), trips[1], trips[0])}
				if rtt == 50*ms {
					r.most = 1.3
				}
				b.report.add(r)
				b.say("shell at %v, %d hops: sft %v s, ssh %v s; round trips %d, %d", rtt, hops, spread(times[1]), spread(times[0]), trips[1], trips[0])
			}
		})
	}
}

// hops measures what comes through one hop and two, over a forwarded port.
func (b *bench) hops() {
	first := b.shells()[0]
	for _, rtt := range b.rtts {
		b.scope(func(t lab.T) {
			road(t, fmt.Sprintf("%s:%d", lab.Address, shellPort), first.IP()+":22", rtt)
			for n := 1; n <= 2; n++ {
				plain, product := shellWays(n)
				var local []string
				var pids [2][]int
				for i, w := range []shell{plain, product} {
					at := fmt.Sprintf("127.0.0.1:%d", 9110+2*n+i)
					argv := w.argv("-N", "-o", "ExitOnForwardFailure=yes", "-L", at+":127.0.0.1:"+servicePort)
					cmd := b.desk.Command(t.Context(), b.desk.User, argv[0], argv[1:]...)
					cmd.Env = append(cmd.Env, b.desk.Env...)
					p := b.desk.Start("hops", cmd)
					t.Cleanup(p.Stop)
					b.desk.WaitListen(at)
					local = append(local, at)
					pids[i] = family(b.desk.Host, p.PID())
				}
				var speeds, costs [2][]float64
				for round := range b.rounds {
					for k := range local {
						i := (k + round) % 2
						l := b.start(t, b.desk.Host, b.desk.User, job{Kind: "load", Targets: []target{{Address: local[i]}}, Count: 1, Warm: 500*ms + 4*rtt, For: b.load})
						l.expect(t, lineBegin)
						before := cpu(pids[i])
						r := l.result(t)
						costs[i] = append(costs[i], (cpu(pids[i])-before).Seconds()/float64(r.Bytes)*1e9)
						l.finish()
						if r.Bytes == 0 {
							t.Fatalf("through %d hops at %v: nothing came", n, rtt)
						}
						speeds[i] = append(speeds[i], float64(r.Bytes)/1e6/r.Took.Seconds())
					}
				}
				b.report.add(row{key: "hops", measure: fmt.Sprintf("throughput of a port forwarded at %s, %s: sft ssh, against ssh -J", distance(rtt), hopCount(n)), ratio: over(speeds[1], speeds[0]), least: 1,
					detail: fmt.Sprintf("%s / %s MB/s; processor time at the desk %s / %s s/GB", spread(speeds[1]), spread(speeds[0]), spread(costs[1]), spread(costs[0]))})
				b.say("through %d hops at %v: sft %s, ssh -J %s MB/s; %s, %s s/GB", n, rtt, spread(speeds[1]), spread(speeds[0]), spread(costs[1]), spread(costs[0]))
			}
		})
	}
}

// family is a process of a host and all that it has started, and they.
func family(h *lab.Host, pid int) []int {
	pids := []int{pid}
	all := h.Processes("")
	for i := 0; i < len(pids); i++ {
		for _, p := range all {
			if p.Parent == pids[i] {
				pids = append(pids, p.PID)
			}
		}
	}
	return pids
}

func hopCount(n int) string {
	switch n {
	case 0:
		return "no hop"
	case 1:
		return "1 hop"
	}
	return fmt.Sprintf("%d hops", n)
}
