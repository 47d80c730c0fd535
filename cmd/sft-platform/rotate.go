package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"sft"
	"sft/internal/ca"
	"sft/internal/conf"
	"sft/internal/platform"
)

func rotateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "rotate", Short: "Put other keys in the place of present ones", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		return usage{errors.New("say what to rotate: master-key, authorities or acme-account")}
	}}
	cmd.AddCommand(rotateMasterKeyCommand(), rotateAuthoritiesCommand(), rotateACMEAccountCommand())
	return cmd
}

func rotateMasterKeyCommand() *cobra.Command {
	var d data
	var prepare bool
	cmd := &cobra.Command{
		Use:   "master-key",
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
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
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
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d keys are sealed with the new master key, in %s. Back it up.\nBackups from before need the key of before: keep that with them, and make a new backup.\n", n, d.masterKey())
			return err
		},
	}
	d.flags(cmd)
	cmd.Flags().BoolVar(&prepare, "prepare", false, "only make the next key, to be copied to other machines")
	conf.NotSetting(cmd.Flags(), "prepare")
	return cmd
}

func rotateAuthoritiesCommand() *cobra.Command {
	var d data
	var r platform.AuthoritiesRequest
	var yes, asJSON bool
	cmd := &cobra.Command{
		Use:   "authorities --project PROJECT",
		Short: "Put other CAs in the place of a project's",
		Long: `Authorities begins the rotation of a project's CAs, as serve does by itself in
their last year: old and new ones are trusted side by side until nothing is good
any more that the old ones have signed.

With --compromised there is no such time: others know the keys. The old CAs are
trusted no more from now on, also those whose rotation is under way, and what
they let in ends; new ones sign at once. It says first what breaks, and asks; with
--yes it does not. Nobody new gets into a server in the seconds until its agent
has heard, and one whose agent is away goes by the old CAs until it is back.

It needs the data folder and no sign-in, works while serve runs, and is an audit
event. Run it as the account that the platform runs as. The same is in the API:
POST .../projects/PROJECT/authorities.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if r.Project == "" {
				return usage{errors.New("--project is missing: say whose CAs")}
			}
			if yes && !r.Compromised {
				return usage{errors.New("--yes goes with --compromised")}
			}
			return withPlatform(cmd, d, func(p *platform.Platform, w io.Writer) error {
				list, err := p.AuthoritiesHere(cmd.Context(), r)
				if err != nil {
					return err
				}
				if r.Compromised && !yes {
					if err := confirmDrop(cmd, r, list); err != nil {
						return err
					}
				}
				reply, err := p.RotateAuthoritiesHere(cmd.Context(), r)
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(w, reply.List)
				}
				return printAuthorities(w, reply.List)
			})
		},
	}
	d.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&r.Project, "project", "", "whose CAs")
	f.StringVar(&r.Team, "team", "", "the project's team (default: the first one)")
	f.StringSliceVar(&r.Kinds, "kind", nil, "access, host, ssh_user or ssh_host, more than once or with commas (default: all)")
	f.BoolVar(&r.Compromised, "compromised", false, "others know the keys: trust the old CAs no more, from now on")
	f.BoolVar(&yes, "yes", false, "do not ask")
	f.BoolVar(&asJSON, "json", false, "print as JSON")
	conf.NotSetting(f, "project", "kind", "compromised", "yes", "json")
	return cmd
}

func rotateACMEAccountCommand() *cobra.Command {
	var d data
	var directory string
	cmd := &cobra.Command{
		Use:   "acme-account",
		Short: "Put another account at an ACME authority in the place of the present one",
		Long: `Acme-account makes another key for the platform's account at an ACME authority,
for when the authority has closed the present account, or others know its key.
The key before is forgotten; the certificate and its key stay. A serve that runs
registers the account when it next orders a certificate: within a minute if that
is due. Where the authority has terms, serve needs --acme-accept-terms, as at
first.

The authority is not asked. An account that it has not closed stays there as it
is, and what it refuses for a time is left alone for that time.

It needs the data folder and no sign-in, works while serve runs, and is an audit
event. Run it as the account that the platform runs as.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withPlatform(cmd, d, func(p *platform.Platform, w io.Writer) error {
				at, err := p.RotateACMEAccount(cmd.Context(), directory)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(w, "The account at %s has another key. It is registered there with the next certificate.\n", at)
				return err
			})
		},
	}
	d.flags(cmd)
	cmd.Flags().StringVar(&directory, "acme-directory", "", "the authority's directory (default: the only one)")
	return cmd
}

// confirmDrop says what breaks when a project's CAs are dropped, and has a
// person say yes to it.
func confirmDrop(cmd *cobra.Command, r platform.AuthoritiesRequest, list []sft.Authority) error {
	w := cmd.ErrOrStderr()
	fmt.Fprintf(w, "These CAs of project %s are trusted no more from now on:\n", sft.Printable(r.Project))
	for _, c := range list {
		if len(r.Kinds) == 0 || slices.Contains(r.Kinds, c.Kind) {
			fmt.Fprintf(w, "  %-8s  %-7s  %s\n", c.Kind, c.Stage, c.Fingerprint)
		}
	}
	fmt.Fprint(w, `Desktops and shells that they let in end, also those of people who may be there.
For the seconds until a server's agent has heard, nobody new gets in there.
A server whose agent is away goes by them until it is back.
Who trusts the SSH host CA by hand has to be given the new key.
`)
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return usage{errors.New("nothing is changed, and there is no terminal to ask at: give --yes")}
	}
	fmt.Fprint(w, "Type the name of the project to go on: ")
	answer, err := bufio.NewReader(io.LimitReader(os.Stdin, 1024)).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	if strings.TrimSpace(answer) != r.Project {
		return errors.New("nothing is changed: that is not the name of the project")
	}
	return nil
}

func printAuthorities(w io.Writer, list []sft.Authority) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KIND\tSTAGE\tNOT HEARD YET\tFINGERPRINT")
	for _, c := range list {
		fmt.Fprintf(t, "%s\t%s\t%d servers\t%s\n", c.Kind, c.Stage, c.Waiting, c.Fingerprint)
	}
	return t.Flush()
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
