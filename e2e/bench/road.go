//go:build linux

package main

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"sft/e2e/lab"
)

// inFlight is how many bytes of one direction of a connection a road holds:
// at 150 ms there and back that is over 400 MB/s.
const inFlight = 32 << 20

// A road is a long cable for bulk: as lab.Delay, but it counts nothing and
// copies no byte twice, so that it is the slowest part as late as can be.
// It neither loses nor reorders, and has no limit of its own but inFlight.
func road(t lab.T, listen, target string, rtt time.Duration) {
	t.Helper()
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatalf("start a road: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { travel(ctx, c.(*net.TCPConn), target, rtt) })
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		all.Wait()
	})
}

// travel takes one connection.
func travel(ctx context.Context, near *net.TCPConn, target string, rtt time.Duration) {
	defer near.Close()
	// The kernel has answered at once. Over a distance the handshake comes
	// first, and the far end learns of it with the first byte.
	open := time.Now().Add(rtt + rtt/2)
	if !until(ctx, open) {
		return
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
	if err != nil {
		near.SetLinger(0)
		return
	}
	far := c.(*net.TCPConn)
	defer far.Close()
	stop := context.AfterFunc(ctx, func() {
		near.Close()
		far.Close()
	})
	defer stop()
	var both sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{near, far}, {far, near}} {
		q := &queue{buf: make([]byte, inFlight)}
		q.change.L = &q.mu
		both.Go(func() { q.fill(way[0], rtt/2) })
		both.Go(func() { q.empty(ctx, way[1], way[0]) })
	}
	both.Wait()
}

// A queue is what is on its way in one direction: a ring of bytes, and when
// which of them are due.
type queue struct {
	mu         sync.Mutex
	change     sync.Cond
	buf        []byte
	head, tail int64 // of all bytes ever: those between are on their way
	marks      []mark
	over       bool // no more come
	broken     bool // no more are taken
}

// A mark says when the bytes before end are due.
type mark struct {
	end int64
	due time.Time
}

// fill reads into the queue until there is no more.
func (q *queue) fill(from *net.TCPConn, delay time.Duration) {
	const most = 256 << 10
	for {
		q.mu.Lock()
		for q.tail-q.head == int64(len(q.buf)) && !q.broken {
			q.change.Wait()
		}
		at := int(q.tail % int64(len(q.buf)))
		n := min(len(q.buf)-at, len(q.buf)-int(q.tail-q.head), most)
		broken := q.broken
		q.mu.Unlock()
		if broken {
			return
		}
		n, err := from.Read(q.buf[at : at+n])
		q.mu.Lock()
		if n > 0 {
			q.tail += int64(n)
		}
		if n > 0 || err != nil {
			q.marks = append(q.marks, mark{q.tail, time.Now().Add(delay)})
		}
		q.over = q.over || err != nil
		q.change.Broadcast()
		q.mu.Unlock()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				from.SetLinger(0)
			}
			return
		}
	}
}

// empty writes what is due. At the end it passes that on.
func (q *queue) empty(ctx context.Context, to, from *net.TCPConn) {
	defer to.CloseWrite()
	defer func() {
		q.mu.Lock()
		q.broken = true
		q.change.Broadcast()
		q.mu.Unlock()
	}()
	for {
		q.mu.Lock()
		for len(q.marks) == 0 && !q.over {
			q.change.Wait()
		}
		if len(q.marks) == 0 {
			q.mu.Unlock()
			return
		}
		first := q.marks[0]
		q.mu.Unlock()
		if !until(ctx, first.due) {
			return
		}
		now := time.Now()
		q.mu.Lock()
		i, end := 0, q.head
		for ; i < len(q.marks) && !q.marks[i].due.After(now); i++ {
			end = q.marks[i].end
		}
		q.marks = q.marks[:copy(q.marks, q.marks[i:])]
		head := q.head
		q.mu.Unlock()
		for head < end {
			at := int(head % int64(len(q.buf)))
			n, err := to.Write(q.buf[at:min(len(q.buf), at+int(end-head))])
			head += int64(n)
			q.mu.Lock()
			q.head = head
			q.change.Broadcast()
			q.mu.Unlock()
			if err != nil {
				from.CloseRead()
				return
			}
		}
	}
}

// until reports whether the time came before the end of ctx.
func until(ctx context.Context, t time.Time) bool {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
