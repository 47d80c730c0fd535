package main

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/doctor"
	"sft/internal/loopback"
)

// A strange listener takes every socket for somebody else's.
type strange struct{ *loopback.Listener }

func (s strange) Accept() (*net.TCPConn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return nil, &loopback.StrangerError{Peer: c.RemoteAddr().(*net.TCPAddr).AddrPort(), Err: errors.New("it is not known whose it is")}
}

// A dead listener accepts nothing, ever.
type dead struct{ *loopback.Listener }

func (dead) Accept() (*net.TCPConn, error) { select {} }

// What keeps an RDP client from the port of sft is a failure with what to do.
func TestExamineLoopback(t *testing.T) {
	open := func(wrap func(*loopback.Listener) listener) func(context.Context) (listener, error) {
		return func(ctx context.Context) (listener, error) {
			l, err := loopback.ListenApart(ctx)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			return wrap(l), nil
		}
	}
	for _, tt := range []struct {
		name       string
		listen     func(context.Context) (listener, error)
		verdict    doctor.Verdict
		found, fix string
	}{
		{"all is well", open(func(l *loopback.Listener) listener { return l }), doctor.OK, "takes your sockets, and knows them as yours", ""},
		{"no port", func(context.Context) (listener, error) { return nil, errors.New("operation not permitted") }, doctor.Fail,
			"no port can be opened on this machine itself: operation not permitted", "a firewall or a sandbox forbids it to sft"},
		{"a port that is not reached", open(func(l *loopback.Listener) listener { l.Close(); return l }), doctor.Fail,
			"a port on this machine cannot be reached from it: dial tcp", "let connections to 127.0.0.0/8 through the firewall"},
		{"a port that takes no sockets", open(func(l *loopback.Listener) listener { return dead{l} }), doctor.Fail,
			"a port on this machine cannot be reached from it: context deadline exceeded", "let connections to 127.0.0.0/8 through the firewall"},
		{"a table that does not show the socket", open(func(l *loopback.Listener) listener { return strange{l} }), doctor.Fail,
			"a socket of yours is not known as yours: refused a connection from 127.", "hides the system's table of sockets from sft"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			var got []doctor.Check
			examineLoopback(ctx, tt.listen, func(c doctor.Check) { got = append(got, c) })
			code := sft.Internal
			if tt.verdict == doctor.OK {
				code = ""
			}
			if len(got) != 1 || got[0].Step != "loopback" || got[0].Verdict != tt.verdict || got[0].Code != code || !strings.Contains(got[0].Found, tt.found) || !strings.Contains(got[0].Fix, tt.fix) {
				t.Errorf("it is told as %+v, want %s, %q, %q", got, tt.verdict, tt.found, tt.fix)
			}
		})
	}
}
