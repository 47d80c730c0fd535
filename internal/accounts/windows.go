package accounts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"sft"
	"sft/internal/conf"
)

// The statuses that decide what is done next (Microsoft's pages of each call,
// lmerr.h and winerror.h).
const (
	winFileNotFound   = 2
	winAccessDenied   = 5
	winBadPassword    = 86   // ERROR_INVALID_PASSWORD: the old one is another
	winAccountExists  = 1316 // ERROR_USER_EXISTS
	winRestriction    = 1327 // ERROR_ACCOUNT_RESTRICTION
	winPassExpired    = 1330
	winDisabled       = 1331
	winNoGroup        = 1376 // ERROR_NO_SUCH_ALIAS
	winNotMember      = 1377
	winMember         = 1378
	winGroupExists    = 1379
	winLockedOut      = 1909
	nerrGroupNotFound = 2220
	nerrUserNotFound  = 2221
	nerrGroupExists   = 2223
	nerrUserExists    = 2224
	nerrPasswordShort = 2245 // too short, too plain, too young or used before
)

// winTexts says what a status means, where an administrator may meet it.
var winTexts = map[uint32]string{
	winAccessDenied:   "access denied; run sftd as the service",
	winBadPassword:    "the old password is another one",
	winRestriction:    "the account is restricted",
	winPassExpired:    "the password has expired",
	winDisabled:       "the account is disabled",
	winLockedOut:      "the account is locked out",
	nerrUserNotFound:  "there is no such account",
	nerrUserExists:    "there is an account of that name",
	nerrGroupExists:   "there is a group of that name",
	nerrPasswordShort: "the password policy of this host refuses the password",
}

// A winError is the refusal of one call.
type winError struct {
	call string
	code uint32
}

func (e *winError) Error() string {
	if t := winTexts[e.code]; t != "" {
		return fmt.Sprintf("%s: %s (status %d)", e.call, t, e.code)
	}
	return fmt.Sprintf("%s: status %d; look it up with net helpmsg %d", e.call, e.code, e.code)
}

// winStatus returns the status in err, or 0.
func winStatus(err error) uint32 {
	if e, ok := errors.AsType[*winError](err); ok {
		return e.code
	}
	return 0
}

// winIgnore is err, or nil where its status is one of codes.
func winIgnore(err error, codes ...uint32) error {
	if c := winStatus(err); c != 0 && slices.Contains(codes, c) {
		return nil
	}
	return err
}

// The flags of an account (page USER_INFO_1008).
const (
	ufScript         = 0x1 // must be set
	ufAccountDisable = 0x2
	ufLockout        = 0x10
	ufCantChange     = 0x40
	ufNormalAccount  = 0x200
	ufDontExpire     = 0x10000

	winOpen = ufScript | ufNormalAccount | ufDontExpire | ufCantChange
	winRest = winOpen | ufAccountDisable
)

// The times at which an account expires, in seconds since 1970.
const (
	winForever = 1<<32 - 1 // TIMEQ_FOREVER: never; not left on an account that is open
	winEnded   = 86400     // long ago: the mark of an account that has ended
	winPast    = 2 * 86400 // long ago too, and no mark
)

// winLease is for how long an open account outlives the agent that opened it.
const winLease = 10 * time.Minute

// The groups that Windows itself has, by SID: their names differ by language.
const (
	sidAdministrators = "S-1-5-32-544"
	sidUsers          = "S-1-5-32-545"
	sidRemoteDesktop  = "S-1-5-32-555"
)

// winGroup is the local group that marks an account as ours.
const (
	winGroup        = "sft-users"
	winGroupComment = "Accounts made by sftd. Do not add others."
)

// A winUser is one local account (page USER_INFO_4).
type winUser struct {
	name, fullName, comment string
	flags, expires          uint32
	sid                     string
}

// A winSession is one session of Remote Desktop Services with somebody in it.
type winSession struct {
	id           uint32
	user, domain string
	began        time.Time // signed in or, later than that, connected again
}

// winTime is a time of Windows, in 100 ns since 1601 (page FILETIME). 0 is none.
func winTime(t int64) time.Time {
	if t <= 0 {
		return time.Time{}
	}
	return time.Unix(t/1e7-11_644_473_600, t%1e7*100)
}

