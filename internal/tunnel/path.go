package tunnel

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
)

// A Hop is a host to go through: an SSH server that connects on.
type Hop struct {
	Name    string // for messages
	Address string // host:port

	// Login, Signer (a certificate with its key), ID (the principal that the
	// host's certificate must have), HostCAs and HostKeys are of an enrolled
	// hop. Login may also be of an unmanaged one.
	Login    string
	Signer   ssh.Signer
	ID       string
	HostCAs  []ssh.PublicKey
	HostKeys []ssh.PublicKey // that it may show without a certificate by HostCAs
	Netcat   bool            // go on by a program on the hop, not by direct-tcpip

	// Unmanaged is a hop that the person's own ssh goes through. Address is
	// then what they would type, without a port if Port is 0.
	Unmanaged bool
	// HostName is where an unmanaged hop is, if not where the person's settings
	// say.
	HostName string
	Port     int
}

// A Path connects through any number of hops, each reached through the one
// before it: what is between them sees ciphertext alone. The SSH connection to
// a hop is made when it is first needed, and shared by what goes through it;
// one that has broken is made again. Its methods may be used concurrently.
//
// An unmanaged hop has no connection that could be shared: each Dial through
// it runs the person's ssh, unless a hop after it shares one.
type Path struct {
	// Hops returns the hops in their order, with certificates that are good
	// now. It is called when an SSH connection is to be made.
	Hops func(ctx context.Context) ([]Hop, error)
	// Mark is told when a step is done: "hop NAME", by any goroutine. It may be
	// nil.
	Mark func(step string)
	// Clock is what the hops' certificates are judged by; nil: time.Now.
	Clock func() time.Time
	// Batch keeps the person's ssh from asking anything: set it where there is
	// nobody to answer.
	Batch bool
	// Stderr is where the person's ssh writes what it has to say; nil: the
	// program's own.
	Stderr io.Writer

	alive   time.Duration // between two questions to a hop; 0: aliveTime
	sshArgs []string      // before the others, for tests

	mu     sync.Mutex
	closed bool
	ways   []way // through the first hops, each by the one before it
	whole  bool  // they are all there are
	flight *flight
	life   context.Context
	stop   context.CancelFunc
}

// What bounds a Path. An SSH connection is dead that has left three questions
// without an answer.
const (
	stepTime  = 10 * time.Second // for each hop: connecting and the handshake
	askTime   = 2 * time.Minute  // that the person's ssh may take besides, to ask the person
	aliveTime = 10 * time.Second // between two questions to a hop
	probeTime = 5 * time.Second  // for any sign of life, before a shared connection is used again
)

// A way is one step of a path.
type way interface {
	// dial connects to what there is to reach from the end of this step.
	dial(ctx context.Context, to target) (net.Conn, error)
	working() bool
	of() Hop
	close()
}

// A target is what a step is to connect to.
type target struct {
	name    string // of the hop, or empty
	address string
	host    string
	port    uint16
}

func (t target) String() string {
	if t.name == "" {
		return t.address
	}
	return t.name + " at " + t.address
}

// newTarget checks an address before any of it gets near a command line.
func newTarget(name, address string) (target, error) {
	host, port, err := net.SplitHostPort(address)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 || !isHost(host) {
		return target{}, &sft.Error{Code: sft.Invalid, Msg: "address " + sft.Quote(address) + " cannot be used", Err: err,
			Hint: "give a host and a port, as in db01.example.com:22"}
	}
	return target{name: name, address: net.JoinHostPort(host, strconv.FormatUint(n, 10)), host: host, port: uint16(n)}, nil
}

// isHost reports whether host is the name or the address of one. Neither can
// begin like an option, and neither has a character that a shell minds.
func isHost(host string) bool {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Zone() == ""
	}
	return sft.CheckHostname(host) == nil
}

// A flight is the making of a path, which whoever needs it waits for. It ends
// early when nobody does any more.
type flight struct {
	done   chan struct{}
	cancel context.CancelFunc
	wanted int
	way    way
	err    error
}

// Dial connects to address, host:port, through the hops. Closing the Path ends
// the connection, which can be closed for writing alone (see Stream); through
// netcat, that ends at the hop. Errors are *sft.Error and name the hop that
// failed, or ctx's. So are those of a connection whose hop is lost later.
func (p *Path) Dial(ctx context.Context, address string) (net.Conn, error) {
	to, err := newTarget("", address)
	if err != nil {
		return nil, err
	}
	for again := false; ; again = true {
		w, shared, err := p.last(ctx)
		if err != nil {
			return nil, err
		}
		step, cancel := context.WithTimeout(ctx, stepTime)
		conn, err := w.dial(step, to)
		cancel()
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if again || !shared || w.working() {
			return nil, err
		}
	}
}

