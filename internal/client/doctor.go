package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/doctor"
	"sft/internal/frame"
)

// The steps of a diagnosis, in their order.
const (
	stepEnrolment = "enrolment"
	stepKey       = "device-key"
	stepProxy     = "proxy"
	stepName      = "platform-name"
	stepTCP       = "platform-tcp"
	stepTLS       = "platform-tls"
	stepPlatform  = "platform"
	stepClock     = "clock"
	stepSignIn    = "sign-in"
	stepResolve   = "resolve"
	stepServer    = "server"
	stepProblems  = "server-problems"
	stepIssue     = "certificate"
	stepRoute     = "route"
	stepBroker    = "broker-tcp"
	stepProof     = "broker-proof"
	stepPing      = "broker-ping"
)

var (
	platformSteps = []string{stepEnrolment, stepKey, stepProxy, stepName, stepTCP, stepTLS, stepPlatform, stepClock, stepSignIn}
	serverSteps   = []string{stepResolve, stepServer, stepProblems, stepIssue, stepRoute, stepBroker, stepProof, stepPing}
)

// SkipDiagnosis tells of every step of Diagnose that it was not tried, since it
// needs something that is not there.
func SkipDiagnosis(target, needs string, each func(doctor.Check)) {
	g := &diagnosis{each: each, failed: map[string]bool{}}
	g.skip(needs, platformSteps...)
	if target != "" {
		g.skip(needs, serverSteps...)
	}
}

// diagnosisTime is how long one step may take that waits for somebody else.
const diagnosisTime = 20 * time.Second

// A diagnosis is one run of Diagnose.
type diagnosis struct {
	d      *Device
	a      Account
	each   func(doctor.Check)
	failed map[string]bool // the steps whose dependents are to be skipped
}

func (g *diagnosis) add(c doctor.Check) bool {
	good := c.Verdict == doctor.OK || c.Verdict == doctor.Warn
	if !good {
		g.failed[c.Step] = true
	}
	g.each(c)
	return good
}

func (g *diagnosis) ok(step, found string) bool {
	return g.add(doctor.Check{Step: step, Verdict: doctor.OK, Found: found})
}

func (g *diagnosis) fail(step string, err error) bool { return g.add(doctor.Failed(step, err)) }

// skip says of each step that it needs another one.
func (g *diagnosis) skip(needs string, steps ...string) {
	for _, s := range steps {
		g.add(doctor.Check{Step: s, Verdict: doctor.Skip, Found: "needs " + needs})
	}
}

// Diagnose looks at each step of the way to the platform of an account, chosen
// as Find does, and, if target is not empty, on to a server. each is told
// of every step, in a fixed order; a step is skipped where one that it needs
// failed. Nobody is asked to sign in. On the server nothing happens but a ping
// of its broker, which is a session of its own and in the audit log as such. The
// agent of this host is asked (ByAgent) as by any other command.
func (d *Device) Diagnose(ctx context.Context, team, target string, each func(doctor.Check)) {
	g := &diagnosis{d: d, each: each, failed: map[string]bool{}}
	onServer := serverSteps
	if target == "" {
		onServer = nil
	}
	s := g.account(ctx, team)
	if g.a.URL == "" {
		g.skip(stepEnrolment, slices.Concat(platformSteps[2:], onServer)...)
		return
	}
	answered := g.platform(ctx)
	switch {
	case s == nil:
		g.skip(stepKey, append([]string{stepSignIn}, onServer...)...)
	case !answered:
		g.skip(stepPlatform, append([]string{stepSignIn}, onServer...)...)
	case g.failed[stepClock]:
		g.skip(stepClock, append([]string{stepSignIn}, onServer...)...)
	case !g.signIn(ctx, s):
		g.skip(stepSignIn, onServer...)
	case target != "":
		g.server(ctx, s, target)
	}
}

