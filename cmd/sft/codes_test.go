package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"sft"
	"sft/internal/api"
	"sft/internal/frame"
)

// everyCode runs a command for each row of the error table: its last argument
// and the number of the row are the name of a server, whose sign-in the
// stand-in, or its broker, refuses with the code of the row.
func everyCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: codes COMMAND... NAME")
	}
	last := len(args) - 1
	for i, c := range sft.Codes {
		err := ts.Exec(args[0], append(args[1:last:last], fmt.Sprint(args[last], i))...)
		got, want := 0, c.Exit
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			got = exit.ExitCode()
		} else if err != nil {
			ts.Fatalf("%v", err)
		}
		if c.Code == sft.Locked && args[last] == "broker-" {
			want = sft.ExitDone // no failure: a session has ended, and may go on
		}
		if got != want {
			ts.Fatalf("after a refusal with %s it ends with exit status %d, want %d; it said %s", c.Code, got, want, ts.ReadFile("stderr"))
		}
		if out := ts.ReadFile("stdout"); out != "" {
			ts.Fatalf("after a refusal with %s it wrote %q", c.Code, out)
		}
	}
}

// refusal is the row of the table that a server is named after.
func refusal(target, prefix string) (sft.Error, bool) {
	n, ok := strings.CutPrefix(target, prefix)
	i, err := strconv.Atoi(n)
	if !ok || err != nil || i >= len(sft.Codes) {
		return sft.Error{}, false
	}
	return sft.Error{Code: sft.Codes[i].Code, Msg: "no", Hint: "do something"}, true
}

// refusing is the way to a broker that refuses whatever it is asked for. It
// listens until it was asked three times, or a minute.
func refusing(c api.ConnectRequest, why sft.Error) (api.ConnectReply, error) {
	var none api.ConnectReply
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return none, err
	}
	csr, err := x509.ParseCertificateRequest(c.CSR)
	if err != nil {
		return none, err
	}
	// One CA for both ends, by the key of the broker.
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	sign := func(tpl *x509.Certificate, pub crypto.PublicKey) []byte {
		der, serr := x509.CreateCertificate(rand.Reader, tpl, ca, pub, key)
		err = errors.Join(err, serr)
		return der
	}
	caDER := sign(ca, key.Public())
	leaf := *ca
	leaf.SerialNumber, leaf.IsCA, leaf.KeyUsage, leaf.DNSNames = big.NewInt(2), false, x509.KeyUsageDigitalSignature, []string{"s1.server.sft"}
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	broker, client := sign(&leaf, key.Public()), sign(&leaf, csr.PublicKey)
	spki, serr := x509.MarshalPKIXPublicKey(key.Public())
	ln, lerr := net.Listen("tcp", "127.0.0.1:0")
	if err = errors.Join(err, serr, lerr); err != nil {
		return none, err
	}
	ln.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute))
	conf := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{broker, caDER}, PrivateKey: key}}, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{frame.ALPN}}
	go func() {
		defer ln.Close()
		for range 3 {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			raw.SetDeadline(time.Now().Add(10 * time.Second))
			conn := tls.Server(raw, conf)
			if _, err := frame.Read(conn); err == nil {
				frame.WriteJSON(conn, frame.Reply{Error: &why})
				conn.CloseWrite()
				io.Copy(io.Discard, conn)
			}
			raw.Close()
		}
	}()
	sum := sha256.Sum256(spki)
	return api.ConnectReply{SessionID: "n1", ExpiresAt: time.Now().Add(time.Hour), Certificate: [][]byte{client, caDER},
		Route: []api.Hop{{ServerID: "s1", Name: c.Target, Project: "prod", Address: "127.0.0.1", Port: ln.Addr().(*net.TCPAddr).Port, BrokerName: "s1.server.sft",
			HostCAs: [][]byte{caDER}, HostKeys: [][]byte{sum[:]}, Login: "alice"}}}, nil
}
