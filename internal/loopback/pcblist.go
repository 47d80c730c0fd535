package loopback

import (
	"encoding/binary"
	"net/netip"
)

// Kinds of record in net.inet.tcp.pcblist_n of macOS (bsd/sys/socketvar.h).
const (
	pcbSocket = 0x001 // struct xsocket_n
	pcbInet   = 0x010 // struct xinpcb_n
)

// pcbOwner looks in b, the value of macOS's sysctl net.inet.tcp.pcblist_n, for
// the socket with these two IPv4 ends, and returns its owner's uid.
//
// The value is a header, then records that each begin with their length and
// kind and are padded to 8 bytes. A connection is an xinpcb_n (addresses),
// followed by an xsocket_n (owner) and others that do not matter here.
func pcbOwner(b []byte, local, remote netip.AddrPort) (uid uint32, found bool) {
	if len(b) < 4 {
		return 0, false
	}
	u32 := binary.NativeEndian.Uint32
	at := int(min(u32(b), 1<<20)) // struct xinpgen, which has its length alone
	here := false                 // the last addresses seen are the ones
	for at >= 0 && len(b)-at >= 8 {
		size, kind := int(min(u32(b[at:]), 1<<20)), u32(b[at+4:])
		if size < 8 || size > len(b)-at {
			return 0, false
		}
		r := b[at : at+size]
		switch {
		case kind == pcbInet && size >= 80:
			const ipv4 = 1
			here = r[44]&ipv4 != 0 &&
				pcbAddr(r[76:80], r[18:20]) == local && pcbAddr(r[60:64], r[16:18]) == remote
		case kind == pcbSocket && size >= 68 && here:
			return u32(r[64:]), true
		}
		at += (size + 7) &^ 7
	}
	return 0, false
}

func pcbAddr(ip, port []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip)), binary.BigEndian.Uint16(port))
}
