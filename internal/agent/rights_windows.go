//go:build !winetest

package agent

import (
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	advapi32                      = windows.NewLazySystemDLL("advapi32.dll")
	lsaOpenPolicy                 = advapi32.NewProc("LsaOpenPolicy")
	lsaEnumerateAccountsWithRight = advapi32.NewProc("LsaEnumerateAccountsWithUserRight")
	lsaFreeMemory                 = advapi32.NewProc("LsaFreeMemory")
	lsaClose                      = advapi32.NewProc("LsaClose")
)

// The access that LsaEnumerateAccountsWithUserRight needs, ntsecapi.h.
const policyViewAndLookup = 0x1 | 0x800

func (windowsRDP) holders(right string) ([]string, error) {
	attributes := windows.OBJECT_ATTRIBUTES{Length: uint32(unsafe.Sizeof(windows.OBJECT_ATTRIBUTES{}))}
	var policy uintptr
	if r, _, _ := lsaOpenPolicy.Call(0, uintptr(unsafe.Pointer(&attributes)), policyViewAndLookup, uintptr(unsafe.Pointer(&policy))); windows.NTStatus(r) != 0 {
		return nil, windows.NTStatus(r)
	}
	defer lsaClose.Call(policy)
	name, err := windows.NewNTUnicodeString(right)
	if err != nil {
		return nil, err
	}
	var sids **windows.SID // LSA_ENUMERATION_INFORMATION has one field
	var n uint32
	switch r, _, _ := lsaEnumerateAccountsWithRight.Call(policy, uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&sids)), uintptr(unsafe.Pointer(&n))); windows.NTStatus(r) {
	case 0:
	case windows.STATUS_NO_MORE_ENTRIES: // nobody has it
		return nil, nil
	default:
		return nil, windows.NTStatus(r)
	}
	defer lsaFreeMemory.Call(uintptr(unsafe.Pointer(sids)))
	var list []string
	for _, sid := range unsafe.Slice(sids, n) {
		list = append(list, sid.String())
	}
	return list, nil
}
