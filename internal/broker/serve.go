package broker

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"sft"
	"sft/internal/frame"
	"sft/internal/relay"
)

const (
	// setupTime is for TLS and the first frame together.
	setupTime = 10 * time.Second
	// openTime is for the Monitor: it waits for news from the platform, and
	// for the service.
	openTime = 30 * time.Second
	// replyTime is for a client to take our frame.
	replyTime = 10 * time.Second
	// closeTime is for telling the Monitor that a stream is over.
	closeTime = 10 * time.Second
	// maxDrain is how much of a client's bytes is dropped at the end, in bytes:
	// what the network and two systems hold.
	maxDrain = 16 << 20
	// maxWhy is how much of a reason for ending a stream is passed on.
	maxWhy = 200
	// stopping is the reason that Shutdown gives.
	stopping = "the agent stops"
)

// ErrClosed is what Serve returns after Shutdown.
var ErrClosed = errors.New("broker is shut down")

// A Server is the half of the broker that speaks to the network. Make one
// with New, Configure it, then Serve.
type Server struct {
	// Log gets what the person running the host should know. Strangers can
	// cause debug lines only.
	Log *slog.Logger
	// Now is the local clock, without the offset of Config.
	Now func() time.Time

	monitor Monitor
	config  atomic.Pointer[tls.Config]
	entry   *tls.Config // leads every handshake to config
	lobby   lobby
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup // of connections

	mu         sync.Mutex
	closed     bool
	listeners  map[net.Listener]bool
	maxStreams int
	slots      int // of maxStreams: streams, and connections that wait for the Monitor
	opening    int // Opens that have not returned
	streams    map[uint64]*stream
	early      map[uint64]string // streams that ended before Open returned

	accepted, handshakeFailures, refused, opened, bytesIn, bytesOut, acceptErrors atomic.Uint64
}

// New returns a Server that asks m. Until Configure is called, it refuses
// every connection.
func New(m Monitor) *Server {
	s := &Server{
		Log: slog.Default(), Now: time.Now,
		monitor: m, listeners: map[net.Listener]bool{},
		streams: map[uint64]*stream{}, early: map[uint64]string{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.entry = &tls.Config{MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true, GetConfigForClient: s.greet}
	s.setLimits(Limits{})
	return s
}

// Configure takes effect for the handshakes that begin after it.
func (s *Server) Configure(c Config) error {
	if len(c.HostCertificates) == 0 {
		return errors.New("configure broker: no host certificate")
	}
	leaf, err := x509.ParseCertificate(c.HostCertificates[0])
	if err != nil {
		return fmt.Errorf("configure broker: host certificate: %w", err)
	}
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return errors.New("configure broker: the host key is not ECDSA P-256")
	}
	pool := x509.NewCertPool()
	for _, der := range c.ClientCAs {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("configure broker: certificate of the access CA: %w", err)
		}
		pool.AddCert(ca)
	}
	now, offset := s.Now, c.ClockOffset
	s.config.Store(&tls.Config{
		MinVersion: tls.VersionTLS12,
		// Of TLS 1.2 only what the host key can sign for, with forward
		// secrecy and AEAD. TLS 1.3 has nothing else.
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		},
		NextProtos:                  []string{frame.ALPN},
		DynamicRecordSizingDisabled: true, // records are gathered before they leave
		ClientAuth:                  tls.RequireAndVerifyClientCert,
		ClientCAs:                   pool,
		Time:                        func() time.Time { return now().Add(offset) },
		SessionTicketsDisabled:      true, // a resumed session would have no fresh proof of its key
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &tls.Certificate{
				Certificate: c.HostCertificates,
				Leaf:        leaf,
				PrivateKey:  hostKey{hello.Context(), s.monitor, key},
				// The Monitor signs 32 bytes and nothing else.
				SupportedSignatureAlgorithms: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
			}, nil
		},
	})
	s.setLimits(c.Limits)
	return nil
}

func (s *Server) setLimits(l Limits) {
	l = l.withDefaults()
	s.lobby.setLimits(l.Handshakes, l.PerAddress)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maxStreams = l.Streams
}

// hostKey is the host key as crypto/tls sees it for one handshake: a public
// key, and somebody to ask.
type hostKey struct {
	ctx     context.Context // of the handshake
	monitor Monitor
	public  *ecdsa.PublicKey
}

func (k hostKey) Public() crypto.PublicKey { return k.public }

func (k hostKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != 32 {
		return nil, errors.New("the host key signs SHA-256 digests only")
	}
	return k.monitor.Sign(k.ctx, [32]byte(digest))
}

// greet is called with each ClientHello. Who does not know our protocol is
// refused before the Monitor has to sign anything.
func (s *Server) greet(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	c := s.config.Load()
	if c == nil {
		return nil, errors.New("the broker has no certificate yet")
	}
	if len(hello.SupportedProtos) == 0 { // a list without ours is refused by crypto/tls
		return nil, errors.New("the client offers no protocol")
	}
	if g, ok := hello.Conn.(*guest); ok {
		s.lobby.advance(g, greeted)
	}
	return c, nil
}

