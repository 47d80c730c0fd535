package loopback

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// procNetOwner looks in r, which is /proc/net/tcp or tcp6 of Linux, for the
// connected socket with these two ends, and returns its owner's uid. A socket
// that no process has any more does not count: its owner reads as root.
func procNetOwner(r io.Reader, local, remote netip.AddrPort) (uid uint32, found bool, err error) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …
		f := strings.Fields(s.Text())
		if len(f) < 10 || f[9] == "0" {
			continue
		}
		switch f[3] {
		case "01", "04", "05": // connected, or closed for writing alone
		default:
			continue
		}
		if a, ok := procNetAddr(f[1]); !ok || a != local {
			continue
		}
		if a, ok := procNetAddr(f[2]); !ok || a != remote {
			continue
		}
		n, err := strconv.ParseUint(f[7], 10, 32)
		if err != nil {
			continue
		}
		return uint32(n), true, nil
	}
	return 0, false, s.Err()
}

// procNetAddr reads "0100007F:0CEA": 32-bit words in the machine's byte order,
// then the port. An IPv4 address in IPv6 clothes is returned as IPv4.
func procNetAddr(s string) (netip.AddrPort, bool) {
	ip, port, ok := strings.Cut(s, ":")
	if !ok || len(port) != 4 {
		return netip.AddrPort{}, false
	}
	b, err := hex.DecodeString(ip)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, false
	}
	for w := 0; w < len(b); w += 4 {
		binary.NativeEndian.PutUint32(b[w:], binary.BigEndian.Uint32(b[w:]))
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), true
}
