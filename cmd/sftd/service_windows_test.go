package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"

	"sft/internal/conf"
)

// The test binary is sftd.exe too.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "sftd.exe" {
		main()
	}
	os.Exit(m.Run())
}

const program = `C:\Program Files\ScaleFT\Server Tools\sftd.exe`

// copySelf puts this program where the installer would.
func copySelf(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(program), 0o755), os.WriteFile(program, b, 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { until(t, "the program can be removed", func() bool { return os.Remove(program) == nil }) })
}

// sftd runs the program, and wants this exit status and these words.
func sftd(t *testing.T, status int, args []string, words ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	if cmd.ProcessState.ExitCode() != status {
		t.Errorf("sftd %q: exit status %d, want %d: %s", args, cmd.ProcessState.ExitCode(), status, out.String())
	}
	for _, w := range words {
		if !strings.Contains(out.String(), w) {
			t.Errorf("sftd %q does not say %q: %s", args, w, out.String())
		}
	}
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not come about that %s", what)
		}
	}
}

func logged(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(conf.AgentPaths().Logs, "sftd.log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

func service(t *testing.T) *mgr.Service {
	t.Helper()
	m, err := mgr.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Disconnect() })
	s, err := m.OpenService("scaleft-server-tools")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func reaches(t *testing.T, s *mgr.Service, want svc.State) svc.Status {
	t.Helper()
	var st svc.Status
	until(t, "the service is as it should be", func() bool {
		var err error
		st, err = s.Query()
		return err == nil && st.State == want
	})
	return st
}

// TestService is the life of the service, from nothing to nothing, on a host
// that is not enrolled.
func TestService(t *testing.T) {
	copySelf(t)
	state := conf.AgentPaths().State
	t.Cleanup(func() { os.RemoveAll(state) })
	sftd(t, 1, nil, "sftd: sftd runs as a service of Windows\n", `hint: in a prompt of an administrator, run "sftd install", then: net start scaleft-server-tools`)
	sftd(t, 2, []string{"status", "too", "much"}, "unknown command")
	sftd(t, 1, []string{"status"}, "sftd has not run on this host yet", "net start scaleft-server-tools")
	sftd(t, 0, []string{"--version"}, "sftd ")
	sftd(t, 0, []string{"--help"}, "install", "uninstall", "status", `config\\systemprofile\\AppData\\Local\\ScaleFT\\sftd.yaml`)
	sftd(t, 0, []string{"--debug-device-info"}, `"os_type": "windows"`, `"os": "`, "(build ")
	sftd(t, 0, []string{"install"}, "Installed. Start it: net start scaleft-server-tools")
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Services\scaleft-server-tools`, registry.QUERY_VALUE)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if path, _, err := k.GetStringValue("ImagePath"); path != `"`+program+`" service run` {
		t.Errorf("ImagePath %s, %v", path, err)
	}
	if name, _, err := k.GetStringValue("DisplayName"); name != "ScaleFT Server Tools" {
		t.Errorf("DisplayName %s, %v", name, err)
	}
	sftd(t, 1, nil, "hint: in a prompt of an administrator: net start scaleft-server-tools")
	sftd(t, 1, []string{"service", "run"}, "this is how Windows itself starts the service", "net start scaleft-server-tools")

	s := service(t)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	reaches(t, s, svc.Running)
	until(t, "the status tells of it", func() bool { // it is there before the host was looked at
		b, err := os.ReadFile(filepath.Join(state, "status.json"))
		return err == nil && strings.Contains(string(b), "this host is not enrolled")
	})
	sftd(t, 1, []string{"status"}, "sftd       running, version", "this host is not enrolled")
	sftd(t, 1, nil, "the service is installed, running; look at it with: sftd status")
	if l := logged(t); !strings.Contains(l, `msg="sftd starts"`) {
		t.Errorf("the log is %q", l)
	}
	if _, err := s.Control(svc.Stop); err != nil {
		t.Fatal(err)
	}
	if st := reaches(t, s, svc.Stopped); st.Win32ExitCode != 0 {
		t.Errorf("it ended as %+v: %s", st, logged(t))
	}
	if l := logged(t); !strings.Contains(l, `msg="sftd has stopped"`) {
		t.Errorf("the log is %q", l)
	}
	sftd(t, 1, []string{"status"}, "not running")

	// What is wrong with the settings is in the log, and the service has failed.
	if err := os.WriteFile(filepath.Join(state, "sftd.yaml"), []byte("BrokerListenPrt: 1\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Start() // it may be over before Start has seen it
	until(t, "the log tells of it", func() bool { return strings.Contains(logged(t), `unknown key \"BrokerListenPrt\"`) })
	if st := reaches(t, s, svc.Stopped); st.Win32ExitCode == 0 {
		t.Errorf("it failed, and ended as %+v", st)
	}

	s.Close()
	sftd(t, 0, []string{"uninstall"}, "Removed. Its files are still in "+state)
	sftd(t, 1, nil, `run "sftd install"`)
	if _, err := os.Stat(filepath.Join(state, "sftd.yaml")); err != nil {
		t.Errorf("its files are gone: %v", err)
	}
}

// TestPlantedFolder: a folder of somebody else's making is not believed, and
// nothing is written into it.
func TestPlantedFolder(t *testing.T) {
	copySelf(t)
	state := conf.AgentPaths().State
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	sd, err := windows.SecurityDescriptorFromString("D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;WD)")
	if err != nil {
		t.Fatal(err)
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		t.Fatal(err)
	}
	if err := windows.SetNamedSecurityInfo(state, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION, nil, nil, dacl, nil); err != nil {
		t.Fatal(err)
	}
	sftd(t, 0, []string{"install"})
	t.Cleanup(func() { sftd(t, 0, []string{"uninstall"}) })
	s := service(t)
	s.Start()
	until(t, "it has failed", func() bool {
		st, err := s.Query()
		return err == nil && st.State == svc.Stopped && st.Win32ExitCode == uint32(windows.ERROR_SERVICE_SPECIFIC_ERROR)
	})
	left, err := os.ReadDir(state)
	if err != nil || len(left) != 0 {
		t.Errorf("the folder holds %v, %v", left, err)
	}
	s.Close()
}

// A program that others can replace does not become a service.
func TestInstallOfAnOpenProgram(t *testing.T) {
	copySelf(t)
	sd, err := windows.SecurityDescriptorFromString("D:P(A;;FA;;;SY)(A;;FA;;;WD)")
	if err != nil {
		t.Fatal(err)
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		t.Fatal(err)
	}
	if err := windows.SetNamedSecurityInfo(program, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION, nil, nil, dacl, nil); err != nil {
		t.Fatal(err)
	}
	sftd(t, 1, []string{"install"}, program+" can be changed by others than administrators", `below C:\Program Files`)
}

// The end of somebody's session is not the service's.
func TestServiceHearsNoSignals(t *testing.T) {
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	of := deaf(ctx)
	stop() // as a signal does
	if of.Err() != nil {
		t.Errorf("a signal ends the service: %v", of.Err())
	}
}
