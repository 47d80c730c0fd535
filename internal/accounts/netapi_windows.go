package accounts

import (
	"errors"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"sft"
)

// winOS is winCalls on the Windows that this program runs on. Each method is
// named after what it does and documented by Microsoft's page of the call in
// it.
type winOS struct{}

var (
	netapi32 = windows.NewLazySystemDLL("netapi32.dll")
	wtsapi32 = windows.NewLazySystemDLL("wtsapi32.dll")
	userenv  = windows.NewLazySystemDLL("userenv.dll")

	procNetApiBufferFree               = netapi32.NewProc("NetApiBufferFree")
	procNetUserEnum                    = netapi32.NewProc("NetUserEnum")
	procNetUserGetInfo                 = netapi32.NewProc("NetUserGetInfo")
	procNetUserAdd                     = netapi32.NewProc("NetUserAdd")
	procNetUserDel                     = netapi32.NewProc("NetUserDel")
	procNetUserSetInfo                 = netapi32.NewProc("NetUserSetInfo")
	procNetUserChangePassword          = netapi32.NewProc("NetUserChangePassword")
	procNetUserModalsGet               = netapi32.NewProc("NetUserModalsGet")
	procNetLocalGroupAdd               = netapi32.NewProc("NetLocalGroupAdd")
	procNetLocalGroupGetMembers        = netapi32.NewProc("NetLocalGroupGetMembers")
	procNetLocalGroupAddMembers        = netapi32.NewProc("NetLocalGroupAddMembers")
	procNetLocalGroupDelMembers        = netapi32.NewProc("NetLocalGroupDelMembers")
	procDsRoleGetInfo                  = netapi32.NewProc("DsRoleGetPrimaryDomainInformation")
	procDsRoleFreeMemory               = netapi32.NewProc("DsRoleFreeMemory")
	procWTSQuerySessionInfo            = wtsapi32.NewProc("WTSQuerySessionInformationW")
	procWTSLogoffSession               = wtsapi32.NewProc("WTSLogoffSession")
	procWTSEnumerateProcesses          = wtsapi32.NewProc("WTSEnumerateProcessesW")
	procDeleteProfile                  = userenv.NewProc("DeleteProfileW")
	maxPreferred                uint32 = 0xffffffff // MAX_PREFERRED_LENGTH
)

// osError is a refusal told by an error number.
func osError(call string, err error) error {
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return &winError{call, uint32(e)}
	}
	return err
}

// net runs a call of netapi32, which returns its status. As with
// LazyProc.Call, pointers must be made numbers in its list of arguments.
//
//go:uintptrescapes
func net(p *windows.LazyProc, args ...uintptr) error {
	if err := p.Find(); err != nil {
		return err
	}
	if r, _, _ := p.Call(args...); r != 0 {
		return &winError{p.Name, uint32(r)}
	}
	return nil
}

// yes runs a call that returns TRUE when it has worked. As with
// LazyProc.Call, pointers must be made numbers in its list of arguments.
//
//go:uintptrescapes
func yes(p *windows.LazyProc, args ...uintptr) error {
	if err := p.Find(); err != nil {
		return err
	}
	if r, _, e := p.Call(args...); r == 0 {
		return osError(p.Name, e)
	}
	return nil
}

// free gives back what a call of netapi32 has allocated.
func free[T any](buf *T) {
	if buf != nil {
		procNetApiBufferFree.Call(uintptr(unsafe.Pointer(buf)))
	}
}

// wide makes a string for Windows. One with a NUL in it is refused.
func wide(s string) (*uint16, error) { return windows.UTF16PtrFromString(s) }

// secretWide is wide for a password, with what wipes it.
func secretWide(s sft.Secret) (*uint16, func(), error) {
	u, err := windows.UTF16FromString(s.Reveal())
	if err != nil {
		return nil, nil, errors.New("the password holds a NUL; make another")
	}
	return &u[0], func() { clear(u); runtime.KeepAlive(u) }, nil
}

// dsRolePrimaryDomainInfoBasic is DSROLE_PRIMARY_DOMAIN_INFO_BASIC.
type dsRolePrimaryDomainInfoBasic struct {
	machineRole                         uint32
	flags                               uint32
	domainFlat, domainDNS, domainForest *uint16
	domainGUID                          windows.GUID
}

