package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"sft"
)

// A fakeHost is an rdpHost in memory. A value that is an error cannot be read.
type fakeHost struct {
	values map[string]any // by key and value
	stores map[string][][]byte
	rights map[string][]string
	inf    [][]byte
	used   int
	kind   uint8
	broken error // of everything that is no registry value
}

func lookup[T any](h *fakeHost, key, value string) (v T, ok bool, err error) {
	switch x := h.values[key+`\`+value].(type) {
	case nil:
		return v, false, nil
	case T:
		return x, true, nil
	case error:
		return v, false, x
	}
	return v, false, errValueType
}

func (h *fakeHost) number(key, value string) (uint32, bool, error) {
	n, ok, err := lookup[int](h, key, value)
	return uint32(n), ok, err
}
func (h *fakeHost) text(key, value string) (string, bool, error) {
	return lookup[string](h, key, value)
}
func (h *fakeHost) bytes(key, value string) ([]byte, bool, error) {
	return lookup[[]byte](h, key, value)
}
func (h *fakeHost) certificates(s string) ([][]byte, error) { return h.stores[s], h.broken }
func (h *fakeHost) holders(right string) ([]string, error)  { return h.rights[right], h.broken }
func (h *fakeHost) templates() ([][]byte, error)            { return h.inf, h.broken }
func (h *fakeHost) desktops() (int, error)                  { return h.used, h.broken }
func (h *fakeHost) product() uint8                          { return h.kind }

// server is a new Windows Server with Remote Desktop turned on: the values
// that its set-up writes, and nothing else.
func server(t *testing.T) *fakeHost {
	t.Helper()
	return &fakeHost{kind: 3,
		values: map[string]any{keyTerminal + `\fDenyTSConnections`: 0, keyListener + `\UserAuthentication`: 1},
		stores: map[string][][]byte{storeSelf: {certificate(t, 1)}},
		rights: map[string][]string{rightRemote: {sidAdmins, sidRemoteUsers}, rightNetwork: {sidEveryone, sidAdmins, sidUsers}}}
}

// certificate makes one that is good from the n-th day of 2026.
func certificate(t *testing.T, n int) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(int64(n)), NotBefore: time.Date(2026, 1, n, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func sum256(b []byte) string { h := sha256.Sum256(b); return hex.EncodeToString(h[:]) }
func sum1(b []byte) []byte   { h := sha1.Sum(b); return h[:] }

// fine is what a host has with which nothing is wrong.
func fine() RDPFacts {
	return RDPFacts{Port: 3389, Certificate: strings.Repeat("a", 64), NLA: true, SecurityLayer: 1, Limit: 2,
		AllowedRemote: []string{sidAdmins, sidRemoteUsers}, AllowedNetwork: []string{sidEveryone}}
}

func TestReadRDPFacts(t *testing.T) {
	shortly := errors.New("access is denied")
	values := func(h *fakeHost, more map[string]any) { maps.Copy(h.values, more) }
	tests := []struct {
		name   string
		change func(h *fakeHost)
		want   func(f *RDPFacts)
	}{
		{"a new server", func(h *fakeHost) {}, func(f *RDPFacts) {}},
		{"no value is there: the defaults", func(h *fakeHost) { h.values = nil }, func(f *RDPFacts) { f.Off, f.NLA = true, false }},
		{"everything is set", func(h *fakeHost) {
			values(h, map[string]any{keyListener + `\PortNumber`: 4000, keyListener + `\SecurityLayer`: 2, keyListener + `\fPromptForPassword`: 1,
				keyTerminal + `\fDenyTSConnections`: 1, keyListener + `\UserAuthentication`: 0, keyCluster + `\SessionDirectoryActive`: 1,
				keyNTLM + `\RestrictReceivingNTLMTraffic`: 2, keyUAC + `\ConsentPromptBehaviorAdmin`: 1})
			h.used = 2
			h.rights[rightDenyRemote], h.rights[rightDenyNetwork] = []string{sidLocal}, []string{sidLocalAdmins}
			h.inf = [][]byte{[]byte("[Group Membership]\r\n*S-1-5-32-555__Members = *S-1-5-21-1-2-3-512\r\n")}
		}, func(f *RDPFacts) {
			f.Port, f.SecurityLayer, f.Prompts, f.Off, f.NLA, f.Farm, f.IncomingNTLM, f.AdminsPrompted = 4000, 2, true, true, false, true, 2, true
			f.Sessions, f.Restricted, f.DeniedRemote, f.DeniedNetwork = 2, true, []string{sidLocal}, []string{sidLocalAdmins}
		}},
		{"policies say otherwise", func(h *fakeHost) {
			values(h, map[string]any{keyPolicy + `\fDenyTSConnections`: 1, keyPolicy + `\fPromptForPassword`: 1, keyPolicy + `\UserAuthentication`: 0,
				keyPolicy + `\SecurityLayer`: 0, keyPolicy + `\SessionDirectoryActive`: 1})
		}, func(f *RDPFacts) {
			f.Off, f.OffByPolicy, f.Prompts, f.PromptsByPolicy, f.NLA, f.SecurityLayer, f.Farm = true, true, true, true, false, 0, true
		}},
		{"a policy lets in what a setting keeps out", func(h *fakeHost) {
			values(h, map[string]any{keyPolicy + `\fDenyTSConnections`: 0, keyTerminal + `\fDenyTSConnections`: 1, keyPolicy + `\fPromptForPassword`: 0, keyListener + `\fPromptForPassword`: 1})
		}, func(f *RDPFacts) {}},
		{"UAC asks on the person's own desktop", func(h *fakeHost) { values(h, map[string]any{keyUAC + `\ConsentPromptBehaviorAdmin`: 3}) }, func(f *RDPFacts) { f.AdminsPrompted = true }},
		{"UAC asks for consent", func(h *fakeHost) { values(h, map[string]any{keyUAC + `\ConsentPromptBehaviorAdmin`: 2}) }, func(f *RDPFacts) {}},
		{"UAC is off", func(h *fakeHost) {
			values(h, map[string]any{keyUAC + `\ConsentPromptBehaviorAdmin`: 1, keyUAC + `\EnableLUA`: 0})
		}, func(f *RDPFacts) {}},
		{"a session host", func(h *fakeHost) { values(h, map[string]any{keyTerminal + `\TSAppCompat`: 1}) }, func(f *RDPFacts) { f.Limit = 0 }},
		{"a workstation", func(h *fakeHost) { h.kind = 1 }, func(f *RDPFacts) { f.Limit = 1 }},
		{"a domain controller", func(h *fakeHost) { h.kind = 2 }, func(f *RDPFacts) { f.DomainController = true }},
		{"a port that is none", func(h *fakeHost) { values(h, map[string]any{keyListener + `\PortNumber`: 70000}) }, func(f *RDPFacts) {
			f.Unread = []string{`the RDP service's port: PortNumber in HKLM\SYSTEM\CurrentControlSet\Control\Terminal Server\WinStations\RDP-Tcp is 70000`}
		}},
		{"a value that cannot be read is as if it were not there, and told of", func(h *fakeHost) {
			values(h, map[string]any{keyUAC + `\EnableLUA`: shortly, keyPolicy + `\fDenyTSConnections`: "1"})
		}, func(f *RDPFacts) {
			f.Unread = []string{`HKLM\SOFTWARE\Policies\Microsoft\Windows NT\Terminal Services, value fDenyTSConnections: the value has another type`,
				`HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System, value EnableLUA: access is denied`}
		}},
		{"nothing but the registry can be read", func(h *fakeHost) { h.broken = shortly }, func(f *RDPFacts) {
			f.Certificate, f.CertificateProblem = "", `open the machine's certificate store "Remote Desktop": access is denied`
			f.AllowedNetwork = []string{sidEveryone}
			for _, what := range []string{"who has the right SeDenyRemoteInteractiveLogonRight", "who has the right SeDenyNetworkLogonRight", "who has the right SeRemoteInteractiveLogonRight",
				"who has the right SeNetworkLogonRight", "the security templates of policies", "the sessions in use"} {
				f.Unread = append(f.Unread, what+": access is denied")
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := server(t)
			tt.change(h)
			want := fine()
			want.Certificate, want.AllowedNetwork = sum256(h.stores[storeSelf][0]), h.rights[rightNetwork]
			tt.want(&want)
			if d := cmp.Diff(want, readRDPFacts(h)); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
}

func TestStoredCertificate(t *testing.T) {
	one, two := certificate(t, 1), certificate(t, 2)
	hash, template := keyListener+`\SSLCertificateSHA1Hash`, keyPolicy+`\CertTemplateName`
	tests := []struct {
		name      string
		values    map[string]any
		own, self [][]byte
		want, err string
	}{
		{"the one that is named", map[string]any{hash: sum1(one)}, [][]byte{two, one}, [][]byte{two}, sum256(one), ""},
		{"none is named: the service's own", nil, [][]byte{one}, [][]byte{two}, sum256(two), ""},
		{"an empty name is none", map[string]any{hash: []byte{}}, [][]byte{one}, [][]byte{two}, sum256(two), ""},
		{"the newest of its own", nil, nil, [][]byte{one, two, one}, sum256(two), ""},
		{"what is none is passed over", nil, nil, [][]byte{one, []byte("rubbish")}, sum256(one), ""},
		{"the named one is gone, and no other is taken", map[string]any{hash: sum1(one)}, [][]byte{two}, [][]byte{two}, "",
			`the certificate "` + hex.EncodeToString(sum1(one)) + `" that the RDP service is configured with is not in the machine's store "My"`},
		{"the service has never run", nil, nil, nil, "", `the RDP service has no certificate yet: the machine's store "Remote Desktop" is empty`},
		{"a policy names a template, and nothing is guessed", map[string]any{template: "RDP"}, [][]byte{one}, [][]byte{two}, "", `a policy has the RDP service's certificate made by the template "RDP"`},
		{"named by hand in spite of the template", map[string]any{template: "RDP", hash: sum1(one)}, [][]byte{one}, nil, sum256(one), ""},
		{"an empty template is none", map[string]any{template: ""}, nil, [][]byte{two}, sum256(two), ""},
		{"the name has another type", map[string]any{hash: "00"}, [][]byte{one}, [][]byte{one}, "", "read which certificate the RDP service has: the value has another type"},
		{"the template cannot be read", map[string]any{template: errors.New("access is denied")}, nil, [][]byte{one}, "", "read which certificate the RDP service has: access is denied"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := storedCertificate(&fakeHost{values: tt.values, stores: map[string][][]byte{storeOwn: tt.own, storeSelf: tt.self}})
			text := ""
			if err != nil {
				text = err.Error()
			}
			if got != tt.want || text != tt.err {
				t.Errorf("got %q, %q\nwant %q, %q", got, text, tt.want, tt.err)
			}
		})
	}
}

// TestJudge reads as the manual: what is wrong, how it is called, what a person
// is told, and how it is put right.
func TestJudge(t *testing.T) {
	const rdpHostPolicy = "Computer Configuration > Administrative Templates > Windows Components > Remote Desktop Services > Remote Desktop Session Host > "
	const local = "Computer Configuration > Windows Settings > Security Settings > Local Policies > "
	const rights = local + "User Rights Assignment > "
	const refresh = `, then run "gpupdate /force"`
	tests := []struct {
		name string
		bad  func(f *RDPFacts)
		want []finding
	}{
		{"nothing is wrong", func(f *RDPFacts) {}, nil},
		{"a domain controller", func(f *RDPFacts) { f.DomainController = true }, []finding{{sft.RDPDomainController,
			"the host is a domain controller, which has no local accounts", "go to a member server, and uninstall sftd here"}}},
		{"a farm", func(f *RDPFacts) { f.Farm = true }, []finding{{sft.RDSFarm,
			"the host belongs to a farm: an RD Connection Broker may send people to another host, and sftd leads to this one alone",
			"remove the host from its session collection (Remove-RDSessionHost), or set the policy " + rdpHostPolicy + "RD Connection Broker > Join RD Connection Broker to Disabled" + refresh}}},
		{"turned off", func(f *RDPFacts) { f.Off = true }, []finding{{sft.RDPDisabled, "Remote Desktop is turned off on the host",
			`in PowerShell, run: Set-ItemProperty 'HKLM:\SYSTEM\CurrentControlSet\Control\Terminal Server' fDenyTSConnections 0`}}},
		{"turned off by policy", func(f *RDPFacts) { f.Off, f.OffByPolicy = true, true }, []finding{{sft.RDPDisabled, "a policy does not let anybody connect to the host by Remote Desktop",
			"set the policy " + rdpHostPolicy + "Connections > Allow users to connect remotely by using Remote Desktop Services to Enabled" + refresh}}},
		{"asks for a password", func(f *RDPFacts) { f.Prompts = true }, []finding{{sft.RDPPrompts, "the host asks for a password at each sign-in, and nobody knows it",
			`in PowerShell, run: Set-ItemProperty 'HKLM:\SYSTEM\CurrentControlSet\Control\Terminal Server\WinStations\RDP-Tcp' fPromptForPassword 0`}}},
		{"asks for a password by policy", func(f *RDPFacts) { f.Prompts, f.PromptsByPolicy = true, true }, []finding{{sft.RDPPrompts, "a policy has the host ask for a password at each sign-in, and nobody knows it",
			"set the policy " + rdpHostPolicy + "Security > Always prompt for password upon connection to Disabled" + refresh}}},
		{"local accounts are denied RDP, as Microsoft's baseline has it", func(f *RDPFacts) { f.DeniedRemote = []string{"S-1-5-32-546", sidLocal} }, []finding{{sft.RDPLogonRight,
			"the host does not let local accounts sign in by Remote Desktop: the right is denied to Local account (S-1-5-113)",
			"take Local account (S-1-5-113) out of the policy " + rights + "Deny log on through Remote Desktop Services" + refresh}}},
		{"local accounts are denied the network", func(f *RDPFacts) { f.DeniedNetwork = []string{sidLocal} }, []finding{{sft.RDPLogonRight,
			"the host does not let local accounts sign in over the network, which NLA needs: the right is denied to Local account (S-1-5-113)",
			"take Local account (S-1-5-113) out of the policy " + rights + "Deny access to this computer from the network" + refresh}}},
		{"our group is denied the network", func(f *RDPFacts) { f.DeniedNetwork = []string{sidRemoteUsers} }, []finding{{sft.RDPLogonRight,
			"the host does not let local accounts sign in over the network, which NLA needs: the right is denied to Remote Desktop Users (S-1-5-32-555)",
			"take Remote Desktop Users (S-1-5-32-555) out of the policy " + rights + "Deny access to this computer from the network" + refresh}}},
		{"guests are denied: no matter", func(f *RDPFacts) {
			f.DeniedNetwork, f.DeniedRemote = []string{"S-1-5-32-546"}, []string{"S-1-5-32-546"}
		}, nil},
		{"local administrators alone are denied the network", func(f *RDPFacts) { f.DeniedNetwork = []string{sidLocalAdmins} }, []finding{{"",
			"people with admin rights here cannot sign in over the network, which NLA needs: the right is denied to Local account and member of Administrators group (S-1-5-114)",
			"take Local account and member of Administrators group (S-1-5-114) out of the policy " + rights + "Deny access to this computer from the network" + refresh}}},
		{"Remote Desktop Users lack the right", func(f *RDPFacts) { f.AllowedRemote = []string{sidAdmins} }, []finding{{sft.RDPLogonRight,
			"the host lets no member of Remote Desktop Users sign in by Remote Desktop",
			"add Remote Desktop Users (S-1-5-32-555) to the policy " + rights + "Allow log on through Remote Desktop Services" + refresh}}},
		{"nobody of ours has the right of the network", func(f *RDPFacts) { f.AllowedNetwork = []string{sidAdmins} }, []finding{{sft.RDPLogonRight,
			"the host lets no member of Remote Desktop Users sign in over the network, which NLA needs",
			"add Remote Desktop Users (S-1-5-32-555) to the policy " + rights + "Access this computer from the network" + refresh}}},
		{"authenticated users have the right of the network: enough", func(f *RDPFacts) { f.AllowedNetwork = []string{sidAuthenticate} }, nil},
		{"no NTLM", func(f *RDPFacts) { f.IncomingNTLM = 2 }, []finding{{sft.RDPNTLM, "the host takes no NTLM, which is the only way for a local account to sign in with NLA",
			"set the policy " + local + `Security Options > Network security: Restrict NTLM: Incoming NTLM traffic to "Deny all domain accounts" or "Allow all"` + refresh}}},
		{"no NTLM for domain accounts: no matter", func(f *RDPFacts) { f.IncomingNTLM = 1 }, nil},
		{"RDP's own encryption", func(f *RDPFacts) { f.SecurityLayer, f.NLA = 0, false }, []finding{{sft.RDPUnavailable,
			"the RDP service of the host is set to its old encryption, and sftd signs in through TLS only",
			`in PowerShell, run: Set-ItemProperty 'HKLM:\SYSTEM\CurrentControlSet\Control\Terminal Server\WinStations\RDP-Tcp' SecurityLayer 2; the policy "Require use of specific security layer for remote (RDP) connections", if set, wins over it`},
			{"", "NLA is off: whoever reaches the RDP port sees a sign-in screen", `in PowerShell, run: Set-ItemProperty 'HKLM:\SYSTEM\CurrentControlSet\Control\Terminal Server\WinStations\RDP-Tcp' UserAuthentication 1`}}},
		{"RDP's own encryption, but NLA, which is TLS: no matter", func(f *RDPFacts) { f.SecurityLayer = 0 }, nil},
		{"no certificate", func(f *RDPFacts) { f.CertificateProblem = "there is none" }, []finding{{sft.RDPUnavailable, "the RDP service of the host cannot be used: there is none",
			"restart the RDP service (Restart-Service TermService -Force), or export its certificate as PEM and name the file in sftd.yaml, as RDPCertificateFile"}}},
		{"one session is in use", func(f *RDPFacts) { f.Sessions = 1 }, nil},
		{"both sessions are in use", func(f *RDPFacts) { f.Sessions = 2 }, []finding{{"",
			"both sessions that Windows takes without the role Remote Desktop Session Host are in use: whoever comes next has to wait, or to end one",
			`sign people out ("quser", then "logoff ID"), or install the role and its licences`}}},
		{"many sessions on a session host", func(f *RDPFacts) { f.Sessions, f.Limit = 40, 0 }, nil},
		{"a workstation is in use", func(f *RDPFacts) { f.Sessions, f.Limit = 1, 1 }, []finding{{"",
			"the one session that this edition of Windows takes is in use: whoever comes next ends it", `sign that person out first ("quser", then "logoff ID")`}}},
		{"Restricted Groups", func(f *RDPFacts) { f.Restricted = true }, []finding{{"",
			"a policy (Restricted Groups) sets who is in Remote Desktop Users, and takes out the accounts that sftd puts in: it puts them back at each sign-in, and a sign-in while the policy is being refreshed fails",
			`in that policy, list Remote Desktop Users under "This group is a member of" of another group, and not with "Members of this group"`}}},
		{"UAC asks for a password", func(f *RDPFacts) { f.AdminsPrompted = true }, []finding{{"",
			"UAC asks an administrator for a password, which nobody knows: people with admin rights cannot use them",
			`in PowerShell, run: Set-ItemProperty 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System' ConsentPromptBehaviorAdmin 2; the policy "User Account Control: Behavior of the elevation prompt for administrators in Admin Approval Mode", if set, wins over it`}}},
		{"something cannot be read", func(f *RDPFacts) { f.Unread = []string{"the sessions in use: access is denied"} }, []finding{{"",
			"the RDP service's settings cannot be read: the sessions in use: access is denied", "see that the service scaleft-server-tools runs as LocalSystem, and restart it"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := fine()
			tt.bad(&f)
			got := judge(f)
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
			for _, l := range rdpLines(got) {
				if len(l) > maxProblem {
					t.Errorf("this has %d bytes, and status shows %d: %s", len(l), maxProblem, l)
				}
			}
			err := firstRefusal(got)
			if len(tt.want) > 0 && tt.want[0].Code != "" {
				wantCode(t, "the refusal", err, tt.want[0].Code)
			} else if err != nil {
				t.Errorf("a warning refuses: %v", err)
			}
		})
	}
}

// TestJudgeOrder: with everything wrong, what cannot be put right comes first,
// and no warning before a refusal.
func TestJudgeOrder(t *testing.T) {
	f := RDPFacts{DomainController: true, Farm: true, Off: true, DeniedRemote: []string{sidLocalAdmins}, DeniedNetwork: []string{sidEveryone}, AllowedRemote: []string{sidRemoteUsers}, AllowedNetwork: []string{sidUsers},
		IncomingNTLM: 2, Prompts: true, CertificateProblem: "none", Sessions: 3, Limit: 2, Restricted: true, AdminsPrompted: true}
	var got []sft.Code
	for _, l := range judge(f) {
		got = append(got, l.Code)
	}
	want := []sft.Code{sft.RDPDomainController, sft.RDSFarm, sft.RDPDisabled, sft.RDPLogonRight, sft.RDPNTLM, sft.RDPPrompts, sft.RDPUnavailable, sft.RDPUnavailable, "", "", "", "", ""}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRDPLines(t *testing.T) {
	got := rdpLines([]finding{{sft.RDPDisabled, "it is off", "turn it on"}, {"", "it is full", "wait"}})
	want := []string{"rdp: it is off; turn it on", "rdp, a warning: it is full; wait"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestReached(t *testing.T) {
	for _, tt := range []struct {
		at, listens string
		want        bool
	}{
		{"127.0.0.1:3389", "127.0.0.1:3389", true},
		{"127.0.0.1:3389", "127.0.0.1:3390", false},
		{"127.0.0.1:3389", "127.0.0.2:3389", false},
		{"127.0.0.1:3389", "192.0.2.1:3389", false},
		{"127.0.0.1:3389", "0.0.0.0:3389", true},
		{"127.0.0.1:3389", "[::]:3389", true},
		{"127.0.0.1:3389", "[::1]:3389", false},
		{"127.0.0.1:3389", "[::ffff:127.0.0.1]:3389", true},
		{"127.0.0.1:3389", "[::ffff:0.0.0.0]:3389", true},
		{"[::1]:3389", "[::1]:3389", true},
		{"[::1]:3389", "[::]:3389", true},
		{"[::1]:3389", "[::]:3390", false},
		{"[::1]:3389", "0.0.0.0:3389", false},
		{"[::1]:3389", "127.0.0.1:3389", false},
	} {
		list := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.9:9"), netip.MustParseAddrPort(tt.listens)}
		if got := reached(netip.MustParseAddrPort(tt.at), list); got != tt.want {
			t.Errorf("%s, with a service on %s: %t, want %t", tt.at, tt.listens, got, tt.want)
		}
	}
	if reached(netip.MustParseAddrPort("127.0.0.1:3389"), nil) {
		t.Error("reached where nothing listens")
	}
}

func TestRDPListens(t *testing.T) {
	const address = "127.0.0.1:3389"
	answer := func(err error, list ...netip.AddrPort) func() ([]netip.AddrPort, error) {
		return func() ([]netip.AddrPort, error) { return list, err }
	}
	if got := rdpListens(address, answer(nil, netip.MustParseAddrPort(address))); got != nil {
		t.Errorf("a service that runs: %q", got)
	}
	want := []string{"rdp: the RDP service of the host cannot be used: nothing listens on " + address + "; " + rdpStart}
	if got := rdpListens(address, answer(nil)); !slices.Equal(got, want) {
		t.Errorf("a service that does not: %q, want %q", got, want)
	}
	if got := rdpListens(address, answer(errors.New("no table"))); len(got) != 1 || !strings.HasPrefix(got[0], "rdp, a warning: it cannot be seen whether the RDP service runs: no table; ") {
		t.Errorf("no table: %q", got)
	}
}

// What GetExtendedTcpTable fills is longer than what it tells of.
func TestTableListeners(t *testing.T) {
	words := func(n ...uint32) (b []byte) {
		for _, w := range n {
			b = binary.BigEndian.AppendUint32(b, w)
		}
		return b
	}
	v4 := slices.Concat([]byte{2, 0, 0, 0}, words(0, 0x7f000001, 0x0d3d_0000, 0, 0, 4), words(0, 0, 0x0016_0000, 0, 0, 4), words(0, 0x7f000001, 0x0d3e_0000, 0, 0, 4))
	if got := fmt.Sprint(tableListeners(v4, false)); got != "[127.0.0.1:3389 0.0.0.0:22]" {
		t.Errorf("IPv4: %s", got)
	}
	v6 := slices.Concat([]byte{1, 0, 0, 0}, words(0, 0, 0, 1, 0, 0x0d3d_0000, 0, 0, 0, 0, 0, 0, 0, 4), make([]byte, 56))
	if got := fmt.Sprint(tableListeners(v6, true)); got != "[[::1]:3389]" {
		t.Errorf("IPv6: %s", got)
	}
	for n := range len(v4) { // one that is cut
		tableListeners(v4[:n], false)
		tableListeners(v6[:n], true)
	}
}

func TestRDPSeen(t *testing.T) {
	now := time.Unix(1000, 0)
	n := 0
	read := func() []string { n++; return []string{strings.Repeat("x", n)} }
	var s rdpSeen
	for _, tt := range []struct {
		name string
		now  time.Time
		want string
	}{{"the first time", now, "x"}, {"at once again", now, "x"}, {"shortly after", now.Add(rdpSeenFor - 1), "x"}, {"later", now.Add(rdpSeenFor), "xx"}, {"the clock was put back", now, "xxx"}} {
		if got := s.get(tt.now, read); !slices.Equal(got, []string{tt.want}) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestPeople(t *testing.T) {
	// Services, the console with nobody, a client, one who left, a listener.
	if got := people(map[uint32]uint32{0: 4, 1: 1, 2: 0, 3: 4, 65536: 6}); got != 2 {
		t.Errorf("got %d, want 2", got)
	}
}

// utf16INF is s as Windows writes it.
func utf16INF(s string) []byte {
	b := []byte{0xff, 0xfe}
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

func TestRestrictsRemoteUsers(t *testing.T) {
	const members = "[Unicode]\r\nUnicode=yes\r\n[Group Membership]\r\n*S-1-5-32-555__Memberof =\r\n*S-1-5-32-555__Members = *S-1-5-21-1-2-3-512\r\n"
	tests := []struct {
		name string
		inf  []byte
		want bool
	}{
		{"sets the members", []byte(members), true},
		{"in UTF-16", utf16INF(members), true},
		{"sets that there are none", []byte("[Group Membership]\n*S-1-5-32-555__Members =\n"), true},
		{"in capitals", []byte("[GROUP MEMBERSHIP]\n*s-1-5-32-555__MEMBERS=x"), true},
		{"makes it a member of another group", []byte("[Group Membership]\n*S-1-5-32-555__Memberof = *S-1-5-32-545\n"), false},
		{"of another group", []byte("[Group Membership]\n*S-1-5-32-544__Members = *S-1-5-32-555\n"), false},
		{"in another section", []byte("[Registry Values]\n*S-1-5-32-555__Members = x\n"), false},
		{"nothing", nil, false},
		{"half a character", []byte{0xff, 0xfe, '['}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := restrictsRemoteUsers(tt.inf); got != tt.want {
				t.Errorf("got %t, want %t", got, tt.want)
			}
		})
	}
}

// FuzzRestrictsRemoteUsers checks that a template which does not name the
// group is never taken for one that does, and that the answer does not depend
// on the encoding.
func FuzzRestrictsRemoteUsers(f *testing.F) {
	f.Add("[Group Membership]\r\n*S-1-5-32-555__Members = *S-1-5-21-1-2-3-512\r\n")
	f.Add("[Registry Values]\n*S-1-5-32-555__Members=\n")
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ToValidUTF8(s, "?")
		if strings.HasPrefix(s, "\ufeff") || len(s) > 1000 {
			return
		}
		got := restrictsRemoteUsers([]byte(s))
		if got && !strings.Contains(strings.ToUpper(s), "S-1-5-32-555__MEMBERS") {
			t.Errorf("%q sets the members", s)
		}
		if wide := restrictsRemoteUsers(utf16INF(s)); wide != got {
			t.Errorf("%q: got %t in UTF-16 and %t in UTF-8", s, wide, got)
		}
	})
}

func TestRDPPort(t *testing.T) {
	for _, tt := range []struct {
		name  string
		value any
		want  uint16
		bad   bool
	}{{"not set", nil, 3389, false}, {"set", 4000, 4000, false}, {"none", 0, 3389, true}, {"too high", 65536, 3389, true}, {"unreadable", errors.New("no"), 3389, true}} {
		got, err := rdpPort(&fakeHost{values: map[string]any{keyListener + `\PortNumber`: tt.value}})
		if got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%s: got %d, %v", tt.name, got, err)
		}
	}
}

// What a person is told who signs in, and may not mend the host.
func TestSignInWarnings(t *testing.T) {
	all := fine()
	all.Sessions, all.NLA, all.Restricted, all.AdminsPrompted, all.Unread = 2, false, true, true, []string{"x"}
	all.DeniedNetwork, all.DeniedRemote, all.Off = []string{sidLocalAdmins}, []string{sidLocalAdmins}, true
	const full = "both sessions that Windows takes without the role Remote Desktop Session Host are in use: whoever comes next has to wait, or to end one"
	rights := []string{
		"people with admin rights here cannot sign in by Remote Desktop: the right is denied to Local account and member of Administrators group (S-1-5-114)",
		"people with admin rights here cannot sign in over the network, which NLA needs: the right is denied to Local account and member of Administrators group (S-1-5-114)"}
	const uac = "UAC asks an administrator for a password, which nobody knows: people with admin rights cannot use them"
	tests := []struct {
		admin, back bool
		want        []string
	}{
		{false, false, []string{full}},
		{false, true, nil},
		{true, false, append(slices.Clone(rights), full, uac)},
		{true, true, append(slices.Clone(rights), uac)},
	}
	for _, tt := range tests {
		if d := cmp.Diff(tt.want, signInWarnings(all, tt.admin, tt.back)); d != "" {
			t.Errorf("admin %v, back %v: -want +got\n%s", tt.admin, tt.back, d)
		}
	}
	if got := signInWarnings(fine(), true, false); got != nil {
		t.Errorf("with nothing wrong: %q", got)
	}
}
