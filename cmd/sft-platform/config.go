package main

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sft"
	"sft/internal/conf"
)

// settings are the flags of serve, from wherever they were given; the other
// commands take those that they have too.
type settings struct {
	conf.Options
	file string
	from map[string]string // where each flag of the command comes from

	serving *serving // what the flags of serve have set
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
	// The value is not shown: it may have a password.
	if f := cmd.Flags().Lookup("database"); f != nil && f.Value.String() != "" {
		if v := f.Value.String(); !strings.HasPrefix(v, "sqlite:") && !strings.HasPrefix(v, "postgres://") && !strings.HasPrefix(v, "postgresql://") {
			return usage{&sft.Error{Code: sft.Invalid, Msg: s.name("database") + " is neither sqlite:PATH nor postgres://…", Hint: "give the database as one of them, or leave it out for platform.db in the data folder"}}
		}
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

// unknown are the variables that begin as those of the settings do, and are of
// no flag of any command. Whoever sets the environment may have reasons for
// them, as Kubernetes has for a service of the program's name; so they are told,
// and not refused.
func (s *settings) unknown(cmd *cobra.Command) []string {
	var sets []*pflag.FlagSet
	for _, c := range below(cmd.Root()) {
		sets = append(sets, c.LocalFlags(), c.InheritedFlags())
	}
	return s.Unknown(os.Environ(), sets...)
}

// unread is the error of a file that a flag names.
func unread(what, flag string, err error) error {
	if e, ok := errors.AsType[*sft.Error](err); ok {
		return &sft.Error{Code: e.Code, Msg: "read " + what + ": " + e.Msg, Err: err, Hint: e.Hint}
	}
	hint := "check --" + flag
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint += ": there is no such file"
	case errors.Is(err, fs.ErrPermission):
		hint = "let the account that the platform runs as read the file of --" + flag
	}
	return &sft.Error{Code: sft.Invalid, Msg: "read " + what + ": " + err.Error(), Err: err, Hint: hint}
}
