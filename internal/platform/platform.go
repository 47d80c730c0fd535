// Package platform is every operation of the control plane, whole: each one
// finds the facts, asks package policy, makes the change and records the
// event, in one transaction. What carries an operation here (HTTP, the
// command line) decides nothing.
//
// An operation takes the Actor who asks and trusts nothing of it that may
// have changed since it was authenticated: who it is, is read again beside
// the change.
package platform

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/cloudid"
	"sft/internal/policy"
	"sft/internal/store"
)

// A Platform is the control plane on one database.
type Platform struct {
	DB     *store.DB
	Sealer ca.Sealer
	URL    string // as people and agents reach it; the audience of signed requests
	Log    *slog.Logger
	Now    func() time.Time
	AWS    *cloudid.AWS // verifies AWS instances; New takes the certificates in the program

	SealEvery      time.Duration // how often Run seals audit events; New says a second
	PollEvery      time.Duration // how often State looks for the changes of other platforms; New says 5 seconds
	HousekeepEvery time.Duration // how often Run does what time brings about; New says a minute
	RetainEvery    time.Duration // how often Run looks for what is older than Retention; New says an hour
	Exports        []Sink        // where Run sends what is sealed; names differ
	ACME           *ACME         // by UseACME: where its certificate comes from; nil: from elsewhere
	Retention      time.Duration // after which Run removes sealed events; 0: never
	Instance       string        // this platform among those on one database, the same after a restart; New makes one up

	limits  Limits
	news    news
	ending  ending
	sealed  sealing
	exports exports
	mu      sync.Mutex
	opened  map[string]*ca.Authority // by CA id
	trusted map[string]trusted       // by project
	tokenMu sync.Mutex
	tokenK  []byte
}

