package ca

import (
	"crypto/ed25519"
	"fmt"
)

// Audit signs what the platform says of its audit events. It is an authority
// by its life and its key alone: it signs no certificates.
const Audit Kind = "audit"

// AuditKey returns the public key that checks what SignAudit signs.
func (a *Authority) AuditKey() ed25519.PublicKey { return a.pub }

// SignAudit signs a note of the audit (Ed25519, RFC 8032).
func (a *Authority) SignAudit(message []byte) ([]byte, error) {
	if a.kind != Audit {
		return nil, fmt.Errorf("the %s CA does not sign audit notes", a.kind)
	}
	return ed25519.Sign(a.key.(ed25519.PrivateKey), message), nil
}
