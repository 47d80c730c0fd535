package rdp

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// redirectionPacket is an RDP_SERVER_REDIRECTION_PACKET that names a host.
func redirectionPacket(flags uint32) []byte {
	host := utf16Bytes("other.example\x00")
	b := []byte{0, 4, 0, 0, 7, 0, 0, 0}
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(host)))
	b = append(b, host...)
	binary.LittleEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

// share puts b into a share control PDU.
func share(kind uint16, b []byte) []byte {
	h := binary.LittleEndian.AppendUint16(nil, uint16(6+len(b)))
	h = binary.LittleEndian.AppendUint16(h, kind)
	return append(append(h, 0xEA, 3), b...)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestIsRedirection(t *testing.T) {
	packet := redirectionPacket(0x100)
	enhanced := share(0x1A, join([]byte{0, 0}, packet, []byte{0}))
	other := share(0x17, make([]byte, 30))
	for name, data := range map[string][]byte{
		"inside TLS":                         enhanced,
		"inside TLS, with another version":   share(0x2A, join([]byte{0, 0}, packet)),
		"inside TLS, with a length too big":  join([]byte{0xFF, 0x7F}, enhanced[2:]),
		"inside TLS, and more after it":      join(enhanced, other),
		"inside TLS, behind another":         join(other, enhanced),
		"inside TLS, behind a flow PDU":      join([]byte{0, 0x80, 0x43, 0, 0, 0, 0xEA, 3}, enhanced),
		"inside TLS, known by its length":    share(0x2A, make([]byte, 30)),
		"inside TLS, known by its kind":      join([]byte{0xFF, 0x7F}, share(0x1A, make([]byte, 30))[2:]),
		"inside TLS, known by what it holds": join([]byte{0xFF, 0x7F}, share(0x2A, join([]byte{0, 0}, packet))[2:]),
		"to stay":                            share(0x1A, join([]byte{0, 0}, redirectionPacket(0x80))),
		"alone":                              packet,
		"alone, with padding":                join(packet, make([]byte, 8)),
		"behind a security header":           join([]byte{0, 4, 0, 0}, packet),
		"behind a security header with more": join([]byte{0, 0x84, 9, 9}, packet),
	} {
		if !IsRedirection(data) {
			t.Errorf("%s: %x is let through", name, data)
		}
	}
	for name, data := range map[string][]byte{
		"nothing":                            nil,
		"a Demand Active of 1024 bytes":      share(0x11, make([]byte, 1018)),
		"a Data PDU of 1024 bytes":           share(0x17, make([]byte, 1018)),
		"a Data PDU of 128 bytes":            share(0x17, make([]byte, 122)),
		"a Deactivate All":                   share(0x16, make([]byte, 4)),
		"a licence that ends in A":           {0x80, 0, 0x1A, 0, 0xFF, 3, 0x10, 0, 7, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0},
		"a packet that is cut":               packet[:len(packet)-1],
		"a Data PDU that holds a whole one":  share(0x17, enhanced),
		"two Data PDUs":                      join(other, other),
		"a Data PDU, and three bytes":        join(other, enhanced[:3]),
		"a length of zero, which is no loop": make([]byte, 64),
	} {
		if IsRedirection(data) {
			t.Errorf("%s: %x is held up", name, data)
		}
	}
	for _, p := range recordedAll(t) {
		if data, err := ParseSendData(p.bytes); err == nil && IsRedirection(data.Data) {
			t.Errorf("%x is held up", p.bytes)
		}
	}
}

// FuzzIsRedirection: a redirection is seen, whatever Data PDU comes before it and
// whatever comes after it, but for what is a licensing PDU; and inside a Data PDU there is none.
func FuzzIsRedirection(f *testing.F) {
	for _, p := range recordedAll(f) {
		if data, err := ParseSendData(p.bytes); err == nil {
			f.Add(data.Data)
		}
	}
	f.Add(share(0x1A, join([]byte{0, 0}, redirectionPacket(0x100))))
	enhanced := share(0x1A, join([]byte{0, 0}, redirectionPacket(0x100)))
	f.Fuzz(func(t *testing.T, b []byte) {
		IsRedirection(b)
		if len(b) > 16000 {
			return
		}
		before := share(0x17, b)
		if IsRedirection(before) {
			t.Fatalf("%x is held up", before)
		}
		if whole := join(before, enhanced, b); !IsRedirection(whole) && !isLicense(whole) {
			t.Fatalf("it is let through after %x, before %x", before, b)
		}
	})
}
