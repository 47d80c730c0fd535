package rdp

import (
	"encoding/binary"
	"errors"
	"strings"

	"sft"
)

// Flags of a Chunk (MS-RDPBCGR 2.2.6.1.1).
const (
	ChannelFirst      uint32 = 0x1
	ChannelLast       uint32 = 0x2
	ChannelCompressed uint32 = 0x200000
)

// A Chunk is a piece of what goes over a static channel: the data of a
// SendDataPDU (MS-RDPBCGR 2.2.6.1).
type Chunk struct {
	Length uint32 // of all pieces together, uncompressed, in bytes
	Flags  uint32
	Data   []byte
}

// ParseChunk reads the data of a SendDataPDU. The Chunk's Data is a part of
// it, and at most 16375 bytes.
func ParseChunk(data []byte) (Chunk, error) {
	if len(data) > maxPER {
		return Chunk{}, ErrTooLong
	}
	if len(data) < 8 {
		return Chunk{}, errors.New("a piece of a channel's data is shorter than its header")
	}
	c := Chunk{binary.LittleEndian.Uint32(data), binary.LittleEndian.Uint32(data[4:]), data[8:]}
	if c.Flags&ChannelCompressed == 0 && uint64(len(c.Data)) > uint64(c.Length) {
		return Chunk{}, errors.New("a piece of a channel's data is longer than the whole")
	}
	return c, nil
}

// Bytes returns the data of a SendDataPDU.
func (c Chunk) Bytes() []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 8+len(c.Data)), c.Length)
	return append(binary.LittleEndian.AppendUint32(b, c.Flags), c.Data...)
}

// What a DynamicPDU is for (MS-RDPEDYC 2.2).
const (
	DynamicCreate              byte = 1 // a service asks for a channel, or the client answers
	DynamicDataFirst           byte = 2
	DynamicData                byte = 3
	DynamicClose               byte = 4
	DynamicCapabilities        byte = 5
	DynamicDataFirstCompressed byte = 6
	DynamicDataCompressed      byte = 7
	DynamicSoftSyncRequest     byte = 8
	DynamicSoftSyncResponse    byte = 9
)

// StatusRefused is the CreationStatus of a channel that there is not to be
// (MS-RDPEDYC 2.2.2.2): STATUS_UNSUCCESSFUL, which clients also give who do
// not know it.
const StatusRefused uint32 = 0xC0000001

// maxDynamicName caps the name of a dynamic channel, in bytes.
const maxDynamicName = 256

// A DynamicPDU is what goes over the channel drdynvc (MS-RDPEDYC 2.2).
type DynamicPDU struct {
	Cmd byte
	// ChannelID is the dynamic channel's number: of the PDUs that are about
	// one, which those of capabilities and soft sync are not.
	ChannelID uint32
	// A create request has a Name and its answer a Status, but nothing in it
	// says which it is: what comes from a service is a request. What cannot
	// be a name leaves Name empty.
	Name   string
	Status uint32
	Length uint32 // of all the data, of a first piece
	Data   []byte // what follows, a part of what was parsed
}

var errDynamic = errors.New("a PDU of drdynvc is shorter than it has to be")

// ParseDynamic reads what the first Chunk holds. Only what is in front is
// looked at: of data it need not be all.
func ParseDynamic(data []byte) (DynamicPDU, error) {
	var p DynamicPDU
	if len(data) > maxPER {
		return p, ErrTooLong
	}
	if len(data) == 0 {
		return p, errDynamic
	}
	head := data[0]
	p.Cmd, p.Data = head>>4, data[1:]
	var err error
	switch p.Cmd {
	case DynamicCapabilities:
		if len(p.Data) < 3 { // a pad, and a version
			return DynamicPDU{}, errDynamic
		}
		return p, nil
	case DynamicSoftSyncRequest, DynamicSoftSyncResponse:
		if len(p.Data) < 5 { // a pad, and a length or count
			return DynamicPDU{}, errDynamic
		}
		return p, nil
	case DynamicCreate, DynamicDataFirst, DynamicData, DynamicClose, DynamicDataFirstCompressed, DynamicDataCompressed:
		p.ChannelID, p.Data, err = dynamicInt(p.Data, head)
	default:
		err = errors.New("a PDU of drdynvc is of no known kind")
	}
	if err == nil && (p.Cmd == DynamicDataFirst || p.Cmd == DynamicDataFirstCompressed) {
		p.Length, p.Data, err = dynamicInt(p.Data, head>>2)
	}
	if err == nil && p.Cmd == DynamicCreate {
		err = p.create()
	}
	if err != nil {
		return DynamicPDU{}, err
	}
	return p, nil
}

