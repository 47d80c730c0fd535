package frame

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode"
	"unicode/utf8"

	"sft"
)

var update = flag.Bool("update", false, "write testdata again; a changed file is a changed protocol")

// golden compares got with a file that both sides of the protocol are tested
// against.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is\n%q\nwant\n%q", name, got, want)
	}
}

func TestGoldenReplies(t *testing.T) {
	secret := Secret{sft.NewSecret("example, not a password")}
	tests := []struct {
		file  string
		reply Reply
	}{
		{"reply-ping.frame", Reply{Ping: &PingReply{Server: "srv-1", Login: "alice"}}},
		{"reply-rdp-deliver.frame", Reply{RDP: &RDPReply{SignIn: "deliver", Login: "alice",
			CertificateSHA256: strings.Repeat("0f", 32), Secret: &secret}}},
		{"reply-rdp-inject.frame", Reply{RDP: &RDPReply{SignIn: Inject, Login: "alice", SelectedProtocol: 2, NegotiationFlags: 1}}},
		{"reply-rdp-tells.frame", Reply{RDP: &RDPReply{SignIn: Inject, Login: "alice", SelectedProtocol: 2, NegotiationFlags: 1,
			PasswordReset: true, Warnings: []string{"both sessions are in use"}}}},
		{"reply-error.frame", Reply{Error: &sft.Error{Code: sft.Denied, Msg: "the proof is for another server",
			Hint: "make a new request with \"sft rdp\"", Err: errors.New("for the log only")}}},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			var b bytes.Buffer
			if err := WriteJSON(&b, tt.reply); err != nil {
				t.Fatal(err)
			}
			golden(t, tt.file, b.Bytes())
			f, err := os.Open(filepath.Join("testdata", tt.file))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			raw, err := Read(f)
			if err != nil {
				t.Fatal(err)
			}
			var got Reply
			if err := Decode(raw, &got); err != nil {
				t.Fatal(err)
			}
			want := tt.reply
			if want.Error != nil {
				e := *want.Error
				e.Err = nil
				want.Error = &e
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("read %+v, want %+v", got, want)
			}
		})
	}
}

func TestGoldenNotices(t *testing.T) {
	for file, n := range map[string]Notice{
		"notice-error.frame":  {Error: &sft.Error{Code: sft.RDSFarm, Msg: "the RDP service sends you to another host", Hint: "name that host"}},
		"notice-locked.frame": {Error: &sft.Error{Code: sft.Locked, Msg: "the desktop was locked", Hint: "run \"sft rdp\" again to return to it"}},
		"notice-abort.frame":  {Abort: AbortSecret},
	} {
		var b bytes.Buffer
		if err := WriteJSON(&b, n); err != nil {
			t.Fatal(err)
		}
		golden(t, file, b.Bytes())
		if !IsNotice(b.Bytes()) {
			t.Errorf("%s begins like a PDU", file)
		}
	}
	// Neither a TPKT nor a fast-path PDU, of one length byte or of two.
	for _, pdu := range []string{"\x03\x00", "\x00\x02", "\x00\x80", "\x00"} {
		if IsNotice([]byte(pdu)) {
			t.Errorf("%x is taken for a notice", pdu)
		}
	}
}

