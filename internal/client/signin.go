package client

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/loopback"
)

// An approval is a request to a person to approve this device: a new one, or,
// with clientID, one that is enrolled and whose sign-in has ended.
type approval struct {
	d        *Device
	c        *api.Client // signs if the device is enrolled
	key      *ecdsa.PrivateKey
	team     string
	clientID string
}

// path is where what the person approved is brought.
func (a *approval) path() string {
	if a.clientID != "" {
		return "/v1/clients/login"
	}
	return "/v1/clients/enroll"
}

// get asks the person and returns what the platform made of the answer.
func (a *approval) get(ctx context.Context) (api.EnrollClientReply, error) {
	if a.d.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, a.d.Timeout, &sft.Error{Code: sft.SignIn,
			Msg: "nobody approved this device within " + a.d.Timeout.String(), Hint: "run the command again, and approve in the browser"})
		defer cancel()
	}
	reply, err := a.ask(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = context.Cause(ctx)
	}
	return reply, err
}

func (a *approval) ask(ctx context.Context) (api.EnrollClientReply, error) {
	switch a.d.Ask {
	case InBrowser:
		reply, err := a.inBrowser(ctx)
		if b, ok := errors.AsType[*browserError](err); ok {
			a.d.Say(b.Error())
			return a.byCode(ctx)
		}
		return reply, err
	case ByCode:
		return a.byCode(ctx)
	case ByAgent:
		return api.EnrollClientReply{}, &sft.Error{Code: sft.Invalid, Msg: "service_auth is on: this host's agent says who this is, and nobody is asked to approve it",
			Hint: "run \"sft config service_auth.enable false\" to enrol this device for yourself"}
	}
	return api.EnrollClientReply{}, &sft.Error{Code: sft.SignIn, Msg: "nobody can be asked to sign in: this is not a terminal, or SFT_NO_BROWSER is set",
		Hint: "run it in a terminal, or with --no-browser to sign in by a code"}
}

// bring takes what the person approved to the platform.
func (a *approval) bring(ctx context.Context, r api.EnrollClientRequest) (api.EnrollClientReply, error) {
	var reply api.EnrollClientReply
	r.Device = a.d.Info
	if a.clientID == "" {
		spki, err := x509.MarshalPKIXPublicKey(a.key.Public())
		if err != nil {
			return reply, err
		}
		r.DeviceKey = spki
	}
	err := a.c.Do(ctx, "POST", a.path(), r, &reply)
	return reply, err
}

// keyHash is the SHA-256 of the device key, in hex.
func (a *approval) keyHash() (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(a.key.Public())
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:]), err
}

// sayKey tells the person what the page shows of the device key, so that they
// approve this device and no other.
func (a *approval) sayKey(hash string) {
	a.d.Say("approve only if the page shows this device's key, " + hash[:16])
}

// A browserError says that no browser could be opened.
type browserError struct{ err error }

func (e *browserError) Error() string { return "open the browser: " + e.err.Error() }

// inBrowser has the person approve in a browser on this machine: the
// authorization code of RFC 6749 with PKCE (RFC 7636), brought to a loopback
// address (RFC 8252).
func (a *approval) inBrowser(ctx context.Context) (api.EnrollClientReply, error) {
	keyHash, err := a.keyHash()
	if err != nil {
		return api.EnrollClientReply{}, err
	}
	l, err := loopback.Listen(ctx)
	if err != nil {
		return api.EnrollClientReply{}, err
	}
	cb := newCallback(l.Addr().String())
	srv := &http.Server{Handler: cb, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10}
	go srv.Serve(l.Net(func(s *loopback.StrangerError) { a.d.Say(s.Error() + "; if it was your browser, use --no-browser") }))
	defer srv.Close()

	verifier := api.RandomID() + api.RandomID()
	challenge := sha256.Sum256([]byte(verifier))
	q := url.Values{
		"response_type":         {"code"},
		"client_id":             {"sft"},
		"redirect_uri":          {cb.uri()},
		"state":                 {cb.state},
		"code_challenge":        {base64.RawURLEncoding.EncodeToString(challenge[:])},
		"code_challenge_method": {"S256"},
		"device_key_sha256":     {keyHash},
		"hostname":              {a.d.Info.Hostname},
		"os":                    {a.d.Info.OS},
	}
	if a.team != "" {
		q.Set("team", a.team)
	}
	if a.clientID != "" {
		q.Set("client", a.clientID)
	}
	page := a.c.URL + "/authorize?" + q.Encode()
	if err := a.d.Open(page); err != nil {
		return api.EnrollClientReply{}, &browserError{err}
	}
	a.sayKey(keyHash)
	a.d.Say("waiting for you to approve this device in the browser; if no window has opened, go to " + page)
	select {
	case <-ctx.Done():
		return api.EnrollClientReply{}, ctx.Err()
	case ans := <-cb.answer:
		// Nothing more is heard; the page is still delivered.
		l.Close()
		shut, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		srv.Shutdown(shut)
		if ans.refusal != "" {
			return api.EnrollClientReply{}, refusal(ans.refusal)
		}
		return a.bring(ctx, api.EnrollClientRequest{Code: ans.code, CodeVerifier: verifier, RedirectURI: cb.uri()})
	}
}

func refusal(reason string) error {
	if reason == "access_denied" {
		return &sft.Error{Code: sft.Denied, Msg: "this device was refused in the browser", Hint: "run the command again if that was a mistake"}
	}
	return &sft.Error{Code: sft.Denied, Msg: "the platform did not approve this device: " + sft.Quote(reason), Hint: "ask an administrator"}
}

