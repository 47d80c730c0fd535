package daemon

import "net"

// A Socket listens, and the service manager has it too: none does on Windows.
type Socket struct {
	net.Listener
	Name string
}

// Sockets returns none: the service manager of Windows has no sockets.
func Sockets() ([]Socket, error) { return nil, nil }

// Keep does nothing on Windows.
func Keep(string, *net.TCPListener) error { return nil }

// Forget does nothing on Windows.
func Forget(string) error { return nil }
