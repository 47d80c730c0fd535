package ca

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smallstep/pkcs7"

	"sft/internal/rdpsign"
)

func rdpLines() []string {
	lines, _ := rdpsign.Lines("127.3.4.5:40123", func(string) (string, bool) { return "", false })
	return lines
}

// The certificate is for signing and for nothing else: it is no CA.
func TestRDPSignCertificate(t *testing.T) {
	a := authority(t, RDPSign, now)
	c, err := x509.ParseCertificate(a.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	k, ok := c.PublicKey.(*rsa.PublicKey)
	if !ok || k.N.BitLen() != rdpSignBits || c.IsCA || !c.BasicConstraintsValid || c.KeyUsage != x509.KeyUsageDigitalSignature ||
		len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageCodeSigning || len(c.UnknownExtKeyUsage)+len(c.DNSNames)+len(c.URIs) != 0 {
		t.Errorf("the certificate is %+v", c)
	}
	if _, _, err := a.IssueHost(&key(t).PublicKey, "s-1", now); err == nil {
		t.Error("it signs a certificate")
	}
	if _, err := a.DraftAccess(&key(t).PublicKey, names, now); err == nil {
		t.Error("it signs a certificate to a broker")
	}
	for _, kind := range []Kind{Access, Host, Platform, SSHUser, SSHHost} {
		if der, _, err := authority(t, kind, now).SignRDP(rdpLines()); err == nil || der != nil {
			t.Errorf("the %s CA signs a connection file", kind)
		}
	}
}

// What it signs is verified by OpenSSL, which shares no code with it, and a
// message, certificate or signature that is another is not.
func TestSignRDP(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("there is no openssl")
	}
	a, other := authority(t, RDPSign, now), authority(t, RDPSign, now)
	der, message, err := a.SignRDP(rdpLines())
	if err != nil {
		t.Fatal(err)
	}
	if want, err := rdpsign.Message(rdpLines()); err != nil || !bytes.Equal(want, message) {
		t.Errorf("the message is %q, %v", message, err)
	}
	p, err := pkcs7.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Content) != 0 || len(p.Certificates) != 1 || len(p.Signers) != 1 || len(p.Signers[0].AuthenticatedAttributes) != 0 || len(p.Signers[0].UnauthenticatedAttributes) != 0 {
		t.Errorf("content %d bytes, %d certificates, signers %+v", len(p.Content), len(p.Certificates), p.Signers)
	}
	verify := func(der, message, ca []byte) error {
		dir := t.TempDir()
		for name, b := range map[string][]byte{"sig": der, "msg": message, "ca.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca})} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		// smimesign is not among its uses; what it is for was looked at above.
		cmd := exec.Command(openssl, "cms", "-verify", "-binary", "-inform", "DER", "-in", "sig", "-content", "msg", "-CAfile", "ca.pem", "-purpose", "any",
			"-attime", "1772355600", "-out", "out")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if got, _ := os.ReadFile(filepath.Join(dir, "out")); err == nil && !bytes.Equal(got, message) {
			t.Errorf("it verified %q: %s", got, out)
		}
		if err != nil && strings.Contains(string(out), "Usage") {
			t.Fatalf("openssl: %s", out)
		}
		return err
	}
	if err := verify(der, message, a.Certificate()); err != nil {
		t.Errorf("openssl says %v", err)
	}
	changed := bytes.Clone(message)
	changed[len("full address:s:12")*2] ^= 1
	flipped := bytes.Clone(der)
	flipped[len(flipped)-9] ^= 1
	for name, err := range map[string]error{
		"another address": verify(der, changed, a.Certificate()),
		"a line less":     verify(der, message[:len(message)-4], a.Certificate()),
		"another key":     verify(der, message, other.Certificate()),
		"a changed bit":   verify(flipped, message, a.Certificate()),
	} {
		if err == nil {
			t.Errorf("%s: openssl takes it", name)
		}
	}
	if der, _, err := a.SignRDP(rdpLines()[1:]); err == nil || der != nil {
		t.Error("a file that is not whole is signed")
	}
}