// account finds the account and opens its key.
func (g *diagnosis) account(ctx context.Context, team string) *Session {
	// A session of its own: it must neither ask a person nor talk.
	quiet := *g.d
	quiet.Say = func(string) {}
	if quiet.Ask != ByAgent {
		quiet.Ask = Never
	}
	ctx, cancel := context.WithTimeout(ctx, diagnosisTime)
	defer cancel()
	var err error
	if g.a, err = quiet.Find(ctx, team); err != nil {
		g.fail(stepEnrolment, err)
		g.skip(stepEnrolment, stepKey)
		return nil
	}
	found := g.a.User + " in team " + g.a.Team + " of " + g.a.URL
	if g.a.Kind == Service {
		found += ", a service user, by the word of this host's agent"
	}
	g.ok(stepEnrolment, found)
	s, err := quiet.Session(g.a)
	if err != nil {
		g.fail(stepKey, err)
		return nil
	}
	where := "in the private file " + g.d.Store.keys.path(g.a)
	if g.a.InKeyring {
		where = "in the system's key store"
	}
	g.ok(stepKey, where)
	return s
}

// A trip is what one request met on its way.
type trip struct {
	mu        sync.Mutex
	asked     bool // a name server
	addresses []string
	nameErr   error
	dialled   []string // addresses that were tried
	dialErr   error
	connected string
	tlsBegun  bool // on what leads to the platform itself
}

func (t *trip) trace() *httptrace.ClientTrace {
	locked := func(f func()) {
		t.mu.Lock()
		defer t.mu.Unlock()
		f()
	}
	return &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) { locked(func() { t.asked = true }) },
		DNSDone: func(i httptrace.DNSDoneInfo) {
			locked(func() {
				t.nameErr = i.Err
				for _, a := range i.Addrs {
					t.addresses = append(t.addresses, a.String())
				}
			})
		},
		ConnectStart: func(_, addr string) { locked(func() { t.dialled = append(t.dialled, addr) }) },
		ConnectDone: func(_, addr string, err error) {
			locked(func() {
				switch {
				case err != nil:
					t.dialErr = err
				case t.connected == "":
					t.connected = addr
				}
			})
		},
		TLSHandshakeStart: func() { locked(func() { t.tlsBegun = true }) },
	}
}

// platform makes one request without a signature and tells what it met. It
// reports whether the platform answered.
func (g *diagnosis) platform(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, diagnosisTime)
	defer cancel()
	machine := g.d.Machine
	if machine == nil {
		machine = time.Now
	}
	rest := []string{stepName, stepTCP, stepTLS, stepPlatform, stepClock}
	at, err := url.Parse(g.a.URL)
	if err == nil && at.Host == "" {
		err = errors.New("the URL " + sft.Quote(g.a.URL) + " has no host")
	}
	if err != nil {
		g.fail(stepProxy, &sft.Error{Code: sft.Invalid, Msg: err.Error(), Err: err, Hint: g.anew()})
		g.skip(stepProxy, rest...)
		return false
	}
	c, err := g.d.newAPI(g.a)
	if err != nil {
		g.fail(stepProxy, &sft.Error{Code: sft.Invalid, Msg: err.Error(), Err: err, Hint: g.anew()})
		g.skip(stepProxy, rest...)
		return false
	}
	defer c.HTTP.CloseIdleConnections()
	t := &trip{}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, t.trace()), "GET", g.a.URL+"/v1/info", nil)
	if err != nil {
		g.fail(stepProxy, err)
		g.skip(stepProxy, rest...)
		return false
	}
	proxy, from := g.d.Proxy, "network.forward_proxy"
	if proxy == nil {
		from = "HTTPS_PROXY"
		if proxy, err = http.ProxyFromEnvironment(req); err != nil {
			g.fail(stepProxy, &sft.Error{Code: sft.Invalid, Msg: "HTTPS_PROXY cannot be used: " + err.Error(), Err: err, Hint: "set HTTPS_PROXY to http://HOST:PORT, or unset it"})
			g.skip(stepProxy, rest...)
			return false
		}
	}
	sent := machine()
	resp, err := c.HTTP.Do(req)
	var body []byte
	if err == nil {
		body, _ = io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // judged by what is in it
		resp.Body.Close()
	}
	got := machine()
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !g.way(t, at, proxy, from, err) {
		return false
	}
	if err != nil {
		g.fail(stepTLS, g.untrusted(err, machine()))
		g.skip(stepTLS, stepPlatform, stepClock)
		return false
	}
	leaf := resp.TLS.PeerCertificates[0]
	by := "a CA that the system trusts"
	if len(g.a.CA) > 0 {
		by = "the CA that this device was enrolled with"
	}
	g.ok(stepTLS, tls.VersionName(resp.TLS.Version)+", certificate by "+by+", good until "+leaf.NotAfter.UTC().Format(time.RFC3339))
	var info struct {
		Version string `json:"version"`
		URL     string `json:"url"`
	}
	if json.Unmarshal(body, &info) != nil || info.Version == "" || resp.Header.Get(api.TimeHeader) == "" {
		g.fail(stepPlatform, &sft.Error{Code: sft.Internal, Msg: fmt.Sprintf("something that is not the platform answered with status %d", resp.StatusCode), Hint: "check the platform's URL and the proxy"})
		g.skip(stepPlatform, stepClock)
		return false
	}
	g.ok(stepPlatform, "version "+printable(info.Version)+", in "+got.Sub(sent).Round(time.Millisecond).String())
	g.clock(resp.Header.Get(api.TimeHeader), sent.Add(got.Sub(sent)/2))
	return true
}

