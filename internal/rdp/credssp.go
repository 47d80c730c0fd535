package rdp

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"sft"
)

// Credentials are an account of Windows, or of what behaves like it.
type Credentials struct {
	Domain   string // the NetBIOS name of the computer for a local account
	User     string
	Password sft.Secret
}

var (
	// ErrLogon says that the user name and password were not taken. What is
	// wrapped around it says why, if the other side did.
	ErrLogon = errors.New("the sign-in was refused")
	// ErrEarlyDenied says that the account is who it says, and may not use
	// Remote Desktop (MS-RDPBCGR 2.2.10.2).
	ErrEarlyDenied = errors.New("the account has no right to sign in by Remote Desktop")
	// ErrOldCredSSP says that the other side is without the update for
	// CVE-2018-0886: its CredSSP, below version 5, can be relayed.
	ErrOldCredSSP = errors.New("its CredSSP is older than version 5 and can be relayed; update it")
)

// errBinding says that the TLS at the other side is not this one.
var errBinding = errors.New("the two ends do not see the same certificate: somebody is between them")

const (
	tsVersion   = 6 // what is sent
	tsOldest    = 5 // what is taken: the first version with a nonce
	tsNonceSize = 32
	tsMax       = 64 << 10 // caps what a TSRequest claims to be, in bytes
)

// What the hashes of MS-CSSP 3.1.5 begin with.
const (
	tsClientHash = "CredSSP Client-To-Server Binding Hash\x00"
	tsServerHash = "CredSSP Server-To-Client Binding Hash\x00"
)

// tsToken is an element of NegoData (MS-CSSP 2.2.1.1).
type tsToken struct {
	Token []byte `asn1:"explicit,tag:0"`
}

// tsRequest is a TSRequest (MS-CSSP 2.2.1).
type tsRequest struct {
	Version    int       `asn1:"explicit,tag:0"`
	NegoTokens []tsToken `asn1:"optional,explicit,tag:1"`
	AuthInfo   []byte    `asn1:"optional,explicit,tag:2"`
	PubKeyAuth []byte    `asn1:"optional,explicit,tag:3"`
	ErrorCode  int64     `asn1:"optional,explicit,tag:4"` // NTSTATUS, which some send signed; zero for none
	Nonce      []byte    `asn1:"optional,explicit,tag:5"`
}

// tsCredentials is a TSCredentials (MS-CSSP 2.2.1.2).
type tsCredentials struct {
	Type        int    `asn1:"explicit,tag:0"` // tsPasswordType
	Credentials []byte `asn1:"explicit,tag:1"`
}

// tsPasswordType says that a tsCredentials holds a tsPassword.
const tsPasswordType = 1

// tsPassword is a TSPasswordCreds (MS-CSSP 2.2.1.2.1), in UTF-16.
type tsPassword struct {
	Domain   []byte `asn1:"explicit,tag:0"`
	User     []byte `asn1:"explicit,tag:1"`
	Password []byte `asn1:"explicit,tag:2"`
}

var (
	errTSRequest = errors.New("it does not speak CredSSP")
	errTSHungUp  = errors.New("it hung up during the sign-in")
)

// tsRead reads one TSRequest. The length is looked at before anything is
// allocated for it. The error is errTSHungUp if there is none.
func tsRead(r io.Reader) (*tsRequest, error) {
	b, err := tsReadDER(r)
	if err != nil {
		return nil, err
	}
	t := new(tsRequest)
	var tokens []asn1.RawValue
	if !tsFields(b, &t.Version, &tokens, &t.AuthInfo, &t.PubKeyAuth, &t.ErrorCode, &t.Nonce) || len(tokens) > 1 {
		return nil, errTSRequest
	}
	for _, v := range tokens {
		var token []byte
		if !tsFields(v.FullBytes, &token) || token == nil {
			return nil, errTSRequest
		}
		t.NegoTokens = tsTokens(token)
	}
	switch {
	case t.Version < 2,
		t.ErrorCode < -1<<31 || t.ErrorCode >= 1<<32,
		t.Nonce != nil && len(t.Nonce) != tsNonceSize:
		return nil, errTSRequest
	}
	return t, nil
}

// tsFields reads a SEQUENCE of optional fields with explicit tags from zero
// on, of which each has its place in fields. Fields of later versions, at the
// end, are ignored. It is there because package asn1 takes no notice of the
// length of an explicit tag.
func tsFields(b []byte, fields ...any) bool {
	var list []asn1.RawValue
	if rest, err := asn1.Unmarshal(b, &list); err != nil || len(rest) != 0 {
		return false
	}
	next := 0
	for _, v := range list {
		if v.Class != asn1.ClassContextSpecific || !v.IsCompound || v.Tag < next {
			return false
		}
		if next = v.Tag + 1; v.Tag >= len(fields) {
			continue
		}
		if rest, err := asn1.Unmarshal(v.Bytes, fields[v.Tag]); err != nil || len(rest) != 0 {
			return false
		}
	}
	return true
}

