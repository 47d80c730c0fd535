package launch

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// An RDPFile is an RDP connection file: lines of NAME:TYPE:VALUE, as mstsc
// writes them ("Supported RDP properties" on learn.microsoft.com). It has the
// settings that this package knows alone, each once and of its own type.
type RDPFile []RDPSetting

// An RDPSetting is one line. A value of type 'b' is in upper-case hexadecimal
// digits, one of type 'i' a number without a sign.
type RDPSetting struct {
	Name  string
	Type  byte // 'i', 's' or 'b'
	Value string
}

// A settingKind is what a setting may hold.
type settingKind struct {
	kind byte
	max  int // of 'i' the value, of 's' UTF-16 units, of 'b' bytes
}

// passwordSetting holds a password in UTF-16LE under DPAPI, for this user.
const passwordSetting = "password 51"

// maxText caps a text that is not a name.
const maxText = 256

// rdpSettings is what a file may have.
var rdpSettings = map[string]settingKind{
	"full address":             {'s', 64},
	"username":                 {'s', 128},
	passwordSetting:            {'b', 8 << 10},
	"authentication level":     {'i', 3},
	"prompt for credentials":   {'i', 1},
	"promptcredentialonce":     {'i', 1},
	"enablecredsspsupport":     {'i', 1},
	"negotiate security layer": {'i', 1},
	"screen mode id":           {'i', 2},
	"desktopwidth":             {'i', 99999},
	"desktopheight":            {'i', 99999},
	"winposstr":                {'s', 64},
	"desktopscalefactor":       {'i', 500},
	"use multimon":             {'i', 1},
	"smart sizing":             {'i', 1},
	"dynamic resolution":       {'i', 1},
	"session bpp":              {'i', 32},
	"redirectclipboard":        {'i', 1},
	"redirectdrives":           {'i', 1},
	"redirectprinters":         {'i', 1},
	"redirectcomports":         {'i', 1},
	"redirectsmartcards":       {'i', 1},
	"redirectwebauthn":         {'i', 1},
	"drivestoredirect":         {'s', maxText},
	"devicestoredirect":        {'s', maxText},
	"usbdevicestoredirect":     {'s', maxText},
	"camerastoredirect":        {'s', maxText},
	"audiomode":                {'i', 2},
	"audiocapturemode":         {'i', 1},
	"autoreconnection enabled": {'i', 1},
	"disableconnectionsharing": {'i', 1},
	"networkautodetect":        {'i', 1},
	"bandwidthautodetect":      {'i', 1},

	// Of a signed file, see package rdpsign: those that could lead elsewhere or
	// start something say that they do not.
	"alternate full address":            {'s', 64},
	"pcb":                               {'s', 0},
	"use redirection server name":       {'i', 0},
	"server port":                       {'i', 65535},
	"gatewayhostname":                   {'s', 0},
	"gatewayusagemethod":                {'i', 0},
	"gatewayprofileusagemethod":         {'i', 1},
	"gatewaycredentialssource":          {'i', 0},
	"require pre-authentication":        {'i', 0},
	"pre-authentication server address": {'s', 0},
	"alternate shell":                   {'s', 0},
	"shell working directory":           {'s', 0},
	"remoteapplicationmode":             {'i', 0},
	"redirectposdevices":                {'i', 0},
	"loadbalanceinfo":                   {'s', 0},
	"rdgiskdcproxy":                     {'i', 0},
	"kdcproxyname":                      {'s', 0},
	"eventloguploadaddress":             {'s', 0},
	"signscope":                         {'s', 2 << 10},
	"signature":                         {'s', 12 << 10},
}

// maxRDPFile caps a file, in bytes.
const maxRDPFile = 64 << 10

func (f *RDPFile) number(name string, n int) {
	*f = append(*f, RDPSetting{name, 'i', strconv.Itoa(n)})
}

func (f *RDPFile) yes(name string, on bool) {
	if on {
		f.number(name, 1)
		return
	}
	f.number(name, 0)
}

func (f *RDPFile) text(name, value string) { *f = append(*f, RDPSetting{name, 's', value}) }

func (f *RDPFile) blob(name string, value []byte) {
	*f = append(*f, RDPSetting{name, 'b', strings.ToUpper(hex.EncodeToString(value))})
}

// Get returns a setting's value, or "" and false.
func (f RDPFile) Get(name string) (string, bool) {
	for _, s := range f {
		if s.Name == name {
			return s.Value, true
		}
	}
	return "", false
}

// check refuses what a line could not hold, and what would be another line.
func (f RDPFile) check() error {
	seen := map[string]bool{}
	for _, s := range f {
		k, ok := rdpSettings[s.Name]
		switch {
		case !ok:
			return fmt.Errorf("there is no setting %q", s.Name)
		case seen[s.Name]:
			return fmt.Errorf("setting %q is there twice", s.Name)
		case s.Type != k.kind:
			return fmt.Errorf("setting %q is of type %q, not %q", s.Name, k.kind, s.Type)
		}
		seen[s.Name] = true
		if err := k.check(s.Value); err != nil {
			return fmt.Errorf("setting %q %w", s.Name, err) // never the value: it may be the password
		}
	}
	return nil
}

