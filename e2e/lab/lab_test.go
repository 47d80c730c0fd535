//go:build linux

package lab

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pictures is where screenshots go, for people to look at.
const pictures = "../../build/lab"

func TestMain(m *testing.M) {
	changes := Watch()
	status := Main(m.Run)
	// Asked on the machine and in the lab alike.
	if c := changes(); len(c) > 0 {
		fmt.Fprintf(os.Stderr, "lab: the tests left traces:\n%s\n", strings.Join(c, "\n"))
		status = max(status, 1)
	}
	os.Exit(status)
}

func TestHostsAreApart(t *testing.T) {
	l := New(t, "")
	begin := time.Now()
	a, b := l.Host("web01"), l.Host("web02")
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("two hosts took %v", d)
	} else {
		t.Logf("two hosts took %v", d)
	}
	a.AddUser("ann", "first")
	b.AddUser("ann", "second")
	a.Write("/usr/share/lab/note", 0o640, []byte("only here"))

	t.Run("a command has a fresh login's environment and nothing of the test's", func(t *testing.T) {
		t.Setenv("LEAK", "1")
		got := a.Must("ann", "sh", "-c", `echo $(id -un) $(id -gn) $(hostname) $(pwd) $HOME "$LEAK"; id -G`)
		want := "ann ann web01 /home/ann /home/ann \n1000\n"
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("accounts are a host's own", func(t *testing.T) {
		if shadow := "/etc/shadow"; a.Must("", "grep", "^ann:", shadow) == b.Must("", "grep", "^ann:", shadow) {
			t.Error("two hosts have the same password")
		}
		machine, err := os.ReadFile("/etc/passwd")
		if err != nil || strings.Contains(string(machine), "\nann:") {
			t.Errorf("the machine has the account (%v)", err)
		}
	})
	t.Run("files are a host's own", func(t *testing.T) {
		if got, err := a.Read("/usr/share/lab/note"); err != nil || string(got) != "only here" {
			t.Errorf("Read = %q, %v", got, err)
		}
		if _, err := b.Read("/usr/share/lab/note"); err == nil {
			t.Error("the other host has the file")
		}
		if _, err := os.Stat("/usr/share/lab"); err == nil {
			t.Error("the machine has the file")
		}
	})
	t.Run("a link on a host does not lead out of it", func(t *testing.T) {
		a.Must("", "ln", "-s", "/etc/lab-stray", "/etc/lab-link")
		a.Write("/etc/lab-link", 0o644, []byte("x"))
		if _, err := os.Stat("/etc/lab-stray"); err == nil {
			t.Error("the machine has the file")
		}
	})
	t.Run("settings of the kernel cannot be changed", func(t *testing.T) {
		if _, err := a.Run("", "sh", "-c", "cat /proc/sys/kernel/panic >/proc/sys/kernel/panic"); err == nil {
			t.Error("a host can write to /proc/sys")
		}
	})
	t.Run("a host sees only its own processes", func(t *testing.T) {
		p := a.Start("sleep", a.Command(t.Context(), "ann", "sleep", "1000"))
		poll(t, "sleep does not start", func() bool {
			for _, r := range a.Processes("ann") {
				if r.Name == "sleep" {
					return true
				}
			}
			return false
		})
		if got := b.Processes("ann"); len(got) > 0 {
			t.Errorf("the other host has %v", got)
		}
		if _, err := b.Run("", "pgrep", "-x", "sleep"); err == nil {
			t.Error("the other host sees the process")
		}
		p.Signal(syscall.SIGTERM)
		if got := p.Wait(); got != 128+15 {
			t.Errorf("exit status %d, want 143", got)
		}
	})
	t.Run("an orphan does not stay a zombie", func(t *testing.T) {
		a.Must("", "sh", "-c", "sh -c 'sleep 0.01 & :' & :")
		poll(t, "zombies stay", func() bool {
			return !strings.Contains(a.Must("", "ps", "-eo", "stat="), "Z")
		})
	})
	t.Run("a command dies with its context", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := a.Command(ctx, "ann", "sleep", "1000").Run(); err == nil {
			t.Error("sleep ended well")
		}
		poll(t, "sleep runs on", func() bool { return len(a.Processes("ann")) == 0 })
	})
	t.Run("a killed host is gone, and its name stays", func(t *testing.T) {
		c := l.Host("web03")
		c.Start("sleep", c.Command(t.Context(), "", "sleep", "1000"))
		c.Kill()
		if got := c.Processes(""); len(got) > 0 {
			t.Errorf("still there: %v", got)
		}
		if got := a.Must("", "getent", "hosts", "web03"); !strings.HasPrefix(got, c.IP()) {
			t.Errorf("web03 is %q, want %s", got, c.IP())
		}
	})
}

