// Package acme gets a certificate from an ACME authority (RFC 8555), by the
// challenge tls-alpn-01 (RFC 8737), and finds out when the authority wants it
// renewed (RFC 9773).
//
// It speaks the protocol, by the library of Caddy, and says what went wrong in
// the words of whoever runs the platform. When to ask, what to keep and how to
// answer the authority's connection is for package platform.
package acme

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// LetsEncrypt is the directory of the authority that most people use.
const LetsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"

// ALPN is the protocol of the connection by which an authority looks at a
// challenge.
const ALPN = acmez.ACMETLS1Protocol

// AskMost is the longest that an authority may have a platform wait before it
// asks again when to renew (RFC 9773, section 4.3.2).
const AskMost = 24 * time.Hour

// The limits of what an authority may do.
const (
	requestTimeout = 30 * time.Second
	pollTimeout    = 2 * time.Minute
	pollInterval   = 500 * time.Millisecond // unless the authority says another
	maxReply       = 1 << 20                // bytes
	maxTalk        = 16 << 20               // bytes of all answers of a session, with their headers
	maxRequests    = 600                    // of a session: two polls to their end are 480
	maxChain       = 64 << 10               // bytes, PEM
	maxCerts       = 10                     // in a chain
	maxRefusal     = 8 * 24 * time.Hour
	askEvery       = 6 * time.Hour
)

// An Authority issues certificates.
type Authority struct {
	Directory   string // URL, https
	Email       string // for the account; empty: none
	AcceptTerms bool
	Roots       *x509.CertPool // by which its own TLS certificate is checked; nil: the machine's
	UserAgent   string
}

// CheckDirectory refuses what is no address of a directory.
func CheckDirectory(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return fmt.Errorf("the directory %q is no address as in %s", s, LetsEncrypt)
	}
	return nil
}

// An Order is what a certificate is asked for with.
type Order struct {
	Host     string
	Account  *ecdsa.PrivateKey // the account is made when the authority does not know it
	Key      *ecdsa.PrivateKey // of the certificate
	Replaces *x509.Certificate // nil: none
	// Present has ChallengeCertificate answered with this key authorization, by
	// whatever the authority connects to, from its return on.
	Present func(ctx context.Context, keyAuth string) error
}

// A Window is when a certificate is to be renewed.
type Window struct {
	Renew      time.Time // some time of those; zero: the authority does not say
	Start, End time.Time // that the authority wishes
	Ask        time.Time // when to ask again
}

// A session is one conversation with an authority.
type session struct {
	*acme.Client
	guard *guard
}

func (a *Authority) begin() *session {
	g := &guard{left: maxTalk, next: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: a.Roots},
		ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 64 << 10}}
	c := &http.Client{Transport: g, Timeout: requestTimeout, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // an authority's answers lead where they say
	}}
	return &session{&acme.Client{Directory: a.Directory, HTTPClient: c, UserAgent: a.UserAgent, PollInterval: pollInterval, PollTimeout: pollTimeout}, g}
}

func (s *session) end() { s.guard.next.CloseIdleConnections() }

// A noDirectory error is of what was found at the directory's address.
type noDirectory struct{ error }

// Unwrap returns the cause.
func (e noDirectory) Unwrap() error { return e.error }

func (s *session) directory(ctx context.Context) (acme.Directory, error) {
	d, err := s.GetDirectory(ctx)
	if err != nil {
		err = noDirectory{err}
	}
	return d, err
}

// Terms returns the address of the authority's terms, or nothing if it has none.
func (a *Authority) Terms(ctx context.Context) (string, error) {
	s := a.begin()
	defer s.end()
	d, err := s.directory(ctx)
	if err != nil {
		return "", a.explain(err, "", s.guard)
	}
	if d.Meta == nil {
		return "", nil
	}
	return quoted(d.Meta.TermsOfService), nil
}

// Obtain gets a certificate: the chain, DER, the certificate first. An error is
// a *Failure, unless it is Present's.
func (a *Authority) Obtain(ctx context.Context, o Order) ([][]byte, Window, error) {
	s := a.begin()
	defer s.end()
	chain, w, err := s.obtain(ctx, a, o)
	if f, ok := errors.AsType[*presenting](err); ok {
		return nil, w, f.error
	}
	if err != nil {
		return nil, w, a.explain(err, o.Host, s.guard)
	}
	return chain, w, nil
}

// A presenting error is that of Present.
type presenting struct{ error }

