package ca

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"

	"golang.org/x/crypto/argon2"

	"sft"
	"sft/internal/conf"
)

// What a passphrase is made a key with: argon2id, by the second recommended
// choice of RFC 9106, section 4, but slower.
const (
	passSalt    = 16 // bytes
	passTime    = 4
	passMemory  = 64 << 10 // KiB
	passThreads = 4
)

// minPassphrase is how short a passphrase may be, in bytes: it may have to keep
// a file safe for years that somebody has all the time for.
const minPassphrase = 16

const (
	passName    = "master key" // what is sealed
	passVersion = 1            // the first byte of it
)

// ReadPassphrase reads the passphrase in the private file at path, without the
// end of its line.
func ReadPassphrase(path string) (sft.Secret, error) {
	b, err := conf.ReadPrivate(path)
	if err != nil {
		return sft.Secret{}, err
	}
	b = bytes.TrimRight(b, "\r\n")
	if len(b) < minPassphrase {
		return sft.Secret{}, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("the passphrase in %s has fewer than %d characters", path, minPassphrase),
			Hint: "use several random words"}
	}
	return sft.NewSecret(string(b)), nil
}

// SealMasterKey returns the master key in the private file at path so that
// only the passphrase opens it, on any machine.
func SealMasterKey(path string, passphrase sft.Secret) ([]byte, error) {
	key, err := conf.ReadPrivate(path)
	if err != nil {
		return nil, err
	}
	salt := make([]byte, passSalt)
	rand.Read(salt)
	s, err := passSealer(passphrase, salt)
	if err != nil {
		return nil, err
	}
	sealed, err := s.Seal(passName, key)
	return append(append([]byte{passVersion}, salt...), sealed...), err
}

// OpenMasterKey returns the master key that SealMasterKey sealed.
func OpenMasterKey(sealed []byte, passphrase sft.Secret) ([]byte, error) {
	if len(sealed) < 1+passSalt || sealed[0] != passVersion {
		return nil, errors.New("the sealed master key is of an unknown form; use the version that wrote it")
	}
	s, err := passSealer(passphrase, sealed[1:1+passSalt])
	if err != nil {
		return nil, err
	}
	key, err := s.Open(passName, sealed[1+passSalt:])
	if err != nil {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "the passphrase does not open the master key", Hint: "use the one that the backup was made with"}
	}
	return key, nil
}

func passSealer(passphrase sft.Secret, salt []byte) (Sealer, error) {
	return NewSealer(argon2.IDKey([]byte(passphrase.Reveal()), salt, passTime, passMemory, passThreads, keySize))
}