func (k settingKind) check(v string) error {
	switch k.kind {
	case 'i':
		if n, err := strconv.Atoi(v); err != nil || n < 0 || n > k.max || strconv.Itoa(n) != v {
			return fmt.Errorf("is not a number up to %d", k.max)
		}
	case 'b':
		if b, err := hex.DecodeString(v); err != nil || len(b) == 0 || len(b) > k.max || strings.ToUpper(v) != v {
			return fmt.Errorf("is not hexadecimal digits of up to %d bytes", k.max)
		}
	default:
		if !utf8.ValidString(v) || strings.ContainsFunc(v, unprintable) {
			return errors.New("has a character that is not printable")
		}
		if strings.ContainsRune(v, '"') {
			return errors.New("has a quote")
		}
		if n := len(utf16.Encode([]rune(v))); n > k.max {
			return fmt.Errorf("has %d characters, more than %d", n, k.max)
		}
	}
	return nil
}

// unprintable are the characters that end a line somewhere, or are not seen.
func unprintable(r rune) bool {
	return unicode.Is(unicode.C, r) || r == '\u2028' || r == '\u2029' || r == utf8.RuneError
}

// Text returns the file in UTF-8, as RDP clients of other systems read it.
func (f RDPFile) Text() ([]byte, error) {
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("write an RDP file: %w", err)
	}
	var b bytes.Buffer
	for _, s := range f {
		fmt.Fprintf(&b, "%s:%c:%s\r\n", s.Name, s.Type, s.Value)
	}
	if b.Len() > maxRDPFile/2 {
		return nil, errors.New("write an RDP file: it is too long")
	}
	return b.Bytes(), nil
}

// Bytes returns the file as mstsc writes it: UTF-16LE with a byte order mark,
// each line ended by CR LF. What it returns ParseRDPFile reads.
func (f RDPFile) Bytes() ([]byte, error) {
	text, err := f.Text()
	if err != nil {
		return nil, err
	}
	out := []byte{0xff, 0xfe}
	for _, u := range utf16.Encode([]rune(string(text))) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out, nil
}

// ParseRDPFile reads what Bytes writes, and nothing else: what it returns
// writes back as the same bytes.
func ParseRDPFile(b []byte) (RDPFile, error) {
	f, err := parseRDPFile(b)
	if err != nil {
		return nil, fmt.Errorf("read an RDP file: %w", err)
	}
	return f, nil
}

func parseRDPFile(b []byte) (RDPFile, error) {
	switch {
	case len(b) > maxRDPFile:
		return nil, errors.New("it is too long")
	case len(b)%2 != 0 || !bytes.HasPrefix(b, []byte{0xff, 0xfe}):
		return nil, errors.New("it is not in UTF-16 with a byte order mark")
	}
	var units []uint16
	for i := 2; i < len(b); i += 2 {
		units = append(units, binary.LittleEndian.Uint16(b[i:]))
	}
	runes := utf16.Decode(units)
	if !slices.Equal(utf16.Encode(runes), units) {
		return nil, errors.New("it has half a character")
	}
	var f RDPFile
	for rest := string(runes); rest != ""; {
		line, after, ok := strings.Cut(rest, "\r\n")
		if !ok {
			return nil, errors.New("its last line has no end")
		}
		rest = after
		part := strings.SplitN(line, ":", 3)
		if len(part) != 3 || len(part[1]) != 1 {
			return nil, errors.New("a line is not NAME:TYPE:VALUE")
		}
		f = append(f, RDPSetting{part[0], part[1][0], part[2]})
	}
	return f, f.check()
}

// An accounting is how a connection file lets the RDP client sign in.
type accounting struct {
	password []byte // under DPAPI; empty: none
	nla      bool   // the client may use NLA
	trust    bool   // the client takes whatever certificate is shown
}

// connectionFile is the file for t.
func connectionFile(t Target, v View, a accounting) RDPFile {
	var f RDPFile
	f.text("full address", t.Addr.String())
	f.text("username", t.Login)
	if len(a.password) > 0 {
		f.blob(passwordSetting, a.password)
	}
	if a.trust {
		f.number("authentication level", 0)
	} else {
		f.number("authentication level", 2)
	}
	f.number("prompt for credentials", 0)
	f.number("promptcredentialonce", 1)
	f.yes("enablecredsspsupport", a.nla)
	f.number("negotiate security layer", 1)
	if v.Fullscreen || v.MultiMonitor {
		f.number("screen mode id", 2)
	} else {
		f.number("screen mode id", 1)
	}
	if w, h, ok := strings.Cut(v.Size, "x"); ok {
		f = append(f, RDPSetting{"desktopwidth", 'i', w}, RDPSetting{"desktopheight", 'i', h})
	}
	if v.place != "" {
		f.text("winposstr", v.place)
		f.number("desktopscalefactor", v.scale)
	}
	f.yes("use multimon", v.MultiMonitor)
	f.number("smart sizing", 0)
	f.number("dynamic resolution", 1)
	f.number("session bpp", 32)
	f.yes("redirectclipboard", t.Channels.Clipboard)
	// What the project lets cross is left to the RDP client's own defaults, by
	// which no drive and no camera is offered; the rest is not asked for.
	f.yes("redirectprinters", t.Channels.Devices)
	f.yes("redirectsmartcards", t.Channels.Devices)
	if !t.Channels.Devices {
		f.number("redirectdrives", 0)
		f.number("redirectcomports", 0)
		for _, name := range []string{"drivestoredirect", "devicestoredirect", "usbdevicestoredirect", "camerastoredirect"} {
			f.text(name, "")
		}
	}
	if !t.Channels.OtherDynamic {
		f.number("redirectwebauthn", 0)
	}
	if t.Channels.Audio {
		f.number("audiomode", 0)
	} else {
		f.number("audiomode", 2)
	}
	f.number("audiocapturemode", 0)
	f.number("autoreconnection enabled", 1)
	f.number("disableconnectionsharing", 1)
	f.number("networkautodetect", 0)
	f.number("bandwidthautodetect", 0)
	return f
}
