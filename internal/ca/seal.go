package ca

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"

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

// A fileSealer seals by AES-256-GCM (NIST SP 800-38D) with the key in a file.
// While the key is changed, the next one is in a file beside it: from then on it
// seals, and both open.
type fileSealer struct {
	path string

	mu   sync.Mutex
	keys []masterKey // the one that seals first
}

// A masterKey can seal and open; its sum tells it from another.
type masterKey struct {
	sum  [sha256.Size]byte
	aead cipher.AEAD
}

// maxKeys of a fileSealer open: also those that were in the files before, for
// what was read before it was sealed anew.
const maxKeys = 4

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

// nextKey is what the file of the next master key has at its end.
const nextKey = ".next"

// NextMasterKey makes the key that is to take the place of the one in the file
// at path, unless it is there, and returns its path. Whoever uses the key at
// path opens with both from then on, and seals with the next.
func NextMasterKey(path string) (string, error) {
	next := path + nextKey
	if Changing(path) {
		_, err := OpenSealer(next) // one that is damaged must not seal anything
		return next, err
	}
	return next, NewMasterKey(next)
}

// Changing reports whether the master key at path is being changed: its next one
// is there.
func Changing(path string) bool {
	_, err := os.Lstat(path + nextKey)
	return err == nil
}

// AdoptMasterKey puts the next master key in the place of the one at path. To be
// called when that opens nothing more.
func AdoptMasterKey(path string) error {
	key, err := conf.ReadPrivate(path + nextKey)
	if err != nil {
		return err
	}
	if _, err := newMasterKey(key); err != nil {
		return err
	}
	if err := conf.WriteSecret(path, key); err != nil {
		return err
	}
	return os.Remove(path + nextKey)
}

// OpenSealer returns the sealer whose key is in the private file at path. It
// goes by that file, and by one of NextMasterKey, also when they change.
func OpenSealer(path string) (Sealer, error) {
	s := &fileSealer{path: path}
	return s, s.load()
}

// load reads the files. The next key's is first: when it is gone between the
// two, the other has it.
func (s *fileSealer) load() error {
	var keys []masterKey
	for _, path := range []string{s.path + nextKey, s.path} {
		b, err := conf.ReadPrivate(path)
		if path != s.path && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		k, err := newMasterKey(b)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		keys = append(keys, k)
	}
	for _, k := range s.keys {
		if len(keys) < maxKeys && !slices.ContainsFunc(keys, func(o masterKey) bool { return o.sum == k.sum }) {
			keys = append(keys, k)
		}
	}
	s.keys = keys
	return nil
}

func newMasterKey(key []byte) (masterKey, error) {
	if len(key) != keySize {
		return masterKey{}, fmt.Errorf("the master key has %d bytes, not %d; restore it from a backup", len(key), keySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return masterKey{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return masterKey{sha256.Sum256(key), aead}, err
}

// NewSealer returns the sealer of a master key.
func NewSealer(key []byte) (Sealer, error) { return newMasterKey(key) }

func (k masterKey) Seal(name string, plain []byte) ([]byte, error) {
	return k.aead.Seal([]byte{sealVersion}, nil, plain, []byte(name)), nil
}

func (k masterKey) Open(name string, sealed []byte) ([]byte, error) {
	if len(sealed) < 1 || sealed[0] != sealVersion {
		return nil, errors.New("the sealed key is of an unknown form; use the version that wrote it")
	}
	plain, err := k.aead.Open(nil, nil, sealed[1:], []byte(name))
	if err != nil {
		err = errors.New("the master key does not open the sealed key; use the master key that the database was made with")
	}
	return plain, err
}

// Seal reads the files each time: what is sealed in a transaction is sealed with
// the key that whoever changes it has made known before their own.
func (s *fileSealer) Seal(name string, plain []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.load(); err != nil {
		return nil, err
	}
	return s.keys[0].Seal(name, plain)
}

func (s *fileSealer) Open(name string, sealed []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if plain, err := s.open(name, sealed); err == nil {
		return plain, nil
	}
	// The key may have changed since the files were read.
	if err := s.load(); err != nil {
		return nil, err
	}
	return s.open(name, sealed)
}

func (s *fileSealer) open(name string, sealed []byte) (plain []byte, err error) {
	for _, k := range s.keys {
		if plain, err = k.Open(name, sealed); err == nil {
			break
		}
	}
	return plain, err
}

// Reseal returns what from has sealed under a name, sealed by to. It is opened
// again before it is returned.
func Reseal(name string, sealed []byte, from, to Sealer) ([]byte, error) {
	plain, err := from.Open(name, sealed)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	again, err := to.Seal(name, plain)
	if err != nil {
		return nil, err
	}
	back, err := to.Open(name, again)
	defer clear(back)
	if err == nil && !bytes.Equal(back, plain) {
		err = errors.New("what was sealed anew is not what it was")
	}
	return again, err
}
