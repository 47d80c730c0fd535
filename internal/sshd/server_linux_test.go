package sshd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// inside says to the test binary that it runs in its own namespaces.
const inside = "SFT_SSHD_TEST_INSIDE"

// TestServer runs the tests on a real sshd on a host of their own: this binary
// again, in namespaces with overlays on /etc and /var and nothing in /home and
// /run, and with a loopback interface alone.
func TestServer(t *testing.T) {
	if os.Getenv(inside) != "" {
		serverTests(t)
		return
	}
	if os.Getuid() != 0 || tool("sshd") == "" {
		t.Skip("NOT TESTED: this needs root, to make namespaces, and sshd")
	}
	before := machine(t)
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc",
		"/bin/sh", "-c", `ip link set lo up && "$@"; exit $?`, "init", os.Args[0], "-test.run=^TestServer$", "-test.v", "-test.timeout=9m")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	t.Logf("inside:\n%s", out)
	if err != nil {
		t.Errorf("inside: %v", err)
	}
	if !maps.Equal(before, machine(t)) {
		t.Error("the machine itself was touched")
	}
}

// machine returns what must not change on the real machine.
func machine(t *testing.T) map[string]string {
	t.Helper()
	m := map[string]string{}
	for _, f := range []string{"/etc/passwd", "/etc/shadow", "/etc/group", DefaultConfig} {
		data, err := os.ReadFile(f)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		m[f] = string(data)
	}
	for _, d := range []string{"/home", "/etc/ssh", "/etc/ssh/sshd_config.d"} {
		all, _ := os.ReadDir(d)
		m[d] = fmt.Sprint(all)
	}
	return m
}

// A box is a host with an SSH server: ann is an account of ours, carl is not.
type box struct {
	t     *testing.T
	s     *Server
	clock time.Time
	logs  *syncBuffer
	pid   int
	dir   string // for keys of clients
	ca    ssh.Signer
	hups  int
	runs  int // programs that were started
	keys  map[string]string
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}
func (b *syncBuffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

const serverID = "srv-1"

// newBox makes a host with that configuration of its SSH server, besides the
// port and what a test host needs.
func newBox(t *testing.T, config string) *box {
	t.Helper()
	scratch, err := os.MkdirTemp("", "sshd-host-")
	must(t, err)
	var mounted []string
	mount := func(source, target, kind, data string) {
		t.Helper()
		if err := unix.Mount(source, target, kind, 0, data); err != nil {
			t.Fatalf("mount %s on %s: %v", kind, target, err)
		}
		mounted = append(mounted, target)
	}
	t.Cleanup(func() {
		for _, target := range slices.Backward(mounted) {
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", target, err)
			}
		}
		os.Remove(scratch)
	})
	mount("tmpfs", scratch, "tmpfs", "mode=755")
	for _, dir := range []string{"etc", "var"} {
		up, work := filepath.Join(scratch, dir), filepath.Join(scratch, dir+".work")
		must(t, errors.Join(os.Mkdir(up, 0o755), os.Mkdir(work, 0o755)))
		mount("overlay", "/"+dir, "overlay", "lowerdir=/"+dir+",upperdir="+up+",workdir="+work)
	}
	mount("tmpfs", "/home", "tmpfs", "mode=755")
	mount("tmpfs", "/run", "tmpfs", "mode=755")
	b := &box{t: t, dir: filepath.Join(scratch, "keys"), clock: time.Now(), logs: &syncBuffer{}, keys: map[string]string{}}
	must(t, os.Mkdir(b.dir, 0o700))
	must(t, os.Mkdir("/run/sshd", 0o755))
	for _, cmd := range []string{"groupadd " + Group, "useradd -m -s /bin/sh -p * -G " + Group + " ann", "useradd -m -s /bin/sh -p * carl", "rm -rf /etc/ssh/sshd_config.d", "mkdir -m 755 /etc/ssh/sshd_config.d", "rm -rf " + DefaultDir} {
		f := strings.Fields(cmd)
		if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	for _, who := range []string{"ann", "carl"} {
		b.keys[who] = filepath.Join(b.dir, who)
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", b.keys[who]).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
		pub, err := os.ReadFile(b.keys[who] + ".pub")
		must(t, err)
		must(t, os.MkdirAll("/home/"+who+"/.ssh", 0o755))
		must(t, os.WriteFile("/home/"+who+"/.ssh/authorized_keys", pub, 0o644))
	}
	_, priv, _ := ed25519.GenerateKey(rand.Reader)
	b.ca, err = ssh.NewSignerFromKey(priv)
	must(t, err)
	must(t, os.WriteFile(DefaultConfig, []byte("Port 2200\nListenAddress 127.0.0.1\nUsePAM no\nPrintMotd no\n"+config), 0o600))
	must(t, os.Chmod(DefaultConfig, 0o600))
	b.open()
	b.start()
	return b
}

// open is the agent's start.
func (b *box) open() {
	f := Files{Config: DefaultConfig, Dir: DefaultDir, Principals: DefaultPrincipals, CAs: DefaultCAs, Record: filepath.Join(b.dir, "sshd.json")}
	b.s = Open(f, slog.New(slog.NewTextHandler(b.logs, nil)))
	b.s.now = func() time.Time { return b.clock }
	b.s.settle = 150 * time.Millisecond
	real := b.s.run
	b.s.run = func(ctx context.Context, path string, args ...string) (string, error) {
		b.runs++
		return real(ctx, path, args...)
	}
	b.s.signal = func(pid int, s syscall.Signal) error {
		b.hups++
		return signal(pid, s)
	}
}

// start starts the SSH server.
func (b *box) start() {
	b.t.Helper()
	cmd := exec.Command("/usr/sbin/sshd", "-D", "-E", "/run/sshd.log")
	must(b.t, cmd.Start())
	b.pid = cmd.Process.Pid
	over := make(chan struct{})
	go func() { cmd.Wait(); close(over) }()
	b.t.Cleanup(func() { cmd.Process.Kill(); <-over })
	until(b.t, "sshd listens", func() bool { _, err := os.Stat("/run/sshd.pid"); return err == nil })
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it did not come about: %s", what)
		}
	}
}

