package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"

	"sft"
)

// stopPatience is how long a service has to stop before it is removed.
const stopPatience = time.Minute

// goodbye is how long a service has when the system goes down: as long as an
// agent takes at most to shut its accounts. Windows' own 10 s (since build
// 15063: Microsoft, "SERVICE_PRESHUTDOWN_INFO structure") may cut that short.
const goodbye = 30 * time.Second

func connect() (*mgr.Mgr, error) {
	m, err := mgr.Connect()
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) {
		return nil, &sft.Error{Code: sft.Denied, Msg: "only an administrator may do this", Err: err, Hint: "open a prompt with \"Run as administrator\", and run it again there"}
	}
	if err != nil {
		return nil, fmt.Errorf("reach the service control manager: %w", err)
	}
	return m, nil
}

// Install makes the service, or makes one of its name as s says, and does not
// start it. What could not be set beside that is in warnings, each with what to
// do about it: the service works without.
func Install(s Spec) (warnings []error, err error) {
	command, err := s.command()
	if err != nil {
		return nil, err
	}
	m, err := connect()
	if err != nil {
		return nil, err
	}
	defer m.Disconnect()
	var p [3]*uint16
	for i, v := range []string{s.Name, s.Display, command} {
		if p[i], err = windows.UTF16PtrFromString(v); err != nil {
			return nil, err
		}
	}
	h, err := windows.CreateService(m.Handle, p[0], p[1], windows.SERVICE_ALL_ACCESS, windows.SERVICE_WIN32_OWN_PROCESS,
		windows.SERVICE_AUTO_START, windows.SERVICE_ERROR_NORMAL, p[2], nil, nil, nil, nil, nil)
	if errors.Is(err, windows.ERROR_SERVICE_EXISTS) {
		if h, err = windows.OpenService(m.Handle, p[0], windows.SERVICE_ALL_ACCESS); err == nil {
			if err = windows.ChangeServiceConfig(h, windows.SERVICE_WIN32_OWN_PROCESS, windows.SERVICE_AUTO_START, windows.SERVICE_ERROR_NORMAL,
				p[2], nil, nil, nil, nil, nil, p[1]); err != nil {
				windows.CloseServiceHandle(h)
			}
		}
	}
	if errors.Is(err, windows.ERROR_SERVICE_MARKED_FOR_DELETE) {
		return nil, &sft.Error{Code: sft.Unavailable, Msg: "the service " + s.Name + " is still being removed", Err: err, Hint: "close the list of services and Task Manager, then run it again"}
	}
	if err != nil {
		return nil, fmt.Errorf("make the service %s: %w", s.Name, err)
	}
	service := &mgr.Service{Name: s.Name, Handle: h}
	defer service.Close()
	return extras(service, s), nil
}

// Settle sets what Install sets beside the service itself, for a service that
// something else has made, and sees to it that the service is started by the
// quoted command line that Install gives it. Of the rest it leaves alone what
// an administrator has set.
func Settle(s Spec) (warnings []error) {
	m, err := connect()
	if err != nil {
		return []error{err}
	}
	defer m.Disconnect()
	service, err := m.OpenService(s.Name)
	if err != nil {
		return []error{fmt.Errorf("open the service %s: %w", s.Name, err)}
	}
	defer service.Close()
	if a, err := service.RecoveryActions(); err != nil || len(a) == 0 {
		warnings = extras(service, s)
	}
	// At the end: a service manager may write all that it knows of the service
	// whenever one setting changes.
	if err := quote(service, s); err != nil {
		warnings = append(warnings, err)
	}
	return warnings
}

// quote makes the command line of the service what it has to be, if it is
// another one.
func quote(service *mgr.Service, s Spec) error {
	command, err := s.command()
	if err != nil {
		return err
	}
	if got, err := commands(service); err == nil && s.startedBy(got...) {
		return nil
	}
	p, err := windows.UTF16PtrFromString(command)
	if err != nil {
		return err
	}
	err = windows.ChangeServiceConfig(service.Handle, windows.SERVICE_NO_CHANGE, windows.SERVICE_NO_CHANGE, windows.SERVICE_NO_CHANGE, p, nil, nil, nil, nil, nil, nil)
	if err == nil {
		var got []string
		if got, err = commands(service); err == nil && !s.startedBy(got...) {
			err = fmt.Errorf("it is still %q", got)
		}
	}
	if err != nil {
		return &sft.Error{Code: sft.Unavailable, Msg: "quote the path of the service's program: " + err.Error(), Err: err,
			Hint: "in Registry Editor, set ImagePath in HKLM\\SYSTEM\\CurrentControlSet\\Services\\" + s.Name + " to: " + command}
	}
	return nil
}

// commands returns the command line of the service as the service manager
// tells it, and as the registry keeps it for the next start of Windows.
func commands(service *mgr.Service) ([]string, error) {
	told, err := toldCommand(service)
	if err != nil {
		return nil, fmt.Errorf("ask for the command line of %s: %w", service.Name, err)
	}
	kept, err := keptCommand(service.Name)
	if err != nil {
		return nil, fmt.Errorf("read the command line of %s: %w", service.Name, err)
	}
	return []string{told, kept}, nil
}

