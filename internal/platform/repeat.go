package platform

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"time"

	"sft"
	"sft/internal/store"
)

// repeatable is how long a request that made something may be sent again.
const repeatable = 24 * time.Hour

// A Once is what a request says so that it can be sent again without making a
// second thing. What the first one answered is stored in the transaction that
// carried it out.
type Once struct {
	Key   string // chosen by the caller, another for each thing that is to be made
	Route string // method and path
	Body  []byte // SHA-256 of the body

	reply      func() any // what is answered, once it was carried out
	made       *string    // or its id, where the answer holds a secret
	what, then string     // of that: what it is, and what to do without the secret
}

// A Repeated is the error of a request that was carried out before: it has the
// answer that it got then.
type Repeated struct{ Reply json.RawMessage }

// Error is for who does not look for the answer.
func (r *Repeated) Error() string { return "the request was carried out before" }

// gives says what an operation answers. A caller that sends its request again
// is given the same.
func (a Actor) gives(reply func() any) {
	if a.Once != nil {
		a.Once.reply = reply
	}
}

// givesOnce says that the answer holds a secret, which is kept nowhere: id is of
// what is made, and then what to do for who has lost the answer.
func (a Actor) givesOnce(what string, id *string, then string) {
	if a.Once != nil {
		a.Once.made, a.Once.what, a.Once.then = id, what, then
	}
}

// repeated looks whether a request was carried out before. It is asked when it
// is settled that the asker may make such a request, for whom that is.
func (p *Platform) repeated(tx *store.Tx, a Actor) error {
	if a.Once == nil {
		return nil
	}
	r, err := tx.Repeat(a.User, a.Once.Key, p.Now())
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil:
		return err
	case r.Route != a.Once.Route || !bytes.Equal(r.Body, a.Once.Body):
		return &sft.Error{Code: sft.KeyReused, Msg: "the Idempotency-Key was sent with another request before: " + sft.Quote(r.Route), Hint: "send another key with each new request, and the same one only with the same route and body"}
	case r.Reply == "":
		return &sft.Error{Code: sft.Exists, ID: r.Made, Msg: "this request has made " + a.Once.what + " " + sft.Quote(r.Made) + " already", Hint: "its secret was shown once: " + a.Once.then}
	}
	return &Repeated{json.RawMessage(r.Reply)}
}

// keep stores what a request has made, for who sends it again.
func (p *Platform) keep(n store.Notes, a Actor) error {
	if a.Once == nil || a.Once.reply == nil && a.Once.made == nil {
		return nil
	}
	now := p.Now()
	r := store.Repeat{UserID: a.User, Key: a.Once.Key, Route: a.Once.Route, Body: a.Once.Body, Expires: now.Add(repeatable)}
	if a.Once.made != nil {
		r.Made = *a.Once.made
	} else {
		b, err := json.Marshal(a.Once.reply())
		if err != nil {
			return err
		}
		r.Reply = string(b)
	}
	return n.AddRepeat(r, now)
}

// named adds to the refusal of a name that is taken the id of what has it.
// Whoever gets it was let in to make such a thing. find returns an id, or an
// error: then the refusal is as it was.
func (p *Platform) named(ctx context.Context, team string, err error, find func(tx *store.Tx, teamID string) (id string, err error)) error {
	e, ok := errors.AsType[*sft.Error](err)
	if !ok || e.Code != sft.Exists || e.ID != "" {
		return err
	}
	with := *e
	if rerr := p.DB.Read(ctx, func(tx *store.Tx) error {
		t, err := tx.Team(team)
		if err != nil {
			return err
		}
		with.ID, err = find(tx, t.ID)
		return err
	}); rerr != nil || with.ID == "" {
		return err // it is gone again, or is not what has the name
	}
	with.Msg += ", with the id " + with.ID
	return &with
}
