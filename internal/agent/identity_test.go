package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf16"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/frame"
	"sft/internal/testenv"
)

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func writeIdentity(t testing.TB, file string, id identity) {
	t.Helper()
	b, err := json.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, b)
}

func deviceKey(t testing.TB, h *host) *ecdsa.PrivateKey {
	t.Helper()
	_, key, err := readIdentity(h.c)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func utf16Of(s string, o binary.ByteOrder, mark ...byte) []byte {
	b := slices.Clone(mark)
	for _, u := range utf16.Encode([]rune(s)) {
		b = append(b, 0, 0)
		o.PutUint16(b[len(b)-2:], u)
	}
	return b
}

func TestParseToken(t *testing.T) {
	want := api.EnrollmentToken{Secret: "s3cret", URL: "https://platform.example:8443", Fingerprint: "sha256:abc"}
	good := string(encodeToken(t, want))
	text := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	tests := []struct {
		name string
		file []byte
		msg  string // of the refusal
	}{
		{"plain", []byte(good), ""},
		{"a line end", []byte(good + "\n"), ""},
		{"CRLF", []byte(good + "\r\n"), ""},
		{"blanks and lines around it", []byte("\r\n \t" + good + " \n\n"), ""},
		{"broken into lines", []byte(good[:20] + "\r\n" + good[20:] + "\r\n"), ""},
		{"without padding", []byte(strings.TrimRight(good, "=")), ""},
		{"UTF-8 with a mark", []byte("\xef\xbb\xbf" + good + "\r\n"), ""},
		{"UTF-16LE with a mark, as PowerShell writes it", utf16Of(good+"\r\n", binary.LittleEndian, 0xff, 0xfe), ""},
		{"UTF-16BE with a mark", utf16Of(good+"\r\n", binary.BigEndian, 0xfe, 0xff), ""},
		{"UTF-16LE with a byte too many", append(utf16Of(good, binary.LittleEndian, 0xff, 0xfe), 0), ""},
		{"nothing", nil, "the enrollment token file is empty"},
		{"blanks", []byte(" \r\n\t\n"), "the enrollment token file is empty"},
		{"a mark alone", []byte("\xff\xfe"), "the enrollment token file is empty"},
		{"UTF-16 without a mark", utf16Of(good, binary.LittleEndian), "the enrollment token file holds no enrollment token"},
		{"garbage", []byte("not a token!"), "the enrollment token file holds no enrollment token"},
		{"two tokens", []byte(good + " " + good), "the enrollment token file holds no enrollment token"},
		{"base64 of no JSON", []byte(text("hello")), "the enrollment token file holds no enrollment token"},
		{"JSON that is not base64", []byte(`{"s":"x","u":"https://p"}`), "the enrollment token file holds no enrollment token"},
		{"no secret", []byte(text(`{"u":"https://p"}`)), "the enrollment token file holds no enrollment token"},
		{"no URL", []byte(text(`{"s":"x"}`)), "the enrollment token file holds no enrollment token"},
		{"an http URL", []byte(text(`{"s":"x","u":"http://p"}`)), "the enrollment token names no usable platform"},
		{"a URL with a user", []byte(text(`{"s":"x","u":"https://a@p"}`)), "the enrollment token names no usable platform"},
		{"a file", []byte(text(`{"s":"x","u":"file:///etc/shadow"}`)), "the enrollment token names no usable platform"},
		{"too long", bytes.Repeat([]byte("A"), maxTokenFile+1), "the enrollment token file is too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseToken(tt.file)
			if tt.msg == "" {
				if err != nil || got != want {
					t.Errorf("got %+v, %v", got, err)
				}
				return
			}
			wantCode(t, tt.name, err, sft.Invalid)
			if err != nil && err.Error() != tt.msg {
				t.Errorf("got %q, want %q", err, tt.msg)
			}
		})
	}
}

