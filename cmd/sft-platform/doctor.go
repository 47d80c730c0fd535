package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/ca"
	"sft/internal/conf"
	"sft/internal/doctor"
	"sft/internal/platform"
	"sft/internal/store"
)

func doctorCommand(s *settings) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what is wrong, and what to do",
		Long: `Doctor looks at what the platform needs: settings, data folder, master key,
database, disk, keys, certificate, address, clock, backups and audit. It changes nothing,
and it does not matter whether the platform runs. Run it as the account that the
platform runs as, with the settings that serve has.

A line is a step: ok, warn (it works), fail, or skip (not tried, since another
step failed). It does not stop at a failure. The exit status is 1 if a step
failed.`,
		Args:    cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error { return nil }, // settings that are wrong are a finding
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := doctor.Report{Out: cmd.OutOrStdout(), JSON: asJSON}
			x := &examination{s: s, unset: s.unknown(cmd), add: r.Add, machine: thisMachine}
			x.run(cmd.Context(), s.fill(cmd))
			worst, err := r.End()
			if err == nil && worst != nil {
				err = told{errors.New(worst.Found)}
			}
			return err
		},
	}
	s.Flags.VisitAll(cmd.Flags().AddFlag)
	cmd.Flags().MarkHidden("print-config")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	conf.NotSetting(cmd.Flags(), "json")
	return cmd
}

// A told error was said in the report already.
type told struct{ error }

// A machine is what doctor sees of the one that it runs on.
type machine struct {
	now      func() time.Time
	free     func(dir string) (uint64, error) // bytes that can be written
	writable func(dir string) error
	listen   func(addr string) (net.Listener, error)
	roots    *x509.CertPool // nil: those of the system
}

var thisMachine = machine{
	now: time.Now, free: free, writable: writable,
	listen: func(addr string) (net.Listener, error) { return net.Listen("tcp", addr) },
}

// An examination is one run of doctor.
type examination struct {
	machine
	s     *settings
	unset []string // variables that set nothing
	add   func(doctor.Check)
}

func (x *examination) value(flag string) string { return x.s.Flags.Lookup(flag).Value.String() }

func (x *examination) ok(step, found string) {
	x.add(doctor.Check{Step: step, Verdict: doctor.OK, Found: found})
}

func (x *examination) warn(step, found, fix string) {
	x.add(doctor.Check{Step: step, Verdict: doctor.Warn, Found: found, Fix: fix})
}

// fail says what failed. The fix is the error's own, if it has one.
func (x *examination) fail(step string, err error, fix string) {
	c := doctor.Failed(step, err)
	if c.Fix == "" {
		c.Fix = fix
	}
	x.add(c)
}

func (x *examination) skip(needs string, steps ...string) {
	for _, s := range steps {
		x.add(doctor.Check{Step: s, Verdict: doctor.Skip, Found: "needs " + needs})
	}
}

func (x *examination) run(ctx context.Context, settings error) {
	if settings != nil {
		x.fail("settings", settings, "correct it, then run doctor again: what follows is without it")
	} else {
		x.settings()
	}
	d := data{dir: x.value("data"), database: x.value("database")}
	key := x.dataDir(ctx, &d)
	db := x.database(ctx, &d)
	if db == nil {
		x.skip("database", "schema", "integrity", "keys", "certificate", "clock", "backup", "audit")
	} else {
		defer db.Close()
		current := x.schema(ctx, db)
		if err := db.Check(ctx); err != nil {
			x.fail("integrity", err, "stop the platform, keep the damaged file, and restore the last backup")
		} else {
			x.ok("integrity", "no damage is known")
		}
		switch {
		case !current:
			x.skip("schema", "keys", "certificate", "clock", "backup", "audit")
		case !key:
			x.skip("master-key", "keys", "certificate")
			x.records(ctx, db, nil)
			x.audit(ctx, db)
		default:
			x.records(ctx, db, x.platform(ctx, &d))
			x.audit(ctx, db)
		}
	}
	x.disk(d.dir)
	x.address(ctx, &d)
}

// settings looks at what serve would refuse of them, and at the file of them,
// which may have the database's password.
func (x *examination) settings() {
	err := x.s.serving.check(x.s.name)
	if err == nil {
		_, err = x.s.serving.read("")
	}
	if err != nil {
		fix := whatToDo(err)
		if fix == "" {
			fix = "correct it: see \"sft-platform serve --help\""
		}
		x.fail("settings", err, fix)
		return
	}
	found := "none in " + x.s.file
	if i, err := os.Stat(x.s.file); err == nil {
		found = "in " + x.s.file
		if db := x.value("database"); conf.Redact(db) != db && strings.HasPrefix(x.s.from["database"], "file ") && i.Mode().Perm()&0o007 != 0 {
			x.fail("settings", errors.New(x.s.file+" has the database's password, and everybody can read it"), "run \"chmod o= "+x.s.file+"\", and change the password")
			return
		}
	}
	if len(x.unset) > 0 {
		x.warn("settings", strings.Join(x.unset, ", ")+": no setting has this variable, and it sets nothing", "correct its name, or unset it; \"sft-platform serve --print-config\" shows what is in force")
		return
	}
	x.ok("settings", found)
}

