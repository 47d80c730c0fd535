package platform

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
	"sft"
)

// The cost of a password's hash: argon2id, RFC 9106; 19 MiB and 2 passes.
const (
	argonTime    = 2
	argonMemory  = 19 << 10 // KiB
	argonThreads = 1
	argonKey     = 32
)

// hashing bounds the memory that sign-ins can use at once, and queue how many
// wait for their turn: who finds it full is told to come back.
var (
	hashing = make(chan struct{}, 4)
	queue   = make(chan struct{}, 64)
)

// turn waits for a turn to hash. The caller calls done after it.
func turn(ctx context.Context) (done func(), err error) {
	select {
	case queue <- struct{}{}:
	default:
		return nil, &sft.Error{Code: sft.TooMany, Msg: "too many people sign in at once", Hint: "try again in a moment"}
	}
	defer func() { <-queue }()
	select {
	case hashing <- struct{}{}:
		return func() { <-hashing }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// hashPassword returns the PHC string of a new password. The caller has its
// turn.
func hashPassword(pw sft.Secret) sft.Secret {
	salt := make([]byte, 16)
	rand.Read(salt)
	key := argon2.IDKey([]byte(pw.Reveal()), salt, argonTime, argonMemory, argonThreads, argonKey)
	return sft.NewSecret(phc{argonMemory, argonTime, argonThreads, salt, key}.encode())
}

// A phc is a stored password: the cost, the salt and the key (the PHC string
// format).
type phc struct {
	memory, time uint32
	threads      uint8
	salt, key    []byte
}

func (h phc) encode() string {
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.memory, h.time, h.threads, b64(h.salt), b64(h.key))
}

// maxMemory and maxTime cap what a stored hash may cost to check.
const (
	maxMemory = 1 << 18 // KiB
	maxTime   = 16
)

// parsePHC reads what encode has written, and nothing else.
func parsePHC(s string) (h phc, ok bool) {
	parts := strings.Split(s, "$")
	if len(s) > 512 || len(parts) != 6 {
		return h, false
	}
	var err1, err2 error
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &h.memory, &h.time, &h.threads); err != nil {
		return h, false
	}
	h.salt, err1 = base64.RawStdEncoding.DecodeString(parts[4])
	h.key, err2 = base64.RawStdEncoding.DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(h.salt) < 8 || len(h.key) != argonKey ||
		h.memory > maxMemory || h.time < 1 || h.time > maxTime || h.threads < 1 {
		return h, false
	}
	return h, h.encode() == s
}

// noHash is compared with where there is no user or no password, so that the
// answer takes as long.
var noHash = sync.OnceValue(func() sft.Secret { return hashPassword(sft.NewSecret("")) })

// checkPassword reports whether pw is the password of hash. An empty hash is
// nobody's. The caller has its turn.
func checkPassword(hash, pw sft.Secret) bool {
	real := !hash.Empty()
	if !real {
		hash = noHash()
	}
	h, ok := parsePHC(hash.Reveal())
	if !ok {
		return false
	}
	got := argon2.IDKey([]byte(pw.Reveal()), h.salt, h.time, h.memory, h.threads, argonKey)
	return subtle.ConstantTimeCompare(got, h.key) == 1 && real
}

// checkNewPassword refuses what is too easy to guess. Length counts, rules
// about kinds of characters do not help (NIST SP 800-63B, 5.1.1.2).
func checkNewPassword(pw sft.Secret, name string) error {
	s := pw.Reveal()
	switch n := utf8.RuneCountInString(s); {
	case n < 12:
		return &sft.Error{Code: sft.Invalid, Msg: "the password is too short", Hint: "use at least 12 characters"}
	case n > 256:
		return &sft.Error{Code: sft.Invalid, Msg: "the password is too long", Hint: "use at most 256 characters"}
	case len(name) >= 4 && strings.Contains(strings.ToLower(s), strings.ToLower(name)): // a short one is in many words
		return &sft.Error{Code: sft.Invalid, Msg: "the password holds the user name", Hint: "choose another"}
	}
	return nil
}

// from takes one try of a kind from the bucket of where it comes from.
func (p *Platform) from(a Actor, kind string, every time.Duration, burst int) bool {
	return p.limits.allow(p.Now(), kind+":"+Source(a.Addr), every, burst)
}

// tried counts a try at a password or a typed code. The bucket of a name is
// one for each place that tries, and a large one for all: a stranger who
// guesses does not keep its owner out.
func (p *Platform) tried(account, addr string) error {
	now, from := p.Now(), Source(addr)
	if p.limits.allow(now, "addr:"+from, 2*time.Second, 40) && p.limits.allow(now, "name:"+account+"@"+from, 15*time.Second, 8) &&
		p.limits.allow(now, "name:"+account, time.Second, 200) {
		return nil
	}
	return &sft.Error{Code: sft.TooMany, Msg: "too many tries", Hint: "wait a minute, then try again"}
}
