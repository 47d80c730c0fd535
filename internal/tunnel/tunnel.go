// Package tunnel makes the client's end of a stream: a TLS connection to a
// server's Access Broker on which the first frames have been exchanged, so
// that what follows are the bytes of the service alone.
//
// The client is as strict as the broker. A broker is who the platform says it
// is, or it gets nothing: its certificate must be by the project's host CA,
// for this one server, and for a key that the platform knows as this server's
// now. All of that is checked inside the handshake, before the client's own
// certificate and before the first frame.
//
// There is one TLS connection per stream and none is ever resumed, so every
// stream is proven anew.
package tunnel

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"slices"
	"syscall"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/frame"
	"sft/internal/relay"
)

// How long each step may take.
const (
	dialTime      = 10 * time.Second
	handshakeTime = 10 * time.Second // with the first frame, as the broker counts
	replyTime     = 30 * time.Second // the host may have to make the account
)

// A Broker is one server's Access Broker, with what proves it and what it
// will ask for. Dial, Ahead and Mark may be nil.
type Broker struct {
	Server   string // the server's name, for messages
	ServerID string
	Address  string // host:port
	// Dial makes the connection that TLS to the broker runs in, as that of a
	// Path does; nil: straight from here. What it returns needs deadlines.
	Dial    func(ctx context.Context, address string) (net.Conn, error)
	DNSName string   // in the broker's certificate
	CAs     [][]byte // DER of the certificates that the broker's may be signed by
	Keys    [][]byte // SHA-256 of the SPKIs that the broker's key may have
	// Certificate is the client's, with its key.
	Certificate tls.Certificate
	Clock       *api.Clock
	// Ahead, if set, returns what is sent right after the first frame, without
	// waiting for the reply. It may take its time, and be called again.
	Ahead func(context.Context) ([]byte, error)
	// Mark is told when a step is done: "dialled", "tls", "reply".
	Mark func(step string)
}

// A Stream is a connection to a service of a server. It can be closed for
// writing alone.
type Stream interface {
	net.Conn
	CloseWrite() error
}

// Open makes a stream: it connects, has the broker prove itself, sends hello
// with a proof of its own and reads the reply. A broker's refusal comes back as *sft.Error. If
// ctx ends first, so does Open; a stream that was returned lives on.
func (b *Broker) Open(ctx context.Context, hello frame.Hello) (Stream, frame.Reply, error) {
	conn, err := b.handshake(ctx)
	if err != nil {
		return nil, frame.Reply{}, err
	}
	// Only a deadline in the past ends a read that is under way.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	reply, err := b.greet(ctx, conn, hello)
	if !stop() || err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, frame.Reply{}, err
	}
	return conn, reply, nil
}

func (b *Broker) mark(step string) {
	if b.Mark != nil {
		b.Mark(step)
	}
}

// handshake returns a connection to a proven broker on which nothing has been
// sent yet. Writing on it fails 10 s after it was begun.
func (b *Broker) handshake(ctx context.Context) (*tls.Conn, error) {
	raw, err := b.dial(ctx)
	if err != nil {
		return nil, err
	}
	b.mark("dialled")
	roots := x509.NewCertPool()
	for _, der := range b.CAs {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			raw.Close()
			return nil, &sft.Error{Code: sft.Internal, Msg: "the platform's host CA certificate is not readable", Err: err,
				Hint: "ask an administrator of the platform"}
		}
		roots.AddCert(ca)
	}
	conn := tls.Client(relay.Wrap(raw), &tls.Config{
		MinVersion: tls.VersionTLS12,

		DynamicRecordSizingDisabled: true, // records are gathered before they leave
		NextProtos:                  []string{frame.ALPN},
		Certificates:                []tls.Certificate{b.Certificate},
		// The chain, its names and its times are checked by crypto/tls; what
		// it does not check is in verify.
		RootCAs:                roots,
		ServerName:             b.DNSName,
		Time:                   b.Clock.Now,
		VerifyConnection:       b.verify,
		SessionTicketsDisabled: true,
	})
	conn.SetDeadline(time.Now().Add(handshakeTime + patience(raw)))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, b.explain(err, false)
	}
	b.mark("tls")
	return conn, nil
}

// dial connects to the broker's port. An error says whether it is the way
// there that failed, or its end.
func (b *Broker) dial(ctx context.Context) (net.Conn, error) {
	dial, from := b.Dial, "from the last hop"
	if dial == nil {
		d := net.Dialer{Timeout: dialTime}
		dial, from = func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }, "from here"
	}
	conn, err := dial(ctx, b.Address)
	if err == nil {
		return conn, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	_, way := errors.AsType[*sft.Error](err)
	if _, far := errors.AsType[*farError](err); way && !far {
		return nil, err
	}
	return nil, &sft.Error{Code: sft.Unavailable, Err: err,
		Msg:  fmt.Sprintf("no answer from the broker of %s at %s: %s", b.Server, b.Address, reason(err)),
		Hint: "check that sftd runs there and that its port can be reached " + from}
}

// errUnproven is what verify returns; explain words it.
type errUnproven string

func (e errUnproven) Error() string { return string(e) }

// verify runs after the chain has been verified and before anything of the
// client's is sent. It is the last word on who the broker is.
func (b *Broker) verify(cs tls.ConnectionState) error {
	leaf := cs.PeerCertificates[0]
	spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	switch {
	case cs.NegotiatedProtocol != frame.ALPN:
		return errUnproven("it does not speak " + frame.ALPN)
	case len(cs.VerifiedChains) == 0:
		return errUnproven("its certificate was not verified")
	case !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth):
		return errUnproven("its certificate is not for servers") // crypto/x509 takes one without any usage
	case !slices.ContainsFunc(b.Keys, func(k []byte) bool { return string(k) == string(spki[:]) }):
		return errUnproven("its key is not the one that the platform knows")
	case cs.DidResume:
		return errUnproven("it resumed a session")
	}
	return nil
}

