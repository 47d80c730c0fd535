package rdp

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"sft"
)

// A Back signs in to an RDP service, in the client's place.
type Back struct {
	Credentials Credentials
	// Host is the name that NLA is asked for, as TERMSRV/Host.
	Host string
	// CertificateSHA256 is the fingerprint, in lower-case hex, of the
	// certificate that the service is configured with. Nothing secret is sent
	// to who does not have its key.
	CertificateSHA256 string
	Channels          sft.Channels
}

// A Service is an RDP service that has proven itself, and to which, where it
// wants NLA, the account has signed in.
type Service struct {
	Conn     *tls.Conn
	Selected Protocols // ProtocolSSL, ProtocolHybrid or ProtocolHybridEx
	Flags    byte      // of its RDP_NEG_RSP, without those that mean other ways to sign in

	back *Back
}

// maxInfo caps the PDU of a Client Info: five fields of 512 bytes, and the
// extended info.
const maxInfo = 8 << 10

// Connect negotiates with the service at the other end of c, and signs in to
// it if it wants NLA. The caller sets the deadline, and closes c.
//
// The errors are *sft.Error: RDPUnavailable, RDPCertificate, or RDPRefused if
// the service did not take the password.
func (b *Back) Connect(c net.Conn) (*Service, error) {
	// The request is our own: no cookie, no correlation, and no flag that
	// would have the service take something else than a password.
	request := ConnectionRequest{Negotiates: true, Protocols: ProtocolSSL | ProtocolHybrid | ProtocolHybridEx}
	if _, err := c.Write(request.Bytes()); err != nil {
		return nil, silent(err)
	}
	pdu, err := ReadTPKT(c, maxNegotiation)
	if err != nil {
		return nil, silent(err)
	}
	confirm, err := ParseConnectionConfirm(pdu)
	if err != nil {
		return nil, odd(err)
	}
	if err := acceptable(confirm); err != nil {
		return nil, err
	}
	s := &Service{Selected: confirm.Selected, Flags: confirm.Flags &^ (FlagRestrictedAdmin | FlagRedirectedAuth), back: b}
	if err := s.secure(c); err != nil {
		return nil, err
	}
	if s.Selected == ProtocolSSL {
		return s, nil
	}
	key, err := PublicKeyBits(s.Conn.ConnectionState().PeerCertificates[0])
	if err != nil {
		return nil, odd(err)
	}
	err = CredSSPConnect(s.Conn, key, b.Credentials, "TERMSRV/"+b.Host, s.Selected == ProtocolHybridEx)
	switch {
	case err == nil:
		return s, nil
	case errors.Is(err, ErrLogon):
		return nil, &sft.Error{Code: sft.RDPRefused, Err: err, Msg: "the RDP service did not take the password that was set a moment ago: " + err.Error(),
			Hint: "try again; if it stays so, ask the host's administrator what the RDP service checks accounts by"}
	case errors.Is(err, ErrEarlyDenied):
		return nil, &sft.Error{Code: sft.RDPUnavailable, Err: err, Msg: "the RDP service does not let this account in",
			Hint: "ask the host's administrator to let its group sign in by Remote Desktop"}
	}
	return nil, silent(err)
}

// maxNegotiation caps the answer to a Connection Request, which has 19 bytes.
const maxNegotiation = 512

// acceptable refuses a service whose way to sign in is none that is safe.
func acceptable(c ConnectionConfirm) error {
	unusable := func(what, hint string) error {
		return &sft.Error{Code: sft.RDPUnavailable, Msg: "the RDP service of the host cannot be used: " + what, Hint: hint}
	}
	switch {
	case c.Failed && c.Failure == SSLNotAllowed, !c.Failed && !c.Negotiated, !c.Failed && c.Selected == ProtocolRDP:
		return unusable("it offers standard RDP security alone, in which nobody can tell it from another",
			"let it offer TLS: security_layer=negotiate and a readable key in xrdp.ini, or SecurityLayer 2 on Windows")
	case c.Failed && c.Failure == SSLCertNotOnServer:
		return unusable("it has no certificate", "give it one, then try again")
	case c.Failed:
		return unusable(fmt.Sprintf("it refuses to negotiate, with failure %d", c.Failure), "look at its log")
	case c.Selected != ProtocolSSL && c.Selected != ProtocolHybrid && c.Selected != ProtocolHybridEx:
		return unusable(fmt.Sprintf("it selected protocol %d, which was not offered", c.Selected), "look at what listens in its place")
	}
	return nil
}

