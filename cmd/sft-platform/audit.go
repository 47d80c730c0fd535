package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/conf"
	"sft/internal/export"
	"sft/internal/platform"
)

// auditFlags say where audit events are sent, and how long they are kept.
type auditFlags struct {
	to        []string
	ca        string // file
	cert, key string // files
	secret    string // file
	retention retention
}

func (x *auditFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&x.to, "audit-export", nil, "also send audit events to file:PATH, syslog+tls://HOST:PORT or https://HOST/PATH; more than once, or with commas, for several")
	f.StringVar(&x.ca, "audit-export-ca", "", "PEM file with the CA of the receivers (default: the machine's trust store)")
	f.StringVar(&x.cert, "audit-export-certificate", "", "certificate chain, PEM, for receivers that ask who sends; read for each connection")
	f.StringVar(&x.key, "audit-export-key", "", "private file with its key, PEM")
	f.StringVar(&x.secret, "audit-export-secret", "", "private file with the secret that signs webhooks, whsec_…")
	f.Var(&x.retention, "audit-retention", "remove audit events that were sealed so long ago and that every export has sent, as in 400d (default: never)")
	conf.SecretInURLs(f, "audit-export")
}

// check refuses what does not go together.
func (x *auditFlags) check() error {
	if (x.cert == "") != (x.key == "") {
		return errors.New("--audit-export-certificate and --audit-export-key go together")
	}
	return nil
}

// A retention is how long events are kept; 0 is for ever. A "d" is 24 hours.
type retention time.Duration

const (
	day          = 24 * time.Hour
	minRetention = day
	maxRetention = 36500 * day
)

func (r retention) String() string {
	switch d := time.Duration(r); {
	case d == 0:
		return ""
	case d%day == 0:
		return fmt.Sprintf("%dd", d/day)
	default:
		return d.String()
	}
}

// Set implements pflag.Value.
func (r *retention) Set(s string) error {
	if s == "" {
		*r = 0
		return nil
	}
	d, err := time.ParseDuration(s)
	if n, ok := strings.CutSuffix(s, "d"); ok {
		var days uint64
		days, err = strconv.ParseUint(n, 10, 16)
		d = time.Duration(days) * day
	}
	if err != nil || d < minRetention || d > maxRetention {
		return errors.New("use 1d to 36500d, or 24h and more; nothing keeps events for ever")
	}
	*r = retention(d)
	return nil
}

// Type implements pflag.Value.
func (*retention) Type() string { return "duration" }

// open returns the sinks. They connect to nothing before they are used.
func (x *auditFlags) open(platformURL string) ([]platform.Sink, error) {
	u, err := url.Parse(platformURL)
	if err != nil {
		return nil, err
	}
	o := export.Options{Host: u.Hostname()}
	if x.ca != "" {
		b, err := os.ReadFile(x.ca)
		if err != nil {
			return nil, unread("the CA of the audit exports", "audit-export-ca", err)
		}
		if o.Roots, err = export.ParseRoots(b); err != nil {
			return nil, err
		}
	}
	if x.cert != "" {
		o.Certificate = func() (*tls.Certificate, error) { return export.ReadKeyPair(x.cert, x.key) }
		if _, err := o.Certificate(); err != nil {
			return nil, err
		}
	}
	if x.secret != "" {
		b, err := conf.ReadPrivate(x.secret)
		if err != nil {
			return nil, unread("the secret of the audit exports", "audit-export-secret", err)
		}
		o.Secret = sft.NewSecret(string(b))
	}
	var list []platform.Sink
	for _, to := range x.to {
		s, err := export.Open(to, o)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(list, func(o platform.Sink) bool { return o.Name() == s.Name() }) {
			return nil, &sft.Error{Code: sft.Invalid, Msg: "the audit export " + s.Name() + " is there twice", Hint: "name each once; a query does not tell two webhooks apart"}
		}
		list = append(list, s)
	}
	return list, nil
}

func auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Verify, keep and remove the record of what happened",
		Long: `Audit works on the database, with the data folder and without a sign-in,
whether serve runs or not. Run it as the account that the platform runs as.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(auditVerifyCommand(), auditCheckpointCommand(), auditPruneCommand(), auditExportsCommand())
	return cmd
}

func auditVerifyCommand() *cobra.Command {
	var d data
	var from string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that no sealed event was changed, removed, inserted or moved",
		Long: `Verify reads every sealed event and checks it against the chain of hashes and
the platform's signatures. It ends with status 1 and names the first event that
is not as it was sealed.

