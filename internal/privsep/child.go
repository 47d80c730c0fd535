package privsep

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"sft"
)

// A Child is a broker, as its monitor holds it.
type Child struct {
	h      Handler
	log    *slog.Logger
	ch     link
	proc   process
	layers []Layer
	ctx    context.Context // of Sign and Open: ends with the child
	cancel context.CancelFunc

	inspected chan struct{} // closed when the child may be reaped: its number is its own until then
	read      chan struct{} // closed when nothing more is read from it
	logged    chan struct{} // closed when it has no more to say
	done      chan struct{} // closed when all is over
	err       error         // why; good after done
	last      string        // line of its log; good after logged

	calls  sync.WaitGroup // running calls of h
	places chan struct{}  // taken by each request until its answer is sent

	mu      sync.Mutex
	killed  bool           // by Kill
	leaving bool           // by Shutdown
	why     error          // it was killed by fail
	count   map[string]int // running calls, by kind
	streams map[uint64]bool
}

// Start starts a broker and waits until it has given up its rights, then reads
// back that it did. The error of a broker that did not names what is missing.
//
// The child ends with ctx, with [Child.Kill], with this process however it
// ends, and with the first message that an honest broker would not send.
// Starting another is the caller's decision.
func Start(ctx context.Context, cfg Config, h Handler) (*Child, error) {
	c := &Child{
		h: h, log: cfg.Log,
		inspected: make(chan struct{}), read: make(chan struct{}), logged: make(chan struct{}), done: make(chan struct{}),
		places: make(chan struct{}, 8*maxCalls), count: map[string]int{}, streams: map[uint64]bool{},
	}
	if c.log == nil {
		c.log = slog.Default()
	}
	c.ctx, c.cancel = context.WithCancel(ctx)
	born := make(chan error)
	go c.parent(cfg, born)
	if err := <-born; err != nil {
		c.cancel()
		return nil, fmt.Errorf("start broker: %w", err)
	}
	stop := context.AfterFunc(ctx, c.Kill)
	err := c.welcome(cfg)
	close(c.inspected)
	if err != nil {
		c.fail(err)
		close(c.read)
		<-c.done
		stop()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if hungUp(err) {
			err = fmt.Errorf("it ended at once%s", c.lastWords())
		}
		return nil, fmt.Errorf("start broker: %w", err)
	}
	go c.serve()
	go func() { <-c.done; stop() }()
	return c, nil
}

// parent is the child's parent for as long as it lives: a goroutine of its own,
// since launch may need a thread of its own.
func (c *Child) parent(cfg Config, born chan<- error) {
	start := launch
	if cfg.launch != nil {
		start = cfg.launch
	}
	l, err := start(cfg)
	if err != nil {
		born <- err
		return
	}
	c.proc, c.ch = l.proc, l.ch
	go c.logLines(l.log)
	born <- nil
	<-c.inspected
	end, err := c.proc.wait()
	c.cancel()
	<-c.read
	<-c.logged
	c.calls.Wait()
	c.bury(end, err)
}

// welcome waits until the child is ready and looks whether it is.
func (c *Child) welcome(cfg Config) error {
	if err := c.ch.deadline(time.Now().Add(startTimeout)); err != nil {
		return err
	}
	b, err := c.ch.receive()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("it was not ready after %v", startTimeout)
	}
	if err != nil {
		return err
	}
	first, err := decodeCall(b)
	if err == nil && first.Ready == nil {
		err = errors.New("something else than ready")
	}
	if err != nil {
		return fmt.Errorf("it sent %w", err)
	}
	if c.layers, err = c.proc.inspect(cfg, *first.Ready); err != nil {
		return err
	}
	return c.ch.deadline(time.Time{})
}

