package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/ca"
	"sft/internal/conf"
	"sft/internal/platform"
	"sft/internal/store"
)

func backupCommand() *cobra.Command {
	var d data
	var passphrase string
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write all records to a file, while the platform runs",
		Long: `Backup writes all records, as they are at one moment, to a new file that only
this account can read, whole or not at all. The file does not depend on the kind
of database: restore can put it into the other one. It has a hash over all of it,
and a seal by the master key, so restore finds any damage and any change.

The master key is NOT in it, and without master.key a backup cannot be restored:
keep a copy of the key apart from the backups. With --with-master-key it is in
the file, sealed with a passphrase: who has file and passphrase has everything.

Nothing in the file is encrypted but the keys: it has names, password hashes and
all events. Run it as the account that the platform runs as. It is an audit event.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := backup(cmd.Context(), d, args[0], passphrase)
			if err != nil {
				return err
			}
			key := "The master key is not in it: keep a copy of " + d.masterKey() + " apart from it."
			if passphrase != "" {
				key = "The master key is in it, sealed with the passphrase."
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d rows, SHA-256 %s\n%s\n", args[0], b.Rows.Sum(), b.SHA256, key)
			return err
		},
	}
	d.flags(cmd)
	cmd.Flags().StringVar(&passphrase, "with-master-key", "", "put the master key in too, sealed with the passphrase in this private file")
	return cmd
}

func backup(ctx context.Context, d data, file, passphrase string) (b platform.Backup, err error) {
	if _, err := os.Lstat(file); err == nil {
		return b, &sft.Error{Code: sft.Exists, Msg: file + " is there already", Hint: "give each backup a name of its own"}
	}
	if err := conf.CheckOwnDir(filepath.Dir(file)); err != nil {
		return b, &sft.Error{Code: sft.Invalid, Msg: err.Error(), Err: err, Hint: "name a folder of this account's own, which nobody else can write in"}
	}
	p, err := d.openBy(ctx, slog.New(slog.DiscardHandler), attached)
	if err != nil {
		return b, err
	}
	defer p.DB.Close()
	lock, err := d.holdKey()
	if err != nil {
		return b, err
	}
	defer lock.Release()
	if ca.Changing(d.masterKey()) {
		return b, &sft.Error{Code: sft.Exists, Msg: "the master key is being changed: some records are sealed with one key, and some with the other", Hint: "run \"sft-platform rotate master-key\" first"}
	}
	var key []byte
	if passphrase != "" {
		secret, err := ca.ReadPassphrase(passphrase)
		if err != nil {
			return b, err
		}
		if key, err = ca.SealMasterKey(d.masterKey(), secret); err != nil {
			return b, err
		}
	}
	f, err := conf.CreateSecret(file)
	if err != nil {
		return b, err
	}
	defer f.Discard()
	if b, err = p.Backup(ctx, f, key); err != nil {
		return b, fmt.Errorf("write %s: %w", file, err)
	}
	// The event is stored before the file has its name: none is made in secret.
	if err := f.Sync(); err != nil {
		return b, fmt.Errorf("write %s: %w", file, err)
	}
	if err := p.BackupMade(ctx, b, filepath.Base(file)); err != nil {
		return b, err
	}
	return b, f.Commit()
}

// attached opens a database whose schema is this program's already. Only serve
// brings one up to date: a backup that is made because of an upgrade is not to
// be the upgrade, nor is a look at the record.
func attached(ctx context.Context, url string) (*store.DB, error) {
	db, err := store.Attach(ctx, url)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &sft.Error{Code: sft.Invalid, Msg: err.Error(), Err: err, Hint: "give --data, and --database if the platform has one, as serve has them"}
	}
	if err != nil {
		return nil, err
	}
	have, newest, err := db.Versions(ctx)
	switch {
	case err != nil:
	case have > newest:
		err = store.TooNew("the database", have, newest)
	case have == 0:
		err = &sft.Error{Code: sft.Invalid, Msg: "the database is empty", Hint: "run \"sft-platform init\", or give --database as serve has it"}
	case have < newest:
		err = &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the database is by an older version: its schema is %d, and this program's is %d", have, newest),
			Hint: "use the version that runs; after a backup by that one, serve of this version brings the database up to date"}
	}
	if err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

// errNoPlatform is what commands say that need a platform.
func errNoPlatform(dir string) error {
	return fmt.Errorf("there is no platform in %s; run \"sft-platform init\" first, or give --data", dir)
}

// errNoMasterKey is what commands say of a database whose master key is not in
// the data folder.
func errNoMasterKey(d *data) error {
	return &sft.Error{Code: sft.Invalid, Msg: "the master key is missing: the database is a platform's, and there is no " + d.masterKey(),
		Hint: "put the copy of the key back there, mode 600, or give --data with the folder that has it; without a copy, restore a backup that has the key: \"sft-platform restore FILE --with-master-key PASSPHRASE_FILE --force\""}
}

// hasPlatform reports whether the database is a platform's. It makes none.
func (d *data) hasPlatform(ctx context.Context) (bool, error) {
	db, err := store.Attach(ctx, d.url())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer db.Close()
	if have, _, err := db.Versions(ctx); err != nil || have == 0 {
		return false, err
	}
	err = db.Read(ctx, func(tx *store.Tx) error { _, err := tx.Setting("url"); return err })
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// sealer opens the master key. Where there is none, it says whether there is a
// database that needs one.
func (d *data) sealer(ctx context.Context) (ca.Sealer, error) {
	s, err := d.openKey()
	if !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	switch there, err := d.hasPlatform(ctx); {
	case err != nil:
		return nil, fmt.Errorf("there is no %s, and it cannot be seen whether the database is a platform's: %w", d.masterKey(), err)
	case there:
		return nil, errNoMasterKey(d)
	}
	return nil, errNoPlatform(d.dir)
}

// openKey is sealer where there may be none, which is fs.ErrNotExist.
func (d *data) openKey() (ca.Sealer, error) {
	s, err := ca.OpenSealer(d.masterKey())
	if e, ok := errors.AsType[*sft.Error](err); ok {
		// Where other files can be removed and made again, this one cannot.
		err = &sft.Error{Code: e.Code, Msg: e.Msg, Err: err,
			Hint: "run this as the account that the platform runs as, which alone may read the key (\"chmod 600 " + d.masterKey() + "\"); never remove it"}
	}
	return s, err
}
