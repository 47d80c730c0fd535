package api

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"sft"
)

// maxReply caps what is read of a reply, in bytes.
const maxReply = 16 << 20

// A Clock is this machine's clock, corrected by what the platform said of its
// own. The zero Clock is the machine's.
type Clock struct {
	Machine func() time.Time // nil: time.Now
	offset  atomic.Int64     // nanoseconds to add
}

// Now returns the corrected time.
func (c *Clock) Now() time.Time { return c.machine().Add(c.Offset()) }

// Offset is what is added to the machine's clock.
func (c *Clock) Offset() time.Duration { return time.Duration(c.offset.Load()) }

func (c *Clock) machine() time.Time {
	if c.Machine != nil {
		return c.Machine()
	}
	return time.Now()
}

// Correct takes platform as the time that it is now, from a verified
// connection only. It refuses more than MaxSkew, naming both clocks.
func (c *Clock) Correct(platform time.Time) error {
	here := c.machine()
	offset := platform.Sub(here)
	if offset > MaxSkew || offset < -MaxSkew {
		return &sft.Error{Code: sft.ClockSkew,
			Msg: fmt.Sprintf("this machine's clock says %s, the platform's says %s",
				here.UTC().Format(time.RFC3339), platform.UTC().Format(time.RFC3339)),
			Hint: "set the clock that is wrong; up to 15 minutes are put up with"}
	}
	c.offset.Store(int64(offset))
	return nil
}

// TimeHeader is the platform's time when it answered, in each of its replies
// (RFC 3339, nanoseconds).
const TimeHeader = "Sft-Time"

// maxDrift is how far a corrected clock may be from the platform's.
const maxDrift = 2 * time.Second

// follow corrects the clock by a reply, if that is worth it. A clock that is
// too far off to be corrected is left alone: the platform refuses it, with the
// time in its answer.
func (c *Clock) follow(h http.Header) {
	t, err := time.Parse(time.RFC3339Nano, h.Get(TimeHeader))
	if err != nil {
		return
	}
	if d := t.Sub(c.Now()); d > maxDrift || d < -maxDrift {
		_ = c.Correct(t)
	}
}

// A Client calls the platform as one device: an enrolled client, an enrolled
// agent, or, without a Key, nobody yet. Its methods may be used concurrently.
type Client struct {
	URL    string            // of the platform, without a path
	Key    *ecdsa.PrivateKey // the device key; nil sends unsigned requests
	Issuer string            // "client:ID" or "server:ID"
	// Keys, if it is set, returns the key of each request in the place of Key. It
	// may wait until it is known.
	Keys func(context.Context) (*ecdsa.PrivateKey, error)
	// Audience is the URL that the platform gave when the device enrolled;
	// empty means URL.
	Audience  string
	UserAgent string
	Clock     *Clock
	HTTP      *http.Client
}

// CheckURL refuses what cannot be a platform's URL: it must be https, with a
// host that a certificate can be for, and no path, query, fragment or user. It
// returns the URL as it is compared and stored.
func CheckURL(raw string) (string, error) {
	refuse := func(why, hint string) (string, error) {
		return "", &sft.Error{Code: sft.Invalid, Msg: sft.Quote(raw) + " is not a platform's URL" + why, Hint: hint}
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || strings.HasSuffix(u.Host, ":") || u.User != nil ||
		(u.Path != "" && u.Path != "/") || strings.ContainsAny(raw, "?#") || u.Opaque != "" {
		return refuse("", "give it as https://HOST or https://HOST:PORT")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 || p[0] == '0' {
			return refuse(": there is no port "+sft.Quote(p), "give a port from 1 to 65535, or none for 443")
		}
	}
	switch host := u.Hostname(); {
	case strings.ContainsFunc(host, func(r rune) bool { return r > unicode.MaxASCII }):
		return refuse(": the name is not in ASCII", "give the name as it is in DNS and in certificates, as in https://xn--bcher-kva.example")
	case !isHost(host):
		return refuse(": "+sft.Quote(host)+" names no host", "give a name of letters, digits, \"-\" and \".\", or an address of the platform")
	}
	return "https://" + strings.ToLower(u.Host), nil
}

// isHost reports whether s is an address, or a name as in DNS.
func isHost(s string) bool {
	if ip, err := netip.ParseAddr(s); err == nil {
		return !ip.IsUnspecified()
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 || strings.ContainsFunc(label, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
		}) {
			return false
		}
	}
	return len(s) <= 253
}