// Serve accepts connections from l until Shutdown, and then returns ErrClosed.
// An error of Accept, such as having no file descriptors left, does not end
// it: unless l was closed by somebody else, Serve waits a moment and goes on.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.listeners[l] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.listeners, l)
	}()

	var wait time.Duration
	for {
		c, err := l.Accept()
		if err == nil {
			wait = 0
			s.accepted.Add(1)
			s.admit(c)
			continue
		}
		if s.ctx.Err() != nil {
			return ErrClosed
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		s.acceptErrors.Add(1)
		if wait == 0 {
			s.Log.Warn("accept connection", "err", err)
		}
		s.lobby.relieve()
		wait = min(max(2*wait, 5*time.Millisecond), time.Second)
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
			return ErrClosed
		}
	}
}

// admit starts a connection. It never waits.
func (s *Server) admit(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 6})
	}
	g := &guest{Conn: relay.Wrap(c), source: sourceOf(c.RemoteAddr()), deadline: time.Now().Add(setupTime)}
	g.ctx, g.cancel = context.WithDeadline(s.ctx, g.deadline)
	g.SetDeadline(g.deadline)

	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		g.drop()
		return
	}
	s.wg.Add(1)
	s.mu.Unlock()
	if !s.lobby.enter(g) {
		s.wg.Done()
		g.drop()
		return
	}
	go func() {
		defer s.wg.Done()
		defer g.drop()
		s.handle(g)
	}()
}

// handle takes a connection from its first byte to its last.
func (s *Server) handle(g *guest) {
	c := tls.Server(g, s.entry)
	err := c.HandshakeContext(g.ctx)
	if err != nil {
		in, step := s.lobby.leave(g)
		if !in {
			return // shed
		}
		s.handshakeFailures.Add(1)
		s.Log.Debug("refuse connection", "remote", g.RemoteAddr(), "err", err)
		if step > silent {
			drain(g.Conn)
		}
		return
	}
	s.lobby.advance(g, proven)

	b, err := frame.Read(c)
	if in, _ := s.lobby.leave(g); !in {
		return // shed
	}
	if err != nil || len(b) == 0 {
		s.handshakeFailures.Add(1)
		s.Log.Debug("read first frame", "remote", g.RemoteAddr(), "err", err)
		s.refuse(c, frameError(err))
		return
	}
	chain := make([][]byte, 0, MaxCertificates)
	for _, cert := range c.ConnectionState().PeerCertificates {
		chain = append(chain, cert.Raw)
	}
	if err := checkChain(chain); err != nil {
		s.handshakeFailures.Add(1)
		s.refuse(c, err)
		return
	}
	g.SetDeadline(time.Time{})
	s.open(c, Open{Certificates: chain, Frame: b, Remote: g.RemoteAddr().String()})
}

// frameError says to a client what was wrong with its frame; nil, if nobody
// is there to tell.
func frameError(err error) error {
	switch {
	case err == nil:
		return &sft.Error{Code: sft.Invalid, Msg: "the first frame is empty"}
	case errors.Is(err, frame.ErrTooLarge):
		return &sft.Error{Code: sft.Invalid, Msg: "the first " + frame.ErrTooLarge.Error()}
	case timedOut(err):
		return &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("no whole frame came within %v", setupTime),
			Hint: "try again"}
	}
	return nil
}

// open asks the Monitor about a frame, answers the client, and runs the
// stream.
func (s *Server) open(c *tls.Conn, o Open) {
	if err := s.takeSlot(); err != nil {
		s.refused.Add(1)
		s.Log.Warn("refuse stream", "remote", o.Remote, "err", err)
		s.refuse(c, err)
		return
	}
	defer s.freeSlot()

	ctx, cancel := context.WithTimeout(s.ctx, openTime)
	granted, err := s.monitor.Open(ctx, o)
	cancel()
	if err != nil {
		s.arrive(0, nil)
		s.refused.Add(1)
		if _, ok := errors.AsType[*sft.Error](err); !ok {
			s.Log.Error("open stream", "remote", o.Remote, "err", err)
		}
		s.refuse(c, err)
		return
	}
	s.opened.Add(1)

	closed := Closed{Stream: granted.Stream}
	if granted.Conn == nil {
		s.arrive(0, nil)
		closed.Why = ServiceClosed
		if err := s.reply(c, granted.Reply); err != nil {
			closed.Why = clientWhy(err)
		} else {
			s.part(c)
		}
	} else {
		st := &stream{client: c, service: granted.Conn, sumIn: &s.bytesIn, sumOut: &s.bytesOut}
		if why := s.arrive(granted.Stream, st); why != "" {
			clear(granted.Reply)
			e := &sft.Error{Code: sft.Denied, Msg: "the session was " + why}
			if why == endedWhy(Locked) {
				e = errLocked
			}
			s.refuse(c, e)
		} else if granted.RDP != nil {
			if !s.inject(c, st, granted.RDP, granted.Reply) {
				st.stop(Failed) // it has its reason
			}
		} else if err := s.reply(c, granted.Reply); err != nil {
			st.stop(clientWhy(err))
		}
		closed.Why = st.run()
		closed.BytesIn, closed.BytesOut = st.in.Load(), st.out.Load()
	}
	if granted.Stream == 0 {
		return
	}
	s.mu.Lock()
	delete(s.streams, granted.Stream)
	s.mu.Unlock()
	// Not under s.ctx: the Monitor wants to know of streams that Shutdown ends.
	ctx, cancel = context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	if err := s.monitor.Close(ctx, closed); err != nil {
		s.Log.Error("close stream", "stream", granted.Stream, "err", err)
	}
}