func (b *box) cas() []string {
	return []string{strings.TrimSpace(string(ssh.MarshalAuthorizedKey(b.ca.PublicKey())))}
}

// sync is Sync for ann, whose principal is set.
func (b *box) sync() error {
	b.t.Helper()
	must(b.t, b.s.SetPrincipals(map[string]string{"ann": Principal(serverID, "ann")}))
	return b.s.Sync(b.t.Context(), b.cas(), "ann")
}

func (b *box) want(what string, err error, text string) {
	b.t.Helper()
	if text == "" && err != nil || text != "" && (err == nil || !strings.Contains(err.Error(), text)) {
		b.t.Errorf("%s: %v, want %q", what, err, text)
	}
}

// cert gives who a certificate.
func (b *box) cert(who, principal string) {
	b.t.Helper()
	pub, err := os.ReadFile(b.keys[who] + ".pub")
	must(b.t, err)
	key, _, _, _, err := ssh.ParseAuthorizedKey(pub)
	must(b.t, err)
	c := &ssh.Certificate{Key: key, Serial: 7, CertType: ssh.UserCert, KeyId: "sft:session/ses-1/user/u-1", ValidPrincipals: []string{principal},
		ValidAfter: uint64(time.Now().Add(-time.Minute).Unix()), ValidBefore: uint64(time.Now().Add(5 * time.Minute).Unix()), Permissions: ssh.Permissions{Extensions: map[string]string{"permit-pty": ""}}}
	must(b.t, c.SignCert(rand.Reader, b.ca))
	must(b.t, os.WriteFile(b.keys[who]+"-cert.pub", ssh.MarshalAuthorizedKey(c), 0o600))
}

// ssh signs in as login with the key of who, and reports whether it let them in.
func (b *box) ssh(who, login string, cert bool, options ...string) bool {
	b.t.Helper()
	args := []string{"-F", "none", "-p", "2200", "-i", b.keys[who], "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"}
	if cert {
		args = append(args, "-o", "CertificateFile="+b.keys[who]+"-cert.pub")
	} else {
		os.Remove(b.keys[who] + "-cert.pub")
	}
	var out []byte
	var err error
	until(b.t, "the server listens", func() bool { // for a moment it does not, when it was told to read its configuration
		out, err = exec.Command("ssh", append(slices.Concat(options, args), login+"@127.0.0.1", "id", "-un")...).CombinedOutput()
		return !bytes.Contains(out, []byte("Connection refused"))
	})
	if err == nil && strings.TrimSpace(string(out)) != login {
		b.t.Errorf("%s is %s", login, out)
	}
	if err != nil {
		b.t.Logf("ssh %s: %v %s", login, err, out)
	}
	return err == nil
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	must(t, err)
	return string(data)
}

const including = "Include /etc/ssh/sshd_config.d/*.conf\n"
const own = "/etc/ssh/sshd_config.d/" + dropInName

func serverTests(t *testing.T) {
	t.Run("people sign in by the platform's word, and others as before", func(t *testing.T) {
		for name, config := range map[string]string{
			"a file of its own": including + "Match User nobody\n\tAllowTcpForwarding no\n",
			"a block":           "Match User nobody\n\tAllowTcpForwarding no",
			"settings of the administrator": including + "AuthenticationMethods publickey\nTrustedUserCAKeys /etc/ssh/admin_ca.pub\nAuthorizedKeysFile .ssh/authorized_keys /etc/keys/%u\n" +
				"AuthorizedKeysCommand /bin/false\nAuthorizedKeysCommandUser nobody\nMatch User carl\n\tX11Forwarding no",
		} {
			t.Run(name, func(t *testing.T) { testLife(t, newBox(t, config)) })
		}
	})
	t.Run("faults", func(t *testing.T) { faultTests(t) })
	t.Run("host certificates", func(t *testing.T) { testHostCertificates(t) })
	t.Run("principals", func(t *testing.T) { testPrincipals(t) })
	t.Run("the log", func(t *testing.T) { testFollow(t) })
	t.Run("the end of connections", func(t *testing.T) { testEnd(t, newBox(t, including)) })
}

