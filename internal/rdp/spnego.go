package rdp

import (
	"encoding/asn1"
	"errors"
	"slices"
	"strings"
)

// SPNEGO (RFC 4178, MS-SPNG) finds out which mechanism to sign in with. Here
// that is always NTLM; what it adds is a MIC over the list of what there was
// to choose from.

var (
	spnegoOID     = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 2}
	spnegoNTLM    = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 2, 10}
	errSPNEGO     = errors.New("it is not the SPNEGO token that belongs here")
	errSPNEGOMech = errors.New("it offers no NTLM; allow it there, or sign in with a user name and password")
	errSPNEGOMIC  = errors.New("it does not protect its list of mechanisms by a MIC")
)

// spnegoMax caps each token, in bytes.
const spnegoMax = 2 * ntlmMax

// The states of RFC 4178 4.2.2.
const (
	spnegoNoState    = -1
	spnegoCompleted  = 0
	spnegoIncomplete = 1
	spnegoReject     = 2
	spnegoRequestMIC = 3
)

// spnegoInit is a NegTokenInit (RFC 4178 4.2.1), or the NegTokenInit2 of
// MS-SPNG 2.2.1 as far as a client sends it.
type spnegoInit struct {
	MechTypes asn1.RawValue  // the tag around a list, which the MIC is made over as it came
	ReqFlags  asn1.BitString `asn1:"optional,explicit,tag:1"`
	MechToken []byte         `asn1:"optional,explicit,tag:2"`
	MIC       []byte         `asn1:"optional,explicit,tag:3"`
}

// spnegoResp is a NegTokenResp (RFC 4178 4.2.2).
type spnegoResp struct {
	State    asn1.Enumerated       `asn1:"optional,explicit,tag:0,default:-1"`
	Mech     asn1.ObjectIdentifier `asn1:"optional,explicit,tag:1"`
	Response []byte                `asn1:"optional,explicit,tag:2"`
	MIC      []byte                `asn1:"optional,explicit,tag:3"`
}

// spnegoTag is a context tag of the given number around b.
func spnegoTag(number int, b []byte) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: number, IsCompound: true, Bytes: b}
}

