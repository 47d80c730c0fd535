package store_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"sft/internal/store"
)

// Writers that share a commit keep what is theirs: what another undoes, panics
// over or gives up is not stored, and whoever was told that it is finds it.
func TestWritersAtOnce(t *testing.T) {
	both(t, func(t *testing.T, s *suite) {
		errUndone := errors.New("undone")
		until := time.Now().Add(time.Hour)
		held, release := make(chan struct{}), make(chan struct{})
		var all sync.WaitGroup
		told := make([]error, 81)
		use := func(i int, before func()) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			told[i] = errUndone
			defer func() { recover() }()
			told[i] = s.Note(ctx, func(n store.Notes) error {
				before()
				if err := n.UseID(fmt.Sprint("id", i), until); err != nil {
					return err
				}
				switch i % 4 {
				case 1:
					return errUndone
				case 2:
					panic("of a writer")
				case 3:
					cancel()
				}
				return nil
			})
		}
		all.Go(func() { use(0, func() { close(held); <-release }) })
		<-held
		for i := range 80 {
			all.Go(func() { use(i+1, func() {}) })
		}
		// One that gives up before its turn is not in the way.
		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if strings.HasPrefix(s.url, "sqlite:") {
			if err := s.Note(short, func(n store.Notes) error { return n.UseID("late", until) }); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("one that waited too long: %v", err)
			}
		}
		close(release)
		all.Wait()
		for i, err := range told {
			// A connection of PostgreSQL does not always survive who gave up on it.
			if (err == nil) != (i%4 == 0) && !(errors.Is(err, driver.ErrBadConn) && !strings.HasPrefix(s.url, "sqlite:")) {
				t.Errorf("writer %d was told %v", i, err)
			}
			got := s.Note(t.Context(), func(n store.Notes) error { return n.UseID(fmt.Sprint("id", i), until) })
			if want := err == nil; errors.Is(got, store.ErrExists) != want {
				t.Errorf("what writer %d wrote is stored: %v", i, got)
			}
		}
		if err := s.Note(t.Context(), func(n store.Notes) error { return n.UseID("late", until) }); err != nil {
			t.Errorf("what was not done in time: %v", err)
		}
	})
}
