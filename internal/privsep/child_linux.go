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
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"sft"
)

// A Child is a broker, as its monitor holds it.
type Child struct {
	h      Handler
	log    *slog.Logger
	ch     *channel
	proc   *os.Process
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
	if cfg.UID <= 0 || cfg.GID <= 0 {
		return nil, errors.New("start broker: its account is root; name another account as BrokerUser")
	}
	c := &Child{
		h: h, log: cfg.Log,
		inspected: make(chan struct{}), read: make(chan struct{}), logged: make(chan struct{}), done: make(chan struct{}),
		places: make(chan struct{}, 8*maxCalls), count: map[string]int{}, streams: map[uint64]bool{},
	}
	if c.log == nil {
		c.log = slog.Default()
	}
	ch, theirs, err := newChannel()
	if err != nil {
		return nil, fmt.Errorf("start broker: open channel: %w", err)
	}
	c.ch = ch
	c.ctx, c.cancel = context.WithCancel(ctx)
	born := make(chan error)
	go c.parent(cfg, theirs, born)
	if err := <-born; err != nil {
		c.cancel()
		c.ch.close()
		return nil, fmt.Errorf("start broker: %w", err)
	}
	stop := context.AfterFunc(ctx, c.Kill)
	err = c.welcome(cfg)
	close(c.inspected)
	if err != nil {
		c.fail(err)
		close(c.read)
		<-c.done
		stop()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			err = fmt.Errorf("it ended at once%s", c.lastWords())
		}
		return nil, fmt.Errorf("start broker: %w", err)
	}
	go c.serve()
	go func() { <-c.done; stop() }()
	return c, nil
}

// parent is the child's parent for as long as it lives: a thread of its own,
// since the kernel kills the child when the thread that started it ends.
func (c *Child) parent(cfg Config, channelEnd *os.File, born chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
	defer channelEnd.Close()
	proc, log, err := spawn(cfg, channelEnd)
	if err != nil {
		born <- err
		return
	}
	channelEnd.Close()
	c.proc = proc
	go c.logLines(log)
	born <- nil
	<-c.inspected
	state, err := proc.Wait()
	c.cancel()
	<-c.read
	<-c.logged
	c.calls.Wait()
	c.bury(state, err)
}

// spawn starts the child from the calling thread and returns the reading end
// of its log.
func spawn(cfg Config, channelEnd *os.File) (*os.Process, *os.File, error) {
	if err := dropInheritable(); err != nil {
		return nil, nil, err
	}
	if err := closeOnExec(); err != nil {
		return nil, nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer w.Close()
	path, argv := cfg.Path, cfg.Argv
	if path == "" {
		path = "/proc/self/exe" // also when an upgrade has replaced the file
	}
	if len(argv) == 0 {
		argv = []string{"sftd", "broker"}
	}
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   append([]string{}, cfg.Env...), // not nil: that would be our own
		Files: []*os.File{null, null, w, channelFD: channelEnd},
		Sys: &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: uint32(cfg.UID), Gid: uint32(cfg.GID)},
			Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
			Setsid:     true, // no terminal, and no signal from one
			Pdeathsig:  syscall.SIGKILL,
		},
	}
	if cfg.birth != nil {
		cfg.birth(attr)
	}
	proc, err := os.StartProcess(path, argv, attr)
	if err != nil {
		r.Close()
		return nil, nil, err
	}
	return proc, r, nil
}

// dropInheritable empties the calling thread's inheritable capabilities, which
// a change of user leaves as they are, and the ambient ones with them.
func dropInheritable() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	sets[0].Inheritable, sets[1].Inheritable = 0, 0
	return os.NewSyscallError("capset", unix.Capset(&header, &sets[0]))
}

// closeOnExec keeps from the child what this process was itself given by the
// one that started it. Files that Go opens are marked already.
func closeOnExec() error {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

// welcome waits until the child is ready and looks whether it is.
func (c *Child) welcome(cfg Config) error {
	if err := c.ch.conn.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
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
	if c.layers, err = inspect(c.proc.Pid, cfg.UID, cfg.GID); err != nil {
		return err
	}
	landlock := Layer{Name: "landlock", Detail: "not told"}
	for _, l := range first.Ready.Layers {
		if l.Name == landlock.Name {
			landlock.OK, landlock.Detail = l.OK, text(l.Detail)
		}
	}
	c.layers = append(c.layers, landlock)
	return c.ch.conn.SetReadDeadline(time.Time{})
}

// logLines logs what the child writes to its standard error, as far as it is
// of use: a broker taken over may write what it likes.
func (c *Child) logLines(r *os.File) {
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
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			c.proc.Kill() // if it has closed its end and lives on
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
	case (reply.Stream == 0) != (f == nil):
		err = fmt.Errorf("open: stream %d and a socket do not go together: %v", reply.Stream, f != nil)
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
	c.proc.Kill()
}

// bury ends what the child left behind.
func (c *Child) bury(state *os.ProcessState, err error) {
	c.ch.close()
	for _, s := range slices.Sorted(maps.Keys(c.streams)) {
		c.close(Close{Stream: s, Why: "the broker ended"})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.why != nil:
		c.err = fmt.Errorf("broker was killed: %w", c.why)
	case c.killed, c.leaving && state != nil && state.Success():
	case err != nil:
		c.err = fmt.Errorf("wait for broker: %w", err)
	default:
		c.err = fmt.Errorf("broker ended: %v%s", state, c.lastWords())
	}
	close(c.done)
}

// Configure tells the child what to serve with. The listener goes with the
// first configuration; it is nil afterwards. It stays the caller's to close.
func (c *Child) Configure(cfg Configuration, listener *os.File) error {
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
	c.proc.Kill()
}

// Layers returns what keeps the child in. All but landlock are as they were
// read from outside, and on; landlock is off where the kernel has none.
func (c *Child) Layers() []Layer { return slices.Clone(c.layers) }

// PID returns the child's process number.
func (c *Child) PID() int { return c.proc.Pid }