// A winProcess is one process with the SID of the account it runs as.
type winProcess struct {
	pid uint32
	sid string
}

// A winPolicy is what NetUserModalsGet tells about passwords.
type winPolicy struct {
	minLength int
	minAge    time.Duration
}

// A winCalls is Windows: one method per call, without any decision. Refusals
// are winErrors.
type winCalls interface {
	controller() (bool, error)
	computer() (string, error)
	users() ([]string, error)
	user(name string) (winUser, error)
	addUser(name, comment string, flags uint32, password sft.Secret) error
	deleteUser(name string) error
	setPassword(name string, password sft.Secret) error // a reset
	changePassword(name string, old, next sft.Secret) error
	setFlags(name string, flags uint32) error
	setFullName(name, fullName string) error
	setComment(name, comment string) error
	setExpiry(name string, at uint32) error
	policy() (winPolicy, error)
	groupName(sid string) (string, error)
	addGroup(name, comment string) error
	members(group string) ([]string, error) // SIDs
	addMember(group, sid string) error
	removeMember(group, sid string) error
	sessions() ([]winSession, error)
	logoff(session uint32) error
	processes() ([]winProcess, error)
	endProcess(p winProcess) error // nil when it is gone, or another's by now
	deleteProfile(sid string) error
}

// A sealer keeps secrets so that only this machine can read them.
type sealer interface {
	seal(plain []byte) ([]byte, error)
	unseal(sealed []byte) ([]byte, error)
}

// A windowsBackend is the local accounts of Windows.
//
// An account at rest is disabled. Its password is a random one all the same,
// so that somebody who enables it by hand opens it to nobody.
//
// Windows keeps what a person has saved (passwords in the browser, keys,
// encrypted files) under a key that a change of password carries along and a
// reset does not. So each new password is set by a change with the last one,
// which is kept sealed in the state folder. The one that is about to be set is
// written there too before it is set: after a crash either may be the one in
// force, and both are tried.
type windowsBackend struct {
	os      winCalls
	sealer  sealer
	dir     string // of the sealed passwords
	onReset func(login string)
	now     func() time.Time
	poll    time.Duration
	patient time.Duration // how long Logoff waits
}

func newWindowsBackend(os winCalls, s sealer, dir string, onReset func(string)) *windowsBackend {
	if onReset == nil {
		onReset = func(string) {}
	}
	return &windowsBackend{os: os, sealer: s, dir: filepath.Join(dir, "passwords"), onReset: onReset,
		now: time.Now, poll: 100 * time.Millisecond, patient: 30 * time.Second}
}

// winComment is what an account of ours says about itself. A mark is there
// while the account is being made.
func winComment(uid, gid int, mark string) string {
	s := fmt.Sprintf("made by sftd; uid %d; gid %d", uid, gid)
	if mark != "" {
		s += "; " + mark
	}
	return s
}

var winCommentRE = regexp.MustCompile(`^made by sftd; uid ([1-9][0-9]{0,9}); gid ([1-9][0-9]{0,9})(?:; (sft-new-[A-Z2-7]{1,64}))?$`)

// parseWinComment reads what winComment wrote; all is zero for any other text.
func parseWinComment(s string) (uid, gid int, mark string) {
	m := winCommentRE.FindStringSubmatch(s)
	if m == nil {
		return 0, 0, ""
	}
	uid, err1 := strconv.Atoi(m[1])
	gid, err2 := strconv.Atoi(m[2])
	if err1 != nil || err2 != nil || uid > maxID || gid > maxID {
		return 0, 0, ""
	}
	return uid, gid, m[3]
}

// ordinarySID reports whether sid is a local account's that somebody made: the
// built-in ones (Administrator 500, Guest 501, 503, 504) are below 1000.
func ordinarySID(sid string) bool {
	if !strings.HasPrefix(sid, "S-1-5-21-") || strings.Count(sid, "-") != 7 {
		return false
	}
	rid, err := strconv.ParseUint(sid[strings.LastIndexByte(sid, '-')+1:], 10, 32)
	return err == nil && rid >= 1000
}

