package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
)

// A lostError is what a connection ends with whose hop is gone. It is a type
// of its own so that it can be told from what the far end says.
type lostError struct{ e *sft.Error }

func (l *lostError) Error() string { return l.e.Error() }
func (l *lostError) Unwrap() error { return l.e }

// A farError says that all hops are there, and what is behind them is not.
type farError struct{ err error }

func (f *farError) Error() string { return f.err.Error() }
func (f *farError) Unwrap() error { return f.err }

// A link is an SSH connection to an enrolled hop.
type link struct {
	hop    Hop
	before way // what it goes through
	conn   ssh.Conn
	raw    net.Conn
	alive  time.Duration

	heard   atomic.Uint64 // counts what came from the hop
	missed  atomic.Int32  // questions since then
	asking  atomic.Bool   // one is without an answer
	netcat  atomic.Bool
	failing sync.Once
	why     error         // once dead is closed
	dead    chan struct{} // closed
}

// connect makes an SSH connection to a hop that proves itself.
func (p *Path) connect(ctx context.Context, hop Hop, before way) (*link, error) {
	to, err := newTarget(hop.Name, hop.Address)
	if err != nil {
		return nil, err
	}
	if hop.Signer == nil {
		return nil, &sft.Error{Code: sft.Internal, Msg: "there is no certificate for hop " + hop.Name, Hint: "ask an administrator of the platform"}
	}
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	l := &link{hop: hop, before: before, alive: p.aliveTime(), dead: make(chan struct{})}
	l.netcat.Store(hop.Netcat)
	if l.raw, err = before.dial(ctx, to); err != nil {
		if outer.Err() != nil {
			return nil, outer.Err()
		}
		return nil, err
	}
	if more := patience(l.raw); more > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(outer, stepTime+more)
		defer stop()
	}
	stop := context.AfterFunc(ctx, func() { l.raw.Close() })
	w := &watched{Conn: l.raw, l: l}
	var verdict atomic.Pointer[error] // keys are exchanged by another goroutine, and again later
	algorithms := ssh.SupportedAlgorithms()
	config := &ssh.ClientConfig{
		// The package's own order begins with AES-GCM, which is the fastest
		// where the processor has instructions for it. Its defaults have SHA-1
		// besides, which its list of what is supported does not.
		Config: ssh.Config{KeyExchanges: algorithms.KeyExchanges, Ciphers: algorithms.Ciphers,
			MACs: slices.DeleteFunc(algorithms.MACs, func(s string) bool { return s == ssh.HMACSHA1 })},
		User:              hop.Login,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(hop.Signer)},
		HostKeyAlgorithms: hop.algorithms(algorithms.HostKeys),
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			err := hop.verify(p.now(), key)
			verdict.Store(&err)
			return err
		},
	}
	conn, channels, requests, err := ssh.NewClientConn(w, hop.Address, config)
	if !stop() && err == nil { // ctx ended, and raw is closed
		conn.Close()
		err = ctx.Err()
	}
	if err != nil {
		l.raw.Close()
		v, broken := verdict.Load(), w.err.Load()
		switch {
		case outer.Err() != nil:
			return nil, outer.Err()
		case v != nil && *v != nil:
			err = *v
		case ctx.Err() != nil:
			err = ctx.Err()
		case !w.speaks():
			err = errUnproven("it does not speak SSH")
		case broken != nil:
			err = errors.Join(*broken, err)
		}
		return nil, hop.explain(err, v != nil && *v == nil)
	}
	l.conn = conn
	go ssh.DiscardRequests(requests)
	go func() {
		for c := range channels {
			c.Reject(ssh.Prohibited, "")
		}
	}()
	go func() { l.lose(conn.Wait()) }()
	go l.keepAlive()
	return l, nil
}

// watched tells the link what comes from the hop. It knows of a broken
// connection before what goes over the connection does.
type watched struct {
	net.Conn
	l   *link
	err atomic.Pointer[error] // of Read; for the handshake's end
	mu  sync.Mutex
	is  []byte // the first bytes
}

