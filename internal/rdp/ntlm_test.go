package rdp

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"sft"
)

// ntlmHex decodes hex with spaces.
func ntlmHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ntlmNow() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC) }

// ntlmSampleChallenge is the CHALLENGE_MESSAGE of MS-NLMP 4.2.4.3.
const ntlmSampleChallenge = "4e544c4d5353500002000000 0c000c0038000000 338a8ae2 0123456789abcdef 0000000000000000 2400240044000000 0600701700 00000f" +
	"530065007200760065007200 02000c0044006f006d00610069006e00 01000c00530065007200760065007200 00000000"

// TestNTLMVectors checks the values of MS-NLMP 4.2.1 and 4.2.4.
func TestNTLMVectors(t *testing.T) {
	challenge, err := ntlmParseChallenge(ntlmHex(t, ntlmSampleChallenge))
	if err != nil {
		t.Fatal(err)
	}
	nonce, exported := bytes.Repeat([]byte{0xaa}, 8), bytes.Repeat([]byte{0x55}, 16)
	hash := ntlmHash(sft.NewSecret("Password"))
	owf := ntlmOWF(hash, "User", "Domain")
	blob := ntlmBlob(0, nonce, challenge.TargetInfo)
	proof, base := ntlmProve(owf, challenge.Nonce[:], blob)
	session := ntlmNewSession(exported, true)
	sealed := session.wrap(utf16Bytes("Plaintext"))
	for _, v := range []struct {
		name      string
		got       []byte
		wantInHex string
	}{
		{"server challenge", challenge.Nonce[:], "0123456789abcdef"},
		{"NTOWFv1 (4.2.2.1.2)", hash, "a4f49c406510bdcab6824ee7c30fd852"},
		{"NTOWFv2 (4.2.4.1.1)", owf, "0c868a403bfd7a93a3001ef22ef02e3f"},
		{"temp (4.2.4.1.3)", blob, "0101000000000000 0000000000000000 aaaaaaaaaaaaaaaa 00000000" +
			"02000c0044006f006d00610069006e00 01000c00530065007200760065007200 00000000 00000000"},
		{"session base key (4.2.4.1.2)", base, "8de40ccadbc14a82f15cb0ad0de95ca3"},
		{"LMv2 response (4.2.4.2.1)", append(ntlmHMAC(owf, challenge.Nonce[:], nonce), nonce...), "86c35097ac9cec102554764a57cccc19 aaaaaaaaaaaaaaaa"},
		{"NTLMv2 response (4.2.4.2.2)", proof, "68cd0ab851e51c96aabc927bebef6a1c"},
		{"encrypted session key (4.2.4.2.3)", ntlmRC4(base, exported), "c5dad2544fc9799094ce1ce90bc9d03e"},
		{"sealing key (4.2.4.4)", session.send.sealKey, "59f600973cc4960a25480a7c196e4c58"},
		{"signing key (4.2.4.4)", session.send.signKey, "4788dc861b4782f35d43fd98fe1a2d39"},
		{"GSS_WrapEx (4.2.4.4)", sealed, "01000000 7fb38ec5c55d4976 00000000 54e50165bf1936dc996020c1811b0f06fb5f"},
	} {
		if want := ntlmHex(t, v.wantInHex); !bytes.Equal(v.got, want) {
			t.Errorf("%s = %x, want %x", v.name, v.got, want)
		}
	}
}

func TestNTLMFiletime(t *testing.T) {
	// 134774 days lie between 1601 and 1970, and 255304 between 1601 and 2300.
	for at, want := range map[time.Time]uint64{
		time.Date(1601, 1, 1, 0, 0, 0, 0, time.UTC): 0,
		time.Unix(0, 100): 116444736000000001,
		time.Date(2300, 1, 1, 0, 0, 0, 999, time.UTC): 220582656000000009,
	} {
		if got := ntlmFiletime(at); got != want {
			t.Errorf("ntlmFiletime(%v) = %d, want %d", at, got, want)
		}
	}
}

func ntlmTestInitiator(user, domain, password string) ntlmInitiator {
	return ntlmInitiator{credentials: Credentials{Domain: domain, User: user, Password: sft.NewSecret(password)}, spn: "TERMSRV/host", now: ntlmNow, random: rand.Reader}
}

func ntlmTestAcceptor() ntlmAcceptor {
	return ntlmAcceptor{user: "alice", hash: ntlmHash(sft.NewSecret("pä55")), now: ntlmNow, random: rand.Reader}
}

