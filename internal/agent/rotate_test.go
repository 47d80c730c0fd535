package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/frame"
	"sft/internal/privsep"
	"sft/internal/testenv"
)

// rotations counts the changes of the host's device key, and what was taken for
// a copy of the host.
func (h *host) rotations() (changes, conflicts int) {
	for _, e := range h.env.Events() {
		if e.Actor.ID != h.serverID() {
			continue
		}
		switch e.Kind {
		case audit.DeviceKeyRotate:
			changes++
		case audit.KeyConflict:
			conflicts++
		}
	}
	return changes, conflicts
}

func (h *host) works(what string, want int) {
	h.t.Helper()
	n, conflicts := h.rotations()
	if n != want || conflicts != 0 {
		h.t.Errorf("%s: %d changes of the device key, want %d, and %d conflicts", what, n, want, conflicts)
	}
	if err := h.platformKnows(deviceKey(h.t, h)); err != nil {
		h.t.Errorf("%s: the platform does not know the key that is stored: %v", what, err)
	}
	if _, err := os.Lstat(h.c.file(nextKeyFile)); err == nil {
		h.t.Errorf("%s: the next key is still there", what)
	}
}

func (h *host) serverID() string {
	h.t.Helper()
	id, _, err := readIdentity(h.c)
	if err != nil || id == nil {
		h.t.Fatalf("the host has no identity: %v", err)
	}
	return id.ServerID
}

// The key changes while the host works, on demand and by the platform's clock:
// what is open goes on, and so does everything else.
func TestDeviceKeyChanges(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	k := h.connect("ann")
	n, _, err := h.ask(k, frame.RDP)
	if err != nil {
		t.Fatal(err)
	}
	first := deviceKey(t, h)
	h.env.Do("PUT", "/projects/prod/servers/"+h.serverID(), map[string]bool{"rotate_device_key": true}, nil)
	until(t, "the key is another", func() bool { n, _ := h.rotations(); return n == 1 && !deviceKey(t, h).Equal(first) })
	until(t, "that is settled", func() bool { _, err := os.Lstat(h.c.file(nextKeyFile)); return err != nil })
	if !h.enabled("ann") {
		t.Error("the session that was open is not")
	}
	h.Close(t.Context(), privsep.Close{Stream: n, Why: "client closed"})
	h.env.Clock.Advance(31 * time.Second)
	until(t, "its events arrive", func() bool {
		for _, e := range h.env.Events() {
			if e.Kind == audit.SessionEnd && e.Session == k.reply.SessionID {
				return true
			}
		}
		return false
	})
	h.works("on demand", 1)

	second := deviceKey(t, h)
	h.env.Clock.Advance(31 * 24 * time.Hour)
	h.env.Service = h.env.Bearer(h.env.Init.Key.ID, h.env.Init.Key.Secret)
	h.join("bob") // and so its state request is answered
	until(t, "the key is another again", func() bool { n, _ := h.rotations(); return n == 2 && !deviceKey(t, h).Equal(second) })
	h.waitAccount("bob")
	until(t, "the broker has a new certificate", func() bool {
		c := h.chain.Load()
		return c != nil && parse(t, (*c)[0]).NotAfter.After(h.env.Clock.Now())
	})
	if _, _, err := h.ask(h.connect("bob"), frame.Ping); err != nil {
		t.Errorf("connecting after that: %v", err)
	}
	h.works("by its age", 2)
}

