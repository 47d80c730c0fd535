package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sft/internal/conf"
	"sft/internal/platform"
)

func serviceKeyCommand() *cobra.Command {
	var d data
	var create, asJSON bool
	cmd := &cobra.Command{
		Use:   "service-key USER",
		Short: "Make a new API key for a service user",
		Long: `Service-key prints a new key of a service user of the first team, once. The
keys before it work for a day longer.

It is for when the last key was lost, or init made none: the API is then closed
to administrators. It needs the data folder and no sign-in, works while serve
runs, and is an audit event. Run it as the account that the platform runs as.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withPlatform(cmd, d, func(p *platform.Platform, w io.Writer) error {
				k, err := p.NewServiceKey(cmd.Context(), args[0], create)
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(w, map[string]string{"key_id": k.ID, "key_secret": k.Secret})
				}
				_, err = fmt.Fprintf(w, "key_id      %s\nkey_secret  %s\n", k.ID, k.Secret)
				return err
			})
		},
	}
	d.flags(cmd)
	f := cmd.Flags()
	f.BoolVar(&create, "create", false, "make the service user if there is none, as an administrator in the group automation")
	f.BoolVar(&asJSON, "json", false, "print as JSON")
	conf.NotSetting(f, "create", "json")
	return cmd
}