// lowerASCII makes small letters of the capitals A to Z: Windows does not tell
// them apart, and other letters cannot be in a login.
func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// Read implements Backend. The names come in small letters, since Alice and
// alice are one account to Windows.
func (w *windowsBackend) Read(_ context.Context, _ []string) (Host, error) {
	h := Host{Check: sft.CheckWindowsLogin}
	if dc, err := w.os.controller(); err != nil {
		return h, err
	} else if dc {
		return h, &sft.Error{Code: sft.Denied, Msg: "this host is a domain controller, which has no local accounts",
			Hint: "remove sftd from it; reach it with accounts of the domain"}
	}
	ours, err := w.os.members(winGroup)
	if err = winIgnore(err, nerrGroupNotFound, winNoGroup); err != nil {
		return h, err
	}
	name, err := w.os.groupName(sidAdministrators)
	if err != nil {
		return h, err
	}
	admins, err := w.os.members(name)
	if err != nil {
		return h, err
	}
	names, err := w.os.users()
	if err != nil {
		return h, err
	}
	for _, n := range names {
		u, err := w.os.user(n)
		if winStatus(err) == nerrUserNotFound {
			continue // deleted this moment
		} else if err != nil {
			return h, err
		}
		a := Account{Login: lowerASCII(u.name), ID: u.sid, FullName: u.fullName,
			Member: ordinarySID(u.sid) && slices.Contains(ours, u.sid), Admin: slices.Contains(admins, u.sid),
			Enabled: u.flags&ufAccountDisable == 0, Expired: u.expires == winEnded, Aging: u.expires == winEnded}
		if ordinarySID(u.sid) {
			var mark string
			if a.UID, a.GID, mark = parseWinComment(u.comment); mark != "" {
				a.FullName = mark
			}
		}
		h.Accounts = append(h.Accounts, a)
	}
	return h, nil
}

// again reads a once more and makes sure that it is still what it was.
func (w *windowsBackend) again(a Account) (winUser, error) {
	u, err := w.os.user(a.Login)
	if err != nil {
		return u, err
	}
	if u.sid != a.ID || !ordinarySID(u.sid) {
		return u, fmt.Errorf("account %s changed meanwhile; look for another program that changes accounts", a.Login)
	}
	return u, nil
}

// Prepare implements Backend.
func (w *windowsBackend) Prepare(context.Context) error {
	_, err := w.os.members(winGroup)
	if c := winStatus(err); c == nerrGroupNotFound || c == winNoGroup {
		err = winIgnore(w.os.addGroup(winGroup, winGroupComment), winGroupExists, nerrGroupExists)
	}
	if err != nil {
		return fmt.Errorf("make group %s: %w", winGroup, err)
	}
	return nil
}

// PrepareAdmin implements Backend: Windows has its administrators' group.
func (w *windowsBackend) PrepareAdmin(context.Context) error { return nil }

// Create implements Backend. The account is disabled from the call that makes
// it, and its comment carries the mark from that call on.
func (w *windowsBackend) Create(_ context.Context, want Want, mark string) (string, error) {
	if err := sft.CheckWindowsLogin(want.Login); err != nil {
		return "", err
	}
	pw := NewPassword(want.Login, want.FullName)
	if err := w.keep(want.Login, kept{Passwords: []string{pw.Reveal()}, Rest: true, Fresh: true}); err != nil {
		return "", err
	}
	switch err := w.os.addUser(want.Login, winComment(want.UID, want.GID, mark), winRest, pw); winStatus(err) {
	case 0:
		if err != nil {
			return "", err
		}
	case nerrUserExists, nerrGroupExists, winAccountExists, winGroupExists:
		return "", &sft.Error{Code: sft.Conflict, Msg: fmt.Sprintf("make account %s: %v", want.Login, err), Err: errors.Join(err, ClashName),
			Hint: "rename or remove it on this host, or give the person another login"}
	default:
		return "", fmt.Errorf("make account %s: %w", want.Login, w.refused(err))
	}
	u, err := w.os.user(want.Login)
	if err != nil {
		return "", err
	}
	if !ordinarySID(u.sid) {
		return "", fmt.Errorf("make account %s: it has the SID %.100q; look for a program that rewrites accounts", want.Login, u.sid)
	}
	return u.sid, w.join(winGroup, u.sid)
}

// join puts the account into a group, unless it is there.
func (w *windowsBackend) join(group, sid string) error {
	have, err := w.os.members(group)
	if err == nil && !slices.Contains(have, sid) {
		err = winIgnore(w.os.addMember(group, sid), winMember)
	}
	if err != nil {
		return fmt.Errorf("add to group %s: %w", group, err)
	}
	return nil
}

