package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"sft"
	"sft/internal/api"
	"sft/internal/client"
	"sft/internal/conf"
	"sft/internal/frame"
	"sft/internal/launch"
	"sft/internal/sshagent"
)

func (p *program) proxycommand() *cobra.Command {
	var via []string
	var user string
	cmd := &cobra.Command{
		Use:   "proxycommand [--via SERVER]... SERVER",
		Short: "Connect OpenSSH to a server, as its ProxyCommand",
		Long: `Proxycommand connects standard input and output to a server's SSH server. It is
for OpenSSH's ProxyCommand, in the block that "sft ssh-config" prints: ssh finds
the certificate by the block's IdentityAgent, and what proves the server by its
UserKnownHostsFile.

If a sign-in is needed it opens a browser only if there is a terminal and
standard error is one: standard input never is. It ends when nobody has the other
end of its standard input or output any more.`,
		Args:              oneServer,
		ValidArgsFunction: p.completeServers,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.proxy(cmd.Context(), args[0], user, via)
		},
	}
	cmd.Flags().StringArrayVar(&via, "via", nil, viaText)
	cmd.Flags().StringVar(&user, "user", "", "the login that ssh signs in by: it is compared with the platform's")
	return cmd
}

// byTerminal is how a command that ssh runs may ask for a sign-in: ssh has the
// terminal, so there must be one, and what is said must be seen.
func (p *program) byTerminal() client.Asking {
	if p.getenv("SFT_NO_BROWSER") != "" || !p.voice.tty || !haveTerminal() {
		return client.Never
	}
	return p.browserOrCode()
}

// authTime is for how long after the start ssh may still come to the agent:
// sshd waits 120 s for a sign-in if it is not told otherwise.
const authTime = 150 * time.Second

func (p *program) proxy(ctx context.Context, target, user string, via []string) error {
	if err := errors.Join(sft.CheckTarget(target), checkVia(via)); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if out, ok := p.out.(*os.File); ok {
		go func() { // whatever it is in the middle of
			unheard(ctx, out)
			cancel()
		}()
	}
	paths, err := p.paths()
	if err != nil {
		return err
	}
	set, err := readSettings(paths.Config)
	if err != nil {
		return err
	}
	s, err := p.session(ctx, p.byTerminal())
	if err != nil {
		return err
	}
	meet := meeting{dir: filepath.Join(paths.State, "ssh", s.Account.Team), name: target}
	if err := meet.check(); err != nil {
		return err
	}
	c, err := s.Connect(ctx, target, frame.SSH, via, newTimes(p).mark)
	if err != nil {
		return err
	}
	defer c.Close()
	c.Hops(set.netcat(), !haveTerminal())
	h := c.Target()
	if user != "" && user != h.Login {
		return &sft.Error{Code: sft.Denied, Msg: "ssh would sign in to " + h.Name + " as " + sft.Quote(user) + ", and your login there is " + h.Login,
			Hint: "leave the login out; if there is none, put what \"sft ssh-config\" prints now in place of the old block"}
	}
	cas, keys := c.SSHHost()
	if err := writeKnownHosts(paths.State, target, authorities(target, h, cas, keys), keys); err != nil {
		return err
	}
	leave, err := meet.join(ctx, &sshagent.Agent{Current: c.SSHSigner, Refused: p.complain})
	if err != nil {
		return err
	}
	defer leave()
	carryOnly()
	conn, err := c.DialSSH(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return pipe(ctx, p.in, p.out, conn)
}

// authorities are those of cas by which the host that was typed as name may
// prove itself to ssh, which goes by that name and not by the server's id: none,
// where the platform knows its keys. A certificate is good for a week, in which
// the name may have gone from one host of the project to another.
func authorities(name string, h api.Hop, cas, keys []ssh.PublicKey) []ssh.PublicKey {
	if len(keys) > 0 || !strings.EqualFold(name, h.Name) && name != h.ServerID {
		return nil
	}
	return cas
}

// pipe copies until either side has ended: ssh closes both ways or none.
func pipe(ctx context.Context, in io.Reader, out io.Writer, conn net.Conn) error {
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(conn, in)
		ended <- err
	}()
	go func() {
		_, err := io.Copy(out, conn)
		ended <- err
	}()
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) && ctx.Err() == nil {
			return &sft.Error{Code: sft.Unavailable, Msg: "the connection broke: " + err.Error(), Err: err, Hint: "try again"}
		}
		return nil
	}
}

const (
	knownHostsFile = "proxycommand_known_hosts"
	maxKnownHosts  = 1 << 20 // bytes; the oldest go first
)

// writeKnownHosts puts what proves the host that was typed as name into the
// file for ssh, in place of what it held for that name. It is whole at any
// time, and not written if there is nothing new.
func writeKnownHosts(state, name string, cas, keys []ssh.PublicKey) error {
	if err := conf.PrivateDir(state); err != nil {
		return err
	}
	l, err := conf.LockFile(filepath.Join(state, knownHostsFile+".lock"))
	if err != nil {
		return err
	}
	defer l.Release()
	path := filepath.Join(state, knownHostsFile)
	old, err := conf.ReadPrivate(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b := mergeKnownHosts(old, name, cas, keys)
	if bytes.Equal(old, b) {
		return nil
	}
	return conf.WriteSecret(path, b)
}

// mergeKnownHosts returns the file with name's lines replaced. Another port
// than 22 has the name in brackets; which port ssh thinks of is of no matter.
func mergeKnownHosts(old []byte, name string, cas, keys []ssh.PublicKey) []byte {
	name = sft.Fold(name) // as ssh compares it
	names := name + ",[" + name + "]:*"
	lines := launch.KnownHosts(names, cas, keys)
	if bytes.Contains(old, lines) && bytes.Count(old, []byte(names+" ")) == bytes.Count(lines, []byte("\n")) {
		return old
	}
	var kept []byte
	for line := range bytes.Lines(old) {
		rest := bytes.TrimPrefix(line, []byte("@cert-authority "))
		if !bytes.HasPrefix(rest, []byte(names+" ")) && bytes.HasSuffix(line, []byte("\n")) {
			kept = append(kept, line...)
		}
	}
	if n := len(kept) + len(lines) - maxKnownHosts; n > 0 {
		_, kept, _ = bytes.Cut(kept[min(n, len(kept)):], []byte("\n"))
	}
	return append(kept, lines...)
}

// knownHost reports whether name was a server before.
func knownHost(state, name string) bool {
	b, err := conf.ReadPrivate(filepath.Join(state, knownHostsFile))
	name = sft.Fold(name)
	return err == nil && (bytes.HasPrefix(b, []byte(name+",[")) || bytes.Contains(b, []byte("\n"+name+",[")) || bytes.Contains(b, []byte(" "+name+",[")))
}
