// Package webapi puts the platform's operations on HTTP: the REST API under
// /v1, and the few pages that a person needs to sign in and approve a device.
//
// What there is, is one table of routes (routes.go). Each row has an access
// rule, which says what kind of caller it takes; the zero rule is none, and
// nobody is let in. Who may do what is not decided here but by the operation
// itself, in package platform.
package webapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"reflect"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/platform"
)

// statePath is the route whose requests hang.
const statePath = "/v1/agent/state"

// maxBody caps the body of a request, in bytes.
const maxBody = 1 << 20

// An access is the kind of caller that a route takes.
type access int

const (
	noRule      access = iota // nobody: a route must have a rule
	anyone                    // no caller is asked for; the body or the page is the proof
	agent                     // signed by an enrolled server
	device                    // signed by an enrolled client, signed in or not
	signedIn                  // signed by a client that is signed in
	person                    // a client that is signed in, or a service user
	deviceOrKey               // a client, signed in or not, or a service user
)

// A route is one row of the table.
type route struct {
	method, path string
	access       access
	handle       handler
}

// A handler carries out one operation. What the operation is, is kept beside
// it: the API's reference is made of that (see reference.go).
type handler struct {
	// serve returns the reply's status and body.
	serve func(ctx context.Context, a platform.Actor, rt route, r *http.Request, body []byte) (int, any, error)

	op         any          // the operation, a method of the platform
	req, reply reflect.Type // what it takes, and the body of the reply
	status     int          // of the reply
}

// A Server answers HTTP requests for a platform.
type Server struct {
	// Limits may be set before the first request.
	Limits Limits
	// MetricsToken opens /metrics to whoever has it. Without it there is no
	// such page.
	MetricsToken sft.Secret

	p        *platform.Platform
	log      *slog.Logger
	mux      *http.ServeMux
	metrics  *metrics
	ready    ready
	draining atomic.Bool

	showMetrics http.Handler

	buckets     platform.Limits
	bodies      gate // that arrive, by place
	arriving    gate // the same, by caller or, of strangers, by place
	strangers   gate // those of strangers among them, by place
	requests    gate // by place
	callers     gate
	hanging     gate     // by agent
	connections gate     // by place
	open        sync.Map // of net.Conn, its *link
	links       sync.Map // by their remote addresses
	known       places
}

// New returns the platform's HTTP handler.
func New(p *platform.Platform, log *slog.Logger) *Server {
	s := &Server{Limits: DefaultLimits, p: p, log: log, mux: http.NewServeMux()}
	s.metrics = newMetrics(s)
	s.showMetrics = s.metricsHandler()
	p.DB.Watch(s.metrics.span)
	for _, rt := range routes(p) {
		s.mux.Handle(rt.method+" "+rt.path, s.api(rt))
	}
	s.mux.HandleFunc("GET /v1/openapi.json", s.openAPI)
	s.pages()
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok\n") })
	s.mux.HandleFunc("GET /readyz", s.readyz)
	s.mux.HandleFunc("GET /metrics", s.metricsByToken)
	s.mux.HandleFunc("/v1/", func(w http.ResponseWriter, r *http.Request) {
		pass, err := s.begin(w, r, "")
		defer pass.end()
		if err == nil {
			err = pass.nobody()
		}
		if err == nil {
			err = s.noRoute(w, r)
		}
		s.fail(w, r, err)
	})
	return s
}

// ServeHTTP logs each request and lives through a panic of any.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	sw := &statusWriter{ResponseWriter: w, p: s.p, r: r}
	defer func() {
		if v := recover(); v != nil && v != http.ErrAbortHandler {
			s.log.Error("a request failed badly", "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
			if sw.status == 0 {
				s.fail(sw, r, errors.New("panic"))
			}
		}
		// The path alone: a query may hold a secret.
		s.metrics.served(r.Pattern, sw.status, time.Since(began))
		s.log.Debug("request", "method", r.Method, "path", r.URL.Path, "status", sw.status, "addr", addr(r), "took", time.Since(began))
	}()
	sw.Header().Set("Strict-Transport-Security", "max-age=31536000")
	sw.Header().Set("X-Content-Type-Options", "nosniff")
	sw.Header().Set("Cache-Control", "no-store")
	s.mux.ServeHTTP(sw, r)
}

