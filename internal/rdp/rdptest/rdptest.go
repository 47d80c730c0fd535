// Package rdptest is the two ends of an RDP connection that tests need besides
// real servers and clients: an RDP service and an RDP client that go as far as
// they are told, say something else there, or close, and after the connection
// sequence leave the bytes to the test.
package rdptest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"
	"unicode/utf16"

	"sft"
	"sft/internal/rdp"
)

// A Step is one thing that an end does in the connection sequence.
type Step string

// The steps, in order.
const (
	Request  Step = "request"  // X.224 Connection Request
	Confirm  Step = "confirm"  // X.224 Connection Confirm
	TLS      Step = "tls"      // the handshake
	NLA      Step = "nla"      // CredSSP
	Initial  Step = "initial"  // Connect Initial
	Response Step = "response" // Connect Response
	Attach   Step = "attach"   // Attach User Confirm
	Join     Step = "join"     // the first Channel Join Confirm
	Info     Step = "info"     // Client Info
)

// Steps are all of them.
var Steps = []Step{Request, Confirm, TLS, NLA, Initial, Response, Attach, Join, Info}

// ErrStopped is returned by an end that closed where it was told to.
var ErrStopped = errors.New("stopped, as told")

// IOChannel and FirstChannel are the channels' numbers of a Service.
const (
	IOChannel    = 1003
	FirstChannel = 1004
	UserChannel  = 1010
)

// Certificate makes a certificate, and its fingerprint as the product writes
// it.
func Certificate() (tls.Certificate, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	sum := sha256.Sum256(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, hex.EncodeToString(sum[:]), nil
}

// A Service is an RDP service.
type Service struct {
	Certificate tls.Certificate
	NLA         bool       // asked for; else TLS alone
	RDPOnly     bool       // standard RDP security
	User        string     // who may sign in
	Password    sft.Secret // with what
	Stop        Step       // close in the place of what it would send
	Noise       Step       // or send something else
}

// A Served is what a Service learnt.
type Served struct {
	Conn     *tls.Conn
	Channels []rdp.ChannelDef // that were asked for
	Initial  *rdp.ConnectInitial
	User     string // of the Client Info
	Password string
	Flags    uint32
}

// Serve takes one connection up to the Client Info. With NLA it also checks
// the password in CredSSP.
func (s *Service) Serve(c net.Conn) (*Served, error) {
	pdu, err := rdp.ReadTPKT(c, 1024)
	if err != nil {
		return nil, err
	}
	request, err := rdp.ParseConnectionRequest(pdu)
	if err != nil {
		return nil, err
	}
	if err := s.at(Confirm, c); err != nil {
		return nil, err
	}
	confirm := rdp.ConnectionConfirm{Negotiated: true, Selected: rdp.ProtocolSSL, Flags: rdp.FlagExtendedClientData | rdp.FlagRestrictedAdmin}
	switch {
	case s.RDPOnly:
		confirm = rdp.ConnectionConfirm{Negotiated: true, Failed: true, Failure: rdp.SSLNotAllowed}
	case s.NLA && request.Protocols&rdp.ProtocolHybrid == 0:
		confirm = rdp.ConnectionConfirm{Negotiated: true, Failed: true, Failure: rdp.HybridRequired}
	case s.NLA:
		confirm.Selected = rdp.ProtocolHybrid
	}
	if _, err := c.Write(confirm.Bytes()); err != nil {
		return nil, err
	}
	if confirm.Failed {
		return nil, ErrStopped
	}
	if err := s.at(TLS, c); err != nil {
		return nil, err
	}
	t := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{s.Certificate}, MaxVersion: tls.VersionTLS12})
	if err := t.Handshake(); err != nil {
		return nil, err
	}
	if s.NLA {
		if err := s.at(NLA, t); err != nil {
			return nil, err
		}
		leaf, err := x509.ParseCertificate(s.Certificate.Certificate[0])
		if err != nil {
			return nil, err
		}
		key, err := rdp.PublicKeyBits(leaf)
		if err != nil {
			return nil, err
		}
		if err := rdp.CredSSPAccept(t, key, s.User, s.Password, time.Now); err != nil {
			return nil, err
		}
	}
	served := &Served{Conn: t}
	if pdu, err = rdp.ReadTPKT(t, rdp.MaxConnect); err != nil {
		return nil, err
	}
	if served.Initial, err = rdp.ParseConnectInitial(pdu); err != nil {
		return nil, err
	}
	if served.Channels, err = served.Initial.Channels(); err != nil {
		return nil, err
	}
	if err := s.at(Response, t); err != nil {
		return nil, err
	}
	if _, err := t.Write(ConnectResponse(len(served.Channels), uint32(request.Protocols))); err != nil {
		return nil, err
	}
	for joins := 0; ; {
		if pdu, err = rdp.ReadTPKT(t, 16<<10); err != nil {
			return nil, err
		}
		var answer []byte
		switch rdp.KindOf(pdu) {
		case rdp.ErectDomain:
			continue
		case rdp.AttachUser:
			if err := s.at(Attach, t); err != nil {
				return nil, err
			}
			answer = rdp.AttachUserConfirm(UserChannel)
		case rdp.ChannelJoin:
			user, channel, err := rdp.ParseChannelJoinRequest(pdu)
			if err != nil {
				return nil, err
			}
			if joins++; joins == 1 {
				if err := s.at(Join, t); err != nil {
					return nil, err
				}
			}
			answer = rdp.ChannelJoinConfirm(user, channel)
		case rdp.SendData:
			if want := 2 + len(served.Channels); joins != want {
				return nil, fmt.Errorf("%d channels were joined of %d", joins, want)
			}
			return served, served.info(pdu)
		default:
			return nil, fmt.Errorf("unexpected: %x", pdu)
		}
		if _, err := t.Write(answer); err != nil {
			return nil, err
		}
	}
}