func (winOS) controller() (bool, error) {
	var info *dsRolePrimaryDomainInfoBasic
	if err := net(procDsRoleGetInfo, 0, 1 /* DsRolePrimaryDomainInfoBasic */, uintptr(unsafe.Pointer(&info))); err != nil {
		return false, err
	}
	defer procDsRoleFreeMemory.Call(uintptr(unsafe.Pointer(info)))
	return info.machineRole >= 4, nil // DsRole_RoleBackupDomainController and ...Primary...
}

func (winOS) computer() (string, error) {
	n := uint32(windows.MAX_COMPUTERNAME_LENGTH + 1)
	b := make([]uint16, n)
	if err := windows.GetComputerName(&b[0], &n); err != nil {
		return "", osError("GetComputerName", err)
	}
	return windows.UTF16ToString(b), nil
}

// pages calls more until all is read, and free on each page. A call returns
// ERROR_MORE_DATA while there is more.
func pages[T any](call string, more func(buf **T, read, total *uint32) error, each func(*T) error) error {
	for {
		var buf *T
		var read, total uint32
		err := more(&buf, &read, &total)
		again := winStatus(err) == uint32(windows.ERROR_MORE_DATA)
		if err != nil && !again {
			free(buf)
			return err
		}
		var first error
		if buf != nil {
			for i := range unsafe.Slice(buf, read) {
				if first = each(&unsafe.Slice(buf, read)[i]); first != nil {
					break
				}
			}
			free(buf)
		}
		if first != nil || !again {
			return first
		}
		if read == 0 {
			return errors.New(call + " tells of more and returns none")
		}
	}
}

// userInfo0 is USER_INFO_0.
type userInfo0 struct{ name *uint16 }

func (winOS) users() ([]string, error) {
	var all []string
	var resume uint32
	err := pages("NetUserEnum", func(buf **userInfo0, read, total *uint32) error {
		return net(procNetUserEnum, 0, 0, 2 /* FILTER_NORMAL_ACCOUNT */, uintptr(unsafe.Pointer(buf)), uintptr(maxPreferred), uintptr(unsafe.Pointer(read)), uintptr(unsafe.Pointer(total)), uintptr(unsafe.Pointer(&resume)))
	}, func(u *userInfo0) error {
		all = append(all, windows.UTF16PtrToString(u.name))
		return nil
	})
	return all, err
}

// userInfo4 is USER_INFO_4.
type userInfo4 struct {
	name, password                                   *uint16
	passwordAge, priv                                uint32
	homeDir, comment                                 *uint16
	flags                                            uint32
	scriptPath                                       *uint16
	authFlags                                        uint32
	fullName, usrComment, parms, workstations        *uint16
	lastLogon, lastLogoff, expires, storage, perWeek uint32
	logonHours                                       *byte
	badPasswords, logons                             uint32
	logonServer                                      *uint16
	country, codePage                                uint32
	sid                                              *windows.SID
	primaryGroup                                     uint32
	profile, homeDrive                               *uint16
	passwordExpired                                  uint32
}

func (winOS) user(name string) (winUser, error) {
	n, err := wide(name)
	if err != nil {
		return winUser{}, err
	}
	var i *userInfo4
	if err := net(procNetUserGetInfo, 0, uintptr(unsafe.Pointer(n)), 4, uintptr(unsafe.Pointer(&i))); err != nil {
		return winUser{}, err
	}
	defer free(i)
	return winUser{name: windows.UTF16PtrToString(i.name), fullName: windows.UTF16PtrToString(i.fullName),
		comment: windows.UTF16PtrToString(i.comment), flags: i.flags, expires: i.expires, sid: i.sid.String()}, nil
}

// userInfo1 is USER_INFO_1.
type userInfo1 struct {
	name, password    *uint16
	passwordAge, priv uint32
	homeDir, comment  *uint16
	flags             uint32
	scriptPath        *uint16
}

func (winOS) addUser(name, comment string, flags uint32, password sft.Secret) error {
	n, err1 := wide(name)
	c, err2 := wide(comment)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	pw, wipe, err := secretWide(password)
	if err != nil {
		return err
	}
	defer wipe()
	i := userInfo1{name: n, password: pw, priv: 1 /* USER_PRIV_USER */, comment: c, flags: flags}
	return net(procNetUserAdd, 0, 1, uintptr(unsafe.Pointer(&i)), 0)
}

func (winOS) deleteUser(name string) error {
	n, err := wide(name)
	if err != nil {
		return err
	}
	return net(procNetUserDel, 0, uintptr(unsafe.Pointer(n)))
}

