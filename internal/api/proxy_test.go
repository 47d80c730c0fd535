package api

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"sft"
)

// A proxy lets CONNECT through to one server, whatever name is asked for:
// nobody else knows the name, so only who goes through it arrives.
type proxy struct {
	to   string
	deny bool

	mu    sync.Mutex
	asked []string
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asked = append(p.asked, r.Method+" "+r.Host)
	p.mu.Unlock()
	if r.Method != "CONNECT" || p.deny {
		http.Error(w, "no", http.StatusForbidden)
		return
	}
	out, err := net.Dial("tcp", p.to)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer out.Close()
	w.WriteHeader(http.StatusOK)
	in, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer in.Close()
	go func() { io.Copy(out, buf); out.Close() }()
	io.Copy(in, out)
}

func (p *proxy) hosts() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

// behind returns a platform and a proxy to it.
func behind(t *testing.T) (p *proxy, ca []byte) {
	t.Helper()
	ca, cert := pair(t)
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.TLS = tlsOf(cert)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return &proxy{to: srv.Listener.Addr().String()}, ca
}

func TestFetchCAThroughAProxy(t *testing.T) {
	for _, tt := range []struct {
		name        string
		deny        bool
		fingerprint func(ca []byte) string
		code        sft.Code
		says        string
	}{
		{"the right fingerprint", false, fingerprint, "", ""},
		{"another: the proxy is not trusted with it", false, func([]byte) string { return strings.Repeat("ab", 32) }, sft.Invalid, "does not show the CA"},
		{"none", false, func([]byte) string { return "" }, sft.Invalid, "a CA that this machine does not know"},
		{"a proxy that refuses", true, fingerprint, sft.Unavailable, " says 403 Forbidden"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, ca := behind(t)
			p.deny = tt.deny
			srv := httptest.NewServer(p)
			t.Cleanup(srv.Close)
			via, err := url.Parse(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			got, err := FetchCA(t.Context(), "https://platform.test", tt.fingerprint(ca), via, &Clock{})
			if want := []string{"CONNECT platform.test:443"}; !slices.Equal(p.hosts(), want) {
				t.Errorf("the proxy was asked %q, want %q", p.hosts(), want)
			}
			if tt.code == "" {
				if err != nil || string(got) != string(ca) {
					t.Errorf("FetchCA = %d bytes, %v", len(got), err)
				}
				return
			}
			if e, ok := errors.AsType[*sft.Error](err); !ok || e.Code != tt.code || !strings.Contains(e.Msg, tt.says) || got != nil {
				t.Errorf("FetchCA = %d bytes, %v, want %s: %q", len(got), err, tt.code, tt.says)
			}
		})
	}
}

// What net/http reads of the environment it reads once, and what the system
// trusts too: each case is a process of its own.
func TestProxiesOfTheSystem(t *testing.T) {
	if fp := os.Getenv("SFT_TEST_FINGERPRINT"); fp != "" {
		var via *url.URL
		if raw := os.Getenv("SFT_TEST_PROXY"); raw != "" {
			var err error
			if via, err = url.Parse(raw); err != nil {
				t.Fatal(err)
			}
		}
		ca, err := FetchCA(t.Context(), "https://platform.test", fp, via, &Clock{})
		if err != nil {
			t.Fatal(err)
		}
		hc, err := NewHTTP(ca, via, &Clock{})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := hc.Get("https://platform.test/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return
	}
	proxyCA, proxyCert := pair(t)
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: proxyCA}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		tls  bool
		env  string
	}{
		{"HTTPS_PROXY is used where none is named", false, "HTTPS_PROXY"},
		{"a proxy with a certificate that the system trusts", true, "SFT_TEST_PROXY"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, ca := behind(t)
			srv := httptest.NewUnstartedServer(p)
			if tt.tls {
				srv.TLS = tlsOf(proxyCert)
				srv.StartTLS()
			} else {
				srv.Start()
			}
			t.Cleanup(srv.Close)
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxiesOfTheSystem$")
			cmd.Env = append(os.Environ(), "NO_PROXY=", "no_proxy=", "SSL_CERT_FILE="+roots, "SFT_TEST_FINGERPRINT="+fingerprint(ca), tt.env+"="+srv.URL)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if want := []string{"CONNECT platform.test:443", "CONNECT platform.test:443"}; !slices.Equal(p.hosts(), want) {
				t.Errorf("the proxy was asked %q, want %q", p.hosts(), want)
			}
		})
	}
}

func tlsOf(c tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{c}} }
