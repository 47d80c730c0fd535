package webapi

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"sft"
	"sft/internal/platform"
)

// Limits bounds what callers can use of the platform. What is over a limit is
// refused at once, with the time after which to try again, before the
// database hears of it.
type Limits struct {
	// Rate is how many requests a second each client, agent and key of a
	// service user may make in the long run, and forty times as many at once.
	// Anonymous is the same for each place (an IPv4 address, or a /64 of IPv6)
	// that requests come from which nobody has signed, and once more for those
	// that claim to be signed and are not.
	Rate, Anonymous float64
	// Requests is how many may be under way at once, a quarter of them by one
	// caller or from one place. Requests of agents that hang do not count. A
	// quarter of that is how many bodies may be arriving at once, a sixteenth
	// of them by one caller or, by strangers, from one place, a quarter from one
	// place by whomever, and half of them by strangers: on a connection that nobody has proven to be theirs, from a place where
	// nobody has for long.
	Requests int
	// Agents is how many requests of agents may hang at once.
	Agents int
	// Connections is how many may be open at once, a quarter of them from one
	// place.
	Connections int
	// Arrival is how long the body of a request may take to arrive, and Time
	// how long the handling may take after that. A stranger's has to come at
	// 1 KiB a second after Patience.
	Arrival, Patience, Time time.Duration
}

// DefaultLimits are what a Server begins with.
var DefaultLimits = Limits{Rate: 100, Anonymous: 50, Requests: 2048, Agents: 20_000, Connections: 24_000, Arrival: 10 * time.Second, Patience: 2 * time.Second, Time: 30 * time.Second}

// burst is how many seconds' worth of requests can be made at once.
const burst = 40

// maxHanging is how many requests of one agent may hang: it has one, and
// perhaps another whose end the platform has not seen yet.
const maxHanging = 4

// writeTime is how long a caller may take to take a reply.
const writeTime = 30 * time.Second

// minRate is how many bytes of a stranger's body have to come in a second.
const minRate = 1 << 10

// knownFor is for how long a place is known where somebody has proven who they
// are, and maxKnown how many such places are remembered.
const (
	knownFor = time.Hour
	maxKnown = 100_000
)

// A link is an open connection.
type link struct {
	place  string
	caller atomic.Pointer[string] // who has proven last that it is theirs, as a key; nil: nobody
}

// places are those where somebody has proven lately who they are.
type places struct {
	mu sync.Mutex
	m  map[string]time.Time // since when nobody has
}

func (p *places) note(place string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.m) >= maxKnown {
		maps.DeleteFunc(p.m, func(_ string, at time.Time) bool { return now.Sub(at) >= knownFor })
	}
	if p.m == nil || len(p.m) >= maxKnown {
		p.m = map[string]time.Time{}
	}
	p.m[place] = now
}

func (p *places) known(place string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.m[place]
	return ok && now.Sub(at) < knownFor
}

// maxDepth is how deep the JSON of a request may be nested.
const maxDepth = 16

// A gate counts what is under way, in all and for each key.
type gate struct {
	mu  sync.Mutex
	n   int
	per map[string]int
}

// enter counts one more for key, unless that is too many for the key or in
// all, of which the first has more to say. Whoever has entered leaves.
func (g *gate) enter(key string, each, all int) (ofKey, inAll bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.per[key] >= each {
		return false, true
	}
	if g.n >= all {
		return true, false
	}
	if g.per == nil {
		g.per = map[string]int{}
	}
	g.n++
	g.per[key]++
	return true, true
}

func (g *gate) leave(key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n--
	if g.per[key]--; g.per[key] == 0 {
		delete(g.per, key)
	}
}

// count returns how many there are, and of how many keys.
func (g *gate) count() (all, keys int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n, len(g.per)
}

// A pass is one request's way through the limits.
type pass struct {
	s      *Server
	w      http.ResponseWriter
	place  string // where it comes from, as a key
	bucket string // what it is taken from if nobody has made it, as a key
	caller string // who made it, as a key, once that is known
	link   *link  // that it came by; nil where Conn is not told of any
	body   []byte
	gates  map[*gate]string
}

