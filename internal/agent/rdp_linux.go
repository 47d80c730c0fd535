package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
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

// rdpStatus lists what is wrong with the RDP service, each with what to do.
func (a *Agent) rdpStatus() []string {
	if _, err := a.rdpCertificate(); err != nil {
		return []string{"rdp: " + err.Error() + "; install xrdp, or set RDPCertificateFile in sftd.yaml"}
	}
	return nil
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
