package platform

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sft"
	"sft/internal/acme"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/store"
)

// The names under which keys for an ACME authority are sealed.
const (
	acmeAccount     = "acme_account"
	acmeCertificate = "acme_certificate"
)

// The times of a certificate by ACME.
const (
	acmeEvery     = time.Minute            // to look what is due, and what another platform has got
	acmeTimeout   = 5 * time.Minute        // for one try
	acmeHold      = 2 * acmeTimeout        // before another platform may try
	acmeSkew      = 10 * time.Minute       // what clocks may differ by; what is later is by one that was ahead
	acmeAsk       = 30 * time.Second       // to ask when to renew
	acmeRetry     = 5 * time.Minute        // after a failure; then twice as long, and so on
	acmeMost      = 4 * time.Hour          // between two tries
	acmeSettle    = time.Hour              // the authority's wish to renew is not heard before
	acmeStore     = 5 * time.Second        // for a platform that stops, to store what came of a try
	challengeKept = 250 * time.Millisecond // how long a platform goes by the challenge that it has read
)

// An ACME keeps the platform's certificate, by an ACME authority. What it has
// is in the database, the keys sealed, so that all platforms on it serve one
// certificate, and a restored one serves its own at once. Nobody's request
// begins an order: what does is the time alone.
type ACME struct {
	p         *Platform
	authority *acme.Authority
	host      string

	current  atomic.Pointer[tls.Certificate] // nil: none yet
	failures atomic.Int64
	began    atomic.Bool // a round was done

	mu     sync.Mutex       // of what follows
	keyOf  string           // the challenge, as it was read; empty: none
	answer *tls.Certificate // to it
	readAt time.Time        // when the reading began
}

// ErrOwnCA refuses a certificate by an ACME authority for a platform whose CA is
// in enrollment tokens.
var ErrOwnCA = &sft.Error{Code: sft.Invalid, Msg: "the platform has a CA of its own, which its agents and clients go by; a certificate by ACME would be refused by them",
	Hint: "start it without --acme, or make a platform with \"sft-platform init --public-certificate\""}

// UseACME has the platform's certificate be one by an authority. Run of what it
// returns gets it. It asks the authority only for its terms, and only as long as
// there is no account.
func (p *Platform) UseACME(ctx context.Context, authority *acme.Authority) (*ACME, error) {
	a := &ACME{p: p, authority: authority}
	known := false
	if err := p.DB.Read(ctx, func(tx *store.Tx) error {
		r, err := p.acmeRecord(tx, authority.Directory)
		if known = err == nil; errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err == nil {
			a.takeOrLog(r)
		}
		return err
	}); err != nil {
		return nil, err
	}
	var err error
	if a.host, err = p.acmeHost(); err != nil {
		return nil, err
	}
	if !known && !authority.AcceptTerms {
		asking, cancel := context.WithTimeout(ctx, acmeAsk)
		defer cancel()
		terms, err := authority.Terms(asking)
		if err != nil { // its loop says so, too, and goes on
			p.Log.Warn("ask the ACME authority for its terms", "directory", authority.Directory, "error", err)
		} else if terms != "" {
			return nil, &sft.Error{Code: sft.Invalid, Msg: "the ACME authority has terms, which have to be accepted", Hint: "read " + terms + ", then give --acme-accept-terms"}
		}
	}
	p.ACME = a
	return a, nil
}

// acmeRecord is what there is of an authority, on a platform that may use one.
func (p *Platform) acmeRecord(tx *store.Tx, directory string) (store.ACME, error) {
	if own, err := p.caFingerprint(tx); err != nil || own != "" {
		return store.ACME{}, cmp.Or(err, error(ErrOwnCA))
	}
	return tx.ACME(directory)
}

// acmeHost is the name that the certificate is for.
func (p *Platform) acmeHost() (string, error) {
	u, err := url.Parse(p.URL)
	if err != nil {
		return "", err
	}
	if net.ParseIP(u.Hostname()) != nil {
		return "", &sft.Error{Code: sft.Invalid, Msg: "--acme is for a platform with a name, and this one is " + p.URL, Hint: "make a platform with --url https://NAME, or give --tls-cert and --tls-key"}
	}
	return strings.ToLower(u.Hostname()), nil
}

