package rdp

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rc4"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/crypto/md4"

	"sft"
)

// What of NTLM is spoken here: NTLMv2 with Unicode names, extended session
// security, key exchange and 128 bits, sealed by RC4. Anything weaker is
// refused on both sides, so there is nothing to be talked down to.

// The flags of MS-NLMP 2.2.2.5 that are used.
const (
	ntlmUnicode    = 0x00000001
	ntlmTarget     = 0x00000004 // REQUEST_TARGET
	ntlmSign       = 0x00000010
	ntlmSeal       = 0x00000020
	ntlmNTLM       = 0x00000200
	ntlmAlwaysSign = 0x00008000
	ntlmServerType = 0x00020000 // TARGET_TYPE_SERVER
	ntlmExtended   = 0x00080000 // EXTENDED_SESSIONSECURITY
	ntlmTargetInfo = 0x00800000
	ntlmVersioned  = 0x02000000
	ntlm128        = 0x20000000
	ntlmKeyExch    = 0x40000000
	ntlm56         = 0x80000000

	// ntlmRequired has to be in each message of the other side.
	ntlmRequired = ntlmUnicode | ntlmSign | ntlmSeal | ntlmExtended | ntlm128 | ntlmKeyExch
	// ntlmOffered is what a NEGOTIATE_MESSAGE asks for.
	ntlmOffered = ntlmRequired | ntlmTarget | ntlmNTLM | ntlmAlwaysSign | ntlmVersioned | ntlm56
)

// ntlmMax caps each message of NTLM, in bytes. They have a few hundred.
const ntlmMax = 16 << 10

// ntlmNameMax caps a name that goes into an AUTHENTICATE_MESSAGE, in bytes.
const ntlmNameMax = 1024

// ntlmSignature is how each message begins, MS-NLMP 2.2.1.
const ntlmSignature = "NTLMSSP\x00"

// ntlmVersion is the VERSION of MS-NLMP 2.2.2.10; nobody acts on it.
var ntlmVersion = []byte{10, 0, 0x63, 0x45, 0, 0, 0, 15}

// ntlmLE is the byte order of all of MS-NLMP.
var ntlmLE = binary.LittleEndian

var (
	errNTLMMessage = errors.New("it is not the NTLM message that belongs here")
	errNTLMWeak    = errors.New("it does not offer NTLM with 128 bits, key exchange and sealing; allow NTLMv2 with 128-bit encryption there")
	errNTLMSeal    = errors.New("a sealed message was changed, repeated or put out of order")
)

// The AvIds of MS-NLMP 2.2.2.1 that are used.
const (
	avEOL             = 0
	avNbComputerName  = 1
	avNbDomainName    = 2
	avDNSComputerName = 3
	avDNSDomainName   = 4
	avFlags           = 6
	avTimestamp       = 7
	avSingleHost      = 8
	avTargetName      = 9
	avChannelBindings = 10
)

// avHasMIC is the bit of MsvAvFlags that says that the message has a MIC.
const avHasMIC = 2

// ntlmAV is one AV_PAIR.
type ntlmAV struct {
	ID    uint16
	Value []byte // of any length; foreign MsvAvSingleHost values have 48 or 80 bytes
}

// ntlmParseAVs reads the AV_PAIRs before MsvAvEOL (MS-NLMP 2.2.2.1), and
// ignores what follows it. An id occurs once. The values alias b.
func ntlmParseAVs(b []byte) ([]ntlmAV, error) {
	if len(b) > ntlmMax {
		return nil, errNTLMMessage
	}
	var list []ntlmAV
	for {
		if len(b) < 4 {
			return nil, errNTLMMessage
		}
		id, n := ntlmLE.Uint16(b), int(ntlmLE.Uint16(b[2:]))
		if b = b[4:]; n > len(b) || id == avEOL && n != 0 {
			return nil, errNTLMMessage
		}
		if id == avEOL {
			return list, nil
		}
		if _, twice := ntlmFindAV(list, id); twice {
			return nil, errNTLMMessage
		}
		list = append(list, ntlmAV{id, b[:n]})
		b = b[n:]
	}
}