// placeOf is where a request comes from, as a key.
func placeOf(r *http.Request) string { return "from " + platform.Source(addr(r)) }

// limited is the error of a request over the limit of a name, which ends
// after a time.
func (s *Server) limited(w http.ResponseWriter, code sft.Code, limit, msg string, after time.Duration) error {
	s.metrics.limited.WithLabelValues(limit).Inc()
	seconds := max(1, int64(math.Ceil(after.Seconds())))
	w.Header().Set("Retry-After", strconv.FormatInt(seconds, 10))
	return &sft.Error{Code: code, Msg: msg, Hint: fmt.Sprintf("try again in %d s", seconds)}
}

// begin lets a request in, by what it says of itself, and reads its body:
// header is its Authorization. Nobody has proven anything yet, so nothing is
// taken from the bucket of who it claims to be. Who calls it calls end.
func (s *Server) begin(w http.ResponseWriter, r *http.Request, header string) (*pass, error) {
	place := placeOf(r)
	p := &pass{s: s, w: w, place: place, bucket: place, gates: map[*gate]string{}}
	if l, ok := s.links.Load(r.RemoteAddr); ok {
		p.link = l.(*link)
	}
	c := claimed(header)
	if c != "" {
		// After a start nobody was here before: whoever signs is not kept out by
		// those at the same place who do not.
		p.bucket += "|claims"
	}
	now := time.Now()
	b, _ := s.buckets.Look(now, p.bucket, every(s.Limits.Anonymous), size(s.Limits.Anonymous))
	limit := "place"
	if c != "" {
		// Who was here before is not kept out by others who claim something.
		if own, known := s.buckets.Look(now, c, every(s.Limits.Rate), size(s.Limits.Rate)); known {
			b, limit = own, "caller"
		}
	}
	p.show(b)
	if !b.OK {
		return p, s.tooFast(w, limit, b)
	}
	// A body may be slow to arrive. Until it is there it takes nothing that
	// requests without one need.
	if err := p.read(r); err != nil {
		return p, err
	}
	return p, p.enter(&s.requests, p.place, "place_requests")
}

// read reads the body, if there is one.
func (p *pass) read(r *http.Request) error {
	if r.ContentLength == 0 {
		return nil
	}
	c := http.NewResponseController(p.w)
	err := p.arrives(r, c)
	if err != nil {
		_ = c.SetReadDeadline(time.Now()) // the answer does not wait for the rest
	}
	return err
}

// arrives is read. What a request says of who sends it is proven only when its
// body is there, so that what was proven before is what counts: bodies of
// strangers leave room for those of others.
func (p *pass) arrives(r *http.Request, c *http.ResponseController) error {
	began := time.Now()
	if err := p.enter(&p.s.bodies, p.place, "place_bodies"); err != nil { // whoever they are: a person may have many clients
		return err
	}
	defer p.leave(&p.s.bodies)
	key, limit := p.place, "place_bodies"
	body := &paced{from: http.MaxBytesReader(p.w, r.Body, maxBody), c: c,
		next: began.Add(p.s.Limits.Arrival), end: began.Add(p.s.Limits.Arrival)}
	if l := p.link; l != nil && l.caller.Load() != nil {
		key, limit = *l.caller.Load(), "caller_bodies"
	} else if !p.s.known.known(p.place, began) {
		body.next = began.Add(p.s.Limits.Patience)
		if err := p.enter(&p.s.strangers, p.place, limit); err != nil {
			return err
		}
		defer p.leave(&p.s.strangers)
	}
	if err := p.enter(&p.s.arriving, key, limit); err != nil {
		return err
	}
	defer p.leave(&p.s.arriving)
	var err error
	if p.body, err = io.ReadAll(body); err != nil {
		return errors.Join(p.nobody(), &sft.Error{Code: sft.Invalid, Msg: "the request's body is too long or did not arrive", Hint: "send at most 1 MiB"})
	}
	return nil
}

