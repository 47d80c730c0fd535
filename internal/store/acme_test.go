package store_test

import (
	"context"
	"testing"
	"time"

	"sft/internal/store"
)

// What there is of an authority: one platform orders at a time, and a try that
// went well leaves nothing of those that failed.
func TestACME(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		const at = "https://acme.example.com/dir"
		hold := func(holder string, now time.Time) error {
			return s.Note(context.Background(), func(n store.Notes) error {
				_, err := n.HoldACME(at, holder, now, time.Minute)
				return err
			})
		}
		there := func() store.ACME {
			return get(s, func(tx *store.Tx) (store.ACME, error) { return tx.ACME(at) })
		}
		s.is("holding what is not there", hold("p", t0), store.ErrNotFound)
		s.change(func(tx *store.Tx) error { return tx.AddACME(at, []byte("account")) })
		s.is("adding it twice", s.try(func(tx *store.Tx) error { return tx.AddACME(at, []byte("other")) }), store.ErrExists)
		epoch := time.UnixMicro(0).UTC()
		want := store.ACME{Directory: at, AccountKey: []byte("account"), RenewAt: epoch, AskAt: epoch, FailedAt: epoch, RetryAt: epoch, RefusedUntil: epoch}
		s.same("a new one", there(), want)

		s.is("holding it", hold("p", t0), nil)
		s.is("holding it again", hold("p", t0.Add(30*time.Second)), nil)
		s.is("another", hold("q", t0.Add(time.Minute)), store.ErrExists)
		s.is("another, later", hold("q", t0.Add(90*time.Second)), nil)
		s.note(func(n store.Notes) error { return n.ReleaseACME(at, "p") })
		s.is("after a release that is not its own", hold("p", t0.Add(91*time.Second)), store.ErrExists)
		s.note(func(n store.Notes) error { return n.ReleaseACME(at, "q") })
		s.is("after a release, one whose clock is ahead", hold("p", t0.Add(time.Hour)), nil)
		s.is("another, while it may be the clocks' difference", hold("q", t0.Add(time.Hour-time.Minute)), store.ErrExists)
		s.is("another, by a clock that is right", hold("q", t0.Add(time.Hour-time.Minute-time.Second)), nil)
		s.note(func(n store.Notes) error { return n.SetACMEChallenge(at, "token.thumbprint") })
		s.same("the challenge", get(s, func(tx *store.Tx) (string, error) { return tx.ACMEChallenge(at) }), "token.thumbprint")
		failed := want
		failed.FailedAt, failed.Problem, failed.Fix, failed.RetryAt, failed.RefusedUntil = t0, "no way", "go round", t0.Add(time.Hour), t0.Add(2*time.Hour)
		s.note(func(n store.Notes) error { return n.FailACME(failed) })
		s.note(func(n store.Notes) error { return n.FailACME(failed) })
		failed.Failures = 2
		s.same("one that failed", there(), failed)
		s.is("after a failure, another", hold("p", t0.Add(2*time.Minute)), nil)

		want.Chain, want.ChainKey, want.RenewAt, want.AskAt = []byte("chain"), []byte("key"), t0.Add(time.Hour), t0.Add(time.Minute)
		want.FailedAt = t0
		s.change(func(tx *store.Tx) error { return tx.SetACMECertificate(want) })
		s.same("one that went well", there(), want)
		s.is("then, another", hold("q", t0.Add(2*time.Minute)), nil)
		want.RenewAt, want.AskAt = t0.Add(3*time.Hour), t0.Add(4*time.Hour)
		s.note(func(n store.Notes) error { return n.PlanACME(at, want.RenewAt, want.AskAt) })
		s.note(func(n store.Notes) error { return n.FailACME(failed) })
		s.change(func(tx *store.Tx) error { return tx.SetACMEAccount(at, []byte("account1")) })
		want.AccountKey, want.RefusedUntil = []byte("account1"), failed.RefusedUntil
		s.same("by another account", there(), want)
		want.AccountKey, want.ChainKey = []byte("account2"), []byte("key2")
		s.change(func(tx *store.Tx) error { return tx.SetACMESealed(at, want.AccountKey, want.ChainKey) })
		s.same("all of them", get(s, func(tx *store.Tx) ([]store.ACME, error) { return tx.ACMEs() }), []store.ACME{want})
	})
}
