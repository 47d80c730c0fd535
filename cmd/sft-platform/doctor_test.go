package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"sft/internal/conf"
	"sft/internal/doctor"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testdb"
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
		{"that ends soon", func() { pair("sft.example.com", -day, 13*day) }, doctor.Warn, ", which is soon"},
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
		}, doctor.Skip, "needs settings"}, // which say why
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.make()
			var s settings
			s.Flags = serveCommand(&s).Flags()
			must(t, s.Flags.Set("tls-cert", cert))
			must(t, s.Flags.Set("tls-key", key))
			var got []doctor.Check
			x := &examination{s: &s, machine: thisMachine, add: func(c doctor.Check) { got = append(got, c) }}
			x.certificate(t.Context(), &platform.Platform{URL: "https://sft.example.com"})
			if len(got) != 1 || got[0].Verdict != tt.verdict || !strings.Contains(got[0].Found, tt.found) || (got[0].Fix == "") != (tt.verdict == doctor.Skip) {
				t.Errorf("it is told as %+v, want %s, %q", got, tt.verdict, tt.found)
			}
		})
	}
}

// Doctor says of every setting that serve refuses what serve says of it.
func TestDoctorRefusesWhatServeRefuses(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(at("garbage"), []byte("x\n"), 0o600))
	must(t, os.WriteFile(at("empty.yaml"), nil, 0o600))
	must(t, os.WriteFile(at("open"), []byte("a token that all others may read\n"), 0o600))
	must(t, os.Chmod(at("open"), 0o644))
	for _, args := range [][]string{{"--data", at("data"), "--url", "https://sft.example.com"}, {"--data", at("public"), "--url", "https://192.0.2.1", "--public-certificate"}} {
		if status := run(append([]string{"init", "--owner", "olive"}, args...)); status != 0 {
			t.Fatalf("init ended with %d", status)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	const webhook = "audit-export=https://siem.example.com/"
	tests := []string{ // NAME=VALUE, with others after a blank
		"acme=true acme-accept-terms=true", // the platform has a CA of its own
		"acme=true acme-accept-terms=true data=" + at("public"),
		"acme=maybe",
		"acme-accept-terms=maybe",
		"acme=true acme-ca=none", "acme=true acme-ca=garbage",
		"acme=true acme-directory=http://acme.example.com/",
		"acme=true acme-email=ops",
		"anonymous-rate=0", "anonymous-rate=x",
		"audit-export=file:relative", "audit-export=http://siem.example.com/", webhook,
		"audit-export-ca=none", "audit-export-ca=garbage",
		"audit-export-certificate=garbage",
		"audit-export-key=garbage", "audit-export-certificate=garbage audit-export-key=none", "audit-export-certificate=none audit-export-key=garbage", "audit-export-certificate=garbage audit-export-key=garbage",
		webhook + " audit-export-secret=none", webhook + " audit-export-secret=open", webhook + " audit-export-secret=garbage",
		"audit-retention=1h",
		"aws-certificates=none", "aws-certificates=garbage",
		"database=mysql://x",
		"listen=nonsense", "listen=:99999",
		"log-level=loud",
		"max-agents=0", "max-agents=x",
		"max-connections=1",
		"max-requests=1",
		"metrics-listen=0.0.0.0:9", "metrics-listen=127.0.0.1:99999", "metrics-listen=" + taken.Addr().String(),
		"metrics-token-file=none", "metrics-token-file=open", "metrics-token-file=garbage",
		"rate=NaN",
		"shutdown-delay=60s", "shutdown-delay=x",
		"tls-cert=garbage", "tls-cert=none tls-key=garbage", "tls-cert=garbage tls-key=garbage",
		"tls-key=garbage",
	}
	refused := map[string]bool{"data": true} // of which doctor says more than serve does
	for _, tt := range tests {
		t.Run(tt, func(t *testing.T) {
			env := []string{"SFT_PLATFORM_DATA=" + at("data"), "SFT_PLATFORM_LISTEN=127.0.0.1:0", "SFT_PLATFORM_CONFIG=" + at("empty.yaml")}
			for s := range strings.FieldsSeq(tt) {
				name, value, _ := strings.Cut(s, "=")
				refused[name] = true
				env = append(env, conf.Options{Prefix: prefix}.Variable(name)+"="+value)
			}
			sftPlatform := func(args ...string) (stdout, stderr string, status int) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				c := exec.CommandContext(ctx, "sft-platform", args...)
				c.Dir, c.Env = dir, append(os.Environ(), env...)
				var out, said strings.Builder
				c.Stdout, c.Stderr = &out, &said
				if _, ok := errors.AsType[*exec.ExitError](c.Run()); !ok && c.ProcessState == nil {
					t.Fatal("it did not run")
				}
				return out.String(), said.String(), c.ProcessState.ExitCode()
			}
			_, said, status := sftPlatform("serve")
			if status != 1 && status != 2 {
				t.Fatalf("serve ended with %d:\n%s", status, said)
			}
			if strings.Contains(said, "empty.yaml") {
				t.Fatalf("it is refused for another reason:\n%s", said)
			}
			words, _, _ := strings.Cut(strings.TrimPrefix(said, "sft-platform: "), "\n")
			report, _, status := sftPlatform("doctor", "--json")
			var checks []doctor.Check
			must(t, json.Unmarshal([]byte(report), &checks))
			i := slices.IndexFunc(checks, func(c doctor.Check) bool { return c.Verdict == doctor.Fail })
			if status != 1 || i < 0 || checks[i].Found != words || checks[i].Fix == "" {
				t.Errorf("doctor ended with %d and said\n%s\nserve says\n%s", status, report, said)
			}
		})
	}
	var s settings
	serveCommand(&s).Flags().VisitAll(func(f *pflag.Flag) {
		if !refused[f.Name] && f.Name != "print-config" {
			t.Errorf("nothing is tried that is refused of --%s", f.Name)
		}
	})
}

