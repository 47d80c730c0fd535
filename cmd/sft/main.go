// Command sft is the client: it enrols this machine with a platform, signs its
// person in, and opens desktops and shells on servers.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/api"
	"sft/internal/client"
	"sft/internal/conf"
	"sft/internal/launch"
)

func main() { os.Exit(run()) }

// exitInterrupted is added to the number of the signal that ended a command.
const exitInterrupted = 128

func run() int {
	p := &program{getenv: os.Getenv, in: os.Stdin, out: os.Stdout, voice: &voice{err: os.Stderr, tty: isTerminal(os.Stderr)}}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		s := <-signals
		cancel(interrupted{s})
		signal.Stop(signals) // a second one ends us at once
	}()
	return p.exit(ctx, p.run(ctx, os.Args[1:]))
}

// interrupted is the cause of a context that a signal ended.
type interrupted struct{ os.Signal }

func (i interrupted) Error() string { return "interrupted" }

// usage marks an error of the command line.
type usage struct{ error }

// silent is a failure that has been told, or need not be.
type silent struct{ error }

// exit says what went wrong and returns the exit status.
func (p *program) exit(ctx context.Context, err error) int {
	if err == nil {
		return sft.ExitDone
	}
	_, ran := errors.AsType[status](err)
	if i, ok := errors.AsType[interrupted](context.Cause(ctx)); ok && !ran && (errors.Is(err, context.Canceled) || err == context.Cause(ctx)) {
		p.voice.say("interrupted")
		if n, ok := i.Signal.(syscall.Signal); ok {
			return exitInterrupted + int(n)
		}
		return sft.ExitFailed
	}
	if s, ok := errors.AsType[status](err); ok {
		return int(s)
	}
	if s, ok := errors.AsType[silent](err); ok {
		return sft.CodeOf(s.error).Info().Exit
	}
	if u, ok := errors.AsType[usage](err); ok {
		p.voice.fail(u.error)
		return sft.ExitUsage
	}
	p.voice.fail(err)
	return sft.CodeOf(err).Info().Exit
}

// A program is one run of sft: its surroundings and its global flags.
type program struct {
	getenv func(string) string
	in     io.Reader
	out    io.Writer
	voice  *voice

	team   string
	config string
	debug  bool

	began bool // the command line was understood
}

func (p *program) run(ctx context.Context, args []string) error {
	root := p.command()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil && !p.began {
		if u, ok := errors.AsType[usage](err); ok {
			return u
		}
		return usage{&sft.Error{Code: sft.Invalid, Msg: err.Error(), Hint: "run \"sft help\" to see what there is"}}
	}
	return err
}

// exitText is the end of every help text.
func exitText() string {
	var b strings.Builder
	b.WriteString("\nEXIT STATUS\n")
	for _, e := range []struct {
		n    int
		text string
	}{
		{sft.ExitDone, "done"}, {sft.ExitFailed, "failed"}, {sft.ExitUsage, "wrong usage"}, {sft.ExitSignIn, "sign-in needed"},
		{sft.ExitDenied, "denied"}, {sft.ExitNotFound, "no such server, or ambiguous"}, {sft.ExitUnreachable, "unreachable"},
	} {
		fmt.Fprintf(&b, "  %d  %s\n", e.n, e.text)
	}
	return b.String()
}

