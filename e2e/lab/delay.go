//go:build linux

package lab

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// A Delay is a long cable: what goes in at one end comes out at the other half
// a round trip later. It counts what a distance costs.
type Delay struct {
	listener net.Listener
	target   string
	rtt      time.Duration

	mu    sync.Mutex
	stats DelayStats
}

// DelayStats is what has gone through a Delay.
type DelayStats struct {
	Connections int   // each has cost one round trip before its first byte
	RoundTrips  int   // of data: the longest chain of question and answer, summed over the connections
	Up, Down    int64 // bytes
}

// NewDelay listens on an address of the lab, such as "10.77.0.1:0", and
// connects each caller to target as if that were rtt away. It ends with the
// test.
func NewDelay(t T, listen, target string, rtt time.Duration) *Delay {
	t.Helper()
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatalf("start a delay: %v", err)
	}
	d := &Delay{listener: l, target: target, rtt: rtt}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { d.serve(ctx, c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		all.Wait()
	})
	return d
}

// Addr is where the delay listens.
func (d *Delay) Addr() string { return d.listener.Addr().String() }

// Stats returns the counts since the last call of Reset.
func (d *Delay) Stats() DelayStats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Reset begins to count anew.
func (d *Delay) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats = DelayStats{}
}

// A parcel is on its way since it was read, and is due at the other end later.
type parcel struct {
	data []byte // empty at the end of the stream
	due  time.Time
	deep int // see chain
}

// A chain measures how often one end of a connection had to wait for the
// other. Each parcel is as deep as what its sender had received by then; an
// answer is one deeper than the question. What crosses on the way is no round
// trip, and neither is a second question before the first answer.
type chain struct {
	mu             sync.Mutex
	client, server int // depth of what each end has received
}

// sent returns the depth of what an end sends now.
func (c *chain) sent(up bool) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if up {
		return c.client + 1
	}
	return c.server
}

// received notes what an end got, and returns how many round trips that adds.
func (c *chain) received(up bool, deep int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if up {
		c.server = max(c.server, deep)
		return 0
	}
	added := max(0, deep-c.client)
	c.client += added
	return added
}

func (d *Delay) serve(ctx context.Context, client *net.TCPConn) {
	defer client.Close()
	// The kernel has answered the caller at once. Over a distance its first
	// byte would follow the handshake's round trip, and the server would
	// learn of it with the first byte.
	open := time.Now().Add(d.rtt + d.rtt/2)
	d.mu.Lock()
	d.stats.Connections++
	d.mu.Unlock()
	if !sleepUntil(ctx, open) {
		return
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.target)
	if err != nil {
		client.SetLinger(0) // refused there is reset here
		return
	}
	server := c.(*net.TCPConn)
	defer server.Close()
	stop := context.AfterFunc(ctx, func() {
		client.Close()
		server.Close()
	})
	defer stop()
	var ch chain
	var both sync.WaitGroup
	both.Go(func() { d.carry(ctx, &ch, true, server, client, open) })
	both.Go(func() { d.carry(ctx, &ch, false, client, server, open) })
	both.Wait()
}

// carry takes one direction of a connection from from to to.
func (d *Delay) carry(ctx context.Context, ch *chain, up bool, to, from *net.TCPConn, open time.Time) {
	road := make(chan parcel, 1024)
	var arrived sync.WaitGroup
	arrived.Go(func() {
		broken := false
		for p := range road {
			if broken || !sleepUntil(ctx, p.due) {
				continue
			}
			if len(p.data) == 0 {
				to.CloseWrite()
				continue
			}
			// First the note, then the bytes: an answer may be read at once.
			trips := ch.received(up, p.deep)
			d.mu.Lock()
			d.stats.RoundTrips += trips
			if up {
				d.stats.Up += int64(len(p.data))
			} else {
				d.stats.Down += int64(len(p.data))
			}
			d.mu.Unlock()
			if _, err := to.Write(p.data); err != nil {
				broken = true
				from.CloseRead()
			}
		}
	})
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		due := time.Now().Add(d.rtt / 2)
		if due.Before(open) {
			due = open
		}
		if n > 0 {
			road <- parcel{append([]byte(nil), buf[:n]...), due, ch.sent(up)}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				to.SetLinger(0) // reset here is reset there
			}
			road <- parcel{due: due}
			break
		}
	}
	close(road)
	arrived.Wait()
}

// sleepUntil reports whether the time came before the end of ctx.
func sleepUntil(ctx context.Context, t time.Time) bool {
	select {
	case <-time.After(time.Until(t)):
		return true
	case <-ctx.Done():
		return false
	}
}
