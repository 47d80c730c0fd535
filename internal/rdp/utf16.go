package rdp

import (
	"encoding/binary"
	"unicode/utf16"
	"unicode/utf8"
)

// utf16Bytes returns s in UTF-16, little-endian, without a zero at the end.
func utf16Bytes(s string) []byte {
	b := make([]byte, 0, 2*len(s))
	for _, r := range s {
		if hi, lo := utf16.EncodeRune(r); hi != utf8.RuneError {
			b = binary.LittleEndian.AppendUint16(b, uint16(hi))
			b = binary.LittleEndian.AppendUint16(b, uint16(lo))
			continue
		}
		b = binary.LittleEndian.AppendUint16(b, uint16(r))
	}
	return b
}

// utf16String is the inverse of utf16Bytes. It reports false if b has an odd
// length or half a surrogate pair.
func utf16String(b []byte) (string, bool) {
	if len(b)%2 != 0 {
		return "", false
	}
	s := make([]byte, 0, len(b)/2)
	for ; len(b) > 0; b = b[2:] {
		r := rune(binary.LittleEndian.Uint16(b))
		if utf16.IsSurrogate(r) {
			if len(b) < 4 {
				return "", false
			}
			if r = utf16.DecodeRune(r, rune(binary.LittleEndian.Uint16(b[2:]))); r == utf8.RuneError {
				return "", false
			}
			b = b[2:]
		}
		s = utf8.AppendRune(s, r)
	}
	return string(s), true
}
