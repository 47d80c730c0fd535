//go:build unix

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"sft/internal/platform"
	"sft/internal/store"
)

// A pebble is an ACME authority, Let's Encrypt's own for tests, and the DNS by
// which it finds hosts. It connects to one port of loopback in the place of 443.
type pebble struct {
	t         *testing.T
	bin, dir  string
	process   *exec.Cmd
	directory string
	manage    string // URL
	dns       string // URL, of the management
	dnsAddr   string
	roots     *x509.CertPool // of its own TLS
	ca        string         // the file with that
}

// freePort is one of loopback that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// newPebble starts an authority that validates at port tlsPort.
func newPebble(t *testing.T, tlsPort int) *pebble {
	t.Helper()
	// Built once, and beside what else is built: it takes seconds.
	p := &pebble{t: t, bin: filepath.Join("..", "..", "build", "tools", "pebble"), dir: t.TempDir(), roots: x509.NewCertPool()}
	must(t, os.MkdirAll(p.bin, 0o755))
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join("..", "..", "build", "tools", "pebble")+"/", "tool")
	build.Dir = filepath.Join("..", "..", "tools", "pebble")
	if out, err := build.CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("build Pebble: %v\n%s", err, out)
		}
		t.Skipf("SKIPPED: Pebble cannot be built here: %s", out)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	p.ca = filepath.Join(p.dir, "cert.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	must(t, os.WriteFile(p.ca, certPEM, 0o600))
	must(t, os.WriteFile(filepath.Join(p.dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	p.roots.AppendCertsFromPEM(certPEM)

	listen, manage := fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	dns, oob := fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	p.directory, p.manage, p.dns, p.dnsAddr = "https://"+listen+"/dir", "https://"+manage, "http://"+oob, dns
	conf, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": listen, "managementListenAddress": manage, "certificate": p.ca, "privateKey": filepath.Join(p.dir, "key.pem"),
		"httpPort": 1, "tlsPort": tlsPort, "keyAlgorithm": "ecdsa",
		"domainBlocklist": []string{"blocked.example.com"},
		"profiles":        map[string]any{"default": map[string]any{"description": "short", "validityPeriod": 6 * 24 * 3600}},
	}})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(p.dir, "conf.json"), conf, 0o600))
	p.run(nil, "pebble-challtestsrv", "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "", "-dnsserver", dns, "-management", oob, "-defaultIPv6", "")
	p.start()
	p.wait(http.DefaultClient, "POST", p.dns+"/clear-request-history")
	return p
}

// run starts one of Pebble's programs, whose output goes to a file.
func (p *pebble) run(env []string, name string, args ...string) *exec.Cmd {
	p.t.Helper()
	out, err := os.OpenFile(filepath.Join(p.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(p.t, err)
	defer out.Close()
	cmd := exec.Command(filepath.Join(p.bin, name), args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), out, out
	must(p.t, cmd.Start())
	p.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

// start starts the authority, which knows nothing of what was before.
func (p *pebble) start() {
	p.t.Helper()
	p.process = p.run([]string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=10"}, "pebble", "-config", filepath.Join(p.dir, "conf.json"), "-dnsserver", p.dnsAddr)
	p.wait(p.client(), "GET", p.directory)
}

// stop ends the authority.
func (p *pebble) stop() {
	p.process.Process.Kill()
	p.process.Wait()
}

func (p *pebble) client() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.roots}, DisableKeepAlives: true}}
}

// wait waits until something answers, and returns what it says.
func (p *pebble) wait(c *http.Client, method, url string) []byte {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		r, err := http.NewRequest(method, url, strings.NewReader("{}"))
		must(p.t, err)
		resp, err := c.Do(r)
		if err == nil {
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			must(p.t, err)
			return b
		}
		if time.Now().After(deadline) {
			p.t.Fatal(err)
		}
	}
}

// issuer returns the root of what the authority issues.
func (p *pebble) issuer() *x509.CertPool {
	p.t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(p.wait(p.client(), "GET", p.manage+"/roots/0")) {
		p.t.Fatal("the authority shows no root")
	}
	return pool
}

// tell asks what is for tests alone: of the DNS, or of the authority.
func (p *pebble) tell(url string, body any) {
	p.t.Helper()
	b, err := json.Marshal(body)
	must(p.t, err)
	resp, err := p.client().Post(url, "application/json", bytes.NewReader(b))
	must(p.t, err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		p.t.Fatalf("%s: %s", url, resp.Status)
	}
}

// count is how often the authority's log has a text.
func (p *pebble) count(text string) int {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.dir, "pebble.log"))
	must(p.t, err)
	return bytes.Count(b, []byte(text))
}

// closeAccount deactivates the account of a platform (RFC 8555, section 7.3.6).
func (p *pebble) closeAccount(of *platform.Platform) {
	p.t.Helper()
	var der []byte
	must(p.t, of.DB.Read(p.t.Context(), func(tx *store.Tx) error {
		r, err := tx.ACME(p.directory)
		if err != nil {
			return err
		}
		der, err = of.Sealer.Open("acme_account", r.AccountKey)
		return err
	}))
	key, err := x509.ParsePKCS8PrivateKey(der)
	must(p.t, err)
	c := &acme.Client{Directory: p.directory, HTTPClient: p.client()}
	account, err := c.GetAccount(p.t.Context(), acme.Account{PrivateKey: key.(*ecdsa.PrivateKey)})
	must(p.t, err)
	account.Status = acme.StatusDeactivated
	_, err = c.UpdateAccount(p.t.Context(), account)
	must(p.t, err)
}

// orders is how many certificates were ordered.
func (p *pebble) orders() int { return p.count("Added order") }
