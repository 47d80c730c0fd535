package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testdb"
)

// A keptPlatform is one in a data folder, and somebody who may make projects.
type keptPlatform struct {
	*platform.Platform
	t     *testing.T
	d     data
	actor platform.Actor
	n     int
}

// keep makes a platform, and opens it as serve does.
func keep(t *testing.T, url string) *keptPlatform {
	t.Helper()
	k := &keptPlatform{t: t, d: data{dir: t.TempDir(), database: url}}
	must(t, ca.NewMasterKey(k.d.masterKey()))
	sealer, err := ca.OpenSealer(k.d.masterKey())
	must(t, err)
	db, err := store.Open(t.Context(), url)
	must(t, err)
	_, err = platform.Init(t.Context(), db, sealer, platform.InitRequest{URL: "https://sft.example.com", Team: "main", Owner: "olive", ServiceUser: "robot", Project: "prod", OwnCA: true}, nil)
	must(t, errors.Join(err, db.Close()))
	k.Platform, err = k.d.open(t.Context(), slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() { k.DB.Close() })
	// As if it had a certificate by ACME, whose keys are sealed as others are.
	must(t, k.DB.Change(t.Context(), func(tx *store.Tx) (audit.Event, error) {
		e := audit.Event{ID: audit.NewID(), Time: time.Now(), Kind: audit.PlatformCertificate, Team: "main", Actor: audit.Actor{Kind: "platform", Name: "test"}, Target: "sft.example.com", Outcome: audit.Success}
		private, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
		must(t, err)
		der, err := x509.MarshalPKCS8PrivateKey(private)
		must(t, err)
		template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"sft.example.com"}, NotAfter: time.Now().Add(time.Hour)}
		chain, err := x509.CreateCertificate(crand.Reader, template, template, &private.PublicKey, private)
		must(t, err)
		account, err := k.Sealer.Seal("acme_account", der)
		key, kerr := k.Sealer.Seal("acme_certificate", der)
		return e, errors.Join(err, kerr, tx.AddACME("https://acme.example.com/new", account), tx.AddACME("https://acme.example.com/dir", account),
			tx.SetACMECertificate(store.ACME{Directory: "https://acme.example.com/dir", Chain: chain, ChainKey: key}))
	}))
	must(t, k.DB.Read(t.Context(), func(tx *store.Tx) error {
		team, err := tx.Team("main")
		if err != nil {
			return err
		}
		u, err := tx.User(team.ID, "robot")
		k.actor = platform.Actor{User: u.ID, Name: u.Name, Key: "k"}
		return err
	}))
	return k
}

// opens checks that s opens all that is sealed in the database or, if none is
// set, nothing of it.
func (k *keptPlatform) opens(what string, s ca.Sealer, none bool) {
	k.t.Helper()
	try := func(name string, err error) {
		if (err != nil) != none {
			k.t.Errorf("%s: open %s: %v", what, name, err)
		}
	}
	must(k.t, k.DB.Read(k.t.Context(), func(tx *store.Tx) error {
		list, err := tx.AllCAs()
		for _, c := range list {
			_, err := ca.Open(ca.Sealed{Kind: ca.Kind(c.Kind), Public: c.Public, Key: c.Sealed, NotAfter: c.NotAfter}, c.ID, s)
			try(c.Kind, err)
		}
		if err != nil {
			return err
		}
		acmes, err := tx.ACMEs()
		for _, a := range acmes {
			_, err := s.Open("acme_account", a.AccountKey)
			try("acme_account", err)
			if a.ChainKey != nil {
				_, err = s.Open("acme_certificate", a.ChainKey)
				try("acme_certificate", err)
			}
		}
		if err != nil {
			return err
		}
		v, err := tx.Setting("token_key")
		if err != nil {
			return err
		}
		b, err := base64.StdEncoding.DecodeString(v)
		if err == nil {
			_, terr := s.Open("token_key", b)
			try("token_key", terr)
		}
		return err
	}))
}

