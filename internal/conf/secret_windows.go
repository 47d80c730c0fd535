package conf

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/windows"

	"sft"
)

// privateACL grants the file's owner, Local System and Administrators full
// access, everyone else none, and inherits nothing from the folder.
const privateACL = "D:P(A;;FA;;;OW)(A;;FA;;;SY)(A;;FA;;;BA)"

// privateDirACL is privateACL, passed on to what is made in the folder.
const privateDirACL = "D:P(A;OICI;FA;;;OW)(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"

func attributes(sddl string) (*windows.SecurityAttributes, error) {
	sd, err := windows.SecurityDescriptorFromString(sddl)
	if err != nil {
		return nil, err
	}
	return &windows.SecurityAttributes{Length: uint32(unsafe.Sizeof(windows.SecurityAttributes{})), SecurityDescriptor: sd}, nil
}

// createPrivate creates a new file in dir under privateACL. The ACL is given
// to the call that creates the file: one set afterwards would come too late.
func createPrivate(dir string) (*os.File, error) {
	sa, err := attributes(privateACL)
	if err != nil {
		return nil, err
	}
	return create(dir, sa)
}

func createShared(dir string, _ fs.FileMode) (*os.File, error) { return create(dir, nil) }

func create(dir string, sa *windows.SecurityAttributes) (*os.File, error) {
	for {
		var id windows.GUID
		id, err := windows.GenerateGUID()
		if err != nil {
			return nil, err
		}
		path := filepath.Join(dir, ".new-"+id.String())
		name, err := windows.UTF16PtrFromString(path)
		if err != nil {
			return nil, err
		}
		h, err := windows.CreateFile(name, windows.GENERIC_READ|windows.GENERIC_WRITE, 0, sa,
			windows.CREATE_NEW, windows.FILE_ATTRIBUTE_NORMAL, 0)
		if err == windows.ERROR_FILE_EXISTS {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "create", Path: path, Err: err}
		}
		return os.NewFile(uintptr(h), path), nil
	}
}

// openNoFollow opens a reparse point itself, which is then not a file.
func openNoFollow(path string) (*os.File, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	h, err := windows.CreateFile(name, windows.GENERIC_READ, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE,
		nil, windows.OPEN_EXISTING, windows.FILE_ATTRIBUTE_NORMAL|windows.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(h), path), nil
}

// checkPrivate refuses a file whose owner or list of rights names anybody but
// this account, Local System and the administrators.
func checkPrivate(f *os.File, _ fs.FileInfo) error {
	sd, err := windows.GetSecurityInfo(windows.Handle(f.Fd()), windows.SE_FILE_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return err
	}
	return checkDescriptor(f.Name(), sd)
}

func checkDescriptor(path string, sd *windows.SECURITY_DESCRIPTOR) error {
	open := &sft.Error{Code: sft.Invalid, Msg: path + " can be read by others",
		Hint: "remove the other accounts from its permissions; if anybody else uses this machine, enrol again"}
	trusted, err := trustedSIDs()
	if err != nil {
		return err
	}
	is := func(sid *windows.SID) bool {
		for _, t := range trusted {
			if sid.Equals(t) {
				return true
			}
		}
		return false
	}
	owner, _, err := sd.Owner()
	if err != nil {
		return err
	}
	if owner == nil || !is(owner) {
		return &sft.Error{Code: sft.Invalid, Msg: path + " belongs to another user",
			Hint: "remove it, or run the program as the user it belongs to"}
	}
	dacl, _, err := sd.DACL()
	if errors.Is(err, windows.ERROR_OBJECT_NOT_FOUND) || dacl == nil {
		return open // no list at all lets everybody in
	}
	if err != nil {
		return err
	}
	for i := range dacl.AceCount {
		var ace *windows.ACCESS_ALLOWED_ACE
		if err := windows.GetAce(dacl, uint32(i), &ace); err != nil {
			return err
		}
		if ace.Header.AceType == windows.ACCESS_DENIED_ACE_TYPE {
			continue
		}
		if ace.Header.AceType != windows.ACCESS_ALLOWED_ACE_TYPE || !is((*windows.SID)(unsafe.Pointer(&ace.SidStart))) {
			return open
		}
	}
	return nil
}

// trustedSIDs are this account, Local System, the administrators, and the
// name that a list of rights has for a file's owner.
func trustedSIDs() ([]*windows.SID, error) {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, err
	}
	sids := []*windows.SID{user.User.Sid}
	for _, kind := range []windows.WELL_KNOWN_SID_TYPE{windows.WinLocalSystemSid, windows.WinBuiltinAdministratorsSid, windows.WinCreatorOwnerRightsSid} {
		sid, err := windows.CreateWellKnownSid(kind)
		if err != nil {
			return nil, err
		}
		sids = append(sids, sid)
	}
	return sids, nil
}

func mkdirPrivate(path string) error {
	sa, err := attributes(privateDirACL)
	if err != nil {
		return err
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	if err := windows.CreateDirectory(name, sa); err != nil {
		return &fs.PathError{Op: "mkdir", Path: path, Err: err}
	}
	return nil
}

// checkOwnDir looks at the owner alone: the files in the folder have lists of
// their own.
func checkOwnDir(path string, _ fs.FileInfo) error {
	sd, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return err
	}
	owner, _, err := sd.Owner()
	if err != nil {
		return err
	}
	trusted, err := trustedSIDs()
	if err != nil {
		return err
	}
	for _, t := range trusted {
		if owner != nil && owner.Equals(t) {
			return nil
		}
	}
	return &sft.Error{Code: sft.Invalid, Msg: path + " belongs to another user",
		Hint: "remove it, or run the program as the user it belongs to"}
}

// syncDir does nothing: NTFS writes a rename to its own journal, and a folder
// cannot be flushed without administrator rights.
func syncDir(string) error { return nil }

func lock(f *os.File, wait bool) error {
	how := uint32(windows.LOCKFILE_EXCLUSIVE_LOCK)
	if !wait {
		how |= windows.LOCKFILE_FAIL_IMMEDIATELY
	}
	err := windows.LockFileEx(windows.Handle(f.Fd()), how, 0, 1, 0, new(windows.Overlapped))
	if err == windows.ERROR_LOCK_VIOLATION {
		return ErrLocked
	}
	return err
}
