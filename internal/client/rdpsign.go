package client

import (
	"context"

	"sft/internal/api"
)

// SignRDPFile has the platform sign the settings of a connection file, each a
// line of NAME:TYPE:VALUE. It returns a PKCS #7, DER.
func (s *Session) SignRDPFile(ctx context.Context, lines []string) ([]byte, error) {
	var r api.RDPSignatureReply
	err := s.Do(ctx, "POST", s.team("/rdp_signature"), api.RDPSignatureRequest{Settings: lines}, &r)
	return r.Signature, err
}
