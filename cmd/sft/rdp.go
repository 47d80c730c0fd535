package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/api"
	"sft/internal/client"
	"sft/internal/conf"
	"sft/internal/frame"
	"sft/internal/launch"
	"sft/internal/loopback"
	"sft/internal/rdp"
	"sft/internal/tunnel"
)

// rdpFlags are those of one "sft rdp".
type rdpFlags struct {
	via          []string
	client       string
	view         launch.View
	noLaunch     bool
	passwordFD   int
	showPassword bool
	json         bool
}

func (p *program) rdp() *cobra.Command {
	var f rdpFlags
	cmd := &cobra.Command{
		Use:   "rdp [--size WxH|--fullscreen] [--multimon] [--client NAME] [--no-launch] SERVER",
		Short: "Open a desktop on a server",
		Long: `Rdp opens a desktop on a server, signed in as yourself, in your own RDP client.
Name the server as "sft list-servers" shows it, or as project/server.

With --no-launch no RDP client is started: the address to connect one to and
the user name are printed, and the way stays open until Ctrl-C. The password
is written to the file descriptor that --password-fd names, or shown once on
the terminal with --show-password. It was made for this one run and opens
nothing but the printed address; the account's own never leaves the server,
unless that is set to deliver it.

Once a desktop was shown the exit status is 0, whatever the RDP client says.`,
		Args:              oneServer,
		ValidArgsFunction: p.completeServers,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.openDesktop(cmd.Context(), args[0], f, cmd.Flags().Changed("fullscreen"))
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&f.via, "via", nil, "go through this server; may be repeated")
	fl.StringVar(&f.client, "client", "", "the RDP client, as in the setting rdp.client")
	fl.StringVar(&f.view.Size, "size", "", "size of the window, WxH (default: the screen's work area)")
	fl.BoolVar(&f.view.Fullscreen, "fullscreen", false, "take the whole screen")
	fl.BoolVar(&f.view.MultiMonitor, "multimon", false, "take all monitors")
	fl.BoolVar(&f.noLaunch, "no-launch", false, "start no RDP client")
	fl.IntVar(&f.passwordFD, "password-fd", -1, "with --no-launch: write the password to this file descriptor")
	fl.BoolVar(&f.showPassword, "show-password", false, "with --no-launch: show the password on the terminal")
	fl.BoolVar(&f.json, "json", false, "with --no-launch: print as JSON")
	return cmd
}

// check refuses flags that do not go together, before anything is asked for.
func (f *rdpFlags) check(stderrTTY bool) error {
	wrong := func(msg, hint string) error { return usage{&sft.Error{Code: sft.Invalid, Msg: msg, Hint: hint}} }
	switch {
	case len(f.via) > 0:
		return wrong("--via is not supported by this version of sft", "leave it out: servers are reached directly")
	case f.view.Size != "" && f.view.Fullscreen:
		return wrong("--size and --fullscreen do not go together", "leave one out")
	case !f.noLaunch && (f.passwordFD >= 0 || f.showPassword || f.json):
		return wrong("--password-fd, --show-password and --json go with --no-launch", "add --no-launch")
	case f.noLaunch && f.client != "":
		return wrong("--client and --no-launch do not go together", "leave one out")
	case f.showPassword && !stderrTTY:
		return wrong("--show-password needs a terminal: standard error is none", "use --password-fd")
	case f.passwordFD >= 0 && f.passwordFD < 3:
		return wrong("--password-fd "+strconv.Itoa(f.passwordFD)+" is a standard stream", "open another one, as in: sft rdp --no-launch --password-fd 3 SERVER 3>FILE")
	}
	if err := launch.CheckSize(f.view.Size); err != nil {
		return usage{err}
	}
	return nil
}