// Each thing that can be wrong with machine, database and time is found, and
// what is right is not.
func TestDoctorTells(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		k := keep(t, url)
		raw := testdb.Raw(t, url)
		var keys platform.Keys
		var err error
		exec := func(query string, args ...any) func() {
			return func() {
				t.Helper()
				_, err := raw.Exec(query, args...)
				must(t, err)
			}
		}
		// ends has the CAs of a kind end in 13 days, and no others.
		ends := func(kind string) func() {
			return func() {
				exec(`UPDATE cas SET not_after = $1 WHERE kind <> $2`, keys.First.At.UnixMicro(), kind)()
				exec(`UPDATE cas SET not_after = $1 WHERE kind = $2`, time.Now().Add(13*day).UnixMicro(), kind)()
			}
		}
		backup := func() {
			t.Helper()
			if status := run([]string{"backup", filepath.Join(t.TempDir(), "b"), "--data", k.d.dir, "--database", url}); status != 0 {
				t.Fatalf("backup ended with %d", status)
			}
		}
		_, err = k.CreateRDPSigner(t.Context(), k.actor, platform.RDPSignerRequest{Team: "main"})
		must(t, err)
		_, err = k.Seal(t.Context())
		must(t, err)
		keys, err = k.Keys(t.Context())
		must(t, err)
		_, newest, err := k.DB.Versions(t.Context())
		must(t, err)
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		defer taken.Close()
		go func() {
			for {
				c, err := taken.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		well := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/readyz" {
				w.WriteHeader(http.StatusNotFound)
			}
		}))
		defer well.Close()

		const none = "127.0.0.1:0"
		settings := func(set map[string]string) *settings {
			var s settings
			s.Flags = serveCommand(&s).Flags()
			must(t, errors.Join(s.Flags.Set("data", k.d.dir), s.Flags.Set("database", url), s.Flags.Set("listen", none)))
			for name, v := range set {
				must(t, s.Flags.Set(name, v))
			}
			return &s
		}
		at := func(d time.Duration) func(*machine) {
			return func(m *machine) { m.now = func() time.Time { return time.Now().Add(d) } }
		}
		free := func(n uint64, err error) func(*machine) {
			return func(m *machine) { m.free = func(string) (uint64, error) { return n, err } }
		}
		refuses := func(err error) func(*machine) {
			return func(m *machine) { m.listen = func(string) (net.Listener, error) { return nil, err } }
		}
		nothing := func(*machine) {}
		const clock = "set this machine's clock"
		ahead := "fail"
		if strings.HasPrefix(url, "sqlite:") { // which has no clock of its own
			ahead = "ok"
		}
		for _, tt := range []struct {
			name, step string
			before     func() // once; what it does stays
			here       func(*machine)
			set        map[string]string
			verdict    string
			found, fix string
		}{
			{"the clock is right", "clock", nil, nothing, nil, "ok", "", ""},
			{"the clock is behind what happened", "clock", nil, at(-time.Hour), nil, "fail", "and the last event is of", clock},
			{"the clock is not the database's", "clock", nil, at(time.Hour), nil, ahead, "", ""},

			{"no backup", "backup", nil, nothing, nil, "warn", "none was ever made", "sft-platform backup"},
			{"a new backup", "backup", backup, nothing, nil, "ok", "made at", ""},
			{"a backup of six days", "backup", nil, at(6 * day), nil, "ok", "made at", ""},
			{"a backup of eight days", "backup", nil, at(8 * day), nil, "warn", "the last was made at", "sft-platform backup"},
			{"a backup by another key", "backup", func() {
				if status := k.rotate(); status != 0 {
					t.Fatalf("rotate ended with %d", status)
				}
			}, nothing, nil, "warn", "with another master key than the present one", "keep the key of then"},
			{"a backup by the new key", "backup", backup, nothing, nil, "ok", "made at", ""},

			{"enough room", "disk", nil, free(2<<30, nil), nil, "ok", "2048 MiB free", ""},
			{"little room", "disk", nil, free(500<<20, nil), nil, "warn", "500 MiB free", "make room"},
			{"no room", "disk", nil, free(50<<20, nil), nil, "fail", "50 MiB free", "make room"},
			{"nobody knows", "disk", nil, free(0, syscall.EIO), nil, "fail", "input/output error", "the disk is well"},

			{"a folder that can be written", "data-folder", nil, nothing, nil, "ok", "", ""},
			{"a read-only folder", "data-folder", nil, func(m *machine) { m.writable = func(string) error { return syscall.EROFS } }, nil, "fail", "cannot be written: read-only file system", "mount its file system for writing"},

			{"the CAs are good for long", "keys", nil, nothing, nil, "ok", "the master key opens all", ""},
			{"CAs end", "keys", nil, at(time.Until(keys.First.At) - 13*day), nil, "warn", " ends at " + keys.First.At.Format(time.RFC3339), "before that"},
			{"a project's CA ends", "keys", ends("host"), nothing, nil, "warn", "of which the host CA of project prod ends at", `run "sft-platform rotate authorities --team main --project prod"`},
			{"it is retired", "keys", exec(`UPDATE cas SET stage = 'retired' WHERE kind = 'host'`), nothing, nil, "ok", "the master key opens all", ""},
			{"the platform's own CA ends", "keys", ends("platform"), nothing, nil, "warn", "of which the platform's own ends at", "give serve a certificate that machines trust (--tls-cert and --tls-key, or --acme), and enrol"},
			{"the key of the audit ends", "keys", ends("audit"), nothing, nil, "ok", "the master key opens all", ""},
			{"what signs connection files ends", "keys", ends("rdp_sign"), nothing, nil, "warn", "of which what signs connection files for team main ends at", "POST /v1/teams/main/rdp_signing_certificate"},
			{"the CA of a deleted project ends", "keys", func() { exec(`UPDATE projects SET deleted_at = 1`)(); ends("ssh_user")() }, nothing, nil, "ok", "the master key opens all", ""},
			{"the project is there again", "keys", func() {
				exec(`UPDATE projects SET deleted_at = NULL`)()
				exec(`UPDATE cas SET stage = 'active'`)()
				ends("")()
			}, nothing, nil, "ok", "the master key opens all", ""},
			{"the platform's CA has ended", "certificate", nil, at(100 * 365 * day), nil, "fail", "", "the clock"},
			{"no CA for it", "certificate", exec(`UPDATE settings SET value = '' WHERE name = 'ca_fingerprint'`), nothing, nil, "fail", "no CA of its own", "--tls-cert and --tls-key, or --acme"},

			{"the address is free", "listen", nil, nothing, nil, "warn", "the platform does not run", "start it"},
			{"the address is the platform's", "listen", nil, nothing, map[string]string{"listen": well.Listener.Addr().String()}, "ok", "the platform answers there", ""},
			{"the address is another's", "listen", nil, nothing, map[string]string{"listen": taken.Addr().String()}, "fail", "is taken, and not by a platform that is well", "find out what else listens there"},
			{"the address may not be tried", "listen", nil, refuses(syscall.EACCES), nil, "fail", "permission denied", "ports below 1024"},
			{"it may not be tried, and is the platform's", "listen", nil, refuses(syscall.EACCES), map[string]string{"listen": well.Listener.Addr().String()}, "ok", "the platform answers there", ""},
			{"an address of elsewhere", "listen", nil, refuses(syscall.EADDRNOTAVAIL), nil, "fail", "cannot assign", "an address of this machine"},
			{"the platform runs, nobody knows where", "listen", func() {
				using, err := k.d.use(t.Context())
				must(t, err)
				t.Cleanup(using.Release)
			}, nothing, nil, "fail", "the platform runs on " + k.d.dir, "give doctor the --listen"},
			{"the platform runs elsewhere", "listen", func() { must(t, os.WriteFile(k.d.addressFile(), []byte(well.Listener.Addr().String()+"\n"), 0o600)) }, nothing, nil, "ok", well.Listener.Addr().String() + ", and the platform answers there; --listen is " + none + " here", ""},
			{"the platform runs elsewhere, and is not well", "listen", func() { must(t, os.WriteFile(k.d.addressFile(), []byte(taken.Addr().String()+"\n"), 0o600)) }, nothing, nil, "fail", "the platform runs, and does not answer at " + taken.Addr().String(), "the platform's log"},

			{"the schema is this program's", "schema", nil, nothing, nil, "ok", fmt.Sprint(newest), ""},
			{"an older schema", "schema", exec(`DELETE FROM goose_db_version WHERE version_id = $1`, newest), nothing, nil, "warn", fmt.Sprintf("and this program's is %d", newest), "make a backup with the version that runs"},
			{"a newer schema", "schema", exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, true)`), nothing, nil, "fail", "by a newer version: its schema is 99999", "use the version of sft-platform that made it"},
		} {
			if tt.before != nil {
				tt.before()
			}
			var got []doctor.Check
			x := &examination{machine: thisMachine, s: settings(tt.set), add: func(c doctor.Check) { got = append(got, c) }}
			tt.here(&x.machine)
			x.run(t.Context(), nil)
			i := slices.IndexFunc(got, func(c doctor.Check) bool { return c.Step == tt.step })
			if i < 0 {
				t.Errorf("%s: nothing is said of %s: %+v", tt.name, tt.step, got)
				continue
			}
			if c := got[i]; string(c.Verdict) != tt.verdict || !strings.Contains(c.Found, tt.found) || !strings.Contains(c.Fix, tt.fix) || (c.Fix == "") != (c.Verdict == doctor.OK) {
				t.Errorf("%s: it is told as %s, want %s, %q, %q", tt.name, c, tt.verdict, tt.found, tt.fix)
			}
			for _, c := range got {
				if c.Verdict == doctor.Fail && c.Fix == "" {
					t.Errorf("%s: it is not said what to do: %s", tt.name, c)
				}
			}
		}
	})
}

// Events that are not sealed or not exported for long are a finding; those of
// the last minute are not.
func TestDoctorAudit(t *testing.T) {
	testenv.Each(t, func(t *testing.T, e *testenv.Env) {
		looks := func(verdict doctor.Verdict, found ...string) {
			t.Helper()
			var got []doctor.Check
			x := &examination{machine: thisMachine, add: func(c doctor.Check) { got = append(got, c) }}
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
		must(t, e.DB.Note(t.Context(), func(n store.Notes) error { return n.Exported("file:/copy", list[0].Seq, list[0].Lag) }))
		looks(doctor.OK, "all is sealed, and is in 1 exports")
		e.User("bob")
		e.Clock.Set(time.Now())
		_, err = e.Platform.Seal(t.Context())
		must(t, err)
		looks(doctor.OK, "in 1 exports") // it has a minute

		// The address of a webhook is not shown.
		must(t, e.DB.Note(t.Context(), func(n store.Notes) error { return n.AddExport("https://hooks.example.com/services/hunter2") }))
		e.Clock.Set(time.Now().Add(time.Hour))
		looks(doctor.Warn, "wait for the export to https://hooks.example.com/…, since")
	})
}
