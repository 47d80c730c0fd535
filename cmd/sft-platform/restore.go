package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/ca"
	"sft/internal/conf"
	"sft/internal/platform"
	"sft/internal/store"
)

func restoreCommand() *cobra.Command {
	var d data
	var passphrase string
	var force bool
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Put a backup into an empty database",
		Long: `Restore puts the records of a backup into an empty database, of either kind: all
of them, or, if anything is wrong, none. The data folder must hold the master
key that the backup was made with, or, with --with-master-key, gets it from the
backup. A backup by an older version is brought up to date on the way, and one
by a newer version is refused. With --force a database that is in use, by whatever
version, is replaced, and what is in it is lost. No platform may run on it, on
this host or, with PostgreSQL, another: that is refused.

After it everybody has to sign in again, and one-time links are void: make one
with first-use. What was changed after the backup was made is unknown to the
platform, what was taken away too. docs/operating.md says what to look at before
you let people in.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, rows, err := restore(cmd.Context(), d, args[0], passphrase, force)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), `%d rows are restored, as of %s, of the platform at %s.
Everybody has to sign in again; "sft-platform first-use USER" makes a one-time link.
Before you start it: what was taken away since then (people, groups, keys, tokens,
clients, servers) is back. Take it away again; docs/operating.md says how.
`, rows.Sum(), b.MadeAt.Format(time.RFC3339), sft.Printable(b.URL))
			return err
		},
	}
	d.flags(cmd)
	cmd.Flags().StringVar(&passphrase, "with-master-key", "", "take the master key from the backup, with the passphrase in this private file")
	cmd.Flags().BoolVar(&force, "force", false, "replace the records of a database that is in use")
	conf.NotSetting(cmd.Flags(), "force")
	return cmd
}

func restore(ctx context.Context, d data, file, passphrase string, force bool) (*platform.BackupFile, store.Rows, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, nil, &sft.Error{Code: sft.Invalid, Msg: "read the backup: " + err.Error(), Err: err, Hint: "name a file that \"sft-platform backup\" made, and that this account may read"}
	}
	defer f.Close()
	i, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	b, err := platform.OpenBackup(f, i.Size())
	if err != nil {
		return nil, nil, err
	}
	key, s, err := d.keyOf(b, passphrase)
	if err != nil {
		return nil, nil, err
	}
	if err := b.Verify(s); err != nil {
		return nil, nil, err
	}
	if err := conf.PrivateDir(d.dir); err != nil {
		return nil, nil, err
	}
	alone, err := d.alone(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer alone.Release()
	if key != nil {
		// Before the records: a key without records is no harm.
		if err := conf.WriteSecret(d.masterKey(), key); err != nil {
			return nil, nil, err
		}
	}
	// In the private folder: it may get all records. One that is there is left
	// from a restore that was killed.
	scratch := filepath.Join(d.dir, "restore.tmp")
	if err := os.RemoveAll(scratch); err != nil {
		return nil, nil, err
	}
	if err := os.Mkdir(scratch, 0o700); err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(scratch)
	db, err := store.Reach(ctx, d.url())
	if err != nil {
		return nil, nil, err
	}
	defer db.Close()
	var rows store.Rows
	err = alone.db.While(ctx, func(ctx context.Context) (err error) {
		rows, err = b.Restore(ctx, db, platform.RestoreRequest{Sealer: s, Replace: force, Scratch: scratch, Name: filepath.Base(file)})
		return err
	})
	return b, rows, err
}

// keyOf opens the master key in the data folder, or the one in the backup,
// which it returns if it is not in the folder yet.
func (d *data) keyOf(b *platform.BackupFile, passphrase string) ([]byte, ca.Sealer, error) {
	s, err := d.openKey()
	if passphrase == "" {
		if errors.Is(err, fs.ErrNotExist) {
			hint := "copy the master key that the backup was made with to " + d.masterKey() + ", mode 600"
			if len(b.MasterKey) > 0 {
				hint = "give --with-master-key, with the passphrase of the backup"
			}
			err = &sft.Error{Code: sft.Invalid, Msg: "there is no master key in " + d.dir, Hint: hint}
		}
		return nil, s, err
	}
	if err == nil {
		return nil, nil, &sft.Error{Code: sft.Exists, Msg: "there is a master key in " + d.dir + " already", Hint: "leave --with-master-key out; or, if it is of another platform, give another --data"}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	if len(b.MasterKey) == 0 {
		return nil, nil, &sft.Error{Code: sft.Invalid, Msg: "the master key is not in this backup", Hint: "copy it to " + d.masterKey() + ", mode 600"}
	}
	secret, err := ca.ReadPassphrase(passphrase)
	if err != nil {
		return nil, nil, err
	}
	key, err := ca.OpenMasterKey(b.MasterKey, secret)
	if err != nil {
		return nil, nil, err
	}
	s, err = ca.NewSealer(key)
	return key, s, err
}
