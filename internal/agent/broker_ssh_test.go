package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"testing"
	"time"

	"sft"
	"sft/internal/audit"
	"sft/internal/frame"
	"sft/internal/privsep"
)

// sshServer is a service that greets as an SSH server does, and returns its
// port.
func sshServer(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "SSH-2.0-test\r\n")
			c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// The service ssh leads to the host's SSH server, and the account stays at
// rest: no password is set for it.
func TestOpenSSH(t *testing.T) {
	t.Parallel()
	port := sshServer(t)
	h := enrolledHost(t, nil)
	h.sshAddress = func() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	var told []string
	h.sshAccount = func(login string, there bool) error {
		if there {
			told = append(told, login)
		}
		return nil
	}
	h.mem.Calls()
	k := h.connect("ann")
	r, f, err := h.Open(t.Context(), h.frame(k, frame.SSH))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var reply frame.Reply
	if err := json.Unmarshal(r.Reply, &reply); err != nil || reply.SSH == nil || reply.SSH.Login != "ann" || reply.RDP != nil || len(r.Service) > 0 || r.Stream == 0 {
		t.Errorf("the reply is %+v, %s, %v", r, r.Reply, err)
	}
	b, err := io.ReadAll(f)
	if string(b) != "SSH-2.0-test\r\n" || err != nil {
		t.Errorf("the service says %q, %v", b, err)
	}
	if calls := h.mem.Calls(); len(calls) != 0 || h.enabled("ann") || !slices.Equal(told, []string{"ann"}) {
		t.Errorf("the account saw %q, and the SSH side heard of %q", calls, told)
	}
	h.Close(t.Context(), privsep.Close{Stream: r.Stream, BytesIn: 5, BytesOut: 6, Why: "client closed"})
	h.env.Clock.Advance(31 * time.Second)
	until(t, "the platform knows of the session", func() bool {
		return slices.ContainsFunc(h.env.Events(), func(e audit.Event) bool {
			return e.Kind == audit.SessionEnd && e.Session == k.reply.SessionID && e.Detail["service"] == "ssh" && e.Detail["bytes_in"] == "5" && e.Detail["bytes_out"] == "6"
		})
	})

	h.sshAccount = func(string, bool) error { return &sft.Error{Code: sft.Unavailable, Msg: "no", Hint: "wait"} }
	_, _, err = h.ask(k, frame.SSH)
	wantCode(t, "an SSH server that was not told", err, sft.Unavailable)
	h.sshAddress = func() string { return "127.0.0.1:1" }
	h.sshAccount = func(string, bool) error { return nil }
	_, _, err = h.ask(k, frame.SSH)
	wantCode(t, "an SSH server that is down", err, sft.Unavailable)
	h.sshAddress = func() string { return "" }
	_, _, err = h.ask(k, frame.SSH)
	wantCode(t, "a host without an SSH server", err, sft.UnknownService)
	if n, m := h.sessions.count(); n+m != 0 {
		t.Errorf("%d sessions and %d streams are left", n, m)
	}
}

// Whoever loses access loses the stream of ssh, and what runs of theirs.
func TestEndOfAccessBySSH(t *testing.T) {
	b := newBench(t)
	n, pw, err := b.open(context.Background(), b.ann, "s1", frame.SSH, "192.0.2.1:5", "", allowed)
	if err != nil || !pw.Empty() {
		t.Fatal(pw, err)
	}
	b.mem.Begin("ann", b.clock.Now())
	b.pass(time.Hour)
	b.endWhere(func(s *session) string { return "access was taken away" })
	b.closed(n, 1, 2, "ended: access was taken away")
	b.pass(0)
	if b.told[n] != "access was taken away" || b.mem.Sessions("ann") != 0 {
		t.Errorf("the broker was told %q, and %d sessions of hers are left", b.told[n], b.mem.Sessions("ann"))
	}
	b.wantCalls("logoff ann")
	b.wantEvents("session.start s1", "session.end s1: ended: access was taken away")

	b.want(b.bob)
	_, _, err = b.open(context.Background(), b.ann, "s2", frame.SSH, "192.0.2.1:5", "", allowed)
	wantCode(t, "an account that has ended", err, sft.Denied)
	if n, m := b.count(); n+m != 0 {
		t.Errorf("%d sessions and %d streams are left", n, m)
	}
}

// A password lives no longer because a shell of the same person is open.
func TestPasswordBesideSSH(t *testing.T) {
	b := newBench(t)
	n, pw := b.sign(b.ann, "s1")
	if _, _, err := b.open(context.Background(), b.ann, "s2", frame.SSH, "192.0.2.1:5", "", allowed); err != nil {
		t.Fatal(err)
	}
	b.closed(n, 0, 0, "client closed")
	b.pass(benchGrace)
	if err := b.mem.SignIn("ann", pw, b.clock.Now()); err == nil {
		t.Error("the password is still good")
	}
	if _, streams := b.count(); streams != 1 {
		t.Errorf("%d streams, want the shell's", streams)
	}
	b.pass(benchMax)
	if b.told[n+1] == "" {
		t.Error("the shell has no limit")
	}
}

// What an agent that was killed left open of ssh is told, and no password of
// it is said to have been shut.
func TestSSHSessionOfAnAgentThatWasKilled(t *testing.T) {
	b := newBench(t)
	if _, _, err := b.open(context.Background(), b.ann, "s1", frame.SSH, "192.0.2.1:5", "", allowed); err != nil {
		t.Fatal(err)
	}
	b.wantEvents("session.start s1")
	b.sessions = b.again(b.path)
	if err := b.recover(context.Background()); err != nil {
		t.Fatal(err)
	}
	b.wantEvents("session.end s1: sftd ended")
	b.eventErr = errors.New("the disk is full")
	if _, _, err := b.open(context.Background(), b.bob, "s3", frame.SSH, "192.0.2.1:5", "", allowed); err == nil {
		t.Error("a session was opened that nobody will hear of")
	}
}
