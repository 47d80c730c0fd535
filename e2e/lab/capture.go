//go:build linux

package lab

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
)

// A Capture is a recording of what a network interface of a host carries.
type Capture struct {
	host  *Host
	iface string
	file  *os.File
	run   *Process
}

// Capture begins to record an interface of the host: "lo", or "eth0" for its
// cable. When it returns, nothing is missed any more.
func (h *Host) Capture(iface string) *Capture {
	h.lab.t.Helper()
	if _, err := exec.LookPath("tcpdump"); err != nil {
		h.lab.t.Skipf("SKIPPED: tcpdump is not installed; run make setup")
	}
	// Not among the logs: what it holds may be secret.
	f, err := os.CreateTemp(scratch, "capture-")
	if err != nil {
		h.lab.t.Fatalf("%s: capture %s: %v", h.name, iface, err)
	}
	h.lab.t.Cleanup(func() { f.Close() })
	cmd := h.Command(h.lab.t.Context(), "", "tcpdump", "-n", "-i", iface, "-s", "0", "-B", "32768", "-U", "-Z", "root", "-w", "-")
	cmd.Stdout = f
	c := &Capture{h, iface, f, h.Start("tcpdump", cmd)}
	c.mark()
	return c
}

// mark sends a word of its own through the interface until it is in the file:
// what went before it is then there, too.
func (c *Capture) mark() {
	t := c.host.lab.t
	t.Helper()
	to := Address + ":9"
	if c.iface == "lo" {
		to = "127.0.0.1:9"
	}
	word := []byte("lab mark " + rand.Text())
	var conn net.Conn
	if err := c.host.onNetwork(func() (err error) {
		conn, err = net.Dial("udp", to)
		return err
	}); err != nil {
		t.Fatalf("%s: capture %s: %v", c.host.name, c.iface, err)
	}
	defer conn.Close()
	poll(t, fmt.Sprintf("%s: the capture of %s sees nothing", c.host.name, c.iface), func() bool {
		conn.Write(word) // nobody listens there: the next one may be refused
		return bytes.Contains(c.Bytes(), word)
	})
}

// Bytes returns the recording so far, in the format of tcpdump (pcap).
func (c *Capture) Bytes() []byte {
	b, _ := os.ReadFile(c.file.Name())
	return b
}

// dropped finds the packets that tcpdump could not keep up with.
var dropped = regexp.MustCompile(`(?m)^(\d+) packets? dropped by kernel$`)

// Stop ends the recording and returns it, in the format of tcpdump (pcap). The
// test fails if packets were missed. What is longer than a packet is in pieces
// there: search for what fits into one.
func (c *Capture) Stop() []byte {
	t := c.host.lab.t
	t.Helper()
	c.mark()
	c.run.Stop()
	m := dropped.FindAllStringSubmatch(c.run.Output(), -1)
	if len(m) == 0 || m[len(m)-1][1] != "0" {
		t.Fatalf("%s: the capture of %s is not whole: %q", c.host.name, c.iface, c.run.Output())
	}
	return c.Bytes()
}
