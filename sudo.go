package sft

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// The kinds of a SudoCommand and of its arguments.
const (
	SudoExecutable = "executable"
	SudoDirectory  = "directory" // every program in it, but not below it
	SudoArgsNone   = "none"
	SudoArgsAny    = "any"
	SudoArgsCustom = "custom" // exactly those
)

// Limits of a sudo entitlement.
const (
	maxSudoCommands = 64
	maxSudoEnv      = 32
	maxSudoPath     = 255
	maxSudoArgs     = 512
)

// What a command may be made of is listed, not what it may not: none of it
// means anything to sudoers(5), quoted or not.
var (
	sudoPathRE = regexp.MustCompile(`^[A-Za-z0-9._+@/-]+$`)
	sudoArgsRE = regexp.MustCompile(`^[A-Za-z0-9._+@/-]+( [A-Za-z0-9._+@/-]+)*$`)
	envRE      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)
)

// Variables that may not be kept: with one of them a person decides what a
// program of another account runs, loads or trusts, so the commands of the
// entitlement would be no limit. An ending "*" stands for any rest.
var badEnv = []string{
	"LD_*", "_RLD*", "LDR_*", "DYLD_*", "SHLIB_PATH", "LIBPATH", "GCONV_PATH", "GETCONF_DIR", "MALLOC_*", "GLIBC_*", "LOCPATH", "NLSPATH", "PATH_LOCALE",
	"PATH", "SUDO_*", "HOME", "SHELL", "USER", "LOGNAME", "USERNAME", "MAIL", "TMPDIR", "XDG_*", "DBUS_*", "SYSTEMD_*", "NOTIFY_SOCKET", "LISTEN_*",
	"ENV", "BASH_*", "BASHOPTS", "SHELLOPTS", "IFS", "CDPATH", "FPATH", "GLOBIGNORE", "PS0", "PS1", "PS2", "PS3", "PS4", "PROMPT_COMMAND", "NULLCMD", "READNULLCMD", "ZDOTDIR", "TMPPREFIX",
	"PERL*", "PYTHON*", "RUBY*", "NODE_*", "JAVA_*", "_JAVA_OPTIONS", "JDK_*", "CLASSPATH", "LUA_*", "PHPRC", "PHP_*", "GEM_*", "BUNDLE_*", "TCL*", "R_*",
	"EDITOR", "VISUAL", "PAGER", "MANPAGER", "BROWSER", "LESS*", "MORE", "GIT_*", "SSH_*", "RSYNC_*", "TAR_OPTIONS", "MAKEFLAGS", "GNUMAKEFLAGS", "MAKEFILES", "VIMINIT", "EXINIT", "OPENSSL_*", "SSL_*", "CURL_*",
	"TERMINFO*", "TERMPATH", "TERMCAP", "LOCALDOMAIN", "HOSTALIASES", "RES_OPTIONS", "RESOLV_*", "KRB5*", "AUTHSTATE", "VAR_ACE", "USR_ACE", "DLC_ACE",
}

