package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"sft/internal/api"
	"sft/internal/conf"
	"sft/internal/platform"
)

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Look at who may reach what", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		return usage{errors.New("say what to look at, as in \"sft-platform policy explain USER SERVER\"")}
	}}
	cmd.AddCommand(explainCommand())
	return cmd
}

func explainCommand() *cobra.Command {
	var d data
	var team, service string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain USER SERVER",
		Short: "Say whether a user gets into a server, by which grant, and what is missing",
		Long: `Explain says what a user is to a server, step by step: what the platform would
look at if they connected now, and what it would answer. Nothing is issued. The
server may be named by its id, one of its names, or PROJECT/NAME.

It needs the data folder and no sign-in, and works while serve runs. Run it as
the account that the platform runs as. The same is in the API, for those who may
ask: GET .../projects/PROJECT/servers/ID/access?user=USER.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withPlatform(cmd, d, func(p *platform.Platform, w io.Writer) error {
				v, err := p.AccessOf(cmd.Context(), team, args[0], args[1], service)
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(w, v)
				}
				return printAccess(w, v)
			})
		},
	}
	d.flags(cmd)
	cmd.Flags().StringVar(&team, "team", "", "the user's team (default: the first one)")
	cmd.Flags().StringVar(&service, "service", "rdp", "how they would come: rdp or ssh")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	conf.NotSetting(cmd.Flags(), "json")
	return cmd
}

func printAccess(w io.Writer, v api.Access) error {
	var b strings.Builder
	for _, s := range v.Steps {
		mark := "yes"
		if !s.OK {
			mark = "no "
		}
		fmt.Fprintf(&b, "%s  %-16s %s\n", mark, s.Rule, s.Text)
		if s.Hint != "" {
			fmt.Fprintf(&b, "     %-16s %s\n", "", s.Hint)
		}
	}
	answer := "has no access"
	switch {
	case v.Credentials:
		answer = "gets in by " + v.Service
	case v.Access:
		answer = "has access, and would not get in by " + v.Service + " now"
	}
	fmt.Fprintf(&b, "%s %s: %s/%s", v.User, answer, v.Project, v.Server)
	if v.Missing != "" {
		fmt.Fprintf(&b, " (missing: %s)", v.Missing)
	}
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return err
}
