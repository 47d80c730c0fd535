//go:build unix

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sft/internal/acme"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/doctor"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testdb"
	"sft/internal/testenv"
	"sft/internal/webapi"
)

const acmeName = "sft.example.com"

// publicPlatform makes a platform without a CA of its own.
func publicPlatform(t *testing.T, url, address string) data {
	t.Helper()
	d := data{dir: t.TempDir(), database: url}
	must(t, ca.NewMasterKey(d.masterKey()))
	sealer, err := ca.OpenSealer(d.masterKey())
	must(t, err)
	db, err := store.Open(t.Context(), d.url())
	must(t, err)
	_, err = platform.Init(t.Context(), db, sealer, platform.InitRequest{URL: address, Team: "main", Owner: "olive"}, nil)
	must(t, errors.Join(err, db.Close()))
	return d
}

// An acmePlatform is one of a database, with a clock of its own.
type acmePlatform struct {
	*platform.Platform
	t     *testing.T
	clock *testenv.Clock
	log   *testenv.Log
}

func openACME(t *testing.T, d data, clock *testenv.Clock, a *acme.Authority) *acmePlatform {
	t.Helper()
	k := &acmePlatform{t: t, clock: clock, log: &testenv.Log{}}
	var err error
	k.Platform, err = d.open(t.Context(), slog.New(slog.NewTextHandler(k.log, nil)))
	must(t, err)
	t.Cleanup(func() { k.DB.Close() })
	k.Now = clock.Now
	_, err = k.UseACME(t.Context(), a)
	must(t, err)
	return k
}

// listen serves what the platform has, on a port of loopback.
func (k *acmePlatform) listen(port int) net.Listener {
	k.t.Helper()
	var ln net.Listener
	var err error
	for range 100 { // who listened before may not be gone
		if ln, err = tls.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port), k.ACME.TLSConfig()); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	must(k.t, err)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.(*tls.Conn).Handshake()
				io.Copy(io.Discard, c)
			}()
		}
	}()
	k.t.Cleanup(func() { ln.Close() })
	return ln
}

// shakes makes a handshake. roots nil: whatever the certificate is.
func shakes(port int, name string, roots *x509.CertPool, protocols ...string) (tls.ConnectionState, error) {
	d := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: &tls.Config{ServerName: name, RootCAs: roots, InsecureSkipVerify: roots == nil, NextProtos: protocols}}
	c, err := d.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer c.Close()
	return c.(*tls.Conn).ConnectionState(), nil
}

// fails checks that a round fails, with words of what failed and what to do.
func (k *acmePlatform) fails(msg, fix string) {
	k.t.Helper()
	before := k.ACME.Failures()
	err := k.ACME.Round(k.t.Context())
	f, ok := errors.AsType[*acme.Failure](err)
	if !ok || !strings.Contains(f.Msg, msg) || !strings.Contains(f.Fix, fix) || k.ACME.Failures() != before+1 {
		k.t.Errorf("it fails as %+v, want %q, to do %q", err, msg, fix)
	}
	st, err := k.ACMEStatus(k.t.Context(), k.directory())
	must(k.t, err)
	if !strings.Contains(st.Problem, msg) || !strings.Contains(st.Fix, fix) || !st.NextTry.After(k.clock.Now()) {
		k.t.Errorf("it is stored as %+v, want %q", st, msg)
	}
	// What is due later is left alone.
	if err := k.ACME.Round(k.t.Context()); err != nil || k.ACME.Failures() != before+1 {
		k.t.Errorf("it is tried again at once: %v", err)
	}
	k.clock.Advance(9 * time.Hour)
}

func (k *acmePlatform) directory() string {
	var list []store.ACME
	must(k.t, k.DB.Read(k.t.Context(), func(tx *store.Tx) (err error) { list, err = tx.ACMEs(); return err }))
	return list[0].Directory
}

