package rdpsign

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"sft"
)

// good is the signed part of a file.
func good() []string {
	lines, _ := Lines("127.3.4.5:40123", func(string) (string, bool) { return "", false })
	return lines
}

// The message in full, as rdpsign.exe would sign it for that scope.
func TestMessage(t *testing.T) {
	got, err := Message(good())
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for i := 0; i < len(got); i += 2 {
		if got[i+1] != 0 {
			t.Fatalf("unit %d is not of UTF-16LE", i/2)
		}
		text.WriteByte(got[i])
	}
	want := "full address:s:127.3.4.5:40123\r\nalternate full address:s:127.3.4.5:40123\r\npcb:s:\r\nuse redirection server name:i:0\r\nserver port:i:40123\r\nnegotiate security layer:i:1\r\n" +
		"enablecredsspsupport:i:0\r\ndisableconnectionsharing:i:1\r\nautoreconnection enabled:i:1\r\ngatewayhostname:s:\r\ngatewayusagemethod:i:0\r\n" +
		"gatewayprofileusagemethod:i:1\r\ngatewaycredentialssource:i:0\r\npromptcredentialonce:i:1\r\nrequire pre-authentication:i:0\r\npre-authentication server address:s:\r\nalternate shell:s:\r\nshell working directory:s:\r\n" +
		"remoteapplicationmode:i:0\r\nprompt for credentials:i:0\r\nauthentication level:i:2\r\naudiomode:i:0\r\nredirectdrives:i:0\r\nredirectprinters:i:0\r\n" +
		"redirectcomports:i:0\r\nredirectsmartcards:i:0\r\nredirectposdevices:i:0\r\nredirectclipboard:i:0\r\ndevicestoredirect:s:\r\ndrivestoredirect:s:\r\n" +
		"loadbalanceinfo:s:\r\nrdgiskdcproxy:i:0\r\nkdcproxyname:s:\r\neventloguploadaddress:s:\r\n" +
		"signscope:s:Full Address,Alternate Full Address,PCB,Use Redirection Server Name,Server Port,Negotiate Security Layer,EnableCredSspSupport,DisableConnectionSharing," +
		"AutoReconnection Enabled,GatewayHostname,GatewayUsageMethod,GatewayProfileUsageMethod,GatewayCredentialsSource,PromptCredentialOnce,Require pre-authentication,Pre-authentication server address,Alternate Shell," +
		"Shell Working Directory,RemoteApplicationMode,Prompt For Credentials,Authentication Level,AudioMode,RedirectDrives,RedirectPrinters,RedirectCOMPorts," +
		"RedirectSmartCards,RedirectPOSDevices,RedirectClipboard,DevicesToRedirect,DrivesToRedirect,LoadBalanceInfo,RDGIsKDCProxy,KDCProxyName,EventLogUploadAddress\r\n\x00"
	if text.String() != want {
		t.Errorf("got\n%q\nwant\n%q", text.String(), want)
	}
}

// set returns the lines with a setting's value changed.
func set(name, value string) func([]string) []string {
	return func(l []string) []string {
		for i, line := range l {
			if n, _, _ := strings.Cut(line, ":"); n == name {
				l[i] = line[:len(n)+3] + value
			}
		}
		return l
	}
}

func both(addr string) func([]string) []string {
	return func(l []string) []string {
		return set("alternate full address", addr)(set("full address", addr)(l))
	}
}

