package acme

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mholt/acmez/v3/acme"
)

// serve is an authority that answers in the same way whatever it is asked.
func serve(t *testing.T, answer http.HandlerFunc) *Authority {
	t.Helper()
	s := httptest.NewUnstartedServer(answer)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	// The library remembers what it was led to from an address, and a port comes
	// back: each has an address of its own.
	return &Authority{Directory: fmt.Sprintf("%s/dir?%d", s.URL, served.Add(1)), Roots: roots}
}

var served atomic.Int64

// Whatever is wrong with an authority is said in words of what to do.
func TestWrongAuthorities(t *testing.T) {
	says := func(status int, kind, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	untrusted := serve(t, says(200, "application/json", "{}"))
	untrusted.Roots = x509.NewCertPool()
	elsewhere := serve(t, says(200, "application/json", "{}"))
	elsewhere.Directory = strings.Replace(elsewhere.Directory, "127.0.0.1", "localhost", 1)
	plain := httptest.NewServer(says(200, "application/json", "{}"))
	t.Cleanup(plain.Close)
	closed := httptest.NewServer(nil)
	closed.Close()
	tests := []struct {
		name     string
		a        *Authority
		msg, fix string
	}{
		{"a page", serve(t, says(200, "text/html", "<html>")), "is no ACME directory", "check --acme-directory"},
		{"no such page", serve(t, says(404, "text/plain", "404 page\nnot found")), "is no ACME directory: HTTP 404: 404 page not found", "check --acme-directory"},
		{"JSON of something else", serve(t, says(200, "application/json", `{"a":1}`)), "is no ACME directory", "check --acme-directory"},
		{"a redirect", serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "https://127.0.0.1:1/", 301) }), "is no ACME directory", "check --acme-directory"},
		{"too much", serve(t, says(200, "application/json", strings.Repeat(" ", maxReply+1)+"{}")), "is no ACME directory", "check --acme-directory"},
		{"a root that is not given", untrusted, "this machine does not trust 127.0.0.1", "--acme-ca"},
		{"another name", elsewhere, "is not who it says", "check --acme-directory"},
		{"no TLS", &Authority{Directory: strings.Replace(plain.URL, "http:", "https:", 1)}, "is not reached", "HTTPS"},
		{"nobody there", &Authority{Directory: strings.Replace(closed.URL, "http:", "https:", 1)}, "is not reached: connection refused", "check the network"},
		{"a name that does not resolve", &Authority{Directory: "https://acme.invalid/dir"}, "does not resolve", "DNS"},
		{"leads to no TLS", serve(t, says(200, "application/json", `{"newNonce":"http://127.0.0.1:1/","newOrder":"http://127.0.0.1:1/","newAccount":"http://127.0.0.1:1/"}`)),
			"is not https", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = tt.a.Obtain(t.Context(), Order{Host: "sft.example.com", Account: key, Key: key})
			f, ok := errors.AsType[*Failure](err)
			if !ok || !strings.Contains(f.Msg, tt.msg) || !strings.Contains(f.Fix, tt.fix) || f.Fix == "" || !f.Until.IsZero() {
				t.Errorf("it fails as %+v, want %q, to do %q", err, tt.msg, tt.fix)
			}
		})
	}
}

// An authority that is never done is left, whatever it keeps the platform with.
func TestEndlessAuthorities(t *testing.T) {
	for _, tt := range []struct {
		name          string
		header, order int // bytes
		atMost        int // requests; the least that such an authority takes
	}{
		{"more answers than memory", 0, maxReply - 1000, 30},
		{"headers", 60 << 10, 0, 300},
		{"no end of authorizations", 0, 0, maxRequests},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			a := serve(t, func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				at := func(path string) string { return "https://" + r.Host + path }
				w.Header().Set("Replay-Nonce", "n")
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("Location", at(r.URL.Path))
				switch r.URL.Path {
				case "/dir":
					fmt.Fprintf(w, `{"newNonce":%q,"newAccount":%q,"newOrder":%q}`, at("/nonce"), at("/account"), at("/order"))
				case "/account":
					io.WriteString(w, `{"status":"valid"}`)
				case "/order":
					fmt.Fprintf(w, `{"status":"pending","authorizations":[%q`, at("/z"))
					for range 2 * maxRequests {
						fmt.Fprintf(w, ",%q", at("/z"))
					}
					io.WriteString(w, "]}")
				case "/z":
					w.Header().Set("X-Much", strings.Repeat("x", tt.header))
					io.WriteString(w, `{"status":"valid"`+strings.Repeat(" ", tt.order)+"}")
				}
			})
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = a.Obtain(t.Context(), Order{Host: "sft.example.com", Account: key, Key: key})
			f, ok := errors.AsType[*Failure](err)
			if !ok || !strings.Contains(f.Msg, "leads on and on") || !errors.Is(err, errTalk) || asked.Load() > int64(tt.atMost) {
				t.Errorf("after %d requests it fails as %+v", asked.Load(), err)
			}
		})
	}
}

// Until when an authority refuses is known, in either form, and never for ever.
func TestRetryAfter(t *testing.T) {
	const problem = `{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many certificates\nalready","status":429}`
	for _, tt := range []struct {
		header string
		want   time.Duration
	}{
		{"3600", time.Hour},
		{time.Now().Add(2 * time.Hour).UTC().Format(http.TimeFormat), 2 * time.Hour},
		{"99999999999", maxRefusal},
		{"-1", 0}, {"soon", 0}, {"", 0}, {"1e9", 0},
	} {
		a := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", tt.header)
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(429)
			io.WriteString(w, problem)
		})
		_, err := a.Terms(t.Context())
		f, ok := errors.AsType[*Failure](err)
		if !ok || !strings.Contains(f.Msg, "has a limit, which is reached: too many certificates already") || !strings.Contains(f.Fix, "wait") {
			t.Fatalf("%q: %+v", tt.header, err)
		}
		switch got := time.Until(f.Until); {
		case tt.want == 0 && !f.Until.IsZero():
			t.Errorf("%q: until %v", tt.header, f.Until)
		case tt.want > 0 && (got > tt.want || got < tt.want-time.Minute || !strings.Contains(f.Fix, f.Until.UTC().Format(time.RFC3339))):
			t.Errorf("%q: for %v, want %v; %s", tt.header, got, tt.want, f.Fix)
		}
	}
}

