package accounts

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"sft"
)

// An Account is one local account as the operating system has it.
type Account struct {
	Login    string
	ID       string // what the operating system knows it by: the uid in decimal, or the SID
	UID, GID int    // as the platform numbers them
	FullName string
	Home     string
	Member   bool // of the local group that marks our accounts
	Admin    bool // has the admin rights that we give
	Enabled  bool // something may match its password
	Expired  bool // the operating system refuses it, whatever is shown to it
	Aging    bool // it is expired, will be, or asks for a new password some day
}

// A Host is what Read found.
type Host struct {
	Accounts []Account       // every local account; a name may come twice where the files are damaged
	Groups   map[string]int  // gid of every local group; nil where groups have no numbers
	Homes    map[string]Home // the folders that new accounts would have, by login; nil where the system chooses

	// Check reports whether login is a name that we would give an account on
	// this operating system; nil is CheckLogin.
	Check func(login string) error
}

// checkLogin reports whether this host can have an account called login.
func (h Host) checkLogin(login string) error {
	if h.Check != nil {
		return h.Check(login)
	}
	return CheckLogin(login)
}

// A Home is what stands where a login's home belongs.
type Home struct {
	Path   string
	Exists bool
	Folder bool // a real one, no link
	UID    int  // its owner
}

// find returns the account of login; its Login is empty when there is none.
func (h Host) find(login string) Account {
	for _, a := range h.Accounts {
		if a.Login == login {
			return a
		}
	}
	return Account{}
}

// sharesID names another account with a's identity, if there is one.
func (h Host) sharesID(a Account) string {
	for _, b := range h.Accounts {
		if b.ID == a.ID && b.Login != a.Login {
			return b.Login
		}
	}
	return ""
}

// minID is the lowest uid and gid that we give: those below belong to the
// system. maxID is the highest that every file system and tool can hold.
const (
	minID = 1000
	maxID = 1<<31 - 2
)

// loginRE is what the account tools of every Linux accept.
var loginRE = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

// reserved are the names that carry rights on some system, as account or as
// the private group of one, even where that system's package is not installed
// yet: a person's own group "docker" would own the socket of a later Docker.
var reserved = strings.Fields(`
	root daemon bin sys sync games man lp mail news uucp proxy www-data backup list irc gnats nobody nogroup
	adm admin administrator administrators guest operator wheel sudo sudoers users staff shadow disk kmem tty
	tape utmp voice cdrom floppy dialout fax audio video render input plugdev netdev sgx kvm src sasl shutdown halt
	docker podman lxd lxc incus incus-admin libvirt libvirtd qemu libvirt-qemu vboxusers wireshark pcap
	crontab ssh sshd ssl-cert ssh_keys messagebus dbus polkitd uuidd tcpdump tss _apt _chrony _ssh avahi colord rtkit
	xrdp postgres mysql redis mongodb nginx apache named bind ntp chrony postfix postdrop dovecot ftp
	sftd sftd-broker sft-users sft-admin sft-platform scaleft`)

// CheckLogin reports whether login is a name that we would give an account on
// Linux.
func CheckLogin(login string) error {
	switch {
	case !loginRE.MatchString(login):
		return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("login %.40q cannot be an account name", login),
			Hint: "choose a login of 1 to 32 small letters, digits, - and _ that begins with a letter"}
	case slices.Contains(reserved, login), strings.HasPrefix(login, "systemd-"), strings.HasPrefix(login, "sft-"), strings.HasPrefix(login, "sft_"):
		return &sft.Error{Code: sft.Invalid, Msg: "login " + login + " is a name of the system",
			Hint: "choose another login for this person"}
	}
	return nil
}

