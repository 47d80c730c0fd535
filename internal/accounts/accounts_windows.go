package accounts

import "sft/internal/conf"

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

// dpapiUse keeps a blob that was sealed for something else from being taken
// for ours.
var dpapiUse = []byte("sftd kept passwords 1")

func (dpapi) seal(plain []byte) ([]byte, error) {
	return conf.Protect(conf.ForMachine, plain, dpapiUse, "sftd")
}

func (dpapi) unseal(sealed []byte) ([]byte, error) { return conf.Unprotect(sealed, dpapiUse) }
