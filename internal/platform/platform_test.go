package platform_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testdb"
	"sft/internal/testenv"
)

// wantCode compares the code of an error; "" is none.
func wantCode(t *testing.T, what string, err error, want sft.Code) {
	t.Helper()
	switch {
	case err == nil && want != "":
		t.Errorf("%s: no error, want %s", what, want)
	case err != nil && sft.CodeOf(err) != want:
		t.Errorf("%s: %v (%s), want %q", what, err, sft.CodeOf(err), want)
	}
}

// since returns what happened after f began.
func since(e *testenv.Env, f func()) []audit.Event {
	n := len(e.Events())
	f()
	return e.Events()[n:]
}

// told describes events in short.
func told(events []audit.Event) string {
	var s []string
	for _, e := range events {
		s = append(s, string(e.Kind)+" "+e.Outcome)
	}
	return strings.Join(s, ", ")
}

const base = "/v1/teams/" + testenv.Team

func keySealer(t *testing.T) ca.Sealer {
	t.Helper()
	path := t.TempDir() + "/master.key"
	if err := ca.NewMasterKey(path); err != nil {
		t.Fatal(err)
	}
	s, err := ca.OpenSealer(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestInitIsWholeOrNothing(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		db, err := store.Open(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		s := keySealer(t)
		good := platform.InitRequest{URL: "https://SFT.example.com/", Team: "main", Owner: "olive", ServiceUser: "robot", Project: "prod", OwnCA: true}
		quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
		for _, tt := range []struct {
			name   string
			change func(*platform.InitRequest)
		}{
			{"a bad URL", func(r *platform.InitRequest) { r.URL = "http://x" }},
			{"a bad team", func(r *platform.InitRequest) { r.Team = "a b" }},
			{"a bad owner", func(r *platform.InitRequest) { r.Owner = "" }},
			{"a bad service user", func(r *platform.InitRequest) { r.ServiceUser = "a/b" }},
			{"a service user of the owner's name", func(r *platform.InitRequest) { r.ServiceUser = "OLIVE" }},
			{"a bad project, which is made last", func(r *platform.InitRequest) { r.Project = "a b" }},
		} {
			r := good
			tt.change(&r)
			if _, err := platform.Init(t.Context(), db, s, r, nil); err == nil {
				t.Errorf("Init with %s worked", tt.name)
			}
			if _, err := platform.New(t.Context(), db, s, quiet, nil); err == nil || !strings.Contains(err.Error(), "the database is empty") {
				t.Errorf("after Init with %s something is there: %v", tt.name, err)
			}
		}
		reply, err := platform.Init(t.Context(), db, s, good, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(reply.FirstUseURL, "https://sft.example.com/first-use?secret=") || !strings.HasPrefix(reply.CAFingerprint, "sha256:") ||
			reply.Key == nil || len(reply.Key.Secret) != 43 || reply.Token == "" {
			t.Errorf("Init = %+v", reply)
		}
		if _, err := platform.Init(t.Context(), db, s, good, nil); err == nil || !strings.Contains(err.Error(), "is a platform's already") {
			t.Errorf("Init once more: %v", err)
		}
		var kinds []string
		if err := db.Read(t.Context(), func(tx *store.Tx) error {
			events, err := tx.Events("main", "", 100, false)
			for _, e := range events {
				kinds = append(kinds, string(e.Kind)+" "+e.Target+" "+e.Actor.Kind)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
		slices.Sort(kinds)
		if i := slices.IndexFunc(kinds, func(k string) bool { return strings.HasPrefix(k, "server_enrollment_token.create ") }); i < 0 {
			t.Error("no event tells of the token")
		} else {
			kinds = slices.Delete(kinds, i, i+1)
		}
		want := []string{"apikey.rotate robot platform", "group.create automation platform", "group.create everyone platform", "group.create owners platform",
			"member.add olive platform", "member.add robot platform", "project.add_group owners platform", "project.create prod platform", "team.create main platform", "user.create olive platform", "user.create robot platform"}
		if !slices.Equal(kinds, want) {
			t.Errorf("the events are %q, want %q", kinds, want)
		}
		if _, err := platform.New(t.Context(), db, s, quiet, nil); err != nil {
			t.Error(err)
		}
	})
}

func TestAnotherMasterKeyOpensNothing(t *testing.T) {
	e := testenv.New(t)
	p, err := platform.New(t.Context(), e.DB, keySealer(t), slog.New(slog.NewTextHandler(io.Discard, nil)), e.Clock.Now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Certificate(t.Context()); err == nil || !strings.Contains(err.Error(), "the master key does not open the sealed key") {
		t.Errorf("Certificate = %v", err)
	}
}

func TestThePlatformRenewsItsCertificateAtHalfOfItsLife(t *testing.T) {
	e := testenv.New(t)
	get, err := e.Platform.Certificate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		t.Helper()
		pair, err := get(nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		if now := e.Clock.Now(); now.Before(c.NotBefore) || now.After(c.NotAfter) {
			t.Errorf("at %s a certificate for %s to %s is served", now, c.NotBefore, c.NotAfter)
		}
		if got := ca.Fingerprint(pair.Certificate[1]); got != e.Init.CAFingerprint {
			t.Errorf("it is by the CA %s, and tokens name %s", got, e.Init.CAFingerprint)
		}
		return c.SerialNumber.String()
	}
	first := serial()
	e.Clock.Advance(44 * 24 * time.Hour)
	if serial() != first {
		t.Error("it was renewed too soon")
	}
	e.Clock.Advance(2 * 24 * time.Hour)
	if serial() == first {
		t.Error("it was not renewed")
	}
	// To the last day of the CA.
	end := e.Clock.Now().Add(-46 * 24 * time.Hour).Add(10 * 365 * 24 * time.Hour)
	for _, left := range []time.Duration{60 * 24 * time.Hour, 24 * time.Hour, time.Minute} {
		e.Clock.Set(end.Add(-left))
		serial()
	}
}

// With a database that is gone, what was made last is served for as long as it
// is good.
func TestThePlatformCannotRenewItsCertificate(t *testing.T) {
	e := testenv.New(t)
	get, err := e.Platform.Certificate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first, err := get(nil)
	if err != nil {
		t.Fatal(err)
	}
	e.DB.Close()
	e.Clock.Advance(46 * 24 * time.Hour)
	for range 3 {
		if pair, err := get(nil); err != nil || pair != first {
			t.Errorf("it serves %v, %v", pair, err)
		}
	}
	if n := strings.Count(e.Log.String(), "renew the platform's certificate"); n != 1 {
		t.Errorf("it is said %d times in one minute", n)
	}
}

func TestHousekeepingEndsWithItsContext(t *testing.T) {
	e := testenv.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { e.Platform.Run(ctx); close(done) }()
	cancel()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("Run goes on")
	}
}

// A clock that is ahead when the platform starts, and then for a while, ends no
// session, and not what tells that it was revoked.
func TestNothingEndsByAClockThatIsAhead(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		e.Clock.Set(time.Now()) // PostgreSQL has one, too
		e.Service = e.Bearer(e.Init.Key.ID, e.Init.Key.Secret)
		s, c, cookie := e.Server(testenv.Project, testenv.Facts("web01")), e.Client(testenv.Owner), e.Owner()
		e.Report(s)
		way, _, err := e.Connect(c, "web01")
		wantCode(t, "a session", err, "")
		used := func() (n int) {
			t.Helper()
			if err := rawDB(t, e.DBURL).QueryRow(`SELECT count(*) FROM used_ids`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		had := used()

		const ahead = 40 * 24 * time.Hour
		e.Clock.Advance(ahead)
		e.Platform.HousekeepEvery = time.Hour
		stop := run(t, e.Platform)
		until(t, "it runs", func() bool { n, _, err := e.Platform.CountUnsealed(t.Context()); return err == nil && n == 0 })
		stop()
		if n := used(); n != had {
			t.Errorf("in the first round %d of %d used ids are left", n, had)
		}
		e.Platform.HousekeepEvery = 20 * time.Millisecond
		stop = run(t, e.Platform)
		if strings.HasPrefix(e.DBURL, "postgres") {
			until(t, "it is not the database's", func() bool { return strings.Contains(e.Log.String(), "housekeeping waits for the clock") })
		} else { // which cannot tell
			until(t, "what requests left is deleted", func() bool { return used() == 0 })
			e.Clock.Advance(time.Hour)
			until(t, "it was set", func() bool { return strings.Contains(e.Log.String(), "housekeeping waits for the clock") })
			e.Clock.Advance(-time.Hour)
		}
		stop()
		e.Clock.Advance(-ahead)

		e.Do("DELETE", "/clients/"+c.ID, nil, nil)
		if st := e.State(s); !slices.Contains(st.EndedSessions, way.SessionID) {
			t.Errorf("the sessions %q are ended, want %s", st.EndedSessions, way.SessionID)
		}
		if _, _, _, err := e.Platform.Web(t.Context(), sft.NewSecret(cookie.Value), ""); err != nil {
			t.Errorf("the owner is signed out: %v", err)
		}
	})
}

// A database that is gone is the platform's fault, and its log has the rest.
func TestTheDatabaseIsGone(t *testing.T) {
	e := testenv.New(t)
	e.DB.Close()
	err := e.Service.Do(t.Context(), "GET", base+"/users", nil, nil)
	var got *sft.Error
	if !errors.As(err, &got) || got.Code != sft.Internal || got.Msg != "the platform failed" || !strings.Contains(e.Log.String(), "database is closed") {
		t.Errorf("the answer is %+v, the log\n%s", got, e.Log)
	}
	resp, err := e.HTTP().Get(e.URL + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 503 {
		t.Errorf("/readyz answers %s", resp.Status)
	}
}

// Sessions that are long over are forgotten, also where there are more than go
// in one step.
func TestHousekeepingForgetsOldSessions(t *testing.T) {
	e := testenv.New(t)
	const many = 450
	if err := e.DB.Change(t.Context(), func(tx *store.Tx) (audit.Event, error) {
		for i := range many {
			if err := tx.AddSession(store.Session{ID: fmt.Sprint("s", i), LiveUntil: e.Clock.Now()}); err != nil {
				return audit.Event{}, err
			}
		}
		return audit.Event{ID: audit.NewID(), Kind: audit.UserCredsIssue, Time: e.Clock.Now(), Actor: audit.Actor{Kind: "user"}, Outcome: audit.Success}, nil
	}); err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		if err := e.DB.Read(t.Context(), func(tx *store.Tx) error {
			for i := range many {
				if _, err := tx.Session(fmt.Sprint("s", i)); err == nil {
					n++
				} else if !errors.Is(err, store.ErrNotFound) {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	e.Clock.Advance(store.SessionMemory - time.Hour)
	if e.Platform.Housekeep(t.Context(), platform.SureClock); count() != many {
		t.Errorf("before their time %d of %d are there", count(), many)
	}
	e.Clock.Advance(2 * time.Hour)
	for _, steady := range []time.Duration{0, platform.SureClock - 1} {
		if e.Platform.Housekeep(t.Context(), steady); count() != many {
			t.Errorf("by a clock that went on for %s, %d of %d are there", steady, count(), many)
		}
	}
	if e.Platform.Housekeep(t.Context(), platform.SureClock); count() != 0 {
		t.Errorf("after their time %d of %d are there", count(), many)
	}
}
