package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sft/internal/doctor"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testenv"
)

// A certificate that people's machines would refuse is a finding before they
// come.
func TestDoctorCertificate(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	pair := func(name string, from, to time.Duration) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		c := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(to)}
		der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
		must(t, err)
		private, err := x509.MarshalPKCS8PrivateKey(k)
		must(t, err)
		must(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
		must(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	}
	const day = 24 * time.Hour
	tests := []struct {
		name    string
		make    func()
		verdict doctor.Verdict
		found   string
	}{
		{"by a CA of one's own", func() { pair("sft.example.com", -day, 90*day) }, doctor.Warn, "this machine does not trust it"},
		{"for another name", func() { pair("sft.example.org", -day, 90*day) }, doctor.Fail, "it is for sft.example.org, and people and servers come to sft.example.com"},
		{"over", func() { pair("sft.example.com", -9*day, -day) }, doctor.Fail, "it is for sft.example.com, good until "},
		{"not good yet", func() { pair("sft.example.com", day, 9*day) }, doctor.Fail, "it is for sft.example.com, good until "},
		{"with a key that everybody can read", func() { pair("sft.example.com", -day, 90*day); must(t, os.Chmod(key, 0o644)) }, doctor.Fail, "everybody can read the private key"},
		{"with another key", func() {
			pair("sft.example.com", -day, 90*day)
			b, err := os.ReadFile(cert)
			must(t, err)
			pair("sft.example.com", -day, 90*day)
			must(t, os.WriteFile(cert, b, 0o600))
		}, doctor.Fail, "private key does not match public key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.make()
			var s settings
			s.Flags = serveCommand(&s).Flags()
			must(t, s.Flags.Set("tls-cert", cert))
			must(t, s.Flags.Set("tls-key", key))
			var got []doctor.Check
			x := &examination{s: &s, add: func(c doctor.Check) { got = append(got, c) }}
			x.certificate(t.Context(), &platform.Platform{URL: "https://sft.example.com"})
			if len(got) != 1 || got[0].Verdict != tt.verdict || !strings.Contains(got[0].Found, tt.found) || got[0].Fix == "" {
				t.Errorf("it is told as %+v, want %s, %q", got, tt.verdict, tt.found)
			}
		})
	}
}

// Events that are not sealed or not exported for long are a finding; those of
// the last minute are not.
func TestDoctorAudit(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		looks := func(verdict doctor.Verdict, found ...string) {
			t.Helper()
			var got []doctor.Check
			x := &examination{add: func(c doctor.Check) { got = append(got, c) }}
			x.audit(t.Context(), e.DB)
			for _, f := range found {
				if len(got) != 1 || got[0].Verdict != verdict || !strings.Contains(got[0].Found, f) || (verdict != doctor.OK) != (got[0].Fix != "") {
					t.Errorf("it is told as %+v, want %s, %q", got, verdict, f)
				}
			}
		}
		looks(doctor.OK, "all is sealed, and is in 0 exports")
		e.Exec(`UPDATE events SET id = '00000000-0000-7000-8000-000000000000' WHERE id = (SELECT min(id) FROM events)`)
		must(t, e.DB.Note(t.Context(), func(n store.Notes) error { return n.AddExport("file:/copy") }))
		looks(doctor.Warn, "1 events are older than a minute and not sealed")

		e.Exec(`DELETE FROM events WHERE id = '00000000-0000-7000-8000-000000000000'`)
		// The platform's clock is that of 1 March.
		_, err := e.Platform.Seal(t.Context())
		must(t, err)
		looks(doctor.Warn, "wait for the export to file:/copy, since 2026-03-01T09:00:00Z")
		list, err := e.Platform.ListExports(t.Context())
		must(t, err)
		must(t, e.DB.Note(t.Context(), func(n store.Notes) error { return n.Exported("file:/copy", list[0].Lag) }))
		looks(doctor.OK, "all is sealed, and is in 1 exports")
		e.User("bob")
		e.Clock.Set(time.Now())
		_, err = e.Platform.Seal(t.Context())
		must(t, err)
		looks(doctor.OK, "in 1 exports") // it has a minute
	})
}