// dataDir looks at the folder and the master key, and reports whether the key
// can be used.
func (x *examination) dataDir(ctx context.Context, d *data) bool {
	switch err := conf.CheckOwnDir(d.dir); {
	case err == nil:
		if err := x.writable(d.dir); err != nil {
			x.fail("data-folder", fmt.Errorf("%s cannot be written: %w", d.dir, err), "mount its file system for writing; if the system has made it read-only by itself, look at the disk first (\"dmesg\")")
		} else {
			x.ok("data-folder", d.dir)
		}
	case errors.Is(err, fs.ErrNotExist):
		x.fail("data-folder", err, "run \"sft-platform init\", or give --data")
		x.skip("data-folder", "master-key")
		return false
	default:
		x.fail("data-folder", errors.New(err.Error()), "run doctor as the account that the platform runs as, as in \"sudo -u sft-platform sft-platform doctor\"; the folder is to be that account's alone: \"chmod 700 "+d.dir+"\"")
		x.skip("data-folder", "master-key")
		return false
	}
	if _, err := d.sealer(ctx); err != nil {
		x.fail("master-key", err, "restore it from its own copy: nothing else opens the keys in the database")
		return false
	}
	x.ok("master-key", d.masterKey())
	return true
}

func (x *examination) database(ctx context.Context, d *data) *store.DB {
	const step = "database"
	shown := conf.Redact(d.url())
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	db, err := store.Attach(ctx, d.url())
	if err != nil {
		fix := "check that PostgreSQL runs, and --database"
		if strings.HasPrefix(shown, "sqlite:") {
			fix = "check --data and --database; if the file is lost, restore a backup"
			path, _ := strings.CutPrefix(d.url(), "sqlite:")
			if _, serr := os.Stat(path); serr == nil {
				fix = "see that this account may read and write the file and its folder, and that the disk is well; if the file is damaged, stop the platform, keep it, and restore the last backup"
			}
		}
		x.fail(step, errors.New(strings.ReplaceAll(err.Error(), d.url(), shown)), fix)
		return nil
	}
	if path, ok := strings.CutPrefix(d.url(), "sqlite:"); ok {
		if i, err := os.Stat(path); err == nil && i.Mode().Perm()&0o077 != 0 {
			x.fail(step, errors.New(path+" can be read by others"), "run \"chmod 600 "+path+"\"")
			return db
		}
	}
	x.ok(step, shown)
	return db
}

// schema reports whether the schema is the one that this program works with.
func (x *examination) schema(ctx context.Context, db *store.DB) bool {
	have, newest, err := db.Versions(ctx)
	switch {
	case err != nil:
		x.fail("schema", err, "give the database of a platform")
	case have > newest:
		x.fail("schema", store.TooNew("the database", have, newest), "")
	case have == 0:
		x.fail("schema", errors.New("the database is empty"), "run \"sft-platform init\", or restore a backup")
	case have < newest:
		x.warn("schema", fmt.Sprintf("%d, and this program's is %d", have, newest), "make a backup with the version that runs, then start this one, which brings it up to date")
	default:
		x.ok("schema", fmt.Sprint(have))
		return true
	}
	return false
}

// soon is when a warning of an end begins.
const soon = 14 * 24 * time.Hour

// platform looks at what the master key opens, and returns that key.
func (x *examination) platform(ctx context.Context, d *data) ca.Sealer {
	p, err := d.openBy(ctx, slog.New(slog.DiscardHandler), store.Attach)
	if err != nil {
		x.fail("keys", err, "run \"sft-platform init\"")
		x.skip("keys", "certificate")
		return nil
	}
	defer p.DB.Close()
	p.Now = x.now
	k, err := p.Keys(ctx)
	switch {
	case err != nil:
		x.fail("keys", err, "put the master key of this database into "+d.dir)
	case !k.First.At.IsZero() && k.First.At.Sub(x.now()) < soon:
		whose, fix := endOf(k.First)
		x.warn("keys", fmt.Sprintf("%d CAs, of which %s ends at %s", k.CAs, whose, k.First.At.Format(time.RFC3339)), fix)
	default:
		x.ok("keys", fmt.Sprintf("the master key opens all: %d CAs", k.CAs))
	}
	x.certificate(ctx, p)
	return p.Sealer
}

