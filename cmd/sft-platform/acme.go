package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/mail"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/acme"
	"sft/internal/platform"
)

// acmeFlags say by which ACME authority the platform's certificate is.
type acmeFlags struct {
	on          bool
	directory   string // URL
	email       string
	acceptTerms bool
	ca          string // file
}

func (a *acmeFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&a.on, "acme", false, "get and renew the certificate from an ACME authority, for a platform made with --public-certificate")
	f.BoolVar(&a.acceptTerms, "acme-accept-terms", false, "you have read the authority's terms, and accept them")
	f.StringVar(&a.directory, "acme-directory", acme.LetsEncrypt, "the authority's directory")
	f.StringVar(&a.email, "acme-email", "", "your address, for the authority")
	f.StringVar(&a.ca, "acme-ca", "", "PEM file with the root of a private authority (default: the machine's trust store)")
}

// check refuses what no authority can be asked with. given says that there is
// a certificate already.
func (a acmeFlags) check(given bool) error {
	if !a.on {
		return nil
	}
	if given {
		return errors.New("--acme gets a certificate, and --tls-cert gives one: leave one of them out")
	}
	if err := acme.CheckDirectory(a.directory); err != nil {
		return fmt.Errorf("--acme-directory: %w", err)
	}
	if m, err := mail.ParseAddress(a.email); a.email != "" && (err != nil || m.Address != a.email) {
		return fmt.Errorf("--acme-email is %q, which is no address as in ops@example.com", a.email)
	}
	return nil
}

// open returns the authority.
func (a acmeFlags) open() (*acme.Authority, error) {
	authority := &acme.Authority{Directory: a.directory, Email: a.email, AcceptTerms: a.acceptTerms, UserAgent: "sft-platform/" + sft.Version}
	if a.ca == "" {
		return authority, nil
	}
	b, err := os.ReadFile(a.ca)
	if err != nil {
		return nil, unread("the authority's root", "acme-ca", err)
	}
	authority.Roots = x509.NewCertPool()
	if !authority.Roots.AppendCertsFromPEM(b) {
		return nil, &sft.Error{Code: sft.Invalid, Msg: a.ca + " has no certificate in PEM", Hint: "give the authority's root as PEM with --acme-ca"}
	}
	return authority, nil
}

// acme looks at the certificate that the platform gets by itself. It asks no
// authority: what came of the last try is in the database.
func (x *examination) acme(ctx context.Context, p *platform.Platform, u *url.URL) {
	const step = "certificate"
	st, err := p.ACMEStatus(ctx, x.value("acme-directory"))
	if err != nil {
		x.fail(step, err, "put the master key of this database into the data folder")
		return
	}
	last := ""
	if st.Problem != "" {
		last = fmt.Sprintf("at %s: %s", st.FailedAt.UTC().Format(time.RFC3339), st.Problem)
	}
	if st.Certificate == nil {
		if last == "" {
			x.warn(step, "none yet", "start the platform, and look here again")
			return
		}
		x.fail(step, errors.New("there is none yet: "+last), st.Fix)
		return
	}
	leaf, now, untrusted := st.Certificate.Leaf, x.now(), x.distrust(*st.Certificate)
	good := fmt.Sprintf("for %s, good until %s", strings.Join(leaf.DNSNames, ", "), leaf.NotAfter.UTC().Format(time.RFC3339))
	switch {
	case leaf.VerifyHostname(u.Hostname()) != nil:
		x.fail(step, fmt.Errorf("it is for %s, and people and servers come to %s", strings.Join(leaf.DNSNames, ", "), u.Hostname()), "start the platform, which gets another")
	case now.After(leaf.NotAfter) && last != "":
		x.fail(step, errors.New("it is "+good+"; it was not renewed "+last), st.Fix)
	case now.Before(leaf.NotBefore) || now.After(leaf.NotAfter):
		x.fail(step, errors.New("it is "+good+", from "+leaf.NotBefore.UTC().Format(time.RFC3339)), "start the platform, or set the clock")
	case last != "":
		x.warn(step, good+"; it was not renewed "+last, st.Fix)
	case untrusted != nil:
		x.warn(step, good+"; this machine does not trust it: "+untrusted.Error(), "see that all machines trust the authority, or give an --acme-directory that they trust")
	default:
		x.ok(step, good+", to be renewed at "+st.RenewAt.UTC().Format(time.RFC3339))
	}
}
