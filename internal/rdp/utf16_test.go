package rdp

import (
	"bytes"
	"testing"
)

func TestUTF16(t *testing.T) {
	for s, want := range map[string]string{"": "", "aß": "a\x00\xdf\x00", "€": "\xac\x20", "😀": "\x3d\xd8\x00\xde", "\xff": "\xfd\xff"} {
		if got := utf16Bytes(s); string(got) != want {
			t.Errorf("utf16Bytes(%q) = % x, want % x", s, got, want)
		}
		if got, ok := utf16String([]byte(want)); s != "\xff" && (got != s || !ok) {
			t.Errorf("utf16String(% x) = %q, %v, want %q", want, got, ok, s)
		}
	}
	for name, in := range map[string]string{
		"half a unit":                  "a\x00b",
		"a high surrogate at the end":  "\x3d\xd8",
		"a high surrogate before an a": "\x3d\xd8a\x00",
		"a low surrogate first":        "\x00\xde\x3d\xd8",
	} {
		if got, ok := utf16String([]byte(in)); got != "" || ok {
			t.Errorf("%s: utf16String = %q, %v, want none", name, got, ok)
		}
	}
}

// FuzzUTF16 checks that what is read is written back the same.
func FuzzUTF16(f *testing.F) {
	f.Add([]byte("a\x00\x3d\xd8\x00\xde"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, ok := utf16String(b); ok && !bytes.Equal(utf16Bytes(s), b) {
			t.Errorf("% x was read as %q, which is % x", b, s, utf16Bytes(s))
		}
	})
}
