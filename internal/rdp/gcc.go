package rdp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// MaxConnect caps a Connect Initial and a Connect Response, in bytes.
const MaxConnect = 8 << 10

// A Block is a user data block of a conference: its type, and what follows
// its header (MS-RDPBCGR 2.2.1.3.1).
type Block struct {
	Type uint16
	Data []byte
}

// The blocks of a client (MS-RDPBCGR 2.2.1.3.1).
const (
	CSCore           uint16 = 0xC001
	CSSecurity       uint16 = 0xC002
	CSNet            uint16 = 0xC003
	CSCluster        uint16 = 0xC004
	CSMonitor        uint16 = 0xC005
	CSMessageChannel uint16 = 0xC006
	CSMonitorEx      uint16 = 0xC008
	CSMultitransport uint16 = 0xC00A
)

// The blocks of a service (MS-RDPBCGR 2.2.1.4.2).
const (
	SCCore           uint16 = 0x0C01
	SCSecurity       uint16 = 0x0C02
	SCNet            uint16 = 0x0C03
	SCMessageChannel uint16 = 0x0C04
	SCMultitransport uint16 = 0x0C08
)

// MaxChannels is how many static channels a connection can have
// (MS-RDPBCGR 2.2.1.3.4).
const MaxChannels = 31

// A ChannelDef is a static virtual channel that a client asks for
// (MS-RDPBCGR 2.2.1.3.4.1).
type ChannelDef struct {
	Name    string // one to seven printable ASCII characters
	Options uint32
}

// A ConnectInitial is a client's MCS Connect Initial with the GCC Conference
// Create Request in it (MS-RDPBCGR 2.2.1.3).
type ConnectInitial struct {
	Blocks []Block

	domain []byte // what comes before the user data, as it came
}

// A ConnectResponse is a service's MCS Connect Response with the GCC
// Conference Create Response in it (MS-RDPBCGR 2.2.1.4).
type ConnectResponse struct {
	Result byte // 0: it takes the client; else there may be no blocks
	Blocks []Block

	domain []byte // between result and user data, as it came
	gcc    []byte // what comes before the blocks' length, as it came
}

// gccObject is what ConnectData begins with: t124Identifier, an object
// identifier with the value {itu-t recommendation t 124 version(0) 1}.
var gccObject = []byte{0, 5, 0, 0x14, 0x7C, 0, 1}

// createRequest is a ConferenceCreateRequest up to the length of its user
// data: the conference is named "1", and there is one set of data, from the
// key "Duca".
var createRequest = append([]byte{0, 8, 0, 0x10, 0, 1, 0xC0, 0}, "Duca"...)

// createResponseEnd is what a ConferenceCreateResponse has before that.
var createResponseEnd = append([]byte{1, 0xC0, 0}, "McDn"...)

// ParseConnectInitial reads a whole TPKT PDU of at most MaxConnect bytes. It
// refuses what can be read in two ways: blocks or channels that are there
// twice, and anything after an end. The blocks are copies.
func ParseConnectInitial(pdu []byte) (*ConnectInitial, error) {
	b, err := connect(pdu, 0x65)
	if err != nil {
		return nil, fmt.Errorf("read Connect Initial: %w", err)
	}
	c := &ConnectInitial{}
	r := b
	for _, tag := range []byte{tagOctets, tagOctets, tagBoolean, tagSequence, tagSequence, tagSequence} {
		var v []byte
		if v, r, err = ber(r, tag); err != nil {
			return nil, fmt.Errorf("read Connect Initial: %w", err)
		}
		if tag == tagBoolean && len(v) != 1 || tag == tagSequence && !isDomain(v) {
			return nil, errors.New("read Connect Initial: its domain is none")
		}
	}
	c.domain = bytes.Clone(b[:len(b)-len(r)])
	u, r, err := ber(r, tagOctets)
	if err != nil {
		return nil, fmt.Errorf("read Connect Initial: %w", err)
	}
	if len(r) != 0 {
		return nil, errors.New("read Connect Initial: it goes on after its end")
	}
	u, ok := bytes.CutPrefix(u, gccObject)
	if !ok {
		return nil, errors.New("read Connect Initial: there is no conference in it")
	}
	n, u, err := perLength(u)
	if err != nil || n != len(u) {
		return nil, errors.New("read Connect Initial: its conference has another length")
	}
	if u, ok = bytes.CutPrefix(u, createRequest); !ok {
		return nil, errors.New("read Connect Initial: its conference is not that of an RDP client")
	}
	if c.Blocks, err = blocks(u, 0xC0); err != nil {
		return nil, fmt.Errorf("read Connect Initial: %w", err)
	}
	core, ok := find(c.Blocks, CSCore)
	if !ok || len(core.Data) < coreOptional {
		return nil, errors.New("read Connect Initial: it says nothing of its client")
	}
	if _, err := c.Channels(); err != nil {
		return nil, fmt.Errorf("read Connect Initial: %w", err)
	}
	return c, nil
}

