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
func commandsOfHost(*options) []*cobra.Command { return nil }

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
