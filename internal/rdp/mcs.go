package rdp

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The BER tags in the two Connect PDUs (T.125 7, X.690 8).
const (
	tagBoolean    = 0x01
	tagInteger    = 0x02
	tagOctets     = 0x04
	tagEnumerated = 0x0A
	tagSequence   = 0x30
)

// connect returns what an MCS Connect PDU holds, which is [APPLICATION n]
// (T.125 7).
func connect(pdu []byte, n byte) ([]byte, error) {
	if len(pdu) > MaxConnect {
		return nil, ErrTooLong
	}
	b, err := data(pdu)
	if err != nil {
		return nil, err
	}
	if len(b) < 2 || b[0] != 0x7F || b[1] != n {
		return nil, errors.New("it is another PDU")
	}
	v, b, err := berValue(b[2:])
	if err != nil {
		return nil, err
	}
	if len(b) != 0 {
		return nil, errors.New("it goes on after its end")
	}
	return v, nil
}

// connectBytes is the opposite of connect.
func connectBytes(n byte, b []byte) ([]byte, error) {
	pdu := dataTPDU(append(appendBERLength([]byte{0x7F, n}, len(b)), b...)...)
	if pdu == nil || len(pdu) > MaxConnect {
		return nil, ErrTooLong
	}
	return pdu, nil
}

var errBER = errors.New("its BER is not that of MCS")

// ber takes a value with a tag of one byte off b.
func ber(b []byte, tag byte) (value, rest []byte, err error) {
	if len(b) == 0 || b[0] != tag {
		return nil, nil, errBER
	}
	return berValue(b[1:])
}

// berValue takes a definite length of at most two bytes and a value off b.
func berValue(b []byte) (value, rest []byte, err error) {
	if len(b) == 0 {
		return nil, nil, errBER
	}
	n, b := int(b[0]), b[1:]
	if n >= 0x80 {
		octets := n & 0x7F
		if octets < 1 || octets > 2 || len(b) < octets {
			return nil, nil, errBER
		}
		n = 0
		for _, o := range b[:octets] {
			n = n<<8 | int(o)
		}
		b = b[octets:]
	}
	if n > len(b) {
		return nil, nil, errBER
	}
	return b[:n], b[n:], nil
}

// appendBERLength writes a length below 65536.
func appendBERLength(b []byte, n int) []byte {
	switch {
	case n < 0x80:
		return append(b, byte(n))
	case n < 0x100:
		return append(b, 0x81, byte(n))
	}
	return append(b, 0x82, byte(n>>8), byte(n))
}

func appendBER(b []byte, tag byte, value []byte) []byte {
	return append(appendBERLength(append(b, tag), len(value)), value...)
}

// isDomain reports whether b is what DomainParameters hold: eight integers
// (T.125 7).
func isDomain(b []byte) bool {
	for range 8 {
		v, r, err := ber(b, tagInteger)
		if err != nil || len(v) < 1 || len(v) > 5 {
			return false
		}
		b = r
	}
	return len(b) == 0
}

var errPER = errors.New("its PER is not that of MCS")

// perLength takes a length below 16384 off b (X.691 10.9.3).
func perLength(b []byte) (n int, rest []byte, err error) {
	switch {
	case len(b) >= 1 && b[0] < 0x80:
		return int(b[0]), b[1:], nil
	case len(b) >= 2 && b[0] < 0xC0:
		return int(b[0]&0x3F)<<8 | int(b[1]), b[2:], nil
	}
	return 0, nil, errPER
}

// maxPER is the longest length that is not cut into pieces.
const maxPER = 0x3FFF

// appendPERLength writes a length of at most maxPER.
func appendPERLength(b []byte, n int) []byte {
	if n < 0x80 {
		return append(b, byte(n))
	}
	return append(b, 0x80|byte(n>>8), byte(n))
}

// An MCSKind is what a PDU of the MCS domain is for (T.125 7, DomainMCSPDU).
type MCSKind int

// The kinds that a connection begins with, or consists of.
const (
	OtherMCS MCSKind = iota // any other, or none
	ErectDomain
	AttachUser
	AttachUserConfirmed
	ChannelJoin
	ChannelJoined
	SendData           // from a client
	SendDataIndication // from a service
	Disconnect
)

