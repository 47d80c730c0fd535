package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"

	"sft"
)

// The test binary is the service too: "TEST.EXE service run FILE", where FILE
// is a plain word in its own folder, into which it writes what happens.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "service" {
		os.Exit(small(os.Args[3]))
	}
	os.Exit(m.Run())
}

// small is a small service. It is ready when the file "ready" is there, stops
// when the file "end" is, and fails when the file "fail" is.
func small(name string) int {
	dir, _ := os.Getwd()
	if exe, err := os.Executable(); err == nil {
		dir = filepath.Dir(exe)
	}
	say := func(s string) {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			fmt.Fprintln(f, s)
			f.Close()
		}
	}
	wait := func(ctx context.Context, file string) error {
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
				return nil
			}
			time.Sleep(5 * time.Millisecond)
		}
		return ctx.Err()
	}
	err := Run(context.Background(), name, func(ctx context.Context, ready func() error, changes <-chan SessionChange) error {
		say("begin")
		if err := wait(ctx, "ready"); err != nil {
			return err
		}
		say(fmt.Sprint("ready ", ready(), changes != nil))
		go func() {
			if wait(ctx, "fail") == nil {
				say("fail")
			}
		}()
		failed := make(chan error, 1)
		go func() { failed <- wait(ctx, "fail") }()
		select {
		case <-ctx.Done():
		case <-failed:
			if ctx.Err() == nil {
				return errors.New("boom")
			}
		}
		say("stopping")
		wait(context.Background(), "end")
		say("end")
		return nil
	})
	if err != nil {
		say("result " + err.Error())
		return 1
	}
	say("result nil")
	return 0
}

// until polls.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not come about that %s", what)
		}
	}
}

// A testService is installed from a copy of the test binary.
type testService struct {
	Spec
	dir string
	m   *mgr.Mgr
}

func install(t *testing.T) *testService {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "with a blank")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "service.exe")
	if err := os.WriteFile(exe, b, 0o700); err != nil {
		t.Fatal(err)
	}
	name := "sft-test-" + strings.ToLower(t.Name())
	s := &testService{Spec{Name: name, Display: "Test of " + t.Name(), Description: "a test", Program: exe, Args: []string{"service", "run", name}}, dir, nil}
	warnings, err := Install(s.Spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range warnings {
		t.Logf("warning: %s", sft.Explain(w))
		if e, ok := w.(*sft.Error); !ok || e.Hint == "" {
			t.Errorf("the warning %v does not say what to do", w)
		}
	}
	if s.m, err = mgr.Connect(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.m.Disconnect() })
	t.Cleanup(func() { s.touch(t, "ready"); s.touch(t, "end"); Uninstall(context.Background(), s.Spec) })
	return s
}

func (s *testService) touch(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *testService) said() string {
	b, _ := os.ReadFile(filepath.Join(s.dir, s.Name))
	return strings.ReplaceAll(string(b), "\n", "|")
}

