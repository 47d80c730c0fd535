//go:build !winetest

package privsep

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"
)

// excused names the layers that may be missed: none.
var excused []string

// Microsoft, LogonUser.
const (
	logonService    = 5 // LOGON32_LOGON_SERVICE
	providerDefault = 0 // LOGON32_PROVIDER_DEFAULT
)

// brokerToken returns a token of LocalService, an account that every Windows
// has, with a password that nobody needs. Only the system may ask for it.
func brokerToken() (windows.Token, error) {
	name, _ := windows.UTF16PtrFromString("LocalService")
	domain, _ := windows.UTF16PtrFromString("NT AUTHORITY")
	var t windows.Token
	ok, _, err := procLogonUser.Call(uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(domain)), 0, logonService, providerDefault, uintptr(unsafe.Pointer(&t)))
	if ok == 0 {
		return 0, fmt.Errorf("LogonUser: %w", err)
	}
	return t, nil
}
