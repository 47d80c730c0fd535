package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"regexp"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/api"
	"sft/internal/ca"
	"sft/internal/conf"
	"sft/internal/platform"
	"sft/internal/store"
)

// data is where the platform's files are, and its database.
type data struct {
	dir      string
	database string
}

func (d *data) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&d.dir, "data", conf.PlatformPaths().State, "folder of the master key and the SQLite database")
	cmd.Flags().StringVar(&d.database, "database", "", "sqlite:PATH or postgres://…; the default is platform.db in the data folder")
}

func (d *data) url() string {
	if d.database != "" {
		return d.database
	}
	return "sqlite:" + filepath.Join(d.dir, "platform.db")
}

func (d *data) masterKey() string { return filepath.Join(d.dir, "master.key") }

func initCommand() *cobra.Command {
	var d data
	var r platform.InitRequest
	var public, asJSON bool
	var tokenFile string
	cmd := &cobra.Command{
		Use:   "init --url URL",
		Short: "Make the database, the CAs, the first team and its owner",
		Long: `Init makes a new platform: the database, the keys and CAs, the first team and
its owner. It prints the owner's one-time sign-in link and the exact line that
enrols a client. What it prints is shown once; first-use makes another link.

The folder then holds master.key, which opens all keys in the database: back
both up, and keep the backups apart.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if r.URL == "" {
				return usage{fmt.Errorf("--url is missing: say how people and servers reach the platform, as in https://sft.example.com")}
			}
			u, err := api.CheckURL(r.URL)
			if err != nil {
				return err
			}
			r.URL, r.OwnCA = u, !public
			if r.Owner == "" {
				r.Owner = me()
			}
			if tokenFile != "" && r.Project == "" {
				return usage{fmt.Errorf("--token-file goes with --project")}
			}
			reply, err := makePlatform(cmd, d, r)
			if err != nil {
				return err
			}
			var unwritten error
			if tokenFile != "" {
				if unwritten = conf.WriteSecret(tokenFile, []byte(reply.Token+"\n")); unwritten != nil {
					tokenFile = "" // so it is shown: like the rest, there is no second time
				}
			}
			return errors.Join(printInit(cmd.OutOrStdout(), d, r, reply, tokenFile, asJSON), unwritten)
		},
	}
	d.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&r.URL, "url", "", "how people and servers reach the platform, https://HOST[:PORT]")
	f.StringVar(&r.Team, "team", "main", "name of the first team")
	f.StringVar(&r.Owner, "owner", "", "user name of its owner (default: yours)")
	f.StringVar(&r.ServiceUser, "service-user", "", "also make a service user of this name with an API key, an administrator in the group automation")
	f.StringVar(&r.Project, "project", "", "also make a project of this name, open to the owners, with an enrollment token")
	f.StringVar(&tokenFile, "token-file", "", "write the enrollment token to this file instead of showing it")
	f.BoolVar(&public, "public-certificate", false, "no CA of its own: serve will be given a certificate that machines trust")
	f.BoolVar(&asJSON, "json", false, "print as JSON")
	conf.NotSetting(f, "json")
	return cmd
}

// me is the user's name, as far as it can name a user of the platform.
func me() string {
	if u, err := user.Current(); err == nil {
		if n := regexp.MustCompile(`[^A-Za-z0-9._-]`).ReplaceAllString(u.Username, "-"); sft.CheckName("user", n) == nil && n != "root" {
			return n
		}
	}
	return "owner"
}

func makePlatform(cmd *cobra.Command, d data, r platform.InitRequest) (platform.InitReply, error) {
	var reply platform.InitReply
	// Nothing is written beside a platform: a new key there would be taken for
	// the one that is missing.
	there, err := d.hasPlatform(cmd.Context())
	if err != nil {
		return reply, err
	}
	_, missing := os.Lstat(d.masterKey())
	switch {
	case there && os.IsNotExist(missing):
		return reply, errNoMasterKey(&d)
	case there:
		return reply, &sft.Error{Code: sft.Exists, Msg: "the database is a platform's already", Hint: "start it with \"sft-platform serve\", or give another database"}
	}
	if err := conf.PrivateDir(d.dir); err != nil {
		return reply, err
	}
	// A master key without a platform is left from an init that did not end
	// well: it is used again.
	if os.IsNotExist(missing) {
		if err := ca.NewMasterKey(d.masterKey()); err != nil {
			return reply, err
		}
	}
	sealer, err := ca.OpenSealer(d.masterKey())
	if err != nil {
		return reply, err
	}
	db, err := store.Open(cmd.Context(), d.url())
	if err != nil {
		return reply, err
	}
	defer db.Close()
	return platform.Init(cmd.Context(), db, sealer, r, nil)
}

func printInit(w io.Writer, d data, r platform.InitRequest, reply platform.InitReply, tokenFile string, asJSON bool) error {
	enroll := fmt.Sprintf("sft enroll --url %s --team %s", r.URL, r.Team)
	if reply.CAFingerprint != "" {
		enroll += " --ca-fingerprint " + reply.CAFingerprint
	}
	if asJSON {
		out := map[string]string{"first_use_url": reply.FirstUseURL, "ca_fingerprint": reply.CAFingerprint, "enroll": enroll, "owner": r.Owner}
		if reply.Key != nil {
			out["key_id"], out["key_secret"] = reply.Key.ID, reply.Key.Secret
		}
		if tokenFile == "" && reply.Token != "" {
			out["enrollment_token"] = reply.Token
		}
		return writeJSON(w, out)
	}
	listen := ""
	if u, err := url.Parse(r.URL); err == nil && u.Port() != "" { // 443 is where serve listens
		listen = " --listen :" + u.Port()
	}
	fmt.Fprintf(w, "The platform is made, in %s.\n\nStart it:\n  sft-platform serve --data %s%s\n", d.dir, d.dir, listen)
	fmt.Fprintf(w, "\nThen %s signs in once with this link, within 3 days:\n  %s\n", r.Owner, reply.FirstUseURL)
	fmt.Fprintf(w, "\nEach person enrols a machine with:\n  %s\n", enroll)
	if reply.Key != nil {
		fmt.Fprintf(w, "\nAPI key of the service user %s:\n  key_id      %s\n  key_secret  %s\n", r.ServiceUser, reply.Key.ID, reply.Key.Secret)
	}
	if reply.Token != "" {
		where := "  " + reply.Token
		if tokenFile != "" {
			where = "  in " + tokenFile
		}
		fmt.Fprintf(w, "\nEnrollment token for the servers of project %s:\n%s\n", r.Project, where)
	}
	return nil
}
