package rdp

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestPDULength(t *testing.T) {
	for _, c := range []struct {
		name  string
		head  []byte
		n     int
		known bool
		err   error
	}{
		{"nothing yet", nil, 0, false, nil},
		{"a TPKT's first byte", []byte{3}, 0, false, nil},
		{"a TPKT's first three", []byte{3, 0, 0}, 0, false, nil},
		{"a TPKT", []byte{3, 0, 1, 2}, 0x102, true, nil},
		{"the shortest TPKT", []byte{3, 0, 0, 7}, 7, true, nil},
		{"a TPKT too short", []byte{3, 0, 0, 6}, 0, false, errLength},
		{"a fast-path's first byte", []byte{0xC4}, 0, false, nil},
		{"a short fast-path", []byte{0, 0x7F}, 127, true, nil},
		{"the shortest fast-path", []byte{0, 2}, 2, true, nil},
		{"a fast-path too short", []byte{0, 1}, 0, false, errLength},
		{"half of a long length", []byte{0, 0x81}, 0, false, nil},
		{"a long fast-path", []byte{0, 0xFF, 0xFF}, 0x7FFF, true, nil},
		{"a long length of what is too short", []byte{0, 0x80, 2}, 0, false, errLength},
		{"no PDU", []byte{'G', 'E'}, 0, false, errNoPDU},
	} {
		n, known, err := PDULength(c.head)
		if n != c.n || known != c.known || err != c.err {
			t.Errorf("%s: got %d, %v, %v, want %d, %v, %v", c.name, n, known, err, c.n, c.known, c.err)
		}
	}
	for _, p := range recordedAll(t) {
		if n, known, err := PDULength(p.bytes[:min(4, len(p.bytes))]); n != len(p.bytes) || !known || err != nil {
			t.Errorf("%x: got %d, %v, %v, want %d", p.bytes, n, known, err, len(p.bytes))
		}
	}
}

func TestReadTPKT(t *testing.T) {
	whole := AttachUserConfirm(1007)
	for _, c := range []struct {
		name string
		in   []byte
		max  int
		err  error
	}{
		{"one of exactly the size that is taken", whole, len(whole), nil},
		{"one that is longer", whole, len(whole) - 1, ErrTooLong},
		{"nothing", nil, 100, io.EOF},
		{"half a header", whole[:2], 100, io.ErrUnexpectedEOF},
		{"a header alone", whole[:4], 100, io.ErrUnexpectedEOF},
		{"half a body", whole[:8], 100, io.ErrUnexpectedEOF},
		{"a length below the header's", []byte{3, 0, 0, 4}, 100, errLength},
		{"a fast-path PDU", []byte{0, 4, 1, 2}, 100, errNoPDU},
	} {
		r := bytes.NewReader(append(bytes.Clone(c.in), "next"[:min(len(c.in)/len(whole)*4, 4)]...))
		pdu, err := ReadTPKT(r, c.max)
		if !errors.Is(err, c.err) || c.err == nil && err != nil {
			t.Errorf("%s: got %v, want %v", c.name, err, c.err)
		}
		if err == nil && (!bytes.Equal(pdu, whole) || r.Len() != 4) {
			t.Errorf("%s: got %x and %d bytes left, want %x and 4", c.name, pdu, r.Len(), whole)
		}
	}
}

// FuzzPDULength: a length is known from at most 4 bytes, does not change with
// more of them, and covers its own header; and ReadTPKT returns what it says,
// or allocates nothing.
func FuzzPDULength(f *testing.F) {
	for _, p := range recordedAll(f) {
		f.Add(p.bytes)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, known, err := PDULength(b)
		for i := range min(len(b), 5) {
			if m, k, e := PDULength(b[:i]); k && (m != n || !known) || e != nil && err == nil {
				t.Fatalf("of %d bytes: got %d, %v, %v, want %d, %v, %v", i, m, k, e, n, known, err)
			}
		}
		if known && (err != nil || n < 2 || n > 0xFFFF) || len(b) >= 4 && !known && err == nil {
			t.Fatalf("got %d, %v, %v", n, known, err)
		}
		pdu, err := ReadTPKT(bytes.NewReader(b), 512)
		if err == nil && (len(pdu) > 512 || len(pdu) != n || !bytes.HasPrefix(b, pdu)) {
			t.Fatalf("read %x", pdu)
		}
	})
}