// works checks that a platform that is started now opens everything, and so
// does the one that has run all the time, and that what this one seals is
// opened by the other.
func (k *keptPlatform) works(what string) {
	k.t.Helper()
	k.opens(what+", by the one that runs, before it seals", k.Sealer, false)
	k.n++
	_, err := k.CreateProject(k.t.Context(), k.actor, platform.ProjectRequest{Team: "main", Name: fmt.Sprint("p", k.n)})
	must(k.t, err)
	fresh, err := ca.OpenSealer(k.d.masterKey())
	must(k.t, err)
	k.opens(what+", by a new one", fresh, false)
	k.opens(what+", by the one that runs", k.Sealer, false)
}

func (k *keptPlatform) rotate() int {
	return run([]string{"rotate", "master-key", "--data", k.d.dir, "--database", k.d.database})
}

// A failing sealer stops after so many.
type failing struct {
	ca.Sealer
	left int
}

func (f *failing) Seal(name string, plain []byte) ([]byte, error) {
	if f.left--; f.left < 0 {
		return nil, errors.New("the power is off")
	}
	return f.Sealer.Seal(name, plain)
}

// Wherever the change of the master key stops, everything opens, while serve
// runs and when it is started again; and another try ends it.
func TestMasterKeyRotation(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		k := keep(t, url)
		k.works("before")
		old, err := os.ReadFile(k.d.masterKey())
		must(t, err)
		next, err := ca.NextMasterKey(k.d.masterKey())
		must(t, err)
		k.works("with the next key")
		alone, err := ca.OpenSealer(next)
		must(t, err)
		for left := range 4 {
			if _, err := k.ResealKeys(t.Context(), &failing{alone, 3 * left}); err == nil {
				t.Error("it did not fail")
			}
			k.works("half way")
		}
		if _, err := k.ResealKeys(t.Context(), alone); err != nil {
			t.Fatal(err)
		}
		k.works("sealed anew")
		k.opens("sealed anew, by the next key alone", alone, false)
		key, err := os.ReadFile(next)
		must(t, err)
		must(t, os.WriteFile(k.d.masterKey(), key, 0o600))
		k.works("with the key in both files")

		if status := k.rotate(); status != 0 {
			t.Errorf("rotate ended with %d", status)
		}
		k.works("at the end")
		if _, err := os.Lstat(next); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the next key is still there: %v", err)
		}
		for range 2 { // from the beginning
			if status := k.rotate(); status != 0 {
				t.Errorf("rotate ended with %d", status)
			}
			k.works("the next time")
		}
		info, err := os.Stat(k.d.masterKey())
		now, rerr := os.ReadFile(k.d.masterKey())
		must(t, errors.Join(err, rerr))
		if info.Mode().Perm() != 0o600 || len(now) != 32 || bytes.Equal(now, old) || bytes.Equal(now, key) {
			t.Errorf("the master key has %d bytes, mode %v", len(now), info.Mode())
		}
		for _, gone := range [][]byte{old, key} {
			path := filepath.Join(t.TempDir(), "master.key")
			must(t, os.WriteFile(path, gone, 0o600))
			s, err := ca.OpenSealer(path)
			must(t, err)
			k.opens("by a key of before", s, true)
		}
		n := 0
		must(t, k.DB.Read(t.Context(), func(tx *store.Tx) error {
			events, err := tx.Events("main", "", 1000, false)
			for _, e := range events {
				if e.Kind == audit.MasterKeyRotate {
					n++
				}
			}
			return err
		}))
		if n != 4 {
			t.Errorf("it is told %d times, want 4", n)
		}
	})
}

// kill -9 at any time loses no key.
func TestMasterKeyRotationIsKilled(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		k := keep(t, url)
		// As testscript runs it: the test program under the command's name.
		start := func() *exec.Cmd {
			cmd := exec.Command(os.Args[0])
			cmd.Args = []string{"sft-platform", "rotate", "master-key", "--data", k.d.dir, "--database", url}
			must(t, cmd.Start())
			return cmd
		}
		began := time.Now()
		must(t, start().Wait())
		took := time.Since(began)
		for range 6 {
			cmd := start()
			time.Sleep(time.Duration(rand.Int64N(int64(took))))
			cmd.Process.Kill()
			cmd.Wait()
			k.works("after a kill")
		}
		must(t, start().Wait())
		k.works("at the end")
		if _, err := os.Lstat(k.d.masterKey() + ".next"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the next key is still there: %v", err)
		}
	})
}