// create reads what a create request or its answer has behind its number.
func (p *DynamicPDU) create() error {
	if len(p.Data) == 4 {
		p.Status = binary.LittleEndian.Uint32(p.Data)
	}
	name, _, ok := strings.Cut(string(p.Data[:min(len(p.Data), maxDynamicName+1)]), "\x00")
	if ok && name != "" && isPrintable(name) {
		p.Name = name
		return nil
	}
	if len(p.Data) == 4 {
		return nil
	}
	return errors.New("a dynamic channel has no name that one can have")
}

// dynamicInt takes a number off b whose size is in the lower two bits of size
// (MS-RDPEDYC 2.2.2.1, cbId).
func dynamicInt(b []byte, size byte) (uint32, []byte, error) {
	switch size & 3 {
	case 0:
		if len(b) >= 1 {
			return uint32(b[0]), b[1:], nil
		}
	case 1:
		if len(b) >= 2 {
			return uint32(binary.LittleEndian.Uint16(b)), b[2:], nil
		}
	case 2:
		if len(b) >= 4 {
			return binary.LittleEndian.Uint32(b), b[4:], nil
		}
	default:
		return 0, nil, errors.New("a PDU of drdynvc has a number of no known size")
	}
	return 0, nil, errDynamic
}

// DynamicCreateResponse returns a client's answer to a create request
// (MS-RDPEDYC 2.2.2.2), as the Data of a Chunk.
func DynamicCreateResponse(channelID uint32, status uint32) []byte {
	b := []byte{DynamicCreate << 4}
	switch {
	case channelID < 1<<8:
		b = append(b, byte(channelID))
	case channelID < 1<<16:
		b[0] |= 1
		b = binary.LittleEndian.AppendUint16(b, uint16(channelID))
	default:
		b[0] |= 2
		b = binary.LittleEndian.AppendUint32(b, channelID)
	}
	return binary.LittleEndian.AppendUint32(b, status)
}

// A Class says what a virtual channel is for, as far as a project's settings
// tell channels apart.
type Class int

// The classes.
const (
	Other     Class = iota // what is not known
	Desktop                // picture, keyboard, mouse, and what carries the others
	Clipboard              // texts, pictures and files
	Devices                // drives, printers, ports, smart cards, USB, cameras
	Audio                  // sound, both ways
)

// classes has the channels' names in lower case. Most of what is static can
// also be had as a dynamic channel, by the same name.
var classes = map[string]Class{
	"cliprdr": Clipboard,

	"rdpdr":                 Devices,
	"urbdrc":                Devices,
	"pnpdr":                 Devices,
	"fileredirectorchannel": Devices,

	"rdpsnd":                   Audio,
	"audio_playback_dvc":       Audio,
	"audio_playback_lossy_dvc": Audio,
	"audio_input":              Audio,
}

// desktop has those that are for the desktop, true for the dynamic ones.
var desktop = map[string]bool{
	dynamicCarrier: false,
	"rail":         false,

	"microsoft::windows::rds::graphics":               true,
	"microsoft::windows::rds::displaycontrol":         true,
	"microsoft::windows::rds::geometry::v08.01":       true,
	"microsoft::windows::rds::video::control::v08.01": true,
	"microsoft::windows::rds::video::data::v08.01":    true,
	"microsoft::windows::rds::input":                  true,
	"microsoft::windows::rds::coreinput":              true,
	"microsoft::windows::rds::mousecursor":            true,
	"microsoft::windows::rds::telemetry":              true,
}

// ClassOf returns what the channel of that name is for. Case does not count.
func ClassOf(name string, dynamic bool) Class {
	name = strings.ToLower(name)
	if d, ok := desktop[name]; ok && d == dynamic {
		return Desktop
	}
	if strings.HasPrefix(name, "rdcamera_") {
		return Devices
	}
	return classes[name]
}

// Allows reports whether a project with these settings lets the channel of
// that name through. A static one that is not known counts as a dynamic one.
func Allows(c sft.Channels, name string, dynamic bool) bool {
	switch ClassOf(name, dynamic) {
	case Desktop:
		return true
	case Clipboard:
		return c.Clipboard
	case Devices:
		return c.Devices
	case Audio:
		return c.Audio
	}
	return c.OtherDynamic
}