// New returns the platform on a database that Init has prepared.
func New(ctx context.Context, db *store.DB, s ca.Sealer, log *slog.Logger, now func() time.Time) (*Platform, error) {
	if now == nil {
		now = time.Now
	}
	// The database keeps microseconds: what is shown when it is made is what is
	// shown from then on.
	micros := func() time.Time {
		t := now()
		return t.Add(-time.Duration(t.Nanosecond() % 1000)) // and not Truncate: it would forget the machine's own clock
	}
	p := &Platform{DB: db, Sealer: s, Log: log, Now: micros, AWS: cloudid.NewAWS(), SealEvery: time.Second, PollEvery: 5 * time.Second, HousekeepEvery: time.Minute, RetainEvery: time.Hour, Instance: audit.NewID(), opened: map[string]*ca.Authority{}, trusted: map[string]trusted{}}
	err := db.Read(ctx, func(tx *store.Tx) (err error) {
		p.URL, err = tx.Setting("url")
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, errors.New("the database is empty; run \"sft-platform init\" first")
	}
	return p, err
}

// An Actor is who asks for an operation, as far as it was proven. The zero
// Actor is nobody.
type Actor struct {
	Addr   string // where the request came from
	User   string // id of the person or service user behind it
	Client string // id of the client that signed it
	Server string // id of the server that signed it
	Name   string // for events
	Web    bool   // signed in with a browser
	Key    string // id of the service user's key

	// RequestID is the id of a signed request; it may change something once.
	RequestID      string
	RequestExpires time.Time

	Once *Once // of a request that may be sent again
}

// audit says who the actor is in an event.
func (a Actor) audit() audit.Actor {
	switch {
	case a.Server != "":
		return audit.Actor{Kind: "server", ID: a.Server, Name: a.Name, Addr: a.Addr}
	case a.Client != "":
		return audit.Actor{Kind: "client", ID: a.User, Name: a.Name, Addr: a.Addr}
	case a.Key != "":
		return audit.Actor{Kind: "service", ID: a.User, Name: a.Name, Addr: a.Addr}
	case a.User != "":
		return audit.Actor{Kind: "user", ID: a.User, Name: a.Name, Addr: a.Addr}
	}
	return audit.Actor{Kind: "anonymous", Addr: a.Addr}
}

// event begins the event of an operation.
func (p *Platform) event(a Actor, kind audit.Kind, team, project, target string) audit.Event {
	return audit.Event{ID: audit.NewID(), Time: p.Now().UTC(), Kind: kind, Team: team, Project: project,
		Actor: a.audit(), Client: a.Client, Target: target, Outcome: audit.Success}
}

// once refuses a signed request that was seen before.
func (p *Platform) once(n store.Notes, a Actor) error {
	if a.RequestID == "" {
		return nil
	}
	err := n.UseID(a.RequestID, a.RequestExpires.Add(2*api.MaxSkew))
	if errors.Is(err, store.ErrExists) {
		return &sft.Error{Code: sft.Replayed, Msg: "this request was seen before", Hint: "make a new request"}
	}
	return err
}

// change runs an operation that changes something, for an actor of any kind,
// and tells those who wait to hear of it.
func (p *Platform) change(ctx context.Context, a Actor, fn func(*store.Tx) (audit.Event, error)) error {
	return p.do(ctx, a, p.DB.Change, fn)
}

// add is change for operations that only add records of their own.
func (p *Platform) add(ctx context.Context, a Actor, fn func(*store.Tx) (audit.Event, error)) error {
	return p.do(ctx, a, p.DB.Add, fn)
}

func (p *Platform) do(ctx context.Context, a Actor, in func(context.Context, func(*store.Tx) (audit.Event, error)) error, fn func(*store.Tx) (audit.Event, error)) error {
	var news []string
	err := in(ctx, func(tx *store.Tx) (audit.Event, error) {
		if err := p.once(tx.Notes, a); err != nil {
			return audit.Event{}, err
		}
		e, err := fn(tx)
		if err == nil {
			err = p.keep(tx.Notes, a)
		}
		news = tx.News()
		return e, err
	})
	if errors.Is(err, errSame) {
		err := p.DB.Note(ctx, func(n store.Notes) error {
			if err := p.once(n, a); err != nil {
				return err
			}
			return p.keep(n, a)
		})
		if errors.Is(err, store.ErrExists) { // its key was kept meanwhile, of this request or another
			err = p.DB.Read(ctx, func(tx *store.Tx) error { return p.repeated(tx, a) })
		}
		return err
	}
	if err == nil {
		p.news.tell(news...)
	}
	return err
}

// errSame ends an operation of change after which everything would be as it is:
// it has worked, nothing of it is stored but the id of its request and what it
// answers who sends it again, and nobody is told. Who puts the same things again and again, as a program that looks
// after them does, wakes no agent.
var errSame = errors.New("nothing would change")

// differ returns errSame if two things read the same in the API.
func differ(was, now any) error {
	a, err := json.Marshal(was)
	b, berr := json.Marshal(now)
	if err = errors.Join(err, berr); err == nil && bytes.Equal(a, b) {
		err = errSame
	}
	return err
}

// refuse records an event of an operation that was refused, and returns err.
// Where the record cannot be stored, that is the error. What concerns no team,
// and more than one place can have said by mistake, goes to the log alone: a
// stranger does not fill the disk.
func (p *Platform) refuse(ctx context.Context, e audit.Event, err error) error {
	e.Outcome = audit.Refused
	if e.Team == "" || !p.limits.allow(p.Now(), "refused:"+Source(e.Actor.Addr), 2*time.Second, 100) {
		p.Log.Warn("refused", "kind", e.Kind, "team", e.Team, "addr", e.Actor.Addr, "actor", e.Actor.Name, "target", sft.Quote(e.Target), "why", err)
		return err
	}
	if e.Detail == nil {
		e.Detail = map[string]string{}
	}
	e.Detail["why"] = err.Error()
	if aerr := p.DB.Add(ctx, func(*store.Tx) (audit.Event, error) { return e, nil }); aerr != nil {
		return fmt.Errorf("record a refusal: %w", aerr)
	}
	return err
}

// An asker is an actor whose team, standing and roles were read again.
type asker struct {
	team   sft.Team
	user   store.UserRecord
	roles  []sft.Role
	client store.ClientRecord // that signed the request, if one did
}

var errNobody = &sft.Error{Code: sft.SignIn, Msg: "nobody is signed in", Hint: "sign in, then try again"}

// as finds out who asks, and whether they may do the action in the team. A
// team of others reads as one that does not exist.
func (p *Platform) as(tx *store.Tx, a Actor, teamName string, action policy.Action) (asker, error) {
	return p.asBy(tx, a, teamName, action, tx.GroupsOf)
}

func (p *Platform) asBy(tx *store.Tx, a Actor, teamName string, action policy.Action, groupsOf func(store.UserRecord) ([]store.GroupRecord, error)) (asker, error) {
	var k asker
	if a.User == "" {
		return k, errNobody
	}
	var err error
	if a.Client != "" {
		if k.client, k.user, k.team, err = tx.Asker(a.Client); err == nil && k.user.ID != a.User {
			return asker{}, errSignInEnded // it was given to another person meanwhile
		}
	} else {
		k.user, k.team, err = tx.UserInTeam(a.User)
	}
	if err != nil {
		return k, notFound(err, "user", a.User)
	}
	if sft.Fold(k.team.Name) != sft.Fold(teamName) {
		return k, noSuch("team", teamName)
	}
	if a.Client != "" {
		// It may have been held back while this waited for others to write.
		if err := active(k.client); err != nil {
			return k, err
		}
	}
	if k.user.Status != sft.StatusActive {
		return k, &sft.Error{Code: sft.Denied, Msg: "user " + sft.Quote(k.user.Name) + " is not active", Hint: "ask an administrator of the team"}
	}
	groups, err := groupsOf(k.user)
	if err != nil {
		return k, err
	}
	for _, g := range groups {
		k.roles = append(k.roles, g.Roles...)
	}
	k.roles = policy.Roles(k.user.Type, a.Client != "", k.roles)
	if !policy.May(k.user.Status, k.roles, action) {
		return k, mayNot(k.user, a.Client != "", action)
	}
	return k, p.repeated(tx, a)
}

// mayNot refuses an action for want of a role, and says which would do.
func mayNot(u store.UserRecord, byClient bool, action policy.Action) *sft.Error {
	err := &sft.Error{Code: sft.Denied, Msg: "user " + sft.Quote(u.Name) + " may not do this"}
	var names []string
	for _, r := range policy.Allowed(action) {
		names = append(names, string(r))
	}
	switch n := len(names) - 1; {
	case len(policy.Roles(u.Type, byClient, []sft.Role{sft.AccessAdmin})) == 0:
		err.Hint = "a service user has its roles with its key alone, and none with a client of a server: ask with a token that the key has given"
	case n == 0:
		err.Hint = "ask an administrator of the team for a group with the role " + names[0]
	default:
		err.Hint = "ask an administrator of the team for a group with the role " + strings.Join(names[:n], ", ") + " or " + names[n]
	}
	return err
}

// read runs an operation that only reads.
func read[T any](ctx context.Context, p *Platform, a Actor, team string, action policy.Action, fn func(*store.Tx, asker) (T, error)) (T, error) {
	var v T
	err := p.DB.Read(ctx, func(tx *store.Tx) error {
		k, err := p.as(tx, a, team, action)
		if err != nil {
			return err
		}
		v, err = fn(tx, k)
		return err
	})
	return v, err
}

func noSuch(kind, name string) error {
	if name == "" { // of a body or a flag: no path has an empty one
		return &sft.Error{Code: sft.Invalid, Msg: "no " + strings.TrimSuffix(kind, " with the id") + " is named", Hint: "name one"}
	}
	return &sft.Error{Code: sft.NotFound, Msg: "there is no " + kind + " " + sft.Quote(name), Hint: "check the name"}
}

// notFound turns the store's word into the caller's.
func notFound(err error, kind, name string) error {
	if errors.Is(err, store.ErrNotFound) {
		return noSuch(kind, name)
	}
	return err
}

func exists(err error, kind, name string) error {
	if errors.Is(err, store.ErrExists) {
		return &sft.Error{Code: sft.Exists, Msg: "there is a " + kind + " " + sft.Quote(name) + " already", Hint: "choose another name"}
	}
	return err
}

// A token is a secret that the platform gives away once and keeps the hash
// of: 255 random bits, so that a plain hash is enough.
func newToken() (secret sft.Secret, hash []byte) {
	var b [32]byte
	rand.Read(b[:])
	b[0] &= 0x7f // a first character that no command takes for a flag
	s := base64.RawURLEncoding.EncodeToString(b[:])
	return sft.NewSecret(s), tokenHash(s)
}

func tokenHash(s string) []byte {
	h := sha256.Sum256([]byte(s))
	return h[:]
}

// news wakes those who wait for a change of one thing, such as the agents'
// hanging requests: one host wakes no other by what concerns it alone. The zero
// value is ready.
type news struct {
	mu sync.Mutex
	ch map[string]chan struct{} // by the id of what somebody waits for
}

// wait returns a channel that is closed at the next change of what has the id.
// Whoever then reads it misses none.
func (n *news) wait(id string) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch == nil {
		n.ch = map[string]chan struct{}{}
	}
	if n.ch[id] == nil {
		n.ch[id] = make(chan struct{})
	}
	return n.ch[id]
}

