package agent

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf16"

	"sft"
	"sft/internal/frame"
)

// RDPFacts is what Windows is set to do when somebody signs in by RDP. It is
// read from the registry, policies, certificate stores and rights of the host
// each time; a value that is not there has the default that Microsoft
// documents for it.
type RDPFacts struct {
	Port               uint16 // the service listens on; 3389
	Certificate        string // SHA-256, hex, of the one it is configured with
	CertificateProblem string // why there is no Certificate

	Off           bool   // nobody may sign in by RDP: fDenyTSConnections
	OffByPolicy   bool   // and a policy says so
	NLA           bool   // UserAuthentication
	SecurityLayer uint32 // 0: RDP's own, 1: negotiated, 2: TLS

	Prompts         bool // a password that was sent is asked for again: fPromptForPassword
	PromptsByPolicy bool

	DeniedRemote   []string // SIDs with SeDenyRemoteInteractiveLogonRight
	DeniedNetwork  []string // SIDs with SeDenyNetworkLogonRight
	AllowedRemote  []string // SIDs with SeRemoteInteractiveLogonRight
	AllowedNetwork []string // SIDs with SeNetworkLogonRight

	IncomingNTLM uint32 // RestrictReceivingNTLMTraffic. 0: taken, 1: not for domain accounts, 2: for nobody
	Restricted   bool   // a policy, Restricted Groups, sets who is in Remote Desktop Users

	Sessions         int  // in use, at the console too
	Limit            int  // that Windows takes at once; 0: none, for it has the role Remote Desktop Session Host
	DomainController bool // it has no local accounts
	Farm             bool // people are sent to other hosts by an RD Connection Broker
	AdminsPrompted   bool // UAC asks an administrator for a password

	Unread []string // what could not be read, and why: judged as its default
}

// An rdpHost is where RDPFacts are read from. Keys are below
// HKEY_LOCAL_MACHINE. There is one for Windows, and one for tests.
type rdpHost interface {
	// number is a value of type REG_DWORD; ok is false if there is none.
	number(key, value string) (n uint32, ok bool, err error)
	// text is a value of type REG_SZ.
	text(key, value string) (s string, ok bool, err error)
	// bytes is a value of type REG_BINARY.
	bytes(key, value string) (b []byte, ok bool, err error)
	// certificates are those of a store of the machine, in DER.
	certificates(store string) ([][]byte, error)
	// holders are the SIDs that a right of the local security policy was
	// given to.
	holders(right string) ([]string, error)
	// templates are the security templates that policies have brought.
	templates() ([][]byte, error)
	// desktops is how many sessions there are of people, with or without a
	// client.
	desktops() (int, error)
	// product is wProductType of OSVERSIONINFOEX: 1 a workstation, 2 a domain
	// controller, 3 a server.
	product() uint8
}

// Where Windows keeps what is read here.
const (
	keyTerminal = `SYSTEM\CurrentControlSet\Control\Terminal Server`
	keyListener = keyTerminal + `\WinStations\RDP-Tcp`
	keyCluster  = keyTerminal + `\ClusterSettings`
	keyPolicy   = `SOFTWARE\Policies\Microsoft\Windows NT\Terminal Services`
	keyNTLM     = `SYSTEM\CurrentControlSet\Control\Lsa\MSV1_0`
	keyUAC      = `SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System`

	storeOwn  = "My"
	storeSelf = "Remote Desktop" // of certificates that the service made itself

	rightDenyRemote  = "SeDenyRemoteInteractiveLogonRight"
	rightDenyNetwork = "SeDenyNetworkLogonRight"
	rightRemote      = "SeRemoteInteractiveLogonRight"
	rightNetwork     = "SeNetworkLogonRight"
)

// Kinds of Windows, as rdpHost.product has them.
const (
	workstation      = 1
	domainController = 2
)

// The SIDs, Microsoft "Well-known SIDs", that an account of ours has whenever
// it signs in, and those that it has besides if it is an administrator.
const (
	sidLocal        = "S-1-5-113"
	sidLocalAdmins  = "S-1-5-114"
	sidAdmins       = "S-1-5-32-544"
	sidRemoteUsers  = "S-1-5-32-555"
	sidEveryone     = "S-1-1-0"
	sidAuthenticate = "S-1-5-11"
	sidUsers        = "S-1-5-32-545"
	sidNTLM         = "S-1-5-64-10"
)

var (
	ourSIDs      = []string{sidLocal, sidRemoteUsers, sidEveryone, sidAuthenticate, sidUsers, sidNTLM}
	ourAdminSIDs = []string{sidLocalAdmins, sidAdmins}
)

