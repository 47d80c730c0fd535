// Package export sends sealed audit events to where else they are to be: a
// file of JSON lines, a syslog receiver by TLS, a webhook.
//
// Each sink sends one batch at a time and says when all of it is there; who
// calls it keeps count, waits and tries again. So whatever is sent may arrive
// more than once, in order each time, and a receiver tells by the number. What
// a receiver does is bounded: by the deadline of the context, and by how much
// of its answer is read.
package export

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sft"
	"sft/internal/audit"
	"sft/internal/conf"
)

// A Sink is what Open returns; see platform.Sink.
type Sink interface {
	Name() string
	Send(ctx context.Context, b audit.Batch) error
}

// Options are what the sinks share.
type Options struct {
	Host   string         // the platform's own name, for syslog
	Roots  *x509.CertPool // who may say which receiver it is; nil: whom the machine trusts
	Secret sft.Secret     // signs webhooks: "whsec_" and base64 of 24 to 64 bytes
	Now    func() time.Time
	// Certificate is what a receiver is shown that asks who we are, read for each
	// connection. nil: nothing.
	Certificate func() (*tls.Certificate, error)
}

// ParseRoots reads the CA certificates of a PEM file.
func ParseRoots(pem []byte) (*x509.CertPool, error) {
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(pem) {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "the file of CA certificates has none", Hint: "give certificates as PEM"}
	}
	return p, nil
}

// ReadKeyPair reads a certificate chain and its key, both PEM. The key's file is
// private.
func ReadKeyPair(certificate, key string) (*tls.Certificate, error) {
	c, err := os.ReadFile(certificate)
	if err != nil {
		return nil, fmt.Errorf("read the certificate for the receivers of exports: %w", err)
	}
	k, err := conf.ReadPrivate(key)
	if err != nil {
		return nil, fmt.Errorf("read the key for the receivers of exports: %w", err)
	}
	pair, err := tls.X509KeyPair(c, k)
	if err != nil {
		return nil, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the certificate %s and the key %s are not a pair: %v", certificate, key, err),
			Hint: "give the chain, its own certificate first, and the key that this one was made for, without a passphrase, both as PEM"}
	}
	return &pair, nil
}

// Open returns the sink that to names: file:PATH, syslog+tls://HOST[:PORT] or
// https://HOST[:PORT]/PATH. It connects to nothing.
func Open(to string, o Options) (Sink, error) {
	if path, ok := strings.CutPrefix(to, "file:"); ok {
		if !filepath.IsAbs(path) || path != filepath.Clean(path) {
			return nil, &sft.Error{Code: sft.Invalid, Msg: "the export file:" + path + " has no usable path", Hint: "give a whole path, as in file:/var/lib/sft-platform/audit.jsonl"}
		}
		return &file{path}, nil
	}
	u, err := url.Parse(to)
	if err != nil || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
		// Not shown: it may hold a password.
		return nil, &sft.Error{Code: sft.Invalid, Msg: "an audit export is not readable", Hint: "use file:PATH, syslog+tls://HOST:PORT or https://HOST/PATH, without a user"}
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return nil, &sft.Error{Code: sft.Invalid, Msg: "the export to " + u.Hostname() + " has the port " + sft.Quote(p) + ", which there is not", Hint: "give a port from 1 to 65535"}
		}
	}
	tlsConf := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.Roots, ServerName: u.Hostname()}
	if o.Certificate != nil {
		tlsConf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return o.Certificate() }
	}
	switch u.Scheme {
	case "syslog+tls":
		if u.Path != "" || u.RawQuery != "" {
			return nil, &sft.Error{Code: sft.Invalid, Msg: "the export to " + u.Host + " has a path", Hint: "use syslog+tls://HOST:PORT"}
		}
		port := u.Port()
		if port == "" {
			port = "6514" // RFC 5425, 4.1
		}
		return &syslog{net.JoinHostPort(u.Hostname(), port), printable(o.Host, 255), tlsConf}, nil
	case "https":
		key, err := secretKey(o.Secret)
		if err != nil {
			return nil, err
		}
		return newWebhook(u, key, tlsConf, o.Now), nil
	}
	return nil, &sft.Error{Code: sft.Invalid, Msg: "an audit export goes to " + sft.Quote(u.Scheme) + ", which there is not", Hint: "use file:PATH, syslog+tls://HOST:PORT or https://HOST/PATH"}
}

// secretKey reads a secret of Standard Webhooks.
func secretKey(s sft.Secret) ([]byte, error) {
	const hint = `write one with (umask 077; echo "whsec_$(openssl rand -base64 32)" > FILE), and give the file as --audit-export-secret`
	text := strings.TrimSpace(s.Reveal())
	if text == "" {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "a webhook needs a secret", Hint: hint}
	}
	v, ok := strings.CutPrefix(text, "whsec_")
	key, err := base64.StdEncoding.DecodeString(v)
	if !ok || err != nil || len(key) < 24 || len(key) > 64 {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "the secret of the webhooks cannot be used: it is to be whsec_ and the base64 of 24 to 64 bytes", Hint: hint}
	}
	return key, nil
}

// printable is s as syslog's header takes it (RFC 5424, 6: PRINTUSASCII), or
// "-".
func printable(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < 33 || r > 126 {
			return -1
		}
		return r
	}, s)
	if s = s[:min(len(s), most)]; s == "" {
		return "-"
	}
	return s
}

// late says of an error that the time was up, if it was: what the network
// makes of it says less.
func late(ctx context.Context, err error) error {
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errors.New("the receiver did not take the batch in time")
	}
	return err
}
