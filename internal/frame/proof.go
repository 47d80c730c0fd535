package frame

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"

	"sft"
)

// ProofAge is how old a proof may be, and how far in the future.
const ProofAge = 60 * time.Second

// A Proof is the payload of a Hello's proof.
type Proof struct {
	Server  string `json:"aud"` // the server's id
	Session string `json:"sid"`
	Service string `json:"svc"`
	ID      string `json:"jti"`
	Issued  int64  `json:"iat"` // seconds since 1970
	Frame   string `json:"fh"`  // base64url SHA-256 of the frame without its proof
}

// frameHash is what a proof says of its frame: the SHA-256 of the whole
// object with the proof taken out, in canonical form (Go's: keys sorted), so
// that fields this version does not know are covered too.
func frameHash(b []byte) (string, error) {
	var m map[string]json.RawMessage
	if err := Decode(b, &m); err != nil {
		return "", err
	}
	delete(m, "proof")
	c, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	h := sha256.Sum256(c)
	return base64.RawURLEncoding.EncodeToString(h[:]), nil
}

// Sign returns the bytes of h as a frame, with a proof by key for server. id
// must never have been used before.
func Sign(h Hello, server string, key *ecdsa.PrivateKey, id string, now time.Time) ([]byte, error) {
	h.Proof = ""
	b, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	fh, err := frameHash(b)
	if err != nil {
		return nil, err
	}
	payload, err := json.Marshal(Proof{Server: server, Session: h.Session, Service: h.Service,
		ID: id, Issued: now.Unix(), Frame: fh})
	if err != nil {
		return nil, err
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key},
		(&jose.SignerOptions{}).WithType("sft-proof+jwt"))
	if err != nil {
		return nil, err
	}
	sig, err := s.Sign(payload)
	if err != nil {
		return nil, err
	}
	if h.Proof, err = sig.CompactSerialize(); err != nil {
		return nil, err
	}
	return json.Marshal(h)
}

// Verify checks the frame b, received by server from the holder of key, and
// returns it with its proof. The caller refuses a Proof.ID that it has seen
// before; everything else is checked here. All refusals are Invalid or
// Denied.
func Verify(b []byte, server string, key *ecdsa.PublicKey, now time.Time) (Hello, Proof, error) {
	var h Hello
	if len(b) > MaxSize {
		return Hello{}, Proof{}, &sft.Error{Code: sft.Invalid, Msg: ErrTooLarge.Error()}
	}
	if err := Decode(b, &h); err != nil {
		return Hello{}, Proof{}, err
	}
	refuse := func(msg string) (Hello, Proof, error) {
		return Hello{}, Proof{}, &sft.Error{Code: sft.Denied, Msg: msg, Hint: "make a new request with \"sft rdp\""}
	}
	jws, err := jose.ParseSignedCompact(h.Proof, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return refuse("the frame has no readable proof")
	}
	payload, err := jws.Verify(key)
	if err != nil {
		return refuse("the proof is not by the certificate's key")
	}
	if t, _ := jws.Signatures[0].Protected.ExtraHeaders[jose.HeaderType].(string); t != "sft-proof+jwt" {
		return refuse("the proof is of another type")
	}
	var p Proof
	if err := Decode(payload, &p); err != nil {
		return refuse("the proof is not a JSON object")
	}
	fh, err := frameHash(b)
	if err != nil {
		return Hello{}, Proof{}, err
	}
	age := now.Sub(time.Unix(p.Issued, 0))
	switch {
	case p.Server != server:
		return refuse("the proof is for another server")
	case p.Session != h.Session || p.Service != h.Service || p.Frame != fh:
		return refuse("the proof is for another frame")
	case len(p.ID) < 16 || len(p.ID) > 64:
		return refuse("the proof has no usable id")
	case age > ProofAge || age < -ProofAge:
		return Hello{}, Proof{}, &sft.Error{Code: sft.ClockSkew, Hint: "set the clock that is wrong",
			Msg: fmt.Sprintf("the proof was made at %s, and the server's clock says %s", time.Unix(p.Issued, 0).UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))}
	}
	return h, p, nil
}
