package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/mholt/acmez/v3/acme"
)

// A Failure is why there is no certificate.
type Failure struct {
	Msg   string    // what failed
	Fix   string    // what to do, as an order
	Until time.Time // the authority refuses all tries until then; zero: it has not said so
	Err   error     // the cause, for the log; nil: Msg has all
}

// Error is Msg.
func (f *Failure) Error() string { return f.Msg }

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Err }

const (
	fixClock   = "set this machine's clock, and keep it right by NTP"
	fixReach   = "check the network, the firewall and, if there is one, HTTPS_PROXY: the platform connects to the authority by HTTPS"
	fixAccount = "ask the authority why; if the account does not come back, register another by \"sft-platform rotate acme-account\", or give another --acme-directory"
	fixReturn  = "nothing here: it is tried again"
)

// maxDetail caps what is repeated of an authority's words, in bytes.
const maxDetail = 500

// quoted is what an authority says, on one line.
func quoted(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxDetail {
		s = strings.ToValidUTF8(s[:maxDetail], "") + "…"
	}
	return strings.TrimSuffix(strings.TrimSpace(s), ".")
}

// problemOf finds what the authority itself has said.
func problemOf(err error) (acme.Problem, bool) {
	if p, ok := errors.AsType[acme.Problem](err); ok {
		return p, true
	}
	if p, ok := errors.AsType[*acme.Problem](err); ok && p != nil {
		return *p, true
	}
	return acme.Problem{}, false
}

// explain says what failed, and what to do about it.
func (a *Authority) explain(err error, host string, g *guard) *Failure {
	g.mu.Lock()
	until := g.until
	g.mu.Unlock()
	f, ok := errors.AsType[*Failure](err)
	if !ok {
		if p, said := problemOf(err); said {
			f = a.said(p, host, until)
		} else {
			f = a.unsaid(err)
		}
		f.Err = err
	}
	f.Until = until
	return f
}

// said explains a problem of RFC 8555, section 6.7.
func (a *Authority) said(p acme.Problem, host string, until time.Time) *Failure {
	detail := quoted(p.Detail)
	for _, s := range p.Subproblems {
		detail += "; " + quoted(s.Detail)
	}
	detail = quoted(detail)
	at := "port 443 of " + host
	port := "have " + at + " lead to --listen, through every firewall and with nothing before it that ends TLS; mind every address that the name has, IPv6 too"
	f := func(msg, fix string) *Failure { return &Failure{Msg: msg + ": " + detail, Fix: fix} }
	switch strings.TrimPrefix(p.Type, acme.ProblemTypeNamespace) {
	case "dns":
		return f("the authority finds no address of "+host, "have "+host+" resolve, by a public DNS record if the authority is a public one, to this platform")
	case "connection":
		return f("the authority does not reach "+at, port)
	case "tls":
		return f("the authority gets no TLS connection for its challenge at "+at, port)
	case "incorrectResponse":
		return f("the authority does not find this platform at "+at, port)
	case "unauthorized":
		if _, ok := p.Resource.(acme.Authorization); ok {
			return f("the authority does not find this platform at "+at, port)
		}
		return f("the authority refuses the account", fixAccount)
	case "caa":
		return f("a CAA record of "+host+" keeps the authority from issuing", "add the authority to the CAA records of the domain")
	case "rateLimited":
		fix := "wait: it is tried again"
		if !until.IsZero() {
			fix += " after " + until.UTC().Format(time.RFC3339)
		}
		return f("the authority has a limit, which is reached", fix+"; to try things out, use its directory for staging")
	case "rejectedIdentifier", "unsupportedIdentifier":
		return f("the authority issues nothing for "+host, "check that the platform's URL has a name that the authority may issue for")
	case "externalAccountRequired":
		return f("the authority takes only accounts that it was told of (external account binding), which the platform does not do", "give another --acme-directory")
	case "invalidContact", "unsupportedContact":
		return f("the authority refuses the address "+a.Email, "correct --acme-email")
	case "userActionRequired":
		return f("the authority wants something of you", "do what it says at "+quoted(p.Instance)+", and give --acme-accept-terms if it is about its terms")
	case "accountDoesNotExist":
		return f("the authority does not know the account", fixReturn)
	}
	if p.Status >= 500 {
		return f("the authority is not well", fixReturn)
	}
	// Some say malformed where others say dns or connection.
	if _, ok := p.Resource.(acme.Authorization); ok {
		return f("the authority does not find this platform at "+at, "have "+host+" resolve to this platform; "+port)
	}
	return f("the authority refuses", "do what it says; the log has all of it")
}

// unsaid explains what failed before the authority had a say.
func (a *Authority) unsaid(err error) *Failure {
	host := a.Directory
	if u, perr := url.Parse(a.Directory); perr == nil {
		host = u.Host
	}
	invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](err)
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, other := errors.AsType[x509.HostnameError](err)
	lookup, isLookup := errors.AsType[*net.DNSError](err)
	_, isTLS := errors.AsType[tls.RecordHeaderError](err)
	_, isOp := errors.AsType[*net.OpError](err)
	_, isURL := errors.AsType[*url.Error](err)
	_, isDirectory := errors.AsType[noDirectory](err)
	switch {
	case errors.Is(err, errTalk):
		return &Failure{Msg: "the authority " + host + " leads on and on, or says too much", Fix: "check --acme-directory; the log has the cause"}
	case isInvalid && invalid.Reason == x509.Expired:
		return &Failure{Msg: "the certificate of " + host + " is not good now: " + quoted(invalid.Error()), Fix: fixClock + "; if it is right, the authority has to renew its own certificate"}
	case unknown || isInvalid:
		return &Failure{Msg: "this machine does not trust " + host + ": " + quoted(rootCause(err)), Fix: "give the root of a private authority to --acme-ca; for a public one, install the machine's CA certificates (ca-certificates)"}
	case other:
		return &Failure{Msg: host + " is not who it says: " + quoted(rootCause(err)), Fix: "check --acme-directory"}
	case isLookup:
		return &Failure{Msg: "the name of the authority does not resolve: " + quoted(lookup.Error()), Fix: "check --acme-directory, and this machine's DNS"}
	case isTLS:
		return &Failure{Msg: host + " does not speak TLS", Fix: "check --acme-directory"}
	case errors.Is(err, context.DeadlineExceeded):
		return &Failure{Msg: "the authority " + host + " took too long", Fix: fixReach}
	case isOp || isURL:
		return &Failure{Msg: "the authority " + host + " is not reached: " + quoted(rootCause(err)), Fix: fixReach}
	case isDirectory:
		return &Failure{Msg: a.Directory + " is no ACME directory: " + quoted(rootCause(err)), Fix: fmt.Sprintf("check --acme-directory; Let's Encrypt's is %s", LetsEncrypt)}
	}
	return &Failure{Msg: quoted(err.Error()), Fix: fixReturn}
}

// rootCause is the innermost error's text.
func rootCause(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err.Error()
		}
		err = next
	}
}
