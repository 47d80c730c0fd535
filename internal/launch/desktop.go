package launch

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sft"
	"sft/internal/frame"
	"sft/internal/loopback"
	"sft/internal/rdp"
	"sft/internal/relay"
)

// A Stream is a connection to the RDP service of a server. It can be closed
// for writing alone.
type Stream interface {
	net.Conn
	CloseWrite() error
}

// What the RDP service must have sent for a session to count as established.
// Where the password is delivered, the stream is sealed between it and the RDP
// client, so that the number of bytes is all there is to go by. A certificate
// that is not the pinned one ends a connection at about 2 KiB, a password that
// NLA refuses at 4; the smallest desktop on record took 9. Of that, 3 come
// before the Client Info. A FreeRDP that says it could not connect is believed
// unless the stream went on for longer than connecting does.
const (
	shown       = 6 << 10
	shownInside = 3 << 10 // after the Client Info
	proven      = 3 * time.Second
)

// patience is how long a later socket waits for its stream while the server
// cannot be reached. An RDP client that reconnects tries a few times only, and
// at once after each other.
const patience = 6 * time.Second

// maxStreams caps the sockets that are served at once.
const maxStreams = 16

// endTime is how long streams may take to end when nobody reads them any
// more.
const endTime = 2 * time.Second

// A Desktop is one run of an RDP client. All fields but Front, Refused,
// Program, Output, Thumb and Mark are required.
type Desktop struct {
	Listener *loopback.Listener
	// First is the way for the first socket. It is opened before the RDP
	// client shows anything, so that a refusal is told without a window: the
	// client may be started while it is, if it shows none before it is
	// connected. One that cannot be opened is of no stream, and ends the run
	// by the context.
	First <-chan Way
	// Open makes a way for each later socket; what ahead returns, if it is not
	// nil, is sent before the server has answered. An error that Final says is
	// final ends the session.
	Open  func(ctx context.Context, ahead Ahead) (Way, error)
	Final func(error) bool
	// Front answers the RDP client where the server signs in itself; nil where
	// it delivers the password.
	Front *rdp.Front
	// Refused is told of who did not know the launch secret.
	Refused func(error)

	Program *Program // nil: the person starts one
	Target  Target
	View    View
	Secret  sft.Secret
	RunBase string    // folder for a connection file, if the program needs one
	Thumb   []byte    // SHA-1 of Front's certificate, by which mstsc knows it
	Output  io.Writer // what the program writes; nil keeps it for an error alone

	Say  func(line string) // tells the person what happened
	Mark func(step string) // "client_started", "first_socket", "first_server_byte"

	first   sync.Once    // the first byte from the server
	shown   atomic.Bool  // a stream brought enough for a picture
	longest atomic.Int64 // how long a stream went on after that, in nanoseconds
	refusal atomic.Value // string: the last one that was told
	failure atomic.Value // *sft.Error: why a connection came to nothing
	flags   atomic.Int32 // of the first way, and 1 more; 0: there was none

	mu      sync.Mutex   // guards Secret, once Run has begun, next and traces
	traces  traces       // of the RDP client that runs
	next    <-chan Way   // for the next socket; nil: Open one
	renewed chan renewal // of capacity 1
}

// A renewal is a stream that came with another secret than the RDP client was
// started with.
type renewal struct {
	stream Stream
	secret sft.Secret
}

// maxRenewals caps how often an RDP client is started anew in one session.
const maxRenewals = 20

