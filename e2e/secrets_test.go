//go:build linux

package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"golang.org/x/crypto/md4"

	"sft"
	"sft/e2e/lab"
	"sft/e2e/stage"
)

// A word is a form of a secret, to be looked for.
type word struct {
	name  string // of the secret and the form: never the secret itself
	bytes []byte
}

// forms returns what a secret may be carried as. The NT hash is in it because
// NLA takes it for the password (MS-NLMP 3.3.1).
func forms(name, secret string) []word {
	var wide []byte
	for _, u := range utf16.Encode([]rune(secret)) {
		wide = binary.LittleEndian.AppendUint16(wide, u)
	}
	h := md4.New()
	h.Write(wide)
	hash := h.Sum(nil)
	// The last group depends on what follows in what was encoded.
	in64 := func(b []byte) []byte { return []byte(base64.RawStdEncoding.EncodeToString(b[:len(b)/3*3])) }
	return []word{
		{name, []byte(secret)},
		{name + " in UTF-16LE", wide},
		{name + " in base64", in64([]byte(secret))},
		{name + " in UTF-16LE and base64", in64(wide)},
		{name + " in hex", []byte(hex.EncodeToString([]byte(secret)))},
		{name + " as NT hash", hash},
		{name + " as NT hash in hex", []byte(hex.EncodeToString(hash))},
	}
}

// within returns the names of the words that are in b.
func within(b []byte, words []word) (names []string) {
	for _, w := range words {
		if bytes.Contains(b, w.bytes) {
			names = append(names, w.name)
		}
	}
	return names
}

// Where a host keeps what recordPasswords recorded: the passwords, and what
// must not hold them: arguments, environment, and the fields of /etc/shadow
// that came of it.
const (
	toldPasswords = "/root/told-passwords"
	toldElse      = "/root/told-else"
	toldFields    = "/root/told-fields"
)

// recordPasswords puts a program in chpasswd's place that writes down, for
// root alone, what it is told, and passes it on.
func recordPasswords(v *stage.Server) {
	v.Must("", "sh", "-ec", `install -d -m 700 /usr/local/libexec/recorded
		mv /usr/sbin/chpasswd /usr/local/libexec/recorded/chpasswd`)
	v.Write("/usr/sbin/chpasswd", 0o755, []byte(`#!/bin/sh
umask 077
{ echo "$0 $*"; tr '\0' '\n' </proc/$$/environ; tr '\0' '\n' </proc/$PPID/cmdline; } >>`+toldElse+`
tee -a `+toldPasswords+` | /usr/local/libexec/recorded/chpasswd "$@"
status=$?
getent shadow >>`+toldFields+`
exit $status
`))
}

// recorded returns the passwords that a login had so far, oldest first.
func recorded(t *testing.T, v *stage.Server, login string) (passwords []string) {
	t.Helper()
	b, err := v.Read(toldPasswords)
	if err != nil {
		t.Fatalf("no password was recorded on %s: %v", v.Name(), err)
	}
	for line := range strings.Lines(string(b)) {
		name, pw, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		if !ok || name != login || len(pw) < 20 {
			t.Fatalf("a line of %d bytes on %s is not %s and a password", len(line), v.Name(), login)
		}
		passwords = append(passwords, pw)
	}
	return passwords
}

// opened reports whether a password is, or was, that of an account: whether a
// field of /etc/shadow that chpasswd left is made from it.
func opened(t *testing.T, v *stage.Server, login, password string) bool {
	t.Helper()
	cmd := v.Command(t.Context(), "", "perl", "-ne", `BEGIN { chomp($pw = <STDIN>) } @f = split /:/; $ok = 1 if $f[0] eq "`+login+`" && $f[1] eq crypt($pw, $f[1]);
		END { exit !$ok }`, toldFields)
	cmd.Stdin = strings.NewReader(password + "\n")
	return cmd.Run() == nil
}