// A paced reader has until next for more to come, which each byte puts off, and
// until end at the latest.
type paced struct {
	from      io.Reader
	c         *http.ResponseController
	next, end time.Time
}

func (r *paced) Read(b []byte) (int, error) {
	at := r.next
	if at.After(r.end) {
		at = r.end
	}
	// Not an error where the connection has no deadline: then there is no
	// network in between.
	_ = r.c.SetReadDeadline(at)
	n, err := r.from.Read(b)
	r.next = r.next.Add(time.Duration(n) * time.Second / minRate)
	return n, err
}

// tooFast is the error of a caller or place that is over its rate.
func (s *Server) tooFast(w http.ResponseWriter, limit string, b platform.Bucket) error {
	w.Header().Set("X-RateLimit-Retry-At", epoch(b.Again))
	return s.limited(w, sft.TooMany, limit+"_rate", "too many requests", b.Again)
}

// enter counts the request at a gate. limit is the name of how many may be
// there for a key.
func (p *pass) enter(g *gate, key, limit string) error {
	all, each, inAllLimit := p.s.Limits.Requests, max(1, p.s.Limits.Requests/4), "requests"
	switch g {
	case &p.s.hanging:
		all, each = p.s.Limits.Agents, maxHanging
	case &p.s.bodies:
		all, each, inAllLimit = each, max(1, each/4), "bodies"
	case &p.s.arriving:
		all, each, inAllLimit = each, max(1, each/16), "bodies"
	case &p.s.strangers:
		all, each, inAllLimit = max(1, each/2), max(1, each/16), "bodies"
	}
	ofKey, inAll := g.enter(key, each, all)
	switch {
	case !ofKey:
		return p.s.limited(p.w, sft.TooMany, limit, "too many requests at once", time.Second)
	case !inAll:
		return p.s.limited(p.w, sft.Unavailable, inAllLimit, "the platform has too much to do", 2*time.Second)
	}
	p.gates[g] = key
	return nil
}

// nobody counts a request that nobody has proven to have made.
func (p *pass) nobody() error { return p.take(p.bucket, "place", p.s.Limits.Anonymous) }

// proven counts a request of somebody who has proven who they are. One that
// hangs counts among its like from here on, and no more among the others.
func (p *pass) proven(a platform.Actor, hangs bool) error {
	p.caller = key(a)
	p.s.known.note(p.place, time.Now())
	if caller := p.caller; p.link != nil {
		p.link.caller.Store(&caller)
	}
	if err := p.take(p.caller, "caller", p.s.Limits.Rate); err != nil {
		return err
	}
	if !hangs {
		return p.enter(&p.s.callers, p.caller, "caller_requests")
	}
	if err := p.enter(&p.s.hanging, p.caller, "caller_requests"); err != nil {
		return err
	}
	p.leave(&p.s.requests)
	return nil
}

// take takes one from a bucket.
func (p *pass) take(key, limit string, rate float64) error {
	b := p.s.buckets.Take(time.Now(), key, every(rate), size(rate))
	p.show(b)
	if !b.OK {
		return p.s.tooFast(p.w, limit, b)
	}
	return nil
}

// show tells the caller what is left.
func (p *pass) show(b platform.Bucket) {
	h := p.w.Header()
	h.Set("X-RateLimit-Limit", strconv.Itoa(b.Size))
	h.Set("X-RateLimit-Remaining", strconv.Itoa(b.Left))
	h.Set("X-RateLimit-Reset", epoch(b.Full))
}

func (p *pass) leave(g *gate) {
	if key, ok := p.gates[g]; ok {
		delete(p.gates, g)
		g.leave(key)
	}
}

func (p *pass) end() {
	for g := range p.gates {
		p.leave(g)
	}
}

func every(rate float64) time.Duration { return time.Duration(float64(time.Second) / rate) }

