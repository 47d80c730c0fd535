package launch

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/smallstep/pkcs7"

	"sft"
	"sft/internal/rdpsign"
)

// A publisher signs as the platform does.
type publisher struct {
	t    *testing.T
	key  *rsa.PrivateKey
	cert *x509.Certificate
}

func newPublisher(t *testing.T, use x509.ExtKeyUsage) *publisher {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "a publisher"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{use}, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &publisher{t, k, c}
}

func (p *publisher) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw})
}

// over is a signature of message, which is in it unless it is detached.
func (p *publisher) over(message []byte, detached bool) []byte {
	p.t.Helper()
	sd, err := pkcs7.NewSignedData(message)
	if err != nil {
		p.t.Fatal(err)
	}
	sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	sd.SetEncryptionAlgorithm(pkcs7.OIDEncryptionAlgorithmRSA)
	if err := sd.SignWithoutAttr(p.cert, p.key, pkcs7.SignerInfoConfig{}); err != nil {
		p.t.Fatal(err)
	}
	if detached {
		sd.Detach()
	}
	der, err := sd.Finish()
	if err != nil {
		p.t.Fatal(err)
	}
	return der
}

func (p *publisher) sign(lines []string) ([]byte, error) {
	m, err := rdpsign.Message(lines)
	if err != nil {
		return nil, err
	}
	return p.over(m, true), nil
}

// utf16le is code of the test's own, as the rest of what reads a file here.
func utf16le(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// opened is a signed file as whoever verifies it reads it: its lines, the names
// in signscope and the PKCS #7.
func opened(t *testing.T, b []byte) (lines, scope []string, der []byte) {
	t.Helper()
	if !bytes.HasPrefix(b, []byte{0xff, 0xfe}) {
		t.Fatal("no byte order mark")
	}
	var units []uint16
	for i := 2; i+1 < len(b); i += 2 {
		units = append(units, uint16(b[i])|uint16(b[i+1])<<8)
	}
	lines = strings.Split(strings.TrimSuffix(string(utf16.Decode(units)), "\r\n"), "\r\n")
	for _, l := range lines {
		if v, ok := strings.CutPrefix(l, "signscope:s:"); ok {
			scope = strings.Split(v, ",")
		}
		if v, ok := strings.CutPrefix(l, "signature:s:"); ok {
			blob, err := base64.StdEncoding.DecodeString(v)
			if err != nil || len(blob) < 12 || !bytes.Equal(blob[:8], []byte{1, 0, 1, 0, 1, 0, 0, 0}) || int(binary.LittleEndian.Uint32(blob[8:])) != len(blob)-12 {
				t.Fatalf("the signature begins with %x, %v", blob[:min(len(blob), 12)], err)
			}
			der = blob[12:]
		}
	}
	if len(scope) == 0 || der == nil || !strings.HasPrefix(lines[len(lines)-1], "signature:s:") {
		t.Fatalf("the file is not signed: %q", lines)
	}
	return lines, scope, der
}

// verifies reports whether OpenSSL takes the signature of what the scope names
// among the lines.
func verifies(t *testing.T, lines, scope []string, der, ca []byte) bool {
	t.Helper()
	var text string
	for _, name := range scope {
		for _, l := range lines {
			if strings.HasPrefix(l, strings.ToLower(name)+":") {
				text += l + "\r\n"
			}
		}
	}
	text += "signscope:s:" + strings.Join(scope, ",") + "\r\n\x00"
	dir := t.TempDir()
	for name, b := range map[string][]byte{"sig": der, "msg": utf16le(text), "ca.pem": ca} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", "sig", "-content", "msg", "-CAfile", "ca.pem", "-purpose", "any", "-out", "out")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil && !strings.Contains(string(out), "failure") {
		t.Fatalf("openssl: %v, %s", err, out)
	}
	return err == nil
}