// anew is the fix for an enrolment that cannot be used.
func (g *diagnosis) anew() string {
	if g.a.Kind == Service {
		return g.a.anew()
	}
	return "run \"sft enroll --force --url URL --team " + g.a.Team + "\" with the line that your platform's administrator gave you"
}

// way tells of proxy, name and connection. It reports whether TLS was begun.
func (g *diagnosis) way(t *trip, at, proxy *url.URL, from string, err error) bool {
	lookup := func(step, host, fix string) bool {
		switch {
		case t.nameErr != nil:
			return g.fail(step, &sft.Error{Code: sft.Unavailable, Msg: "the name " + sft.Quote(host) + " has no address: " + dnsReason(t.nameErr), Err: t.nameErr, Hint: fix})
		case t.asked:
			return g.ok(step, host+" is "+strings.Join(t.addresses, ", "))
		}
		return g.ok(step, host+" is an address")
	}
	if proxy != nil {
		name := proxy.Redacted()
		switch {
		case t.nameErr != nil || t.connected == "":
			why := cmp.Or(t.nameErr, t.dialErr, err, errors.New("it did not answer"))
			g.fail(stepProxy, &sft.Error{Code: sft.Unavailable, Msg: "the proxy " + name + " (by " + from + ") cannot be reached: " + dialReason(why), Err: why,
				Hint: "correct it with \"sft config network.forward_proxy URL\", or HTTPS_PROXY"})
			g.skip(stepProxy, stepName, stepTCP, stepTLS, stepPlatform, stepClock)
			return false
		}
		g.ok(stepProxy, name+", by "+from)
		g.add(doctor.Check{Step: stepName, Verdict: doctor.Skip, Found: "the proxy looks it up"})
		if !t.tlsBegun {
			g.fail(stepTCP, &sft.Error{Code: sft.Unavailable, Msg: "the proxy does not connect to " + at.Host + ": " + dialReason(err), Err: err,
				Hint: "have the proxy let CONNECT to " + at.Host + " through, or name another one with \"sft config network.forward_proxy URL\""})
			g.skip(stepTCP, stepTLS, stepPlatform, stepClock)
			return false
		}
		return g.ok(stepTCP, at.Host+" through the proxy")
	}
	g.ok(stepProxy, "none")
	if !lookup(stepName, at.Hostname(), "check the network's name servers, and whether a VPN is needed; if the platform has moved, enrol again") {
		g.skip(stepName, stepTCP, stepTLS, stepPlatform, stepClock)
		return false
	}
	if t.connected == "" {
		why := cmp.Or(t.dialErr, err, errors.New("it did not answer"))
		g.fail(stepTCP, &sft.Error{Code: sft.Unavailable, Msg: "no connection to " + strings.Join(t.dialled, ", ") + ": " + dialReason(why), Err: why,
			Hint: "check that the platform runs, and that a firewall lets this machine out to " + at.Host + "; or set a proxy with \"sft config network.forward_proxy URL\""})
		g.skip(stepTCP, stepTLS, stepPlatform, stepClock)
		return false
	}
	return g.ok(stepTCP, t.connected)
}