// What is ended is every connection of one person: whoever is in, and whoever
// has only begun, for whom nothing runs as that person yet.
func testEnd(t *testing.T, b *box) {
	b.want("the first", b.sync(), "")
	b.cert("ann", Principal(serverID, "ann"))
	stay := func(who string, options ...string) (ended chan struct{}) {
		out := &syncBuffer{}
		cmd := exec.Command("ssh", append(options, "-F", "none", "-p", "2200", "-i", b.keys[who], "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
			who+"@127.0.0.1", "echo in; exec sleep 1000")...)
		cmd.Stdout = out
		must(t, cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill() })
		ended = make(chan struct{})
		go func() { cmd.Wait(); close(ended) }()
		until(t, who+" is in", func() bool { return strings.Contains(out.String(), "in\n") })
		return ended
	}
	is := func(ended chan struct{}) bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	}
	carl, ann := stay("carl"), stay("ann", "-o", "CertificateFile="+b.keys["ann"]+"-cert.pub")
	asked := make(chan struct{})
	go func() { // it is asked for a key, and takes its time
		ssh.Dial("tcp", "127.0.0.1:2200", &ssh.ClientConfig{User: "ann", HostKeyCallback: ssh.InsecureIgnoreHostKey(), Auth: []ssh.AuthMethod{
			ssh.PublicKeysCallback(func() ([]ssh.Signer, error) { close(asked); <-t.Context().Done(); return nil, nil })}})
	}()
	<-asked
	list := b.s.Serving("ann", "dan")
	if len(list) != 2 {
		t.Fatalf("for ann there are %v", list)
	}
	for _, p := range list {
		told := Login{At: time.Now(), PID: p.PID, Login: "ann"}
		if got, ok := b.s.Process(told); !ok || got != p || !b.s.Alive(p) {
			t.Errorf("of %v it says %v, %v", p, got, ok)
		}
		told.At = time.Time{}
		if _, ok := b.s.Process(told); !ok {
			t.Errorf("of %v, told just now, it says that it is over", p)
		}
		// The clock was set since, which the journal's own does not mind.
		var up unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &up); err != nil {
			t.Fatal(err)
		}
		told = Login{At: time.Now().Add(-time.Hour), Boot: bootID(), Up: time.Duration(up.Nano()), PID: p.PID, Login: "ann"}
		if _, ok := b.s.Process(told); !ok {
			t.Errorf("of %v, with the clock set forward since, it says that it is over", p)
		}
		other := told
		other.Boot = "0123456789abcdef0123456789abcdef"
		told.At, told.Up = time.Now(), time.Second
		// The number was another's when the log was written.
		for _, l := range []Login{told, other} {
			if _, ok := b.s.Process(l); ok {
				t.Errorf("%v is taken for that of %+v", p, l)
			}
		}
		for _, l := range []Login{{At: time.Now(), PID: p.PID, Login: "carl"}, {At: time.Now(), PID: p.PID, Login: "an"}, {At: time.Now().Add(-time.Hour), PID: p.PID, Login: "ann"}} {
			if _, ok := b.s.Process(l); ok {
				t.Errorf("%v is taken for that of %+v", p, l)
			}
		}
	}
	program := b.s.program
	b.s.program = func() string { return "" }
	if !b.s.Alive(list[0]) || len(b.s.Serving("ann")) != 2 {
		t.Error("with the server's package removed, nobody is signed in any more")
	}
	b.s.program = program
	if b.s.Alive(Process{list[0].PID, list[0].Began + "0"}) || b.s.Alive(Process{os.Getpid(), started(os.Getpid())}) {
		t.Error("another process is taken for the server's")
	}
	b.s.End(t.Context(), []Process{{list[0].PID, list[0].Began + "0"}, {os.Getpid(), started(os.Getpid())}})
	if got := b.s.Serving("ann"); len(got) != 2 {
		t.Errorf("what was not meant has ended: %v", got)
	}
	b.s.End(t.Context(), list)
	until(t, "ann's connection has ended", func() bool { return is(ann) })
	if got := b.s.Serving("ann"); len(got) > 0 {
		t.Errorf("for ann there are still %v", got)
	}
	if is(carl) || len(b.s.Serving("carl")) != 1 {
		t.Error("carl's connection has ended, too")
	}
}