// The choices of DomainMCSPDU; the byte has them in its upper six bits.
const (
	choiceErectDomain        = 1
	choiceDisconnect         = 8
	choiceAttachUser         = 10
	choiceAttachUserConfirm  = 11
	choiceChannelJoin        = 14
	choiceChannelJoinConfirm = 15
	choiceSendData           = 25
	choiceSendDataIndication = 26
)

var kinds = map[byte]MCSKind{
	choiceErectDomain: ErectDomain, choiceDisconnect: Disconnect,
	choiceAttachUser: AttachUser, choiceAttachUserConfirm: AttachUserConfirmed,
	choiceChannelJoin: ChannelJoin, choiceChannelJoinConfirm: ChannelJoined,
	choiceSendData: SendData, choiceSendDataIndication: SendDataIndication,
}

// KindOf tells what PDU begins with pdu, of which 8 bytes are enough. With
// fewer it is OtherMCS.
func KindOf(pdu []byte) MCSKind {
	if len(pdu) <= dataHeader || pdu[0] != 3 || !isData(pdu[tpktHeader:]) {
		return OtherMCS
	}
	return kinds[pdu[dataHeader]>>2]
}

// minUser is the smallest number of a user; on the wire they count from it
// (T.125 7, UserId).
const minUser = 1001

func appendUser(b []byte, user uint16) []byte {
	return binary.BigEndian.AppendUint16(b, user-minUser)
}

func userAt(b []byte) (uint16, error) {
	n := binary.BigEndian.Uint16(b)
	if n > 0xFFFF-minUser {
		return 0, errors.New("there is no such user")
	}
	return n + minUser, nil
}

// domainPDU returns what follows the choice in a PDU, which has to be whole,
// of size bytes after the choice, and begin with exactly first.
func domainPDU(pdu []byte, size int, first byte) ([]byte, error) {
	b, err := data(pdu)
	if err != nil {
		return nil, err
	}
	if len(b) != 1+size || b[0] != first {
		return nil, errors.New("it is another PDU")
	}
	return b[1:], nil
}

// ErectDomainRequest returns the PDU of MS-RDPBCGR 2.2.1.5.
func ErectDomainRequest() []byte {
	return dataTPDU(choiceErectDomain<<2, 1, 0, 1, 0)
}

// AttachUserRequest returns the PDU of MS-RDPBCGR 2.2.1.6.
func AttachUserRequest() []byte {
	return dataTPDU(choiceAttachUser << 2)
}

// In the byte of the choice, a confirmation has a bit that says whether its
// optional number is there, and one of its result, the others of which are in
// the next byte. So success is exactly one pair of bytes.
const confirmed = 2

// ParseAttachUserConfirm returns the user that the client is, from 1001 on
// (MS-RDPBCGR 2.2.1.7). Any result but success is an error.
func ParseAttachUserConfirm(pdu []byte) (user uint16, err error) {
	b, err := domainPDU(pdu, 3, choiceAttachUserConfirm<<2|confirmed)
	if err == nil && b[0] != 0 {
		err = errors.New("it is not a success")
	}
	if err == nil {
		user, err = userAt(b[1:])
	}
	if err != nil {
		return 0, fmt.Errorf("read Attach User Confirm: %w", err)
	}
	return user, nil
}

// AttachUserConfirm returns the PDU of MS-RDPBCGR 2.2.1.7, with success. A
// user below 1001 there is not.
func AttachUserConfirm(user uint16) []byte {
	return dataTPDU(appendUser([]byte{choiceAttachUserConfirm<<2 | confirmed, 0}, user)...)
}

// ChannelJoinRequest returns the PDU of MS-RDPBCGR 2.2.1.8.
func ChannelJoinRequest(user, channel uint16) []byte {
	return dataTPDU(binary.BigEndian.AppendUint16(appendUser([]byte{choiceChannelJoin << 2}, user), channel)...)
}

// ParseChannelJoinRequest returns who joins what (MS-RDPBCGR 2.2.1.8).
func ParseChannelJoinRequest(pdu []byte) (user, channel uint16, err error) {
	b, err := domainPDU(pdu, 4, choiceChannelJoin<<2)
	if err == nil {
		user, err = userAt(b)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read Channel Join Request: %w", err)
	}
	return user, binary.BigEndian.Uint16(b[2:]), nil
}