func TestWhatIsNotSigned(t *testing.T) {
	for name, harm := range map[string]func([]string) []string{
		"nothing":                     func([]string) []string { return nil },
		"a line less":                 func(l []string) []string { return l[:len(l)-1] },
		"a line more":                 func(l []string) []string { return append(l, "support url:s:") },
		"a line twice":                func(l []string) []string { l[3] = l[2]; return l },
		"another order":               func(l []string) []string { l[3], l[2] = l[2], l[3]; return l },
		"another type":                func(l []string) []string { l[3] = strings.Replace(l[3], ":i:", ":s:", 1); return l },
		"another case":                func(l []string) []string { l[2] = strings.ToUpper(l[2]); return l },
		"a line within a line":        set("alternate shell", "\r\ngatewayhostname:s:evil.example"),
		"another host":                both("evil.example:3389"),
		"another address":             both("10.1.2.3:3389"),
		"loopback by name":            both("localhost:3389"),
		"loopback of IPv6":            both("[::1]:3389"),
		"loopback of IPv4 in IPv6":    both("[::ffff:127.0.0.1]:3389"),
		"no port":                     both("127.0.0.1"),
		"port 0":                      both("127.0.0.1:0"),
		"an address of two spellings": both("127.0.0.1:03389"),
		"an address with a blank":     both("127.0.0.1:3389 "),
		"two addresses":               set("alternate full address", "10.1.2.3:3389"),
		"another port":                set("server port", "22"),
		"a gateway":                   set("gatewayhostname", "evil.example"),
		"a gateway that is used":      set("gatewayusagemethod", "1"),
		"a program":                   set("alternate shell", "cmd.exe"),
		"an app":                      set("remoteapplicationmode", "1"),
		"drives":                      set("drivestoredirect", "*"),
		"drives by number":            set("redirectdrives", "1"),
		"a KDC":                       set("kdcproxyname", "evil.example"),
		"an unknown level":            set("authentication level", "4"),
		"two digits":                  set("redirectprinters", "01"),
		"no digit":                    set("redirectprinters", ""),
	} {
		if m, err := Message(harm(good())); sft.CodeOf(err) != sft.Invalid || m != nil {
			t.Errorf("%s: %q, %v", name, m, err)
		}
	}
	for name, v := range map[string]string{"redirectprinters": "1", "redirectclipboard": "1", "authentication level": "0", "audiomode": "2", "enablecredsspsupport": "1"} {
		if _, err := Message(set(name, v)(good())); err != nil {
			t.Errorf("%s %s: %v", name, v, err)
		}
	}
}

func TestWrap(t *testing.T) {
	der := []byte("not looked at")
	got := Wrap(der)
	want := "AQABAAEAAAANAAAA" + base64.StdEncoding.EncodeToString(der) // rdpsign.exe's begin so, too
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if back, err := Unwrap(got); err != nil || !bytes.Equal(back, der) {
		t.Errorf("back is %q, %v", back, err)
	}
	for _, bad := range []string{"", "AQAB", got[:len(got)-4], got + "AAAA", "AQABAAIAAAANAAAA" + want[16:], got + "\n", strings.Repeat("A", 20<<10)} {
		if _, err := Unwrap(bad); err == nil {
			t.Errorf("%.40q is taken", bad)
		}
	}
}

// FuzzUnwrap: what is taken is what Wrap makes of it.
func FuzzUnwrap(f *testing.F) {
	f.Add(Wrap([]byte{0x30, 0}))
	f.Add(Wrap(nil))
	f.Add("AQAB")
	f.Fuzz(func(t *testing.T, v string) {
		if der, err := Unwrap(v); err == nil && Wrap(der) != v {
			t.Errorf("%q is read as %x", v, der)
		}
	})
}

// FuzzMessage: whatever is signed leads to loopback, and has a line for each
// setting and no other.
func FuzzMessage(f *testing.F) {
	f.Add(strings.Join(good(), "\n"))
	f.Fuzz(func(t *testing.T, text string) {
		m, err := Message(strings.Split(text, "\n"))
		if err != nil {
			return
		}
		plain := string(slices.DeleteFunc(bytes.Clone(m), func(b byte) bool { return b == 0 }))
		if strings.Count(plain, "\r\n") != len(settings)+1 || !strings.HasPrefix(plain, "full address:s:127.") || !strings.Contains(plain, "\r\ngatewayusagemethod:i:0\r\n") {
			t.Errorf("%q", plain)
		}
	})
}
