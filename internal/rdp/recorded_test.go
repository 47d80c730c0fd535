package rdp

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

// A recorded PDU is one of what an RDP client and a service have said to each
// other, as seen between them. testdata has the beginnings of connections of
// xfreerdp 2.11.7 and rdesktop 1.9.0 to xrdp 0.9.21 and freerdp-shadow 2.11.7,
// a PDU a line, after C or S for who sends it.
type recordedPDU struct {
	client bool
	bytes  []byte
}

var recordings = []string{"xfreerdp-xrdp", "xfreerdp-shadow", "rdesktop-xrdp"}

func recorded(t testing.TB, name string) []recordedPDU {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name + ".hex")
	if err != nil {
		t.Fatal(err)
	}
	var list []recordedPDU
	for line := range strings.Lines(string(text)) {
		who, digits, _ := strings.Cut(strings.TrimSpace(line), " ")
		b, err := hex.DecodeString(digits)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, recordedPDU{who == "C", b})
	}
	return list
}

// recordedAll returns the PDUs of all recordings.
func recordedAll(t testing.TB) []recordedPDU {
	t.Helper()
	var list []recordedPDU
	for _, name := range recordings {
		list = append(list, recorded(t, name)...)
	}
	return list
}

// cut calls f with everything that pdu begins with but pdu, and with one byte
// too many. The length in a TPKT's header is made to fit, so that it is not
// what the cut is seen by.
func cut(pdu []byte, f func(b []byte)) {
	for n := range len(pdu) + 2 {
		if n == len(pdu) {
			continue
		}
		b := append([]byte{}, append(pdu, 0)[:n]...)
		f(b)
		if n >= 4 {
			b[2], b[3] = byte(n>>8), byte(n)
			f(b)
		}
		if n > 5 && (b[5] == 0xE0 || b[5] == 0xD0) {
			b[4] = byte(n - 5)
			f(b)
		}
	}
}
