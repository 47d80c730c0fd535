package rdp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"sft"
)

var (
	tsTestKey   = []byte("the public key of the service")
	tsTestAlice = Credentials{Domain: "ANY", User: "Alice", Password: sft.NewSecret("pä55")}
)

// tsTestAccept is CredSSPAccept for tsTestAlice.
func tsTestAccept(rw io.ReadWriter) error {
	return CredSSPAccept(rw, tsTestKey, "alice", sft.NewSecret("pä55"), ntlmNow)
}

// tsTestConnect is CredSSPConnect of tsTestAlice.
func tsTestConnect(bare bool) func(io.ReadWriter) error {
	return func(rw io.ReadWriter) error {
		return tsConnect(rw, tsTestKey, tsTestAlice, "TERMSRV/host", false, bare)
	}
}

// tsRun runs a client and a server on the two ends of a connection, which
// close theirs when they are done. Messages pass edit, with the number of the
// message; if that returns false, or an incomplete message, the connection
// ends.
func tsRun(t testing.TB, client, server func(io.ReadWriter) error, edit func(n int, m []byte) ([]byte, bool)) (clientErr, serverErr error) {
	t.Helper()
	c, mc := net.Pipe()
	s, ms := net.Pipe()
	deadline := time.Now().Add(10 * time.Second)
	for _, p := range []net.Conn{c, mc, s, ms} {
		p.SetDeadline(deadline)
	}
	done := make(chan error, 2)
	run := func(p net.Conn, f func(io.ReadWriter) error, err *error) {
		*err = f(p)
		p.Close()
		done <- nil
	}
	go run(c, client, &clientErr)
	go run(s, server, &serverErr)
	// They speak by turns.
	from, to := mc, ms
	for n := 0; ; n++ {
		m, err := tsReadDER(from)
		if err != nil {
			break
		}
		ok := true
		if edit != nil {
			m, ok = edit(n, m)
			// Who reads another length than was written would wait for ever.
			whole, err := tsReadDER(bytes.NewReader(m))
			ok = ok && err == nil && len(whole) == len(m)
		}
		if _, err := to.Write(m); err != nil || !ok {
			break
		}
		from, to = to, from
	}
	mc.Close()
	ms.Close()
	<-done
	<-done
	return clientErr, serverErr
}

func TestCredSSP(t *testing.T) {
	for _, c := range []struct {
		name string
		bare bool
		want []string // what is in each message beside the version
	}{
		{"bare NTLM", true, []string{"token", "token", "token nonce key", "key", "info"}},
		{"SPNEGO", false, []string{"token", "token", "token", "token", "nonce key", "key", "info"}},
	} {
		var got []string
		client, server := tsRun(t, tsTestConnect(c.bare), tsTestAccept, func(_ int, m []byte) ([]byte, bool) {
			r, err := tsRead(bytes.NewReader(m))
			if err != nil || r.Version != 6 {
				t.Errorf("%s: %x: %v", c.name, m, err)
				return m, true
			}
			var has []string
			for name, ok := range map[string]bool{"token": r.NegoTokens != nil, "nonce": r.Nonce != nil, "key": r.PubKeyAuth != nil, "info": r.AuthInfo != nil} {
				if ok {
					has = append(has, name)
				}
			}
			for _, name := range []string{"token", "nonce", "key", "info"} {
				for k := range has {
					if has[k] == name {
						has = append(append(has[:k:k], has[k+1:]...), name)
						break
					}
				}
			}
			got = append(got, strings.Join(has, " "))
			return m, true
		})
		if client != nil || server != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: client %v, server %v, messages %q, want %q", c.name, client, server, got, c.want)
		}
	}
}