type statusWriter struct {
	http.ResponseWriter
	status int
	p      *platform.Platform
	r      *http.Request
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		w.Header().Set(api.TimeHeader, w.p.Now().UTC().Format(time.RFC3339Nano))
		if status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", challenge(w.r))
		}
		if w.p.Stopping() {
			w.Header().Set("Connection", "close") // so that the next request goes to who comes after
		}
		// Not an error where the connection has no deadline: then there is no
		// network in between.
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(writeTime))
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(b)
}

// addr is the address that a request came from, without its port.
func addr(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// api carries out a route of the API.
func (s *Server) api(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header, noToken := bearer(r)
		pass, err := s.begin(w, r, header)
		defer pass.end()
		if err == nil && noToken != nil {
			err = errors.Join(pass.nobody(), noToken)
		}
		if err != nil {
			s.fail(w, r, err)
			return
		}
		hangs := rt.path == statePath
		ctx := r.Context()
		if !hangs {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, s.Limits.Time)
			defer cancel()
		}
		status, reply, err := s.handle(ctx, rt, r, header, pass.body, func(a platform.Actor) error {
			if a.Server+a.Client+a.Key == "" {
				return pass.nobody()
			}
			return pass.proven(a, hangs)
		})
		if err != nil && r.Context().Err() == nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = s.limited(w, sft.Unavailable, "time", "the platform did not get to it in time", 5*time.Second)
		}
		if err != nil {
			s.fail(w, r, err)
			return
		}
		if status == http.StatusNoContent {
			w.WriteHeader(status)
			return
		}
		if l, ok := reply.(interface{ Around() (prev, next string) }); ok {
			s.link(w, r, l.Around)
		}
		s.reply(w, status, reply)
	})
}

// handle finds out whose the request is, counts it as theirs, and carries it
// out.
func (s *Server) handle(ctx context.Context, rt route, r *http.Request, header string, body []byte, count func(platform.Actor) error) (int, any, error) {
	a, err := s.p.Authenticate(ctx, header, r.Method, r.URL.RequestURI(), body, addr(r))
	if err != nil {
		return 0, nil, errors.Join(count(platform.Actor{}), err)
	}
	if err := count(a); err != nil {
		return 0, nil, err
	}
	if err := s.admit(ctx, rt.access, a); err != nil {
		return 0, nil, err
	}
	if a.Once, err = once(rt, r, body); err != nil {
		return 0, nil, err
	}
	status, reply, err := rt.handle.serve(ctx, a, rt, r, body)
	if again, ok := errors.AsType[*platform.Repeated](err); ok {
		return rt.handle.status, again.Reply, nil
	}
	s.metrics.handled(rt, body, reply, err)
	return status, reply, err
}

// link tells where the pages around one are (RFC 8288).
func (s *Server) link(w http.ResponseWriter, r *http.Request, around func() (prev, next string)) {
	prev, next := around()
	for _, l := range []struct{ rel, offset, back string }{{"prev", prev, "true"}, {"next", next, ""}} {
		if l.offset == "" {
			continue
		}
		q := r.URL.Query()
		q.Set("offset", l.offset)
		if q.Del("prev"); l.back != "" {
			q.Set("prev", l.back)
		}
		w.Header().Add("Link", fmt.Sprintf("<%s%s?%s>; rel=%q", s.p.URL, r.URL.EscapedPath(), q.Encode(), l.rel))
	}
}

