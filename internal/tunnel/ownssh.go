package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sft"
	"sft/internal/loopback"
)

// An ownSSH is the step through an unmanaged hop: the person's own ssh, with
// their settings, keys and agent, connects on with -W. It judges who the hop
// is; sft knows nothing of it.
type ownSSH struct {
	p       *Path
	hop     Hop
	host    string
	before  way
	program string
	marked  sync.Once

	life context.Context
	stop context.CancelFunc
}

// loginRE is more than sft.CheckLogin takes, and less than a shell minds.
var loginRE = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._@+-]{0,63}$`)

func (p *Path) newOwnSSH(hop Hop, before way) (way, error) {
	o := &ownSSH{p: p, hop: hop, host: hop.Address, before: before}
	if host, port, err := net.SplitHostPort(hop.Address); err == nil && port == strconv.Itoa(hop.Port) {
		o.host = host
	}
	wrong := func(what string) error {
		return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("hop %s cannot be gone through: %s", hop.Name, what),
			Hint: "have its address, port and login corrected"}
	}
	switch {
	case !isHost(o.host):
		return nil, wrong("address " + sft.Quote(hop.Address))
	case hop.HostName != "" && !isHost(hop.HostName):
		return nil, wrong("address " + sft.Quote(hop.HostName))
	case hop.Port < 0 || hop.Port > 65535:
		return nil, wrong("port " + strconv.Itoa(hop.Port))
	case hop.Login != "" && !loginRE.MatchString(hop.Login):
		return nil, wrong("login " + sft.Quote(hop.Login))
	}
	var err error
	if o.program, err = sshProgram(); err != nil {
		return nil, &sft.Error{Code: sft.Unavailable, Msg: fmt.Sprintf("hop %s is to be gone through by ssh, which is not there", hop.Name), Err: err,
			Hint: "install the OpenSSH client"}
	}
	p.mu.Lock()
	o.life, o.stop = context.WithCancel(p.life)
	p.mu.Unlock()
	return o, nil
}

func (o *ownSSH) of() Hop       { return o.hop }
func (o *ownSSH) working() bool { return o.life.Err() == nil && o.before.working() }
func (o *ownSSH) close()        { o.stop() }

// args are the options that come before what is connected to.
func (o *ownSSH) args() []string {
	args := append([]string{}, o.p.sshArgs...)
	if o.hop.HostName != "" {
		args = append(args, "-o", "HostName="+o.hop.HostName)
	}
	if o.hop.Port != 0 {
		args = append(args, "-p", strconv.Itoa(o.hop.Port))
	}
	if o.hop.Login != "" {
		args = append(args, "-l", o.hop.Login)
	}
	return args
}

// dial runs ssh. That the hop connected on shows when something is read: ssh
// says nothing before, and may have to ask the person for a passphrase.
func (o *ownSSH) dial(ctx context.Context, to target) (net.Conn, error) {
	var args []string // the first one counts, of two that say the same
	var port *guarded
	if _, first := o.before.(direct); !first {
		var err error
		if port, args, err = o.behind(ctx); err != nil {
			return nil, err
		}
	}
	args = append(args, o.args()...)
	if o.p.Batch {
		args = append(args, "-o", "BatchMode=yes")
	}
	every := max(1, int(o.p.aliveTime()/time.Second))
	args = append(args, "-o", "ConnectTimeout="+strconv.Itoa(int(stepTime/time.Second)),
		"-o", "ServerAliveInterval="+strconv.Itoa(every), "-o", "ServerAliveCountMax=3")
	args = append(args, "-W", to.address, "--", o.host)
	c, err := o.start(args)
	if err != nil {
		if port != nil {
			port.Close()
		}
		return nil, &sft.Error{Code: sft.Unavailable, Msg: fmt.Sprintf("hop %s is to be gone through by ssh, which does not start", o.hop.Name), Err: err,
			Hint: "check that " + o.program + " runs"}
	}
	if port != nil {
		port.only(uint32(c.cmd.Process.Pid))
		context.AfterFunc(c.life, func() { port.Close() })
	}
	s := newStream(c, to.address, func(err error) error { return o.lost(c, port, to, err) })
	s.patient = askTime
	if o.p.Batch {
		s.patient = 2 * stepTime
	}
	return s, nil
}

// lost words the end of what the child carried.
func (o *ownSSH) lost(c *child, port *guarded, to target, err error) error {
	if o.life.Err() != nil {
		return net.ErrClosed
	}
	select {
	case <-c.life.Done():
	case <-time.After(time.Second): // it has closed its standard output
		return err
	}
	if err == io.EOF && c.cmd.ProcessState.Success() {
		return io.EOF
	}
	if port != nil {
		if before := port.err.Load(); before != nil {
			if e, ok := errors.AsType[*sft.Error](*before); ok {
				return &lostError{e}
			}
		}
	}
	e := &sft.Error{Code: sft.Unavailable, Err: err, Msg: fmt.Sprintf("no way through hop %s to %s: ssh ended with %s", o.hop.Name, to, c.cmd.ProcessState)}
	if c.any.Load() {
		e.Msg = fmt.Sprintf("the connection through hop %s was lost: ssh ended with %s", o.hop.Name, c.cmd.ProcessState)
	}
	e.Hint = fmt.Sprintf("see what ssh said, and check that \"ssh %s\" works", o.host)
	return &lostError{e}
}

// behind has ssh connect through the hops before this one: by a port of the
// machine itself that takes one socket, of this person alone. Where the hop is
// and by what name ssh knows its key is what the person's settings say.
func (o *ownSSH) behind(ctx context.Context) (*guarded, []string, error) {
	settings, err := o.settings(ctx)
	if err != nil {
		return nil, nil, &sft.Error{Code: sft.Unavailable, Err: err, Msg: fmt.Sprintf("where hop %s is cannot be read from ssh: %s", o.hop.Name, err),
			Hint: fmt.Sprintf("check that \"ssh -G %s\" works", o.host)}
	}
	to, err := newTarget(o.hop.Name, net.JoinHostPort(settings.host, strconv.Itoa(settings.port)))
	if err != nil {
		return nil, nil, err
	}
	g, err := o.guard(to)
	if err != nil {
		return nil, nil, &sft.Error{Code: sft.Unavailable, Err: err, Msg: "no port of this machine can be listened on", Hint: "try again"}
	}
	at := g.l.Addr()
	return g, []string{"-o", "HostName=" + at.Addr().String(), "-o", "Port=" + strconv.Itoa(int(at.Port())),
		"-o", "HostKeyAlias=" + settings.alias, "-o", "NoHostAuthenticationForLocalhost=no",
		"-o", "ProxyCommand=none", "-o", "ControlPath=none", "-o", "CanonicalizeHostname=no", "-o", "AddressFamily=inet"}, nil
}

// settings asks ssh what it would do.
func (o *ownSSH) settings(ctx context.Context) (settings, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, o.program, append(append([]string{"-G", "-T"}, o.args()...), "--", o.host)...)
	var out limited
	cmd.Stdout = &out
	cmd.Stderr = o.stderr()
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return settings{}, err
	}
	return readSettings(out.Bytes())
}

// limited keeps 256 KiB.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > 256<<10 {
		return 0, errors.New("it says too much")
	}
	return l.Buffer.Write(p)
}

// settings are what matters of "ssh -G".
type settings struct {
	host  string
	port  int
	alias string // by which the hop's key is known
}

// readSettings reads the output of "ssh -G": a keyword in lower case and a
// value in each line. What it returns fits in an option and in an address.
func readSettings(b []byte) (settings, error) {
	var s settings
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		switch key {
		case "hostname":
			s.host = value
		case "port":
			s.port, _ = strconv.Atoi(value)
		case "hostkeyalias":
			s.alias = value
		}
	}
	if !isHost(s.host) {
		return settings{}, errors.New("it names no host")
	}
	if s.port < 1 || s.port > 65535 {
		return settings{}, errors.New("it names no port")
	}
	if s.alias == "" {
		s.alias = s.host
		if s.port != 22 {
			s.alias = fmt.Sprintf("[%s]:%d", s.host, s.port) // sshd(8), known hosts
		}
	} else if !isHost(strings.NewReplacer("[", "", "]", "").Replace(s.alias)) {
		return settings{}, errors.New("the alias of its key cannot be used")
	}
	return s, nil
}

// guarded is the loopback port for one ssh.
type guarded struct {
	l     *loopback.Listener
	err   atomic.Pointer[error] // why what connected got nowhere
	ready chan struct{}         // closed when the port knows whom to take
	once  sync.Once
	pid   uint32
}

// guard listens for one socket and carries it to target through the hops
// before.
func (o *ownSSH) guard(to target) (*guarded, error) {
	l, err := loopback.Listen(o.life)
	if err != nil {
		return nil, err
	}
	g := &guarded{l: l, ready: make(chan struct{})}
	go func() {
		<-g.ready
		defer l.Close()
		if g.pid == 0 || onlyProcess(l, g.pid) != nil {
			return
		}
		var c *net.TCPConn
		for {
			var err error
			if c, err = l.Accept(); err == nil {
				break
			}
			if _, stranger := errors.AsType[*loopback.StrangerError](err); !stranger {
				return
			}
		}
		l.Close()
		defer c.Close()
		ctx, cancel := context.WithTimeout(o.life, stepTime)
		far, err := o.before.dial(ctx, to)
		cancel()
		if err != nil {
			g.err.Store(&err)
			return
		}
		defer far.Close()
		defer context.AfterFunc(o.life, func() {
			c.Close()
			far.Close()
		})()
		var both sync.WaitGroup
		both.Go(func() { carry(far, c, func(error) {}) })
		both.Go(func() { carry(c, far, func(err error) { g.err.Store(&err) }) })
		both.Wait()
	}()
	return g, nil
}

// carry copies one way, and its end. An error is told before anybody can see
// what it does.
func carry(to, from net.Conn, told func(error)) {
	if _, err := io.Copy(to, from); err != nil {
		told(err)
		to.Close()
		from.Close()
		return
	}
	if s, ok := to.(Stream); ok {
		s.CloseWrite()
	}
}

// only lets the port take sockets, where the system can say so of that process
// alone.
func (g *guarded) only(pid uint32) {
	g.once.Do(func() {
		g.pid = pid
		close(g.ready)
	})
}

func (g *guarded) Close() {
	g.only(0)
	g.l.Close()
}

// A child is a running ssh, whose standard input and output are the
// connection.
type child struct {
	cmd  *exec.Cmd
	in   *os.File // to it
	out  *os.File // from it
	any  atomic.Bool
	mark func()

	life context.Context // ends when it has
}

func (o *ownSSH) stderr() io.Writer {
	if o.p.Stderr != nil {
		return o.p.Stderr
	}
	return os.Stderr
}

// start runs ssh until it ends, its connection is closed or the hop is not
// needed any more. It ends with sft, however that does.
func (o *ownSSH) start(args []string) (*child, error) {
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		theirIn.Close()
		in.Close()
		return nil, err
	}
	c := &child{cmd: exec.Command(o.program, args...), in: in, out: out}
	c.mark = func() { o.marked.Do(func() { o.p.mark(o.hop) }) }
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = theirIn, theirOut, o.stderr()
	c.cmd.WaitDelay = time.Second
	tieBefore(c.cmd)
	life, ended := context.WithCancel(context.Background())
	c.life = life
	started := make(chan error, 1)
	go func() {
		// On Linux a child is tied to the thread that started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		theirIn.Close()
		theirOut.Close()
		if err == nil {
			tieAfter(c.cmd.Process.Pid)
			defer context.AfterFunc(o.life, func() { c.cmd.Process.Kill() })()
		}
		started <- err
		if err == nil {
			c.cmd.Wait()
		}
		ended()
	}()
	if err := <-started; err != nil {
		in.Close()
		out.Close()
		return nil, err
	}
	return c, nil
}

func (c *child) Read(p []byte) (int, error) {
	n, err := c.out.Read(p)
	if n > 0 && !c.any.Swap(true) {
		c.mark()
	}
	return n, err
}

func (c *child) Write(p []byte) (int, error) { return c.in.Write(p) }
func (c *child) CloseWrite() error           { return c.in.Close() }

// Close gives ssh a second to say goodbye: what it was sent may not have left
// yet.
func (c *child) Close() error {
	c.in.Close()
	go func() {
		select {
		case <-c.life.Done():
		case <-time.After(time.Second):
			c.cmd.Process.Kill()
			<-c.life.Done()
		}
		c.out.Close()
	}()
	return nil
}
