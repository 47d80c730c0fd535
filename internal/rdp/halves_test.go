package rdp_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sft"
	"sft/internal/rdp"
	"sft/internal/rdp/rdptest"
)

const realPassword = "the real password, known to the host alone"

// patience bounds what must not take long. It is no measure.
const patience = 20 * time.Second

// pair returns the two ends of a TCP connection, closed with the test.
func pair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		c.SetDeadline(time.Now().Add(patience))
		t.Cleanup(func() { c.Close() })
	}
	return a, b
}

// made is the one Front whose key all tests use: to make one takes long.
var made = sync.OnceValues(func() (*rdp.Front, error) { return rdp.NewFront("ann", rdp.RSA) })

func newFront(t *testing.T) *rdp.Front {
	t.Helper()
	f, err := made()
	if err != nil {
		t.Fatal(err)
	}
	own := *f
	return &own
}

// an upstream is plain RDP to the other half.
type upstream struct {
	net.Conn
	flags byte
	sent  *bytes.Buffer // a copy of what went up; may be nil
}

func (u upstream) Write(b []byte) (int, error) {
	if u.sent != nil {
		u.sent.Write(b)
	}
	return u.Conn.Write(b)
}

func (u upstream) Next(max int) ([]byte, error) { return rdp.ReadTPKT(u.Conn, max) }
func (u upstream) Flags() byte                  { return u.flags }

// A run is one connection through both halves.
type run struct {
	served    *rdptest.Served
	connected *rdptest.Connected
	client    *tls.Conn // the Front's end to the client
	service   *rdp.Service
	guard     *rdp.Guard
	sent      bytes.Buffer // by the Front to the Back
	secret    string

	serviceErr, backErr, frontErr, clientErr error
}

// through connects client and service by a Front and a Back.
func through(t *testing.T, s *rdptest.Service, c *rdptest.Client, change func(*rdp.Back, *rdp.Front)) *run {
	t.Helper()
	cert, fingerprint, err := rdptest.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	s.Certificate, s.User, s.Password = cert, "ann", sft.NewSecret(realPassword)
	back := &rdp.Back{Credentials: rdp.Credentials{User: "ann", Password: s.Password}, Host: "localhost", CertificateSHA256: fingerprint, Channels: sft.AllChannels}
	front := newFront(t)
	if c.User == "" {
		c.User, c.Password, c.Pin = front.Login, front.Secret, front.Fingerprint
	}
	if change != nil {
		change(back, front)
	}
	r := run{secret: front.Secret.Reveal()}
	serviceEnd, backEnd := pair(t)
	up, down := pair(t)
	frontEnd, clientEnd := pair(t)
	var all sync.WaitGroup
	all.Go(func() {
		if r.served, r.serviceErr = s.Serve(serviceEnd); r.serviceErr != nil {
			serviceEnd.Close()
		}
	})
	ready := make(chan struct{})
	all.Go(func() {
		defer down.Close()
		r.service, r.backErr = back.Connect(backEnd)
		close(ready)
		if r.backErr != nil {
			backEnd.Close()
			return
		}
		if r.guard, r.backErr = r.service.Begin(func(max int) ([]byte, error) { return rdp.ReadTPKT(down, max) }, down); r.backErr != nil {
			backEnd.Close()
		}
	})
	all.Go(func() {
		r.client, r.frontErr = front.Answer(frontEnd, func() (rdp.Upstream, error) {
			<-ready
			if r.backErr != nil {
				return nil, r.backErr
			}
			return upstream{up, r.service.Flags, &r.sent}, nil
		})
		if r.frontErr != nil {
			up.Close()
			frontEnd.Close()
			backEnd.Close()
		}
	})
	all.Go(func() {
		if r.connected, r.clientErr = c.Connect(clientEnd); r.clientErr != nil {
			clientEnd.Close()
		}
	})
	all.Wait()
	return &r
}

var channels = []rdp.ChannelDef{{Name: "rdpsnd", Options: 0xc0000000}, {Name: "cliprdr", Options: 0xc0a00000}, {Name: "drdynvc", Options: 0xc0800000}, {Name: "rdpdr", Options: 0x80800000}}