// joinSID is join with a group of Windows.
func (w *windowsBackend) joinSID(group, sid string) error {
	name, err := w.os.groupName(group)
	if err != nil {
		return err
	}
	return w.join(name, sid)
}

// setAdmin puts the account into the administrators or takes it out.
func (w *windowsBackend) setAdmin(sid string, admin bool) error {
	if admin {
		return w.joinSID(sidAdministrators, sid)
	}
	name, err := w.os.groupName(sidAdministrators)
	if err != nil {
		return err
	}
	have, err := w.os.members(name)
	if err == nil && slices.Contains(have, sid) {
		err = winIgnore(w.os.removeMember(name, sid), winNotMember)
	}
	if err != nil {
		return fmt.Errorf("remove from group %s: %w", name, err)
	}
	return nil
}

// Update implements Backend. The comment goes last: the mark in it says that
// the account is not complete.
func (w *windowsBackend) Update(_ context.Context, a Account, want Want) error {
	u, err := w.again(a)
	if err != nil {
		return err
	}
	if u.fullName != want.FullName {
		if err := w.os.setFullName(u.name, want.FullName); err != nil {
			return err
		}
	}
	if err := w.setAdmin(u.sid, want.Admin); err != nil {
		return err
	}
	if u.expires == winEnded {
		if err := w.os.setExpiry(u.name, winPast); err != nil {
			return err
		}
	}
	if c := winComment(want.UID, want.GID, ""); u.comment != c {
		return w.os.setComment(u.name, c)
	}
	return nil
}

// Enable implements Backend. Everything else comes first, so that the account
// opens complete: it expires by itself when the agent does not keep it alive,
// and it is in the groups that policies may have taken it from.
func (w *windowsBackend) Enable(_ context.Context, a Account, password sft.Secret) error {
	u, err := w.again(a)
	if err != nil {
		return err
	}
	if err := w.lease(u.name); err != nil {
		return err
	}
	for _, g := range []string{sidUsers, sidRemoteDesktop} {
		if err := w.joinSID(g, u.sid); err != nil {
			return err
		}
	}
	if u.flags&ufLockout != 0 {
		if err := w.os.setFlags(u.name, winOpen|u.flags&ufAccountDisable); err != nil {
			return err
		}
	}
	reset, err := w.newPassword(u, password, false)
	if err != nil {
		return w.refused(err)
	}
	if err := w.os.setFlags(u.name, winOpen); err != nil {
		return err
	}
	if reset {
		w.onReset(a.Login)
	}
	now, err := w.again(a)
	if err != nil {
		return err
	}
	if now.flags&(ufAccountDisable|ufLockout) != 0 || now.expires == winForever {
		return fmt.Errorf("account %s is shut again, or will never expire, though it was just opened; look for another program that changes accounts", a.Login)
	}
	return nil
}

// lease makes the account expire a while from now.
func (w *windowsBackend) lease(name string) error {
	return w.os.setExpiry(name, uint32(w.now().Add(winLease).Unix()))
}

// KeepAlive implements Keeper.
func (w *windowsBackend) KeepAlive(_ context.Context, a Account) error {
	u, err := w.again(a)
	if err != nil || u.flags&ufAccountDisable != 0 {
		return err
	}
	return w.lease(u.name)
}

