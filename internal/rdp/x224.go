package rdp

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// Protocols are ways to secure a connection: bits in a Connection Request, at
// most one of them in a Connection Confirm (MS-RDPBCGR 2.2.1.1.1, 2.2.1.2.1).
type Protocols uint32

// The protocols of MS-RDPBCGR 2.2.1.1.1.
const (
	ProtocolRDP      Protocols = 0 // standard RDP security
	ProtocolSSL      Protocols = 1 // TLS
	ProtocolHybrid   Protocols = 2 // NLA: CredSSP inside TLS
	ProtocolRDSTLS   Protocols = 4
	ProtocolHybridEx Protocols = 8 // NLA, and 4 bytes of early authorization
)

// Flags of a service's RDP_NEG_RSP (MS-RDPBCGR 2.2.1.2.1).
const (
	FlagExtendedClientData byte = 0x01
	FlagGFX                byte = 0x02
	FlagRestrictedAdmin    byte = 0x08
	FlagRedirectedAuth     byte = 0x10
)

// Flags of a client's RDP_NEG_REQ (MS-RDPBCGR 2.2.1.1.1).
const (
	RequestRestrictedAdmin byte = 0x01
	RequestRedirectedAuth  byte = 0x02
	RequestCorrelation     byte = 0x08
)

// What a service may give as the reason that it refuses to negotiate
// (MS-RDPBCGR 2.2.1.2.2).
const (
	SSLRequired             uint32 = 1
	SSLNotAllowed           uint32 = 2
	SSLCertNotOnServer      uint32 = 3
	InconsistentFlags       uint32 = 4
	HybridRequired          uint32 = 5
	SSLWithUserAuthRequired uint32 = 6
)

// Types of what follows the X.224 header of the two (MS-RDPBCGR 2.2.1.1, 2.2.1.2).
const (
	typeNegRequest  = 1
	typeNegResponse = 2
	typeNegFailure  = 3
	typeCorrelation = 6
)

const (
	maxConnection   = 1024 // of a Connection Request or Confirm, in bytes
	sizeNeg         = 8
	sizeCorrelation = 36
	headConnection  = 7 // of a Connection Request's or Confirm's TPDU
)

// A ConnectionRequest is a client's first PDU (MS-RDPBCGR 2.2.1.1).
type ConnectionRequest struct {
	Cookie      []byte // the cookie or routing token, without its CR LF; nil: none
	Negotiates  bool   // whether it has an RDP_NEG_REQ: what follows is of that
	Flags       byte   // RequestCorrelation in it follows from Correlation
	Protocols   Protocols
	Correlation []byte // of an RDP_NEG_CORRELATION_INFO, the 32 bytes after its header; nil: none
}

// ParseConnectionRequest reads a whole TPKT PDU of at most 1024 bytes. The
// result holds no part of pdu.
func ParseConnectionRequest(pdu []byte) (ConnectionRequest, error) {
	var c ConnectionRequest
	b, err := connection(pdu, 0xE0)
	if err != nil {
		return c, err
	}
	if len(b) > 0 && b[0] != typeNegRequest {
		i := bytes.Index(b, []byte("\r\n"))
		if i < 0 {
			return c, errors.New("the cookie of the Connection Request has no end")
		}
		c.Cookie = append([]byte{}, b[:i]...)
		b = b[i+2:]
	}
	if len(b) == 0 {
		return c, nil
	}
	if len(b) < sizeNeg || b[0] != typeNegRequest || binary.LittleEndian.Uint16(b[2:]) != sizeNeg {
		return c, errors.New("the Connection Request has something in the place of its RDP_NEG_REQ")
	}
	c.Negotiates, c.Flags, c.Protocols = true, b[1], Protocols(binary.LittleEndian.Uint32(b[4:]))
	b = b[sizeNeg:]
	if c.Flags&RequestCorrelation != 0 {
		if len(b) != sizeCorrelation || b[0] != typeCorrelation || b[1] != 0 || binary.LittleEndian.Uint16(b[2:]) != sizeCorrelation {
			return c, errors.New("the Connection Request does not have the correlation that it speaks of")
		}
		c.Correlation = append([]byte{}, b[4:]...)
		b = nil
	}
	if len(b) > 0 {
		return c, errors.New("the Connection Request goes on after its end")
	}
	return c, nil
}