// openDesktop is one session, from the name to its end.
func (p *program) openDesktop(ctx context.Context, target string, f rdpFlags, fullscreenSaid bool) error {
	times := newTimes(p)
	if err := f.check(p.voice.tty); err != nil {
		return err
	}
	if err := sft.CheckTarget(target); err != nil {
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
	if !fullscreenSaid && f.view.Size == "" {
		f.view.Fullscreen = set.RDP.Fullscreen
	}
	if f.view.Size == "" && !f.view.Fullscreen {
		f.view.Size = set.RDP.ScreenSize
	}
	var password io.WriteCloser
	if f.passwordFD >= 0 {
		if password, err = inherited(f.passwordFD); err != nil {
			return err
		}
		defer password.Close()
	}
	var prog *launch.Program
	asked := make(chan error, 1)
	if f.noLaunch {
		asked <- nil
	} else {
		choice := f.client
		if choice == "" {
			choice = set.RDP.Client
		}
		if prog, err = launch.Find(choice, p.getenv); err != nil {
			return err
		}
		// It takes as long as asking the platform does.
		go func() { asked <- prog.Ask(ctx) }()
	}
	s, err := p.session(p.quietly())
	if err != nil {
		return err
	}
	done := p.voice.progress("asking the platform for " + target)
	c, err := s.Connect(ctx, target, frame.RDP, times.mark)
	done()
	if err != nil {
		return err
	}
	front := make(chan made, 1)
	go func() {
		f, err := rdp.NewFront(c.Target().Login)
		front <- made{f, err}
	}()
	done = p.voice.progress("waiting for " + c.Target().Name)
	first, err := way(c.Open(ctx))
	done()
	if err != nil {
		return err
	}
	defer first.Stream.Close()
	if err := <-asked; err != nil {
		return err
	}
	l, err := loopback.Listen(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	d := &launch.Desktop{
		Listener: l,
		First:    first.Way,
		Open: func(ctx context.Context) (launch.Way, error) {
			w, err := way(c.Open(ctx))
			if err == nil && w.reply.SignIn != first.reply.SignIn {
				w.Stream.Close()
				err = &sft.Error{Code: sft.Denied, Msg: "the server signs in by " + sft.Quote(w.reply.SignIn) + " now", Hint: "run \"sft rdp\" again"}
			}
			return w.Way, err
		},
		Final:   final,
		Program: prog,
		Target:  launch.Target{Addr: l.Addr(), Login: first.reply.Login, Server: c.Target().Name, Fingerprint: first.reply.CertificateSHA256, Channels: c.Channels()},
		View:    f.view,
		Secret:  first.Secret,
		RunBase: p.runBase(paths),
		Say:     p.voice.say,
		Mark:    times.mark,
	}
	if first.reply.SignIn == frame.Inject {
		m := <-front
		if m.err != nil {
			return m.err
		}
		d.Front, d.Secret = m.front, m.front.Secret
		d.Target.Login, d.Target.Fingerprint = m.front.Login, m.front.Fingerprint
		d.Refused = func(error) { p.claim(ctx, c) }
	}
	if p.debug {
		d.Output = p.voice.err
	}
	if err := d.Target.Check(); err != nil {
		return err
	}
	if f.noLaunch {
		if err := p.handOver(d, f, password); err != nil {
			return err
		}
	}
	err = d.Run(ctx)
	if err == nil && ctx.Err() == nil {
		p.lost(ctx, c.Target())
	}
	return err
}

// lost says so when the person may no longer reach the server: then it was
// not they who ended the session, and an RDP client tells no reason.
func (p *program) lost(ctx context.Context, h api.Hop) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	s, err := p.session(client.Never)
	if err == nil {
		_, err = s.Resolve(ctx, h.ServerID)
	}
	switch sft.CodeOf(err) {
	case sft.Denied, sft.Revoked, sft.NotFound:
		p.voice.say("the session on " + h.Name + " has ended: " + err.Error())
	}
}

// made is a Front, or why there is none.
type made struct {
	front *rdp.Front
	err   error
}

// An opened is a way, with what the host said of it.
type opened struct {
	launch.Way
	reply *frame.RDPReply
}

// way checks that this version can do what the host says of signing in.
func way(s tunnel.Stream, r frame.Reply, err error) (opened, error) {
	if err != nil {
		return opened{}, err
	}
	w := opened{launch.Way{Stream: s}, r.RDP}
	versions := "check that sft and sftd are of the same version"
	switch {
	case r.RDP == nil:
		err = &sft.Error{Code: sft.Internal, Msg: "the server's answer is not complete", Hint: versions}
	case r.RDP.SignIn == frame.Inject:
		w.Flags = r.RDP.NegotiationFlags
	case r.RDP.SignIn != frame.Deliver:
		err = &sft.Error{Code: sft.Invalid, Msg: "the server signs in by " + sft.Quote(r.RDP.SignIn) + ", which this version of sft does not know",
			Hint: "install a newer sft"}
	case r.RDP.Secret == nil || r.RDP.Secret.Empty():
		err = &sft.Error{Code: sft.Internal, Msg: "the server sent no password", Hint: versions}
	default:
		w.Secret = r.RDP.Secret.Secret
	}
	if err != nil {
		s.Close()
		return opened{}, err
	}
	return w, nil
}

// claim tells the platform that somebody at the RDP client's end did not know
// the launch secret. It is no reason to end anything if it cannot be told.
func (p *program) claim(ctx context.Context, c *client.Connection) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := c.Refused(ctx, frame.AbortSecret); err != nil && p.debug {
		p.voice.say("tell the platform: " + err.Error())
	}
}

