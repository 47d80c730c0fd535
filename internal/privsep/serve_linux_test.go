package privsep

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sft"
)

// serve is a small broker: TLS with the monitor's key, a line as the frame, an
// Open, then bytes both ways. While it serves it does all that a Go program
// may do without a system call of its own.
func serve(what string) error {
	if what == "full" {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 20, Max: 20}); err != nil {
			return err
		}
	}
	m, err := Enter()
	if err != nil {
		return err
	}
	ctx := context.Background()
	one := Open{Certificates: [][]byte{{1}}, Frame: []byte("open"), Remote: "127.0.0.1:1"}
	switch what {
	case "one":
		_, _, err := m.Open(ctx, one)
		return fmt.Errorf("refused: %v", sft.CodeOf(err))
	case "opens":
		for range 2 {
			if _, _, err := m.Open(ctx, one); err != nil {
				return err
			}
		}
		if err := m.Close(ctx, Close{Stream: 2, BytesIn: 5, Why: "it was done"}); err != nil {
			return err
		}
		if err := m.Close(ctx, Close{Stream: 2}); err == nil {
			return errors.New("a stream can be closed twice")
		}
		m.Open(ctx, one)
	case "gone":
		short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		defer cancel()
		if _, _, err := m.Open(short, one); !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("an open that nobody waits for: %v", err)
		}
	case "full":
		held := []net.Conn{}
		for {
			_, conn, err := m.Open(ctx, one)
			if sft.CodeOf(err) == sft.TooMany {
				break
			}
			if err != nil {
				return err
			}
			held = append(held, conn)
		}
		defer runtime.KeepAlive(held)
	}
	if what == "" {
		go churn()
	}
	var streams sync.WaitGroup
	var counted atomic.Uint64
	var listener net.Listener
	for c := range m.Commands() {
		switch {
		case c.Configure != nil && c.Listener != nil:
			listener = c.Listener
			cfg, err := serverConfig(m, c.Configure)
			if err != nil {
				return err
			}
			streams.Go(func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					streams.Go(func() {
						if err := proxy(m, tls.Server(conn, cfg), &counted); err != nil {
							fmt.Fprintln(os.Stderr, "proxy:", err)
						}
					})
				}
			})
		case c.Shutdown:
			if listener != nil {
				listener.Close()
			}
			streams.Wait()
			return m.Report(ctx, Report{Opened: counted.Load()})
		}
	}
	return nil
}

// serverConfig returns a TLS configuration whose key is with the monitor.
func serverConfig(m *Monitor, c *Configuration) (*tls.Config, error) {
	leaf, err := x509.ParseCertificate(c.HostCertificates[0])
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: c.HostCertificates, Leaf: leaf, PrivateKey: remoteKey{m, leaf.PublicKey}}},
	}, nil
}

// A remoteKey signs by asking the monitor.
type remoteKey struct {
	m   *Monitor
	pub crypto.PublicKey
}

func (k remoteKey) Public() crypto.PublicKey { return k.pub }

func (k remoteKey) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	if len(digest) != 32 {
		return nil, errors.New("not a SHA-256 digest")
	}
	return k.m.Sign(context.Background(), [32]byte(digest))
}

// proxy serves one connection.
func proxy(m *Monitor, conn *tls.Conn, counted *atomic.Uint64) error {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	in := bufio.NewReader(conn)
	frame, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	reply, service, err := m.Open(context.Background(), Open{Certificates: [][]byte{{1}}, Frame: frame, Remote: conn.RemoteAddr().String()})
	if err != nil {
		return err
	}
	defer service.Close()
	counted.Add(1)
	if _, err := conn.Write(append(reply.Reply, '\n')); err != nil {
		return err
	}
	in2 := make(chan int64)
	go func() {
		n, _ := io.Copy(service, in)
		service.(*net.TCPConn).CloseWrite()
		in2 <- n
	}()
	out, err := io.Copy(conn, service)
	conn.CloseWrite()
	return errors.Join(err, m.Close(context.Background(), Close{Stream: reply.Stream, BytesIn: uint64(<-in2), BytesOut: uint64(out), Why: "done"}))
}