// ntlmExchange signs i in to a. Each message goes through edit, with its
// number.
func ntlmExchange(i *ntlmInitiator, a *ntlmAcceptor, edit func(n int, m []byte) []byte) (client, server *ntlmSession, err error) {
	challenge, err := a.challenge(edit(0, i.negotiate()))
	if err != nil {
		return nil, nil, err
	}
	authenticate, client, err := i.authenticate(edit(1, challenge))
	if err != nil {
		return nil, nil, err
	}
	server, err = a.accept(edit(2, authenticate))
	return client, server, err
}

func ntlmAsIs(_ int, m []byte) []byte { return m }

func TestNTLMAccepts(t *testing.T) {
	for _, c := range []struct{ name, user, domain, password string }{
		{"the user", "alice", "", "pä55"},
		{"of any domain", "alice", "ANY", "pä55"},
		{"in any case", "ALiCE", "any.example", "pä55"},
	} {
		i, a := ntlmTestInitiator(c.user, c.domain, c.password), ntlmTestAcceptor()
		client, server, err := ntlmExchange(&i, &a, ntlmAsIs)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for range 3 {
			if got, err := server.unwrap(client.wrap([]byte("ping"))); string(got) != "ping" || err != nil {
				t.Errorf("%s: the server reads %q, %v", c.name, got, err)
			}
			if got, err := client.unwrap(server.wrap([]byte("pong"))); string(got) != "pong" || err != nil {
				t.Errorf("%s: the client reads %q, %v", c.name, got, err)
			}
		}
	}
}

func TestNTLMRefusesOthers(t *testing.T) {
	for _, c := range []struct{ name, user, password string }{
		{"another user with the password", "bob", "pä55"},
		{"nobody with the password", "", "pä55"},
		{"the user with another password", "alice", "pa55"},
		{"the user with no password", "alice", ""},
	} {
		i, a := ntlmTestInitiator(c.user, "ANY", c.password), ntlmTestAcceptor()
		if _, server, err := ntlmExchange(&i, &a, ntlmAsIs); !errors.Is(err, ErrLogon) || server != nil {
			t.Errorf("%s: got %v, %v, want ErrLogon", c.name, server, err)
		}
	}
}

// TestNTLMChangedOnTheWay checks that there is no byte of the three messages
// that can be changed, and none after which one can be cut.
func TestNTLMChangedOnTheWay(t *testing.T) {
	sizes := make([]int, 3)
	i, a := ntlmTestInitiator("alice", "ANY", "pä55"), ntlmTestAcceptor()
	ntlmExchange(&i, &a, func(n int, m []byte) []byte { sizes[n] = len(m); return m })
	for n, size := range sizes {
		if size == 0 {
			t.Fatalf("there is no message %d", n)
		}
		for at := range size {
			for how, edit := range map[string]func(m []byte) []byte{
				"changed": func(m []byte) []byte { m = bytes.Clone(m); m[at] ^= 1; return m },
				"cut":     func(m []byte) []byte { return m[:at:at] },
			} {
				i, a := ntlmTestInitiator("alice", "ANY", "pä55"), ntlmTestAcceptor()
				_, server, err := ntlmExchange(&i, &a, func(k int, m []byte) []byte {
					if k == n {
						return edit(m)
					}
					return m
				})
				if err == nil || server != nil {
					t.Errorf("message %d %s at %d: got %v, %v, want an error", n, how, at, server, err)
				}
			}
		}
	}
}

