package rdp

import (
	"bytes"
	"errors"
	"testing"

	"sft"
)

// sendData is a data PDU of MCS.
func sendData(t testing.TB, indication bool, channel uint16, data []byte) []byte {
	t.Helper()
	b, err := SendDataPDU{Indication: indication, Initiator: 1007, Channel: channel, Priority: 0x70, Data: data}.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// chunk is one chunk of a virtual channel.
func chunk(flags uint32, data string) []byte {
	return Chunk{Length: uint32(len(data)), Flags: flags, Data: []byte(data)}.Bytes()
}

const whole = ChannelFirst | ChannelLast

// The channels of the guards in these tests.
const (
	mainChannel = 1003
	carrier     = 1004
	sound       = 1005
	leftOut     = 0xF000
)

func newGuard(policy *sft.Channels, service *bytes.Buffer) *Guard {
	return &Guard{main: mainChannel, user: 1007, dynamic: carrier, known: []uint16{mainChannel, 1007, carrier, sound}, policy: policy, service: service}
}

// fast is a fast-path PDU of n bytes.
func fast(n int) []byte {
	b := make([]byte, n)
	if n < 0x80 {
		b[1] = byte(n)
		return b
	}
	b[1], b[2] = 0x80|byte(n>>8), byte(n)
	return b
}

// redirection is an Enhanced Security Server Redirection PDU (MS-RDPBCGR
// 2.2.13.3.1): a share control header of type 10, and what it says.
func redirection() []byte {
	packet := []byte{0x00, 0x04, 20, 0, 1, 0, 0, 0, 0x00, 0x00, 0x00, 0x00, 0, 0, 0, 0, 0, 0, 0, 0}
	b := []byte{byte(6 + 2 + len(packet) + 1), 0, 0x1a, 0, 0xea, 0x03, 0, 0}
	return append(append(b, packet...), 0)
}

func TestGuardPasses(t *testing.T) {
	all := [][]byte{
		sendData(t, true, mainChannel, []byte("a page of a desktop")), fast(20), fast(4000), sendData(t, true, sound, make([]byte, 3000)),
		sendData(t, true, carrier, chunk(whole, "\x10\x05Microsoft::Windows::RDS::Graphics\x00")), fast(2), fast(127), fast(128),
	}
	stream := bytes.Join(all, nil)
	for _, policy := range []*sft.Channels{nil, {Clipboard: true}} {
		for size := 1; size < 300; size += 7 {
			var answer bytes.Buffer
			g := newGuard(policy, &answer)
			var got []byte
			for rest := stream; len(rest) > 0; {
				n := min(size, len(rest))
				out, err := g.Out(rest[:n])
				if err != nil {
					t.Fatalf("pieces of %d: %v", size, err)
				}
				got = append(got, out...)
				rest = rest[n:]
			}
			if !bytes.Equal(got, stream) || answer.Len() != 0 {
				t.Fatalf("in pieces of %d, %d bytes came through of %d, and %d were answered", size, len(got), len(stream), answer.Len())
			}
		}
	}
}

// What passes in one piece is not copied.
func TestGuardDoesNotCopy(t *testing.T) {
	stream := bytes.Join([][]byte{fast(4000), fast(4000), sendData(t, true, sound, make([]byte, 100)), fast(9)[:5]}, nil)
	out, err := newGuard(nil, nil).Out(stream)
	if err != nil || len(out) != len(stream) || &out[0] != &stream[0] {
		t.Errorf("Out = %d bytes of %d, %v, or a copy", len(out), len(stream), err)
	}
}

func TestGuardDropsChannelsLeftOut(t *testing.T) {
	kept := [][]byte{sendData(t, false, mainChannel, []byte("input")), fast(8), sendData(t, false, sound, []byte("ack"))}
	stream := bytes.Join([][]byte{kept[0], sendData(t, false, leftOut, chunk(whole, "clipboard")), kept[1], sendData(t, false, 0, []byte("x")), kept[2]}, nil)
	for _, policy := range []*sft.Channels{nil, {Clipboard: true}} {
		for size := 1; size < 80; size++ {
			g := newGuard(policy, nil)
			var got []byte
			for rest := stream; len(rest) > 0; {
				n := min(size, len(rest))
				out, err := g.In(rest[:n])
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, out...)
				rest = rest[n:]
			}
			if want := bytes.Join(kept, nil); !bytes.Equal(got, want) {
				t.Fatalf("in pieces of %d: %x, want %x", size, got, want)
			}
		}
	}
}

func TestGuardRefusesRedirection(t *testing.T) {
	before := fast(30)
	out, err := newGuard(nil, nil).Out(append(bytes.Clone(before), sendData(t, true, mainChannel, redirection())...))
	if !errors.Is(err, ErrRedirect) || !bytes.Equal(out, before) {
		t.Errorf("Out = %x, %v", out, err)
	}
	// On another channel the same bytes mean something else.
	if _, err := newGuard(nil, nil).Out(sendData(t, true, sound, redirection())); err != nil {
		t.Errorf("on another channel: %v", err)
	}
}

