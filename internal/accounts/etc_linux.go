package accounts

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The account files are read here directly, not through getent, for three
// reasons. They are all that the account tools can change, so they are the
// truth about what may be ours. A directory server that is slow or gone cannot
// hold up the agent. And a run that has nothing to change starts no program.
// A name that only a directory has is still not taken: useradd and groupadd
// ask the name service themselves, and refuse it.

// maxEtc is more than any account file is long. A longer one is an error: to
// work from half a file would be to forget half the accounts.
const maxEtc = 64 << 20

// A passwdLine is one line of /etc/passwd.
type passwdLine struct {
	login    string
	uid, gid int
	gecos    string
	home     string
}

// A groupLine is one line of /etc/group.
type groupLine struct {
	name    string
	gid     int
	members []string
}

// A shadowLine is one line of /etc/shadow. A number is -1 where the field is
// empty, and days count from 1970.
type shadowLine struct {
	login    string
	password string
	changed  int // 0 asks for a new password at the next sign-in
	min, max int // days
	inactive int // days
	expire   int // the day from which the account is refused
}

// rest is the password field of an account at rest: it matches nothing. It is
// not "!", which sshd takes for a locked account and refuses certificates too.
const rest = "*"

// enabled reports whether something may match the password. An empty field
// matches the empty password.
func (s shadowLine) enabled() bool {
	return !strings.HasPrefix(s.password, "*") && !strings.HasPrefix(s.password, "!")
}

// expired reports whether the account is refused on day today.
func (s shadowLine) expired(today int) bool { return s.expire > 0 && s.expire <= today }

// aging reports whether the account is refused, or asks for a new password,
// now or some day.
func (s shadowLine) aging() bool {
	return s.expire >= 0 || s.changed == 0 || s.inactive >= 0 || s.min > 0 || s.max >= 0 && s.max < 99999
}

// today is the number of the day, as /etc/shadow counts.
func today() int { return int(time.Now().Unix() / 86400) }

// readEtc returns the whole file at path.
func readEtc(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxEtc+1))
	if err == nil && len(data) > maxEtc {
		err = fmt.Errorf("%s is longer than %d bytes; look for what fills it", path, maxEtc)
	}
	return data, err
}

// fields returns the lines of an account file that have n fields. Others are
// comments, or the "+" of NIS, or damage, and no account tool heeds them.
func fields(data []byte, n int) [][]string {
	var all [][]string
	sc := bufio.NewScanner(bytes.NewReader(data))
	sc.Buffer(nil, maxEtc+1)
	for sc.Scan() {
		f := strings.Split(sc.Text(), ":")
		if len(f) == n && f[0] != "" && f[0][0] != '+' && f[0][0] != '-' && f[0][0] != '#' {
			all = append(all, f)
		}
	}
	return all
}

// id parses a uid or gid.
func id(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return int(n), err == nil
}

func parsePasswd(data []byte) []passwdLine {
	var all []passwdLine
	for _, f := range fields(data, 7) {
		uid, ok1 := id(f[2])
		gid, ok2 := id(f[3])
		if ok1 && ok2 {
			all = append(all, passwdLine{f[0], uid, gid, f[4], f[5]})
		}
	}
	return all
}

func parseGroup(data []byte) []groupLine {
	var all []groupLine
	for _, f := range fields(data, 4) {
		gid, ok := id(f[2])
		if !ok {
			continue
		}
		g := groupLine{name: f[0], gid: gid}
		for m := range strings.SplitSeq(f[3], ",") {
			if m = strings.TrimSpace(m); m != "" {
				g.members = append(g.members, m)
			}
		}
		all = append(all, g)
	}
	return all
}

func parseShadow(data []byte) []shadowLine {
	days := func(s string) int {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n < 0 {
			return -1
		}
		return int(n)
	}
	var all []shadowLine
	for _, f := range fields(data, 9) {
		all = append(all, shadowLine{f[0], f[1], days(f[2]), days(f[3]), days(f[4]), days(f[6]), days(f[7])})
	}
	return all
}

// An etc is the account files, read at one moment.
type etc struct {
	passwd []passwdLine
	group  []groupLine
	shadow map[string]shadowLine
}

// readAll reads the account files.
func readAll() (etc, error) {
	var e etc
	p, err := readEtc("/etc/passwd")
	if err != nil {
		return e, err
	}
	g, err := readEtc("/etc/group")
	if err != nil {
		return e, err
	}
	s, err := readEtc("/etc/shadow")
	if err != nil {
		return e, err
	}
	e.passwd, e.group, e.shadow = parsePasswd(p), parseGroup(g), map[string]shadowLine{}
	for _, l := range parseShadow(s) {
		if _, ok := e.shadow[l.login]; !ok { // the first counts, as in libc
			e.shadow[l.login] = l
		}
	}
	return e, nil
}

// find returns the passwd line of login; its login is empty when there is none.
func (e etc) find(login string) passwdLine {
	for _, p := range e.passwd {
		if p.login == login {
			return p
		}
	}
	return passwdLine{}
}

// loginOf returns the login of uid: the first that has it, as in libc. A name
// that is there twice, and first with another uid, is no login.
func loginOf(passwd []passwdLine, uid int) string {
	for _, p := range passwd {
		if p.uid == uid {
			if (etc{passwd: passwd}).find(p.login).uid != uid {
				return ""
			}
			return p.login
		}
	}
	return ""
}

// LoginOf returns the login name of a uid by /etc/passwd, or "".
func LoginOf(uid int) (string, error) {
	b, err := readEtc("/etc/passwd")
	return loginOf(parsePasswd(b), uid), err
}

// findGroup returns the group called name; its name is empty when there is none.
func (e etc) findGroup(name string) groupLine {
	for _, g := range e.group {
		if g.name == name {
			return g
		}
	}
	return groupLine{}
}

// member reports whether login is listed in group.
func (e etc) member(group, login string) bool {
	return slices.Contains(e.findGroup(group).members, login)
}

// account returns p as the portable code knows it.
func (e etc) account(p passwdLine) Account {
	// Without a shadow line the account was cut short while it was made, or
	// belongs to somebody who keeps passwords elsewhere: nothing is at rest.
	s, ok := e.shadow[p.login]
	name, _, _ := strings.Cut(p.gecos, ",")
	return Account{
		Login: p.login, ID: strconv.Itoa(p.uid), UID: p.uid, GID: p.gid, FullName: name, Home: p.home,
		Member: e.member(usersGroup, p.login), Admin: e.member(adminGroup, p.login),
		Enabled: ok && s.enabled(), Expired: s.expired(today()), Aging: !ok || s.aging(),
	}
}
