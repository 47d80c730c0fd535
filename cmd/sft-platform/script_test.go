package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"sft/internal/api"
	"sft/internal/platform"
	"sft/internal/store"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sft-platform": func() { os.Exit(run(os.Args[1:])) }})
}

func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("GORACE", os.Getenv("GORACE"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "shape": shape, "freeport": freeport, "answers": answers, "leads": leads, "appears": appears, "enrol": enrol},
	})
}

// exits N COMMAND runs the command, which must end with status N.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		e, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = e.ExitCode()
	}
	if got != want {
		ts.Fatalf("the status is %d, want %d", got, want)
	}
}

var secretShapes = []struct {
	re  *regexp.Regexp
	put string
}{
	{regexp.MustCompile(`eyJ[A-Za-z0-9+/]{100,}={0,2}`), "TOKEN"},
	{regexp.MustCompile(`sha256:[0-9a-f]{64}`), "FINGERPRINT"},
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`), "ID"},
	{regexp.MustCompile(`\b[A-Za-z0-9_-]{43}(\b|$)`), "SECRET"},
}

// shape FILE writes what the last command printed to FILE, with the name of
// its kind for each secret.
func shape(ts *testscript.TestScript, neg bool, args []string) {
	s := strings.ReplaceAll(ts.ReadFile("stdout"), ts.Getenv("WORK"), "WORK")
	for _, r := range secretShapes {
		s = r.re.ReplaceAllString(s, r.put)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(s), 0o600))
}

// freeport VAR sets VAR to a port of loopback that nobody listens on.
func freeport(ts *testscript.TestScript, neg bool, args []string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	defer ln.Close()
	ts.Setenv(args[0], strconv.Itoa(ln.Addr().(*net.TCPAddr).Port))
}

// answers URL waits until the URL answers with success.
func answers(ts *testscript.TestScript, neg bool, args []string) {
	c := &http.Client{Timeout: time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // what is asked for is no secret
	defer c.CloseIdleConnections()
	var last error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		resp, err := c.Get(args[0])
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
			err = errors.New(resp.Status)
		}
		last = err
	}
	ts.Fatalf("%s does not answer: %v", args[0], last)
}

// enrol DATA NAME enrols a server in project prod of the platform in DATA.
func enrol(ts *testscript.TestScript, neg bool, args []string) {
	ctx := context.Background()
	d := data{dir: ts.MkAbs(args[0])}
	p, err := d.open(ctx, slog.New(slog.DiscardHandler))
	ts.Check(err)
	defer p.DB.Close()
	var owner platform.Actor
	ts.Check(p.DB.Read(ctx, func(tx *store.Tx) error {
		team, err := tx.Team("main")
		if err != nil {
			return err
		}
		u, err := tx.User(team.ID, "olive")
		owner.User = u.ID
		return err
	}))
	made, err := p.CreateToken(ctx, owner, platform.TokenRequest{Team: "main", Project: "prod"})
	ts.Check(err)
	raw, err := base64.StdEncoding.DecodeString(made.Token)
	ts.Check(err)
	var token api.EnrollmentToken
	ts.Check(json.Unmarshal(raw, &token))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	ts.Check(err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	ts.Check(err)
	facts := api.Facts{Hostname: args[1], AccessAddress: "192.0.2.1", BrokerPort: 4421, OSType: "linux"}
	s, err := p.EnrollServer(ctx, platform.Actor{}, api.EnrollServerRequest{Token: token.Secret, DeviceKey: spki, Facts: facts})
	ts.Check(err)
	_, err = p.Report(ctx, platform.Actor{Server: s.ServerID}, api.ReportRequest{Facts: facts, CSR: csr})
	ts.Check(err)
}

// leads FILE follows the one-time link in FILE, without spending it; with !
// the platform must refuse it.
func leads(ts *testscript.TestScript, neg bool, args []string) {
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // nothing is sent but the link
	defer c.CloseIdleConnections()
	resp, err := c.Get(strings.TrimSpace(ts.ReadFile(args[0])))
	ts.Check(err)
	resp.Body.Close()
	want := http.StatusOK
	if neg {
		want = http.StatusForbidden
	}
	if resp.StatusCode != want {
		ts.Fatalf("the link in %s: %s, want %d", args[0], resp.Status, want)
	}
}

// appears FILE REGEXP waits until the file has what the expression describes.
func appears(ts *testscript.TestScript, neg bool, args []string) {
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if b, err := os.ReadFile(ts.MkAbs(args[0])); err == nil && re.Match(b) {
			return
		}
	}
	ts.Fatalf("%s has no %s", args[0], args[1])
}
