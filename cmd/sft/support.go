package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/client"
	"sft/internal/conf"
	"sft/internal/doctor"
	"sft/internal/launch"
)

func (p *program) support() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "support",
		Short: "Collect what somebody needs who helps you",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.supportCollect())
	cmd.Commands()[0].DisableFlagsInUseLine = true
	return cmd
}

func (p *program) supportCollect() *cobra.Command {
	var server string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "collect [--server SERVER] [--json] [FILE]",
		Short: "Write an archive for somebody who helps you",
		Long: `Collect writes a ZIP archive, which only you can read, of what somebody needs to
help you, and prints what is in it: versions, settings, enrolments, what "sft
doctor" says, and which files there are. Keys, passwords and the values of
variables are not in it, and sft keeps no logs. Names are: of you, your teams,
this machine and, with --server, that server. Nothing is sent anywhere.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			now := time.Now()
			file := "sft-support-" + now.Format("20060102-150405") + ".zip"
			if len(args) == 1 {
				file = args[0]
			}
			if server != "" {
				if err := sft.CheckTarget(server); err != nil {
					return err
				}
			}
			if _, err := os.Lstat(file); err == nil {
				return &sft.Error{Code: sft.Exists, Msg: file + " is there already", Hint: "name another file"}
			}
			files, secrets, err := p.collect(cmd.Context(), server, now)
			if err != nil {
				return err
			}
			f, err := conf.CreateSecret(file)
			if err != nil {
				return err
			}
			defer f.Discard()
			if err := client.WriteSupport(f, now, files, secrets); err != nil {
				return err
			}
			if err := f.Commit(); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(p.out, map[string]any{"file": file, "contents": files})
			}
			fmt.Fprintln(p.out, file)
			for _, f := range files {
				if _, err := fmt.Fprintf(p.out, "  %-14s  %s\n", f.Name, f.About); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&server, "server", "", "look at the way to this server, too")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	if err := cmd.RegisterFlagCompletionFunc("server", p.completeServers); err != nil {
		panic("sft: " + err.Error()) // our own flag: cannot happen
	}
	return cmd
}

// variables are those that change what sft does. It is told which are set, and
// not to what.
var variables = []string{"SFT_TEAM", "SFT_DEBUG", "SFT_NO_BROWSER", "SFT_KEYRING", "SFT_TIMING", "BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "XDG_SESSION_TYPE",
	"XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK", "SSH_CONNECTION", "HTTPS_PROXY", "https_proxy",
	"HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "LANG"}

// collect makes the files of the archive, and says what must not be in them.
// What cannot be read is told, and is no reason to stop: that may be why
// somebody needs help.
func (p *program) collect(ctx context.Context, server string, now time.Time) (files []client.SupportFile, secrets []string, err error) {
	var errs []error
	add := func(name, about string, v any) {
		f, err := client.NewSupportFile(name, about, v)
		files, errs = append(files, f), append(errs, err)
	}
	set := slices.DeleteFunc(slices.Clone(variables), func(v string) bool { return p.getenv(v) == "" })
	facts := map[string]any{"sft": sft.Version, "go": runtime.Version(), "system": system(), "machine": runtime.GOOS + "/" + runtime.GOARCH,
		"time": now.Format(time.RFC3339), "screen": launch.HasScreen(p.getenv), "terminal": isTerminal(p.in), "variables_set": set, "device": device()}
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			if strings.HasPrefix(s.Key, "vcs.") {
				facts[s.Key] = s.Value
			}
		}
	}
	add("facts.json", "versions, system, and which variables are set", facts)

	paths, pathErr := p.paths()
	settings, readErr := readSettings(paths.Config)
	shown := map[string]string{}
	for _, k := range allSettings {
		shown[k.key] = toldSetting(k, k.get(&settings))
	}
	if err := errors.Join(pathErr, readErr); err != nil {
		// The message may quote the file.
		shown = map[string]string{"problem": "not readable; the defaults are in force: see \"settings\" in doctor.json"}
	}
	add("settings.json", "settings, without a proxy's password and the arguments of an RDP client", shown)

	accounts := any("unknown, since it is not known where they are")
	if pathErr == nil {
		accounts = p.toldAccounts(paths.State)
		add("files.json", "names, sizes and times of sft's files, and nothing of what is in them", []any{client.SupportFolder(paths.State), client.SupportFolder(paths.Runtime)})
	}
	add("accounts.json", "enrolments: teams, users, platforms, sign-ins", accounts)

	checks := []doctor.Check{}
	p.examine(ctx, server, func(c doctor.Check) {
		if c.Step == "settings" && c.Verdict == doctor.Fail {
			c.Found = unquoted.ReplaceAllString(c.Found, "…") // a value may be in it
		}
		checks = append(checks, c)
	})
	add("doctor.json", "what \"sft doctor\" says", checks)
	return files, client.SupportSecrets(os.Environ(), settings.Network.ForwardProxy), errors.Join(errs...)
}

// unquoted finds what a message about settings quotes of them.
var unquoted = regexp.MustCompile(`"(\\.|[^"\\])*"|not readable as YAML: [^;]*`)

// toldAccounts is what may be told of the accounts in a folder.
func (p *program) toldAccounts(dir string) any {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return client.SupportAccounts(nil)
	}
	store, err := client.OpenStore(dir, client.Ring(p.getenv("SFT_KEYRING")), p.getenv)
	if err != nil {
		return "not readable: see doctor.json"
	}
	list, err := store.Accounts()
	if err != nil {
		return "not readable: see doctor.json"
	}
	return client.SupportAccounts(list)
}

// toldSetting is what may be told of a setting.
func toldSetting(k setting, v string) string {
	switch k.key {
	case "network.forward_proxy":
		if u, err := url.Parse(v); err == nil {
			return u.Redacted()
		}
		return "unreadable"
	case "rdp.client":
		if words := strings.Fields(v); len(words) > 1 {
			return words[0] + " …"
		}
	}
	return v
}
