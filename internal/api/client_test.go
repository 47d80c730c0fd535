package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"sft"
)

func TestCheckURL(t *testing.T) {
	tests := []struct{ in, want string }{
		{"https://sft.example.com", "https://sft.example.com"},
		{"https://SFT.Example.com/", "https://sft.example.com"},
		{"https://sft.example.com:8443", "https://sft.example.com:8443"},
		{"https://127.0.0.1:1", "https://127.0.0.1:1"},
		{"https://[2001:DB8::1]:443", "https://[2001:db8::1]:443"},
		{"", ""},
		{"sft.example.com", ""},
		{"http://sft.example.com", ""},
		{"HTTPS://", ""},
		{"https://:443", ""},
		{"https://sft.example.com:", ""},
		{"https://sft.example.com:x", ""},
		{"https://me@sft.example.com", ""},
		{"https://sft.example.com/v1", ""},
		{"https://sft.example.com?x", ""},
		{"https://sft.example.com#x", ""},
		{"https:sft.example.com", ""},
		{"https://a b", ""},
		{"https://sft.example.com\n", ""},
		{"https://sft.example.com:65535", "https://sft.example.com:65535"},
		{"https://sft.example.com:65536", ""},
		{"https://sft.example.com:99999", ""},
		{"https://sft.example.com:0", ""},
		{"https://sft.example.com:0443", ""},
		{"https://sft.example.com?", ""},
		{"https://sft.example.com/?", ""},
		{"https://sft.example.com#", ""},
		{"https://ü.example", ""},
		{"https://%C3%BC.example", ""},
		{"https://xn--tda.example", "https://xn--tda.example"},
		{"https://sft_1", "https://sft_1"},
		{"https://sft..example.com", ""},
		{"https://sft.example.com.", ""},
		{"https://.example.com", ""},
		{"https://a,b", ""},
		{"https://*.example.com", ""},
		{"https://" + strings.Repeat("a", 64) + ".example", ""},
		{"https://" + strings.Repeat("a.", 127) + "a", ""},
		{"https://0.0.0.0", ""},
		{"https://[::]", ""},
	}
	for _, tt := range tests {
		got, err := CheckURL(tt.in)
		if got != tt.want || (err == nil) != (tt.want != "") || err != nil && sft.CodeOf(err) != sft.Invalid {
			t.Errorf("CheckURL(%q) = %q, %v, want %q", tt.in, got, err, tt.want)
		}
		if e, ok := errors.AsType[*sft.Error](err); ok && e.Hint == "" {
			t.Errorf("CheckURL(%q): %v, without what to do", tt.in, err)
		}
	}
}

func TestClock(t *testing.T) {
	c := Clock{Machine: func() time.Time { return now }}
	for _, tt := range []struct {
		off  time.Duration
		want time.Duration
		ok   bool
	}{
		{10 * time.Minute, 10 * time.Minute, true},
		{-MaxSkew, -MaxSkew, true},
		{MaxSkew + time.Second, -MaxSkew, false}, // what was known stays
		{-20 * time.Minute, -MaxSkew, false},
		{0, 0, true},
	} {
		err := c.Correct(now.Add(tt.off))
		if c.Offset() != tt.want || (err == nil) != tt.ok || !c.Now().Equal(now.Add(tt.want)) {
			t.Errorf("after a platform that is %s off: offset %s, %v", tt.off, c.Offset(), err)
		}
	}
	err := c.Correct(now.Add(20 * time.Minute))
	const want = "this machine's clock says 2026-03-01T09:00:00Z, the platform's says 2026-03-01T09:20:00Z"
	if sft.CodeOf(err) != sft.ClockSkew || err.Error() != want {
		t.Errorf("Correct = %v, want %s", err, want)
	}
	if d := time.Since((&Clock{}).Now()); d < 0 || d > time.Minute {
		t.Errorf("the zero clock is %s off", d)
	}
}

