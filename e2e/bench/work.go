//go:build linux

package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sft"
	"sft/internal/rdp"
	"sft/internal/rdp/rdptest"
)

// A job is what this program does on a host, started there as "bench work"
// with the job on standard input. It holds what must not be an argument.
type job struct {
	Kind    string // serve, near, far, load, echo, first, idle
	Listen  []string
	Connect string // near, far

	// Certificates in PEM: of serve for RDP, of near and far for each other.
	Certificate, Key, CA string

	Targets []target // load, echo and first: one; idle: all
	Count   int      // connections; of echo: messages
	Warm    time.Duration
	For     time.Duration // load
	Pause   time.Duration // echo, idle: between messages
}

// A target is where clients connect, and as whom, if they speak RDP.
type target struct {
	Address string
	RDP     bool
	Login   string
	Secret  string
	Count   int // idle: connections
}

// A result is the last line that a job prints.
type result struct {
	Bytes    int64         `json:",omitempty"`
	Took     time.Duration `json:",omitempty"`
	P50, P99 time.Duration `json:",omitempty"`
}

// What the jobs print before their result.
const (
	lineReady = "ready" // serves, or all connections stand
	lineBegin = "begin" // the measure begins
)

// A message is a fast-path input PDU (MS-RDPBCGR 2.2.8.1.2), and so is its
// echo, and a block one of output (2.2.9.1.2): what watches over RDP sees
// nothing odd, with or without the beginning of RDP before it. The third byte
// of the first says what the service is to do from then on.
const (
	messageSize = 64
	blockSize   = 16 << 10
	askEcho     = 'e'
	askBlocks   = 'b'
)

func message(ask byte) []byte {
	b := make([]byte, messageSize)
	b[0], b[1], b[2] = 4, messageSize, ask
	return b
}

// work does the job on standard input. A job that serves ends with it.
func work() int {
	d := json.NewDecoder(os.Stdin)
	var j job
	err := d.Decode(&j)
	if err == nil {
		err = j.run(func() { io.Copy(io.Discard, os.Stdin) })
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: work:", err)
		return 1
	}
	return 0
}

func (j *job) run(wait func()) error {
	switch j.Kind {
	case "serve":
		return j.serve(wait)
	case "near", "far":
		return j.pair(wait)
	case "load":
		return j.load(wait)
	case "echo":
		return j.echo()
	case "first":
		return j.first(wait)
	case "idle":
		return j.idle(wait)
	}
	return errors.New("there is no job " + j.Kind)
}

// listen hands each connection to serve, until wait returns.
func (j *job) listen(wait func(), serve func(net.Conn)) error {
	for _, addr := range j.Listen {
		l, err := net.Listen("tcp", addr)
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
					serve(c)
				}()
			}
		}()
	}
	fmt.Println(lineReady)
	wait()
	return nil
}

// serve is the service at the end of every way: it speaks RDP to who begins
// so, and then does what the first message asks for.
func (j *job) serve(wait func()) error {
	cert, err := tls.X509KeyPair([]byte(j.Certificate), []byte(j.Key))
	if err != nil {
		return err
	}
	return j.listen(wait, func(c net.Conn) {
		first := make([]byte, messageSize)
		if _, err := io.ReadFull(c, first[:1]); err != nil {
			return
		}
		c = again{c, io.MultiReader(bytes.NewReader(bytes.Clone(first[:1])), c)}
		if first[0] == 3 { // TPKT (T.123 8)
			s, err := (&rdptest.Service{Certificate: cert}).Serve(&plainConfirm{Conn: c})
			if err != nil {
				return
			}
			c = s.Conn
		}
		if _, err := io.ReadFull(c, first); err != nil {
			return
		}
		if first[2] == askBlocks {
			block := make([]byte, blockSize)
			block[1], block[2] = 0x80|blockSize>>8, blockSize&0xFF
			for {
				if _, err := c.Write(block); err != nil {
					return
				}
			}
		}
		if _, err := c.Write(first); err != nil {
			return
		}
		io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 4<<10))
	})
}

// again is a connection of which something was read already.
type again struct {
	net.Conn
	all io.Reader
}

// A plainConfirm does not offer restricted admin mode, as an rdptest.Service
// does for sftd to take out: where nobody is between, the client would refuse.
type plainConfirm struct {
	net.Conn
	said bool
}

func (p *plainConfirm) Write(b []byte) (int, error) {
	if !p.said && len(b) == 19 { // MS-RDPBCGR 2.2.1.2
		b[12] &^= rdp.FlagRestrictedAdmin
	}
	p.said = true
	return p.Conn.Write(b)
}

func (a again) Read(b []byte) (int, error) { return a.all.Read(b) }

