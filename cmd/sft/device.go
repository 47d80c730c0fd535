package main

import "github.com/spf13/cobra"

func (p *program) deviceInfo() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "device-info",
		Short: "Print what the platform is told of this device",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return writeJSON(p.out, device()) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", true, "print as JSON, which it always is")
	cmd.Flags().MarkHidden("json")
	return cmd
}