// A callback is the loopback address that the browser brings the answer to.
// Any page in the browser, and any process of the machine, may send it
// something: only what names the state is heard, and only once.
type callback struct {
	addr   string // host:port
	state  string
	answer chan answer // of capacity 1
}

type answer struct{ code, refusal string }

func newCallback(addr string) *callback {
	return &callback{addr: addr, state: api.RandomID() + api.RandomID(), answer: make(chan answer, 1)}
}

func (c *callback) uri() string { return "http://" + c.addr + "/callback" }

// closeWindow is the whole page. There is nothing in it of the request.
const closeWindow = "<!doctype html><meta charset=utf-8><title>sft</title><p>%s You may close this window.\n"

func (c *callback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Connection", "close")
	page := func(status int, text string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, closeWindow, text)
	}
	q := r.URL.Query()
	// The Host is checked so that no name which somebody points at
	// 127.0.0.1 reaches us.
	switch {
	case r.Host != c.addr || r.URL.Path != "/callback":
		page(http.StatusNotFound, "Nothing is here.")
		return
	case r.Method != http.MethodGet:
		page(http.StatusMethodNotAllowed, "Nothing is here.")
		return
	case subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(c.state)) != 1:
		page(http.StatusBadRequest, "This answer is not for the command that is waiting.")
		return
	}
	a := answer{code: q.Get("code"), refusal: q.Get("error")}
	if a.refusal == "" && (a.code == "" || len(a.code) > 512) {
		page(http.StatusBadRequest, "This answer is not complete.")
		return
	}
	select {
	case c.answer <- a:
		if a.refusal != "" {
			page(http.StatusOK, "The device was refused.")
		} else {
			page(http.StatusOK, "Done: go back to the terminal.")
		}
	default:
		page(http.StatusConflict, "This answer was given before.")
	}
}

// byCode has the person type a code into a browser anywhere: the device grant
// of RFC 8628. The address that is shown never holds the code, so that a link
// sent to somebody is not enough to have them approve.
func (a *approval) byCode(ctx context.Context) (api.EnrollClientReply, error) {
	none := api.EnrollClientReply{}
	if a.team == "" {
		return none, &sft.Error{Code: sft.Invalid, Msg: "sign-in by a code needs the team's name", Hint: "add --team"}
	}
	spki, err := x509.MarshalPKIXPublicKey(a.key.Public())
	if err != nil {
		return none, err
	}
	var dc api.DeviceCodeReply
	if err := a.c.Do(ctx, "POST", "/v1/clients/device_code", api.DeviceCodeRequest{Team: a.team, ClientID: a.clientID, DeviceKey: spki, Device: a.d.Info}, &dc); err != nil {
		return none, err
	}
	if dc.DeviceCode == "" || dc.UserCode == "" || dc.ExpiresIn <= 0 {
		return none, &sft.Error{Code: sft.Internal, Msg: "the platform's code is not complete", Hint: "try again; if it stays so, ask its administrator"}
	}
	hash, err := a.keyHash()
	if err != nil {
		return none, err
	}
	a.d.Say("to approve this device, open " + printable(dc.VerificationURI) + " in a browser, sign in, and enter the code " + printable(dc.UserCode))
	a.sayKey(hash)
	expires := time.Now().Add(time.Duration(min(dc.ExpiresIn, 3600)) * time.Second)
	interval := time.Duration(min(max(dc.Interval, 1), 60)) * time.Second
	for {
		select {
		case <-ctx.Done():
			return none, ctx.Err()
		case <-time.After(interval):
		}
		reply, err := a.bring(ctx, api.EnrollClientRequest{DeviceCode: dc.DeviceCode})
		switch sft.CodeOf(err) {
		case sft.Pending, sft.Unavailable: // the platform may be restarting
		case sft.TooMany:
			interval += 5 * time.Second // slow_down, RFC 8628 section 3.5
		default:
			return reply, err
		}
		if time.Now().After(expires) {
			return none, &sft.Error{Code: sft.SignIn, Msg: "the code has expired and nobody approved it", Hint: "run the command again"}
		}
	}
}

// printable takes out of s what could steer a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f {
			return -1
		}
		return r
	}, s)
}

// Login has the person sign in now, or the agent vouch for the service user.
func (s *Session) Login(ctx context.Context) error {
	if s.d.Ask == ByAgent {
		a, err := s.d.vouched(ctx, s.Account)
		if err != nil {
			return err
		}
		next, err := s.d.Session(a)
		if err != nil {
			return err
		}
		*s = *next
		return nil
	}
	a := approval{d: s.d, c: s.c, key: s.c.Key, team: s.Account.Team, clientID: s.Account.ClientID}
	reply, err := a.get(ctx)
	if sft.CodeOf(err) == sft.Revoked {
		return s.do(ctx, "POST", "/v1/clients/logout", nil, nil) // words it
	}
	if err != nil {
		return err
	}
	// It may have been given to another person.
	s.Account.User, s.Account.SignedInUntil = cmp.Or(reply.User, s.Account.User), reply.SignedInUntil
	return s.d.Store.put(s.Account)
}

// Logout ends the sign-in. Sessions on servers go on.
func (s *Session) Logout(ctx context.Context) error {
	if err := s.do(ctx, "POST", "/v1/clients/logout", nil, nil); err != nil && sft.CodeOf(err) != sft.SignIn {
		return err
	}
	s.Account.SignedInUntil = time.Time{}
	return s.d.Store.put(s.Account)
}
