package platform_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sft/internal/audit"
	"sft/internal/export"
	"sft/internal/store"
	"sft/internal/testenv"
)

// An rsyslog is Debian's, with a configuration, a port and files of its own.
type rsyslog struct {
	t    *testing.T
	dir  string
	port string
	cmd  *exec.Cmd
	out  bytes.Buffer
}

// newRsyslog prepares a receiver that writes the text of each message as a
// line. It wants a certificate of the name permitted, unless that is empty.
func newRsyslog(t *testing.T, permitted string) *rsyslog {
	t.Helper()
	if _, err := exec.LookPath("rsyslogd"); err != nil {
		t.Skip("SKIPPED: there is no rsyslogd; make setup installs it")
	}
	if found, _ := filepath.Glob("/usr/lib/*/rsyslog/lmnsd_gtls.so"); len(found) == 0 {
		t.Skip("SKIPPED: rsyslog has no TLS; make setup installs rsyslog-gnutls")
	}
	r := &rsyslog{t: t, dir: t.TempDir()}
	ca := r.issue("ca", nil, nil)
	r.issue("127.0.0.1", ca, []net.IP{net.IPv4(127, 0, 0, 1)})
	r.issue("sft.example.com", ca, nil)
	r.issue("somebody.example.com", ca, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, r.port, _ = net.SplitHostPort(ln.Addr().String())
	ln.Close()
	mode := `StreamDriver.AuthMode="anon"`
	if permitted != "" {
		mode = `StreamDriver.AuthMode="x509/name" PermittedPeer=["` + permitted + `"]`
	}
	conf := strings.NewReplacer("DIR", r.dir, "PORT", r.port, "MODE", mode).Replace(`
global(workDirectory="DIR" maxMessageSize="64k" DefaultNetstreamDriver="gtls" DefaultNetstreamDriverCAFile="DIR/ca.pem"
       DefaultNetstreamDriverCertFile="DIR/127.0.0.1.pem" DefaultNetstreamDriverKeyFile="DIR/127.0.0.1.key")
module(load="imtcp" StreamDriver.Name="gtls" StreamDriver.Mode="1" MODE)
template(name="text" type="string" string="%msg%\n")
ruleset(name="audit") { action(type="omfile" file="DIR/got" template="text") }
input(type="imtcp" address="127.0.0.1" port="PORT" ruleset="audit")
`)
	if err := os.WriteFile(filepath.Join(r.dir, "conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.stop(syscall.SIGKILL) })
	r.start()
	return r
}

// A signer is a certificate that issues others.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue writes NAME.pem and NAME.key.
func (r *rsyslog) issue(name string, by *signer, ips []net.IP) *signer {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, IPAddresses: ips, BasicConstraintsValid: true}
	if by == nil {
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
		by = &signer{c, key}
	} else if ips == nil {
		c.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by.cert, key.Public(), by.key)
	if err != nil {
		r.t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		r.t.Fatal(err)
	}
	for ext, b := range map[string]*pem.Block{"pem": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "PRIVATE KEY", Bytes: k}} {
		if err := os.WriteFile(filepath.Join(r.dir, name+"."+ext), pem.EncodeToMemory(b), 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	return &signer{c, key}
}

// start runs it until it listens.
func (r *rsyslog) start() {
	r.t.Helper()
	r.cmd = exec.Command("rsyslogd", "-n", "-f", filepath.Join(r.dir, "conf"), "-i", filepath.Join(r.dir, "pid"))
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	until(r.t, "rsyslog listens", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+r.port)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// stop ends it by a signal, and waits.
func (r *rsyslog) stop(s syscall.Signal) {
	if r.cmd != nil {
		r.cmd.Process.Signal(s)
		r.cmd.Wait()
		r.cmd = nil
	}
}

// sink is an export to it that shows the certificate of a name, if any.
func (r *rsyslog) sink(name string) export.Sink {
	r.t.Helper()
	pem, err := os.ReadFile(filepath.Join(r.dir, "ca.pem"))
	if err != nil {
		r.t.Fatal(err)
	}
	o := export.Options{Host: "sft.example.com"}
	if o.Roots, err = export.ParseRoots(pem); err != nil {
		r.t.Fatal(err)
	}
	if name != "" {
		o.Certificate = func() (*tls.Certificate, error) {
			return export.ReadKeyPair(filepath.Join(r.dir, name+".pem"), filepath.Join(r.dir, name+".key"))
		}
	}
	s, err := export.Open("syslog+tls://127.0.0.1:"+r.port, o)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// got is what has arrived: the events by number, each as often as it came, and
// the checkpoints.
func (r *rsyslog) got() (events map[int64][]string, checkpoints map[string]bool) {
	r.t.Helper()
	events, checkpoints = map[int64][]string{}, map[string]bool{}
	b, err := os.ReadFile(filepath.Join(r.dir, "got"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var v struct {
			Seq        int64
			Event      json.RawMessage
			Checkpoint string
		}
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		if err := json.Unmarshal(line, &v); err != nil {
			r.t.Fatalf("%v: %q", err, line)
		}
		if v.Checkpoint != "" {
			checkpoints[v.Checkpoint] = true
		} else {
			events[v.Seq] = append(events[v.Seq], string(v.Event))
		}
	}
	return events, checkpoints
}

// Debian's rsyslog gets every event as it is stored, with and without a
// certificate of ours, while it is started anew, and after it did not read for
// a while, for which nobody waits.
func TestRsyslog(t *testing.T) {
	for _, tt := range []struct{ name, permitted, ours string }{
		{"anybody may send", "", ""},
		{"who has the certificate may send", "sft.example.com", "sft.example.com"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRsyslog(t, tt.permitted)
			e := testenv.New(t)
			if tt.ours != "" {
				for _, other := range []string{"", "somebody.example.com"} {
					for range 20 { // each is another race of what it reads and what it ends
						if err := r.sink(other).Send(t.Context(), audit.Batch{Records: []audit.Record{{Seq: 1, ID: "x", Body: "{}"}}}); err == nil {
							t.Errorf("what %q sends is taken", other)
						}
					}
				}
			}
			var good collector
			run(t, e.Platform, r.sink(tt.ours), &sink{"file:/good", good.take})
			count := func() int64 {
				v, err := e.Platform.VerifyAudit(t.Context(), "")
				if err != nil {
					t.Fatal(err)
				}
				return v.Last + v.Unsealed
			}
			write := func(n int) {
				for i := range n {
					v := someEvent()
					v.Target, v.Detail = "tab\t\"quote\\ é 漢 \u2028 ]", map[string]string{"why": strings.Repeat("x", 4000*(i%4))}
					addOne(t, e.DB, v)
				}
			}
			arrived := func() {
				t.Helper()
				all := count()
				until(t, "all are sent", func() bool { return e.Platform.AuditExports()[0].Seq >= all })
				until(t, "all arrive", func() bool { got, _ := r.got(); return int64(len(got)) >= all })
			}
			write(10)
			arrived()

			// It is started anew while events come.
			var writing sync.WaitGroup
			writing.Go(func() { write(40) })
			r.stop(syscall.SIGTERM)
			writing.Wait()
			write(5)
			r.start()
			write(5)
			arrived()

			// It stops reading: whoever writes, seals and takes another export goes on.
			r.cmd.Process.Signal(syscall.SIGSTOP)
			write(40)
			all := count()
			until(t, "the other export gets all", func() bool { return int64(len(good.got())) >= all })
			if got, _ := r.got(); int64(len(got)) >= all {
				t.Error("it did not stop")
			}
			r.cmd.Process.Signal(syscall.SIGCONT)
			arrived()

			all = count()
			var records []audit.Record
			notes := map[string]bool{}
			if err := e.DB.Read(t.Context(), func(tx *store.Tx) (err error) {
				if records, err = tx.Records(1, all); err != nil {
					return err
				}
				for after := int64(0); ; {
					b, err := tx.NextCheckpoint(after)
					if errors.Is(err, store.ErrNotFound) {
						return nil
					}
					if err != nil {
						return err
					}
					after, notes[b.Note] = b.Last, true
				}
			}); err != nil {
				t.Fatal(err)
			}
			var events map[int64][]string
			var checkpoints map[string]bool
			until(t, "all checkpoints arrive", func() bool { events, checkpoints = r.got(); return len(checkpoints) >= len(notes) })
			for _, v := range records {
				for _, got := range events[v.Seq] {
					if got != v.Body {
						t.Fatalf("event %d arrived as\n%s\nand is\n%s", v.Seq, got, v.Body)
					}
				}
			}
			if len(events) != len(records) || len(records) < 100 || len(checkpoints) != len(notes) {
				t.Errorf("of %d events %d arrived, of %d checkpoints %d", len(records), len(events), len(notes), len(checkpoints))
			}
			for n := range checkpoints {
				if !notes[n] {
					t.Errorf("there is no checkpoint\n%s", n)
				}
			}
		})
	}
}
