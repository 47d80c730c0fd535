package rdp

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"reflect"
	"testing"
)

var (
	spnegoKerberos   = asn1.ObjectIdentifier{1, 2, 840, 113554, 1, 2, 2}
	spnegoMSKerberos = asn1.ObjectIdentifier{1, 2, 840, 48018, 1, 2, 2}
)

// spnegoOffer is a NegTokenInit for mechs.
func spnegoOffer(token []byte, mechs ...asn1.ObjectIdentifier) (offer, list []byte) {
	list = spnegoMarshal(mechs)
	return spnegoInit{MechTypes: spnegoTag(0, list), MechToken: token}.bytes(), list
}

// TestSPNEGOBytes compares tokens with bytes put together by hand from RFC
// 4178 4.2.
func TestSPNEGOBytes(t *testing.T) {
	offer, _ := spnegoOffer([]byte("NTLM"), spnegoNTLM)
	for _, c := range []struct {
		name      string
		got       []byte
		wantInHex string
	}{
		{"NegTokenInit", offer, "6024 06062b0601050502 a01a 3018 a00e 300c 060a2b06010401823702020a a206 0404 4e544c4d"},
		{"accept-incomplete", spnegoResp{State: spnegoIncomplete, Mech: spnegoNTLM, Response: []byte{7}}.bytes(), "a11a 3018 a003 0a0101 a10c 060a2b06010401823702020a a203 040107"},
		{"accept-completed", spnegoResp{State: spnegoCompleted, MIC: []byte{7}}.bytes(), "a10c 300a a003 0a0100 a303 040107"},
		{"without a state", spnegoResp{State: spnegoNoState, Response: []byte{7}}.bytes(), "a107 3005 a203 040107"},
	} {
		if want := ntlmHex(t, c.wantInHex); !bytes.Equal(c.got, want) {
			t.Errorf("%s = %x, want %x", c.name, c.got, want)
		}
	}
}

// spnegoAcceptance leads a through what a client says, which made the offer
// itself. mic is whether it protects the list of its mechanisms.
func spnegoAcceptance(t *testing.T, offer, list []byte, i *ntlmInitiator, mic bool) (states []asn1.Enumerated, client, server *ntlmSession, err error) {
	t.Helper()
	a := spnegoAcceptor{ntlm: ntlmTestAcceptor()}
	token := offer
	for range 5 {
		reply, session, err := a.next(token)
		if err != nil {
			return states, nil, nil, err
		}
		r, err := spnegoParseResp(reply)
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, r.State)
		switch {
		case session != nil:
			if (r.MIC != nil) != mic {
				t.Errorf("got the MIC %x, want one %v", r.MIC, mic)
			}
			if mic {
				err = client.verify(list, r.MIC)
			}
			return states, client, session, err
		case r.Response == nil:
			token = spnegoResp{State: spnegoIncomplete, Response: i.negotiate()}.bytes()
		default:
			answer := spnegoResp{State: spnegoIncomplete}
			if answer.Response, client, err = i.authenticate(r.Response); err != nil {
				return states, nil, nil, err
			}
			if mic {
				answer.MIC = client.mic(list)
			}
			token = answer.bytes()
		}
	}
	t.Fatal("it does not end")
	return nil, nil, nil, nil
}

