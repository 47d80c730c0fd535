package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"sft"
	"sft/internal/acme"
	"sft/internal/cloudid"
	"sft/internal/conf"
	"sft/internal/daemon"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/webapi"
)

func serveCommand(s *settings) *cobra.Command {
	var d data
	var show bool
	o := &serving{limits: webapi.DefaultLimits}
	s.serving = o
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the platform until it is told to stop",
		Long: `Serve runs the platform. It listens with TLS: with the certificate that it is
given, with one that it gets and renews by itself from an ACME authority such as
Let's Encrypt (--acme), or with one by its own CA, whose fingerprint is in
enrollment tokens and in the line that init printed. On SIGTERM or Ctrl-C it
finishes the requests under way and ends. Under systemd its socket stays open
meanwhile, so that "systemctl restart" loses no request; a socket unit works as
well, and its address is used instead of --listen.

Its flags are the settings of the platform, and the keys of the file of them.

GET /healthz answers while the program runs, GET /readyz while it can do its
work: see docs/metrics.md, also for metrics and limits.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(s.name); err != nil {
				return usage{err}
			}
			if show {
				return s.Print(cmd.OutOrStdout(), s.from)
			}
			level, err := o.logLevel()
			if err != nil {
				return err
			}
			logger := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			for _, name := range s.unknown(cmd) {
				logger.Warn("a variable of the environment is no setting, and sets nothing", "variable", name, "hint", "correct its name, or unset it; sft-platform serve --print-config shows what is in force")
			}
			return serve(cmd.Context(), d, *o, logger)
		},
	}
	d.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", ":443", "address to listen on")
	f.StringVar(&o.cert, "tls-cert", "", "certificate chain, PEM, for a platform made with --public-certificate")
	f.StringVar(&o.key, "tls-key", "", "its private key, PEM")
	o.acme.flags(cmd)
	f.StringVar(&o.aws, "aws-certificates", "", "file with AWS's certificates by region, in the place of the built-in ones")
	o.audit.flags(cmd)
	f.StringVar(&o.level, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.metrics, "metrics-listen", "", "loopback address to show metrics on, without TLS, as in 127.0.0.1:9464")
	f.StringVar(&o.metricsToken, "metrics-token-file", "", "file with the token that opens /metrics on the platform's own port")
	f.Float64Var(&o.limits.Rate, "rate", o.limits.Rate, "requests a second of one client, agent or service user's key; 40 times as many at once")
	f.Float64Var(&o.limits.Anonymous, "anonymous-rate", o.limits.Anonymous, "the same for what nobody has signed, of one place")
	f.IntVar(&o.limits.Requests, "max-requests", o.limits.Requests, "requests at once, a quarter of them by one caller or from one place")
	f.IntVar(&o.limits.Agents, "max-agents", o.limits.Agents, "agents' requests that hang at once")
	f.IntVar(&o.limits.Connections, "max-connections", o.limits.Connections, "connections at once, a quarter of them from one place")
	f.DurationVar(&o.delay, "shutdown-delay", 0, "how long to go on when told to stop, while /readyz sends a load balancer elsewhere (15s at most)")
	f.BoolVar(&show, "print-config", false, "print the settings in force, without secrets, and where each comes from")
	conf.NotSetting(f, "print-config")
	return cmd
}

// serving is how the platform is served.
type serving struct {
	listen                string
	cert, key             string // files
	level                 string // of the log
	aws                   string // file
	metrics, metricsToken string // address; file
	delay                 time.Duration
	limits                webapi.Limits
	audit                 auditFlags
	acme                  acmeFlags
}

// logLevel is from which level on lines are logged.
func (o serving) logLevel() (l slog.Level, err error) {
	return l, l.UnmarshalText([]byte(o.level))
}

// check refuses what cannot be served so. It looks at the settings alone: at
// what they name, read does. name is how a flag is called.
func (o serving) check(name func(flag string) string) error {
	if _, err := o.logLevel(); err != nil {
		return fmt.Errorf("%s is %q; use debug, info, warn or error", name("log-level"), o.level)
	}
	if (o.cert == "") != (o.key == "") {
		return errors.New("--tls-cert and --tls-key go together")
	}
	_, port, err := net.SplitHostPort(o.listen)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return fmt.Errorf("%s is %q; use HOST:PORT, or :PORT for all addresses", name("listen"), o.listen)
	}
	for _, l := range []struct {
		flag        string
		is          float64
		least, most float64
	}{
		{"rate", o.limits.Rate, 0.1, 1e6},
		{"anonymous-rate", o.limits.Anonymous, 0.1, 1e6},
		{"max-requests", float64(o.limits.Requests), 4, 1e9},
		{"max-agents", float64(o.limits.Agents), 1, 1e9},
		{"max-connections", float64(o.limits.Connections), 4, 1e9},
	} {
		if !(l.is >= l.least && l.is <= l.most) { // nor what is no number
			return fmt.Errorf("%s is %s; use %s to %s", name(l.flag), decimal(l.is), decimal(l.least), decimal(l.most))
		}
	}
	if err := o.acme.check(o.cert != ""); err != nil {
		return err
	}
	if err := o.audit.check(); err != nil {
		return err
	}
	if o.delay < 0 || o.delay > 15*time.Second {
		return fmt.Errorf("%s is %v; use 0 to 15s", name("shutdown-delay"), o.delay)
	}
	if o.metrics == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(o.metrics)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("%s is %q: give a loopback address and a port, as in 127.0.0.1:9464, or use --metrics-token-file for readers from elsewhere", name("metrics-listen"), o.metrics)
	}
	return nil
}

// named is what the settings of a platform name, read.
type named struct {
	exports      []platform.Sink
	aws          *cloudid.AWS     // nil: with the certificates in the program
	certificate  *tls.Certificate // nil: not by a file
	authority    *acme.Authority  // nil: no certificate by ACME
	metricsToken sft.Secret       // empty: none
}

// read reads all files that the settings name, and refuses what cannot be used.
// It connects to nothing. With check it is all that serve refuses of settings
// alone, and doctor runs it, too. platformURL is how exports call the platform.
func (o serving) read(platformURL string) (n named, err error) {
	if n.exports, err = o.audit.open(platformURL); err != nil {
		return n, err
	}
	if o.aws != "" {
		b, err := os.ReadFile(o.aws)
		if err != nil {
			return n, unread("the AWS certificates", "aws-certificates", err)
		}
		if n.aws, err = cloudid.ParseAWS(b); err != nil {
			return n, err
		}
	}
	if o.cert != "" {
		pair, err := tls.LoadX509KeyPair(o.cert, o.key)
		if err != nil {
			return n, unread("the certificate", "tls-cert and --tls-key", err)
		}
		n.certificate = &pair
	} else if o.acme.on {
		if n.authority, err = o.acme.open(); err != nil {
			return n, err
		}
	}
	if o.metricsToken != "" {
		n.metricsToken, err = readToken(o.metricsToken)
	}
	return n, err
}

// decimal is a number as a person writes it.
func decimal(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// readToken reads the token that opens the metrics.
func readToken(path string) (sft.Secret, error) {
	b, err := conf.ReadPrivate(path)
	if err != nil {
		return sft.Secret{}, unread("the token of the metrics", "metrics-token-file", err)
	}
	token := strings.TrimRight(string(b), "\r\n")
	if len(token) < 16 || len(token) > 200 || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return sft.Secret{}, fmt.Errorf("the token in %s is not one line of 16 to 200 characters without spaces; make one with \"openssl rand -hex 32\"", path)
	}
	return sft.NewSecret(token), nil
}

// open opens the platform that init made, and leaves its schema alone. The
// caller closes its database.
func (d *data) open(ctx context.Context, logger *slog.Logger) (*platform.Platform, error) {
	return d.openBy(ctx, logger, attached)
}

// openBy is open on a database that is opened by how.
func (d *data) openBy(ctx context.Context, logger *slog.Logger, how func(context.Context, string) (*store.DB, error)) (*platform.Platform, error) {
	sealer, err := d.sealer(ctx)
	if err != nil {
		return nil, err
	}
	db, err := how(ctx, d.url())
	if err != nil {
		return nil, err
	}
	p, err := platform.New(ctx, db, sealer, logger, nil)
	if err != nil {
		db.Close()
		return nil, err
	}
	return p, nil
}

// linger is how long connections may take to close by a reply that says so,
// before those that nothing goes through are closed: a client that uses one all
// the time never sends a request into a connection that is being closed.
const linger = time.Second

// grace is how long the requests under way may take when the platform is told
// to stop. The unit's TimeoutStopSec is longer.
const grace = 15 * time.Second

// gcPercent lets the heap grow to three times what is in use: requests leave
// much behind and keep little. GOGC overrules it.
const gcPercent = 200

func serve(ctx context.Context, d data, o serving, logger *slog.Logger) error {
	if _, err := d.sealer(ctx); err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	using, err := d.use(ctx) // before the schema is brought up to date
	if err != nil {
		return err
	}
	defer using.Release()
	p, err := d.openBy(ctx, logger, func(ctx context.Context, url string) (*store.DB, error) { return upgraded(ctx, url, logger) })
	if err != nil {
		return err
	}
	defer p.DB.Close()
	records, err := platform.Restored(ctx, p.DB, nil)
	if err != nil {
		return err
	}
	files, err := o.read(p.URL)
	if err != nil {
		return err
	}
	p.Exports, p.Retention = files.exports, time.Duration(o.audit.retention)
	if host, err := os.Hostname(); err == nil {
		p.Instance = host + ":" + d.dir
	}
	if files.aws != nil {
		p.AWS = files.aws
	}
	tlsConf := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if files.certificate != nil {
		tlsConf.Certificates = []tls.Certificate{*files.certificate}
	} else if files.authority != nil {
		certificate, err := p.UseACME(ctx, files.authority)
		if err != nil {
			return err
		}
		tlsConf = certificate.TLSConfig()
	} else if tlsConf.GetCertificate, err = p.Certificate(ctx); err != nil {
		return err
	}
	api := webapi.New(p, logger)
	api.Limits, api.MetricsToken = o.limits, files.metricsToken
	if o.metrics != "" {
		ln, err := net.Listen("tcp", o.metrics)
		if err != nil {
			return err
		}
		defer ln.Close()
		local := &http.Server{Handler: api.LocalMetrics(), ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 8 << 10, ErrorLog: log.New(debugWriter{logger}, "", 0)}
		go local.Serve(ln)
		defer local.Close()
	}
	ln, err := listen(o.listen, logger)
	if err != nil {
		return err
	}
	// What is under way when the grace is over ends with this context.
	base, hangUp := context.WithCancel(context.Background())
	// What keeps a restore away is kept until nothing writes any more.
	keep, letGo := context.WithCancel(context.Background())
	var kept, holding sync.WaitGroup
	defer holding.Wait()
	defer letGo()
	defer kept.Wait()
	defer hangUp()
	srv := &http.Server{
		Handler:           api,
		ConnState:         api.Conn,
		TLSConfig:         tlsConf,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          log.New(debugWriter{logger}, "", 0),
	}
	kept.Go(func() { p.Run(base) })
	done := make(chan error, 2)
	go func() { done <- srv.ServeTLS(ln, "", "") }()
	holding.Go(func() {
		err := using.db.Keep(keep, platform.ErrRestored, func(ctx context.Context) error {
			_, err := platform.Restored(ctx, p.DB, &records)
			return err
		})
		if err != nil { // what is in memory is of other records
			done <- err
		}
	})
	if p.ACME != nil {
		kept.Go(func() { p.ACME.Run(base) })
	}
	if err := daemon.Notify("READY=1"); err != nil {
		logger.Warn("tell systemd", "error", err)
	}
	if err := conf.WriteSecret(d.addressFile(), []byte(ln.Addr().String()+"\n")); err != nil {
		logger.Warn("write down the address for doctor", "error", err)
	}
	logger.Info("serving", "url", p.URL, "listen", ln.Addr().String())
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	logger.Info("stopping")
	if err := daemon.Notify("STOPPING=1"); err != nil {
		logger.Warn("tell systemd", "error", err)
	}
	api.Drain()
	time.Sleep(o.delay)
	// From here on new connections are for who comes after. What hangs is not
	// waited for, and each reply closes its connection.
	ln.Close()
	p.Stop()
	for began := time.Now(); api.Connections() > 0 && time.Since(began) < linger; time.Sleep(10 * time.Millisecond) {
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	// That the listener is closed is no news to us.
	if err := srv.Shutdown(ctx); err != nil && !errors.Is(err, net.ErrClosed) {
		logger.Warn("requests were under way at the end", "after", grace.String())
		hangUp()
		return srv.Close()
	}
	return nil
}

// debugWriter logs what net/http has to say of its peers: their bad
// handshakes are not the operator's errors.
type debugWriter struct{ log *slog.Logger }

func (w debugWriter) Write(b []byte) (int, error) {
	w.log.Debug("http", "message", string(b))
	return len(b), nil
}
