package rdp

import (
	"bytes"
	"reflect"
	"testing"
)

func TestConnectionRequest(t *testing.T) {
	correlation := bytes.Repeat([]byte{7}, 32)
	for _, c := range []ConnectionRequest{
		{},
		{Cookie: []byte{}},
		{Cookie: []byte("Cookie: mstshash=alice")},
		{Negotiates: true},
		{Cookie: []byte("Cookie: msts=3640205228.15629.0000"), Negotiates: true, Flags: RequestRestrictedAdmin, Protocols: ProtocolSSL | ProtocolHybrid | ProtocolHybridEx},
		{Negotiates: true, Flags: RequestCorrelation, Protocols: ProtocolHybrid, Correlation: correlation},
	} {
		pdu := c.Bytes()
		got, err := ParseConnectionRequest(pdu)
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("got %+v, %v, want %+v", got, err, c)
		}
		cut(pdu, func(b []byte) {
			// What can be left out is not missed; nothing else is made of a part.
			if got, err := ParseConnectionRequest(b); err == nil && (got.Negotiates || got.Cookie != nil && !bytes.Equal(got.Cookie, c.Cookie)) {
				t.Errorf("%x: got %+v, want an error", b, got)
			}
		})
	}
	for _, name := range recordings {
		pdu := recorded(t, name)[0].bytes
		got, err := ParseConnectionRequest(pdu)
		if err != nil || string(got.Cookie) != "Cookie: mstshash=alice" || got.Protocols&ProtocolSSL == 0 || !bytes.Equal(got.Bytes(), pdu) {
			t.Errorf("%s: got %+v, %v, want %x", name, got, err, pdu)
		}
	}
}

func TestConnectionRequestRefusals(t *testing.T) {
	neg := []byte{1, 0, 8, 0, 3, 0, 0, 0}
	for name, b := range map[string][]byte{
		"a cookie without an end":       []byte("Cookie: mstshash=alice"),
		"something after it":            append(bytes.Clone(neg), 0),
		"a negotiation of another size": {1, 0, 9, 0, 3, 0, 0, 0},
		"a correlation that is missing": {1, 8, 8, 0, 3, 0, 0, 0},
		"one that is not spoken of":     append(bytes.Clone(neg), append([]byte{6, 0, 36, 0}, make([]byte, 32)...)...),
	} {
		if got, err := ParseConnectionRequest(connectionBytes(0xE0, 0, b)); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
	if _, err := ParseConnectionRequest(connectionBytes(0xD0, 0, neg)); err == nil {
		t.Error("a Connection Confirm is taken")
	}
	pdu := connectionBytes(0xE0, 0, neg)
	pdu[4]++
	if _, err := ParseConnectionRequest(pdu); err == nil {
		t.Error("a length of its header that lies is taken")
	}
	if _, err := ParseConnectionRequest(make([]byte, 1025)); err != ErrTooLong {
		t.Errorf("1025 bytes: got %v, want %v", err, ErrTooLong)
	}
	for name, c := range map[string]ConnectionRequest{
		"a long cookie":                       {Cookie: make([]byte, 250)},
		"a cookie with a CR LF":               {Cookie: []byte("a\r\nb")},
		"a cookie that looks like no cookie":  {Cookie: []byte{1, 2}},
		"a correlation without a negotiation": {Correlation: make([]byte, 32)},
		"half a correlation":                  {Negotiates: true, Correlation: make([]byte, 16)},
	} {
		if got := c.Bytes(); got != nil {
			t.Errorf("%s: got %x, want nothing", name, got)
		}
	}
}

func TestConnectionConfirm(t *testing.T) {
	for _, c := range []ConnectionConfirm{
		{},
		{Negotiated: true, Flags: FlagExtendedClientData | FlagGFX, Selected: ProtocolHybridEx},
		{Negotiated: true, Failed: true, Failure: HybridRequired},
	} {
		pdu := c.Bytes()
		if got, err := ParseConnectionConfirm(pdu); err != nil || got != c {
			t.Errorf("got %+v, %v, want %+v", got, err, c)
		}
		cut(pdu, func(b []byte) {
			if got, err := ParseConnectionConfirm(b); err == nil && got.Negotiated {
				t.Errorf("%x: got %+v, want an error", b, got)
			}
		})
	}
	if got, want := (ConnectionConfirm{Negotiated: true, Selected: ProtocolSSL, Flags: 1}).Bytes(), recorded(t, "xfreerdp-xrdp")[1].bytes; !bytes.Equal(got, want) {
		t.Errorf("got %x, want what xrdp says, %x", got, want)
	}
	for _, name := range recordings {
		if got, err := ParseConnectionConfirm(recorded(t, name)[1].bytes); err != nil || got.Selected != ProtocolSSL {
			t.Errorf("%s: got %+v, %v, want TLS", name, got, err)
		}
	}
}

// FuzzConnectionRequest: what is taken is written as what is taken in the same
// way, and is no longer than what it was.
func FuzzConnectionRequest(f *testing.F) {
	for _, name := range recordings {
		f.Add(recorded(f, name)[0].bytes)
	}
	f.Add(ConnectionRequest{Negotiates: true, Correlation: make([]byte, 32)}.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConnectionRequest(b)
		if err != nil {
			return
		}
		out := c.Bytes()
		again, err := ParseConnectionRequest(out)
		if err != nil || !reflect.DeepEqual(again, c) || len(out) != len(b) {
			t.Fatalf("got %+v, %v, want %+v", again, err, c)
		}
	})
}

// FuzzConnectionConfirm: what is taken is written as what is taken in the same
// way.
func FuzzConnectionConfirm(f *testing.F) {
	for _, name := range recordings {
		f.Add(recorded(f, name)[1].bytes)
	}
	f.Add(ConnectionConfirm{Failed: true, Failure: 5}.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConnectionConfirm(b)
		if err != nil {
			return
		}
		if again, err := ParseConnectionConfirm(c.Bytes()); err != nil || again != c {
			t.Fatalf("got %+v, %v, want %+v", again, err, c)
		}
	})
}