// Bytes returns the PDU as a whole TPKT; an error if it would be longer than
// MaxConnect.
func (c *ConnectInitial) Bytes() ([]byte, error) {
	u, err := blockBytes(c.Blocks)
	if err != nil {
		return nil, fmt.Errorf("write Connect Initial: %w", err)
	}
	u = append(bytes.Clone(createRequest), u...)
	u = append(appendPERLength(bytes.Clone(gccObject), len(u)), u...)
	return connectBytes(0x65, appendBER(bytes.Clone(c.domain), tagOctets, u))
}

// Offsets into CS_CORE (MS-RDPBCGR 2.2.1.3.2), after its header.
const (
	coreOptional   = 128 // where the optional fields begin
	coreProductID  = 142 // clientDigProductId, of 64 bytes
	coreConnection = 206 // connectionType
	corePad        = 207
	coreSelected   = 208 // serverSelectedProtocol
)

// Channels returns the static channels that the client asks for, in order.
// No name is there twice.
func (c *ConnectInitial) Channels() ([]ChannelDef, error) {
	net, ok := find(c.Blocks, CSNet)
	if !ok {
		return nil, nil
	}
	b := net.Data
	if len(b) < 4 {
		return nil, errChannels
	}
	n := binary.LittleEndian.Uint32(b)
	if n > MaxChannels || len(b) != 4+12*int(n) {
		return nil, errChannels
	}
	var list []ChannelDef
	for b = b[4:]; len(b) > 0; b = b[12:] {
		name, _, ok := strings.Cut(string(b[:8]), "\x00")
		if !ok || !isChannelName(name) {
			return nil, errors.New("a channel has no name that one can have")
		}
		if hasChannel(list, name) {
			return nil, fmt.Errorf("the channel %q is asked for twice", name)
		}
		list = append(list, ChannelDef{name, binary.LittleEndian.Uint32(b[8:])})
	}
	return list, nil
}

// errChannels is about a CS_NET or SC_NET that lies about itself.
var errChannels = errors.New("the list of channels has another length than it says")

func isChannelName(s string) bool {
	return len(s) >= 1 && len(s) <= 7 && isPrintable(s)
}

func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

func hasChannel(list []ChannelDef, name string) bool {
	return slices.ContainsFunc(list, func(d ChannelDef) bool { return strings.EqualFold(d.Name, name) })
}

// SetChannels replaces the channels that are asked for. Of an empty list it
// makes none at all. It refuses what Channels would refuse.
func (c *ConnectInitial) SetChannels(list []ChannelDef) error {
	if len(list) > MaxChannels {
		return fmt.Errorf("there are %d channels; use at most %d", len(list), MaxChannels)
	}
	if len(list) == 0 {
		c.Blocks = without(c.Blocks, CSNet)
		return nil
	}
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(list)))
	for i, d := range list {
		if !isChannelName(d.Name) || hasChannel(list[:i], d.Name) {
			return fmt.Errorf("a channel cannot be named %q; use one to seven printable ASCII characters, once", d.Name)
		}
		var name [8]byte
		copy(name[:], d.Name)
		b = binary.LittleEndian.AppendUint32(append(b, name[:]...), d.Options)
	}
	c.Blocks = put(c.Blocks, Block{CSNet, b})
	return nil
}

// SetServerSelected has the client say that p was selected in the negotiation
// (serverSelectedProtocol of CS_CORE). A CS_CORE that ends before that field
// is made longer, if the fields between may be zero; else it is an error,
// unless p is ProtocolRDP, which is what a missing field means.
func (c *ConnectInitial) SetServerSelected(p Protocols) error {
	core, ok := find(c.Blocks, CSCore)
	if !ok {
		return errors.New("there is no CS_CORE")
	}
	b := bytes.Clone(core.Data)
	switch n := len(b); {
	case n >= coreSelected+4:
	case p == ProtocolRDP && n <= coreSelected:
		return nil
	case n == coreProductID, n == coreConnection, n == corePad, n == coreSelected:
		// Zero is no product identifier, and a connection type that
		// earlyCapabilityFlags does not call valid.
		b = append(b, make([]byte, coreSelected+4-n)...)
	default:
		return fmt.Errorf("the CS_CORE of %d bytes has no room for the protocol that was selected; use a newer RDP client", n)
	}
	binary.LittleEndian.PutUint32(b[coreSelected:], uint32(p))
	c.Blocks = put(c.Blocks, Block{CSCore, b})
	return nil
}

