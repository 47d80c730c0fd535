package rdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
)

// Flags of a Client Info (MS-RDPBCGR 2.2.1.11.1.1).
const (
	InfoMouse            uint32 = 0x1
	InfoDisableCtrlAlt   uint32 = 0x2 // no Ctrl+Alt+Del before the logon
	InfoAutologon        uint32 = 0x8 // sign in with the password that is here
	InfoUnicode          uint32 = 0x10
	InfoMaximizeShell    uint32 = 0x20
	InfoLogonNotify      uint32 = 0x40
	InfoCompression      uint32 = 0x80 // the service may compress
	InfoWindowsKey       uint32 = 0x100
	InfoConsoleAudio     uint32 = 0x2000
	InfoEncryptedOnly    uint32 = 0x4000
	InfoRail             uint32 = 0x8000
	InfoLogonErrors      uint32 = 0x10000
	InfoMouseWheel       uint32 = 0x20000
	InfoPasswordIsPIN    uint32 = 0x40000 // the password is a smart card's PIN
	InfoNoAudio          uint32 = 0x80000
	InfoSavedCredentials uint32 = 0x100000
	InfoAudioCapture     uint32 = 0x200000
	InfoNoVideo          uint32 = 0x400000
)

// Flags of a security header (MS-RDPBCGR 2.2.8.1.1.2.1).
const (
	secEncrypt     = 0x0008
	secInfo        = 0x0040
	secLicense     = 0x0080
	secRedirection = 0x0400
)

const (
	secHeader    = 4 // of a basic security header, in bytes
	infoHeader   = secHeader + 18
	maxInfoField = 512  // of each field (MS-RDPBCGR 2.2.1.11.1.1), in bytes
	maxInfoExtra = 4096 // of the extended info; what there is today has about 1000
)

// A ClientInfo is what a client shows of its user (MS-RDPBCGR 2.2.1.11). The
// texts are UTF-16LE without the NUL at their end. It prints and logs without
// what is in it, for one of that is a password.
type ClientInfo struct {
	Security   uint32 // flags of the security header, the upper half of which nothing is said about
	CodePage   uint32 // or the keyboard's language
	Flags      uint32 // Info…
	Domain     []byte
	User       []byte
	Password   []byte
	Shell      []byte
	WorkingDir []byte
	// Extra is the extended info as it came, the auto-reconnect cookie in it,
	// which is as good as a password.
	Extra []byte

	came []byte // what it was parsed from
}

// IsClientInfo reports whether the data of a SendDataPDU says that it is a
// Client Info.
func IsClientInfo(data []byte) bool {
	return len(data) >= secHeader && binary.LittleEndian.Uint16(data)&secInfo != 0
}

// ParseClientInfo reads the data of a SendDataPDU, its security header
// included. One that is encrypted or not in Unicode is an error; no client of
// this century sends such a one inside TLS. The result's fields are parts of
// data, so that there is one copy to Wipe.
func ParseClientInfo(data []byte) (*ClientInfo, error) {
	c, err := parseClientInfo(data)
	if err != nil {
		return nil, fmt.Errorf("read Client Info: %w", err)
	}
	return c, nil
}

func parseClientInfo(data []byte) (*ClientInfo, error) {
	if !IsClientInfo(data) {
		return nil, errors.New("it is another PDU")
	}
	if len(data) < infoHeader {
		return nil, errors.New("it ends too early")
	}
	c := &ClientInfo{Security: binary.LittleEndian.Uint32(data), CodePage: binary.LittleEndian.Uint32(data[4:]), Flags: binary.LittleEndian.Uint32(data[8:]), came: data}
	if c.Security&secEncrypt != 0 {
		return nil, errors.New("it is encrypted inside TLS")
	}
	if c.Flags&InfoUnicode == 0 {
		return nil, errors.New("it is not in Unicode; use a newer RDP client")
	}
	b := data[infoHeader:]
	for i, field := range c.fields() {
		n := int(binary.LittleEndian.Uint16(data[12+2*i:]))
		if n > maxInfoField || n%2 != 0 {
			return nil, errors.New("a field is longer than one may be")
		}
		if len(b) < n+2 || b[n] != 0 || b[n+1] != 0 {
			return nil, errors.New("a field has no end")
		}
		*field, b = b[:n:n], b[n+2:]
	}
	if len(b) > maxInfoExtra {
		return nil, ErrTooLong
	}
	c.Extra = b
	return c, nil
}

// fields are the texts, in their order on the wire.
func (c *ClientInfo) fields() [5]*[]byte {
	return [5]*[]byte{&c.Domain, &c.User, &c.Password, &c.Shell, &c.WorkingDir}
}

// Bytes returns the data of a SendDataPDU; the caller clears it, for the
// password is in it. An error if a field is longer than 512 bytes, or of an
// odd size, or if it would not be read.
func (c *ClientInfo) Bytes() ([]byte, error) {
	size := infoHeader + len(c.Extra)
	for _, field := range c.fields() {
		if len(*field) > maxInfoField || len(*field)%2 != 0 {
			return nil, errors.New("write Client Info: a field is longer than one may be")
		}
		size += len(*field) + 2
	}
	if len(c.Extra) > maxInfoExtra {
		return nil, fmt.Errorf("write Client Info: %w", ErrTooLong)
	}
	if c.Security&secInfo == 0 || c.Security&secEncrypt != 0 || c.Flags&InfoUnicode == 0 {
		return nil, errors.New("write Client Info: its flags are those of another PDU")
	}
	b := make([]byte, 0, size) // one allocation, so that nothing of it is left
	b = binary.LittleEndian.AppendUint32(b, c.Security)
	b = binary.LittleEndian.AppendUint32(b, c.CodePage)
	b = binary.LittleEndian.AppendUint32(b, c.Flags)
	for _, field := range c.fields() {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(*field)))
	}
	for _, field := range c.fields() {
		b = append(append(b, *field...), 0, 0)
	}
	return append(b, c.Extra...), nil
}

// Wipe clears the texts and what c was parsed from. c is of no use after it.
func (c *ClientInfo) Wipe() {
	for _, field := range c.fields() {
		clear(*field)
	}
	clear(c.Extra)
	clear(c.came)
	*c = ClientInfo{}
}

// String hides what is in it.
func (c ClientInfo) String() string { return fmt.Sprintf("[client info, flags %#x]", c.Flags) }

// Format hides it from every verb of package fmt.
func (c ClientInfo) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }

// LogValue hides it from package log/slog.
func (c ClientInfo) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON refuses.
func (c ClientInfo) MarshalJSON() ([]byte, error) {
	return nil, errors.New("a Client Info cannot be marshalled; use Bytes")
}
