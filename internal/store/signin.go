package store

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"
)

func hexSHA256(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// prefixed puts p before each column of a list.
func prefixed(p, cols string) string {
	return p + strings.ReplaceAll(cols, ", ", ", "+p)
}

// UseID takes the id of a request, and returns ErrExists when it was taken
// before.
func (n Notes) UseID(id string, expires time.Time) error {
	return n.add(`INSERT INTO used_ids (id, expires_at) VALUES ($1, $2)`, id, micros(expires))
}

// Sweep deletes what requests have left that has expired: used ids, sign-ins on
// their way, and what requests made.
func (n Notes) Sweep(now time.Time) error { return n.sweep(now, "used_ids", "sign_ins", "repeats") }

// SweepAccess deletes what has expired of what people are let in by, web sessions
// and one-time links, and through which servers sessions went. There is less of
// it, and who deletes it by a wrong clock ends what should go on.
func (n Notes) SweepAccess(now time.Time) error {
	return n.sweep(now, "web_sessions", "first_uses", "session_hops")
}

func (n Notes) sweep(now time.Time, tables ...string) error {
	for _, table := range tables {
		if err := n.add(`DELETE FROM `+table+` WHERE expires_at < $1`, micros(now)); err != nil {
			return err
		}
	}
	return nil
}

// SessionMemory is how long a session is known after it is over: events that
// hosts and clients report later than that name no session.
const SessionMemory = 30 * 24 * time.Hour

// SweepSessions deletes up to max of the sessions that are over for longer than
// SessionMemory, and returns how many went. Of those that hosts still go by
// there is none: what tells of an ended session does so while it could live.
func (n Notes) SweepSessions(now time.Time, max int) (rows int64, err error) {
	return n.exec(sweepSessions, micros(now.Add(-SessionMemory)), max)
}

const sweepSessions = `DELETE FROM sessions WHERE id IN (SELECT s.id FROM sessions s WHERE s.live_until < $1
	AND NOT EXISTS (SELECT 1 FROM session_hops h WHERE h.session_id = s.id) ORDER BY s.live_until LIMIT $2)`

// A WebSession is somebody signed in with a browser.
type WebSession struct {
	UserID   string
	SignedIn time.Time // when the password was last given
	Expires  time.Time
}

// AddWebSession stores a session under the hash of its cookie.
func (tx *Tx) AddWebSession(hash []byte, s WebSession) error {
	return tx.add(`INSERT INTO web_sessions (secret_hash, user_id, signed_in, expires_at) VALUES ($1, $2, $3, $4)`,
		hash, s.UserID, micros(s.SignedIn), micros(s.Expires))
}

// WebSession returns a session that is still good.
func (n Notes) WebSession(hash []byte, now time.Time) (WebSession, error) {
	return one(n, func(s scanner) (w WebSession, err error) {
		var in, ex int64
		err = s.Scan(&w.UserID, &in, &ex)
		w.SignedIn, w.Expires = fromMicros(in), fromMicros(ex)
		return w, err
	}, `SELECT user_id, signed_in, expires_at FROM web_sessions WHERE secret_hash = $1 AND expires_at > $2`, hash, micros(now))
}

// EndWebSession deletes one session.
func (tx *Tx) EndWebSession(hash []byte) error {
	return tx.must(`DELETE FROM web_sessions WHERE secret_hash = $1`, hash)
}

// EndWebSessions deletes all sessions of a user.
func (tx *Tx) EndWebSessions(userID string) error {
	return tx.add(`DELETE FROM web_sessions WHERE user_id = $1`, userID)
}

// A SignIn is a client's enrolment or sign-in on its way: an authorization
// code (RFC 6749) or a device code (RFC 8628).
type SignIn struct {
	CodeHash    []byte
	Kind        string // "code" or "device"
	UserCode    string // what is typed; device codes only
	TeamID      string
	ClientID    string // set when an enrolled client signs in again
	UserID      string // who approved
	Challenge   string // PKCE; codes only
	RedirectURI string // codes only
	KeySHA256   string // of the device key's SPKI, hex
	Hostname    string
	OS          string
	Addr        string // where the client asked from
	State       string // pending, approved, refused
	Expires     time.Time
}

const signInCols = `code_hash, kind, user_code, team_id, client_id, user_id, challenge, redirect_uri, key_sha256, hostname, os, addr, state, expires_at`

func scanSignIn(s scanner) (i SignIn, err error) {
	var at int64
	err = s.Scan(&i.CodeHash, &i.Kind, &i.UserCode, &i.TeamID, &i.ClientID, &i.UserID, &i.Challenge, &i.RedirectURI,
		&i.KeySHA256, &i.Hostname, &i.OS, &i.Addr, &i.State, &at)
	i.Expires = fromMicros(at)
	return i, err
}

// AddSignIn stores a sign-in on its way.
func (n Notes) AddSignIn(i SignIn) error {
	return n.add(`INSERT INTO sign_ins (`+signInCols+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
		i.CodeHash, i.Kind, i.UserCode, i.TeamID, i.ClientID, i.UserID, i.Challenge, i.RedirectURI, i.KeySHA256,
		i.Hostname, i.OS, i.Addr, i.State, micros(i.Expires))
}

// SignIn returns a sign-in on its way by the hash of its code.
func (n Notes) SignIn(hash []byte, now time.Time) (SignIn, error) {
	return one(n, scanSignIn, `SELECT `+signInCols+` FROM sign_ins WHERE code_hash = $1 AND expires_at > $2`, hash, micros(now))
}

// SignInByUserCode returns a pending device code by what is typed for it.
func (n Notes) SignInByUserCode(code string, now time.Time) (SignIn, error) {
	return one(n, scanSignIn, `SELECT `+signInCols+` FROM sign_ins WHERE kind = 'device' AND user_code = $1 AND state = 'pending' AND expires_at > $2`, code, micros(now))
}

// PendingSignIns counts the device codes that nobody has answered.
func (n Notes) PendingSignIns(now time.Time) (int64, error) {
	return one(n, scanCount, `SELECT count(*) FROM sign_ins WHERE kind = 'device' AND state = 'pending' AND expires_at > $1`, micros(now))
}

// AnswerSignIn stores who approved or refused a pending device code.
func (tx *Tx) AnswerSignIn(hash []byte, userID, state string) error {
	return tx.must(`UPDATE sign_ins SET user_id = $2, state = $3 WHERE code_hash = $1 AND state = 'pending'`, hash, userID, state)
}

// EndSignIn deletes a sign-in: a code works once.
func (n Notes) EndSignIn(hash []byte) error {
	return n.must(`DELETE FROM sign_ins WHERE code_hash = $1`, hash)
}