// Run serves sockets until the RDP client has ended and closed them, or ctx
// has ended. It closes everything, and removes what it wrote. The error says
// why a session never came to be; once one was established, there is none,
// unless the desktop was locked: then the RDP client is ended, and the error
// has the code Locked. Where the person has started the RDP client, they are
// told instead, and Run goes on: whoever connects again signs in afresh.
//
// A host that was away for long has set another password, which the RDP
// client does not know. It is then ended, and started anew with that.
func (d *Desktop) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer d.Listener.Close()
	d.next, d.renewed = d.First, make(chan renewal, 1)
	if d.Front != nil {
		unused := time.AfterFunc(firstPatience, d.drop)
		defer unused.Stop()
	}
	defer func() {
		d.drop()
		select {
		case r := <-d.renewed:
			r.stream.Close()
		default:
		}
	}()
	var open sync.WaitGroup // sockets whose other end may still write
	var all sync.WaitGroup  // streams
	accepting := make(chan struct{})
	listen := func() {
		go func() {
			defer close(accepting)
			d.accept(ctx, cancel, &open, &all)
		}()
	}
	var p *process
	if d.Program == nil {
		listen()
		<-ctx.Done()
	}
	for n := 0; d.Program != nil; n++ {
		var err error
		var renew renewal
		if p, renew, err = d.runProgram(ctx, func() {
			if n == 0 {
				d.mark("client_started")
				listen()
			}
		}); err != nil {
			if n > 0 {
				d.say(err.Error())
				break
			}
			return err
		}
		if renew.stream == nil {
			break
		}
		if n == maxRenewals {
			renew.stream.Close()
			break
		}
		d.say("the server has set a new password; starting " + d.Program.Name + " anew")
		d.mu.Lock()
		d.Secret, d.next = renew.secret, Ready(Way{Stream: renew.stream, Secret: renew.secret})
		d.mu.Unlock()
	}
	d.Listener.Close()
	<-accepting
	// A program may have handed over to another and ended: its sockets
	// count, not it.
	gone := make(chan struct{})
	go func() { open.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-ctx.Done():
	}
	rest := make(chan struct{})
	go func() { all.Wait(); close(rest) }()
	select {
	case <-rest:
	case <-ctx.Done():
	case <-time.After(endTime):
	}
	why := context.Cause(ctx)
	cancel(nil) // closes what is still open
	<-rest
	return d.outcome(p, why)
}

// Ready is a way that is open already.
func Ready(w Way) <-chan Way {
	c := make(chan Way, 1)
	c <- w
	return c
}

// take returns the way that waits for a socket, or one of no stream.
func (d *Desktop) take(ctx context.Context) Way {
	d.mu.Lock()
	next := d.next
	d.next = nil
	d.mu.Unlock()
	if next == nil {
		return Way{}
	}
	select {
	case w := <-next:
		return w
	case <-ctx.Done():
		go d.undo(next)
		return Way{}
	}
}

// drop closes the way that waits for a socket, if there is one.
func (d *Desktop) drop() {
	d.mu.Lock()
	next := d.next
	d.next = nil
	d.mu.Unlock()
	if next != nil {
		d.undo(next)
	}
}

// undo closes a way that nobody uses, as soon as it is there.
func (d *Desktop) undo(next <-chan Way) {
	w := <-next
	switch {
	case w.Stream == nil:
	case d.Front != nil:
		(&upstream{Way: w}).abort(frame.AbortClient)
	default:
		w.Stream.Close()
	}
}

// runProgram runs the RDP client once, until it has ended. It is made to end
// by a renewal, which is returned.
func (d *Desktop) runProgram(ctx context.Context, started func()) (*process, renewal, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, end, err := d.start(ctx)
	if err != nil {
		return nil, renewal{}, err
	}
	defer end()
	started()
	select {
	case <-p.done:
		return p, renewal{}, nil
	case r := <-d.renewed:
		cancel()
		<-p.done
		return p, r, nil
	}
}

func (d *Desktop) outcome(p *process, why error) error {
	switch {
	case sft.CodeOf(why) == sft.Locked:
		return why
	case d.established(p):
		if p != nil && !d.Program.quiet(p.status) {
			d.say(d.reason(p))
		}
		return nil
	case why != nil:
		return why
	case p == nil:
		return nil
	}
	if e, ok := d.failure.Load().(*sft.Error); ok { // nearer to the reason than what the RDP client makes of it
		return e
	}
	return &sft.Error{Code: sft.Invalid, Msg: "no session on " + d.Target.Server + ": " + d.reason(p),
		Hint: "run it again with --debug to see all that " + d.Program.Name + " says"}
}

// reason says why the program ended. What it wrote may be shown, so a
// password that it repeated is taken out.
func (d *Desktop) reason(p *process) string {
	return d.Program.reason(p.status, strings.ReplaceAll(p.output.String(), d.Secret.Reveal(), d.Secret.String()))
}

// established reports whether there was a session.
func (d *Desktop) established(p *process) bool {
	if p != nil && d.Program.couldNotConnect(p.status) {
		return time.Duration(d.longest.Load()) >= proven
	}
	return d.shown.Load()
}

// idle reports whether nothing was shown yet.
func (d *Desktop) idle() bool { return !d.shown.Load() }