// errPin is what the handshake ends with if the certificate is another one.
var errPin = errors.New("another certificate")

// secure is the TLS handshake. Version 1.2: with 1.3, NLA of some Windows
// versions does not work.
func (s *Service) secure(c net.Conn) error {
	s.Conn = tls.Client(c, &tls.Config{
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
		SessionTicketsDisabled:      true, // CredSSP forbids resumption
		DynamicRecordSizingDisabled: true,
		InsecureSkipVerify:          true, // the one certificate is known
		VerifyConnection: func(cs tls.ConnectionState) error {
			sum := sha256.Sum256(cs.PeerCertificates[0].Raw)
			if hex.EncodeToString(sum[:]) != s.back.CertificateSHA256 {
				return errPin
			}
			return nil
		},
	})
	err := s.Conn.Handshake()
	if errors.Is(err, errPin) {
		return &sft.Error{Code: sft.RDPCertificate, Msg: "what answers in the RDP service's place does not have the certificate that the service is configured with; nothing was sent to it",
			Hint: "restart the RDP service if its certificate was changed, or set RDPCertificateFile in sftd.yaml; if neither helps, see what listens on its port"}
	}
	if err != nil {
		return silent(err)
	}
	return nil
}

// silent is about a service that did not go on.
func silent(err error) error {
	var what string
	e, isNet := errors.AsType[net.Error](err)
	switch {
	case isNet && e.Timeout():
		what = "it did not answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		what = "it closed the connection in the middle of the negotiation"
	case isNet, errors.Is(err, net.ErrClosed):
		what = "it broke off the connection: " + err.Error()
	default:
		return odd(err)
	}
	return &sft.Error{Code: sft.RDPUnavailable, Msg: "the RDP service of the host cannot be used: " + what, Err: err, Hint: "look at the RDP service's log, then try again"}
}

// odd is about a service that says what no RDP service says.
func odd(err error) error {
	return &sft.Error{Code: sft.RDPUnavailable, Msg: "what answers in the RDP service's place does not speak RDP as expected: " + err.Error(), Err: err, Hint: "see what listens on its port"}
}

// wrong is about a client that says what no RDP client says.
func wrong(err error) error {
	return &sft.Error{Code: sft.Invalid, Msg: "the RDP client does not speak RDP as expected: " + err.Error(), Err: err, Hint: "use another RDP client"}
}

// Begin takes the connection from the client's Connect Initial to its Client
// Info, into which it puts the account. next returns the client's next PDU of
// at most max bytes, w takes what goes to the client. The MCS domain is joined
// here, on the host's loopback: the client gets Connect Response and Attach
// User Confirm in one, and nobody waits for a round trip per channel.
//
// An error that is an *sft.Error is for the person; any other is the
// connection's.
func (s *Service) Begin(next func(max int) ([]byte, error), w io.Writer) (*Guard, error) {
	pdu, err := next(MaxConnect)
	if err != nil {
		return nil, err
	}
	initial, err := ParseConnectInitial(pdu)
	if err != nil {
		return nil, wrong(err)
	}
	asked, err := initial.Channels()
	if err != nil {
		return nil, wrong(err)
	}
	kept := slices.DeleteFunc(slices.Clone(asked), func(c ChannelDef) bool { return !Allows(s.back.Channels, c.Name, false) })
	if err := initial.SetChannels(kept); err != nil {
		return nil, wrong(err)
	}
	if err := initial.SetServerSelected(s.Selected); err != nil {
		return nil, wrong(err)
	}
	initial.NoMultitransport() // no UDP beside the tunnel
	if pdu, err = initial.Bytes(); err != nil {
		return nil, wrong(err)
	}
	if pdu, err = s.ask(pdu); err != nil {
		return nil, err
	}
	response, err := ParseConnectResponse(pdu)
	if err != nil {
		return nil, odd(err)
	}
	if response.Result != 0 {
		return nil, odd(fmt.Errorf("it refused the conference with result %d", response.Result))
	}
	main, ids, err := response.Channels()
	if err != nil {
		return nil, odd(err)
	}
	if len(ids) != len(kept) {
		return nil, odd(fmt.Errorf("it made %d channels of %d", len(ids), len(kept)))
	}
	message, hasMessage := response.MessageChannel()
	user, err := s.join(main, message, hasMessage, ids)
	if err != nil {
		return nil, err
	}
	g := &Guard{main: main, user: user, service: s.Conn, known: append([]uint16{main, user}, made(ids)...)}
	if s.back.Channels != sft.AllChannels {
		g.policy = &s.back.Channels
	}
	if hasMessage {
		g.known = append(g.known, message)
	}
	// The client gets a channel for each that it asked for. Those that were
	// left out have a number that the service does not know.
	all := make([]uint16, 0, len(asked))
	free := uint16(0xF000)
	for _, c := range asked {
		var id uint16
		if Allows(s.back.Channels, c.Name, false) {
			id, ids = ids[0], ids[1:]
		}
		if id == 0 {
			for slices.Contains(g.known, free) {
				free++
			}
			id = free
			free++
		} else if strings.EqualFold(c.Name, dynamicCarrier) {
			g.dynamic = id
		}
		all = append(all, id)
	}
	response.SetChannels(main, all)
	response.Drop(SCMultitransport)
	if pdu, err = response.Bytes(); err != nil {
		return nil, odd(err)
	}
	if _, err := w.Write(append(pdu, AttachUserConfirm(user)...)); err != nil {
		return nil, err
	}
	return g, s.inform(next, g)
}

