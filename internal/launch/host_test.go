package launch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"

	"sft"
	"sft/internal/frame"
	"sft/internal/rdp"
	"sft/internal/rdp/rdptest"
)

// A host is what is at the other end of the streams: a broker's half, and an
// RDP service.
type host struct {
	t       *testing.T
	back    rdp.Back
	service rdptest.Service
	notice  *sft.Error // sent in the place of a Connect Response
	last    *sft.Error // sent after the picture
	picture int        // bytes that the service sends

	mu     sync.Mutex
	aborts []string
	served int
}

func newHost(t *testing.T) *host {
	t.Helper()
	cert, fingerprint, err := rdptest.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, picture: shownInside, service: rdptest.Service{Certificate: cert, User: "alice", Password: sft.NewSecret("real")}}
	h.back = rdp.Back{Credentials: rdp.Credentials{User: "alice", Password: h.service.Password}, CertificateSHA256: fingerprint, Channels: sft.AllChannels}
	return h
}

// notes is what a test's person was told.
type notes struct {
	mu    sync.Mutex
	lines []string
}

func (n *notes) add(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines = append(n.lines, s)
}

func (n *notes) all() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.lines)
}

func tcp(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	x, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	y, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{x, y} {
		t.Cleanup(func() { c.Close() })
	}
	return x.(*net.TCPConn), y.(*net.TCPConn)
}

// open makes a way, as a broker does that has sent its reply.
func (h *host) open(ctx context.Context, ahead Ahead) (Way, error) {
	up, down := tcp(h.t)
	if ahead != nil {
		b, err := ahead(ctx)
		if err != nil {
			return Way{}, err
		}
		up.Write(b)
	}
	go h.broker(down)
	return Way{Stream: up, Flags: rdp.FlagExtendedClientData}, nil
}

func (h *host) broker(c *net.TCPConn) {
	defer c.Close()
	serviceEnd, backEnd := tcp(h.t)
	go func() {
		served, err := h.service.Serve(serviceEnd)
		if err != nil {
			return
		}
		h.mu.Lock()
		h.served++
		h.mu.Unlock()
		pdu := make([]byte, 1000)
		pdu[1], pdu[2] = 0x80|3, 0xe8
		for n := 0; n < h.picture; n += len(pdu) {
			served.Conn.Write(pdu)
		}
		io.Copy(io.Discard, served.Conn)
		serviceEnd.Close()
	}()
	s, err := h.back.Connect(backEnd)
	if err != nil {
		return
	}
	_, err = s.Begin(func(max int) ([]byte, error) {
		var head [4]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return nil, err
		}
		r := io.MultiReader(bytes.NewReader(head[:]), c)
		if frame.IsNotice(head[:]) {
			b, err := frame.Read(r)
			var n frame.Notice
			if err == nil {
				err = json.Unmarshal(b, &n)
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			h.aborts = append(h.aborts, n.Abort)
			return nil, errors.Join(err, io.EOF)
		}
		if h.notice != nil {
			if err := frame.WriteJSON(c, frame.Notice{Error: h.notice}); err != nil {
				return nil, err
			}
			c.CloseWrite()
			io.Copy(io.Discard, c) // as the broker does: a reset would take the notice away
			return nil, io.EOF
		}
		return rdp.ReadTPKT(r, max)
	}, c)
	if err != nil {
		backEnd.Close()
		return
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		io.Copy(s.Conn, c)
		s.Conn.CloseWrite()
	}()
	if h.last == nil {
		io.Copy(c, s.Conn)
		return
	}
	io.CopyN(c, s.Conn, int64(h.picture+999)/1000*1000)
	if err := frame.WriteJSON(c, frame.Notice{Error: h.last}); err != nil {
		return
	}
	c.CloseWrite()
	<-gone
}

func (h *host) aborted() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.aborts)
}
