package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/api"
	"sft/internal/client"
)

func (p *program) listAccounts() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list-accounts [--json]",
		Aliases: []string{"list-teams"},
		Short:   "List the teams that this device is enrolled in",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			d, err := p.open(client.Never)
			if err != nil {
				return err
			}
			accounts, err := d.Store.Accounts()
			if err != nil {
				return err
			}
			if asJSON {
				type account struct {
					ID            string    `json:"id"`
					Kind          string    `json:"kind"`
					Team          string    `json:"team"`
					User          string    `json:"user"`
					URL           string    `json:"url"`
					Default       bool      `json:"default"`
					SignedInUntil time.Time `json:"signed_in_until"`
				}
				list := []account{}
				for _, a := range accounts {
					list = append(list, account{a.ClientID, cmp.Or(a.Kind, "user"), a.Team, a.User, a.URL, a.Default, a.SignedInUntil})
				}
				return writeJSON(p.out, list)
			}
			var rows [][]string
			for _, a := range accounts {
				status := left(a.SignedInUntil)
				if a.Default {
					status = "default, " + status
				}
				if a.Kind == client.Service {
					status = "service, " + status
				}
				rows = append(rows, []string{a.ClientID, a.Team, a.User, status, a.URL})
			}
			return table(p.out, []string{"ID", "TEAM", "USER", "STATUS", "URL"}, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

func (p *program) listServers() *cobra.Command {
	var project, selector string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list-servers [-l SELECTOR] [-p PROJECT] [--json]",
		Short: "List the servers that you may reach",
		Long: `List-servers lists the servers that you may reach. With -l these are those
whose labels match a label selector of Kubernetes: "env=prod,role in (web,db)".
A key means a label of that name wherever it comes from; with its source before
it, as in api.env, one of administrators alone, in sftd.env of the host itself
and in system.os_type of the platform. --json shows the labels.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.session(cmd.Context(), p.quietly())
			if err != nil {
				return err
			}
			defer p.voice.progress("asking the platform")()
			list, err := s.Servers(cmd.Context(), project, selector)
			if err != nil {
				return err
			}
			slices.SortFunc(list, func(a, b sft.Server) int {
				return cmp.Or(cmp.Compare(a.Name(), b.Name()), cmp.Compare(a.Project, b.Project), cmp.Compare(a.ID, b.ID))
			})
			if asJSON {
				return writeJSON(p.out, list)
			}
			var rows [][]string
			for _, v := range list {
				rows = append(rows, []string{v.Name(), v.OSType, v.Project, v.ID, v.AccessAddress, string(v.State)})
			}
			return table(p.out, []string{"HOSTNAME", "OS_TYPE", "PROJECT_NAME", "ID", "ACCESS_ADDRESS", "STATE"}, rows)
		},
	}
	cmd.Flags().StringVarP(&selector, "selector", "l", "", "with these labels alone")
	cmd.Flags().StringVarP(&project, "project", "p", "", "of this project alone")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

func (p *program) listProjects() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list-projects [--json]",
		Short: "List the projects that you are in",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.session(cmd.Context(), p.quietly())
			if err != nil {
				return err
			}
			defer p.voice.progress("asking the platform")()
			list, err := s.Projects(cmd.Context())
			if err != nil {
				return err
			}
			slices.SortFunc(list, func(a, b sft.Project) int { return cmp.Compare(a.Name, b.Name) })
			if asJSON {
				return writeJSON(p.out, list)
			}
			var rows [][]string
			for _, v := range list {
				rows = append(rows, []string{v.Name, v.ID})
			}
			return table(p.out, []string{"PROJECT_NAME", "ID"}, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

func (p *program) resolve() *cobra.Command {
	var quiet, asJSON bool
	cmd := &cobra.Command{
		Use:   "resolve [-q] [--json] SERVER",
		Short: "Say what a server's name means",
		Long: `Resolve says which server a name means to you. Nothing is issued, and nothing
happens on the server. With -q nothing is printed, no browser is ever opened,
and the exit status alone is the answer, within 3 seconds: ssh asks by it for
each name (see "sft ssh-config"). A name that ssh went to before then counts as
a server's if a sign-in is needed to know.`,
		Args:              oneServer,
		ValidArgsFunction: p.completeServers,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := sft.CheckTarget(args[0]); err != nil {
				return mute(quiet, err)
			}
			ask := p.quietly()
			if quiet {
				ask = client.Never
			}
			var r api.ResolveReply
			resolve := func(ctx context.Context) error {
				s, err := p.session(ctx, ask)
				if err == nil {
					r, err = s.Resolve(ctx, args[0])
				}
				return err
			}
			if quiet {
				p.voice = &voice{err: nowhere{}}
				return mute(quiet, p.resolveQuietly(cmd.Context(), args[0], resolve))
			}
			if err := resolve(cmd.Context()); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(p.out, r)
			}
			head := []string{"HOSTNAME", "PROJECT_NAME", "ID", "ACCESS_ADDRESS", "STATE", "USER_NAME"}
			row := []string{r.Server.Name(), r.Server.Project, r.Server.ID, r.Server.AccessAddress, string(r.Server.State), r.Login}
			if len(r.Route) > 0 {
				head, row = append(head, "VIA"), append(row, strings.Join(r.Route, ","))
			}
			return table(p.out, head, [][]string{row})
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

// mute makes err one that is not said, if it should not be.
func mute(quiet bool, err error) error {
	if quiet && err != nil {
		return silent{err}
	}
	return err
}

// oneServer wants one argument, and says so in words of the task.
func oneServer(cmd *cobra.Command, args []string) error {
	switch len(args) {
	case 1:
		return nil
	case 0:
		return usage{&sft.Error{Code: sft.Invalid, Msg: "the server's name is missing", Hint: "run \"" + cmd.CommandPath() + " SERVER\"; \"sft list-servers\" shows the names"}}
	}
	return usage{&sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("there are %d server names, and one is needed", len(args)), Hint: "put a name with blanks in it into quotes"}}
}