// FuzzParseToken checks that what is taken can be used: a secret, and an https
// URL in the spelling that is stored; and that a refusal is one for people.
func FuzzParseToken(f *testing.F) {
	f.Add([]byte("eyJzIjoieCIsInUiOiJodHRwczovL3AifQ=="))
	f.Add(utf16Of("eyJzIjoieCIsInUiOiJodHRwczovL3AifQ==\r\n", binary.LittleEndian, 0xff, 0xfe))
	f.Add([]byte("\xef\xbb\xbf\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		tok, err := parseToken(b)
		if err != nil {
			if sft.CodeOf(err) != sft.Invalid || tok != (api.EnrollmentToken{}) {
				t.Errorf("refused with %v and %+v", err, tok)
			}
			return
		}
		if u, err := api.CheckURL(tok.URL); err != nil || u != tok.URL || tok.Secret == "" {
			t.Errorf("took %+v: %v", tok, err)
		}
	})
}

// TestAnotherTokenIsTakenUp checks that nobody waits for the next try with a
// token that cannot be used when there is another one.
func TestAnotherTokenIsTakenUp(t *testing.T) {
	t.Parallel()
	h := newHost(t, testenv.New(t), nil)
	file := h.c.EnrollmentTokenFile
	for _, change := range []struct {
		name string
		do   func()
	}{
		{"it is written over", func() { write(t, file, []byte("another")) }},
		{"one of the same length is put in its place", func() {
			write(t, file+".new", []byte("instead"))
			if err := os.Rename(file+".new", file); err != nil {
				t.Error(err)
			}
		}},
		{"it is removed", func() { os.Remove(file) }},
		{"it is there again", func() { write(t, file, []byte("again")) }},
	} {
		was := h.token()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		change.do()
		if slow := h.waitToken(ctx, was, time.Hour); slow || ctx.Err() != nil {
			t.Errorf("%s: it is not taken up", change.name)
		}
		cancel()
	}
	if slow := h.waitToken(t.Context(), h.token(), 1500*time.Millisecond); !slow {
		t.Error("the same file is taken for another one")
	}
}

// A token that cannot be used leaves the state folder as it was, says what is
// wrong, and the host enrols by itself when there is one that can.
func TestTokenThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	other := testenv.New(t)
	h := newHost(t, env, nil)
	good, err := os.ReadFile(h.c.EnrollmentTokenFile)
	if err != nil {
		t.Fatal(err)
	}
	token := func(change func(*api.EnrollmentToken)) []byte {
		tok, err := parseToken(good)
		if err != nil {
			t.Fatal(err)
		}
		change(&tok)
		return encodeToken(t, tok)
	}
	var deleted struct{ ID, Token string }
	env.Do("POST", "/projects/"+testenv.Project+"/server_enrollment_tokens", map[string]string{}, &deleted)
	env.Do("DELETE", "/projects/"+testenv.Project+"/server_enrollment_tokens/"+deleted.ID, nil, nil)
	tests := []struct {
		name string
		file []byte
		code sft.Code
		msg  string
	}{
		{"empty", nil, sft.Invalid, "is empty"},
		{"garbage", []byte("garbage"), sft.Invalid, "holds no enrollment token"},
		{"unknown", token(func(k *api.EnrollmentToken) { k.Secret = "unknown" }), sft.Denied, "unknown, deleted, expired or used up"},
		{"deleted", []byte(deleted.Token), sft.Denied, "unknown, deleted, expired or used up"},
		{"of another platform, with its fingerprint", token(func(k *api.EnrollmentToken) { k.Fingerprint = other.Init.CAFingerprint }), sft.Invalid, "does not show the CA with this fingerprint"},
		{"of another platform, sent to this one", token(func(k *api.EnrollmentToken) { k.Secret = other.Token(testenv.Project) }), sft.Denied, "unknown, deleted, expired or used up"},
		{"without the fingerprint of a private CA", token(func(k *api.EnrollmentToken) { k.Fingerprint = "" }), sft.Unavailable, "certificate"},
		{"with half a fingerprint", token(func(k *api.EnrollmentToken) { k.Fingerprint = "abcd" }), sft.Invalid, "not 64 hexadecimal digits"},
		{"of a platform that does not answer", token(func(k *api.EnrollmentToken) { k.URL = "https://127.0.0.1:1" }), sft.Unavailable, "no answer from the platform"},
	}
	for _, tt := range tests {
		write(t, h.c.EnrollmentTokenFile, tt.file)
		before := listing(t, h.c.state)
		err := h.enroll(t.Context())
		if tt.code == sft.Unavailable { // there may be a record, and the key that it is for is kept
			os.Remove(h.conf.file(pendingKeyFile))
		}
		wantCode(t, tt.name, err, tt.code)
		if err != nil && !strings.Contains(err.Error(), tt.msg) {
			t.Errorf("%s: %q does not say %q", tt.name, err, tt.msg)
		}
		if after := listing(t, h.c.state); after != before {
			t.Errorf("%s: the state folder was\n%sand is\n%s", tt.name, before, after)
		}
	}

	write(t, h.c.EnrollmentTokenFile, tests[0].file)
	h.run()
	until(t, "status says what is wrong", func() bool {
		return h.hasProblem("file is empty; write the token")
	})
	write(t, h.c.EnrollmentTokenFile, good)
	until(t, "it enrols by itself", func() bool { return h.who.Load() != nil })
	until(t, "the token file is gone", func() bool { return h.token() == nil })
	if strings.Contains(h.logs.String(), tokenSecret(t, good)) {
		t.Error("the token's secret is in the log")
	}
}