// untrusted words why TLS came to nothing.
func (g *diagnosis) untrusted(err error, now time.Time) error {
	e := &sft.Error{Code: sft.Invalid, Err: err}
	c, verified := errors.AsType[*tls.CertificateVerificationError](err)
	invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](err)
	switch _, unknown := errors.AsType[x509.UnknownAuthorityError](err); {
	case unknown && len(g.a.CA) > 0:
		e.Msg, e.Hint = "the certificate is by another CA than the one that this device was enrolled with",
			"ask the platform's administrator whether the CA was made anew: then "+g.anew()+"; if it was not, somebody is between you and the platform"
	case unknown:
		e.Msg, e.Hint = "the certificate is by a CA that this machine does not know",
			"if a proxy opens TLS here, have its CA installed; if the platform has a CA of its own, "+g.anew()
	case isInvalid && invalid.Reason == x509.Expired:
		e.Msg = "the certificate is not good at " + now.UTC().Format(time.RFC3339) + ", which is what this machine's clock says"
		if verified && len(c.UnverifiedCertificates) > 0 {
			leaf := c.UnverifiedCertificates[0]
			e.Msg += ": it is good from " + leaf.NotBefore.UTC().Format(time.RFC3339) + " to " + leaf.NotAfter.UTC().Format(time.RFC3339)
		}
		e.Hint = "set this machine's clock; if it is right, ask the platform's administrator to renew the certificate"
	case verified:
		e.Msg, e.Hint = "the certificate is not the platform's: "+c.Err.Error(), "check the platform's URL with its administrator; if it is right, somebody is between you and the platform"
	default:
		e.Code, e.Msg = sft.Unavailable, "TLS could not be begun: "+dialReason(err)
		e.Hint = "check that nothing on the way (proxy, firewall) breaks TLS, and that the platform runs"
	}
	return e
}

// clock tells how far the machine's clock is from the platform's, which said
// its own about when it was here.
func (g *diagnosis) clock(said string, here time.Time) {
	there, err := time.Parse(time.RFC3339Nano, said)
	if err != nil {
		g.fail(stepClock, &sft.Error{Code: sft.Internal, Msg: "the platform's time is not readable", Hint: "check that sft and the platform are of the same version"})
		return
	}
	offset := there.Sub(here)
	c := doctor.Check{Step: stepClock, Verdict: doctor.OK, Found: "within " + (offset.Abs().Truncate(time.Second) + time.Second).String() + " of the platform's"}
	if offset.Abs() > api.WarnSkew {
		c.Verdict, c.Fix = doctor.Warn, "set this machine's clock, and keep it right by NTP"
		c.Found = "this machine's clock is " + offset.Abs().Round(time.Second).String() + " " + fastOrSlow(offset) + "; up to " + fmt.Sprint(int(api.MaxSkew.Minutes())) + " minutes are put up with"
	}
	if offset.Abs() > api.MaxSkew {
		c.Verdict, c.Code = doctor.Fail, sft.ClockSkew
	}
	g.add(c)
}

// signIn asks for something that only who is signed in gets.
func (g *diagnosis) signIn(ctx context.Context, s *Session) bool {
	ctx, cancel := context.WithTimeout(ctx, diagnosisTime)
	defer cancel()
	if _, err := s.Projects(ctx); err != nil {
		return g.fail(stepSignIn, err)
	}
	found := s.Account.User + " in team " + s.Account.Team
	if until := s.Account.SignedInUntil; !until.IsZero() {
		found += ", until " + until.UTC().Format(time.RFC3339)
	}
	return g.ok(stepSignIn, found)
}

