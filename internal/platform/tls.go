package platform

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"sft/internal/ca"
	"sft/internal/store"
)

// platformCA returns the certificate of the platform's own CA, or nothing
// when it serves a certificate by another.
func (p *Platform) platformCA(tx *store.Tx) ([]byte, error) {
	if f, err := p.caFingerprint(tx); err != nil || f == "" {
		return nil, err
	}
	list, err := p.authorities(tx, "", ca.Platform)
	if err != nil {
		return nil, err
	}
	return list.signer(ca.Platform).Certificate(), nil
}

// Certificate returns a source of the platform's TLS certificate by its own
// CA. The key lives in memory; a new pair is made when half the life of the
// old one is over.
func (p *Platform) Certificate(ctx context.Context) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	u, err := url.Parse(p.URL)
	if err != nil {
		return nil, err
	}
	make := func() (*tls.Certificate, time.Time, error) {
		var a *ca.Authority
		if err := p.DB.Read(ctx, func(tx *store.Tx) error {
			if f, err := p.caFingerprint(tx); err != nil || f == "" {
				return errors.Join(err, errors.New("the platform has no CA of its own; give --tls-cert and --tls-key, or --acme"))
			}
			list, err := p.authorities(tx, "", ca.Platform)
			if err == nil {
				a = list.signer(ca.Platform)
			}
			return err
		}); err != nil {
			return nil, time.Time{}, err
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, time.Time{}, err
		}
		chain, until, err := a.IssuePlatform(&key.PublicKey, u.Hostname(), p.Now())
		if err != nil {
			return nil, time.Time{}, fmt.Errorf("make the platform's certificate: %w", err)
		}
		return &tls.Certificate{Certificate: chain, PrivateKey: key}, p.Now().Add(max(until.Sub(p.Now())/2, time.Minute)), nil
	}
	var mu sync.Mutex
	cert, renew, err := make()
	if err != nil {
		return nil, err
	}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if p.Now().After(renew) {
			if c, r, err := make(); err == nil {
				cert, renew = c, r
			} else {
				p.Log.Error("renew the platform's certificate; trying again in a minute", "error", err)
				renew = p.Now().Add(time.Minute)
			}
		}
		return cert, nil
	}, nil
}