// The project's CAs change under a host that works: what is open stays, and
// people come in all the time, by whichever signs.
func TestHostFollowsTheCAs(t *testing.T) {
	t.Parallel()
	h := enrolledHost(t, nil)
	n, _, err := h.ask(h.connect("ann"), frame.RDP)
	if err != nil {
		t.Fatal(err)
	}
	comesIn := func(when string) {
		t.Helper()
		if _, _, err := h.ask(h.connect("ann"), frame.Ping); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if !h.enabled("ann") {
			t.Errorf("%s the session that was open is not", when)
		}
	}
	stages := func() string {
		var l api.List[sft.Authority]
		h.env.Do("GET", "/projects/prod/authorities", nil, &l)
		var s []string
		for _, a := range l.List {
			if a.Kind == "access" {
				s = append(s, fmt.Sprint(a.Stage, len(a.WaitingFor)))
			}
		}
		return strings.Join(s, " ")
	}
	trusted := func(n int) func() bool {
		return func() bool { st, _ := h.current(); return len(st.AccessCAs) == n && len(st.SSHUserCAs) == n }
	}
	h.env.Do("POST", "/projects/prod/authorities", struct{}{}, nil)
	until(t, "the host trusts both", trusted(2))
	until(t, "the platform knows", func() bool { return stages() == "active0 next0" })
	comesIn("by the old CA")
	h.env.Clock.Advance(3 * time.Minute)
	h.env.Platform.Housekeep(t.Context(), time.Minute)
	if got := stages(); got != "retired0 active0" {
		t.Errorf("the CAs are %s", got)
	}
	comesIn("by the new CA")
	h.env.Clock.Advance(66 * time.Minute)
	h.env.Service = h.env.Bearer(h.env.Init.Key.ID, h.env.Init.Key.Secret)
	h.env.Platform.Housekeep(t.Context(), time.Minute)
	until(t, "the host trusts the new one alone", trusted(1))
	comesIn("when the old CA is gone")
	h.Close(t.Context(), privsep.Close{Stream: n, Why: "client closed"})
}

// A cutter is a connection to the platform on which something goes wrong at
// the request for another key, once.
type cutter struct {
	http.RoundTripper
	cut func(send func() (*http.Response, error)) (*http.Response, error)
}

func (c *cutter) RoundTrip(r *http.Request) (*http.Response, error) {
	send := func() (*http.Response, error) { return c.RoundTripper.RoundTrip(r) }
	if r.URL.Path == api.RotatePath && c.cut != nil {
		cut := c.cut
		c.cut = nil
		return cut(send)
	}
	return send()
}

// Wherever a change of the key is cut off, there is one key that works, the
// host has it, and the change comes about in the end.
func TestDeviceKeyChangeIsCutOff(t *testing.T) {
	t.Parallel()
	cut := errors.New("the connection was cut")
	lost := func(send func() (*http.Response, error)) error {
		r, err := send()
		if err == nil {
			r.Body.Close()
			err = cut
		}
		return err
	}
	page := func(status int) *http.Response {
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("<html>"))}
	}
	env := testenv.New(t)
	for _, tt := range []struct {
		name string
		kill bool // the agent ends there
		cut  func(send func() (*http.Response, error)) (*http.Response, error)
	}{
		{"the request is lost", false, func(func() (*http.Response, error)) (*http.Response, error) { return nil, cut }},
		{"the reply is lost", false, func(send func() (*http.Response, error)) (*http.Response, error) { return nil, lost(send) }},
		{"it fails before", false, func(func() (*http.Response, error)) (*http.Response, error) { return page(500), nil }},
		{"it fails after", false, func(send func() (*http.Response, error)) (*http.Response, error) {
			if err := lost(send); err != cut {
				return nil, err
			}
			return page(500), nil
		}},
		{"a proxy fails after", false, func(send func() (*http.Response, error)) (*http.Response, error) {
			if err := lost(send); err != cut {
				return nil, err
			}
			return page(502), nil
		}},
		{"killed before the request arrives", true, func(func() (*http.Response, error)) (*http.Response, error) { return nil, cut }},
		{"killed before the reply arrives", true, func(send func() (*http.Response, error)) (*http.Response, error) { return nil, lost(send) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, env, nil)
			d, c := h.cutSigner()
			ctx, kill := context.WithCancel(t.Context())
			defer kill()
			c.cut = func(send func() (*http.Response, error)) (*http.Response, error) {
				r, err := tt.cut(send)
				if tt.kill {
					kill()
				}
				return r, err
			}
			h.rotate(ctx, d)
			if key, err := d.use(ctx); tt.kill != (err != nil) || err == nil && h.platformKnows(key) != nil {
				t.Errorf("after the cut the agent signs with %v, %v", key, err)
			}
			h.startsWell(tt.name)
		})
	}
}

