package privsep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// A link is one end of the channel between monitor and broker. It carries whole
// messages. One goroutine receives; any may send.
type link interface {
	// send writes a call or a message, with the file beside it unless nil. A
	// peer that does not read makes it fail in time.
	send(v any, f *os.File) error
	// receive returns the next message, and refuses one with a file beside it.
	// The bytes are good until the next call.
	receive() ([]byte, error)
	// receiveFile returns the next message and the file beside it, if any.
	receiveFile() ([]byte, *os.File, error)
	// deadline says until when the next message must have come; zero means
	// never. After a receive that was late there is no other.
	deadline(time.Time) error
	// files reports whether files can go beside messages.
	files() bool
	// close ends both directions.
	close()
}

// A process is the broker, as its parent holds it.
type process interface {
	pid() int
	// kill ends it at once. It may be called again, and after wait.
	kill()
	// wait blocks until it has ended. It is called once.
	wait() (ending, error)
	// inspect reads back from outside that it is what a broker must be, and
	// returns the layers. told is by its own account. The error names what is
	// missing.
	inspect(cfg Config, told Ready) ([]Layer, error)
}

// An ending is how a process ended.
type ending struct {
	how string // "exit status 1"
	ok  bool
}

// A launched is a broker that was started.
type launched struct {
	proc process
	ch   link
	log  io.ReadCloser // what it writes to its standard error
}

// hungUp reports whether err is about a peer that has closed its end, or ended.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
}

// checkOpen reports a reply that does not say in this system's way how the
// broker gets its socket: by a file beside it, or by an address to dial.
func checkOpen(files bool, r OpenReply, file bool) error {
	switch {
	case files && r.Dial != "":
		return errors.New("an address to dial, where sockets are handed over")
	case !files && file:
		return errors.New("a socket, where the broker connects itself")
	case (r.Stream != 0) != (file || r.Dial != ""):
		return fmt.Errorf("stream %d and a socket do not go together: %v", r.Stream, file || r.Dial != "")
	case r.Dial != "":
		_, err := loopback(r.Dial)
		return err
	}
	return nil
}

// checkConfiguration is checkOpen for the listener.
func checkConfiguration(files bool, c Configuration, file bool) error {
	switch {
	case files && c.Listen != "":
		return errors.New("an address to listen on, where the listener is handed over")
	case !files && file:
		return errors.New("a listener, where the broker listens itself")
	}
	return nil
}

// A listenError is about an address that cannot be listened on.
type listenError struct{ error }

// loopback parses an address that a broker may connect to: a number of the host
// itself and a port, in one spelling.
func loopback(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.String() != s || !a.Addr().IsLoopback() || a.Addr().Is4In6() || a.Addr().Zone() != "" || a.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address and port on loopback", s)
	}
	return a, nil
}

// dialLoopback connects to a service of this host. It refuses any other place.
func dialLoopback(ctx context.Context, address string) (net.Conn, error) {
	a, err := loopback(address)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: dialTimeout}
	return d.DialContext(ctx, "tcp", a.String())
}
