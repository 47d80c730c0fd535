package conf

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/windows"

	"sft"
)

// serviceDir is ServiceDir.
func serviceDir(path string) error {
	path = filepath.Clean(path)
	if !filepath.IsAbs(path) {
		return &sft.Error{Code: sft.Invalid, Msg: path + " is not a full path", Hint: "use a full path"}
	}
	for _, dir := range above(path) {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			if _, serr := os.Lstat(dir); serr != nil { // else Windows' own, which is not ours to make
				return err
			}
		}
		if err := checkNoLink(dir); err != nil {
			return err
		}
	}
	if err := makeServiceDir(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return checkServiceDir(path)
}

// above lists the folders above path, from the one below the volume's root
// down.
func above(path string) (dirs []string) {
	root := filepath.VolumeName(path) + `\`
	for dir := filepath.Dir(path); len(dir) > len(root) && strings.HasPrefix(dir, root); dir = filepath.Dir(dir) {
		dirs = append([]string{dir}, dirs...)
	}
	return dirs
}

// makeServiceDir creates the folder with its list of rights, and with its
// label where the system takes that. The owner is the one that this process
// may name: the system itself, or the administrators.
func makeServiceDir(path string) error {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	owner := "O:BAG:BA"
	if me, err := ownSID(); err == nil && me == sidSystem {
		owner = "O:SYG:SY"
	}
	var last error
	for _, sddl := range []string{owner + serviceDirACL + serviceDirLabel, owner + serviceDirACL, serviceDirACL} {
		sa, err := attributes(sddl)
		if err == nil {
			err = windows.CreateDirectory(name, sa)
		}
		if err == nil {
			return nil
		}
		last = &fs.PathError{Op: "mkdir", Path: path, Err: err}
		if errors.Is(err, fs.ErrExist) {
			return last
		}
	}
	return last
}

// openDir opens a folder, or a link in its place, without following it.
func openDir(path string, access uint32) (windows.Handle, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, err
	}
	h, err := windows.CreateFile(name, access, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE, nil, windows.OPEN_EXISTING,
		windows.FILE_FLAG_BACKUP_SEMANTICS|windows.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	if err != nil {
		return 0, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return h, nil
}

// checkNoLink refuses what is not a folder, or only points to one.
func checkNoLink(path string) error {
	h, err := openDir(path, windows.FILE_READ_ATTRIBUTES)
	if err != nil {
		return err
	}
	defer windows.CloseHandle(h)
	return plainDir(path, h)
}

func plainDir(path string, h windows.Handle) error {
	var i windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(h, &i); err != nil {
		return &fs.PathError{Op: "look at", Path: path, Err: err}
	}
	switch {
	case i.FileAttributes&windows.FILE_ATTRIBUTE_REPARSE_POINT != 0:
		return errPlanted(path, "is a junction or another kind of link")
	case i.FileAttributes&windows.FILE_ATTRIBUTE_DIRECTORY == 0:
		return errPlanted(path, "is not a folder")
	}
	return nil
}

// checkServiceDir refuses a folder that is not the service's own. All of it
// is done by one handle: what was looked at is what is used.
func checkServiceDir(path string) error {
	h, err := openDir(path, windows.READ_CONTROL|windows.WRITE_DAC|windows.FILE_READ_ATTRIBUTES)
	if err != nil {
		return err
	}
	defer windows.CloseHandle(h)
	if err := plainDir(path, h); err != nil {
		return err
	}
	v, err := judgeHandle(h)
	for _, set := range []func(windows.Handle) error{passACL, setACL} {
		if err == nil && v == readable {
			if err = set(h); err == nil {
				v, err = judgeHandle(h)
			}
		}
	}
	switch {
	case err != nil:
		return &fs.PathError{Op: "look at", Path: path, Err: err}
	case v == planted:
		return errPlanted(path, "belongs to another user, or others can write in it")
	case v == readable:
		return errPlanted(path, "can be read by others, and that could not be ended")
	}
	return nil
}

func judgeHandle(h windows.Handle) (verdict, error) {
	sd, err := windows.GetSecurityInfo(h, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return planted, err
	}
	r, err := rightsOf(sd)
	if err != nil {
		return planted, err
	}
	trusted, err := trustedSIDs()
	if err != nil {
		return planted, err
	}
	return r.judge(trusted...), nil
}

// trustedSIDs are the accounts that are trusted beside the system and the
// administrators: this one, and the machine's Administrator, who owns what a
// script has made where Windows does not give that to the administrators.
func trustedSIDs() ([]string, error) {
	me, err := ownSID()
	if err != nil {
		return nil, err
	}
	if a, err := administratorSID(); err == nil { // a domain controller has none
		return []string{me, a}, nil
	}
	return []string{me}, nil
}

// administratorSID is the SID of the machine's own Administrator, of whatever
// name.
func administratorSID() (string, error) {
	name, err := windows.ComputerName()
	if err != nil {
		return "", err
	}
	machine, _, kind, err := windows.LookupSID("", name)
	if err != nil {
		return "", err
	}
	if kind != windows.SidTypeDomain {
		return "", windows.ERROR_NONE_MAPPED
	}
	sid, err := windows.CreateWellKnownDomainSid(windows.WinAccountAdministratorSid, machine)
	if err != nil {
		return "", err
	}
	return sid.String(), nil
}

// passACL gives an existing folder, and what is in it, the rights that a new
// one has.
func passACL(h windows.Handle) error {
	sd, err := windows.SecurityDescriptorFromString(serviceDirACL)
	if err != nil {
		return err
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		return err
	}
	return windows.SetSecurityInfo(h, windows.SE_FILE_OBJECT, serviceDACL, nil, nil, dacl, nil)
}

// setACL is passACL for the folder alone, where the system has made something
// else of what it was given.
func setACL(h windows.Handle) error {
	sd, err := windows.SecurityDescriptorFromString(serviceDirACL)
	if err != nil {
		return err
	}
	return windows.SetKernelObjectSecurity(h, serviceDACL, sd)
}

const serviceDACL = windows.DACL_SECURITY_INFORMATION | windows.PROTECTED_DACL_SECURITY_INFORMATION

// CheckProgram refuses a program that others than the administrators and this
// account could replace: in itself, in its folder, or by another folder in the
// place of one above it. A service that is started from there would be
// anybody's.
func CheckProgram(path string) error {
	trusted, err := trustedSIDs()
	if err != nil {
		return err
	}
	dirs := above(path)
	for _, dir := range dirs {
		// Whose link it is, is not looked at: the way is to be plain.
		if err := checkNoLink(dir); err != nil {
			return err
		}
	}
	if len(dirs) == 0 { // the volume's root is its folder
		dirs = []string{filepath.Dir(path)}
	}
	for _, p := range append(dirs, path) {
		sd, err := windows.GetNamedSecurityInfo(p, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
		if err != nil {
			return &fs.PathError{Op: "look at", Path: p, Err: err}
		}
		r, err := rightsOf(sd)
		if err != nil {
			return &fs.PathError{Op: "look at", Path: p, Err: err}
		}
		if r.judge(trusted...) == planted {
			return &sft.Error{Code: sft.Denied, Msg: p + " can be changed by others than administrators", Hint: `copy the program to a folder below C:\Program Files, and run it there`}
		}
	}
	return nil
}
