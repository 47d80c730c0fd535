//go:build unix

package launch

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sft/internal/rdp"
)

func TestMSTSC(t *testing.T) {
	for _, how := range []Start{StartFile, StartProcess} {
		t.Run(string(how), func(t *testing.T) {
			sys := newPretended()
			d, h, said := running(t, sys, how)
			if err := d.Run(t.Context()); err != nil || len(said.all()) != 0 {
				t.Fatalf("Run = %v, said %q", err, said.all())
			}
			if h.served != 1 {
				t.Errorf("%d sign-ins", h.served)
			}
			if told := sys.process != 0; told != (how == StartProcess) {
				t.Errorf("the process that may connect is %d", sys.process)
			}
			if left, _ := filepath.Glob(filepath.Join(d.RunBase, runPrefix+"*")); len(left) != 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// A file without a secret opens nothing where the secret is asked for.
func TestMSTSCWithoutTheSecret(t *testing.T) {
	d, h, said := running(t, newPretended(), StartProcess)
	d.Front.Proven = false
	if err := d.Run(t.Context()); err == nil || h.served != 0 {
		t.Errorf("Run = %v, %d sign-ins", err, h.served)
	}
	if want := "refused a connection: " + rdp.ErrSecret.Error(); !slices.Contains(said.all(), want) {
		t.Errorf("said %q, want %q", said.all(), want)
	}
}

// If its process cannot be told from others, mstsc is ended again.
func TestMSTSCThatCannotBeTold(t *testing.T) {
	sys := newPretended()
	sys.fail = errors.New("it is gone")
	d, h, _ := running(t, sys, StartProcess)
	err := d.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "it is gone") || h.served != 0 {
		t.Errorf("Run = %v, %d sign-ins", err, h.served)
	}
	if left, _ := filepath.Glob(filepath.Join(d.RunBase, runPrefix+"*")); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}
