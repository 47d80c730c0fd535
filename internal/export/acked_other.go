//go:build !linux

package export

import "net"

// unacknowledged is not known here: what the receiver has not read shows by the
// reset of the connection alone.
func unacknowledged(*net.TCPConn) (int, error) { return 0, nil }
