//go:build unix

package client

// sealKey returns text: the file is private, and there is no more to it.
func sealKey(text []byte, _ string) ([]byte, error) { return text, nil }

// openKey is the inverse of sealKey.
func openKey(b []byte, _ string) ([]byte, error) { return b, nil }