// churn keeps the runtime busy: memory that grows and goes back, collections,
// timers, thousands of goroutines, threads, preemption of loops.
func churn() {
	for round := 0; ; round++ {
		var g sync.WaitGroup
		for i := range 3000 {
			g.Go(func() {
				b := make([]byte, 8<<10)
				b[i%len(b)] = 1
				time.Sleep(time.Duration(i%20) * time.Millisecond)
				runtime.KeepAlive(b)
			})
		}
		for range 8 {
			g.Go(func() {
				runtime.LockOSThread() // and take the thread along
				x := 0
				for i := range 20_000_000 { // no call, no check: only a signal stops it
					x ^= i
				}
				runtime.KeepAlive(x)
			})
		}
		big := make([]byte, 64<<20)
		for i := 0; i < len(big); i += 4096 {
			big[i] = 1
		}
		g.Wait()
		runtime.KeepAlive(big)
		if round%3 == 0 {
			debug.FreeOSMemory()
		}
	}
}

// 200 people at once, each with TLS whose key is with the monitor and a socket
// from there, all in a network namespace that has neither.
func TestTrafficThroughTheSandbox(t *testing.T) {
	for name, path := range builds(t) {
		t.Run(name, func(t *testing.T) { traffic(t, path) })
	}
}

func traffic(t *testing.T, path string) {
	cfg := config(t, "serve:")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"host"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}

	service, _ := listen(t)
	go func() {
		for {
			conn, err := service.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	var stream atomic.Uint64
	reports := make(chan Report, 1)
	h := &testHandler{
		sign: func(_ context.Context, digest [32]byte) ([]byte, error) {
			return ecdsa.SignASN1(rand.Reader, key, digest[:])
		},
		open: func(ctx context.Context, _ Open) (OpenReply, *os.File, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", service.Addr().String())
			if err != nil {
				return OpenReply{}, nil, err
			}
			defer conn.Close()
			f, err := conn.(*net.TCPConn).File()
			return OpenReply{Stream: stream.Add(1), Reply: []byte(`{"ok":true}`)}, f, err
		},
		report: func(r Report) { reports <- r },
	}
	cfg.Path = path
	c := start(t, cfg, h)
	front, f := listen(t)
	if err := c.Configure(Configuration{HostCertificates: [][]byte{der}}, f); err != nil {
		t.Fatal(err)
	}
	f.Close()
	front.Close() // the broker's is the same listener

	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	const people, rounds, size = 100, 2, 256 << 10
	var g sync.WaitGroup
	for range people {
		g.Go(func() {
			for range rounds {
				if err := visit(front.Addr().String(), roots, size); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	g.Wait()
	if err := c.Shutdown(); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("Wait = %v", err)
	}
	if got, want := <-reports, (Report{Opened: uint64(people * rounds)}); got != want {
		t.Errorf("Report = %+v, want %+v", got, want)
	}
	seen := map[uint64]bool{}
	for _, cl := range h.closed {
		if want := (Close{Stream: cl.Stream, BytesIn: size, BytesOut: size, Why: "done"}); cl != want || seen[cl.Stream] {
			t.Errorf("Close = %+v, want %+v, once", cl, want)
		}
		seen[cl.Stream] = true
	}
	if len(seen) != people*rounds {
		t.Errorf("%d streams were closed, want %d", len(seen), people*rounds)
	}
}

// visit sends size bytes through the broker and compares what comes back.
func visit(addr string, roots *x509.CertPool, size int) error {
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	raw.SetDeadline(time.Now().Add(time.Minute))
	conn := tls.Client(raw, &tls.Config{RootCAs: roots, ServerName: "host"})
	defer conn.Close()
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	if line, err := in.ReadString('\n'); err != nil || line != "{\"ok\":true}\n" {
		return fmt.Errorf("reply %q, %v", line, err)
	}
	data := make([]byte, size)
	rand.Read(data)
	go func() {
		conn.Write(data)
		conn.CloseWrite()
	}()
	sum := sha256.New()
	n, err := io.Copy(sum, in)
	if err != nil || n != int64(size) || [32]byte(sum.Sum(nil)) != sha256.Sum256(data) {
		return fmt.Errorf("%d of %d bytes came back, %v", n, size, err)
	}
	return nil
}