// speaks reports whether what came, if anything did, began as SSH does.
func (w *watched) speaks() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.HasPrefix("SSH-", string(w.is))
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 {
		w.l.heard.Add(1)
		w.l.missed.Store(0)
		if w.l.heard.Load() <= 4 {
			w.mu.Lock()
			w.is = append(w.is, p[:min(n, 4-len(w.is))]...)
			w.mu.Unlock()
		}
	}
	if err != nil && w.err.CompareAndSwap(nil, &err) {
		w.l.lose(err)
	}
	return n, err
}

// lose ends the link because of err.
func (l *link) lose(err error) {
	e := &sft.Error{Code: sft.Unavailable, Err: err, Hint: "try again; if it stays so, check the network and that the hop is up"}
	if lost, ok := errors.AsType[*lostError](err); ok {
		l.fail(lost) // of a hop before this one
		return
	}
	e.Msg = fmt.Sprintf("the connection to hop %s was lost", l.hop.Name)
	if why := said(err); why != "" {
		e.Msg += ": " + why
	}
	l.fail(&lostError{e})
}

// said is what is worth reading of the end of a connection.
func said(err error) string {
	var op *net.OpError
	switch {
	case err == nil, errors.Is(err, net.ErrClosed):
		return ""
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "it hung up"
	case errors.As(err, &op):
		return op.Err.Error()
	}
	return strings.Trim(sft.Quote(strings.TrimPrefix(err.Error(), "ssh: ")), `"`)
}

func (l *link) fail(why error) {
	l.failing.Do(func() {
		l.why = why
		close(l.dead)
		l.raw.Close()
	})
}

func (l *link) of() Hop { return l.hop }
func (l *link) close()  { l.fail(net.ErrClosed) }

func (l *link) working() bool {
	select {
	case <-l.dead:
		return false
	default:
		return true
	}
}

// keepAlive asks the hop whether it is there, and ends the link after three
// questions in whose time nothing at all came. It counts questions and not
// seconds: of a machine that was asleep the hop is innocent.
func (l *link) keepAlive() {
	tick := time.NewTicker(l.alive)
	defer tick.Stop()
	for {
		select {
		case <-l.dead:
			return
		case <-tick.C:
		}
		if l.missed.Load() >= 3 && !quiet(l.before) {
			l.lose(fmt.Errorf("no answer for %s", 3*l.alive))
			return
		}
		l.missed.Add(1)
		l.ask()
	}
}

// quiet reports whether a hop on the way owes an answer: then it is the one
// to blame, and its link will say so.
func quiet(w way) bool {
	for {
		l, ok := w.(*link)
		if !ok {
			return false
		}
		if l.working() && l.missed.Load() > 0 {
			return true
		}
		w = l.before
	}
}

// ask has the hop say anything. A second question is not sent before the first
// one's answer.
func (l *link) ask() {
	if !l.asking.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer l.asking.Store(false)
		l.conn.SendRequest("keepalive@openssh.com", true, nil)
	}()
}

// dial connects on from the hop.
func (l *link) dial(ctx context.Context, to target) (net.Conn, error) {
	if !l.netcat.Load() {
		conn, err := l.direct(ctx, to)
		refused, ok := errors.AsType[*ssh.OpenChannelError](err)
		if !ok || refused.Reason != ssh.Prohibited {
			if err != nil {
				return nil, l.unconnected(to, err)
			}
			return conn, nil
		}
	}
	conn, err := l.byNetcat(ctx, to)
	if err != nil {
		return nil, l.unconnected(to, err)
	}
	l.netcat.Store(true)
	return conn, nil
}

// unconnected words why the hop did not connect on.
func (l *link) unconnected(to target, err error) error {
	if e, ok := errors.AsType[*sft.Error](err); ok {
		return e
	}
	if errors.Is(err, net.ErrClosed) {
		return errPathClosed
	}
	e := &sft.Error{Code: sft.Unavailable, Err: err}
	if to.name == "" {
		e.Err = &farError{err}
	}
	e.Msg = fmt.Sprintf("hop %s cannot connect to %s", l.hop.Name, to)
	e.Hint = fmt.Sprintf("check that it is up and that %s can reach its port", l.hop.Name)
	refused, ok := errors.AsType[*ssh.OpenChannelError](err)
	switch {
	case ok && refused.Reason == ssh.ConnectionFailed:
		e.Msg += ": " + strings.ToLower(strings.Trim(sft.Quote(refused.Message), `"`))
	case ok:
		e.Msg += ": " + refused.Reason.String()
	case errors.Is(err, context.DeadlineExceeded):
		e.Msg += ": no connection within " + stepTime.String()
	default:
		e.Msg += ": " + said(err)
	}
	return e
}

