package store

import (
	"time"
)

// An ACME is what there is of one ACME authority, by its directory.
type ACME struct {
	Directory  string
	AccountKey []byte // sealed
	Chain      []byte // the certificate and those above it, DER, one after another; nil: none yet
	ChainKey   []byte // its private key, sealed

	RenewAt time.Time // when the certificate is to be renewed
	AskAt   time.Time // when the authority is asked again when that is

	Failures     int64 // tries in a row; the rest is of the last one
	FailedAt     time.Time
	Problem, Fix string    // empty: it went well
	RetryAt      time.Time // of our own accord
	RefusedUntil time.Time // by the authority's word
}

const acmeCols = `directory, account_key, chain, chain_key, renew_at, ask_at, failures, failed_at, problem, fix, retry_at, refused_until`

func scanACME(s scanner) (a ACME, err error) {
	var renew, ask, failed, retry, refused int64
	err = s.Scan(&a.Directory, &a.AccountKey, &a.Chain, &a.ChainKey, &renew, &ask, &a.Failures, &failed, &a.Problem, &a.Fix, &retry, &refused)
	a.RenewAt, a.AskAt, a.FailedAt, a.RetryAt, a.RefusedUntil = fromMicros(renew), fromMicros(ask), fromMicros(failed), fromMicros(retry), fromMicros(refused)
	return a, err
}

// AddACME stores the account key for an authority that is new.
func (tx *Tx) AddACME(directory string, accountKey []byte) error {
	return tx.add(`INSERT INTO acme (directory, account_key, renew_at, ask_at, failures, failed_at, problem, fix, retry_at, refused_until, challenge, holder, until)
		VALUES ($1, $2, 0, 0, 0, 0, '', '', 0, 0, '', '', 0)`, directory, accountKey)
}

// ACME returns what there is of an authority.
func (n Notes) ACME(directory string) (ACME, error) {
	return one(n, scanACME, `SELECT `+acmeCols+` FROM acme WHERE directory = $1`, directory)
}

// ACMEs returns what there is of every authority.
func (n Notes) ACMEs() ([]ACME, error) {
	return all(n, scanACME, `SELECT `+acmeCols+` FROM acme ORDER BY directory`)
}

// HoldACME makes holder the one that orders a certificate for so long from now,
// and returns what there is now. While it is another, that is ErrExists; but one
// that would hold on for more than twice as long has had a clock that was ahead.
func (n Notes) HoldACME(directory, holder string, now time.Time, long time.Duration) (ACME, error) {
	rows, err := n.exec(`UPDATE acme SET holder = $2, until = $4 WHERE directory = $1 AND (holder = $2 OR until <= $3 OR until > $5)`,
		directory, holder, micros(now), micros(now.Add(long)), micros(now.Add(2*long)))
	if err != nil {
		return ACME{}, err
	}
	a, err := n.ACME(directory)
	if err == nil && rows == 0 {
		err = ErrExists
	}
	return a, err
}

// ReleaseACME lets others order, if it is holder who may.
func (n Notes) ReleaseACME(directory, holder string) error {
	_, err := n.exec(`UPDATE acme SET holder = '', until = 0 WHERE directory = $1 AND holder = $2`, directory, holder)
	return err
}

// ACMEChallenge returns the key authorization of the try that is under way, or
// an empty one.
func (n Notes) ACMEChallenge(directory string) (string, error) {
	return one(n, func(s scanner) (v string, err error) { return v, s.Scan(&v) }, `SELECT challenge FROM acme WHERE directory = $1`, directory)
}

// SetACMEChallenge stores the key authorization of a try: whichever platform
// the authority asks can answer.
func (n Notes) SetACMEChallenge(directory, keyAuth string) error {
	return n.must(`UPDATE acme SET challenge = $2 WHERE directory = $1`, directory, keyAuth)
}

// PlanACME stores when the certificate is to be renewed, and when the authority
// is asked about that again.
func (n Notes) PlanACME(directory string, renew, ask time.Time) error {
	return n.must(`UPDATE acme SET renew_at = $2, ask_at = $3 WHERE directory = $1`, directory, micros(renew), micros(ask))
}

// FailACME stores why a try failed, and lets go of the hold.
func (n Notes) FailACME(a ACME) error {
	return n.must(`UPDATE acme SET failures = failures + 1, failed_at = $2, problem = $3, fix = $4, retry_at = $5, refused_until = $6, holder = '', until = 0 WHERE directory = $1`,
		a.Directory, micros(a.FailedAt), a.Problem, a.Fix, micros(a.RetryAt), micros(a.RefusedUntil))
}

// SetACMECertificate stores the certificate of a try that went well, and lets
// go of the hold.
func (tx *Tx) SetACMECertificate(a ACME) error {
	return tx.must(`UPDATE acme SET chain = $2, chain_key = $3, renew_at = $4, ask_at = $5, failures = 0, problem = '', fix = '', retry_at = 0, refused_until = 0, holder = '', until = 0 WHERE directory = $1`,
		a.Directory, a.Chain, a.ChainKey, micros(a.RenewAt), micros(a.AskAt))
}

// SetACMEAccount stores another account key, by which the next try is at once,
// unless the authority refuses all.
func (tx *Tx) SetACMEAccount(directory string, accountKey []byte) error {
	return tx.must(`UPDATE acme SET account_key = $2, failures = 0, problem = '', fix = '', retry_at = 0 WHERE directory = $1`, directory, accountKey)
}

// SetACMESealed stores the keys of an authority as they are sealed anew.
func (tx *Tx) SetACMESealed(directory string, accountKey, chainKey []byte) error {
	return tx.must(`UPDATE acme SET account_key = $2, chain_key = $3 WHERE directory = $1`, directory, accountKey, chainKey)
}
