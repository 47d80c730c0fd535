package main

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/windows"
)

// unprotect opens what DPAPI has sealed, as mstsc does: without entropy.
func unprotect(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errors.New("there is nothing to open")
	}
	in := windows.DataBlob{Size: uint32(len(b)), Data: &b[0]}
	var out windows.DataBlob
	if err := windows.CryptUnprotectData(&in, nil, nil, 0, nil, windows.CRYPTPROTECT_UI_FORBIDDEN, &out); err != nil {
		return nil, err
	}
	defer windows.LocalFree(windows.Handle(unsafe.Pointer(out.Data)))
	return append([]byte{}, unsafe.Slice(out.Data, out.Size)...), nil
}

var (
	advapi32  = windows.NewLazySystemDLL("advapi32.dll")
	credReadW = advapi32.NewProc("CredReadW")
	credFree  = advapi32.NewProc("CredFree")
)

// credential is CREDENTIALW (wincred.h).
type credential struct {
	flags, kind uint32
	target      *uint16
	comment     *uint16
	written     windows.Filetime
	size        uint32
	blob        *byte
	persist     uint32
	attributes  uint32
	list        uintptr
	alias, user *uint16
}

// readCredential reads a generic credential (CredReadW).
func readCredential(target string) (user string, blob []byte, err error) {
	name, err := windows.UTF16PtrFromString(target)
	if err != nil {
		return "", nil, err
	}
	var c *credential
	if ok, _, err := credReadW.Call(uintptr(unsafe.Pointer(name)), 1, 0, uintptr(unsafe.Pointer(&c))); ok == 0 {
		return "", nil, err
	}
	defer credFree.Call(uintptr(unsafe.Pointer(c)))
	return windows.UTF16PtrToString(c.user), append([]byte{}, unsafe.Slice(c.blob, c.size)...), nil
}