// newPassword sets a password, by a change with the last one where that is
// known and Windows lets it, and by a reset otherwise, which it tells. With
// resting nothing is reset: the account is disabled, the next Enable sets a
// password anyway, and what the person has saved outlives a policy that lets
// passwords be changed once a day. A reset of an account that was never open is
// not told: nothing can have been saved.
func (w *windowsBackend) newPassword(u winUser, next sft.Secret, resting bool) (reset bool, err error) {
	k, err := w.kept(u)
	if err != nil {
		return false, err
	}
	old := k.Passwords
	k.SID, k.Passwords, k.Rest = u.sid, append(slices.Clone(old), next.Reveal()), false
	if len(k.Passwords) > maxKept {
		k.Passwords = k.Passwords[len(k.Passwords)-maxKept:]
	}
	if err := w.keep(lowerASCII(u.name), k); err != nil {
		return false, err
	}
	done := kept{SID: u.sid, Passwords: []string{next.Reveal()}, Rest: resting, Fresh: k.Fresh && resting}
	changed := false
	for _, p := range old {
		if err = w.change(u, sft.NewSecret(p), next, resting); err == nil {
			changed = true
			break
		}
		if winStatus(err) != winBadPassword {
			break
		}
	}
	if !changed && resting {
		done.Passwords = old // one of these is in force still
		return false, w.keep(lowerASCII(u.name), done)
	}
	if !changed {
		if err := w.os.setPassword(u.name, next); err != nil {
			if winStatus(err) == nerrPasswordShort {
				// Not set, for sure. It must not push out the one in force,
				// however often this happens.
				k.Passwords = old
				err = errors.Join(err, w.keep(lowerASCII(u.name), k))
			}
			return false, err
		}
	}
	return !changed && !k.Fresh, w.keep(lowerASCII(u.name), done)
}

// change is changePassword, tried again on an account that lets it: Windows
// may refuse the change of one that is disabled, locked out by the tries
// before, or may not change its own. Enable opens the account in a moment
// anyway; one that rests stays as it is.
func (w *windowsBackend) change(u winUser, old, next sft.Secret, resting bool) error {
	err := w.os.changePassword(u.name, old, next)
	switch winStatus(err) {
	case winAccessDenied, winDisabled, winRestriction, winLockedOut:
	default:
		return err
	}
	if resting {
		return err
	}
	if err := w.os.setFlags(u.name, winOpen&^ufCantChange); err != nil {
		return err
	}
	return w.os.changePassword(u.name, old, next)
}

// refused tells a refusal by the password policy so that somebody can act.
func (w *windowsBackend) refused(err error) error {
	if winStatus(err) != nerrPasswordShort {
		return err
	}
	msg := "the password policy of this host refuses a random password of 64 characters"
	if p, err := w.os.policy(); err == nil {
		msg += fmt.Sprintf(" (it asks for %d characters, and for %v between changes)", p.minLength, p.minAge)
	}
	return &sft.Error{Code: sft.Unavailable, Msg: msg, Err: err,
		Hint: "look at the password policy and at password filters on this host, then try again"}
}

// Rest implements Backend.
func (w *windowsBackend) Rest(_ context.Context, a Account) error {
	u, err := w.again(a)
	if err != nil {
		return err
	}
	if u.flags&ufAccountDisable == 0 {
		if err := w.os.setFlags(u.name, winRest); err != nil {
			return err
		}
	}
	if k, err := w.kept(u); err != nil || k.Rest || len(k.Passwords) == 0 {
		return err
	}
	_, err = w.newPassword(u, NewPassword(a.Login, u.fullName), true)
	return err
}

// End implements Backend.
func (w *windowsBackend) End(ctx context.Context, a Account) error {
	err := w.Rest(ctx, a)
	u, again := w.again(a)
	if again != nil {
		return errors.Join(err, again)
	}
	if u.expires != winEnded {
		err = errors.Join(err, w.os.setExpiry(u.name, winEnded))
	}
	return errors.Join(err, w.setAdmin(u.sid, false))
}

