package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/accounts"
	"sft/internal/agent"
	"sft/internal/daemon"
)

const helpOfHost = `It runs as root, under the
system's service manager.

A host enrols by a token in /var/lib/sftd/enrollment.token. Settings are in
/etc/sft/sftd.yaml; without that file all have their defaults.`

// commandsOfHost are those that only this system has.
func commandsOfHost(o *options) []*cobra.Command {
	return []*cobra.Command{{
		Use:   "restore-ssh",
		Short: "Take what sftd wrote out of the SSH server's configuration",
		Long: `Restore-ssh takes what sftd wrote out of the configuration of this host's
OpenSSH server, and has the server read it. The files are as they were before.
It is for a host that sftd is removed from, which does it by itself: while sftd
runs it puts its lines back, unless sftd.yaml says "SSHAccess: none".`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.config()
			if err != nil {
				return usage{err}
			}
			if os.Geteuid() != 0 {
				return &sft.Error{Code: sft.Denied, Msg: "only root may change the SSH server's configuration", Hint: "run it with sudo"}
			}
			return agent.RestoreSSH(cmd.Context(), c, logger(c, o.debug, false))
		},
	}}
}

func backend(agent.Config, func(login string)) accounts.Backend { return accounts.NewLinux() }

// notRunning says what to do about an agent that does not run.
func notRunning() string { return "start it: systemctl start sftd" }

// runAlone is sftd without a command: the service itself.
func runAlone(ctx context.Context, o *options, syslog bool) error {
	c, err := o.config()
	if err != nil {
		return usage{err}
	}
	if os.Geteuid() != 0 {
		return &sft.Error{Code: sft.Denied, Msg: "sftd has to run as root", Hint: "start it with: systemctl start sftd"}
	}
	log := logger(c, o.debug, syslog)
	return daemon.Run(ctx, "sftd", func(ctx context.Context, ready func() error, _ <-chan daemon.SessionChange) error {
		return serve(ctx, c, log, ready, nil)
	})
}

func logger(c agent.Config, debug, syslog bool) *slog.Logger {
	h := &slog.HandlerOptions{Level: level(c, debug)}
	if syslog || os.Getenv("JOURNAL_STREAM") != "" {
		h.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(os.Stderr, h))
}