// logLines logs what the child writes to its standard error, as far as it is
// of use: a broker taken over may write what it likes.
func (c *Child) logLines(r io.ReadCloser) {
	defer close(c.logged)
	defer r.Close()
	const maxLine = 1024
	limit := rate.NewLimiter(20, 500)
	dropped := 0
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, more, err := in.ReadLine()
		if err != nil {
			return
		}
		s := strings.Map(func(r rune) rune {
			if r < ' ' && r != '\t' || r == 0x7f {
				return '?'
			}
			return r
		}, strings.ToValidUTF8(string(line), "?"))
		for more && err == nil {
			_, more, err = in.ReadLine()
		}
		if c.last == "" || !strings.HasPrefix(s, "\t") && s != "" {
			c.last = s
		}
		if !limit.Allow() {
			dropped++
			continue
		}
		if dropped > 0 {
			c.log.Warn("broker wrote more than is logged", "lines", dropped)
			dropped = 0
		}
		c.log.Info("broker", "line", s)
	}
}

// lastWords returns the last line of the child's log, to end an error with.
func (c *Child) lastWords() string {
	if c.last == "" {
		return ""
	}
	return ": " + c.last
}

// serve takes the child's requests until it ends.
func (c *Child) serve() {
	defer close(c.read)
	for {
		b, err := c.ch.receive()
		if hungUp(err) {
			c.proc.kill() // if it has closed its end and lives on
			return
		}
		if err == nil {
			var r call
			if r, err = decodeCall(b); err == nil {
				err = c.take(r)
			}
		}
		if err != nil {
			c.fail(fmt.Errorf("it sent %w", err))
			return
		}
	}
}

// take starts the work for one request, or says why no honest broker sends it.
func (c *Child) take(r call) error {
	kind := r.kind()
	if kind == "ready" {
		return errors.New("ready a second time")
	}
	// One that does not read its answers is not read from either, until the
	// first answer that cannot be sent in time ends it. At most half of the
	// places are with the Handler.
	c.places <- struct{}{}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count[kind] >= maxCalls {
		return fmt.Errorf("more than %d requests to %s at once", maxCalls, kind)
	}
	if r.Close != nil {
		if !c.streams[r.Close.Stream] {
			return fmt.Errorf("close of stream %d, which is not open", r.Close.Stream)
		}
		delete(c.streams, r.Close.Stream)
	}
	c.count[kind]++
	c.calls.Add(1)
	go c.answer(kind, r)
	return nil
}

// answer does what r asks and sends the answer.
func (c *Child) answer(kind string, r call) {
	defer c.calls.Done()
	defer func() { <-c.places }()
	var (
		a   answer
		f   *os.File
		err error
	)
	ctx, cancel := context.WithTimeout(c.ctx, requestTimeout)
	defer cancel()
	switch {
	case r.Sign != nil:
		a.Signature, err = c.h.Sign(ctx, r.Sign.Digest)
	case r.Open != nil:
		a.Open, f, err = c.open(ctx, *r.Open)
	case r.Close != nil:
		c.close(*r.Close)
	case r.Report != nil:
		c.h.Report(*r.Report)
	}
	if f != nil {
		defer f.Close()
	}
	if err != nil {
		a.Error = asError(err)
		if _, told := errors.AsType[*sft.Error](err); !told && c.ctx.Err() == nil {
			c.log.Error("request of the broker", "kind", kind, "error", err)
		}
	}
	// One less is counted before the broker can know it: an honest one never
	// has too many.
	c.mu.Lock()
	c.count[kind]--
	c.mu.Unlock()
	if err := c.ch.send(message{ID: r.ID, Answer: &a}, f); err != nil && c.ctx.Err() == nil {
		c.fail(fmt.Errorf("answer it: %w", err))
	}
}