// extras sets the rest, each by itself.
func extras(service *mgr.Service, s Spec) (warnings []error) {
	restart := func(after time.Duration) mgr.RecoveryAction {
		return mgr.RecoveryAction{Type: mgr.ServiceRestart, Delay: after}
	}
	description, err := windows.UTF16PtrFromString(s.Description)
	if err != nil {
		description = nil
	}
	text := windows.SERVICE_DESCRIPTION{Description: description}
	delayed := windows.SERVICE_DELAYED_AUTO_START_INFO{IsDelayedAutoStartUp: 1}
	sid := uint32(windows.SERVICE_SID_TYPE_UNRESTRICTED)
	down := uint32(goodbye.Milliseconds())
	for _, e := range []struct {
		what, do string
		err      error
	}{
		{"describe the service", "do nothing: only its description is missing", change(service, windows.SERVICE_CONFIG_DESCRIPTION, &text)},
		{"delay its start", "run: sc.exe config " + s.Name + " start= delayed-auto", change(service, windows.SERVICE_CONFIG_DELAYED_AUTO_START_INFO, &delayed)},
		{"give it a SID of its own", "run: sc.exe sidtype " + s.Name + " unrestricted", change(service, windows.SERVICE_CONFIG_SERVICE_SID_INFO, &sid)},
		{"give it time when the system goes down", `run: reg add HKLM\SYSTEM\CurrentControlSet\Services\` + s.Name + ` /v PreshutdownTimeout /t REG_DWORD /d ` + fmt.Sprint(down),
			change(service, windows.SERVICE_CONFIG_PRESHUTDOWN_INFO, &down)},
		{"have it restarted when it fails", "run: sc.exe failure " + s.Name + " reset= 86400 actions= restart/5000/restart/30000/restart/60000",
			service.SetRecoveryActions([]mgr.RecoveryAction{restart(5 * time.Second), restart(30 * time.Second), restart(time.Minute)}, 24*60*60)},
		{"have it restarted when it says that it failed", "run: sc.exe failureflag " + s.Name + " 1", service.SetRecoveryActionsOnNonCrashFailures(true)},
		{"register its events", "do nothing: events are shown all the same, with a remark", installEvents(s.Display)},
	} {
		if e.err != nil {
			warnings = append(warnings, &sft.Error{Code: sft.Unavailable, Msg: e.what + ": " + e.err.Error(), Err: e.err, Hint: e.do})
		}
	}
	return warnings
}

// Uninstall stops the service, waits for its end, and removes it. What it keeps
// on disk stays. A service that is not there is no error.
func Uninstall(ctx context.Context, s Spec) error {
	m, err := connect()
	if err != nil {
		return err
	}
	defer m.Disconnect()
	service, err := m.OpenService(s.Name)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		return removeEvents(s.Display)
	}
	if err != nil {
		return fmt.Errorf("open the service %s: %w", s.Name, err)
	}
	defer service.Close()
	if err := stopped(ctx, service); err != nil {
		return err
	}
	if err := service.Delete(); err != nil && !errors.Is(err, windows.ERROR_SERVICE_MARKED_FOR_DELETE) {
		return fmt.Errorf("remove the service %s: %w", s.Name, err)
	}
	return removeEvents(s.Display)
}

// stopped stops the service and waits until it has.
func stopped(ctx context.Context, service *mgr.Service) error {
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	st, err := service.Control(svc.Stop)
	for {
		if errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) {
			return nil
		}
		if err == nil && st.State == svc.Stopped {
			return nil
		}
		select {
		case <-ctx.Done():
			return &sft.Error{Code: sft.Unavailable, Msg: "the service " + service.Name + " does not stop", Err: err, Hint: "look at its log; end sftd.exe in Task Manager, then run it again"}
		case <-time.After(200 * time.Millisecond):
		}
		if st, err = service.Query(); err == nil && st.State == svc.Running { // it was starting when it was told first
			st, err = service.Control(svc.Stop)
		}
	}
}

// InstalledState says how the service is, in words, for people.
func InstalledState(name string) (string, error) {
	h, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT) // anybody may ask
	if err != nil {
		return "", fmt.Errorf("reach the service control manager: %w", err)
	}
	defer windows.CloseServiceHandle(h)
	n, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return "", err
	}
	s, err := windows.OpenService(h, n, windows.SERVICE_QUERY_STATUS)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		return "not installed", nil
	}
	if err != nil {
		return "", fmt.Errorf("open the service %s: %w", name, err)
	}
	defer windows.CloseServiceHandle(s)
	var st windows.SERVICE_STATUS
	if err := windows.QueryServiceStatus(s, &st); err != nil {
		return "", fmt.Errorf("ask for the service %s: %w", name, err)
	}
	switch svc.State(st.CurrentState) {
	case svc.Stopped:
		return "installed, stopped", nil
	case svc.StartPending:
		return "installed, starting", nil
	case svc.StopPending:
		return "installed, stopping", nil
	}
	return "installed, running", nil
}

func installEvents(source string) error {
	err := eventlog.InstallAsEventCreate(source, eventlog.Info|eventlog.Warning|eventlog.Error)
	if err != nil && eventsInstalled(source) {
		return nil
	}
	return err
}

// OpenEvents opens the Application log of Windows under a source's name.
func OpenEvents(source string) (EventLog, error) {
	l, err := eventlog.Open(source)
	if err != nil {
		return nil, fmt.Errorf("open the event log: %w", err)
	}
	return events{l}, nil
}

type events struct{ l *eventlog.Log }

// Write uses one number for each level: EventCreate.exe has a text for each
// number up to 1000, which is the event's own.
func (e events) Write(level slog.Level, text string) {
	switch {
	case level >= slog.LevelError:
		_ = e.l.Error(3, text)
	case level >= slog.LevelWarn:
		_ = e.l.Warning(2, text)
	default:
		_ = e.l.Info(1, text)
	}
}
