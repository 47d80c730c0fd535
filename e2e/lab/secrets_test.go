//go:build linux

package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestGrepFindsSecrets(t *testing.T) {
	l := New(t, "")
	h, other := l.Host("a"), l.Host("b")
	h.AddUser("ann", "")
	secret, wide, argument, variable, absent := []byte(rand.Text()), []byte(rand.Text()), []byte(rand.Text()), []byte(rand.Text()), []byte(rand.Text())
	// It reads two secrets and forgets the second but in UTF-16LE.
	cmd := h.Command(t.Context(), "ann", "perl", "-e", `
		$| = 1; sysread(STDIN, $x, 26); sysread(STDIN, $y, 26);
		$w = pack("v*", unpack("C*", $y)); substr($y, 0) =~ tr/A-Z0-9/-/; substr($y, 0, 26) = "-" x 26;
		print "$$ ready\n"; sleep 1000`, string(argument))
	cmd.Env = append(cmd.Env, "LAB_VARIABLE="+string(variable))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd.Stdin = r
	p := h.Start("perl", cmd)
	r.Close()
	w.Write(secret)
	w.Write(wide)
	poll(t, "perl does not read", func() bool { return strings.HasSuffix(p.Output(), "ready\n") })
	var inside int
	fmt.Sscan(p.Output(), &inside)

	pid := h.LabPID(inside)
	if want := p.PID(); pid != want {
		t.Errorf("LabPID(%d) = %d, want %d", inside, pid, want)
	}
	if got := other.LabPID(inside + 10000); got != 0 {
		t.Errorf("LabPID of no process = %d", got)
	}
	forms := map[string]bool{}
	for _, f := range h.GrepMemory(pid, secret, wide, absent) {
		forms[fmt.Sprint(f.Needle, " as ", f.Form)] = true
		if s := f.String(); strings.Contains(s, string(secret)) || f.Process.Name != "perl" || f.Where == "" {
			t.Errorf("a find is %q", s)
		}
	}
	if !forms["0 as bytes"] || !forms["1 as UTF-16LE"] || forms["2 as bytes"] || forms["2 as UTF-16LE"] {
		t.Errorf("found %v, want secret 0 as bytes and 1 in UTF-16LE", forms)
	}
	got := h.GrepProc(argument, variable, absent)
	want := []string{fmt.Sprintf("secret 0 as bytes in cmdline of perl (%d)", pid), fmt.Sprintf("secret 1 as bytes in environ of perl (%d)", pid)}
	var said []string
	for _, f := range got {
		said = append(said, f.String())
	}
	if !slices.Equal(said, want) {
		t.Errorf("GrepProc = %q, want %q", said, want)
	}
	if got := other.GrepProc(argument, variable); len(got) > 0 {
		t.Errorf("the other host has %v", got)
	}
}

// holes is memory in which some pages cannot be read.
type holes struct {
	data    []byte
	missing func(page int64) bool
}

func (h holes) ReadAt(b []byte, at int64) (int, error) {
	for i := range b {
		if h.missing((at + int64(i)) / 4096) {
			return i, os.ErrInvalid
		}
		b[i] = h.data[at+int64(i)]
	}
	return len(b), nil
}

func TestSearch(t *testing.T) {
	const size = 3*chunk + 4096
	wanted, err := needles([][]byte{[]byte("secret-ä")})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(wanted[1].bytes), "s\x00e\x00c\x00r\x00e\x00t\x00-\x00\xe4\x00"; got != want {
		t.Errorf("in UTF-16LE the secret is %q, want %q", got, want)
	}
	if _, err := needles([][]byte{[]byte("short")}); err == nil {
		t.Error("a secret of five bytes is taken")
	}
	never := func(int64) bool { return false }
	tests := []struct {
		name    string
		at      int
		needle  int
		missing func(int64) bool
		want    bool
	}{
		{"at the beginning", 0, 0, never, true},
		{"at the end", size - 9, 0, never, true},
		{"across the edge of a chunk", chunk - 4, 0, never, true},
		{"in UTF-16LE across an edge, at an odd address", 2*chunk - 7, 1, never, true},
		{"behind a page that is missing", 5 * 4096, 0, func(p int64) bool { return p == 4 }, true},
		{"behind pages that are missing at an edge", chunk + 4096, 0, func(p int64) bool { return p >= 250 && p < 257 }, true},
		{"on a page that is missing", 5 * 4096, 0, func(p int64) bool { return p == 5 }, false},
		{"nowhere", -1, 0, never, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data := make([]byte, size)
			if tt.at >= 0 {
				copy(data[tt.at:], wanted[tt.needle].bytes)
			}
			hits, read := search(holes{data, tt.missing}, 0, size, wanted)
			if got := len(hits) == 1 && hits[0].form == wanted[tt.needle].form; got != tt.want || len(hits) > 1 || read == 0 {
				t.Errorf("search = %+v, %d bytes", hits, read)
			}
		})
	}
}

func TestParseMapping(t *testing.T) {
	tests := []struct {
		name, line string
		want       mapping
		ok         bool
	}{
		{"a heap", "55d0a000-55d0b000 rw-p 00000000 00:00 0          [heap]\n", mapping{0x55d0a000, 0x55d0b000, "[heap]"}, true},
		{"a file with a space in its name", "1000-2000 r--s 00000000 00:01 12 /tmp/a b\n", mapping{0x1000, 0x2000, "/tmp/a b"}, true},
		{"no name", "1000-2000 rw-p 00000000 00:00 0\n", mapping{0x1000, 0x2000, "an unnamed mapping"}, true},
		{"not readable", "1000-2000 ---p 00000000 00:00 0\n", mapping{}, false},
		{"the kernel's variables", "1000-2000 r--p 00000000 00:00 0 [vvar]\n", mapping{}, false},
		{"the kernel's calls", "ffffffffff600000-ffffffffff601000 r-xp 00000000 00:00 0 [vsyscall]\n", mapping{}, false},
		{"nothing", "\n", mapping{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, ok := parseMapping(tt.line); ok != tt.ok || ok && got != tt.want {
				t.Errorf("parseMapping = %+v, %v; want %+v, %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}

func TestCaptureIsWhole(t *testing.T) {
	l := New(t, "")
	h := l.Host("a")
	for _, tt := range []struct{ iface, address string }{{"lo", "127.0.0.1:0"}, {"eth0", ""}} {
		t.Run(tt.iface, func(t *testing.T) {
			var listener net.Listener
			var err error
			if tt.iface == "lo" {
				listener, err = h.Listen(tt.address)
			} else {
				listener, err = net.Listen("tcp", Address+":0")
			}
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			c := h.Capture(tt.iface)
			first, last := []byte("first "+rand.Text()), []byte("last "+rand.Text())
			conn, err := h.Dial(context.Background(), listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			far, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer far.Close()
			go func() {
				conn.Write(first)
				for range 200 {
					conn.Write(bytes.Repeat([]byte("x"), 1000))
				}
				conn.Write(last)
				conn.Close()
			}()
			if _, err := io.Copy(io.Discard, far); err != nil {
				t.Fatal(err)
			}
			got := c.Stop()
			if !bytes.Contains(got, first) || !bytes.Contains(got, last) {
				t.Errorf("the capture of %d bytes misses what was sent", len(got))
			}
		})
	}
}
