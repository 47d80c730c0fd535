package webapi

import (
	"bytes"
	"embed"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/platform"
)

//go:embed pages/*.html
var pageFiles embed.FS

var pageTemplates = template.Must(template.ParseFS(pageFiles, "pages/*.html"))

// cookieName has the prefix by which browsers hold it to Secure, Path=/ and
// this one host.
const cookieName = "__Host-sft"

// A page is what a template is given. Only what the page shows is set.
type page struct {
	Title   string
	Error   *sft.Error
	User    string
	Team    string
	AskTeam bool
	Next    string
	Secret  string // of a one-time link, in the form that spends it
	Fields  url.Values
	Device  *api.DeviceInfo
	Addr    string // where the client asked from, if it was not this browser
	Key     string
	Code    string
	New     bool
	Done    string
}

// pages adds the pages. They are forms without scripts: they work in any
// browser, and nothing can run in them.
func (s *Server) pages() {
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.show(w, http.StatusForbidden, "message.html", page{Title: "Not from here", Error: &sft.Error{Msg: "this form was sent by another site", Hint: "open the page of the platform itself"}})
	}))
	handle := func(pattern string, h http.HandlerFunc) {
		s.mux.Handle(pattern, guard.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			pass, err := s.begin(w, r, "")
			defer pass.end()
			if err == nil {
				err = pass.nobody()
			}
			if err != nil {
				s.failed(w, r, err, "message.html", page{Title: "Too much at once"})
				return
			}
			r.Body = http.MaxBytesReader(w, io.NopCloser(bytes.NewReader(pass.body)), 64<<10)
			if err := r.ParseForm(); err != nil {
				s.show(w, http.StatusBadRequest, "message.html", page{Title: "Too long", Error: &sft.Error{Msg: "the form is too long"}})
				return
			}
			h(w, r)
		})))
	}
	handle("GET /{$}", s.home)
	handle("GET /signin", s.signInForm)
	handle("POST /signin", s.signIn)
	handle("POST /signout", s.signOut)
	handle("GET /first-use", s.firstUseForm)
	handle("POST /first-use", s.firstUse)
	handle("GET /authorize", s.authorizeForm)
	handle("POST /authorize", s.authorize)
	handle("GET /device", s.deviceForm)
	handle("POST /device", s.device)
}