func testLife(t *testing.T, b *box) {
	before := read(t, DefaultConfig)
	if !b.ssh("carl", "carl", false) {
		t.Fatal("carl cannot sign in by his key, before anything was done")
	}
	b.want("the first", b.sync(), "")
	b.cert("ann", Principal(serverID, "ann"))
	if !b.ssh("ann", "ann", true) {
		t.Errorf("ann cannot sign in:\n%s", read(t, "/run/sshd.log"))
	}
	if !b.ssh("carl", "carl", false) {
		t.Error("carl cannot sign in by his key any longer")
	}
	if b.ssh("ann", "ann", false) {
		t.Error("ann signs in by a key that she has put into her home")
	}
	for _, p := range []string{"ann", "sft:srv-2:ann", "sft:srv-1:carl", "sft:srv-1:ann2"} {
		b.cert("ann", p)
		if b.ssh("ann", "ann", true) {
			t.Errorf("ann signs in as %s", p)
		}
	}
	b.cert("ann", "carl")
	if b.ssh("ann", "carl", true) {
		t.Error("the platform's CA signs in an account that is not ours")
	}
	l, ok := Login{}, false
	for line := range strings.Lines(read(t, "/run/sshd.log")) {
		if x, is := ParseLogin(strings.TrimSpace(line)); is && x.Login == "ann" {
			l, ok = x, true
		}
	}
	if s, u := l.Session(); !ok || s != "ses-1" || u != "u-1" || l.CA != ssh.FingerprintSHA256(b.ca.PublicKey()) || l.Method != "publickey" || l.Remote.Addr().String() != "127.0.0.1" {
		t.Errorf("the log tells %+v, %v:\n%s", l, ok, read(t, "/run/sshd.log"))
	}
	if h, ok := b.s.Host(); !ok || h.Port != 2200 || len(h.Keys) != 3 || strings.Count(strings.Join(h.Keys, " "), " ") != 5 {
		t.Errorf("the host is %+v, %v", h, ok)
	}
	b.want("a look at what was written", b.sync(), "")
	b.runs = 0
	b.clock = b.clock.Add(10 * time.Minute)
	b.want("again", b.sync(), "")
	if b.runs > 0 {
		t.Errorf("with nothing to do, %d programs were run", b.runs)
	}
	b.cert("ann", Principal(serverID, "ann"))
	must(t, b.s.SetPrincipals(nil))
	if b.ssh("ann", "ann", true) {
		t.Error("ann signs in when she may not any longer")
	}
	must(t, b.s.SetPrincipals(map[string]string{"ann": Principal(serverID, "ann")}))
	must(t, os.Remove("/home/ann/.ssh/authorized_keys")) // that holds again
	must(t, b.s.Restore(t.Context()))
	if got := read(t, DefaultConfig); got != before {
		t.Errorf("restored: %q, want %q", got, before)
	}
	if i, err := os.Stat(DefaultConfig); err != nil || i.Mode() != 0o600 {
		t.Errorf("it has mode %v, %v", i.Mode(), err)
	}
	for _, f := range []string{own, DefaultDir, b.s.files.Record} {
		if exists(f) {
			t.Errorf("%s is still there", f)
		}
	}
	if b.ssh("ann", "ann", true) {
		t.Error("ann signs in after all was taken out")
	}
	if !b.ssh("carl", "carl", false) {
		t.Error("carl cannot sign in after all was taken out")
	}
	if !isServer(b.pid, "/usr/sbin/sshd") {
		t.Error("the server has ended")
	}
}