// server goes on to a server.
func (g *diagnosis) server(ctx context.Context, s *Session, target string) {
	rest := []string{stepIssue, stepRoute, stepBroker, stepProof, stepPing}
	r, err := s.Resolve(ctx, target)
	if err != nil {
		g.fail(stepResolve, err)
		g.skip(stepResolve, append([]string{stepServer, stepProblems}, rest...)...)
		return
	}
	v := r.Server
	g.ok(stepResolve, sft.Quote(target)+" is "+printable(v.Project+"/"+v.Name())+" ("+printable(v.ID)+"), as "+printable(r.Login))
	g.state(v, s.c.Clock.Now())
	for _, p := range v.Problems {
		g.add(problem(p, v))
	}
	if len(v.Problems) == 0 {
		g.ok(stepProblems, "its agent reports none")
	}
	switch {
	case unmanaged(v):
		g.skip("an agent there", rest...)
	case !slices.Contains(v.Services, frame.RDP):
		g.withoutBroker(ctx, s, v)
	default:
		g.ping(ctx, s, target)
	}
}

// withoutBroker is ping for a server whose sftd.yaml turns its broker off: there
// is nobody to ask there, and the platform is asked what it would issue for SSH.
func (g *diagnosis) withoutBroker(ctx context.Context, s *Session, v sft.Server) {
	ctx, cancel := context.WithTimeout(ctx, diagnosisTime)
	defer cancel()
	may, err := s.Access(ctx, v, frame.SSH)
	if err == nil {
		err = missing(may)
	}
	if err != nil {
		g.fail(stepIssue, err)
		g.skip(stepIssue, stepRoute, stepBroker, stepProof, stepPing)
		return
	}
	g.ok(stepIssue, "the platform lets you in by \"sft ssh\" alone: the server has no broker, as its sftd.yaml says (DisableBroker), and so no desktops")
	g.skip("a broker", stepRoute, stepBroker, stepProof, stepPing)
}

// missing is what keeps somebody out, or nil.
func missing(may api.Access) error {
	if may.Credentials {
		return nil
	}
	e := &sft.Error{Code: sft.Denied, Msg: "the platform does not let you in: " + printable(may.Missing), Hint: "ask an administrator of the team"}
	if n := slices.IndexFunc(may.Steps, func(a api.AccessStep) bool { return !a.OK && a.Rule == may.Missing }); n >= 0 {
		e.Msg, e.Hint = e.Msg+": "+printable(may.Steps[n].Text), cmp.Or(printable(may.Steps[n].Hint), e.Hint)
	}
	return e
}

// unmanaged reports whether a server has no agent.
func unmanaged(v sft.Server) bool { return !v.Managed && len(v.Services) == 0 }

// silence is for how long an agent that is well does not ask the platform for
// anything: a state request hangs for less than a minute.
const silence = 5 * time.Minute

// state tells how the platform sees a server.
func (g *diagnosis) state(v sft.Server, now time.Time) {
	found := printable(string(v.State) + ", " + v.OS + ", sftd " + v.Version)
	if v.LastSeen != nil {
		found += ", last in touch at " + v.LastSeen.UTC().Format(time.RFC3339)
	}
	c := doctor.Check{Step: stepServer, Verdict: doctor.OK, Found: found}
	if v.State != sft.StateActive {
		c.Verdict, c.Code, c.Fix = doctor.Fail, sft.Unavailable, "start sftd on it, or delete the record if the host is gone"
	}
	if c.Verdict == doctor.OK && !unmanaged(v) && (v.LastSeen == nil || now.Sub(*v.LastSeen) > silence) {
		c.Verdict, c.Fix = doctor.Warn, "look at \"sftd status\" on the server: its agent does not reach the platform"
	}
	if len(v.NameConflict) > 0 && c.Verdict == doctor.OK {
		c.Verdict, c.Found = doctor.Warn, c.Found+"; other servers hold its names too: "+printable(strings.Join(v.NameConflict, ", "))
		c.Fix = "name it by its id, or have an administrator rename one"
	}
	g.add(c)
}

