package accounts

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sft"
)

// have returns an account of ours at rest, as decide sees it.
func have(login string, uid int, change ...func(*Account)) Account {
	a := Account{Login: login, ID: strconv.Itoa(uid), UID: uid, GID: uid + 3000, FullName: "P", Home: "/home/" + login, Member: true}
	for _, f := range change {
		f(&a)
	}
	return a
}

// theirs makes an account somebody else's.
func theirs(a *Account) { a.Member, a.Enabled, a.Aging = false, true, true }

func want(login string, uid int) Want {
	return Want{Login: login, FullName: "P", UID: uid, GID: uid + 3000}
}

func admin(w Want) Want { w.Admin = true; return w }

// known returns a record of login.
func known(login string, uid int, change ...func(*entry)) map[string]entry {
	e := entry{ID: strconv.Itoa(uid), UID: uid, GID: uid + 3000}
	for _, f := range change {
		f(&e)
	}
	return map[string]entry{login: e}
}

func ended(e *entry) { e.Ended = true }

var actionNames = map[action]string{keep: "keep", create: "create", remake: "remake", update: "update", end: "end",
	remove: "remove", watch: "watch", forget: "forget", refuse: "refuse"}

// show writes steps for comparison: login, action, change, admin right, why.
func show(steps []*step) []string {
	var all []string
	for _, s := range steps {
		line := s.login + " " + actionNames[s.do]
		if s.do == remove && s.home {
			line += " with home"
		}
		if s.change != "" {
			line += ", " + string(s.change)
		}
		if s.want.Admin {
			line += ", admin"
		}
		if s.err != nil {
			line += ": " + s.err.Error()
		}
		all = append(all, line)
	}
	return all
}

