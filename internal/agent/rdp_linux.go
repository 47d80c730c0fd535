package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// rdpDefault is where the RDP service is if sftd.yaml does not say.
func rdpDefault() string { return "127.0.0.1:3389" }

// rdpStart is how the RDP service is started.
const rdpStart = "start the RDP service (xrdp), or set RDPAddress in sftd.yaml"

// Where stock xrdp keeps its settings and, if they name none, its certificate.
const (
	xrdpConfig      = "/etc/xrdp/xrdp.ini"
	xrdpCertificate = "/etc/xrdp/cert.pem"
)

// configuredCertificate is the SHA-256 of the certificate of xrdp.
func configuredCertificate() (string, error) {
	file, err := xrdpCertificateFile(xrdpConfig)
	if err != nil {
		return "", err
	}
	return certificateFile(file)
}

// rdpFacts has nothing to add to what the certificate and the connection
// show: xrdp has no settings that keep a local account out.
func (a *Agent) rdpFacts() (RDPFacts, bool) { return RDPFacts{}, false }

// rdpSettings lists what is wrong with the settings of the RDP service, each
// with what to do.
func (a *Agent) rdpSettings() []string {
	if _, err := a.rdpCertificate(); err != nil {
		return []string{rdpRefusal + err.Error() + "; install xrdp, or set RDPCertificateFile in sftd.yaml"}
	}
	return nil
}

// listeners are the TCP sockets of this host that listen.
func listeners() (list []netip.AddrPort, err error) {
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) && file == "/proc/self/net/tcp6" {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		more, err := procListeners(f)
		f.Close()
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	return list, nil
}

// procListeners returns the sockets of /proc/net/tcp or tcp6 that listen.
func procListeners(r io.Reader) (list []netip.AddrPort, err error) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		// sl local_address rem_address st …
		f := strings.Fields(s.Text())
		if len(f) < 4 || f[3] != "0A" {
			continue
		}
		if a, ok := procAddress(f[1]); ok {
			list = append(list, a)
		}
	}
	return list, s.Err()
}

// procAddress reads "0100007F:0D3D": 32-bit words in the machine's byte order,
// then the port.
func procAddress(s string) (netip.AddrPort, bool) {
	ip, port, _ := strings.Cut(s, ":")
	b, err1 := hex.DecodeString(ip)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err1 != nil || err2 != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, false
	}
	for w := 0; w < len(b); w += 4 {
		binary.NativeEndian.PutUint32(b[w:], binary.BigEndian.Uint32(b[w:]))
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, uint16(n)), true
}

// xrdpCertificateFile returns the certificate named in xrdp.ini(5).
func xrdpCertificateFile(config string) (string, error) {
	b, err := readCapped(config)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("there is no %s", config)
	}
	if err != nil {
		return "", err
	}
	return parseXRDP(b), nil
}

// parseXRDP finds certificate= in the section [Globals].
func parseXRDP(b []byte) string {
	globals := false
	for l := range bytes.Lines(b) {
		line := strings.TrimSpace(string(l))
		if strings.HasPrefix(line, "[") {
			globals = strings.EqualFold(line, "[globals]")
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if globals && ok && strings.EqualFold(strings.TrimSpace(key), "certificate") {
			if v := strings.TrimSpace(value); v != "" {
				return v
			}
		}
	}
	return xrdpCertificate
}

// dialRDP connects to the RDP service and returns the socket, for the broker.
func (a *Agent) dialRDP(ctx context.Context) (*os.File, error) {
	c, err := a.callRDP(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.(*net.TCPConn).File()
}