// ntlmFindAV returns the value of id.
func ntlmFindAV(list []ntlmAV, id uint16) ([]byte, bool) {
	for _, p := range list {
		if p.ID == id {
			return p.Value, true
		}
	}
	return nil, false
}

// ntlmAVBytes is the inverse of ntlmParseAVs.
func ntlmAVBytes(list []ntlmAV) []byte {
	var b []byte
	for _, p := range list {
		b = ntlmLE.AppendUint16(b, p.ID)
		b = ntlmLE.AppendUint16(b, uint16(len(p.Value)))
		b = append(b, p.Value...)
	}
	return append(b, 0, 0, 0, 0)
}

// ntlmHeader checks the beginning of a message of the given type, which has at
// least min bytes.
func ntlmHeader(m []byte, kind uint32, min int) error {
	if len(m) < min || len(m) > ntlmMax || string(m[:8]) != ntlmSignature || ntlmLE.Uint32(m[8:]) != kind {
		return errNTLMMessage
	}
	return nil
}

// ntlmField returns what the eight bytes at m[at:] point to, and where that
// begins: not before the header of the message ends, nor after the message.
// An empty field may point anywhere, and begins at its end.
func ntlmField(m []byte, at, header int) (value []byte, begin int, err error) {
	n, offset := int(ntlmLE.Uint16(m[at:])), uint64(ntlmLE.Uint32(m[at+4:]))
	if n == 0 {
		return nil, len(m), nil
	}
	if offset < uint64(header) || offset+uint64(n) > uint64(len(m)) {
		return nil, 0, errNTLMMessage
	}
	return m[offset : int(offset)+n], int(offset), nil
}

// ntlmAppendField appends the eight bytes for a field of n bytes at offset.
func ntlmAppendField(m []byte, n, offset int) []byte {
	m = ntlmLE.AppendUint16(m, uint16(n))
	m = ntlmLE.AppendUint16(m, uint16(n))
	return ntlmLE.AppendUint32(m, uint32(offset))
}

// ntlmNegotiate is a NEGOTIATE_MESSAGE (MS-NLMP 2.2.1.1). The names in it are
// for nobody.
type ntlmNegotiate struct {
	Flags uint32
}

// ntlmParseNegotiate reads a NEGOTIATE_MESSAGE.
func ntlmParseNegotiate(m []byte) (ntlmNegotiate, error) {
	if err := ntlmHeader(m, 1, 32); err != nil {
		return ntlmNegotiate{}, err
	}
	return ntlmNegotiate{ntlmLE.Uint32(m[12:])}, nil
}

// bytes is the inverse of ntlmParseNegotiate.
func (n ntlmNegotiate) bytes() []byte {
	m := append([]byte(ntlmSignature), 1, 0, 0, 0)
	m = ntlmLE.AppendUint32(m, n.Flags)
	m = append(m, make([]byte, 16)...)
	return append(m, ntlmVersion...)
}

// ntlmChallenge is a CHALLENGE_MESSAGE (MS-NLMP 2.2.1.2).
type ntlmChallenge struct {
	Flags      uint32
	Nonce      [8]byte
	TargetName []byte
	TargetInfo []byte // AV_PAIRs, not parsed
}

// ntlmParseChallenge reads a CHALLENGE_MESSAGE. The fields alias m.
func ntlmParseChallenge(m []byte) (c ntlmChallenge, err error) {
	if err := ntlmHeader(m, 2, 48); err != nil {
		return ntlmChallenge{}, err
	}
	c = ntlmChallenge{Flags: ntlmLE.Uint32(m[20:]), Nonce: [8]byte(m[24:])}
	if c.TargetName, _, err = ntlmField(m, 12, 48); err != nil {
		return ntlmChallenge{}, err
	}
	if c.TargetInfo, _, err = ntlmField(m, 40, 48); err != nil {
		return ntlmChallenge{}, err
	}
	return c, nil
}