// NoMultitransport has the client say that it can do without UDP (CS_MULTITRANSPORT,
// MS-RDPBCGR 2.2.1.3.8).
func (c *ConnectInitial) NoMultitransport() {
	if m, ok := find(c.Blocks, CSMultitransport); ok {
		c.Blocks = put(c.Blocks, Block{CSMultitransport, make([]byte, len(m.Data))})
	}
}

// ParseConnectResponse reads a whole TPKT PDU of at most MaxConnect bytes. It
// refuses what ParseConnectInitial refuses. If Result is not 0, the rest may
// be missing. The blocks are copies.
func ParseConnectResponse(pdu []byte) (*ConnectResponse, error) {
	c, err := parseConnectResponse(pdu)
	if err != nil {
		return nil, fmt.Errorf("read Connect Response: %w", err)
	}
	return c, nil
}

func parseConnectResponse(pdu []byte) (*ConnectResponse, error) {
	b, err := connect(pdu, 0x66)
	if err != nil {
		return nil, err
	}
	v, b, err := ber(b, tagEnumerated)
	if err != nil {
		return nil, err
	}
	if len(v) != 1 {
		return nil, errors.New("its result is none")
	}
	c := &ConnectResponse{Result: v[0]}
	id, r, err := ber(b, tagInteger)
	if err != nil {
		return nil, err
	}
	domain, r, err := ber(r, tagSequence)
	if err != nil {
		return nil, err
	}
	if len(id) < 1 || len(id) > 5 || !isDomain(domain) {
		return nil, errors.New("its domain is none")
	}
	c.domain = bytes.Clone(b[:len(b)-len(r)])
	u, r, err := ber(r, tagOctets)
	if err != nil {
		return nil, err
	}
	if len(r) != 0 {
		return nil, errors.New("it goes on after its end")
	}
	if c.Result != 0 && len(u) == 0 {
		return c, nil
	}
	n, err := createResponse(u)
	if err != nil {
		return nil, err
	}
	c.gcc = bytes.Clone(u[:n])
	if c.Blocks, err = blocks(u[n:], 0x0C); err != nil {
		return nil, err
	}
	if c.Result != 0 {
		return c, nil
	}
	if core, ok := find(c.Blocks, SCCore); !ok || len(core.Data) < 4 {
		return nil, errors.New("it says nothing of its service")
	}
	if m, ok := find(c.Blocks, SCMessageChannel); ok && len(m.Data) != 2 {
		return nil, errChannels
	}
	if _, _, err := c.Channels(); err != nil {
		return nil, err
	}
	return c, nil
}

// createResponse returns how many bytes a ConferenceCreateResponse has before
// the length of its user data. The length of all of it, which comes first, is
// not looked at: services write 42 there, whatever it is, and some clients
// count on its size (MS-RDPBCGR 4.1.4).
func createResponse(u []byte) (int, error) {
	bad := errors.New("there is no conference in it")
	r, ok := bytes.CutPrefix(u, gccObject)
	if !ok {
		return 0, bad
	}
	_, r, err := perLength(r)
	if err != nil || len(r) < 4 || r[0] != 0x14 { // the choice, a node (2), the length of a tag
		return 0, bad
	}
	tag := int(r[3])
	if tag < 1 || tag > 4 || len(r) < 4+tag+1 {
		return 0, bad
	}
	r, ok = bytes.CutPrefix(r[4+tag+1:], createResponseEnd) // after a result
	if !ok {
		return 0, bad
	}
	return len(u) - len(r), nil
}

// Bytes returns the PDU as a whole TPKT; an error if it would be longer than
// MaxConnect.
func (c *ConnectResponse) Bytes() ([]byte, error) {
	u := bytes.Clone(c.gcc)
	if len(u) > 0 {
		b, err := blockBytes(c.Blocks)
		if err != nil {
			return nil, fmt.Errorf("write Connect Response: %w", err)
		}
		u = append(u, b...)
	}
	b := appendBER(nil, tagEnumerated, []byte{c.Result})
	return connectBytes(0x66, appendBER(append(b, c.domain...), tagOctets, u))
}

// Channels returns the number of the I/O channel, and those of the static
// channels in the order in which the client has asked for them (SC_NET,
// MS-RDPBCGR 2.2.1.4.4). A 0 is a channel that the service did not make; no
// other number is there twice.
func (c *ConnectResponse) Channels() (io uint16, ids []uint16, err error) {
	net, ok := find(c.Blocks, SCNet)
	if !ok || len(net.Data) < 4 {
		return 0, nil, errors.New("there is no list of channels")
	}
	b := net.Data
	io = binary.LittleEndian.Uint16(b)
	n := int(binary.LittleEndian.Uint16(b[2:]))
	if size := 4 + 2*n; n > MaxChannels || len(b) != size && len(b) != size+n%2*2 {
		return 0, nil, errChannels
	}
	for i := range n {
		id := binary.LittleEndian.Uint16(b[4+2*i:])
		if id != 0 && (id == io || slices.Contains(ids, id)) {
			return 0, nil, fmt.Errorf("channel %d is there twice", id)
		}
		ids = append(ids, id)
	}
	return io, ids, nil
}