// greet sends the first frame and reads the reply.
func (b *Broker) greet(ctx context.Context, conn *tls.Conn, hello frame.Hello) (frame.Reply, error) {
	key, ok := b.Certificate.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return frame.Reply{}, errors.New("the certificate's key is not ECDSA")
	}
	var ahead []byte
	var err error
	if b.Ahead != nil {
		if ahead, err = b.Ahead(ctx); err != nil {
			return frame.Reply{}, err
		}
	}
	first, err := frame.Sign(hello, b.ServerID, key, api.RandomID(), b.Clock.Now())
	if err != nil {
		return frame.Reply{}, err
	}
	var both bytes.Buffer
	if err := frame.Write(&both, first); err != nil {
		return frame.Reply{}, err
	}
	both.Write(ahead)
	if _, err := conn.Write(both.Bytes()); err != nil {
		return frame.Reply{}, b.explain(err, true)
	}
	conn.SetDeadline(time.Now().Add(replyTime))
	answer, err := frame.Read(conn)
	if err != nil {
		return frame.Reply{}, b.explain(err, true)
	}
	reply, err := decodeReply(answer)
	if err != nil {
		return frame.Reply{}, b.explain(err, true)
	}
	if reply.Error != nil {
		return frame.Reply{}, reply.Error
	}
	b.mark("reply")
	return reply, conn.SetDeadline(time.Time{})
}

// decodeReply reads a broker's frame. A refusal in it has a code and a
// message, whatever the broker sent.
func decodeReply(b []byte) (frame.Reply, error) {
	var r frame.Reply
	if err := frame.Decode(b, &r); err != nil {
		return frame.Reply{}, err
	}
	if r.Error != nil {
		if r.Error.Code == "" {
			r.Error.Code = sft.Internal
		}
		if r.Error.Msg == "" {
			r.Error.Msg = "the broker refused without a reason"
		}
	}
	return r, nil
}

// explain says what went wrong once the connection stood. Whatever has no
// better reason than that the peer is strange counts as not proven.
func (b *Broker) explain(err error, sent bool) error {
	if lost, ok := errors.AsType[*lostError](err); ok {
		return lost.e // on the way; the broker is innocent
	}
	e := &sft.Error{Err: err}
	unproven := func(why string) error {
		e.Code = sft.Invalid
		e.Msg = fmt.Sprintf("what answers at %s did not prove that it is %s: %s; nothing was sent to it", b.Address, b.Server, why)
		e.Hint = "try again in a minute; if it stays so, tell an administrator: somebody may be between you and the server"
		return e
	}
	if why, ok := errors.AsType[errUnproven](err); ok {
		return unproven(string(why))
	}
	if c, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return unproven(certificateReason(c.Err))
	}
	if h, ok := errors.AsType[tls.RecordHeaderError](err); ok && !sent {
		return unproven("it does not speak TLS: " + h.Msg)
	}
	timeout, _ := errors.AsType[net.Error](err)
	switch number := alert(err); {
	case number >= badCertificate && number <= accessDenied || number == certificateRequired:
		e.Code = sft.Denied
		e.Msg = fmt.Sprintf("the broker of %s refused the certificate that the platform issued", b.Server)
		e.Hint = "try again; if it stays so, check the clock of the server and that it is in touch with the platform"
	case number == protocolVersion:
		return unproven("it speaks no version of TLS from 1.2 on")
	case number == noApplicationProtocol:
		return unproven("it does not speak " + frame.ALPN)
	case timeout != nil && timeout.Timeout():
		e.Code = sft.Unavailable
		e.Msg = fmt.Sprintf("the broker of %s at %s did not answer in time", b.Server, b.Address)
		e.Hint = "try again; if it stays so, look at \"sftd status\" on the server"
	case errors.Is(err, frame.ErrTooLarge), sft.CodeOf(err) == sft.Invalid:
		e.Code = sft.Internal
		e.Msg = fmt.Sprintf("the answer of the broker of %s is not readable: %s", b.Server, err)
		e.Hint = "check that sft and sftd are of the same version"
	case sent || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
		e.Code = sft.Unavailable
		e.Msg = fmt.Sprintf("the broker of %s at %s hung up", b.Server, b.Address)
		e.Hint = "try again; if it stays so, look at \"sftd status\" on the server"
	default:
		return unproven(err.Error())
	}
	return e
}

// TLS alerts that mean something to a person (RFC 8446, section 6).
const (
	badCertificate        = 42
	accessDenied          = 49
	protocolVersion       = 70
	certificateRequired   = 116
	noApplicationProtocol = 120
)

// alert returns the number of the TLS alert that the peer sent, or 0.
// Package tls has a number type for it, which it does not export.
func alert(err error) uint64 {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return 0
	}
	if v := reflect.ValueOf(op.Err); v.Kind() == reflect.Uint8 {
		return v.Uint()
	}
	return 0
}

// certificateReason says what is wrong with a broker's certificate, without
// names that mean nothing to the reader.
func certificateReason(err error) string {
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "its certificate is for another server"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "its certificate is not by the project's host CA"
	}
	if i, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch i.Reason {
		case x509.Expired:
			return "its certificate has expired, or is not valid yet"
		case x509.IncompatibleUsage:
			return "its certificate is not for servers"
		}
	}
	return "its certificate is wrong: " + err.Error()
}

// reason is the part of a dialling error that people read: "connection
// refused", not the addresses again.
func reason(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		if op.Timeout() {
			return "no connection within " + dialTime.String()
		}
		return op.Err.Error()
	}
	return err.Error()
}