func TestGuardRefusesDynamicChannels(t *testing.T) {
	create := func(id byte, name string) []byte {
		return sendData(t, true, carrier, chunk(whole, "\x10"+string(id)+name+"\x00"))
	}
	tests := []struct {
		name   string
		policy sft.Channels
		offer  string
		passes bool
	}{
		{"graphics always pass", sft.Channels{}, "Microsoft::Windows::RDS::Graphics", true},
		{"sound is off", sft.Channels{Clipboard: true, Devices: true, OtherDynamic: true}, "AUDIO_PLAYBACK_DVC", false},
		{"sound is on", sft.Channels{Audio: true}, "AUDIO_PLAYBACK_DVC", true},
		{"USB is off", sft.Channels{Audio: true, Clipboard: true, OtherDynamic: true}, "URBDRC", false},
		{"others are off", sft.Channels{Audio: true, Clipboard: true, Devices: true}, "A_PLUG_IN", false},
		{"others are on", sft.Channels{OtherDynamic: true}, "A_PLUG_IN", true},
		{"the clipboard as a dynamic channel", sft.Channels{OtherDynamic: true}, "CLIPRDR", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var answer bytes.Buffer
			g := newGuard(&tt.policy, &answer)
			in := create(9, tt.offer)
			out, err := g.Out(in)
			if err != nil || (len(out) > 0) != tt.passes {
				t.Fatalf("Out = %x, %v, want it to pass: %v", out, err, tt.passes)
			}
			if tt.passes {
				if answer.Len() != 0 {
					t.Errorf("answered %x", answer.Bytes())
				}
				return
			}
			p, err := ParseSendData(answer.Bytes())
			if err != nil || p.Indication || p.Channel != carrier || p.Initiator != 1007 {
				t.Fatalf("the answer is %+v, %v", p, err)
			}
			c, err := ParseChunk(p.Data)
			if err != nil {
				t.Fatal(err)
			}
			if want := DynamicCreateResponse(9, StatusRefused); !bytes.Equal(c.Data, want) || c.Flags != whole {
				t.Errorf("the answer says %x, want %x", c.Data, want)
			}
			// The client has nothing to say of it.
			if out, err := g.In(sendData(t, false, carrier, chunk(whole, "\x10\x09\x00\x00\x00\x00"))); err != nil || len(out) != 0 {
				t.Errorf("its own answer passes: %x, %v", out, err)
			}
			if out, err := g.In(sendData(t, false, carrier, chunk(whole, "\x30\x09data"))); err != nil || len(out) != 0 {
				t.Errorf("its data pass: %x, %v", out, err)
			}
			if out, err := g.In(sendData(t, false, carrier, chunk(whole, "\x30\x08data"))); err != nil || len(out) == 0 {
				t.Errorf("data of another channel do not pass: %x, %v", out, err)
			}
		})
	}
}

// What cannot be looked into does not pass.
func TestGuardFailsClosed(t *testing.T) {
	policy := &sft.Channels{}
	tests := []struct {
		name string
		data []byte
	}{
		{"compressed", chunk(whole|ChannelCompressed, "\x10\x09AUDIO_INPUT\x00")},
		{"a create request in two", chunk(ChannelFirst, "\x10\x09AUDIO_IN")},
		{"without an end", chunk(whole, "\x10\x09AUDIO_INPUT")},
		{"too short for a chunk", []byte{1, 2, 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if out, err := newGuard(policy, new(bytes.Buffer)).Out(sendData(t, true, carrier, tt.data)); err == nil || len(out) != 0 {
				t.Errorf("Out = %x, %v", out, err)
			}
		})
	}
	for _, b := range []string{"\x03\x00\x00\x04", "\x00\x00", "\x00\x01", "\x03\x00\x00\x07\x02\xf0\x80", "\x03\x00\x00\x0c\x02\xf0\x00\x68\x00\x00\x03\xeb"} {
		if out, err := newGuard(nil, nil).Out([]byte(b)); err == nil || len(out) != 0 {
			t.Errorf("Out(%x) = %x, %v", b, out, err)
		}
	}
}

// FuzzGuard checks that it does not matter in which pieces the bytes come, and
// that without a policy what comes from the service passes as it is, up to the
// end of what can pass.
func FuzzGuard(f *testing.F) {
	f.Add(bytes.Join([][]byte{sendData(f, true, mainChannel, []byte("x")), fast(9), sendData(f, true, carrier, chunk(whole, "\x10\x09URBDRC\x00")), fast(200)}, nil), byte(3))
	f.Add(bytes.Join([][]byte{sendData(f, false, leftOut, chunk(whole, "clipboard")), fast(9), sendData(f, true, mainChannel, redirection())}, nil), byte(1))
	f.Add([]byte("\x03\x00\x00\x09\x02\xf0\x80\x21\x80"), byte(2))
	f.Fuzz(func(t *testing.T, stream []byte, size byte) {
		for _, policy := range []*sft.Channels{nil, {Audio: true}} {
			for _, out := range []bool{true, false} {
				run := func(size int) (got []byte, failed bool) {
					g := newGuard(policy, new(bytes.Buffer))
					for rest := bytes.Clone(stream); len(rest) > 0; {
						n := min(size, len(rest))
						pass := g.In
						if out {
							pass = g.Out
						}
						b, err := pass(rest[:n])
						got = append(got, b...)
						if err != nil {
							return got, true
						}
						rest = rest[n:]
					}
					return got, false
				}
				got, failed := run(int(size)%64 + 1)
				want, wantFailed := run(len(stream) + 1)
				if !bytes.Equal(got, want) || failed != wantFailed {
					t.Fatalf("out %v, in pieces of %d: %x, %v; at once: %x, %v", out, size%64+1, got, failed, want, wantFailed)
				}
				if out && policy == nil && !bytes.HasPrefix(stream, got) {
					t.Fatalf("%x became %x", stream, got)
				}
			}
		}
	})
}
