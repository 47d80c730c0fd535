package privsep

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"sft"
)

// A Monitor is the monitor, as its broker reaches it. When it ends, so does
// this process.
type Monitor struct {
	ch       link
	listenOn func(address string) (net.Listener, error) // where no files go beside messages
	lost     func(error)                                // ends the process
	commands chan Command
	slots    map[string]chan struct{} // what the monitor answers at once, by kind
	more     chan struct{}            // queue has something

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]*waiting
	streams map[uint64]bool
	queue   []Command
	listens bool // it made its listener; of the goroutine that listens to the monitor
}

// A Command is what the monitor tells its broker. Exactly one of Configure, End
// and Shutdown is set.
type Command struct {
	Configure *Configuration
	Listener  net.Listener // with the first Configure; to be accepted from
	End       *End
	Shutdown  bool // accept nothing more; exit after the last stream
}

// A waiting is a call that has not been answered.
type waiting struct {
	kind   string
	result chan result // has room for the one answer
	gone   bool        // the caller did not wait for it
}

// A result is an answer and what came beside it.
type result struct {
	answer
	conn net.Conn
}

// newMonitor tells the monitor that the sandbox is on and listens to it.
// listenOn may be nil where files go beside messages; lost is told why this
// process can go on no longer.
func newMonitor(ch link, ready Ready, listenOn func(string) (net.Listener, error), lost func(error)) (*Monitor, error) {
	m := &Monitor{
		ch: ch, listenOn: listenOn, lost: lost, commands: make(chan Command), slots: map[string]chan struct{}{}, more: make(chan struct{}, 1),
		waiting: map[uint64]*waiting{}, streams: map[uint64]bool{},
	}
	for _, kind := range []string{"sign", "open", "close", "report"} {
		m.slots[kind] = make(chan struct{}, maxCalls)
	}
	if err := ch.send(call{Request: Request{Ready: &ready}}, nil); err != nil {
		return nil, fmt.Errorf("tell the monitor: %w", err)
	}
	go m.listen()
	go m.pass()
	return m, nil
}

// Commands returns what the monitor tells, in order. Nothing is lost or held up
// by a slow receiver.
func (m *Monitor) Commands() <-chan Command { return m.commands }

// Sign asks for a signature over digest with the TLS host key: ASN.1, as
// crypto.Signer returns it.
func (m *Monitor) Sign(ctx context.Context, digest [32]byte) ([]byte, error) {
	r, err := m.ask(ctx, Request{Sign: &Sign{Digest: digest}})
	return r.Signature, err
}

// Open asks to let a person in. The connection goes to the service; it is nil
// where the reply's Stream is 0. A refusal is an *[sft.Error].
//
// Every stream must be ended with Close. One that is granted after ctx has
// ended is closed here.
func (m *Monitor) Open(ctx context.Context, o Open) (OpenReply, net.Conn, error) {
	if err := o.check(); err != nil { // the monitor would kill us for it
		return OpenReply{}, nil, &sft.Error{Code: sft.Invalid, Msg: err.Error()}
	}
	r, err := m.ask(ctx, Request{Open: &o})
	if err != nil {
		return OpenReply{}, nil, err
	}
	if r.answer.Open == nil {
		return OpenReply{}, nil, fmt.Errorf("open: the monitor's answer is empty")
	}
	reply := *r.answer.Open
	if r.conn != nil || reply.Stream == 0 {
		return reply, r.conn, nil
	}
	conn, err := dialLoopback(ctx, reply.Dial)
	if err != nil {
		m.Close(ctx, Close{Stream: reply.Stream, Why: "the service could not be reached"})
		return OpenReply{}, nil, &sft.Error{Code: sft.Unavailable, Msg: "the broker could not connect to the service: " + err.Error(), Err: err, Hint: "try again; if it stays so, look at the service on the host"}
	}
	return reply, conn, nil
}

// Close tells that a stream has ended. It refuses one that is not open, or was
// closed before.
func (m *Monitor) Close(ctx context.Context, c Close) error {
	m.mu.Lock()
	open := m.streams[c.Stream]
	delete(m.streams, c.Stream)
	m.mu.Unlock()
	if !open {
		return fmt.Errorf("close stream %d: it is not open", c.Stream)
	}
	c.Why = text(c.Why)
	_, err := m.ask(context.WithoutCancel(ctx), Request{Close: &c})
	return err
}

// Report tells what was counted.
func (m *Monitor) Report(ctx context.Context, r Report) error {
	_, err := m.ask(ctx, Request{Report: &r})
	return err
}