func TestNetwork(t *testing.T) {
	l := New(t, "")
	a, b, c := l.Host("a"), l.Host("b"), l.Host("c")
	listener, err := b.Listen(b.IP() + ":7")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	b.WaitListen(b.IP() + ":7")
	if a.Listens(netip.MustParseAddrPort(a.IP() + ":7")) {
		t.Error("the wrong host listens")
	}
	reach := func(h *Host) bool {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		conn, err := h.Dial(ctx, b.IP()+":7")
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	type view struct{ a, c bool }
	check := func(when string, want view) {
		t.Helper()
		if got := (view{reach(a), reach(c)}); got != want {
			t.Errorf("%s: reached %+v, want %+v", when, got, want)
		}
	}
	check("at first", view{true, true})
	a.Block(b)
	check("a and b apart", view{false, true})
	a.Unblock(b)
	check("a and b together", view{true, true})
	b.Block()
	check("b cut off", view{false, false})
	b.Unblock()
	poll(t, "b does not come back", func() bool { return reach(a) && reach(c) })

	if _, err := net.DialTimeout("tcp", "192.0.2.1:80", time.Second); err == nil {
		t.Error("something leads out of the lab")
	}
	if conn, err := net.Dial("tcp", "b:7"); err != nil {
		t.Errorf("the program does not know the host's name: %v", err)
	} else {
		conn.Close()
	}
}

func TestSignInByRDP(t *testing.T) {
	l := New(t, "")
	colours := []string{"#204060", "#602040"}
	var hosts []*Host
	for i, name := range []string{"web01", "web02"} {
		h := l.Host(name)
		h.AddUser("ann", fmt.Sprintf("Secret-%d", i+1))
		h.StartXRDP(colours[i])
		hosts = append(hosts, h)
	}
	laptop := l.Host("laptop")
	laptop.AddUser("me", "")
	laptop.StartDisplay(1024, 700)

	// The password of one host opens that host only.
	sign := func(h *Host, password string) *Process {
		cmd := laptop.Command(t.Context(), "me", "xfreerdp", "/v:"+h.Relay(XRDPAddress), "/u:ann", "/from-stdin:force",
			"/sec:tls", "/cert:ignore", "/size:1024x700", "/log-level:ERROR", "-decorations")
		cmd.Env = append(cmd.Env, laptop.Display()...)
		cmd.Stdin = strings.NewReader(password + "\n")
		return laptop.Start("xfreerdp-"+h.Name(), cmd)
	}
	for i, h := range hosts {
		begin := time.Now()
		p := sign(h, fmt.Sprintf("Secret-%d", i+1))
		laptop.WaitPixel(1000, 680, colours[i])
		t.Logf("%s: a desktop after %v", h.Name(), time.Since(begin))
		laptop.WaitPixel(500, 300, "#ffffff") // the terminal
		if _, err := h.Read("/home/ann/" + SessionStarted); err != nil {
			t.Errorf("%s: %v", h.Name(), err)
		}
		log, err := h.Read(XRDPLog)
		if err != nil || !strings.Contains(string(log), "login successful for user ann on display 10") {
			t.Errorf("%s: the log tells of no sign-in (%v):\n%s", h.Name(), err, log)
		}
		laptop.WaitStill(200 * time.Millisecond)
		laptop.Screenshot(filepath.Join(pictures, h.Name()+".png"))
		p.Stop()
		poll(t, "the picture stays", func() bool { return laptop.Pixel(1000, 680) != mustColour(t, colours[i]) })
	}
	p := sign(hosts[0], "Secret-2")
	poll(t, "the wrong password is not refused", func() bool {
		log, _ := hosts[0].Read(SesmanLog)
		return strings.Contains(string(log), "AUTHFAIL: user=ann")
	})
	p.Stop()
}

func TestBrowser(t *testing.T) {
	l := New(t, "")
	h := l.Host("laptop")
	h.AddUser("me", "")
	ca, server := newTLS(t, "lab")
	listener, err := tls.Listen("tcp", Address+":0", server)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `<!doctype html><title>t</title><h1>Who?</h1><form method=post action=/hello>
			<input name=who><button style="margin-top:2000px">Go</button></form>`)
	})
	mux.HandleFunc("POST /hello", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "<!doctype html><p>hello %s", r.FormValue("who"))
	})
	s := &http.Server{Handler: mux, ErrorLog: nil}
	go s.Serve(listener)
	defer s.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	url := "https://lab:" + port + "/"

	wary := h.StartBrowser("me")
	if _, err := wary.Open(url); err == nil || !strings.Contains(err.Error(), "ERR_CERT_AUTHORITY_INVALID") {
		t.Errorf("an unknown CA: %v, want ERR_CERT_AUTHORITY_INVALID", err)
	}
	h.AddUser("you", "")
	h.Trust("you", ca)
	begin := time.Now()
	b := h.StartBrowser("you")
	p := b.NewPage(url)
	t.Logf("a page after %v", time.Since(begin))
	p.Type("input[name=who]", "Ann Ä")
	p.Screenshot(filepath.Join(pictures, "browser.png"))
	p.Click("button")
	p.WaitFor("location.pathname == '/hello'")
	if got, want := p.Text(), "hello Ann Ä"; got != want {
		t.Errorf("the page says %q, want %q", got, want)
	}
	if got, err := p.Eval("Promise.resolve([1, 'a'])"); err != nil || got != `[1,"a"]` {
		t.Errorf("Eval = %q, %v", got, err)
	}
	if _, err := p.Eval("nothing.there"); err == nil || !strings.Contains(err.Error(), "ReferenceError") {
		t.Errorf("an exception: %v", err)
	}

	env := h.CatchURLs()
	for _, c := range []string{`"$BROWSER" 'https://a/?b=c d&e'`, `xdg-open 'https://second/'`} {
		cmd := h.Command(t.Context(), "me", "sh", "-c", c)
		cmd.Env = append(cmd.Env, env...)
		if _, err := output(cmd); err != nil {
			t.Errorf("%s: %v", c, err)
		}
	}
	if got, want := []string{h.NextURL(), h.NextURL()}, []string{"https://a/?b=c d&e", "https://second/"}; !slices.Equal(got, want) {
		t.Errorf("the browser was opened at %q, want %q", got, want)
	}
}

