//go:build linux

package main

import (
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"
)

func TestVerdict(t *testing.T) {
	tests := []struct {
		name string
		row  row
		met  bool
		aim  string
	}{
		{"the median decides", row{ratio: []float64{0.5, 1.3, 1.4}, least: 1.2}, true, "≥ 1.2×"},
		{"too little", row{ratio: []float64{1.1, 1.1, 1.4}, least: 1.2}, false, "≥ 1.2×"},
		{"too much", row{ratio: []float64{0.9, 0.7, 0.85}, most: 0.8}, false, "≤ 0.8×"},
		{"just enough", row{ratio: []float64{7}, most: 7, whole: true}, true, "≤ 7"},
		{"no aim", row{ratio: []float64{99}}, true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.row.met(); got != tt.met {
				t.Errorf("met = %v, want %v", got, tt.met)
			}
			if got := tt.row.aim(); got != tt.aim {
				t.Errorf("aim = %q, want %q", got, tt.aim)
			}
		})
	}
}

func TestSpread(t *testing.T) {
	tests := []struct {
		name string
		in   []float64
		want string
	}{
		{"one number", []float64{7}, "7"},
		{"three rounds", []float64{1.234, 0.5, 12.34}, "1.23 (0.50..12.3)"},
		{"large ones have no fraction", []float64{123.45}, "123"},
		{"nothing", nil, "none"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := spread(tt.in); got != tt.want {
				t.Errorf("spread = %q, want %q", got, tt.want)
			}
		})
	}
}

// A road carries more than it holds at once, unchanged, and no byte early.
func TestRoad(t *testing.T) {
	const size, rtt = 3*inFlight/2 + 12345, 40 * time.Millisecond
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	type received struct {
		n     int64
		sum   [32]byte
		first time.Time
	}
	got := make(chan received, 1)
	go func() {
		c, err := far.Accept()
		if err != nil {
			close(got)
			return
		}
		defer c.Close()
		var r received
		h, one := sha256.New(), make([]byte, 1)
		if _, err := io.ReadFull(c, one); err == nil {
			r.first = time.Now()
			h.Write(one)
			r.n, _ = io.Copy(h, c)
			r.n++
		}
		r.sum = [32]byte(h.Sum(nil))
		got <- r
	}()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	road(t, addr, far.Addr().String(), rtt)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent, h := time.Now(), sha256.New()
	noise := rand.NewChaCha8([32]byte{})
	if _, err := io.CopyN(io.MultiWriter(c, h), noise, size); err != nil {
		t.Fatal(err)
	}
	c.(*net.TCPConn).CloseWrite()
	r := <-got
	if r.n != size || r.sum != [32]byte(h.Sum(nil)) {
		t.Errorf("%d bytes arrived, want %d as they were", r.n, size)
	}
	if early := r.first.Sub(sent); early < rtt {
		t.Errorf("the first byte took %v, want %v at least", early, rtt)
	}
}
