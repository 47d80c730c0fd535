package client

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"errors"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"sft"
	"sft/internal/api"
)

// Asking is how a Device may ask its person to sign in.
type Asking int

// The ways of asking.
const (
	Never     Asking = iota // it may not: the person is told what to run
	InBrowser               // a browser on this machine
	ByCode                  // a code that is typed into a browser anywhere
	ByAgent                 // no person: this host's agent says as which service user the process acts
)

// A Device is this machine, used by one person. Its fields are set before
// its methods are called, and not after.
type Device struct {
	Store *Store
	Info  api.DeviceInfo
	// Ask is how the person may be asked; Open opens their browser.
	Ask  Asking
	Open func(url string) error
	// Say tells the person something while they wait.
	Say func(line string)
	// Timeout is how long the person may take to sign in; 0 is no limit.
	Timeout time.Duration
	Proxy   *url.URL         // nil: what the environment says
	Machine func() time.Time // the machine's clock; nil: time.Now
	Log     *slog.Logger     // never nil

	warned bool   // of the clock
	agent  string // socket of this host's agent; empty: where it is
}

// requestTime is how long the platform may take for one answer.
const requestTime = 60 * time.Second

// newAPI returns a way to talk to the platform of a, as nobody yet.
func (d *Device) newAPI(a Account) (*api.Client, error) {
	clock := &api.Clock{Machine: d.Machine}
	if a.ClockOffset != 0 {
		now := time.Now()
		if d.Machine != nil {
			now = d.Machine()
		}
		// What was learnt before may no longer hold: the platform says so
		// if it does not.
		if err := clock.Correct(now.Add(time.Duration(a.ClockOffset) * time.Millisecond)); err != nil {
			d.Log.Debug("stored clock offset", "error", err)
		}
	}
	http, err := api.NewHTTP(a.CA, d.Proxy, clock)
	if err != nil {
		return nil, err
	}
	return &api.Client{URL: a.URL, Audience: a.Audience, UserAgent: "sft/" + sft.Version, Clock: clock, HTTP: http}, nil
}

// A Session is one account, in use. Its methods ask the person to sign in
// when that is needed and allowed.
type Session struct {
	Account Account
	d       *Device
	c       *api.Client
	saved   time.Duration // the clock offset in the store
}

// Session opens an account: its device key is read.
func (d *Device) Session(a Account) (*Session, error) {
	key, err := d.Store.keys.load(a)
	if err != nil {
		return nil, err
	}
	return d.session(a, key)
}

func (d *Device) session(a Account, key *ecdsa.PrivateKey) (*Session, error) {
	c, err := d.newAPI(a)
	if err != nil {
		return nil, err
	}
	c.Key, c.Issuer = key, "client:"+a.ClientID
	return &Session{Account: a, d: d, c: c, saved: c.Clock.Offset()}, nil
}

// do sends one signed request.
func (s *Session) do(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, requestTime, &sft.Error{Code: sft.Unavailable,
		Msg: "the platform at " + s.Account.URL + " did not answer in time", Hint: "try again; if it stays so, ask its administrator"})
	defer cancel()
	err := s.c.Do(ctx, method, path, in, out)
	if errors.Is(err, context.DeadlineExceeded) {
		err = cmp.Or(context.Cause(ctx), err)
	}
	s.noteClock()
	if sft.CodeOf(err) == sft.Revoked {
		return &sft.Error{Code: sft.Revoked, Msg: "this device was removed from team " + s.Account.Team, Err: err,
			Hint: s.Account.anew()}
	}
	return err
}

// noteClock keeps what the platform said of the clocks, and warns once if
// they differ much.
func (s *Session) noteClock() {
	offset := s.c.Clock.Offset()
	if offset.Abs() > api.WarnSkew && !s.d.warned {
		s.d.warned = true
		s.d.Say("warning: this machine's clock is " + offset.Abs().Round(10*time.Second).String() + " " + fastOrSlow(offset) + "; set it")
	}
	if (offset - s.saved).Abs() < time.Second {
		return
	}
	s.saved = offset
	s.Account.ClockOffset = offset.Milliseconds()
	err := s.d.Store.update(func(all *[]Account) error { // which another process may have changed meanwhile
		for i := range *all {
			if (*all)[i].ClientID == s.Account.ClientID {
				(*all)[i].ClockOffset = s.Account.ClockOffset
			}
		}
		return nil
	})
	if err != nil {
		s.d.Log.Debug("store the clock offset", "error", err)
	}
}

