//go:build linux

package lab

import (
	"context"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// negotiate asks an RDP server on the host for security protocols (MS-RDPBCGR
// 2.2.1.1.1) and returns what it answers: "selects 1", "fails with 5", or
// "does not negotiate".
func negotiate(t *testing.T, h *Host, requested uint32) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := h.Dial(ctx, XRDPAddress)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	end, _ := ctx.Deadline()
	c.SetDeadline(end)
	ask := []byte{3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 0, 0, 0, 0}
	binary.LittleEndian.PutUint32(ask[15:], requested)
	if _, err := c.Write(ask); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 4)
	if _, err := io.ReadFull(c, head); err != nil {
		t.Fatalf("the server answers nothing: %v", err)
	}
	answer := make([]byte, int(binary.BigEndian.Uint16(head[2:]))-4)
	if _, err := io.ReadFull(c, answer); err != nil {
		t.Fatal(err)
	}
	if len(answer) < 15 {
		return "does not negotiate"
	}
	value := binary.LittleEndian.Uint32(answer[11:])
	if answer[7] == 3 {
		return fmt.Sprintf("fails with %d", value)
	}
	return fmt.Sprintf("selects %d", value)
}

func TestShadowNegotiates(t *testing.T) {
	l := New(t, "")
	const (
		rdp, tls, nla = 0, 1, 2 // the bits of requestedProtocols

		tlsRequired, tlsNotAllowed, nlaRequired = "fails with 1", "fails with 2", "fails with 5"
	)
	h := l.Host("web01")
	old := l.Host("old")
	old.StartXRDPWithoutTLS("#204060")
	tests := []struct {
		name string
		mode ShadowMode
		want map[uint32]string
	}{
		{"NLA alone", ShadowNLA, map[uint32]string{nla | tls: "selects 2", nla: "selects 2", tls: nlaRequired, rdp: nlaRequired}},
		{"NLA or TLS", ShadowBoth, map[uint32]string{nla | tls: "selects 2", nla: "selects 2", tls: "selects 1", rdp: tlsRequired}},
		{"TLS alone", ShadowTLS, map[uint32]string{nla | tls: "selects 1", tls: "selects 1", rdp: tlsRequired}},
		{"standard RDP security alone", ShadowRDP, map[uint32]string{nla | tls: tlsNotAllowed, nla: tlsNotAllowed, tls: tlsNotAllowed}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := h.StartShadow("#604020", tt.mode)
			for requested, want := range tt.want {
				if got := negotiate(t, h, requested); got != want {
					t.Errorf("asked for %d, the server %s; want %s", requested, got, want)
				}
			}
			s.Stop()
		})
	}
	t.Run("xrdp without TLS falls back unasked", func(t *testing.T) {
		for _, requested := range []uint32{tls, nla | tls} {
			if got, want := negotiate(t, old, requested), "selects 0"; got != want {
				t.Errorf("asked for %d, the server %s; want %s", requested, got, want)
			}
		}
	})
}