func TestSPNEGOAccepts(t *testing.T) {
	for _, c := range []struct {
		name   string
		mechs  []asn1.ObjectIdentifier
		token  string // empty for a NEGOTIATE_MESSAGE
		mic    bool
		states []asn1.Enumerated
		err    error
	}{
		{"NTLM alone", []asn1.ObjectIdentifier{spnegoNTLM}, "", true, []asn1.Enumerated{spnegoIncomplete, spnegoCompleted}, nil},
		{"NTLM alone without a MIC", []asn1.ObjectIdentifier{spnegoNTLM}, "", false, []asn1.Enumerated{spnegoIncomplete, spnegoCompleted}, nil},
		{"NTLM alone without a token", []asn1.ObjectIdentifier{spnegoNTLM}, "none", true, []asn1.Enumerated{spnegoIncomplete, spnegoIncomplete, spnegoCompleted}, nil},
		{"NTLM first", []asn1.ObjectIdentifier{spnegoNTLM, spnegoKerberos}, "", true, []asn1.Enumerated{spnegoIncomplete, spnegoCompleted}, nil},
		{"NTLM last, with a token for another", []asn1.ObjectIdentifier{spnegoMSKerberos, spnegoKerberos, spnegoNTLM}, "ticket", true, []asn1.Enumerated{spnegoRequestMIC, spnegoIncomplete, spnegoCompleted}, nil},
		{"NTLM last, without a token", []asn1.ObjectIdentifier{spnegoMSKerberos, spnegoKerberos, spnegoNTLM}, "none", true, []asn1.Enumerated{spnegoRequestMIC, spnegoIncomplete, spnegoCompleted}, nil},
		{"NTLM last, without a MIC", []asn1.ObjectIdentifier{spnegoMSKerberos, spnegoNTLM}, "ticket", false, []asn1.Enumerated{spnegoRequestMIC, spnegoIncomplete}, errSPNEGOMIC},
		{"no NTLM", []asn1.ObjectIdentifier{spnegoMSKerberos, spnegoKerberos}, "ticket", true, nil, errSPNEGOMech},
		{"nothing", nil, "none", true, nil, errSPNEGOMech},
	} {
		i := ntlmTestInitiator("alice", "ANY", "pä55")
		token := []byte(c.token)
		switch c.token {
		case "":
			token = i.negotiate()
		case "none":
			token = nil
		}
		offer, list := spnegoOffer(token, c.mechs...)
		states, client, server, err := spnegoAcceptance(t, offer, list, &i, c.mic)
		if !errors.Is(err, c.err) || !reflect.DeepEqual(states, c.states) {
			t.Errorf("%s: got the states %v, %v, want %v, %v", c.name, states, err, c.states, c.err)
		}
		if err != nil {
			continue
		}
		if got, err := server.unwrap(client.wrap([]byte("ping"))); string(got) != "ping" || err != nil {
			t.Errorf("%s: the server reads %q, %v", c.name, got, err)
		}
		if got, err := client.unwrap(server.wrap([]byte("pong"))); string(got) != "pong" || err != nil {
			t.Errorf("%s: the client reads %q, %v", c.name, got, err)
		}
	}
}

// TestSPNEGOAcceptorRefusesChangedOffer checks that a mechanism which somebody
// takes out of the list on the way is missed.
func TestSPNEGOAcceptorRefusesChangedOffer(t *testing.T) {
	i := ntlmTestInitiator("alice", "ANY", "pä55")
	_, list := spnegoOffer(nil, spnegoKerberos, spnegoNTLM)
	offer, _ := spnegoOffer(i.negotiate(), spnegoNTLM)
	if _, _, server, err := spnegoAcceptance(t, offer, list, &i, true); !errors.Is(err, errNTLMSeal) || server != nil {
		t.Errorf("got %v, %v, want errNTLMSeal", server, err)
	}
}

// TestSPNEGOMICStream checks that sealing begins after the MIC with a key
// stream of its own, and goes on counting (MS-SPNG).
func TestSPNEGOMICStream(t *testing.T) {
	a, b := ntlmNewSession(make([]byte, 16), true), ntlmNewSession(make([]byte, 16), true)
	a.mic([]byte("list"))
	got, want := a.wrap([]byte("text")), b.wrap([]byte("text"))
	if !bytes.Equal(got[ntlmSignatureSize:], want[ntlmSignatureSize:]) {
		t.Errorf("sealed after a MIC = %x, want %x", got[ntlmSignatureSize:], want[ntlmSignatureSize:])
	}
	if n := ntlmLE.Uint32(got[12:]); n != 1 {
		t.Errorf("number after a MIC = %d, want 1", n)
	}
}

func TestSPNEGOAcceptorRefuses(t *testing.T) {
	first := ntlmNegotiate{ntlmOffered}.bytes()
	offer, _ := spnegoOffer(first, spnegoNTLM)
	big, _ := spnegoOffer(make([]byte, spnegoMax), spnegoKerberos, spnegoNTLM)
	other, _ := spnegoOffer([]byte("ticket"), spnegoKerberos, spnegoNTLM)
	for name, tokens := range map[string][][]byte{
		"nothing":                               {nil},
		"an answer first":                       {spnegoResp{State: spnegoIncomplete, Response: first}.bytes()},
		"bytes after the offer":                 {append(bytes.Clone(offer), 0)},
		"two offers":                            {offer, offer},
		"a bare message after an offer":         {other, first},
		"a rejection":                           {other, spnegoResp{State: spnegoReject, Response: first}.bytes()},
		"an unknown state":                      {other, spnegoResp{State: 4, Response: first}.bytes()},
		"an answer without a message":           {other, spnegoResp{State: spnegoIncomplete}.bytes()},
		"the last message in place of first":    {other, spnegoResp{State: spnegoIncomplete, Response: (&ntlmAuthenticate{}).bytes()}.bytes()},
		"more than the cap":                     {big},
		"a bare message, then one in an answer": {first, spnegoResp{State: spnegoIncomplete, Response: first}.bytes()},
	} {
		a := spnegoAcceptor{ntlm: ntlmTestAcceptor()}
		for k, token := range tokens {
			_, session, err := a.next(token)
			if last := k == len(tokens)-1; (err != nil) != last || session != nil {
				t.Errorf("%s: token %d: got %v, %v", name, k, session, err)
			}
		}
		if _, session, err := a.next(first); !errors.Is(err, errSPNEGO) || session != nil {
			t.Errorf("%s: after the end: got %v, %v, want errSPNEGO", name, session, err)
		}
	}
}

