package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/client"
	"sft/internal/conf"
	"sft/internal/frame"
	"sft/internal/launch"
	"sft/internal/loopback"
	"sft/internal/sshagent"
)

const viaText = "go through this server, or [user@]host without an agent; may be repeated"

// status is the exit status of a program that was run for the person.
type status int

func (s status) Error() string { return "exit status " + strconv.Itoa(int(s)) }

func (p *program) ssh() *cobra.Command {
	return &cobra.Command{
		Use:   "ssh [--via SERVER]... [OPTION]... SERVER [COMMAND]",
		Short: "Open a shell on a server, or run a command there",
		Long: `Ssh opens a shell on a server, signed in as yourself, in your own OpenSSH.
Name the server as "sft list-servers" shows it, or as project/server.

  --via SERVER   ` + viaText + `

--via and the global flags come first. All other options are those of ssh, as in

  sft ssh -L 8080:localhost:80 web01
  sft ssh web01 -t sudo -i

Your settings in ~/.ssh/config count, but not for where ssh goes, who signs in
and what proves the server: sft says all three. The key and its certificate are
made for this run, and are in no file. Of ssh's options -l, -p, -J, -f, -M, -S
and -O are refused, and -A needs the project's leave.

The exit status is ssh's own: 255 if it failed. What fails before ssh is
started has the status of sft.`,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			for _, a := range args {
				if !strings.HasPrefix(a, "-") {
					return nil, cobra.ShellCompDirectiveDefault
				}
			}
			return p.completeServers(cmd, nil, toComplete)
		},
		// The flags behind the server's name are ssh's, and so are those that
		// sft does not know.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			via, rest, help, err := p.ownFlags(args)
			if err != nil {
				return err
			}
			if help {
				return cmd.Help()
			}
			return p.openShell(cmd.Context(), via, rest)
		},
	}
}

// ownFlags takes the flags of sft off the beginning of args: those with two
// dashes, which ssh has none of.
func (p *program) ownFlags(args []string) (via, rest []string, help bool, err error) {
	for len(args) > 0 {
		name, value, given := strings.Cut(args[0], "=")
		var into func(string)
		switch name {
		case "--help", "-h":
			return nil, nil, true, nil
		case "--debug":
			p.debug = true
			args = args[1:]
			continue
		case "--via", "--bastion":
			into = func(v string) { via = append(via, v) }
		case "--team":
			into = func(v string) { p.team = v }
		case "--config-file":
			into = func(v string) { p.config = v }
		default:
			if strings.HasPrefix(name, "--") && name != "--" {
				return nil, nil, false, usage{&sft.Error{Code: sft.Invalid, Msg: "unknown flag: " + sft.Quote(name), Hint: "run \"sft ssh --help\" to see its flags"}}
			}
			return via, args, false, nil
		}
		args = args[1:]
		if !given {
			if len(args) == 0 {
				return nil, nil, false, usage{&sft.Error{Code: sft.Invalid, Msg: name + " has no value", Hint: "run \"sft ssh --help\" to see its flags"}}
			}
			value, args = args[0], args[1:]
		}
		into(value)
	}
	return via, nil, false, nil
}

// checkVia refuses hops that cannot be any, before anything is asked for.
func checkVia(via []string) error {
	for _, v := range via {
		if err := client.CheckVia(v); err != nil {
			return err
		}
	}
	return nil
}