Whoever can write the database can cut off its end, and whoever also has the
master key can sign another past. Both are found with --from: a checkpoint that
"audit checkpoint" printed and that was kept elsewhere, or one that was
exported.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			kept := ""
			if from != "" {
				b, err := readSmall(from)
				if err != nil {
					return unread("the kept checkpoint", "from", err)
				}
				kept = string(b)
				if err := platform.CheckCheckpoint(kept); err != nil {
					return &sft.Error{Code: sft.Invalid, Msg: "the kept checkpoint: " + err.Error(), Err: err, Hint: "give --from a file with what \"sft-platform audit checkpoint\" printed, and nothing else"}
				}
			}
			return withPlatform(cmd, d, func(p *platform.Platform, w io.Writer) error {
				v, err := p.VerifyAudit(cmd.Context(), kept)
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(w, struct {
						First       int64 `json:"first"` // of the events that are as they were sealed
						Last        int64 `json:"last"`
						Checkpoints int   `json:"checkpoints"`
						Removed     int64 `json:"removed"` // on purpose: the events up to this one
						Leaving     int64 `json:"leaving"` // of those are still there
						Unsealed    int64 `json:"unsealed"`
						Kept        bool  `json:"through_kept_checkpoint"`
					}{v.First, v.Last, v.Checkpoints, max(v.First-1, 0), v.Leaving, v.Unsealed, kept != ""})
				}
				if v.Last == 0 {
					fmt.Fprintln(w, "nothing is sealed")
				} else {
					fmt.Fprintf(w, "events %d to %d are as they were sealed, by %d checkpoints\n", v.First, v.Last, v.Checkpoints)
				}
				if v.First > 1 {
					fmt.Fprintf(w, "events 1 to %d were removed on purpose, which is signed\n", v.First-1)
				}
				if v.Leaving > 0 {
					fmt.Fprintf(w, "%d of those are still there: they go with what removes them, or with the next that does\n", v.Leaving)
				}
				if v.Unsealed > 0 {
					fmt.Fprintf(w, "%d events are not sealed yet; nothing is known of them\n", v.Unsealed)
				}
				if kept != "" {
					fmt.Fprintln(w, "the chain goes through the kept checkpoint")
				} else {
					fmt.Fprintln(w, "what cannot be known without a kept checkpoint (--from): whether the end was cut off")
				}
				return nil
			})
		},
	}
	d.flags(cmd)
	cmd.Flags().StringVar(&from, "from", "", "file with a checkpoint that was kept elsewhere")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	conf.NotSetting(cmd.Flags(), "json")
	return cmd
}

// readSmall reads a file that a person names, at most 64 KiB of it.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 64<<10))
}

func auditCheckpointCommand() *cobra.Command {
	var d data
	cmd := &cobra.Command{
		Use:   "checkpoint",
		Short: "Print the newest signed checkpoint, to be kept elsewhere",
		Long: `Checkpoint prints the newest checkpoint: which events are sealed, the hash of
the chain, and the platform's signature. Keep it where nobody who can write the
database can change it, and give it to "audit verify --from".`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withPlatform(cmd, d, func(p *platform.Platform, w io.Writer) error {
				text, err := p.AuditCheckpoint(cmd.Context())
				if err == nil {
					_, err = io.WriteString(w, text)
				}
				return err
			})
		},
	}
	d.flags(cmd)
	return cmd
}

func auditPruneCommand() *cobra.Command {
	var d data
	var before string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "prune --before DATE",
		Short: "Remove old events; the rest stays verifiable",
		Long: `Prune removes the events that were sealed before a day (2026-01-31, 0:00 UTC) or
a moment (2026-01-31T12:00:00Z) that is past, as far as every export has sent
them. What it removes is signed, and an event; a chain that does not hold is not
touched. With --dry-run it says what it would remove, and removes nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := time.Parse(time.DateOnly, before)
			if err != nil {
				t, err = time.Parse(time.RFC3339, before)
			}
			if err != nil {
				return usage{errors.New("--before is missing or no date; give it as 2026-01-31 or 2026-01-31T12:00:00Z")}
			}
			return withPlatform(cmd, d, func(p *platform.Platform, w io.Writer) error {
				prune, what := p.PruneAudit, "are removed"
				if dryRun {
					prune, what = p.PrunableAudit, "would be removed"
				}
				r, err := prune(cmd.Context(), t)
				if err != nil {
					return err
				}
				if r.Last == 0 {
					fmt.Fprintln(w, "there is nothing to remove")
				} else {
					fmt.Fprintf(w, "events %d to %d %s\n", r.First, r.Last, what)
				}
				if r.Kept != "" {
					fmt.Fprintf(w, "the export %s has not sent everything, and keeps what it has not; see \"sft-platform audit exports\"\n", r.Kept)
				}
				return nil
			})
		},
	}
	d.flags(cmd)
	cmd.Flags().StringVar(&before, "before", "", "a day or a moment; newer events stay")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be removed, and remove nothing")
	conf.NotSetting(cmd.Flags(), "before", "dry-run")
	return cmd
}

func auditExportsCommand() *cobra.Command {
	var d data
	var remove string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "exports",
		Short: "List how far each export has come",
		Long: `Exports lists where events are or were sent: the number of the last one that
arrived, and how many wait. What an export has not sent is never removed; one
that is no longer wanted is forgotten with --remove.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if remove != "" && asJSON {
				return usage{errors.New("--json goes with the list, and not with --remove")}
			}
			return withPlatform(cmd, d, func(p *platform.Platform, w io.Writer) error {
				if remove != "" {
					return p.RemoveExport(cmd.Context(), remove)
				}
				list, err := p.ListExports(cmd.Context())
				if err != nil {
					return err
				}
				if asJSON {
					type row struct {
						Name    string `json:"name"`
						Sent    int64  `json:"sent"` // the number of the last event that has arrived
						Waiting int64  `json:"waiting"`
					}
					rows := []row{}
					for _, e := range list {
						rows = append(rows, row{e.Name, e.Seq, e.Lag})
					}
					return writeJSON(w, rows)
				}
				if len(list) == 0 {
					return nil
				}
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "EXPORT\tSENT\tWAITING")
				for _, e := range list {
					fmt.Fprintf(t, "%s\t%d\t%d\n", strings.ReplaceAll(e.Name, "\t", " "), e.Seq, e.Lag)
				}
				return t.Flush()
			})
		},
	}
	d.flags(cmd)
	cmd.Flags().StringVar(&remove, "remove", "", "forget the export of this name")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	conf.NotSetting(cmd.Flags(), "remove", "json")
	return cmd
}
