package rdp

import "encoding/binary"

// The header of a share control PDU (MS-RDPBCGR 2.2.8.1.1.1.1).
const (
	shareFlow        = 0x8000 // in the place of a length: a flow PDU of 8 bytes (T.128 8.5)
	shareRedirection = 0xA    // PDUTYPE_SERVER_REDIR_PKT, in the lower four bits
	shareVersion     = 0x10   // TS_PROTOCOL_VERSION, in those above
)

// IsRedirection reports whether data, which a service has sent on the I/O
// channel, sends the client to another host (MS-RDPBCGR 2.2.13). It knows the
// form that goes inside TLS, also behind other PDUs in the same data, and that
// of standard RDP security. One that asks the client to stay, with
// LB_NOREDIRECT, is a redirection too: it comes from a farm.
func IsRedirection(data []byte) bool {
	switch {
	case len(data) < secHeader:
		return false
	case isLicense(data):
		return false
	case isRedirectionPacket(data):
		return true
	case binary.LittleEndian.Uint16(data)&secRedirection != 0 && isRedirectionPacket(data[secHeader:]):
		return true // behind a security header of its own
	}
	// Clients go on to the next PDU for as long as there may be one.
	for rest := data; len(rest) >= 4; {
		size, kind := int(binary.LittleEndian.Uint16(rest)), binary.LittleEndian.Uint16(rest[2:])
		if size == shareFlow {
			size = 8
		} else if kind&0xF == shareRedirection {
			// Four bits are little to go by. Each of these says more, and no
			// client asks for all of them.
			if size == len(rest) || kind == shareVersion|shareRedirection ||
				len(rest) >= 10 && binary.LittleEndian.Uint16(rest[8:]) == secRedirection {
				return true
			}
		}
		if size < 4 || size > len(rest) {
			return false
		}
		rest = rest[size:]
	}
	return false
}

// isLicense reports whether data is a licensing PDU: behind the security header
// are a type, a version, and the length of all that (MS-RDPBCGR 2.2.1.12.1.1).
// The upper half of the header's flags can be anything.
func isLicense(data []byte) bool {
	if len(data) < 8 || int(binary.LittleEndian.Uint16(data)) == len(data) || binary.LittleEndian.Uint16(data)&secLicense == 0 {
		return false
	}
	switch data[4] {
	case 0x01, 0x02, 0x03, 0x04, 0xFF: // what a service sends
		return int(binary.LittleEndian.Uint16(data[6:])) == len(data)-secHeader
	}
	return false
}

// isRedirectionPacket reports whether data is an RDP_SERVER_REDIRECTION_PACKET
// with at most 8 bytes of padding (MS-RDPBCGR 2.2.13.1).
func isRedirectionPacket(data []byte) bool {
	if len(data) < 12 || binary.LittleEndian.Uint16(data) != secRedirection {
		return false
	}
	size := int(binary.LittleEndian.Uint16(data[2:]))
	flags := binary.LittleEndian.Uint32(data[8:])
	return size >= 12 && size <= len(data) && len(data)-size <= 8 && flags < 1<<20
}