// Each problem of RFC 8555 that a platform can meet has words and a way out.
func TestProblems(t *testing.T) {
	a := &Authority{Directory: LetsEncrypt, Email: "ops@example.com"}
	for _, tt := range []struct{ kind, msg, fix string }{
		{"dns", "finds no address of sft.example.com", "have sft.example.com resolve"},
		{"connection", "does not reach port 443 of sft.example.com", "lead to --listen"},
		{"tls", "gets no TLS connection", "lead to --listen"},
		{"incorrectResponse", "does not find this platform", "IPv6"},
		{"unauthorized", "refuses the account", "rotate acme-account"},
		{"caa", "CAA record", "CAA records"},
		{"rateLimited", "has a limit", "wait"},
		{"rejectedIdentifier", "issues nothing for sft.example.com", "URL"},
		{"externalAccountRequired", "external account binding", "--acme-directory"},
		{"invalidContact", "refuses the address ops@example.com", "--acme-email"},
		{"userActionRequired", "wants something of you", "https://example.org/terms"},
		{"accountDoesNotExist", "does not know the account", "tried again"},
		{"badCSR", "the authority refuses", "log"},
	} {
		p := acme.Problem{Type: acme.ProblemTypeNamespace + tt.kind, Status: 400, Detail: "So it is.\x1b[31m", Instance: "https://example.org/terms"}
		for _, err := range []error{fmt.Errorf("attempt 1: %w", p), fmt.Errorf("attempt 1: %w", &p)} {
			f := a.explain(err, "sft.example.com", &guard{})
			if !strings.Contains(f.Msg, tt.msg) || !strings.Contains(f.Msg, ": So it is") || !strings.Contains(f.Fix, tt.fix) || strings.ContainsRune(f.Msg, 0x1b) || !errors.Is(f, err) {
				t.Errorf("%s: %+v, want %q, to do %q", tt.kind, f, tt.msg, tt.fix)
			}
		}
	}
}

// issue makes a chain in PEM.
func issue(t testing.TB, names []string, from, to time.Time) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: names, NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key
}

// A chain is taken only if it can be served.
func TestParseChain(t *testing.T) {
	const host = "sft.example.com"
	now := time.Now()
	day := 24 * time.Hour
	good, key := issue(t, []string{host}, now.Add(-day), now.Add(day))
	other, _ := issue(t, []string{host}, now.Add(-day), now.Add(day))
	if chain, err := parseChain(bytes.Join([][]byte{good, other}, nil), host, &key.PublicKey, now); err != nil || len(chain) != 2 {
		t.Errorf("a good one: %d, %v", len(chain), err)
	}
	for _, tt := range []struct {
		name, host string
		text       []byte
		now        time.Time
		want       string
	}{
		{"nothing", host, nil, now, "is empty"},
		{"no PEM", host, []byte("hello"), now, "is no chain"},
		{"a key", host, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}), now, "is no chain"},
		{"no certificate", host, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}), now, "the chain of the authority"},
		{"something behind it", host, bytes.Join([][]byte{good, []byte("x")}, nil), now, "is no chain"},
		{"too many", host, bytes.Repeat(good, maxCerts+1), now, "is no chain"},
		{"too long", host, bytes.Repeat([]byte(" "), maxChain+1), now, "is too long"},
		{"of another key", host, other, now, "is of another key"},
		{"for another name", "www.example.com", good, now, "not www.example.com"},
		{"before its time", host, good, now.Add(-2 * day), "clock says"},
		{"after its time", host, good, now.Add(2 * day), "clock says"},
	} {
		if _, err := parseChain(tt.text, tt.host, &key.PublicKey, tt.now); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

// FuzzParseChain: what is taken are certificates, few, the first for the host.
func FuzzParseChain(f *testing.F) {
	now := time.Now()
	good, key := issue(f, []string{"sft.example.com"}, now.Add(-time.Hour), now.Add(time.Hour))
	f.Add(good)
	f.Add(bytes.Repeat(good, 3))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		chain, err := parseChain(text, "sft.example.com", &key.PublicKey, now)
		if err != nil {
			return
		}
		if len(chain) == 0 || len(chain) > maxCerts {
			t.Fatalf("%d certificates", len(chain))
		}
		for i, der := range chain {
			c, err := x509.ParseCertificate(der)
			if err != nil || i == 0 && c.VerifyHostname("sft.example.com") != nil {
				t.Fatalf("certificate %d: %v", i, err)
			}
		}
	})
}

// FuzzQuoted: an authority's words are one short line, whatever they are.
func FuzzQuoted(f *testing.F) {
	f.Add("a\nb\x1b[0m\xff" + strings.Repeat("é", maxDetail))
	f.Fuzz(func(t *testing.T, s string) {
		got := quoted(s)
		if len(got) > maxDetail+len("…") || !utf8.ValidString(got) || strings.ContainsFunc(got, unicode.IsControl) || strings.ContainsAny(got, "\u2028\u2029") {
			t.Errorf("%q becomes %q", s, got)
		}
	})
}