func (s *Served) info(pdu []byte) error {
	data, err := rdp.ParseSendData(pdu)
	if err != nil {
		return err
	}
	info, err := rdp.ParseClientInfo(data.Data)
	if err != nil {
		return err
	}
	s.User, s.Password, s.Flags = text(info.User), text(info.Password), info.Flags
	return nil
}

// at stops, or makes noise, where that was asked for.
func (s *Service) at(step Step, c net.Conn) error { return at(step, s.Stop, s.Noise, c) }

func at(step, stop, noise Step, c net.Conn) error {
	switch step {
	case noise:
		_, _ = c.Write([]byte("220 mail.example ESMTP ready when you are\r\n"))
		return ErrStopped
	case stop:
		c.Close()
		return ErrStopped
	}
	return nil
}

// A Client is an RDP client.
type Client struct {
	User     string
	Password sft.Secret
	NLA      bool
	Channels []rdp.ChannelDef
	Stop     Step
	Noise    Step
	Pin      string // the certificate's fingerprint; empty: any
}

// Connected is what a Client learnt.
type Connected struct {
	Conn     *tls.Conn
	User     uint16
	IO       uint16
	Channels map[string]uint16 // by name
	Response *rdp.ConnectResponse
}

// Requested are the protocols that a Client asks for.
func (c *Client) Requested() rdp.Protocols {
	if c.NLA {
		return rdp.ProtocolSSL | rdp.ProtocolHybrid
	}
	return rdp.ProtocolSSL
}