// final reports whether a later stream that was refused means the end of the
// session: trying again cannot help.
func final(err error) bool {
	switch sft.CodeOf(err) {
	case sft.Denied, sft.NotFound, sft.Revoked, sft.SignIn, sft.Conflict, sft.RDPRefused, sft.RDSFarm:
		return true
	}
	return false
}

// runBase is the folder for what lives as long as a command. A runtime folder
// that cannot be used is no reason to fail.
func (p *program) runBase(paths conf.Client) string {
	if err := conf.PrivateDir(paths.Runtime); err == nil {
		return paths.Runtime
	}
	return filepath.Join(paths.State, "run")
}

// handOver gives a person with an RDP client of their own what it needs.
func (p *program) handOver(d *launch.Desktop, f rdpFlags, password io.WriteCloser) error {
	if password != nil {
		if _, err := io.WriteString(password, d.Secret.Reveal()+"\n"); err != nil {
			return fmt.Errorf("write to --password-fd: %w", err)
		}
		if err := password.Close(); err != nil {
			return fmt.Errorf("write to --password-fd: %w", err)
		}
	}
	if f.json {
		if err := writeJSON(p.out, map[string]string{"address": d.Target.Addr.String(), "user_name": d.Target.Login,
			"server": d.Target.Server, "certificate_sha256": d.Target.Fingerprint}); err != nil {
			return err
		}
	} else if _, err := fmt.Fprintf(p.out, "address %s\nuser_name %s\ncertificate_sha256 %s\n", d.Target.Addr, d.Target.Login, d.Target.Fingerprint); err != nil {
		return err
	}
	switch {
	case f.showPassword:
		fmt.Fprintln(p.voice.err, "password "+printable(d.Secret.Reveal())) // a terminal: checked
	case password == nil:
		p.voice.say("the password was not asked for: --show-password shows it, --password-fd N writes it to file descriptor N")
	}
	p.voice.say("the way to " + d.Target.Server + " is open until Ctrl-C")
	return nil
}

// times tells when the steps of a session were done, for people who measure.
type times struct {
	p     *program
	on    bool
	began time.Time
	mu    sync.Mutex
	seen  map[string]bool
}

func newTimes(p *program) *times {
	return &times{p: p, on: p.debug || p.getenv("SFT_TIMING") != "", began: time.Now(), seen: map[string]bool{}}
}

// mark writes a line the first time that a step is done.
func (t *times) mark(step string) {
	if !t.on {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.seen[step] {
		t.seen[step] = true
		t.p.voice.say(fmt.Sprintf("timing: %s %d", step, time.Since(t.began).Milliseconds()))
	}
}
