//go:build linux

package relay

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The benchmarks put two proxies in a row, each a process of its own: one from
// TCP to mutual TLS and one back, as sft and the broker are. "plain" has
// crypto/tls and io.Copy. Run them with -benchtime 5s -count 3 or longer.

// proxyEnv makes the test program a proxy: how it copies, what it accepts,
// what it dials, and where.
const proxyEnv = "RELAY_TEST_PROXY"

func TestMain(m *testing.M) {
	if args := strings.Fields(os.Getenv(proxyEnv)); len(args) == 4 {
		if err := proxy(args[0], args[1] == "tls", args[2] == "tls", args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// proxy reads the certificate from its standard input, writes the address of
// its port, and answers each line with its CPU time in seconds and its memory
// in bytes.
func proxy(how string, acceptTLS, dialTLS bool, to string) error {
	in := bufio.NewReader(os.Stdin)
	var file []byte
	for blocks := 0; blocks < 2; {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return err
		}
		file = append(file, line...)
		if strings.HasPrefix(string(line), "-----END") {
			blocks++
		}
	}
	certBlock, rest := pem.Decode(file)
	keyBlock, _ := pem.Decode(rest)
	key, err := x509.ParseECPrivateKey(keyBlock.Bytes)
	if err != nil {
		return err
	}
	cert, pool, err := withKey(certBlock.Bytes, key)
	if err != nil {
		return err
	}
	client, server := configs(cert, pool)
	wrap := func(c net.Conn) net.Conn { return c }
	if how == "relay" {
		wrap = func(c net.Conn) net.Conn { return Wrap(c) }
		client.DynamicRecordSizingDisabled, server.DynamicRecordSizingDisabled = true, true
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				d, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer d.Close()
				a, b := c, d
				if acceptTLS {
					t := tls.Server(wrap(c), server)
					if t.Handshake() != nil {
						return
					}
					a = t
				}
				if dialTLS {
					t := tls.Client(wrap(d), client)
					if t.Handshake() != nil {
						return
					}
					b = t
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					carry(how, a, b)
				}()
				carry(how, b, a)
				<-done
			}()
		}
	}()
	fmt.Println(l.Addr())
	for {
		if _, err := in.ReadString('\n'); err != nil {
			return nil
		}
		debug.FreeOSMemory()
		debug.FreeOSMemory()
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			return err
		}
		status, err := os.ReadFile("/proc/self/statm")
		if err != nil {
			return err
		}
		pages, err := strconv.Atoi(strings.Fields(string(status))[1])
		if err != nil {
			return err
		}
		fmt.Println(time.Duration(u.Utime.Nano()+u.Stime.Nano()).Seconds(), pages*os.Getpagesize())
	}
}

func carry(how string, dst, src net.Conn) {
	if how == "relay" {
		Pump(dst, src, nil, nil)
	} else {
		io.Copy(dst, src)
	}
	if h, ok := dst.(interface{ CloseWrite() error }); ok {
		h.CloseWrite()
	}
}

// A testProxy is one that runs.
type testProxy struct {
	address string
	ask     func() (cpu float64, memory int)
}

func startProxy(b *testing.B, how, accept, dial, to string) testProxy {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), proxyEnv+"="+strings.Join([]string{how, accept, dial, to}, " "))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	in.Write(proxyCertificate())
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		b.Fatal("the proxy did not start")
	}
	return testProxy{lines.Text(), func() (cpu float64, memory int) {
		b.Helper()
		io.WriteString(in, "\n")
		if !lines.Scan() {
			b.Fatal("the proxy ended")
		}
		if _, err := fmt.Sscan(lines.Text(), &cpu, &memory); err != nil {
			b.Fatal(err)
		}
		return cpu, memory
	}}
}

var theCertificate tls.Certificate

func proxyCertificate() []byte {
	if theCertificate.Leaf == nil {
		var err error
		if theCertificate, _, err = certificate(); err != nil {
			panic(err)
		}
	}
	key, err := x509.MarshalECPrivateKey(theCertificate.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		panic(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: theCertificate.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key})...)
}

// service listens, and gives each connection to serve.
func service(b *testing.B, serve func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return l.Addr().String()
}

func eachWay(b *testing.B, bench func(b *testing.B, how string)) {
	for _, how := range []string{"plain", "relay"} {
		b.Run(how, func(b *testing.B) { bench(b, how) })
	}
}

// BenchmarkThroughput moves blocks of 256 KiB through both proxies, towards
// the client as a screen does. CPU is of the proxies alone.
func BenchmarkThroughput(b *testing.B) {
	eachWay(b, func(b *testing.B, how string) {
		block := make([]byte, 256<<10)
		address := service(b, func(c net.Conn) {
			for {
				if _, err := c.Write(block); err != nil {
					return
				}
			}
		})
		back := startProxy(b, how, "tls", "tcp", address)
		front := startProxy(b, how, "tcp", "tls", back.address)
		c, err := net.Dial("tcp", front.address)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		io.CopyN(io.Discard, c, 8<<20)
		buf := make([]byte, len(block))
		f, _ := front.ask()
		k, _ := back.ask()
		b.SetBytes(int64(len(block)))
		for b.Loop() {
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
		f2, _ := front.ask()
		k2, _ := back.ask()
		b.ReportMetric((f2-f+k2-k)/(float64(b.N)*float64(len(block))/1e9), "cpu-s/GB")
	})
}

// BenchmarkEcho sends 64 bytes, as a key does, and waits for as many.
func BenchmarkEcho(b *testing.B) {
	eachWay(b, func(b *testing.B, how string) {
		address := service(b, func(c net.Conn) {
			buf := make([]byte, 64)
			for {
				if _, err := io.ReadFull(c, buf); err != nil {
					return
				}
				c.Write(buf)
			}
		})
		back := startProxy(b, how, "tls", "tcp", address)
		front := startProxy(b, how, "tcp", "tls", back.address)
		c, err := net.Dial("tcp", front.address)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		buf := make([]byte, 64)
		var took []time.Duration
		for b.Loop() {
			start := time.Now()
			c.Write(buf)
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
		b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
	})
}

// BenchmarkIdle has 500 sessions with a TLS connection at either side, as the
// broker has in front of an RDP service. Each has moved 256 KiB, and waits.
func BenchmarkIdle(b *testing.B) {
	const sessions = 500
	eachWay(b, func(b *testing.B, how string) {
		block := make([]byte, 256<<10)
		cert, pool, err := certificate()
		if err != nil {
			b.Fatal(err)
		}
		if theCertificate.Leaf == nil {
			theCertificate = cert
		}
		pool = x509.NewCertPool()
		pool.AddCert(theCertificate.Leaf)
		client, server := configs(theCertificate, pool)
		address := service(b, func(c net.Conn) {
			t := tls.Server(c, server)
			t.Write(block)
			io.Copy(io.Discard, t)
		})
		for b.Loop() {
			p := startProxy(b, how, "tls", "tls", address)
			_, before := p.ask()
			for range sessions {
				c, err := net.Dial("tcp", p.address)
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				t := tls.Client(c, client)
				t.Write(make([]byte, 1000))
				if _, err := io.ReadFull(t, block); err != nil {
					b.Fatal(err)
				}
			}
			p.ask()
			_, after := p.ask()
			b.ReportMetric(float64(after-before)/sessions, "B/session")
		}
	})
}
