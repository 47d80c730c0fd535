package rdp

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func recordedInitial(t testing.TB, name string) []byte { return recorded(t, name)[2].bytes }

func recordedResponse(t testing.TB, name string) []byte { return recorded(t, name)[3].bytes }

func initial(t testing.TB, name string) *ConnectInitial {
	t.Helper()
	c, err := ParseConnectInitial(recordedInitial(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func response(t testing.TB, name string) *ConnectResponse {
	t.Helper()
	c, err := ParseConnectResponse(recordedResponse(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConnectInitialOfRealClients(t *testing.T) {
	for name, want := range map[string][]string{
		"xfreerdp-xrdp":   {"rdpdr", "rdpsnd", "cliprdr", "drdynvc"},
		"xfreerdp-shadow": {"rdpdr", "rdpsnd", "cliprdr", "drdynvc"},
		"rdesktop-xrdp":   {"cliprdr", "rdpsnd", "snddbg", "rdpdr", "drdynvc"},
	} {
		pdu := recordedInitial(t, name)
		c := initial(t, name)
		if got, err := c.Bytes(); err != nil || !bytes.Equal(got, pdu) {
			t.Errorf("%s: got %x, %v, want %x", name, got, err, pdu)
		}
		list, err := c.Channels()
		var got []string
		for _, d := range list {
			got = append(got, d.Name)
		}
		slices.Sort(got)
		slices.Sort(want)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
		cut(pdu, func(b []byte) {
			if _, err := ParseConnectInitial(b); err == nil {
				t.Fatalf("%s: %d bytes of %d are taken", name, len(b), len(pdu))
			}
		})
	}
}

func TestConnectInitialRefusals(t *testing.T) {
	net := func(count uint32, names ...string) Block {
		b := binary.LittleEndian.AppendUint32(nil, count)
		for _, n := range names {
			b = append(append(b, (n + "\x00\x00\x00\x00\x00\x00\x00\x00")[:8]...), 0, 0, 0, 0x80)
		}
		return Block{CSNet, b}
	}
	for name, change := range map[string]func(c *ConnectInitial){
		"two CS_NET":                    func(c *ConnectInitial) { c.Blocks = append(c.Blocks, net(0)) },
		"two blocks that nobody knows":  func(c *ConnectInitial) { c.Blocks = append(c.Blocks, Block{0xC0FE, nil}, Block{0xC0FE, nil}) },
		"no CS_CORE":                    func(c *ConnectInitial) { c.Blocks = without(c.Blocks, CSCore) },
		"half a CS_CORE":                func(c *ConnectInitial) { c.Blocks[0].Data = c.Blocks[0].Data[:127] },
		"a service's block":             func(c *ConnectInitial) { c.Blocks = append(c.Blocks, Block{SCCore, make([]byte, 12)}) },
		"a channel more than there is":  func(c *ConnectInitial) { c.Blocks = put(c.Blocks, net(2, "cliprdr")) },
		"a channel less than there is":  func(c *ConnectInitial) { c.Blocks = put(c.Blocks, net(1, "cliprdr", "rdpdr")) },
		"four thousand million of them": func(c *ConnectInitial) { c.Blocks = put(c.Blocks, net(1<<32-1, "cliprdr")) },
		"32 channels":                   func(c *ConnectInitial) { c.Blocks = put(c.Blocks, net(32, many(32)...)) },
		"a count that is cut":           func(c *ConnectInitial) { c.Blocks = put(c.Blocks, Block{CSNet, []byte{1, 0}}) },
		"one channel twice":             func(c *ConnectInitial) { c.Blocks = put(c.Blocks, net(2, "drdynvc", "DRDYNVC")) },
		"a channel without a name":      func(c *ConnectInitial) { c.Blocks = put(c.Blocks, net(1, "")) },
		"a name without an end":         func(c *ConnectInitial) { c.Blocks = put(c.Blocks, net(1, "12345678")) },
		"a name with a control":         func(c *ConnectInitial) { c.Blocks = put(c.Blocks, net(1, "clip\x1bdr")) },
		"another conference":            func(c *ConnectInitial) { c.domain = c.domain[:len(c.domain)-27] },
	} {
		c := initial(t, "xfreerdp-xrdp")
		change(c)
		pdu, err := c.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseConnectInitial(pdu); err == nil {
			t.Errorf("%s: is taken", name)
		}
	}
	if _, err := ParseConnectInitial(make([]byte, MaxConnect+1)); err == nil || !strings.Contains(err.Error(), ErrTooLong.Error()) {
		t.Errorf("a PDU over the cap: got %v, want %v", err, ErrTooLong)
	}
	body, err := connect(recordedInitial(t, "xfreerdp-xrdp"), 0x65)
	if err != nil {
		t.Fatal(err)
	}
	longer, err := connectBytes(0x65, append(body[:len(body):len(body)], 5, 0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseConnectInitial(longer); err == nil {
		t.Error("something after the user data is taken")
	}
	c := initial(t, "xfreerdp-xrdp")
	c.Blocks = append(c.Blocks, Block{0xC0FE, make([]byte, MaxConnect-400)})
	if _, err := c.Bytes(); err == nil {
		t.Error("a PDU over the cap is written")
	}
	pdu := recordedInitial(t, "xfreerdp-xrdp")
	i := bytes.Index(pdu, []byte("Duca")) + 6 // the header of CS_CORE, after a length
	lying := bytes.Clone(pdu)
	lying[i-1]--
	if _, err := ParseConnectInitial(lying); err == nil {
		t.Error("user data longer than it says is taken")
	}
	for _, n := range []uint16{0, 3, 0xFFF} {
		b := bytes.Clone(pdu)
		binary.LittleEndian.PutUint16(b[i+2:], n)
		if _, err := ParseConnectInitial(b); err == nil {
			t.Errorf("a block of %#x bytes is taken", n)
		}
	}
}

func many(n int) []string {
	var list []string
	for i := range n {
		list = append(list, string([]byte{'c', 'a' + byte(i/26), 'a' + byte(i%26)}))
	}
	return list
}

func TestSetChannels(t *testing.T) {
	c := initial(t, "xfreerdp-xrdp")
	want := []ChannelDef{{"drdynvc", 0xC0800000}, {"a", 1}}
	for range 2 { // in the place of others, then where there is none
		if err := c.SetChannels(want); err != nil {
			t.Fatal(err)
		}
		pdu, err := c.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseConnectInitial(pdu)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := again.Channels(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
		if err := c.SetChannels(nil); err != nil {
			t.Fatal(err)
		}
		if _, ok := find(c.Blocks, CSNet); ok {
			t.Error("an empty list leaves a CS_NET")
		}
		if got, err := c.Channels(); err != nil || got != nil {
			t.Errorf("got %v, %v, want none", got, err)
		}
	}
	for name, list := range map[string][]ChannelDef{
		"a long name":      {{"12345678", 0}},
		"no name":          {{"", 0}},
		"one name twice":   {{"a", 0}, {"A", 0}},
		"an odd name":      {{"\xff", 0}},
		"too many of them": make([]ChannelDef, 32),
	} {
		if c.SetChannels(list) == nil {
			t.Errorf("%s: is taken", name)
		}
	}
}

func TestSetServerSelected(t *testing.T) {
	whole := initial(t, "xfreerdp-xrdp").Blocks[0].Data
	for _, c := range []struct {
		name string
		size int
		p    Protocols
		want int // size; 0: an error
	}{
		{"a whole CS_CORE", len(whole), ProtocolHybridEx, len(whole)},
		{"one that ends behind the field", 212, ProtocolHybrid, 212},
		{"one that ends before it", 208, ProtocolSSL, 212},
		{"one that ends before the pad", 207, ProtocolSSL, 212},
		{"one that ends before the connection type", 206, ProtocolSSL, 212},
		{"one that ends before the product", 142, ProtocolSSL, 212},
		{"one that ends within the product", 150, ProtocolSSL, 0},
		{"one that ends before fields that may not be zero", 140, ProtocolSSL, 0},
		{"one that ends within the field", 210, ProtocolSSL, 0},
		{"one that ends within the field, for no protocol", 210, ProtocolRDP, 0},
		{"a short one for no protocol", 140, ProtocolRDP, 140},
	} {
		i := initial(t, "xfreerdp-xrdp")
		i.Blocks[0].Data = i.Blocks[0].Data[:c.size]
		err := i.SetServerSelected(c.p)
		if (err != nil) != (c.want == 0) {
			t.Errorf("%s: got %v, want size %d", c.name, err, c.want)
		}
		if err != nil || c.want <= 208 {
			continue
		}
		want := append(bytes.Clone(whole[:min(c.size, 208)]), make([]byte, c.want)...)[:c.want]
		copy(want[min(c.size, 212):], whole[min(c.size, 212):c.size])
		if c.size > 212 {
			copy(want[212:], whole[212:])
		}
		binary.LittleEndian.PutUint32(want[208:], uint32(c.p))
		if got := i.Blocks[0].Data; !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, want %x", c.name, got, want)
		}
	}
}

func TestNoMultitransport(t *testing.T) {
	c := initial(t, "xfreerdp-xrdp")
	n := len(c.Blocks)
	c.NoMultitransport()
	if len(c.Blocks) != n {
		t.Error("a block came from nowhere")
	}
	c.Blocks = put(c.Blocks, Block{CSMultitransport, []byte{5, 3, 0, 0}})
	c.NoMultitransport()
	if got, _ := find(c.Blocks, CSMultitransport); !bytes.Equal(got.Data, make([]byte, 4)) {
		t.Errorf("got %x, want zeros", got.Data)
	}
}

func TestConnectResponseOfRealServices(t *testing.T) {
	for name, want := range map[string][]uint16{
		"xfreerdp-xrdp":   {1004, 1005, 1006, 1007},
		"xfreerdp-shadow": {1004, 1005, 1006, 1007},
		"rdesktop-xrdp":   {1004, 1005, 1006, 1007, 1008},
	} {
		pdu := recordedResponse(t, name)
		c := response(t, name)
		io, ids, err := c.Channels()
		if err != nil || io != 1003 || !reflect.DeepEqual(ids, want) || c.Result != 0 {
			t.Errorf("%s: got %d, %v, %v, want 1003, %v", name, io, ids, err, want)
		}
		got, err := c.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if name == "xfreerdp-shadow" { // xrdp writes short lengths long
			if !bytes.Equal(got, pdu) {
				t.Errorf("%s: got %x, want %x", name, got, pdu)
			}
		}
		if again, err := ParseConnectResponse(got); err != nil || !reflect.DeepEqual(again, c) {
			t.Errorf("%s: got %+v, %v, want %+v", name, again, err, c)
		}
		cut(pdu, func(b []byte) {
			if _, err := ParseConnectResponse(b); err == nil {
				t.Fatalf("%s: %d bytes of %d are taken", name, len(b), len(pdu))
			}
		})
	}
}

func TestConnectResponseChanges(t *testing.T) {
	c := response(t, "xfreerdp-xrdp")
	for _, ids := range [][]uint16{{1004, 0, 0xF000, 0}, {1004, 0, 0xF000}, {1004, 1005}, nil} {
		c.SetChannels(1003, ids)
		if io, got, err := c.Channels(); err != nil || io != 1003 || !reflect.DeepEqual(got, ids) {
			t.Errorf("got %d, %v, %v, want %v", io, got, err, ids)
		}
		if net, _ := find(c.Blocks, SCNet); len(net.Data)%4 != 0 {
			t.Errorf("got %d bytes, want a multiple of 4", len(net.Data))
		}
	}
	if _, ok := c.MessageChannel(); ok {
		t.Error("there is a message channel without a block for it")
	}
	c.Blocks = put(c.Blocks, Block{SCMessageChannel, []byte{0xF0, 3}})
	if id, ok := c.MessageChannel(); id != 1008 || !ok {
		t.Errorf("got %d, %v, want 1008", id, ok)
	}
	c.Drop(SCMessageChannel)
	if _, ok := c.MessageChannel(); ok {
		t.Error("what was dropped is still there")
	}
	for size, want := range map[int]string{
		4: "\x08\x00\x08\x00\x0b\x00\x00\x00", 8: "\x08\x00\x08\x00\x0b\x00\x00\x00", 12: "\x08\x00\x08\x00\x0b\x00\x00\x00\x07\x07\x07\x07",
		3: "", 6: "",
	} {
		c.Blocks = put(c.Blocks, Block{SCCore, []byte("\x08\x00\x08\x00\x07\x07\x07\x07\x07\x07\x07\x07")[:size]})
		err := c.SetClientRequested(ProtocolSSL | ProtocolHybrid | ProtocolHybridEx)
		if core, _ := find(c.Blocks, SCCore); (err != nil) != (want == "") || err == nil && string(core.Data) != want {
			t.Errorf("%d bytes: got %q, %v, want %q", size, core.Data, err, want)
		}
	}
}

func TestConnectResponseRefusals(t *testing.T) {
	for name, change := range map[string]func(c *ConnectResponse){
		"no SC_CORE":                 func(c *ConnectResponse) { c.Drop(SCCore) },
		"no SC_NET":                  func(c *ConnectResponse) { c.Drop(SCNet) },
		"two SC_NET":                 func(c *ConnectResponse) { c.Blocks = append(c.Blocks, Block{SCNet, []byte{0xEB, 3, 0, 0}}) },
		"a client's block":           func(c *ConnectResponse) { c.Blocks = append(c.Blocks, Block{CSNet, []byte{0, 0, 0, 0}}) },
		"a channel more than it has": func(c *ConnectResponse) { c.Blocks = put(c.Blocks, Block{SCNet, []byte{0xEB, 3, 2, 0, 0xEC, 3}}) },
		"a channel less than it has": func(c *ConnectResponse) { c.Blocks = put(c.Blocks, Block{SCNet, []byte{0xEB, 3, 0, 0, 0xEC, 3}}) },
		"65535 channels":             func(c *ConnectResponse) { c.Blocks = put(c.Blocks, Block{SCNet, []byte{0xEB, 3, 0xFF, 0xFF}}) },
		"one channel twice":          func(c *ConnectResponse) { c.SetChannels(1003, []uint16{1004, 1004}) },
		"the I/O channel twice":      func(c *ConnectResponse) { c.SetChannels(1003, []uint16{1003}) },
		"half a message channel":     func(c *ConnectResponse) { c.Blocks = append(c.Blocks, Block{SCMessageChannel, []byte{1}}) },
		"no conference":              func(c *ConnectResponse) { c.gcc = nil },
		"a domain of seven numbers": func(c *ConnectResponse) {
			c.domain = []byte("\x02\x01\x00\x30\x15" + strings.Repeat("\x02\x01\x01", 7))
		},
	} {
		c := response(t, "xfreerdp-xrdp")
		change(c)
		pdu, err := c.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseConnectResponse(pdu); err == nil {
			t.Errorf("%s: is taken", name)
		}
	}
	c := response(t, "xfreerdp-xrdp")
	c.Result, c.gcc, c.Blocks = 14, nil, nil
	pdu, err := c.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseConnectResponse(pdu); err != nil || got.Result != 14 {
		t.Errorf("a refusal without blocks: got %+v, %v, want its result", got, err)
	}
}

// FuzzConnectInitial: what is taken is written, after the channels were
// written anew, as what is taken in the same way; nothing is there twice.
func FuzzConnectInitial(f *testing.F) {
	for _, name := range recordings {
		f.Add(recordedInitial(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConnectInitial(b)
		if err != nil {
			return
		}
		list, err := c.Channels()
		if err != nil || len(list) > MaxChannels {
			t.Fatalf("got %v, %v", list, err)
		}
		if err := c.SetChannels(list); err != nil {
			t.Fatal(err)
		}
		_ = c.SetServerSelected(ProtocolSSL)
		c.NoMultitransport()
		out, err := c.Bytes()
		if err != nil {
			return // it grew over the cap
		}
		if again, err := ParseConnectInitial(out); err != nil || !same(again.Blocks, c.Blocks) || !bytes.Equal(again.domain, c.domain) {
			t.Fatalf("got %+v, %v, want %+v", again, err, c)
		}
	})
}

func same(a, b []Block) bool {
	return slices.EqualFunc(a, b, func(x, y Block) bool { return x.Type == y.Type && bytes.Equal(x.Data, y.Data) })
}

// FuzzConnectResponse: what is taken is written, after the channels were
// written anew, as what is taken in the same way.
func FuzzConnectResponse(f *testing.F) {
	for _, name := range recordings {
		f.Add(recordedResponse(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConnectResponse(b)
		if err != nil {
			return
		}
		if c.Result == 0 {
			io, ids, err := c.Channels()
			if err != nil || len(ids) > MaxChannels {
				t.Fatalf("got %v, %v", ids, err)
			}
			c.SetChannels(io, ids)
			c.MessageChannel()
			_ = c.SetClientRequested(ProtocolSSL)
			c.Drop(SCMultitransport)
		}
		out, err := c.Bytes()
		if err != nil {
			return
		}
		if again, err := ParseConnectResponse(out); err != nil || again.Result != c.Result || !same(again.Blocks, c.Blocks) || !bytes.Equal(again.gcc, c.gcc) {
			t.Fatalf("got %+v, %v, want %+v", again, err, c)
		}
	})
}
