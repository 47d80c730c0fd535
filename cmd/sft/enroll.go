package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/client"
)

func (p *program) enroll() *cobra.Command {
	var e client.Enrolment
	var noBrowser bool
	cmd := &cobra.Command{
		Use:   "enroll --url URL [--team T] [--ca-fingerprint sha256:…] [--no-browser] [--force]",
		Short: "Enrol this device",
		Long: `Enroll makes this device yours: it makes a key that never leaves the device,
opens the browser for you to sign in and approve, and waits. Approve only if
the page shows the same key as the terminal.

Where there is no browser, --no-browser (or SFT_NO_BROWSER) prints an address
and a code to enter there, on any machine. BROWSER names the browser to use.

A platform with a CA of its own is trusted by the fingerprint that
"sft-platform init" printed, and never without.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if e.URL == "" {
				return usage{&sft.Error{Code: sft.Invalid, Msg: "--url is missing", Hint: "run \"sft enroll --url URL\" with the line that your platform's administrator gave you"}}
			}
			e.Team = p.team
			ask := p.openly(noBrowser)
			if ask == client.ByCode && e.Team == "" {
				return usage{&sft.Error{Code: sft.Invalid, Msg: "sign-in by a code needs the team's name", Hint: "add --team"}}
			}
			d, err := p.open(ask)
			if err != nil {
				return err
			}
			a, err := d.Enroll(cmd.Context(), e)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(p.out, "enrolled as %s in team %s\n", a.User, a.Team)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&e.URL, "url", "", "the platform's URL")
	f.StringVar(&e.Fingerprint, "ca-fingerprint", "", "SHA-256 of the platform's own CA certificate")
	f.BoolVar(&e.Default, "default", true, "use this team where none is named")
	f.BoolVar(&e.Force, "force", false, "enrol anew if the device is enrolled in the team")
	f.BoolVar(&noBrowser, "no-browser", false, "sign in by a code, in a browser anywhere")
	return cmd
}

func (p *program) unenroll() *cobra.Command {
	var all, force, yes bool
	cmd := &cobra.Command{
		Use:   "unenroll [--all] [--force]",
		Short: "Remove this device from a team",
		Long: `Unenroll deletes this device from the team on the platform, and the device key
here. Sessions of the device end.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := p.open(client.Never)
			if err != nil {
				return err
			}
			var accounts []client.Account
			if all {
				accounts, err = d.Store.Accounts()
			} else {
				var a client.Account
				a, err = d.Store.Find(p.team)
				accounts = append(accounts, a)
			}
			if err != nil {
				return err
			}
			var errs []error
			for _, a := range accounts {
				if err := d.Unenroll(cmd.Context(), a, force); err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintf(p.out, "unenrolled from team %s\n", a.Team)
			}
			return errors.Join(errs...)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "from all teams")
	f.BoolVar(&force, "force", false, "forget the team here even if the platform cannot be told")
	f.BoolVarP(&yes, "yes", "y", false, "accepted for old scripts; there is no question")
	f.MarkHidden("yes")
	return cmd
}

func (p *program) login() *cobra.Command {
	var noBrowser bool
	cmd := &cobra.Command{
		Use:   "login [--no-browser]",
		Short: "Sign in now",
		Long: `Login signs you in, in the browser or by a code. Other commands do it by
themselves when it is needed and they run in a terminal.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.session(cmd.Context(), p.openly(noBrowser))
			if err != nil {
				return err
			}
			if err := s.Login(cmd.Context()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(p.out, "signed in as %s to team %s, %s\n", s.Account.User, s.Account.Team, left(s.Account.SignedInUntil))
			return err
		},
	}
	cmd.Flags().BoolVar(&noBrowser, "no-browser", false, "sign in by a code, in a browser anywhere")
	return cmd
}

func (p *program) logout() *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "Sign out",
		Long: `Logout ends the sign-in of this device. Desktops that are open stay open; to
end them too, use "sft unenroll".`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.session(cmd.Context(), client.Never)
			if err != nil {
				return err
			}
			if err := s.Logout(cmd.Context()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(p.out, "signed out of team %s\n", s.Account.Team)
			return err
		},
	}
}

func (p *program) use() *cobra.Command {
	return &cobra.Command{
		Use:               "use TEAM",
		Short:             "Set the team to use where none is named",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeTeams,
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := p.open(client.Never)
			if err != nil {
				return err
			}
			a, err := d.Store.Use(args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(p.out, "team %s is the default\n", a.Team)
			return err
		},
	}
}
