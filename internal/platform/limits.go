package platform

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits holds back who asks or tries too often: each key has a bucket, which
// is full at first and fills again as time goes by. The zero value is ready,
// and its methods may be used concurrently.
type Limits struct {
	mu sync.Mutex
	m  map[string]*rate.Limiter
}

// A Bucket is what is left of one.
type Bucket struct {
	OK    bool          // there was one left to take
	Size  int           // of the bucket
	Left  int           // to take at once
	Full  time.Duration // until it is full again
	Again time.Duration // until there is one to take
}

// maxLimiters bounds the memory of Limits. When it is reached, buckets that
// are full again are forgotten; if most are not, all is forgiven: better than
// refusing everybody.
const maxLimiters = 100_000

// Take takes one from the bucket of key, which fills by one in every and holds
// burst.
func (l *Limits) Take(now time.Time, key string, every time.Duration, burst int) Bucket {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.m[key]
	if r == nil {
		l.room(now)
		r = rate.NewLimiter(rate.Every(every), burst)
		l.m[key] = r
	}
	return bucket(r, now, r.AllowN(now, 1))
}

// Look tells what Take would find, and takes nothing. known says that the key
// has a bucket: somebody took from it not long ago.
func (l *Limits) Look(now time.Time, key string, every time.Duration, burst int) (b Bucket, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.m[key]
	if known = r != nil; !known {
		r = rate.NewLimiter(rate.Every(every), burst)
	}
	return bucket(r, now, r.TokensAt(now) >= 1), known
}

func bucket(r *rate.Limiter, now time.Time, ok bool) Bucket {
	tokens, second := r.TokensAt(now), float64(time.Second)/float64(r.Limit())
	return Bucket{ok, r.Burst(), max(0, int(tokens)), time.Duration((float64(r.Burst()) - tokens) * second), max(0, time.Duration((1-tokens)*second))}
}

// room makes place for one more bucket.
func (l *Limits) room(now time.Time) {
	if l.m == nil {
		l.m = map[string]*rate.Limiter{}
	}
	if len(l.m) < maxLimiters {
		return
	}
	for key, r := range l.m {
		if r.TokensAt(now) >= float64(r.Burst()) {
			delete(l.m, key)
		}
	}
	if len(l.m) > maxLimiters/2 {
		clear(l.m)
	}
}

// allow takes one try from the bucket of key.
func (l *Limits) allow(now time.Time, key string, every time.Duration, burst int) bool {
	return l.Take(now, key, every, burst).OK
}

// Source is what counts as one place to come from: an IPv4 address, or the
// /64 that one household or machine has of IPv6.
func Source(addr string) string {
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Unmap().Is4() {
		return addr
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return addr
	}
	return p.String()
}