func tokenSecret(t testing.TB, file []byte) string {
	t.Helper()
	return testenv.Secret(t, strings.TrimSpace(string(file)))
}

// A way is an HTTP proxy that can be out of order.
type way struct {
	url   string
	mu    sync.Mutex
	down  bool
	conns []net.Conn
}

func newWay(t testing.TB) *way {
	w := &way{}
	srv := httptest.NewServer(w)
	w.url = srv.URL
	t.Cleanup(func() { w.set(true); srv.Close() })
	return w
}

// set puts the way out of order, and cuts what goes over it, or mends it.
func (w *way) set(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = down
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

func (w *way) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out, err := net.Dial("tcp", r.Host)
	if r.Method != "CONNECT" || w.down || err != nil {
		http.Error(rw, "out of order", http.StatusBadGateway)
		return
	}
	in, _, err := rw.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	w.conns = append(w.conns, in, out)
	go func() {
		fmt.Fprint(in, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { io.Copy(out, in); out.Close() }()
		io.Copy(in, out)
		in.Close()
	}()
}

// The platform is down when the host enrols, and later, and comes back: the
// host follows by itself.
func TestPlatformDownAndUp(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	env.Grant(testenv.Project, "dev", false, "ann")
	w := newWay(t)
	w.set(true)
	h := newHost(t, env, func(c *Config) { c.ForwardProxy = w.url })
	before := listing(t, h.c.state)
	err := h.enroll(t.Context())
	wantCode(t, "a platform that is down", err, sft.Unavailable)
	if after := listing(t, h.c.state); after != before {
		t.Errorf("the state folder was\n%sand is\n%s", before, after)
	}
	h.run()
	until(t, "it says that the platform does not answer", func() bool { return h.hasProblem("enrolment: no answer from the platform") })
	w.set(false)
	h.waitAccount("ann")
	if h.hasProblem("enrolment") || h.token() != nil {
		t.Errorf("it is enrolled, and says %q; token file: %v", h.problems(), h.token() != nil)
	}
	k := h.connect("ann")

	w.set(true)
	until(t, "it says that the platform does not answer", func() bool { return h.hasProblem("platform: no answer from the platform") })
	if _, _, err := h.ask(k, frame.RDP); err != nil {
		t.Errorf("within the offline grace: %v", err)
	}
	h.join("bob")
	h.env.Do("DELETE", "/groups/dev/users/ann", nil, nil)
	w.set(false)
	until(t, "ann is out", func() bool { return h.accountGone("ann") && !h.enabled("ann") })
	h.waitAccount("bob")
	until(t, "nothing is wrong with the platform", func() bool { return !h.hasProblem("platform") })
	until(t, "every event has arrived", func() bool { return h.events.waiting() == 0 })
	for _, e := range env.Events() {
		if e.Kind == audit.EventsLost {
			t.Errorf("an event was lost: %v", e.Detail)
		}
	}
}

// The platform calls itself by another name than the token does.
func TestTokenWithAnotherURL(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", strings.TrimPrefix(env.URL, "https://"))
			if err != nil {
				return
			}
			go func() { io.Copy(out, in); out.Close() }()
			go func() { io.Copy(in, out); in.Close() }()
		}
	}()
	h := newHost(t, env, nil)
	write(t, h.c.EnrollmentTokenFile, encodeToken(t, api.EnrollmentToken{Secret: env.Token(testenv.Project), URL: "https://" + ln.Addr().String(), Fingerprint: env.Init.CAFingerprint}))
	servers := func() int {
		var l api.List[sft.Server]
		env.Do("GET", "/servers", nil, &l)
		return len(l.List)
	}
	for range 3 {
		err := h.enroll(t.Context())
		wantCode(t, "another URL", err, sft.Invalid)
	}
	if n := servers(); n != 1 {
		t.Errorf("three tries made %d records", n)
	}
	if id, _, err := readIdentity(h.c); id != nil || err != nil {
		t.Errorf("there is an identity: %v, %v", id, err)
	}
	h.writeToken(testenv.Project)
	if err := h.enroll(t.Context()); err != nil {
		t.Errorf("with another token: %v", err)
	}
}

