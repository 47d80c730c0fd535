package launch

import (
	"net"
	"path/filepath"
	"strings"

	"sft"
)

// The options of OpenSSH's ssh (ssh.c, 8.0 to 10): those that take a value, and
// those that do not.
const (
	sshValued = "BbcDEeFIiJLlmOoPpQRSWw"
	sshPlain  = "1246AaCfGgKkMNnqsTtVvXxYy"
)

// SSHArgs is a command line of "sft ssh", taken apart.
type SSHArgs struct {
	Server       string
	Options      []string // for ssh, before and after the server's name
	Command      []string // what runs on the server; none is a shell
	ForwardAgent bool     // -A
	NoAgent      bool     // -a
}

// notOurs are options that would send ssh elsewhere, or in as somebody else.
var notOurs = map[byte]string{
	'l': "leave it out: the login is the one that the platform gives you",
	'p': "leave it out: the platform knows the port",
	'J': "name the hops with --via",
	'f': "leave it out, and put the whole of it into the background with \"&\"",
	'O': "use ssh itself with the block that \"sft ssh-config\" prints",
	'S': "use ssh itself with the block that \"sft ssh-config\" prints",
	'M': "use ssh itself with the block that \"sft ssh-config\" prints",
	'V': "run \"ssh -V\"",
	'Q': "run \"ssh -Q\"",
}

// ParseSSHArgs reads what follows "sft ssh" as OpenSSH would: options, the
// server, options, and the command from the first word on that is no option.
// What would be for nothing is refused.
func ParseSSHArgs(args []string) (SSHArgs, error) {
	var a SSHArgs
	rest, err := a.options(args)
	if err != nil {
		return SSHArgs{}, err
	}
	if len(rest) == 0 {
		return SSHArgs{}, &sft.Error{Code: sft.Invalid, Msg: "the server's name is missing", Hint: "run \"sft ssh SERVER\"; \"sft list-servers\" shows the names"}
	}
	a.Server = rest[0]
	if a.Command, err = a.options(rest[1:]); err != nil {
		return SSHArgs{}, err
	}
	return a, nil
}

// options takes options off the beginning of args, up to a "--".
func (a *SSHArgs) options(args []string) (rest []string, err error) {
	refuse := func(c byte, hint string) error {
		return &sft.Error{Code: sft.Invalid, Msg: "option " + sft.Quote("-"+string(rune(c))) + " of ssh cannot be used with \"sft ssh\"", Hint: hint}
	}
	for len(args) > 0 {
		word := args[0]
		if word == "--" {
			return args[1:], nil
		}
		if len(word) < 2 || word[0] != '-' {
			break
		}
		args = args[1:]
		for i := 1; i < len(word); i++ {
			c := word[i]
			if hint, ok := notOurs[c]; ok {
				return nil, refuse(c, hint)
			}
			switch {
			case c == 'A':
				a.ForwardAgent = true
			case c == 'a':
				a.NoAgent = true
			case strings.IndexByte(sshPlain, c) >= 0:
				a.Options = append(a.Options, "-"+string(rune(c)))
			case strings.IndexByte(sshValued, c) >= 0:
				value := word[i+1:]
				if value == "" {
					if len(args) == 0 {
						return nil, &sft.Error{Code: sft.Invalid, Msg: "option -" + string(rune(c)) + " of ssh has no value", Hint: "give it one: see \"man ssh\""}
					}
					value, args = args[0], args[1:]
				}
				a.Options = append(a.Options, "-"+string(rune(c)), value)
				i = len(word)
			default:
				return nil, refuse(c, "run \"sft ssh --help\"; the options of ssh are in \"man ssh\"")
			}
		}
	}
	return args, nil
}

// An SSHRun is how OpenSSH is to reach one server. All strings but paths were
// checked by who made it.
type SSHRun struct {
	Host       string // on the command line, for the person's own settings and for messages
	ServerID   string // by which the host proves itself
	Login      string
	Addr       string // host:port to connect to
	Local      bool   // Addr is a port of this process
	Agent      string // path of the agent's socket
	KnownHosts string // path of the one file of known hosts
	Forward    string // path of the agent to forward; empty: none
}

// Argv is the command line after the program's name. Whatever decides where
// ssh goes, what proves the host and who signs in comes first, because OpenSSH
// goes by what it reads first; the person's settings count for the rest.
func (r SSHRun) Argv(a SSHArgs) ([]string, error) {
	host, port, err := net.SplitHostPort(r.Addr)
	if err != nil {
		return nil, err
	}
	for _, path := range []string{r.Agent, r.KnownHosts, r.Forward} {
		if err := CheckSSHPath(path); err != nil {
			return nil, err
		}
	}
	forward := "no"
	if r.Forward != "" {
		forward = sshPath(r.Forward)
	}
	options := []string{
		"HostName=" + host,
		"Port=" + port,
		"User=" + r.Login,
		"CanonicalizeHostname=no",
		"ProxyCommand=none",
		"ProxyJump=none",
		"ControlMaster=no",
		"ControlPath=none",
		// Who is there.
		"HostKeyAlias=" + r.ServerID,
		"UserKnownHostsFile=" + sshPath(r.KnownHosts),
		// "none" is the name of a file to old versions.
		"GlobalKnownHostsFile=" + sshPath(r.KnownHosts),
		"StrictHostKeyChecking=yes",
		"UpdateHostKeys=no",
		"CheckHostIP=no",
		"VerifyHostKeyDNS=no",
		// Who comes.
		"PreferredAuthentications=publickey",
		"PubkeyAuthentication=yes",
		"IdentityAgent=" + sshPath(r.Agent),
		"IdentitiesOnly=no",
		"IdentityFile=none",
		"AddKeysToAgent=no",
		"ForwardAgent=" + forward,
	}
	if r.Local {
		options = append(options, "AddressFamily=any")
	}
	var argv []string
	for _, o := range options {
		argv = append(argv, "-o", o)
	}
	argv = append(argv, a.Options...)
	// With "--" ssh reads no options behind the host's name.
	argv = append(argv, "--", r.Host)
	return append(argv, a.Command...), nil
}

// CheckSSHPath refuses a path that cannot be said to OpenSSH in every version
// of it: some of its settings have no way to quote it, and "%" begins a token in
// some versions alone.
func CheckSSHPath(path string) error {
	path = filepath.ToSlash(path)
	if strings.ContainsAny(path, "\"'\\`%\n\r\x00") || strings.Contains(path, "${") {
		return &sft.Error{Code: sft.Invalid, Msg: "the path " + sft.Quote(path) + " cannot be given to ssh: it has a quote, a backslash, \"%\" or \"${\" in it",
			Hint: "use another folder: see \"Where things are\" in docs/cli.md"}
	}
	return nil
}

// sshPath is a path that was checked as a value in OpenSSH's settings. On
// Windows OpenSSH takes slashes, and some of its versions no backslashes.
func sshPath(path string) string { return `"` + filepath.ToSlash(path) + `"` }
