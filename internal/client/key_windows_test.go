package client

import (
	"bytes"
	"os"
	"testing"

	"sft"
	"sft/internal/conf"
)

// A device key in a file is sealed: who copies the file, or puts it in another
// one's place, has no key.
func TestDeviceKeyIsSealed(t *testing.T) {
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	k := keys{dir: t.TempDir(), ring: FileRing}
	a := Account{ClientID: "c1", Team: "acme", URL: "https://sft.example"}
	if in, err := k.save(a, key); in || err != nil {
		t.Fatalf("save = %v, %v", in, err)
	}
	b, err := os.ReadFile(k.path(a))
	if err != nil || bytes.Contains(b, []byte("PRIVATE KEY")) {
		t.Errorf("the file is %q, %v", b, err)
	}
	if got, err := k.load(a); err != nil || !got.Equal(key) {
		t.Errorf("load: %v", err)
	}
	other := a
	other.ClientID = "c2"
	if err := conf.WriteSecret(k.path(other), b); err != nil {
		t.Fatal(err)
	}
	if _, err := k.load(other); sft.CodeOf(err) != sft.SignIn {
		t.Errorf("another client's key: %v, want a refusal", err)
	}
}

// The key store takes a key, gives it out and forgets it.
func TestDeviceKeyInCredentialManager(t *testing.T) {
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	k := keys{dir: t.TempDir(), ring: SystemRing}
	a := Account{ClientID: "c3", Team: "acme", URL: "https://sft.example", InKeyring: true}
	if in, err := k.save(a, key); !in || err != nil {
		t.Fatalf("save = %v, %v", in, err)
	}
	if got, err := k.load(a); err != nil || !got.Equal(key) {
		t.Errorf("load: %v", err)
	}
	if err := k.remove(a); err != nil {
		t.Error(err)
	}
	if _, err := k.load(a); sft.CodeOf(err) != sft.SignIn {
		t.Errorf("after it was removed: %v", err)
	}
}
