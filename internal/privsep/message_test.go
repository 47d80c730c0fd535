package privsep

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"sft"
)

func TestDecodeCall(t *testing.T) {
	digest := strings.Repeat("0f", 32)
	tests := []struct {
		name string
		in   string
		want string // of the error
	}{
		{"a signature over 32 bytes can be asked for", `{"id":1,"sign":{"digest":"` + digest + `"}}`, ""},
		{"a stream can be closed", `{"id":2,"close":{"stream":7,"bytes_in":1,"bytes_out":2,"why":"<done>"}}`, ""},
		{"a person can be let in", `{"id":3,"open":{"certificates":["AA=="],"frame":"AA==","remote":"[::1]:9"}}`, ""},
		{"31 bytes are no digest", `{"id":1,"sign":{"digest":"` + digest[2:] + `"}}`, "not a request: a digest of 62 hexadecimal digits instead of 64"},
		{"33 bytes are no digest", `{"id":1,"sign":{"digest":"00` + digest + `"}}`, "not a request: a digest of 66 hexadecimal digits instead of 64"},
		{"a digest is not left out", `{"id":1,"sign":{}}`, "a request with something unknown, or in a spelling of its own"},
		{"null is no digest", `{"id":1,"sign":{"digest":null}}`, "a request with something unknown, or in a spelling of its own"},
		{"nothing is asked", `{"id":1}`, "a request with 0 kinds instead of one"},
		{"null asks nothing", `{"id":1,"sign":null}`, "a request with 0 kinds instead of one"},
		{"two things are asked at once", `{"id":1,"sign":{"digest":"` + digest + `"},"report":{}}`, "a request with 2 kinds instead of one"},
		{"an unknown kind", `{"id":1,"run":{"argv":["sh"]}}`, "a request with 0 kinds instead of one"},
		{"an unknown field", `{"id":1,"sign":{"digest":"` + digest + `","key":"ca"}}`, "a request with something unknown, or in a spelling of its own"},
		{"a field twice", `{"id":1,"id":2,"sign":{"digest":"` + digest + `"}}`, "a request with something unknown, or in a spelling of its own"},
		{"another spelling of a field", `{"id":1,"SIGN":{"digest":"` + digest + `"}}`, "a request with something unknown, or in a spelling of its own"},
		{"a second request after the first", `{"id":1,"sign":{"digest":"` + digest + `"}}{}`, "not a request: invalid character '{' after top-level value"},
		{"no JSON", "\x00", `not a request: invalid character '\x00' looking for beginning of value`},
		{"an open without a certificate", `{"id":3,"open":{"certificates":[],"frame":"AA==","remote":"[::1]:9"}}`, "open with 0 certificates"},
		{"an open with nine certificates", `{"id":3,"open":{"certificates":[` + strings.Repeat(`"AA==",`, 8) + `"AA=="],"frame":"AA==","remote":"[::1]:9"}}`, "open with 9 certificates"},
		{"an open without a frame", `{"id":3,"open":{"certificates":["AA=="],"frame":"","remote":"[::1]:9"}}`, "open with a frame of 0 bytes"},
		{"a close of no stream", `{"id":2,"close":{"stream":0,"bytes_in":1,"bytes_out":2,"why":""}}`, "close of no stream"},
		{"a close with a long story", `{"id":2,"close":{"stream":1,"bytes_in":1,"bytes_out":2,"why":"` + strings.Repeat("a", 257) + `"}}`, "close with a reason of 257 bytes"},
		{"a message over the cap", strings.Repeat(" ", MaxMessage+1), "196609 bytes: over the cap of one message"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if _, err := decodeCall([]byte(tt.in)); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("decodeCall = %q, want %q", got, tt.want)
			}
		})
	}
}

