package main

import (
	"os"

	"github.com/spf13/cobra"

	"sft/internal/conf"
)

// settings are the flags of serve, from wherever they were given; the other
// commands take those that they have too.
type settings struct {
	conf.Options
	file string
	from map[string]string // where each flag of the command comes from
}

// fill sets the flags of a command that were not given.
func (s *settings) fill(cmd *cobra.Command) (err error) {
	named := cmd.Flags().Changed("config")
	if v, ok := os.LookupEnv(s.Variable("config")); ok && !named {
		s.file, named = v, true
	}
	if s.from, err = s.Fill(cmd.LocalNonPersistentFlags(), os.LookupEnv, s.file, named); err != nil {
		return usage{err}
	}
	return nil
}

// name is how an error calls a setting: it may be in none of the arguments.
func (s *settings) name(flag string) string {
	switch from := s.from[flag]; from {
	case "flag", "default", "":
		return "--" + flag
	default:
		return "--" + flag + ", by " + from + ","
	}
}
