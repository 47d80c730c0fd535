package rdp

import (
	"bytes"
	"reflect"
	"testing"
)

func TestDomainPDUsAreWhatOthersSend(t *testing.T) {
	list := recorded(t, "xfreerdp-xrdp")
	for name, c := range map[string]struct {
		i    int
		got  []byte
		kind MCSKind
	}{
		"Erect Domain Request": {4, ErectDomainRequest(), ErectDomain},
		"Attach User Request":  {5, AttachUserRequest(), AttachUser},
		"Attach User Confirm":  {6, AttachUserConfirm(1008), AttachUserConfirmed},
		"Channel Join Request": {9, ChannelJoinRequest(1008, 1003), ChannelJoin},
		"Channel Join Confirm": {10, ChannelJoinConfirm(1008, 1003), ChannelJoined},
	} {
		if want := list[c.i].bytes; !bytes.Equal(c.got, want) {
			t.Errorf("%s: got %x, want %x", name, c.got, want)
		}
		if got := KindOf(c.got); got != c.kind {
			t.Errorf("%s: got kind %d, want %d", name, got, c.kind)
		}
		if got := KindOf(c.got[:8]); got != c.kind {
			t.Errorf("%s: got kind %d of its first 8 bytes, want %d", name, got, c.kind)
		}
		if got := KindOf(c.got[:7]); got != OtherMCS {
			t.Errorf("%s: got kind %d of its first 7 bytes, want %d", name, got, OtherMCS)
		}
	}
	if got := KindOf(dataTPDU(0x21, 0x80)); got != Disconnect {
		t.Errorf("Disconnect Provider Ultimatum: got kind %d, want %d", got, Disconnect)
	}
	if got := KindOf(list[2].bytes); got != OtherMCS {
		t.Errorf("Connect Initial: got kind %d, want %d", got, OtherMCS)
	}
}

func TestDomainPDUs(t *testing.T) {
	if user, err := ParseAttachUserConfirm(AttachUserConfirm(1007)); user != 1007 || err != nil {
		t.Errorf("got %d, %v, want 1007", user, err)
	}
	if user, channel, err := ParseChannelJoinRequest(ChannelJoinRequest(1007, 1003)); user != 1007 || channel != 1003 || err != nil {
		t.Errorf("got %d, %d, %v, want 1007, 1003", user, channel, err)
	}
	if channel, err := ParseChannelJoinConfirm(ChannelJoinConfirm(1007, 1003)); channel != 1003 || err != nil {
		t.Errorf("got %d, %v, want 1003", channel, err)
	}
	for _, p := range recordedAll(t) { // of a session there are no others
		if p.bytes[0] == 3 && p.client == (KindOf(p.bytes) == SendDataIndication) && KindOf(p.bytes) >= SendData {
			t.Errorf("%x goes the wrong way", p.bytes)
		}
	}
	for name, pdu := range map[string][]byte{
		"a result":                          dataTPDU(0x2E, 0x20, 0, 6),
		"a result in the choice's byte":     dataTPDU(0x2F, 0, 0, 6),
		"no user":                           dataTPDU(0x2C, 0),
		"a user over the last":              dataTPDU(0x2E, 0, 0xFF, 0xFF),
		"a result of a join":                dataTPDU(0x3E, 0x60, 0, 6, 3, 0xEB, 3, 0xEB),
		"a join without a channel":          dataTPDU(0x3C, 0, 0, 6, 3, 0xEB),
		"another channel than was asked":    dataTPDU(0x3E, 0, 0, 6, 3, 0xEB, 3, 0xEC),
		"a join's user over the last":       dataTPDU(0x3E, 0, 0xFF, 0xFF, 3, 0xEB, 3, 0xEB),
		"a join's user over the last, asks": dataTPDU(0x38, 0xFF, 0xFF, 3, 0xEB),
		"a TPDU that is not the last":       tpkt(2, 0xF0, 0, 0x2E, 0, 0, 6),
		"a reserved byte":                   {3, 1, 0, 11, 2, 0xF0, 0x80, 0x2E, 0, 0, 6},
	} {
		if got, err := ParseAttachUserConfirm(pdu); err == nil {
			t.Errorf("%s: got user %d, want an error", name, got)
		}
		if got, err := ParseChannelJoinConfirm(pdu); err == nil {
			t.Errorf("%s: got channel %d, want an error", name, got)
		}
		if _, got, err := ParseChannelJoinRequest(pdu); err == nil {
			t.Errorf("%s: got request for %d, want an error", name, got)
		}
	}
	for _, pdu := range [][]byte{AttachUserConfirm(1007), ChannelJoinConfirm(1007, 1003), ChannelJoinRequest(1007, 1003)} {
		cut(pdu, func(b []byte) {
			_, err1 := ParseAttachUserConfirm(b)
			_, err2 := ParseChannelJoinConfirm(b)
			_, _, err3 := ParseChannelJoinRequest(b)
			if err1 == nil || err2 == nil || err3 == nil {
				t.Errorf("%x is taken", b)
			}
		})
	}
}

