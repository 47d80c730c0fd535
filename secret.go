package sft

import (
	"errors"
	"fmt"
	"log/slog"
)

// A Secret is a value that must not be written anywhere by accident: a
// password, a key, a token. It prints as "[secret]" whatever the verb, logs as
// the same, and refuses to be marshalled. The zero Secret is empty.
//
// The one way to the value is Reveal, so that a search for that word finds
// every place where a secret leaves the program.
type Secret struct{ v string }

// NewSecret wraps v.
func NewSecret(v string) Secret { return Secret{v} }

// Reveal returns the value. Call it only where the value is used at once.
func (s Secret) Reveal() string { return s.v }

// Empty reports whether there is nothing to keep.
func (s Secret) Empty() bool { return s.v == "" }

// String hides the value.
func (s Secret) String() string { return "[secret]" }

// GoString hides the value.
func (s Secret) GoString() string { return "[secret]" }

// Format hides the value from every verb of package fmt.
func (s Secret) Format(f fmt.State, _ rune) { f.Write([]byte("[secret]")) }

// LogValue hides the value from package log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue("[secret]") }

// errSecret is what every encoder gets instead of the value.
var errSecret = errors.New("a secret cannot be marshalled; reveal it where it is used")

// MarshalJSON refuses.
func (s Secret) MarshalJSON() ([]byte, error) { return nil, errSecret }

// MarshalText refuses.
func (s Secret) MarshalText() ([]byte, error) { return nil, errSecret }

// MarshalBinary refuses.
func (s Secret) MarshalBinary() ([]byte, error) { return nil, errSecret }

// GobEncode refuses.
func (s Secret) GobEncode() ([]byte, error) { return nil, errSecret }