// TestNTLMInitiatorAnswers checks what the initiator makes of a challenge.
func TestNTLMInitiatorAnswers(t *testing.T) {
	stamp := bytes.Repeat([]byte{7}, 8)
	spn := utf16Bytes("TERMSRV/host")
	none := make([]byte, 16)
	for _, c := range []struct {
		name      string
		flags     uint32
		info      []ntlmAV
		want      []ntlmAV
		lm, stamp bool
		err       error
	}{
		{name: "of a server that knows the time", flags: ntlmOffered | ntlmTargetInfo, stamp: true,
			info: []ntlmAV{{avNbDomainName, []byte("D\x00")}, {avTimestamp, stamp}},
			want: []ntlmAV{{avNbDomainName, []byte("D\x00")}, {avTimestamp, stamp}, {avFlags, []byte{2, 0, 0, 0}}, {avChannelBindings, none}, {avTargetName, spn}}},
		{name: "of a server that does not know the time", flags: ntlmOffered | ntlmTargetInfo, lm: true,
			info: []ntlmAV{{avNbDomainName, []byte("D\x00")}},
			want: []ntlmAV{{avNbDomainName, []byte("D\x00")}, {avChannelBindings, none}, {avTargetName, spn}}},
		{name: "with words for the client to say", flags: ntlmOffered | ntlmTargetInfo, stamp: true,
			info: []ntlmAV{{avTargetName, []byte("x\x00")}, {avFlags, []byte{0, 0, 0, 0}}, {avTimestamp, stamp}, {avSingleHost, make([]byte, 80)}, {avChannelBindings, bytes.Repeat([]byte{1}, 16)}, {77, []byte("new")}},
			want: []ntlmAV{{avTimestamp, stamp}, {77, []byte("new")}, {avFlags, []byte{2, 0, 0, 0}}, {avChannelBindings, none}, {avTargetName, spn}}},
		{name: "with a time that is none", flags: ntlmOffered | ntlmTargetInfo, info: []ntlmAV{{avTimestamp, stamp[:7]}}, err: errNTLMMessage},
		{name: "with a word twice", flags: ntlmOffered | ntlmTargetInfo, info: []ntlmAV{{1, nil}, {1, nil}}, err: errNTLMMessage},
		{name: "without extended session security", flags: ntlmOffered&^ntlmExtended | ntlmTargetInfo, err: errNTLMWeak},
		{name: "without 128 bits", flags: ntlmOffered&^ntlm128 | ntlmTargetInfo, err: errNTLMWeak},
		{name: "without key exchange", flags: ntlmOffered&^ntlmKeyExch | ntlmTargetInfo, err: errNTLMWeak},
		{name: "without sealing", flags: ntlmOffered&^ntlmSeal | ntlmTargetInfo, err: errNTLMWeak},
		{name: "without signing", flags: ntlmOffered&^ntlmSign | ntlmTargetInfo, err: errNTLMWeak},
		{name: "without Unicode", flags: ntlmOffered&^ntlmUnicode | ntlmTargetInfo, err: errNTLMWeak},
		{name: "without target info, as for version 1", flags: ntlmOffered, err: errNTLMWeak},
	} {
		i := ntlmTestInitiator("alice", "ANY", "pä55")
		i.negotiate()
		m, session, err := i.authenticate(ntlmChallenge{Flags: c.flags, TargetInfo: ntlmAVBytes(c.info)}.bytes())
		if !errors.Is(err, c.err) || (session == nil) != (c.err != nil) {
			t.Errorf("%s: got %v, %v, want error %v", c.name, session, err, c.err)
		}
		if err != nil {
			continue
		}
		a, err := ntlmParseAuthenticate(m)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got, err := ntlmParseAVs(a.NT[16+ntlmBlobHeader:])
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got the words %v, %v, want %v", c.name, got, err, c.want)
		}
		if got := !bytes.Equal(a.LM, make([]byte, 24)); got != c.lm {
			t.Errorf("%s: got an LM response %v, want %v", c.name, got, c.lm)
		}
		if got := !bytes.Equal(a.MIC, none); got != c.stamp {
			t.Errorf("%s: got a MIC %v, want %v", c.name, got, c.stamp)
		}
		time := a.NT[16+8 : 16+16]
		if got := bytes.Equal(time, stamp); got != c.stamp {
			t.Errorf("%s: got the server's time %v, want %v", c.name, got, c.stamp)
		}
	}
	i := ntlmTestInitiator(strings.Repeat("a", ntlmNameMax), "ANY", "pä55")
	i.negotiate()
	if _, session, err := i.authenticate(ntlmChallenge{Flags: ntlmOffered | ntlmTargetInfo, TargetInfo: ntlmAVBytes(nil)}.bytes()); err == nil || session != nil {
		t.Errorf("a name that is too long: got %v, %v", session, err)
	}
}