// Delete implements Backend.
func (w *windowsBackend) Delete(_ context.Context, a Account, home bool) error {
	if a.UID < minID || sft.CheckServerLogin(a.Login) != nil || a.ID != "" && !ordinarySID(a.ID) {
		return fmt.Errorf("delete account %s: it is not one that sftd makes; look at the record of accounts", a.Login)
	}
	u, err := w.os.user(a.Login)
	there := err == nil
	if err := winIgnore(err, nerrUserNotFound); err != nil {
		return err
	}
	if there && u.sid != a.ID {
		return nil // somebody else's by now
	}
	if home && a.ID != "" {
		if err := winIgnore(w.os.deleteProfile(a.ID), winFileNotFound); err != nil {
			return fmt.Errorf("delete the profile of %s: %w; restart the host if something holds it open", a.Login, err)
		}
	}
	if there {
		if err := winIgnore(w.os.deleteUser(a.Login), nerrUserNotFound); err != nil {
			return fmt.Errorf("delete account %s: %w", a.Login, err)
		}
	}
	if err := os.Remove(w.file(a.Login)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// own returns the sessions of a.
func (w *windowsBackend) own(a Account) ([]winSession, error) {
	name, err := w.os.computer()
	if err != nil {
		return nil, err
	}
	all, err := w.os.sessions()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(s winSession) bool {
		return lowerASCII(s.user) != a.Login || !strings.EqualFold(s.domain, name)
	}), nil
}

// Logoff implements Backend. Processes without a session, of a service or a
// task, are ended when the sessions are gone.
func (w *windowsBackend) Logoff(ctx context.Context, a Account) error {
	if _, err := w.again(a); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, w.patient)
	defer cancel()
	asked := map[uint32]bool{}
	var last error // a process that ends by itself refuses to be ended: it is looked for again
	for {
		left, err := w.own(a)
		if err != nil {
			return err
		}
		for _, s := range left {
			if !asked[s.id] {
				if err := winIgnore(w.os.logoff(s.id), winFileNotFound); err != nil {
					return err
				}
				asked[s.id] = true
			}
		}
		var ps []winProcess
		if len(left) == 0 {
			if ps, err = w.os.processes(); err != nil {
				return err
			}
			ps = slices.DeleteFunc(ps, func(p winProcess) bool { return p.sid != a.ID })
			for _, p := range ps {
				if err := w.os.endProcess(p); err != nil {
					last = err
				}
			}
			if len(ps) == 0 {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d sessions and %d processes of %s are left: %w; log them off in Task Manager", len(left), len(ps), a.Login, errors.Join(ctx.Err(), last))
		case <-time.After(w.poll):
		}
	}
}

// SignedInSince implements Backend. Who connects to a session of before is
// signed in too.
func (w *windowsBackend) SignedInSince(_ context.Context, a Account, t time.Time) (bool, error) {
	all, err := w.own(a)
	return slices.ContainsFunc(all, func(s winSession) bool { return s.began.After(t) }), err
}

// maxKept is how many passwords are kept of one account: one, and one more for
// each crash in the middle of setting it.
const maxKept = 8

// maxKeptFile is more than any file of kept passwords is long.
const maxKeptFile = 64 << 10

// A kept is what is sealed about one account.
type kept struct {
	SID       string   `json:"sid,omitempty"` // empty until the account has one
	Passwords []string `json:"passwords"`     // one of them is in force
	Rest      bool     `json:"rest"`          // the account was put to rest with them
	Fresh     bool     `json:"fresh"`         // the account was never open
}

func (w *windowsBackend) file(login string) string {
	return filepath.Join(w.dir, login+".sealed")
}

// keep seals k for login, in place of what was kept.
func (w *windowsBackend) keep(login string, k kept) error {
	if err := sft.CheckServerLogin(login); err != nil {
		return err
	}
	plain, err := json.Marshal(k)
	if err != nil {
		return err
	}
	defer clear(plain)
	sealed, err := w.sealer.seal(plain)
	if err == nil {
		err = os.MkdirAll(w.dir, 0o700)
	}
	if err == nil {
		err = conf.WriteSecret(w.file(login), sealed)
	}
	if err != nil {
		return fmt.Errorf("seal the password of %s: %w; make room on that disk, or let sftd write there", login, err)
	}
	return nil
}

// kept returns what was kept of the account. What is damaged, or is of an
// account that had the name before, is worth nothing: the next password is a
// reset. What is only out of reach for now is an error, since a reset would
// lose what the person has saved.
func (w *windowsBackend) kept(u winUser) (kept, error) {
	login := lowerASCII(u.name)
	if sft.CheckServerLogin(login) != nil {
		return kept{}, nil
	}
	sealed, err := readAtMost(w.file(login), maxKeptFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errTooLong) {
		return kept{}, &sft.Error{Code: sft.Unavailable, Msg: "read the kept password of " + login + ": " + err.Error(), Err: err,
			Hint: "try again; if it stays so, move the file away: what " + login + " has saved under the last password is lost then"}
	}
	if err != nil {
		return kept{}, nil
	}
	plain, err := w.sealer.unseal(sealed)
	if err != nil {
		return kept{}, nil
	}
	defer clear(plain)
	k, err := parseKept(plain)
	if err != nil || k.SID != "" && k.SID != u.sid {
		return kept{}, nil
	}
	return k, nil
}