// ask sends a request and waits for its answer.
func (m *Monitor) ask(ctx context.Context, r Request) (result, error) {
	kind := r.kind()
	select {
	case m.slots[kind] <- struct{}{}:
	case <-ctx.Done():
		return result{}, ctx.Err()
	}
	w := &waiting{kind: kind, result: make(chan result, 1)}
	m.mu.Lock()
	m.next++
	id := m.next
	m.waiting[id] = w
	m.mu.Unlock()
	if err := m.ch.send(call{ID: id, Request: r}, nil); err != nil {
		m.mu.Lock()
		delete(m.waiting, id)
		m.mu.Unlock()
		<-m.slots[kind]
		return result{}, fmt.Errorf("ask the monitor to %s: %w", kind, err)
	}
	select {
	case a := <-w.result:
		return a.orError()
	case <-ctx.Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case a := <-w.result: // it came just now
		return a.orError()
	default:
		w.gone = true
		return result{}, ctx.Err()
	}
}

// orError splits a result in what was asked for and the refusal.
func (r result) orError() (result, error) {
	if r.Error != nil {
		return result{}, r.Error
	}
	return r, nil
}

// listen takes what the monitor sends. It ends the process when the monitor
// has ended: a broker on its own has no reason to be.
func (m *Monitor) listen() {
	for {
		b, f, err := m.ch.receiveFile()
		if err == nil {
			var msg message
			if msg, err = decodeMessage(b); err == nil {
				err = m.take(msg, f)
			}
		}
		if err != nil {
			m.lost(err)
			return
		}
	}
}

// exit ends a broker that cannot go on.
func exit(err error) {
	if _, ok := err.(listenError); !ok {
		err = fmt.Errorf("lost the monitor: %w", err)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// take passes a message on to where it is waited for.
func (m *Monitor) take(msg message, f *os.File) error {
	if f != nil {
		defer f.Close()
	}
	switch {
	case msg.Answer != nil:
		r := result{answer: *msg.Answer}
		if r.answer.Open != nil && r.answer.Open.Dial != "" && m.ch.files() {
			return errors.New("an address to dial, where sockets are handed over")
		}
		if f != nil {
			r.conn, _ = net.FileConn(f) // deliver sees to one that is missing
		}
		return m.deliver(msg.ID, r)
	case msg.Configure != nil:
		c := Command{Configure: msg.Configure}
		if err := checkConfiguration(m.ch.files(), *c.Configure, f != nil); err != nil {
			return err
		}
		var err error
		switch {
		case f != nil:
			c.Listener, err = net.FileListener(f)
		case c.Configure.Listen != "" && m.listens:
			err = errors.New("a second address to listen on")
		case c.Configure.Listen != "":
			m.listens = true
			if c.Listener, err = m.listenOn(c.Configure.Listen); err != nil {
				err = listenError{err}
			}
		}
		if err != nil {
			return err
		}
		m.enqueue(c)
	case msg.End != nil:
		m.enqueue(Command{End: msg.End})
	case msg.Shutdown != nil:
		m.enqueue(Command{Shutdown: true})
	}
	return nil
}

// deliver gives an answer to its caller, or undoes it if that one is gone.
func (m *Monitor) deliver(id uint64, r result) error {
	m.mu.Lock()
	w := m.waiting[id]
	if w == nil {
		m.mu.Unlock()
		return fmt.Errorf("an answer to call %d, which nobody made", id)
	}
	delete(m.waiting, id)
	opened := r.answer.Open != nil && r.answer.Open.Stream != 0
	if opened {
		m.streams[r.answer.Open.Stream] = true
	}
	why := ""
	switch {
	case w.gone:
		why = "the client left before it was open"
	case opened && r.conn == nil && m.ch.files():
		why = "the broker has too many files open"
		w.result <- result{answer: answer{Error: &sft.Error{Code: sft.TooMany, Msg: "the host has as many open streams as it can hold", Hint: "retry later"}}}
	default:
		w.result <- r
	}
	m.mu.Unlock()
	<-m.slots[w.kind]
	if why != "" && r.conn != nil {
		r.conn.Close()
	}
	if why != "" && opened {
		go m.Close(context.Background(), Close{Stream: r.answer.Open.Stream, Why: why})
	}
	return nil
}

// enqueue keeps a command until it is received, so that answers do not wait
// behind it.
func (m *Monitor) enqueue(c Command) {
	m.mu.Lock()
	m.queue = append(m.queue, c)
	m.mu.Unlock()
	select {
	case m.more <- struct{}{}:
	default:
	}
}

// pass hands the commands over, one at a time.
func (m *Monitor) pass() {
	for range m.more {
		for {
			m.mu.Lock()
			if len(m.queue) == 0 {
				m.mu.Unlock()
				break
			}
			c := m.queue[0]
			m.queue = m.queue[1:]
			m.mu.Unlock()
			m.commands <- c
		}
	}
}
