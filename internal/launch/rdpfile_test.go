package launch

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"unicode/utf16"

	"sft"
)

// golden is what mstsc gets for a start by file.
const golden = `full address:s:127.3.4.5:40123
username:s:alice
password 51:b:01000000D08C9DDF
authentication level:i:0
prompt for credentials:i:0
promptcredentialonce:i:1
enablecredsspsupport:i:0
negotiate security layer:i:1
screen mode id:i:2
desktopwidth:i:1280
desktopheight:i:800
use multimon:i:0
smart sizing:i:0
dynamic resolution:i:1
session bpp:i:32
redirectclipboard:i:1
redirectprinters:i:1
redirectsmartcards:i:1
audiomode:i:0
audiocapturemode:i:0
autoreconnection enabled:i:1
disableconnectionsharing:i:1
networkautodetect:i:0
bandwidthautodetect:i:0
`

func TestConnectionFile(t *testing.T) {
	f := connectionFile(apartTarget(), View{Size: "1280x800", Fullscreen: true}, accounting{password: []byte{1, 0, 0, 0, 0xd0, 0x8c, 0x9d, 0xdf}, trust: true})
	b, err := f.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	want := []byte{0xff, 0xfe}
	for _, u := range utf16.Encode([]rune(strings.ReplaceAll(golden, "\n", "\r\n"))) {
		want = append(want, byte(u), byte(u>>8))
	}
	if !bytes.Equal(b, want) {
		text, _ := f.Text()
		t.Errorf("got\n%s\nwant\n%s", text, golden)
	}
	again, err := ParseRDPFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := again.Get(passwordSetting); p != "01000000D08C9DDF" || !ok {
		t.Errorf("the password reads as %q, %v", p, ok)
	}
}

