package launch

import (
	"errors"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"sft/internal/conf"
	"sft/internal/loopback"
)

// systemClient returns mstsc, by the path of the system's own folder, or nil
// if that cannot be told: never one from the path or the current folder.
func systemClient() *Program {
	dir, err := windows.GetSystemDirectory()
	if err != nil || !filepath.IsAbs(dir) {
		return nil
	}
	return &Program{Name: "mstsc", path: filepath.Join(dir, "mstsc.exe"), mstsc: &mstsc{sys: windowsSystem{}}}
}

// lastClient returns nil: there is mstsc.
func lastClient() *Program { return nil }

// windowsSystem is the Windows that runs.
type windowsSystem struct{}

const (
	clientPolicy     = `Software\Policies\Microsoft\Windows NT\Terminal Services`
	delegationPolicy = `Software\Policies\Microsoft\Windows\CredentialsDelegation`
	lsaSettings      = `SYSTEM\CurrentControlSet\Control\Lsa`
	mstscServers     = `Software\Microsoft\Terminal Server Client\Servers`
)

// facts reads the policies of the machine and of the person.
func (windowsSystem) facts() (Facts, error) {
	var f Facts
	var errs []error
	is := func(root registry.Key, key, name string, want uint64) bool {
		n, ok, err := number(root, key, name)
		errs = append(errs, err)
		return ok && n == want
	}
	for _, root := range []registry.Key{registry.LOCAL_MACHINE, registry.CURRENT_USER} {
		f.DisablePasswordSaving = is(root, clientPolicy, "DisablePasswordSaving", 1) || f.DisablePasswordSaving
		f.PromptForPassword = is(root, clientPolicy, "fPromptForPassword", 1) || is(root, clientPolicy, "PromptForCredsOnClient", 1) || f.PromptForPassword
		f.NoUnsignedFiles = is(root, clientPolicy, "AllowUnsignedFiles", 0) || f.NoUnsignedFiles
	}
	f.DisableDomainCreds = is(registry.LOCAL_MACHINE, lsaSettings, "DisableDomainCreds", 1)
	f.NoSavedCredentials = is(registry.LOCAL_MACHINE, delegationPolicy, "AllowSavedCredentials", 0)
	var name *uint16
	var status uint32
	if err := windows.NetGetJoinInformation(nil, &name, &status); err != nil {
		errs = append(errs, err)
	} else {
		windows.NetApiBufferFree((*byte)(unsafe.Pointer(name)))
		f.Domain = status == windows.NetSetupDomainName
	}
	return f, errors.Join(errs...)
}

// number reads a DWORD of the registry; one that is not there is no error.
func number(root registry.Key, key, name string) (uint64, bool, error) {
	k, err := registry.OpenKey(root, key, registry.QUERY_VALUE)
	if errors.Is(err, registry.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	defer k.Close()
	n, _, err := k.GetIntegerValue(name)
	if errors.Is(err, registry.ErrNotExist) {
		return 0, false, nil
	}
	return n, err == nil, err
}

func (windowsSystem) protect(b []byte) ([]byte, error) {
	return conf.Protect(conf.ForUser, b, nil, "sft")
}

// trust writes what mstsc writes when the person ticks "don't ask me again".
func (windowsSystem) trust(host string, sha1 []byte, user string) error {
	k, _, err := registry.CreateKey(registry.CURRENT_USER, mstscServers+`\`+host, registry.SET_VALUE)
	if err != nil {
		return err
	}
	defer k.Close()
	if err := k.SetBinaryValue("CertHash", sha1); err != nil {
		return err
	}
	return k.SetStringValue("UsernameHint", user)
}

func (windowsSystem) distrust(host string) error {
	return registry.DeleteKey(registry.CURRENT_USER, mstscServers+`\`+host)
}

func (windowsSystem) only(l *loopback.Listener, pid int) error { return l.Only(uint32(pid)) }

var (
	advapi32    = windows.NewLazySystemDLL("advapi32.dll")
	credWriteW  = advapi32.NewProc("CredWriteW")
	credDeleteW = advapi32.NewProc("CredDeleteW")
)

const (
	credTypeGeneric    = 1 // CRED_TYPE_GENERIC
	credPersistSession = 1 // CRED_PERSIST_SESSION: gone with the logon session
)

// credential is CREDENTIALW (wincred.h).
type credential struct {
	Flags          uint32
	Type           uint32
	TargetName     *uint16
	Comment        *uint16
	LastWritten    windows.Filetime
	BlobSize       uint32
	Blob           *byte
	Persist        uint32
	AttributeCount uint32
	Attributes     uintptr
	TargetAlias    *uint16
	UserName       *uint16
}

func (windowsSystem) writeCredential(target, user string, password []byte) error {
	t, err := windows.UTF16PtrFromString(target)
	if err != nil {
		return err
	}
	u, err := windows.UTF16PtrFromString(user)
	if err != nil {
		return err
	}
	if len(password) == 0 {
		return errors.New("there is no password")
	}
	c := credential{Type: credTypeGeneric, TargetName: t, BlobSize: uint32(len(password)), Blob: &password[0], Persist: credPersistSession, UserName: u}
	if ok, _, err := credWriteW.Call(uintptr(unsafe.Pointer(&c)), 0); ok == 0 {
		return err
	}
	return nil
}

func (windowsSystem) deleteCredential(target string) error {
	t, err := windows.UTF16PtrFromString(target)
	if err != nil {
		return err
	}
	if ok, _, err := credDeleteW.Call(uintptr(unsafe.Pointer(t)), credTypeGeneric, 0); ok == 0 {
		return err
	}
	return nil
}
