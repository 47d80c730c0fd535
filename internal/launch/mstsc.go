package launch

import (
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"

	"sft"
	"sft/internal/conf"
	"sft/internal/loopback"
)

// A Start is how mstsc, the RDP client of Windows, is started: the setting
// rdp.launch. Other programs have one way only.
type Start string

// The ways to start mstsc.
const (
	// StartAuto chooses by the policies of the machine.
	StartAuto Start = "auto"
	// StartFile writes a connection file with the launch secret in it, under
	// DPAPI. Windows shows a dialog about the file each time.
	StartFile Start = "file"
	// StartDirect has the launch secret in Credential Manager, and no file.
	StartDirect Start = "direct"
	// StartProcess writes a file without a secret: whoever connects must be
	// the very process that was started.
	StartProcess Start = "process"
)

// CheckStart refuses what is no Start. Empty is StartAuto.
func CheckStart(s string) error {
	switch Start(s) {
	case "", StartAuto, StartFile, StartDirect, StartProcess:
		return nil
	}
	return &sft.Error{Code: sft.Invalid, Msg: "there is no way " + sft.Quote(s) + " to start mstsc", Hint: "use auto, file, direct or process"}
}

// Facts are what a machine says of saved passwords. The names are those of
// the registry's values.
type Facts struct {
	DisablePasswordSaving bool // mstsc takes no password from a file, and saves none
	PromptForPassword     bool // fPromptForPassword or PromptForCredsOnClient: it always asks
	DisableDomainCreds    bool // Credential Manager keeps no passwords
	NoSavedCredentials    bool // AllowSavedCredentials is 0: NLA is not given saved passwords
	Domain                bool // the machine is a domain's
	NoUnsignedFiles       bool // AllowUnsignedFiles is 0: mstsc takes no file of an unknown publisher
}

// names lists what is set.
func (f Facts) names() []string {
	var list []string
	for _, v := range []struct {
		set  bool
		name string
	}{
		{f.DisablePasswordSaving, "DisablePasswordSaving"},
		{f.PromptForPassword, "fPromptForPassword or PromptForCredsOnClient"},
		{f.DisableDomainCreds, "DisableDomainCreds"},
		{f.NoSavedCredentials, "AllowSavedCredentials is 0"},
		{f.Domain, "the machine is a domain's"},
		{f.NoUnsignedFiles, "AllowUnsignedFiles is 0"},
	} {
		if v.set {
			list = append(list, v.name)
		}
	}
	return list
}

// choose returns how mstsc is to be started. On a machine of a domain that
// says nothing of saved credentials, NLA withholds them from a server which is
// not of the domain, so it is the file, which needs no NLA.
func (s Start) choose(f Facts) Start {
	switch {
	case s != StartAuto && s != "":
		return s
	case f.DisablePasswordSaving || f.PromptForPassword || f.DisableDomainCreds || f.NoSavedCredentials:
		return StartProcess
	case f.Domain:
		return StartFile
	}
	return StartDirect
}

// A system is what starting mstsc needs of Windows.
type system interface {
	facts() (Facts, error)
	// protect seals bytes so that this user alone can open them, here.
	protect(b []byte) ([]byte, error)
	// writeCredential keeps a password in Credential Manager for as long as
	// the person is logged on.
	writeCredential(target, user string, password []byte) error
	deleteCredential(target string) error
	// trust tells mstsc that the person takes the certificate of a host.
	trust(host string, sha1 []byte, user string) error
	// distrust undoes it.
	distrust(host string) error
	// screen returns the primary monitor.
	screen() (screen, error)
	// only lets no process but this one connect to l.
	only(l *loopback.Listener, pid int) error
}

// mstsc is what a Program that is mstsc has of its own.
type mstsc struct {
	sys   system
	start Start
	known Facts // once asked

	sign     Signer // nil: files are not signed
	unsigned func(error)
}

// How sets how the program is started, if it has more than one way. Call it
// before Ask.
func (p *Program) How(s Start) {
	if p.mstsc != nil {
		p.mstsc.start = s
	}
}

// ask settles how it is started.
func (m *mstsc) ask() error {
	f, err := m.sys.facts()
	if err != nil {
		return &sft.Error{Code: sft.Invalid, Msg: "read the policies of this machine about saved passwords: " + err.Error(), Err: err,
			Hint: "choose a way with \"sft config rdp.launch file\", direct or process"}
	}
	m.known, m.start = f, m.start.choose(f)
	return nil
}

// mstscArgs are the arguments for a start without a file.
func mstscArgs(t Target, v View) []string {
	args := []string{"/v:" + t.Addr.String()}
	switch w, h, sized := strings.Cut(v.Size, "x"); {
	case v.MultiMonitor:
		args = append(args, "/multimon")
	case v.Fullscreen:
		args = append(args, "/f")
	case sized:
		args = append(args, "/w:"+w, "/h:"+h)
	}
	return args
}

