package rdp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"time"

	"sft"
)

// A Front speaks to the person's RDP client, in the service's place. It is
// made for one launch, and lives as long as the session: an RDP client opens
// several connections, and comes back with the same secret.
type Front struct {
	Login  string     // the user name that the client has to show; case does not count
	Secret sft.Secret // and the password: the launch secret
	// Fingerprint is the SHA-256 of the Front's certificate, in lower-case
	// hex, for the client to pin.
	Fingerprint string
	// Ahead says that the client joins the user's channel, the I/O channel, the
	// message channel and the others in this order, as FreeRDP 2 does: it is
	// answered before it asks. FreeRDP 2 may wait a tenth of a second for each
	// answer that is not there yet.
	Ahead bool
	// Proven says that who connects has been proven to be the RDP client by
	// other means. No secret is asked for, and so no NLA, which needs one.
	Proven bool

	certificate tls.Certificate
	key         []byte // its public key, as CredSSP binds it
}

// An Upstream is the way to an RDP service: what follows its negotiation.
type Upstream interface {
	// Next returns the service's next PDU, of at most max bytes.
	Next(max int) ([]byte, error)
	Write([]byte) (int, error)
	// Flags are those of the service's RDP_NEG_RSP.
	Flags() byte
}

// A Key is the kind of key that a Front has.
type Key int

// The kinds of keys. Every RDP client takes RSA, which takes a tenth of a
// second to make, and sometimes half of one.
const (
	RSA  Key = iota // 2048 bits
	P256            // made at once
)

