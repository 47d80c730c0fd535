package broker

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/frame"
	"sft/internal/rdp"
	"sft/internal/rdp/rdptest"
)

const password = "the account's own, which nobody else is to see"

// injecting is a host whose streams go to an RDP service that the Server
// signs in to. What the service learnt comes on the channel: nil, if it came
// to nothing.
func injecting(t *testing.T, s *rdptest.Service, change func(*RDPService)) (*testHost, <-chan *rdptest.Served) {
	t.Helper()
	cert, fingerprint, err := rdptest.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	s.Certificate, s.User, s.Password = cert, "alice", sft.NewSecret(password)
	r := &RDPService{Login: "alice", Password: frame.Secret{Secret: s.Password}, CertificateSHA256: fingerprint, Channels: sft.AllChannels}
	if change != nil {
		change(r)
	}
	h := newHost(t, Limits{})
	h.mu.Lock()
	h.rdp = r
	h.mu.Unlock()
	learnt := make(chan *rdptest.Served, 1)
	go func() {
		select {
		case c := <-h.services:
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(soon))
			got, err := s.Serve(c)
			if err != nil {
				c.Close()
				got = nil
			}
			learnt <- got
		case <-t.Context().Done():
		}
	}()
	return h, learnt
}

// begin sends the first frame, and returns the connection after the reply.
func begin(t *testing.T, h *testHost) (*tls.Conn, frame.Reply) {
	t.Helper()
	p := h.person()
	c, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	b := p.hello()
	if err := frame.Write(c, b); err != nil {
		t.Fatal(err)
	}
	raw, err := frame.Read(c)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, []byte(password)) {
		t.Errorf("the password is in the reply: %s", raw)
	}
	var r frame.Reply
	if err := frame.Decode(raw, &r); err != nil {
		t.Fatal(err)
	}
	return c, r
}

var someChannels = []rdp.ChannelDef{{Name: "cliprdr"}, {Name: "drdynvc"}}

// goOn is what a client sends after the reply, up to the Client Info.
func goOn(t *testing.T, c *tls.Conn) {
	t.Helper()
	if _, err := c.Write(rdptest.ConnectInitial(someChannels, 0)); err != nil {
		t.Fatal(err)
	}
	pdu, err := rdp.ReadTPKT(c, rdp.MaxConnect)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rdp.ParseConnectResponse(pdu); err != nil {
		t.Fatal(err)
	}
	if pdu, err = rdp.ReadTPKT(c, 64); err != nil {
		t.Fatal(err)
	}
	user, err := rdp.ParseAttachUserConfirm(pdu)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(rdptest.ClientInfo(user, rdptest.IOChannel, "", "")); err != nil {
		t.Fatal(err)
	}
}

func TestInject(t *testing.T) {
	for _, nla := range []bool{false, true} {
		h, learnt := injecting(t, &rdptest.Service{NLA: nla}, nil)
		c, r := begin(t, h)
		want := frame.RDPReply{SignIn: frame.Inject, Login: "alice", SelectedProtocol: uint32(rdp.ProtocolSSL), NegotiationFlags: rdp.FlagExtendedClientData,
			PasswordReset: true, Warnings: []string{"a warning"}}
		if nla {
			want.SelectedProtocol = uint32(rdp.ProtocolHybrid)
		}
		if !reflect.DeepEqual(r.RDP, &want) {
			t.Fatalf("the reply is %+v, want %+v", r, want)
		}
		goOn(t, c)
		s := <-learnt
		if s == nil || s.User != "alice" || (s.Password == password) == nla {
			t.Fatalf("the service learnt %+v", s)
		}
		pdu := []byte{0, 9, 1, 2, 3, 4, 5, 6, 7}
		c.Write(pdu)
		if got := read(t, s.Conn, len(pdu)); got != string(pdu) {
			t.Errorf("the service read %x", got)
		}
		s.Conn.Write(append(pdu, pdu...))
		if got := read(t, c, 2*len(pdu)); got != string(pdu)+string(pdu) {
			t.Errorf("the client read %x", got)
		}
		c.Close()
		if got, want := h.closed(), (Closed{1, 9, 18, "client closed"}); got != want {
			t.Errorf("reported %+v, want %+v", got, want)
		}
	}
}

