package main

import (
	"context"
	"log/slog"
	"time"

	"sft/internal/daemon"
	"sft/internal/store"
)

// patience is how long systemd is asked to wait for the next word of a start
// that brings a database up to date.
var patience = time.Minute

// upgraded opens a database, and brings its schema up to date first: step by
// step, which are logged, and with a word to systemd meanwhile, which would end
// a start that takes long.
func upgraded(ctx context.Context, url string, logger *slog.Logger) (*store.DB, error) {
	db, err := store.Reach(ctx, url)
	if err != nil {
		return nil, err
	}
	err = upgrade(ctx, db, logger)
	db.Close()
	if err != nil {
		return nil, err
	}
	return store.Open(ctx, url)
}

func upgrade(ctx context.Context, db *store.DB, logger *slog.Logger) error {
	have, newest, err := db.Versions(ctx)
	if err != nil || have >= newest { // one that is newer is refused by Open
		return err
	}
	defer daemon.Extend(patience)()
	logger.Info("bringing the database up to date; it may take a while, and is not to be interrupted", "schema", have, "to", newest)
	for v := have + 1; v <= newest; v++ { // not each is there
		began := time.Now()
		if err := db.Migrate(ctx, v); err != nil {
			return err
		}
		before := have
		if have, _, err = db.Versions(ctx); err != nil {
			return err
		}
		if have > before {
			logger.Info("the database is migrated", "schema", have, "took", time.Since(began).Round(time.Millisecond).String())
		}
	}
	return nil
}
