package agent

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"sft"
)

// maxConfig caps what is read of other people's files, in bytes.
const maxConfig = 1 << 20

// rdpCertificate returns the SHA-256, in hex, of the certificate that the RDP
// service is configured with. It is read from the service's own settings each
// time and never learnt from the wire, so that another process on the port
// cannot pass for the service.
func (a *Agent) rdpCertificate() (string, error) {
	if file := a.conf.RDPCertificateFile; file != "" {
		return certificateFile(file)
	}
	return configuredCertificate()
}

// certificateFile returns the SHA-256, in hex, of the certificate in a PEM
// file.
func certificateFile(file string) (string, error) {
	b, err := readCapped(file)
	if err != nil {
		return "", fmt.Errorf("read the RDP service's certificate: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return "", fmt.Errorf("read the RDP service's certificate: %s holds none", file)
	}
	if _, err := x509.ParseCertificate(block.Bytes); err != nil {
		return "", fmt.Errorf("read the RDP service's certificate: %s: %w", file, err)
	}
	h := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(h[:]), nil
}

func readCapped(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(b) > maxConfig {
		err = fmt.Errorf("%s is too long", file)
	}
	return b, err
}

// errRDP is about an RDP service that cannot be used.
func errRDP(err error, hint string) error {
	return &sft.Error{Code: sft.RDPUnavailable, Msg: "the RDP service of the host cannot be used: " + err.Error(), Err: err, Hint: hint}
}

// rdpStatus lists what is wrong with the RDP service, each with what to do: with
// its settings and, if they would let people in, that it does not run.
func (a *Agent) rdpStatus() []string {
	return a.rdpSeen.get(a.machine(), func() []string {
		list := a.rdpSettings()
		if !slices.ContainsFunc(list, func(line string) bool { return strings.HasPrefix(line, rdpRefusal) }) {
			list = append(list, rdpListens(a.conf.RDPAddress, listeners)...)
		}
		return list
	})
}

// rdpListens says, as rdpLines does, that nothing listens where the RDP service
// is to be. The system's table of sockets is looked at: to be connected to would
// be a line in the service's log each time.
func rdpListens(address string, listeners func() ([]netip.AddrPort, error)) []string {
	list, err := listeners()
	if err != nil {
		return rdpLines([]finding{{"", "it cannot be seen whether the RDP service runs: " + oneLine(err.Error(), 300), "see that sftd runs with the rights that its package gives it, and restart it"}})
	}
	at, err := netip.ParseAddrPort(address) // checked when it was read
	if err == nil && reached(at, list) {
		return nil
	}
	return rdpLines([]finding{{sft.RDPUnavailable, "the RDP service of the host cannot be used: nothing listens on " + address, rdpStart}})
}

// reached reports whether one of the sockets in list takes connections to at. One
// that listens on every IPv6 address takes those to IPv4 addresses, too, unless
// it was told not to, which the table does not say.
func reached(at netip.AddrPort, list []netip.AddrPort) bool {
	return slices.ContainsFunc(list, func(l netip.AddrPort) bool {
		ip := l.Addr().Unmap()
		return l.Port() == at.Port() && (ip == at.Addr().Unmap() || ip.IsUnspecified() && (ip.Is6() || at.Addr().Unmap().Is4()))
	})
}

// callRDP connects to the RDP service.
func (a *Agent) callRDP(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := d.DialContext(ctx, "tcp", a.conf.RDPAddress)
	if err != nil {
		return nil, errRDP(err, rdpStart)
	}
	return c, nil
}