// A service that cannot be signed in to: the client is told, and the monitor.
func TestInjectRefused(t *testing.T) {
	tests := []struct {
		name    string
		service *rdptest.Service
		change  func(*RDPService)
		code    sft.Code
		why     string
	}{
		{"closes", &rdptest.Service{Stop: rdptest.Confirm}, nil, sft.RDPUnavailable, "service refused: rdp_unavailable"},
		{"is none", &rdptest.Service{Noise: rdptest.Confirm}, nil, sft.RDPUnavailable, "service refused: rdp_unavailable"},
		{"closes in TLS", &rdptest.Service{Stop: rdptest.TLS}, nil, sft.RDPUnavailable, "service refused: rdp_unavailable"},
		{"offers standard RDP security alone", &rdptest.Service{RDPOnly: true}, nil, sft.RDPUnavailable, "service refused: rdp_unavailable"},
		{"has another certificate", &rdptest.Service{}, func(r *RDPService) { r.CertificateSHA256 = strings.Repeat("0", 64) }, sft.RDPCertificate, "service refused: rdp_certificate"},
		{"refuses the password", &rdptest.Service{NLA: true}, func(r *RDPService) { r.Password = frame.Secret{Secret: sft.NewSecret("old")} }, sft.RDPRefused, "password refused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, learnt := injecting(t, tt.service, tt.change)
			c, r := begin(t, h)
			if r.Error == nil || r.Error.Code != tt.code || r.Error.Hint == "" {
				t.Errorf("the reply is %+v", r.Error)
			}
			if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("after it: %d, %v", n, err)
			}
			if got := h.closed(); got.Why != tt.why {
				t.Errorf("reported %q, want %q", got.Why, tt.why)
			}
			if s := <-learnt; s != nil {
				t.Errorf("the service learnt %+v", s)
			}
		})
	}
}

// A client that does not go on, in its ways. Nothing of the account's is sent
// to a service that wants no NLA.
func TestInjectAborted(t *testing.T) {
	notice := func(why string) []byte {
		var b bytes.Buffer
		if err := frame.WriteJSON(&b, frame.Notice{Abort: why}); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	initial := rdptest.ConnectInitial(someChannels, 0)
	tests := []struct {
		name string
		send []byte
		why  string
		told sft.Code
	}{
		{"says so", notice(frame.AbortSecret), "aborted: launch_secret", ""},
		{"says so for another reason", notice(frame.AbortClient), "aborted: client", ""},
		{"gives a reason of its own", notice("rm -rf / #"), "aborted: unknown", ""},
		{"closes", nil, "aborted", ""},
		{"sends half a PDU", initial[:20], "aborted", ""},
		{"sends a PDU that is too long", append([]byte{3, 0, 0xff, 0xff}, make([]byte, 100)...), "aborted", ""},
		{"sends noise", []byte("GET / HTTP/1.1\r\n\r\n"), "aborted", ""},
		{"truncates its Connect Initial", append([]byte{3, 0, 0, 60}, initial[4:60]...), "aborted: invalid_request", sft.Invalid},
		{"sends a frame that claims a gigabyte", []byte{0, 0, 0xff, 0xff}, "aborted", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, learnt := injecting(t, &rdptest.Service{}, nil)
			c, r := begin(t, h)
			if r.RDP == nil {
				t.Fatalf("the reply is %+v", r.Error)
			}
			c.Write(tt.send)
			if tt.told != "" {
				b, err := frame.Read(c)
				var n frame.Notice
				if err == nil {
					err = json.Unmarshal(b, &n)
				}
				if err != nil || n.Error == nil || n.Error.Code != tt.told {
					t.Errorf("told %+v, %v", n.Error, err)
				}
			}
			c.Close()
			if got := h.closed(); got.Why != tt.why || got.BytesIn != 0 || got.BytesOut != 0 {
				t.Errorf("reported %+v, want %q", got, tt.why)
			}
			if s := <-learnt; s != nil {
				t.Errorf("the service learnt %+v", s)
			}
		})
	}
}

