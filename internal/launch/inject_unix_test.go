//go:build unix

package launch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sft"
	"sft/internal/frame"
	"sft/internal/loopback"
	"sft/internal/rdp"
	"sft/internal/rdp/rdptest"
)

var frontOnce = sync.OnceValues(func() (*rdp.Front, error) { return rdp.NewFront("alice", rdp.P256) })

// injecting is a Desktop whose program is the test itself.
func injecting(t *testing.T, h *host, change ...func(*Desktop)) (*Desktop, *notes, func() error) {
	t.Helper()
	l, err := loopback.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	front, err := frontOnce()
	if err != nil {
		t.Fatal(err)
	}
	first, _ := h.open(t.Context(), nil)
	said := new(notes)
	tgt := target
	tgt.Addr, tgt.Fingerprint = l.Addr(), front.Fingerprint
	d := &Desktop{Listener: l, First: Ready(first), Open: h.open, Final: func(error) bool { return false }, Front: front, Target: tgt, Secret: front.Secret,
		RunBase: t.TempDir(), Say: said.add}
	for _, f := range change {
		f(d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	var once sync.Once
	var result error
	end := func() error {
		once.Do(func() {
			cancel()
			result = <-done
		})
		return result
	}
	t.Cleanup(func() { end() })
	return d, said, end
}

// client goes through the door of d, and reads n bytes of picture.
func client(t *testing.T, d *Desktop, c rdptest.Client, n int) error {
	t.Helper()
	conn, err := net.Dial("tcp", d.Target.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	got, err := c.Connect(conn)
	if err != nil {
		return err
	}
	_, err = io.CopyN(io.Discard, got.Conn, int64(n))
	return err
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestInject(t *testing.T) {
	for _, nla := range []bool{false, true} {
		h := newHost(t)
		h.service.NLA = !nla
		d, _, end := injecting(t, h)
		for range 2 { // an RDP client opens several connections, and comes back
			if err := client(t, d, rdptest.Client{User: "ALICE", Password: d.Secret, NLA: nla, Pin: d.Front.Fingerprint}, h.picture); err != nil {
				t.Fatalf("NLA %v: %v", nla, err)
			}
		}
		wait(t, "a session", d.shown.Load)
		if err := end(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if h.served != 2 || len(h.aborted()) != 0 {
			t.Errorf("%d sign-ins, aborts %q", h.served, h.aborted())
		}
	}
}

func TestInjectWithAWrongSecret(t *testing.T) {
	for _, nla := range []bool{false, true} {
		h := newHost(t)
		d, said, _ := injecting(t, h)
		refused := make(chan error, 1)
		d.Refused = func(err error) { refused <- err }
		if err := client(t, d, rdptest.Client{User: "alice", Password: sft.NewSecret("guess"), NLA: nla}, 1); err == nil {
			t.Error("it got in")
		}
		if err := <-refused; !errors.Is(err, rdp.ErrSecret) {
			t.Errorf("refused: %v", err)
		}
		wait(t, "the abort", func() bool { return slices.Equal(h.aborted(), []string{frame.AbortSecret}) })
		if got, want := said.all(), []string{"refused a connection: it did not show the secret of this launch"}; !slices.Equal(got, want) {
			t.Errorf("said %q, want %q", got, want)
		}
		if h.served != 0 {
			t.Error("the service was signed in to")
		}
		// Who knows it gets in afterwards.
		if err := client(t, d, rdptest.Client{User: "alice", Password: d.Secret, NLA: nla}, h.picture); err != nil {
			t.Error(err)
		}
	}
}

// Sockets that say nothing take three places, and no more.
func TestInjectUnproven(t *testing.T) {
	h := newHost(t)
	d, said, _ := injecting(t, h)
	var silent []net.Conn
	for range maxUnproven {
		c, err := net.Dial("tcp", d.Target.Addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	c, err := net.Dial("tcp", d.Target.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the fourth is answered: %d, %v", n, err)
	}
	want := []string{"refused a connection: too many have not shown the secret of this launch"}
	wait(t, "the message", func() bool { return slices.Equal(said.all(), want) })
	silent[0].Close()
	wait(t, "a place is free", func() bool {
		return client(t, d, rdptest.Client{User: "alice", Password: d.Secret}, h.picture) == nil
	})
}

// An RDP client that gives up is no news, but the broker hears of it.
func TestInjectAborted(t *testing.T) {
	for _, step := range []rdptest.Step{rdptest.TLS, rdptest.NLA, rdptest.Initial, rdptest.Info} {
		h := newHost(t)
		d, said, _ := injecting(t, h)
		if err := client(t, d, rdptest.Client{User: "alice", Password: d.Secret, NLA: true, Stop: step}, 1); err == nil {
			t.Error("it went on")
		}
		wait(t, "the abort", func() bool { return slices.Equal(h.aborted(), []string{frame.AbortClient}) })
		if len(said.all()) > 1 {
			t.Errorf("%s: said %q", step, said.all())
		}
	}
}

// What the broker says in the place of a PDU is the reason.
func TestInjectNotice(t *testing.T) {
	h := newHost(t)
	h.notice = rdp.ErrRedirect
	d, _, _ := injecting(t, h)
	if err := client(t, d, rdptest.Client{User: "alice", Password: d.Secret}, 1); err == nil {
		t.Error("it got in")
	}
	wait(t, "the reason", func() bool { return d.failure.Load() != nil })
	if e := d.failure.Load().(*sft.Error); e.Code != sft.RDSFarm || !strings.Contains(e.Msg, "another host of its farm") {
		t.Errorf("the reason is %+v", e)
	}
}

// A desktop that was locked ends the RDP client, and the run says so; it does
// not end one of the person's own, which may come back.
func TestInjectLocked(t *testing.T) {
	h := newHost(t)
	h.last = &sft.Error{Code: sft.Locked, Msg: "the desktop was locked", Hint: "run \"sft rdp\" again to return to it"}
	t.Setenv("SFT_TEST_CLIENT", "1")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d, said, end := injecting(t, h, func(d *Desktop) { d.Program = &Program{Name: "helper", path: self, args: []string{"wait", "x"}} })
	if err := client(t, d, rdptest.Client{User: "alice", Password: d.Secret}, h.picture); err != nil {
		t.Fatal(err)
	}
	wait(t, "the end of the way", func() bool {
		c, err := net.Dial("tcp", d.Target.Addr.String())
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if err := end(); sft.CodeOf(err) != sft.Locked || !d.shown.Load() || strings.Contains(strings.Join(said.all(), "\n"), "locked") {
		t.Errorf("Run = %v, said %q", err, said.all())
	}

	d, said, end = injecting(t, h)
	for n := 1; n <= 2; n++ {
		if err := client(t, d, rdptest.Client{User: "alice", Password: d.Secret}, h.picture); err != nil {
			t.Fatal(err)
		}
		want := slices.Repeat([]string{"the desktop of web01 was locked; connect again to return to it"}, n)
		wait(t, "the message", func() bool { return slices.Equal(said.all(), want) })
	}
	if err := end(); err != nil {
		t.Errorf("Run = %v", err)
	}
}

// A frame does not wait for ever for what goes with it, and what comes later
// goes after it.
func TestLate(t *testing.T) {
	l := &late{began: make(chan struct{}), open: make(chan struct{}), passed: true}
	near, far := tcp(t)
	l.up = &upstream{Way{Stream: near}}
	close(l.open)
	if n, err := l.Write([]byte("late")); n != 4 || err != nil {
		t.Errorf("Write = %d, %v", n, err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(far, got); err != nil || string(got) != "late" {
		t.Errorf("%q, %v", got, err)
	}
	l = &late{began: make(chan struct{}), open: make(chan struct{})}
	if n, err := l.Write([]byte("first")); n != 5 || err != nil {
		t.Errorf("Write = %d, %v", n, err)
	}
	for range 2 { // also when the opening is tried again
		if b, err := l.ahead(t.Context()); string(b) != "first" || err != nil {
			t.Errorf("ahead = %q, %v", b, err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	l = &late{began: make(chan struct{}), open: make(chan struct{})}
	if b, err := l.ahead(gone); b != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("ahead = %q, %v", b, err)
	}
}

func TestNoticer(t *testing.T) {
	var notice bytes.Buffer
	if err := frame.WriteJSON(&notice, frame.Notice{Error: rdp.ErrRedirect}); err != nil {
		t.Fatal(err)
	}
	pdus := append([]byte{0, 5, 1, 2, 3, 3, 0, 0, 9, 2, 0xf0, 0x80, 1, 2, 0, 0x80, 6, 0, 0, 0}, 0, 3, 9)
	stream := append(bytes.Clone(pdus), notice.Bytes()...)
	for size := 1; size <= len(stream); size++ {
		var n noticer
		var got []byte
		for rest := stream; len(rest) > 0; {
			k := min(size, len(rest))
			b, err := n.filter(rest[:k])
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, b...)
			rest = rest[k:]
		}
		if got = got[:min(len(got), len(pdus))]; !bytes.Equal(got, pdus) {
			t.Fatalf("in pieces of %d: %x", size, got)
		}
		if err := n.reason(); sft.CodeOf(err) != sft.RDSFarm {
			t.Fatalf("in pieces of %d: %v", size, err)
		}
	}
}

// FuzzNoticer checks that what is passed on is the beginning of what came, and
// that it ends only where a notice or nonsense begins.
func FuzzNoticer(f *testing.F) {
	f.Add([]byte{0, 5, 1, 2, 3, 0, 0, 0, 2, '{', '}'}, byte(1))
	f.Add([]byte{3, 0, 0, 9, 2, 0xf0, 0x80, 1, 2}, byte(4))
	f.Fuzz(func(t *testing.T, b []byte, size byte) {
		var n noticer
		var got []byte
		for rest := b; len(rest) > 0; {
			k := min(int(size)+1, len(rest))
			out, err := n.filter(rest[:k])
			if err != nil {
				return
			}
			got = append(got, out...)
			rest = rest[k:]
		}
		if !bytes.HasPrefix(b, got) || n.notice == nil && len(got) != len(b) {
			t.Fatalf("%x was passed on as %x", b, got)
		}
		_ = n.reason()
	})
}
