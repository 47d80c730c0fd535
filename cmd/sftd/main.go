// Sftd is the agent: it makes the local accounts that should exist on a host,
// and runs the Access Broker that lets people in.
//
// The program's voice, as in the other two: an answer goes to standard
// output, all else to standard error; what fails is said as "sftd: MESSAGE"
// and, on the next line, what to do, as "sftd: hint: HINT".
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/agent"
	"sft/internal/api"
	"sft/internal/conf"
)

func main() {
	// Before anything else: the broker gives its rights up.
	if len(os.Args) == 2 && os.Args[1] == "broker" {
		os.Exit(runBroker())
	}
	os.Exit(run(os.Args[1:]))
}

// A usage error is the caller's: the exit status tells.
type usage struct{ error }

// options are the flags that all commands share.
type options struct {
	file  string
	named bool
	debug bool
}

func (o *options) config() (agent.Config, error) { return agent.ReadConfig(o.file, o.named) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	var syslog, deviceInfo bool
	root := &cobra.Command{
		Use:   "sftd",
		Short: "The agent: local accounts and the Access Broker",
		Long: `Sftd enrols this host with the platform, keeps its local accounts as the
platform wants them, and runs the Access Broker. ` + helpOfHost + `

EXIT STATUS
  0  done
  1  failed
  2  wrong usage or configuration`,
		Args:          cobra.NoArgs,
		Version:       sft.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			o.named = cmd.Flags().Changed("conf")
			if os.Getenv("SFT_DEBUG") != "" {
				o.debug = true
			}
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !deviceInfo {
				return runAlone(cmd.Context(), &o, syslog)
			}
			c, err := o.config()
			if err != nil {
				return usage{err}
			}
			f, err := agent.DeviceInfo(c)
			if err != nil {
				return err
			}
			e := json.NewEncoder(cmd.OutOrStdout())
			e.SetIndent("", "  ")
			return e.Encode(f)
		},
	}
	root.SetArgs(args)
	root.SetVersionTemplate("sftd {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage{err} })
	root.CompletionOptions.DisableDefaultCmd = true
	p := root.PersistentFlags()
	p.StringVar(&o.file, "conf", conf.AgentPaths().Config, "configuration file")
	p.BoolVar(&o.debug, "debug", false, "log everything but secrets (also: SFT_DEBUG)")
	root.Flags().BoolVar(&syslog, "syslog", false, "log without times, for a journal or syslog that has its own")
	root.Flags().BoolVar(&deviceInfo, "debug-device-info", false, "print what would be reported to the platform, and exit")
	root.AddCommand(statusCommand(&o), lockCommand(&o))
	root.AddCommand(commandsOfHost(&o)...)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return sft.ExitDone
	}
	fmt.Fprintln(os.Stderr, "sftd:", err)
	if e, ok := errors.AsType[*sft.Error](err); ok && e.Hint != "" {
		fmt.Fprintln(os.Stderr, "sftd: hint:", e.Hint)
	}
	if u, ok := errors.AsType[usage](err); ok || strings.HasPrefix(err.Error(), "unknown command") {
		if _, ok := errors.AsType[*sft.Error](u.error); !ok {
			fmt.Fprintln(os.Stderr, "sftd: hint: see \""+cmd.CommandPath()+" --help\"")
		}
		return sft.ExitUsage
	}
	return sft.ExitFailed
}

// Unwrap lets the hint of a configuration's error be found.
func (u usage) Unwrap() error { return u.error }

// level is how much of the log is kept.
func level(c agent.Config, debug bool) slog.Level {
	if debug {
		return slog.LevelDebug
	}
	l, _ := c.Level() // checked by ReadConfig
	return l
}

// serve is the agent, until ctx ends. watch, if not nil, runs beside it.
func serve(ctx context.Context, c agent.Config, log *slog.Logger, ready func() error, watch func(context.Context, *agent.Agent)) error {
	beThrifty()
	var a *agent.Agent
	a, err := agent.New(c, log, backend(c, func(login string) { a.PasswordReset(login) }), &api.Clock{})
	if err != nil {
		return err
	}
	log.Info("sftd starts", "version", sft.Version)
	if watch != nil {
		go watch(ctx, a)
	}
	err = a.Run(ctx, func() {
		if err := ready(); err != nil {
			log.Warn("tell the service manager", "error", err)
		}
	})
	log.Info("sftd has stopped")
	return err
}

func statusCommand(o *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the agent on this host is",
		Long: `Status shows what the agent last wrote of itself: enrolment, platform, broker,
sessions, accounts, and what is wrong, each with what to do.

EXIT STATUS
  0  running, and nothing is wrong
  1  not running, not enrolled, or something is wrong
  2  wrong usage or configuration`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.config()
			if err != nil {
				return usage{err}
			}
			s, err := agent.ReadStatus(c)
			if err != nil {
				return err
			}
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(s)
			} else {
				s.Print(cmd.OutOrStdout())
			}
			if err != nil {
				return err
			}
			if !s.Running() {
				return &sft.Error{Code: sft.Unavailable, Msg: "sftd is not running", Hint: notRunning()}
			}
			switch n := len(s.Problems); n {
			case 0:
				if s.ServerID == "" {
					return &sft.Error{Code: sft.SignIn, Msg: "this host is not enrolled yet", Hint: "look again in a moment"}
				}
				return nil
			case 1:
				return errors.New("1 problem")
			default:
				return fmt.Errorf("%d problems", n)
			}
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

func lockCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "lock-accounts",
		Short: "Shut every account that sftd made",
		Long: `Lock-accounts takes the password of every account that sftd made. The service
manager runs it when sftd has ended, however it did, so that no account is
left open without an agent.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.config()
			if err != nil {
				c = agent.Defaults() // a broken file is no reason to leave accounts open
			}
			return agent.LockAccounts(cmd.Context(), c, backend(c, func(string) {}))
		},
	}
}