// A redirection in the middle of a session ends it, and the client can tell
// it from the session's bytes.
func TestInjectRedirected(t *testing.T) {
	h, learnt := injecting(t, &rdptest.Service{}, nil)
	c, _ := begin(t, h)
	goOn(t, c)
	s := <-learnt
	if s == nil {
		t.Fatal("the service learnt nothing")
	}
	before := []byte{0, 4, 1, 2}
	packet := []byte{0x00, 0x04, 20, 0, 1, 0, 0, 0, 0x00, 0x00, 0x00, 0x00, 0, 0, 0, 0, 0, 0, 0, 0}
	data := append(append([]byte{byte(9 + len(packet)), 0, 0x1a, 0, 0xea, 0x03, 0, 0}, packet...), 0)
	pdu, err := rdp.SendDataPDU{Indication: true, Initiator: 1002, Channel: rdptest.IOChannel, Priority: 0x70, Data: data}.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	s.Conn.Write(append(before, pdu...))
	if got := read(t, c, len(before)); got != string(before) {
		t.Errorf("before it came %x", got)
	}
	b, err := frame.Read(c)
	var n frame.Notice
	if err == nil {
		err = json.Unmarshal(b, &n)
	}
	if err != nil || n.Error == nil || n.Error.Code != sft.RDSFarm {
		t.Errorf("told %+v, %v", n.Error, err)
	}
	if got := h.closed(); got.Why != "service refused: rds_farm" || got.BytesOut != 4 {
		t.Errorf("reported %+v", got)
	}
}

// The monitor may end a stream in which the client has not begun.
func TestInjectEnded(t *testing.T) {
	h, learnt := injecting(t, &rdptest.Service{}, nil)
	c, _ := begin(t, h)
	h.server.End(1, "access was taken away")
	if got := h.closed(); got.Why != "ended: access was taken away" {
		t.Errorf("reported %+v", got)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the client read %d, %v", n, err)
	}
	if s := <-learnt; s != nil {
		t.Errorf("the service learnt %+v", s)
	}
}

// A client whose desktop was locked is told so where a PDU would begin, after
// the one that is under way, and though it does not stop sending. Nothing that
// it sends after the end reaches the service.
func TestInjectLocked(t *testing.T) {
	pdu := append([]byte{0, 0x80 | 4, 0}, slices.Repeat([]byte{7}, 1021)...)
	tests := []struct {
		name   string
		before []byte // that the service has sent
		after  []byte // that it sends when the end has come
		busy   bool   // the client sends
		told   bool
	}{
		{"nothing under way", pdu, nil, false, true},
		{"a PDU under way", pdu[:100], pdu[100:], false, true},
		{"a PDU under way, and more", append(slices.Clone(pdu), pdu[:9]...), append(slices.Clone(pdu[9:]), pdu[:50]...), false, true},
		{"a PDU that never ends", pdu[:100], nil, false, false},
		{"a client that goes on sending", pdu, nil, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, learnt := injecting(t, &rdptest.Service{}, nil)
			c, _ := begin(t, h)
			goOn(t, c)
			s := <-learnt
			if s == nil {
				t.Fatal("the service learnt nothing")
			}
			s.Conn.Write(tt.before)
			if got := read(t, c, len(tt.before)); got != string(tt.before) {
				t.Fatalf("before the end it came %x", got)
			}
			h.server.End(1, Locked)
			input := []byte{4, 9, 1, 2, 3, 4, 5, 6, 7}
			if tt.busy {
				for range 1000 {
					c.Write(input)
				}
			}
			s.Conn.Write(tt.after)
			got, err := io.ReadAll(c)
			rest := len(pdu) - len(tt.before)%len(pdu) // of the PDU under way
			rest = min(rest, len(tt.after))
			var n frame.Notice
			if err == nil && len(got) > rest {
				var b []byte
				if b, err = frame.Read(bytes.NewReader(got[rest:])); err == nil {
					err = json.Unmarshal(b, &n)
				}
			}
			told := n.Error != nil && n.Error.Code == sft.Locked && n.Error.Hint != "" && err == nil
			if told != tt.told || tt.told && !bytes.HasPrefix(got, tt.after[:rest]) {
				t.Errorf("at the end it came %q, %v", got, err)
			}
			c.Close()
			if got := h.closed(); got.Why != "ended: locked" || got.BytesIn != 0 {
				t.Errorf("reported %+v", got)
			}
			if b, _ := io.ReadAll(s.Conn); len(b) > 0 {
				t.Errorf("the service read %d bytes after the end", len(b))
			}
		})
	}
}

