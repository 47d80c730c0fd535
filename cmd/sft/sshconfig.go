package main

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/launch"
)

func (p *program) sshConfig() *cobra.Command {
	var via []string
	cmd := &cobra.Command{
		Use:   "ssh-config [--via SERVER]...",
		Short: "Print the block by which OpenSSH reaches servers",
		Long: `Ssh-config prints a block for ~/.ssh/config, by which ssh, scp, sftp, rsync, git
and Ansible reach the servers of the team that is in use, as "sft ssh" does:

  sft ssh-config > ~/.ssh/sft.conf
  and as the first line of ~/.ssh/config: Include sft.conf

The block asks "sft resolve -q" for each name, and leaves all but servers alone.
It names your login, the team and this program: print it again when one of them
changes. OpenSSH 8.0 or later is needed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkVia(via); err != nil {
				return err
			}
			paths, err := p.paths()
			if err != nil {
				return err
			}
			own, err := ownPath()
			if err != nil {
				return err
			}
			if own, err = shellPath(own); err != nil {
				return err
			}
			s, err := p.session(cmd.Context(), p.quietly())
			if err != nil {
				return err
			}
			login, err := s.ServerLogin(cmd.Context())
			if err != nil {
				return err
			}
			b := block{Program: own, Team: s.Account.Team, Login: login, Via: via, State: paths.State, Windows: runtime.GOOS == "windows"}
			text, err := b.text()
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(p.out, text)
			return err
		},
	}
	cmd.Flags().StringArrayVar(&via, "via", nil, viaText)
	return cmd
}

// A block is what ssh-config prints.
type block struct {
	Program, Team, Login string
	Via                  []string
	State                string // folder
	Windows              bool
}

// text returns the block. What ssh puts in place of %h goes through a shell,
// and versions before 9.6 let anything be a host's name: so names with a quote
// do not get that far, and the others are in quotes.
func (b block) text() (string, error) {
	dir := filepath.Join(b.State, "ssh", b.Team)
	known := filepath.Join(b.State, knownHostsFile)
	for _, path := range []string{b.Program, dir, known} {
		if err := launch.CheckSSHPath(path); err != nil {
			return "", err
		}
	}
	program, h, names := "'"+b.Program+"'", "'%h'", `"!*'*,!*\*,*"`
	if b.Windows { // cmd.exe
		program, h, names = b.Program, "%h", `"!* *,!*&*,!*|*,!*<*,!*>*,!*^*,!*(*,!*)*,*"`
	}
	var via strings.Builder
	for _, v := range b.Via {
		via.WriteString(" --via " + v) // checked: no blank, no quote
	}
	file := func(path string) string { return `"` + filepath.ToSlash(path) + `"` }
	return strings.Join([]string{
		"# Servers of team " + b.Team + ", by " + sft.Version + " of sft. Keep this before what is for all hosts.",
		`Match host ` + names + ` exec "` + program + ` resolve -q --team ` + b.Team + ` -- ` + h + `"`,
		`    ProxyCommand ` + program + ` proxycommand --team ` + b.Team + via.String() + ` --user %r -- ` + h,
		`    User ` + b.Login,
		`    IdentityAgent "` + agentAddress(dir, "%h") + `"`,
		`    IdentitiesOnly no`,
		`    PreferredAuthentications publickey`,
		`    ForwardAgent no`,
		`    UserKnownHostsFile ` + file(known),
		`    GlobalKnownHostsFile ` + file(known),
		`    StrictHostKeyChecking yes`,
		`    UpdateHostKeys no`,
		`    CheckHostIP no`,
		`    VerifyHostKeyDNS no`,
		`Match all`,
		``,
	}, "\n"), nil
}

// resolveTime is how long ssh is kept waiting for whether a name is a server's.
const resolveTime = 3 * time.Second

// resolveQuietly answers whether name is a server's, for ssh. A name that was
// one before still is if nobody is signed in, or the agent has just refused:
// proxycommand says so then, or has the person sign in. Otherwise ssh would go
// to whoever has that name elsewhere.
func (p *program) resolveQuietly(ctx context.Context, name string, ask func(context.Context) error) error {
	err := waitFor(ctx, resolveTime, ask)
	switch sft.CodeOf(err) {
	case sft.SignIn, sft.Denied, sft.TooMany:
	default:
		return err
	}
	if paths, e := p.paths(); e == nil && knownHost(paths.State, name) {
		return nil
	}
	return err
}