// tsReadDER reads the bytes of one SEQUENCE, with its header.
func tsReadDER(r io.Reader) ([]byte, error) {
	head := make([]byte, 2, 2+3)
	if n, err := io.ReadFull(r, head); err != nil {
		timeout, ok := errors.AsType[net.Error](err)
		if n == 0 && !(ok && timeout.Timeout()) && !errors.Is(err, net.ErrClosed) {
			return nil, fmt.Errorf("%w: %w", errTSHungUp, err)
		}
		return nil, err
	}
	if head[0] != 0x30 {
		return nil, errTSRequest
	}
	size := int(head[1])
	if size >= 0x80 {
		// 0x80 would be the indefinite form; more than three bytes are more
		// than the cap.
		n := size & 0x7f
		if n < 1 || n > 3 {
			return nil, errTSRequest
		}
		head = head[:2+n]
		if err := tsFill(r, head[2:]); err != nil {
			return nil, err
		}
		size = 0
		for _, b := range head[2:] {
			size = size<<8 | int(b)
		}
	}
	if size > tsMax {
		return nil, errTSRequest
	}
	b := make([]byte, len(head)+size)
	return b, tsFill(r, b[copy(b, head):])
}

// tsFill reads all of b, in the middle of a message.
func tsFill(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// tsWrite sends one TSRequest.
func tsWrite(w io.Writer, t tsRequest) error {
	t.Version = tsVersion
	b, err := asn1.Marshal(t)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// tsTokens is one token, or none if it is nil.
func tsTokens(token []byte) []tsToken {
	if token == nil {
		return nil
	}
	return []tsToken{{token}}
}

// token returns the one token of t, or nil.
func (t *tsRequest) token() []byte {
	if len(t.NegoTokens) == 0 {
		return nil
	}
	return t.NegoTokens[0].Token
}

// tsHash binds the exchange to the TLS connection that it runs in (MS-CSSP
// 3.1.5, versions 5 and 6).
func tsHash(magic string, nonce, publicKey []byte) []byte {
	h := sha256.New()
	io.WriteString(h, magic)
	h.Write(nonce)
	h.Write(publicKey)
	return h.Sum(nil)
}

// PublicKeyBits returns what CredSSP binds of a certificate: the contents of
// its subjectPublicKey, without the algorithm (RFC 5280 4.1, MS-CSSP 3.1.5).
func PublicKeyBits(cert *x509.Certificate) ([]byte, error) {
	var info struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	rest, err := asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &info)
	if err != nil || len(rest) != 0 || len(info.Key.Bytes) == 0 || info.Key.BitLength%8 != 0 {
		return nil, errors.New("the certificate has no public key that CredSSP can bind")
	}
	return info.Key.Bytes, nil
}

// CredSSPConnect signs in to the server at the other end of rw, a TLS
// connection, by CredSSP with NTLMv2 (MS-CSSP, MS-NLMP), and delegates c to
// it. publicKey is from PublicKeyBits of the server's certificate, spn such as
// "TERMSRV/host". With earlyResult, for PROTOCOL_HYBRID_EX, it also reads the
// Early User Authorization Result (MS-RDPBCGR 2.2.10.2). The caller sets a
// deadline.
//
// The password leaves only after the server has proven that it knows it, and
// that publicKey is its own. Errors: ErrLogon, also if the server hangs up
// when it sees the proof of the password, as some do; ErrEarlyDenied;
// ErrOldCredSSP; those of rw; and others, without a kind.
func CredSSPConnect(rw io.ReadWriter, publicKey []byte, c Credentials, spn string, earlyResult bool) error {
	return tsConnect(rw, publicKey, c, spn, earlyResult, true)
}

// tsConnect is CredSSPConnect, with NTLM bare or in SPNEGO.
func tsConnect(rw io.ReadWriter, publicKey []byte, c Credentials, spn string, earlyResult, bare bool) error {
	i := spnegoInitiator{bare: bare, ntlm: ntlmInitiator{credentials: c, spn: spn, now: time.Now, random: rand.Reader}}
	peer := tsPeer{rw: rw}
	nonce := make([]byte, tsNonceSize)
	if _, err := rand.Read(nonce); err != nil {
		return err
	}
	token, session, err := i.next(nil)
	if err != nil {
		return err
	}
	// Sign in. Once there is a session, pubKeyAuth goes with the last token.
	for session == nil {
		if err := tsWrite(rw, tsRequest{NegoTokens: tsTokens(token)}); err != nil {
			return err
		}
		t, err := peer.answer(i.step > 1)
		if err != nil {
			return err
		}
		if token, session, err = i.next(t.token()); err != nil {
			return err
		}
	}
	err = tsWrite(rw, tsRequest{NegoTokens: tsTokens(token), Nonce: nonce, PubKeyAuth: session.wrap(tsHash(tsClientHash, nonce, publicKey))})
	if err != nil {
		return err
	}
	t, err := peer.answer(true)
	if err != nil {
		return err
	}
	hash, err := session.unwrap(t.PubKeyAuth)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(hash, tsHash(tsServerHash, nonce, publicKey)) != 1 {
		return errBinding
	}
	info, err := tsDelegate(session, c)
	if err != nil {
		return err
	}
	if err := tsWrite(rw, tsRequest{AuthInfo: info}); err != nil {
		return err
	}
	if !earlyResult {
		return nil
	}
	return tsReadEarly(rw)
}

// tsDelegate seals c for the server (MS-CSSP 3.1.5, step 5).
func tsDelegate(session *ntlmSession, c Credentials) ([]byte, error) {
	password := utf16Bytes(c.Password.Reveal())
	defer clear(password)
	inner, err := asn1.Marshal(tsPassword{utf16Bytes(c.Domain), utf16Bytes(c.User), password})
	if err != nil {
		return nil, err
	}
	defer clear(inner)
	outer, err := asn1.Marshal(tsCredentials{tsPasswordType, inner})
	if err != nil {
		return nil, err
	}
	defer clear(outer)
	return session.wrap(outer), nil
}

// tsReadEarly reads the Early User Authorization Result PDU (MS-RDPBCGR
// 2.2.10.2).
func tsReadEarly(r io.Reader) error {
	var b [4]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return err
	}
	switch result := binary.LittleEndian.Uint32(b[:]); result {
	case 0:
		return nil
	case 5:
		return ErrEarlyDenied
	default:
		return fmt.Errorf("it answers the sign-in with the unknown result 0x%08X", result)
	}
}

