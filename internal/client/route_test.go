package client

import (
	"context"
	"crypto/rand"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"sft"
	"sft/internal/api"
	"sft/internal/frame"
)

// An office is a project's two SSH authorities.
type office struct{ user, host ssh.Signer }

func newOffice(t testing.TB) *office {
	t.Helper()
	u, _, err := newSSHKey()
	h, _, err2 := newSSHKey()
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	return &office{u, h}
}

func text(k ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k))) }

// certificate signs one for a line as in authorized_keys, as change wants it.
func (o *office) certificate(t testing.TB, key string, change func(*ssh.Certificate)) string {
	t.Helper()
	k, err := oneKey(key)
	if err != nil {
		t.Fatal(err)
	}
	c := &ssh.Certificate{Key: k, CertType: ssh.UserCert, ValidPrincipals: []string{"sft:s9:alice"},
		ValidAfter: uint64(time.Now().Add(-time.Minute).Unix()), ValidBefore: uint64(time.Now().Add(5 * time.Minute).Unix())}
	change(c)
	if err := c.SignCert(rand.Reader, o.user); err != nil {
		t.Fatal(err)
	}
	return text(c)
}

// hop is an enrolled hop, with what opens it.
func (o *office) hop(t testing.TB, r api.ConnectRequest, port int) api.Hop {
	return api.Hop{ServerID: "s9", Name: "gate", Address: "127.0.0.1", Login: "alice",
		SSH: &api.SSHHop{Port: port, Certificate: o.certificate(t, r.SSHPublicKey, func(*ssh.Certificate) {}), HostCAs: []string{text(o.host.PublicKey())}}}
}

// connectedBy is a Connection of one service, whose replies are made by issue.
func connectedBy(t *testing.T, service string, via []string, issue func(api.ConnectRequest) api.ConnectReply) (*Connection, *platform, error) {
	t.Helper()
	p := newPlatform(t)
	p.connect = issue
	d, a, _ := enrolled(t, p)
	s, err := d.Session(a)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Connect(t.Context(), "web01", service, via, func(string) {})
	return c, p, err
}

