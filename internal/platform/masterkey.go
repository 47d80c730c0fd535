package platform

import (
	"context"
	"encoding/base64"
	"fmt"

	"sft/internal/audit"
	"sft/internal/ca"
	"sft/internal/store"
)

// sealedSettings are the settings that are sealed, each under its own name.
var sealedSettings = []string{"token_key"}

// ResealKeys seals everything in the database that is sealed by next: all of it
// or nothing. p's own sealer opens it. It returns how much that was.
func (p *Platform) ResealKeys(ctx context.Context, next ca.Sealer) (int, error) {
	n := 0
	err := p.DB.Change(ctx, func(tx *store.Tx) (audit.Event, error) {
		none := audit.Event{}
		list, err := tx.AllCAs()
		if err != nil {
			return none, err
		}
		for _, c := range list {
			s, err := ca.Sealed{Kind: ca.Kind(c.Kind), Key: c.Sealed}.Reseal(c.ID, p.Sealer, next)
			if err != nil {
				return none, err
			}
			if err := tx.SetCASealed(c.ID, s.Key); err != nil {
				return none, err
			}
		}
		for _, name := range sealedSettings {
			v, err := tx.Setting(name)
			if err != nil {
				return none, fmt.Errorf("read the setting %s: %w", name, err)
			}
			sealed, err := base64.StdEncoding.DecodeString(v)
			if err != nil {
				return none, fmt.Errorf("read the setting %s: %w", name, err)
			}
			if sealed, err = ca.Reseal(name, sealed, p.Sealer, next); err != nil {
				return none, fmt.Errorf("open the setting %s: %w", name, err)
			}
			if err := tx.SetSetting(name, base64.StdEncoding.EncodeToString(sealed)); err != nil {
				return none, err
			}
		}
		authorities, err := tx.ACMEs()
		if err != nil {
			return none, err
		}
		n = len(list) + len(sealedSettings)
		for _, a := range authorities {
			account, err := ca.Reseal(acmeAccount, a.AccountKey, p.Sealer, next)
			if err != nil {
				return none, fmt.Errorf("open the key of the account at %s: %w", a.Directory, err)
			}
			n++
			key := a.ChainKey
			if len(a.Chain) > 0 {
				if key, err = ca.Reseal(acmeCertificate, a.ChainKey, p.Sealer, next); err != nil {
					return none, fmt.Errorf("open the key of the certificate by %s: %w", a.Directory, err)
				}
				n++
			}
			if err := tx.SetACMESealed(a.Directory, account, key); err != nil {
				return none, err
			}
		}
		team, err := tx.Setting("first_team")
		e := p.event(Actor{}, audit.MasterKeyRotate, team, "", "master key")
		e.Actor = audit.Actor{Kind: "platform", Name: "rotate"}
		e.Detail = map[string]string{"keys": fmt.Sprint(n)}
		return e, err
	})
	return n, err
}
