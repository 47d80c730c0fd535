package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"sft"
	"sft/internal/accounts"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/broker"
	"sft/internal/conf"
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

// sessions is the life of everything that is open on the host: of streams, of
// the sessions they belong to, and of the accounts these people sign in with.
//
// An account's life is not a session's: several sessions share it. It is shut
// at rest. The first sign-in gives it a random password and opens it, and all
// sign-ins in flight share that password. When it has done its work, is
// shutDue's to say: delivered to the client, it is needed as long as the client
// may reconnect with it, until the last stream of all sessions is gone, and a
// grace.
//
// What time brings about is done by tick, which may be called at any time.
//
// Locks are taken in this order: op of a login, mu, and under mu those of the
// event store and of the agent. Nothing that waits for the broker or for the
// operating system's tools is done under mu.
type sessions struct {
	acc   *accounts.Manager
	grace time.Duration
	now   func() time.Time // the machine's own clock: what is measured here are spans of time
	log   *slog.Logger
	event func(api.Event) error              // stores an event
	end   func(stream uint64, why string)    // tells the broker to end a stream; does not wait
	kill  func()                             // ends a broker that does not obey
	limit func() (max, disc time.Duration)   // a session's most, and a disconnected OS session's
	path  string                             // of sessionsFile
	op    func(login string) (unlock func()) // one operation on an account at a time

	mu       sync.Mutex
	next     uint64 // stream
	streams  map[uint64]*stream
	sessions map[string]*session
	past     map[string]time.Time // sessions without streams that could come back: until when
	accounts map[string]*account
}

// A stream is one connection to a service.
type stream struct {
	session *session
	account *account
	ended   time.Time // when the broker was told to end it
}