func signedFile(t *testing.T, how Start, p *publisher) []byte {
	t.Helper()
	dir, err := NewRunDir(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Remove() })
	m := &mstsc{sys: newPretended(), start: how, sign: p.sign, unsigned: func(err error) { t.Error(err) }}
	target := apartTarget()
	target.Channels = sft.AllChannels
	args, _, err := m.prepare(dir, target, View{}, sft.NewSecret("s"), []byte{7}, true)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(args[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseRDPFile(b); err != nil {
		t.Error(err)
	}
	return b
}

// A signed file verifies by code that is not ours, and with anything changed
// that is in the scope it does not.
func TestSignedFile(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("there is no openssl")
	}
	p, other := newPublisher(t, x509.ExtKeyUsageCodeSigning), newPublisher(t, x509.ExtKeyUsageCodeSigning)
	for _, how := range []Start{StartFile, StartProcess} {
		lines, scope, der := opened(t, signedFile(t, how, p))
		if !verifies(t, lines, scope, der, p.pem()) {
			t.Errorf("%s: openssl does not take it", how)
		}
		if verifies(t, lines, scope, der, other.pem()) {
			t.Errorf("%s: openssl takes it for another publisher's", how)
		}
		if how == StartProcess {
			continue // the rest is the same
		}
		for i, l := range lines {
			name, _, _ := strings.Cut(l, ":")
			if !slices.ContainsFunc(scope, func(s string) bool { return strings.EqualFold(s, name) }) {
				continue
			}
			changed := slices.Clone(lines)
			changed[i] += "1"
			if verifies(t, changed, scope, der, p.pem()) {
				t.Errorf("%q was changed, and it is taken", l)
			}
			if verifies(t, slices.Delete(slices.Clone(lines), i, i+1), scope, der, p.pem()) {
				t.Errorf("%q is missing, and it is taken", l)
			}
			if i == 0 && verifies(t, slices.Insert(slices.Clone(lines), i, l), scope, der, p.pem()) {
				t.Errorf("%q is there twice, and it is taken", l)
			}
		}
		if verifies(t, lines, scope[1:], der, p.pem()) {
			t.Error("the scope was changed, and it is taken")
		}
		// What leads elsewhere cannot be left out of the scope.
		for _, must := range []string{"Full Address", "Alternate Full Address", "Server Port", "Authentication Level", "EnableCredSspSupport", "GatewayHostname", "GatewayUsageMethod",
			"Alternate Shell", "RemoteApplicationMode", "RedirectDrives", "DrivesToRedirect", "RedirectClipboard", "RedirectPrinters", "RedirectSmartCards"} {
			if !slices.Contains(scope, must) {
				t.Errorf("%s is not signed", must)
			}
		}
	}
}

// A file without a good signature is written without any, and the person is
// told why.
func TestUnsignedFile(t *testing.T) {
	p, server := newPublisher(t, x509.ExtKeyUsageCodeSigning), newPublisher(t, x509.ExtKeyUsageServerAuth)
	plain := signedOrNot(t, nil, nil)
	for name, s := range map[string]Signer{
		"a platform that refuses":      func([]string) ([]byte, error) { return nil, errors.New("no") },
		"nothing":                      func([]string) ([]byte, error) { return nil, nil },
		"no PKCS #7":                   func([]string) ([]byte, error) { return []byte("no"), nil },
		"too much":                     func([]string) ([]byte, error) { return make([]byte, rdpsign.MaxSignature+1), nil },
		"a signature of another file":  func([]string) ([]byte, error) { return p.over([]byte("another"), true), nil },
		"a signature with its content": func(l []string) ([]byte, error) { m, err := rdpsign.Message(l); return p.over(m, false), err },
		"a certificate for servers":    server.sign,
	} {
		var told []error
		if b := signedOrNot(t, s, func(err error) { told = append(told, err) }); !bytes.Equal(b, plain) || len(told) != 1 {
			t.Errorf("%s: %d bytes, told %v", name, len(b), told)
		}
	}
}

func signedOrNot(t *testing.T, s Signer, unsigned func(error)) []byte {
	t.Helper()
	dir, err := NewRunDir(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Remove() })
	args, _, err := (&mstsc{sys: newPretended(), start: StartProcess, sign: s, unsigned: unsigned}).prepare(dir, apartTarget(), View{}, sft.NewSecret("s"), []byte{7}, true)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(args[0])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzCheckSignature: whatever is sent in a signature's place, nothing panics,
// and only what the one publisher signed is taken.
func FuzzCheckSignature(f *testing.F) {
	f.Add([]byte{0x30, 0x80, 0, 0})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, der []byte) {
		if err := checkSignature(der, []byte("a message that nobody has signed")); err == nil {
			t.Errorf("%x is taken", der)
		}
	})
}
