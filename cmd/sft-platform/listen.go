package main

import (
	"log/slog"
	"net"

	"sft/internal/daemon"
)

// socketName is the platform's socket among what systemd keeps for it.
const socketName = "sft-platform"

// listen returns the platform's socket: the one of its socket unit, whatever
// the address, or the one that the process before has left with systemd, if it
// is for the address; else a new one, which is left there. So connections wait
// in its queue while one process follows another, and none is refused.
func listen(addr string, logger *slog.Logger) (net.Listener, error) {
	passed, err := daemon.Sockets()
	if err != nil {
		return nil, err
	}
	var found net.Listener
	for _, s := range passed {
		switch {
		case found == nil && (s.Name != socketName || listensOn(s.Addr(), addr)):
			found = s.Listener
		case s.Name == socketName:
			s.Close()
			if err := daemon.Forget(socketName); err != nil {
				return nil, err
			}
		default:
			s.Close()
		}
	}
	if found != nil {
		return found, nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	if err := daemon.Keep(socketName, ln.(*net.TCPListener)); err != nil {
		logger.Warn("leave the socket with systemd: connections are refused during a restart", "error", err)
	}
	return ln, nil
}

// listensOn reports whether a socket is what net.Listen makes for an address.
func listensOn(socket net.Addr, addr string) bool {
	has, ok := socket.(*net.TCPAddr)
	want, err := net.ResolveTCPAddr("tcp", addr)
	if !ok || err != nil || has.Port != want.Port {
		return false
	}
	if want.IP == nil || want.IP.IsUnspecified() {
		return has.IP.IsUnspecified()
	}
	return has.IP.Equal(want.IP)
}