// reply sends the Monitor's frame, and forgets it.
func (s *Server) reply(c *tls.Conn, b []byte) error {
	c.SetWriteDeadline(time.Now().Add(replyTime))
	err := frame.Write(c, b)
	clear(b)
	c.SetWriteDeadline(time.Time{})
	return err
}

// takeSlot reserves one of the streams, for an Open that is to begin.
func (s *Server) takeSlot() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return &sft.Error{Code: sft.Unavailable, Msg: "the server's agent stops", Hint: "try again later"}
	case s.slots >= s.maxStreams:
		return &sft.Error{Code: sft.Unavailable, Msg: "the server has too many streams", Hint: "try again later"}
	}
	s.slots++
	s.opening++
	return nil
}

func (s *Server) freeSlot() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots--
}

// arrive records what an Open returned; st is nil if there is no stream. A
// stream that was ended meanwhile is stopped before its first byte, and arrive
// returns why.
func (s *Server) arrive(id uint64, st *stream) (ended string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st != nil {
		s.streams[id] = st
		ended = s.early[id]
		if ended == "" && s.closed {
			ended = endedWhy(stopping)
		}
		if ended != "" {
			st.stop(ended)
		}
	}
	s.opening--
	if s.opening == 0 {
		clear(s.early)
	}
	return ended
}

// errLocked is what a client is told whose desktop was locked.
var errLocked = &sft.Error{Code: sft.Locked, Msg: "the desktop was locked", Hint: "run \"sft rdp\" again to return to it"}

// End ends a stream at once. It does not wait for the network. With Locked, a
// client to whose service the Server has signed in is told so.
func (s *Server) End(id uint64, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.streams[id]; st != nil && why == Locked {
		st.leave(endedWhy(why), errLocked, leaveTime)
	} else if st != nil {
		st.stop(endedWhy(why))
	} else if s.opening > 0 {
		// The Monitor may end a stream while the answer to its Open is on its
		// way to us.
		s.early[id] = endedWhy(why)
	}
}

func endedWhy(why string) string { return EndedPrefix + why[:min(len(why), maxWhy)] }

// refuse tells the client why not, if err is for it, and closes politely.
func (s *Server) refuse(c *tls.Conn, err error) {
	if err == nil {
		return
	}
	e, ok := errors.AsType[*sft.Error](err)
	if !ok {
		e = &sft.Error{Code: sft.Internal, Msg: "the server could not open the session",
			Hint: "ask the server's administrator to look at the log of sftd"}
	}
	b, err := json.Marshal(frame.Reply{Error: e})
	if err != nil {
		return
	}
	c.SetWriteDeadline(time.Now().Add(partingTime))
	if frame.Write(c, b) == nil {
		s.part(c)
	}
}

// part ends a connection so that the last frame arrives.
func (s *Server) part(c *tls.Conn) {
	c.CloseWrite()
	drain(c.NetConn())
}

// drain closes c for writing and gives the peer a moment to close its side: to
// close while bytes are unread would throw away, at the other end, the alert
// or frame that says why.
func drain(c net.Conn) {
	if g, ok := c.(*guest); ok {
		c = g.Conn
	}
	closeWrite(c)
	c.SetReadDeadline(time.Now().Add(partingTime))
	io.CopyN(io.Discard, c, maxDrain)
}

// Shutdown stops accepting, drops who has no stream yet, and waits for the
// streams to end and to be reported. When ctx ends, it ends those that are
// left: a ctx that has ended already means at once. It returns an error if
// some could not be reported.
func (s *Server) Shutdown(ctx context.Context) error {
	s.cancel()
	s.mu.Lock()
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
	s.mu.Unlock()
	s.lobby.close()

	done := make(chan struct{})
	go func() {
		defer close(done)
		s.wg.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for _, st := range s.streams {
		st.stop(endedWhy(stopping))
	}
	s.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-time.After(closeTime):
		return errors.New("shut down broker: some streams did not end")
	}
}

// Counters returns what was counted so far.
func (s *Server) Counters() Counters {
	waiting, shed := s.lobby.count()
	s.mu.Lock()
	open := len(s.streams)
	s.mu.Unlock()
	return Counters{
		Accepted:          s.accepted.Load(),
		Shed:              shed,
		HandshakeFailures: s.handshakeFailures.Load(),
		Refused:           s.refused.Load(),
		Opened:            s.opened.Load(),
		Waiting:           uint64(waiting),
		Open:              uint64(open),
		BytesIn:           s.bytesIn.Load(),
		BytesOut:          s.bytesOut.Load(),
		AcceptErrors:      s.acceptErrors.Load(),
	}
}
