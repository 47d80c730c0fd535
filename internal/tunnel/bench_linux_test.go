package tunnel

import (
	"io"
	"net"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"sft/e2e/lab"
)

// source is a server that sends without end.
func source(b *testing.B) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		block := make([]byte, 64<<10)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for {
					if _, err := c.Write(block); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// BenchmarkPath measures what comes through two hops, beside "ssh -J" and
// "ssh -W" with OpenSSH's own nesting: here and over 150 ms to the first hop.
func BenchmarkPath(b *testing.B) {
	bed := newSSHBed(b)
	first := bed.start("first", true, nil, "AuthorizedKeysFile %D/authorized_keys")
	second := bed.start("second", true, nil, "AuthorizedKeysFile %D/authorized_keys")
	from := source(b)
	for _, at := range []struct {
		name string
		rtt  time.Duration
	}{{"here", 0}, {"150ms", 150 * time.Millisecond}} {
		address := first.addr
		if at.rtt > 0 {
			address = lab.NewDelay(b, "127.0.0.1:0", first.addr, at.rtt).Addr()
		}
		near := *first
		near.addr = address
		b.Run(at.name+"/sft", func(b *testing.B) {
			h1, h2 := near.hop(), second.hop()
			h1.HostKeys, h2.HostKeys = []ssh.PublicKey{first.key.PublicKey()}, []ssh.PublicKey{second.key.PublicKey()}
			start := time.Now()
			c, err := dial(b, newPath(b, h1, h2), from)
			if err != nil {
				b.Fatal(err)
			}
			flow(b, c, start)
		})
		b.Run(at.name+"/ssh-J", func(b *testing.B) {
			h := bed.newHome(map[string]*sshd{"first": &near, "second": second},
				map[string]ssh.PublicKey{near.known(): first.key.PublicKey(), second.known(): second.key.PublicKey()})
			cmd := exec.Command("ssh", append(h.args(b), "-J", "first", "-W", from, "second")...)
			out, err := cmd.StdoutPipe()
			if err != nil {
				b.Fatal(err)
			}
			cmd.Stderr = b.Output()
			start := time.Now()
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			defer kill(cmd)
			flow(b, out, start)
		})
	}
}

// flow reports how fast r flows once it does, over three seconds, and how long
// the first byte took.
func flow(b *testing.B, r io.Reader, start time.Time) {
	buf := make([]byte, 64<<10)
	if _, err := io.ReadFull(r, buf[:1]); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms-to-first-byte")
	io.CopyN(io.Discard, r, 4<<20) // the windows are open then
	var n int64
	begin := time.Now()
	for time.Since(begin) < 3*time.Second {
		k, err := r.Read(buf)
		if err != nil {
			b.Fatal(err)
		}
		n += int64(k)
	}
	b.ReportMetric(float64(n)/1e6/time.Since(begin).Seconds(), "MB/s-through")
	b.ReportMetric(0, "ns/op")
}
