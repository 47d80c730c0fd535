package store

import "time"

// A Repeat is a request that made something, and may be sent again.
type Repeat struct {
	UserID  string // who asked
	Key     string // the request's Idempotency-Key
	Route   string // its method and path
	Body    []byte // the SHA-256 of its body
	Made    string // the id of what was made, where the answer held a secret
	Reply   string // else the answer, as JSON
	Expires time.Time
}

// Repeat returns what a user has sent with a key, as long as that counts.
func (n Notes) Repeat(userID, key string, now time.Time) (Repeat, error) {
	return one(n, func(s scanner) (r Repeat, err error) {
		var expires int64
		err = s.Scan(&r.UserID, &r.Key, &r.Route, &r.Body, &r.Made, &r.Reply, &expires)
		r.Expires = fromMicros(expires)
		return r, err
	}, `SELECT user_id, idem_key, route, body_hash, made, reply, expires_at FROM repeats WHERE user_id = $1 AND idem_key = $2 AND expires_at > $3`, userID, key, micros(now))
}

// AddRepeat stores a request. It returns ErrExists while another with the same
// key counts.
func (n Notes) AddRepeat(r Repeat, now time.Time) error {
	if err := n.add(`DELETE FROM repeats WHERE user_id = $1 AND idem_key = $2 AND expires_at <= $3`, r.UserID, r.Key, micros(now)); err != nil {
		return err
	}
	return n.add(`INSERT INTO repeats (user_id, idem_key, route, body_hash, made, reply, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		r.UserID, r.Key, r.Route, r.Body, r.Made, r.Reply, micros(r.Expires))
}