func TestSystemd(t *testing.T) {
	l := New(t, "")
	begin := time.Now()
	h := l.SystemdHost("web01")
	t.Logf("systemd is up after %v", time.Since(begin))
	if got := h.Must("", "cat", "/proc/1/comm"); got != "systemd\n" {
		t.Errorf("process 1 is %q", got)
	}
	h.Write("/etc/systemd/system/demo.service", 0o644, []byte(`[Service]
Type=notify
NotifyAccess=all
ExecStart=/bin/sh -c 'echo begin as $$(id -un); systemd-notify --ready; exec sleep 1000'
ExecStopPost=/bin/sh -c 'echo end'
User=games
Restart=on-failure
RestartSec=50ms
PrivateTmp=yes
ProtectSystem=strict
NoNewPrivileges=yes
[Install]
WantedBy=multi-user.target
`))
	h.Systemctl("daemon-reload")
	h.Systemctl("enable", "--now", "demo")
	if got := h.Systemctl("is-active", "demo"); got != "active\n" {
		t.Errorf("the unit is %q", got)
	}
	before := h.Systemctl("show", "-P", "MainPID", "demo")
	h.Systemctl("kill", "-s", "KILL", "demo")
	poll(t, "the unit does not start again", func() bool {
		out, _ := h.Run("", "systemctl", "show", "-P", "ActiveState", "-P", "MainPID", "demo")
		return strings.HasPrefix(out, "active\n") && !strings.HasSuffix(out, "\n"+before) || strings.HasSuffix(out, "active\n") && !strings.HasPrefix(out, before)
	})
	if got := h.Journal("demo"); !strings.Contains(got, "begin as games") || !strings.Contains(got, "end") {
		t.Errorf("the journal has %q", got)
	}
	if got := h.Systemctl("is-enabled", "demo"); got != "enabled\n" {
		t.Errorf("the unit is %q", got)
	}
	if other := l.Host("web02"); len(other.Processes("")) != 1 {
		t.Errorf("a plain host runs %v", other.Processes(""))
	}
}