// TestRouteRefusals checks that nothing of a way is used which is not wholly
// as it has to be.
func TestRouteRefusals(t *testing.T) {
	h, o, other := newHost(t), newOffice(t), newOffice(t)
	set := func(change func(t *testing.T, r api.ConnectRequest, h *api.Hop)) func(*testing.T, api.ConnectRequest, *api.ConnectReply) {
		return func(t *testing.T, r api.ConnectRequest, reply *api.ConnectReply) { change(t, r, &reply.Route[0]) }
	}
	cert := func(change func(*ssh.Certificate)) func(*testing.T, api.ConnectRequest, *api.ConnectReply) {
		return set(func(t *testing.T, r api.ConnectRequest, h *api.Hop) {
			h.SSH.Certificate = o.certificate(t, r.SSHPublicKey, change)
		})
	}
	tests := []struct {
		name   string
		change func(*testing.T, api.ConnectRequest, *api.ConnectReply)
		want   string // in the message; empty: it is taken
	}{
		{"a hop that is as it should be", func(*testing.T, api.ConnectRequest, *api.ConnectReply) {}, ""},
		{"ten hops", func(t *testing.T, r api.ConnectRequest, reply *api.ConnectReply) {
			reply.Route = append(slices.Repeat(reply.Route[:1], 10), reply.Route[1])
		}, ""},
		{"eleven hops", func(t *testing.T, r api.ConnectRequest, reply *api.ConnectReply) {
			reply.Route = append(slices.Repeat(reply.Route[:1], 11), reply.Route[1])
		}, "more than 10 hops"},
		{"a hop with nothing of SSH", set(func(_ *testing.T, _ api.ConnectRequest, h *api.Hop) { h.SSH = nil }), "no way by SSH"},
		{"a port of 0", set(func(_ *testing.T, _ api.ConnectRequest, h *api.Hop) { h.SSH.Port = 0 }), "no usable port"},
		{"an address that is an option", set(func(_ *testing.T, _ api.ConnectRequest, h *api.Hop) { h.Address = "-oProxyCommand=x" }), "no usable address"},
		{"a name with an escape sequence", set(func(_ *testing.T, _ api.ConnectRequest, h *api.Hop) { h.Name = "g\x1b[2J" }), "no usable address or name"},
		{"an id with a blank in it", set(func(_ *testing.T, _ api.ConnectRequest, h *api.Hop) { h.ServerID = "s9 *" }), "no usable id"},
		{"a login that is none", set(func(_ *testing.T, _ api.ConnectRequest, h *api.Hop) { h.Login = "-l" }), "login cannot be used"},
		{"a certificate that is a key", set(func(_ *testing.T, r api.ConnectRequest, h *api.Hop) { h.SSH.Certificate = r.SSHPublicKey }), "certificate is not readable"},
		{"two lines", set(func(_ *testing.T, r api.ConnectRequest, h *api.Hop) { h.SSH.Certificate += "\n" + r.SSHPublicKey }), "certificate is not readable"},
		{"a certificate of a host", cert(func(c *ssh.Certificate) { c.CertType = ssh.HostCert }), "certificate is not readable"},
		{"a certificate for another key", cert(func(c *ssh.Certificate) { c.Key = other.user.PublicKey() }), "for another key"},
		{"a certificate for another login", cert(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"sft:s9:bob"} }), "for another login"},
		{"a certificate for another server", cert(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"sft:s8:alice"} }), "for another login"},
		{"a certificate for two logins", cert(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"sft:s9:alice", "root"} }), "for another login"},
		{"a certificate for whoever", cert(func(c *ssh.Certificate) { c.ValidPrincipals = nil }), "for another login"},
		{"nothing that proves the host", set(func(_ *testing.T, _ api.ConnectRequest, h *api.Hop) { h.SSH.HostCAs = nil }), "nothing would prove"},
		{"a host CA that is not readable", set(func(_ *testing.T, _ api.ConnectRequest, h *api.Hop) { h.SSH.HostCAs = []string{"ssh-ed25519 AAAA"} }), "host CA's keys are not readable"},
		{"a host key with options", set(func(_ *testing.T, r api.ConnectRequest, h *api.Hop) {
			h.SSH.HostKeys = []string{"no-pty " + r.SSHPublicKey}
		}), "host keys are not readable"},
		{"a host key that is a certificate", set(func(_ *testing.T, _ api.ConnectRequest, h *api.Hop) { h.SSH.HostKeys = []string{h.SSH.Certificate} }), "host keys are not readable"},
		{"too many host keys", set(func(_ *testing.T, r api.ConnectRequest, h *api.Hop) {
			h.SSH.HostKeys = slices.Repeat([]string{r.SSHPublicKey}, maxKeys+1)
		}), "host keys are not readable"},
		{"a hop without an agent", set(func(_ *testing.T, _ api.ConnectRequest, h *api.Hop) {
			*h = api.Hop{Name: "jump", Address: "jump.example.com", Login: "Ec2-User", Unmanaged: true}
		}), ""},
		{"such a one with a login that is an option", set(func(_ *testing.T, _ api.ConnectRequest, h *api.Hop) {
			*h = api.Hop{Name: "jump", Address: "jump.example.com", Login: "-x", Unmanaged: true}
		}), "no usable port or login"},
		{"such a one with an address that is an option", set(func(_ *testing.T, _ api.ConnectRequest, h *api.Hop) {
			*h = api.Hop{Name: "jump", Address: "-W", Unmanaged: true}
		}), "no usable address"},
		{"a target without an agent", func(_ *testing.T, _ api.ConnectRequest, r *api.ConnectReply) { r.Route[1].Unmanaged = true }, "has no agent"},
		{"a target without a broker", func(_ *testing.T, _ api.ConnectRequest, r *api.ConnectReply) { r.Route[1].Port = 0 }, "no usable address or name"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := connectedBy(t, frame.RDP, []string{"gate"}, func(r api.ConnectRequest) api.ConnectReply {
				reply := h.reply(t, r, 5*time.Minute)
				reply.Route = append([]api.Hop{o.hop(t, r, 22)}, reply.Route...)
				tt.change(t, r, &reply)
				return reply
			})
			if tt.want == "" && err != nil || tt.want != "" && (sft.CodeOf(err) != sft.Internal || !strings.Contains(err.Error(), tt.want) || strings.ContainsAny(err.Error(), "\x1b")) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// What was typed after --via is checked before anybody is asked.
func TestVia(t *testing.T) {
	for via, want := range map[string]bool{"gate": true, "prod/gate": true, "ec2-user@jump.example.com": true, "First.Last@10.0.0.1": true, "_svc@gate": true,
		"": false, "@gate": false, "-oProxyCommand=x": false, "a@-x": false, "-l@gate": false, "a b@gate": false, "a@b@c": false, "gate;x": false, "gate:22 x": false} {
		if err := CheckVia(via); (err == nil) != want {
			t.Errorf("%q: %v", via, err)
		}
		if want {
			continue // an empty Session would crash on it
		}
		if _, err := (&Session{}).Connect(context.Background(), "web01", frame.SSH, []string{via}, nil); err == nil {
			t.Errorf("%q was asked for", via)
		}
	}
	if _, err := (&Session{}).Connect(context.Background(), "web01", frame.SSH, slices.Repeat([]string{"gate"}, 11), nil); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("eleven hops: %v", err)
	}
}

