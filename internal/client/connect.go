package client

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/frame"
	"sft/internal/tunnel"
)

// A Connection is one session on one server through one service: what the
// platform issued for it, the hops on the way, and the streams that it opens.
// Its methods may be used concurrently.
type Connection struct {
	s       *Session
	service string
	via     []string
	mark    func(step string)
	path    *tunnel.Path
	netcat  bool

	mu    sync.Mutex // held while the certificate is renewed
	reply api.ConnectReply
	route []waypoint // of the reply
	cert  tls.Certificate
}

// retries is how often a stream is tried again when the host is not ready
// for it, and retryAfter how long after.
const (
	retries    = 2
	retryAfter = time.Second
)

// renewBefore is how long before its end a certificate is no longer used.
const renewBefore = 15 * time.Second

// Connect has the platform resolve target, decide and issue, in one request.
// via are hops, in place of those that the platform knows. The keys are made
// here and never leave this process. mark is told when a step is done:
// "issued", and those of a tunnel.Broker and a tunnel.Path.
func (s *Session) Connect(ctx context.Context, target, service string, via []string, mark func(step string)) (*Connection, error) {
	if err := sft.CheckTarget(target); err != nil {
		return nil, err
	}
	if len(via) > maxHops {
		return nil, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("%d hops were named, and %d is the most", len(via), maxHops), Hint: "name fewer with --via"}
	}
	for _, v := range via {
		if err := CheckVia(v); err != nil {
			return nil, err
		}
	}
	c := &Connection{s: s, service: service, via: via, mark: mark}
	c.path = &tunnel.Path{Hops: c.hops, Mark: mark, Clock: s.c.Clock.Now}
	if err := c.issue(ctx, api.ConnectRequest{Target: target}); err != nil {
		return nil, err
	}
	c.mark("issued")
	return c, nil
}

// issue gets certificates for new keys.
func (c *Connection) issue(ctx context.Context, r api.ConnectRequest) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	// The platform takes the public keys alone, and sets every name itself.
	if r.CSR, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		return err
	}
	sshKey, line, err := newSSHKey()
	if err != nil {
		return err
	}
	r.Service, r.Via, r.SSHPublicKey = c.service, c.via, line
	var reply api.ConnectReply
	if err := c.s.Do(ctx, "POST", c.s.team("/connect"), r, &reply); err != nil {
		return err
	}
	route, err := checkReply(reply, c.service, key, sshKey)
	if err != nil {
		return err
	}
	if r.SessionID != "" && route[len(route)-1].ServerID != r.Target {
		return &sft.Error{Code: sft.Internal, Msg: "the platform's answer cannot be used: it is of another server than was asked for",
			Hint: "check that sft and the platform are of the same version"}
	}
	c.reply, c.route = reply, route
	c.cert = tls.Certificate{Certificate: reply.Certificate, PrivateKey: key}
	return nil
}

// Hops says how hops are crossed, before the first stream: with netcat by a
// program on each instead of its SSH server's forwarding; with batch the
// person's own ssh, through which one without an agent is crossed, asks nothing.
func (c *Connection) Hops(netcat, batch bool) { c.netcat, c.path.Batch = netcat, batch }

// Close ends the connections through hops.
func (c *Connection) Close() error { return c.path.Close() }

// Target returns the server.
func (c *Connection) Target() api.Hop {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.target().Hop
}

// target is the route's last. The caller holds c.mu.
func (c *Connection) target() waypoint { return c.route[len(c.route)-1] }

// Channels returns what the project lets cross. A platform that does not say
// lets cross all.
func (c *Connection) Channels() sft.Channels {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reply.Channels == nil {
		return sft.AllChannels
	}
	return *c.reply.Channels
}

// through returns the names of the hops, in their order.
func (c *Connection) through() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for _, w := range c.route[:len(c.route)-1] {
		names = append(names, w.Name)
	}
	return names
}

// Direct reports whether the target's SSH server is reached without a hop and
// without its broker.
func (c *Connection) Direct() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.target()
	return len(c.route) == 1 && t.SSH != nil && !t.SSH.Broker
}

// SSHHost returns what proves the target's SSH server.
func (c *Connection) SSHHost() (cas, keys []ssh.PublicKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.target().hostCAs, c.target().hostKeys
}

// SSHSigner returns the certificate for the target's SSH server with its key,
// good for a while.
func (c *Connection) SSHSigner(ctx context.Context) (ssh.Signer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.freshen(ctx); err != nil {
		return nil, err
	}
	return c.target().signer, nil
}