func TestShadowSignsIn(t *testing.T) {
	l := New(t, "")
	const colour = "#604020"
	h := l.Host("web01")
	h.AddUser("ann", "")
	h.AddUser("me", "")
	h.StartDisplay(clientWidth, clientHeight)
	s := h.StartShadow(colour, ShadowNLA)
	set := func(password string) { // as the agent does it
		t.Helper()
		cmd := h.Command(t.Context(), "", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/", "/usr/sbin/chpasswd")
		cmd.Stdin = strings.NewReader("ann:" + password + "\n")
		if _, err := output(cmd); err != nil {
			t.Fatal(err)
		}
	}
	in := SignIn{Address: XRDPAddress, User: "ann", Domain: "WEB01", Security: SecurityNLA}
	b, err := h.Read(s.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	in.Fingerprint = fingerprint(block.Bytes)
	enters := func(t *testing.T) {
		t.Helper()
		p := h.StartXfreerdp("me", in)
		h.WaitPixelNear(1000, 680, colour)
		h.WaitPixelNear(500, 300, "#ffffff") // the terminal
		h.WaitStill(200 * time.Millisecond)
		h.Screenshot(filepath.Join(pictures, "shadow.png"))
		p.Stop()
		poll(t, "the picture stays", func() bool { return !Near(h.Pixel(1000, 680), colourOf(t, colour)) })
	}
	refused := func(t *testing.T) {
		t.Helper()
		if got, want := h.StartXfreerdp("me", in).Wait(), 147; got != want { // this server hangs up on a wrong password
			t.Errorf("xfreerdp ends with %d, want %d", got, want)
		}
	}
	forgets := func(t *testing.T) {
		t.Helper()
		poll(t, "the password stays in the SAM file", func() bool {
			b, err := h.Read(shadowSAM)
			return err == nil && len(b) == 0
		})
	}

	t.Run("nobody enters before a password is set", refused)
	set("Secret: 1 ä€𝄞")
	in.Password = "Secret: 1 ä€𝄞"
	t.Run("the password that chpasswd set opens", enters)
	set("Secret-2")
	t.Run("the old password does not", refused)
	in.Password = "Secret-2"
	t.Run("the new one does", enters)
	t.Run("an account at rest is shut", func(t *testing.T) {
		h.Must("", "usermod", "-p", "*", "--", "ann")
		forgets(t)
		refused(t)
	})
	t.Run("a password that comes back as it was opens again", func(t *testing.T) {
		set("Secret-2")
		enters(t)
	})
	t.Run("an expired account is shut", func(t *testing.T) {
		h.Must("", "chage", "-E", "1", "ann")
		forgets(t)
		h.Must("", "chage", "-E", "-1", "ann")
		set("Secret-2")
	})
	t.Run("what chpasswd refuses is still refused", func(t *testing.T) {
		cmd := h.Command(t.Context(), "", "chpasswd")
		cmd.Stdin = strings.NewReader("nobody-here:x\n")
		if _, err := output(cmd); err == nil || !strings.Contains(err.Error(), "nobody-here") {
			t.Errorf("chpasswd: %v", err)
		}
	})
	s.Stop()
	for _, tt := range []struct {
		name     string
		mode     ShadowMode
		security Security
	}{
		{"NLA where both are offered", ShadowBoth, SecurityNLA},
		{"TLS where both are offered", ShadowBoth, SecurityTLS},
		{"TLS alone", ShadowTLS, SecurityTLS},
		{"standard RDP security alone", ShadowRDP, SecurityRDP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := h.StartShadow(colour, tt.mode)
			in.Security, in.Password = tt.security, "Secret-2"
			enters(t)
			if tt.security == SecurityTLS && tt.mode == ShadowBoth {
				in.Password = "wrong"
				if got, want := h.StartXfreerdp("me", in).Wait(), 131; got != want {
					t.Errorf("with a wrong password xfreerdp ends with %d, want %d", got, want)
				}
			}
			s.Stop()
		})
	}
}

func TestPruned(t *testing.T) {
	const shadow = "root:*:20228:0:99999:7:::\nann:$y$new:20228:0:99999:7:::\nbob:!$y$b:1:0:99999:7:::\n" +
		"old:$y$o:1:0:99999:7::10:\nyet:$y$y:1:0:99999:7::12:\nshort:$y$s:1\n"
	now := time.Unix(11*24*60*60, 0)
	tests := []struct{ name, sam, want string }{
		{"nothing stays nothing", "", ""},
		{"the password of today stays", "#ann:$y$new\nann:::00:::\n", "#ann:$y$new\nann:::00:::\n"},
		{"a password that was replaced goes", "#ann:$y$old\nann:::00:::\n", ""},
		{"one of two goes", "#ann:$y$old\nann:::00:::\n#yet:$y$y\nyet:::11:::\n", "#yet:$y$y\nyet:::11:::\n"},
		{"a locked account goes", "#bob:$y$b\nbob:::00:::\n", ""},
		{"an account at rest goes", "#root:$y$r\nroot:::00:::\n", ""},
		{"an expired account goes", "#old:$y$o\nold:::00:::\n", ""},
		{"an account that is gone goes", "#eve:$y$e\neve:::00:::\n", ""},
		{"a line of /etc/shadow that is not whole counts for nothing", "#short:$y$s\nshort:::00:::\n", ""},
		{"a line without its comment goes", "ann:::00:::\n", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := pruned(tt.sam, shadow, now); got != tt.want {
				t.Errorf("pruned = %q, want %q", got, tt.want)
			}
		})
	}
}