// answering is a platform whose answers the test chooses.
func answering(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	clock := &Clock{}
	c, err := NewHTTP(srv.Certificate().Raw, nil, clock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return &Client{URL: srv.URL, Key: key(t), Issuer: "client:1", Clock: clock, HTTP: c}
}

// Whatever answers in the platform's place, the caller gets an error that
// says what to do.
func TestOddAnswers(t *testing.T) {
	tests := []struct {
		name   string
		answer http.HandlerFunc
		code   sft.Code
		msg    string
	}{
		{"the platform's refusal", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(403)
			io.WriteString(w, `{"error":{"code":"forbidden_error","message":"no","hint":"ask"},"time":"2026-03-01T09:00:00Z"}`)
		}, sft.Denied, "no"},
		{"a code of a later version", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(418)
			io.WriteString(w, `{"error":{"code":"teapot","message":"short and stout"}}`)
		}, "teapot", "short and stout"},
		{"a proxy's page", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(407); io.WriteString(w, "<html>") }, sft.Internal,
			"something that is not the platform answered with status 407"},
		{"a proxy that cannot reach it", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(502) }, sft.Unavailable,
			"something that is not the platform answered with status 502"},
		{"a redirect, which is not followed", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "https://elsewhere.invalid/", 302) }, sft.Internal,
			"the platform answered with status 302"},
		{"no JSON", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }, sft.Internal, "the platform's answer is not readable"},
		{"the wrong JSON", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"a":"x"}`) }, sft.Internal, "the platform's answer is not readable"},
		{"too much", func(w http.ResponseWriter, r *http.Request) {
			for range maxReply/1024 + 2 {
				if _, err := w.Write(make([]byte, 1024)); err != nil {
					return
				}
			}
		}, sft.Internal, "the platform's answer is too long"},
		{"nothing", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, sft.Unavailable, ""},
		{"half of it", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "{")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, sft.Unavailable, ""},
		{"a clock that cannot be", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(401)
			io.WriteString(w, `{"error":{"code":"clock_skew","message":"x"},"time":"1999-01-01T00:00:00Z"}`)
		}, sft.ClockSkew, ""},
		{"a clock that is never right", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(401)
			json.NewEncoder(w).Encode(ErrorReply{Error: sft.Error{Code: sft.ClockSkew, Msg: "again"}, Time: time.Now()})
		}, sft.ClockSkew, "again"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := answering(t, tt.answer)
			var out struct {
				A int `json:"a"`
			}
			err := c.Do(t.Context(), "GET", "/", nil, &out)
			e, ok := errors.AsType[*sft.Error](err)
			if !ok || e.Code != tt.code || tt.msg != "" && e.Msg != tt.msg {
				t.Errorf("Do = %v (%s), want %s: %s", err, sft.CodeOf(err), tt.code, tt.msg)
			}
		})
	}
	t.Run("a caller who gives up", func(t *testing.T) {
		c := answering(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := c.Do(ctx, "GET", "/", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Do = %v", err)
		}
	})
}

// pair is a CA and a certificate by it for 127.0.0.1 and platform.test.
func pair(t *testing.T) (caDER []byte, cert tls.Certificate) {
	t.Helper()
	k, leafKey := key(t), key(t)
	at := time.Now()
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: at.Add(-time.Hour), NotAfter: at.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter, IPAddresses: []net.IP{{127, 0, 0, 1}}, DNSNames: []string{"platform.test"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, &leafKey.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	return rootDER, tls.Certificate{Certificate: [][]byte{leafDER, rootDER}, PrivateKey: leafKey}
}

func fingerprint(der []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(der)) }

func TestFetchCA(t *testing.T) {
	ca, cert := pair(t)
	otherCA, otherCert := pair(t)
	serve := func(c tls.Certificate) string {
		srv := httptest.NewUnstartedServer(http.NotFoundHandler())
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{c}}
		srv.Config.ErrorLog = log.New(io.Discard, "", 0)
		srv.StartTLS()
		t.Cleanup(srv.Close)
		return srv.URL
	}
	real := serve(cert)
	// Somebody in between shows the right CA beside a certificate of their own.
	fake := serve(tls.Certificate{Certificate: [][]byte{otherCert.Certificate[0], ca}, PrivateKey: otherCert.PrivateKey})
	fp := fingerprint(ca)
	tests := []struct {
		name, url, fingerprint string
		code                   sft.Code
		hint                   string
	}{
		{"the right fingerprint", real, fp, "", ""},
		{"without the prefix", real, fp[7:], "", ""},
		{"in capitals", real, strings.ToUpper(fp), "", ""},
		{"of another CA", real, fingerprint(otherCA), sft.Invalid, "somebody is between you and the platform"},
		{"of nothing: an unknown CA is not taken", real, "", sft.Invalid, "--ca-fingerprint"},
		{"too short", real, "sha256:abcd", sft.Invalid, "sft-platform init"},
		{"no hexadecimal", real, strings.Repeat("x", 64), sft.Invalid, "sft-platform init"},
		{"a certificate that the CA did not sign", fake, fp, sft.Invalid, "somebody is between you and the platform"},
		{"another name", strings.Replace(real, "127.0.0.1", "localhost", 1), fp, sft.Unavailable, "use the platform's own name"},
		{"nobody there", "https://127.0.0.1:1", fp, sft.Unavailable, "check the network"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := FetchCA(t.Context(), tt.url, tt.fingerprint, nil, &Clock{})
			if tt.code == "" {
				if err != nil || string(got) != string(ca) {
					t.Errorf("FetchCA = %d bytes, %v", len(got), err)
				}
				return
			}
			e, ok := errors.AsType[*sft.Error](err)
			if !ok || e.Code != tt.code || !strings.Contains(e.Hint, tt.hint) || got != nil {
				t.Errorf("FetchCA = %d bytes, %v, %+v", len(got), err, e)
			}
		})
	}
}

// With a CA of the platform's own, no other is trusted.
func TestOnlyThePlatformsCAIsTrusted(t *testing.T) {
	c := answering(t, func(w http.ResponseWriter, r *http.Request) {})
	if err := c.Do(t.Context(), "GET", "/", nil, nil); err != nil {
		t.Fatal(err)
	}
	other, _ := pair(t)
	own := c.HTTP
	var err error
	if c.HTTP, err = NewHTTP(other, nil, c.Clock); err != nil {
		t.Fatal(err)
	}
	// It has answered: nobody is to look at the network.
	distrusted := func(why, hint string) {
		t.Helper()
		e, ok := errors.AsType[*sft.Error](c.Do(t.Context(), "GET", "/", nil, nil))
		if !ok || e.Code != sft.Unavailable || !strings.HasPrefix(e.Msg, "the certificate that "+c.URL+" shows is not trusted: x509: ") || !strings.Contains(e.Msg, why) || !strings.HasPrefix(e.Hint, hint) {
			t.Errorf("Do = %+v, want %s; %s", e, why, hint)
		}
	}
	distrusted("certificate signed by unknown authority", "check that this is the platform")
	c.HTTP = own
	at := c.URL
	c.URL = strings.Replace(at, "127.0.0.1", "localhost", 1)
	distrusted("valid for", "use the platform's own name")
	c.URL = at
	own.CloseIdleConnections()
	c.Clock.Machine = func() time.Time { return time.Now().Add(100 * 365 * 24 * time.Hour) }
	distrusted("has expired", "check this machine's clock")
	if _, err := NewHTTP([]byte("noise"), nil, c.Clock); err == nil {
		t.Error("noise was taken for a CA certificate")
	}
}