// Bytes returns the request as a whole TPKT PDU, or nil if there is no such
// PDU: the cookie is too long or holds a CR LF, or Correlation has another
// size than 32.
func (c ConnectionRequest) Bytes() []byte {
	var b []byte
	if c.Cookie != nil {
		b = append(append(b, c.Cookie...), "\r\n"...)
		if bytes.Index(b, []byte("\r\n")) != len(c.Cookie) || b[0] == typeNegRequest {
			return nil
		}
	}
	if c.Negotiates {
		flags := c.Flags &^ RequestCorrelation
		if c.Correlation != nil {
			flags |= RequestCorrelation
		}
		b = append(b, typeNegRequest, flags, sizeNeg, 0)
		b = binary.LittleEndian.AppendUint32(b, uint32(c.Protocols))
	}
	if c.Correlation != nil {
		if !c.Negotiates || len(c.Correlation) != sizeCorrelation-4 {
			return nil
		}
		b = append(b, typeCorrelation, 0, sizeCorrelation, 0)
		b = append(b, c.Correlation...)
	}
	return connectionBytes(0xE0, 0, b)
}

// A ConnectionConfirm is a service's answer to a Connection Request
// (MS-RDPBCGR 2.2.1.2).
type ConnectionConfirm struct {
	Negotiated bool      // whether it has an RDP_NEG_RSP or RDP_NEG_FAILURE
	Flags      byte      // of the former
	Selected   Protocols // and what it chose
	Failed     bool      // it is an RDP_NEG_FAILURE
	Failure    uint32    // and why
}

// ParseConnectionConfirm reads a whole TPKT PDU of at most 1024 bytes.
func ParseConnectionConfirm(pdu []byte) (ConnectionConfirm, error) {
	var c ConnectionConfirm
	b, err := connection(pdu, 0xD0)
	if err != nil || len(b) == 0 {
		return c, err
	}
	if len(b) != sizeNeg || binary.LittleEndian.Uint16(b[2:]) != sizeNeg {
		return c, errors.New("the Connection Confirm has something in the place of its RDP_NEG_RSP")
	}
	value := binary.LittleEndian.Uint32(b[4:])
	switch b[0] {
	case typeNegResponse:
		return ConnectionConfirm{Negotiated: true, Flags: b[1], Selected: Protocols(value)}, nil
	case typeNegFailure:
		return ConnectionConfirm{Negotiated: true, Failed: true, Failure: value}, nil
	}
	return c, errors.New("the Connection Confirm has something in the place of its RDP_NEG_RSP")
}

// Bytes returns the answer as a whole TPKT PDU.
func (c ConnectionConfirm) Bytes() []byte {
	var b []byte
	switch {
	case c.Failed:
		b = binary.LittleEndian.AppendUint32([]byte{typeNegFailure, 0, sizeNeg, 0}, c.Failure)
	case c.Negotiated:
		b = binary.LittleEndian.AppendUint32([]byte{typeNegResponse, c.Flags, sizeNeg, 0}, uint32(c.Selected))
	}
	return connectionBytes(0xD0, 0x1234, b)
}

// connection returns what follows the header of a Connection Request or
// Confirm of class 0 (X.224 13.3, 13.4).
func connection(pdu []byte, code byte) ([]byte, error) {
	if len(pdu) > maxConnection {
		return nil, ErrTooLong
	}
	b, err := tpdu(pdu)
	if err != nil {
		return nil, err
	}
	if len(b) < headConnection || int(b[0]) != len(b)-1 || b[1] != code || b[6] != 0 {
		return nil, errors.New("it is not an X.224 connection PDU of class 0")
	}
	return b[headConnection:], nil
}

// connectionBytes is the opposite of connection; nil if b is too long.
func connectionBytes(code byte, source uint16, b []byte) []byte {
	n := headConnection - 1 + len(b)
	if n > 0xFE { // 255 is reserved: X.224 13.2.1
		return nil
	}
	return tpkt(append([]byte{byte(n), code, 0, 0, byte(source >> 8), byte(source), 0}, b...)...)
}
