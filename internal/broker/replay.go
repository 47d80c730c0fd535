package broker

import (
	"crypto/sha256"
	"sync"
	"time"

	"sft"
)

// The caps of replays. Only who has a certificate of this project can fill
// them, and one user cannot fill the whole.
const (
	maxProofs     = 16 << 10
	maxUserProofs = 1 << 10
)

// replays remembers proofs until they are too old to be used again. It fails
// closed: when it is full, nobody gets in until some of them have aged. The
// zero value is empty.
type replays struct {
	mu    sync.Mutex
	seen  map[[32]byte]replay
	users map[string]int // how many of seen
	// swept is the latest time at which old proofs were forgotten. One that
	// was too old then may be among them, and stays refused if the clock is
	// set back.
	swept time.Time
}

type replay struct {
	user    string
	expires time.Time
}

// use marks a proof as used, and refuses it if it was. A proof is its key and
// its id, so that nobody can use up another's.
func (r *replays) use(user string, key [32]byte, id string, expires, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	proof := sha256.Sum256(append(key[:], id...))
	if _, again := r.seen[proof]; again {
		return &sft.Error{Code: sft.Replayed, Msg: "this very frame was seen before", Hint: "make a new request with \"sft rdp\""}
	}
	if now.Sub(r.swept) > 10*time.Second || len(r.seen) >= maxProofs && now.Sub(r.swept) > time.Second {
		r.sweep(now)
	}
	if expires.Before(r.swept) {
		return refusal("the proof is too old, or not yet valid")
	}
	if len(r.seen) >= maxProofs || r.users[user] >= maxUserProofs {
		return &sft.Error{Code: sft.TooMany, Msg: "too many sessions were opened in the last minutes", Hint: "wait two minutes, then try again"}
	}
	if r.seen == nil {
		r.seen, r.users = map[[32]byte]replay{}, map[string]int{}
	}
	r.seen[proof] = replay{user, expires}
	r.users[user]++
	return nil
}

// sweep forgets the proofs that were too old before now.
func (r *replays) sweep(now time.Time) {
	r.swept = now
	for k, p := range r.seen {
		if p.expires.Before(now) {
			delete(r.seen, k)
			if r.users[p.user]--; r.users[p.user] == 0 {
				delete(r.users, p.user)
			}
		}
	}
}
