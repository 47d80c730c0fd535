package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"sft/internal/broker"
	"sft/internal/privsep"
)

// monitor lets the broker ask its monitor through the channel.
type monitor struct{ m *privsep.Monitor }

func (m monitor) Sign(ctx context.Context, digest [32]byte) ([]byte, error) {
	return m.m.Sign(ctx, digest)
}

func (m monitor) Open(ctx context.Context, o broker.Open) (broker.Opened, error) {
	r, conn, err := m.m.Open(ctx, privsep.Open{Certificates: o.Certificates, Frame: o.Frame, Remote: o.Remote})
	if err != nil || len(r.Service) == 0 {
		return broker.Opened{Stream: r.Stream, Reply: r.Reply, Conn: conn}, err
	}
	var service broker.RDPService
	if err := json.Unmarshal(r.Service, &service); err != nil { // it holds a secret, and so may the error
		conn.Close()
		_ = m.m.Close(ctx, privsep.Close{Stream: r.Stream, Why: broker.Failed})
		return broker.Opened{}, errors.New("what the monitor says of the service is not readable")
	}
	clear(r.Service)
	return broker.Opened{Stream: r.Stream, Reply: r.Reply, Conn: conn, RDP: &service}, nil
}

func (m monitor) Close(ctx context.Context, c broker.Closed) error {
	return m.m.Close(ctx, privsep.Close{Stream: c.Stream, BytesIn: c.BytesIn, BytesOut: c.BytesOut, Why: c.Why})
}

// runBroker is the process without rights: "sftd broker", started by the
// monitor alone.
func runBroker() int {
	m, err := privsep.Enter()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s := broker.New(monitor{m})
	s.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{} // the monitor's log has it
		}
		return a
	}}))
	report := time.NewTicker(5 * time.Second)
	defer report.Stop()
	var last privsep.Report // and whether it listens
	tell := func(r privsep.Report) bool {
		if r == last {
			return true
		}
		last = r
		return m.Report(context.Background(), r) == nil
	}
	served := make(chan error, 1)
	for {
		select {
		case c := <-m.Commands():
			switch {
			case c.Configure != nil:
				if err := configure(s, c, served); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return 1
				}
				if r := last; c.Listener != nil { // it takes connections from now on, however late the first is served
					if r.Listening = true; !tell(r) {
						return 1
					}
				}
			case c.End != nil:
				s.End(c.End.Stream, c.End.Why)
			case c.Shutdown:
				if err := s.Shutdown(context.Background()); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return 1
				}
				return 0
			}
		case err := <-served:
			fmt.Fprintln(os.Stderr, "serve:", err)
			return 1
		case <-report.C:
			n := s.Counters()
			r := privsep.Report{Listening: last.Listening, Accepted: n.Accepted, Refused: n.Shed + n.Refused, HandshakeFailures: n.HandshakeFailures,
				Opened: n.Opened, Open: n.Open, BytesIn: n.BytesIn, BytesOut: n.BytesOut}
			if !tell(r) {
				return 1
			}
		}
	}
}

func configure(s *broker.Server, c privsep.Command, served chan<- error) error {
	k := c.Configure
	if err := s.Configure(broker.Config{HostCertificates: k.HostCertificates, ClientCAs: k.ClientCAs, ClockOffset: k.ClockOffset,
		Limits: broker.Limits{Handshakes: k.Limits.Handshakes, PerAddress: k.Limits.PerAddress, Streams: k.Limits.Streams}}); err != nil {
		return err
	}
	if c.Listener != nil {
		go func() { served <- s.Serve(c.Listener) }()
	}
	return nil
}
