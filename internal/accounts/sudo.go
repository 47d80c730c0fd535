package accounts

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"sft"
)

// What an entitlement may hold is one spelling that sudoers(5) reads as it
// stands: no wildcard, no quote, no escape but those that sudoLine adds. What
// has another is refused, and not repaired.
var (
	sudoPathRE = regexp.MustCompile(`^(/[A-Za-z0-9_.+-][A-Za-z0-9_.+@-]*)+/?$`)
	sudoArgsRE = regexp.MustCompile(`^[A-Za-z0-9_./:=,@%+-]+( [A-Za-z0-9_./:=,@%+-]+)*$`)
	sudoEnvRE  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)
	sudoNameRE = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_. -]{0,63}$`)
)

// The caps of one entitlement and of the whole.
const (
	maxSudoCommands = 64
	maxSudoArgs     = 1024
	maxSudoEnv      = 64
	maxSudo         = 1 << 20 // bytes of the file
)

// takesOver are the variables by which whoever sets them runs a program of
// their own in the place of the one that they may run.
var takesOver = strings.Fields("BASHOPTS BASH_ENV ENV GCONV_PATH IFS PATH PS4 SHELLOPTS")

func checkSudoEnv(name string) error {
	if !sudoEnvRE.MatchString(name) {
		return fmt.Errorf("%.80q cannot be the name of a variable", name)
	}
	if slices.Contains(takesOver, name) || strings.HasPrefix(name, "LD_") || strings.HasPrefix(name, "BASH_FUNC") {
		return fmt.Errorf("the variable %s would let a person run any program", name)
	}
	return nil
}

// sudoCommand returns c as sudoers(5) has it.
func sudoCommand(c sft.SudoCommand) (string, error) {
	if len(c.Command) > maxSudoArgs || !sudoPathRE.MatchString(c.Command) {
		return "", fmt.Errorf("%.80q cannot be a command; give an absolute path of letters, digits and . _ + - @", c.Command)
	}
	dir := strings.HasSuffix(c.Command, "/")
	if clean := strings.TrimSuffix(c.Command, "/"); path.Clean(clean) != clean {
		return "", fmt.Errorf("the path %s is not in its shortest form", c.Command)
	}
	switch {
	case c.Type == "directory" && dir:
		// sudo lets each program of a folder have any arguments.
		if c.ArgsType != "" && c.ArgsType != "any" || c.Args != "" {
			return "", fmt.Errorf("the arguments of what is in %s cannot be limited", c.Command)
		}
		return c.Command, nil
	case c.Type != "executable" || dir:
		return "", fmt.Errorf("%s is said to be of the type %.20q", c.Command, c.Type)
	case path.Base(c.Command) == "sudoedit": // which sudo takes for its own, whatever the path
		return "", errors.New("sudoedit is no command of its own")
	}
	switch {
	case c.ArgsType == "any" && c.Args == "":
		return c.Command, nil
	case (c.ArgsType == "" || c.ArgsType == "none") && c.Args == "":
		return c.Command + ` ""`, nil
	case c.ArgsType == "custom" && len(c.Args) <= maxSudoArgs && sudoArgsRE.MatchString(c.Args):
		return c.Command + " " + strings.NewReplacer(",", `\,`, ":", `\:`, "=", `\=`).Replace(c.Args), nil
	}
	return "", fmt.Errorf("the arguments of %s are neither none, any nor words of letters, digits and . _ / : = , @ %% + -, with one space between", c.Command)
}

// sudoLine returns the line that gives e to login.
func sudoLine(login string, e sft.SudoEntitlement) (string, error) {
	switch {
	case !e.NoPasswd:
		return "", errors.New("it asks for a password, and nobody has one")
	case len(e.Commands) == 0 || len(e.Commands) > maxSudoCommands:
		return "", fmt.Errorf("it has %d commands, not 1 to %d", len(e.Commands), maxSudoCommands)
	case e.RunAs != "" && !loginRE.MatchString(e.RunAs):
		return "", fmt.Errorf("%.80q cannot be the account to run as", e.RunAs)
	case len(e.AddEnv) > maxSudoEnv || len(e.SubEnv) > maxSudoEnv:
		return "", fmt.Errorf("it has more than %d variables", maxSudoEnv)
	}
	for _, v := range e.AddEnv {
		if err := checkSudoEnv(v); err != nil {
			return "", err
		}
	}
	for _, v := range e.SubEnv {
		if !sudoEnvRE.MatchString(v) {
			return "", fmt.Errorf("%.80q cannot be the name of a variable", v)
		}
	}
	var commands []string
	for _, c := range e.Commands {
		s, err := sudoCommand(c)
		if err != nil {
			return "", err
		}
		commands = append(commands, s)
	}
	as, tags := "root", "NOPASSWD: "
	if e.RunAs != "" {
		as = e.RunAs
	}
	if e.NoExec {
		tags += "NOEXEC: "
	}
	if e.SetEnv {
		tags += "SETENV: "
	} else {
		tags += "NOSETENV: " // whatever the host's own Defaults say
	}
	return login + " ALL=(" + as + ") " + tags + strings.Join(commands, ", ") + "\n", nil
}

// sudoHead begins the file.
const sudoHead = "# Made by sftd: sudo entitlements of the project. What is changed here is undone.\n"

// renderSudo returns the file that gives each login what it holds, and nothing
// else; it is empty where there is nothing to give. An entitlement that cannot
// be written as it is meant is left out whole, and told of.
//
// sudoers(5) can bind a variable to a person or to a command, and not to both:
// they are bound to the person, so that nobody else's sudo changes.
func renderSudo(list []sft.SudoEntitlement, held map[string][]string) (text string, errs []error) {
	byName, bad := map[string]sft.SudoEntitlement{}, map[string]bool{}
	refuse := func(name string, err error) {
		if !bad[name] {
			errs = append(errs, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("sudo entitlement %.40q is not used: %v", name, err), Err: err, Hint: "correct it, on the platform"})
		}
		bad[name] = true
	}
	for _, e := range list {
		if _, twice := byName[e.Name]; twice {
			refuse(e.Name, errors.New("there are two of that name"))
			continue
		}
		byName[e.Name] = e
	}
	var b strings.Builder
	for _, login := range slices.Sorted(maps.Keys(held)) {
		if CheckLogin(login) != nil {
			continue
		}
		var lines string
		add, sub := map[string]bool{}, map[string]bool{}
		for _, name := range slices.Compact(slices.Sorted(slices.Values(held[login]))) {
			e, ok := byName[name]
			if !ok {
				refuse(name, errors.New("the platform does not say what it is"))
			}
			if bad[name] {
				continue
			}
			line, err := sudoLine(login, e)
			if err != nil {
				refuse(name, err)
				continue
			}
			if sudoNameRE.MatchString(name) {
				lines += "# " + name + "\n"
			}
			lines += line
			for _, v := range e.AddEnv {
				add[v] = true
			}
			for _, v := range e.SubEnv {
				sub[v] = true
			}
		}
		if lines == "" {
			continue
		}
		for v := range sub {
			delete(add, v)
		}
		for _, d := range []struct {
			how   string
			names map[string]bool
		}{{"+=", add}, {"-=", sub}} {
			if len(d.names) > 0 {
				fmt.Fprintf(&b, "Defaults:%s env_keep %s \"%s\"\n", login, d.how, strings.Join(slices.Sorted(maps.Keys(d.names)), " "))
			}
		}
		b.WriteString(lines)
	}
	switch {
	case b.Len() == 0:
		return "", errs
	case b.Len() > maxSudo:
		return "", append(errs, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the sudo entitlements of this host make more than %d bytes, and none is used", maxSudo), Hint: "give fewer people fewer of them"})
	}
	return sudoHead + b.String(), errs
}

// sudoOf returns what a file of renderSudo says of each login.
func sudoOf(text string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(text) {
		first, _, _ := strings.Cut(line, " ")
		if login := strings.TrimPrefix(first, "Defaults:"); login != "#" {
			all[login] += line
		}
	}
	return all
}