// take serves the certificate of a record, if it has one that is not served yet.
func (a *ACME) take(r store.ACME) error {
	if len(r.Chain) == 0 {
		return nil
	}
	if c := a.current.Load(); c != nil && slices.Equal(slices.Concat(c.Certificate...), r.Chain) {
		return nil
	}
	c, err := openACME(a.p.Sealer, r)
	if err != nil {
		return err
	}
	a.current.Store(c)
	return nil
}

// takeOrLog reports whether take had nothing to say against a certificate.
// Another is ordered in the place of one that cannot be used.
func (a *ACME) takeOrLog(r store.ACME) bool {
	err := a.take(r)
	if err != nil {
		a.p.Log.Error("serve the stored certificate; another is ordered", "error", err)
	}
	return err == nil
}

// openACME opens the certificate of a record.
func openACME(s ca.Sealer, r store.ACME) (*tls.Certificate, error) {
	list, err := x509.ParseCertificates(r.Chain)
	if err == nil && len(list) == 0 {
		err = errors.New("there is none")
	}
	if err != nil {
		return nil, fmt.Errorf("read the certificate by %s: %w", r.Directory, err)
	}
	key, err := openECKey(s, acmeCertificate, r.ChainKey)
	if err != nil {
		return nil, fmt.Errorf("open the key of the certificate by %s: %w", r.Directory, err)
	}
	c := &tls.Certificate{PrivateKey: key, Leaf: list[0]}
	for _, one := range list {
		c.Certificate = append(c.Certificate, one.Raw)
	}
	return c, nil
}

func openECKey(s ca.Sealer, name string, sealed []byte) (*ecdsa.PrivateKey, error) {
	der, err := s.Open(name, sealed)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("it is no ECDSA key")
	}
	return key, nil
}

// newECKey makes a key, and its form for a Sealer.
func newECKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return key, der, err
}

// TLSConfig is what the platform's listener serves.
func (a *ACME) TLSConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1", acme.ALPN}, GetCertificate: a.getCertificate}
}

// getCertificate answers a handshake by what there is, whatever name it is for.
func (a *ACME) getCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if slices.Equal(hello.SupportedProtos, []string{acme.ALPN}) {
		return a.challenge(hello)
	}
	c := a.current.Load()
	if c == nil {
		return nil, errors.New("there is no certificate yet")
	}
	return c, nil
}

// challenge answers the authority. Strangers who ask cost the database one look
// in challengeKept.
func (a *ACME) challenge(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if !strings.EqualFold(hello.ServerName, a.host) {
		return nil, fmt.Errorf("a challenge for %s, which is not this platform", sft.Quote(hello.ServerName))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := time.Now(); now.Sub(a.readAt) >= challengeKept {
		a.readAt = now
		// A stranger who hangs up does not undo it for the authority.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(hello.Context()), 5*time.Second)
		defer cancel()
		if err := a.readChallenge(ctx); err != nil {
			a.keyOf = ""
			return nil, err
		}
	}
	if a.keyOf == "" {
		return nil, errors.New("a challenge, and there is no order under way")
	}
	return a.answer, nil
}

func (a *ACME) readChallenge(ctx context.Context) error {
	var key string
	err := a.p.DB.Read(ctx, func(tx *store.Tx) (err error) {
		key, err = tx.ACMEChallenge(a.authority.Directory)
		return err
	})
	if err == nil && key != "" && key != a.keyOf {
		a.answer, err = acme.ChallengeCertificate(a.host, key)
	}
	a.keyOf = key
	return err
}

// present stores a challenge, and waits until every platform goes by it.
func (a *ACME) present(ctx context.Context, keyAuth string) error {
	if err := a.p.DB.Note(ctx, func(n store.Notes) error { return n.SetACMEChallenge(a.authority.Directory, keyAuth) }); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(challengeKept + 100*time.Millisecond):
		return nil
	}
}

// End is when the certificate that is served ends; zero: there is none.
func (a *ACME) End() time.Time {
	if c := a.current.Load(); c != nil {
		return c.Leaf.NotAfter
	}
	return time.Time{}
}

// Failures is how many tries of this process failed.
func (a *ACME) Failures() int64 { return a.failures.Load() }

