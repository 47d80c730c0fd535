// Package rdpsign is the signed part of an RDP connection file, for both who
// signs it and who writes it.
//
// mstsc names the publisher of a file that has two lines more: signscope, with
// the names of the settings that are signed, and signature. Microsoft has not
// published what is in them; it is known from files that its rdpsign.exe signs:
// a PKCS #7 signature (RFC 2315), detached and without attributes, of the lines
// in the order of signscope and of the line signscope itself, in UTF-16LE with a
// NUL at the end; before it three numbers of 32 bits, 0x00010001, 1 and its
// length. Only settings that rdpsign.exe takes in can be in the scope: the name
// of the person and the screen are not among them.
//
// A publisher that people trust is worth more than any one file, so not every
// file can be signed. It leads to this machine's own loopback alone, through no
// gateway, and starts nothing. All that could say otherwise is in the scope, with
// the value that says no: whoever adds a line to a signed file breaks it.
package rdpsign

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf16"

	"sft"
)

// A Setting is one that every signed file has.
type Setting struct {
	Name  string // in the file
	Type  byte   // 'i' or 's'
	scope string // in signscope
	// Default is its value where a file needs no other. The addresses and the
	// port have none.
	Default string
	values  string // one digit each; empty: the default alone
}

// settings are in the order of rdpsign.exe.
var settings = []Setting{
	{"full address", 's', "Full Address", "", ""},
	{"alternate full address", 's', "Alternate Full Address", "", ""},
	{"pcb", 's', "PCB", "", ""},
	{"use redirection server name", 'i', "Use Redirection Server Name", "0", ""},
	{"server port", 'i', "Server Port", "", ""},
	{"negotiate security layer", 'i', "Negotiate Security Layer", "1", ""},
	{"enablecredsspsupport", 'i', "EnableCredSspSupport", "0", "01"},
	{"disableconnectionsharing", 'i', "DisableConnectionSharing", "1", ""},
	{"autoreconnection enabled", 'i', "AutoReconnection Enabled", "1", "01"},
	{"gatewayhostname", 's', "GatewayHostname", "", ""},
	{"gatewayusagemethod", 'i', "GatewayUsageMethod", "0", ""},
	{"gatewayprofileusagemethod", 'i', "GatewayProfileUsageMethod", "1", ""},
	{"gatewaycredentialssource", 'i', "GatewayCredentialsSource", "0", ""},
	{"promptcredentialonce", 'i', "PromptCredentialOnce", "1", "01"},
	{"require pre-authentication", 'i', "Require pre-authentication", "0", ""},
	{"pre-authentication server address", 's', "Pre-authentication server address", "", ""},
	{"alternate shell", 's', "Alternate Shell", "", ""},
	{"shell working directory", 's', "Shell Working Directory", "", ""},
	{"remoteapplicationmode", 'i', "RemoteApplicationMode", "0", ""},
	{"prompt for credentials", 'i', "Prompt For Credentials", "0", "01"},
	{"authentication level", 'i', "Authentication Level", "2", "0123"},
	{"audiomode", 'i', "AudioMode", "0", "012"},
	{"redirectdrives", 'i', "RedirectDrives", "0", ""},
	{"redirectprinters", 'i', "RedirectPrinters", "0", "01"},
	{"redirectcomports", 'i', "RedirectCOMPorts", "0", ""},
	{"redirectsmartcards", 'i', "RedirectSmartCards", "0", "01"},
	{"redirectposdevices", 'i', "RedirectPOSDevices", "0", ""},
	{"redirectclipboard", 'i', "RedirectClipboard", "0", "01"},
	{"devicestoredirect", 's', "DevicesToRedirect", "", ""},
	{"drivestoredirect", 's', "DrivesToRedirect", "", ""},
	{"loadbalanceinfo", 's', "LoadBalanceInfo", "", ""},
	{"rdgiskdcproxy", 'i', "RDGIsKDCProxy", "0", ""},
	{"kdcproxyname", 's', "KDCProxyName", "", ""},
	{"eventloguploadaddress", 's', "EventLogUploadAddress", "", ""},
}