// A session is one person on this host through one service.
type session struct {
	ID      string    `json:"id"`
	User    string    `json:"user"` // id
	Login   string    `json:"login"`
	Service string    `json:"service"`
	Remote  string    `json:"remote"`
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`

	streams int
	empty   time.Time // since when there is no stream
	in, out uint64    // bytes from and to the client
	why     string    // the last stream ended, or all have to
	over    bool      // no stream may join it any more
}

// An account is one that was opened since the agent started.
type account struct {
	login    string
	password sft.Secret // that matches now; empty: it is shut
	streams  int
	opening  bool      // a sign-in is on its way
	empty    time.Time // since when there is no stream
	logoff   time.Time // when its OS sessions end; zero: they do not
	over     bool      // shut it now, grace or not
	resting  bool      // somebody is about to
	again    time.Time // it could not be shut: not to be tried before
	told     time.Time // when that was logged
}

func newSessions(s *sessions) *sessions {
	s.streams, s.sessions, s.accounts, s.past = map[uint64]*stream{}, map[string]*session{}, map[string]*account{}, map[string]time.Time{}
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

// newPassword returns 64 random characters, 384 bits.
func newPassword() sft.Secret {
	var b [48]byte
	rand.Read(b[:])
	return sft.NewSecret(base64.RawURLEncoding.EncodeToString(b[:]))
}

var errSessionOver = &sft.Error{Code: sft.Denied, Msg: "the session has reached its end", Hint: "run \"sft rdp\" again"}

// open readies the account of a grant, and adds a stream to its session.
// allowed is asked last, when the stream can be found by whoever ends it.
func (s *sessions) open(ctx context.Context, u api.StateUser, id, service, remote string, allowed func() error) (uint64, sft.Secret, error) {
	defer s.op(u.Login)()
	acc, err := s.claim(ctx, u, id)
	if err != nil {
		return 0, sft.Secret{}, err
	}
	fresh := acc.password.Empty() // set under op alone
	if fresh {
		err = s.enable(ctx, acc, u, id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	acc.opening = false
	var stream uint64
	if err == nil {
		stream, err = s.join(acc, u, id, service, remote, allowed)
	}
	if err != nil {
		acc.over = acc.over || fresh // whatever state it is in, nobody has this password
		return 0, sft.Secret{}, err
	}
	return stream, acc.password, nil
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
	acc.opening = true
	return acc, nil
}

// joinable refuses a session that has ended, or is somebody else's.
func (s *sessions) joinable(u api.StateUser, id string) error {
	now := s.now()
	ses := s.sessions[id]
	if ses != nil && (ses.over || ses.User != u.ID || ses.Login != u.Login || !ses.Until.After(now)) {
		return errSessionOver
	}
	if until, ok := s.past[id]; ok && !until.After(now) {
		return errSessionOver
	}
	return nil
}

// enable gives an account a password, and tells of it. The caller holds op.
func (s *sessions) enable(ctx context.Context, acc *account, u api.StateUser, id string) error {
	password := newPassword()
	if err := s.acc.Enable(ctx, u.Login, password); err != nil {
		return err
	}
	s.mu.Lock()
	acc.password = password
	s.mu.Unlock()
	if err := s.event(api.Event{Kind: string(audit.AccountEnabled), User: u.ID, Session: id, Detail: map[string]string{"login": u.Login}}); err != nil {
		return fmt.Errorf("record that the account is enabled: %w", err)
	}
	return nil
}

// join adds a stream to a session, which it begins if there is none, or to
// nothing when it returns an error. The caller holds op and s.mu.
func (s *sessions) join(acc *account, u api.StateUser, id, service, remote string, allowed func() error) (uint64, error) {
	if err := s.joinable(u, id); err != nil { // it may have ended while the account was readied
		return 0, err
	}
	if acc.over { // and so may all access
		return 0, errSessionOver
	}
	if acc.streams >= maxStreams {
		return 0, &sft.Error{Code: sft.TooMany, Msg: fmt.Sprintf("you have %d connections to this host", acc.streams), Hint: "close some, then try again"}
	}
	if err := allowed(); err != nil {
		return 0, err
	}
	ses := s.sessions[id]
	if ses == nil {
		now := s.now()
		most, _ := s.limit()
		ses = &session{ID: id, User: u.ID, Login: u.Login, Service: service, Remote: remote, Since: now, Until: now.Add(most)}
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
	}
	s.next++
	s.streams[s.next] = &stream{session: ses, account: acc}
	ses.streams++
	acc.streams++
	acc.logoff = time.Time{}
	return s.next, nil
}

// closed tells that a stream is over.
func (s *sessions) closed(id uint64, in, out uint64, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[id]
	if st == nil {
		return
	}
	delete(s.streams, id)
	now := s.now()
	ses, acc := st.session, st.account
	ses.in, ses.out = ses.in+in, ses.out+out
	if !ses.over {
		ses.why = why
	}
	if ses.streams--; ses.streams == 0 {
		ses.empty = now
	}
	if acc.streams--; acc.streams == 0 {
		acc.empty = now
		if _, disc := s.limit(); disc > 0 && !ses.over && !acc.over {
			acc.logoff = now.Add(disc)
		}
	}
}

// endWhere ends each session that bad gives a reason for: its streams now, and
// its account and the person's OS sessions too, if no other session of theirs
// goes on.
func (s *sessions) endWhere(bad func(*session) string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ses := range s.sessions {
		if why := bad(ses); why != "" && !ses.over {
			s.endLocked(ses, why)
		}
	}
}

func (s *sessions) endLocked(ses *session, why string) {
	ses.over, ses.why = true, "ended: "+why
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

// tick does what time has brought about.
func (s *sessions) tick(ctx context.Context) {
	s.watch()
	s.restDue(ctx)
}

// watch ends what has lasted too long, and tells of the sessions that are
// over. It waits for nothing.
func (s *sessions) watch() {
	now := s.now()
	s.mu.Lock()
	var over []*session
	for id, ses := range s.sessions {
		left := ses.streams == 0 && !now.Before(ses.empty.Add(s.grace))
		if !ses.over && !left && !ses.Until.After(now) {
			s.endLocked(ses, "it lasted as long as the project allows")
		}
		if left || ses.streams == 0 && ses.over {
			over = append(over, ses)
			delete(s.sessions, id)
			s.past[id] = ses.Until
			if ses.over && ses.Until.After(now) {
				s.past[id] = now
			}
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

// restDue shuts each account that is due, side by side: to end a person's
// processes can take long, and nobody else's access waits for it.
func (s *sessions) restDue(ctx context.Context) {
	now := s.now()
	var wg sync.WaitGroup
	s.mu.Lock()
	for _, acc := range s.accounts {
		if acc.idle() && !acc.resting {
			delete(s.accounts, acc.login)
			continue
		}
		if (acc.shutDue(now, s.grace) || acc.logoffDue(now)) && !now.Before(acc.again) && !acc.resting {
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

// ended records the end of a session.
func (s *sessions) ended(ses *session, why string, at time.Time) {
	_ = s.event(api.Event{Kind: string(audit.SessionEnd), User: ses.User, Session: ses.ID, Detail: map[string]string{
		"login": ses.Login, "service": ses.Service, "remote": ses.Remote, "why": why, "seconds": fmt.Sprintf("%.0f", at.Sub(ses.Since).Seconds()),
		"bytes_in": fmt.Sprint(ses.in), "bytes_out": fmt.Sprint(ses.out)}}) // kept in memory if not on disk, and logged
}

func (a *account) shutDue(now time.Time, grace time.Duration) bool {
	return !a.opening && (a.over || !a.password.Empty() && a.streams == 0 && !now.Before(a.empty.Add(grace)))
}

func (a *account) logoffDue(now time.Time) bool {
	return !a.opening && !a.logoff.IsZero() && !now.Before(a.logoff)
}

// idle tells that there is nothing to remember.
func (a *account) idle() bool {
	return a.streams == 0 && !a.opening && a.password.Empty() && a.logoff.IsZero() && !a.over
}

// restHeld shuts an account that is due, and ends its OS sessions if they are.
// What fails is tried again. The caller holds op.
func (s *sessions) restHeld(ctx context.Context, acc *account) {
	now := s.now()
	s.mu.Lock()
	if s.accounts[acc.login] != acc { // it was at rest, and may be another's by now
		s.mu.Unlock()
		return
	}
	shut, logoff, open := acc.shutDue(now, s.grace), acc.logoffDue(now), !acc.password.Empty()
	s.mu.Unlock()
	// The person is logged off even where the account cannot be shut, and
	// once more when it could.
	var err error
	if shut {
		if err = done(s.acc.Disable(ctx, acc.login)); err != nil {
			err = fmt.Errorf("shut the account: %w", err)
		}
	}
	shut = shut && err == nil
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
		acc.password, acc.over = sft.Secret{}, false
	}
	if logoff {
		acc.logoff = time.Time{}
	}
	if err != nil {
		acc.again = now.Add(retryShut)
		if acc.told.IsZero() || now.Sub(acc.told) > time.Minute {
			acc.told = now
			s.log.Error("an account is not at rest; trying again", "login", acc.login, "error", err)
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
}

// save stores which sessions are open, and which OS sessions end when. The
// caller holds s.mu.
func (s *sessions) save() error {
	r := remembered{Past: s.past, Logoff: map[string]time.Time{},
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

// recover tells of the end of the sessions that an agent before this one left
// open, and shuts every account: nobody knows their passwords any more.
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
	shut := map[string]bool{}
	now := s.now()
	for _, ses := range left.Sessions {
		s.ended(ses, "sftd ended", now)
		if err == nil && !shut[ses.Login] {
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
	for _, ses := range left.Sessions {
		s.past[ses.ID] = ses.Until
	}
	return errors.Join(err, s.save())
}

// shutAll tells of the end of every session and shuts every account, for an
// agent that stops: its broker has ended. What people left running goes on.
func (s *sessions) shutAll(ctx context.Context, why string) error {
	s.tick(ctx)
	s.mu.Lock()
	left := slices.SortedFunc(maps.Values(s.sessions), byBegin)
	s.sessions, s.streams = map[string]*session{}, map[uint64]*stream{}
	err := s.save()
	var open []string
	for login, acc := range s.accounts {
		if !acc.password.Empty() {
			open = append(open, login)
		}
	}
	s.mu.Unlock()
	for _, ses := range left {
		s.ended(ses, "ended: "+why, s.now())
	}
	shut := s.acc.DisableAll(ctx)
	for _, login := range open {
		if shut == nil {
			_ = s.event(api.Event{Kind: string(audit.AccountDisabled), Detail: map[string]string{"login": login}})
		}
	}
	return errors.Join(err, shut)
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
