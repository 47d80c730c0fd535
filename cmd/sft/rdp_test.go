package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"sft"
	"sft/internal/frame"
)

// pen returns a visit whose person types what is read from in, and what they
// are told.
func pen(in io.Reader) (*visit, *bytes.Buffer) {
	said := new(bytes.Buffer)
	return &visit{p: &program{in: in, voice: &voice{err: said}}}, said
}

func TestBackToALockedDesktop(t *testing.T) {
	locked := &sft.Error{Code: sft.Locked, Msg: "the desktop was locked"}
	denied := &sft.Error{Code: sft.Denied, Msg: "ann may not sign in", Hint: "ask"}
	const ask = "sft: the desktop of web01 was locked; press Enter to return to it\n"
	const refused = "sft: ann may not sign in\nsft: hint: ask\n"
	tests := []struct {
		name  string
		tty   bool
		typed string
		runs  []error // what each run ends with
		renew error
		want  error
		said  string
		did   string
	}{
		{"a session that ends", true, "\n", []error{nil}, nil, nil, "", "run"},
		{"a session that never was", true, "\n", []error{denied}, nil, denied, "", "run"},
		{"Enter", true, "\n", []error{locked, nil}, nil, nil, ask, "run renew run"},
		{"Enter after other keys, twice", true, "no\r\nyes\n", []error{locked, locked, nil}, nil, nil, ask + ask, "run renew run renew run"},
		{"the end of the input", true, "", []error{locked}, nil, nil, ask, "run"},
		{"the end of the input after other keys", true, "no", []error{locked}, nil, nil, ask, "run"},
		{"no terminal", false, "\n", []error{locked}, nil, nil, "sft: the desktop of web01 was locked; run \"sft rdp web01\" again to return to it\n", "run"},
		{"who may no longer come back", true, "\n", []error{locked}, denied, nil, ask + refused, "run renew"},
		{"a way back that fails", true, "\n", []error{locked, denied}, nil, nil, ask + refused, "run renew run"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v, said := pen(iotest.OneByteReader(strings.NewReader(tt.typed)))
			var did []string
			runs := tt.runs
			err := v.untilLeft(t.Context(), "web01", tt.tty, func(context.Context) error { did = append(did, "renew"); return tt.renew }, func() error {
				did = append(did, "run")
				if len(runs) == 0 {
					t.Fatal("one run too many")
				}
				err := runs[0]
				runs = runs[1:]
				return err
			})
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) || said.String() != tt.said || strings.Join(did, " ") != tt.did {
				t.Errorf("got %v, did %q, said\n%swant %v, %q\n%s", err, did, said, tt.want, tt.did, tt.said)
			}
		})
	}
}

// Ctrl-C while Enter is waited for ends the command, and so it does while the
// way back is made.
func TestNoWayBackAfterAnInterrupt(t *testing.T) {
	locked := &sft.Error{Code: sft.Locked, Msg: "the desktop was locked"}
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	defer w.Close()
	v, said := pen(r)
	go cancel()
	if err := v.untilLeft(ctx, "web01", true, func(context.Context) error { return nil }, func() error { return locked }); err != nil {
		t.Errorf("while it was waited: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	v, said = pen(strings.NewReader("\n"))
	if err := v.untilLeft(ctx, "web01", true, func(context.Context) error { cancel(); return ctx.Err() }, func() error { return locked }); err != nil || strings.Count(said.String(), "\n") != 1 {
		t.Errorf("on the way back: %v, said %q", err, said)
	}
}

// What a host says is said once, on one line, within bounds.
func TestTell(t *testing.T) {
	v, said := pen(nil)
	full := "both sessions are in use"
	for range 2 {
		v.tell("web01", &frame.RDPReply{Login: "ann", PasswordReset: true, Warnings: []string{full, "\x1b[2J\nsft: all is well", strings.Repeat("y", 5000)}})
	}
	want := []string{
		"sft: the password of ann on web01 could not be changed and was reset: passwords saved there in browsers and in Credential Manager, certificates with private keys and EFS files can no longer be read",
		"sft: web01 warns: both sessions are in use",
		"sft: web01 warns: [2J sft: all is well",
		"sft: web01 warns: " + strings.Repeat("y", frame.MaxWarning-3) + "...", "",
	}
	if got := strings.Split(said.String(), "\n"); !slices.Equal(got, want) {
		t.Errorf("said\n%s\nwant\n%s", said, strings.Join(want, "\n"))
	}
	for n := range 100 {
		v.tell("web01", &frame.RDPReply{Warnings: []string{strings.Repeat("x", n+1)}})
	}
	if got := strings.Count(said.String(), "\n"); got != maxTold {
		t.Errorf("%d lines", got)
	}
	v, said = pen(nil)
	v.tell("web01", &frame.RDPReply{Login: "ann"})
	if said.Len() > 0 {
		t.Errorf("with nothing to say: %q", said)
	}
}
