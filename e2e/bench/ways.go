//go:build linux

package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"sft/e2e/lab"
	"sft/e2e/stage"
)

// Where things are on hosts.
const (
	workPath    = "/usr/local/bin/bench"
	serviceCert = "/etc/sft/service.pem"
	servicePort = "3389"
)

// Ports of the candidates: at the server, and with a distance at the lab.
const (
	portRaw     = "9001"
	portSSH     = "9002"
	portStunnel = "9003"
	portPair    = "9004"
	localSSH    = "127.0.0.1:9102"
	localTunnel = "127.0.0.1:9103"
	localPair   = "127.0.0.1:9104"
)

// keys are those of the others, and of the RDP service, in PEM.
type keys struct {
	ca, cert, key       string // ECDSA, for both ends
	service, serviceKey string // RSA, as RDP services have
}

func newKeys(t lab.T) keys {
	t.Helper()
	var k keys
	now := time.Now()
	make := func(template *x509.Certificate, parent *x509.Certificate, public, signer any) string {
		template.NotBefore, template.NotAfter = now.Add(-time.Hour), now.Add(24*time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
		if err != nil {
			t.Fatalf("make a certificate: %v", err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	private := func(key any) string {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatalf("write a key: %v", err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	key, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	serviceKey, err3 := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil || err2 != nil || err3 != nil {
		t.Fatalf("make keys: %v %v %v", err, err2, err3)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "bench"}, DNSNames: []string{"bench"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	service := &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "service"}}
	k.ca = make(ca, ca, caKey.Public(), caKey)
	k.cert, k.key = make(leaf, ca, key.Public(), caKey), private(key)
	k.service, k.serviceKey = make(service, service, serviceKey.Public(), serviceKey), private(serviceKey)
	return k
}

// A worker is a running job.
type worker struct {
	cmd    *exec.Cmd
	in     io.Closer
	out    *bufio.Reader
	errors bytes.Buffer
	kind   string
}

// start starts a job on a host. It ends with t, or with finish.
func (b *bench) start(t lab.T, h *lab.Host, user string, j job) *worker {
	t.Helper()
	w := &worker{cmd: h.Command(t.Context(), user, workPath, "work"), kind: j.Kind}
	in, err := w.cmd.StdinPipe()
	out, err2 := w.cmd.StdoutPipe()
	if err != nil || err2 != nil {
		t.Fatalf("start a job: %v %v", err, err2)
	}
	w.in, w.out = in, bufio.NewReader(out)
	w.cmd.Stderr = &w.errors
	if err := w.cmd.Start(); err != nil {
		t.Fatalf("start a job: %v", err)
	}
	t.Cleanup(func() {
		in.Close()
		w.cmd.Process.Kill()
		w.cmd.Wait()
	})
	if err := json.NewEncoder(in).Encode(j); err != nil {
		t.Fatalf("start a job: %v", err)
	}
	return w
}

// line returns the job's next line.
func (w *worker) line(t lab.T) string {
	t.Helper()
	s, err := w.out.ReadString('\n')
	if err != nil {
		w.cmd.Wait()
		t.Fatalf("the job %q ended: %s", w.kind, strings.TrimSpace(w.errors.String()))
	}
	return strings.TrimSpace(s)
}

// expect waits for a line.
func (w *worker) expect(t lab.T, want string) {
	t.Helper()
	if got := w.line(t); got != want {
		t.Fatalf("the job %q says %q, not %q", w.kind, got, want)
	}
}

// result waits for the last line.
func (w *worker) result(t lab.T) result {
	t.Helper()
	var r result
	if s := w.line(t); json.Unmarshal([]byte(s), &r) != nil {
		t.Fatalf("the job %q says %q", w.kind, s)
	}
	return r
}

// finish ends the job, and returns when it has.
func (w *worker) finish() {
	w.in.Close()
	w.cmd.Wait()
}

// pid is the job's process, below nsenter.
func (w *worker) pid() int { return childOf(w.cmd.Process.Pid) }

func childOf(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

// server returns the host with sftd in front of the bench's own service.
// With port it is told to be at that port of the lab.
func (b *bench) server(name, mode string, port int) *stage.Server {
	if v := b.hosts[name]; v != nil {
		return v
	}
	yaml := "RDPCertificateFile: " + serviceCert + "\nRDPSignIn: " + mode + "\n" +
		"BrokeredLoginGracePeriodInSeconds: 3600\n" + // each candidate waits for its turn for longer than the default
		at(port)
	v := b.s.Server(name, "prod", "", yaml)
	v.Install(workPath, "/proc/self/exe")
	v.Write(serviceCert, 0o644, []byte(b.keys.service))
	b.start(b.t, v.Host, "", job{Kind: "serve", Listen: []string{"127.0.0.1:" + servicePort, "0.0.0.0:" + portRaw},
		Certificate: b.keys.service, Key: b.keys.serviceKey}).expect(b.t, lineReady)
	b.hosts[name] = v
	return v
}

// at is what sftd.yaml says of where clients find the broker.
func at(port int) string {
	if port == 0 {
		return ""
	}
	return fmt.Sprintf("AccessAddress: %s\nBrokerAccessPort: %d\n", lab.Address, port)
}

// farPort is where the broker of a server that is far away is found.
func farPort(mode string) int {
	if mode == "inject" {
		return 4431
	}
	return 4432
}

// A way is a candidate, ready to be used.
type way struct {
	name   string
	rdp    bool // with RDP's own TLS inside or, with inject, in its place
	target target
	pids   func() []int // of both ends
}

// Names of the candidates.
const (
	rawTCP   = "raw TCP"
	sshL     = "ssh -L"
	tunnel   = "stunnel"
	goPair   = "plain Go pair"
	rawRDP   = "RDP, direct"
	pairRDP  = "RDP, plain Go pair"
	sftPlain = "sft, deliver"
	sftRDP   = "sft, inject"
)

// ways builds all candidates between the desk and a server that is rtt away.
// They end with t.
func (b *bench) ways(t lab.T, rtt time.Duration) []way {
	none := func() []int { return nil }
	near := b.server("near-"+b.modes[0], b.modes[0], 0)
	// to is where the desk finds a port of the server.
	to := func(port string) string {
		if rtt == 0 {
			return near.IP() + ":" + port
		}
		road(t, lab.Address+":"+port, near.IP()+":"+port, rtt)
		return lab.Address + ":" + port
	}
	raw := to(portRaw)
	list := []way{{rawTCP, false, target{Address: raw}, none}}
	list = append(list, b.sshWay(t, near.Host, to(portSSH)), b.stunnelWay(t, near.Host, to(portStunnel)))

	far := b.start(t, near.Host, "", job{Kind: "far", Listen: []string{"0.0.0.0:" + portPair}, Connect: "127.0.0.1:" + servicePort, Certificate: b.keys.cert, Key: b.keys.key, CA: b.keys.ca})
	far.expect(t, lineReady)
	nearEnd := b.start(t, b.desk.Host, b.desk.User, job{Kind: "near", Listen: []string{localPair}, Connect: to(portPair), Certificate: b.keys.cert, Key: b.keys.key, CA: b.keys.ca})
	nearEnd.expect(t, lineReady)
	pair := way{goPair, false, target{Address: localPair}, func() []int { return []int{far.pid(), nearEnd.pid()} }}
	list = append(list, pair)

	for _, mode := range b.modes {
		v := near
		if rtt > 0 {
			v = b.server("far-"+mode, mode, farPort(mode))
			road(t, fmt.Sprintf("%s:%d", lab.Address, farPort(mode)), v.IP()+":4421", rtt)
		} else if mode != b.modes[0] {
			v = b.server("near-"+mode, mode, 0)
		}
		w := way{name: sftPlain}
		if w.rdp = mode == "inject"; w.rdp {
			w.name = sftRDP
			list = append(list, way{rawRDP, true, target{Address: raw, RDP: true, Login: "ann"}, none})
			pair.name, pair.rdp, pair.target.RDP = pairRDP, true, true
			list = append(list, pair)
		}
		n := b.sft(t, b.desk, v.Name(), w.rdp)
		w.target = n.target
		w.pids = func() []int { return append(pidsOf(t, v.Host, "sftd", 2), n.pid()) }
		list = append(list, w)
	}
	return list
}

// sshWay is "ssh -L", with the cipher that is fastest on most machines.
func (b *bench) sshWay(t lab.T, server *lab.Host, addr string) way {
	t.Helper()
	if _, err := os.Stat("/usr/sbin/sshd"); err != nil {
		t.Fatalf("sshd is not installed; run make setup")
	}
	if _, err := server.Read("/etc/bench/host"); err != nil {
		server.Must("", "sh", "-ec", "mkdir -p /etc/bench /run/sshd; ssh-keygen -q -t ed25519 -N '' -f /etc/bench/host; ssh-keygen -q -t ed25519 -N '' -f /etc/bench/user")
		server.Write("/etc/bench/sshd_config", 0o600, []byte("Port "+portSSH+"\nHostKey /etc/bench/host\nAuthorizedKeysFile /etc/bench/user.pub\nStrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n"))
		key, err := server.Read("/etc/bench/user")
		if err != nil {
			t.Fatalf("%v", err)
		}
		b.desk.Write("/etc/bench/user", 0o600, key)
	}
	sshd := server.Start("sshd", server.Command(t.Context(), "", "/usr/sbin/sshd", "-D", "-e", "-f", "/etc/bench/sshd_config"))
	t.Cleanup(sshd.Stop)
	server.WaitListen("0.0.0.0:" + portSSH)
	host, port, _ := strings.Cut(addr, ":")
	ssh := b.desk.Start("ssh", b.desk.Command(t.Context(), "", "ssh", "-N", "-F", "none", "-L", localSSH+":127.0.0.1:"+servicePort,
		"-c", "aes128-gcm@openssh.com", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ExitOnForwardFailure=yes",
		"-i", "/etc/bench/user", "-p", port, "root@"+host))
	t.Cleanup(ssh.Stop)
	b.desk.WaitListen(localSSH)
	return way{sshL, false, target{Address: localSSH}, func() []int { return append(pidsOf(t, server, "sshd", 2), ssh.PID()) }}
}

// stunnelWay is stunnel at both ends, with the keys and the cipher of the
// plain pair.
func (b *bench) stunnelWay(t lab.T, server *lab.Host, addr string) way {
	t.Helper()
	program, err := exec.LookPath("stunnel4")
	if err != nil {
		t.Fatalf("stunnel4 is not installed; run make setup")
	}
	conf := func(service string) []byte {
		return []byte("foreground = yes\npid =\ndebug = err\nsyslog = no\n[bench]\ncert = /etc/bench/end.pem\nCAfile = /etc/bench/ca.pem\nverifyChain = yes\n" +
			"sslVersionMin = TLSv1.3\nciphersuites = TLS_AES_128_GCM_SHA256\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n" + service)
	}
	run := func(h *lab.Host, service, listens string) *lab.Process {
		h.Write("/etc/bench/end.pem", 0o600, []byte(b.keys.key+b.keys.cert))
		h.Write("/etc/bench/ca.pem", 0o644, []byte(b.keys.ca))
		h.Write("/etc/bench/stunnel.conf", 0o600, conf(service))
		p := h.Start("stunnel", h.Command(t.Context(), "", program, "/etc/bench/stunnel.conf"))
		t.Cleanup(p.Stop)
		h.WaitListen(listens)
		return p
	}
	far := run(server, "accept = 0.0.0.0:"+portStunnel+"\nconnect = 127.0.0.1:"+servicePort+"\n", "0.0.0.0:"+portStunnel)
	near := run(b.desk.Host, "client = yes\naccept = "+localTunnel+"\nconnect = "+addr+"\n", localTunnel)
	return way{tunnel, false, target{Address: localTunnel}, func() []int { return []int{near.PID(), far.PID()} }}
}

// A session is a running "sft rdp --no-launch".
type session struct {
	target target
	pid    func() int
}

var addressRE = regexp.MustCompile(`(?s)address (\S+)\nuser_name (\S+)\n.*is open until`)

// sft opens a session of a desk's person. It ends with t.
func (b *bench) sft(t lab.T, d *stage.Desk, server string, rdp bool) session {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer r.Close()
	cmd := d.Command(t.Context(), d.User, "sft", "rdp", "--no-launch", "--password-fd", "3", server)
	cmd.Env = append(cmd.Env, d.Env...)
	cmd.ExtraFiles = []*os.File{w}
	began := logSize(filepath.Join(b.l.Dir(), d.Name()+"-sft-"+server+".log"))
	p := d.Start("sft-"+server, cmd)
	w.Close()
	t.Cleanup(p.Stop)
	// To the end of the line: nsenter keeps its end open.
	secret, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatalf("read the password of %s: %v: %s", server, err, p.Output()[began:])
	}
	var m []string
	b.s.Wait("sft rdp gives an address", 30*time.Second, func() bool {
		select {
		case <-p.Done():
			t.Fatalf("sft rdp %s: %s", server, p.Output()[began:])
		default:
		}
		m = addressRE.FindStringSubmatch(p.Output()[began:])
		return m != nil
	})
	return session{target{Address: m[1], RDP: rdp, Login: m[2], Secret: strings.TrimSuffix(secret, "\n")}, p.PID}
}

// logSize is where the next lines of a log will begin.
func logSize(path string) int64 {
	i, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return i.Size()
}

// pidsOf returns the processes of a program on a host, by its file: the broker
// is started from /proc/self/exe, and the kernel calls it "exe". Fewer than
// there must be would make what they cost too little.
func pidsOf(t lab.T, h *lab.Host, program string, atLeast int) []int {
	t.Helper()
	var pids []int
	for _, p := range h.Processes("") {
		file, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID))
		if err == nil && strings.HasPrefix(filepath.Base(file), program) {
			pids = append(pids, p.PID)
		}
	}
	if len(pids) < atLeast {
		t.Fatalf("%s runs %d processes of %s, not %d", h.Name(), len(pids), program, atLeast)
	}
	return pids
}

// tick is what /proc counts processor time in.
const tick = 10 * time.Millisecond

// cpu is the processor time that processes have used. One that has ended
// counts for nothing.
func cpu(pids []int) time.Duration {
	var sum time.Duration
	for _, pid := range pids {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(b), ") ") // the name may hold spaces
		if f := strings.Fields(rest); len(f) > 12 {
			user, _ := strconv.Atoi(f[11])
			system, _ := strconv.Atoi(f[12])
			sum += time.Duration(user+system) * tick
		}
	}
	return sum
}

// anonymous is what a process has in memory of its own, in bytes.
func anonymous(pid int) float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	m := regexp.MustCompile(`(?m)^RssAnon:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(string(m[1]))
	return float64(n) * 1024
}
