//go:build unix

package loopback

import "net"

// exclusive is the default: a port that somebody listens on cannot be
// listened on again.
func exclusive() *net.ListenConfig { return &net.ListenConfig{} }
