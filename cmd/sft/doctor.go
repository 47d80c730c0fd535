package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/client"
	"sft/internal/conf"
	"sft/internal/doctor"
	"sft/internal/launch"
	"sft/internal/loopback"
)

func (p *program) doctor() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor [--json] [SERVER]",
		Short: "Find out what is wrong, and what to do",
		Long: `Doctor looks at each step that "sft rdp" takes: settings, state, enrolment, the
way to the platform, the clock, the sign-in, the RDP client, and the loopback port
that it would connect to; and, if you name a server, what it is to you, what its
agent says is wrong there, and its broker, which is asked for a ping: no account
is opened for it.

A line is a step: ok, warn (it works), fail, or skip (not tried, since another
step failed). It does not stop at a failure, opens no browser and changes
no setting. The exit status is that of the failures; of several the highest.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: p.completeServers,
		RunE: func(cmd *cobra.Command, args []string) error {
			target := ""
			if len(args) == 1 {
				target = args[0]
				if err := sft.CheckTarget(target); err != nil {
					return err
				}
			}
			r := doctor.Report{Out: p.out, JSON: asJSON}
			p.examine(cmd.Context(), target, r.Add)
			return told(r.End())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

// told is what a command ends with whose checks have told everything.
func told(worst *doctor.Check, err error) error {
	if err == nil && worst != nil {
		err = silent{&sft.Error{Code: worst.Code, Msg: worst.Found, Hint: worst.Fix}}
	}
	return err
}

// examine tells of every step, in order.
func (p *program) examine(ctx context.Context, target string, tell func(doctor.Check)) {
	paths, err := p.paths()
	var set settings
	if err != nil {
		tell(doctor.Failed("settings", err))
		tell(doctor.Check{Step: "state", Verdict: doctor.Skip, Found: "needs settings"})
		client.SkipDiagnosis(target, "state", tell)
	} else {
		set = examineSettings(paths.Config, tell)
		if d, all, err := p.opened(paths, set); err != nil {
			tell(doctor.Failed("state", err))
			client.SkipDiagnosis(target, "state", tell)
		} else {
			tell(doctor.Check{Step: "state", Verdict: doctor.OK, Found: fmt.Sprintf("%s, enrolments: %d", paths.State, all)})
			d.Diagnose(ctx, p.team, target, tell)
		}
	}
	examineLoopback(ctx, func(ctx context.Context) (listener, error) { return loopback.ListenApart(ctx) }, tell)
	p.examineClient(ctx, set, tell)
}

// A listener is a *loopback.Listener.
type listener interface {
	Accept() (*net.TCPConn, error)
	Addr() netip.AddrPort
	Close() error
}

// examineLoopback opens the port that an RDP client would connect to, and
// connects to it.
func examineLoopback(ctx context.Context, listen func(context.Context) (listener, error), tell func(doctor.Check)) {
	const step = "loopback"
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	l, err := listen(ctx)
	if err != nil {
		tell(doctor.Failed(step, &sft.Error{Code: sft.Internal, Msg: "no port can be opened on this machine itself: " + err.Error(), Err: err,
			Hint: "see whether a firewall or a sandbox forbids it to sft"}))
		return
	}
	defer l.Close()
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
		accepted <- err
	}()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	if err == nil {
		defer c.Close()
		select {
		case err = <-accepted:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if _, stranger := errors.AsType[*loopback.StrangerError](err); stranger {
		tell(doctor.Failed(step, &sft.Error{Code: sft.Internal, Msg: "a socket of yours is not known as yours: " + err.Error(), Err: err,
			Hint: "see whether a sandbox, or a VPN's filter, hides the system's table of sockets from sft"}))
		return
	}
	if err != nil {
		tell(doctor.Failed(step, &sft.Error{Code: sft.Internal, Msg: "a port on this machine cannot be reached from it: " + err.Error(), Err: err,
			Hint: "let connections to 127.0.0.0/8 through the firewall"}))
		return
	}
	tell(doctor.Check{Step: step, Verdict: doctor.OK, Found: l.Addr().Addr().String() + " takes your sockets, and knows them as yours"})
}

// examineSettings reads the settings; those that cannot be read are the
// defaults from here on.
func examineSettings(path string, tell func(doctor.Check)) settings {
	set, err := readSettings(path)
	if err != nil {
		c := doctor.Failed("settings", err)
		c.Found += "; what follows is by the defaults"
		tell(c)
		return settings{}
	}
	found := path
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		found += ": none, so the defaults"
	}
	tell(doctor.Check{Step: "settings", Verdict: doctor.OK, Found: found})
	return set
}

// opened is a device that asks nobody, and how often it is enrolled.
func (p *program) opened(paths conf.Client, set settings) (*client.Device, int, error) {
	store, err := client.OpenStore(paths.State, client.Ring(p.getenv("SFT_KEYRING")), p.getenv)
	if err != nil {
		return nil, 0, err
	}
	all, err := store.Accounts()
	if err != nil {
		return nil, 0, err
	}
	d := &client.Device{Store: store, Info: device(), Ask: set.asking(client.Never), Log: p.log(), Say: p.voice.say}
	if set.Network.ForwardProxy != "" {
		d.Proxy, err = url.Parse(set.Network.ForwardProxy) // checked when it was read
	}
	return d, len(all), err
}

// examineClient looks at the RDP client that would be started.
func (p *program) examineClient(ctx context.Context, set settings, tell func(doctor.Check)) {
	const step = "rdp-client"
	if !launch.HasScreen(p.getenv) {
		tell(doctor.Check{Step: step, Verdict: doctor.Warn, Found: "there is no screen to show a desktop on",
			Fix: "run \"sft rdp\" in a graphical session, or with --no-launch and an RDP client elsewhere"})
		return
	}
	prog, err := launch.Find(set.RDP.Client, p.getenv)
	if err == nil {
		err = prog.Installed()
	}
	if err == nil {
		prog.How(launch.Start(set.RDP.Launch))
		err = prog.Ask(ctx)
	}
	if err != nil {
		tell(doctor.Failed(step, err))
		return
	}
	c := doctor.Check{Step: step, Verdict: doctor.OK, Found: prog.String()}
	if prog.Asks() {
		c.Verdict, c.Found, c.Fix = doctor.Warn, c.Found+", takes no password from sft", "use \"sft rdp --show-password\", or install FreeRDP"
	}
	tell(c)
	if how, policies, ok := prog.Launch(); ok {
		found := "started by " + string(how)
		if chosen := launch.Start(set.RDP.Launch); chosen == "" || chosen == launch.StartAuto {
			found += ", which was chosen"
		} else {
			found += ", as rdp.launch says"
		}
		if len(policies) == 0 {
			policies = []string{"none"}
		}
		c := doctor.Check{Step: "rdp-launch", Verdict: doctor.OK, Found: found + "; policies set: " + strings.Join(policies, ", ")}
		if prog.NeedsSignature() && !set.RDP.Sign {
			c.Verdict, c.Fix = doctor.Warn, "run \"sft config rdp.sign true\", or \"sft config rdp.launch direct\": mstsc refuses files that are not signed"
		}
		tell(c)
	}
}
