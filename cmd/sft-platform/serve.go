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
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"sft/internal/cloudid"
	"sft/internal/conf"
	"sft/internal/daemon"
	"sft/internal/platform"
	"sft/internal/store"
	"sft/internal/webapi"
)

func serveCommand(s *settings) *cobra.Command {
	var d data
	var listen, cert, key, level, aws string
	var x exportFlags
	var show bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the platform until it is told to stop",
		Long: `Serve runs the platform. It listens with TLS: with the certificate that it is
given, or with one by its own CA, whose fingerprint is in enrollment tokens
and in the line that init printed. On SIGTERM or Ctrl-C it finishes the
requests under way and ends.

Its flags are the settings of the platform, and the keys of the file of them.

GET /healthz answers while the program runs, GET /readyz while the database
answers too.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var l slog.Level
			if err := l.UnmarshalText([]byte(level)); err != nil {
				return usage{fmt.Errorf("%s is %q; use debug, info, warn or error", s.name("log-level"), level)}
			}
			if (cert == "") != (key == "") {
				return usage{errors.New("--tls-cert and --tls-key go together")}
			}
			if show {
				return s.Print(cmd.OutOrStdout(), s.from)
			}
			return serve(cmd.Context(), d, listen, cert, key, aws, x, slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: l})))
		},
	}
	d.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&listen, "listen", ":443", "address to listen on")
	f.StringVar(&cert, "tls-cert", "", "certificate chain, PEM, for a platform made with --public-certificate")
	f.StringVar(&key, "tls-key", "", "its private key, PEM")
	f.StringVar(&aws, "aws-certificates", "", "file with AWS's certificates by region, in the place of the built-in ones")
	x.flags(cmd)
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	f.BoolVar(&show, "print-config", false, "print the settings in force, without secrets, and where each comes from")
	conf.NotSetting(f, "print-config")
	return cmd
}

// open opens the platform that init made. The caller closes its database.
func (d *data) open(ctx context.Context, logger *slog.Logger) (*platform.Platform, error) {
	return d.openBy(ctx, logger, store.Open)
}

// openBy is open on a database that is opened by how.
func (d *data) openBy(ctx context.Context, logger *slog.Logger, how func(context.Context, string) (*store.DB, error)) (*platform.Platform, error) {
	sealer, err := d.sealer()
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

// use says that a platform runs on the data folder, as long as this process
// lives: its records are not to be replaced meanwhile.
func (d *data) use() (*conf.Lock, error) {
	l, err := conf.TryShare(d.lockFile())
	if errors.Is(err, conf.ErrLocked) {
		return nil, errors.New("a backup is being restored; start the platform when that is done")
	}
	return l, err
}

func (d *data) lockFile() string { return filepath.Join(d.dir, "serve.lock") }

// grace is how long the requests under way may take when the platform is told
// to stop. The unit's TimeoutStopSec is longer.
const grace = 15 * time.Second

func serve(ctx context.Context, d data, listen, certFile, keyFile, awsFile string, x exportFlags, logger *slog.Logger) error {
	p, err := d.open(ctx, logger)
	if err != nil {
		return err
	}
	defer p.DB.Close()
	if p.Exports, err = x.open(p.URL); err != nil {
		return err
	}
	if host, err := os.Hostname(); err == nil {
		p.Instance = host + ":" + d.dir
	}
	using, err := d.use()
	if err != nil {
		return err
	}
	defer using.Release()
	if awsFile != "" {
		b, err := os.ReadFile(awsFile)
		if err != nil {
			return fmt.Errorf("read the AWS certificates: %w", err)
		}
		if p.AWS, err = cloudid.ParseAWS(b); err != nil {
			return err
		}
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if certFile != "" {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return fmt.Errorf("read the certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	} else if config.GetCertificate, err = p.Certificate(ctx); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	// What is under way when the grace is over ends with this context.
	base, hangUp := context.WithCancel(context.Background())
	defer hangUp()
	srv := &http.Server{
		Handler:           webapi.New(p, logger),
		TLSConfig:         config,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          log.New(debugWriter{logger}, "", 0),
	}
	go p.Run(base)
	if err := daemon.Notify("READY=1"); err != nil {
		logger.Warn("tell systemd", "error", err)
	}
	logger.Info("serving", "url", p.URL, "listen", ln.Addr().String())
	done := make(chan error, 1)
	go func() { done <- srv.ServeTLS(ln, "", "") }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	logger.Info("stopping")
	p.Stop() // what hangs is not waited for
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
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