// Connect goes through the connection sequence, up to the Client Info.
func (c *Client) Connect(conn net.Conn) (*Connected, error) {
	if err := at(Request, c.Stop, c.Noise, conn); err != nil {
		return nil, err
	}
	request := rdp.ConnectionRequest{Cookie: []byte("Cookie: mstshash=user"), Negotiates: true, Protocols: c.Requested()}
	if _, err := conn.Write(request.Bytes()); err != nil {
		return nil, err
	}
	pdu, err := rdp.ReadTPKT(conn, 1024)
	if err != nil {
		return nil, err
	}
	confirm, err := rdp.ParseConnectionConfirm(pdu)
	if err != nil {
		return nil, err
	}
	if confirm.Failed {
		return nil, fmt.Errorf("negotiation failure %d", confirm.Failure)
	}
	if confirm.Flags&rdp.FlagRestrictedAdmin != 0 {
		return nil, errors.New("restricted admin mode is offered")
	}
	if err := at(TLS, c.Stop, c.Noise, conn); err != nil {
		return nil, err
	}
	t := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(cs tls.ConnectionState) error {
		sum := sha256.Sum256(cs.PeerCertificates[0].Raw)
		if c.Pin != "" && hex.EncodeToString(sum[:]) != c.Pin {
			return errors.New("another certificate")
		}
		return nil
	}})
	if err := t.Handshake(); err != nil {
		return nil, err
	}
	if confirm.Selected == rdp.ProtocolHybrid {
		if err := at(NLA, c.Stop, c.Noise, t); err != nil {
			return nil, err
		}
		key, err := rdp.PublicKeyBits(t.ConnectionState().PeerCertificates[0])
		if err != nil {
			return nil, err
		}
		if err := rdp.CredSSPConnect(t, key, rdp.Credentials{User: c.User, Password: c.Password}, "TERMSRV/localhost", false); err != nil {
			return nil, err
		}
	}
	if err := at(Initial, c.Stop, c.Noise, t); err != nil {
		return nil, err
	}
	if _, err := t.Write(ConnectInitial(c.Channels, uint32(confirm.Selected))); err != nil {
		return nil, err
	}
	return c.join(t)
}

func (c *Client) join(t *tls.Conn) (*Connected, error) {
	pdu, err := rdp.ReadTPKT(t, rdp.MaxConnect)
	if err != nil {
		return nil, err
	}
	got := &Connected{Conn: t, Channels: map[string]uint16{}}
	if got.Response, err = rdp.ParseConnectResponse(pdu); err != nil {
		return nil, err
	}
	io, ids, err := got.Response.Channels()
	if err != nil {
		return nil, err
	}
	if len(ids) != len(c.Channels) {
		return nil, fmt.Errorf("%d channels of %d", len(ids), len(c.Channels))
	}
	for i, ch := range c.Channels {
		got.Channels[ch.Name] = ids[i]
	}
	if err := at(Attach, c.Stop, c.Noise, t); err != nil {
		return nil, err
	}
	if _, err := t.Write(append(rdp.ErectDomainRequest(), rdp.AttachUserRequest()...)); err != nil {
		return nil, err
	}
	if pdu, err = rdp.ReadTPKT(t, 1024); err != nil {
		return nil, err
	}
	if got.User, err = rdp.ParseAttachUserConfirm(pdu); err != nil {
		return nil, err
	}
	got.IO = io
	if err := at(Join, c.Stop, c.Noise, t); err != nil {
		return nil, err
	}
	for _, id := range append([]uint16{got.User, io}, ids...) {
		if _, err := t.Write(rdp.ChannelJoinRequest(got.User, id)); err != nil {
			return nil, err
		}
		if pdu, err = rdp.ReadTPKT(t, 1024); err != nil {
			return nil, err
		}
		if joined, err := rdp.ParseChannelJoinConfirm(pdu); err != nil || joined != id {
			return nil, fmt.Errorf("joined %d, want %d: %v", joined, id, err)
		}
	}
	if err := at(Info, c.Stop, c.Noise, t); err != nil {
		return nil, err
	}
	_, err = t.Write(ClientInfo(got.User, io, c.User, c.Password.Reveal()))
	return got, err
}

// ClientInfo is the PDU of a Client Info (MS-RDPBCGR 2.2.1.11) with an
// extended info in which there is nothing but an address of no family.
func ClientInfo(user, io uint16, name, password string) []byte {
	info := &rdp.ClientInfo{Security: 0x40, Flags: rdp.InfoUnicode | rdp.InfoCompression, User: wide(name), Password: wide(password)}
	b, err := info.Bytes()
	if err != nil {
		panic(err) // names of tests are short
	}
	pdu, err := rdp.SendDataPDU{Initiator: user, Channel: io, Priority: 0x70, Data: b}.Bytes()
	if err != nil {
		panic(err)
	}
	return pdu
}