// made are the channels that the service did make: one that it did not has the
// number 0 (MS-RDPBCGR 2.2.1.4.4).
func made(ids []uint16) []uint16 {
	return slices.DeleteFunc(slices.Clone(ids), func(id uint16) bool { return id == 0 })
}

// ask sends a PDU to the service and returns its answer.
func (s *Service) ask(pdu []byte) ([]byte, error) {
	if _, err := s.Conn.Write(pdu); err != nil {
		return nil, silent(err)
	}
	answer, err := ReadTPKT(s.Conn, MaxConnect)
	if err != nil {
		return nil, silent(err)
	}
	return answer, nil
}

// join is MS-RDPBCGR 1.3.1.1, channel connection, with nobody far away.
func (s *Service) join(main, message uint16, hasMessage bool, ids []uint16) (user uint16, err error) {
	if _, err := s.Conn.Write(ErectDomainRequest()); err != nil {
		return 0, silent(err)
	}
	pdu, err := s.ask(AttachUserRequest())
	if err != nil {
		return 0, err
	}
	if user, err = ParseAttachUserConfirm(pdu); err != nil {
		return 0, odd(err)
	}
	channels := []uint16{user, main}
	if hasMessage {
		channels = append(channels, message)
	}
	for _, id := range append(channels, made(ids)...) {
		if pdu, err = s.ask(ChannelJoinRequest(user, id)); err != nil {
			return 0, err
		}
		if _, err = ParseChannelJoinConfirm(pdu); err != nil {
			return 0, odd(err)
		}
	}
	return user, nil
}

// inform passes the Client Info on, with the account in it.
func (s *Service) inform(next func(max int) ([]byte, error), g *Guard) error {
	pdu, err := next(maxInfo)
	if err != nil {
		return err
	}
	data, err := ParseSendData(pdu)
	if err != nil {
		return wrong(err)
	}
	if data.Indication || data.Channel != g.main || data.Initiator != g.user || !IsClientInfo(data.Data) {
		return wrong(errors.New("there is something in the place of the Client Info"))
	}
	info, err := ParseClientInfo(data.Data)
	if err != nil {
		return wrong(err)
	}
	defer info.Wipe()
	c := s.back.Credentials
	info.Domain, info.User, info.Password = utf16Bytes(c.Domain), utf16Bytes(c.User), nil
	if s.Selected == ProtocolSSL {
		info.Password = utf16Bytes(c.Password.Reveal())
	}
	info.Flags = info.Flags&^InfoPasswordIsPIN | InfoAutologon
	if g.policy != nil {
		info.Flags &^= InfoCompression // or what a channel says could not be read
	}
	if data.Data, err = info.Bytes(); err != nil {
		return wrong(err)
	}
	defer clear(data.Data)
	if pdu, err = data.Bytes(); err != nil {
		return wrong(err)
	}
	defer clear(pdu)
	if _, err := s.Conn.Write(pdu); err != nil {
		return silent(err)
	}
	return nil
}