func faultTests(t *testing.T) {
	run := func(name, config string, f func(t *testing.T, b *box)) {
		t.Run(name, func(t *testing.T) { f(t, newBox(t, config)) })
	}
	untouched := func(t *testing.T, before string) {
		t.Helper()
		if got := read(t, DefaultConfig); got != before || exists(own) {
			t.Errorf("the configuration is %q, and the other file there: %v", got, exists(own))
		}
	}

	run("broken before", including, func(t *testing.T, b *box) {
		good := read(t, DefaultConfig)
		must(t, os.WriteFile(DefaultConfig, []byte(good+"NoSuchThing yes\n"), 0o600))
		b.want("broken", b.sync(), "NoSuchThing")
		untouched(t, good+"NoSuchThing yes\n")
		if b.hups != 0 {
			t.Error("the running server was told to read it")
		}
		must(t, os.WriteFile(DefaultConfig, []byte(good), 0o600))
		b.want("mended", b.sync(), "")
		if !exists(own) || b.hups != 1 {
			t.Errorf("it was told %d times", b.hups)
		}
	})

	run("broken after", including, func(t *testing.T, b *box) {
		b.want("the first", b.sync(), "")
		must(t, os.WriteFile("/etc/ssh/sshd_config.d/90-x.conf", []byte("NoSuchThing yes\n"), 0o600))
		kept := read(t, own)
		b.want("broken", b.sync(), "90-x.conf")
		if b.hups != 1 || read(t, own) != kept {
			t.Error("it was made worse")
		}
		if _, ok := b.s.Host(); !ok {
			t.Error("the server still runs, and is not told of")
		}
		must(t, b.s.Restore(t.Context()))
		if exists(own) || b.hups != 1 {
			t.Errorf("removed: %v, and it was told %d times to read what is broken", !exists(own), b.hups)
		}
	})

	run("the server would not take it", including, func(t *testing.T, b *box) {
		before := read(t, DefaultConfig)
		real := b.s.run
		b.s.run = func(ctx context.Context, path string, args ...string) (string, error) {
			if strings.Contains(strings.Join(args, " "), ".try-") {
				return "", &toolError{"sshd", "line 1: no"}
			}
			return real(ctx, path, args...)
		}
		b.want("refused", b.sync(), "line 1: no")
		untouched(t, before)
		if b.hups != 0 {
			t.Error("it was told to read something")
		}
		left, _ := filepath.Glob(DefaultDir + "/.try-*")
		if len(left) > 0 {
			t.Errorf("%v are left", left)
		}
	})

	run("it would change something for others", including, func(t *testing.T, b *box) {
		before := read(t, DefaultConfig)
		real := b.s.run
		b.s.run = func(ctx context.Context, path string, args ...string) (string, error) {
			out, err := real(ctx, path, args...)
			if strings.Contains(strings.Join(args, " "), ".try-") {
				out = strings.Replace(out, "permitrootlogin ", "permitrootlogin x", 1)
			}
			return out, err
		}
		b.want("refused", b.sync(), "permitrootlogin")
		untouched(t, before)
	})

	for name, config := range map[string]string{"a file": including, "a block": "Match all\n\tX11Forwarding no\n"} {
		run("it does not work once it is in place: "+name, config, func(t *testing.T, b *box) {
			before := read(t, DefaultConfig)
			real := b.s.run
			written := false
			b.s.step = func(name string) { written = written || name == "written" }
			b.s.run = func(ctx context.Context, path string, args ...string) (string, error) {
				if written && b.hups == 0 {
					return "", &toolError{"sshd", "line 2: no"}
				}
				return real(ctx, path, args...)
			}
			b.want("refused", b.sync(), "line 2: no")
			untouched(t, before)
			if !b.ssh("carl", "carl", false) {
				t.Error("carl cannot sign in")
			}
		})

		run("it cannot be told: "+name, config, func(t *testing.T, b *box) {
			before := read(t, DefaultConfig)
			n := 0
			b.s.signal = func(pid int, s syscall.Signal) error {
				if n++; n == 1 {
					return errors.New("no signal")
				}
				return signal(pid, s)
			}
			b.want("refused", b.sync(), "no signal")
			untouched(t, before)
			b.clock = b.clock.Add(2 * time.Minute)
			b.want("again", b.sync(), "")
			b.cert("ann", Principal(serverID, "ann"))
			if !b.ssh("ann", "ann", true) {
				t.Error("ann cannot sign in")
			}
		})

		for _, step := range []string{"recorded", "written", "reloaded"} {
			run("killed when it was "+step+": "+name, config, func(t *testing.T, b *box) {
				b.s.step = func(s string) {
					if s == step {
						panic("killed")
					}
				}
				func() {
					defer func() { recover() }()
					b.sync()
				}()
				b.hups = 0
				b.open()
				b.want("the next start", b.sync(), "")
				if b.hups != 1 {
					t.Errorf("the server was told %d times", b.hups)
				}
				b.cert("ann", Principal(serverID, "ann"))
				if !b.ssh("ann", "ann", true) {
					t.Error("ann cannot sign in")
				}
			})
		}

		run("killed, and what was written is broken: "+name, config, func(t *testing.T, b *box) {
			before := read(t, DefaultConfig)
			b.s.step = func(s string) {
				if s == "written" {
					panic("killed")
				}
			}
			func() {
				defer func() { recover() }()
				b.sync()
			}()
			file := DefaultConfig
			if exists(own) {
				file = own
			}
			must(t, os.WriteFile(file, []byte(strings.Replace(read(t, file), "AuthorizedKeysFile", "NoSuchThing", 1)), 0o600))
			b.open()
			b.want("the next start", b.sync(), "taken out")
			untouched(t, before)
			b.clock = b.clock.Add(2 * time.Minute)
			b.want("after that", b.sync(), "")
		})

		run("somebody takes it away: "+name, config, func(t *testing.T, b *box) {
			before := read(t, DefaultConfig)
			b.want("the first", b.sync(), "")
			kept := read(t, DefaultConfig)
			rewrite := func() {
				t.Helper()
				must(t, os.WriteFile(DefaultConfig, []byte(before), 0o600))
				os.Remove(own)
			}
			for range putBackMax {
				rewrite()
				b.want("put back", b.sync(), "")
				if read(t, DefaultConfig) != kept || b.s.rec.Place == own && !exists(own) {
					t.Error("it was not put back")
				}
				b.clock = b.clock.Add(5 * time.Minute)
			}
			rewrite()
			b.want("again and again", b.sync(), "4 times in an hour")
			untouched(t, before)
			b.clock = b.clock.Add(time.Hour)
			b.want("an hour later", b.sync(), "")
			if read(t, DefaultConfig) != kept {
				t.Error("it was not put back")
			}
		})
	}

	run("the server ends when it is told", including, func(t *testing.T, b *box) {
		before := read(t, DefaultConfig)
		b.s.signal = func(pid int, s syscall.Signal) error { b.hups++; return signal(pid, syscall.SIGKILL) }
		b.want("it has ended", b.sync(), "has ended")
		untouched(t, before)
	})

	run("there is none, and then there is", including, func(t *testing.T, b *box) {
		real := b.s.program
		b.s.program = func() string { return "" }
		b.want("none", b.sync(), "")
		if _, ok := b.s.Host(); ok || exists(own) {
			t.Error("something was done for a server that is not there")
		}
		b.s.program = real
		b.want("installed", b.sync(), "")
		if _, ok := b.s.Host(); !ok || !exists(own) {
			t.Error("nothing was done for it")
		}
		b.s.program = func() string { return "" }
		b.want("removed", b.sync(), "")
		if _, ok := b.s.Host(); ok {
			t.Error("it is still told of")
		}
	})

	run("it does not run", including, func(t *testing.T, b *box) {
		must(t, os.Remove("/run/sshd"))
		b.want("asleep", b.sync(), "")
		if _, ok := b.s.Host(); ok || exists(own) {
			t.Error("something was done for a server that does not run")
		}
		must(t, os.Mkdir("/run/sshd", 0o755))
		b.clock = b.clock.Add(20 * time.Second)
		b.want("awake", b.sync(), "")
		if !exists(own) {
			t.Error("nothing was done for it")
		}
		// One that is started again is told of all the while.
		for _, tt := range []struct {
			after time.Duration
			told  bool
		}{{time.Hour, true}, {4 * time.Second, false}} {
			os.Remove("/run/sshd")
			b.clock = b.clock.Add(tt.after)
			b.want("asleep", b.sync(), "")
			if _, ok := b.s.Host(); ok != tt.told {
				t.Errorf("it is told of: %v, want %v", ok, tt.told)
			}
		}
	})

	run("somebody edits the marks", "", func(t *testing.T, b *box) {
		b.want("the first", b.sync(), "")
		cut := strings.Replace(read(t, DefaultConfig), endMark, "", 1)
		must(t, os.WriteFile(DefaultConfig, []byte(cut), 0o600))
		b.want("damaged", b.sync(), "not in pairs")
		if read(t, DefaultConfig) != cut {
			t.Error("it was changed")
		}
	})

	run("from a block to a file", "", func(t *testing.T, b *box) {
		before := read(t, DefaultConfig)
		b.want("the first", b.sync(), "")
		must(t, os.WriteFile(DefaultConfig, []byte(including+read(t, DefaultConfig)), 0o600))
		b.want("now it reads a folder", b.sync(), "")
		if read(t, DefaultConfig) != including+before || !exists(own) {
			t.Errorf("it is %q", read(t, DefaultConfig))
		}
		must(t, os.WriteFile(DefaultConfig, []byte(before), 0o600))
		b.want("now it does not", b.sync(), "")
		if exists(own) || !strings.Contains(read(t, DefaultConfig), beginMark) {
			t.Error("the file is still there, or the block is not")
		}
	})

	run("a link", including, func(t *testing.T, b *box) {
		must(t, os.Rename(DefaultConfig, "/etc/ssh/real_config"))
		must(t, os.Symlink("real_config", DefaultConfig))
		must(t, os.Chmod("/etc/ssh/real_config", 0o640))
		must(t, os.WriteFile("/etc/ssh/real_config", []byte(strings.Replace(read(t, DefaultConfig), including, "", 1)), 0o640))
		b.want("the first", b.sync(), "")
		i, err := os.Lstat(DefaultConfig)
		j, _ := os.Stat(DefaultConfig)
		if err != nil || i.Mode()&fs.ModeSymlink == 0 || j.Mode() != 0o640 {
			t.Errorf("the link is %v, %v", i.Mode(), err)
		}
	})

	wins := map[string][2]string{
		"methods":             {"Match Group " + Group + "\n\tAuthenticationMethods password\n", "00-aaa.conf line 2 sets AuthenticationMethods"},
		"keys":                {"Match User a*\n\tAuthorizedKeysFile /etc/keys/%u\n", "00-aaa.conf line 2 sets AuthorizedKeysFile"},
		"another CA":          {"Match all\n\n TrustedUserCAKeys /etc/ca\n", "00-aaa.conf line 3 sets TrustedUserCAKeys"},
		"a list of groups":    {"AllowGroups wheel carl\n", "00-aaa.conf line 1 keeps the accounts that sftd made out: AllowGroups"},
		"a list of users":     {"AllowUsers carl root\n", "00-aaa.conf line 1 keeps the accounts that sftd made out: AllowUsers"},
		"a forbidden group":   {"\nDenyGroups x sft-*\n", "00-aaa.conf line 2 keeps the accounts that sftd made out: DenyGroups"},
		"a forbidden user":    {"DenyUsers ann\n", "00-aaa.conf line 1 keeps the accounts that sftd made out: DenyUsers"},
		"algorithms of CAs":   {"CASignatureAlgorithms rsa-sha2-512\n", "00-aaa.conf line 1 keeps the platform's certificates out: CASignatureAlgorithms"},
		"algorithms of keys":  {"PubkeyAcceptedAlgorithms -ssh-ed25519-cert*\n", "00-aaa.conf line 1 keeps the platform's certificates out: PubkeyAcceptedAlgorithms"},
		"a log that is quiet": {"LogLevel quiet\n", "00-aaa.conf line 1 sets LogLevel to SILENT"},
		"a list that is fine": {"AllowGroups wheel " + Group + "\nDenyUsers bob\nLogLevel VERBOSE\n", ""},
	}
	run("an administrator's settings win", including, func(t *testing.T, b *box) {
		b.want("the first", b.sync(), "")
		for name, tt := range wins {
			must(t, os.WriteFile("/etc/ssh/sshd_config.d/00-aaa.conf", []byte(tt[0]), 0o644))
			b.want(name, b.sync(), tt[1])
			b.want(name+", once more", b.sync(), tt[1])
			os.Remove("/etc/ssh/sshd_config.d/00-aaa.conf")
			b.want(name+", gone", b.sync(), "")
		}
	})

	run("the CA changes, and what is no key is refused", including, func(t *testing.T, b *box) {
		b.want("the first", b.sync(), "")
		kept := read(t, DefaultCAs)
		for _, bad := range []string{"", "x", "no-pty " + b.cas()[0], b.cas()[0] + "\n" + b.cas()[0], "command=\"x\" " + b.cas()[0]} {
			b.want(bad, b.s.Sync(t.Context(), []string{bad}, "ann"), "is no key")
			if read(t, DefaultCAs) != kept {
				t.Errorf("%q was written", bad)
			}
		}
		_, priv, _ := ed25519.GenerateKey(rand.Reader)
		next, _ := ssh.NewSignerFromKey(priv)
		b.ca = next
		b.want("the next", b.sync(), "")
		b.cert("ann", Principal(serverID, "ann"))
		if !b.ssh("ann", "ann", true) {
			t.Error("ann cannot sign in by the next CA")
		}
		must(t, os.Remove("/home/ann/.ssh/authorized_keys")) // that holds again
		b.want("none", b.s.Sync(t.Context(), nil, ""), "")
		if exists(own) || b.ssh("ann", "ann", true) {
			t.Error("without a CA something of ours is there, or ann gets in")
		}
	})
}