// ParseChannelJoinConfirm returns the channel that was joined (MS-RDPBCGR
// 2.2.1.9). Any result but success is an error, and so is another channel
// than was asked for.
func ParseChannelJoinConfirm(pdu []byte) (channel uint16, err error) {
	b, err := domainPDU(pdu, 7, choiceChannelJoinConfirm<<2|confirmed)
	if err == nil && b[0] != 0 {
		err = errors.New("it is not a success")
	}
	if err == nil {
		_, err = userAt(b[1:])
	}
	if err == nil && binary.BigEndian.Uint16(b[3:]) != binary.BigEndian.Uint16(b[5:]) {
		err = errors.New("it is another channel than was asked for")
	}
	if err != nil {
		return 0, fmt.Errorf("read Channel Join Confirm: %w", err)
	}
	return binary.BigEndian.Uint16(b[5:]), nil
}

// ChannelJoinConfirm returns the PDU of MS-RDPBCGR 2.2.1.9, with success.
func ChannelJoinConfirm(user, channel uint16) []byte {
	b := appendUser([]byte{choiceChannelJoinConfirm<<2 | confirmed, 0}, user)
	b = binary.BigEndian.AppendUint16(b, channel)
	return dataTPDU(binary.BigEndian.AppendUint16(b, channel)...)
}

// A SendDataPDU carries everything that is not MCS's own (T.125 7, 11.32,
// 11.33).
type SendDataPDU struct {
	Indication bool   // it comes from a service
	Initiator  uint16 // the user who sends it, from 1001 on
	Channel    uint16
	Priority   byte   // dataPriority and segmentation, as they are on the wire: 0x70
	Data       []byte // at most 16383 bytes
}

// ParseSendData reads a whole TPKT PDU. Data is a part of pdu.
func ParseSendData(pdu []byte) (SendDataPDU, error) {
	p, err := parseSendData(pdu)
	if err != nil {
		return SendDataPDU{}, fmt.Errorf("read Send Data: %w", err)
	}
	return p, nil
}

func parseSendData(pdu []byte) (p SendDataPDU, err error) {
	b, err := data(pdu)
	if err != nil {
		return p, err
	}
	if len(b) < 6 {
		return p, errPER
	}
	switch b[0] {
	case choiceSendData << 2:
	case choiceSendDataIndication << 2:
		p.Indication = true
	default:
		return p, errors.New("it is another PDU")
	}
	if p.Initiator, err = userAt(b[1:]); err != nil {
		return p, err
	}
	p.Channel, p.Priority = binary.BigEndian.Uint16(b[3:]), b[5]
	n, rest, err := perLength(b[6:])
	if err != nil {
		return p, err
	}
	if n != len(rest) {
		return p, errors.New("its data has another length")
	}
	p.Data = rest
	return p, nil
}

// Bytes returns a whole TPKT PDU; an error if there is no such user, or Data
// is too long.
func (p SendDataPDU) Bytes() ([]byte, error) {
	if p.Initiator < minUser {
		return nil, fmt.Errorf("write Send Data: there is no user %d", p.Initiator)
	}
	if len(p.Data) > maxPER {
		return nil, fmt.Errorf("write Send Data: %w", ErrTooLong)
	}
	choice := byte(choiceSendData)
	if p.Indication {
		choice = choiceSendDataIndication
	}
	b := make([]byte, tpktHeader, dataHeader+8+len(p.Data)) // one allocation: it may hold a password
	b = append(b, 2, 0xF0, 0x80, choice<<2)
	b = appendUser(b, p.Initiator)
	b = append(binary.BigEndian.AppendUint16(b, p.Channel), p.Priority)
	b = append(appendPERLength(b, len(p.Data)), p.Data...)
	b[0] = 3
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b, nil
}

// SendDataChannel returns the channel of the SendDataPDU that begins with
// head, of which 12 bytes are enough. known is false if they are fewer, or
// begin another PDU.
func SendDataChannel(head []byte) (channel uint16, known bool) {
	if k := KindOf(head); k != SendData && k != SendDataIndication || len(head) < dataHeader+5 {
		return 0, false
	}
	return binary.BigEndian.Uint16(head[dataHeader+3:]), true
}
