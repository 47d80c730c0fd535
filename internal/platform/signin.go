package platform

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"
	"unicode"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/policy"
	"sft/internal/store"
)

// The lives of what sign-ins are made of.
const (
	codeLife       = time.Minute      // an authorization code, RFC 6749 4.1.2
	deviceCodeLife = 10 * time.Minute // RFC 8628
	devicePoll     = 2 * time.Second

	// FreshSignIn is how old a sign-in may be to approve a typed code.
	FreshSignIn = 2 * time.Minute
)

// FirstUse returns the name of the user whose one-time link this is.
func (p *Platform) FirstUse(ctx context.Context, secret sft.Secret) (string, error) {
	var name string
	err := p.DB.Read(ctx, func(tx *store.Tx) error {
		u, err := tx.FirstUse(tokenHash(secret.Reveal()), p.Now())
		if errors.Is(err, store.ErrNotFound) || err == nil && u.Status != sft.StatusActive {
			return &sft.Error{Code: sft.Denied, Msg: "this link was used already, or is too old", Hint: "ask an administrator for a new one"}
		}
		name = u.Name
		return err
	})
	return name, err
}

// SetFirstPassword ends a one-time link by setting its user's password, and
// signs the user in. It returns the new web session's secret.
func (p *Platform) SetFirstPassword(ctx context.Context, a Actor, secret, password sft.Secret) (sft.Secret, error) {
	name, err := p.FirstUse(ctx, secret)
	if err != nil {
		return sft.Secret{}, err
	}
	if err := p.tried("first-use/"+sft.Fold(name), a.Addr); err != nil {
		return sft.Secret{}, err
	}
	if err := checkNewPassword(password, name); err != nil {
		return sft.Secret{}, err
	}
	done, err := turn(ctx)
	if err != nil {
		return sft.Secret{}, err
	}
	hash := hashPassword(password)
	done()
	var cookie sft.Secret
	err = p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		u, err := tx.FirstUse(tokenHash(secret.Reveal()), p.Now())
		if err != nil || u.Status != sft.StatusActive {
			return audit.Event{}, &sft.Error{Code: sft.Denied, Msg: "this link was used already, or is too old", Hint: "ask an administrator for a new one"}
		}
		team, err := tx.TeamByID(u.TeamID)
		if err != nil {
			return audit.Event{}, err
		}
		a.User, a.Name = u.ID, u.Name
		if err := errors.Join(tx.EndFirstUses(u.ID), tx.EndWebSessions(u.ID), tx.SetPassword(u.ID, hash)); err != nil {
			return audit.Event{}, err
		}
		cookie, err = p.newWebSession(tx, team, u.ID)
		return p.event(a, audit.PasswordChange, team.Name, "", u.Name), err
	})
	return cookie, err
}

func (p *Platform) newWebSession(tx *store.Tx, team sft.Team, userID string) (sft.Secret, error) {
	secret, hash := newToken()
	now := p.Now()
	return secret, tx.AddWebSession(hash, store.WebSession{UserID: userID, SignedIn: now, Expires: now.Add(time.Duration(team.WebSession) * time.Second)})
}

// SignIn checks a person's password, and returns a new web session's secret.
// A wrong name and a wrong password read the same and take as long.
func (p *Platform) SignIn(ctx context.Context, a Actor, team, user string, password sft.Secret) (sft.Secret, error) {
	account := sft.Fold(team) + "/" + sft.Fold(user)
	if err := p.tried(account, a.Addr); err != nil {
		return sft.Secret{}, err
	}
	var u store.UserRecord
	var t sft.Team
	err := p.DB.Read(ctx, func(tx *store.Tx) (err error) {
		if t, err = tx.Team(team); err == nil {
			u, err = tx.User(t.ID, user)
		}
		return err
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return sft.Secret{}, err
	}
	hash := u.PasswordHash
	done, err := turn(ctx)
	if err != nil {
		return sft.Secret{}, err
	}
	ok := checkPassword(hash, password) && u.Status == sft.StatusActive && u.Type == sft.Human
	done()
	if !ok {
		e := p.event(a, audit.AuthTokenIssue, t.Name, "", "web") // by nobody: anybody can type a name
		e.Detail = map[string]string{"user": sft.Quote(user)}
		return sft.Secret{}, p.refuse(ctx, e, &sft.Error{Code: sft.SignIn, Msg: "the team, user name or password is wrong", Hint: "try again, or ask an administrator for a new sign-in link"})
	}
	a.User, a.Name = u.ID, u.Name
	e := p.event(a, audit.AuthTokenIssue, t.Name, "", "web")
	var cookie sft.Secret
	err = p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		now, err := tx.UserByID(u.ID)
		if err == nil && (now.Status != sft.StatusActive || now.PasswordHash != hash) {
			err = errNobody
		}
		if err == nil {
			cookie, err = p.newWebSession(tx, t, u.ID)
		}
		return e, err
	})
	return cookie, err
}

