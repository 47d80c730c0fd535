//go:build unix

package client

import (
	"encoding/pem"
	"os"
	"testing"

	"sft"
)

func TestAReadableDeviceKeyIsRefused(t *testing.T) {
	p := newPlatform(t)
	d, a, _ := enrolled(t, p)
	path := d.Store.keys.path(a)
	if b, err := os.ReadFile(path); err != nil {
		t.Fatal(err)
	} else if block, _ := pem.Decode(b); block == nil || block.Type != "PRIVATE KEY" {
		t.Errorf("the key file is %q", b)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Session(a); sft.CodeOf(err) != sft.Invalid {
		t.Errorf("got %v, want a refusal", err)
	}
}