// TestNTLMAcceptorReads checks what the acceptor makes of answers that our
// initiator does not give.
func TestNTLMAcceptorReads(t *testing.T) {
	hasMIC := ntlmAV{avFlags, []byte{2, 0, 0, 0}}
	for _, c := range []struct {
		name string
		avs  []ntlmAV
		edit func(*ntlmAuthenticate)
		ok   bool
	}{
		{name: "with a single host of 48 bytes", avs: []ntlmAV{hasMIC, {avSingleHost, make([]byte, 48)}}, ok: true},
		{name: "with a single host of 80 bytes", avs: []ntlmAV{hasMIC, {avSingleHost, make([]byte, 80)}}, ok: true},
		{name: "with a single host of 8000 bytes", avs: []ntlmAV{hasMIC, {avSingleHost, make([]byte, 8000)}}, ok: true},
		{name: "beyond the cap", avs: []ntlmAV{hasMIC, {avSingleHost, make([]byte, ntlmMax)}}},
		{name: "that says that it has no MIC", avs: []ntlmAV{{avFlags, []byte{0, 0, 0, 0}}}},
		{name: "that does not say whether it has a MIC", avs: nil},
		{name: "that has flags of three bytes", avs: []ntlmAV{{avFlags, []byte{2, 0, 0}}}},
		{name: "that has no room for a MIC", avs: []ntlmAV{hasMIC}, edit: func(a *ntlmAuthenticate) { a.MIC = nil }},
		{name: "with an LM response beside it", avs: []ntlmAV{hasMIC}, edit: func(a *ntlmAuthenticate) { a.LM = make([]byte, 24) }, ok: true},
		{name: "with a workstation", avs: []ntlmAV{hasMIC}, edit: func(a *ntlmAuthenticate) { a.Workstation = utf16Bytes("pc") }, ok: true},
		{name: "without key exchange", avs: []ntlmAV{hasMIC}, edit: func(a *ntlmAuthenticate) { a.Flags &^= ntlmKeyExch }},
		{name: "without 128 bits", avs: []ntlmAV{hasMIC}, edit: func(a *ntlmAuthenticate) { a.Flags &^= ntlm128 }},
		{name: "with a short session key", avs: []ntlmAV{hasMIC}, edit: func(a *ntlmAuthenticate) { a.Key = a.Key[:15] }},
		{name: "with NTLM of version 1", avs: []ntlmAV{hasMIC}, edit: func(a *ntlmAuthenticate) { a.NT = a.NT[:24] }},
		{name: "with a response of version 2", avs: []ntlmAV{hasMIC}, edit: func(a *ntlmAuthenticate) { a.NT = bytes.Clone(a.NT); a.NT[16] = 2 }},
		{name: "with half a character in the name", avs: []ntlmAV{hasMIC}, edit: func(a *ntlmAuthenticate) { a.User = a.User[1:] }},
	} {
		a := ntlmTestAcceptor()
		first := ntlmNegotiate{ntlmOffered}.bytes()
		second, err := a.challenge(first)
		if err != nil {
			t.Fatal(err)
		}
		exported := make([]byte, 16)
		blob := ntlmBlob(1, make([]byte, 8), ntlmAVBytes(c.avs))
		proof, base := ntlmProve(ntlmOWF(a.hash, "alice", "PC"), a.nonce[:], blob)
		m := ntlmAuthenticate{NT: append(proof, blob...), Domain: utf16Bytes("PC"), User: utf16Bytes("alice"), Key: ntlmRC4(base, exported), Flags: ntlmOffered, MIC: make([]byte, 16)}
		if c.edit != nil {
			c.edit(&m)
		}
		last := m.bytes()
		if m.MIC != nil {
			copy(last[ntlmMIC:], ntlmHMAC(exported, first, second, last))
		}
		if session, err := a.accept(last); (err == nil) != c.ok || (session != nil) != c.ok || errors.Is(err, ErrLogon) {
			t.Errorf("an answer %s: got %v, %v, want ok %v", c.name, session, err, c.ok)
		}
	}
	a := ntlmTestAcceptor()
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if m, err := a.challenge(ntlmNegotiate{ntlmOffered &^ bit}.bytes()); (err != nil) != (ntlmRequired&bit != 0) || (m == nil) != (err != nil) {
			t.Errorf("an offer without %#x: got %v", bit, err)
		}
	}
}

// TestNTLMSealRefuses checks that a sealed message is good once, in its place,
// at the other end.
func TestNTLMSealRefuses(t *testing.T) {
	for name, do := range map[string]func(client, server *ntlmSession) error{
		"one that was seen before": func(client, server *ntlmSession) error {
			m := client.wrap([]byte("x"))
			if _, err := server.unwrap(m); err != nil {
				t.Fatal(err)
			}
			_, err := server.unwrap(m)
			return err
		},
		"the second before the first": func(client, server *ntlmSession) error {
			client.wrap([]byte("x"))
			_, err := server.unwrap(client.wrap([]byte("y")))
			return err
		},
		"one's own": func(client, _ *ntlmSession) error {
			_, err := client.unwrap(client.wrap([]byte("x")))
			return err
		},
		"a MIC that was seen before": func(client, server *ntlmSession) error {
			m := client.mic([]byte("x"))
			if err := server.verify([]byte("x"), m); err != nil {
				t.Fatal(err)
			}
			return server.verify([]byte("x"), m)
		},
		"a MIC over something else": func(client, server *ntlmSession) error {
			return server.verify([]byte("y"), client.mic([]byte("x")))
		},
		"an empty MIC": func(client, server *ntlmSession) error {
			return server.verify([]byte("x"), nil)
		},
	} {
		key := make([]byte, 16)
		if err := do(ntlmNewSession(key, true), ntlmNewSession(key, false)); !errors.Is(err, errNTLMSeal) {
			t.Errorf("%s: got %v, want errNTLMSeal", name, err)
		}
	}
	good := ntlmNewSession(make([]byte, 16), true).wrap([]byte("text"))
	for at := range good {
		changed := bytes.Clone(good)
		changed[at] ^= 1
		for how, m := range map[string][]byte{"changed": changed, "cut": good[:at]} {
			if text, err := ntlmNewSession(make([]byte, 16), false).unwrap(m); !errors.Is(err, errNTLMSeal) || text != nil {
				t.Errorf("%s at %d: got %q, %v, want errNTLMSeal", how, at, text, err)
			}
		}
	}
}