func (s *Server) show(w http.ResponseWriter, status int, name string, p page) {
	var b bytes.Buffer
	if err := pageTemplates.ExecuteTemplate(&b, name, p); err != nil {
		s.log.Error("show a page", "page", name, "error", err)
		http.Error(w, "the page cannot be shown", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	// A form may lead to sft's own listener on the person's machine.
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self' http://127.0.0.1:*; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	w.WriteHeader(status)
	w.Write(b.Bytes())
}

// failed shows a page again, with what is wrong.
func (s *Server) failed(w http.ResponseWriter, r *http.Request, err error, name string, p page) {
	p.Error = s.public(r, err)
	s.show(w, p.Error.Code.Info().Status, name, p)
}

// web finds out who is signed in. Without somebody it leads to the sign-in
// page and back, and returns false.
func (s *Server) web(w http.ResponseWriter, r *http.Request, fresh time.Duration) (platform.Actor, string, time.Time, bool) {
	if c, err := r.Cookie(cookieName); err == nil {
		a, team, at, err := s.p.Web(r.Context(), sft.NewSecret(c.Value), addr(r))
		if err == nil {
			s.known.note(placeOf(r), time.Now())
		}
		if err == nil && (fresh == 0 || s.p.Now().Sub(at) <= fresh) {
			return a, team, at, true
		}
		if err != nil && sft.CodeOf(err) != sft.SignIn {
			s.failed(w, r, err, "message.html", page{Title: "Failed"})
			return platform.Actor{}, "", time.Time{}, false
		}
	}
	http.Redirect(w, r, "/signin?next="+url.QueryEscape(r.URL.RequestURI()), http.StatusSeeOther)
	return platform.Actor{}, "", time.Time{}, false
}

// next returns where to go after a sign-in: a page of the platform, whatever
// was asked for.
func next(raw string) string {
	if !strings.HasPrefix(raw, "/") || strings.HasPrefix(raw, "//") || strings.ContainsAny(raw, "\\\r\n\t") || len(raw) > 4096 {
		return "/"
	}
	return raw
}

func (s *Server) setCookie(w http.ResponseWriter, value string, age int) {
	http.SetCookie(w, &http.Cookie{Name: cookieName, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: age})
}

func (s *Server) home(w http.ResponseWriter, r *http.Request) {
	a, team, _, ok := s.web(w, r, 0)
	if ok {
		s.show(w, http.StatusOK, "home.html", page{Title: "Signed in", User: a.Name, Team: team})
	}
}

func (s *Server) signInPage(r *http.Request) page {
	p := page{Title: "Sign in", Next: next(r.FormValue("next")), User: r.PostFormValue("user"), Team: r.PostFormValue("team")}
	if p.Team == "" {
		p.Team = s.p.OneTeam(r.Context())
	}
	return p
}

func (s *Server) signInForm(w http.ResponseWriter, r *http.Request) {
	s.show(w, http.StatusOK, "signin.html", s.signInPage(r))
}

func (s *Server) signIn(w http.ResponseWriter, r *http.Request) {
	p := s.signInPage(r)
	cookie, err := s.p.SignIn(r.Context(), platform.Actor{Addr: addr(r)}, p.Team, p.User, sft.NewSecret(r.PostFormValue("password")))
	if err != nil {
		s.metrics.signInsLost.WithLabelValues("password").Inc()
		s.failed(w, r, err, "signin.html", p)
		return
	}
	s.setCookie(w, cookie.Reveal(), 0)
	http.Redirect(w, r, p.Next, http.StatusSeeOther)
}

func (s *Server) signOut(w http.ResponseWriter, r *http.Request) {
	if a, _, _, ok := s.web(w, r, 0); ok {
		c, _ := r.Cookie(cookieName)
		if err := s.p.SignOut(r.Context(), a, sft.NewSecret(c.Value)); err != nil {
			s.failed(w, r, err, "message.html", page{Title: "Failed"})
			return
		}
		s.setCookie(w, "", -1)
		http.Redirect(w, r, "/signin", http.StatusSeeOther)
	}
}

func (s *Server) firstUseForm(w http.ResponseWriter, r *http.Request) {
	secret := r.FormValue("secret")
	name, err := s.p.FirstUse(r.Context(), sft.NewSecret(secret))
	if err != nil {
		s.failed(w, r, err, "message.html", page{Title: "This link does not work"})
		return
	}
	s.show(w, http.StatusOK, "first-use.html", page{Title: "Welcome, " + name, User: name, Secret: secret})
}

func (s *Server) firstUse(w http.ResponseWriter, r *http.Request) {
	secret, pw := r.PostFormValue("secret"), r.PostFormValue("password")
	name, err := s.p.FirstUse(r.Context(), sft.NewSecret(secret))
	if err != nil {
		s.failed(w, r, err, "message.html", page{Title: "This link does not work"})
		return
	}
	p := page{Title: "Welcome, " + name, User: name, Secret: secret}
	if pw != r.PostFormValue("again") {
		s.failed(w, r, &sft.Error{Code: sft.Invalid, Msg: "the two passwords differ", Hint: "type it twice"}, "first-use.html", p)
		return
	}
	cookie, err := s.p.SetFirstPassword(r.Context(), platform.Actor{Addr: addr(r)}, sft.NewSecret(secret), sft.NewSecret(pw))
	if err != nil {
		s.failed(w, r, err, "first-use.html", p)
		return
	}
	s.setCookie(w, cookie.Reveal(), 0)
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// authorization reads a client's request out of a form.
func authorization(r *http.Request) platform.Authorization {
	f := r.Form
	return platform.Authorization{Team: f.Get("team"), RedirectURI: f.Get("redirect_uri"), State: f.Get("state"), Challenge: f.Get("code_challenge"),
		KeySHA256: f.Get("device_key_sha256"), ClientID: f.Get("client"), Device: api.DeviceInfo{Hostname: f.Get("hostname"), OS: f.Get("os")}}
}

var authorizeFields = []string{"team", "redirect_uri", "state", "code_challenge", "device_key_sha256", "client", "hostname", "os"}

func (s *Server) authorizeForm(w http.ResponseWriter, r *http.Request) {
	z := authorization(r)
	if err := z.Check(); err != nil || r.FormValue("response_type") != "code" || r.FormValue("code_challenge_method") != "S256" || r.FormValue("client_id") != "sft" {
		if err == nil {
			err = &sft.Error{Code: sft.Invalid, Msg: "the request is not complete", Hint: "run \"sft enroll\" again"}
		}
		s.failed(w, r, err, "message.html", page{Title: "This request does not work"})
		return
	}
	a, team, _, ok := s.web(w, r, 0)
	if !ok {
		return
	}
	if z.Team != "" && sft.Fold(z.Team) != sft.Fold(team) {
		s.failed(w, r, &sft.Error{Code: sft.Denied, Msg: "you are signed in to team " + sft.Quote(team) + ", and the request is for " + sft.Quote(z.Team), Hint: "sign out, then run the command again"}, "message.html", page{Title: "Another team"})
		return
	}
	fields := url.Values{}
	for _, k := range authorizeFields {
		fields.Set(k, r.Form.Get(k))
	}
	fields.Set("team", team)
	s.show(w, http.StatusOK, "approve.html", page{Title: "Approve this device?", User: a.Name, Team: team, Device: &z.Device,
		Key: z.KeySHA256[:16], New: z.ClientID == "", Fields: fields})
}

func (s *Server) authorize(w http.ResponseWriter, r *http.Request) {
	a, _, _, ok := s.web(w, r, 0)
	if !ok {
		return
	}
	z := authorization(r)
	if err := z.Check(); err != nil {
		s.failed(w, r, err, "message.html", page{Title: "This request does not work"})
		return
	}
	if r.PostFormValue("answer") != "approve" {
		http.Redirect(w, r, z.Refusal(), http.StatusSeeOther)
		return
	}
	to, err := s.p.Authorize(r.Context(), a, z)
	if err != nil {
		s.failed(w, r, err, "message.html", page{Title: "Not approved"})
		return
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
}

func (s *Server) deviceForm(w http.ResponseWriter, r *http.Request) {
	a, team, _, ok := s.web(w, r, platform.FreshSignIn)
	if ok {
		s.show(w, http.StatusOK, "device.html", page{Title: "Enter the code", User: a.Name, Team: team})
	}
}

func (s *Server) device(w http.ResponseWriter, r *http.Request) {
	a, team, at, ok := s.web(w, r, platform.FreshSignIn)
	if !ok {
		return
	}
	p := page{Title: "Enter the code", User: a.Name, Team: team, Code: r.PostFormValue("code")}
	switch answer := r.PostFormValue("answer"); answer {
	case "approve", "refuse":
		if err := s.p.AnswerDevice(r.Context(), a, at, p.Code, answer == "approve"); err != nil {
			s.failed(w, r, err, "device.html", p)
			return
		}
		done := "The device is approved. You may close this window and go back to the terminal."
		if answer == "refuse" {
			done = "The device was refused. You may close this window."
		}
		s.show(w, http.StatusOK, "message.html", page{Title: "Done", Done: done})
	default:
		d, err := s.p.Typed(r.Context(), a, at, p.Code)
		if err != nil {
			s.failed(w, r, err, "device.html", p)
			return
		}
		p.Title, p.Device, p.Addr, p.New, p.Key = "Approve this device?", &d.Device, d.Addr, d.New, d.KeyFingerprint()
		s.show(w, http.StatusOK, "device.html", p)
	}
}
