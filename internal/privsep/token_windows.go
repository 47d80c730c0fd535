package privsep

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	advapi32                  = windows.NewLazySystemDLL("advapi32.dll")
	procLogonUser             = advapi32.NewProc("LogonUserW")
	procCreateRestrictedToken = advapi32.NewProc("CreateRestrictedToken")
	procLookupPrivilegeName   = advapi32.NewProc("LookupPrivilegeNameW")
	kernel32                  = windows.NewLazySystemDLL("kernel32.dll")
	procIsProcessInJob        = kernel32.NewProc("IsProcessInJob")
	procGetProcessMitigation  = kernel32.NewProc("GetProcessMitigationPolicy")
	// Those of package windows take a structure's address as a number, which
	// is not the structure's any more when the goroutine's stack has moved.
	procSetJob   = kernel32.NewProc("SetInformationJobObject")
	procQueryJob = kernel32.NewProc("QueryInformationJobObject")
)

// noFlags are none of the flags of CreateRestrictedToken. With
// DISABLE_MAX_PRIVILEGE it ignores its list of privileges, and leaves
// SeChangeNotifyPrivilege: Microsoft, CreateRestrictedToken.
const noFlags = 0

// restrict returns a token with what p leaves of t.
func restrict(t windows.Token, p plan) (windows.Token, error) {
	denied := make([]windows.SIDAndAttributes, len(p.denied))
	for i, s := range p.denied {
		sid, err := windows.StringToSid(s)
		if err != nil {
			return 0, fmt.Errorf("StringToSid %s: %w", s, err)
		}
		denied[i].Sid = sid
	}
	deleted := make([]windows.LUIDAndAttributes, len(p.privileges))
	for i, l := range p.privileges {
		deleted[i].Luid = windows.LUID{LowPart: uint32(l), HighPart: int32(l >> 32)}
	}
	var r windows.Token
	ok, _, err := procCreateRestrictedToken.Call(uintptr(t), noFlags,
		uintptr(len(denied)), uintptr(unsafe.Pointer(unsafe.SliceData(denied))),
		uintptr(len(deleted)), uintptr(unsafe.Pointer(unsafe.SliceData(deleted))),
		0, 0, uintptr(unsafe.Pointer(&r)))
	if ok == 0 {
		return 0, fmt.Errorf("CreateRestrictedToken: %w", err)
	}
	if err := setIntegrity(r, p.integrity); err != nil {
		r.Close()
		return 0, err
	}
	return r, nil
}

// setIntegrity sets the level of a token.
func setIntegrity(t windows.Token, level string) error {
	sid, err := windows.StringToSid(level)
	if err != nil {
		return fmt.Errorf("StringToSid %s: %w", level, err)
	}
	label := windows.Tokenmandatorylabel{Label: windows.SIDAndAttributes{Sid: sid, Attributes: windows.SE_GROUP_INTEGRITY}}
	if err := windows.SetTokenInformation(t, windows.TokenIntegrityLevel, (*byte)(unsafe.Pointer(&label)), label.Size()); err != nil {
		return fmt.Errorf("SetTokenInformation: %w", err)
	}
	return nil
}

// readToken returns what is in a token.
func readToken(t windows.Token) (tokenFacts, error) {
	var f tokenFacts
	b, err := tokenInformation(t, windows.TokenUser)
	if err != nil {
		return f, err
	}
	f.user = (*windows.Tokenuser)(unsafe.Pointer(&b[0])).User.Sid.String()
	if b, err = tokenInformation(t, windows.TokenIntegrityLevel); err != nil {
		return f, err
	}
	f.integrity = (*windows.Tokenmandatorylabel)(unsafe.Pointer(&b[0])).Label.Sid.String()
	if b, err = tokenInformation(t, windows.TokenGroups); err != nil {
		return f, err
	}
	for _, g := range (*windows.Tokengroups)(unsafe.Pointer(&b[0])).AllGroups() {
		f.groups = append(f.groups, group{sid: g.Sid.String(), denying: g.Attributes&windows.SE_GROUP_USE_FOR_DENY_ONLY != 0})
	}
	if b, err = tokenInformation(t, windows.TokenPrivileges); err != nil {
		return f, err
	}
	for _, p := range (*windows.Tokenprivileges)(unsafe.Pointer(&b[0])).AllPrivileges() {
		f.privileges = append(f.privileges, privilege{luid: uint64(uint32(p.Luid.HighPart))<<32 | uint64(p.Luid.LowPart), name: privilegeName(p.Luid)})
	}
	return f, nil
}

// tokenInformation returns what GetTokenInformation writes, in memory that its
// structures may lie in.
func tokenInformation(t windows.Token, class uint32) ([]uint64, error) {
	b := make([]uint64, 128)
	for {
		size := uint32(len(b) * 8)
		err := windows.GetTokenInformation(t, class, (*byte)(unsafe.Pointer(&b[0])), size, &size)
		if err == nil {
			return b, nil
		}
		if err != windows.ERROR_INSUFFICIENT_BUFFER || int(size) <= len(b)*8 {
			return nil, fmt.Errorf("GetTokenInformation: %w", err)
		}
		b = make([]uint64, size/8+1)
	}
}

// privilegeName returns the name of a privilege, or its number.
func privilegeName(l windows.LUID) string {
	var b [64]uint16
	n := uint32(len(b))
	if ok, _, _ := procLookupPrivilegeName.Call(0, uintptr(unsafe.Pointer(&l)), uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n))); ok == 0 {
		return fmt.Sprintf("privilege %d", l.LowPart)
	}
	return windows.UTF16ToString(b[:])
}
