package privsep

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestReadFramed(t *testing.T) {
	const limit = 4
	tests := []struct {
		name string
		in   string
		want string // messages, each in brackets, and how it ended
	}{
		{"nothing", "", "EOF"},
		{"two messages", "\x02\x00\x00\x00ab\x01\x00\x00\x00c", "[ab][c]EOF"},
		{"a message of no bytes", "\x00\x00\x00\x00\x01\x00\x00\x00c", "[][c]EOF"},
		{"a message at the cap", "\x04\x00\x00\x00abcd", "[abcd]EOF"},
		{"one over the cap", "\x05\x00\x00\x00abcde", "a message over the cap of 4 bytes"},
		{"the longest length there is", "\xff\xff\xff\xff", "a message over the cap of 4 bytes"},
		{"an end within a length", "\x01\x00", "EOF"},
		{"an end within a message", "\x04\x00\x00\x00abc", "EOF"},
		{"the other order of bytes", "\x00\x00\x00\x01a", "a message over the cap of 4 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, r, buf := "", strings.NewReader(tt.in), make([]byte, limit)
			for {
				b, err := readFramed(r, buf)
				if err != nil {
					got += err.Error()
					break
				}
				got += "[" + string(b) + "]"
			}
			if got != tt.want {
				t.Errorf("readFramed = %s, want %s", got, tt.want)
			}
		})
	}
}

// FuzzReadFramed checks what must hold whatever a peer writes: nothing over
// the cap is taken, and what is taken is what the stream began with, so no
// byte is lost, made up or read twice.
func FuzzReadFramed(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00ab\x01\x00\x00\x00c"), uint16(8))
	f.Add([]byte("\x00\x00\x00\x00"), uint16(0))
	f.Add([]byte("\xff\xff\xff\x7f\x00"), uint16(100))
	f.Fuzz(func(t *testing.T, in []byte, limit uint16) {
		r, buf, again := bytes.NewReader(in), make([]byte, limit), []byte{}
		for {
			b, err := readFramed(r, buf)
			if err != nil {
				break
			}
			if len(b) > int(limit) {
				t.Fatalf("took %d bytes, over the cap of %d", len(b), limit)
			}
			again = appendFramed(again, b)
		}
		if !bytes.HasPrefix(in, again) {
			t.Errorf("read %q from %q", again, in)
		}
	})
}

// pipes returns the two ends of a channel of pipes.
func pipes(t *testing.T) (monitor, broker *pipe) {
	t.Helper()
	r1, w1, err1 := os.Pipe()
	r2, w2, err2 := os.Pipe()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return newPipe(r1, w2), newPipe(r2, w1)
}

// Messages of every size cross whole and in order of each sender, however many
// send at once.
func TestPipeCarriesWholeMessages(t *testing.T) {
	a, b := pipes(t)
	const senders, each = 8, 20
	var g sync.WaitGroup
	for s := range senders {
		g.Go(func() {
			for n := range each {
				m := message{End: &End{Stream: uint64(s*each + n), Why: strings.Repeat("x", n*n*100)}}
				if err := a.send(m, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	next := map[uint64]uint64{}
	for range senders * each {
		in, err := b.receive()
		if err != nil {
			t.Fatal(err)
		}
		var m message
		if err := json.Unmarshal(in, &m); err != nil {
			t.Fatal(err)
		}
		s, n := m.End.Stream/each, m.End.Stream%each
		if n != next[s] || len(m.End.Why) != int(n*n*100) {
			t.Fatalf("sender %d: message %d of %d bytes, want message %d", s, n, len(m.End.Why), next[s])
		}
		next[s]++
	}
	g.Wait()
	a.close()
	if _, err := b.receive(); err != io.EOF {
		t.Errorf("receive at the end = %v, want EOF", err)
	}
	if err := b.send(message{}, os.Stderr); err == nil {
		t.Error("a file went through")
	}
}

// A peer that does not read keeps nobody for ever, and one that does not write
// keeps nobody beyond the deadline.
func TestPipeIsLate(t *testing.T) {
	a, b := pipes(t)
	defer a.close()
	a.patience = 20 * time.Millisecond
	full := message{End: &End{Why: strings.Repeat("x", MaxMessage/2)}}
	var err error
	for range 100 { // more than any pipe holds
		if err = a.send(full, nil); err != nil {
			break
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("send to one that does not read = %v", err)
	}
	if err := a.send(full, nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("send behind it = %v", err)
	}
	a.deadline(time.Now().Add(20 * time.Millisecond))
	if _, err := a.receive(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("receive from one that does not write = %v", err)
	}
	b.close()
}