// A frame of the greatest length that needs escaping the most, and a chain
// beside it, fit in one message: no client can make an honest broker send one
// that is too long.
func TestLongestOpenFits(t *testing.T) {
	o := Open{Frame: bytes.Repeat([]byte{0xff}, MaxFrame), Remote: strings.Repeat("1", 64)}
	for range MaxCertificates {
		o.Certificates = append(o.Certificates, make([]byte, 8<<10))
	}
	b, err := encode(call{ID: 1 << 63, Request: Request{Open: &o}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeCall(b); err != nil {
		t.Fatal(err)
	}
	reply := []byte(`"` + strings.Repeat("<", MaxFrame-2) + `"`)
	if _, err := encode(message{ID: 1 << 63, Answer: &answer{Open: &OpenReply{Stream: 1, Reply: reply}}}); err != nil {
		t.Fatal(err)
	}
}

// Whatever text a client brings into a Close, the monitor takes the message.
func TestTextIsAlwaysTaken(t *testing.T) {
	for _, s := range []string{"", "\xff\xfe", "\u2028<&>\x00\x7f", strings.Repeat("é", 300), strings.Repeat("\xe2", 999), "\ufffd"} {
		b, err := encode(call{ID: 1, Request: Request{Close: &Close{Stream: 1, Why: text(s)}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeCall(b); err != nil {
			t.Errorf("text(%q): %v", s, err)
		}
	}
}

func TestAsError(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want sft.Error
	}{
		{"what a person may see passes, its cause does not", fmt.Errorf("open: %w", &sft.Error{Code: sft.Denied, Msg: "no", Hint: "ask", Err: errors.New("row 7")}), sft.Error{Code: sft.Denied, Msg: "no", Hint: "ask"}},
		{"anything else is our fault and stays here", errors.New("password is hunter2"), sft.Error{Code: sft.Internal, Msg: "the host could not do what was asked", Hint: "ask the host's administrator to read the log of sftd"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := *asError(tt.err); got != tt.want {
				t.Errorf("asError = %+v, want %+v", got, tt.want)
			}
		})
	}
}

// FuzzDecodeCall checks what must hold whatever a broker sends: nothing over
// the cap is read, and what is read has one kind and one spelling.
func FuzzDecodeCall(f *testing.F) {
	for _, r := range []Request{
		{Ready: &Ready{Layers: []Layer{{"landlock", true, "x"}}}},
		{Sign: &Sign{}},
		{Open: &Open{Certificates: [][]byte{{1}}, Frame: []byte{1}, Remote: "127.0.0.1:1"}},
		{Close: &Close{Stream: 1, Why: "<&>\u2028"}},
		{Report: &Report{Open: 1}},
	} {
		b, err := encode(call{ID: 1, Request: r})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"id":1,"sign":{"digest":null},"open":{"frame":"\u00"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCall(b)
		if err != nil {
			return
		}
		if len(b) > MaxMessage {
			t.Errorf("read %d bytes", len(b))
		}
		again, err := encode(c)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("read %q, wrote %q, %v", b, again, err)
		}
		if c.check() != nil {
			t.Errorf("read %q, which does not pass its own check", b)
		}
	})
}

// FuzzDecodeMessage checks what a broker reads: never a panic, one kind, and
// nothing lost on the way to the other end.
func FuzzDecodeMessage(f *testing.F) {
	for _, m := range []message{
		{ID: 1, Answer: &answer{Error: &sft.Error{Code: sft.Denied, Msg: "no", Hint: "ask"}}},
		{ID: 1, Answer: &answer{Open: &OpenReply{Stream: 1, Reply: json.RawMessage(`{"a":"<"}`)}}},
		{Configure: &Configuration{HostCertificates: [][]byte{{1}}, ClockOffset: -1}},
		{End: &End{Stream: 1, Why: "locked"}},
		{Shutdown: &struct{}{}},
	} {
		b, err := encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b)
		if err != nil {
			return
		}
		once, err := encode(m)
		if errors.Is(err, errTooLong) {
			return
		}
		if err != nil {
			t.Fatalf("read %q, but cannot write it: %v", b, err)
		}
		n, err := decodeMessage(once)
		if err != nil {
			t.Fatalf("read %q, wrote %q, which does not read: %v", b, once, err)
		}
		if twice, err := encode(n); err != nil || !bytes.Equal(once, twice) {
			t.Errorf("wrote %q, then %q, %v (%v)", once, twice, err, reflect.DeepEqual(m, n))
		}
	})
}