// The client is told without a wait, and what it still sends is taken: nothing
// is lost at its end.
func TestLeave(t *testing.T) {
	h, learnt := injecting(t, &rdptest.Service{}, nil)
	c, _ := begin(t, h)
	goOn(t, c)
	s := <-learnt
	if s == nil {
		t.Fatal("the service learnt nothing")
	}
	eventually(t, "the stream runs", func() bool {
		c.Write([]byte{4, 3, 0})
		return h.server.Counters().BytesIn > 0
	})
	h.server.mu.Lock()
	st := h.server.streams[1]
	h.server.mu.Unlock()
	st.leave(endedWhy(Locked), errLocked, time.Hour)
	if _, err := io.Copy(io.Discard, s.Conn); timedOut(err) {
		t.Fatal("the service's connection stays open")
	}
	input := slices.Repeat([]byte{4, 9, 1, 2, 3, 4, 5, 6, 7}, 1000)
	for n := 0; n < 16<<20; n += len(input) {
		if _, err := c.Write(input); err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
	b, err := frame.Read(c)
	var n frame.Notice
	if err == nil {
		err = json.Unmarshal(b, &n)
	}
	if err != nil || n.Error == nil || n.Error.Code != sft.Locked {
		t.Errorf("told %+v, %v", n.Error, err)
	}
	c.Close()
	if got := h.closed(); got.Why != "ended: locked" {
		t.Errorf("reported %+v", got)
	}
}

// A stream whose desktop was locked before its client had begun.
func TestLockedWhileTheStreamIsOpened(t *testing.T) {
	h := newHost(t, Limits{})
	h.onOpened = func(o Opened) { h.server.End(o.Stream, Locked) }
	p := h.person()
	c, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	if r, err := ask(c, p.hello()); err != nil || r.Error == nil || r.Error.Code != sft.Locked {
		t.Errorf("reply %+v, %v, want locked", r, err)
	}
	if got, want := h.closed(), (Closed{1, 0, 0, "ended: locked"}); got != want {
		t.Errorf("reported %+v, want %+v", got, want)
	}
}

// Where the client signs in, there is no place for a reason: the bytes are
// not the Server's.
func TestDeliverLocked(t *testing.T) {
	h := newHost(t, Limits{})
	c, s := h.person().connect()
	h.server.End(1, Locked)
	if b, _ := io.ReadAll(c); len(b) > 0 {
		t.Errorf("the client read %q", b)
	}
	if got := h.closed(); got.Why != "ended: locked" {
		t.Errorf("reported %+v", got)
	}
	if b, _ := io.ReadAll(s); len(b) > 0 {
		t.Errorf("the service read %q", b)
	}
}
