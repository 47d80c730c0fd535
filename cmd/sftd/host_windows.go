package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/windows"

	"sft"
	"sft/internal/accounts"
	"sft/internal/agent"
	"sft/internal/conf"
	"sft/internal/daemon"
)

const helpOfHost = `It runs as a service of
Windows, by the name scaleft-server-tools.

A host enrols by a token in enrollment.token, in the folder of sftd.yaml, which
has the settings; without that file all have their defaults. The logs are in
Logs, in the same folder.`

// spec is the service as Windows knows it.
func spec(program string) daemon.Spec {
	return daemon.Spec{Name: "scaleft-server-tools", Display: "ScaleFT Server Tools",
		Description: "Makes the local accounts that should exist on this server, and lets people in by RDP without a standing password.",
		Program:     program, Args: []string{"service", "run"}}
}

func backend(c agent.Config, onReset func(login string)) accounts.Backend {
	return accounts.NewWindows(c.StateDir(), onReset)
}

// notRunning says what to do about an agent that does not run.
func notRunning() string {
	st, err := daemon.InstalledState(spec("").Name)
	if err != nil {
		st = ""
	}
	return startHint(st, spec("").Name)
}

// runAlone is sftd without a command: somebody in a console, who wants to know.
func runAlone(context.Context, *options, bool) error {
	return &sft.Error{Code: sft.Invalid, Msg: "sftd runs as a service of Windows", Hint: notRunning()}
}

func commandsOfHost(o *options) []*cobra.Command {
	service := &cobra.Command{Use: "service", Short: "What Windows itself runs", Args: cobra.NoArgs, Hidden: true}
	service.AddCommand(&cobra.Command{
		Use:   "run",
		Short: "Run as the service that Windows has started",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runService(cmd.Context(), o) },
	})
	return []*cobra.Command{service, installCommand(), uninstallCommand()}
}

func installCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "install",
		Short: "Make this program a service of Windows",
		Long: `Install makes this program, where it is, the service scaleft-server-tools. It
starts with Windows, as LocalSystem, and is started again when it fails. A
service of that name is changed to be this program. Nothing is started.

The installer does the same; this is for servers that it cannot be used on.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := wordSize(); err != nil {
				return err
			}
			program, err := os.Executable()
			if err != nil {
				return err
			}
			if program, err = filepath.Abs(program); err != nil {
				return err
			}
			if err := conf.CheckProgram(program); err != nil {
				return err
			}
			warnings, err := daemon.Install(spec(program))
			if err != nil {
				return err
			}
			for _, w := range warnings {
				fmt.Fprintln(os.Stderr, "sftd: warning:", sft.Explain(w))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Installed. Start it: net start %s\n", spec("").Name)
			return nil
		},
	}
}

func uninstallCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "uninstall",
		Short: "Stop the service and remove it",
		Long: `Uninstall stops the service scaleft-server-tools and removes it. What it keeps
on disk stays, and so do the accounts that it made: they are shut.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := daemon.Uninstall(cmd.Context(), spec("")); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Removed. Its files are still in", conf.AgentPaths().State)
			return nil
		},
	}
}

// wordSize refuses a program or a Windows of 32 bits.
func wordSize() error {
	var process, native uint16
	if err := windows.IsWow64Process2(windows.CurrentProcess(), &process, &native); err != nil {
		process, native = 0, 0 // older than what can be asked
	}
	return checkWords(32<<(^uint(0)>>63), native)
}

// deaf lets no signal end what runs by ctx. Windows tells a service of each
// person who signs out, whoever it is (CTRL_LOGOFF_EVENT: Microsoft,
// "HandlerRoutine"), and Go makes SIGTERM of that. The service manager has a way
// of its own to end a service.
func deaf(ctx context.Context) context.Context {
	signal.Reset(os.Interrupt, syscall.SIGTERM)
	return context.WithoutCancel(ctx)
}

// runService is the service, as Windows starts it: "sftd service run". There
// is no console: what goes wrong before there is a log goes to the events of
// Windows.
func runService(ctx context.Context, o *options) error {
	ctx = deaf(ctx)
	events, err := daemon.OpenEvents(spec("").Display)
	if err != nil {
		events = nowhere{}
	}
	err = daemon.Run(ctx, spec("").Name, func(ctx context.Context, ready func() error, changes <-chan daemon.SessionChange) error {
		err := serveHere(ctx, o, events, ready, changes)
		if err != nil {
			events.Write(slog.LevelError, "sftd ends: "+sft.Explain(err))
		}
		return err
	})
	return err
}

func serveHere(ctx context.Context, o *options, events daemon.EventLog, ready func() error, changes <-chan daemon.SessionChange) error {
	if err := wordSize(); err != nil {
		return err
	}
	paths := conf.AgentPaths()
	// Before a file in it is believed.
	if err := conf.ServiceDir(paths.State); err != nil {
		return err
	}
	file := &conf.LogFile{Path: filepath.Join(paths.Logs, "sftd.log"), Size: conf.LogSize, Keep: conf.LogKeep}
	defer file.Close()
	var keep slog.LevelVar
	log := slog.New(daemon.Tee(slog.NewTextHandler(file, &slog.HandlerOptions{Level: &keep}), events))
	err := func() error {
		c, err := o.config()
		if err != nil {
			return err
		}
		keep.Set(level(c, o.debug))
		program, err := os.Executable()
		if err != nil {
			return err
		}
		for _, w := range daemon.Settle(spec(program)) {
			log.Warn("set up the service", "error", sft.Explain(w))
		}
		return serve(ctx, c, log, func() error {
			events.Write(slog.LevelInfo, "sftd "+sft.Version+" is running")
			return ready()
		}, func(ctx context.Context, a *agent.Agent) {
			for {
				select {
				case c := <-changes:
					if c != daemon.SessionLock {
						continue
					}
					if err := a.DesktopLocked(); err != nil {
						log.Warn("a desktop was locked", "error", err)
					}
				case <-ctx.Done():
					return
				}
			}
		})
	}()
	if err != nil {
		fmt.Fprintf(file, "level=ERROR msg=\"sftd ends\" error=%q\n", sft.Explain(err))
		return err
	}
	events.Write(slog.LevelInfo, "sftd has stopped")
	return nil
}

// nowhere is the log of events of a system that has none.
type nowhere struct{}

func (nowhere) Write(slog.Level, string) {}
