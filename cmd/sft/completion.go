package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/client"
)

func (p *program) completion(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print a script that completes commands and server names",
		Long: `Completion prints a script for your shell, for example:

  source <(sft completion bash)
  sft completion fish > ~/.config/fish/completions/sft.fish`,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		RunE: func(_ *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(p.out, true)
			case "zsh":
				return root.GenZshCompletion(p.out)
			case "fish":
				return root.GenFishCompletion(p.out, true)
			}
			return root.GenPowerShellCompletionWithDesc(p.out)
		},
	}
}

// completionTime is how long somebody who pressed Tab is kept waiting.
const completionTime = 2 * time.Second

// completeServers asks the platform for names. Whatever goes wrong is not
// said: the person is in the middle of a line.
func (p *program) completeServers(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	p.debug = false
	p.voice = &voice{err: nowhere{}}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	s, err := p.session(ctx, client.Never)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, err := s.Servers(ctx, "", "")
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, v := range list {
		if v.State == sft.StateActive && sft.CheckTarget(v.Name()) == nil && sft.CheckName("project", v.Project) == nil {
			names = append(names, v.Name()+"\t"+v.Project, v.Project+"/"+v.Name())
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (p *program) completeTeams(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	p.voice = &voice{err: nowhere{}}
	var names []string
	if d, err := p.open(client.Never); err == nil {
		accounts, _ := d.Mine()
		for _, a := range accounts {
			names = append(names, a.Team)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

type nowhere struct{}

func (nowhere) Write(b []byte) (int, error) { return len(b), nil }