// direct opens a direct-tcpip channel (RFC 4254, section 7.2).
func (l *link) direct(ctx context.Context, to target) (net.Conn, error) {
	ch, requests, err := l.open(ctx, "direct-tcpip", ssh.Marshal(struct {
		Host     string
		Port     uint32
		From     string
		FromPort uint32
	}{to.host, uint32(to.port), "127.0.0.1", 0}))
	if err != nil {
		return nil, err
	}
	go ssh.DiscardRequests(requests)
	go io.Copy(io.Discard, ch.Stderr())
	return newStream(ch, to.address, func(err error) error {
		if l.ended(err) {
			return l.why
		}
		return err
	}), nil
}

// ended reports whether a channel's err is the link's. A channel ends with
// io.EOF when its link does, a moment before the link is known to be dead.
func (l *link) ended(err error) bool {
	wait := 10 * time.Millisecond
	if err != io.EOF {
		wait = 100 * time.Millisecond
	}
	select {
	case <-l.dead:
		return true
	case <-time.After(wait):
		return false
	}
}

// open opens a channel. It gives up when ctx ends or the link does, and ends
// a link, the nearest one, that nothing comes from meanwhile.
func (l *link) open(ctx context.Context, kind string, payload []byte) (ssh.Channel, <-chan *ssh.Request, error) {
	type result struct {
		ch       ssh.Channel
		requests <-chan *ssh.Request
		err      error
	}
	got := make(chan result, 1)
	var silent []*link // what was not heard of since, from here to the first hop
	var heard []uint64
	for w := way(l); ; w = w.(*link).before {
		x, ok := w.(*link)
		if !ok {
			break
		}
		silent, heard = append(silent, x), append(heard, x.heard.Load())
		x.ask()
	}
	go func() {
		ch, requests, err := l.conn.OpenChannel(kind, payload)
		got <- result{ch, requests, err}
	}()
	probe := time.NewTimer(min(probeTime, 3*l.alive))
	defer probe.Stop()
	var err error
	for err == nil {
		select {
		case r := <-got:
			if r.err != nil && !l.workingSoon(r.err) {
				return nil, nil, l.why
			}
			return r.ch, r.requests, r.err
		case <-ctx.Done():
			err = ctx.Err()
		case <-l.dead:
			err = l.why
		case <-probe.C:
			for i, x := range slices.Backward(silent) {
				if x.heard.Load() == heard[i] {
					x.lose(fmt.Errorf("no answer for %s", min(probeTime, 3*l.alive)))
					break
				}
			}
		}
	}
	go func() {
		if r := <-got; r.err == nil {
			r.ch.Close()
			ssh.DiscardRequests(r.requests)
		}
	}()
	return nil, nil, err
}

// workingSoon is working, once an error that the link's end may have caused
// has shown whether it did.
func (l *link) workingSoon(err error) bool {
	if _, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
		return true
	}
	return !l.ended(err)
}