// A gate is an SSH server that lets in what an office signs and connects on.
type gate struct {
	port int
	mu   sync.Mutex
	to   []string // where it was asked to connect
}

func newGate(t *testing.T, o *office) *gate {
	key, _, err := newSSHKey()
	if err != nil {
		t.Fatal(err)
	}
	c := &ssh.Certificate{Key: key.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"s9"},
		ValidAfter: uint64(time.Now().Add(-time.Hour).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix())}
	if err := c.SignCert(rand.Reader, o.host); err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(c, key)
	if err != nil {
		t.Fatal(err)
	}
	checker := &ssh.CertChecker{IsUserAuthority: func(k ssh.PublicKey) bool { return text(k) == text(o.user.PublicKey()) }}
	conf := &ssh.ServerConfig{PublicKeyCallback: func(m ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		c, ok := k.(*ssh.Certificate)
		if !ok {
			return nil, io.EOF
		}
		return nil, checker.CheckCert("sft:s9:"+m.User(), c)
	}}
	conf.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	g := &gate{port: l.Addr().(*net.TCPAddr).Port}
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			go g.serve(raw, conf)
		}
	}()
	return g
}

func (g *gate) serve(raw net.Conn, conf *ssh.ServerConfig) {
	defer raw.Close()
	_, channels, requests, err := ssh.NewServerConn(raw, conf)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for n := range channels {
		var to struct {
			Host   string
			Port   uint32
			Origin string
			From   uint32
		}
		if n.ChannelType() != "direct-tcpip" || ssh.Unmarshal(n.ExtraData(), &to) != nil {
			n.Reject(ssh.Prohibited, "")
			continue
		}
		addr := net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port)))
		g.mu.Lock()
		g.to = append(g.to, addr)
		g.mu.Unlock()
		out, err := net.Dial("tcp", addr)
		if err != nil {
			n.Reject(ssh.ConnectionFailed, err.Error())
			continue
		}
		c, requests, err := n.Accept()
		if err != nil {
			return
		}
		go ssh.DiscardRequests(requests)
		go func() { io.Copy(out, c); out.Close() }()
		go func() { io.Copy(c, out); c.Close() }()
	}
}