// set sets one property of an account. Each level from 1003 on is a structure
// of one member.
func set[T any](name string, level uintptr, member T) error {
	n, err := wide(name)
	if err != nil {
		return err
	}
	return net(procNetUserSetInfo, 0, uintptr(unsafe.Pointer(n)), level, uintptr(unsafe.Pointer(&member)), 0)
}

func setText(name string, level uintptr, text string) error {
	t, err := wide(text)
	if err != nil {
		return err
	}
	return set(name, level, t)
}

func (winOS) setPassword(name string, password sft.Secret) error {
	pw, wipe, err := secretWide(password)
	if err != nil {
		return err
	}
	defer wipe()
	return set(name, 1003, pw)
}

func (winOS) changePassword(name string, old, next sft.Secret) error {
	n, err := wide(name)
	if err != nil {
		return err
	}
	o, wipeOld, err := secretWide(old)
	if err != nil {
		return err
	}
	defer wipeOld()
	p, wipe, err := secretWide(next)
	if err != nil {
		return err
	}
	defer wipe()
	// A name is what the page wants: nil would be the domain that the caller
	// signed in to.
	computer, err := winOS{}.computer()
	if err != nil {
		return err
	}
	host, err := wide(`\\` + computer)
	if err != nil {
		return err
	}
	return net(procNetUserChangePassword, uintptr(unsafe.Pointer(host)), uintptr(unsafe.Pointer(n)), uintptr(unsafe.Pointer(o)), uintptr(unsafe.Pointer(p)))
}

func (winOS) setFlags(name string, flags uint32) error { return set(name, 1008, flags) }
func (winOS) setFullName(name, fullName string) error  { return setText(name, 1011, fullName) }
func (winOS) setComment(name, comment string) error    { return setText(name, 1007, comment) }
func (winOS) setExpiry(name string, at uint32) error   { return set(name, 1017, at) }

// userModalsInfo0 is USER_MODALS_INFO_0.
type userModalsInfo0 struct{ minLength, maxAge, minAge, forceLogoff, history uint32 }

func (winOS) policy() (winPolicy, error) {
	var i *userModalsInfo0
	if err := net(procNetUserModalsGet, 0, 0, uintptr(unsafe.Pointer(&i))); err != nil {
		return winPolicy{}, err
	}
	defer free(i)
	return winPolicy{minLength: int(i.minLength), minAge: time.Duration(i.minAge) * time.Second}, nil
}

func (winOS) groupName(sid string) (string, error) {
	s, err := windows.StringToSid(sid)
	if err != nil {
		return "", osError("ConvertStringSidToSid", err)
	}
	name, _, _, err := s.LookupAccount("")
	if err != nil {
		return "", osError("LookupAccountSid", err)
	}
	return name, nil
}

// localGroupInfo1 is LOCALGROUP_INFO_1.
type localGroupInfo1 struct{ name, comment *uint16 }

func (winOS) addGroup(name, comment string) error {
	n, err1 := wide(name)
	c, err2 := wide(comment)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	return net(procNetLocalGroupAdd, 0, 1, uintptr(unsafe.Pointer(&localGroupInfo1{n, c})), 0)
}

// localGroupMembersInfo0 is LOCALGROUP_MEMBERS_INFO_0.
type localGroupMembersInfo0 struct{ sid *windows.SID }

func (winOS) members(group string) ([]string, error) {
	g, err := wide(group)
	if err != nil {
		return nil, err
	}
	var all []string
	var resume uintptr
	err = pages("NetLocalGroupGetMembers", func(buf **localGroupMembersInfo0, read, total *uint32) error {
		return net(procNetLocalGroupGetMembers, 0, uintptr(unsafe.Pointer(g)), 0, uintptr(unsafe.Pointer(buf)), uintptr(maxPreferred), uintptr(unsafe.Pointer(read)), uintptr(unsafe.Pointer(total)), uintptr(unsafe.Pointer(&resume)))
	}, func(m *localGroupMembersInfo0) error {
		all = append(all, m.sid.String())
		return nil
	})
	return all, err
}

func member(p *windows.LazyProc, group, sid string) error {
	g, err := wide(group)
	if err != nil {
		return err
	}
	s, err := windows.StringToSid(sid)
	if err != nil {
		return osError("ConvertStringSidToSid", err)
	}
	return net(p, 0, uintptr(unsafe.Pointer(g)), 0, uintptr(unsafe.Pointer(&localGroupMembersInfo0{s})), 1)
}