func TestHalves(t *testing.T) {
	for _, nla := range []bool{false, true} {
		for _, clientNLA := range []bool{false, true} {
			name := map[bool]string{false: "TLS", true: "NLA"}
			t.Run(name[clientNLA]+" client, "+name[nla]+" service", func(t *testing.T) {
				r := through(t, &rdptest.Service{NLA: nla}, &rdptest.Client{NLA: clientNLA, Channels: channels}, nil)
				if err := errors.Join(r.serviceErr, r.backErr, r.frontErr, r.clientErr); err != nil {
					t.Fatal(err)
				}
				password := realPassword
				selected := rdp.ProtocolSSL
				if nla { // it was proven in NLA
					password, selected = "", rdp.ProtocolHybrid
				}
				if r.served.User != "ann" || r.served.Password != password || r.served.Flags&rdp.InfoAutologon == 0 {
					t.Errorf("the service was told %q, %q, %#x", r.served.User, r.served.Password, r.served.Flags)
				}
				if r.service.Flags != rdp.FlagExtendedClientData {
					t.Errorf("flags %#x", r.service.Flags)
				}
				if !slices.Equal(r.served.Channels, channels) {
					t.Errorf("channels %+v", r.served.Channels)
				}
				for _, b := range r.served.Initial.Blocks {
					if b.Type == rdp.CSCore && rdp.Protocols(binary.LittleEndian.Uint32(b.Data[208:])) != selected {
						t.Errorf("serverSelectedProtocol is %x, want %d", b.Data[208:], selected)
					}
					if b.Type == rdp.CSMultitransport && !bytes.Equal(b.Data, make([]byte, 4)) {
						t.Errorf("multitransport is %x", b.Data)
					}
				}
				for _, b := range r.connected.Response.Blocks {
					want := rdp.ProtocolSSL
					if clientNLA {
						want |= rdp.ProtocolHybrid
					}
					if b.Type == rdp.SCCore && rdp.Protocols(binary.LittleEndian.Uint32(b.Data[4:])) != want {
						t.Errorf("clientRequestedProtocols is %x, want %d", b.Data[4:], want)
					}
				}
				var wide []byte
				for _, b := range []byte(r.secret) {
					wide = append(wide, b, 0)
				}
				if bytes.Contains(r.sent.Bytes(), wide) {
					t.Error("the launch secret went up")
				}
				// And from here on, bytes.
				if _, err := r.connected.Conn.Write(fastPath); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(fastPath))
				if _, err := io.ReadFull(r.client, got); err != nil || !bytes.Equal(got, fastPath) {
					t.Errorf("%x, %v", got, err)
				}
			})
		}
	}
}

var fastPath = []byte{0, 8, 1, 2, 3, 4, 5, 6}

// A client that joins in the usual order may be answered before it asks.
func TestAhead(t *testing.T) {
	r := through(t, &rdptest.Service{}, &rdptest.Client{Channels: channels}, func(_ *rdp.Back, f *rdp.Front) { f.Ahead = true })
	if err := errors.Join(r.serviceErr, r.backErr, r.frontErr, r.clientErr); err != nil {
		t.Fatal(err)
	}
	if err := r.connected.Conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.connected.Conn.Read(make([]byte, 1)); n != 0 {
		t.Errorf("there is an answer too many: %v", err)
	}
}

func TestChannelsLeftOut(t *testing.T) {
	r := through(t, &rdptest.Service{}, &rdptest.Client{Channels: channels}, func(b *rdp.Back, _ *rdp.Front) {
		b.Channels = sft.Channels{Devices: true, OtherDynamic: true}
	})
	if err := errors.Join(r.serviceErr, r.backErr, r.frontErr, r.clientErr); err != nil {
		t.Fatal(err)
	}
	if want := []rdp.ChannelDef{channels[2], channels[3]}; !slices.Equal(r.served.Channels, want) {
		t.Errorf("the service was asked for %+v, want %+v", r.served.Channels, want)
	}
	if got := r.connected.Channels; got["drdynvc"] != rdptest.FirstChannel || got["rdpdr"] != rdptest.FirstChannel+1 {
		t.Errorf("the client got %v", got)
	}
	if r.served.Flags&rdp.InfoCompression != 0 {
		t.Error("compression is on: what is said on drdynvc could not be read")
	}
	for _, name := range []string{"rdpsnd", "cliprdr"} {
		pdu, err := rdp.SendDataPDU{Initiator: r.connected.User, Channel: r.connected.Channels[name], Priority: 0x70, Data: []byte("secret file")}.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if out, err := r.guard.In(pdu); err != nil || len(out) != 0 {
			t.Errorf("what the client sends on %s passes: %x, %v", name, out, err)
		}
	}
}