// openShell is one run of ssh, from the name to its end.
func (p *program) openShell(ctx context.Context, via, args []string) error {
	times := newTimes(p)
	a, err := launch.ParseSSHArgs(args)
	if err != nil {
		return usage{err}
	}
	if err := errors.Join(sft.CheckTarget(a.Server), checkVia(via)); err != nil {
		return err
	}
	paths, err := p.paths()
	if err != nil {
		return err
	}
	set, err := readSettings(paths.Config)
	if err != nil {
		return err
	}
	path, err := launch.FindSSH()
	if err != nil {
		return err
	}
	s, err := p.session(ctx, p.quietly())
	if err != nil {
		return err
	}
	done := p.voice.progress("asking the platform for " + a.Server)
	c, err := s.Connect(ctx, a.Server, frame.SSH, via, times.mark)
	done()
	if err != nil {
		return err
	}
	defer c.Close()
	c.Hops(set.netcat(), !haveTerminal())
	h := c.Target()
	forward, err := p.forwardedAgent(a, set.SSH.ForwardAgent, h.SSH.ForwardAgent, h.Name)
	if err != nil {
		return err
	}
	dir, err := launch.NewSSHRunDir(p.runBase(paths))
	if err != nil {
		return err
	}
	defer dir.Remove()
	run := launch.SSHRun{Host: h.Name, ServerID: h.ServerID, Login: h.Login, Forward: forward,
		Addr: net.JoinHostPort(h.Address, strconv.Itoa(h.SSH.Port)), Agent: agentPath(dir.Path), KnownHosts: filepath.Join(dir.Path, "known_hosts")}
	cas, keys := c.SSHHost()
	if err := conf.WriteSecret(run.KnownHosts, launch.KnownHosts(h.ServerID, cas, keys)); err != nil {
		return err
	}
	keyring, err := sshagent.Listen(run.Agent)
	if err != nil {
		return err
	}
	defer keyring.Close()
	go (&sshagent.Agent{Current: c.SSHSigner, Refused: p.complain}).Serve(keyring)
	started := func(int) error { return nil }
	if !c.Direct() {
		// The way is made before ssh is started: what fails on it is told as
		// it is, and not as a connection that was closed.
		carryOnly()
		done := p.voice.progress("waiting for " + h.Name)
		first, err := c.DialSSH(ctx)
		done()
		if err != nil {
			return err
		}
		l, err := loopback.ListenApart(ctx)
		if err != nil {
			first.Close()
			return err
		}
		defer l.Close()
		run.Addr, run.Local = l.Addr().String(), true
		ready := make(chan net.Conn, 1)
		ready <- first
		defer func() { // the one that nobody came for
			select {
			case c := <-ready:
				c.Close()
			default:
			}
		}()
		dial := func(ctx context.Context) (net.Conn, error) {
			select {
			case c := <-ready:
				return c, nil
			default:
				return c.DialSSH(ctx)
			}
		}
		relaying, end := context.WithCancel(context.Background())
		defer end()
		started = func(pid int) error {
			if err := launch.OnlySSH(l, pid); err != nil {
				return err
			}
			go launch.Relay(relaying, l, dial, p.complain)
			return nil
		}
	}
	argv, err := run.Argv(a)
	if err != nil {
		return err
	}
	times.mark("ssh")
	code, err := launch.RunSSH(ctx, path, argv, started)
	if err == nil && code != 0 {
		err = status(code)
	}
	return err
}

// carryOnly is for a process that does little more from here on than carry what
// an ssh sends and receives, through hops or to a broker. A packet passes several
// goroutines, which wake each other's threads if there is more than one processor
// to run on, and is garbage after that: with the usual 4 MiB between two
// collections these take a quarter of the time, with 16 MiB little. Together
// that is 40 percent of the processor time for each byte. One processor carries
// some 400 MB/s.
func carryOnly() {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(400)
}

// complain says what went wrong beside ssh.
func (p *program) complain(err error) { p.voice.fail(err) }

// forwardedAgent is the path of the person's own SSH agent if it is to be
// forwarded: that needs both the person's word and the project's.
func (p *program) forwardedAgent(a launch.SSHArgs, setting string, allowed bool, server string) (string, error) {
	wanted := a.ForwardAgent || setting == sft.AgentHost
	switch {
	case !wanted || a.NoAgent:
		return "", nil
	case !allowed && a.ForwardAgent:
		return "", &sft.Error{Code: sft.Denied, Msg: "your SSH agent may not be forwarded to " + server, Hint: "leave -A out, or ask for ssh.insecure_forward_agent in the options of its project"}
	case !allowed:
		return "", nil
	}
	path := p.getenv("SSH_AUTH_SOCK")
	if path == "" && a.ForwardAgent {
		return "", &sft.Error{Code: sft.Invalid, Msg: "there is no SSH agent to forward: SSH_AUTH_SOCK is not set", Hint: "start one, or leave -A out"}
	}
	return path, nil
}

// waitFor runs do, and gives it up after limit: some of what it does cannot be
// told to stop.
func waitFor(ctx context.Context, limit time.Duration, do func(context.Context) error) error {
	late := &sft.Error{Code: sft.Unavailable, Msg: fmt.Sprintf("there was no answer within %v", limit), Hint: "try again"}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, late)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ownPath is this program's, for others to run.
func ownPath() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", err
	}
	return path, launch.CheckSSHPath(path)
}
