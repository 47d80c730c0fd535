package agent

import (
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
	"sft/internal/conf"
)

// sessionsFile remembers which sessions are open, so that an agent that was
// killed can tell of their end.
const sessionsFile = "sessions.json"

// endPatience is how long a broker has to close a stream that it was told to
// end. A broker that does not is ended itself.
const endPatience = 2 * time.Second

// sessions is the life of everything that is open on the host: of streams, of
// the sessions they belong to, and of the accounts these people sign in with.
//
// An account's life is not a session's: several sessions share it. It is shut
// at rest. The first sign-in gives it a random password and opens it, and all
// sign-ins in flight share that password. How long it is kept, is replaceAt's
// to say. When the last stream of all sessions is gone, and a grace, the
// account is shut.
//
// What time brings about is done by tick, which may be called at any time.
type sessions struct {
	acc   *accounts.Manager
	grace time.Duration
	now   func() time.Time
	log   *slog.Logger
	event func(api.Event) error              // stores an event
	end   func(stream uint64, why string)    // tells the broker to end a stream
	kill  func()                             // ends a broker that does not obey
	limit func() (max, disc time.Duration)   // a session's most, and a disconnected OS session's
	path  string                             // of sessionsFile
	op    func(login string) (unlock func()) // one operation on an account at a time

	mu       sync.Mutex
	next     uint64 // stream
	streams  map[uint64]*stream
	sessions map[string]*session
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
	why     string    // the last stream ended
	over    bool      // no stream may join it any more
}

// An account is one that was opened since the agent started.
type account struct {
	login    string
	password sft.Secret // that matches now; empty: it is shut
	set      time.Time
	streams  int
	opening  int       // sign-ins on their way
	empty    time.Time // since when there is no stream
	logoff   time.Time // when its OS sessions end; zero: they do not
	over     bool      // shut it now, grace or not
}