// FuzzNTLMNegotiate checks that what is read reads the same when written
// again, and that a challenge comes of nothing weak.
func FuzzNTLMNegotiate(f *testing.F) {
	f.Add(ntlmNegotiate{ntlmOffered}.bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := ntlmParseNegotiate(b)
		if err == nil {
			if again, err := ntlmParseNegotiate(n.bytes()); err != nil || again != n || len(b) > ntlmMax {
				t.Errorf("%x was read as %+v, and that as %+v, %v", b, n, again, err)
			}
		}
		a := ntlmTestAcceptor()
		if m, err2 := a.challenge(b); (err2 == nil) != (err == nil && n.Flags&ntlmRequired == ntlmRequired) || (m == nil) != (err2 != nil) {
			t.Errorf("%x was answered with %x, %v", b, m, err2)
		}
	})
}

// FuzzNTLMChallenge checks that what is read reads the same when written
// again, and that its answer, if there is one, can be read.
func FuzzNTLMChallenge(f *testing.F) {
	f.Add(ntlmHex(f, ntlmSampleChallenge))
	a := ntlmTestAcceptor()
	m, err := a.challenge(ntlmNegotiate{ntlmOffered}.bytes())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ntlmParseChallenge(b)
		if err == nil && len(c.TargetName)+len(c.TargetInfo) <= ntlmMax-56 {
			if again, err := ntlmParseChallenge(c.bytes()); err != nil || !reflect.DeepEqual(again, c) || len(b) > ntlmMax {
				t.Errorf("%x was read as %+v, and that as %+v, %v", b, c, again, err)
			}
		}
		i := ntlmTestInitiator("alice", "ANY", "pä55")
		i.negotiate()
		if m, session, err := i.authenticate(b); err == nil {
			if a, err := ntlmParseAuthenticate(m); len(m) <= ntlmMax && (err != nil || session == nil || string(a.User) != string(utf16Bytes("alice"))) {
				t.Errorf("%x was answered with %x: %v", b, m, err)
			}
		}
	})
}

// FuzzNTLMAuthenticate checks that what is read reads the same when written
// again, and that nobody gets in without the password.
func FuzzNTLMAuthenticate(f *testing.F) {
	i, a := ntlmTestInitiator("alice", "ANY", "pä55"), ntlmTestAcceptor()
	ntlmExchange(&i, &a, func(n int, m []byte) []byte {
		if n == 2 {
			f.Add(bytes.Clone(m))
		}
		return m
	})
	f.Add((&ntlmAuthenticate{Flags: ntlmOffered}).bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ntlmParseAuthenticate(b)
		if err == nil {
			// Fields that overlap take more room when they do not.
			if c := m.bytes(); len(c) <= ntlmMax {
				if again, err := ntlmParseAuthenticate(c); err != nil || !reflect.DeepEqual(again, m) || len(b) > ntlmMax {
					t.Errorf("%x was read as %+v, and that as %+v, %v", b, m, again, err)
				}
			}
		}
		a := ntlmTestAcceptor()
		if _, err := a.challenge(ntlmNegotiate{ntlmOffered}.bytes()); err != nil {
			t.Fatal(err)
		}
		if session, err := a.accept(b); err == nil || session != nil {
			t.Errorf("%x was let in", b)
		}
	})
}

// FuzzAVPairs checks that what is read is what is written, up to its end.
func FuzzAVPairs(f *testing.F) {
	f.Add(ntlmAVBytes([]ntlmAV{{avTimestamp, make([]byte, 8)}, {avSingleHost, make([]byte, 80)}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := ntlmParseAVs(b)
		if err != nil {
			if list != nil {
				t.Errorf("%x was read as %v, %v", b, list, err)
			}
			return
		}
		if out := ntlmAVBytes(list); len(b) > ntlmMax || !bytes.HasPrefix(b, out) {
			t.Errorf("%x was read as %v, which is %x", b, list, out)
		}
	})
}