// The same where the disk is at fault, or the agent is killed when the platform
// has answered.
func TestDeviceKeyChangeIsNotStored(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	for _, again := range []bool{true, false} {
		h := newHost(t, env, nil)
		d, _ := h.cutSigner()
		good := h.conf.TokenFile
		h.conf.TokenFile += "/no/such/folder"
		h.rotate(t.Context(), d)
		h.conf.TokenFile = good
		if key, err := d.use(t.Context()); err != nil || !d.unstored || h.platformKnows(key) != nil || !h.hasProblem(deviceKeyPart) {
			t.Errorf("with a disk that takes nothing the agent signs with %v, %v", key, err)
		}
		if again {
			h.rotate(t.Context(), d)
			if d.unstored || h.hasProblem(deviceKeyPart) {
				t.Error("it is not stored once the disk takes it")
			}
			h.works("once the disk takes it", 1)
		}
		h.startsWell("with a disk that took nothing")
	}

	h := newHost(t, env, nil)
	d, _ := h.cutSigner()
	h.rotate(t.Context(), d)
	b, err := os.ReadFile(h.c.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	// Killed between the identity and the end.
	write(t, h.c.file(nextKeyFile), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: d.id.Key}))
	h.startsWell("killed at the end")
	if now, err := os.ReadFile(h.c.TokenFile); err != nil || !bytes.Equal(now, b) {
		t.Errorf("the identity is another: %v", err)
	}
}

// A new key that is some server's already, as on a disk that was copied during
// a change, is thrown away for another one.
func TestDeviceKeyThatIsTaken(t *testing.T) {
	t.Parallel()
	env := testenv.New(t)
	h, other := newHost(t, env, nil), newHost(t, env, nil)
	d, _ := h.cutSigner()
	od, _ := other.cutSigner()
	write(t, h.c.file(nextKeyFile), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: od.id.Key}))
	h.rotate(t.Context(), d)
	if !h.hasProblem(deviceKeyPart) {
		t.Error("it took another server's key")
	}
	h.works("with another server's key", 0)
	h.rotate(t.Context(), d)
	h.works("with one of its own", 1)
}

// A platform that was restored from a backup knows the key before; its word
// makes the present one known again.
func TestDeviceKeyAfterARestore(t *testing.T) {
	t.Parallel()
	h := newHost(t, testenv.New(t), nil)
	d, _ := h.cutSigner()
	before := deviceKey(t, h)
	h.rotate(t.Context(), d)
	spki, err := x509.MarshalPKIXPublicKey(&before.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", strings.TrimPrefix(h.env.DBURL, "sqlite:"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, q := range []string{`PRAGMA busy_timeout = 10000`, `DELETE FROM old_device_keys`, `DELETE FROM events WHERE kind = 'server.device_key_rotate'`} {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.Exec(`UPDATE servers SET device_key = $1`, spki); err != nil {
		t.Fatal(err)
	}
	key := deviceKey(t, h)
	h.startsWell("restored")
	if !deviceKey(t, h).Equal(key) {
		t.Error("the host has another key")
	}
}

func (h *host) platformKnows(key *ecdsa.PrivateKey) error {
	h.t.Helper()
	return h.env.Signed(key, "server:"+h.serverID()).Do(h.t.Context(), "GET", "/v1/agent/state?after=-1", nil, nil)
}

// startsWell starts an agent on what the one before has left, and waits until
// the device key has changed once and works.
func (h *host) startsWell(what string) {
	h.t.Helper()
	h.restart(func() { h.lock.Release() })
	stop := h.run()
	// What was under way is settled first, by a change or without one.
	until(h.t, what+": it is settled", func() bool {
		_, err := os.Lstat(h.c.file(nextKeyFile))
		return err != nil && h.problemFree()
	})
	if n, _ := h.rotations(); n == 0 {
		h.env.Do("PUT", "/projects/prod/servers/"+h.serverID(), map[string]bool{"rotate_device_key": true}, nil)
	}
	until(h.t, what+": the change comes about", func() bool {
		n, _ := h.rotations()
		_, err := os.Lstat(h.c.file(nextKeyFile))
		return n > 0 && err != nil && h.problemFree()
	})
	stop()
	h.works(what, 1)
}

// problemFree reports whether the agent is in step with the platform.
func (h *host) problemFree() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.lost && h.trouble["platform"] == nil
}

// cutSigner enrols the host, and returns the signer of its identity with a
// connection that can be cut.
func (h *host) cutSigner() (*signer, *cutter) {
	h.t.Helper()
	if _, err := os.Lstat(h.c.TokenFile); err != nil {
		if err := h.enroll(h.t.Context()); err != nil {
			h.t.Fatal(err)
		}
	}
	id, key, err := readIdentity(h.c)
	if err != nil {
		h.t.Fatal(err)
	}
	hc, err := h.http(id.CA)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(hc.CloseIdleConnections)
	c := &cutter{RoundTripper: hc.Transport}
	return h.newSigner(*id, key, &http.Client{Transport: c}), c
}
