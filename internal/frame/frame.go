// Package frame is what the Access Broker and its client say to each other
// before the bytes of a service flow: one frame each way, each a 4-byte
// big-endian length and a JSON object of at most 64 KiB.
//
// The client's frame names a service and a session and carries a proof: a JWS
// (RFC 7515, ES256) by the key of the client's certificate over the server,
// the session, the service, a number used once and the SHA-256 of the frame
// without the proof. The broker passes the frame on as it came; the monitor,
// which trusts neither broker nor network, verifies it with Verify. So a
// broker that was taken over cannot open anything by replaying what it saw.
package frame

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"sft"
)

// MaxSize is the largest frame, without its length, in bytes.
const MaxSize = 64 << 10

// ALPN is the protocol name of the Access Broker (RFC 7301).
const ALPN = "sft-broker/1"

// The services of the broker.
const (
	RDP  = "rdp"
	SSH  = "ssh"
	Ping = "ping"
)

// A Hello is the client's frame.
type Hello struct {
	Service string `json:"service"`
	Session string `json:"session"`
	Proof   string `json:"proof,omitempty"` // compact JWS, see Sign
}

// A Reply is the broker's frame. Either Error is set, or the fields of the
// service are.
type Reply struct {
	Error *sft.Error `json:"error,omitempty"`
	RDP   *RDPReply  `json:"rdp,omitempty"`
	SSH   *SSHReply  `json:"ssh,omitempty"`
	Ping  *PingReply `json:"ping,omitempty"`
}

// An SSHReply says that the bytes which follow are those of the host's SSH
// server, on loopback.
type SSHReply struct {
	Login string `json:"login"`
}

// How the account's password gets to the RDP service.
const (
	Inject  = "inject"  // the broker signs in; the password never leaves the host
	Deliver = "deliver" // it is sent to the client, which signs in
)

// An RDPReply tells the client how to sign in to what follows. With Inject,
// the broker has signed in to the RDP service where that wants NLA, and what
// follows is RDP without any encryption of its own, from the MCS Connect
// Initial on (MS-RDPBCGR 2.2.1.3); either side may end it before the desktop
// with a Notice. With Deliver it holds the account's password, which is why
// the type must not be logged, and the RDP service's own bytes follow.
type RDPReply struct {
	SignIn string `json:"sign_in"` // Inject or Deliver
	Login  string `json:"login"`
	// With Inject: the security protocol that the service selected, and its
	// flags (MS-RDPBCGR 2.2.1.2.1).
	SelectedProtocol uint32 `json:"selected_protocol,omitempty"`
	NegotiationFlags byte   `json:"negotiation_flags,omitempty"`
	// PasswordReset says once that what the host's system keeps under the
	// account's password is lost: the new one could not be set by a change.
	PasswordReset bool `json:"password_reset,omitempty"`
	// Warnings are for the person alone. See CleanWarnings.
	Warnings []string `json:"warnings,omitempty"`
	// CertificateSHA256 is the fingerprint, lower-case hex, of the certificate
	// that the RDP service is configured with.
	// With Deliver.
	CertificateSHA256 string  `json:"certificate_sha256,omitempty"`
	Secret            *Secret `json:"secret,omitempty"`
}

// The caps of an RDPReply's Warnings.
const (
	MaxWarnings = 4
	MaxWarning  = 200 // bytes
)

// CleanWarnings returns what of list is within the caps, each of one printable
// line. Who sends warnings calls it, and who shows them does again.
func CleanWarnings(list []string) []string {
	var clean []string
	for _, w := range list {
		w = strings.Map(func(r rune) rune {
			if !unicode.IsPrint(r) {
				return ' '
			}
			return r
		}, strings.ToValidUTF8(w[:min(len(w), 2*MaxWarning)], "?"))
		if len(w) > MaxWarning {
			w = strings.ToValidUTF8(w[:MaxWarning-3], "") + "..."
		}
		if w = strings.TrimSpace(w); w == "" {
			continue
		}
		if clean = append(clean, w); len(clean) == MaxWarnings {
			break
		}
	}
	return clean
}

// A Notice is a frame in the place of an RDP PDU. It can be told from one: a
// frame begins with two zero bytes, which as fast-path would be a PDU of no
// length.
type Notice struct {
	// Error, from the broker: why it ends the stream.
	Error *sft.Error `json:"error,omitempty"`
	// Abort, from the client: who used the RDP client's end did not prove the
	// launch secret, or went away; what was opened for it is to be undone.
	Abort string `json:"abort,omitempty"`
}

// The reasons of an Abort.
const (
	AbortSecret = "launch_secret" // a wrong launch secret
	AbortClient = "client"        // the RDP client gave up, or was not one
)

// A PingReply says who the broker thinks is asking.
type PingReply struct {
	Server string `json:"server"`
	Login  string `json:"login"`
}

// A Secret is an sft.Secret that this one protocol does put on the wire,
// inside mutual TLS. It prints as little as any other.
type Secret struct{ sft.Secret }

// MarshalJSON writes the value.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.Reveal()) }

// UnmarshalJSON reads it.
func (s *Secret) UnmarshalJSON(b []byte) error {
	var v string
	if err := json.Unmarshal(b, &v); err != nil {
		return errors.New("a secret must be a string")
	}
	s.Secret = sft.NewSecret(v)
	return nil
}

// ErrTooLarge is returned for a frame over MaxSize, before any of it is read.
var ErrTooLarge = fmt.Errorf("frame is over %d bytes", MaxSize)

// Read reads the bytes of one frame. The caller sets the deadline.
func Read(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxSize {
		return nil, ErrTooLarge
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}

// Write writes b as one frame, in one call to w.
func Write(w io.Writer, b []byte) error {
	if len(b) > MaxSize {
		return ErrTooLarge
	}
	buf := make([]byte, 4+len(b))
	binary.BigEndian.PutUint32(buf, uint32(len(b)))
	copy(buf[4:], b)
	_, err := w.Write(buf)
	return err
}

// WriteJSON writes v as one frame.
func WriteJSON(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return Write(w, b)
}

// Decode reads the JSON object b into v. Unknown fields are ignored, so that
// newer peers may say more; anything but one object is refused.
func Decode(b []byte, v any) error {
	if t := bytes.TrimSpace(b); len(t) == 0 || t[0] != '{' {
		return &sft.Error{Code: sft.Invalid, Msg: "frame is not a JSON object"}
	}
	if err := json.Unmarshal(b, v); err != nil {
		return &sft.Error{Code: sft.Invalid, Msg: "frame is not a JSON object of the right form", Err: err}
	}
	return nil
}

// IsNotice reports whether what begins with head, of two bytes at least, is a
// Notice, and not an RDP PDU.
func IsNotice(head []byte) bool { return len(head) >= 2 && head[0] == 0 && head[1] == 0 }