// NewHTTP returns an HTTP client that trusts the certificates in ca (DER of
// one CA) alone, or those of the system when ca is empty. It goes through
// proxy when that is not nil, else as HTTPS_PROXY says.
func NewHTTP(ca []byte, proxy *url.URL, clock *Clock) (*http.Client, error) {
	t := newTransport(proxy, clock)
	if len(ca) > 0 {
		cert, err := x509.ParseCertificate(ca)
		if err != nil {
			return nil, fmt.Errorf("read the platform's CA certificate: %w", err)
		}
		pool := x509.NewCertPool()
		pool.AddCert(cert)
		t.TLSClientConfig.RootCAs = pool
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}

// newTransport returns the way to the platform: through proxy, or, where that
// is nil, as HTTPS_PROXY says.
func newTransport(proxy *url.URL, clock *Clock) *http.Transport {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, Time: clock.Now},
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 75 * time.Second, // a state request hangs for 55 s
		ForceAttemptHTTP2:     true,
		MaxIdleConns:          4,
		IdleConnTimeout:       90 * time.Second,
	}
	t.OnProxyConnectResponse = func(_ context.Context, via *url.URL, _ *http.Request, r *http.Response) error {
		if r.StatusCode != http.StatusOK {
			return fmt.Errorf("the proxy %s says %s", via.Host, r.Status)
		}
		return nil
	}
	if proxy != nil {
		t.Proxy = http.ProxyURL(proxy)
		// A proxy reached by TLS proves itself to the system; TLSClientConfig
		// is for the platform behind it.
		t.DialTLSContext = (&tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, Time: clock.Now}}).DialContext
	}
	return t
}

// ParseFingerprint returns the SHA-256 that a fingerprint of a CA stands for: 64
// hexadecimal digits, with "sha256:" before them and colons between them or not.
// None is nil. The error is for the person who gave it.
func ParseFingerprint(fingerprint string) ([]byte, error) {
	if fingerprint == "" {
		return nil, nil
	}
	sum, err := hex.DecodeString(strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(fingerprint), "sha256:"), ":", ""))
	if err != nil || len(sum) != sha256.Size {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "the CA fingerprint is not 64 hexadecimal digits",
			Hint: "copy it from the line that \"sft-platform init\" printed"}
	}
	return sum, nil
}

// FetchCA connects to the platform at rawURL and returns its CA certificate
// (DER), which must have the given fingerprint (ParseFingerprint) and must have
// signed the certificate that the platform serves. With no fingerprint it
// returns nothing where the system trusts the platform, and an error with a
// hint where it does not: an unknown CA is never taken on first use. It goes
// through proxy as NewHTTP does.
func FetchCA(ctx context.Context, rawURL, fingerprint string, proxy *url.URL, clock *Clock) ([]byte, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	want, err := ParseFingerprint(fingerprint)
	if err != nil {
		return nil, err
	}
	var ca []byte
	t := newTransport(proxy, clock)
	t.DisableKeepAlives = true
	if fingerprint != "" {
		// The chain is verified below, against the one CA that was named.
		t.TLSClientConfig.InsecureSkipVerify = true
		t.TLSClientConfig.VerifyConnection = func(cs tls.ConnectionState) error {
			pool := x509.NewCertPool()
			for _, c := range cs.PeerCertificates {
				if sum := sha256.Sum256(c.Raw); bytes.Equal(sum[:], want) {
					ca = c.Raw
					pool.AddCert(c)
				}
			}
			if ca == nil {
				return &sft.Error{Code: sft.Invalid, Msg: u.Host + " does not show the CA with this fingerprint",
					Hint: "compare the fingerprint with the one that \"sft-platform init\" printed; if it is right, somebody is between you and the platform"}
			}
			inter := x509.NewCertPool()
			for _, c := range cs.PeerCertificates[1:] {
				inter.AddCert(c)
			}
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: u.Hostname(), Roots: pool, Intermediates: inter, CurrentTime: clock.Now()})
			if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
				return &sft.Error{Code: sft.Invalid, Msg: u.Host + " has a certificate that the CA with this fingerprint did not sign", Err: err,
					Hint: "do not go on: somebody is between you and the platform"}
			}
			return err
		}
	}
	// The handshake is all that matters; what is answered does not.
	req, err := http.NewRequestWithContext(ctx, "HEAD", u.JoinPath("/v1/info").String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		if e, ok := errors.AsType[*sft.Error](err); ok {
			return nil, e
		}
		if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
			return nil, &sft.Error{Code: sft.Invalid, Msg: u.Host + " has a certificate by a CA that this machine does not know", Err: e,
				Hint: "if the platform has a CA of its own, add --ca-fingerprint with the value that \"sft-platform init\" printed"}
		}
		return nil, unreachable(rawURL, err)
	}
	resp.Body.Close()
	return ca, nil
}

