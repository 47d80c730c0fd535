// Sft-platform decides who may go where, and issues the credentials for it.
//
// The program's voice, as in the other two: an answer goes to standard
// output, all else to standard error; what fails is said as "sft-platform:
// MESSAGE" and, on the next line, what to do, as "sft-platform: hint: HINT".
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/conf"
	"sft/internal/platform"
)

func main() { os.Exit(run(os.Args[1:])) }

// prefix is what the names of all variables begin with.
const prefix = "SFT_PLATFORM"

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
SFT_PLATFORM_LISTEN, and so on; and each flag of serve as a key of a YAML file,
"listen: :8443". A flag wins over a variable, a variable over the file. What is
for one call, as --force, --before and --json are, is a flag alone. What is in
force is printed by "sft-platform serve --print-config".

EXIT STATUS
  0  done
  1  failed
  2  wrong usage`,
	}
	var s settings
	serve := serveCommand(&s)
	s.Options = conf.Options{Prefix: prefix, Flags: serve.Flags()}
	root.PersistentFlags().StringVar(&s.file, "config", conf.PlatformPaths().Config, "file of settings")
	conf.NotInFile(root.PersistentFlags(), "config")
	root.SetArgs(args)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage{err} })
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(initCommand(), serve, firstUseCommand(), serviceKeyCommand(), auditCommand(), policyCommand(), rotateCommand(), backupCommand(), restoreCommand(), doctorCommand(&s), versionCommand())
	for _, c := range below(root) {
		args := c.Args
		if c.PreRunE == nil {
			c.PreRunE = func(cmd *cobra.Command, _ []string) error { return s.fill(cmd) }
		}
		c.Args = func(cmd *cobra.Command, a []string) error {
			err := args(cmd, a)
			if err == nil || cmd.HasSubCommands() {
				return asUsage(err)
			}
			msg := "there is no argument"
			switch {
			case strings.HasPrefix(err.Error(), "unknown command"): // cobra's word for the first of what takes none
				msg = sft.Quote(a[0]) + " is no part of this command"
			case len(a) > 0:
				msg = fmt.Sprintf("arguments: %d, which is another number than this command takes", len(a))
			}
			return usage{&sft.Error{Code: sft.Invalid, Msg: msg, Hint: call(cmd)}}
		}
	}
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return sft.ExitDone
	}
	if _, ok := errors.AsType[told](err); ok {
		return sft.ExitFailed
	}
	fmt.Fprintln(os.Stderr, "sft-platform:", err)
	_, wrong := errors.AsType[usage](err)
	wrong = wrong || strings.HasPrefix(err.Error(), "unknown command")
	hint := whatToDo(err)
	if wrong && hint == "" {
		hint = "see \"" + cmd.CommandPath() + " --help\""
	}
	if hint != "" {
		fmt.Fprintln(os.Stderr, "sft-platform: hint:", hint)
	}
	if wrong {
		return sft.ExitUsage
	}
	return sft.ExitFailed
}

// call says how a command is called.
func call(cmd *cobra.Command) string {
	return fmt.Sprintf("run %q; see \"%s --help\"", strings.TrimSuffix(cmd.UseLine(), " [flags]"), cmd.CommandPath())
}

// whatToDo is the hint of an error: its own, or that of what the system or the
// database has said. What has been worded in one line with what to do has none.
func whatToDo(err error) string {
	if e, ok := errors.AsType[*sft.Error](err); ok && e.Hint != "" {
		return e.Hint
	}
	text := err.Error()
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "stop what has the address (\"ss -ltnp\" tells), or give another one"
	case errors.Is(err, syscall.ENOSPC), strings.Contains(text, "database or disk is full"):
		return "make room, or name a place on another disk"
	case errors.Is(err, syscall.EROFS), strings.Contains(text, "readonly database"):
		return "have the file system mounted for writing, and the files owned by the account that the platform runs as"
	case errors.Is(err, fs.ErrPermission), strings.Contains(text, "unable to open database file"):
		return "run this as the account that the platform runs as, as in \"sudo -u sft-platform sft-platform …\", and see that it may use the file"
	case errors.Is(err, fs.ErrNotExist):
		return "check the path"
	case strings.HasPrefix(text, "open database: the database is neither"):
		return "give --database as sqlite:PATH or postgres://USER@HOST/NAME"
	case strings.Contains(text, "open database: "):
		return "check --database, and that PostgreSQL runs and lets this account in"
	}
	return ""
}

// A usage error is the caller's: the exit status tells.
type usage struct{ error }

func (u usage) Unwrap() error { return u.error }

func asUsage(err error) error {
	if err == nil {
		return nil
	}
	return usage{err}
}

func versionCommand() *cobra.Command {
	nothing := func(*cobra.Command, []string) error { return nil } // whatever the settings are
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, PreRunE: nothing, Run: func(cmd *cobra.Command, _ []string) {
		fmt.Fprintln(cmd.OutOrStdout(), "sft-platform", sft.Version)
	}}
}

// writeJSON prints an answer for programs.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// withPlatform runs f on the platform that init made.
func withPlatform(cmd *cobra.Command, d data, f func(*platform.Platform, io.Writer) error) error {
	p, err := d.open(cmd.Context(), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer p.DB.Close()
	return f(p, cmd.OutOrStdout())
}

// below are the commands under c, at any depth.
func below(c *cobra.Command) (list []*cobra.Command) {
	for _, sub := range c.Commands() {
		list = append(append(list, sub), below(sub)...)
	}
	return list
}
