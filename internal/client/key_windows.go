package client

import "sft/internal/conf"

func ringLikely(func(string) string) bool { return true } // the Credential Manager

// keyEntropy ties a sealed key to what it is and whose.
func keyEntropy(clientID string) []byte { return []byte("sft device key " + clientID) }

// sealKey seals a key's text by DPAPI for this person on this machine: a copy
// of the file is worth nothing elsewhere.
func sealKey(text []byte, clientID string) ([]byte, error) {
	defer clear(text)
	return conf.Protect(conf.ForUser, text, keyEntropy(clientID), "sft device key")
}

// openKey is the inverse of sealKey.
func openKey(b []byte, clientID string) ([]byte, error) {
	return conf.Unprotect(b, keyEntropy(clientID))
}