// bytes is the inverse of ntlmParseChallenge.
func (c ntlmChallenge) bytes() []byte {
	const header = 56
	m := append([]byte(ntlmSignature), 2, 0, 0, 0)
	m = ntlmAppendField(m, len(c.TargetName), header)
	m = ntlmLE.AppendUint32(m, c.Flags)
	m = append(m, c.Nonce[:]...)
	m = append(m, make([]byte, 8)...)
	m = ntlmAppendField(m, len(c.TargetInfo), header+len(c.TargetName))
	m = append(m, ntlmVersion...)
	m = append(m, c.TargetName...)
	return append(m, c.TargetInfo...)
}

// ntlmAuthenticate is an AUTHENTICATE_MESSAGE (MS-NLMP 2.2.1.3).
type ntlmAuthenticate struct {
	LM, NT                    []byte
	Domain, User, Workstation []byte // in UTF-16
	Key                       []byte // EncryptedRandomSessionKey
	Flags                     uint32
	MIC                       []byte // 16 bytes, or none if there is no room for it
}

// ntlmMIC is where the MIC is in an AUTHENTICATE_MESSAGE that has one.
const ntlmMIC = 72

// ntlmParseAuthenticate reads an AUTHENTICATE_MESSAGE. The fields alias m.
func ntlmParseAuthenticate(m []byte) (ntlmAuthenticate, error) {
	if err := ntlmHeader(m, 3, 64); err != nil {
		return ntlmAuthenticate{}, err
	}
	a := ntlmAuthenticate{Flags: ntlmLE.Uint32(m[60:])}
	// The version and the MIC are there if what is pointed to leaves room.
	header := len(m)
	for i, f := range a.fields() {
		value, begin, err := ntlmField(m, 12+8*i, 64)
		if err != nil {
			return ntlmAuthenticate{}, err
		}
		*f, header = value, min(header, begin)
	}
	if header >= ntlmMIC+16 {
		a.MIC = m[ntlmMIC : ntlmMIC+16]
	}
	return a, nil
}

// fields are the fields with a place in the payload, in the order of the
// header.
func (a *ntlmAuthenticate) fields() [6]*[]byte {
	return [6]*[]byte{&a.LM, &a.NT, &a.Domain, &a.User, &a.Workstation, &a.Key}
}

// bytes is the inverse of ntlmParseAuthenticate.
func (a *ntlmAuthenticate) bytes() []byte {
	m := append([]byte(ntlmSignature), 3, 0, 0, 0)
	offset := ntlmMIC + len(a.MIC)
	for _, f := range a.fields() {
		m = ntlmAppendField(m, len(*f), offset)
		offset += len(*f)
	}
	m = ntlmLE.AppendUint32(m, a.Flags)
	m = append(m, ntlmVersion...)
	m = append(m, a.MIC...)
	for _, f := range a.fields() {
		m = append(m, *f...)
	}
	return m
}

