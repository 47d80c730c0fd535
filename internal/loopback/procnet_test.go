package loopback

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
)

const procHead = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

func TestProcNetOwner(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the samples are from a little-endian machine")
	}
	local, remote := netip.MustParseAddrPort("127.0.0.1:50000"), netip.MustParseAddrPort("127.0.0.1:40123")
	tests := []struct {
		name, lines string
		uid         uint32
		found       bool
	}{
		{"the socket with both ends", "   0: 0100007F:C350 0100007F:9CBB 01 00000000:00000000 00:00000000 00000000  1000        0 1 1\n", 1000, true},
		{"the one among others", "   0: 0100007F:9CBB 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 1 1\n" +
			"   1: 0100007F:C350 0100007F:9CBB 01 00000000:00000000 00:00000000 00000000     7        0 1 1\n", 7, true},
		{"an IPv6 socket to an IPv4 address", "   0: 0000000000000000FFFF00000100007F:C350 0000000000000000FFFF00000100007F:9CBB 01 00000000:00000000 00:00000000 00000000  1000 0 1\n", 1000, true},
		{"a socket that is closed for writing", "   0: 0100007F:C350 0100007F:9CBB 05 00000000:00000000 00:00000000 00000000  1000        0 1 1\n", 1000, true},
		{"a socket that no process has", "   0: 0100007F:C350 0100007F:9CBB 05 00000000:00000000 00:00000000 00000000     0        0 0 1\n", 0, false},
		{"a socket that is closing has no owner any more", "   0: 0100007F:C350 0100007F:9CBB 06 00000000:00000000 00:00000000 00000000     0        0 0 1\n", 0, false},
		{"another peer", "   0: 0100007F:C350 0200007F:9CBB 01 00000000:00000000 00:00000000 00000000  1000        0 1 1\n", 0, false},
		{"another port", "   0: 0100007F:C351 0100007F:9CBB 01 00000000:00000000 00:00000000 00000000  1000        0 1 1\n", 0, false},
		{"a line that is cut", "   0: 0100007F:C350 0100007F:9CBB 01\n", 0, false},
		{"an owner that is no number", "   0: 0100007F:C350 0100007F:9CBB 01 00000000:00000000 00:00000000 00000000  root 0 1 1\n", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			uid, found, err := procNetOwner(strings.NewReader(procHead+tt.lines), local, remote)
			if uid != tt.uid || found != tt.found || err != nil {
				t.Errorf("got %d, %v, %v, want %d, %v", uid, found, err, tt.uid, tt.found)
			}
		})
	}
}

// FuzzProcNetOwner checks that a socket is found only where both ends are
// written.
func FuzzProcNetOwner(f *testing.F) {
	f.Add(procHead + "   0: 0100007F:C350 0100007F:9CBB 01 00000000:00000000 00:00000000 00000000  1000        0 1 1\n")
	f.Add("::: : 01 1 1 1 1 1")
	f.Add("0: 0100:C350 0100007F:9CBB 01 a a a 1")
	f.Fuzz(func(t *testing.T, s string) {
		local, remote := netip.MustParseAddrPort("127.0.0.1:50000"), netip.MustParseAddrPort("127.0.0.1:40123")
		_, found, _ := procNetOwner(strings.NewReader(s), local, remote)
		up := strings.ToUpper(s)
		if found && (!strings.Contains(up, ":C350") || !strings.Contains(up, ":9CBB")) {
			t.Errorf("found in %q", s)
		}
	})
}

// pcbRecord is a record of net.inet.tcp.pcblist_n with its padding.
func pcbRecord(kind uint32, size int, fill func([]byte)) []byte {
	b := make([]byte, (size+7)&^7)
	binary.NativeEndian.PutUint32(b, uint32(size))
	binary.NativeEndian.PutUint32(b[4:], kind)
	fill(b)
	return b
}

func pcbSample(local, remote netip.AddrPort, uid uint32) []byte {
	head := make([]byte, 24)
	binary.NativeEndian.PutUint32(head, 24)
	connection := func(l, r netip.AddrPort, uid uint32) []byte {
		var b []byte
		b = append(b, pcbRecord(pcbInet, 104, func(b []byte) {
			binary.BigEndian.PutUint16(b[16:], r.Port())
			binary.BigEndian.PutUint16(b[18:], l.Port())
			b[44] = 1
			ra, la := r.Addr().As4(), l.Addr().As4()
			copy(b[60:], ra[:])
			copy(b[76:], la[:])
		})...)
		b = append(b, pcbRecord(pcbSocket, 76, func(b []byte) { binary.NativeEndian.PutUint32(b[64:], uid) })...)
		return append(b, pcbRecord(2, 36, func([]byte) {})...) // a socket buffer
	}
	b := append(head, connection(remote, local, 0)...) // the listener's own end
	return append(b, connection(local, remote, uid)...)
}

func TestPCBOwner(t *testing.T) {
	local, remote := netip.MustParseAddrPort("127.0.0.1:50000"), netip.MustParseAddrPort("127.0.0.1:40123")
	b := pcbSample(local, remote, 501)
	if uid, found := pcbOwner(b, local, remote); uid != 501 || !found {
		t.Errorf("got %d, %v, want 501", uid, found)
	}
	if _, found := pcbOwner(b, netip.MustParseAddrPort("127.0.0.1:50001"), remote); found {
		t.Error("found a socket that is not there")
	}
}

// FuzzPCBOwner checks that no bytes crash the reader.
func FuzzPCBOwner(f *testing.F) {
	local, remote := netip.MustParseAddrPort("127.0.0.1:50000"), netip.MustParseAddrPort("127.0.0.1:40123")
	f.Add(pcbSample(local, remote, 501))
	f.Add([]byte{24, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) { pcbOwner(b, local, remote) })
}
