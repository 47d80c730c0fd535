package main

import (
	"strings"
	"testing"

	"sft"
)

func TestCheckWords(t *testing.T) {
	for _, tt := range []struct {
		bits    int
		machine uint16
		want    string // in the error
	}{
		{64, 0x8664, ""}, {64, 0xaa64, ""}, {64, 0, ""},
		{32, machineI386, "a 32-bit Windows"}, {32, 0x8664, "program for 32-bit Windows"}, {32, 0, "program for 32-bit Windows"},
	} {
		err := checkWords(tt.bits, tt.machine)
		if tt.want == "" && err != nil || tt.want != "" && (sft.CodeOf(err) != sft.Invalid || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%d bits on %#x: %v, want %q", tt.bits, tt.machine, err, tt.want)
		}
	}
}

func TestStartHint(t *testing.T) {
	for state, want := range map[string]string{"": "net start x", "not installed": "sftd install", "installed, stopped": "net start x", "installed, running": "sftd status"} {
		if got := startHint(state, "x"); !strings.Contains(got, want) || want != "sftd install" && strings.Contains(got, "install\"") {
			t.Errorf("%q: %q, want %q", state, got, want)
		}
	}
}
