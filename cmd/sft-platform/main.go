// Sft-platform decides who may go where, and issues the credentials for it.
//
// The program's voice, as in the other two: an answer goes to standard
// output, all else to standard error; what fails is said as "sft-platform:
// MESSAGE" and, on the next line, what to do, as "sft-platform: hint: HINT".
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sft"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:           "sft-platform",
		Short:         "The control plane: users, projects, policy, credentials",
		SilenceErrors: true,
		SilenceUsage:  true,
		Long: `Sft-platform decides who may reach which server, and issues the short-lived
credentials for it. It keeps its records in SQLite, or PostgreSQL.

Each flag can also be given as a variable of the environment: --listen as
SFT_PLATFORM_LISTEN, and so on. A flag wins over its variable.

EXIT STATUS
  0  done
  1  failed
  2  wrong usage`,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return fromEnv(cmd.Flags()) },
	}
	root.SetArgs(args)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage{err} })
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(initCommand(), serveCommand(), firstUseCommand(), auditCommand(), versionCommand())
	for _, c := range append(root.Commands(), auditCommands(root)...) {
		args := c.Args
		c.Args = func(cmd *cobra.Command, a []string) error {
			if err := args(cmd, a); err != nil {
				return usage{err}
			}
			return nil
		}
	}
	err := root.ExecuteContext(ctx)
	if err == nil {
		return sft.ExitDone
	}
	fmt.Fprintln(os.Stderr, "sft-platform:", err)
	if e, ok := errors.AsType[*sft.Error](err); ok && e.Hint != "" {
		fmt.Fprintln(os.Stderr, "sft-platform: hint:", e.Hint)
	}
	if _, ok := errors.AsType[usage](err); ok || strings.HasPrefix(err.Error(), "unknown command") {
		fmt.Fprintln(os.Stderr, "sft-platform: hint: see \"sft-platform --help\"")
		return sft.ExitUsage
	}
	return sft.ExitFailed
}

// A usage error is the caller's: the exit status tells.
type usage struct{ error }

// fromEnv sets the flags that were not given from the environment.
func fromEnv(flags *pflag.FlagSet) (err error) {
	flags.VisitAll(func(f *pflag.Flag) {
		name := "SFT_PLATFORM_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v, ok := os.LookupEnv(name); ok && !f.Changed && err == nil {
			if e := flags.Set(f.Name, v); e != nil {
				err = usage{fmt.Errorf("%s: %w", name, e)}
			}
		}
	})
	return err
}

func versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, Run: func(cmd *cobra.Command, _ []string) {
		fmt.Fprintln(cmd.OutOrStdout(), "sft-platform", sft.Version)
	}}
}