func TestDamagedIdentity(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	h := newHost(t, env, nil)
	if err := os.Remove(h.c.EnrollmentTokenFile); err != nil {
		t.Fatal(err)
	}
	good := enrolledHost(t, nil)
	id, err := os.ReadFile(good.c.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"", "garbage", "{}", `{"server_id":"x","device_key":"AAAA"}`} {
		write(t, h.c.TokenFile, []byte(content))
		_, _, err := readIdentity(h.c)
		wantCode(t, "identity "+content, err, sft.Invalid)
	}
	h.run()
	until(t, "it says so", func() bool {
		return h.hasProblem("remove it and enrol the server again")
	})
	write(t, h.c.TokenFile, id) // repaired by hand
	until(t, "it is itself again", func() bool { return h.who.Load() != nil })
}

// An identity whose CA is damaged, or a record that cannot be left, must not
// make the agent spin.
func TestNoSpinning(t *testing.T) {
	t.Parallel()
	good := enrolledHost(t, nil)
	id, _, err := readIdentity(good.c)
	if err != nil {
		t.Fatal(err)
	}
	id.CA = []byte("garbage")
	h := newHost(t, good.env, nil)
	writeIdentity(t, h.c.TokenFile, *id)
	stop := h.run()
	until(t, "it says so", func() bool {
		return h.hasProblem("CA certificate")
	})
	until(t, "it tries again", func() bool { return strings.Count(h.logs.String(), "not enrolled") >= 2 })
	stop()
	if n := strings.Count(h.logs.String(), "not enrolled"); n > 5 {
		t.Errorf("it tried %d times", n)
	}
}

// A reply that is lost, or an agent that is killed before it has stored it,
// costs no second record: the key is tried again, and told of the first.
func TestLostReplyToEnrolment(t *testing.T) {
	env := testenv.New(t)
	h := newHost(t, env, nil)
	raw, err := os.ReadFile(h.c.EnrollmentTokenFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	first, key, err := readIdentity(h.conf)
	if err != nil {
		t.Fatal(err)
	}
	// As if the agent had been killed just before it stored the reply.
	if err := os.Remove(h.conf.TokenFile); err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, h.conf.file(pendingKeyFile), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	write(t, h.c.EnrollmentTokenFile, raw)
	if err := h.enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	second, _, err := readIdentity(h.conf)
	if err != nil || second.ServerID != first.ServerID {
		t.Errorf("the second try made the record %s beside %s (%v)", second.ServerID, first.ServerID, err)
	}
	if _, err := os.Stat(h.conf.file(pendingKeyFile)); err == nil {
		t.Error("the key of the enrolment is still there")
	}
}
