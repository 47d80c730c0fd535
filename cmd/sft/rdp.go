package main

import (
	"context"
	"errors"
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
		Use:   "rdp [--via SERVER]... [--size WxH|--fullscreen] [--multimon] [--client NAME] [--no-launch] SERVER",
		Short: "Open a desktop on a server",
		Long: `Rdp opens a desktop on a server, signed in as yourself, in your own RDP client.
Name the server as "sft list-servers" shows it, or as project/server.

With --no-launch no RDP client is started: the address to connect one to and
the user name are printed, and the way stays open until Ctrl-C. The password
is written to the file descriptor that --password-fd names, or shown once on
the terminal with --show-password. It was made for this one run and opens
nothing but the printed address; the account's own never leaves the server,
unless that is set to deliver it.

A desktop that was locked there asks for a password that nobody has: the RDP
client is ended, and at a terminal Enter leads back to the same desktop, by a
fresh sign-in. Ctrl-C and the end of the input end the command.

Once a desktop was shown the exit status is 0, whatever the RDP client says.`,
		Args:              oneServer,
		ValidArgsFunction: p.completeServers,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.openDesktop(cmd.Context(), args[0], f, cmd.Flags().Changed("fullscreen"))
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&f.via, "via", nil, viaText)
	fl.StringVar(&f.client, "client", "", "the RDP client, as in the setting rdp.client")
	fl.StringVar(&f.view.Size, "size", "", "size of the window, WxH (default: the screen's work area)")
	fl.BoolVar(&f.view.Fullscreen, "fullscreen", false, "take the whole screen")
	fl.BoolVar(&f.view.MultiMonitor, "multimon", false, "take all monitors")
	fl.BoolVar(&f.noLaunch, "no-launch", false, "start no RDP client")
	fl.IntVar(&f.passwordFD, "password-fd", -1, "with --no-launch: write the password to this file descriptor")
	fl.BoolVar(&f.showPassword, "show-password", false, "show the password on the terminal, for an RDP client that asks for it")
	fl.BoolVar(&f.json, "json", false, "with --no-launch: print as JSON")
	return cmd
}