// TestCredSSPRefusesOthers checks that nobody gets in with another user or
// password, and is told so.
func TestCredSSPRefusesOthers(t *testing.T) {
	for _, c := range []struct {
		name, user, password string
		bare                 bool
	}{
		{"another password, bare", "alice", "pa55", true},
		{"another password, in SPNEGO", "alice", "pa55", false},
		{"another user", "bob", "pä55", true},
		{"no password", "alice", "", true},
	} {
		client, server := tsRun(t, func(rw io.ReadWriter) error {
			return tsConnect(rw, tsTestKey, Credentials{"ANY", c.user, sft.NewSecret(c.password)}, "TERMSRV/host", false, c.bare)
		}, tsTestAccept, nil)
		if !errors.Is(server, ErrLogon) || !errors.Is(client, ErrLogon) || !strings.Contains(client.Error(), "wrong (0xC000006D)") {
			t.Errorf("%s: client %v, server %v, want ErrLogon with its code", c.name, client, server)
		}
	}
}

// TestCredSSPBindsTLS checks that neither end takes a connection through
// somebody else's TLS.
func TestCredSSPBindsTLS(t *testing.T) {
	for _, bare := range []bool{true, false} {
		_, server := tsRun(t, func(rw io.ReadWriter) error {
			return tsConnect(rw, []byte("the public key of somebody else"), tsTestAlice, "", false, bare)
		}, tsTestAccept, nil)
		if !errors.Is(server, errBinding) {
			t.Errorf("bare %v: the server says %v, want errBinding", bare, server)
		}
		for name, hash := range map[string]func(nonce []byte) []byte{
			"another key":    func(nonce []byte) []byte { return tsHash(tsServerHash, nonce, []byte("another")) },
			"another nonce":  func([]byte) []byte { return tsHash(tsServerHash, make([]byte, 32), tsTestKey) },
			"the client's":   func(nonce []byte) []byte { return tsHash(tsClientHash, nonce, tsTestKey) },
			"the key itself": func([]byte) []byte { return tsTestKey },
			"nothing":        func([]byte) []byte { return nil },
		} {
			more := false
			client, _ := tsRun(t, tsTestConnect(bare), func(rw io.ReadWriter) error {
				a := spnegoAcceptor{ntlm: ntlmTestAcceptor()}
				peer := tsPeer{rw: rw}
				r, token, session, err := peer.signIn(&a)
				if err != nil {
					return err
				}
				if err := tsWrite(rw, tsRequest{NegoTokens: tsTokens(token), PubKeyAuth: session.wrap(hash(r.Nonce))}); err != nil {
					return err
				}
				_, err = peer.next()
				more = err == nil
				return err
			}, nil)
			if !errors.Is(client, errBinding) || more {
				t.Errorf("bare %v: %s: the client says %v, and goes on %v, want errBinding", bare, name, client, more)
			}
		}
	}
}

// TestCredSSPChangedOnTheWay checks that there is no byte of the exchange that
// can be changed without one of the ends seeing it, and none after which it
// can be cut.
func TestCredSSPChangedOnTheWay(t *testing.T) {
	for _, bare := range []bool{true, false} {
		var sizes []int
		client, server := tsRun(t, tsTestConnect(bare), tsTestAccept, func(_ int, m []byte) ([]byte, bool) {
			sizes = append(sizes, len(m))
			return m, true
		})
		if client != nil || server != nil {
			t.Fatal(client, server)
		}
		for n, size := range sizes {
			for at := range size {
				client, server := tsRun(t, tsTestConnect(bare), tsTestAccept, func(k int, m []byte) ([]byte, bool) {
					if k != n {
						return m, true
					}
					m[at] ^= 1
					return m, true
				})
				if client == nil && server == nil {
					t.Errorf("bare %v: nobody saw message %d changed at %d", bare, n, at)
				}
				client, server = tsRun(t, tsTestConnect(bare), tsTestAccept, func(k int, m []byte) ([]byte, bool) {
					if k != n {
						return m, true
					}
					return m[:at], false
				})
				reader := server
				if n%2 == 1 {
					reader = client
				}
				if reader == nil || at > 0 && !errors.Is(reader, io.ErrUnexpectedEOF) {
					t.Errorf("bare %v: message %d cut at %d: the reader says %v", bare, n, at, reader)
				}
			}
		}
	}
}