// Check refuses an entitlement that a line of sudoers(5) could not say, or
// would say with another meaning than the words here have. The platform checks
// what it is given, and each host again what it is sent.
func (e SudoEntitlement) Check() error {
	if err := CheckName("entitlement", e.Name); err != nil {
		return err
	}
	bad := func(hint, format string, args ...any) error {
		return &Error{Code: Invalid, Msg: "entitlement " + Quote(e.Name) + ": " + fmt.Sprintf(format, args...), Hint: hint}
	}
	switch {
	case len(e.Description) > 200 || strings.ContainsFunc(e.Description, func(r rune) bool { return !unicode.IsPrint(r) }):
		return bad("use up to 200 characters in one line", "the description cannot be used")
	case !e.NoPasswd:
		return bad("set opt_no_passwd to true", "sudo would ask for a password, and nobody has one")
	case e.RunAs != "" && CheckLogin(e.RunAs) != nil:
		return bad("use up to 32 of a-z, 0-9, \"-\" and \"_\", with a letter or \"_\" first, or leave it out for root", "opt_run_as %s is not a login name", Quote(e.RunAs))
	case len(e.Commands) == 0 || len(e.Commands) > maxSudoCommands:
		return bad(fmt.Sprintf("give 1 to %d", maxSudoCommands), "it has %d commands", len(e.Commands))
	}
	for i, c := range e.Commands {
		if hint, msg := c.check(); msg != "" {
			return bad(hint, "command %d: %s", i+1, msg)
		}
		if slices.Contains(e.Commands[:i], c) {
			return bad("leave out what is there already", "command %d is there twice", i+1)
		}
	}
	if len(e.AddEnv) > maxSudoEnv || len(e.SubEnv) > maxSudoEnv {
		return bad(fmt.Sprintf("give up to %d names", maxSudoEnv), "add_env has %d names, sub_env %d", len(e.AddEnv), len(e.SubEnv))
	}
	both := slices.Concat(e.AddEnv, e.SubEnv)
	for i, name := range both {
		switch {
		case !envRE.MatchString(name):
			return bad("use letters, digits and \"_\", with no digit first", "%s is not the name of a variable", Quote(name))
		case slices.Contains(both[:i], name):
			return bad("name a variable once", "the variable %s is there twice", name)
		case i < len(e.AddEnv) && slices.ContainsFunc(badEnv, func(b string) bool {
			prefix, any := strings.CutSuffix(b, "*")
			return name == b || any && strings.HasPrefix(name, prefix)
		}):
			return bad("leave it out", "with the variable %s somebody could run any program, not only these commands", name)
		}
	}
	return nil
}

// check returns what is wrong with a command and what to do about it, or two
// empty texts.
func (c SudoCommand) check() (hint, msg string) {
	switch c.Type {
	case SudoExecutable, SudoDirectory:
	case "raw":
		return "name an executable or a directory", "command_type raw is not taken: a line of sudoers that nobody has read could say anything"
	default:
		return "use executable or directory", "command_type " + Quote(c.Type) + " is unknown"
	}
	dir := c.Type == SudoDirectory
	clean := path.Clean(c.Command)
	if dir {
		clean += "/"
	}
	switch {
	case len(c.Command) > maxSudoPath || !sudoPathRE.MatchString(c.Command):
		return fmt.Sprintf("use up to %d letters, digits and \"._+@/-\": no wildcards, and nothing that sudoers gives a meaning", maxSudoPath), "the path " + Quote(c.Command) + " cannot be used"
	case c.Command[0] != '/':
		return "give the path from \"/\" on", "the path " + Quote(c.Command) + " is not absolute"
	case dir && c.Command[len(c.Command)-1] != '/':
		return "write it with \"/\" at the end", "the path " + Quote(c.Command) + " is to be a directory"
	case !dir && c.Command[len(c.Command)-1] == '/':
		return "use the command_type directory, or name a program", "the path " + Quote(c.Command) + " is not an executable's"
	case clean == "//":
		return "name a directory below it", "the root directory is nobody's list of commands"
	case clean != c.Command:
		return "write " + clean, "the path " + Quote(c.Command) + " is a detour"
	case path.Base(c.Command) == "sudoedit":
		return "name the program that changes the file", "sudoedit is not a program to sudo, but a way to change any file"
	}
	switch {
	case dir && c.ArgsType != "" && c.ArgsType != SudoArgsAny:
		return "use args_type any", "sudo lets the programs of a directory have any arguments"
	case c.ArgsType != "" && c.ArgsType != SudoArgsNone && c.ArgsType != SudoArgsAny && c.ArgsType != SudoArgsCustom:
		return "use none, any or custom", "args_type " + Quote(c.ArgsType) + " is unknown"
	case c.ArgsType != SudoArgsCustom && c.Args != "":
		return "set args_type to custom, or leave args out", "it has args that its args_type leaves no place for"
	case c.ArgsType == SudoArgsCustom && (len(c.Args) > maxSudoArgs || !sudoArgsRE.MatchString(c.Args)):
		return fmt.Sprintf("use up to %d letters, digits and \"._+@/-\", with one space between two arguments", maxSudoArgs), "the args " + Quote(c.Args) + " cannot be used"
	}
	return "", ""
}