func (winOS) addMember(group, sid string) error {
	return member(procNetLocalGroupAddMembers, group, sid)
}
func (winOS) removeMember(group, sid string) error {
	return member(procNetLocalGroupDelMembers, group, sid)
}

// wtsInfo is WTSINFOW.
type wtsInfo struct {
	state, id                                  uint32
	counts                                     [6]uint32
	station                                    [32]uint16
	domain                                     [17]uint16
	user                                       [21]uint16
	connected, disconnected, input, logon, now int64
}

func (winOS) sessions() ([]winSession, error) {
	var first *windows.WTS_SESSION_INFO
	var n uint32
	if err := windows.WTSEnumerateSessions(0, 0, 1, &first, &n); err != nil {
		return nil, osError("WTSEnumerateSessions", err)
	}
	defer windows.WTSFreeMemory(uintptr(unsafe.Pointer(first)))
	var all []winSession
	for _, s := range unsafe.Slice(first, n) {
		if s.State == windows.WTSIdle || s.State == windows.WTSListen {
			continue // nobody is ever in these, and they need not answer
		}
		var i *wtsInfo
		var size uint32
		err := yes(procWTSQuerySessionInfo, 0, uintptr(s.SessionID), 24 /* WTSSessionInfo */, uintptr(unsafe.Pointer(&i)), uintptr(unsafe.Pointer(&size)))
		if c := winStatus(err); c == winFileNotFound || c == 7022 { // ERROR_CTX_WINSTATION_NOT_FOUND: it has just ended
			continue
		} else if err != nil {
			return nil, err
		}
		if size < uint32(unsafe.Sizeof(*i)) {
			windows.WTSFreeMemory(uintptr(unsafe.Pointer(i)))
			return nil, errors.New("WTSQuerySessionInformation returned too little")
		}
		if user := windows.UTF16ToString(i.user[:]); user != "" {
			all = append(all, winSession{id: s.SessionID, user: user, domain: windows.UTF16ToString(i.domain[:]), began: winTime(max(i.logon, i.connected))})
		}
		windows.WTSFreeMemory(uintptr(unsafe.Pointer(i)))
	}
	return all, nil
}

func (winOS) logoff(session uint32) error {
	return yes(procWTSLogoffSession, 0, uintptr(session), 0)
}

// wtsProcessInfo is WTS_PROCESS_INFOW.
type wtsProcessInfo struct {
	session, pid uint32
	name         *uint16
	sid          *windows.SID
}

func (winOS) processes() ([]winProcess, error) {
	var first *wtsProcessInfo
	var n uint32
	if err := yes(procWTSEnumerateProcesses, 0, 0, 1, uintptr(unsafe.Pointer(&first)), uintptr(unsafe.Pointer(&n))); err != nil {
		return nil, err
	}
	defer windows.WTSFreeMemory(uintptr(unsafe.Pointer(first)))
	var all []winProcess
	for _, p := range unsafe.Slice(first, n) {
		if p.sid != nil {
			all = append(all, winProcess{p.pid, p.sid.String()})
		}
	}
	return all, nil
}

// endProcess looks at the owner of the very process that it ends: the number
// alone may be another's by now.
func (winOS) endProcess(p winProcess) error {
	h, err := windows.OpenProcess(windows.PROCESS_TERMINATE|windows.PROCESS_QUERY_LIMITED_INFORMATION, false, p.pid)
	if err == windows.ERROR_INVALID_PARAMETER {
		return nil // gone
	} else if err != nil {
		return osError("OpenProcess", err)
	}
	defer windows.CloseHandle(h)
	var t windows.Token
	if err := windows.OpenProcessToken(h, windows.TOKEN_QUERY, &t); err != nil {
		return osError("OpenProcessToken", err)
	}
	defer t.Close()
	u, err := t.GetTokenUser()
	if err != nil {
		return osError("GetTokenInformation", err)
	}
	if u.User.Sid.String() != p.sid {
		return nil
	}
	return osError("TerminateProcess", windows.TerminateProcess(h, 1))
}

func (winOS) deleteProfile(sid string) error {
	s, err := wide(sid)
	if err != nil {
		return err
	}
	return yes(procDeleteProfile, uintptr(unsafe.Pointer(s)), 0, 0)
}