func newSessions(s *sessions) *sessions {
	s.streams, s.sessions, s.accounts = map[uint64]*stream{}, map[string]*session{}, map[string]*account{}
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

// replaceAt says when an account's password has done its work. Delivered to
// the client, it is needed as long as the client may reconnect with it: until
// the account is shut.
func (a *account) replaceAt() (time.Time, bool) { return time.Time{}, false }

var errSessionOver = &sft.Error{Code: sft.Denied, Msg: "the session has reached its end", Hint: "run \"sft rdp\" again"}

// open readies the account of a grant, and adds a stream to its session.
// allowed is asked last, when the stream can be found by whoever ends it.
func (s *sessions) open(ctx context.Context, u api.StateUser, id, service, remote string, allowed func() error) (uint64, sft.Secret, error) {
	defer s.op(u.Login)()
	s.mu.Lock()
	now := s.now()
	ses := s.sessions[id]
	if ses != nil && (ses.over || ses.User != u.ID || !ses.Until.After(now)) {
		s.mu.Unlock()
		return 0, sft.Secret{}, errSessionOver
	}
	acc := s.accounts[u.Login]
	if acc == nil {
		acc = &account{login: u.Login}
		s.accounts[u.Login] = acc
	}
	acc.opening++ // it is not shut under us
	password := acc.password
	s.mu.Unlock()
	done := func() {
		acc.opening--
		if acc.streams == 0 && acc.opening == 0 {
			acc.empty = s.now()
		}
	}
	if password.Empty() {
		password = newPassword()
		if err := s.acc.Enable(ctx, u.Login, password); err != nil {
			s.mu.Lock()
			done()
			acc.over = true // whatever state it is in
			s.mu.Unlock()
			return 0, sft.Secret{}, err
		}
		s.mu.Lock()
		acc.password, acc.set, acc.over = password, s.now(), false
		s.mu.Unlock()
		if err := s.event(api.Event{Kind: string(audit.AccountEnabled), User: u.ID, Session: id, Detail: map[string]string{"login": u.Login}}); err != nil {
			s.mu.Lock()
			done()
			acc.over = true
			s.mu.Unlock()
			return 0, sft.Secret{}, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer done()
	fresh := ses == nil
	if fresh {
		most, _ := s.limit()
		ses = &session{ID: id, User: u.ID, Login: u.Login, Service: service, Remote: remote, Since: s.now(), Until: s.now().Add(most)}
	}
	s.next++
	stream := &stream{session: ses, account: acc}
	s.streams[s.next] = stream
	s.sessions[id] = ses
	ses.streams++
	acc.streams++
	acc.logoff = time.Time{}
	undo := func() {
		delete(s.streams, s.next)
		ses.streams--
		acc.streams--
		if fresh {
			delete(s.sessions, id)
		}
		if acc.streams == 0 {
			acc.over = true
		}
	}
	if err := allowed(); err != nil {
		undo()
		return 0, sft.Secret{}, err
	}
	if fresh {
		err := s.save()
		if err == nil {
			err = s.event(api.Event{Kind: string(audit.SessionStart), User: u.ID, Session: id, Detail: map[string]string{"login": u.Login, "service": service, "remote": remote}})
		}
		if err != nil {
			undo()
			return 0, sft.Secret{}, fmt.Errorf("record the session: %w", err)
		}
	}
	return s.next, password, nil
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
	ses.in, ses.out, ses.why = ses.in+in, ses.out+out, why
	if ses.streams--; ses.streams == 0 {
		ses.empty = now
	}
	if acc.streams--; acc.streams == 0 {
		acc.empty = now
		if _, disc := s.limit(); disc > 0 {
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
	ses.over = true
	if ses.streams == 0 {
		ses.why = "ended: " + why
	}
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
	now := s.now()
	s.mu.Lock()
	var over []*session
	for id, ses := range s.sessions {
		if !ses.over && !ses.Until.After(now) {
			s.endLocked(ses, "it lasted as long as the project allows")
		}
		if ses.streams == 0 && (ses.over || !now.Before(ses.empty.Add(s.grace))) {
			over = append(over, ses)
			delete(s.sessions, id)
		}
	}
	for _, st := range s.streams {
		if !st.ended.IsZero() && now.Sub(st.ended) > endPatience {
			s.log.Error("the broker does not end a stream; ending the broker")
			s.kill()
			break
		}
	}
	var due []*account
	for _, acc := range s.accounts {
		if acc.shutDue(now, s.grace) || acc.logoffDue(now) {
			due = append(due, acc)
		}
	}
	if len(over) > 0 {
		if err := s.save(); err != nil {
			s.log.Error("remember the open sessions", "error", err)
		}
	}
	s.mu.Unlock()
	for _, ses := range over {
		s.ended(ses, ses.why, now)
	}
	for _, acc := range due {
		s.rest(ctx, acc)
	}
}

// ended records the end of a session.
func (s *sessions) ended(ses *session, why string, at time.Time) {
	_ = s.event(api.Event{Kind: string(audit.SessionEnd), User: ses.User, Session: ses.ID, Detail: map[string]string{
		"login": ses.Login, "service": ses.Service, "remote": ses.Remote, "why": why, "seconds": fmt.Sprintf("%.0f", at.Sub(ses.Since).Seconds()),
		"bytes_in": fmt.Sprint(ses.in), "bytes_out": fmt.Sprint(ses.out)}}) // kept in memory if not on disk, and logged
}

func (a *account) shutDue(now time.Time, grace time.Duration) bool {
	if a.opening > 0 {
		return false
	}
	return a.over || !a.password.Empty() && a.streams == 0 && !now.Before(a.empty.Add(grace))
}

func (a *account) logoffDue(now time.Time) bool {
	return a.opening == 0 && !a.logoff.IsZero() && !now.Before(a.logoff)
}

// rest shuts an account that is due, and ends its OS sessions if they are.
// What fails is tried again at the next tick.
func (s *sessions) rest(ctx context.Context, acc *account) {
	defer s.op(acc.login)()
	now := s.now()
	s.mu.Lock()
	shut, logoff := acc.shutDue(now, s.grace), acc.logoffDue(now)
	s.mu.Unlock()
	if shut {
		err := s.acc.Disable(ctx, acc.login)
		if code := sft.CodeOf(err); err != nil && code != sft.NotFound && code != sft.Conflict {
			s.log.Error("shut an account", "login", acc.login, "error", err)
			return
		}
		s.mu.Lock()
		acc.password, acc.over = sft.Secret{}, false
		s.mu.Unlock()
		_ = s.event(api.Event{Kind: string(audit.AccountDisabled), Detail: map[string]string{"login": acc.login}})
	}
	if logoff {
		err := s.acc.Logoff(ctx, acc.login)
		if code := sft.CodeOf(err); err != nil && code != sft.NotFound && code != sft.Conflict {
			s.log.Error("log a person off", "login", acc.login, "error", err)
			return
		}
		s.mu.Lock()
		acc.logoff = time.Time{}
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if acc.streams == 0 && acc.opening == 0 && acc.password.Empty() && acc.logoff.IsZero() && !acc.over {
		delete(s.accounts, acc.login)
	}
}

// save stores which sessions are open. The caller holds s.mu.
func (s *sessions) save() error {
	list := slices.SortedFunc(maps.Values(s.sessions), func(a, b *session) int { return a.Since.Compare(b.Since) })
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return conf.WriteSecret(s.path, b)
}

// recover tells of the end of the sessions that an agent before this one left
// open, and shuts every account: nobody knows their passwords any more.
func (s *sessions) recover(ctx context.Context) error {
	b, err := conf.ReadPrivate(s.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("read the sessions of the agent before", "error", err)
	}
	var left []*session
	if err == nil {
		if err := json.Unmarshal(b, &left); err != nil {
			s.log.Error("read the sessions of the agent before", "error", err)
		}
	}
	err = s.acc.DisableAll(ctx)
	for _, ses := range left {
		s.ended(ses, "sftd ended", s.now())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(err, s.save())
}

// shutAll ends every stream and shuts every account, for an agent that stops.
func (s *sessions) shutAll(ctx context.Context, why string) error {
	s.endWhere(func(*session) string { return why })
	s.mu.Lock()
	for _, acc := range s.accounts {
		acc.over, acc.logoff = !acc.password.Empty(), time.Time{} // their work stays
	}
	left := slices.Collect(maps.Values(s.sessions))
	s.sessions = map[string]*session{}
	err := s.save()
	s.mu.Unlock()
	for _, ses := range left {
		s.ended(ses, "ended: "+why, s.now())
	}
	return errors.Join(err, s.acc.DisableAll(ctx))
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