// SetChannels replaces SC_NET. It panics if there are more ids than
// MaxChannels.
func (c *ConnectResponse) SetChannels(io uint16, ids []uint16) {
	if len(ids) > MaxChannels {
		panic("rdp: more channels than a connection can have")
	}
	b := binary.LittleEndian.AppendUint16(nil, io)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(ids)))
	for _, id := range ids {
		b = binary.LittleEndian.AppendUint16(b, id)
	}
	if len(ids)%2 != 0 {
		b = append(b, 0, 0)
	}
	c.Blocks = put(c.Blocks, Block{SCNet, b})
}

// MessageChannel returns the number of the message channel; ok is false if
// there is none (SC_MCS_MSGCHANNEL, MS-RDPBCGR 2.2.1.4.5).
func (c *ConnectResponse) MessageChannel() (id uint16, ok bool) {
	m, ok := find(c.Blocks, SCMessageChannel)
	if !ok || len(m.Data) != 2 {
		return 0, false
	}
	id = binary.LittleEndian.Uint16(m.Data)
	return id, id != 0
}

// SetClientRequested has the service say that the client has asked for p
// (clientRequestedProtocols of SC_CORE, MS-RDPBCGR 2.2.1.4.2).
func (c *ConnectResponse) SetClientRequested(p Protocols) error {
	core, ok := find(c.Blocks, SCCore)
	if !ok || len(core.Data) < 4 || len(core.Data) > 4 && len(core.Data) < 8 {
		return errors.New("the SC_CORE has no room for the protocols that were asked for")
	}
	b := bytes.Clone(core.Data)
	if len(b) == 4 {
		b = append(b, 0, 0, 0, 0)
	}
	binary.LittleEndian.PutUint32(b[4:], uint32(p))
	c.Blocks = put(c.Blocks, Block{SCCore, b})
	return nil
}

// Drop takes out the block of that type, if there is one.
func (c *ConnectResponse) Drop(kind uint16) { c.Blocks = without(c.Blocks, kind) }

func find(list []Block, kind uint16) (Block, bool) {
	i := slices.IndexFunc(list, func(b Block) bool { return b.Type == kind })
	if i < 0 {
		return Block{}, false
	}
	return list[i], true
}

// put replaces the block of b's type, or adds b.
func put(list []Block, b Block) []Block {
	i := slices.IndexFunc(list, func(o Block) bool { return o.Type == b.Type })
	if i < 0 {
		return append(list, b)
	}
	list[i] = b
	return list
}

func without(list []Block, kind uint16) []Block {
	return slices.DeleteFunc(list, func(b Block) bool { return b.Type == kind })
}

// blocks reads the length of user data and the blocks in it. Their types have
// the upper byte side, each another lower one.
func blocks(b []byte, side byte) ([]Block, error) {
	n, b, err := perLength(b)
	if err != nil {
		return nil, err
	}
	if n != len(b) {
		return nil, errors.New("its user data has another length")
	}
	var list []Block
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, errors.New("a block ends in its header")
		}
		kind, n := binary.LittleEndian.Uint16(b), int(binary.LittleEndian.Uint16(b[2:]))
		if n < 4 || n > len(b) {
			return nil, fmt.Errorf("block %#04x is longer than its place", kind)
		}
		if kind>>8 != uint16(side) {
			return nil, fmt.Errorf("block %#04x does not belong here", kind)
		}
		if _, ok := find(list, kind); ok {
			return nil, fmt.Errorf("block %#04x is there twice", kind)
		}
		list = append(list, Block{kind, bytes.Clone(b[4:n])})
		b = b[n:]
	}
	return list, nil
}

// blockBytes is the opposite of blocks.
func blockBytes(list []Block) ([]byte, error) {
	var b []byte
	for _, l := range list {
		if len(l.Data) > MaxConnect {
			return nil, ErrTooLong
		}
		b = binary.LittleEndian.AppendUint16(b, l.Type)
		b = binary.LittleEndian.AppendUint16(b, uint16(4+len(l.Data)))
		b = append(b, l.Data...)
	}
	if len(b) > MaxConnect {
		return nil, ErrTooLong
	}
	return append(appendPERLength(nil, len(b)), b...), nil
}