func TestSPNEGOInitiatorRefuses(t *testing.T) {
	na := ntlmTestAcceptor()
	challenge, err := na.challenge(ntlmNegotiate{ntlmOffered}.bytes())
	if err != nil {
		t.Fatal(err)
	}
	good := spnegoResp{State: spnegoIncomplete, Mech: spnegoNTLM, Response: challenge}
	for _, c := range []struct {
		name   string
		second spnegoResp
		third  *spnegoResp
		err    error
	}{
		{"another mechanism", spnegoResp{State: spnegoIncomplete, Mech: spnegoKerberos, Response: challenge}, nil, errSPNEGOMech},
		{"no mechanism", spnegoResp{State: spnegoIncomplete, Response: challenge}, nil, errSPNEGOMech},
		{"a rejection at once", spnegoResp{State: spnegoReject, Mech: spnegoNTLM}, nil, errSPNEGOMech},
		{"all done at once", spnegoResp{State: spnegoCompleted, Mech: spnegoNTLM, Response: challenge}, nil, errSPNEGOMech},
		{"no challenge", spnegoResp{State: spnegoIncomplete, Mech: spnegoNTLM}, nil, errNTLMMessage},
		{"a rejection of the password", good, &spnegoResp{State: spnegoReject}, ErrLogon},
		{"an end without a MIC", good, &spnegoResp{State: spnegoCompleted}, errSPNEGOMIC},
		{"an end with another MIC", good, &spnegoResp{State: spnegoCompleted, MIC: make([]byte, 16)}, errNTLMSeal},
		{"no end", good, &spnegoResp{State: spnegoIncomplete, MIC: make([]byte, 16)}, errSPNEGO},
		{"an end with a token", good, &spnegoResp{State: spnegoCompleted, Response: []byte{1}}, errSPNEGO},
	} {
		i := spnegoInitiator{ntlm: ntlmTestInitiator("alice", "ANY", "pä55")}
		if _, _, err := i.next(nil); err != nil {
			t.Fatal(err)
		}
		_, session, err := i.next(c.second.bytes())
		if c.third != nil {
			if err != nil || session != nil {
				t.Errorf("%s: got %v, %v before the end", c.name, session, err)
			}
			_, session, err = i.next(c.third.bytes())
		}
		if !errors.Is(err, c.err) || err == nil {
			t.Errorf("%s: got %v, want %v", c.name, err, c.err)
		}
	}
}

// FuzzSPNEGO checks that what is read reads the same when written again, and
// that nobody gets in or is signed in by a token alone.
func FuzzSPNEGO(f *testing.F) {
	first := ntlmNegotiate{ntlmOffered}.bytes()
	offer, _ := spnegoOffer(first, spnegoKerberos, spnegoNTLM)
	f.Add(offer)
	f.Add(first)
	f.Add(spnegoResp{State: spnegoCompleted, MIC: make([]byte, 16)}.bytes())
	a := ntlmTestAcceptor()
	if challenge, err := a.challenge(first); err == nil {
		f.Add(spnegoResp{State: spnegoIncomplete, Mech: spnegoNTLM, Response: challenge}.bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, mechs, err := spnegoParseInit(b); err == nil {
			if again, mechs2, err := spnegoParseInit(v.bytes()); err != nil || !reflect.DeepEqual(again, v) || !reflect.DeepEqual(mechs2, mechs) || len(b) > spnegoMax {
				t.Errorf("%x was read as %+v, and that as %+v, %v", b, v, again, err)
			}
		}
		if v, err := spnegoParseResp(b); err == nil {
			if again, err := spnegoParseResp(v.bytes()); err != nil || !reflect.DeepEqual(again, v) || len(b) > spnegoMax {
				t.Errorf("%x was read as %+v, and that as %+v, %v", b, v, again, err)
			}
		}
		// An acceptor before each of its steps.
		for before := range 3 {
			a := spnegoAcceptor{ntlm: ntlmTestAcceptor()}
			for k := range before {
				token := [][]byte{offer, spnegoResp{State: spnegoIncomplete, Response: first}.bytes()}[k]
				if _, _, err := a.next(token); err != nil {
					t.Fatal(err)
				}
			}
			if _, session, _ := a.next(b); session != nil {
				t.Errorf("%x was let in", b)
			}
		}
		i := spnegoInitiator{ntlm: ntlmTestInitiator("alice", "ANY", "pä55")}
		if _, _, err := i.next(nil); err != nil {
			t.Fatal(err)
		}
		if _, session, _ := i.next(b); session != nil {
			t.Errorf("%x ended the sign-in", b)
		}
	})
}
