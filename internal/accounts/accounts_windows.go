package accounts

import (
	"unsafe"

	"golang.org/x/sys/windows"
)

// NewWindows returns the accounts of this host. What must outlive the agent is
// sealed to the machine in a folder of dir, the agent's state folder, which
// nobody but Local System and Administrators may read. onReset, which may be
// nil, is told each login whose password had to be reset, and not changed: what
// that person had saved under it (page "CryptProtectData") is lost. It is called
// in the middle of Enable and must not call the Manager.
func NewWindows(dir string, onReset func(login string)) Backend {
	return newWindowsBackend(winOS{}, dpapi{}, dir, onReset)
}

// A dpapi seals with a key of the machine (page CryptProtectData,
// CRYPTPROTECT_LOCAL_MACHINE). Any process of the machine can unseal: the
// folder's access list is what keeps others out, and the seal is what makes a
// copied disk or backup worthless.
type dpapi struct{}

func blob(b []byte) *windows.DataBlob {
	if len(b) == 0 {
		return &windows.DataBlob{}
	}
	return &windows.DataBlob{Size: uint32(len(b)), Data: &b[0]}
}

// take copies what a call returned in a blob, and wipes and frees it.
func take(b *windows.DataBlob) []byte {
	if b.Data == nil {
		return nil
	}
	s := unsafe.Slice(b.Data, b.Size)
	out := append([]byte(nil), s...)
	clear(s)
	windows.LocalFree(windows.Handle(unsafe.Pointer(b.Data)))
	return out
}

// dpapiUse keeps a blob that was sealed for something else from being taken
// for ours.
var dpapiUse = []byte("sftd kept passwords 1")

func (dpapi) seal(plain []byte) ([]byte, error) {
	var out windows.DataBlob
	err := windows.CryptProtectData(blob(plain), nil, blob(dpapiUse), 0, nil,
		windows.CRYPTPROTECT_LOCAL_MACHINE|windows.CRYPTPROTECT_UI_FORBIDDEN, &out)
	if err != nil {
		return nil, osError("CryptProtectData", err)
	}
	return take(&out), nil
}

func (dpapi) unseal(sealed []byte) ([]byte, error) {
	var out windows.DataBlob
	err := windows.CryptUnprotectData(blob(sealed), nil, blob(dpapiUse), 0, nil, windows.CRYPTPROTECT_UI_FORBIDDEN, &out)
	if err != nil {
		return nil, osError("CryptUnprotectData", err)
	}
	return take(&out), nil
}