// open calls the Handler and keeps the books.
func (c *Child) open(ctx context.Context, o Open) (*OpenReply, *os.File, error) {
	c.mu.Lock()
	full := len(c.streams)+c.count["open"] > MaxStreams
	c.mu.Unlock()
	if full {
		return nil, nil, &sft.Error{Code: sft.TooMany, Msg: "the host has as many open streams as it can hold", Hint: "retry later"}
	}
	reply, f, err := c.h.Open(ctx, o)
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, nil, err
	}
	switch {
	case checkOpen(c.ch.files(), reply, f != nil) != nil:
		err = fmt.Errorf("open: %w", checkOpen(c.ch.files(), reply, f != nil))
	case len(reply.Reply) > MaxFrame || !json.Valid(reply.Reply):
		err = fmt.Errorf("open: a reply of %d bytes that is no frame", len(reply.Reply))
	}
	c.mu.Lock()
	taken := c.streams[reply.Stream]
	if err == nil && !taken && reply.Stream != 0 {
		c.streams[reply.Stream] = true
	}
	c.mu.Unlock()
	if taken {
		err = fmt.Errorf("open: stream %d is open already", reply.Stream)
	}
	if err != nil {
		if f != nil {
			f.Close()
		}
		if reply.Stream != 0 && !taken {
			c.close(Close{Stream: reply.Stream, Why: "it could not be handed over"})
		}
		return nil, nil, err
	}
	return &reply, f, nil
}

// close tells the Handler that a stream has ended, also when the child has.
func (c *Child) close(cl Close) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), requestTimeout)
	defer cancel()
	c.h.Close(ctx, cl)
}

// fail kills the child for a reason.
func (c *Child) fail(why error) {
	c.mu.Lock()
	if c.why == nil && !c.killed {
		c.why = why
	}
	c.mu.Unlock()
	c.cancel()
	c.proc.kill()
}

// bury ends what the child left behind.
func (c *Child) bury(end ending, err error) {
	c.ch.close()
	for _, s := range slices.Sorted(maps.Keys(c.streams)) {
		c.close(Close{Stream: s, Why: "the broker ended"})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.why != nil:
		c.err = fmt.Errorf("broker was killed: %w", c.why)
	case c.killed, c.leaving && end.ok:
	case err != nil:
		c.err = fmt.Errorf("wait for broker: %w", err)
	default:
		c.err = fmt.Errorf("broker ended: %s%s", end.how, c.lastWords())
	}
	close(c.done)
}

// Configure tells the child what to serve with. Where files can be handed over
// the listener goes with the first configuration; it is nil afterwards, and
// stays the caller's to close. Elsewhere it is always nil, and the first
// configuration says where to Listen.
func (c *Child) Configure(cfg Configuration, listener *os.File) error {
	if err := checkConfiguration(c.ch.files(), cfg, listener != nil); err != nil {
		return fmt.Errorf("configure broker: %w", err)
	}
	return c.tell("configure", message{Configure: &cfg}, listener)
}

// End tells the child to end a stream. The Handler's Close follows.
func (c *Child) End(stream uint64, why string) error {
	return c.tell("end stream of", message{End: &End{Stream: stream, Why: text(why)}}, nil)
}

// Shutdown tells the child to accept nothing more and to end with its last
// stream.
func (c *Child) Shutdown() error {
	c.mu.Lock()
	c.leaving = true
	c.mu.Unlock()
	return c.tell("shut down", message{Shutdown: &struct{}{}}, nil)
}

// tell sends a command. A child that does not read it in time is killed.
func (c *Child) tell(what string, m message, f *os.File) error {
	err := c.ch.send(m, f)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s broker: %w", what, err)
	if !errors.Is(err, errTooLong) { // that is our fault
		c.fail(err)
	}
	return err
}

// Done is closed when the child has ended and Wait will not block.
func (c *Child) Done() <-chan struct{} { return c.done }

// Wait blocks until the child has ended, every call of the Handler has
// returned and every stream has had its Close. It returns nil if the child was
// asked to end, and else why it did.
func (c *Child) Wait() error {
	<-c.done
	return c.err
}

// Kill ends the child at once.
func (c *Child) Kill() {
	c.mu.Lock()
	c.killed = true
	c.mu.Unlock()
	c.cancel()
	c.proc.kill()
}

// Layers returns what keeps the child in, as it was read from outside. A layer
// that the child can do without may be off: on Linux landlock, which is the
// child's own word, where the kernel has none; on Windows the mitigations that
// the release does not have.
func (c *Child) Layers() []Layer { return slices.Clone(c.layers) }

// PID returns the child's process number.
func (c *Child) PID() int { return c.proc.pid() }