// tsPeer reads what the other side sends, and holds it to its version.
type tsPeer struct {
	rw      io.ReadWriter
	version int // of its first message; zero before
}

// next reads the other side's next message, and refuses an old or changed
// version.
func (p *tsPeer) next() (*tsRequest, error) {
	t, err := tsRead(p.rw)
	if err != nil {
		return nil, err
	}
	if p.version == 0 {
		p.version = t.Version
	}
	if t.Version != p.version {
		return nil, errors.New("it changes the version of CredSSP in the middle")
	}
	if p.version < tsOldest {
		return t, ErrOldCredSSP
	}
	return t, nil
}

// answer reads a server's next message. proven says that the server has seen
// the proof of the password.
func (p *tsPeer) answer(proven bool) (*tsRequest, error) {
	t, err := p.next()
	switch {
	case proven && errors.Is(err, errTSHungUp):
		return nil, fmt.Errorf("%w: the server hung up when it saw the proof of the password", ErrLogon)
	case err != nil:
		return nil, err
	case proven && t.ErrorCode != 0:
		return nil, fmt.Errorf("%w: %s", ErrLogon, ntStatus(t.ErrorCode))
	case t.ErrorCode != 0:
		return nil, fmt.Errorf("it breaks off the sign-in: %s", ntStatus(t.ErrorCode))
	}
	return t, nil
}

// refuse tells a client why it is refused, if its version has a field for
// that: 3, 4 and 6 (MS-CSSP 2.2.1). It returns err.
func (p *tsPeer) refuse(status uint32, err error) error {
	if p.version >= 3 && p.version != 5 {
		_ = tsWrite(p.rw, tsRequest{ErrorCode: int64(int32(status))})
	}
	return err
}

