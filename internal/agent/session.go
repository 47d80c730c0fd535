package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"sft"
	"sft/internal/accounts"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/broker"
	"sft/internal/conf"
	"sft/internal/frame"
)

// sessionsFile remembers which sessions are open, so that an agent that was
// killed can tell of their end.
const sessionsFile = "sessions.json"

// endPatience is how long a broker has to close a stream that it was told to
// end. A broker that does not is ended itself.
const endPatience = 2 * time.Second

// maxStreams caps the streams of one person on this host, so that nobody
// takes all that the broker has. An RDP client opens one or two.
const maxStreams = 64

// retryShut is how soon what could not be shut, or logged off, is tried again.
const retryShut = 2 * time.Second

const (
	// flightTime is how long a sign-in counts as in flight if it is not seen
	// signed in. It is more than the broker gives a client.
	flightTime = 5 * time.Minute
	// lookEvery is how often an account with sign-ins in flight is looked at,
	// and maxLooks at how many at once: each look reads all of /proc.
	lookEvery = time.Second
	maxLooks  = 2
)

// sessions is the life of everything that is open on the host: of streams, of
// the sessions they belong to, and of the accounts these people sign in with.
//
// An account's life is not a session's: several sessions share it. It is shut
// at rest. The first sign-in gives it a random password and opens it, and all
// sign-ins in flight share that password. The account is shut when the last
// stream of all sessions has ended, and a grace. A stream by which nobody
// signed in leaves no grace behind: what was opened for it is undone at once.
//
// When the password has done its work depends on who uses it. Delivered to the
// client, it is good until the account is shut, for the client may reconnect
// with it. Used by the broker, it is replaced by one that nobody knows, a grace
// after the last sign-in in flight was seen; the account stays open, and the
// next sign-in sets another. A sign-in is in flight from its open until a
// session of the operating system younger than it is there, its stream ends,
// or flightTime is over.
//
// What time brings about is done by tick, which may be called at any time.
//
// Locks are taken in this order: op of a login, mu, and under mu those of the
// event store, of the agent and of its care for the SSH server. Nothing that waits for the broker or for the
// operating system's tools is done under mu.
type sessions struct {
	acc   *accounts.Manager
	grace time.Duration
	// inject: the broker signs in with the password, and not the client
	inject bool
	now    func() time.Time // the machine's own clock: what is measured here are spans of time
	log    *slog.Logger
	event  func(api.Event) error           // stores an event
	end    func(stream uint64, why string) // tells the broker to end a stream; does not wait
	kill   func()                          // ends a broker that does not obey
	// refused tells of a stream by which nobody signed in
	refused func(user, session string, detail map[string]string)
	limit   func() (max, disc time.Duration) // a session's most, and a disconnected OS session's
	// elsewhere reports whether its person is signed in for a session past the broker
	elsewhere func(ref) bool
	// signedIn reports whether somebody is signed in as login past the broker
	signedIn func(login string) bool
	path     string                             // of sessionsFile
	op       func(login string) (unlock func()) // one operation on an account at a time
	wake     chan struct{}                      // a tick is worth its while now
	looks    chan struct{}                      // holds one for each look that goes on

	mu       sync.Mutex
	next     uint64 // stream
	streams  map[uint64]*stream
	sessions map[string]*session
	past     map[string]time.Time // sessions without streams that could come back: until when
	accounts map[string]*account
	resets   map[string]bool      // logins whose person is still to be told of a reset
	demand   map[string]time.Time // accounts on demand: since when nobody has had a session
	holds    map[string]int       // sign-ins on their way that need the account of a login on demand
}

// A stream is one connection to a service.
type stream struct {
	session *session
	account *account
	secret  *secret // that it was given; nil where the service needs none
	remote  string
	opened  time.Time
	seen    bool      // its sign-in was
	reset   bool      // its person is told of a reset of the password
	ended   time.Time // when the broker was told to end it
}

