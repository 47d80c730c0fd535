package rdp

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
)

// recordedInfo is the first thing that a client sends on the I/O channel.
func recordedInfo(t testing.TB, name string) []byte {
	t.Helper()
	for _, p := range recorded(t, name) {
		if KindOf(p.bytes) == SendData {
			data, err := ParseSendData(p.bytes)
			if err != nil {
				t.Fatal(err)
			}
			return bytes.Clone(data.Data)
		}
	}
	t.Fatal("no Client Info was recorded")
	return nil
}

func TestClientInfoOfRealClients(t *testing.T) {
	for name, domain := range map[string]string{"xfreerdp-xrdp": "EXAMPLE", "xfreerdp-shadow": "", "rdesktop-xrdp": "EXAMPLE"} {
		data := recordedInfo(t, name)
		c, err := ParseClientInfo(data)
		if err != nil {
			t.Fatal(err)
		}
		d, _ := utf16String(c.Domain)
		u, _ := utf16String(c.User)
		p, _ := utf16String(c.Password)
		if d != domain || u != "alice" || p != "dummy-password" || c.Flags&InfoUnicode == 0 || len(c.Extra) < 100 {
			t.Errorf("%s: got %q, %q, %q, flags %#x, want %q, alice and the password", name, d, u, p, c.Flags, domain)
		}
		if got, err := c.Bytes(); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: got %x, %v, want %x", name, got, err, data)
		}
		for n := range len(data) - len(c.Extra) {
			if _, err := ParseClientInfo(data[:n:n]); err == nil {
				t.Errorf("%s: %d bytes of it are taken", name, n)
			}
		}
	}
	for _, p := range recordedAll(t) {
		data, err := ParseSendData(p.bytes)
		if err != nil {
			continue
		}
		if c, err := ParseClientInfo(data.Data); err == nil && !p.client {
			t.Errorf("%x of a service is taken, as %v", p.bytes, c)
		}
	}
}

func TestClientInfoWithAnotherAccount(t *testing.T) {
	c, err := ParseClientInfo(recordedInfo(t, "rdesktop-xrdp"))
	if err != nil {
		t.Fatal(err)
	}
	extra := bytes.Clone(c.Extra)
	c.Domain, c.User, c.Password = nil, utf16Bytes("sft-bob"), utf16Bytes(strings.Repeat("x", 256))
	c.Flags |= InfoAutologon
	data, err := c.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseClientInfo(data)
	if err != nil {
		t.Fatal(err)
	}
	got.came, c.came, c.Domain = nil, nil, []byte{}
	if !reflect.DeepEqual(got, c) || !bytes.Equal(got.Extra, extra) {
		t.Error("what was written is read as something else")
	}
	c.Password = make([]byte, 514)
	if _, err := c.Bytes(); err == nil {
		t.Error("a password of 514 bytes is written")
	}
	c.Password = make([]byte, 3)
	if _, err := c.Bytes(); err == nil {
		t.Error("a password of an odd size is written")
	}
}

func TestClientInfoRefusals(t *testing.T) {
	for name, change := range map[string]func(b []byte) []byte{
		"another PDU":            func(b []byte) []byte { b[0] = 0x80; return b },
		"an encrypted one":       func(b []byte) []byte { b[0] |= 8; return b },
		"one without Unicode":    func(b []byte) []byte { b[8] &^= 0x10; return b },
		"a field of an odd size": func(b []byte) []byte { b[12]++; return b },
		"a field of an odd size that has an end": func(b []byte) []byte {
			b[12]++
			return append(b[:22:22], append([]byte{'x'}, b[22:]...)...)
		},
		"a field that has no end": func(b []byte) []byte { b[12] -= 2; return b },
		"a field of 514 bytes": func(b []byte) []byte {
			binary.LittleEndian.PutUint16(b[12:], 514)
			return append(b, make([]byte, 1024)...)
		},
		"an endless extended info": func(b []byte) []byte { return append(b, make([]byte, 4096)...) },
	} {
		if c, err := ParseClientInfo(change(recordedInfo(t, "xfreerdp-xrdp"))); err == nil {
			t.Errorf("%s: got %v, want an error", name, c)
		}
	}
}

func TestClientInfoHidesThePassword(t *testing.T) {
	data := recordedInfo(t, "xfreerdp-xrdp")
	c, err := ParseClientInfo(data)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "pointer", c, "value", *c)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "pointer", c, "value", *c)
	shown := log.String() + fmt.Sprint(c, *c) + fmt.Sprintf("%v %+v %#v %s %x %q %d", c, *c, c, *c, c, *c, c)
	_, jsonErr := json.Marshal(c)
	if jsonErr == nil {
		t.Error("it can be marshalled")
	}
	shown += jsonErr.Error()
	for _, secret := range []string{"dummy", "d\x00u\x00m", "100 0 117", "640075", "alice", "ZAB1AG0"} {
		if strings.Contains(shown, secret) {
			t.Errorf("%q is in %q", secret, shown)
		}
	}
	password := c.Password
	c.Wipe()
	if !bytes.Equal(data, make([]byte, len(data))) || !bytes.Equal(password, make([]byte, len(password))) {
		t.Error("something is left after Wipe")
	}
	own := utf16Bytes("own")
	c.Password = own
	c.Wipe()
	if !bytes.Equal(own, make([]byte, 6)) || c.Password != nil {
		t.Error("a password that was put in is left after Wipe")
	}
}

// FuzzClientInfo: what is taken is what is written, and no field is longer
// than its cap.
func FuzzClientInfo(f *testing.F) {
	for _, name := range recordings {
		f.Add(recordedInfo(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseClientInfo(b)
		if err != nil {
			return
		}
		for _, field := range c.fields() {
			if len(*field) > 512 {
				t.Fatalf("a field of %d bytes", len(*field))
			}
		}
		if got, err := c.Bytes(); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("got %x, %v, want %x", got, err, b)
		}
	})
}