// signsIn reports whether a password opens an account of the host.
func signsIn(t *testing.T, v *stage.Server, login, password string) bool {
	cmd := v.Command(t.Context(), "nobody", "su", login, "-c", "true")
	cmd.Stdin = strings.NewReader(password + "\n")
	return cmd.Run() == nil
}

// inFiles looks through the files that were written on a host since /mark was,
// except two.
func inFiles(t *testing.T, h *lab.Host, words []word) (found []string) {
	t.Helper()
	cmd := h.Command(t.Context(), "", "sh", "-c", `find /etc /home /root /run /tmp /var /opt /srv /usr/local /dev/shm \
		-name thinclient_drives -prune -o -type f -cnewer /mark ! -path `+toldPasswords+` ! -path /run/display/\* -print0 |
		tar --null --no-recursion -T - -cf - 2>/dev/null; :`)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	for r := tar.NewReader(out); ; {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		var b []byte
		if err == nil {
			b, err = io.ReadAll(r)
		}
		if err != nil {
			t.Fatalf("read what was written on %s: %v", h.Name(), err)
		}
		for _, name := range within(b, words) {
			found = append(found, fmt.Sprintf("%s: /%s on %s", name, head.Name, h.Name()))
		}
	}
}

// inProcesses looks through arguments and environments.
func inProcesses(h *lab.Host, words []word) (found []string) {
	for _, f := range h.GrepProc(allBytes(words)...) {
		found = append(found, fmt.Sprintf("%s: %s of %s on %s", words[f.Needle].name, f.Where, f.Process.Name, h.Name()))
	}
	return found
}

// inMemory looks through the memory of all processes of a name, of which there
// is one at least.
func inMemory(t *testing.T, h *lab.Host, program string, words []word) (found []string) {
	t.Helper()
	n := 0
	for _, p := range h.Processes("") {
		if p.Name == program {
			n++
			found = append(found, inProcess(h, p.PID, words)...)
		}
	}
	if n == 0 {
		t.Errorf("no %s runs on %s", program, h.Name())
	}
	return found
}

