//go:build linux

package lab

import (
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"image/color"
	"path/filepath"
	"testing"
	"time"
)

func fingerprint(der []byte) string { return fmt.Sprintf("%x", sha256.Sum256(der)) }

func colourOf(t *testing.T, s string) color.RGBA {
	t.Helper()
	c, err := ParseColour(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRDPClients(t *testing.T) {
	l := New(t, "")
	const colour = "#204060"
	web := l.Host("web01")
	web.StartXRDP(colour)
	desk := l.Host("desk")
	desk.AddUser("me", "")
	desk.StartDisplay(clientWidth, clientHeight)
	addr := web.Relay(XRDPAddress)
	b, err := web.Read(XRDPCertificate)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	tests := []struct {
		name  string
		start func(string, SignIn) *Process
	}{
		{"xfreerdp", desk.StartXfreerdp},
		{"rdesktop", desk.StartRdesktop},
		{"remmina", desk.StartRemmina},
	}
	for _, tt := range tests {
		t.Run(tt.name+" signs in", func(t *testing.T) {
			user, password := "u-"+tt.name, "Secret-of-"+tt.name
			web.AddUser(user, password)
			begin := time.Now()
			p := tt.start("me", SignIn{Address: addr, User: user, Password: password, Security: SecurityTLS, Fingerprint: fingerprint(block.Bytes)})
			desk.WaitPixel(1000, 680, colour)
			desk.WaitPixel(500, 300, "#ffffff") // the terminal
			t.Logf("a desktop after %v", time.Since(begin))
			if _, err := web.Read("/home/" + user + "/" + SessionStarted); err != nil {
				t.Errorf("the desktop is somebody else's: %v", err)
			}
			if found := desk.GrepProc([]byte(password)); len(found) > 0 {
				t.Errorf("the password is to be seen: %v", found)
			}
			desk.WaitStill(200 * time.Millisecond)
			desk.Screenshot(filepath.Join(pictures, tt.name+".png"))
			p.Stop()
			poll(t, "programs are left", func() bool { return len(desk.Processes("me")) == 0 })
			poll(t, "the picture stays", func() bool { return desk.Pixel(1000, 680) != colourOf(t, colour) })
		})
	}
	t.Run("xfreerdp refuses another certificate", func(t *testing.T) {
		p := desk.StartXfreerdp("me", SignIn{Address: addr, User: "u-xfreerdp", Password: "Secret-of-xfreerdp", Security: SecurityTLS, Fingerprint: fingerprint(nil)})
		if got, want := p.Wait(), 143; got != want {
			t.Errorf("xfreerdp ends with %d, want %d", got, want)
		}
	})
}