// endOf says which CA ends, and what takes its place.
func endOf(e platform.CAEnd) (whose, fix string) {
	switch {
	case e.Project != "":
		return fmt.Sprintf("the %s CA of project %s", e.Kind, e.Project),
			fmt.Sprintf("run \"sft-platform rotate authorities --team %s --project %s\"; serve does so by itself in the last year: see its log", e.Team, e.Project)
	case e.Team != "":
		return "what signs connection files for team " + e.Team,
			"when it has ended, make another with POST /v1/teams/" + e.Team + "/rdp_signing_certificate, and have machines trust that"
	}
	return "the platform's own", "before that, give serve a certificate that machines trust (--tls-cert and --tls-key, or --acme), and enrol servers and clients anew"
}

func (x *examination) certificate(ctx context.Context, p *platform.Platform) {
	const step = "certificate"
	u, err := url.Parse(p.URL)
	if err != nil {
		x.fail(step, err, "restore a backup: the platform's URL is damaged")
		return
	}
	file, key := x.s.serving.cert, x.s.serving.key
	if file == "" && x.s.serving.acme.on {
		x.acme(ctx, p, u)
		return
	}
	if file == "" {
		if _, err := p.Certificate(ctx); err != nil {
			x.fail(step, err, "give doctor --tls-cert and --tls-key, or --acme, as serve has them; for a platform with its own CA, mend what \"keys\" says, and the clock")
			return
		}
		x.ok(step, "made for "+u.Hostname()+" by the platform's own CA")
		return
	}
	pair, err := tls.LoadX509KeyPair(file, key)
	if err != nil { // which was said
		x.skip("settings", step)
		return
	}
	leaf, now, untrusted := pair.Leaf, x.now(), x.distrust(pair)
	i, err := os.Stat(key)
	good := fmt.Sprintf("for %s, good until %s", u.Hostname(), leaf.NotAfter.UTC().Format(time.RFC3339))
	switch {
	case err == nil && i.Mode().Perm()&0o007 != 0:
		x.fail(step, errors.New("everybody can read the private key "+key), "have a new one made, in a file that only this account can read")
	case leaf.VerifyHostname(u.Hostname()) != nil:
		x.fail(step, fmt.Errorf("it is for %s, and people and servers come to %s", strings.Join(leaf.DNSNames, ", "), u.Hostname()), "have one made for "+u.Hostname())
	case now.Before(leaf.NotBefore) || now.After(leaf.NotAfter):
		x.fail(step, errors.New("it is "+good+", from "+leaf.NotBefore.UTC().Format(time.RFC3339)), "renew it, or set the clock")
	case leaf.NotAfter.Sub(now) < soon:
		x.warn(step, good+", which is soon", "renew it, then restart the platform")
	case untrusted != nil:
		x.warn(step, good+"; this machine does not trust it: "+untrusted.Error(), "put the whole chain into "+file+"; if the CA is your own, see that all machines trust it")
	default:
		x.ok(step, good)
	}
}

// distrust is why this machine does not trust a certificate, or nil.
func (x *examination) distrust(pair tls.Certificate) error {
	rest := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			rest.AddCert(c)
		}
	}
	_, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: x.roots, Intermediates: rest, CurrentTime: x.now()})
	return err
}

// maxAge is how old the last backup may be.
const maxAge = 7 * 24 * time.Hour

// records looks at what the database says of time: its own clock, the last
// event, and the last backup, which the master key should open, if that is there.
func (x *examination) records(ctx context.Context, db *store.DB, key ca.Sealer) {
	now := x.now()
	there, last, made, err := platform.Times(ctx, db)
	const fix = "set this machine's clock, and keep it right by NTP"
	switch skew := there.Sub(now); {
	case err != nil:
		x.fail("clock", err, "see what \"database\" and \"integrity\" say")
		x.skip("clock", "backup")
		return
	case last.After(now.Add(time.Minute)):
		x.fail("clock", fmt.Errorf("it says %s, and the last event is of %s", now.UTC().Format(time.RFC3339), last.Format(time.RFC3339)), fix)
	case there.IsZero():
		x.ok("clock", "later than the last event, of "+last.Format(time.RFC3339))
	case skew.Abs() > time.Minute:
		x.fail("clock", fmt.Errorf("it is %s from the database's", skew.Abs().Round(time.Second)), fix)
	default:
		x.ok("clock", "within a minute of the database's")
	}
	switch {
	case made.IsZero():
		x.warn("backup", "none was ever made", "run \"sft-platform backup FILE\" each day, and keep a copy of the master key apart")
	case now.Sub(made) > maxAge:
		x.warn("backup", "the last was made at "+made.Format(time.RFC3339), "run \"sft-platform backup FILE\" each day")
	case key != nil && platform.BackupBeforeKey(ctx, db, key):
		x.warn("backup", "made at "+made.Format(time.RFC3339)+", with another master key than the present one, which does not open it", "run \"sft-platform backup FILE\"; keep the key of then with the backups from before")
	default:
		x.ok("backup", "made at "+made.Format(time.RFC3339))
	}
}

