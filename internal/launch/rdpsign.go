package launch

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/smallstep/pkcs7"

	"sft"
	"sft/internal/rdpsign"
)

// A Signer has the settings of a connection file signed, lines of
// NAME:TYPE:VALUE as package rdpsign has them. It returns a PKCS #7, DER.
type Signer func(lines []string) ([]byte, error)

// SignBy has the connection files of the program signed, if it is one that
// looks at signatures. A file that cannot be signed is used as it is, and
// unsigned is told why. Call it before the program is started.
func (p *Program) SignBy(s Signer, unsigned func(error)) {
	if p.mstsc != nil {
		p.mstsc.sign, p.mstsc.unsigned = s, unsigned
	}
}

// signed returns f with what a signed file has, its signature last. What the
// signer made is looked at before it is used.
func (f RDPFile) signed(s Signer) (RDPFile, error) {
	full, ok := f.Get("full address")
	if !ok {
		return nil, errors.New("the file has no address")
	}
	lines, missing := rdpsign.Lines(full, f.Get)
	message, err := rdpsign.Message(lines)
	if err != nil {
		return nil, err
	}
	der, err := s(lines)
	if err != nil {
		return nil, err
	}
	if err := checkSignature(der, message); err != nil {
		return nil, &sft.Error{Code: sft.Internal, Msg: "the signature of the connection file is not good: " + err.Error(), Err: err,
			Hint: "check that sft and the platform are of the same version"}
	}
	out := slices.Clone(f)
	for _, m := range missing {
		out = append(out, RDPSetting{m.Name, m.Type, m.Default})
	}
	out.text("signscope", rdpsign.Scope())
	out.text("signature", rdpsign.Wrap(der))
	return out, out.check()
}

// checkSignature reports whether a PKCS #7 is one of message, by a certificate
// in it that is for signing. Whether anybody trusts that one is for Windows to
// say.
func checkSignature(der, message []byte) error {
	if len(der) == 0 || len(der) > rdpsign.MaxSignature {
		return fmt.Errorf("it has %d bytes", len(der))
	}
	p, err := pkcs7.Parse(der)
	if err != nil {
		return errors.New("it is not readable")
	}
	if len(p.Content) != 0 {
		return errors.New("it holds what it signs")
	}
	by := p.GetOnlySigner()
	if by == nil || !slices.Contains(by.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) {
		return errors.New("it is not by a certificate for signing")
	}
	p.Content = message
	if err := p.Verify(); err != nil {
		return errors.New("it is of something else")
	}
	return nil
}