// Scope is the value of signscope.
func Scope() string {
	var names []string
	for _, s := range settings {
		names = append(names, s.scope)
	}
	return strings.Join(names, ",")
}

// Message returns the bytes that are signed for the lines of a file, which
// are as Lines returns them: each setting once and in its place, as
// NAME:TYPE:VALUE. It refuses a file that is not to be signed.
func Message(lines []string) ([]byte, error) {
	bad := func(msg string) error {
		return &sft.Error{Code: sft.Invalid, Msg: msg, Hint: "check that sft and the platform are of the same version"}
	}
	if len(lines) != len(settings) {
		return nil, bad(fmt.Sprintf("the connection file has %d settings to sign, and %d are", len(lines), len(settings)))
	}
	var text strings.Builder
	var full string
	for i, s := range settings {
		value, ok := strings.CutPrefix(lines[i], s.Name+":"+string(s.Type)+":")
		switch {
		case !ok:
			return nil, bad("setting " + sft.Quote(s.Name) + " is not where it is signed")
		case s.Name == fullAddress:
			if full = value; !loopback(full) {
				return nil, bad("a connection file to " + sft.Quote(value) + " is not signed: it must lead to a port of 127.0.0.0/8")
			}
		case s.Name == alternateAddress || s.Name == serverPort:
			if s.own(full) != value {
				return nil, bad("the addresses of the connection file differ")
			}
		case value != s.Default && (len(value) != 1 || !strings.Contains(s.values, value)):
			return nil, bad("setting " + sft.Quote(s.Name) + " is not signed with the value " + sft.Quote(value))
		}
		text.WriteString(lines[i] + "\r\n")
	}
	text.WriteString("signscope:s:" + Scope() + "\r\n\x00")
	var out []byte
	for _, u := range utf16.Encode([]rune(text.String())) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out, nil
}

// The settings that have no Default.
const (
	fullAddress      = "full address"
	alternateAddress = "alternate full address"
	serverPort       = "server port"
)

// own is the value of a setting in a file to the address full, where it needs
// no other.
func (s Setting) own(full string) string {
	switch s.Name {
	case fullAddress, alternateAddress:
		return full
	case serverPort:
		_, port, _ := strings.Cut(full, ":")
		return port
	}
	return s.Default
}

// Lines returns what is to be signed of a file to the address full, host:port.
// get returns what the file has, and reports whether it has it; for the rest it
// is what needs to be added to the file.
func Lines(full string, get func(name string) (string, bool)) (lines []string, missing []Setting) {
	for _, s := range settings {
		value, ok := get(s.Name)
		if !ok {
			value = s.own(full)
			s.Default = value
			missing = append(missing, s)
		}
		lines = append(lines, s.Name+":"+string(s.Type)+":"+value)
	}
	return lines, missing
}

// loopback reports whether s is a port of IPv4's loopback, in its one spelling.
func loopback(s string) bool {
	a, err := netip.ParseAddrPort(s)
	return err == nil && a.String() == s && a.Addr().Is4() && a.Addr().IsLoopback() && a.Port() != 0
}

// head is before the PKCS #7; the third number is its length.
var head = [2]uint32{0x00010001, 1}

// MaxSignature caps a PKCS #7, in bytes.
const MaxSignature = 8 << 10

// Wrap returns the value of signature for a PKCS #7.
func Wrap(der []byte) string {
	var b []byte
	for _, n := range [3]uint32{head[0], head[1], uint32(len(der))} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return base64.StdEncoding.EncodeToString(append(b, der...))
}

// Unwrap returns the PKCS #7 in a value that Wrap made, and refuses any other.
func Unwrap(value string) ([]byte, error) {
	bad := &sft.Error{Code: sft.Invalid, Msg: "the signature of the connection file is not readable", Hint: "sign the file again"}
	if len(value) > base64.StdEncoding.EncodedLen(MaxSignature+12) {
		return nil, bad
	}
	b, err := base64.StdEncoding.Strict().DecodeString(value)
	if err != nil || len(b) < 12 {
		return nil, bad
	}
	if der := bytes.Clone(b[12:]); Wrap(der) == value {
		return der, nil
	}
	return nil, bad
}