// fullName makes of a person's name what the account database can hold: no
// separators, no control or direction characters, at most 200 bytes.
func fullName(s string) string {
	s = strings.ToValidUTF8(s, "")
	s = strings.Map(func(r rune) rune {
		if r == ':' || r == ',' || unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
			return -1
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	for len(s) > 200 {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return strings.TrimSpace(s)
}

// An action is what a step does to the host.
type action int

const (
	keep   action = iota // as wanted already
	create               // it is not there
	remake               // a crash left it half made
	update               // it differs
	end                  // no longer wanted: shut, expire, end processes
	remove               // end, then delete
	watch                // ended already: see that nothing of it runs
	forget               // in the record, and not ours any more
	refuse               // touch nothing
)

// A step is what to do about one login.
type step struct {
	login  string
	do     action
	want   Want
	have   Account // Login is empty when there is none
	entry  entry   // of the record, before the step
	home   bool    // remove: the home too
	half   bool    // remove: it was never whole
	change Change  // what to tell when it is done; empty when nobody asked
	err    error
}

// fail notes that part of the step was not done.
func (s *step) fail(err error) {
	if err != nil {
		s.change = Failed
		s.err = errors.Join(s.err, err)
	}
}

// decide compares the host, the record and the wants, and returns what to do,
// in order of login.
func decide(h Host, rec map[string]entry, wants []Want, lim Limits, deleteGone func(login string) bool) []*step {
	d := &decider{h: h, rec: rec, lim: lim, times: map[string]int{}, uids: map[int]string{}, gids: map[int]string{}}
	for _, a := range h.Accounts {
		if _, ok := d.uids[a.UID]; !ok {
			d.uids[a.UID] = a.Login
		}
	}
	for name, gid := range h.Groups {
		d.gids[gid] = name
	}
	// Whoever has an account here already goes first, so that a limit or a
	// clash among the wants does not end one person's access for a new one's.
	wants = slices.Clone(wants)
	slices.SortStableFunc(wants, func(a, b Want) int {
		return cmp.Or(cmp.Compare(d.rank(a), d.rank(b)), cmp.Compare(a.Login, b.Login))
	})
	for _, w := range wants {
		d.times[w.Login]++
	}
	var steps []*step
	for _, w := range wants {
		if d.times[w.Login] > 0 {
			steps = append(steps, d.wanted(w))
			d.times[w.Login] = 0 // named twice: told once
		}
	}
	for login := range rec {
		if _, ok := d.times[login]; !ok {
			steps = append(steps, d.gone(login, deleteGone(login)))
		}
	}
	for _, a := range h.Accounts {
		_, wanted := d.times[a.Login]
		if _, known := rec[a.Login]; a.Member && !wanted && !known {
			steps = append(steps, &step{login: a.Login, do: refuse, have: a, change: Conflict, err: &sft.Error{Code: sft.Conflict,
				Msg:  "account " + a.Login + " is in the group of our accounts, and neither the record nor the platform knows it",
				Hint: "delete it, or take it out of the group, on this host"}})
		}
	}
	slices.SortStableFunc(steps, func(a, b *step) int { return cmp.Compare(a.login, b.login) })
	return steps
}

// A decider holds the facts of one decision.
type decider struct {
	h     Host
	rec   map[string]entry
	lim   Limits
	times map[string]int // how often each login is wanted
	uids  map[int]string // who holds each uid, those about to be made too
	gids  map[int]string // the same for gids
	count int            // accounts granted so far
}

func (d *decider) rank(w Want) int {
	if d.rec[w.Login].owns(d.h.find(w.Login)) {
		return 0
	}
	return 1
}

// wanted decides about one login that the platform wants.
func (d *decider) wanted(w Want) *step {
	e, known := d.rec[w.Login]
	s := &step{login: w.Login, want: w, have: d.h.find(w.Login), entry: e}
	s.want.FullName = fullName(w.FullName)
	mine := known && e.owns(s.have)

	no := func(c Change, err error) *step {
		s.do, s.change, s.err = refuse, c, err
		if mine {
			s.do = end // what was granted before is granted no more
		}
		return s
	}
	if d.times[w.Login] > 1 {
		return no(Refused, &sft.Error{Code: sft.Invalid, Msg: "the platform wants account " + w.Login + " more than once",
			Hint: "give the people of this project different logins"})
	}
	if err := d.h.checkLogin(w.Login); err != nil {
		return no(Refused, err)
	}
	if w.UID < minID || w.UID > maxID || w.GID < minID || w.GID > maxID || nobody(w.UID) || nobody(w.GID) {
		return no(Refused, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("account %s cannot have uid %d and gid %d", w.Login, w.UID, w.GID),
			Hint: fmt.Sprintf("choose ids of at least %d that the system does not use", minID)})
	}
	if ok, err := d.lim.allows(w.Login); err != nil {
		return no(Refused, err)
	} else if !ok {
		return no(Refused, &sft.Error{Code: sft.Denied, Msg: "AllowedLogins in this host's sftd.yaml does not allow " + w.Login,
			Hint: "add the login there, or take the person's access to this server away"})
	}
	if d.lim.MaxUsers > 0 && d.count >= d.lim.MaxUsers {
		return no(Refused, &sft.Error{Code: sft.Denied, Msg: fmt.Sprintf("this host allows %d accounts, and account %s would be one more", d.lim.MaxUsers, w.Login),
			Hint: "raise MaxUsers in this host's sftd.yaml, or give fewer people access"})
	}

	adopt := !mine && s.have.Member && s.have.UID == w.UID && (!known || e.ID == "" || e.ID == s.have.ID)
	half := known && e.Mark != "" && s.have.FullName == e.Mark && !s.have.Member
	if s.have.Login != "" && !mine && !adopt && !half {
		return no(Conflict, foreign(w.Login))
	}
	if mine && s.have.UID != w.UID {
		return no(Conflict, &sft.Error{Code: sft.Conflict,
			Msg: fmt.Sprintf("account %s has uid %d here, and the platform says %d", w.Login, s.have.UID, w.UID), Err: ClashUID,
			Hint: "give the person the old uid, or save the files and delete the account on this host"})
	}
	if err := d.clash(s); err != nil {
		// Somebody changed the host under an account of ours: that is told,
		// and no reason to end what the person has running.
		s.do, s.change, s.err = refuse, Conflict, err
		return s
	}

	if s.want.Admin && !d.lim.AllowAdmin {
		s.want.Admin = false
		s.err = &sft.Error{Code: sft.Denied, Msg: "AllowAdmin in this host's sftd.yaml does not allow " + w.Login + " to be an administrator",
			Hint: "set AllowAdmin there, or take server_admin away"}
	}
	d.count++
	d.uids[w.UID], d.gids[w.GID] = w.Login, w.Login
	home := d.h.Homes[w.Login]
	switch {
	case s.have.Login == "":
		s.do, s.change = create, Created
	case half:
		s.do, s.change = remake, Created
	case s.have.FullName != s.want.FullName, s.have.GID != w.GID, s.have.Admin != s.want.Admin, s.have.Aging,
		e.Ended, home.Path != "" && home.Path == s.have.Home && !home.Exists:
		s.do, s.change = update, Updated
	default:
		s.do, s.change = keep, Kept
	}
	return s
}

// clash reports what on the host stands in the way of s.want.
func (d *decider) clash(s *step) error {
	w := s.want
	conflict := func(c Clash, msg string) error {
		return &sft.Error{Code: sft.Conflict, Msg: msg, Err: c,
			Hint: "rename or remove it on this host, or give the person another login or other ids"}
	}
	for n, a := range d.h.Accounts {
		switch {
		case a.Login == w.Login && slices.ContainsFunc(d.h.Accounts[:n], func(b Account) bool { return b.Login == w.Login }):
			return conflict(ClashName, "account "+w.Login+" is on this host twice")
		case a.Login != w.Login && a.UID == w.UID:
			return conflict(ClashUID, fmt.Sprintf("uid %d of account %s belongs to account %s here", w.UID, w.Login, a.Login))
		case a.Login != w.Login && a.Home != "" && a.Home == d.h.Homes[w.Login].Path:
			return conflict(ClashName, fmt.Sprintf("home %s of account %s belongs to account %s here", a.Home, w.Login, a.Login))
		}
	}
	if other, ok := d.uids[w.UID]; ok && other != w.Login {
		return conflict(ClashUID, fmt.Sprintf("uid %d of account %s goes to account %s", w.UID, w.Login, other))
	}
	if gid, ok := d.h.Groups[w.Login]; ok && gid != w.GID {
		return conflict(ClashName, fmt.Sprintf("group %s has gid %d here, not %d", w.Login, gid, w.GID))
	}
	if other, ok := d.gids[w.GID]; ok && other != w.Login {
		return conflict(ClashGID, fmt.Sprintf("gid %d of account %s belongs to group %s here", w.GID, w.Login, other))
	}
	home := d.h.Homes[w.Login]
	if s.have.Login != "" && s.have.Home != home.Path {
		return nil // the host's administrator moved it
	}
	if home.Exists && !home.Folder {
		return conflict(ClashName, home.Path+" is no folder")
	}
	if home.Exists && home.UID != w.UID {
		return conflict(ClashName, fmt.Sprintf("folder %s belongs to uid %d, not to uid %d of account %s", home.Path, home.UID, w.UID, w.Login))
	}
	return nil
}

// gone decides about one login of the record that nobody wants.
func (d *decider) gone(login string, deleteGone bool) *step {
	e := d.rec[login]
	s := &step{login: login, have: d.h.find(login), entry: e, do: forget}
	switch a := s.have; {
	case a.Login == "":
		// Deleted by a run that was cut short, or by somebody else.
		s.do, s.home = remove, deleteGone
	case e.Mark != "" && a.FullName == e.Mark && !a.Member:
		s.do, s.half = remove, true
	case !e.owns(a):
		// It was ours and was taken from us: let it be.
	case d.h.sharesID(a) != "":
		// Its processes and files cannot be told from the other's.
		s.do, s.change = end, Disabled
	case deleteGone:
		s.do, s.home, s.change = remove, true, Removed
	case !e.Ended || a.Enabled || a.Admin || !a.Expired:
		s.do, s.change = end, Disabled
	default:
		s.do = watch
	}
	return s
}

// allows reports whether the host's administrator lets login have an account.
func (l Limits) allows(login string) (bool, error) {
	if l.AllowedLogins == nil {
		return true, nil
	}
	for _, glob := range l.AllowedLogins {
		ok, err := path.Match(glob, login)
		if err != nil {
			return false, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("AllowedLogins in this host's sftd.yaml holds the bad pattern %.40q", glob),
				Hint: "correct the pattern; nobody is let in until then"}
		}
		if ok {
			return true, nil
		}
	}
	return false, nil
}

// foreign is the refusal to touch an account that is not ours.
func foreign(login string) error {
	return &sft.Error{Code: sft.Conflict, Msg: "account " + login + " of this host was not made by sftd", Err: ClashName,
		Hint: "rename or remove it on this host, or give the person another login"}
}

// nobody reports whether id is one that means no account, in 16 or 32 bits.
func nobody(id int) bool { return id == 65534 || id == 65535 }

// An entry is what the record holds about one account that we made.
type entry struct {
	ID    string `json:"id,omitempty"` // empty until it is known
	UID   int    `json:"uid"`
	GID   int    `json:"gid"`
	Mark  string `json:"mark,omitempty"`  // not empty while the account is being made: its full name until then
	Ended bool   `json:"ended,omitempty"` // no longer wanted
}

// owns reports whether a is the account that the entry is about. The zero
// entry owns none.
func (e entry) owns(a Account) bool {
	if a.Login == "" || !a.Member || e.UID < minID {
		return false
	}
	if e.ID == "" { // a crash came between making it and noting what was made
		return a.UID == e.UID
	}
	return a.ID == e.ID
}

// check reports whether login and e can be an entry that we wrote.
func (e entry) check(login string) error {
	if err := CheckLogin(login); err != nil && sft.CheckWindowsLogin(login) != nil {
		return err
	}
	if e.UID < minID || e.GID < minID {
		return fmt.Errorf("account %s has uid %d and gid %d", login, e.UID, e.GID)
	}
	return nil
}
