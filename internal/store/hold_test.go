package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"sft"
	"sft/internal/store"
	"sft/internal/testdb"
)

// A hold that is alone and one that is shared keep each other out, and say who
// is in the way.
func TestHold(t *testing.T) {
	ctx, url := t.Context(), testdb.Postgres(t)
	a, b := must1(store.HoldShared(ctx, url, "serve on a")), must1(store.HoldShared(ctx, url, "serve on b"))
	_, err := store.HoldAlone(ctx, url, "restore")
	if sft.CodeOf(err) != sft.Invalid || !strings.Contains(err.Error(), "in use by: serve on a, serve on b") {
		t.Errorf("beside two that share: %v", err)
	}
	a.Release()
	if _, err := store.HoldAlone(ctx, url, "restore"); err == nil || strings.Contains(err.Error(), "serve on a") {
		t.Errorf("beside one: %v", err)
	}
	b.Release()
	alone := must1(store.HoldAlone(ctx, url, "restore"))
	if _, err := store.HoldShared(ctx, url, "serve"); sft.CodeOf(err) != sft.Unavailable {
		t.Errorf("shared beside one that is alone: %v", err)
	}
	// Another schema of the same database is another platform.
	must1(testdb.Raw(t, url).Exec(`CREATE SCHEMA other`))
	must1(store.HoldAlone(ctx, url+"&search_path=other", "restore")).Release()
	alone.Release()
	must1(store.HoldShared(ctx, url, "serve")).Release()
}

// What is done while others are kept out ends when they no longer are.
func TestWhileHeld(t *testing.T) {
	url := testdb.Postgres(t)
	h := must1(store.HoldAlone(t.Context(), url, "restore here"))
	defer h.Release()
	if err := h.While(t.Context(), func(context.Context) error { return errEnough }); err != errEnough {
		t.Errorf("its own error is told as %v", err)
	}
	db := testdb.Raw(t, url)
	err := h.While(t.Context(), func(ctx context.Context) error {
		if _, err := db.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'restore here'`); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Minute):
			return errors.New("it goes on without the lock")
		}
	})
	if sft.CodeOf(err) != sft.Unavailable || !strings.Contains(err.Error(), "was lost") {
		t.Errorf("without the lock: %v", err)
	}
}

// A hold whose connection is lost is taken again, and asks then whether what
// happened meanwhile lets it go on. What fails otherwise does not end it.
func TestHoldIsKept(t *testing.T) {
	url := testdb.Postgres(t)
	ctx, cancel := context.WithCancel(t.Context())
	h := must1(store.HoldShared(ctx, url, "serve here"))
	asked, answers, kept := make(chan int), make(chan error), make(chan error, 1)
	n := 0
	go func() {
		kept <- h.Keep(ctx, errEnough, func(context.Context) error { n++; asked <- n; return <-answers })
	}()
	db := testdb.Raw(t, url)
	lose := func() {
		t.Helper()
		var gone int
		if err := db.QueryRow(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'serve here'`).Scan(&gone); err != nil || gone < 1 {
			t.Fatalf("%d connections were ended, %v", gone, err)
		}
	}
	lose()
	<-asked
	if _, err := store.HoldAlone(t.Context(), url, "restore"); err == nil {
		t.Error("it is not held when it is asked")
	}
	answers <- errors.New("not known") // and so it asks again
	<-asked
	answers <- nil

	// Somebody has it alone when it is to be taken again.
	lose()
	var alone *store.Hold
	for deadline := time.Now().Add(30 * time.Second); alone == nil && time.Now().Before(deadline); {
		alone, _ = store.HoldAlone(t.Context(), url, "restore")
	}
	if alone == nil {
		t.Fatal("it was never free")
	}
	select {
	case <-asked:
		t.Error("it is asked while somebody else has it")
	case <-time.After(10 * time.Millisecond):
	}
	alone.Release()
	<-asked
	answers <- errEnough
	if err := <-kept; !errors.Is(err, errEnough) {
		t.Errorf("Keep ended with %v", err)
	}
	cancel()
	h.Release()
}
