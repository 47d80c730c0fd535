//go:build unix

package daemon

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify("READY=1"); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	path := filepath.Join(t.TempDir(), "notify")
	for _, name := range []string{path, "@sft-notify-" + filepath.Base(t.TempDir()) + path} {
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("NOTIFY_SOCKET", name)
		if err := Notify("READY=1"); err != nil {
			t.Error(err)
		}
		b := make([]byte, 100)
		n, err := c.Read(b)
		if err != nil || string(b[:n]) != "READY=1" {
			t.Errorf("systemd heard %q, %v", b[:n], err)
		}
		// One that does not read holds nobody up.
		was := notifyTime
		notifyTime = 20 * time.Millisecond
		for err = nil; err == nil; {
			err = Notify("STATUS=much")
		}
		notifyTime = was
		c.Close()
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	if Notify("READY=1") == nil {
		t.Error("nobody heard it, and that is no error")
	}
}

// It is told at once and again, until it is enough.
func TestExtend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	hears := func(deadline time.Duration) string {
		b := make([]byte, 100)
		c.SetReadDeadline(time.Now().Add(deadline))
		n, _ := c.Read(b)
		return string(b[:n])
	}
	stop := Extend(20 * time.Millisecond)
	for range 4 {
		if said := hears(20 * time.Second); said != "EXTEND_TIMEOUT_USEC=20000" {
			t.Errorf("systemd heard %q", said)
		}
	}
	stop()
	stop()
	if err := Notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	for said := ""; said != "READY=1"; {
		if said = hears(20 * time.Second); said == "" {
			t.Fatal("systemd does not hear the end")
		}
	}
	if said := hears(50 * time.Millisecond); said != "" {
		t.Errorf("afterwards systemd heard %q", said)
	}
}
