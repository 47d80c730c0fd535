package ca

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // by which Windows names certificates
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/smallstep/pkcs7"

	"sft/internal/rdpsign"
)

// RDPSign signs RDP connection files of a team. It is an authority by its life
// and its key alone, and its certificate is none of a CA: who trusts it trusts
// what it signs, and can be shown no other certificate by it.
const RDPSign Kind = "rdp_sign"

// rdpSignBits is the size of its RSA key: mstsc is known to take no other kind.
const rdpSignBits = 3072

// newRDPSign makes the key and the certificate, which names title as the
// publisher.
func newRDPSign(title string, notAfter, now time.Time) (*rsa.PrivateKey, []byte, error) {
	k, err := rsa.GenerateKey(rand.Reader, rdpSignBits)
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: title},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	return k, der, err
}

// SignRDP signs the lines of a connection file, as rdpsign.Message lets them
// be. It returns a PKCS #7, DER, with the authority's certificate in it.
func (a *Authority) SignRDP(lines []string) (der, message []byte, err error) {
	if a.kind != RDPSign {
		return nil, nil, fmt.Errorf("the %s CA does not sign connection files", a.kind)
	}
	if message, err = rdpsign.Message(lines); err != nil {
		return nil, nil, err
	}
	sd, err := pkcs7.NewSignedData(message)
	if err != nil {
		return nil, nil, err
	}
	sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	sd.SetEncryptionAlgorithm(pkcs7.OIDEncryptionAlgorithmRSA)
	if err := sd.SignWithoutAttr(a.cert, a.key, pkcs7.SignerInfoConfig{}); err != nil {
		return nil, nil, err
	}
	sd.Detach()
	if der, err = sd.Finish(); err != nil {
		return nil, nil, err
	}
	// The last look, as at a certificate.
	p, err := pkcs7.Parse(der)
	if err == nil {
		p.Content = message
		err = p.Verify()
	}
	if err == nil && len(der) > rdpsign.MaxSignature {
		err = errors.New("it is too long")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("refuse to sign a connection file: %w", err)
	}
	return der, message, nil
}

// Thumbprint is the SHA-1 of a certificate, as the policies of Windows name it.
func Thumbprint(der []byte) string {
	sum := sha1.Sum(der)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}