func TestDelay(t *testing.T) {
	l := New(t, "")
	h := l.Host("server")
	listener, err := h.Listen(h.IP() + ":7")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() { // says hello, answers each line, says goodbye after the last
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, "hello\n")
				for s := bufio.NewScanner(c); s.Scan(); {
					fmt.Fprintf(c, "%s?\n", s.Text())
				}
				io.WriteString(c, "bye\n")
			}()
		}
	}()
	const rtt = 40 * time.Millisecond
	tests := []struct {
		name string
		talk func(c *net.TCPConn, r *bufio.Reader)
		want DelayStats
		time time.Duration
	}{
		{"a greeting costs the handshake and the way", func(c *net.TCPConn, r *bufio.Reader) { r.ReadString('\n') },
			DelayStats{1, 0, 0, 6}, 2 * rtt},
		{"three questions in turn", func(c *net.TCPConn, r *bufio.Reader) {
			r.ReadString('\n')
			for range 3 {
				io.WriteString(c, "x\n")
				r.ReadString('\n')
			}
		}, DelayStats{1, 3, 6, 15}, 5 * rtt},
		{"three questions at once are one round trip", func(c *net.TCPConn, r *bufio.Reader) {
			r.ReadString('\n')
			for range 3 {
				io.WriteString(c, "x\n")
				time.Sleep(rtt / 10)
			}
			for range 3 {
				r.ReadString('\n')
			}
		}, DelayStats{1, 1, 6, 15}, 3 * rtt},
		{"the end of one direction leaves the other", func(c *net.TCPConn, r *bufio.Reader) {
			c.CloseWrite()
			if got, err := io.ReadAll(r); err != nil || string(got) != "hello\nbye\n" {
				t.Errorf("read %q, %v", got, err)
			}
		}, DelayStats{1, 0, 0, 10}, 2 * rtt},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := NewDelay(t, Address+":0", h.IP()+":7", rtt)
			begin := time.Now()
			c, err := net.Dial("tcp", d.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			tt.talk(c.(*net.TCPConn), bufio.NewReader(c))
			took := time.Since(begin)
			if got := d.Stats(); got != tt.want {
				t.Errorf("Stats = %+v, want %+v", got, tt.want)
			}
			if took < tt.time || took > tt.time+10*rtt {
				t.Errorf("took %v, want a little over %v", took, tt.time)
			}
		})
	}
}

// TestHelper is not a test: TestMainPasses starts it in a lab of its own.
func TestHelper(t *testing.T) {
	what := os.Getenv("LAB_HELPER")
	if what == "" {
		return
	}
	l := New(t, "")
	h := l.Host("web01")
	h.Start("sleep", h.Command(t.Context(), "", "sleep", "1000"))
	if what == "systemd" {
		l.SystemdHost("web02")
	}
	if what == "exit" {
		os.Exit(7)
	}
	fmt.Println("ready")
	os.Stdout.Sync()
	select {}
}