// SignOut ends a web session.
func (p *Platform) SignOut(ctx context.Context, a Actor, cookie sft.Secret) error {
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		u, err := tx.UserByID(a.User)
		if err != nil {
			return audit.Event{}, err
		}
		team, err := tx.TeamByID(u.TeamID)
		if err != nil {
			return audit.Event{}, err
		}
		return p.event(a, audit.AuthTokenEnd, team.Name, "", "web"), tx.EndWebSession(tokenHash(cookie.Reveal()))
	})
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return err
}

// Web finds out who a browser's cookie belongs to, and when the password was
// last given.
func (p *Platform) Web(ctx context.Context, cookie sft.Secret, addr string) (a Actor, team string, signedIn time.Time, err error) {
	err = p.DB.Read(ctx, func(tx *store.Tx) error {
		w, err := tx.WebSession(tokenHash(cookie.Reveal()), p.Now())
		if errors.Is(err, store.ErrNotFound) {
			return errNobody
		}
		if err != nil {
			return err
		}
		u, err := tx.UserByID(w.UserID)
		if err != nil || u.Status != sft.StatusActive {
			return errNobody
		}
		t, err := tx.TeamByID(u.TeamID)
		a, team, signedIn = Actor{Addr: addr, User: u.ID, Name: u.Name, Web: true}, t.Name, w.SignedIn
		return err
	})
	return a, team, signedIn, err
}

// OneTeam returns the team's name where there is only one, so that nobody has
// to type it.
func (p *Platform) OneTeam(ctx context.Context) string {
	var name string
	_ = p.DB.Read(ctx, func(tx *store.Tx) (err error) {
		name, err = tx.Setting("first_team")
		return err
	})
	return name
}

// An Authorization is a client's request to be approved in a browser (RFC
// 6749 4.1.1, RFC 7636, RFC 8252 7.3).
type Authorization struct {
	Team        string
	RedirectURI string
	State       string
	Challenge   string // S256
	KeySHA256   string // of the device key
	ClientID    string // set when an enrolled client signs in again
	Device      api.DeviceInfo
}

