package conf

import (
	"bytes"
	"testing"
)

func TestDPAPI(t *testing.T) {
	for _, scope := range []Scope{ForUser, ForMachine} {
		for _, entropy := range [][]byte{nil, []byte("of this")} {
			sealed, err := Protect(scope, []byte("s3cret"), entropy, "test")
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(sealed, []byte("s3cret")) {
				t.Errorf("the secret is readable in %q", sealed)
			}
			got, err := Unprotect(sealed, entropy)
			if err != nil || string(got) != "s3cret" {
				t.Errorf("Unprotect = %q, %v", got, err)
			}
			if got, err := Unprotect(sealed, []byte("of that")); err == nil {
				t.Errorf("with other entropy it opens as %q", got)
			}
			again, err := Protect(scope, []byte("s3cret"), entropy, "test")
			if err != nil || bytes.Equal(again, sealed) {
				t.Errorf("sealed twice it is the same: %v", err)
			}
		}
	}
}

func TestDPAPIRefusesWhatIsNoSecret(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, maxProtected+1)} {
		if _, err := Protect(ForUser, b, nil, "test"); err == nil {
			t.Errorf("%d bytes were sealed", len(b))
		}
	}
	for _, b := range [][]byte{nil, []byte("nonsense"), make([]byte, 300)} {
		if got, err := Unprotect(b, nil); err == nil {
			t.Errorf("%d bytes of nonsense open as %q", len(b), got)
		}
	}
	if _, err := Protect(ForUser, []byte("x"), nil, "a\x00b"); err == nil {
		t.Error("a name with a NUL was taken")
	}
}
