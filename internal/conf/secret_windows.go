package conf

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
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

// openNoFollow opens a reparse point itself, which is then not a file, and a
// folder, which is none either.
func openNoFollow(path string) (*os.File, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	h, err := windows.CreateFile(name, windows.GENERIC_READ, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE,
		nil, windows.OPEN_EXISTING, windows.FILE_FLAG_BACKUP_SEMANTICS|windows.FILE_FLAG_OPEN_REPARSE_POINT, 0)
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
	r, err := rightsOf(sd)
	if err != nil {
		return err
	}
	me, err := ownSID()
	if err != nil {
		return err
	}
	switch {
	case r.owner != me && r.owner != sidSystem && r.owner != sidAdministrators:
		return &sft.Error{Code: sft.Invalid, Msg: path + " belongs to another user",
			Hint: "run the program as the user it belongs to, or make the one that it runs as its owner, if you know what it is"}
	case r.judge(me) != asMade:
		return &sft.Error{Code: sft.Invalid, Msg: path + " can be read by others",
			Hint: "remove the other accounts from its permissions; if anybody else uses this machine, make another secret in its place, for a device by enrolling again"}
	}
	return nil
}

// rightsOf reads a security descriptor with an owner and a list of rights.
func rightsOf(sd *windows.SECURITY_DESCRIPTOR) (rights, error) {
	var r rights
	owner, _, err := sd.Owner()
	if err != nil {
		return r, err
	}
	if owner != nil {
		r.owner = owner.String()
	}
	dacl, _, err := sd.DACL()
	if errors.Is(err, windows.ERROR_OBJECT_NOT_FOUND) || err == nil && dacl == nil {
		r.all = true
		return r, nil
	}
	if err != nil {
		return r, err
	}
	for i := range dacl.AceCount {
		var ace *windows.ACCESS_ALLOWED_ACE
		if err := windows.GetAce(dacl, uint32(i), &ace); err != nil {
			return r, err
		}
		a := right{mask: uint32(ace.Mask), heir: ace.Header.AceFlags&windows.INHERIT_ONLY_ACE != 0}
		switch ace.Header.AceType {
		case windows.ACCESS_DENIED_ACE_TYPE:
			continue
		case windows.ACCESS_ALLOWED_ACE_TYPE:
			a.sid = (*windows.SID)(unsafe.Pointer(&ace.SidStart)).String()
		}
		r.allow = append(r.allow, a)
	}
	return r, nil
}

func ownSID() (string, error) {
	u, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return "", err
	}
	return u.User.Sid.String(), nil
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
	me, err := ownSID()
	if err != nil {
		return err
	}
	if owner != nil {
		switch owner.String() {
		case me, sidSystem, sidAdministrators:
			return nil
		}
	}
	return &sft.Error{Code: sft.Invalid, Msg: path + " belongs to another user",
		Hint: "run the program as the user it belongs to, or make the one that it runs as its owner, if you know what it is"}
}

// rename waits a little for those who look at each new file: scanners and
// backups. As long as they hold it, Windows does not replace it.
func rename(from, to string) error {
	for try := 0; ; try++ {
		err := os.Rename(from, to)
		busy := errors.Is(err, windows.ERROR_SHARING_VIOLATION) || errors.Is(err, windows.ERROR_ACCESS_DENIED)
		if i, serr := os.Lstat(to); !busy || try == 20 || serr == nil && i.IsDir() {
			return err
		}
		time.Sleep(25 * time.Millisecond)
	}
}

// syncDir does nothing: NTFS writes a rename to its own journal, and a folder
// cannot be flushed without administrator rights.
func syncDir(string) error { return nil }

func lock(f *os.File, wait, share bool) error {
	how := uint32(0)
	if !share {
		how = windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	if !wait {
		how |= windows.LOCKFILE_FAIL_IMMEDIATELY
	}
	err := windows.LockFileEx(windows.Handle(f.Fd()), how, 0, 1, 0, new(windows.Overlapped))
	if err == windows.ERROR_LOCK_VIOLATION {
		return ErrLocked
	}
	return err
}
