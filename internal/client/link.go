package client

import (
	"regexp"
	"strconv"
	"strings"

	"sft"
)

// A Link is what a URL asks for that somebody has clicked: to connect to a
// server. Whoever wrote the page wrote the URL, so nothing in it is believed,
// and what is not in its strict form is refused.
type Link struct {
	Scheme  string // sft, or scaleft
	User    string // who is meant to connect, in the team; empty: whoever it is
	Host    string // of the platform's URL, with its port if it has one
	Team    string
	Target  string   // a server's name, id or address
	Service string   // rdp or ssh
	Via     []string // the hops in order, each NAME or LOGIN@NAME
}

// The caps of a link.
const (
	maxLink = 2 << 10 // bytes
	maxVia  = 8
)

var (
	linkRE     = regexp.MustCompile(`^(sft|scaleft)://(?:([A-Za-z0-9._-]+)@)?([a-z0-9.:-]+)/t/([A-Za-z0-9._-]+)/a/([A-Za-z0-9._:-]+)/(rdp|ssh)(?:\?([A-Za-z0-9._:@=&-]+))?$`)
	linkHostRE = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?(?::([1-9][0-9]{0,4}))?$`)
)

// ParseLink reads a link:
//
//	sft://[USER@]HOST[:PORT]/t/TEAM/a/TARGET/(rdp|ssh)[?via=[LOGIN@]HOP[&via=…]]
//
// There is one spelling of each: what is accepted is what String returns.
// Nothing is decoded, so "%" has no place in it, and no part begins with "-".
func ParseLink(s string) (Link, error) {
	bad := func(why string) (Link, error) {
		return Link{}, &sft.Error{Code: sft.Invalid, Msg: sft.Quote(s) + " is not a link to a server: " + why,
			Hint: "a link is sft://HOST/t/TEAM/a/SERVER/rdp, or ends with /ssh; do not follow one that you have no reason to trust"}
	}
	if len(s) > maxLink {
		return bad("it is too long")
	}
	m := linkRE.FindStringSubmatch(s)
	if m == nil {
		return bad("it has another form")
	}
	l := Link{Scheme: m[1], User: m[2], Host: m[3], Team: m[4], Target: m[5], Service: m[6]}
	if l.User != "" && sft.CheckName("user", l.User) != nil {
		return bad("the user's name cannot be one")
	}
	if h := linkHostRE.FindStringSubmatch(l.Host); h == nil {
		return bad("the platform's address cannot be one")
	} else if n, err := strconv.Atoi(h[1]); h[1] != "" && (err != nil || n > 65535) {
		return bad("the platform's port cannot be one")
	}
	if sft.CheckName("team", l.Team) != nil {
		return bad("the team's name cannot be one")
	}
	if sft.CheckTarget(l.Target) != nil {
		return bad("the server's name cannot be one")
	}
	for rest := m[7]; rest != ""; {
		var p string
		var more bool
		p, rest, more = strings.Cut(rest, "&")
		v, ok := strings.CutPrefix(p, "via=")
		login, hop, with := strings.Cut(v, "@")
		if !with {
			login, hop = "", v
		}
		switch {
		case !ok || more && rest == "":
			return bad("it has a parameter other than via")
		case with && sft.CheckLogin(login) != nil || sft.CheckTarget(hop) != nil:
			return bad("a hop's name cannot be one")
		case len(l.Via) == maxVia:
			return bad("it has too many hops")
		}
		l.Via = append(l.Via, v)
	}
	if l.String() != s { // what was read is all that there is
		return bad("it has another form")
	}
	return l, nil
}

// String returns the link as ParseLink reads it.
func (l Link) String() string {
	s := l.Scheme + "://"
	if l.User != "" {
		s += l.User + "@"
	}
	s += l.Host + "/t/" + l.Team + "/a/" + l.Target + "/" + l.Service
	for i, v := range l.Via {
		s += map[bool]string{true: "?", false: "&"}[i == 0] + "via=" + v
	}
	return s
}

// Command is what a person would type to do what the link asks for. No word of
// it that is from the link begins with "-".
func (l Link) Command() []string {
	argv := []string{"sft", l.Service, "--team", l.Team}
	for _, v := range l.Via {
		argv = append(argv, "--via", v)
	}
	return append(argv, "--", l.Target)
}

// Account finds the enrolment that a link is for among those of this machine.
// A link to any other platform, team or user is refused.
func (l Link) Account(all []Account) (Account, error) {
	for _, a := range all {
		if a.URL == "https://"+l.Host && a.Team == l.Team {
			if l.User != "" && l.User != a.User {
				return Account{}, &sft.Error{Code: sft.Denied, Msg: "the link is for user " + sft.Quote(l.User) + ", and on this machine team " + l.Team + " has user " + sft.Quote(a.User),
					Hint: "ask who gave you the link for one of yours"}
			}
			return a, nil
		}
	}
	return Account{}, &sft.Error{Code: sft.Denied, Msg: "the link is for team " + sft.Quote(l.Team) + " at " + sft.Quote(l.Host) + ", with which this machine is not enrolled",
		Hint: "do not follow it unless you know where it is from; see \"sft list-accounts\" for your own"}
}