// DialSSH connects to the target's SSH server: through the hops, if there are
// any, and through the broker, if that is its way. What answers has not proven
// anything yet: that is for who speaks SSH with it.
func (c *Connection) DialSSH(ctx context.Context) (net.Conn, error) {
	c.mu.Lock()
	t, hops := c.target(), len(c.route)-1
	c.mu.Unlock()
	if t.SSH == nil {
		return nil, &sft.Error{Code: sft.Internal, Msg: "there is no way to " + t.Name + " by SSH", Hint: "check that sft and the platform are of the same version"}
	}
	if t.SSH.Broker {
		stream, _, err := c.Open(ctx, nil)
		if err != nil {
			return nil, err
		}
		return stream, nil
	}
	addr := net.JoinHostPort(t.Address, strconv.Itoa(t.SSH.Port))
	if hops > 0 {
		return c.path.Dial(ctx, addr)
	}
	conn, err := (&net.Dialer{Timeout: dialTime}).DialContext(ctx, "tcp", addr)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		why := err
		if op, ok := errors.AsType[*net.OpError](err); ok {
			why = op.Err
		}
		return nil, &sft.Error{Code: sft.Unavailable, Err: err, Msg: fmt.Sprintf("no answer from the SSH server of %s at %s: %s", t.Name, addr, why),
			Hint: "check that sshd runs there and that its port can be reached from here"}
	}
	c.mark("dialled")
	return conn, nil
}

// dialTime is how long a connection to a server may take to be made.
const dialTime = 10 * time.Second

// hops returns the hops with certificates that are good now.
func (c *Connection) hops(ctx context.Context) ([]tunnel.Hop, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.freshen(ctx); err != nil {
		return nil, err
	}
	var list []tunnel.Hop
	for _, w := range c.route[:len(c.route)-1] {
		list = append(list, w.hop(c.netcat))
	}
	return list, nil
}

// Open opens a stream. When the certificate has run out it gets another for
// the same session, for which the person is authorized afresh.
//
// A host whose RDP service did not take the password sets another for the
// next stream, and one that found another certificate reads its settings
// again: both are worth trying once more. ahead, if not nil, is what is sent
// without waiting for the reply, see tunnel.Broker.
func (c *Connection) Open(ctx context.Context, ahead func(context.Context) ([]byte, error)) (tunnel.Stream, frame.Reply, error) {
	for try, again := 0, false; ; try++ {
		b, session, err := c.broker(ctx)
		if err != nil {
			return nil, frame.Reply{}, err
		}
		b.Ahead = ahead
		stream, reply, err := b.Open(ctx, frame.Hello{Service: c.service, Session: session})
		switch code := sft.CodeOf(err); {
		case err == nil:
			return stream, reply, nil
		case (code == sft.RDPRefused || code == sft.RDPCertificate) && !again:
			again = true
			c.s.d.Log.Debug("the host could not sign in", "error", err)
			continue
		case code != sft.NotReady || try >= retries:
			return nil, frame.Reply{}, err
		}
		c.s.d.Log.Debug("the host is not ready", "try", try+1, "error", err)
		select {
		case <-ctx.Done():
			return nil, frame.Reply{}, ctx.Err()
		case <-time.After(retryAfter):
		}
	}
}

// broker returns the target's broker with a certificate that is still good.
func (c *Connection) broker(ctx context.Context) (*tunnel.Broker, string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.freshen(ctx); err != nil {
		return nil, "", err
	}
	h := c.target()
	b := &tunnel.Broker{Server: h.Name, ServerID: h.ServerID, Address: net.JoinHostPort(h.Address, strconv.Itoa(h.Port)), DNSName: h.BrokerName,
		CAs: h.HostCAs, Keys: h.HostKeys, Certificate: c.cert, Clock: c.s.c.Clock, Mark: c.mark}
	if len(c.route) > 1 {
		b.Dial = c.path.Dial
	}
	return b, c.reply.SessionID, nil
}

// freshen gets another certificate if the one there is about to end. The
// caller holds c.mu.
func (c *Connection) freshen(ctx context.Context) error {
	if !c.s.c.Clock.Now().Add(renewBefore).After(c.reply.ExpiresAt) {
		return nil
	}
	return c.reissue(ctx)
}

// Renew has the platform authorize the person afresh, for the same session,
// though the certificate is still good. The streams from then on need it.
func (c *Connection) Renew(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reissue(ctx)
}

// reissue gets another certificate for the same session. The caller holds c.mu.
func (c *Connection) reissue(ctx context.Context) error {
	// By its id: the name may mean another server by now.
	return c.issue(ctx, api.ConnectRequest{Target: c.target().ServerID, SessionID: c.reply.SessionID})
}

// Refused tells the platform that somebody was refused at this end of the
// session, and why. The platform records it as this client's claim.
func (c *Connection) Refused(ctx context.Context, why string) error {
	c.mu.Lock()
	id := c.reply.SessionID
	c.mu.Unlock()
	event := api.ClientEvent{ID: audit.NewID(), Time: c.s.c.Clock.Now().UTC(), Kind: string(audit.SessionRefused), Session: id, Detail: map[string]string{"why": why}}
	return c.s.Do(ctx, "POST", c.s.team("/client_events"), api.ClientEventsRequest{Events: []api.ClientEvent{event}}, nil)
}