// start starts the RDP client. What it left is the caller's to end.
func (d *Desktop) start(ctx context.Context) (p *process, end func(), err error) {
	if err := d.Target.Check(); err != nil {
		return nil, nil, err
	}
	if !d.Program.needsFile() {
		p, err := start(ctx, d.Program.argv(d.Target, d.View, "", d.Front != nil), d.Secret, d.Output, d.idle)
		return p, func() {}, err
	}
	dir, err := NewRunDir(d.RunBase, d.Program.swept())
	if err != nil {
		return nil, nil, err
	}
	if d.Program.mstsc != nil {
		return d.startMSTSC(ctx, dir)
	}
	end = func() { dir.Remove() }
	file, err := writeConnectionFile(dir, d.Target, d.View)
	if err == nil {
		if p, err = start(ctx, d.Program.argv(d.Target, d.View, file, d.Front != nil), d.Secret, d.Output, d.idle); err == nil {
			return p, end, nil
		}
	}
	end()
	return nil, nil, err
}

// startMSTSC starts mstsc, which reads nothing from its standard input.
func (d *Desktop) startMSTSC(ctx context.Context, dir *RunDir) (*process, func(), error) {
	m := d.Program.mstsc
	args, tr, err := m.prepare(dir, d.Target, d.View, d.Secret, d.Thumb, d.Front != nil)
	end := func() {
		tr.end()
		dir.Remove()
	}
	if err != nil {
		end()
		return nil, nil, err
	}
	d.mu.Lock()
	d.traces = tr
	d.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	p, err := start(ctx, append([]string{d.Program.path}, args...), sft.Secret{}, d.Output, d.idle)
	if err == nil && m.start == StartProcess {
		// Nothing is accepted before this.
		if err = m.sys.only(d.Listener, p.pid); err != nil {
			err = &sft.Error{Code: sft.Invalid, Msg: "find out which process mstsc is: " + err.Error(), Err: err, Hint: "use \"sft config rdp.launch file\""}
			cancel()
			<-p.done
		}
	}
	if err != nil {
		cancel()
		end()
		return nil, nil, err
	}
	return p, func() { cancel(); end() }, nil
}

// left does one step of undoing what starting the RDP client left.
func (d *Desktop) left(step func(traces) func()) {
	d.mu.Lock()
	undo := step(d.traces)
	d.mu.Unlock()
	if undo != nil {
		undo()
	}
}

// accept gives each socket a stream until the listener is closed.
func (d *Desktop) accept(ctx context.Context, cancel context.CancelCauseFunc, open, all *sync.WaitGroup) {
	places := make(chan struct{}, maxStreams)
	unproven := make(chan struct{}, maxUnproven)
	for {
		c, err := d.Listener.Accept()
		if s, ok := errors.AsType[*loopback.StrangerError](err); ok {
			d.say(s.Error())
			continue
		}
		if err != nil {
			return
		}
		if !enter(places) {
			c.Close()
			d.say("refused a connection: there are too many at once")
			continue
		}
		if d.Front != nil && !enter(unproven) {
			<-places
			c.Close()
			d.say("refused a connection: too many have not shown the secret of this launch")
			continue
		}
		d.mark("first_socket")
		d.left(func(t traces) func() { return t.read })
		open.Add(1)
		all.Go(func() {
			defer func() { <-places }()
			if d.Front == nil {
				d.pass(ctx, cancel, c, open.Done)
				return
			}
			defer c.Close()
			client, up, err := d.answer(ctx, c)
			<-unproven
			if err != nil {
				open.Done()
				if ctx.Err() != nil {
					return
				}
				d.unproven(err)
				if o, ok := errors.AsType[opening](err); ok && d.Final(o.error) {
					cancel(o.error)
				}
				return
			}
			defer client.Close()
			d.left(func(t traces) func() { return t.used })
			d.copy(ctx, cancel, client, up, shownInside, open.Done)
		})
	}
}

func enter(places chan struct{}) bool {
	select {
	case places <- struct{}{}:
		return true
	default:
		return false
	}
}

// pass gives a socket its stream, where the RDP client signs in itself.
func (d *Desktop) pass(ctx context.Context, cancel context.CancelCauseFunc, c *net.TCPConn, silent func()) {
	w := d.take(ctx)
	if w.Stream == nil {
		var err error
		if w, err = d.another(ctx, nil); err != nil {
			c.Close()
			silent()
			if ctx.Err() == nil && d.Final(err) {
				cancel(err)
			}
			return
		}
	}
	d.copy(ctx, cancel, c, w.Stream, shown, silent)
}

