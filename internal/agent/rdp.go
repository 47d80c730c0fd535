package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"sft"
)

// Where stock xrdp keeps its settings and, if they name none, its certificate.
const (
	xrdpConfig      = "/etc/xrdp/xrdp.ini"
	xrdpCertificate = "/etc/xrdp/cert.pem"
)

// maxConfig caps what is read of other people's files, in bytes.
const maxConfig = 1 << 20

// rdpCertificate returns the SHA-256, in hex, of the certificate that the RDP
// service is configured with. It is read from the service's own settings each
// time and never learnt from the wire, so that another process on the port
// cannot pass for the service.
func (a *Agent) rdpCertificate() (string, error) {
	file := a.conf.RDPCertificateFile
	if file == "" {
		var err error
		if file, err = xrdpCertificateFile(xrdpConfig); err != nil {
			return "", err
		}
	}
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

// errRDP is about an RDP service that cannot be used.
func errRDP(err error, hint string) error {
	return &sft.Error{Code: sft.RDPUnavailable, Msg: "the RDP service of the host cannot be used: " + err.Error(), Err: err, Hint: hint}
}

// dialRDP connects to the RDP service and returns the socket, for the broker.
func (a *Agent) dialRDP(ctx context.Context) (*os.File, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := d.DialContext(ctx, "tcp", a.conf.RDPAddress)
	if err != nil {
		return nil, errRDP(err, "start the RDP service (xrdp), or set RDPAddress in sftd.yaml")
	}
	defer c.Close()
	return c.(*net.TCPConn).File()
}