// TestRDPThroughAHop checks that the broker is reached through the hop, and
// that it is the broker's own TLS that arrives there.
func TestRDPThroughAHop(t *testing.T) {
	h, o := newHost(t), newOffice(t)
	h.replies = []frame.Reply{{RDP: &frame.RDPReply{SignIn: "deliver", Login: "alice"}}}
	g := newGate(t, o)
	c, p, err := connectedBy(t, frame.RDP, []string{"gate"}, func(r api.ConnectRequest) api.ConnectReply {
		reply := h.reply(t, r, 5*time.Minute)
		reply.Route = append([]api.Hop{o.hop(t, r, g.port)}, reply.Route...)
		return reply
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, _, err := c.Open(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.Equal(g.to, []string{h.addr}) || len(p.connects) != 1 || !slices.Equal(p.connects[0].Via, []string{"gate"}) {
		t.Errorf("the hop was asked for %v, the platform for %+v", g.to, p.connects)
	}
}

// TestDialSSH checks each of the ways to a target's SSH server, and that the
// person's certificate for it is another one when it runs out.
func TestDialSSH(t *testing.T) {
	o := newOffice(t)
	greeter, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer greeter.Close()
	go func() {
		for {
			c, err := greeter.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "SSH-2.0-x\r\n")
			c.Close()
		}
	}()
	port := greeter.Addr().(*net.TCPAddr).Port
	greeting := func(t *testing.T, c *Connection) {
		t.Helper()
		conn, err := c.DialSSH(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if b, _ := io.ReadAll(conn); string(b) != "SSH-2.0-x\r\n" {
			t.Errorf("it said %q", b)
		}
	}
	t.Run("directly", func(t *testing.T) {
		life := 5 * time.Second // within renewBefore
		c, p, err := connectedBy(t, frame.SSH, nil, func(r api.ConnectRequest) api.ConnectReply {
			defer func() { life = 5 * time.Minute }()
			return api.ConnectReply{SessionID: "n1", ExpiresAt: time.Now().Add(life), Route: []api.Hop{o.hop(t, r, port)}}
		})
		if err != nil {
			t.Fatal(err)
		}
		greeting(t, c)
		if !c.Direct() {
			t.Error("it is not direct")
		}
		first, err := c.SSHSigner(t.Context())
		second, err2 := c.SSHSigner(t.Context())
		if err != nil || err2 != nil || text(first.PublicKey()) != text(second.PublicKey()) {
			t.Errorf("%v, %v: one that is good was replaced", err, err2)
		}
		if len(p.connects) != 2 || p.connects[1].Target != "s9" || p.connects[1].SessionID != "n1" || p.connects[0].SSHPublicKey == p.connects[1].SSHPublicKey {
			t.Errorf("connects %+v", p.connects)
		}
	})
	t.Run("another server is no continuation", func(t *testing.T) {
		id := "s9"
		c, _, err := connectedBy(t, frame.SSH, nil, func(r api.ConnectRequest) api.ConnectReply {
			h := o.hop(t, r, port)
			h.ServerID, h.SSH.Certificate = id, o.certificate(t, r.SSHPublicKey, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"sft:" + id + ":alice"} })
			id = "s8"
			return api.ConnectReply{SessionID: "n1", ExpiresAt: time.Now().Add(5 * time.Second), Route: []api.Hop{h}}
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.SSHSigner(t.Context()); sft.CodeOf(err) != sft.Internal || !strings.Contains(err.Error(), "another server") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("through a hop", func(t *testing.T) {
		g := newGate(t, o)
		c, _, err := connectedBy(t, frame.SSH, []string{"gate"}, func(r api.ConnectRequest) api.ConnectReply {
			return api.ConnectReply{SessionID: "n1", ExpiresAt: time.Now().Add(5 * time.Minute), Route: []api.Hop{o.hop(t, r, g.port), o.hop(t, r, port)}}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		greeting(t, c)
		if c.Direct() || len(g.to) != 1 {
			t.Errorf("the hop was asked for %v", g.to)
		}
	})
	t.Run("through the broker", func(t *testing.T) {
		h := newHost(t)
		h.replies = []frame.Reply{{SSH: &frame.SSHReply{Login: "alice"}}}
		c, _, err := connectedBy(t, frame.SSH, nil, func(r api.ConnectRequest) api.ConnectReply {
			reply := h.reply(t, r, 5*time.Minute)
			way := o.hop(t, r, 22).SSH
			way.Broker = true
			way.Certificate = o.certificate(t, r.SSHPublicKey, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"sft:s1:alice"} })
			reply.Route[0].SSH = way
			return reply
		})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := c.DialSSH(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if c.Direct() || len(h.seen) != 1 || h.seen[0].Service != frame.SSH {
			t.Errorf("proofs %+v", h.seen)
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		c, _, err := connectedBy(t, frame.SSH, nil, func(r api.ConnectRequest) api.ConnectReply {
			return api.ConnectReply{SessionID: "n1", ExpiresAt: time.Now().Add(5 * time.Minute), Route: []api.Hop{o.hop(t, r, 1)}}
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.DialSSH(t.Context()); sft.CodeOf(err) != sft.Unavailable || !strings.Contains(err.Error(), "no answer from the SSH server of gate at 127.0.0.1:1: ") {
			t.Errorf("got %v", err)
		}
	})
}