// unreachable words why a request came to nothing. Where it answered, and its
// certificate is the reason, the network is not looked at for that.
func unreachable(base string, err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if hint := distrust(err); hint != "" {
		return &sft.Error{Code: sft.Unavailable, Msg: "the certificate that " + base + " shows is not trusted: " + strings.TrimPrefix(err.Error(), "tls: failed to verify certificate: "), Err: err, Hint: hint}
	}
	return &sft.Error{Code: sft.Unavailable, Msg: "no answer from the platform at " + base + ": " + err.Error(), Err: err,
		Hint: "check the network and that the platform runs"}
}

// distrust says what to do about a certificate of the platform that does not
// verify; nothing if err is another failure, or a proxy's.
func distrust(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "proxyconnect" {
		return ""
	}
	invalid, _ := errors.AsType[x509.CertificateInvalidError](err)
	_, name := errors.AsType[x509.HostnameError](err)
	_, other := errors.AsType[x509.UnknownAuthorityError](err)
	_, failed := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case invalid.Cert != nil && invalid.Reason == x509.Expired:
		return "check this machine's clock; if it is right, have the platform's certificate renewed"
	case name:
		return "use the platform's own name, or have its certificate made for this one"
	case other:
		return "check that this is the platform, and no proxy that opens TLS; if its CA is another one by now, enrol again with --ca-fingerprint, or have this machine trust the CA"
	case failed || invalid.Cert != nil:
		return "have the platform's certificate looked at: \"sft-platform doctor\" there says what is wrong"
	}
	return ""
}

// Do sends in as JSON and decodes the reply into out; either may be nil. A
// refusal comes back as *sft.Error. When the platform says that the clocks
// differ, Do corrects the clock, and asks once more if it signs; it does so too
// when the key that it signed with is another one by now.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	key, err := c.key(ctx)
	if err != nil {
		return err
	}
	status, reply, err := c.once(ctx, key, method, path, body)
	if err != nil {
		return err
	}
	if status >= 400 {
		e := decodeError(status, reply)
		if e.Error.Code == sft.ClockSkew && !e.Time.IsZero() {
			if err := c.Clock.Correct(e.Time); err != nil {
				return err
			}
		}
		signed := key
		if key, err = c.key(ctx); err != nil {
			return err
		}
		if key == nil || e.Error.Code != sft.ClockSkew && (e.Error.Code != sft.SignIn || key == signed) {
			return &e.Error
		}
		if status, reply, err = c.once(ctx, key, method, path, body); err != nil {
			return err
		}
		if status >= 400 {
			e = decodeError(status, reply)
			return &e.Error
		}
	}
	if status >= 300 {
		return &sft.Error{Code: sft.Internal, Msg: fmt.Sprintf("the platform answered with status %d", status),
			Hint: "check the platform's URL"}
	}
	if out == nil || len(reply) == 0 {
		return nil
	}
	if err := json.Unmarshal(reply, out); err != nil {
		return &sft.Error{Code: sft.Internal, Msg: "the platform's answer is not readable", Err: err,
			Hint: "check that the URL is a platform's and its version is not older than this program's"}
	}
	return nil
}

// key returns the key to sign with now, or nothing.
func (c *Client) key(ctx context.Context) (*ecdsa.PrivateKey, error) {
	if c.Keys != nil {
		return c.Keys(ctx)
	}
	return c.Key, nil
}

func (c *Client) once(ctx context.Context, key *ecdsa.PrivateKey, method, path string, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.URL+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("User-Agent", c.UserAgent)
	if key != nil {
		aud := c.Audience
		if aud == "" {
			aud = c.URL
		}
		h, err := Sign(key, c.Issuer, aud, method, req.URL.RequestURI(), body, c.Clock.Now())
		if err != nil {
			return 0, nil, err
		}
		req.Header.Set("Authorization", h)
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return 0, nil, ctx.Err()
		}
		return 0, nil, unreachable(c.URL, err)
	}
	defer resp.Body.Close()
	if key != nil {
		c.Clock.follow(resp.Header)
	}
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return 0, nil, unreachable(c.URL, err)
	}
	if len(reply) > maxReply {
		return 0, nil, &sft.Error{Code: sft.Internal, Msg: "the platform's answer is too long", Hint: "check the platform's URL"}
	}
	return resp.StatusCode, reply, nil
}

// decodeError reads a refusal. What is not one of the platform's own, such as
// a proxy's page, becomes an error that says so.
func decodeError(status int, body []byte) ErrorReply {
	var e ErrorReply
	if json.Unmarshal(body, &e) == nil && e.Error.Code != "" {
		return e
	}
	code := sft.Internal
	if status >= 502 && status <= 504 {
		code = sft.Unavailable
	}
	return ErrorReply{Error: sft.Error{Code: code, Msg: fmt.Sprintf("something that is not the platform answered with status %d", status),
		Hint: "check the platform's URL and the proxy"}}
}
