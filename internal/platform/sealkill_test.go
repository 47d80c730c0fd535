package platform_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sft"
	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/export"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/testdb"
)

// The environment of the program that TestKilledWhileSealing kills.
const (
	sealerURL = "SFT_TEST_SEALER"
	sealerDir = "SFT_TEST_SEALER_DIR"
	sealerTo  = "SFT_TEST_SEALER_WEBHOOK"
)

// TestMain is also that program.
func TestMain(m *testing.M) {
	if url := os.Getenv(sealerURL); url != "" {
		fmt.Fprintln(os.Stderr, writeAndSeal(url, os.Getenv(sealerDir), os.Getenv(sealerTo)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// sealer is a platform that seals all the time, and exports to a file in dir
// and to a webhook.
func sealer(url, dir, webhook string) (*platform.Platform, error) {
	key, err := ca.OpenSealer(filepath.Join(dir, "master.key"))
	if err != nil {
		return nil, err
	}
	db, err := store.Open(context.Background(), url)
	if err != nil {
		return nil, err
	}
	p, err := platform.New(context.Background(), db, key, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil, err
	}
	p.SealEvery, p.Instance = 2*time.Millisecond, dir
	pem, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	roots, err := export.ParseRoots(pem)
	if err != nil {
		return nil, err
	}
	for _, to := range []string{"file:" + filepath.Join(dir, "audit.jsonl"), webhook} {
		s, err := export.Open(to, export.Options{Roots: roots, Secret: sft.NewSecret("whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3")})
		if err != nil {
			return nil, err
		}
		p.Exports = append(p.Exports, s)
	}
	return p, nil
}

// writeAndSeal stores events until it is killed, and says each id when it is
// stored.
func writeAndSeal(url, dir, webhook string) error {
	p, err := sealer(url, dir, webhook)
	if err != nil {
		return err
	}
	go p.Run(context.Background())
	for range 150 { // and then there is enough
		e := someEvent()
		e.Detail = map[string]string{"why": strings.Repeat("x", 3000)} // lines of more than a page
		if err := p.DB.Add(context.Background(), func(*store.Tx) (audit.Event, error) { return e, nil }); err != nil {
			return err
		}
		fmt.Println(e.ID)
	}
	select {}
}

// After kill -9 at any point every event is sealed, once, and has arrived
// everywhere, at least once.
func TestKilledWhileSealing(t *testing.T) {
	testdb.Each(t, func(t *testing.T, url string) {
		dir := t.TempDir()
		if err := ca.NewMasterKey(filepath.Join(dir, "master.key")); err != nil {
			t.Fatal(err)
		}
		key, err := ca.OpenSealer(filepath.Join(dir, "master.key"))
		if err != nil {
			t.Fatal(err)
		}
		db, err := store.Open(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := platform.Init(t.Context(), db, key, platform.InitRequest{URL: "https://sft.example.com", Team: "main", Owner: "olive"}, nil); err != nil {
			t.Fatal(err)
		}
		db.Close()

		// The webhook notes what arrives; told kills the program before or after
		// the answer.
		var mu sync.Mutex
		arrived := map[int64]string{}
		var before, after atomic.Pointer[func()]
		srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return // it was killed meanwhile
			}
			if f := before.Load(); f != nil {
				(*f)()
				return
			}
			note(t, &mu, arrived, body)
			w.WriteHeader(http.StatusNoContent)
			if f := after.Load(); f != nil {
				w.(http.Flusher).Flush()
				(*f)()
			}
		}))
		defer srv.Close()
		writePEM(t, filepath.Join(dir, "ca.pem"), srv.Certificate())
		file := filepath.Join(dir, "audit.jsonl")
		size := func() int64 {
			i, err := os.Stat(file)
			if err != nil {
				return 0
			}
			return i.Size()
		}

		said := map[string]bool{}
		for round, until := range []string{"40 are stored", "a webhook is sent", "a webhook is answered", "the file grows", "70 are stored"} {
			cmd := exec.Command(os.Args[0], "-test.run=^$")
			cmd.Env = append(os.Environ(), sealerURL+"="+url, sealerDir+"="+dir, sealerTo+"="+srv.URL+"/hook")
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			began := size()
			killed := make(chan struct{})
			kill := sync.OnceFunc(func() { close(killed); cmd.Process.Kill() })
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var lines atomic.Int64
			read := make(chan struct{})
			go func() {
				defer close(read)
				for l := bufio.NewScanner(out); l.Scan(); lines.Add(1) {
					if len(l.Text()) == 36 {
						said[l.Text()] = true
					}
				}
			}()
			switch until {
			case "a webhook is sent":
				before.Store(&kill)
			case "a webhook is answered":
				after.Store(&kill)
			}
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
				if until == "the file grows" && size() > began || strings.HasSuffix(until, "are stored") && lines.Load() >= int64(40+30*min(round, 1)) {
					kill()
				}
				select {
				case <-killed:
				case <-read:
					select {
					case <-killed: // both are so, and that is why
					default:
						t.Fatalf("%s: it ended by itself", until)
					}
				default:
					if time.Now().After(deadline) {
						kill()
						t.Errorf("waited in vain until %s", until)
					}
					continue
				}
				break
			}
			<-read
			cmd.Wait()
			before.Store(nil)
			after.Store(nil)
		}

		// What is left is done when it runs again.
		p, err := sealer(url, dir, srv.URL+"/hook")
		if err != nil {
			t.Fatal(err)
		}
		defer p.DB.Close()
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go p.Run(ctx)
		var v platform.Verified
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if v, err = p.VerifyAudit(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			list := p.AuditExports()
			if v.Unsealed == 0 && len(list) == 2 && list[0].Seq == v.Last && list[1].Seq == v.Last {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%+v, %+v", v, list)
			}
		}
		sealed := map[int64]string{}
		numbers := map[string]int64{}
		if err := p.DB.Read(t.Context(), func(tx *store.Tx) error {
			records, err := tx.Records(1, v.Last)
			for _, r := range records {
				sealed[r.Seq], numbers[r.ID] = r.ID, r.Seq
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if len(sealed) != int(v.Last) || len(numbers) != int(v.Last) || len(said) < 110 {
			t.Errorf("%d numbers of %d events of %d", len(sealed), len(numbers), v.Last)
		}
		for id := range said {
			if numbers[id] == 0 {
				t.Errorf("event %s was stored and is not sealed", id)
			}
		}
		wrote := map[int64]string{}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			note(t, &mu, wrote, line)
		}
		mu.Lock()
		defer mu.Unlock()
		for seq, id := range sealed {
			if arrived[seq] != id || wrote[seq] != id {
				t.Errorf("event %d, %s: the webhook has %q, the file %q", seq, id, arrived[seq], wrote[seq])
			}
		}
		if len(arrived) != len(sealed) || len(wrote) != len(sealed) {
			t.Errorf("%d are sealed, the webhook has %d, the file %d", len(sealed), len(arrived), len(wrote))
		}
	})
}

// note keeps the events of a webhook's body, or of a line, by number.
func note(t *testing.T, mu *sync.Mutex, to map[int64]string, b []byte) {
	type entry struct {
		Seq   int64
		Event struct{ ID string }
	}
	var v struct {
		entry
		Data []entry
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Errorf("%v: %.100q", err, b)
		return
	}
	mu.Lock()
	defer mu.Unlock()
	for _, e := range append(v.Data, v.entry) {
		if e.Seq == 0 {
			continue // a checkpoint
		}
		if was, ok := to[e.Seq]; ok && was != e.Event.ID {
			t.Errorf("number %d is of two events, %s and %s", e.Seq, was, e.Event.ID)
		}
		to[e.Seq] = e.Event.ID
	}
}

func writePEM(t *testing.T, path string, c *x509.Certificate) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
}