func testHostCertificates(t *testing.T) {
	b := newBox(t, including)
	b.want("the first", b.sync(), "")
	due := b.s.Due(serverID, nil, b.clock)
	h, _ := b.s.Host()
	if !slices.Equal(due, h.Keys) || len(due) != 3 {
		t.Fatalf("due are %q", due)
	}
	sign := func(key string, change func(*ssh.Certificate)) string {
		t.Helper()
		k, _, _, _, err := ssh.ParseAuthorizedKey([]byte(key))
		must(t, err)
		c := &ssh.Certificate{Key: k, CertType: ssh.HostCert, ValidPrincipals: []string{serverID, "web01"}, ValidAfter: uint64(b.clock.Add(-time.Hour).Unix()), ValidBefore: uint64(b.clock.Add(7 * 24 * time.Hour).Unix())}
		if change != nil {
			change(c)
		}
		must(t, c.SignCert(rand.Reader, b.ca))
		return string(ssh.MarshalAuthorizedKey(c))
	}
	for name, change := range map[string]func(*ssh.Certificate){
		"for a person":   func(c *ssh.Certificate) { c.CertType = ssh.UserCert },
		"another server": func(c *ssh.Certificate) { c.ValidPrincipals = []string{"srv-2"} },
		"over":           func(c *ssh.Certificate) { c.ValidBefore = uint64(b.clock.Unix()) },
		"to come":        func(c *ssh.Certificate) { c.ValidAfter = uint64(b.clock.Add(time.Hour).Unix()) },
		"for ever":       func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity },
		"another key":    func(c *ssh.Certificate) { c.Key = b.ca.PublicKey() },
	} {
		certs := []string{sign(due[0], nil), sign(due[1], nil), sign(due[2], change)}
		if err := b.s.Take(serverID, due, certs, b.clock); err == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
	for _, certs := range [][]string{nil, {due[0], due[1], due[2]}, {"x", "y", "z"}} {
		if err := b.s.Take(serverID, due, certs, b.clock); err == nil {
			t.Errorf("%q are taken", certs)
		}
	}
	if left, _ := filepath.Glob(DefaultDir + "/*" + certSuffix); len(left) > 0 {
		t.Errorf("%q were written", left)
	}
	var certs []string
	for _, k := range due {
		certs = append(certs, sign(k, nil))
	}
	must(t, os.WriteFile(DefaultDir+"/"+certPrefix+"old"+certSuffix, nil, 0o644))
	must(t, b.s.Take(serverID, due, certs, b.clock))
	hups := b.hups
	b.want("with certificates", b.sync(), "")
	if b.hups != hups+1 || exists(DefaultDir+"/"+certPrefix+"old"+certSuffix) {
		t.Errorf("the server was told %d times", b.hups-hups)
	}
	known := filepath.Join(b.dir, "known")
	must(t, os.WriteFile(known, []byte("@cert-authority * "+b.cas()[0]+"\n"), 0o600))
	strict := []string{"-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=" + known, "-o", "GlobalKnownHostsFile=/dev/null"}
	for _, algorithm := range []string{"ssh-ed25519-cert-v01@openssh.com", "ecdsa-sha2-nistp256-cert-v01@openssh.com", "rsa-sha2-512-cert-v01@openssh.com"} {
		if !b.ssh("carl", "carl", false, append(strict, "-o", "HostKeyAlgorithms="+algorithm, "-o", "HostKeyAlias="+serverID)...) {
			t.Errorf("the host does not show a certificate for %s", algorithm)
		}
	}
	if b.ssh("carl", "carl", false, append(strict, "-o", "HostKeyAlias=srv-2")...) {
		t.Error("the host is taken for another")
	}
	if due := b.s.Due(serverID, nil, b.clock); len(due) != 0 {
		t.Errorf("%q are due at once", due)
	}
	if due := b.s.Due("srv-2", nil, b.clock); len(due) != 3 {
		t.Error("those of a former record are good enough")
	}
	if due := b.s.Due(serverID, nil, b.clock.Add(4*24*time.Hour)); len(due) != 3 {
		t.Errorf("after half of their life %q are due", due)
	}
	for i, k := range due {
		certs[i] = sign(k, func(c *ssh.Certificate) { c.Serial = 2 })
	}
	must(t, b.s.Take(serverID, due, certs, b.clock))
	b.want("renewed", b.sync(), "")
	if b.hups != hups+2 {
		t.Error("the server was not told of new certificates")
	}
}