// CredSSPAccept lets the client at the other end of rw, a TLS connection,
// sign in by CredSSP with NTLMv2, in SPNEGO or bare (MS-CSSP, MS-NLMP,
// MS-SPNG). There is one user, of whatever domain and case, with one password,
// which the client has to prove and then to delegate. publicKey is from
// PublicKeyBits of the own certificate. The own time is told to the client,
// which may compare it. No Early User Authorization Result is sent. The caller
// sets a deadline.
//
// Errors: ErrLogon for another user or password, which the client is told,
// too; ErrOldCredSSP; those of rw; and others, without a kind.
func CredSSPAccept(rw io.ReadWriter, publicKey []byte, user string, password sft.Secret, now func() time.Time) error {
	a := spnegoAcceptor{ntlm: ntlmAcceptor{user: user, hash: ntlmHash(password), now: now, random: rand.Reader}}
	peer := tsPeer{rw: rw}
	t, token, session, err := peer.signIn(&a)
	switch {
	case errors.Is(err, ErrOldCredSSP):
		return peer.refuse(statusNotSupported, err)
	case errors.Is(err, ErrLogon):
		return peer.refuse(statusLogonFailure, err)
	case err != nil:
		return err
	}
	if len(t.Nonce) != tsNonceSize {
		return errTSRequest
	}
	hash, err := session.unwrap(t.PubKeyAuth)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(hash, tsHash(tsClientHash, t.Nonce, publicKey)) != 1 {
		return errBinding
	}
	err = tsWrite(rw, tsRequest{NegoTokens: tsTokens(token), PubKeyAuth: session.wrap(tsHash(tsServerHash, t.Nonce, publicKey))})
	if err != nil {
		return err
	}
	if t, err = peer.next(); err != nil {
		return err
	}
	return tsDelegated(session, t.AuthInfo, user, password)
}

// signIn goes as far as the client's pubKeyAuth, which is in t. token is what
// remains to be answered.
func (p *tsPeer) signIn(a *spnegoAcceptor) (t *tsRequest, token []byte, session *ntlmSession, err error) {
	for {
		if t, err = p.next(); err != nil {
			return nil, nil, nil, err
		}
		switch {
		case t.ErrorCode != 0:
			return nil, nil, nil, fmt.Errorf("it breaks off the sign-in: %s", ntStatus(t.ErrorCode))
		case session != nil:
			return t, nil, session, nil
		}
		if token, session, err = a.next(t.token()); err != nil {
			return nil, nil, nil, err
		}
		if session != nil && (t.PubKeyAuth != nil || token == nil) {
			return t, token, session, nil
		}
		if err := tsWrite(p.rw, tsRequest{NegoTokens: tsTokens(token)}); err != nil {
			return nil, nil, nil, err
		}
	}
}

// tsDelegated checks what a client delegates.
func tsDelegated(session *ntlmSession, info []byte, user string, password sft.Secret) error {
	b, err := session.unwrap(info)
	if err != nil {
		return err
	}
	defer clear(b)
	var c tsCredentials
	if !tsFields(b, &c.Type, &c.Credentials) {
		return errTSRequest
	}
	defer clear(c.Credentials)
	var p tsPassword
	if c.Type != tsPasswordType {
		return errors.New("it delegates something else than a password; let it sign in without smart card or credential guard")
	}
	if !tsFields(c.Credentials, &p.Domain, &p.User, &p.Password) {
		return errTSRequest
	}
	defer clear(p.Password)
	want := utf16Bytes(password.Reveal())
	defer clear(want)
	name, ok := utf16String(p.User)
	if subtle.ConstantTimeCompare(p.Password, want) != 1 || !ok || !strings.EqualFold(name, user) {
		return fmt.Errorf("%w: it delegates another user name or password than it has shown", ErrLogon)
	}
	return nil
}

// The codes that are sent, of MS-ERREF 2.3.
const (
	statusLogonFailure = 0xC000006D
	statusNotSupported = 0xC00000BB
)

// ntStatuses are the codes of MS-ERREF 2.3 that an RDP server answers a
// sign-in with. The one that is no NTSTATUS is an HRESULT of 2.1.
var ntStatuses = map[uint32]string{
	statusLogonFailure: "the user name or the password is wrong",
	statusNotSupported: "the server does not do it this way; allow CredSSP there as it is with all updates",
	0xC0000022:         "the access is denied",
	0xC000005E:         "no domain controller is there to ask",
	0xC0000064:         "there is no such user",
	0xC000006A:         "the password is wrong",
	0xC000006E:         "a restriction of the account forbids it, as for an empty password or a protected user",
	0xC000006F:         "the account may not sign in at this hour",
	0xC0000070:         "the account may not sign in from here",
	0xC0000071:         "the password has expired",
	0xC0000072:         "the account is disabled",
	0xC000015B:         "the account has no right to this type of logon",
	0xC0000193:         "the account has expired",
	0xC0000224:         "the password has to be changed first",
	0xC0000234:         "the account is locked",
	0xC0000413:         "the account may not sign in to this server",
	0xC0000418:         "NTLM is blocked there",
	0x8009030C:         "the logon was denied",
}

// ntStatus says in words what an errorCode means.
func ntStatus(code int64) string {
	what, ok := ntStatuses[uint32(code)]
	if !ok {
		what = "the server gave a code"
	}
	return fmt.Sprintf("%s (0x%08X)", what, uint32(code))
}
