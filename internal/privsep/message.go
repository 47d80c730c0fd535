package privsep

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"sft"
)

// A call is a Request as the broker sends it.
type call struct {
	ID uint64 `json:"id"` // names the call in its answer
	Request
}

// A message is what the monitor sends. Exactly one field beside ID is set.
type message struct {
	ID        uint64         `json:"id,omitempty"` // of the call that Answer answers
	Answer    *answer        `json:"answer,omitempty"`
	Configure *Configuration `json:"configure,omitempty"`
	End       *End           `json:"end,omitempty"`
	Shutdown  *struct{}      `json:"shutdown,omitempty"`
}

// An answer has what its request asked for, or Error.
type answer struct {
	Error     *sft.Error `json:"error,omitempty"`
	Signature []byte     `json:"signature,omitempty"` // of a Sign
	Open      *OpenReply `json:"open,omitempty"`      // of an Open
}

// decodeCall reads what a broker sent, who may be anybody by now. What it
// accepts is what encode would have written, byte for byte: a message has one
// spelling, without unknown, repeated or misspelt fields.
func decodeCall(b []byte) (call, error) {
	if len(b) > MaxMessage {
		return call{}, fmt.Errorf("%d bytes: %w", len(b), errTooLong)
	}
	var c call
	if err := json.Unmarshal(b, &c); err != nil {
		return call{}, fmt.Errorf("not a request: %v", err)
	}
	if err := c.check(); err != nil {
		return call{}, err
	}
	if again, err := encode(c); err != nil || !bytes.Equal(again, b) {
		return call{}, errors.New("a request with something unknown, or in a spelling of its own")
	}
	return c, nil
}

// kind returns the name of the field that is set.
func (r Request) kind() string {
	switch {
	case r.Sign != nil:
		return "sign"
	case r.Open != nil:
		return "open"
	case r.Close != nil:
		return "close"
	case r.Report != nil:
		return "report"
	}
	return "ready"
}

// check reports what is wrong with the fields of c.
func (c call) check() error {
	fields := 0
	for _, set := range []bool{c.Ready != nil, c.Sign != nil, c.Open != nil, c.Close != nil, c.Report != nil} {
		if set {
			fields++
		}
	}
	switch {
	case fields != 1:
		return fmt.Errorf("a request with %d kinds instead of one", fields)
	case c.Ready != nil && len(c.Ready.Layers) > maxLayers:
		return fmt.Errorf("ready with %d layers", len(c.Ready.Layers))
	case c.Open != nil:
		return c.Open.check()
	case c.Close != nil && c.Close.Stream == 0:
		return errors.New("close of no stream")
	case c.Close != nil && len(c.Close.Why) > maxText:
		return fmt.Errorf("close with a reason of %d bytes", len(c.Close.Why))
	}
	return nil
}

// check reports what is wrong with the sizes in o. What is in them is the
// Handler's to judge.
func (o *Open) check() error {
	if n := len(o.Certificates); n < 1 || n > MaxCertificates {
		return fmt.Errorf("open with %d certificates", n)
	}
	for _, c := range o.Certificates {
		if len(c) == 0 {
			return errors.New("open with an empty certificate")
		}
	}
	if n := len(o.Frame); n < 1 || n > MaxFrame {
		return fmt.Errorf("open with a frame of %d bytes", n)
	}
	if n := len(o.Remote); n < 1 || n > 64 {
		return fmt.Errorf("open with a remote address of %d bytes", n)
	}
	return nil
}

// decodeMessage reads what the monitor sent.
func decodeMessage(b []byte) (message, error) {
	if len(b) > MaxMessage {
		return message{}, fmt.Errorf("%d bytes: %w", len(b), errTooLong)
	}
	var m message
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return message{}, fmt.Errorf("not a message: %v", err)
	}
	fields := 0
	for _, set := range []bool{m.Answer != nil, m.Configure != nil, m.End != nil, m.Shutdown != nil} {
		if set {
			fields++
		}
	}
	if fields != 1 {
		return message{}, fmt.Errorf("a message with %d kinds instead of one", fields)
	}
	return m, nil
}

// errTooLong is about a message over MaxMessage.
var errTooLong = errors.New("over the cap of one message")

// encode writes a call or a message.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // a frame may grow to six times its length
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	b.Truncate(b.Len() - 1) // the line's end
	if b.Len() > MaxMessage {
		return nil, fmt.Errorf("%d bytes: %w", b.Len(), errTooLong)
	}
	return b.Bytes(), nil
}

// MarshalText writes 64 hexadecimal digits.
func (d Digest) MarshalText() ([]byte, error) {
	return hex.AppendEncode(nil, d[:]), nil
}

// UnmarshalText reads 64 hexadecimal digits.
func (d *Digest) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(len(d)) {
		return fmt.Errorf("a digest of %d hexadecimal digits instead of %d", len(b), hex.EncodedLen(len(d)))
	}
	_, err := hex.Decode(d[:], b)
	return err
}

// text makes s fit for a field of a message: valid UTF-8, at most maxText bytes.
func text(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxText)], "")
}

// asError returns what a broker may know of err: all of an *[sft.Error], and of
// any other that it happened.
func asError(err error) *sft.Error {
	if e, ok := errors.AsType[*sft.Error](err); ok {
		return &sft.Error{Code: e.Code, Msg: text(e.Msg), Hint: text(e.Hint)}
	}
	return &sft.Error{Code: sft.Internal, Msg: "the host could not do what was asked", Hint: "ask the host's administrator to read the log of sftd"}
}