// Run gets and renews the certificate until ctx ends.
func (a *ACME) Run(ctx context.Context) {
	t := time.NewTicker(acmeEvery)
	defer t.Stop()
	for {
		if err := a.Round(ctx); err != nil && ctx.Err() == nil {
			log := a.p.Log.With("directory", a.authority.Directory, "host", a.host)
			if end := a.End(); !end.IsZero() {
				log = log.With("served_until", end)
			}
			if f, ok := errors.AsType[*acme.Failure](err); ok {
				log.Error("get a certificate", "error", f.Msg, "fix", f.Fix, "cause", f.Err)
			} else {
				log.Error("get a certificate", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Round does what is due: it takes what another platform has got, asks the
// authority when to renew, or orders a certificate. An error is one of a try;
// when the next is due is stored.
func (a *ACME) Round(ctx context.Context) error {
	r, err := a.record(ctx)
	if err != nil {
		return err
	}
	if !a.takeOrLog(r) {
		r.Chain = nil
	}
	now, first := a.p.Now(), !a.began.Swap(true)
	r = doubted(r, now)
	// Who starts the platform anew has mended something, perhaps.
	if now.Before(r.RefusedUntil) || now.Before(r.RetryAt) && !(first && now.Sub(r.FailedAt) > acmeEvery) {
		return nil
	}
	if a.due(r, now) {
		return a.order(ctx, r)
	}
	if now.Before(r.AskAt) {
		return nil
	}
	if r, err = a.ask(ctx, r); err == nil && a.due(r, now) {
		return a.order(ctx, r)
	}
	return err
}

// doubted is a record without the times that only a clock which was ahead can
// have left: nobody would ask the authority until they come.
func doubted(r store.ACME, now time.Time) store.ACME {
	if r.FailedAt.After(now.Add(acmeSkew)) {
		r.RetryAt, r.RefusedUntil = time.Time{}, time.Time{}
	}
	if r.AskAt.After(now.Add(acme.AskMost + acmeSkew)) {
		r.AskAt = time.Time{}
	}
	return r
}

// due reports whether a certificate is to be ordered.
func (a *ACME) due(r store.ACME, now time.Time) bool {
	c := a.current.Load()
	return len(r.Chain) == 0 || c == nil || c.Leaf.VerifyHostname(a.host) != nil || !now.Before(r.RenewAt)
}

// record reads what there is of the authority. The first to look makes the key
// of the account.
func (a *ACME) record(ctx context.Context) (r store.ACME, err error) {
	read := func(tx *store.Tx) (err error) {
		r, err = tx.ACME(a.authority.Directory)
		return err
	}
	if err = a.p.DB.Read(ctx, read); !errors.Is(err, store.ErrNotFound) {
		return r, err
	}
	_, der, err := newECKey()
	if err != nil {
		return r, err
	}
	err = a.p.change(ctx, Actor{}, func(tx *store.Tx) (audit.Event, error) {
		sealed, err := a.p.Sealer.Seal(acmeAccount, der)
		if err != nil {
			return audit.Event{}, err
		}
		if err := tx.AddACME(a.authority.Directory, sealed); err != nil {
			return audit.Event{}, err
		}
		return a.p.ownEvent(tx, audit.ACMEAccountCreate, a.authority.Directory)
	})
	if err != nil && !errors.Is(err, store.ErrExists) {
		return r, err
	}
	return r, a.p.DB.Read(ctx, read)
}

// RotateACMEAccount makes another key for the account at an authority, so that
// serve registers another account there, and returns the authority's directory.
// No directory is the only one that there is. The certificate stays.
func (p *Platform) RotateACMEAccount(ctx context.Context, directory string) (string, error) {
	if _, err := p.tokenKey(ctx); err != nil { // it is sealed with a master key that opens the others
		return "", err
	}
	_, der, err := newECKey()
	if err != nil {
		return "", err
	}
	err = p.change(ctx, Actor{}, func(tx *store.Tx) (audit.Event, error) {
		list, err := tx.ACMEs()
		if err != nil {
			return audit.Event{}, err
		}
		var there []string
		for _, r := range list {
			there = append(there, r.Directory)
		}
		switch {
		case directory == "" && len(there) == 1:
			directory = there[0]
		case len(there) == 0:
			return audit.Event{}, &sft.Error{Code: sft.NotFound, Msg: "there is no account at an ACME authority", Hint: "\"sft-platform serve --acme\" makes one"}
		case directory == "":
			return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: "there are accounts at several ACME authorities: " + strings.Join(there, ", "), Hint: "give one of them to --acme-directory"}
		case !slices.Contains(there, directory):
			return audit.Event{}, &sft.Error{Code: sft.NotFound, Msg: "there is no account at " + sft.Printable(directory), Hint: "give to --acme-directory one of " + strings.Join(there, ", ")}
		}
		sealed, err := p.Sealer.Seal(acmeAccount, der)
		if err != nil {
			return audit.Event{}, err
		}
		if err := tx.SetACMEAccount(directory, sealed); err != nil {
			return audit.Event{}, err
		}
		return p.ownEvent(tx, audit.ACMEAccountRotate, directory)
	})
	return directory, err
}

// ask asks the authority when to renew. That it does not say is no failure of
// the certificate.
func (a *ACME) ask(ctx context.Context, r store.ACME) (store.ACME, error) {
	asking, cancel := context.WithTimeout(ctx, acmeAsk)
	defer cancel()
	leaf := a.current.Load().Leaf
	w, err := a.authority.RenewalInfo(asking, leaf)
	if ctx.Err() != nil {
		return r, ctx.Err()
	}
	if err != nil {
		a.p.Log.Info("ask the ACME authority when to renew", "directory", r.Directory, "error", err)
		w.Ask = a.p.Now().Add(time.Hour)
		if f, ok := errors.AsType[*acme.Failure](err); ok && f.Until.After(w.Ask) {
			w.Ask = f.Until
			if most := a.p.Now().Add(acme.AskMost); w.Ask.After(most) {
				w.Ask = most
			}
		}
	}
	r.RenewAt, r.AskAt = renewal(leaf, w, r.RenewAt), w.Ask
	return r, a.p.DB.Note(ctx, func(n store.Notes) error { return n.PlanACME(r.Directory, r.RenewAt, r.AskAt) })
}

// renewal is when a certificate is renewed: as the authority wishes, else as was
// planned, else when a third of its life is left, or half of a short one. It is
// neither at once, for long, nor so late that there is no time for a second try.
func renewal(leaf *x509.Certificate, w acme.Window, planned time.Time) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	at := w.Renew
	if at.IsZero() || !planned.Before(w.Start) && !planned.After(w.End) {
		at = planned
	}
	if at.IsZero() {
		left := life / 3
		if life < 10*24*time.Hour {
			left = life / 2
		}
		// Platforms that were set up together do not come at once.
		at = leaf.NotAfter.Add(-left - mathrand.N(left/20+1)).Truncate(time.Second)
	}
	if soonest := leaf.NotBefore.Add(min(acmeSettle, life/2)); at.Before(soonest) {
		return soonest
	}
	if latest := leaf.NotAfter.Add(-life / 10); at.After(latest) {
		return latest
	}
	return at
}

// order gets a certificate, unless another platform is about it, or has tried
// since seen was read.
func (a *ACME) order(ctx context.Context, seen store.ACME) error {
	p, now := a.p, a.p.Now()
	var r store.ACME
	tried := false
	err := p.DB.Note(ctx, func(n store.Notes) (err error) {
		if r, err = n.HoldACME(seen.Directory, p.Instance, now, acmeHold); err != nil {
			return err
		}
		if tried = r.Failures != seen.Failures || !r.RenewAt.Equal(seen.RenewAt); tried {
			err = n.ReleaseACME(seen.Directory, p.Instance)
		}
		return err
	})
	if errors.Is(err, store.ErrExists) {
		return nil
	}
	if err != nil {
		return err
	}
	if tried {
		return nil // the next round sees what came of it
	}
	err = a.obtain(ctx, r)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil { // the platform stops: another may go on
		last, cancel := outlast(ctx)
		defer cancel()
		return errors.Join(err, p.DB.Note(last, func(n store.Notes) error { return n.ReleaseACME(r.Directory, p.Instance) }))
	}
	a.failures.Add(1)
	r.FailedAt, r.Problem, r.Fix, r.RefusedUntil = p.Now(), err.Error(), "look at the platform's log", time.Time{}
	if f, ok := errors.AsType[*acme.Failure](err); ok {
		r.Fix, r.RefusedUntil = f.Fix, f.Until
	}
	wait := min(acmeRetry<<min(r.Failures, 10), acmeMost)
	r.RetryAt = r.FailedAt.Add(wait/2 + mathrand.N(wait/2))
	return errors.Join(err, p.DB.Note(ctx, func(n store.Notes) error { return n.FailACME(r) }))
}

// outlast is a context that is good for acmeStore after the end of ctx.
func outlast(ctx context.Context) (context.Context, context.CancelFunc) {
	last, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(acmeStore, cancel) })
	return last, func() { stop(); cancel() }
}

func (a *ACME) obtain(ctx context.Context, r store.ACME) error {
	p := a.p
	account, err := openECKey(p.Sealer, acmeAccount, r.AccountKey)
	if err != nil {
		return fmt.Errorf("open the key of the ACME account: %w", err)
	}
	key, der, err := newECKey()
	if err != nil {
		return err
	}
	o := acme.Order{Host: a.host, Account: account, Key: key, Present: a.present}
	if c := a.current.Load(); c != nil && len(r.Chain) > 0 {
		o.Replaces = c.Leaf
	}
	p.Log.Info("ordering a certificate", "directory", r.Directory, "host", a.host)
	trying, cancel := context.WithTimeout(ctx, acmeTimeout)
	defer cancel()
	chain, w, err := a.authority.Obtain(trying, o)
	last, done := outlast(ctx)
	defer done()
	// An answer that nobody asks for any more is no harm, and no reason to throw
	// a certificate away.
	if err := p.DB.Note(last, func(n store.Notes) error { return n.SetACMEChallenge(r.Directory, "") }); err != nil {
		p.Log.Warn("forget the answer to the ACME authority", "directory", r.Directory, "error", err)
	}
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return err
	}
	r.Chain, r.RenewAt, r.AskAt = slices.Concat(chain...), renewal(leaf, w, time.Time{}), w.Ask
	// It is stored although the platform is being stopped: it has been paid for.
	err = p.change(last, Actor{}, func(tx *store.Tx) (audit.Event, error) {
		var err error
		if r.ChainKey, err = p.Sealer.Seal(acmeCertificate, der); err != nil {
			return audit.Event{}, err
		}
		e, err := p.ownEvent(tx, audit.PlatformCertificate, a.host)
		if err != nil {
			return e, err
		}
		sum := sha256.Sum256(leaf.Raw)
		e.Detail = map[string]string{"directory": r.Directory, "serial": leaf.SerialNumber.Text(16), "not_after": leaf.NotAfter.UTC().Format(time.RFC3339), "sha256": hex.EncodeToString(sum[:])}
		return e, tx.SetACMECertificate(r)
	})
	if err != nil {
		return err
	}
	a.current.Store(&tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf})
	p.Log.Info("the platform has a new certificate", "directory", r.Directory, "host", a.host, "not_after", leaf.NotAfter, "renew_at", r.RenewAt)
	return nil
}

