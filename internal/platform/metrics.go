package platform

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"sft"
	"sft/internal/store"
)

// A Span tells of one transaction of the database that is over.
type Span = store.Span

// errStopping is why a platform that was told to stop is not ready.
var errStopping = errors.New("the platform is stopping")

// Ready reports whether the platform can do its work: it is not stopping, the
// database answers, keeps what is written and has the schema of this program,
// the master key opens what is sealed in it, and a certificate by ACME, where
// it has to be one, is there and has not ended.
func (p *Platform) Ready(ctx context.Context) error {
	if p.Stopping() {
		return errStopping
	}
	if err := p.DB.Ready(ctx, p.Now()); err != nil {
		return fmt.Errorf("the database: %w", err)
	}
	var sealed string
	if err := p.DB.Read(ctx, func(tx *store.Tx) (err error) {
		sealed, err = tx.Setting("token_key")
		return err
	}); err != nil {
		return fmt.Errorf("the database: %w", err)
	}
	b, err := base64.StdEncoding.DecodeString(sealed)
	if err == nil {
		_, err = p.Sealer.Open("token_key", b)
	}
	if err != nil {
		return fmt.Errorf("the master key: %w", err)
	}
	if p.ACME != nil {
		return p.ACME.ready()
	}
	return nil
}

// CountUnsealed counts the events that are not sealed yet, and of them those
// that are older than a minute.
func (p *Platform) CountUnsealed(ctx context.Context) (all, old int64, err error) {
	err = p.DB.Read(ctx, func(tx *store.Tx) (err error) {
		all, old, err = tx.CountUnsealed(p.Now().Add(-time.Minute))
		return err
	})
	return all, old, err
}

// CountServers counts the servers with an agent, of all teams: the active ones
// and the others.
func (p *Platform) CountServers(ctx context.Context) (active, inactive int, err error) {
	err = p.DB.Read(ctx, func(tx *store.Tx) (err error) {
		active, inactive, err = tx.CountServers(p.Now().Add(-sft.ActiveFor))
		return err
	})
	return active, inactive, err
}