func TestMainPasses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	start := func(t *testing.T, what string) (*exec.Cmd, *bufio.Reader) {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestHelper$", "-test.v")
		cmd.Env = append(os.Environ(), "LAB_HELPER="+what)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(out)
		for what != "exit" {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatalf("the helper does not get ready: %v", err)
			}
			if line == "ready\n" {
				break
			}
		}
		return cmd, r
	}
	tests := []struct {
		name, what string
		signal     syscall.Signal
		want       int
	}{
		{"an exit status", "exit", 0, 7},
		{"SIGTERM", "hang", syscall.SIGTERM, 128 + 15},
		{"SIGINT", "hang", syscall.SIGINT, 128 + 2},
		{"the end of a lab with systemd", "systemd", syscall.SIGTERM, 128 + 15},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd, r := start(t, tt.what)
			if tt.signal != 0 {
				cmd.Process.Signal(tt.signal)
			}
			io.Copy(io.Discard, r)
			cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != tt.want {
				t.Errorf("status %d, want %d", got, tt.want)
			}
		})
	}
	t.Run("nothing is left after SIGKILL", func(t *testing.T) {
		changes := Watch()
		before := processes()
		cmd, r := start(t, "systemd")
		if n := len(processes()) - len(before); n < 10 {
			t.Errorf("only %d processes in a lab with systemd", n)
		}
		cmd.Process.Kill()
		// Orphans have another parent now: compare all that there is.
		poll(t, "processes are left", func() bool { return len(processes()) <= len(before) })
		io.Copy(io.Discard, r)
		cmd.Wait()
		if c := changes(); len(c) > 0 {
			t.Errorf("left:\n%s", strings.Join(c, "\n"))
		}
	})
	t.Run("the next lab removes control groups that a killed one left", func(t *testing.T) {
		cmd, r := start(t, "exit")
		io.Copy(io.Discard, r)
		cmd.Wait()
		dir := t.TempDir()
		root, err := groupRoot(dir)
		if err != nil {
			t.Skipf("SKIPPED: %v", err)
		}
		defer syscall.Unmount(dir, 0)
		empty, _ := filepath.Glob(filepath.Join(root, groupPrefix+"*"))
		empty = slices.DeleteFunc(empty, func(g string) bool {
			b, err := os.ReadFile(filepath.Join(g, "cgroup.events"))
			return err != nil || !strings.Contains(string(b), "populated 0")
		})
		if len(empty) > 0 {
			t.Errorf("left: %q", empty)
		}
	})
}

func TestScript(t *testing.T) {
	tests := []struct {
		name   string
		fn     func(T)
		want   string
		status int
	}{
		{"a script that ends well", func(t T) { t.Logf("b") }, "b\nlast\nfirst\n", 0},
		{"a script that fails", func(t T) { t.Fatalf("no %s", "luck"); t.Logf("b") }, "no luck\nlast\nfirst\n", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			status := Script(t.Context(), &out, func(t T) {
				t.Cleanup(func() { t.Logf("first") })
				t.Cleanup(func() { t.Logf("last") })
				tt.fn(t)
			})
			if out.String() != tt.want || status != tt.status {
				t.Errorf("Script wrote %q, status %d; want %q, %d", out.String(), status, tt.want, tt.status)
			}
		})
	}
}

func TestListeners(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0100007F:0D3D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   1: 0100007F:0D3E 0100007F:0D3D 01 00000000:00000000 00:00000000 00000000     0
   2: 00000000000000000000000001000000:0D16 00000000000000000000000000000000:0000 0A 0 0 0 0
`
	want := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:3389"), netip.MustParseAddrPort("[::1]:3350")}
	if got := listeners(table); !slices.Equal(got, want) {
		t.Errorf("listeners = %v, want %v", got, want)
	}
}

// FuzzXWD checks that whatever a file begins with, no pixel is looked for in
// front of it and rows do not overlap.
func FuzzXWD(f *testing.F) {
	f.Add(make([]byte, xwdHead))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := parseXWD(b)
		if err != nil {
			return
		}
		if x.start < xwdHead || x.offset(x.width-1, 0) >= x.offset(0, 1) {
			t.Errorf("parseXWD = %+v", x)
		}
	})
}

func mustColour(t *testing.T, s string) any {
	c, err := ParseColour(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// newTLS returns a CA of its own, in PEM, and a server of that name under it.
func newTLS(t *testing.T, name string) ([]byte, *tls.Config) {
	t.Helper()
	issue := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if signer == nil {
			parent, signer = template, key
		}
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c, key
	}
	ca, caKey := issue(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	leaf, key := issue(&x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca, caKey)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}),
		&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}}
}
