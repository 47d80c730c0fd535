//go:build unix

package loopback

import (
	"net"
	"net/netip"
)

// exclusive is the default: a port that somebody listens on cannot be
// listened on again.
func exclusive() *net.ListenConfig { return &net.ListenConfig{} }

// sessionAddr is the one address: macOS has no other, and no RDP client here
// remembers anything by it.
func sessionAddr() netip.Addr { return netip.AddrFrom4(localhost) }
