package export

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sft"
	"sft/internal/audit"
	"sft/internal/conf"
)

const secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"

func event(seq int64, change func(*audit.Event)) audit.Record {
	e := audit.Event{ID: fmt.Sprintf("019caaaa-0000-7000-8000-%012d", seq), Time: time.Date(2026, 3, 1, 9, 0, 0, 123456789, time.UTC), Kind: audit.UserCreate,
		Team: "main", Actor: audit.Actor{Kind: "user", Name: "ann"}, Outcome: audit.Success}
	if change != nil {
		change(&e)
	}
	b, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	return audit.Record{Seq: seq, ID: e.ID, Body: string(b)}
}

// batch is the events from first to last, and their checkpoint.
func batch(first, last int64) audit.Batch {
	b := audit.Batch{Notes: []audit.Note{{Kind: audit.Checkpoint, Origin: "https://sft.example.com", First: first, Last: last, Time: time.Unix(1, 0)}}}
	for seq := first; seq <= last; seq++ {
		b.Records = append(b.Records, event(seq, nil))
	}
	return b
}

func text(b audit.Batch) string { return string(bytes.Join(b.Lines(), []byte("\n"))) + "\n" }

func mustOpen(t *testing.T, to string, roots *x509.CertPool) Sink {
	t.Helper()
	s, err := Open(to, Options{Host: "sft.example.com", Roots: roots, Secret: sft.NewSecret(secret)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOpen(t *testing.T) {
	const use = "use file:PATH, syslog+tls://HOST:PORT or https://HOST/PATH"
	for _, tt := range []struct{ to, secret, name, hint string }{
		{"file:/var/log/a.jsonl", "", "file:/var/log/a.jsonl", ""},
		{"syslog+tls://siem.example.com", "", "syslog+tls://siem.example.com:6514", ""},
		{"syslog+tls://siem.example.com:99999", "", "", "give a port from 1 to 65535"},
		{"syslog+tls://siem.example.com:0", "", "", "give a port from 1 to 65535"},
		{"https://siem.example.com:99999/hook", secret, "", "give a port from 1 to 65535"},
		{"syslog+tls://[2001:db8::1]:601", "", "syslog+tls://[2001:db8::1]:601", ""},
		{"https://siem.example.com/hook?token=hunter2", secret + "\n", "https://siem.example.com/hook", ""},
		{"https://siem.example.com/hook", "", "", "write one with"},
		{"https://siem.example.com/hook", "whsec_c2hvcnQ=", "", "write one with"},
		{"https://siem.example.com/hook", strings.TrimPrefix(secret, "whsec_"), "", "write one with"},
		{"https://ann:hunter2@siem.example.com/", secret, "", use},
		{"https:///hook", secret, "", use},
		{"https://siem.example.com/#x", secret, "", use},
		{"http://siem.example.com/hook", secret, "", use},
		{"syslog://siem.example.com:514", "", "", use},
		{"syslog+tls://siem.example.com/x", "", "", "use syslog+tls://HOST:PORT"},
		{"https://hunter2:%zz/", secret, "", use},
		{"file:audit.jsonl", "", "", "give a whole path"},
		{"file:/var/../etc/x", "", "", "give a whole path"},
		{"/var/log/a", "", "", use},
		{"", "", "", use},
	} {
		s, err := Open(tt.to, Options{Secret: sft.NewSecret(tt.secret)})
		name, hint := "", ""
		if err == nil {
			name = s.Name()
		} else if e, ok := errors.AsType[*sft.Error](err); ok && e.Code == sft.Invalid {
			hint = e.Hint
			if strings.Contains(e.Msg+e.Hint, "hunter2") {
				t.Errorf("Open(%q) shows the password: %s", tt.to, e.Msg)
			}
		}
		if name != tt.name || !strings.HasPrefix(hint, tt.hint) || tt.hint == "" && err != nil {
			t.Errorf("Open(%q) = %q, %v (%s), want %q, %q", tt.to, name, err, hint, tt.name, tt.hint)
		}
	}
	for text, want := range map[string]string{"": "a webhook needs a secret", "whsec_short": "the secret of the webhooks cannot be used: "} {
		if _, err := Open("https://siem.example.com/hook", Options{Secret: sft.NewSecret(text)}); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("the secret %q: %v, want %s", text, err, want)
		}
	}
	if _, err := ParseRoots([]byte("no certificate")); err == nil {
		t.Error("a file without certificates was taken")
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	s := mustOpen(t, "file:"+path, nil)
	put := func(b audit.Batch) {
		t.Helper()
		if err := s.Send(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	has := func(what, path, want string) {
		t.Helper()
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Errorf("%s: %v, it has\n%s\nwant\n%s", what, err, got, want)
		}
	}
	one, two := text(batch(1, 3)), text(batch(4, 4))
	put(batch(1, 3))
	put(batch(4, 4))
	has("two batches", path, one+two)
	if i, _ := os.Stat(path); runtime.GOOS != "windows" && i.Mode().Perm() != 0o600 {
		t.Errorf("others may read it: %v", i.Mode())
	}

	// It is rotated without a word.
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	put(batch(1, 3))
	has("the old one", path+".1", one+two)
	has("the new one", path, one)

	// A crash has cut a line short: at once, or a long one, or the first.
	for _, torn := range []string{"{", strings.Repeat("x", 200_000)} {
		for _, before := range []string{"", one} {
			if err := os.WriteFile(path, []byte(before+torn), 0o600); err != nil {
				t.Fatal(err)
			}
			put(batch(4, 4))
			has("after a crash", path, before+two)
		}
	}

	for _, bad := range []string{"file:" + t.TempDir(), "file:" + filepath.Join(t.TempDir(), "none", "x"), "file:/dev/full"} {
		if err := mustOpen(t, bad, nil).Send(t.Context(), batch(1, 1)); err == nil {
			t.Errorf("%s was written to", bad)
		}
	}
}

// receiver is a TLS listener on loopback that gives each connection to f.
func receiver(t *testing.T, f func(*tls.Conn, *net.TCPConn)) (addr string, roots *x509.CertPool) {
	t.Helper()
	return receiverWith(t, func(conf *tls.Config, c *net.TCPConn) { f(tls.Server(c, conf), c) })
}

// receiverWith leaves TLS to f.
func receiverWith(t *testing.T, f func(*tls.Config, *net.TCPConn)) (addr string, roots *x509.CertPool) {
	t.Helper()
	srv := httptest.NewUnstartedServer(nil)
	srv.StartTLS()
	cert, leaf := srv.TLS.Certificates[0], srv.Certificate()
	srv.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(&tls.Config{Certificates: []tls.Certificate{cert}}, c.(*net.TCPConn))
			}()
		}
	}()
	roots = x509.NewCertPool()
	roots.AddCert(leaf)
	return ln.Addr().String(), roots
}

// messages splits what a receiver got (RFC 5425, 4.3), strictly.
func messages(b []byte) (list []string, err error) {
	for r := bufio.NewReader(bytes.NewReader(b)); ; {
		length, err := r.ReadString(' ')
		if err == io.EOF && length == "" {
			return list, nil
		}
		n, err2 := strconv.Atoi(strings.TrimSuffix(length, " "))
		if err != nil || err2 != nil || n < 1 || strconv.Itoa(n)+" " != length {
			return nil, fmt.Errorf("%q is no length", length)
		}
		m := make([]byte, n)
		if _, err := io.ReadFull(r, m); err != nil {
			return nil, err
		}
		list = append(list, string(m))
	}
}

// message5424 is what our messages look like (RFC 5424, 6).
var message5424 = regexp.MustCompile(`^<(\d{1,3})>1 (\S+) ([!-~]{1,255}) sft-platform - ([!-~]{1,32}) \[sft@32473((?: [a-z]+="(?:[^"\\\]\x00-\x1f\x7f]|\\["\\\]])*")*)\] (\{[^\n\r]*\})$`)

func TestSyslog(t *testing.T) {
	got := make(chan []byte, 10)
	whole := func(c *tls.Conn, _ *net.TCPConn) {
		b, err := io.ReadAll(c)
		if err == nil {
			got <- b
		}
		c.Close()
	}
	addr, roots := receiver(t, whole)
	s := mustOpen(t, "syslog+tls://"+addr, roots)
	b := batch(41, 42)
	b.Records[1] = event(42, func(e *audit.Event) {
		e.Kind, e.Outcome, e.Target, e.Actor.Name = audit.SessionRefused, audit.Refused, `a"b\c]d`+"\n\x00é", "olive"
	})
	if err := s.Send(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	list, err := messages(<-got)
	if err != nil || len(list) != 3 {
		t.Fatalf("%v, %q", err, list)
	}
	lines := b.Lines()
	for i, want := range []string{
		`<110>1 2026-03-01T09:00:00.123456Z sft.example.com sft-platform - user.create [sft@32473 seq="41" id="019caaaa-0000-7000-8000-000000000041" type="user.create" outcome="success" team="main" actor="ann"] `,
		`<108>1 2026-03-01T09:00:00.123456Z sft.example.com sft-platform - session.refused [sft@32473 seq="42" id="019caaaa-0000-7000-8000-000000000042" type="session.refused" outcome="refused" team="main" actor="olive" target="a\"b\\c\]d??é"] `,
		`<110>1 1970-01-01T00:00:01.000000Z sft.example.com sft-platform - checkpoint [sft@32473 seq="42" hash="` + strings.Repeat("0", 64) + `"] `,
	} {
		if list[i] != want+string(lines[i]) || !message5424.MatchString(list[i]) {
			t.Errorf("message %d is\n%s\nwant\n%s", i, list[i], want+string(lines[i]))
		}
	}

	// A large batch arrives whole.
	big := batch(1, 500)
	if err := s.Send(t.Context(), big); err != nil {
		t.Fatal(err)
	}
	if list, err := messages(<-got); err != nil || len(list) != 501 {
		t.Errorf("of a large batch %d messages came, %v", len(list), err)
	}

	// Whoever is not the receiver gets nothing.
	_, others := receiver(t, whole)
	for what, s := range map[string]Sink{
		"by another CA":    mustOpen(t, "syslog+tls://"+addr, x509.NewCertPool()),
		"of another name":  mustOpen(t, "syslog+tls://localhost:"+addr[strings.LastIndex(addr, ":")+1:], roots),
		"that is not here": mustOpen(t, "syslog+tls://127.0.0.1:1", others),
	} {
		if err := s.Send(t.Context(), b); err == nil {
			t.Errorf("a receiver %s was taken", what)
		}
	}
	if len(got) != 0 {
		t.Error("somebody else got the events")
	}
}

// What a receiver does that has not read everything is no arrival, and none
// can hold up the sender.
func TestSyslogReceiversThatMisbehave(t *testing.T) {
	// More than the buffers of the connection have room for.
	big := batch(1, 3000)
	for i := range big.Records {
		big.Records[i].Body = `"` + strings.Repeat("x", 4<<10) + `"`
	}
	for _, tt := range []struct {
		name string
		do   func(*tls.Conn, *net.TCPConn)
		b    audit.Batch
		want string
	}{
		{"reads all and says farewell", func(c *tls.Conn, _ *net.TCPConn) { io.Copy(io.Discard, c); c.Close() }, batch(1, 900), ""},
		{"reads all and hangs up", func(c *tls.Conn, tcp *net.TCPConn) { io.Copy(io.Discard, c); tcp.Close() }, batch(1, 9), ""},
		{"never speaks TLS", func(c *tls.Conn, tcp *net.TCPConn) { io.Copy(io.Discard, tcp) }, batch(1, 9), "the receiver did not take the batch in time"},
		{"never reads", func(c *tls.Conn, _ *net.TCPConn) { c.Handshake(); <-t.Context().Done() }, big, "the receiver did not take the batch in time"},
		{"never ends", func(c *tls.Conn, _ *net.TCPConn) { io.Copy(io.Discard, c); <-t.Context().Done() }, batch(1, 9), "the receiver did not take the batch in time"},
		{"dies in the middle", func(c *tls.Conn, tcp *net.TCPConn) {
			io.CopyN(io.Discard, c, 100_000)
			tcp.SetLinger(0)
			tcp.Close()
		}, batch(1, 900), "reset|broken pipe"},
		{"dies with something unread", func(c *tls.Conn, tcp *net.TCPConn) {
			c.Handshake()
			time.Sleep(20 * time.Millisecond) // so that there is something
			tcp.Close()
		}, batch(1, 9), "reset|broken pipe"},
		{"says farewell with something unread", func(c *tls.Conn, tcp *net.TCPConn) {
			c.Handshake()
			c.CloseWrite()
			tcp.CloseWrite()
			<-t.Context().Done()
		}, batch(1, 900), "the receiver did not take the batch in time"},
		{"says farewell with something unread and dies", func(c *tls.Conn, tcp *net.TCPConn) {
			c.Handshake()
			c.CloseWrite()
			time.Sleep(20 * time.Millisecond)
		}, batch(1, 900), "reset|broken pipe"},
		{"says farewell with something unread, ends its side and dies", func(c *tls.Conn, tcp *net.TCPConn) {
			c.Handshake()
			c.CloseWrite()
			tcp.CloseWrite()
			time.Sleep(20 * time.Millisecond)
		}, batch(1, 900), "reset|broken pipe"},
		{"answers without end", func(c *tls.Conn, _ *net.TCPConn) {
			for {
				if _, err := c.Write(make([]byte, 1000)); err != nil {
					return
				}
			}
		}, batch(1, 9), "the receiver answers|reset|broken pipe"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			addr, roots := receiver(t, tt.do)
			ctx := t.Context()
			if strings.HasSuffix(tt.want, "in time") {
				var cancel func()
				ctx, cancel = context.WithTimeout(ctx, time.Second)
				defer cancel()
			}
			err := mustOpen(t, "syslog+tls://"+addr, roots).Send(ctx, tt.b)
			if (err == nil) != (tt.want == "") || err != nil && !regexp.MustCompile(tt.want).MatchString(err.Error()) {
				t.Errorf("Send = %v, want %q", err, tt.want)
			}
		})
	}
}

// mute is a connection that drops what is written once quiet is set, but for the
// end.
type mute struct {
	net.Conn
	quiet atomic.Bool
}

func (m *mute) Write(b []byte) (int, error) {
	if m.quiet.Load() {
		return len(b), nil
	}
	return m.Conn.Write(b)
}

// A receiver that refuses our certificate has got nothing, also by TLS 1.3,
// where our handshake ends before it has looked, and whether it says so, hangs
// up, or ends its side first.
func TestSyslogReceiversThatRefuseTheCertificate(t *testing.T) {
	dir := t.TempDir()
	keyPair(t, dir, "ours")
	certificate := func() (*tls.Certificate, error) {
		return ReadKeyPair(filepath.Join(dir, "ours.pem"), filepath.Join(dir, "ours.key"))
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, tt := range []struct {
			name string
			mute bool
			end  func(*net.TCPConn)
			want string
		}{
			{"says so", false, func(*net.TCPConn) {}, "remote error: tls: |reset|broken pipe"},
			{"hangs up", true, func(*net.TCPConn) {}, "EOF|reset|broken pipe"},
			{"ends its side first", true, func(c *net.TCPConn) { c.CloseWrite(); time.Sleep(20 * time.Millisecond) }, "EOF|reset|broken pipe"},
		} {
			t.Run(tls.VersionName(version)+" "+tt.name, func(t *testing.T) {
				t.Parallel()
				refused := make(chan error, 10)
				addr, roots := receiverWith(t, func(conf *tls.Config, tcp *net.TCPConn) {
					m := &mute{Conn: tcp}
					conf.MinVersion, conf.MaxVersion, conf.ClientAuth = version, version, tls.RequireAnyClientCert
					conf.VerifyPeerCertificate = func([][]byte, [][]*x509.Certificate) error {
						m.quiet.Store(tt.mute)
						return errors.New("not this one")
					}
					refused <- tls.Server(m, conf).Handshake()
					tt.end(tcp)
				})
				s, err := Open("syslog+tls://"+addr, Options{Roots: roots, Certificate: certificate})
				if err != nil {
					t.Fatal(err)
				}
				for range 10 {
					err := s.Send(t.Context(), batch(1, 900))
					if err == nil || !regexp.MustCompile(tt.want).MatchString(err.Error()) {
						t.Fatalf("Send = %v, want %q", err, tt.want)
					}
					if err := <-refused; err == nil || err.Error() != "not this one" {
						t.Fatalf("the receiver's handshake: %v", err)
					}
				}
			})
		}
	}
}

// Whatever an event says, its message has the form of one message, and the
// line of JSON is in it.
func FuzzSyslogMessage(f *testing.F) {
	f.Add("user.create", "ann", "web01", int64(0), `{"id":"x"}`)
	f.Add("a b]", `"]\`, "\n\x00\u0085\xff", int64(1)<<62, "not JSON\n")
	f.Fuzz(func(t *testing.T, kind, actor, target string, at int64, body string) {
		s := &syslog{host: printable(actor, 255)}
		r := event(1, func(e *audit.Event) {
			e.Kind, e.Actor.Name, e.Target = audit.Kind(kind), actor, target
			if u := time.Unix(at, 0).UTC(); u.Year() >= 0 && u.Year() <= 9999 {
				e.Time = u
			}
		})
		for _, r := range []audit.Record{r, {Seq: 1, ID: target, Body: body}} {
			m := s.event(r)
			if got := message5424.FindSubmatch(m); got == nil || string(got[6]) != string(r.Line()) || !json.Valid(got[6]) {
				t.Errorf("the message is %q", m)
			}
		}
	})
}

func TestWebhook(t *testing.T) {
	type request struct {
		*http.Request
		body []byte
	}
	got := make(chan request, 1000)
	answer := http.StatusNoContent
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- request{r, b}
		if answer/100 == 3 {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(answer)
	}))
	defer srv.Close()
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	s := mustOpen(t, srv.URL+"/hook?token=hunter2", roots)
	b := batch(7, 9)
	if err := s.Send(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	r := <-got
	// As the receiver checks it.
	key, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(r.Header.Get("webhook-id") + "." + r.Header.Get("webhook-timestamp") + "." + string(r.body)))
	if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); r.Header.Get("webhook-signature") != want {
		t.Errorf("the signature is %q, want %q", r.Header.Get("webhook-signature"), want)
	}
	if sec, err := strconv.ParseInt(r.Header.Get("webhook-timestamp"), 10, 64); err != nil || time.Since(time.Unix(sec, 0)).Abs() > 5*time.Minute {
		t.Errorf("the time is %q", r.Header.Get("webhook-timestamp"))
	}
	if r.Method != "POST" || r.URL.String() != "/hook?token=hunter2" || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("webhook-id") != "audit_7_9_0000000000000000" {
		t.Errorf("the request is %s %s, %v", r.Method, r.URL, r.Header)
	}
	var v struct {
		Type string
		Data []json.RawMessage
	}
	if err := json.Unmarshal(r.body, &v); err != nil || v.Type != "audit.batch" || len(v.Data) != 4 || string(v.Data[0]) != string(b.Lines()[0]) {
		t.Errorf("the body is %s, %v", r.body, err)
	}

	// Only 2xx is an arrival, and nobody is sent elsewhere.
	for _, answer = range []int{200, 299, 301, 302, 307, 308, 400, 401, 410, 429, 500, 503} {
		err := s.Send(t.Context(), b)
		if (err == nil) != (answer/100 == 2) || err != nil && err.Error() != fmt.Sprint("the receiver answers ", answer) {
			t.Errorf("answered with %d: %v", answer, err)
		}
		if r := <-got; r.URL.Path != "/hook" || len(got) > 0 {
			t.Errorf("answered with %d, it goes on to %s", answer, r.URL)
		}
	}

	answer = 200
	for what, s := range map[string]Sink{"by another CA": mustOpen(t, srv.URL+"/hook?token=hunter2", x509.NewCertPool()), "that is not here": mustOpen(t, "https://127.0.0.1:1/?token=hunter2", roots)} {
		if err := s.Send(t.Context(), b); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("a receiver %s: %v", what, err)
		}
	}
	if len(got) != 0 {
		t.Error("somebody else got the events")
	}
}

func TestWebhookReceiversThatMisbehave(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		hangs      bool
		do         http.HandlerFunc
	}{
		{"never answers", "the receiver did not take the batch in time", true, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			panic(http.ErrAbortHandler) // not even now
		}},
		{"hangs up", "EOF|reset", false, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		{"has a header without end", "header", false, func(w http.ResponseWriter, r *http.Request) {
			for i := range 1000 {
				w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("x", 1000))
			}
		}},
		{"has a body without end", "", false, func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				w.Write(make([]byte, 1000))
			}
		}},
		{"has a body that hangs", "", true, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewTLSServer(tt.do)
			defer srv.Close()
			srv.Config.ErrorLog = nil
			roots := x509.NewCertPool()
			roots.AddCert(srv.Certificate())
			ctx := t.Context()
			if tt.hangs {
				var cancel func()
				ctx, cancel = context.WithTimeout(ctx, time.Second)
				defer cancel()
			}
			err := mustOpen(t, srv.URL, roots).Send(ctx, batch(1, 3))
			if (err == nil) != (tt.want == "") || err != nil && !regexp.MustCompile(tt.want).MatchString(err.Error()) {
				t.Errorf("Send = %v, want %q", err, tt.want)
			}
		})
	}
}

// keyPair writes NAME.pem and NAME.key into dir.
func keyPair(t *testing.T, dir, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for ext, b := range map[string]*pem.Block{"pem": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "PRIVATE KEY", Bytes: k}} {
		if err := conf.WriteSecret(filepath.Join(dir, name+"."+ext), pem.EncodeToMemory(b)); err != nil {
			t.Fatal(err)
		}
	}
}

// A receiver that asks sees the certificate that is in the files now, and
// nothing is sent with files that are not a pair.
func TestTheCertificateIsReadForEachConnection(t *testing.T) {
	seen := make(chan string, 10)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.TLS.PeerCertificates[0].Subject.CommonName
	}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	roots, dir := x509.NewCertPool(), t.TempDir()
	roots.AddCert(srv.Certificate())
	keyPair(t, dir, "a")
	keyPair(t, dir, "b")
	file := func(name string) string { return filepath.Join(dir, name) }
	o := Options{Roots: roots, Secret: sft.NewSecret(secret), Certificate: func() (*tls.Certificate, error) { return ReadKeyPair(file("a.pem"), file("a.key")) }}
	hook, err := Open(srv.URL+"/hook", o)
	if err != nil {
		t.Fatal(err)
	}
	send := func(want, refusal string) {
		t.Helper()
		hook.(*webhook).client.CloseIdleConnections()
		err := hook.Send(t.Context(), batch(1, 2))
		if refusal != "" {
			if err == nil || !strings.Contains(err.Error(), refusal) || len(seen) > 0 {
				t.Errorf("Send = %v, want %q", err, refusal)
			}
		} else if err != nil {
			t.Error(err)
		} else if got := <-seen; got != want {
			t.Errorf("the receiver sees %q, want %q", got, want)
		}
	}
	send("a", "")
	if err := os.Rename(file("b.pem"), file("a.pem")); err != nil {
		t.Fatal(err)
	}
	send("", "are not a pair")
	if err := os.Rename(file("b.key"), file("a.key")); err != nil {
		t.Fatal(err)
	}
	send("b", "")
	if runtime.GOOS != "windows" {
		if err := os.Chmod(file("a.key"), 0o640); err != nil {
			t.Fatal(err)
		}
		send("", "can be read by others")
	}
	if hook, err = Open(srv.URL+"/hook", Options{Roots: roots, Secret: sft.NewSecret(secret)}); err != nil {
		t.Fatal(err)
	}
	send("", "certificate required")
}