// Where the RDP client was proven by other means, it needs no secret; and NLA,
// which needs one, is not what is chosen, whatever it offers.
func TestProven(t *testing.T) {
	for _, nla := range []bool{false, true} {
		r := through(t, &rdptest.Service{NLA: true}, &rdptest.Client{User: "nobody", NLA: nla, Channels: channels}, func(_ *rdp.Back, f *rdp.Front) { f.Proven = true })
		if err := errors.Join(r.serviceErr, r.backErr, r.frontErr, r.clientErr); err != nil {
			t.Errorf("NLA %v: %v", nla, err)
			continue
		}
		if r.served.User != "ann" {
			t.Errorf("NLA %v: the service was told %q", nla, r.served.User)
		}
	}
}

func TestWrongSecret(t *testing.T) {
	for _, nla := range []bool{false, true} {
		for name, change := range map[string]func(c *rdptest.Client, f *rdp.Front){
			"password":       func(c *rdptest.Client, f *rdp.Front) { c.Password = sft.NewSecret("guess") },
			"no password":    func(c *rdptest.Client, f *rdp.Front) { c.Password = sft.Secret{} },
			"user":           func(c *rdptest.Client, f *rdp.Front) { c.User = "eve" },
			"of another run": func(c *rdptest.Client, f *rdp.Front) { f.Secret = sft.NewSecret(strings.Repeat("A", 26)) },
		} {
			t.Run(name, func(t *testing.T) {
				c := &rdptest.Client{NLA: nla}
				r := through(t, &rdptest.Service{}, c, func(_ *rdp.Back, f *rdp.Front) { change(c, f) })
				if !errors.Is(r.frontErr, rdp.ErrSecret) {
					t.Errorf("NLA %v: Answer = %v, want %v", nla, r.frontErr, rdp.ErrSecret)
				}
				if r.served != nil {
					t.Error("the service got a Client Info")
				}
			})
		}
	}
}

// Whichever end closes, or says something else, at whichever step: both halves
// end, and with an error of the right kind.
func TestStops(t *testing.T) {
	for _, step := range rdptest.Steps {
		for _, noise := range []bool{false, true} {
			for _, nla := range []bool{false, true} {
				s, c := &rdptest.Service{NLA: nla}, &rdptest.Client{NLA: nla}
				where := func(stop, loud *rdptest.Step) {
					if *stop = step; noise {
						*stop, *loud = "", step
					}
				}
				switch step {
				case rdptest.Confirm, rdptest.Response:
					where(&s.Stop, &s.Noise)
				case rdptest.Request, rdptest.Initial, rdptest.Info:
					where(&c.Stop, &c.Noise)
				default:
					where(&s.Stop, &s.Noise)
					r := through(t, &rdptest.Service{NLA: nla}, &rdptest.Client{NLA: nla, Stop: s.Stop, Noise: s.Noise}, nil)
					if nla || step != rdptest.NLA {
						if r.frontErr == nil || errors.Is(r.frontErr, rdp.ErrSecret) || r.guard != nil && r.backErr == nil {
							t.Errorf("client stops at %s (noise %v, NLA %v): Answer = %v, Begin = %v", step, noise, nla, r.frontErr, r.backErr)
						}
					}
				}
				if step == rdptest.NLA && !nla {
					continue
				}
				r := through(t, s, c, nil)
				byService := s.Stop != "" || s.Noise != ""
				if r.backErr == nil && byService || r.frontErr == nil {
					t.Errorf("%s (noise %v, NLA %v): Back = %v, Front = %v", step, noise, nla, r.backErr, r.frontErr)
				}
				// A service that hangs up after our proof means by it that the
				// password is wrong; noise there is no answer at all.
				if code := sft.CodeOf(r.backErr); byService && code != sft.RDPUnavailable && !(step == rdptest.NLA && code == sft.RDPRefused) {
					t.Errorf("%s (noise %v, NLA %v): the code is %s: %v", step, noise, nla, code, r.backErr)
				}
			}
		}
	}
}

