package main

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/ca"
	"sft/internal/conf"
)

func rotateCommand() *cobra.Command {
	var d data
	var prepare bool
	cmd := &cobra.Command{
		Use:   "rotate master-key",
		Short: "Put another master key in the place of the present one",
		Long: `Rotate makes another master key, seals every key in the database with it, and
then puts it in the place of the one in the data folder. It works while serve
runs. If it is interrupted at any point, what runs goes on: run it again, and it
goes on where it was. It is an audit event.

Where several machines serve one database, each has the master key in its data
folder. Run rotate master-key --prepare on one of them, which makes
master.key.next and nothing else; copy that file, with mode 0600, to the data
folders of the others; then run rotate master-key on each.

A backup of the database from before needs the master key of then: keep that
with it, and back up the new one.`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: []string{"master-key"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] != "master-key" {
				return usage{fmt.Errorf("%q cannot be rotated; it is master-key that can", args[0])}
			}
			p, err := d.open(cmd.Context(), slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			defer p.DB.Close()
			// Two at once would make two keys, of which one is lost.
			lock, err := d.holdKey()
			if err != nil {
				return err
			}
			defer lock.Release()
			// What runs here would seal with the next key from the moment it is there.
			if err := p.Ready(cmd.Context()); err != nil {
				return fmt.Errorf("nothing is changed: %w", err)
			}
			path, err := ca.NextMasterKey(d.masterKey())
			if err != nil {
				return err
			}
			if prepare {
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "The next master key is in %s.\n", path)
				return err
			}
			next, err := ca.OpenSealer(path)
			if err != nil {
				return err
			}
			n, err := p.ResealKeys(cmd.Context(), next)
			if err != nil {
				return err
			}
			if err := ca.AdoptMasterKey(d.masterKey()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d keys are sealed with the new master key, in %s. Back it up.\n", n, d.masterKey())
			return err
		},
	}
	d.flags(cmd)
	cmd.Flags().BoolVar(&prepare, "prepare", false, "only make the next key, to be copied to other machines")
	return cmd
}

// holdKey has nobody else change or copy the master key until the lock is
// released.
func (d *data) holdKey() (*conf.Lock, error) {
	lock, err := conf.TryLock(filepath.Join(d.dir, "rotate.lock"))
	if errors.Is(err, conf.ErrLocked) {
		err = &sft.Error{Code: sft.Exists, Msg: "another rotate, or a backup, runs on " + d.dir, Hint: "wait for it to end"}
	}
	return lock, err
}