// ntlmHMAC is HMAC_MD5 over the joined parts.
func ntlmHMAC(key []byte, parts ...[]byte) []byte {
	h := hmac.New(md5.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// ntlmRC4 is RC4K of MS-NLMP 6; it is its own inverse. The key has 16 bytes.
func ntlmRC4(key, data []byte) []byte {
	out := make([]byte, len(data))
	ntlmCipher(key).XORKeyStream(out, data)
	return out
}

// ntlmCipher is an RC4 stream with a key of 16 bytes.
func ntlmCipher(key []byte) *rc4.Cipher {
	c, err := rc4.NewCipher(key)
	if err != nil {
		panic(err) // a key of 16 bytes is a key
	}
	return c
}

// ntlmHash is NTOWFv1 of MS-NLMP 3.3.1. It is worth as much as the password.
func ntlmHash(password sft.Secret) []byte {
	b := utf16Bytes(password.Reveal())
	defer clear(b)
	h := md4.New()
	h.Write(b)
	return h.Sum(nil)
}

// ntlmOWF is NTOWFv2 of MS-NLMP 3.3.2.
func ntlmOWF(hash []byte, user, domain string) []byte {
	return ntlmHMAC(hash, utf16Bytes(strings.ToUpper(user)), utf16Bytes(domain))
}

// ntlmBlob is NTLMv2_CLIENT_CHALLENGE of MS-NLMP 2.2.2.7, which 3.3.2 calls
// temp.
func ntlmBlob(filetime uint64, nonce, avs []byte) []byte {
	b := []byte{1, 1, 0, 0, 0, 0, 0, 0}
	b = ntlmLE.AppendUint64(b, filetime)
	b = append(b, nonce...)
	b = append(b, 0, 0, 0, 0)
	b = append(b, avs...)
	return append(b, 0, 0, 0, 0)
}

// ntlmBlobHeader is how far into an ntlmBlob its AV_PAIRs begin.
const ntlmBlobHeader = 28

// ntlmProve returns NTProofStr and SessionBaseKey of MS-NLMP 3.3.2.
func ntlmProve(owf, serverNonce, blob []byte) (proof, base []byte) {
	proof = ntlmHMAC(owf, serverNonce, blob)
	return proof, ntlmHMAC(owf, proof)
}

// ntlmFiletime is t as the number of 100 ns since 1601 (MS-DTYP 2.3.3).
func ntlmFiletime(t time.Time) uint64 {
	return uint64(t.Unix()+11644473600)*1e7 + uint64(t.Nanosecond()/100)
}

// ntlmSession signs and seals with what an exchange agreed on (MS-NLMP 3.4).
// Each direction has its own keys and counts its messages, so that none is
// taken twice, out of order, or from itself.
type ntlmSession struct {
	send, receive ntlmDirection
}

type ntlmDirection struct {
	signKey, sealKey []byte
	cipher           *rc4.Cipher
	sequence         uint32
}

// ntlmNewSession makes the keys of MS-NLMP 3.4.5 from ExportedSessionKey.
func ntlmNewSession(key []byte, initiator bool) *ntlmSession {
	direction := func(name string) ntlmDirection {
		derive := func(what string) []byte {
			h := md5.New()
			h.Write(key)
			io.WriteString(h, "session key to "+name+" "+what+" key magic constant\x00")
			return h.Sum(nil)
		}
		d := ntlmDirection{signKey: derive("signing"), sealKey: derive("sealing")}
		d.reset()
		return d
	}
	s := &ntlmSession{send: direction("client-to-server"), receive: direction("server-to-client")}
	if !initiator {
		s.send, s.receive = s.receive, s.send
	}
	return s
}

// reset begins the key stream again, and goes on counting. It is done once,
// after the mechListMIC (MS-SPNG).
func (d *ntlmDirection) reset() { d.cipher = ntlmCipher(d.sealKey) }

// signature is the next message's signature, MS-NLMP 3.4.4.2. A sealed text
// has to have gone through the cipher before.
func (d *ntlmDirection) signature(text []byte) []byte {
	sequence := ntlmLE.AppendUint32(nil, d.sequence)
	d.sequence++
	sum := ntlmHMAC(d.signKey, sequence, text)[:8]
	d.cipher.XORKeyStream(sum, sum)
	return append(append([]byte{1, 0, 0, 0}, sum...), sequence...)
}

// ntlmSignatureSize is the size of a signature, in bytes.
const ntlmSignatureSize = 16

// wrap seals text: GSS_WrapEx of MS-NLMP 3.4.6, the signature first.
func (s *ntlmSession) wrap(text []byte) []byte {
	sealed := make([]byte, len(text))
	s.send.cipher.XORKeyStream(sealed, text)
	return append(s.send.signature(text), sealed...)
}

// unwrap opens what the other side's next wrap returned. After an error the
// session is of no more use.
func (s *ntlmSession) unwrap(m []byte) ([]byte, error) {
	if len(m) < ntlmSignatureSize {
		return nil, errNTLMSeal
	}
	text := make([]byte, len(m)-ntlmSignatureSize)
	s.receive.cipher.XORKeyStream(text, m[ntlmSignatureSize:])
	if subtle.ConstantTimeCompare(s.receive.signature(text), m[:ntlmSignatureSize]) != 1 {
		return nil, errNTLMSeal
	}
	return text, nil
}

// mic is GSS_GetMIC over the list of mechanisms of SPNEGO.
func (s *ntlmSession) mic(list []byte) []byte {
	defer s.send.reset()
	return s.send.signature(list)
}

// verify checks what the other side's mic returned.
func (s *ntlmSession) verify(list, mic []byte) error {
	defer s.receive.reset()
	if subtle.ConstantTimeCompare(s.receive.signature(list), mic) != 1 {
		return errNTLMSeal
	}
	return nil
}

// ntlmInitiator signs in. Its methods are called once each, in their order.
type ntlmInitiator struct {
	credentials Credentials
	spn         string // MsvAvTargetName, empty for none
	now         func() time.Time
	random      io.Reader

	first []byte
}

// negotiate is the first message, MS-NLMP 3.1.5.1.1.
func (i *ntlmInitiator) negotiate() []byte {
	i.first = ntlmNegotiate{ntlmOffered}.bytes()
	return i.first
}

// authenticate answers the challenge, MS-NLMP 3.1.5.1.2.
func (i *ntlmInitiator) authenticate(challenge []byte) ([]byte, *ntlmSession, error) {
	c, err := ntlmParseChallenge(challenge)
	if err != nil {
		return nil, nil, err
	}
	if c.Flags&ntlmRequired != ntlmRequired || c.Flags&ntlmTargetInfo == 0 {
		return nil, nil, errNTLMWeak
	}
	avs, err := ntlmParseAVs(c.TargetInfo)
	if err != nil {
		return nil, nil, err
	}
	user, domain, spn := utf16Bytes(i.credentials.User), utf16Bytes(i.credentials.Domain), utf16Bytes(i.spn)
	if len(user) > ntlmNameMax || len(domain) > ntlmNameMax || len(spn) > ntlmNameMax {
		return nil, nil, errors.New("the name to sign in with is too long for NTLM")
	}
	filetime := ntlmFiletime(i.now())
	stamp, stamped := ntlmFindAV(avs, avTimestamp)
	if stamped {
		if len(stamp) != 8 {
			return nil, nil, errNTLMMessage
		}
		filetime = ntlmLE.Uint64(stamp)
	}
	// These are for the client to say; a server that says them wants the
	// client's words in its own mouth.
	var own []ntlmAV
	for _, p := range avs {
		switch p.ID {
		case avFlags, avSingleHost, avTargetName, avChannelBindings:
		default:
			own = append(own, p)
		}
	}
	if stamped {
		own = append(own, ntlmAV{avFlags, []byte{avHasMIC, 0, 0, 0}})
	}
	own = append(own, ntlmAV{avChannelBindings, make([]byte, 16)}, ntlmAV{avTargetName, spn})

	var drawn [8 + 16]byte
	if _, err := io.ReadFull(i.random, drawn[:]); err != nil {
		return nil, nil, err
	}
	nonce, exported := drawn[:8], drawn[8:]
	owf := ntlmOWF(ntlmHash(i.credentials.Password), i.credentials.User, i.credentials.Domain)
	blob := ntlmBlob(filetime, nonce, ntlmAVBytes(own))
	proof, base := ntlmProve(owf, c.Nonce[:], blob)
	a := ntlmAuthenticate{
		LM: make([]byte, 24), NT: append(proof, blob...),
		Domain: domain, User: user, Key: ntlmRC4(base, exported),
		Flags: c.Flags & (ntlmOffered | ntlmTargetInfo),
		MIC:   make([]byte, 16),
	}
	if !stamped {
		a.LM = append(ntlmHMAC(owf, c.Nonce[:], nonce), nonce...)
	}
	m := a.bytes()
	if stamped {
		copy(m[ntlmMIC:], ntlmHMAC(exported, i.first, challenge, m))
	}
	return m, ntlmNewSession(exported, true), nil
}

// ntlmAcceptor lets one user in. Its methods are called once each, in their
// order.
type ntlmAcceptor struct {
	user   string // case does not count, nor does the domain
	hash   []byte // ntlmHash of the password
	now    func() time.Time
	random io.Reader

	first, second []byte
	nonce         [8]byte
}

// ntlmName is what an acceptor calls itself.
const ntlmName = "SFT"

// challenge answers the first message, MS-NLMP 3.2.5.1.1.
func (a *ntlmAcceptor) challenge(negotiate []byte) ([]byte, error) {
	n, err := ntlmParseNegotiate(negotiate)
	if err != nil {
		return nil, err
	}
	if n.Flags&ntlmRequired != ntlmRequired {
		return nil, errNTLMWeak
	}
	if _, err := io.ReadFull(a.random, a.nonce[:]); err != nil {
		return nil, err
	}
	name, dns := utf16Bytes(ntlmName), utf16Bytes(strings.ToLower(ntlmName))
	// With the timestamp the client has to add a MIC.
	info := ntlmAVBytes([]ntlmAV{{avNbDomainName, name}, {avNbComputerName, name}, {avDNSDomainName, dns}, {avDNSComputerName, dns},
		{avTimestamp, ntlmLE.AppendUint64(nil, ntlmFiletime(a.now()))}})
	a.first = bytes.Clone(negotiate)
	a.second = ntlmChallenge{Flags: n.Flags&ntlmOffered | ntlmNTLM | ntlmTarget | ntlmServerType | ntlmTargetInfo, Nonce: a.nonce, TargetName: name, TargetInfo: info}.bytes()
	return a.second, nil
}

// accept checks the last message, MS-NLMP 3.2.5.1.2. The error is ErrLogon if
// it shows another user or password.
func (a *ntlmAcceptor) accept(authenticate []byte) (*ntlmSession, error) {
	m, err := ntlmParseAuthenticate(authenticate)
	if err != nil {
		return nil, err
	}
	if m.Flags&ntlmRequired != ntlmRequired || len(m.Key) != 16 {
		return nil, errNTLMWeak
	}
	const proofSize = md5.Size
	if len(m.NT) < proofSize+ntlmBlobHeader || m.NT[proofSize] != 1 || m.NT[proofSize+1] != 1 {
		return nil, errors.New("it answers with NTLM of version 1; allow NTLMv2 there")
	}
	sent, blob := m.NT[:proofSize], m.NT[proofSize:]
	avs, err := ntlmParseAVs(blob[ntlmBlobHeader:])
	if err != nil {
		return nil, err
	}
	user, ok := utf16String(m.User)
	domain, ok2 := utf16String(m.Domain)
	if !ok || !ok2 {
		return nil, errNTLMMessage
	}
	proof, base := ntlmProve(ntlmOWF(a.hash, user, domain), a.nonce[:], blob)
	if subtle.ConstantTimeCompare(proof, sent) != 1 || !strings.EqualFold(user, a.user) {
		return nil, fmt.Errorf("%w: it shows another user name or password", ErrLogon)
	}
	exported := ntlmRC4(base, m.Key)
	flags, _ := ntlmFindAV(avs, avFlags)
	if len(flags) != 4 || flags[0]&avHasMIC == 0 || m.MIC == nil {
		return nil, errors.New("it does not protect its NTLM messages by a MIC")
	}
	bare := bytes.Clone(authenticate)
	clear(bare[ntlmMIC : ntlmMIC+16])
	if subtle.ConstantTimeCompare(ntlmHMAC(exported, a.first, a.second, bare), m.MIC) != 1 {
		return nil, errors.New("its NTLM messages were changed on the way")
	}
	return ntlmNewSession(exported, false), nil
}