// problem is what the agent of a server says is wrong there. It says of its RDP
// service what would refuse a sign-in, and, as a warning, what would not.
func problem(said string, v sft.Server) doctor.Check {
	c := doctor.Check{Step: stepProblems, Verdict: doctor.Warn, Found: printable(said), Fix: "have the host's administrator look at \"sftd status\" there"}
	if strings.HasPrefix(said, "rdp: ") {
		c.Verdict, c.Code = doctor.Fail, sft.RDPUnavailable
		if slices.Contains(v.Services, frame.SSH) {
			c.Fix += "; \"sft ssh\" does not need it"
		}
	}
	return c
}

// ping has the platform issue a certificate, and the server's broker answer.
func (g *diagnosis) ping(ctx context.Context, s *Session, target string) {
	ctx, cancel := context.WithTimeout(ctx, 3*diagnosisTime)
	defer cancel()
	var mu sync.Mutex
	done := map[string]bool{}
	var hops []string
	c, err := s.Connect(ctx, target, frame.Ping, nil, func(step string) {
		mu.Lock()
		defer mu.Unlock()
		if hop, ok := strings.CutPrefix(step, "hop "); ok && !done[step] {
			hops = append(hops, hop)
		}
		done[step] = true
	})
	if err != nil {
		g.fail(stepIssue, err)
		g.skip(stepIssue, stepRoute, stepBroker, stepProof, stepPing)
		return
	}
	defer c.Close()
	c.Hops(false, true)
	h := c.Target()
	g.ok(stepIssue, "the platform lets you in and issued a certificate")
	address := net.JoinHostPort(h.Address, fmt.Sprint(h.Port))
	stream, reply, err := c.Open(ctx, nil)
	if err == nil {
		stream.Close()
	}
	mu.Lock()
	defer mu.Unlock()
	// What broke is the first that was not reached.
	switch through := c.through(); {
	case len(through) == 0:
		g.ok(stepRoute, "direct")
	case done["dialled"] || err == nil || len(hops) == len(through):
		g.ok(stepRoute, "through "+strings.Join(through, ", "))
	default:
		g.fail(stepRoute, err)
		g.skip(stepRoute, stepBroker, stepProof, stepPing)
		return
	}
	switch {
	case err != nil && !done["dialled"]:
		g.fail(stepBroker, err)
		g.skip(stepBroker, stepProof, stepPing)
		return
	case err != nil && !done["tls"]:
		g.ok(stepBroker, address)
		g.fail(stepProof, err)
		g.skip(stepProof, stepPing)
		return
	}
	g.ok(stepBroker, address)
	g.ok(stepProof, "its certificate and key are those that the platform knows")
	switch p := reply.Ping; {
	case err != nil:
		g.fail(stepPing, err)
	case p == nil:
		g.fail(stepPing, &sft.Error{Code: sft.Internal, Msg: "the broker's answer is none to a ping", Hint: "check that sft and sftd are of the same version"})
	case p.Server != h.ServerID || p.Login != h.Login:
		g.fail(stepPing, &sft.Error{Code: sft.Internal, Msg: fmt.Sprintf("the host says that this is login %s on %s, the platform says %s on %s",
			sft.Quote(p.Login), sft.Quote(p.Server), sft.Quote(h.Login), sft.Quote(h.ServerID)), Hint: "look at \"sftd status\" on the server, and that it is in touch with the platform"})
	default:
		g.ok(stepPing, "the host knows you as "+p.Login)
	}
}

// dnsReason is why a name has no address, without the name.
func dnsReason(err error) string {
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return e.Err
	}
	return err.Error()
}

// dialReason is why a connection came to nothing, without its addresses.
func dialReason(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "it did not answer in time"
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return "the name " + sft.Quote(e.Name) + " has no address: " + e.Err
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Err != nil {
		return e.Err.Error()
	}
	return err.Error()
}