var (
	redirectRE  = regexp.MustCompile(`^http://127\.0\.0\.1:[0-9]{1,5}/callback$`)
	challengeRE = regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`)
	hex256RE    = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// checkDevice refuses what a client may not say of its machine.
func checkDevice(d api.DeviceInfo) error {
	for _, s := range []string{d.Hostname, d.OS, d.Version} {
		if len(s) > 100 || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return &sft.Error{Code: sft.Invalid, Msg: "the device's description is not readable"}
		}
	}
	return nil
}

// Check refuses an authorization that no sft asks for.
func (z Authorization) Check() error {
	switch {
	case !redirectRE.MatchString(z.RedirectURI):
		return &sft.Error{Code: sft.Invalid, Msg: "the request does not come from sft: it would send the answer elsewhere", Hint: "run \"sft enroll\" again"}
	case !challengeRE.MatchString(z.Challenge) || !hex256RE.MatchString(z.KeySHA256) || len(z.State) < 16 || len(z.State) > 200:
		return &sft.Error{Code: sft.Invalid, Msg: "the request is not complete", Hint: "run \"sft enroll\" again"}
	}
	return checkDevice(z.Device)
}

// redirect returns the loopback address with the answer.
func (z Authorization) redirect(key, value string) string {
	return z.RedirectURI + "?" + url.Values{key: {value}, "state": {z.State}}.Encode()
}

// Refusal returns where the browser goes when the person says no.
func (z Authorization) Refusal() string { return z.redirect("error", "access_denied") }

// Authorize records that the person approved, and returns where the browser
// takes the code.
func (p *Platform) Authorize(ctx context.Context, a Actor, z Authorization) (string, error) {
	if err := z.Check(); err != nil {
		return "", err
	}
	var to string
	err := p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, z.Team, policy.OwnClient)
		if err != nil {
			return audit.Event{}, err
		}
		if err := mayClient(tx, k, z.ClientID, z.KeySHA256); err != nil {
			return audit.Event{}, err
		}
		code, hash := newToken()
		to = z.redirect("code", code.Reveal())
		e := p.event(a, audit.AuthTokenIssue, k.team.Name, "", "authorization code")
		e.Detail = map[string]string{"device": z.Device.Hostname}
		return e, tx.AddSignIn(store.SignIn{CodeHash: hash, Kind: "code", TeamID: k.team.ID, ClientID: z.ClientID, UserID: k.user.ID,
			Challenge: z.Challenge, RedirectURI: z.RedirectURI, KeySHA256: z.KeySHA256, Hostname: z.Device.Hostname, OS: z.Device.OS,
			Addr: a.Addr, State: "approved", Expires: p.Now().Add(codeLife)})
	})
	return to, err
}

// mayClient refuses to approve a client of somebody else.
func mayClient(tx *store.Tx, k asker, clientID, keySHA256 string) error {
	if clientID == "" {
		return nil
	}
	c, err := tx.Client(clientID)
	if err == nil && (c.UserID != k.user.ID || c.State == sft.StateDeleted || c.Fingerprint != keySHA256) {
		err = store.ErrNotFound
	}
	if err == nil && c.State == sft.StatePending {
		err = errPending(c.ID)
	}
	if errors.Is(err, store.ErrNotFound) {
		return &sft.Error{Code: sft.Denied, Msg: "this client is not enrolled for " + sft.Quote(k.user.Name), Hint: "sign in as the person who enrolled it, or run \"sft enroll --force\""}
	}
	return err
}

// userCodeLetters make no words and cannot be misread (RFC 8628 6.1).
const userCodeLetters = "BCDFGHJKLMNPQRSTVWXZ"

func newUserCode() string {
	var b strings.Builder
	for i := range 8 {
		if i == 4 {
			b.WriteByte('-')
		}
		for {
			var r [1]byte
			rand.Read(r[:])
			if n := int(r[0]); n < 256-256%len(userCodeLetters) {
				b.WriteByte(userCodeLetters[n%len(userCodeLetters)])
				break
			}
		}
	}
	return b.String()
}

// maxPending caps how many device codes can be on their way.
const maxPending = 20_000

// DeviceCode begins an enrolment or sign-in without a browser on the machine
// (RFC 8628).
func (p *Platform) DeviceCode(ctx context.Context, a Actor, r api.DeviceCodeRequest) (api.DeviceCodeReply, error) {
	var reply api.DeviceCodeReply
	key, err := ca.PublicKey(r.DeviceKey)
	if err != nil {
		return reply, err
	}
	if err := checkDevice(r.Device); err != nil {
		return reply, err
	}
	if !p.from(a, "device", 6*time.Second, 10) {
		return reply, &sft.Error{Code: sft.TooMany, Msg: "too many codes for this address", Hint: "wait a minute, then try again"}
	}
	h, err := ca.KeyHash(key)
	if err != nil {
		return reply, err
	}
	err = p.DB.Note(ctx, func(n store.Notes) error {
		t, err := n.Team(r.Team)
		if err != nil {
			return notFound(err, "team", r.Team)
		}
		if !t.AllowDeviceCode {
			return &sft.Error{Code: sft.Denied, Msg: "team " + sft.Quote(t.Name) + " does not allow sign-in by a code", Hint: "use a machine with a browser, or ask an administrator"}
		}
		if c, err := n.PendingSignIns(p.Now()); err != nil {
			return err
		} else if c >= maxPending {
			return &sft.Error{Code: sft.TooMany, Msg: "too many codes are on their way", Hint: "wait a few minutes, then try again"}
		}
		code, hash := newToken()
		reply = api.DeviceCodeReply{DeviceCode: code.Reveal(), UserCode: newUserCode(), VerificationURI: p.URL + "/device",
			ExpiresIn: int64(deviceCodeLife / time.Second), Interval: int64(devicePoll / time.Second)}
		return n.AddSignIn(store.SignIn{CodeHash: hash, Kind: "device", UserCode: reply.UserCode, TeamID: t.ID, ClientID: r.ClientID,
			KeySHA256: fmt.Sprintf("%x", h), Hostname: r.Device.Hostname, OS: r.Device.OS, Addr: a.Addr, State: "pending", Expires: p.Now().Add(deviceCodeLife)})
	})
	return reply, err
}

// A Pending is a device code that waits for an answer.
type Pending struct {
	Device api.DeviceInfo
	Addr   string // where the client asked from
	New    bool   // a new client, not a sign-in
	key    string
}

// Typed finds the device code that a person typed. Only somebody who has just
// signed in may try.
func (p *Platform) Typed(ctx context.Context, a Actor, signedIn time.Time, userCode string) (Pending, error) {
	var d Pending
	i, err := p.typed(ctx, a, signedIn, userCode)
	if err == nil {
		d = Pending{Device: api.DeviceInfo{Hostname: i.Hostname, OS: i.OS}, Addr: i.Addr, New: i.ClientID == "", key: i.KeySHA256}
	}
	return d, err
}

// KeyFingerprint is that of the device's key, shortened for people to compare.
func (d Pending) KeyFingerprint() string { return d.key[:min(16, len(d.key))] }

func (p *Platform) typed(ctx context.Context, a Actor, signedIn time.Time, userCode string) (store.SignIn, error) {
	var i store.SignIn
	if p.Now().Sub(signedIn) > FreshSignIn {
		return i, errNobody
	}
	if err := p.tried("code:"+a.User, a.Addr); err != nil {
		return i, err
	}
	code := strings.Map(func(r rune) rune {
		if r = unicode.ToUpper(r); strings.ContainsRune(userCodeLetters, r) {
			return r
		}
		return -1
	}, userCode)
	if len(code) == 8 {
		code = code[:4] + "-" + code[4:]
	}
	err := p.DB.Read(ctx, func(tx *store.Tx) (err error) {
		u, err := tx.UserByID(a.User)
		if err != nil {
			return err
		}
		i, err = tx.SignInByUserCode(code, p.Now())
		if errors.Is(err, store.ErrNotFound) || err == nil && i.TeamID != u.TeamID {
			return &sft.Error{Code: sft.NotFound, Msg: "there is no such code, or it is too old", Hint: "compare it with the one in the terminal, or run \"sft enroll\" again"}
		}
		return err
	})
	return i, err
}

// AnswerDevice approves or refuses a typed device code.
func (p *Platform) AnswerDevice(ctx context.Context, a Actor, signedIn time.Time, userCode string, approve bool) error {
	i, err := p.typed(ctx, a, signedIn, userCode)
	if err != nil {
		return err
	}
	return p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		u, err := tx.UserByID(a.User)
		if err != nil {
			return audit.Event{}, err
		}
		team, err := tx.TeamByID(u.TeamID)
		if err != nil {
			return audit.Event{}, err
		}
		k, err := p.as(tx, a, team.Name, policy.OwnClient)
		if err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.AuthTokenIssue, team.Name, "", "device code")
		e.Detail = map[string]string{"device": i.Hostname, "from": i.Addr}
		state := "approved"
		if !approve {
			state, e.Outcome = "refused", audit.Refused
		} else if err := mayClient(tx, k, i.ClientID, i.KeySHA256); err != nil {
			return audit.Event{}, err
		}
		if err := tx.AnswerSignIn(i.CodeHash, u.ID, state); err != nil {
			return e, notFound(err, "code", userCode)
		}
		return e, nil
	})
}