// byNetcat connects on by a program on the hop. Whether that worked shows when
// something is read: the program says nothing before.
func (l *link) byNetcat(ctx context.Context, to target) (net.Conn, error) {
	forbidden := func(how string) error {
		return &sft.Error{Code: sft.Denied,
			Msg:  fmt.Sprintf("hop %s does not let anything through to %s: %s", l.hop.Name, to, how),
			Hint: fmt.Sprintf("have its administrator allow AllowTcpForwarding in the sshd_config of %s, or netcat", l.hop.Name)}
	}
	ch, requests, err := l.open(ctx, "session", nil)
	if refused, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
		return nil, forbidden("neither forwarding nor a session is allowed (" + refused.Reason.String() + ")")
	}
	if err != nil {
		return nil, err
	}
	n := &netcat{Channel: ch, status: -1, ended: make(chan struct{})}
	go n.follow(requests)
	go n.listen(ch.Stderr())
	started := make(chan error, 1)
	go func() {
		ok, err := ch.SendRequest("exec", true, ssh.Marshal(struct{ Command string }{netcatCommand(to)}))
		if err == nil && !ok {
			err = forbidden("forwarding is not allowed, and neither is running a program")
		}
		started <- err
	}()
	select {
	case err = <-started:
	case <-ctx.Done():
		err = ctx.Err()
	case <-l.dead:
		err = l.why
	}
	if err != nil {
		go ch.Close()
		return nil, err
	}
	return newStream(n, to.address, func(err error) error {
		if l.ended(err) {
			return l.why
		}
		if err != io.EOF {
			return err
		}
		status, words := n.outcome()
		switch {
		case status == 0 || status < 0 && n.any.Load():
			return io.EOF
		case status == 126 || status == 127:
			return &lostError{forbidden("forwarding is not allowed, and it has no program nc").(*sft.Error)}
		}
		e := &sft.Error{Code: sft.Unavailable, Msg: fmt.Sprintf("hop %s cannot connect to %s", l.hop.Name, to),
			Hint: fmt.Sprintf("check that it is up and that %s can reach its port", l.hop.Name)}
		if n.any.Load() {
			e.Msg = fmt.Sprintf("the connection from hop %s to %s was lost", l.hop.Name, to)
		}
		if words != "" {
			e.Msg += ": nc says " + sft.Quote(words)
		}
		return &lostError{e}
	}), nil
}

// netcatCommand is the command line that connects a session to a target. Its
// host has passed isHost, so that no shell sees anything in it.
func netcatCommand(to target) string { return fmt.Sprintf("exec nc '%s' %d", to.host, to.port) }

// netcat is the session of a program that connects on.
type netcat struct {
	ssh.Channel
	any   atomic.Bool // something was read
	ended chan struct{}

	mu     sync.Mutex
	status int // -1: unknown
	words  []byte
}

func (n *netcat) Read(p []byte) (int, error) {
	k, err := n.Channel.Read(p)
	if k > 0 {
		n.any.Store(true)
	}
	return k, err
}

// follow waits for the program's end.
func (n *netcat) follow(requests <-chan *ssh.Request) {
	defer close(n.ended)
	for r := range requests {
		var exit struct{ Status uint32 }
		if r.Type == "exit-status" && ssh.Unmarshal(r.Payload, &exit) == nil {
			n.mu.Lock()
			n.status = int(exit.Status)
			n.mu.Unlock()
		}
		r.Reply(false, nil)
	}
}