func size(rate float64) int { return max(1, int(rate*burst)) }

// epoch is the time after d from now, in seconds since 1970.
func epoch(d time.Duration) string {
	return strconv.FormatInt(time.Now().Add(d+time.Second-1).Unix(), 10)
}

// key is the name of a caller's bucket.
func key(a platform.Actor) string {
	switch {
	case a.Server != "":
		return "server:" + a.Server
	case a.Client != "":
		return "client:" + a.Client
	}
	return "key:" + a.Key
}

// claimed is the key of whoever an Authorization header says that it is by, or
// "": nothing of it is proven.
func claimed(header string) string {
	_, rest, ok := strings.Cut(header, ".")
	payload, _, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || len(payload) > 16<<10 {
		return ""
	}
	b, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return ""
	}
	var c struct {
		Issuer string `json:"iss"`
		Key    string `json:"kid"`
	}
	if json.Unmarshal(b, &c) != nil || len(c.Issuer)+len(c.Key) > 100 {
		return ""
	}
	if c.Issuer != "" {
		return c.Issuer
	}
	if c.Key != "" {
		return "key:" + c.Key
	}
	return ""
}

// Conn bounds how many connections are open: it is the ConnState of an
// http.Server.
func (s *Server) Conn(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		place := platform.Source(host)
		ofKey, inAll := s.connections.enter(place, max(1, s.Limits.Connections/4), s.Limits.Connections)
		if !ofKey || !inAll {
			s.metrics.limited.WithLabelValues("connections").Inc()
			c.Close()
			return
		}
		l := &link{place: place}
		s.open.Store(c, l)
		s.links.Store(c.RemoteAddr().String(), l)
	case http.StateClosed, http.StateHijacked:
		if l, ok := s.open.LoadAndDelete(c); ok {
			s.connections.leave(l.(*link).place)
			s.links.CompareAndDelete(c.RemoteAddr().String(), l) // there may be a new one from there already
		}
	}
}

// Connections is how many are open, as far as Conn has been told.
func (s *Server) Connections() int { n, _ := s.connections.count(); return n }

// foldRune is how encoding/json compares the letters of a field's name.
func foldRune(r rune) rune {
	for {
		next := unicode.SimpleFold(r)
		if next <= r {
			return next
		}
		r = next
	}
}

// checkJSON refuses a body that two readers could understand in two ways, or
// that is nested too deep: an object with a key twice, whatever the case of its
// letters, and anything after the value.
func checkJSON(body []byte) error {
	d := json.NewDecoder(strings.NewReader(string(body)))
	d.UseNumber()
	invalid := func(msg string) error {
		return &sft.Error{Code: sft.Invalid, Msg: msg, Hint: "compare it with the API's reference"}
	}
	type level struct {
		keys  map[string]bool // of an object
		isKey bool            // what comes next
	}
	var stack []level
	for {
		t, err := d.Token()
		if err != nil {
			return nil // whoever reads it next says so
		}
		top := len(stack) - 1
		switch v := t.(type) {
		case json.Delim:
			switch v {
			case '{', '[':
				if len(stack) == maxDepth {
					return invalid("the body is nested too deep")
				}
				l := level{}
				if v == '{' {
					l = level{map[string]bool{}, true}
				}
				stack = append(stack, l)
				continue
			default:
				stack = stack[:top]
			}
		case string:
			if top >= 0 && stack[top].isKey {
				k := strings.Map(foldRune, v)
				if stack[top].keys[k] {
					return invalid("the body has the field " + sft.Quote(v) + " twice")
				}
				stack[top].keys[k], stack[top].isKey = true, false
				continue
			}
		}
		if top = len(stack) - 1; top < 0 {
			break
		}
		stack[top].isKey = stack[top].keys != nil
	}
	if len(strings.TrimSpace(string(body[d.InputOffset():]))) > 0 {
		return invalid("the body goes on after its end")
	}
	return nil
}
