package conf

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/windows"
)

// A Scope says who can open what Protect has sealed.
type Scope uint32

// The scopes. What is sealed for the machine every account of it can open
// that also knows the entropy, so that it needs a private file as well.
const (
	ForUser    Scope = 0
	ForMachine Scope = windows.CRYPTPROTECT_LOCAL_MACHINE
)

// maxProtected caps what Protect and Unprotect take, in bytes.
const maxProtected = 1 << 20

// Protect seals data by DPAPI (CryptProtectData). Whoever opens it must give
// the same entropy, which may be nil; about is kept beside it in the clear.
// No dialog is ever shown.
func Protect(scope Scope, data, entropy []byte, about string) ([]byte, error) {
	if len(data) == 0 || len(data) > maxProtected {
		return nil, errors.New("there is nothing to seal, or too much")
	}
	name, err := windows.UTF16PtrFromString(about)
	if err != nil {
		return nil, err
	}
	var out windows.DataBlob
	if err := windows.CryptProtectData(dataBlob(data), name, dataBlob(entropy), 0, nil, windows.CRYPTPROTECT_UI_FORBIDDEN|uint32(scope), &out); err != nil {
		return nil, err
	}
	return takeBlob(out), nil
}

// Unprotect opens what Protect has sealed, here and with this entropy. The
// caller clears it.
func Unprotect(sealed, entropy []byte) ([]byte, error) {
	if len(sealed) == 0 || len(sealed) > 2*maxProtected {
		return nil, errors.New("there is nothing to open, or too much")
	}
	var out windows.DataBlob
	if err := windows.CryptUnprotectData(dataBlob(sealed), nil, dataBlob(entropy), 0, nil, windows.CRYPTPROTECT_UI_FORBIDDEN, &out); err != nil {
		return nil, err
	}
	return takeBlob(out), nil
}

// dataBlob is b as DPAPI takes it: nil for nothing.
func dataBlob(b []byte) *windows.DataBlob {
	if len(b) == 0 {
		return nil
	}
	return &windows.DataBlob{Size: uint32(len(b)), Data: &b[0]}
}

// takeBlob copies what DPAPI returned, clears it and gives it back.
func takeBlob(out windows.DataBlob) []byte {
	if out.Data == nil {
		return nil
	}
	theirs := unsafe.Slice(out.Data, out.Size)
	b := append([]byte{}, theirs...)
	clear(theirs)
	windows.LocalFree(windows.Handle(unsafe.Pointer(out.Data)))
	return b
}