// admit checks the caller against the route's rule.
func (s *Server) admit(ctx context.Context, rule access, a platform.Actor) error {
	nobody := &sft.Error{Code: sft.SignIn, Msg: "the request is not signed by anybody who may make it", Hint: "sign in, or send a service user's token"}
	switch rule {
	case anyone:
		return nil
	case agent:
		if a.Server != "" {
			return nil
		}
	case device:
		if a.Client != "" {
			return nil
		}
	case signedIn:
		if a.Client != "" {
			return s.p.SignedIn(ctx, a)
		}
	case person:
		if a.Client != "" {
			return s.p.SignedIn(ctx, a)
		}
		if a.Key != "" {
			return nil
		}
	case deviceOrKey:
		if a.Client != "" || a.Key != "" {
			return nil
		}
	}
	return nobody
}

// noRoute is the error of a request that no route takes.
func (s *Server) noRoute(w http.ResponseWriter, r *http.Request) error {
	var allow []string
	q := *r
	for _, q.Method = range []string{"GET", "HEAD", "POST", "PUT", "DELETE"} {
		if _, pattern := s.mux.Handler(&q); strings.HasPrefix(pattern, "GET ") || strings.HasPrefix(pattern, q.Method+" ") {
			allow = append(allow, q.Method)
		}
	}
	if len(allow) == 0 {
		return &sft.Error{Code: sft.NotFound, Msg: "there is no such route", Hint: "look for it in GET /v1/openapi.json, which has all there are"}
	}
	list := strings.Join(allow, ", ")
	w.Header().Set("Allow", list)
	return &sft.Error{Code: sft.NoMethod, Msg: "this route does not take the method " + sft.Quote(r.Method), Hint: "use one that it takes: " + list}
}

func (s *Server) reply(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		s.log.Error("encode a reply", "error", err)
		status, b = http.StatusInternalServerError, []byte(`{"error":{"code":"unknown_error","message":"the reply cannot be encoded"}}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(b, '\n'))
}

// public returns the error that the caller may see. Any other goes to the
// log.
func (s *Server) public(r *http.Request, err error) *sft.Error {
	if e, ok := errors.AsType[*sft.Error](err); ok {
		return e
	}
	if r.Context().Err() != nil {
		return &sft.Error{Code: sft.Unavailable, Msg: "the platform is stopping", Hint: "try again soon"}
	}
	s.log.Error("a request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	return &sft.Error{Code: sft.Internal, Msg: "the platform failed", Hint: "ask its operator: the log says why"}
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := s.public(r, err)
	s.metrics.refusals.WithLabelValues(string(e.Code)).Inc()
	if after := map[int]string{http.StatusTooManyRequests: "60", http.StatusServiceUnavailable: "5"}[e.Code.Info().Status]; after != "" && w.Header().Get("Retry-After") == "" {
		w.Header().Set("Retry-After", after)
	}
	s.reply(w, e.Code.Info().Status, api.ErrorReply{Error: *e, Time: s.p.Now().UTC()})
}

// call adapts an operation to HTTP: the request's struct is filled from the
// path, the query and the body, by its tags.
func call[Req, Reply any](status int, op func(context.Context, platform.Actor, Req) (Reply, error)) handler {
	in := takes(reflect.TypeFor[Req]())
	serve := func(ctx context.Context, a platform.Actor, rt route, r *http.Request, body []byte) (int, any, error) {
		var req Req
		if err := bind(&req, in, rt, r, body); err != nil {
			return 0, nil, err
		}
		reply, err := op(ctx, a, req)
		return status, reply, err
	}
	return handler{serve, op, reflect.TypeFor[Req](), reflect.TypeFor[Reply](), status}
}

// list is call for operations that return many: {"list": [...]}.
func list[Req, T any](op func(context.Context, platform.Actor, Req) ([]T, error)) handler {
	h := call(http.StatusOK, func(ctx context.Context, a platform.Actor, req Req) (api.List[T], error) {
		l, err := op(ctx, a, req)
		return api.List[T]{List: l}, err
	})
	h.op = op
	return h
}
