package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/client"
	"sft/internal/launch"
)

func (p *program) registerURLHandler() *cobra.Command {
	var remove bool
	cmd := &cobra.Command{
		Use:   "register-url-handler [--remove]",
		Short: "Open links to servers by sft",
		Long: `Register-url-handler has your desktop open links that begin with sft:// or
scaleft:// by "sft open-url". It is for you alone, and undone by --remove.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if remove {
				return launch.UnregisterLinks(p.getenv)
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			return launch.RegisterLinks(self, p.getenv)
		},
	}
	cmd.Flags().BoolVar(&remove, "remove", false, "open them no longer")
	return cmd
}

func (p *program) openURL() *cobra.Command {
	return &cobra.Command{
		Use:   "open-url -- URL",
		Short: "Follow a link to a server",
		Long: `Open-url connects to the server that a link names, if it is for a team that
this machine is enrolled with, and if you say yes:

  sft://[USER@]PLATFORM/t/TEAM/a/SERVER/rdp[?via=[LOGIN@]HOP[&via=...]]

or with ssh at the end. The question is asked at the terminal, or in a window
where there is none.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usage{&sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("open-url takes one link, and got %d arguments", len(args)), Hint: "run: sft open-url -- 'LINK'"}}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.follow(cmd.Context(), args[0], p.askPerson, p.connectLink)
		},
	}
}

// follow does what a link asks for, once ask has said yes.
func (p *program) follow(ctx context.Context, raw string, ask func(context.Context, string) (bool, error), connect func(context.Context, client.Link) error) error {
	l, err := client.ParseLink(raw)
	if err != nil {
		return err
	}
	d, err := p.open(client.Never)
	if err != nil {
		return err
	}
	all, err := d.Mine()
	if err != nil {
		return err
	}
	a, err := l.Account(all)
	if err != nil {
		return err
	}
	yes, err := ask(ctx, "A link asks to connect to "+l.Target+through(l.Via)+" by "+l.Service+", as "+a.User+" of team "+a.Team+" at "+l.Host+". Connect?")
	if err != nil {
		return err
	}
	if !yes {
		return &sft.Error{Code: sft.Denied, Msg: "the link was not followed", Hint: "connect yourself: " + strings.Join(l.Command(), " ")}
	}
	p.team = a.Team
	return connect(ctx, l)
}

func through(via []string) string {
	if len(via) == 0 {
		return ""
	}
	return " through " + strings.Join(via, ", ")
}

// connectLink is "sft rdp" or "sft ssh" with what a link names: in a terminal,
// where what goes wrong can be read, if there is none and a window can be had.
func (p *program) connectLink(ctx context.Context, l client.Link) error {
	if !isTerminal(p.in) {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		if done, err := launch.InTerminal(append([]string{self}, l.Command()[1:]...)); done || err != nil {
			return err
		}
	}
	if l.Service == "rdp" {
		return p.openDesktop(ctx, l.Target, rdpFlags{via: l.Via, passwordFD: -1}, false)
	}
	return p.openShell(ctx, l.Via, []string{"--", l.Target})
}

// askPerson asks at the terminal, or in a window. Where neither is there, the
// answer is no.
func (p *program) askPerson(ctx context.Context, question string) (bool, error) {
	if !isTerminal(p.in) {
		return launch.Question(ctx, p.getenv, question)
	}
	forget(p.in)
	p.voice.say(question + " [y/N]")
	return saysYes(ctx, p.in)
}

// maxAnswer caps what is read for an answer, in bytes.
const maxAnswer = 64

// saysYes reads one line, and reports whether it is y or yes.
func saysYes(ctx context.Context, in io.Reader) (bool, error) {
	came := make(chan string, 1)
	go func() {
		var line []byte
		for b := make([]byte, 1); len(line) < maxAnswer; {
			n, err := in.Read(b)
			if n > 0 && b[0] == '\n' {
				came <- strings.ToLower(strings.TrimSpace(string(line)))
				return
			}
			if line = append(line, b[:n]...); err != nil {
				break
			}
		}
		came <- "" // without its end it is no answer
	}()
	select {
	case s := <-came:
		return s == "y" || s == "yes", nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}