// Close ends every connection through the hops, for good.
func (p *Path) Close() error {
	p.mu.Lock()
	p.closed = true
	if p.stop != nil {
		p.stop()
	}
	ways := p.ways
	p.ways, p.whole = nil, false
	p.mu.Unlock()
	for _, w := range ways {
		w.close()
	}
	return nil
}

var errPathClosed = &sft.Error{Code: sft.Unavailable, Msg: "the way through the hops was closed", Err: net.ErrClosed}

// last returns the last step of a path that is whole. shared says that it was
// there before, so that it may have died without anybody noticing.
func (p *Path) last(ctx context.Context) (w way, shared bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, false, errPathClosed
	}
	if p.life == nil {
		p.life, p.stop = context.WithCancel(context.Background())
	}
	if p.whole && workingAll(p.ways) {
		defer p.mu.Unlock()
		return end(p.ways), true, nil
	}
	f := p.flight
	if f == nil {
		f = &flight{done: make(chan struct{})}
		var fctx context.Context
		fctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
		stop := context.AfterFunc(p.life, f.cancel)
		p.flight = f
		go func() {
			defer stop()
			defer f.cancel()
			p.build(fctx, f)
		}()
	}
	f.wanted++
	p.mu.Unlock()
	select {
	case <-f.done:
		return f.way, false, f.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.wanted--; f.wanted == 0 {
		f.cancel()
		if p.flight == f {
			p.flight = nil
		}
	}
	return nil, false, ctx.Err()
}

func workingAll(ways []way) bool {
	for _, w := range ways {
		if !w.working() {
			return false
		}
	}
	return true
}

func end(ways []way) way {
	if len(ways) == 0 {
		return direct{}
	}
	return ways[len(ways)-1]
}

// build makes what is missing of the path, for f.
func (p *Path) build(ctx context.Context, f *flight) {
	defer close(f.done)
	var err error
	for range 2 {
		var reused []way
		if reused, err = p.extend(ctx, f); err == nil || workingAll(reused) || ctx.Err() != nil {
			break // and else what was thought to work did not
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		err = errPathClosed
	}
	if p.flight == f {
		p.flight = nil
		p.whole = err == nil
		f.way = end(p.ways)
	} else if err == nil {
		err = context.Canceled
	}
	f.err = err
}

// extend keeps the beginning of the path that still works, and makes the rest.
func (p *Path) extend(ctx context.Context, f *flight) (reused []way, err error) {
	hops, err := p.Hops(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	if p.flight != f || p.closed {
		p.mu.Unlock()
		return nil, context.Canceled
	}
	p.whole = false
	n := 0
	for n < len(p.ways) && n < len(hops) && p.ways[n].working() && same(p.ways[n].of(), hops[n]) {
		n++
	}
	stale := p.ways[n:]
	p.ways = p.ways[:n:n]
	ways := p.ways
	p.mu.Unlock()
	for _, w := range stale {
		w.close()
	}
	for _, hop := range hops[n:] {
		w, err := p.through(ctx, hop, end(ways))
		if err != nil {
			return ways[:n], err
		}
		p.mu.Lock()
		if p.flight != f || p.closed {
			p.mu.Unlock()
			w.close()
			return nil, context.Canceled
		}
		ways = append(ways, w)
		p.ways = ways
		p.mu.Unlock()
	}
	return ways[:n], nil
}

// same reports whether two are one hop, whatever certificates they have.
func same(a, b Hop) bool {
	return a.Name == b.Name && a.Address == b.Address && a.Login == b.Login && a.ID == b.ID &&
		a.Netcat == b.Netcat && a.Unmanaged == b.Unmanaged && a.Port == b.Port && a.HostName == b.HostName
}

// through makes the step through hop, over what comes before it.
func (p *Path) through(ctx context.Context, hop Hop, before way) (way, error) {
	if hop.Unmanaged {
		return p.newOwnSSH(hop, before)
	}
	l, err := p.connect(ctx, hop, before)
	if err != nil {
		return nil, err
	}
	p.mark(hop)
	return l, nil
}

func (p *Path) mark(hop Hop) {
	if p.Mark != nil {
		p.Mark("hop " + hop.Name)
	}
}

func (p *Path) now() time.Time {
	if p.Clock != nil {
		return p.Clock()
	}
	return time.Now()
}

func (p *Path) aliveTime() time.Duration {
	if p.alive > 0 {
		return p.alive
	}
	return aliveTime
}

// direct is the way through no hop.
type direct struct{}

func (direct) dial(ctx context.Context, to target) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTime}
	conn, err := d.DialContext(ctx, "tcp", to.address)
	if err != nil {
		what := "cannot connect to " + to.address
		if to.name != "" {
			what = fmt.Sprintf("hop %s cannot be reached", to)
		}
		return nil, &sft.Error{Code: sft.Unavailable, Err: err, Msg: what + ": " + reason(err),
			Hint: "check that it is up and that its port can be reached from here"}
	}
	return conn, nil
}

func (direct) working() bool { return true }
func (direct) of() Hop       { return Hop{} }
func (direct) close()        {}
