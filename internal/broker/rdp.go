package broker

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"sft"
	"sft/internal/frame"
	"sft/internal/rdp"
	"sft/internal/relay"
)

// How long the steps of signing in to an RDP service may take.
const (
	// signInTime is for the service: negotiation, TLS, NLA.
	signInTime = 20 * time.Second
	// initialTime is for the client to begin. The RDP service waits no longer.
	initialTime = 45 * time.Second
	// infoTime is from there to the Client Info: an RDP client may ask the
	// person about the certificate.
	infoTime = 2 * time.Minute
)

// inject signs in to the RDP service of st, answers the client with reply,
// completed, and takes the connection to where bytes are only copied. It reports whether st is to be run;
// if not, st has its reason, and the client was told.
func (s *Server) inject(c *tls.Conn, st *stream, r *RDPService, reply []byte) bool {
	session, err := s.signIn(st, r)
	if err != nil {
		clear(reply)
		st.because(whyRefused(err))
		s.refuse(c, err)
		return false
	}
	if reply, err = completed(reply, session); err != nil {
		st.because(Failed)
		s.refuse(c, err)
		return false
	}
	if err := s.reply(c, reply); err != nil {
		st.because(Aborted)
		return false
	}
	c.SetReadDeadline(time.Now().Add(initialTime))
	session.Conn.SetDeadline(time.Now().Add(initialTime + infoTime))
	guard, err := session.Begin(func(max int) ([]byte, error) {
		pdu, err := nextPDU(c, max)
		c.SetReadDeadline(time.Now().Add(infoTime))
		return pdu, err
	}, c)
	if err != nil {
		var gone aborted
		e, told := errors.AsType[*sft.Error](err)
		switch {
		case errors.As(err, &gone):
			st.because(Aborted + ": " + string(gone))
		case told:
			st.because(whyRefused(err))
			if notice(c, e) == nil {
				s.part(c)
			}
		default:
			st.because(Aborted)
		}
		return false
	}
	c.SetReadDeadline(time.Time{})
	session.Conn.SetDeadline(time.Time{})
	st.adopt(session.Conn, guard)
	return true
}

// signIn negotiates with the service.
func (s *Server) signIn(st *stream, r *RDPService) (*rdp.Service, error) {
	raw := relay.Wrap(st.service)
	raw.SetDeadline(time.Now().Add(signInTime))
	host := r.Domain
	if host == "" {
		host = "localhost"
	}
	b := &rdp.Back{Credentials: rdp.Credentials{Domain: r.Domain, User: r.Login, Password: r.Password.Secret}, Host: host,
		CertificateSHA256: r.CertificateSHA256, Channels: r.Channels}
	session, err := b.Connect(raw)
	if err == nil {
		raw.SetDeadline(time.Time{})
	}
	return session, err
}

// whyRefused is what a Monitor is told of a sign-in that came to nothing.
func whyRefused(err error) string {
	switch code := sft.CodeOf(err); code {
	case sft.RDPRefused:
		return PasswordRefused
	case sft.Invalid: // it is the client's doing
		return Aborted + ": " + string(code)
	default:
		return ServiceRefused + ": " + string(code)
	}
}

// completed adds to the Monitor's reply what the service has selected.
func completed(reply []byte, session *rdp.Service) ([]byte, error) {
	defer clear(reply)
	var r frame.Reply
	if err := frame.Decode(reply, &r); err != nil {
		return nil, err
	}
	if r.RDP == nil || r.RDP.SignIn != frame.Inject {
		return nil, fmt.Errorf("the monitor's reply is not one to %s", frame.Inject)
	}
	r.RDP.SelectedProtocol, r.RDP.NegotiationFlags = uint32(session.Selected), session.Flags
	return json.Marshal(r)
}

// aborted is the error of a client that took back what it had asked for.
type aborted string

func (a aborted) Error() string { return "the client aborted: " + string(a) }

// nextPDU returns the client's next PDU, or its notice as an error.
func nextPDU(c *tls.Conn, max int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, err
	}
	r := io.MultiReader(bytes.NewReader(head[:]), c)
	if !frame.IsNotice(head[:]) {
		return rdp.ReadTPKT(r, max)
	}
	b, err := frame.Read(r)
	if err != nil {
		return nil, err
	}
	var n frame.Notice
	if err := frame.Decode(b, &n); err != nil {
		return nil, err
	}
	switch n.Abort {
	case frame.AbortSecret, frame.AbortClient:
		return nil, aborted(n.Abort)
	}
	return nil, aborted("unknown") // what is not in the list is not repeated
}

// notice tells the client why its connection ends, where an RDP PDU would
// begin.
func notice(c *tls.Conn, e *sft.Error) error {
	b, err := json.Marshal(frame.Notice{Error: e})
	if err != nil {
		return err
	}
	c.SetWriteDeadline(time.Now().Add(partingTime))
	return frame.Write(c, b)
}