// spnegoMarshal is for values that have an encoding.
func spnegoMarshal(v any) []byte {
	b, err := asn1.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// spnegoParseInit reads an InitialContextToken (RFC 2743 3.1) with a
// NegTokenInit, and the list of mechanisms in it.
func spnegoParseInit(b []byte) (t spnegoInit, mechs []asn1.ObjectIdentifier, err error) {
	var outer, token, list asn1.RawValue
	var oid asn1.ObjectIdentifier
	if !spnegoUnwrap(b, &outer, asn1.ClassApplication, 0) {
		return spnegoInit{}, nil, errSPNEGO
	}
	rest, err := asn1.Unmarshal(outer.Bytes, &oid)
	if err != nil || !oid.Equal(spnegoOID) || !spnegoUnwrap(rest, &token, asn1.ClassContextSpecific, 0) {
		return spnegoInit{}, nil, errSPNEGO
	}
	if !tsFields(token.Bytes, &list, &t.ReqFlags, &t.MechToken, &t.MIC) {
		return spnegoInit{}, nil, errSPNEGO
	}
	if rest, err := asn1.Unmarshal(list.FullBytes, &mechs); err != nil || len(rest) != 0 {
		return spnegoInit{}, nil, errSPNEGO
	}
	t.MechTypes = spnegoTag(0, list.FullBytes)
	return t, mechs, nil
}

// spnegoUnwrap reads what all of b is a tag around.
func spnegoUnwrap(b []byte, v *asn1.RawValue, class, tag int) bool {
	if len(b) > spnegoMax {
		return false
	}
	rest, err := asn1.Unmarshal(b, v)
	return err == nil && len(rest) == 0 && v.Class == class && v.Tag == tag && v.IsCompound
}

// bytes is the inverse of spnegoParseInit.
func (t spnegoInit) bytes() []byte {
	b := append(spnegoMarshal(spnegoOID), spnegoMarshal(spnegoTag(0, spnegoMarshal(t)))...)
	return spnegoMarshal(asn1.RawValue{Class: asn1.ClassApplication, Tag: 0, IsCompound: true, Bytes: b})
}

// spnegoParseResp reads a NegTokenResp.
func spnegoParseResp(b []byte) (t spnegoResp, err error) {
	var outer asn1.RawValue
	t.State = spnegoNoState
	if !spnegoUnwrap(b, &outer, asn1.ClassContextSpecific, 1) || !tsFields(outer.Bytes, &t.State, &t.Mech, &t.Response, &t.MIC) ||
		t.State < spnegoNoState || t.State > spnegoRequestMIC {
		return spnegoResp{}, errSPNEGO
	}
	return t, nil
}

// bytes is the inverse of spnegoParseResp.
func (t spnegoResp) bytes() []byte {
	return spnegoMarshal(spnegoTag(1, spnegoMarshal(t)))
}

// spnegoInitiator signs in by NTLM, in SPNEGO or without.
type spnegoInitiator struct {
	ntlm ntlmInitiator
	bare bool // NTLM alone, as most RDP clients send it

	mechs   []byte
	session *ntlmSession
	step    int
}

// next returns what to answer to token, which is empty at first. session is
// set when the other side has nothing more to say: what it answers to reply
// proves nothing, so that the caller may add to it.
func (i *spnegoInitiator) next(token []byte) (reply []byte, session *ntlmSession, err error) {
	i.step++
	switch {
	case i.step == 1 && i.bare:
		return i.ntlm.negotiate(), nil, nil
	case i.step == 1:
		i.mechs = spnegoMarshal([]asn1.ObjectIdentifier{spnegoNTLM})
		return spnegoInit{MechTypes: spnegoTag(0, i.mechs), MechToken: i.ntlm.negotiate()}.bytes(), nil, nil
	case i.step == 2 && i.bare:
		return i.ntlm.authenticate(token)
	case i.step == 2:
		t, err := spnegoParseResp(token)
		if err != nil {
			return nil, nil, err
		}
		if t.State != spnegoIncomplete && t.State != spnegoRequestMIC || !t.Mech.Equal(spnegoNTLM) {
			return nil, nil, errSPNEGOMech
		}
		reply, i.session, err = i.ntlm.authenticate(t.Response)
		if err != nil {
			return nil, nil, err
		}
		return spnegoResp{State: spnegoNoState, Response: reply, MIC: i.session.mic(i.mechs)}.bytes(), nil, nil
	case i.step == 3 && !i.bare:
		t, err := spnegoParseResp(token)
		if err != nil {
			return nil, nil, err
		}
		switch {
		case t.State == spnegoReject:
			return nil, nil, ErrLogon
		case t.State != spnegoCompleted || len(t.Response) != 0:
			return nil, nil, errSPNEGO
		case t.MIC == nil:
			return nil, nil, errSPNEGOMIC
		}
		if err := i.session.verify(i.mechs, t.MIC); err != nil {
			return nil, nil, err
		}
		return nil, i.session, nil
	}
	return nil, nil, errSPNEGO
}

// spnegoAcceptor lets in who signs in by NTLM, in SPNEGO or without.
type spnegoAcceptor struct {
	ntlm ntlmAcceptor

	bare    bool
	mechs   []byte // the client's list, in DER
	needMIC bool   // NTLM was not the client's first choice
	step    spnegoStep
}

// A spnegoStep is what an acceptor waits for.
type spnegoStep int

const (
	spnegoFirst    spnegoStep = iota // anything
	spnegoLater                      // the NEGOTIATE_MESSAGE, after a NegTokenInit for another mechanism
	spnegoLast                       // the AUTHENTICATE_MESSAGE
	spnegoFinished                   // nothing
)

// next returns what to answer to token. session is set when that is the last
// answer; it may be empty then.
func (a *spnegoAcceptor) next(token []byte) (reply []byte, session *ntlmSession, err error) {
	step := a.step
	a.step = spnegoFinished // unless it goes on
	switch {
	case step == spnegoFirst && strings.HasPrefix(string(token), ntlmSignature):
		a.bare, a.step = true, spnegoLast
		reply, err = a.ntlm.challenge(token)
		return reply, nil, err
	case step == spnegoFirst:
		reply, err = a.begin(token)
		return reply, nil, err
	case step == spnegoLast && a.bare:
		session, err = a.ntlm.accept(token)
		return nil, session, err
	case step == spnegoFinished:
		return nil, nil, errSPNEGO
	}
	t, err := spnegoParseResp(token)
	if err != nil {
		return nil, nil, err
	}
	if t.State == spnegoReject {
		return nil, nil, errSPNEGOMech
	}
	if step == spnegoLater {
		challenge, err := a.ntlm.challenge(t.Response)
		if err != nil {
			return nil, nil, err
		}
		a.step = spnegoLast
		return spnegoResp{State: spnegoIncomplete, Response: challenge}.bytes(), nil, nil
	}
	if session, err = a.ntlm.accept(t.Response); err != nil {
		return nil, nil, err
	}
	done := spnegoResp{State: spnegoCompleted}
	switch {
	case t.MIC != nil:
		if err := session.verify(a.mechs, t.MIC); err != nil {
			return nil, nil, err
		}
		done.MIC = session.mic(a.mechs)
	case a.needMIC:
		return nil, nil, errSPNEGOMIC
	}
	return done.bytes(), session, nil
}

// begin answers a NegTokenInit. If NTLM is the client's first choice, its
// token is for NTLM; else it is for something that is not spoken here.
func (a *spnegoAcceptor) begin(token []byte) ([]byte, error) {
	t, mechs, err := spnegoParseInit(token)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(mechs, spnegoNTLM.Equal)
	if at < 0 {
		return nil, errSPNEGOMech
	}
	a.mechs = slices.Clone(t.MechTypes.Bytes)
	answer := spnegoResp{State: spnegoIncomplete, Mech: spnegoNTLM}
	if at > 0 {
		answer.State, a.needMIC = spnegoRequestMIC, true
	}
	if at > 0 || len(t.MechToken) == 0 {
		a.step = spnegoLater
		return answer.bytes(), nil
	}
	a.step = spnegoLast
	answer.Response, err = a.ntlm.challenge(t.MechToken)
	return answer.bytes(), err
}