// credentialTarget is where mstsc looks for a host's password.
func credentialTarget(host netip.Addr) string { return "TERMSRV/" + host.String() }

// wide is a password as mstsc keeps it: UTF-16LE without an end.
func wide(s sft.Secret) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s.Reveal())) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// addressFile is the file of a run's folder that says which host has
// something in Credential Manager and the registry, for whoever cleans up
// after a process that was killed.
const addressFile = "address"

// traces is what the start of an RDP client leaves on the machine.
type traces struct {
	read func() // the client has read the connection file
	used func() // it has shown the secret
	end  func() // it has ended
}

func noTraces() traces { return traces{read: func() {}, used: func() {}, end: func() {}} }

// prepare writes what mstsc needs into dir and around it, and returns its
// arguments. front says that a Front answers, sha1 is its certificate's.
func (m *mstsc) prepare(dir *RunDir, t Target, v View, secret sft.Secret, sha1 []byte, front bool) ([]string, traces, error) {
	tr := noTraces()
	how := m.start
	if s, err := m.sys.screen(); err == nil { // else mstsc takes a size of its own
		v = s.fit(v)
	}
	if !front {
		// The account's own password: the one way that hands it over and
		// keeps mstsc looking at the certificate is the file.
		if how == StartProcess {
			return nil, tr, &sft.Error{Code: sft.Denied, Msg: t.Server + " delivers the account's password, and mstsc is started without one: a policy of this machine forbids it, or rdp.launch is process",
				Hint: "ask an administrator to have the server sign in itself, or use another RDP client with --client"}
		}
		how = StartFile
	}
	if how == StartDirect {
		return m.direct(dir, t, v, secret, sha1)
	}
	a := accounting{trust: front, nla: !front}
	if how == StartFile {
		password := wide(secret)
		defer clear(password)
		var err error
		if a.password, err = m.sys.protect(password); err != nil {
			return nil, tr, &sft.Error{Code: sft.Internal, Msg: "seal the launch secret: " + err.Error(), Err: err, Hint: "use \"sft config rdp.launch process\""}
		}
	}
	f := connectionFile(t, v, a)
	if m.sign != nil {
		if signed, err := f.signed(m.sign); err == nil {
			f = signed
		} else {
			m.unsigned(err)
		}
	}
	b, err := f.Bytes()
	if err != nil {
		return nil, tr, err
	}
	path := filepath.Join(dir.Path, t.fileName())
	if err := conf.WriteSecret(path, b); err != nil {
		return nil, tr, err
	}
	tr.read = func() { os.Remove(path) } // mstsc may still have it open: then it goes with the folder
	return []string{path}, tr, nil
}

// direct is prepare without a file for mstsc.
func (m *mstsc) direct(dir *RunDir, t Target, v View, secret sft.Secret, sha1 []byte) ([]string, traces, error) {
	host := t.Addr.Addr()
	// The certificate is looked at again when mstsc reconnects, the password is
	// not: mstsc has it.
	tr := traces{read: func() {}, used: func() { _ = m.sys.deleteCredential(credentialTarget(host)) }, end: func() { forget(m.sys, host) }}
	if !apart(host) {
		return nil, noTraces(), &sft.Error{Code: sft.Internal, Msg: "address " + host.String() + " is not of this run alone", Hint: "use \"sft config rdp.launch file\""}
	}
	err := conf.WriteSecret(filepath.Join(dir.Path, addressFile), []byte(host.String()))
	if err == nil {
		password := wide(secret)
		err = m.sys.writeCredential(credentialTarget(host), t.Login, password)
		clear(password)
	}
	if err == nil {
		err = m.sys.trust(host.String(), sha1, t.Login)
	}
	if err != nil {
		tr.end()
		return nil, noTraces(), &sft.Error{Code: sft.Invalid, Msg: "give mstsc the launch secret: " + err.Error(), Err: err, Hint: "use \"sft config rdp.launch file\""}
	}
	return mstscArgs(t, v), tr, nil
}

// apart reports whether an address can be of one run alone, so that what is
// kept under its name is ours to remove.
func apart(a netip.Addr) bool {
	return a.Is4() && a.IsLoopback() && a != netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// forget removes what is kept for a host. What is gone already is no matter.
func forget(sys system, host netip.Addr) {
	_ = sys.deleteCredential(credentialTarget(host))
	_ = sys.distrust(host.String())
}

// forgetRun removes what a run that was killed left, by the file in its
// folder, which only this person can have written.
func (m *mstsc) forgetRun(dir string) {
	b, err := conf.ReadPrivate(filepath.Join(dir, addressFile))
	if err != nil {
		return
	}
	if host, err := netip.ParseAddr(string(b)); err == nil && apart(host) {
		forget(m.sys, host)
	}
}
