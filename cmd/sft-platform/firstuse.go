package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sft/internal/platform"
)

func firstUseCommand() *cobra.Command {
	var d data
	var team string
	cmd := &cobra.Command{
		Use:   "first-use USER",
		Short: "Make a new one-time sign-in link for a person",
		Long: `First-use prints a new link with which a person sets a password and signs in,
once and within 3 days. Links made before stop working; the password stays
until the link is used.

It is for when the first link was lost, or nobody can sign in who may make
another. It needs the data folder and no sign-in, works while serve runs, and
is an audit event. Run it as the account that the platform runs as.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withPlatform(cmd, d, func(p *platform.Platform, w io.Writer) error {
				link, err := p.NewFirstUse(cmd.Context(), team, args[0])
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(w, link)
				return err
			})
		},
	}
	d.flags(cmd)
	cmd.Flags().StringVar(&team, "team", "", "the person's team (default: the first one)")
	return cmd
}