func (n *news) tell(ids ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, id := range ids {
		if ch := n.ch[id]; ch != nil {
			close(ch)
			delete(n.ch, id)
		}
	}
}

// SureClock is how long a clock has to have gone on as time passes for sessions,
// and what people are let in by, to be deleted by it. A database without a clock
// of its own cannot tell one that is ahead; in that time somebody sees it, or NTP
// has set it.
const SureClock = time.Hour

// Housekeep does one round of what time brings about. steady is for how long the
// clock is known to have gone on as time passed; by one that has not, nothing is
// done.
func (p *Platform) Housekeep(ctx context.Context, steady time.Duration) {
	if steady <= 0 {
		return
	}
	if err := p.DB.Note(ctx, func(n store.Notes) error { return n.Sweep(p.Now()) }); err != nil && ctx.Err() == nil {
		p.Log.Error("sweep the database", "error", err)
	}
	if steady >= SureClock {
		if err := p.sweepSessions(ctx); err != nil && ctx.Err() == nil {
			p.Log.Error("sweep the sessions", "error", err)
		}
	}
	if err := p.advanceCAs(ctx); err != nil && ctx.Err() == nil {
		p.Log.Error("rotate the projects' CAs", "error", err)
	}
}

// A round of housekeeping deletes so many old sessions at most, in steps for
// which nobody waits.
const sweepSteps, sweepStep = 50, 200

