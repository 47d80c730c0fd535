package rdp

import (
	"encoding/binary"
	"errors"
	"io"
)

// Sizes of what every slow-path PDU begins with (T.123 8, X.224 13.7).
const (
	tpktHeader = 4
	dataHeader = tpktHeader + 3 // and an X.224 Data TPDU's header
	minTPKT    = 7              // T.123 8: no TPDU is shorter than 3 bytes
)

// ErrTooLong says that a PDU is longer than its reader takes.
var ErrTooLong = errors.New("a PDU is longer than it may be")

// errNoPDU is about bytes with which no PDU begins.
var errNoPDU = errors.New("no RDP PDU begins like this")

// errLength is about a PDU that says it is shorter than its own header.
var errLength = errors.New("a PDU has a length that none can have")

// ReadTPKT reads one TPKT PDU (T.123 8) from r and returns all of it, its
// header of 4 bytes included. One of more than max bytes is ErrTooLong, before
// anything is allocated for it. The error is io.EOF if r ends before the
// first byte, and io.ErrUnexpectedEOF if it ends after that.
func ReadTPKT(r io.Reader, max int) ([]byte, error) {
	var head [tpktHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if head[0] != 3 {
		return nil, errNoPDU
	}
	n, _, err := PDULength(head[:])
	if err != nil {
		return nil, err
	}
	if n > max {
		return nil, ErrTooLong
	}
	pdu := make([]byte, n)
	copy(pdu, head[:])
	if _, err := io.ReadFull(r, pdu[tpktHeader:]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return pdu, nil
}

// PDULength returns the whole length, in bytes, of the PDU that begins with
// head: a TPKT (T.123 8) or a fast-path one (MS-RDPBCGR 2.2.8.1.2, 2.2.9.1.2).
// known is false as long as more of head is needed, which is never more than
// 4 bytes. An error means that no PDU begins like this, or that it would be
// shorter than its own header.
func PDULength(head []byte) (n int, known bool, err error) {
	if len(head) == 0 {
		return 0, false, nil
	}
	least := 2
	switch {
	case head[0] == 3:
		if len(head) < tpktHeader {
			return 0, false, nil
		}
		least, n = minTPKT, int(binary.BigEndian.Uint16(head[2:]))
	case head[0]&3 != 0: // the action: fast-path is 0
		return 0, false, errNoPDU
	case len(head) < 2:
		return 0, false, nil
	case head[1]&0x80 == 0:
		n = int(head[1])
	case len(head) < 3:
		return 0, false, nil
	default:
		least, n = 3, int(head[1]&0x7F)<<8|int(head[2])
	}
	if n < least {
		return 0, false, errLength
	}
	return n, true, nil
}

// tpkt puts body, which is a whole TPDU, into a TPKT. It returns nil if it
// does not fit.
func tpkt(body ...byte) []byte {
	n := tpktHeader + len(body)
	if n > 0xFFFF {
		return nil
	}
	return append([]byte{3, 0, byte(n >> 8), byte(n)}, body...)
}

// errWhole is about bytes that are not exactly one PDU.
var errWhole = errors.New("it is not one whole PDU")

// tpdu returns what a whole TPKT carries.
func tpdu(pdu []byte) ([]byte, error) {
	if len(pdu) < minTPKT || pdu[0] != 3 || pdu[1] != 0 || int(binary.BigEndian.Uint16(pdu[2:])) != len(pdu) {
		return nil, errWhole
	}
	return pdu[tpktHeader:], nil
}

// data returns what the X.224 Data TPDU carries that a whole TPKT is.
func data(pdu []byte) ([]byte, error) {
	b, err := tpdu(pdu)
	if err != nil {
		return nil, err
	}
	if !isData(b) {
		return nil, errors.New("it is not an X.224 Data TPDU")
	}
	return b[3:], nil
}

// isData reports whether a TPDU is an X.224 Data TPDU, and all of it
// (X.224 13.7).
func isData(b []byte) bool {
	return len(b) >= 3 && b[0] == 2 && b[1] == 0xF0 && b[2] == 0x80
}

// dataTPDU puts b into an X.224 Data TPDU, and that into a TPKT.
func dataTPDU(b ...byte) []byte {
	return tpkt(append([]byte{2, 0xF0, 0x80}, b...)...)
}