func (p *program) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "sft",
		Short: "Open desktops and shells on servers, signed in",
		Long: `Sft opens desktops and shells on servers, signed in as yourself, without a
password:

  sft enroll --url URL     once: make this machine yours
  sft rdp SERVER           from then on
  sft ssh SERVER`,
		Version:       sft.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRun: func(*cobra.Command, []string) {
			p.began = true
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetOut(p.out)
	root.SetErr(p.voice.err)
	root.SetVersionTemplate("sft {{.Version}}\n")
	root.SetHelpTemplate(`{{with (or .Long .Short)}}{{. | trimTrailingWhitespaces}}

{{end}}{{if or .Runnable .HasSubCommands}}{{.UsageString}}{{end}}` + exitText())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage{&sft.Error{Code: sft.Invalid, Msg: err.Error(), Hint: "run \"" + cmd.CommandPath() + " --help\" to see its flags"}}
	})
	f := root.PersistentFlags()
	f.StringVar(&p.team, "team", p.getenv("SFT_TEAM"), "the team to use (default: SFT_TEAM, or as \"sft use\" says)")
	f.Lookup("team").DefValue = ""
	f.StringVar(&p.config, "config-file", "", "file of settings (default: as \"sft config --help\" says)")
	f.BoolVar(&p.debug, "debug", p.getenv("SFT_DEBUG") != "", "say more of what happens, on standard error")
	f.Lookup("debug").DefValue = "false"
	root.Flags().BoolP("version", "v", false, "print the version")
	root.AddCommand(
		p.enroll(), p.unenroll(), p.login(), p.logout(), p.use(), p.listAccounts(),
		p.listServers(), p.listProjects(), p.resolve(), p.rdp(),
		p.ssh(), p.proxycommand(), p.sshConfig(),
		p.settings(), p.doctor(), p.support(), p.deviceInfo(), p.registerURLHandler(), p.openURL(), p.completion(root), p.version(),
	)
	root.SetHelpCommandGroupID("")
	for _, c := range append(root.Commands(), root) {
		c.DisableFlagsInUseLine = true
	}
	return root
}

func (p *program) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(p.out, "sft "+sft.Version)
			return err
		},
	}
}

func (p *program) log() *slog.Logger {
	level := slog.LevelWarn
	if p.debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(p.voice.err, &slog.HandlerOptions{Level: level}))
}

func (p *program) paths() (conf.Client, error) {
	paths, err := conf.ClientPaths(p.getenv)
	if p.config != "" {
		paths.Config = p.config
	}
	return paths, err
}

// open returns the device, ready to ask its person as the settings allow.
func (p *program) open(ask client.Asking) (*client.Device, error) {
	paths, err := p.paths()
	if err != nil {
		return nil, err
	}
	set, err := readSettings(paths.Config)
	if err != nil {
		return nil, err
	}
	store, err := client.OpenStore(paths.State, client.Ring(p.getenv("SFT_KEYRING")), p.getenv)
	if err != nil {
		return nil, err
	}
	d := &client.Device{Store: store, Info: device(), Ask: set.asking(ask), Log: p.log(), Say: p.voice.say,
		Open:    func(url string) error { return launch.Browser(p.getenv("BROWSER"), url) },
		Timeout: set.timeout()}
	if set.Network.ForwardProxy != "" {
		if d.Proxy, err = url.Parse(set.Network.ForwardProxy); err != nil {
			return nil, err // checked when it was read
		}
	}
	return d, nil
}

// session opens the account that the person means.
func (p *program) session(ctx context.Context, ask client.Asking) (*client.Session, error) {
	d, err := p.open(ask)
	if err != nil {
		return nil, err
	}
	return d.SessionOf(ctx, p.team)
}

// quietly is how a command whose purpose is not to sign in may ask for it: at
// a terminal, and unless SFT_NO_BROWSER is set.
func (p *program) quietly() client.Asking {
	if p.getenv("SFT_NO_BROWSER") != "" || !isTerminal(p.in) {
		return client.Never
	}
	return p.browserOrCode()
}

// openly is how a command whose purpose is to sign in may ask for it. A
// person who says that there is no browser gets a code; one who names a
// browser gets that, with a terminal or without.
func (p *program) openly(noBrowser bool) client.Asking {
	switch {
	case noBrowser || p.getenv("SFT_NO_BROWSER") != "":
		return client.ByCode
	case p.getenv("BROWSER") != "":
		return client.InBrowser
	case !isTerminal(p.in):
		return client.Never
	}
	return p.browserOrCode()
}

func (p *program) browserOrCode() client.Asking {
	if p.getenv("BROWSER") != "" || launch.HasScreen(p.getenv) {
		return client.InBrowser
	}
	return client.ByCode
}

// device is what this machine says of itself.
func device() api.DeviceInfo {
	host, err := os.Hostname()
	if err != nil || sft.CheckHostname(host) != nil {
		host = "unknown"
	}
	return api.DeviceInfo{Hostname: host, OS: runtime.GOOS, Version: sft.Version}
}

// left says how long a sign-in lasts.
func left(until time.Time) string {
	d := time.Until(until).Truncate(time.Minute)
	switch {
	case until.IsZero():
		return "signed out"
	case d <= 0:
		return "expired"
	}
	return fmt.Sprintf("%dh%02dm left", int(d.Hours()), int(d.Minutes())%60)
}