// ready reports why nobody could connect.
func (a *ACME) ready() error {
	switch end := a.End(); {
	case end.IsZero():
		return errors.New("there is no certificate yet")
	case a.p.Now().After(end):
		return fmt.Errorf("the certificate has ended at %s", end.Format(time.RFC3339))
	}
	return nil
}

// An ACMEStatus is how it goes with a certificate by ACME, by the database.
type ACMEStatus struct {
	Certificate *tls.Certificate // nil: none yet
	RenewAt     time.Time

	FailedAt     time.Time
	Problem, Fix string // of the last try; empty: it went well
	NextTry      time.Time
}

// ACMEStatus tells how it goes with the certificate by an authority.
func (p *Platform) ACMEStatus(ctx context.Context, directory string) (st ACMEStatus, err error) {
	err = p.DB.Read(ctx, func(tx *store.Tx) error {
		r, err := p.acmeRecord(tx, directory)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		r = doubted(r, p.Now())
		st.RenewAt, st.Problem, st.Fix, st.FailedAt, st.NextTry = r.RenewAt, r.Problem, r.Fix, r.FailedAt, r.RetryAt
		if r.RefusedUntil.After(st.NextTry) {
			st.NextTry = r.RefusedUntil
		}
		if len(r.Chain) > 0 {
			st.Certificate, err = openACME(p.Sealer, r)
		}
		return err
	})
	if err == nil {
		_, err = p.acmeHost()
	}
	return st, err
}