// sidNames are for people. Windows shows them in its own language.
var sidNames = map[string]string{sidLocal: "Local account", sidLocalAdmins: "Local account and member of Administrators group", sidAdmins: "Administrators",
	sidRemoteUsers: "Remote Desktop Users", sidEveryone: "Everyone", sidAuthenticate: "Authenticated Users", sidUsers: "Users", sidNTLM: "NTLM Authentication"}

// rdpPort returns the port that the RDP service listens on, and 3389 with an
// error if that cannot be read.
func rdpPort(h rdpHost) (uint16, error) {
	n, ok, err := h.number(keyListener, "PortNumber")
	switch {
	case err != nil:
		return 3389, err
	case !ok:
		return 3389, nil
	case n < 1 || n > 65535:
		return 3389, fmt.Errorf(`PortNumber in HKLM\%s is %d`, keyListener, n)
	}
	return uint16(n), nil
}

// readRDPFacts reads everything that judge wants to know.
func readRDPFacts(h rdpHost) RDPFacts {
	var f RDPFacts
	unread := func(what string, err error) {
		f.Unread = append(f.Unread, fmt.Sprintf("%s: %v", what, err))
	}
	// A policy wins over a setting.
	setting := func(key, value string, def uint32) (n uint32, byPolicy bool) {
		for _, k := range []string{keyPolicy, key} {
			n, ok, err := h.number(k, value)
			if err != nil {
				unread(`HKLM\`+k+`, value `+value, err)
			} else if ok {
				return n, k == keyPolicy
			}
		}
		return def, false
	}
	own := func(key, value string, def uint32) uint32 {
		n, ok, err := h.number(key, value)
		if err != nil {
			unread(`HKLM\`+key+`, value `+value, err)
		}
		if err != nil || !ok {
			return def
		}
		return n
	}
	var err error
	if f.Port, err = rdpPort(h); err != nil {
		unread("the RDP service's port", err)
	}
	if f.Certificate, err = storedCertificate(h); err != nil {
		f.CertificateProblem = err.Error()
	}
	n, byPolicy := setting(keyTerminal, "fDenyTSConnections", 1)
	f.Off, f.OffByPolicy = n != 0, n != 0 && byPolicy
	n, byPolicy = setting(keyListener, "fPromptForPassword", 0)
	f.Prompts, f.PromptsByPolicy = n != 0, n != 0 && byPolicy
	n, _ = setting(keyListener, "UserAuthentication", 0)
	f.NLA = n != 0
	f.SecurityLayer, _ = setting(keyListener, "SecurityLayer", 1)
	n, _ = setting(keyCluster, "SessionDirectoryActive", 0)
	f.Farm = n != 0
	f.IncomingNTLM = own(keyNTLM, "RestrictReceivingNTLMTraffic", 0)
	// 1 asks for a password on the secure desktop, 3 on the person's own.
	n = own(keyUAC, "ConsentPromptBehaviorAdmin", 5)
	f.AdminsPrompted = own(keyUAC, "EnableLUA", 1) != 0 && (n == 1 || n == 3)

	for _, r := range []struct {
		right string
		sids  *[]string
		def   []string
	}{
		{rightDenyRemote, &f.DeniedRemote, nil},
		{rightDenyNetwork, &f.DeniedNetwork, nil},
		{rightRemote, &f.AllowedRemote, []string{sidAdmins, sidRemoteUsers}},
		{rightNetwork, &f.AllowedNetwork, []string{sidEveryone}},
	} {
		if *r.sids, err = h.holders(r.right); err != nil {
			unread("who has the right "+r.right, err)
			*r.sids = r.def
		}
	}
	list, err := h.templates()
	if err != nil {
		unread("the security templates of policies", err)
	}
	f.Restricted = slices.ContainsFunc(list, restrictsRemoteUsers)
	if f.Sessions, err = h.desktops(); err != nil {
		unread("the sessions in use", err)
	}
	kind := h.product()
	f.DomainController = kind == domainController
	switch {
	case kind == workstation:
		f.Limit = 1
	case own(keyTerminal, "TSAppCompat", 0) == 0:
		f.Limit = 2
	}
	return f
}

// storedCertificate returns the SHA-256, in hex, of the certificate that the
// RDP service of Windows is configured with. Where none is, the service uses
// one that it has made itself.
func storedCertificate(h rdpHost) (string, error) {
	want, chosen, err := h.bytes(keyListener, "SSLCertificateSHA1Hash")
	if err != nil {
		return "", fmt.Errorf("read which certificate the RDP service has: %w", err)
	}
	if len(want) == 0 {
		chosen = false
	}
	if !chosen {
		// With a template, Windows enrols a certificate, and does not
		// document where it notes which.
		if name, ok, err := h.text(keyPolicy, "CertTemplateName"); err != nil {
			return "", fmt.Errorf("read which certificate the RDP service has: %w", err)
		} else if ok && name != "" {
			return "", fmt.Errorf("a policy has the RDP service's certificate made by the template %s", sft.Quote(name))
		}
	}
	store := storeOwn
	if !chosen {
		store = storeSelf
	}
	list, err := h.certificates(store)
	if err != nil {
		return "", fmt.Errorf("open the machine's certificate store %s: %w", sft.Quote(store), err)
	}
	if chosen {
		for _, der := range list {
			if sum := sha1.Sum(der); bytes.Equal(sum[:], want) { // which names it, and proves nothing
				return fingerprint(der), nil
			}
		}
		return "", fmt.Errorf("the certificate %s that the RDP service is configured with is not in the machine's store %s", sft.Quote(hex.EncodeToString(want)), sft.Quote(store))
	}
	var newest []byte
	var since time.Time
	for _, der := range list {
		c, err := x509.ParseCertificate(der)
		if err == nil && (newest == nil || c.NotBefore.After(since)) {
			newest, since = der, c.NotBefore
		}
	}
	if newest == nil {
		return "", fmt.Errorf("the RDP service has no certificate yet: the machine's store %s is empty", sft.Quote(store))
	}
	return fingerprint(newest), nil
}

func fingerprint(der []byte) string {
	h := sha256.Sum256(der)
	return hex.EncodeToString(h[:])
}

// restrictsRemoteUsers reports whether a security template (an INF file, in
// UTF-16 or not) sets the members of Remote Desktop Users.
func restrictsRemoteUsers(inf []byte) bool {
	section := false
	for line := range strings.Lines(decodeINF(inf)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = strings.EqualFold(line, "[Group Membership]")
			continue
		}
		key, _, ok := strings.Cut(line, "=")
		if section && ok && strings.EqualFold(strings.TrimSpace(key), "*"+sidRemoteUsers+"__Members") {
			return true
		}
	}
	return false
}

// decodeINF returns the text of an INF file, up to maxConfig.
func decodeINF(b []byte) string {
	b = b[:min(len(b), maxConfig)]
	rest, ok := bytes.CutPrefix(b, []byte{0xff, 0xfe})
	if !ok {
		return string(b)
	}
	units := make([]uint16, len(rest)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(rest[2*i:])
	}
	return string(utf16.Decode(units))
}

// A finding is one thing that keeps people from signing in, or that somebody
// should know of.
type finding struct {
	Code      sft.Code // of a refusal; empty: a warning
	Msg, Hint string
}

// What a fix is written with.
const (
	policyHost   = "Computer Configuration > Administrative Templates > Windows Components > Remote Desktop Services > Remote Desktop Session Host > "
	policyLocal  = "Computer Configuration > Windows Settings > Security Settings > Local Policies > "
	thenRefresh  = `, then run "gpupdate /force"`
	inPowerShell = "in PowerShell, run: "
)

// judge says what stands in the way of a sign-in by RDP, refusals first, the
// most fundamental first.
func judge(f RDPFacts) []finding {
	var list []finding
	refuse := func(code sft.Code, msg, hint string) { list = append(list, finding{code, msg, hint}) }
	warn := func(msg, hint string) { list = append(list, finding{"", msg, hint}) }

	if f.DomainController {
		refuse(sft.RDPDomainController, "the host is a domain controller, which has no local accounts",
			"go to a member server, and uninstall sftd here")
	}
	if f.Farm {
		refuse(sft.RDSFarm, "the host belongs to a farm: an RD Connection Broker may send people to another host, and sftd leads to this one alone",
			"remove the host from its session collection (Remove-RDSessionHost), or set the policy "+policyHost+"RD Connection Broker > Join RD Connection Broker to Disabled"+thenRefresh)
	}
	if f.OffByPolicy {
		refuse(sft.RDPDisabled, "a policy does not let anybody connect to the host by Remote Desktop",
			"set the policy "+policyHost+"Connections > Allow users to connect remotely by using Remote Desktop Services to Enabled"+thenRefresh)
	} else if f.Off {
		refuse(sft.RDPDisabled, "Remote Desktop is turned off on the host",
			inPowerShell+`Set-ItemProperty 'HKLM:\`+keyTerminal+`' fDenyTSConnections 0`)
	}
	judgeRights(f, refuse, warn)
	if f.IncomingNTLM >= 2 {
		refuse(sft.RDPNTLM, "the host takes no NTLM, which is the only way for a local account to sign in with NLA",
			"set the policy "+policyLocal+`Security Options > Network security: Restrict NTLM: Incoming NTLM traffic to "Deny all domain accounts" or "Allow all"`+thenRefresh)
	}
	if f.PromptsByPolicy {
		refuse(sft.RDPPrompts, "a policy has the host ask for a password at each sign-in, and nobody knows it",
			"set the policy "+policyHost+"Security > Always prompt for password upon connection to Disabled"+thenRefresh)
	} else if f.Prompts {
		refuse(sft.RDPPrompts, "the host asks for a password at each sign-in, and nobody knows it",
			inPowerShell+`Set-ItemProperty 'HKLM:\`+keyListener+`' fPromptForPassword 0`)
	}
	if f.SecurityLayer == 0 && !f.NLA {
		refuse(sft.RDPUnavailable, "the RDP service of the host is set to its old encryption, and sftd signs in through TLS only",
			inPowerShell+`Set-ItemProperty 'HKLM:\`+keyListener+`' SecurityLayer 2; the policy "Require use of specific security layer for remote (RDP) connections", if set, wins over it`)
	}
	if f.CertificateProblem != "" {
		refuse(sft.RDPUnavailable, "the RDP service of the host cannot be used: "+f.CertificateProblem,
			`restart the RDP service (Restart-Service TermService -Force), or export its certificate as PEM and name the file in sftd.yaml, as RDPCertificateFile`)
	}

	if f.Limit > 0 && f.Sessions >= f.Limit {
		msg, hint := "both sessions that Windows takes without the role Remote Desktop Session Host are in use: whoever comes next has to wait, or to end one",
			`sign people out ("quser", then "logoff ID"), or install the role and its licences`
		if f.Limit == 1 {
			msg, hint = "the one session that this edition of Windows takes is in use: whoever comes next ends it", `sign that person out first ("quser", then "logoff ID")`
		}
		warn(msg, hint)
	}
	if f.Restricted {
		warn("a policy (Restricted Groups) sets who is in Remote Desktop Users, and takes out the accounts that sftd puts in: it puts them back at each sign-in, and a sign-in while the policy is being refreshed fails",
			`in that policy, list Remote Desktop Users under "This group is a member of" of another group, and not with "Members of this group"`)
	}
	if f.AdminsPrompted {
		warn("UAC asks an administrator for a password, which nobody knows: people with admin rights cannot use them",
			inPowerShell+`Set-ItemProperty 'HKLM:\`+keyUAC+`' ConsentPromptBehaviorAdmin 2; the policy "User Account Control: Behavior of the elevation prompt for administrators in Admin Approval Mode", if set, wins over it`)
	}
	if !f.NLA {
		warn("NLA is off: whoever reaches the RDP port sees a sign-in screen", inPowerShell+`Set-ItemProperty 'HKLM:\`+keyListener+`' UserAuthentication 1`)
	}
	for _, u := range f.Unread {
		warn("the RDP service's settings cannot be read: "+oneLine(u, 300), "see that the service scaleft-server-tools runs as LocalSystem, and restart it")
	}
	slices.SortStableFunc(list, func(a, b finding) int {
		switch {
		case (a.Code == "") == (b.Code == ""):
			return 0
		case a.Code != "":
			return -1
		}
		return 1
	})
	return list
}

// judgeRights judges who may sign in. A right that is denied wins over one
// that is given.
func judgeRights(f RDPFacts, refuse func(code sft.Code, msg, hint string), warn func(msg, hint string)) {
	for _, r := range []struct {
		denied, allowed       []string
		deny, allow, how, who string
	}{
		{f.DeniedRemote, f.AllowedRemote, "Deny log on through Remote Desktop Services", "Allow log on through Remote Desktop Services", "by Remote Desktop", sidRemoteUsers},
		{f.DeniedNetwork, f.AllowedNetwork, "Deny access to this computer from the network", "Access this computer from the network", "over the network, which NLA needs", sidRemoteUsers},
	} {
		policy := func(name string) string { return policyLocal + "User Rights Assignment > " + name }
		if sid := firstOf(r.denied, ourSIDs); sid != "" {
			refuse(sft.RDPLogonRight, "the host does not let local accounts sign in "+r.how+": the right is denied to "+called(sid),
				"take "+called(sid)+" out of the policy "+policy(r.deny)+thenRefresh)
		} else if sid := firstOf(r.denied, ourAdminSIDs); sid != "" {
			warn("people with admin rights here cannot sign in "+r.how+": the right is denied to "+called(sid),
				"take "+called(sid)+" out of the policy "+policy(r.deny)+thenRefresh)
		}
		if firstOf(r.allowed, ourSIDs) == "" {
			refuse(sft.RDPLogonRight, "the host lets no member of Remote Desktop Users sign in "+r.how,
				"add "+called(r.who)+" to the policy "+policy(r.allow)+thenRefresh)
		}
	}
}

// firstOf returns the first of list that is in of, or "".
func firstOf(list, of []string) string {
	if i := slices.IndexFunc(list, func(s string) bool { return slices.Contains(of, s) }); i >= 0 {
		return list[i]
	}
	return ""
}

// called is a SID with its name.
func called(sid string) string { return fmt.Sprintf("%s (%s)", sidNames[sid], sid) }

// firstRefusal returns the first refusal of a judgement, or nil.
func firstRefusal(list []finding) error {
	for _, f := range list {
		if f.Code != "" {
			return &sft.Error{Code: f.Code, Msg: f.Msg, Hint: f.Hint}
		}
	}
	return nil
}

// signInWarnings are the warnings for the person who signs in, rather than for
// who looks after the host: with admin rights, what becomes of those; back says
// that a desktop of theirs is there already. What to do is not theirs to do.
func signInWarnings(f RDPFacts, admin, back bool) []string {
	f.NLA, f.Restricted, f.Unread = true, false, nil
	if back {
		f.Limit = 0
	}
	if !admin {
		f.AdminsPrompted, f.DeniedRemote, f.DeniedNetwork = false, nil, nil
	}
	var list []string
	for _, w := range judge(f) {
		if w.Code == "" {
			list = append(list, w.Msg)
		}
	}
	return frame.CleanWarnings(list)
}

// rdpRefusal is what a line of rdpLines begins with that would refuse a sign-in.
const rdpRefusal = "rdp: "

// rdpLines are the findings as status shows them and the platform is told.
func rdpLines(list []finding) (lines []string) {
	for _, f := range list {
		what := rdpRefusal
		if f.Code == "" {
			what = "rdp, a warning: "
		}
		lines = append(lines, what+sft.Explain(&sft.Error{Msg: f.Msg, Hint: f.Hint}))
	}
	return lines
}

// rdpSeenFor is for how long status shows what was read once.
const rdpSeenFor = 30 * time.Second

// rdpSeen is what was last read for status, which asks every second.
type rdpSeen struct {
	mu    sync.Mutex
	at    time.Time // by the machine's clock
	lines []string
}

// get returns the lines of the last half minute, or new ones.
func (s *rdpSeen) get(now time.Time, read func() []string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if age := now.Sub(s.at); s.at.IsZero() || age < 0 || age >= rdpSeenFor {
		s.lines, s.at = read(), now
	}
	return slices.Clone(s.lines)
}

// tableListeners returns the sockets in what GetExtendedTcpTable fills: a count,
// then rows of 32-bit words (MIB_TCPROW_OWNER_PID, MIB_TCP6ROW_OWNER_PID), with
// addresses and ports in network order.
func tableListeners(b []byte, v6 bool) (list []netip.AddrPort) {
	row, ip, port := 24, 4, 8
	if v6 {
		row, ip, port = 56, 0, 20
	}
	if len(b) < 4 {
		return nil
	}
	n := binary.LittleEndian.Uint32(b)
	for b = b[4:]; n > 0 && len(b) >= row; n, b = n-1, b[row:] {
		a := netip.AddrFrom4([4]byte(b[ip:]))
		if v6 {
			a = netip.AddrFrom16([16]byte(b[ip:]))
		}
		list = append(list, netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[port:])))
	}
	return list
}

// errValueType is about a registry value that is not what Microsoft documents.
var errValueType = errors.New("the value has another type")

// States of a session, WTS_CONNECTSTATE_CLASS.
const (
	wtsActive       = 0
	wtsDisconnected = 4
)

// people counts the sessions that somebody is signed in to, with or without a
// client, given the state of each. Session 0 is of services.
func people(states map[uint32]uint32) (n int) {
	for id, state := range states {
		if id != 0 && (state == wtsActive || state == wtsDisconnected) {
			n++
		}
	}
	return n
}
