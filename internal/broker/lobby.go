package broker

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// How far a guest has come. Each step costs a stranger more than the last,
// and the third needs a certificate of the project.
type step int

const (
	silent  step = iota // connected
	greeted             // sent a whole ClientHello for our protocol
	proven              // has a certificate of the project's CA, and its key
)

// A guest is a connection that has not sent its frame yet.
type guest struct {
	net.Conn
	source   netip.Addr
	deadline time.Time // for handshake and frame together
	ctx      context.Context
	cancel   context.CancelFunc

	// Of the lobby, under its lock.
	step step
	in   bool
}

// NetConn returns the connection under TLS, which gathers what is written.
func (g *guest) NetConn() net.Conn { return g.Conn }

// drop ends a guest, whatever it waits for.
func (g *guest) drop() {
	g.cancel()
	g.Conn.Close()
}

// silentFactor is how many more silent guests than others may be there: they
// cost a goroutine and a descriptor, the others memory, computing and
// signatures.
const silentFactor = 8

// A lobby holds the guests, in two rooms: who is silent, and who has greeted
// us. No room is ever full: a new guest is always let in, and if that makes
// one too many, the one that has shown least leaves, the oldest first among
// equals. So thousands of silent connections only push out each other, and
// somebody who talks is pushed out only by people who talk.
type lobby struct {
	mu         sync.Mutex
	limit      int      // of those who greeted
	perAddress int      // of those, from one address
	guests     []*guest // in the order of their last step
	closed     bool
	shed       uint64
}

// enter lets g in, and reports whether the lobby is open at all.
func (l *lobby) enter(g *guest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.makeRoom(g, silent)
	g.in = true
	l.guests = append(l.guests, g)
	return true
}

// advance records how far g has come.
func (l *lobby) advance(g *guest, s step) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !g.in || s <= g.step {
		return
	}
	l.remove(g)
	l.makeRoom(g, s)
	g.in, g.step = true, s
	l.guests = append(l.guests, g)
}

// makeRoom sheds who has to leave before g can be in the room of step s.
func (l *lobby) makeRoom(g *guest, s step) {
	limit, perAddress := l.limit, l.perAddress
	if s == silent {
		limit, perAddress = silentFactor*limit, silentFactor*perAddress
	}
	all, same := 0, 0
	for _, o := range l.guests {
		if (o.step == silent) == (s == silent) {
			all++
			if o.source == g.source {
				same++
			}
		}
	}
	if same >= perAddress {
		l.shedOne(func(o *guest) bool { return (o.step == silent) == (s == silent) && o.source == g.source })
	} else if all >= limit {
		l.shedOne(func(o *guest) bool { return (o.step == silent) == (s == silent) })
	}
}

// relieve sheds one guest: for when file descriptors have run out.
func (l *lobby) relieve() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shedOne(func(*guest) bool { return true })
}

func (l *lobby) shedOne(among func(*guest) bool) {
	var out *guest
	for _, o := range l.guests {
		if among(o) && (out == nil || o.step < out.step) {
			out = o
		}
	}
	if out == nil {
		return
	}
	l.remove(out)
	l.shed++
	out.drop()
}

func (l *lobby) remove(g *guest) {
	g.in = false
	for i, o := range l.guests {
		if o == g {
			copy(l.guests[i:], l.guests[i+1:])
			l.guests[len(l.guests)-1] = nil
			l.guests = l.guests[:len(l.guests)-1]
			return
		}
	}
}

// leave takes g out, and reports whether it was still in and how far it had
// come. Who was in is from then on the caller's to close.
func (l *lobby) leave(g *guest) (in bool, s step) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if in = g.in; in {
		l.remove(g)
	}
	return in, g.step
}

// close drops every guest and lets none in any more.
func (l *lobby) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, g := range l.guests {
		g.in = false
		g.drop()
	}
	l.guests = nil
}

func (l *lobby) setLimits(limit, perAddress int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limit, l.perAddress = limit, perAddress
}

// count returns how many guests there are and how many were shed.
func (l *lobby) count() (waiting int, shed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.guests), l.shed
}

// sourceOf returns what counts as one address: for IPv6, where one machine
// has a whole network, its /64.
func sourceOf(a net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is6() {
		p, _ := ip.Prefix(64)
		return p.Addr()
	}
	return ip
}