func TestDecide(t *testing.T) {
	open := Limits{AllowAdmin: true}
	tests := []struct {
		name   string
		host   []Account
		groups map[string]int
		homes  map[string]Home // beside those of the accounts
		rec    map[string]entry
		wants  []Want
		lim    Limits
		del    bool
		want   []string
	}{
		{name: "nothing wanted, nothing there"},
		{name: "a new login is made", wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice create, created"}},
		{name: "an account as wanted is kept", host: []Account{have("alice", 60001)}, rec: known("alice", 60001), wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice keep, kept"}},
		{name: "one in use is kept too", host: []Account{have("alice", 60001, func(a *Account) { a.Enabled = true })}, rec: known("alice", 60001), wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice keep, kept"}},
		{name: "a new name is an update", host: []Account{have("alice", 60001, func(a *Account) { a.FullName = "Q" })}, rec: known("alice", 60001), wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice update, updated"}},
		{name: "admin rights come", host: []Account{have("alice", 60001)}, rec: known("alice", 60001), wants: []Want{admin(want("alice", 60001))}, lim: open,
			want: []string{"alice update, updated, admin"}},
		{name: "admin rights go", host: []Account{have("alice", 60001, func(a *Account) { a.Admin = true })}, rec: known("alice", 60001), wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice update, updated"}},
		{name: "an expired account is made to last", host: []Account{have("alice", 60001, func(a *Account) { a.Aging = true })}, rec: known("alice", 60001), wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice update, updated"}},
		{name: "a lost home is made again", host: []Account{have("alice", 60001)}, homes: map[string]Home{"alice": {Path: "/home/alice"}}, rec: known("alice", 60001), wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice update, updated"}},
		{name: "a home that the host's administrator moved is left there", host: []Account{have("alice", 60001, func(a *Account) { a.Home = "/data/alice" })},
			homes: map[string]Home{"alice": {Path: "/home/alice"}}, rec: known("alice", 60001), wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice keep, kept"}},

		{name: "somebody else's account of that name is a conflict", host: []Account{have("alice", 1000, theirs)}, wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice refuse, conflict: account alice of this host was not made by sftd"}},
		{name: "even with the same uid", host: []Account{have("alice", 60001, theirs)}, wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice refuse, conflict: account alice of this host was not made by sftd"}},
		{name: "and with the same uid and an entry in the record", host: []Account{have("alice", 60001, theirs)}, rec: known("alice", 60001), wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice refuse, conflict: account alice of this host was not made by sftd"}},
		{name: "and in our group with another uid", host: []Account{have("alice", 1000)}, wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice refuse, conflict: account alice of this host was not made by sftd"}},
		{name: "it is no conflict when nobody wants it", host: []Account{have("alice", 1000, theirs)}, lim: open},
		{name: "with the record lost, group and uid prove it", host: []Account{have("alice", 60001)}, wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice keep, kept"}},
		{name: "with the record lost, an unwanted account is reported", host: []Account{have("alice", 60001)}, lim: open, del: true,
			want: []string{"alice refuse, conflict: account alice is in the group of our accounts, and neither the record nor the platform knows it"}},
		{name: "a uid of another account", host: []Account{have("carol", 60001, theirs)}, wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice refuse, conflict: uid 60001 of account alice belongs to account carol here"}},
		{name: "a uid that another account took later", host: []Account{have("alice", 60001), have("carol", 60001, theirs)}, rec: known("alice", 60001), wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice refuse, conflict: uid 60001 of account alice belongs to account carol here"}},
		{name: "a uid twice among the wants", wants: []Want{want("bob", 60001), want("alice", 60001)}, lim: open,
			want: []string{"alice create, created", "bob refuse, conflict: uid 60001 of account bob goes to account alice"}},
		{name: "a login twice among the wants", wants: []Want{want("alice", 60001), want("alice", 60002)}, lim: open,
			want: []string{"alice refuse, refused: the platform wants account alice more than once"}},
		{name: "a gid of another group", groups: map[string]int{"team": 63001}, wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice refuse, conflict: gid 63001 of account alice belongs to group team here"}},
		{name: "a group of that name with another gid", groups: map[string]int{"alice": 500}, wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice refuse, conflict: group alice has gid 500 here, not 63001"}},
		{name: "a private group that a crash left is taken", groups: map[string]int{"alice": 63001}, wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice create, created"}},
		{name: "a home of another account", host: []Account{have("carol", 1001, theirs, func(a *Account) { a.Home = "/home/alice" })}, wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice refuse, conflict: home /home/alice of account alice belongs to account carol here"}},
		{name: "a folder of another uid", homes: map[string]Home{"alice": {"/home/alice", true, true, 0}}, wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice refuse, conflict: folder /home/alice belongs to uid 0, not to uid 60001 of account alice"}},
		{name: "a link where the home belongs", homes: map[string]Home{"alice": {"/home/alice", true, false, 60001}}, wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice refuse, conflict: /home/alice is no folder"}},
		{name: "files kept from an earlier account of the same uid", homes: map[string]Home{"alice": {"/home/alice", true, true, 60001}}, wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice create, created"}},
		{name: "an account that is there twice", host: []Account{have("alice", 60001), have("alice", 60009, theirs)}, rec: known("alice", 60001), wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice refuse, conflict: account alice is on this host twice"}},
		{name: "a uid that the platform changed ends the old account", host: []Account{have("alice", 60001)}, rec: known("alice", 60001), wants: []Want{want("alice", 60002)}, lim: open,
			want: []string{"alice end, conflict: account alice has uid 60001 here, and the platform says 60002"}},

		{name: "no uid of the system", wants: []Want{want("alice", 999), {Login: "bob", UID: 60001, GID: 0}, {Login: "carol", UID: 65534, GID: 60001}}, lim: open,
			want: []string{"alice refuse, refused: account alice cannot have uid 999 and gid 3999",
				"bob refuse, refused: account bob cannot have uid 60001 and gid 0",
				"carol refuse, refused: account carol cannot have uid 65534 and gid 60001"}},
		{name: "no name of the system", wants: []Want{want("root", 60001), want("docker", 60002), want("-rf", 60003), want("Alice", 60004), want("", 60005)}, lim: open,
			want: []string{` refuse, refused: login "" cannot be an account name`,
				`-rf refuse, refused: login "-rf" cannot be an account name`,
				`Alice refuse, refused: login "Alice" cannot be an account name`,
				"docker refuse, refused: login docker is a name of the system",
				"root refuse, refused: login root is a name of the system"}},
		{name: "AllowAdmin false makes the account without the rights", wants: []Want{admin(want("alice", 60001))},
			want: []string{"alice create, created: AllowAdmin in this host's sftd.yaml does not allow alice to be an administrator"}},
		{name: "AllowAdmin false takes rights given before", host: []Account{have("alice", 60001, func(a *Account) { a.Admin = true })}, rec: known("alice", 60001), wants: []Want{admin(want("alice", 60001))},
			want: []string{"alice update, updated: AllowAdmin in this host's sftd.yaml does not allow alice to be an administrator"}},
		{name: "AllowedLogins refuses the others, and ends what they had", host: []Account{have("bob", 60002)}, rec: known("bob", 60002),
			wants: []Want{want("alice", 60001), want("bob", 60002), want("ops-x", 60003)}, lim: Limits{AllowedLogins: []string{"ops-*"}}, del: true,
			want: []string{"alice refuse, refused: AllowedLogins in this host's sftd.yaml does not allow alice",
				"bob end, refused: AllowedLogins in this host's sftd.yaml does not allow bob",
				"ops-x create, created"}},
		{name: "an empty AllowedLogins allows nobody", wants: []Want{want("alice", 60001)}, lim: Limits{AllowedLogins: []string{}},
			want: []string{"alice refuse, refused: AllowedLogins in this host's sftd.yaml does not allow alice"}},
		{name: "a bad glob allows nobody", wants: []Want{want("alice", 60001)}, lim: Limits{AllowedLogins: []string{"[", "*"}},
			want: []string{`alice refuse, refused: AllowedLogins in this host's sftd.yaml holds the bad pattern "["`}},
		{name: "MaxUsers keeps those who are here", host: []Account{have("zoe", 60003)}, rec: known("zoe", 60003),
			wants: []Want{want("alice", 60001), want("bob", 60002), want("zoe", 60003)}, lim: Limits{MaxUsers: 2},
			want: []string{"alice create, created",
				"bob refuse, refused: this host allows 2 accounts, and account bob would be one more",
				"zoe keep, kept"}},

		{name: "who is gone is ended", host: []Account{have("alice", 60001)}, rec: known("alice", 60001), lim: open,
			want: []string{"alice end, disabled"}},
		{name: "once", host: []Account{have("alice", 60001, func(a *Account) { a.Expired, a.Aging = true, true })}, rec: known("alice", 60001, ended), lim: open,
			want: []string{"alice watch"}},
		{name: "again, where a crash came before it was done", host: []Account{have("alice", 60001, func(a *Account) { a.Enabled = true })}, rec: known("alice", 60001, ended), lim: open,
			want: []string{"alice end, disabled"}},
		{name: "and deleted where the project says so", host: []Account{have("alice", 60001)}, rec: known("alice", 60001), lim: open, del: true,
			want: []string{"alice remove with home, removed"}},
		{name: "an account that was taken from our group is let be", host: []Account{have("alice", 60001, theirs)}, rec: known("alice", 60001), lim: open, del: true,
			want: []string{"alice forget"}},
		{name: "an account whose uid another one has is not deleted", host: []Account{have("alice", 60001), have("carol", 60001, theirs)}, rec: known("alice", 60001), lim: open, del: true,
			want: []string{"alice end, disabled"}},
		{name: "what is left of a deleted account goes", rec: known("alice", 60001), lim: open,
			want: []string{"alice remove"}},
		{name: "who comes back is an update", host: []Account{have("alice", 60001, func(a *Account) { a.Expired, a.Aging = true, true })}, rec: known("alice", 60001, ended), wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice update, updated"}},

		{name: "a half-made account is made anew", host: []Account{have("alice", 60001, func(a *Account) { a.Member, a.FullName = false, "sft-new-X" })},
			rec: known("alice", 60001, func(e *entry) { e.ID, e.Mark = "", "sft-new-X" }), wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice remake, created"}},
		{name: "one without our mark is somebody else's", host: []Account{have("alice", 60001, func(a *Account) { a.Member = false })},
			rec: known("alice", 60001, func(e *entry) { e.ID, e.Mark = "", "sft-new-X" }), wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice refuse, conflict: account alice of this host was not made by sftd"}},
		{name: "one that a crash left in our group is finished", host: []Account{have("alice", 60001, func(a *Account) { a.FullName = "sft-new-X" })},
			rec: known("alice", 60001, func(e *entry) { e.ID, e.Mark = "", "sft-new-X" }), wants: []Want{want("alice", 60001)}, lim: open,
			want: []string{"alice update, updated"}},
		{name: "a half-made account that nobody wants any more goes", host: []Account{have("alice", 60001, func(a *Account) { a.Member, a.FullName = false, "sft-new-X" })},
			rec: known("alice", 60001, func(e *entry) { e.ID, e.Mark = "", "sft-new-X" }), lim: open,
			want: []string{"alice remove"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := Host{Accounts: tt.host, Groups: map[string]int{"root": 0}, Homes: map[string]Home{}}
			for _, w := range tt.wants {
				h.Homes[w.Login] = Home{Path: "/home/" + w.Login}
			}
			for _, a := range tt.host {
				if a.Member {
					h.Groups[a.Login] = a.GID
				}
				if a.Home == "/home/"+a.Login {
					h.Homes[a.Login] = Home{a.Home, true, true, a.UID}
				}
			}
			for n, g := range tt.groups {
				h.Groups[n] = g
			}
			for l, home := range tt.homes {
				h.Homes[l] = home
			}
			got := show(decide(h, tt.rec, tt.wants, tt.lim, func(string) bool { return tt.del }))
			if !slices.Equal(got, tt.want) {
				t.Errorf("decide:\n got %s\nwant %s", strings.Join(got, "\n     "), strings.Join(tt.want, "\n     "))
			}
		})
	}
}

// FuzzDecide checks what must hold whatever host, record and wants say: a step
// that touches an account has the group and the record, the mark, or the group
// and the platform's uid on its side, and each login gets one step.
func FuzzDecide(f *testing.F) {
	f.Add([]byte("\x01\x02\x03\x04\x05\x06\x07\x08"), true)
	f.Fuzz(func(t *testing.T, b []byte, del bool) {
		next := func() int {
			if len(b) == 0 {
				return 0
			}
			n := int(b[0])
			b = b[1:]
			return n
		}
		names := []string{"alice", "bob", "carol", "root"}
		h, rec, lim := Host{Groups: map[string]int{}, Homes: map[string]Home{}}, map[string]entry{}, Limits{AllowAdmin: next()%2 == 0, MaxUsers: next() % 3}
		var wants []Want
		for _, n := range names {
			uid := func() int { return 60000 + next()%3 }
			if k := next(); k%2 == 0 {
				h.Accounts = append(h.Accounts, have(n, uid(), func(a *Account) {
					a.Member, a.Enabled, a.Admin, a.Expired = k&4 == 0, k&8 == 0, k&16 == 0, k&32 == 0
					if k&64 == 0 {
						a.FullName = "mark"
					}
				}))
			}
			if k := next(); k%2 == 0 {
				e := entry{UID: uid(), GID: 63000, Ended: k&4 == 0}
				if k&8 == 0 {
					e.ID = strconv.Itoa(e.UID)
				}
				if k&16 == 0 {
					e.Mark = "mark"
				}
				rec[n] = e
			}
			if next()%2 == 0 {
				wants = append(wants, want(n, uid()))
			}
		}
		seen := map[string]bool{}
		made := 0
		for _, s := range decide(h, rec, wants, lim, func(string) bool { return del }) {
			if seen[s.login] {
				t.Fatalf("two steps for %s", s.login)
			}
			seen[s.login] = true
			e, a := rec[s.login], h.find(s.login)
			byRecord := e.owns(a)
			byMark := e.Mark != "" && a.FullName == e.Mark
			byUID := a.Member && s.want.UID == a.UID
			switch s.do {
			case keep, update, create, remake:
				made++
				if s.login == "root" || a.Login != "" && !byRecord && !byMark && !byUID {
					t.Fatalf("%s %s: have %+v, record %+v", actionNames[s.do], s.login, a, e)
				}
			case end, remove, watch:
				if a.Login != "" && !byRecord && !byMark {
					t.Fatalf("%s %s: have %+v, record %+v", actionNames[s.do], s.login, a, e)
				}
				if s.do == remove && s.home && !del {
					t.Fatalf("home of %s is deleted unasked", s.login)
				}
			}
			if s.want.Admin && !lim.AllowAdmin && s.do != refuse && s.do != end {
				t.Fatalf("%s is made administrator", s.login)
			}
		}
		if lim.MaxUsers > 0 && made > lim.MaxUsers {
			t.Fatalf("%d accounts, limit %d", made, lim.MaxUsers)
		}
	})
}

func TestFullName(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"a plain name stays", "Alice Example", "Alice Example"},
		{"other scripts stay", "Zoë Ødegård 山田", "Zoë Ødegård 山田"},
		{"separators and line ends go", "A:0:0,x\n\rroot::0\x00\x1b[2J", "A00xroot0[2J"},
		{"direction marks go", "a\u202eb\u2028c", "abc"},
		{"bytes that are no text go", "a\xff\xfeb", "ab"},
		{"the cut is at 200 bytes, between characters", strings.Repeat("é", 150), strings.Repeat("é", 100)},
		{"no space at the end of the cut", strings.Repeat("a", 199) + " b", strings.Repeat("a", 199)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := fullName(tt.in); got != tt.want {
				t.Errorf("fullName(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

// FuzzNames checks that no login and no name can end a field or a line of an
// account file, or be taken for an option.
func FuzzNames(f *testing.F) {
	f.Add("alice", "Alice Example")
	f.Add("-rf", "a:b,c\nd")
	f.Fuzz(func(t *testing.T, login, name string) {
		if CheckLogin(login) == nil && (strings.ContainsAny(login, ":,\n\x00/. ") || login == "" || login[0] == '-' || len(login) > 32) {
			t.Errorf("login %q is let pass", login)
		}
		got := fullName(name)
		if strings.ContainsAny(got, ":,\n\r\x00") || len(got) > 200 || fullName(got) != got {
			t.Errorf("fullName(%q) = %q", name, got)
		}
	})
}

// FuzzRecord checks that what is read from a record is what could have been
// written there.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"accounts":{"alice":{"id":"60001","uid":60001,"gid":63001}}}`))
	f.Add([]byte(`{"version":1,"accounts":{"root":{"uid":0}}}`))
	f.Add([]byte(`{"version":1,"accounts":{},"groups":{"sft_dev":63100,"sudo":27}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := parseRecord(data)
		if err == nil && rec.Accounts == nil {
			t.Error("no record and no error")
		}
		for login, e := range rec.Accounts {
			if err := e.check(login); err != nil {
				t.Error(err)
			}
		}
		for name, gid := range rec.Groups {
			if err := CheckGroup(name); err != nil || gid < minID {
				t.Errorf("group %q of gid %d", name, gid)
			}
		}
	})
}

func TestOutcomeString(t *testing.T) {
	o := Outcome{"alice", Conflict, &sft.Error{Code: sft.Conflict, Msg: "account alice of this host was not made by sftd", Hint: "rename it"}}
	want := "alice: conflict: account alice of this host was not made by sftd; rename it"
	if got := fmt.Sprint(o); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
