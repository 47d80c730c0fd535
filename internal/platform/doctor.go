package platform

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"sft/internal/ca"
	"sft/internal/store"
)

// Keys is what the master key opened.
type Keys struct {
	CAs   int
	First CAEnd // zero if there are none that somebody has to see to
}

// A CAEnd is the end of a CA that nothing takes the place of by itself.
type CAEnd struct {
	At            time.Time
	Kind          ca.Kind
	Team, Project string // whose it is; without a project the team's, without a team the platform's own
}

// Keys opens every key in the database. CAs that have ended are left out.
func (p *Platform) Keys(ctx context.Context) (k Keys, err error) {
	if _, err := p.tokenKey(ctx); err != nil {
		return k, err
	}
	err = p.DB.Read(ctx, func(tx *store.Tx) error {
		var list []store.CARecord
		if err := opensAll(tx, p.Sealer, func(r store.CARecord) bool {
			if !r.NotAfter.After(p.Now()) {
				return false
			}
			list = append(list, r)
			return true
		}); err != nil {
			return err
		}
		k.CAs = len(list)
		slices.SortFunc(list, func(x, y store.CARecord) int { return x.NotAfter.Compare(y.NotAfter) })
		for _, r := range list {
			end, ends, err := endOf(tx, r)
			if err != nil || ends {
				k.First = end
				return err
			}
		}
		return nil
	})
	return k, err
}

// endOf is whose CA r is, unless nobody has to see to its end: another one signs
// already, its project was deleted, or the next one is made when it is needed.
func endOf(tx *store.Tx, r store.CARecord) (e CAEnd, ends bool, err error) {
	e = CAEnd{At: r.NotAfter, Kind: ca.Kind(r.Kind)}
	if r.Stage == store.CARetired || e.Kind == ca.Audit {
		return e, false, nil
	}
	team := r.ProjectID
	if e.Kind != ca.RDPSign && r.ProjectID != "" {
		pr, err := tx.ProjectByID(r.ProjectID)
		if errors.Is(err, store.ErrNotFound) {
			return e, false, nil
		}
		if err != nil {
			return e, false, err
		}
		team, e.Project = pr.TeamID, pr.Name
	}
	if team != "" {
		t, err := tx.TeamByID(team)
		if err != nil {
			return e, false, err
		}
		e.Team = t.Name
	}
	return e, true, nil
}

// opensAll tries s on everything that is sealed in the database, but for the
// CAs that are not wanted.
func opensAll(tx *store.Tx, s ca.Sealer, want func(store.CARecord) bool) error {
	list, err := tx.AllCAs()
	if err != nil {
		return err
	}
	for _, r := range list {
		if !want(r) {
			continue
		}
		if _, err := ca.Open(ca.Sealed{Kind: ca.Kind(r.Kind), Public: r.Public, Key: r.Sealed, NotAfter: r.NotAfter}, r.ID, s); err != nil {
			return err
		}
	}
	for _, name := range sealedSettings {
		v, err := tx.Setting(name)
		if errors.Is(err, store.ErrNotFound) { // of a version that had none
			continue
		}
		sealed, derr := base64.StdEncoding.DecodeString(v)
		if err := errors.Join(err, derr); err != nil {
			return fmt.Errorf("read the setting %s: %w", name, err)
		}
		if _, err := s.Open(name, sealed); err != nil {
			return fmt.Errorf("open the setting %s: %w", name, err)
		}
	}
	acmes, err := tx.ACMEs()
	if err != nil {
		return err
	}
	for _, r := range acmes {
		if _, err := openECKey(s, acmeAccount, r.AccountKey); err != nil {
			return fmt.Errorf("the key of the account at %s: %w", r.Directory, err)
		}
		if len(r.Chain) > 0 {
			if _, err := openACME(s, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// backupKey is the setting that tells whether a master key opens the last backup.
const backupKey = "last_backup_key"

// BackupBeforeKey reports whether the last backup was made with another master
// key than s has. It is false also where that is not known.
func BackupBeforeKey(ctx context.Context, db *store.DB, s ca.Sealer) bool {
	var sealed []byte
	err := db.Read(ctx, func(tx *store.Tx) error {
		v, err := tx.Setting(backupKey)
		if err == nil {
			sealed, err = base64.StdEncoding.DecodeString(v)
		}
		return err
	})
	if err != nil {
		return false
	}
	_, err = s.Open(backupKey, sealed)
	return err != nil
}

// Times returns the time by the database's own clock, zero for SQLite, which
// has none; and when the last event happened and the last backup was made,
// zero if there was none.
func Times(ctx context.Context, db *store.DB) (clock, event, backup time.Time, err error) {
	err = db.Read(ctx, func(tx *store.Tx) error {
		s, err := tx.Setting(lastBackup)
		if err == nil {
			backup, err = time.Parse(time.RFC3339, s)
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		clock, event, err = tx.Times()
		return err
	})
	return clock, event, backup, err
}