// check refuses flags that do not go together, before anything is asked for.
func (f *rdpFlags) check(stderrTTY bool) error {
	wrong := func(msg, hint string) error { return usage{&sft.Error{Code: sft.Invalid, Msg: msg, Hint: hint}} }
	switch {
	case f.view.Size != "" && f.view.Fullscreen:
		return wrong("--size and --fullscreen do not go together", "leave one out")
	case !f.noLaunch && (f.passwordFD >= 0 || f.json):
		return wrong("--password-fd and --json go with --no-launch", "add --no-launch")
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
	if err := errors.Join(sft.CheckTarget(target), checkVia(f.via)); err != nil {
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
	answer := make(chan error, 1)
	asked := sync.OnceValue(func() error { return <-answer })
	if f.noLaunch {
		answer <- nil
	} else {
		choice := f.client
		if choice == "" {
			choice = set.RDP.Client
		}
		if prog, err = launch.Find(choice, p.getenv); err != nil {
			return err
		}
	}
	// Both take as long as asking the platform does. FreeRDP takes a key that
	// is made at once.
	quiet, key := prog != nil && prog.ShowsNothing(), rdp.RSA
	if quiet {
		key = rdp.P256
	}
	if prog != nil {
		if prog.Asks() && !f.showPassword {
			return usage{&sft.Error{Code: sft.Invalid, Msg: prog.Name + " takes no password from sft",
				Hint: "add --show-password, and type what it shows; or install FreeRDP"}}
		}
		prog.How(launch.Start(set.RDP.Launch))
		go func() { answer <- prog.Ask(ctx) }()
	}
	front := newFront(key)
	s, err := p.session(ctx, p.quietly())
	if err != nil {
		return err
	}
	if prog != nil && set.RDP.Sign {
		prog.SignBy(func(lines []string) ([]byte, error) { return s.SignRDPFile(ctx, lines) },
			func(err error) { p.voice.say("the connection file is not signed: " + sft.Explain(err)) })
	}
	done := p.voice.progress("asking the platform for " + target)
	c, err := s.Connect(ctx, target, frame.RDP, f.via, times.mark)
	done()
	if err != nil {
		return err
	}
	defer c.Close()
	c.Hops(set.netcat(), !isTerminal(p.in))
	v := &visit{p: p, c: c, f: f, prog: prog, paths: paths, times: times}
	err = v.untilLeft(ctx, target, isTerminal(p.in), c.Renew, func() error {
		if front == nil {
			front = newFront(key)
		}
		m := front
		front = nil
		if !quiet {
			return v.patient(ctx, m, asked, password)
		}
		if err := asked(); err != nil {
			return err
		}
		return v.early(ctx, m)
	})
	if err == nil && ctx.Err() == nil {
		p.lost(ctx, c.Target())
	}
	return err
}

// newFront makes a Front, which takes a moment.
func newFront(key rdp.Key) <-chan made {
	front := make(chan made, 1)
	go func() {
		f, err := rdp.NewFront("", key)
		front <- made{f, err}
	}()
	return front
}

// A visit is one session, once the platform has said yes.
type visit struct {
	p     *program
	c     *client.Connection
	f     rdpFlags
	prog  *launch.Program // nil: the person starts one
	paths conf.Client
	times *times

	mu   sync.Mutex
	told map[string]bool // what the host has said
}

// untilLeft runs once, and again each time that the desktop was locked and the
// person wants to go back to it: for the same session, which renew has the
// platform authorize afresh. Nobody is asked without a terminal. What goes
// wrong after a desktop was shown is told, and no failure.
func (v *visit) untilLeft(ctx context.Context, target string, tty bool, renew func(context.Context) error, once func() error) error {
	err := once()
	for sft.CodeOf(err) == sft.Locked {
		what := "the desktop of " + target + " was locked; "
		if !tty {
			v.p.voice.say(what + "run \"sft rdp " + target + "\" again to return to it")
			return nil
		}
		forget(v.p.in)
		v.p.voice.say(what + "press Enter to return to it")
		if !enter(ctx, v.p.in) {
			return nil
		}
		if err = renew(ctx); err == nil {
			err = once()
		}
		if err != nil && sft.CodeOf(err) != sft.Locked {
			if ctx.Err() == nil {
				v.p.voice.fail(err)
			}
			return nil
		}
	}
	return err
}

// enter waits for Enter, and reports whether it came before the end of the
// input or of ctx.
func enter(ctx context.Context, in io.Reader) bool {
	came := make(chan bool, 1)
	go func() {
		for b := make([]byte, 1); ; {
			n, err := in.Read(b)
			if n > 0 && b[0] == '\n' || err != nil {
				came <- err == nil
				return
			}
		}
	}()
	select {
	case ok := <-came:
		return ok && ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// forget drops what was typed before: an Enter of then is no answer.
func forget(in any) {
	if fd, ok := in.(interface{ Fd() uintptr }); ok {
		_ = dropTyped(fd.Fd()) // at worst that Enter counts
	}
}

// open opens a stream, and tells the person what the host says with it.
func (v *visit) open(ctx context.Context, ahead launch.Ahead) (opened, error) {
	w, err := way(v.c.Open(ctx, ahead))
	if err == nil {
		v.tell(v.c.Target().Name, w.reply)
	}
	return w, err
}

// maxTold caps what a host can say in one visit, in lines.
const maxTold = 8

// tell says what a host wants its person to know, each once.
func (v *visit) tell(server string, r *frame.RDPReply) {
	var lines []string
	if r.PasswordReset {
		lines = append(lines, "the password of "+r.Login+" on "+server+" could not be changed and was reset: passwords saved there in browsers and in Credential Manager, certificates with private keys and EFS files can no longer be read")
	}
	for _, w := range frame.CleanWarnings(r.Warnings) {
		lines = append(lines, server+" warns: "+w)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, l := range lines {
		if v.told == nil {
			v.told = map[string]bool{}
		}
		if !v.told[l] && len(v.told) < maxTold {
			v.told[l] = true
			v.p.voice.say(l)
		}
	}
}

// errDelivers says that the RDP client was started for a server that signs in
// itself, and this one delivers the password.
var errDelivers = errors.New("the server delivers the password")

// early starts the RDP client while the first stream is opened, which takes
// as long: it shows nothing before it is connected.
func (v *visit) early(ctx context.Context, front <-chan made) error {
	m := <-front
	if m.err != nil {
		return m.err
	}
	run, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	first := make(chan launch.Way, 1)
	var delivered opened
	done := v.p.voice.progress("waiting for " + v.c.Target().Name)
	go func() {
		defer close(first)
		w, err := v.open(run, nil)
		done()
		switch {
		case err != nil:
			cancel(err)
		case w.reply.SignIn == frame.Deliver:
			delivered = w
			cancel(errDelivers)
		default:
			first <- w.Way
		}
	}()
	l, err := loopback.ListenApart(ctx)
	if err != nil {
		return err
	}
	d := v.desktop(l, frame.Inject, first)
	v.answer(ctx, d, m.front)
	err = v.run(run, d, nil)
	if !errors.Is(err, errDelivers) {
		return err
	}
	if l, err = loopback.ListenApart(ctx); err != nil {
		return err
	}
	return v.run(ctx, v.deliver(l, delivered), nil)
}

// patient opens the first stream before the RDP client is started, or its
// address is printed.
func (v *visit) patient(ctx context.Context, front <-chan made, asked func() error, password io.WriteCloser) error {
	done := v.p.voice.progress("waiting for " + v.c.Target().Name)
	first, err := v.open(ctx, nil)
	done()
	if err != nil {
		return err
	}
	m, err := <-front, asked()
	if err == nil {
		err = m.err
	}
	var l *loopback.Listener
	if err == nil {
		l, err = loopback.ListenApart(ctx)
	}
	if err != nil {
		first.Stream.Close()
		return err
	}
	if first.reply.SignIn == frame.Deliver {
		return v.run(ctx, v.deliver(l, first), password)
	}
	d := v.desktop(l, frame.Inject, launch.Ready(first.Way))
	v.answer(ctx, d, m.front)
	return v.run(ctx, d, password)
}

// desktop is a Desktop whose way of signing in is still to be set.
func (v *visit) desktop(l *loopback.Listener, signIn string, first <-chan launch.Way) *launch.Desktop {
	d := &launch.Desktop{
		Listener: l,
		First:    first,
		Open: func(ctx context.Context, ahead launch.Ahead) (launch.Way, error) {
			w, err := v.open(ctx, ahead)
			if err == nil && w.reply.SignIn != signIn {
				w.Stream.Close()
				err = &sft.Error{Code: sft.Denied, Msg: "the server signs in by " + sft.Quote(w.reply.SignIn) + " now", Hint: "run \"sft rdp\" again"}
			}
			return w.Way, err
		},
		Final:   final,
		Program: v.prog,
		Target:  launch.Target{Addr: l.Addr(), Login: v.c.Target().Login, Server: v.c.Target().Name, Channels: v.c.Channels()},
		View:    v.f.view,
		RunBase: v.p.runBase(v.paths),
		Say:     v.p.voice.say,
		Mark:    v.times.mark,
	}
	if v.p.debug {
		d.Output = v.p.voice.err
	}
	return d
}

// answer has d answer the RDP client itself.
func (v *visit) answer(ctx context.Context, d *launch.Desktop, front *rdp.Front) {
	front.Login, front.Ahead = d.Target.Login, v.prog != nil && v.prog.JoinsInOrder()
	front.Proven = v.prog != nil && v.prog.Proven()
	d.Front, d.Secret, d.Target.Fingerprint, d.Thumb = front, front.Secret, front.Fingerprint, front.Thumbprint()
	d.Refused = func(error) { v.p.claim(ctx, v.c) }
}

// deliver hands the account's password to the RDP client.
func (v *visit) deliver(l *loopback.Listener, w opened) *launch.Desktop {
	d := v.desktop(l, frame.Deliver, launch.Ready(w.Way))
	d.Secret, d.Target.Login, d.Target.Fingerprint = w.Secret, w.reply.Login, w.reply.CertificateSHA256
	return d
}

// run runs d to its end, and closes what it was given.
func (v *visit) run(ctx context.Context, d *launch.Desktop, password io.WriteCloser) error {
	err := d.Target.Check()
	switch {
	case err != nil:
	case v.f.noLaunch:
		err = v.p.handOver(d, v.f, password)
	case v.f.showPassword:
		v.p.showPassword(d)
	}
	if err != nil {
		d.Listener.Close()
		go func() {
			if w := <-d.First; w.Stream != nil {
				w.Stream.Close()
			}
		}()
		return err
	}
	return d.Run(ctx)
}

// lost says so when the person may no longer reach the server: then it was
// not they who ended the session, and an RDP client tells no reason.
func (p *program) lost(ctx context.Context, h api.Hop) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	s, err := p.session(ctx, client.Never)
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
	case sft.Denied, sft.NotFound, sft.Revoked, sft.SignIn, sft.Conflict, sft.RDPRefused, sft.RDSFarm,
		sft.RDPDisabled, sft.RDPPrompts, sft.RDPLogonRight, sft.RDPNTLM, sft.RDPDomainController:
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
		p.showPassword(d)
	case password == nil:
		p.voice.say("the password was not asked for: --show-password shows it, --password-fd N writes it to file descriptor N")
	}
	p.voice.say("the way to " + d.Target.Server + " is open until Ctrl-C")
	return nil
}

// showPassword writes the password to the terminal.
func (p *program) showPassword(d *launch.Desktop) {
	fmt.Fprintln(p.voice.err, "password "+printable(d.Secret.Reveal())) // a terminal: checked
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