// NewFront makes the certificate and the launch secret of one launch.
func NewFront(login string, kind Key) (*Front, error) {
	var key crypto.Signer
	var err error
	if kind == P256 {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	} else {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	// Its times are what clients need to see; it is trusted by its
	// fingerprint, and gone with the process.
	now := time.Now()
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "sft"}, NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(8 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	bits, err := PublicKeyBits(leaf)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return &Front{Login: login, Secret: sft.NewSecret(rand.Text()), Fingerprint: hex.EncodeToString(sum[:]),
		certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, key: bits}, nil
}

// Thumbprint returns the SHA-1 of the Front's certificate, by which mstsc knows
// one that the person has taken.
func (f *Front) Thumbprint() []byte {
	sum := sha1.Sum(f.certificate.Certificate[0])
	return sum[:]
}

// ErrSecret says that whoever is at the RDP client's end does not know the
// launch secret.
var ErrSecret = errors.New("it did not show the secret of this launch")

// Answer takes an RDP client from its first byte to its Client Info. open is
// called once it has asked for something that can be answered, and returns
// the way to the service. The caller sets the deadline of c.
//
// Until the client has proven the launch secret, nothing goes up but its
// Connect Initial. The error is open's or the Upstream's as it was, ErrSecret,
// or says what is wrong with the client.
func (f *Front) Answer(c net.Conn, open func() (Upstream, error)) (*tls.Conn, error) {
	pdu, err := ReadTPKT(c, maxRequest)
	if err != nil {
		return nil, err
	}
	request, err := ParseConnectionRequest(pdu)
	if err != nil {
		return nil, err
	}
	var selected Protocols
	switch {
	case request.Negotiates && request.Protocols&ProtocolHybrid != 0 && !f.Proven:
		selected = ProtocolHybrid
	case request.Negotiates && request.Protocols&ProtocolSSL != 0:
		selected = ProtocolSSL
	default:
		_, _ = c.Write(ConnectionConfirm{Negotiated: true, Failed: true, Failure: SSLRequired}.Bytes())
		return nil, errors.New("it offers neither TLS nor NLA")
	}
	up, err := open()
	if err != nil {
		return nil, err
	}
	confirm := ConnectionConfirm{Negotiated: true, Selected: selected, Flags: up.Flags() &^ (FlagRestrictedAdmin | FlagRedirectedAuth)}
	if _, err := c.Write(confirm.Bytes()); err != nil {
		return nil, err
	}
	t := tls.Server(c, &tls.Config{
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
		Certificates:                []tls.Certificate{f.certificate},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	})
	if err := t.Handshake(); err != nil {
		return nil, err
	}
	if selected == ProtocolHybrid {
		err := CredSSPAccept(t, f.key, f.Login, f.Secret, time.Now)
		if errors.Is(err, ErrLogon) {
			return nil, ErrSecret
		}
		if err != nil {
			return nil, err
		}
	}
	info, err := f.join(t, up, request.Protocols)
	if err != nil {
		return nil, err
	}
	return t, f.inform(up, info, selected == ProtocolHybrid)
}

// maxRequest caps a client's Connection Request.
const maxRequest = 1024

// maxJoin caps a PDU of MCS before the Client Info, and the Client Info.
const maxJoin = maxInfo

// join is the client's part of the MCS connection, up to its Client Info,
// which is returned. The service's part is done at the other end.
func (f *Front) join(t *tls.Conn, up Upstream, requested Protocols) (SendDataPDU, error) {
	none := SendDataPDU{}
	pdu, err := ReadTPKT(t, MaxConnect)
	if err != nil {
		return none, err
	}
	if _, err := ParseConnectInitial(pdu); err != nil {
		return none, err
	}
	if _, err := up.Write(pdu); err != nil {
		return none, err
	}
	if pdu, err = up.Next(MaxConnect); err != nil {
		return none, err
	}
	response, err := ParseConnectResponse(pdu)
	if err != nil {
		return none, err
	}
	// A client compares what the service says that it had asked for with
	// what it did ask for.
	if err := response.SetClientRequested(requested); err != nil {
		return none, err
	}
	main, ids, err := response.Channels()
	if err != nil {
		return none, err
	}
	if pdu, err = response.Bytes(); err != nil {
		return none, err
	}
	confirm, err := up.Next(maxNegotiation)
	if err != nil {
		return none, err
	}
	user, err := ParseAttachUserConfirm(confirm)
	if err != nil {
		return none, err
	}
	joins := []uint16{user, main}
	if id, ok := response.MessageChannel(); ok {
		joins = append(joins, id)
	}
	ids = append(joins, ids...)
	if f.Ahead {
		pdu = append(pdu, AttachUserConfirm(user)...)
		for _, id := range ids {
			pdu = append(pdu, ChannelJoinConfirm(user, id)...)
		}
	}
	if _, err := t.Write(pdu); err != nil {
		return none, err
	}
	for range 3 + 2*len(ids) {
		if pdu, err = ReadTPKT(t, maxJoin); err != nil {
			return none, err
		}
		var answer []byte
		switch KindOf(pdu) {
		case ErectDomain:
		case AttachUser:
			answer = AttachUserConfirm(user)
		case ChannelJoin:
			by, id, err := ParseChannelJoinRequest(pdu)
			if err != nil {
				return none, err
			}
			if by != user || !slices.Contains(ids, id) {
				return none, fmt.Errorf("it joins channel %d, which there is not", id)
			}
			answer = ChannelJoinConfirm(user, id)
		case SendData:
			data, err := ParseSendData(pdu)
			if err == nil && (data.Indication || data.Initiator != user || data.Channel != main || !IsClientInfo(data.Data)) {
				err = errors.New("there is something in the place of the Client Info")
			}
			return data, err
		default:
			return none, errors.New("it sends something that does not belong before the Client Info")
		}
		if f.Ahead || len(answer) == 0 {
			continue
		}
		if _, err := t.Write(answer); err != nil {
			return none, err
		}
	}
	return none, errors.New("it joins channels without end")
}

// inform checks the launch secret, where NLA has not, and passes the Client
// Info on without it: the other end puts the account into it.
func (f *Front) inform(up Upstream, data SendDataPDU, proven bool) error {
	info, err := ParseClientInfo(data.Data)
	if err != nil {
		return err
	}
	defer info.Wipe()
	if !proven && !f.Proven && !f.knows(info) {
		return ErrSecret
	}
	info.Domain, info.User, info.Password = nil, nil, nil
	if data.Data, err = info.Bytes(); err != nil {
		return err
	}
	pdu, err := data.Bytes()
	if err != nil {
		return err
	}
	_, err = up.Write(pdu)
	return err
}

// knows reports whether a Client Info shows the launch secret.
func (f *Front) knows(info *ClientInfo) bool {
	secret := utf16Bytes(f.Secret.Reveal())
	defer clear(secret)
	user, ok := utf16String(info.User)
	return ok && strings.EqualFold(user, f.Login) && subtle.ConstantTimeCompare(info.Password, secret) == 1
}