// A server that delivers the password is looked at by mstsc itself, and NLA is
// left to it.
func TestConnectionFileWithoutAFront(t *testing.T) {
	f := connectionFile(target, View{MultiMonitor: true}, accounting{nla: true})
	for name, want := range map[string]string{"authentication level": "2", "enablecredsspsupport": "1", "use multimon": "1", "screen mode id": "2"} {
		if got, _ := f.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{passwordSetting, "desktopwidth"} {
		if got, ok := f.Get(name); ok {
			t.Errorf("%s is there: %q", name, got)
		}
	}
}

func TestBadSettings(t *testing.T) {
	tests := []struct {
		name string
		s    RDPSetting
		want string
	}{
		{"a line break", RDPSetting{"username", 's', "a\nalternate shell:s:cmd"}, `setting "username" has a character that is not printable`},
		{"a carriage return", RDPSetting{"username", 's', "a\rb"}, `setting "username" has a character that is not printable`},
		{"a NUL", RDPSetting{"username", 's', "a\x00"}, `setting "username" has a character that is not printable`},
		{"a line separator", RDPSetting{"username", 's', "a\u2028b"}, `setting "username" has a character that is not printable`},
		{"a change of direction", RDPSetting{"username", 's', "a\u202eb"}, `setting "username" has a character that is not printable`},
		{"a quote", RDPSetting{"username", 's', `a"b`}, `setting "username" has a quote`},
		{"half a surrogate pair", RDPSetting{"username", 's', "a\xed\xa0\x80"}, `setting "username" has a character that is not printable`},
		{"a name that is too long", RDPSetting{"username", 's', strings.Repeat("a", 129)}, `setting "username" has 129 characters, more than 128`},
		{"a name that is too long in UTF-16", RDPSetting{"username", 's', strings.Repeat("😀", 65)}, `setting "username" has 130 characters, more than 128`},
		{"a number with a sign", RDPSetting{"audiomode", 'i', "-1"}, `setting "audiomode" is not a number up to 2`},
		{"a number with a zero before it", RDPSetting{"audiomode", 'i', "01"}, `setting "audiomode" is not a number up to 2`},
		{"a number that is too large", RDPSetting{"audiomode", 'i', "3"}, `setting "audiomode" is not a number up to 2`},
		{"another type", RDPSetting{"audiomode", 's', "1"}, `setting "audiomode" is of type 'i', not 's'`},
		{"a password that is no bytes", RDPSetting{passwordSetting, 'b', "s3cret"}, `setting "password 51" is not hexadecimal digits of up to 8192 bytes`},
		{"an empty password", RDPSetting{passwordSetting, 'b', ""}, `setting "password 51" is not hexadecimal digits of up to 8192 bytes`},
		{"a setting that starts a program", RDPSetting{"alternate shell", 's', "cmd"}, `setting "alternate shell" has 3 characters, more than 0`},
		{"a setting that starts an app", RDPSetting{"remoteapplicationmode", 'i', "1"}, `setting "remoteapplicationmode" is not a number up to 0`},
		{"a gateway", RDPSetting{"gatewayusagemethod", 'i', "1"}, `setting "gatewayusagemethod" is not a number up to 0`},
		{"a setting that is not known", RDPSetting{"remoteapplicationprogram", 's', "cmd"}, `there is no setting "remoteapplicationprogram"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := RDPFile{tt.s}.Bytes()
			if want := "write an RDP file: " + tt.want; err == nil || err.Error() != want {
				t.Errorf("Bytes = %v, want %s", err, want)
			}
		})
	}
	if _, err := (RDPFile{{"audiomode", 'i', "1"}, {"audiomode", 'i', "1"}}).Bytes(); err == nil {
		t.Error("a setting is there twice")
	}
}

func TestBadFiles(t *testing.T) {
	utf16le := func(s string) []byte {
		b := []byte{0xff, 0xfe}
		for _, u := range utf16.Encode([]rune(s)) {
			b = append(b, byte(u), byte(u>>8))
		}
		return b
	}
	tests := []struct {
		name string
		b    []byte
		want string
	}{
		{"UTF-8", []byte("audiomode:i:1\r\n "), "it is not in UTF-16 with a byte order mark"},
		{"half a unit", append(utf16le("audiomode:i:1\r\n"), 0), "it is not in UTF-16 with a byte order mark"},
		{"half a surrogate pair", append(utf16le("username:s:a"), 0x3d, 0xd8, '\r', 0, '\n', 0), "it has half a character"},
		{"a line without an end", utf16le("audiomode:i:1"), "its last line has no end"},
		{"a line without a type", utf16le("audiomode\r\n"), "a line is not NAME:TYPE:VALUE"},
		{"a bare line feed", utf16le("username:s:a\nb\r\n"), `setting "username" has a character that is not printable`},
		{"more than a file has", append([]byte{0xff, 0xfe}, make([]byte, maxRDPFile)...), "it is too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ParseRDPFile(tt.b); err == nil || err.Error() != "read an RDP file: "+tt.want {
				t.Errorf("ParseRDPFile = %v, want %s", err, tt.want)
			}
		})
	}
}

// FuzzParseRDPFile checks that what is read is written back as it was.
func FuzzParseRDPFile(f *testing.F) {
	b, err := connectionFile(target, View{}, accounting{password: []byte{1}}).Bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0xff, 0xfe})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := ParseRDPFile(b)
		if err != nil {
			return
		}
		again, err := got.Bytes()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x was written back as %x, %v", b, again, err)
		}
	})
}

// FuzzRDPFile checks that a user name is one value of one line, whatever is in
// it, or is refused.
func FuzzRDPFile(f *testing.F) {
	for _, s := range []string{"alice", "a\r\nb", "a:b:c", "\ud7ff", "😀", "\x00", "\"", "\ufeff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, user string) {
		file := connectionFile(target, View{}, accounting{})
		for i := range file {
			if file[i].Name == "username" {
				file[i].Value = user
			}
		}
		b, err := file.Bytes()
		if err != nil {
			return
		}
		got, err := ParseRDPFile(b)
		if err != nil || len(got) != len(file) {
			t.Fatalf("%q: %d lines of %d, %v", user, len(got), len(file), err)
		}
		if v, _ := got.Get("username"); v != user {
			t.Fatalf("%q reads as %q", user, v)
		}
	})
}

// apartTarget is target at an address of its own.
func apartTarget() Target {
	t := target
	t.Addr = addrPort("127.3.4.5:40123")
	t.Channels = sft.AllChannels
	return t
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }
