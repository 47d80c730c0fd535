package frame

import (
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"sft"
)

// Names are what a certificate to the broker says of its holder, as the URIs
// of its subject alternative name:
//
//	sft:team/TEAM/project/PROJECT/user/USER
//	sft:server/SERVER
//	sft:session/SESSION
//	sft:rev/REVISION
//
// The platform's CA writes them with URIs, the host's monitor reads them with
// ParseURIs, and nothing else about a subject counts.
type Names struct {
	Team    string // the team's name
	Project string // the project's name
	User    string // the user's id
	Server  string // the one server's id
	Session string // the one session's id
	// Revision is the project's when the certificate was made: a host that
	// has not heard of it yet may not know the user.
	Revision int64
}

var (
	idRE       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)
	revisionRE = regexp.MustCompile(`^(0|[1-9][0-9]{0,18})$`)
)

// Check refuses names that a certificate cannot hold; all of them are
// required. Who makes a certificate calls it before URIs. The error is
// Invalid.
func (n Names) Check() error {
	if err := sft.CheckName("team", n.Team); err != nil {
		return err
	}
	if err := sft.CheckName("project", n.Project); err != nil {
		return err
	}
	for _, id := range []struct{ kind, v string }{{"user", n.User}, {"server", n.Server}, {"session", n.Session}} {
		if !idRE.MatchString(id.v) {
			return &sft.Error{Code: sft.Invalid, Msg: id.kind + " id " + sft.Quote(id.v) + " cannot be used",
				Hint: "use 1 to 63 letters, digits, \"-\" and \"_\", with a letter or digit first"}
		}
	}
	if n.Revision < 0 {
		return &sft.Error{Code: sft.Invalid, Msg: "a revision cannot be negative"}
	}
	return nil
}

// URIs returns n as the URIs of a certificate. They mean n only if n.Check
// has passed.
func (n Names) URIs() []*url.URL {
	return []*url.URL{
		{Scheme: "sft", Opaque: "team/" + n.Team + "/project/" + n.Project + "/user/" + n.User},
		{Scheme: "sft", Opaque: "server/" + n.Server},
		{Scheme: "sft", Opaque: "session/" + n.Session},
		{Scheme: "sft", Opaque: "rev/" + strconv.FormatInt(n.Revision, 10)},
	}
}

// ParseURIs reads a certificate's URIs, in any order. Each of the four must
// be there once, and nothing else may be. The error is Denied.
func ParseURIs(uris []*url.URL) (Names, error) {
	if len(uris) != 4 {
		return Names{}, refuseNames("the certificate has " + strconv.Itoa(len(uris)) + " names, not 4")
	}
	var n Names
	seen := map[string]bool{}
	for _, u := range uris {
		// u may be from anywhere. What String adds to scheme and opaque part (query, fragment) is
		// refused by comparing, so that one name has one spelling.
		if u == nil || u.Scheme != "sft" || u.String() != "sft:"+u.Opaque || len(u.Opaque) > 256 {
			return Names{}, refuseNames("the certificate has a name of an unknown form")
		}
		p := strings.Split(u.Opaque, "/")
		kind := p[0]
		if seen[kind] {
			return Names{}, refuseNames("the certificate has two names of one kind")
		}
		seen[kind] = true
		switch {
		case kind == "team" && len(p) == 6 && p[2] == "project" && p[4] == "user":
			n.Team, n.Project, n.User = p[1], p[3], p[5]
		case kind == "server" && len(p) == 2:
			n.Server = p[1]
		case kind == "session" && len(p) == 2:
			n.Session = p[1]
		case kind == "rev" && len(p) == 2 && revisionRE.MatchString(p[1]):
			v, err := strconv.ParseInt(p[1], 10, 64)
			if err != nil {
				return Names{}, refuseNames("the certificate has an impossible revision")
			}
			n.Revision = v
		default:
			return Names{}, refuseNames("the certificate has a name of an unknown form")
		}
	}
	if n.Check() != nil {
		return Names{}, refuseNames("the certificate has a name that nobody can have")
	}
	return n, nil
}

func refuseNames(msg string) error {
	return &sft.Error{Code: sft.Denied, Msg: msg, Hint: "make a new request with \"sft rdp\""}
}