// tsSetVersion sets the version of a message.
func tsSetVersion(t testing.TB, m []byte, version int) []byte {
	t.Helper()
	r, err := tsRead(bytes.NewReader(m))
	if err != nil {
		t.Fatal(err)
	}
	r.Version = version
	b, err := asn1.Marshal(*r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestCredSSPVersions checks what is made of a peer of another version, and of
// one that changes it.
func TestCredSSPVersions(t *testing.T) {
	for _, version := range []int{2, 3, 4, 5, 6, 7} {
		for _, side := range []int{0, 1} {
			var last *tsRequest
			messages := 0
			client, server := tsRun(t, tsTestConnect(true), tsTestAccept, func(n int, m []byte) ([]byte, bool) {
				messages++
				last, _ = tsRead(bytes.NewReader(m))
				if n%2 == side {
					return tsSetVersion(t, m, version), true
				}
				return m, true
			})
			err, reader := server, "server"
			if side == 1 {
				err, reader = client, "client"
			}
			if version >= 5 {
				if client != nil || server != nil {
					t.Errorf("version %d: client %v, server %v", version, client, server)
				}
				continue
			}
			if !errors.Is(err, ErrOldCredSSP) {
				t.Errorf("version %d: the %s says %v, want ErrOldCredSSP", version, reader, err)
			}
			wantMessages, wantCode := 2, int64(0)
			if side == 0 && version == 2 {
				wantMessages = 1 // there is no way to tell it
			}
			if side == 0 && version > 2 {
				wantCode = int64(int32(-0x3FFFFF45)) // STATUS_NOT_SUPPORTED
			}
			if messages != wantMessages || last.ErrorCode != wantCode {
				t.Errorf("version %d of the peer of the %s: %d messages, the last with code %#x, want %d, %#x", version, reader, messages, last.ErrorCode, wantMessages, wantCode)
			}
		}
	}
	for n := range 5 {
		client, server := tsRun(t, tsTestConnect(true), tsTestAccept, func(k int, m []byte) ([]byte, bool) {
			if k == n {
				return tsSetVersion(t, m, 5), true
			}
			return m, true
		})
		if client == nil && server == nil {
			t.Errorf("message %d alone has another version, and nobody minds", n)
		}
	}
	// Version 5 has no field for the code.
	messages := 0
	client, server := tsRun(t, func(rw io.ReadWriter) error {
		return CredSSPConnect(rw, tsTestKey, Credentials{"", "alice", sft.NewSecret("wrong")}, "", false)
	}, tsTestAccept, func(n int, m []byte) ([]byte, bool) {
		messages++
		if n%2 == 0 {
			m = tsSetVersion(t, m, 5)
		}
		return m, true
	})
	if !errors.Is(client, ErrLogon) || !errors.Is(server, ErrLogon) || messages != 3 {
		t.Errorf("wrong password with version 5: client %v, server %v after %d messages, want ErrLogon after 3", client, server, messages)
	}
}

// TestCredSSPNonce checks that a client without a nonce, or with another one
// than it has hashed, does not get in.
func TestCredSSPNonce(t *testing.T) {
	for name, nonce := range map[string][]byte{"no nonce": nil, "a short nonce": make([]byte, 31), "another nonce": make([]byte, 32)} {
		_, server := tsRun(t, tsTestConnect(true), tsTestAccept, func(n int, m []byte) ([]byte, bool) {
			if n != 2 {
				return m, true
			}
			r, err := tsRead(bytes.NewReader(m))
			if err != nil {
				t.Fatal(err)
			}
			r.Nonce = nonce
			m, err = asn1.Marshal(*r)
			return m, err == nil
		})
		want := errTSRequest
		if len(nonce) == 32 {
			want = errBinding
		}
		if !errors.Is(server, want) {
			t.Errorf("%s: the server says %v, want %v", name, server, want)
		}
	}
}

// TestCredSSPConnectSays checks what the initiator makes of a server that does
// not go on.
func TestCredSSPConnectSays(t *testing.T) {
	const all = 99
	for _, c := range []struct {
		name     string
		messages int     // that it answers as it should
		code     int64   // the errorCode that it sends then, or
		early    *uint32 // the result at the end; else it hangs up
		kind     error
		say      string
	}{
		{"hangs up at once", 0, 0, nil, io.EOF, "hung up"},
		{"hangs up when it saw the proof", 1, 0, nil, ErrLogon, "hung up"},
		{"hangs up when it got the password", 2, 0, nil, io.EOF, "EOF"},
		{"refuses at once", 0, 0xC0000022, nil, nil, "breaks off the sign-in: the access is denied (0xC0000022)"},
		{"refuses the proof, signed", 1, 0xC000006D - 1<<32, nil, ErrLogon, "the user name or the password is wrong (0xC000006D)"},
		{"refuses the proof, unsigned", 1, 0xC000006D, nil, ErrLogon, "the user name or the password is wrong (0xC000006D)"},
		{"has it disabled", 1, 0xC0000072, nil, ErrLogon, "disabled (0xC0000072)"},
		{"has it locked", 1, 0xC0000234, nil, ErrLogon, "locked (0xC0000234)"},
		{"has it expired", 1, 0xC0000193, nil, ErrLogon, "account has expired (0xC0000193)"},
		{"has the password expired", 1, 0xC0000071, nil, ErrLogon, "password has expired (0xC0000071)"},
		{"wants another password", 1, 0xC0000224, nil, ErrLogon, "changed first (0xC0000224)"},
		{"does not grant the logon type", 1, 0xC000015B, nil, ErrLogon, "type of logon (0xC000015B)"},
		{"has a restriction", 1, 0xC000006E, nil, ErrLogon, "restriction of the account forbids it, as for an empty password or a protected user (0xC000006E)"},
		{"blocks NTLM", 1, 0xC0000418, nil, ErrLogon, "NTLM is blocked there (0xC0000418)"},
		{"says something new", 1, 0xC0DE0001, nil, ErrLogon, "(0xC0DE0001)"},
		{"lets it in", all, 0, new(uint32(0)), nil, ""},
		{"lets it in, but not to the desktop", all, 0, new(uint32(5)), ErrEarlyDenied, "no right"},
		{"gives an unknown result", all, 0, new(uint32(0x80000005)), nil, "0x80000005"},
	} {
		c1, s1 := net.Pipe()
		for _, p := range []net.Conn{c1, s1} {
			p.SetDeadline(time.Now().Add(10 * time.Second))
		}
		served := make(chan error, 1)
		go func() {
			defer s1.Close()
			served <- func() error {
				if c.messages == all {
					if err := tsTestAccept(s1); err != nil {
						return err
					}
					_, err := s1.Write(binary.LittleEndian.AppendUint32(nil, *c.early))
					return err
				}
				answers := 0
				return tsTestAccept(tsEdge{Reader: s1, write: func(b []byte) (int, error) {
					if answers++; answers <= c.messages {
						return s1.Write(b)
					}
					if c.code != 0 {
						tsWrite(s1, tsRequest{ErrorCode: c.code})
					}
					return 0, errors.New("that was it")
				}})
			}()
		}()
		err := CredSSPConnect(c1, tsTestKey, tsTestAlice, "TERMSRV/host", true)
		c1.Close()
		if serr := <-served; c.messages == all && serr != nil {
			t.Errorf("a server that %s: %v", c.name, serr)
		}
		switch {
		case c.say == "" && err != nil,
			c.say != "" && (err == nil || !strings.Contains(err.Error(), c.say)),
			c.kind != nil && !errors.Is(err, c.kind),
			c.kind != ErrLogon && errors.Is(err, ErrLogon),
			c.kind != ErrEarlyDenied && errors.Is(err, ErrEarlyDenied):
			t.Errorf("a server that %s: got %v, want kind %v, and %q", c.name, err, c.kind, c.say)
		}
	}
}

// tsEdge is a connection that is written by a function.
type tsEdge struct {
	io.Reader
	write func([]byte) (int, error)
}

func (e tsEdge) Write(b []byte) (int, error) { return e.write(b) }

// TestCredSSPTimeout checks that a server that is slow is not one that has
// refused.
func TestCredSSPTimeout(t *testing.T) {
	c, s := net.Pipe()
	defer s.Close()
	go func() {
		a := ntlmTestAcceptor()
		r, err := tsRead(s)
		if err != nil {
			return
		}
		challenge, err := a.challenge(r.token())
		if err != nil {
			return
		}
		tsWrite(s, tsRequest{NegoTokens: tsTokens(challenge)})
		tsRead(s)
		c.SetReadDeadline(time.Unix(1, 0))
	}()
	err := CredSSPConnect(c, tsTestKey, tsTestAlice, "", false)
	if timeout, ok := errors.AsType[net.Error](err); !ok || !timeout.Timeout() || errors.Is(err, ErrLogon) {
		t.Errorf("got %v, want a timeout", err)
	}
}

// TestCredSSPAcceptDelegation checks that a client has to delegate what it has
// shown.
func TestCredSSPAcceptDelegation(t *testing.T) {
	password := func(domain, user, password string) []byte {
		inner := spnegoMarshal(tsPassword{utf16Bytes(domain), utf16Bytes(user), utf16Bytes(password)})
		return spnegoMarshal(tsCredentials{tsPasswordType, inner})
	}
	for _, c := range []struct {
		name string
		info []byte
		ok   bool
		kind error
	}{
		{"the same", password("ANY", "alice", "pä55"), true, nil},
		{"another domain and case", password("", "ALICE", "pä55"), true, nil},
		{"another password", password("ANY", "alice", "pa55"), false, ErrLogon},
		{"no password, as in restricted admin mode", password("", "", ""), false, ErrLogon},
		{"another user", password("ANY", "bob", "pä55"), false, ErrLogon},
		{"a smart card", spnegoMarshal(tsCredentials{2, []byte{0x30, 0}}), false, nil},
		{"bytes at the end", append(password("ANY", "alice", "pä55"), 0), false, errTSRequest},
		{"an empty sequence", []byte{0x30, 0}, false, nil},
		{"nothing", nil, false, errTSRequest},
	} {
		_, server := tsRun(t, func(rw io.ReadWriter) error {
			i := spnegoInitiator{bare: true, ntlm: ntlmTestInitiator("alice", "ANY", "pä55")}
			peer := tsPeer{rw: rw}
			token, session, err := i.next(nil)
			if err != nil {
				return err
			}
			if err := tsWrite(rw, tsRequest{NegoTokens: tsTokens(token)}); err != nil {
				return err
			}
			r, err := peer.next()
			if err != nil {
				return err
			}
			if token, session, err = i.next(r.token()); err != nil {
				return err
			}
			nonce := make([]byte, tsNonceSize)
			if err := tsWrite(rw, tsRequest{NegoTokens: tsTokens(token), Nonce: nonce, PubKeyAuth: session.wrap(tsHash(tsClientHash, nonce, tsTestKey))}); err != nil {
				return err
			}
			if _, err := peer.next(); err != nil {
				return err
			}
			return tsWrite(rw, tsRequest{AuthInfo: session.wrap(c.info)})
		}, tsTestAccept, nil)
		if (server == nil) != c.ok || c.kind != nil && !errors.Is(server, c.kind) || c.kind != ErrLogon && errors.Is(server, ErrLogon) {
			t.Errorf("%s: the server says %v, want ok %v, kind %v", c.name, server, c.ok, c.kind)
		}
	}
}

// tsLimit is a reader that counts what is asked of it.
type tsLimit struct {
	io.Reader
	asked int
}

func (l *tsLimit) Read(b []byte) (int, error) {
	l.asked = max(l.asked, len(b))
	return l.Reader.Read(b)
}

// TestTSRequestClaims checks that nothing is allocated for a length that is
// only claimed.
func TestTSRequestClaims(t *testing.T) {
	for name, head := range map[string][]byte{
		"a gigabyte":                   {0x30, 0x84, 0x40, 0, 0, 0},
		"16 megabytes":                 {0x30, 0x83, 0xff, 0xff, 0xff},
		"a byte above the cap":         {0x30, 0x83, 0x01, 0x00, 0x01},
		"an indefinite length":         {0x30, 0x80, 0, 0},
		"a reserved length":            {0x30, 0xff, 0, 0},
		"more than is there, in total": {0x30, 0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"a PDU of RDP":                 {0x03, 0x00, 0x00, 0x13},
	} {
		l := &tsLimit{Reader: bytes.NewReader(append(head, make([]byte, 100)...))}
		if r, err := tsRead(l); r != nil || !errors.Is(err, errTSRequest) || l.asked > 3 {
			t.Errorf("%s: got %v, %v after asking for %d bytes, want errTSRequest", name, r, err, l.asked)
		}
	}
	// The cap itself is read.
	big := spnegoMarshal(tsRequest{Version: 6, AuthInfo: make([]byte, tsMax-13)})
	if size := len(big) - 5; size != tsMax {
		t.Fatalf("the big one has %d bytes", size)
	}
	if r, err := tsRead(bytes.NewReader(big)); err != nil || len(r.AuthInfo) != tsMax-13 {
		t.Errorf("at the cap: got %v", err)
	}
}

// TestTSFields checks what package asn1 leaves unchecked.
func TestTSFields(t *testing.T) {
	for _, c := range []struct {
		name, inHex string
		ok          bool
	}{
		{"both fields", "300a a003 020106 a103 040107", true},
		{"the second alone", "3005 a103 040107", true},
		{"a field of a later version", "300f a003 020106 a103 040107 a703 020101", true},
		{"a field twice", "300a a003 020106 a003 020106", false},
		{"the second before the first", "300a a103 040107 a003 020106", false},
		{"something behind a value, in its tag", "3008 a006 020106 020106", false},
		{"a value of another type", "3005 a003 040106", false},
		{"a tag of another class", "3005 6003 020106", false},
		{"a tag that is a value", "3003 800106", false},
		{"something behind the sequence", "3005 a003 020106 00", false},
	} {
		var version int
		var token []byte
		if got := tsFields(ntlmHex(t, c.inHex), &version, &token); got != c.ok {
			t.Errorf("%s: got %v, want %v", c.name, got, c.ok)
		}
	}
}

func TestPublicKeyBits(t *testing.T) {
	rk, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ek, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := ek.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name         string
		public, sign any
		want         []byte
	}{
		{"RSA", rk.Public(), rk, x509.MarshalPKCS1PublicKey(&rk.PublicKey)},
		{"ECDSA", ek.Public(), ek, point},
	} {
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, c.public, c.sign)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := PublicKeyBits(cert); err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("%s: got %x, %v, want %x", c.name, got, err, c.want)
		}
	}
	for name, info := range map[string][]byte{"nothing": nil, "no bits": {0x30, 6, 0x30, 0, 3, 2, 7, 0x80}, "bytes at the end": {0x30, 6, 0x30, 0, 3, 2, 0, 1, 0}} {
		if got, err := PublicKeyBits(&x509.Certificate{RawSubjectPublicKeyInfo: info}); err == nil || got != nil {
			t.Errorf("%s: got %x, %v", name, got, err)
		}
	}
}

// FuzzTSRequest checks that what is read is within the cap, and reads the same
// when written again; and that neither end is content with it alone.
func FuzzTSRequest(f *testing.F) {
	for _, bare := range []bool{true, false} {
		tsRun(f, tsTestConnect(bare), tsTestAccept, func(_ int, m []byte) ([]byte, bool) {
			f.Add(bytes.Clone(m))
			return m, true
		})
	}
	f.Add([]byte{0x30, 0x84, 0x40, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		l := &tsLimit{Reader: bytes.NewReader(b)}
		r, err := tsRead(l)
		if l.asked > tsMax {
			t.Errorf("%x: asked for %d bytes", b, l.asked)
		}
		if err == nil {
			out, err := asn1.Marshal(*r)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := tsRead(bytes.NewReader(out)); err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("%x was read as %+v, and that as %+v, %v", b, r, again, err)
			}
		}
		rw := struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(b), io.Discard}
		if err := tsTestAccept(rw); err == nil {
			t.Errorf("%x was let in", b)
		}
		rw.Reader = bytes.NewReader(b)
		if err := tsTestConnect(true)(rw); err == nil {
			t.Errorf("%x was signed in to", b)
		}
	})
}
