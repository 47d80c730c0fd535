package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strconv"
	"sync"
	"time"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/frame"
	"sft/internal/tunnel"
)

// A Connection is one session on one server through one service: what the
// platform issued for it, and the streams that it opens. Its methods may be
// used concurrently.
type Connection struct {
	s       *Session
	service string
	mark    func(step string)

	mu    sync.Mutex // held while the certificate is renewed
	reply api.ConnectReply
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
// The key is made here and never leaves this process. mark is told when a
// step is done: "issued", and those of a tunnel.Broker.
func (s *Session) Connect(ctx context.Context, target, service string, mark func(step string)) (*Connection, error) {
	if err := sft.CheckTarget(target); err != nil {
		return nil, err
	}
	c := &Connection{s: s, service: service, mark: mark}
	if err := c.issue(ctx, api.ConnectRequest{Target: target}); err != nil {
		return nil, err
	}
	c.mark("issued")
	return c, nil
}

// issue gets a certificate for a new key.
func (c *Connection) issue(ctx context.Context, r api.ConnectRequest) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	// The platform takes the public key alone, and sets every name itself.
	if r.CSR, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		return err
	}
	r.Service = c.service
	var reply api.ConnectReply
	if err := c.s.Do(ctx, "POST", c.s.team("/connect"), r, &reply); err != nil {
		return err
	}
	if err := checkReply(reply, key); err != nil {
		return err
	}
	c.reply = reply
	c.cert = tls.Certificate{Certificate: reply.Certificate, PrivateKey: key}
	return nil
}

// checkReply refuses a reply that cannot be used, before any of it is.
func checkReply(r api.ConnectReply, key *ecdsa.PrivateKey) error {
	bad := func(what string) error {
		return &sft.Error{Code: sft.Internal, Msg: "the platform's answer cannot be used: " + what,
			Hint: "check that sft and the platform are of the same version"}
	}
	switch {
	case len(r.Route) == 0:
		return bad("it names no server")
	case len(r.Route) > 1:
		return &sft.Error{Code: sft.Invalid, Msg: "the way to " + sft.Quote(r.Route[len(r.Route)-1].Name) + " goes through a bastion, and hops are not supported by this version of sft",
			Hint: "take the Bastion setting off the server, or install a newer sft"}
	case r.SessionID == "":
		return bad("it names no session")
	case len(r.Certificate) == 0:
		return bad("there is no certificate in it")
	}
	leaf, err := x509.ParseCertificate(r.Certificate[0])
	if err != nil {
		return bad("its certificate is not readable")
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key.Public()) {
		return bad("its certificate is for another key")
	}
	h := r.Route[0]
	if sft.CheckHostname(h.Address) != nil || sft.CheckHostname(h.Name) != nil || sft.CheckHostname(h.BrokerName) != nil || h.Port < 1 || h.Port > 65535 || h.ServerID == "" {
		return bad("its server has no usable address or name")
	}
	return nil
}

// Target returns the server.
func (c *Connection) Target() api.Hop {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reply.Route[len(c.reply.Route)-1]
}

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
	clock := c.s.c.Clock
	if clock.Now().Add(renewBefore).After(c.reply.ExpiresAt) {
		if err := c.reissue(ctx); err != nil {
			return nil, "", err
		}
	}
	h := c.reply.Route[0]
	return &tunnel.Broker{Server: h.Name, ServerID: h.ServerID, Address: net.JoinHostPort(h.Address, strconv.Itoa(h.Port)), DNSName: h.BrokerName,
		CAs: h.HostCAs, Keys: h.HostKeys, Certificate: c.cert, Clock: clock, Mark: c.mark}, c.reply.SessionID, nil
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
	return c.issue(ctx, api.ConnectRequest{Target: c.reply.Route[0].ServerID, SessionID: c.reply.SessionID})
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