func TestSendData(t *testing.T) {
	n := 0
	for _, p := range recordedAll(t) {
		k := KindOf(p.bytes)
		if k != SendData && k != SendDataIndication {
			if channel, known := SendDataChannel(p.bytes); known {
				t.Errorf("%x: got channel %d, want none", p.bytes, channel)
			}
			continue
		}
		n++
		got, err := ParseSendData(p.bytes)
		if err != nil || got.Indication == p.client || got.Initiator < 1001 || got.Priority != 0x70 {
			t.Fatalf("%x: got %+v, %v", p.bytes, got, err)
		}
		if channel, known := SendDataChannel(p.bytes[:12]); !known || channel != got.Channel {
			t.Errorf("%x: got channel %d, %v, want %d", p.bytes, channel, known, got.Channel)
		}
		if _, known := SendDataChannel(p.bytes[:11]); known {
			t.Errorf("%x: its first 11 bytes are enough", p.bytes)
		}
		out, err := got.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseSendData(out); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("got %+v, %v, want %+v", again, err, got)
		}
		short := len(got.Data) < 0x80 && p.bytes[13] == 0x80 // a short length written long
		if !short && !bytes.Equal(out, p.bytes) {
			t.Errorf("got %x, want %x", out, p.bytes)
		}
		cut(p.bytes, func(b []byte) {
			if _, err := ParseSendData(b); err == nil {
				t.Fatalf("%x is taken", b)
			}
		})
	}
	if n < 20 {
		t.Errorf("got %d PDUs, want more", n)
	}
}

func TestLengths(t *testing.T) {
	for n, want := range map[int][2]string{
		0x7F:   {"\x7f", "\x7f"},
		0x80:   {"\x81\x80", "\x80\x80"},
		0xFF:   {"\x81\xff", "\x80\xff"},
		0x100:  {"\x82\x01\x00", "\x81\x00"},
		0x3FFF: {"\x82\x3f\xff", "\xbf\xff"},
	} {
		if got := [2]string{string(appendBERLength(nil, n)), string(appendPERLength(nil, n))}; got != want {
			t.Errorf("%#x: got %x in BER and PER, want %x", n, got, want)
		}
	}
}

func TestSendDataLimits(t *testing.T) {
	p := SendDataPDU{Initiator: 65535, Channel: 65535, Priority: 0x70, Data: make([]byte, 16383)}
	pdu, err := p.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseSendData(pdu); err != nil || !reflect.DeepEqual(got, p) {
		t.Errorf("the longest: got %v, want it back", err)
	}
	p.Data = make([]byte, 16384)
	if _, err := p.Bytes(); err == nil {
		t.Error("one byte more is written")
	}
	if _, err := (SendDataPDU{Initiator: 1000}).Bytes(); err == nil {
		t.Error("user 1000 is written")
	}
	for name, pdu := range map[string][]byte{
		"a length in pieces":           dataTPDU(append([]byte{0x64, 0, 6, 3, 0xEB, 0x70, 0xC1}, make([]byte, 16384)...)...),
		"a length in pieces that fits": dataTPDU(append([]byte{0x64, 0, 6, 3, 0xEB, 0x70, 0xC1, 0}, make([]byte, 256)...)...),
		"a length one too big":         dataTPDU(0x64, 0, 6, 3, 0xEB, 0x70, 3, 1, 2),
		"a length too small":           dataTPDU(0x64, 0, 6, 3, 0xEB, 0x70, 1, 1, 2),
		"no such user":                 dataTPDU(0x64, 0xFF, 6, 3, 0xEB, 0x70, 1, 1),
		"bits beside a choice":         dataTPDU(0x65, 0, 6, 3, 0xEB, 0x70, 1, 1),
	} {
		if got, err := ParseSendData(pdu); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
}

// FuzzSendData: what is taken is written as what is taken in the same way, is
// of a kind that says so, and has the channel that its first bytes say.
func FuzzSendData(f *testing.F) {
	for _, p := range recordedAll(f) {
		f.Add(p.bytes)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseSendData(b)
		channel, known := SendDataChannel(b[:min(len(b), 12)])
		if err != nil {
			return
		}
		if k := KindOf(b[:8]); (k == SendDataIndication) != p.Indication || (k == SendData) == p.Indication || channel != p.Channel || !known {
			t.Fatalf("got kind %d, channel %d, want those of %+v", k, channel, p)
		}
		out, err := p.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseSendData(out); err != nil || !reflect.DeepEqual(again, p) {
			t.Fatalf("got %+v, %v, want %+v", again, err, p)
		}
	})
}

// FuzzDomainPDUs: what is taken is what would be written.
func FuzzDomainPDUs(f *testing.F) {
	for _, p := range recordedAll(f) {
		f.Add(p.bytes)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		KindOf(b)
		if user, err := ParseAttachUserConfirm(b); err == nil && !bytes.Equal(AttachUserConfirm(user), b) {
			t.Fatalf("user %d", user)
		}
		if user, channel, err := ParseChannelJoinRequest(b); err == nil && !bytes.Equal(ChannelJoinRequest(user, channel), b) {
			t.Fatalf("user %d, channel %d", user, channel)
		}
		if channel, err := ParseChannelJoinConfirm(b); err == nil {
			user, _ := userAt(b[9:])
			if !bytes.Equal(ChannelJoinConfirm(user, channel), b) {
				t.Fatalf("channel %d", channel)
			}
		}
	})
}