func testPrincipals(t *testing.T) {
	b := newBox(t, including)
	dir := filepath.Dir(DefaultPrincipals)
	syscall.Umask(0o077)
	defer syscall.Umask(0o022)
	must(t, b.s.SetPrincipals(nil))
	if exists(DefaultDir) {
		t.Error("a folder was made for nobody")
	}
	must(t, b.s.SetPrincipals(map[string]string{"ann": "sft:srv-1:ann", "bob": "sft:srv-1:bob"}))
	for f, mode := range map[string]fs.FileMode{DefaultDir: fs.ModeDir | 0o755, dir: fs.ModeDir | 0o755, dir + "/ann": 0o644} {
		if i, err := os.Stat(f); err != nil || i.Mode() != mode {
			t.Errorf("%s has mode %v, %v", f, i.Mode(), err)
		}
	}
	must(t, os.WriteFile(dir+"/carl", []byte("carl\n"), 0o644))
	must(t, os.WriteFile(dir+"/ann", []byte("sft:srv-9:ann\n"), 0o666))
	must(t, os.WriteFile(dir+"/.new-1", []byte("half"), 0o600))
	must(t, os.Symlink("/etc/passwd", dir+"/link"))
	err := b.s.SetPrincipals(map[string]string{"ann": "sft:srv-1:ann", "carl": "sft:srv-1:carl", "../x": "sft:srv-1:x", "link": "sft:srv-1:link"})
	b.want("others' files", err, dir+"/carl was not written by sftd")
	b.want("others' files", err, "link was not written by sftd")
	b.want("a name", err, `"../x" is no login`)
	if read(t, dir+"/ann") != "sft:srv-1:ann\n" || read(t, dir+"/carl") != "carl\n" || exists(dir+"/bob") || exists(dir+"/.new-1") || exists(DefaultDir+"/x") {
		t.Error("the files are not as wanted")
	}
	if !b.s.HasPrincipal("srv-1", "ann") || b.s.HasPrincipal("srv-2", "ann") || b.s.HasPrincipal("srv-1", "carl") {
		t.Error("who is let in is not seen")
	}
	must(t, b.s.SetPrincipals(nil))
	left, _ := os.ReadDir(dir)
	if fmt.Sprint(left) != "[- carl L link]" {
		t.Errorf("left are %v", left)
	}
	must(t, os.Chmod(dir, 0o777))
	b.want("an open folder", b.s.SetPrincipals(map[string]string{"ann": "sft:srv-1:ann"}), "only root can change")
	if exists(dir + "/ann") {
		t.Error("a file was written into a folder that others can change")
	}
}

