package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/ca"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testenv"
	"sft/internal/webapi"
)

// At a stop, agents' hanging requests are answered at once, and people who
// are signing in get there.
func TestStopFinishesWhatIsUnderWay(t *testing.T) {
	const people, agents = 20, 3
	ctx := t.Context()
	d := data{dir: t.TempDir()}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	listen := ln.Addr().String()
	ln.Close()

	// Twenty people with a one-time link each, and a server.
	must(t, ca.NewMasterKey(d.masterKey()))
	sealer, err := ca.OpenSealer(d.masterKey())
	must(t, err)
	db, err := store.Open(ctx, d.url())
	must(t, err)
	init, err := platform.Init(ctx, db, sealer, platform.InitRequest{URL: "https://" + listen, Team: "main", Owner: "olive", Project: "prod", OwnCA: true}, nil)
	must(t, err)
	must(t, db.Close())
	p, err := d.open(ctx, slog.New(slog.DiscardHandler))
	must(t, err)
	cookie, err := p.SetFirstPassword(ctx, platform.Actor{}, sft.NewSecret(secretOf(t, init.FirstUseURL)), sft.NewSecret("correct horse battery"))
	must(t, err)
	owner, _, _, err := p.Web(ctx, cookie, "")
	must(t, err)
	var secrets []string
	for i := range people {
		r, err := p.CreateUser(ctx, owner, platform.CreateUserRequest{Team: "main", Name: fmt.Sprintf("ann%d", i)})
		must(t, err)
		secrets = append(secrets, secretOf(t, r.FirstUseURL))
	}
	must(t, p.DB.Close())

	told, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		ended <- serve(told, d, serving{listen: listen, limits: webapi.DefaultLimits}, slog.New(slog.DiscardHandler))
	}()
	var platformCA []byte
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if platformCA, err = api.FetchCA(ctx, "https://"+listen, init.CAFingerprint, nil, &api.Clock{}); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	hc, err := api.NewHTTP(platformCA, nil, &api.Clock{})
	must(t, err)
	transport := hc.Transport.(*http.Transport)
	transport.ForceAttemptHTTP2 = false // 100 Continue below tells that a handler runs
	transport.ExpectContinueTimeout = time.Minute
	defer transport.CloseIdleConnections()

	// The agents hang.
	agent, revision := enroll(t, &api.Client{URL: "https://" + listen, Clock: &api.Clock{}, HTTP: hc}, init.Token)
	hanging, answered := make(chan struct{}, agents), make(chan error, agents)
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { hanging <- struct{}{} }})
	for range agents {
		go func() {
			var st api.State
			answered <- agent.Do(traced, "GET", fmt.Sprint("/v1/agent/state?after=", revision), nil, &st)
		}()
	}
	for range agents {
		<-hanging
	}

	// The people's forms are half way.
	begun, release, done := make(chan struct{}, people), make(chan struct{}), make(chan error, people)
	for _, secret := range secrets {
		form := url.Values{"secret": {secret}, "password": {"correct horse battery"}, "again": {"correct horse battery"}}.Encode()
		go func() {
			r, err := http.NewRequestWithContext(ctx, "POST", "https://"+listen+"/first-use", &held{begun, release, strings.NewReader(form), false})
			if err != nil {
				done <- err
				return
			}
			r.ContentLength = int64(len(form))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("Expect", "100-continue")
			resp, err := hc.Do(r)
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "/" {
					err = fmt.Errorf("answered %s", resp.Status)
				}
			}
			done <- err
		}()
	}
	for range people {
		select {
		case <-begun:
		case err := <-done:
			t.Fatalf("before the stop: %v", err)
		}
	}
	select {
	case err := <-answered:
		t.Fatalf("a state request did not hang: %v", err)
	default:
	}

	stop()
	at := time.Now()
	for range agents {
		if err := <-answered; err != nil {
			t.Errorf("a hanging state request: %v", err)
		}
	}
	if took := time.Since(at); took > 3*time.Second {
		t.Errorf("hanging requests ended after %v", took)
	}
	select {
	case err := <-ended:
		t.Fatalf("it did not wait for the people: %v", err)
	default:
	}
	close(release)
	for range people {
		if err := <-done; err != nil {
			t.Errorf("a sign-in under way: %v", err)
		}
	}
	if err := <-ended; err != nil {
		t.Errorf("serve = %v", err)
	}
}

// A held body begins to be read and then waits.
type held struct {
	begun   chan<- struct{}
	release <-chan struct{}
	r       io.Reader
	reading bool
}

func (h *held) Read(b []byte) (int, error) {
	if !h.reading {
		h.reading = true
		h.begun <- struct{}{}
		<-h.release
	}
	return h.r.Read(b)
}

// enroll makes a server with an enrollment token. It returns the server's
// client, and the revision that it begins with.
func enroll(t *testing.T, c *api.Client, token string) (*api.Client, int64) {
	t.Helper()
	key, spki := testenv.Key(t)
	var reply api.EnrollServerReply
	must(t, c.Do(t.Context(), "POST", "/v1/servers/enroll", api.EnrollServerRequest{Token: testenv.Secret(t, token), DeviceKey: spki, Facts: testenv.Facts("web01")}, &reply))
	signed := *c
	signed.Key, signed.Issuer = key, "server:"+reply.ServerID
	return &signed, reply.Revision
}

func secretOf(t *testing.T, link string) string {
	t.Helper()
	u, err := url.Parse(link)
	must(t, err)
	return u.Query().Get("secret")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