// ConnectInitial is a client's (MS-RDPBCGR 2.2.1.3), with a core block that
// goes up to serverSelectedProtocol, channels and multitransport.
func ConnectInitial(channels []rdp.ChannelDef, selected uint32) []byte {
	core := make([]byte, 212)
	copy(core, []byte{4, 0, 8, 0, 0, 4, 0, 3}) // version, 1024 by 768
	binary.LittleEndian.PutUint32(core[208:], selected)
	list := binary.LittleEndian.AppendUint32(nil, uint32(len(channels)))
	for _, c := range channels {
		name := make([]byte, 8)
		copy(name, c.Name)
		list = binary.LittleEndian.AppendUint32(append(list, name...), c.Options)
	}
	all := append(block(rdp.CSCore, core), block(rdp.CSSecurity, make([]byte, 8))...)
	if len(channels) > 0 {
		all = append(all, block(rdp.CSNet, list)...)
	}
	all = append(all, block(rdp.CSMultitransport, []byte{5, 1, 0, 0})...)
	gcc := conference([]byte{0, 8, 0, 0x10, 0, 1, 0xc0, 0, 'D', 'u', 'c', 'a'}, all)
	mcs := []byte{4, 1, 1, 4, 1, 1, 1, 1, 0xff}
	mcs = append(mcs, domain(34, 2, 0, 1, 0, 1, 0xffff, 2)...)
	mcs = append(mcs, domain(1, 1, 1, 1, 0, 1, 0x420, 2)...)
	mcs = append(mcs, domain(0xffff, 0xfc17, 0xffff, 1, 0, 1, 0xffff, 2)...)
	return connect(0x65, append(mcs, octets(gcc)...))
}

// ConnectResponse is a service's, with n channels from FirstChannel on.
func ConnectResponse(n int, requested uint32) []byte {
	core := binary.LittleEndian.AppendUint32([]byte{4, 0, 8, 0}, requested)
	net := binary.LittleEndian.AppendUint16(nil, IOChannel)
	net = binary.LittleEndian.AppendUint16(net, uint16(n))
	for i := range n {
		net = binary.LittleEndian.AppendUint16(net, uint16(FirstChannel+i))
	}
	if n%2 == 1 {
		net = append(net, 0, 0)
	}
	all := append(block(rdp.SCCore, core), block(rdp.SCSecurity, make([]byte, 8))...)
	all = append(all, block(rdp.SCNet, net)...)
	gcc := conference([]byte{0x14, 0x76, 0x0a, 1, 1, 0, 1, 0xc0, 0, 'M', 'c', 'D', 'n'}, all)
	mcs := append([]byte{0x0a, 1, 0, 2, 1, 0}, domain(34, 3, 0, 1, 0, 1, 0xfff8, 2)...)
	return connect(0x66, append(mcs, octets(gcc)...))
}

func block(kind uint16, data []byte) []byte {
	b := binary.LittleEndian.AppendUint16(nil, kind)
	return append(binary.LittleEndian.AppendUint16(b, uint16(4+len(data))), data...)
}

// per is a length of T.124's PER, in two bytes.
func per(n int) []byte { return []byte{0x80 | byte(n>>8), byte(n)} }

func conference(head, blocks []byte) []byte {
	inner := append(append(head, per(len(blocks))...), blocks...)
	return append(append([]byte{0, 5, 0, 0x14, 0x7c, 0, 1}, per(len(inner))...), inner...)
}

// domain is a sequence of eight integers in BER.
func domain(numbers ...uint32) []byte {
	var b []byte
	for _, n := range numbers {
		v := binary.BigEndian.AppendUint32([]byte{0}, n)
		for len(v) > 1 && v[0] == 0 && v[1] < 0x80 {
			v = v[1:]
		}
		b = append(append(b, 2, byte(len(v))), v...)
	}
	return append([]byte{0x30, byte(len(b))}, b...)
}

func octets(b []byte) []byte { return append([]byte{4, 0x82, byte(len(b) >> 8), byte(len(b))}, b...) }

func connect(kind byte, b []byte) []byte {
	b = append([]byte{2, 0xf0, 0x80, 0x7f, kind, 0x82, byte(len(b) >> 8), byte(len(b))}, b...)
	n := len(b) + 4
	return append([]byte{3, 0, byte(n >> 8), byte(n)}, b...)
}

func wide(s string) (b []byte) {
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

func text(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		u = append(u, binary.LittleEndian.Uint16(b))
	}
	return string(utf16.Decode(u))
}