// listen keeps the beginning of what the program has to say.
func (n *netcat) listen(r io.Reader) {
	b := make([]byte, 256)
	for {
		k, err := r.Read(b)
		n.mu.Lock()
		n.words = append(n.words, b[:min(k, 256-len(n.words))]...)
		n.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (n *netcat) outcome() (status int, words string) {
	select {
	case <-n.ended:
	case <-time.After(time.Second):
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status, strings.TrimSpace(string(n.words))
}

// algorithms is the order in which a hop is asked for what proves it: any
// certificate first, then the keys that are known.
func (h *Hop) algorithms(supported []string) []string {
	var certs, keys []string
	for _, a := range supported {
		cert := strings.Contains(a, "-cert-v01")
		switch {
		case cert && len(h.HostCAs) > 0:
			certs = append(certs, a)
		case !cert && slices.ContainsFunc(h.HostKeys, func(k ssh.PublicKey) bool { return hasAlgorithm(k, a) }):
			keys = append(keys, a)
		}
	}
	return append(certs, keys...)
}

func hasAlgorithm(k ssh.PublicKey, algorithm string) bool {
	if k.Type() == ssh.KeyAlgoRSA {
		return algorithm == ssh.KeyAlgoRSASHA256 || algorithm == ssh.KeyAlgoRSASHA512
	}
	return k.Type() == algorithm
}

// What verify finds, where explain has a hint of its own for it.
const (
	expired  errUnproven = "its certificate has expired, or is not valid yet"
	noSecret errUnproven = "it has no certificate by the project's host CA and no key that the platform knows"
)

// verify is the last word on who a hop is. key has signed the key exchange.
func (h *Hop) verify(now time.Time, key ssh.PublicKey) error {
	is := func(a ssh.PublicKey) func(ssh.PublicKey) bool {
		return func(b ssh.PublicKey) bool { return string(a.Marshal()) == string(b.Marshal()) }
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		if slices.ContainsFunc(h.HostKeys, is(key)) {
			return nil
		}
		return errUnproven("its key is not one that the platform knows")
	}
	// A site may have a host CA of its own. Its certificates mean nothing
	// here, but the key in one is proven as it would be without.
	if !slices.ContainsFunc(h.HostCAs, is(cert.SignatureKey)) {
		if slices.ContainsFunc(h.HostKeys, is(cert.Key)) {
			return nil
		}
		return errUnproven("its certificate is not by the project's host CA")
	}
	switch {
	case cert.CertType != ssh.HostCert:
		return errUnproven("its certificate is not for hosts")
	case h.ID == "" || !slices.Contains(cert.ValidPrincipals, h.ID):
		return errUnproven("its certificate is for another server")
	case len(cert.CriticalOptions) > 0:
		return errUnproven("its certificate has critical options, which nobody here knows")
	case cert.ValidBefore == ssh.CertTimeInfinity:
		return errUnproven("its certificate is valid for ever")
	case uint64(now.Unix()) < cert.ValidAfter || uint64(now.Unix()) >= cert.ValidBefore:
		return expired
	}
	check := ssh.CertChecker{Clock: func() time.Time { return now }}
	if err := check.CheckCert(h.ID, cert); err != nil {
		return errUnproven("its certificate is wrong: " + said(err))
	}
	return nil
}

// explain says why there is no SSH connection to the hop although something
// answers there.
func (h *Hop) explain(err error, proven bool) error {
	if lost, ok := errors.AsType[*lostError](err); ok {
		return lost.e
	}
	e := &sft.Error{Err: err}
	unproven := func(why string) error {
		e.Code = sft.Invalid
		e.Msg = fmt.Sprintf("what answers at %s did not prove that it is hop %s: %s; nothing was sent to it", h.Address, h.Name, why)
		e.Hint = "try again in a minute; if it stays so, tell an administrator: somebody may be between you and the server"
		if err == error(expired) {
			e.Hint = fmt.Sprintf("check this machine's clock; if it is right, look at \"sftd status\" on %s", h.Name)
		}
		return e
	}
	if why, ok := errors.AsType[errUnproven](err); ok {
		return unproven(string(why))
	}
	if n, ok := errors.AsType[*ssh.AlgorithmNegotiationError](err); ok {
		if strings.Contains(n.What, "host key") {
			return unproven(string(noSecret))
		}
		e.Code = sft.Invalid
		e.Msg = fmt.Sprintf("hop %s takes no %s that is good enough", h.Name, n.What)
		e.Hint = "have its administrator allow OpenSSH's own choice of algorithms in its sshd_config"
		return e
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		e.Code = sft.Unavailable
		e.Msg = fmt.Sprintf("hop %s at %s did not answer in time", h.Name, h.Address)
		e.Hint = "try again; if it stays so, check that its sshd is well"
	case proven && strings.Contains(err.Error(), "unable to authenticate"):
		e.Code = sft.Denied
		e.Msg = fmt.Sprintf("hop %s refused the certificate that the platform issued for %s", h.Name, sft.Quote(h.Login))
		e.Hint = fmt.Sprintf("try again; if it stays so, look at \"sftd status\" on %s: its sshd may not be set up, or not know of you yet", h.Name)
	default:
		e.Code = sft.Unavailable
		e.Msg = fmt.Sprintf("hop %s at %s hung up", h.Name, h.Address)
		e.Hint = fmt.Sprintf("try again; if it stays so, look at the log of sshd on %s", h.Name)
	}
	return e
}