func TestServicesThatAreRefused(t *testing.T) {
	tests := []struct {
		name    string
		service *rdptest.Service
		change  func(*rdp.Back)
		code    sft.Code
		say     string
	}{
		{"standard RDP security alone", &rdptest.Service{RDPOnly: true}, nil, sft.RDPUnavailable, "standard RDP security alone"},
		{"another certificate", &rdptest.Service{}, func(b *rdp.Back) { b.CertificateSHA256 = strings.Repeat("0", 64) }, sft.RDPCertificate, "does not have the certificate"},
		{"another certificate, NLA", &rdptest.Service{NLA: true}, func(b *rdp.Back) { b.CertificateSHA256 = strings.Repeat("0", 64) }, sft.RDPCertificate, "does not have the certificate"},
		{"a password that NLA refuses", &rdptest.Service{NLA: true}, func(b *rdp.Back) { b.Credentials.Password = sft.NewSecret("old") }, sft.RDPRefused, "did not take the password"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := through(t, tt.service, &rdptest.Client{}, func(b *rdp.Back, _ *rdp.Front) {
				if tt.change != nil {
					tt.change(b)
				}
			})
			if sft.CodeOf(r.backErr) != tt.code || !strings.Contains(r.backErr.Error(), tt.say) {
				t.Errorf("Connect = %v (%s), want %s", r.backErr, sft.CodeOf(r.backErr), tt.code)
			}
			if strings.Contains(sft.Explain(r.backErr), realPassword) {
				t.Error("the password is in the error")
			}
			if r.frontErr != r.backErr {
				t.Errorf("Answer = %v", r.frontErr)
			}
			if r.serviceErr == nil {
				t.Error("the service was satisfied")
			}
		})
	}
}

// What is no RDP client is sent away, and nothing is opened for it.
func TestFrontOfStrangers(t *testing.T) {
	request := rdp.ConnectionRequest{Negotiates: true, Protocols: rdp.ProtocolSSL | rdp.ProtocolHybrid}.Bytes()
	tests := []struct {
		name string
		send []byte
		tls  []byte // then, inside TLS
		open bool
	}{
		{"4 KiB of noise", bytes.Repeat([]byte("\x16\x03\x01"), 1366), nil, false},
		{"zeros", make([]byte, 4096), nil, false},
		{"an X.224 of 65,535 bytes", append([]byte{3, 0, 0xff, 0xff, 0xff, 0xe0}, make([]byte, 65529)...), nil, false},
		{"no negotiation", rdp.ConnectionRequest{}.Bytes(), nil, false},
		{"RDSTLS alone", rdp.ConnectionRequest{Negotiates: true, Protocols: rdp.ProtocolRDSTLS}.Bytes(), nil, false},
		{"half a request", request[:7], nil, false},
		{"a request and noise", append(bytes.Clone(request), make([]byte, 4096)...), nil, true},
		{"a TSRequest of a claimed gigabyte", request, []byte{0x30, 0x84, 0x40, 0, 0, 0, 0xa0}, true},
		{"CredSSP version 2", request, []byte{0x30, 5, 0xa0, 3, 2, 1, 2}, true},
		{"HTTP", request, []byte("GET / HTTP/1.1\r\n\r\n"), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFront(t)
			frontEnd, client := pair(t)
			opened := false
			up, down := pair(t)
			done := make(chan error, 1)
			go func() {
				_, err := f.Answer(frontEnd, func() (rdp.Upstream, error) {
					opened = true
					return upstream{up, 0, nil}, nil
				})
				frontEnd.Close()
				up.Close()
				done <- err
			}()
			client.Write(tt.send)
			if tt.tls != nil {
				if _, err := rdp.ReadTPKT(client, 1024); err != nil {
					t.Fatal(err)
				}
				c := tls.Client(client, &tls.Config{InsecureSkipVerify: true})
				c.Write(tt.tls)
				c.CloseWrite()
				client.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, c)
			} else {
				client.(*net.TCPConn).CloseWrite()
			}
			if err := <-done; err == nil || opened != tt.open {
				t.Errorf("Answer = %v, opened %v, want %v", err, opened, tt.open)
			}
			if b, _ := io.ReadAll(down); len(b) != 0 {
				t.Errorf("%d bytes went up", len(b))
			}
		})
	}
}

// Who says nothing is waited for as long as the caller's deadline.
func TestFrontOfSilence(t *testing.T) {
	f := newFront(t)
	frontEnd, _ := pair(t)
	frontEnd.SetDeadline(time.Now().Add(50 * time.Millisecond))
	_, err := f.Answer(frontEnd, func() (rdp.Upstream, error) { panic("opened") })
	if e, ok := errors.AsType[net.Error](err); !ok || !e.Timeout() {
		t.Errorf("Answer = %v", err)
	}
}

// A service that is slow is given up when the caller's deadline has passed,
// and that is said.
func TestBackOfSilence(t *testing.T) {
	end, _ := pair(t)
	end.SetDeadline(time.Now().Add(50 * time.Millisecond))
	_, err := (&rdp.Back{}).Connect(end)
	if sft.CodeOf(err) != sft.RDPUnavailable || !strings.Contains(err.Error(), "did not answer in time") {
		t.Errorf("Connect = %v", err)
	}
}