func (s *testService) open(t *testing.T) *mgr.Service {
	t.Helper()
	v, err := s.m.OpenService(s.Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// query is mgr.Service's Query with the check point.
func query(t *testing.T, v *mgr.Service) windows.SERVICE_STATUS {
	t.Helper()
	var st windows.SERVICE_STATUS
	if err := windows.QueryServiceStatus(v.Handle, &st); err != nil {
		t.Fatal(err)
	}
	return st
}

func (s *testService) reaches(t *testing.T, v *mgr.Service, want uint32) windows.SERVICE_STATUS {
	t.Helper()
	var st windows.SERVICE_STATUS
	until(t, fmt.Sprintf("the service's state is %d (%s)", want, s.said()), func() bool {
		st = query(t, v)
		return st.CurrentState == want
	})
	return st
}

// goesOn waits until the service has reported twice that it is at something.
func (s *testService) goesOn(t *testing.T, v *mgr.Service, state uint32) {
	t.Helper()
	first := s.reaches(t, v, state)
	until(t, "it reports that it goes on", func() bool {
		st := query(t, v)
		return st.CurrentState == state && st.CheckPoint > first.CheckPoint && st.WaitHint > 0
	})
}

func TestServiceOfWindows(t *testing.T) {
	s := install(t)
	if st, err := InstalledState(s.Name); err != nil || st != "installed, stopped" {
		t.Errorf("state %q, %v", st, err)
	}
	v := s.open(t)
	if err := v.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "it begins", func() bool { return s.said() == "begin|" })
	s.goesOn(t, v, windows.SERVICE_START_PENDING)
	s.touch(t, "ready")
	st := s.reaches(t, v, windows.SERVICE_RUNNING)
	if want := svc.AcceptStop | svc.AcceptShutdown | svc.AcceptPreShutdown | svc.AcceptSessionChange; st.ControlsAccepted != uint32(want) {
		t.Errorf("it accepts %#x, want %#x", st.ControlsAccepted, want)
	}
	if st, err := InstalledState(s.Name); err != nil || st != "installed, running" {
		t.Errorf("state %q, %v", st, err)
	}
	if st, err := v.Control(svc.Interrogate); err != nil || st.State != svc.Running {
		t.Errorf("asked, it says %+v, %v", st, err)
	}
	if st, err := v.Control(svc.Stop); err != nil || st.State != svc.StopPending && st.State != svc.Running {
		t.Errorf("told to stop, it says %+v, %v", st, err)
	}
	s.goesOn(t, v, windows.SERVICE_STOP_PENDING)
	s.touch(t, "end")
	st = s.reaches(t, v, windows.SERVICE_STOPPED)
	if st.Win32ExitCode != 0 {
		t.Errorf("it ended as %+v", st)
	}
	until(t, "its process ends", func() bool { return strings.HasSuffix(s.said(), "result nil|") })
	if got, want := s.said(), "begin|ready <nil>true|stopping|end|result nil|"; strings.ReplaceAll(got, " true", "true") != want {
		t.Errorf("it said %q, want %q", got, want)
	}
	if err := Uninstall(t.Context(), s.Spec); err != nil {
		t.Error(err)
	}
	v.Close()
	until(t, "it is gone", func() bool { st, err := InstalledState(s.Name); return err == nil && st == "not installed" })
	if err := Uninstall(t.Context(), s.Spec); err != nil {
		t.Errorf("once more: %v", err)
	}
	if eventsInstalled(s.Display) {
		t.Error("the source of its events is left")
	}
}

// A service that fails says so, for its recovery to see.
func TestServiceOfWindowsThatFails(t *testing.T) {
	s := install(t)
	s.touch(t, "ready")
	v := s.open(t)
	if err := v.Start(); err != nil {
		t.Fatal(err)
	}
	s.reaches(t, v, windows.SERVICE_RUNNING)
	s.touch(t, "fail")
	st := s.reaches(t, v, windows.SERVICE_STOPPED)
	if st.Win32ExitCode == 0 {
		t.Errorf("it failed, and ended as %+v", st)
	}
}

func TestUninstallStopsFirst(t *testing.T) {
	s := install(t)
	s.touch(t, "ready")
	s.touch(t, "end")
	v := s.open(t)
	if err := v.Start(); err != nil {
		t.Fatal(err)
	}
	s.reaches(t, v, windows.SERVICE_RUNNING)
	v.Close()
	if err := Uninstall(t.Context(), s.Spec); err != nil {
		t.Fatal(err)
	}
	if got := s.said(); !strings.Contains(got, "stopping|end|") {
		t.Errorf("it was removed without an end: %q", got)
	}
}

func TestWhatInstallWrites(t *testing.T) {
	s := install(t)
	check := func(want string) {
		t.Helper()
		k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Services\`+s.Name, registry.QUERY_VALUE)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		path, _, err1 := k.GetStringValue("ImagePath")
		account, _, err2 := k.GetStringValue("ObjectName")
		display, _, err3 := k.GetStringValue("DisplayName")
		start, _, err4 := k.GetIntegerValue("Start")
		if err := errors.Join(err1, err2, err3, err4); err != nil || path != want || account != "LocalSystem" || display != s.Display || start != 2 {
			t.Errorf("ImagePath %s, ObjectName %s, DisplayName %s, Start %d, %v; want %s", path, account, display, start, err, want)
		}
	}
	check(`"` + s.Program + `" service run ` + s.Name)
	if !eventsInstalled(s.Display) {
		t.Error("its events have no source")
	}
	var down, needed uint32
	if err := windows.QueryServiceConfig2(s.open(t).Handle, windows.SERVICE_CONFIG_PRESHUTDOWN_INFO, (*byte)(unsafe.Pointer(&down)), uint32(unsafe.Sizeof(down)), &needed); err != nil || down != 30000 {
		t.Errorf("when the system goes down it has %d ms, %v", down, err)
	}
	s.Display = "Another"
	s.Args = []string{"service", "run"}
	if _, err := Install(s.Spec); err != nil { // as after an upgrade
		t.Fatal(err)
	}
	check(`"` + s.Program + `" service run`)
	for _, w := range Settle(s.Spec) {
		if e, ok := w.(*sft.Error); !ok || e.Hint == "" {
			t.Errorf("the warning %v does not say what to do", w)
		}
	}
	removeEvents("Another")
}

// An installer may have made the service without quotes, or a service manager
// may have lost them: the agent puts them back, for good.
func TestSettleQuotes(t *testing.T) {
	s := install(t)
	v := s.open(t)
	good, bare := `"`+s.Program+`" service run `+s.Name, s.Program+` service run `+s.Name
	tell := func(command string) {
		t.Helper()
		if err := windows.ChangeServiceConfig(v.Handle, windows.SERVICE_NO_CHANGE, windows.SERVICE_NO_CHANGE, windows.SERVICE_NO_CHANGE,
			windows.StringToUTF16Ptr(command), nil, nil, nil, nil, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	keep := func(command string) {
		t.Helper()
		k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Services\`+s.Name, registry.SET_VALUE)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		if err := k.SetExpandStringValue("ImagePath", command); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ told, kept string }{
		{good, good}, {bare, bare}, {bare, good}, {good, bare}, {`"` + s.Program + `"`, bare}, {good + " more", good + " more"}, {`C:\Program.exe`, good},
	} {
		tell(tt.told)
		keep(tt.kept)
		for _, w := range Settle(s.Spec) {
			if strings.Contains(w.Error(), "quote") {
				t.Errorf("told %s, kept %s: %v", tt.told, tt.kept, w)
			}
		}
		// Also when something else is changed afterwards.
		text := windows.SERVICE_DESCRIPTION{Description: windows.StringToUTF16Ptr("another")}
		if err := change(v, windows.SERVICE_CONFIG_DESCRIPTION, &text); err != nil {
			t.Fatal(err)
		}
		got, err := commands(v)
		if want := []string{good, good}; err != nil || !slices.Equal(got, want) {
			t.Errorf("told %s, kept %s: afterwards %q, %v, want %q", tt.told, tt.kept, got, err, want)
		}
	}
	s.Program = "service.exe" // no full path: it is not touched
	if w := Settle(s.Spec); !slices.ContainsFunc(w, func(err error) bool { return sft.CodeOf(err) == sft.Invalid }) {
		t.Errorf("a program without a full path: %v", w)
	}
	if got, err := commands(v); err != nil || !slices.Equal(got, []string{good, good}) {
		t.Errorf("a program without a full path: %q, %v", got, err)
	}
}

func TestRunInAConsole(t *testing.T) {
	err := Run(t.Context(), "sft-test", func(context.Context, func() error, <-chan SessionChange) error { t.Error("it runs"); return nil })
	if e, ok := errors.AsType[*sft.Error](err); !ok || !strings.Contains(e.Hint, "net start sft-test") {
		t.Errorf("got %v, want what to do", err)
	}
}

func TestOpenEvents(t *testing.T) {
	e, err := OpenEvents("sft-test")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []slog.Level{slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		e.Write(l, "a test")
	}
	e.Write(slog.LevelInfo, "not a C string: \x00")
}