func (s *session) obtain(ctx context.Context, a *Authority, o Order) ([][]byte, Window, error) {
	var w Window
	dir, err := s.directory(ctx)
	if err != nil {
		return nil, w, err
	}
	if dir.Meta != nil && dir.Meta.TermsOfService != "" && !a.AcceptTerms {
		// Only an account that is there can go on without it.
		if _, err := s.GetAccount(ctx, acme.Account{PrivateKey: o.Account}); err != nil {
			if p, ok := problemOf(err); ok && p.Type == acme.ProblemTypeAccountDoesNotExist {
				return nil, w, &Failure{Msg: "the authority's terms were not accepted", Fix: "read them at " + quoted(dir.Meta.TermsOfService) + ", and give --acme-accept-terms"}
			}
			return nil, w, err
		}
	}
	var contact []string
	if a.Email != "" {
		contact = []string{"mailto:" + a.Email}
	}
	// An account that the authority knows is returned as it is there.
	account, err := s.NewAccount(ctx, acme.Account{PrivateKey: o.Account, Contact: contact, TermsOfServiceAgreed: a.AcceptTerms})
	if err != nil {
		return nil, w, err
	}
	if account.Status != acme.StatusValid {
		return nil, w, &Failure{Msg: "the account at the authority is " + account.Status, Fix: fixAccount}
	}
	if contact != nil && !slices.Equal(account.Contact, contact) {
		account = acme.Account{Status: account.Status, Contact: contact, Location: account.Location, PrivateKey: o.Account}
		if account, err = s.UpdateAccount(ctx, account); err != nil {
			return nil, w, err
		}
	}
	order := acme.Order{Identifiers: []acme.Identifier{{Type: "dns", Value: o.Host}}}
	if o.Replaces != nil && dir.RenewalInfo != "" {
		if order.Replaces, err = acme.ARIUniqueIdentifier(o.Replaces); err != nil {
			return nil, w, err
		}
	}
	made, err := s.NewOrder(ctx, account, order)
	if err != nil && order.Replaces != "" && !refusedOtherwise(err) {
		// It has been replaced already, is of an account before this one, or the
		// authority no longer knows it.
		order.Replaces = ""
		made, err = s.NewOrder(ctx, account, order)
	}
	if err != nil {
		return nil, w, err
	}
	for _, at := range made.Authorizations {
		if err := s.authorize(ctx, account, at, o.Present); err != nil {
			return nil, w, err
		}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{o.Host}}, o.Key)
	if err != nil {
		return nil, w, err
	}
	if made, err = s.FinalizeOrder(ctx, account, made, csr); err != nil {
		return nil, w, err
	}
	got, err := s.GetCertificateChain(ctx, account, made.Certificate)
	if err != nil {
		return nil, w, err
	}
	if len(got) == 0 {
		return nil, w, errors.New("the authority gives no certificate")
	}
	chain, err := parseChain(got[0].ChainPEM, o.Host, &o.Key.PublicKey, time.Now())
	if err == nil && got[0].RenewalInfo != nil {
		w = window(*got[0].RenewalInfo)
	}
	return chain, w, err
}

// refusedOtherwise reports whether an order was refused for something else than
// the certificate that it is to replace.
func refusedOtherwise(err error) bool {
	p, ok := problemOf(err)
	return !ok || p.Type != acme.ProblemTypeAlreadyReplaced && p.Type != acme.ProblemTypeMalformed && p.Type != acme.ProblemTypeUnauthorized && p.Status != http.StatusNotFound && p.Status != http.StatusConflict
}

// authorize proves that the host is this platform's.
func (s *session) authorize(ctx context.Context, account acme.Account, at string, present func(context.Context, string) error) error {
	z, err := s.GetAuthorization(ctx, account, at)
	if err != nil || z.Status == acme.StatusValid {
		return err
	}
	i := slices.IndexFunc(z.Challenges, func(c acme.Challenge) bool { return c.Type == acme.ChallengeTypeTLSALPN01 })
	if i < 0 {
		return &Failure{Msg: "the authority does not offer the challenge tls-alpn-01", Fix: "turn it on there, or give another --acme-directory"}
	}
	if err := present(ctx, z.Challenges[i].KeyAuthorization); err != nil {
		return &presenting{err}
	}
	if _, err := s.InitiateChallenge(ctx, account, z.Challenges[i]); err != nil {
		return err
	}
	_, err = s.PollAuthorization(ctx, account, z)
	return err
}

// RenewalInfo asks when a certificate is to be renewed.
func (a *Authority) RenewalInfo(ctx context.Context, leaf *x509.Certificate) (Window, error) {
	s := a.begin()
	defer s.end()
	d, err := s.directory(ctx)
	if err == nil && d.RenewalInfo == "" {
		return Window{Ask: time.Now().Add(AskMost)}, nil
	}
	var r acme.RenewalInfo
	if err == nil {
		r, err = s.GetRenewalInfo(ctx, leaf)
	}
	if err != nil {
		return Window{}, a.explain(err, "", s.guard)
	}
	return window(r), nil
}

