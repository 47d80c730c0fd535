package ca

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"sft/internal/conf"
)

// A Sealer keeps keys unreadable at rest. What was sealed under one name
// cannot be opened under another.
type Sealer interface {
	Seal(name string, plain []byte) ([]byte, error)
	Open(name string, sealed []byte) ([]byte, error)
}

// keySize is the size of a master key, in bytes: AES-256.
const keySize = 32

// fileSealer seals by AES-256-GCM (NIST SP 800-38D) with a key in a file.
type fileSealer struct{ aead cipher.AEAD }

// sealVersion is the first byte of what is sealed.
const sealVersion = 1

// NewMasterKey makes a new master key in a private file at path. A file that
// is there already is left alone, and an error.
func NewMasterKey(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s exists already; it may be the only key to a database, so it is left alone", path)
	}
	key := make([]byte, keySize)
	rand.Read(key)
	return conf.WriteSecret(path, key)
}

// OpenSealer returns the sealer whose key is in the private file at path.
func OpenSealer(path string) (Sealer, error) {
	key, err := conf.ReadPrivate(path)
	if err != nil {
		return nil, err
	}
	return NewSealer(key)
}

// NewSealer returns the sealer of a master key.
func NewSealer(key []byte) (Sealer, error) {
	if len(key) != keySize {
		return nil, fmt.Errorf("the master key has %d bytes, not %d; restore it from a backup", len(key), keySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return fileSealer{aead}, nil
}

func (s fileSealer) Seal(name string, plain []byte) ([]byte, error) {
	return s.aead.Seal([]byte{sealVersion}, nil, plain, []byte(name)), nil
}

func (s fileSealer) Open(name string, sealed []byte) ([]byte, error) {
	if len(sealed) < 1 || sealed[0] != sealVersion {
		return nil, errors.New("the sealed key is of an unknown form; use the version that wrote it")
	}
	plain, err := s.aead.Open(nil, nil, sealed[1:], []byte(name))
	if err != nil {
		return nil, errors.New("the master key does not open the sealed key; use the master key that the database was made with")
	}
	return plain, nil
}
