package agent

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"sft"
)

func readConfig(t testing.TB, content string) (Config, string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "sftd.yaml")
	write(t, file, []byte(content))
	c, err := ReadConfig(file, true)
	return c, file, err
}

func TestConfigOfNoFile(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "sftd.yaml")
	c, err := ReadConfig(missing, false)
	if err != nil {
		t.Fatal(err)
	}
	want := Defaults()
	want.BrokerAccessPort = sft.BrokerPort
	if !reflect.DeepEqual(c, want) || len(c.Useless()) != 0 {
		t.Errorf("got %+v, want %+v", c, want)
	}
	_, err = ReadConfig(missing, true)
	wantCode(t, "a file that was named", err, sft.Invalid)
	for _, empty := range []string{"", "# nothing\n", "---\n"} {
		if c, _, err := readConfig(t, empty); err != nil || !reflect.DeepEqual(c, want) {
			t.Errorf("%q: %v", empty, err)
		}
	}
}

// Each key is known, and of its type.
func TestConfigKeys(t *testing.T) {
	type values struct{ good, bad string }
	tests := map[string]values{
		"AccessAddress":                     {"192.0.2.1", "web01"},
		"AccessInterface":                   {"eth0", "[1]"},
		"AltNames":                          {"[web, www.example.com]", "[-web]"},
		"CanonicalName":                     {"web01", "a b"},
		"Bastion":                           {"gate", "gate/x"},
		"AutoEnroll":                        {"false", "perhaps"},
		"EnrollmentTokenFile":               {"/etc/token", "token"},
		"InitialURL":                        {"https://platform", "[1]"},
		"ServerFile":                        {"/tmp/x/server", "server"},
		"TokenFile":                         {"/tmp/x/token", "token"},
		"BufferFile":                        {"/tmp/x/buffer", "buffer"},
		"ForwardProxy":                      {"http://proxy:3128", "proxy:3128"},
		"InitialCAFingerprint":              {"sha256:abababababababababababababababababababababababababababababababab", "abc"},
		"BrokerAccessPort":                  {"443", "65536"},
		"BrokerListenHost":                  {"192.0.2.1", "localhost"},
		"BrokerListenPort":                  {"4422", "-1"},
		"BrokeredLoginGracePeriodInSeconds": {"0", "3601"},
		"BrokerUser":                        {"broker", "[1]"},
		"DisableBroker":                     {"true", "1"},
		"RDPAddress":                        {"'[::1]:3390'", "192.0.2.1:3389"},
		"RDPCertificateFile":                {"/etc/xrdp/cert.pem", "cert.pem"},
		"RDPSignIn":                         {"deliver", "fetch"},
		"OfflineGrace":                      {"24h", "tomorrow"},
		"AllowAdmin":                        {"false", "2"},
		"AllowedLogins":                     {"['dev-*', ann]", "['[']"},
		"MaxUsers":                          {"3", "-1"},
		"Labels":                            {"{env: prod, sftd.role: web}", "{api.env: prod}"},
		"AuthorizedPrincipalsFile":          {"/x/%u", "'%h/.principals'"},
		"SSHDConfigFile":                    {"/etc/sshd", "sshd_config"},
		"SSHAccess":                         {"broker", "closed"},
		"SSHDPort":                          {"22", "65536"},
		"TrustedUserCAKeysFile":             {"/x", "ca.pub"},
		"LogLevel":                          {"debug", "loud"},
	}
	c := reflect.TypeFor[Config]()
	for f := range c.Fields() {
		key := f.Tag.Get("yaml")
		v, ok := tests[key]
		if key == "" {
			continue
		}
		if !ok {
			t.Errorf("key %s is not tested", key)
			continue
		}
		c, _, err := readConfig(t, key+": "+v.good+"\n")
		if err != nil {
			t.Errorf("%s: %s is refused: %v", key, v.good, err)
		}
		if got := c.Useless(); slices.Contains(uselessOnHost, key) != slices.Equal(got, []string{key}) {
			t.Errorf("%s: Useless = %q", key, got)
		}
		_, file, err := readConfig(t, "# a comment\n\n"+key+": "+v.bad+"\n")
		wantCode(t, key+" "+v.bad, err, sft.Invalid)
		if err != nil && (!strings.HasPrefix(err.Error(), file+" line 3: ") || !strings.Contains(err.Error(), key)) {
			t.Errorf("%s: %q does not name file, line and key", key, err)
		}
	}
}

func manyLabels(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "l%d: x, ", i)
	}
	return b.String()
}

