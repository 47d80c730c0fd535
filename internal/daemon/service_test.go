package daemon

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"
)

// An scm is the other end of a control.
type scm struct {
	requests chan request
	pulse    chan time.Time
	reports  chan report
	result   chan error
}

func startControl(ctx context.Context, serve Serve) *scm {
	s := &scm{make(chan request), make(chan time.Time), make(chan report, 100), make(chan error, 1)}
	go func() {
		s.result <- control{requests: s.requests, pulse: s.pulse, report: func(r report) { s.reports <- r }}.run(ctx, serve)
	}()
	return s
}

func (s *scm) hears(t *testing.T, want ...report) {
	t.Helper()
	for _, w := range want {
		if got := <-s.reports; got != w {
			t.Errorf("the SCM hears %+v, want %+v", got, w)
		}
	}
}

func TestServiceLife(t *testing.T) {
	ready, end, seen := make(chan struct{}), make(chan struct{}), make(chan SessionChange, 10)
	boom := errors.New("an account could not be shut")
	s := startControl(t.Context(), func(ctx context.Context, tell func() error, changes <-chan SessionChange) error {
		<-ready
		tell()
		tell() // once more is no harm
		seen <- <-changes
		<-ctx.Done()
		<-end
		return boom
	})
	wait := func(st state, n uint32) report { return report{state: st, checkpoint: n, patience: patience} }
	s.hears(t, wait(starting, 1))
	s.pulse <- time.Time{}
	s.pulse <- time.Time{}
	s.hears(t, wait(starting, 2), wait(starting, 3))
	close(ready)
	s.hears(t, report{state: running})
	s.pulse <- time.Time{} // no news of a service that runs
	s.requests <- request{ask: true}
	s.hears(t, report{state: running})
	lock := SessionChange(7)
	s.requests <- request{change: &lock}
	if got := <-seen; got != lock {
		t.Errorf("the service sees %d, want %d", got, lock)
	}
	for range 2 * changes { // nobody takes them: the SCM does not wait
		s.requests <- request{change: &lock}
	}
	s.requests <- request{} // something that we did not ask for
	s.requests <- request{stop: true}
	s.hears(t, wait(stopping, 1))
	got := []report{<-s.reports} // that its context has ended
	for range 3 {
		s.pulse <- time.Time{}
		got = append(got, <-s.reports)
	}
	if want := []report{wait(stopping, 2), wait(stopping, 3), wait(stopping, 4), wait(stopping, 5)}; !reflect.DeepEqual(got, want) {
		t.Errorf("while it stops: %+v, want %+v", got, want)
	}
	s.requests <- request{stop: true} // the machine goes down too
	s.hears(t, wait(stopping, 6))
	close(end)
	if err := <-s.result; err != boom {
		t.Errorf("the result is %v, want %v", err, boom)
	}
}

func TestServiceThatIsStoppedEarly(t *testing.T) {
	s := startControl(t.Context(), func(ctx context.Context, tell func() error, _ <-chan SessionChange) error {
		<-ctx.Done()
		tell() // too late to be running
		return nil
	})
	s.hears(t, report{starting, 1, patience})
	s.requests <- request{stop: true}
	s.hears(t, report{stopping, 1, patience})
	if err := <-s.result; err != nil {
		t.Errorf("a service that was stopped has failed: %v", err)
	}
	for len(s.reports) > 0 {
		if r := <-s.reports; r.state == running {
			t.Error("it was running after it was stopped")
		}
	}
}

func TestServiceThatEndsOfItself(t *testing.T) {
	boom := errors.New("boom")
	for _, err := range []error{nil, boom} {
		s := startControl(t.Context(), func(context.Context, func() error, <-chan SessionChange) error { return err })
		want := err
		if err == nil {
			want = errEnded
		}
		if got := <-s.result; got != want {
			t.Errorf("a service that returned %v is told as %v, want %v", err, got, want)
		}
	}
}

func TestServiceOfAContextThatEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := startControl(ctx, func(ctx context.Context, tell func() error, _ <-chan SessionChange) error {
		tell()
		<-ctx.Done()
		return nil
	})
	s.hears(t, report{starting, 1, patience}, report{state: running})
	cancel()
	s.hears(t, report{stopping, 1, patience})
	if err := <-s.result; err != nil {
		t.Error(err)
	}
}

func TestCommand(t *testing.T) {
	for _, tt := range []struct {
		s    Spec
		want string // "": refused
	}{
		{Spec{Program: `C:\Program Files\ScaleFT\Server Tools\sftd.exe`, Args: []string{"service", "run"}}, `"C:\Program Files\ScaleFT\Server Tools\sftd.exe" service run`},
		{Spec{Program: `C:\sftd.exe`}, `"C:\sftd.exe"`},
		{Spec{Program: `sftd.exe`}, ""},
		{Spec{Program: `C:sftd.exe`}, ""},
		{Spec{Program: `C:\`}, ""},
		{Spec{Program: `\\server\share\sftd.exe`}, ""},
		{Spec{Program: `C:\a" "b\sftd.exe`}, ""},
		{Spec{Program: "C:\\a\x00\\sftd.exe"}, ""},
		{Spec{Program: `C:\bin\`}, ""},
		{Spec{Program: `1:\bin\sftd.exe`}, ""},
		{Spec{Program: ``}, ""},
		{Spec{Program: `C:\sftd.exe`, Args: []string{"a b"}}, ""},
		{Spec{Program: `C:\sftd.exe`, Args: []string{`"`}}, ""},
		{Spec{Program: `C:\sftd.exe`, Args: []string{""}}, ""},
	} {
		got, err := tt.s.command()
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%+v: %q, %v, want %q", tt.s, got, err, tt.want)
		}
	}
}

func TestStartedBy(t *testing.T) {
	s := Spec{Program: `C:\Program Files\sftd.exe`, Args: []string{"service", "run"}}
	const good = `"C:\Program Files\sftd.exe" service run`
	for _, tt := range []struct {
		lines []string
		want  bool
	}{
		{[]string{good}, true},
		{[]string{good, good}, true},
		{nil, false},
		{[]string{good, `C:\Program Files\sftd.exe service run`}, false},
		{[]string{`C:\Program Files\sftd.exe service run`, good}, false},
		{[]string{good + " "}, false},
		{[]string{`"C:\Program Files\sftd.exe"`}, false},
		{[]string{`"c:\Program Files\sftd.exe" service run`}, false},
	} {
		if got := s.startedBy(tt.lines...); got != tt.want {
			t.Errorf("%q: %t, want %t", tt.lines, got, tt.want)
		}
	}
	if (Spec{Program: "sftd.exe"}).startedBy("") {
		t.Error("a service without a command line is started by one")
	}
}