// inProcess looks through the memory of one process.
func inProcess(h *lab.Host, pid int, words []word) (found []string) {
	for _, f := range h.GrepMemory(pid, allBytes(words)...) {
		found = append(found, fmt.Sprintf("%s: memory of %s (%d) on %s", words[f.Needle].name, f.Process.Name, pid, h.Name()))
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// inAgent looks through the memory of sftd: monitor and broker.
func inAgent(v *stage.Server, words []word) []string {
	broker, _ := v.Status()["broker"].(map[string]any)
	pid, _ := broker["pid"].(float64)
	return append(inProcess(v.Host, v.Agent.PID(), words), inProcess(v.Host, v.LabPID(int(pid)), words)...)
}

func allBytes(words []word) (all [][]byte) {
	for _, w := range words {
		all = append(all, w.bytes)
	}
	return all
}

// packets are those of a recording: the TCP port at both ends, or 0, whether
// there are data, and all of it.
func packets(pcap []byte) iter.Seq2[packet, []byte] {
	return func(yield func(packet, []byte) bool) {
		const fileHead, packetHead, ethernet = 24, 16, 14
		for b := pcap[min(fileHead, len(pcap)):]; len(b) >= packetHead; {
			size := packetHead + int(binary.LittleEndian.Uint32(b[8:]))
			if size > len(b) {
				return
			}
			p := b[packetHead:size]
			b = b[size:]
			var k packet
			head, whole := 0, 0 // of the IP packet
			if len(p) > ethernet+40 {
				switch ip := p[ethernet:]; {
				case binary.BigEndian.Uint16(p[12:]) == 0x0800 && ip[9] == 6:
					head, whole = int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
				case binary.BigEndian.Uint16(p[12:]) == 0x86dd && ip[6] == 6:
					head, whole = 40, 40+int(binary.BigEndian.Uint16(ip[4:]))
				}
			}
			if head > 0 && len(p) >= ethernet+head+20 {
				tcp := p[ethernet+head:]
				k = packet{int(binary.BigEndian.Uint16(tcp)), int(binary.BigEndian.Uint16(tcp[2:])), whole > head+int(tcp[12]>>4)*4}
			}
			if !yield(k, p) {
				return
			}
		}
	}
}

type packet struct {
	from, to int
	data     bool
}

// carried counts the packets of a recording with data from or to a TCP port.
func carried(pcap []byte, port int) (n int) {
	for k := range packets(pcap) {
		if k.data && (k.from == port || k.to == port) {
			n++
		}
	}
	return n
}

// sesmanPort is where xrdp tells its session manager a name and a password, in
// the clear, on loopback: that is within the RDP service.
const sesmanPort = 3350

// onWire looks through a recording.
func onWire(pcap []byte, words []word) (found []string) {
	for k, p := range packets(pcap) {
		if k.to != sesmanPort {
			found = append(found, within(p, words)...)
		}
	}
	return found
}

// The passwords that open an account are known to the broker, its monitor and
// the RDP service, and to nobody else; the launch secret to sft and the RDP
// client. Each place is searched with the same means for something that is
// there, so that the silence means something.
func TestPasswordStaysOnHost(t *testing.T) {
	s, web, desk := world(t)
	nla, _ := shadowServer(s, "nla01", "prod", lab.ShadowNLA)
	hosts := []*lab.Host{s.Platform, desk.Host, web.Host, nla.Host}
	for _, h := range hosts {
		h.Must("", "touch", "/mark")
	}
	type hop struct {
		*lab.Capture
		name string
		port int // what it must have seen
	}
	hops := []hop{
		{desk.Capture("eth0"), "the desk's cable", sft.BrokerPort},
		{s.Platform.Capture("eth0"), "the platform's cable", 8443},
	}
	deskLoopback := desk.Capture("lo")
	for _, v := range []*stage.Server{web, nla} {
		recordPasswords(v)
		hops = append(hops, hop{v.Capture("eth0"), v.Name() + "'s cable", sft.BrokerPort}, hop{v.Capture("lo"), v.Name() + "'s loopback", 3389})
	}

	var words, launch []word // of all passwords, and of all launch secrets
	var ports []int          // on the desk's loopback
	last := map[string]string{}
	absent := func(what string, found []string) {
		t.Helper()
		if len(found) > 0 {
			t.Errorf("%s:\n%s", what, strings.Join(found, "\n"))
		}
	}
	for _, v := range []*stage.Server{web, nla} {
		colour := red
		if v == web {
			colour = blue
		}
		// learn adds the passwords that are new.
		learn := func() {
			t.Helper()
			for i, pw := range recorded(t, v, "ann") {
				w := forms(fmt.Sprintf("password %d of %s", i+1, v.Name()), pw)
				if !slices.ContainsFunc(words, func(old word) bool { return old.name == w[0].name }) {
					words = append(words, w...)
				}
				last[v.Name()] = pw
			}
		}
		look := func() {
			t.Helper()
			learn()
			both := append(slices.Clip(words), launch...)
			absent("passwords on the desk", append(inMemory(t, desk.Host, "sft", words), inMemory(t, desk.Host, "xfreerdp", words)...))
			absent("passwords at the platform", inMemory(t, s.Platform, "sft-platform", words))
			for _, h := range hosts {
				absent("arguments and environment", inProcesses(h, both))
			}
			if len(launch) > 0 {
				absent("launch secrets on the server", inAgent(v, launch))
			}
			for _, p := range v.Processes("ann") { // the desktop's programs
				if p.Name == "Xorg" {
					continue // a part of xrdp, which sends it the Client Info with the password
				}
				absent("passwords in the session", inMemory(t, v.Host, p.Name, words))
			}
		}
		// With "sft rdp" as it is.
		p := desk.StartSft("sft-rdp", "--debug", "rdp", "--size", "1024x700", v.Name())
		see(t, desk, colour, "secrets-"+v.Name())
		look()
		// What was recorded is the password, or all this would mean nothing.
		if !opened(t, v, "ann", last[v.Name()]) || opened(t, v, "ann", "x"+last[v.Name()]) {
			t.Errorf("what was recorded on %s is not what opens the account", v.Name())
		}
		t.Logf("where the passwords of %s are, rightly: %q", v.Name(), inAgent(v, words))
		p.Stop()
		atRest(s, v, "ann", 15*time.Second)

		// With a client started by hand, whose launch secret is known.
		d := open(t, s, desk, "--", v.Name())
		secret := forms("launch secret of "+v.Name(), d.Password)
		launch = append(launch, secret...)
		var port int
		if _, err := fmt.Sscanf(d.Address, "127.0.0.1:%d", &port); err != nil {
			t.Fatal(err)
		}
		ports = append(ports, port)
		in := d.SignIn
		in.Security = lab.SecurityNLA
		client := desk.StartXfreerdp("ann", in)
		desk.WaitPixelNear(900, 600, colour)
		look()
		for _, program := range []string{"sft", "xfreerdp"} {
			if found := inMemory(t, desk.Host, program, secret); len(found) == 0 {
				t.Errorf("the launch secret is not found in the memory of %s: the search is blind", program)
			}
		}
		client.Stop()
		d.Stop()
		atRest(s, v, "ann", 15*time.Second)
		learn()
		if got := shadow(v, "ann"); got != "*" || signsIn(t, v, "ann", last[v.Name()]) {
			t.Errorf("afterwards ann's password field on %s is %q, and the last password may work", v.Name(), got)
		}
	}

	// A word that is in each place, on each host.
	control := forms("control", "lab control "+fmt.Sprint(time.Now().UnixNano()))[:2]
	for i, h := range hosts {
		h.Write("/root/control", 0o600, control[1].bytes)
		cmd := h.Command(t.Context(), "", "sh", "-c", `echo "$CONTROL"; echo "$CONTROL" >/dev/shm/control
			for to in 127.0.0.1 `+hosts[(i+1)%len(hosts)].IP()+`; do bash -c 'echo "$CONTROL" >/dev/udp/$0/9' $to; done
			exec sleep 600`)
		cmd.Env = append(cmd.Env, "CONTROL="+string(control[0].bytes))
		p := h.Start("control", cmd)
		s.Wait("the control of "+h.Name(), 10*time.Second, func() bool {
			asleep := slices.ContainsFunc(h.Processes(""), func(p lab.Running) bool { return p.Name == "sleep" })
			return asleep && len(within([]byte(p.Output()), control)) > 0 && len(inMemory(t, h, "sleep", control)) > 0
		})
	}
	words = append(words, launch...)
	all := append(slices.Clip(words), control...)
	// sift returns what is not the control, which has to be there n times.
	sift := func(place string, n int, found []string) {
		t.Helper()
		bad := slices.DeleteFunc(slices.Clone(found), func(f string) bool { return strings.HasPrefix(f, "control") })
		absent(place, bad)
		if got := len(found) - len(bad); got < n {
			t.Errorf("%s: the control is found %d times, want %d: the search is blind", place, got, n)
		}
	}
	for _, h := range hosts {
		sift("files of "+h.Name(), 2, inFiles(t, h, all))
		sift("processes of "+h.Name(), 1, inProcesses(h, all))
	}
	logs, err := filepath.Glob(filepath.Join(s.Lab.Dir(), "*"))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range logs {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range within(b, all) {
			found = append(found, name+": log "+filepath.Base(f))
		}
	}
	sift("logs", len(hosts), found)
	for _, h := range hops {
		b := h.Stop()
		if n := carried(b, h.port); n < 10 {
			t.Errorf("%s carried %d packets of port %d", h.name, n, h.port)
		}
		sift(h.name, 1, onWire(b, all))
	}
	b := deskLoopback.Stop()
	for _, port := range ports {
		if n := carried(b, port); n < 10 {
			t.Errorf("the desk's loopback carried %d packets of port %d", n, port)
		}
	}
	sift("the desk's loopback", 1, onWire(b, all))
	t.Logf("%d forms were looked for", len(words))
}