func testFollow(t *testing.T) {
	b := newBox(t, including)
	b.want("the first", b.sync(), "")
	log := filepath.Join(b.dir, "auth.log")
	add := func(format string, args ...any) {
		t.Helper()
		f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		must(t, err)
		fmt.Fprintf(f, format, args...)
		must(t, f.Close())
	}
	// Who is signed in while the test goes on: a real process for each.
	session := func() int {
		t.Helper()
		before := map[string]bool{}
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, d := range dirs {
			before[d] = true
		}
		cmd := exec.Command("ssh", "-F", "none", "-p", "2200", "-i", b.keys["carl"], "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "carl@127.0.0.1", "echo in; cat")
		in, err := cmd.StdinPipe()
		must(t, err)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		t.Cleanup(func() { in.Close(); cmd.Wait() })
		_, err = io.ReadFull(out, make([]byte, 3))
		must(t, err)
		dirs, _ = filepath.Glob("/proc/[0-9]*")
		for _, d := range dirs {
			var pid int
			fmt.Sscanf(filepath.Base(d), "%d", &pid)
			if !before[d] && isServer(pid, "/usr/sbin/sshd") {
				return pid
			}
		}
		t.Fatal("there is no process for the session")
		return 0
	}
	one, two, three := session(), session(), session()
	old := logFiles
	logFiles = []string{log}
	defer func() { logFiles = old }()
	add("Nov  7 12:00:01 web01 sshd[%d]: %s\n", one, byPass)
	var mu sync.Mutex
	var seen []int
	got := func() []int { mu.Lock(); defer mu.Unlock(); return slices.Clone(seen) }
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		b.s.followFile(ctx, func(l Login) { mu.Lock(); seen = append(seen, l.PID); mu.Unlock() })
	}()
	defer func() { cancel(); <-over }()
	time.Sleep(1200 * time.Millisecond)                              // it begins at the end of what is there
	add("Nov  7 12:00:01 web01 sshd[%d]: %s\n", os.Getpid(), byPass) // forged: no process of sshd
	add("Nov  7 12:00:01 web01 sshd[%d]: %s\n", 99999999, byPass)    // nor this
	add("%s\nNov  7 12:00:01 web01 sshd[%d]: Accep", strings.Repeat("x", 3*maxLine), one)
	time.Sleep(1200 * time.Millisecond)
	add("%s\nNov  7 12:00:01 web01 sshd[%d]: %s\n", strings.TrimPrefix(byPass, "Accep"), one, byPass)
	until(t, "a sign-in is told", func() bool { return slices.Equal(got(), []int{one}) })
	must(t, os.Rename(log, log+".1"))
	f, err := os.OpenFile(log+".1", os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	fmt.Fprintf(f, "Nov  7 12:00:01 web01 sshd[%d]: %s\n", two, byPass) // written by who has the old one open
	f.Close()
	add("Nov  7 12:00:01 web01 sshd[%d]: %s\n", three, byPass)
	until(t, "one of each file is told", func() bool { return slices.Equal(got(), []int{one, two, three}) })
	must(t, os.Truncate(log, 0))
	time.Sleep(1200 * time.Millisecond) // a file that has grown again meanwhile looks like one that was not cut
	four := session()
	add("Nov  7 12:00:01 web01 sshd[%d]: %s\n", four, byKey)
	until(t, "after it was cut off", func() bool { return slices.Equal(got(), []int{one, two, three, four}) })
	if !strings.Contains(b.logs.String(), "does not know") {
		t.Error("a forged line is not told of")
	}
	// Who runs a single command is gone soon.
	want := []int{one, two, three, four}
	for range 4 {
		pid := session()
		add("Nov  7 12:00:01 web01 sshd[%d]: %s\n", pid, byKey)
		time.Sleep(100 * time.Millisecond)
		must(t, syscall.Kill(pid, syscall.SIGKILL))
		want = append(want, pid)
	}
	until(t, "short sessions are told", func() bool { return slices.Equal(got(), want) })
}