// pair is one end of the plain pair: mutual TLS of the standard library, and
// io.Copy. Near encrypts, far decrypts.
func (j *job) pair(wait func()) error {
	cert, err := tls.X509KeyPair([]byte(j.Certificate), []byte(j.Key))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(j.CA))
	config := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "bench"}
	return j.listen(wait, func(c net.Conn) {
		var other net.Conn
		var err error
		if j.Kind == "near" {
			other, err = tls.Dial("tcp", j.Connect, config)
		} else {
			c = tls.Server(c, config)
			other, err = net.Dial("tcp", j.Connect)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		defer other.Close()
		go func() {
			io.Copy(other, c)
			other.Close()
		}()
		io.Copy(c, other)
	})
}

// connect makes a connection to a target, up to where messages go, or with
// RDP to the step in whose place it stops.
func (t target) connect(stop rdptest.Step) (net.Conn, error) {
	c, err := net.Dial("tcp", t.Address)
	if err != nil || !t.RDP {
		return c, err
	}
	r, err := (&rdptest.Client{User: t.Login, Password: sft.NewSecret(t.Secret), Stop: stop}).Connect(c)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("connect by RDP: %w", err)
	}
	return r.Conn, nil
}

// say prints the result.
func say(r result) error { return json.NewEncoder(os.Stdout).Encode(r) }

// load counts what comes down. The load goes on after the result until wait
// returns, so that whoever measures something beside it is never late.
func (j *job) load(wait func()) error {
	var total atomic.Int64
	var conns []net.Conn
	for range j.Count {
		c, err := j.Targets[0].connect("")
		if err != nil {
			return err
		}
		defer c.Close()
		conns = append(conns, c)
		if _, err := c.Write(message(askBlocks)); err != nil {
			return err
		}
	}
	broken := make(chan error, len(conns))
	var some sync.WaitGroup // all have sent something
	some.Add(len(conns))
	for _, c := range conns {
		go func() {
			buf := make([]byte, 64<<10)
			n, err := c.Read(buf)
			some.Done()
			for err == nil {
				total.Add(int64(n))
				n, err = c.Read(buf)
			}
			broken <- err
		}()
	}
	some.Wait()
	if err := pass(j.Warm, broken); err != nil {
		return err
	}
	fmt.Println(lineBegin)
	began, before := time.Now(), total.Load()
	if err := pass(j.For, broken); err != nil {
		return err
	}
	if err := say(result{Bytes: total.Load() - before, Took: time.Since(began)}); err != nil {
		return err
	}
	wait()
	return nil
}

// pass lets time pass, unless something breaks.
func pass(d time.Duration, broken <-chan error) error {
	select {
	case err := <-broken:
		return fmt.Errorf("a connection broke: %w", err)
	case <-time.After(d):
		return nil
	}
}

// exchange sends a message and waits until it is back.
func exchange(c net.Conn, buf []byte) error {
	if _, err := c.Write(message(askEcho)); err != nil {
		return err
	}
	_, err := io.ReadFull(c, buf[:messageSize])
	return err
}

// echo times messages there and back, as key presses are: one at a time.
func (j *job) echo() error {
	c, err := j.Targets[0].connect("")
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, messageSize)
	var took []time.Duration
	for i := range j.Count + j.Count/10 {
		began := time.Now()
		if err := exchange(c, buf); err != nil {
			return err
		}
		if i >= j.Count/10 {
			took = append(took, time.Since(began))
		}
		time.Sleep(j.Pause)
	}
	slices.Sort(took)
	return say(result{P50: took[len(took)/2], P99: took[len(took)*99/100]})
}

// first connects, and prints a line when the service's first byte is there.
func (j *job) first(wait func()) error {
	t := j.Targets[0]
	c, err := t.connect(rdptest.Attach)
	if t.RDP && errors.Is(err, rdptest.ErrStopped) {
		err = nil // the Connect Response is there
	} else if err == nil {
		defer c.Close()
		err = exchange(c, make([]byte, messageSize))
	}
	if err != nil {
		return err
	}
	fmt.Println(lineReady)
	wait()
	return nil
}

// idle holds many connections, and says something on each now and then.
func (j *job) idle(wait func()) error {
	var conns []net.Conn
	buf := make([]byte, messageSize)
	for _, t := range j.Targets {
		for range t.Count {
			c, err := t.connect("")
			if err == nil {
				err = exchange(c, buf)
			}
			if err != nil {
				return fmt.Errorf("connection %d: %w", len(conns)+1, err)
			}
			defer c.Close()
			conns = append(conns, c)
		}
	}
	fmt.Println(lineReady)
	ended := make(chan struct{})
	go func() {
		wait()
		close(ended)
	}()
	tick := time.NewTicker(j.Pause / time.Duration(len(conns)))
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ended:
			return nil
		case <-tick.C:
		}
		if err := exchange(conns[i%len(conns)], buf); err != nil {
			return fmt.Errorf("connection %d: %w", i%len(conns)+1, err)
		}
	}
}
