package rdp

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"sft"
)

func TestChunk(t *testing.T) {
	c := Chunk{Length: 3, Flags: ChannelFirst | ChannelLast, Data: []byte("abc")}
	if got, err := ParseChunk(c.Bytes()); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("got %+v, %v, want %+v", got, err, c)
	}
	for n := range 8 {
		if _, err := ParseChunk(c.Bytes()[:n]); err == nil {
			t.Errorf("%d bytes are taken", n)
		}
	}
	c.Length = 2
	if _, err := ParseChunk(c.Bytes()); err == nil {
		t.Error("a piece longer than the whole is taken")
	}
	c.Flags |= ChannelCompressed // its length is another one then
	if _, err := ParseChunk(c.Bytes()); err != nil {
		t.Errorf("a compressed piece: got %v", err)
	}
	if _, err := ParseChunk(make([]byte, 16384)); err != ErrTooLong {
		t.Errorf("got %v, want %v", err, ErrTooLong)
	}
}

func TestDynamic(t *testing.T) {
	for _, c := range []struct {
		name string
		in   string
		want DynamicPDU
	}{
		{"a create request", "\x10\x03echo\x00", DynamicPDU{Cmd: DynamicCreate, ChannelID: 3, Name: "echo"}},
		{"one with a priority and a long number", "\x1a\x01\x02\x03\x04ECHO\x00", DynamicPDU{Cmd: DynamicCreate, ChannelID: 0x04030201, Name: "ECHO"}},
		{"a name in four bytes", "\x10\x03abc\x00", DynamicPDU{Cmd: DynamicCreate, ChannelID: 3, Name: "abc", Status: 0x636261}},
		{"an answer of success", "\x11\x03\x01\x00\x00\x00\x00", DynamicPDU{Cmd: DynamicCreate, ChannelID: 0x103}},
		{"an answer of refusal", "\x10\x03\x01\x00\x00\xc0", DynamicPDU{Cmd: DynamicCreate, ChannelID: 3, Status: StatusRefused}},
		{"the longest name", "\x10\x03" + strings.Repeat("n", 256) + "\x00", DynamicPDU{Cmd: DynamicCreate, ChannelID: 3, Name: strings.Repeat("n", 256)}},
		{"a first piece", "\x24\x03\x00\x10abc", DynamicPDU{Cmd: DynamicDataFirst, ChannelID: 3, Length: 0x1000}},
		{"a compressed first piece", "\x69\x03\x00\x00\x00\x00\x10abc", DynamicPDU{Cmd: DynamicDataFirstCompressed, ChannelID: 3, Length: 0x10000000}},
		{"a piece", "\x30\x03abc", DynamicPDU{Cmd: DynamicData, ChannelID: 3}},
		{"a compressed piece", "\x70\x03abc", DynamicPDU{Cmd: DynamicDataCompressed, ChannelID: 3}},
		{"a close", "\x40\x03", DynamicPDU{Cmd: DynamicClose, ChannelID: 3}},
		{"capabilities", "\x50\x00\x01\x00", DynamicPDU{Cmd: DynamicCapabilities}},
		{"a soft sync", "\x80\x00\x0a\x00\x00\x00\x01\x00\x00\x00", DynamicPDU{Cmd: DynamicSoftSyncRequest}},
	} {
		got, err := ParseDynamic([]byte(c.in))
		got.Data = nil
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
	for name, in := range map[string]string{
		"nothing":                      "",
		"no number":                    "\x10",
		"a number that is cut":         "\x12\x03\x00\x00",
		"a number of no size":          "\x13\x03\x00\x00\x00\x00\x00\x00\x00",
		"a name without an end":        "\x10\x03echo1",
		"a name of 257 bytes":          "\x10\x03" + strings.Repeat("n", 257) + "\x00",
		"a name with a control":        "\x10\x03ec\x01ho\x00",
		"no name":                      "\x10\x03\x00",
		"half a first piece":           "\x24\x03\x00",
		"a length of no size":          "\x2c\x03\x00\x00\x00\x00\x00\x00",
		"half the capabilities":        "\x50\x00\x01",
		"half a soft sync":             "\x90\x00\x00\x00",
		"a kind that nobody has heard": "\xa0\x03\x00\x00\x00\x00\x00\x00",
		"kind zero":                    "\x00\x03\x00\x00\x00\x00\x00\x00",
	} {
		if got, err := ParseDynamic([]byte(in)); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
	if _, err := ParseDynamic(make([]byte, 16384)); err != ErrTooLong {
		t.Errorf("got %v, want %v", err, ErrTooLong)
	}
}

func TestDynamicCreateResponse(t *testing.T) {
	for id, want := range map[uint32]string{
		3:       "\x10\x03\x01\x00\x00\xc0",
		0x103:   "\x11\x03\x01\x01\x00\x00\xc0",
		0x10003: "\x12\x03\x00\x01\x00\x01\x00\x00\xc0",
	} {
		got := DynamicCreateResponse(id, StatusRefused)
		if string(got) != want {
			t.Errorf("%d: got %x, want %x", id, got, want)
		}
		if p, err := ParseDynamic(got); err != nil || p.ChannelID != id || p.Status != StatusRefused || p.Name != "" {
			t.Errorf("%d: got %+v, %v", id, p, err)
		}
	}
}

// What services and clients say on drdynvc in the recordings is read.
func TestDynamicOfRealOnes(t *testing.T) {
	carriers := map[string]uint16{"xfreerdp-xrdp": 1007, "xfreerdp-shadow": 1007, "rdesktop-xrdp": 1008}
	for name, carrier := range carriers {
		n := 0
		for _, p := range recorded(t, name) {
			data, err := ParseSendData(p.bytes)
			if err != nil || data.Channel != carrier {
				continue
			}
			chunk, err := ParseChunk(data.Data)
			if err != nil || !bytes.Equal(chunk.Bytes(), data.Data) {
				t.Errorf("%s: got %+v, %v of %x", name, chunk, err, data.Data)
			}
			if d, err := ParseDynamic(chunk.Data); err != nil || d.Cmd < DynamicCreate || d.Cmd > DynamicCapabilities {
				t.Errorf("%s: got %+v, %v of %x", name, d, err, chunk.Data)
			}
			n++
		}
		if n == 0 {
			t.Errorf("%s has nothing on drdynvc", name)
		}
	}
}

func TestAllows(t *testing.T) {
	for _, c := range []struct {
		name    string
		dynamic bool
		want    Class
	}{
		{"drdynvc", false, Desktop},
		{"DRDYNVC", false, Desktop},
		{"drdynvc", true, Other},
		{"rail", false, Desktop},
		{"Microsoft::Windows::RDS::Graphics", true, Desktop},
		{"Microsoft::Windows::RDS::Graphics", false, Other},
		{"Microsoft::Windows::RDS::DisplayControl", true, Desktop},
		{"Microsoft::Windows::RDS::Geometry::v08.01", true, Desktop},
		{"Microsoft::Windows::RDS::Video::Control::v08.01", true, Desktop},
		{"Microsoft::Windows::RDS::Video::Data::v08.01", true, Desktop},
		{"Microsoft::Windows::RDS::Input", true, Desktop},
		{"Microsoft::Windows::RDS::CoreInput", true, Desktop},
		{"Microsoft::Windows::RDS::MouseCursor", true, Desktop},
		{"Microsoft::Windows::RDS::Telemetry", true, Desktop},
		{"Microsoft::Windows::RDS::AuthRedirection", true, Other},
		{"Microsoft::Windows::RDS::Graphics2", true, Other},
		{"cliprdr", false, Clipboard},
		{"CLIPRDR", true, Clipboard},
		{"rdpdr", false, Devices},
		{"RDPDR", true, Devices},
		{"URBDRC", true, Devices},
		{"PNPDR", true, Devices},
		{"FileRedirectorChannel", true, Devices},
		{"RDCamera_Device_Enumerator", true, Devices},
		{"rdpsnd", false, Audio},
		{"AUDIO_PLAYBACK_DVC", true, Audio},
		{"AUDIO_PLAYBACK_LOSSY_DVC", true, Audio},
		{"AUDIO_INPUT", true, Audio},
		{"snddbg", false, Other},
		{"ECHO", true, Other},
		{"", true, Other},
	} {
		if got := ClassOf(c.name, c.dynamic); got != c.want {
			t.Errorf("%s, dynamic %v: got %d, want %d", c.name, c.dynamic, got, c.want)
		}
		for settings, class := range map[sft.Channels]Class{{Clipboard: true}: Clipboard, {Devices: true}: Devices, {Audio: true}: Audio, {OtherDynamic: true}: Other, {}: -1} {
			want := c.want == Desktop || c.want == class
			if got := Allows(settings, c.name, c.dynamic); got != want {
				t.Errorf("%s, dynamic %v, with %+v: got %v, want %v", c.name, c.dynamic, settings, got, want)
			}
		}
	}
}

// FuzzChunk: what is taken is what is written.
func FuzzChunk(f *testing.F) {
	for _, p := range recordedAll(f) {
		if data, err := ParseSendData(p.bytes); err == nil {
			f.Add(data.Data)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseChunk(b)
		if err == nil && !bytes.Equal(c.Bytes(), b) {
			t.Fatalf("got %x, want %x", c.Bytes(), b)
		}
	})
}

// FuzzDynamic: a name is printable and no longer than its cap, what follows is
// the end of what came, and an answer to a channel is about that channel.
func FuzzDynamic(f *testing.F) {
	f.Add([]byte("\x10\x03echo\x00"))
	f.Add([]byte("\x24\x03\x00\x10abc"))
	f.Add([]byte("\x50\x00\x01\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseDynamic(b)
		if err != nil {
			return
		}
		if len(p.Name) > 256 || !isPrintable(p.Name) || !bytes.HasSuffix(b, p.Data) || p.Cmd != b[0]>>4 {
			t.Fatalf("got %+v", p)
		}
		if again, err := ParseDynamic(DynamicCreateResponse(p.ChannelID, StatusRefused)); err != nil || again.ChannelID != p.ChannelID {
			t.Fatalf("got %+v, %v, want channel %d", again, err, p.ChannelID)
		}
		Allows(sft.Channels{}, p.Name, true)
	})
}