func fastOrSlow(offset time.Duration) string {
	if offset > 0 {
		return "slow"
	}
	return "fast"
}

// Do sends a request of the signed-in person. When nobody is signed in any
// more, it has them sign in, if they may be asked, and asks once more. A
// service user's device that was removed may be followed by another one.
func (s *Session) Do(ctx context.Context, method, path string, in, out any) error {
	err := s.do(ctx, method, path, in, out)
	if code := sft.CodeOf(err); code != sft.SignIn && (code != sft.Revoked || s.d.Ask != ByAgent) {
		return err
	}
	if s.d.Ask == Never {
		return &sft.Error{Code: sft.SignIn, Msg: s.Account.User + " is not signed in to team " + s.Account.Team + ", or no longer", Err: err,
			Hint: "run \"sft login --team " + s.Account.Team + "\""}
	}
	if err := s.Login(ctx); err != nil {
		return err
	}
	return s.do(ctx, method, path, in, out)
}

// team returns the path of a route of the account's team.
func (s *Session) team(rest string) string {
	return "/v1/teams/" + url.PathEscape(s.Account.Team) + rest
}

// Servers returns the servers that the person may reach: of the project, and
// that the label selector means, where these are not empty.
func (s *Session) Servers(ctx context.Context, project, selector string) ([]sft.Server, error) {
	query := url.Values{}
	if project != "" {
		if err := sft.CheckName("project", project); err != nil {
			return nil, err
		}
		query.Set("project_name", project)
	}
	if selector != "" {
		query.Set("selector", selector)
	}
	list, err := everyPage(ctx, s, "/servers", query, func(v sft.Server) string { return v.ID })
	slices.SortStableFunc(list, func(a, b sft.Server) int {
		return cmp.Or(strings.Compare(a.Project, b.Project), strings.Compare(a.Name(), b.Name()), strings.Compare(a.ID, b.ID))
	})
	return list, err
}

// Lists come in pages of up to pageCount things, of which a person's client
// takes maxPages at most.
const (
	pageCount = 1000
	maxPages  = 200
)

// everyPage returns a whole list of the team. key is what a page begins after.
func everyPage[T any](ctx context.Context, s *Session, path string, query url.Values, key func(T) string) ([]T, error) {
	query.Set("count", strconv.Itoa(pageCount))
	list := []T{}
	for range maxPages {
		var l api.List[T]
		if err := s.Do(ctx, "GET", s.team(path+"?"+query.Encode()), nil, &l); err != nil {
			return nil, err
		}
		if list = append(list, l.List...); len(l.List) < pageCount {
			return list, nil
		}
		query.Set("offset", key(l.List[len(l.List)-1]))
	}
	return nil, &sft.Error{Code: sft.Internal, Msg: "the platform's list of " + strings.TrimPrefix(path, "/") + " has no end"}
}

// Projects returns the projects that the person is in.
func (s *Session) Projects(ctx context.Context) ([]sft.Project, error) {
	return everyPage(ctx, s, "/projects", url.Values{"self": {"true"}}, func(v sft.Project) string { return v.Name })
}

// ServerLogin returns the name of the person's account on Linux servers, which
// are those that ssh goes to.
func (s *Session) ServerLogin(ctx context.Context) (string, error) {
	var u sft.User
	if err := s.Do(ctx, "GET", s.team("/users/"+url.PathEscape(s.Account.User)), nil, &u); err != nil {
		return "", err
	}
	return u.Login, sft.CheckLogin(u.Login)
}

// Resolve returns what a name means to the person. Nothing is issued.
func (s *Session) Resolve(ctx context.Context, target string) (api.ResolveReply, error) {
	var r api.ResolveReply
	if err := sft.CheckTarget(target); err != nil {
		return r, err
	}
	err := s.Do(ctx, "GET", s.team("/resolve?"+url.Values{"target": {target}}.Encode()), nil, &r)
	return r, err
}

// Access returns what the person is to a server by a service, and what is
// missing. Nothing is issued.
func (s *Session) Access(ctx context.Context, v sft.Server, service string) (api.Access, error) {
	var r api.Access
	at := "/projects/" + url.PathEscape(v.Project) + "/servers/" + url.PathEscape(v.ID) + "/access?"
	err := s.Do(ctx, "GET", s.team(at+url.Values{"service": {service}}.Encode()), nil, &r)
	return r, err
}