// window is what the authority says, asked again neither all the time nor never.
func window(r acme.RenewalInfo) Window {
	now := time.Now()
	w := Window{Ask: now.Add(askEvery)}
	if r.RetryAfter != nil {
		w.Ask = now.Add(min(max(r.RetryAfter.Sub(now), time.Minute), AskMost))
	}
	if r.HasWindow() {
		w.Renew, w.Start, w.End = r.SelectedTime, r.SuggestedWindow.Start, r.SuggestedWindow.End
	}
	return w
}

// parseChain takes the chain that an authority gives: the certificate is for
// host and key and good now, and what follows are certificates.
func parseChain(text []byte, host string, key *ecdsa.PublicKey, now time.Time) ([][]byte, error) {
	if len(text) > maxChain {
		return nil, errors.New("the chain of the authority is too long")
	}
	var chain [][]byte
	for rest := text; len(bytes.TrimSpace(rest)) > 0; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil || b.Type != "CERTIFICATE" || len(chain) == maxCerts {
			return nil, errors.New("the chain of the authority is no chain of certificates")
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("the chain of the authority: %w", err)
		}
		if len(chain) == 0 {
			if !key.Equal(c.PublicKey) {
				return nil, errors.New("the authority's certificate is of another key")
			}
			if err := c.VerifyHostname(host); err != nil {
				return nil, fmt.Errorf("the authority's certificate: %w", err)
			}
			if now.Before(c.NotBefore) || now.After(c.NotAfter) {
				return nil, &Failure{Msg: fmt.Sprintf("the authority's new certificate is good from %s to %s, and this machine's clock says %s",
					c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)), Fix: fixClock}
			}
		}
		chain = append(chain, b.Bytes)
	}
	if len(chain) == 0 {
		return nil, errors.New("the chain of the authority is empty")
	}
	return chain, nil
}

// ChallengeCertificate is what answers an authority that looks at a challenge
// for host.
func ChallengeCertificate(host, keyAuth string) (*tls.Certificate, error) {
	return acmez.TLSALPN01ChallengeCert(acme.Challenge{Identifier: acme.Identifier{Type: "dns", Value: host}, KeyAuthorization: keyAuth})
}

// errTalk ends a session with an authority that is never done.
var errTalk = errors.New("it leads on and on")

// A guard lets through only what goes by TLS, caps each answer and all of them
// together, and keeps until when the authority does not want to be asked.
type guard struct {
	next *http.Transport

	mu       sync.Mutex
	until    time.Time
	requests int
	left     int // bytes of answers
}

// spend counts what an authority was asked, and what it has said, in bytes.
func (g *guard) spend(requests, bytes int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.requests += requests
	if g.left -= bytes; g.left < 0 || g.requests > maxRequests {
		return errTalk
	}
	return nil
}

// An answer is counted as it is read.
type answer struct {
	io.ReadCloser
	guard *guard
}

// Read implements io.Reader.
func (a answer) Read(b []byte) (int, error) {
	n, err := a.ReadCloser.Read(b)
	if spent := a.guard.spend(0, n); spent != nil {
		err = spent
	}
	return n, err
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, fmt.Errorf("the authority leads to %q, which is not https", r.URL.Redacted())
	}
	if err := g.spend(1, 0); err != nil {
		return nil, err
	}
	resp, err := g.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	headers := 0
	for name, values := range resp.Header {
		for _, v := range values {
			headers += len(name) + len(v)
		}
	}
	if err := g.spend(0, headers); err != nil {
		resp.Body.Close()
		return nil, err
	}
	resp.Body = answer{http.MaxBytesReader(nil, resp.Body, maxReply), g}
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
		g.mu.Lock()
		g.until = refusal(resp.Header.Get("Retry-After"), time.Now())
		g.mu.Unlock()
	}
	return resp, nil
}

// refusal is the time of a Retry-After (RFC 9110, 10.2.3), no further than
// maxRefusal, or zero.
func refusal(header string, now time.Time) time.Time {
	if header == "" {
		return time.Time{}
	}
	t, err := http.ParseTime(header)
	if err != nil {
		n, err := strconv.ParseUint(header, 10, 64)
		if err != nil && !errors.Is(err, strconv.ErrRange) {
			return time.Time{}
		}
		t = now.Add(time.Duration(min(n, uint64(maxRefusal/time.Second))) * time.Second)
	}
	if most := now.Add(maxRefusal); t.After(most) {
		return most
	}
	return t
}