// goldenTime is when the frame in testdata was signed.
var goldenTime = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// TestGoldenHello verifies a signed frame of a key that is gone. Signatures
// are random, so it is written only with -update.
func TestGoldenHello(t *testing.T) {
	if *update {
		key := newKey(t)
		b, err := Sign(Hello{Service: RDP, Session: "ses-1"}, "srv-1", key, "0123456789abcdef", goldenTime)
		if err != nil {
			t.Fatal(err)
		}
		var f bytes.Buffer
		Write(&f, b)
		golden(t, "hello-rdp.frame", f.Bytes())
		der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "hello-rdp.spki", der)
	}
	f, err := os.Open(filepath.Join("testdata", "hello-rdp.frame"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	der, err := os.ReadFile(filepath.Join("testdata", "hello-rdp.spki"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		t.Fatal(err)
	}
	h, p, err := Verify(b, "srv-1", key.(*ecdsa.PublicKey), goldenTime)
	if err != nil {
		t.Fatal(err)
	}
	if h.Service != RDP || h.Session != "ses-1" {
		t.Errorf("frame %+v", h)
	}
	// {"service":"rdp","session":"ses-1"} without its proof.
	want := Proof{"srv-1", "ses-1", "rdp", "0123456789abcdef", goldenTime.Unix(), "EgqB2lEnM8OEiUBpvVQ9oY4m9zbDVD0z1M2GFoEbOfY"}
	if p != want {
		t.Errorf("proof %+v, want %+v", p, want)
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestVerify(t *testing.T) {
	key := newKey(t)
	now := goldenTime
	hello := Hello{Service: RDP, Session: "ses-1"}
	sign := func(h Hello, server string, key *ecdsa.PrivateKey, id string, now time.Time) []byte {
		b, err := Sign(h, server, key, id, now)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const id = "0123456789abcdef"
	good := sign(hello, "srv-1", key, id, now)
	// fields changes the fields of a frame after it was signed.
	fields := func(change func(map[string]any)) []byte {
		var m map[string]any
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var h Hello
	if err := Decode(good, &h); err != nil {
		t.Fatal(err)
	}
	jws := strings.Split(h.Proof, ".")
	tests := []struct {
		name string
		b    []byte
		want string // message; empty: it passes
	}{
		{"as signed", good, ""},
		{"in another order and spacing", []byte(fmt.Sprintf("{\n \"session\" : \"ses-1\",\"proof\":%q, \"service\":\"rdp\"}", h.Proof)), ""},
		{"a minute old", sign(hello, "srv-1", key, id, now.Add(-ProofAge)), ""},
		{"older", sign(hello, "srv-1", key, id, now.Add(-ProofAge-time.Second)), "clock"},
		{"of the future", sign(hello, "srv-1", key, id, now.Add(ProofAge+time.Second)), "clock"},
		{"for another server", sign(hello, "srv-2", key, id, now), "the proof is for another server"},
		{"by another key", sign(hello, "srv-1", newKey(t), id, now), "the proof is not by the certificate's key"},
		{"with a short id", sign(hello, "srv-1", key, "short", now), "the proof has no usable id"},
		{"with a long id", sign(hello, "srv-1", key, strings.Repeat("x", 65), now), "the proof has no usable id"},
		{"with another session", fields(func(m map[string]any) { m["session"] = "ses-2" }), "the proof is for another frame"},
		{"with another service", fields(func(m map[string]any) { m["service"] = "ping" }), "the proof is for another frame"},
		{"with a field more", fields(func(m map[string]any) { m["x224"] = "AAAA" }), "the proof is for another frame"},
		{"with a field twice", []byte(strings.Replace(string(good), "{", `{"Service":"ping",`, 1)), "the proof is for another frame"},
		{"without a proof", fields(func(m map[string]any) { delete(m, "proof") }), "the frame has no readable proof"},
		{"with a proof of no algorithm", fields(func(m map[string]any) { m["proof"] = "eyJhbGciOiJub25lIn0." + jws[1] + "." }), "the frame has no readable proof"},
		{"with a proof of another algorithm", fields(func(m map[string]any) { m["proof"] = "eyJhbGciOiJIUzI1NiJ9." + jws[1] + "." + jws[2] }), "the frame has no readable proof"},
		{"with a proof of a changed payload", fields(func(m map[string]any) { m["proof"] = jws[0] + ".e30." + jws[2] }), "the proof is not by the certificate's key"},
		{"with a proof that is a number", fields(func(m map[string]any) { m["proof"] = 1 }), "frame is not a JSON object of the right form"},
		{"empty", nil, "frame is not a JSON object"},
		{"a list", []byte("[]"), "frame is not a JSON object"},
		{"null", []byte("null"), "frame is not a JSON object"},
		{"cut off", good[:len(good)-1], "frame is not a JSON object of the right form"},
		{"with something after it", append(bytes.Clone(good), '{', '}'), "frame is not a JSON object of the right form"},
		{"deep", []byte(`{"x":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + "}"), "frame is not a JSON object of the right form"},
		{"too large", append(bytes.Clone(good), bytes.Repeat([]byte(" "), MaxSize)...), ErrTooLarge.Error()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, p, err := Verify(tt.b, "srv-1", &key.PublicKey, now)
			if tt.want == "" {
				if err != nil || p.ID != id {
					t.Errorf("Verify = %+v, %v", p, err)
				}
				return
			}
			if tt.want == "clock" { // both clocks are named
				if sft.CodeOf(err) != sft.ClockSkew || !strings.Contains(err.Error(), now.UTC().Format(time.RFC3339)) || p != (Proof{}) {
					t.Errorf("Verify = %+v, %v", p, err)
				}
				return
			}
			if err == nil || err.Error() != tt.want || p != (Proof{}) {
				t.Errorf("Verify = %+v, %v, want %q", p, err, tt.want)
			}
			if c := sft.CodeOf(err); c != sft.Invalid && c != sft.Denied {
				t.Errorf("the code is %q", c)
			}
		})
	}
}

func TestRead(t *testing.T) {
	var largest bytes.Buffer
	if err := Write(&largest, make([]byte, MaxSize)); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		in   string
		n    int
		err  error
	}{
		{"a frame", "\x00\x00\x00\x02{}", 2, nil},
		{"a frame and more", "\x00\x00\x00\x02{}{}", 2, nil},
		{"an empty one", "\x00\x00\x00\x00", 0, nil},
		{"the largest", largest.String(), MaxSize, nil},
		{"a byte larger", "\x00\x01\x00\x01", 0, ErrTooLarge},
		{"as large as can be said", "\xff\xff\xff\xff{}", 0, ErrTooLarge},
		{"nothing", "", 0, io.EOF},
		{"half a length", "\x00\x00", 0, io.ErrUnexpectedEOF},
		{"a length alone", "\x00\x00\x00\x02", 0, io.ErrUnexpectedEOF},
		{"half a frame", "\x00\x00\x00\x02{", 0, io.ErrUnexpectedEOF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := Read(iotest.OneByteReader(strings.NewReader(tt.in)))
			if err != tt.err || len(b) != tt.n {
				t.Errorf("Read = %d bytes, %v, want %d, %v", len(b), err, tt.n, tt.err)
			}
		})
	}
	if err := Write(io.Discard, make([]byte, MaxSize+1)); err != ErrTooLarge {
		t.Errorf("Write of too much = %v", err)
	}
}

// TestSecretIsNotPrinted checks that only the wire gets the secret of a reply.
func TestSecretIsNotPrinted(t *testing.T) {
	const canary = "canary-7f3a"
	r := Reply{RDP: &RDPReply{Secret: &Secret{sft.NewSecret(canary)}}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{*r.RDP.Secret, r.RDP.Secret, *r.RDP} {
			if s := fmt.Sprintf(verb, v); strings.Contains(s, canary) || strings.Contains(s, fmt.Sprintf("%x", canary)) {
				t.Errorf("%s of %T prints %s", verb, v, s)
			}
		}
	}
	if b, err := json.Marshal(r); err != nil || !bytes.Contains(b, []byte(canary)) {
		t.Errorf("on the wire: %s, %v", b, err)
	}
}

// FuzzRead checks that what is read is within the cap and reads the same when
// written again.
func FuzzRead(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add([]byte("\x03\x00\x00\x13\x0e\xe0\x00\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := Read(bytes.NewReader(in))
		if err != nil {
			if b != nil {
				t.Fatalf("Read = %q, %v", b, err)
			}
			return
		}
		var out bytes.Buffer
		if err := Write(&out, b); err != nil || len(b) > MaxSize || !bytes.Equal(out.Bytes(), in[:4+len(b)]) {
			t.Fatalf("%q was read as %q, which is %q, %v", in, b, out.Bytes(), err)
		}
		var r Reply
		Decode(b, &r)
	})
}

// FuzzVerify checks that a frame passes only with the fields that were signed.
func FuzzVerify(f *testing.F) {
	key := newKey(f)
	good, err := Sign(Hello{Service: RDP, Session: "ses-1"}, "srv-1", key, "0123456789abcdef", goldenTime)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"service":"rdp","session":"ses-1","proof":"a.b.c"}`))
	f.Add([]byte(strings.Replace(string(good), "{", `{"Service":"ping",`, 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, p, err := Verify(b, "srv-1", &key.PublicKey, goldenTime)
		if err != nil {
			if c := sft.CodeOf(err); c != sft.Invalid && c != sft.Denied || p != (Proof{}) {
				t.Fatalf("Verify = %+v, %v", p, err)
			}
			return
		}
		if h.Service != RDP || h.Session != "ses-1" || p.ID != "0123456789abcdef" {
			t.Fatalf("%q was read as %+v, %+v", b, h, p)
		}
	})
}

func TestCleanWarnings(t *testing.T) {
	long := strings.Repeat("é", 150)
	tests := []struct{ in, want []string }{
		{nil, nil},
		{[]string{"", " ", "\x1b\n"}, nil},
		{[]string{"one", "", "two", "three", "four", "five"}, []string{"one", "two", "three", "four"}},
		{[]string{"a\nb\x1b[2J\u202ec", "\xff"}, []string{"a b [2J c", "?"}},
		{[]string{long}, []string{long[:MaxWarning-4] + "..."}}, // no half a letter
		{[]string{strings.Repeat("x", MaxWarning)}, []string{strings.Repeat("x", MaxWarning)}},
		{[]string{strings.Repeat("x", MaxSize)}, []string{strings.Repeat("x", MaxWarning-3) + "..."}},
	}
	for _, tt := range tests {
		if got := CleanWarnings(tt.in); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%.40q: got %q, want %q", tt.in, got, tt.want)
		}
	}
}

// FuzzCleanWarnings checks that what is shown is within the caps, printable,
// and clean already.
func FuzzCleanWarnings(f *testing.F) {
	f.Add("both sessions are in use", "\x1b[2J", byte(9))
	f.Add(strings.Repeat("é", 150), "\xff\xfe", byte(1))
	f.Fuzz(func(t *testing.T, a, b string, n byte) {
		list := []string{a, b}
		for range n {
			list = append(list, b, a+b)
		}
		got := CleanWarnings(list)
		if len(got) > MaxWarnings {
			t.Fatalf("%d warnings", len(got))
		}
		for _, w := range got {
			if w == "" || len(w) > MaxWarning || !utf8.ValidString(w) || strings.ContainsFunc(w, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Fatalf("%q", w)
			}
		}
		if again := CleanWarnings(got); !reflect.DeepEqual(again, got) {
			t.Fatalf("%q, and again %q", got, again)
		}
	})
}
