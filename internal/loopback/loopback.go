package loopback

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
)

// A Listener accepts sockets on a random port of the machine itself, from the
// person who runs this process alone.
type Listener struct {
	l     *net.TCPListener
	check func(peer, here netip.AddrPort) error
}

// Listen opens a port of 127.0.0.1, exclusively.
func Listen(ctx context.Context) (*Listener, error) { return listen(ctx, netip.AddrFrom4(localhost)) }

// ListenApart is Listen on an address that no other session has, where the
// system takes every address of 127.0.0.0/8 without being told: there an RDP
// client keeps by the address what it remembers of a server. Elsewhere it is
// Listen.
func ListenApart(ctx context.Context) (*Listener, error) {
	var l *Listener
	var err error
	for range 8 {
		if l, err = listen(ctx, sessionAddr()); err != nil {
			continue // somebody else may have that address
		}
		if l.Addr().Port() != rdpPort {
			return l, nil
		}
		l.Close() // mstsc refuses it on the machine itself
	}
	return nil, errors.Join(errors.New("no address of the machine itself can be listened on"), err)
}

var localhost = [4]byte{127, 0, 0, 1}

// rdpPort is the RDP service's own.
const rdpPort = 3389

// randomAddr is an address of the machine itself, and not of 127.0.0.0/16,
// where others have theirs.
func randomAddr() netip.Addr {
	var b [3]byte
	rand.Read(b[:])
	return netip.AddrFrom4([4]byte{127, 1 + b[0]%254, b[1], 1 + b[2]%254})
}

func listen(ctx context.Context, a netip.Addr) (*Listener, error) {
	l, err := exclusive().Listen(ctx, "tcp4", netip.AddrPortFrom(a, 0).String())
	if err != nil {
		return nil, err
	}
	return &Listener{l: l.(*net.TCPListener), check: checkPeer}, nil
}

// Addr returns where the listener listens.
func (l *Listener) Addr() netip.AddrPort { return addrPort(l.l.Addr()) }

// Accept waits for a socket. One that is not the person's is returned as an
// error that is a *StrangerError; any other error is the listener's end.
//
// The peer is looked up in the system's table of sockets by both its ends, so
// that a process cannot pass for the person by anything that it sends.
func (l *Listener) Accept() (*net.TCPConn, error) {
	c, err := l.l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	peer := addrPort(c.RemoteAddr())
	if err := l.check(peer, addrPort(c.LocalAddr())); err != nil {
		c.Close()
		return nil, &StrangerError{Peer: peer, Err: err}
	}
	return c, nil
}

// Close ends the listener.
func (l *Listener) Close() error { return l.l.Close() }

// Net returns l as net/http takes it. Who is not the person is told to
// refused, and does not end it.
func (l *Listener) Net(refused func(*StrangerError)) net.Listener { return known{l, refused} }

type known struct {
	l       *Listener
	refused func(*StrangerError)
}

func (k known) Accept() (net.Conn, error) {
	for {
		c, err := k.l.Accept()
		if s, ok := errors.AsType[*StrangerError](err); ok {
			k.refused(s)
			continue
		}
		if err != nil {
			return nil, err
		}
		return c, nil
	}
}

func (k known) Close() error   { return k.l.Close() }
func (k known) Addr() net.Addr { return k.l.l.Addr() }

// A StrangerError says that a socket was refused because it is not the
// person's, or because it could not be found out whose it is.
type StrangerError struct {
	Peer netip.AddrPort
	Err  error
}

// Error says who was refused.
func (e *StrangerError) Error() string {
	return "refused a connection from " + e.Peer.String() + ": " + e.Err.Error()
}

// Unwrap returns the reason.
func (e *StrangerError) Unwrap() error { return e.Err }

func addrPort(a net.Addr) netip.AddrPort {
	p := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}