// examined is what doctor says of the certificate.
func examined(t *testing.T, p *platform.Platform, directory string) doctor.Check {
	t.Helper()
	var s settings
	s.Flags = serveCommand(&s).Flags()
	must(t, errors.Join(s.Flags.Set("acme", "true"), s.Flags.Set("acme-directory", directory)))
	var got []doctor.Check
	x := &examination{s: &s, machine: thisMachine, add: func(c doctor.Check) { got = append(got, c) }}
	x.certificate(t.Context(), p)
	if len(got) != 1 || (got[0].Verdict == doctor.OK) != (got[0].Fix == "") {
		t.Fatalf("doctor says %+v", got)
	}
	return got[0]
}

// The life of a certificate, with a real authority: got by the platform's own
// listener, kept, renewed as the authority wishes and as time asks, served while
// it cannot be renewed, and never asked for by a stranger.
func TestACME(t *testing.T) {
	port := freePort(t)
	ca := newPebble(t, port)
	d := publicPlatform(t, testdb.SQLite(t), "https://"+acmeName)
	clock := &testenv.Clock{}
	clock.Set(time.Now())
	authority := &acme.Authority{Directory: ca.directory, AcceptTerms: true, Email: "ops@example.com", Roots: ca.roots}

	k := &acmePlatform{t: t}
	var err error
	k.Platform, err = d.open(t.Context(), slog.New(slog.DiscardHandler))
	must(t, err)
	if _, err := k.UseACME(t.Context(), &acme.Authority{Directory: ca.directory, Roots: ca.roots}); err == nil || !strings.Contains(err.Error(), "terms") || k.ACME != nil {
		t.Errorf("terms that nobody has accepted: %v", err)
	}
	k.DB.Close()

	k = openACME(t, d, clock, authority)
	if got := examined(t, k.Platform, ca.directory); got.Verdict != doctor.Warn || got.Found != "none yet" {
		t.Errorf("before it was begun, doctor says %+v", got)
	}
	// What can be wrong with the name and the way to it.
	k.fails("does not find this platform at port 443 of "+acmeName, "lead to --listen")
	ca.tell(ca.dns+"/set-servfail", map[string]string{"host": acmeName})
	k.fails("Could not resolve", "have "+acmeName+" resolve")
	ca.tell(ca.dns+"/clear-servfail", map[string]string{"host": acmeName})
	if got := examined(t, k.Platform, ca.directory); got.Verdict != doctor.Fail || !strings.Contains(got.Found, "Could not resolve") {
		t.Errorf("without a certificate, doctor says %+v", got)
	}
	// Whoever starts it anew need not wait for the next try.
	clock.Advance(2*time.Minute - 9*time.Hour)
	k.DB.Close()
	k = openACME(t, d, clock, authority)
	ln := k.listen(port)
	if _, err := shakes(port, acmeName, nil); err == nil || k.Ready(t.Context()) == nil {
		t.Errorf("without a certificate there is a handshake (%v), or it is ready", err)
	}
	for _, name := range []string{acmeName, "other.example.com"} {
		if _, err := shakes(port, name, nil, acme.ALPN); err == nil {
			t.Errorf("a challenge for %s is answered, and there is no order", name)
		}
	}
	// While an order is under way, the authority gets an answer, for the
	// platform's own name and with nothing but the challenge in mind.
	challenge := func(keyAuth string) {
		t.Helper()
		must(t, k.DB.Note(t.Context(), func(n store.Notes) error { return n.SetACMEChallenge(ca.directory, keyAuth) }))
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			_, err := shakes(port, acmeName, nil, acme.ALPN)
			if (err == nil) == (keyAuth != "") {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the challenge %q: %v", keyAuth, err)
			}
		}
	}
	challenge("token.thumbprint")
	if _, err := shakes(port, "other.example.com", nil, acme.ALPN); err == nil {
		t.Error("a challenge for another name is answered")
	}
	if _, err := shakes(port, acmeName, nil, acme.ALPN, "h2"); err == nil {
		t.Error("a client that can speak HTTP gets the challenge's certificate")
	}
	challenge("")
	before := ca.orders()
	must(t, k.ACME.Round(t.Context()))
	first := k.ACME.End()
	issuer := ca.issuer()
	for _, protocol := range []string{"h2", "http/1.1"} {
		st, err := shakes(port, acmeName, issuer, protocol)
		if err != nil || st.NegotiatedProtocol != protocol || len(st.PeerCertificates[0].DNSNames) != 1 {
			t.Errorf("with %s: %+v, %v", protocol, st.NegotiatedProtocol, err)
		}
	}
	if err := k.Ready(t.Context()); err != nil || ca.orders() != before+1 {
		t.Errorf("with a certificate: %v, after %d orders", err, ca.orders()-before)
	}
	if got := examined(t, k.Platform, ca.directory); got.Verdict != doctor.Warn || !strings.Contains(got.Found, "this machine does not trust it") {
		t.Errorf("doctor says %+v", got)
	}

	// A stranger's names, as many as they like, begin nothing.
	failed := k.ACME.Failures()
	for i := range 20 {
		for _, protocol := range []string{"h2", acme.ALPN} {
			for _, name := range []string{acmeName, fmt.Sprintf("n%d.example.com", i)} {
				st, err := shakes(port, name, nil, protocol)
				if protocol == "h2" && (err != nil || !st.PeerCertificates[0].NotAfter.Equal(first)) || protocol == acme.ALPN && err == nil {
					t.Errorf("%s for %s: %v", protocol, name, err)
				}
			}
		}
	}
	must(t, k.ACME.Round(t.Context()))
	if ca.orders() != before+1 || k.ACME.Failures() != failed {
		t.Errorf("strangers began %d orders", ca.orders()-before-1)
	}

	// A restart goes on with what there is.
	ln.Close()
	k.DB.Close()
	k = openACME(t, d, clock, authority)
	ln = k.listen(port)
	if st, err := shakes(port, acmeName, issuer, "h2"); err != nil || !st.PeerCertificates[0].NotAfter.Equal(first) {
		t.Errorf("after a restart: %v", err)
	}
	must(t, k.ACME.Round(t.Context()))
	if ca.orders() != before+1 {
		t.Error("a restart has begun an order")
	}

	// The authority wants it renewed early (RFC 9773).
	st, err := shakes(port, acmeName, issuer)
	must(t, err)
	window := fmt.Sprintf(`{"suggestedWindow":{"start":%q,"end":%q}}`, time.Now().Add(-2*time.Hour).UTC().Format(time.RFC3339), time.Now().Add(-time.Hour).UTC().Format(time.RFC3339))
	ca.tell(ca.manage+"/set-renewal-info/", map[string]string{"ARIResponse": window,
		"Certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: st.PeerCertificates[0].Raw}))})
	clock.Advance(25 * time.Hour)
	// A clock that was ahead has said when to ask.
	plan, err := k.ACMEStatus(t.Context(), ca.directory)
	must(t, err)
	must(t, k.DB.Note(t.Context(), func(n store.Notes) error {
		return n.PlanACME(ca.directory, plan.RenewAt, clock.Now().AddDate(10, 0, 0))
	}))
	must(t, k.ACME.Round(t.Context()))
	renewed, err := shakes(port, acmeName, issuer)
	must(t, err)
	if renewed.PeerCertificates[0].Equal(st.PeerCertificates[0]) || ca.orders() != before+2 || ca.count("is a replacement of") != 1 {
		t.Errorf("it was not renewed as the authority wants: %d orders", ca.orders()-before)
	}

	// The authority has closed the account. Another one registers, while the
	// platform runs, and may renew what was of the one before.
	before = ca.orders()
	ca.closeAccount(k.Platform)
	clock.Set(renewed.PeerCertificates[0].NotAfter.Add(-20 * time.Hour))
	k.fails("refuses the account", "sft-platform rotate acme-account")
	clock.Set(renewed.PeerCertificates[0].NotAfter.Add(-20 * time.Hour))
	if status := run([]string{"rotate", "acme-account", "--data", d.dir, "--database", d.database, "--acme-directory", ca.directory + "?none"}); status != 1 {
		t.Errorf("of an authority where there is none, it ends with %d", status)
	}
	if status := run([]string{"rotate", "acme-account", "--data", d.dir, "--database", d.database}); status != 0 {
		t.Errorf("it ends with %d", status)
	}
	must(t, k.ACME.Round(t.Context()))
	closed := renewed.PeerCertificates[0]
	renewed, err = shakes(port, acmeName, issuer)
	must(t, err)
	if renewed.PeerCertificates[0].Equal(closed) || ca.orders() != before+1 {
		t.Errorf("by another account it was not renewed: %d orders", ca.orders()-before)
	}

	// The authority is gone when the certificate is to be renewed: it is served on.
	ca.stop()
	clock.Set(renewed.PeerCertificates[0].NotAfter.Add(-12 * time.Hour))
	k.fails("is not reached", "check the network")
	clock.Set(renewed.PeerCertificates[0].NotAfter.Add(-2 * time.Hour))
	if st, err := shakes(port, acmeName, issuer); err != nil || !st.PeerCertificates[0].Equal(renewed.PeerCertificates[0]) || k.Ready(t.Context()) != nil {
		t.Errorf("while it cannot be renewed: %v", err)
	}
	if got := examined(t, k.Platform, ca.directory); got.Verdict != doctor.Warn || !strings.Contains(got.Found, "it was not renewed") || !strings.Contains(got.Fix, "network") {
		t.Errorf("doctor says %+v", got)
	}

	// It is there again, and knows nobody; but who is it?
	ca.start()
	k.DB.Close()
	ln.Close()
	k = openACME(t, d, clock, &acme.Authority{Directory: ca.directory + "?other", Roots: x509.NewCertPool(), AcceptTerms: true})
	if err := k.ACME.Round(t.Context()); err == nil || !strings.Contains(err.Error(), "this machine does not trust") {
		t.Errorf("an authority that is not trusted: %v", err)
	}
	k.DB.Close()
	k = openACME(t, d, clock, authority)
	k.listen(port)
	must(t, k.ACME.Round(t.Context()))
	if st, err = shakes(port, acmeName, ca.issuer()); err != nil || st.PeerCertificates[0].Equal(renewed.PeerCertificates[0]) {
		t.Errorf("when it is there again: %v", err)
	}
	if got, err := k.ACMEStatus(t.Context(), ca.directory); err != nil || got.Problem != "" {
		t.Errorf("when all is well: %+v, %v", got, err)
	}
	clock.Set(k.ACME.End().Add(time.Second))
	if k.Ready(t.Context()) == nil {
		t.Error("it is ready, and its certificate has ended")
	}
	var told []string
	must(t, k.DB.Read(t.Context(), func(tx *store.Tx) error {
		events, err := tx.Events("main", "", 1000, false)
		for _, e := range events {
			if e.Kind == audit.PlatformCertificate || e.Kind == audit.ACMEAccountCreate || e.Kind == audit.ACMEAccountRotate {
				told = append(told, string(e.Kind)+" "+e.Target)
			}
		}
		return err
	}))
	issue := "platform_certificate.issue " + acmeName
	want := []string{"acme_account.create " + ca.directory, issue, issue, "acme_account.rotate " + ca.directory, issue, "acme_account.create " + ca.directory + "?other", issue}
	if strings.Join(told, "\n") != strings.Join(want, "\n") {
		t.Errorf("the events are %q", told)
	}
}

// A clock that was ahead once keeps nobody from trying when it is right.
func TestACMEClockAhead(t *testing.T) {
	d := publicPlatform(t, testdb.SQLite(t), "https://"+acmeName)
	clock := &testenv.Clock{}
	now := time.Now()
	clock.Set(now.AddDate(10, 0, 0))
	authority := &acme.Authority{Directory: fmt.Sprintf("https://127.0.0.1:%d/dir", freePort(t)), AcceptTerms: true}
	k := openACME(t, d, clock, authority)
	k.fails("is not reached", "check the network")
	var r store.ACME
	must(t, k.DB.Read(t.Context(), func(tx *store.Tx) (err error) { r, err = tx.ACME(authority.Directory); return err }))
	r.RefusedUntil = r.RetryAt.AddDate(0, 0, 1)
	must(t, k.DB.Note(t.Context(), func(n store.Notes) error { return n.FailACME(r) }))
	clock.Set(now)
	if st, err := k.ACMEStatus(t.Context(), authority.Directory); err != nil || st.NextTry.After(now) {
		t.Errorf("it is tried at %v, %v", st.NextTry, err)
	}
	k.fails("is not reached", "check the network")
	// One that differs by minutes is no reason to ask more often.
	clock.Advance(-9 * time.Hour)
	clock.Advance(-5 * time.Minute)
	if err := k.ACME.Round(t.Context()); err != nil || k.ACME.Failures() != 2 {
		t.Errorf("by a clock that is minutes behind it is tried: %v", err)
	}
}

// A certificate that the authority has issued is kept, also where the answer
// that it wanted cannot be forgotten.
func TestACMEAnswerStays(t *testing.T) {
	port := freePort(t)
	ca := newPebble(t, port)
	url := testdb.SQLite(t)
	d := publicPlatform(t, url, "https://"+acmeName)
	clock := &testenv.Clock{}
	clock.Set(time.Now())
	k := openACME(t, d, clock, &acme.Authority{Directory: ca.directory, AcceptTerms: true, Roots: ca.roots})
	k.listen(port)
	_, err := testdb.Raw(t, url).Exec(`CREATE TRIGGER stays BEFORE UPDATE OF challenge ON acme WHEN OLD.challenge <> '' AND NEW.challenge = '' BEGIN SELECT RAISE(ABORT, 'it stays'); END`)
	must(t, err)
	if err := k.ACME.Round(t.Context()); err != nil || k.ACME.End().IsZero() || ca.orders() != 1 {
		t.Errorf("the certificate ends at %v after %d orders: %v", k.ACME.End(), ca.orders(), err)
	}
}

// Several platforms on one database get one certificate: whichever the
// authority asks has the answer, and nobody orders twice.
func TestACMEShared(t *testing.T) {
	port := freePort(t)
	ca := newPebble(t, port)
	d := publicPlatform(t, testdb.Postgres(t), "https://"+acmeName)
	clock := &testenv.Clock{}
	clock.Set(time.Now())
	authority := &acme.Authority{Directory: ca.directory, AcceptTerms: true, Roots: ca.roots}
	a, b := openACME(t, d, clock, authority), openACME(t, d, clock, authority)
	b.listen(port)
	var both sync.WaitGroup
	for _, k := range []*acmePlatform{a, b} {
		both.Go(func() {
			if err := k.ACME.Round(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	must(t, errors.Join(a.ACME.Round(t.Context()), b.ACME.Round(t.Context())))
	if a.ACME.End().IsZero() || !a.ACME.End().Equal(b.ACME.End()) || ca.orders() != 1 {
		t.Errorf("they have %v and %v after %d orders", a.ACME.End(), b.ACME.End(), ca.orders())
	}
	// One renews, while the authority comes to the other.
	clock.Set(a.ACME.End().Add(-12 * time.Hour))
	must(t, a.ACME.Round(t.Context()))
	clock.Set(time.Now())
	must(t, b.ACME.Round(t.Context()))
	if st, err := shakes(port, acmeName, ca.issuer(), "h2"); err != nil || !st.PeerCertificates[0].NotAfter.Equal(a.ACME.End()) || ca.orders() != 2 {
		t.Errorf("they have renewed: %v, %d orders", err, ca.orders())
	}
}

// An untilTold is a log that takes its time over one message.
type untilTold struct {
	slog.Handler
	message string
	at      chan struct{} // it was written
	told    chan struct{}
}

// Enabled implements slog.Handler.
func (u untilTold) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (u untilTold) Handle(_ context.Context, r slog.Record) error {
	if r.Message == u.message {
		close(u.at)
		<-u.told
	}
	return nil
}

// A platform that is stopped in the middle of a try lets others try at once.
func TestServeACMEStops(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		d := publicPlatform(t, url, "https://"+acmeName)
		o := serving{listen: fmt.Sprintf("127.0.0.1:%d", freePort(t)), limits: webapi.DefaultLimits,
			acme: acmeFlags{on: true, acceptTerms: true, directory: fmt.Sprintf("https://127.0.0.1:%d/dir", freePort(t))}}
		try := untilTold{slog.DiscardHandler, "ordering a certificate", make(chan struct{}), make(chan struct{})}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		ended := make(chan error, 1)
		go func() { ended <- serve(ctx, d, o, slog.New(try)) }()
		select {
		case <-try.at:
		case err := <-ended:
			t.Fatalf("it ends before it has begun: %v", err)
		}
		stop()
		select {
		case err := <-ended:
			t.Errorf("it ends in the middle of a try: %v", err)
			close(try.told)
		case <-time.After(500 * time.Millisecond): // in which one that does not wait has ended
			close(try.told)
			must(t, <-ended)
		}
		db, err := store.Open(t.Context(), d.url())
		must(t, err)
		defer db.Close()
		must(t, db.Note(t.Context(), func(n store.Notes) error {
			_, err := n.HoldACME(o.acme.directory, "another", time.Now(), time.Minute)
			return err
		}))
	})
}

// The command itself, restarted with its socket kept.
func TestServeACME(t *testing.T) {
	port := freePort(t)
	ca := newPebble(t, port)
	d := publicPlatform(t, "", "https://"+acmeName)
	m := newManager(t, "serve", "--data", d.dir, "--listen", fmt.Sprintf("127.0.0.1:%d", port),
		"--acme", "--acme-accept-terms", "--acme-directory", ca.directory, "--acme-ca", ca.ca, "--acme-email", "ops@example.com")
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.issuer()}, ForceAttemptHTTP2: true, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		}}}
	ready := func() *http.Response {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			resp, err := c.Get("https://" + acmeName + "/readyz")
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					return resp
				}
				err = errors.New(resp.Status)
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	process := m.start()
	one := ready()
	if one.ProtoMajor != 2 {
		t.Errorf("it speaks %s", one.Proto)
	}
	must(t, process.Process.Signal(syscall.SIGTERM))
	must(t, process.Wait())
	process = m.start()
	if resp, err := c.Get("https://" + acmeName + "/healthz"); err != nil || !resp.TLS.PeerCertificates[0].Equal(one.TLS.PeerCertificates[0]) || ca.orders() != 1 {
		t.Errorf("after a restart: %v, %d orders", err, ca.orders())
	} else {
		resp.Body.Close()
	}
	diagnosed := func(dir string) {
		t.Helper()
		out, _ := exec.Command("sft-platform", "doctor", "--data", dir, "--acme", "--acme-directory", ca.directory).CombinedOutput()
		if !strings.Contains(string(out), "certificate      for "+acmeName+", good until "+one.TLS.PeerCertificates[0].NotAfter.UTC().Format(time.RFC3339)) {
			t.Errorf("doctor says\n%s", out)
		}
	}
	diagnosed(d.dir)
	// What is restored has the certificate, too.
	backup, restored := filepath.Join(t.TempDir(), "b"), data{dir: t.TempDir()}
	key, err := os.ReadFile(d.masterKey())
	must(t, errors.Join(err, os.WriteFile(restored.masterKey(), key, 0o600)))
	for _, args := range [][]string{{"backup", backup, "--data", d.dir}, {"restore", backup, "--data", restored.dir}} {
		if out, err := exec.Command("sft-platform", args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", args[0], err, out)
		}
	}
	diagnosed(restored.dir)
	must(t, process.Process.Signal(syscall.SIGTERM))
	must(t, process.Wait())
	if b, err := os.ReadFile(m.log.Name()); err != nil || strings.Contains(string(b), "PRIVATE KEY") || strings.Contains(string(b), `"level":"ERROR"`) {
		t.Errorf("the log is not as it should be: %v", err)
	}
}