func (p *Platform) sweepSessions(ctx context.Context) error {
	if err := p.DB.Note(ctx, func(n store.Notes) error { return n.SweepAccess(p.Now()) }); err != nil {
		return err
	}
	for range sweepSteps {
		var rows int64
		err := p.DB.Note(ctx, func(n store.Notes) (err error) {
			rows, err = n.SweepSessions(p.Now(), sweepStep)
			return err
		})
		if err != nil || rows < sweepStep {
			return err
		}
	}
	return nil
}

// Run does the platform's housekeeping until ctx ends: it seals audit events
// and exports them, removes those that are too old, and sweeps the database.
func (p *Platform) Run(ctx context.Context) {
	var under sync.WaitGroup
	defer under.Wait()
	under.Go(func() { p.seal(ctx) })
	for _, x := range p.exports.begin(p.Exports) {
		under.Go(func() { p.export(ctx, x) })
	}
	if p.Retention > 0 {
		under.Go(func() { p.retain(ctx) })
	}
	t := time.NewTicker(p.HousekeepEvery)
	defer t.Stop()
	w := p.watchClock()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		steady, err := w.look(ctx)
		if err != nil && ctx.Err() == nil {
			p.Log.Error("housekeeping waits for the clock", "error", err)
		}
		p.Housekeep(ctx, steady)
	}
}