func TestConfigRefusals(t *testing.T) {
	tests := []struct{ name, content, msg, hint string }{
		{"an unknown key", "LogLevel: debug\nNoSuchKey: 1\n", ` line 2: unknown key "NoSuchKey"`, "remove it"},
		{"a key in other letters", "BrokerListenport: 1\n", ` line 1: unknown key "BrokerListenport"`, `use "BrokerListenPort"`},
		{"a key twice", "MaxUsers: 1\nMaxUsers: 2\n", ` line 2: `, ""},
		{"half a number", "MaxUsers: 1.5\n", ` line 1: key "MaxUsers" must be a whole number`, ""},
		{"text for a number", "MaxUsers: many\n", ` line 1: key "MaxUsers" must be a whole number`, ""},
		{"a list for text", "Bastion: [a, b]\n", ` line 1: key "Bastion" must be text`, ""},
		{"a name for the RDP address", "RDPAddress: localhost:3389\n", ` line 1: RDPAddress is "localhost:3389"`, "127.0.0.1:3389"},
		{"every address", "RDPAddress: 0.0.0.0:3389\n", ` line 1: RDPAddress is "0.0.0.0:3389"`, "127.0.0.1:3389"},
		{"no port", "RDPAddress: 127.0.0.1\n", ` line 1: RDPAddress is "127.0.0.1"`, "127.0.0.1:3389"},
		{"port 0", "RDPAddress: 127.0.0.1:0\n", ` line 1: RDPAddress is "127.0.0.1:0"`, "127.0.0.1:3389"},
		{"another sign-in", "RDPSignIn: Inject\n", ` line 1: RDPSignIn is "Inject"`, "use inject, or deliver "},
		{"no broker port", "BrokerListenPort: 0\n", ` line 1: BrokerListenPort is "0"`, "1 to 65535"},
		{"too many names", "AltNames: [" + strings.Repeat("a, ", 32) + "a]\n", ` line 1: AltNames is "33 names"`, "keep 32"},
		{"a label that cannot be one", "Labels:\n  env: a b\n", ` line 1: Labels cannot be used: label "env" cannot have the value "a b"`, "up to 63 letters"},
		{"too many labels", "Labels: {" + manyLabels(51) + "}\n", ` line 1: Labels cannot be used: there are 51 labels`, "keep 50"},
		{"a list of labels", "Labels: [a]\n", ` line 1: key "Labels" must be `, ""},
		{"a proxy's password", "ForwardProxy: socks5://u:hunter2@proxy\n", ` line 1: ForwardProxy is "socks5://u:xxxxx@proxy"`, "http://HOST:PORT"},
		{"no path", "TokenFile: ''\n", ` line 1: TokenFile is ""`, "full path"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, file, err := readConfig(t, tt.content)
			e, ok := err.(*sft.Error)
			if !ok || e.Code != sft.Invalid || !strings.HasPrefix(e.Msg, file+tt.msg) || !strings.Contains(e.Hint, tt.hint) || e.Hint == "" {
				t.Errorf("got %v, hint %q", err, e)
			}
			if strings.Contains(fmt.Sprint(err), "hunter2") {
				t.Error("a password is shown")
			}
		})
	}
}

func TestOfflineGraceForms(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"24h": 24 * time.Hour, "90m": 90 * time.Minute, "1h30m": 90 * time.Minute, "0": 0, "0s": 0, "-1": -1, "90": 90 * time.Second,
		`"24h"`: 24 * time.Hour, `'-1'`: -1, "1h # a comment": time.Hour, "": 24 * time.Hour, "~": 24 * time.Hour,
	} {
		c, _, err := readConfig(t, "OfflineGrace: "+text+"\n")
		if err != nil || c.OfflineGrace != (Duration{d: want}) {
			t.Errorf("%q is %v, %v; want %v", text, c.OfflineGrace.d, err, want)
		}
	}
	for _, text := range []string{"-2", "-1h", "soon", "1 h", "[1]", "24hours", "99999999999999999999", "1e99h", "true"} {
		if c, _, err := readConfig(t, "OfflineGrace: "+text+"\n"); err == nil {
			t.Errorf("%q is taken for %v", text, c.OfflineGrace.d)
		}
	}
}

func TestConfigFollowsItsFiles(t *testing.T) {
	c, _, err := readConfig(t, "TokenFile: /srv/sftd/device.token\nBrokerListenPort: 5000\nLogLevel: warn\n")
	if err != nil {
		t.Fatal(err)
	}
	if c.file("x") != "/srv/sftd/x" || c.BrokerAccessPort != 5000 {
		t.Errorf("state in %s, port %d", c.file("x"), c.BrokerAccessPort)
	}
	if l, err := c.Level(); err != nil || l != slog.LevelWarn {
		t.Errorf("level %v, %v", l, err)
	}
	if _, err := os.Stat("/srv/sftd"); err == nil {
		t.Error("reading the configuration made a folder")
	}
}
