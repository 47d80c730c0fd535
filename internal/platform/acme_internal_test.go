package platform

import (
	"crypto/x509"
	"testing"
	"time"

	"sft/internal/acme"
)

// When a certificate is renewed: the authority's wish counts, within reason.
func TestRenewal(t *testing.T) {
	const day = 24 * time.Hour
	began := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	window := func(from, to time.Duration) acme.Window {
		return acme.Window{Renew: began.Add((from + to) / 2), Start: began.Add(from), End: began.Add(to)}
	}
	for _, tt := range []struct {
		name       string
		life       time.Duration
		w          acme.Window
		planned    time.Duration // 0: nothing was planned
		from, upTo time.Duration
	}{
		{"a third is left", 90 * day, acme.Window{}, 0, 58 * day, 60 * day},
		{"half of a short one is left", 6 * day, acme.Window{}, 0, 68 * time.Hour, 3 * day},
		{"as was planned", 90 * day, acme.Window{}, 50 * day, 50 * day, 50 * day},
		{"as the authority wishes", 90 * day, window(20*day, 22*day), 60 * day, 21 * day, 21 * day},
		{"a plan that it agrees with stays", 90 * day, window(20*day, 22*day), 20 * day, 20 * day, 20 * day},
		{"at once is in an hour", 90 * day, window(-3*day, -2*day), 60 * day, time.Hour, time.Hour},
		{"never is before the end", 90 * day, window(100*day, 102*day), 60 * day, 81 * day, 81 * day},
		{"one of minutes", 10 * time.Minute, acme.Window{}, 0, 5 * time.Minute, 5 * time.Minute},
	} {
		planned := time.Time{}
		if tt.planned != 0 {
			planned = began.Add(tt.planned)
		}
		got := renewal(&x509.Certificate{NotBefore: began, NotAfter: began.Add(tt.life)}, tt.w, planned)
		if got.Before(began.Add(tt.from)) || got.After(began.Add(tt.upTo)) {
			t.Errorf("%s: after %v, want %v to %v", tt.name, got.Sub(began), tt.from, tt.upTo)
		}
	}
}