// A session is one person on this host through one service.
type session struct {
	ID      string    `json:"id"`
	User    string    `json:"user"` // id
	Login   string    `json:"login"`
	Service string    `json:"service"`
	Remote  string    `json:"remote"`
	CAs     []string  `json:"cas,omitempty"` // whose certificates have let its streams in, as in State.DroppedCAs
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`
	In      uint64    `json:"in,omitempty"` // bytes from and to the client
	Out     uint64    `json:"out,omitempty"`
	Ended   string    `json:"ended,omitempty"` // why, if over

	streams int
	empty   time.Time // since when there is no stream
	why     string    // the last stream ended, or all have to
	over    bool      // no stream may join it any more
}

// A ref is what a session is known by beyond the broker: a sign-in to the SSH
// server is of a session only if all of it is the same.
type ref struct{ session, user, login, service string }

func (ses *session) ref() ref { return ref{ses.ID, ses.User, ses.Login, ses.Service} }

// A secret is one password of an account, and what is known of its use.
type secret struct {
	password sft.Secret
	kept     bool               // the client has it: it is good until the account is shut
	bad      bool               // the RDP service refused it: nobody is given it any more
	flights  map[uint64]*stream // sign-ins in flight with it
	seen     time.Time          // when a sign-in with it was last seen; zero: never
	looking  bool               // somebody is about to see
	looked   time.Time
	told     bool // that it cannot be seen was logged
}

// An account is one that was opened since the agent started.
type account struct {
	login    string
	name     string  // the person's full name
	open     bool    // it is not at rest: some password may match
	secret   *secret // that matches now; nil: if any does, nobody knows it
	streams  int
	desktops int       // of those, the ones that sign in with a password
	opening  bool      // a sign-in is on its way
	left     time.Time // when the last stream ended by which somebody had signed in; zero: none since it was opened
	expiry   time.Time // when its OS sessions end if no stream is left
	logoff   time.Time // when its OS sessions end; zero: they do not
	over     bool      // shut it now, grace or not
	resting  bool      // somebody is about to
	again    time.Time // it could not be shut: not to be tried before
	told     time.Time // when that was logged
}

func newSessions(s *sessions) *sessions {
	s.streams, s.sessions, s.accounts, s.past = map[uint64]*stream{}, map[string]*session{}, map[string]*account{}, map[string]time.Time{}
	s.resets, s.demand, s.holds = map[string]bool{}, map[string]time.Time{}, map[string]int{}
	s.wake, s.looks = make(chan struct{}, 1), make(chan struct{}, maxLooks)
	locks := map[string]*sync.Mutex{}
	var mu sync.Mutex
	s.op = func(login string) func() {
		mu.Lock()
		l := locks[login]
		if l == nil {
			l = &sync.Mutex{}
			locks[login] = l
		}
		mu.Unlock()
		l.Lock()
		return l.Unlock
	}
	return s
}

var errSessionOver = &sft.Error{Code: sft.Denied, Msg: "the session has reached its end", Hint: "connect again"}

// open readies the account of a grant, and adds a stream to its session. Only
// RDP is signed in to with a password: for another service the account stays
// as it is, and what is returned is empty.
// allowed is asked last, when the stream can be found by whoever ends it.
func (s *sessions) open(ctx context.Context, u api.StateUser, id, service, remote, ca string, allowed func() error) (uint64, sft.Secret, error) {
	defer s.op(u.Login)()
	acc, err := s.claim(ctx, u, id)
	if err != nil {
		return 0, sft.Secret{}, err
	}
	s.mu.Lock()
	fresh, was := service == frame.RDP && (acc.secret == nil || acc.secret.bad), acc.open
	s.mu.Unlock()
	if fresh {
		err = s.enable(ctx, acc, u, id)
	} else if service != frame.RDP {
		err = s.acc.Ready(ctx, u.Login)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	acc.opening = false
	var stream uint64
	if err == nil {
		stream, err = s.join(acc, u, id, service, remote, ca, allowed)
	}
	if err != nil {
		acc.over = acc.over || fresh && !was // whatever state it is in, nobody has this password
		return 0, sft.Secret{}, err
	}
	if service != frame.RDP {
		return stream, sft.Secret{}, nil
	}
	return stream, acc.secret.password, nil
}

// claim returns the account of u, which is not shut before opening is false
// again. One that somebody's lost access had shut soon is shut first, with all
// that comes with it: it is not handed on. The caller holds op.
func (s *sessions) claim(ctx context.Context, u api.StateUser, id string) (*account, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.joinable(u, id); err != nil {
		return nil, err
	}
	if acc := s.accounts[u.Login]; acc != nil && acc.over {
		s.mu.Unlock()
		s.restHeld(ctx, acc)
		s.mu.Lock()
		if acc.over || acc.logoffDue(s.now()) {
			return nil, &sft.Error{Code: sft.Unavailable, Msg: "the account " + sft.Quote(u.Login) + " is not shut yet after access to it had ended", Hint: "try again in a moment; if it stays so, ask the host's administrator to look at \"sftd status\""}
		}
	}
	acc := s.accounts[u.Login]
	if acc == nil {
		acc = &account{login: u.Login}
		s.accounts[u.Login] = acc
	}
	acc.opening, acc.name = true, u.FullName
	return acc, nil
}

// joinable refuses a session that has ended, or is somebody else's, and one
// stream too many.
func (s *sessions) joinable(u api.StateUser, id string) error {
	now := s.now()
	ses := s.sessions[id]
	if ses != nil && (ses.over || ses.User != u.ID || ses.Login != u.Login || !ses.Until.After(now)) {
		return errSessionOver
	}
	if until, ok := s.past[id]; ok && !until.After(now) {
		return errSessionOver
	}
	if acc := s.accounts[u.Login]; acc != nil && acc.streams >= maxStreams {
		return &sft.Error{Code: sft.TooMany, Msg: fmt.Sprintf("you have %d connections to this host", acc.streams), Hint: "close some, then try again"}
	}
	return nil
}

// enable gives an account a password, and tells of it if it was shut. Sign-ins
// with a password before it are no longer in flight. The caller holds op.
func (s *sessions) enable(ctx context.Context, acc *account, u api.StateUser, id string) error {
	sec := &secret{password: accounts.NewPassword(u.Login, u.FullName), kept: !s.inject, flights: map[uint64]*stream{}}
	if err := s.acc.Enable(ctx, u.Login, sec.password); err != nil {
		return err
	}
	s.mu.Lock()
	was := acc.open
	if !was {
		acc.left = time.Time{}
	}
	acc.open, acc.secret = true, sec
	s.mu.Unlock()
	if was {
		return nil
	}
	if err := s.event(api.Event{Kind: string(audit.AccountEnabled), User: u.ID, Session: id, Detail: map[string]string{"login": u.Login}}); err != nil {
		return fmt.Errorf("record that the account is enabled: %w", err)
	}
	return nil
}

// join adds a stream to a session, which it begins if there is none, or to
// nothing when it returns an error. The caller holds op and s.mu.
func (s *sessions) join(acc *account, u api.StateUser, id, service, remote, ca string, allowed func() error) (uint64, error) {
	if err := s.joinable(u, id); err != nil { // it may have ended while the account was readied
		return 0, err
	}
	if acc.over { // and so may all access
		return 0, errSessionOver
	}
	if err := allowed(); err != nil {
		return 0, err
	}
	ses := s.sessions[id]
	if ses == nil {
		now := s.now()
		most, _ := s.limit()
		ses = &session{ID: id, User: u.ID, Login: u.Login, Service: service, Remote: remote, CAs: []string{ca}, Since: now, Until: now.Add(most)}
		if until, ok := s.past[id]; ok { // its limit is not begun anew
			ses.Until = until
		}
		s.sessions[id] = ses
		err := s.save()
		if err == nil {
			err = s.event(api.Event{Kind: string(audit.SessionStart), User: u.ID, Session: id, Detail: map[string]string{"login": u.Login, "service": service, "remote": remote}})
		}
		if err != nil {
			delete(s.sessions, id)
			return 0, fmt.Errorf("record the session: %w", err)
		}
		delete(s.past, id)
	} else if !slices.Contains(ses.CAs, ca) {
		ses.CAs = append(ses.CAs, ca)
	}
	s.next++
	st := &stream{session: ses, account: acc, remote: remote, opened: s.now()}
	if service == frame.RDP {
		acc.desktops++
		st.secret, st.reset = acc.secret, s.resets[u.Login]
		delete(s.resets, u.Login)
		if !acc.secret.kept {
			acc.secret.flights[s.next] = st
		}
	}
	s.streams[s.next] = st
	ses.streams++
	acc.streams++
	if !acc.logoff.IsZero() { // put off until somebody has signed in, or not
		acc.expiry, acc.logoff = acc.logoff, time.Time{}
	}
	return s.next, nil
}

// closed tells that a stream is over. One by which nobody signed in is recorded
// as refused; its session, which began with it, ends as any other.
func (s *sessions) closed(id uint64, in, out uint64, why string) {
	st := s.close(id, in, out, why)
	if st == nil {
		return
	}
	if detail, ok := unsigned(why); ok {
		detail["service"], detail["remote"] = st.session.Service, st.remote
		s.refused(st.session.User, st.session.ID, detail)
	}
}

func (s *sessions) close(id uint64, in, out uint64, why string) *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[id]
	if st == nil {
		return nil
	}
	delete(s.streams, id)
	if st.secret != nil {
		delete(st.secret.flights, id)
		st.account.desktops--
	}
	now := s.now()
	ses, acc := st.session, st.account
	ses.In, ses.Out = ses.In+in, ses.Out+out
	if !ses.over {
		ses.why = why
	}
	if ses.streams--; ses.streams == 0 {
		ses.empty = now
	}
	if st.secret != nil && strings.HasPrefix(why, broker.PasswordRefused) {
		st.secret.bad = true
	}
	_, never := unsigned(why)
	if st.reset && never { // nor was told, maybe
		s.resets[acc.login] = true
	}
	if !never || st.seen {
		acc.expiry = time.Time{}
		if st.secret != nil {
			acc.left = now
		}
		if _, disc := s.limit(); disc > 0 {
			acc.expiry = now.Add(disc)
		}
	}
	if acc.streams--; acc.streams == 0 {
		if !acc.over && (!ses.over || acc.open) {
			acc.logoff = acc.expiry
		}
		if acc.left.IsZero() {
			s.prompt()
		}
	}
	return st
}

// wasReset notes that a login's password was reset. The next stream tells.
func (s *sessions) wasReset(login string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resets[login] = true
}

// tellsReset reports whether the person of a stream is to be told of a reset.
func (s *sessions) tellsReset(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[id]
	return st != nil && st.reset
}

// unsigned tells whether a stream that ended for this reason was one by which
// nobody signed in, and what of that is recorded. The broker says so: what is
// not known is not repeated as a code.
func unsigned(why string) (detail map[string]string, ok bool) {
	reason, more, _ := strings.Cut(why, ": ")
	detail = map[string]string{"why": oneLine(why, maxProblem)}
	switch reason {
	case broker.Aborted:
	case broker.PasswordRefused:
		detail["code"] = string(sft.RDPRefused)
	case broker.ServiceRefused:
		detail["code"] = string(sft.RDPUnavailable)
		if slices.ContainsFunc(sft.Codes, func(c sft.CodeInfo) bool { return string(c.Code) == more }) {
			detail["code"] = more
		}
	default:
		return nil, false
	}
	return detail, true
}

// prompt asks for a tick.
func (s *sessions) prompt() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// endWhere ends each session that bad gives a reason for: its streams now, and
// its account and the person's OS sessions too, if no other session of theirs
// goes on.
func (s *sessions) endWhere(bad func(*session) string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	any := false
	for _, ses := range s.sessions {
		if why := bad(ses); why != "" && !ses.over {
			s.endLocked(ses, why)
			any = true
		}
	}
	if !any {
		return
	}
	if err := s.save(); err != nil { // nor does an agent after this one let a stream join
		s.log.Error("remember the sessions that have to end", "error", err)
	}
}

func (s *sessions) endLocked(ses *session, why string) {
	ses.over, ses.why, ses.Ended = true, "ended: "+why, "ended: "+why
	others := false
	for _, o := range s.sessions {
		others = others || o != ses && o.Login == ses.Login && !o.over
	}
	if acc := s.accounts[ses.Login]; acc != nil && !others {
		acc.over = true
		acc.logoff = s.now()
	}
	for id, st := range s.streams {
		if st.session == ses && st.ended.IsZero() {
			st.ended = s.now()
			s.end(id, why)
		}
	}
}

// find tells what a session is known by if it is open, or was and could come
// back: then its end is told already, and who had it is forgotten. until is when
// the session ends at the latest; zero: it was never open here.
func (s *sessions) find(id string) (r ref, open bool, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ses := s.sessions[id]; ses != nil {
		return ses.ref(), true, ses.Until
	}
	return ref{}, false, s.past[id]
}

// refs returns those of the sessions that are open, and why they have to end,
// if they have to.
func (s *sessions) refs() map[ref]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	refs := map[ref]string{}
	for _, ses := range s.sessions {
		if refs[ses.ref()] = ""; ses.over {
			refs[ses.ref()] = ses.why
		}
	}
	return refs
}

// logOff has everything ended that runs as a person, unless a session of
// theirs goes on.
func (s *sessions) logOff(login string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ses := range s.sessions {
		if ses.Login == login && !ses.over {
			return
		}
	}
	if s.accounts[login] == nil {
		s.accounts[login] = &account{login: login}
	}
	s.accounts[login].logoff = s.now()
	s.prompt()
}

// tick does what time has brought about.
func (s *sessions) tick(ctx context.Context) {
	s.watch()
	s.restDue(ctx)
}

// watch ends what has lasted too long, and tells of the sessions that are
// over: also by another way than the broker's. It waits for nothing.
func (s *sessions) watch() {
	now := s.now()
	s.mu.Lock()
	var over []*session
	for _, ses := range s.sessions {
		idle := ses.streams == 0 && !s.elsewhere(ses.ref())
		left := idle && !now.Before(ses.empty.Add(s.grace))
		if !ses.over && !left && !ses.Until.After(now) {
			s.endLocked(ses, "it lasted as long as the project allows")
		}
		if left || idle && ses.over {
			over = append(over, ses)
			s.gone(ses, now)
		}
	}
	for id, until := range s.past {
		if now.Sub(until) > broker.MaxLife { // no certificate of it can be left
			delete(s.past, id)
		}
	}
	for _, st := range s.streams {
		if !st.ended.IsZero() && now.Sub(st.ended) > endPatience {
			s.log.Error("the broker does not end a stream; ending the broker")
			s.kill()
			break
		}
	}
	if len(over) > 0 {
		if err := s.save(); err != nil {
			s.log.Error("remember the open sessions", "error", err)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(over, byBegin)
	for _, ses := range over {
		s.ended(ses, ses.why, now)
	}
}

// gone forgets a session of which nothing is left, but not until when it can come
// back. The caller holds s.mu, saves, and tells of the end.
func (s *sessions) gone(ses *session, now time.Time) {
	delete(s.sessions, ses.ID)
	s.left(ses.Login, now)
	s.past[ses.ID] = ses.Until
	if ses.over && ses.Until.After(now) {
		s.past[ses.ID] = now
	}
}

// restDue shuts each account that is due, replaces each password that is, and
// looks for sign-ins in flight, all side by side: to end a person's processes
// can take long, and nobody else's access waits for it.
func (s *sessions) restDue(ctx context.Context) {
	now := s.now()
	var wg sync.WaitGroup
	s.mu.Lock()
	for _, acc := range s.accounts {
		if acc.idle() && !acc.resting {
			delete(s.accounts, acc.login)
			continue
		}
		if sec := acc.secret; sec != nil && sec.lookDue(now) {
			sec.looking = true
			wg.Go(func() { s.look(ctx, acc.login, sec) })
		}
		if acc.due(now, s.grace) && !now.Before(acc.again) && !acc.resting {
			acc.resting = true
			wg.Go(func() {
				defer s.op(acc.login)()
				s.restHeld(ctx, acc)
				s.mu.Lock()
				defer s.mu.Unlock()
				acc.resting = false
			})
		}
	}
	s.mu.Unlock()
	wg.Wait()
}

// look sees which of the sign-ins in flight with a password have arrived. A
// session that one of them began counts for each that was opened before it:
// which is whose cannot be told.
func (s *sessions) look(ctx context.Context, login string, sec *secret) {
	s.looks <- struct{}{}
	defer func() { <-s.looks }()
	s.mu.Lock()
	opened := make([]time.Time, 0, len(sec.flights))
	for _, st := range sec.flights {
		opened = append(opened, st.opened)
	}
	s.mu.Unlock()
	slices.SortFunc(opened, func(a, b time.Time) int { return b.Compare(a) })
	var failed error
	seen := sort.Search(len(opened), func(i int) bool { // the newest that has arrived; all before it have
		yes, err := s.acc.SignedInSince(ctx, login, opened[i])
		if err != nil {
			failed = err
		}
		return yes && err == nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	sec.looking, sec.looked = false, s.now()
	if done(failed) != nil && !sec.told && ctx.Err() == nil {
		sec.told = true
		s.log.Warn("see whether a person has signed in; the password stays for five minutes", "login", login, "error", failed)
	}
	if seen == len(opened) {
		return
	}
	for id, st := range sec.flights {
		if !st.opened.After(opened[seen]) {
			st.seen, sec.seen = true, sec.looked
			delete(sec.flights, id)
		}
	}
}

// ended records the end of a session.
func (s *sessions) ended(ses *session, why string, at time.Time) {
	_ = s.event(api.Event{Kind: string(audit.SessionEnd), User: ses.User, Session: ses.ID, Detail: map[string]string{
		"login": ses.Login, "service": ses.Service, "remote": ses.Remote, "why": why, "seconds": fmt.Sprintf("%.0f", at.Sub(ses.Since).Seconds()),
		"bytes_in": fmt.Sprint(ses.In), "bytes_out": fmt.Sprint(ses.Out)}}) // kept in memory if not on disk, and logged
}

// due tells that there is something for restHeld to do.
func (a *account) due(now time.Time, grace time.Duration) bool {
	return a.shutDue(now, grace) || a.replaceDue(now, grace) || a.logoffDue(now)
}

func (a *account) shutDue(now time.Time, grace time.Duration) bool {
	return !a.opening && (a.over || a.open && a.desktops == 0 && !now.Before(a.left.Add(grace)))
}

// replaceDue tells that the password has done its work before the account has.
func (a *account) replaceDue(now time.Time, grace time.Duration) bool {
	sec := a.secret
	return !a.opening && sec != nil && !sec.kept && !sec.inFlight(now) && !now.Before(sec.seen.Add(grace))
}

func (a *account) logoffDue(now time.Time) bool {
	return !a.opening && !a.logoff.IsZero() && !now.Before(a.logoff)
}

// idle tells that there is nothing to remember.
func (a *account) idle() bool {
	return a.streams == 0 && !a.opening && !a.open && a.logoff.IsZero() && !a.over
}

// inFlight tells whether a sign-in still needs the password.
func (s *secret) inFlight(now time.Time) bool {
	for _, st := range s.flights {
		if now.Before(st.opened.Add(flightTime)) {
			return true
		}
	}
	return false
}

func (s *secret) lookDue(now time.Time) bool {
	return !s.looking && s.inFlight(now) && !now.Before(s.looked.Add(lookEvery))
}

// restHeld shuts an account that is due, or replaces its password, and ends its
// OS sessions if they are. What fails is tried again. The caller holds op.
func (s *sessions) restHeld(ctx context.Context, acc *account) {
	now := s.now()
	s.mu.Lock()
	if s.accounts[acc.login] != acc { // it was at rest, and may be another's by now
		s.mu.Unlock()
		return
	}
	name := acc.name
	shut, replace, logoff, open := acc.shutDue(now, s.grace), acc.replaceDue(now, s.grace), acc.logoffDue(now), acc.open
	s.mu.Unlock()
	// The person is logged off even where the account cannot be shut, and
	// once more when it could.
	var err error
	if shut {
		if err = done(s.acc.Disable(ctx, acc.login)); err != nil {
			err = fmt.Errorf("shut the account: %w", err)
		}
	}
	shut, replace = shut && err == nil, replace && !shut
	if replace {
		err = done(s.acc.Enable(ctx, acc.login, accounts.NewPassword(acc.login, name))) // which nobody keeps
		if sft.CodeOf(err) == sft.Denied {                                              // it has ended, and with it every password
			err = nil
		}
		if replace = err == nil; !replace {
			err = fmt.Errorf("replace the password: %w", err)
		}
	}
	if logoff {
		lerr := done(s.acc.Logoff(ctx, acc.login))
		logoff = err == nil && lerr == nil
		if lerr != nil {
			err = errors.Join(err, fmt.Errorf("log the person off: %w", lerr))
		}
	}
	if shut && open {
		_ = s.event(api.Event{Kind: string(audit.AccountDisabled), Detail: map[string]string{"login": acc.login}})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if shut {
		acc.open, acc.secret, acc.over = false, nil, false
	}
	if replace {
		acc.secret = nil
	}
	if logoff {
		acc.logoff, acc.expiry = time.Time{}, time.Time{}
	}
	if err != nil {
		acc.again = now.Add(retryShut)
		if acc.told.IsZero() || now.Sub(acc.told) > time.Minute {
			acc.told = now
			s.log.Error("an account is not as it should be; trying again", "login", acc.login, "error", err)
		}
		return
	}
	acc.again, acc.told = time.Time{}, time.Time{}
	if acc.idle() {
		delete(s.accounts, acc.login)
	}
}

// done is err, unless it says that the account is gone, or not ours: then
// there is nothing to do.
func done(err error) error {
	if code := sft.CodeOf(err); err != nil && (code == sft.NotFound || code == sft.Conflict) {
		return nil
	}
	return err
}

func byBegin(a, b *session) int {
	return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID))
}

// A remembered is the content of the sessionsFile.
type remembered struct {
	Sessions []*session           `json:"sessions"`
	Past     map[string]time.Time `json:"past,omitempty"`
	Logoff   map[string]time.Time `json:"logoff,omitempty"` // when a login's OS sessions end
	Demand   map[string]time.Time `json:"demand,omitempty"` // accounts on demand: since when nobody has had a session
}

// save stores which sessions are open, and which OS sessions end when. The
// caller holds s.mu.
func (s *sessions) save() error {
	r := remembered{Past: s.past, Logoff: map[string]time.Time{}, Demand: s.demand,
		Sessions: slices.SortedFunc(maps.Values(s.sessions), byBegin)}
	for login, acc := range s.accounts {
		if !acc.logoff.IsZero() {
			r.Logoff[login] = acc.logoff
		}
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return conf.WriteSecret(s.path, b)
}

// sshClosed is why a session ends that nobody has ended, at the SSH server itself.
const sshClosed = "the connection was closed"

// recover tells of the end of the sessions that an agent before this one left
// open, and shuts every account: nobody knows their passwords any more. A session
// whose person is still signed in past the broker goes on.
func (s *sessions) recover(ctx context.Context) error {
	b, err := conf.ReadPrivate(s.path)
	var left remembered
	if err == nil {
		err = json.Unmarshal(b, &left)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("read the sessions of the agent before", "error", err)
	}
	left.Sessions = slices.DeleteFunc(left.Sessions, func(ses *session) bool { return ses == nil })
	err = s.acc.DisableAll(ctx)
	shut, told := map[string]bool{}, map[string]bool{}
	now := s.now()
	goesOn := map[string]*session{}
	for _, ses := range left.Sessions {
		ses.over, ses.why, ses.empty = ses.Ended != "", cmp.Or(ses.Ended, sshClosed), now
		if s.elsewhere(ses.ref()) {
			goesOn[ses.ID] = ses
		} else {
			s.ended(ses, cmp.Or(ses.Ended, "sftd ended"), now)
		}
		if err == nil && ses.Service == frame.RDP && !told[ses.Login] {
			told[ses.Login] = true
			_ = s.event(api.Event{Kind: string(audit.AccountDisabled), User: ses.User, Detail: map[string]string{"login": ses.Login}})
		}
		shut[ses.Login] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, disc := s.limit()
	for login := range shut {
		if disc > 0 {
			s.accounts[login] = &account{login: login, logoff: now.Add(disc)}
		}
	}
	for login, at := range left.Logoff {
		if !shut[login] {
			s.accounts[login] = &account{login: login, logoff: at}
		}
	}
	maps.Copy(s.past, left.Past)
	maps.Copy(s.demand, left.Demand)
	for login := range s.demand {
		if s.signedIn(login) {
			s.demand[login] = now
		}
	}
	for _, ses := range left.Sessions {
		if goesOn[ses.ID] == nil {
			s.gone(ses, now)
		}
	}
	maps.Copy(s.sessions, goesOn)
	return errors.Join(err, s.save())
}

// shutAll tells of the end of every session and shuts every account, for an
// agent that stops: its broker has ended. What people left running goes on, and
// so does a session whose person is signed in past the broker.
func (s *sessions) shutAll(ctx context.Context, why string) error {
	s.tick(ctx)
	s.mu.Lock()
	left := slices.SortedFunc(maps.Values(s.sessions), byBegin)
	left = slices.DeleteFunc(left, func(ses *session) bool { return s.elsewhere(ses.ref()) })
	for _, ses := range left {
		s.gone(ses, s.now())
	}
	s.streams = map[uint64]*stream{}
	err := s.save()
	var open []string
	for login, acc := range s.accounts {
		if acc.open {
			open = append(open, login)
		}
	}
	s.mu.Unlock()
	for _, ses := range left {
		s.ended(ses, cmp.Or(ses.Ended, "ended: "+why), s.now())
	}
	shut := s.acc.DisableAll(ctx)
	for _, login := range open {
		if shut == nil {
			_ = s.event(api.Event{Kind: string(audit.AccountDisabled), Detail: map[string]string{"login": login}})
		}
	}
	return errors.Join(err, shut)
}

// anyOpen tells whether an account is open.
func (s *sessions) anyOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, acc := range s.accounts {
		if acc.open || acc.opening {
			return true
		}
	}
	return false
}

// count returns the open sessions and streams.
func (s *sessions) count() (sessions, streams int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ses := range s.sessions {
		if ses.streams > 0 {
			sessions++
		}
	}
	return sessions, len(s.streams)
}