// audit looks at whether events are sealed, and are where copies of them are to
// be. What happened in the last minute may be on its way.
func (x *examination) audit(ctx context.Context, db *store.DB) {
	const step, fix = "audit", "if the platform runs, its log says why; \"sft-platform audit exports\" lists the exports, and forgets one that is no longer wanted"
	p := &platform.Platform{DB: db, Now: time.Now}
	_, old, err := p.CountUnsealed(ctx)
	var list []platform.ExportStatus
	if err == nil {
		list, err = p.ListExports(ctx)
	}
	if err != nil {
		x.fail(step, err, "run \"sft-platform audit verify\"")
		return
	}
	var late []string
	if old > 0 {
		late = append(late, fmt.Sprintf("%d events are older than a minute and not sealed", old))
	}
	for _, e := range list {
		if e.Lag > 0 && time.Since(e.Since) > time.Minute {
			late = append(late, fmt.Sprintf("%d wait for the export to %s, since %s", e.Lag, platform.Shown(e.Name), e.Since.Format(time.RFC3339)))
		}
	}
	if len(late) > 0 {
		x.warn(step, strings.Join(late, "; "), fix)
		return
	}
	x.ok(step, fmt.Sprintf("all is sealed, and is in %d exports", len(list)))
}

// How many bytes are few, and too few.
const (
	fewBytes    = 1 << 30
	tooFewBytes = 100 << 20
)

func (x *examination) disk(dir string) {
	n, err := x.free(dir)
	found := fmt.Sprintf("%d MiB free in %s", n>>20, dir)
	const fix = "make room: with the disk full no session is opened"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		x.skip("data-folder", "disk")
	case err != nil:
		x.fail("disk", err, "see that this account may look at "+dir+", and that the disk is well")
	case n < tooFewBytes:
		x.fail("disk", errors.New(found), fix)
	case n < fewBytes:
		x.warn("disk", found, fix)
	default:
		x.ok("disk", found)
	}
}

// address tries the address. What holds it already should be the platform,
// which may also run with another one than doctor was given.
func (x *examination) address(ctx context.Context, d *data) {
	const step = "listen"
	addr := x.value("listen")
	runs, at := d.served()
	if a, err := net.ResolveTCPAddr("tcp", at); runs && at != "" && err == nil && !listensOn(a, addr) {
		if err := healthy(ctx, at); err != nil {
			x.fail(step, fmt.Errorf("the platform runs, and does not answer at %s: %w", at, err), "look at the platform's log")
			return
		}
		x.ok(step, fmt.Sprintf("%s, and the platform answers there; --listen is %s here", at, addr))
		return
	}
	ln, err := x.listen(addr)
	switch {
	case err == nil && runs:
		ln.Close()
		x.fail(step, fmt.Errorf("the platform runs on %s, and not on %s", d.dir, addr), "give doctor the --listen that serve has; if it is this one, look at the platform's log")
	case err == nil:
		ln.Close()
		if m := x.s.serving.metrics; m != "" {
			if ln, err = x.listen(m); err != nil {
				fix := whatToDo(err)
				if fix == "" {
					fix = "give a loopback address of this machine to --metrics-listen"
				}
				x.fail(step, err, fix)
				return
			}
			ln.Close()
		}
		x.warn(step, addr+" is free: the platform does not run", "start it, as in \"systemctl start sft-platform\"")
	case errors.Is(err, syscall.EADDRINUSE):
		if err := healthy(ctx, addr); err != nil {
			x.fail(step, fmt.Errorf("%s is taken, and not by a platform that is well: %w", addr, err), "look at the platform's log, or find out what else listens there")
			return
		}
		x.ok(step, addr+", and the platform answers there")
	case errors.Is(err, fs.ErrPermission):
		// The system says so before it looks whether the port is taken.
		if healthy(ctx, addr) == nil {
			x.ok(step, addr+", and the platform answers there")
			return
		}
		x.fail(step, err, "run serve by its unit, which may use ports below 1024, or give another --listen")
	default:
		x.fail(step, err, "give an address of this machine to --listen")
	}
}

// healthy asks what listens on an address of this machine whether it is well.
func healthy(ctx context.Context, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", "https://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return err
	}
	t := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // nothing is sent, and only the status is looked at
	defer t.CloseIdleConnections()
	resp, err := t.RoundTrip(r)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return &sft.Error{Code: sft.Unavailable, Msg: "it answers " + resp.Status, Hint: "look at the platform's log"}
	}
	return nil
}