// errRenewed says that the RDP client is started anew.
var errRenewed = errors.New("the password is another now")

// another opens a stream for a later socket, and tells of a refusal; of the
// same one in a row only once.
func (d *Desktop) another(ctx context.Context, ahead Ahead) (Way, error) {
	for end := time.Now().Add(patience); ; {
		w, err := d.Open(ctx, ahead)
		if err == nil {
			d.refusal.Store("")
			if d.Front != nil {
				return w, nil
			}
			return d.current(w)
		}
		if ctx.Err() != nil {
			return Way{}, err
		}
		if d.refusal.Swap(err.Error()) != err.Error() {
			d.say(err.Error())
		}
		if d.Final(err) || time.Now().After(end) {
			return Way{}, err
		}
		select {
		case <-ctx.Done():
			return Way{}, ctx.Err()
		case <-time.After(patience / 8):
		}
	}
}

// current returns w if the RDP client can use it.
func (d *Desktop) current(w Way) (Way, error) {
	d.mu.Lock()
	same := w.Secret == d.Secret
	d.mu.Unlock()
	switch {
	case same:
		return w, nil
	case d.Program == nil:
		d.say("the server has set a new password: end this with Ctrl-C and run the command again")
		w.Stream.Close()
		return Way{}, errRenewed
	}
	select {
	case d.renewed <- renewal{w.Stream, w.Secret}:
	default: // one is on its way
		w.Stream.Close()
	}
	return Way{}, errRenewed
}

// copy passes bytes both ways until both ways have ended, or ctx has. An end
// of one way is passed on as such. enough is how much of the server's counts
// as a session; silent is called when the RDP client will write no more.
func (d *Desktop) copy(ctx context.Context, cancel context.CancelCauseFunc, c, s Stream, enough int, silent func()) {
	stop := context.AfterFunc(ctx, func() { c.Close(); s.Close() })
	defer stop()
	defer c.Close()
	defer s.Close()
	var up sync.WaitGroup
	up.Go(func() {
		defer silent()
		if read, write := relay.Pump(s, c, nil, nil); read != io.EOF || write != nil {
			s.Close() // a broken socket is no end that the server may answer to
			return
		}
		s.CloseWrite()
	})
	n := &counter{d: d, enough: enough}
	var watch noticer
	var filter func([]byte) ([]byte, error)
	if d.Front != nil {
		filter = watch.filter
	}
	read, write := relay.Pump(c, s, filter, n.count)
	n.end()
	if err := watch.reason(); err != nil {
		d.ended(err, cancel)
	}
	if read != io.EOF || write != nil {
		c.Close()
	} else {
		c.CloseWrite()
	}
	up.Wait()
}

// ended tells why the broker has ended a stream.
func (d *Desktop) ended(err error, cancel context.CancelCauseFunc) {
	e, ok := errors.AsType[*sft.Error](err)
	switch {
	case ok && e.Code == sft.Locked && d.Program != nil:
		cancel(e) // before the RDP client can come back by itself
		return
	case ok && e.Code == sft.Locked:
		d.say("the desktop of " + d.Target.Server + " was locked; connect again to return to it")
		return
	case ok:
		d.failure.Store(e)
	}
	d.say(err.Error())
}

// counter counts what a server sends on one stream.
type counter struct {
	d      *Desktop
	enough int
	n      int
	shown  time.Time // when it was enough
}

func (c *counter) count(n int) {
	if n > 0 {
		c.d.first.Do(func() { c.d.mark("first_server_byte") })
	}
	if c.n += n; c.n >= c.enough && c.shown.IsZero() {
		c.shown = time.Now()
		c.d.shown.Store(true)
	}
}

// end is called when the server sends no more.
func (c *counter) end() {
	if c.shown.IsZero() {
		return
	}
	lived := int64(time.Since(c.shown))
	for old := c.d.longest.Load(); lived > old && !c.d.longest.CompareAndSwap(old, lived); {
		old = c.d.longest.Load()
	}
}

func (d *Desktop) say(line string) {
	if d.Say != nil {
		d.Say(line)
	}
}

func (d *Desktop) mark(step string) {
	if d.Mark != nil {
		d.Mark(step)
	}
}
